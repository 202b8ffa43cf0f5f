"""`cdrl sample`, `compose` and `inpaint`: pictures of what was asked for, and one line for what makes no sense."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl.cli import main
from cdrl.data import Dataset
from cdrl.model import Model, build_ladder
from cdrl.pictures import png_bytes, to_uint8
from cdrl.sheets import labelled
from tests.training_parts import digits, tiny_config

Cdrl = Callable[..., str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with untrained models: `images`, of ten classes; `plain` images; `points` of two classes."""
    root = tmp_path_factory.mktemp("models")
    manifest = digits(root / "digits").manifest
    nets = ["energy={kind: mlp, width: 8, patch: 1}", "initializer={kind: mlp, width: 8, groups: 2}"]
    for name, overrides in {
        "images": ["data.num_classes=10"],
        "plain": ["data.num_classes=0"],
        "points": ["data={shape: [2], num_classes: 2}", *nets],
    }.items():
        config = tiny_config(f"data.uri={root / 'digits'}", *overrides)
        torch.manual_seed(0)
        ladder = build_ladder(config).requires_grad_(False)
        for parameter in ladder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        (root / name).mkdir()
        names = manifest.class_names[: config.data.num_classes]
        Model(config, ladder, names, manifest.digest, 1).write(root / name)
    return root


