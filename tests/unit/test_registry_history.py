"""The history of champions: one writer wins each entry, and what was written stays."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from cdrl.errors import RegistryError, StorageError
from cdrl.registry.history import History, Overtaken
from cdrl.storage import create_bytes
from tests.registry_parts import raced


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History.found(str(tmp_path), "tiny", champion=None)


def moved(history: History, *champions: int) -> None:
    for champion in champions:
        history.append(history.read(), action="promote", champion=champion, why=("better",))


def test_only_one_creates_a_file_and_all_of_it(tmp_path: Path) -> None:
    place = str(tmp_path / "folder" / "entry.json")
    contents = [bytes([number]) * 100_000 for number in range(8)]
    barrier = Barrier(len(contents))

    def create(content: bytes) -> bool:
        barrier.wait()
        return create_bytes(place, content)

    with ThreadPoolExecutor(len(contents)) as pool:
        won = list(pool.map(create, contents))
    assert sum(won) == 1
    assert Path(place).read_bytes() == contents[won.index(True)]
    assert [path.name for path in Path(place).parent.iterdir()] == ["entry.json"]
    with pytest.raises(StorageError, match="entry.json"):
        create_bytes(f"{place}/below", b"a file is no folder")


def test_an_entry_says_who_when_why_and_what(history: History) -> None:
    digests = {"model_digest": "aa", "proof_digest": "bb", "scorecard_digest": "cc"}
    history.append(history.read(), action="promote", champion=3, why=("FD 0.4",), gates={"margin": 0.1}, **digests)
    chain = history.read()
    head = chain.head
    assert [entry.action for entry in chain.entries] == ["found", "promote"]
    assert (head.number, head.champion, head.before, head.why, head.gates) == (1, 3, None, ("FD 0.4",), {"margin": 0.1})
    assert (head.model_digest, head.proof_digest, head.scorecard_digest) == ("aa", "bb", "cc")
    assert "@" in head.who and head.when.tzinfo is not None
    assert head.when >= chain.entries[0].when


def test_what_was_rolled_back_is_not_in_force(history: History) -> None:
    moved(history, 1, 2, 3)
    history.append(history.read(), action="rollback", champion=2)
    moved(history, 4)
    assert [entry.champion for entry in history.read().in_force] == [1, 2, 4]
    assert [entry.before for entry in history.read().entries[1:]] == [None, 1, 2, 3, 2]


def test_of_two_who_saw_the_same_champion_one_wins_twenty_times(history: History) -> None:
    for race in range(20):
        won = raced(history, 2 * race + 1, 2 * race + 2)
        assert sum(won) == 1
        assert history.read().head.champion == 2 * race + 1 + won.index(True)
    entries = history.read().entries
    assert len(entries) == 21
    assert all(entry.before == earlier.champion for earlier, entry in zip(entries, entries[1:]))


def test_the_one_who_came_second_is_told_who_was_first(history: History) -> None:
    chain = history.read()
    moved(history, 5)
    with pytest.raises(Overtaken, match=r"@.* made version 5 champion \(promote\).*decided for version none; nothing"):
        history.append(chain, action="promote", champion=6)


def test_two_histories_of_one_name_are_two(tmp_path: Path) -> None:
    first, second = (History.found(str(tmp_path), "tiny", champion=None) for _ in range(2))
    assert first.uri != second.uri


def test_what_was_changed_or_removed_shows(history: History) -> None:
    moved(history, 1, 2, 3)
    place = Path(history.uri, "00000002.json")
    content = place.read_text()
    place.write_text(content.replace('"champion": 2', '"champion": 7'))
    with pytest.raises(RegistryError, match="00000003.json: the entry before it was changed"):
        history.read()
    place.write_text(content[:-9])
    with pytest.raises(RegistryError, match="00000002.json: damaged: not an entry"):
        history.read()
    place.unlink()
    with pytest.raises(RegistryError, match="expected entry 2 of 'tiny', got 00000003.json"):
        history.read()
    place.write_text(json.dumps(json.loads(content) | {"model": "other"}))
    with pytest.raises(RegistryError, match="expected entry 2 of 'tiny'"):
        history.read()


def test_a_history_that_is_not_here_is_not_begun_anew(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no history of model 'tiny' at .*another machine"):
        History(str(tmp_path / "nowhere"), "tiny").read()
    assert not (tmp_path / "nowhere").exists()
