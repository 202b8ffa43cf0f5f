"""The search of sampling settings: closed forms of the choice, and real searches with a tiny untrained model."""

import _thread
import json
import shlex
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from PIL import Image

from cdrl.cli.sampling import sampling_of
from cdrl.cli.tune_sampling import tune_sampling
from cdrl.config import Config, SamplingConfig
from cdrl.config.resolve import override
from cdrl.errors import ConfigError
from cdrl.evaluation.protocol import Protocol
from cdrl.runs import RunRecord
from cdrl.tuning.sampling import FOLDER, Search, Searched, sampling_search
from cdrl.tuning.sampling_candidate import Book, Candidate, Difference, cheaper_and_as_good, pareto_front
from cdrl.tuning.sampling_card import SearchCard
from cdrl.tuning.sampling_result import commands
from cdrl.tuning.sampling_space import SamplingSpace, plainest, read_space
from cdrl.tuning.sampling_start import starting_points, usual_space
from tests.commands import parse
from tests.evaluation_parts import digits, tiny_config, tiny_run

OWN = SamplingConfig(num_steps=8)
SPACE = {"num_steps": {"choices": [0, 1, 2, 4], "per_level": True}, "step_multiplier": {"low": 0.5, "high": 4}}
NUM_IMAGES, NUM_CONFIRMING = 40, 48


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def record(root: Path) -> RunRecord:
    config = tiny_config(digits(root / "digits"), root)
    return tiny_run(override(config, ["sampling.num_steps=2", f"run.root={root / 'runs'}"]))


@pytest.fixture(scope="module")
def searched(record: RunRecord) -> Searched:
    """One search; the others below find most of their settings scored."""
    return sampling_search(record, search_of(record))


@pytest.fixture
def fresh(record: RunRecord, tmp_path: Path) -> RunRecord:
    """A copy of the run without a search."""
    shutil.copytree(record.directory, tmp_path / "run", ignore=shutil.ignore_patterns(FOLDER))
    return RunRecord.read(str(tmp_path / "run"))


def search_of(record: RunRecord, space: Any = None, num_proposals: int = 2) -> Search:
    given = usual_space(record.config) if space is None else SamplingSpace.model_validate(space)
    return Search(record.config, given, num_proposals, NUM_IMAGES, NUM_CONFIRMING)


def found_by(searched: Searched) -> list[tuple[Any, ...]]:
    """Everything but the times."""
    return [(each.sampling, each.gradients, each.scores, each.deviations) for each in searched.candidates]


def candidate(gradients: int, frechet: float, deviations: tuple[float, ...] = (), **sampling: Any) -> Candidate:
    protocol = Protocol(
        metric="FD (x)",
        extractor="x",
        extractor_digest="x",
        judge_digest=None,
        judge_accuracy=None,
        manifest_digest="x",
        num_reference=9,
        num_generated=9,
        neighbours=3,
        max_neighbour_rows=9,
        labels="none",
        sampling=SamplingConfig(**sampling),
        seed=1,
    )
    scores: Any = {"frechet": frechet}
    return Candidate(
        protocol=protocol, model_digest="x", gradients=gradients, seconds=1.0, scores=scores, deviations=deviations
    )


def test_what_luck_does_to_both_is_no_part_of_the_error() -> None:
    """Deviations a + b and a: the error of the difference is the standard deviation of b alone."""
    shared, apart = (5.0, -3.0, 1.0, -3.0), (0.1, -0.1, 0.1, -0.1)
    own = candidate(49, 0.5, shared)
    other = candidate(13, 0.6, tuple(a + b for a, b in zip(shared, apart, strict=True)))
    found = Difference.of(other, own)
    assert found is not None
    assert (found.value, found.error) == (pytest.approx(0.1), pytest.approx((4 * 0.01 / 3) ** 0.5))
    assert found.is_within
    assert Difference.of(own, own) == Difference(value=0.0, error=0.0)
    assert Difference.of(other.model_copy(update={"failure": "not finite", "scores": {}}), own) is None


