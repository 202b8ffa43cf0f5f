r"""Chains far longer than those of training: does the density itself, and not only a short chain's start, look real?

DRL's claim is that long chains of the conditionals p(y | x_t) stay realistic (spec section 8.5). Every step is
watched: an unadjusted chain reports the probability with which a Metropolis test would have accepted each of its steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl.errors import ConfigError
from cdrl.method.hmc import Density, Point, propose
from cdrl.method.rng import Rng

__all__ = ["LongRun", "long_run", "powers_of_ten"]

CHECK_EVERY = 100


@dataclass(frozen=True)
class LongRun:
    """What a long chain left.

    Attributes:
        shown: (S,) steps after which a snapshot was taken: 0, 1, 10, 100, ..., the last.
        snapshots: (S, B, ...) y at those steps.
        log_prob: (num_steps + 1, B) float32, nats relative to the start.
        acceptance: (num_steps, B) float32, of the Metropolis test of each step, whether or not it was made.
    """

    shown: tuple[int, ...]
    snapshots: Tensor
    log_prob: Tensor
    acceptance: Tensor


def powers_of_ten(num_steps: int) -> tuple[int, ...]:
    """0, 1, 10, 100, ... below num_steps, and num_steps itself."""
    return (0, *(10**power for power in range(len(str(num_steps))) if 10**power < num_steps), num_steps)


@torch.no_grad()
def long_run(
    density: Density,
    y: Tensor,
    *,
    step_size: Tensor | float,
    num_steps: int,
    rng: Rng,
    adjusted: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> LongRun:
    """Run Langevin chains for long; the record takes 8 bytes per step and chain.

    Args:
        density: e.g. `value_and_score` of a `RecoveryTarget`.
        y: (B, ...) start.
        step_size: squared noise scale, a number or (B, 1, ..., 1).
        num_steps: at least 1.
        adjusted: MALA, which leaves the density unchanged, in place of unadjusted Langevin.
        progress: called after each step.

    Raises:
        ConfigError: no steps, or the density is not finite at the start or, about 100 steps back, in the chain.
    """
    if num_steps < 1:
        raise ConfigError(f"long chain: expected at least 1 step, got {num_steps}")
    point, shown = Point.at(density, y), powers_of_ten(num_steps)
    point.check("start of the long chain")
    start, snapshots = point.log_prob, [y.cpu()]
    log_prob = torch.zeros(num_steps + 1, len(y), device=y.device)
    acceptance = torch.empty(num_steps, len(y), device=y.device)
    for step in range(1, num_steps + 1):
        end, accepted = propose(density, point, step_size=step_size, rng=rng)
        point = end.or_else(point, rng.uniform(accepted) < accepted) if adjusted else end
        log_prob[step], acceptance[step - 1] = point.log_prob - start, accepted
        if step in shown:
            snapshots.append(point.y.cpu())
        if step in shown or step % CHECK_EVERY == 0:
            point.check(f"long chain, step {step}")
        progress()
    return LongRun(shown, torch.stack(snapshots), log_prob.cpu(), acceptance.cpu())
