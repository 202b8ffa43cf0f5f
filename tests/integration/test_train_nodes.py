"""A cluster of two machines (of one: two Ray nodes with caches of their own), one of which comes and goes.

The data and the checkpoints are on S3. Whatever happens to the machines, the run ends with the bits of the straight
one.
"""

import json
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ray._private.authentication_test_utils import reset_auth_token_state
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from ray.job_submission import JobStatus, JobSubmissionClient

from cdrl.config import ClusterConfig, load
from cdrl.data.prepare import Options, prepare
from cdrl.model import Model
from cdrl.runs import RunRecord
from cdrl.session import connected
from cdrl.training.grid import Grid
from cdrl.training.launch import Outcome, launch
from tests.faults import FaultProxy
from tests.training_runs import CDRL, Straight, digests, straight, tiny_file, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

NUM_UPDATES, CHECKPOINT_EVERY = 400, 20
HEAD, OTHER = "127.0.0.2", "127.0.0.3"  # Ray takes another address for 127.0.0.1
NOTICE_S = 20.0  # enough for a checkpoint on a busy machine
SETTINGS = (
    f"training.num_updates={NUM_UPDATES}",
    f"run.checkpoint_every={CHECKPOINT_EVERY}",
    "run.keep_every=1",
    "cluster.resize_after_s=1",
    "compute.chunkwise=always",  # the same bits with one worker and with two
)


def pace(file: Path) -> Callable[[Model, Grid], tuple[float, float]]:
    """A score that takes its time while a file is there: the run waits at its checkpoints for what shall happen."""
    file.touch()

    # within a function, so that workers get it whole: they cannot import tests
    def score(model: Model, grid: Grid) -> tuple[float, float]:
        end_s = time.monotonic() + 1
        while file.exists() and time.monotonic() < end_s:
            time.sleep(0.02)
        return float(-model.step), 0.0

    return score


class Run:
    """A run that is driven in a thread of this process."""

    def __init__(self, place: "Place", name: str, *more: str) -> None:
        self.name, self.slow = name, place.folder / f"{name}.slow"
        self.events_file = place.folder / "runs" / name / "events.jsonl"
        config = load(place.source, place.settings(name, *more))
        pool = ThreadPoolExecutor(1)
        self.outcome: Future[Outcome] = pool.submit(launch, config, score=pace(self.slow))
        pool.shutdown(wait=False)

    def events(self) -> list[dict[str, Any]]:
        lines = self.events_file.read_text().splitlines() if self.events_file.exists() else []
        return [json.loads(line) for line in lines]

    def wait(self, text: str, times: int = 1) -> list[int]:
        """The updates after which events with this text came, once there are so many."""

        def found() -> list[int]:
            return [event["step"] for event in self.events() if text in event["event"]]

        def there() -> bool:
            assert not self.outcome.done(), (self.outcome.result(), self.events())
            return len(found()) >= times

        until(there, lambda: f"no {text!r} in {self.events()}")
        return found()

    def checkpoints(self) -> set[int]:
        return checkpointed(RunRecord.read(self.name, str(self.events_file.parents[1])))

    def end(self) -> RunRecord:
        self.slow.unlink()
        outcome = self.outcome.result(timeout=240)
        assert outcome.complete
        return outcome.record


class Place:
    """The cluster, with one CPU on each machine, and what the runs read and write."""

    def __init__(self, folder: Path, bucket: str, proxy: FaultProxy) -> None:
        self.folder, self.bucket, self.proxy, self.source = folder, bucket, proxy, tiny_file(folder)
        with socket.create_server((HEAD, 0)) as free:
            self.dashboard = f"{HEAD}:{free.getsockname()[1]}"
        host, port = self.dashboard.split(":")
        served = {"include_dashboard": True, "dashboard_host": host, "dashboard_port": int(port)}
        any_port = {"dashboard_agent_listen_port": 0}  # other sessions of this machine may have the usual one
        self.cluster = Cluster(initialize_head=True, head_node_args={**self.node(HEAD), **served, **any_port})

    def node(self, address: str) -> dict[str, Any]:
        """A machine with a temporary folder, and so a cache, of its own."""
        own = self.folder / address
        own.mkdir(exist_ok=True)
        return {"num_cpus": 1, "node_ip_address": address, "env_vars": {"TMPDIR": str(own)}}

    def add(self) -> Any:
        return self.cluster.add_node(**self.node(OTHER))

    def lose(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)

    def settings(self, name: str, *more: str) -> list[str]:
        places = {"data.uri": f"{self.bucket}/digits", "run.storage": f"{self.bucket}/runs", "run.name": name}
        there = {"run.root": f"{self.folder}/runs", "cluster.address": self.cluster.address}
        return [*SETTINGS, *(f"{key}={value}" for key, value in {**places, **there}.items()), *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, lasting_faulty_s3: tuple[str, FaultProxy]) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "driver").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder / "driver"))
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "60")
        reset_auth_token_state()  # this process may have read the environment before
        place = Place(folder, *lasting_faulty_s3)
        prepare("digits", f"{place.bucket}/digits", Options(limit=60, holdout=0, shard_rows=20))
        with connected(ClusterConfig(address=place.cluster.address, num_workers=1)):  # at the head: it is alone yet
            yield place
        place.cluster.shutdown()
    reset_auth_token_state()


