"""The loop: what it calls and when, what an update depends on, and that a resumed run is the straight run."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cdrl.data import Dataset
from cdrl.training.checkpoint import read_checkpoint
from cdrl.training.loop import Hooks, train
from cdrl.training.state import TrainState
from tests.training_parts import digits, quiet, run_to, save, tiny_config, tiny_state


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return digits(tmp_path_factory.mktemp("data"))


def everything(state: TrainState) -> dict[str, Tensor]:
    """Live and averaged weights, singular vectors and moments, copied."""
    state.settle_average()
    tensors = {f"live.{key}": value for key, value in state.ladder.state_dict().items()}
    tensors |= {f"average.{key}": value for key, value in state.average.state_dict().items()}
    for number, optimizers in state.optimizers.items():
        for name, optimizer in (("energy", optimizers.energy), ("initializer", optimizers.initializer)):
            for index, moments in (optimizer.state_dict()["state"] if optimizer else {}).items():
                tensors |= {f"{name}.{number}.{index}.{key}": value for key, value in moments.items()}
    return {key: value.clone() for key, value in tensors.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not one[key].equal(other[key])] == []


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("pairs=per_level",),
        ("initializer=null", "training.shared_noise=false", "training.anchor=0"),
        ("data.num_classes=0", "training.initializer_only_fraction=0"),
        ("compute.formulation=plain", "compute.images_on_device=always"),
    ],
    ids=["shared", "per level", "DRL", "unconditional", "plain"],
)
@pytest.mark.parametrize("stop", [4, 8])
def test_a_resumed_run_is_the_straight_run_bit_by_bit(
    dataset: Dataset, tmp_path: Path, overrides: tuple[str, ...], stop: int
) -> None:
    """Stopped while only the initializer learns (the energy net has no moments yet), and after."""
    config = tiny_config("run.log_every=1", *overrides)
    straight = tiny_state(config)
    train(straight, dataset, quiet())
    begun = tiny_state(config)
    run_to(begun, dataset, stop)
    assert begun.step == stop
    folder = save(begun, dataset, tmp_path / "checkpoint")
    resumed = tiny_state(config)
    read_checkpoint(resumed, folder, dataset.manifest.digest)
    assert resumed.step == stop
    assert_same(everything(resumed), everything(begun))
    torch.manual_seed(1)  # of no consequence
    train(resumed, dataset, quiet())
    assert resumed.step == straight.step == 12
    assert_same(everything(resumed), everything(straight))


def test_training_moves_every_net_and_the_initializer_alone_first(dataset: Dataset) -> None:
    state = tiny_state(tiny_config("run.log_every=1"))
    start = everything(state)
    run_to(state, dataset, 6)
    warm = everything(state)
    assert not any(key.startswith("energy.") for key in warm)
    energy = [key for key in start if ".energy." in key and key.startswith("live.")]
    assert all(start[key].equal(warm[key]) for key in energy)
    train(state, dataset, quiet())
    end = everything(state)
    assert not any(start[key].equal(end[key]) for key in energy if start[key].numel() > 1)
    initializer = [key for key in start if ".initializer." in key and key.startswith("live.")]
    assert not any(warm[key].equal(end[key]) for key in initializer)


def test_one_level_shared_is_one_level_per_level_bit_by_bit(dataset: Dataset) -> None:
    states = [tiny_state(tiny_config("schedule.num_levels=1", f"pairs={pairs}")) for pairs in ("shared", "per_level")]
    for state in states:
        train(state, dataset, quiet())
    assert_same(everything(states[0]), everything(states[1]))


def test_seed_and_data_decide_the_weights(dataset: Dataset) -> None:
    ends = []
    for seed in (5, 5, 6):
        state = tiny_state(tiny_config("training.num_updates=7", f"training.seed={seed}"))
        train(state, dataset, quiet())
        ends.append(everything(state))
    assert_same(ends[0], ends[1])
    assert not ends[0]["live.pairs.0.energy.head.weight"].equal(ends[2]["live.pairs.0.energy.head.weight"])


class Diary:
    """Hooks that write down when they are called."""

    def __init__(self, state: TrainState, stop_at: int | None = None) -> None:
        self.state, self.stop_at = state, stop_at
        self.pages: dict[str, list[int]] = {"log": [], "sample": [], "checkpoint": []}
        self.pairs: set[tuple[int, ...]] = set()

    def hooks(self) -> Hooks:
        def log(metrics: dict) -> None:
            self.pages["log"].append(self.state.step)
            self.pairs.add(tuple(metrics))

        return Hooks(
            log,
            lambda: self.state.step == self.stop_at,
            lambda: self.pages["sample"].append(self.state.step),
            lambda: self.pages["checkpoint"].append(self.state.step),
        )


EVERY = ("run.log_every=2", "run.sample_every=5", "run.checkpoint_every=4", "pairs=per_level")


def test_hooks_are_called_at_their_steps_and_at_the_end(dataset: Dataset) -> None:
    diary = Diary(tiny_state(tiny_config("training.num_updates=11", *EVERY)))
    train(diary.state, dataset, diary.hooks())
    assert diary.pages == {"log": [2, 4, 6, 8, 10, 11], "sample": [5, 10, 11], "checkpoint": [4, 8, 11]}
    assert diary.pairs == {(0, 1)}
    before = diary.pages.copy()
    train(diary.state, dataset, diary.hooks())  # complete: nothing happens
    assert diary.pages == before and diary.state.step == 11


@pytest.mark.parametrize(("stop_at", "checkpoints"), [(6, [4, 6]), (8, [4, 8])])
def test_a_request_to_stop_leaves_one_checkpoint_of_that_step(
    dataset: Dataset, stop_at: int, checkpoints: list[int]
) -> None:
    diary = Diary(tiny_state(tiny_config(*EVERY)), stop_at)
    train(diary.state, dataset, diary.hooks())
    assert diary.state.step == stop_at and diary.pages["checkpoint"] == checkpoints
