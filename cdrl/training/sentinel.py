r"""The divergence sentinel watches each level and tells when training runs away while all numbers are still finite.

Watched are magnitudes, which a healthy run changes slowly and a runaway one by powers of ten:

    f                      |f(y_pos)|                                   of each sample of a level
    energy_gap             |f(y_neg) - f(y_pos)|                        of each sample of a level
    displacement_sigmas    rms of y_neg - y_init in units of sigma_ts   of each sample of a level
    grad_norm_*            of each net before clipping                  of each update; with the pair's first level

A check compares the mean of each since the last check with its running mean over about the last fifty checks. A mean
above `max_growth` times the running one, a displacement above `max_displacement_sigmas`, or a value that is not finite
is a breach. Magnitudes make the mean independent of how many updates lie between two checks; a gap's sign would not.

A chain draws x_s given x_t, which lies within a few sigma_ts of x_t; in health it moves by 0.2 ... 2 of them, at every
level of every schedule, and a runaway chain by more than 30. (The metric in the log is in units of the chain's own
noise, which depends on its step size.)

All ranks judge the sum of their tables, so that they decide alike. Values are rounded to `RESOLUTION`, which makes
these sums exact in float64: they do not depend on how a batch is cut into pieces and replicas.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl.config import SentinelConfig
from cdrl.errors import Diverged
from cdrl.method.schedule import Schedule

__all__ = ["QUANTITIES", "Breach", "Sentinel", "chain_noise"]

QUANTITIES = ("f", "energy_gap", "displacement_sigmas", "grad_norm_energy", "grad_norm_initializer")
DISPLACEMENT = QUANTITIES.index("displacement_sigmas")
NORMS = slice(QUANTITIES.index("grad_norm_energy"), None)

RESOLUTION = 2.0**-30
"""Sums of multiples of it are exact below 2^23, about 8e6."""

MEMORY = 0.98
"""A check's weight after one more check. Growth by a power of time stays below any sensible bound whatever the
memory; exponential growth passes `max_growth` = 15 if it doubles in fewer than three checks."""

NUM_YOUNG_CHECKS, YOUNG_ROOM = 10, 10.0
"""A level's first checks have so much more room: a new energy net begins at f = 0 and grows by large factors, a healthy
one on CIFAR-10 by up to 17 times its running mean from one check to the next."""

MIN_SAMPLES, MIN_NORMS = 16, 4
"""How many a mean needs, of samples of a level or of norms of whole batches; fewer wait for the next check. Were they
as uneven as an exponential distribution, a mean would be ten times the expected one with probability below 1e-12."""


@dataclass(frozen=True)
class Breach:
    """What ran away.

    Attributes:
        step: updates made when it was seen.
        quantity: one of `QUANTITIES`.
        value: its mean since the last check.
        bound: what it should not exceed; inf where only finiteness was asked for.
    """

    pair: int
    level: int
    step: int
    quantity: str
    value: float
    bound: float


class Sentinel:
    """The observations of this rank, and the running means of all ranks.

    Args:
        groups: the levels of each pair.
        noise: (levels,) of a chain in units of sigma_ts, from `chain_noise`.
        device: where the observations are made; they are added up there, and nothing waits for them.
    """

    def __init__(
        self,
        config: SentinelConfig,
        groups: Sequence[Sequence[int]],
        noise: Tensor,
        device: torch.device | str = "cpu",
    ) -> None:
        self._config, self._groups, self._device = config, groups, torch.device(device)
        self.use_noise(noise)
        self._pair_of = {level: number for number, group in enumerate(groups) for level in group}
        shape = (len(self._pair_of), len(QUANTITIES))
        self._table = torch.zeros(*shape, 2, dtype=torch.float64, device=self._device)  # sums and counts
        self._waiting = torch.zeros(*shape, 2, dtype=torch.float64)  # seen by all ranks, not judged yet
        self._known = torch.zeros(*shape, 2, dtype=torch.float64)  # judged and healthy, older ones with less weight
        self._num_checks = torch.zeros(*shape, dtype=torch.int64)

    def use_noise(self, noise: Tensor) -> None:
        """Go on with chains of another step size."""
        self._noise = noise.to(self._device, torch.float32)

    @torch.no_grad()
    def observe(self, level: Tensor, f_pos: Tensor, f_neg: Tensor, displacement: Tensor) -> None:
        """Add a piece of a batch, each (B,), on the sentinel's device; displacement in units of the chain's noise."""
        values = torch.stack([f_pos.abs(), (f_neg - f_pos).abs(), displacement * self._noise[level]], dim=1)
        rows = torch.stack([_rounded(values), torch.ones_like(values, dtype=torch.float64)], dim=-1)
        self._table[:, : NORMS.start].index_add_(0, level, rows)

    @torch.no_grad()
    def observe_norms(self, pair: int, energy: Tensor, initializer: Tensor) -> None:
        """Add the gradient norms of one update; zero stands for a net that was not trained."""
        norms = torch.stack([energy.to(self._device), initializer.to(self._device)])
        self._table[self._groups[pair][0], NORMS] += torch.stack([_rounded(norms), (norms != 0).double()], dim=-1)

    def refuse(self, error: Diverged) -> None:
        """Add an update that was refused because a gradient was not finite: the next check is a breach everywhere."""
        self._table[error.level, QUANTITIES.index(next(iter(error.value))), 0] = torch.nan

    def table(self) -> Tensor:
        """What this rank has observed since the last call, (levels, quantities, 2) sums and counts, float64.

        The tables of all ranks added up are what `judge` takes. This call waits for the device.
        """
        seen = self._table.cpu()
        self._table = torch.zeros_like(self._table)
        return seen

    def hold(self, table: Tensor) -> None:
        """Keep what has been seen for the next check, so that a checkpoint between two checks leaves nothing out.

        Args:
            table: the sum of the tables of all ranks.
        """
        self._waiting += table

    def judge(self, table: Tensor, step: int) -> Breach | None:
        """Compare what has been seen since the last check with the running means; if it is healthy, it joins them.

        Args:
            table: the sum of the tables of all ranks.
            step: updates made.

        Returns:
            The worst breach. What follows it is a roll back, with the running means of the checkpoint.
        """
        self.hold(table)
        sums, counts = self._waiting.unbind(-1)
        ready = (counts >= _needed(counts)) | ~sums.isfinite()
        value = RESOLUTION * sums / counts
        bound = self._bounds()
        excess = torch.where(value.isfinite(), value / bound, torch.inf)
        if (ready & (excess > 1)).any():
            level, column = divmod(int(torch.where(ready, excess, 0).argmax()), len(QUANTITIES))
            seen, limit = value[level, column].item(), bound[level, column].item()
            return Breach(self._pair_of[level], level, step, QUANTITIES[column], seen, limit)
        self._known = torch.where(ready[..., None], MEMORY * self._known + self._waiting, self._known)
        self._waiting = torch.where(ready[..., None], 0.0, self._waiting)
        self._num_checks += ready
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """What is known and what is held, equal on every rank; `judge` or `hold` comes before saving."""
        return {"known": self._known, "waiting": self._waiting, "num_checks": self._num_checks}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from where the state was taken; forget what has been observed since.

        Raises:
            KeyError, RuntimeError: it is no state of a sentinel of so many levels.
        """
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
        self._table.zero_()

    def _bounds(self) -> Tensor:
        """What the next means must not exceed, (levels, quantities)."""
        sums, counts = self._known.unbind(-1)
        room = torch.where(self._num_checks < NUM_YOUNG_CHECKS, YOUNG_ROOM, 1.0)
        bound = room * self._config.max_growth * RESOLUTION * sums / counts
        bound = torch.where(self._num_checks == 0, torch.inf, bound)
        bound[:, DISPLACEMENT].clamp_(max=self._config.max_displacement_sigmas)
        return bound


def chain_noise(schedule: Schedule, num_steps: int, *, has_initializer: bool) -> Tensor:
    """The noise that a chain of K steps adds at each level, in units of sigma_ts, (levels,) float64.

    It is the unit of `StepMetrics.displacement`, where one normal draw (no initializer, K = 0) counts in sigma_ts.
    """
    tr = schedule.constants
    if num_steps == 0 and not has_initializer:
        return torch.ones_like(tr.sigma_ts)
    return (max(num_steps, 1) * tr.step_size).sqrt() / tr.sigma_ts


def _needed(counts: Tensor) -> Tensor:
    """How many a mean needs, by quantity."""
    needed = torch.full(counts.shape[-1:], MIN_SAMPLES)
    needed[NORMS] = MIN_NORMS
    return needed


def _rounded(values: Tensor) -> Tensor:
    """In units of `RESOLUTION`, as whole numbers in float64."""
    return (values.double() / RESOLUTION).round()
