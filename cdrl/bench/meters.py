"""What a piece of code costs, read at the borders of its parts: seconds of a CPU, seconds of a GPU, or FLOPs."""

import time
from collections import defaultdict
from typing import Any, Protocol

import torch

from cdrl.bench.counting import Count

__all__ = ["CpuMeter", "CudaMeter", "FlopMeter", "Laps", "Meter", "meter_of"]


class Meter(Protocol):
    """Something that only ever grows."""

    def read(self) -> Any:
        """How far it is."""

    def between(self, before: Any, after: Any) -> float:
        """How far it went from one reading to another."""


class CpuMeter:
    """Seconds of this process, all threads together: what others do on the machine does not count."""

    def read(self) -> float:
        return time.process_time()

    def between(self, before: float, after: float) -> float:
        return after - before


class CudaMeter:
    """Seconds on the GPU's own clock. Reading it queues an event, so the host runs ahead as it does without a meter."""

    def read(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, before: torch.cuda.Event, after: torch.cuda.Event) -> float:
        after.synchronize()
        return before.elapsed_time(after) / 1e3


class FlopMeter:
    """FLOPs of an open count."""

    def __init__(self, count: Count) -> None:
        self._count = count

    def read(self) -> int:
        return self._count.flops

    def between(self, before: int, after: int) -> float:
        return after - before


def meter_of(device: torch.device) -> Meter:
    """The clock of a device."""
    return CudaMeter() if device.type == "cuda" else CpuMeter()


class Laps:
    """A meter that starts now; `laps(phase)` books what has passed since the last call under `phase`."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._readings: list[tuple[str, Any]] = [("", meter.read())]

    def __call__(self, phase: str) -> None:
        self._readings.append((phase, self._meter.read()))

    def spent(self) -> dict[str, float]:
        """What each phase took, in order of their first end."""
        spent: dict[str, float] = defaultdict(float)
        for (_, before), (phase, after) in zip(self._readings, self._readings[1:], strict=False):
            spent[phase] += self._meter.between(before, after)
        return dict(spent)
