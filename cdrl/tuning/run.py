"""A sweep from its beginning, or from where it was, to its results."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console

from cdrl import storage
from cdrl.build import check_buildable
from cdrl.config import ClusterConfig, Config, ScheduleConfig
from cdrl.data import Dataset, Manifest
from cdrl.errors import ConfigError
from cdrl.pictures import png_bytes
from cdrl.runs import RunRecord
from cdrl.session import connected
from cdrl.tracking import server
from cdrl.tracking.run import TrackedRun
from cdrl.training.launch import alone, check_data
from cdrl.tuning.family import adopt, settle
from cdrl.tuning.notes import Notes, Score, Trial
from cdrl.tuning.plots import importance_plot, parallel_plot, schedules_plot
from cdrl.tuning.ranking import Ranking, rank
from cdrl.tuning.story import Story
from cdrl.tuning.sweep import Sweep

__all__ = ["run_sweep"]

PICTURES = ("parallel", "importance", "schedule")


def run_sweep(sweep: Sweep, *, parallel: int | None = None, console: Console | None = None) -> Ranking:
    """Run what is left of a sweep; write ranking, pictures and `best.yaml`.

    Args:
        parallel: trials at a time; default: as many as there are CPUs (and GPUs) for.
        console: where progress goes; default: standard error.

    Raises:
        ConfigError: configuration, data or an earlier sweep of this name do not fit.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the same call goes on.
    """
    console = console or Console(stderr=True)
    manifest = Manifest.read(sweep.config.data.uri, sweep.config.data.digest)
    check_buildable(sweep.config)
    check_data(sweep.config, manifest)
    Dataset.of(sweep.config.data)  # a damaged shard is told here, once
    sweep = _pinned(sweep, manifest)
    record = _record(sweep, manifest)
    server.check(record.tracking_uri)
    with alone(record):
        sweep.write()
        notes = Notes(sweep.trials)
        if len(notes.trials) < sweep.num_trials or notes.unfinished():
            _run(sweep, notes, record, parallel, console)
        ranking = rank(sweep, notes.listed())
        write_results(sweep, notes.listed(), ranking)
    return ranking


def _run(sweep: Sweep, notes: Notes, record: RunRecord, parallel: int | None, console: Console) -> None:
    # imported here: Ray Tune takes seconds, and a sweep that is complete does not need it
    from cdrl.tuning.population import check_population
    from cdrl.tuning.search import SLOT, run_trials

    cluster = sweep.config.cluster
    has_slots = cluster.address is None
    parallel = parallel or (_room(cluster, _machine()) if has_slots else None)
    if sweep.space.scheduler == "pbt":
        check_population(sweep, parallel or sweep.num_trials, has_slots=has_slots)
    tracked = TrackedRun.start(
        record.config,
        sweep.name,
        manifest_digest=record.manifest_digest,
        uri=record.tracking_uri,
        mlflow_run_id=record.mlflow_run_id or None,
        on_contact=lambda run: _contact(record, run),
    )
    _contact(record, tracked.mlflow_run_id)
    status: Literal["FINISHED", "KILLED", "FAILED"] = "FAILED"
    known = len(notes.trials)
    with ExitStack() as stack:
        story = stack.enter_context(Story(console, sweep, notes, parallel or 0))
        try:
            tracked.follow(story.say)
            tracked.set_tag("mlflow.source.name", "cdrl tune")
            went_on = f", goes on after {story.left()}" if known else ""
            story.say(f"sweep {sweep.name} in {sweep.directory}{went_on}")

            def tell(trial: Trial, score: Score | None) -> None:
                story.tell(trial, score)
                adopt(sweep.trials / (trial.run or f"t{trial.number:03d}"), tracked.mlflow_run_id)
                if trial.state != "running" and (best := rank(sweep, notes.listed()).best) and best.fd is not None:
                    over = sum(each.state != "running" for each in notes.listed())
                    tracked.log_metrics({"best_fd": best.fd, "trials_over": float(over)}, over)

            room = (parallel or 1) * cluster.max_workers
            with _interruptible():
                slots = {SLOT: float(parallel or 1)} if has_slots else None
                with connected(cluster, num_cpus=room, resources=slots, dashboard=True):
                    at_a_time = parallel or _room(cluster, _cluster())
                    run_trials(sweep, notes, at_a_time, has_slots=has_slots, tell=tell)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            ranking = rank(sweep, notes.listed())
            write_results(sweep, notes.listed(), ranking)
            settle(notes.listed(), sweep.trials, tracked.mlflow_run_id, story.say)
            for place in _results(sweep):
                tracked.log_artifact(place)
            tracked.close(status)
            record.finished = status == "FINISHED"
            record.write(str(sweep.directory.parent))


def write_results(sweep: Sweep, trials: list[Trial], ranking: Ranking) -> None:
    """`ranking.json`, `ranking.txt`, the pictures and `best.yaml`, as far as the trials have come."""
    folder = str(sweep.directory)
    storage.write_bytes(storage.join(folder, "ranking.json"), ranking.model_dump_json(indent=1).encode())
    storage.write_bytes(storage.join(folder, "ranking.txt"), ranking.text().encode())
    best = ranking.best
    if best is None:
        return
    config = sweep.best(best.parameters)
    says = f"FD {best.fd:.4g} after {best.step} updates" if best.fd is not None else ""
    head = f"# trial t{best.trial:03d} of sweep {sweep.name}: {says}; train it with `cdrl train best.yaml`\n"
    text = head + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    storage.write_bytes(storage.join(folder, "best.yaml"), text.encode())
    names = (f"best, t{best.trial:03d}", "the paper's")
    pictures = {
        "parallel": parallel_plot(sweep, trials),
        "importance": importance_plot(sweep, trials),
        "schedule": schedules_plot(config.schedule, ScheduleConfig(), names),
    }
    for name in PICTURES:
        storage.write_bytes(storage.join(folder, f"{name}.png"), png_bytes(pictures[name]))


def _results(sweep: Sweep) -> list[Path]:
    names = ["ranking.json", "ranking.txt", "best.yaml", *(f"{name}.png" for name in PICTURES)]
    return [path for name in names if (path := sweep.directory / name).is_file()]


def _pinned(sweep: Sweep, manifest: Manifest) -> Sweep:
    """With the data as they are now, and one server for all."""
    data = sweep.config.data.model_copy(update={"digest": manifest.digest})
    uri = sweep.config.tracking.uri or server.default_uri(sweep.config.run.root)
    tracking = sweep.config.tracking.model_copy(update={"uri": uri})
    return sweep.model_copy(update={"config": sweep.config.model_copy(update={"data": data, "tracking": tracking})})


def _record(sweep: Sweep, manifest: Manifest) -> RunRecord:
    """The sweep's own record, by which `cdrl track sync` finds it."""
    root = str(sweep.directory.parent)
    found = RunRecord.find(sweep.name, root)
    if found is not None and not (sweep.directory / "sweep.json").is_file():
        raise ConfigError(f"{found.directory} is the folder of a training run; choose another --name")
    if found is not None and found.manifest_digest != manifest.digest:
        raise ConfigError(
            f"sweep {sweep.name!r} was made with other data: expected manifest {found.manifest_digest[:12]}, "
            f"{sweep.config.data.uri} has {manifest.digest[:12]}; choose another --name"
        )
    config = _named(sweep.asked, sweep.name)
    record = found or RunRecord(
        run_id=sweep.name,
        config=config,
        manifest_digest=manifest.digest,
        class_names=manifest.class_names,
        tracking_uri=str(sweep.config.tracking.uri),
        mlflow_run_id="",
    )
    record._directory = sweep.directory
    return record


def _named(config: Config, name: str) -> Config:
    return config.model_copy(update={"run": config.run.model_copy(update={"name": name})})


def _contact(record: RunRecord, mlflow_run_id: str) -> None:
    record.mlflow_run_id = mlflow_run_id
    record.write(str(record.directory.parent))


def _room(cluster: ClusterConfig, there: dict[str, float]) -> int:
    """How many trials there is room for, one at least."""
    room = int(there["CPU"] // cluster.max_workers)
    if cluster.use_gpu:
        room = min(room, int(there.get("GPU", 0) / (cluster.max_workers * cluster.gpu_share) + 1e-9))
    return max(1, room)


def _machine() -> dict[str, Any]:
    import torch

    return {"CPU": len(os.sched_getaffinity(0)), "GPU": torch.cuda.device_count()}


def _cluster() -> dict[str, float]:
    import ray

    found: dict[str, float] = ray.cluster_resources()
    return found | {"CPU": found.get("CPU", 1) - 1}  # the trials' own processes take a share


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends a sweep as Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
