"""What people would rather look at: a sheet of samples, and K beside K = 0 beside real images."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cdrl import pictures as pixels
from cdrl.data import Dataset
from cdrl.sheets import labelled

__all__ = ["captioned", "neighbours", "pictures", "sheet"]

COLUMNS = 16
PANEL_COLUMNS = 8  # of one panel among several
ROWS = 10  # without labels
MAX_CLASSES = 40
Images = Callable[[NDArray], NDArray]
GRAY = (64, 64, 64)  # as `cdrl.pictures.sheet` draws its lines


def pictures(shown: dict[str, NDArray], labels: NDArray[np.int64] | None, train: Dataset) -> dict[str, Image.Image]:
    """`samples`: a sheet of the first set, one row per class; `comparison`: every set and real images, with captions.

    Args:
        shown: caption -> images (n, *shape) as the dataset stores them.
        labels: (n,) of each set; None if they have none.
    """
    caption, first = next(iter(shown.items()))
    if len(train.manifest.shape) == 1:
        real = train.images(np.arange(min(pixels.NUM_POINTS, len(train))))
        return {"samples": pixels.scatter({caption: first}), "comparison": pixels.scatter({**shown, "real": real})}
    real_labels = None if labels is None else train.labels(np.arange(len(train)))
    panels = {name: _sheet(drawn.__getitem__, len(drawn), labels, PANEL_COLUMNS) for name, drawn in shown.items()}
    panels["real"] = _sheet(train.images, len(train), real_labels, PANEL_COLUMNS)
    samples = _sheet(first.__getitem__, len(first), labels, COLUMNS)
    return {"samples": samples, "comparison": captioned(panels)}


def neighbours(generated: NDArray, real: NDArray) -> Image.Image:
    """Generated images above the real ones that they lie nearest to, uint8 (n, C, H, W) each."""
    both = torch.from_numpy(np.stack([generated, real]))
    return labelled(both, ["generated", "nearest real"], title="the samples that lie nearest to training images")


def sheet(images: NDArray) -> Image.Image:
    """The first images as they come, uint8 (n, C, H, W)."""
    return _sheet(images.__getitem__, len(images), None, COLUMNS)


def _sheet(images: Images, n: int, labels: NDArray[np.int64] | None, columns: int) -> Image.Image:
    """The first images, or with labels a row of each class; places without an image stay black."""
    if labels is None:
        return pixels.sheet(torch.from_numpy(images(np.arange(min(n, ROWS * columns)))), columns)
    rows = pixels.class_rows(images, labels, np.unique(labels)[:MAX_CLASSES].tolist(), columns)
    return pixels.sheet(rows.flatten(0, 1), columns)


def captioned(panels: dict[str, Image.Image]) -> Image.Image:
    """Panels side by side, each below its caption."""
    font, gap, line = ImageFont.load_default(18), 16, 36
    width = sum(panel.width + gap for panel in panels.values()) + gap
    height = max(panel.height for panel in panels.values())
    picture = Image.new("RGB", (width, height + line + gap), GRAY)
    draw, left = ImageDraw.Draw(picture), gap
    for caption, panel in panels.items():
        picture.paste(panel, (left, line))
        draw.text((left + panel.width / 2, line / 2), caption, "white", font, anchor="mm")
        left += panel.width + gap
    return picture
