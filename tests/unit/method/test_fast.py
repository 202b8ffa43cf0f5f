"""The fast formulation is the plain one: in float64 to rounding, with a known number of kernels."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cdrl.bench.counting import Count
from cdrl.method import schedule as schedules
from cdrl.method.cooperative import Optimizers, StepMetrics, cooperative_step
from cdrl.method.ema import update_average
from cdrl.method.fast import Fast
from cdrl.method.fast.graph import MAX_KEPT, GraphedChain
from cdrl.method.fast.precision import fp32_kernels
from cdrl.method.fast.tensors import map_tensors, tensors_of
from cdrl.method.formulation import Formulation, Plain
from cdrl.method.guidance import Condition
from cdrl.method.langevin import RecoveryTarget, langevin
from cdrl.method.nets import EnergyNet, Initializer, PointInitializer, power_iterate
from cdrl.method.pairs import Pair, PairLadder, groups_of_levels
from cdrl.method.rng import Rng
from cdrl.method.sampling import sample
from cdrl.method.schedule import Schedule

BATCH = 3


@dataclass(frozen=True)
class Case:
    """One configuration of the method."""

    dense: bool = False
    channels: int = 1
    multipliers: tuple[int, ...] = (1, 2)
    num_blocks: int = 1
    patch: int = 1
    num_classes: int = 0
    pairs: str = "shared"
    family: str = "cosine"
    initializer: bool = True
    base_measure: float = 0.0
    num_levels: int = 3
    num_steps: int = 2
    guidance: tuple[float, ...] = (0.0,)
    step_multiplier: float = 1.0
    anchor: float = 0.0
    seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (2,) if self.dense else (self.channels, 8, 8)

    @property
    def schedule(self) -> Schedule:
        table = schedules.cosine if self.family == "cosine" else schedules.drl_t6
        return Schedule(table(self.num_levels), 4e-4)

    def pair(self) -> Pair:
        energy = EnergyNet(
            self.shape[0],
            4,
            self.multipliers,
            self.num_blocks,
            patch=self.patch,
            num_classes=self.num_classes,
            dense=self.dense,
        )
        g: nn.Module | None = None
        if self.initializer and self.dense:
            g = PointInitializer(2, 8, 4, self.num_classes)
        elif self.initializer:
            options: dict[str, Any] = {"attention_resolutions": (), "groups": 2, "num_classes": self.num_classes}
            g = Initializer(self.channels, 8, 4, (1,), 1, dropout=0.2, **options)
        return Pair(energy, g, self.base_measure)

    def ladder(self) -> PairLadder:
        torch.manual_seed(self.seed)
        ladder = PairLadder(groups_of_levels(self.pairs, self.num_levels), self.pair).double()
        with torch.no_grad():  # gains, biases and zero-initialised layers leave their initial values
            for parameter in ladder.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        power_iterate(ladder, 20)
        return ladder

    def label(self, number: int) -> Tensor | None:
        return (torch.arange(BATCH) + number) % (self.num_classes + 1) if self.num_classes else None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dense = draw(st.booleans())
    classes = draw(st.sampled_from([0, 2]))
    weights = st.lists(st.floats(-2, 3), min_size=1, max_size=3)
    return Case(
        dense=dense,
        channels=draw(st.sampled_from([1, 3])),
        multipliers=draw(st.sampled_from([(1,), (1, 2), (2, 1, 1), (1, 2, 1)])),
        num_blocks=draw(st.integers(1, 2)),
        patch=1 if dense else draw(st.sampled_from([1, 2])),
        num_classes=classes,
        pairs=draw(st.sampled_from(["shared", "per_level"])),
        family=draw(st.sampled_from(["cosine", "drl_t6"])),
        initializer=draw(st.booleans()),
        base_measure=draw(st.sampled_from([0.0, 0.7])),
        num_steps=draw(st.integers(0, 3)),
        guidance=tuple(draw(weights)) if classes else (0.0,),
        step_multiplier=draw(st.floats(0.5, 2)),
        anchor=draw(st.sampled_from([0.0, 1.0])),
        seed=draw(st.integers(0, 99)),
    )


fast = st.builds(Fast, channels_last=st.booleans(), fold_pooling=st.booleans())


def close(a: object, b: object) -> None:
    """Equal to 1e-10, relative to the largest number of each tensor."""
    for one, other in zip(tensors_of(a), tensors_of(b), strict=True):
        error = (one - other).abs().max() if one.numel() else torch.zeros(())
        assert error <= 1e-10 * (1 + other.abs().max() if other.numel() else 1), error


def two_steps(case: Case, formulation: Formulation) -> tuple[StepMetrics, tuple[Tensor, ...]]:
    """Two updates of the first pair: metrics of the second, then its gradients, u and v, parameters and average.

    Plain gradient descent, since Adam blows rounding errors of vanishing gradients up to its full step.
    """
    ladder, schedule = case.ladder(), case.schedule
    pair, average = ladder[0], copy.deepcopy(ladder[0])
    nets = [torch.optim.SGD(net.parameters(), lr=1e-2) for net in (pair.energy, pair.initializer) if net is not None]
    optimizers = Optimizers(nets[0], nets[1] if len(nets) > 1 else None)
    metrics = StepMetrics()
    for step in range(2):
        rng = Rng(case.seed, step)
        x_0 = rng.uniform(torch.empty(BATCH, *case.shape, dtype=torch.float64)) * 2 - 1
        level = ladder.draw_levels(0, rng, x_0)
        options: dict[str, Any] = {"num_steps": case.num_steps, "anchor": case.anchor, "formulation": formulation}
        shared = case.initializer
        metrics = cooperative_step(
            pair, optimizers, schedule, x_0, level, case.label(1), rng=rng, shared_noise=shared, **options
        )
        update_average(average, pair, 0.99, step)
    gradients = [parameter.grad for parameter in pair.parameters() if parameter.grad is not None]
    return metrics, (*gradients, *pair.buffers(), *pair.state_dict().values(), *average.state_dict().values())


def drawn(case: Case, formulation: Formulation) -> Tensor:
    labels = [label for number in range(len(case.guidance)) if (label := case.label(number)) is not None]
    condition = Condition.composed(labels, case.guidance) if labels else Condition()
    x_T = Rng(case.seed, "x_T").normal(torch.empty(BATCH, *case.shape, dtype=torch.float64))
    knobs: dict[str, Any] = {"step_multiplier": case.step_multiplier, "condition": condition}
    ladder = case.ladder().requires_grad_(False)
    return sample(
        ladder, case.schedule, x_T, num_steps=case.num_steps, rng=Rng(0), formulation=formulation, clamp=False, **knobs
    )


@settings(max_examples=15)
@given(case=cases(), formulation=fast)
def test_two_updates_agree(case: Case, formulation: Fast) -> None:
    """x_K (in the metrics), gradients, u and v, parameters and average."""
    close(two_steps(case, formulation), two_steps(case, Plain()))


@settings(max_examples=15)
@given(case=cases(), formulation=fast)
def test_samples_agree(case: Case, formulation: Fast) -> None:
    expected = drawn(case, Plain())
    if expected.isfinite().all() and expected.abs().max() < 1e6:  # an untrained net may run away, with any rounding
        close(drawn(case, formulation), expected)


def rerun(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What a CUDA graph does, without one: the function works in place on fixed memory."""
    assert device.type == "cpu"
    return function


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_a_captured_chain_is_the_chain(guidance: float) -> None:
    """Also where weights, noise, x_t, length, step and base measure are others than at the capture."""
    chain, schedule, captures = GraphedChain(capture=rerun), Case().schedule, []
    for seed, knobs, base_measure in [
        (0, {}, 0.5),
        (1, {}, 0.5),
        (2, {"step_multiplier": 1.2, "noise_scale": 0.9}, 0.5),
        (3, {"step_multiplier": 0.7, "noise_scale": 0.9}, 0.5),
        (4, {}, 0.0),
        (5, {}, 0.5),
    ]:
        case = Case(num_classes=2, base_measure=base_measure, seed=seed)
        pair = case.ladder()[0].requires_grad_(False)
        x_t = Rng(seed, "x").normal(torch.empty(BATCH, *case.shape, dtype=torch.float64))
        tr = schedule.transition(torch.tensor([seed % 3, 1, 2]), x_t)
        f = Condition.guided(case.label(seed), guidance).energy(Fast().prepare(pair.energy), tr.logsnr_s)
        target = RecoveryTarget(f, tr, x_t, pair.base_measure, f.gradient)
        seen: list[tuple[int, Tensor]] = []
        options: dict[str, Any] = {"num_steps": 2 + seed % 3, "record": lambda k, y, seen=seen: seen.append((k, y))}
        if seed == 5:
            options["constrain"] = lambda y: y.clamp(-0.5, 0.5)
        ours = chain(target, 0.5 * x_t, rng=Rng(seed), **options, **knobs)
        expected = langevin(target, 0.5 * x_t, rng=Rng(seed), **options, **knobs)
        assert ours.equal(expected)
        half = len(seen) // 2
        assert all(one[0] == other[0] and one[1].equal(other[1]) for one, other in zip(seen[:half], seen[half:]))
        captures.append(len(chain._kept))
    assert captures == [1, 1, 2, 3, 4, 4]
    assert chain(target, x_t, num_steps=0, rng=Rng(0)).equal(x_t)


