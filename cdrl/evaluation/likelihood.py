r"""The normalized log-density of held-out data under one level of a model (spec section 8.5).

The density is that of slightly noisy data: x_s = alpha_s (x_0 + u) + sigma_s eps, u uniform over a pixel's bin. So

    bits/dim = -ln p(x_s)/(D ln 2) + log2(127.5),   p(x_s) = scale^D exp(F(y)) / Z,   y = scale x_s,

is no bits/dim of clean data. No density can be below the entropy of the noise, log2(127.5 sigma_s sqrt(2 pi e)).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from cdrl.errors import ConfigError
from cdrl.evaluation.held_out import held_out, real_data
from cdrl.method.hmc import value_and_score
from cdrl.method.langevin import RecoveryTarget
from cdrl.method.likelihood import Gaussian, LogZ, Path, ais, bits_per_dim, plan, relax
from cdrl.method.rng import Rng
from cdrl.method.sampling import target_at
from cdrl.model import Model

__all__ = ["Estimate", "Likelihood", "LikelihoodCard", "check_levels", "counter", "evaluate_likelihood"]

Progress = Callable[[str, int, int], None]
BATCH_SIZE = 250
NUM_MOMENT_ROWS = 10_000


class Estimate(BaseModel):
    """One estimate of log Z and what follows for the data. Infinite where one chain outweighs all others: null.

    Attributes:
        log_z_nats, standard_error_nats, effective_chains: as `cdrl.method.likelihood.LogZ`.
        nll_nats: mean -ln p(x_s) of the held-out data.
        bits_per_dim: of 8-bit images; None for points.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    log_z_nats: float
    standard_error_nats: float | None
    effective_chains: float
    nll_nats: float
    bits_per_dim: float | None


