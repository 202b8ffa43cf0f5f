"""The training loop: data, one update of each pair that this rank owns, a word now and then. It knows no cluster."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdrl.build import is_chunkwise
from cdrl.data import Dataset
from cdrl.data.order import batch_flips, batch_indices
from cdrl.method.cooperative import StepMetrics, Synchronise, cooperative_step, initializer_step
from cdrl.method.rng import Rng
from cdrl.pictures import from_uint8
from cdrl.training.images import Images
from cdrl.training.state import TrainState

__all__ = ["Hooks", "train"]


@dataclass(frozen=True)
class Hooks:
    """What the loop calls; each is called by every rank at the same steps, so it may be a collective.

    Attributes:
        log: metrics of the owned pairs, after every `run.log_every` updates.
        stop: after every update: whether to stop here.
        sample: after every `run.sample_every` updates.
        checkpoint: after every `run.checkpoint_every` updates, at the end, and where the loop is told to stop.
    """

    log: Callable[[dict[int, StepMetrics]], None]
    stop: Callable[[], bool]
    sample: Callable[[], None]
    checkpoint: Callable[[], None]


def train(state: TrainState, dataset: Dataset, hooks: Hooks, synchronise: Synchronise | None = None) -> None:
    """Run from `state.step` to the configured number of updates, or until told to stop.

    Everything random is keyed by (seed, pair, step, chunk), so a resumed run is the straight run.

    Raises:
        Diverged: before an optimizer moved.
    """
    config, run = state.config, state.config.run
    num_updates = config.training.num_updates
    images = Images(dataset, state.device, config.compute.images_on_device)
    while state.step < num_updates:
        x_0, label = _batch(state, images)
        metrics = {number: _update(state, number, x_0, label, synchronise) for number in state.grid.pairs}
        state.step += 1
        last = state.step == num_updates
        if last or state.step % run.log_every == 0:
            hooks.log(metrics)
        if last or state.step % run.sample_every == 0:
            hooks.sample()
        stop = hooks.stop()
        if last or stop or state.step % run.checkpoint_every == 0:
            hooks.checkpoint()
        if stop:
            break


def _batch(state: TrainState, images: Images) -> tuple[Tensor, Tensor | None]:
    """This rank's chunks of the global batch of the coming update: x_0 (B, ...) and labels (B,) or None."""
    config = state.config
    training, n = config.training, len(images.dataset)
    size = training.batch_size // training.num_chunks
    mine = slice(state.grid.chunks.start * size, state.grid.chunks.stop * size)
    indices = batch_indices(training.seed, state.step, training.batch_size, n)[mine]
    x_0 = images(indices)
    x_0 = from_uint8(x_0) if x_0.dtype == torch.uint8 else x_0.to(torch.float32)
    if config.data.flip:
        flips = torch.from_numpy(batch_flips(training.seed, state.step, training.batch_size, n)[mine]).to(state.device)
        x_0 = torch.where(flips.view(-1, *[1] * (x_0.ndim - 1)), x_0.flip(-1), x_0)
    label = torch.from_numpy(images.dataset.labels(indices)).to(state.device) if config.data.num_classes else None
    return x_0, label


def _update(
    state: TrainState, number: int, x_0: Tensor, label: Tensor | None, synchronise: Synchronise | None
) -> StepMetrics:
    training, pair, optimizers = state.config.training, state.pair(number), state.optimizers[number]
    rng = Rng(training.seed, "train", number, state.step, chunks=state.grid.chunks, device=state.device)
    level = state.ladder.draw_levels(number, rng, x_0)
    if label is not None:
        dropped = rng.uniform(label.to(torch.float32)) < training.label_dropout
        label = torch.where(dropped, 0, label)
    state.set_learning_rates(number)
    common: dict[str, Any] = {
        "rng": rng,
        "step": state.step,
        "shared_noise": training.shared_noise,
        "clip_norm": training.clip_norm,
        "chunkwise": is_chunkwise(state.config, state.device),
        "synchronise": synchronise,
        "formulation": state.formulation,
    }
    batch = (pair, optimizers, state.schedule, x_0, level, label)
    if state.step < state.initializer_only_updates:
        metrics = initializer_step(*batch, **common)
    else:
        metrics = cooperative_step(*batch, num_steps=training.num_steps, anchor=training.anchor, **common)
    state.update_average(number)
    return metrics
