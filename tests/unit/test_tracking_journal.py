"""The journal on disk: whole lines in the order of their times, whoever writes and whoever is killed."""

import json
import multiprocessing
import time
from pathlib import Path

import pytest

from cdrl.errors import StorageError, TrackingError
from cdrl.tracking.journal import Journal


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def test_entries_come_back_from_any_place(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    for step in range(3):
        journal.append("metrics", step=step, values={"loss": 1 / 3})
    found = list(journal.entries())
    assert [entry["step"] for _, entry in found] == [0, 1, 2] and found[1][1]["values"] == {"loss": 1 / 3}
    assert [entry["step"] for _, entry in journal.entries(found[0][0])] == [1, 2]
    assert list(journal.entries(found[2][0])) == [] and journal.last("status") is None
    assert list(Journal(tmp_path / "none").entries()) == [] and not (tmp_path / "none").exists()


def test_a_later_entry_has_a_later_time_also_where_the_clock_was_set_back(tmp_path: Path) -> None:
    tomorrow = int(time.time() * 1000) + 86_400_000
    (tmp_path / "journal.jsonl").write_text(json.dumps({"time": tomorrow, "kind": "status"}) + "\n")
    journal = Journal(tmp_path)
    for _ in range(3):
        journal.append("status", status="RUNNING")
    assert [entry["time"] - tomorrow for entry in lines(tmp_path)] == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [1, 40, 200_000])
@pytest.mark.parametrize("whole", [0, 2])
def test_a_line_that_a_killed_process_left_is_cut_off(tmp_path: Path, size: int, whole: int) -> None:
    journal = Journal(tmp_path)
    for _ in range(whole):
        journal.append("status", status="RUNNING")
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write("{" * size)
    assert len(list(journal.entries())) == whole
    assert (journal.mend(), journal.mend()) == (size, 0)
    journal.append("status", status="KILLED")
    assert [entry["status"] for entry in lines(tmp_path)] == ["RUNNING"] * whole + ["KILLED"]


def test_an_entry_begins_a_line_of_its_own_also_behind_a_torn_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("status", status="RUNNING")
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"time": 1')
    journal.append("status", status="KILLED")
    assert [entry["status"] for _, entry in journal.entries()] == ["RUNNING", "KILLED"]


def write(folder: Path) -> None:
    journal = Journal(folder)
    for step in range(200):
        journal.append("metrics", step=step, values={"x" * 300: 1.0})


def test_processes_do_not_write_into_each_others_lines(tmp_path: Path) -> None:
    writers = [multiprocessing.get_context("fork").Process(target=write, args=(tmp_path,)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found = [entry for _, entry in Journal(tmp_path).entries()]
    assert sorted(entry["step"] for entry in found) == sorted([*range(200)] * 4)
    times = [entry["time"] for entry in found]
    assert all(before < after for before, after in zip(times, times[1:], strict=False))


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("status", status="RUNNING")
    size = (tmp_path / "journal.jsonl").stat().st_size
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write("no JSON\n")
    with pytest.raises(TrackingError, match=rf"journal.jsonl, byte {size}: damaged.*'no JSON"):
        list(journal.entries())


def test_no_password_gets_in(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    where = "http://ada:s3cret@host/x"
    journal.append("text", path="a", text=f"uri: {where}\nmail: ada@host\n")
    journal.append("start", params={"tracking.uri": where}, tags=[where, 1.0, None])
    text = (tmp_path / "journal.jsonl").read_text()
    assert "s3cret" not in text and text.count("http://***@host/x") == 3 and "mail: ada@host" in text


def test_a_disk_that_takes_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(StorageError, match="cannot write .*journal.jsonl: Is a directory"):
        Journal(tmp_path).append("status", status="RUNNING")
