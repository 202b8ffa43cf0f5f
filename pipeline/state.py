"""What a pipeline on this machine has done: one small file, so that the same command goes on after any end."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from cdrl import storage
from cdrl.config import tree_digest
from cdrl.errors import ConfigError, StorageError

__all__ = ["Done", "Running", "State", "opened"]

PATIENCE_S = 120.0


class Done(BaseModel):
    """A finished step: the digest of its command line, how long it took, its output parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str
    seconds: float
    outputs: dict[str, str] = {}


class Running(BaseModel):
    """The process of the step that is under way."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: str
    pid: int
    began: float


class State(BaseModel):
    """`<root>/pipelines/<run>/state.json`.

    Attributes:
        pipeline, parameters: what was asked for; another question needs another name.
        steps: the finished ones, in their order.
    """

    model_config = ConfigDict(extra="forbid")

    pipeline: str
    parameters: dict[str, Any]
    steps: dict[str, Done] = {}
    running: Running | None = None

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        storage.write_bytes(str(folder / "state.json"), self.model_dump_json(indent=1).encode())

    def finished(self, step: str, command: list[str]) -> Done | None:
        """What is known of a step, if it ran with exactly this command line."""
        done = self.steps.get(step)
        return done if done is not None and done.command == tree_digest(command) else None

    def end_orphan(self, tell: Any) -> None:
        """Stop the step of an earlier call that was killed itself: two processes would write the same run."""
        if self.running is None:
            return
        try:
            process = psutil.Process(self.running.pid)
            if abs(process.create_time() - self.running.began) > 1:
                return  # the number was given to another process since
            tell(f"{self.running.step} of an earlier call still runs (process {process.pid}): it is stopped first")
            process.terminate()
            process.wait(PATIENCE_S)
        except psutil.NoSuchProcess:
            return
        except psutil.TimeoutExpired:
            raise StorageError(
                f"process {self.running.pid} of an earlier call does not stop within {PATIENCE_S:.0f} s; end it"
            ) from None


@contextmanager
def opened(folder: Path, pipeline: str, parameters: dict[str, Any]) -> Iterator[State]:
    """The state in `folder`, locked: one call at a time.

    Raises:
        ConfigError: another call is at it, or it was begun with other parameters.
        StorageError: it cannot be read or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{folder}: another call runs this pipeline now; wait, or name another --run") from None
        yield _read(folder, pipeline, parameters)


def _read(folder: Path, pipeline: str, parameters: dict[str, Any]) -> State:
    path = folder / "state.json"
    fresh = State(pipeline=pipeline, parameters=parameters)
    if not path.is_file():
        return fresh
    try:
        state = State.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise StorageError(f"{path}: not readable; remove it, and every step asks again what is done") from None
    asked = {"pipeline": pipeline, **parameters}
    known = {"pipeline": state.pipeline, **state.parameters}
    other = [f"{name}: {known.get(name)!r}, now {value!r}" for name, value in asked.items() if known.get(name) != value]
    if other:
        raise ConfigError(f"{folder}: begun with other parameters ({'; '.join(other)}); name another --run")
    return state
