"""Read, write, list, copy: each function for a local file and for an S3 object."""

import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cdrl.errors import DataError, StorageError
from cdrl.storage.s3 import Damaged, client, endpoint, persistent
from cdrl.storage.uris import bucket_key, is_local, join, local_path

if TYPE_CHECKING:
    import pyarrow.fs

__all__ = [
    "download",
    "exists",
    "filesystem",
    "find_bytes",
    "listing",
    "read_bytes",
    "read_range",
    "remove",
    "remove_folder",
    "sha256_file",
    "upload",
    "write_bytes",
]


def find_bytes(uri: str) -> bytes | None:
    """The whole content of a file or an object; None where there is none.

    Raises:
        StorageError: not allowed or not reachable, or no such bucket.
    """
    if is_local(uri):
        with _explained("look for", uri), suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return local_path(uri).read_bytes()
        return None
    bucket, key = bucket_key(uri)

    def attempt() -> bytes | None:
        try:
            content: bytes = client().get_object(Bucket=bucket, Key=key)["Body"].read()
        except client().exceptions.NoSuchKey:
            return None
        return content

    return persistent("look for", uri, attempt)


def read_bytes(uri: str) -> bytes:
    """The whole content.

    Raises:
        StorageError: not there, not allowed or not reachable.
    """
    if is_local(uri):
        with _explained("read", uri):
            return local_path(uri).read_bytes()
    bucket, key = bucket_key(uri)
    return persistent("read", uri, lambda: client().get_object(Bucket=bucket, Key=key)["Body"].read())


def read_range(uri: str, start: int, size: int) -> bytes:
    """`size` > 0 bytes from place `start` on.

    Raises:
        StorageError: not there, shorter than that, not allowed or not reachable.
    """
    if is_local(uri):
        with _explained("read", uri), local_path(uri).open("rb") as file:
            file.seek(start)
            content = file.read(size)
    else:
        bucket, key = bucket_key(uri)
        span = f"bytes={start}-{start + size - 1}"
        content = persistent(
            "read", uri, lambda: client().get_object(Bucket=bucket, Key=key, Range=span)["Body"].read()
        )
    if len(content) < size:
        raise StorageError(f"cannot read {uri}: it ends at byte {start + len(content)}, expected {start + size}")
    return content


def write_bytes(uri: str, content: bytes) -> None:
    """Write the whole content, or nothing; folders are made.

    Raises:
        StorageError: not allowed or not reachable.
    """
    if is_local(uri):
        with _explained("write", uri), _replacing(local_path(uri)) as aside:
            aside.write_bytes(content)
        return
    # from a file: bytes would be sent in one call, which has to end within the time for a connection
    persistent("write", uri, lambda: client().upload_fileobj(io.BytesIO(content), *bucket_key(uri)))


def exists(uri: str) -> bool:
    """Whether a file or an object (not a folder) is there.

    Raises:
        StorageError: not allowed or not reachable, or no such bucket.
    """
    if is_local(uri):
        with _explained("look for", uri):
            return local_path(uri).is_file()
    bucket, key = bucket_key(uri)
    # a listing, unlike HEAD, tells a missing object from a missing bucket
    found = persistent("look for", uri, lambda: client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1))
    return any(entry["Key"] == key for entry in found.get("Contents", []))


