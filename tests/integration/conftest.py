"""Servers on the loopback that several integration tests share."""

import logging
import os
import uuid
from collections.abc import Iterator

import pytest

from tests.faults import FaultProxy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs come first: they take longest, and two files run at a time."""
    items.sort(key=lambda item: not item.path.name.startswith("test_train_"))


@pytest.fixture(scope="session")
def _s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def _bucket(endpoint: str, patch: pytest.MonkeyPatch) -> str:
    """A new bucket; the AWS environment leads there."""
    import boto3

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        patch.delenv(name, raising=False)
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = f"cdrl-{uuid.uuid4().hex[:12]}"
    boto3.session.Session().client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


@pytest.fixture
def s3(_s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://bucket`, a fresh and empty one on an S3 protocol server; the AWS environment leads there."""
    return _bucket(_s3_endpoint, monkeypatch)


@pytest.fixture
def faulty_s3(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, FaultProxy]]:
    """(`s3://bucket`, the proxy before its server): everything that follows AWS_ENDPOINT_URL goes through the proxy."""
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield s3, proxy


@pytest.fixture(scope="module")
def lasting_faulty_s3(_s3_endpoint: str) -> Iterator[tuple[str, FaultProxy]]:
    """The same for a whole module, whose Ray workers keep the environment that they were started in."""
    with pytest.MonkeyPatch.context() as patch, FaultProxy(_s3_endpoint) as proxy:
        bucket = _bucket(_s3_endpoint, patch)
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield bucket, proxy
