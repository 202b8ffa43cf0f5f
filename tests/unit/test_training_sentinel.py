"""The sentinel: silent on noise and on slow change, loud at a jump and at NaN, the same however a batch is cut."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cdrl.config import SentinelConfig
from cdrl.errors import Diverged
from cdrl.method.schedule import Schedule, cosine
from cdrl.training.sentinel import (
    MIN_NORMS,
    MIN_SAMPLES,
    NUM_YOUNG_CHECKS,
    QUANTITIES,
    RESOLUTION,
    Breach,
    Sentinel,
    chain_noise,
)

CONFIG = SentinelConfig()
GROUPS = [[0, 1], [2]]
NUM_LEVELS = 3


def batch(seed: int, size: int = 96, scale: float = 1.0) -> tuple[Tensor, ...]:
    """Levels, f_pos, f_neg and displacement of a healthy batch; f is of the order of `scale`."""
    rng = torch.Generator().manual_seed(seed % 2**32)
    level = torch.randint(NUM_LEVELS, (size,), generator=rng)
    f_pos, gap, moved = torch.randn(3, size, generator=rng)
    return level, scale * (3 + f_pos), scale * (3 + f_pos + 0.1 * gap), 1 + 0.1 * moved


def watching(groups: Sequence[Sequence[int]]) -> Sentinel:
    """A new sentinel of chains whose noise is that of their transitions."""
    return Sentinel(CONFIG, groups, torch.ones(sum(map(len, groups))))


def checked(
    sentinel: Sentinel, step: int, *pieces: tuple[Tensor, ...], norms: tuple[float, float] = (0.5, 1.0)
) -> Breach | None:
    """Some updates, then a check."""
    for piece in pieces:
        sentinel.observe(*piece)
    for pair in [*range(len(GROUPS))] * MIN_NORMS:
        sentinel.observe_norms(pair, *torch.tensor(norms))
    return sentinel.judge(sentinel.table(), step)


def settled(num_checks: int = 4 * NUM_YOUNG_CHECKS) -> Sentinel:
    """A sentinel after healthy checks."""
    sentinel = watching(GROUPS)
    assert not any(checked(sentinel, step, batch(step)) for step in range(num_checks))
    return sentinel


def test_stationary_noise_is_never_a_breach() -> None:
    """1e5 checks of each quantity, with magnitudes that are far less even than those of trainings."""
    torch.manual_seed(0)
    num_levels, num_checks = 200, 500
    counts = torch.full((num_levels, len(QUANTITIES)), float(MIN_SAMPLES), dtype=torch.float64)
    counts[:, 3:] = MIN_NORMS
    sums = torch.distributions.Gamma(counts, torch.tensor(1.0, dtype=torch.float64))  # of exponential magnitudes
    sentinel = watching([range(num_levels)])
    for step in range(num_checks):
        assert sentinel.judge(torch.stack([sums.sample() / RESOLUTION, counts], dim=-1), step) is None
    mean = torch.tensor([MIN_SAMPLES, MIN_NORMS], dtype=torch.float64)
    assert torch.special.gammaincc(mean, CONFIG.max_growth * mean).max() < 1e-12, "the false alarms of one check"


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_jump_is_a_breach_at_the_next_check(quantity: str) -> None:
    sentinel = settled()
    level, f_pos, f_neg, displacement = batch(99)
    there, norms = level == 1, (0.5, 1.0)
    match quantity:
        case "f":
            f_pos, f_neg = (torch.where(there, f + 80, f) for f in (f_pos, f_neg))
        case "energy_gap":
            f_neg = torch.where(there, f_pos - 20 * (f_neg - f_pos), f_neg)
        case "displacement_sigmas":
            displacement = torch.where(there, 20 * displacement, displacement)
        case "grad_norm_energy":
            norms = (10.0, 1.0)
        case "grad_norm_initializer":
            norms = (0.5, 20.0)
    breach = checked(sentinel, 40, (level, f_pos, f_neg, displacement), norms=norms)
    assert breach is not None and breach.value > breach.bound > 0
    assert (breach.pair, breach.step, breach.quantity) == (0, 40, quantity)
    assert breach.level == (0 if quantity.startswith("grad_norm") else 1)


def test_the_mean_and_the_bound_are_what_they_say() -> None:
    sentinel = watching([[0]])
    zeros = torch.zeros(MIN_SAMPLES)
    for step in range(NUM_YOUNG_CHECKS):
        sentinel.observe(zeros.long(), zeros - 2, zeros - 2.5, zeros + 1)
        assert sentinel.judge(sentinel.table(), step) is None
    sentinel.observe(zeros.long(), zeros, zeros + 9, zeros + 1)  # eighteen times 0.5; f = 0 is no breach
    assert sentinel.judge(sentinel.table(), 9) == Breach(0, 0, 9, "energy_gap", 9.0, 7.5)


def growing(sentinel: Sentinel, num_checks: int, factor: float) -> Breach | None:
    """The first breach where f and gap grow by a factor from check to check."""
    breaches = (checked(sentinel, step, batch(step, scale=factor**step)) for step in range(num_checks))
    return next(filter(None, breaches), None)


def test_a_young_level_has_more_room_but_not_for_displacement() -> None:
    assert growing(watching(GROUPS), NUM_YOUNG_CHECKS, 8) is None
    assert growing(watching(GROUPS), NUM_YOUNG_CHECKS, 1000) is not None
    assert growing(settled(), NUM_YOUNG_CHECKS, 8) is not None
    level, f_pos, f_neg, displacement = batch(0)
    breach = checked(watching(GROUPS), 1, (level, f_pos, f_neg, 200 * displacement))
    assert breach is not None
    assert (breach.quantity, breach.bound) == ("displacement_sigmas", CONFIG.max_displacement_sigmas)


def test_growth_by_a_power_is_no_breach_and_doubling_soon_is() -> None:
    sentinel = watching(GROUPS)
    for step in range(300):  # f and gap of a young net
        assert checked(sentinel, step, batch(step, scale=1e-3 * (step + 1) ** 3), norms=(step + 1, 1.0)) is None
    breaches = [checked(sentinel, step, batch(0, scale=27e3 * 2.0 ** (step - 300))) for step in range(300, 310)]
    assert any(breaches)


@pytest.mark.parametrize("quantity", ["f", "displacement_sigmas"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_one_number_that_is_not_finite_is_a_breach_at_once(quantity: str, wrong: float) -> None:
    level, f_pos, f_neg, displacement = batch(0)
    (f_pos if quantity == "f" else displacement)[level == 2] = wrong
    breach = checked(watching(GROUPS), 1, (level, f_pos, f_neg, displacement))
    assert breach is not None and (breach.level, breach.pair, breach.quantity) == (2, 1, quantity)
    assert not torch.tensor(breach.value).isfinite()


def test_an_update_that_one_rank_refused_is_a_breach_on_all() -> None:
    healthy, struck = settled(), settled()
    healthy.observe(*batch(41))
    struck.refuse(Diverged(level=2, step=41, value={"grad_norm_initializer": float("nan")}))
    table = healthy.table() + struck.table()
    for sentinel in (healthy, struck):
        breach = sentinel.judge(table, 41)
        assert breach is not None
        assert (breach.pair, breach.level, breach.quantity) == (1, 2, "grad_norm_initializer")


def test_a_net_that_is_not_trained_has_no_norm() -> None:
    """While an initializer trains alone; the energy net's norms begin later."""
    sentinel = watching([[0]])
    for step in range(50):
        sentinel.observe_norms(0, torch.tensor(0.0), torch.tensor(8.0))
        assert sentinel.judge(sentinel.table(), step) is None
    for step in range(50, 100):
        sentinel.observe_norms(0, torch.tensor(0.3), torch.tensor(8.0))
        assert sentinel.judge(sentinel.table(), step) is None


