"""The recipe of a dataset: the options of `cdrl data prepare`, and what they do to one row."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from cdrl.data import images
from cdrl.data.rows import Example
from cdrl.errors import DataError

__all__ = ["Options", "row_of"]

PATHS = ("path", "holdout_path")


class Options(BaseModel):
    """How a source becomes a dataset. Together with the source's name this is the dataset's recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = Field(None, description="file, folder or glob of the source")
    holdout_path: str | None = Field(None, description="the same for the hold-out split")
    holdout: float | None = Field(None, ge=0, description="rows held out: a fraction below 1, or a number of rows")
    size: int | None = Field(None, ge=1, description="side of the square images, in pixels; default: as they are")
    crop: bool = Field(True, description="scale the shorter side and cut the centre out; otherwise squeeze both sides")
    grayscale: bool | None = Field(None, description="true: one channel; false: three; default: as the images are")
    class_names: tuple[str, ...] | None = Field(None, description="classes in order; default: what the source holds")
    limit: int | None = Field(None, ge=1, description="read at most this many rows of each path")
    shard_rows: int | None = Field(None, ge=1, description="rows of one shard; default: what fits into 64 MiB")
    seed: int = Field(0, ge=0, description="decides hold-out rows and the order inside the shards")

    def without_paths(self) -> "Options":
        """What decides the content: the same rows from elsewhere are the same dataset."""
        return self.model_copy(update=dict.fromkeys(PATHS))


def row_of(example: Example, options: Options) -> NDArray:
    """The row as it is stored: uint8 pixels (C, H, W) or a float32 point (dims,).

    Raises:
        DataError: no readable image.
    """
    where, content = example
    if isinstance(content, np.ndarray):
        return content
    if isinstance(content, Path | bytes):
        content = images.decode(content, where)
    if not isinstance(content, Image.Image):
        raise DataError(f"{where}: expected the bytes of an image, got {type(content).__name__}")
    return images.pixels(content, where, size=options.size, crop=options.crop, grayscale=options.grayscale)
