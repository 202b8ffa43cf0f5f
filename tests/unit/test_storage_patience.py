"""Patience lasts as long as it is told to, for faults that pass and for no others."""

import threading
import time
from collections.abc import Callable
from contextvars import copy_context

import pytest
from botocore.exceptions import ClientError

from cdrl import storage
from cdrl.storage.patience import patiently
from cdrl.storage.s3 import is_transient


class Failing:
    """Fails so many times, then answers 7."""

    def __init__(self, times: float, kind: type[Exception] = ConnectionError) -> None:
        self.times, self.kind, self.calls = times, kind, 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.times:
            raise self.kind(f"fault {self.calls}")
        return 7


def call(attempt: Callable[[], int]) -> int:
    return patiently(
        attempt,
        lambda error: isinstance(error, ConnectionError),
        lambda error, lost_s: RuntimeError(f"{error} after {lost_s:.2f} s"),
    )


def test_faults_that_pass_are_ridden_out_and_told() -> None:
    told: list[tuple[str, float]] = []
    attempt = Failing(3)
    begin_s = time.monotonic()
    with storage.patience(30, lambda text, lost_s: told.append((text, lost_s))):
        assert call(attempt) == 7
    assert attempt.calls == 4
    assert [text.split(" after")[0] for text, _ in told] == ["fault 1", "fault 2", "fault 3", "went on"]
    lost = [lost_s for _, lost_s in told]
    assert lost[0] == 0 and min(lost) >= 0 and 0 < sum(lost) <= time.monotonic() - begin_s


def test_the_deadline_counts_from_the_first_failure() -> None:
    class LateFailing(Failing):
        def __call__(self) -> int:
            if not self.calls:
                time.sleep(0.3)  # longer than the patience, before anything failed
            return super().__call__()

    with storage.patience(0.2):
        assert call(LateFailing(1)) == 7


def test_the_end_of_patience_is_told_with_the_time_lost() -> None:
    attempt = Failing(float("inf"))
    with storage.patience(0.2), pytest.raises(RuntimeError, match=r"fault \d+ after 0\.[2-9]\d s"):
        call(attempt)
    assert attempt.calls > 1
    with storage.patience(0), pytest.raises(RuntimeError, match="fault 1 after 0.00 s"):
        call(Failing(1))


def test_other_faults_are_told_at_once() -> None:
    attempt = Failing(1, PermissionError)
    with storage.patience(30), pytest.raises(RuntimeError, match="fault 1 after 0.00 s"):
        call(attempt)
    assert attempt.calls == 1


def test_a_block_inside_has_its_own_patience_and_a_thread_carries_a_copy() -> None:
    found = []
    with storage.patience(30):
        with storage.patience(0), pytest.raises(RuntimeError):
            call(Failing(1))
        assert call(Failing(1)) == 7
        with storage.patience(0):
            context = copy_context()

        def one() -> None:
            found.append(pytest.raises(RuntimeError, call, Failing(1)))

        thread = threading.Thread(target=context.run, args=(one,))
        thread.start()
        thread.join()
    assert len(found) == 1


@pytest.mark.parametrize(
    ("status", "code", "passes"),
    [
        (500, "InternalError", True),
        (502, "502", True),
        (503, "SlowDown", True),
        (504, "504", True),
        (429, "TooManyRequests", True),
        (400, "RequestTimeout", True),
        (400, "BadDigest", True),
        (400, "ExpiredToken", False),
        (403, "AccessDenied", False),
        (403, "InvalidAccessKeyId", False),
        (403, "SignatureDoesNotMatch", False),
        (404, "NoSuchBucket", False),
        (404, "NoSuchKey", False),
        (501, "NotImplemented", False),
    ],
)
def test_which_answers_of_a_server_may_pass(status: int, code: str, passes: bool) -> None:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    assert is_transient(ClientError(answer, "GetObject")) == passes
