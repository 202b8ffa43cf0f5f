"""Two Ray workers: pairs dealt to them or one pair shared, a worker that is killed, and a run that diverges."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from cdrl.cli import main
from cdrl.config import ClusterConfig, Config, load
from cdrl.data.prepare import prepare
from cdrl.model import Model
from cdrl.runs import RunRecord, fetch_model
from cdrl.session import connected
from cdrl.tracking.run import TrackedRun
from cdrl.training.launch import launch
from cdrl.training.replay import logged_before, replay, start_before

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

NUM_UPDATES, CHECKPOINT_EVERY, SAMPLE_EVERY = 90, 30, 40
SETTINGS = (
    "energy.width=8",
    "initializer.width=8",
    "data.num_classes=0",
    "training.batch_size=16",
    f"training.num_updates={NUM_UPDATES}",
    "training.num_steps=2",
    "training.initializer_only_fraction=0",
    "run.log_every=1",
    f"run.checkpoint_every={CHECKPOINT_EVERY}",
    f"run.sample_every={SAMPLE_EVERY}",
    "run.score_samples=0",
    "sampling.num_steps=1",
    "sampling.batch_size=100",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A dataset, a folder of runs and a Ray session for two workers."""
    folder = tmp_path_factory.mktemp("train")
    prepare("digits", str(folder / "digits"))
    with connected(ClusterConfig(num_workers=2)):
        yield folder


def settings(folder: Path, name: str, *more: str) -> list[str]:
    return [*SETTINGS, f"data.uri={folder / 'digits'}", f"run.root={folder / 'runs'}", f"run.name={name}", *more]


def trained(config: Config) -> RunRecord:
    outcome = launch(config)
    assert outcome.complete and outcome.step == config.training.num_updates
    return outcome.record


def weights(record: RunRecord) -> dict[str, bytes]:
    """The safetensors files of the last checkpoint."""
    return {path.name: path.read_bytes() for path in Path(record.checkpoint("last")).glob("*.safetensors")}


def history(record: RunRecord, name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric, in the order in which they were measured."""
    found = MlflowClient(record.tracking_uri).get_metric_history(record.mlflow_run_id, name)
    return [(metric.step, metric.value) for metric in sorted(found, key=lambda metric: metric.timestamp)]


def workers() -> list[psutil.Process]:
    """The training workers that this process's Ray session started."""
    family = psutil.Process().children(recursive=True)
    return [process for process in family if process.name().startswith("ray::RayTrain")]


@pytest.fixture(scope="module")
def shared(folder: Path) -> RunRecord:
    return trained(load("digits", settings(folder, "shared")))


def test_one_pair_per_level_trains_the_same_with_any_number_of_workers(folder: Path) -> None:
    short = ("pairs=per_level", "training.num_updates=12")
    two = trained(load("digits", settings(folder, "two-workers", *short)))
    one = trained(load("digits", settings(folder, "one-worker", *short, "cluster.num_workers=1")))
    assert len(weights(two)) == 2 * 6 and weights(two) == weights(one)
    for level in range(6):
        assert history(two, f"pair_{level}/loss_energy") == history(one, f"pair_{level}/loss_energy")


def test_a_shared_pair_sees_the_same_losses_with_any_number_of_workers(folder: Path, shared: RunRecord) -> None:
    one = trained(load("digits", settings(folder, "alone", "cluster.num_workers=1")))
    size_of_f = {step: abs(value) for step, value in history(one, "f_pos")}
    for name in ("loss_energy", "loss_initializer"):
        seen, expected = dict(history(shared, name)), dict(history(one, name))
        assert list(seen) == list(expected) == list(range(1, NUM_UPDATES + 1))
        for step in range(1, 21):  # later on, the order of summation has grown into the weights
            # the energy net's loss is a small difference of f at two places
            assert seen[step] == pytest.approx(expected[step], rel=1e-5, abs=1e-5 * size_of_f[step])


def test_a_replayed_update_has_the_losses_that_were_logged(folder: Path) -> None:
    several = load("digits", settings(folder, "two-workers", "pairs=per_level", "training.num_updates=12"))
    alone = load("digits", settings(folder, "alone", "cluster.num_workers=1"))
    for config, step, begin in ((several, 8, 0), (alone, 66, 60)):  # the last two checkpoints are kept
        record = trained(config)  # by the tests above, or now
        start = start_before(record, step)
        logged = logged_before(TrackedRun.attach(record), config, start, step)
        assert start.step == begin and logged is not None
        assert replay(record, step, start).metrics == dict([logged])


def test_a_killed_worker_costs_the_updates_since_the_checkpoint(folder: Path, shared: RunRecord) -> None:
    config = load("digits", settings(folder, "wounded"))
    killed: list[int] = []

    def kill_one() -> None:
        picture = folder / "runs" / "wounded" / "samples" / f"{SAMPLE_EVERY:08d}.png"
        while not picture.exists():  # between two checkpoints
            time.sleep(0.02)
        victim = workers()[-1]
        victim.kill()
        killed.append(victim.pid)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    wounded = trained(config)
    assert len(killed) == 1
    steps = [step for step, _ in history(wounded, "loss_energy")]
    assert len(steps) > NUM_UPDATES and set(steps) == set(range(1, NUM_UPDATES + 1))  # some were made twice
    assert dict(history(wounded, "loss_energy")) == dict(history(shared, "loss_energy"))
    assert weights(wounded) == weights(shared)


def test_a_run_that_diverges_ends_with_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    explosive = ("training.num_updates=20", "training.initializer_only_fraction=0.5", "run.checkpoint_every=5")
    lr = ("training.energy.lr=1.0e+30", "training.energy.warmup_updates=1", "training.clip_norm=1.0e+30")
    options = [part for each in settings(folder, "explosive", *explosive, *lr) for part in ("--set", each)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cdrl", "train", "digits", *options])
        with pytest.raises(SystemExit) as caught:
            main()
    assert caught.value.code == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "training diverged at level" in error[0] and "the update was not applied" in error[0]
    record = RunRecord.read("explosive", str(folder / "runs"))
    assert MlflowClient(record.tracking_uri).get_run(record.mlflow_run_id).info.status == "FAILED"
    model = Model.load(fetch_model(str(record.directory), "last"))
    assert model.step == 10 and bool(model.sample(4).isfinite().all())  # the last one before the energy net exploded
