"""The journal of a run, against a real MLflow store."""

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path

import mlflow
import pytest
import yaml
from PIL import Image

import cdrl
from cdrl import config as configuration
from cdrl.config import Config
from cdrl.errors import TrackingError, TrackingOutage
from cdrl.runs import RunRecord
from cdrl.tracking import server
from cdrl.tracking.run import TrackedRun, flatten
from tests.tracking_parts import silent
from tests.web import answering


@pytest.fixture
def config(run_root: Path) -> Config:
    return configuration.load("toy", [f"run.root={run_root}"])


@pytest.fixture
def client(run_root: Path) -> mlflow.MlflowClient:
    return server.connect(server.default_uri(run_root))


def start(config: Config, mlflow_run_id: str | None = None) -> TrackedRun:
    return TrackedRun.start(config, config.run_id, manifest_digest="ab" * 32, mlflow_run_id=mlflow_run_id)


def test_a_run_holds_the_whole_configuration_and_its_digests(config: Config, client: mlflow.MlflowClient) -> None:
    run = client.get_run(start(config).mlflow_run_id)
    assert run.info.run_name == config.run_id and run.info.status == "RUNNING"
    assert run.data.params == flatten(config)
    assert run.data.params["training.energy.lr"] == "3e-06" and run.data.params["data.shape"] == "[2]"
    assert run.data.tags["cdrl.config_digest"] == config.digest
    assert run.data.tags["cdrl.manifest_digest"] == "ab" * 32
    folder = client.download_artifacts(run.info.run_id, "")
    assert Config.model_validate(yaml.safe_load(Path(folder, "config.yaml").read_text())) == config
    assert json.loads(Path(folder, "digests.json").read_text())["cdrl.config_digest"] == config.digest


def test_metrics_keep_value_and_step_in_order(config: Config, client: mlflow.MlflowClient) -> None:
    run = start(config)
    for step in range(1500):  # more than MLflow takes in one request
        run.log_metrics({"loss/energy": 1 / (step + 1), "seconds": 0.5}, step)
    run.flush()
    history = client.get_metric_history(run.mlflow_run_id, "loss/energy")
    assert [(m.step, m.value) for m in history] == [(step, 1 / (step + 1)) for step in range(1500)]


