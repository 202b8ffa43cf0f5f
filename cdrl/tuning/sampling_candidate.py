"""One setting of the sampler, scored; and which of several settings are worth having.

All candidates of a search are drawn from the same noise and labels and resampled alike, so the error of a difference
is the spread of the differences: much of what luck does to one it does to the other, too.
"""

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from cdrl.config import SamplingConfig
from cdrl.errors import ConfigError
from cdrl.evaluation.bootstrap import spread
from cdrl.evaluation.protocol import Protocol, Scores
from cdrl.tracking.journal import Journal

__all__ = ["Book", "Candidate", "Difference", "cheaper_and_as_good", "pareto_front"]

FILE = "candidates.jsonl"


class Candidate(BaseModel):
    """A setting and what was found.

    Attributes:
        protocol: how it was measured, the setting included.
        model_digest: of the weights.
        gradients: of f that an image takes; the same on every machine.
        seconds: that an image took, one worker's.
        scores, errors, deviations: as `cdrl.evaluation.scoring.Scored`; nothing where it failed.
        failure: why it has no scores, as where the samples left the finite.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: Protocol
    model_digest: str
    gradients: int
    seconds: float | None = None
    scores: Scores = {}
    errors: Scores = {}
    deviations: tuple[float, ...] = ()
    failure: str = ""

    @property
    def sampling(self) -> SamplingConfig:
        """The setting."""
        return self.protocol.sampling

    @property
    def frechet(self) -> float:
        """The Fréchet distance, lower is better; infinite where it failed."""
        found = self.scores.get("frechet")
        return float("inf") if found is None else found

    @property
    def error(self) -> float:
        """One standard error of it."""
        return self.errors.get("frechet") or 0.0


class Difference(BaseModel):
    """How much higher the Fréchet distance of a candidate is than that of another, ± one standard error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    error: float

    @classmethod
    def of(cls, candidate: Candidate, other: Candidate) -> "Difference | None":
        """Of two that were measured alike; None where one of them failed."""
        if candidate.failure or other.failure:
            return None
        paired = np.array(candidate.deviations) - np.array(other.deviations)
        return cls(value=candidate.frechet - other.frechet, error=spread(paired))

    @property
    def is_within(self) -> bool:
        """Whether the candidate is as good: better, or worse by no more than the error bar."""
        return self.value <= self.error


def cheaper_and_as_good(candidates: list[Candidate], own: Candidate) -> list[Candidate]:
    """Those that take fewer gradients than `own` and are within its error bar, the cheapest first.

    Of these only the front: a dearer one has to be better than all that are cheaper.
    """
    good = [
        each
        for each in candidates
        if each.gradients < own.gradients and (gap := Difference.of(each, own)) is not None and gap.is_within
    ]
    return pareto_front(good)


def pareto_front(candidates: list[Candidate]) -> list[Candidate]:
    """Those that no other beats in both gradients and Fréchet distance, the cheapest first."""
    front: list[Candidate] = []
    for each in sorted(candidates, key=lambda each: (each.gradients, each.frechet)):
        if not each.failure and (not front or each.frechet < front[-1].frechet):
            front.append(each)
    return front


class Book:
    """The candidates that were ever scored, in a file of a line each: what is there is not drawn again.

    Raises:
        ConfigError, TrackingError: a line is damaged. One that a killed process left unfinished is cut off.
    """

    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder, FILE)
        self._journal.mend()
        self._known: dict[tuple[str, str], Candidate] = {}
        for end, entry in self._journal.entries():
            try:
                candidate = Candidate.model_validate(entry["candidate"])
            except (KeyError, ValidationError):
                where = f"{folder / FILE}, up to byte {end}"
                raise ConfigError(f"{where}: expected a candidate; remove the line") from None
            self._known[candidate.protocol.digest, candidate.model_digest] = candidate

    def find(self, protocol: Protocol, model_digest: str) -> Candidate | None:
        """The candidate that was measured in exactly this way, of these weights."""
        return self._known.get((protocol.digest, model_digest))

    def add(self, candidate: Candidate) -> Candidate:
        """Keep it: it is on the disk when this returns."""
        self._journal.append("candidate", candidate=candidate.model_dump(mode="json"))
        self._journal.persist()
        self._known[candidate.protocol.digest, candidate.model_digest] = candidate
        return candidate
