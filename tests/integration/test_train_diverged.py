"""A run that runs away on Ray: rescued, or ended with its story; NaN at one rank stops all before a weight moves."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from cdrl.config import ClusterConfig, Config, load
from cdrl.data import Dataset, Manifest
from cdrl.data.prepare import Options, prepare
from cdrl.data.shards import read_shard, write_shard
from cdrl.model import Model
from cdrl.runs import RunRecord, fetch_model
from cdrl.session import connected
from cdrl.storage import sha256_file
from cdrl.training.rescue import read_rescues
from tests.training_parts import run_to, save, tiny_state
from tests.training_runs import command, digests, history, tiny_file

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SETTINGS = ("cluster.num_workers=2", "training.initializer_only_fraction=0", "training.num_updates=20")
ALONE = "cluster.num_workers=1"
RUNAWAY = (ALONE, "schedule.step_scale=1", "run.log_every=5", "run.checkpoint_every=5", "sentinel.factor=0.01")
POINTS = (
    *SETTINGS,
    "training.batch_size=8",
    "training.num_steps=2",
    "sampling.batch_size=100",
    "run.log_every=1",
    "run.checkpoint_every=1",
    "sentinel.max_rescues=1",
)
NUM_POINTS, GOOD_UPDATES = 96, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Digits, a folder of runs and a Ray session for two workers."""
    folder = tmp_path_factory.mktemp("diverged")
    prepare("digits", str(folder / "data"), Options(limit=60, holdout=0))
    with connected(ClusterConfig(num_workers=2)):
        yield folder


def settings(folder: Path, name: str, *more: str) -> list[str]:
    places = (f"data.uri={folder / 'data'}", f"run.root={folder / 'runs'}", f"run.name={name}")
    return [*SETTINGS, *places, *more]


def story(folder: Path, name: str) -> tuple[RunRecord, list[str], str]:
    """A run's record, its events, and its status with the tracking server, which has the same events."""
    record = RunRecord.read(name, f"{folder}/runs")
    text = (record.directory / "events.jsonl").read_text()
    client = MlflowClient(record.tracking_uri)
    kept = Path(client.download_artifacts(record.mlflow_run_id, "events.jsonl", str(folder)))
    assert kept.read_text() == text
    status = client.get_run(record.mlflow_run_id).info.status
    return record, [json.loads(line)["event"] for line in text.splitlines()], status


def test_a_step_far_too_large_is_lowered_and_the_run_goes_on(folder: Path) -> None:
    lower = "sentinel.lower=step_scale"
    assert command("train", tiny_file(folder), *settings(folder, "rescued", *RUNAWAY, lower)) == 0
    record, events, status = story(folder, "rescued")
    (made,) = read_rescues(record.checkpoint_uri)
    assert (made.step, made.from_step, made.quantity) == (5, 0, "displacement_sigmas")
    assert events == [made.line] and status == "FINISHED" and record.finished
    assert made.line.endswith("went back to 0 with step scale x 0.01 and other noise")
    kept = {file.path for file in MlflowClient(record.tracking_uri).list_artifacts(record.mlflow_run_id)}
    assert {"events.jsonl", "rescues.md"} <= kept
    model = Model.load(fetch_model(str(record.directory), "last"))
    assert model.step == 20 and bool(model.sample(4).isfinite().all())


def test_without_a_remedy_it_ends_with_its_story(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lower = ("sentinel.lower=learning_rate", "sentinel.max_rescues=2")
    assert command("train", tiny_file(folder), *settings(folder, "lost", *RUNAWAY, *lower)) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "training diverged at level" in error[0] and "gave up after 2 rescues" in error[0]
    record, events, status = story(folder, "lost")
    first, second = read_rescues(record.checkpoint_uri)
    assert events[:2] == [first.line, second.line] and "gave up after 2 rescues" in events[-1]
    assert all(made.line in error[0] for made in (first, second))
    assert status == "FAILED" and not record.finished
    assert all(card.step < second.step for card in record.checkpoints().values())


def points_with_a_hole(folder: Path, config: Config) -> tuple[Dataset, str]:
    """Points, and the URI of the same ones but for a NaN, in the last chunk of the update after `GOOD_UPDATES`."""
    for name in ("points", "hole"):
        prepare("gaussians", str(folder / name), Options(limit=NUM_POINTS, holdout=0))
    dataset, training = Dataset.open(str(folder / "points")), config.training
    row = dataset.batch_indices(training.seed, GOOD_UPDATES, training.batch_size)[-1]
    manifest = Manifest.read(str(folder / "hole"))
    split = manifest.splits["train"]
    (shard,) = split.shards
    path = folder / "hole" / shard.name
    rows = read_shard(path, manifest.shape, manifest.dtype)
    changed, labels = np.array(rows.images), np.array(rows.labels)
    changed[row, 0] = np.nan
    path.unlink()
    write_shard(path, changed, labels)
    shard = shard.model_copy(update={"sha256": sha256_file(path), "bytes": path.stat().st_size})
    splits = {"train": split.model_copy(update={"shards": (shard,)})}
    Manifest.model_validate(manifest.model_dump() | {"splits": splits}).write(str(folder / "hole"))
    return dataset, str(folder / "hole")


def test_nan_at_one_rank_stops_all_before_an_optimizer_moves(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load("toy-gaussians", POINTS)
    dataset, hole = points_with_a_hole(tmp_path, config)
    given = settings(folder, "nan", *POINTS, f"data.uri={hole}")
    assert command("train", "toy-gaussians", *given) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "nan" in error[0] and "gave up after 1 rescues" in error[0]
    record, events, status = story(folder, "nan")
    (made,) = read_rescues(record.checkpoint_uri)
    assert (made.step, made.from_step) == (GOOD_UPDATES + 1, GOOD_UPDATES) and events[0] == made.line
    assert status == "FAILED" and max(card.step for card in record.checkpoints().values()) == GOOD_UPDATES
    assert [step for step, _ in history(record, "loss_energy")] == list(range(1, GOOD_UPDATES + 1))

    state = tiny_state(config)  # the points without the hole, one process without Ray
    run_to(state, dataset, GOOD_UPDATES)
    save(state, dataset, tmp_path / "alone")
    alone = {path.name: sha256_file(path) for path in (tmp_path / "alone").glob("*.safetensors")}
    found = digests(record)
    assert all(found[name] == alone[name] for name in ("pair-00.safetensors", "train-00.safetensors"))
