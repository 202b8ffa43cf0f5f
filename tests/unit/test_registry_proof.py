"""A package proves what it is: whatever is added, removed or changed is refused by its name, and nothing of it runs."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from typer.testing import CliRunner

import cdrl
from cdrl.cli.registry import app
from cdrl.errors import ConfigError, RegistryError
from cdrl.model import Model
from cdrl.registry import package, proof
from cdrl.registry.load import verified
from cdrl.registry.serve import serving
from tests.registry_parts import card, tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version's files in MLflow's layout."""
    root = tmp_path_factory.mktemp("saved")
    (root / "model").mkdir()
    model = tiny_model(root / "model")
    package.save(root / "model", model, card(model, 0.5), root / "version", run_id="tiny-1", which="best")
    return root / "version"


@pytest.fixture
def version(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(saved, tmp_path / "version")


def bomb(target: Path) -> bytes:
    """A pickle, written by hand, that makes a folder where it is read."""
    return f"cos\nmkdir\n(V{target}\ntR.".encode()


def test_the_proof_holds_every_digest(saved: Path) -> None:
    with verified(str(saved)) as (folder, proven):
        assert folder == saved
    model = Model.load(saved / proof.FOLDER)
    assert (proven.model_digest, proven.manifest_digest) == (model.digest, model.manifest_digest)
    assert (proven.config_digest, proven.step) == (model.config.digest, 10)
    assert (proven.run_id, proven.which, proven.made_from) == ("tiny-1", "best", "")
    assert sorted(proven.files) == ["model.json", "pair-00.safetensors", "schedule.json", "scorecard.json"]
    assert {"MLmodel", "pyfunc_model.py", "code/cdrl/__init__.py"} <= set(proven.wrapper)
    names = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    ours = {f"{proof.FOLDER}/{name}" for name in (*proven.files, "proof.json")}
    assert names == ours | set(proven.wrapper)


def test_the_package_holds_the_schedule(saved: Path) -> None:
    table = json.loads((saved / proof.FOLDER / "schedule.json").read_text())
    schedule = Model.load(saved / proof.FOLDER).schedule
    assert torch.equal(torch.tensor(table["logsnr"], dtype=torch.float64), schedule.logsnr)
    assert torch.equal(torch.tensor(table["step_size"], dtype=torch.float64), schedule.constants.step_size)


@pytest.mark.parametrize("part", [".", proof.FOLDER])
def test_a_folder_loads_alone(saved: Path, part: str) -> None:
    model = cdrl.load(str(saved / part))
    expected = Model.load(saved / proof.FOLDER)
    assert model.digest == expected.digest
    assert torch.equal(model.sample(2, labels=1, seed=3), expected.sample(2, labels=1, seed=3))


@pytest.mark.parametrize("place", [proof.FOLDER, "code/cdrl", "."])
def test_a_malicious_pickle_is_refused_by_name_and_never_runs(
    version: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exploded = version.parent / "exploded"
    name = "model.pkl" if place == proof.FOLDER else "python_model.pkl"
    (version / place / name).write_bytes(bomb(exploded))
    with pytest.raises(RegistryError, match=f"does not know .*{name}; refused"):
        with verified(str(version)):
            pass
    if place == proof.FOLDER:
        with pytest.raises(RegistryError, match="does not know model.pkl"):
            cdrl.load(str(version))
        with pytest.raises(RegistryError, match="does not know model.pkl"):
            cdrl.load(str(version / place))
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(Exception, match="does not know model.pkl"):
            mlflow.pyfunc.load_model(str(version))
    else:
        cdrl.load(str(version))  # it reads the package and nothing else
    assert not exploded.exists()
    subprocess.run([sys.executable, "-m", "pickle", version / place / name], check=True)  # reads it: the bomb works
    assert exploded.exists()


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def as_proven(version: Path) -> None:
    """Write the proof anew, as somebody would who covers up his tracks."""
    inside = version / proof.FOLDER
    known = json.loads((inside / "proof.json").read_text())
    known["files"] = {name: proof.sha256_file(inside / name) for name in known["files"]}
    known["wrapper"] = {name: proof.sha256_file(version / name) for name in known["wrapper"]}
    known["model_digest"] = known["files"]["model.json"]
    edit(inside / "proof.json", **known)


DAMAGES = [
    (lambda v: (v / "MLmodel").write_text("flavors: {}"), "MLmodel: changed after the package was made"),
    (lambda v: (v / "code/cdrl/model.py").write_text("import os"), "code/cdrl/model.py: changed"),
    (lambda v: (v / "pyfunc_model.py").unlink(), "pyfunc_model.py missing"),
    (lambda v: (v / proof.FOLDER / "scorecard.json").unlink(), "scorecard.json missing"),
    (lambda v: (v / proof.FOLDER / "pair-00.safetensors").write_bytes(b"?"), "pair-00.safetensors: changed"),
    (lambda v: (v / proof.FOLDER / "proof.json").unlink(), "no proof.json: nothing proves"),
    (lambda v: (v / proof.FOLDER / "proof.json").write_text("{}"), "not a readable proof: code_digest: Field required"),
    (lambda v: (v / proof.FOLDER / "proof.json").write_bytes(b"\xd5"), "proof.json: missing or damaged"),
    (lambda v: (v / proof.FOLDER / "link").symlink_to("/etc/hostname"), "does not know link"),
]


@pytest.mark.parametrize("damage, message", DAMAGES, ids=[message for _, message in DAMAGES])
def test_what_was_changed_is_named(version: Path, damage: object, message: str) -> None:
    assert callable(damage)
    damage(version)
    with pytest.raises(RegistryError, match=message):
        with verified(str(version)):
            pass


def test_a_file_that_became_a_link_to_its_like_is_refused(version: Path) -> None:
    weights = version / proof.FOLDER / "pair-00.safetensors"
    weights.rename(version.parent / "elsewhere")
    weights.symlink_to(version.parent / "elsewhere")
    with pytest.raises(RegistryError, match="pair-00.safetensors is a link"):
        cdrl.load(str(version))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: edit(p / "schedule.json", step_size=[1.0, 1.0]), "step_size is not what this code makes"),
        (lambda p: edit(p / "schedule.json", logsnr=[1.0]), "logsnr: expected 3 numbers"),
        (lambda p: edit(p / "model.json", manifest_digest="ef" * 32), "data manifest: expected abab"),
        (lambda p: edit(p / "scorecard.json", model_digest="ef" * 32), "model of the score card: expected"),
        (lambda p: edit(p / "scorecard.json", protocol=None), "not a readable score card: protocol: Input"),
        (lambda p: (p / "scorecard.json").write_text('{"scores": {}}'), "score card: protocol: Field required"),
    ],
    ids=["step sizes", "levels", "data", "weights of another card", "no protocol", "another file"],
)
def test_a_proof_that_was_written_anew_still_contradicts_itself(version: Path, change: object, message: str) -> None:
    assert callable(change)
    change(version / proof.FOLDER)
    as_proven(version)
    with pytest.raises(RegistryError, match=message):
        with verified(str(version)):
            pass


