"""A dataset that was changed behind the manifest's back is refused in one line."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cdrl.config import DataConfig
from cdrl.data import Dataset, Manifest
from cdrl.data.picture import contact_sheet
from cdrl.data.prepare import Options, prepare
from cdrl.data.shards import read_shard, write_shard
from cdrl.errors import DataError


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    prepare("digits", str(tmp_path / "digits"), Options(shard_rows=700))
    return tmp_path / "digits"


def first_shard(folder: Path) -> Path:
    return folder / Manifest.read(str(folder)).splits["train"].shards[0].name


def test_rows_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), np.uint8)
    write_shard(tmp_path / "x.arrow", rows, np.arange(5, dtype=np.int32))
    images, labels = read_shard(tmp_path / "x.arrow", (3, 4, 6), "uint8")
    np.testing.assert_array_equal(images, rows)
    np.testing.assert_array_equal(labels, np.arange(5))
    assert not images.flags.writeable and not images.flags.owndata
    # the very bytes of the file, and not a copy of them
    address = images.__array_interface__["data"][0]
    spans = [line.split()[0].split("-") for line in open("/proc/self/maps") if line.rstrip().endswith("x.arrow")]
    assert any(int(low, 16) <= address < int(high, 16) for low, high in spans)


def test_a_shard_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.arrow", np.zeros((5, 3, 4, 4), np.uint8), np.zeros(5, np.int32))
    with pytest.raises(DataError, match="expected image .*got"):
        read_shard(tmp_path / "x.arrow", (1, 4, 4), "uint8")
    (tmp_path / "y.arrow").write_text("not Arrow")
    with pytest.raises(DataError, match="not a shard"):
        read_shard(tmp_path / "y.arrow", (1, 4, 4), "uint8")


def test_no_dataset_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no dataset here.*cdrl data prepare"):
        Dataset.open(str(tmp_path))


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    prepare("digits", str(tmp_path), Options(holdout=0))
    for split in ("holdout", "test"):
        with pytest.raises(DataError, match=rf"split '{split}' has no rows; it has: train \(1797 rows\)"):
            Dataset.open(str(tmp_path), split)


def test_one_changed_bit_is_seen(digits: Path) -> None:
    shard = first_shard(digits)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=f"{shard.name}: the shard does not match the manifest"):
        Dataset.open(str(digits))
    assert len(Dataset.open(str(digits), "holdout")) == 500


def test_a_cut_and_a_missing_shard_are_named(digits: Path) -> None:
    shard = first_shard(digits)
    size = shard.stat().st_size
    os.truncate(shard, 1000)
    with pytest.raises(DataError, match=f"{shard.name}.*expected {size} bytes.*got 1000 bytes"):
        Dataset.open(str(digits))
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard.name}: the shard is missing"):
        Dataset.open(str(digits))


def edit(tree: dict[str, Any], path: str, value: Any) -> None:
    *folders, last = path.split("/")
    for folder in folders:
        tree = tree[int(folder) if isinstance(tree, list) else folder]
    tree[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("class_names", list("abcdefghij"), "changed after it was written"),
        ("splits/train/rows", 5, "train: 5 rows, but 1297 in shards"),
        ("digest", "0" * 64, "changed after it was written"),
        ("splits/train/shards/0/name", "../../etc/passwd", "splits.train.shards.0.name"),
        ("format", 2, "expected format 1, got 2"),
        ("surprise", 1, "surprise"),
        ("shape", "wide", "shape"),
        ("splits/train/shards/0/name", "train-00000-0123456789ab.arrow\n", "splits.train.shards.0.name"),
        ("splits/train/shards/0/name", "/tmp/train-00000-0123456789ab.arrow", "splits.train.shards.0.name"),
        ("splits/train/shards/0/bytes", 1000, "700 rows take 47600 bytes, it has 1000"),
        ("shape", [1, 10**9, 10**9], r"700 rows take \d+ bytes, it has"),
    ],
)
def test_an_edited_manifest_is_refused(digits: Path, path: str, value: Any, message: str) -> None:
    file = digits / "manifest.json"
    tree = json.loads(file.read_text())
    edit(tree, path, value)
    file.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=message) as caught:
        Manifest.read(str(digits))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="not a valid manifest"):
        Manifest.read(str(tmp_path))


def replace_shard(folder: Path, rows: np.ndarray, labels: np.ndarray, **changes: Any) -> str:
    """Put another shard in the place of the first, with a manifest that vouches for it; returns its name."""
    tree = Manifest.read(str(folder)).model_dump(mode="json")
    shard = tree["splits"]["train"]["shards"][0]
    write_shard(folder / shard["name"], rows, labels.astype(np.int32))
    content = (folder / shard["name"]).read_bytes()
    shard |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} | changes
    Manifest.model_validate(tree).write(str(folder))
    return shard["name"]


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (np.zeros((699, 1, 8, 8), np.uint8), np.ones(699), "expected 700 rows, got 699"),
        (np.zeros((700, 1, 8, 8), np.uint8), np.full(700, 11), r"expected labels 0 \.\.\. 10, got 11"),
        (np.zeros((700, 1, 8, 8), np.uint8), np.full(700, -1), r"expected labels 0 \.\.\. 10, got -1"),
        (np.zeros((700, 1, 4, 16), np.uint8), np.ones(700), "expected image .* got"),
        (np.zeros((700, 1, 8, 8), np.float32), np.ones(700), "expected image .* got"),
    ],
)
def test_a_shard_that_the_manifest_vouches_for_is_still_checked(
    digits: Path, rows: np.ndarray, labels: np.ndarray, message: str
) -> None:
    name = replace_shard(digits, rows, labels)
    with pytest.raises(DataError, match=f"{name}: {message}"):
        Dataset.open(str(digits))


def test_a_shard_with_other_columns_or_batches_is_refused(tmp_path: Path) -> None:
    batch = pa.record_batch({"image": pa.array([1, 2]), "other": pa.array([1, 2])})
    twice = pa.record_batch({"image": pa.array([1, 2]), "label": pa.array([1, 2], pa.int32())})
    for name, batches in {"columns": [batch], "batches": [twice, twice]}.items():
        with pa.OSFile(str(tmp_path / name), "wb") as sink, pa.ipc.new_file(sink, batches[0].schema) as writer:
            for one in batches:
                writer.write_batch(one)
        with pytest.raises(DataError, match=r"expected 1 record batch of \['image', 'label'\], got"):
            read_shard(tmp_path / name, (1,), "uint8")


def test_swapped_and_doubled_shards_are_refused(tmp_path: Path) -> None:
    manifest = prepare("digits", str(tmp_path), Options(shard_rows=324, holdout=501))  # 4 x 324 rows
    first, second, *_ = (tmp_path / shard.name for shard in manifest.splits["train"].shards)
    assert first.stat().st_size == second.stat().st_size
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])
    with pytest.raises(DataError, match=f"{first.name}: the shard does not match the manifest"):
        Dataset.open(str(tmp_path))
    tree = manifest.model_dump(mode="json")
    tree["splits"]["train"]["shards"][1] = tree["splits"]["train"]["shards"][0]
    with pytest.raises(ValueError, match="a shard is named twice"):
        Manifest.model_validate(tree)


def test_the_pinned_dataset_and_no_other(digits: Path) -> None:
    digest = Manifest.read(str(digits)).digest
    for length in (12, 64):
        data = DataConfig(uri=str(digits), digest=digest[:length])
        assert Dataset.of(data).manifest.digest == digest
    other = "0" * 12
    with pytest.raises(DataError, match=f"{digits}: another dataset: expected digest {other}, got {digest[:12]}"):
        Dataset.of(DataConfig(uri=str(digits), digest=other), "holdout")
    elsewhere = Dataset.of(DataConfig(uri="elsewhere", digest=other, stream=True), uri=str(digits))
    assert elsewhere.manifest.digest == digest and elsewhere.windows is not None


def test_a_long_opening_tells_how_far_it_is(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    Dataset.open(str(digits), tell=told.append)
    assert not told
    monkeypatch.setattr("cdrl.data.dataset.TELL_EVERY_S", -1.0)
    Dataset.of(DataConfig(uri=str(digits)), tell=told.append)
    assert [line.split(" of ")[0] for line in told] == [f"{digits}: 0", f"{digits}: 0"] and "0 MB are here" in told[1]


def test_a_stream_reads_the_same_rows_and_keeps_two_windows(tmp_path: Path) -> None:
    prepare("digits", str(tmp_path), Options(shard_rows=100, holdout=0))
    whole, stream = Dataset.open(str(tmp_path)), Dataset.open(str(tmp_path), window=2)
    assert len(stream) == len(whole) == 1797 and stream.windows is not None and whole.windows is None
    rows = np.random.default_rng(0).permutation(1797)[:200]
    np.testing.assert_array_equal(stream.images(rows), whole.images(rows))
    np.testing.assert_array_equal(stream.labels(rows), whole.labels(rows))
    seen = []
    for step in range(60):  # 1.7 epochs
        indices = stream.batch_indices(3, step, 50)
        np.testing.assert_array_equal(stream.images(indices), whole.images(indices))
        assert len(mapped_below(tmp_path)) <= 18 + 4
        seen.append(indices)
    assert sorted(np.concatenate(seen)[:1797]) == list(range(1797))
    before = len(mapped_below(tmp_path))
    del whole
    assert len(mapped_below(tmp_path)) <= min(4, before)


def mapped_below(folder: Path) -> list[str]:
    """Shards below a folder that this process has mapped now."""
    return [line for line in open("/proc/self/maps") if str(folder) in line and line.rstrip().endswith(".arrow")]


def test_the_manifest_survives_its_file(digits: Path) -> None:
    manifest = Manifest.read(str(digits))
    manifest.write(str(digits / "copy"))
    assert Manifest.read(str(digits / "copy")) == manifest
    assert json.loads((digits / "copy" / "manifest.json").read_text())["digest"] == manifest.digest


def test_the_contact_sheet_has_a_row_per_class(digits: Path) -> None:
    dataset = Dataset.open(str(digits))
    picture = np.asarray(contact_sheet(dataset))
    frame, side = 4, 48  # pixels: an 8x8 digit is enlarged six times
    margin = picture.shape[1] - (16 * (side + frame) + frame)
    assert margin > 0 and picture.shape[0] == 10 * (side + frame) + frame
    labels = dataset.labels(np.arange(len(dataset)))
    for label in range(1, 11):
        for column, digit in enumerate(dataset.images(np.flatnonzero(labels == label)[:16])):
            top = frame + (label - 1) * (side + frame)
            left = margin + frame + column * (side + frame)
            cell = picture[top : top + side, left : left + side]
            np.testing.assert_array_equal(cell, np.kron(digit[0], np.ones((6, 6), np.uint8))[..., None].repeat(3, -1))


def test_points_are_drawn_as_a_scatter_plot(tmp_path: Path) -> None:
    prepare("checkerboard", str(tmp_path))
    picture = contact_sheet(Dataset.open(str(tmp_path)))
    colours = picture.getcolors(maxcolors=1 << 20)
    assert colours is not None and len(colours) > 10
