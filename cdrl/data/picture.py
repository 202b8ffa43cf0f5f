"""What a dataset looks like: a contact sheet with one row per class, or a scatter plot of points."""

import numpy as np
import torch
from PIL import Image

from cdrl import pictures
from cdrl.data.dataset import Dataset
from cdrl.sheets import labelled

__all__ = ["contact_sheet"]

COLUMNS = 16
MAX_CLASSES = 40


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
    rows = pictures.class_rows(dataset.images, labels, range(1, len(names) + 1), COLUMNS)
    return labelled(rows, names)
