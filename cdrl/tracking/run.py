"""One run's journal in MLflow: parameters once, metrics by step, pictures by step, files."""

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

import mlflow.exceptions
import yaml
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from PIL import Image

import cdrl
from cdrl.config import Config
from cdrl.errors import TrackingError
from cdrl.runs import RunRecord
from cdrl.tracking import server

__all__ = ["TrackedRun", "flatten"]

MAX_PARAM_CHARACTERS = 6000  # MLflow's limits
MAX_PARAMS, MAX_METRICS = 100, 1000
MAX_WAIT_S = 5.0  # a metric reaches the server at most this long after the next one was logged


class TrackedRun:
    """An open run on a tracking server. Made by `start` or `attach`; nothing of it is global.

    Attributes:
        uri: the tracking URI.
        mlflow_run_id: the run's id there, by which a resumed process finds it again.
    """

    def __init__(self, client: MlflowClient, uri: str, mlflow_run_id: str) -> None:
        self.uri, self.mlflow_run_id = uri, mlflow_run_id
        self._client = client
        self._metrics: list[Metric] = []
        self._flushed_s = time.monotonic()

    @classmethod
    def start(
        cls,
        config: Config,
        run_id: str,
        *,
        manifest_digest: str,
        uri: str | None = None,
        mlflow_run_id: str | None = None,
    ) -> "TrackedRun":
        """Begin a run named `run_id`, or with `mlflow_run_id` take up that one again and set it RUNNING.

        Parameters are logged when the run is made; a resumed run gets fresh tags and a fresh config.yaml.
        `uri` defaults to `config.tracking.uri`, then to SQLite under `config.run.root`.

        Raises:
            TrackingError: the server cannot be reached, the run is not there, or a parameter is too long to be stored.
        """
        uri = uri or config.tracking.uri or server.default_uri(config.run.root)
        params = [Param(name, value) for name, value in flatten(config).items()]
        tags = _tags(config, run_id, manifest_digest)
        client = server.connect(uri)
        with server.translated(uri):
            if mlflow_run_id is None:
                experiment = _experiment(client, config.tracking.experiment, uri)
                mlflow_run_id = client.create_run(experiment, run_name=run_id).info.run_id
                for part in _parts(params, MAX_PARAMS):
                    client.log_batch(mlflow_run_id, params=part)
            else:
                client.update_run(mlflow_run_id, status="RUNNING")
            client.log_batch(mlflow_run_id, tags=[RunTag(name, value) for name, value in tags.items()])
            text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            client.log_text(mlflow_run_id, text, "config.yaml")
            digests = {name: value for name, value in tags.items() if name.endswith("digest")}
            client.log_dict(mlflow_run_id, digests, "digests.json")
        return cls(client, uri, mlflow_run_id)

    @classmethod
    def attach(cls, record: RunRecord) -> "TrackedRun":
        """Write to the run of a record, e.g. its scores; its status stays as it is.

        Raises:
            TrackingError: the server cannot be reached or does not have the run.
        """
        client = server.connect(record.tracking_uri, create=False)
        with server.translated(record.tracking_uri):
            client.get_run(record.mlflow_run_id)
        return cls(client, record.tracking_uri, record.mlflow_run_id)

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers of one step. They travel in batches: see `flush`."""
        now_ms = int(time.time() * 1000)
        self._metrics += [Metric(name, float(value), now_ms, step) for name, value in values.items()]
        if len(self._metrics) >= MAX_METRICS or time.monotonic() - self._flushed_s > MAX_WAIT_S:
            self.flush()

    def history(self, name: str) -> dict[int, float]:
        """A metric by step; empty where it was never recorded. Of a step that was recorded twice, the newer value."""
        with server.translated(self.uri):
            found = self._client.get_metric_history(self.mlflow_run_id, name)
        return {metric.step: metric.value for metric in sorted(found, key=lambda metric: metric.timestamp)}

    def flush(self) -> None:
        """Send the waiting metrics. On an error they stay and the next call tries again.

        Raises:
            TrackingError: the server did not take them.
        """
        with server.translated(self.uri):
            for part in _parts(tuple(self._metrics), MAX_METRICS):
                self._client.log_batch(self.mlflow_run_id, metrics=part)
                del self._metrics[: len(part)]
        self._flushed_s = time.monotonic()

    def log_image(self, key: str, image: Image.Image, step: int) -> None:
        """Record a picture of one step: the same key at several steps makes a slider in the MLflow UI."""
        with server.translated(self.uri):
            self._client.log_image(self.mlflow_run_id, image, key=key, step=step)

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Keep a file (or a directory's files) with the run, under `folder`."""
        store = self._client.log_artifacts if Path(path).is_dir() else self._client.log_artifact
        with server.translated(self.uri):
            store(self.mlflow_run_id, str(path), folder)

    def describe(self, markdown: str, picture: str) -> None:
        """Show a text, and below it a picture among the run's artifacts, on the run's first page in the MLflow UI."""
        link = urlencode({"path": picture, "run_uuid": self.mlflow_run_id})
        self.set_tag("mlflow.note.content", f"{markdown}\n\n![{picture}](get-artifact?{link})")

    def set_tag(self, name: str, value: str) -> None:
        """Mark the run."""
        with server.translated(self.uri):
            self._client.set_tag(self.mlflow_run_id, name, value)

    def close(self, status: Literal["FINISHED", "KILLED", "FAILED"] = "FINISHED") -> None:
        """Send what waits and end the run: KILLED is an interrupted one that may be resumed."""
        self.flush()
        with server.translated(self.uri):
            self._client.set_terminated(self.mlflow_run_id, status)


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
    commit = _git_commit()
    return tags if commit is None else {**tags, "mlflow.source.git.commit": commit}


def _git_commit() -> str | None:
    """The checkout's commit, `-dirty` with uncommitted changes; None where the package is installed without one."""
    git = ["git", "-C", str(Path(cdrl.__file__).parent)]
    try:
        ours = subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True).returncode == 0
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip() if ours else None
    except (OSError, subprocess.CalledProcessError):  # no git on this machine, or a checkout that git refuses to read
        return None


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    if (experiment := client.get_experiment_by_name(name)) is not None:
        return experiment.experiment_id
    try:
        return client.create_experiment(name, artifact_location=server.artifact_location(uri))
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run of this moment may have been first
            raise
        return client.get_experiment_by_name(name).experiment_id


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