def test_captures_are_not_kept_for_ever() -> None:
    case, chain = Case(), GraphedChain(capture=rerun)
    pair = case.ladder()[0].requires_grad_(False)
    for number in range(MAX_KEPT + 3):
        x_t = torch.zeros(1, *case.shape, dtype=torch.float64)
        tr = case.schedule.transition(0, x_t)
        f = Fast().prepare(pair.energy)(tr.logsnr_s, None)
        target = RecoveryTarget(f, tr, x_t, 0.0, f.gradient)
        chain(target, x_t, num_steps=1, rng=Rng(0), step_multiplier=1 + number / 10)
    assert len(chain._kept) == MAX_KEPT


def test_lower_precision_stays_near_and_states_stay_in_float32() -> None:
    """bf16 has 8 bits: a chain's gradient is off by per cents, never by its size."""
    torch.manual_seed(0)
    net = EnergyNet(3, 16, (1, 2), 2)
    y, logsnr = torch.randn(8, 3, 16, 16), torch.zeros(8)
    exact = Plain().prepare(net)(logsnr, None).gradient(y)
    for precision, bar in (("bf16", 0.25), ("fp16", 0.1), ("tf32", 1e-3)):
        rough = Fast(chain_precision=precision).prepare(net)(logsnr, None).gradient(y)
        assert rough.dtype == torch.float32
        assert 0 < (rough - exact).norm() / exact.norm() < bar, precision
    found: dict[str, list[Tensor]] = {}
    for precision in ("fp32", "bf16", "fp16"):
        f = Fast(loss_precision=precision).prepare(net)(logsnr, None)
        net.zero_grad()
        assert f(y).dtype == torch.float32
        f.backward(f(y).mean())
        found[precision] = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    for precision in ("bf16", "fp16"):
        for rough, gradient in zip(found[precision], found["fp32"], strict=True):
            assert rough.dtype == torch.float32 and not rough.equal(gradient)
            assert (rough - gradient).norm() < 0.3 * gradient.norm() + 1e-6


