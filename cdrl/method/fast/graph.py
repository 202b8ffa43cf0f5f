r"""A whole chain as one CUDA graph: K steps are some thousand kernel launches, or one replay.

The chain is `langevin` itself, captured on copies of its inputs; noise is drawn before, so that the draws are those of
the plain chain. A capture is kept for every combination of shapes, formats and numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cdrl.method.fast.tensors import map_tensors, tensors_of
from cdrl.method.langevin import RecoveryTarget, langevin
from cdrl.method.rng import Rng

__all__ = ["GraphedChain", "capture"]

Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""Run a function of fixed memory; give what runs it again, and the tensor where its result then lies."""


def capture(function: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
    """A `Capture` as a CUDA graph, after two runs aside, in which kernels are compiled and chosen."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return graph.replay, result


class Tape(Rng):
    """Draws that were made before, in order."""

    def __init__(self, draws: tuple[Tensor, ...]) -> None:
        self._draws = iter(draws)

    def normal(self, like: Tensor) -> Tensor:
        """The next draw."""
        del like
        return next(self._draws)


@dataclass(frozen=True)
class _Inputs:
    """All that a chain depends on."""

    gradient: Any
    transition: Any
    x_t: Tensor | None
    y: Tensor
    noise: tuple[Tensor, ...]
    base_measure: float
    knobs: tuple[tuple[str, Any], ...]

    def run(self) -> Tensor:
        target = RecoveryTarget(_no_value, self.transition, self.x_t, self.base_measure, self.gradient)
        return langevin(target, self.y, num_steps=len(self.noise), rng=Tape(self.noise), **dict(self.knobs))


@dataclass
class GraphedChain:
    """`langevin` with the same arguments and result; steps that somebody wants to see or bend run one by one."""

    capture: Capture = capture
    _kept: dict[_Inputs, tuple[list[Tensor], Replay, Tensor]] = field(default_factory=dict)

    def __call__(
        self,
        target: RecoveryTarget,
        y: Tensor,
        *,
        num_steps: int,
        rng: Rng,
        constrain: Callable[[Tensor], Tensor] | None = None,
        record: Callable[[int, Tensor], None] | None = None,
        **knobs: float,
    ) -> Tensor:
        """As `langevin`."""
        if num_steps == 0 or constrain is not None or record is not None:
            return langevin(target, y, num_steps=num_steps, rng=rng, constrain=constrain, record=record, **knobs)
        noise = tuple(rng.normal(y) for _ in range(num_steps))
        numbers = (target.base_measure, tuple(sorted(knobs.items())))
        inputs = _Inputs(target.gradient, target.transition, target.x_t, y, noise, *numbers)
        key = map_tensors(inputs, lambda tensor: (tensor.shape, tensor.stride(), tensor.dtype, tensor.device))
        if key not in self._kept:
            fixed = map_tensors(inputs, torch.clone)
            self._kept[key] = (tensors_of(fixed), *self.capture(fixed.run))
        memory, replay, result = self._kept[key]
        torch._foreach_copy_(memory, tensors_of(inputs))
        replay()
        return result.clone()


def _no_value(y: Tensor) -> Tensor:
    raise AssertionError("a chain needs no value of f")
