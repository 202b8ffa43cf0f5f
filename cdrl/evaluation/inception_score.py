r"""The Inception score: each image of a clear class, all classes equally often.

    exp(mean_i KL(p(c | x_i) || p(c))) = exp(H(mean_i p(c | x_i)) - mean_i H(p(c | x_i)))

1 (all images look alike) ... the number of classes. As in torch-fidelity, the mean of ten parts of the shuffled set.
With the logits of another net than Inception it says the same of that net's classes, and compares with no other score.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl.errors import ConfigError
from cdrl.evaluation.bootstrap import resampled

__all__ = ["NUM_SPLITS", "inception_scores"]

NUM_SPLITS = 10
SHUFFLE_SEED = 2020  # torch-fidelity's


def inception_scores(
    logits: NDArray, num_resamples: int = 0, random: np.random.Generator | None = None
) -> NDArray[np.float64]:
    """(1 + num_resamples,) scores of logits (n, C): of the images as they are, then resampled within each part.

    Raises:
        ConfigError: fewer images than parts.
    """
    n = len(logits)
    if n < NUM_SPLITS:
        raise ConfigError(
            f"the Inception score is a mean over {NUM_SPLITS} parts and needs at least {NUM_SPLITS} images, got {n}; "
            "draw more (evaluation.num_samples) or hold out more (cdrl data prepare --holdout)"
        )
    order = np.random.RandomState(SHUFFLE_SEED).permutation(n)
    rows = torch.as_tensor(logits)[order].to(torch.float64)
    edges = [part * n // NUM_SPLITS for part in range(NUM_SPLITS + 1)]
    scores = []
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        p = rows[start:stop].softmax(dim=1)
        counts = resampled(stop - start, num_resamples, random or np.random.default_rng(0))
        shares = torch.from_numpy(counts).to(torch.float64) / (stop - start)
        entropy, of_mean = torch.special.entr(p).sum(1), torch.special.entr(shares @ p).sum(1)
        scores.append((of_mean - shares @ entropy).exp())
    return torch.stack(scores).mean(0).numpy()
