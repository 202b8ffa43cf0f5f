"""Draw many images with the averaged weights: in this process, or in batches spread over Ray workers.

Every batch has randomness of its own, so the set is the same for any number of workers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl.config import ClusterConfig, SamplingConfig
from cdrl.model import Model
from cdrl.pictures import to_uint8
from cdrl.runs import fetch_model
from cdrl.session import connected

__all__ = ["draw", "generate", "reference_labels"]

Progress = Callable[[int], None]


def reference_labels(label_counts: tuple[int, ...], num_images: int, seed: int) -> NDArray[np.int64]:
    """Labels (num_images,) in the proportions of `label_counts` (of 0 ... C), exact to one image, in seeded order."""
    edges = np.round(np.cumsum(label_counts) * (num_images / sum(label_counts))).astype(np.int64)
    labels = np.repeat(np.arange(len(label_counts)), np.diff(edges, prepend=0))
    return np.random.Generator(np.random.Philox(seed)).permutation(labels)


def draw(
    model: Model,
    num_images: int,
    *,
    labels: NDArray[np.int64] | None,
    sampling: SamplingConfig,
    seed: int,
    first: int = 0,
    progress: Progress | None = None,
) -> NDArray:
    """Images number first ... first+num_images-1 as the dataset stores them: uint8 (n, C, H, W) or float32 points.

    Args:
        labels: (n,) 0 ... C, or None.
        progress: called with the number of images after each batch.

    Raises:
        ConfigError: labels or sampling that the model cannot serve, or a value that is not finite.
    """
    given = None if labels is None else torch.as_tensor(labels)
    x = model.sample(num_images, labels=given, seed=seed, first=first, sampling=sampling, progress=progress)
    return (to_uint8(x) if x.dim() == 4 else x).numpy()


def generate(
    ref: str | Path,
    num_images: int,
    *,
    labels: NDArray[np.int64] | None,
    sampling: SamplingConfig,
    seed: int,
    cluster: ClusterConfig,
    progress: Progress | None = None,
) -> NDArray:
    """The same as `draw`, spread over `cluster.num_workers` Ray workers; with one worker in this process.

    Args:
        ref: a model's directory or URI; on a cluster of several machines one that each of them can read.

    Raises:
        ConfigError: the cluster has fewer CPUs or GPUs than workers.
    """
    device = "cuda" if cluster.use_gpu else "cpu"
    starts = range(0, num_images, sampling.batch_size)
    if min(cluster.max_workers, len(starts)) == 1:
        model = Model.load(fetch_model(str(ref)), device)
        return draw(model, num_images, labels=labels, sampling=sampling, seed=seed, progress=progress)

    import ray
    from ray.util import ActorPool

    ref = str(Path(ref).absolute()) if Path(ref).is_dir() else str(ref)
    stops = [min(start + sampling.batch_size, num_images) for start in starts]
    batches = [
        {"first": start, "num_images": stop - start, "labels": None if labels is None else labels[start:stop]}
        for start, stop in zip(starts, stops, strict=True)
    ]
    with connected(cluster):
        remote = ray.remote(num_cpus=1, num_gpus=int(cluster.use_gpu))(_Worker)
        workers = [remote.remote(ref, device) for _ in range(min(cluster.max_workers, len(batches)))]
        parts = []
        for part in ActorPool(workers).map(lambda worker, batch: worker.draw.remote(sampling, seed, **batch), batches):
            parts.append(part)
            if progress is not None:
                progress(len(part))
    return np.concatenate(parts)


class _Worker:
    """One process of the pool; it loads the model once."""

    def __init__(self, ref: str, device: str) -> None:
        self.model = Model.load(fetch_model(ref), device)

    def draw(self, sampling: SamplingConfig, seed: int, **batch: Any) -> NDArray:
        return draw(self.model, sampling=sampling, seed=seed, **batch)
