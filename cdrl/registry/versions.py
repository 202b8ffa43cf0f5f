"""The registry: the versions of each model on an MLflow server, read back as models."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow.artifacts
import torch
from mlflow.exceptions import MlflowException

from cdrl import storage
from cdrl.config import ComputeConfig, Config
from cdrl.errors import RegistryError
from cdrl.model import Model
from cdrl.registry import proof
from cdrl.registry.history import History
from cdrl.registry.version import Version, version_of
from cdrl.runs import Which
from cdrl.tracking import server

__all__ = ["CHAMPION", "Registry", "Version"]

CHAMPION = "champion"
HISTORY_TAG = "cdrl.history"
REFERENCE = re.compile(r"(?:models:/)?(?P<name>[^/@:]+)(?:/(?P<version>[^/@]+)|@(?P<alias>[^/@]+))")


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
        with self.translated():
            return sorted(model.name for model in self.client.search_registered_models(max_results=1000))

    def versions(self, name: str) -> list[Version]:
        """The versions of a model, oldest first; none if nobody registered it."""
        with self.translated():
            if (aliases := self.aliases(name)) is None:
                return []
            found = self.client.search_model_versions(f"name = '{name}'", max_results=10_000)
            return sorted((version_of(entry, aliases) for entry in found), key=lambda version: version.number)

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
        """Make a version of a run's checkpoint: see `publish.register`."""
        from cdrl.registry.publish import register

        return register(self, run, which=which, root=root)

    def load(
        self,
        reference: str,
        device: torch.device | str = "cpu",
        compute: ComputeConfig = ComputeConfig(),  # noqa: B008 - frozen
    ) -> Model:
        """Fetch a version's package, check it against its proof and read its model: see `find` for references.

        Raises:
            RegistryError: there is no such version, or its package is not what was registered.
        """
        with self.package(self.find(reference)) as package:
            return Model.load(package, device, compute)

    @contextmanager
    def package(self, version: Version) -> Iterator[Path]:
        """A copy of a version's package, checked against its proof."""
        with self.fetched(version, proof.FOLDER) as package:
            if version.proof_digest:  # a version of an older cdrl has none; its weights are checked all the same
                proof.check_package(package, version.proof_digest)
            yield package

    @contextmanager
    def fetched(self, version: Version, below: str = "") -> Iterator[Path]:
        """A copy of a version's files, or of a folder among them, without the bytecode that Python leaves there."""
        with TemporaryDirectory(prefix="cdrl-version-") as scratch:
            with self.translated():
                uri = f"{version.files}/{below}".rstrip("/")
                folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=scratch, tracking_uri=self.uri))
            for cache in [*folder.rglob("__pycache__")]:
                shutil.rmtree(cache)
            yield folder

    def history(self, name: str) -> History:
        """Who was champion of a model, when and why.

        Raises:
            RegistryError: no such model, or it was registered by a cdrl that kept none.
        """
        with self.translated():
            if self.aliases(name) is None:
                self.find(f"{name}/latest")  # says which models there are
            told = self.client.get_registered_model(name).tags.get(HISTORY_TAG)
        if not told:
            raise RegistryError(f"model {name!r} has no history yet; register a run of it again, which begins one")
        if storage.is_local(told) and not storage.local_path(told).is_absolute():
            raise RegistryError(f"model {name!r}: tag {HISTORY_TAG}: expected an absolute path or s3://, got {told!r}")
        return History(told, name)

    def ensure_history(self, name: str, config: Config) -> None:
        """Make the registered model, with a history from its beginning; of a model without one it begins here."""
        with self.translated():
            aliases = self.aliases(name)
            if aliases is not None and HISTORY_TAG in self.client.get_registered_model(name).tags:
                return
            champion = (aliases or {}).get(CHAMPION)
            number, why = (None, "no champion yet") if champion is None else (int(champion), "it was champion already")
            made = History.found(self._history_root(config), name, champion=number, why=(why,))
            if aliases is not None:
                self.client.set_registered_model_tag(name, HISTORY_TAG, made.uri)
                return
            try:
                self.client.create_registered_model(name, tags={HISTORY_TAG: made.uri})
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another registration of this moment was first
                    raise

    def aliases(self, name: str) -> dict[str, str] | None:
        """Alias -> version of a model; None if there is no such model."""
        try:
            return dict(self.client.get_registered_model(name).aliases)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    @contextmanager
    def translated(self) -> Iterator[None]:
        """MLflow's errors as a `RegistryError` of one line."""
        with server.translated(self.uri, RegistryError):
            yield

    def _history_root(self, config: Config) -> str:
        if config.gates.history:
            return _whole(config.gates.history)
        if self.uri.startswith(server.SQLITE):
            return str(Path(self.uri.removeprefix(server.SQLITE)).absolute().parent / "registry")
        return storage.join(_whole(config.run.storage or config.run.root), "registry")


def check(version: Version, folder: Path) -> proof.Proof:
    """Check a copy of a version's files against its proof, and that against what the server says.

    Raises:
        RegistryError: something differs, by name.
    """
    if not version.proof_digest:
        raise RegistryError(f"{version} has no proof; register its run again")
    proven = proof.check_version(folder, version.proof_digest)
    for what, said, found in (
        ("model", version.model_digest, proven.model_digest),
        ("score card", version.scorecard_digest, proven.files.get(proof.SCORECARD, "")),
    ):
        if said != found:
            raise RegistryError(
                f"{version}: the server's tags tell of the {what} {said[:12] or 'none'}, its package holds "
                f"{found[:12] or 'none'}; refused"
            )
    return proven


def _whole(uri: str) -> str:
    return str(storage.local_path(uri).absolute()) if storage.is_local(uri) else uri
