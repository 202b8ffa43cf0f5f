"""Faults between the storage and S3: those that pass are ridden out, the others are one line at once."""

import hashlib
import re
import time
from pathlib import Path

import numpy as np
import pytest

from cdrl import storage
from cdrl.errors import CdrlError, DataError, StorageError
from tests.faults import FaultProxy

pytestmark = pytest.mark.integration

CONTENT = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
Faulty = tuple[str, FaultProxy]


def everything(uri: str, folder: Path) -> None:
    """Each function of the storage, on an object of its own."""
    (folder / "up").write_bytes(CONTENT)
    storage.write_bytes(f"{uri}/a/written", CONTENT)
    storage.upload(folder / "up", f"{uri}/a/uploaded")
    assert storage.listing(f"{uri}/a") == ["uploaded", "written"]
    assert storage.exists(f"{uri}/a/written")
    assert storage.read_bytes(f"{uri}/a/written") == CONTENT
    storage.download(f"{uri}/a/uploaded", folder / "down", sha256=DIGEST)
    assert (folder / "down").read_bytes() == CONTENT
    storage.remove(f"{uri}/a/written")
    assert not storage.exists(f"{uri}/a/written")


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "code": "SlowDown"},
        {"status": 400, "code": "RequestTimeout"},
        {"reset": True},
    ],
    ids=lambda fault: fault.get("code", "reset"),
)
def test_a_burst_of_faults_before_every_answer(faulty_s3: Faulty, tmp_path: Path, fault: dict[str, object]) -> None:
    uri, proxy = faulty_s3
    # more in a row than boto3 itself rides out, for each kind of request
    for method in ("GET", "PUT", "DELETE"):
        proxy.add(method=method, times=4, **fault)
    everything(uri, tmp_path)
    assert all(one.times == 0 for one in proxy.faults)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["down", "up"]


def test_answers_cut_in_mid_body(faulty_s3: Faulty, tmp_path: Path) -> None:
    uri, proxy = faulty_s3
    storage.write_bytes(f"{uri}/x", CONTENT)
    cut = proxy.add(method="GET", cut_after=100_000, times=2)
    assert storage.read_bytes(f"{uri}/x") == CONTENT
    assert cut.times == 0
    cut.times = 7  # more than boto3 tries a part of a file
    storage.download(f"{uri}/x", tmp_path / "x")
    assert cut.times == 0 and (tmp_path / "x").read_bytes() == CONTENT
    # a write whose answer is lost has been done, and is done again
    cut = proxy.add(method="PUT", lost=True, times=4)
    storage.write_bytes(f"{uri}/y", CONTENT)
    assert cut.times == 0 and storage.read_bytes(f"{uri}/y") == CONTENT


def test_an_outage_is_ridden_out_and_the_time_lost_is_told(faulty_s3: Faulty, tmp_path: Path) -> None:
    uri, proxy = faulty_s3
    told: list[tuple[str, float]] = []
    begin_s = time.monotonic()
    proxy.outage(3)
    with storage.patience(60, lambda text, lost_s: told.append((text, lost_s))):
        everything(uri, tmp_path)
    *waits, (end, _) = told
    assert waits and all(text.startswith(f"cannot write {uri}/a/written at {proxy.url}: ") for text, _ in waits)
    assert re.match(rf"went on after \d+\.\d s: cannot write {uri}/a/written", end) and "\n" not in end
    lost = [lost_s for _, lost_s in told]
    assert lost[0] == 0 and 0 < sum(lost) <= time.monotonic() - begin_s


