"""Preparing on S3: the same bytes from any number of Ray workers, and after a SIGKILL; damaged uploads are seen."""

import io
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cdrl import storage
from cdrl.config import ClusterConfig
from cdrl.data import Dataset, Manifest
from cdrl.data.prepare import Options, prepare
from cdrl.errors import DataError, StorageError
from cdrl.session import connected
from tests.faults import FaultProxy

pytestmark = pytest.mark.integration

NUM_ROWS, BAD_ROWS = 300, (7, 123, 280)
Faulty = tuple[str, FaultProxy]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two Parquet files of JPEG images, class after class, with three rows that are no images."""
    folder, rng = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    rows: list[bytes] = []
    for number in range(NUM_ROWS):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(buffer, "JPEG")
        rows.append(b"junk" if number in BAD_ROWS else buffer.getvalue())
    labels = [number // 75 for number in range(NUM_ROWS)]
    for name, half in (("a", slice(0, 170)), ("b", slice(170, NUM_ROWS))):
        table = pa.table({"image": rows[half], "label": labels[half]})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=50)
    return str(folder)


def kill_a_busy_worker() -> None:
    """SIGKILL to one of the Ray processes of this test that decode."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        for child in psutil.Process().children(recursive=True):
            if child.name().startswith("ray::Map(outcome"):
                child.kill()
                return
        time.sleep(0.01)
    raise AssertionError([child.name() for child in psutil.Process().children(recursive=True)])


def test_any_number_of_workers_makes_the_same_dataset_also_if_one_is_killed(
    faulty_s3: Faulty, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3, proxy = faulty_s3
    monkeypatch.setattr("cdrl.data.prepare.RUN_ROWS", 40)
    options = Options(path=source, shard_rows=32, holdout=40)
    alone = prepare("parquet", str(tmp_path / "alone"), options, max_bad=3)
    seen: list[tuple[str, int, int]] = []

    # the worker that lays down this run waits, and is killed while it does
    stuck = proxy.add(method="PUT", key=r"/2/.*/run-00003\.rows", status=503, code="SlowDown")

    def watch(what: str, done: int, total: int) -> None:
        if workers == 2 and what == "rows" and done and stuck in proxy.faults:
            kill_a_busy_worker()
            proxy.faults.remove(stuck)
        seen.append((what, done, total))

    with connected(ClusterConfig(num_workers=2)):
        for workers in (1, 2):
            seen.clear()
            made = prepare(
                "parquet",
                f"{s3}/{workers}",
                options,
                max_bad=3,
                workers=workers,
                progress=watch,
            )
            assert made == alone and Manifest.read(f"{s3}/{workers}") == alone
            assert ("rows", NUM_ROWS, NUM_ROWS) in seen and seen[-1] == ("shards", 11, 11)
            names = [shard.name for split in made.splits.values() for shard in split.shards]
            assert storage.listing(f"{s3}/{workers}") == sorted(["manifest.json", *names])
            assert storage.listing(f"{s3}/{workers}/.prepare") == []
        with pytest.raises(DataError, match="more than 2 rows cannot be read .* first: .*unreadable image") as caught:
            prepare("parquet", f"{s3}/bad", options, max_bad=2, workers=2)
        assert "\n" not in str(caught.value)
    assert stuck not in proxy.faults
    assert alone.origin is not None and alone.origin.num_failures == 3
    assert {failure.where.rsplit("/")[-1] for failure in alone.origin.failures} == {
        "a.parquet row 7", "a.parquet row 123", "b.parquet row 110"
    }  # fmt: skip


def test_a_prepare_that_was_killed_goes_on_where_it_stopped(faulty_s3: Faulty, source: str, tmp_path: Path) -> None:
    s3, proxy = faulty_s3
    stuck = proxy.add(method="PUT", key=r"/train-00004-.*\.arrow", status=503, code="SlowDown")
    given = ["--path", source, "--shard-rows", "32", "--holdout", "40", "--max-bad", "3"]
    command = [str(Path(sys.executable).parent / "cdrl"), "data", "prepare", "parquet", f"{s3}/out", *given]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline_s = time.monotonic() + 120
    while not any(method == "PUT" and "/train-00004-" in key for method, key in proxy.requests):
        assert process.poll() is None and time.monotonic() < deadline_s, process.communicate()[0]
        time.sleep(0.02)
    process.kill()
    process.communicate()
    with pytest.raises(DataError, match="no dataset here"):
        Manifest.read(f"{s3}/out")

    proxy.faults.remove(stuck)
    before = len(proxy.requests)
    assert "prepared: " in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    written = Counter(
        Path(key).name for method, key in proxy.requests[before:] if method == "PUT" and not key.endswith(".json")
    )
    assert [re.sub("-[0-9a-f]{12}.arrow", "", name) for name in sorted(written)] == [
        "holdout-00000", "holdout-00001", *(f"train-{number:05d}" for number in range(4, 9))
    ]  # fmt: skip
    assert set(written.values()) == {1}
    options = Options(path=source, shard_rows=32, holdout=40)
    assert Manifest.read(f"{s3}/out") == prepare("parquet", str(tmp_path / "straight"), options, max_bad=3)


def test_a_damaged_upload_is_repeated_and_a_store_that_damages_is_refused(
    faulty_s3: Faulty, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3, proxy = faulty_s3
    monkeypatch.setattr("cdrl.data.gather.READ_BACK_PATIENCE_S", 0.0)
    options = Options(path=source, holdout=0)
    once = proxy.add(method="PUT", key=r"\.arrow", flip_sent=500, times=1)
    made = prepare("parquet", f"{s3}/once", options, max_bad=3)
    assert once.times == 0 and proxy.asked("PUT", made.splits["train"].shards[0].name) == 2
    assert len(Dataset.open(f"{s3}/once", cache=str(tmp_path))) == NUM_ROWS - 3  # which checks each shard
    proxy.add(method="PUT", key=r"\.arrow", flip_sent=500)
    with pytest.raises(StorageError, match=r"train-00000-.*arrow: uploaded 3 times, never read back unchanged"):
        prepare("parquet", f"{s3}/always", options, max_bad=3)
    with pytest.raises(DataError, match="no dataset here"):
        Manifest.read(f"{s3}/always")
