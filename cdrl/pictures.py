"""Pixels and pictures: the one place where [-1, 1] meets 8-bit, and where images become a sheet."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = ["class_rows", "from_uint8", "picture_of", "png_bytes", "scatter", "sheet", "to_uint8"]

NUM_POINTS = 10_000


def from_uint8(images: Tensor) -> Tensor:
    """8-bit pixels to the model's range: x = images/127.5 - 1, float32, any shape (spec section 1)."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """The model's range to 8-bit pixels, rounded and clamped: inverse of `from_uint8`. Any shape."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def sheet(images: Tensor, columns: int, *, min_side: int = 48, padding: int = 1) -> Image.Image:
    """Lay uint8 images (N, C, H, W), C = 1 or 3, out row by row; small ones are enlarged by whole factors."""
    from torchvision.utils import make_grid  # here: it brings the compiler of torch, 2 s of each process's start

    factor = max(1, -(-min_side // images.shape[-1]))
    enlarged = images.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
    grid = make_grid(enlarged, nrow=columns, padding=padding * factor // 2 + 1, pad_value=64)
    return Image.fromarray(np.ascontiguousarray(grid.permute(1, 2, 0).numpy()))


def class_rows(
    images: Callable[[NDArray], NDArray], labels: NDArray[np.int64], classes: Sequence[int], columns: int
) -> Tensor:
    """The first images of each class, (len(classes), columns, *shape); places without an image stay zero.

    Args:
        images: (k,) numbers -> (k, *shape).
        labels: (n,) of all images.
        classes: a row each.
    """
    rows = [torch.from_numpy(images(np.flatnonzero(labels == label)[:columns])) for label in classes]
    filled = rows[0].new_zeros(len(rows), columns, *rows[0].shape[1:])
    for place, row in zip(filled, rows, strict=True):
        place[: len(row)] = row
    return filled


def png_bytes(image: Image.Image) -> bytes:
    """The picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def scatter(sets: dict[str, NDArray]) -> Image.Image:
    """Sets of 2-D points (N, 2) side by side, each below its caption; at most 10,000 of each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(sets), 5), layout="constrained")
    panels = figure.subplots(1, len(sets), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (caption, points) in zip(panels, sets.items(), strict=True):
        axes.scatter(points[:NUM_POINTS, 0], points[:NUM_POINTS, 1], s=2, linewidths=0)
        axes.set(title=caption, aspect="equal", xlabel="coordinate 0", ylabel="coordinate 1")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")


def picture_of(x: Tensor, columns: int, caption: str = "") -> Image.Image:
    """A model's samples (N, *shape) as a sheet of images or a scatter plot of points."""
    return sheet(to_uint8(x), columns) if x.ndim == 4 else scatter({caption: x.numpy()})
