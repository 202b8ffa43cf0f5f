"""Ray Train's part of a run: start workers, start them again, listen to them, and end those that hang.

Nothing is kept by Ray Train: checkpoints are ours (`cdrl.training.store`), so that they are made visible last, checked
when they are read, and found again by a process that knows nothing but their place.
"""

import os
import signal
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cdrl.config import Config
from cdrl.errors import CdrlError, JobFailed
from cdrl.runs import RunRecord
from cdrl.training.board import Board
from cdrl.training.job import Again, Job, Score
from cdrl.training.listener import Listener
from cdrl.training.progress import TrainingProgress
from cdrl.training.pulse import Beat, hanging
from cdrl.training.shared import marked

__all__ = ["fit"]

POLL_S = 0.25
END_S = 60.0
KILL_S = 20.0
COLLECTIVE_MARGIN_S = 600.0
STOPPING = (signal.SIGINT, signal.SIGTERM)


def fit(
    config: Config, record: RunRecord, listener: Listener, score: Score | None, again: Again | None = None
) -> int | None:
    """Train with Ray Train in a thread, listen in this one.

    Args:
        score, again: as in `Job`.

    Returns:
        The signal that asked for an end, or None.

    Raises:
        Diverged, DataError, ...: what a worker met.
        JobFailed: workers died more often than allowed.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # a board that is killed begins anew and empty: notices may be lost, the run is not
    # and it lives where the driver does: machines of workers may be taken away (a soft wish Ray follows only mostly)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    board = ray.remote(Board).options(**options).remote()
    failure: list[Exception] = []
    ended = threading.Event()  # a join that Ctrl-C interrupts would take the thread for ended (CPython 3.11)

    def train() -> None:
        try:
            place = record.checkpoint_uri
            with tempfile.TemporaryDirectory(prefix="cdrl-ray-train-") as folder, marked(place) as mark:
                _trainer(config, Job(config, place, board, score, again, mark), folder).fit()
        except Exception as error:  # told in the main thread, below
            failure.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=train, name="fit", daemon=True)
    with _stopping(listener.progress) as signals:
        thread.start()
        heard_s = time.monotonic()
        try:
            while not ended.wait(POLL_S):
                if signals:
                    ray.get(board.stop.remote())
                notices, beats = ray.get([board.take.remote(), board.beats.remote()])
                listener.take(notices)
                heard_s = time.monotonic() if _alive(beats) else heard_s
                if signals and time.monotonic() - heard_s > END_S:
                    listener.event("no worker is there to write a checkpoint: the run ends with the last one")
                    _end(board, ended)
                    return signals[0]
                for beat, reason in hanging(beats, config.cluster.hang_after_s):
                    ray.get(board.begin.remote())
                    if _killed([beat]):
                        listener.event(f"{beat}: {reason}; it is killed, and all start again at the newest checkpoint")
        except BaseException:  # a second Ctrl-C, or an error of the tracking server
            _end(board, ended)
            raise
    listener.take(ray.get(board.take.remote()))
    known = ray.get(board.failure.remote())
    if isinstance(known, CdrlError):
        raise known
    if failure:
        raise JobFailed(f"run {record.run_id}: {_reason(failure[0])}; the same command resumes it") from failure[0]
    return signals[0] if signals else None


def _trainer(config: Config, job: Job, folder: str) -> Any:
    # the controller looks after its workers this often, in their processes; Ray's default is 2 s
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")  # instead of 5: notices can be short
    # nobody takes this machine away: a process less to wait for; this process may have trained elsewhere before
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0" if config.cluster.address is None else "1"
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    from cdrl.training.haste import BeforeResize
    from cdrl.training.worker import work

    cluster = config.cluster
    return TorchTrainer(
        work,
        train_loop_config={"job": job},
        # a rank that waits out an outage keeps the others waiting in a collective; hangs are ours to find
        torch_config=TorchConfig(
            timeout_s=int(config.run.storage_patience_s + cluster.hang_after_s + COLLECTIVE_MARGIN_S)
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": 1, **({"GPU": cluster.gpu_share} if cluster.use_gpu else {})},
            elastic_resize_monitor_interval_s=cluster.resize_after_s,
        ),
        run_config=ray.train.RunConfig(
            name=config.run_id,
            storage_path=folder,
            failure_config=ray.train.FailureConfig(
                max_failures=cluster.max_failures,
                max_preemption_failures=-1 if cluster.max_preemptions is None else cluster.max_preemptions,
            ),
            callbacks=[BeforeResize(job.board, config.run.storage_patience_s)],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _end(board: Any, ended: threading.Event) -> None:
    """End the workers without a checkpoint, and so Ray Train: it would crash in a Ray session that ends around it."""
    import ray

    # workers that are started again meanwhile see it and return
    ray.get(board.fail.remote(JobFailed("the driver gave up")))
    deadline_s = time.monotonic() + END_S
    while not ended.wait(POLL_S) and time.monotonic() < deadline_s:
        beats = ray.get(board.beats.remote())
        ray.get(board.begin.remote())
        _killed([beat for beat, _ in beats.values() if not beat.done])


def _alive(beats: dict[int, tuple[Beat, float]]) -> bool:
    return any(age_s < END_S and not beat.done for beat, age_s in beats.values())


def _killed(beats: list[Beat]) -> bool:
    """End workers, each from its own machine; whether one was there. A machine that does not answer is left to Ray."""
    import ray

    started = [_kill(beat) for beat in beats]
    ready, _ = ray.wait(started, num_returns=len(started), timeout=KILL_S) if started else ([], [])
    found = []
    for reference in ready:
        try:
            found.append(ray.get(reference))
        except ray.exceptions.RayError:  # it was lost in this moment
            continue
    return any(found)


def _kill(beat: Beat) -> Any:
    """End a hanging worker, from its own machine; Ray Train sees it die and starts all workers again.

    Returns:
        A reference to whether it was there: what has become silent may have ended or be lost with its machine.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if beat.node not in {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
        return ray.put(False)
    here = NodeAffinitySchedulingStrategy(beat.node, soft=False)
    return ray.remote(_end_process).options(num_cpus=0, scheduling_strategy=here).remote(beat.pid, beat.born_s)


def _end_process(pid: int, born_s: float) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        if there := process.create_time() == born_s:  # no later process of the same number
            process.kill()
        return there
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _stopping(progress: TrainingProgress) -> Iterator[list[int]]:
    """Signals that ask for an end: the workers write a checkpoint and end; a second Ctrl-C ends at once."""
    seen: list[int] = []

    def on_signal(number: int, frame: Any) -> None:
        del frame
        signal.signal(signal.SIGINT, signal.default_int_handler)
        seen.append(number)
        progress.say("stopping after a checkpoint; press Ctrl-C again to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield seen  # signals reach the main thread only
        return
    before = {number: signal.signal(number, on_signal) for number in STOPPING}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reason(error: Exception) -> str:
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return textwrap.shorten(lines[-1], 240, placeholder=" ...") if lines else type(cause).__name__
