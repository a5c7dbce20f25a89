"""`Writer`: the one connection that writes, the line in front of it, and commits that several writes share.

Called by the engine and by the primitives that write.

Every write takes its turn in the line first, then SQLite's lock on the file by BEGIN IMMEDIATE (or by a single
statement that writes), so that threads never compete for the file, and a transaction never finds out in its middle
that it cannot write. BEGIN and COMMIT go through `execute`: the driver's `with connection` holds the interpreter lock.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
import time
from typing import TYPE_CHECKING, Final

import apsw

from mycelia_storage.engines.line import Line, Ticket, served
from mycelia_storage.engines.sqlite.connection import Patience
from mycelia_storage.engines.sqlite.failures import DRIVER_ERRORS, roll_back
from mycelia_storage.engines.sqlite.indexes import has_outgrown_statistics, refresh_is_due, refresh_statistics
from mycelia_storage.engines.sqlite.session import Statements, put_one
from mycelia_storage.errors import OutcomeUnknownError, StorageBusyError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from mycelia_storage.engines.engine import Member, PutRow
    from mycelia_storage.engines.sqlite.engine import SQLiteEngine
    from mycelia_storage.options import Options

BEGIN_TO_WRITE: Final = "BEGIN IMMEDIATE"
COMMIT: Final = "COMMIT"
# The planner's statistics are looked at after so many changes, and whenever their number has doubled.
FIRST_REFRESH: Final = 1000
# So many writes share a commit at most, so that the first of them does not wait for long.
MOST_TOGETHER: Final = 1000

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
        self._patience = Patience(options.busy_timeout)
        self._changes = 0  # as of the last time that the lock was given back
        self._next_refresh = FIRST_REFRESH
        self._durable_mode = "FULL" if options.wal_mode else "EXTRA"
        self._is_durable_always = options.synchronous in {"EXTRA", self._durable_mode}
        self._committing: Sequence[Member] = ()
        self._shared = _SharedStatements(self)
        self.line: Line = Line()
        self.holder: int = 0  # the thread that has the lock for a transaction, or for more than a statement
        self.is_closed: bool = False
        self._use(first)

    def _use(self, connection: apsw.Connection) -> None:
        self._synchronous = self._options.synchronous
        self.connection: apsw.Connection = connection
        self.connection.set_busy_handler(self._patience)
        self.cursor: apsw.Cursor = self.connection.cursor()
        self.is_dormant: bool = False
        self._next_look = 0  # its changes are counted from 0
        self._auto_checkpoint: int | None = None

    # ---- the lock

    def lock(self, wait: float | None, *, for_file: bool = True) -> None:
        """Take the lock, waiting `wait` seconds at most (None: `busy_timeout`) for it and for the file's.

        With `for_file=False` the file's is not waited for.
        """
        patience = self._options.busy_timeout if wait is None else wait
        if not self.line.try_acquire():
            started = time.monotonic()
            if not self.line.wait(Ticket(), patience):
                raise self._busy(patience)
            patience = max(0.0, patience - (time.monotonic() - started))
        self.get_ready(patience if for_file else 0.0)

    def get_ready(self, patience: float) -> None:
        """For who has just got the lock; gives it back where nothing can be written."""
        try:
            if self.is_closed:
                raise self._engine.closed_error()
            if self.is_dormant:
                self._use(self._reopen())
            if self.connection.in_transaction:
                # Left behind by a signal handler that raised at a bad moment: what follows would become part of it.
                roll_back(self.connection)
        except BaseException as error:
            self.line.release()
            if isinstance(error, DRIVER_ERRORS):
                raise self._engine.failure(error) from error
            raise
        self._patience.timeout = patience

    def unlock(self) -> None:
        """Give the lock back. Who gives it back to a closed store closes the connection."""
        try:
            if self.is_closed:
                self._close()
            elif not self.is_dormant:
                self._changes = self.connection.total_changes()
        finally:
            self.line.release()

    def _busy(self, patience: float) -> StorageBusyError:
        message = f"{self._path}: other transactions of this process held the write lock for {patience:g} s"
        return StorageBusyError(message)

    @contextlib.contextmanager
    def writing(self) -> Iterator[apsw.Connection]:
        """The connection, inside a transaction that is committed at the end of the block."""
        self.lock(None)
        committing = False
        try:
            self.connection.execute(BEGIN_TO_WRITE)
            yield self.connection
            committing = True
            self.connection.execute(COMMIT)
        except DRIVER_ERRORS as error:
            raise self.failure(error, committing=committing) from error
        except BaseException:
            roll_back(self.connection)
            raise
        finally:
            self.unlock()
        self.after_write()

    def begin(self, *, durable: bool, wait: float | None) -> None:
        """Open a transaction that is not over when this returns; `end` gives the lock back."""
        self.lock(wait)
        self.holder = threading.get_ident()
        try:
            self._synchronize(durable=durable)
            self.connection.execute(BEGIN_TO_WRITE)
        except BaseException as error:
            roll_back(self.connection)
            self.end()
            if isinstance(error, DRIVER_ERRORS):
                raise self._engine.failure(error) from error
            raise

    def end(self) -> None:
        """The transaction of `begin` is committed or rolled back."""
        self.holder = 0
        try:
            if not self.is_closed:
                self._synchronize(durable=False)
        finally:
            self.unlock()

    def time(self, now: int = 0) -> int:
        """The time of a write that is a transaction of its own, read under the lock: not before a write it follows."""
        return max(now, round(self._options.clock() * 1_000_000))

    def _synchronize(self, *, durable: bool) -> None:
        """`PRAGMA synchronous` for the next transaction; SQLite takes it only outside of one."""
        mode = self._durable_mode if durable and not self._is_durable_always else self._options.synchronous
        if mode != self._synchronous:
            self.connection.execute(f"PRAGMA synchronous={mode}")
            self._synchronous = mode

    def failure(self, error: Exception, *, committing: bool = True) -> StorageError:
        """The library's error for one of the driver's, after the transaction is undone where SQLite has not done so."""
        roll_back(self.connection)
        return self._engine.failure(error, committing=committing)

    # ---- shared commits

    def share(self, members: Sequence[Member], wait: float | None) -> None:
        """Run each member, in one commit with what waits behind it; or let somebody else do that."""
        patience = self._options.busy_timeout if wait is None else wait
        if not self.line.try_acquire():
            started = time.monotonic()
            ticket = Ticket(members)
            if not self.line.wait(ticket, patience):
                _fail(members, self._busy(patience))
                return
            if not ticket.is_owner:
                return
            patience = max(0.0, patience - (time.monotonic() - started))
        try:
            self.get_ready(patience)
        except StorageError as error:
            _fail(members, error)
            return
        try:
            self._serve([member for member in members if not member.is_done])
        finally:
            self.unlock()
        self.after_write()

    def _serve(self, members: Sequence[Member]) -> None:
        """Do one's own work, and that of those that stand behind."""
        others: list[Ticket] = []
        deadline = time.monotonic() + self._patience.timeout
        durable = is_durable(members) or self.line.wants_durable(MOST_TOGETHER)
        try:
            self._synchronize(durable=durable)
            try:
                self.cursor.execute(BEGIN_TO_WRITE)
            except DRIVER_ERRORS as error:  # those behind have their own time to wait
                _fail(members, self.failure(error, committing=False))
                return
            # Taken only now: while the file was waited for, more have come.
            self.line.take(others, MOST_TOGETHER, durable=durable)
            behind = [member for ticket in others for member in ticket.members if not member.is_done]
            members = [*members, *behind] if behind else members
            if not self._run_together(members):
                for member in members:
                    self._patience.timeout = max(0.0, deadline - time.monotonic())
                    self._run_alone(member)
            self._synchronize(durable=False)
        except BaseException:
            # A signal handler raised. Whose work is not done gets another turn.
            if self._committing and not self.connection.in_transaction:
                _commit(self._committing)
            self._committing = ()
            roll_back(self.connection)
            self.line.put_back([ticket for ticket in others if not ticket.is_done])
            served([ticket for ticket in others if ticket.is_done])
            raise
        served(others)

    def _run_together(self, members: Sequence[Member]) -> bool:
        """Run all in the open transaction and commit. False: nothing of it was done, and each has to run by itself.

        A member that has written nothing may fail without further consequences. One that has ends the transaction.
        """
        connection, rows, now = self.connection, self._shared, self.time()
        changes = connection.total_changes()
        for member in members:
            try:
                member.result = member.step(rows, now)
            except DRIVER_ERRORS:
                return self._undo(members)
            except Exception as error:  # noqa: BLE001  it is the member's, whose caller gets it
                if connection.total_changes() != changes:
                    return self._undo(members)
                member.error = error
            else:
                changes = connection.total_changes()
        try:
            self._committing = members
            self.cursor.execute(COMMIT)
        except DRIVER_ERRORS as error:
            found = self.failure(error)
            # Without WAL a reader in the way: whoever waited for it has waited long enough.
            if not isinstance(found, OutcomeUnknownError | StorageBusyError):
                return self._undo(members)
            _fail(members, found)
        else:
            _commit(members)
        self._committing = ()
        return True

    def _undo(self, members: Sequence[Member]) -> bool:
        self._committing = ()
        roll_back(self.connection)
        for member in members:
            member.result = member.error = None
        return False

    def _run_alone(self, member: Member) -> None:
        is_committing = False
        try:
            self.cursor.execute(BEGIN_TO_WRITE)
            member.result = member.step(self._shared, self.time())
            is_committing = True
            self._committing = (member,)
            self.cursor.execute(COMMIT)
            _commit(self._committing)
        except DRIVER_ERRORS as error:
            _fail((member,), self.failure(error, committing=is_committing))
        except Exception as error:  # noqa: BLE001  it is the member's, whose caller gets it
            roll_back(self.connection)
            member.done(error=error)
        self._committing = ()

    # ---- upkeep

    def after_write(self) -> None:
        """Have a look at the file now and then: at the -wal's size, and whether the planner's statistics are fresh."""
        changes = self._changes
        if changes < self._next_look:
            return
        if changes >= self._next_refresh:
            self._look_at_statistics()
        next_refresh = max(self._next_refresh, changes + 1)
        self._next_look = min(next_refresh, self._engine.checkpoints.look(changes))

    def _look_at_statistics(self) -> None:
        """After a thousand changes, and whenever their number has doubled.

        It looks at counts only, unless a namespace has grown tenfold; while others write it is put off. The write
        before it is done, so a failure here is logged and not raised.
        """
        if not self.line.try_acquire():
            return
        try:
            if not self.is_closed and not self.is_dormant:
                self._next_refresh = 2 * self.connection.total_changes()
                self._refresh_statistics()
        except DRIVER_ERRORS as error:
            LOG.warning("%s: the planner's statistics could not be refreshed: %s", self._path, type(error).__name__)
        finally:
            self.unlock()

    def _refresh_statistics(self) -> None:
        if refresh_is_due(self.connection):
            self._patience.timeout = 0.0
            try:
                self.connection.execute(BEGIN_TO_WRITE)
                refresh_statistics(self.connection)
                self.connection.execute(COMMIT)
            finally:
                roll_back(self.connection)

    def _refresh_at_last(self) -> None:
        """Before the connection is closed: many that write little would otherwise never look."""
        connection = self.connection
        try:
            if connection.total_changes() and not connection.in_transaction and has_outgrown_statistics(connection):
                self._refresh_statistics()
        except DRIVER_ERRORS as error:
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
        if self.is_dormant:
            return
        if is_left and self._auto_checkpoint is None:
            self._auto_checkpoint = self.connection.pragma("wal_autocheckpoint")
            self.connection.wal_autocheckpoint(0)
        elif not is_left and self._auto_checkpoint is not None:
            self.connection.wal_autocheckpoint(self._auto_checkpoint)
            self._auto_checkpoint = None

    def optimize(self) -> None:
        """Fresh statistics where SQLite wants them, and the -wal written back as far as nobody reads it."""
        self.lock(None)
        try:
            self.connection.execute("PRAGMA optimize")
            self._patience.timeout = 0.0  # a reader may stay for long; then it is done another time
            with contextlib.suppress(apsw.BusyError):
                self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except DRIVER_ERRORS as error:
            raise self.failure(error, committing=False) from error
        finally:
            self.unlock()

    def replace(self, step: Callable[[apsw.Connection], None]) -> None:
        """Run a step that rewrites the whole file in a transaction of its own, with the lock held; it is durable."""
        self.lock(None)
        self.holder = threading.get_ident()
        try:
            self._synchronize(durable=self._options.synchronous != "OFF")
            step(self.connection)
            self._patience.timeout = 0.0
            # It is committed: what cannot be written back now is so another time.
            with contextlib.suppress(apsw.Error):
                self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except DRIVER_ERRORS as error:
            raise self.failure(error) from error
        finally:
            self.end()

    # ---- the end

    def close(self, patience: float) -> None:
        """Refuse what comes, and close the connection as soon as nobody has it."""
        self.is_closed = True
        if self.line.acquire(patience):
            self.unlock()

    def _close(self) -> None:
        if self.is_dormant:
            return
        try:
            self._refresh_at_last()
            # Before close(), which would hold the interpreter lock for as long as a big -wal takes.
            if not self._options.read_only:
                self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except (apsw.BusyError, apsw.LockedError, apsw.FullError, apsw.ConnectionClosedError):
            pass  # everything is committed: the -wal stays beside the file, and who opens it next goes on from there
        except DRIVER_ERRORS as error:
            raise self._engine.failure(error) from error
        finally:
            self.connection.close()

    def begin_anew(self, *, is_closed: bool) -> None:
        """For the child of a fork: nobody has the lock, and nobody waits for it."""
        self.line = Line()
        self.holder = 0
        self.is_closed = is_closed
        self.is_dormant = True

    def go_dormant(self) -> None:
        """For the owner of the lock: close the connection until the next write opens it again."""
        if not self.is_dormant:
            self.connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self.connection.close()
            self.is_dormant = True


class _Shared:
    """Lends the writer to the members of a shared commit, whose errors its owner looks at."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def reading(self) -> _Shared:
        return self

    writing = reading

    def time(self, now: int) -> int:
        return now

    def __enter__(self) -> apsw.Connection:
        return self._writer.connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing is given back."""


class _SharedStatements(Statements):
    """The primitives in a shared commit, of which putting a row is what most members do."""

    def __init__(self, writer: Writer) -> None:
        super().__init__(_Shared(writer))
        self._writer = writer

    def put(self, namespace: str, rows: Sequence[PutRow], now: int) -> list[int]:
        if len(rows) != 1:
            return super().put(namespace, rows, now)
        return [put_one(self._writer.connection, namespace, rows[0], now, self._writer.cursor)]


def is_durable(members: Sequence[Member]) -> bool:
    """Whether one of them asks for it."""
    return any(member.durable for member in members)


def _commit(members: Sequence[Member]) -> None:
    for member in members:
        member.finish()


def _fail(members: Sequence[Member], error: StorageError) -> None:
    """The same error for each, but an object of its own: threads that raise one object write to each other's."""
    for member in members:
        own = copy.copy(error)
        own.__cause__ = error.__cause__
        member.done(error=own)
