"""Whatever is killed, frozen or stopped at whatever update: the run ends with the bits of the straight one.

`CDRL_KILL_SEEDS=50` makes fifty hits instead of ten.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cdrl.config import ClusterConfig, load
from cdrl.data.prepare import prepare
from cdrl.runs import RunRecord
from cdrl.session import connected
from tests.training_runs import Straight, Train, digests, history, straight, tiny_file, until, workers

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

NUM_SEEDS = int(os.environ.get("CDRL_KILL_SEEDS", "10"))
SEEDS_OF_A_RUN = 10
NUM_UPDATES, CHECKPOINT_EVERY = 120, 8
KINDS = ("a worker", "all workers", "the driver")
METRICS = ("loss_energy", "loss_initializer", "f_pos", "grad_norm_energy")
SETTINGS = (
    f"training.num_updates={NUM_UPDATES}",
    f"run.checkpoint_every={CHECKPOINT_EVERY}",
    "run.log_every=1",
    "cluster.num_workers=2",
    f"cluster.max_failures={10 * NUM_SEEDS}",
)


class Place:
    """A folder with data and runs, and a Ray cluster that outlives the drivers that connect to it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder, tiny_file(folder)
        prepare("digits", str(folder / "digits"))

    def settings(self, name: str, *more: str) -> list[str]:
        places = (f"data.uri={self.folder}/digits", f"run.root={self.folder}/runs", f"run.name={name}")
        return [*SETTINGS, *places, *more]

    def start(self, name: str, *more: str) -> Train:
        return Train(self.source, self.settings(name, *more), "--address", ray.get_runtime_context().gcs_address)

    def record(self, name: str) -> RunRecord:
        return RunRecord.read(name, f"{self.folder}/runs")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        with connected(ClusterConfig(num_workers=8)):
            yield Place(tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def expected(place: Place) -> Straight:
    return straight(load(place.source, place.settings("straight")), place.folder / "straight")


def same(record: RunRecord, expected: Straight) -> None:
    """Equal state and equal histories, where of updates that were made twice the last one counts."""
    assert record.finished and digests(record) == expected.digests
    for name in METRICS:
        found = dict(history(record, name))
        assert found == expected.metrics[name] and set(found) == set(range(1, NUM_UPDATES + 1)), name


@pytest.mark.parametrize("first", range(0, NUM_SEEDS, SEEDS_OF_A_RUN))
def test_kills_at_random_updates_change_nothing(place: Place, expected: Straight, first: int) -> None:
    hits = []
    for seed in range(first, min(first + SEEDS_OF_A_RUN, NUM_SEEDS)):
        rng = random.Random(seed)
        hits.append((rng.randrange(CHECKPOINT_EVERY, NUM_UPDATES - 10), rng.uniform(0, 0.4), KINDS[seed % 3]))
    name = f"hit-{first}"
    driver = place.start(name)
    for after, delay_s, kind in sorted(hits):
        driver.wait_for_checkpoint(after)
        driver.wait(lambda: len(workers()) >= 2)  # those of the next attempt, after a hit
        time.sleep(delay_s)
        if kind == "the driver":
            assert driver.end(signal.SIGKILL) == -signal.SIGKILL
            driver = place.start(name)  # at once, while Ray still cleans up behind the dead one
        else:
            for victim in workers()[: 1 if kind == "a worker" else None]:
                victim.kill()
    assert driver.end() == 0, driver.log.read_text()
    same(place.record(name), expected)
    until(lambda: not workers(), lambda: f"orphans of killed drivers: {workers()}")


def test_a_frozen_worker_is_named_and_every_way_to_stop_resumes(place: Place, expected: Straight) -> None:
    hang_after = "cluster.hang_after_s=8"
    driver = place.start("stopped", hang_after)
    driver.wait_for_checkpoint(2 * CHECKPOINT_EVERY)
    frozen = workers()[0]
    frozen.suspend()
    second = place.start("stopped")
    assert second.end() == 2 and "is being trained by another process" in second.log.read_text()
    until(lambda: not frozen.is_running(), driver.log.read_text)
    driver.wait_for_checkpoint(5 * CHECKPOINT_EVERY)
    assert driver.end(signal.SIGTERM) == 128 + signal.SIGTERM, driver.log.read_text()
    told = driver.log.read_text()
    assert "the same command resumes" in told and "Traceback" not in told
    events = (driver.directory / "events.jsonl").read_text()
    assert f"(process {frozen.pid}, node" in events and "it is killed, and all start again" in events
    held = max(card.step for card in place.record("stopped").checkpoints().values())
    assert f"stopped at {held} of {NUM_UPDATES}" in told

    driver = place.start("stopped", hang_after)
    driver.wait_for_checkpoint(held + 2 * CHECKPOINT_EVERY)
    driver.send(signal.SIGINT)
    driver.wait(lambda: "press Ctrl-C again" in driver.log.read_text())
    assert driver.end(signal.SIGINT) == 128 + signal.SIGINT
    assert "Traceback" not in driver.log.read_text()

    driver = place.start("stopped", hang_after)
    assert driver.end() == 0, driver.log.read_text()
    same(place.record("stopped"), expected)
