r"""Chains that are corrected: leapfrog proposals with a Metropolis test (Duane et al. 1987; Neal 2011).

With momentum p ~ N(0, I) and eps = sqrt(step_size), n leapfrog steps move (y, p) through

    p <- p + eps/2 grad log pi(y);   y <- y + eps p;   p <- p + eps/2 grad log pi(y)

and the end is accepted with probability min(1, exp(H(start) - H(end))), H = |p|^2/2 - log pi(y). One leapfrog step is
MALA, and its proposal y + (step_size/2) grad log pi + sqrt(step_size) p is the unadjusted Langevin step of `langevin`:
so its acceptance at the step size of training says how far the short chains are from detailed balance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cdrl.errors import ConfigError
from cdrl.method.rng import Rng

__all__ = ["Density", "Point", "Target", "Tilt", "move", "propose", "same", "value_and_score"]

Density = Callable[[Tensor], tuple[Tensor, Tensor]]
"""y (B, ...) -> (log pi(y) up to a constant, (B,) in nats; its gradient, like y)."""


class Target(Protocol):
    """What can be sampled, such as a `RecoveryTarget`."""

    def log_prob(self, y: Tensor) -> Tensor:
        """(B,) log-density up to a constant, in nats."""


def value_and_score(target: Target, y: Tensor) -> tuple[Tensor, Tensor]:
    """log p(y) (B,) and its gradient (like y) from one forward and one backward pass; a `Density` once partial."""
    with torch.enable_grad():
        leaf = y.detach().requires_grad_(True)
        log_prob = target.log_prob(leaf)
        (score,) = torch.autograd.grad(log_prob.sum(), leaf)
    return log_prob.detach(), score


@dataclass(frozen=True)
class Point:
    """Where the chains stand, with what was computed there.

    Attributes:
        y: (B, ...).
        log_prob: (B,) float64, nats.
        score: grad log pi, like y.
    """

    y: Tensor
    log_prob: Tensor
    score: Tensor

    @classmethod
    def at(cls, density: Density, y: Tensor) -> "Point":
        """Evaluate the density once."""
        log_prob, score = density(y)
        return cls(y, log_prob.double(), score)

    def check(self, where: str) -> None:
        """Refuse a density that is not finite.

        Raises:
            ConfigError: with `where` and the number of chains.
        """
        finite = self.log_prob.isfinite() & self.score.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            raise ConfigError(
                f"{where}: the log-density or its gradient is not finite in {int((~finite).sum())} of {len(finite)} "
                "chains; take another checkpoint or level, or Metropolis-adjusted steps"
            )

    def or_else(self, other: "Point", chosen: Tensor) -> "Point":
        """This point where `chosen` (B,) is true, the other one elsewhere."""
        wide = chosen.view(-1, *[1] * (self.y.ndim - 1))
        return Point(
            torch.where(wide, self.y, other.y),
            torch.where(chosen, self.log_prob, other.log_prob),
            torch.where(wide, self.score, other.score),
        )


Tilt = Callable[[Point], Point]
"""A point of `density` as another density sees it that costs no evaluation, such as a tempered one."""


def same(point: Point) -> Point:
    """No tilt."""
    return point


def propose(
    density: Density, point: Point, *, step_size: Tensor | float, rng: Rng, num_leapfrog: int = 1, tilt: Tilt = same
) -> tuple[Point, Tensor]:
    """The end of a leapfrog path, before any test.

    Args:
        point: the chains, as `density` sees them.
        step_size: eps^2, a number or (B, 1, ..., 1); with one leapfrog step Langevin's squared noise scale.
        num_leapfrog: n >= 1 evaluations of the density.
        tilt: sample tilt(point)'s density in place of `density`.

    Returns:
        the end, as `density` sees it, and (B,) float64 acceptance probabilities: 0 where the end is not finite.
    """
    step_size = torch.as_tensor(step_size, dtype=point.y.dtype, device=point.y.device)
    eps, here, momentum = step_size.sqrt(), tilt(point), rng.normal(point.y)
    start, there = _kinetic(momentum) - here.log_prob, here
    for _ in range(num_leapfrog):
        momentum = momentum + 0.5 * eps * there.score
        point = Point.at(density, there.y + eps * momentum)
        there = tilt(point)
        momentum = momentum + 0.5 * eps * there.score
    log_ratio = start - (_kinetic(momentum) - there.log_prob)
    return point, torch.where(log_ratio.isfinite(), log_ratio.clamp(max=0).exp(), 0.0)


def move(
    density: Density, point: Point, *, step_size: Tensor | float, rng: Rng, num_leapfrog: int = 1, tilt: Tilt = same
) -> tuple[Point, Tensor]:
    """One Metropolis-adjusted step, which leaves the density unchanged; arguments and returns as `propose`."""
    end, acceptance = propose(density, point, step_size=step_size, rng=rng, num_leapfrog=num_leapfrog, tilt=tilt)
    return end.or_else(point, rng.uniform(acceptance) < acceptance), acceptance


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.double().flatten(1).square().sum(dim=1)
