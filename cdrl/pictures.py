"""Pixels and pictures: the one place where [-1, 1] meets 8-bit, and where images become a sheet."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

__all__ = ["from_uint8", "png_bytes", "sheet", "to_uint8"]


def from_uint8(images: Tensor) -> Tensor:
    """8-bit pixels to the model's range: x = images/127.5 - 1, float32, any shape (spec section 1)."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """The model's range to 8-bit pixels, rounded and clamped: inverse of `from_uint8`. Any shape."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def sheet(images: Tensor, columns: int, *, min_side: int = 48, padding: int = 1) -> Image.Image:
    """Lay uint8 images (N, C, H, W), C = 1 or 3, out row by row; small ones are enlarged by whole factors."""
    factor = max(1, -(-min_side // images.shape[-1]))
    enlarged = images.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
    grid = make_grid(enlarged, nrow=columns, padding=padding * factor // 2 + 1, pad_value=64)
    return Image.fromarray(np.ascontiguousarray(grid.permute(1, 2, 0).numpy()))


def png_bytes(image: Image.Image) -> bytes:
    """The picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
