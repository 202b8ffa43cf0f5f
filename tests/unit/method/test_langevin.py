"""The recovery target is a log-density with its own gradient, and the chain samples it."""

from functools import partial

import pytest
import torch
from torch import Tensor

from cdrl.method.langevin import RecoveryTarget, langevin
from cdrl.method.nets import EnergyNet
from cdrl.method.rng import Rng
from cdrl.method.schedule import Schedule, Transition, cosine
from tests.unit.method.gaussians import Quadratic, mean_within, oracle, variance_within

SCHEDULE = Schedule(cosine(6), 4e-4)
LEVELS = torch.arange(6)


def net_target(x_t: Tensor | None, base_measure: float) -> tuple[EnergyNet, RecoveryTarget, Transition]:
    torch.manual_seed(0)
    net = EnergyNet(1, 4, (1, 2), 1).double()
    tr = SCHEDULE.transition(LEVELS, torch.empty(6, 1, 8, 8, dtype=torch.float64))
    return net, RecoveryTarget(partial(net, logsnr=tr.logsnr_s), tr, x_t, base_measure), tr


def images(seed: int) -> Tensor:
    return torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("base_measure", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("conditional", [True, False])
def test_drift_and_score_are_gradients_of_log_prob(conditional: bool, base_measure: float) -> None:
    """Six levels in one batch, the top among them."""
    _, target, tr = net_target(images(1) if conditional else None, base_measure)
    y = images(2).requires_grad_(True)
    (gradient,) = torch.autograd.grad(target.log_prob(y).sum(), y)
    torch.testing.assert_close(target.drift(y), tr.step_size / 2 * gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(target.score(y), gradient, rtol=1e-9, atol=1e-9)


def test_log_prob_is_the_energy_and_the_noise_that_made_x_t() -> None:
    """Term by term; at the top, x_t is not looked at."""
    x_t, y = images(1), images(2)
    net, target, tr = net_target(x_t, base_measure=1.0)
    marginal = net(y, tr.logsnr_s) / tr.step_size.flatten()
    forward = torch.distributions.Normal(y, tr.sigma_ts.expand_as(y))
    noise = (forward.log_prob(x_t) - forward.log_prob(y)).flatten(1).sum(dim=1)  # less its constant
    normal = torch.distributions.Normal(torch.zeros_like(y), torch.ones_like(y))
    base = (normal.log_prob(y / tr.scale) - normal.log_prob(torch.zeros_like(y))).flatten(1).sum(dim=1)
    expected = marginal + noise * (LEVELS < 5) + base
    torch.testing.assert_close(target.log_prob(y), expected, rtol=1e-9, atol=1e-8)
    assert target.drift(y)[5].equal(net_target(None, 1.0)[1].drift(y)[5])
    assert target.log_prob(y).shape == (6,)


def test_a_chain_of_no_steps_is_the_identity() -> None:
    _, target, _ = net_target(images(1), 0.0)
    y = images(2)
    assert langevin(target, y, num_steps=0, rng=Rng(0)).equal(y)


def test_a_chain_draws_noise_at_each_step_and_repeats_by_key() -> None:
    _, target, tr = net_target(images(1), 0.0)
    y, rng, k = images(2), Rng(0), 3
    by_hand = y
    for _ in range(k):
        by_hand = by_hand + target.drift(by_hand) + tr.step_size.sqrt() * rng.normal(by_hand)
    chained = langevin(target, y, num_steps=k, rng=Rng(0))
    torch.testing.assert_close(chained, by_hand, rtol=1e-12, atol=1e-12)
    assert chained.equal(langevin(target, y, num_steps=k, rng=Rng(0)))
    assert not chained.equal(langevin(target, y, num_steps=k, rng=Rng(1)))


def test_step_multiplier_scales_the_step_and_noise_scale_the_noise() -> None:
    _, target, tr = net_target(images(1), 1.0)
    y, eps = images(2), Rng(0).normal(images(2))
    moved = langevin(target, y, num_steps=1, rng=Rng(0), step_multiplier=1.5, noise_scale=0.9)
    expected = y + 1.5**2 * target.drift(y) + 0.9 * 1.5 * tr.step_size.sqrt() * eps
    torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-12)


def test_no_gradient_leaks_to_parameters_or_graphs() -> None:
    x_t, y = images(1), images(2).requires_grad_(True)
    net, target, _ = net_target(x_t, 0.0)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            moved = langevin(target, y, num_steps=2, rng=Rng(0))
        assert not moved.requires_grad
    assert not target.drift(y.detach()).requires_grad
    assert y.grad is None and all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("level", range(6))
def test_a_noiseless_chain_contracts_to_the_exact_posterior_mean(level: int) -> None:
    exact = oracle(level)
    x_t = torch.tensor([[1.0, -0.3], [0.2, 2.0]], dtype=torch.float64)
    tr = SCHEDULE.transition(level, x_t)
    target = RecoveryTarget(partial(Quadratic(exact.f_coeff), logsnr=tr.logsnr_s), tr, x_t)
    mean, start = exact.post_mean_coeff * x_t, torch.ones_like(x_t)
    after = langevin(target, start, num_steps=15, rng=Rng(0), noise_scale=0)
    torch.testing.assert_close(after - mean, exact.contraction_15 * (start - mean), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("level", "num_steps"), [(2, 400), (4, 150), (5, 400)])
def test_a_long_chain_reaches_the_exact_posterior(level: int, num_steps: int) -> None:
    """Mean, and the variance of the discretised chain, which is a little above the posterior's."""
    exact = oracle(level)
    x_t = torch.full((8_000, 1), 0.8, dtype=torch.float64)
    tr = SCHEDULE.transition(level, x_t)
    target = RecoveryTarget(partial(Quadratic(exact.f_coeff), logsnr=tr.logsnr_s), tr, x_t)
    y = langevin(target, x_t, num_steps=num_steps, rng=Rng(level))
    assert exact.contraction**num_steps < 1e-4
    assert mean_within(y, exact.post_mean_coeff * 0.8)
    assert variance_within(y, exact.stationary_var)
    assert exact.stationary_var == pytest.approx(exact.post_var, rel=0.05)


def test_the_base_measure_is_a_gaussian_factor_on_x_s() -> None:
    """f = 0 with the base measure alone: the marginal chain's law is N(0, scale^2 / weight)."""
    level, weight = 3, 2.0
    like = torch.zeros(8_000, 1, dtype=torch.float64)
    tr = SCHEDULE.transition(level, like)
    target = RecoveryTarget(partial(Quadratic(0.0), logsnr=tr.logsnr_s), tr, None, base_measure=weight)
    variance = (tr.scale[0] ** 2 / weight).item()
    multiplier = 3.0
    pull = multiplier**2 * tr.step_size[0].item() / (2 * variance)  # of one step
    y = langevin(target, like, num_steps=200, rng=Rng(0), step_multiplier=multiplier)
    assert (1 - pull) ** 200 < 1e-3
    assert variance_within(y, variance / (1 - pull / 2))
