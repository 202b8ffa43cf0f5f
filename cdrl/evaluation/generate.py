"""Draw many images with the averaged weights and look at them: in this process, or in parts spread over Ray workers.

Every sampling batch is a part with randomness of its own, so the set is the same for any number of workers. Features
are computed where the images are drawn.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl.config import ClusterConfig, SamplingConfig
from cdrl.errors import JobFailed
from cdrl.evaluation.extractor import Extractor
from cdrl.evaluation.parts import Part, Shelf
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
    extractor: Extractor,
    *,
    labels: NDArray[np.int64] | None,
    sampling: SamplingConfig,
    seed: int,
    cluster: ClusterConfig,
    shelf: Shelf | None = None,
    progress: Progress | None = None,
) -> list[Part]:
    """The parts of the set that `draw` would give, in order, drawn by `cluster.num_workers` Ray workers.

    With one worker, or nothing left to draw, this process does it.

    Args:
        ref: a model's directory or URI; on a cluster of several machines one that each of them can read.
        shelf: where finished parts are kept; what it has is not drawn again.
        progress: called with the number of images after each part.

    Raises:
        ConfigError: the cluster has fewer CPUs or GPUs than workers; as `draw`.
        JobFailed: workers died more often than `cluster.max_failures`.
    """
    finished, missing = [], []
    for first in range(0, num_images, sampling.batch_size):
        stop = min(first + sampling.batch_size, num_images)
        if shelf is not None and (part := shelf.read(first, stop)) is not None:
            finished.append(part)
            _tell(progress, part)
        else:
            given = None if labels is None else labels[first:stop]
            missing.append({"first": first, "num_images": stop - first, "labels": given})
    for part in _drawn(ref, missing, extractor, sampling, seed, cluster):
        if shelf is not None:
            shelf.write(part)
        finished.append(part)
        _tell(progress, part)
    return sorted(finished, key=lambda part: part.first)


def _drawn(
    ref: str | Path,
    ranges: list[dict[str, Any]],
    extractor: Extractor,
    sampling: SamplingConfig,
    seed: int,
    cluster: ClusterConfig,
) -> Iterator[Part]:
    """A part of each range, as they are finished."""
    if not ranges:
        return
    device = "cuda" if cluster.use_gpu else "cpu"
    if min(cluster.max_workers, len(ranges)) == 1:
        alone = _Worker(str(ref), device, lambda: extractor)
        yield from (alone.draw(sampling, seed, **each) for each in ranges)
        return

    import ray
    from ray.exceptions import RayActorError, RayTaskError
    from ray.util import ActorPool

    ref = str(Path(ref).absolute()) if Path(ref).is_dir() else str(ref)
    with connected(cluster):
        # a worker that dies is started again, and draws what it had in hand again
        patient = {"max_restarts": cluster.max_failures, "max_task_retries": cluster.max_failures}
        remote = ray.remote(num_cpus=1, num_gpus=int(cluster.use_gpu), **patient)(_Worker)
        net = partial(ray.get, ray.put(extractor))  # sent once, and there for a worker that is started again
        pool = ActorPool([remote.remote(ref, device, net) for _ in range(min(cluster.max_workers, len(ranges)))])
        try:
            for part in pool.map_unordered(lambda worker, each: worker.draw.remote(sampling, seed, **each), ranges):
                # copied, as Ray's arrays cannot be written to and hold its memory
                yield replace(part, images=part.images.copy(), features=part.features.copy())
        except RayTaskError as error:
            raise error.cause from None  # what the worker said, without Ray's account of where
        except RayActorError as error:
            raise JobFailed(
                f"workers died more than {cluster.max_failures} times while they drew images: {error}; "
                "finished parts are kept, the same command goes on"
            ) from None


def _tell(progress: Progress | None, part: Part) -> None:
    if progress is not None:
        progress(len(part.images))


class _Worker:
    """One process of the pool; it loads the model and the feature net once."""

    def __init__(self, ref: str, device: str, extractor: Callable[[], Extractor]) -> None:
        self.model, self.extractor = Model.load(fetch_model(ref), device), extractor()

    def draw(self, sampling: SamplingConfig, seed: int, *, first: int, **given: Any) -> Part:
        begin_s = time.perf_counter()
        images = draw(self.model, sampling=sampling, seed=seed, first=first, **given)
        seconds = time.perf_counter() - begin_s
        return Part(first, images, self.extractor.features(images), seconds)
