"""log Z where it is known: Gaussians, mixtures, and a net that is summed on a grid."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MultivariateNormal, Normal

from cdrl.errors import ConfigError
from cdrl.method.hmc import value_and_score
from cdrl.method.langevin import RecoveryTarget
from cdrl.method.likelihood import Gaussian, Path, ais, bits_per_dim, log_mean_exp, plan, relax
from cdrl.method.nets import EnergyNet
from cdrl.method.rng import Rng
from cdrl.method.schedule import Schedule, cosine
from tests.annealing_parts import LOG_Z, Scaled, assert_brackets, both_ways, drawn, isotropic, mixture, moments

SCHEDULE = Schedule(cosine(6), 4e-4)


def test_a_start_that_is_the_model_gives_log_z_at_once() -> None:
    """No variance, every chain counts."""
    covariance = torch.tensor([[2.0, 0.7], [0.7, 0.5]], dtype=torch.float64)
    exact = MultivariateNormal(torch.tensor([1.0, -3.0], dtype=torch.float64), covariance)
    start = Gaussian.of(exact.mean, covariance)
    for one in both_ways(partial(value_and_score, Scaled(exact)), start, drawn(exact, 10), 5):
        assert one.nats == pytest.approx(LOG_Z, abs=1e-9) and one.standard_error < 1e-9
        assert one.effective_samples == pytest.approx(10)


@pytest.mark.parametrize("num_dims", [1, 2, 6])
def test_gaussians_of_any_covariance(num_dims: int) -> None:
    """Stretched and turned, from an isotropic start that is too wide."""
    factor = Rng(num_dims).normal(torch.empty(num_dims, num_dims, dtype=torch.float64)) / math.sqrt(num_dims)
    exact = MultivariateNormal(torch.ones(num_dims, dtype=torch.float64), factor @ factor.T + 0.1 * torch.eye(num_dims))
    density = partial(value_and_score, Scaled(exact))
    assert_brackets(both_ways(density, isotropic(num_dims, 4.0), drawn(exact, 300), 100, 2), LOG_Z, 0.2)


def test_a_mixture_in_the_plane() -> None:
    exact = mixture(2, 4, 4.0)
    density = partial(value_and_score, Scaled(exact))
    assert_brackets(both_ways(density, moments(exact), drawn(exact, 300), 60), LOG_Z, 0.15)


def test_a_mixture_in_64_dimensions_is_bracketed() -> None:
    exact = mixture(64, 5, 0.4)
    density = partial(value_and_score, Scaled(exact))
    assert_brackets(both_ways(density, moments(exact), drawn(exact, 200), 150, 2), LOG_Z, 0.25)


def test_a_net_in_the_plane_against_its_sum_over_a_grid() -> None:
    """The marginal at level 3 of an untrained net, its head made steeper, in float32; annealed from N(0, I)."""
    torch.manual_seed(0)
    net = EnergyNet(2, 32, (1, 2), 1, dense=True).requires_grad_(False)
    net.head.weight *= 3

    def target(like: Tensor) -> RecoveryTarget:
        tr = SCHEDULE.transition(3, like)
        return RecoveryTarget(partial(net, logsnr=tr.logsnr_s), tr, None, base_measure=1.0)

    side = torch.linspace(-5, 5, 201)
    grid = torch.cartesian_prod(side, side)
    log_prob = target(grid).log_prob(grid).double()
    exact = log_prob.logsumexp(dim=0).item() + 2 * math.log(10 / 200)
    rows = Categorical(logits=log_prob)
    assert log_prob.std() > 1
    y = grid[drawn(rows, 400)]  # a cell is narrow: its corner is as good as a draw
    start = Gaussian.of(torch.zeros(2), torch.eye(2))
    assert_brackets(both_ways(partial(value_and_score, target(y)), start, y, 60), exact, 0.1)


def test_few_temperatures_open_the_bracket() -> None:
    """Far from balance the two estimates part, to the sides that theory tells."""
    exact = mixture(16, 2, 0.6)
    density = partial(value_and_score, Scaled(exact))
    forward, backward = both_ways(density, isotropic(16, 3.0), drawn(exact, 100), 5)
    assert forward.nats < LOG_Z - 1 and backward.nats > LOG_Z + 1
    assert forward.effective_samples < 20 and backward.effective_samples < 20


def test_the_plan() -> None:
    exact = mixture(4, 2, 2.0)
    density = moments(exact).whitened(partial(value_and_score, Scaled(exact)))
    like, calls = torch.empty(50, 4, dtype=torch.float64), []
    path = plan(density, like, num_temperatures=40, rng=Rng(1), progress=lambda: calls.append(1))
    assert path.kappa[0] == 0 and path.kappa[-1] == 1 and (path.kappa.diff() > 0).all() and len(path.kappa) == 41
    assert (path.step_size > 0).all() and len(calls) >= 20
    again = plan(density, like, num_temperatures=40, rng=Rng(1))
    assert path.kappa.equal(again.kappa) and path.step_size.equal(again.step_size)
    run = ais(density, Rng(2).normal(like), path, rng=Rng(3))
    assert abs(run.acceptance.mean() - 0.65) < 0.15 and run.acceptance.shape == (39,) and run.work.shape == (40, 50)


def test_relaxing_keeps_exact_draws_exact_and_moves_others_there() -> None:
    start, like = isotropic(3, 1.0), torch.zeros(4_000, 3, dtype=torch.float64)
    density = start.whitened(partial(value_and_score, Independent(Normal(like[0], 0.5), 1)))
    path = Path(torch.tensor([0.0, 1.0]), torch.tensor([0.3, 0.3]), 2)
    for z in (like, 0.5 * Rng(0).normal(like)):
        relaxed = relax(density, z, path, num_steps=30, rng=Rng(1))
        assert relaxed.var().item() == pytest.approx(0.25, rel=5 * math.sqrt(2 / relaxed.numel()))


def test_coordinates_there_and_back() -> None:
    """Of images too; the density of z has its own gradient and the normalizer of y."""
    square = Rng(0).normal(torch.empty(16, 16, dtype=torch.float64))
    mean = Rng(1).normal(torch.empty(1, 4, 4, dtype=torch.float64))
    start = Gaussian.of(mean, square @ square.T + torch.eye(16))
    y = Rng(2).normal(torch.empty(5, 1, 4, 4, dtype=torch.float64))
    z = start.whiten(y)
    assert z.shape == (5, 16)
    torch.testing.assert_close(start.colour(z), y)
    exact = MultivariateNormal(mean.flatten(), scale_tril=start.factor)

    class Flat:
        def log_prob(self, y: Tensor) -> Tensor:
            return exact.log_prob(y.flatten(1))

    log_prob, score = start.whitened(partial(value_and_score, Flat()))(z)
    torch.testing.assert_close(log_prob, Normal(0.0, 1.0).log_prob(z).sum(dim=1))
    torch.testing.assert_close(score, -z)


def test_log_mean_exp_and_its_jackknife() -> None:
    log_w = 3 * Rng(0).normal(torch.empty(9, dtype=torch.float64))
    nats, error = log_mean_exp(log_w)
    assert nats == pytest.approx(log_w.exp().mean().log().item())
    left_out = torch.stack([torch.cat([log_w[:i], log_w[i + 1 :]]).exp().mean().log() for i in range(9)])
    assert error == pytest.approx(math.sqrt(8 / 9 * (left_out - left_out.mean()).square().sum().item()))
    assert log_mean_exp(torch.tensor([0.0, 2000.0], dtype=torch.float64))[1] == math.inf


def test_bits_per_dim_of_the_uniform_density() -> None:
    """Uniform over [-1, 1] is uniform over 255 grey levels, whatever the number of dimensions."""
    log_prob = torch.tensor([-3 * math.log(2), 0.0])
    bits = bits_per_dim(log_prob, 3)
    assert bits[0].item() == pytest.approx(math.log2(255)) and bits[1].item() == pytest.approx(math.log2(127.5))


@pytest.mark.parametrize(("num_temperatures", "num_leapfrog"), [(1, 1), (10, 0)])
def test_a_path_needs_temperatures_and_steps(num_temperatures: int, num_leapfrog: int) -> None:
    density = isotropic(2, 1.0).whitened(partial(value_and_score, Scaled(mixture(2, 2, 1.0))))
    with pytest.raises(ConfigError, match=f"got {num_temperatures} and {num_leapfrog}"):
        like = torch.empty(3, 2, dtype=torch.float64)
        plan(density, like, num_temperatures=num_temperatures, num_leapfrog=num_leapfrog, rng=Rng(0))


def test_refusals() -> None:
    def broken(z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full((len(z),), torch.nan), torch.zeros_like(z)

    path = Path(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), 1)
    with pytest.raises(ConfigError, match="at least 2 chains, got 1"):
        ais(broken, torch.zeros(1, 2), path, rng=Rng(0))
    for refused in (
        lambda: ais(broken, torch.zeros(3, 2), path, rng=Rng(0)),
        lambda: plan(broken, torch.zeros(3, 2), num_temperatures=4, rng=Rng(0)),
        lambda: relax(broken, torch.zeros(3, 2), path, num_steps=1, rng=Rng(0)),
    ):
        with pytest.raises(ConfigError, match="not finite in 3 of 3 chains"):
            refused()
    with pytest.raises(ConfigError, match="not positive definite"):
        Gaussian.of(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
