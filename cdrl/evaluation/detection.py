r"""How well a score tells data from outliers: areas under two curves, with error bars.

    AUROC   the probability that a data image scores higher than an outlier; 0.5 = a coin, below = the wrong way round
    AUPR    the mean precision over all thresholds, data images being the hits; a coin gets their share of all images

Error bars are standard deviations over resampled sets of images (bootstrap). A resampled set is the same images with
other counts, so all of them are computed at once from one order of the scores.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cdrl.errors import ConfigError
from cdrl.evaluation.bootstrap import resampled, standard_error

__all__ = ["MIN_IMAGES", "Detection", "detection"]

MIN_IMAGES = 10
NUM_RESAMPLES = 200


class Detection(BaseModel):
    """Both areas, 0 ... 1, higher is better, each with one standard error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    auroc: float
    auroc_error: float
    aupr: float
    aupr_error: float


def detection(inside: NDArray, outside: NDArray, seed: int = 0) -> Detection:
    """Compare the scores of data (N,) with those of outliers (M,); higher should mean data.

    Raises:
        ConfigError: fewer than 10 scores on a side.
    """
    if min(len(inside), len(outside)) < MIN_IMAGES:
        raise ConfigError(f"expected at least {MIN_IMAGES} images in each set, got {len(inside)} and {len(outside)}")
    random = np.random.Generator(np.random.Philox(seed))
    counts = [resampled(n, NUM_RESAMPLES, random) for n in (len(inside), len(outside))]
    auroc, aupr = _areas(inside, outside, *counts)
    return Detection(
        auroc=auroc[0], auroc_error=standard_error(auroc), aupr=aupr[0], aupr_error=standard_error(aupr)
    )


def _areas(inside: NDArray, outside: NDArray, hits: NDArray, misses: NDArray) -> tuple[NDArray, NDArray]:
    """(R,) AUROCs and AUPRs where row r counts data image i hits[r, i] times and outlier j misses[r, j] times."""
    scores = np.concatenate([inside, outside])
    order = np.argsort(-scores, kind="stable")
    thresholds = np.flatnonzero(np.diff(-scores[order], append=np.inf))  # the last of each run of equal scores
    num_hits = np.hstack([hits, np.zeros_like(misses)])[:, order].cumsum(1)[:, thresholds]
    num_misses = np.hstack([np.zeros_like(hits), misses])[:, order].cumsum(1)[:, thresholds]
    recall, false_rate = num_hits / len(inside), num_misses / len(outside)
    precision = num_hits / np.maximum(num_hits + num_misses, 1)
    gained = np.diff(recall, prepend=0)
    mean_recall = recall - gained / 2  # of the trapezium that a run of equal scores makes
    return (mean_recall * np.diff(false_rate, prepend=0)).sum(1), (precision * gained).sum(1)
