"""From a configuration to what it describes, and back from the model that carries it."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from cdrl.build import build_formulation, build_ladder, build_schedule, check_buildable
from cdrl.config import ComputeConfig, load, presets
from cdrl.errors import ConfigError
from cdrl.method.fast import Fast
from cdrl.method.fast.graph import GraphedChain
from cdrl.method.formulation import Plain
from cdrl.method.sampling import target_at
from cdrl.model import Model
from tests.training_parts import tiny_config

LOGSNR = [9.2103404, 1 / 3, -1e-9, -12.000000000000001]  # digits that a shorter notation would lose


@pytest.mark.parametrize("name", ["cifar10", "cifar10-smoke", "digits", "drl-digits", "toy"])
def test_the_networks_of_the_presets_can_be_built(name: str) -> None:
    check_buildable(load(name))  # the others differ from these in a width or a number, and take seconds each


@pytest.mark.parametrize("name", presets())
def test_the_schedule_of_every_preset_can_be_built(name: str) -> None:
    config = load(name)
    assert build_schedule(config.schedule).num_levels == config.schedule.num_levels


@pytest.mark.parametrize(
    "schedule",
    [
        "schedule={num_levels: 3, logsnr_max: 7.3, logsnr_min: -4.7, warp: 1.3, step_scale: [0.1, 0.2, 0.3]}",
        "schedule={family: drl_t6, num_levels: 4, step_growth: constant}",
        "schedule={family: drl_t1k, num_levels: 1000, step_scale: 0.01, step_growth: constant}",
        f"schedule={{family: table, num_levels: 3, logsnr: {LOGSNR}}}",
    ],
    ids=["cosine", "drl_t6", "drl_t1k", "table"],
)
def test_a_model_carries_its_schedule_bit_by_bit(schedule: str, tmp_path: Path) -> None:
    config = tiny_config("data.num_classes=0", schedule)
    torch.manual_seed(0)
    Model(config, build_ladder(config).requires_grad_(False), (), "ab" * 32, 1).write(tmp_path)
    loaded, built = Model.load(tmp_path).schedule, build_schedule(config.schedule)
    assert loaded.logsnr.equal(built.logsnr)
    for name, column in vars(built.constants).items():
        assert getattr(loaded.constants, name).equal(column), name


def test_a_table_is_taken_as_it_is_written() -> None:
    schedule = build_schedule(tiny_config(f"schedule={{family: table, num_levels: 3, logsnr: {LOGSNR}}}").schedule)
    assert schedule.logsnr.tolist() == LOGSNR


def test_drl_is_the_same_energy_net_under_another_configuration() -> None:
    """What the presets must agree in, for a table of both to compare like with like."""
    for name in ("digits", "cifar10"):
        cooperative, drl = load(name), load(f"drl-{name}")
        assert drl.energy == cooperative.energy and drl.data == cooperative.data
        assert drl.initializer is None and not drl.training.shared_noise
        assert drl.schedule.family == "drl_t6" and drl.sampling.denoise_scale == 0
        assert drl.training.num_steps == drl.sampling.num_steps > cooperative.training.num_steps
        one_shot = load(f"drl-t1k-{name}")
        assert one_shot.initializer is None and one_shot.training.num_steps == one_shot.sampling.num_steps == 0
        tr = build_schedule(one_shot.schedule).constants
        torch.testing.assert_close(tr.step_size, tr.sigma_ts**2)  # the draw moves by grad f itself


def test_auto_is_exact_on_a_cpu_and_every_part_can_be_switched() -> None:
    cpu = torch.device("cpu")
    usual = build_formulation(ComputeConfig(), cpu)
    assert isinstance(usual, Fast) and not usual.compile and not usual.graph
    assert {usual.chain_precision, usual.loss_precision, usual.initializer_precision} == {"fp32"}
    chosen = build_formulation(
        ComputeConfig(compile="always", chain_precision="bf16", channels_last=False, fold_pooling=False), cpu
    )
    assert isinstance(chosen, Fast) and chosen.compile and chosen.chain_precision == "bf16"
    assert not chosen.channels_last and not chosen.fold_pooling
    assert isinstance(build_formulation(ComputeConfig(formulation="plain"), cpu), Plain)
    with pytest.raises(ConfigError, match="compute.cuda_graph: always needs a CUDA device, got cpu; use auto or never"):
        build_formulation(ComputeConfig(cuda_graph="always"), cpu)


def test_the_plain_formulation_has_no_switches_of_the_fast_one() -> None:
    with pytest.raises(ValidationError, match="formulation plain has no compile, fold_pooling; leave out what belongs"):
        ComputeConfig(formulation="plain", compile="always", fold_pooling=False)
    assert ComputeConfig(formulation="plain", images_on_device="always", compile="auto").formulation == "plain"


def test_densities_are_computed_exactly_whatever_samples_are() -> None:
    """log p = f/step_size: at level 0 a rounding of f in fp16 would be of several nats."""
    config = tiny_config()
    rough = ComputeConfig(loss_precision="bf16", chain_precision="bf16")
    model = Model(config, build_ladder(config).requires_grad_(False), tuple("abcdefghij"), "", 0, rough)
    exact = model.exact
    assert isinstance(exact, Fast) and exact.loss_precision == exact.chain_precision == "fp32"
    y, common = torch.randn(2, 1, 8, 8), (model.ladder, model.schedule, 0)
    expected = target_at(*common, y).log_prob(y)
    torch.testing.assert_close(target_at(*common, y, formulation=exact).log_prob(y), expected, rtol=1e-5, atol=1e-2)
    assert (target_at(*common, y, formulation=model.formulation).log_prob(y) - expected).abs().max() > 0.1


@pytest.mark.parametrize(("capability", "chain"), [((9, 0), "fp16"), ((8, 0), "tf32")])
def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], chain: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    usual = build_formulation(ComputeConfig(), torch.device("cuda"))
    assert isinstance(usual, Fast) and usual.compile and usual.graph and usual.device_type == "cuda"
    assert (usual.chain_precision, usual.loss_precision, usual.initializer_precision) == (chain, "tf32", "tf32")
    assert isinstance(usual.chain, GraphedChain)
