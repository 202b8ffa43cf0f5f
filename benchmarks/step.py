"""One training step, one chain and one sampling batch: fast against plain, with the bars that the project sets itself.

    python benchmarks/step.py [--only NAME ...] [--out FOLDER]

Without a GPU the cases of one CPU thread run, with one those of the GPU. Results go to results/step-MACHINE.json; a
case that runs again replaces its old result. Exit code 1 where a bar was missed. Needs neither Ray nor MLflow.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cdrl import config as configuration
from cdrl import storage
from cdrl.bench.compare import NUM_IMAGES, Report, compare
from cdrl.bench.machine import commit, result_file, settle
from cdrl.bench.meters import meter_of
from cdrl.bench.parity import parity
from cdrl.bench.subject import Subject
from cdrl.bench.table import report_table
from cdrl.method.formulation import Plain

HERE = Path(__file__).parent
SMALL = ("energy.width=64", "energy.num_blocks=2", "initializer.width=32")
COMPILED = ("compute.compile=always",)
BF16 = ("compute.chain_precision=bf16", "compute.initializer_precision=bf16")
HOPPER = ("compute.chain_precision=fp16", "compute.loss_precision=tf32", "compute.initializer_precision=tf32")

Measure = Callable[[Report], float]


@dataclass(frozen=True)
class Bar:
    """What a case must reach: at least `limit`, or at most where `at_most`."""

    name: str
    limit: float
    measure: Measure
    at_most: bool = False

    def check(self, report: Report) -> dict[str, Any]:
        """The bar with what was measured."""
        measured = self.measure(report)
        held = measured <= self.limit if self.at_most else measured >= self.limit
        sign = "at most" if self.at_most else "at least"
        return {"name": self.name, sign: self.limit, "measured": round(measured, 3), "held": held}


@dataclass(frozen=True)
class Case:
    """One configuration of both sides."""

    device: str
    batch_size: int
    repeats: int
    samplings: int
    overrides: tuple[str, ...]
    bars: tuple[Bar, ...]


def speedup(of: str, limit: float) -> Bar:
    """The fast side fits `limit` times into the plain one."""
    return Bar(f"{of}, plain / fast", limit, lambda report: report.speedup[of].median)


def utilisation(of: str, limit: float) -> Bar:
    """The fast side's share of the peak."""
    return Bar(f"{of}, share of the peak", limit, lambda report: report.figures["fast"].utilisation[of])


def sampling_time(limit: float) -> Bar:
    """Seconds for all the images of a Frechet distance, at the rate of one batch."""
    name = f"seconds for {NUM_IMAGES:,} samples"
    return Bar(name, limit, lambda report: NUM_IMAGES / (report.figures["fast"].samples_per_s or 0), at_most=True)


CASES = {
    "small-fp32": Case(
        *("cpu", 8, 9, 5, SMALL + COMPILED),
        bars=(speedup("update", 1.2), speedup("chain", 1.3), speedup("sampling", 1.3)),
    ),
    "small-bf16": Case(
        *("cpu", 8, 9, 5, SMALL + COMPILED + BF16),
        bars=(speedup("chain", 2.0), speedup("sampling", 2.0)),
    ),
    "full-bf16": Case("cpu", 4, 3, 0, (*BF16, "compute.loss_precision=bf16"), bars=(speedup("update", 1.9),)),
    "full-256": Case(
        *("cuda", 256, 9, 3, HOPPER),
        bars=(speedup("update", 2.0), utilisation("chain", 0.45), utilisation("update", 0.38), sampling_time(300)),
    ),
    "full-32": Case("cuda", 32, 9, 3, HOPPER, bars=(speedup("update", 2.5),)),
}


def main() -> int:
    """Run the cases of this machine, one after the other; what is measured is written after each."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = [name for name, case in CASES.items() if case.device == device.type]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="cases; default: all of this machine")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    arguments = parser.parse_args()
    settle(device)
    missed = 0
    for name in arguments.only:
        result, report = run(name, CASES[name], device)
        write(result, report, name, arguments.out)
        missed += sum(not bar["held"] for bar in result["bars"])
    return min(missed, 1)


def run(name: str, case: Case, device: torch.device) -> tuple[dict[str, Any], Report]:
    """Measure one case, print its table and its bars."""
    console, start = Console(width=120), time.monotonic()

    def progress(what: str, done: int, total: int) -> None:
        print(f"{name}: {time.monotonic() - start:4.0f} s  {what} {f'{done}/{total}' if total else ''}", flush=True)

    config = configuration.load("cifar10", case.overrides)
    sizes: dict[str, Any] = {"batch_size": case.batch_size, "repeats": case.repeats, "samplings": case.samplings}
    report = compare(config, device=device, progress=progress, **sizes)
    console.print(report_table(report), highlight=False)
    result = {"overrides": list(case.overrides), **report.plain_values(), "bars": [b.check(report) for b in case.bars]}
    if device.type == "cuda":
        result["parity"] = errors(Subject(config, Plain(), 32, device))
        console.print(result["parity"], highlight=False)
    for bar in result["bars"]:
        console.print(*(f"{key} {value}" for key, value in bar.items()), sep=", ", highlight=False)
    return result, report


def errors(subject: Subject) -> dict[str, Any]:
    """Relative errors of each format against float32 after 100 updates; before the first they are larger."""
    meter = meter_of(subject.device)
    for _ in range(100):
        subject.update(meter)
    return {name: asdict(parity(subject, name, subject.batch_size)) for name in ("tf32", "fp16", "bf16")}


def write(result: dict[str, Any], report: Report, name: str, folder: Path) -> None:
    """Put a result into this machine's file."""
    path = result_file(folder, "step", report.machine)
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = {"commit": commit(), **result}
    storage.write_bytes(str(path), (json.dumps(results, indent=1) + "\n").encode())
    print(f"{name}: written to {path}")


if __name__ == "__main__":
    sys.exit(main())
