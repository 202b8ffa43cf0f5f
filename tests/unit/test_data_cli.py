"""`cdrl data`: what a newcomer types."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from cdrl.cli import main
from tests.data_parts import class_folders


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["cdrl", "data", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_prepare_twice_then_inspect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "digits")
    assert run(monkeypatch, "prepare", "digits", place) == 0
    line = f"prepared: {place}: train 1297, holdout 500 rows of 1x8x8 uint8, 10 classes, digest "
    assert capsys.readouterr().out.startswith(line)
    assert run(monkeypatch, "prepare", "digits", place) == 0
    assert capsys.readouterr().out.startswith(f"already prepared: {place}")
    assert run(monkeypatch, "inspect", place, "--picture", str(tmp_path / "sheet.png")) == 0
    table = capsys.readouterr().out
    for fact in ("1297 rows, 1 shards", "500 rows", "1x8x8 uint8", "77.85", "95.83", "126"):
        assert fact in table
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width > 16 * 48


def test_where_there_is_no_terminal_plain_lines_tell_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cdrl.cli.data.PLAIN_LINE_EVERY_S", 0.0)
    assert run(monkeypatch, "prepare", "digits", str(tmp_path / "digits"), "--shard-rows", "1000") == 0
    *lines, _ = capsys.readouterr().out.splitlines()
    assert lines == ["rows 0/1797", "rows 1797/1797", "shards 0/3", "shards 1/3", "shards 2/3", "shards 3/3"]


def test_names_with_brackets_are_printed_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, place = tmp_path / "source", str(tmp_path / "[out]")
    (source / "[bold]").mkdir(parents=True)
    Image.new("L", (8, 8)).save(source / "[bold]" / "0.png")
    assert run(monkeypatch, "prepare", "folder", place, "--path", str(source), "--holdout", "0") == 0
    assert run(monkeypatch, "inspect", place) == 0
    printed = capsys.readouterr().out
    assert "1 [bold] 1" in " ".join(printed.split()) and "[out]/contact-sheet.png" in printed


def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "prepare", "folder", str(tmp_path / "out"), "--path", str(tmp_path / "nowhere")) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {tmp_path}/nowhere: no such folder\n"
    assert captured.out == ""
    assert run(monkeypatch, "inspect", str(tmp_path)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_rows_that_cannot_be_read_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, place = class_folders(tmp_path / "source"), str(tmp_path / "out")
    (source / "red" / "0.png").write_text("not an image")
    arguments = ("prepare", "folder", place, "--path", str(source), "--holdout", "0")
    assert run(monkeypatch, *arguments) == 2
    assert "red/0.png: unreadable image: the format is not known" in (line := capsys.readouterr().err)
    assert line.count("\n") == 1 and "--max-bad" in line and not Path(place).exists()
    assert run(monkeypatch, *arguments, "--max-bad", "1") == 0
    assert run(monkeypatch, "inspect", place) == 0
    prepared, inspected = capsys.readouterr().out.split("contact sheet")[0].split(" dataset ")
    for printed in (prepared, inspected):
        assert "1 rows could not be read and were left out" in printed
        assert "unreadable image" in "".join(printed.split("\n")).replace("  ", "")


def test_an_address_needs_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "prepare", "digits", str(tmp_path / "out"), "--address", "127.0.0.1:1") == 2
    assert "--workers is 0: give the number of workers" in capsys.readouterr().err
