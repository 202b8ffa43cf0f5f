"""A trial as an actor of Ray Tune."""

import json
from pathlib import Path
from typing import Any

from ray import tune

from cdrl.runs import RunRecord
from cdrl.tuning.sweep import Sweep
from cdrl.tuning.trial import Running

__all__ = ["BAD_FD", "TrialActor"]

BAD_FD = 1e9  # of a trial that diverged, for schedulers
POINTER = "pointer.json"


class TrialActor(tune.Trainable):
    """A trial as Tune sees it: a step ends with the score of a checkpoint.

    Its checkpoint is a pointer to one of ours, so that a trial of any number of workers can go on from another's.
    """

    def setup(self, config: dict[str, Any], sweep: Sweep) -> None:
        self._sweep = sweep
        self._running: Running | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        given = config["trial"]
        self._number, self._parameters = given["number"], given["parameters"]
        self._start, self._known = given["start"], given["known"]

    def step(self) -> dict[str, Any]:
        config = self._sweep.trial(self._number, self._parameters, self._start)
        if self._running is None:
            self._running = Running(config, self._known, self._sweep.trials / f"{config.run_id}.log")
        report = self._running.next()
        result = {"state": report.state, "cause": report.cause, "done": report.state != "running"}
        result |= {"run": config.run_id, "parameters": self._parameters, "start": self._start, "scored": False}
        if report.score is not None:
            self._known = report.score.step
            result |= {"scored": True, "error": report.score.error}
        fd = report.score.fd if report.score is not None else float("nan")
        return {**result, "step": self._known, "fd": BAD_FD if report.state == "diverged" else fd}

    def cleanup(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        config = self._sweep.trial(self._number, self._parameters, self._start)
        record = RunRecord.find(config.run_id, config.run.root)
        cards = record.checkpoints() if record else {}
        scored = [uri for uri, card in cards.items() if card.step == self._known]
        pointer = {
            "checkpoint": scored[-1] if scored else None,
            "step": self._known,
            "parameters": self._parameters,
            "start": self._start,
        }
        (Path(checkpoint_dir) / POINTER).write_text(json.dumps(pointer))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        pointer = json.loads((Path(checkpoint_dir) / POINTER).read_text())
        self._known = pointer["step"]
        is_its_own = pointer["parameters"] == self._parameters
        self._start = pointer["start"] if is_its_own else pointer["checkpoint"]
