r"""f and its input gradient as pure functions of prepared weights.

The net is piecewise linear in y, so the gradient is the same walk backwards: where the forward pass leaves an
activation, the backward pass takes its slope. Nothing here asks for a parameter's gradient, and nothing is data
dependent, so `gradient` compiles as a whole and captures into a CUDA graph.
"""

import torch
from torch import Tensor
from torch.nn import functional

from cdrl.method.fast.weights import BlockWeights, EnergyWeights
from cdrl.method.nets.energy import SLOPE, activation

__all__ = ["gradient", "value"]


def value(y: Tensor, weights: EnergyWeights, patch: int) -> Tensor:
    """f (n B,) of n batches one after the other, (n B, ...); differentiable in y and in the weights."""
    times = len(y) // len(weights.stages[0][0].shift)
    h = _layer(_unshuffle(y, patch), weights.stem, weights.stem_bias)
    for number, stage in enumerate(weights.stages):
        h = _pool(h, weights.stages[number - 1][-1]) if number else h
        for block in stage:
            shift = block.shift.repeat(times, 1)
            u = activation(_layer(activation(h), block.conv1) + _space(shift, h))
            h = _layer(u, block.conv2, block.bias2, block.pools) + _shortcut(h, block)
    features = functional.relu(h).to(weights.top.dtype)
    features = features if features.ndim == 2 else features.sum(dim=(2, 3))
    top = weights.top if len(weights.top) == 1 else weights.top.repeat(times, 1)
    return (features * top).sum(dim=1)


def gradient(y: Tensor, weights: EnergyWeights, patch: int) -> Tensor:
    """grad_y f, like y (B, ...), by hand; call it without autograd. The weights' precision is that of the walk."""
    kept: list[tuple[Tensor, Tensor]] = []
    h = _layer(_unshuffle(y, patch), weights.stem, weights.stem_bias)
    for number, stage in enumerate(weights.stages):
        h = _pool(h, weights.stages[number - 1][-1]) if number else h
        for block in stage:
            a = activation(h)
            u = functional.leaky_relu_(_layer(a, block.conv1).add_(_space(block.shift, h)), SLOPE)
            h = _layer(u, block.conv2, block.bias2, block.pools).add_(_shortcut(h, block))
            kept.append((a, u))
    g = torch.where(h > 0, _space(weights.top.to(h.dtype), h), h - h)  # h - h: zero, but NaN where h is
    for number, stage in reversed(list(enumerate(weights.stages))):
        for block in reversed(stage):
            a, u = kept.pop()
            inner = _slope(_transposed(g, block.conv2, block.pools), u)
            inner = _slope(_transposed(inner, block.conv1), a)
            g = inner.add_(_shortcut_transposed(g, block, u))
        g = _pool_transposed(g, weights.stages[number - 1][-1], kept[-1][1]) if number else g
    return _shuffle(_transposed(g, weights.stem), patch)


def _layer(x: Tensor, weight: Tensor, bias: Tensor | None = None, pools: bool = False) -> Tensor:
    """A linear map or a padded 3x3 convolution, by the weight's shape; `pools`: then 2x2 average pooling.

    Averages of neighbours commute with a convolution: taken before it, at all places, they leave it a quarter of the
    places to compute.
    """
    if weight.ndim == 2:
        return functional.linear(x, weight, bias)
    if pools:
        return functional.conv2d(functional.avg_pool2d(x, 2, 1, padding=1), weight, bias, stride=2)
    return functional.conv2d(x, weight, bias, padding=1)


def _transposed(g: Tensor, weight: Tensor, pools: bool = False) -> Tensor:
    """The transpose of `_layer`."""
    if weight.ndim == 2:
        return g @ weight
    if pools:
        return functional.avg_pool2d(functional.conv_transpose2d(g, weight, stride=2), 2, 1)
    return functional.conv_transpose2d(g, weight, padding=1)


def _shortcut(h: Tensor, block: BlockWeights) -> Tensor:
    if block.shortcut is not None:
        return _layer(h, block.shortcut, None, block.pools)
    return functional.avg_pool2d(h, 2) if block.pools else h


def _shortcut_transposed(g: Tensor, block: BlockWeights, like: Tensor) -> Tensor:
    if block.shortcut is not None:
        return _transposed(g, block.shortcut, block.pools)
    return _spread(g, like) if block.pools else g


def _pool(h: Tensor, before: BlockWeights) -> Tensor:
    return h if h.ndim == 2 or before.pools else functional.avg_pool2d(h, 2)


def _pool_transposed(g: Tensor, before: BlockWeights, like: Tensor) -> Tensor:
    return g if g.ndim == 2 or before.pools else _spread(g, like)


def _spread(g: Tensor, like: Tensor) -> Tensor:
    """The transpose of 2x2 average pooling; `like` (B, C, H, W) has the shape of the result."""
    return torch.ops.aten.avg_pool2d_backward(g, like, [2, 2], [2, 2], [0, 0], False, True, None)


def _slope(g: Tensor, activated: Tensor) -> Tensor:
    """g times the slope of the leaky ReLU whose result is `activated`."""
    return torch.ops.aten.leaky_relu_backward(g, activated, SLOPE, True)


def _space(rows: Tensor, like: Tensor) -> Tensor:
    return rows if like.ndim == 2 else rows[:, :, None, None]


def _unshuffle(y: Tensor, patch: int) -> Tensor:
    return functional.pixel_unshuffle(y, patch) if patch > 1 else y


def _shuffle(g: Tensor, patch: int) -> Tensor:
    return functional.pixel_shuffle(g, patch) if patch > 1 else g
