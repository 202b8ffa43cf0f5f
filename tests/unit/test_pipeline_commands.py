"""The commands that steps of a pipeline need beside those that people use: ask, report, freeze, close."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from cdrl.cli import groups
from cdrl.config import load
from cdrl.evaluation.evaluate import Evaluation
from cdrl.evaluation.run import FOLDER
from cdrl.registry.promote import ask, promote
from cdrl.registry.versions import Registry
from cdrl.tracking.server import default_uri
from tests.registry_parts import make_run, score


def cdrl(*arguments: object) -> Result:
    app = typer.Typer()
    groups.attach(app)
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def registry(run_root: Path) -> Registry:
    made = Registry(default_uri(run_root))
    for seed, frechet in enumerate((0.5, 0.9)):
        record = make_run(run_root, seed=seed)
        score(record, frechet)
        made.register(record.run_id, root=str(run_root))
    return made


@pytest.mark.parametrize(("version", "answer"), [("1", "passed"), ("2", "refused")])
def test_the_gates_are_asked_and_nothing_moves(
    run_root: Path, registry: Registry, version: str, answer: str, tmp_path: Path
) -> None:
    promote(registry, "tiny", "1")
    entries = len(registry.history("tiny").read().entries)
    place = tmp_path / "deep" / "decision"
    done = cdrl("registry", "gate", "tiny", version, "--root", run_root, "--tracking", "", "--decision", place)
    assert done.exit_code == 0 and f"version {version} {answer}: " in done.output
    assert place.read_text() == answer
    assert len(registry.history("tiny").read().entries) == entries
    assert registry.find("tiny@champion").number == 1


def test_the_answer_is_the_one_that_promote_acts_on(registry: Registry) -> None:
    promote(registry, "tiny", "2")
    version, decision = ask(registry, "tiny", "1")
    assert decision.passed and registry.find("tiny/1").gate.startswith("passed: ")
    promoted, same = promote(registry, "tiny", "1")
    assert (promoted.number, same.reasons) == (version.number, decision.reasons)


def test_a_report_is_handed_on(run_root: Path, tmp_path: Path) -> None:
    record = make_run(run_root)
    card = score(record, 0.5)
    Evaluation(card, {}).write(record.directory / FOLDER)
    page, scores = tmp_path / "a" / "page", tmp_path / "b" / "scores"
    done = cdrl("report", record.run_id, "--root", run_root, "--page", page, "--scores", scores)
    assert done.exit_code == 0 and "0.500" in done.output
    assert page.read_bytes() == (record.directory / FOLDER / "report.html").read_bytes()
    told = json.loads(scores.read_text())
    assert told["score/frechet"] == 0.5 and told["step"] == card.step
    assert all(isinstance(value, int | float) for value in told.values())


def test_a_run_without_a_score_card_has_no_report(run_root: Path) -> None:
    done = cdrl("report", make_run(run_root).run_id, "--root", run_root)
    assert "it has no score card yet" in str(done.exception)


def test_a_frozen_configuration_is_the_configuration(tmp_path: Path) -> None:
    place = tmp_path / "sweep" / "best.yaml"
    done = cdrl("config", "show", "digits", "--set", "training.seed=7", "--to", place)
    assert done.exit_code == 0
    assert load(str(place), []).digest == load("digits", ["training.seed=7"]).digest


def test_a_run_that_did_not_begin_is_closed_all_the_same(run_root: Path) -> None:
    assert "it did not begin" in cdrl("track", "sync", "absent", "--root", run_root, "--if-any").output
    assert "no such run" in str(cdrl("track", "sync", "absent", "--root", run_root).exception)


@pytest.mark.parametrize("arguments", [("models:/tiny@champion",), ("tiny", "--to", "folder")])
def test_a_version_goes_to_a_folder_and_a_run_does_not(arguments: tuple[str, ...]) -> None:
    assert "--to FOLDER goes with a version" in str(cdrl("evaluate", *arguments).exception)
