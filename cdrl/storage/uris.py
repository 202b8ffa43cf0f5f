"""What a URI names: a plain path, `file:///absolute/path` or `s3://bucket/key`."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from cdrl.errors import StorageError

__all__ = ["bucket_key", "is_local", "join", "local_path"]


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


def bucket_key(uri: str) -> tuple[str, str]:
    """Bucket and key of an S3 URI.

    Raises:
        StorageError: no bucket.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{uri}: no bucket; expected s3://bucket/key")
    return bucket, key
