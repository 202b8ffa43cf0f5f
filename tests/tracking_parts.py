"""MLflow servers that are stopped and started, addresses at which none answers, and what journal and server hold."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mlflow import MlflowClient

from cdrl.config import Config
from cdrl.runs import RunRecord
from cdrl.tracking.journal import Journal
from cdrl.tracking.run import TrackedRun

Row = tuple[str, int, int, str]


def in_journal(directory: Path) -> list[Row]:
    """Every metric of a run's journal: name, step, time in ms, all digits of the value."""
    noted = (entry for _, entry in Journal(directory).entries() if entry["kind"] == "metrics")
    return sorted((name, each["step"], each["time"], repr(x)) for each in noted for name, x in each["values"].items())


def at_server(client: MlflowClient, run: str) -> list[Row]:
    """The same of a server."""
    names = client.get_run(run).data.metrics
    found = (metric for name in names for metric in client.get_metric_history(run, name))
    return sorted((metric.key, metric.step, metric.timestamp, repr(metric.value)) for metric in found)


def record_of(run: TrackedRun, root: Path, config: Config) -> RunRecord:
    """The record of a run without checkpoints, written below `root`."""
    record = RunRecord(
        run_id="tiny",
        config=config,
        manifest_digest="ab" * 32,
        class_names=(),
        tracking_uri=run.uri,
        mlflow_run_id=run.mlflow_run_id,
    )
    record.write(str(root))
    return record


@contextmanager
def silent() -> Iterator[str]:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, never listening: connections are refused
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


class MlflowServer:
    """`mlflow server` on one port of the loopback, with a database that outlives it.

    Args:
        options: of its command line; default: it takes files itself and puts them into the folder.
        variables: of its environment, beside this process's.

    Attributes:
        uri: where it listens while it runs.
    """

    def __init__(
        self, folder: Path, database: Path, options: Sequence[str] = (), variables: Mapping[str, str] | None = None
    ) -> None:
        shutil.copy(database, folder / "mlflow.db")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri, self.folder = f"http://127.0.0.1:{self.port}", folder
        self.options = options or ("--artifacts-destination", str(folder / "files"))
        self.variables = variables or {}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers; nothing happens where it runs."""
        if self.process:
            return
        places = ("--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", *self.options)
        address = ("--host", "127.0.0.1", "--port", str(self.port), "--workers", "1")
        variables = os.environ | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # MLflow starts uvicorn by its name
            **self.variables,
        }
        command = [sys.executable, "-m", "mlflow", "server", *places, *address]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, start_new_session=True)
        deadline_s = time.monotonic() + 240
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            assert time.monotonic() < deadline_s, (self.folder / "server.log").read_text()
            time.sleep(0.3)

    def send(self, number: signal.Signals) -> None:
        """A signal to all its processes."""
        assert self.process
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it as a power cut does."""
        if self.process:
            self.send(signal.SIGKILL)
            self.process.wait(30)
            self.process = None
