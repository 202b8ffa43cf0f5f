"""A run's record on disk, and how a reference finds a run, a checkpoint or a package."""

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from cdrl import storage
from cdrl.config import Config, tree_digest
from cdrl.errors import ConfigError, StorageError

__all__ = [
    "Checkpoint",
    "RunRecord",
    "Which",
    "absolute",
    "best_of",
    "cards_below",
    "checkpoints_below",
    "fetch_model",
    "step_folder",
]

Which = Literal["best", "last"]


STEP_FOLDER = re.compile(r"step_\d{8}-[0-9a-f]{12}")


def step_folder(step: int, attempt: str) -> str:
    """The folder of the checkpoint that an attempt wrote after `step` updates; sorted by step, then by attempt.

    Args:
        attempt: 12 hex digits, larger for a later start of the workers. Two attempts never write into one folder.
    """
    return f"step_{step:08d}-{attempt}"


class Checkpoint(BaseModel):
    """`state.json` of one checkpoint: written last, it makes the folder a checkpoint.

    Attributes:
        step: updates behind it.
        score: of its averaged weights, lower = better; None = not scored.
        score_error: its standard error.
        identity: digest of the run's identity.
        rescues: rescues from divergence that had been applied by then.
        cost_s: measured seconds of an update of each pair; no part of what training computes.
        files: SHA-256 of every other file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    score: float | None
    score_error: float | None = None
    identity: str
    manifest_digest: str
    rescues: int = 0
    cost_s: tuple[float, ...] = ()
    files: dict[str, str]

    def sealed(self) -> bytes:
        """The content of the file: this card and its digest."""
        tree = self.model_dump(mode="json")
        return json.dumps({**tree, "digest": tree_digest(tree)}, indent=1).encode()

    @classmethod
    def unsealed(cls, content: bytes) -> "Checkpoint":
        """The card in a file's content.

        Raises:
            ValueError: damaged.
        """
        tree = json.loads(content)
        if not isinstance(tree, dict) or tree.pop("digest", None) != tree_digest(tree):
            raise ValueError("it was changed after it was written")
        return cls.model_validate(tree)


class RunRecord(BaseModel):
    """What is needed to find and resume a run: `<run.root>/<run_id>/run.json`."""

    model_config = ConfigDict(extra="forbid")

    run_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")  # becomes a path
    config: Config
    manifest_digest: str
    class_names: tuple[str, ...]
    tracking_uri: str
    mlflow_run_id: str
    finished: bool = False
    _directory: Path = PrivateAttr(default=Path())

    @property
    def directory(self) -> Path:
        """The run's local folder."""
        return self._directory

    @property
    def checkpoint_uri(self) -> str:
        """The folder that holds the run's checkpoints: below `run.storage`, else beside the record."""
        stored = self.config.run.storage
        return storage.join(stored, self.run_id) if stored else str(self._directory)

    def write(self, root: str) -> None:
        """Write the record below `root`, whole or not at all."""
        self._directory = Path(root) / self.run_id
        storage.write_bytes(str(self._directory / "run.json"), self.model_dump_json(indent=1).encode())

    @classmethod
    def find(cls, run_id: str, root: str = "runs") -> "RunRecord | None":
        """The record of exactly this run, or None."""
        path = Path(root) / run_id / "run.json"
        return cls.read(str(path.parent)) if path.is_file() else None

    @classmethod
    def read(cls, ref: str, root: str = "runs") -> "RunRecord":
        """The record that a run folder, a run id, a name with a single run, or a unique prefix of an id refers to.

        Raises:
            ConfigError: no such run, several, or a damaged record.
        """
        folder = Path(ref)
        if not (folder / "run.json").is_file():
            found = sorted(path.parent for path in Path(root).glob("*/run.json"))
            meant = (re.escape(ref), re.escape(ref) + "-[0-9a-f]{8}", re.escape(ref) + ".*")
            matches = next(filter(None, ([p for p in found if re.fullmatch(one, p.name)] for one in meant)), [])
            if len(matches) != 1:
                listed = ", ".join(path.name for path in matches or found) or "none"
                what = "several runs match" if matches else "no such run"
                raise ConfigError(f"run {ref!r}: {what} below {root!r}; runs: {listed}")
            folder = matches[0]
        try:
            record = cls.model_validate_json((folder / "run.json").read_bytes())
        except (OSError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
            raise ConfigError(f"{folder / 'run.json'}: not a readable run record: {reason}") from None
        record._directory = folder
        return record

    def checkpoints(self) -> dict[str, Checkpoint]:
        """Folder URI -> card of every complete checkpoint, oldest first; one that broke off is none."""
        return checkpoints_below(self.checkpoint_uri)

    def checkpoint(self, which: Which) -> str:
        """The URI of the newest checkpoint, or of the one with the lowest score (the newest, where none has one).

        Raises:
            ConfigError: the run has no checkpoint yet.
        """
        complete = self.checkpoints()
        if not complete:
            raise ConfigError(f"run {self.run_id}: no checkpoint yet below {self.checkpoint_uri}")
        best = best_of(complete) if which == "best" else None
        return best or list(complete)[-1]


def cards_below(uri: str) -> dict[str, Checkpoint | None]:
    """Folder -> card of everything below `uri` that has a state.json, oldest first; None where that is damaged.

    Raises:
        StorageError: the place cannot be reached.
    """
    return _cards(uri, storage.listing(uri) if _has_folder(uri) else [])


def _cards(uri: str, names: list[str]) -> dict[str, Checkpoint | None]:
    """`cards_below` among these names."""
    cards: dict[str, Checkpoint | None] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        if file != "state.json" or not STEP_FOLDER.fullmatch(folder):
            continue
        content = storage.find_bytes(storage.join(uri, name))
        if content is None:
            continue  # it was removed since, as one that need not be kept
        try:
            cards[folder] = Checkpoint.unsealed(content)
        except ValueError:
            cards[folder] = None
    return cards


def checkpoints_below(uri: str) -> dict[str, Checkpoint]:
    """Folder URI -> card of every checkpoint below `uri` that has all its files, oldest first.

    Raises:
        StorageError: the place cannot be reached.
    """
    names = storage.listing(uri) if _has_folder(uri) else []
    there = set(names)
    return {
        storage.join(uri, folder): card
        for folder, card in _cards(uri, names).items()
        if card is not None and all(f"{folder}/{part}" in there for part in card.files)
    }


def best_of(cards: dict[str, Checkpoint]) -> str | None:
    """The URI with the lowest score, the oldest of equal ones; None where none has a score."""
    scores = {uri: card.score for uri, card in cards.items() if card.score is not None}
    return min(scores, key=lambda uri: scores[uri]) if scores else None


def fetch_model(ref: str, which: Which = "best", root: str = "runs") -> Path:
    """A local directory for `Model.load`, from a checkpoint or package (path or URI), or a reference to a run.

    Raises:
        ConfigError, StorageError: nothing is there.
    """
    if storage.is_local(ref) and (storage.local_path(ref) / "model.json").is_file():
        return storage.local_path(ref)
    uri = ref if not storage.is_local(ref) else RunRecord.read(ref, root).checkpoint(which)
    if storage.is_local(uri):
        return storage.local_path(uri)
    content = storage.read_bytes(storage.join(uri, "model.json"))
    try:
        files = {str(name): str(digest) for name, digest in json.loads(content)["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StorageError(f"{uri}/model.json: damaged: no list of files") from None
    for name in files:
        if not re.fullmatch(r"pair-\d\d+\.safetensors", name):
            raise StorageError(f"{uri}/model.json: refused to fetch a file named {name!r}")
    cache = Path(tempfile.gettempdir()) / f"cdrl-models-{os.getuid()}"
    cache.mkdir(exist_ok=True, mode=0o700)
    folder = cache / hashlib.sha256(content).hexdigest()
    for name, digest in files.items():
        if not (folder / name).is_file() or storage.sha256_file(folder / name) != digest:
            storage.download(storage.join(uri, name), folder / name, sha256=digest)
    storage.write_bytes(str(folder / "model.json"), content)
    return folder


def absolute(config: Config) -> Config:
    """The same configuration with local folders as absolute paths: workers run in folders of their own."""

    def whole(uri: str | None) -> str | None:
        return str(storage.local_path(uri).absolute()) if uri and storage.is_local(uri) else uri

    run = config.run.model_copy(update={"root": whole(config.run.root), "storage": whole(config.run.storage)})
    training = config.training.model_copy(update={"start": whole(config.training.start)})
    data = config.data.model_copy(update={"uri": whole(config.data.uri), "cache": whole(config.data.cache)})
    evaluation = config.evaluation.model_copy(update={"statistics": whole(config.evaluation.statistics)})
    return config.model_copy(update={"run": run, "data": data, "training": training, "evaluation": evaluation})


def _has_folder(uri: str) -> bool:
    return not storage.is_local(uri) or storage.local_path(uri).is_dir()
