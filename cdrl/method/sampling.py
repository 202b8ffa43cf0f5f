r"""From noise to data: at each level the initializer proposes and a short chain refines (spec section 7).

    x_T ~ N(0, I);   for level = T-1 ... 0:  y = g(x_t) + scale sigma_post eps;  K Langevin steps;  x_s = y / scale
    x_0 = (x_s + denoise_scale sigma_s^2 grad log p(x_s)) / alpha_s,   clamped to [-1, 1]
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from cdrl.errors import ConfigError
from cdrl.method.formulation import Formulation, Plain, Prepared
from cdrl.method.guidance import Condition
from cdrl.method.langevin import RecoveryTarget, one_shot
from cdrl.method.pairs import Pair, PairLadder
from cdrl.method.rng import Rng
from cdrl.method.schedule import Schedule, Transition

__all__ = ["Constraint", "Record", "num_gradients", "sample", "target_at"]

Value = TypeVar("Value", int, float, Condition)

Record = Callable[[int, int, Tensor], None]
"""Called with (level, step, x_s): (T, 0) is x_T, step 0 the initializer's draw, 1 ... K the chain; (-1, 0) is x_0."""


class Constraint(Protocol):
    """What every sample must agree with, such as the known pixels of an image."""

    def noisy(self, x_t: Tensor, transition: Transition) -> Tensor:
        """x_t (B, ...) made to agree before a level is left; at its noise level t."""

    def scaled(self, y: Tensor, transition: Transition) -> Tensor:
        """y = scale * x_s (B, ...) made to agree after the proposal and every step of the chain."""

    def clean(self, x_0: Tensor) -> Tensor:
        """The result (B, ...) made to agree."""


@torch.no_grad()
def sample(
    ladder: PairLadder,
    schedule: Schedule,
    x_T: Tensor,
    *,
    num_steps: int | Sequence[int],
    rng: Rng,
    condition: Condition | Sequence[Condition] = Condition(),  # noqa: B008 - frozen
    step_multiplier: float | Sequence[float] = 1.0,
    noise_scale: float = 1.0,
    denoise_scale: float = 2.0,
    clamp: bool = True,
    constraint: Constraint | None = None,
    num_rounds: int = 1,
    record: Record | None = None,
    formulation: Formulation = Plain(),  # noqa: B008 - has no state
) -> Tensor:
    """Draw one batch.

    Args:
        ladder: pairs with averaged weights, singular vectors converged (`power_iterate`).
        x_T: (B, ...) standard normal noise.
        num_steps: K, one number or one per level from level 0 on; 0 = the initializer alone, or without an
            initializer the one-shot normal approximation.
        condition: labels and their weights, in the chain, the initializer and the final denoise; one, or one per level
            from level 0 on.
        step_multiplier: m of `langevin`, one number or one per level; the one-shot approximation has no step.
        noise_scale: factor on the Langevin noise.
        denoise_scale: 0 = no final denoise, 1 = one model score at level 0, 2 = parity with the CDRL release.
        clamp: limit the result to [-1, 1]; off for data that are not images.
        constraint: known pixels and the like.
        num_rounds: times that each level is left, with x_s noised to x_t again in between (resampling).
        record: sees every level and every step.
        formulation: how f is computed.

    Returns:
        x_0 like x_T.

    Raises:
        ConfigError: K < 0, num_rounds < 1, or as many numbers as there are levels expected.
    """
    num_steps = _per_level("num_steps", num_steps, schedule.num_levels)
    multipliers = _per_level("step_multiplier", step_multiplier, schedule.num_levels)
    conditions = _per_level("guidance", condition, schedule.num_levels)
    if min(num_steps) < 0:
        raise ConfigError(f"sampling.num_steps: expected K >= 0, got {min(num_steps)}")
    if num_rounds < 1:
        raise ConfigError(f"sampling.num_rounds: expected at least 1, got {num_rounds}")
    prepared = {id(pair): formulation.prepare(pair.energy) for pair in ladder.distinct()}
    x = x_T
    _note(record, schedule.num_levels, 0, x)
    for level in reversed(range(schedule.num_levels)):
        pair, tr, condition = ladder[level], schedule.transition(level, x), conditions[level]
        for round_number in range(num_rounds):
            if round_number:
                x = tr.alpha_ts * x + tr.sigma_ts * rng.normal(x)
            if constraint is not None:
                x = constraint.noisy(x, tr)
            target = _target(pair, prepared[id(pair)], tr, condition, x_t=x)
            if pair.initializer is None and num_steps[level] == 0:
                y = one_shot(target, x, rng=rng, noise_scale=noise_scale)
            else:
                with formulation.initializer():
                    y = pair.propose(x, tr, condition, rng)[1]
            y = y if constraint is None else constraint.scaled(y, tr)
            if record is not None:
                record(level, 0, y / tr.scale)
            y = formulation.chain(
                target,
                y,
                num_steps=num_steps[level],
                rng=rng,
                step_multiplier=multipliers[level],
                noise_scale=noise_scale,
                constrain=None if constraint is None else partial(constraint.scaled, transition=tr),
                record=None if record is None else partial(_note_scaled, record, level, tr),
            )
            x = y / tr.scale
    if denoise_scale:
        pair, tr = ladder[0], schedule.transition(0, x)
        marginal = _target(pair, prepared[id(pair)], tr, conditions[0], x_t=None)
        score = tr.scale * marginal.score(tr.scale * x)  # in the units of x_s
        x = (x + denoise_scale * tr.sigma_s**2 * score) / tr.alpha_s
    x = x.clamp(-1, 1) if clamp else x
    x = x if constraint is None else constraint.clean(x)
    _note(record, -1, 0, x)
    return x


