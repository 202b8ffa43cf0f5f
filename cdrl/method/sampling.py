r"""From noise to data: at each level the initializer proposes and a short chain refines (spec section 7).

    x_T ~ N(0, I);   for level = T-1 ... 0:  y = g(x_t) + scale sigma_post eps;  K Langevin steps;  x_s = y / scale
    x_0 = (x_s + denoise_scale sigma_s^2 grad log p(x_s)) / alpha_s,   clamped to [-1, 1]
"""

from functools import partial

import torch
from torch import Tensor

from cdrl.errors import ConfigError
from cdrl.method.guidance import Guided
from cdrl.method.langevin import RecoveryTarget, langevin
from cdrl.method.nets import frozen
from cdrl.method.pairs import Pair, PairLadder
from cdrl.method.rng import Rng
from cdrl.method.schedule import Schedule

__all__ = ["sample", "target_at"]


@torch.no_grad()
def sample(
    ladder: PairLadder,
    schedule: Schedule,
    x_T: Tensor,
    *,
    num_steps: int,
    rng: Rng,
    label: Tensor | None = None,
    guidance: float = 0.0,
    step_multiplier: float = 1.0,
    noise_scale: float = 1.0,
    denoise_scale: float = 2.0,
    clamp: bool = True,
    trace: list[Tensor] | None = None,
) -> Tensor:
    """Draw one batch.

    Args:
        ladder: pairs with averaged weights, singular vectors converged (`power_iterate`).
        x_T: (B, ...) standard normal noise.
        num_steps: K per level; 0 = the initializer alone.
        label: (B,) classes, 0 = none.
        guidance: w of classifier-free guidance, in the chain, the initializer and the final denoise.
        step_multiplier: m of `langevin`.
        noise_scale: factor on the Langevin noise.
        denoise_scale: 0 = no final denoise, 1 = one model score at level 0, 2 = parity with the CDRL release.
        clamp: limit the result to [-1, 1]; off for data that are not images.
        trace: if given, x_T, the x_s of every level and the result are appended.

    Returns:
        x_0 like x_T.

    Raises:
        ConfigError: K < 0, or guidance without labels.
    """
    if num_steps < 0:
        raise ConfigError(f"sampling.num_steps: expected K >= 0, got {num_steps}")
    if guidance and label is None:
        raise ConfigError(f"sampling.guidance: {guidance:g} needs labels; the model or the request has none")
    x = x_T
    steps = [x]
    with frozen(ladder):
        for level in reversed(range(schedule.num_levels)):
            pair = _guided(ladder[level], guidance)
            tr = schedule.transition(level, x)
            _, y_init = pair.propose(x, tr, label, rng)
            target = _target(pair, level, schedule, x, x_t=x, label=label)
            y = langevin(
                target, y_init, num_steps=num_steps, rng=rng, step_multiplier=step_multiplier, noise_scale=noise_scale
            )
            x = y / tr.scale
            steps.append(x)
        if denoise_scale:
            tr = schedule.transition(0, x)
            marginal = _target(_guided(ladder[0], guidance), 0, schedule, x, x_t=None, label=label)
            score = tr.scale * marginal.score(tr.scale * x)  # in the units of x_s
            x = (x + denoise_scale * tr.sigma_s**2 * score) / tr.alpha_s
    x = x.clamp(-1, 1) if clamp else x
    if trace is not None:
        trace.extend([*steps, x])
    return x


def target_at(
    ladder: PairLadder,
    schedule: Schedule,
    level: int,
    like: Tensor,
    *,
    x_t: Tensor | None = None,
    label: Tensor | None = None,
) -> RecoveryTarget:
    """The density of y = scale * x_s at one level of a trained ladder, for batches like `like` (B, ...).

    Args:
        x_t: the noisy side, for the conditional density; None for the marginal.
        label: (B,) classes, 0 = none.
    """
    return _target(ladder[level], level, schedule, like, x_t=x_t, label=label)


def _target(
    pair: Pair, level: int, schedule: Schedule, x: Tensor, *, x_t: Tensor | None, label: Tensor | None
) -> RecoveryTarget:
    tr = schedule.transition(level, x)
    return RecoveryTarget(partial(pair.energy, logsnr=tr.logsnr_s, label=label), tr, x_t, pair.base_measure)


def _guided(pair: Pair, guidance: float) -> Pair:
    """The same pair with both nets guided; at w = 0 the pair itself, so that it is unguided bit by bit."""
    if guidance == 0:
        return pair
    initializer = None if pair.initializer is None else Guided(pair.initializer, guidance)
    return Pair(Guided(pair.energy, guidance), initializer, pair.base_measure)
