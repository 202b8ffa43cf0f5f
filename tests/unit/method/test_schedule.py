"""Laws of the noise levels, for tables of any length and reach."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cdrl.errors import ConfigError
from cdrl.method.schedule import PURE_NOISE, Schedule, Transition, cosine, drl_t1k, drl_t6

schedules = st.builds(
    lambda num_levels, top, reach, growth, warp: Schedule(cosine(num_levels, top, top - reach, warp), 4e-4, growth),
    num_levels=st.integers(1, 50),
    top=st.floats(-4, 25),
    reach=st.floats(0.5, 40),
    growth=st.sampled_from(["sigma", "constant"]),
    warp=st.floats(0.5, 2),
)


def table(schedule: Schedule) -> Transition:
    return schedule.constants


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


@pytest.mark.parametrize("warp", [0.3, 2.5])
def test_a_warp_moves_levels_between_the_same_ends(warp: float) -> None:
    plain, warped = cosine(6), cosine(6, warp=warp)
    torch.testing.assert_close(warped[[0, -1]], plain[[0, -1]])
    inner = (warped > plain)[1:-1]  # above 1 the levels gather at the clean end, where logSNR is high
    assert inner.all() if warp > 1 else not inner.any()
    angles = torch.atan(torch.exp(-warped / 2))
    share = (angles - angles[0]) / (angles[-1] - angles[0])
    torch.testing.assert_close(share, (torch.arange(7, dtype=torch.float64) / 6) ** warp, rtol=1e-9, atol=1e-12)
    assert cosine(6, warp=1.0).equal(plain)


def test_drl_t1k_is_the_linear_chain_and_then_pure_noise() -> None:
    """alpha_ts^2 = 1 - beta_i for every step of the chain: the table is made of cumulative products of them."""
    tr = table(Schedule(drl_t1k(), 2e-4))
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(tr.sigma_ts[:-1] ** 2, beta[1:], rtol=1e-9, atol=0)
    torch.testing.assert_close(tr.alpha_ts[:-1] ** 2, 1 - beta[1:])
    assert tr.sigma_s[0].item() == pytest.approx(0.01, rel=1e-12)
    assert tr.alpha_s[-1].item() == pytest.approx(0.00635282, rel=1e-6)  # the same last node as T6
    assert tr.logsnr_t[-1].item() == PURE_NOISE and tr.alpha_t[-1].item() < 5e-5
    assert drl_t6()[[0, 1, -1]].equal(drl_t1k()[[0, 100, 999]])


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
    for num_levels in (1, 999, 1001):
        with pytest.raises(ConfigError, match=f"drl_t1k has 1000 levels, got {num_levels}"):
            drl_t1k(num_levels)
    for warp in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="schedule.warp: expected a positive number"):
            cosine(6, warp=warp)


def test_the_refusal_of_a_long_table_names_one_place() -> None:
    logsnr = drl_t1k()
    logsnr[700] = logsnr[699]
    with pytest.raises(ConfigError, match=r"got (-[\d.]+) after \1 at t = 700$") as refusal:
        Schedule(logsnr, 2e-4)
    assert len(str(refusal.value)) < 200


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


class Counting(TorchDispatchMode):
    """Names of the operations that reach a device, views among them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("level", [2, torch.tensor([3, 0, 1, 3, 2])], ids=["int", "batch"])
def test_a_transition_is_one_lookup_and_views(level: Tensor | int) -> None:
    schedule, like = Schedule(cosine(4), 4e-4), torch.empty(5, 3, 4, 4)
    schedule.transition(0, like)  # places the table
    with Counting() as counting:
        schedule.transition(level, like)
    views = {"select", "slice", "unsqueeze", "expand", "view", "unbind"}
    assert [name for name in counting.seen if name not in views] == ([] if isinstance(level, int) else ["index_select"])
    assert len(counting.seen) <= 8


def test_a_copied_or_sent_schedule_is_the_same_without_its_tables_on_devices() -> None:
    schedule, like, level = Schedule(cosine(4), [1.0, 2.0, 3.0, 4.0]), torch.empty(2, 3), torch.tensor([3, 1])
    fresh = schedule.__getstate__()
    before = schedule.transition(level, like)
    assert schedule.__getstate__() == fresh  # what deepcopy and Ray carry away
    after = copy.deepcopy(schedule).transition(level, like)
    assert all(a.equal(b) for a, b in zip(vars(before).values(), vars(after).values(), strict=True))


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
