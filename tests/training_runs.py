"""Real runs on Ray workers: tiny ones, what they leave behind, and `cdrl train` as a process that can be ended."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch
import yaml
from mlflow import MlflowClient

from cdrl import storage
from cdrl.cli import main
from cdrl.config import Config
from cdrl.data import Dataset
from cdrl.method.cooperative import StepMetrics
from cdrl.runs import RunRecord
from cdrl.storage import sha256_file
from cdrl.training.launch import launch
from cdrl.training.loop import train
from cdrl.training.sentinel import Breach
from tests.training_parts import TINY, quiet, save, tiny_state

CDRL = str(Path(sys.executable).parent / "cdrl")
PATIENCE_S = 240.0


def tiny_file(folder: Path) -> str:
    """The tiny configuration as a file for the command line."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


def trained(config: Config) -> RunRecord:
    """The record of a run that is trained to its end here and now."""
    outcome = launch(config)
    assert outcome.complete and outcome.step == config.training.num_updates
    return outcome.record


class Straight(NamedTuple):
    """What a run is measured by.

    Attributes:
        digests: SHA-256 of every weights file at its end.
        metrics: name -> update -> value.
    """

    digests: dict[str, str]
    metrics: dict[str, dict[int, float]]


def straight(config: Config, folder: Path) -> Straight:
    """The bare loop on one pair, in this process: no Ray, and nothing happens to it."""
    torch.set_num_threads(1)
    dataset, state = Dataset.of(config.data), tiny_state(config)
    seen: dict[str, dict[int, float]] = {}

    def log(metrics: dict[int, StepMetrics]) -> None:
        for name, value in vars(metrics[0]).items():
            seen.setdefault(name, {})[state.step] = value.item()

    def judge() -> Breach | None:
        assert state.sentinel is not None
        return state.sentinel.judge(state.sentinel.table(), state.step)

    assert train(state, dataset, replace(quiet(), log=log, judge=judge)) is None
    save(state, dataset, folder)
    return Straight({path.name: sha256_file(path) for path in folder.glob("*.safetensors")}, seen)


def digests(record: RunRecord) -> dict[str, str]:
    """SHA-256 of every weights file of the last checkpoint: all that an update changes."""
    folder = record.checkpoint("last")
    names = [name for name in storage.listing(folder) if name.endswith(".safetensors")]
    assert "sentinel.safetensors" in names and len(names) % 2 == 1  # two of each pair
    return {name: hashlib.sha256(storage.read_bytes(storage.join(folder, name))).hexdigest() for name in names}


def history(record: RunRecord, name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric, in the order in which they were measured."""
    found = MlflowClient(record.tracking_uri).get_metric_history(record.mlflow_run_id, name)
    return [(metric.step, metric.value) for metric in sorted(found, key=lambda metric: metric.timestamp)]


def workers() -> list[psutil.Process]:
    """The training workers of Ray sessions that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("ray::RayTrain"):
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def until(condition: Callable[[], object], why: Callable[[], str]) -> None:
    """Wait for something to become true, for minutes at most."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(0.02)


class Train:
    """`cdrl train` as a process group of its own, as a shell would start it.

    Attributes:
        directory: the run's folder.
        log: what the process says.
    """

    def __init__(self, source: str, settings: list[str], *options: str) -> None:
        named = dict(setting.split("=", 1) for setting in settings)
        root, name = Path(named["run.root"]), named["run.name"]
        earlier = len(list(root.parent.glob(f"{name}-*.log")))
        self.directory, self.log = root / name, root.parent / f"{name}-{earlier}.log"
        given = [part for setting in settings for part in ("--set", setting)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [CDRL, "train", source, *given, *options], stdout=log, stderr=log, start_new_session=True
            )
        self.family: list[psutil.Process] = []

    def wait(self, condition: Callable[[], object]) -> None:
        """Until the condition holds; the process must live that long."""

        def ended_or_holds() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return bool(condition())

        until(ended_or_holds, self.log.read_text)
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    def wait_for_checkpoint(self, step: int) -> None:
        """Until a checkpoint of this update or a later one stands below the run's local folder."""
        folders = self.directory.glob
        self.wait(lambda: any(int(path.parent.name[5:13]) >= step for path in folders("step_*/state.json")))

    def wait_for_picture(self, step: int) -> None:
        """Until the samples of that update are here."""
        self.wait((self.directory / "samples" / f"{step:08d}.png").exists)

    def send(self, number: signal.Signals) -> None:
        """A signal to the process group, as a terminal sends it."""
        os.killpg(self.process.pid, number)

    def end(self, number: signal.Signals | None = None) -> int:
        """The exit code, after a signal if one is given; no process of the group stays behind."""
        if number is not None:
            self.send(number)
        code = self.process.wait(PATIENCE_S)
        _, left = psutil.wait_procs(self.family, timeout=30)
        for process in left:
            process.kill()
        assert left == [], self.log.read_text()
        return code


def command(name: str, source: str, *settings: str) -> int:
    """The exit code of `cdrl NAME SOURCE --set ...` in this process, so in its Ray session."""
    given = [part for setting in settings for part in ("--set", setting)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cdrl", name, source, *given])
        with pytest.raises(SystemExit) as caught:
            main()
    return int(caught.value.code or 0)
