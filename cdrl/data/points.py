r"""Laws in the plane whose every noisy marginal is known exactly: what a trained toy is held against (spec section 10).

For x = alpha x_0 + sigma eps the densities are closed forms:

    squares     p(x) = mean_k prod_i [Phi((x_i - alpha low_ki)/sigma) - Phi((x_i - alpha high_ki)/sigma)] / (alpha side)
    Gaussians   p(x) = sum_k weight_k N( x; alpha mean_k, alpha^2 covariance_k + sigma^2 I )
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

__all__ = ["LAWS", "Gaussians", "Law", "Squares", "score"]


class Law(Protocol):
    """A law of points x_0 (2,), with the density of its noisy marginals."""

    def draw(self, number: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """(number, 2) independent points x_0."""

    def log_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """(B,) log-density in nats of x = alpha x_0 + sigma eps (B, 2); alpha, sigma > 0. In the dtype of x."""


@dataclass(frozen=True)
class Squares:
    """Uniform over equal squares that do not overlap.

    Args:
        corners: the lower left corner of each, in units of the side.
        side: length of a side.
    """

    corners: tuple[tuple[int, int], ...]
    side: float

    def draw(self, number: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """(number, 2) independent points x_0."""
        corners = np.array(self.corners)[rng.integers(len(self.corners), size=number)]
        return (self.side * (corners + rng.random((number, 2)))).astype(np.float32)

    def log_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """(B,) log-density in nats of x = alpha x_0 + sigma eps (B, 2); alpha, sigma > 0. In the dtype of x."""
        low = alpha * self.side * torch.tensor(self.corners, dtype=x.dtype)
        mass = _log_normal_mass((x[:, None] - low - alpha * self.side) / sigma, (x[:, None] - low) / sigma)
        one = mass.sum(dim=2) - 2 * math.log(alpha * self.side)  # (B, squares)
        return one.logsumexp(dim=1) - math.log(len(self.corners))


@dataclass(frozen=True)
class Gaussians:
    """A mixture of Gaussians, each an ellipse.

    Args:
        components: (weight, mean, standard deviations along the axes of the ellipse, angle of its first in degrees);
            the weights sum to 1.
    """

    components: tuple[tuple[float, tuple[float, float], tuple[float, float], float], ...]

    def draw(self, number: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """(number, 2) independent points x_0."""
        weights, means, factors = (part.numpy() for part in self._parts())
        which = rng.choice(len(weights), size=number, p=weights)
        noise = rng.standard_normal((number, 2, 1))
        return (means[which] + (factors[which] @ noise)[..., 0]).astype(np.float32)

    def log_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """(B,) log-density in nats of x = alpha x_0 + sigma eps (B, 2); alpha, sigma > 0. In the dtype of x."""
        weights, means, factors = (part.to(x.dtype) for part in self._parts())
        covariance = alpha**2 * factors @ factors.mT + sigma**2 * torch.eye(2, dtype=x.dtype)
        return MixtureSameFamily(Categorical(weights), MultivariateNormal(alpha * means, covariance)).log_prob(x)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (K,), means (K, 2) and factors A (K, 2, 2) of the covariances A A^T, in float64."""
        weights, means, stds, degrees = zip(*self.components, strict=True)
        angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
        factors = turn * torch.tensor(stds, dtype=torch.float64)[:, None]
        return torch.tensor(weights, dtype=torch.float64), torch.tensor(means, dtype=torch.float64), factors


# Eight squares of side 4 are every other field of a 4 x 4 board in [-8, 8]^2 (spec section 10); the ellipses fill the
# same box with components of weights 1 to 6 and widths 1 to 10, so that one set of constants serves both.
LAWS: dict[str, Law] = {
    "checkerboard": Squares(((1, 0), (0, 1), (0, -1), (1, -2), (-1, -2), (-2, -1), (-1, 0), (-2, 1)), 4.0),
    "gaussians": Gaussians(
        (
            (0.24, (0.0, 0.5), (1.0, 1.0), 0),
            (0.16, (4.6, 3.6), (1.6, 0.4), 45),
            (0.16, (-4.6, 3.6), (1.6, 0.4), -45),
            (0.12, (0.0, 5.6), (1.2, 0.3), 0),
            (0.12, (0.0, -5.4), (2.4, 0.5), 0),
            (0.08, (5.8, -1.0), (0.4, 1.4), 0),
            (0.08, (-5.8, -1.0), (0.4, 1.4), 0),
            (0.04, (4.2, -4.6), (0.5, 0.5), 0),
        )
    ),
}


def score(law: Law, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """Gradient of the log-density of x = alpha x_0 + sigma eps (B, 2), like x."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(law.log_prob(leaf, alpha, sigma).sum(), leaf)
    return gradient


def _log_normal_mass(low: Tensor, high: Tensor) -> Tensor:
    """ln(Phi(high) - Phi(low)), low < high, to full precision in either tail."""
    mirrored = low + high > 0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    top = torch.special.log_ndtr(high)
    return top + torch.log1p(-torch.exp(torch.special.log_ndtr(low) - top))
