"""Densities of a toy, level by level: the law, the model, and where the samplers are."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdrl.evaluation.density import LevelDensity

__all__ = ["density_plot"]

BINS = 96
GAMMA = 0.6  # of the colours, so that faint mass is seen


def density_plot(levels: list[LevelDensity]) -> Image.Image:
    """A column per level, noisiest left; rows: exact density, model's density with both KL in nats, samples there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = levels[::-1]
    has_truth = shown[0].truth is not None
    captions = list(shown[0].samples)
    rows = ["exact density"] * has_truth + ["model exp(F)/Z", *(f"samples, {caption}" for caption in captions)]
    figure = Figure(figsize=(2.3 * len(shown) + 0.3, 2.35 * len(rows) + 0.3), layout="constrained")
    panels = figure.subplots(len(rows), len(shown), squeeze=False)
    for column, level in zip(panels.T, shown, strict=True):
        h = level.half_side
        densities = [level.truth.numpy()] * has_truth if level.truth is not None else []
        densities = [_per_area(cells, h) for cells in (*densities, level.model.numpy())]
        edges = np.linspace(-h, h, BINS + 1)
        densities += [_histogram(level.samples[caption].numpy(), edges) for caption in captions]
        brightest = densities[0].max()
        for axes, density in zip(column, densities, strict=True):
            picture = (density.T / brightest).clip(0, 1) ** GAMMA
            axes.imshow(picture, origin="lower", extent=(-h, h, -h, h), cmap="magma", vmin=0, vmax=1)
            axes.tick_params(labelsize=7, length=2)
            axes.locator_params(nbins=4)
        column[0].set_title(f"level {level.level}", fontsize=11)
        if level.kl_nats is not None:
            column[1].set_title(f"KL {level.kl_nats:.3f}, recovery {level.recovery_kl_nats:.3f}", fontsize=9)
        for axes, caption in zip(column[-len(captions) :], captions, strict=True):
            if level.mmd2 is not None:
                axes.set_title(f"1000 MMD² {1000 * level.mmd2[caption]:.2f}", fontsize=9)
    for axes, row in zip(panels[:, 0], rows, strict=True):
        axes.set_ylabel(row, fontsize=10)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")


def _per_area(cells: NDArray, half_side: float) -> NDArray:
    return cells * (len(cells) / (2 * half_side)) ** 2


def _histogram(points: NDArray, edges: NDArray) -> NDArray:
    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=(edges, edges))
    return counts / len(points) / (edges[1] - edges[0]) ** 2
