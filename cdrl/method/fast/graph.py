r"""A step of a chain as one CUDA graph: a hundred and more kernel launches, or one replay.

The step is `langevin`'s own, captured on copies of its inputs; noise is drawn outside, so that the draws are those of
the plain chain. A capture serves every chain of the same shapes, formats and numbers, whatever its length.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cdrl.method.fast.tensors import map_tensors, tensors_of
from cdrl.method.langevin import RecoveryTarget, langevin
from cdrl.method.rng import Rng

__all__ = ["GraphedChain", "capture"]

MAX_KEPT = 16  # captures; each keeps the activations of a step

Capture = Callable[[Callable[[], None], torch.device], Callable[[], None]]
"""Run a function that works in place on fixed memory of a device; give what runs it again."""


def capture(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A `Capture` as a CUDA graph, after two runs aside, in which kernels are compiled and libraries set up."""
    with torch.cuda.device(device):  # a graph of another device than the tensors' would be empty
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                function()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # other threads of a server or a Ray worker may use CUDA meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            function()
    return graph.replay


@dataclass(frozen=True)
class _Step:
    """All that a step depends on; `y` is where the chain stands, and moves."""

    gradient: Any
    transition: Any
    x_t: Tensor | None
    y: Tensor
    noise: Tensor
    base_measure: float
    knobs: tuple[tuple[str, Any], ...]

    def run(self) -> None:
        target = RecoveryTarget(_no_value, self.transition, self.x_t, self.base_measure, self.gradient)
        self.y.copy_(langevin(target, self.y, num_steps=1, rng=_Drawn(self.noise), **dict(self.knobs)))


@dataclass
class GraphedChain:
    """`langevin` with the same arguments and result; one chain at a time, since captures own their memory."""

    capture: Capture = capture
    _kept: OrderedDict[_Step, tuple[_Step, Callable[[], None]]] = field(default_factory=OrderedDict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

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
        if num_steps <= 0:
            return langevin(target, y, num_steps=num_steps, rng=rng)
        numbers = (target.base_measure, tuple(sorted(knobs.items())))
        step = _Step(target.gradient, target.transition, target.x_t, y, torch.empty_like(y), *numbers)
        with self._lock, torch.no_grad():
            fixed, replay = self._fixed(step)
            for number in range(1, num_steps + 1):
                fixed.noise.copy_(rng.normal(y))
                replay()
                if constrain is not None:
                    fixed.y.copy_(constrain(fixed.y))
                if record is not None:
                    record(number, fixed.y.clone())
            return fixed.y.clone()

    def _fixed(self, step: _Step) -> tuple[_Step, Callable[[], None]]:
        """A captured step of this kind, with these inputs in its memory."""
        key = map_tensors(step, lambda tensor: (tensor.shape, tensor.stride(), tensor.dtype, tensor.device))
        if key not in self._kept:
            fixed = map_tensors(step, lambda tensor: _dense(tensor).clone())
            self._kept[key] = fixed, self.capture(fixed.run, step.y.device)
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        fixed, replay = self._kept[key]
        by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}  # copied together, in few launches
        for memory, tensor in zip(tensors_of(fixed), tensors_of(step), strict=True):
            memories, tensors = by_dtype.setdefault(tensor.dtype, ([], []))
            memories.append(memory)
            tensors.append(_dense(tensor))
        for memories, tensors in by_dtype.values():
            torch._foreach_copy_(memories, tensors)
        return fixed, replay


class _Drawn(Rng):
    """A draw that was made before."""

    def __init__(self, noise: Tensor) -> None:
        self._noise = noise

    def normal(self, like: Tensor) -> Tensor:
        del like
        return self._noise


def _dense(tensor: Tensor) -> Tensor:
    """The tensor with memory for every row; the constants of a batch at one level share theirs."""
    return tensor.contiguous() if 0 in tensor.stride() else tensor


def _no_value(y: Tensor) -> Tensor:
    raise AssertionError("a chain needs no value of f")
