"""The loader beside what it feeds and beside bare mappings, with the bars that the project sets itself.

    python benchmarks/loader.py [--out FOLDER]

50,000 random images of 3x32x32 in 16 shards, one CPU thread. Batches in the order of training (order, flips, gather,
labels) against the images that the training step of `cifar10-smoke` eats; and shuffled batches through the warm cache
against the same gathered by numpy from the mapped shard files themselves, and, for information, from all images in one
mapped array, which no dataset in shards can be. The sides take turns. Results go to results/loader-MACHINE.json. Exit
code 1 where a bar was missed. Needs neither Ray, MLflow nor S3.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl import config as configuration
from cdrl import storage
from cdrl.bench.machine import commit, describe, result_file, settle
from cdrl.data import Dataset, Manifest
from cdrl.data.cache import ShardCache
from cdrl.data.manifest import Shard, Split
from cdrl.data.shards import mapped_rows, read_shard, write_shard
from cdrl.training.grid import Grid
from cdrl.training.loop import Hooks, train
from cdrl.training.state import TrainState

HERE = Path(__file__).parent
NUM_IMAGES, NUM_SHARDS, SHAPE = 50_000, 16, (3, 32, 32)
BATCH_SIZE, NUM_BATCHES, NUM_ROUNDS, NUM_UPDATES = 256, 100, 9, 4
BARS = {"loader_over_step": 20.0, "cache_over_mapping": 0.9}


def dataset_below(folder: Path) -> Manifest:
    """Write random images."""
    rng, shards, counts = np.random.default_rng(0), [], np.zeros(11, np.int64)
    for number, rows in enumerate(np.array_split(np.arange(NUM_IMAGES), NUM_SHARDS)):
        labels = rng.integers(1, 11, len(rows)).astype(np.int32)
        write_shard(folder / "new", rng.integers(0, 256, (len(rows), *SHAPE), np.uint8), labels)
        content = (folder / "new").read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        name = f"train-{number:05d}-{digest[:12]}.arrow"
        (folder / "new").rename(folder / name)
        shards.append(Shard(name=name, rows=len(rows), bytes=len(content), sha256=digest))
        counts += np.bincount(labels, minlength=11)
    split = Split(rows=NUM_IMAGES, label_counts=tuple(counts.tolist()), shards=tuple(shards))
    manifest = Manifest(
        source="random",
        options={},
        shape=SHAPE,
        dtype="uint8",
        class_names=tuple("abcdefghij"),
        splits={"train": split},
        mean=(127.5,) * 3,
        std=(73.9,) * 3,
    )
    manifest.write(str(folder))
    return manifest


def from_cache(folder: Path, manifest: Manifest) -> Dataset:
    """The dataset as a worker has it after a download: shards checked and mapped in the cache."""
    cache = ShardCache("s3://nowhere", folder.name, folder.parent)  # all is there, nothing is asked for
    shards = manifest.splits["train"].shards
    return Dataset(manifest, "train", [mapped_rows(cache.open(shard), shard.name, SHAPE, "uint8") for shard in shards])


def images_per_s(batch: Callable[[int], Any], num_batches: int, size: int) -> float:
    """The rate of `num_batches` calls that give `size` images each."""
    begin_s = time.perf_counter()
    for number in range(num_batches):
        batch(number)
    return num_batches * size / (time.perf_counter() - begin_s)


def bare(shards: list[NDArray], rows: NDArray) -> NDArray:
    """A batch as numpy gathers it from several arrays."""
    size = -(-NUM_IMAGES // NUM_SHARDS)
    owner, batch = rows // size, np.empty((len(rows), *SHAPE), np.uint8)
    for number in np.unique(owner):
        here = owner == number
        batch[here] = shards[number][rows[here] - number * size]
    return batch


def measure(dataset: Dataset, shards: list[NDArray], whole: NDArray, folder: Path) -> dict[str, list[float]]:
    """Images/s of every side, round by round."""
    overrides = ["training.initializer_only_fraction=0", f"run.root={folder}", "compute.compile=never"]
    config = configuration.load("cifar10-smoke", overrides)
    state = TrainState(config, Grid(1, config.training.num_chunks), torch.device("cpu"))
    rows = np.random.default_rng(1).integers(0, NUM_IMAGES, (NUM_BATCHES, BATCH_SIZE))

    def loaded(number: int) -> None:
        indices = dataset.batch_indices(5, number, BATCH_SIZE)
        dataset.batch_flips(5, number, BATCH_SIZE)
        dataset.images(indices)
        dataset.labels(indices)

    def update(number: int) -> None:
        target = state.step + 1
        train(state, dataset, Hooks(lambda metrics: None, lambda: state.step >= target, lambda: None, lambda: None))

    sides: dict[str, tuple[Callable[[int], Any], int, int]] = {
        "loader": (loaded, NUM_BATCHES, BATCH_SIZE),
        "step": (update, NUM_UPDATES, config.training.batch_size),
        "cache": (lambda number: dataset.images(rows[number]), NUM_BATCHES, BATCH_SIZE),
        "mapping": (lambda number: bare(shards, rows[number]), NUM_BATCHES, BATCH_SIZE),
        "one_array": (lambda number: whole[rows[number]], NUM_BATCHES, BATCH_SIZE),
    }
    for batch, _, _ in sides.values():
        batch(0)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(NUM_ROUNDS):
        for name in sorted(sides, reverse=bool(turn % 2)):
            if name != "step" or turn < 5:  # the preset has 24 updates
                found[name].append(images_per_s(*sides[name]))
    return found


def main() -> int:
    """Measure, print and write; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    out = parser.parse_args().out
    settle(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "shards"
        place.mkdir()
        dataset = from_cache(place, dataset_below(place))
        np.save(Path(folder) / "whole.npy", dataset.images(np.arange(NUM_IMAGES)))
        paths = [place / shard.name for shard in dataset.manifest.splits["train"].shards]
        shards = [read_shard(path, SHAPE, "uint8").images for path in paths]
        rows = np.arange(0, NUM_IMAGES, 7)
        assert np.array_equal(bare(shards, rows), dataset.images(rows))
        whole = np.load(Path(folder) / "whole.npy", mmap_mode="r")
        found = measure(dataset, shards, whole, Path(folder))
    middle = {name: median(rates) for name, rates in found.items()}
    ratios = {
        "loader_over_step": middle["loader"] / middle["step"],
        "cache_over_mapping": middle["cache"] / middle["mapping"],
        "cache_over_one_array": middle["cache"] / middle["one_array"],
    }
    machine = describe(torch.device("cpu"))
    result = {
        "commit": commit(),
        "machine": machine,
        "images_per_s": {name: [round(rate) for rate in rates] for name, rates in found.items()},
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "bars": [
            {"name": name, "at least": bar, "measured": round(ratios[name], 3), "held": ratios[name] >= bar}
            for name, bar in BARS.items()
        ],
    }
    storage.write_bytes(str(result_file(out, "loader", machine)), (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps({"images_per_s": middle, **ratios}, indent=1))
    return 0 if all(bar["held"] for bar in result["bars"]) else 1


if __name__ == "__main__":
    sys.exit(main())