def test_the_choice_is_the_cheapest_within_the_error_bar() -> None:
    """The errors are 1 each: one setting is too bad, one as dear as the run's own, two are good."""
    own = candidate(49, 10.0, (0.0, 0.0, 0.0))
    bars = (1.0, -1.0, 0.0)
    bad, good, better = candidate(7, 11.01, bars), candidate(13, 10.99, bars), candidate(25, 9.0, bars)
    dear = candidate(49, 8.0, bars)
    assert cheaper_and_as_good([own, better, dear, bad, good], own) == [good, better]
    assert cheaper_and_as_good([own, bad, dear], own) == []
    assert cheaper_and_as_good([good, candidate(25, 10.99, bars)], own) == [good]  # why pay more


def test_the_front_holds_what_no_other_beats() -> None:
    a, b, c, d = candidate(1, 9.0), candidate(5, 9.5), candidate(5, 3.0), candidate(9, 2.0)
    failed = Candidate(protocol=a.protocol, model_digest="x", gradients=0, failure="not finite")
    assert pareto_front([d, failed, c, b, a, candidate(20, 2.0)]) == [a, c, d]


def test_a_setting_is_said_as_briefly_as_it_can_be() -> None:
    long = SamplingConfig(num_steps=(0, 0), step_multiplier=(2.0, 3.0), guidance=(1.0, 1.0))
    assert plainest(long, 2) == SamplingConfig(num_steps=0, guidance=1.0)
    mixed = SamplingConfig(num_steps=(2, 0), step_multiplier=(3.0, 3.0))
    assert plainest(mixed, 2) == SamplingConfig(num_steps=(2, 0), step_multiplier=(3.0, 1.0))


def test_the_space_and_its_reverse() -> None:
    space = SamplingSpace.model_validate(SPACE | {"denoise_scale": [2, 0]})
    assert set(space.distributions(2)) == {"num_steps.0", "num_steps.1", "step_multiplier", "denoise_scale"}
    params = {"num_steps.0": 3, "num_steps.1": 1, "step_multiplier": 1.23456, "denoise_scale": 0}
    sampling = space.sampling(params, OWN, 2)
    assert sampling == SamplingConfig(num_steps=(4, 1), step_multiplier=1.23, denoise_scale=0.0)
    assert space.params(sampling, OWN, 2) == params | {"step_multiplier": 1.23}
    for outside in ({"num_steps": 8}, {"step_multiplier": 5.0}, {"step_multiplier": (1.0, 2.0)}, {"guidance": 1.0}):
        assert space.params(sampling.model_copy(update=outside), OWN, 2) is None


def test_a_search_begins_with_the_runs_own_the_curve_of_steps_and_steps_that_make_up(record: RunRecord) -> None:
    six = override(record.config, ["sampling.num_steps=8", "schedule.num_levels=6"])
    found = starting_points(OWN, usual_space(six), 6)
    assert [(each.num_steps, each.step_multiplier) for each in found] == [
        *((K, 1.0) for K in (8, 0, 1, 2, 4)),
        *((1, 2.83), (2, 2.0), (4, 1.41)),
    ]
    alone = starting_points(OWN, SamplingSpace.model_validate({"num_steps": [3, 16]}), 6)
    assert [each.num_steps for each in alone] == [8, 0, 1, 2, 3, 4, 16]


def test_a_search_from_the_run_to_the_choice(searched: Searched, record: RunRecord) -> None:
    own, found = searched.candidates[0], searched
    assert own.sampling == record.config.sampling and own.protocol.seed == record.config.evaluation.seed
    assert {0, 1, 2} <= {each.sampling.num_steps for each in found.candidates}
    assert len(found.candidates) == len({each.protocol.digest for each in found.candidates}) == 4 + 2
    assert {each.protocol.num_generated for each in found.candidates} == {NUM_IMAGES}
    again = found.confirmed[0]
    assert (again.protocol.num_generated, again.protocol.seed) == (NUM_CONFIRMING, own.protocol.seed + 1)
    tried = [each.sampling for each in found.confirmed[1:]]
    assert tried == [each.sampling for each in cheaper_and_as_good(found.candidates, own)][: len(tried)]
    assert found.chosen == (found.confirmed[-1] if cheaper_and_as_good(found.confirmed[-1:], again) else None)