def num_gradients(
    num_levels: int,
    *,
    num_steps: int | Sequence[int],
    guidance: float | Sequence[float] = 0.0,
    denoise_scale: float = 2.0,
    has_initializer: bool = True,
) -> int:
    """Gradients of f that `sample` computes for each image; under guidance a step takes two.

    Raises:
        ConfigError: as many numbers as there are levels expected.
    """
    steps = _per_level("num_steps", num_steps, num_levels)
    branches = [1 if weight == 0 else 2 for weight in _per_level("guidance", guidance, num_levels)]
    chains = [max(K, not has_initializer) * number for K, number in zip(steps, branches, strict=True)]
    return sum(chains) + branches[0] * bool(denoise_scale)


def target_at(
    ladder: PairLadder,
    schedule: Schedule,
    level: int,
    like: Tensor,
    *,
    x_t: Tensor | None = None,
    label: Tensor | None = None,
    formulation: Formulation = Plain(),  # noqa: B008 - has no state
) -> RecoveryTarget:
    """The density of y = scale * x_s at one level of a trained ladder, for batches like `like` (B, ...).

    Args:
        x_t: the noisy side, for the conditional density; None for the marginal.
        label: (B,) classes, 0 = none.
        formulation: how f is computed; weights are prepared once, here.
    """
    pair, tr = ladder[level], schedule.transition(level, like)
    return _target(pair, formulation.prepare(pair.energy), tr, Condition.guided(label), x_t=x_t)


def _target(
    pair: Pair, prepared: Prepared, tr: Transition, condition: Condition, *, x_t: Tensor | None
) -> RecoveryTarget:
    f = condition.energy(prepared, tr.logsnr_s)
    return RecoveryTarget(f, tr, x_t, pair.base_measure, f.gradient)


def _note(record: Record | None, level: int, step: int, x: Tensor) -> None:
    if record is not None:
        record(level, step, x)


def _note_scaled(record: Record, level: int, tr: Transition, step: int, y: Tensor) -> None:
    record(level, step, y / tr.scale)


def _per_level(name: str, value: Value | Sequence[Value], num_levels: int) -> list[Value]:
    values = list(value) if isinstance(value, Sequence) else [value] * num_levels
    if len(values) != num_levels:
        number = len(values)
        raise ConfigError(f"sampling.{name}: expected one number or one for each of {num_levels} levels, got {number}")
    return values
