"""Scores against one sampling setting, such as guidance or K, with everything else left alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cdrl.config import Config
from cdrl.config.resolve import override
from cdrl.errors import ConfigError
from cdrl.evaluation.protocol import Protocol, Scores
from cdrl.evaluation.scorer import Progress, Scorer

__all__ = ["SYMBOLS", "Curve", "CurveCard", "Point", "Setting", "first_of_each", "score_curve"]

Setting = Literal["guidance", "num_steps", "step_multiplier", "denoise_scale", "noise_scale"]
SYMBOLS: dict[Setting, str] = {
    "guidance": "w",
    "num_steps": "K",
    "step_multiplier": "m",
    "denoise_scale": "denoise",
    "noise_scale": "noise",
}
NUM_SHOWN = 20


class Point(BaseModel):
    """One value of the setting: how it was measured, what was found ± `errors`, and a worker's images per second."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    protocol: Protocol
    scores: Scores
    errors: Scores = {}
    images_per_s: float


class CurveCard(BaseModel):
    """A model's scores along one setting; the protocols of the points differ in it alone.

    Attributes:
        floor, floor_errors, floor_of, num_floor: what real images get, which ones, and how many.
        model_digest, config_digest, step: the weights, their configuration, the updates behind them.
        run_id, which: the run and the checkpoint; empty for a bare model.
        created: UTC.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    setting: Setting
    points: tuple[Point, ...]
    floor: Scores
    floor_errors: Scores = {}
    floor_of: str
    num_floor: int
    model_digest: str
    config_digest: str
    step: int
    run_id: str = ""
    which: str = ""
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Curve:
    """A card and, for each of its points, the same few images (of the same noise and labels)."""

    card: CurveCard
    shown: list[NDArray]


def score_curve(
    ref: str | Path,
    config: Config,
    setting: Setting,
    values: Sequence[float],
    *,
    run_id: str = "",
    which: str = "",
    progress: Progress | None = None,
) -> Curve:
    """Score a model at each value of a sampling setting.

    Args:
        ref: the model's directory or URI.
        config: the model's own, with changes as `evaluate` allows.
        values: different ones.
        run_id, which: where the model came from, for the card.

    Raises:
        ConfigError: values that repeat or are out of range, guidance of an unconditional model; as `evaluate`.
        DataError, StorageError, RegistryError: as `evaluate`.
    """
    if len(set(values)) < len(values) or not values:
        raise ConfigError(f"sampling.{setting}: expected different values, got {list(values)}")
    if setting == "guidance" and not config.data.num_classes:
        raise ConfigError("sampling.guidance: the model is unconditional; there is no curve")
    settings = [override(config, [f"sampling.{setting}={value!r}"]).sampling for value in values]
    scorer, points, shown = Scorer(ref, config, progress=progress), [], []
    first = first_of_each(scorer.labels, config.evaluation.num_samples)
    with scorer.session():
        for value, sampling in zip(values, settings, strict=True):
            drawn = scorer.draw(sampling)
            point = Point(
                value=value,
                protocol=scorer.protocol(sampling),
                scores=drawn.scored.scores,
                errors=drawn.scored.errors,
                images_per_s=drawn.images_per_s,
            )
            points.append(point)
            shown.append(drawn.images[first])
    card = CurveCard(
        setting=setting,
        points=tuple(points),
        **scorer.provenance,
        run_id=run_id,
        which=which,
    )
    return Curve(card, shown)


def first_of_each(labels: NDArray[np.int64] | None, num_images: int) -> NDArray[np.int64]:
    """Which images to show: as many of each class, class after class."""
    if labels is None:
        return np.arange(min(NUM_SHOWN, num_images))
    classes = np.unique(labels)[:NUM_SHOWN]
    each = max(1, NUM_SHOWN // len(classes))
    return np.concatenate([np.flatnonzero(labels == c)[:each] for c in classes])
