"""What a feature net sees in a split, computed once and kept under the digest of both: on disk or in S3."""

import torch

from cdrl import storage
from cdrl.config import tree_digest
from cdrl.data import Dataset
from cdrl.evaluation.extractor import Extractor
from cdrl.evaluation.fidelity import MAX_ROWS, Measured, Moments, measure
from cdrl.evaluation.sealed import find_arrays, write_arrays

__all__ = ["split_statistics"]


def split_statistics(dataset: Dataset, split: str, extractor: Extractor, folder: str) -> Measured:
    """The whole split as the net sees it: what lies below `folder` (path or URI), else computed and put there.

    Raises:
        StorageError: the place cannot be reached.
    """
    identity = [dataset.manifest.digest, split, extractor.name, extractor.digest, len(dataset), MAX_ROWS]
    place = storage.join(folder, f"statistics-{tree_digest(identity)[:32]}.safe")
    if (kept := find_arrays(place)) is not None:
        moments = Moments(len(dataset), torch.from_numpy(kept["mean"]), torch.from_numpy(kept["scatter"]))
        return Measured(moments, kept["rows"])
    found = measure(dataset.images, len(dataset), extractor)
    arrays = {"mean": found.moments.mean.numpy(), "scatter": found.moments.scatter.numpy(), "rows": found.rows}
    write_arrays(place, arrays)
    return found
