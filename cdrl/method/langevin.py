r"""Recovery likelihood and the short chain that samples it.

Given the noisy x_t, the cleaner y = scale * x_s has (spec section 3)

    log p(y | x_t) = f(y)/step_size - |y - x_t|^2 / (2 sigma_ts^2) + const        below the top,
    log p(y)       = f(y)/step_size + const                                       at the top and for marginals.

A Langevin step y + (step_size/2) grad log p + sqrt(step_size) eps then takes 1/2 grad f from the network at every
level: the step size cancels, and that is why f/step_size is the log-density.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cdrl.errors import ConfigError
from cdrl.method.rng import Rng
from cdrl.method.schedule import Transition

__all__ = ["Chain", "RecoveryTarget", "input_gradient", "langevin", "one_shot"]


@dataclass(frozen=True)
class RecoveryTarget:
    """log p(y | x_t), or the marginal log p(y) where `x_t` is None.

    Args:
        f: the network at the levels of the batch, (B, ...) -> (B,).
        transition: constants of the same batch.
        x_t: the noisy side, like y; None for the marginal.
        base_measure: weight of a standard normal density on x_s = y/scale that multiplies the model (0 = none).
        gradient: grad f, (B, ...) -> (B, ...); default: autograd.
    """

    f: Callable[[Tensor], Tensor]
    transition: Transition
    x_t: Tensor | None
    base_measure: float = 0.0
    gradient: Callable[[Tensor], Tensor] | None = None

    def log_prob(self, y: Tensor) -> Tensor:
        """(B,) log-density up to a constant per sample, in nats."""
        tr = self.transition
        penalty = self.base_measure * (y / tr.scale) ** 2
        if self.x_t is not None:
            penalty = penalty + (1 - tr.is_top) * ((y - self.x_t) / tr.sigma_ts) ** 2
        return self.f(y) / tr.step_size.flatten() - 0.5 * penalty.flatten(1).sum(dim=1)

    def drift(self, y: Tensor) -> Tensor:
        """(step_size/2) grad_y log p, like y: 1/2 grad f from the network, the Gaussian parts in closed form."""
        gradient = input_gradient(self.f, y) if self.gradient is None else self.gradient(y)
        drift = 0.5 * gradient
        if self.x_t is not None:
            drift = drift.addcmul(self._to_x_t, self.x_t - y)
        if self.base_measure:
            drift = drift.addcmul(self._to_base, y, value=-1)
        return drift

    @cached_property
    def _to_x_t(self) -> Tensor:
        tr = self.transition
        return 0.5 * tr.step_size * (1 - tr.is_top) / tr.sigma_ts**2

    @cached_property
    def _to_base(self) -> Tensor:
        return 0.5 * self.transition.step_size * self.base_measure / self.transition.scale**2

    def score(self, y: Tensor) -> Tensor:
        """grad_y log p, like y."""
        return self.drift(y) * (2 / self.transition.step_size)


def input_gradient(f: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """grad_y f of each sample by autograd, like y, without a graph."""
    with torch.enable_grad():
        leaf = y.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(f(leaf).sum(), leaf)
    return gradient


@torch.no_grad()
def langevin(
    target: RecoveryTarget,
    y: Tensor,
    *,
    num_steps: int,
    rng: Rng,
    step_multiplier: float = 1.0,
    noise_scale: float = 1.0,
    constrain: Callable[[Tensor], Tensor] | None = None,
    record: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Refine y by K unadjusted Langevin steps; noise is added after the last one too (spec section 4).

    Args:
        target: the density.
        y: (B, ...) start, in the scaled space.
        num_steps: K >= 0.
        rng: randomness of the batch.
        step_multiplier: m, the step size becomes m^2 step_size while the density stays.
        noise_scale: factor on the noise (DRL tests with 0.99).
        constrain: applied to y after every step.
        record: called with (step, y) after every step, step = 1 ... K.

    Raises:
        ConfigError: K < 0.
    """
    if num_steps < 0:
        raise ConfigError(f"num_steps: expected K >= 0, got {num_steps}")
    noise_std = target.transition.step_size.sqrt() * (step_multiplier * noise_scale)
    for step in range(num_steps):
        y = torch.add(y, target.drift(y), alpha=step_multiplier**2).addcmul(noise_std, rng.normal(y))
        if constrain is not None:
            y = constrain(y)
        if record is not None:
            record(step + 1, y)
    return y


Chain = Callable[..., Tensor]
"""Anything with the arguments and the result of `langevin`."""


@torch.no_grad()
def one_shot(target: RecoveryTarget, x_t: Tensor, *, rng: Rng, noise_scale: float = 1.0) -> Tensor:
    """y from the first-order expansion of log p(y | x_t) around x_t: what many levels leave of the chain (K = 0).

    N(x_t + sigma_ts^2 grad log p(x_t), sigma_ts^2 I) below the top (spec section 2.2); at the top x_t is pure noise
    already and stays.

    Args:
        target: the conditional density given this x_t.
        x_t: (B, ...).
        rng: randomness of the batch.
        noise_scale: factor on the noise.
    """
    tr = target.transition
    moved = tr.sigma_ts**2 * target.score(x_t) + tr.sigma_ts * noise_scale * rng.normal(x_t)
    return x_t + (1 - tr.is_top) * moved
