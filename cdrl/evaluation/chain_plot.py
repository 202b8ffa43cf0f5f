"""Long chains at a glance: what they look like after 1, 10, 100, ... steps, their acceptance and their density."""

import io
from typing import TYPE_CHECKING

import torch
from PIL import Image

from cdrl.evaluation.long_chains import Chains, Kind, LevelChains
from cdrl.plots import snapshots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["chain_plot"]

BLOCK_INCHES = 5.0
NUM_BINS = 60
MAX_LEVELS = 10  # shown, evenly spread, where there are more
NUM_THIN = 8  # single chains drawn behind their mean
COLOURS: dict[Kind, str] = {"conditional": "tab:blue", "marginal": "tab:orange"}


def chain_plot(chains: Chains) -> Image.Image:
    """A row per level, ten at most: snapshots of each kind, acceptance and change of log p along the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    present = sorted({each.row.level for each in chains.levels})
    number = min(len(present), MAX_LEVELS)
    levels = [present[round(place)] for place in torch.linspace(0, len(present) - 1, number).tolist()]
    kinds = [kind for kind in COLOURS if any(each.row.kind == kind for each in chains.levels)]
    by_place = {(each.row.level, each.row.kind): each for each in chains.levels}
    num_columns = len(chains.levels[0].shown) + 2
    is_image = chains.x_0.ndim == 4
    height = BLOCK_INCHES * (len(chains.x_0) / num_columns if is_image else 1 / num_columns) + 0.7
    width = BLOCK_INCHES * len(kinds) + 8
    figure = Figure(figsize=(width, height * len(levels) + 0.5), layout="constrained")
    ratios = [BLOCK_INCHES] * len(kinds) + [3.5, 3.5]
    panels = figure.subplots(len(levels), len(kinds) + 2, squeeze=False, width_ratios=ratios)
    for row, level in zip(panels, levels, strict=True):
        for axes, kind in zip(row, kinds, strict=False):
            if (level, kind) in by_place:
                each = by_place[level, kind]
                captions = ["$x_0$", "$x_t$", *map(_count, each.shown)]
                snapshots(axes, [chains.x_0, each.x_t, *each.snapshots], captions)
                axes.set_title(f"level {level}, {kind}: $x_s$ after so many steps", fontsize=10)
            else:
                axes.text(0.5, 0.5, "no conditional at the top", ha="center", va="center", fontsize=10)
                axes.axis("off")
        here = [by_place[level, kind] for kind in kinds if (level, kind) in by_place]
        _curves(row[-2], row[-1], here)
    adjusted = "MALA" if chains.card.adjusted else "unadjusted Langevin"
    figure.suptitle(f"{adjusted}, {chains.card.num_steps:,} steps at the step size of training")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")


def _curves(accepted: "Axes", density: "Axes", here: list[LevelChains]) -> None:
    for each in here:
        num_steps = len(each.acceptance)
        edges = torch.logspace(0, torch.tensor(num_steps + 1.0).log10().item(), NUM_BINS).long().unique()
        parts = [each.acceptance[a - 1 : b - 1].mean() for a, b in zip(edges[:-1], edges[1:], strict=True)]
        kind, colour = each.row.kind, COLOURS[each.row.kind]
        accepted.plot(edges[:-1], parts, ".-", color=colour, label=kind)
        steps = edges.clamp(max=num_steps)
        density.plot(steps, each.log_prob[steps, :NUM_THIN], color=colour, alpha=0.3, linewidth=0.7)
        density.plot(steps, each.log_prob[steps].mean(dim=1), color=colour, label=kind)
    accepted.set(xscale="log", ylim=(-0.03, 1.03))
    accepted.set_title("Metropolis acceptance", fontsize=10)
    density.set(xscale="log", yscale="symlog")
    density.set_title("log-density less that at the start, nats", fontsize=10)
    for axes in (accepted, density):
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)


def _count(number: int) -> str:
    """0 is the start; thousands are k."""
    if not number:
        return "start"
    return f"{number // 1000}k" if number >= 1000 and number % 1000 == 0 else str(number)
