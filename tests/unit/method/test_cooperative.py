"""One update: its gradients, its randomness, what it must not touch, and where it ends."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdrl.errors import Diverged
from cdrl.method.cooperative import (
    Optimizers,
    StepMetrics,
    Synchronise,
    cooperative_step,
    initializer_step,
    noised_pair,
)
from cdrl.method.fast import Fast
from cdrl.method.formulation import Formulation, Plain
from cdrl.method.nets import EnergyNet, Initializer, power_iterate
from cdrl.method.pairs import Pair
from cdrl.method.rng import Rng
from cdrl.method.schedule import Schedule, cosine
from cdrl.method.tree import leaves, tree_sum, whole_nodes
from tests.unit.method.gaussians import mean_within, variance_within

SCHEDULE = Schedule(cosine(6), 4e-4)
LEVEL = torch.tensor([0, 5, 2, 3])
LABEL = torch.tensor([1, 0, 2, 2])


def make_pair(*, base_measure: float = 0.0, initializer: bool = True, dropout: float = 0.0) -> Pair:
    torch.manual_seed(0)
    energy = EnergyNet(1, 4, (1, 2), 1, num_classes=2)
    g = Initializer(1, 8, 4, (1,), 1, attention_resolutions=(), groups=2, dropout=dropout, num_classes=2)
    pair = Pair(energy, g if initializer else None, base_measure).double()
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return pair


PLAIN_DESCENT = partial(torch.optim.SGD, lr=1.0)  # moves each parameter by its gradient


def optimizers(pair: Pair, make: Any = PLAIN_DESCENT) -> Optimizers:
    g = pair.initializer
    return Optimizers(make(pair.energy.parameters()), None if g is None else make(g.parameters()))


def data(batch: int = 4) -> Tensor:
    return torch.randn(batch, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


def parameters(net: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in net.parameters()]


def angles(level: int) -> tuple[float, float]:
    """theta of s and t, from the closed form of spec section 2.3."""
    a, b = 1.4854263187880348, 0.00744644543385643
    return a * level / 6 + b, a * (level + 1) / 6 + b


def by_hand(
    pair: Pair, x_0: Tensor, rng: Rng, *, num_steps: int, shared_noise: bool, anchor: float
) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """Gradients of an update, sample by sample from the spec's sections 4 to 6, with separate passes."""
    theta = torch.tensor([angles(level) for level in LEVEL.tolist()], dtype=torch.float64)
    (a_s, a_t), (s_s, s_t) = theta.cos().T[..., None, None, None], theta.sin().T[..., None, None, None]
    a_ts, top = a_t / a_s, (LEVEL == 5).view(-1, 1, 1, 1)
    beta = 1 - a_ts**2
    step_size = 4e-4 * s_s / torch.tensor(angles(0)[0], dtype=torch.float64).sin() * beta
    mul = torch.where(top, 1.0, a_ts)
    logsnr_s, logsnr_t = (2 * (a / s).log().flatten() for a, s in ((a_s, s_s), (a_t, s_t)))
    weight = (SCHEDULE.transition(0, x_0).sigma_ts[0] / beta.sqrt()).flatten()

    if shared_noise:
        eps = rng.normal(x_0)
        x_s, x_t = a_s * x_0 + s_s * eps, a_t * x_0 + s_t * eps
    else:
        forward = rng.normal(x_0)
        x_s = a_s * x_0 + s_s * rng.normal(x_0)
        x_t = a_ts * x_s + beta.sqrt() * forward
    power_iterate(pair.energy)
    f = partial(pair.energy, logsnr=logsnr_s, label=LABEL)
    mean, y_init = None, x_t
    if pair.initializer is not None:
        mean = pair.initializer(x_t, logsnr_t, LABEL)
        y_init = mean + mul * (s_s / s_t) * beta.sqrt() * rng.normal(x_t)
    y = y_init.detach()
    for _ in range(num_steps):
        y = y.requires_grad_(True)
        log_p = f(y) / step_size.flatten()
        log_p = log_p - (~top * (y - x_t) ** 2 / (2 * beta)).flatten(1).sum(1)
        log_p = log_p - 0.5 * pair.base_measure * ((y / mul) ** 2).flatten(1).sum(1)
        (score,) = torch.autograd.grad(log_p.sum(), y)
        y = (y + step_size / 2 * score + step_size.sqrt() * rng.normal(y)).detach()
    if pair.initializer is None and num_steps == 0:  # the first-order expansion of log p(y | x_t) at x_t
        y = x_t.clone().requires_grad_(True)
        log_p = f(y) / step_size.flatten() - 0.5 * pair.base_measure * ((y / mul) ** 2).flatten(1).sum(1)
        (score,) = torch.autograd.grad(log_p.sum(), y)
        y = torch.where(top, x_t, x_t + beta * score + beta.sqrt() * rng.normal(y)).detach()
    f_pos, f_neg = f(mul * x_s), f(y)
    loss_energy = sum(weight[i] * (f_neg[i] - f_pos[i]) for i in range(4)) / 4
    gradients = torch.autograd.grad(loss_energy, list(pair.energy.parameters()))
    seen = {"loss_energy": loss_energy, "f_pos": f_pos.mean(), "f_neg": f_neg.mean()}
    variance = beta if pair.initializer is None and num_steps == 0 else max(num_steps, 1) * step_size
    seen["displacement"] = torch.stack(
        [((y - y_init)[i] ** 2).mean().sqrt() / variance[i, 0, 0, 0].sqrt() for i in range(4)]
    ).mean()
    if mean is None:
        return list(gradients), [], seen
    loss = sum(((y - y_init)[i] ** 2).sum() for i in range(4)) / 4
    precision = 1 / s_s**2 + a_ts**2 / beta
    posterior = (a_s * x_0 / s_s**2 + a_ts * x_t / beta) / precision
    loss = loss + anchor * ((mul * posterior - mean) ** 2).flatten(1).sum(1).mean()
    seen["loss_initializer"] = loss
    return list(gradients), list(torch.autograd.grad(loss, list(pair.initializer.parameters()))), seen


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": 3, "shared_noise": True, "anchor": 0.0},
        {"num_steps": 3, "shared_noise": False, "anchor": 0.7},
        {"num_steps": 0, "shared_noise": True, "anchor": 1.0},
    ],
)
@pytest.mark.parametrize("parts", [{}, {"base_measure": 1.0}, {"initializer": False}])
def test_gradients_are_those_of_the_formulas(options: dict[str, Any], parts: dict[str, Any]) -> None:
    """The chain gives no gradient to any parameter, or these would differ."""
    pair = make_pair(**parts)
    expected_f, expected_g, seen = by_hand(copy.deepcopy(pair), data(), Rng(7), **options)
    before_f = parameters(pair.energy)
    before_g = [] if pair.initializer is None else parameters(pair.initializer)
    metrics = cooperative_step(
        pair, optimizers(pair), SCHEDULE, data(), LEVEL, LABEL, rng=Rng(7), clip_norm=1e9, **options
    )
    close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-9)
    for parameter, old, gradient in zip(pair.energy.parameters(), before_f, expected_f, strict=True):
        close(old - parameter.detach(), gradient)
    if pair.initializer is not None:
        for parameter, old, gradient in zip(pair.initializer.parameters(), before_g, expected_g, strict=True):
            close(old - parameter.detach(), gradient)
    for name, value in seen.items():
        assert getattr(metrics, name) == pytest.approx(value.item(), rel=1e-6), name
    norm = torch.stack([gradient.norm() for gradient in expected_f]).norm()
    assert metrics.grad_norm_energy == pytest.approx(norm.item(), rel=1e-6)
    if not expected_g:
        assert metrics.grad_norm_initializer == 0


