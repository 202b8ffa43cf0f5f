"""Every component names a command that exists, with arguments that it takes, and nothing else."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cdrl.config import load
from components.image import IMAGE
from tests.commands import parse

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "components").glob("*.py") if path.stem not in ("__init__", "image"))
PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['(\w+)'\]\}\}")

VALUES = {
    "source": "digits",
    "config": "digits",
    "run": "digits-monday",
    "model": "digits",
    "version": "latest",
    "data": "s3://cdrl/data/digits",
    "root": "/runs",
    "storage": "s3://cdrl/runs",
    "tracking": "http://mlflow:5000",
}


def container(name: str) -> Any:
    component = getattr(importlib.import_module(f"components.{name}"), name)
    return component.component_spec.implementation.container


def command_line(name: str) -> list[str]:
    """The component's command with example values in place of its inputs."""
    spec = container(name)
    parts = [str(part) for part in (*spec.command, *spec.args)]
    return [PLACEHOLDER.sub(lambda match: VALUES[match[1]], part) for part in parts]


def test_there_is_a_component_for_each_step() -> None:
    assert NAMES == ["evaluate", "prepare", "promote", "register", "sample", "train"]


@pytest.mark.parametrize("name", NAMES)
def test_the_real_command_line_takes_what_the_component_says(name: str) -> None:
    program, *arguments = command_line(name)
    assert program == "cdrl"
    given = parse(arguments)
    inputs = getattr(importlib.import_module(f"components.{name}"), name).component_spec.inputs
    flat = str(given)
    for each in inputs:
        assert VALUES[each] in flat, f"{each} reaches the command"


@pytest.mark.parametrize("name", NAMES)
def test_every_input_is_used_and_typed_and_explained(name: str) -> None:
    component = getattr(importlib.import_module(f"components.{name}"), name)
    used = PLACEHOLDER.findall(" ".join(str(part) for part in container(name).args))
    assert sorted(used) == sorted(component.component_spec.inputs)
    assert all(each.type == "String" and each.description for each in component.component_spec.inputs.values())
    assert component.component_spec.description


@pytest.mark.parametrize("name", NAMES)
def test_every_component_runs_in_the_one_image(name: str) -> None:
    assert container(name).image == IMAGE


def test_a_trained_run_is_found_by_the_name_that_was_given() -> None:
    given = parse(command_line("train")[1:])
    config = load(given["source"], given["overrides"])
    assert config.run_id == VALUES["run"]
    assert config.name == VALUES["model"]
    assert (config.run.root, config.run.storage) == (VALUES["root"], VALUES["storage"])
    assert (config.data.uri, config.tracking.uri) == (VALUES["data"], VALUES["tracking"])


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
