"""A model fetched from S3: whole, mended, and never led astray by what its card says."""

import json
from pathlib import Path

import pytest
import torch

from cdrl import storage
from cdrl.errors import DataError, StorageError
from cdrl.model import Model, build_ladder
from cdrl.runs import fetch_model
from tests.training_parts import tiny_config

pytestmark = pytest.mark.integration


@pytest.fixture
def bucket(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a model, with a temporary folder of our own beside it."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return f"{s3}/one"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = tiny_config()
    torch.manual_seed(0)
    (tmp_path / "model").mkdir()
    names = tuple(str(number) for number in range(config.data.num_classes))
    Model(config, build_ladder(config), names, "ab" * 32, 1).write(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_is_fetched_and_mended(folder: Path, bucket: str, tmp_path: Path) -> None:
    for name in ("model.json", "pair-00.safetensors"):
        storage.upload(folder / name, storage.join(bucket, name))
    fetched = fetch_model(bucket)
    assert (tmp_path / "tmp") in fetched.parents and fetched.parent.stat().st_mode & 0o077 == 0
    assert Model.load(fetched).digest == Model.load(folder).digest
    (fetched / "pair-00.safetensors").write_bytes(b"broken off")
    assert fetch_model(bucket) == fetched and Model.load(fetched).step == 1
    storage.write_bytes(storage.join(bucket, "pair-00.safetensors"), b"another")
    (fetched / "pair-00.safetensors").unlink()
    with pytest.raises(DataError, match="pair-00.safetensors: damaged"):
        fetch_model(bucket)


def test_a_model_card_cannot_choose_where_files_go(tmp_path: Path, bucket: str) -> None:
    good = {"pair-00.safetensors": "../../../evil"}
    for files in ({"../../evil": "0" * 64}, {"pair-0.safetensors.sh": "0" * 64}, good, [], None):
        storage.write_bytes(storage.join(bucket, "model.json"), json.dumps({"files": files}).encode())
        with pytest.raises((StorageError, DataError), match="refused to fetch|damaged|cannot download"):
            fetch_model(bucket)
    storage.write_bytes(storage.join(bucket, "model.json"), b"no JSON")
    with pytest.raises(StorageError, match="model.json: damaged: no list of files"):
        fetch_model(bucket)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
