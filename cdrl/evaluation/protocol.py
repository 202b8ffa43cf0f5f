"""A figure and how it was measured: two figures compare only if their protocols agree in every point."""

import hashlib
import json
import math
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cdrl.config import SamplingConfig

__all__ = ["Memorisation", "Protocol", "ScoreCard", "ScoreName", "Scores", "comparable", "figure", "leaves"]

ScoreName = Literal["frechet", "kernel", "inception", "precision", "recall", "label_accuracy"]
Scores = dict[ScoreName, float | None]
"""`frechet` >= 0 and `kernel` (KID), lower is better; `inception` (the Inception score) 1 ... classes, None without
classes, `precision`, `recall` and `label_accuracy` (None without labels) 0 ... 1, higher is better."""


class Protocol(BaseModel):
    """Everything that a score depends on except the model.

    Attributes:
        metric: what the Fréchet distance is called: "FID" only for Inception's standard weights.
        extractor, extractor_digest: the feature net and layer, and the SHA-256 of its weights.
        judge_digest, judge_accuracy: the classifier behind `label_accuracy`, and its own on the hold-out split.
        manifest_digest, reference_split: the real images; all `num_reference` of them.
        num_generated: images drawn.
        max_neighbour_rows: precision, recall and KID use at most so many evenly spread images of each side.
        num_splits: parts that the Inception score is the mean of.
        labels: classes in the proportions of the reference, or none.
        sampling: K, noise, final denoise, guidance and batch size.
        seed: of the generated images.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    extractor: str
    extractor_digest: str
    judge_digest: str | None
    judge_accuracy: float | None
    manifest_digest: str
    reference_split: Literal["train"] = "train"
    num_reference: int = Field(ge=1)
    num_generated: int = Field(ge=2)
    neighbours: int
    max_neighbour_rows: int
    num_splits: int = 10
    labels: Literal["as reference", "none"]
    sampling: SamplingConfig
    seed: int
    ema: Literal[True] = True

    def title(self, name: ScoreName) -> str:
        """What a score is called: "FID", "KID" and "IS" only in the features of Inception's standard weights."""
        if name == "frechet":
            return self.metric
        if name in ("kernel", "inception"):
            standard, other = ("KID", "KD") if name == "kernel" else ("IS", "IS")
            return standard if self.metric == "FID" else other + self.metric.removeprefix("FD")
        return name.replace("_", " ")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all of it."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def describe(self) -> str:
        """One line for people."""
        sampling = self.sampling
        return (
            f"{self.metric}: {self.num_generated} generated against {self.num_reference} real "
            f"({self.reference_split} {self.manifest_digest[:8]}), features {self.extractor} "
            f"{self.extractor_digest[:8]}, labels {self.labels}, K = {sampling.steps_text}, "
            f"step x{sampling.multiplier_text}, noise x{sampling.noise_scale:g}, "
            f"denoise x{sampling.denoise_scale:g}, guidance {sampling.guidance_text}, "
            f"batches of {sampling.batch_size}, EMA weights, seed {self.seed}; protocol {self.digest[:8]}"
        )


class Memorisation(BaseModel):
    """Whether generated images lie nearer to the training images than held-out ones do, in the protocol's features.

    Attributes:
        nearer, nearer_error: the probability that a generated image has a nearer neighbour in the train split than a
            held-out image has: 0.5 as fresh data, 1 copies, below 0.5 away from all data.
        copies: share of generated images whose neighbour is nearer than those of the nearest `quantile` of held-out
            images.
        num_generated, num_heldout, num_train: images compared.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    nearer: float
    nearer_error: float
    copies: float
    quantile: float
    num_generated: int
    num_heldout: int
    num_train: int

    def describe(self) -> str:
        """One line for people."""
        return (
            f"nearest training image: nearer than that of a held-out image with probability {self.nearer:.3f} "
            f"± {self.nearer_error:.3f} (0.5 = as fresh data, 1 = copies), {self.copies:.1%} of the samples nearer "
            f"than the nearest {self.quantile:.0%} of held-out images; {self.num_generated} generated and "
            f"{self.num_heldout} held-out against {self.num_train} training images, in the same features"
        )


class ScoreCard(BaseModel):
    """The scores of one model under one protocol, beside two yardsticks.

    Attributes:
        scores: of the model as the protocol samples it.
        errors: one standard error of each, over images (`cdrl.evaluation.scoring`); not over seeds of training.
        k0_errors, floor_errors: the same of `k0` and `floor`.
        num_resamples: of the bootstrap behind the errors, seeded with the protocol's seed; 0 = there are no errors.
        notes: what a reader should know before trusting the figures: bias of few images, collapse; a line each.
        memorisation: None without a hold-out split.
        k0: of the initializer alone, drawn by `k0_sampling`; None for a model without initializer.
        k0_sampling: the protocol's sampling with K = 0 and no final denoise, so that no energy net takes part.
        floor: of real images that the reference does not hold: what a perfect model would get. See `floor_of`.
        floor_of, num_floor: which real images, and how many.
        model_digest, config_digest, step: the weights, their configuration, the updates behind them.
        run_id, which: the run and the checkpoint (best or last) that they came from; empty for a bare model.
        seconds, images_per_s: of drawing the generated images at K, summed over the workers that did it.
        created: UTC.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: Protocol
    scores: Scores
    k0: Scores | None
    k0_sampling: SamplingConfig | None
    floor: Scores
    floor_of: str
    num_floor: int
    errors: Scores = {}
    k0_errors: Scores = {}
    floor_errors: Scores = {}
    num_resamples: int = 0
    notes: tuple[str, ...] = ()
    memorisation: Memorisation | None = None
    model_digest: str
    config_digest: str
    step: int
    run_id: str = ""
    which: str = ""
    seconds: float
    images_per_s: float
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def table(self) -> list[list[str]]:
        """For people: a head, a row per score (at K, K = 0, of real images), and the numbers of images."""
        sampled = f"K = {self.protocol.sampling.steps_text}"
        columns = {sampled: (self.scores, self.errors)}
        if self.k0 is not None:
            columns["K = 0, initializer"] = self.k0, self.k0_errors
        columns["real images"] = self.floor, self.floor_errors
        rows = []
        for name in self.scores:
            cells = [figure(scores.get(name), errors.get(name)) for scores, errors in columns.values()]
            rows.append([self.protocol.title(name), *cells])
        numbers = [*[self.protocol.num_generated] * (len(columns) - 1), self.num_floor]
        return [["", *columns], *rows, ["images", *map(str, numbers)]]


def figure(value: float | None, error: float | None = None) -> str:
    """A score ± one standard error, to two digits of the error; without one to three places."""
    if value is None:
        return "-"
    if not error:
        return f"{value:.3f}"
    places = min(max(1 - math.floor(math.log10(error)), 0), 6)
    return f"{value:.{places}f} ± {error:.{places}f}"


def comparable(a: ScoreCard, b: ScoreCard) -> list[str]:
    """Where two cards' protocols differ, one line each; none: their scores may be compared."""
    left, right = (dict(leaves(card.protocol.model_dump(mode="json"))) for card in (a, b))
    return [f"{name}: {left[name]!r} against {right[name]!r}" for name in left if left[name] != right[name]]


def leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted names and values of a tree of plain values."""
    found = []
    for key, value in tree.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found
