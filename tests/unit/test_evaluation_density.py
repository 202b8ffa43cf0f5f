"""Densities of a toy beside the exact law: zero where the model is the law, closed forms where it is another."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from cdrl import config as configuration
from cdrl.cli import app, groups
from cdrl.config import ComputeConfig, Config
from cdrl.data import Dataset
from cdrl.data.points import LAWS, Gaussians, Law
from cdrl.data.prepare import Options, prepare
from cdrl.errors import ConfigError
from cdrl.evaluation.density import compare, mmd2
from cdrl.evaluation.density_plot import density_plot
from cdrl.method.pairs import Pair, PairLadder
from cdrl.method.schedule import Schedule
from cdrl.model import Model, build_ladder

PLAIN = ComputeConfig(formulation="plain")  # takes any net

NUM_LEVELS = 3


def toy(*overrides: str) -> Config:
    tiny = ["schedule.num_levels=3", "energy={width: 4, multipliers: [1]}", "initializer={width: 4, groups: 2}"]
    return configuration.load("toy", [*tiny, *overrides])


class ExactEnergy(nn.Module):
    """f = step_size log p(x_s): the law's own energy at every level."""

    def __init__(self, law: Law, schedule: Schedule) -> None:
        super().__init__()
        self.law, self.schedule, self.scale = law, schedule, nn.Parameter(torch.ones(()))

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        level = int((self.schedule.logsnr - logsnr[0]).abs().argmin())
        tr = self.schedule.transition(level, y[:1])
        x_s = y / tr.scale
        return tr.step_size.flatten() * self.law.log_prob(x_s, tr.alpha_s.item(), tr.sigma_s.item())


def exact_model(law: Law, config: Config) -> Model:
    model = Model(config, build_ladder(config), (), "", 0, PLAIN)
    model.ladder = PairLadder(
        [range(NUM_LEVELS)], partial(Pair, ExactEnergy(law, model.schedule), None)
    ).requires_grad_(False)
    return model


def gaussian(std: float) -> Gaussians:
    return Gaussians(((1.0, (0.0, 0.0), (std, std), 0.0),))


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_a_model_that_is_the_law_is_at_distance_zero_and_its_chains_draw_from_it(law: Law) -> None:
    """Long chains from x_t, whose own error at this step size is below what so few samples resolve."""
    steps = ["sampling.num_steps=60", "schedule.step_scale=0.05", "schedule.logsnr_max=2"]
    model = exact_model(law, toy("initializer=null", *steps))
    for level in compare(model, law, 8.0, number=2_000):
        tr = model.schedule.transition(level.level, torch.zeros(1, dtype=torch.float64))
        assert level.kl_nats == pytest.approx(0, abs=1e-5)
        assert level.recovery_kl_nats == pytest.approx(0, abs=1e-5)
        assert level.score_error == pytest.approx(0, abs=1e-4)
        assert level.log_z_nats == pytest.approx(2 * math.log(tr.scale), abs=1e-3)
        assert level.model.sum().item() == pytest.approx(1)
        assert level.mmd2 is not None and level.mmd2["exact draws"] < 1e-3
        assert level.mmd2["K = 60"] < 2e-3


def test_the_distances_of_gaussians_are_their_closed_forms() -> None:
    """KL between N(0, v I) and N(0, w I) in the plane, and that of their noisy versions."""

    def kl(v: float, w: float) -> float:
        return v / w - 1 - math.log(v / w)

    model = exact_model(gaussian(2.0), toy("initializer=null", "sampling.num_steps=1"))
    for level in compare(model, gaussian(1.5), 12.0, number=2_000):
        tr = model.schedule.transition(level.level, torch.zeros(1, dtype=torch.float64))
        alpha, sigma, noise = tr.alpha_s.item(), tr.sigma_s.item(), (tr.sigma_ts / tr.scale).item()
        v, w = ((alpha * std) ** 2 + sigma**2 for std in (1.5, 2.0))
        marginal = kl(v, w)
        assert level.kl_nats == pytest.approx(marginal, rel=1e-4)
        conditional = marginal if tr.is_top else marginal - kl(v + noise**2, w + noise**2)
        assert level.recovery_kl_nats == pytest.approx(conditional, rel=1e-3)
        assert level.score_error == pytest.approx((1 - v / w) ** 2, rel=1e-3)


