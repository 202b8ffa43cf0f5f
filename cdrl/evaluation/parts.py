"""The finished parts of a set of generated images, on disk: an evaluation that was killed goes on with what is there.

A part is one file, `<first>-<stop>.part` (SHA-256, then safetensors), in the folder of its protocol and model; it
appears whole or not at all. One that does not hold what it says is drawn again.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cdrl import storage

__all__ = ["Part", "Shelf"]


@dataclass(frozen=True)
class Part:
    """Images first ... first+n-1 of a set.

    Attributes:
        images: (n, *shape) as the dataset stores them.
        features: (n, D), what the feature net sees in them.
        seconds: that drawing them took.
    """

    first: int
    images: NDArray
    features: NDArray[np.float32]
    seconds: float


@dataclass(frozen=True)
class Shelf:
    """The parts of one set, below a folder (path or URI) that no other set uses."""

    folder: str

    def read(self, first: int, stop: int) -> Part | None:
        """The part, or None where there is none or a damaged one.

        Raises:
            StorageError: the place cannot be reached.
        """
        content = storage.find_bytes(self._place(first, stop))
        if content is None:
            return None
        try:
            digest, body = content[:32], content[32:]
            if hashlib.sha256(body).digest() != digest:
                return None
            arrays = load(body)
            return Part(first, arrays["images"], arrays["features"], arrays["seconds"].item())
        except (SafetensorError, KeyError, ValueError):
            return None

    def write(self, part: Part) -> None:
        """Publish a part.

        Raises:
            StorageError: it cannot be written.
        """
        arrays = {"images": part.images, "features": part.features, "seconds": np.array([part.seconds])}
        body = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        place = self._place(part.first, part.first + len(part.images))
        storage.write_bytes(place, hashlib.sha256(body).digest() + body)

    def clear(self) -> None:
        """Forget all parts."""
        storage.remove_folder(self.folder)

    def _place(self, first: int, stop: int) -> str:
        return storage.join(self.folder, f"{first:08d}-{stop:08d}.part")
