"""Any number of Ray workers, also one that changes on the way: the same bits, losses and samples."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cdrl.config import ClusterConfig, Config, load
from cdrl.data import Dataset
from cdrl.data.prepare import Options, prepare
from cdrl.runs import RunRecord
from cdrl.session import connected
from cdrl.tracking.run import TrackedRun
from cdrl.training.launch import launch
from cdrl.training.replay import logged_before, replay, start_before
from tests.training_runs import digests, history, tiny_file, trained, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

NUM_ROWS, BATCH = 61, 8  # coprime, so that no epoch ends with an update before the last one
NUM_UPDATES, CHECKPOINT_EVERY = 60, 20
SETTINGS = (
    f"training.num_updates={NUM_UPDATES}",
    f"run.checkpoint_every={CHECKPOINT_EVERY}",
    "run.log_every=1",
    "compute.chunkwise=always",  # a single worker would go without
)
PER_LEVEL = ("pairs=per_level", "schedule.num_levels=6", "training.num_updates=8")
METRICS = ("loss_energy", "loss_initializer", "f_pos", "grad_norm_energy", "grad_norm_initializer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A dataset, a folder of runs and a Ray session for six workers."""
    folder = tmp_path_factory.mktemp("workers")
    prepare("digits", str(folder / "digits"), Options(limit=NUM_ROWS, holdout=0))
    with connected(ClusterConfig(num_workers=6)):
        yield folder


def config(folder: Path, name: str, workers: int, *more: str) -> Config:
    places = (f"data.uri={folder / 'digits'}", f"run.root={folder / 'runs'}", f"run.name={name}")
    return load(tiny_file(folder), [*SETTINGS, *places, f"cluster.num_workers={workers}", *more])


@pytest.fixture(scope="module")
def alone(folder: Path) -> RunRecord:
    return trained(config(folder, "shared-1", 1))


@pytest.fixture(scope="module")
def levels(folder: Path) -> RunRecord:
    return trained(config(folder, "levels-2", 2, *PER_LEVEL))  # three levels each


def test_a_shared_pair_has_the_same_bits_with_any_number_of_workers(folder: Path, alone: RunRecord) -> None:
    several = trained(config(folder, "shared-4", 4))  # two of them below
    assert digests(several) == digests(alone)
    for name in METRICS:
        seen = history(several, name)
        assert seen == history(alone, name) and [step for step, _ in seen] == list(range(1, NUM_UPDATES + 1))


def test_levels_have_the_same_bits_with_any_number_of_workers(folder: Path, levels: RunRecord) -> None:
    several = trained(config(folder, "levels-6", 6, *PER_LEVEL))
    assert len(digests(several)) == 2 * 6 + 1 and digests(several) == digests(levels)
    for level in range(6):
        assert history(several, f"pair_{level}/loss_energy") == history(levels, f"pair_{level}/loss_energy")


def test_workers_that_go_and_come_in_mid_epoch_change_nothing(folder: Path, alone: RunRecord) -> None:
    pictures = folder / "runs" / "changing" / "samples"

    def stop(step: int) -> None:
        until((pictures / f"{step:08d}.png").exists, lambda: f"no picture at update {step}")
        os.kill(os.getpid(), signal.SIGINT)

    for world, step in ((2, 11), (1, 34)):
        stopper = threading.Thread(target=stop, args=(step,), daemon=True)
        stopper.start()
        outcome = launch(config(folder, "changing", world, f"run.sample_every={step}"))
        stopper.join()
        assert outcome.stopped_by == signal.SIGINT and not outcome.complete and outcome.step >= step
    changed = trained(config(folder, "changing", 2))
    assert digests(changed) == digests(alone)
    for name in METRICS:  # every update once: nothing was done twice or left out
        assert history(changed, name) == history(alone, name)
    dataset, seed = Dataset.open(str(folder / "digits")), changed.config.training.seed
    samples = np.concatenate([dataset.batch_indices(seed, step, BATCH) for step in range(NUM_UPDATES)])
    whole = samples[: len(samples) // NUM_ROWS * NUM_ROWS].reshape(-1, NUM_ROWS)
    assert len(whole) == 7 and all(sorted(epoch) == list(range(NUM_ROWS)) for epoch in whole.tolist())


def test_a_replayed_update_has_the_losses_that_were_logged(alone: RunRecord, levels: RunRecord) -> None:
    for record, step, begin in ((levels, 7, 0), (alone, 46, 40)):  # the last two checkpoints are kept
        start = start_before(record, step)
        logged = logged_before(TrackedRun.attach(record), record.config, start, step)
        assert start.step == begin and logged is not None
        assert replay(record, step, start).metrics == dict([logged])
