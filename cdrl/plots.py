"""Curves: what a schedule does, level by level."""

import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cdrl.method.schedule import Schedule

__all__ = ["schedule_plot"]

FEW = 32
"""So many levels are drawn as points, more as a line."""


def schedule_plot(schedule: Schedule) -> Image.Image:
    """What the levels are (alpha, sigma, logSNR over t) and what happens at each (noise, step size, loss weight)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    tr, t, level = schedule.constants, torch.arange(schedule.num_levels + 1), torch.arange(schedule.num_levels)
    figure = Figure(figsize=(15, 7.6), layout="constrained")
    (mix, logsnr, noise), (size, ratio, weight) = figure.subplots(2, 3)
    few = schedule.num_levels <= FEW

    def draw(axes: Any, x: Tensor, y: Tensor, marker: str = "o", **style: Any) -> None:
        axes.plot(x, y, marker=marker if few else "", **style)

    draw(mix, t, torch.cat([tr.alpha_s[:1], tr.alpha_t]), label="alpha_t, signal")
    draw(mix, t, torch.cat([tr.sigma_s[:1], tr.sigma_t]), "s", label="sigma_t, noise")
    mix.set(title="x_t = alpha_t x_0 + sigma_t eps", xlabel="t")
    draw(logsnr, t, schedule.logsnr, color="C2")
    logsnr.set(title="logSNR = ln(alpha_t² / sigma_t²)", xlabel="t")
    s = tr.step_size.sqrt()
    draw(noise, level, tr.sigma_ts, linewidth=3, label="sigma_ts, noise of a transition")
    draw(noise, level, tr.sigma_post, "s", linestyle="--", label="sigma_post, x_s given x_t and x_0")
    draw(noise, level, s, "^", linestyle=":", label="s, noise of a chain step")
    noise.set(title="noise of a level", xlabel="level", yscale="log")
    draw(size, level, tr.step_size, color="C3")
    size.set(title="step_size = s² = b² c² sigma_ts²", xlabel="level", yscale="log")
    draw(ratio, level, s / tr.sigma_ts, color="C4")
    ratio.set(title="s / sigma_ts, step of a chain in units of its target", xlabel="level", ylim=(0, None))
    draw(weight, level, tr.loss_weight, color="C5")
    weight.set(title="loss weight", xlabel="level", ylim=(0, None))
    for axes in (mix, logsnr, noise, size, ratio, weight):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    mix.legend()
    noise.legend(fontsize=8)
    if few:
        logsnr.margins(x=0.1)
        for x, y in zip(t.tolist(), schedule.logsnr.tolist(), strict=True):
            logsnr.annotate(f"{y:.1f}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")
