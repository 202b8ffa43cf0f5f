"""S3 through boto3: one client, and which of its faults may pass.

boto3 repeats a request two or three times within seconds; everything longer is the patience of the context.
"""

import os
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from cdrl.errors import DataError, StorageError
from cdrl.storage.patience import patiently

__all__ = ["Damaged", "client", "endpoint", "is_transient", "persistent"]

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 20  # of silence: a slow body that still moves is not cut off
NUM_RETRIES = 2  # of boto3 itself, with its own backoff

TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
# some come with status 400: bodies that were cut or changed on their way, and clocks of a busy server
TRANSIENT_CODES = {
    "BadDigest",
    "IncompleteBody",
    "InternalError",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "XAmzContentChecksumMismatch",
}
CREDENTIAL_CODES = {
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "401",
    "403",
}
CREDENTIAL_HINT = "check the AWS credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE)"


class Damaged(DataError):
    """A body with another digest than expected; it may have been changed on its way."""


def persistent(verb: str, uri: str, attempt: Callable[[], T]) -> T:
    """Make a request with the patience of the context; failures become one line with the URI and the endpoint.

    Raises:
        StorageError: not there, not allowed, or not reachable for longer than the patience.
        DataError: what the attempt itself found.
    """
    return patiently(attempt, is_transient, lambda error, lost_s: _explained(verb, uri, error, lost_s))


def endpoint() -> str | None:
    """Another server than Amazon's, if the environment names one."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def client() -> Any:
    """The boto3 client for the environment as it stands; safe to share between threads."""
    place = endpoint()
    try:
        return _client_for(place, os.environ.get("AWS_ACCESS_KEY_ID"))
    except ValueError as error:
        raise StorageError(f"AWS_ENDPOINT_URL: {_one_line(error)}; expected http(s)://host:port") from None


@lru_cache(maxsize=4)
def _client_for(place: str | None, access_key_id: str | None) -> Any:
    del access_key_id  # the key of the cache only: boto3 reads the environment itself
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "max_attempts": NUM_RETRIES},
        # servers other than Amazon's rarely answer to bucket names in the host name
        s3={"addressing_style": "path"} if place else None,
    )
    return boto3.session.Session().client("s3", endpoint_url=place, config=config)


def _cause(error: BaseException) -> BaseException:
    """What lies behind "max retries exceeded" of a transfer in parts."""
    return getattr(error, "last_exception", None) or error


def is_transient(error: BaseException) -> bool:
    """Whether a failure of a request may pass if it is made again later."""
    from botocore import exceptions

    error = _cause(error)
    if isinstance(error, exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status in TRANSIENT_STATUS or _code(error) in TRANSIENT_CODES
    if isinstance(error, exceptions.SSLError):
        return False  # a certificate does not mend itself
    passing = (
        exceptions.ConnectionError,
        exceptions.HTTPClientError,
        exceptions.IncompleteReadError,
        exceptions.FlexibleChecksumError,
        ConnectionError,
        TimeoutError,
        Damaged,
    )
    return isinstance(error, passing)


def _explained(verb: str, uri: str, error: BaseException, lost_s: float) -> BaseException:
    from boto3.exceptions import Boto3Error
    from botocore import exceptions
    from s3transfer.exceptions import RetriesExceededError

    known = (exceptions.BotoCoreError, exceptions.ClientError, Boto3Error, RetriesExceededError, OSError)
    if not isinstance(error, known):
        return error
    error = _cause(error)
    line = f"cannot {verb} {uri} at {_bare(endpoint() or 'Amazon S3')}: {_one_line(error)}"
    if lost_s:
        line += f"; tried for {lost_s:.0f} s"
    unsigned = (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.CredentialRetrievalError)
    if _code(error) in CREDENTIAL_CODES or isinstance(error, unsigned):
        line += f"; {CREDENTIAL_HINT}"
    return StorageError(line)


def _code(error: BaseException) -> str:
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _one_line(error: BaseException) -> str:
    return _bare(" ".join(str(error).split()).rstrip("."))


def _bare(text: str) -> str:
    """Without a password in a URL."""
    return re.sub(r"://[^/@\s]*@", "://", text)