class LikelihoodCard(BaseModel):
    """The figures, and what they depend on.

    Attributes:
        forward: from the Gaussian: log Z from below (in expectation), so the likelihood is optimistic.
        backward: from held-out data relaxed by `num_relaxing` HMC steps: log Z from above if those were exact draws
            from the model, else an estimate.
        data_standard_error_nats: of nll_nats, over the held-out data.
        noise_bits_per_dim: entropy of the noise of x_s alone; None for points.
        num_values: distinct pixel values among the held-out images; None for points.
        label: the class; empty = the density without a label.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_digest: str
    step: int
    manifest_digest: str
    level: int
    label: str
    split: str
    num_images: int
    num_dims: int
    num_chains: int
    num_temperatures: int
    num_leapfrog: int
    num_relaxing: int
    seed: int
    forward: Estimate
    backward: Estimate
    data_standard_error_nats: float
    noise_bits_per_dim: float | None
    num_values: int | None


@dataclass(frozen=True)
class Likelihood:
    """A card and the runs behind it."""

    card: LikelihoodCard
    path: Path
    forward: LogZ
    backward: LogZ


def check_levels(model: Model, *levels: int) -> None:
    """Refuse levels that a model does not have.

    Raises:
        ConfigError: with the first of them.
    """
    if wrong := [level for level in levels if not 0 <= level < model.schedule.num_levels]:
        raise ConfigError(f"level {wrong[0]}: the model has the levels 0 ... {model.schedule.num_levels - 1}")


@torch.no_grad()
def evaluate_likelihood(
    model: Model,
    *,
    level: int = 0,
    label: str | None = None,
    uri: str | None = None,
    num_images: int = 500,
    num_chains: int = 128,
    num_temperatures: int = 1000,
    num_leapfrog: int = 1,
    num_relaxing: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> Likelihood:
    """Bracket log Z of one level by annealing and score held-out data.

    Args:
        level: s; the marginal density of x_s.
        label: name of a class: its density, on data of that class; None: the density without a label, on all data.
        uri: where the model's dataset is; default: where it was when the model was trained.
        num_images: at most so many held-out rows.
        num_chains: of the annealing, in one batch; at least 2.
        num_temperatures: of the annealing.
        num_leapfrog: evaluations per temperature; 1 = MALA.
        num_relaxing: HMC steps that bring held-out data closer to the model before the backward run.
        progress: called with (what is done, done, in all).

    Raises:
        ConfigError: no such level or class, too few chains or temperatures, a dataset that is not the model's, or a
            density that is not finite.
        DataError, StorageError: the dataset is missing or damaged.
    """
    check_levels(model, level)
    if num_chains < 2:
        raise ConfigError(f"annealing: expected at least 2 chains, got {num_chains}")
    report = progress or (lambda what, done, total: None)
    number = model.label_of(label)
    data = held_out(model, uri, num_images, label=number)
    moments = real_data(model, uri, "train", NUM_MOMENT_ROWS, label=number)
    is_image = data.stored.dtype == torch.uint8

    def target(like: Tensor) -> RecoveryTarget:
        labels = torch.full((len(like),), number, device=like.device) if model.config.data.num_classes else None
        return target_at(model.ladder, model.schedule, level, like, label=labels, formulation=model.exact)

    def noised(x: Tensor, key: str) -> Tensor:
        rng = Rng(seed, "likelihood", key, device=model.device)
        x = x.to(model.device)
        x = x + (rng.uniform(x) - 0.5) / 127.5 if is_image else x
        tr = model.schedule.transition(level, x)
        return tr.scale * (tr.alpha_s * x + tr.sigma_s * rng.normal(x))

    gaussian = _start(model, level, moments.x)
    y = noised(data.x, "data")
    like = torch.empty(num_chains, gaussian.mean.numel(), device=model.device)
    chains = noised(data.x[torch.arange(num_chains) % len(data.x)], "chains")
    density = gaussian.whitened(partial(value_and_score, target(chains)))

    def key(what: str) -> Rng:
        return Rng(seed, "likelihood", what, device=model.device)

    path = plan(
        density,
        like,
        num_temperatures=num_temperatures,
        num_leapfrog=num_leapfrog,
        rng=key("pilot"),
        progress=counter(report, "pilot", max(2, num_temperatures // 2)),
    )
    z = key("start").normal(like)
    forward = ais(density, z, path, rng=key("forward"), progress=counter(report, "forward", num_temperatures))
    z = relax(density, gaussian.whiten(chains), path, num_steps=num_relaxing, rng=key("relax"))
    counted = counter(report, "backward", num_temperatures)
    backward = ais(density, z, path, rng=key("backward"), backward=True, progress=counted)
    tr = model.schedule.transition(level, y[:1])
    log_prob = torch.cat([target(batch).log_prob(batch).double() for batch in y.split(BATCH_SIZE)])
    log_prob += gaussian.mean.numel() * tr.scale.double().log().item()  # per volume of x_s, not of y
    card = LikelihoodCard(
        model_digest=model.digest,
        step=model.step,
        manifest_digest=model.manifest_digest,
        level=level,
        label=label or "",
        split=data.split,
        num_images=len(data.x),
        num_dims=gaussian.mean.numel(),
        num_chains=num_chains,
        num_temperatures=num_temperatures,
        num_leapfrog=num_leapfrog,
        num_relaxing=num_relaxing,
        seed=seed,
        forward=_estimate(forward, log_prob, gaussian.mean.numel(), is_image),
        backward=_estimate(backward, log_prob, gaussian.mean.numel(), is_image),
        data_standard_error_nats=(log_prob.std(correction=0) / math.sqrt(len(log_prob))).item(),
        noise_bits_per_dim=math.log2(127.5 * tr.sigma_s.item() * math.sqrt(2 * math.pi * math.e)) if is_image else None,
        num_values=len(data.stored.unique()) if is_image else None,
    )
    return Likelihood(card, path, forward, backward)


def _start(model: Model, level: int, x: Tensor) -> Gaussian:
    """The Gaussian of y = scale x_s with the moments of real data x (N, *shape) and of the noise."""
    flat = x.flatten(1).double().to(model.device)
    tr = model.schedule.transition(level, flat[:1])
    covariance = tr.alpha_s**2 * torch.cov(flat.T, correction=0) + tr.sigma_s**2 * torch.eye(
        flat.shape[1], dtype=flat.dtype, device=flat.device
    )
    mean = (tr.scale * tr.alpha_s * flat.mean(dim=0)).to(x.dtype).view(x.shape[1:])
    return Gaussian.of(mean, tr.scale**2 * covariance)


def _estimate(log_z: LogZ, log_prob: Tensor, num_dims: int, is_image: bool) -> Estimate:
    log_p = log_prob.mean() - log_z.nats
    return Estimate(
        log_z_nats=log_z.nats,
        standard_error_nats=log_z.standard_error if math.isfinite(log_z.standard_error) else None,
        effective_chains=log_z.effective_samples,
        nll_nats=-log_p.item(),
        bits_per_dim=bits_per_dim(log_p, num_dims).item() if is_image else None,
    )


def counter(report: Progress, what: str, total: int) -> Callable[[], None]:
    """A callback that counts its calls."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        report(what, done, total)

    return count
