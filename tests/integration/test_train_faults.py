"""Training on an S3 that fails in every way: what passes is ridden out, what is damaged is never loaded."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cdrl import storage
from cdrl.config import ClusterConfig, load
from cdrl.data import Dataset, Manifest
from cdrl.data.prepare import Options, prepare
from cdrl.errors import StorageError
from cdrl.model import Model
from cdrl.runs import RunRecord, step_folder
from cdrl.session import connected
from cdrl.training.checkpoint import snapshot
from cdrl.training.resume import newest_first, resume
from cdrl.training.state import TrainState
from cdrl.training.store import Keep, Store
from tests.faults import Fault, FaultProxy
from tests.training_parts import ATTEMPT, run_to, tiny_config, tiny_state
from tests.training_runs import Straight, command, digests, history, straight, tiny_file, trained, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

OUTAGE_S = float(os.environ.get("CDRL_OUTAGE_S", "8"))
NUM_UPDATES, CHECKPOINT_EVERY = 30, 5
SETTINGS = (
    f"training.num_updates={NUM_UPDATES}",
    f"run.checkpoint_every={CHECKPOINT_EVERY}",
    "run.log_every=1",
    "cluster.num_workers=2",
    "data.stream=true",  # shards are read all the time
    "data.window=1",
    "compute.chunkwise=always",  # the same bits with one worker and with two
)
ALONE = "cluster.num_workers=1"
DENIED = {"status": 403, "code": "AccessDenied"}
CONFIG = tiny_config("pairs=per_level", "training.num_updates=9")


class Place(NamedTuple):
    """A bucket behind a proxy, a folder, and a Ray session whose workers go through the proxy too."""

    bucket: str
    proxy: FaultProxy
    folder: Path
    source: str

    def settings(self, name: str) -> list[str]:
        places = {"data.uri": f"{self.bucket}/digits", "run.storage": f"{self.bucket}/runs", "run.name": name}
        local = {"data.cache": f"{self.folder}/cache-{name}", "run.root": f"{self.folder}/runs"}
        return [*SETTINGS, *(f"{key}={value}" for key, value in {**places, **local}.items())]

    def trained(self, name: str, *more: str) -> RunRecord:
        return trained(load(self.source, [*self.settings(name), *more]))


@pytest.fixture(scope="module")
def whole_place(lasting_faulty_s3: tuple[str, FaultProxy], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    bucket, proxy = lasting_faulty_s3
    prepare("digits", f"{bucket}/digits", Options(limit=60, holdout=0, shard_rows=12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        with connected(ClusterConfig(num_workers=2)):
            folder = tmp_path_factory.mktemp("faults")
            yield Place(bucket, proxy, folder, tiny_file(folder))


@pytest.fixture
def place(whole_place: Place) -> Iterator[Place]:
    yield whole_place
    whole_place.proxy.faults.clear()


@pytest.fixture(scope="module")
def expected(whole_place: Place) -> Straight:
    return straight(load(whole_place.source, whole_place.settings("straight")), whole_place.folder / "straight")


def test_storms_and_an_outage_cost_time_and_nothing_else(
    place: Place, expected: Straight, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy, begun = place.proxy, []
    slow_down = {"status": 503, "code": "SlowDown", "times": 6}
    faults: list[Fault] = [
        proxy.add(method="GET", key="/digits/.*arrow", skip=2, cut_after=300, times=5),
        proxy.add(method="GET", key="/digits/.*arrow", skip=3, **slow_down),
        proxy.add(method="PUT", key="/runs/stormy/step_00000005.*train", **slow_down),
        proxy.add(method="PUT", key="/runs/stormy/step_00000005.*state", lost=True, times=5),
        proxy.add(method="PUT", key="/runs/stormy/step_00000010.*pair", reset=True, times=5),
    ]
    proxy.add(method="GET", key="/digits/.*arrow", bytes_per_s=20_000)

    def break_down() -> None:
        until(lambda: proxy.asked("PUT", "/runs/stormy/step_00000015"), lambda: str(proxy.requests[-20:]))
        proxy.outage(OUTAGE_S)
        begun.append(True)

    breaker = threading.Thread(target=break_down, daemon=True)
    breaker.start()
    stormy = place.trained("stormy")
    breaker.join()
    assert begun and all(fault.times == 0 for fault in faults)
    assert digests(stormy) == expected.digests
    assert dict(history(stormy, "loss_energy")) == expected.metrics["loss_energy"]
    events = (stormy.directory / "events.jsonl").read_text().splitlines()
    (waited,) = [line for line in events if "s for the storage, all together" in line]
    lost_s = float(waited.split("workers waited ")[1].split()[0])
    assert lost_s >= OUTAGE_S - 2
    told = capsys.readouterr().err
    assert f"workers waited {lost_s:.0f} s for the storage" in told and "went on after" in told


def test_a_checkpoint_that_fails_and_one_that_rots_are_gone_around(
    place: Place, expected: Straight, capsys: pytest.CaptureFixture[str]
) -> None:
    place.proxy.add(method="PUT", key="/runs/rotten/step_00000015.*/train-00", **DENIED)
    assert command("train", place.source, *place.settings("rotten"), ALONE) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(told) == 1 and "AccessDenied" in told[0] and "step_00000015" in told[0]
    place.proxy.faults.clear()
    record = RunRecord.read("rotten", f"{place.folder}/runs")
    found = {card.step: uri for uri, card in record.checkpoints().items()}
    assert list(found) == [5, 10]
    damage(f"{found[10]}/train-00.safetensors", flipped)
    assert command("train", place.source, *place.settings("rotten"), ALONE) == 0
    events = (record.directory / "events.jsonl").read_text()
    assert f"{found[10]} is damaged and left out" in events and "train-00.safetensors" in events
    record = RunRecord.read("rotten", f"{place.folder}/runs")
    assert digests(record) == expected.digests
    assert [step for step, _ in history(record, "loss_energy")].count(CHECKPOINT_EVERY + 1) == 2  # it went back to 5


def test_a_damaged_shard_heals_or_ends_the_run_by_name_and_is_never_trained_on(
    place: Place, expected: Straight, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = Manifest.read(f"{place.bucket}/digits").splits["train"].shards
    name = f"{place.bucket}/digits/{shards[-1].name}"  # in the store: nothing mends it, now or after another start
    whole = damage(name, flipped)
    for _ in range(2):
        assert command("train", place.source, *place.settings("refused"), ALONE) == 2
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(told) == 1 and shards[-1].name in told[0] and "damaged" in told[0]
    storage.write_bytes(name, whole)
    copies = list((place.folder / "cache-refused").rglob("*.arrow"))
    for copy in copies:  # on this machine: they are fetched again
        damage(str(copy), flipped)
    assert copies and digests(place.trained("refused", ALONE)) == expected.digests


def test_wrong_credentials_are_one_line_at_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.proxy.add(status=403, code="InvalidAccessKeyId")
    place.proxy.requests.clear()
    assert command("train", place.source, *place.settings("stranger"), "run.storage_patience_s=3600") == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("error: ") and "InvalidAccessKeyId" in told[0]
    assert len(place.proxy.requests) == 1 and not (place.folder / "runs" / "stranger").exists()


def flipped(content: bytes) -> bytes:
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damage(uri: str, how: Callable[[bytes], bytes]) -> bytes:
    """Change an object in its place; returns what it was."""
    content = storage.read_bytes(uri)
    storage.write_bytes(uri, how(content))
    return content


def save(uri: str, state: TrainState, dataset: Dataset) -> None:
    """Write a checkpoint of the only rank, and wait for it."""
    with Store(uri, ATTEMPT, 0, {0}, Keep(last=9), lambda card, write_s: None) as store:
        state.settle_average()
        manifest = dataset.manifest
        model = Model(state.config, state.average, manifest.class_names, manifest.digest, state.step)
        store.save(snapshot(state, manifest.digest), model)


def resumed(uri: str, dataset: Dataset) -> tuple[int, list[str]]:
    """Where a run would go on, and what it would tell."""
    told: list[str] = []
    state = tiny_state(CONFIG)
    resume(state, uri, newest_first(uri, ()), dataset.manifest.digest, told.append)
    return state.step, told


@pytest.fixture
def faulty_runs(faulty_s3: tuple[str, FaultProxy], tmp_path: Path) -> tuple[str, FaultProxy, Dataset, TrainState]:
    """A run with a checkpoint at 2, by now at update 4."""
    bucket, proxy = faulty_s3
    prepare("digits", str(tmp_path / "digits"), Options(limit=60, holdout=0))
    dataset, state = Dataset.open(str(tmp_path / "digits")), tiny_state(CONFIG)
    run_to(state, dataset, 2)
    save(f"{bucket}/run", state, dataset)
    run_to(state, dataset, 4)
    return f"{bucket}/run", proxy, dataset, state


def test_a_write_that_fails_for_good_leaves_no_checkpoint(
    faulty_runs: tuple[str, FaultProxy, Dataset, TrainState],
) -> None:
    uri, proxy, dataset, state = faulty_runs
    expected = 7  # live and averaged weights of two pairs, the sentinel, model.json and state.json
    for number in range(expected):
        proxy.faults.clear()
        proxy.add(method="PUT", key="/run/step_00000004", skip=number, **DENIED)
        with pytest.raises(StorageError, match="step_00000004-.*AccessDenied"):
            save(uri, state, dataset)
        assert len(storage.listing(f"{uri}/{step_folder(4, ATTEMPT)}")) == number
        assert resumed(uri, dataset) == (2, [])
    proxy.faults.clear()
    proxy.requests.clear()
    save(uri, state, dataset)
    assert proxy.asked("PUT", "/run/step_00000004") == expected and resumed(uri, dataset) == (4, [])


def test_damaged_files_are_never_loaded(faulty_runs: tuple[str, FaultProxy, Dataset, TrainState]) -> None:
    uri, _, dataset, state = faulty_runs
    save(uri, state, dataset)
    newest = f"{uri}/{step_folder(4, ATTEMPT)}"
    names = storage.listing(newest)
    assert len(names) == 7
    for name in names:
        for how in (flipped, truncated):
            content = damage(f"{newest}/{name}", how)
            step, told = resumed(uri, dataset)
            assert step == 2 and len(told) == 1 and name in told[0] and "is damaged and left out" in told[0]
            storage.write_bytes(f"{newest}/{name}", content)
        storage.remove(f"{newest}/{name}")
        step, told = resumed(uri, dataset)
        assert step == 2 and len(told) == (name != "state.json") and all(f"/{name}: missing" in line for line in told)
        storage.write_bytes(f"{newest}/{name}", content)
    assert resumed(uri, dataset) == (4, [])


def test_what_changes_on_its_way_is_fetched_again(
    faulty_runs: tuple[str, FaultProxy, Dataset, TrainState],
) -> None:
    uri, proxy, dataset, state = faulty_runs
    save(uri, state, dataset)
    faults = [proxy.add(method="GET", key=f"step_00000004.*/{name}", flip=-9, times=1) for name in ("train-00", "pair")]
    assert resumed(uri, dataset) == (4, []) and [fault.times for fault in faults] == [0, 0]
