"""Two score cards side by side, if they were measured in the same way."""

import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from pydantic import ValidationError

from cdrl.errors import ConfigError
from cdrl.evaluation.gallery import captioned
from cdrl.evaluation.protocol import ScoreCard, ScoreName, comparable
from cdrl.evaluation.run import FOLDER
from cdrl.runs import RunRecord

__all__ = ["Difference", "Found", "compare", "find_card", "side_by_side"]

CLEAR = 2.0  # standard errors
LOWER_IS_BETTER = ("frechet", "kernel")


@dataclass(frozen=True)
class Found:
    """A score card, the name it was asked by, and the file it was read from."""

    name: str
    card: ScoreCard
    path: Path


@dataclass(frozen=True)
class Difference:
    """One score of two models.

    Attributes:
        a, b: the scores; a_error, b_error, error: one standard error of each and of b - a; None = unknown.
        verdict: which is better, if the difference is more than two errors, else unclear; unknown without errors.
    """

    name: ScoreName
    a: float
    b: float
    a_error: float | None
    b_error: float | None

    @property
    def error(self) -> float | None:
        """The two sets were drawn from the same noise; that they help each other is not counted on."""
        return None if self.a_error is None or self.b_error is None else math.hypot(self.a_error, self.b_error)

    @property
    def verdict(self) -> str:
        if self.error is None:
            return "unknown"
        if abs(self.b - self.a) <= CLEAR * self.error:
            return "unclear"
        return "B better" if (self.b < self.a) == (self.name in LOWER_IS_BETTER) else "A better"


def find_card(ref: str, root: str = "runs") -> Found:
    """The card in a file, or the latest one of a run (a folder, an id, or a unique beginning of it).

    Raises:
        ConfigError: no such file or run, no evaluation yet, or no readable score card.
    """
    path = Path(ref)
    if not path.is_file():
        record = RunRecord.read(ref, root)
        path = record.directory / FOLDER / "latest.json"
        if not path.is_file():
            raise ConfigError(f"run {record.run_id}: it has no score card yet; run `cdrl evaluate {record.run_id}`")
    try:
        card = ScoreCard.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise ConfigError(f"{path}: not a score card: {reason}; run `cdrl evaluate` again") from None
    return Found(ref, card, path)


def compare(a: Found, b: Found) -> list[Difference]:
    """Every score that both cards have.

    Raises:
        ConfigError: the protocols differ; with every point in which they do.
    """
    if differences := comparable(a.card, b.card):
        raise ConfigError(
            f"{a.name} and {b.name} were measured differently, their scores do not compare: {'; '.join(differences)}; "
            "evaluate one of them again under the other's protocol"
        )
    found = []
    for name, value in a.card.scores.items():
        other = b.card.scores.get(name)
        if value is not None and other is not None:
            found.append(Difference(name, value, other, a.card.errors.get(name), b.card.errors.get(name)))
    return found


def side_by_side(a: Found, b: Found) -> Image.Image:
    """The sample sheets of both: images of the same noise and labels in the same places.

    Raises:
        ConfigError: a card's pictures are missing, or are those of a later evaluation.
    """
    panels = {}
    for letter, found in (("A", a), ("B", b)):
        latest, sheet = found.path.parent / "latest.json", found.path.parent / "samples.png"
        if not sheet.is_file() or not latest.is_file() or latest.read_bytes() != found.path.read_bytes():
            raise ConfigError(f"{found.name}: the sample sheet of this score card is not there; run `cdrl evaluate`")
        panels[f"{letter}: {found.card.run_id or found.name}"] = Image.open(sheet).convert("RGB")
    return captioned(panels)
