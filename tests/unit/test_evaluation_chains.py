"""Long chains of a model's levels: which run, where they start, what is said of them; and the command."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from cdrl.cli import main
from cdrl.config import override, validate
from cdrl.data.prepare import Options, prepare
from cdrl.errors import ConfigError
from cdrl.evaluation.chain_plot import chain_plot
from cdrl.evaluation.held_out import held_out
from cdrl.evaluation.likelihood import evaluate_likelihood
from cdrl.evaluation.long_chains import ChainCard, run_chains
from cdrl.method.langevin import langevin
from cdrl.method.rng import Rng
from cdrl.method.sampling import target_at
from cdrl.model import Model
from tests.evaluation_parts import TINY, digits, tiny_config, tiny_model

TOP = 2


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 digits, 100 held out, and untrained models of three levels: one for all, and one each."""
    root = tmp_path_factory.mktemp("chains")
    config = override(tiny_config(digits(root / "data"), root), ["schedule.num_levels=3", "energy.base_measure=1"])
    for pairs in ("shared", "per_level"):
        tiny_model(override(config, [f"pairs={pairs}"]), root / pairs)
    return root


@pytest.mark.parametrize("pairs", ["shared", "per_level"])
def test_every_level_runs_and_the_top_has_no_conditional(root: Path, pairs: str) -> None:
    calls = []
    chains = run_chains(
        Model.load(root / pairs), num_steps=12, num_chains=3, progress=lambda *call: calls.append(call)
    )
    places = [(row.kind, row.level) for row in chains.card.rows]
    assert places == [("conditional", 0), ("conditional", 1), ("marginal", 0), ("marginal", 1), ("marginal", TOP)]
    for each in chains.levels:
        assert each.shown == (0, 1, 10, 12) and each.snapshots.shape == (4, 3, 1, 8, 8)
        assert each.acceptance.shape == (12, 3) and each.log_prob.shape == (13, 3)
        assert each.row.acceptance == pytest.approx(each.acceptance.mean().item())
        assert each.row.change_nats == pytest.approx(each.log_prob[-1].mean().item())
        assert 0 < each.row.acceptance_last <= 1
    assert ("marginal, level 2" if pairs == "per_level" else "marginal, level 0, 1, 2", 12, 12) in calls
    assert chains.card.num_short == 15 and chains.card.split == "holdout"


def test_the_chain_of_a_level_is_the_samplers(root: Path) -> None:
    """One level alone: the same x_t, proposal and Langevin steps, done by hand with the same randomness."""
    model = Model.load(root / "per_level")
    chains = run_chains(model, levels=[1], kinds=["conditional"], num_steps=5, num_chains=4)
    data = held_out(model, None, 4)
    rng, tr = Rng(0, "chain", "conditional", 1), model.schedule.transition(1, data.x)
    x_t = tr.alpha_t * data.x + tr.sigma_t * rng.normal(data.x)
    initializer = model.ladder[1].initializer
    assert initializer is not None
    y = initializer(x_t, tr.logsnr_t, data.label) + tr.scale * tr.sigma_post * rng.normal(x_t)
    target = target_at(model.ladder, model.schedule, 1, x_t, x_t=x_t, label=data.label)
    end = langevin(target, y, num_steps=5, rng=rng) / tr.scale
    torch.testing.assert_close(chains.levels[0].x_t, x_t)
    torch.testing.assert_close(chains.levels[0].snapshots[-1], end, rtol=1e-4, atol=1e-5)
    assert chains.levels[0].row.step_size == pytest.approx(tr.step_size[0].item())


def test_a_corrected_chain_stays_where_a_step_is_refused(root: Path) -> None:
    """f of the first level made steep: acceptance falls, and refused chains do not move."""
    model = Model.load(root / "per_level")
    for parameter in model.ladder[0].energy.head.parameters():
        parameter.mul_(1e5)
    chains = run_chains(model, levels=[0], kinds=["marginal"], num_steps=1, num_chains=60, adjusted=True)
    each = chains.levels[0]
    moved = (each.snapshots[1] != each.snapshots[0]).flatten(1).any(dim=1)
    refused = each.acceptance[0] < 1e-9
    assert chains.card.adjusted and refused.any() and not moved[refused].any()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"levels": [0, 3]}, r"level 3: the model has the levels 0 ... 2"),
        ({"levels": [TOP], "kinds": ["conditional"]}, "level 2: the top level has no conditional"),
        ({"num_steps": 0}, "at least 1 step"),
    ],
)
def test_refusals(root: Path, asked: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_chains(Model.load(root / "shared"), **({"num_steps": 2, "num_chains": 1} | asked))


def test_the_picture(root: Path) -> None:
    """A row per level, of which ten are enough."""
    chains = run_chains(Model.load(root / "shared"), levels=[0, TOP], kinds=["marginal"], num_steps=2, num_chains=2)
    two = chain_plot(chains).height
    many = [replace(chains.levels[0], row=chains.levels[0].row.model_copy(update={"level": n})) for n in range(30)]
    assert 100 < two < chain_plot(replace(chains, levels=tuple(many))).height < 8 * two


def test_the_command(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "one.png"
    options = ["--level", "0,1", "--steps", "3", "--chains", "2", "--mala", "--picture", str(place)]
    monkeypatch.setattr(sys, "argv", ["cdrl", "chain", str(root / "shared"), *options])
    with pytest.raises(SystemExit) as done:
        main()
    told = capsys.readouterr().out
    assert not done.value.code and "3 MALA steps of 2 chains each" in told
    card = ChainCard.model_validate_json(place.with_suffix(".json").read_text())
    assert [(row.kind, row.level) for row in card.rows] == [
        (kind, level) for kind in ("conditional", "marginal") for level in (0, 1)
    ]
    Image.open(io.BytesIO(place.read_bytes())).verify()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--level", "low"], "--level: expected all or levels such as 0,2, got 'low'"),
        (["--kind", "joint"], "--kind: expected both, conditional or marginal, got 'joint'"),
        (["--level", "9"], "level 9: the model has the levels 0 ... 2"),
    ],
)
def test_the_command_refuses(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cdrl", "chain", str(root / "shared"), *options])
    with pytest.raises(SystemExit) as done:
        main()
    line = capsys.readouterr().err
    assert done.value.code == 2 and line.count("\n") == 1 and message in line
    assert not list(tmp_path.iterdir())


def test_points_are_drawn_as_clouds_and_measured_in_nats(tmp_path: Path) -> None:
    prepare("checkerboard", str(tmp_path / "data"), Options(limit=400, holdout=100))
    sections = {
        "data": {"uri": str(tmp_path / "data"), "shape": [2], "num_classes": 0, "cache": str(tmp_path)},
        "energy": {"kind": "mlp", "width": 8, "multipliers": [1], "num_blocks": 1, "base_measure": 0.1},
        "initializer": {"kind": "mlp", "width": 8, "groups": 2},
    }
    model = Model.load(tiny_model(validate(TINY | sections, where="test"), tmp_path / "model"))
    chains = run_chains(model, num_steps=10, num_chains=90)
    assert chains.levels[0].snapshots.shape == (3, 90, 2) and chain_plot(chains).width > 500
    card = evaluate_likelihood(model, num_chains=30, num_temperatures=10, num_relaxing=1).card
    assert (card.num_dims, card.num_values, card.forward.bits_per_dim, card.noise_bits_per_dim) == (2, None, None, None)
    assert card.forward.nll_nats > 0
