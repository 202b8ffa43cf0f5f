"""The machine that figures belong to, and a process in which they repeat."""

import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cdrl.errors import ConfigError

__all__ = ["FLAGS", "commit", "describe", "device_of", "peak_flops", "result_file", "settle"]

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "sve", "bf16")
"""Of the processor's flags those that decide how fast a convolution can be."""

# glibc gives large blocks back to the system as soon as they are free, so every activation of every pass is mapped and
# zeroed anew. Ratios then move by 20 % with whatever else is in the heap. It reads these when a process starts.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}

_DENSE = {"H100": 790e12, "H200": 790e12, "GH200": 790e12, "A100": 312e12}
"""FLOP/s of dense fp16 and bf16: Hopper as large matrix products reach it in practice, A100 by its data sheet."""


def device_of(name: str) -> torch.device:
    """`cpu` or `cuda`.

    Raises:
        ConfigError: another name, or no such device here.
    """
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device: expected cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here; use --device cpu")
    return torch.device(name)


def settle(device: torch.device) -> None:
    """Call before anything is measured: one thread on a CPU, and the process anew where malloc was set otherwise."""
    if device.type == "cuda":
        return
    if any(os.environ.get(name) != value for name, value in _MALLOC.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | _MALLOC)
    torch.set_num_threads(1)


def describe(device: torch.device) -> dict[str, Any]:
    """Everything about machine and software that a figure may depend on, as plain values."""
    model, flags = _processor()
    found: dict[str, Any] = {
        "cpu": model,
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "malloc": {name: os.environ.get(name) for name in _MALLOC},
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found


def result_file(folder: Path, benchmark: str, machine: dict[str, Any]) -> Path:
    """Where the results of a benchmark on a machine (from `describe`) belong."""
    model = machine.get("gpu") or f"{machine['cpu']}-{machine['cores']}-cores"
    return folder / f"{benchmark}-{re.sub(r'[^a-z0-9]+', '-', model.lower()).strip('-')}.json"


def commit() -> str | None:
    """The commit of the checkout that runs, `-dirty` with uncommitted changes."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or None


def _processor() -> tuple[str, set[str]]:
    """Model and flags as Linux tells them."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip().lower(), value.strip())
    flags = set(facts.get("flags", facts.get("features", "")).split())
    return facts.get("model name", platform.machine()), flags


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float | None, str]:
    """FLOP/s that utilisation is measured against, and what they are; None where nobody knows.

    On a GPU the table above, for every precision. On a CPU the best of several convolutions like the nets' in `dtype`.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = [peak for part, peak in _DENSE.items() if part in name]
        return (known[0], f"{known[0] / 1e12:.0f} TFLOP/s, dense fp16") if known else (None, f"unknown for {name}")
    batch, channels, side = 8, 128, 16
    x = torch.rand(batch, channels, side, side).to(dtype, memory_format=torch.channels_last)
    weight = torch.rand(channels, channels, 3, 3).to(dtype, memory_format=torch.channels_last)
    seconds = []
    with torch.no_grad():
        for _ in range(16):
            before = time.process_time()
            torch.conv2d(x, weight, padding=1)
            seconds.append(time.process_time() - before)
    peak = 2 * batch * (channels * side * 3) ** 2 / min(seconds)
    return peak, f"{peak / 1e9:.0f} GFLOP/s, the best of 16 3x3 convolutions in {str(dtype).removeprefix('torch.')}"
