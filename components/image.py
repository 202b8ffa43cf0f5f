"""The image that every step runs in."""

import os
import re

__all__ = ["IMAGE", "ImageError", "checked_image"]

IMAGE = os.environ.get("CDRL_IMAGE", "cdrl:0.1.0")
"""Read when a pipeline is compiled: `CDRL_IMAGE=registry.example/team/cdrl@sha256:... python -m pipeline compile`."""

DIGEST = re.compile(r"[\w./:-]+@sha256:[0-9a-f]{64}")
TAG = re.compile(r"[\w./-]+(:\d+/[\w./-]+)?:(?!latest$)[\w.-]+")


class ImageError(ValueError):
    """An image that may be another one tomorrow."""


def checked_image(image: str, *, needs_digest: bool = False) -> None:
    """Refuse an image that is not pinned.

    Raises:
        ImageError: neither a digest nor, where that is enough, a tag other than latest.
    """
    if not (DIGEST.fullmatch(image) or (not needs_digest and TAG.fullmatch(image))):
        expected = "NAME@sha256:..." if needs_digest else "NAME@sha256:... or NAME:TAG, not latest"
        raise ImageError(f"CDRL_IMAGE={image}: expected {expected}; a digest names the same image for ever")
