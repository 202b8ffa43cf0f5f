"""Ranking, pictures, `best.yaml`, and how a sweep and its trials become a family of MLflow runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cdrl.config import load
from cdrl.tracking.journal import Journal
from cdrl.tuning.family import adopt
from cdrl.tuning.notes import Notes, Score, State, Trial
from cdrl.tuning.plots import LABEL_HEIGHT, _apart, shared_step
from cdrl.tuning.population import check_population
from cdrl.tuning.propose import propose
from cdrl.tuning.ranking import Ranking, rank
from cdrl.tuning.run import write_results
from cdrl.tuning.search import _Rungs
from cdrl.tuning.space import load_space
from cdrl.tuning.story import Story
from cdrl.tuning.sweep import Sweep, build_sweep


def sweep_in(folder: Path, *overrides: str, **choices: Any) -> Sweep:
    return build_sweep("digits", "schedules", [f"run.root={folder}", *overrides], choices=choices)


def trial(number: int, state: State, *fds: float, cause: str = "", **parameters: Any) -> Trial:
    scores = [Score(100 * at, fd, 0.3) for at, fd in enumerate(fds, start=1)]
    return Trial(number, {f"schedule.{name}": value for name, value in parameters.items()}, state, scores, cause=cause)


TRIALS = [
    trial(0, "complete", 9.0, 3.0),
    trial(1, "complete", 8.0, 2.0, warp=1.2, num_levels=5, step_scale=1e-4),
    trial(2, "stopped", 1.0, warp=0.8, num_levels=7, step_scale=3e-4),
    trial(3, "diverged", 0.5, warp=1.4, num_levels=8, step_scale=9e-4, cause="training diverged at level 1"),
    trial(4, "failed", cause="a disk was full", warp=1.0, num_levels=4, step_scale=2e-5),
    trial(5, "running", 7.0, family="drl_t6", num_levels=6, step_scale=5e-5),
]


def test_who_went_further_ranks_higher_and_what_diverged_or_failed_has_no_rank(tmp_path: Path) -> None:
    found = rank(sweep_in(tmp_path), TRIALS)
    assert [place.trial for place in found.places] == [1, 0, 2, 5, 3, 4]
    assert [place.rank for place in found.places] == [1, 2, 3, 4, None, None]
    assert found.best is not None and found.best.trial == 1
    text = found.text()
    assert "t004 failed: a disk was full" in text and "t003 diverged: training diverged at level 1" in text
    assert "t001; clearly better than the configuration as it is (t000), by 1.00 ± 0.42" in text
    assert Ranking.model_validate_json(found.model_dump_json()) == found


def test_without_a_score_there_is_no_best(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    found = rank(sweep, TRIALS[3:5])
    assert found.best is None and "no trial has a score" in found.text()
    write_results(sweep, TRIALS[3:5], found)
    assert not (sweep.directory / "best.yaml").exists()
    assert json.loads((sweep.directory / "ranking.json").read_text())["places"][0]["state"] == "diverged"


@pytest.mark.parametrize("count", [1, 2, len(TRIALS)])
def test_results_are_written_and_best_yaml_is_what_was_asked_for_with_the_best_parameters(
    tmp_path: Path, count: int
) -> None:
    sweep = sweep_in(tmp_path, "training.num_steps=6")
    write_results(sweep, TRIALS[:count], rank(sweep, TRIALS[:count]))
    for name in ("parallel", "importance", "schedule"):
        picture = np.asarray(Image.open(sweep.directory / f"{name}.png"))
        assert picture.shape[1] > 300 and picture.std() > 5, name
    best = load(str(sweep.directory / "best.yaml"))
    assert best.training.num_steps == 6 and best.training.num_updates == load("digits").training.num_updates
    assert best.schedule.warp == (1.0 if count == 1 else 1.2) and best.run.name is None
    assert best.run.score_samples == load("digits").run.score_samples


def test_trials_compare_where_all_were_measured() -> None:
    assert shared_step(TRIALS)[0] == 100 and len(shared_step(TRIALS)[1]) == 4
    assert shared_step(TRIALS[:2])[0] == 200
    assert shared_step([]) == (0, [])


def test_a_scheduler_knows_what_earlier_calls_have_seen(tmp_path: Path) -> None:
    """The decision for a new trial is the same as if all had run in one call."""
    notes = Notes(tmp_path)
    for number, fd in enumerate((5.0, 4.0, 3.0, 2.0)):
        notes.begin(number, {})
        notes.score(number, Score(400, fd, 0.1))
        notes.end(number, "stopped" if number % 2 else "complete")
    options: dict[str, Any] = {"time_attr": "step", "metric": "fd", "mode": "min"}

    class Newcomer:
        trial_id = "new"
        config = {"trial": {"number": 4}}

    def decision(known: Notes, fd: float) -> str:
        rungs = _Rungs(known, max_t=800, grace_period=400, reduction_factor=2, **options)
        rungs.on_trial_add(None, Newcomer())
        return str(rungs.on_trial_result(None, Newcomer(), {"step": 400, "fd": fd}))

    assert decision(Notes(tmp_path), 4.5) == "STOP" and decision(Notes(tmp_path), 1.0) == "CONTINUE"
    assert decision(Notes(tmp_path / "none"), 4.5) == "CONTINUE"


def test_pbt_takes_only_what_can_change_on_the_way(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="schedule.logsnr_max: pbt takes plain ranges"):
        sweep = sweep_in(tmp_path, scheduler="pbt", num_trials=4)
        space = sweep.space.model_copy(
            update={"parameters": {k: v for k, v in sweep.space.parameters.items() if k == "schedule.logsnr_max"}}
        )
        check_population(sweep.model_copy(update={"space": space}), 2, has_slots=True)
    levels = sweep.space.model_copy(
        update={"parameters": {"schedule.num_levels": sweep.space.parameters["schedule.num_levels"]}}
    )
    with pytest.raises(Exception, match="schedule.num_levels: pbt changes parameters on the way"):
        check_population(sweep.model_copy(update={"space": levels}), 2, has_slots=True)


def test_a_trial_that_goes_on_from_another_is_a_run_of_its_own(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path, scheduler="pbt")
    parameters = propose(sweep.space, sweep.config, 1, [], 4)
    alone, after = sweep.trial(1, parameters), sweep.trial(1, parameters, "/somewhere/step_00000400-0123456789ab")
    assert alone.run_id == "t001" and after.run_id.startswith("t001-")
    assert after.training.start_with == "state" and alone.identity != after.identity
    assert alone.run.keep_every == alone.run.checkpoint_every, "another trial may go on from each checkpoint"
    assert alone.training.seed == sweep.asked.training.seed


def test_a_child_gets_its_parent_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    adopt(tmp_path, "p1")
    assert journal.last("tags") is None, "it has not begun"
    journal.append("start", run="t000", experiment="cdrl", key="k", params={})
    for parent in ("", "p1", "p1"):
        adopt(tmp_path, parent)
    tags = [entry["values"] for _, entry in journal.entries() if entry["kind"] == "tags"]
    assert tags == [{"mlflow.parentRunId": "p1"}]


def test_a_person_sees_trials_scores_and_what_is_left(tmp_path: Path) -> None:
    sweep, notes = sweep_in(tmp_path), Notes(tmp_path / "notes")
    text = (tmp_path / "text").open("w+")
    with Story(Console(file=text, width=200), sweep, notes, 2) as story:
        notes.begin(0, {"schedule.warp": 1.25})
        story.tell(notes.score(0, Score(100, 4.321, 0.5)), Score(100, 4.321, 0.5))
        story.tell(notes.end(0, "failed", "no memory"), None)
    text.seek(0)
    lines = text.read().splitlines()
    assert lines[0] == "t000 100/800: FD 4.32 ± 0.50" and lines[1].startswith("t000 failed at 100: no memory; 1 of 16")
    live = Console(file=(tmp_path / "live").open("w+"), width=120, force_terminal=True)
    notes.begin(1, {"schedule.warp": 0.75})
    Journal(sweep.trials / "t001").append("metrics", step=60, values={})
    live.print(Story(live, sweep, notes, 2)._render())
    live.file.seek(0)
    shown = live.file.read()
    assert "60/800" in shown and "warp=0.75" in shown and "1 of 16 trials over" in shown


@pytest.mark.parametrize("heights", [[1.0, 1.0, 1.0, 0.5, 0.51, 0.0], [0.2, 0.9], [0.3], [], [0.0] * 5])
def test_labels_stand_apart_in_their_order(heights: list[float]) -> None:
    given = np.array(heights)
    moved = _apart(given)
    order = np.argsort(given, kind="stable")
    assert (np.diff(moved[order]) >= LABEL_HEIGHT - 1e-12).all() and ((moved >= 0) & (moved <= 1)).all()
    if (np.diff(given[order]) >= LABEL_HEIGHT).all():
        assert moved == pytest.approx(given), "those that stand apart stay"


def test_settings_of_a_space_give_way_to_the_command(tmp_path: Path) -> None:
    usual = load_space("schedules").settings
    sweep = sweep_in(tmp_path, "training.num_updates=40", num_trials=3)
    assert sweep.config.training.num_updates == sweep.asked.training.num_updates == 40 != usual["training.num_updates"]
    assert sweep.config.run.checkpoint_every == usual["run.checkpoint_every"] and sweep.num_trials == 3
