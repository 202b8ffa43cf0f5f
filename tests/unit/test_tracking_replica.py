"""The server's copy of a journal: sent late, twice, elsewhere or after a death, it is the journal's exactly."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from cdrl import config as configuration
from cdrl import storage
from cdrl.cli import main
from cdrl.config import Config
from cdrl.errors import TrackingError, TrackingOutage
from cdrl.runs import RunRecord
from cdrl.tracking import sender, server, surroundings
from cdrl.tracking.journal import Journal
from cdrl.tracking.run import TrackedRun
from cdrl.tracking.sync import state, synchronise
from tests.tracking_parts import at_server, in_journal, silent
from tests.web import answering


@pytest.fixture
def config(run_root: Path) -> Config:
    return configuration.load("toy", [f"run.root={run_root}"])


@pytest.fixture
def client(run_root: Path) -> MlflowClient:
    return server.connect(server.default_uri(run_root))


def started(config: Config, uri: str | None = None) -> tuple[TrackedRun, RunRecord]:
    """A run that has just begun, and its record as the launcher leaves it."""
    run = TrackedRun.start(config, config.run_id, manifest_digest="ab" * 32, uri=uri)
    record = RunRecord(
        run_id=config.run_id,
        config=config,
        manifest_digest="ab" * 32,
        class_names=(),
        tracking_uri=run.uri,
        mlflow_run_id=run.mlflow_run_id,
    )
    record.write(config.run.root)
    return run, record


def trained(run: TrackedRun, first: int = 0) -> None:
    """Ten updates with numbers of every sort, a picture and a file."""
    for step in range(first, first + 10):
        run.log_metrics({"loss": 1 / (step + 3), "odd": float("nan"), "same": 0.5}, step)
    run.log_image("samples", Image.new("L", (8, 8), first), first)
    run.log_artifact(run._journal.directory / "run.json")


def pictures(client: MlflowClient, run: str) -> int:
    return sum("compressed" in artifact.path for artifact in client.list_artifacts(run, "images"))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("lost", ["nothing", "the last batches", "all"])
def test_what_is_sent_twice_is_there_once(config: Config, client: MlflowClient, lost: str) -> None:
    run, record = started(config)
    sent, old = record.directory / "sent.json", record.directory / "old.json"
    shutil.copy(sent, old)
    trained(run)
    run.flush()
    rows = at_server(client, run.mlflow_run_id)
    assert rows == in_journal(record.directory) and len(rows) == 30
    if lost == "all":
        sent.unlink()
    elif lost == "the last batches":
        old.replace(sent)
    mlflow_run_id = synchronise(record).mlflow_run_id
    assert mlflow_run_id == record.mlflow_run_id and at_server(client, mlflow_run_id) == rows
    assert pictures(client, mlflow_run_id) == 1
    assert len(client.search_runs([client.get_run(mlflow_run_id).info.experiment_id])) == 1


def test_a_process_that_died_before_it_knew_the_runs_id_does_not_make_a_second_run(
    config: Config, client: MlflowClient
) -> None:
    run, record = started(config)
    (record.directory / "sent.json").unlink()
    again, _ = started(config)
    assert again.mlflow_run_id == run.mlflow_run_id
    assert len(client.search_runs([client.get_run(run.mlflow_run_id).info.experiment_id])) == 1


def test_a_run_whose_server_never_answered_goes_whole_to_another(config: Config, client: MlflowClient) -> None:
    with silent() as uri:
        run, record = started(config, uri)
        assert isinstance(run.trouble, TrackingOutage) and record.mlflow_run_id == ""
        trained_with_trouble(run)
        with storage.patience(0), pytest.raises(TrackingOutage, match="no answer"):
            synchronise(record)
        pending = state(record).pending
    found = synchronise(record, server.default_uri(config.run.root))
    assert found.pending == pending and found.pending["metrics"] == 10 and found.status == "FINISHED"
    known = RunRecord.read(config.run_id, config.run.root)
    assert (known.tracking_uri, known.mlflow_run_id) == (found.uri, found.mlflow_run_id) != ("", "")
    assert at_server(client, found.mlflow_run_id) == in_journal(record.directory)
    ended = client.get_run(found.mlflow_run_id)
    assert ended.info.status == "FINISHED" and ended.info.run_name == config.run_id
    assert ended.info.start_time == next(Journal(record.directory).entries())[1]["time"]
    assert ended.data.tags["cdrl.config_digest"] == config.digest and ended.data.params["name"] == "toy"
    assert pictures(client, found.mlflow_run_id) == 1 and state(known).pending == {}


def trained_with_trouble(run: TrackedRun) -> None:
    """The same while nobody answers: the calls say so, the journal has it all."""
    for call in (lambda: trained(run), lambda: run.log_artifact(run._journal.directory / "run.json"), run.close):
        with pytest.raises(TrackingOutage):
            call()


def test_a_driver_that_died_leaves_no_running_run(config: Config, client: MlflowClient) -> None:
    run, record = started(config)
    trained(run)
    with (record.directory / ".driver").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert (state(record).status, state(record).is_driven) == ("RUNNING", True)
        synchronise(record)
        assert client.get_run(run.mlflow_run_id).info.status == "RUNNING"
    assert (state(record).status, state(record).is_driven) == ("RUNNING", False)
    assert synchronise(record).status == "KILLED"
    assert client.get_run(run.mlflow_run_id).info.status == "KILLED"
    again, _ = started(config)
    assert client.get_run(run.mlflow_run_id).info.status == "RUNNING"
    trained(again, 10)
    third, _ = started(config)  # the second died, too, and nobody synchronised
    third.close()
    assert again.mlflow_run_id == third.mlflow_run_id == run.mlflow_run_id
    noted = [entry["status"] for _, entry in Journal(record.directory).entries() if entry["kind"] == "status"]
    assert noted == ["RUNNING", "KILLED", "RUNNING", "KILLED", "RUNNING", "FINISHED"]
    assert client.get_run(run.mlflow_run_id).info.status == "FINISHED"
    assert at_server(client, run.mlflow_run_id) == in_journal(record.directory)


@pytest.mark.parametrize("left", [None, b"", b"\x89PNG\r\n\x1a\n"])
def test_a_picture_that_is_gone_or_damaged_is_told_and_holds_nothing_up(
    config: Config, client: MlflowClient, left: bytes | None
) -> None:
    with silent() as uri:
        run, record = started(config, uri)
        trained_with_trouble(run)
    picture = record.directory / "samples" / "00000000.png"
    picture.unlink()
    if left is not None:
        picture.write_bytes(left)
    found = synchronise(record, server.default_uri(config.run.root))
    assert found.gone == ("samples/00000000.png",)
    kept = {artifact.path for artifact in client.list_artifacts(found.mlflow_run_id)}
    assert kept >= {"run.json", "config.yaml", "environment.json"}


def test_a_run_from_before_there_were_journals_is_taken_up(config: Config, client: MlflowClient) -> None:
    run, record = started(config)
    for name in ("journal.jsonl", "sent.json"):
        (record.directory / name).unlink()
    other = configuration.load("toy", [f"run.root={config.run.root}", "cluster.num_workers=2"])
    again = TrackedRun.start(other, config.run_id, manifest_digest="ab" * 32, mlflow_run_id=run.mlflow_run_id)
    trained(again)
    again.close()
    assert again.trouble is None and again.mlflow_run_id == run.mlflow_run_id
    assert at_server(client, run.mlflow_run_id) == in_journal(record.directory)


def test_a_journal_cannot_send_a_file_from_elsewhere(config: Config, tmp_path: Path) -> None:
    run, record = started(config)
    (tmp_path / "private").write_text("secret")
    Journal(record.directory).append("file", file="../../private", folder=None)
    with pytest.raises(TrackingError, match="'../../private', no file of the run"):
        run.flush()


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "PAUSE_S", 0.02)
    monkeypatch.setattr(sender, "LONGEST_PAUSE_S", 0.1)


def test_in_the_background_the_server_follows(config: Config, client: MlflowClient, _quick: None) -> None:
    run, record = started(config)
    told: list[str] = []
    run.follow(told.append)
    trained(run)
    until(lambda: client.get_run(run.mlflow_run_id).data.metrics.get("loss") == 1 / 12)
    run.close()
    rows = at_server(client, run.mlflow_run_id)
    assert rows == in_journal(record.directory) and told == []
    names = {name for name, *_ in rows}
    assert {"system/cpu_percent", "system/memory_percent", "system/driver_memory_bytes"} <= names
    assert {step for name, step, *_ in rows if name == "system/cpu_percent"} == {9}  # the last update
    assert client.get_run(run.mlflow_run_id).info.status == "FINISHED"


def test_a_refusal_is_told_once_and_tried_again_only_at_the_end(
    config: Config, client: MlflowClient, _quick: None
) -> None:
    run, record = started(config)
    told: list[str] = []
    run.follow(told.append)
    client.delete_run(run.mlflow_run_id)
    run.log_metrics({"loss": 0.5}, 1)
    until(lambda: told)
    run.log_metrics({"loss": 0.25}, 2)
    time.sleep(0.3)
    assert len(told) == 1 and "active" in told[0] and "training goes on" in told[0]
    client.restore_run(run.mlflow_run_id)
    run.close()
    assert at_server(client, run.mlflow_run_id) == in_journal(record.directory) and len(told) == 1


def test_a_server_in_trouble_is_told_once_and_the_end_does_not_wait_for_it(config: Config, _quick: None) -> None:
    told: list[str] = []
    with answering(500, b"<html>oops</html>", "text/html") as uri:
        run, record = started(config, uri)
        run.follow(told.append)
        trained(run)
        time.sleep(0.3)
        began = time.monotonic()
        run.close("KILLED")
        assert time.monotonic() - began < 5
    assert len(told) == 2 and "HTTP status 500" in told[0]
    waiting = sum(state(record).pending.values())
    assert told[1].startswith(f"{waiting} entries of the journal wait for MLflow; `cdrl track sync {record.directory}`")


def cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["cdrl", "track", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_the_commands(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ("--root", config.run.root)
    with silent() as uri:
        run, record = started(config, uri)
        with pytest.raises(TrackingOutage):
            trained(run)
        assert cli(monkeypatch, "status", config.run_id, *root) == 0
        output = capsys.readouterr().out
        assert "RUNNING, but its process is dead" in output and "(10 metrics" not in output and "10 metrics" in output
        assert f"server: {uri}, it never answered" in output
        assert cli(monkeypatch, "sync", config.run_id, *root, "--patience", "0") == 1
        assert uri in capsys.readouterr().err
    with (record.directory / "journal.jsonl").open("a") as file:
        file.write('{"time": 17')
    to = ("--to", server.default_uri(config.run.root))
    assert cli(monkeypatch, "sync", config.run_id, *root, *to) == 0
    output = capsys.readouterr().out
    assert "10 metrics" in output and "KILLED" in output and "11 bytes are left out" in output
    assert cli(monkeypatch, "sync", config.run_id, *root) == 0
    assert "nothing to send" in capsys.readouterr().out
    assert cli(monkeypatch, "sync", "nobody", *root) == 2
    assert cli(monkeypatch, "sync", config.run_id, *root, "--to", "mlruns") == 2
    os.remove(record.directory / "journal.jsonl")
    assert cli(monkeypatch, "status", config.run_id, *root) == 2
    assert "has no journal" in capsys.readouterr().err


def test_the_load_of_cards_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    figures = 'echo "37, 512, 143771"; echo "[N/A], 1, 2"'
    program.write_text(f"#!/bin/sh\ncase $1 in *=name) echo NVIDIA H200;; *) {figures};; esac\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    load = surroundings.load()
    assert load["system/gpu_0_percent"] == 37 and load["system/gpu_0_memory_mib"] == 512
    assert "system/gpu_1_percent" not in load and load["system/gpu_1_memory_total_mib"] == 2
    assert 0 <= load["system/cpu_percent"] <= 100 and load["system/driver_memory_bytes"] > 1e6
    assert surroundings.environment()["gpus"] == ["NVIDIA H200"]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert surroundings.environment()["gpus"] == []
