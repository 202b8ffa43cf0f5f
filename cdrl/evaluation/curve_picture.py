"""A curve of scores as a picture: the scores, and the same images at each value below."""

import io

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cdrl.evaluation.curve import SYMBOLS, Curve, CurveCard
from cdrl.evaluation.protocol import ScoreName
from cdrl.sheets import GRAY, labelled

__all__ = ["above_images", "curve_picture"]

WIDTH = 1120


def curve_picture(curve: Curve) -> Image.Image:
    """Fréchet distance, precision and recall, label accuracy; dashed: real images."""
    card, symbol = curve.card, SYMBOLS[curve.card.setting]
    labelled_too = card.points[0].scores["label_accuracy"] is not None
    figure = Figure(figsize=(WIDTH / 100, 3.6), layout="constrained")
    panels = figure.subplots(1, 2 + labelled_too)
    _draw(panels[0], card, "frechet", "C0")
    panels[0].set(title=f"{card.points[0].protocol.metric}, lower is better", ylim=(0, None))
    panels[0].legend(["model", "real images"])
    _draw(panels[1], card, "precision", "C1")
    _draw(panels[1], card, "recall", "C2")
    panels[1].set(title="precision and recall, higher is better")
    panels[1].legend()
    if labelled_too:
        _draw(panels[2], card, "label_accuracy", "C3")
        panels[2].set(title="images of the class asked for")
    for axes in panels:
        axes.set(xlabel=symbol)
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    plot = Image.open(buffer).convert("RGB")
    return above_images(plot, curve.shown, [f"{symbol} = {point.value:g}" for point in card.points])


def above_images(plot: Image.Image, shown: list[NDArray], names: list[str]) -> Image.Image:
    """A plot above a sheet of uint8 images, a named row (n, C, H, W) for each setting; of points the plot alone."""
    if shown[0].ndim != 4:
        return plot
    sheet = labelled(torch.stack([torch.from_numpy(images) for images in shown]), names)
    whole = Image.new("RGB", (max(plot.width, sheet.width), plot.height + sheet.height), GRAY)
    whole.paste("white", (0, 0, whole.width, plot.height))
    whole.paste(plot, (0, 0))
    whole.paste(sheet, (0, plot.height))
    return whole


def _draw(axes: Axes, card: CurveCard, name: ScoreName, colour: str) -> None:
    found = sorted((point.value, point.scores[name] or 0.0) for point in card.points)
    axes.plot(*zip(*found, strict=True), marker="o", color=colour, label=name)
    axes.axhline(card.floor[name] or 0.0, color=colour, linestyle="--", alpha=0.7)
