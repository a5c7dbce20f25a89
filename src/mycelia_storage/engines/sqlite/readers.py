"""`Readers`: the connections that read, lent to whichever thread needs one for a statement or a transaction.

Called by the engine and by the primitives that read.
"""

from __future__ import annotations

import contextlib
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from mycelia_storage.engines.limits import is_hurried, is_over, time_left, timeout_error
from mycelia_storage.engines.sqlite.connection import limited, open_reader
from mycelia_storage.engines.sqlite.failures import DRIVER_ERRORS
from mycelia_storage.engines.turns import PASSING, Turns, Waiter
from mycelia_storage.errors import StorageBusyError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import apsw

    from mycelia_storage.engines.sqlite.engine import SQLiteEngine
    from mycelia_storage.options import Options


class _Place(Waiter):
    """A place in the line for a reader. `has_come`: it is there, or None for one that may be opened instead."""

    __slots__ = ("cursor", "has_come")

    def __init__(self) -> None:
        super().__init__()
        self.has_come: bool = False
        self.cursor: apsw.Cursor | None = None

    def is_served(self) -> bool:
        return self.has_come


class Readers(Turns[_Place]):
    """At most `max_readers` connections, opened when they are needed.

    They are lent as cursors, because making one for every statement costs a tenth of a read. Who uses one reads all
    rows, so that no statement stays open.
    """

    def __init__(self, engine: SQLiteEngine, options: Options) -> None:
        super().__init__(PASSING)
        self._engine = engine
        self._options = options
        self._idle: SimpleQueue[apsw.Cursor | None] = SimpleQueue()
        self._opening = threading.Lock()
        self._counting = threading.RLock()
        self.made: int = 0
        self.is_closed: bool = False
        self._refusal: Callable[[], StorageError] | None = None

    def lend(self) -> apsw.Cursor:
        """A cursor that nobody uses; who has it gives it back.

        Waits up to `busy_timeout`, or as long as the read may take.
        """
        if not self._waiting or self._may_pass():
            try:
                cursor = self._idle.get_nowait()
            except Empty:
                return self._lend_later()
            return self._lend_later(may_open=True) if cursor is None else cursor
        return self._lend_later()

    def lend_for_long(self) -> apsw.Cursor:
        """As `lend`, for who may keep it for longer than a read takes: it passes nobody who waits."""
        return self._lend_later() if self._waiting else self.lend()

    def give_back(self, cursor: apsw.Cursor | None) -> None:
        """Let others use it. None stands for one that was discarded, so that another may be opened."""
        self._idle.put(cursor)
        if self._waiting:
            self._call_next()

    def _lend_later(self, *, may_open: bool = False) -> apsw.Cursor:
        """`may_open`: it has taken the place of one that was discarded. Who makes no use of that gives it on."""
        try:
            if is_hurried():
                raise self._busy(0.0)
            patience = time_left(self._options.busy_timeout)
            deadline = time.monotonic() + patience
            while True:
                self._require_trust()
                if self.is_closed:
                    raise self._engine.closed_error()
                with self._opening:
                    if self.made < self._options.max_readers:
                        cursor = self.open().cursor()
                        self._count(1)
                        return cursor
                place = _Place()
                if not self._wait(place, deadline - time.monotonic(), passable=True):
                    raise self._busy(patience)
                may_open = place.cursor is None
                if place.cursor is not None:
                    if self._refusal is not None:
                        self.give_back(place.cursor)
                        continue
                    return place.cursor
        except BaseException:
            if may_open:
                self.give_back(None)
            raise

    def _is_free(self) -> bool:
        return not self._idle.empty()

    def _serve(self, waiter: _Place) -> bool:
        try:
            cursor = self._idle.get_nowait()
        except Empty:
            return False
        if waiter.has_come:  # a destructor or a signal handler came in between, and gave it another
            self._idle.put(cursor)
        else:
            waiter.cursor, waiter.has_come = cursor, True
        return True

    def _take_from(self, waiter: _Place) -> None:
        self.give_back(waiter.cursor)

    def _busy(self, patience: float) -> StorageError:
        if self.is_closed:
            return self._engine.closed_error()
        if is_over():
            return timeout_error()
        limit = f"max_readers={self._options.max_readers}, waited {patience:g} s"
        return StorageBusyError(f"{self._options.path}: every reader connection is in use ({limit})")

    def refuse(self, refusal: Callable[[], StorageError]) -> None:
        """Open none any more. Who reads just now comes to its end, and idle ones are not asked: see `refuse_reads`."""
        self._refusal = refusal

    def _require_trust(self) -> None:
        if self._refusal is not None:
            raise self._refusal()

    def take_back(self, cursor: apsw.Cursor) -> None:
        """After a transaction: one that could not be rolled back is not lent again."""
        if cursor.connection.in_transaction:
            self.discard(cursor)
        else:
            self.give_back(cursor)

    def discard(self, cursor: apsw.Cursor) -> None:
        """Close a reader whose statement failed.

        Who keeps the exception keeps its cursors too, and with them the state of the file that they read.
        """
        cursor.connection.close(True)
        self._count(-1)
        self.give_back(None)

    def open(self) -> apsw.Connection:
        """A connection besides those that are lent, for a scan."""
        if self.is_closed:
            raise self._engine.closed_error()
        self._require_trust()
        trust = self._engine.writer.trust
        try:
            connection = open_reader(self._options.path, self._options)
        except DRIVER_ERRORS as error:
            trust.require_same()
            raise self._engine.failure(error) from error
        try:
            trust.require_same()
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """A connection for one statement."""
        cursor = self.lend()
        try:
            with limited(cursor.connection):
                yield cursor.connection
        except BaseException as error:
            self.discard(cursor)
            if isinstance(error, DRIVER_ERRORS):
                raise self._engine.failure(error) from error
            raise
        self.give_back(cursor)

    def close(self, patience: float) -> bool:
        """Refuse what comes, and close what comes back in time. A longer read keeps its connection while it lasts."""
        with self._opening:
            self.is_closed = True
        is_done = self._close_all(patience)
        self._let_all_try()
        return is_done

    def hold(self, patience: float) -> bool:
        """Close every connection, and lend none until `let_go`. False: not all came back in time, and nothing is held.

        For a fork, whose child must not inherit an open connection.
        """
        deadline = time.monotonic() + patience
        if not self._opening.acquire(timeout=patience):
            return False
        if self._close_all(deadline - time.monotonic()):
            return True
        self.let_go()
        return False

    def let_go(self) -> None:
        """End `hold`."""
        self._opening.release()
        self._let_all_try()

    def anew(self, *, is_closed: bool) -> Readers:
        """The same without connections, for the child of a fork, or for good."""
        new = Readers(self._engine, self._options)
        new.is_closed = is_closed
        new._refusal = self._refusal
        return new

    def _let_all_try(self) -> None:
        """What they wait for has been closed, and does not come back: they open their own, or find that they cannot."""
        for _ in range(len(self._waiting)):
            self.give_back(None)

    def _close_all(self, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while self.made:
            try:
                # Not for long: a reader that is discarded does not come back.
                cursor = self._idle.get(timeout=max(0.0, min(deadline - time.monotonic(), 0.05)))
            except Empty:
                if time.monotonic() >= deadline:
                    return False
                continue
            if cursor is not None:
                cursor.connection.close()
                self._count(-1)
        return True

    def _count(self, change: int) -> None:
        with self._counting:
            self.made += change
