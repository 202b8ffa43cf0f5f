r"""Score a model's own held-out data and sets that are not its data, level by level (spec section 8.4).

Scores, higher = data: those of `cdrl.method.ood`; and with complexity

    corrected     log_density / (D ln 2) + code_length, bits per dimension (Serra et al. 2020)
    code_length   the code length of the clean image alone, whatever the model: the control

The log-density has an unknown constant, the same for all images, so `corrected` ranks them as the true one would.
It compares like with like at level 0; higher up the density is of a noised image, the code of the clean one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from cdrl.errors import ConfigError
from cdrl.evaluation.detection import Detection, detection
from cdrl.evaluation.outliers import DATA, TRAIN, code_length_bpd, image_sets
from cdrl.method.ood import level_scores, typicality
from cdrl.method.rng import Rng
from cdrl.model import Model
from cdrl.pictures import to_uint8

__all__ = ["SCORES", "OodCard", "OodResult", "Row", "Score", "evaluate_ood"]

Score = Literal["log_density", "gradient_norm", "typicality", "corrected", "code_length"]
Values = dict[tuple[Score, int | None], dict[str, NDArray]]
SCORES: tuple[Score, ...] = ("log_density", "gradient_norm", "typicality")
Progress = Callable[[str, int, int], None]
BATCH_SIZE = 250


class Row(BaseModel):
    """One score against one set; `level` is None where the score has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    against: str
    score: Score
    level: int | None
    detection: Detection


class OodCard(BaseModel):
    """The figures, and what they depend on.

    Attributes:
        model_digest, step: the weights, and the updates behind them.
        manifest_digest: the data.
        num_images: in-distribution images, of the hold-out split; typicality is of as many of the train split.
        num_outliers: images of each set by name.
        num_draws: noise draws per image and level; 0 = none.
        label: the class that the densities were given; empty = none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_digest: str
    step: int
    manifest_digest: str
    num_images: int
    num_outliers: dict[str, int]
    num_draws: int
    label: str
    seed: int
    rows: tuple[Row, ...]

    def best(self, against: str) -> Row:
        """The model's row with the highest AUROC against a set. Chosen after the fact: for pictures, not for claims."""
        rows = [row for row in self.rows if row.against == against and row.level is not None]
        return max(rows, key=lambda row: row.detection.auroc)


@dataclass(frozen=True)
class OodResult:
    """A card and what is behind it.

    Attributes:
        values: (score, level) -> set -> scores (N,); the set "data" is the hold-out split.
        images: set -> clean images (N, *shape).
    """

    card: OodCard
    values: Values
    images: dict[str, Tensor]


def evaluate_ood(
    model: Model,
    against: Sequence[str],
    *,
    uri: str | None = None,
    levels: Sequence[int] | None = None,
    scores: Sequence[str] = SCORES,
    complexity: bool = False,
    num_images: int = 500,
    num_draws: int = 0,
    label: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> OodResult:
    """Compare the held-out images of a model's dataset with other sets.

    Args:
        against: names of `OUTLIERS`, or URIs of prepared datasets (their hold-out split, else train).
        uri: where the model's dataset is; default: where it was when the model was trained.
        levels: default: all.
        complexity: add the scores `corrected` and `code_length`; images only.
        num_images: at most so many of each set, evenly spread.
        num_draws: noise draws per image and level; 0 = none, which tells sets apart better the higher the level.
        label: name of the class that the densities are given; default: none.
        progress: called with (what is done, images done, images in all).

    Raises:
        ConfigError: no such level, score or class, images of another shape, too few of them, a dataset that is not the
            model's, complexity of points.
        DataError, StorageError: a dataset is missing or damaged.
        Diverged: the network's values are not finite.
    """
    levels = range(model.schedule.num_levels) if levels is None else levels
    if wrong := [level for level in levels if not 0 <= level < model.schedule.num_levels]:
        raise ConfigError(f"level {wrong[0]}: the model has the levels 0 ... {model.schedule.num_levels - 1}")
    if unknown := [score for score in scores if score not in SCORES]:
        raise ConfigError(f"score {unknown[0]!r}: expected {', '.join(SCORES)}")
    chosen: list[Score] = [score for score in SCORES if score in scores]
    chosen += ["corrected"] if complexity else []
    shape = model.config.data.shape
    if complexity and len(shape) != 3:
        raise ConfigError(f"complexity: points of shape {list(shape)} have no PNG code; leave it out")
    number = model.label_of(label)
    images = image_sets(model, uri or model.config.data.uri, against, num_images, seed)
    lengths = {name: code_length_bpd(to_uint8(x)) for name, x in images.items()} if complexity else {}
    total, scored = len(levels) * sum(map(len, images.values())), 0
    values: Values = {}
    for level in levels:
        found = {}
        for name, x in images.items():
            found[name] = _scored(model, x, level, num_draws, number, (seed, "ood", name, level))
            scored += len(x)
            if progress is not None:
                progress("score images", scored, total)
        reference = found.pop(TRAIN)["log_density"]
        for name, of_set in found.items():
            of_set["typicality"] = typicality(of_set["log_density"], reference)
            if complexity:
                of_set["corrected"] = of_set["log_density"] / (math.prod(shape) * math.log(2)) + lengths[name]
        for score in chosen:
            values[score, level] = {name: of_set[score].numpy() for name, of_set in found.items()}
    images.pop(TRAIN)
    if complexity:
        values["code_length", None] = {name: lengths[name].numpy() for name in images}
    card = OodCard(
        model_digest=model.digest,
        step=model.step,
        manifest_digest=model.manifest_digest,
        num_images=len(images[DATA]),
        num_outliers={name: len(x) for name, x in images.items() if name != DATA},
        num_draws=num_draws,
        label=label or "",
        seed=seed,
        rows=_rows(values, seed, progress),
    )
    return OodResult(card, values, images)


def _scored(
    model: Model, x: Tensor, level: int, num_draws: int, number: int, key: tuple[int | str, ...]
) -> dict[str, Tensor]:
    """`level_scores` of a whole set, on the CPU; each batch has randomness of its own."""
    parts: list[dict[str, Tensor]] = []
    for batch in x.split(BATCH_SIZE):
        batch = batch.to(model.device)
        label = torch.full((len(batch),), number, device=model.device) if model.config.data.num_classes else None
        rng = Rng(*key, len(parts), device=model.device)
        parts.append(
            level_scores(
                *(model.ladder, model.schedule, level, batch),
                num_draws=num_draws,
                rng=rng,
                label=label,
                formulation=model.exact,
            )
        )
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def _rows(values: Values, seed: int, progress: Progress | None) -> tuple[Row, ...]:
    rows = []
    for done, ((score, level), sets) in enumerate(values.items(), start=1):
        for name, outside in sets.items():
            if name != DATA:
                compared = detection(sets[DATA], outside, seed)
                rows.append(Row(against=name, score=score, level=level, detection=compared))
        if progress is not None:
            progress("compare scores", done, len(values))
    return tuple(rows)
