"""From noise to data, level by level."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdrl.errors import ConfigError
from cdrl.method.formulation import BatchEnergy, Plain, Prepared
from cdrl.method.guidance import Condition
from cdrl.method.nets import EnergyNet, Initializer
from cdrl.method.pairs import Pair, PairLadder, groups_of_levels
from cdrl.method.rng import Rng
from cdrl.method.sampling import num_gradients, sample, target_at
from cdrl.method.schedule import Schedule, cosine
from cdrl.method.trace import Trace
from tests.unit.method.gaussians import REFERENCE, Linear, Quadratic, mean_within, oracle, variance_within

LABEL = torch.tensor([1, 2, 0])
NUM_STEPS = 2


def make_pair() -> Pair:
    energy = EnergyNet(1, 4, (1, 2), 1, num_classes=2)
    return Pair(energy, Initializer(1, 8, 4, (1,), 1, attention_resolutions=(), groups=2, num_classes=2))


def ladder(pairs: str, num_levels: int) -> PairLadder:
    torch.manual_seed(0)
    ladder = PairLadder(groups_of_levels(pairs, num_levels), make_pair)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in ladder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return ladder


def draw(ladder: PairLadder, **options: Any) -> Tensor:
    condition = Condition.guided(LABEL, options.pop("guidance", 0.0))
    settings = {"num_steps": NUM_STEPS, "rng": Rng(0), "condition": condition} | options
    return sample(ladder, Schedule(cosine(ladder.num_levels), 4e-4), noise(), **settings)


def noise() -> Tensor:
    return Rng("x_T").normal(torch.empty(3, 1, 8, 8))


def test_no_guidance_is_unguided_bit_by_bit_and_some_guidance_is_not() -> None:
    three = ladder("shared", 3)
    assert draw(three, guidance=0.0).equal(draw(three))
    assert not draw(three, guidance=0.5)[:2].equal(draw(three)[:2])
    torch.testing.assert_close(draw(three, guidance=0.5)[2], draw(three)[2], rtol=1e-3, atol=1e-4)  # of label 0


def test_guidance_may_differ_by_level() -> None:
    two = ladder("shared", 2)
    each = [Condition.guided(LABEL, 0.5), Condition.guided(LABEL, 0.0)]
    assert draw(two, condition=each[:1] * 2).equal(draw(two, guidance=0.5))
    recorded, plain = Trace(), Trace()
    draw(two, condition=each, record=recorded)
    draw(two, record=plain)
    differ = [not a.x.equal(b.x) for a, b in zip(recorded.stages, plain.stages, strict=True)]
    assert differ.index(True) == 1 + (1 + NUM_STEPS)  # the initializer's draw of level 0
    with pytest.raises(ConfigError, match="sampling.guidance: .* one for each of 2 levels, got 1"):
        draw(two, condition=each[:1])


def test_one_level_shared_is_one_level_per_level_bit_by_bit() -> None:
    assert draw(ladder("shared", 1)).equal(draw(ladder("per_level", 1)))


def test_equal_pairs_per_level_are_one_shared_pair_bit_by_bit() -> None:
    shared, apart = ladder("shared", 3), ladder("per_level", 3)
    assert not draw(shared).equal(draw(apart))
    for pair in apart.pairs:
        pair.load_state_dict(shared.pairs[0].state_dict())
    assert draw(shared).equal(draw(apart))


@pytest.mark.parametrize("num_levels", [1, 4])
def test_the_trace_holds_every_stage(num_levels: int) -> None:
    recorded = Trace()
    x = draw(ladder("shared", num_levels), record=recorded)
    trace = recorded.levels()
    assert len(recorded.stages) == num_levels * (1 + NUM_STEPS) + 2
    assert len(trace) == num_levels + 2
    assert trace[0].equal(noise()) and trace[-1].equal(x)
    assert all(stage.shape == x.shape for stage in trace) and not trace[1].equal(trace[0])
    assert x.equal(draw(ladder("shared", num_levels)))


def test_sampling_is_a_function_of_its_key_and_leaves_the_nets_as_they_are() -> None:
    two = ladder("per_level", 2)
    before = copy.deepcopy(two.state_dict())
    first = draw(two)
    assert draw(two).equal(first) and not draw(two, rng=Rng(1)).equal(first)
    assert not first.requires_grad and all(parameter.requires_grad for parameter in two.parameters())
    assert all(parameter.grad is None for parameter in two.parameters())
    assert all(value.equal(before[key]) for key, value in two.state_dict().items())


def test_no_steps_is_the_initializer_alone() -> None:
    """K = 0 never asks the energy net: two ladders with other energy nets agree."""
    one, other = ladder("shared", 3), ladder("shared", 3)
    other.pairs[0].energy.load_state_dict(make_pair().energy.state_dict())
    options = {"num_steps": 0, "denoise_scale": 0.0}
    assert draw(one, **options).equal(draw(other, **options))
    assert not draw(one, num_steps=0).equal(draw(other, num_steps=0))  # by the final denoise


def test_images_are_clamped_and_points_are_not() -> None:
    def points(clamp: bool, denoise_scale: float = 0.0) -> Tensor:
        gaussian = PairLadder([[0, 1]], lambda: Pair(Quadratic(0.0), Linear(1.0)))
        x_T = 4 * torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        schedule = Schedule(cosine(2), 4e-4)
        return sample(gaussian, schedule, x_T, num_steps=0, rng=Rng(0), denoise_scale=denoise_scale, clamp=clamp)

    assert points(False).abs().max() > 1
    assert points(True).equal(points(False).clamp(-1, 1))


@pytest.mark.parametrize("base_measure", [0.0, 0.8])
@pytest.mark.parametrize("denoise_scale", [0.0, 1.0, 2.0])
def test_the_final_denoise_is_one_score_at_level_0(denoise_scale: float, base_measure: float) -> None:
    """For f = -c |y|^2 the score of x_s is linear: -(2 c scale^2 / step_size + base_measure) x_s."""
    schedule = Schedule(cosine(2), 4e-4)
    gaussian = PairLadder([[0, 1]], lambda: Pair(Quadratic(1e-5), Linear(0.9), base_measure))
    trace = Trace()
    x_T = torch.randn(4, 3, dtype=torch.float64)
    x = sample(
        gaussian, schedule, x_T, num_steps=3, rng=Rng(0), denoise_scale=denoise_scale, clamp=False, record=trace
    )
    x_s, tr = trace.levels()[-2], schedule.transition(0, x_T)
    score = -(2e-5 * tr.scale**2 / tr.step_size + base_measure) * x_s
    expected = (x_s + denoise_scale * tr.sigma_s**2 * score) / tr.alpha_s if denoise_scale else x_s
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("num_steps", [0, 15])
def test_the_law_of_gaussian_samples_is_the_closed_form(num_steps: int) -> None:
    """With the oracle's nets each level maps x_t to p x_t + N(0, q); p and q follow from the spec's section 4."""
    proposals = [Linear(oracle(level).post_mean_coeff) for level in range(6)]
    energies = [Quadratic(oracle(level).f_coeff) for level in range(6)]
    pairs = map(Pair, energies, proposals)
    x_T = Rng("x_T").normal(torch.empty(20_000, 1, dtype=torch.float64))
    trace = Trace()
    exact_ladder = PairLadder(groups_of_levels("per_level", 6), lambda: next(pairs))
    schedule = Schedule(cosine(6), 4e-4)
    sample(exact_ladder, schedule, x_T, num_steps=num_steps, rng=Rng(0), denoise_scale=0.0, clamp=False, record=trace)
    variance = 1.0
    for level, x_s in zip(reversed(range(6)), trace.levels()[1:], strict=False):
        row = REFERENCE["schedule_cdrl_T6"]["rows"][level]
        p, q = oracle(level).post_mean_coeff, oracle(level).init_var
        for _ in range(num_steps):
            p, q = oracle(level).contraction * p + row["quad_coeff"], oracle(level).contraction ** 2 * q + row["s2_t"]
        variance = (p**2 * variance + q) / row["as_t_mul"]
        assert variance_within(x_s, variance) and mean_within(x_s, 0.0), level


def test_each_level_has_its_own_number_of_steps_and_size_of_step() -> None:
    recorded = Trace()
    draw(ladder("shared", 3), num_steps=[0, 1, 3], record=recorded)
    steps = [(stage.level, stage.step) for stage in recorded.stages if 0 <= stage.level < 3]
    assert steps == [(2, 0), (2, 1), (2, 2), (2, 3), (1, 0), (1, 1), (0, 0)]
    same = Trace()
    draw(ladder("shared", 3), num_steps=[0, 1, 3], step_multiplier=[1.0, 1.7, 1.0], record=same)
    differ = [not a.x.equal(b.x) for a, b in zip(recorded.stages, same.stages, strict=True)]
    assert differ.index(True) == 1 + 4 + 1  # the first step of level 1


class Counting(Plain):
    """The plain formulation; counts the images whose gradient is taken."""

    def __init__(self) -> None:
        self.num_images = 0

    def prepare(self, net: nn.Module) -> Prepared:
        prepared, counting = super().prepare(net), self

        class Counted:
            def __init__(self, f: BatchEnergy) -> None:
                self.f = f

            def __call__(self, y: Tensor) -> Tensor:
                return self.f(y)

            def gradient(self, y: Tensor) -> Tensor:
                counting.num_images += len(y)
                return self.f.gradient(y)

        return lambda logsnr, label: Counted(prepared(logsnr, label))  # type: ignore[return-value]


@pytest.mark.parametrize("with_initializer", [True, False])
@pytest.mark.parametrize("num_steps", [0, 3, (2, 0, 1)])
@pytest.mark.parametrize("guidance, denoise_scale", [(0.0, 2.0), (1.5, 0.0), ((0.5, 0.0, 2.0), 1.0)])
def test_gradients_are_counted_as_they_are_taken(
    with_initializer: bool, num_steps: Any, guidance: Any, denoise_scale: float
) -> None:
    three, counting = ladder("shared", 3), Counting()
    if not with_initializer:
        three = PairLadder([range(3)], lambda: Pair(make_pair().energy, None))
    weights = guidance if isinstance(guidance, tuple) else (guidance,) * 3
    condition = [Condition.guided(LABEL, weight) for weight in weights]
    settings = {"num_steps": num_steps, "denoise_scale": denoise_scale}
    draw(three, condition=condition, formulation=counting, **settings)
    expected = num_gradients(3, guidance=guidance, has_initializer=with_initializer, **settings)
    assert counting.num_images == expected * len(LABEL)


def test_without_noise_the_one_shot_draw_is_its_mean() -> None:
    """At the top x_T stays; below, y = x_t + sigma_ts^2 grad log p(x_t)."""
    drl = PairLadder([range(2)], lambda: Pair(make_pair().energy, None)).double()
    schedule, recorded, x_T = Schedule(cosine(2), 1.0), Trace(), noise().double()
    sample(drl, schedule, x_T, num_steps=0, rng=Rng(0), noise_scale=0.0, record=recorded, denoise_scale=0.0)
    x = {(stage.level, stage.step): stage.x for stage in recorded.stages}
    assert x[1, 0].equal(x_T)
    tr = schedule.transition(0, x_T)
    score = target_at(drl, schedule, 0, x_T, x_t=x[1, 0]).score(x[1, 0])
    torch.testing.assert_close(x[0, 0], (x[1, 0] + tr.sigma_ts**2 * score) / tr.scale)


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="sampling.num_steps: expected K >= 0, got -1"):
        draw(ladder("shared", 1), num_steps=-1)
    with pytest.raises(ConfigError, match="guidance: 1.5 needs labels"):
        Condition.guided(None, 1.5)
    with pytest.raises(ConfigError, match="one number or one for each of 3 levels"):
        draw(ladder("shared", 3), num_steps=[1, 2])
    with pytest.raises(ConfigError, match="num_rounds: expected at least 1, got 0"):
        draw(ladder("shared", 1), num_rounds=0)


def test_options_of_the_chain_reach_it() -> None:
    two = ladder("shared", 2)
    plain = draw(two)
    for options in ({"noise_scale": 0.5}, {"step_multiplier": math.sqrt(2)}, {"num_steps": 3}):
        assert not draw(two, **options).equal(plain), options
