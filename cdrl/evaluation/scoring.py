"""All scores of one set of images beside another, each with its error bar.

Error bars are standard errors over the images of the first set (recall: of the second), which the bootstrap tells; of
a share p of n images it is sqrt(p (1 - p) / n). They do not hold what another seed of training would change. Of few
images the bootstrap tells the Fréchet distance too large an error (500 images, 32 features: 1.7 times that of fresh
sets), since repeated images make a resampled covariance noisier than a fresh one.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdrl.evaluation.bootstrap import num_resamples_for, resampled, standard_error
from cdrl.evaluation.features import Extractor
from cdrl.evaluation.fidelity import Measured, Moments, frechet_distance, precision_recall
from cdrl.evaluation.inception_score import inception_scores
from cdrl.evaluation.kernel import kernel_distances
from cdrl.evaluation.protocol import Scores

__all__ = ["Scored", "distance_with_error", "score"]


@dataclass(frozen=True)
class Scored:
    """Scores and, under the same names, one standard error of each."""

    scores: Scores
    errors: Scores


def score(
    seen: Measured,
    other: Measured,
    extractor: Extractor,
    *,
    label_accuracy: float | None,
    seed: int,
    device: str = "cpu",
) -> Scored:
    """Score a set against another.

    Args:
        label_accuracy: of the set, as its judge found it.
        seed: of the resampling; the same seed gives the same error bars.

    Raises:
        ConfigError: too few images for a score.
    """
    few, n = seen.few, len(seen.few)
    precision, recall = precision_recall(few, other.few, device=device)
    counts = _counts(seen, seed)
    frechet, frechet_error = _distance(seen, other, counts)
    kernel = kernel_distances(few, other.few, counts, device=device)
    logits = extractor.logits(seen.rows)
    variety = None if logits is None else inception_scores(logits, len(counts) - 1, np.random.default_rng(seed))
    return Scored(
        {
            "frechet": frechet,
            "kernel": float(kernel[0]),
            "inception": None if variety is None else float(variety[0]),
            "precision": precision,
            "recall": recall,
            "label_accuracy": label_accuracy,
        },
        {
            "frechet": frechet_error,
            "kernel": standard_error(kernel),
            "inception": None if variety is None else standard_error(variety),
            "precision": _of_share(precision, n),
            "recall": _of_share(recall, len(other.few)),
            "label_accuracy": None if label_accuracy is None else _of_share(label_accuracy, seen.moments.n),
        },
    )


def distance_with_error(seen: Measured, other: Measured, seed: int) -> tuple[float, float]:
    """The Fréchet distance of two sets and its standard error, as `score` has them."""
    return _distance(seen, other, _counts(seen, seed))


def _counts(seen: Measured, seed: int) -> NDArray[np.int64]:
    few = seen.few
    return resampled(len(few), num_resamples_for(few.shape[1]), np.random.Generator(np.random.Philox(seed)))


def _distance(seen: Measured, other: Measured, counts: NDArray[np.int64]) -> tuple[float, float]:
    again = [0.0, *(frechet_distance(Moments.of(seen.few, row), other.moments) for row in counts[1:])]
    error = standard_error(np.array(again)) * math.sqrt(len(seen.few) / seen.moments.n)
    return frechet_distance(seen.moments, other.moments), error


def _of_share(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / n)
