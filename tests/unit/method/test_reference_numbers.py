"""The spec's reference numbers: what the released functions gave for formula weights and formula noise."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cdrl.method import schedule as schedules
from cdrl.method.cooperative import Optimizers, cooperative_step, noised_pair
from cdrl.method.formulation import Plain
from cdrl.method.guidance import Condition
from cdrl.method.langevin import RecoveryTarget, langevin
from cdrl.method.nets import EnergyNet, Initializer, PointInitializer, power_iterate
from cdrl.method.nets.embedding import sinusoid
from cdrl.method.pairs import Pair, PairLadder
from cdrl.method.sampling import sample
from cdrl.method.schedule import Schedule
from cdrl.method.trace import Trace

REFERENCE = json.loads((Path(__file__).parents[2] / "fixtures" / "reference.json").read_text())
close = partial(torch.testing.assert_close, rtol=2e-4, atol=2e-6, check_dtype=False)


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def formula_noise(draw: int, shape: tuple[int, ...]) -> Tensor:
    j = np.arange(np.prod(shape), dtype=np.float64)
    values = np.sqrt(2) * np.sin(0.9 * draw + 1.7 * j + 0.13 * draw * j + 0.5)
    return torch.from_numpy(values.reshape(shape)).float()


class FormulaRng:
    """The reference's framework-neutral noise in place of a generator."""

    def __init__(self) -> None:
        self.draws = 0

    def normal(self, like: Tensor) -> Tensor:
        self.draws += 1
        return formula_noise(self.draws - 1, tuple(like.shape))


class Silent(FormulaRng):
    def normal(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)


class Quadratic(nn.Module):
    """f(y) = -coefficient * theta * (1 + label) |y|^2."""

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.theta, self.coefficient = nn.Parameter(torch.ones(())), coefficient

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        factor = 1 if label is None else 1 + label
        return -self.coefficient * factor * self.theta * y.flatten(1).square().sum(dim=1)


class Shrink(nn.Module):
    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k))

    def forward(self, x_t: Tensor, logsnr: Tensor, label: Tensor | None = None, rng: object = None) -> Tensor:
        return self.k * x_t


@pytest.fixture
def cdrl() -> Schedule:
    return Schedule(schedules.cosine(), step_scale=4e-4)


@pytest.fixture
def pair_block() -> SimpleNamespace:
    block = REFERENCE["pair_variance_reduced"]
    return SimpleNamespace(**{key: tensor(block[key]) for key in ("x0", "x_t", "x_tm1")}, level=torch.arange(6))


def test_cdrl_schedule_to_1e_9(cdrl: Schedule) -> None:
    tr = cdrl.transition(torch.arange(6), torch.empty(6, dtype=torch.float64))
    columns = {
        "logsnr_t": tr.logsnr_t,
        "logsnr_tm1": tr.logsnr_s,
        "abar_t": tr.alpha_t**2,
        "abar_tm1": tr.alpha_s**2,
        "sigmabar_tm1": tr.sigma_s,
        "alpha_step_sq": tr.alpha_ts**2,
        "beta_t": tr.sigma_ts**2,
        "sigma_t": tr.sigma_ts,
        "beta_tilde_t": tr.sigma_post**2,
        "as_t_mul": tr.scale**2,
        "init_noise_std": tr.sigma_post * tr.scale,
        "c2_t": tr.sigma_s / tr.sigma_s[0],
        "s2_t": tr.step_size,
        "s_t": tr.step_size.sqrt(),
        "quad_coeff": (1 - tr.is_top) * tr.step_size / (2 * tr.sigma_ts**2),
        "loss_weight": tr.loss_weight,
    }
    for row, expected in enumerate(REFERENCE["schedule_cdrl_T6"]["rows"]):
        for name, column in columns.items():
            assert column[row].item() == pytest.approx(expected[name], rel=1e-9, abs=1e-12), (row, name)


def test_drl_schedule_to_1e_9() -> None:
    block = REFERENCE["schedule_drl_T6"]
    schedule = Schedule(schedules.drl_t6(), step_scale=2e-4)
    tr = schedule.transition(torch.arange(6), torch.empty(6, dtype=torch.float64))
    # the reference prints nine significant digits
    exact = partial(torch.testing.assert_close, rtol=5e-9, atol=1e-12)
    exact(tr.alpha_ts, torch.tensor(block["a_s"][1:], dtype=torch.float64))
    exact(tr.sigma_ts, torch.tensor(block["sigma"][1:], dtype=torch.float64))
    exact(tr.alpha_s, torch.tensor(block["a_s_cum"][:-1], dtype=torch.float64))
    exact(tr.sigma_t, torch.tensor(block["sigma_cum"][1:], dtype=torch.float64))
    exact(tr.step_size, torch.tensor(block["s2_t"], dtype=torch.float64))
    exact(tr.loss_weight, torch.tensor(block["loss_weight_t"], dtype=torch.float64))


def test_variance_reduced_pair(cdrl: Schedule, pair_block: SimpleNamespace) -> None:
    tr = cdrl.transition(pair_block.level, pair_block.x0)
    x_s, x_t = noised_pair(tr, pair_block.x0, FormulaRng(), shared_noise=True)
    close(x_s, pair_block.x_tm1)
    close(x_t, pair_block.x_t)


