"""Panels: what a schedule does, level by level; what chains pass through."""

import io
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from cdrl.method.schedule import Schedule
from cdrl.pictures import to_uint8

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["schedule_plot", "snapshots"]

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


def snapshots(axes: "Axes", columns: list[Tensor], captions: list[str]) -> None:
    """A chain a row, a snapshot a column; of points, each snapshot's cloud beside the one before."""
    if columns[0].ndim == 4:
        tiles = torch.stack([to_uint8(column) for column in columns], dim=1)  # (B, S, C, H, W)
        rows, number, channels, side = tiles.shape[:4]
        padded = torch.full((rows, number, channels, side + 1, side + 1), 128, dtype=torch.uint8)
        padded[..., :side, :side] = tiles
        picture = padded.permute(0, 3, 1, 4, 2).reshape(rows * (side + 1), number * (side + 1), channels)
        axes.imshow(picture.expand(-1, -1, 3).numpy(), interpolation="nearest")
        pitch, start = side + 1.0, side / 2
    else:
        reach = 1.2 * max(column.abs().max().item() for column in columns[:3])
        pitch, start = 2 * reach, 0.0
        for number, column in enumerate(columns):
            inside = column[column.abs().amax(dim=1) < reach]
            axes.scatter(inside[:, 0] + number * pitch, inside[:, 1], s=2, linewidths=0, color="black")
        axes.set(xlim=(-reach, (len(columns) - 0.5) * pitch), ylim=(-reach, reach), aspect="equal")
    axes.set_xticks([start + number * pitch for number in range(len(captions))], captions, fontsize=8)
    axes.set_yticks([])
