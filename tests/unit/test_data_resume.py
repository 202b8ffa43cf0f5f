"""Preparing that breaks off, and rows that cannot be read: nothing is done twice, nothing is mixed, all is told."""

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdrl.data import Manifest
from cdrl.data.prepare import Options, prepare
from cdrl.errors import CdrlError, DataError, StorageError
from tests.data_parts import class_folders, everything, png


def shards(place: Path) -> dict[str, int]:
    """Name -> when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in place.glob("*.arrow")}


class Blocked:
    """The last thing that is written fails for real: a folder stands where the manifest's rename wants to go."""

    def __init__(self, place: Path) -> None:
        self.manifest, self.kept = place / "manifest.json", place.parent / "kept.json"

    def __enter__(self) -> None:
        if self.manifest.exists():
            self.manifest.rename(self.kept)
        self.manifest.mkdir(parents=True)

    def __exit__(self, *_: object) -> None:
        self.manifest.rmdir()
        if self.kept.exists():
            self.kept.rename(self.manifest)


def break_off(source: Path, place: Path, **options: object) -> Options:
    """Prepare a folder up to the manifest, which cannot be written."""
    chosen = Options.model_validate({"path": str(source), "shard_rows": 5, "holdout": 3, **options})
    with Blocked(place), pytest.raises(StorageError, match="cannot write .*manifest.json: .*Is a directory"):
        prepare("folder", str(place), chosen, overwrite=True)
    return chosen


def test_a_storage_failure_leaves_the_old_dataset_and_the_finished_shards(tmp_path: Path) -> None:
    place = tmp_path / "out"
    first = prepare("digits", str(place))
    options = break_off(class_folders(tmp_path / "source"), place)
    assert Manifest.read(str(place)) == first and len(everything(place)[0]) == 1297
    made = shards(place)
    again = prepare("folder", str(place), options, overwrite=True)
    assert len(shards(place)) == 4 and shards(place).items() <= made.items()
    assert {path.name for path in place.iterdir()} == {"manifest.json", *shards(place)}
    assert again == prepare("folder", str(tmp_path / "straight"), options)


def test_work_on_files_that_have_changed_is_not_taken_up(tmp_path: Path) -> None:
    source, place = class_folders(tmp_path / "source"), tmp_path / "out"
    options = break_off(source, place, holdout=0)
    made = shards(place)
    (source / "red" / "3.png").write_bytes(png(colour=(1, 2, 3)))
    again = prepare("folder", str(place), options)
    assert sum((image[:, 0, 0] == (1, 2, 3)).all() for image in everything(place)[0]) == 1
    assert again.digest == prepare("folder", str(tmp_path / "straight"), options).digest
    assert {shard.name for shard in again.splits["train"].shards} == set(shards(place)) != set(made)


@pytest.mark.parametrize("rows", [40, 30, 5])
def test_a_source_that_changes_under_way_is_refused(tmp_path: Path, rows: int) -> None:
    path, place = tmp_path / "rows.parquet", tmp_path / "out"
    options = Options(path=str(path), holdout=0, shard_rows=16)

    def write(colour: int, number: int) -> None:
        table = {"img": [png(colour=(colour, 0, 0))] * number, "label": [colour] * number}
        pq.write_table(pa.table(table), path, row_group_size=10)

    def change(what: str, done: int, total: int) -> None:
        if (what, done) == ("rows", 0):
            write(0, rows)

    write(1, 40)
    with pytest.raises(DataError, match="the source has changed meanwhile.*; run the same command again"):
        prepare("parquet", str(place), options, progress=change)
    assert not place.exists()
    assert prepare("parquet", str(place), options).splits["train"].rows == rows
    images, labels = everything(place)
    assert (images[:, 0] == 0).all() and (labels == 1).all()


def test_work_on_another_recipe_is_not_taken_up(tmp_path: Path) -> None:
    source, place = class_folders(tmp_path / "source"), tmp_path / "out"
    break_off(source, place, seed=1)
    other = Options(path=str(source), shard_rows=5, holdout=3, seed=2)
    assert prepare("folder", str(place), other) == prepare("folder", str(tmp_path / "straight"), other)
    assert not (place / ".prepare").exists()