def test_each_gradient_is_clipped_to_the_norm_by_itself() -> None:
    pair = make_pair()
    before = parameters(pair.energy), parameters(pair.initializer)
    metrics = cooperative_step(
        pair, optimizers(pair), SCHEDULE, data(), LEVEL, LABEL, num_steps=2, rng=Rng(0), clip_norm=1e-3
    )
    assert min(metrics.grad_norm_energy, metrics.grad_norm_initializer) > 1e-3
    for net, old in zip((pair.energy, pair.initializer), before, strict=True):
        moved = torch.cat([(a - b).flatten() for a, b in zip(old, parameters(net), strict=True)])
        assert moved.norm().item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("shared_noise", [True, False])
@pytest.mark.parametrize("level", [0, 2, 5])
def test_both_couplings_have_the_right_marginals(shared_noise: bool, level: int) -> None:
    x_0 = torch.full((20_000, 1), 0.6, dtype=torch.float64)
    tr = SCHEDULE.transition(level, x_0)
    alpha_s, sigma_s, alpha_t, sigma_t = (v[0].item() for v in (tr.alpha_s, tr.sigma_s, tr.alpha_t, tr.sigma_t))
    x_s, x_t = noised_pair(tr, x_0, Rng(level), shared_noise=shared_noise)
    assert mean_within(x_s, 0.6 * alpha_s) and variance_within(x_s, sigma_s**2)
    assert mean_within(x_t, 0.6 * alpha_t) and variance_within(x_t, sigma_t**2)
    correlation = torch.corrcoef(torch.stack([x_s.flatten(), x_t.flatten()]))[0, 1].item()
    expected = 1.0 if shared_noise else tr.alpha_ts[0].item() * sigma_s / sigma_t
    assert correlation == pytest.approx(expected, abs=0.03)


