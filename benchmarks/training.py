"""What Ray, workers and checkpoints cost a training, with the bars that the project sets itself.

    python benchmarks/training.py [--rounds 5] [--out FOLDER]

Seconds per update of the digits preset, once Ray has started all that it starts: the loop alone in a process beside the
same under Ray Train with checkpoints, at the same time, each on a core; and one pair for each level, on one worker and
on two in turns. A ratio is the median over the rounds, since shared machines are faster and slower by the minute. And
how long a checkpoint holds up the training, beside the time between two. Results go to results/training-MACHINE.json.
Exit code 1 where a bar was missed. Wall-clock time: wants two idle cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from operator import truediv
from pathlib import Path
from statistics import median
from typing import NamedTuple, Self

import numpy as np
import torch
from mlflow import MlflowClient
from rich.console import Console

from cdrl import config as configuration
from cdrl import storage
from cdrl.bench.machine import commit, describe, result_file, settle
from cdrl.config import ClusterConfig, Config
from cdrl.data import Dataset
from cdrl.data.prepare import prepare
from cdrl.session import connected
from cdrl.training.grid import Grid
from cdrl.training.launch import launch
from cdrl.training.loop import Hooks, train
from cdrl.training.state import TrainState

HERE = Path(__file__).parent
WARM = 40  # updates that are not counted
NICENESS = 15  # Ray's workers have it
SETTINGS = (
    "training.initializer_only_fraction=0",
    "run.sample_every=1000000",
    "run.score_samples=0",
    "evaluation.num_samples=100",
)
BARS = {"ray_over_bare": ("at most", 1.05), "two_over_one": ("at least", 1.8), "stall_share": ("at most", 0.02)}


def bare(config: Config) -> None:
    """The loop alone, in this process: prints the update and the time of each record, until it is ended."""
    os.nice(NICENESS - os.nice(0))
    dataset = Dataset.of(config.data)
    state = TrainState(config, Grid(1, config.training.num_chunks), torch.device("cpu"))

    def log(metrics: object) -> None:
        print(state.step, time.time(), flush=True)

    train(state, dataset, Hooks(log, lambda: False, lambda: None, lambda: None))


class Bare:
    """The loop alone in a process beside this one, while the block lasts."""

    def __init__(self, settings: list[str]) -> None:
        self.command = [sys.executable, __file__, "--bare", *settings, "training.num_updates=100000"]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        records = [line.split() for line in self.process.communicate()[0].splitlines()]
        self.steps, self.times_s = [int(step) for step, _ in records], [float(time_s) for _, time_s in records]

    def seconds(self, begin_s: float, end_s: float) -> float:
        """Seconds per update from one point of time to another."""
        first, last = np.interp([begin_s, end_s], self.times_s, self.steps)
        return float((end_s - begin_s) / (last - first))


class Measured(NamedTuple):
    """A run under Ray: where its counted updates begin and end, and for how long its checkpoints held it up."""

    begin_s: float
    end_s: float
    num_updates: int
    stalls_s: list[float]

    @property
    def seconds(self) -> float:
        return (self.end_s - self.begin_s) / self.num_updates


def under_ray(config: Config) -> Measured:
    """A run on Ray workers, of which all checkpoints but the last are followed by more updates."""
    outcome = launch(config, console=Console(quiet=True))
    assert outcome.complete
    record, num_updates = outcome.record, config.training.num_updates
    client = MlflowClient(record.tracking_uri)
    loss = "loss_energy" if config.pairs == "shared" else "pair_0/loss_energy"
    seen_s = {metric.step: metric.timestamp / 1e3 for metric in client.get_metric_history(record.mlflow_run_id, loss)}
    stalls = client.get_metric_history(record.mlflow_run_id, "checkpoint_stall_s")
    stalls_s = [stall.value for stall in stalls if stall.step < num_updates]
    return Measured(seen_s[WARM], seen_s[num_updates], num_updates - WARM, stalls_s)


def main() -> int:
    """Measure, print and write; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side runs")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--bare", nargs="+", help=argparse.SUPPRESS)  # this script's own child
    arguments = parser.parse_args()
    settle(torch.device("cpu"))
    if arguments.bare:
        bare(configuration.load("digits", arguments.bare))
        return 0
    machine = describe(torch.device("cpu"))
    found: dict[str, list[float]] = {"bare": [], "ray": [], "one": [], "two": [], "stall": []}
    with tempfile.TemporaryDirectory(prefix="cdrl-bench-") as name:
        prepare("digits", f"{name}/digits")

        def settings(run: str, *more: str) -> list[str]:
            return [*SETTINGS, f"data.uri={name}/digits", f"run.root={name}", f"run.name={run}", *more]

        with connected(ClusterConfig(num_workers=2)):
            for number in range(arguments.rounds):
                short = ("training.num_updates=220", "cluster.num_workers=1", "run.checkpoint_every=100")
                with Bare(settings("none", *short)) as beside:
                    run = under_ray(configuration.load("digits", settings(f"ray-{number}", *short)))
                found["ray"].append(run.seconds)
                found["bare"].append(beside.seconds(run.begin_s, run.end_s))
                found["stall"] += run.stalls_s
                for side, workers in (("one", 1), ("two", 2)):
                    more = ("training.num_updates=100", f"cluster.num_workers={workers}")
                    chosen = settings(f"{side}-{number}", *more)
                    found[side].append(under_ray(configuration.load("digits-per-level", chosen)).seconds)
                print({side: round(values[-1], 4) for side, values in found.items()}, flush=True)
    between_s = configuration.load("digits").run.checkpoint_every * median(found["ray"])
    measured = {
        "ray_over_bare": median(map(truediv, found["ray"], found["bare"])),
        "two_over_one": median(map(truediv, found["one"], found["two"])),
        "stall_share": median(found["stall"]) / between_s,
    }
    bars = []
    for bar, (sign, limit) in BARS.items():
        held = measured[bar] <= limit if sign == "at most" else measured[bar] >= limit
        bars.append({"name": bar, sign: limit, "measured": round(measured[bar], 4), "held": held})
    seconds = {side: [round(value, 5) for value in values] for side, values in found.items()}
    result = {"commit": commit(), "machine": machine, "seconds": seconds, "bars": bars}
    storage.write_bytes(str(result_file(arguments.out, "training", machine)), json.dumps(result, indent=1).encode())
    print(json.dumps(bars, indent=1))
    return 0 if all(bar["held"] for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
