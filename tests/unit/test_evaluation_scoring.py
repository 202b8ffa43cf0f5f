"""KID, the Inception score, error bars and diagnoses: closed forms, laws, and torch-fidelity's own figures."""

import math
import time

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from cdrl.errors import ConfigError
from cdrl.evaluation.bootstrap import resampled, standard_error
from cdrl.evaluation.diagnosis import notes
from cdrl.evaluation.extractor import Coordinates
from cdrl.evaluation.fidelity import Measured, Moments, frechet_distance, gather
from cdrl.evaluation.inception_score import inception_scores
from cdrl.evaluation.kernel import kernel_distances
from cdrl.evaluation.memorisation import memorisation, neighbours
from cdrl.evaluation.scoring import score
from tests.unit.test_evaluation_protocol import PROTOCOL


def normal(n: int, dims: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(n, dims)) * scale + shift).astype(np.float32)


def once(n: int) -> np.ndarray:
    return np.ones((1, n), np.int64)


def measured(rows: np.ndarray) -> Measured:
    return Measured(Moments.of(rows), rows)


class Classes(Coordinates):
    """Features that are logits."""

    def logits(self, features: np.ndarray) -> np.ndarray:  # type: ignore[override]
        return features


def test_kid_is_torch_fidelitys_over_one_subset_of_everything() -> None:
    a, b = normal(60, 7, 0), normal(60, 7, 1, 1.3, 0.2)
    sides = [torch.from_numpy(side).double() for side in (a, b)]
    theirs = kid_features_to_metric(*sides, kid_subsets=1, kid_subset_size=60, verbose=False)
    expected = theirs["kernel_inception_distance_mean"]
    assert kernel_distances(a, b, once(60))[0] == pytest.approx(expected, rel=1e-9)


def test_kid_of_resampled_counts_is_that_of_the_rows_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(50, 4, 0), normal(80, 4, 1)
    counts = resampled(50, 3, np.random.default_rng(0))
    expected = [kernel_distances(np.repeat(a, row, axis=0), b, once(50))[0] for row in counts]
    monkeypatch.setattr("cdrl.evaluation.kernel.BLOCK_ROWS", 7)
    np.testing.assert_allclose(kernel_distances(a, b, counts), expected, rtol=1e-9)


