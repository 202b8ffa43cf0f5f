"""The registry against a real MLflow store: what a version holds, how it loads, and who becomes champion."""

import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner

from cdrl.cli.registry import app
from cdrl.errors import ConfigError, GateFailed, RegistryError, TrackingError
from cdrl.model import Model
from cdrl.pictures import to_uint8
from cdrl.registry.gates import decide
from cdrl.registry.promote import promote
from cdrl.registry.versions import Registry
from cdrl.tracking.server import default_uri
from tests.registry_parts import card, checkpoint, make_run, score


@pytest.fixture
def registry(run_root: Path) -> Registry:
    return Registry(default_uri(run_root))


def test_a_version_is_the_checkpoint_its_score_and_nothing_pickled(run_root: Path, registry: Registry) -> None:
    record = make_run(run_root)
    model = Model.load(checkpoint(record))
    measured = score(record, 0.5)
    version = registry.register(record.run_id, root=str(run_root))
    assert (version.name, version.number, version.run_id) == ("tiny", 1, record.run_id)
    assert version.model_digest == model.digest and version.scorecard == measured
    files = {path.name for path in Path(version.files).rglob("*") if path.is_file()}
    assert {"model.json", "pair-00.safetensors", "scorecard.json", "pyfunc_model.py"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".pyc"))]
    assert "state.safetensors" not in files  # a checkpoint's optimizer state is not part of the model
    again = registry.load("models:/tiny/1")
    assert again.digest == model.digest
    assert torch.equal(again.sample(3, labels=1, seed=4), model.sample(3, labels=1, seed=4))


def test_a_run_that_no_server_knows_is_synced_first(run_root: Path, registry: Registry) -> None:
    record = make_run(run_root)
    record.mlflow_run_id = ""
    record.write(str(run_root))
    with pytest.raises(RegistryError, match=f"has heard of it yet; `cdrl track sync {record.run_id}` tells it"):
        registry.register(record.run_id, root=str(run_root))


def test_the_same_weights_and_scores_are_registered_once(run_root: Path, registry: Registry) -> None:
    record = make_run(run_root)
    first = registry.register(record.run_id, root=str(run_root))
    assert first.scorecard is None
    assert registry.register(record.run_id, root=str(run_root)) == first
    score(record, 0.5)
    scored = registry.register(record.run_id, root=str(run_root))
    assert scored.number == 2 and registry.register(str(record.directory)) == scored
    score(record, 0.5)  # measured again at another time: the same figures
    assert registry.register(record.run_id, root=str(run_root)) == scored
    score(record, 0.5, num_generated=20)
    assert registry.register(record.run_id, root=str(run_root)).number == 3
    assert [version.number for version in registry.versions("tiny")] == [1, 2, 3]


def test_a_score_of_other_weights_is_not_taken(run_root: Path, registry: Registry) -> None:
    record = make_run(run_root)
    score(record, 0.5)
    checkpoint(record, step=20, seed=1)
    assert registry.register(record.run_id, which="last", root=str(run_root)).scorecard is None


def test_only_a_score_no_worse_under_the_same_protocol_becomes_champion(run_root: Path, registry: Registry) -> None:
    def version(seed: int, frechet: float, **protocol: int) -> str:
        record = make_run(run_root, seed=seed)
        score(record, frechet, **protocol)
        return str(registry.register(record.run_id, root=str(run_root)).number)

    def champion() -> int:
        return registry.find("tiny@champion").number

    with pytest.raises(RegistryError, match="no model 'tiny' at .*registered there: none"):
        champion()
    first = version(0, 0.5)
    with pytest.raises(RegistryError, match="no version 'tiny@champion'.*versions: 1"):
        champion()
    promote(registry, "tiny", first)
    assert champion() == 1
    worse = version(1, 0.6)
    with pytest.raises(GateFailed, match="version 2 was not promoted: .*0.6000 is worse than the champion's 0.5000"):
        promote(registry, "tiny", worse)
    assert champion() == 1 and registry.find("tiny/2").gate.startswith("refused: ")
    other = version(2, 0.1, num_generated=99)
    with pytest.raises(GateFailed, match="cannot be compared.*num_generated: 99 against 10"):
        promote(registry, "tiny", other)
    equal = version(3, 0.5)
    assert registry.find(f"tiny/{registry.find('tiny/latest').run_id}").number == int(equal)  # by the run's name
    promoted, decision = promote(registry, "tiny", "latest")
    assert promoted.number == champion() == int(equal) and promoted.aliases == ("champion",)
    assert decision.passed and promoted.gate.startswith("passed: ")
    assert promote(registry, "tiny", equal)[0].number == champion()
    registry.register(make_run(run_root, seed=4).run_id, root=str(run_root))
    with pytest.raises(GateFailed, match="no readable score card"):
        promote(registry, "tiny", "latest")
    registry.client.set_registered_model_alias("tiny", "champion", "5")
    with pytest.raises(RegistryError, match="stands at version 5, but the history knows version 4: somebody moved it"):
        promote(registry, "tiny", "1")
    assert promote(registry, "tiny", "4")[0].aliases == ("champion",)  # as the message advises


