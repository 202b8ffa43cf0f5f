"""The toy as the executable check of the method: every kind of training ends near the exact density, from far away."""

import pytest

from cdrl import config as configuration
from cdrl.data import Dataset
from cdrl.data.points import LAWS
from cdrl.data.prepare import Options, prepare
from cdrl.evaluation.density import LevelDensity, compare
from cdrl.model import Model
from cdrl.training.state import TrainState
from tests.training_parts import run_to, tiny_state

pytestmark = pytest.mark.integration

SHORT = ["data.uri=unused", "training.batch_size=256", "training.ema_decay=0.98"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    place = str(tmp_path_factory.mktemp("gaussians"))
    prepare("gaussians", place, Options(limit=10_000))
    return Dataset.open(place)


def compared(state: TrainState) -> list[LevelDensity]:
    state.settle_average()
    model = Model(state.config, state.average, (), "", state.step)
    return compare(model, LAWS["gaussians"], 8.0, number=2_000)


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("toy-gaussians", ["training.num_updates=300"]),
        ("toy-gaussians", ["training.num_updates=150", "training.batch_size=128", "pairs=per_level"]),
        ("drl-toy", ["training.num_updates=200"]),
    ],
    ids=["shared", "per level", "DRL"],
)
def test_a_short_training_brings_every_level_near_the_exact_density(
    preset: str, overrides: list[str], dataset: Dataset
) -> None:
    """A sixth of the presets' training; untrained nets are 2 to 25 nats away, and the presets end near 0.02."""
    state = tiny_state(configuration.load(preset, [*SHORT, *overrides]))
    before = compared(state)
    run_to(state, dataset, state.config.training.num_updates)
    after = compared(state)
    chain = f"K = {state.config.sampling.num_steps}"
    for untrained, trained in zip(before, after, strict=True):
        assert untrained.kl_nats > 1.2
        assert trained.kl_nats < untrained.kl_nats / 3, trained.level
        assert trained.recovery_kl_nats < 0.5, trained.level
        assert trained.mmd2[chain] < untrained.mmd2[chain] / 3, trained.level
    assert sum(level.kl_nats for level in after) / len(after) < 1
