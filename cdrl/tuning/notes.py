"""What has become of the trials of a sweep: lines of a journal, each written before anything follows from it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cdrl.tracking.journal import Journal

__all__ = ["Notes", "Score", "State", "Trial"]

State = Literal["running", "complete", "stopped", "diverged", "failed"]


@dataclass(frozen=True)
class Score:
    """The Fréchet distance of a checkpoint and one standard error."""

    step: int
    fd: float
    error: float


@dataclass
class Trial:
    """One trial, as it is known.

    Attributes:
        number: 0 is the configuration as it is.
        parameters: dotted name -> value, the newest where a scheduler changes them on the way.
        state: stopped = ended early by the scheduler; failed trials are tried again by the next call.
        scores: by step.
        run: folder of its run below the trials', once it has one.
        start: checkpoint that the run began with, where a scheduler gave it one.
        cause: why it diverged or failed.
    """

    number: int
    parameters: dict[str, Any]
    state: State = "running"
    scores: list[Score] = field(default_factory=list)
    run: str = ""
    start: str | None = None
    cause: str = ""

    @property
    def step(self) -> int:
        """Updates at its newest score."""
        return self.scores[-1].step if self.scores else 0

    @property
    def fd(self) -> float | None:
        """Its newest score."""
        return self.scores[-1].fd if self.scores else None

    def take(self, score: Score) -> None:
        """Take up a score; of a step that was scored twice, the newer one. Later steps are no more."""
        self.scores = [*(each for each in self.scores if each.step < score.step), score]


class Notes:
    """The trials of a sweep, on disk first; one process writes.

    Attributes:
        trials: by number.
    """

    def __init__(self, directory: Path) -> None:
        self._journal = Journal(directory)
        self._journal.mend()
        self.trials: dict[int, Trial] = {}
        self.order: list[tuple[int, Score]] = []
        for _, entry in self._journal.entries():
            self._take(entry)

    def begin(self, number: int, parameters: dict[str, Any]) -> Trial:
        """A new trial, or one more try of one that failed."""
        return self._note("begin", trial=number, parameters=parameters)

    def score(self, number: int, score: Score) -> Trial:
        """A checkpoint was scored."""
        return self._note("score", trial=number, step=score.step, fd=score.fd, error=score.error)

    def place(self, number: int, run: str, parameters: dict[str, Any], start: str | None) -> Trial:
        """Which run a trial is now."""
        return self._note("run", trial=number, run=run, parameters=parameters, start=start)

    def end(self, number: int, state: State, cause: str = "") -> Trial:
        """A trial is over."""
        return self._note("end", trial=number, state=state, cause=cause)

    def unfinished(self) -> list[Trial]:
        """Those to go on with: without an end, or failed."""
        return [trial for trial in self.listed() if trial.state in ("running", "failed")]

    def listed(self) -> list[Trial]:
        """All, by number."""
        return [self.trials[number] for number in sorted(self.trials)]

    def history(self) -> Iterable[tuple[Trial, Score]]:
        """Every score in the order in which they came."""
        return [(self.trials[number], score) for number, score in self.order]

    def _note(self, kind: str, **content: Any) -> Trial:
        self._journal.append(kind, **content)
        self._journal.persist()
        return self._take({"kind": kind, **content})

    def _take(self, entry: dict[str, Any]) -> Trial:
        number = int(entry["trial"])
        trial = self.trials.setdefault(number, Trial(number, {}))
        match entry["kind"]:
            case "begin":
                trial.parameters, trial.state, trial.cause = entry["parameters"], "running", ""
            case "run":
                trial.run, trial.parameters, trial.start = entry["run"], entry["parameters"], entry["start"]
            case "score":
                score = Score(int(entry["step"]), float(entry["fd"]), float(entry["error"]))
                trial.take(score)
                self.order.append((number, score))
            case "end":
                trial.state, trial.cause = entry["state"], entry["cause"]
        return trial
