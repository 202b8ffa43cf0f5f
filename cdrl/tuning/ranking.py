"""The trials in order: who is best, by how much, and what became of the others."""

import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from cdrl.evaluation.protocol import figure
from cdrl.tuning.notes import State, Trial
from cdrl.tuning.sweep import Sweep

__all__ = ["Place", "Ranking", "rank"]

ORDER: dict[State, int] = {"complete": 0, "running": 0, "stopped": 0, "diverged": 1, "failed": 2}
CLEAR = 2.0  # standard errors


class Place(BaseModel):
    """A trial in the ranking.

    Attributes:
        rank: 1 = best; None for one without a figure.
        trial: its number; 0 is the configuration as it is.
        fd, error: the Fréchet distance at its last checkpoint and one standard error over images.
        step: updates by then.
        run: the folder of its run.
        start: checkpoint of another trial that it went on from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int | None
    trial: int
    state: State
    step: int
    fd: float | None
    error: float | None
    parameters: dict[str, Any]
    run: str
    start: str | None
    cause: str


class Ranking(BaseModel):
    """`ranking.json`.

    Attributes:
        protocol: how every figure was measured.
        num_updates: of a whole trial. Trials that were ended early rank below those that went further: their figures
            are of fewer updates.
        places: best first.
        remarks: what a reader should know.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sweep: str
    protocol: str
    searcher: str
    scheduler: str
    num_trials: int
    num_updates: int
    places: tuple[Place, ...]
    remarks: tuple[str, ...] = ()

    @property
    def best(self) -> Place | None:
        """The best trial that did not diverge or fail."""
        return next((place for place in self.places if place.rank == 1), None)

    def table(self) -> list[list[str]]:
        """For people: a head and a row per trial."""
        keys = list(dict.fromkeys(key for place in self.places for key in place.parameters))
        head = ["", "trial", "state", "updates", "FD", *(key.removeprefix("schedule.") for key in keys)]
        rows = []
        for place in self.places:
            row = [str(place.rank or "-"), f"t{place.trial:03d}", place.state, str(place.step)]
            row.append(figure(place.fd, place.error))
            rows.append([*row, *(_cell(place.parameters.get(key)) for key in keys)])
        return [head, *rows]

    def text(self) -> str:
        """The table, the failures with their causes and the remarks, as plain text."""
        table = self.table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        causes = [f"t{place.trial:03d} {place.state}: {place.cause}" for place in self.places if place.cause]
        return "\n".join([f"sweep {self.sweep}: {self.protocol}", "", *lines, "", *causes, *self.remarks, ""])


def rank(sweep: Sweep, trials: Sequence[Trial]) -> Ranking:
    """Order trials: those that got further first, of equal ones the lower distance."""

    def key(trial: Trial) -> tuple[int, int, float]:
        return ORDER[trial.state], -trial.step, math.inf if trial.fd is None else trial.fd

    places = []
    for at, trial in enumerate(sorted(trials, key=key), start=1):
        is_ranked = ORDER[trial.state] == 0 and trial.scores != []
        last = trial.scores[-1] if trial.scores else None
        places.append(
            Place(
                rank=at if is_ranked else None,
                trial=trial.number,
                state=trial.state,
                step=trial.step,
                fd=last.fd if last else None,
                error=last.error if last else None,
                parameters=trial.parameters,
                run=str(sweep.trials / trial.run) if trial.run else "",
                start=trial.start,
                cause=trial.cause,
            )
        )
    config = sweep.config
    sampling = config.sampling
    protocol = (
        f"Fréchet distance of {config.run.score_samples} samples from the train split, features of the extractor "
        f"{config.evaluation.extractor!r}, K = {sampling.steps_text}, denoise x{sampling.denoise_scale:g}, EMA "
        f"weights, sample seed {config.evaluation.seed}; training seed {config.training.seed} for all, so "
        "that they saw the same data and noise; ± one standard error over images"
    )
    return Ranking(
        sweep=sweep.name,
        protocol=protocol,
        searcher=sweep.space.searcher,
        scheduler=sweep.space.scheduler,
        num_trials=sweep.num_trials,
        num_updates=config.training.num_updates,
        places=tuple(places),
        remarks=_remarks(places),
    )


def _remarks(places: Sequence[Place]) -> tuple[str, ...]:
    """How the best one stands beside the second and the configuration as it is."""
    remarks = []
    best = next((place for place in places if place.rank == 1), None)
    if best is None:
        return ("no trial has a score",)
    base = next((place for place in places if place.trial == 0), None)
    if best.trial == 0:
        remarks.append("no trial was better than the configuration as it is (t000)")
    elif base and base.fd is not None and best.fd is not None:
        gap, error = base.fd - best.fd, math.hypot(base.error or 0, best.error or 0)
        if base.step == best.step:
            clear = "clearly" if gap > CLEAR * error else "within the error bars"
            told = f"{clear} better than the configuration as it is (t000), by {figure(gap, error)}"
        else:
            told = f"the configuration as it is (t000) was ended at {base.step} updates"
        remarks.append(f"best: t{best.trial:03d}; {told}")
    remarks.append("one training seed stands behind each figure; try the best one with others before you believe it")
    return tuple(remarks)


def _cell(value: Any) -> str:
    if value is None:
        return "."
    if isinstance(value, list | tuple):
        return ",".join(map(_cell, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
