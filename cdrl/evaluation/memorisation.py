"""Does the model draw its training images again? Nearest neighbours of its samples beside those of held-out images.

Held-out images were drawn from the same law and seen by nobody: their distance to the training images is what fresh
images have. Samples that lie nearer are copies or nearly so (the test of Meehan, Chaudhuri and Dasgupta, 2020).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl.evaluation.detection import MIN_IMAGES, detection
from cdrl.evaluation.fidelity import Measured
from cdrl.evaluation.protocol import Memorisation
from cdrl.evaluation.reference import Reference

__all__ = ["Memorised", "Neighbours", "memorisation", "memorised", "neighbours"]

QUANTILE = 0.01
NUM_SHOWN = 16
MAX_QUERIES = 10_000
BLOCK_ROWS = 5_000  # training images at a time


@dataclass(frozen=True)
class Neighbours:
    """The nearest training row of each query: its distance (n,) float32 and its place among the rows (n,)."""

    distance: NDArray[np.float32]
    place: NDArray[np.int64]


@dataclass(frozen=True)
class Memorised:
    """The figures, and the generated images that lie nearest to a training image beside those: (n, C, H, W) each."""

    card: Memorisation
    nearest: tuple[NDArray, NDArray] | None


def memorised(reference: Reference, images: NDArray, measured: Measured, *, seed: int) -> Memorised | None:
    """Check generated images; None where fewer than 10 images are held out to compare with.

    Args:
        measured: the images as the feature net sees them.
        seed: of the error bar's resampling.
    """
    fresh, train = reference.held_out, reference.measured
    if fresh is None or min(len(fresh.rows), len(measured.rows)) < MIN_IMAGES:
        return None
    card, near = memorisation(measured.rows, fresh.rows, train.rows, seed=seed, device=reference.device)
    if images.ndim != 4:
        return Memorised(card, None)
    few = np.argsort(near.distance, kind="stable")[:NUM_SHOWN]
    return Memorised(card, (images[measured.places[few]], reference.train.images(train.places[near.place[few]])))


def neighbours(queries: NDArray, train: NDArray, *, device: str = "cpu") -> Neighbours:
    """Nearest rows of train (m, D) to queries (n, D), by Euclidean distance; that of a copy is exactly 0."""
    asked = torch.as_tensor(queries).to(device)
    distance = torch.full((len(asked),), torch.inf, device=device)
    place = torch.zeros(len(asked), dtype=torch.long, device=device)
    for start in range(0, len(train), BLOCK_ROWS):
        block = torch.as_tensor(train[start : start + BLOCK_ROWS]).to(device)
        found, where = torch.cdist(asked, block).min(dim=1)
        found = (asked - block[where]).norm(dim=1)  # cdist's |a|² + |b|² - 2ab leaves the rounding of |a|² at a copy
        nearer = found < distance
        distance, place = torch.where(nearer, found, distance), torch.where(nearer, where + start, place)
    return Neighbours(distance.cpu().numpy(), place.cpu().numpy())


def memorisation(
    generated: NDArray, heldout: NDArray, train: NDArray, *, seed: int, device: str = "cpu"
) -> tuple[Memorisation, Neighbours]:
    """The figures for features of three sets (n, D), and the neighbours of the generated rows.

    Raises:
        ConfigError: fewer than 10 generated or held-out rows.
    """
    near = neighbours(generated[:MAX_QUERIES], train, device=device)
    fresh = neighbours(heldout[:MAX_QUERIES], train, device=device).distance
    compared = detection(-near.distance, -fresh, seed)  # the area is the probability that the first lies nearer
    card = Memorisation(
        nearer=compared.auroc,
        nearer_error=compared.auroc_error,
        copies=float((near.distance < np.quantile(fresh, QUANTILE)).mean()),
        quantile=QUANTILE,
        num_generated=len(near.distance),
        num_heldout=len(fresh),
        num_train=len(train),
    )
    return card, near
