"""A search of sampling settings as a picture: what a setting costs against what its samples are worth."""

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cdrl.evaluation.curve_picture import WIDTH, above_images
from cdrl.evaluation.protocol import figure as written
from cdrl.tuning.sampling_card import Row, SearchCard

__all__ = ["search_picture"]

HEADROOM = 1.1


def search_picture(card: SearchCard, shown: list[NDArray]) -> Image.Image:
    """Fréchet distance over gradients: all settings, the curve of K, the Pareto front, the choice; images below.

    Args:
        shown: of the run's own setting and, if there is one, of the chosen one, images of the same noise.
    """
    rows = [row for row in card.rows if row.difference is not None]
    top = HEADROOM * max(row.candidate.frechet + row.candidate.error for row in rows if row.on_curve or row.on_front)
    canvas = Figure(figsize=(WIDTH / 100, 5), layout="constrained")
    axes = canvas.subplots()
    _draw(axes, card, [row for row in rows if row.candidate.frechet <= top])
    protocol = card.own.candidate.protocol
    axes.set(xlabel="gradients of f for each image", ylabel=f"{protocol.metric}, lower is better", ylim=(0, top))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper right")
    num_above = sum(row.candidate.frechet > top for row in rows)
    note = f"{len(rows)} settings, {protocol.num_generated} images of the same noise each, ± one standard error"
    axes.set_title(note + (f"; {num_above} are worse than shown" if num_above else ""), fontsize=10)
    buffer = io.BytesIO()
    FigureCanvasAgg(canvas).print_png(buffer)
    return above_images(Image.open(buffer).convert("RGB"), shown, ["own", "chosen"][: len(shown)])


def _draw(axes: Axes, card: SearchCard, rows: Sequence[Row]) -> None:
    own = card.own.candidate
    axes.axhline(card.floor["frechet"] or 0.0, color="black", linestyle="--", linewidth=1, label="real images")
    axes.axhspan(own.frechet - own.error, own.frechet + own.error, color="C3", alpha=0.1, linewidth=0)
    for within, colour, label in ((True, "C2", "within its error bar"), (False, "0.65", "worse")):
        _points(axes, [r for r in rows if r.is_within is within and not r.on_curve], "o", colour, label)
    front, curve = [row for row in rows if row.on_front], [row for row in rows if row.on_curve]
    axes.step(*_places(front)[:2], where="post", color="C2", linewidth=1.2, label="Pareto front")
    _points(axes, curve, "o-", "C0", "K alone")
    for row in curve:
        place = row.candidate.gradients, row.candidate.frechet
        axes.annotate(f"K={row.candidate.sampling.steps_text}", place, (4, 6), textcoords="offset points", fontsize=8)
    _mark(axes, card.own, "*", 170, "C3", "the run's own")
    if card.chosen is not None:
        setting = card.chosen.setting
        _mark(axes, next(row for row in rows if row.setting == setting), "D", 70, "C1", "chosen")


def _points(axes: Axes, rows: Sequence[Row], shape: str, colour: str, label: str) -> None:
    if rows:
        x, y, errors = _places(rows)
        axes.errorbar(x, y, errors, fmt=shape, markersize=4, color=colour, elinewidth=0.7, label=label)


def _places(rows: Sequence[Row]) -> tuple[list[int], list[float], list[float]]:
    found = sorted((row.candidate for row in rows), key=lambda each: each.gradients)
    return [each.gradients for each in found], [each.frechet for each in found], [each.error for each in found]


def _mark(axes: Axes, row: Row, marker: str, size: int, colour: str, label: str) -> None:
    place, found = ([row.candidate.gradients], [row.candidate.frechet]), row.candidate
    text = f"{label}: {row.setting}, {written(found.frechet, found.error)}"
    axes.scatter(*place, s=size, marker=marker, c="none", edgecolors=colour, linewidths=2, zorder=5, label=text)
