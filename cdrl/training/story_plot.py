"""The story of a rescued run as a picture: one bar for each attempt, and what of it the run has kept."""

import io
from collections.abc import Sequence

from PIL import Image

from cdrl.training.rescue import Rescue

__all__ = ["attempts", "story_plot"]


def attempts(rescues: Sequence[Rescue], step: int) -> list[tuple[int, int, int]]:
    """(first, kept, last) of each attempt, in updates: it began at `first`, later ones keep it up to `kept`.

    Args:
        step: updates made by now.
    """
    begins = [0, *(each.from_step for each in rescues)]
    ends = [*(each.step for each in rescues), step]
    kept = [min([end, *begins[number + 1 :]]) for number, end in enumerate(ends)]
    return [(first, max(first, keep), end) for first, keep, end in zip(begins, kept, ends, strict=True)]


def story_plot(rescues: Sequence[Rescue], step: int) -> Image.Image:
    """Attempts from top to bottom: what was kept in colour, what was given up pale, each breach as a cross."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    spans = attempts(rescues, step)
    figure = Figure(figsize=(11, 1.4 + 0.55 * len(spans)), layout="constrained")
    axes = figure.subplots()
    for number, (first, kept, last) in enumerate(spans):
        axes.barh(number, last - first, left=first, height=0.5, color="0.85")
        axes.barh(number, kept - first, left=first, height=0.5, color="tab:blue")
    for number, each in enumerate(rescues):
        axes.plot(each.step, number, "x", color="tab:red", markersize=10, markeredgewidth=3)
        axes.annotate(
            f"{each.place}: {each.seen}",
            (each.step, number),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    names = ["as configured", *(f"then {each.lower.replace('_', ' ')} x {each.factor:g}" for each in rescues)]
    axes.set_yticks(range(len(spans)), names)
    axes.invert_yaxis()
    axes.set(xlabel="update", xlim=(0, 1.6 * max(last for _, _, last in spans)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("attempts: blue counts, pale was given up, a cross is where divergence was seen", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")
