"""The training loop: data, one update of each pair that this rank owns, a word now and then. It knows no cluster."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdrl.build import is_chunkwise
from cdrl.data import Dataset
from cdrl.errors import Diverged
from cdrl.method.cooperative import StepMetrics, Synchronise, cooperative_step, initializer_step
from cdrl.method.rng import Rng
from cdrl.pictures import from_uint8
from cdrl.training.images import Images
from cdrl.training.sentinel import Breach
from cdrl.training.state import TrainState

__all__ = ["Hooks", "train"]


@dataclass(frozen=True)
class Hooks:
    """What the loop calls; each is called by every rank at the same steps, so it may be a collective.

    Attributes:
        log: metrics of the owned pairs, after every `run.log_every` updates.
        stop: after every update: whether to stop here.
        sample: after every `run.sample_every` updates.
        checkpoint: after every `run.checkpoint_every` updates, at the end, and where the loop is told to stop or hurry;
            returns what ran away since the last judgement, instead of saving it.
        judge: before `log` and regular checkpoints: what the sentinels of all ranks make of what they have seen.
        hurry: after `stop`: whether a checkpoint is wanted here before its time.
    """

    log: Callable[[dict[int, StepMetrics]], None]
    stop: Callable[[], bool]
    sample: Callable[[], None]
    checkpoint: Callable[[], Breach | None]
    judge: Callable[[], Breach | None] = lambda: None
    hurry: Callable[[], bool] = lambda: False


def train(state: TrainState, dataset: Dataset, hooks: Hooks, synchronise: Synchronise | None = None) -> Breach | None:
    """Run from `state.step` to the configured number of updates, or until told to stop.

    Everything random is keyed by (seed, pair, step, chunk), so a resumed run is the straight run.

    Returns:
        What ran away, if something did; the state is then good for nothing but its past.

    Raises:
        Diverged: before an optimizer moved, where no sentinel takes care of it.
    """
    config, run = state.config, state.config.run
    num_updates, intervals = config.training.num_updates, (run.log_every, run.sample_every, run.checkpoint_every)
    images = Images(dataset, state.device, config.compute.images_on_device)
    while state.step < num_updates:
        x_0, label = _batch(state, images)
        state.take_up_rescues()
        metrics = {}
        for number in state.grid.pairs:
            begin_s = time.perf_counter()
            try:
                metrics[number] = _update(state, number, x_0, label, synchronise)
            except Diverged as error:  # no optimizer of this pair has moved, on any of its replicas
                if state.sentinel is None:
                    raise
                state.sentinel.refuse(error)
            state.spent(number, time.perf_counter() - begin_s)  # an update waits for the device once
        state.step += 1
        last = state.step == num_updates
        log, sample, save = (last or state.step % every == 0 for every in intervals)
        if (log or save) and (breach := hooks.judge()):
            return breach
        if log:
            hooks.log(metrics)
        if sample:
            hooks.sample()
        stop = hooks.stop()
        if (save or stop or hooks.hurry()) and (breach := hooks.checkpoint()):
            return breach
        if stop:
            break
    return None


def _batch(state: TrainState, images: Images) -> tuple[Tensor, Tensor | None]:
    """This rank's chunks of the global batch of the coming update: x_0 (B, ...) and labels (B,) or None."""
    config = state.config
    training, dataset = config.training, images.dataset
    size = training.batch_size // training.num_chunks
    mine = slice(state.grid.chunks.start * size, state.grid.chunks.stop * size)
    indices = dataset.batch_indices(training.seed, state.step, training.batch_size)[mine]
    x_0 = images(indices)
    x_0 = from_uint8(x_0) if x_0.dtype == torch.uint8 else x_0.to(torch.float32)
    if config.data.flip:
        mirrored = dataset.batch_flips(training.seed, state.step, training.batch_size)[mine]
        flips = torch.from_numpy(mirrored).to(state.device)
        x_0 = torch.where(flips.view(-1, *[1] * (x_0.ndim - 1)), x_0.flip(-1), x_0)
    label = torch.from_numpy(dataset.labels(indices)).to(state.device) if config.data.num_classes else None
    return x_0, label


def _update(
    state: TrainState, number: int, x_0: Tensor, label: Tensor | None, synchronise: Synchronise | None
) -> StepMetrics:
    training, pair, optimizers = state.config.training, state.pair(number), state.optimizers[number]
    rng = Rng(training.seed, "train", number, state.step, *state.stream, chunks=state.grid.chunks, device=state.device)
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
        common["observe"] = state.sentinel.observe if state.sentinel is not None else None
        metrics = cooperative_step(*batch, num_steps=training.num_steps, anchor=training.anchor, **common)
    if state.sentinel is not None and state.grid.owner(number) == state.grid.rank:
        state.sentinel.observe_norms(number, metrics.grad_norm_energy, metrics.grad_norm_initializer)
    state.update_average(number)
    return metrics
