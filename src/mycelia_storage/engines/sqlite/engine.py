"""One file: its writer connection behind a lock, its readers, the transactions on them, and its upkeep.

Called by the verbs. SQL on entries stands in `session.py`, the layout of the file in `schema.py`.

Every write takes the writer's lock first, then SQLite's lock on the file by BEGIN IMMEDIATE (or by a single statement
that writes), so that threads never compete for the file, and a transaction never finds out in its middle that it
cannot write. BEGIN and COMMIT go through `execute`: the driver's `with connection` holds the interpreter lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final

import apsw

from mycelia_storage.engines.engine import EngineStatus, Isolation, Session, Snapshot
from mycelia_storage.engines.sqlite import schema
from mycelia_storage.engines.sqlite.connection import (
    Patience,
    create_file,
    open_reader,
    open_writer,
    require_safe_sqlite,
    set_journal_mode,
    size_of,
)
from mycelia_storage.engines.sqlite.failures import DRIVER_ERRORS, roll_back, to_storage_error
from mycelia_storage.engines.sqlite.indexes import refresh_is_due, refresh_statistics
from mycelia_storage.engines.sqlite.session import Auto, SQLiteSession, Statements
from mycelia_storage.errors import (
    ConfigError,
    SchemaVersionError,
    StorageBusyError,
    StorageClosedError,
    StorageError,
    StorageIOError,
    TransactionError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from mycelia_storage.engines.engine import Primitives
    from mycelia_storage.options import Options

BEGIN: Final = "BEGIN"
FIRST_REFRESH: Final = 1000
BEGIN_TO_WRITE: Final = "BEGIN IMMEDIATE"
COMMIT: Final = "COMMIT"
# A transaction that reads has its state from its first read on, not from BEGIN.
PIN: Final = "SELECT version FROM storage_version_floor WHERE id = 1"
UNREGISTERED: Final = """
SELECT DISTINCT namespace FROM storage_entries WHERE namespace NOT IN (SELECT name FROM storage_namespaces) LIMIT 20"""
IMPOSSIBLE_ROWS: Final = """
SELECT namespace, key FROM storage_entries WHERE version < 1 OR created_at < 0 LIMIT 20"""

LOG: Final = logging.getLogger("mycelia_storage")

require_safe_sqlite()


class SQLiteEngine:
    """The rows of one file."""

    backend = "sqlite"

    def __init__(self, options: Options) -> None:
        self._options = options
        self.path: Final = options.path
        self.idle_readers: SimpleQueue[apsw.Cursor] = SimpleQueue()
        self._readers_made = 0
        self._synchronous = options.synchronous
        self._readers_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._sessions: weakref.WeakSet[_Lending] = weakref.WeakSet()
        self._closed = False
        self._changes = 0  # of the writer, as of the last time that its lock was given back
        self._next_refresh = FIRST_REFRESH
        try:
            self.writer: apsw.Connection = self._open_read_only() if options.read_only else self._open()
        except OSError as error:
            raise StorageIOError(f"{self.path}: {error.strerror or error}") from error
        except DRIVER_ERRORS as error:
            raise to_storage_error(error, self.path) from error
        self._patience = Patience(options.busy_timeout)
        self.writer.set_busy_handler(self._patience)
        self.write_cursor: apsw.Cursor = self.writer.cursor()
        self.auto: Primitives = Auto(self)

    # ---- opening

    def _open(self) -> apsw.Connection:
        options = self._options
        create_file(self.path)
        version = schema.recognise(self.path, min(options.busy_timeout, 1.0))
        if version == 1 and not options.migrate:
            message = f"{self.path}: the file has schema version 1, and migrate=False keeps it there"
            raise SchemaVersionError(message)
        connection = open_writer(self.path, options)
        try:
            # Until the file is known to be ours and not newer, closing must not write its -wal back.
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            if connection.readonly("main"):
                raise StorageIOError(f"{self.path}: the file could only be opened for reading")
            if version == schema.NEWEST:
                schema.verify(connection, self.path)
            elif version == 1:
                self._migrate(connection, schema.NEWEST)
            set_journal_mode(connection, self.path, wal=options.wal_mode, timeout=options.busy_timeout)
            if version == 0:
                self._migrate(connection, schema.NEWEST)
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_read_only(self) -> apsw.Connection:
        if not os.path.exists(self.path):
            raise ConfigError(f"db_path: there is no file {self.path}, and read_only=True makes none")
        version = schema.recognise(self.path, min(self._options.busy_timeout, 1.0))
        if version != schema.NEWEST:
            message = f"{self.path}: the file has schema version {version}, and read_only=True cannot migrate it"
            raise SchemaVersionError(message)
        connection = open_reader(self.path, self._options)
        try:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            schema.verify(connection, self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    # ---- lending connections

    def lend_reader(self) -> apsw.Cursor:
        """A cursor on a reader that nobody uses; the caller puts it back into `idle_readers`.

        Waits up to `busy_timeout`. A cursor, because making one for every statement costs a tenth of a read; who uses
        it reads all rows, so that no statement stays open.
        """
        try:
            return self.idle_readers.get_nowait()
        except Empty:
            pass
        with self._readers_lock:
            if self._closed:
                raise StorageClosedError("the store is closed")
            if self._readers_made < self._options.max_readers:
                cursor = self._open_extra_reader().cursor()
                self._readers_made += 1
                return cursor
        try:
            return self.idle_readers.get(timeout=self._options.busy_timeout)
        except Empty:
            if self._closed:
                raise StorageClosedError("the store is closed") from None
            limit = f"max_readers={self._options.max_readers}, busy_timeout={self._options.busy_timeout:g}"
            raise StorageBusyError(f"{self.path}: every reader connection is in use ({limit})") from None

    def discard_reader(self, cursor: apsw.Cursor) -> None:
        """Close a reader whose statement failed.

        Who keeps the exception keeps its cursors too, and with them the state of the file that they read.
        """
        cursor.connection.close(True)
        with self._readers_lock:
            self._readers_made -= 1

    def _open_extra_reader(self) -> apsw.Connection:
        try:
            return open_reader(self.path, self._options)
        except DRIVER_ERRORS as error:
            raise self.failure(error) from error

    def lock_writer(self, wait: float | None, *, for_file: bool = True) -> None:
        """Take the writer's lock, waiting `wait` seconds at most (None: `busy_timeout`) for it and for the file's.

        With `for_file=False` the file's is not waited for.
        """
        patience = self._options.busy_timeout if wait is None else wait
        if not self._write_lock.acquire(blocking=False):
            started = time.monotonic()
            if not self._write_lock.acquire(timeout=patience):
                message = f"{self.path}: another transaction of this process held the write lock for {patience:g} s"
                raise StorageBusyError(message)
            patience = max(0.0, patience - (time.monotonic() - started))
        self._patience.timeout = patience if for_file else 0.0
        if self._closed:
            self._write_lock.release()
            raise StorageClosedError("the store is closed")
        if self.writer.in_transaction:
            # Left behind by a signal handler that raised at a bad moment: what follows would become part of it.
            roll_back(self.writer)

    def unlock_writer(self) -> None:
        """Give the writer's lock back. Who gives it back to a closed store closes the writer."""
        try:
            if self._closed:
                self._close_writer()
            else:
                self._changes = self.writer.total_changes()
        finally:
            self._write_lock.release()

    def after_write(self) -> None:
        """Keep the planner's statistics fresh: after a thousand changes, and whenever their number has doubled.

        It looks at counts only, unless a namespace has grown tenfold; while others write it is put off. The write
        before it is done, so a failure here is logged and not raised.
        """
        if self._changes < self._next_refresh or not self._write_lock.acquire(blocking=False):
            return
        try:
            if not self._closed:
                self._next_refresh = 2 * self.writer.total_changes()
                self._refresh_statistics()
        except DRIVER_ERRORS as error:
            LOG.warning("%s: the planner's statistics could not be refreshed: %s", self.path, type(error).__name__)
        finally:
            self.unlock_writer()

    def _refresh_statistics(self) -> None:
        if refresh_is_due(self.writer):
            self._patience.timeout = 0.0
            try:
                self.writer.execute(BEGIN_TO_WRITE)
                refresh_statistics(self.writer)
                self.writer.execute(COMMIT)
            finally:
                roll_back(self.writer)

    @contextlib.contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """A reader connection for one statement."""
        cursor = self.lend_reader()
        try:
            yield cursor.connection
        except BaseException as error:
            self.discard_reader(cursor)
            if isinstance(error, DRIVER_ERRORS):
                raise self.failure(error) from error
            raise
        self.idle_readers.put(cursor)

    def time(self, now: int) -> int:
        """The time of a write that is a transaction of its own, read under the lock: not before a write it follows."""
        return max(now, round(self._options.clock() * 1_000_000))

    @contextlib.contextmanager
    def writing(self) -> Iterator[apsw.Connection]:
        """The writer connection, inside a transaction that is committed at the end of the block."""
        self.lock_writer(None)
        committing = False
        try:
            self.writer.execute(BEGIN_TO_WRITE)
            yield self.writer
            committing = True
            self.writer.execute(COMMIT)
        except DRIVER_ERRORS as error:
            raise self.writer_failure(error, committing=committing) from error
        except BaseException:
            roll_back(self.writer)
            raise
        finally:
            self.unlock_writer()
        self.after_write()

    # ---- transactions

    def begin(
        self,
        *,
        read_only: bool = False,
        isolation: Isolation | None = None,
        durable: bool = False,
        wait: float | None = None,
    ) -> Session:
        """A transaction on the writer, or one that reads on a reader. Both are serializable, whatever was asked for."""
        del isolation
        if read_only:
            cursor = self.lend_reader()
            return self._begin_to_read(cursor.connection, lambda _: self.idle_readers.put(cursor))
        self.lock_writer(wait)
        try:
            if durable:
                enough = ("FULL", "EXTRA") if self._options.wal_mode else ("EXTRA",)
                if self._options.synchronous not in enough:
                    self._synchronize(enough[0])
            self.writer.execute(BEGIN_TO_WRITE)
            return self._session(self.writer, lambda _: self._end_writing(durable=durable))
        except BaseException as error:
            roll_back(self.writer)
            self._end_writing(durable=durable)
            if isinstance(error, DRIVER_ERRORS):
                raise self.failure(error) from error
            raise

    def snapshot(self) -> Snapshot:
        """A session for a scan on a connection of its own; without WAL one that reads page by page."""
        if not self._options.wal_mode:
            return _PageByPage(self)
        with self._readers_lock:
            if self._closed:
                raise StorageClosedError("the store is closed")
        return self._begin_to_read(self._open_extra_reader(), apsw.Connection.close)

    def _begin_to_read(self, connection: apsw.Connection, give_back: Callable[[apsw.Connection], None]) -> Session:
        try:
            connection.execute(BEGIN)
            connection.execute(PIN).fetchall()
        except BaseException as error:
            roll_back(connection)
            give_back(connection)
            if isinstance(error, DRIVER_ERRORS):
                raise self.failure(error) from error
            raise
        return self._session(connection, give_back)

    def _session(self, connection: apsw.Connection, give_back: Callable[[apsw.Connection], None]) -> Session:
        lending = _Lending(self, connection, give_back)
        self._sessions.add(lending)
        return SQLiteSession(lending)

    def _end_writing(self, *, durable: bool) -> None:
        try:
            if durable:
                self._synchronize(self._options.synchronous)
        finally:
            self.unlock_writer()

    def _synchronize(self, mode: str) -> None:
        if mode != self._synchronous:
            self.writer.execute(f"PRAGMA synchronous={mode}")
            self._synchronous = mode

    def ended(self, lending: _Lending) -> None:
        """A session has given its connection back."""
        self._sessions.discard(lending)

    def ended_error(self) -> StorageError:
        """Why a session takes no more calls."""
        return (
            StorageClosedError("the store is closed") if self._closed else TransactionError("the transaction has ended")
        )

    # ---- failures

    def failure(self, error: Exception, *, committing: bool = False) -> StorageError:
        """The library's error for one of the driver's; `committing` as in `to_storage_error`."""
        if isinstance(error, apsw.SQLError) and not self._closed:
            # The statements are right, so the tables are not: another process took the file to another version.
            with contextlib.suppress(apsw.Error), contextlib.closing(open_reader(self.path, self._options)) as look:
                version = look.execute("SELECT max(version) FROM schema_version").get
                if version != schema.NEWEST:
                    message = f"{self.path}: the file has schema version {version} now: migrate() it, or open it again"
                    return SchemaVersionError(message)
        return to_storage_error(error, self.path, committing=committing)

    def writer_failure(self, error: Exception, *, committing: bool = True) -> StorageError:
        """The same for the writer, whose transaction is undone where SQLite has not done that itself."""
        roll_back(self.writer)
        return self.failure(error, committing=committing)

    # ---- upkeep

    def status(self) -> EngineStatus:
        """Sizes, settings and versions."""
        with self.reading() as connection:
            details: dict[str, Any] = {
                "journal_mode": connection.pragma("journal_mode"),
                "synchronous": self._options.synchronous,
                "page_size": connection.pragma("page_size"),
                "free_pages": connection.pragma("freelist_count"),
                "wal_bytes": size_of(self.path + "-wal"),
                "readers": self._readers_made,
                "max_readers": self._options.max_readers,
                "sqlite_version": apsw.sqlite_lib_version(),
            }
        return EngineStatus(self.path, schema.NEWEST, size_of(self.path) + details["wal_bytes"], details)

    def check(self) -> list[str]:
        """SQLite's own integrity check, the schema, and what must hold between the tables."""
        with self.reading() as connection:
            schema.verify(connection, self.path)
            problems = [str(line) for (line,) in connection.execute("PRAGMA integrity_check") if line != "ok"]
            problems += [f"namespace {name!r} is not registered" for (name,) in connection.execute(UNREGISTERED)]
            problems += [
                f"{key!r} in namespace {namespace!r} has an impossible version or time"
                for namespace, key in connection.execute(IMPOSSIBLE_ROWS)
            ]
        return problems

    def optimize(self) -> None:
        """Fresh statistics where SQLite wants them, and the -wal written back as far as nobody reads it."""
        self.lock_writer(None)
        try:
            self.writer.execute("PRAGMA optimize")
            self._patience.timeout = 0.0  # a reader may stay for long; then it is done another time
            with contextlib.suppress(apsw.BusyError):
                self.writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except DRIVER_ERRORS as error:
            raise self.writer_failure(error, committing=False) from error
        finally:
            self.unlock_writer()

    def migrate(self, to: int | None) -> None:
        """Bring the file to a schema version, up or down, in one transaction."""
        target = schema.NEWEST if to is None else to
        if target not in (1, 2):
            raise ConfigError(f"to: {to!r} is no schema version this library knows: 1 or {schema.NEWEST}")
        self.lock_writer(None)
        try:
            self._migrate(self.writer, target)
        except DRIVER_ERRORS as error:
            raise self.writer_failure(error) from error
        finally:
            self.unlock_writer()

    def _migrate(self, connection: apsw.Connection, target: int) -> None:
        """What has to be done is decided under the file's lock: another process may have been here first."""
        now_ms = int(self._options.clock() * 1000)
        connection.execute(BEGIN_TO_WRITE)
        try:
            version = schema.verify(connection, self.path)
            if version == 0:
                schema.create(connection, now_ms)
            elif version < target:
                schema.upgrade(connection, self.path, now_ms)
            elif version > target:
                schema.downgrade(connection, self.path, now_ms)
            connection.execute(COMMIT)
        except BaseException:
            roll_back(connection)
            raise

    def close(self) -> None:
        """End what is open, write the -wal back, and close every connection."""
        with self._readers_lock:
            if self._closed:
                return
            self._closed = True
        for lending in list(self._sessions):
            lending.rollback()
        deadline = time.monotonic() + self._options.busy_timeout
        for _ in range(self._readers_made):
            try:
                cursor = self.idle_readers.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                break  # a read that takes so long keeps its connection until it is collected
            cursor.connection.close()
        if self._write_lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            self.unlock_writer()

    def _close_writer(self) -> None:
        try:
            # Before close(), which would hold the interpreter lock for as long as a big -wal takes.
            if not self._options.read_only:
                self.writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except (apsw.BusyError, apsw.LockedError, apsw.FullError, apsw.ConnectionClosedError):
            pass  # everything is committed: the -wal stays beside the file, and who opens it next goes on from there
        except DRIVER_ERRORS as error:
            raise self.failure(error) from error
        finally:
            self.writer.close()