def test_a_run_holds_what_it_ran_on(config: Config, client: mlflow.MlflowClient) -> None:
    text = client.download_artifacts(start(config).mlflow_run_id, "environment.json")
    found = json.loads(Path(text).read_text())
    assert found["python"] == platform.python_version() and found["torch"] == metadata.version("torch")
    assert found["cdrl"] == cdrl.__version__ and found["cpus"] >= 1 and isinstance(found["gpus"], list)
    head = ["git", "-C", str(Path(cdrl.__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True).stdout.strip()
    assert (found["git"] or "").removesuffix("-dirty") == commit


def test_metrics_wait_for_company_and_closing_sends_them(config: Config, client: mlflow.MlflowClient) -> None:
    run = start(config)
    run.log_metrics({"loss": 1.0}, 0)
    assert client.get_run(run.mlflow_run_id).data.metrics == {}
    run.close()
    ended = client.get_run(run.mlflow_run_id)
    assert ended.data.metrics == {"loss": 1.0} and ended.info.status == "FINISHED"


def test_an_interrupted_run_is_taken_up_again(config: Config, client: mlflow.MlflowClient) -> None:
    first = start(config)
    first.log_metrics({"loss": 2.0}, 1)
    first.close("KILLED")
    other = configuration.load("toy", [f"run.root={config.run.root}", "cluster.num_workers=2"])
    second = start(other, first.mlflow_run_id)
    assert second.mlflow_run_id == first.mlflow_run_id
    assert client.get_run(first.mlflow_run_id).info.status == "RUNNING"
    second.log_metrics({"loss": 1.0}, 2)
    second.close()
    run = client.get_run(first.mlflow_run_id)
    assert run.info.status == "FINISHED" and run.data.tags["cdrl.config_digest"] == other.digest
    assert [m.step for m in client.get_metric_history(first.mlflow_run_id, "loss")] == [1, 2]
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_scores_join_a_finished_run_without_reopening_it(config: Config, client: mlflow.MlflowClient) -> None:
    run = start(config)
    run.close()
    record = RunRecord(
        run_id=config.run_id,
        config=config,
        manifest_digest="ab" * 32,
        class_names=(),
        tracking_uri=run.uri,
        mlflow_run_id=run.mlflow_run_id,
    )
    attached = TrackedRun.attach(record)
    attached.log_metrics({"frechet": 0.5}, 100)
    attached.flush()
    ended = client.get_run(run.mlflow_run_id)
    assert ended.data.metrics == {"frechet": 0.5} and ended.info.status == "FINISHED"
    assert not Path("journal.jsonl").exists()  # a record that was never written belongs to its root all the same
    with pytest.raises(TrackingError, match="feedbeef.*not found"):
        TrackedRun.attach(record.model_copy(update={"mlflow_run_id": "feedbeef" * 4}))


def test_files_lie_under_the_run_root_and_not_in_the_working_folder(
    config: Config, client: mlflow.MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = start(config)
    for step in (0, 10):
        run.log_image("samples", Image.new("L", (8, 8), step), step)
    (tmp_path / "schedule.png").write_bytes(b"picture")
    run.log_artifact(tmp_path / "schedule.png", "plots")
    kept = [path for path in Path(config.run.root, "mlartifacts").rglob("*") if path.is_file()]
    assert {path.name for path in kept} >= {"config.yaml", "digests.json", "schedule.png"}
    images = {artifact.path for artifact in client.list_artifacts(run.mlflow_run_id, "images")}
    assert {re.search(r"samples.step.(\d+)", path)[1] for path in images} == {"0", "10"}
    assert not (tmp_path / "mlruns").exists()


def test_a_value_too_long_for_mlflow_is_refused_not_cut(config: Config, client: mlflow.MlflowClient) -> None:
    long = config.model_copy(update={"data": config.data.model_copy(update={"uri": "x" * 6001})})
    with pytest.raises(TrackingError, match="data.uri has 6001 characters.*6000"):
        start(long)
    assert client.get_experiment_by_name("cdrl") is None


def test_a_run_that_the_server_does_not_know_is_told_and_the_journal_goes_on(config: Config) -> None:
    run = start(config, "feedbeef" * 4)
    run.log_metrics({"loss": 1.0}, 1)
    assert re.search("feedbeef.*not found", str(run.trouble)) and not isinstance(run.trouble, TrackingOutage)
    with pytest.raises(TrackingError, match="feedbeef.*not found"):
        run.flush()


def test_a_metric_that_mlflow_refuses_is_an_error_and_is_not_forgotten(config: Config) -> None:
    run = start(config)
    run.log_metrics({"loss": 1.0, "what?": 2.0}, 0)
    for _ in range(2):
        with pytest.raises(TrackingError, match="what"):
            run.flush()


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (silent, "no answer"),
        (lambda: answering(500, b"oops", "text/plain"), "HTTP status 500"),
        (lambda: answering(401, b"who are you?", "text/plain"), "HTTP status 401; set MLFLOW_TRACKING_USERNAME and"),
        (lambda: answering(404, b"<html>no</html>", "text/html"), "HTTP status 404"),
        (lambda: answering(200, b"<html>hello</html>", "text/html"), "another program than MLflow"),
    ],
)
def test_a_server_that_is_none_costs_one_line_and_a_moment(
    config: Config, place: Callable[[], AbstractContextManager[str]], reason: str
) -> None:
    before = dict(os.environ)
    with place() as uri:
        began = time.monotonic()
        run = TrackedRun.start(config, "r", manifest_digest="0" * 64, uri=uri)
        assert time.monotonic() - began < 10
        assert uri in str(run.trouble) and "\n" not in str(run.trouble) and reason in str(run.trouble)
        assert isinstance(run.trouble, TrackingOutage) == (" 40" not in reason) and run.mlflow_run_id == ""
    assert dict(os.environ) == before


@pytest.mark.parametrize("uri", ["foo://somewhere", "sqlite:////proc/none/mlflow.db", "mlruns"])
def test_a_uri_that_mlflow_cannot_use_is_named(uri: str) -> None:
    with pytest.raises(TrackingError, match=uri):
        server.connect(uri)


@pytest.mark.parametrize("uri", ["foo://there", "sqlite:////proc/none/mlflow.db", "mlruns", "http://", "http://a:b"])
def test_a_run_does_not_start_on_what_can_be_no_server(config: Config, uri: str) -> None:
    with pytest.raises(TrackingError, match=uri):
        TrackedRun.start(config, "r", manifest_digest="0" * 64, uri=uri)
    assert not Path(config.run.root, "r").exists()


def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_text("notes " * 100)
    with pytest.raises(TrackingError, match="mlflow.db: cannot open the database: file is not a database"):
        server.connect(server.default_uri(tmp_path))
    assert file.read_text() == "notes " * 100


def test_a_password_stays_out_of_messages() -> None:
    with silent() as uri, pytest.raises(TrackingError) as caught:
        server.connect(uri.replace("//", "//somebody:s3cret@"))
    assert "s3cret" not in str(caught.value) and "***@127.0.0.1" in str(caught.value)
