"""Champions that come and go, against a real MLflow store: expected ones, races, tampering, the way back."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cdrl.cli import groups
from cdrl.cli.registry import app
from cdrl.errors import ConfigError, GateFailed, RegistryError, TrackingError
from cdrl.model import Model
from cdrl.registry.history import Overtaken
from cdrl.registry.promote import promote, rollback
from cdrl.registry.proof import FOLDER
from cdrl.registry.versions import Registry
from cdrl.tracking.server import default_uri
from tests.registry_parts import checkpoint, make_run, score
from tests.web import answering


@pytest.fixture
def registry(run_root: Path) -> Registry:
    return Registry(default_uri(run_root))


def version(registry: Registry, run_root: Path, *, frechet: float = 0.5, **settings: object) -> int:
    """The number of a new version, of a run of its own."""
    record = make_run(run_root, **{"seed": len(registry.versions("tiny")), **settings})
    score(record, frechet)
    return registry.register(record.run_id, root=str(run_root)).number


def champion(registry: Registry) -> int | None:
    told = (registry.aliases("tiny") or {}).get("champion")
    return None if told is None else int(told)


def test_every_move_is_kept_and_can_be_taken_back(run_root: Path, registry: Registry) -> None:
    numbers = [version(registry, run_root, frechet=frechet) for frechet in (0.5, 0.4, 0.3)]
    for number in numbers:
        promote(registry, "tiny", str(number), reason="looks good" if number == 2 else "")
    assert rollback(registry, "tiny", reason="sevens look like ones").aliases == ("champion",)
    assert champion(registry) == 2
    assert rollback(registry, "tiny").number == champion(registry) == 1
    with pytest.raises(RegistryError, match="version 1 was the first champion; there is nothing to go back to"):
        rollback(registry, "tiny")
    promote(registry, "tiny", "3")
    entries = registry.history("tiny").read().entries
    told = [(entry.action, entry.before, entry.champion) for entry in entries]
    promoted = [("promote", None, 1), ("promote", 1, 2), ("promote", 2, 3)]
    assert told == [("found", None, None), *promoted, ("rollback", 3, 2), ("rollback", 2, 1), ("promote", 1, 3)]
    assert entries[2].why[-1] == "looks good" and entries[4].why == ("back from version 3", "sevens look like ones")
    third = registry.find("tiny/3")
    assert (entries[3].model_digest, entries[3].proof_digest) == (third.model_digest, third.proof_digest)
    assert entries[3].scorecard_digest == third.scorecard_digest and len(third.scorecard_digest) == 64
    assert entries[3].gates["margin"] == 0


def test_promote_expects_the_champion_that_it_was_told(run_root: Path, registry: Registry) -> None:
    first, second = version(registry, run_root), version(registry, run_root)
    promote(registry, "tiny", str(first), expected=0)
    with pytest.raises(Overtaken, match="expected version none to be champion, it is 1; nothing was changed"):
        promote(registry, "tiny", str(second), expected=0)
    assert champion(registry) == first
    promote(registry, "tiny", str(second), expected=first)
    assert champion(registry) == second


def test_a_promotion_that_broke_off_is_finished_by_the_next(run_root: Path, registry: Registry) -> None:
    for _ in range(3):
        version(registry, run_root)
    promote(registry, "tiny", "1")
    history = registry.history("tiny")
    history.append(history.read(), action="promote", champion=2)  # and then the process died
    assert champion(registry) == 1
    promote(registry, "tiny", "2")
    assert champion(registry) == 2 and history.read().head.number == 2
    history.append(history.read(), action="promote", champion=1)
    promote(registry, "tiny", "3")
    assert champion(registry) == 3 and history.read().head.before == 1


def test_a_package_that_was_changed_after_it_was_scored_is_refused(run_root: Path, registry: Registry) -> None:
    numbers = [version(registry, run_root) for _ in range(2)]
    promote(registry, "tiny", "1")
    for number, name in zip(numbers, ("scorecard.json", "extra.pkl"), strict=True):
        file = Path(registry.find(f"tiny/{number}").files) / FOLDER / name
        file.write_text(file.read_text().replace("0.5", "0.1") if file.exists() else "")
    with pytest.raises(GateFailed, match="does not prove what it is: .*does not know extra.pkl"):
        promote(registry, "tiny", "2")
    assert champion(registry) == 1 and registry.find("tiny/2").gate.startswith("refused: its package")
    with pytest.raises(RegistryError, match="does not know extra.pkl"):
        registry.load("tiny/2")
    version(registry, run_root, frechet=0.2)
    promote(registry, "tiny", "3")
    with pytest.raises(RegistryError, match="scorecard.json: changed after the package was made"):
        rollback(registry, "tiny")
    registry.client.set_model_version_tag("tiny", "1", "cdrl.proof_digest", "ab" * 32)
    with pytest.raises(RegistryError, match="promoted with the proof .*, the server tells of abababababab now"):
        rollback(registry, "tiny")
    assert champion(registry) == 3 and registry.history("tiny").read().head.number == 2


def test_a_score_card_that_was_changed_on_the_server_is_refused(run_root: Path, registry: Registry) -> None:
    version(registry, run_root, frechet=0.5)
    version(registry, run_root, frechet=0.6)
    promote(registry, "tiny", "1")
    better = registry.client.get_model_version("tiny", "2").tags["cdrl.scorecard"].replace("0.6", "0.1")
    registry.client.set_model_version_tag("tiny", "2", "cdrl.scorecard", better)
    with pytest.raises(GateFailed, match="the server's tags tell of the score card .*, its package holds .*; refused"):
        promote(registry, "tiny", "2")
    registry.client.set_model_version_tag("tiny", "1", "cdrl.scorecard", better)
    version(registry, run_root, frechet=0.3)
    with pytest.raises(GateFailed, match="score card of the champion, version 1, was changed after it was promoted"):
        promote(registry, "tiny", "3")


def test_a_champion_that_was_deleted_is_said(run_root: Path, registry: Registry) -> None:
    version(registry, run_root)
    version(registry, run_root)
    promote(registry, "tiny", "1")
    promote(registry, "tiny", "2")
    registry.client.delete_model_version("tiny", "1")
    with pytest.raises(RegistryError, match="no version 'tiny/1' at .*versions: 2@champion"):
        rollback(registry, "tiny")
    version(registry, run_root, frechet=0.9)
    registry.client.delete_model_version("tiny", "2")
    assert champion(registry) is None
    _, decision = promote(registry, "tiny", "latest")
    assert decision.reasons[-1] == "version 2, the champion so far, was deleted from the server"
    assert champion(registry) == 3 and registry.history("tiny").read().head.before == 2


def test_a_model_of_an_older_cdrl_gets_history_and_proof_when_it_is_registered_again(
    run_root: Path, registry: Registry
) -> None:
    version(registry, run_root)
    registry.client.set_registered_model_alias("tiny", "champion", "1")
    registry.client.delete_registered_model_tag("tiny", "cdrl.history")
    registry.client.delete_model_version_tag("tiny", "1", "cdrl.proof_digest")
    with pytest.raises(RegistryError, match="no history yet; register a run of it again"):
        promote(registry, "tiny", "1")
    record = make_run(run_root, seed=0)
    again = registry.register(record.run_id, root=str(run_root))
    assert again.number == 2 and again.proof_digest
    assert registry.history("tiny").read().head.champion == 1
    promote(registry, "tiny", "2")
    assert champion(registry) == 2
    assert rollback(registry, "tiny").number == 1


def test_the_gates_are_those_of_the_candidates_configuration(run_root: Path, registry: Registry) -> None:
    version(registry, run_root, frechet=0.5)
    version(registry, run_root, frechet=0.52, settings={"gates": {"margin": 0.05}})
    promote(registry, "tiny", "1")
    with pytest.raises(GateFailed, match="is worse than"):
        promote(registry, "tiny", "2", overrides=["gates.margin=0"])
    with pytest.raises(ConfigError, match="gates.margni: unknown setting; did you mean 'margin'"):
        promote(registry, "tiny", "2", overrides=["gates.margni=1"])
    promote(registry, "tiny", "2")
    assert registry.history("tiny").read().head.gates["margin"] == 0.05


def test_where_the_history_lies(run_root: Path, registry: Registry, tmp_path: Path) -> None:
    version(registry, run_root)
    assert Path(registry.history("tiny").uri).parent == run_root / "registry"
    record = make_run(run_root, settings={"name": "other", "gates": {"history": str(tmp_path / "elsewhere")}})
    registry.register(record.run_id, root=str(run_root))
    assert Path(registry.history("other").uri).parent == tmp_path / "elsewhere"
    registry.client.set_registered_model_tag("other", "cdrl.history", "relative/folder")
    with pytest.raises(RegistryError, match="expected an absolute path or s3://, got 'relative/folder'"):
        registry.history("other")
    with pytest.raises(RegistryError, match="no model 'nobody' at .*registered there: other, tiny"):
        registry.history("nobody")


def test_a_version_loads_by_its_name(run_root: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    import cdrl

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record = make_run(run_root)
    registry.register(record.run_id, root=str(run_root))
    expected = Model.load(checkpoint(record)).digest
    for ref in ("models:/tiny/1", record.run_id, str(record.directory), str(checkpoint(record))):
        assert cdrl.load(ref, root=str(run_root)).digest == expected
    assert cdrl.load("models:/tiny/latest", tracking=registry.uri).digest == expected
    with pytest.raises(RegistryError, match="no version 'models:/tiny/9'"):
        cdrl.load("models:/tiny/9", root=str(run_root))


def test_the_commands_tell_the_story(run_root: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "220")

    def told(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--root", str(run_root)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    version(registry, run_root, frechet=0.5)
    version(registry, run_root, frechet=0.52)
    told("promote", "tiny", "1", "--expect", "0", "--why", "the first")
    assert "tiny version 2 is champion" in told("promote", "tiny", "2", "--set", "gates.margin=0.1")
    assert told("rollback", "tiny", "--why", "too slow [on old machines]") == "tiny version 1 is champion again\n"
    lines = told("history", "tiny").splitlines()
    assert [line.split()[:4] for line in lines[1:5]] == [
        ["0", "found", "-", "-"],
        ["1", "promote", "1", "-"],
        ["2", "promote", "2", "1"],
        ["3", "rollback", "1", "2"],
    ]
    assert lines[6] == "1: first champion, FD (digits-cnn) 0.5000; the first"
    assert lines[8] == "3: back from version 2; too slow [on old machines]"
    assert lines[9].startswith("4 entries, chain whole: ")
    assert "every file is what the proof says" in told("verify", "tiny@champion")


@pytest.mark.parametrize(
    "status, body, message",
    [(500, b"oops", "HTTP status 500"), (200, b"<html>Welcome</html>", "another program than MLflow listens there")],
)
@pytest.mark.parametrize("command", ["registry promote tiny 1", "registry verify tiny/1", "serve tiny@champion"])
def test_a_server_that_is_none_is_one_clear_line(status: int, body: bytes, message: str, command: str) -> None:
    whole = typer.Typer()
    groups.attach(whole)
    with answering(status, body) as uri, pytest.raises(TrackingError, match=f"{uri}.*{message}"):
        CliRunner().invoke(whole, [*command.split(), "--tracking", uri], catch_exceptions=False)
