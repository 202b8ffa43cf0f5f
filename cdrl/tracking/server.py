"""Reach a tracking server: where it is by default, a quick probe, and its errors in one line of our own."""

import fcntl
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from cdrl.errors import CdrlError, TrackingError, TrackingOutage

__all__ = ["artifact_location", "check", "connect", "default_uri", "hasty", "shown", "translated"]

ATTEMPTS, ANSWER = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
PROBE_S = 5
SQLITE = "sqlite:///"
SCHEMES = ("http", "https", "postgresql", "mysql", "mssql")
_ENVIRONMENT = threading.RLock()


def default_uri(root: str | Path) -> str:
    """The tracking URI of a folder of runs: a SQLite file in it, by absolute path."""
    return f"{SQLITE}{Path(root).absolute() / 'mlflow.db'}"


def artifact_location(uri: str) -> str | None:
    """Where a new experiment keeps its files: beside a SQLite file; None lets a server decide."""
    return str(_path(uri).parent / "mlartifacts") if uri.startswith(SQLITE) else None


def check(uri: str) -> None:
    """Refuse what can never be reached: another scheme, no host, a SQLite file that cannot be one.

    Raises:
        TrackingError: it is none; a server that does not answer now is no reason.
    """
    if uri.startswith(SQLITE):
        with _database(uri, create=True):
            return
    try:
        parts = urlsplit(uri)
        is_server = parts.scheme.partition("+")[0] in SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_server = False
    if not is_server:
        expected = "expected http://HOST:PORT, https://HOST or sqlite:////ABSOLUTE/PATH.db"
        raise TrackingError(f"tracking.uri: {shown(uri)!r} is no tracking server; {expected}")


def connect(uri: str, *, create: bool = True) -> MlflowClient:
    """A client of the server at `uri` (sqlite:///path, http://host:port, ...) that has answered once.

    Args:
        create: make a SQLite database that is not there; of several processes one does, the others wait for it.

    Raises:
        TrackingError: nothing answers, no database is there, or another program is. Takes at most about ten seconds.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _database(uri, create) if uri.startswith(SQLITE) else nullcontext(), translated(uri), hasty(PROBE_S):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def translated(uri: str, kind: type[CdrlError] = TrackingError) -> Iterator[None]:
    """Turn MLflow's errors into one line that names the server: of `kind`, or an outage where a later try may help."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, MlflowException | SQLAlchemyError | OSError) and not _is_of_store(error):
            raise
        passing = kind is TrackingError and (_status(error) in (408, 429) or _status(error) >= 500)
        raise (TrackingOutage if passing else kind)(f"MLflow at {shown(uri)}: {_reason(error)}") from error


def shown(uri: str) -> str:
    """A URI, or a text with one, without the name and password that may be in it."""
    return re.sub(r"//[^/@\s]*@", "//***@", uri)


@contextmanager
def hasty(timeout_s: int) -> Iterator[None]:
    """Within the block MLflow waits so long for an answer, and asks once.

    By itself it tries on for minutes; and it would make a second run where the answer to the first request was lost. It
    reads both from the environment of the process and nowhere else, so one thread at a time.
    """
    with _ENVIRONMENT:
        values = {ATTEMPTS: "0", ANSWER: str(timeout_s)}
        before = {name: os.environ.get(name) for name in values}
        os.environ.update(values)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def _database(uri: str, create: bool) -> Iterator[None]:
    """A SQLite file that is one, and that no other process creates within the block.

    MLflow retries a bad path for minutes, the file system knows at once; and two that make tables disturb each other.
    """
    path = _path(uri)
    if not create and not path.is_file():
        raise TrackingError(f"no tracking database at {path}; train a run first, or name the right folder or server")
    place = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with place.open("a") if create or place.exists() else nullcontext() as lock:
            if lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
            with closing(sqlite3.connect(path)) as database:
                database.execute("select count(*) from sqlite_master")
            yield
    except (OSError, sqlite3.Error) as error:
        raise TrackingError(f"MLflow at {uri}: cannot open the database: {error}") from None


def _path(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE)).absolute()


def _is_of_store(error: Exception) -> bool:
    """Whether it comes from the client of the object store that MLflow may keep files in."""
    return type(error).__module__.partition(".")[0] in ("boto3", "botocore", "urllib3")


def _status(error: Exception) -> int:
    """The HTTP status of an answer; 500 where there was none."""
    if status := re.search(r"failed with error code (\d{3})", str(error)):
        return int(status[1])
    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    return int(getattr(getattr(error, "response", None), "status_code", 500))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if re.search(r"NewConnectionError|NameResolution|ConnectTimeout|Read timed out|reset by peer|RemoteDisconn", text):
        return "no answer; is the server running and the address right?"
    if status := re.search(r"too many (\d{3}) error responses|error code (\d{3})", text):
        number = status[1] or status[2]
        return f"the server answers with HTTP status {number}; {_remedy(number)}"
    if "valid JSON" in text:
        return "the answer is not JSON: another program than MLflow listens there"
    return shown(text[:500])


def _remedy(status: str) -> str:
    user, is_complete = os.environ.get(USER), os.environ.get(USER) and os.environ.get(PASSWORD)
    match status:
        case "401":
            return f"{USER} or {PASSWORD} is wrong" if is_complete else f"set {USER} and {PASSWORD}"
        case "403":
            return f"the user of {USER}, {user!r}, may not do this"
    return "look at its log"
