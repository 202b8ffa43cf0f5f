"""Who hangs: the rank that is not waiting for others, or that says nothing any more."""

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from cdrl.training import pulse
from cdrl.training.board import Board
from cdrl.training.pulse import Beat, Pulse, hanging

AFTER_S = 10.0


def beat(rank: int, still_s: float, *, waiting: bool = False, done: bool = False) -> Beat:
    return Beat(rank, "node", 100 + rank, 0.0, "after update 7", waiting, still_s, done)


def blamed(*beats: Beat, ages_s: tuple[float, ...] = ()) -> list[int]:
    ages = ages_s or (0.5,) * len(beats)
    known = {each.rank: (each, age_s) for each, age_s in zip(beats, ages, strict=True)}
    return [each.rank for each, _ in hanging(known, AFTER_S)]


def test_of_ranks_that_stand_still_the_one_outside_the_collective_is_to_blame() -> None:
    assert blamed(beat(0, 30, waiting=True), beat(1, 31), beat(2, 30, waiting=True)) == [1]
    assert blamed(beat(0, 9, waiting=True), beat(1, 9)) == []


def test_a_process_that_says_nothing_is_to_blame_whatever_it_said_last() -> None:
    beats = (beat(0, 30, waiting=True), beat(1, 0.2, waiting=True))
    assert blamed(*beats, ages_s=(0.5, 12)) == [1]


def test_where_all_wait_for_one_another_all_are_to_blame() -> None:
    assert blamed(beat(0, 30, waiting=True), beat(1, 30, waiting=True)) == [0, 1]
    assert blamed(beat(0, 30, waiting=True), beat(1, 2, waiting=False)) == []  # it is slow, not hanging


def test_who_is_done_is_left_alone() -> None:
    assert blamed(beat(0, 30, waiting=True, done=True), beat(1, 3)) == []
    assert blamed(beat(0, 3), beat(1, 0, done=True), ages_s=(0.5, 1e6)) == []


@given(st.lists(st.tuples(st.floats(0, 9), st.booleans()), max_size=5))
def test_nobody_is_to_blame_before_the_time(ranks: list[tuple[float, bool]]) -> None:
    assert blamed(*(beat(rank, still_s, waiting=waiting) for rank, (still_s, waiting) in enumerate(ranks))) == []


def test_a_pulse_tells_what_its_rank_does_and_when_it_is_done() -> None:
    sent, came = list[Beat](), threading.Event()

    def send(one: Beat) -> None:
        sent.append(one)
        came.set()

    with Pulse(send, 3, "node") as of:
        of.moved("after update 7")
        with of.waiting("a sum"):
            assert came.wait(10 * pulse.EVERY_S)
    first, last = sent[0], sent[-1]
    assert (first.rank, first.doing, first.waiting) == (3, "after update 7, waiting in a sum", True)
    assert last.done and last.doing == "after update 7" and not last.waiting
    assert str(first).startswith("rank 3 (process ")


def test_long_work_is_no_hang_while_the_process_lives() -> None:
    sent = list[Beat]()
    with Pulse(sent.append, 0, "node") as of:
        with of.waiting("the start of all ranks"):
            pass
        starting = of._said()
        of.moved("after update 1")
        with of.working("scoring"):
            time.sleep(0.05)
            scoring = of._said()
        time.sleep(0.05)
        moving = of._said()
    assert (starting.doing, starting.still_s) == ("starting", 0) and (scoring.doing, scoring.still_s) == ("scoring", 0)
    assert moving.doing == "after update 1" and moving.still_s >= 0.05


def test_a_worker_that_dies_by_an_error_is_not_done() -> None:
    sent = list[Beat]()
    try:
        with Pulse(sent.append, 0, "node"):
            raise RuntimeError
    except RuntimeError:
        pass
    assert not any(each.done for each in sent)


def test_the_board_keeps_the_last_beat_of_each_rank_and_its_age() -> None:
    board = Board()
    board.beat(beat(0, 1))
    board.beat(beat(0, 2))
    board.beat(beat(1, 3))
    time.sleep(0.02)
    beats = board.beats()
    assert {rank: each.still_s for rank, (each, _) in beats.items()} == {0: 2, 1: 3}
    assert all(age_s >= 0.02 for _, age_s in beats.values())
    board.begin()
    assert board.beats() == {}
