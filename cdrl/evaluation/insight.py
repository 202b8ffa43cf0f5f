"""What a model does, for its report: the path from noise to data, its schedule, its energies beside those of data."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cdrl.config import Config
from cdrl.data import Dataset
from cdrl.method.ood import level_scores
from cdrl.method.rng import Rng
from cdrl.method.trace import Trace
from cdrl.model import Model
from cdrl.pictures import from_uint8
from cdrl.plots import schedule_plot
from cdrl.sheets import path_sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CURVES", "energies", "insight", "learning_plot"]

NUM_PATHS = 10
NUM_IMAGES = 200  # whose energies are compared
MAX_COLUMNS = 3  # of curves of learning
MAX_LEVELS = 12  # shown, evenly spread, where there are more
CURVES = {
    "f": ("f_pos", "f_neg"),
    "losses": ("loss_energy", "loss_initializer"),
    "chain displacement": ("displacement",),
    "gradient norms": ("grad_norm_energy", "grad_norm_initializer"),
    "quick score": ("quick_score",),
}


def insight(
    model: Model, config: Config, drawn: NDArray, labels: NDArray[np.int64] | None, real: Dataset
) -> dict[str, Image.Image]:
    """`schedule`, `energies` and, of images, `path`.

    Args:
        config: how to sample, and the seed.
        drawn: the model's images (n, *shape) as the dataset stores them; `labels` (n,) are theirs.
        real: images that the model was not trained on, where there are such.
    """
    seed = config.evaluation.seed
    few = np.linspace(0, len(real) - 1, min(NUM_IMAGES, len(real))).astype(np.int64)
    real_labels = None if labels is None else real.labels(few)
    generated = drawn[:NUM_IMAGES], None if labels is None else labels[:NUM_IMAGES]
    found = {"schedule": schedule_plot(model.schedule)}
    found["energies"] = _energy_plot(model, (real.images(few), real_labels), generated, seed)
    if drawn.ndim == 4:
        trace, classes = Trace(), [] if labels is None else list(model.class_names)
        asked = torch.arange(NUM_PATHS) % len(classes) + 1 if classes else None
        model.sample(NUM_PATHS, labels=asked, seed=seed, sampling=config.sampling, record=trace)
        found["path"] = path_sheet(trace, [] if asked is None else [classes[label - 1] for label in asked.tolist()])
    return found


def learning_plot(histories: dict[str, dict[int, float]]) -> Image.Image | None:
    """Metrics by update; None where there are none.

    Args:
        histories: metric -> update -> value; of several pairs as `pair_0/f_pos`, `pair_1/f_pos`, ...
    """
    panels = {
        title: [(name, key) for name in names for key in histories if key.rpartition("/")[2] == name and histories[key]]
        for title, names in CURVES.items()
    }
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        return None
    num_columns = min(len(panels), MAX_COLUMNS)
    num_rows = -(-len(panels) // num_columns)
    figure, axes = _figure(num_rows, num_columns, 2.8 * num_rows)
    for unused in axes[len(panels) :]:
        unused.axis("off")
    for place, (title, lines) in zip(axes, panels.items(), strict=False):
        for name, key in lines:
            steps, values = zip(*sorted(histories[key].items()), strict=True)
            new = name not in place.get_legend_handles_labels()[1]
            colour = f"C{CURVES[title].index(name)}"
            marker = "." if len(steps) < 30 else ""
            place.plot(steps, values, marker=marker, linewidth=0.9, color=colour, label=name if new else None)
        place.set(title=title, xlabel="update")
        place.legend(fontsize=8)
        place.grid(alpha=0.3)
    return _drawn(figure)


def energies(
    model: Model, levels: Sequence[int], images: NDArray, labels: NDArray[np.int64] | None, seed: int
) -> torch.Tensor:
    """(len(levels), n): -f/step_size of stored images (n, *shape) noised to each level, up to a constant per level."""
    stored = torch.from_numpy(images)
    x_0 = (from_uint8(stored) if stored.dtype == torch.uint8 else stored).to(model.device)
    label = None if labels is None else torch.from_numpy(labels).to(model.device)
    found = []
    for level in levels:
        rng = Rng(seed, "energies", level, device=model.device)
        scores = level_scores(
            model.ladder, model.schedule, level, x_0, num_draws=1, rng=rng, label=label, formulation=model.exact
        )
        found.append(-scores["log_density"].cpu())
    return torch.stack(found)


def _energy_plot(
    model: Model,
    real: tuple[NDArray, NDArray[np.int64] | None],
    generated: tuple[NDArray, NDArray[np.int64] | None],
    seed: int,
) -> Image.Image:
    last = model.schedule.num_levels - 1
    levels = sorted({round(place) for place in np.linspace(0, last, min(last + 1, MAX_LEVELS)).tolist()})
    ours, theirs = energies(model, levels, *real, seed), energies(model, levels, *generated, seed)
    mean, std = ours.mean(1, keepdim=True), ours.std(1, keepdim=True).clamp(min=1e-12)
    figure, (axes,) = _figure(1, 1, 3.6)
    for name, energy, shift, colour in (("real", ours, -0.18, "C0"), ("generated", theirs, 0.18, "C1")):
        places = torch.arange(len(energy)) + shift
        spread = (energy - mean) / std
        boxes = axes.boxplot(spread.T.numpy(), positions=places, widths=0.3, sym="", patch_artist=True, whis=(5, 95))
        for box in boxes["boxes"]:
            box.set(facecolor=colour, alpha=0.5)
        axes.plot([], [], color=colour, linewidth=6, alpha=0.5, label=name)
    axes.set_xticks(range(len(levels)), map(str, levels))
    axes.set(xlabel="level", ylabel="(energy - mean of real) / std of real")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return _drawn(figure)


def _figure(num_rows: int, num_columns: int, height: float) -> "tuple[Figure, Sequence[Any]]":
    """A figure and its panels, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(num_rows, num_columns, squeeze=False).ravel().tolist()


def _drawn(figure: "Figure") -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
