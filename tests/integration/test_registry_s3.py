"""Packages and histories on an S3 protocol server: loaded and checked from there, and won by one of several."""

from pathlib import Path

import pytest

import cdrl
from cdrl import storage
from cdrl.errors import RegistryError, StorageError
from cdrl.registry import package, proof
from cdrl.registry.history import History
from cdrl.registry.load import verified
from tests.faults import Fault, FaultProxy
from tests.registry_parts import card, raced, tiny_model
from tests.web import answering

pytestmark = pytest.mark.integration


def test_a_package_loads_and_verifies_from_s3(s3: str, tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    model = tiny_model(source)
    package.save(source, model, card(model, 0.5), tmp_path / "version", run_id="tiny-1", which="best")
    names = storage.listing(str(tmp_path / "version"))
    for name in names:
        storage.upload(tmp_path / "version" / name, f"{s3}/shipped/{name}")
    with verified(f"{s3}/shipped") as (_, proven):
        assert proven.model_digest == model.digest
    for uri in (f"{s3}/shipped", f"{s3}/shipped/{proof.FOLDER}"):
        assert cdrl.load(uri).digest == model.digest
    with verified(f"{s3}/shipped/{proof.FOLDER}") as (_, again):
        assert again == proven
    storage.write_bytes(f"{s3}/shipped/{proof.FOLDER}/extra.pkl", b"cos\nsystem\n(V/bin/false\ntR.")
    with pytest.raises(RegistryError, match="does not know extra.pkl; refused"):
        cdrl.load(f"{s3}/shipped")
    with pytest.raises(StorageError, match="model.json"):
        cdrl.load(f"{s3}/nothing")


def test_of_two_on_s3_one_wins_twenty_times(s3: str) -> None:
    history = History.found(f"{s3}/registry", "tiny", champion=None)

    for race in range(20):
        assert sum(raced(history, 2 * race + 1, 2 * race + 2)) == 1
    entries = history.read().entries
    assert [entry.number for entry in entries] == list(range(21))
    assert all(entry.before == earlier.champion for earlier, entry in zip(entries, entries[1:]))


def test_an_answer_that_was_lost_is_no_lost_race(faulty_s3: tuple[str, FaultProxy]) -> None:
    uri, proxy = faulty_s3
    history = History.found(f"{uri}/registry", "tiny", champion=None)
    chain = history.read()
    proxy.faults = [Fault(method="PUT", key="00000001", lost=True, times=1)]
    history.append(chain, action="promote", champion=1)
    assert history.read().head.champion == 1
    sent = [key for method, key in proxy.requests if method == "PUT" and key.endswith("00000001.json")]
    assert len(sent) > 1, "it was sent again, and refused as already there"


def test_a_store_that_overwrites_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200) as endpoint:
        for name, value in {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        with pytest.raises(StorageError, match="overwrites what it is asked to create.*set gates.history"):
            History.found("s3://bucket/registry", "tiny", champion=None)
