r"""Is an image one of ours? What the densities of a trained ladder say of it, level by level (spec section 8.4).

At level s an image is noised as in training and brought to the scaled space, in which alone the energy net lives:

    x_s = alpha_s x_0 + sigma_s eps,   y = scale x_s,   log p(y) = f(y)/step_size + const        (no eps: num_draws = 0)

    log_density     E_eps log p(y)
    gradient_norm   -E_eps |grad_y log p(y)|     a data point lies near a mode, an outlier on a slope
    typicality      -| log_density - H |,  H = the mean log_density of training images: what is likelier than any
                    image of the data is no image of the data either (Nalisnick et al. 2019)

In every score higher means more in-distribution. The unknown constant of a level is the same for all images; it moves
no rank, so it changes no AUROC. Scores of different levels have different constants: compare ranks, never values.
"""

import torch
from torch import Tensor

from cdrl.errors import ConfigError, Diverged
from cdrl.method.formulation import Formulation, Plain
from cdrl.method.pairs import PairLadder
from cdrl.method.rng import Rng
from cdrl.method.sampling import target_at
from cdrl.method.schedule import Schedule

__all__ = ["level_scores", "typicality"]


def level_scores(
    ladder: PairLadder,
    schedule: Schedule,
    level: int,
    x_0: Tensor,
    *,
    num_draws: int,
    rng: Rng,
    label: Tensor | None = None,
    formulation: Formulation = Plain(),  # noqa: B008 - has no state
) -> dict[str, Tensor]:
    """Score a batch at one level.

    Args:
        ladder: pairs with averaged weights.
        level: s, 0 ... num_levels-1; 0 is the least noisy.
        x_0: (B, ...) clean data, images in [-1, 1].
        num_draws: noise draws that a score is the mean of; 0 = the noise's mean alone, y = scale alpha_s x_0.
        rng: randomness of the batch.
        label: (B,) classes, 0 = none.
        formulation: how f is computed.

    Returns:
        `log_density` in nats up to a constant, and `gradient_norm`, (B,) each.

    Raises:
        ConfigError: no such level, a negative number of draws, or x_0 is not finite.
        Diverged: the network's values are not finite.
    """
    if not 0 <= level < schedule.num_levels:
        raise ConfigError(f"level {level}: the model has the levels 0 ... {schedule.num_levels - 1}")
    if num_draws < 0:
        raise ConfigError(f"noise draws: expected 0 or more, got {num_draws}")
    if not (finite := x_0.flatten(1).isfinite().all(dim=1)).all():
        number = int(finite.logical_not().nonzero()[0])
        raise ConfigError(f"image {number} of a batch of {len(x_0)} has values that are not finite; leave it out")
    target = target_at(ladder, schedule, level, x_0, label=label, formulation=formulation)
    tr = target.transition
    total = {"log_density": x_0.new_zeros(len(x_0)), "gradient_norm": x_0.new_zeros(len(x_0))}
    for draw in range(max(1, num_draws)):
        noise = tr.sigma_s * rng.normal(x_0) if num_draws else 0
        y = (tr.scale * (tr.alpha_s * x_0 + noise)).requires_grad_(True)
        with torch.enable_grad():
            log_density = target.log_prob(y)
            (gradient,) = torch.autograd.grad(log_density.sum(), y)
        scores = {"log_density": log_density.detach(), "gradient_norm": -gradient.flatten(1).norm(dim=1)}
        for name, value in scores.items():
            if not (finite := value.isfinite()).all():
                raise Diverged(level, draw, {name: float(value[~finite][0])}, activity="scoring")
            total[name] += value / max(1, num_draws)
    return total


def typicality(log_density: Tensor, reference: Tensor) -> Tensor:
    """-|log_density - mean of reference|, (B,) nats: `reference` (N,) are training images at the same level."""
    return -(log_density - reference.mean()).abs()
