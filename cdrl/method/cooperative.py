r"""One training update of one pair (spec sections 5 and 6).

The initializer proposes, a short chain refines, and both learn from the result: the energy net raises f on data and
lowers it on refined samples, the initializer moves its draw to where the chain took it ("MCMC teaching").

    loss_energy      = mean  w_t ( f(y_neg) - f(y_pos) )                     w_t = sigma_ts(level 0) / sigma_ts
    loss_initializer = mean  | y_neg - y_init |^2   [+ anchor * | posterior mean - g(x_t) |^2, ours]
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cdrl.errors import Diverged
from cdrl.method.formulation import Formulation, Plain
from cdrl.method.guidance import Condition
from cdrl.method.langevin import RecoveryTarget, one_shot
from cdrl.method.nets import power_iterate
from cdrl.method.pairs import Pair
from cdrl.method.rng import Rng
from cdrl.method.schedule import Schedule, Transition

__all__ = ["Optimizers", "StepMetrics", "Synchronise", "cooperative_step", "initializer_step", "noised_pair"]

_ZERO = torch.zeros(())

Synchronise = Callable[[Iterable[nn.Parameter]], None]
"""Averages gradients over the replicas of a pair, in place."""

Loss = tuple[nn.Module, Tensor, Callable[[Tensor], None]]
"""A net, its loss, and what carries the loss back to the net's parameters."""


@dataclass(frozen=True)
class Optimizers:
    """One optimizer for each net of a pair; `initializer` is None where the pair has none."""

    energy: Optimizer
    initializer: Optimizer | None


@dataclass(frozen=True)
class StepMetrics:
    """What one update saw of this replica's part of the batch; each a scalar, on the device until it is read."""

    loss_energy: Tensor = _ZERO
    loss_initializer: Tensor = _ZERO
    f_pos: Tensor = _ZERO
    f_neg: Tensor = _ZERO
    displacement: Tensor = _ZERO  # rms of y_neg - y_init per pixel in units of the noise added, sqrt(K step_size)
    grad_norm_energy: Tensor = _ZERO  # before clipping
    grad_norm_initializer: Tensor = _ZERO


def noised_pair(tr: Transition, x_0: Tensor, rng: Rng, *, shared_noise: bool) -> tuple[Tensor, Tensor]:
    """(x_s, x_t), each like x_0: one noise draw for both (CDRL's variance reduction), or DRL's forward step."""
    if shared_noise:
        eps = rng.normal(x_0)
        return tr.alpha_s * x_0 + tr.sigma_s * eps, tr.alpha_t * x_0 + tr.sigma_t * eps
    step_noise = rng.normal(x_0)
    x_s = tr.alpha_s * x_0 + tr.sigma_s * rng.normal(x_0)
    return x_s, tr.alpha_ts * x_s + tr.sigma_ts * step_noise


def cooperative_step(
    pair: Pair,
    optimizers: Optimizers,
    schedule: Schedule,
    x_0: Tensor,
    level: Tensor,
    label: Tensor | None,
    *,
    num_steps: int,
    rng: Rng,
    step: int = 0,
    shared_noise: bool = True,
    clip_norm: float | None = 1.0,
    anchor: float = 0.0,
    synchronise: Synchronise | None = None,
    formulation: Formulation = Plain(),  # noqa: B008 - has no state
) -> StepMetrics:
    """Update both nets of a pair once.

    Args:
        pair: the live nets; chains run on these bare modules.
        optimizers: with their learning rates set for this update.
        x_0: (B, ...) data in [-1, 1].
        level: (B,) levels, all served by this pair.
        label: (B,) classes, 0 = none; None for an unconditional pair.
        num_steps: K.
        step: number of this update, for the message of a divergence.
        clip_norm: global gradient norm of each net; None = no clipping.
        anchor: weight of the regression to the posterior mean beside the teaching loss (0 = paper).
        synchronise: averages gradients over replicas before clipping.
        formulation: how f is computed.

    Raises:
        Diverged: a gradient is not finite, as it is where x_0, f or a weight is not; no optimizer has moved.
    """
    tr = schedule.transition(level, x_0)
    power_iterate(pair.energy)  # the only one of this update: positives, chain and negatives share their weights
    x_s, x_t = noised_pair(tr, x_0, rng, shared_noise=shared_noise)
    y_pos = tr.scale * x_s
    condition = Condition.guided(label)
    with formulation.initializer():
        mean, y_init = pair.propose(x_t, tr, condition, rng, dropout=rng)
    f = condition.energy(formulation.prepare(pair.energy), tr.logsnr_s)
    target = RecoveryTarget(f, tr, x_t, pair.base_measure, f.gradient)
    if pair.initializer is None and num_steps == 0:
        y_neg, noise = one_shot(target, x_t, rng=rng), tr.sigma_ts
    else:
        noise = (max(num_steps, 1) * tr.step_size).sqrt()
        y_neg = formulation.chain(target, y_init.detach(), num_steps=num_steps, rng=rng)

    f_pos, f_neg = f.both(y_pos, y_neg)
    loss_energy = (tr.loss_weight.flatten() * (f_neg - f_pos)).mean()
    moved = (y_neg - y_init).flatten(1)
    loss_initializer = _ZERO
    losses: dict[str, Loss] = {"energy": (pair.energy, loss_energy, f.backward)}
    if pair.initializer is not None:
        loss_initializer = moved.square().sum(dim=1).mean()
        if anchor:
            loss_initializer = loss_initializer + anchor * _posterior_loss(mean, tr, x_0, x_t).mean()
        losses["initializer"] = (pair.initializer, loss_initializer, partial(_backward, formulation))
    norms = _gradients(losses, clip_norm, synchronise)
    _refuse_divergence(level, step, torch.stack([f_pos, f_neg, moved.detach().square().sum(dim=1)]), norms)

    optimizers.energy.step()
    if optimizers.initializer is not None:
        optimizers.initializer.step()
    return StepMetrics(
        loss_energy=loss_energy.detach(),
        loss_initializer=loss_initializer.detach(),
        f_pos=f_pos.detach().mean(),
        f_neg=f_neg.detach().mean(),
        displacement=(moved.detach().square().mean(dim=1).sqrt() / noise.flatten()).mean(),
        grad_norm_energy=norms["energy"],
        grad_norm_initializer=norms.get("initializer", _ZERO),
    )


