"""Held-out data under a normalized level: exact where the model is Gaussian, and the command on real digits."""

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from cdrl.cli import main
from cdrl.config import override
from cdrl.data import Dataset
from cdrl.data.prepare import Options, prepare
from cdrl.errors import ConfigError
from cdrl.evaluation.held_out import held_out, real_data
from cdrl.evaluation.likelihood import LikelihoodCard, evaluate_likelihood
from cdrl.evaluation.likelihood_plot import likelihood_plot
from cdrl.model import Model
from cdrl.pictures import to_uint8
from tests.evaluation_parts import digits, tiny_config, tiny_model

FEW = {"num_images": 20, "num_chains": 10, "num_temperatures": 6, "num_relaxing": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of two levels and its dataset: 500 digits, 100 held out.

    Level 0 is so noisy that the Gaussian of its data resembles a standard normal.
    """
    root = tmp_path_factory.mktemp("likelihood")
    config = override(tiny_config(digits(root / "data"), root), ["schedule.logsnr_max=-2"])
    return tiny_model(config, root / "model")


def normal_model(folder: Path) -> Model:
    """f = 0 and the base measure: x_s is standard normal at every level, whatever the data are."""
    model = Model.load(folder)
    for pair in model.ladder.distinct():
        pair.base_measure = 1.0
        for parameter in pair.energy.head.parameters():
            parameter.zero_()
    return model


def test_a_standard_normal_model_is_known(folder: Path) -> None:
    """log Z of y = scale x_s is D/2 ln 2 pi + D ln scale, and p(x_s) does not know of the scale."""
    model, level = normal_model(folder), 0
    card = evaluate_likelihood(model, level=level, num_images=100, num_chains=40, num_temperatures=40).card
    tr = model.schedule.transition(level, torch.empty(1, 1, 8, 8, dtype=torch.float64))
    log_z = 64 * (0.5 * math.log(2 * math.pi) + tr.scale.log().item())
    data = held_out(model, None, 100).x.double()
    squares = (tr.alpha_s**2 * (data**2 + 1 / (12 * 127.5**2)) + tr.sigma_s**2).flatten(1).sum(dim=1)
    nll = 0.5 * squares.mean().item() + 32 * math.log(2 * math.pi)
    noise = 5 * math.sqrt((64 * tr.sigma_s.item() ** 2 + 32 * tr.sigma_s.item() ** 4) / 100)
    for one in (card.forward, card.backward):
        assert one.standard_error_nats is not None and one.standard_error_nats < 0.6
        assert abs(one.log_z_nats - log_z) < 5 * one.standard_error_nats
        assert abs(one.nll_nats - nll) < 5 * one.standard_error_nats + noise
        assert one.bits_per_dim == pytest.approx(one.nll_nats / (64 * math.log(2)) + math.log2(127.5))
    entropy = math.log2(127.5) + 0.5 * math.log2(2 * math.pi * math.e * tr.sigma_s.item() ** 2)
    assert card.noise_bits_per_dim == pytest.approx(entropy, rel=1e-5) and card.num_values == 17
    assert (card.split, card.num_images, card.num_dims) == ("holdout", 100, 64)


def test_the_same_seed_the_same_card(folder: Path) -> None:
    calls = []
    first = evaluate_likelihood(Model.load(folder), progress=lambda *call: calls.append(call), **FEW)
    again = evaluate_likelihood(Model.load(folder), **FEW)
    other = evaluate_likelihood(Model.load(folder), seed=1, **FEW)
    assert first.card == again.card and first.card.forward != other.card.forward
    assert {what for what, _, _ in calls} == {"pilot", "forward", "backward"}
    assert ("forward", 6, 6) in calls and ("backward", 6, 6) in calls


def test_a_class_is_scored_on_its_own_data(folder: Path) -> None:
    model = Model.load(folder)
    data = real_data(model, None, "holdout", 1000, label=4)
    assert data.label.unique().tolist() == [4] and 1 < len(data.x) < 30
    assert to_uint8(data.x).equal(data.stored)
    result = evaluate_likelihood(model, label="3", **FEW)
    assert (result.card.label, result.card.num_images) == ("3", len(data.x))


def test_the_rows_are_spread_and_named(folder: Path) -> None:
    model = Model.load(folder)
    data, whole = held_out(model, None, 10), Dataset.open(model.config.data.uri, "holdout")
    assert data.stored[[0, -1]].equal(torch.from_numpy(whole.images([0, 99]))) and len(data.x) == 10


def test_without_a_hold_out_split_train_is_scored(tmp_path: Path) -> None:
    config = tiny_config(digits(tmp_path / "data", holdout=0), tmp_path)
    assert held_out(Model.load(tiny_model(config, tmp_path / "model")), None, 5).split == "train"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"level": 2}, "level 2: the model has the levels 0 ... 1"),
        ({"level": -1}, "level -1"),
        ({"label": "ten"}, "label 'ten': the model's classes are: 0, 1"),
        ({"num_chains": 1}, "at least 2 chains, got 1"),
        ({"num_temperatures": 1}, "at least 2 temperatures"),
    ],
)
def test_refusals(folder: Path, changed: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_likelihood(Model.load(folder), **(FEW | changed))


def test_a_network_that_is_not_finite_is_told(folder: Path) -> None:
    model = Model.load(folder)
    next(model.ladder.distinct()).energy.head.weight.fill_(torch.nan)
    with pytest.raises(ConfigError, match="start of the annealing: .* not finite in 10 of 10 chains"):
        evaluate_likelihood(model, **FEW)


def test_the_picture(folder: Path) -> None:
    picture = likelihood_plot(evaluate_likelihood(Model.load(folder), **FEW))
    assert picture.width > 1000 and len(picture.getcolors(2**24)) > 100


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Callable[[], None]:
    monkeypatch.setattr(sys, "argv", ["cdrl", *map(str, arguments)])
    return main


def test_the_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--images", 20, "--chains", 10, "--temperatures", 10, "--relax", 2]
    place = tmp_path / "one.png"
    with pytest.raises(SystemExit) as done:
        command(monkeypatch, "likelihood", folder, *few, "--picture", place)()
    assert not done.value.code
    told = capsys.readouterr().out
    for phrase in ("density of slightly noisy data", "17 distinct pixel values", "optimistic", "cannot fall below"):
        assert phrase in told
    card = LikelihoodCard.model_validate_json(place.with_suffix(".json").read_text())
    assert f"{card.forward.log_z_nats:,.2f}" in told and json.loads(card.model_dump_json())["num_chains"] == 10
    Image.open(io.BytesIO(place.read_bytes())).verify()


def test_the_command_refuses_another_dataset(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare("digits", str(tmp_path / "other"), Options(limit=30, holdout=10))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        command(monkeypatch, "likelihood", folder, "--data", tmp_path / "other")()
    line = capsys.readouterr().err
    assert done.value.code == 2 and line.count("\n") == 1 and "name the right place with --data" in line
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
