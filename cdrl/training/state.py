"""Everything that an update changes: live pairs, averaged pairs, optimizers, the number of updates."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cdrl.build import build_formulation, build_ladder, build_schedule
from cdrl.config import Config, OptimizerConfig
from cdrl.method.cooperative import Optimizers
from cdrl.method.ema import update_average
from cdrl.method.formulation import Formulation
from cdrl.method.nets import power_iterate
from cdrl.method.nets.spectral import NUM_WARMUP_ITERATIONS
from cdrl.method.pairs import Pair, PairLadder, groups_of_levels
from cdrl.method.rng import key_to_seed
from cdrl.method.schedule import Schedule
from cdrl.model import Model
from cdrl.training.grid import Grid
from cdrl.training.rescue import Rescue, applied, in_force, stream_key
from cdrl.training.sentinel import Sentinel, chain_noise

__all__ = ["TrainState", "learning_rate"]

COST_MEMORY = 0.95


def learning_rate(config: OptimizerConfig, update: int, num_updates: int) -> float:
    """Linear warm-up from 1/warmup_updates (not from zero, trap 33), then constant or cosine decay.

    Args:
        update: updates of this network that precede this one.
        num_updates: updates of this network in the whole run.
    """
    warmup = min(1.0, (update + 1 + config.warmup_offset) / config.warmup_updates)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, update / num_updates)))
    return config.lr * warmup * (config.final_fraction + (1 - config.final_fraction) * cosine)


@dataclass
class TrainState:
    """The state of a run on one rank; pairs of other ranks keep their initial weights until shared.

    Attributes:
        asked: the run's configuration.
        rescues: of the run, so far.
        config: the configuration with the rates that rescues have left.
        sentinel: None where it is switched off.
        ladder: live weights.
        average: averaged weights.
        optimizers: by number of an owned pair.
        step: updates made.
        cost_s: seconds of an update of an owned pair, a running mean.
    """

    asked: Config
    grid: Grid
    device: torch.device
    rescues: Sequence[Rescue] = ()
    config: Config = field(init=False)
    sentinel: Sentinel | None = field(init=False)
    schedule: Schedule = field(init=False)
    formulation: Formulation = field(init=False)
    ladder: PairLadder = field(init=False)
    average: PairLadder = field(init=False)
    optimizers: dict[int, Optimizers] = field(init=False)
    step: int = 0
    cost_s: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = self.asked
        groups = groups_of_levels(self.config.pairs, self.config.schedule.num_levels)
        self.schedule = build_schedule(self.config.schedule)
        self.sentinel = None
        if self.config.sentinel.enabled:
            self.sentinel = Sentinel(self.config.sentinel, groups, self._chain_noise(), self.device)
        self.formulation = build_formulation(self.config.compute, self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key_to_seed(self.config.training.seed, "weights"))  # equal on every rank
            self.ladder = build_ladder(self.config).to(self.device)
        self.average = copy.deepcopy(self.ladder).requires_grad_(False)
        self.optimizers = {number: self._optimizers(self.pair(number)) for number in self.grid.pairs}

    def pair(self, number: int) -> Pair:
        """The live pair of a number."""
        return _as_pair(self.ladder.pairs[number])

    def averaged(self, number: int) -> Pair:
        """The averaged pair of a number."""
        return _as_pair(self.average.pairs[number])

    def adopt(self, model: Model) -> None:
        """Take the pairs that are not trained from a model."""
        for number in range(self.grid.num_pairs):
            if number not in self.grid.ranks:
                self.averaged(number).load_state_dict(model.ladder.pairs[number].state_dict())

    def spent(self, number: int, seconds: float) -> None:
        """Take up what an update of a pair has cost."""
        self.cost_s[number] = COST_MEMORY * self.cost_s.get(number, seconds) + (1 - COST_MEMORY) * seconds

    def take_up_rescues(self) -> None:
        """Lower the rates as the rescues before the coming update have it."""
        config = applied(self.asked, in_force(self.rescues, self.step))
        if config.schedule != self.config.schedule:
            self.schedule = build_schedule(config.schedule)
            if self.sentinel is not None:
                self.sentinel.use_noise(self._chain_noise())
        self.config = config

    @property
    def stream(self) -> tuple[int, ...]:
        """What rescues add to the key of the coming update's randomness."""
        return stream_key(self.rescues, self.step)

    @property
    def initializer_only_updates(self) -> int:
        """Updates at the start that train the initializer alone."""
        training = self.config.training
        return int(training.num_updates * training.initializer_only_fraction) if self.config.initializer else 0

    def set_learning_rates(self, number: int) -> None:
        """Set both learning rates of a pair for the coming update; the energy net's clock starts with its updates."""
        training, optimizers = self.config.training, self.optimizers[number]
        alone = self.initializer_only_updates
        rate = learning_rate(training.energy, max(0, self.step - alone), training.num_updates - alone)
        optimizers.energy.param_groups[0]["lr"] = rate
        if optimizers.initializer is not None:
            rate = learning_rate(training.initializer, self.step, training.num_updates)
            optimizers.initializer.param_groups[0]["lr"] = rate

    def update_average(self, number: int) -> None:
        """Follow an update of a pair with its average."""
        update_average(self.averaged(number), self.pair(number), self.config.training.ema_decay, self.step)

    @torch.no_grad()
    def settle_average(self) -> None:
        """Give this rank's averaged pairs singular vectors of their own weights."""
        for number in self.grid.pairs:
            pair = self.averaged(number)
            # from the live net's vectors: the result depends on the training, not on when it was settled before
            for vector, live in zip(pair.buffers(), self.pair(number).buffers(), strict=True):
                vector.copy_(live)
            power_iterate(pair, NUM_WARMUP_ITERATIONS)

    @torch.no_grad()
    def share_average(self) -> None:
        """Make the average, once it is settled, whole on every rank. A collective."""
        if self.grid.num_pairs > 1:
            for number in self.grid.ranks:
                self.grid.share(list(self.averaged(number).state_dict().values()), number)

    def _chain_noise(self) -> Tensor:
        has_initializer = self.config.initializer is not None
        return chain_noise(self.schedule, self.config.training.num_steps, has_initializer=has_initializer)

    def _optimizers(self, pair: Pair) -> Optimizers:
        fused = True if self.config.compute.formulation == "fast" else None  # None: torch's default

        def adam(net: nn.Module | None) -> torch.optim.Adam | None:
            return torch.optim.Adam(net.parameters(), fused=fused) if net is not None else None

        energy = adam(pair.energy)
        assert energy is not None
        return Optimizers(energy, adam(pair.initializer))


def _as_pair(module: nn.Module) -> Pair:
    assert isinstance(module, Pair)
    return module
