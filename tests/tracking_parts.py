"""Addresses at which no MLflow server answers, and what journal and server hold of a run."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mlflow import MlflowClient

from cdrl.tracking.journal import Journal

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


@contextmanager
def answering(status: int, body: bytes, kind: str) -> Iterator[str]:
    """A web server on the loopback that gives every request the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = respond

        def log_message(self, *_: object) -> None: ...

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}"
    finally:
        web.shutdown()
        web.server_close()
        thread.join()


@contextmanager
def silent() -> Iterator[str]:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, never listening: connections are refused
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
