"""A replayed update is the run's: metrics bit by bit, what is shown adds up to them, and what cannot be is refused."""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from cdrl.cli import main
from cdrl.config import Config
from cdrl.data import Dataset
from cdrl.data.prepare import Options, prepare
from cdrl.errors import ConfigError
from cdrl.method.cooperative import StepMetrics
from cdrl.runs import RunRecord, absolute, step_folder
from cdrl.tracking.run import TrackedRun
from cdrl.tracking.server import default_uri
from cdrl.training.loop import train
from cdrl.training.replay import Replay, Start, logged_before, replay, start_before
from cdrl.training.replay_plot import replay_plot
from tests.training_parts import ATTEMPT, digits, quiet, save, tiny_config, tiny_state

KEPT = (2, 7)  # checkpoints of twelve updates; the first six train the initializer alone


Place = tuple[Dataset, Path]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, _empty_tracking: Path) -> Place:
    """Sixty digits; the tracking database of all runs here lies beside them."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copy(_empty_tracking, folder)
    return digits(folder), folder


class Run:
    """A straight run with its record, checkpoints and every update's metrics, as the launcher leaves them."""

    def __init__(self, root: Path, dataset: Dataset, folder: Path, *overrides: str, log_every: int = 1) -> None:
        given = (f"run.root={root}", "run.name=straight", f"data.uri={folder}", "run.log_every=1", *overrides)
        config: Config = absolute(tiny_config(*given))
        digest = dataset.manifest.digest
        self.tracked = TrackedRun.start(config, "straight", manifest_digest=digest, uri=default_uri(folder))
        self.record = RunRecord(
            run_id="straight",
            config=config,
            manifest_digest=digest,
            class_names=dataset.manifest.class_names,
            tracking_uri=self.tracked.uri,
            mlflow_run_id=self.tracked.mlflow_run_id,
        )
        self.record.write(str(root))
        self.root, self.metrics = root, dict[int, dict[str, float]]()
        state = tiny_state(config)

        def log(found: dict[int, StepMetrics]) -> None:
            named = {state.grid.prefix(n) + name: v.item() for n, m in found.items() for name, v in vars(m).items()}
            self.metrics[state.step] = named
            if state.step % log_every == 0:
                self.tracked.log_metrics(named, state.step)
            if state.step in KEPT:
                save(state, dataset, self.record.directory / step_folder(state.step, ATTEMPT))

        train(state, dataset, dataclasses.replace(quiet(), log=log))
        self.tracked.close()

    def again(self, step: int) -> Replay:
        return replay(self.record, step, start_before(self.record, step))


@pytest.fixture(scope="module")
def run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("runs"), *place)


SHAPES = {
    "shared": (),
    "per level": ("pairs=per_level",),
    "DRL": ("initializer=null", "training.shared_noise=false", "training.anchor=0"),
    "DRL one shot": ("initializer=null", "training.anchor=0", "training.num_steps=0"),
    "no chain": ("training.num_steps=0",),
    "chunkwise": ("compute.chunkwise=always", "cluster.num_workers=2"),
    "plain, unconditional": ("compute.formulation=plain", "data.num_classes=0"),
}


