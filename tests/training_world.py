"""Trains in worlds of several processes without Ray: `python training_world.py FOLDER`.

FOLDER holds jobs.json, {name: {config, worlds}}, and the data; every rank leaves NAME-WORLD-RANK.safetensors there with
the weights and last metrics of its pairs. One process imports torch, and forks the ranks.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from cdrl import config as configuration
from cdrl.build import is_chunkwise
from cdrl.config import Config
from cdrl.data import Dataset
from cdrl.method.cooperative import StepMetrics
from cdrl.method.pairs import groups_of_levels
from cdrl.training.grid import Grid
from cdrl.training.images import Images
from cdrl.training.loop import _batch, _update
from cdrl.training.state import TrainState


def rank_of(rank: int, world: int, config: Config, folder: Path, name: str) -> None:
    """Train one rank."""
    torch.set_num_threads(1)
    waited: list[str] = []

    @contextlib.contextmanager
    def waiting(what: str) -> Iterator[None]:
        waited.append(what)
        yield

    meeting = f"file://{folder}/{name}-{world}.meeting"
    dist.init_process_group("gloo", init_method=meeting, world_size=world, rank=rank)
    num_pairs = len(groups_of_levels(config.pairs, config.schedule.num_levels))
    grid = Grid(num_pairs, config.training.num_chunks, world, rank, waiting=waiting)
    state = TrainState(config, grid, torch.device("cpu"))
    synchronise = state.grid.synchroniser(exact=is_chunkwise(config, state.device))
    images = Images(Dataset.open(str(folder)), state.device, "never")
    seen: dict[int, StepMetrics] = {}
    while state.step < config.training.num_updates:
        x_0, label = _batch(state, images)
        seen = {number: _update(state, number, x_0, label, synchronise) for number in state.grid.pairs}
        state.step += 1
    found: dict[str, Tensor] = {}
    for number in state.grid.pairs:
        found |= {f"{number}.{key}": value for key, value in state.pair(number).state_dict().items()}
        found |= {f"{number}.{key}": value.clone() for key, value in vars(seen[number]).items()}
    path = folder / f"{name}-{world}-{rank}.safetensors"
    safetensors.torch.save_file(found, path, {"waited": json.dumps(waited)})
    dist.destroy_process_group()


def main(folder: Path) -> None:
    """Every job in each of its worlds, one after the other."""
    for name, job in json.loads((folder / "jobs.json").read_text()).items():
        config = configuration.validate(job["config"], where=name)
        num_pairs = len(groups_of_levels(config.pairs, config.schedule.num_levels))
        TrainState(config, Grid(num_pairs, config.training.num_chunks), torch.device("cpu"))  # imports more, once
        for world in job["worlds"]:
            arguments = (world, config, folder, name)
            torch.multiprocessing.start_processes(rank_of, arguments, world, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
