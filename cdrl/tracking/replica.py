"""The replica of a journal on an MLflow server: sends what the server does not have yet, as often as it takes."""

import fcntl
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from cdrl import storage
from cdrl.errors import TrackingError
from cdrl.tracking import server
from cdrl.tracking.batches import MAX_METRICS, batches
from cdrl.tracking.journal import Entry, Journal

__all__ = ["LANES", "Replica"]

LANES = {
    "records": ("start", "tags", "note", "status", "metrics"),
    "files": ("text", "image", "file"),  # go another way: a full file store holds up no metric
}
MAX_PARAMS = 100  # MLflow takes no more in a request
ANSWER_S = 15  # how long a request may take
KEY = "cdrl.journal"  # the tag by which a run is found again


class Sent(BaseModel):
    """How far a server has come: `sent.json` beside the journal, written after the server took what it tells.

    Attributes:
        uri: of the server; on another one nothing is known of the run.
        offsets: lane -> the byte of the journal behind the last entry that was taken.
    """

    model_config = ConfigDict(extra="forbid")

    uri: str
    mlflow_run_id: str
    offsets: dict[str, int] = Field(default_factory=lambda: dict.fromkeys(LANES, 0))


class Replica:
    """One run on one server. What is sent twice is there once: a process may die at any place of it.

    Args:
        uri: the server.
        mlflow_run_id: the run there; "" = that of `sent.json`, or one that is made at the first contact.
        on_contact: called with the run's id when the run was made or found.

    Attributes:
        gone: files that the journal names, and that are no longer there or damaged; the server does without them.
    """

    def __init__(
        self, journal: Journal, uri: str, mlflow_run_id: str = "", on_contact: Callable[[str], None] | None = None
    ) -> None:
        self.journal, self.uri = journal, uri
        self._given, self._on_contact = mlflow_run_id, on_contact
        self._place = journal.directory / "sent.json"
        self._client: MlflowClient | None = None
        self._is_sure = False  # that no picture was sent without being remembered
        self._clear_to = dict.fromkeys(LANES, 0)
        self.gone: list[str] = []

    @property
    def mlflow_run_id(self) -> str:
        """The run's id; "" before the first contact."""
        return self._sent().mlflow_run_id

    def pending(self) -> dict[str, int]:
        """Entries that the server does not have yet, by kind."""
        counts: dict[str, int] = {}
        for lane in LANES:
            for _, entry in self._entries(lane, self._sent()):
                counts[entry["kind"]] = counts.get(entry["kind"], 0) + 1
        return counts

    def send(
        self,
        lane: str,
        *,
        stop: Callable[[], bool] = lambda: False,
        advance: Callable[[Sequence[Entry]], None] = lambda batch: None,
    ) -> None:
        """Bring one of the `LANES` up to date.

        Args:
            stop: asked before each request whether to leave the rest for later.
            advance: called with the entries that the server has taken.

        Raises:
            TrackingOutage: the server does not answer; what it took is remembered.
            TrackingError: it refuses an entry.
        """
        if self._is_clear(lane):
            return
        with server.translated(self.uri), self._alone(), server.hasty(ANSWER_S):
            self.journal.persist()
            sent = self._sent()
            for end, batch in batches(self._entries(lane, sent)):
                if stop():
                    return
                try:
                    self._client = self._client or server.connect(self.uri, create=not sent.mlflow_run_id)
                    if not sent.mlflow_run_id:
                        self._contact(self._client, sent)
                    self._send(self._client, sent.mlflow_run_id, batch)
                except Exception:
                    self._is_sure = False
                    raise
                sent.offsets[lane] = end
                self._keep(sent)
                advance(batch)

    def _contact(self, client: MlflowClient, sent: Sent) -> None:
        """Make the run, or find it where a process died before it could note the id."""
        start = next((entry for _, entry in self.journal.entries() if entry["kind"] == "start"), None)
        if start is None:
            raise TrackingError(f"{self.journal.directory}: its journal has no beginning; no run can be made of it")
        experiment = _experiment(client, start["experiment"], self.uri)
        found = client.search_runs([experiment], f"tags.`{KEY}` = '{start['key']}'", max_results=1)
        if found:
            sent.mlflow_run_id = found[0].info.run_id
        else:
            tags = {KEY: start["key"]}
            made = client.create_run(experiment, start_time=start["time"], tags=tags, run_name=start["run"])
            sent.mlflow_run_id = made.info.run_id
        self._keep(sent)
        if self._on_contact:
            self._on_contact(sent.mlflow_run_id)

    def _send(self, client: MlflowClient, run: str, batch: Sequence[Entry]) -> None:
        entry = batch[-1]
        match entry["kind"]:
            case "metrics":
                values = [(each, pair) for each in batch for pair in each["values"].items()]
                metrics = [Metric(name, value, each["time"], each["step"]) for each, (name, value) in values]
                for first in range(0, len(metrics), MAX_METRICS):
                    client.log_batch(run, metrics=metrics[first : first + MAX_METRICS])
            case "start":
                params = [Param(name, value) for name, value in entry["params"].items()]
                for first in range(0, len(params), MAX_PARAMS):
                    client.log_batch(run, params=params[first : first + MAX_PARAMS])
            case "tags":
                client.log_batch(run, tags=[RunTag(name, value) for name, value in entry["values"].items()])
            case "note":
                link = urlencode({"path": entry["picture"], "run_uuid": run})
                text = f"{entry['markdown']}\n\n![{entry['picture']}](get-artifact?{link})"
                client.set_tag(run, "mlflow.note.content", text)
            case "status":
                if entry["status"] == "RUNNING":
                    client.update_run(run, status="RUNNING")
                else:
                    client.set_terminated(run, entry["status"], entry["time"])
            case "text":
                client.log_text(run, entry["text"], entry["path"])
            case "image":
                self._send_image(client, run, entry)
            case "file" if self._file(entry).is_file():
                client.log_artifact(run, str(self._file(entry)), entry["folder"])
            case "file":
                self.gone.append(entry["file"])

    def _send_image(self, client: MlflowClient, run: str, entry: Entry) -> None:
        """Send a picture. MLflow would give it a second random name if it came again."""
        stem = f"images/{entry['key'].replace('/', '~')}+step+{entry['step']}+timestamp+{entry['time']}+"
        if not self._is_sure:
            there = [artifact.path for artifact in client.list_artifacts(run, "images")]
            if any(path.startswith(stem) and "+compressed" in path for path in there):
                return
            self._is_sure = True
        try:
            image = Image.open(io.BytesIO(self._file(entry).read_bytes()))
            image.load()
        except OSError:
            self.gone.append(entry["file"])
            return
        client.log_image(run, image, key=entry["key"], step=entry["step"], timestamp=entry["time"])

    def _file(self, entry: Entry) -> Path:
        """Where an entry's file lies.

        Raises:
            TrackingError: it is no file of the run.
        """
        path = self.journal.directory / entry["file"]
        if not path.resolve().is_relative_to(self.journal.directory.resolve()):
            raise TrackingError(f"{self.journal.directory}: its journal names {entry['file']!r}, no file of the run")
        return path

    def _is_clear(self, lane: str) -> bool:
        """Whether nothing waits; what was looked through is not read again, for a run of many days."""
        for end, entry in self.journal.entries(max(self._sent().offsets[lane], self._clear_to[lane])):
            if entry["kind"] in LANES[lane]:
                return False
            self._clear_to[lane] = end
        return True

    def _entries(self, lane: str, sent: Sent) -> Iterator[tuple[int, Entry]]:
        found = self.journal.entries(sent.offsets[lane])
        return ((end, entry) for end, entry in found if entry["kind"] in LANES[lane])

    def _sent(self) -> Sent:
        content = storage.find_bytes(str(self._place))
        if content is not None:
            try:
                sent = Sent.model_validate_json(content)
            except ValueError:  # all is sent again: what is there already stays as it is
                sent = Sent(uri="", mlflow_run_id="")
            if sent.uri == server.shown(self.uri) and self._given in ("", sent.mlflow_run_id):
                return sent
        return Sent(uri=server.shown(self.uri), mlflow_run_id=self._given)

    def _keep(self, sent: Sent) -> None:
        storage.write_bytes(str(self._place), sent.model_dump_json().encode())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One sender at a time, of all processes."""
        with (self.journal.directory / ".sender").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    if (experiment := client.get_experiment_by_name(name)) is not None:
        return str(experiment.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=server.artifact_location(uri)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run of this moment may have been first
            raise
        return str(client.get_experiment_by_name(name).experiment_id)
