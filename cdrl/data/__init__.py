"""Images and points as checked, memory-mapped shards: `cdrl.data.prepare` writes them, `Dataset` reads them.

To read it all, begin with what lies on the disk, `manifest` and `shards`. Then

    to write    rows and sources (folder, parquet, points): where rows come from; recipe and images: what one becomes;
                plan: which row goes where; prepare: the whole; assemble: its middle, with decode (runs of rows are laid
                down) and gather (shards are made of them) on parallel workers; job: how a killed one goes on
    to read     dataset: a split as one array; files and cache: checked files, from S3 too; shelf: a few shards of many;
                order: which rows a step sees
"""

from cdrl.data.dataset import Dataset
from cdrl.data.manifest import Manifest
from cdrl.data.order import batch_flips, batch_indices, permutation

__all__ = ["Dataset", "Manifest", "batch_flips", "batch_indices", "permutation"]