def test_a_proof_that_was_written_anew_is_not_the_one_the_server_knows(version: Path) -> None:
    known = proof.sha256_file(version / proof.FOLDER / "proof.json")
    proof.check_version(version, known)
    as_proven(version)
    proof.check_version(version)
    with pytest.raises(RegistryError, match=f"the server knows the proof {known[:12]}"):
        proof.check_version(version, known)


def test_what_mlflow_leaves_beside_a_version_is_no_part_of_it(version: Path) -> None:
    (version / "registered_model_meta").write_text("model_name: tiny\n")
    with verified(str(version)):
        pass


def test_the_command_needs_no_server(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = CliRunner().invoke(app, ["verify", str(saved)], catch_exceptions=False)
    assert done.exit_code == 0 and "every file is what the proof says" in done.output
    assert "10 updates, from run tiny-1 (best)" in done.output
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_served_is_said_before_anything_starts(saved: Path) -> None:
    with pytest.raises(RegistryError, match="a bare package cannot be served"):
        serving(saved / proof.FOLDER, host="127.0.0.1", port=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: cannot listen there: Address already in use"):
            serving(saved, host="127.0.0.1", port=port)
    with pytest.raises(ConfigError, match="--host 192.0.2.1 --port 5001: cannot listen there"):
        serving(saved, host="192.0.2.1", port=5001)  # an address that is kept for documents


def test_what_is_no_package_is_said(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(RegistryError, match="expected NAME/3, NAME@champion, or a folder that holds a package"):
        with verified(str(tmp_path)):
            pass
    bare = tmp_path / "bare"
    bare.mkdir()
    tiny_model(bare)
    assert cdrl.load(str(bare)).step == 10  # a checkpoint has digests of its weights and no proof
    with pytest.raises(RegistryError, match="no proof.json"):
        with verified(str(bare)):
            pass
    with pytest.raises(ConfigError, match="no such run"):
        cdrl.load("nobody", root=str(tmp_path))
