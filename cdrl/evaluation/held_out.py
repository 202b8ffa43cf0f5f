"""Real data that a model was not trained on, as far as there are any."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl.data import Dataset, Manifest
from cdrl.errors import ConfigError
from cdrl.model import Model
from cdrl.pictures import from_uint8

__all__ = ["RealData", "check_data", "held_out", "real_data", "spread"]


@dataclass(frozen=True)
class RealData:
    """Rows of one split.

    Attributes:
        split: `holdout` or `train`.
        stored: (N, *shape) uint8 pixels or float32 coordinates.
        label: (N,) int64, 0 = none.
    """

    split: str
    stored: Tensor
    label: Tensor

    @property
    def x(self) -> Tensor:
        """(N, *shape) float32, in the model's range."""
        return from_uint8(self.stored) if self.stored.dtype == torch.uint8 else self.stored


def held_out(model: Model, uri: str | None, num_images: int, *, label: int = 0) -> RealData:
    """Rows of the hold-out split of a model's dataset, or of train where there is none; as `real_data`."""
    has_holdout = Manifest.read(uri or model.config.data.uri).has_holdout
    return real_data(model, uri, "holdout" if has_holdout else "train", num_images, label=label)


def real_data(model: Model, uri: str | None, split: str, num_images: int, *, label: int = 0) -> RealData:
    """At most so many rows of a model's dataset, evenly spread.

    Args:
        uri: where the dataset is; default: where it was when the model was trained.
        label: only rows of this class; 0 = all.

    Raises:
        ConfigError: another dataset than the model's, or no row of that class.
        DataError, StorageError: it is missing or damaged.
    """
    uri = uri or model.config.data.uri
    check_data(model, uri, Manifest.read(uri))
    dataset = Dataset.of(model.config.data, split, uri=uri)
    rows = np.arange(len(dataset))
    if label:
        rows = rows[dataset.labels(rows) == label]
    if not len(rows):
        raise ConfigError(f"{uri}: the split {split!r} has no rows of the class {model.class_names[label - 1]!r}")
    return spread(dataset, split, rows, num_images)


def check_data(model: Model, uri: str, manifest: Manifest) -> None:
    """Refuse a dataset that is not the model's.

    Raises:
        ConfigError: with both digests.
    """
    if manifest.digest != model.manifest_digest:
        raise ConfigError(
            f"{uri}: holds the dataset {manifest.digest[:12]}..., the model was trained on "
            f"{model.manifest_digest[:12]}...; name the right place with --data"
        )


def spread(dataset: Dataset, split: str, rows: NDArray[np.int64], num_images: int) -> RealData:
    """At most so many of these rows of a split, evenly spread."""
    rows = rows[np.linspace(0, len(rows) - 1, min(num_images, len(rows))).astype(np.int64)]
    return RealData(split, torch.from_numpy(dataset.images(rows)), torch.from_numpy(dataset.labels(rows)))
