"""The one door to bytes: local files and S3 behind the same few functions.

A URI is a plain path, `file:///absolute/path` or `s3://bucket/key`. Endpoint, region and credentials of S3 come from
the standard AWS environment (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, profiles, roles). Files appear whole or not at
all: they are written under another name and then renamed; an S3 object is atomic by itself.

Every function rides out faults of S3 that pass (refused and broken connections, timeouts, 5xx, SlowDown, bodies cut or
changed on their way) for as long as `patience` says, and tells others (credentials, no such bucket or key) at once.
"""

from cdrl.storage.claim import create_bytes
from cdrl.storage.door import (
    download,
    exists,
    filesystem,
    find_bytes,
    listing,
    read_bytes,
    read_range,
    remove,
    remove_folder,
    sha256_file,
    upload,
    write_bytes,
)
from cdrl.storage.patience import patience
from cdrl.storage.uris import is_local, join, local_path

__all__ = [
    "create_bytes",
    "download",
    "exists",
    "filesystem",
    "find_bytes",
    "is_local",
    "join",
    "listing",
    "local_path",
    "patience",
    "read_bytes",
    "read_range",
    "remove",
    "remove_folder",
    "sha256_file",
    "upload",
    "write_bytes",
]
