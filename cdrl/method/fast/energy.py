r"""f of one batch over prepared weights: the chain walks on detached ones in its own precision, the losses on leaves.

Positives and negatives accumulate into the leaves; one backward pass then carries the sum through folding and spectral
normalisation to the parameters.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cdrl.method.fast.precision import Precision, fp32_kernels
from cdrl.method.fast.tensors import map_tensors, tensors_of
from cdrl.method.fast.weights import EnergyWeights

if TYPE_CHECKING:
    from cdrl.method.fast import Fast

__all__ = ["FastEnergy", "InputGradient", "Network"]

Network = Callable[[Tensor, EnergyWeights, int], Tensor]
"""`value` or `gradient` of `cdrl.method.fast.network`, compiled or not."""


@dataclass(frozen=True)
class InputGradient:
    """y (B, ...) -> grad_y f, like y: everything that a chain needs of f."""

    weights: EnergyWeights
    patch: int
    network: Network
    precision: Precision

    def __call__(self, y: Tensor) -> Tensor:
        with torch.no_grad(), fp32_kernels(self.precision):
            return self.network(y.to(self.weights.stem.dtype), self.weights, self.patch).to(y.dtype)


class FastEnergy:
    """The `BatchEnergy` of the fast formulation.

    Args:
        prepared: weights at the levels and labels of the batch, with graph where parameters ask for gradients.
        patch: pixel-unshuffle factor of the net.
        options: precision and kernels.
    """

    def __init__(self, prepared: EnergyWeights, patch: int, options: "Fast") -> None:
        self._prepared, self._patch, self._options = prepared, patch, options

    @cached_property
    def _leaves(self) -> EnergyWeights:
        return map_tensors(self._prepared, lambda w: w.detach().requires_grad_(w.requires_grad))

    def __call__(self, y: Tensor) -> Tensor:
        """f of one batch, or of several one after the other: (n B, ...) -> (n B,)."""
        with fp32_kernels(self._options.loss_precision):
            weights = self._options.cast(self._leaves, self._options.loss_precision)
            return self._options.value(y.to(weights.stem.dtype), weights, self._patch)

    def both(self, y_pos: Tensor, y_neg: Tensor) -> tuple[Tensor, Tensor]:
        """f of two batches in one pass."""
        f_pos, f_neg = self(torch.cat([y_pos, y_neg])).chunk(2)
        return f_pos, f_neg

    @cached_property
    def gradient(self) -> InputGradient:
        """grad_y f."""
        options = self._options
        weights = options.cast(map_tensors(self._prepared, Tensor.detach), options.chain_precision)
        return InputGradient(weights, self._patch, options.gradient, options.chain_precision)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar made of this f to the net's parameters; once."""
        scale = self._options.loss_scale
        with fp32_kernels(self._options.loss_precision):
            (loss * scale).backward()
            pairs = list(self._with_gradient())
            torch._foreach_div_([gradient for _, gradient in pairs], scale)
        with fp32_kernels("fp32"):
            torch.autograd.backward([weight for weight, _ in pairs], [gradient for _, gradient in pairs])

    def _with_gradient(self) -> Iterator[tuple[Tensor, Tensor]]:
        for weight, leaf in zip(tensors_of(self._prepared), tensors_of(self._leaves), strict=True):
            if leaf.grad is not None:
                yield weight, leaf.grad
