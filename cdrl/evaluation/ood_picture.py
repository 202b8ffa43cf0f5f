"""Scores against sets as a picture: what the sets look like, the best score's histograms, every AUROC."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from cdrl.evaluation.ood import OodCard, OodResult
from cdrl.evaluation.outliers import DATA
from cdrl.pictures import sheet, to_uint8

__all__ = ["ood_picture"]

NUM_EXAMPLES = 24
BINS = 40


def ood_picture(result: OodResult) -> Image.Image:
    """A column for each set: example images, histograms at the score and level with the best AUROC, all AUROCs."""
    card, names = result.card, list(result.card.num_outliers)
    num_levels = len({row.level for row in card.rows})
    height = 6.6 + 0.34 * num_levels
    figure = Figure(figsize=(1.2 + 3.5 * len(names), height), layout="constrained")
    ratios = (2.6, 2.6, 0.8 + 0.34 * num_levels)
    panels = figure.subplots(3, len(names), squeeze=False, height_ratios=ratios)
    for name, (examples, histograms, areas) in zip(names, panels.T, strict=True):
        _examples(examples, result.images[name])
        examples.set_title(f"data against {_short(name)}")
        _histograms(histograms, result, name)
        _areas(areas, card, name)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")


def _examples(axes: Axes, x: Tensor) -> None:
    if x.ndim == 4:
        axes.imshow(np.asarray(sheet(to_uint8(x[:NUM_EXAMPLES]), 6)))
        axes.axis("off")
    else:
        axes.scatter(x[:, 0], x[:, 1], s=2)


def _histograms(axes: Axes, result: OodResult, name: str) -> None:
    best = result.card.best(name)
    values = result.values[best.score, best.level]
    edges = np.linspace(*_range(values[DATA], values[name]), BINS + 1)
    for label, scores in ((DATA, values[DATA]), (_short(name), values[name])):
        axes.hist(scores.clip(edges[0], edges[-1]), bins=edges.tolist(), alpha=0.6, label=label)
    axes.set_title(f"{best.score}, level {best.level}: AUROC {best.detection.auroc:.3f}", fontsize=10)
    axes.set(xlabel="score, higher = data", yticks=[])
    axes.legend(fontsize=8)


def _range(inside: np.ndarray, outside: np.ndarray) -> tuple[float, float]:
    """The middle 98 % of both; what lies beyond is counted in the outer bins."""
    ends = np.concatenate([np.quantile(inside, (0.01, 0.99)), np.quantile(outside, (0.01, 0.99))])
    return float(ends.min()), float(ends.max()) + 1e-9


def _areas(axes: Axes, card: OodCard, name: str) -> None:
    rows = [row for row in card.rows if row.against == name]
    scores = list(dict.fromkeys(row.score for row in rows))
    levels = list(dict.fromkeys(row.level for row in rows))
    table = np.full((len(levels), len(scores)), np.nan)
    for row in rows:
        table[levels.index(row.level), scores.index(row.score)] = row.detection.auroc
    axes.imshow(table, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    for (line, column), auroc in np.ndenumerate(table):
        if np.isfinite(auroc):
            color = "white" if abs(auroc - 0.5) > 0.35 else "black"
            axes.text(column, line, f"{auroc:.2f}", ha="center", va="center", fontsize=9, color=color)
    axes.set_title("AUROC (0.5 = a coin)", fontsize=10)
    axes.set_xticks(range(len(scores)), [score.replace("_", "\n") for score in scores], fontsize=8)
    names = ["image" if level is None else f"level {level}" for level in levels]
    axes.set_yticks(range(len(levels)), names, fontsize=8)


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]
