"""The finished parts of a set of generated images, on disk: an evaluation that was killed goes on with what is there.

A part is one sealed file, `<first>-<stop>.part`, in the folder of its protocol and model. A damaged one is drawn again.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdrl import storage
from cdrl.evaluation.sealed import find_arrays, write_arrays

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
        arrays = find_arrays(self._place(first, stop))
        if arrays is None:
            return None
        return Part(first, arrays["images"], arrays["features"], arrays["seconds"].item())

    def write(self, part: Part) -> None:
        """Publish a part.

        Raises:
            StorageError: it cannot be written.
        """
        arrays = {"images": part.images, "features": part.features, "seconds": np.array([part.seconds])}
        write_arrays(self._place(part.first, part.first + len(part.images)), arrays)

    def clear(self) -> None:
        """Forget all parts."""
        storage.remove_folder(self.folder)

    def _place(self, first: int, stop: int) -> str:
        return storage.join(self.folder, f"{first:08d}-{stop:08d}.part")