def poison(pair: Pair, x_0: Tensor, what: str) -> None:
    with torch.no_grad():
        if what == "x_0":
            x_0[2, 0, 3, 3] = torch.nan
        elif what == "energy weight":
            pair.energy.head.weight[1, 2] = torch.nan
        elif what == "overflow":
            pair.energy.head.weight.mul_(1e300)
        else:
            pair.initializer.stem.weight[0, 0, 1, 1] = torch.inf


@pytest.mark.parametrize("what", ["x_0", "energy weight", "overflow", "initializer weight"])
def test_divergence_is_refused_before_any_weight_moves(what: str) -> None:
    pair, x_0 = make_pair(), data()
    ours = optimizers(pair, partial(torch.optim.Adam, lr=1.0))
    if what != "x_0":
        cooperative_step(pair, ours, SCHEDULE, x_0, LEVEL, LABEL, num_steps=2, rng=Rng(0))
    poison(pair, x_0, what)
    before = parameters(pair)
    moments = copy.deepcopy([ours.energy.state_dict()["state"], ours.initializer.state_dict()["state"]])
    with pytest.raises(Diverged, match="update 41: grad_norm_.*the update was not applied") as caught:
        cooperative_step(pair, ours, SCHEDULE, x_0, LEVEL, LABEL, num_steps=2, rng=Rng(1), step=41)
    assert caught.value.step == 41
    if what == "x_0":
        assert caught.value.level == LEVEL[2]
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(before, parameters(pair), strict=True))
    torch.testing.assert_close(
        [ours.energy.state_dict()["state"], ours.initializer.state_dict()["state"]], moments, rtol=0, atol=0
    )


def test_the_initializers_divergence_is_refused_too() -> None:
    pair, x_0 = make_pair(), data()
    poison(pair, x_0, "x_0")
    before = parameters(pair)
    with pytest.raises(Diverged, match="grad_norm_initializer=nan") as caught:
        initializer_step(pair, optimizers(pair), SCHEDULE, x_0, LEVEL, LABEL, rng=Rng(0), step=3)
    assert (caught.value.level, caught.value.step) == (LEVEL[2], 3)
    assert all(a.equal(b) for a, b in zip(before, parameters(pair), strict=True))


Batch = tuple[Tensor, Tensor, Tensor]


def rows(chunks: range) -> Batch:
    """What an update is given of these chunks, one sample each."""
    part = slice(chunks.start, chunks.stop)
    return data()[part], LEVEL[part], LABEL[part]


