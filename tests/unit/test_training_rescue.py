"""Rescues as data: the history of a run that bends back, by its laws."""

import copy
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from cdrl.config import SentinelConfig, load
from cdrl.errors import Diverged
from cdrl.training.rescue import (
    Rescue,
    applied,
    events_markdown,
    in_force,
    on_timeline,
    rescue,
    roll_back_to,
    stream_key,
)
from cdrl.training.sentinel import Breach
from cdrl.training.story_plot import attempts, story_plot

SEEN = Breach(pair=0, level=3, step=4120, quantity="displacement", value=27.1, bound=9.8)


def rescued(number: int, from_step: int, step: int = 10_000, **changes: object) -> Rescue:
    values = vars(SEEN) | {"lower": "learning_rate", "factor": 0.5, "step": step} | changes
    return Rescue.model_validate(values | {"number": number, "from_step": from_step})


class Line:
    """A run that keeps what the functions under test must infer: the stream of each update of the present line."""

    def __init__(self) -> None:
        self.streams: list[int] = []
        self.rescues: list[Rescue] = []
        self.saved: dict[tuple[int, int], list[int]] = {}

    def train(self, updates: int) -> None:
        self.streams += [len(self.rescues)] * updates

    def save(self) -> None:
        if self.streams:
            self.saved[(len(self.streams), len(self.rescues))] = self.streams.copy()

    def counting(self) -> list[tuple[int, int]]:
        """The checkpoints that are the beginning of the present line."""
        return [key for key, streams in self.saved.items() if streams == self.streams[: len(streams)]]

    def roll_back(self, step: int) -> None:
        self.rescues.append(rescued(len(self.rescues) + 1, step, len(self.streams)))
        self.streams = self.streams[:step]


ACTIONS = st.lists(st.one_of(st.integers(1, 3), st.just("save"), st.floats(0, 1, exclude_max=True)), max_size=40)
"""Updates; a checkpoint; a roll back to one that counts or to the start, by its place among them."""


@given(ACTIONS)
def test_streams_and_the_line_follow_from_the_rescues_alone(actions: list[int | str | float]) -> None:
    line = Line()
    for action in actions:
        if action == "save":
            line.save()
        elif isinstance(action, int):
            line.train(action)
        elif isinstance(action, float):
            places = [0, *sorted(step for step, _ in line.counting())]
            line.roll_back(places[int(action * len(places))])
    counting = [key for key in line.saved if on_timeline(*key, line.rescues)]
    assert counting == line.counting()
    expected = [(stream,) if stream else () for stream in line.streams]
    assert [stream_key(line.rescues, step) for step in range(len(line.streams))] == expected
    assert len(in_force(line.rescues, len(line.streams))) == len(line.rescues), "the coming update comes after all"


@given(ACTIONS)
def test_a_roll_back_takes_the_newest_checkpoint_that_counts_and_none_twice(actions: list[int | str | float]) -> None:
    line, used = Line(), set()
    for action in actions:
        if action == "save":
            line.save()
        elif isinstance(action, int):
            line.train(action)
        elif line.streams:
            line.train(1)  # a breach is seen after an update
            step = roll_back_to(line.saved, line.rescues, len(line.streams))
            left = {key for key in line.counting() if key not in used}
            assert step == max((at for at, _ in left), default=min((at for at, _ in line.counting()), default=0))
            used |= {key for key in left if key[0] == step}
            line.roll_back(step)


def test_a_run_that_breaks_again_and_again_goes_back_further_each_time() -> None:
    checkpoints, rescues = [(1000, 0), (2000, 0), (3000, 0)], []
    for expected in (3000, 2000, 1000, 1000, 1000):
        step = roll_back_to(checkpoints, rescues, 3100)
        assert step == expected
        rescues.append(rescued(len(rescues) + 1, step, 3100))
    assert roll_back_to([*checkpoints, (1000, 5)], rescues, 3100) == 1000, "written anew since"
    assert roll_back_to(checkpoints, [], 2000) == 1000, "not one written when the breach was seen"


def test_without_rescues_everything_is_as_configured() -> None:
    config = load("digits")
    assert applied(config, ()) == config and stream_key((), 7) == ()


