"""Open a model wherever it is: a version, a run, a checkpoint or a package, in a folder or on S3."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import torch

from cdrl import storage
from cdrl.config import ComputeConfig
from cdrl.errors import RegistryError
from cdrl.model import Model
from cdrl.registry import proof
from cdrl.registry.versions import REFERENCE, Registry, check
from cdrl.runs import fetch_model
from cdrl.tracking import server

__all__ = ["load", "opened", "registry_at", "verified"]

SCHEME = "models:/"


def load(
    ref: str,
    device: torch.device | str = "cpu",
    *,
    root: str = "runs",
    tracking: str | None = None,
    compute: ComputeConfig = ComputeConfig(),  # noqa: B008 - frozen
) -> Model:
    """The model that `ref` means; see `opened`."""
    with opened(ref, root=root, tracking=tracking) as folder:
        return Model.load(folder, device, compute)


@contextmanager
def opened(ref: str, *, root: str = "runs", tracking: str | None = None) -> Iterator[Path]:
    """A folder with the model that `ref` means. What has a proof is checked against it.

    Args:
        ref: `models:/NAME@champion`, `models:/NAME/3`; a run's id or folder; the folder or `s3://` URI of a checkpoint,
            a package or a version.
        root: the folder of runs.
        tracking: the MLflow server; default: `MLFLOW_TRACKING_URI`, then the database below `root`.

    Raises:
        ConfigError: there is no such run.
        RegistryError: there is no such version, or a package is not what its proof says.
        StorageError, TrackingError: it cannot be reached.
    """
    if ref.startswith(SCHEME):
        registry = registry_at(tracking, root)
        with registry.package(registry.find(ref)) as package:
            yield package
        return
    with _copied(ref, proof.FOLDER) as folder:
        package = fetch_model(ref, root=root) if folder is None else proof.package_in(folder)
        if (package / proof.NAME).is_file():
            proof.check_package(package)
        yield package


@contextmanager
def verified(ref: str, *, root: str = "runs", tracking: str | None = None) -> Iterator[tuple[Path, proof.Proof]]:
    """A folder of a version (`NAME/3`, `NAME@champion`) or of a package (a folder or `s3://` URI), all of it checked.

    Nothing but the registry's own server is asked, for a folder none.

    Raises:
        RegistryError: there is nothing of the kind, or something is not what its proof says, by name.
    """
    is_place = "://" in ref or Path(ref).is_dir()
    if not is_place and REFERENCE.fullmatch(ref):
        registry = registry_at(tracking, root)
        version = registry.find(ref)
        with registry.fetched(version) as copy:
            yield copy, check(version, copy)
        return
    with _copied(ref) as folder:
        if folder is None:
            raise RegistryError(f"{ref!r}: expected NAME/3, NAME@champion, or a folder that holds a package")
        is_whole = proof.package_in(folder) != folder
        yield folder, (proof.check_version if is_whole else proof.check_package)(folder)


def registry_at(tracking: str | None, root: str) -> Registry:
    """The registry of a server; default: that of `MLFLOW_TRACKING_URI`, then of the database below `root`."""
    return Registry(tracking or os.environ.get("MLFLOW_TRACKING_URI") or server.default_uri(root))


@contextmanager
def _copied(ref: str, below: str = "") -> Iterator[Path | None]:
    """A folder with a model as it is, a copy of what lies below an S3 URI if that has a proof; else None.

    Of a whole version on S3 only what is `below` is copied.
    """
    if storage.is_local(ref):
        folder = storage.local_path(ref)
        yield folder if (proof.package_in(folder) / "model.json").is_file() else None
        return
    names = storage.listing(ref)
    if not {proof.NAME, f"{proof.FOLDER}/{proof.NAME}"} & set(names):
        yield None
        return
    with TemporaryDirectory(prefix="cdrl-package-") as scratch:
        is_whole = f"{proof.FOLDER}/{proof.NAME}" in names
        for name in names:
            if is_whole and not name.startswith(below):
                continue
            if ".." in PurePosixPath(name).parts or name.startswith("/"):
                raise RegistryError(f"{ref}: refused to fetch a file named {name!r}")
            storage.download(storage.join(ref, name), Path(scratch, name))
        yield Path(scratch)
