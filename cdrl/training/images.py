"""Training images by number: from the shards, or, where the device has room, from a copy on the device."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cdrl.data import Dataset

__all__ = ["Images"]

ROOM_BYTES = 2 * 1024**3


class Images:
    """(n,) numbers -> images (n, *shape) on the device, in the stored format (uint8 for images).

    Args:
        dataset: the split.
        device: where batches are wanted.
        resident: keep all images on the device; `auto` does so on a GPU, for up to 2 GB.
    """

    def __init__(self, dataset: Dataset, device: torch.device, resident: Literal["auto", "always", "never"]) -> None:
        self.dataset, self.device = dataset, device
        small = device.type == "cuda" and dataset.manifest.row_bytes * len(dataset) <= ROOM_BYTES
        keep = small if resident == "auto" else resident == "always"
        self._all = self._read(np.arange(len(dataset))) if keep else None

    def __call__(self, numbers: np.ndarray) -> Tensor:
        """The images of these numbers."""
        if self._all is None:
            return self._read(numbers)
        return self._all[torch.from_numpy(numbers).to(self.device)]

    def _read(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(self.dataset.images(numbers)).to(self.device)
