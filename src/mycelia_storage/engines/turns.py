"""`Turns`: who waits for something that others have and give back, and whose turn it is.

Called by `Line`, which is about a lock, and by the readers of SQLite, which are a few connections.

First come, first served, but for one thing. Whoever is handed something while it sleeps has it for as long as waking
up takes, ten times as long as a read or a write takes; meanwhile all others come to the end of what they do, find
nothing, and go to sleep too. So the head of the line is called at first, and tries for itself; and who runs just then
may pass it, for as long as the interpreter too lets a thread run on while others wait (`sys.getswitchinterval`). After
that it is handed what it waits for. (The same idea as in the locks of Go and of WebKit, which are fair after 1 ms.)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from threading import Lock, RLock
from time import monotonic
from typing import Final, Generic, TypeVar

# So long at most, in seconds, others may pass who is called.
PASSING: Final = 0.005
# And for no longer than this part of the time that it may wait.
_PART_OF_PATIENCE: Final = 0.5
# Nobody sleeps longer than this without a look whether its turn has come: an exception from a signal handler may have
# kept somebody else from waking it.
_LONGEST_SLEEP: Final = 0.5
# Who was called and has been passed is not called again. It looks by itself after so long, and then after so many times
# as long again. (With one nap for all the time that it may be passed, threads that pause between two writes slept for
# 5 ms before a lock that was free; with many short naps, those that do not pause are held up by a tenth and more.)
_FIRST_NAP: Final = 0.0001
_NAPS_GROW: Final = 4


class Waiter(ABC):
    """A place in line.

    `is_gone`: nobody waits with it any more, because an exception came from a signal handler.
    """

    __slots__ = ("bell", "is_called", "is_gone", "is_rung", "may_be_passed_until", "nap")

    def __init__(self) -> None:
        self.is_gone: bool = False
        self.is_called: bool = False  # to try for itself; it is called once
        self.is_rung: bool = False  # and has not heard it yet
        self.may_be_passed_until: float = 0.0
        self.nap: float = _FIRST_NAP
        self.bell: Lock = Lock()
        self.bell.acquire()

    @abstractmethod
    def is_served(self) -> bool:
        """Whether it has what it waits for, or does not need it any more."""

    def ring(self) -> None:
        """Wake it. Called by who has the line's `_changing`."""
        if not self.is_rung:
            self.is_rung = True
            self.bell.release()


W = TypeVar("W", bound=Waiter)


class Turns(ABC, Generic[W]):
    """Those who wait. `passing`: so long at most, in seconds, others may pass who is called."""

    def __init__(self, passing: float) -> None:
        self._passing = passing
        # Reentrant: the garbage collector may end a forgotten transaction, and so give something back, at any point.
        self._changing = RLock()
        self._waiting: deque[W] = deque()

    @abstractmethod
    def _is_free(self) -> bool:
        """Whether there is something to be had."""

    @abstractmethod
    def _serve(self, waiter: W) -> bool:
        """Give what is to be had to a waiter, unless it has got it already. False: there is nothing."""

    @abstractmethod
    def _take_from(self, waiter: W) -> None:
        """An exception came to a waiter that is served: what it has is given back."""

    def _may_pass(self) -> bool:
        """Whether who runs just now may take what is free, whoever stands in line."""
        waiting = self._waiting
        try:
            return not waiting or monotonic() < waiting[0].may_be_passed_until
        except IndexError:
            return True

    def _wait(self, waiter: W, timeout: float, *, passable: bool) -> bool:
        """Stand in line until it is served. False: not within so many seconds, and it has left.

        Nobody passes one that is not `passable`. Nor is who stands before somebody passed for longer than that one.
        """
        began = monotonic()
        deadline = began + timeout
        try:
            with self._changing:
                if passable:
                    waiter.may_be_passed_until = began + min(self._passing, timeout * _PART_OF_PATIENCE)
                if self._waiting and self._waiting[-1].may_be_passed_until > waiter.may_be_passed_until:
                    for other in tuple(self._waiting):
                        other.may_be_passed_until = min(other.may_be_passed_until, waiter.may_be_passed_until)
                self._waiting.append(waiter)
            self._call_next()
            while not self._sleep(waiter, deadline):
                self._call_next()
                if monotonic() < deadline:
                    continue
                if self._leave(waiter):
                    self._call_next()
                    return False
                # Just now its turn came, or it was taken: that comes to its end, however long it takes.
                deadline = math.inf
        except BaseException:
            if not self._leave(waiter, for_good=True) and waiter.is_served():
                self._take_from(waiter)
            self._call_next()
            raise
        return True

    def _call_next(self) -> None:
        """Something was given back: see to it that who waits for it gets it.

        A destructor or a signal handler may come in between at any call and do the same; or an exception, and then
        the head of the line may be served already.
        """
        with self._changing:
            while self._waiting:
                head = self._waiting[0]
                if monotonic() < head.may_be_passed_until:
                    if not head.is_called and self._is_free():
                        head.is_called = True
                        head.ring()
                    return
                if not self._serve(head):
                    return
                self._let_out(head)
                head.ring()

    def _sleep(self, waiter: W, deadline: float) -> bool:
        """Sleep until there is something to look at; whether it is served."""
        now = monotonic()
        wakes_at = min(deadline, now + _LONGEST_SLEEP)
        if waiter.is_called and now < waiter.may_be_passed_until:
            wakes_at = min(wakes_at, waiter.may_be_passed_until, now + waiter.nap)
            waiter.nap *= _NAPS_GROW
        is_heard = waiter.bell.acquire(timeout=max(0.0, wakes_at - now))
        with self._changing:
            if is_heard:
                waiter.is_rung = False
            is_first = self._waiting and self._waiting[0] is waiter
            if is_first and (waiter.is_served() or self._serve(waiter)):
                self._let_out(waiter)
                self._call_next()  # there may be more than one of it
            return waiter.is_served()

    def _let_out(self, head: W) -> None:
        if self._waiting and self._waiting[0] is head:
            self._waiting.popleft()

    def _leave(self, waiter: W, *, for_good: bool = False) -> bool:
        """False: it is served, or somebody sees to that just now."""
        with self._changing:
            try:
                self._waiting.remove(waiter)
            except ValueError:
                waiter.is_gone = for_good
                return False
            return not waiter.is_served()
