r"""The noise levels: x_t = alpha_t x_0 + sigma_t eps, with alpha_t^2 + sigma_t^2 = 1 and logSNR falling in t.

A transition leaves the noisy side t and reaches the cleaner side s = t-1; `level` = s = 0 ... num_levels-1, and
the top level is num_levels-1. In the scaled space y = scale * x_s the forward step is plain additive noise,
x_t = y + sigma_ts eps, except at the top, where scale = 1 and x_t carries no information that a chain would use.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cdrl.errors import ConfigError

__all__ = ["Schedule", "Transition", "cosine", "drl_t6"]


@dataclass(frozen=True)
class Transition:
    """Every constant of the transitions t -> s of a batch, each of shape (B, 1, ..., 1) unless noted."""

    logsnr_t: Tensor  # (B,)
    logsnr_s: Tensor  # (B,)
    alpha_t: Tensor
    sigma_t: Tensor
    alpha_s: Tensor
    sigma_s: Tensor
    alpha_ts: Tensor  # alpha_t / alpha_s
    sigma_ts: Tensor  # std of x_t given x_s
    scale: Tensor  # y = scale * x_s: alpha_ts, but 1 at the top
    sigma_post: Tensor  # std of q(x_s | x_t, x_0)
    step_size: Tensor  # squared Langevin noise scale, b^2 c^2 sigma_ts^2
    loss_weight: Tensor  # sigma_ts of level 0 / sigma_ts
    is_top: Tensor  # 1.0 at the top level, else 0.0

    def posterior_mean(self, x_0: Tensor, x_t: Tensor) -> Tensor:
        """E[x_s | x_t, x_0], in the units of x_s (spec section 6, step 2)."""
        return (self.alpha_s * self.sigma_ts**2 * x_0 + self.alpha_ts * self.sigma_s**2 * x_t) / self.sigma_t**2


class Schedule:
    """A table of noise levels with the Langevin step size of each transition, kept in float64.

    Args:
        logsnr: (T+1,) log(alpha^2/sigma^2) of t = 0 ... T, finite and strictly falling (also as angles in float64).
        step_scale: b^2, one number or one per level; positive.
        step_growth: c^2 of level s is sigma_s/sigma_0 ("sigma": the paper, first power) or 1/sigma_0 ("constant").

    Raises:
        ConfigError: the table is too short, not finite or not strictly falling, or a step scale is not positive.
    """

    def __init__(self, logsnr: Tensor, step_scale: float | Sequence[float], step_growth: str = "sigma") -> None:
        logsnr = logsnr.to(torch.float64)
        theta = torch.atan(torch.exp(-logsnr / 2))  # alpha = cos, sigma = sin: no cancellation at either end
        falls = logsnr.ndim == 1 and len(logsnr) > 1 and bool((theta.diff() > 0).all() and theta[0] > 0)
        if not falls or not logsnr.isfinite().all():
            raise ConfigError(f"schedule: logSNR must be finite and strictly falling, got {logsnr.tolist()}")
        num_levels = len(logsnr) - 1
        b2 = torch.as_tensor(step_scale, dtype=torch.float64)
        if b2.shape not in ((), (num_levels,)) or not ((b2 > 0) & b2.isfinite()).all():
            raise ConfigError(
                f"schedule.step_scale: expected one positive number or one for each of {num_levels} levels, "
                f"got {step_scale}"
            )
        alpha, sigma = theta.cos(), theta.sin()
        alpha_ts = alpha[1:] / alpha[:-1]
        sigma_ts = ((theta[1:] - theta[:-1]).sin() * (theta[1:] + theta[:-1]).sin()).sqrt() / alpha[:-1]
        is_top = torch.zeros(num_levels, dtype=torch.float64)
        is_top[-1] = 1
        if step_growth not in ("sigma", "constant"):
            raise ConfigError(f"schedule.step_growth: expected 'sigma' or 'constant', got {step_growth!r}")
        c2 = (sigma[:-1] if step_growth == "sigma" else torch.ones(num_levels, dtype=torch.float64)) / sigma[0]
        self.logsnr, self.num_levels = logsnr, num_levels
        self._table = Transition(
            logsnr_t=logsnr[1:],
            logsnr_s=logsnr[:-1],
            alpha_t=alpha[1:],
            sigma_t=sigma[1:],
            alpha_s=alpha[:-1],
            sigma_s=sigma[:-1],
            alpha_ts=alpha_ts,
            sigma_ts=sigma_ts,
            scale=torch.where(is_top > 0, 1.0, alpha_ts),
            sigma_post=sigma[:-1] / sigma[1:] * sigma_ts,
            step_size=b2 * c2 * sigma_ts**2,
            loss_weight=sigma_ts[0] / sigma_ts,
            is_top=is_top,
        )

    def transition(self, level: Tensor | int, like: Tensor) -> Transition:
        """The constants for a batch, in the dtype and on the device of `like` (B, ...); `level` (B,) or one int."""
        level = torch.as_tensor(level, device=like.device).expand(len(like))
        constants = {}
        for field in fields(Transition):
            column = getattr(self._table, field.name).to(device=like.device, dtype=like.dtype)[level]
            broadcast = field.name.startswith("logsnr")
            constants[field.name] = column if broadcast else column.view(-1, *[1] * (like.ndim - 1))
        return Transition(**constants)


def cosine(num_levels: int = 6, logsnr_max: float = 9.8, logsnr_min: float = -5.1) -> Tensor:
    """CDRL's table (T+1,): logSNR = -2 ln tan(a t/T + b), from logsnr_max to logsnr_min (spec section 2.3)."""
    if not logsnr_max > logsnr_min:
        raise ConfigError(f"schedule: logsnr_max {logsnr_max} must exceed logsnr_min {logsnr_min}")
    low, high = torch.atan(torch.exp(-torch.tensor([logsnr_max, logsnr_min], dtype=torch.float64) / 2))
    theta = torch.linspace(0, 1, num_levels + 1, dtype=torch.float64) * (high - low) + low
    return -2 * theta.tan().log()


def drl_t6(num_levels: int = 6) -> Tensor:
    """DRL's table (T+1,): nodes 0, 100, ..., 500, 999 of the 1000-step linear schedule (spec section 2.1)."""
    if not 2 <= num_levels <= 500:
        raise ConfigError(f"schedule.num_levels: DRL's node formula needs 2 ... 500 levels, got {num_levels}")
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    stride = 1000 // (2 * (num_levels - 1))
    nodes = [*range(0, num_levels * stride, stride), 999]
    return torch.log(alpha_bar[nodes]) - torch.log1p(-alpha_bar[nodes])
