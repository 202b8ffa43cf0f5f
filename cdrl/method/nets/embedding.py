"""Noise level and class label as vectors. Always float32 or wider: sin(1000 u) breaks in half precision (trap 11)."""

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from cdrl.errors import ConfigError

__all__ = ["LinearMap", "check_width", "one_hot_label", "sinusoid"]


def check_width(width: int, setting: str) -> None:
    """Refuse a width that has no sinusoid.

    Raises:
        ConfigError: naming the setting.
    """
    if width < 4 or width % 2:
        raise ConfigError(f"{setting}: expected an even number from 4 on, got {width}")


def sinusoid(logsnr: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of 1000 u at geometric frequencies, u = (2/pi) atan(exp(-logsnr/2)) (spec section 9.1).

    Args:
        logsnr: (B,).
        width: even, at least 4.

    Returns:
        (B, width).
    """
    u = torch.atan(torch.exp(-logsnr.clamp(-20, 20) / 2)) * (2 / math.pi)
    exponent = torch.arange(width // 2, dtype=u.dtype, device=u.device) / (width // 2 - 1)
    phase = 1000 * u[:, None] * 10_000**-exponent
    return torch.cat([phase.sin(), phase.cos()], dim=1)


class LinearMap(Protocol):
    """`nn.Linear`, or its prepared weights."""

    @property
    def in_features(self) -> int:
        """Width of the input."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in) -> (B, out)."""


def one_hot_label(layer: LinearMap | None, label: Tensor | None, like: Tensor) -> Tensor | float:
    """The label's part of an embedding: `layer` of the one-hot of 0 (none) ... C; 0.0 for an unconditional net.

    Args:
        layer: Linear(C+1 -> width), or None for an unconditional net.
        label: (B,) integers 0 ... C, or None = all null.
        like: (B, ...), for batch size, dtype and device.

    Raises:
        ConfigError: a label for an unconditional net.
    """
    if layer is None:
        if label is not None and bool(label.any()):
            raise ConfigError("label: the model is unconditional; leave the label out")
        return 0.0
    if label is None:
        label = torch.zeros(len(like), dtype=torch.long, device=like.device)
    return layer(functional.one_hot(label, layer.in_features).to(like.dtype))
