"""Laws of points: densities that are densities, of the points that are drawn, with their noise and their score."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cdrl.data import Dataset
from cdrl.data.points import LAWS, Gaussians, score
from cdrl.data.prepare import Options, prepare
from cdrl.method.schedule import Schedule, cosine

SCHEDULE = Schedule(cosine(6), 4e-4)
both_laws = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


def noise(level: int) -> tuple[float, float]:
    tr = SCHEDULE.transition(level, torch.zeros(1, dtype=torch.float64))
    return tr.alpha_s.item(), tr.sigma_s.item()


def plane(half_side: float, number: int) -> tuple[Tensor, float]:
    axis = ((torch.arange(number, dtype=torch.float64) + 0.5) * 2 / number - 1) * half_side
    return torch.cartesian_prod(axis, axis), (2 * half_side / number) ** 2


@both_laws
@pytest.mark.parametrize("level", [1, 3, 5])
def test_every_noisy_density_integrates_to_one(law: object, level: int) -> None:
    points, cell = plane(14, 280)
    assert law.log_prob(points, *noise(level)).exp().sum().item() * cell == pytest.approx(1, abs=1e-5)


@both_laws
@pytest.mark.parametrize("level", [1, 2, 5])
def test_the_noisy_density_is_that_of_drawn_points_with_noise(law: object, level: int) -> None:
    """p(x) = E N(x; alpha x_0, sigma^2), and the score points to E[alpha x_0 | x] (Tweedie), over drawn points."""
    alpha, sigma = noise(level)
    x_0 = torch.from_numpy(law.draw(200_000, np.random.default_rng(level))).double()
    for x in torch.tensor([[1.7, 1.2], [-4.1, 3.0], [0.1, -5.6], [6.0, 0.0]], dtype=torch.float64) * alpha:
        kernel = (-((x - alpha * x_0) ** 2).sum(1) / (2 * sigma**2)).exp() / (2 * math.pi * sigma**2)
        error = kernel.std().item() / math.sqrt(len(kernel))
        assert law.log_prob(x[None], alpha, sigma).exp().item() == pytest.approx(kernel.mean().item(), abs=5 * error)
        posterior = (kernel[:, None] * alpha * x_0).sum(0) / kernel.sum()
        spread = kernel[:, None] * (alpha * x_0 - posterior) / kernel.mean()
        error = spread.std(0).max().item() / math.sqrt(len(kernel))
        tweedie = x + sigma**2 * score(law, x[None], alpha, sigma)[0]
        assert (tweedie - posterior).abs().max().item() < 5 * error


def test_the_score_of_gaussians_is_its_closed_form() -> None:
    law, (alpha, sigma) = LAWS["gaussians"], noise(2)
    assert isinstance(law, Gaussians)
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    weighted, total = torch.zeros_like(x), torch.zeros(50, 1, dtype=torch.float64)
    for weight, mean, (long, short), degrees in law.components:
        angle = math.radians(degrees)
        axes = x.new_tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        variance = alpha**2 * x.new_tensor([long, short]) ** 2 + sigma**2
        along = (x - alpha * x.new_tensor(mean)) @ axes.T
        density = weight * (-(along**2) / (2 * variance)).exp().prod(1, keepdim=True) / variance.prod().sqrt()
        weighted += density * (-(along / variance) @ axes)
        total += density
    torch.testing.assert_close(score(law, x, alpha, sigma), weighted / total)
    torch.testing.assert_close(law.log_prob(x, alpha, sigma), (total / (2 * math.pi)).log()[:, 0])


def test_the_score_of_squares_is_the_slope_of_their_density() -> None:
    law, (alpha, sigma) = LAWS["checkerboard"], noise(1)
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 6
    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    up, down = ([law.log_prob(x + sign * e, alpha, sigma) for e in step] for sign in (1, -1))
    slope = torch.stack([(a - b) / 2e-5 for a, b in zip(up, down, strict=True)], dim=1)
    torch.testing.assert_close(score(law, x, alpha, sigma), slope, rtol=1e-5, atol=1e-5)


def test_far_away_a_square_keeps_its_tail() -> None:
    """Sixty standard deviations out, in either direction: ln Phi(-z) = -z^2/2 - ln(z sqrt(2 pi)) - 1/z^2 + O(z^-4)."""
    law, sigma = LAWS["checkerboard"], 0.1
    for beside in ((8 + 60 * sigma, 2.0), (-2.0, -8 - 60 * sigma)):
        point = torch.tensor([beside], dtype=torch.float64)
        tail = -1800 - math.log(60 * math.sqrt(2 * math.pi)) - 1 / 3600
        assert law.log_prob(point, 1.0, sigma).item() == pytest.approx(tail - math.log(8 * 16), abs=1e-6)
        assert score(law, point, 1.0, sigma).abs().max().item() == pytest.approx(60 / sigma, rel=1e-3)


def test_gaussians_are_drawn_by_weight() -> None:
    law = LAWS["gaussians"]
    assert isinstance(law, Gaussians)
    weights = np.array([component[0] for component in law.components])
    means = np.array([component[1] for component in law.components])
    assert weights.sum() == pytest.approx(1)
    points = law.draw(100_000, np.random.default_rng(0))
    assert points.dtype == np.float32
    mean, covariance = points.mean(0), np.cov(points.T)
    exact = weights @ means
    inside = sum(
        w * law_covariance(stds, degrees) for w, (_, _, stds, degrees) in zip(weights, law.components, strict=True)
    )
    between = (means - exact).T @ np.diag(weights) @ (means - exact)
    np.testing.assert_allclose(mean, exact, atol=5 * math.sqrt(covariance.max() / 100_000))
    np.testing.assert_allclose(covariance, inside + between, atol=5 * covariance.max() * math.sqrt(2 / 100_000))


def law_covariance(stds: tuple[float, float], degrees: float) -> np.ndarray:
    angle = math.radians(degrees)
    along = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-math.sin(angle), math.cos(angle)])
    return stds[0] ** 2 * np.outer(along, along) + stds[1] ** 2 * np.outer(across, across)


def test_gaussians_become_a_dataset_of_two_halves(tmp_path: Path) -> None:
    manifest = prepare("gaussians", str(tmp_path), Options(limit=500))
    assert manifest.shape == (2,) and manifest.dtype == "float32" and manifest.class_names == ()
    train, holdout = (Dataset.open(str(tmp_path), split).images(range(500)) for split in ("train", "holdout"))
    assert not set(map(bytes, train)) & set(map(bytes, holdout))
    expected = LAWS["gaussians"].draw(50_000, np.random.default_rng([0, 0]))[:500]
    assert set(map(bytes, train)) == set(map(bytes, expected))