def test_langevin_on_a_quadratic(cdrl: Schedule, pair_block: SimpleNamespace) -> None:
    block = REFERENCE["langevin_quadratic"]
    tr = cdrl.transition(pair_block.level, pair_block.x0)
    target = RecoveryTarget(partial(Quadratic(0.5), logsnr=tr.logsnr_s), tr, pair_block.x_t)
    for num_steps, expected in block["x_tm1_after_K"].items():
        y = langevin(target, tensor(block["y0"]), num_steps=int(num_steps), rng=FormulaRng())
        close(y / tr.scale, tensor(expected))
    for num_steps in (1, 15):
        y = langevin(target, tensor(block["y0"]), num_steps=num_steps, rng=Silent())
        close(y / tr.scale, tensor(block[f"no_noise_K{num_steps}"]))


def test_one_training_step_on_quadratics(cdrl: Schedule, pair_block: SimpleNamespace) -> None:
    block = REFERENCE["train_step_quadratic"]
    pair = Pair(Quadratic(0.5), Shrink(0.9))
    optimizers = Optimizers(
        torch.optim.SGD(pair.energy.parameters(), lr=0.0), torch.optim.SGD(pair.initializer.parameters(), lr=0.0)
    )

    class AfterThePair(FormulaRng):
        """The block's pair has its own draw 0; initializer and chain restart at 0."""

        def normal(self, like: Tensor) -> Tensor:
            noise = super().normal(like)
            if self.draws == 1 and not getattr(self, "paired", False):
                self.paired, self.draws = True, 0
            return noise

    rng = AfterThePair()
    metrics = cooperative_step(
        pair, optimizers, cdrl, pair_block.x0, pair_block.level, None, num_steps=15, rng=rng, clip_norm=1e9
    )
    assert rng.draws == block["randn_calls"]
    close(metrics.loss_energy, tensor(block["pos_loss"] + block["neg_loss"]))
    close(metrics.loss_initializer, tensor(block["initializer_loss"]))
    close(metrics.f_pos, tensor(block["pos_energy"]).mean())
    close(metrics.f_neg, tensor(block["neg_energy"]).mean())
    close(pair.energy.theta.grad, tensor(block["dtheta_total"]))
    close(pair.initializer.k.grad, tensor(block["dk"]))


@pytest.mark.parametrize("denoise_scale, key", [(2.0, "tweedie_official_2e-4"), (1.0, "tweedie_consistent_4e-4")])
def test_sampler_on_quadratics(cdrl: Schedule, denoise_scale: float, key: str) -> None:
    block = REFERENCE["sampler_quadratic"]
    ladder = PairLadder([range(6)], lambda: Pair(Quadratic(0.5), Shrink(0.9)))
    rng, trace = FormulaRng(), Trace()
    x_T = rng.normal(torch.empty(2, 1, 2, 2))
    close(x_T, tensor(block["x_T"]))
    x = sample(ladder, cdrl, x_T, num_steps=15, rng=rng, denoise_scale=denoise_scale, record=trace)
    for x_s, expected in zip(trace.levels()[1:7], block["x_after_level"], strict=True):
        close(x_s, tensor(expected))
    close(x, tensor(block[key]))
    assert rng.draws == block["randn_calls"]


def test_guided_langevin(cdrl: Schedule, pair_block: SimpleNamespace) -> None:
    start, tr = tensor(REFERENCE["langevin_quadratic"]["y0"]), cdrl.transition(pair_block.level, pair_block.x0)
    label = torch.tensor([1, 2, 3, 1, 2, 3])
    for guidance, expected in REFERENCE["langevin_guided"]["x_tm1_after_3"].items():
        f = Condition.guided(label, float(guidance)).energy(Plain().prepare(Quadratic(0.02)), tr.logsnr_s)
        y = langevin(RecoveryTarget(f, tr, pair_block.x_t, gradient=f.gradient), start, num_steps=3, rng=FormulaRng())
        close(y / tr.scale, tensor(expected))


def test_drl_pair_chain_and_loss(pair_block: SimpleNamespace) -> None:
    block = REFERENCE["drl_T6_quadratic"]
    schedule = Schedule(schedules.drl_t6(), step_scale=2e-4)
    tr = schedule.transition(pair_block.level, pair_block.x0)
    x_s, x_t = noised_pair(tr, pair_block.x0, FormulaRng(), shared_noise=False)
    close(x_s, tensor(block["x_t"]))
    close(x_t, tensor(block["x_tp1"]))
    f = partial(Quadratic(0.02), logsnr=tr.logsnr_s)
    target = RecoveryTarget(f, tr, x_t)
    for noise_scale, key in ((1.0, "x_t_neg"), (0.99, "x_t_neg_noise_scale_0.99")):
        y_neg = langevin(target, x_t, num_steps=3, rng=FormulaRng(), noise_scale=noise_scale)
        close(y_neg / tr.scale, tensor(block[key]))
    y_neg = langevin(target, x_t, num_steps=3, rng=FormulaRng())
    close((tr.loss_weight.flatten() * (f(y_neg) - f(tr.scale * x_s))).mean(), tensor(block["loss"]))


