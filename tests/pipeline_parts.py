"""Pipelines whose commands are replaced by a program that writes down who is called with what.

As a script: `pipeline_parts.py FOLDER STEP` runs the pipeline `train`, which stands still in STEP.
"""

import json
import sys
from pathlib import Path
from typing import Any

from cdrl.errors import CdrlError
from pipeline.compile import documents
from pipeline.parameters import resolve
from pipeline.run import Execution
from pipeline.state import opened

__all__ = ["USUAL", "Trial"]

PROGRAM = """
import json, pathlib, sys, time
folder, step, *line = sys.argv[1:]
asked = json.loads(pathlib.Path(folder, "asked.json").read_text())
with open(folder + "/log.jsonl", "a") as file:
    file.write(json.dumps([step, line]) + "\\n")
if step == asked["failing"]:
    sys.exit(2)
if step == asked["slow"]:
    time.sleep(60)
if "--decision" in line and asked["decision"]:
    pathlib.Path(line[line.index("--decision") + 1]).write_text(asked["decision"])
"""
USUAL = {"address": "local", "root": "runs", "storage": "", "tracking": "", "data": "runs/data/digits", "run": "monday"}


class Trial:
    """The graph with `PROGRAM` in front of every command line, which writes down who is called with what."""

    def __init__(self, folder: Path) -> None:
        self._asked, self.folder, self.log = folder / "asked.json", folder / "state", folder / "log.jsonl"
        self.told: list[tuple[str, str]] = []

    def _spec(self, which: str) -> dict[str, Any]:
        spec = documents(which)[0]
        for label, executor in spec["deploymentSpec"]["executors"].items():
            container, step = executor["container"], label.removeprefix("exec-")
            front = [sys.executable, "-c", PROGRAM, str(self.log.parent), step]
            container["command"] = [*front, *container["command"]]
        return spec

    def run(
        self, which: str = "cdrl", *, decision: str = "passed", failing: str = "", slow: str = "", **asked: object
    ) -> None:
        """A decision of "" is not written."""
        self._asked.write_text(json.dumps({"decision": decision, "failing": failing, "slow": slow}))
        spec = self._spec(which)
        chosen = resolve(spec, asked, USUAL)
        self.told.clear()
        with opened(self.folder, which, chosen) as state:
            state.end_orphan(lambda text: self.told.append(("", text)))
            Execution(spec, state, self.folder, lambda step, what: self.told.append((step, what))).run()

    @property
    def called(self) -> list[tuple[str, list[str]]]:
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        return [(step, line) for step, line in map(json.loads, lines)]

    @property
    def steps(self) -> list[str]:
        return [step for step, _ in self.called]

    def became(self, what: str) -> list[str]:
        return [step for step, told in self.told if told == what]


if __name__ == "__main__":
    try:
        Trial(Path(sys.argv[1])).run("train", slow=sys.argv[2])
    except CdrlError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
