r"""The noise levels: x_t = alpha_t x_0 + sigma_t eps, with alpha_t^2 + sigma_t^2 = 1 and logSNR falling in t.

A transition leaves the noisy side t and reaches the cleaner side s = t-1; `level` = s = 0 ... num_levels-1, and
the top level is num_levels-1. In the scaled space y = scale * x_s the forward step is plain additive noise,
x_t = y + sigma_ts eps, except at the top, where scale = 1 and x_t carries no information that a chain would use.

A family is a function that returns logSNR of t = 0 ... T: `cosine` (CDRL), `drl_t6` and `drl_t1k` (DRL); any other
falling table is a schedule too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdrl.errors import ConfigError

__all__ = ["PURE_NOISE", "Schedule", "Transition", "cosine", "drl_t1k", "drl_t6"]

PURE_NOISE = -20.0
"""logSNR that stands for x_t without any signal: finite, and where the level embedding ends (spec section 9.1)."""


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
    loss_weight: Tensor  # (sigma_ts of level 0 / sigma_ts)^weight_power
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
        weight_power: the loss of level s weighs (sigma_ts of level 0 / sigma_ts)^power; the paper: 1.

    Raises:
        ConfigError: the table is too short, not finite or not strictly falling, or a step scale is not positive.
    """

    def __init__(
        self,
        logsnr: Tensor,
        step_scale: float | Sequence[float],
        step_growth: str = "sigma",
        weight_power: float = 1.0,
    ) -> None:
        logsnr = logsnr.to(torch.float64)
        theta = torch.atan(torch.exp(-logsnr / 2))  # alpha = cos, sigma = sin: no cancellation at either end
        _check_falls(logsnr, theta)
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
        columns = Transition(
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
            loss_weight=(sigma_ts[0] / sigma_ts) ** weight_power,
            is_top=is_top,
        )
        self._table = torch.stack(list(vars(columns).values()))  # (constants, levels)
        self._placed: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @property
    def constants(self) -> Transition:
        """Every constant of every level, each (T,), float64."""
        return Transition(*self._table)

    def transition(self, level: Tensor | int, like: Tensor) -> Transition:
        """The constants for a batch, in the dtype and on the device of `like` (B, ...); `level` (B,) or one int.

        One lookup in a table that stays on the device, the rest are views: nothing waits for the device.
        """
        table = self._on(like.device, like.dtype)
        if isinstance(level, int):
            rows = table[:, level].unsqueeze(1).expand(-1, len(like))
        else:
            rows = table.index_select(1, level.to(like.device).expand(len(like)))
        logsnr = rows[:2]
        return Transition(*logsnr, *rows[2:].view(-1, len(like), *[1] * (like.ndim - 1)))

    def _on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        key = (device, dtype)
        if key not in self._placed:
            self._placed[key] = self._table.to(device, dtype)
        return self._placed[key]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_placed": {}}  # tables on devices are no part of a schedule that is sent or copied


def _check_falls(logsnr: Tensor, theta: Tensor) -> None:
    expected = "schedule: expected finite, strictly falling logSNR of t = 0 ... T, T >= 1"
    if logsnr.ndim != 1 or len(logsnr) < 2:
        raise ConfigError(f"{expected}, got shape {list(logsnr.shape)}")
    grows = torch.cat([theta[:1], theta.diff()]) > 0  # as angles: float64 must tell the levels apart
    wrong = ~(grows & logsnr.isfinite())
    if wrong.any():
        t = int(wrong.int().argmax())
        after = f" after {logsnr[t - 1]:.15g}" if t else ""
        raise ConfigError(f"{expected}, got {logsnr[t]:.15g}{after} at t = {t}")


def cosine(num_levels: int = 6, logsnr_max: float = 9.8, logsnr_min: float = -5.1, warp: float = 1.0) -> Tensor:
    """CDRL's table (T+1,): logSNR = -2 ln tan(a u + b), u = (t/T)^warp, between its two ends (spec section 2.3).

    The warp is ours (the paper has 1): above 1 levels gather at the clean end, below 1 at the noisy end.
    """
    if not logsnr_max > logsnr_min:
        raise ConfigError(f"schedule: logsnr_max {logsnr_max} must exceed logsnr_min {logsnr_min}")
    if not 0 < warp < math.inf:
        raise ConfigError(f"schedule.warp: expected a positive number, got {warp}")
    low, high = torch.atan(torch.exp(-torch.tensor([logsnr_max, logsnr_min], dtype=torch.float64) / 2))
    theta = torch.linspace(0, 1, num_levels + 1, dtype=torch.float64) ** warp * (high - low) + low
    return -2 * theta.tan().log()


def drl_t6(num_levels: int = 6) -> Tensor:
    """DRL's table (T+1,): nodes 0, 100, ..., 500, 999 of the 1000-step linear schedule (spec section 2.1)."""
    if not 2 <= num_levels <= 500:
        raise ConfigError(f"schedule.num_levels: DRL's node formula needs 2 ... 500 levels, got {num_levels}")
    stride = 1000 // (2 * (num_levels - 1))
    return _linear_1000()[[*range(0, num_levels * stride, stride), 999]]


def drl_t1k(num_levels: int = 1000) -> Tensor:
    """DRL's long table (1001,): all 1000 nodes of the linear schedule, then pure noise (spec section 2.2).

    A last step with a = 0 has logSNR -inf; its place takes `PURE_NOISE`, where alpha is 4.5e-5.
    """
    if num_levels != 1000:
        raise ConfigError(
            f"schedule.num_levels: drl_t1k has 1000 levels, got {num_levels}; drl_t6 takes fewer of the same nodes"
        )
    return torch.cat([_linear_1000(), torch.tensor([PURE_NOISE], dtype=torch.float64)])


def _linear_1000() -> Tensor:
    """logSNR (1000,) of the cumulative product of 1 - beta, beta = 1e-4 ... 0.02 in equal steps."""
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    return torch.log(alpha_bar) - torch.log1p(-alpha_bar)
