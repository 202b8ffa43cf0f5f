"""Weight files: safetensors whose digest is known beforehand, one of each pair."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from cdrl.errors import RegistryError
from cdrl.storage import sha256_file

__all__ = ["check_file", "load_tensors", "pair_file"]


def pair_file(number: int) -> str:
    """The weight file of one pair."""
    return f"pair-{number:02d}.safetensors"


def check_file(path: Path, digest: str) -> None:
    """Compare a file with its SHA-256 (hex).

    Raises:
        RegistryError: it is missing or differs.
    """
    if not path.is_file():
        raise RegistryError(f"{path.parent}: {path.name} is missing; use another copy")
    found = sha256_file(path)
    if found != digest:
        raise RegistryError(f"{path}: damaged: expected SHA-256 {digest[:12]}, got {found[:12]}; use another copy")


def load_tensors(path: Path, digest: str) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file whose SHA-256 is `digest`.

    Raises:
        RegistryError: as `check_file`.
    """
    check_file(path, digest)
    tensors: Mapping[str, Tensor] = safetensors.torch.load_file(path)
    return tensors
