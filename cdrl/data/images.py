"""From an image file to pixels of one shape."""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cdrl.errors import DataError

__all__ = ["SUFFIXES", "decode", "pixels"]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
GRAY_MODES = frozenset({"1", "L", "LA"})
COLOUR_MODES = frozenset({"P", "RGB", "RGBA", "CMYK", "YCbCr"})


def decode(file: Path | bytes, where: str) -> Image.Image:
    """Read an image from a file or from the bytes of one, upright.

    Raises:
        DataError: naming `where`, if it is no readable image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                image.load()
                return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # PIL's many decoders raise anything on damaged files: struct.error, IndexError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "the format is not known"
        raise DataError(f"{where}: unreadable image: {reason}; mend or remove it") from None


def pixels(
    image: Image.Image, where: str, *, size: int | None, crop: bool, grayscale: bool | None
) -> NDArray[np.uint8]:
    """Bring an image to uint8 (C, H, W).

    Args:
        where: names the image in errors.
        size: side of the square in pixels; None leaves the size alone.
        crop: scale the shorter side to `size` and cut the centre out; otherwise both sides are scaled to `size`.
        grayscale: True makes one channel, False three, None keeps what the image has.

    Raises:
        DataError: the image has no 8-bit channels.
    """
    if image.mode not in GRAY_MODES | COLOUR_MODES:
        raise DataError(f"{where}: expected 8-bit channels, got mode {image.mode!r}; convert the image")
    one_channel = image.mode in GRAY_MODES if grayscale is None else grayscale
    image = image.convert("L" if one_channel else "RGB")
    if size is not None and crop:
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    elif size is not None:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    rows = np.asarray(image, np.uint8)
    return rows[None] if one_channel else rows.transpose(2, 0, 1)
