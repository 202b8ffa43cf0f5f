"""A sweep under ASHA whose process is killed on the way, and continued by the same command."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from cdrl.config import load
from cdrl.data.prepare import prepare
from cdrl.tracking import server
from cdrl.tuning.notes import Notes
from cdrl.tuning.ranking import Ranking
from tests.training_parts import TINY
from tests.training_runs import CDRL

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

NUM_UPDATES = 24
PATIENCE_S = 600.0
SPACE = {
    "settings": {
        "training.num_updates": NUM_UPDATES,
        "training.initializer_only_fraction": 0.25,
        "run.checkpoint_every": 8,
        "run.score_samples": 40,
        "run.sample_every": 100,
        "run.log_every": 1,
    },
    "num_trials": 4,
    "first_rung": 0.3,
    "parameters": {
        "schedule.num_levels": {"low": 2, "high": 3},
        "schedule.step_scale": {"low": 2e-5, "high": 1e-3, "log": True, "per_level": True},
    },
}


class Tune:
    """`cdrl tune` as a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.directory = folder, folder / "runs" / "sweep"
        (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"evaluation": {"extractor": "classifier"}}))
        (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
        self.log = folder / "log.txt"
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        where = ("--set", f"data.uri={self.folder}/digits", "--set", f"run.root={self.folder}/runs")
        command = [CDRL, "tune", f"{self.folder}/tiny.yaml", "--space", f"{self.folder}/space.yaml", "--name", "sweep"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen([*command, *where], stdout=log, stderr=log, start_new_session=True)
        return self.process

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s, self.log.read_text()
            time.sleep(0.1)

    def notes(self) -> Notes:
        return Notes(self.directory / "trials")

    def runs(self) -> list[Run]:
        client = MlflowClient(server.default_uri(self.folder / "runs"))
        return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def test_a_sweep_that_is_killed_goes_on_with_the_same_command(tmp_path: Path) -> None:
    prepare("digits", str(tmp_path / "digits"))
    tune = Tune(tmp_path)

    def one_is_over() -> bool:
        assert tune.process.poll() is None, tune.log.read_text()
        journal = tune.directory / "trials" / "journal.jsonl"
        return journal.is_file() and b'"kind": "end"' in journal.read_bytes()

    tune.wait(one_is_over)
    family = psutil.Process(tune.process.pid).children(recursive=True)
    tune.process.send_signal(signal.SIGKILL)
    tune.process.wait()
    before = tune.notes().trials
    assert len(before) < 4 or any(trial.state == "running" for trial in before.values()), "it had not come to its end"
    known = {run.info.run_name: run.info.run_id for run in tune.runs()}

    tune.start()
    code = tune.process.wait(PATIENCE_S)
    told = tune.log.read_text()
    assert code == 0 and "Traceback" not in told, told
    assert "goes on after" in told

    ranking = Ranking.model_validate_json((tune.directory / "ranking.json").read_bytes())
    assert sorted(place.trial for place in ranking.places) == [0, 1, 2, 3] and ranking.best is not None
    assert {place.state for place in ranking.places} <= {"complete", "stopped"}
    for number, trial in before.items():
        after = tune.notes().trials[number]
        assert after.parameters == trial.parameters and after.scores[: len(trial.scores)] == trial.scores
    best = load(str(tune.directory / "best.yaml"))
    assert best.schedule.num_levels == ranking.best.parameters.get("schedule.num_levels", 2)
    for name in ("parallel", "importance", "schedule"):
        assert (tune.directory / f"{name}.png").stat().st_size > 5000

    runs = {run.info.run_name: run for run in tune.runs()}
    assert sorted(runs) == ["sweep", "t000", "t001", "t002", "t003"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parents = {run.data.tags.get("mlflow.parentRunId") for name, run in runs.items() if name != "sweep"}
    assert parents == {runs["sweep"].info.run_id}
    assert all(runs[name].info.run_id == run_id for name, run_id in known.items()), "a restart is the same run"
    scored = {place.trial: place.fd for place in ranking.places}
    assert all(runs[f"t{number:03d}"].data.metrics["quick_score"] == fd for number, fd in scored.items())
    assert json.loads((tune.directory / "sweep.json").read_text())["name"] == "sweep"

    tune.wait(lambda: psutil.wait_procs(family, timeout=0)[1] == [])  # what the killed one had started is gone