def test_kid_of_draws_of_one_law_is_zero_on_average() -> None:
    found = [kernel_distances(normal(50, 3, seed), normal(40, 3, 1000 + seed), once(50))[0] for seed in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(len(found))
    assert min(found) < 0 < max(found)


@pytest.mark.parametrize("n", [10, 137, 1000])
def test_the_inception_score_is_torch_fidelitys(n: int) -> None:
    logits = normal(n, 10, 0, 3.0)
    theirs = isc_features_to_metric(torch.from_numpy(logits))["inception_score_mean"]
    assert inception_scores(logits)[0] == pytest.approx(theirs, rel=1e-9)


def test_the_inception_score_runs_from_one_to_the_number_of_classes() -> None:
    sure = 100 * np.eye(8, dtype=np.float32)[np.arange(4000) % 8]
    assert inception_scores(sure)[0] == pytest.approx(8, rel=2e-2)
    assert inception_scores(sure[:1].repeat(40, axis=0))[0] == pytest.approx(1)
    with pytest.raises(ConfigError, match="needs at least 10 images, got 9; draw more"):
        inception_scores(sure[:9])


def test_error_bars_are_what_other_samples_of_the_same_model_scatter_by() -> None:
    """The bootstrap of one set against the spread of the scores of 24 sets; and the same seed gives the same bars."""
    real = measured(normal(1000, 6, 9999))
    sets = [measured(normal(200, 6, seed, 1.5, 0.3)) for seed in range(24)]
    each = [score(one, real, Classes(), label_accuracy=0.9, seed=1) for one in sets]
    for name in ("frechet", "kernel", "inception", "precision"):
        spread = np.std([one.scores[name] for one in each], ddof=1)
        told = np.mean([one.errors[name] for one in each])
        assert told == pytest.approx(spread, rel=0.5), name
    assert each[0].errors["label_accuracy"] == pytest.approx(math.sqrt(0.9 * 0.1 / 200))
    again = score(sets[0], real, Classes(), label_accuracy=0.9, seed=1)
    assert again == each[0]
    assert score(sets[0], real, Classes(), label_accuracy=0.9, seed=2).errors != again.errors
    assert score(sets[0], real, Coordinates(), label_accuracy=None, seed=1).scores["inception"] is None


def test_error_bars_take_seconds() -> None:
    seen, real = measured(normal(4000, 128, 0)), measured(normal(2000, 128, 1))
    begin = time.process_time()
    counts = resampled(4000, 100, np.random.default_rng(0))
    values = [frechet_distance(Moments.of(seen.rows, row), real.moments) for row in counts[:11]]
    assert standard_error(np.array(values)) > 0
    assert time.process_time() - begin < 6, "eleven of a hundred"


def test_resampled_moments_are_those_of_the_rows_written_out() -> None:
    rows = normal(30, 4, 0)
    counts = resampled(30, 1, np.random.default_rng(0))[1]
    found, expected = Moments.of(rows, counts), Moments.of(np.repeat(rows, counts, axis=0))
    assert found.n == 30 and torch.equal(found.scatter, expected.scatter)


@pytest.mark.parametrize("cuts", [(), (1000,), (256, 512, 768), (7, 900)])
def test_moments_gathered_in_any_parts_are_the_same(cuts: tuple[int, ...]) -> None:
    rows = normal(1200, 32, 0, 2.0, 5.0)
    whole, found = measured(rows), gather(np.split(rows, cuts), 1200)
    torch.testing.assert_close(found.moments.mean, whole.moments.mean, rtol=1e-12, atol=1e-12)
    other = Moments.of(normal(900, 32, 1))
    assert frechet_distance(found.moments, other) == pytest.approx(frechet_distance(whole.moments, other), rel=1e-9)
    assert (found.rows == rows).all()


def test_a_large_set_keeps_evenly_spread_rows_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdrl.evaluation.fidelity.MAX_ROWS", 30)
    rows = np.arange(100, dtype=np.float32)[:, None]
    for cuts in ((), (10, 55), (1, 2, 3, 98)):
        found = gather(np.split(rows, cuts), 100)
        assert found.rows[:, 0].tolist() == found.places.tolist() == list(range(0, 100, 4))
        assert found.moments.n == 100


REAL = measured(normal(10_000, 4, 5))


def told(images: np.ndarray) -> tuple[str, ...]:
    return notes(images, measured(images.reshape(len(images), -1)), REAL, PROTOCOL)


def test_nothing_is_said_of_a_sound_set() -> None:
    assert told(normal(10_000, 4, 0)) == ()


def test_few_images_are_biased() -> None:
    (line,) = told(normal(500, 4, 0))
    assert line.startswith("500 generated images: FD (digits-cnn) is biased upwards")


def test_collapse_is_a_diagnosis_and_its_scores_are_numbers() -> None:
    one = normal(1, 4, 0).repeat(200, axis=0)
    lines = told(one)
    assert "mode collapse: all 200 images are equal" in lines
    assert any("singular: rank 0, that of real images 4" in line for line in lines)
    scored = score(measured(one), measured(normal(300, 4, 5)), Classes(), label_accuracy=None, seed=0)
    figures = [*scored.scores.values(), *scored.errors.values()]
    assert all(value is None or math.isfinite(value) for value in figures)
    assert scored.scores["inception"] == pytest.approx(1) and scored.scores["recall"] == 0
    few = np.concatenate([one, normal(20, 4, 1)])
    assert "mode collapse: only 21 of 220 images differ from each other" in told(few)
    faint = told(normal(200, 4, 0, 0.1))
    assert any("the features vary 1.0% as much as those of real images" in line for line in faint)


def test_a_direction_that_is_missed_and_too_few_images_for_the_features() -> None:
    flat = normal(200, 4, 0) * np.array([1, 1, 1, 0], np.float32)
    assert any("rank 3, that of real images 4; the samples miss 1 directions" in line for line in told(flat))
    assert any("4 images are too few for 4 features" in line for line in told(normal(4, 4, 0)))


def test_nearest_neighbours_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    train = normal(100, 5, 0, 1.0, 100.0)
    queries = np.concatenate([train[[70, 3]], normal(1, 5, 1)])
    monkeypatch.setattr("cdrl.evaluation.memorisation.BLOCK_ROWS", 9)
    found = neighbours(queries, train)
    distances = np.linalg.norm(queries[:, None] - train, axis=2)
    assert found.place[:2].tolist() == [70, 3] and found.distance[:2].tolist() == [0, 0], "copies, exactly"
    assert found.place[2] == distances[2].argmin() and found.distance[2] == pytest.approx(distances[2].min())


def test_copies_are_found_and_fresh_draws_are_not_blamed() -> None:
    train, held = normal(500, 6, 0), normal(300, 6, 1)
    copied, _ = memorisation(train[:200], held, train, seed=0)
    assert (copied.nearer, copied.copies) == (1, 1) and copied.num_train == 500
    fresh, _ = memorisation(normal(400, 6, 2), held, train, seed=0)
    assert abs(fresh.nearer - 0.5) < 4 * fresh.nearer_error and fresh.copies < 0.05
    far, _ = memorisation(normal(400, 6, 2, 5.0), held, train, seed=0)
    assert far.nearer < 0.1
    tenth = np.concatenate([train[:40], normal(360, 6, 2)])
    assert memorisation(tenth, held, train, seed=0)[0].copies == pytest.approx(0.1, abs=0.03)
    assert "1 = copies" in copied.describe() and "\n" not in copied.describe()
