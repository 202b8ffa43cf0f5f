"""One version of a registered model, and the tags that tell of it on the server."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow.entities.model_registry import ModelVersion
from pydantic import ValidationError

from cdrl.evaluation.protocol import ScoreCard
from cdrl.model import Model
from cdrl.registry.package import card_text

__all__ = ["GATE", "Version", "tags", "version_of"]

GATE = "cdrl.gate"


@dataclass(frozen=True)
class Version:
    """One version of a registered model, as its tags tell it.

    Attributes:
        run_id: the run that made it; empty for one that was put together.
        made_from: what that was put together from.
        mlflow_run_id: the tracked run that it hangs on.
        model_digest: `Model.digest` of what it holds.
        proof_digest: SHA-256 of its `proof.json`; empty for a version of an older cdrl, which had none.
        scorecard: what was measured on exactly these weights; None if nothing was, or unreadable to this cdrl.
        scorecard_digest: SHA-256 of its `scorecard.json`; empty if it has none.
        gate: what the last attempt to promote it said; empty before the first.
        files: URI of its files.
    """

    name: str
    number: int
    run_id: str
    made_from: str
    mlflow_run_id: str
    model_digest: str
    proof_digest: str
    scorecard: ScoreCard | None
    scorecard_digest: str
    gate: str
    aliases: tuple[str, ...]
    created: datetime
    files: str

    def __str__(self) -> str:
        return f"{self.name} version {self.number}"


def tags(model: Model, card: ScoreCard | None, *, run_id: str, made_from: str = "") -> dict[str, str]:
    """What a version's tags say; that of its proof is set when its files are made."""
    said = {
        "cdrl.run_id": run_id,
        "cdrl.made_from": made_from,
        "cdrl.model_digest": model.digest,
        "cdrl.config_digest": model.config.digest,
        "cdrl.manifest_digest": model.manifest_digest,
        "cdrl.scorecard": "" if card is None else card_text(card),
    }
    return {name: value for name, value in said.items() if value}


def version_of(entry: ModelVersion, aliases: dict[str, str]) -> Version:
    """A version as the server describes it; `aliases` are the model's, alias -> number."""
    told = entry.tags.get("cdrl.scorecard", "")
    try:
        card = ScoreCard.model_validate_json(told)
    except ValidationError:
        card = None
    return Version(
        name=entry.name,
        number=int(entry.version),
        run_id=entry.tags.get("cdrl.run_id", ""),
        made_from=entry.tags.get("cdrl.made_from", ""),
        mlflow_run_id=entry.run_id or "",
        model_digest=entry.tags.get("cdrl.model_digest", ""),
        proof_digest=entry.tags.get("cdrl.proof_digest", ""),
        scorecard=card,
        scorecard_digest=hashlib.sha256(told.encode()).hexdigest() if told else "",
        gate=entry.tags.get(GATE, ""),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if str(number) == str(entry.version))),
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        files=entry.source,
    )
