"""Exactly solvable parts that several test modules share: data N(0, 0.25 I) and nets that are quadratic or linear."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

REFERENCE = json.loads((Path(__file__).parents[2] / "fixtures" / "reference.json").read_text())


def oracle(level: int) -> SimpleNamespace:
    """The closed forms of one level: `f_coeff`, `post_mean_coeff`, `post_var`, `contraction`, ..."""
    return SimpleNamespace(**REFERENCE["gaussian_oracle"]["rows"][level])


class Quadratic(nn.Module):
    """f(y) = -theta * coefficient * (1 + label) |y|^2."""

    def __init__(self, coefficient: float, theta: float = 1.0) -> None:
        super().__init__()
        self.coefficient = coefficient
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        factor = 1 if label is None else 1 + label
        return -self.theta * self.coefficient * factor * y.flatten(1).square().sum(dim=1)


class Linear(nn.Module):
    """g(x_t) = k x_t + label / 10."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k, dtype=torch.float64))

    def forward(self, x_t: Tensor, logsnr: Tensor, label: Tensor | None = None, rng: object = None) -> Tensor:
        shift = 0 if label is None else (label / 10).view(-1, *[1] * (x_t.ndim - 1))
        return self.k * x_t + shift


def mean_within(draws: Tensor, expected: float, sigmas: float = 5) -> bool:
    """Whether the mean of independent draws is within that many of its own standard errors."""
    return abs(draws.mean().item() - expected) < sigmas * draws.std().item() / math.sqrt(draws.numel())


def variance_within(draws: Tensor, expected: float, sigmas: float = 5) -> bool:
    """Whether the variance of independent normal draws is within that many standard errors."""
    return abs(draws.var().item() / expected - 1) < sigmas * math.sqrt(2 / draws.numel())
