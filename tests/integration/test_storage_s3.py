"""The storage door and the datasets behind it, over a real S3 protocol on the loopback."""

import hashlib
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cdrl import storage
from cdrl.data import Dataset, Manifest
from cdrl.data.prepare import Options, prepare
from cdrl.errors import DataError, StorageError

pytestmark = pytest.mark.integration


def test_bytes_come_back(s3: str, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(9_000_000)  # more than one part of a multipart upload
    (tmp_path / "up").write_bytes(content)
    storage.upload(tmp_path / "up", f"{s3}/deep/x.bin")
    storage.write_bytes(f"{s3}/deep/y.bin", b"abc")
    assert storage.read_bytes(f"{s3}/deep/x.bin") == content
    assert storage.read_bytes(f"{s3}/deep/y.bin") == b"abc"
    storage.download(f"{s3}/deep/x.bin", tmp_path / "down", sha256=hashlib.sha256(content).hexdigest())
    assert (tmp_path / "down").read_bytes() == content
    assert storage.listing(f"{s3}/deep") == storage.listing(f"{s3}/deep/") == ["x.bin", "y.bin"]
    assert storage.listing(s3) == ["deep/x.bin", "deep/y.bin"]


def test_exists_means_an_object(s3: str) -> None:
    storage.write_bytes(f"{s3}/run/model.json", b"{}")
    assert storage.exists(f"{s3}/run/model.json")
    assert not storage.exists(f"{s3}/run/model")
    assert not storage.exists(f"{s3}/run")
    storage.remove(f"{s3}/run/model.json")
    storage.remove(f"{s3}/run/model.json")
    assert not storage.exists(f"{s3}/run/model.json")


def test_a_listing_longer_than_a_page_is_whole(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "5")  # the server's page
    for number in range(12):
        storage.write_bytes(f"{s3}/{number:02d}", b"")
    assert storage.listing(s3) == [f"{number:02d}" for number in range(12)]


def test_the_arrow_file_system_sees_the_same_bytes(s3: str) -> None:
    storage.write_bytes(f"{s3}/deep/x.bin", b"abc")
    filesystem, path = storage.filesystem(f"{s3}/deep")
    with filesystem.open_input_stream(f"{path}/x.bin") as stream:
        assert stream.read() == b"abc"


def test_what_is_not_there_is_named(s3: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"cannot read {s3}/x at http://127.0.0.1:.*NoSuchKey"):
        storage.read_bytes(f"{s3}/x")
    with pytest.raises(StorageError, match=f"cannot download {s3}/x"):
        storage.download(f"{s3}/x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="bucket does not exist"):
        storage.exists("s3://cdrl-no-such-bucket/x")


def test_an_unreachable_endpoint_is_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    expected = rf"cannot look for .*manifest.json at {endpoint}: .*connect.*; tried for \d+ s$"
    with storage.patience(0.1), pytest.raises(StorageError, match=expected) as caught:
        Dataset.open(f"{s3}/digits")
    assert "\n" not in str(caught.value)


def test_a_dataset_on_s3_is_the_local_one(s3: str, tmp_path: Path) -> None:
    options = Options(shard_rows=500)
    there, here = prepare("digits", f"{s3}/digits", options), prepare("digits", str(tmp_path / "digits"), options)
    assert there == here and there.digest == here.digest
    names = {shard.name for split in there.splits.values() for shard in split.shards}
    assert set(storage.listing(f"{s3}/digits")) == {"manifest.json", *names}
    rows = np.arange(1297)
    far = Dataset.open(f"{s3}/digits", cache=str(tmp_path / "cache"))
    np.testing.assert_array_equal(far.images(rows), Dataset.open(str(tmp_path / "digits")).images(rows))
    # read once: the shards may now vanish from the server
    for name in names:
        storage.remove(f"{s3}/digits/{name}")
    assert len(Dataset.open(f"{s3}/digits", cache=str(tmp_path / "cache"))) == 1297
    with pytest.raises(StorageError, match=f"cannot download {s3}/digits/train-00000"):
        Dataset.open(f"{s3}/digits", cache=str(tmp_path / "other"))


def test_a_damaged_shard_is_refused_and_a_damaged_copy_is_fetched_again(s3: str, tmp_path: Path) -> None:
    manifest = prepare("digits", f"{s3}/digits")
    name, cache = manifest.splits["train"].shards[0].name, tmp_path / "cache"
    Dataset.open(f"{s3}/digits", cache=str(cache))
    copy = cache / manifest.digest / name
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    pixels = Dataset.open(f"{s3}/digits", cache=str(cache)).images([0])
    assert storage.sha256_file(copy) == manifest.splits["train"].shards[0].sha256
    damaged = bytearray(copy.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    storage.write_bytes(f"{s3}/digits/{name}", bytes(damaged))
    with pytest.raises(DataError, match=f"{name}: damaged: expected SHA-256"):
        Dataset.open(f"{s3}/digits", cache=str(tmp_path / "other"))
    assert list((tmp_path / "other" / manifest.digest).iterdir()) == []
    np.testing.assert_array_equal(Dataset.open(f"{s3}/digits", cache=str(cache)).images([0]), pixels)


OPEN_AND_SUM = """
import sys
from cdrl.data import Dataset
dataset = Dataset.open(sys.argv[1], cache=sys.argv[2])
print(dataset.images(range(len(dataset))).sum())
"""


def test_two_processes_may_fill_one_cache(s3: str, tmp_path: Path) -> None:
    prepare("digits", f"{s3}/digits", Options(shard_rows=100))
    command = [sys.executable, "-c", OPEN_AND_SUM, f"{s3}/digits", str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = {int(process.communicate(timeout=60)[0]) for process in processes}
    assert sums == {int(Dataset.open(f"{s3}/digits", cache=str(tmp_path)).images(np.arange(1297)).sum())}
    folder = tmp_path / Manifest.read(f"{s3}/digits").digest
    assert all(path.suffix == ".arrow" for path in folder.iterdir()) and len(list(folder.iterdir())) == 13
