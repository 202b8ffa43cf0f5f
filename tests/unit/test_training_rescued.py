"""Real trainings under the sentinel: it leaves a healthy one alone, sees a runaway one, and a rescue mends it."""

import dataclasses
import math

import pytest
import torch

from cdrl.config import Config
from cdrl.data import Dataset
from cdrl.errors import Diverged
from cdrl.training.grid import Grid
from cdrl.training.loop import train
from cdrl.training.rescue import Rescue, rescue
from cdrl.training.sentinel import Breach
from cdrl.training.state import TrainState
from tests.training_parts import digits, quiet, tiny_config

HEALTHY = ("training.num_updates=20", "run.log_every=5", "sentinel.lower=step_scale", "sentinel.factor=0.01")
RUNAWAY = (*HEALTHY, "schedule.step_scale=1", "training.initializer_only_fraction=0")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return digits(tmp_path_factory.mktemp("data"))


def trained(config: Config, dataset: Dataset, *rescues: Rescue) -> tuple[TrainState, Breach | None]:
    """A state from its start on, watched as the only worker watches."""
    state = TrainState(config, Grid(1, config.training.num_chunks), torch.device("cpu"), rescues)
    return state, watched(state, dataset)


def watched(state: TrainState, dataset: Dataset) -> Breach | None:
    sentinel = state.sentinel
    judge = (lambda: sentinel.judge(sentinel.table(), state.step)) if sentinel is not None else (lambda: None)
    return train(state, dataset, dataclasses.replace(quiet(), judge=judge))


def test_a_healthy_training_is_left_alone_bit_by_bit(dataset: Dataset) -> None:
    (seen, breach), (unseen, _) = (
        trained(tiny_config(*HEALTHY, f"sentinel.enabled={enabled}"), dataset) for enabled in ("true", "false")
    )
    assert breach is None and seen.step == 20 and unseen.sentinel is None
    assert all(value.equal(unseen.ladder.state_dict()[key]) for key, value in seen.ladder.state_dict().items())


def test_a_runaway_training_is_seen_and_rescued(dataset: Dataset) -> None:
    """A step scale that is 2500 times the paper's; every number of the first updates is finite."""
    config = tiny_config(*RUNAWAY)
    state, breach = trained(config, dataset)
    assert breach is not None and breach.step == state.step == 5
    assert breach.quantity == "displacement_sigmas" and math.inf > breach.value > breach.bound
    first = rescue(breach, config.sentinel, (), ())
    assert first.from_step == 0
    again, breach = trained(config, dataset, first)
    assert breach is None and again.step == 20
    sizes = again.schedule.constants.step_size, state.schedule.constants.step_size
    assert torch.allclose(sizes[0], 0.01 * sizes[1], rtol=1e-12)


def test_without_a_remedy_the_budget_ends_in_diverged(dataset: Dataset) -> None:
    config = tiny_config(*RUNAWAY, "sentinel.lower=learning_rate", "sentinel.max_rescues=2")
    rescues: list[Rescue] = []
    with pytest.raises(Diverged, match="gave up after 2 rescues; rescue 1: .* rescue 2: "):
        for _ in range(4):
            _, breach = trained(config, dataset, *rescues)
            assert breach is not None
            rescues.append(rescue(breach, config.sentinel, rescues, ()))
    assert len(rescues) == 2


@torch.no_grad()
def test_nan_is_refused_then_judged_and_no_optimizer_moves(dataset: Dataset) -> None:
    state = TrainState(tiny_config(*HEALTHY), Grid(1, 4), torch.device("cpu"))
    parameters = list(state.pair(0).initializer.parameters())
    parameters[0].fill_(math.nan)
    before = [parameter.clone() for parameter in parameters]
    with torch.enable_grad():
        breach = watched(state, dataset)
    assert breach is not None and (breach.step, breach.quantity) == (5, "grad_norm_initializer")
    assert math.isnan(breach.value)
    assert all(one.equal(other) for one, other in zip(before[1:], parameters[1:], strict=True))
