"""`cdrl schedule show|plot`: what is shown is the table, mistakes are one line."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdrl.build import build_schedule
from cdrl.cli import main
from cdrl.config import load
from cdrl.plots import schedule_plot

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`cdrl schedule ARGUMENTS`: exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cdrl", "schedule", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    return command


@pytest.mark.parametrize("name", ["digits", "drl-cifar10"])
def test_show_prints_every_level(run: Run, name: str) -> None:
    code, out, _ = run("show", name)
    rows = [line.split() for line in out.splitlines()]
    t = [row for row in rows if len(row) == 4 and row[0].isdigit()]
    levels = [row for row in rows if len(row) == 9 and row[0].isdigit()]
    schedule = build_schedule(load(name).schedule)
    assert code == 0
    assert [float(row[1]) for row in t] == pytest.approx(schedule.logsnr.tolist(), rel=1e-4)
    tr = schedule.constants
    for column, values in ((2, tr.sigma_ts), (5, tr.step_size), (6, tr.loss_weight), (7, tr.step_size.sqrt())):
        assert [float(row[column]) for row in levels] == pytest.approx(values.tolist(), rel=1e-4)


@pytest.mark.parametrize("name", ["digits", "drl-t1k-digits"])
def test_plot_writes_the_picture_that_training_logs(run: Run, tmp_path: Path, name: str) -> None:
    code, out, _ = run("plot", name)
    written = np.asarray(Image.open(tmp_path / f"{name}-schedule.png"))
    assert code == 0 and f"{name}-schedule.png" in out
    assert np.array_equal(written, np.asarray(schedule_plot(build_schedule(load(name).schedule))))


def test_another_schedule_is_another_picture(run: Run, tmp_path: Path) -> None:
    run("plot", "digits", "--picture", "a/plain.png")
    run("plot", "digits", "--picture", "a/warped.png", "--set", "schedule.warp=2")
    plain, warped = (np.asarray(Image.open(tmp_path / "a" / f"{name}.png")) for name in ("plain", "warped"))
    assert plain.shape == warped.shape and not np.array_equal(plain, warped)


@pytest.mark.parametrize("command", ["show", "plot"])
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("schedule.num_levels=0", "schedule.num_levels: Input should be greater than or equal to 1, got 0"),
        ("schedule.step_scale=0", "schedule.step_scale: Input should be greater than 0, got 0"),
        (
            "schedule={num_levels: 2, family: table, logsnr: [3, 4, 1]}",
            "expected finite, strictly falling logSNR of t = 0 ... T, T >= 1, got 4 after 3 at t = 1",
        ),
        ("schedule={num_levels: 2, family: table, logsnr: [3, 1]}", "logsnr needs num_levels + 1 = 3 values"),
        ("schedule.family=drl_t1k", "schedule.num_levels: drl_t1k has 1000 levels, got 6"),
        ("schedule={num_levels: 50, warp: 40}", "strictly falling"),
    ],
)
def test_a_schedule_that_cannot_be_is_one_line(run: Run, tmp_path: Path, command: str, setting: str, says: str) -> None:
    code, out, err = run(command, "digits", "--set", setting)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and says in err
    assert list(tmp_path.iterdir()) == []
