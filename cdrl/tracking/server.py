"""Reach a tracking server: where it is by default, a quick probe, and its errors in one line of our own."""

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from cdrl.errors import CdrlError, TrackingError

__all__ = ["artifact_location", "connect", "default_uri", "shown", "translated"]

# MLflow waits minutes for a server that restarts, as a long training run wants; a first contact shall not.
PROBE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
}
SQLITE = "sqlite:///"


def default_uri(root: str | Path) -> str:
    """The tracking URI of a folder of runs: a SQLite file in it, by absolute path."""
    return f"{SQLITE}{Path(root).absolute() / 'mlflow.db'}"


def artifact_location(uri: str) -> str | None:
    """Where a new experiment keeps its files: beside a SQLite file; None lets a server decide."""
    return str(Path(uri.removeprefix(SQLITE)).absolute().parent / "mlartifacts") if uri.startswith(SQLITE) else None


def connect(uri: str, *, create: bool = True) -> MlflowClient:
    """A client of the server at `uri` (sqlite:///path, http://host:port, ...) that has answered once.

    Args:
        create: make a SQLite database that is not there.

    Raises:
        TrackingError: nothing answers, no database is there, or another program is. Takes at most about ten seconds.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if uri.startswith(SQLITE):
        _probe_sqlite(uri, create)
    with translated(uri), _environment(PROBE):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def translated(uri: str, kind: type[CdrlError] = TrackingError) -> Iterator[None]:
    """Turn MLflow's errors into one line of `kind` that names the server."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise kind(f"MLflow at {shown(uri)}: {_reason(error)}") from error


def shown(uri: str) -> str:
    """A URI, or a text with one, without the name and password that may be in it."""
    return re.sub(r"//[^/@\s]*@", "//***@", uri)


def _probe_sqlite(uri: str, create: bool) -> None:
    """MLflow retries a bad SQLite path for minutes; the file system knows at once."""
    path = Path(uri.removeprefix(SQLITE))
    if not create and not path.is_file():
        raise TrackingError(f"no tracking database at {path}; train a run first, or name the right folder or server")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as database:
            database.execute("select count(*) from sqlite_master")
    except (OSError, sqlite3.Error) as error:
        raise TrackingError(f"MLflow at {uri}: cannot open the database: {error}") from None


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while: MLflow reads its HTTP patience from nowhere else."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if re.search(r"NewConnectionError|NameResolution|ConnectTimeout|Read timed out|reset by peer|RemoteDisconn", text):
        return "no answer; is the server running and the address right?"
    if status := re.search(r"too many (\d{3}) error responses|error code (\d{3})", text):
        return f"the server answers with HTTP status {status[1] or status[2]}; look at its log"
    if "valid JSON" in text:
        return "the answer is not JSON: another program than MLflow listens there"
    return shown(text[:500])