def test_mmd_is_its_closed_form() -> None:
    """For N(0, I) and N(d, I) and a kernel of width w: 2 w^2/(w^2 + 2) (1 - exp(-|d|^2 / (2 w^2 + 4))) in the plane."""
    draws = torch.randn(3, 2_000, 2, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([1.2, -1.6])
    exact = sum(2 * w**2 / (w**2 + 2) * (1 - math.exp(-4 / (2 * w**2 + 4))) for w in (1, 1 / 4, 1 / 16)) / 3
    assert mmd2(draws[0] + shift, draws[1]) == pytest.approx(exact, rel=0.1)
    assert abs(mmd2(draws[0], draws[1])) < exact / 100
    assert mmd2(draws[0][:500], draws[2]) == pytest.approx(0, abs=exact / 50)


def test_without_a_law_the_models_density_stands_alone() -> None:
    torch.manual_seed(0)
    config = toy("sampling.num_steps=1")
    levels = compare(Model(config, build_ladder(config), (), "", 0, PLAIN), None, 8.0, number=100)
    assert [level.level for level in levels] == [0, 1, 2]
    assert all(level.truth is level.kl_nats is level.recovery_kl_nats is level.mmd2 is None for level in levels)
    assert all(level.model.sum().item() == pytest.approx(1) for level in levels)
    assert set(levels[0].samples) == {"K = 1", "K = 0"} and levels[0].samples["K = 1"].shape == (100, 2)
    assert density_plot(levels).width > 300


@pytest.mark.parametrize("change", ["data.shape=[3]", "data.num_classes=2"])
def test_what_has_no_density_on_a_grid_is_refused(change: str) -> None:
    config = toy(change)
    with pytest.raises(ConfigError, match="needs unconditional points in the plane.*the model 'toy' has"):
        compare(Model(config, build_ladder(config), (), "", 0, PLAIN), None, 8.0, number=100)


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("data"))
    prepare("gaussians", place, Options(limit=300))
    return place


def command(*arguments: str) -> tuple[int, str]:
    if not app.registered_groups:
        groups.attach(app)
    result = CliRunner().invoke(app, ["density", *arguments])
    return result.exit_code, f"{result.output} {result.exception or ''}"


def untrained(config: Config, points: str, folder: Path) -> Path:
    torch.manual_seed(0)
    folder.mkdir()
    Model(config, build_ladder(config), (), Dataset.open(points).manifest.digest, 0).write(folder)
    return folder


def test_the_command_prints_and_keeps_the_comparison(points: str, tmp_path: Path) -> None:
    model = untrained(toy("sampling.num_steps=1", f"data.uri={points}"), points, tmp_path / "model")
    code, output = command(str(model), "-n", "2000", "--picture", str(tmp_path / "d.png"))
    assert code == 0, output
    for part in ("KL, nats", "recovery KL", "MMD²", "K = 1", "K = 0", "exact draws"):
        assert part in output
    report = json.loads((tmp_path / "d.json").read_text())
    assert (report["law"], report["step"], len(report["levels"])) == ("gaussians", 0, 3)
    kl = [level["kl_nats"] for level in report["levels"]]
    assert all(np.isfinite(kl)) and max(kl) > 1
    with Image.open(tmp_path / "d.png") as picture:
        assert min(picture.size) > 300


def test_the_command_refuses_other_data_and_images(points: str, tmp_path: Path) -> None:
    config = toy("data.uri=nowhere")
    model = Model(config, build_ladder(config), (), "0" * 64, 0)
    (tmp_path / "model").mkdir()
    model.write(tmp_path / "model")
    assert "trained on 000000000000..." in command(str(tmp_path / "model"), "--data", points)[1]
    assert "nowhere" in command(str(tmp_path / "model"))[1]
    config = configuration.load("digits")
    (tmp_path / "digits").mkdir()
    Model(config, build_ladder(config), tuple("0123456789"), "", 0).write(tmp_path / "digits")
    assert "needs unconditional points in the plane" in command(str(tmp_path / "digits"))[1]
    assert not list(tmp_path.glob("*.png"))
