"""A long chain is the chain of training, watched; a corrected one is exact."""

from functools import partial

import pytest
import torch
from torch import Tensor

from cdrl.errors import ConfigError
from cdrl.method.chains import long_run, powers_of_ten
from cdrl.method.hmc import value_and_score
from cdrl.method.langevin import RecoveryTarget, langevin
from cdrl.method.rng import Rng
from cdrl.method.schedule import Schedule, cosine
from tests.unit.method.gaussians import Quadratic, oracle, variance_within

SCHEDULE = Schedule(cosine(6), 4e-4)


def oracle_target(level: int, num_chains: int, x_t: Tensor | None = None) -> RecoveryTarget:
    """The optimal f for data N(0, 0.25 I): chains of the marginal or given x_t (B, 2)."""
    tr = SCHEDULE.transition(level, torch.empty(num_chains, 2, dtype=torch.float64))
    return RecoveryTarget(partial(Quadratic(oracle(level).f_coeff), logsnr=tr.logsnr_s), tr, x_t)


def test_snapshots_are_at_powers_of_ten() -> None:
    assert powers_of_ten(1) == (0, 1)
    assert powers_of_ten(100) == (0, 1, 10, 100)
    assert powers_of_ten(2500) == (0, 1, 10, 100, 1000, 2500)


def test_an_unadjusted_run_is_langevin() -> None:
    y = Rng(0).normal(torch.empty(5, 2, dtype=torch.float64))
    target = oracle_target(3, 5, x_t=torch.ones(5, 2, dtype=torch.float64))
    run = long_run(
        partial(value_and_score, target), y, step_size=target.transition.step_size, num_steps=12, rng=Rng(1)
    )
    assert run.shown == (0, 1, 10, 12)
    for number, steps in enumerate(run.shown):
        torch.testing.assert_close(run.snapshots[number], langevin(target, y, num_steps=steps, rng=Rng(1)))
    assert run.acceptance.shape == (12, 5) and run.log_prob.shape == (13, 5)
    gained = target.log_prob(run.snapshots[-1]) - target.log_prob(y)
    torch.testing.assert_close(run.log_prob[-1], gained.detach().float())


def test_a_corrected_run_is_exact_where_the_unadjusted_one_is_not() -> None:
    """N(0, I) at step size 1: variances 1 and 4/3."""

    def normal(y: Tensor) -> tuple[Tensor, Tensor]:
        return -0.5 * y.square().sum(dim=1), -y

    y = torch.zeros(20_000, 1, dtype=torch.float64)
    runs = [long_run(normal, y, step_size=1.0, num_steps=25, rng=Rng(0), adjusted=mala) for mala in (False, True)]
    assert variance_within(runs[0].snapshots[-1], 4 / 3) and variance_within(runs[1].snapshots[-1], 1.0)
    assert all(0.85 < run.acceptance[-5:].mean() < 0.95 for run in runs)


@pytest.mark.parametrize("level", range(5))
def test_the_conditional_reaches_the_exact_posterior(level: int) -> None:
    """From x_t, corrected; a step size that mixes within the run (that of training would take thousands of steps)."""
    exact = oracle(level)
    x_t = torch.full((4_000, 2), 0.7, dtype=torch.float64)
    target = oracle_target(level, 4_000, x_t)
    run = long_run(
        partial(value_and_score, target), x_t, step_size=exact.post_var, num_steps=40, rng=Rng(level), adjusted=True
    )
    end = run.snapshots[-1]
    assert variance_within(end, exact.post_var)
    assert (end.mean() - exact.post_mean_coeff * 0.7).abs() < 5 * (exact.post_var / end.numel()) ** 0.5


def test_at_the_step_size_of_training_almost_every_step_would_be_accepted() -> None:
    y = 0.5 * Rng(0).normal(torch.empty(200, 2, dtype=torch.float64))
    for level in range(6):
        target = oracle_target(level, 200, x_t=y)
        run = long_run(
            partial(value_and_score, target), y, step_size=target.transition.step_size, num_steps=15, rng=Rng(1)
        )
        assert 0.97 < run.acceptance[1:].mean() <= 1


@pytest.mark.parametrize(("num_steps", "where"), [(0, "expected at least 1 step, got 0"), (150, "long chain, step 1")])
def test_refusals(num_steps: int, where: str) -> None:
    """The density is finite at the start; a chain soon leaves the interval."""

    def narrow(y: Tensor) -> tuple[Tensor, Tensor]:
        return y[:, 0].masked_fill(y[:, 0].abs() > 1, torch.inf), torch.zeros_like(y)

    with pytest.raises(ConfigError, match=where):
        long_run(narrow, torch.zeros(3, 1), step_size=1.0, num_steps=num_steps, rng=Rng(0))
    with pytest.raises(ConfigError, match="start of the long chain"):
        long_run(narrow, torch.full((3, 1), 2.0), step_size=1.0, num_steps=1, rng=Rng(0))
