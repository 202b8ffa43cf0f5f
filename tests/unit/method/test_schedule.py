"""Laws of the noise levels, for tables of any length and reach."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cdrl.errors import ConfigError
from cdrl.method.schedule import Schedule, Transition, cosine, drl_t6

schedules = st.builds(
    lambda num_levels, top, reach, growth: Schedule(cosine(num_levels, top, top - reach), 4e-4, growth),
    num_levels=st.integers(1, 50),
    top=st.floats(-4, 25),
    reach=st.floats(0.5, 40),
    growth=st.sampled_from(["sigma", "constant"]),
)


def table(schedule: Schedule) -> Transition:
    levels = torch.arange(schedule.num_levels)
    return schedule.transition(levels, torch.empty(schedule.num_levels, dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(schedules)
def test_laws_of_every_table(schedule: Schedule) -> None:
    tr, one = table(schedule), torch.ones(schedule.num_levels, dtype=torch.float64)
    close = torch.testing.assert_close
    close(tr.alpha_t**2 + tr.sigma_t**2, one)
    close(tr.alpha_s**2 + tr.sigma_s**2, one)
    close(tr.alpha_ts**2 + tr.sigma_ts**2, one)
    close(2 * (tr.alpha_t / tr.sigma_t).log(), tr.logsnr_t, rtol=1e-9, atol=1e-9)
    # two steps of noise add up: x_t given x_0 through x_s
    close(tr.alpha_ts * tr.alpha_s, tr.alpha_t)
    close((tr.alpha_ts * tr.sigma_s) ** 2 + tr.sigma_ts**2, tr.sigma_t**2)
    assert (tr.sigma_post <= torch.minimum(tr.sigma_ts, tr.sigma_s) * (1 + 1e-12)).all()
    assert tr.is_top.tolist() == [0.0] * (schedule.num_levels - 1) + [1.0]
    close(tr.scale, torch.where(tr.is_top > 0, one, tr.alpha_ts))
    assert (tr.scale[:-1] <= 1).all() and tr.scale[-1] == 1  # below 1, where float64 can tell
    assert (table(Schedule(cosine(6), 4e-4)).scale[:-1] < 1).all()
    assert (tr.step_size > 0).all() and tr.loss_weight[0] == 1
    for field in vars(tr).values():
        assert field.isfinite().all()
    # each level's noisy side is the next level's clean side
    assert tr.logsnr_t[:-1].equal(tr.logsnr_s[1:])


@settings(max_examples=30, deadline=None)
@given(schedules, st.floats(-3, 3), st.floats(-3, 3))
def test_posterior_is_bayes_for_gaussians(schedule: Schedule, x_0: float, x_t: float) -> None:
    tr = table(schedule)
    sides = torch.tensor([x_0, x_t], dtype=torch.float64)
    precision = 1 / tr.sigma_s**2 + (tr.alpha_ts / tr.sigma_ts) ** 2
    mean = (tr.alpha_s * x_0 / tr.sigma_s**2 + tr.alpha_ts * x_t / tr.sigma_ts**2) / precision
    torch.testing.assert_close(tr.posterior_mean(*sides), mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(tr.sigma_post**2, 1 / precision, rtol=1e-9, atol=1e-15)


def test_close_levels_lose_no_digits() -> None:
    """sigma_ts^2 = 1 - exp of the difference of log alpha^2, which differs from 1 in the last digits only."""
    logsnr = torch.tensor([36.0, 35.999, 30.0], dtype=torch.float64)
    tr = table(Schedule(logsnr, 4e-4))
    sigma2 = [1 / (1 + math.exp(value)) for value in logsnr.tolist()]  # alpha is 1 here to 16 digits
    assert tr.sigma_ts[0].item() ** 2 == pytest.approx(sigma2[1] - sigma2[0], rel=1e-9)


@pytest.mark.parametrize("num_levels", [1, 2, 6, 50])
def test_cosine_has_its_ends_and_equal_angles(num_levels: int) -> None:
    logsnr = cosine(num_levels)
    assert logsnr.shape == (num_levels + 1,)
    assert logsnr[[0, -1]].tolist() == pytest.approx([9.8, -5.1], rel=1e-12)
    steps = torch.atan(torch.exp(-logsnr / 2)).diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-9, atol=0)


@pytest.mark.parametrize("num_levels", [2, 3, 6, 17, 500])
def test_drl_tables_of_other_lengths(num_levels: int) -> None:
    assert Schedule(drl_t6(num_levels), 2e-4).num_levels == num_levels


@pytest.mark.parametrize(
    "logsnr",
    [
        [1.0],
        [],
        [[2.0, 1.0]],
        [1.0, 1.0],
        [1.0, 2.0],
        [3.0, math.nan],
        [math.inf, 0.0],
        [1.0, -math.inf],
        [2000.0, 0.0],  # falls as a number, but sigma of level 0 is 0
        [0.0, -100.0, -101.0],  # the same angle twice
    ],
)
def test_a_table_that_does_not_fall_is_refused(logsnr: list) -> None:
    with pytest.raises(ConfigError, match="strictly falling"):
        Schedule(torch.tensor(logsnr, dtype=torch.float64), 4e-4)


@pytest.mark.parametrize("step_scale", [0.0, -1.0, math.nan, math.inf, [1e-4, 0.0], [1e-4], [1e-4] * 3])
def test_a_bad_step_scale_is_refused(step_scale: float | list[float]) -> None:
    with pytest.raises(ConfigError, match="schedule.step_scale: expected one positive number or one for each of 2"):
        Schedule(cosine(2), step_scale)


def test_other_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="step_growth"):
        Schedule(cosine(2), 4e-4, "cubic")
    with pytest.raises(ConfigError, match="logsnr_max"):
        cosine(6, -5.0, 5.0)
    with pytest.raises(ConfigError, match="strictly falling"):
        Schedule(cosine(6, 2000.0, -2000.0), 4e-4)
    for num_levels in (1, 501):
        with pytest.raises(ConfigError, match="2 ... 500 levels"):
            drl_t6(num_levels)


def test_step_scale_per_level_and_growth() -> None:
    plain = table(Schedule(cosine(3), 1.0))
    scaled = table(Schedule(cosine(3), [1.0, 2.0, 3.0]))
    torch.testing.assert_close(scaled.step_size, plain.step_size * torch.tensor([1.0, 2.0, 3.0]).double())
    torch.testing.assert_close(plain.step_size, plain.sigma_s / plain.sigma_s[0] * plain.sigma_ts**2)
    constant = table(Schedule(cosine(3), 1.0, "constant"))
    torch.testing.assert_close(constant.step_size, plain.sigma_ts**2 / plain.sigma_s[0])


@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 3, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transition_fits_the_batch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    schedule, like = Schedule(cosine(4), 4e-4), torch.empty(shape, dtype=dtype)
    level = torch.tensor([3, 0, 1, 3, 2])
    tr, whole = schedule.transition(level, like), table(schedule)
    for name, column in vars(tr).items():
        assert column.shape == ((5,) if name.startswith("logsnr") else (5, *[1] * (len(shape) - 1))), name
        assert column.dtype == dtype and column.device == like.device
        assert column.flatten().equal(getattr(whole, name)[level].to(dtype)), name
    one = schedule.transition(2, like)
    many = schedule.transition(torch.full((5,), 2), like)
    assert all(a.equal(b) for a, b in zip(vars(one).values(), vars(many).values(), strict=True))


def test_the_forward_step_is_additive_noise_in_the_scaled_space() -> None:
    """x_t = y + sigma_ts eps below the top: moments of a pair drawn through the table."""
    generator = torch.Generator().manual_seed(0)
    schedule, n = Schedule(cosine(6), 4e-4), 40_000

    def normal() -> Tensor:
        return torch.randn(n, generator=generator, dtype=torch.float64)

    tr = schedule.transition(2, normal())
    x_s = tr.alpha_s * 0.7 + tr.sigma_s * normal()
    x_t = tr.alpha_ts * x_s + tr.sigma_ts * normal()
    residual = x_t - tr.scale * x_s
    assert residual.mean().item() == pytest.approx(0, abs=4 * tr.sigma_ts[0].item() / math.sqrt(n))
    assert residual.std().item() == pytest.approx(tr.sigma_ts[0].item(), rel=0.02)
    assert x_t.mean().item() == pytest.approx(0.7 * tr.alpha_t[0].item(), abs=0.02)
    assert x_t.std().item() == pytest.approx(tr.sigma_t[0].item(), rel=0.02)
