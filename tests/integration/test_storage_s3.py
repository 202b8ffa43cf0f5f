"""The storage door and the datasets behind it, over a real S3 protocol on the loopback."""

import hashlib
import socket
from pathlib import Path

import numpy as np
import pytest

from cdrl import storage
from cdrl.data import Dataset
from cdrl.errors import StorageError

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
    assert storage.find_bytes(f"{s3}/x") is None
    for look in (storage.exists, storage.find_bytes):
        with pytest.raises(StorageError, match="bucket does not exist"):
            look("s3://cdrl-no-such-bucket/x")


def test_an_unreachable_endpoint_is_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    expected = rf"cannot look for .*manifest.json at {endpoint}: .*connect.*; tried for \d+ s$"
    with storage.patience(0.1), pytest.raises(StorageError, match=expected) as caught:
        Dataset.open(f"{s3}/digits")
    assert "\n" not in str(caught.value)
