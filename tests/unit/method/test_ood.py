"""Out-of-distribution scores against closed forms: a ladder whose densities are exactly Gaussian."""

import math

import pytest
import torch
from torch import Tensor, nn

from cdrl.errors import ConfigError, Diverged
from cdrl.method.ood import level_scores, typicality
from cdrl.method.pairs import Pair, PairLadder, groups_of_levels
from cdrl.method.rng import Rng
from cdrl.method.schedule import Schedule, cosine
from tests.unit.method.gaussians import Quadratic, mean_within

NUM_LEVELS = 3
SCHEDULE = Schedule(cosine(NUM_LEVELS), 4e-4)
COEFFICIENT = 1e-3


def ladder(energy: nn.Module | None = None, base_measure: float = 0.0) -> PairLadder:
    net = energy or Quadratic(COEFFICIENT)
    return PairLadder(groups_of_levels("shared", NUM_LEVELS), lambda: Pair(net, None, base_measure))


def images(count: int = 5) -> Tensor:
    return Rng("x_0").normal(torch.empty(count, 1, 4, 4, dtype=torch.float64))


def scores(x_0: Tensor, level: int, **options: object) -> dict[str, Tensor]:
    settings: dict = {"num_draws": 0, "rng": Rng(0)} | options
    return level_scores(settings.pop("ladder", None) or ladder(), SCHEDULE, level, x_0, **settings)


@pytest.mark.parametrize("level", range(NUM_LEVELS))
def test_a_quadratic_energy_in_closed_form(level: int) -> None:
    x_0 = images()
    tr = SCHEDULE.transition(level, x_0)
    y_norm = (tr.scale * tr.alpha_s).flatten() * x_0.flatten(1).norm(dim=1)  # the scaled space: sqrt(a_1) at level 0
    found = scores(x_0, level)
    torch.testing.assert_close(found["log_density"], -COEFFICIENT * y_norm**2 / tr.step_size.flatten())
    torch.testing.assert_close(found["gradient_norm"], -2 * COEFFICIENT * y_norm / tr.step_size.flatten())


def test_the_base_measure_counts() -> None:
    x_0 = images()
    tr = SCHEDULE.transition(1, x_0)
    x_s_norm = tr.alpha_s.flatten() * x_0.flatten(1).norm(dim=1)
    more = scores(x_0, 1, ladder=ladder(base_measure=0.5))["log_density"] - scores(x_0, 1)["log_density"]
    torch.testing.assert_close(more, -0.25 * x_s_norm**2)


@pytest.mark.parametrize("level", range(NUM_LEVELS))
def test_noise_adds_its_variance(level: int) -> None:
    """E|y|^2 = scale^2 (alpha^2 |x_0|^2 + D sigma^2)."""
    x_0 = images(1).repeat(2000, 1, 1, 1)
    tr = SCHEDULE.transition(level, x_0[:1])
    spread = (tr.alpha_s**2 * x_0[0].square().sum() + 16 * tr.sigma_s**2) * tr.scale**2
    expected = float(-COEFFICIENT * spread / tr.step_size)
    assert mean_within(scores(x_0, level, num_draws=1)["log_density"], expected)


def test_draws_are_averaged() -> None:
    x_0 = images(1).repeat(2000, 1, 1, 1)
    one, four = (scores(x_0, 2, num_draws=n)["log_density"].std() for n in (1, 4))
    assert float(one / four) == pytest.approx(2, rel=0.1)


def test_the_same_key_gives_the_same_scores_and_another_does_not() -> None:
    first, again, other = (scores(images(), 1, num_draws=2, rng=Rng(key)) for key in (3, 3, 4))
    assert first["log_density"].equal(again["log_density"]) and not first["log_density"].equal(other["log_density"])


def test_an_image_is_scored_alone_and_its_label_is_heard() -> None:
    x_0, label = images(4), torch.tensor([0, 1, 2, 0])
    found = scores(x_0, 1, label=label)
    for name, value in found.items():
        alone = [scores(x_0[i : i + 1], 1, label=label[i : i + 1])[name] for i in range(4)]
        torch.testing.assert_close(value, torch.cat(alone))
    torch.testing.assert_close(found["log_density"] / scores(x_0, 1)["log_density"], (1 + label).double())


def test_scoring_leaves_no_gradients() -> None:
    net = Quadratic(COEFFICIENT)
    x_0 = images()
    found = scores(x_0, 0, ladder=ladder(net))
    assert net.theta.grad is None and net.theta.requires_grad and not x_0.requires_grad
    assert not any(value.requires_grad for value in found.values())


def test_what_is_too_likely_is_as_untypical_as_what_is_too_unlikely() -> None:
    found = typicality(torch.tensor([9.0, 10.0, 12.0, 8.0]), torch.tensor([8.0, 12.0, 10.0]))
    assert found.tolist() == [-1.0, 0.0, -2.0, -2.0]


@pytest.mark.parametrize(
    ("level", "options", "message"),
    [
        (NUM_LEVELS, {}, "level 3: the model has the levels 0 ... 2"),
        (-1, {}, "level -1"),
        (0, {"num_draws": -1}, "noise draws: expected 0 or more, got -1"),
    ],
)
def test_what_cannot_be_scored(level: int, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scores(images(), level, **options)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_images_that_are_not_finite(bad: float) -> None:
    x_0 = images()
    x_0[3, 0, 1, 1] = bad
    with pytest.raises(ConfigError, match="image 3 of a batch of 5 has values that are not finite"):
        scores(x_0, 0)


def test_a_network_that_is_not_finite() -> None:
    with pytest.raises(Diverged, match="scoring diverged at level 2, step 0: log_density=nan; take another") as caught:
        scores(images(), 2, ladder=ladder(Quadratic(math.nan)))
    assert caught.value.level == 2