@pytest.fixture(scope="module")
def expected(place: Place) -> Straight:
    return straight(load(place.source, place.settings("straight")), place.folder / "straight")


def checkpointed(record: RunRecord) -> set[int]:
    return {card.step for card in record.checkpoints().values()}


def test_workers_follow_the_machines_that_come_and_go(place: Place, expected: Straight) -> None:
    run = Run(place, "elastic", "cluster.num_workers=[1,2]")
    assert run.wait("1 workers train from update") == [0]
    other = place.add()
    (grown,) = run.wait("2 workers train from update")
    (asked,) = run.wait("the number of workers is about to change")
    assert 0 < asked <= grown <= asked + CHECKPOINT_EVERY  # nothing was lost but what followed the checkpoint
    place.lose(other)
    _, alone = run.wait("1 workers train from update", times=2)
    assert alone >= grown
    record = run.end()
    assert asked in checkpointed(record)
    assert digests(record) == expected.digests


def test_two_machines_train_as_one_and_a_notice_of_preemption_is_answered(place: Place, expected: Straight) -> None:
    place.proxy.requests.clear()
    for cache in place.folder.glob("127.*/cdrl-cache-*"):
        shutil.rmtree(cache)
    other = place.add()
    budgets = ("cluster.max_failures=0", "cluster.max_preemptions=1")
    run = Run(place, "preempted", "cluster.num_workers=2", "cluster.hang_after_s=15", *budgets)
    until(lambda: run.events_file.with_name("run.json").exists() and run.checkpoints(), lambda: str(run.events()))
    shards = {path for method, path in place.proxy.requests if method == "GET" and path.endswith(".arrow")}
    assert len(shards) == 3
    for shard in shards:
        assert place.proxy.asked("GET", shard) == 2  # by each of the machines, and not by the driver
    for address in (HEAD, OTHER):
        assert len(list((place.folder / address).glob("cdrl-cache-*/*/*.arrow"))) == 3
    deadline_ms = int((time.time() + NOTICE_S) * 1000)
    reason = autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION
    drained, why = GcsClient(address=place.cluster.address).drain_node(other.node_id, reason, "spot", deadline_ms)
    assert drained, why
    (noticed,) = run.wait("lose their machine")
    until(lambda: noticed in run.checkpoints(), lambda: str(run.events()))
    assert time.time() * 1000 < deadline_ms
    time.sleep(max(0.0, deadline_ms / 1000 - time.time()))  # a machine that is lost before counts as a crash for Ray
    place.lose(other)
    again = place.add()
    record = run.end()
    place.lose(again)
    assert digests(record) == expected.digests
    assert not any("it is killed" in event["event"] for event in run.events())  # waiting for a machine is no hang


def test_a_submitted_job_that_is_stopped_resumes(place: Place, expected: Straight) -> None:
    client = JobSubmissionClient(f"http://{place.dashboard}")
    # pictures keep the updates waiting
    settings = [setting for each in place.settings("job", "run.sample_every=1") for setting in ("--set", f"'{each}'")]
    job = client.submit_job(entrypoint=" ".join([CDRL, "train", place.source, *settings, "--address", "auto"]))

    def told() -> str:
        return str(client.get_job_logs(job))

    def has_checkpoint() -> bool:
        assert client.get_job_status(job) in (JobStatus.PENDING, JobStatus.RUNNING), told()
        return "checkpoint at" in told()

    until(has_checkpoint, told)
    assert client.stop_job(job)
    until(lambda: client.get_job_status(job) == JobStatus.STOPPED, told)
    record = RunRecord.read("job", f"{place.folder}/runs")
    held = max(checkpointed(record))
    assert f"stopped at {held} of {NUM_UPDATES}; the same command resumes" in told()
    assert os.environ["RAY_AUTH_TOKEN"] not in told() and "Traceback" not in told()
    assert digests(Run(place, "job").end()) == expected.digests