def listing(uri: str) -> list[str]:
    """Names of all files below a folder, relative to it (`"last/model.json"`), sorted; hidden ones left out.

    Raises:
        StorageError: not allowed or not reachable, or no such bucket.
    """
    if is_local(uri):
        with _explained("list", uri):
            root = local_path(uri)
            names = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    else:
        bucket, key = bucket_key(uri)
        prefix = f"{key.rstrip('/')}/" if key else ""

        def keys() -> list[str]:
            pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

        names = [name.removeprefix(prefix) for name in persistent("list", uri, keys)]
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def download(uri: str, path: Path | str, *, sha256: str | None = None, num_bytes: int | None = None) -> None:
    """Copy to a local file, which appears whole or not at all; safe when several processes do it at once.

    Args:
        sha256: expected SHA-256 (hex) of the content.
        num_bytes: expected size; of any other nothing is fetched.

    Raises:
        StorageError: not there, not allowed or not reachable.
        DataError: the content has another size, or another SHA-256 and has it each time.
    """
    with _explained("download", uri), _replacing(Path(path)) as aside:
        if is_local(uri):
            _check_size(uri, num_bytes, local_path(uri).stat().st_size)
            shutil.copyfile(local_path(uri), aside)
            if sha256 is not None and (found := sha256_file(aside)) != sha256:
                raise DataError(_damaged(uri, sha256, found))
            return
        bucket, key = bucket_key(uri)
        seen: set[str] = set()

        def fetch() -> None:
            if num_bytes is not None:
                _check_size(uri, num_bytes, client().head_object(Bucket=bucket, Key=key)["ContentLength"])
            client().download_file(bucket, key, str(aside))
            if sha256 is None or (found := sha256_file(aside)) == sha256:
                return
            # what was changed on its way comes differently the next time; what was changed in its place does not
            error = DataError if found in seen else Damaged
            seen.add(found)
            raise error(_damaged(uri, sha256, found))

        persistent("download", uri, fetch)


def upload(path: Path | str, uri: str) -> None:
    """Copy a local file to the URI, whole or not at all; folders are made.

    Raises:
        StorageError: not allowed or not reachable.
    """
    if is_local(uri):
        with _explained("upload to", uri), _replacing(local_path(uri)) as aside:
            shutil.copyfile(path, aside)
        return

    def send() -> None:
        with open(path, "rb") as file:
            client().upload_fileobj(file, *bucket_key(uri))

    persistent("upload to", uri, send)


def remove(uri: str) -> None:
    """Delete one file or object; nothing happens if it is not there.

    Raises:
        StorageError: not allowed or not reachable.
    """
    if is_local(uri):
        with _explained("remove", uri):
            local_path(uri).unlink(missing_ok=True)
        return
    bucket, key = bucket_key(uri)
    persistent("remove", uri, lambda: client().delete_object(Bucket=bucket, Key=key))


def remove_folder(uri: str) -> None:
    """Delete everything below a folder, and the folder.

    Raises:
        StorageError: not allowed or not reachable.
    """
    if is_local(uri):
        with _explained("remove", uri):
            if local_path(uri).is_dir():
                shutil.rmtree(local_path(uri))
        return
    for name in listing(uri):
        remove(join(uri, name))


def filesystem(uri: str) -> "tuple[pyarrow.fs.FileSystem, str]":
    """The URI as Arrow file system and path inside it: what Ray's libraries want. It knows no patience.

    Raises:
        StorageError: not a URI of a known kind.
    """
    import pyarrow.fs

    if is_local(uri):
        return pyarrow.fs.LocalFileSystem(), str(local_path(uri).absolute())
    bucket, key = bucket_key(uri)
    options = {"endpoint_override": place} if (place := endpoint()) else {}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return pyarrow.fs.S3FileSystem(region=region, **options), f"{bucket}/{key}".rstrip("/")


def sha256_file(path: Path | str) -> str:
    """SHA-256 (hex) of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_size(uri: str, expected: int | None, found: int) -> None:
    if expected is not None and found != expected:
        raise DataError(f"{uri}: damaged: expected {expected} bytes, got {found}")


def _damaged(uri: str, expected: str, found: str) -> str:
    return f"{uri}: damaged: expected SHA-256 {expected[:12]}..., got {found[:12]}..."


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` that becomes `path` when the block ends well, and vanishes otherwise.

    The content is on the disk before the name is: after a power failure there is the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _explained(verb: str, uri: str) -> Iterator[None]:
    """Turn what the operating system raises into one line with the URI."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot {verb} {uri}: {error}") from None
