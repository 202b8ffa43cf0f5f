"""Files that are checked when they are mapped, and locks that end with the process that holds them."""

import errno
import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["locked", "map_file", "remove_unused"]


def map_file(path: Path, num_bytes: int, sha256: str, *, in_use: bool = False) -> mmap.mmap | None:
    """Map a file that holds exactly what is expected; None if it is not there or holds anything else.

    The whole of it is read for that each time, about a second per GB: neither its size nor its times would tell that a
    disk or a person changed a byte. What was checked is what is mapped, whatever happens to the name afterwards.

    Args:
        in_use: follow no link, and keep `remove_unused` from the file for as long as the mapping lives.

    Raises:
        OSError: it is there and cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_NOFOLLOW if in_use else 0))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise
    with open(descriptor, "rb") as file:
        if in_use:
            # the mapping keeps a copy of the descriptor, and the lock lasts as long as any copy
            fcntl.flock(file, fcntl.LOCK_SH)
            os.utime(descriptor)  # for remove_unused by age
        if os.fstat(descriptor).st_size != num_bytes or hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            return None
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)


def remove_unused(path: Path) -> bool:
    """Remove a file unless a living process has mapped it with `in_use`; returns whether it is gone."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process, and one thread of it, is in the block at a time. The kernel frees the lock of a killed one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
