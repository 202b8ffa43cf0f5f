"""A tiny dataset and a configuration for it: training in milliseconds per update."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cdrl import config as configuration
from cdrl.config import Config
from cdrl.data import Dataset
from cdrl.data.prepare import Options, prepare
from cdrl.model import Model
from cdrl.training.checkpoint import snapshot, write_cards, write_tensors
from cdrl.training.grid import Grid
from cdrl.training.loop import Hooks, train
from cdrl.training.state import TrainState

ATTEMPT = "0123456789ab"  # of the workers that wrote a checkpoint

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"shape": [1, 8, 8], "num_classes": 10, "flip": True},
    "schedule": {"num_levels": 2},
    "energy": {"width": 4, "multipliers": [1, 2], "num_blocks": 1, "patch": 2, "base_measure": 1.0},
    "initializer": {"width": 4, "multipliers": [1], "num_blocks": 1, "attention_resolutions": [], "groups": 2},
    "training": {
        "num_updates": 12,
        "batch_size": 8,
        "num_chunks": 4,
        "num_steps": 2,
        "energy": {"lr": 1e-3, "warmup_updates": 3, "final_fraction": 0.1},
        "initializer": {"lr": 1e-3, "warmup_updates": 3},
        "ema_decay": 0.9,
        "initializer_only_fraction": 0.5,
        "anchor": 1.0,
    },
    "sampling": {"num_steps": 1, "batch_size": 4},
}


def tiny_config(*overrides: str, **sections: Mapping[str, Any] | str | None) -> Config:
    """The tiny configuration with `a.b=value` overrides."""
    return configuration.override(configuration.validate(TINY | sections, where="test"), overrides)


def digits(folder: Path) -> Dataset:
    """Sixty of the 8x8 digits, prepared below a folder."""
    prepare("digits", str(folder), Options(limit=60, holdout=0))
    return Dataset.open(str(folder))


def tiny_state(config: Config, grid: Grid | None = None) -> TrainState:
    """The state of the only rank."""
    pairs = 1 if config.pairs == "shared" else config.schedule.num_levels
    return TrainState(config, grid or Grid(pairs, config.training.num_chunks), torch.device("cpu"))


def quiet() -> Hooks:
    """A loop that reports nothing and is not stopped."""
    return Hooks(log=lambda metrics: None, stop=lambda: False, sample=lambda: None, checkpoint=lambda: None)


def run_to(state: TrainState, dataset: Dataset, step: int) -> None:
    """Train until so many updates are made, then stop as a Ctrl-C does."""
    train(state, dataset, dataclasses.replace(quiet(), stop=lambda: state.step >= step))


def save(state: TrainState, dataset: Dataset, folder: Path, score: float | None = None) -> Path:
    """What the only worker does at a checkpoint."""
    state.settle_average()
    manifest = dataset.manifest
    model = Model(state.config, state.average, manifest.class_names, manifest.digest, state.step)
    folder.mkdir(parents=True)
    content = snapshot(state, manifest.digest, score)
    write_cards(content, model, {name: write_tensors(content, name, folder) for name in content.tensors}, folder)
    return folder
