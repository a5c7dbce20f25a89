"""`Writer`: the one connection that writes, the line in front of it, and what has to be done about the file meanwhile.

Called by the engine, by the primitives that write and by the commits that several writes share.

Every write takes its turn in the line first, then SQLite's lock on the file by BEGIN IMMEDIATE (or by a single
statement that writes), so that threads never compete for the file, and a transaction never finds out in its middle
that it cannot write. BEGIN and COMMIT go through `execute`: the driver's `with connection` holds the interpreter lock.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Final

import apsw

from mycelia_storage.engines.line import Line, Ticket
from mycelia_storage.engines.sqlite.commits import SharedCommits
from mycelia_storage.engines.sqlite.connection import Patience
from mycelia_storage.engines.sqlite.failures import (
    DRIVER_ERRORS,
    is_failed_sync,
    is_unsure,
    outcome_unknown,
    roll_back,
)
from mycelia_storage.engines.sqlite.indexes import has_outgrown_statistics, refresh_is_due, refresh_statistics
from mycelia_storage.engines.sqlite.leftovers import remove_empty
from mycelia_storage.engines.sqlite.trust import (
    ANOTHER_TIME,
    COMMIT,
    COMMIT_IN_DOUBT,
    DISK_IN_DOUBT,
    Trust,
    begin_to_write,
    settle,
)
from mycelia_storage.engines.turns import PASSING
from mycelia_storage.errors import OutcomeUnknownError, StorageBusyError, StorageError, StorageIOError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mycelia_storage.engines.sqlite.engine import SQLiteEngine
    from mycelia_storage.options import Options

# The planner's statistics are looked at after so many changes, and whenever their number has doubled.
FIRST_REFRESH: Final = 1000
# What is in the -wal is written back by a thread when it is so many pages. Not by SQLite itself, which does it within
# COMMIT, and never tells what fails then.
AHEAD_PAGES: int = 1000
# A -wal of so many pages is to be begun anew: whoever has committed writes back what that thread has left, which is
# little, or everything where the thread does not keep up. The length is looked at whenever this connection has written
# a tenth of the smaller of the two.
WAL_PAGES: int = 3000

LOG: Final = logging.getLogger("mycelia_storage")


class Writer:
    """The connection, lent to one caller at a time."""

    def __init__(
        self, engine: SQLiteEngine, options: Options, reopen: Callable[[], apsw.Connection], first: apsw.Connection
    ) -> None:
        self._engine = engine
        self._options = options
        self._reopen = reopen
        self._path = options.path
        self.patience: Patience = Patience(options.busy_timeout)
        self._changes = 0  # as of the last time that the lock was given back
        self._next_refresh = FIRST_REFRESH
        self._durable_mode = "FULL" if options.wal_mode else "EXTRA"
        self._is_durable_always = options.synchronous in {"EXTRA", self._durable_mode}
        # Whether a commit that need not be durable waits for no disk.
        self.is_quick: bool = options.wal_mode and options.synchronous in {"NORMAL", "OFF"}
        self._next_write_back = 0.0  # when this connection has written so many pages, it looks at the -wal
        self._anew_at = 0  # so many pages in the -wal: it is tried to begin it anew
        self._close_failure: StorageError | None = None
        self.trust: Trust = Trust(options.path)
        self.line: Line = self._new_line()
        self.commits: SharedCommits = SharedCommits(self, options)
        self.holder: int = 0  # the thread that has the lock for a transaction, or for more than a statement
        self.is_closed: bool = False
        self._use(first)
        self.trust.remember()

    def _use(self, connection: apsw.Connection) -> None:
        self._synchronous = self._options.synchronous
        self.connection: apsw.Connection = connection
        self.connection.wal_autocheckpoint(0)
        self._next_write_back = _few_pages() if self._options.wal_mode else math.inf
        self._anew_at = WAL_PAGES
        self.connection.set_busy_handler(self.patience)
        self.cursor: apsw.Cursor = self.connection.cursor()
        self.is_dormant: bool = False
        self._next_look = 0  # its changes are counted from 0
        self.is_wal_left: bool = False

    def wake(self) -> None:
        """For the owner of the lock: open the connection again where it is closed, after a fork for instance."""
        if self.is_dormant:
            self._use(self._reopen())

    # ---- the lock

    def _new_line(self) -> Line:
        """Where a commit waits for the disk, waking somebody up takes no time beside that."""
        return Line(passing=PASSING if self.is_quick else 0.0)

    def lock(self, wait: float | None, *, for_file: bool = True) -> None:
        """Take the lock, waiting `wait` seconds at most (None: `busy_timeout`) for it and for the file's.

        With `for_file=False` the file's is not waited for.
        """
        patience = self._options.busy_timeout if wait is None else wait
        if not self.line.try_acquire():
            started = time.monotonic()
            if not self.line.wait(Ticket(), patience):
                raise self.busy_error(patience)
            patience = max(0.0, patience - (time.monotonic() - started))
        self.get_ready(patience if for_file else 0.0)

    def get_ready(self, patience: float) -> None:
        """For who has just got the lock; gives it back where nothing can be written."""
        try:
            if self.is_closed:
                raise self._engine.closed_error()
            if not self.is_dormant and self.connection.in_transaction:
                # Left behind by a signal handler that raised at a bad moment: what follows would become part of it.
                self.roll_back()
            self.wake()
            self.trust.require(self.connection)
        except BaseException as error:
            self.line.release()
            if isinstance(error, DRIVER_ERRORS):
                raise self._engine.failure(error) from error
            raise
        self.patience.timeout = patience

    def unlock(self, *, at_once: bool = False) -> None:
        """Give the lock back. Who gives it back to a closed store closes the connection.

        What was written before is committed, so that nothing which fails here may be taken for a failure of that.
        `at_once`: the -wal is not written back.
        """
        try:
            if self.is_closed:
                self._close()
            elif not self.is_dormant:
                self._changes = self.connection.total_changes()
                if not at_once and self._may_have_grown():
                    self._keep_wal_short()
        finally:
            self.line.release()

    def busy_error(self, patience: float) -> StorageBusyError:
        message = f"{self._path}: other transactions of this process held the write lock for {patience:g} s"
        return StorageBusyError(message)

    @contextlib.contextmanager
    def writing(self) -> Iterator[apsw.Connection]:
        """The connection, inside a transaction that is committed at the end of the block."""
        self.lock(None)
        committing = False
        try:
            begin_to_write(self.connection)
            yield self.connection
            committing = True
            self.commit()
        except DRIVER_ERRORS as error:
            raise self.failure(error, committing=committing) from error
        except BaseException:
            self.roll_back()
            raise
        finally:
            self.unlock()
        self.after_write()

    def begin(self, *, durable: bool, wait: float | None) -> None:
        """Open a transaction that is not over when this returns; `end` gives the lock back."""
        self.lock(wait)
        self.holder = threading.get_ident()
        try:
            self.synchronize(durable=durable)
            begin_to_write(self.connection)
        except BaseException as error:
            self.roll_back()
            self.end()
            if isinstance(error, DRIVER_ERRORS):
                raise self._engine.failure(error) from error
            raise

    def commit(self) -> None:
        """End the open transaction, unless its file is elsewhere by now; what fails is for `failure`."""
        self.trust.require(self.connection)
        self.cursor.execute(COMMIT)

    def end(self) -> None:
        """The transaction of `begin` is committed or rolled back."""
        self.holder = 0
        try:
            if not self.is_closed:
                self.roll_back()
                self.relax()
        finally:
            self.unlock()

    def time(self, now: int = 0) -> int:
        """The time of a write that is a transaction of its own, read under the lock: not before a write it follows."""
        return max(now, round(self._options.clock() * 1_000_000))

    def synchronize(self, *, durable: bool) -> None:
        """`PRAGMA synchronous` for the next transaction; SQLite takes it only outside of one."""
        mode = self._durable_mode if durable and not self._is_durable_always else self._options.synchronous
        if mode != self._synchronous:
            self._synchronous = ""  # where the next line fails, nobody knows
            self.connection.execute(f"PRAGMA synchronous={mode}")
            self._synchronous = mode

    def relax(self) -> None:
        """After a commit, which has happened, whatever this may meet; the next transaction says again what it needs."""
        with contextlib.suppress(*DRIVER_ERRORS):
            self.synchronize(durable=False)

    def roll_back(self) -> None:
        """Undo the open transaction, if there is one. A connection that cannot even do that is replaced."""
        if self.is_dormant:
            return
        try:
            roll_back(self.connection)
        except DRIVER_ERRORS as error:
            LOG.warning("%s: a connection that cannot roll back is replaced: %s", self._path, type(error).__name__)
            self.go_dormant()

    def failure(self, error: Exception, *, committing: bool = True) -> StorageError:
        """The library's error for one of the driver's, after the transaction is undone where SQLite has not done so.

        A commit may have failed in three ways:
        1. It has not happened: most errors, and SQLite has seen to it.
        2. It has not happened, but what stands in the -wal would be taken for it after a crash. Another commit takes
           its place at once; where that fails too, or without a -wal, it is as in 3.
        3. The disk did not confirm it. Nobody knows, not even whether what the disk confirms next is there: nothing is
           written any more.
        """
        self.roll_back()
        found = self._engine.failure(error, committing=committing)
        if committing and is_unsure(error) and not (self._options.wal_mode and self._settle()):
            found = outcome_unknown(self._path)
        if isinstance(found, OutcomeUnknownError):
            self.distrust(COMMIT_IN_DOUBT)
        elif is_failed_sync(error):
            self.distrust(DISK_IN_DOUBT)
        return found

    def commit_failure(self, error: Exception) -> StorageError:
        """As `failure`; or what `commit` itself has found."""
        if isinstance(error, StorageError):
            self.roll_back()
            return error
        return self.failure_of_members(error, committing=True)

    def failure_of_members(self, error: Exception, *, committing: bool) -> StorageError:
        """As `failure`, with the driver's error as its cause, but without its frames, which know of every member."""
        found = self.failure(error, committing=committing)
        found.__cause__ = error.with_traceback(None)
        return found

    def distrust(self, reason: str) -> None:
        """Write nothing any more. Without a -wal what is read may be what is in doubt, so that is over too."""
        self.trust.lose(reason)
        if not self._options.wal_mode:
            self._engine.refuse_reads()

    def _settle(self) -> bool:
        try:
            settle(self.connection, self._options)
        except DRIVER_ERRORS as error:
            LOG.warning("%s: whether a commit happened could not be settled: %s", self._path, type(error).__name__)
            return False
        finally:
            self._synchronous = ""
            self.relax()
        return True

    # ---- upkeep

    def after_write(self, *, at_once: bool = False) -> None:
        """Have a look at the file now and then: at the -wal's size, and whether the planner's statistics are fresh.

        `at_once`: not at the statistics, which may take long.
        """
        changes = self._changes
        if changes < self._next_look:
            return
        if changes >= self._next_refresh and not at_once:
            self._look_at_statistics()
        self._next_look = max(self._next_refresh, changes + 1)
        try:
            self._next_look = min(self._next_look, self._engine.checkpoints.look(changes))
        except (OSError, RuntimeError) as error:  # no look, or no thread: it is done another time
            LOG.warning("%s: the -wal could not be looked at: %s", self._path, error)

    def is_upkeep_due(self, waiting: int) -> bool:
        """For the owner of the lock: whether one more write has to be followed by what is not done at once.

        `waiting`: so many pages of the -wal are to be written back.
        """
        return self.connection.total_changes() >= self._next_refresh or (
            waiting >= min(AHEAD_PAGES, WAL_PAGES)
            and not (self.is_wal_left or self._engine.checkpoints.is_ahead)
            and self._may_have_grown()
        )

    def _may_have_grown(self) -> bool:
        return self.connection.status(apsw.SQLITE_DBSTATUS_CACHE_WRITE)[0] >= self._next_write_back

    def _look_at_statistics(self) -> None:
        """After a thousand changes, and whenever their number has doubled.

        It looks at counts only, unless a namespace has grown tenfold; while others write it is put off. The write
        before it is done, so a failure here is logged and not raised.
        """
        if not self.line.try_acquire():
            return
        try:
            if not self.is_closed and not self.is_dormant and self.trust.doubt is None:
                self._next_refresh = 2 * self.connection.total_changes()
                self._refresh_statistics()
        except DRIVER_ERRORS as error:
            self.failure(error)  # which may be that the disk is not to be trusted
            LOG.warning("%s: the planner's statistics could not be refreshed: %s", self._path, type(error).__name__)
        except StorageIOError as error:
            self.roll_back()
            LOG.warning("the planner's statistics could not be refreshed: %s", error)
        finally:
            self.unlock()

    def _refresh_statistics(self) -> None:
        if refresh_is_due(self.connection):
            self.patience.timeout = 0.0
            begin_to_write(self.connection)
            refresh_statistics(self.connection)
            self.commit()

    def _refresh_at_last(self) -> None:
        """Before the connection is closed: many that write little would otherwise never look."""
        connection = self.connection
        try:
            if connection.total_changes() and not connection.in_transaction and has_outgrown_statistics(connection):
                self._refresh_statistics()
        except (*DRIVER_ERRORS, StorageIOError) as error:
            self.commit_failure(error)
            LOG.debug("%s: the planner's statistics were not refreshed: %s", self._path, type(error).__name__)

    @contextlib.contextmanager
    def kept_out(self, patience: float) -> Iterator[bool]:
        """No thread of this process writes during the block; False where that was not to be had in so many seconds."""
        is_mine = self.line.acquire(patience)
        try:
            yield is_mine and not self.is_closed
        finally:
            if is_mine:
                self.unlock()

    def leave_wal_alone(self, *, is_left: bool) -> None:
        """For the owner of the lock: from now on commits do not write the -wal back, or do again."""
        self.is_wal_left = is_left

    def optimize(self) -> None:
        """Fresh statistics where SQLite wants them, and the -wal written back as far as nobody reads it."""
        self.lock(None)
        committing = False
        try:
            # Inside a transaction: by itself it reads first, and is refused where others write before it does.
            begin_to_write(self.connection)
            self.connection.execute("PRAGMA optimize").fetchall()
            committing = True
            self.commit()
            committing = False
            self.patience.timeout = 0.0  # a reader may stay for long; then it is done another time
            self._engine.checkpoints.wait()
            self.trust.write_back(self.connection, apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except DRIVER_ERRORS as error:
            raise self.failure(error, committing=committing) from error
        except BaseException:
            self.roll_back()
            raise
        finally:
            self.unlock()

    def _keep_wal_short(self) -> None:
        """Have the -wal written back where it is long. What fails is told to whoever writes next, if it matters."""
        connection = self.connection
        self._next_write_back = connection.status(apsw.SQLITE_DBSTATUS_CACHE_WRITE)[0] + _few_pages()
        self._next_look = 0  # a few changes have written much
        if self.trust.doubt is not None or self.is_wal_left:
            return
        try:
            if not self._leave_to_thread():
                self.trust.write_back(connection, apsw.SQLITE_CHECKPOINT_PASSIVE)
        except DRIVER_ERRORS as error:
            LOG.warning("%s: the -wal could not be written back, and is kept: %s", self._path, type(error).__name__)

    def _leave_to_thread(self) -> bool:
        """Whether the -wal is short, or the thread writes it back; if not, nobody else does."""
        connection, checkpoints = self.connection, self._engine.checkpoints
        pages, done = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        if pages < WAL_PAGES:
            self._anew_at = WAL_PAGES
        if pages < self._anew_at + AHEAD_PAGES:
            if checkpoints.is_ahead:
                return True
            # The longer it is, the less is to be left for whoever has it begun anew.
            enough = AHEAD_PAGES if pages < self._anew_at else AHEAD_PAGES / 3
            if pages - done >= enough and checkpoints.go_ahead():
                return True
            if pages < self._anew_at and pages - done < enough:
                return True
        elif checkpoints.is_ahead:
            checkpoints.wait()
        self._anew_at = pages + WAL_PAGES  # where somebody reads from it, it is not begun anew
        return self.trust.doubt is not None

    def replace(self, step: Callable[[apsw.Connection], None]) -> None:
        """Run a step that rewrites the whole file in a transaction of its own, with the lock held; it is durable."""
        self.lock(None)
        self.holder = threading.get_ident()
        try:
            self.synchronize(durable=self._options.synchronous != "OFF")
            step(self.connection)
            self.patience.timeout = 0.0
            self._engine.checkpoints.wait()
            # It is committed: what cannot be written back now is so another time.
            with contextlib.suppress(apsw.Error):
                self.trust.write_back(self.connection, apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except DRIVER_ERRORS as error:
            raise self.failure(error) from error
        except StorageError as error:
            cause = error.__cause__
            if isinstance(cause, DRIVER_ERRORS) and (is_failed_sync(cause) or is_unsure(cause)):
                raise self.failure(cause) from cause
            raise
        finally:
            self.end()

    # ---- the end

    def close(self, patience: float) -> None:
        """Refuse what comes, and close the connection as soon as nobody has it.

        Raises StorageIOError where the -wal could not be written back; it stays, and nothing in it is lost.
        """
        self.is_closed = True
        if self.line.acquire(patience):
            self.unlock()
        if self._options.read_only:
            remove_empty(self._options.path)
        if self._close_failure is not None:
            raise self._close_failure

    def _close(self) -> None:
        """Never raises what the last one who wrote would take for a failure of its commit: `close` raises that."""
        if self.is_dormant:
            return
        try:
            if self.trust.doubt is not None:
                self._close_in_doubt()
            else:
                self._refresh_at_last()
                # Before close(), which would hold the interpreter lock for as long as a big -wal takes.
                if not self._options.read_only:
                    self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except (*ANOTHER_TIME, apsw.ConnectionClosedError):
            pass  # everything is committed: the -wal stays beside the file, and who opens it next goes on from there
        except DRIVER_ERRORS as error:
            self._close_failure = self._engine.failure(error)
            self._close_failure.__cause__ = error
        finally:
            self.is_dormant = True
            self.connection.close(True)

    def _close_in_doubt(self) -> None:
        """Whoever opens the file next finds what it will find ever after, whatever the disk holds of what is in doubt.

        Everything is written once more, to other places, and the disk asked again. The caller has had the error, and
        gets no other one here.
        """
        self.patience.timeout = self._options.busy_timeout
        if self._settle():
            with contextlib.suppress(*DRIVER_ERRORS):
                self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        else:
            self.connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)

    def begin_anew(self, *, is_closed: bool) -> None:
        """For the child of a fork: nobody has the lock, and nobody waits for it."""
        self.line = self._new_line()
        self.holder = 0
        self.is_closed = is_closed
        self.is_dormant = True

    def go_dormant(self) -> None:
        """For the owner of the lock: close the connection until the next write opens it again."""
        if not self.is_dormant:
            self.is_dormant = True
            self.connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self.connection.close(True)


def _few_pages() -> float:
    return min(AHEAD_PAGES, WAL_PAGES) / 10
