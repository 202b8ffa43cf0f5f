"""The one door to bytes: local files and S3 behind the same few functions.

A URI is a plain path, `file:///absolute/path` or `s3://bucket/key`. Endpoint, region and credentials of S3 come from
the standard AWS environment (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, profiles, roles). Files appear whole or not at
all: they are written under another name and then renamed; an S3 object is atomic by itself.
"""

import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from cdrl.errors import DataError, StorageError

if TYPE_CHECKING:
    import pyarrow.fs

__all__ = [
    "download",
    "exists",
    "filesystem",
    "is_local",
    "join",
    "listing",
    "local_path",
    "read_bytes",
    "remove",
    "sha256_file",
    "upload",
    "write_bytes",
]

CONNECT_TIMEOUT_S = 3
READ_TIMEOUT_S = 60
NUM_RETRIES = 3  # with exponential backoff: a refused connection is reported within about 7 s


def is_local(uri: str) -> bool:
    """Whether the URI names a file of this machine.

    Raises:
        StorageError: a scheme other than `file` and `s3`.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme == "file":
        return True
    if scheme == "s3":
        return False
    raise StorageError(f"{uri}: unknown scheme {scheme!r}; expected a path, file:// or s3://")


def local_path(uri: str) -> Path:
    """The path that a local URI names.

    Raises:
        StorageError: the URI is not local, or names another host.
    """
    if not is_local(uri):
        raise StorageError(f"{uri}: expected a local path or file://")
    if not uri.startswith("file://"):
        return Path(uri)
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise StorageError(f"{uri}: file:// names the host {parts.netloc!r}; expected file:///absolute/path")
    return Path(unquote(parts.path))


def join(uri: str, *names: str) -> str:
    """The URI of something below a folder: `join("s3://b/run", "last", "model.json")`."""
    return "/".join([uri.rstrip("/"), *names])


def read_bytes(uri: str) -> bytes:
    """The whole content. A transfer that breaks off is repeated.

    Raises:
        StorageError: not there, not allowed or not reachable.
    """
    with _explained("read", uri):
        if is_local(uri):
            return local_path(uri).read_bytes()
        buffer = io.BytesIO()
        # download_fileobj, unlike get_object, starts again after a connection cut in mid-body
        _client().download_fileobj(*_bucket_key(uri), buffer)
        return buffer.getvalue()


def write_bytes(uri: str, content: bytes) -> None:
    """Write the whole content, or nothing; folders are made.

    Raises:
        StorageError: not allowed or not reachable.
    """
    with _explained("write", uri):
        if is_local(uri):
            with _replacing(local_path(uri)) as aside:
                aside.write_bytes(content)
        else:
            bucket, key = _bucket_key(uri)
            _client().put_object(Bucket=bucket, Key=key, Body=content)


def exists(uri: str) -> bool:
    """Whether a file or an object (not a folder) is there.

    Raises:
        StorageError: not allowed or not reachable, or no such bucket.
    """
    with _explained("look for", uri):
        if is_local(uri):
            return local_path(uri).is_file()
        bucket, key = _bucket_key(uri)
        # a listing, unlike HEAD, tells a missing object from a missing bucket
        found = _client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", [])
        return any(entry["Key"] == key for entry in found)


def listing(uri: str) -> list[str]:
    """Names of all files below a folder, relative to it (`"last/model.json"`), sorted; hidden ones left out.

    Raises:
        StorageError: not allowed or not reachable, or no such bucket.
    """
    with _explained("list", uri):
        if is_local(uri):
            root = local_path(uri)
            names = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
        else:
            bucket, key = _bucket_key(uri)
            prefix = f"{key.rstrip('/')}/" if key else ""
            pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            names = [entry["Key"].removeprefix(prefix) for page in pages for entry in page.get("Contents", [])]
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def download(uri: str, path: Path | str, *, sha256: str | None = None) -> None:
    """Copy to a local file, which appears whole or not at all; safe when several processes do it at once.

    Args:
        sha256: expected SHA-256 (hex) of the content.

    Raises:
        StorageError: not there, not allowed or not reachable.
        DataError: the content has another SHA-256.
    """
    with _explained("download", uri), _replacing(Path(path)) as aside:
        if is_local(uri):
            shutil.copyfile(local_path(uri), aside)
        else:
            _client().download_file(*_bucket_key(uri), str(aside))
        if sha256 is not None and (found := sha256_file(aside)) != sha256:
            raise DataError(f"{uri}: damaged: expected SHA-256 {sha256[:12]}..., got {found[:12]}...")


def upload(path: Path | str, uri: str) -> None:
    """Copy a local file to the URI, whole or not at all; folders are made.

    Raises:
        StorageError: not allowed or not reachable.
    """
    with _explained("upload to", uri):
        if is_local(uri):
            with _replacing(local_path(uri)) as aside:
                shutil.copyfile(path, aside)
        else:
            _client().upload_file(str(path), *_bucket_key(uri))


def remove(uri: str) -> None:
    """Delete one file or object; nothing happens if it is not there.

    Raises:
        StorageError: not allowed or not reachable.
    """
    with _explained("remove", uri):
        if is_local(uri):
            local_path(uri).unlink(missing_ok=True)
        else:
            bucket, key = _bucket_key(uri)
            _client().delete_object(Bucket=bucket, Key=key)


def filesystem(uri: str) -> "tuple[pyarrow.fs.FileSystem, str]":
    """The URI as Arrow file system and path inside it: what Ray Train's storage wants.

    Raises:
        StorageError: not a URI of a known kind.
    """
    import pyarrow.fs

    if is_local(uri):
        return pyarrow.fs.LocalFileSystem(), str(local_path(uri).absolute())
    bucket, key = _bucket_key(uri)
    options = {"endpoint_override": endpoint} if (endpoint := _endpoint()) else {}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return pyarrow.fs.S3FileSystem(region=region, **options), f"{bucket}/{key}".rstrip("/")


def sha256_file(path: Path | str) -> str:
    """SHA-256 (hex) of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` that becomes `path` when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _client() -> Any:
    return _client_for(_endpoint(), os.environ.get("AWS_ACCESS_KEY_ID"))


@lru_cache(maxsize=4)
def _client_for(endpoint: str | None, access_key_id: str | None) -> Any:
    del access_key_id  # the key of the cache only: boto3 reads the environment itself
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "max_attempts": NUM_RETRIES},
        # servers other than Amazon's rarely answer to bucket names in the host name
        s3={"addressing_style": "path"} if endpoint else None,
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


def _bucket_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{uri}: no bucket; expected s3://bucket/key")
    return bucket, key


@contextmanager
def _explained(verb: str, uri: str) -> Iterator[None]:
    """Turn what the operating system and boto3 raise into one line with the URI and, for S3, the endpoint."""
    if is_local(uri):
        try:
            yield
        except OSError as error:
            raise StorageError(f"cannot {verb} {uri}: {error}") from None
        return
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, Boto3Error, ClientError, OSError) as error:
        endpoint = _endpoint() or "Amazon S3"
        reason = " ".join(str(error).split()).rstrip(".")
        raise StorageError(f"cannot {verb} {uri} at {endpoint}: {reason}") from None
