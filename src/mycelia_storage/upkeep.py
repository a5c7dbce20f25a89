"""`Upkeep`: removes what has expired, in small steps, from a thread of its own.

Called by a store's `Home`, and by `Storage.optimize`. The thread is started once the store holds something that
expires, and ends with the store. It is not the watchdog's: a step stands in line for the write lock, which a
transaction may have that the watchdog has to end.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from mycelia_storage.engines.watchdog import Watchdog
from mycelia_storage.errors import StorageBusyError, StorageClosedError, StorageError, TransactionConflictError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mycelia_storage.engines.engine import Engine

LOG: Final = logging.getLogger("mycelia_storage")

# Every so many seconds it is looked whether something has expired.
CLEAN_UP_EVERY = 60.0
# A step is to hold the write lock for so many seconds, its commit included; so many entries are tried first, and no
# step has more. (The engine makes it fewer where they are big.)
_WANTED_SECONDS: Final = 0.005
_FIRST_ENTRIES: Final = 64
_MOST_ENTRIES: Final = 1000
# Between two steps it rests, at least so long, and for so many times what the step took: others write then.
_LEAST_REST: Final = 0.01
_REST_FACTOR: Final = 3
# A step waits for its turn no longer than this: `close` waits for it. Then it tries again after a second.
_PATIENCE: Final = 0.25
_AFTER_BUSY: Final = 1.0


class Upkeep:
    """What a store does by itself to stay small."""

    def __init__(self, engine: Engine, now: Callable[[], int]) -> None:
        self._engine = engine
        self._now = now
        self._entries = _FIRST_ENTRIES
        self._is_expected = False
        self._is_closed = False
        self._calls = Watchdog("mycelia-upkeep")

    def expect_expiry(self) -> None:
        """Something is there that expires: from now on what has expired is removed now and then."""
        if not self._is_expected:
            self._is_expected = self._calls.watch(CLEAN_UP_EVERY, self.clean_up)

    def forget(self) -> None:
        """For the child of a fork, which has no such thread."""
        self._is_expected = False

    def close(self) -> None:
        """Begin no further step, and wait for the end of the one that is under way."""
        self._is_closed = True
        self._calls.close()

    def clean_up(self) -> bool:
        """Do one step, and have the next one done later. (What is left is invisible anyway.)"""
        later = CLEAN_UP_EVERY
        try:
            removed, seconds = self.remove_some(_PATIENCE)
            if removed:
                later = max(_LEAST_REST, _REST_FACTOR * seconds)
        except (StorageBusyError, TransactionConflictError):
            later = min(CLEAN_UP_EVERY, _AFTER_BUSY)
        except StorageClosedError:
            pass
        except StorageError as error:
            LOG.warning("what has expired could not be removed and stays invisible: %s", error)
        if not self._is_closed:
            self._calls.watch(later, self.clean_up)
        return True

    def remove_some(self, wait: float | None) -> tuple[int, float]:
        """One step: gives how many entries it removed, 0 where none is left, and for how many seconds it held the lock.

        It stands in line for the lock like everybody else, `wait` seconds at most (None: `busy_timeout`), so that it
        has its turn however much is written.
        """
        # The least isolation: what is removed depends on nothing else, and other transactions are not to suffer for it.
        session = self._engine.begin(wait=wait, isolation="read_committed")
        started = time.monotonic()
        try:
            removed = session.purge(self._now(), self._entries)
            session.commit()
        finally:
            session.rollback()
        seconds = time.monotonic() - started
        if seconds > 2 * _WANTED_SECONDS:
            self._entries = max(1, self._entries // 2)
        elif seconds < _WANTED_SECONDS:
            self._entries = min(_MOST_ENTRIES, 2 * self._entries)
        return removed, seconds
