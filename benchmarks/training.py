"""What Ray, workers and checkpoints cost a training, with the bars that the project sets itself.

    python benchmarks/training.py [--rounds 3] [--out FOLDER]

Seconds per update of the digits preset, from when its tenth update was logged to its end: the loop alone in a process,
beside the same under Ray Train with checkpoints; and one pair for each level on one worker, beside two. The sides take
turns. And how long a checkpoint holds up the training, beside the time between two. Results go to
results/training-MACHINE.json. Exit code 1 where a bar was missed. Wall-clock time: wants an idle machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

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
WARM = 10
SETTINGS = (
    "training.initializer_only_fraction=0",
    f"run.log_every={WARM}",
    "run.sample_every=1000000",
    "run.score_samples=0",
    "evaluation.num_samples=100",
)
BARS = {"ray_over_bare": ("at most", 1.05), "two_over_one": ("at least", 1.8), "stall_share": ("at most", 0.02)}


def bare(config: Config) -> float:
    """Seconds per update of the loop alone, in this process."""
    dataset = Dataset.of(config.data)
    state = TrainState(config, Grid(1, config.training.num_chunks), torch.device("cpu"))
    marks: list[float] = []
    ignore = Hooks(lambda metrics: marks.append(time.perf_counter()), lambda: False, lambda: None, lambda: None)
    train(state, dataset, ignore)
    return (marks[-1] - marks[0]) / (config.training.num_updates - WARM)


def under_ray(config: Config) -> tuple[float, list[float]]:
    """Seconds per update of a run, and those for which each checkpoint but the last held it up."""
    outcome = launch(config, console=Console(quiet=True))
    assert outcome.complete
    record, num_updates = outcome.record, config.training.num_updates
    client = MlflowClient(record.tracking_uri)
    loss = "loss_energy" if config.pairs == "shared" else "pair_0/loss_energy"
    seen_s = {metric.step: metric.timestamp / 1e3 for metric in client.get_metric_history(record.mlflow_run_id, loss)}
    stalls = client.get_metric_history(record.mlflow_run_id, "checkpoint_stall_s")
    return (
        (seen_s[num_updates] - seen_s[WARM]) / (num_updates - WARM),
        [stall.value for stall in stalls if stall.step < num_updates],
    )


def main() -> int:
    """Measure, print and write; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--bare", nargs="+", help=argparse.SUPPRESS)  # this script's own child
    arguments = parser.parse_args()
    settle(torch.device("cpu"))
    if arguments.bare:
        print(bare(configuration.load("digits", arguments.bare)))
        return 0
    machine = describe(torch.device("cpu"))
    found: dict[str, list[float]] = {"bare": [], "ray": [], "one": [], "two": [], "stall": []}
    with tempfile.TemporaryDirectory(prefix="cdrl-bench-") as name:
        prepare("digits", f"{name}/digits")

        def settings(run: str, *more: str) -> list[str]:
            return [*SETTINGS, f"data.uri={name}/digits", f"run.root={name}", f"run.name={run}", *more]

        with connected(ClusterConfig(num_workers=2)):
            for number in range(arguments.rounds):
                short = ("training.num_updates=410", "cluster.num_workers=1", "run.checkpoint_every=200")
                child = [sys.executable, __file__, "--bare", *settings("none", *short)]
                found["bare"].append(float(subprocess.run(child, capture_output=True, text=True, check=True).stdout))
                ray_s, stalls = under_ray(configuration.load("digits", settings(f"ray-{number}", *short)))
                found["ray"].append(ray_s)
                found["stall"] += stalls
                for side, workers in (("one", 1), ("two", 2)):
                    more = ("training.num_updates=110", f"cluster.num_workers={workers}")
                    chosen = settings(f"{side}-{number}", *more)
                    found[side].append(under_ray(configuration.load("digits-per-level", chosen))[0])
                print({side: round(values[-1], 4) for side, values in found.items()}, flush=True)
    middle = {side: median(values) for side, values in found.items()}
    preset = configuration.load("digits")
    measured = {
        "ray_over_bare": middle["ray"] / middle["bare"],
        "two_over_one": middle["one"] / middle["two"],
        "stall_share": middle["stall"] / (preset.run.checkpoint_every * middle["ray"]),
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