def test_the_command_writes_ranking_picture_and_a_setting_that_other_commands_take(
    searched: Searched, record: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    """K = 0 is as good as any K of an untrained model, within an error bar that tells of few images."""
    tune_sampling(str(record.directory), candidates=2, samples=NUM_IMAGES, confirm=NUM_CONFIRMING)
    said = capsys.readouterr().out
    folder = record.directory / FOLDER
    card = SearchCard.model_validate_json((folder / "ranking.json").read_bytes())
    assert card.summary in said and card.own.candidate.protocol.describe() in said
    assert [row.is_within for row in card.rows] == sorted((row.is_within for row in card.rows), reverse=True)
    with Image.open(folder / "curve.png") as picture:
        assert picture.width >= 1000 and len(set(picture.convert("L").resize((64, 64)).getdata())) > 8
    assert card.chosen is not None and "faster" in card.summary
    best = yaml.safe_load((folder / "best.yaml").read_text())
    chosen = card.chosen.candidate.sampling
    assert override(record.config, [f"sampling={json.dumps(best['sampling'])}"]).sampling == chosen
    evaluate, sample = commands(record, chosen, "best")
    assert evaluate in said and sample in said
    assert override(record.config, parse(shlex.split(evaluate)[1:])["overrides"]).sampling == chosen
    given = parse(shlex.split(sample)[1:])
    names = ("steps", "step_multiplier", "denoise", "noise_scale", "guidance")
    assert sampling_of(record.config, **{name: given[name] for name in names}) == chosen
    journal = (record.directory / "journal.jsonl").read_text()
    assert "sampling_search/speedup" in journal and "sampling-search/curve.png" in journal


def test_an_interrupted_search_goes_on_as_if_nothing_had_been(fresh: RunRecord, searched: Searched) -> None:
    search, file = search_of(fresh), fresh.directory / FOLDER / "candidates.jsonl"

    def after(limit: int) -> Callable[[str, int, int], None]:
        def stop(what: str, done: int, total: int) -> None:
            if what == "settings" and done == limit:
                raise KeyboardInterrupt

        return stop

    for limit in (2, 5):  # among those that it begins with, and among those that are proposed
        with pytest.raises(KeyboardInterrupt):
            sampling_search(fresh, search, after(limit))
        assert len(file.read_text().splitlines()) == limit
    with file.open("a") as torn:
        torn.write('{"time": 1, "kind": "candi')  # a killed process was writing
    assert found_by(sampling_search(fresh, search)) == found_by(searched)
    lines = file.read_text().splitlines()  # one for every draw
    assert len(lines) == len(searched.candidates) + len(searched.confirmed)
    assert found_by(sampling_search(fresh, search)) == found_by(searched)
    assert file.read_text().splitlines() == lines


def test_settings_that_leave_the_finite_are_listed_with_their_cause(record: RunRecord) -> None:
    found = sampling_search(record, search_of(record, {"step_multiplier": [1, 1.0e+15]}, 1))
    failed = [each for each in found.candidates if each.failure]
    assert failed and all("not finite" in each.failure for each in failed)
    rows = SearchCard.of(record, search_of(record), found).rows
    assert rows[-1].candidate.failure and rows[-1].difference is None and not rows[-1].is_within


def test_a_space_that_is_used_up_ends_the_search(record: RunRecord) -> None:
    found = sampling_search(record, search_of(record, {"num_steps": [0, 2]}, 50))
    assert [each.sampling.num_steps for each in found.candidates] == [2, 0, 1]  # the run's own, and the curve


@pytest.fixture
def hears_control_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of pytest-xdist ignore it
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_control_c")
def test_control_c_is_one_line_and_the_book_is_whole(record: RunRecord, capsys: pytest.CaptureFixture[str]) -> None:
    timer = threading.Timer(1.5, _thread.interrupt_main)
    timer.start()
    with pytest.raises(typer.Exit) as caught:
        tune_sampling(str(record.directory), candidates=500, samples=NUM_IMAGES, confirm=NUM_CONFIRMING)
    assert caught.value.exit_code == 130
    assert capsys.readouterr().out.strip().endswith("the same command goes on, and what was scored is not drawn again")
    Book(record.directory / FOLDER)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run": "nobody"}, "run 'nobody': no such run"),
        ({"samples": 20}, "20 images at each setting: the Fréchet distance of 32 features needs more than 32"),
        ({"confirm": 40}, r"expected more images to confirm \(40\) than at each setting \(40\)"),
        ({"overrides": ["sampling.step_multiplier=[1,2,3]"]}, "sampling.step_multiplier has 3 values for 2 levels"),
        ({"overrides": ["sampling.guidance=[1]"]}, "sampling.guidance has 1 values for 2 levels"),
    ],
)
def test_bad_requests(record: RunRecord, root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tune_sampling(**({"run": str(record.directory), "samples": NUM_IMAGES, "root": str(root)} | options))


def test_a_run_without_a_checkpoint(record: RunRecord, tmp_path: Path) -> None:
    shutil.copy(record.directory / "run.json", tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint yet"):
        tune_sampling(str(tmp_path), samples=NUM_IMAGES)


def test_a_line_that_is_no_candidate(fresh: RunRecord) -> None:
    (fresh.directory / FOLDER).mkdir()
    (fresh.directory / FOLDER / "candidates.jsonl").write_text('{"time": 1, "kind": "candidate"}\n')
    with pytest.raises(ConfigError, match="candidates.jsonl, up to byte 33: expected a candidate; remove the line"):
        sampling_search(fresh, search_of(fresh))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_step: [1, 2]", "num_step: unknown parameter of sampling; did you mean 'num_steps'"),
        ("lr: [1, 2]", "lr: unknown parameter of sampling; known: num_steps, step_multiplier"),
        ("", "an empty space; give at least one of num_steps"),
        ("num_steps: [2]", "an empty space"),
        ("num_steps: []", "num_steps.choices: "),
        ("num_steps: 3", "num_steps: "),
        ("num_steps: {low: 1}", "num_steps: expected choices, or low and high"),
        ("num_steps: {low: 4, high: 1}", "num_steps: expected low <= high; got 4 and 1"),
        ("step_multiplier: {low: 0, high: 1, log: true}", "expected low <= high, low > 0; got 0 and 1"),
        ("step_multiplier: {low: 0, high: 1}", "step_multiplier: Input should be greater than 0, got 0"),
        ("num_steps: [-1, 2]", "num_steps: Input should be greater than or equal to 0, got -1"),
        ("num_steps: [0.5, 2]", "num_steps: Input should be a valid integer"),
        ("num_steps: {choices: [1, 2], low: 3}", "choices have no low, high or log"),
        ("denoise_scale: {choices: [0, 1], per_level: true}", "denoise_scale is one number, of level 0"),
        ("guidance: [0, 1]", "guidance: the model is unconditional"),
        ("[1, 2]", "expected settings with their values, got list"),
        ("a: b: c", "not a readable space: mapping values"),
        (None, "not a readable space: No such file"),
    ],
)
def test_bad_spaces(tmp_path: Path, text: str | None, message: str) -> None:
    path, config = tmp_path / "space.yaml", Config(name="x")
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match="space.yaml.*" + message.replace("(", r"\(")):
        read_space(path, config)
