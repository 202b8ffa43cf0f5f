"""Checkpoints in their place: visible last and whole, found again newest first, none that is damaged or given up."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdrl import storage
from cdrl.data import Dataset
from cdrl.errors import ConfigError, RegistryError, StorageError
from cdrl.model import Model
from cdrl.runs import Checkpoint, cards_below, checkpoints_below, step_folder
from cdrl.training.checkpoint import snapshot
from cdrl.training.grid import Grid
from cdrl.training.rescue import Rescue
from cdrl.training.resume import newest_first, resume
from cdrl.training.state import TrainState
from cdrl.training.store import Keep, Store, new_attempt
from tests.training_parts import ATTEMPT, digits, run_to, tiny_config, tiny_state

CONFIG = tiny_config("pairs=per_level", "training.num_updates=9")
STEPS = (2, 4, 6)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return digits(tmp_path_factory.mktemp("data"))


ALL = Keep(last=9)


def store(place: Path, grid: Grid, *, keep: Keep = ALL) -> Store:
    writers = {grid.owner(number) for number in range(grid.num_pairs)}
    return Store(str(place), ATTEMPT, grid.rank, writers, keep, lambda card, write_s: None)


def save(to: Store, state: TrainState, dataset: Dataset) -> None:
    state.settle_average()
    manifest = dataset.manifest
    model = Model(state.config, state.average, manifest.class_names, manifest.digest, state.step)
    to.save(snapshot(state, manifest.digest), model)


@pytest.fixture
def place(tmp_path: Path, dataset: Dataset) -> Path:
    """Three checkpoints of one run."""
    state = tiny_state(CONFIG)
    with store(tmp_path, state.grid) as to:
        for step in STEPS:
            run_to(state, dataset, step)
            save(to, state, dataset)
    return tmp_path


def folder(place: Path, step: int) -> Path:
    return place / step_folder(step, ATTEMPT)


def resumed(place: Path, dataset: Dataset, tell: Callable[[str], None] = print) -> TrainState:
    state = tiny_state(CONFIG)
    resume(state, str(place), newest_first(str(place), ()), dataset.manifest.digest, tell)
    return state


def test_what_was_copied_is_written_whatever_training_does_next(tmp_path: Path, dataset: Dataset) -> None:
    straight, state = tiny_state(CONFIG), tiny_state(CONFIG)
    run_to(straight, dataset, 2)
    with store(tmp_path / "straight", straight.grid) as to:
        save(to, straight, dataset)
    run_to(state, dataset, 2)
    with store(tmp_path / "moved", state.grid) as to:
        save(to, state, dataset)
        run_to(state, dataset, 5)
    for path in folder(tmp_path / "straight", 2).iterdir():
        assert path.read_bytes() == (folder(tmp_path / "moved", 2) / path.name).read_bytes(), path.name


def test_a_checkpoint_stands_when_all_ranks_have_written_their_part(tmp_path: Path, dataset: Dataset) -> None:
    states = [tiny_state(CONFIG, Grid(2, 4, 2, rank)) for rank in (0, 1)]
    for state in states:
        run_to(state, dataset, 2)
    with store(tmp_path, states[0].grid) as first:
        save(first, states[0], dataset)
        names = set()
        while "train-00.safetensors" not in names:
            names = {path.name for path in folder(tmp_path, 2).glob("*")}
        assert checkpoints_below(str(tmp_path)) == cards_below(str(tmp_path)) == {}
        with store(tmp_path, states[1].grid) as second:
            save(second, states[1], dataset)
    (card,) = checkpoints_below(str(tmp_path)).values()
    assert card.step == 2 and len(card.files) == 6  # two pairs, live and averaged, the sentinel, model.json
    alone = tiny_state(CONFIG)
    run_to(alone, dataset, 2)
    assert all(
        one.equal(other)
        for number in (0, 1)
        for one, other in zip(
            resumed(tmp_path, dataset).pair(number).parameters(), alone.pair(number).parameters(), strict=True
        )
    )


def test_without_the_part_of_a_rank_that_is_no_more_nothing_stands(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdrl.training.store.GRACE_S", 0.3)
    state = tiny_state(CONFIG, Grid(2, 4, 2, 0))
    with pytest.raises(RuntimeError, match="the other rank is gone"):
        with store(tmp_path, state.grid) as to:
            save(to, state, dataset)
            raise RuntimeError("the other rank is gone")
    assert cards_below(str(tmp_path)) == {}


def test_a_place_that_cannot_be_written_is_told_at_the_next_save(tmp_path: Path, dataset: Dataset) -> None:
    (tmp_path / "taken").write_text("a file, no folder")
    state = tiny_state(CONFIG)
    with pytest.raises(StorageError, match="cannot upload to"):
        with store(tmp_path / "taken", state.grid) as to:
            save(to, state, dataset)
            save(to, state, dataset)
            raise AssertionError("the second save waits for the first")


def test_an_error_of_the_training_goes_before_one_of_the_storage(tmp_path: Path, dataset: Dataset) -> None:
    (tmp_path / "taken").write_text("")
    state = tiny_state(CONFIG)
    with pytest.raises(RuntimeError, match="training"):
        with store(tmp_path / "taken", state.grid) as to:
            save(to, state, dataset)
            raise RuntimeError("training")


def test_the_newest_one_is_taken(place: Path, dataset: Dataset) -> None:
    told: list[str] = []
    assert resumed(place, dataset, told.append).step == 6 and told == []


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_of_damaged_ones_the_one_before_is_taken_and_they_are_told(place: Path, dataset: Dataset, damage: str) -> None:
    names = sorted(path.name for path in folder(place, 6).iterdir())
    assert len(names) == 7
    for name in names:
        path = folder(place, 6) / name
        content = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            half = len(content) // 2
            rest = bytes([content[half] ^ 1]) + content[half + 1 :] if damage == "flipped" else b""
            path.write_bytes(content[:half] + rest)
        told: list[str] = []
        state = resumed(place, dataset, told.append)
        assert state.step == 4
        if (damage, name) == ("missing", "state.json"):
            assert told == []  # it is no checkpoint at all
        else:
            assert len(told) == 1 and "is damaged and left out" in told[0] and name in told[0]
        path.write_bytes(content)
    assert resumed(place, dataset).step == 6


def test_a_run_with_none_that_is_whole_does_not_begin_anew_by_itself(place: Path, dataset: Dataset) -> None:
    for step in STEPS:
        (folder(place, step) / "train-01.safetensors").write_bytes(b"")
    with pytest.raises(RegistryError, match="none of 3 checkpoints is whole, the newest is step_00000006-.*; put"):
        resumed(place, dataset)


def test_an_attempt_is_newer_than_all_before_whatever_the_clocks_say(place: Path) -> None:
    ahead = place / step_folder(1, "ffffff000000")
    shutil.copytree(folder(place, 2), ahead)
    assert new_attempt(str(place)) > "ffffff000000" > ATTEMPT
    shutil.rmtree(ahead)
    assert new_attempt(str(place))[:8] < "ffffff00"


def test_checkpoints_of_another_run_are_no_reason_to_look_further(place: Path, dataset: Dataset) -> None:
    state = tiny_state(tiny_config("pairs=per_level", "training.num_updates=9", "training.seed=9"))
    with pytest.raises(ConfigError, match="from another configuration"):
        resume(state, str(place), newest_first(str(place), ()), dataset.manifest.digest, print)


def test_what_a_rescue_went_back_past_is_removed(place: Path, dataset: Dataset) -> None:
    seen = {"pair": 0, "level": 0, "step": 7, "quantity": "f", "value": 9.0, "bound": 1.0}
    made = Rescue(number=1, **seen, from_step=4, lower="learning_rate", factor=0.5)
    assert [name[:13] for name in newest_first(str(place), [made])] == ["step_00000004", "step_00000002"]
    assert not folder(place, 6).exists()
    state = tiny_state(CONFIG)
    state.rescues = [made]
    resume(state, str(place), newest_first(str(place), [made]), dataset.manifest.digest, print)
    with store(place, state.grid) as to:
        run_to(state, dataset, 6)
        save(to, state, dataset)
    assert [name[:13] for name in newest_first(str(place), [made])][0] == "step_00000006"


def test_what_dead_attempts_left_is_removed_and_what_lives_is_not(place: Path, dataset: Dataset) -> None:
    before, after = place / step_folder(5, "0" * 12), place / step_folder(8, "f" * 12)
    for left in (before, after, place / "evaluation"):
        left.mkdir()
        (left / "train-00.safetensors").write_bytes(b"half")
    state = resumed(place, dataset)
    with store(place, state.grid, keep=Keep(last=1)) as to:
        run_to(state, dataset, 7)
        save(to, state, dataset)
    assert [card.step for card in checkpoints_below(str(place)).values()] == [7]
    names = storage.listing(str(place))
    assert not any(name.startswith(before.name) for name in names)
    assert f"{after.name}/train-00.safetensors" in names and "evaluation/train-00.safetensors" in names


@given(
    st.lists(st.tuples(st.integers(1, 60), st.none() | st.floats(0, 9)), min_size=1, unique_by=lambda pair: pair[0]),
    st.integers(1, 4),
    st.none() | st.integers(1, 10),
)
def test_last_best_and_every_nth_are_kept_and_no_more(
    made: list[tuple[int, float | None]], last: int, every: int | None
) -> None:
    cards = {
        step_folder(step, ATTEMPT): Checkpoint(step=step, score=score, identity="", manifest_digest="", files={})
        for step, score in sorted(made)
    }
    kept = {cards[uri].step for uri in Keep(last, every).kept(cards)}
    steps = sorted(step for step, _ in made)
    scored = [(score, step) for step, score in sorted(made) if score is not None]
    reasons = set(steps[-last:]) | {step for step in steps if every is not None and step % every == 0}
    assert kept == reasons | ({min(scored)[1]} if scored else set())


def test_a_save_waits_for_the_one_before(tmp_path: Path, dataset: Dataset) -> None:
    """The newest is never given up for a newer one: both are written, in order."""
    state, told = tiny_state(CONFIG), list[int]()
    released = threading.Event()

    def stands(card: Checkpoint, write_s: float) -> None:
        released.wait(30)
        told.append(card.step)

    with Store(str(tmp_path), ATTEMPT, 0, {0}, Keep(), stands) as to:
        save(to, state, dataset)
        run_to(state, dataset, 1)
        threading.Timer(0.2, released.set).start()
        save(to, state, dataset)
        assert told == [0]
    assert told == [0, 1] and torch.is_tensor(next(resumed(tmp_path, dataset).pair(0).parameters()))
