"""Write what nobody has written yet: of several processes that try at once, one succeeds."""

import os

from cdrl.errors import StorageError
from cdrl.storage.door import find_bytes, write_bytes
from cdrl.storage.s3 import client, persistent
from cdrl.storage.uris import bucket_key, is_local, local_path

__all__ = ["create_bytes"]

TAKEN = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}


def create_bytes(uri: str, content: bytes) -> bool:
    """Write the whole content where nothing is; False, and nothing changes, where something else is.

    Args:
        content: must differ from what any other process would write, which is how a request whose answer was lost on
            its way is told from one that came too late.

    Raises:
        StorageError: not allowed or not reachable.
    """
    if is_local(uri):
        return _create_file(uri, content)
    bucket, key = bucket_key(uri)

    def attempt() -> bool:
        from botocore.exceptions import ClientError

        try:
            client().put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in TAKEN:
                raise
            return False
        return True

    return persistent("create", uri, attempt) or find_bytes(uri) == content


def _create_file(uri: str, content: bytes) -> bool:
    """A link appears whole or not at all, and never in the place of another file."""
    path = local_path(uri)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    write_bytes(str(aside), content)
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise StorageError(f"cannot create {uri}: {error}") from None
    finally:
        aside.unlink(missing_ok=True)
    return True
