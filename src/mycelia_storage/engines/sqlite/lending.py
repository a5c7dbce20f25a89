"""The connection of an open transaction, and how a scan reads where there are no snapshots.

Called by the engine, which makes them, and by the sessions that run on them.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Final

import apsw

from mycelia_storage.engines.limits import is_limited, is_over
from mycelia_storage.engines.sqlite.connection import STEPS_BETWEEN_LOOKS
from mycelia_storage.engines.sqlite.failures import DRIVER_ERRORS, roll_back
from mycelia_storage.engines.sqlite.session import Statements

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from mycelia_storage.engines.sqlite.engine import SQLiteEngine
    from mycelia_storage.engines.sqlite.writer import Writer

COMMIT: Final = "COMMIT"


class Lending:
    """The connection of one open transaction, lent to its session for every statement until it ends.

    One that only reads has no `writer`.
    """

    def __init__(
        self,
        engine: SQLiteEngine,
        connection: apsw.Connection,
        give_back: Callable[[], None],
        writer: Writer | None = None,
    ) -> None:
        self._engine = engine
        self._writer = writer
        self.connection: apsw.Connection = connection
        self._give_back: Callable[[], None] | None = give_back
        # close() ends a session from another thread: between two of its calls, never within one.
        self._lock = threading.RLock()
        self.thread: int = threading.get_ident()

    def reading(self) -> Lending:
        return self

    writing = reading

    def time(self, now: int) -> int:
        return now

    def __enter__(self) -> apsw.Connection:
        self._lock.acquire()
        if self._give_back is None or not self.connection.in_transaction:
            self._lock.release()
            raise self._engine.ended_error()
        if is_limited():
            self.connection.set_progress_handler(is_over, STEPS_BETWEEN_LOOKS)
        return self.connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if is_limited():
                self.connection.set_progress_handler(None)
            if isinstance(error, apsw.InterruptError):
                raise self._engine.failure(error) from error  # a read was stopped, and the transaction goes on
            if isinstance(error, DRIVER_ERRORS):
                # SQLite undoes the statement, or everything, depending on the error: for the caller it is everything.
                self._undo()
                raise (self._writer or self._engine).failure(error, committing=False) from error
        finally:
            self._lock.release()

    def __del__(self) -> None:
        # Nobody has it any more, and nobody ended it: an exception came between beginning and keeping it.
        self.rollback()

    def commit(self) -> None:
        with self._lock:
            try:
                with self as connection:
                    pass
                if self._writer is None:
                    connection.execute(COMMIT)
                else:
                    self._writer.commit()
            except DRIVER_ERRORS as error:
                raise (self._writer or self._engine).failure(error) from error
            finally:
                self.rollback()
        self._engine.writer.after_write()

    def rollback(self) -> None:
        with self._lock:
            give_back, self._give_back = self._give_back, None
            if give_back is None:
                return
            try:
                self._undo()
            finally:
                try:
                    give_back()
                finally:
                    self._engine.ended(self)  # last, or a fork of another thread would find it open

    def _undo(self) -> None:
        """Who gets the connection back sees to one that could not roll back."""
        with contextlib.suppress(*DRIVER_ERRORS):
            roll_back(self.connection)

    def abandon(self) -> None:
        """For the child of a fork: forget a transaction that is the parent's."""
        self._lock = threading.RLock()
        self._give_back = None


class PageByPage(Statements):
    """A scan's session without WAL, where a long read transaction would keep every writer out."""

    def rollback(self) -> None:
        """Nothing is open."""