@pytest.mark.parametrize("scale", ["1.0e-4", "[1.0e-4,1.0e-4,1.0e-4,2.0e-4,2.0e-4,2.0e-4]"])
def test_rates_are_multiplied_once_for_each_rescue_in_force(scale: str) -> None:
    config = load("digits", [f"schedule.step_scale={scale}"])
    rescues = [rescued(1, 500), rescued(2, 700, lower="step_scale", factor=0.25), rescued(3, 900)]
    for step, rate, size in ((499, 1, 1), (500, 0.5, 1), (699, 0.5, 1), (700, 0.5, 0.25), (900, 0.25, 0.25)):
        lowered = applied(config, in_force(rescues, step))
        assert lowered.training.energy.lr == config.training.energy.lr * rate
        assert lowered.training.initializer.lr == config.training.initializer.lr * rate
        before, after = config.schedule.step_scale, lowered.schedule.step_scale
        assert after == (tuple(b * size for b in before) if isinstance(before, tuple) else before * size)
    restored = {"schedule": config.schedule, "training": config.training}
    assert lowered.model_copy(update=restored) == config, "and nothing else"


def test_a_sentinel_section_is_no_part_of_the_identity() -> None:
    config = load("digits")
    other = load("digits", ["sentinel.max_growth=3", "sentinel.enabled=false"])
    assert other.identity_digest == config.identity_digest and other.digest != config.digest


class Kept(BaseModel):
    rescues: tuple[Rescue, ...] = ()


@pytest.mark.parametrize("value", [27.1, 1 / 3, math.inf, -math.inf, math.nan])
def test_a_rescue_survives_json(value: float) -> None:
    kept = Kept(rescues=(rescued(1, 4000, value=value, bound=math.inf),))
    (back,) = Kept.model_validate_json(kept.model_dump_json()).rescues
    assert back.value == value or math.isnan(back.value) and math.isnan(value)
    assert back.model_copy(update={"value": 0.0}) == kept.rescues[0].model_copy(update={"value": 0.0})


def test_after_its_budget_a_run_has_diverged_and_tells_its_story() -> None:
    config = SentinelConfig(max_rescues=2)
    rescues: list[Rescue] = []
    for expected in (4000, 3000):
        rescues.append(rescue(SEEN, config, rescues, [(3000, 0), (4000, 0)]))
        assert rescues[-1].from_step == expected
    assert [each.number for each in rescues] == [1, 2]
    with pytest.raises(Diverged) as caught:
        rescue(SEEN, config, rescues, [])
    assert str(caught.value) == (
        "training diverged at level 3, update 4120: displacement=27.1; gave up after 2 rescues; "
        "rescue 1: level 3, update 4120: displacement 27.1, bound 9.8; went back to 4000 with learning rate x 0.5 "
        "and other noise; "
        "rescue 2: level 3, update 4120: displacement 27.1, bound 9.8; went back to 3000 with learning rate x 0.5 "
        "and other noise"
    )
    assert str(copy.copy(caught.value)) == str(caught.value), "as it crosses process borders"
    table = events_markdown(rescues).splitlines()
    assert len(table) == 4 and {line.count("|") for line in table} == {9}
    assert table[-1] == "| 2 | 4120 | level 3 | displacement | 27.1 | 9.8 | 3000 | learning_rate x 0.5 |"


def test_a_norm_belongs_to_a_pair_not_to_a_level() -> None:
    line = rescued(1, 0, quantity="grad_norm_energy", pair=2, factor=1.0).line
    assert line == "rescue 1: pair 2, update 10000: grad_norm_energy 27.1, bound 9.8; went back to 0 with other noise"


def test_what_is_not_finite_needs_no_bound() -> None:
    line = rescued(1, 0, value=math.nan, bound=math.inf, factor=1.0).line
    assert line == "rescue 1: level 3, update 10000: displacement nan; went back to 0 with other noise"


def test_a_picture_of_the_story_shows_what_each_attempt_gave() -> None:
    rescues = [rescued(1, 100, 120), rescued(2, 50, 130), rescued(3, 200, 250)]
    assert attempts(rescues, 400) == [(0, 50, 120), (100, 100, 130), (50, 200, 250), (200, 400, 400)]
    assert sum(kept - first for first, kept, _ in attempts(rescues, 400)) == 400, "every update counts once"
    shorter, longer = story_plot(rescues[:1], 400), story_plot(rescues, 400)
    assert longer.height > shorter.height and len(longer.getcolors(1 << 20) or ()) > 2
