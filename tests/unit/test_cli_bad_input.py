"""What the command line says of mistakes: one line on standard error, exit code 2, nothing left behind."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cdrl.cli import main
from cdrl.data.prepare import prepare
from cdrl.model import Model, build_ladder
from tests.training_parts import tiny_config


class Refused:
    """Runs `cdrl ARGUMENTS`, expects a refusal and gives back its line."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> str:
        self._monkeypatch.setattr(sys, "argv", ["cdrl", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        line = self._capsys.readouterr().err
        assert caught.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1, line
        return line


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    monkeypatch.chdir(tmp_path)
    return Refused(monkeypatch, capsys)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = tiny_config()
    torch.manual_seed(0)
    folder = tmp_path / "model"
    folder.mkdir()
    Model(config, build_ladder(config).requires_grad_(False), tuple("abcdefghij"), "ab" * 32, 1).write(folder)
    return folder


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.shape=[]", "data.shape: expected [channels, height, width] or [dims], got []"),
        ("data.shape=[1,8]", "data.shape: expected [channels, height, width] or [dims]"),
        ("data.shape=[0,8,8]", "data.shape.0: Input should be greater than or equal to 1"),
        ("data.shape=[1,8,9]", "data.shape: images must be square"),
        ("schedule.num_levels=99999999999999", "schedule.num_levels: Input should be less than or equal to 1000"),
        ("schedule.step_scale=0", "schedule.step_scale: Input should be greater than 0"),
        ("schedule.logsnr_max=-9", "logsnr_max -9.0 must exceed logsnr_min"),
        ("energy.multipliers=[]", "energy.multipliers: Tuple should have at least 1 item"),
        ("initializer.multipliers=[0]", "initializer.multipliers.0: Input should be greater than or equal to 1"),
        ("name=2026-13-45", "--set name: '2026-13-45' is not YAML: month must be in 1..12"),
    ],
)
def test_settings_that_no_run_could_have(refused: Refused, setting: str, message: str) -> None:
    assert message in refused("config", "check", "digits", "--set", setting)


def test_training_refuses_a_schedule_before_anything_starts(refused: Refused, tmp_path: Path) -> None:
    assert "logsnr_max -9.0" in refused("train", "digits", "--set", "schedule.logsnr_max=-9")
    assert not list(tmp_path.iterdir())


def test_a_date_that_is_none_in_a_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: 2026-13-45\n")
    assert "run.yaml: not valid YAML: month must be in 1..12" in refused("config", "check", "run.yaml")


@pytest.mark.parametrize("command", ["sample models:/digits@champion", "registry show digits", "registry list"])
def test_looking_for_models_makes_no_database(refused: Refused, tmp_path: Path, command: str) -> None:
    assert f"no tracking database at {tmp_path}/runs/mlflow.db" in refused(*command.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("guidance", ["nan", "inf", "1e30"])
def test_guidance_that_leaves_the_finite(refused: Refused, model: Path, tmp_path: Path, guidance: str) -> None:
    message = "not finite; lower sampling.guidance" if guidance == "1e30" else "Input should be a finite"
    assert message in refused("sample", model, "--guidance", guidance)
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xd5\xff", "not a readable run record: Invalid JSON"),
        (b"{}", "not a readable run record: Field required"),
        (b'{"run_id": "../../elsewhere"}', "not a readable run record: String should match pattern"),
    ],
)
def test_a_damaged_run_record(refused: Refused, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "run.json").write_bytes(content)
    assert message in refused("sample", "one")


@pytest.mark.parametrize("names", ["cats,cats", "cats,,dogs"])
def test_class_names_that_do_not_tell_classes_apart(refused: Refused, tmp_path: Path, names: str) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "photos" / name / "0.png")
    line = refused("data", "prepare", "folder", "out", "--path", "photos", "--class-names", names)
    assert f"--class-names {names}: expected names that differ" in line and not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_the_error_that_is_told(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"cannot write {tmp_path}/file/out/.prepare/" in refused("data", "prepare", "digits", "file/out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["0", "1"]}, "train: 1297 rows, but 1297 in shards and labels"),
        ({"shape": []}, "shape []: expected [channels, height, width] or [dims]"),
        ({"options": {}}, "changed after it was written"),
    ],
)
def test_a_manifest_whose_parts_disagree(
    refused: Refused, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    prepare("digits", str(tmp_path / "digits"))
    place = tmp_path / "digits" / "manifest.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | change))
    assert message in refused("data", "inspect", "digits")
    assert not (tmp_path / "digits" / "contact-sheet.png").exists()


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ((), "expected CONFIG --space SPACE, to train, or --sampling RUN"),
        (("digits", "--sampling", "digits"), "expected CONFIG --space SPACE, to train, or --sampling RUN"),
        (("digits",), "--space SPACE is missing"),
        (("digits", "--space", "steps", "--which", "best"), "--which goes with --sampling RUN"),
        (("--sampling", "digits", "--scheduler", "asha"), "--scheduler goes with CONFIG"),
        (("--sampling", "nobody"), "no such run below 'runs'"),
    ],
)
def test_a_sweep_and_a_search_of_the_sampler_are_not_mixed(
    arguments: tuple[str, ...], reason: str, refused: Refused
) -> None:
    assert reason in refused("tune", *arguments)
