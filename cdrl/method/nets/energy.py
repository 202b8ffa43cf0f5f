r"""The energy net f(y; logsnr, label): log p(y) up to a constant and the factor step_size; higher = likelier.

A residual net without activations' normalisation: every convolution and linear map is spectrally normalised, each
block adds a projection of the level embedding and ends in a learned gain per channel, and the head is an inner product
of summed features with a projection of the level (spec section 9.1). The 2-D toy is the same net with linear maps in
place of convolutions, no pooling and a level-free head (section 10).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdrl.errors import ConfigError
from cdrl.method.nets.embedding import check_width, one_hot_label, sinusoid
from cdrl.method.nets.spectral import Layer, spectral

__all__ = ["EnergyNet"]


SLOPE = 0.2


def activation(x: Tensor) -> Tensor:
    """Leaky ReLU."""
    return functional.leaky_relu(x, SLOPE)


def over_space(vector: Tensor, x: Tensor) -> Tensor:
    """(..., C) to (..., C, 1, 1) where x has space."""
    return vector.reshape(*vector.shape, *[1] * (x.ndim - 2))


class Block(nn.Module):
    """Residual block: conv, add the level, conv, gain; 3x3 shortcut where the width changes."""

    def __init__(
        self, width_in: int, width_out: int, embedding: int, layer: Callable[[int, int], nn.Module], norm: Callable
    ) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width_out))
        self.conv1 = norm(layer(width_in, width_out))
        self.conv2 = norm(layer(width_out, width_out))
        self.level = norm(nn.Linear(embedding, width_out))
        self.shortcut = nn.Identity() if width_in == width_out else norm(layer(width_in, width_out))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(activation(x)) + over_space(activation(self.level(embedding)), x)
        h = self.conv2(activation(h)) * over_space(self.gain, x)
        return h + self.shortcut(x)


class EnergyNet(nn.Module):
    """f: (B, C, H, W) or (B, dims) -> (B,).

    Args:
        in_channels: channels of an image, or dims of a point.
        width: channels of the first stage; even, at least 4.
        multipliers: channels per stage in units of width; between stages 2x2 average pooling.
        num_blocks: residual blocks per stage.
        patch: pixel-unshuffle factor before the first convolution.
        embedding_width: width of the level embedding; default 4 x width.
        num_classes: C; labels are 0 (none) ... C. 0 = unconditional.
        dense: linear maps on points instead of convolutions on images.
        normalize: spectral normalisation; off only to compare with references.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        multipliers: Sequence[int],
        num_blocks: int,
        *,
        patch: int = 1,
        embedding_width: int | None = None,
        num_classes: int = 0,
        dense: bool = False,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if dense and patch != 1:
            raise ConfigError(f"energy.patch: points have no pixels to unshuffle, got {patch}")
        check_width(width, "energy.width")

        def norm(layer: Layer) -> Layer:
            return spectral(layer) if normalize else layer

        def layer(width_in: int, width_out: int) -> nn.Module:
            return nn.Linear(width_in, width_out) if dense else nn.Conv2d(width_in, width_out, 3, padding=1)

        self.width, self.patch, self.dense = width, patch, dense
        embedding = embedding_width or 4 * width
        widths = [width * multiplier for multiplier in multipliers]
        self.level1 = norm(nn.Linear(width, embedding))
        self.level2 = norm(nn.Linear(embedding, embedding))
        self.stem = norm(layer(in_channels * patch**2, width))
        self.stages = nn.ModuleList()
        before = width
        for stage in widths:
            blocks = [Block(before if i == 0 else stage, stage, embedding, layer, norm) for i in range(num_blocks)]
            self.stages.append(nn.ModuleList(blocks))
            before = stage
        self.head = nn.Linear(before, 1, bias=False) if dense else nn.Linear(embedding, before, bias=False)
        self.label = norm(nn.Linear(num_classes + 1, embedding)) if num_classes else None

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        """f of each sample.

        Args:
            y: (B, C, H, W) or (B, dims), in the scaled space of the level.
            logsnr: (B,) logSNR of the cleaner side s.
            label: (B,) integers 0 ... num_classes, 0 = none; None = all none.
        """
        embedding = self.level2(activation(self.level1(sinusoid(logsnr, self.width))))
        embedding = activation(embedding + one_hot_label(self.label, label, y))
        h = self.stem(functional.pixel_unshuffle(y, self.patch) if self.patch > 1 else y)
        for number, stage in enumerate(self.stages):
            if number and not self.dense:
                h = functional.avg_pool2d(h, 2)
            for block in stage.children():
                h = block(h, embedding)
        h = functional.relu(h)
        if self.dense:
            return self.head(h).squeeze(1)
        return (h.sum(dim=(2, 3)) * self.head(embedding)).sum(dim=1)
