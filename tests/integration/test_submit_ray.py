"""`cdrl submit` and `cdrl jobs` against a Ray head of our own, with its dashboard and token authentication.

One small run is submitted, stopped, resumed and finished as jobs; the commands run as processes, as a user starts them.
"""

import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cdrl.data.prepare import Options, prepare
from cdrl.runs import RunRecord
from tests.training_runs import PATIENCE_S, tiny_file, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
NUM_UPDATES = 200


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Head:
    """A Ray head that asks for a token, and `cdrl` told where it is."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, f"http://127.0.0.1:{free_port()}"
        self.token = secrets.token_hex(16)
        keep = {name: os.environ[name] for name in ("HOME", "LANG", "OMP_NUM_THREADS") if name in os.environ}
        self.environment = keep | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "CDRL_ADDRESS": self.address,
        }

    def __enter__(self) -> "Head":
        port, dashboard = free_port(), self.address.rpartition(":")[2]
        self.gcs = f"127.0.0.1:{port}"
        command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
        command += [f"--temp-dir={self.folder}/ray", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        switches = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
        with (self.folder / "head.log").open("w") as log:
            self.process = subprocess.Popen(
                command, env=self.environment | switches, stdout=log, stderr=log, start_new_session=True
            )
        until(self.answers, (self.folder / "head.log").read_text)
        return self

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "head.log").read_text()
        try:
            urllib.request.urlopen(f"{self.address}/api/version", timeout=10).close()
        except urllib.error.HTTPError as refusal:
            return refusal.code == 401
        except OSError:
            return False
        raise AssertionError("it answers without a token")

    def __exit__(self, *_: object) -> None:
        head = psutil.Process(self.process.pid)
        ours = [head, *head.children(recursive=True)]
        for process in ours:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ours, timeout=10)

    def cdrl(self, *arguments: str, code: int = 0, **environment: str | None) -> str:
        """Standard output and error of `cdrl ARGUMENTS`; a variable that is None is not set."""
        variables = self.environment | environment
        done = subprocess.run(
            [sys.executable, "-m", "cdrl.cli", *arguments],
            env={name: value for name, value in variables.items() if value is not None},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert self.token not in done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # a short name: Ray has sockets there
    with tempfile.TemporaryDirectory(prefix="cdrl-", ignore_cleanup_errors=True) as folder:
        with Head(Path(folder)) as head:
            yield head


def test_a_job_is_submitted_stopped_resumed_and_finished(head: Head) -> None:
    data, runs = head.folder / "data", head.folder / "runs"
    prepare("digits", str(data), Options(limit=60, holdout=0))
    settings = {
        "data.uri": data,
        "run.root": runs,
        "run.name": "job",
        "training.num_updates": NUM_UPDATES,
        "run.checkpoint_every": 20,
        "run.sample_every": 1,  # pictures keep the updates waiting
    }
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = ("--name", "job", "--", "train", tiny_file(head.folder), *given)

    wanted = head.cdrl("submit", *command, code=2, RAY_AUTH_TOKEN=None, RAY_AUTH_MODE=None)
    assert "it wants a token" in wanted and wanted.count("\n") == 1
    wrong = head.cdrl("jobs", "list", code=2, RAY_AUTH_TOKEN="another")
    assert "the token is wrong" in wrong and "another" not in wrong.replace("another program", "")

    assert "submitted: job job\n" in head.cdrl("submit", *command, RAY_AUTH_MODE=None)
    until(lambda: list((runs / "job").glob("step_*/state.json")), lambda: head.cdrl("jobs", "logs", "job"))
    head.cdrl("jobs", "stop", "job")
    told = head.cdrl("jobs", "logs", "job", "--follow", code=1)
    assert re.search(rf"stopped at \d+ of {NUM_UPDATES}; the same command resumes", told), told
    assert "job job: STOPPED\n" in told and "error: job job ended as STOPPED" in told
    assert "Traceback" not in told
    assert "there is such a job, it is STOPPED" in head.cdrl("submit", *command, code=2)

    followed = head.cdrl("jobs", "resume", "job", "--wait")
    assert followed.startswith("resumed: job job-2\n") and "job job-2: RUNNING" in followed
    assert f"complete: run job at {NUM_UPDATES} updates" in followed
    assert RunRecord.read("job", str(runs)).finished
    assert "SUCCEEDED" in head.cdrl("jobs", "status", "job") and "STOPPED" in head.cdrl("jobs", "list")


def test_within_a_kuberay_job_a_users_mistake_is_no_failure_to_try_again(head: Head) -> None:
    told = head.cdrl("submit", "--name", "mine", "--wait", "--", "jobs", "entry", "--", "sample", "no-such-run", code=1)
    assert "error: run 'no-such-run': no such run" in told and "error: job mine ended as STOPPED" in told
    plain = head.cdrl("submit", "--name", "plain", "--wait", "--", "sample", "no-such-run", code=2)
    assert "error: job plain ended with exit code 2" in plain


def test_a_machine_that_goes_is_announced(head: Head) -> None:
    head.cdrl("jobs", "leave", "--grace", "0", RAY_ADDRESS=head.gcs)
