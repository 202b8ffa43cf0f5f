"""One configuration in the plain and in the fast formulation, side by side in one run.

Updates alternate in the order plain, fast, fast, plain, ..., so that whatever else happens on the machine meets both.
"""

import resource
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from cdrl.bench.counting import Count
from cdrl.bench.machine import describe, peak_flops
from cdrl.bench.meters import FlopMeter, meter_of
from cdrl.bench.subject import Subject
from cdrl.build import build_formulation
from cdrl.config import Config
from cdrl.errors import ConfigError
from cdrl.method.fast import Fast
from cdrl.method.formulation import Formulation, Plain

__all__ = ["NUM_IMAGES", "Counts", "Figures", "Progress", "Report", "Spread", "compare"]

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total); total 0 = unknown."""

NUM_IMAGES = 50_000
"""Images of a Frechet distance by the usual protocol."""


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of several measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """That of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Counts:
    """Counted with nothing compiled: FLOPs for one image, kernels for a batch of any size."""

    update_flops: float
    chain_flops: float
    sample_flops: float
    update_kernels: int
    sampling_kernels: int


@dataclass(frozen=True)
class Figures:
    """One formulation.

    Attributes:
        update_s: one update.
        chain_s: the part of it that prepares weights and walks K steps.
        phases_s: median of each phase.
        rounds_s: every measurement of update, chain and sampling, in order.
        sampling_s: one batch, x_T to x_0; None where it was not asked for.
        chain_steps_per_s: Langevin steps of a batch; times B are the steps of single images.
        utilisation: FLOPs per second as a share of the peak: of update, chain and sampling.
        peak_memory_bytes: of updates, on a GPU; None on a CPU, where only the process has a peak.
    """

    update_s: Spread
    chain_s: Spread
    phases_s: dict[str, float]
    rounds_s: dict[str, list[float]]
    sampling_s: Spread | None
    images_per_s: float
    chain_steps_per_s: float
    samples_per_s: float | None
    counts: Counts
    utilisation: dict[str, float]
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Report:
    """Both formulations, and how often the fast one fits into the plain one.

    Attributes:
        speedup: of update, chain and sampling: plain over fast, round by round.
        peak: what utilisation refers to.
        peak_rss_bytes: resident memory of the process at its highest, with both sides in it.
    """

    name: str
    device: str
    batch_size: int
    num_steps: int
    repeats: int
    fast: dict[str, Any]
    figures: dict[str, Figures]
    speedup: dict[str, Spread]
    peak: str
    peak_rss_bytes: int
    machine: dict[str, Any]

    def plain_values(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass
class _Side:
    """A subject with what was measured of it."""

    subject: Subject
    counts: Counts
    peak_memory_bytes: int | None
    updates: list[dict[str, float]]
    draws: list[float]

    @property
    def seconds(self) -> dict[str, list[float]]:
        """Of every round."""
        found = {
            "update": [sum(phases.values()) for phases in self.updates],
            "chain": [phases["prepare"] + phases["chain"] for phases in self.updates],
        }
        return found | ({"sampling": self.draws} if self.draws else {})

    def figures(self, peak: float | None) -> Figures:
        batch, K = self.subject.batch_size, self.subject.config.training.num_steps
        spreads = {what: Spread.of(values) for what, values in self.seconds.items()}
        counts = self.counts
        flops = {"update": counts.update_flops, "chain": counts.chain_flops, "sampling": counts.sample_flops}
        sampling = spreads.get("sampling")
        return Figures(
            update_s=spreads["update"],
            chain_s=spreads["chain"],
            phases_s={phase: statistics.median(update[phase] for update in self.updates) for phase in self.updates[0]},
            rounds_s=self.seconds,
            sampling_s=sampling,
            images_per_s=batch / spreads["update"].median,
            chain_steps_per_s=K / spreads["chain"].median,
            samples_per_s=None if sampling is None else batch / sampling.median,
            counts=counts,
            utilisation={what: batch * flops[what] / s.median / peak for what, s in spreads.items() if peak},
            peak_memory_bytes=self.peak_memory_bytes,
        )


def compare(
    config: Config,
    *,
    batch_size: int,
    device: torch.device,
    repeats: int = 9,
    samplings: int = 3,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Measure a configuration in both formulations; call `machine.settle` before.

    Args:
        config: of the run; `compute` is that of the fast side.
        batch_size: images of an update and of a sampling batch.
        repeats: updates of each side after the warm-up.
        samplings: sampling batches of each side after the warm-up; 0 = none.

    Raises:
        ConfigError: a configuration that has no fast side or no chain, or whose nets do not go together.
    """
    fast = build_formulation(config.compute, device)
    if not isinstance(fast, Fast):
        raise ConfigError("compute.formulation: a benchmark measures fast beside plain, expected fast, got plain")
    sides: dict[str, _Side] = {}
    formulations: dict[str, Formulation] = {"plain": Plain(), "fast": fast}
    for name, formulation in formulations.items():
        progress(f"{name}: warming up", 0, 0)
        sides[name] = _warm(config, formulation, batch_size, device, samples=samplings > 0)
        progress(f"{name}: warming up", 1, 1)
    meter = meter_of(device)
    for number in range(repeats):
        for side in _in_turn(sides, number):
            side.updates.append(side.subject.update(meter))
        progress("updates", number + 1, repeats)
    for number in range(samplings):
        for side in _in_turn(sides, number):
            side.draws.append(side.subject.draw(meter))
        progress("sampling batches", number + 1, samplings)
    peak, what = peak_flops(device, torch.bfloat16 if fast.chain_precision == "bf16" else torch.float32)
    plain, quick = (sides[name].seconds for name in ("plain", "fast"))
    return Report(
        name=config.name,
        device=device.type,
        batch_size=batch_size,
        num_steps=config.training.num_steps,
        repeats=repeats,
        fast=asdict(fast),
        figures={name: side.figures(peak) for name, side in sides.items()},
        speedup={of: _ratio(plain[of], quick[of]) for of in plain},
        peak=what,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        machine=describe(device),
    )


def _in_turn(sides: dict[str, _Side], number: int) -> list[_Side]:
    both = list(sides.values())
    return both[::-1] if number % 2 else both


def _ratio(plain: list[float], fast: list[float]) -> Spread:
    return Spread.of([p / f for p, f in zip(plain, fast, strict=True)])


def _warm(
    config: Config, formulation: Formulation, batch_size: int, device: torch.device, *, samples: bool
) -> _Side:
    """Build, compile, capture, make the optimizers' state; then count. The memory is that of this side alone."""
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    subject, meter = Subject(config, formulation, batch_size, device), meter_of(device)
    for _ in range(2):
        subject.update(meter)
    peak_memory_bytes = torch.cuda.max_memory_allocated() - before if on_gpu else None
    if samples:
        subject.draw(meter)
    return _Side(subject, _count(subject), peak_memory_bytes, [], [])


def _count(subject: Subject) -> Counts:
    """Of one image: what a compiler makes of it depends on the machine, what it is asked to do does not."""
    formulation = subject.formulation
    if isinstance(formulation, Fast):
        formulation = replace(formulation, compile=False, graph=False)
    with Count() as update:
        flops = subject.update(FlopMeter(update), formulation=formulation, batch_size=1)
    with Count() as draw:
        subject.draw(FlopMeter(draw), formulation=formulation, batch_size=1)
    return Counts(
        update_flops=update.flops,
        chain_flops=flops["chain"],
        sample_flops=draw.flops,
        update_kernels=update.kernels,
        sampling_kernels=draw.kernels,
    )
