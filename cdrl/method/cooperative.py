r"""One training update of one pair (spec sections 5 and 6).

The initializer proposes, a short chain refines, and both learn from the result: the energy net raises f on data and
lowers it on refined samples, the initializer moves its draw to where the chain took it ("MCMC teaching").

    loss_energy      = mean  w_t ( f(y_neg) - f(y_pos) )                     w_t = sigma_ts(level 0) / sigma_ts
    loss_initializer = mean  | y_neg - y_init |^2   [+ anchor * | posterior mean - g(x_t) |^2, ours]
"""

from functools import partial

from torch import Tensor

from cdrl.method.descent import Batch, Loss, Observe, Optimizers, Outcome, StepMetrics, Synchronise, descend
from cdrl.method.formulation import Formulation, Plain
from cdrl.method.guidance import Condition
from cdrl.method.langevin import RecoveryTarget, one_shot
from cdrl.method.nets import power_iterate
from cdrl.method.pairs import Pair
from cdrl.method.rng import Rng
from cdrl.method.schedule import Schedule, Transition

__all__ = ["Observe", "Optimizers", "StepMetrics", "Synchronise", "cooperative_step", "initializer_step", "noised_pair"]


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
    chunkwise: bool = False,
    synchronise: Synchronise | None = None,
    observe: Observe | None = None,
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
        chunkwise: each chunk of `rng` is a piece by itself, else the batch is one.
        synchronise: averages gradients and metrics over replicas before clipping.
        observe: is told of each piece.
        formulation: how f is computed.

    Raises:
        Diverged: a gradient is not finite, as it is where x_0, f or a weight is not; no optimizer has moved.
    """
    power_iterate(pair.energy)  # the only one of this update: positives, chain and negatives share their weights

    def outcome(piece: Batch) -> Outcome:
        x_0, level, rng = piece.x_0, piece.level, piece.rng
        tr = schedule.transition(level, x_0)
        x_s, x_t = noised_pair(tr, x_0, rng, shared_noise=shared_noise)
        y_pos = tr.scale * x_s
        condition = Condition.guided(piece.label)
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
        losses: dict[str, Loss] = {"energy": (loss_energy, f.backward)}
        if pair.initializer is not None:
            loss_initializer = moved.square().sum(dim=1).mean()
            if anchor:
                loss_initializer = loss_initializer + anchor * _posterior_loss(mean, tr, x_0, x_t).mean()
            losses["initializer"] = (loss_initializer, partial(_backward, formulation))
        displacement = moved.detach().square().mean(dim=1).sqrt() / noise.flatten()
        return Outcome(losses, {"f_pos": f_pos.detach(), "f_neg": f_neg.detach(), "displacement": displacement})

    nets = {"energy": pair.energy} | ({} if pair.initializer is None else {"initializer": pair.initializer})
    pieces = Batch(x_0, level, label, rng).pieces(chunkwise)
    return descend(nets, optimizers, pieces, outcome, step, clip_norm, synchronise, observe)


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
    chunkwise: bool = False,
    synchronise: Synchronise | None = None,
    formulation: Formulation = Plain(),  # noqa: B008 - has no state
) -> StepMetrics:
    """Update the initializer alone, by regression to the posterior mean E[y | x_t, x_0]; ours, for short budgets.

    Arguments and errors as in `cooperative_step`.
    """
    net = pair.initializer
    assert net is not None

    def outcome(piece: Batch) -> Outcome:
        tr = schedule.transition(piece.level, piece.x_0)
        _, x_t = noised_pair(tr, piece.x_0, piece.rng, shared_noise=shared_noise)
        with formulation.initializer():
            mean, _ = pair.propose(x_t, tr, Condition.guided(piece.label), piece.rng, dropout=piece.rng)
        each = _posterior_loss(mean, tr, piece.x_0, x_t)
        losses: dict[str, Loss] = {"initializer": (each.mean(), partial(_backward, formulation))}
        return Outcome(losses, {"loss_initializer": each.detach()})

    pieces = Batch(x_0, level, label, rng).pieces(chunkwise)
    return descend({"initializer": net}, optimizers, pieces, outcome, step, clip_norm, synchronise)


def _posterior_loss(mean: Tensor, tr: Transition, x_0: Tensor, x_t: Tensor) -> Tensor:
    return (tr.scale * tr.posterior_mean(x_0, x_t) - mean).flatten(1).square().sum(dim=1)


def _backward(formulation: Formulation, loss: Tensor) -> None:
    with formulation.initializer(backward=True):
        loss.backward()
