r"""Spectral normalisation with an explicit clock: W / sigma, sigma = u . (W v), u and v moved only when asked.

torch's own `spectral_norm` iterates inside `forward`, so the weights of a chain depend on how often it was called.
Here a forward never moves u and v: a training step calls `power_iterate` once, before anything else, and the positive
pass, the chain and the negative pass see the same weights (spec section 12, traps 6-8).
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

__all__ = ["Layer", "power_iterate", "spectral"]

NUM_WARMUP_ITERATIONS = 20

Layer = TypeVar("Layer", bound=nn.Module)


class SpectralNorm(nn.Module):
    """The parametrization W -> W / sigma(W), with left and right singular vectors `u` (rows,) and `v` (columns,)."""

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        self.register_buffer("u", functional.normalize(torch.randn_like(matrix[:, 0]), dim=0))
        self.register_buffer("v", functional.normalize(torch.randn_like(matrix[0]), dim=0))
        self.iterate(weight, NUM_WARMUP_ITERATIONS)

    def forward(self, weight: Tensor) -> Tensor:
        """The normalised weight; differentiable in the weight, with u and v constant."""
        sigma = torch.dot(self.u, weight.flatten(1).mv(self.v))
        return weight / sigma

    @torch.no_grad()
    def iterate(self, weight: Tensor, num_iterations: int) -> None:
        """Move v, then u, towards the leading singular vectors."""
        matrix = weight.flatten(1)
        for _ in range(num_iterations):
            self.v.copy_(functional.normalize(matrix.t().mv(self.u), dim=0))
            self.u.copy_(functional.normalize(matrix.mv(self.v), dim=0))


def spectral(layer: Layer) -> Layer:
    """Give a Linear or convolution a spectrally normalised weight, warmed up."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    parametrize.register_parametrization(layer, "weight", SpectralNorm(weight))
    return layer


def power_iterate(net: nn.Module, num_iterations: int = 1) -> int:
    """Run power iterations on every normalised layer; returns how many layers there are."""
    weights = [module for module in net.modules() if isinstance(module, parametrize.ParametrizationList)]
    for weight in weights:
        norm = weight[0]
        assert isinstance(norm, SpectralNorm)
        norm.iterate(weight.original, num_iterations)
    return len(weights)
