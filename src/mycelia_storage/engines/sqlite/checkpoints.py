"""`Checkpoints`: keeps the -wal file from growing without end beside readers, from a thread of its own.

Called by the writer, now and then after a commit, and by the engine for its status.

SQLite writes the -wal back into the file after a commit that finds 1,000 pages in it, and begins it anew when all of it
is written back and nobody reads from it. Where one read begins before the other has ended, that moment never comes: the
-wal grows for as long as there are readers (measured: 290 MB in six seconds, with four threads that count), and whoever
commits after the last of them has ended writes all of it back. So, where it has grown too large, commits leave it, and
a thread with a connection of its own

1. writes back what nobody reads any more, while others read and write;
2. then has the write lock for a moment, in which no new read can begin that would be in the way, waits for those that
   have begun, the longer the larger the -wal is, writes back what is left and cuts the -wal to nothing;
3. does not wait where it has come no further since the last time, because somebody reads for long: it comes back later.

It ends, and commits write back again, when the -wal is small.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING, Final

import apsw

from mycelia_storage.engines import forking
from mycelia_storage.engines.sqlite.connection import Patience, open_writer, size_of
from mycelia_storage.engines.sqlite.failures import DRIVER_ERRORS, is_failed_sync
from mycelia_storage.engines.sqlite.trust import DISK_IN_DOUBT
from mycelia_storage.engines.watchdog import Watchdog
from mycelia_storage.errors import StorageError

if TYPE_CHECKING:
    from mycelia_storage.engines.sqlite.engine import SQLiteEngine
    from mycelia_storage.options import Options

LOOK: Final = "SELECT 1 FROM sqlite_schema LIMIT 1"

LOG: Final = logging.getLogger("mycelia_storage")

# A -wal of more bytes than this is too large. (SQLite writes 4 MB back by itself.)
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


class Checkpoints:
    """What is to be done about a -wal that has become too large."""

    def __init__(self, engine: SQLiteEngine, options: Options) -> None:
        self._engine = engine
        self._options = options
        self._wal = options.path + "-wal"
        self._calls = Watchdog("mycelia-checkpoints")
        # Reentrant: a signal handler may write, at any point.
        self._changing = threading.RLock()
        self._is_active = False
        self._is_closed = False
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

    def close(self) -> None:
        """End the thread, and wait for that."""
        self._is_closed = True
        self._calls.close()

    def _begin(self) -> None:
        if not self._is_active and not self._is_closed:
            self._is_active, self._has_warned = True, False
            self._found, self._later = None, _SOON
            self._began = time.monotonic()
            self._is_active = self._calls.watch(0.0, self.step)

    def step(self) -> bool:
        """Do what can be done now, and have the rest done later."""
        try:
            is_done = self._write_back()
        except (*DRIVER_ERRORS, StorageError, OSError) as error:
            is_done = self._is_closed
            if is_failed_sync(error):
                self._engine.writer.distrust(DISK_IN_DOUBT)
            if not is_done:
                LOG.warning("%s: the -wal file could not be written back: %s", self._options.path, type(error).__name__)
                self._later = _LATEST
        with self._changing:
            # Others may have written meanwhile, and have seen that somebody is at work.
            is_done = is_done and size_of(self._wal) <= WAL_LIMIT
            self._is_active = not is_done
        if not is_done and not self._is_closed:
            self._warn()
            self._calls.watch(self._later, self.step)
        return True

    def _write_back(self) -> bool:
        """Whether the -wal is small now, and commits write it back again."""
        path, writer = self._options.path, self._engine.writer
        with writer.kept_out(_LONGEST_PATIENCE) as is_mine:
            is_small = size_of(self._wal) <= WAL_LIMIT
            if is_mine:
                writer.leave_wal_alone(is_left=not is_small)
            if is_small or not is_mine:
                return is_small and is_mine
        with forking.opening(path), contextlib.ExitStack() as stack:
            if self._is_closed:
                return False
            connection = stack.enter_context(contextlib.closing(open_writer(path, self._options)))
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            connection.execute(LOOK).fetchall()  # before it has read, a connection knows of no -wal
            found: tuple[int, int] | None = None
            with contextlib.suppress(apsw.BusyError):  # another process does it just now
                found = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            has_moved = found is not None and found != self._found
            self._found = found
            self._later = _SOON if has_moved else min(_LATEST, 2 * self._later)
            patience = self._patience() if has_moved else 0.0
            with writer.kept_out(patience) as is_mine, contextlib.suppress(apsw.BusyError):
                if is_mine:
                    connection.set_busy_handler(Patience(patience))
                    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                    writer.leave_wal_alone(is_left=False)
                    return True
        return False

    def _patience(self) -> float:
        wanted = _PATIENCE * size_of(self._wal) / WAL_LIMIT
        return min(wanted, _LONGEST_PATIENCE, self._options.busy_timeout / 2)

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
