"""Patience: faults that pass are ridden out, with exponential backoff and full jitter, until a deadline.

The deadline is a property of the context, so that no call has to hand it on: a command that a person waits for gives up
soon, a run that has trained for days waits for an hour. A thread begins without the context of the one that started it;
`contextvars.copy_context().run(function)` carries it along.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tenacity import RetryCallState

__all__ = ["DEFAULT_S", "Tell", "patience", "patiently"]

T = TypeVar("T")

Tell = Callable[[str, float], None]
"""Called before each wait, and when the call has succeeded after all: one line, and the seconds lost since it was last
called for this call; so that the sum over all is the time lost."""

DEFAULT_S = 20.0
FIRST_WAIT_S = 0.25  # the waits are drawn between 0 and 0.25, 0.5, 1, ... 10 s
LONGEST_WAIT_S = 10.0


@dataclass(frozen=True)
class _Patience:
    seconds: float
    tell: Tell | None


_USUAL = _Patience(DEFAULT_S, None)
_CURRENT: ContextVar[_Patience] = ContextVar("patience", default=_USUAL)


@contextmanager
def patience(seconds: float, tell: Tell | None = None) -> Iterator[None]:
    """Calls of the storage within this block ride out transient faults for so many seconds.

    Args:
        seconds: how long one call tries on, counted from its first failure; 0 = no second try.
        tell: see `Tell`.
    """
    token = _CURRENT.set(_Patience(seconds, tell))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def patiently(
    attempt: Callable[[], T],
    is_transient: Callable[[BaseException], bool],
    explained: Callable[[BaseException, float], BaseException],
) -> T:
    """Try until it succeeds, fails for good, or the patience of this context is over.

    Args:
        is_transient: whether a failure may pass.
        explained: from a failure and the seconds lost since the first one to the error that the caller shall see.
    """
    # here, so that training on local files runs where nothing for S3 is installed
    from tenacity import Retrying, retry_if_exception, wait_random_exponential

    current, backoff = _CURRENT.get(), wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S)
    first_failure_s: float | None = None
    lost_s = told_s = 0.0
    fault = ""

    def is_over(state: "RetryCallState") -> bool:
        nonlocal first_failure_s, lost_s
        now_s = state.outcome_timestamp or 0.0
        first_failure_s = now_s if first_failure_s is None else first_failure_s
        lost_s = now_s - first_failure_s
        return lost_s >= current.seconds

    def wait(state: "RetryCallState") -> float:
        return min(backoff(state), current.seconds - lost_s)

    def tell(state: "RetryCallState") -> None:
        nonlocal told_s, fault
        error = state.outcome.exception() if state.outcome else None
        if current.tell is not None and error is not None:
            fault = str(explained(error, lost_s))
            current.tell(fault, lost_s - told_s)
            told_s = lost_s

    again = Retrying(retry=retry_if_exception(is_transient), stop=is_over, wait=wait, before_sleep=tell, reraise=True)
    try:
        result = again(attempt)
    except Exception as error:
        raise explained(error, lost_s) from None
    if current.tell is not None and first_failure_s is not None:
        whole_s = time.monotonic() - first_failure_s
        current.tell(f"went on after {whole_s:.1f} s: {fault}", whole_s - told_s)
    return result
