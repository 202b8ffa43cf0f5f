"""`cdrl submit` on this machine: the very command, with its output and exit code, after a look at its arguments."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdrl.cli.commands import checked
from cdrl.errors import ConfigError

ROOT = Path(__file__).parents[2]


def cdrl(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cdrl.cli", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_output_and_exit_code_are_the_commands_own() -> None:
    alone = cdrl("config", "check", "digits", "--set", "training.seed=3")
    submitted = cdrl("submit", "--", "config", "check", "digits", "--set", "training.seed=3", CDRL_ADDRESS="local")
    assert alone.returncode == 0 and alone.stdout.startswith("valid: run digits-")
    assert (submitted.returncode, submitted.stdout, submitted.stderr) == (0, alone.stdout, alone.stderr)


def test_a_failure_of_the_command_is_passed_on() -> None:
    failed = cdrl("submit", "--address", "local", "--", "sample", "no-such-run")
    assert failed.returncode == 2 and failed.stderr.startswith("error: run 'no-such-run': no such run")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian digits", "`cdrl trian digits`: no command 'trian'; `cdrl --help` lists them"),
        ("registry", "no command ''"),
        ("train digits --sett a=1", "No such option: --sett"),
        ("train", "Missing argument 'CONFIG|RUN'"),
        ("train digits --set training.sed=1", "digits: training.sed: unknown setting; did you mean"),
        ("train digits --set training.seed=x", "digits: training.seed:"),
    ],
)
def test_a_command_that_cannot_run_is_refused_before_it_travels(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(line.split())
    assert message in str(caught.value)


def test_a_file_may_exist_only_where_the_command_will_run() -> None:
    checked(["train", "only-there.yaml", "--set", "run.storage=s3://bucket/runs"])
