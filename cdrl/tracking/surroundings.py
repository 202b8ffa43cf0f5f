"""What a run runs on: commit, versions, machine, and how busy that is."""

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

import cdrl

__all__ = ["environment", "git_commit", "load"]

PACKAGES = ("torch", "ray", "mlflow", "numpy")
PATIENCE_S = 5.0


def git_commit() -> str | None:
    """The checkout's commit, `-dirty` with uncommitted changes; None where the package is installed without one."""
    git = ["git", "-C", str(Path(cdrl.__file__).parent)]
    try:
        ours = subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True).returncode == 0
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip() if ours else None
    except (OSError, subprocess.CalledProcessError):  # no git on this machine, or a checkout that git refuses to read
        return None


def environment() -> dict[str, Any]:
    """Versions and machine of the driver. Nothing of the process's environment variables."""
    return {
        "cdrl": cdrl.__version__,
        "git": git_commit(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [name for name, *_ in _gpus("name")],
        "command": Path(sys.argv[0]).name,
    }


def load() -> dict[str, float]:
    """How busy the driver's machine is: shares in percent, since the last call where it is a rate; bytes."""
    memory = psutil.virtual_memory()
    found = {
        "system/cpu_percent": psutil.cpu_percent(),
        "system/memory_percent": memory.percent,
        "system/memory_bytes": float(memory.total - memory.available),
        "system/driver_memory_bytes": float(psutil.Process().memory_info().rss),
    }
    for number, (share, used, total) in enumerate(_gpus("utilization.gpu,memory.used,memory.total")):
        figures = {"percent": share, "memory_mib": used, "memory_total_mib": total}
        for name, figure in figures.items():
            if figure.replace(".", "", 1).isdigit():  # a figure that the card does not tell is "[N/A]"
                found[f"system/gpu_{number}_{name}"] = float(figure)
    return found


def _gpus(query: str) -> list[list[str]]:
    """What the driver of the cards tells of each; torch would take memory of the card to tell it."""
    asked = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout
    except (OSError, subprocess.SubprocessError):  # no such card here
        return []
    return [[part.strip() for part in line.split(",")] for line in told.splitlines()]
