"""The registry: the versions of each model on an MLflow server, made from runs and read back as models."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow.artifacts
import torch
from mlflow.entities import LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from cdrl.config import ComputeConfig
from cdrl.errors import RegistryError
from cdrl.evaluation.protocol import Protocol, ScoreCard, Scores
from cdrl.model import Model
from cdrl.registry import package
from cdrl.runs import RunRecord, Which, fetch_model
from cdrl.tracking import server

__all__ = ["CHAMPION", "Registry", "Version"]

CHAMPION = "champion"
REFERENCE = re.compile(r"(?:models:/)?(?P<name>[^/@:]+)(?:/(?P<version>[^/@]+)|@(?P<alias>[^/@]+))")


@dataclass(frozen=True)
class Version:
    """One version of a registered model, as its tags tell it.

    Attributes:
        run_id: the run that made it.
        model_digest: `Model.digest` of what it holds.
        scorecard: what was measured on exactly these weights; None if nothing was, or unreadable to this cdrl.
        gate: what the last attempt to promote it said; empty before the first.
        files: URI of its files.
    """

    name: str
    number: int
    run_id: str
    model_digest: str
    scorecard: ScoreCard | None
    gate: str
    aliases: tuple[str, ...]
    created: datetime
    files: str


class Registry:
    """The registered models of one tracking server.

    Raises:
        TrackingError: the server cannot be reached, or there is no such database.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.client = server.connect(uri, create=False)

    def names(self) -> list[str]:
        """Every registered model."""
        with self._translated():
            return sorted(model.name for model in self.client.search_registered_models(max_results=1000))

    def versions(self, name: str) -> list[Version]:
        """The versions of a model, oldest first; none if nobody registered it."""
        with self._translated():
            if (aliases := self._aliases(name)) is None:
                return []
            found = self.client.search_model_versions(f"name = '{name}'", max_results=10_000)
            return sorted((_version(entry, aliases) for entry in found), key=lambda version: version.number)

    def find(self, reference: str) -> Version:
        """The version that `NAME/3`, `NAME/latest`, `NAME/RUN` or `NAME@alias` means, perhaps behind `models:/`.

        `NAME/RUN` is the newest version that a run made.

        Raises:
            RegistryError: it is none of these, or no such version exists.
        """
        if (match := REFERENCE.fullmatch(reference)) is None:
            expected = "expected NAME/3, NAME/latest, NAME/RUN or NAME@champion"
            raise RegistryError(f"{reference!r} is no model version; {expected}")
        name, asked, alias = match["name"], match["version"], match["alias"]
        versions = self.versions(name)
        for version in reversed(versions):
            if alias in version.aliases or asked in (str(version.number), "latest", version.run_id):
                return version
        if not versions:
            known = ", ".join(self.names()) or "none"
            raise RegistryError(f"no model {name!r} at {server.shown(self.uri)}; registered there: {known}")
        described = ", ".join("@".join((str(version.number), *version.aliases)) for version in versions)
        raise RegistryError(f"no version {reference!r} at {server.shown(self.uri)}; versions: {described}")

    def register(self, run: str, *, which: Which = "best", root: str = "runs") -> Version:
        """Make a version of a run's checkpoint, with the score card that was measured on it.

        The same weights with the same scores under the same protocol are registered once: that version is returned
        again. A version appears when all its files are in place.

        Args:
            run: a run id, a unique prefix of one, or a run directory. This server must have tracked it.

        Raises:
            ConfigError: no such run, or no checkpoint yet.
            RegistryError: the checkpoint is no model, or the server does not know the run or refuses the model.
        """
        record = RunRecord.read(run, root)
        name = record.config.name
        source = fetch_model(str(record.directory), which)
        model = Model.load(source)
        card = package.scorecard(record.directory, model)
        for version in self.versions(name):
            if version.model_digest == model.digest and _figures(version.scorecard) == _figures(card):
                return version
        tags = _tags(record, model, card)
        with TemporaryDirectory() as scratch, self._translated():
            run_info = self.client.get_run(record.mlflow_run_id).info
            files = Path(scratch, "model")
            package.save(source, model, card, files)
            logged = self.client.create_logged_model(run_info.experiment_id, name, run_info.run_id, tags)
            self.client.log_model_artifacts(logged.model_id, str(files))
            self.client.finalize_logged_model(logged.model_id, "READY")
            self.client.log_outputs(run_info.run_id, [LoggedModelOutput(logged.model_id, model.step)])
            if self._aliases(name) is None:
                self.client.create_registered_model(name)
            made = self.client.create_model_version(
                name, logged.artifact_location, run_info.run_id, tags, model_id=logged.model_id
            )
        return self.find(f"{name}/{made.version}")

    def load(
        self,
        reference: str,
        device: torch.device | str = "cpu",
        compute: ComputeConfig = ComputeConfig(),  # noqa: B008 - frozen
    ) -> Model:
        """Fetch a version's package and read its model: see `find` for references."""
        version = self.find(reference)
        with TemporaryDirectory() as scratch:
            with self._translated():
                uri = f"{version.files}/{package.FOLDER}"
                folder = mlflow.artifacts.download_artifacts(uri, dst_path=scratch, tracking_uri=self.uri)
            return Model.load(folder, device, compute)

    def _aliases(self, name: str) -> dict[str, str] | None:
        """Alias -> version of a model; None if there is no such model."""
        try:
            return dict(self.client.get_registered_model(name).aliases)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        with server.translated(self.uri, RegistryError):
            yield


def _figures(card: ScoreCard | None) -> tuple[Protocol, Scores, Scores | None] | None:
    """A card without its time: what two measurements of the same thing share."""
    return None if card is None else (card.protocol, card.scores, card.k0)


def _tags(record: RunRecord, model: Model, card: ScoreCard | None) -> dict[str, str]:
    tags = {
        "cdrl.run_id": record.run_id,
        "cdrl.model_digest": model.digest,
        "cdrl.config_digest": model.config.digest,
        "cdrl.manifest_digest": model.manifest_digest,
    }
    return tags if card is None else {**tags, "cdrl.scorecard": card.model_dump_json()}


def _version(entry: ModelVersion, aliases: dict[str, str]) -> Version:
    try:
        card = ScoreCard.model_validate_json(entry.tags.get("cdrl.scorecard", ""))
    except ValidationError:
        card = None
    return Version(
        name=entry.name,
        number=int(entry.version),
        run_id=entry.tags.get("cdrl.run_id", ""),
        model_digest=entry.tags.get("cdrl.model_digest", ""),
        scorecard=card,
        gate=entry.tags.get("cdrl.gate", ""),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if str(number) == str(entry.version))),
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        files=entry.source,
    )
