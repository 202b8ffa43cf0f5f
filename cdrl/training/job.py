"""What every worker of a run is given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cdrl.config import Config
from cdrl.model import Model
from cdrl.training.grid import Grid

__all__ = ["Again", "Job", "Score"]

Score = Callable[[Model, Grid], tuple[float, float]]
"""A quick score of averaged weights, lower = better, and its standard error; a collective, of which rank 0's counts."""


@dataclass(frozen=True)
class Again:
    """Some pairs are trained again, from their start; the others stay what they are.

    Attributes:
        pairs: their numbers.
        base: checkpoint (path or URI) of the finished run that has the others.
    """

    pairs: tuple[int, ...]
    base: str


@dataclass(frozen=True)
class Job:
    """What every worker is given.

    Attributes:
        checkpoints: URI of the folder of the run's checkpoints.
        again: the pairs that are trained again, or None: all are trained.
        board: actor handle of a `Board`.
        score: picks the best checkpoint; None = the newest is the best.
        mark: see `cdrl.training.shared`.
    """

    config: Config
    checkpoints: str
    board: Any
    score: Score | None
    again: Again | None = None
    mark: str = ""
