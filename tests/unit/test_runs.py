"""How a reference finds a run, a checkpoint and a model."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cdrl.errors import ConfigError
from cdrl.model import Model, build_ladder
from cdrl.runs import Checkpoint, RunRecord, absolute, fetch_model, step_folder
from tests.training_parts import ATTEMPT, tiny_config


def record(root: Path, run_id: str, **settings: Any) -> RunRecord:
    config = tiny_config("data.num_classes=2", run={"root": str(root), "name": run_id, **settings})
    made = RunRecord(
        run_id=run_id,
        config=config,
        manifest_digest="ab" * 32,
        class_names=("a", "b"),
        tracking_uri="sqlite:///x.db",
        mlflow_run_id="c0ffee",
    )
    made.write(str(root))
    return made


def checkpoint(run: RunRecord, step: int, score: float | None = None) -> Path:
    """A whole checkpoint with a real model beside stand-ins for the rest."""
    folder = Path(run.checkpoint_uri) / step_folder(step, ATTEMPT)
    folder.mkdir(parents=True)
    torch.manual_seed(step)
    Model(run.config, build_ladder(run.config), run.class_names, run.manifest_digest, step).write(folder)
    files = dict.fromkeys(("model.json", "pair-00.safetensors"), "0" * 64)
    state = Checkpoint(step=step, score=score, identity="x", manifest_digest=run.manifest_digest, files=files)
    (folder / "state.json").write_bytes(state.sealed())
    return folder


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = record(tmp_path, "one")
    assert written.directory == tmp_path / "one"
    assert sorted(path.name for path in written.directory.iterdir()) == ["run.json"]
    for ref in ("one", str(tmp_path / "one")):
        again = RunRecord.read(ref, str(tmp_path))
        assert again == written and again.directory == written.directory
    assert RunRecord.find("one", str(tmp_path)) == written
    assert RunRecord.find("on", str(tmp_path)) is None


def test_a_run_is_found_by_id_name_and_prefix(tmp_path: Path) -> None:
    root = str(tmp_path)
    ids = ["digits-12345678", "digits-per-level-aaaaaaaa", "toy", "toy-2", "cifar10-00000001", "cifar10-00000002"]
    for run_id in ids:
        record(tmp_path, run_id)
    found = {ref: RunRecord.read(ref, root).run_id for ref in (*ids, "digits", "digits-p", "digits-1", "toy-")}
    assert all(found[run_id] == run_id for run_id in ids)
    assert found["digits"] == "digits-12345678"  # the name with a single run, though another begins like it
    assert (found["digits-p"], found["digits-1"], found["toy-"]) == (ids[1], ids[0], "toy-2")
    for ref in ("cifar10", "cifar", "digit"):
        with pytest.raises(ConfigError, match=f"run '{ref}': several runs match below .*; runs: [a-z0-9-]+, "):
            RunRecord.read(ref, root)
    with pytest.raises(ConfigError, match="run 'mnist': no such run below .*; runs: cifar10-00000001, "):
        RunRecord.read("mnist", root)
    with pytest.raises(ConfigError, match="no such run below .*; runs: none"):
        RunRecord.read("toy", str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigError, match="no such run"):
        RunRecord.read(".*", root)  # a reference is no pattern


@pytest.mark.parametrize("text", ["", "{}", '{"run_id": "one"}', "no JSON"])
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    (record(tmp_path, "one").directory / "run.json").write_text(text)
    with pytest.raises(ConfigError, match="run.json: not a readable run record") as caught:
        RunRecord.read("one", str(tmp_path))
    assert "\n" not in str(caught.value)


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    run = record(tmp_path, "one")
    assert run.checkpoints() == {}
    with pytest.raises(ConfigError, match="run one: no checkpoint yet below"):
        run.checkpoint("last")
    whole = [checkpoint(run, step) for step in (10, 2, 100)]
    for step, missing in ((200, "model.json"), (300, "pair-00.safetensors"), (400, "state.json")):
        (checkpoint(run, step) / missing).unlink()
    broken_off = checkpoint(run, 500) / "state.json"
    broken_off.write_bytes(broken_off.read_bytes()[:-20])
    os.rename(checkpoint(run, 600), run.directory / "step_600")
    (run.directory / "evaluation").mkdir()
    (run.directory / "evaluation" / "state.json").write_text("{}")
    assert [(Path(uri), state.step) for uri, state in run.checkpoints().items()] == [
        (whole[1], 2),
        (whole[0], 10),
        (whole[2], 100),
    ]
    assert run.checkpoint("last") == run.checkpoint("best") == str(whole[2])


def test_the_best_checkpoint_has_the_lowest_score(tmp_path: Path) -> None:
    run = record(tmp_path, "one")
    folders = {step: str(checkpoint(run, step, score)) for step, score in ((1, None), (2, 3.0), (3, 0.5), (4, 0.7))}
    assert run.checkpoint("best") == folders[3]
    assert run.checkpoint("last") == folders[4]
    assert fetch_model("one", root=str(tmp_path)) == Path(folders[3])
    assert fetch_model("one", "last", root=str(tmp_path)) == Path(folders[4])
    assert Model.load(fetch_model("one", root=str(tmp_path))).step == 3


def test_checkpoints_may_lie_elsewhere(tmp_path: Path) -> None:
    run = record(tmp_path / "runs", "one", storage=str(tmp_path / "elsewhere"))
    assert run.checkpoint_uri == str(tmp_path / "elsewhere" / "one")
    folder = checkpoint(run, 1)
    assert run.checkpoint("last") == str(folder)
    assert fetch_model("one", root=str(tmp_path / "runs")) == folder
    assert record(tmp_path, "two", storage="s3://bucket/runs").checkpoint_uri == "s3://bucket/runs/two"


def test_a_folder_with_a_model_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = checkpoint(record(tmp_path, "one"), 1)
    assert fetch_model(str(folder)) == fetch_model(f"file://{folder}") == folder
    with pytest.raises(ConfigError, match="no such run"):
        fetch_model(str(tmp_path / "nothing"), root=str(tmp_path))


def test_local_folders_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = absolute(tiny_config("run.root=here", "run.storage=s3://bucket/there", "data.uri=file:///data"))
    assert (config.run.root, config.run.storage) == (str(tmp_path / "here"), "s3://bucket/there")
    assert config.data.uri == "/data" and config.data.cache is None
    assert config.identity_digest == tiny_config().identity_digest
