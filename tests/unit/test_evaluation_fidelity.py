"""Scores from features: closed forms, laws, and torch-fidelity's own figures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from cdrl.errors import ConfigError, DataError
from cdrl.evaluation.extractor import Coordinates
from cdrl.evaluation.fidelity import Moments, frechet_distance, measure, precision_recall


def gaussian(mean: list[float], covariance: list[list[float]], n: int = 1000) -> Moments:
    return Moments(n, torch.tensor(mean, dtype=torch.float64), torch.tensor(covariance, dtype=torch.float64) * (n - 1))


def rows(n: int, dims: int, seed: int, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dims)) @ rng.normal(size=(dims, dims)) * scale + rng.normal(size=dims)


def theirs(a: np.ndarray, b: np.ndarray) -> float:
    statistics = [fid_features_to_statistics(torch.from_numpy(side)) for side in (a, b)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def test_gaussians_with_common_axes() -> None:
    a = gaussian([0, 0], [[4, 0], [0, 9]])
    b = gaussian([3, 4], [[1, 0], [0, 1]])
    assert frechet_distance(a, b) == pytest.approx(25 + (2 - 1) ** 2 + (3 - 1) ** 2)


def test_gaussians_without_common_axes() -> None:
    # in two dimensions Tr (A B)^(1/2) = sqrt(Tr(A B) + 2 sqrt(det A det B))
    a, b = [[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.7], [-0.7, 3.0]]
    product = np.array(a) @ np.array(b)
    overlap = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(a) + np.trace(b) - 2 * overlap
    assert frechet_distance(gaussian([0, 0], a), gaussian([0, 0], b)) == pytest.approx(expected)


def test_one_singular_gaussian() -> None:
    a = gaussian([0, 0, 0], [[4, 0, 0], [0, 0, 0], [0, 0, 0]])
    b = gaussian([0, 0, 0], [[1, 0, 0], [0, 9, 0], [0, 0, 16]])
    assert frechet_distance(a, b) == pytest.approx((2 - 1) ** 2 + 9 + 16)
    assert frechet_distance(b, a) == pytest.approx((2 - 1) ** 2 + 9 + 16)


@pytest.mark.parametrize("n, m, dims", [(200, 300, 8), (50, 50, 40)])
def test_agrees_with_torch_fidelity(n: int, m: int, dims: int) -> None:
    a, b = rows(n, dims, 0), rows(m, dims, 1, 1.5)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(theirs(a, b), rel=1e-6)


@pytest.mark.parametrize("n, m", [(12, 100), (12, 20)])
def test_fewer_rows_than_dimensions(n: int, m: int) -> None:
    """With singular covariances Tr (A B)^(1/2) is the nuclear norm of the product of the centred rows."""
    a, b = rows(n, 30, 0), rows(m, 30, 1)
    centred = [(side - side.mean(0)) / np.sqrt(len(side) - 1) for side in (a, b)]
    overlap = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    traces = sum((side**2).sum() for side in centred)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + traces - 2 * overlap
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(2, 40))
def test_laws_of_the_distance(seed: int, n: int, m: int) -> None:
    a, b = rows(n, 6, seed), rows(m, 6, seed + 1)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))[0]
    size = 1 + np.abs(a).max() ** 2 + np.abs(b).max() ** 2
    distance = frechet_distance(Moments.of(a), Moments.of(b))
    assert distance >= 0
    assert frechet_distance(Moments.of(b), Moments.of(a)) == pytest.approx(distance, abs=1e-6 * size)
    assert frechet_distance(Moments.of(a), Moments.of(a)) == pytest.approx(0, abs=1e-6 * size)
    turned = frechet_distance(Moments.of(a @ turn + 5), Moments.of(b @ turn + 5))
    assert turned == pytest.approx(distance, abs=1e-5 * size)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_moments_of_parts_add_up(sizes: list[int]) -> None:
    whole = rows(sum(sizes), 4, 0) + 1000
    merged, *others = [Moments.of(part) for part in np.split(whole, np.cumsum(sizes)[:-1])]
    for part in others:
        merged = merged.merge(part)
    assert merged.n == len(whole)
    np.testing.assert_allclose(merged.mean, whole.mean(0))
    np.testing.assert_allclose(merged.covariance, np.cov(whole, rowvar=False), rtol=1e-8, atol=1e-8)


def test_measure_walks_through_every_row_and_keeps_a_spread_of_them() -> None:
    points = rows(25_000, 2, 0).astype(np.float32)
    points[:, 0] = np.arange(25_000)
    seen = measure(points.__getitem__, len(points), Coordinates())
    np.testing.assert_allclose(seen.moments.covariance, np.cov(points.astype(np.float64), rowvar=False), rtol=1e-9)
    assert (seen.few[:, 0] == np.arange(0, 25_000, 3)).all() and len(seen.rows) == 25_000


def test_same_and_distant_sets() -> None:
    a = rows(50, 5, 0)
    assert precision_recall(a, a) == (1, 1)
    assert precision_recall(a, a + 1000) == (0, 0)


def test_a_dropped_mode_costs_recall_only() -> None:
    reference = np.concatenate([rows(100, 2, 0), rows(100, 2, 0) + 500])
    precision, recall = precision_recall(rows(100, 2, 0), reference)
    assert precision == 1
    assert recall == 0.5


def test_invented_rows_cost_precision_only() -> None:
    real = rows(100, 2, 0)
    precision, recall = precision_recall(np.concatenate([real, real + 500]), real)
    assert (precision, recall) == (0.5, 1)


def test_too_few_rows() -> None:
    with pytest.raises(ConfigError, match="more than 3 images on each side, got 3 against 50"):
        precision_recall(rows(3, 2, 0), rows(50, 2, 0))
    with pytest.raises(DataError, match="at least 2 images, got 1"):
        frechet_distance(Moments.of(rows(1, 2, 0)), Moments.of(rows(9, 2, 0)))


def test_features_must_be_finite() -> None:
    with pytest.raises(DataError, match="finite"):
        Moments.of(np.array([[0.0, np.nan]]))