def test_toy_constants_and_chain() -> None:
    block = REFERENCE["toy"]
    schedule = Schedule(schedules.cosine(), step_scale=2e-3, step_growth="constant")
    tr = schedule.transition(torch.arange(6), torch.empty(6, dtype=torch.float64))
    assert tr.step_size.tolist() == pytest.approx([row["s2"] for row in block["per_level"]], rel=1e-9)
    coefficient = (1 - tr.is_top) * tr.step_size / (2 * tr.sigma_ts**2)
    assert coefficient.tolist() == pytest.approx([row["quad_coeff"] for row in block["per_level"]], rel=1e-9)
    x_t = tensor(block["x_t"])
    tr = schedule.transition(torch.tensor([0, 2, 5]), x_t)
    target = RecoveryTarget(partial(Quadratic(0.02), logsnr=tr.logsnr_s), tr, x_t)
    y = langevin(target, tensor(block["y0"]), num_steps=3, rng=FormulaRng())
    close(y / tr.scale, tensor(block["x_tm1_after_3"]))


def test_time_embedding() -> None:
    # the reference's own float32 phases are off by up to 1e-4
    embedding = sinusoid(schedules.cosine(), 8)
    torch.testing.assert_close(embedding.float(), tensor(REFERENCE["time_embedding_dim8"]["value"]), rtol=0, atol=2e-4)


def formula_weights(net: nn.Module, listed: list, ones: tuple[str, ...]) -> None:
    """Fill the parameters, taken in order, with the reference's formula; those named in `ones` become 1 + 0.2 w."""
    parameters = list(net.parameters())
    assert len(parameters) == len(listed)
    with torch.no_grad():
        for k, (parameter, (name, shape)) in enumerate(zip(parameters, listed, strict=True)):
            assert parameter.numel() == np.prod(shape), name
            w = 0.3 * np.sin(0.37 * np.arange(parameter.numel()) + 0.61 * k + 0.2)
            if len(shape) > 1:
                w = w * 2 * np.sqrt(3 / np.prod(shape[1:]))
            if name.endswith(ones):
                w = 1 + 0.2 * w
            parameter.copy_(torch.from_numpy(w).view_as(parameter))


@pytest.mark.parametrize("key, normalize", [("ebm_small_no_sn", False), ("ebm_small_sn_converged", True)])
def test_energy_net(key: str, normalize: bool) -> None:
    block = REFERENCE[key]
    net = EnergyNet(3, 8, (1, 2), 2, normalize=normalize)
    formula_weights(net, block["parameters"], ones=(".g",))
    assert power_iterate(net, 2000) == (16 if normalize else 0)
    x = formula_noise(3000, (3, 3, 8, 8)).requires_grad_(True)
    f = net(x, torch.tensor([9.8, 0.14107107, -2.17238772]))
    close(f, tensor(block["f"]))
    (gradient,) = torch.autograd.grad(f.sum(), x)
    close(gradient.flatten(1).norm(dim=1), tensor(block["grad_norm_per_sample"]))
    close(gradient[:, 0, 0], tensor(block["grad_first_row"]))


def test_initializer() -> None:
    block = REFERENCE["unet_small_eval"]
    net = Initializer(3, 8, 32, (1, 1), 1, attention_resolutions=(4,))
    formula_weights(net, block["parameters"], ones=("norm1.weight", "norm2.weight", "norm.weight"))
    x = formula_noise(3000, (3, 3, 8, 8))
    out = net(x, torch.tensor([9.8, 0.14107107, -2.17238772]))
    close((out - x).flatten(1).norm(dim=1), tensor(block["out_minus_x_norm"]))
    close(out[:, :, 0], tensor(block["out_first_row"]))


def test_parameter_counts() -> None:
    counts = REFERENCE["parameter_counts"]
    nets = {
        "EBM cifar (temb_dim 128, n_blocks 8, mult 1222)": lambda: EnergyNet(3, 128, (1, 2, 2, 2), 8),
        "EBM large (temb_dim 256)": lambda: EnergyNet(3, 256, (1, 2, 2, 2), 8),
        "EBM cond ImageNet32 (n_class 1000)": lambda: EnergyNet(3, 128, (1, 2, 2, 2), 8, num_classes=1000),
        "U-Net cifar (dim 64, 3 res blocks, mults 111)": lambda: Initializer(3, 32, 64, (1, 1, 1), 3),
        "U-Net dim 128": lambda: Initializer(3, 32, 128, (1, 1, 1), 3),
        "U-Net cond ImageNet32 (dim 64, 2 res blocks)": lambda: Initializer(3, 32, 64, (1, 1, 1), 2, num_classes=1000),
        "toy EBM MLP": lambda: EnergyNet(2, 128, (1, 2, 2, 2), 1, dense=True),
        "toy initializer MLP": lambda: PointInitializer(2),
    }
    assert nets.keys() == counts.keys()
    for name, build in nets.items():
        assert sum(parameter.numel() for parameter in build().parameters()) == counts[name], name