def test_what_overflows_in_half_precision_is_not_finite() -> None:
    """A comparison with NaN is false: the slope of the last activation must not hide it."""
    net, y = EnergyNet(3, 8, (1, 2), 1), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        net.stages[1][0].gain.mul_(1e6)
    f = Fast(chain_precision="fp16").prepare(net)(torch.zeros(2), None)
    assert not f.gradient(y).isfinite().any()


def test_the_initializers_precision_holds_in_training_and_sampling() -> None:
    case, rounded = Case(), Fast(initializer_precision="bf16")
    torch.manual_seed(0)
    ladder, x_T = PairLadder([range(3)], case.pair), torch.randn(BATCH, *case.shape)
    drawn = [sample(ladder, case.schedule, x_T, num_steps=0, rng=Rng(0), formulation=f) for f in (Fast(), rounded)]
    assert 0 < (drawn[0] - drawn[1]).abs().max() < 0.2


def test_the_mode_of_kernels_is_put_back() -> None:
    backends = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [backend.fp32_precision for backend in backends]
    with pytest.raises(KeyError), fp32_kernels("tf32"):
        assert [backend.fp32_precision for backend in backends] == ["tf32", "tf32"]
        with fp32_kernels("fp32"):
            assert "tf32" not in [backend.fp32_precision for backend in backends]
            assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        raise KeyError
    assert [backend.fp32_precision == "tf32" for backend in backends] == [mode == "tf32" for mode in before]
    assert torch.backends.cudnn.allow_tf32 == (before[0] == "tf32")  # both records agree, or reading one raises


