"""The driver of a run: check everything, then Ray Train; what the workers report goes to MLflow and the eye."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from cdrl import storage
from cdrl.build import build_schedule, check_buildable, usual_chunkwise
from cdrl.config import Config
from cdrl.data import Dataset, Manifest
from cdrl.errors import CdrlError, ConfigError
from cdrl.method.pairs import groups_of_levels
from cdrl.plots import schedule_plot
from cdrl.runs import RunRecord, absolute, best_of
from cdrl.session import connected
from cdrl.tracking import server
from cdrl.tracking.run import TrackedRun
from cdrl.training.checkpoint import read_card
from cdrl.training.fit import fit
from cdrl.training.grid import Grid
from cdrl.training.job import Again, Score
from cdrl.training.listener import Listener, Watch
from cdrl.training.progress import TrainingProgress
from cdrl.training.resume import fetched

__all__ = ["Enough", "Outcome", "alone", "check_data", "differences", "launch"]


class Enough(Exception):
    """Raised by a watcher: the run ends here, without another checkpoint, and is not resumed."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `launch` ended.

    Attributes:
        step: updates made by now, counted over all calls.
        complete: whether that is all of them; if not, the same command resumes.
        stopped_by: the signal that asked for the end, if one did.
    """

    record: RunRecord
    step: int
    complete: bool
    stopped_by: int | None = None


def launch(
    config: Config,
    *,
    score: Score | None = None,
    again: Again | None = None,
    console: Console | None = None,
    watch: Watch = lambda notices: None,
) -> Outcome:
    """Train the run that `config` names, from its newest checkpoint if it has one.

    Args:
        score: picks the best checkpoint; picklable; None = the newest is the best.
        again: some pairs are trained again (`cdrl.training.again`).
        console: where progress goes; default: standard error.
        watch: called with what the workers report, four times a second; it may raise `Enough`.

    Raises:
        ConfigError: the configuration, the data, the workers or an earlier run of this name do not fit.
        Diverged, DataError, ...: what a worker met.
        JobFailed: workers died more often than `cluster.max_failures`.
    """
    console = console or Console(stderr=True)
    config = absolute(config)
    check_buildable(config)
    manifest = Manifest.read(config.data.uri, config.data.digest)
    check_data(config, manifest)
    num_pairs = len(groups_of_levels(config.pairs, config.schedule.num_levels))
    for world in {config.cluster.min_workers, config.cluster.max_workers}:
        grid = Grid(num_pairs, config.training.num_chunks, world, trained=again.pairs if again else None)
    pinned = config.data.model_copy(update={"digest": manifest.digest})  # for workers that start later, too
    record = _record(_settled(config.model_copy(update={"data": pinned}), grid), manifest)
    config = record.config
    if record.finished:
        return Outcome(record, config.training.num_updates, complete=True)
    done = max((state.step for state in record.checkpoints().values()), default=0)
    if config.training.start and not done:
        with fetched(config.training.start, ()) as folder:
            read_card(folder / "state.json")
    if config.cluster.address is None or storage.is_local(config.data.uri):
        # a damaged shard is told here, before anything starts; elsewhere by the workers
        Dataset.of(config.data, tell=partial(console.print, highlight=False, markup=False))
    known_at = record.tracking_uri if record.mlflow_run_id else None  # a server that never answered binds no run
    tracking_uri = known_at or config.tracking.uri or server.default_uri(config.run.root)
    server.check(tracking_uri)
    images_per_update = config.training.batch_size * len(grid.ranks)
    with (
        TrainingProgress(console, config.training.num_updates, images_per_update, done) as progress,
        connected(config.cluster),
        alone(record),
    ):
        record.tracking_uri = tracking_uri
        tracked = TrackedRun.start(
            config,
            record.run_id,
            manifest_digest=manifest.digest,
            uri=tracking_uri,
            mlflow_run_id=record.mlflow_run_id or None,
            on_contact=partial(_contact, record),
        )
        status: Any = "FAILED"
        try:
            _contact(record, tracked.mlflow_run_id)
            tracked.follow(progress.say)
            if not done:
                tracked.log_image("schedule", schedule_plot(build_schedule(config.schedule)), 0)
            resumed = f", resumed at {done}" if done else ""
            progress.say(f"run {record.run_id} in {record.directory}{resumed}")
            listener = Listener(tracked, progress, record.directory, watch)
            try:
                stopped_by = fit(config, record, listener, score, again)
            except CdrlError as error:
                listener.event(str(error))
                raise
            finally:
                listener.close()
            cards = record.checkpoints()
            step = max((card.step for card in cards.values()), default=0)
            if cards:
                weights = best_of(cards) or list(cards)[-1]
                tracked.set_tag("cdrl.weights", f"{weights} sha256:{cards[weights].files.get('model.json', '')}")
            complete = step >= config.training.num_updates
            if complete:
                record.finished = True
                record.write(config.run.root)
            status = "FINISHED" if complete else "KILLED"
            return Outcome(record, step, complete, stopped_by)
        except Enough:
            status = "FINISHED"
            raise
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            tracked.close(status)
            record.write(config.run.root)  # a contact of the last moment may have crossed with the note of the end


def _contact(record: RunRecord, mlflow_run_id: str) -> None:
    record.mlflow_run_id = mlflow_run_id
    record.write(record.config.run.root)


def check_data(config: Config, manifest: Manifest) -> None:
    """Compare what the networks are built for with what the data are.

    Raises:
        ConfigError: other shape, or other number of classes for a conditional model.
    """
    if manifest.shape != config.data.shape:
        raise ConfigError(
            f"data.shape: the configuration says {list(config.data.shape)}, the data at {config.data.uri} have "
            f"{list(manifest.shape)}"
        )
    if config.data.num_classes not in (0, len(manifest.class_names)):
        raise ConfigError(
            f"data.num_classes: the configuration says {config.data.num_classes}, the data at {config.data.uri} have "
            f"{len(manifest.class_names)}; use that, or 0 for an unconditional model"
        )


def _settled(config: Config, grid: Grid) -> Config:
    """With `compute.chunkwise` decided: once for a run, so that another number of workers does not change its bits."""
    if config.compute.chunkwise != "auto":
        return config
    found = RunRecord.find(config.run_id, config.run.root)
    if found is not None:
        chosen = found.config.compute.chunkwise
    else:
        chosen = usual_chunkwise(config, len(grid.ranks))
    return config.model_copy(update={"compute": config.compute.model_copy(update={"chunkwise": chosen})})


def _record(config: Config, manifest: Manifest) -> RunRecord:
    """The run's record, old or new; refuses a name that belongs to another configuration or dataset."""
    found = RunRecord.find(config.run_id, config.run.root)
    if found is None:
        new = RunRecord(
            run_id=config.run_id,
            config=config,
            manifest_digest=manifest.digest,
            class_names=manifest.class_names,
            tracking_uri="",
            mlflow_run_id="",
        )
        new._directory = Path(config.run.root) / config.run_id
        return new
    if differing := differences(found.config.identity, config.identity):
        raise ConfigError(
            f"run {found.run_id!r} in {found.directory} was made with another configuration: {'; '.join(differing)}; "
            "choose another run.name"
        )
    if found.manifest_digest != manifest.digest:
        raise ConfigError(
            f"run {found.run_id!r} was trained on other data: expected manifest {found.manifest_digest[:12]}, "
            f"{config.data.uri} has {manifest.digest[:12]}; choose another run.name"
        )
    directory, found = found.directory, found.model_copy(update={"config": config})
    found._directory = directory
    return found


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between two trees of plain values: `a.b was 1, is 2`."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [line for key in old | new for line in differences(old.get(key), new.get(key), f"{path}.{key}")]
    return [] if old == new else [f"{path[1:]} was {old}, is {new}"]


@contextmanager
def alone(record: RunRecord) -> Iterator[None]:
    """Keep other processes of this file system from driving the same run; the system frees the lock of a dead one."""
    record.directory.mkdir(parents=True, exist_ok=True)
    with (record.directory / ".driver").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"run {record.run_id!r} in {record.directory} is being trained by another process; "
                "wait for it, or give this one another run.name"
            ) from None
        yield
