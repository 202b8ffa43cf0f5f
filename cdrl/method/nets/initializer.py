r"""The initializer g(x_t; logsnr, label): the mean of y = scale * x_s given x_t, where a chain starts.

A residual U-Net with scale-shift group normalisation and attention at the coarse resolutions; its output is
x_t + net(x_t), and the last layer of every branch starts at zero, so that it begins near the identity (spec 9.2).
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdrl.errors import ConfigError
from cdrl.method.nets.embedding import check_width, one_hot_label, sinusoid
from cdrl.method.rng import Rng

__all__ = ["Initializer", "zero_weight"]


Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def zero_weight(layer: Layer) -> Layer:
    """Set a layer's weight to zero and keep its bias."""
    nn.init.zeros_(layer.weight)
    return layer


def dropout(x: Tensor, probability: float, rng: Rng | None) -> Tensor:
    """Dropout whose mask is part of the keyed randomness; without `rng` it is the identity."""
    if rng is None or probability == 0:
        return x
    return x * ((rng.uniform(x) >= probability) / (1 - probability))


class ResBlock(nn.Module):
    """Norm, resample, convolve; norm, scale and shift by the level, convolve; resampled skip."""

    def __init__(
        self, width_in: int, width_out: int, embedding: int, groups: int, dropout: float, resample: str | None = None
    ) -> None:
        super().__init__()
        self.dropout, self.resample = dropout, resample
        self.norm1 = nn.GroupNorm(groups, width_in, eps=1e-6)
        self.norm2 = nn.GroupNorm(groups, width_out, eps=1e-6)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.conv2 = zero_weight(nn.Conv2d(width_out, width_out, 3, padding=1))
        self.level = nn.Linear(embedding, 2 * width_out)
        self.skip = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor, embedding: Tensor, rng: Rng | None) -> Tensor:
        h = functional.silu(self.norm1(x))
        if self.resample == "down":
            h, x = functional.avg_pool2d(h, 2), functional.avg_pool2d(x, 2)
        elif self.resample == "up":
            h, x = functional.interpolate(h, scale_factor=2), functional.interpolate(x, scale_factor=2)
        h = self.conv1(h)
        scale, shift = self.level(embedding)[:, :, None, None].chunk(2, dim=1)
        h = functional.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        return self.conv2(dropout(h, self.dropout, rng)) + self.skip(x)


class Attention(nn.Module):
    """Single-head self-attention over the pixels of a feature map, residual."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = zero_weight(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, width, rows, columns = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, 1, width, rows * columns).transpose(-1, -2)
        q, k, v = qkv.contiguous().unbind(1)  # each (B, 1, H*W, C); fused attention wants whole rows
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(-1, -2).reshape(batch, width, rows, columns))


class Stack(nn.ModuleList):
    """Blocks of one resolution between two exchanges with the skip connections: ResBlock, then perhaps Attention."""

    @property
    def resamples(self) -> bool:
        """Whether it changes the resolution, and then takes no skip."""
        return isinstance(self[0], ResBlock) and self[0].resample is not None

    def forward(self, x: Tensor, embedding: Tensor, rng: Rng | None) -> Tensor:
        for block in self:
            x = block(x, embedding, rng) if isinstance(block, ResBlock) else block(x)
        return x


class Initializer(nn.Module):
    """g: (B, C, H, W) -> (B, C, H, W).

    Args:
        in_channels: channels of an image.
        image_size: side of the (square) image in pixels; decides where attention stands.
        width: channels of the first resolution.
        multipliers: channels per resolution in units of width; each next resolution halves the side.
        num_blocks: residual blocks per resolution on the way down (one more on the way up).
        attention_resolutions: sides of feature maps that get attention; if any, the middle has it too.
        groups: groups of the group normalisation.
        dropout: probability, active only when an `rng` is passed to `forward`.
        patch: pixel-unshuffle factor before the first convolution.
        num_classes: C; labels are 0 (none) ... C. 0 = unconditional.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        width: int,
        multipliers: Sequence[int],
        num_blocks: int,
        *,
        attention_resolutions: Sequence[int] = (16, 8),
        groups: int = 32,
        dropout: float = 0.1,
        patch: int = 1,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        side, coarsest = image_size // patch, patch * 2 ** (len(multipliers) - 1)
        if image_size % coarsest:
            raise ConfigError(f"initializer: an image side of {image_size} is not a multiple of {coarsest}")
        check_width(width, "initializer.width")
        if width % groups:
            raise ConfigError(f"initializer.groups: {groups} groups do not divide {width} channels")
        self.width, self.patch = width, patch
        embedding = 4 * width

        def stack(width_in: int, width_out: int, side: int) -> Stack:
            res = ResBlock(width_in, width_out, embedding, groups, dropout)
            attends = side in attention_resolutions
            return Stack([res, Attention(width_out, groups)] if attends else [res])

        def resample(channels: int, direction: str) -> Stack:
            return Stack([ResBlock(channels, channels, embedding, groups, dropout, direction)])

        self.stem = nn.Conv2d(in_channels * patch**2, width, 3, padding=1)
        self.level1, self.level2 = nn.Linear(width, embedding), nn.Linear(embedding, embedding)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, channels = [width], width
        for number, multiplier in enumerate(multipliers):
            if number:
                self.down.append(resample(channels, "down"))
                skips.append(channels)
                side //= 2
            for _ in range(num_blocks):
                self.down.append(stack(channels, width * multiplier, side))
                channels = width * multiplier
                skips.append(channels)
        coarse = channels
        for number, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(num_blocks + 1):
                self.up.append(stack(channels + skips.pop(), width * multiplier, side))
                channels = width * multiplier
            if number:
                self.up.append(resample(channels, "up"))
                side *= 2
        middle = [ResBlock(coarse, coarse, embedding, groups, dropout) for _ in range(2)]
        attention = [Attention(coarse, groups)] if attention_resolutions else []
        self.middle = Stack([middle[0], *attention, middle[1]])
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.head = zero_weight(nn.Conv2d(channels, in_channels * patch**2, 3, padding=1))
        self.label = nn.Linear(num_classes + 1, embedding) if num_classes else None

    def forward(self, x_t: Tensor, logsnr: Tensor, label: Tensor | None = None, rng: Rng | None = None) -> Tensor:
        """The mean of y given x_t.

        Args:
            x_t: (B, C, H, W).
            logsnr: (B,) logSNR of the noisy side t.
            label: (B,) integers 0 ... num_classes, 0 = none; None = all none.
            rng: randomness of the dropout masks while training; None = no dropout.
        """
        embedding = self.level2(functional.silu(self.level1(sinusoid(logsnr, self.width))))
        embedding = functional.silu(embedding + one_hot_label(self.label, label, x_t))
        h = self.stem(functional.pixel_unshuffle(x_t, self.patch) if self.patch > 1 else x_t)
        skips = [h]
        for stack in self.down:
            h = stack(h, embedding, rng)
            skips.append(h)
        h = self.middle(h, embedding, rng)
        for stack in self.up:
            assert isinstance(stack, Stack)
            if not stack.resamples:
                h = torch.cat([h, skips.pop()], dim=1)
            h = stack(h, embedding, rng)
        h = self.head(functional.silu(self.norm(h)))
        return x_t + (functional.pixel_shuffle(h, self.patch) if self.patch > 1 else h)
