"""Looks at everything that a run needs: what is there, and what to do where it is not as it should be."""

import importlib
import os
import platform
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from cdrl import storage
from cdrl.config import Config
from cdrl.errors import CdrlError

__all__ = ["Finding", "examine"]

PINS = Path(__file__).parents[2] / "constraints.txt"
"""In a checkout; what is installed elsewhere is held against the package's own bounds."""

LEAST_DISK_GB, GOOD_DISK_GB = 1, 20
GOOD_SHARED_MEMORY_GB = 2
GB = 1e9


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        state: fail only for what cannot work, or was asked for and does not.
        advice: what to do; empty where all is well.
    """

    what: str
    state: Literal["OK", "warn", "fail"]
    seen: str
    advice: str = ""


def examine(config: Config | None = None, address: str | None = None) -> Iterator[Finding]:
    """Look at this environment.

    Args:
        config: whose data, storage, tracking server and GPUs are asked for; None: none of them.
        address: of the place for jobs that is asked for: http://HOST:8265 or kuberay.
    """
    yield _python()
    yield from _versions()
    yield _torch()
    yield _gpu(asked=config is not None and config.cluster.use_gpu)
    for what, folder in _folders(config):
        yield _disk(what, folder)
    yield _shared_memory()
    yield from _storage(config)
    yield _tracking(config.tracking.uri if config else None)
    yield _ray(address)
    yield _kubernetes(address)


def _python() -> Finding:
    seen = f"{platform.python_version()}, {os.cpu_count()} CPUs, {platform.system()}"
    if platform.system() != "Linux":
        return Finding("python", "warn", seen, "only Linux is tested")
    return Finding("python", "OK" if sys.version_info >= (3, 11) else "fail", seen, "take Python 3.11 or newer")


def _versions() -> Iterator[Finding]:
    """The packages that cdrl names, against its bounds and the pins of the checkout."""
    pins = dict(line.split("==") for line in PINS.read_text().split() if "==" in line) if PINS.is_file() else {}
    names, other = 0, []
    for line in metadata.requires("cdrl") or ():
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():  # of an extra
            continue
        name = requirement.name
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "fail", "not installed", f"pip install '{line}'")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield Finding(name, "fail", version, f"expected {requirement.specifier}: pip install '{line}'")
        elif pins.get(name, version) != version.partition("+")[0]:
            other.append(f"{name} {version} (pinned: {pins[name]})")
        names += 1
    if other:
        yield Finding("versions", "warn", ", ".join(other), "pip install -c constraints.txt -e .")
    else:
        yield Finding("versions", "OK", f"{names} packages" + (" as pinned" if pins else " within bounds"))


def _torch() -> Finding:
    try:
        for name in ("torch", "torchvision"):
            importlib.import_module(name)
    except Exception as error:  # an ill-matched pair fails in many ways
        return Finding("torch", "fail", _line(error), "torch and torchvision belong together: take both of the pins")
    pair = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision"))
    return Finding("torch", "OK", pair)


def _gpu(asked: bool) -> Finding:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        seen = ", ".join(f"{each.name} {each.total_memory / GB:.0f} GB" for each in devices)
        return Finding("GPU", "OK", f"{seen}, CUDA {torch.version.cuda}")
    driver = shutil.which("nvidia-smi")
    seen = f"torch (CUDA {torch.version.cuda}) sees none" + (", but there is a driver" if driver else "")
    advice = "take a torch for the driver's CUDA version" if driver else "cluster.use_gpu=false trains on the CPU"
    return Finding("GPU", "fail" if asked else "warn" if driver else "OK", seen, advice if asked or driver else "")


def _folders(config: Config | None) -> list[tuple[str, Path]]:
    root = Path(config.run.root if config else "runs").absolute()
    there = next(folder for folder in (root, *root.parents) if folder.is_dir())
    return [("disk of run.root", there), ("disk for temporary files", Path(tempfile.gettempdir()))]


def _disk(what: str, folder: Path) -> Finding:
    free_gb = shutil.disk_usage(folder).free / GB
    seen = f"{free_gb:.0f} GB free at {folder}"
    if not os.access(folder, os.W_OK):
        return Finding(what, "fail", f"{folder} cannot be written", "choose another folder, or its owner")
    if free_gb >= GOOD_DISK_GB:
        return Finding(what, "OK", seen)
    advice = f"free some: {GOOD_DISK_GB} GB hold shards, checkpoints and Ray's files"
    return Finding(what, "warn" if free_gb >= LEAST_DISK_GB else "fail", seen, advice)


def _shared_memory() -> Finding:
    try:
        size_gb = shutil.disk_usage("/dev/shm").total / GB
    except OSError:
        return Finding("/dev/shm", "warn", "not there", "Ray falls back to /tmp, which is slow")
    enough = size_gb >= GOOD_SHARED_MEMORY_GB
    advice = "" if enough else f"give the container --shm-size={GOOD_SHARED_MEMORY_GB}g, or a Memory volume there"
    return Finding("/dev/shm", "OK" if enough else "warn", f"{size_gb:.1f} GB", advice)


def _storage(config: Config | None) -> Iterator[Finding]:
    """Shards are read, checkpoints written: a probe of each that lies on S3."""
    asked = {"run.storage": config.run.storage, "data.uri": config.data.uri} if config else {}
    on_s3 = {setting: uri for setting, uri in asked.items() if uri and uri.startswith("s3://")}
    if not on_s3:
        yield Finding("S3", "OK", "not asked for")
    for setting, uri in on_s3.items():
        yield _tried(f"S3, {setting}", uri, lambda uri=uri, setting=setting: _probe(uri, setting))  # type: ignore[misc]


def _probe(uri: str, setting: str) -> str:
    with storage.patience(0):
        if setting == "data.uri":
            manifest = storage.exists(storage.join(uri, "manifest.json"))
            return f"{uri}: {'a dataset' if manifest else 'reachable, no dataset yet'}"
        name = storage.join(uri, f".cdrl-doctor-{uuid.uuid4().hex[:8]}")
        storage.write_bytes(name, b"probe")
        found = storage.read_bytes(name) == b"probe"
        storage.remove(name)
    return f"{uri}: written, read{'' if found else ' differently'} and removed"


def _tracking(uri: str | None) -> Finding:
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return Finding("MLflow", "OK", "not asked for; runs keep a SQLite database beside them")
    from cdrl.tracking.server import connect, shown

    def ask() -> str:
        connect(uri, create=False)
        return f"{shown(uri)} answers"

    return _tried("MLflow", shown(uri), ask)


def _ray(address: str | None) -> Finding:
    version = metadata.version("ray")
    if address is None or not address.startswith("http"):
        return Finding("Ray", "OK", f"{version}; no cluster asked for")
    from cdrl.cluster.ray_jobs import connect

    def ask() -> str:
        theirs = connect(address)._server_ray_version  # `get_version` is that of the API
        if theirs != version:
            raise CdrlError(f"Ray {theirs} there, {version} here; install the same version")
        return f"{address} answers, Ray {theirs}"

    return _tried("Ray", address, ask)


def _kubernetes(address: str | None) -> Finding:
    if address != "kuberay":
        return Finding("Kubernetes", "OK", "not asked for")
    from cdrl.cluster.places import place_at

    return _tried("Kubernetes", address, lambda: f"KubeRay answers, {len(place_at(address).jobs())} jobs of cdrl")


def _tried(what: str, name: str, ask: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "OK", ask())
    except CdrlError as error:
        seen, _, advice = _line(error).partition("; ")
        return Finding(what, "fail", seen, advice or f"look at {name}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