@pytest.mark.parametrize("overrides", SHAPES.values(), ids=SHAPES.keys())
def test_the_metrics_are_the_straight_runs_and_the_images_add_up_to_them(
    place: Place, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    run = Run(tmp_path, *place, *overrides)
    config = run.record.config
    for step in (8, 11):  # right after the checkpoint, and further
        found = run.again(step)
        assert found.metrics == {step: run.metrics[step]}
        sizes = torch.tensor([len(each.x_0) for each in found.levels])
        num_pairs = 2 if config.pairs == "per_level" else 1
        assert sizes.sum() == 8 * num_pairs
        for name, column in (("loss_energy", "loss"), ("f_pos", "f_pos"), ("f_neg", "f_neg"), ("displacement",) * 2):
            by_level = torch.tensor([getattr(each, column).mean() for each in found.levels])
            expected = [value for key, value in run.metrics[step].items() if key.endswith(name)]
            mean = (by_level * sizes).sum() / sizes.sum()
            assert mean.item() == pytest.approx(sum(expected) / num_pairs, rel=1e-4, abs=1e-6)


def test_a_chain_starts_at_the_initializers_draw_and_ends_at_what_f_learns_from(run: Run) -> None:
    found = run.again(9)
    assert [each.level for each in found.levels] == sorted({each.level for each in found.levels})
    for each in found.levels:
        n = len(each.x_0)
        assert each.chain.shape == (3, n, 1, 8, 8) and each.f.shape == each.gradient.shape == (3, n)  # K = 2
        torch.testing.assert_close(each.f[-1], each.f_neg)
        assert (each.gradient > 0).all() and not each.chain[0].equal(each.chain[1])
        assert each.label is not None and ((0 <= each.label) & (each.label <= 10)).all()
        assert (each.x_pos - each.x_0).square().mean() < (each.x_t - each.x_0).square().mean()  # level s is cleaner


def test_it_starts_at_the_newest_checkpoint_before_or_at_the_beginning(run: Run) -> None:
    starts = {step: start_before(run.record, step).step for step in (1, 2, 3, 7, 8, 12)}
    assert starts == {1: 0, 2: 0, 3: 2, 7: 2, 8: 7, 12: 7}
    assert start_before(run.record, 2) == Start(0, None)
    calls: list[tuple[str, int, int]] = []
    found = replay(run.record, 2, Start(0, None), also=1, progress=lambda *call: calls.append(call))
    assert found.metrics == {1: run.metrics[1], 2: run.metrics[2]} and found.levels == ()
    assert calls == [("updates 1 ... 2", 1, 2), ("updates 1 ... 2", 2, 2)]


def test_what_was_logged_comes_back_with_every_bit(place: Place, tmp_path: Path) -> None:
    run = Run(tmp_path, *place, "pairs=per_level", log_every=5)
    tracked = TrackedRun.attach(run.record)
    for step, at in ((10, 10), (12, 10), (9, None)):
        start = start_before(run.record, step)
        assert start.step == 7
        expected = None if at is None else (at, run.metrics[at])
        assert logged_before(tracked, run.record.config, start, step) == expected
    tracked.log_metrics({"pair_0/f_pos": 0.5}, 10)  # a resumed run may measure an update again
    tracked.flush()
    assert tracked.history("pair_0/f_pos")[10] == 0.5 and tracked.history("nothing") == {}


def test_the_picture_has_a_row_for_each_level(run: Run) -> None:
    found = run.again(10)
    one = Replay(10, found.levels[:1], found.metrics)
    assert len(found.levels) == 2
    assert replay_plot(found, [str(digit) for digit in range(10)]).height > 1.3 * replay_plot(one).height > 200


def cdrl(*arguments: str) -> int:
    """The exit code of a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cdrl", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_the_command_compares_and_draws(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = tmp_path / "update.png"
    arguments = ("replay", "straight", "--root", str(run.root), "--step", "10", "--picture", str(drawn))
    assert cdrl(*arguments) == 0
    told = capsys.readouterr().out
    assert "3 to make from the checkpoint at 7" in told and "all 7 metrics equal the logged ones exactly" in told
    assert f"{run.metrics[10]['loss_energy']:.9g}" in told
    whole = Image.open(drawn).height
    level = run.again(10).levels[0].level
    assert cdrl(*arguments, "--level", str(level)) == 0
    assert Image.open(drawn).size[1] != whole


def test_a_difference_is_told(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, *place, log_every=20)
    run.tracked.log_metrics({**run.metrics[10], "f_pos": run.metrics[10]["f_pos"] + 0.25}, 10)
    run.tracked.flush()
    arguments = ("replay", "straight", "--root", str(tmp_path), "--picture", str(tmp_path / "a.png"))
    assert cdrl(*arguments, "--step", "11") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "1 of 7 metrics differ" in told and "at update 10" in told and "most f_pos, by 0.25" in told
    assert cdrl(*arguments, "--step", "9") == 0
    assert "nothing to compare with" in capsys.readouterr().out
    assert cdrl(*arguments, "--step", "3") == 0
    assert "the initializer trains alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nobody", "--step", "3"], ["'nobody'", "no such run", "straight"]),
        (["straight", "--step", "0"], ["--step", "1 ... 12", "got 0"]),
        (["straight", "--step", "13"], ["--step", "1 ... 12", "got 13"]),
        (["straight", "--step", "9", "--level", "2"], ["--level", "0 ... 1", "got 2"]),
        (["straight", "--step", "9", "--data", "nowhere"], ["nowhere", "manifest.json"]),
        (["straight", "--step", "9", "--tracking", "sqlite:///nowhere.db"], ["no tracking database", "nowhere.db"]),
    ],
)
def test_bad_input_is_one_line(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert cdrl("replay", "--root", str(run.root), *arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert [word for word in words if word not in line] == []


def test_other_data_are_refused(run: Run, tmp_path: Path) -> None:
    prepare("digits", str(tmp_path / "other"), Options(limit=50, holdout=0))
    with pytest.raises(ConfigError, match=r"trained on other data: expected manifest .*, .*other has .*--data"):
        replay(run.record, 8, start_before(run.record, 8), uri=str(tmp_path / "other"))
