"""`Watchdog`: a thread that calls what is due.

Called by a store's `Home`, to end transactions over their time, by its `Upkeep`, and by an engine for its files, each
with one of its own. The thread is started by the first thing to watch, and ends when it has had none for a while, or
with the store.

When the interpreter is about to end, a destructor may still call. No thread begins then, and none ends: in Python 3.11
whoever started one, or waited for one or for its lock, would wait for ever.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final

from mycelia_storage.engines import forking

if TYPE_CHECKING:
    from collections.abc import Callable

LOG: Final = logging.getLogger("mycelia_storage")

# What is not done yet, a transaction in the middle of a call say, is called again after so many seconds.
_AGAIN: Final = 0.01
# With nothing to watch the thread stays for so many seconds, unless its owner says otherwise.
_LINGER: Final = 2.0
_MANY: Final = 100


class Watchdog:
    """Calls a method of whatever is watched when its time is over, from a thread of its own."""

    def __init__(self, name: str, *, linger: float = _LINGER) -> None:
        self._name = name
        self._linger = linger
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, weakref.WeakMethod[Callable[[], bool]]]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._many = _MANY
        forking.register(self)

    def watch(self, seconds: float, expire: Callable[[], bool]) -> bool:
        """Call the bound method `expire` in so many seconds, until it gives True; unless its object is gone by then.

        False: there is no thread, and nothing will be called.
        """
        if sys.is_finalizing():
            return False
        entry = (time.monotonic() + seconds, next(self._numbers), weakref.WeakMethod(expire))
        with self._changed:
            if self._thread is None and not self._is_closed and not self._start():
                return False
            heapq.heappush(self._due, entry)
            if len(self._due) > self._many:
                # Transactions that have ended are forgotten when they are many.
                self._due = [entry for entry in self._due if entry[2]() is not None]
                heapq.heapify(self._due)
                self._many = max(_MANY, 2 * len(self._due))
            self._changed.notify()
        return True

    def _start(self) -> bool:
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            LOG.warning("%s: no thread could be started: %s", self._name, error)
            return False
        self._thread = thread
        return True

    def close(self) -> None:
        """End the thread, and wait for that."""
        self._is_closed = True
        if sys.is_finalizing():
            return
        with self._changed:
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                expire = self._next()
                if expire is None and (self._is_closed or not self._due):
                    self._thread = None
                    return
            if expire is not None and not self._call(expire):
                self.watch(_AGAIN, expire)

    def _call(self, expire: Callable[[], bool]) -> bool:
        """Whatever is wrong with one of them, the others have to go on."""
        try:
            return expire()
        except Exception:
            LOG.exception("a transaction could not be ended, or the store not be looked after")
            return True

    def _next(self) -> Callable[[], bool] | None:
        """What is due now; waits for that, and gives None when there is nothing or something has changed."""
        if self._is_closed:
            return None
        if not self._due:
            self._changed.wait(self._linger)
            return None
        while self._due and self._due[0][2]() is None:
            heapq.heappop(self._due)  # it has ended and is forgotten
        left = self._due[0][0] - time.monotonic() if self._due else 0.0
        if left > 0:
            self._changed.wait(min(left, _LINGER))
        if left > 0 or not self._due:
            return None
        return heapq.heappop(self._due)[2]()

    def before_fork(self) -> bool:
        """There is nothing to close."""
        return True

    def after_fork(self, *, in_child: bool, is_ready: bool) -> None:
        """Threads stay with the parent, and so does what they watch."""
        del is_ready
        if in_child:
            self._changed = threading.Condition()
            self._due = []
            self._thread = None
