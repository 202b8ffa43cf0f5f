"""Arrays in one file that appears whole or not at all and knows its own digest: SHA-256, then safetensors."""

import hashlib

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cdrl import storage

__all__ = ["find_arrays", "write_arrays"]

DIGEST_BYTES = 32


def write_arrays(uri: str, arrays: dict[str, NDArray]) -> None:
    """Publish arrays of at least one dimension at a path or URI.

    Raises:
        StorageError: it cannot be written.
    """
    body = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    storage.write_bytes(uri, hashlib.sha256(body).digest() + body)


def find_arrays(uri: str) -> dict[str, NDArray] | None:
    """What was published there; None where nothing was, or it is damaged: what is kept here can be made again.

    Raises:
        StorageError: the place cannot be reached.
    """
    content = storage.find_bytes(uri)
    if content is None or hashlib.sha256(content[DIGEST_BYTES:]).digest() != content[:DIGEST_BYTES]:
        return None
    try:
        return load(content[DIGEST_BYTES:])
    except (SafetensorError, ValueError):
        return None
