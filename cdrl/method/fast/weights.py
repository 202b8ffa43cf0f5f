r"""The energy net's parameters, brought into the form in which they are used: prepared once, used K times.

Whatever does not depend on y is computed here, and differentiably, so that the losses reach the parameters through it:
spectral normalisation, the gain of a block folded into its second convolution, and all levels' projections as one
linear map. For a block,

    u   = act(conv1(act(h)) + bias1 + act(level(e)))            becomes   act(conv1(act(h)) + shift)
    out = gain * conv2(u) + shortcut(h)                         becomes   conv2'(u) + shortcut(h), one bias
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from cdrl.method.fast.tensors import map_tensors
from cdrl.method.nets.embedding import one_hot_label, sinusoid
from cdrl.method.nets.energy import Block, EnergyNet, activation
from cdrl.method.nets.spectral import spectral_norm

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
    conv2: Tensor  # (out, out[, 3, 3]), times the gain
    bias2: Tensor  # (out,), with the shortcut's
    shortcut: Tensor | None
    pools: bool  # whether the average pooling after this block is part of it


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
    bias = layer.bias
    assert isinstance(bias, Tensor)
    return Affine(_weight(layer), bias)


def _weight(layer: nn.Module) -> Tensor:
    """W / sigma, or W of a layer that is not normalised."""
    if not parametrize.is_parametrized(layer):
        weight: Any = layer.weight
    else:
        norm: Any = layer.parametrizations["weight"]  # type: ignore[index]
        weight = _Normalise.apply(norm.original, norm[0].u, norm[0].v)
    return cast(Tensor, weight)


class _Normalise(torch.autograd.Function):
    """W / sigma, sigma = u . (W v), with the gradient (G - <G, W/sigma> u v^T) / sigma in one go."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
        sigma = spectral_norm(weight, u, v)
        normalised = weight / sigma
        ctx.save_for_backward(normalised, u.clone(), v.clone(), sigma)  # u and v move before the next backward
        return normalised

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        normalised, u, v, sigma = ctx.saved_tensors
        along = torch.outer(u, v * (gradient * normalised).sum())
        return (gradient - along.view_as(gradient)) / sigma, None, None


def _fold_block(block: Block, pool: bool) -> BlockWeights:
    conv2 = _weight(block.conv2)
    conv2 = conv2 * block.gain.view(-1, *[1] * (conv2.ndim - 1))
    bias2 = block.conv2.bias * block.gain
    shortcut = None
    if not isinstance(block.shortcut, nn.Identity):
        shortcut, bias2 = _weight(block.shortcut), bias2 + block.shortcut.bias
    return BlockWeights(_weight(block.conv1), block.conv1.bias, conv2, bias2, shortcut, pool)


def _to_channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight
