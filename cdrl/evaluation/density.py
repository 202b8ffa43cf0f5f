r"""A trained model of points in the plane beside the exact law of its data, level by level.

In the plane everything can be integrated on a grid: the model's density exp(F(y))/Z of y = scale x_s, F the log-density
of its marginal, and the exact density p of x_s = alpha_s x_0 + sigma_s eps (`cdrl.data.points`). In nats

    KL(p || q)                                      of the marginals of x_s,
    E KL(p(x_s | x_t) || q(x_s | x_t)) = KL(p || q) - KL(p N || q N),   N = noise of the transition s -> t,

the second because both joint laws of (x_s, x_t) share the conditional of x_t. It is what recovery likelihood
minimises. Noise of std sigma_ts sees little of where the far modes stand relative to one another, so at the clean end
the marginal may be wrong between distant modes while every conditional is right (spec section 3).

The drift of a chain is compared by E |grad log q - grad log p|^2 / E |grad log p|^2 over exact draws of p, and samples
with exact draws by MMD^2, the squared distance of mean embeddings under Gaussian kernels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cdrl.data.points import Law, score
from cdrl.errors import ConfigError
from cdrl.method.sampling import target_at
from cdrl.model import Model

__all__ = ["LevelDensity", "check_plane", "compare", "mmd2"]

RESOLUTION = 256  # cells along a side of the grid
MARGIN = 1.1  # of the grid around the data
NUM_COMPARED = 2_000  # samples of a side in MMD^2, whose cost grows with the square
KERNEL_WIDTHS = (1, 1 / 4, 1 / 16)  # in units of the law's standard deviation: place, shape and edges


@dataclass(frozen=True)
class LevelDensity:
    """One level of the comparison; without a law there is no `truth` and no distance.

    Attributes:
        level: s.
        half_side: the grid covers [-half_side, half_side]^2 in the units of x_s.
        log_z_nats: ln of the integral of exp(F(y)) over that square.
        model: (n, n) probability of each cell, first coordinate first, normalised over the grid.
        truth: the same of the law.
        samples: caption -> (N, 2) x_s of that level on the samplers' way.
        kl_nats: KL(truth || model) of the marginals.
        recovery_kl_nats: the mean KL of the conditionals given x_t; at the top, where x_t is not used, the marginal's.
        score_error: mean squared error of the model's score, relative to the law's own mean square.
        mmd2: caption -> MMD^2 of the samples against exact draws; "exact draws" has others of those, the floor.
    """

    level: int
    half_side: float
    log_z_nats: float
    model: Tensor
    truth: Tensor | None
    samples: dict[str, Tensor]
    kl_nats: float | None = None
    recovery_kl_nats: float | None = None
    score_error: float | None = None
    mmd2: dict[str, float] | None = None


def compare(
    model: Model,
    law: Law | None,
    radius: float,
    *,
    number: int = 20_000,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[LevelDensity]:
    """Compare every level of a model with the law of its data.

    Args:
        model: of unconditional points in the plane.
        law: what the data were drawn from; None where nobody knows.
        radius: the largest coordinate of the data.
        number: samples drawn, with the model's own sampling and at K = 0.

    Raises:
        ConfigError: as `check_plane`.
    """
    check_plane(model)
    num_levels = model.schedule.num_levels
    paths: dict[str, dict[int, Tensor]] = {}
    for num_steps in dict.fromkeys([model.config.sampling.num_steps, 0]):
        path = paths[f"K = {num_steps}"] = {}

        def last(level: int, step: int, x_s: Tensor, path: dict[int, Tensor] = path) -> None:
            path[level] = x_s.cpu()

        sampling = model.config.sampling.model_copy(update={"num_steps": num_steps, "batch_size": number})
        model.sample(number, seed=seed, sampling=sampling, record=last)
        if progress:
            progress("sample", len(paths), 2)
    levels = []
    for level in range(num_levels):
        samples = {caption: path[level] for caption, path in paths.items()}
        levels.append(_compare_level(model, law, radius, level, samples, seed))
        if progress:
            progress("compare levels", level + 1, num_levels)
    return levels


def check_plane(model: Model) -> None:
    """Refuse what has no density on a grid.

    Raises:
        ConfigError: the model is not of unconditional points in the plane.
    """
    data = model.config.data
    if data.shape != (2,) or data.num_classes:
        raise ConfigError(
            f"a density on a grid needs unconditional points in the plane, data.shape [2]; the model "
            f"{model.config.name!r} has {list(data.shape)} and {data.num_classes} classes"
        )


def _compare_level(
    model: Model, law: Law | None, radius: float, level: int, samples: dict[str, Tensor], seed: int
) -> LevelDensity:
    tr = model.schedule.transition(level, torch.zeros(1, dtype=torch.float64))
    alpha, sigma, scale = tr.alpha_s.item(), tr.sigma_s.item(), tr.scale.item()
    half_side = MARGIN * alpha * radius + 4 * sigma
    points, cell = _grid(half_side)
    log_f = _log_density(model, level, points)
    q = log_f.softmax(dim=0)
    log_z = (log_f.logsumexp(dim=0) + math.log(cell * scale**2)).item()
    shape = (RESOLUTION, RESOLUTION)
    if law is None:
        return LevelDensity(level, half_side, log_z, q.view(shape), None, samples)
    p = law.log_prob(points, alpha, sigma).softmax(dim=0)
    kl = recovery_kl = _kl(p, q)
    if level < model.schedule.num_levels - 1:
        kernel = _noise_on_grid(half_side, tr.sigma_ts.item() / scale)
        recovery_kl -= _kl(*(kernel @ density.view(shape) @ kernel.mT for density in (p, q)))
    rng = np.random.default_rng([seed, level])
    x_0 = law.draw(2 * NUM_COMPARED, rng)
    exact = torch.from_numpy(alpha * x_0 + sigma * rng.standard_normal(x_0.shape)).float()
    reference, floor = exact.split(NUM_COMPARED)
    exact_score = score(law, reference.double(), alpha, sigma)
    error = _score(model, level, reference) - exact_score
    score_error = (error.square().mean() / exact_score.square().mean()).item()
    compared = samples | {"exact draws": floor}
    mmd = {caption: mmd2(drawn[:NUM_COMPARED], reference) for caption, drawn in compared.items()}
    densities = q.view(shape), p.view(shape)
    return LevelDensity(level, half_side, log_z, *densities, samples, kl, recovery_kl, score_error, mmd)


def _axis(half_side: float) -> Tensor:
    """Centres (n,) of the cells of one side, in float64."""
    return ((torch.arange(RESOLUTION, dtype=torch.float64) + 0.5) * 2 / RESOLUTION - 1) * half_side


def _grid(half_side: float) -> tuple[Tensor, float]:
    """Centres (n^2, 2) of the cells of [-half_side, half_side]^2, first coordinate first; the area of a cell."""
    axis = _axis(half_side)
    return torch.cartesian_prod(axis, axis), (2 * half_side / RESOLUTION) ** 2


@torch.no_grad()
def _log_density(model: Model, level: int, points: Tensor) -> Tensor:
    """(n,) F of y = scale x_s at points x_s (n, 2): the marginal's log-density up to a constant, in float64."""
    x = points.to(model.device, torch.float32)
    target = target_at(model.ladder, model.schedule, level, x, formulation=model.exact)
    return target.log_prob(target.transition.scale * x).double().cpu()


def _score(model: Model, level: int, x_s: Tensor) -> Tensor:
    """(n, 2) gradient of the marginal's log-density at points x_s (n, 2), in float64."""
    x = x_s.to(model.device, torch.float32)
    target = target_at(model.ladder, model.schedule, level, x, formulation=model.exact)
    scale = target.transition.scale
    return (scale * target.score(scale * x)).double().cpu()


def _noise_on_grid(half_side: float, std: float) -> Tensor:
    """(n, n) probability to go from a cell (column) to another (row) of one axis; what leaves the grid is put back."""
    axis = _axis(half_side)
    return (-(((axis[:, None] - axis) / std) ** 2) / 2).softmax(dim=0)


def _kl(p: Tensor, q: Tensor) -> float:
    """KL(p || q) of cells; where q is too small for a float64, a lower bound."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q.clamp(min=1e-300))).sum().item()


def mmd2(a: Tensor, b: Tensor) -> float:
    """Unbiased MMD^2 of two sets (n, d), (m, d): averaged over Gaussian kernels of widths in units of b's spread.

    0 is expected for draws of one law, where it may come out negative.
    """
    variance = b.var(dim=0).mean()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        exponent = torch.cdist(x, y).square() / (-2 * variance)
        # clamped: numbers below the smallest normal one take ten times as long
        return torch.stack([(exponent / width**2).clamp(min=-80).exp().mean() for width in KERNEL_WIDTHS]).mean()

    def within(x: Tensor) -> Tensor:  # without each point's kernel with itself, which is 1
        return (kernel(x, x) * len(x) - 1) / (len(x) - 1)

    return (within(a) + within(b) - 2 * kernel(a, b)).item()
