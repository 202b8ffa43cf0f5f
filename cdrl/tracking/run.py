"""One run, tracked: everything goes to its journal on disk, and from there to MLflow when that takes it."""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from mlflow import MlflowClient
from PIL import Image

import cdrl
from cdrl import storage
from cdrl.config import Config
from cdrl.errors import TrackingError
from cdrl.pictures import png_bytes
from cdrl.runs import RunRecord
from cdrl.tracking import server, surroundings
from cdrl.tracking.journal import Journal
from cdrl.tracking.replica import LANES, Replica
from cdrl.tracking.sender import Sender, Watch

__all__ = ["TrackedRun", "flatten"]

MAX_PARAM_CHARACTERS = 6000  # MLflow's limit
KEPT = "kept"  # in the run's folder: files from elsewhere


class TrackedRun:
    """An open run. Made by `start` or `attach`; nothing of it is global.

    What is recorded stands in the journal when a call returns. The server gets it in the background after `follow`;
    before, metrics with `flush` and `close` and everything else at once, and these raise what the server says.

    Attributes:
        uri: the tracking URI.
        trouble: why the first contact failed.
    """

    def __init__(self, journal: Journal, replica: Replica) -> None:
        self.uri = replica.uri
        self.trouble: TrackingError | None = None
        self._journal, self._replica = journal, replica
        self._reader: MlflowClient | None = None
        self._step = self._num_torn = 0
        self._background: tuple[Watch, Sender] | None = None
        self._tell: Callable[[str], None] = lambda text: None

    @classmethod
    def start(
        cls,
        config: Config,
        run_id: str,
        *,
        manifest_digest: str,
        uri: str | None = None,
        mlflow_run_id: str | None = None,
        on_contact: Callable[[str], None] | None = None,
    ) -> "TrackedRun":
        """Begin a run named `run_id`, or take it up again where its folder has a journal, and set it RUNNING.

        Parameters are recorded once; a resumed run gets fresh tags and a fresh config.yaml. An attempt that died
        without an end is KILLED. That the server is away is no error: see `trouble`.

        Args:
            uri: default: `config.tracking.uri`, then SQLite under `config.run.root`.
            mlflow_run_id: the run at the server, where the journal does not know it.
            on_contact: called with the run's id there, perhaps by another thread, when it is made later than now.

        Raises:
            TrackingError: the URI is none, or a parameter is too long to be stored.
        """
        uri = uri or config.tracking.uri or server.default_uri(config.run.root)
        params, tags = flatten(config), _tags(config, run_id, manifest_digest)
        server.check(uri)
        journal = Journal(Path(config.run.root) / run_id)
        run = cls(journal, Replica(journal, uri, mlflow_run_id or "", on_contact))
        run._num_torn = journal.mend()
        status = journal.last("status")
        if status is None and journal.last("start") is None and not mlflow_run_id:
            names = {"run": run_id, "experiment": config.tracking.experiment, "key": uuid.uuid4().hex}
            journal.append("start", **names, params=params)
        elif status and status["status"] == "RUNNING":
            journal.append("status", status="KILLED")
        journal.append("status", status="RUNNING")
        journal.append("tags", values=tags)
        digests = {name: value for name, value in tags.items() if name.endswith("digest")}
        for name, content in (("digests", digests), ("environment", surroundings.environment())):
            journal.append("text", path=f"{name}.json", text=json.dumps(content, indent=2))
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        journal.append("text", path="config.yaml", text=text)
        try:
            run.flush()
        except TrackingError as error:
            run.trouble = error
        return run

    @classmethod
    def attach(cls, record: RunRecord) -> "TrackedRun":
        """Write to the run of a record, e.g. its scores; its status stays as it is.

        Raises:
            TrackingError: the server cannot be reached or does not have the run.
        """
        is_placed = record.directory != Path()  # written or read
        journal = Journal(record.directory if is_placed else Path(record.config.run.root) / record.run_id)
        run = cls(journal, Replica(journal, record.tracking_uri, record.mlflow_run_id))
        if not run.mlflow_run_id:
            run.flush()  # the server was away so far
        run._reader = server.connect(record.tracking_uri, create=False)
        with server.translated(record.tracking_uri):
            run._reader.get_run(run.mlflow_run_id)
        return run

    @property
    def mlflow_run_id(self) -> str:
        """The run's id at the server, by which a resumed process finds it again; "" before the first contact."""
        return self._replica.mlflow_run_id

    def follow(self, tell: Callable[[str], None]) -> None:
        """Send from now on in the background, and note how busy the machine is; `close` ends it.

        Args:
            tell: gets a line when the server goes, comes back or refuses something.
        """
        self._tell = tell
        if self._num_torn:
            tell(f"the journal's last line was torn when its writer was killed: {self._num_torn} bytes are left out")
        if self.trouble:
            tell(f"{self.trouble}; training goes on, the journal keeps everything")
        watch = Watch(self._journal, lambda: self._step)
        self._background = watch, Sender(self._replica, tell, self.trouble)

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""
        self._step = step
        self._journal.append("metrics", step=step, values={name: float(value) for name, value in values.items()})

    def history(self, name: str) -> dict[int, float]:
        """A metric by step; empty where it was never recorded. Of a step that was recorded twice, the newer value."""
        self._reader = self._reader or server.connect(self.uri, create=False)
        with server.translated(self.uri):
            found = self._reader.get_metric_history(self.mlflow_run_id, name)
        return {metric.step: metric.value for metric in sorted(found, key=lambda metric: metric.timestamp)}

    def log_image(self, key: str, image: Image.Image, step: int) -> None:
        """Keep a picture of one step as `KEY/STEP.png` in the run's folder; in MLflow's UI the key gets a slider."""
        name = f"{key}/{step:08d}.png"
        storage.write_bytes(str(self._journal.directory / name), png_bytes(image))
        self._journal.append("image", key=key, step=step, file=name)
        self._recorded()

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Keep a file (or a directory's files) with the run, under `folder`."""
        path = Path(path)
        for file in sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]:
            parts = [*([folder] if folder else []), *(file.relative_to(path).parts[:-1] if path.is_dir() else ())]
            self._journal.append("file", file=self._name(file, parts), folder="/".join(parts) or None)
        self._recorded()

    def describe(self, markdown: str, picture: str) -> None:
        """Show a text, and below it a picture among the run's artifacts, on the run's first page in the MLflow UI."""
        self._journal.append("note", markdown=markdown, picture=picture)
        self._recorded()

    def set_tag(self, name: str, value: str) -> None:
        """Mark the run."""
        self._journal.append("tags", values={name: value})
        self._recorded()

    def flush(self) -> None:
        """Send what the server does not have.

        Raises:
            TrackingError: the server did not take it; it stays in the journal.
        """
        for lane in LANES:
            self._replica.send(lane)

    def close(self, status: Literal["FINISHED", "KILLED", "FAILED"] = "FINISHED") -> None:
        """End the run: KILLED is an interrupted one that may be resumed. Then send what waits, if the server is there.

        Raises:
            TrackingError: as `flush`, but not after `follow`.
        """
        if self._background is None:
            self._journal.append("status", status=status)
            self.flush()
            return
        watch, sender = self._background
        self._background = None
        watch.end()
        self._journal.append("status", status=status)
        if waiting := sender.end():
            where = self._journal.directory
            self._tell(f"{waiting} entries of the journal wait for MLflow; `cdrl track sync {where}` sends them")

    def _recorded(self) -> None:
        if self._background is None:
            self.flush()

    def _name(self, file: Path, parts: list[str]) -> str:
        """A file's place relative to the run's folder, into which it is copied from elsewhere."""
        here = self._journal.directory.resolve()
        if not file.resolve().is_relative_to(here):
            copy = here.joinpath(KEPT, *parts, file.name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            file = Path(shutil.copyfile(file, copy))
        return file.resolve().relative_to(here).as_posix()


def flatten(config: Config) -> dict[str, str]:
    """The configuration as MLflow parameters: dotted names, values in JSON (strings bare).

    Raises:
        TrackingError: a value is longer than MLflow stores; it would have been cut.
    """
    flat = dict(_leaves(config.model_dump(mode="json")))
    for name, value in flat.items():
        if len(value) > MAX_PARAM_CHARACTERS:
            raise TrackingError(
                f"setting {name} has {len(value)} characters, MLflow stores at most {MAX_PARAM_CHARACTERS}; shorten it"
            )
    return flat


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)


def _tags(config: Config, run_id: str, manifest_digest: str) -> dict[str, str]:
    tags = {
        "cdrl.run_id": run_id,
        "cdrl.version": cdrl.__version__,
        "cdrl.config_digest": config.digest,
        "cdrl.manifest_digest": manifest_digest,
        "mlflow.source.name": "cdrl train",
    }
    commit = surroundings.git_commit()
    return tags if commit is None else {**tags, "mlflow.source.git.commit": commit}