def update(pair: Pair, chunks: range, *, alone: bool, make: Any = PLAIN_DESCENT, **options: Any) -> StepMetrics:
    """One update with these chunks of the batch of four."""
    batch = (pair, optimizers(pair, make), SCHEDULE, *rows(chunks))
    if alone:
        return initializer_step(*batch, rng=Rng(3, chunks=chunks), **options)
    return cooperative_step(*batch, rng=Rng(3, chunks=chunks), num_steps=2, anchor=0.5, **options)


def recording(seen: list[list[Tensor]]) -> Synchronise:
    """A synchronise that writes down what each piece contributes, as if it were all there is."""

    def synchronise(pieces: Iterator[Tensor]) -> Tensor:
        seen.append([piece.clone() for piece in pieces])
        return torch.stack(seen[-1]).mean(dim=0)

    return synchronise


@pytest.mark.parametrize("alone", [False, True])
def test_two_halves_averaged_are_one_batch(alone: bool) -> None:
    """Dropout, noise and levels of a chunk belong to the chunk: what data parallelism rests on."""
    seen: list[list[Tensor]] = []
    for chunks in (range(4), range(2), range(2, 4)):
        update(make_pair(dropout=0.3), chunks, alone=alone, synchronise=recording(seen))
    (whole,), (first,), (second,) = seen  # one flat vector each: gradients of the nets, then metrics
    torch.testing.assert_close(whole, (first + second) / 2, rtol=1e-8, atol=1e-11)


def moved(pair: Pair, old: list[Tensor]) -> Tensor:
    return torch.cat([(a.detach() - b).flatten() for a, b in zip(pair.parameters(), old, strict=True)])


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("formulation", [Plain(), Fast()], ids=["plain", "fast"])
def test_chunk_by_chunk_is_the_whole_batch_to_rounding(alone: bool, formulation: Formulation) -> None:
    ends, metrics = [], []
    for chunkwise in (False, True):
        pair = make_pair(dropout=0.3)
        old = parameters(pair)
        metrics.append(update(pair, range(4), alone=alone, chunkwise=chunkwise, formulation=formulation))
        ends.append(moved(pair, old))
    assert ends[0].abs().max() > 1e-3
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-10, atol=1e-12)
    for one, other in zip(vars(metrics[0]).values(), vars(metrics[1]).values(), strict=True):
        assert one.item() == pytest.approx(other.item(), rel=1e-10)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("shares", [(2, 2), (1, 2, 1), (3, 1), (1, 1, 1, 1)])
def test_any_division_of_the_chunks_over_replicas_gives_the_same_bits(alone: bool, shares: tuple[int, ...]) -> None:
    """Each replica sees its own rows only."""
    one = make_pair(dropout=0.3)
    expected = update(one, range(4), alone=alone, chunkwise=True, make=torch.optim.Adam)
    parts = [range(sum(shares[:i]), sum(shares[: i + 1])) for i in range(len(shares))]
    known = [node for part in parts for node in whole_nodes(part, range(4))]
    sums: list[Tensor] = []

    def gather(part: range, pieces: Iterator[Tensor]) -> Tensor:
        sums.extend(tree_sum(node, leaves(part), pieces) for node in whole_nodes(part, range(4)))
        return torch.zeros(size, dtype=torch.float64)

    size = sum(p.numel() for p in (one.initializer if alone else one).parameters()) + (1 if alone else 5)
    for part in parts:
        pair = make_pair(dropout=0.3)
        update(pair, part, alone=alone, chunkwise=True, synchronise=partial(gather, part))
    mean = tree_sum(range(4), known, iter(sums)) / 4
    pair = make_pair(dropout=0.3)

    def finish(pieces: Iterator[Tensor]) -> Tensor:
        assert len(list(pieces)) == shares[0]
        return mean

    found = update(pair, parts[0], alone=alone, chunkwise=True, make=torch.optim.Adam, synchronise=finish)
    assert all(a.equal(b) for a, b in zip(pair.parameters(), one.parameters(), strict=True))
    assert vars(found) == vars(expected)


def test_what_replicas_agree_on_is_applied() -> None:
    pair = make_pair()
    before = parameters(pair)

    def to_zero(pieces: Iterator[Tensor]) -> Tensor:
        return sum(pieces) * 0

    metrics = update(pair, range(4), alone=False, synchronise=to_zero)
    assert all(value == 0 for value in vars(metrics).values())
    assert all(a.equal(b) for a, b in zip(before, parameters(pair), strict=True))


