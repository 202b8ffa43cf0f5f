"""Benchmarks as processes of their own, which start themselves anew; where neither Ray nor MLflow is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TINY = [
    *("data.shape=[1,8,8]", "energy.width=8", "energy.num_blocks=1", "energy.multipliers=[1,2]"),
    *("initializer.width=8", "initializer.groups=4", "initializer.num_blocks=1", "initializer.multipliers=[1]"),
    *("initializer.attention_resolutions=[]", "training.num_steps=3", "sampling.num_steps=2"),
]


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, since it may start itself anew."""
    absent = "import sys; sys.modules.update(dict.fromkeys(('ray', 'mlflow', 'kfp', 'boto3')));"
    code = absent + "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=environment | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_writes_what_it_shows_without_a_platform(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text("from cdrl.cli import main; main()")
    settings = [word for setting in TINY for word in ("--set", setting)]
    rest = ("--batch-size", "2", "--repeats", "1", "--samplings", "1", "--device", "cpu", "--json", "out/bench.json")
    done = command(str(tmp_path / "command.py"), "bench", "cifar10", *settings, *rest, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    values = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert f"{values['speedup']['update']['median']:.2f}x" in done.stdout
    assert values["machine"]["threads"] == 1
    assert values["machine"]["malloc"]["MALLOC_TRIM_THRESHOLD_"] == str(2**34)  # the process started itself anew


def test_the_benchmark_starts_without_a_platform(tmp_path: Path) -> None:
    done = command(str(ROOT / "benchmarks" / "step.py"), "--only", "none-such", cwd=tmp_path)
    assert done.returncode == 2 and "invalid choice: 'none-such'" in done.stderr
