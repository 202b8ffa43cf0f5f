r"""Scores from features alone: the Fréchet distance and precision/recall.

With Gaussian fits N(m_a, A) and N(m_b, B) of two sets of features

    d^2 = |m_a - m_b|^2 + Tr A + Tr B - 2 Tr (A B)^(1/2),        Tr (A B)^(1/2) = sum_i sqrt(eig_i(L^T B L)),  A = L L^T

L is the Cholesky factor of A. A set of n <= D rows (or one with a feature that never moves) has a singular covariance:
then L comes from the eigenvectors whose eigenvalue is above rounding, which is exact too. The smaller set is factored.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from cdrl.errors import ConfigError, DataError
from cdrl.evaluation.extractor import Extractor

__all__ = [
    "MAX_NEIGHBOUR_ROWS",
    "NEIGHBOURS",
    "Measured",
    "Moments",
    "frechet_distance",
    "gather",
    "measure",
    "precision_recall",
]

NEIGHBOURS = 3
MAX_NEIGHBOUR_ROWS = 10_000  # for what compares all pairs of rows; the Fréchet distance always uses every row
MAX_ROWS = 100_000  # kept at all
CHUNK_ROWS = 5_000
DISTANCE_ROWS = 2_000  # rows of one block of the distance matrix: bounds the memory


@dataclass(frozen=True)
class Moments:
    """Number, mean and scatter of a set of features, in float64; two sets' moments add up to those of their union.

    Attributes:
        n: rows.
        mean: (D,).
        scatter: (D, D), the sum of (row - mean)(row - mean)^T.
    """

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: NDArray, counts: NDArray[np.int64] | None = None) -> "Moments":
        """Moments of features (n, D), row i taken `counts[i]` times, once by default.

        Raises:
            DataError: no rows, or one that is not finite.
        """
        rows = torch.as_tensor(features).to(torch.float64)
        if not len(rows) or not rows.isfinite().all():
            raise DataError(f"features of {len(rows)} images: expected finite numbers of at least one image")
        if counts is not None:
            rows = rows.repeat_interleave(torch.as_tensor(counts), dim=0)
        centred = rows - rows.mean(0)
        return cls(len(rows), rows.mean(0), centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets together."""
        n = self.n + other.n
        shift = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.n * other.n / n)
        return Moments(n, self.mean + shift * (other.n / n), scatter)

    @property
    def covariance(self) -> Tensor:
        """(D, D), the unbiased estimate.

        Raises:
            DataError: fewer than two rows.
        """
        if self.n < 2:
            raise DataError(f"a covariance needs at least 2 images, got {self.n}")
        return self.scatter / (self.n - 1)


@dataclass(frozen=True)
class Measured:
    """A set of images as seen by a feature net: moments of all, and at most `MAX_ROWS` evenly spread rows."""

    moments: Moments
    rows: NDArray[np.float32]

    @property
    def places(self) -> NDArray[np.int64]:
        """Which images the rows belong to."""
        return np.arange(0, self.moments.n, _stride(self.moments.n))

    @property
    def few(self) -> NDArray[np.float32]:
        """At most `MAX_NEIGHBOUR_ROWS` of the rows, evenly spread."""
        return self.rows[:: -(-len(self.rows) // MAX_NEIGHBOUR_ROWS)]


def measure(images: Callable[[NDArray], NDArray], n: int, extractor: Extractor) -> Measured:
    """Walk through images 0 ... n-1, `images(indices)`, in chunks: a set larger than memory passes through."""
    chunks = (np.arange(start, min(start + CHUNK_ROWS, n)) for start in range(0, n, CHUNK_ROWS))
    return gather((extractor.features(images(indices)) for indices in chunks), n)


def gather(chunks: Iterable[NDArray], n: int) -> Measured:
    """n rows of features that come in chunks, in order; the moments are merged in float64."""
    moments, kept, start, stride = None, [], 0, _stride(n)
    for features in chunks:
        part = Moments.of(features)
        moments = part if moments is None else moments.merge(part)
        kept.append(features[-start % stride :: stride])
        start += len(features)
    if moments is None:
        raise DataError("there are no images to measure")
    return Measured(moments, np.concatenate(kept))


def _stride(n: int) -> int:
    return -(-n // MAX_ROWS)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of the Gaussian fits, in float64; symmetric, 0 for equal moments.

    Raises:
        DataError: fewer than two rows on a side.
    """
    small, large = sorted((a, b), key=lambda side: side.n)
    factor = _factor(small)
    eigenvalues = torch.linalg.eigvalsh(factor.T @ large.covariance @ factor)
    overlap = eigenvalues.clamp(min=0).sqrt().sum()
    traces = small.covariance.trace() + large.covariance.trace()
    squared = (a.mean - b.mean).square().sum() + traces - 2 * overlap
    return max(0.0, float(squared))  # rounding may leave -1e-12 for equal sets


def _factor(moments: Moments) -> Tensor:
    """L with L L^T = covariance: (D, D) by Cholesky or, if that is singular, (D, rank)."""
    covariance = moments.covariance
    if moments.n > len(covariance):
        lower, failed = torch.linalg.cholesky_ex(covariance)
        if not failed:
            return lower
    values, vectors = torch.linalg.eigh(covariance)
    solid = values > values.max().clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, solid] * values[solid].sqrt()


def precision_recall(generated: NDArray, reference: NDArray, *, device: str = "cpu") -> tuple[float, float]:
    """Share of generated rows inside the reference's manifold, and the reverse (3 nearest neighbours), each 0 ... 1.

    Args:
        generated, reference: features (n, D), (m, D).

    Raises:
        ConfigError: a side has too few rows to have neighbours.
    """
    if min(len(generated), len(reference)) <= NEIGHBOURS:
        raise ConfigError(
            f"precision and recall need more than {NEIGHBOURS} images on each side, got {len(generated)} against "
            f"{len(reference)}; draw more (evaluation.num_samples) or hold out more (cdrl data prepare --holdout)"
        )
    sides = (torch.as_tensor(side).to(device) for side in (generated, reference))
    found = prc_features_to_metric(
        *sides, prc_neighborhood=NEIGHBOURS, prc_batch_size=DISTANCE_ROWS, save_cpu_ram=True, verbose=False
    )
    return found["precision"], found["recall"]
