"""What a person sees of a sweep: a live table on a terminal, a plain line for each score elsewhere."""

import time
from pathlib import Path
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cdrl.evaluation.protocol import figure
from cdrl.tracking.journal import Journal
from cdrl.tuning.notes import Notes, Score, Trial
from cdrl.tuning.sweep import Sweep

__all__ = ["Story"]

COLOURS = {"running": "cyan", "complete": "green", "stopped": "yellow", "diverged": "red", "failed": "red"}
MAX_OVER = 12  # rows of trials that are over


class Story:
    """Trials, their step and distance, and what is left.

    Args:
        parallel: trials at a time.
    """

    def __init__(self, console: Console, sweep: Sweep, notes: Notes, parallel: int) -> None:
        self._console, self._sweep, self._notes = console, sweep, notes
        self._parallel = parallel
        self._begun_s = time.monotonic()
        self._over_before = self._num_over()
        self._tails: dict[str, _Tail] = {}
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line, above the table where there is one."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def tell(self, trial: Trial, score: Score | None) -> None:
        """Take up a score, or the end of a trial."""
        name, num_updates = f"t{trial.number:03d}", self._sweep.config.training.num_updates
        if score is not None and not self._console.is_terminal:
            self.say(f"{name} {score.step}/{num_updates}: FD {figure(score.fd, score.error)}")
        if trial.state != "running":
            cause = f": {trial.cause}" if trial.cause else ""
            self.say(f"{name} {trial.state} at {trial.step}{cause}; {self.left()}")

    def left(self) -> str:
        """What is over, what is left and how long that may take."""
        over, total = self._num_over(), self._sweep.num_trials
        text = f"{over} of {total} trials over"
        done = over - self._over_before
        if done and over < total:
            minutes = (time.monotonic() - self._begun_s) / done * (total - over) / 60
            text += f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"
        return text

    def _num_over(self) -> int:
        return sum(trial.state != "running" for trial in self._notes.trials.values())

    def _render(self) -> Group:
        table = Table("trial", "state", "updates", "FD", "parameters", box=None)
        trials = self._notes.listed()
        over = sorted((t for t in trials if t.state != "running"), key=lambda t: (-t.step, t.fd or float("inf")))
        for trial in [*(t for t in trials if t.state == "running"), *over[:MAX_OVER]]:
            step = max(trial.step, self._step(trial)) if trial.state == "running" else trial.step
            last = trial.scores[-1] if trial.scores else None
            table.add_row(
                f"t{trial.number:03d}",
                Text(trial.state, COLOURS[trial.state]),
                f"{step}/{self._sweep.config.training.num_updates}",
                figure(last.fd, last.error) if last else "-",
                Text(", ".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in trial.parameters.items())),
            )
        return Group(table, Text(f"{self.left()}; {self._parallel} at a time", "dim"))

    def _step(self, trial: Trial) -> int:
        """Updates that a run has written down."""
        run = trial.run or f"t{trial.number:03d}"
        return self._tails.setdefault(run, _Tail(self._sweep.trials / run)).step()


class _Tail:
    """Follows a run's journal."""

    def __init__(self, directory: Path) -> None:
        self._journal, self._at, self._step = Journal(directory), 0, 0

    def step(self) -> int:
        for end, entry in self._journal.entries(self._at):
            self._at = end
            if entry["kind"] == "metrics":
                self._step = int(entry["step"])
        return self._step


def _short(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_short, value)) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
