"""`Limit`: until when, or until what, a read may run.

Called by the verbs that take a timeout, by `AsyncStorage` for reads whose caller has gone, and by the engines, which
ask now and then whether the read of the current thread is over. A flag of its own and not the driver's interrupt, which
would stop whatever the connection happens to be doing by then.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from mycelia_storage.arguments import check_duration
from mycelia_storage.errors import StorageTimeoutError

if TYPE_CHECKING:
    from types import TracebackType


class _Current(threading.local):
    def __init__(self) -> None:
        self.limits: list[Limit] = []
        self.hurry_until: float = 0.0


_current = _Current()
# For an event loop's own thread: while its `hurry_until` is set, what it reads waits for nobody, and is over at that
# time of `time.monotonic`. Where it would have to wait for a connection or a lock, it is a StorageBusyError at once.
# (An attribute and no context manager, because a point read takes little more time than one.)
hurrying: Final = _current


class Limit:
    """A context manager: the limit of what the current thread reads inside. Limits nest; each of them counts.

    Entering one that is over already raises StorageTimeoutError.
    """

    __slots__ = ("_deadline", "_is_cancelled", "_seconds")

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._is_cancelled = False

    def __enter__(self) -> Self:
        reason = self.reason()
        if reason is not None:
            raise StorageTimeoutError(reason)
        _current.limits.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _current.limits.pop()

    def cancel(self) -> None:
        """Stop what runs inside, soon. From any thread."""
        self._is_cancelled = True

    def reason(self) -> str | None:
        """Why it is over; None while it is not."""
        if self._is_cancelled:
            return "the read was cancelled"
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return f"the read took longer than its timeout of {self._seconds:g} s"
        return None

    def left(self) -> float:
        """So many seconds are left of it."""
        return math.inf if self._deadline is None else max(0.0, self._deadline - time.monotonic())


_UNLIMITED: Final[contextlib.AbstractContextManager[object]] = contextlib.nullcontext()


def limited(timeout: object) -> contextlib.AbstractContextManager[object]:
    """The limit that a verb's `timeout` says, in seconds or as a timedelta. Raises InvalidValueError."""
    return _UNLIMITED if timeout is None else Limit(check_duration("timeout", timeout))


def is_limited() -> bool:
    """Whether what the current thread reads has a limit."""
    return bool(_current.limits) or _current.hurry_until > 0


def is_hurried() -> bool:
    """Whether what the current thread reads must not wait for anybody."""
    return _current.hurry_until > 0


def is_over() -> bool:
    """Whether the current thread's read is over."""
    return any(limit.reason() is not None for limit in _current.limits) or 0 < _current.hurry_until <= time.monotonic()


def time_left(most: float) -> float:
    """How many seconds the current thread's read may still wait, `most` at most."""
    return min(most, *(limit.left() for limit in _current.limits)) if _current.limits else most


def timeout_error() -> StorageTimeoutError:
    """Why the current thread's read was stopped."""
    reasons = filter(None, (limit.reason() for limit in _current.limits))
    return StorageTimeoutError(next(reasons, "the read was stopped"))


def check_limit() -> None:
    """Raise StorageTimeoutError where the current thread's read is over."""
    if is_over():
        raise timeout_error()
