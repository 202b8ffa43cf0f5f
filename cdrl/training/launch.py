"""The driver of a run: check everything, then Ray Train; what the workers report goes to MLflow and the eye."""

import io
import os
import signal
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from cdrl import storage
from cdrl.build import build_schedule, check_buildable
from cdrl.config import Config
from cdrl.data import Dataset, Manifest
from cdrl.errors import CdrlError, ConfigError, JobFailed
from cdrl.method.pairs import groups_of_levels
from cdrl.plots import schedule_plot
from cdrl.runs import RunRecord, absolute
from cdrl.session import connected
from cdrl.tracking import server
from cdrl.tracking.run import TrackedRun
from cdrl.training.board import Board, Notice
from cdrl.training.grid import Grid
from cdrl.training.progress import TrainingProgress

__all__ = ["Outcome", "launch"]

POLL_S = 0.3


@dataclass(frozen=True)
class Outcome:
    """How a call of `launch` ended.

    Attributes:
        step: updates made by now, counted over all calls.
        complete: whether that is all of them; if not, the same command resumes.
    """

    record: RunRecord
    step: int
    complete: bool


def launch(config: Config, *, score: Any = None, console: Console | None = None) -> Outcome:
    """Train the run that `config` names, from its newest checkpoint if it has one.

    Args:
        score: picks the best checkpoint: a picklable Model -> float, lower = better; None = the newest is the best.
        console: where progress goes; default: standard error.

    Raises:
        ConfigError: the configuration, the data, the workers or an earlier run of this name do not fit.
        Diverged, DataError, ...: what a worker met.
        JobFailed: workers died more often than `cluster.max_failures`.
    """
    console = console or Console(stderr=True)
    config = absolute(config)
    check_buildable(config)
    manifest = Manifest.read(config.data.uri)
    check_data(config, manifest)
    num_pairs = len(groups_of_levels(config.pairs, config.schedule.num_levels))
    Grid(num_pairs, config.training.num_chunks, config.cluster.num_workers)
    record = _record(config, manifest)
    if record.finished:
        return Outcome(record, config.training.num_updates, complete=True)
    done = max((state.step for state in record.checkpoints().values()), default=0)
    Dataset.open(config.data.uri, cache=config.data.cache)  # a damaged shard is told here, before anything starts
    tracking_uri = record.tracking_uri or config.tracking.uri or server.default_uri(config.run.root)
    server.connect(tracking_uri)  # and a dead server
    images_per_update = config.training.batch_size * num_pairs
    with (
        TrainingProgress(console, config.training.num_updates, images_per_update, done) as progress,
        connected(config.cluster),
    ):
        tracked = TrackedRun.start(
            config,
            record.run_id,
            manifest_digest=manifest.digest,
            uri=tracking_uri,
            mlflow_run_id=record.mlflow_run_id or None,
        )
        status: Any = "FAILED"
        try:
            record.tracking_uri, record.mlflow_run_id = tracked.uri, tracked.mlflow_run_id
            record.write(config.run.root)
            if not done:
                tracked.log_image("schedule", schedule_plot(build_schedule(config.schedule)), 0)
            resumed = f", resumed at {done}" if done else ""
            progress.say(f"run {record.run_id} in {record.directory}{resumed}")
            step = _run(config, record, _Listener(tracked, progress, record.directory, done), score)
            complete = step >= config.training.num_updates
            if complete:
                record.finished = True
                record.write(config.run.root)
            status = "FINISHED" if complete else "KILLED"
            return Outcome(record, step, complete)
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            tracked.close(status)


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


def _run(config: Config, record: RunRecord, listener: "_Listener", score: Any) -> int:
    """Fit in a thread, listen in this one; returns the number of updates that the newest checkpoint holds."""
    import ray

    # a board that is killed begins anew and empty: notices may be lost, the run is not
    board = ray.remote(Board).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    failure: list[Exception] = []

    def fit() -> None:
        try:
            _trainer(config, record, board, score).fit()
        except Exception as error:  # told in the main thread, below
            failure.append(error)

    thread = threading.Thread(target=fit, name="fit", daemon=True)
    with _interrupt_once(listener.progress) as interrupted:
        thread.start()
        while thread.is_alive():
            thread.join(POLL_S)
            if interrupted.is_set():
                ray.get(board.stop.remote())
            listener.take(ray.get(board.take.remote()))
    listener.take(ray.get(board.take.remote()))
    known = ray.get(board.failure.remote())
    if isinstance(known, CdrlError):
        raise known
    if failure:
        raise JobFailed(f"run {record.run_id}: {_reason(failure[0])}; the same command resumes it") from failure[0]
    return listener.checkpointed


class _Listener:
    """Carries notices from the board to the tracking server, the run's folder and the display.

    Attributes:
        checkpointed: updates that the newest checkpoint holds, `done` of them from earlier calls.
    """

    def __init__(self, tracked: TrackedRun, progress: TrainingProgress, directory: Path, done: int) -> None:
        self.tracked, self.progress, self.directory = tracked, progress, directory
        self.checkpointed = done

    def take(self, notices: list[Notice]) -> None:
        """Handle notices in their order."""
        for notice in notices:
            if notice.kind == "metrics":
                self.progress.show(notice.step, notice.content)
                speed = {"images_per_s": self.progress.images_per_s} if self.progress.images_per_s else {}
                self.tracked.log_metrics(notice.content | speed, notice.step)
            elif notice.kind == "picture":
                for name, png in notice.content.items():
                    storage.write_bytes(str(self.directory / name / f"{notice.step:08d}.png"), png)
                    self.tracked.log_image(name, Image.open(io.BytesIO(png)), notice.step)
            else:
                self.checkpointed = notice.step
                self.tracked.flush()  # a resumed run does not measure again what lies before its checkpoint
                scored = notice.content["score"]
                if scored is not None:
                    self.tracked.log_metrics({"quick_score": scored}, notice.step)
                told = "" if scored is None else f", quick score {scored:.3g}"
                self.progress.say(f"checkpoint at {notice.step}{told}")


def _trainer(config: Config, record: RunRecord, board: Any, score: Any) -> Any:
    # the controller looks for reports this often; Ray's default of 2 s would be paid at each checkpoint
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    if config.cluster.address is None:  # nobody takes this machine away; a process less to wait for
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    from cdrl.training.worker import work

    filesystem, path = storage.filesystem(config.run.storage or config.run.root)
    ranked = {"checkpoint_score_attribute": "score", "checkpoint_score_order": "min"} if score is not None else {}
    return TorchTrainer(
        work,
        train_loop_config={"config": config, "board": board, "score": score},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.cluster.num_workers,
            use_gpu=config.cluster.use_gpu,
            resources_per_worker={"CPU": 1, **({"GPU": 1} if config.cluster.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=record.run_id,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=config.cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2, **ranked),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


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
    if differing := _differences(found.config.identity, config.identity):
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


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [line for key in old | new for line in _differences(old.get(key), new.get(key), f"{path}.{key}")]
    return [] if old == new else [f"{path[1:]} was {old}, is {new}"]


@contextmanager
def _interrupt_once(progress: TrainingProgress) -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event, which has the workers write a checkpoint and end; the second ends at once."""
    interrupted = threading.Event()

    def on_interrupt(signum: int, frame: Any) -> None:
        del signum, frame
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupted.set()
        progress.say("stopping after a checkpoint; press Ctrl-C again to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # signals reach the main thread only
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _reason(error: Exception) -> str:
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return textwrap.shorten(lines[-1], 240, placeholder=" ...") if lines else type(cause).__name__