def test_few_samples_wait_for_more() -> None:
    """With many levels a batch has few of each: their mean is taken when there are enough."""
    sentinel = settled()
    level, f_pos, f_neg, displacement = batch(0, size=MIN_SAMPLES // 2)
    wild = (torch.zeros_like(level), 100 * f_pos, 100 * f_neg, displacement)
    assert checked(sentinel, 1, wild) is None
    assert checked(sentinel, 2, wild) is not None


def test_a_chain_on_a_flat_f_moves_by_its_noise_and_a_draw_by_sigma_ts() -> None:
    schedule = Schedule(cosine(NUM_LEVELS), 4e-4)
    tr = schedule.constants
    noise = chain_noise(schedule, 15, has_initializer=True)
    assert torch.allclose(noise * tr.sigma_ts, (15 * tr.step_size).sqrt())
    assert chain_noise(schedule, 0, has_initializer=True).equal(chain_noise(schedule, 1, has_initializer=False))
    assert chain_noise(schedule, 0, has_initializer=False).equal(torch.ones_like(tr.sigma_ts))


def test_displacement_is_counted_in_sigma_ts_whatever_the_step_size() -> None:
    level, f_pos, f_neg, displacement = batch(0)
    sentinel = Sentinel(CONFIG, GROUPS, torch.tensor([1.0, 0.05, 1.0]))
    columns = level, f_pos, f_neg, torch.where(level == 1, 100 * displacement, displacement)
    assert checked(sentinel, 0, columns) is None
    sentinel.use_noise(torch.tensor([1.0, 0.2, 1.0]))
    breach = checked(sentinel, 1, columns)
    assert breach is not None and (breach.level, breach.quantity) == (1, "displacement_sigmas")


@pytest.mark.parametrize("num_replicas", [2, 4])
def test_tables_of_replicas_add_up_to_the_whole_bit_by_bit(num_replicas: int) -> None:
    whole, replicas = watching(GROUPS), [watching(GROUPS) for _ in range(num_replicas)]
    for seed in range(20):
        columns = batch(seed)
        whole.observe(*columns)
        pieces = [column.chunk(num_replicas) for column in columns]
        for replica, piece in zip(replicas, zip(*pieces, strict=True), strict=True):
            replica.observe(*piece)
    table = torch.stack([replica.table() for replica in reversed(replicas)]).sum(dim=0)
    assert table.equal(whole.table())
    assert not whole.table().any(), "a table begins anew"


@pytest.mark.parametrize("between_checks", [False, True])
def test_a_resumed_sentinel_is_the_straight_one_bit_by_bit(between_checks: bool) -> None:
    straight, begun = watching(GROUPS), watching(GROUPS)
    for step in range(30):
        checked(straight, step, batch(step, size=40), batch(-1 - step))
    for step in range(17):
        checked(begun, step, batch(step, size=40), batch(-1 - step))
    if between_checks:  # a worker is about to go
        begun.observe(*batch(17, size=40))
        begun.hold(begun.table())
    state = {name: tensor.clone() for name, tensor in begun.state_dict().items()}
    begun.observe(*batch(99))  # lost with the worker, or undone by a roll back
    resumed = watching(GROUPS)
    for sentinel in (resumed, begun):
        sentinel.load_state_dict(state)
        for step in range(17, 30):
            pieces = [batch(step, size=40), batch(-1 - step)]
            assert checked(sentinel, step, *pieces[between_checks and step == 17 :]) is None
        assert all(value.equal(straight.state_dict()[name]) for name, value in sentinel.state_dict().items())
    level, f_pos, f_neg, displacement = batch(0)
    last = [checked(each, 30, (level, 80 * f_pos, 80 * f_neg, displacement)) for each in (straight, resumed, begun)]
    assert last[0] is not None and last[0] == last[1] == last[2]
