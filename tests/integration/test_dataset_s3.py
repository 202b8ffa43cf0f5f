"""Shards from S3: fetched once for a machine, checked whenever they are opened, and given up when room is needed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from cdrl import storage
from cdrl.config import DataConfig
from cdrl.data import Dataset, Manifest
from cdrl.data.prepare import Options, prepare
from cdrl.errors import DataError, StorageError
from tests.faults import FaultProxy

pytestmark = pytest.mark.integration

Faulty = tuple[str, FaultProxy]
ALL = np.arange(1797)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in 18 shards of 100 rows."""
    folder = tmp_path_factory.mktemp("digits")
    prepare("digits", str(folder), Options(shard_rows=100, holdout=0))
    return folder


@pytest.fixture
def far(faulty_s3: Faulty, prepared: Path) -> tuple[str, FaultProxy]:
    """(their place on S3, the proxy before it)."""
    uri, proxy = faulty_s3
    for name in storage.listing(str(prepared)):
        storage.upload(prepared / name, f"{uri}/digits/{name}")
    proxy.requests.clear()
    return f"{uri}/digits", proxy


def shards(folder: Path) -> list[Path]:
    """The shards in a cache, by name."""
    return sorted(folder.glob("*/*.arrow"))


def taken(folder: Path) -> int:
    """Bytes of the shards in a cache, from which a thread may take some at this moment."""
    total = 0
    for path in shards(folder):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def flip(path: Path) -> None:
    """Change one byte, and nothing that a look at the folder would show."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_dataset_on_s3_is_the_local_one_and_is_read_once(far: Faulty, prepared: Path, tmp_path: Path) -> None:
    uri, proxy = far
    here, there = Dataset.open(str(prepared)), Dataset.open(uri, cache=str(tmp_path))
    np.testing.assert_array_equal(there.images(ALL), here.images(ALL))
    np.testing.assert_array_equal(there.labels(ALL), here.labels(ALL))
    assert [proxy.asked("GET", path.name) for path in shards(tmp_path)] == [1] * 18
    # the shards may now vanish from the server
    for path in shards(tmp_path):
        storage.remove(f"{uri}/{path.name}")
    assert len(Dataset.open(uri, cache=str(tmp_path))) == 1797
    with pytest.raises(StorageError, match=f"cannot download {uri}/train-0000"):
        Dataset.open(uri, cache=str(tmp_path / "other"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "swap", "link", "empty"])
def test_a_damaged_copy_is_fetched_again_and_never_read(
    far: Faulty, prepared: Path, tmp_path: Path, damage: str
) -> None:
    uri, proxy = far
    Dataset.open(uri, cache=str(tmp_path))
    first, second, *_ = shards(tmp_path)
    if damage == "flip":
        flip(first)
    elif damage == "truncate":
        os.truncate(first, 1000)
    elif damage == "swap":
        first.write_bytes(second.read_bytes())
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(first.read_bytes())
        first.unlink()
        first.symlink_to(tmp_path / "elsewhere")
    else:
        first.write_bytes(b"")
    proxy.requests.clear()
    np.testing.assert_array_equal(
        Dataset.open(uri, cache=str(tmp_path)).images(ALL), Dataset.open(str(prepared)).images(ALL)
    )
    assert first.read_bytes() == (prepared / first.name).read_bytes() and not first.is_symlink()
    assert [path for method, path in proxy.requests if method == "GET" and path.endswith(".arrow")] == [
        f"/{uri.removeprefix('s3://')}/{first.name}"
    ]


def test_a_damaged_shard_on_s3_is_named_now_and_after_a_restart(far: Faulty, prepared: Path, tmp_path: Path) -> None:
    uri, _ = far
    copy = tmp_path / "copy.arrow"
    name = sorted(path.name for path in prepared.glob("*.arrow"))[3]
    copy.write_bytes((prepared / name).read_bytes())
    flip(copy)
    storage.upload(copy, f"{uri}/{name}")
    for window in (None, 2, None):
        with pytest.raises(DataError, match=f"{uri}/{name}: damaged: expected SHA-256"):
            Dataset.open(uri, cache=str(tmp_path / "cache"), window=window).images(ALL)
        assert not any(name in path.name for path in shards(tmp_path / "cache"))


def test_of_a_shard_that_grew_on_s3_nothing_is_fetched(far: Faulty, prepared: Path, tmp_path: Path) -> None:
    uri, proxy = far
    shard = sorted(prepared.glob("*.arrow"))[3]
    storage.write_bytes(f"{uri}/{shard.name}", shard.read_bytes() + b"more")
    with pytest.raises(DataError, match=f"{uri}/{shard.name}: damaged: expected {shard.stat().st_size} bytes, got"):
        Dataset.open(uri, cache=str(tmp_path))
    assert not proxy.asked("GET", shard.name)


def test_a_byte_that_changes_on_its_way_heals(far: Faulty, prepared: Path, tmp_path: Path) -> None:
    uri, proxy = far
    proxy.add(method="GET", key=r"\.arrow", flip=3000, times=3)
    proxy.add(method="GET", key=r"\.arrow", cut_after=1000, times=3)
    proxy.add(method="GET", status=503, code="SlowDown", times=6)
    far_rows = Dataset.open(uri, cache=str(tmp_path)).images(ALL)
    np.testing.assert_array_equal(far_rows, Dataset.open(str(prepared)).images(ALL))
    assert all(fault.times == 0 for fault in proxy.faults)


OPEN_AND_SUM = """
import sys
from cdrl.data import Dataset
dataset = Dataset.open(sys.argv[1], cache=sys.argv[2])
print(dataset.images(range(len(dataset))).sum(), flush=True)
sys.stdin.read()
"""


def reader(uri: str, cache: Path) -> subprocess.Popen[str]:
    """Another process that opens the dataset, tells the sum of its pixels, and lives until its input ends."""
    command = [sys.executable, "-c", OPEN_AND_SUM, uri, str(cache)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_processes_share_one_download_and_a_killed_one_leaves_no_lock(
    far: Faulty, prepared: Path, tmp_path: Path
) -> None:
    uri, proxy = far
    # one that is killed in the middle of a download
    slow = proxy.add(method="GET", key=r"\.arrow", bytes_per_s=1)
    killed = reader(uri, tmp_path)
    while not proxy.asked("GET", ".arrow") and killed.poll() is None:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    [lock, *_] = sorted(tmp_path.glob("*/.*.lock"))
    rest = lock.with_suffix(".0123456789ab.partial.0Fd3")  # what is left of a larger one
    rest.write_bytes(b"half")
    slow.times = 0
    proxy.requests.clear()
    readers = [reader(uri, tmp_path) for _ in range(2)]
    sums = {int(process.communicate(timeout=120)[0]) for process in readers}
    assert sums == {int(Dataset.open(str(prepared)).images(ALL).sum())}
    assert [proxy.asked("GET", path.name) for path in shards(tmp_path)] == [1] * 18
    assert not rest.exists()


def test_the_least_recently_opened_shards_give_way_and_none_that_is_in_use(far: Faulty, tmp_path: Path) -> None:
    uri, proxy = far
    sizes = {shard.name: shard.bytes for shard in Manifest.read(uri).splits["train"].shards}
    room = sum(sizes.values()) + 100
    other = uri.replace("digits", "other")
    prepare("digits", other, Options(shard_rows=100, holdout=0, limit=500))

    with pytest.raises(StorageError, match=r"data.cache_bytes allows 1000; set data.stream=true or allow more"):
        Dataset.open(uri, cache=str(tmp_path), cache_bytes=1000)
    first = Dataset.open(uri, cache=str(tmp_path), cache_bytes=room)
    assert taken(tmp_path) == sum(sizes.values())
    proxy.requests.clear()
    # all are mapped: nothing gives way
    second = Dataset.open(other, cache=str(tmp_path), cache_bytes=room)
    assert {path.name for path in shards(tmp_path)} >= set(sizes) and taken(tmp_path) > room
    made = [shard.name for shard in second.manifest.splits["train"].shards]
    assert [proxy.asked("GET", name) for name in made] == [1] * 5, "nor does what was fetched and is not mapped yet"
    pixels = first.images(ALL)
    del first, second
    second = Dataset.open(other, cache=str(tmp_path), cache_bytes=room)  # these are the latest now
    used = {shard.name for shard in second.manifest.splits["train"].shards}
    del second
    (tmp_path / "notes.arrow").write_bytes(b"no shard")
    third = prepare("digits", uri.replace("digits", "third"), Options(shard_rows=100, holdout=0, limit=200))
    Dataset.open(uri.replace("digits", "third"), cache=str(tmp_path), cache_bytes=room)
    left = {path.name for path in shards(tmp_path)}
    assert taken(tmp_path) <= room and 0 < len(left & set(sizes)) < len(sizes)
    assert left >= used | {shard.name for shard in third.splits["train"].shards}
    assert (tmp_path / "notes.arrow").exists()
    np.testing.assert_array_equal(Dataset.open(uri, cache=str(tmp_path), cache_bytes=room).images(ALL), pixels)


def test_what_another_process_uses_stays(far: Faulty, tmp_path: Path) -> None:
    uri, _ = far
    small = uri.replace("digits", "small")
    prepare("digits", small, Options(shard_rows=100, holdout=0, limit=300))
    user = reader(small, tmp_path)
    assert user.stdout is not None and int(user.stdout.readline()) > 0
    used = set(shards(tmp_path))
    stream = {"cache": str(tmp_path), "cache_bytes": 60_000, "window": 2}  # eight shards, and 18 are read
    Dataset.open(uri, **stream).images(ALL)
    assert len(used) == 3 and used <= set(shards(tmp_path))
    user.communicate()
    Dataset.open(uri, **stream).images(ALL)
    assert not used & set(shards(tmp_path))


@pytest.mark.parametrize("cache_bytes", [None, 60_000])
def test_a_stream_has_a_window_and_the_next_one_on_the_disk(
    far: Faulty, prepared: Path, tmp_path: Path, cache_bytes: int | None
) -> None:
    uri, _ = far
    data = DataConfig(uri=uri, cache=str(tmp_path), cache_bytes=cache_bytes, stream=True, window=2)
    stream, whole = Dataset.of(data), Dataset.open(str(prepared))
    limit = cache_bytes or 4 * max(path.stat().st_size for path in prepared.glob("*.arrow"))
    for step in range(50):
        rows = stream.batch_indices(3, step, 50)
        np.testing.assert_array_equal(stream.images(rows), whole.images(rows))
        np.testing.assert_array_equal(stream.labels(rows), whole.labels(rows))
        assert taken(tmp_path) <= limit


def test_a_shard_that_comes_in_the_background_fails_where_it_is_read(far: Faulty, tmp_path: Path) -> None:
    uri, proxy = far
    stream = Dataset.open(uri, cache=str(tmp_path), window=2)
    told: list[str] = []
    with storage.patience(0.5, lambda text, lost_s: told.append(text)):
        rows = stream.batch_indices(3, 0, 10)
        stream.images(rows)
        proxy.outage(600)
        with pytest.raises(StorageError, match=r"cannot download .*train-\d+-.*; tried for \d+ s"):
            for step in range(1, 50):
                stream.images(stream.batch_indices(3, step, 10))
    assert told, "the patience of the reading thread holds in the background"


def test_the_usual_cache_belongs_to_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, far: Faulty) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"cdrl-cache-{os.getuid()}").symlink_to(tmp_path / "theirs")
    with pytest.raises(StorageError, match="not a folder of this user; set data.cache"):
        Dataset.open(far[0])
