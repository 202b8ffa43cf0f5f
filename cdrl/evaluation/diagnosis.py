"""What a reader should know before trusting the figures, a line each: few images, copies, collapse."""

import torch
from numpy.typing import NDArray

from cdrl.evaluation.fidelity import Measured, Moments
from cdrl.evaluation.protocol import Protocol

__all__ = ["notes"]

FEW_IMAGES = 10_000
MANY_COPIES = 0.01  # share of images that repeat another one bit by bit
LOW_VARIANCE = 0.1  # of that of real images
BEYOND_ROUNDING = 1e-10  # of the largest eigenvalue


def notes(images: NDArray, seen: Measured, reference: Measured, protocol: Protocol) -> tuple[str, ...]:
    """The lines for generated images (n, *shape); none where nothing is odd.

    Args:
        seen, reference: the generated and the real images as the feature net sees them.
    """
    metric, n, dims = protocol.metric, len(images), len(seen.moments.mean)
    found = []
    if (few := min(n, reference.moments.n)) < FEW_IMAGES:
        side = "generated" if few == n else "real"
        found.append(
            f"{few} {side} images: {metric} is biased upwards, the more so the fewer images (below {FEW_IMAGES:,}); "
            "compare it only with scores of as many"
        )
    num_distinct = len({image.tobytes() for image in images})
    if num_distinct == 1:
        found.append(f"mode collapse: all {n} images are equal")
    elif n - num_distinct > MANY_COPIES * n:
        found.append(f"mode collapse: only {num_distinct} of {n} images differ from each other")
    spread, usual = (side.moments.covariance.trace() for side in (seen, reference))
    if num_distinct > 1 and spread < LOW_VARIANCE * usual:
        found.append(
            f"mode collapse: the features vary {float(spread / usual):.1%} as much as those of real images"
        )
    rank, full = _rank(seen.moments), _rank(reference.moments)
    if n <= dims:
        found.append(
            f"{n} images are too few for {dims} features: their covariance is singular (rank {rank}) and {metric} is "
            f"mostly bias; draw more than {dims}"
        )
    elif rank < full:
        found.append(
            f"the covariance of the features is singular: rank {rank}, that of real images {full}; the samples miss "
            f"{full - rank} directions in which real images vary"
        )
    return tuple(found)


def _rank(moments: Moments) -> int:
    values = torch.linalg.eigvalsh(moments.covariance)
    return int((values > values.max().clamp(min=torch.finfo(values.dtype).tiny) * BEYOND_ROUNDING).sum())