class _Lending:
    """The connection of one open transaction, lent to its session for every statement until it ends."""

    def __init__(
        self, engine: SQLiteEngine, connection: apsw.Connection, give_back: Callable[[apsw.Connection], None]
    ) -> None:
        self._engine = engine
        self._connection = connection
        self._give_back: Callable[[apsw.Connection], None] | None = give_back
        # close() ends a session from another thread: between two of its calls, never within one.
        self._lock = threading.RLock()

    def reading(self) -> _Lending:
        return self

    writing = reading

    def time(self, now: int) -> int:
        return now

    def __enter__(self) -> apsw.Connection:
        self._lock.acquire()
        if self._give_back is None or not self._connection.in_transaction:
            self._lock.release()
            raise self._engine.ended_error()
        return self._connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, DRIVER_ERRORS):
                # SQLite undoes the statement, or everything, depending on the error: for the caller it is everything.
                roll_back(self._connection)
                raise self._engine.failure(error) from error
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
                connection.execute(COMMIT)
            except DRIVER_ERRORS as error:
                raise self._engine.failure(error, committing=True) from error
            finally:
                self.rollback()
        self._engine.after_write()

    def rollback(self) -> None:
        with self._lock:
            give_back, self._give_back = self._give_back, None
            if give_back is None:
                return
            self._engine.ended(self)
            try:
                roll_back(self._connection)
            finally:
                give_back(self._connection)


class _PageByPage(Statements):
    """A scan's session without WAL, where a long read transaction would keep every writer out."""

    def rollback(self) -> None:
        """Nothing is open."""
