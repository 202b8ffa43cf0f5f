"""A sweep: what is searched, from which configuration, and where it lies."""

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cdrl import config as configuration
from cdrl import storage
from cdrl.config import Config, tree_digest
from cdrl.errors import ConfigError
from cdrl.runs import RunRecord, absolute
from cdrl.training.checkpoint import read_card
from cdrl.training.launch import differences
from cdrl.training.resume import fetched
from cdrl.tuning.space import Space, as_overrides, load_space, with_parameters

__all__ = ["Sweep", "build_sweep"]


class Sweep(BaseModel):
    """`<run.root>/<name>/sweep.json`: all that decides a sweep.

    Attributes:
        asked: the configuration that is searched around; `best.yaml` is this one with the best parameters.
        config: that of a trial without parameters: `asked` with the settings of the space.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    asked: Config
    config: Config
    space: Space

    @property
    def directory(self) -> Path:
        """Where results lie."""
        return Path(self.config.run.root) / self.name

    @property
    def trials(self) -> Path:
        """Where the trials' runs lie."""
        return self.directory / "trials"

    @property
    def num_trials(self) -> int:
        """Trials in all; a grid decides that itself."""
        is_grid = self.space.searcher == "grid"
        return 1 + len(self.space.grid(self.config)) if is_grid else self.space.num_trials

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two sweeps the same one; a sweep may be made longer."""
        space = self.space.model_dump(mode="json", exclude={"num_trials"})
        protocol = {"samples": self.config.run.score_samples, "seed": self.config.evaluation.seed}
        rungs = {"checkpoint_every": self.config.run.checkpoint_every}
        sampling = self.config.sampling.model_dump(mode="json")
        return {"config": self.config.identity, "sampling": sampling, "space": space, "score": protocol, "rungs": rungs}

    def trial(self, number: int, parameters: dict[str, Any], start: str | None = None) -> Config:
        """The configuration of a trial's run.

        Args:
            start: checkpoint of another trial that it goes on from, with other parameters.

        Raises:
            ConfigError: the parameters make none.
        """
        config = with_parameters(self.config, parameters)
        name = f"t{number:03d}"
        if start is not None:
            name += f"-{tree_digest([start, parameters])[:8]}"
            begin = {"start": start, "start_with": "state"}
            config = config.model_copy(update={"training": config.training.model_copy(update=begin)})
        stored = self.config.run.storage
        run = config.run.model_copy(
            update={
                "name": name,
                "root": str(self.trials),
                "storage": storage.join(stored, self.name) if stored else None,
                # other trials may go on from any of them
                "keep_every": config.run.checkpoint_every if self.space.scheduler == "pbt" else config.run.keep_every,
            }
        )
        return config.model_copy(update={"run": run})

    def best(self, parameters: dict[str, Any]) -> Config:
        """What `best.yaml` holds: the configuration as it was asked for with these parameters."""
        return with_parameters(self.asked, parameters)

    def write(self) -> None:
        """Write sweep.json, or find what was written there by the same sweep before.

        Raises:
            ConfigError: the folder holds another sweep.
        """
        path = self.directory / "sweep.json"
        if path.is_file():
            try:
                found = Sweep.model_validate_json(path.read_bytes())
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise ConfigError(f"{path}: not a readable sweep: {reason}; choose another --name") from None
            if differing := differences(found.identity, self.identity):
                raise ConfigError(
                    f"sweep {self.name!r} in {self.directory} was made with other settings: {'; '.join(differing)}; "
                    "choose another --name"
                )
        storage.write_bytes(str(path), self.model_dump_json(indent=1).encode())


def build_sweep(
    source: str,
    space_source: str,
    overrides: list[str] | tuple[str, ...] = (),
    *,
    name: str | None = None,
    warm_start: str | None = None,
    choices: dict[str, Any] | None = None,
) -> Sweep:
    """The sweep that a command asks for.

    Args:
        source, overrides: the configuration to search around.
        space_source: a space's name or file.
        warm_start: a run, or a checkpoint (path or URI), that all trials begin with.
        choices: replacements for `num_trials`, `searcher` and `scheduler` of the space; None = as it has them.

    Raises:
        ConfigError: whatever does not fit.
    """
    space = load_space(space_source)
    space = Space.model_validate(space.model_dump() | {k: v for k, v in (choices or {}).items() if v is not None})
    if twice := sorted({each.partition("=")[0] for each in overrides} & set(space.parameters)):
        raise ConfigError(f"--set {twice[0]}: space {space_source} searches it; leave out one of the two")
    if warm_start is not None:
        overrides = [*overrides, f"training.start={_checkpoint(warm_start)}"]
    asked = absolute(configuration.load(source, overrides))
    config = absolute(configuration.load(source, [*as_overrides(space.settings), *overrides]))
    if not config.run.score_samples:
        raise ConfigError("run.score_samples: a sweep compares by the quick score; set it to 500, say")
    try:
        space.check(config)
        if space.searcher == "grid":
            space.grid(config)
    except ConfigError as error:
        raise ConfigError(f"--space {space_source}: {error}") from None
    label = re.sub(r"[^a-z0-9-]+", "-", Path(space_source).stem.lower())[:16].strip("-") or "space"
    sweep = Sweep(name="unnamed", asked=asked, config=config, space=space)
    try:
        named = name or f"{config.name}-{label}-{tree_digest(sweep.identity)[:8]}"
        return Sweep(name=named, asked=asked, config=config, space=space)
    except ValidationError:
        raise ConfigError(f"--name {name!r}: expected letters, digits, - and _, at most 64") from None


def _checkpoint(ref: str) -> str:
    """The URI of the checkpoint that a path, a URI or a run means.

    Raises:
        ConfigError, RegistryError, StorageError: there is none.
    """
    is_folder = not storage.is_local(ref) or (storage.local_path(ref) / "state.json").is_file()
    uri = ref if is_folder else RunRecord.read(ref).checkpoint("best")
    with fetched(uri, ()) as folder:
        read_card(folder / "state.json")
    return str(storage.local_path(uri).absolute()) if storage.is_local(uri) else uri
