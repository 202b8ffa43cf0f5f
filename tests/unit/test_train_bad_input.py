"""`cdrl train` refuses what cannot work in one line, exit code 2, before Ray starts, and leaves nothing behind."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cdrl import storage
from cdrl.cli import main
from cdrl.config import load
from cdrl.data import Manifest
from cdrl.data.prepare import prepare
from cdrl.runs import RunRecord, absolute
from cdrl.storage import s3

NOBODY = "127.0.0.1:1"  # no server listens at port 1


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data") / "digits"
    prepare("digits", str(place))
    return place


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tracking server that answers."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"
    MlflowClient(uri).search_experiments()
    return uri


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 endpoint at which nobody answers, told at the first refusal."""
    monkeypatch.setattr(s3, "NUM_RETRIES", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{NOBODY}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with storage.patience(0):
        yield


class Train:
    """`cdrl train digits` with runs below a folder of the test."""

    def __init__(self, root: Path, data: Path, journal: str) -> None:
        self.root, self.data, self.journal = root, data, journal

    def settings(self, *settings: str) -> list[str]:
        return [f"data.uri={self.data}", f"run.root={self.root}", f"tracking.uri={self.journal}", *settings]

    def refused(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        """The line of a command that fails with exit code 2."""
        options = [part for setting in self.settings() for part in ("--set", setting)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["cdrl", "train", "digits", *options, *arguments])
            with pytest.raises(SystemExit) as caught:
                main()
        captured = capsys.readouterr()
        assert caught.value.code == 2
        assert captured.out == ""
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
        return captured.err

    def left(self) -> list[str]:
        """What lies below the folder of runs, and the MLflow runs."""
        client = MlflowClient(self.journal)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = [run.info.run_id for run in client.search_runs(experiments)]
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*")) + runs

    def recorded(self, *settings: str, manifest_digest: str | None = None) -> RunRecord:
        """The record of an earlier run of the name `before`."""
        config = absolute(load("digits", self.settings("run.name=before", *settings)))
        manifest = Manifest.read(str(self.data))
        record = RunRecord(
            run_id=config.run_id,
            config=config,
            manifest_digest=manifest_digest or manifest.digest,
            class_names=manifest.class_names,
            tracking_uri=self.journal,
            mlflow_run_id="",
        )
        record.write(str(self.root))
        return record


@pytest.fixture
def train(tmp_path: Path, digits: Path, journal: str) -> Train:
    (tmp_path / "runs").mkdir()
    return Train(tmp_path / "runs", digits, journal)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "data.uri=nowhere"], ["nowhere", "manifest.json"]),
        (["--set", "data.uri=s3://bucket/digits"], ["s3://bucket/digits", f"http://{NOBODY}"]),
        (["--set", "data.shape=[1, 16, 16]"], ["data.shape", "[1, 16, 16]", "[1, 8, 8]"]),
        (["--set", "data.num_classes=7"], ["data.num_classes", "7", "10"]),
        (["--set", "initializer.groups=7"], ["initializer.groups", "7", "32 channels"]),
        (["--workers", "3"], ["cluster.num_workers: expected 1 ... 2", "num_chunks = 2", "got 3"]),
        (["--workers", "[1,7]", "--set", "pairs=[[0, 1], [2, 3], [4, 5]]"], ["expected 1 ... 6 (3 trained pairs"]),
        (["--workers", "[2,1]"], ["cluster.num_workers", "expected [min, max] with min <= max, got [2, 1]"]),
        (["--workers", "some"], ["cluster.num_workers"]),
        (["--set", "run.storage=s3://bucket/runs"], ["s3://bucket/runs", f"http://{NOBODY}"]),
        (["--set", "tracking.uri=mlruns"], ["tracking.uri", "'mlruns'", "expected http://HOST:PORT"]),
        (["--address", NOBODY], ["cluster.address", NOBODY, "no Ray cluster answers"]),
        (["--address", "nonsense"], ["cluster.address", "'nonsense'", "host:port"]),
    ],
)
def test_refused(
    train: Train, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    line = train.refused(capsys, *arguments)
    for word in words:
        assert word in line
    assert train.left() == []


def test_a_damaged_shard(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(train.data, tmp_path / "damaged")
    shard = tmp_path / "damaged" / Manifest.read(str(train.data)).splits["train"].shards[0].name
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    line = train.refused(capsys, "--set", f"data.uri={tmp_path / 'damaged'}")
    assert str(shard) in line and "does not match the manifest" in line
    assert train.left() == []


def test_a_name_that_belongs_to_another_configuration(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    record = train.recorded("training.seed=6", "energy.width=16", "run.log_every=7")
    before = (record.directory / "run.json").read_bytes()
    line = train.refused(capsys, "--set", "run.name=before")
    assert "'before'" in line and "training.seed was 6, is 5" in line and "energy.width was 16, is 32" in line
    assert "log_every" not in line  # how often a run speaks does not make it another one
    assert train.left() == ["before", "before/run.json"]
    assert (record.directory / "run.json").read_bytes() == before


def test_data_that_changed_under_a_run(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    record = train.recorded(manifest_digest="0" * 64)
    before = (record.directory / "run.json").read_bytes()
    line = train.refused(capsys, "--set", "run.name=before")
    assert "other data" in line and "0" * 12 in line and Manifest.read(str(train.data)).digest[:12] in line
    assert train.left() == ["before", "before/run.json"]
    assert (record.directory / "run.json").read_bytes() == before
