"""A pipeline on this machine: the compiled graph itself, with other programs in the place of its commands."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdrl.cli.commands import parse
from cdrl.errors import ConfigError, JobFailed, StorageError
from pipeline import graph
from pipeline.compile import documents
from pipeline.parameters import resolve
from pipeline.run import StepFailed, Stopped
from pipeline.state import State, opened
from tests.pipeline_parts import USUAL, Trial

ROOT = Path(__file__).parents[2]
PLACES = ["--root", "runs", "--tracking", ""]
SETS = ["data.uri=runs/data/digits", "run.root=runs", "run.storage=", "tracking.uri="]


def submitted(*command: str) -> list[str]:
    return ["cdrl", "submit", "--address", "local", "--root", "runs", "--wait", "--", *command]


def with_sets(*sets: str) -> list[str]:
    return [part for each in sets for part in ("--set", each)]


LINES = {
    "prepare": submitted("data", "prepare", "digits", "runs/data/digits", "--workers", "0", "--max-bad", "0"),
    "tune": submitted(
        *("tune", "digits", "--space", "schedules", "--num-trials", "3", "--name", "monday-sweep"),
        *with_sets("training.num_updates=200", *SETS),
    ),
    "freeze": ["cdrl", "config", "show", "digits", "--to", "runs/monday-sweep/best.yaml"],
    "train": submitted(
        *("train", "runs/monday-sweep/best.yaml"), *with_sets("run.name=monday", "training.num_updates=2000", *SETS)
    ),
    "evaluate": submitted("evaluate", "monday", "--root", "runs"),
    "register": ["cdrl", "registry", "register", "monday", "--root", "runs"],
    "gate": [
        *("cdrl", "registry", "gate", "digits", "monday", "--set", "gates.max_sets=0", *PLACES),
        *("--decision", "FOLDER/gate/decision"),
    ],
    "promote": ["cdrl", "registry", "promote", "digits", "monday", "--set", "gates.max_sets=0", *PLACES],
    "close": ["cdrl", "track", "sync", "monday", "--root", "runs", "--if-any"],
}
"""What `cdrl` is asked to do in each step; written by hand, so that graph and executor have something to agree with."""


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


def test_a_whole_pipeline_calls_these_commands_in_this_order(trial: Trial) -> None:
    trial.run()
    assert trial.steps == "prepare tune train evaluate report register gate promote close".split()
    for step, line in trial.called:
        if step != "report":
            assert line == [part.replace("FOLDER", str(trial.folder)) for part in LINES[step]]
            assert parse(line[1:])
    assert trial.became("left out") == ["freeze"]


def test_the_python_step_is_told_what_kubeflows_launcher_would_tell_it(trial: Trial) -> None:
    trial.run()
    (line,) = [line for step, line in trial.called if step == "report"]
    told = json.loads(line[line.index("--executor_input") + 1])
    assert told["inputs"]["parameterValues"] == {"card": "monday", "root": "runs"}
    assert set(told["outputs"]["artifacts"]) == {"scores", "page"}
    assert told["outputs"]["outputFile"].startswith(str(trial.folder))


@pytest.mark.parametrize("num_trials, left_out", [(3, "freeze"), (0, "tune")])
def test_a_sweep_of_no_trials_freezes_the_configuration(trial: Trial, num_trials: int, left_out: str) -> None:
    trial.run(num_trials=num_trials)
    assert left_out not in trial.steps and {"tune", "freeze"} - {left_out} <= set(trial.steps)
    assert trial.became("left out") == [left_out]


def test_what_the_gate_refuses_is_not_promoted_and_that_is_no_failure(trial: Trial) -> None:
    trial.run(decision="refused")
    assert "promote" not in trial.steps and trial.steps[-1] == "close"
    assert trial.became("left out") == ["freeze", "promote"]


def test_a_gate_that_says_nothing_is_a_failure(trial: Trial) -> None:
    with pytest.raises(JobFailed, match="step gate: it ended well but did not write its output"):
        trial.run("nightly", decision="")
    assert "promote" not in trial.steps


@pytest.mark.parametrize("condition", ["size(x) > 2", "inputs.parameter_values['absent'] == 'passed'", ""])
def test_a_condition_that_cannot_be_answered_is_a_failure(condition: str) -> None:
    task = {"taskInfo": {"name": "passed"}, "triggerPolicy": {"condition": condition}}
    with pytest.raises(JobFailed, match="cannot be answered"):
        graph.holds(task, {"x": "y"})


@pytest.mark.parametrize(
    ("condition", "value", "expected"),
    [
        ("int(inputs.parameter_values['n']) > 0", 3.0, True),
        ("int(inputs.parameter_values['n']) > 0", 0, False),
        ("!(int(inputs.parameter_values['n']) > 0)", 0, True),
        ("inputs.parameter_values['n'] == 'passed'", "passed", True),
        ("inputs.parameter_values['n'] == 'passed'", "passed\n", False),
        ("inputs.parameter_values['n'] != 'passed'", "refused", True),
    ],
)
def test_conditions(condition: str, value: object, expected: bool) -> None:
    task = {"taskInfo": {"name": "one"}, "triggerPolicy": {"condition": condition}}
    assert graph.holds(task, {"n": value}) is expected


def test_the_same_command_goes_on_after_a_failed_step(trial: Trial) -> None:
    with pytest.raises(StepFailed, match="step evaluate ended with exit code 2") as caught:
        trial.run(failing="evaluate")
    assert caught.value.exit_code == 2
    assert trial.steps == ["prepare", "tune", "train", "evaluate", "close"], "the record is closed all the same"
    trial.log.unlink()
    trial.run()
    assert trial.steps == "evaluate report register gate promote close".split()
    assert trial.became("finished before") == ["prepare", "tune", "train"]


def test_a_finished_pipeline_has_nothing_left_but_to_close(trial: Trial) -> None:
    trial.run()
    trial.log.unlink()
    trial.run()
    assert trial.steps == ["close"]


def test_what_follows_a_step_that_ran_again_runs_again(trial: Trial) -> None:
    trial.run()
    state = State.model_validate_json((trial.folder / "state.json").read_bytes())
    state.steps["train"] = state.steps["train"].model_copy(update={"command": "of an older cdrl"})
    state.write(trial.folder)
    trial.log.unlink()
    trial.run()
    assert trial.steps == "train evaluate report register gate promote close".split()


def test_other_parameters_under_the_same_name_are_refused(trial: Trial) -> None:
    trial.run("train")
    with pytest.raises(ConfigError, match=r"num_updates: 2000, now 7.*name another --run"):
        trial.run("train", num_updates=7)
    with pytest.raises(ConfigError, match="pipeline: 'train', now 'sweep'"):
        trial.run("sweep")


def test_a_damaged_state_says_what_to_do(trial: Trial) -> None:
    trial.run("train")
    (trial.folder / "state.json").write_text("{")
    with pytest.raises(StorageError, match="remove it"):
        trial.run("train")


def test_a_folder_that_cannot_be_written_is_one_line(trial: Trial) -> None:
    trial.folder.write_text("a file")
    with pytest.raises(StorageError, match="cannot be written"):
        trial.run("train")


def test_two_calls_at_once_are_refused(trial: Trial) -> None:
    chosen = resolve(documents("train")[0], {}, USUAL)
    with opened(trial.folder, "train", chosen), pytest.raises(ConfigError, match="another call"):
        trial.run("train")


def _child(trial: Trial, slow: str) -> subprocess.Popen[bytes]:
    """The same trial in a process of its own, standing in the step `slow`; what it says goes to a file."""
    command = [sys.executable, str(ROOT / "tests/pipeline_parts.py"), str(trial.folder.parent), slow]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = trial.folder.with_name("said")
    with said.open("w") as file:
        child = subprocess.Popen(command, env=environment, stderr=file)
    while slow not in trial.steps:
        assert child.poll() is None, said.read_text()
        time.sleep(0.05)
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_step_and_the_same_command_goes_on(trial: Trial, number: signal.Signals) -> None:
    child = _child(trial, "freeze")
    os.kill(child.pid, number)
    assert child.wait(60) == 128 + number
    said = trial.folder.with_name("said").read_text().splitlines()[-1]
    assert said == f"stopped by {number.name} in step freeze; the same command goes on from there"
    trial.log.unlink()
    trial.run("train")
    assert trial.steps == ["freeze", "train", "close"]


def test_a_killed_call_leaves_no_second_process_at_work(trial: Trial) -> None:
    child = _child(trial, "train")
    state = trial.folder / "state.json"
    while (running := State.model_validate_json(state.read_bytes()).running) is None or running.step != "train":
        time.sleep(0.05)
    child.kill()
    child.wait(60)
    os.kill(running.pid, 0)  # it lives
    trial.log.unlink()
    trial.run("train")
    with pytest.raises(ProcessLookupError):
        os.kill(running.pid, 0)
    assert trial.told[0][0] == "" and "still runs" in trial.told[0][1]
    assert trial.steps == ["train", "close"]


def test_a_stop_is_no_failure_of_a_step() -> None:
    assert not issubclass(Stopped, StepFailed), "an exit handler would run"