@pytest.mark.parametrize("damage", ["came back changed", "vanished"])
def test_rows_laid_down_that_were_changed_are_refused_and_decoded_anew(tmp_path: Path, damage: str) -> None:
    source, place = class_folders(tmp_path / "source"), tmp_path / "out"
    options = break_off(source, place)
    for card in place.glob(".prepare/*/train-*.json"):
        card.unlink()
    (laid_down,) = place.glob(".prepare/*/run-*.rows")
    content = bytearray(laid_down.read_bytes())
    laid_down.unlink()
    if damage == "came back changed":
        content[100] ^= 1
        laid_down.write_bytes(content)
    with pytest.raises(StorageError, match=f"run-00000.rows: {damage}.*; run the same command again"):
        prepare("folder", str(place), options)
    assert prepare("folder", str(place), options) == prepare("folder", str(tmp_path / "straight"), options)


def test_a_finished_shard_that_was_damaged_is_made_again(tmp_path: Path) -> None:
    source, place = class_folders(tmp_path / "source"), tmp_path / "out"
    options = break_off(source, place)
    made = shards(place)
    damaged, lost, *_ = sorted(made)
    (place / damaged).write_bytes(b"x" * (place / damaged).stat().st_size)
    (place / lost).unlink()
    prepare("folder", str(place), options)
    everything(place)  # each shard is checked
    assert {name for name, time_ns in shards(place).items() if made[name] != time_ns} == {damaged, lost}


@pytest.mark.parametrize("first_ends", ["before the other", "after the other"])
@pytest.mark.parametrize("seeds", [(1, 2), (1, 1)])
def test_of_two_prepares_at_one_place_the_later_one_goes_on(
    tmp_path: Path, first_ends: str, seeds: tuple[int, int]
) -> None:
    source, place = class_folders(tmp_path / "source"), str(tmp_path / "out")
    one, other = (Options(path=str(source), shard_rows=5, holdout=3, seed=seed) for seed in seeds)
    all_stand, go_on, caught = threading.Event(), threading.Event(), []

    def watch(what: str, done: int, total: int) -> None:
        if what == "shards" and done == total:
            all_stand.set()
            assert go_on.wait(60)

    def first() -> None:
        caught.append(pytest.raises(StorageError, prepare, "folder", place, one, progress=watch))

    def watch_other(what: str, done: int, total: int) -> None:
        if what == "shards" and done == 3 and first_ends == "before the other":
            go_on.set()
            thread.join(60)

    thread = threading.Thread(target=first)
    thread.start()
    assert all_stand.wait(60)
    made = prepare("folder", place, other, progress=watch_other)
    go_on.set()
    thread.join(60)
    [error] = caught
    assert "another prepare has begun here and goes on alone" in str(error.value)
    assert made == Manifest.read(place) == prepare("folder", str(tmp_path / "straight"), other)
    assert len(everything(Path(place))[0]) == 15
    assert {path.name for path in Path(place).iterdir()} == {"manifest.json", *shards(Path(place))}


def broken_folders(root: Path) -> Path:
    """Eighteen images, of which one is cut, one is text and one is wider than the others."""
    folder = class_folders(root)
    (folder / "red" / "0.png").write_bytes(png()[:40])
    (folder / "green" / "1.png").write_text("not an image")
    (folder / "blue" / "2.png").write_bytes(png(side=9))
    return folder


def test_failures_are_left_out_counted_and_listed(tmp_path: Path) -> None:
    folder, place = broken_folders(tmp_path / "source"), tmp_path / "out"
    options = Options(path=str(folder), holdout=3)
    made = prepare("folder", str(place), options, max_bad=3)
    assert made.origin is not None and made.origin.num_failures == 3
    reasons = {failure.where: failure.reason for failure in made.origin.failures}
    assert set(reasons) == {str(folder / name) for name in ("red/0.png", "green/1.png", "blue/2.png")}
    assert reasons[str(folder / "green" / "1.png")].startswith("unreadable image: the format is not known")
    assert "blue/2.png is 3x9x9" in reasons[str(folder / "blue" / "2.png")]
    kept = {(int(label), int(image[0, 0, 0])) for split in ("train", "holdout") for image, label in zip(
        *everything(place, split), strict=True)}  # fmt: skip
    assert kept == {(c, number) for c in (1, 2, 3) for number in range(6)} - {(3, 0), (2, 1), (1, 2)}
    assert np.add(*(made.splits[split].label_counts for split in ("train", "holdout"))).tolist() == [0, 5, 5, 5]
    assert prepare("folder", str(place), options, max_bad=5) == made
    with pytest.raises(DataError, match="leaves out 3 rows that could not be read, --max-bad allows 2"):
        prepare("folder", str(place), options, max_bad=2)