@pytest.fixture
def cdrl(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cdrl:
    """Runs `cdrl COMMAND models/MODEL ... --picture out.png`; gives what it says, or the line of its refusal."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, model: str, *arguments: object) -> str:
        place = [] if "--picture" in arguments else ["--picture", "out.png"]
        monkeypatch.setattr(sys, "argv", ["cdrl", command, str(models / model), *map(str, arguments), *place])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        if not caught.value.code:
            return out
        assert caught.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
        assert not Path("out.png").exists() and not Path("out.gif").exists()
        return err

    return run


def save(name: str, shade: int = 255, size: tuple[int, int] = (8, 8), mode: str = "L") -> str:
    Image.new(mode, size, shade).save(name)
    return name


def drawn_again(picture: str, expected: Image.Image) -> bool:
    return Path(picture).read_bytes() == png_bytes(expected)


def test_a_row_for_each_class(cdrl: Cdrl, models: Path) -> None:
    assert "100 samples: out.png" in cdrl("sample", "images")
    labels = torch.arange(100) // 10 + 1
    x = to_uint8(Model.load(models / "images").sample(100, labels=labels)).unflatten(0, (10, 10))
    assert drawn_again("out.png", labelled(x, [str(digit) for digit in range(10)]))


@pytest.mark.parametrize(
    ("option", "change"),
    [
        (["--steps", "3"], {"num_steps": 3}),
        (["--steps", "3,0"], {"num_steps": (3, 0)}),
        (["--step-multiplier", "0.5,2"], {"step_multiplier": (0.5, 2.0)}),
        (["--denoise", "0"], {"denoise_scale": 0.0}),
        (["--noise-scale", "0.5"], {"noise_scale": 0.5}),
        (["--guidance", "2"], {"guidance": 2.0}),
        (["--guidance", "0,2"], {"guidance": (0.0, 2.0)}),
    ],
)
def test_every_option_reaches_the_sampler(cdrl: Cdrl, models: Path, option: list[str], change: dict) -> None:
    cdrl("sample", "images", "-n", "10", "--label", "3", "--seed", "7", *option)
    model = Model.load(models / "images")
    sampling = model.config.sampling.model_copy(update=change)
    x = to_uint8(model.sample(10, labels=4, seed=7, sampling=sampling))
    assert drawn_again("out.png", labelled(x[None], ["3"]))


def test_a_trace_is_a_sheet_and_an_animation(cdrl: Cdrl) -> None:
    assert "2 samples: out.png and out.gif" in cdrl("sample", "images", "--trace", "-n", "2", "--steps", "2,1")
    with Image.open("out.gif") as gif:
        assert gif.n_frames == 1 + 2 + 3 + 1
    assert Image.open("out.png").width > 400


@pytest.mark.parametrize("model", ["images", "plain", "points"])
def test_a_path_has_a_column_for_each_level(cdrl: Cdrl, model: str) -> None:
    assert "5 samples: out.png" in cdrl("sample", model, "--path", "-n", "5")
    assert Image.open("out.png").width > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("images --steps -1", "sampling.num_steps: Input should be greater than or equal to 0, got -1"),
        ("images --steps 1,2,3", "sampling.num_steps has 3 values for 2 levels"),
        ("images --steps 1.5", "--steps 1.5: expected whole numbers with commas between them"),
        ("images --steps ,", "--steps ,: expected whole numbers"),
        ("images --step-multiplier 0", "sampling.step_multiplier: Input should be greater than 0"),
        ("images --step-multiplier nan", "sampling.step_multiplier: Input should be"),
        ("images --denoise -1", "sampling.denoise_scale: Input should be greater than or equal to 0"),
        ("images --noise-scale inf", "sampling.noise_scale: Input should be a finite number"),
        ("images --label ten", "label 'ten': the model's classes are: 0, 1, 2"),
        ("images --path --trace", "--path, --trace: expected one of them"),
        ("images --trace -n 41", "--number 41: expected at most 40 with --trace"),
        ("images --picture out.jpg", "--picture out.jpg: expected a name that ends in .png"),
        ("plain --guidance 1", "--guidance 1: the model is unconditional"),
        ("plain --label 1", "label '1': the model's classes are: none"),
        ("points --trace", "--trace: the model draws points"),
    ],
)
def test_samples_that_make_no_sense(cdrl: Cdrl, arguments: str, message: str) -> None:
    assert message in cdrl("sample", *arguments.split())


def test_a_composition_stands_above_its_classes_alone(cdrl: Cdrl, models: Path) -> None:
    said = cdrl("compose", "images", "--label", "3", "--label", "8=1.5", "--label", "1=-2", "-n", "4", "--seed", "2")
    assert "4 samples of 3 + 2.5 x 8 - 1 x 1: out.png" in said
    model = Model.load(models / "images")
    rows = [model.sample(4, composition={4: 0.0, 9: 1.5, 2: -2.0}, seed=2)]
    rows += [model.sample(4, labels=label, seed=2) for label in (4, 9, 2)]
    names = ["3 + 2.5 x 8 - 1 x 1", "3 alone", "8 alone", "1 alone"]
    assert drawn_again("out.png", labelled(to_uint8(torch.stack(rows)), names))


@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        ("images", ["ten"], "label 'ten': the model's classes are: 0, 1, 2"),
        ("images", ["3=much"], "--label 3=much: expected a number after '=', such as 3=1.5"),
        ("images", ["3="], "--label 3=: expected a number"),
        ("images", ["=1"], "--label =1: expected the name of a class"),
        ("images", ["3=nan"], "composition: expected finite weights, got [nan]"),
        ("images", ["3=1e30"], "samples are not finite; lower the composition's weights"),
        ("images", ["3", "3=1"], "--label 3=1: expected the name of a class, each once"),
        ("plain", ["3"], "expected a conditional model of images"),
        ("points", ["0"], "expected a conditional model of images"),
    ],
)
def test_compositions_that_make_no_sense(cdrl: Cdrl, model: str, labels: list[str], message: str) -> None:
    assert message in cdrl("compose", model, *(part for label in labels for part in ("--label", label)))


def cell(picture: str, column: int, columns: int, row: int, rows: int) -> np.ndarray:
    """An 8x8 image (8, 8, 3) of a sheet whose only names stand above its columns."""
    pixels = np.asarray(Image.open(picture).convert("RGB"))[24:]
    height, width = pixels.shape[0] / rows, pixels.shape[1] / columns
    place = pixels[int(row * height) : int((row + 1) * height), int(column * width) : int((column + 1) * width)]
    inside = place[(len(place) - 48) // 2 :, (place.shape[1] - 48) // 2 :]
    return inside[3:48:6, 3:48:6]


@pytest.mark.parametrize("options", [[], ["--rounds", "2", "--fixed-noise"], ["--own-label", "--guidance", "1"]])
def test_the_picture_shows_image_known_part_and_completions(cdrl: Cdrl, models: Path, options: list[str]) -> None:
    said = cdrl("inpaint", "images", "--from-data", 3, "--mask", "top", "--candidates", 2, *options)
    assert "2 completions of 3 images: out.png" in said and "hidden pixels differ from the original by" in said
    stored = Dataset.open(str(models / "digits")).images(np.array([0, 29, 59]))
    for row in range(3):
        image, known, *completed = (cell("out.png", column, 4, row, 3)[..., 0] for column in range(4))
        assert (image == stored[row, 0]).all()
        assert (known[:4] == 70).all() and (known[4:] == image[4:]).all()
        for found in completed:
            assert (found[4:] == image[4:]).all() and (found[:4] != image[:4]).any()
        assert (completed[0] != completed[1]).any()


def test_files_as_image_and_mask(cdrl: Cdrl) -> None:
    chosen = ["--image", save("white.png"), "--image", save("colour.png", mode="RGB"), "--candidates", 1]
    half = Image.new("L", (8, 8), 255)
    half.paste(0, (0, 0, 4, 8))
    half.save("mask.png")
    cdrl("inpaint", "plain", *chosen, "--mask", "mask.png")
    known, completed = (cell("out.png", column, 3, 0, 2) for column in (1, 2))
    assert (known[:, :4] == (70, 110, 190)).all() and (known[:, 4:] == 255).all()
    assert (completed[:, 4:] == 255).all() and (completed[:, :4] != 255).any()
    assert "hidden" not in cdrl("inpaint", "plain", *chosen, "--mask", save("all.png"), "--picture", "all-known.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("images --from-data 2 --mask upper", "mask 'upper': expected left, right, top, bottom, centre, random:SHARE"),
        ("images --from-data 2 --mask random:2", "mask 'random:2': expected a share between 0 and 1"),
        ("images --from-data 2 --mask wide.png", "wide.png: expected 8 x 8 pixels, got 9 x 8"),
        ("images --from-data 2 --mask text.png", "text.png: unreadable image"),
        ("images --image wide.png", "wide.png: expected 8 x 8 pixels, got 9 x 8"),
        ("images --image nan.tiff", "nan.tiff: expected 8-bit channels, got mode 'F'"),
        ("images --image missing.png", "missing.png: unreadable image"),
        ("images", "expected either --image FILE or --from-data N"),
        ("images --from-data 2 --image wide.png", "expected either --image FILE or --from-data N"),
        ("images --from-data 2 --guidance 1", "--guidance 1: needs --label or --own-label"),
        ("images --from-data 2 --label ten", "label 'ten': the model's classes are"),
        ("images --from-data 2 --label 1 --own-label", "--own-label: goes with --from-data and without --label"),
        ("images --from-data 2 --data nowhere", "nowhere"),
        ("plain --from-data 2 --label 1", "label '1': the model's classes are: none"),
        ("plain --from-data 2 --own-label --guidance 1", "--guidance 1: the model is unconditional"),
        ("plain --from-data 2 --own-label", "--own-label: the model is unconditional"),
        ("points --from-data 2", "the model draws points; only images are inpainted"),
    ],
)
def test_inpaintings_that_make_no_sense(cdrl: Cdrl, arguments: str, message: str) -> None:
    save("wide.png", size=(9, 8))
    Image.new("F", (8, 8), float("nan")).save("nan.tiff")
    Path("text.png").write_text("no picture")
    assert message in cdrl("inpaint", *arguments.split())
