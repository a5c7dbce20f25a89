"""`Trust`: whether what is written next would be kept, by where the file is and by what the disk has confirmed.

Called by the writer, before each write, before each commit and after what failed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from typing import TYPE_CHECKING, Final

import apsw

from mycelia_storage.engines.sqlite.connection import LOOK
from mycelia_storage.engines.sqlite.failures import DRIVER_ERRORS, is_failed_sync, roll_back
from mycelia_storage.errors import StorageIOError

if TYPE_CHECKING:
    from mycelia_storage.options import Options

BEGIN_TO_WRITE: Final = "BEGIN IMMEDIATE"
COMMIT: Final = "COMMIT"

LOG: Final = logging.getLogger("mycelia_storage")

# What keeps a checkpoint from its end for now; the -wal has everything until the next one.
ANOTHER_TIME: Final = (apsw.BusyError, apsw.LockedError, apsw.FullError)

COMMIT_IN_DOUBT: Final = (
    "the disk did not confirm an earlier commit, so nothing is written any more: close the store, open it again, and "
    "read what is there"
)
DISK_IN_DOUBT: Final = (
    "the disk did not confirm what was written to it, so nothing is written any more: close the store and open it "
    "again. What was committed is there, but a power cut might take it"
)


class Trust:
    """Where the file was when it was opened, and why nothing is written any more, if so."""

    def __init__(self, path: str) -> None:
        self._path = path
        # Asking SQLite costs a third of a microsecond, half of os.stat, and it knows which file it has open.
        self._has_moved = ctypes.c_int()
        self._answer = ctypes.addressof(self._has_moved)
        self._identity: tuple[int, int] | None = None
        self._changing = threading.RLock()
        self.doubt: str | None = None

    def remember(self) -> None:
        """The file has just been opened: this is the one."""
        self._identity = self._found()

    def require(self, connection: apsw.Connection) -> None:
        """Raise StorageIOError where what is written now would go to a file that is not, or no more, under its name."""
        if self.doubt is not None:
            raise self.refusal()
        connection.file_control("main", apsw.SQLITE_FCNTL_HAS_MOVED, self._answer)
        if self._has_moved.value:
            raise self._moved_error()

    def require_same(self) -> None:
        """Raise StorageIOError where a connection that was opened just now has another file."""
        if self.is_elsewhere():
            raise self._moved_error()

    def is_elsewhere(self) -> bool:
        """Whether another file, or none, has the name now."""
        return self._identity is not None and self._found() != self._identity

    def lose(self, reason: str) -> None:
        """From now on nothing is written any more. From any thread; a commit in doubt stays the reason."""
        with self._changing:
            if self.doubt != COMMIT_IN_DOUBT:
                self.doubt = reason

    def refusal(self) -> StorageIOError:
        """Why nothing is written any more."""
        return StorageIOError(f"{self._path}: {self.doubt}")

    def _moved_error(self) -> StorageIOError:
        if not self.is_elsewhere():
            return StorageIOError(f"{self._path}: the operating system did not find the file for a moment")
        what = "replaced by another" if os.path.exists(self._path) else "moved away or removed"
        return StorageIOError(
            f"{self._path}: the file was {what} while the store had it open: put it back, or close the store and open "
            "it again. Nothing was written"
        )

    def _found(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def write_back(self, connection: apsw.Connection, mode: int) -> bool:
        """A checkpoint, for the owner of the writer's lock; False where it was put off.

        Raises the driver's errors.
        """
        try:
            connection.wal_checkpoint(mode=mode)
        except ANOTHER_TIME:
            return False
        except DRIVER_ERRORS as error:
            if not is_failed_sync(error):
                raise
            self.lose(DISK_IN_DOUBT)
            try:
                self.write_back_once_more(connection)
            except DRIVER_ERRORS:
                raise error from None
        return True

    def write_back_once_more(self, connection: apsw.Connection) -> None:
        """After the disk has not confirmed a checkpoint, for the owner of the writer's lock.

        Nobody knows then what the disk holds, and asking once more proves nothing: what it has lost it does not try
        again. But SQLite writes all of it once more, since it has not noted it as done. Where that is confirmed, up to
        the end of the -wal, and that begun anew, all is well. Raises the driver's errors, and leaves the doubt.
        """
        LOG.warning("%s: the disk did not confirm a checkpoint; it is done once more", self._path)
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        with self._changing:
            if self.doubt == DISK_IN_DOUBT:
                self.doubt = None


def begin_to_write(connection: apsw.Connection, cursor: apsw.Cursor | None = None) -> None:
    """Begin a transaction of several statements, with the lock on the file; with a cursor at hand it is quicker.

    Where another process has changed the tables, the first statement reads the schema anew, and with it the planner's
    statistics. Where these cannot be read, SQLite ends the transaction without a word, and goes on: what came then
    would be committed statement by statement. So the first one changes nothing.
    """
    run = connection if cursor is None else cursor
    run.execute(BEGIN_TO_WRITE)
    try:
        run.execute(LOOK).fetchall()
    except DRIVER_ERRORS:
        roll_back(connection)
        raise
    if not connection.in_transaction:
        raise apsw.exception_for(apsw.SQLITE_CORRUPT)


def settle(connection: apsw.Connection, options: Options) -> None:
    """Make certain that a commit which failed has not happened, whatever of it has come to the disk.

    In the -wal it may stand complete behind the end that every connection knows of, until another commit takes its
    place. Without one, a -journal that is still there is rolled back; but where it is gone, the commit has happened.
    """
    if options.synchronous != "OFF":
        connection.execute(f"PRAGMA synchronous={'FULL' if options.wal_mode else 'EXTRA'}")
    begin_to_write(connection)
    try:
        connection.pragma("user_version", connection.pragma("user_version"))
        connection.execute(COMMIT)
    finally:
        roll_back(connection)
