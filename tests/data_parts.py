"""Small sources of images, and all that a dataset holds."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from cdrl.data import Dataset

__all__ = ["COLOURS", "class_folders", "everything", "png"]

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def class_folders(root: Path, count: int = 6, side: int = 8) -> Path:
    """`count` PNG images per colour; pixel (0, 0) holds the image's number in every channel."""
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (side, side), colour)
            image.putpixel((0, 0), (number, number, number))
            image.save(root / name / f"{number}.png")
    return root


def png(side: int = 8, colour: tuple[int, ...] = (10, 20, 30)) -> bytes:
    """A file of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def everything(uri: Path, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a split, in order."""
    dataset = Dataset.open(str(uri), split)
    rows = np.arange(len(dataset))
    return dataset.images(rows), dataset.labels(rows)
