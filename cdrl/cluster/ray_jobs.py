"""Jobs of a Ray cluster that is there, through its dashboard."""

import json
import os
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cdrl import storage
from cdrl.cluster.jobs import Job, check_new, find, job_id, newest
from cdrl.cluster.spec import check_name
from cdrl.errors import ClusterError, ClusterOutage, ConfigError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

__all__ = ["RayJobs", "connect", "token"]

ANSWER_S = 30
READY_S = 120
NAME, ATTEMPT = "cdrl_job", "cdrl_attempt"
SET_TOKEN = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it"


def token() -> str | None:
    """The token of the environment, or of the file that it names.

    Raises:
        ConfigError: there is no such file, or what is given can be no token.
    """
    given, path = os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not given and path:
        try:
            given = Path(path).read_text(errors="replace").strip()
        except OSError as error:
            raise ConfigError(f"RAY_AUTH_TOKEN_PATH: cannot read {path}: {error.strerror}") from None
    if given and not re.fullmatch(r"[!-~]+", given):  # the HTTP library would show it in its complaint
        raise ConfigError("RAY_AUTH_TOKEN: expected printable ASCII without spaces")
    return given or None


def connect(address: str) -> "JobSubmissionClient":
    """A client of the dashboard at http(s)://HOST:PORT that has answered once.

    Raises:
        ConfigError: not such an address.
        ClusterError: another program answers, or the token is wrong or missing.
        ClusterOutage: nothing answers.
    """
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable or "@" in address:  # a password in an argument shows in the list of processes
        shown = f"***@{address.rpartition('@')[2]}" if "@" in address else address
        raise ConfigError(f"--address {shown!r}: expected local, http://HOST:8265 or kuberay; {SET_TOKEN}")
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
            return super()._do_request(method, endpoint, timeout=ANSWER_S, **more)  # by itself it waits for ever

    secret = token()
    with _translated(address), _deaf():
        return Client(address, headers={"Authorization": f"Bearer {secret}"} if secret else None)


class RayJobs:
    """The jobs of one Ray cluster. What was submitted is also kept here, for when the cluster is gone.

    Args:
        address: of its dashboard, http(s)://HOST:PORT.
        root: the folder of runs; records go to its folder `jobs`.
    """

    def __init__(self, address: str, root: str = "runs") -> None:
        self._address, self._records = address, str(Path(root) / "jobs")
        self._client = connect(address)

    def submit(self, name: str, command: Sequence[str]) -> str:
        """Begin `cdrl COMMAND`; returns the id of the job.

        Raises:
            ConfigError: not a name, or there is such a job.
        """
        check_name(name)
        check_new(self.jobs(), name)
        return self._begin(name, 1, shlex.join(["cdrl", *command]))

    def jobs(self) -> list[Job]:
        """All jobs that cdrl submitted, the oldest first."""
        with _translated(self._address):
            found = self._client.list_jobs()
        jobs = [_job(details) for details in found if NAME in (details.metadata or {})]
        return sorted(jobs, key=lambda job: (job.began is None, job.began))

    def job(self, ref: str) -> Job:
        """The job of an id, or the newest attempt of a name.

        Raises:
            ClusterError: no such job.
        """
        return find(self.jobs(), ref, f"at {self._address}")

    def logs(self, job: Job) -> str:
        """What it has written so far."""
        with _translated(self._address):
            return str(self._client.get_job_logs(job.id))

    def stop(self, job: Job) -> None:
        """Ask it to end after a checkpoint.

        Raises:
            ClusterError: it has ended.
        """
        if job.finished:
            raise ClusterError(f"job {job.id}: it has ended already: {job.status}")
        with _translated(self._address):
            self._client.stop_job(job.id)

    def resume(self, ref: str) -> str:
        """Begin the same command again under the next attempt; it goes on from its checkpoints.

        The record that was kept here serves where the cluster is a new one.

        Raises:
            ClusterError: it has not ended, or nobody knows such a job.
        """
        before = newest(self.jobs(), ref)
        if before is None:
            content = storage.find_bytes(storage.join(self._records, f"{check_name(ref)}.json"))
            if content is None:
                self.job(ref)  # which says what there is
            try:
                kept = json.loads(content or b"")
                return self._begin(str(kept["name"]), int(kept["attempt"]) + 1, str(kept["line"]))
            except (ValueError, KeyError, TypeError):
                raise ClusterError(f"{self._records}/{ref}.json: damaged; submit the command again") from None
        if not before.finished:
            raise ClusterError(f"job {before.id}: it is {before.status}; stop it before it is resumed")
        latest = newest(self.jobs(), before.name) or before
        return self._begin(before.name, latest.attempt + 1, before.line)

    def _begin(self, name: str, attempt: int, line: str) -> str:
        identity = {"submission_id": job_id(name, attempt), "metadata": {NAME: name, ATTEMPT: str(attempt)}}
        begin_s = time.monotonic()
        while True:
            try:
                with _translated(self._address):
                    begun = str(self._client.submit_job(entrypoint=line, **identity))
                break
            except ClusterOutage as outage:  # a dashboard answers before the machine behind it is ready
                if "No available agent" not in str(outage) or time.monotonic() - begin_s > READY_S:
                    raise
                time.sleep(1)
        record = json.dumps({"name": name, "attempt": attempt, "line": line, "address": self._address}, indent=1)
        storage.write_bytes(storage.join(self._records, f"{name}.json"), record.encode())
        return begun


def _job(details: Any) -> Job:
    """A job of Ray as one of ours."""
    status = str(details.status)
    message = (details.message or "").partition(", last available logs")[0].partition("\n")[0]
    return Job(
        id=details.submission_id,
        name=details.metadata[NAME],
        attempt=int(details.metadata.get(ATTEMPT, "1")),
        status=status,
        line=details.entrypoint,
        message=message,
        exit_code=details.driver_exit_code,
        began=_time(details.start_time),
        ended=_time(details.end_time),
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


@contextmanager
def _deaf() -> Iterator[None]:
    """Within the block Ray cannot take another address from the environment than the one that it is given."""
    heard = {name: os.environ.pop(name, None) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in heard.items() if value is not None})


@contextmanager
def _translated(address: str) -> Iterator[None]:
    """One line of our own for whatever Ray's client raises."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        known = "the token is wrong" if token() else "it wants a token"
        raise ClusterError(f"Ray at {address} refuses: {known}; {SET_TOKEN} ({_line(error, 60)})") from None
    except ValueError as error:  # also what requests raises of an answer that is not JSON
        raise ClusterError(f"{address}: another program than Ray listens there: {_line(error, 100)}") from None
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is None and isinstance(error, OSError):
            how = f"none in {ANSWER_S} s" if "Timeout" in type(error).__name__ else "no connection"
            reason = f"{how}; is the cluster running and the address right?"
            raise ClusterOutage(f"no Ray dashboard answers at {address}: {reason}") from None
        kind = ClusterOutage if "status code 5" in str(error) or (status or 0) >= 500 else ClusterError
        raise kind(f"Ray at {address}: {_line(error)}") from None


def _line(error: Exception, most: int = 300) -> str:
    return " ".join(str(error).split())[:most]