@pytest.mark.parametrize("chunkwise", [False, True])
def test_an_observer_sees_every_sample_once_before_anything_moves(chunkwise: bool) -> None:
    pair, seen = make_pair(), []
    old = parameters(pair)

    def observe(level: Tensor, *each: Tensor) -> None:
        assert not any(values.requires_grad for values in each)
        assert all(a.equal(b) for a, b in zip(old, parameters(pair), strict=True))
        seen.append((level.double(), *each))

    metrics = update(pair, range(4), alone=False, chunkwise=chunkwise, observe=observe)
    assert len(seen) == (4 if chunkwise else 1)
    level, f_pos, f_neg, displacement = (torch.cat(column) for column in zip(*seen, strict=True))
    assert level.equal(LEVEL.double())
    for values, name in ((f_pos, "f_pos"), (f_neg, "f_neg"), (displacement, "displacement")):
        assert values.shape == (4,) and values.mean().item() == pytest.approx(getattr(metrics, name).item(), rel=1e-9)


@pytest.mark.parametrize("what", ["x_0", "energy weight"])
def test_divergence_of_a_piece_is_refused_with_its_level(what: str) -> None:
    pair, x_0 = make_pair(), data()
    poison(pair, x_0, what)
    before = parameters(pair)
    with pytest.raises(Diverged, match="update 5: grad_norm") as caught:
        options: dict[str, Any] = {"num_steps": 2, "rng": Rng(0, chunks=range(4)), "step": 5, "chunkwise": True}
        cooperative_step(pair, optimizers(pair), SCHEDULE, x_0, LEVEL, LABEL, **options)
    assert caught.value.level == (LEVEL[2] if what == "x_0" else LEVEL[0])
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(before, parameters(pair), strict=True))


def test_initializer_step_regresses_the_posterior_mean_and_leaves_the_energy_net_alone() -> None:
    pair = make_pair()
    frozen_state = {key: value.clone() for key, value in pair.energy.state_dict().items()}
    tr = SCHEDULE.transition(LEVEL, data())
    g = copy.deepcopy(pair.initializer)
    _, x_t = noised_pair(tr, data(), Rng(5), shared_noise=True)
    loss = ((g(x_t, tr.logsnr_t, LABEL) - tr.scale * tr.posterior_mean(data(), x_t)) ** 2).sum() / 4
    loss.backward()
    before = parameters(pair.initializer)
    metrics = initializer_step(pair, optimizers(pair), SCHEDULE, data(), LEVEL, LABEL, rng=Rng(5), clip_norm=1e9)
    assert metrics.loss_initializer == pytest.approx(loss.item(), rel=1e-9)
    for now, old, expected in zip(pair.initializer.parameters(), before, g.parameters(), strict=True):
        torch.testing.assert_close(old - now.detach(), expected.grad, rtol=1e-6, atol=1e-9)
    assert all(value.equal(frozen_state[key]) for key, value in pair.energy.state_dict().items())
    assert all(parameter.grad is None for parameter in pair.energy.parameters())


def test_a_pair_without_initializer_is_drl() -> None:
    """Chains start at x_t: at the top with no step at all, the negatives are x_t itself."""
    schedule, x_0, level = Schedule(cosine(3), 2e-4), data(), torch.tensor([2, 2, 2, 2])
    pair = make_pair(initializer=False)
    tr = schedule.transition(level, x_0)
    _, x_t = noised_pair(tr, x_0, Rng(2), shared_noise=False)
    ours = optimizers(pair)
    f_neg = copy.deepcopy(pair.energy)
    power_iterate(f_neg)
    metrics = cooperative_step(
        pair, ours, schedule, x_0, level, LABEL, num_steps=0, rng=Rng(2), shared_noise=False, anchor=1.0
    )
    assert ours.initializer is None
    assert metrics.f_neg == pytest.approx(f_neg(x_t, tr.logsnr_s, LABEL).mean().item(), rel=1e-9)
    assert metrics.displacement == 0