@pytest.mark.parametrize(("max_bad", "message"), [(0, "mixed shapes|unreadable"), (2, "more than 2 rows cannot be")])
def test_more_failures_than_allowed_are_one_line(tmp_path: Path, max_bad: int, message: str) -> None:
    options = Options(path=str(broken_folders(tmp_path / "source")), holdout=0)
    with pytest.raises(DataError, match=message) as caught:
        prepare("folder", str(tmp_path / "out"), options, max_bad=max_bad)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_shard_whose_rows_all_failed_is_left_out(tmp_path: Path) -> None:
    options = Options(path=str(broken_folders(tmp_path / "source")), holdout=0, shard_rows=1)
    assert len(prepare("folder", str(tmp_path / "out"), options, max_bad=3).splits["train"].shards) == 15
    assert len(everything(tmp_path / "out")[0]) == 15
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "0.png").write_text("not an image")
    with pytest.raises(DataError, match="no row can be read; the first: .*0.png: unreadable image"):
        prepare("folder", str(tmp_path / "other"), Options(path=str(tmp_path / "none"), holdout=0), max_bad=1)


def test_the_same_rows_from_elsewhere_are_the_same_dataset(tmp_path: Path) -> None:
    here, there = class_folders(tmp_path / "here"), tmp_path / "there"
    shutil.copytree(here, there)
    places = ((tmp_path / f"of-{folder.name}", folder) for folder in (here, there))
    made = [prepare("folder", str(place), Options(path=str(folder), holdout=3)) for place, folder in places]
    assert made[0].digest == made[1].digest and made[0].path != made[1].path
    (there / "red" / "0.png").write_bytes(png())
    other = prepare("folder", str(tmp_path / "other"), Options(path=str(there), holdout=3))
    assert other.digest != made[0].digest


def test_rows_are_read_in_runs_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (60, 3))
    for number, (start, group) in enumerate(((0, 7), (23, 40), (30, 3))):
        stop = (23, 30, 60)[number]
        table = {"img": [png(colour=tuple(map(int, colour))) for colour in colours[start:stop]]}
        labels = [f"class {row % 4}" if row % 9 else None for row in range(start, stop)]
        pq.write_table(pa.table({**table, "label": labels}), tmp_path / f"{number}.parquet", row_group_size=group)
    options = Options(path=str(tmp_path), holdout=10, shard_rows=16)
    digests = set()
    for run_rows in (1, 7, 25, 8192):
        monkeypatch.setattr("cdrl.data.prepare.RUN_ROWS", run_rows)
        digests.add(prepare("parquet", str(tmp_path / str(run_rows)), options).digest)
    assert len(digests) == 1
    found = {
        (tuple(map(int, image[:, 0, 0])), int(label))
        for split in ("train", "holdout")
        for image, label in zip(*everything(tmp_path / "7", split), strict=True)
    }
    assert found == {
        (tuple(map(int, colour)), 1 + row % 4 if row % 9 else 0) for row, colour in enumerate(colours)
    }


def test_relative_paths_are_those_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    made = prepare("folder", "out", Options(path="source", holdout=3))
    assert made.path == "source" and Manifest.read(str(tmp_path / "out")) == made
    assert prepare("folder", "out", Options(path="source", holdout=3)) == made
    with pytest.raises(CdrlError, match="'source' -> 'elsewhere'"):
        prepare("folder", "out", Options(path="elsewhere", holdout=3))
    assert not os.path.exists("elsewhere")


def test_names_that_are_not_text_can_be_read_and_listed(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "source")
    for name in (b"\xff.png", b"\xfe.png"):
        os.rename(source / "red" / f"{name[0] & 1}.png", os.path.join(os.fsencode(source / "red"), name))
    with open(os.path.join(os.fsencode(source / "red"), b"\xfe.png"), "wb") as file:
        file.write(b"not an image")
    made = prepare("folder", str(tmp_path / "out"), Options(path=str(source), holdout=0), max_bad=1)
    assert made.origin is not None and made.splits["train"].rows == 17
    assert made.origin.failures[0].where.endswith("red/\\udcfe.png")


def test_datasets_from_before_origins_keep_their_digest(tmp_path: Path) -> None:
    source, place = class_folders(tmp_path / "source"), tmp_path / "out"
    options = Options(path=str(source), holdout=3)
    prepare("folder", str(place), options)
    tree = json.loads((place / "manifest.json").read_text())
    del tree["origin"], tree["digest"]
    tree["options"]["path"] = str(source)
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (place / "manifest.json").write_text(json.dumps({**tree, "digest": digest}))
    found = Manifest.read(str(place))
    assert found.digest == digest and found.path == str(source) and found.origin is None
    assert prepare("folder", str(place), options) == found