def test_a_version_draws_the_pictures_that_its_model_draws(
    run_root: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_run(run_root)
    score(record, 0.5)
    registry.register(record.run_id, root=str(run_root))
    promote(registry, "tiny", "latest")
    model = Model.load(checkpoint(record))
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow puts the version's code on it
    served = mlflow.pyfunc.load_model("models:/tiny@champion")

    request = pd.DataFrame({"n": [2, 3], "label": ["b", ""]})
    images = served.predict(request, params={"seed": 7, "guidance": 0.5})
    assert images.dtype == np.uint8 and images.shape == (5, 1, 8, 8)
    guided = model.config.sampling.model_copy(update={"guidance": 0.5})
    expected = model.sample(5, labels=torch.tensor([2, 2, 0, 0, 0]), seed=7, sampling=guided)
    assert np.array_equal(images, to_uint8(expected).numpy())
    plain = served.predict(pd.DataFrame({"n": [4]}))
    assert np.array_equal(plain, to_uint8(model.sample(4, seed=0)).numpy())

    for bad, params, message in [
        ({"n": [1], "label": ["z"]}, {}, "label 'z'.*a, b"),
        ({"n": [0]}, {}, "n: expected at least 1 image, got 0"),
        ({"n": [1]}, {"seed": -1}, "seed: expected >= 0, got -1"),
        ({"label": ["a"]}, {}, "missing inputs.*n"),
    ]:
        with pytest.raises(MlflowException, match=message):
            served.predict(pd.DataFrame(bad), params=params)


def test_an_unconditional_model_refuses_guidance_and_labels(
    run_root: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_run(run_root, num_classes=0)
    registry.register(record.run_id, root=str(run_root))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    monkeypatch.setattr(sys, "path", list(sys.path))
    served = mlflow.pyfunc.load_model("models:/tiny/1")
    assert served.predict(pd.DataFrame({"n": [1]})).shape == (1, 1, 8, 8)
    with pytest.raises(MlflowException, match="guidance"):
        served.predict(pd.DataFrame({"n": [1]}), params={"guidance": 1.0})
    with pytest.raises(MlflowException, match="classes are: none"):
        served.predict(pd.DataFrame({"n": [1], "label": ["a"]}))


def test_a_damaged_checkpoint_and_a_foreign_run_are_refused(run_root: Path, registry: Registry) -> None:
    record = make_run(run_root)
    stranger = record.model_copy(update={"mlflow_run_id": "feedbeef" * 4})
    stranger.write(str(run_root))
    with pytest.raises(RegistryError, match="feedbeef.*not found"):
        registry.register(record.run_id, root=str(run_root))
    score(record, 0.5)
    latest = next((record.directory / "evaluation").glob("score-*.json"))
    for content in (latest.read_bytes()[:-9], b"\xd5\xff"):
        latest.write_bytes(content)
        with pytest.raises(RegistryError, match="score-.*not a readable score card"):
            registry.register(record.run_id, root=str(run_root))
    latest.write_text('{"scores": {"frechet": 0.1}}')
    with pytest.raises(RegistryError, match="score-.*: protocol: Field required; run `cdrl evaluate` again"):
        registry.register(record.run_id, root=str(run_root))
    file = checkpoint(record) / "pair-00.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(RegistryError, match="pair-00.safetensors: damaged"):
        registry.register(record.run_id, root=str(run_root))
    with pytest.raises(ConfigError, match="no such run"):
        registry.register("nobody", root=str(run_root))
    assert registry.names() == []


@pytest.mark.parametrize("reference", ["tiny", "tiny/", "runs:/tiny/1", "a/b/1"])
def test_a_reference_that_is_none_is_explained(registry: Registry, reference: str) -> None:
    with pytest.raises(RegistryError, match="expected NAME/3, NAME/latest, NAME/RUN or NAME@champion"):
        registry.find(reference)


@pytest.mark.parametrize("frechet", [float("nan"), float("inf"), None])
def test_a_score_that_is_no_number_never_wins(run_root: Path, frechet: float | None) -> None:
    model = Model.load(checkpoint(make_run(run_root)))
    good = card(model, 0.5)
    bad = good.model_copy(update={"scores": good.scores | {"frechet": frechet}})
    assert not decide(bad, None).passed and not decide(bad, good).passed
    assert decide(good, bad).passed
    assert not decide(None, None).passed and "cdrl evaluate" in decide(None, None).reasons[0]


def test_the_command_line_tells_the_story(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def cdrl(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--root", str(run_root)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    record = make_run(run_root)
    score(record, 0.5)
    assert cdrl("list").split() == ["model", "versions", "champion"]
    assert "tiny version 1: FD (digits-cnn) 0.5000" in cdrl("register", record.run_id)
    assert "tiny version 1 is champion: first champion, FD (digits-cnn) 0.5000" in cdrl("promote", "tiny", "latest")
    shown = cdrl("show", "tiny").splitlines()
    assert shown[1].split()[:5] == ["1", "champion", "0.5000", "1.0000", "0.0100"] and record.run_id in shown[1]
    assert shown[2].startswith("FD (digits-cnn): 10 generated against 100 real")
    assert shown[3].startswith("version 1 passed")
    assert cdrl("list").splitlines()[1].split() == ["tiny", "1", "1"]
    for arguments, message in [
        (["show", "nobody"], "no model 'nobody'.*registered there: tiny"),
        (["promote", "tiny", "7"], "no version 'tiny/7'.*versions: 1@champion"),
        (["promote", "tiny", "first"], "no version 'tiny/first'"),
    ]:
        with pytest.raises(RegistryError, match=message):
            cdrl(*arguments)
    with pytest.raises(TrackingError, match="no tracking database at .*/none/mlflow.db"):
        CliRunner().invoke(app, ["show", "tiny", "--root", str(run_root / "none")], catch_exceptions=False)
    assert not (run_root / "none").exists()
