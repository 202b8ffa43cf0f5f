"""A pipeline on this machine with the real commands, killed while it trains: the same command ends it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdrl.runs import RunRecord
from tests.training_runs import tiny_file, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).parents[2]


def test_the_same_command_ends_a_pipeline_that_was_killed(tmp_path: Path) -> None:
    source = tiny_file(tmp_path)
    command = [sys.executable, "-m", "pipeline", "run", "train", "--config", source, "--root", str(tmp_path / "runs")]
    command += ["--run", "monday", "--set", "source=digits", "--set", "num_updates=12"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    state = tmp_path / "runs" / "pipelines" / "monday" / "state.json"

    def under_way() -> bool:
        return state.is_file() and (json.loads(state.read_bytes())["running"] or {}).get("step") == "train"

    first = subprocess.Popen(command, cwd=tmp_path, env=environment)
    until(under_way, lambda: "training does not begin")
    first.kill()
    first.wait()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("prepare: finished before", "freeze: finished before", "train: finished", "close: finished"):
        assert line in done.stdout
    record = RunRecord.read("monday", str(tmp_path / "runs"))
    assert record.finished and record.config.training.num_updates == 12
    assert record.config.data.uri == str(tmp_path / "runs/data/digits")
