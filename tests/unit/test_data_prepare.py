"""From sources to datasets and back: nothing lost, nothing half-written, bad input in one line."""

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cdrl.data import Dataset
from cdrl.data.images import decode
from cdrl.data.prepare import Options, prepare
from cdrl.errors import DataError
from tests.data_parts import COLOURS, class_folders, everything, png


def test_digits_are_scikit_learns_and_so_is_the_split(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    manifest = prepare("digits", str(tmp_path))
    images, target = load_digits(return_X_y=True)
    expected = train_test_split(images, target, test_size=500, stratify=target, random_state=0)
    for split, sixteenths, classes in (("train", *expected[::2]), ("holdout", *expected[1::2])):
        pixels, labels = everything(tmp_path, split)
        assert pixels.shape == (len(classes), 1, 8, 8) and pixels.dtype == np.uint8
        found = {(label - 1, row.tobytes()) for label, row in zip(labels, pixels, strict=True)}
        stretched = np.rint(sixteenths * 255 / 16).astype(np.uint8)
        assert found == {(label, row.tobytes()) for label, row in zip(classes, stretched, strict=True)}
    assert manifest.class_names == tuple("0123456789")
    assert manifest.shape == (1, 8, 8)


def test_the_manifest_counts_and_measures_what_the_shards_hold(tmp_path: Path) -> None:
    manifest = prepare("digits", str(tmp_path), Options(shard_rows=500))
    train = manifest.splits["train"]
    assert [shard.rows for shard in train.shards] == [500, 500, 297]
    pixels, labels = everything(tmp_path)
    assert train.label_counts == tuple(np.bincount(labels, minlength=11))
    assert manifest.mean[0] == pytest.approx(pixels.mean())
    assert manifest.std[0] == pytest.approx(pixels.std())


def test_shards_are_cut_by_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdrl.data.prepare.SHARD_BYTES", 64 * 600)  # 600 digits of 8x8 bytes
    shards = prepare("digits", str(tmp_path)).splits["train"].shards
    assert [shard.rows for shard in shards] == [600, 600, 97]


def test_a_shard_is_not_one_class(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "source", count=20)
    prepare("folder", str(tmp_path / "out"), Options(path=str(folder), holdout=0, shard_rows=20))
    _, labels = everything(tmp_path / "out")
    assert all(len(set(labels[start : start + 20])) == 3 for start in (0, 20, 40))


def test_gathering_crosses_shards_in_the_order_asked_for(tmp_path: Path) -> None:
    prepare("digits", str(tmp_path / "many"), Options(shard_rows=100))
    prepare("digits", str(tmp_path / "one"))
    wanted = np.random.default_rng(0).permutation(1297)[:300]
    many, one = Dataset.open(str(tmp_path / "many")), Dataset.open(str(tmp_path / "one"))
    np.testing.assert_array_equal(many.images(wanted), one.images(np.arange(1297))[wanted])
    np.testing.assert_array_equal(many.labels(wanted), one.labels(np.arange(1297))[wanted])
    for outside in (-1, 1297):
        with pytest.raises(IndexError, match="1297 rows"):
            many.images([outside])


def test_the_same_recipe_gives_the_same_bytes_and_is_not_prepared_twice(tmp_path: Path) -> None:
    first = prepare("digits", str(tmp_path / "a"))
    calls: list[str] = []
    again = prepare("digits", str(tmp_path / "a"), progress=lambda what, done, total: calls.append(what))
    assert again == first and not calls
    assert prepare("digits", str(tmp_path / "b")).digest == first.digest
    assert prepare("digits", str(tmp_path / "c"), Options(seed=1)).digest != first.digest


def test_another_recipe_needs_overwrite_and_leaves_no_old_shards(tmp_path: Path) -> None:
    first = prepare("digits", str(tmp_path))
    with pytest.raises(DataError, match=r"another dataset is here \(seed 0 -> 1\).*--overwrite"):
        prepare("digits", str(tmp_path), Options(seed=1))
    assert Dataset.open(str(tmp_path)).manifest == first
    second = prepare("digits", str(tmp_path), Options(seed=1), overwrite=True)
    named = {shard.name for split in second.splits.values() for shard in split.shards}
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", *named}
    assert Dataset.open(str(tmp_path)).manifest == second != first


def test_leftovers_of_a_killed_prepare_are_swept_and_other_files_stay(tmp_path: Path) -> None:
    leftover, other = tmp_path / f"train-00007-{'0' * 12}.arrow", tmp_path / "notes.txt"
    half = tmp_path / f".{leftover.name}.0123456789ab.partial"
    for file in (leftover, half, other):
        file.write_text("x")
    prepare("digits", str(tmp_path))
    assert other.exists() and not leftover.exists() and not half.exists()


def test_checkerboard_points_lie_evenly_on_the_eight_squares(tmp_path: Path) -> None:
    prepare("checkerboard", str(tmp_path))
    points, labels = everything(tmp_path)
    assert points.shape == (50_000, 2) and points.dtype == np.float32 and not labels.any()
    squares, counts = np.unique(np.floor(points / 4).astype(int), axis=0, return_counts=True)
    assert {tuple(map(int, square)) for square in squares} == {
        (1, 0), (0, 1), (0, -1), (1, -2), (-1, -2), (-2, -1), (-1, 0), (-2, 1)
    }  # fmt: skip
    assert counts.min() > 6250 - 4 * 74  # standard deviation of a square's count: 74
    held, _ = everything(tmp_path, "holdout")
    assert not set(map(bytes, held)) & set(map(bytes, points))


def test_class_folders_become_classes_and_nothing_is_lost(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "source")
    (folder / "red" / "notes.txt").write_text("not an image")
    manifest = prepare("folder", str(tmp_path / "out"), Options(path=str(folder), holdout=3))
    assert manifest.class_names == ("blue", "green", "red")
    assert manifest.splits["holdout"].label_counts == (0, 1, 1, 1)
    seen = set()
    for split in ("train", "holdout"):
        for pixels, label in zip(*everything(tmp_path / "out", split), strict=True):
            name = manifest.class_names[label - 1]
            assert tuple(pixels[:, 1, 1]) == COLOURS[name]
            seen.add((name, int(pixels[0, 0, 0])))
    assert seen == {(name, number) for name in COLOURS for number in range(6)}


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "source") / "red"
    manifest = prepare("folder", str(tmp_path / "out"), Options(path=str(folder), holdout=2))
    assert manifest.class_names == () and manifest.splits["train"].label_counts == (4,)


