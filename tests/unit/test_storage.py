"""Local files behind the storage door; S3 is in tests/integration/test_storage_s3.py."""

import hashlib
from pathlib import Path

import pytest

from cdrl import storage
from cdrl.errors import DataError, StorageError


def test_the_three_spellings_of_a_local_place_agree(tmp_path: Path) -> None:
    place = tmp_path / "a folder" / "x.bin"
    storage.write_bytes(str(place), b"abc")
    spelled = place.as_uri()
    assert spelled.startswith("file:///") and "%20" in spelled
    assert storage.read_bytes(spelled) == storage.read_bytes(str(place)) == b"abc"
    assert storage.local_path(spelled) == place
    assert storage.filesystem(spelled)[1] == str(place)


def test_join_goes_down_one_folder_whatever_the_trailing_slash() -> None:
    assert storage.join("s3://bucket/run/", "last", "model.json") == "s3://bucket/run/last/model.json"
    assert storage.join("runs", "a") == storage.join("runs/", "a") == "runs/a"


def test_listing_names_files_below_and_hides_unfinished_ones(tmp_path: Path) -> None:
    for name in ("b/c.bin", "a.bin", ".a.bin.0123.partial"):
        storage.write_bytes(storage.join(str(tmp_path), name), b"")
    assert storage.listing(str(tmp_path)) == ["a.bin", "b/c.bin"]
    assert storage.listing(str(tmp_path / "nowhere")) == []


def test_exists_means_a_file(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x"), b"")
    assert storage.exists(str(tmp_path / "x"))
    assert not storage.exists(str(tmp_path))
    storage.remove(str(tmp_path / "x"))
    assert not storage.exists(str(tmp_path / "x"))


def test_what_is_not_there_is_found_as_nothing(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x"), b"abc")
    assert storage.find_bytes(str(tmp_path / "x")) == b"abc"
    for nothing in ("y", "x/y", "."):
        assert storage.find_bytes(str(tmp_path / nothing)) is None


def test_a_write_that_fails_leaves_the_old_content_and_no_rest(tmp_path: Path) -> None:
    place = tmp_path / "x"
    storage.write_bytes(str(place), b"old")
    with pytest.raises(StorageError, match="No such file"):
        storage.upload(tmp_path / "missing", str(place))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert place.read_bytes() == b"old"


def test_download_keeps_nothing_of_another_digest(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "below" / "target"
    source.write_bytes(b"abc")
    storage.download(str(source), target, sha256=hashlib.sha256(b"abc").hexdigest())
    assert target.read_bytes() == b"abc"
    source.write_bytes(b"abd")
    with pytest.raises(DataError, match="damaged"):
        storage.download(str(source), target, sha256=hashlib.sha256(b"abc").hexdigest())
    assert target.read_bytes() == b"abc"
    with pytest.raises(DataError, match="damaged: expected 2 bytes, got 3"):
        storage.download(str(source), target, num_bytes=2)
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("uri", ["gs://bucket/key", "http://localhost/key", "file://elsewhere/key", "s3:///key"])
def test_places_of_another_kind_are_refused(uri: str) -> None:
    with pytest.raises(StorageError, match=uri):
        storage.read_bytes(uri)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"cannot read {tmp_path}/x: .*No such file"):
        storage.read_bytes(str(tmp_path / "x"))
