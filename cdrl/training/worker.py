"""One worker of a Ray Train run: state, resume, loop, reports. Every rank runs this with the same arguments."""

import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from PIL import Image

from cdrl.config import Config
from cdrl.data import Dataset
from cdrl.errors import CdrlError
from cdrl.method.cooperative import StepMetrics
from cdrl.method.pairs import groups_of_levels
from cdrl.model import Model
from cdrl.pictures import picture_of, png_bytes
from cdrl.runs import step_folder
from cdrl.training.board import Notice
from cdrl.training.checkpoint import read_checkpoint, write_checkpoint
from cdrl.training.grid import Grid
from cdrl.training.loop import Hooks, train
from cdrl.training.state import TrainState

__all__ = ["Score", "work"]

Score = Callable[[Model], float]
"""A quick score of averaged weights, lower = better."""

PICTURE_COLUMNS = 10
PICTURE_SEED = 0


def work(arguments: dict[str, Any]) -> None:
    """Train until done or told to stop.

    Args:
        arguments: `config` (Config), `board` (actor handle of a Board), `score` (Score or None).
    """
    board = arguments["board"]
    if ray.get(board.failure.remote()) is not None:
        return  # a restart after an error that no restart can mend; the driver tells it
    try:
        _work(arguments["config"], board, arguments["score"])
    except CdrlError as error:
        ray.get(board.fail.remote(error))
        raise


def _work(config: Config, board: Any, score: Score | None) -> None:
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)  # two threads on shared cores are several times slower than one
    num_pairs = len(groups_of_levels(config.pairs, config.schedule.num_levels))
    grid = Grid(num_pairs, config.training.num_chunks, context.get_world_size(), context.get_world_rank())
    dataset = Dataset.open(config.data.uri, cache=config.data.cache)
    state = TrainState(config, grid, device)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            read_checkpoint(state, Path(directory), dataset.manifest.digest)

    def averaged_model() -> Model:
        state.share_average()
        manifest = dataset.manifest
        model = Model(config, state.average, manifest.class_names, manifest.digest, state.step)
        model.formulation = state.formulation  # with what it has compiled and captured
        return model

    def post(kind: Any, content: dict[str, Any]) -> None:
        board.post.remote(Notice(kind, state.step, content))

    def log(metrics: dict[int, StepMetrics]) -> bool:
        for number, mean in _means(metrics, grid).items():
            if grid.owner(number) == grid.rank:
                post("metrics", {f"{grid.prefix(number)}{name}": value for name, value in mean.items()})
        return grid.any(grid.rank == 0 and ray.get(board.should_stop.remote()))

    def sample() -> None:
        model = averaged_model()
        if grid.rank == 0:
            post("picture", {"samples": png_bytes(_picture(model))})

    def save() -> None:
        model = averaged_model()
        value = score(model) if score is not None and grid.rank == 0 else None
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(state, model, value, Path(folder))
            known = torch.tensor([value if value is not None else 0.0], dtype=torch.float64)
            metrics = {"step": state.step, "score": grid.sum(known).item()}
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=step_folder(state.step))
        if grid.rank == 0:
            post("checkpoint", {"score": value})

    train(state, dataset, Hooks(log, sample, save), grid.synchroniser())


def _means(metrics: dict[int, StepMetrics], grid: Grid) -> dict[int, dict[str, float]]:
    """Metrics of this rank's pairs, averaged over replicas. A collective."""
    names = [field.name for field in fields(StepMetrics)]
    table = torch.zeros(grid.num_pairs, len(names), dtype=torch.float64)
    for number, seen in metrics.items():
        values = [value.item() for value in vars(seen).values()]
        table[number] = torch.tensor(values, dtype=torch.float64) / grid.num_replicas
    table = grid.sum(table)
    return {number: dict(zip(names, table[number].tolist(), strict=True)) for number in metrics}


def _picture(model: Model) -> Image.Image:
    """Ten samples of each of the first ten classes, or a hundred of an unconditional model; of points a batch."""
    num_classes = min(10, model.config.data.num_classes)
    if not num_classes:
        count = model.config.sampling.batch_size if len(model.config.data.shape) == 1 else PICTURE_COLUMNS**2
        return picture_of(model.sample(count, seed=PICTURE_SEED), PICTURE_COLUMNS)
    labels = torch.arange(num_classes).repeat_interleave(PICTURE_COLUMNS) + 1
    return picture_of(model.sample(len(labels), labels=labels, seed=PICTURE_SEED), PICTURE_COLUMNS)
