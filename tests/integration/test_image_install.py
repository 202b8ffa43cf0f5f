"""The Dockerfile's own steps in a bare environment, without an engine: gigabytes and minutes, if asked for."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "infra/docker"
VARIANT = os.environ.get("CDRL_TEST_VARIANT", "cuda")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(3600),
    pytest.mark.skipif("CDRL_TEST_INSTALL" not in os.environ, reason="CDRL_TEST_INSTALL=1 asks for it"),
]


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """What an engine would be given: only the files that the ignore file admits."""
    place = tmp_path / "context"
    place.mkdir()
    admitted = (DOCKER / "Dockerfile.dockerignore").read_text().split()
    for name in (line[1:] for line in admitted if line.startswith("!")):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, place / name)
    return place


def steps() -> Iterator[tuple[str, str]]:
    """(instruction, its text) of the whole file."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest


def test_the_steps_of_the_dockerfile_make_an_environment_that_works(context: Path, tmp_path: Path) -> None:
    prefix, source = tmp_path / "usr-local", tmp_path / "src"
    source.mkdir()
    subprocess.run([sys.executable, "-m", "venv", prefix], check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {"PATH": f"{prefix}/bin:/usr/bin:/bin", "VARIANT": VARIANT, "HOME": str(tmp_path)}
    ran = 0
    for word, rest in steps():
        rest = rest.replace("/opt/installer", f"{tmp_path}/installer").replace("/opt/cdrl", f"{tmp_path}/cdrl")
        if word == "COPY" and not rest.startswith("--from"):
            *names, target = rest.split()
            to = source / target
            for name in names:
                if (context / name).is_dir():
                    shutil.copytree(context / name, to, dirs_exist_ok=True)
                else:
                    place = to / name if target == "./" else to
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(context / name, place)
        if word == "RUN" and ("pip" in rest or "venv" in rest):
            command = rest.replace("--system", f"--python {prefix}/bin/python")
            subprocess.run(["sh", "-c", command], cwd=source, env=environment, check=True)
            ran += 1
    assert ran == 4, "installer, libraries, the package, and away with pip"

    environment["PYTHONPATH"] = f"{tmp_path}/cdrl"

    def told(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    python = f"{prefix}/bin/python"
    assert "Usage: cdrl" in told(f"{prefix}/bin/cdrl", "--help")
    assert told(f"{prefix}/bin/cdrl", "config", "show", "digits").startswith("name: digits")
    assert told(python, "-c", "import cdrl, os; print(os.path.dirname(cdrl.__file__))").startswith(str(prefix))
    told(python, "-c", "import flask_wtf, kfp, kubernetes, mlflow, psycopg2, ray, torch, torchvision")
    told(python, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('pip') is not None)")
    told(python, "-m", "pipeline", "compile")
    told(f"{tmp_path}/installer/bin/uv", "pip", "check", "--python", python)
    is_cpu = told(python, "-c", "import torch; print(torch.version.cuda)").strip() == "None"
    assert is_cpu == (VARIANT == "cpu")
