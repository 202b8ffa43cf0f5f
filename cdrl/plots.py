"""Curves: what a schedule does, level by level."""

import io

import torch
from PIL import Image

from cdrl.method.schedule import Schedule

__all__ = ["schedule_plot"]


def schedule_plot(schedule: Schedule) -> Image.Image:
    """Signal and noise of t = 0 ... T, and per level the chain's noise, the transition's noise and the loss weight."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    levels = torch.arange(schedule.num_levels)
    tr = schedule.transition(levels, torch.empty(schedule.num_levels, dtype=torch.float64))
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    table, steps, weights = figure.subplots(1, 3)
    t = torch.arange(schedule.num_levels + 1)
    table.plot(t, torch.cat([tr.alpha_s[:1], tr.alpha_t]), "o-", label="alpha_t")
    table.plot(t, torch.cat([tr.sigma_s[:1], tr.sigma_t]), "s-", label="sigma_t")
    for number in t.tolist():
        table.annotate(f"{schedule.logsnr[number]:.1f}", (number, 1.04), ha="center", fontsize=8)
    table.set(title="x_t = alpha_t x_0 + sigma_t eps (above: logSNR)", xlabel="t", ylim=(0, 1.12))
    steps.semilogy(levels, tr.sigma_ts, "o-", label="sigma_ts, noise of a transition")
    steps.semilogy(levels, tr.scale * tr.sigma_post, "s-", label="scale sigma_post, noise of a proposal")
    steps.semilogy(levels, tr.step_size.sqrt(), "^-", label="sqrt(step_size), noise of a chain step")
    steps.set(title="noise of a level", xlabel="level")
    weights.bar(levels, tr.loss_weight)
    weights.set(title="loss weight", xlabel="level")
    table.legend()
    steps.legend(fontsize=8)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")