def test_other_nets_are_refused() -> None:
    with pytest.raises(TypeError, match="the fast formulation is that of EnergyNet, got Linear"):
        Fast().prepare(nn.Linear(2, 1))


def test_map_tensors_keeps_structures() -> None:
    tree = (torch.ones(2), Condition((torch.zeros(1, dtype=torch.long), None), (0.5, 0.5)), "name")
    doubled = map_tensors(tree, lambda tensor: 2 * tensor)
    assert doubled[0].tolist() == [2, 2] and doubled[1].labels[1] is None and doubled[2] == "name"
    assert len(tensors_of(tree)) == 2


def counted_pair(width: int, num_blocks: int) -> Pair:
    torch.manual_seed(0)
    g = Initializer(3, 16, 32, (1, 1, 1), 3, groups=8)
    return Pair(EnergyNet(3, width, (1, 2, 2, 2), num_blocks), g)


def counted_step(formulation: Formulation, pair: Pair, num_steps: int) -> Count:
    """Counts of one training step, not the first, which makes the optimizers' state."""
    fused = True if isinstance(formulation, Fast) else None  # the plain step has torch's default on a CPU
    adam = [torch.optim.Adam(net.parameters(), fused=fused) for net in (pair.energy, pair.initializer)]
    x_0, level = torch.rand(2, 3, 16, 16) * 2 - 1, torch.tensor([2, 5])
    batch = (pair, Optimizers(*adam), Schedule(schedules.cosine(), 4e-4), x_0, level, None)
    cooperative_step(*batch, num_steps=0, rng=Rng(0), formulation=formulation)
    with Count() as count:
        cooperative_step(*batch, num_steps=num_steps, rng=Rng(0), formulation=formulation)
    return count


@pytest.fixture(scope="module")
def counts() -> dict[str, dict[str, Count]]:
    """Of one input gradient, one training step and one sampling batch, by formulation."""
    found: dict[str, dict[str, Count]] = {}
    for name, formulation in {"plain": Plain(), "fast": Fast()}.items():
        pair, y = counted_pair(16, 2), torch.randn(2, 3, 16, 16)
        step = counted_step(formulation, pair, num_steps=15)
        gradient = formulation.prepare(pair.energy)(torch.zeros(2), None).gradient
        with Count() as one:
            gradient(y)
        ladder, schedule = PairLadder([range(6)], lambda pair=pair: pair), Schedule(schedules.cosine(), 4e-4)
        with Count() as sampling:
            sample(ladder, schedule, y, num_steps=15, rng=Rng(0), formulation=formulation)
        found[name] = {"gradient": one, "step": step, "sampling": sampling}
    return found


def test_few_kernels(counts: dict[str, dict[str, Count]]) -> None:
    for of, bar in (("gradient", 0.45), ("step", 0.35), ("sampling", 0.55)):
        ratio = counts["fast"][of].kernels / counts["plain"][of].kernels
        assert ratio <= bar, (of, ratio)


def test_one_power_iteration_and_one_normalisation_of_each_layer(counts: dict[str, dict[str, Count]]) -> None:
    """A normalisation is one dot and one mv; an iteration two mv; neither appears in the backward pass."""
    layers = 1 + 2 + 3 * 8 + 1  # stem, two of the level, three for each block, one shortcut
    step, sampling = (counts["fast"][of].operations for of in ("step", "sampling"))
    assert step["dot"] == layers and (step["mv"] - layers) / 2 == layers
    assert sampling["dot"] == sampling["mv"] == layers
    plain = counts["plain"]["step"].operations
    assert plain["dot"] == 17 * layers and plain["mv"] == (17 + 2) * layers


@pytest.mark.parametrize("fold_pooling", [True, False])
def test_no_more_arithmetic_than_the_method_needs(fold_pooling: bool) -> None:
    """2 K f for the chain, 6 f for the losses, 3 g: a weight gradient inside the chain would be 1.3 times that."""
    pair, y = counted_pair(64, 1), torch.randn(2, 3, 16, 16)
    count = counted_step(Fast(fold_pooling=fold_pooling), pair, num_steps=15)
    with torch.no_grad(), Count() as f:
        pair.energy(y, torch.zeros(2))
    with torch.no_grad(), Count() as g:
        pair.initializer(y, torch.zeros(2))
    expected = (2 * 15 + 6) * f.flops + 3 * g.flops
    assert (0.6 if fold_pooling else 0.995) * expected < count.flops <= 1.005 * expected
