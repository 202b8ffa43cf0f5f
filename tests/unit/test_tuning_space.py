"""Search spaces: what they draw is always a valid configuration, and what is wrong in them is told in one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cdrl.build import build_schedule
from cdrl.cli import main
from cdrl.config import load
from cdrl.errors import ConfigError
from cdrl.tuning.notes import Notes, Score, Trial
from cdrl.tuning.propose import importances, propose
from cdrl.tuning.space import Space, load_space, spaces, with_parameters
from cdrl.tuning.sweep import build_sweep

CONFIG = load("digits", ["run.score_samples=100"])
MIXED: dict[str, Any] = {
    "schedule.family": {"choices": ["cosine", "drl_t6"]},
    "schedule.num_levels": {"low": 2, "high": 9},
    "schedule.logsnr_min": {"low": -7.0, "high": 5.0, "when": {"schedule.family": "cosine"}},
    "schedule.logsnr_max": {
        "low": -1.0,
        "high": 12.0,
        "above": "schedule.logsnr_min",
        "by": 4.0,
        "when": {"schedule.family": "cosine"},
    },
    "schedule.warp": {"low": 0.5, "high": 2.0, "log": True, "when": {"schedule.family": "cosine"}},
    "schedule.step_scale": {"low": 1e-5, "high": 1e-3, "log": True, "per_level": True},
    "training.num_steps": {"low": 1, "high": 20, "log": True},
    "training.energy.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "training.anchor": {"choices": [0.0, 1.0]},
    "schedule.weight_power": {"low": 0.0, "high": 2.0},
}


def space(parameters: dict[str, Any] = MIXED, **more: Any) -> Space:
    return Space.model_validate({"parameters": parameters, **more})


def file(folder: Path, tree: Any) -> str:
    path = folder / "space.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return str(path)


def refusal(folder: Path, tree: Any, *overrides: str, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_sweep("digits", file(folder, tree), overrides, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=25)
@given(st.integers(1, 10_000), st.sampled_from(["random", "tpe"]))
def test_every_draw_is_a_valid_configuration(number: int, searcher: str) -> None:
    drawn = propose(space(searcher=searcher), CONFIG, number, [], 100)
    config = with_parameters(CONFIG, drawn)
    schedule = build_schedule(config.schedule)
    assert schedule.num_levels == drawn["schedule.num_levels"] == len(drawn["schedule.step_scale"])
    assert ("schedule.warp" in drawn) == (config.schedule.family == "cosine")
    if "schedule.warp" in drawn:
        assert config.schedule.logsnr_max >= config.schedule.logsnr_min + 4
    assert isinstance(drawn["training.num_steps"], int) and 1 <= drawn["training.num_steps"] <= 20


def test_a_proposal_depends_on_what_is_known_and_on_nothing_else() -> None:
    one = space({"schedule.step_scale": {"low": 1e-5, "high": 1e-3, "log": True}})
    known = [Trial(0, {}, "complete", [Score(10, 5.0, 0.1)])]
    for number in range(1, 12):
        drawn = propose(one, CONFIG, number, known, 12)
        assert drawn == propose(one, CONFIG, number, list(known), 12)
        assert all(drawn != trial.parameters for trial in known)
        fd = abs(drawn["schedule.step_scale"] - 1e-4) * 1e5
        known.append(Trial(number, drawn, "complete", [Score(10, fd, 0.1)]))


def test_tpe_finds_what_random_does_not() -> None:
    one = space({"schedule.logsnr_max": {"low": 6.0, "high": 14.0}, "schedule.warp": {"low": 0.5, "high": 2.0}})

    def best(searcher: str) -> float:
        asked = one.model_copy(update={"searcher": searcher})
        known: list[Trial] = []
        for number in range(40):
            drawn = propose(asked, CONFIG, number, known, 40)
            x, y = drawn.get("schedule.logsnr_max", 9.8), drawn.get("schedule.warp", 1.0)
            known.append(Trial(number, drawn, "complete", [Score(10, (x - 12.3) ** 2 + 9 * (y - 1.7) ** 2, 0.1)]))
        return sum(sorted(trial.scores[0].fd for trial in known)[:5])

    assert best("tpe") < best("random") / 2


def test_trials_that_ended_early_diverged_or_failed_teach_too() -> None:
    one = space({"schedule.warp": {"low": 0.5, "high": 2.0}}, searcher="tpe")
    ends: list[Any] = ["stopped", "diverged", "failed", "running", "complete"]
    known = [Trial(n, {"schedule.warp": 0.5 + n / 10}, ends[n % 5], [Score(10, float(n), 0.1)]) for n in range(1, 12)]
    known.append(Trial(12, {"schedule.warp": 0.6}, "diverged", [], cause="f"))
    assert 0.5 <= propose(one, CONFIG, 13, known, 14)["schedule.warp"] <= 2.0


def test_a_grid_has_every_combination_once() -> None:
    grid = space(
        {
            "schedule.family": {"choices": ["cosine", "drl_t6"]},
            "schedule.warp": {"low": 0.5, "high": 2.0, "log": True, "when": {"schedule.family": "cosine"}},
            "training.num_steps": {"low": 2, "high": 6, "points": 5},
        },
        searcher="grid",
    )
    found = grid.grid(CONFIG)
    assert len(found) == 3 * 5 + 5
    assert all(found.count(each) == 1 for each in found)
    assert {each.get("schedule.warp") for each in found} == {None, 0.5, 1.0, 2.0}
    assert propose(grid, CONFIG, 1, [], 21) == found[0]


@pytest.mark.parametrize("name", spaces())
def test_the_spaces_that_are_shipped_go_with_digits(name: str) -> None:
    sweep = build_sweep("digits", name)
    assert spaces()[name] and sweep.num_trials >= 12
    assert sweep.config.training.num_updates < sweep.asked.training.num_updates
    assert sweep.trial(3, propose(sweep.space, sweep.config, 3, [], 16)).run.name == "t003"


@pytest.mark.parametrize(
    "tree, says",
    [
        ({"parameters": {"schedule.wrap": {"low": 0.5, "high": 2.0}}}, "did you mean 'schedule.warp'"),
        ({"parameters": {}}, "searches nothing"),
        ("", "searches nothing"),
        ("- 3", "expected a mapping"),
        ("a: [", "not valid YAML"),
        ({"parameters": {"schedule.warp": {}}}, "expected choices, or low and high"),
        ({"parameters": {"schedule.warp": {"low": 2.0, "high": 0.5}}}, "expected low < high"),
        ({"parameters": {"schedule.warp": {"low": 0.0, "high": 0.5, "log": True}}}, "log needs low > 0"),
        ({"parameters": {"schedule.warp": {"low": -1.0, "high": 0.5}}}, "warp: Input should be greater than 0"),
        ({"parameters": {"schedule.warp": {"choices": []}}}, "at least 1 item"),
        ({"parameters": {"schedule.warp": {"choices": ["much"]}}}, "valid number"),
        ({"parameters": {"schedule.num_levels": {"low": 2.5, "high": 4}}}, "expected whole numbers"),
        ({"parameters": {"schedule.warp": {"low": 0.5, "high": 2.0, "logs": True}}}, "logs: unknown key"),
        ({"parameter": {}, "parameters": {"schedule.warp": {"low": 0.5, "high": 2.0}}}, "parameter: unknown key"),
        ({"parameters": {"training.seed": {"low": 1, "high": 9}}}, "all trials have the same"),
        ({"parameters": {"run.log_every": {"low": 1, "high": 9}}}, "cannot be searched"),
        ({"parameters": {"schedule": {"choices": [{}]}}}, "unknown setting"),
        (
            {"parameters": {"schedule.logsnr_max": {"low": -9.0, "high": 9.0}}},
            "logsnr_max -9.0 must exceed logsnr_min -5.1",
        ),
        (
            {"parameters": {"schedule.logsnr_max": {"low": 5.0, "high": 9.0, "above": "schedule.warp", "by": 9.0}}},
            "high 9.0 is below schedule.warp + 9",
        ),
        (
            {"parameters": {"schedule.family": {"choices": ["drl_t6"]}, "schedule.warp": {"low": 0.5, "high": 2.0}}},
            "warp belongs to family 'cosine'",
        ),
        (
            {
                "parameters": {
                    "schedule.warp": {"low": 1.0, "high": 2.0, "above": "schedule.logsnr_max"},
                    "schedule.logsnr_max": {"low": 8.0, "high": 9.0, "above": "schedule.warp"},
                }
            },
            "look at each other",
        ),
        ({"settings": {"training.lr": 3}, "parameters": {"schedule.warp": {"low": 1, "high": 2}}}, "lr: unknown"),
        (
            {
                "searcher": "grid",
                "parameters": {"schedule.step_scale": {"low": 1e-5, "high": 1e-3, "per_level": True}},
            },
            "not with grid",
        ),
    ],
)
def test_a_wrong_space_is_refused_in_one_line(tmp_path: Path, tree: Any, says: str) -> None:
    assert says in refusal(tmp_path, tree)


def test_a_wrong_command_is_refused_in_one_line(tmp_path: Path) -> None:
    tree = {"parameters": {"schedule.warp": {"low": 0.5, "high": 2.0}}}
    assert "searches it" in refusal(tmp_path, tree, "schedule.warp=1.1")
    assert "score_samples" in refusal(tmp_path, tree, "run.score_samples=0")
    assert "expected letters" in refusal(tmp_path, tree, name="../up")
    assert "no such run" in refusal(tmp_path, tree, warm_start="nothing")
    with pytest.raises(ConfigError, match="presets: schedules, steps"):
        load_space("schedule")
    with pytest.raises(ConfigError, match="cannot read"):
        load_space(str(tmp_path / "absent.yaml"))


def test_another_sweep_of_the_same_name_is_refused_and_a_longer_one_is_not(tmp_path: Path) -> None:
    root = f"run.root={tmp_path}"
    one = build_sweep("digits", "schedules", [root], name="mine")
    one.write()
    build_sweep("digits", "schedules", [root], name="mine", choices={"num_trials": 99}).write()
    with pytest.raises(ConfigError, match="scheduler was asha, is fifo"):
        build_sweep("digits", "schedules", [root], name="mine", choices={"scheduler": "fifo"}).write()
    with pytest.raises(ConfigError, match="seed was 5, is 6"):
        build_sweep("digits", "schedules", [root, "training.seed=6"], name="mine").write()
    assert build_sweep("digits", "schedules", [root]).name == build_sweep("digits", "schedules", [root]).name
    assert build_sweep("digits", "schedules", [root]).name != build_sweep("digits", "steps", [root]).name


def test_notes_are_found_again_as_they_were_left(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    notes.begin(0, {})
    notes.begin(1, {"schedule.warp": 1.5})
    notes.place(0, "t000", {}, None)
    for number, step, fd in ((0, 10, 4.0), (1, 10, 3.0), (0, 20, 2.0), (1, 20, 9.0), (1, 10, 3.5)):
        notes.score(number, Score(step, fd, 0.5))
    notes.end(0, "complete")
    with (tmp_path / "journal.jsonl").open("a") as journal:
        journal.write('{"time": 1, "kind": "sc')  # the process was killed here
    found = Notes(tmp_path)
    assert found.trials == notes.trials
    assert [score.step for score in found.trials[1].scores] == [10] and found.trials[1].fd == 3.5
    assert [trial.number for trial in found.unfinished()] == [1]
    found.end(1, "failed", "why")
    assert [trial.cause for trial in Notes(tmp_path).unfinished()] == ["why"]


def test_what_matters_is_what_moves_the_values() -> None:
    rows = [{"much": float(i % 7), "nothing": float(i % 3), "fixed": 1.0} for i in range(60)]
    shares = importances(rows, [row["much"] ** 2 for row in rows])
    assert set(shares) == {"much", "nothing"} and shares["much"] > 0.9
    assert importances(rows[:3], [1.0, 2.0, 3.0]) == {} == importances([], [])


@pytest.mark.parametrize(
    "options, says",
    [
        (["--space", "{space}"], "did you mean 'schedule.warp'"),
        (["--space", "nowhere"], "neither a preset nor a .yaml file"),
        (["--space", "schedules", "--set", "data.uri={folder}/none"], "no dataset here"),
        (["--space", "schedules", "--set", "schedule.warp=2"], "searches it"),
        (["--space", "schedules", "--warm-start", "{folder}/none"], "no such run"),
    ],
)
def test_the_command_refuses_in_one_line(
    tmp_path: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(tmp_path, {"parameters": {"schedule.wrap": {"low": 0.5, "high": 2.0}}})
    given = [part.format(space=path, folder=tmp_path) for part in options]
    monkeypatch.setattr("sys.argv", ["cdrl", "tune", "digits", "--set", f"run.root={tmp_path}", *given])
    with pytest.raises(SystemExit) as caught:
        main()
    told = capsys.readouterr().err
    assert caught.value.code == 2 and says in told and told.count("\n") == 1
    assert not list(tmp_path.glob("digits-*")), "nothing was begun"