def test_a_hold_out_of_its_own_keeps_the_class_numbers(tmp_path: Path) -> None:
    train = class_folders(tmp_path / "train")
    held = class_folders(tmp_path / "held", count=2)
    for file in (held / "blue").iterdir():
        file.unlink()
    options = Options(path=str(train), holdout_path=str(held))
    manifest = prepare("folder", str(tmp_path / "out"), options)
    assert manifest.splits["holdout"].label_counts == (0, 0, 2, 2)
    (held / "violet").mkdir()
    (held / "violet" / "0.png").write_bytes(png())
    with pytest.raises(DataError, match="violet/0.png: unknown label 'violet'; expected one of 3 classes: blue, green"):
        prepare("folder", str(tmp_path / "other"), options)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"size": 4}, (3, 4, 4)),
        ({"size": 4, "grayscale": True}, (1, 4, 4)),
        ({"grayscale": True}, (1, 12, 20)),
        ({"size": 16, "crop": False}, (3, 16, 16)),
    ],
)
def test_images_are_brought_to_one_shape(tmp_path: Path, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    (tmp_path / "source").mkdir()
    for number in range(3):
        Image.new("RGB", (20, 12), (9, 9, 9)).save(tmp_path / "source" / f"{number}.png")
    given = Options(path=str(tmp_path / "source"), holdout=0, **options)
    assert prepare("folder", str(tmp_path / "out"), given).shape == shape
    assert (everything(tmp_path / "out")[0] == 9).all()


def test_crop_takes_the_centre_and_no_crop_takes_all(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 4:12] = 255  # the middle square is white
    Image.fromarray(pixels).save(tmp_path / "source" / "0.png")
    for crop in (True, False):
        options = Options(path=str(tmp_path / "source"), holdout=0, size=8, crop=crop)
        prepare("folder", str(tmp_path / str(crop)), options)
    assert (everything(tmp_path / "True")[0] == 255).all()
    squeezed = everything(tmp_path / "False")[0]
    assert 0 < (squeezed > 127).mean() < 1


@pytest.mark.parametrize("layout", ["img struct", "img.bytes flat"])
@pytest.mark.parametrize("labels", [[0, 1, 2, 2], ["cat", "dog", "emu", "emu"], [0, None, 2, 2]])
def test_parquet_layouts_and_labels(tmp_path: Path, layout: str, labels: list[Any]) -> None:
    encoded = [png(colour=(number, 0, 0)) for number in range(4)]
    structs = [{"bytes": image, "path": None} for image in encoded]
    column = {"img": structs} if layout == "img struct" else {"img.bytes": encoded}
    pq.write_table(pa.table({**column, "label": labels}), tmp_path / "x.parquet")
    options = Options(path=str(tmp_path / "x.parquet"), holdout=0)
    manifest = prepare("parquet", str(tmp_path / "out"), options)
    images, found = everything(tmp_path / "out")
    names = ("cat", "dog", "emu") if labels[0] == "cat" else ("0", "1", "2")
    assert manifest.class_names == names
    expected = [0 if label is None else 1 + ("cat", "dog", "emu").index(label) if isinstance(label, str) else 1 + label
                for label in labels]  # fmt: skip
    assert [expected[number] for number in images[:, 0, 0, 0]] == list(found)


def write_mnist(root: Path, count: int) -> None:
    """Files in MNIST's own format: image k of each half is filled with the value k."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for half, size in (("train", count), ("t10k", 2)):
        images = np.repeat(np.arange(size, dtype=np.uint8), 28 * 28)
        for kind, header, body in (
            ("images-idx3", struct.pack(">IIII", 0x803, size, 28, 28), images.tobytes()),
            ("labels-idx1", struct.pack(">II", 0x801, size), bytes(number % 10 for number in range(size))),
        ):
            (raw / f"{half}-{kind}-ubyte").write_bytes(header + body)
            (raw / f"{half}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + body))


def test_torchvision_files_that_are_there_need_no_net(tmp_path: Path) -> None:
    write_mnist(tmp_path / "root", 12)
    manifest = prepare("torchvision:MNIST", str(tmp_path / "out"), Options(path=str(tmp_path / "root")))
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 12, "holdout": 2}
    images, labels = everything(tmp_path / "out")
    assert manifest.shape == (1, 28, 28) and len(manifest.class_names) == 10
    assert {(int(image[0, 0, 0]), int(label)) for image, label in zip(images, labels, strict=True)} == {
        (number, 1 + number % 10) for number in range(12)
    }


@pytest.mark.usefixtures("no_network")
def test_torchvision_without_a_net_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="torchvision:MNIST: not under .* and not to be downloaded"):
        prepare("torchvision:MNIST", str(tmp_path / "out"), Options(path=str(tmp_path / "root")))
    assert not (tmp_path / "out").exists()


def test_limit_takes_rows_of_every_class(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "source", count=20)
    options = Options(path=str(folder), limit=30, holdout=0)
    counts = prepare("folder", str(tmp_path / "out"), options).splits["train"].label_counts
    assert sum(counts) == 30 and min(counts[1:]) > 0


def bad_inputs(root: Path) -> dict[str, tuple[str, dict[str, Any], str]]:
    """Name -> (source, options, what the message must say)."""
    good = class_folders(root / "good")
    mixed = class_folders(root / "mixed")
    (mixed / "red" / "wide.png").write_bytes(png(side=9))
    broken = class_folders(root / "broken")
    (broken / "red" / "0.png").write_bytes(png()[:40])
    text = class_folders(root / "text")
    (text / "red" / "0.png").write_text("not an image")
    deep = class_folders(root / "deep")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(deep / "red" / "0.png")
    loose = class_folders(root / "loose")
    (loose / "loose.png").write_bytes(png())
    (root / "empty").mkdir()
    single = class_folders(root / "single", count=1)
    large = class_folders(root / "large", side=9)
    pq.write_table(pa.table({"img": [png()]}), root / "unlabelled.parquet")
    table = {"img": [png(), b"junk"], "label": [0, 7]}
    pq.write_table(pa.table(table), root / "junk.parquet")
    pq.write_table(pa.table({"img": [png()], "label": [7]}), root / "seven.parquet")
    pq.write_table(pa.table({"pixels": [1]}), root / "pixels.parquet")
    pq.write_table(pa.table({"img": pa.array([], pa.binary())}), root / "norows.parquet")
    (root / "fake.parquet").write_text("not Parquet")
    return {
        "missing folder": ("folder", {"path": str(root / "nowhere")}, "nowhere: no such folder"),
        "no path": ("folder", {}, "give --path"),
        "empty folder": ("folder", {"path": str(root / "empty")}, "empty: no images"),
        "mixed shapes": (
            "folder",
            {"path": str(mixed), "holdout": 0},
            r"(?=.*wide.png is 3x9x9).*is 3x8x8.*give --size",
        ),
        "cut image": ("folder", {"path": str(broken), "holdout": 0}, "broken/red/0.png: unreadable image"),
        "no image": (
            "folder",
            {"path": str(text), "holdout": 0},
            "text/red/0.png: unreadable image: the format is not known",
        ),
        "16 bits": (
            "folder",
            {"path": str(deep), "holdout": 0},
            "deep/red/0.png: expected 8-bit channels, got mode 'I;16'",
        ),
        "loose images": ("folder", {"path": str(loose)}, r"outside \(loose.png\)"),
        "unknown class": ("folder", {"path": str(good), "class_names": ("red", "blue")}, "unknown label 'green'"),
        "too few": ("folder", {"path": str(single), "holdout": 1}, "cannot hold out 1 of 3 rows"),
        "held out twice": ("folder", {"path": str(good), "holdout": 3, "holdout_path": str(good)}, "give one"),
        "broken count": ("folder", {"path": str(good), "holdout": 2.5}, "whole number"),
        "shapes of halves": ("folder", {"path": str(good), "holdout_path": str(large)}, "hold-out have the shapes"),
        "names without folders": ("folder", {"path": str(good / "red"), "class_names": ("red",)}, "no class folders"),
        "names without labels": (
            "parquet",
            {"path": str(root / "unlabelled.parquet"), "class_names": ("a",)},
            "no column 'label'",
        ),
        "junk row": (
            "parquet",
            {"path": str(root / "junk.parquet"), "holdout": 0},
            "junk.parquet row 1: unreadable image.*--max-bad",
        ),
        "unknown number": (
            "parquet",
            {"path": str(root / "seven.parquet"), "class_names": ("a", "b")},
            "seven.parquet row 0: unknown label 7; expected one of 2 classes: a, b",
        ),
        "no column": ("parquet", {"path": str(root / "pixels.parquet")}, "no image column; .* got pixels"),
        "no rows": ("parquet", {"path": str(root / "norows.parquet")}, "have no rows"),
        "no Parquet": ("parquet", {"path": str(root / "fake.parquet")}, "unreadable Parquet"),
        "no files": ("parquet", {"path": str(root / "*.pq")}, "no Parquet files here"),
        "points have no size": ("checkerboard", {"size": 8}, "a point has no pixels"),
        "path of digits": ("digits", {"path": "x"}, "brings its own data"),
        "unknown source": ("digit", {}, "unknown source 'digit'; expected one of: digits"),
        "unknown set": ("torchvision:Nothing", {}, "expected a downloadable set"),
    }


CASES = (
    "missing folder", "no path", "empty folder", "mixed shapes", "cut image", "no image", "16 bits", "loose images",
    "unknown class", "too few", "held out twice", "broken count", "shapes of halves", "names without folders",
    "names without labels", "junk row", "unknown number", "no column", "no rows", "no Parquet", "no files",
    "points have no size", "path of digits", "unknown source", "unknown set",
)  # fmt: skip


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, dict[str, Any], str]]:
    inputs = bad_inputs(tmp_path_factory.mktemp("bad"))
    assert set(inputs) == set(CASES)
    return inputs


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, bad: dict[str, tuple[str, dict[str, Any], str]], case: str
) -> None:
    source, options, message = bad[case]
    with pytest.raises(DataError, match=message) as caught:
        prepare(source, str(tmp_path / "out"), Options(**options))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what it finds
def test_whatever_byte_of_a_header_is_damaged_is_one_line_or_an_image() -> None:
    notes = Image.Exif()
    notes[0x0112], notes[0x010E] = 6, "hello"  # lies on its side
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=notes)
    content = buffer.getvalue()
    for place in range(20, 80):
        damaged = content[:place] + b"\0" + content[place + 1 :]
        try:
            assert decode(damaged, "x").size
        except DataError as error:
            assert str(error).startswith("x: ") and "\n" not in str(error)
