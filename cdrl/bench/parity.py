r"""How far a number format takes the fast formulation from float32: relative errors of what training consumes.

    gradient      grad_y f at the start of the chain
    displacement  y_K - y_0 of a whole chain with the same noise
    update        gradient of mean f(y_neg) - f(y_pos) by the parameters of f, with the chain of float32

f is piecewise linear, so that rounding which flips the sign of a unit jumps to another slope: errors are per cents
where the format's own rounding is a tenth of that.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl.bench.subject import Subject
from cdrl.method.cooperative import noised_pair
from cdrl.method.fast import Fast, Precision
from cdrl.method.guidance import Condition
from cdrl.method.langevin import RecoveryTarget
from cdrl.method.rng import Rng

__all__ = ["Errors", "parity"]


@dataclass(frozen=True)
class Errors:
    """|rough - exact| / |exact|, norms over the whole batch or over all parameters."""

    gradient: float
    displacement: float
    update: float


@dataclass(frozen=True)
class _Seen:
    gradient: Tensor
    displacement: Tensor
    update: Tensor
    y_neg: Tensor


def parity(subject: Subject, precision: Precision, batch_size: int) -> Errors:
    """Errors of one number format in chain and losses, at the subject's present weights."""
    exact = _seen(subject, "fp32", batch_size, None)
    rough = _seen(subject, precision, batch_size, exact.y_neg)
    return Errors(
        gradient=_error(rough.gradient, exact.gradient),
        displacement=_error(rough.displacement, exact.displacement),
        update=_error(rough.update, exact.update),
    )


def _error(rough: Tensor, exact: Tensor) -> float:
    return ((rough - exact).norm() / exact.norm()).item()


def _seen(subject: Subject, precision: Precision, batch_size: int, y_neg: Tensor | None) -> _Seen:
    formulation = Fast(chain_precision=precision, loss_precision=precision, device_type=subject.device.type)
    rng, pair = Rng("parity", device=subject.device), subject.pair
    x_0, label = subject.batch(rng, batch_size)
    tr = subject.schedule.transition(subject.ladder.draw_levels(0, rng, x_0), x_0)
    x_s, x_t = noised_pair(tr, x_0, rng, shared_noise=True)
    f = Condition.guided(label).energy(formulation.prepare(pair.energy), tr.logsnr_s)
    target = RecoveryTarget(f, tr, x_t, pair.base_measure, f.gradient)
    y_K = formulation.chain(target, x_t, num_steps=subject.config.training.num_steps, rng=rng)
    f_pos, f_neg = f.both(tr.scale * x_s, y_K if y_neg is None else y_neg)
    pair.energy.zero_grad(set_to_none=True)
    f.backward((f_neg - f_pos).mean())
    parameters = pair.energy.parameters()
    update = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    pair.energy.zero_grad(set_to_none=True)
    return _Seen(f.gradient(x_t), y_K - x_t, update, y_K)
