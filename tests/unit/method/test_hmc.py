"""One leapfrog step proposes what Langevin does, and the Metropolis test makes the density exact."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from cdrl.errors import ConfigError
from cdrl.method.hmc import Point, move, propose, value_and_score
from cdrl.method.langevin import RecoveryTarget, langevin
from cdrl.method.nets import EnergyNet
from cdrl.method.rng import Rng
from cdrl.method.schedule import Schedule, cosine
from tests.unit.method.gaussians import mean_within, variance_within

SCHEDULE = Schedule(cosine(6), 4e-4)


def images(seed: int) -> Tensor:
    return torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def net_target() -> RecoveryTarget:
    """Six levels in one batch, the top among them."""
    torch.manual_seed(0)
    net = EnergyNet(1, 4, (1, 2), 1).double()
    tr = SCHEDULE.transition(torch.arange(6), images(0))
    return RecoveryTarget(partial(net, logsnr=tr.logsnr_s), tr, images(1), 1.0)


class Quartic:
    """log p(y) = -sum y^4 / 4: no Gaussian."""

    def log_prob(self, y: Tensor) -> Tensor:
        return -0.25 * y.pow(4).sum(dim=1)


def quadratic(y: Tensor) -> tuple[Tensor, Tensor]:
    """N(0, I) up to a constant."""
    return -0.5 * y.square().sum(dim=1), -y


def test_value_and_score_are_the_targets_own() -> None:
    target, y = net_target(), images(2)
    log_prob, score = value_and_score(target, y)
    torch.testing.assert_close(log_prob, target.log_prob(y).detach())
    torch.testing.assert_close(score, target.score(y), rtol=1e-9, atol=1e-9)
    assert not log_prob.requires_grad and not score.requires_grad


def test_one_leapfrog_step_is_the_langevin_step_of_training() -> None:
    target, y = net_target(), images(2)
    density = partial(value_and_score, target)
    end, _ = propose(density, Point.at(density, y), step_size=target.transition.step_size, rng=Rng(3))
    torch.testing.assert_close(end.y, langevin(target, y, num_steps=1, rng=Rng(3)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(end.log_prob, target.log_prob(end.y).detach())


def test_its_acceptance_is_that_of_mala() -> None:
    """min(1, p(y') q(y | y') / (p(y) q(y' | y))), q the Gaussian of a Langevin step."""
    density, step_size = partial(value_and_score, Quartic()), 0.6
    here = Point.at(density, Rng(0).normal(torch.empty(50, 3, dtype=torch.float64)))
    there, acceptance = propose(density, here, step_size=step_size, rng=Rng(1))

    def log_q(start: Point, end: Point) -> Tensor:
        mean = start.y + step_size / 2 * start.score
        return torch.distributions.Normal(mean, math.sqrt(step_size)).log_prob(end.y).sum(dim=1)

    ratio = there.log_prob - here.log_prob + log_q(there, here) - log_q(here, there)
    torch.testing.assert_close(acceptance, ratio.clamp(max=0).exp(), rtol=1e-9, atol=1e-12)
    assert 0.2 < acceptance.mean() < 0.9


@pytest.mark.parametrize("num_leapfrog", [1, 2])
def test_moves_leave_the_density_unchanged(num_leapfrog: int) -> None:
    """At a step size at which unadjusted Langevin has the variance 1/(1 - step_size/4) = 4/3."""
    point = free = Point.at(quadratic, Rng(0).normal(torch.empty(20_000, 2, dtype=torch.float64)))
    rng, accepted = Rng(num_leapfrog), []
    for _ in range(30):
        point, acceptance = move(quadratic, point, step_size=1.0, num_leapfrog=num_leapfrog, rng=rng)
        free, _ = propose(quadratic, free, step_size=1.0, rng=rng)
        accepted.append(acceptance.mean().item())
    assert variance_within(point.y, 1.0) and mean_within(point.y, 0.0)
    assert variance_within(free.y, 4 / 3) and not variance_within(free.y, 1.0)
    assert 0.3 < min(accepted) < 0.95


def test_a_tilt_is_sampled_without_another_evaluation() -> None:
    """exp(-y^4/4) seen as N(0, 0.25): the density is evaluated once a step, and only the tilt is obeyed."""
    calls = []

    def counted(y: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(y))
        return value_and_score(Quartic(), y)

    def tilt(point: Point) -> Point:
        return Point(point.y, -2 * point.y.square().sum(dim=1), -4 * point.y)

    point = Point.at(counted, 0.5 * Rng(0).normal(torch.empty(20_000, 1, dtype=torch.float64)))
    rng = Rng(1)
    for _ in range(20):
        point, _ = move(counted, point, step_size=0.2, rng=rng, tilt=tilt)
    assert variance_within(point.y, 0.25) and len(calls) == 21
    torch.testing.assert_close(point.log_prob, Quartic().log_prob(point.y))


def test_acceptance_goes_to_one_with_the_step() -> None:
    density = partial(value_and_score, Quartic())
    point = Point.at(density, Rng(0).normal(torch.empty(200, 3, dtype=torch.float64)))
    missed = [1 - propose(density, point, step_size=h, rng=Rng(1))[1].mean().item() for h in (0.4, 0.1, 0.025)]
    assert missed[0] > 4 * missed[1] > 16 * missed[2] > 0


def test_an_end_that_is_not_finite_is_refused() -> None:
    def walled(y: Tensor) -> tuple[Tensor, Tensor]:
        outside = y[:, 0] > 0
        return torch.where(outside, torch.nan, 0.0), torch.zeros_like(y)

    point = Point.at(walled, torch.full((1000, 1), -0.01))
    end, acceptance = propose(walled, point, step_size=1.0, rng=Rng(0))
    assert acceptance[end.y[:, 0] > 0].eq(0).all() and acceptance[end.y[:, 0] < 0].eq(1).all()
    assert (move(walled, point, step_size=1.0, rng=Rng(0))[0].y <= 0).all()


@pytest.mark.parametrize("broken", ["value", "score"])
def test_a_density_that_is_not_finite_is_told(broken: str) -> None:
    with pytest.raises(ConfigError, match="there: the log-density or its gradient is not finite in 2 of 3 chains"):
        Point.at(partial(_broken, broken), torch.tensor([[1.0], [-1.0], [2.0]])).check("there")


def _broken(what: str, y: Tensor) -> tuple[Tensor, Tensor]:
    log_prob, score = quadratic(y)
    bad = y[:, 0] > 0
    if what == "value":
        return log_prob.masked_fill(bad, torch.inf), score
    return log_prob, score.masked_fill(bad[:, None], torch.nan)
