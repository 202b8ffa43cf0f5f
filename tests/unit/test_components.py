"""Every component names a command that exists, with arguments that it takes, and nothing else."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cdrl.cli.commands import parse
from cdrl.config import load
from components.image import IMAGE, ImageError, checked_image

ROOT = Path(__file__).parents[2]
PARTS = ("__init__", "image", "submitted")
NAMES = sorted(path.stem for path in (ROOT / "components").glob("*.py") if path.stem not in PARTS)
HEAVY = {"prepare", "tune", "train", "evaluate", "rescore"}
INPUT = re.compile(r"\{\{\$\.inputs\.parameters\['(\w+)'\]\}\}")
OUTPUT = re.compile(r"\{\{\$\.outputs\.parameters\['(\w+)'\]\.output_file\}\}")
VALUES = {
    "source": "digits",
    "config": "digits",
    "space": "schedules",
    "run": "digits-monday",
    "card": "digits-monday",
    "model": "digits",
    "version": "/latest",
    "data": "s3://cdrl/data/digits",
    "root": "/runs",
    "storage": "s3://cdrl/runs",
    "tracking": "http://mlflow:5000",
    "address": "http://ray:8265",
    "workers": "4",
    "max_bad": "17",
    "num_trials": "3",
    "num_updates": "321",
    "max_sets": "5",
    "seed": "11",
    "decision": "/tmp/decision",
}


def component(name: str) -> Any:
    return getattr(importlib.import_module(f"components.{name}"), name)


def container(name: str) -> Any:
    return component(name).component_spec.implementation.container


def command_line(name: str) -> list[str]:
    """The component's command with example values in place of its inputs; of a Python one the command that it calls."""
    if name == "report":
        return ["cdrl", "report", VALUES["card"], "--root", VALUES["root"], "--scores", "scores", "--page", "page"]
    spec = container(name)
    parts = [str(part) for part in (*spec.command, *spec.args)]
    filled = [INPUT.sub(lambda match: VALUES[match[1]], part) for part in parts]
    return [OUTPUT.sub(lambda match: VALUES[match[1]], part) for part in filled]


def inner(name: str) -> list[str]:
    """The arguments that do the step's work, behind `submit --` where it is submitted."""
    _, *arguments = command_line(name)
    return arguments[arguments.index("--") + 1 :] if name in HEAVY else arguments


def test_there_is_a_component_for_each_step() -> None:
    assert set(NAMES) == HEAVY | {"close", "freeze", "gate", "promote", "register", "report"}


@pytest.mark.parametrize("name", NAMES)
def test_the_real_command_line_takes_what_the_component_says(name: str) -> None:
    program, *arguments = command_line(name)
    assert program == "cdrl"
    flat = str(parse(arguments)) + str(parse(inner(name)))
    for each in component(name).component_spec.inputs:
        assert VALUES[each] in flat, f"{each} reaches the command"


@pytest.mark.parametrize("name", sorted(HEAVY))
def test_a_heavy_step_is_submitted_to_the_address_and_waited_for(name: str) -> None:
    given = parse(command_line(name)[1:])
    assert (given["address"], given["wait"]) == (VALUES["address"], True)
    assert list(given["command"]) == inner(name)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"report"}))
def test_every_input_is_used_and_typed_and_explained(name: str) -> None:
    spec = component(name).component_spec
    used = INPUT.findall(" ".join(str(part) for part in container(name).args))
    assert set(used) == set(spec.inputs)
    for each, value in spec.inputs.items():
        assert value.type == ("Integer" if VALUES[each].isdigit() else "String")
        assert value.description
    assert spec.description


def test_the_report_says_what_kubeflow_shows() -> None:
    spec = component("report").component_spec
    assert {name: each.type for name, each in spec.outputs.items()} == {
        "scores": "system.Metrics@0.0.1",
        "page": "system.HTML@0.0.1",
    }
    source = " ".join(map(str, container("report").command))
    assert '["cdrl", "report", card, "--root", root, "--scores", scores.path, "--page", page.path]' in source
    assert "pip install" not in source and "ensurepip" not in source


@pytest.mark.parametrize("name", NAMES)
def test_every_component_runs_in_the_one_image(name: str) -> None:
    assert container(name).image == IMAGE


def test_a_trained_run_is_found_by_the_name_that_was_given() -> None:
    given = parse(inner("train"))
    config = load("digits", given["overrides"])
    assert given["source"] == "/runs/digits-monday-sweep/best.yaml"
    assert config.run_id == VALUES["run"] and config.training.num_updates == 321
    assert (config.run.root, config.run.storage) == (VALUES["root"], VALUES["storage"])
    assert (config.data.uri, config.tracking.uri) == (VALUES["data"], VALUES["tracking"])


def test_sweep_and_frozen_configuration_are_where_training_looks() -> None:
    assert parse(inner("freeze"))["to"] == parse(inner("train"))["source"]
    sweep = parse(inner("tune"))
    assert sweep["name"] == "digits-monday-sweep" and "run.root=/runs" in sweep["overrides"]


@pytest.mark.parametrize("empty", ["storage", "tracking"])
def test_an_empty_place_means_the_folder_of_runs(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VALUES, empty, "")
    config = load("digits", parse(inner("train"))["overrides"])
    assert (config.run.storage if empty == "storage" else config.tracking.uri) is None


@pytest.mark.parametrize(
    "arguments",
    [["data", "prepare", "digits"], ["config", "check"], ["data", "inspect", "a", "b"], ["config", "show", "--no"]],
)
def test_arguments_that_do_not_fit_are_noticed(arguments: list[str]) -> None:
    with pytest.raises(Exception) as caught:
        parse(arguments)
    assert getattr(caught.value, "exit_code", None) == 2, "a usage error of the command line"


def test_the_image_can_be_named_when_the_pipeline_is_compiled() -> None:
    code = "from components.image import IMAGE; print(IMAGE)"
    environment = os.environ | {"CDRL_IMAGE": "registry.example/cdrl@sha256:00"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "registry.example/cdrl@sha256:00\n"


@pytest.mark.parametrize("image", ["r.example:5000/team/cdrl@sha256:" + "0a" * 32, "cdrl:0.1.0", "r.example:5/c:1"])
def test_a_pinned_image_is_taken(image: str) -> None:
    checked_image(image)


@pytest.mark.parametrize("image", ["cdrl", "cdrl:latest", "r.example:5000/cdrl", "cdrl@sha256:00", "", "a b:1"])
def test_an_image_that_may_change_is_refused(image: str) -> None:
    with pytest.raises(ImageError, match="CDRL_IMAGE"):
        checked_image(image)


def test_a_tag_is_no_digest() -> None:
    with pytest.raises(ImageError, match="NAME@sha256"):
        checked_image("cdrl:0.1.0", needs_digest=True)
