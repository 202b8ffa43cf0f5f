r"""The kernel distance of two sets of features: KID, where Inception made them.

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),
    k(x, y) = (x.y/D + 1)^3

Unbiased for any number of rows, unlike the Fréchet distance; so it may come out a little below 0. All pairs of rows
take part, where torch-fidelity averages over random subsets.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["kernel_distances"]

BLOCK_ROWS = 1_000  # of the kernel matrix at a time: bounds the memory


def kernel_distances(
    generated: NDArray, reference: NDArray, counts: NDArray[np.int64], *, device: str = "cpu"
) -> NDArray[np.float64]:
    """(R,) distances, in float64: that number r counts generated row i `counts[r, i]` times.

    Args:
        generated, reference: features (n, D), (m, D), at least two rows each.
        counts: (R, n), each row with the sum n.
    """
    x, y, weights = (torch.as_tensor(part).to(device, torch.float64) for part in (generated, reference, counts))
    n, m = len(x), len(y)
    own, cross = torch.zeros_like(weights[:, 0]), torch.zeros_like(weights[:, 0])
    for start in range(0, n, BLOCK_ROWS):
        block, count = x[start : start + BLOCK_ROWS], weights[:, start : start + BLOCK_ROWS]
        own += (count * (weights @ _kernel(x, block))).sum(1)
        cross += count @ _kernel(block, y).mean(1)
    own = (own - weights @ _diagonal(x)) / (n * (n - 1))
    within = sum(_kernel(block, y).sum() for block in y.split(BLOCK_ROWS)) - _diagonal(y).sum()
    return (own + within / (m * (m - 1)) - 2 * cross / n).cpu().numpy()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _diagonal(a: Tensor) -> Tensor:
    return (a.square().mean(1) + 1) ** 3
