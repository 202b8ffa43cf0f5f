"""Run a compiled pipeline on this machine, step after step; what is finished is not done again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from cdrl.config import tree_digest
from cdrl.errors import CdrlError, JobFailed
from pipeline import graph
from pipeline.state import Done, Running, State

__all__ = ["Execution", "StepFailed", "Stopped"]

Tree = Mapping[str, Any]


class StepFailed(CdrlError):
    """A step's command ended with an error; it has told which."""


class Stopped(CdrlError):
    """Somebody stopped it: Ctrl-C or SIGTERM."""


class Execution:
    """One run of a pipeline.

    Args:
        spec: the compiled pipeline.
        folder: where the state and the outputs of steps go.
        tell: called with (step, what): `runs`, `finished`, `finished before`, `left out`, `failed`, `stopped`.

    Attributes:
        seconds: step -> time that it took, as far as it ran.
    """

    def __init__(self, spec: Tree, state: State, folder: Path, tell: Callable[[str, str], None]) -> None:
        self._spec, self._state, self._folder, self._tell = spec, state, folder, tell
        self._is_fresh = False  # once a step has run, what follows it is not known any more
        self._stop: signal.Signals | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.seconds: dict[str, float] = {}

    def run(self) -> None:
        """Run every step that is not finished.

        Raises:
            StepFailed, Stopped: as they say.
            JobFailed: the graph cannot be followed.
        """
        before = {sign: signal.signal(sign, self._pass_on) for sign in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._graph(self._spec["root"]["dag"], self._state.parameters)
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)

    def _graph(self, dag: Tree, given: Tree) -> None:
        done: dict[str, dict[str, str]] = {}
        failure: StepFailed | None = None
        for name in graph.ordered(dag):
            task = dag["tasks"][name]
            waits_for = task.get("dependentTasks", ())
            if not graph.is_last(task) and (failure or any(before not in done for before in waits_for)):
                self._leave_out(name, task)
                continue
            values = graph.arguments(task, given, done)
            if not graph.holds(task, values):
                self._leave_out(name, task)
                continue
            try:
                done[name] = self._task(name, task, values)
            except StepFailed as error:
                failure = failure or error
        if failure:
            raise failure

    def _leave_out(self, name: str, task: Tree) -> None:
        inner = self._spec["components"][task["componentRef"]["name"]].get("dag")
        for step in [name] if inner is None else graph.leaves(self._spec, inner):
            self._tell(step, "left out")

    def _task(self, name: str, task: Tree, values: Tree) -> dict[str, str]:
        container = graph.executor_of(self._spec, task)
        if container is None:
            self._graph(self._spec["components"][task["componentRef"]["name"]]["dag"], values)
            return {}
        outputs = graph.outputs_of(self._spec, task)
        folder = self._folder / name
        places = {output: folder / output for kind in outputs.values() for output in kind}
        types = {output: kind["artifactType"] for output, kind in outputs["artifacts"].items()}
        command = graph.command_line(container, values, places | {"": folder / "told.json"}, types)
        known = self._state.finished(name, command)
        if known is not None and not self._is_fresh and not graph.is_last(task):
            self._tell(name, "finished before")
            return known.outputs
        self._is_fresh = True
        folder.mkdir(parents=True, exist_ok=True)
        began_s = time.monotonic()
        self._tell(name, "runs")
        try:
            self._call(name, command)
        except CdrlError as error:
            self._tell(name, "stopped" if isinstance(error, Stopped) else "failed")
            raise
        finally:
            self.seconds[name] = time.monotonic() - began_s
        found = {output: _value(name, places[output]) for output in outputs["parameters"]}
        done = Done(command=tree_digest(command), seconds=self.seconds[name], outputs=found)
        self._state.steps[name] = done
        self._state.write(self._folder)
        self._tell(name, "finished")
        return found

    def _call(self, name: str, command: list[str]) -> None:
        """Run a command; its process is written down first, and signals reach it once, through us."""
        if self._stop is not None:
            raise _stopped(name, self._stop)
        beside = Path(sys.executable).parent  # where `cdrl` and `python3` of this environment are
        environment = os.environ | {"PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"}
        try:
            self._process = subprocess.Popen(command, env=environment, process_group=0)
        except OSError as error:
            raise JobFailed(f"step {name}: {command[0]} cannot be started: {error.strerror}") from None
        began = psutil.Process(self._process.pid).create_time()
        self._state.running = Running(step=name, pid=self._process.pid, began=began)
        self._state.write(self._folder)
        code = self._process.wait()
        self._process, self._state.running = None, None
        self._state.write(self._folder)
        if self._stop is not None:
            raise _stopped(name, self._stop)
        if code:
            raise _failed(name, code)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._stop = signal.Signals(number)
        if self._process is not None:
            self._process.send_signal(number)


def _failed(step: str, code: int) -> StepFailed:
    ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    error = StepFailed(f"step {step} {ended}; what is finished is kept: the same command goes on from there")
    error.exit_code = 2 if code == 2 else 1
    return error


def _stopped(step: str, by: signal.Signals) -> Stopped:
    error = Stopped(f"stopped by {by.name} in step {step}; the same command goes on from there")
    error.exit_code = 128 + by
    return error


def _value(step: str, path: Path) -> str:
    """An output parameter that a step wrote."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        raise JobFailed(f"step {step}: it ended well but did not write its output {path}") from None
