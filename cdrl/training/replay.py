r"""One update of a run again, from the nearest checkpoint before it, with everything that it saw (`cdrl replay`).

Everything random is keyed by (seed, pair, step, chunk) and a checkpoint is the whole state, so update N after a
checkpoint at M < N is the update that the run made, and its metrics are those that the run logged. One process stands
for all workers: workers of different pairs exchange nothing in an update, and chunkwise replicas of one pair add up
gradients in the order of this process. Only replicas that are not chunkwise, as on GPUs, differ from it in last bits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from cdrl.config import Config
from cdrl.data import Dataset
from cdrl.errors import ConfigError
from cdrl.method.cooperative import StepMetrics
from cdrl.method.pairs import groups_of_levels
from cdrl.runs import RunRecord
from cdrl.tracking.run import TrackedRun
from cdrl.training.checkpoint import read_checkpoint
from cdrl.training.grid import Grid
from cdrl.training.loop import Hooks, train
from cdrl.training.rescue import read_rescues
from cdrl.training.resume import fetched
from cdrl.training.state import TrainState
from cdrl.training.watched import Seen, watch

__all__ = ["Level", "Replay", "Start", "logged_before", "replay", "start_before"]


@dataclass(frozen=True)
class Start:
    """Where a replay starts: a checkpoint, or with `uri` None the fresh state, which the seed decides."""

    step: int
    uri: str | None


@dataclass(frozen=True)
class Level:
    """The images of one level in one update, on the CPU, in units of x_s; n rows.

    Attributes:
        label: (n,) or None.
        x_0, x_t, x_pos: (n, ...); x_pos is the noisy image that f learns from.
        chain: (S, n, ...) from the initializer's draw to the refined sample.
        f, gradient: (S, n) f and |grad f| along the chain.
        f_pos, f_neg, loss, displacement: (n,) as in `StepMetrics`, of each image.
    """

    level: int
    label: Tensor | None
    x_0: Tensor
    x_t: Tensor
    x_pos: Tensor
    chain: Tensor
    f: Tensor
    gradient: Tensor
    f_pos: Tensor
    f_neg: Tensor
    loss: Tensor
    displacement: Tensor


@dataclass(frozen=True)
class Replay:
    """An update, seen again.

    Attributes:
        step: N, updates made once it was done.
        levels: those that were drawn, in order; none while the initializer trains alone, which runs no chain.
        metrics: by the name under which they are logged, for N and for the other update that was asked for.
    """

    step: int
    levels: tuple[Level, ...]
    metrics: dict[int, dict[str, float]]


def start_before(record: RunRecord, step: int) -> Start:
    """The newest checkpoint from which update N follows.

    Raises:
        ConfigError: the run has no such update.
    """
    num_updates = record.config.training.num_updates
    if not 1 <= step <= num_updates:
        raise ConfigError(f"--step: run {record.run_id} has updates 1 ... {num_updates}, got {step}")
    known = {state.step: uri for uri, state in record.checkpoints().items() if state.step < step}
    return Start(max(known), known[max(known)]) if known else Start(0, None)


def logged_before(tracked: TrackedRun, config: Config, start: Start, step: int) -> tuple[int, dict[str, float]] | None:
    """The newest update up to N, after the start, at which the run logged its metrics, and these; None = there is none.

    Raises:
        TrackingError: the server cannot be read.
    """
    grid, names = _grid(config), [field.name for field in fields(StepMetrics)]
    named = [f"{grid.prefix(number)}{name}" for number in range(grid.num_pairs) for name in names]
    histories = {name: tracked.history(name) for name in named}
    steps = [at for at in histories[named[0]] if start.step < at <= step]
    return (max(steps), {name: by_step[max(steps)] for name, by_step in histories.items()}) if steps else None


def replay(
    record: RunRecord,
    step: int,
    start: Start,
    *,
    also: int | None = None,
    uri: str | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Replay:
    """Train from `start` to N and watch the last update. On a CPU in one thread, as workers do.

    Args:
        step: N.
        also: another update whose metrics are wanted, on the way.
        uri: the run's dataset, where it moved.

    Raises:
        ConfigError: the data are not those of the run.
        DataError, StorageError, RegistryError: they or the checkpoint are damaged or not there.
        Diverged: as the run did.
    """
    place, config = uri or record.config.data.uri, record.config
    dataset = Dataset.of(config.data, uri=place)
    if dataset.manifest.digest != record.manifest_digest:
        raise ConfigError(
            f"run {record.run_id!r} was trained on other data: expected manifest {record.manifest_digest[:12]}, "
            f"{place} has {dataset.manifest.digest[:12]}; give the run's dataset with --data"
        )
    run = config.run.model_copy(update={"log_every": 1})
    # an update that was refused is refused again, and said so
    config = config.model_copy(update={"run": run, "sentinel": config.sentinel.model_copy(update={"enabled": False})})
    use_gpu = config.cluster.use_gpu and torch.cuda.is_available()
    if not use_gpu:
        torch.set_num_threads(1)
    grid = _grid(config)
    device = torch.device("cuda" if use_gpu else "cpu")
    state = TrainState(config, grid, device, read_rescues(record.checkpoint_uri))
    if start.uri is not None:
        with fetched(start.uri, grid.pairs) as folder:
            read_checkpoint(state, folder, record.manifest_digest)
    metrics: dict[int, dict[str, float]] = {}
    seen: list[Seen] = []

    def log(found: dict[int, StepMetrics]) -> None:
        nonlocal seen
        progress(f"updates {start.step + 1} ... {step}", state.step - start.step, step - start.step)
        if state.step in (step, also):
            metrics[state.step] = {
                f"{grid.prefix(number)}{name}": value.item()
                for number, each in found.items()
                for name, value in vars(each).items()
            }
        if state.step == step - 1:
            seen = watch(state)

    if state.step == step - 1:
        seen = watch(state)
    train(state, dataset, Hooks(log, lambda: state.step == step, lambda: None, lambda: None))
    parts: dict[int, list[Level]] = {}
    for each in seen:
        for level in _levels(each, config.training.num_steps):
            parts.setdefault(level.level, []).append(level)
    return Replay(step, tuple(_together(parts[number]) for number in sorted(parts)), metrics)


def _grid(config: Config) -> Grid:
    """One process for all pairs."""
    return Grid(len(groups_of_levels(config.pairs, config.schedule.num_levels)), config.training.num_chunks)


def _levels(seen: Seen, num_steps: int) -> Iterator[Level]:
    """What was seen of a piece, level by level."""
    if seen.y_pos is None:
        return
    assert seen.x_t is not None and seen.y_neg is not None and seen.f_pos is not None and seen.f_neg is not None
    tr = seen.transition
    chain = torch.stack(seen.y) / tr.scale
    # as in `cooperative_step`: a chain adds K steps' noise, the one-shot draw that of the transition
    one_shot = num_steps == 0 and len(seen.y) == 2
    noise = tr.sigma_ts if one_shot else (max(num_steps, 1) * tr.step_size).sqrt()
    moved = (seen.y_neg - seen.y[0]).flatten(1).square().mean(dim=1).sqrt()
    loss = tr.loss_weight.flatten() * (seen.f_neg - seen.f_pos)
    f, gradient = torch.stack(seen.f), torch.stack(seen.gradient)
    columns = (seen.x_0, seen.x_t, seen.y_pos / tr.scale)
    scalars = (seen.f_pos, seen.f_neg, loss, moved / noise.flatten())
    for level in seen.level.unique().tolist():
        rows = (seen.level == level).nonzero().flatten()
        yield Level(
            level,
            None if seen.label is None else seen.label[rows].cpu(),
            *(column[rows].cpu() for column in columns),
            *(along[:, rows].cpu() for along in (chain, f, gradient)),
            *(scalar[rows].cpu() for scalar in scalars),
        )


def _together(parts: list[Level]) -> Level:
    """All rows of a level, from the pieces of its batch in order."""
    columns: dict[str, Any] = {}
    for name, value in vars(parts[0]).items():
        if isinstance(value, Tensor):
            along = name in ("chain", "f", "gradient")
            columns[name] = torch.cat([getattr(part, name) for part in parts], dim=1 if along else 0)
    return replace(parts[0], **columns)
