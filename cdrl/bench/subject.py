"""What is measured: updates and samples of one configuration in one formulation, on made-up data.

The method does not know that it is watched. It asks its formulation for the initializer's precision, for prepared
weights and for a chain, and its caller to average gradients: each of these is the border of a phase.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cdrl.bench.meters import Laps, Meter
from cdrl.build import build_ladder, build_schedule
from cdrl.config import Config
from cdrl.errors import ConfigError
from cdrl.method.cooperative import Optimizers, cooperative_step
from cdrl.method.ema import update_average
from cdrl.method.fast import Fast
from cdrl.method.formulation import Formulation, Prepared
from cdrl.method.guidance import Condition
from cdrl.method.langevin import Chain, RecoveryTarget
from cdrl.method.rng import Rng
from cdrl.method.sampling import sample

__all__ = ["PHASES", "Subject"]

PHASES = {
    "noise": "power iteration, noise",
    "proposal": "initializer, forward",
    "prepare": "weights prepared",
    "chain": "chain, K steps",
    "losses": "losses, forward and backward",
    "initializer": "initializer, backward",
    "update": "clipping, optimizers, average",
}
"""Every update consists of these."""


class _Watched:
    """A formulation that tells when each part of an update is done."""

    def __init__(self, formulation: Formulation, done: Callable[[str], None]) -> None:
        self._formulation, self._done = formulation, done

    @contextmanager
    def initializer(self, *, backward: bool = False) -> Iterator[None]:
        self._done("losses" if backward else "noise")
        with self._formulation.initializer(backward=backward):
            yield

    def prepare(self, net: nn.Module) -> Prepared:
        self._done("proposal")
        return self._formulation.prepare(net)

    @property
    def chain(self) -> Chain:
        return self._chain

    def _chain(self, target: RecoveryTarget, y: Tensor, **options: Any) -> Tensor:
        self._done("prepare")
        y = self._formulation.chain(target, y, **options)
        self._done("chain")
        return y


class Subject:
    """Nets, optimizers and average as a run has them.

    Args:
        config: of the run; its first pair is updated, all pairs sample.
        formulation: how f is computed.
        batch_size: B of updates and of sampling batches.
        device: where.

    Raises:
        ConfigError: K = 0, which leaves no chain to measure.
    """

    def __init__(self, config: Config, formulation: Formulation, batch_size: int, device: torch.device) -> None:
        if config.training.num_steps == 0:
            raise ConfigError("training.num_steps: a benchmark needs a chain, expected K >= 1, got 0")
        self.config, self.formulation, self.batch_size, self.device = config, formulation, batch_size, device
        self.schedule = build_schedule(config.schedule)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            self.ladder = build_ladder(config).to(device)
        self.pair = next(self.ladder.distinct())
        self._average = copy.deepcopy(self.ladder).requires_grad_(False)
        energy, initializer = self.pair.energy, self.pair.initializer
        self._optimizers = Optimizers(
            self._adam(energy, config.training.energy.lr),
            None if initializer is None else self._adam(initializer, config.training.initializer.lr),
        )
        self._num_updates = 0

    def _adam(self, net: nn.Module, lr: float) -> torch.optim.Adam:
        # the plain side is stock: torch chooses its loop, as it does for whoever does not ask
        return torch.optim.Adam(net.parameters(), lr=lr, fused=True if isinstance(self.formulation, Fast) else None)

    def batch(self, rng: Rng, batch_size: int) -> tuple[Tensor, Tensor | None]:
        """x_0 (B, ...) in [-1, 1] and labels (B,) or None."""
        x_0 = 2 * rng.uniform(torch.empty(batch_size, *self.config.data.shape, device=self.device)) - 1
        classes = self.config.data.num_classes
        label = (rng.uniform(x_0.new_empty(batch_size)) * classes).long() + 1 if classes else None
        return x_0, label

    def update(
        self, meter: Meter, *, formulation: Formulation | None = None, batch_size: int | None = None
    ) -> dict[str, float]:
        """One update of the first pair and its average: what each of `PHASES` took.

        Args:
            formulation, batch_size: others than the subject's, for this update.
        """
        training = self.config.training
        rng = Rng(training.seed, "bench", self._num_updates, device=self.device)
        x_0, label = self.batch(rng, batch_size or self.batch_size)
        level = self.ladder.draw_levels(0, rng, x_0)
        laps = Laps(meter)
        last = "losses" if self.pair.initializer is None else "initializer"
        cooperative_step(
            self.pair,
            self._optimizers,
            self.schedule,
            x_0,
            level,
            label,
            num_steps=training.num_steps,
            rng=rng,
            step=self._num_updates,
            shared_noise=training.shared_noise,
            clip_norm=training.clip_norm,
            anchor=training.anchor,
            observe=lambda *seen: laps(last),
            formulation=_Watched(formulation or self.formulation, laps),
        )
        update_average(next(self._average.distinct()), self.pair, training.ema_decay, self._num_updates)
        laps("update")
        self._num_updates += 1
        return laps.spent()

    def draw(
        self, meter: Meter, *, formulation: Formulation | None = None, batch_size: int | None = None
    ) -> float:
        """One sampling batch with the averaged weights: what it took."""
        sampling = self.config.sampling
        rng = Rng(self.config.training.seed, "bench", "draw", device=self.device)
        x_0, label = self.batch(rng, batch_size or self.batch_size)
        x_T, weight = rng.normal(x_0), sampling.guidance
        each = [Condition.guided(label, w) for w in (weight if isinstance(weight, tuple) else (weight,))]
        laps = Laps(meter)
        sample(
            self._average,
            self.schedule,
            x_T,
            num_steps=sampling.num_steps,
            rng=rng,
            condition=each if len(each) > 1 else each[0],
            step_multiplier=sampling.step_multiplier,
            noise_scale=sampling.noise_scale,
            denoise_scale=sampling.denoise_scale,
            formulation=formulation or self.formulation,
        )
        laps("sampling")
        return laps.spent()["sampling"]
