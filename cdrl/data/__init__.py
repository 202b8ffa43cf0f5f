"""Images and points as checked, memory-mapped shards: `cdrl.data.prepare` writes them, `Dataset` reads them."""

from cdrl.data.dataset import Dataset
from cdrl.data.manifest import Manifest
from cdrl.data.order import batch_flips, batch_indices, permutation

__all__ = ["Dataset", "Manifest", "batch_flips", "batch_indices", "permutation"]
