"""An update at a glance: a row of panels for each level, its chains as pictures, f and its gradient along them."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from cdrl.plots import snapshots
from cdrl.training.replay import Replay

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["replay_plot"]

MAX_LEVELS = 10  # shown, evenly spread, where there are more
MAX_STAGES = 6  # of a chain
NUM_IMAGES = 3  # of each level,
NUM_ALONE = 10  # and of the only one
NUM_THIN = 30  # single chains drawn behind their mean
CELL_INCHES = 0.8
CURVE_INCHES = 3.6

Item = TypeVar("Item")


def replay_plot(replay: Replay, class_names: Sequence[str] = ()) -> Image.Image:
    """Images of each level: x_0, x_t, the chain, x_s; f and |grad f| of all its images along the chain.

    f has a free constant per class and level, so the chain's is shown less that of the noisy image x_s it learns from.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    levels = _spread(replay.levels, MAX_LEVELS)
    count = NUM_ALONE if len(levels) == 1 else NUM_IMAGES
    stages = _spread(range(len(levels[0].chain)), MAX_STAGES)
    captions = ["$x_0$", "$x_t$", "init", *(f"step {stage}" for stage in stages[1:]), "$x_s$, data"]
    is_image = levels[0].x_0.ndim == 4
    heights = [max(2.6, CELL_INCHES * min(count, len(each.x_0)) + 0.8) if is_image else 2.8 for each in levels]
    width = CELL_INCHES * len(captions) * (1.0 if is_image else 1.6) + 0.8
    figure = Figure(figsize=(width + 2 * CURVE_INCHES, sum(heights) + 0.5), layout="constrained")
    shape: dict[str, Any] = {"width_ratios": [width, CURVE_INCHES, CURVE_INCHES], "height_ratios": heights}
    panels = figure.subplots(len(levels), 3, squeeze=False, **shape)
    for (pictures, energies, gradients), each in zip(panels, levels, strict=True):
        shown = slice(count if is_image else None)
        columns = [each.x_0, each.x_t, *(each.chain[stage] for stage in stages), each.x_pos]
        snapshots(pictures, [column[shown] for column in columns], captions)
        pictures.set_title(f"level {each.level}, {len(each.x_0)} of the batch, as $x_s$", fontsize=10)
        if is_image and each.label is not None and class_names:
            side = each.x_0.shape[-1] + 1
            names = [["none", *class_names][label] for label in each.label[shown].tolist()]
            pictures.set_yticks([side * (row + 0.5) for row in range(len(names))], names, fontsize=8)
        _curve(energies, each.f - each.f_pos, "tab:blue")
        energies.axhline(0, color="tab:green", linestyle="--")
        energies.set_title("f along the chain, less f of its $x_s$ (dashed)", fontsize=10)
        _curve(gradients, each.gradient, "tab:red")
        gradients.set_ylim(0, 1.1 * each.gradient.max().item())
        gradients.set_title("|grad f| along the chain", fontsize=10)
    figure.suptitle(f"update {replay.step}; bold: mean of the level, thin: single images")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")


def _curve(axes: "Axes", along: Tensor, colour: str) -> None:
    from matplotlib.ticker import MaxNLocator

    marker = "." if len(along) < 40 else ""
    axes.plot(along[:, :NUM_THIN], color=colour, alpha=0.2, linewidth=0.7)
    axes.plot(along.mean(dim=1), marker + "-", color=colour, linewidth=2)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def _spread(items: Sequence[Item], number: int) -> list[Item]:
    """As many evenly spread ones, the first and the last among them."""
    places = torch.linspace(0, len(items) - 1, min(number, len(items))).round().int().tolist()
    return [items[place] for place in places]