def initializer_step(
    pair: Pair,
    optimizers: Optimizers,
    schedule: Schedule,
    x_0: Tensor,
    level: Tensor,
    label: Tensor | None,
    *,
    rng: Rng,
    step: int = 0,
    shared_noise: bool = True,
    clip_norm: float | None = 1.0,
    synchronise: Synchronise | None = None,
    formulation: Formulation = Plain(),  # noqa: B008 - has no state
) -> StepMetrics:
    """Update the initializer alone, by regression to the posterior mean E[y | x_t, x_0]; ours, for short budgets.

    Arguments and errors as in `cooperative_step`.
    """
    assert pair.initializer is not None and optimizers.initializer is not None
    tr = schedule.transition(level, x_0)
    _, x_t = noised_pair(tr, x_0, rng, shared_noise=shared_noise)
    with formulation.initializer():
        mean, _ = pair.propose(x_t, tr, Condition.guided(label), rng, dropout=rng)
    losses = _posterior_loss(mean, tr, x_0, x_t)
    loss = losses.mean()
    backward = partial(_backward, formulation)
    norms = _gradients({"initializer": (pair.initializer, loss, backward)}, clip_norm, synchronise)
    _refuse_divergence(level, step, losses.detach()[None], norms)
    optimizers.initializer.step()
    return StepMetrics(loss_initializer=loss.detach(), grad_norm_initializer=norms["initializer"])


def _posterior_loss(mean: Tensor, tr: Transition, x_0: Tensor, x_t: Tensor) -> Tensor:
    return (tr.scale * tr.posterior_mean(x_0, x_t) - mean).flatten(1).square().sum(dim=1)


def _backward(formulation: Formulation, loss: Tensor) -> None:
    with formulation.initializer(backward=True):
        loss.backward()


def _gradients(
    losses: dict[str, Loss], clip_norm: float | None, synchronise: Synchronise | None
) -> dict[str, Tensor]:
    """Fresh gradients of each net from its loss, averaged over replicas, then clipped; the norms before clipping."""
    norms = {}
    for name, (net, loss, backward) in losses.items():
        net.zero_grad(set_to_none=True)
        backward(loss)
        if synchronise is not None:
            synchronise(net.parameters())
        norms[name] = nn.utils.clip_grad_norm_(net.parameters(), clip_norm or math.inf, foreach=True)
    return norms


def _refuse_divergence(level: Tensor, step: int, seen: Tensor, norms: dict[str, Tensor]) -> None:
    """Raise where a quantity per sample (rows of `seen`) or a gradient norm is not finite.

    Norms are of averaged gradients, so that every replica refuses the same update.
    """
    if torch.stack(list(norms.values())).isfinite().all():
        return
    value = {f"grad_norm_{name}": norm.item() for name, norm in norms.items() if not norm.isfinite()}
    worst = int(seen.isfinite().all(dim=0).int().argmin())
    raise Diverged(level=int(level[worst]), step=step, value=value)
