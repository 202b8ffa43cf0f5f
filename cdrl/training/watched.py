r"""What one update does to each image: noise, the initializer's draw, the chain, f and its gradient on the way.

The method does not know that it is watched. It asks its schedule for the constants of a batch and its formulation for
prepared weights and a chain: both are replaced by ones that answer the same and take notes. f and grad f along the
chain are evaluated besides; they draw nothing and move nothing, so that the update is the same bit by bit.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from cdrl.method.formulation import BatchEnergy, Formulation, Prepared
from cdrl.method.langevin import Chain, RecoveryTarget
from cdrl.method.schedule import Schedule, Transition
from cdrl.training.state import TrainState

__all__ = ["Seen", "watch"]


@dataclass
class Seen:
    """A piece of one pair's update; B rows. All y are in the scaled space, y = scale * x_s.

    Attributes:
        level, label: (B,); label None where f was not asked, or has no classes.
        x_0, x_t, y_pos, y_neg: (B, ...).
        y: y_init and y after each step of the chain, each (B, ...).
        f, gradient: f and |grad_y f| at each of them, each (B,).
        f_pos, f_neg: (B,).
    """

    level: Tensor
    x_0: Tensor
    transition: Transition
    label: Tensor | None = None
    x_t: Tensor | None = None
    y: list[Tensor] = field(default_factory=list)
    f: list[Tensor] = field(default_factory=list)
    gradient: list[Tensor] = field(default_factory=list)
    y_pos: Tensor | None = None
    y_neg: Tensor | None = None
    f_pos: Tensor | None = None
    f_neg: Tensor | None = None

    @torch.no_grad()
    def visit(self, energy: BatchEnergy, y: Tensor) -> None:
        """Note a place of the chain."""
        self.y.append(y.detach().clone())
        self.f.append(energy(y).clone())
        self.gradient.append(energy.gradient(y).flatten(1).norm(dim=1))


def watch(state: TrainState) -> list[Seen]:
    """Watch all updates of a state from here on; the list grows by one for each piece of an update of a pair."""
    seen: list[Seen] = []
    state.schedule = _WatchedSchedule(state.schedule, seen)
    state.formulation = _WatchedFormulation(state.formulation, seen)
    return seen


class _WatchedSchedule(Schedule):
    """The same schedule; whoever asks for the constants of a batch begins a piece."""

    def __init__(self, schedule: Schedule, seen: list[Seen]) -> None:
        vars(self).update(vars(schedule))
        self._seen = seen

    def transition(self, level: Tensor | int, like: Tensor) -> Transition:
        tr = super().transition(level, like)
        self._seen.append(Seen(torch.as_tensor(level, device=like.device).expand(len(like)), like, tr))
        return tr


class _WatchedFormulation:
    def __init__(self, formulation: Formulation, seen: list[Seen]) -> None:
        self._formulation, self._seen = formulation, seen

    def initializer(self, *, backward: bool = False) -> AbstractContextManager[object]:
        return self._formulation.initializer(backward=backward)

    def prepare(self, net: nn.Module) -> Prepared:
        prepared = self._formulation.prepare(net)

        def at(logsnr: Tensor, label: Tensor | None) -> BatchEnergy:
            self._seen[-1].label = label
            return _WatchedEnergy(prepared(logsnr, label), self._seen[-1])

        return at

    @property
    def chain(self) -> Chain:
        return self._chain

    def _chain(self, target: RecoveryTarget, y: Tensor, **options: Any) -> Tensor:
        seen, energy = self._seen[-1], target.f
        assert isinstance(energy, _WatchedEnergy)
        seen.x_t = target.x_t
        seen.visit(energy.of, y)
        target = replace(target, gradient=energy.of.gradient)  # a captured chain wants to know what is in it
        return self._formulation.chain(target, y, record=lambda step, y: seen.visit(energy.of, y), **options)


@dataclass(frozen=True)
class _WatchedEnergy:
    of: BatchEnergy
    seen: Seen

    def __call__(self, y: Tensor) -> Tensor:
        return self.of(y)

    def both(self, y_pos: Tensor, y_neg: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.seen
        f_pos, f_neg = self.of.both(y_pos, y_neg)
        seen.y_pos, seen.y_neg, seen.f_pos, seen.f_neg = y_pos, y_neg, f_pos.detach(), f_neg.detach()
        if not y_neg.equal(seen.y[-1]):  # one shot: no chain has told it
            seen.visit(self.of, y_neg)
        return f_pos, f_neg

    @property
    def gradient(self) -> Callable[[Tensor], Tensor]:
        return self._gradient

    def _gradient(self, y: Tensor) -> Tensor:
        """Asked outside a chain by the one-shot draw, at x_t."""
        self.seen.x_t = y
        self.seen.visit(self.of, y)
        return self.of.gradient(y)

    def backward(self, loss: Tensor) -> None:
        self.of.backward(loss)
