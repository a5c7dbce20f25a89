"""`Checkpoints`: writes the -wal file back, and keeps it from growing without end, from a thread of its own.

Called by the writer, now and then after a commit, and by the engine for its status.

SQLite writes the -wal back within the commit that finds 1,000 pages in it, and that one waits for the disk, twice. Here
a thread with a connection of its own does it, while others go on writing. What they add meanwhile is not much: a
commit that finds the -wal long writes that back itself, so that it is begun anew (see `Writer`).

It is begun anew when all of it is written back and nobody reads from it. Where one read begins before the other has
ended, that moment never comes: the -wal grows for as long as there are readers (measured: 290 MB in six seconds, with
four threads that count), and whoever commits after the last of them has ended writes all of it back. So, where it has
grown too large, commits leave it, and the thread

1. writes back what nobody reads any more, while others read and write;
2. then has the write lock for a moment, in which no new read can begin that would be in the way, waits for those that
   have begun, the longer the larger the -wal is, writes back what is left and cuts the -wal to nothing;
3. does not wait where it has come no further since the last time, because somebody reads for long: it comes back later.

It ends, and commits write back again, when the -wal is small.

The connection is opened by whoever commits, before the thread needs it for the first time, and kept until the store is
closed or the process forks. Linux tells of a sync that failed to everybody who has the file open then, once: whoever
opens it later hears nothing, and would write back what the disk has lost.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

import apsw

from mycelia_storage.engines.sqlite.connection import Patience, open_to_write_back, size_of
from mycelia_storage.engines.sqlite.failures import DRIVER_ERRORS, is_failed_sync
from mycelia_storage.engines.sqlite.trust import DISK_IN_DOUBT
from mycelia_storage.engines.watchdog import Watchdog
from mycelia_storage.errors import StorageError

if TYPE_CHECKING:
    from mycelia_storage.engines.sqlite.engine import SQLiteEngine
    from mycelia_storage.options import Options

LOG: Final = logging.getLogger("mycelia_storage")

# A -wal of more bytes than this is too large. (Where nobody reads for long it is begun anew with 12 MB.)
WAL_LIMIT = 16 * 1024 * 1024
# Its size is looked at after so many changes at most; sooner where a quarter of what is left would be written by then.
_MOST_CHANGES: Final = 64
# While it is too large.
_FEW_CHANGES: Final = 8
# Readers are waited for as long as this, times how often the limit goes into the -wal, but no longer than that.
_PATIENCE: Final = 0.02
_LONGEST_PATIENCE: Final = 1.0
# It is tried again after so many seconds, and more and more while nothing changes.
_SOON: Final = 0.1
_LATEST: Final = 5.0
# Then it is worth a warning.
_STUCK_SECONDS: Final = 10.0
# The thread ends soon: whoever forks wants to be alone.
_LINGER: Final = 0.1


class Checkpoints:
    """What is to be done about a -wal that has become too large."""

    def __init__(self, engine: SQLiteEngine, options: Options) -> None:
        self._engine = engine
        self._options = options
        self._wal = options.path + "-wal"
        self._calls = Watchdog("mycelia-checkpoints", linger=_LINGER)
        # Reentrant: a signal handler may write, at any point.
        self._changing = threading.RLock()
        self._is_active = False  # about a -wal that is too large
        self._is_closed = False
        self._is_idle = threading.Event()  # or not: it writes back what there is, so that commits need not
        self._is_idle.set()
        self._not_before = -math.inf  # after a failure, commits do it for a while
        # For whoever uses the connection, or takes it away. It is made by the owner of the writer's lock only.
        self._using = threading.RLock()
        self._connection: apsw.Connection | None = None
        self._looked = (0, 0)  # at so many changes, and so many bytes were there
        self._each = 1.0  # so many bytes a change
        self._began = 0.0
        self._has_warned = False
        self._found: tuple[int, int] | None = None  # frames, and how many of them are written back
        self._later = _SOON

    def look(self, changes: int) -> int:
        """Called by who has committed so many changes in all; gives after how many it is to be called again."""
        if not self._options.wal_mode:
            return changes + _MOST_CHANGES
        size = size_of(self._wal)
        with self._changing:
            changes_then, size_then = self._looked
            self._looked = (changes, size)
            # When the -wal has been cut, what was known before is still about right.
            self._each = max(1.0, (size - size_then) / max(1, changes - changes_then), self._each / 2)
            if size > WAL_LIMIT:
                self._begin()
                return changes + _FEW_CHANGES
            return changes + max(1, min(_MOST_CHANGES, int((WAL_LIMIT - size) / (4 * self._each))))

    @property
    def is_ahead(self) -> bool:
        """Whether the thread writes back what there is, or is about to."""
        return not self._is_idle.is_set()

    def go_ahead(self) -> bool:
        """Have what is in the -wal written back soon, if that is not under way; False where whoever asks has to.

        For the owner of the writer's lock.
        """
        with self._changing:
            if not self.is_ahead and not self._is_closed and time.monotonic() >= self._not_before and self._open():
                self._is_idle.clear()
                has_begun = False
                try:
                    has_begun = self._calls.watch(0.0, self.write_back)
                finally:
                    if not has_begun:
                        self._is_idle.set()
            return self.is_ahead

    def wait(self) -> None:
        """For whoever wants to write back, and cannot while the thread does: wait for it, but not for ever."""
        self._is_idle.wait(0.0 if sys.is_finalizing() else _LONGEST_PATIENCE)

    def write_back(self) -> bool:
        """Write back what nobody reads any more. Who commits meanwhile is not kept waiting."""
        try:
            with self._using:
                if self._connection is not None and not self._is_closed:
                    self._write_back_unread(self._connection)
        except (*DRIVER_ERRORS, StorageError) as error:
            self._tell(error)
        finally:
            self._is_idle.set()
        return True

    def close(self) -> None:
        """End the thread, and wait for that."""
        self._is_closed = True
        self._calls.close()
        self.let_go(0.0 if sys.is_finalizing() else math.inf)

    def let_go(self, patience: float = math.inf) -> bool:
        """Close the connection, for whoever keeps a new one from being opened; False where it is in use for longer."""
        if not self._using.acquire(timeout=min(patience, threading.TIMEOUT_MAX)):
            return False
        try:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close(True)
        finally:
            self._using.release()
        return True

    def _open(self) -> bool:
        """For the owner of the writer's lock: whether there is a connection."""
        if self._connection is not None:
            return True
        try:
            connection = open_to_write_back(self._options.path, self._options)
            with self._using:
                self._connection = connection
                self._engine.writer.trust.require_same()
                if self._is_closed:
                    raise self._engine.closed_error()
        except (*DRIVER_ERRORS, StorageError, OSError) as error:
            self.let_go()
            self._tell(error)
            return False
        return True

    def _begin(self) -> None:
        if not self._is_active and not self._is_closed:
            self._is_active, self._has_warned = True, False
            self._found, self._later = None, _SOON
            self._began = time.monotonic()
            self._is_active = self._calls.watch(0.0, self.step)

    def step(self) -> bool:
        """Do what can be done now, and have the rest done later."""
        try:
            is_done = self._cut()
        except (*DRIVER_ERRORS, StorageError, OSError) as error:
            is_done = self._is_closed
            if not is_done:
                self._tell(error)
                self._later = _LATEST
        with self._changing:
            # Others may have written meanwhile, and have seen that somebody is at work.
            is_done = is_done and size_of(self._wal) <= WAL_LIMIT
            self._is_active = not is_done
        if not is_done and not self._is_closed:
            self._warn()
            self._calls.watch(self._later, self.step)
        return True

    def _cut(self) -> bool:
        """Whether the -wal is small now, and commits write it back again."""
        writer = self._engine.writer
        with writer.kept_out(_LONGEST_PATIENCE) as is_mine:
            is_small = size_of(self._wal) <= WAL_LIMIT
            if is_mine:
                writer.leave_wal_alone(is_left=not is_small)
            if is_small or not is_mine or not self._open():
                return is_small and is_mine
        with self._using:
            connection = self._connection
            if connection is None or self._is_closed:
                return False
            found = self._write_back_unread(connection)
            has_moved = found is not None and found != self._found
            self._found = found
            self._later = _SOON if has_moved else min(_LATEST, 2 * self._later)
            patience = self._patience() if has_moved else 0.0
            with writer.kept_out(patience) as is_mine:
                if is_mine and writer.trust.doubt is None:
                    connection.set_busy_handler(Patience(patience))
                    if writer.trust.write_back(connection, apsw.SQLITE_CHECKPOINT_TRUNCATE):
                        writer.leave_wal_alone(is_left=False)
                        return True
        return False

    def _write_back_unread(self, connection: apsw.Connection) -> tuple[int, int] | None:
        """What the driver says of it; None where another process does it just now.

        Where the disk does not confirm it, nothing may be promised meanwhile: a commit that the disk confirms might
        stand behind something that it has lost.
        """
        writer = self._engine.writer
        if writer.trust.doubt is not None:
            return None
        try:
            return connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except (apsw.BusyError, apsw.LockedError):
            return None
        except DRIVER_ERRORS as error:
            if not is_failed_sync(error):
                raise
            writer.distrust(DISK_IN_DOUBT)
            self._is_idle.set()  # or whoever waits for it, with the lock, would be waited for
            patience = self._options.busy_timeout
            with writer.kept_out(patience) as is_mine:
                if not is_mine or writer.trust.doubt != DISK_IN_DOUBT:
                    raise
                connection.set_busy_handler(Patience(patience))
                writer.trust.write_back_once_more(connection)
                writer.go_dormant()  # its descriptors would be told the same, at the next commit
            return None

    def _patience(self) -> float:
        wanted = _PATIENCE * size_of(self._wal) / WAL_LIMIT
        return min(wanted, _LONGEST_PATIENCE, self._options.busy_timeout / 2)

    def _tell(self, error: Exception) -> None:
        self._not_before = time.monotonic() + _LATEST
        if self._is_closed:
            return
        LOG.warning("%s: the -wal file could not be written back: %s", self._options.path, type(error).__name__)

    def _warn(self) -> None:
        if self._has_warned or time.monotonic() < self._began + _STUCK_SECONDS:
            return
        self._has_warned = True
        seconds = self._engine.oldest_read()
        reader = (
            "another process reads, or is stopped in the middle of it"
            if seconds is None
            else f"a transaction that reads, a scan or a backup has been open in this process for {seconds:.0f} s"
        )
        megabytes = size_of(self._wal) / 1e6
        LOG.warning("%s: the -wal file has grown to %.0f MB: %s", self._options.path, megabytes, reader)
