"""Runs beside a real MLflow server that is frozen, killed and started again: in the end it has the journal exactly."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from cdrl.config import load
from cdrl.data.prepare import Options, prepare
from cdrl.tracking import sender, server
from cdrl.tracking.journal import Journal
from cdrl.tracking.run import TrackedRun
from cdrl.tracking.sync import state, synchronise
from tests.faults import FaultProxy
from tests.tracking_parts import MlflowServer, at_server, in_journal, record_of
from tests.training_parts import tiny_config
from tests.training_runs import tiny_file, trained

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

NUM_UPDATES = 150
FROZEN_AT, KILLED_AT = 20, 60


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, _empty_tracking: Path) -> Iterator[MlflowServer]:
    """A server that is down; the tests below start and stop it."""
    made = MlflowServer(tmp_path_factory.mktemp("server"), _empty_tracking)
    yield made
    made.kill()


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def step_of(directory: Path) -> int:
    """The newest update in a run's journal."""
    steps = [entry["step"] for _, entry in Journal(directory).entries() if entry["kind"] == "metrics"]
    return max(steps, default=0)


def updates(run: TrackedRun, first: int) -> None:
    """A hundred updates with a picture and a file."""
    for step in range(first, first + 100):
        run.log_metrics({"loss": 1 / step, "norm": float("nan")}, step)
    run.log_image("samples", Image.new("L", (8, 8), 7), first)
    run.log_artifact(Path(__file__))


def test_a_server_that_is_down_at_the_start_and_frozen_later(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "LONGEST_PAUSE_S", 2.0)
    mlflow_server.kill()
    config, told, contacts = tiny_config(f"run.root={tmp_path}"), list[str](), list[str]()
    run = TrackedRun.start(
        config, "tiny", manifest_digest="ab" * 32, uri=mlflow_server.uri, on_contact=contacts.append
    )
    run.follow(told.append)
    updates(run, 1)
    assert "no answer" in told[0] and run.mlflow_run_id == ""
    mlflow_server.start()
    until(lambda: told[1:])
    assert told[1].endswith("answers again") and contacts == [run.mlflow_run_id]
    record = record_of(run, tmp_path, tiny_config(f"run.root={tmp_path}"))

    mlflow_server.send(signal.SIGSTOP)
    began_s = time.monotonic()
    updates(run, 101)
    assert time.monotonic() - began_s < 2
    time.sleep(3)  # requests are on their way
    updates(run, 201)
    assert step_of(record.directory) == 300 and state(record).pending["metrics"] >= 200
    mlflow_server.send(signal.SIGCONT)
    until(lambda: not state(record).pending)
    run.close()
    client = MlflowClient(mlflow_server.uri)
    rows = at_server(client, run.mlflow_run_id)
    assert rows == in_journal(record.directory) and sum(name == "loss" for name, *_ in rows) == 300
    pictures = [each.path for each in client.list_artifacts(run.mlflow_run_id, "images") if "compressed" in each.path]
    assert len(pictures) == 3 and client.get_run(run.mlflow_run_id).info.status == "FINISHED"


@pytest.mark.parametrize("path", ["runs/create", "runs/log-batch", "mlflow-artifacts", "runs/update", "runs/set-tag"])
def test_answers_that_are_lost_change_nothing(mlflow_server: MlflowServer, tmp_path: Path, path: str) -> None:
    mlflow_server.start()
    client = MlflowClient(mlflow_server.uri)
    with FaultProxy(mlflow_server.uri) as proxy:
        proxy.add(key=path, method="POST|PUT", lost=True, times=2)
        run = TrackedRun.start(
            tiny_config(f"run.root={tmp_path}", f"tracking.experiment={tmp_path.name}"),
            "tiny",
            manifest_digest="ab" * 32,
            uri=proxy.url,
        )
        run.follow(lambda text: None)
        updates(run, 1)
        run.close()
        record = record_of(run, tmp_path, tiny_config(f"run.root={tmp_path}"))
        synchronise(record)
    assert at_server(client, record.mlflow_run_id) == in_journal(record.directory)
    experiment = client.get_experiment_by_name(tmp_path.name).experiment_id
    assert [made.info.run_id for made in client.search_runs([experiment])] == [record.mlflow_run_id]
    names = [file.path for file in client.list_artifacts(record.mlflow_run_id, "images")]
    assert sum("compressed" in name for name in names) == 1
    assert client.get_run(record.mlflow_run_id).info.status == "FINISHED"


def test_a_training_loses_no_step_to_a_server_that_freezes_and_dies(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    mlflow_server.start()
    prepare("digits", str(tmp_path / "digits"), Options(limit=60, holdout=0))
    places = (f"data.uri={tmp_path / 'digits'}", f"run.root={tmp_path / 'runs'}", "run.name=tiny")
    often = (f"training.num_updates={NUM_UPDATES}", "run.log_every=1", f"tracking.uri={mlflow_server.uri}")
    directory, seen = tmp_path / "runs" / "tiny", list[int]()

    def trouble() -> None:
        until(lambda: step_of(directory) >= FROZEN_AT)
        mlflow_server.send(signal.SIGSTOP)
        seen.append(step_of(directory))
        until(lambda: step_of(directory) >= KILLED_AT)
        mlflow_server.kill()
        seen.append(step_of(directory))

    thread = threading.Thread(target=trouble)
    thread.start()
    record = trained(load(tiny_file(tmp_path), [*places, *often]))
    thread.join()
    assert FROZEN_AT <= seen[0] < KILLED_AT <= seen[1]
    losses = [row for row in in_journal(directory) if row[0] == "loss_energy"]
    assert [step for _, step, *_ in losses] == list(range(1, NUM_UPDATES + 1))
    assert record.mlflow_run_id and state(record).pending and not state(record).is_driven

    mlflow_server.start()
    client = MlflowClient(mlflow_server.uri)
    assert client.get_run(record.mlflow_run_id).info.status == "RUNNING"
    synchronise(record)
    assert at_server(client, record.mlflow_run_id) == in_journal(directory)
    ended = client.get_run(record.mlflow_run_id)
    assert ended.info.status == "FINISHED" and ended.data.tags["cdrl.weights"].startswith(record.checkpoint("best"))
    assert {"config.yaml", "environment.json", "images"} <= {
        file.path for file in client.list_artifacts(record.mlflow_run_id)
    }
    assert state(record).pending == {}


def test_two_processes_that_meet_at_an_empty_folder_make_one_database(tmp_path: Path) -> None:
    code = "import sys; from cdrl.tracking.server import connect; connect(sys.argv[1])"
    command = [sys.executable, "-c", code, server.default_uri(tmp_path)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(process.communicate()[1], process.returncode) for process in both] == [("", 0)] * 2
