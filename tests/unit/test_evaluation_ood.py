"""Data against what is no data: areas with known values, sets with known laws, and the command on real digits."""

import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from cdrl.cli import main
from cdrl.cli.ood import ood_table
from cdrl.data.prepare import Options, prepare
from cdrl.errors import ConfigError, DataError
from cdrl.evaluation.detection import detection
from cdrl.evaluation.ood import OodCard, evaluate_ood
from cdrl.evaluation.ood_picture import ood_picture
from cdrl.evaluation.outliers import OUTLIERS, code_length_bpd, outliers
from cdrl.method.rng import Rng
from cdrl.model import Model
from cdrl.pictures import from_uint8, to_uint8
from tests.evaluation_parts import digits, tiny_config, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model and its dataset: 500 digits, 100 held out."""
    root = tmp_path_factory.mktemp("ood")
    return tiny_model(tiny_config(digits(root / "data"), root), root / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return Model.load(folder)


def normal(seed: int, count: int, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, count)


@pytest.mark.parametrize("distance", [-1.0, 0.0, 0.5, 2.0])
def test_the_area_for_two_normals(distance: float) -> None:
    """AUROC = P(a > b) = Phi(distance / sqrt 2)."""
    found = detection(normal(0, 2000, distance), normal(1, 1000))
    expected = 0.5 * (1 + math.erf(distance / 2))
    assert abs(found.auroc - expected) < 4 * found.auroc_error


def test_the_error_bar_is_the_spread_over_new_images() -> None:
    found = [detection(normal(2 * i, 200, 1.0), normal(2 * i + 1, 200)) for i in range(30)]
    for area, error in (("auroc", "auroc_error"), ("aupr", "aupr_error")):
        spread = np.std([getattr(one, area) for one in found], ddof=1)
        assert np.mean([getattr(one, error) for one in found]) == pytest.approx(spread, rel=0.4)  # known to 13 % itself


def test_perfect_reversed_and_constant_scores() -> None:
    low, high = normal(0, 50), normal(0, 30) + 100
    perfect, turned, constant = detection(high, low), detection(low, high), detection(np.zeros(30), np.zeros(50))
    assert (perfect.auroc, perfect.aupr) == (pytest.approx(1), pytest.approx(1)) and perfect.auroc_error < 1e-9
    assert turned.auroc == 0
    assert (constant.auroc, constant.aupr) == (pytest.approx(0.5), pytest.approx(30 / 80))


def test_areas_agree_with_another_implementation() -> None:
    inside, outside = normal(0, 80, 0.5).round(1), normal(1, 120).round(1)  # rounded: many ties
    scores, is_data = np.concatenate([inside, outside]), np.repeat([1, 0], [80, 120])
    found = detection(inside, outside)
    assert found.auroc == pytest.approx(roc_auc_score(is_data, scores))
    assert found.aupr == pytest.approx(average_precision_score(is_data, scores))


def test_areas_see_ranks_alone() -> None:
    inside, outside = normal(0, 100, 1.0), normal(1, 100)
    assert detection(inside, outside) == detection(np.exp(inside) - 7, np.exp(outside) - 7)


def test_too_few_scores() -> None:
    with pytest.raises(ConfigError, match="at least 10 images in each set, got 9 and 50"):
        detection(normal(0, 9), normal(1, 50))


def test_every_set_is_8_bit_within_range_and_its_own() -> None:
    x = from_uint8(torch.randint(256, (20, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
    for name in OUTLIERS:
        made = outliers(name, x)
        assert made.shape == x.shape and made.equal(from_uint8(to_uint8(made))) and not made.equal(x)
        assert made.equal(outliers(name, x)) and (name == "inverted" or not made.equal(outliers(name, x, seed=1)))


def test_inverting_twice_is_nothing() -> None:
    x = from_uint8(torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8))
    assert outliers("inverted", outliers("inverted", x)).equal(x)
    assert to_uint8(outliers("inverted", x)).equal(255 - to_uint8(x))


def test_shuffling_keeps_the_colours_of_each_image_and_orders_each_its_own_way() -> None:
    x = from_uint8(torch.arange(192, dtype=torch.uint8).view(1, 3, 8, 8).repeat(4, 1, 1, 1))
    pixels = outliers("shuffled", x).flatten(2)
    order = pixels[:, 0].argsort(dim=1)
    for image, places in zip(pixels, order, strict=True):
        assert image[:, places].equal(x[0].flatten(1))
    assert len({tuple(places.tolist()) for places in order}) == 4


def test_gaussian_noise_has_the_moments_of_each_pixel() -> None:
    scale = torch.linspace(0.01, 0.2, 16).view(1, 4, 4)
    x = scale * Rng("x").normal(torch.empty(4000, 1, 4, 4)) + scale
    made = outliers("gaussian", x)
    assert ((made.mean(0) - x.mean(0)).abs() < 5 * x.std(0) * math.sqrt(1 / 4000) + 1e-3).all()
    assert (made.std(0) / x.std(0) - 1).abs().max() < 0.1


def test_points_keep_their_box() -> None:
    x = torch.tensor([3.0, -1.0]) + Rng("points").uniform(torch.empty(500, 2))
    made = outliers("noise", x)
    assert (made >= x.amin(0)).all() and (made <= x.amax(0)).all()
    assert outliers("shuffled", x).sort(dim=1).values.equal(x.sort(dim=1).values)


def test_a_flat_image_is_short_and_noise_costs_its_bits() -> None:
    noise = torch.randint(256, (2, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stripes = (torch.arange(64) % 2 * 255).to(torch.uint8).expand(1, 1, 64, 64)
    flat, striped, noisy, _ = code_length_bpd(torch.cat([torch.zeros_like(stripes), stripes, noise])).tolist()
    assert flat < striped < 0.2 and noisy == pytest.approx(8, abs=0.2)
    assert code_length_bpd(noise.expand(2, 3, 64, 64)).shape == (2,)


def test_scores_of_a_model_in_full(model: Model) -> None:
    told: list[tuple[str, int, int]] = []
    result = evaluate_ood(
        model, ["inverted", "noise"], complexity=True, num_images=60, progress=lambda *now: told.append(now)
    )
    names = ("log_density", "gradient_norm", "typicality", "corrected")
    assert set(result.values) == {*((name, level) for name in names for level in (0, 1)), ("code_length", None)}
    assert [(row.against, row.score) for row in result.card.rows[-2:]] == [
        ("inverted", "code_length"),
        ("noise", "code_length"),
    ]
    for (score, level), sets in result.values.items():
        assert {name: len(values) for name, values in sets.items()} == {"data": 60, "inverted": 60, "noise": 60}
        row = next(r for r in result.card.rows if (r.score, r.level, r.against) == (score, level, "noise"))
        assert row.detection == detection(sets["data"], sets["noise"])
    bits = result.values["log_density", 1]["noise"] / (64 * math.log(2)) + result.values["code_length", None]["noise"]
    np.testing.assert_allclose(result.values["corrected", 1]["noise"], bits, rtol=1e-5)
    assert told[0] == ("score images", 60, 480) and ("score images", 480, 480) in told
    of_model = [row for row in result.card.rows if row.against == "noise" and row.level is not None]
    assert result.card.best("noise").detection.auroc == max(row.detection.auroc for row in of_model)


def test_the_data_against_themselves_are_a_coin(model: Model, folder: Path) -> None:
    """The same images as another dataset: equal scores in every place, so exactly one half."""
    result = evaluate_ood(model, [str(folder.parent / "data")], scores=["log_density"], num_images=60)
    assert [row.detection.auroc for row in result.card.rows] == [pytest.approx(0.5), pytest.approx(0.5)]


def test_a_label_and_noise_change_the_scores(model: Model) -> None:
    plain, labelled, noised = (
        evaluate_ood(model, ["noise"], num_images=20, levels=[1], label=label, num_draws=draws).values["log_density", 1]
        for label, draws in ((None, 0), ("3", 0), (None, 2))
    )
    assert not np.allclose(plain["data"], labelled["data"]) and not np.allclose(plain["data"], noised["data"])


def refusal(model: Model, *against: str, **options: object) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        evaluate_ood(model, against, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_what_cannot_be_compared(model: Model, tmp_path: Path) -> None:
    assert "level 2: the model has the levels 0 ... 1" in refusal(model, "noise", levels=[0, 2])
    assert "score 'energy': expected log_density, gradient_norm, typicality" in refusal(
        model, "noise", scores=["energy"]
    )
    assert "label 'cat'" in refusal(model, "noise", label="cat")
    assert "data: expected at least 10 images, got 9" in refusal(model, "noise", num_images=9)
    assert "sets that differ" in refusal(model, "noise", "noise")
    nowhere = refusal(model, str(tmp_path / "nowhere"))
    assert "no dataset here" in nowhere and "or take one of noise, gaussian, inverted, shuffled" in nowhere


def test_datasets_that_do_not_fit(model: Model, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(12):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    prepare("folder", str(tmp_path / "rgb"), Options(path=str(tmp_path / "photos"), holdout=0))
    assert "expected uint8 of shape [1, 8, 8] as the model's data, got uint8 of [3, 8, 8]" in refusal(
        model, str(tmp_path / "rgb")
    )
    assert "the model was trained on" in refusal(model, "noise", uri=str(tmp_path / "rgb"))


def test_a_model_whose_data_have_no_holdout(tmp_path: Path) -> None:
    config = tiny_config(digits(tmp_path / "data", holdout=0), tmp_path)
    bare = Model.load(tiny_model(config, tmp_path / "model"))
    assert "no hold-out split to score" in refusal(bare, "noise")


def test_a_picture_in_color(model: Model) -> None:
    result = evaluate_ood(model, ["noise", "shuffled"], num_images=30, levels=[1], complexity=True)
    picture = ood_picture(result)
    assert picture.mode == "RGB" and picture.width > picture.height
    assert ood_table(result.card).row_count == 2


def test_the_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["cdrl", "ood", str(folder), "--against", "inverted", "--level", "1", "--images", "30", "--score"]
    target = tmp_path / "out.png"
    monkeypatch.setattr(sys, "argv", [*command, "gradient_norm", "--complexity", "--picture", str(target)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    shown = capsys.readouterr().out
    card = OodCard.model_validate_json((tmp_path / "out.json").read_bytes())
    assert {(row.score, row.level) for row in card.rows} == {
        ("gradient_norm", 1),
        ("corrected", 1),
        ("code_length", None),
    }
    assert json.loads((tmp_path / "out.json").read_text())["num_outliers"] == {"inverted": 30}
    assert Image.open(io.BytesIO(target.read_bytes())).format == "PNG"
    assert "inverted" in shown and f"{card.rows[0].detection.auroc:.3f}".lstrip("0") in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--level", "low"], "--level low: expected all"),
        (["--level", "0,0"], "--level 0,0: expected all"),
        (["--picture", "out.jpg"], "--picture out.jpg: expected a name that ends in .png"),
        (["--level", "7"], "level 7: the model has the levels 0 ... 1"),
    ],
)
def test_the_command_refuses_in_one_line(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cdrl", "ood", str(folder), *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    line = capsys.readouterr().err
    assert caught.value.code == 2 and message in line and line.count("\n") == 1 and not list(tmp_path.iterdir())
