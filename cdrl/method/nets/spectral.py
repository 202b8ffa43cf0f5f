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

__all__ = ["Layer", "power_iterate", "spectral", "spectral_norm"]

NUM_WARMUP_ITERATIONS = 20

Layer = TypeVar("Layer", bound=nn.Module)


def spectral_norm(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """sigma = u . (W v), a scalar: the spectral norm of W where u (rows,) and v (columns,) are its singular vectors."""
    return torch.dot(u, weight.flatten(1).mv(v))


class SpectralNorm(nn.Module):
    """The parametrization W -> W / sigma(W), with left and right singular vectors `u` (rows,) and `v` (columns,)."""

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        self.register_buffer("u", functional.normalize(torch.randn_like(matrix[:, 0]), dim=0))
        self.register_buffer("v", functional.normalize(torch.randn_like(matrix[0]), dim=0))
        _iterate([matrix], [self.u], [self.v], NUM_WARMUP_ITERATIONS)

    def forward(self, weight: Tensor) -> Tensor:
        """The normalised weight; differentiable in the weight, with u and v constant."""
        return weight / spectral_norm(weight, self.u, self.v)


def spectral(layer: Layer) -> Layer:
    """Give a Linear or convolution a spectrally normalised weight, warmed up."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    parametrize.register_parametrization(layer, "weight", SpectralNorm(weight))
    return layer


def power_iterate(net: nn.Module, num_iterations: int = 1) -> int:
    """Run power iterations on every normalised layer; returns how many layers there are."""
    matrices, us, vs = [], [], []
    for module in net.modules():
        if isinstance(module, parametrize.ParametrizationList):
            norm = module[0]
            assert isinstance(norm, SpectralNorm)
            matrices.append(module.original.detach().flatten(1))
            us.append(norm.u)
            vs.append(norm.v)
    if matrices:
        _iterate(matrices, us, vs, num_iterations)
    return len(matrices)


@torch.no_grad()
def _iterate(matrices: list[Tensor], us: list[Tensor], vs: list[Tensor], num_iterations: int) -> None:
    """Move each v, then each u, towards the leading singular vectors; all layers together, to launch few kernels."""
    for _ in range(num_iterations):
        _move(vs, [matrix.t() for matrix in matrices], us)
        _move(us, matrices, vs)


def _move(vectors: list[Tensor], matrices: list[Tensor], others: list[Tensor]) -> None:
    for vector, matrix, other in zip(vectors, matrices, others, strict=True):
        torch.mv(matrix, other, out=vector)
    lengths = torch._foreach_norm(vectors)
    torch._foreach_clamp_min_(lengths, 1e-12)  # a zero matrix stays zero
    torch._foreach_div_(vectors, lengths)