def test_an_outage_longer_than_the_patience_says_how_long_it_was_tried(faulty_s3: Faulty, tmp_path: Path) -> None:
    uri, proxy = faulty_s3
    proxy.outage(600)
    with storage.patience(1), pytest.raises(StorageError, match=r"cannot download .*; tried for \d+ s$"):
        storage.download(f"{uri}/x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_slow_body_that_moves_is_waited_for(faulty_s3: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, proxy = faulty_s3
    storage.write_bytes(f"{uri}/x", CONTENT)
    monkeypatch.setattr("cdrl.storage.s3.READ_TIMEOUT_S", 1)
    proxy.add(method="GET", bytes_per_s=100_000)  # three times the time that silence is borne
    storage.s3._client_for.cache_clear()
    with storage.patience(0):
        assert storage.read_bytes(f"{uri}/x") == CONTENT
    # and silence is not borne
    proxy.faults.clear()
    stalled = proxy.add(method="GET", stall_s=4, times=1)
    storage.s3._client_for.cache_clear()
    assert storage.read_bytes(f"{uri}/x") == CONTENT
    assert stalled.times == 0 and proxy.asked("GET", "/x") == 3
    storage.s3._client_for.cache_clear()


def test_what_changed_on_its_way_is_fetched_again(faulty_s3: Faulty, tmp_path: Path) -> None:
    uri, proxy = faulty_s3
    storage.write_bytes(f"{uri}/x", CONTENT)
    for place in (5, 200_000):
        proxy.add(method="GET", flip=place, times=1)
    assert storage.read_bytes(f"{uri}/x") == CONTENT
    assert all(one.times == 0 for one in proxy.faults)
    proxy.faults.clear()
    proxy.add(method="GET", flip=17, times=1)
    storage.download(f"{uri}/x", tmp_path / "x", sha256=DIGEST)
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_what_changed_in_its_place_is_told(faulty_s3: Faulty, tmp_path: Path) -> None:
    uri, proxy = faulty_s3
    storage.write_bytes(f"{uri}/x", CONTENT[:-1] + b"?")
    with storage.patience(3600), pytest.raises(DataError, match=f"{uri}/x: damaged: expected SHA-256 {DIGEST[:12]}"):
        storage.download(f"{uri}/x", tmp_path / "x", sha256=DIGEST)
    assert proxy.asked("GET", "/x") == 2 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (403, "AccessDenied"),
        (400, "ExpiredToken"),
    ],
)
def test_wrong_credentials_are_one_line_at_once(faulty_s3: Faulty, tmp_path: Path, status: int, code: str) -> None:
    uri, proxy = faulty_s3
    proxy.add(status=status, code=code)
    with storage.patience(3600):
        for call in (
            lambda: storage.read_bytes(f"{uri}/x"),
            lambda: storage.write_bytes(f"{uri}/x", CONTENT),
            lambda: storage.listing(uri),
        ):
            proxy.requests.clear()
            with pytest.raises(StorageError, match=rf"{code}.*check the AWS credentials") as caught:
                call()
            assert len(proxy.requests) == 1 and "\n" not in str(caught.value) and "tried" not in str(caught.value)


def test_missing_credentials_are_one_line(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with storage.patience(3600), pytest.raises(StorageError, match="Unable to locate credentials; check the AWS"):
        storage.read_bytes(f"{s3}/x")


def test_no_password_of_the_endpoint_is_told(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://someone:hunter2@127.0.0.1:9")
    with storage.patience(0), pytest.raises(StorageError, match="at http://127.0.0.1:9: ") as caught:
        storage.read_bytes(f"{s3}/x")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("place", ["127.0.0.1:9", "http://bad host"])
def test_an_endpoint_that_is_no_url_is_one_line(s3: str, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", place)
    with pytest.raises(CdrlError, match="AWS_ENDPOINT_URL: .*expected http"):
        storage.read_bytes(f"{s3}/x")


def test_the_nth_write_of_a_kind_can_be_made_to_fail(faulty_s3: Faulty) -> None:
    uri, proxy = faulty_s3
    proxy.add(method="PUT", key=r"state-\d", skip=1, times=1, status=403, code="AccessDenied")
    storage.write_bytes(f"{uri}/state-1", b"")
    storage.write_bytes(f"{uri}/other", b"")
    with pytest.raises(StorageError, match="state-2"):
        storage.write_bytes(f"{uri}/state-2", b"")
    storage.write_bytes(f"{uri}/state-3", b"")
    assert storage.listing(uri) == ["other", "state-1", "state-3"]


def test_arrow_goes_through_the_proxy_too(faulty_s3: Faulty) -> None:
    uri, proxy = faulty_s3
    filesystem, path = storage.filesystem(f"{uri}/deep")
    with filesystem.open_output_stream(f"{path}/x.bin") as stream:
        stream.write(CONTENT)
    proxy.add(method="GET", status=503, code="SlowDown", times=1)
    with filesystem.open_input_file(f"{path}/x.bin") as file:
        assert file.read() == CONTENT
    assert proxy.asked("GET", "/deep/x.bin") == 2
