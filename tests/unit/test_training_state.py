"""Learning rates, averages and initial weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdrl.config import OptimizerConfig
from cdrl.method.nets import power_iterate
from cdrl.method.nets.spectral import NUM_WARMUP_ITERATIONS
from cdrl.training.grid import Grid
from cdrl.training.state import learning_rate
from tests.training_parts import tiny_config, tiny_state


def test_warm_up_begins_at_one_nth_and_ends_at_lr() -> None:
    config = OptimizerConfig(lr=0.8, warmup_updates=4)
    rates = [learning_rate(config, update, 1000) for update in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_an_offset_advances_the_warm_up() -> None:
    config = OptimizerConfig(lr=1.0, warmup_updates=1000, warmup_offset=499)
    assert learning_rate(config, 0, 10**6) == pytest.approx(0.5)
    assert learning_rate(config, 499, 10**6) == pytest.approx(0.999)
    assert learning_rate(config, 500, 10**6) == learning_rate(config, 10**5, 10**6) == 1.0


def test_cosine_falls_from_lr_to_its_final_fraction() -> None:
    config = OptimizerConfig(lr=2.0, warmup_updates=1, final_fraction=0.1)
    rates = [learning_rate(config, update, 100) for update in range(101)]
    assert rates[0] == 2.0 and rates[100] == pytest.approx(0.2)
    assert rates[50] == pytest.approx(2 * 0.55)
    assert rates[25] == pytest.approx(2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))
    assert all(late < early for early, late in zip(rates, rates[1:], strict=False))


@given(st.integers(0, 5000), st.integers(1, 5000), st.integers(1, 3000), st.integers(0, 3000), st.floats(0.01, 1))
def test_a_rate_is_positive_and_never_above_lr(
    update: int, num_updates: int, warmup: int, offset: int, final: float
) -> None:
    config = OptimizerConfig(lr=3e-4, warmup_updates=warmup, warmup_offset=offset, final_fraction=final)
    assert 0 < learning_rate(config, update, num_updates) <= 3e-4 * (1 + 1e-12)


def test_the_energy_nets_clock_starts_with_its_updates() -> None:
    state = tiny_state(tiny_config())
    assert state.initializer_only_updates == 6
    training, rates = state.config.training, []
    for state.step in range(12):
        state.set_learning_rates(0)
        optimizers = state.optimizers[0]
        rates.append([optimizers.energy.param_groups[0]["lr"], optimizers.initializer.param_groups[0]["lr"]])
    energy, initializer = zip(*rates, strict=True)
    assert list(energy[6:]) == [learning_rate(training.energy, update, 6) for update in range(6)]
    assert list(initializer) == [learning_rate(training.initializer, update, 12) for update in range(12)]
    assert tiny_state(tiny_config("initializer=null")).initializer_only_updates == 0


def test_every_rank_begins_with_the_same_weights_and_seeds_differ() -> None:
    config = tiny_config("pairs=per_level")
    torch.manual_seed(99)
    states = [tiny_state(config, Grid(2, 4, 2, rank)) for rank in (0, 1)]
    weights = [state.ladder.state_dict() for state in states]
    assert all(value.equal(weights[1][key]) for key, value in weights[0].items())
    assert [list(state.optimizers) for state in states] == [[0], [1]]
    after = torch.rand(1)
    torch.manual_seed(99)
    assert torch.rand(1).equal(after)  # torch's own generator is left alone
    other = tiny_state(tiny_config("pairs=per_level", "training.seed=6")).ladder.state_dict()
    assert not other["pairs.0.energy.head.weight"].equal(weights[0]["pairs.0.energy.head.weight"])
    assert not weights[0]["pairs.0.energy.head.weight"].equal(weights[0]["pairs.1.energy.head.weight"])


def test_the_average_follows_with_a_ramp() -> None:
    state = tiny_state(tiny_config("training.ema_decay=0.3"))
    expected = [parameter.detach().clone() for parameter in state.averaged(0).parameters()]
    assert not any(parameter.requires_grad for parameter in state.average.parameters())
    for state.step, decay in ((0, 0.1), (1, 2 / 11), (2, 0.25), (3, 0.3), (4, 0.3)):
        with torch.no_grad():
            for number, parameter in enumerate(state.pair(0).parameters()):
                parameter.add_(torch.randn_like(parameter))
                expected[number] = decay * expected[number] + (1 - decay) * parameter
        state.update_average(0)
        for parameter, value in zip(state.averaged(0).parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.detach(), value)


def test_a_shared_average_is_ready_whenever_and_however_often_it_is_shared() -> None:
    state = tiny_state(tiny_config())
    with torch.no_grad():
        for parameter in state.pair(0).parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    power_iterate(state.pair(0), 3)
    state.update_average(0)
    live = {key: value.clone() for key, value in state.ladder.state_dict().items()}
    state.settle_average()
    once = {key: value.clone() for key, value in state.average.state_dict().items()}
    state.settle_average()
    assert all(value.equal(once[key]) for key, value in state.average.state_dict().items())
    assert all(value.equal(live[key]) for key, value in state.ladder.state_dict().items())
    # its vectors are those of its own weights: further iterations hardly change the normalised ones
    stem = state.averaged(0).energy.stem
    before = stem.weight.clone()
    power_iterate(state.averaged(0), 10 * NUM_WARMUP_ITERATIONS)
    torch.testing.assert_close(stem.weight, before, rtol=0.05, atol=0.01)
