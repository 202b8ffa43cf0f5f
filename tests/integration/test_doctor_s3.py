"""`cdrl doctor` and a bucket that is there, or is not."""

import pytest

from cdrl import storage
from cdrl.cluster.doctor import examine
from cdrl.config import load

pytestmark = pytest.mark.integration


def test_a_bucket_is_written_read_and_left_as_it_was(s3: str) -> None:
    config = load("digits", [f"run.storage={s3}/runs", f"data.uri={s3}/data"])
    found = {finding.what: finding for finding in examine(config)}
    assert found["S3, run.storage"].seen == f"{s3}/runs: written, read and removed"
    assert found["S3, data.uri"].seen == f"{s3}/data: reachable, no dataset yet"
    assert storage.listing(s3) == []
    storage.write_bytes(f"{s3}/data/manifest.json", b"{}")
    config = load("digits", [f"run.storage={s3}-none/runs", f"data.uri={s3}/data"])
    found = {finding.what: finding for finding in examine(config)}
    assert found["S3, data.uri"].seen == f"{s3}/data: a dataset"
    assert found["S3, run.storage"].state == "fail" and "bucket" in found["S3, run.storage"].seen
