"""Checkpoints in a folder: the driver leaves a mark there, and a worker on another machine looks for it.

Without this, a worker would write its part to a disk of its own, where nobody finds it.
"""

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from cdrl import storage
from cdrl.errors import ConfigError

__all__ = ["check_shared", "marked"]

MARK = ".driver-mark"


@contextmanager
def marked(uri: str) -> Iterator[str]:
    """The mark that lies in the folder while the block lasts; empty where `uri` is no folder: all reach that alike."""
    if not storage.is_local(uri):
        yield ""
        return
    mark, place = secrets.token_hex(8), storage.join(uri, MARK)
    storage.write_bytes(place, mark.encode())
    try:
        yield mark
    finally:
        storage.remove(place)


def check_shared(uri: str, mark: str) -> None:
    """Look for the driver's mark.

    Raises:
        ConfigError: this machine has another folder of that name, or none.
    """
    if not mark:
        return
    if storage.find_bytes(storage.join(uri, MARK)) != mark.encode():
        raise ConfigError(
            f"run.storage: checkpoints go to {uri}, and on {socket.gethostname()}, where a worker runs, that is not "
            "the folder that the driver sees; set run.storage to s3:// or to a folder that all machines share"
        )
