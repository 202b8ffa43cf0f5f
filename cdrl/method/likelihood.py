r"""The normalizer of an energy-based model, between two estimates, and bits/dim (spec section 8.5).

Annealed importance sampling (Neal 2001) in coordinates z, y = mean + L z, in which a Gaussian that resembles the model
becomes N(0, I). Along the path log pi_k = (1 - kappa_k) log N(z; 0, I) + kappa_k log p(z), 0 = kappa_0 < ... <
kappa_n = 1, a chain collects

    log w = sum_k (kappa_k - kappa_{k-1}) (log p(z_{k-1}) - log N(z_{k-1})),   z_k from z_{k-1} by HMC that keeps pi_k.

Forward, from z_0 ~ N(0, I), E w = Z: log mean w is in expectation below log Z. Backward along the same path, from
z ~ p/Z, E 1/w = 1/Z: -log mean 1/w is in expectation above log Z, so that both bracket it (Grosse et al. 2015). This
second one is a bound only if the start is an exact draw from the model; from data or long chains it is an estimate,
biased by what they miss of the model.

Temperatures and step sizes come from a pilot run with noise of its own and are constants of the run that counts, so
that it stays exact. The temperatures cut the path into pieces of equal thermodynamic length, the integral of
std_kappa(log p - log N) (Gelman and Meng 1998).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl.errors import ConfigError
from cdrl.method.hmc import Density, Point, Tilt, move
from cdrl.method.rng import Rng

__all__ = ["Gaussian", "LogZ", "Path", "ais", "bits_per_dim", "log_mean_exp", "plan", "relax"]

TARGET_ACCEPTANCE = 0.65  # Beskos et al. 2013: optimal for HMC in high dimensions
MAX_STEP_SIZE = 1.0  # a sixth of a turn around N(0, I): beyond, paths in few dimensions return to where they began
NUM_SETTLING_STEPS = 30
PILOT_POWER = 4  # kappa of the pilot = (k/m)^4: most of what happens, happens near the Gaussian
EVEN_SHARE = 0.2  # of the temperatures that follow the pilot's own spacing whatever it saw


@dataclass(frozen=True)
class Gaussian:
    """N(mean, L L^T) on y, and with it the coordinates z = L^-1 (y - mean).

    Attributes:
        mean: (...), the shape of one y.
        factor: L (D, D), lower triangular, D = mean.numel().
    """

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor) -> "Gaussian":
        """From a mean (...) and a positive definite covariance (D, D).

        Raises:
            ConfigError: the covariance is not positive definite.
        """
        factor, failed = torch.linalg.cholesky_ex(covariance.double())
        if failed or not factor.isfinite().all():
            raise ConfigError("start of the annealing: the covariance is not positive definite")
        return cls(mean, factor.to(mean.dtype))

    def colour(self, z: Tensor) -> Tensor:
        """y = mean + L z of z (B, D)."""
        return self.mean + (z @ self.factor.T).view(-1, *self.mean.shape)

    def whiten(self, y: Tensor) -> Tensor:
        """z = L^-1 (y - mean), (B, D), of y (B, ...)."""
        return torch.linalg.solve_triangular(self.factor, (y - self.mean).flatten(1).T, upper=False).T.contiguous()

    def whitened(self, density: Density) -> Density:
        """The density of z; its normalizer is that of y."""
        log_det = self.factor.diagonal().double().log().sum()

        def of_z(z: Tensor) -> tuple[Tensor, Tensor]:
            log_prob, score = density(self.colour(z))
            return log_prob.double() + log_det, score.flatten(1) @ self.factor

        return of_z


@dataclass(frozen=True)
class Path:
    """The constants of an annealing.

    Attributes:
        kappa: (n+1,) float64, from 0 to 1, strictly rising.
        step_size: (n+1,) float64, HMC's at each temperature.
        num_leapfrog: evaluations of the density per temperature.
    """

    kappa: Tensor
    step_size: Tensor
    num_leapfrog: int


@dataclass(frozen=True)
class LogZ:
    """One estimate of log Z.

    Attributes:
        nats: the estimate.
        standard_error: by the jackknife over chains, nats; inf if one chain outweighs all others.
        effective_samples: (sum w)^2 / sum w^2, between 1 and B.
        work: (n, B) float64, the terms of log w in the order of kappa.
        acceptance: (n-1,) of HMC at kappa_1 ... kappa_{n-1}, mean over chains.
    """

    nats: float
    standard_error: float
    effective_samples: float
    work: Tensor
    acceptance: Tensor


def plan(
    density: Density,
    like: Tensor,
    *,
    num_temperatures: int,
    rng: Rng,
    num_leapfrog: int = 1,
    progress: Callable[[], None] = lambda: None,
) -> Path:
    """Temperatures and step sizes from a pilot annealing with half as many temperatures.

    Args:
        density: of z, as `Gaussian.whitened` gives it.
        like: (B, D), whose shape, dtype and device the pilot's chains take.
        num_temperatures: n >= 2.
        rng: the pilot's own randomness.
        progress: called after each of the pilot's n//2 temperatures.

    Raises:
        ConfigError: n < 2, no leapfrog step, or a density that is not finite.
    """
    if num_temperatures < 2 or num_leapfrog < 1:
        raise ConfigError(
            "annealing: expected at least 2 temperatures and 1 leapfrog step, "
            f"got {num_temperatures} and {num_leapfrog}"
        )
    num_pilot = max(2, num_temperatures // 2)
    grid = torch.linspace(0, 1, num_pilot + 1, dtype=torch.float64) ** PILOT_POWER
    point = Point.at(density, rng.normal(like))
    point.check("start of the annealing")
    log_step, log_steps, speed = -math.log(like.shape[1]) / 3, [], []
    for number, kappa in enumerate([0.0] * NUM_SETTLING_STEPS + grid.tolist()):
        step_size = math.exp(log_step)
        point, accepted = move(
            density, point, step_size=step_size, rng=rng, num_leapfrog=num_leapfrog, tilt=_tempered(kappa)
        )
        log_step = min(log_step + accepted.mean().item() - TARGET_ACCEPTANCE, math.log(MAX_STEP_SIZE))
        if number >= NUM_SETTLING_STEPS:
            log_steps.append(log_step)
            speed.append((point.log_prob - _log_normal(point.y)).std().item())
            progress()
    speeds, log_table = torch.tensor(speed, dtype=torch.float64), torch.tensor(log_steps, dtype=torch.float64)
    pieces = (speeds[1:] + speeds[:-1]) / 2 * grid.diff()
    share = (1 - EVEN_SHARE) * pieces / pieces.sum().clamp(min=1e-12) + EVEN_SHARE / num_pilot
    length = torch.cat([torch.zeros(1, dtype=torch.float64), share.cumsum(0)])
    even = torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64) * length[-1]
    kappa = _interpolate(even, length, grid)
    kappa[0], kappa[-1] = 0, 1
    return Path(kappa, _interpolate(even, length, log_table).exp(), num_leapfrog)


def relax(density: Density, z: Tensor, path: Path, *, num_steps: int, rng: Rng) -> Tensor:
    """Bring z (B, D) closer to the model by HMC at kappa = 1: the start of a backward run.

    Raises:
        ConfigError: the density is not finite at z.
    """
    point = Point.at(density, z)
    point.check("start of the backward run")
    for _ in range(num_steps):
        point, _ = move(
            density, point, step_size=path.step_size[-1].item(), rng=rng, num_leapfrog=path.num_leapfrog
        )
    return point.y


def ais(
    density: Density,
    z: Tensor,
    path: Path,
    *,
    rng: Rng,
    backward: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> LogZ:
    """log of the integral of exp(log p) by annealed importance sampling, all chains in one batch.

    Args:
        density: of z, as `Gaussian.whitened` gives it.
        z: (B, D), B >= 2 chains: draws from N(0, I), or backward from the model.
        backward: from the model to the Gaussian.
        progress: called after each temperature.

    Raises:
        ConfigError: fewer than 2 chains, or a density that is not finite at z.
    """
    if len(z) < 2:
        raise ConfigError(f"annealing: expected at least 2 chains, got {len(z)}")
    point = Point.at(density, z)
    point.check("start of the annealing")
    num_pieces = len(path.kappa) - 1
    work = torch.empty(num_pieces, len(z), dtype=torch.float64, device=z.device)
    acceptance = torch.ones(num_pieces - 1, dtype=torch.float64, device=z.device)
    widths, order = path.kappa.diff(), range(num_pieces)
    for piece in reversed(order) if backward else order:  # piece k lies between kappa_k and kappa_{k+1}
        work[piece] = widths[piece] * (point.log_prob - _log_normal(point.y))
        progress()
        corner = piece if backward else piece + 1
        if not 0 < corner < num_pieces:
            break
        point, accepted = move(
            density,
            point,
            step_size=path.step_size[corner].item(),
            rng=rng,
            num_leapfrog=path.num_leapfrog,
            tilt=_tempered(path.kappa[corner].item()),
        )
        acceptance[corner - 1] = accepted.mean()
    log_w = -work.sum(dim=0) if backward else work.sum(dim=0)
    nats, error = log_mean_exp(log_w)
    effective = 2 * log_w.logsumexp(dim=0) - (2 * log_w).logsumexp(dim=0)
    return LogZ(-nats if backward else nats, error, effective.exp().item(), work.cpu(), acceptance.cpu())


def log_mean_exp(log_w: Tensor) -> tuple[float, float]:
    """log mean exp of (B,) and its standard error by the jackknife."""
    count = len(log_w)
    without = torch.log1p(-log_w.softmax(dim=0))  # log of what is left of the sum, each chain once left out
    error = ((count - 1) * without.var(correction=0)).sqrt().item() if without.isfinite().all() else math.inf
    return log_w.logsumexp(dim=0).item() - math.log(count), error


def bits_per_dim(log_prob: Tensor, num_dims: int) -> Tensor:
    """-ln p(x)/(D ln 2) + log2(127.5): bits per 8-bit pixel of densities of x in [-1, 1], uniformly dequantised."""
    return -log_prob / (num_dims * math.log(2)) + math.log2(127.5)


def _log_normal(z: Tensor) -> Tensor:
    """(B,) float64 log N(z; 0, I)."""
    return -0.5 * (z.double().square().sum(dim=1) + z.shape[1] * math.log(2 * math.pi))


def _tempered(kappa: float) -> Tilt:
    def tilt(point: Point) -> Point:
        log_prob = (1 - kappa) * _log_normal(point.y) + kappa * point.log_prob
        return Point(point.y, log_prob, kappa * point.score - (1 - kappa) * point.y)

    return tilt


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear through (knots, values), knots strictly rising, at x within them."""
    right = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
    weight = (x - knots[right - 1]) / (knots[right] - knots[right - 1])
    return torch.lerp(values[right - 1], values[right], weight)
