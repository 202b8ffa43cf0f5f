"""What a dataset looks like: a contact sheet with one row per class, or a scatter plot of points."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from cdrl import pictures
from cdrl.data.dataset import Dataset

__all__ = ["contact_sheet"]

COLUMNS = 16
MAX_CLASSES = 40
GRAY = (64, 64, 64)


def contact_sheet(dataset: Dataset) -> Image.Image:
    """A picture of the split: the first 16 images of each class (of 40 classes at most) beside the class's name.

    Without labels there are 8 rows of 16 images; points become a scatter plot of the first 10,000.
    """
    if len(dataset.manifest.shape) == 1:
        return pictures.scatter({dataset.manifest.source: dataset.images(np.arange(len(dataset)))})
    labels = dataset.labels(np.arange(len(dataset)))
    if not labels.any():
        return pictures.sheet(torch.from_numpy(dataset.images(np.arange(min(8 * COLUMNS, len(dataset))))), COLUMNS)
    names = dataset.manifest.class_names[:MAX_CLASSES]
    rows = torch.zeros(len(names), COLUMNS, *dataset.manifest.shape, dtype=torch.uint8)
    for row in range(len(names)):
        chosen = np.flatnonzero(labels == row + 1)[:COLUMNS]
        rows[row, : len(chosen)] = torch.from_numpy(dataset.images(chosen))
    return _named(pictures.sheet(rows.flatten(0, 1), COLUMNS), names)


def _named(sheet: Image.Image, names: tuple[str, ...]) -> Image.Image:
    font = ImageFont.load_default(16)
    margin = 16 + int(max(font.getlength(name) for name in names))
    picture = Image.new("RGB", (margin + sheet.width, sheet.height), GRAY)
    picture.paste(sheet, (margin, 0))
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(names):
        draw.text((8, (row + 0.5) * sheet.height / len(names)), name, "white", font, anchor="lm")
    return picture
