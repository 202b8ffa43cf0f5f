"""`cdrl compare`: which cards, what is said of them, and what is refused."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from cdrl.cli import main
from cdrl.errors import ConfigError
from cdrl.evaluation.compare import Found, compare, find_card
from cdrl.evaluation.protocol import ScoreCard, Scores, figure
from tests.unit.test_evaluation_protocol import PROTOCOL, card

ERRORS: Scores = {"frechet": 0.1, "precision": 0.01, "recall": 0.02, "label_accuracy": None}


def written(folder: Path, name: str, frechet: float = 1.25, **changes: object) -> Found:
    """A card and its sheet, as `cdrl evaluate` leaves them."""
    base = card(model_digest=name.encode().hex().ljust(64, "0"))
    scores = base.scores | {"frechet": frechet}
    made = base.model_copy(update={"run_id": name, "scores": scores, "errors": ERRORS, **changes})
    path = folder / name / "latest.json"
    path.parent.mkdir(parents=True)
    path.write_text(made.model_dump_json())
    Image.new("RGB", (40, 20), "red").save(path.parent / "samples.png")
    return Found(name, made, path)


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["cdrl", "compare", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


@pytest.mark.parametrize(
    "frechet, verdict",
    [(1.0, "unclear"), (0.9, "B better"), (1.6, "A better"), (1.25, "unclear")],
)
def test_a_difference_counts_beyond_two_errors(tmp_path: Path, frechet: float, verdict: str) -> None:
    found = compare(written(tmp_path, "a"), written(tmp_path, "b", frechet))
    assert [each.name for each in found] == ["frechet", "precision", "recall"]
    assert found[0].error == pytest.approx(0.1 * 2**0.5) and found[0].verdict == verdict
    assert found[1].verdict == "unclear"


def test_higher_shares_are_better_and_old_cards_have_no_errors(tmp_path: Path) -> None:
    a = written(tmp_path, "a")
    better = written(tmp_path, "b", scores=a.card.scores | {"precision": 0.9})
    assert compare(a, better)[1].verdict == "B better"
    assert {each.verdict for each in compare(a, written(tmp_path, "old", errors={}))} == {"unknown"}


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, picture = written(tmp_path, "a"), written(tmp_path, "b", 2.0), tmp_path / "both.png"
    assert run_cli(monkeypatch, a.path, b.path, "--picture", picture) == 0
    told = capsys.readouterr().out
    for part in ("FD (digits-cnn)", "1.25 ± 0.10", "2.00 ± 0.10", "0.75 ± 0.14", "A better", PROTOCOL.digest[:8]):
        assert part in told
    assert Image.open(picture).width > 80


def test_another_protocol_is_refused_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = PROTOCOL.model_copy(update={"seed": 2, "num_generated": 50})
    a, b = written(tmp_path, "a"), written(tmp_path, "b", protocol=other)
    assert run_cli(monkeypatch, a.path, b.path) == 2
    out = capsys.readouterr()
    assert "num_generated: 4000 against 50; seed: 1 against 2" in out.err and out.err.count("\n") == 1 and not out.out


def test_what_is_no_score_card(tmp_path: Path) -> None:
    tree = card().model_dump(mode="json")
    del tree["protocol"]
    (tmp_path / "bare.json").write_text(ScoreCard.model_construct(**tree).model_dump_json(warnings=False))
    with pytest.raises(ConfigError, match="bare.json: not a score card: protocol: Field required"):
        find_card(str(tmp_path / "bare.json"))
    with pytest.raises(ConfigError, match="no such run"):
        find_card("nobody", str(tmp_path))


def test_a_sheet_of_a_later_evaluation_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = written(tmp_path, "a"), written(tmp_path, "b")
    named = b.path.with_name("score-1.json")
    named.write_text(b.card.model_copy(update={"step": 5}).model_dump_json())
    assert run_cli(monkeypatch, a.path, named, "--picture", tmp_path / "both.png") == 2
    assert "the sample sheet of this score card is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value, error, text",
    [(0.4713, 0.0213, "0.471 ± 0.021"), (312.4, 25, "312 ± 25"), (0.5, None, "0.500"), (None, None, "-")],
)
def test_a_figure_has_two_digits_of_its_error(value: float | None, error: float | None, text: str) -> None:
    assert figure(value, error) == text
