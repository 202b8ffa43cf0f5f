r"""The energy net's parameters, brought into the form in which they are used (PERFORMANCE: prepare once, use K times).

Whatever does not depend on y is computed here, and differentiably, so that the losses reach the parameters through it:
spectral normalisation, the gain of a block folded into its second convolution, average pooling folded into the
convolution before it, and all levels' projections as one linear map. For a block,

    u   = act(conv1(act(h)) + bias1 + act(level(e)))            becomes   act(conv1(act(h)) + shift)
    out = pool(gain * conv2(u) + shortcut(h))                   becomes   conv2'(u) + shortcut'(h)
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdrl.method.fast.tensors import map_tensors
from cdrl.method.nets.embedding import one_hot_label, sinusoid
from cdrl.method.nets.energy import Block, EnergyNet, activation

__all__ = ["BlockWeights", "EnergyWeights", "Folded", "fold"]


class Affine(NamedTuple):
    """A linear map with its weight normalised."""

    weight: Tensor  # (out, in)
    bias: Tensor  # (out,)

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.weight.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class BlockWeights(NamedTuple):
    """One block; `shortcut` is None where it is the identity."""

    conv1: Tensor  # (out, in[, 3, 3])
    shift: Tensor  # (B, out): conv1's bias and the level's projection
    conv2: Tensor  # (out, out[, 3, 3]), or (out, out, 4, 4) with the pooling
    bias2: Tensor  # (out,), with the shortcut's
    shortcut: Tensor | None


class EnergyWeights(NamedTuple):
    """All that f needs to know beside y."""

    stem: Tensor
    stem_bias: Tensor  # (width,)
    stages: tuple[tuple[BlockWeights, ...], ...]
    top: Tensor  # (B, C), or (1, C) for points: the inner product of the head


@dataclass(frozen=True)
class Folded:
    """The part of the weights that is common to all levels and labels.

    Attributes:
        stages: blocks whose `shift` is conv1's bias (out,), without the level.
        level1, level2, label: the maps of the embedding.
        shifts: one map from the embedding to the levels' part of all blocks' shifts.
    """

    net: EnergyNet
    stem: Tensor
    stem_bias: Tensor
    stages: tuple[tuple[BlockWeights, ...], ...]
    level1: Affine
    level2: Affine
    label: Affine | None
    shifts: Affine

    def at(self, logsnr: Tensor, label: Tensor | None) -> EnergyWeights:
        """The weights at the levels (B,) and labels (B,) of a batch."""
        net = self.net
        embedding = self.level2(activation(self.level1(sinusoid(logsnr, net.width))))
        embedding = activation(embedding + one_hot_label(self.label, label, logsnr))
        blocks = [block for stage in self.stages for block in stage]
        projected = activation(self.shifts(embedding))
        bias1 = torch.cat([block.shift for block in blocks])
        shifts = iter((projected + bias1).split([len(block.shift) for block in blocks], dim=1))
        stages = tuple(tuple(block._replace(shift=next(shifts)) for block in stage) for stage in self.stages)
        top = net.head.weight if net.dense else net.head(embedding)
        return EnergyWeights(self.stem, self.stem_bias, stages, top)


def fold(net: EnergyNet, *, fold_pooling: bool, channels_last: bool) -> Folded:
    """Normalise and fold every weight once, with graph where parameters ask for gradients.

    Args:
        fold_pooling: average pooling as part of the convolution before it.
        channels_last: memory format of the convolutions' weights.
    """
    stages: list[tuple[BlockWeights, ...]] = []
    levels: list[Affine] = []
    for number, stage in enumerate(net.stages):
        blocks = [block for block in stage.children() if isinstance(block, Block)]
        ends = [False] * len(blocks)
        ends[-1] = fold_pooling and not net.dense and number < len(net.stages) - 1
        stages.append(tuple(_fold_block(block, pool) for block, pool in zip(blocks, ends, strict=True)))
        levels += [_affine(block.level) for block in blocks]
    folded = (*_affine(net.stem), tuple(stages))
    if channels_last:
        folded = map_tensors(folded, _to_channels_last)
    shifts = Affine(torch.cat([level.weight for level in levels]), torch.cat([level.bias for level in levels]))
    label = None if net.label is None else _affine(net.label)
    return Folded(net, *folded, _affine(net.level1), _affine(net.level2), label, shifts)


def _affine(layer: nn.Module) -> Affine:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    return Affine(weight, bias)


def _fold_block(block: Block, pool: bool) -> BlockWeights:
    conv2 = block.conv2.weight
    conv2 = conv2 * block.gain.view(-1, *[1] * (conv2.ndim - 1))
    bias2 = block.conv2.bias * block.gain
    shortcut = None
    if not isinstance(block.shortcut, nn.Identity):
        shortcut, bias2 = block.shortcut.weight, bias2 + block.shortcut.bias
    if pool:
        conv2 = _pooled(conv2)
        shortcut = None if shortcut is None else _pooled(shortcut)
    return BlockWeights(block.conv1.weight, block.conv1.bias, conv2, bias2, shortcut)


def _to_channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight


def _pooled(weight: Tensor) -> Tensor:
    """The 4x4 kernel of stride 2 that is a 3x3 convolution followed by 2x2 average pooling; exact at the borders."""
    shifted = [functional.pad(weight, (a, 1 - a, b, 1 - b)) for a in (0, 1) for b in (0, 1)]
    return torch.stack(shifted).mean(dim=0)
