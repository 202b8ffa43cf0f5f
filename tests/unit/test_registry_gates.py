"""What the gates say of two score cards, and how sure they are."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from cdrl.config import GatesConfig
from cdrl.evaluation.protocol import ScoreCard
from cdrl.model import Model
from cdrl.registry.gates import compare, decide
from tests.registry_parts import card, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model"))


def scored(model: Model, frechet: float, error: float | None = None, **changed: object) -> ScoreCard:
    errors = {} if error is None else {"errors": {"frechet": error}}
    return card(model, frechet).model_copy(update={**errors, **changed})


def test_a_margin_is_a_share_of_the_champions_distance(model: Model) -> None:
    champion = scored(model, 0.5)
    for frechet, passes in [(0.5, True), (0.549, True), (0.551, False), (0.1, True)]:
        assert decide(scored(model, frechet), champion, GatesConfig(margin=0.1)).passed is passes
    assert decide(scored(model, 0.5), champion).passed and not decide(scored(model, 0.5001), champion).passed


def test_the_verdict_says_how_sure_it_is(model: Model) -> None:
    without = decide(scored(model, 0.6), scored(model, 0.5)).reasons[0]
    assert "0.6000 is worse than the champion's 0.5000" in without and "without an error bar" in without
    clear = decide(scored(model, 0.6, 0.01), scored(model, 0.5, 0.01))
    assert clear.is_clear and not clear.passed and "clear, allowed +0.0000" in clear.reasons[0]
    unclear = decide(scored(model, 0.51, 0.01), scored(model, 0.5, 0.01))
    assert not unclear.is_clear and not unclear.passed and "not clear" in unclear.reasons[0]
    margin = decide(scored(model, 0.51, 0.001), scored(model, 0.5, 0.001), GatesConfig(margin=0.05))
    assert margin.is_clear and margin.passed
    assert "is not worse by more than allowed than the champion's" in margin.reasons[0]
    one_sided = decide(scored(model, 0.51, 0.01), scored(model, 0.5))
    assert not one_sided.is_clear and "without an error bar" in one_sided.reasons[0]


def test_the_cards_error_bars_add_up_in_quadrature(model: Model) -> None:
    found = compare(scored(model, 0.5, 0.03), scored(model, 0.5, 0.04), GatesConfig(confidence=0.95))
    assert found.half_width == pytest.approx(1.6448536 * 0.05)
    shared = compare(scored(model, 0.5, 0.03), scored(model, 0.5, 0.04), GatesConfig(confidence=0.95, max_sets=4))
    assert shared.half_width == pytest.approx(stats.norm.ppf(1 - 0.05 / 5) * 0.05)


def test_further_sets_bring_an_error_bar_of_their_own(model: Model) -> None:
    gates = GatesConfig(max_sets=3, confidence=0.9)
    found = compare(scored(model, 0.7), scored(model, 0.5), gates, (0.1, 0.3))
    differences = [0.2, 0.1, 0.3]
    expected = stats.ttest_1samp(differences, 0).confidence_interval(1 - 2 * 0.1 / 4)
    assert found.difference == pytest.approx(0.2) and found.num_sets == 3
    assert found.difference + (found.half_width or 0) == pytest.approx(expected.high)


@pytest.mark.parametrize("truth", [0.0, 0.03])
def test_looking_again_and_again_is_wrong_no_more_often_than_said(model: Model, truth: float) -> None:
    """Worse by `truth` than allowed: a clear pass is the mistake that the confidence bounds."""
    random, gates, mistakes, num_trials = np.random.default_rng(0), GatesConfig(max_sets=5, confidence=0.9), 0, 300
    champion = scored(model, 0.5)
    for _ in range(num_trials):
        first, *rest = random.normal(truth, 0.03, 6)
        for seen in range(1, 6):
            found = compare(scored(model, 0.5 + first), champion, gates, rest[:seen])
            if found.is_clear:
                mistakes += found.passed
                break
    assert mistakes / num_trials < 0.1 + 2 * math.sqrt(0.1 * 0.9 / num_trials)


@pytest.mark.parametrize(
    "gates, changed, refusal",
    [
        ({"min_label_accuracy": 0.9}, {}, "its score card has no label accuracy"),
        ({"min_images_per_s": 10.0}, {"images_per_s": 9.5}, "draws 9.5 images/s, below gates.min_images_per_s = 10"),
        ({"max_memorised": 0.6}, {"memorisation": None}, "has no check for memorisation"),
        (
            {"max_memorised": 0.6},
            {"memorisation": SimpleNamespace(nearer=0.75)},
            "probability 0.750, above gates.max_memorised = 0.6",
        ),
    ],
)
def test_a_threshold_refuses_the_best_score(
    model: Model, gates: dict[str, float], changed: dict[str, object], refusal: str
) -> None:
    best = scored(model, 0.1, **changed)
    for champion in (None, scored(model, 0.5)):
        decision = decide(best, champion, GatesConfig(**gates))
        assert not decision.passed and any(refusal in reason for reason in decision.reasons)
        assert decide(best, champion).passed


def test_thresholds_are_met_at_the_threshold(model: Model) -> None:
    good = scored(model, 0.1, images_per_s=10.0, memorisation=SimpleNamespace(nearer=0.6))
    good = good.model_copy(update={"scores": good.scores | {"label_accuracy": 0.9}})
    gates = GatesConfig(min_label_accuracy=0.9, min_images_per_s=10, max_memorised=0.6)
    assert decide(good, None, gates).passed
    bad = good.model_copy(update={"scores": good.scores | {"label_accuracy": 0.89}})
    assert "0.8900 is below gates.min_label_accuracy = 0.9" in decide(bad, None, gates).reasons[1]


def test_nothing_is_drawn_for_a_comparison_that_cannot_be_made(model: Model) -> None:
    for candidate, champion in [
        (None, scored(model, 0.5)),
        (scored(model, math.nan), scored(model, 0.5)),
        (card(model, 0.1, num_generated=20), scored(model, 0.5)),
    ]:
        decision = decide(candidate, champion, GatesConfig(max_sets=3))
        assert decision.is_clear and not decision.passed
