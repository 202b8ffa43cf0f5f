"""What a checkpoint holds, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest

from cdrl.data import Dataset
from cdrl.errors import ConfigError, RegistryError
from cdrl.model import Model
from cdrl.runs import Checkpoint
from cdrl.training.checkpoint import begin_with, read_checkpoint
from cdrl.training.grid import Grid
from cdrl.training.loop import train
from tests.training_parts import digits, quiet, save, tiny_config, tiny_state

CONFIG = tiny_config("pairs=per_level", "training.num_updates=8")
FILES = ["model.json", "pair-00.safetensors", "pair-01.safetensors", "sentinel.safetensors", "state.json"]
FILES += ["train-00.safetensors", "train-01.safetensors"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return digits(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def written(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = tiny_state(CONFIG)
    train(state, dataset, quiet())
    return save(state, dataset, tmp_path_factory.mktemp("run") / "checkpoint", score=1.5)


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "checkpoint"))


def read(folder: Path, dataset: Dataset) -> None:
    read_checkpoint(tiny_state(CONFIG), folder, dataset.manifest.digest)


def test_it_is_safetensors_and_two_json_files_with_every_digest(folder: Path, dataset: Dataset) -> None:
    assert sorted(path.name for path in folder.iterdir()) == FILES
    state, model = (json.loads((folder / name).read_text()) for name in ("state.json", "model.json"))
    assert sorted(state["files"]) == [name for name in FILES if name != "state.json"]
    assert model["files"].items() <= state["files"].items()
    assert (state["step"], state["score"], state["manifest_digest"]) == (8, 1.5, dataset.manifest.digest)
    assert state["identity"] == CONFIG.identity_digest


def test_it_contains_the_model_that_is_shipped(folder: Path) -> None:
    model = Model.load(folder)
    assert model.step == 8 and model.config == CONFIG and len(model.ladder.pairs) == 2
    assert model.sample(2, labels=3, seed=1).shape == (2, 1, 8, 8)


def test_another_configuration_or_dataset_is_refused(folder: Path, dataset: Dataset) -> None:
    other = tiny_state(tiny_config("pairs=per_level", "training.num_updates=8", "training.seed=6"))
    with pytest.raises(ConfigError, match="from another configuration: expected .*, got .*; give the run another"):
        read_checkpoint(other, folder, dataset.manifest.digest)
    with pytest.raises(ConfigError, match="from another dataset"):
        read_checkpoint(tiny_state(CONFIG), folder, "0" * 64)


def test_other_workers_or_reports_are_the_same_run(folder: Path, dataset: Dataset) -> None:
    config = tiny_config("pairs=per_level", "training.num_updates=8", "cluster.num_workers=2", "run.log_every=3")
    state = tiny_state(config, Grid(2, 4, 2, 1))
    read_checkpoint(state, folder, dataset.manifest.digest)
    assert state.step == 8 and list(state.optimizers) == [1]


@pytest.mark.parametrize("name", [name for name in FILES if name != "state.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_file_is_named(folder: Path, dataset: Dataset, name: str, damage: str) -> None:
    content = bytearray((folder / name).read_bytes())
    if damage == "missing":
        (folder / name).unlink()
    elif damage == "truncated":
        (folder / name).write_bytes(content[:-3])
    else:
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
    with pytest.raises(RegistryError, match=rf"{name}.*(damaged|missing)") as caught:
        read(folder, dataset)
    assert "\n" not in str(caught.value)


def test_a_damaged_state_is_refused(folder: Path, dataset: Dataset) -> None:
    path = folder / "state.json"
    text = path.read_text()
    for damaged in (text[:-5], text.replace("step", "stop"), "", text.replace(": 8,", ": 9,"), "\x00" + text, "[]"):
        assert damaged != text
        path.write_text(damaged)
        with pytest.raises(RegistryError, match="state.json: damaged"):
            read(folder, dataset)
    path.unlink()
    with pytest.raises(RegistryError, match="state.json: not there; .* is no checkpoint"):
        read(folder, dataset)


def test_a_checkpoint_without_an_entry_is_refused(folder: Path, dataset: Dataset) -> None:
    path = folder / "state.json"
    card = Checkpoint.unsealed(path.read_bytes())
    files = {name: digest for name, digest in card.files.items() if name != "train-01.safetensors"}
    path.write_bytes(card.model_copy(update={"files": files}).sealed())
    with pytest.raises(RegistryError, match="no entry 'train-01.safetensors'"):
        read(folder, dataset)


def test_the_visible_files_are_written_last(written: Path) -> None:
    """Weights, then model.json with their digests, then state.json, which makes the folder a checkpoint."""
    times = {path.name: path.stat().st_mtime_ns for path in written.iterdir()}
    assert max(times.values()) == times["state.json"]
    assert times["model.json"] >= max(time for name, time in times.items() if name.endswith(".safetensors"))
    assert times["state.json"] >= times["model.json"]


@pytest.mark.parametrize("start_with", ["weights", "state"])
def test_a_run_begins_with_the_weights_of_another_or_with_its_whole_state(
    folder: Path, dataset: Dataset, start_with: str
) -> None:
    """Also with other levels and rates: the networks see logSNR."""
    begin = ("pairs=per_level", f"training.start={folder}")
    changed = ("schedule.warp=2", "training.energy.lr=0.5", f"training.start_with={start_with}")
    state = tiny_state(tiny_config(*begin, *changed))
    begin_with(state, folder, dataset.manifest.digest)
    there = tiny_state(CONFIG)
    read_checkpoint(there, folder, dataset.manifest.digest)
    for mine, theirs in ((state.pair(0), there.pair(0)), (state.averaged(0), there.averaged(0))):
        assert all(a.equal(b) for a, b in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True))
    moments = state.optimizers[0].energy.state_dict()["state"]
    assert (state.step, bool(moments)) == ((there.step, True) if start_with == "state" else (0, False))
    wider = tiny_state(tiny_config(*begin, "energy.width=8"))
    with pytest.raises(ConfigError, match="has other networks than this run"):
        begin_with(wider, folder, dataset.manifest.digest)
