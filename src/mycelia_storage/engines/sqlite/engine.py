"""One file: its writer, its readers, the transactions on them, and its upkeep.

Called by the verbs. SQL on entries stands in `session.py`, the layout of the file in `schema.py`, the line of those who
write in `writer.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

import apsw
import msgspec

from mycelia_storage.engines import forking
from mycelia_storage.engines.engine import EngineStatus, Isolation, Session, Snapshot
from mycelia_storage.engines.sqlite import checking, checkpoints, copying, pages, schema, whole_files
from mycelia_storage.engines.sqlite.auto import Auto
from mycelia_storage.engines.sqlite.checkpoints import Checkpoints
from mycelia_storage.engines.sqlite.connection import (
    close_untouched,
    create_file,
    kind_at,
    open_reader,
    open_writer,
    require_safe_sqlite,
    set_journal_mode,
    size_of,
)
from mycelia_storage.engines.sqlite.failures import (
    DRIVER_ERRORS,
    of_system,
    roll_back,
    to_storage_error,
)
from mycelia_storage.engines.sqlite.leftovers import remove_empty
from mycelia_storage.engines.sqlite.lending import Lending, PageByPage
from mycelia_storage.engines.sqlite.places import is_there, look_at, require_same, why_not_written
from mycelia_storage.engines.sqlite.readers import Readers
from mycelia_storage.engines.sqlite.session import SQLiteSession
from mycelia_storage.engines.sqlite.telling import Teller
from mycelia_storage.engines.sqlite.trust import COMMIT, begin_to_write
from mycelia_storage.engines.sqlite.writer import Writer
from mycelia_storage.errors import (
    ConfigError,
    SchemaVersionError,
    StorageClosedError,
    StorageCorruptError,
    StorageError,
    StorageIOError,
    StorageReadOnlyError,
    TransactionError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mycelia_storage.checking import Findings
    from mycelia_storage.engines.engine import Member, Primitives, Progress
    from mycelia_storage.engines.sqlite.pages import Kind
    from mycelia_storage.options import Options

BEGIN: Final = "BEGIN"
# A transaction that reads has its state from its first read on, not from BEGIN.
PIN: Final = "SELECT version FROM storage_version_floor WHERE id = 1"
ANY_EXPIRY: Final = (
    "SELECT 1 FROM storage_entries INDEXED BY storage_entries_expiry WHERE expires_at IS NOT NULL LIMIT 1"
)
MALFORMED: Final = """
SELECT namespace, key FROM storage_entries
WHERE NOT json_valid(value) OR (metadata IS NOT NULL AND NOT json_valid(metadata)) LIMIT 1"""

_CLOSED: Final = "the store is closed"
_FORKED: Final = (
    "this process was forked while a transaction or a scan was open on the file, so SQLite cannot tell its locks from "
    "its parent's: fork before opening the store, or between transactions, or open it in a process of its own"
)
# Connections that were inherited, and must never be closed here.
_kept: list[object] = []

require_safe_sqlite()


class SQLiteEngine:
    """The rows of one file."""

    backend = "sqlite"
    has_write_lock = True

    def __init__(self, options: Options) -> None:
        pages.require_driver(options)
        self._options = options
        self.clock: Callable[[], float] = options.clock
        self.path: Final = options.path
        if self.path in forking.inherited:
            raise StorageClosedError(f"{self.path}: {_FORKED}")
        self._sessions: weakref.WeakSet[Lending] = weakref.WeakSet()
        # Which thread was lent a connection for a transaction, until it is given back: also when nobody has the session
        # any more, and the garbage collector is still about to end it.
        self._lent: dict[int, int] = {}
        self._reading_since: dict[int, float] = {}
        self._why_closed: str | None = None
        self._is_held = False
        # Without WAL a reader waits for whoever writes.
        self.reads_at_once: bool = options.wal_mode
        self.readers: Readers = Readers(self, options)
        self._former_readers: list[Readers] = []
        with forking.opening(self.path):
            self._begin(options)

    def _begin(self, options: Options) -> None:
        try:
            first = self._open_read_only() if options.read_only else self._open()
            self._holds_expiring: bool = first.execute(ANY_EXPIRY).get is not None
            # What a backup has to be like.
            self._options = msgspec.structs.replace(options, checksums=kind_at(self.path) == "checksums")
        except OSError as error:
            raise of_system(error, self.path) from error
        except apsw.SQLError as error:  # the statements are right, so the file is not
            raise StorageCorruptError(f"{self.path}: SQLite cannot read the file's schema") from error
        except DRIVER_ERRORS as error:
            raise to_storage_error(error, self.path) from error
        self.checkpoints: Checkpoints = Checkpoints(self, options)
        self.writer: Writer = Writer(self, options, self._reopen, first)
        # Otherwise each commit waits for the disk.
        self.share_at_once: Callable[[Sequence[Member]], bool] | None = (
            self.writer.commits.share_at_once if self.writer.is_quick else None
        )
        self.auto: Primitives = Auto(self)
        forking.register(self)

    # ---- opening

    def _open(self) -> apsw.Connection:
        look_at(self.path)
        create_file(self.path)
        while True:
            connection = self._open_once()
            if connection is not None:
                return connection

    def _open_once(self) -> apsw.Connection | None:
        """None where the file was new, and another process has just made it one of another kind."""
        options = self._options
        place = look_at(self.path)
        kind = kind_at(self.path)
        version = schema.recognise(self.path, options.busy_timeout, options.encryption_key)
        self._require_migration(version)
        try:
            connection = open_writer(self.path, options)
        except apsw.NotADBError:
            if kind_at(self.path) == kind:
                raise
            return None
        try:
            # Until the file is known to be ours and not newer, closing must not write its -wal back.
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            require_same(connection, self.path, place)
            if connection.readonly("main"):
                message = f"{self.path}: the file could only be opened for reading"
                raise StorageReadOnlyError(message) from why_not_written(self.path)
            if version == schema.NEWEST:
                # That stood in the header. The -wal or a journal, which the connection has read by now, knows better.
                version = schema.verify(connection, self.path)
                self._require_migration(version)
            if version == 0 and not self._create(connection, kind):
                close_untouched(connection, self.path)
                return None
            if version == 1:
                self._migrate(connection, schema.NEWEST)
            set_journal_mode(connection, self.path, wal=options.wal_mode, timeout=options.busy_timeout)
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        except BaseException:
            close_untouched(connection, self.path)
            raise
        return connection

    def _create(self, connection: apsw.Connection, kind: Kind) -> bool:
        """Lay out a file that is new. False where another process was first, and the connection does not fit its pages.

        That is found out before anything is written, under the file's lock; so it is done before the journal mode is
        set, which writes a first page and cannot be done inside a transaction.
        """
        try:
            begin_to_write(connection)
        except apsw.NotADBError:
            return False  # it is encrypted by now, and not with this connection's salt
        try:
            if kind_at(self.path) != kind:
                return False
            self._bring_to(connection, schema.NEWEST)
            connection.execute(COMMIT)
        finally:
            roll_back(connection)
        return True

    def _require_migration(self, version: int) -> None:
        if version == 1 and not self._options.migrate:
            message = f"{self.path}: the file has schema version 1, and migrate=False keeps it there"
            raise SchemaVersionError(message)

    def _require_newest(self, version: int, reason: str) -> None:
        if version != schema.NEWEST:
            raise SchemaVersionError(f"{self.path}: the file has schema version {version}, and {reason}")

    def _open_read_only(self) -> apsw.Connection:
        if not is_there(self.path):
            raise ConfigError(f"db_path: there is no file {self.path}, and read_only=True makes none")
        place = look_at(self.path)
        version = schema.recognise(self.path, self._options.busy_timeout, self._options.encryption_key)
        reason = "read_only=True cannot migrate it"
        self._require_newest(version, reason)
        connection = open_reader(self.path, self._options)
        try:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            require_same(connection, self.path, place)
            self._require_newest(schema.verify(connection, self.path), reason)
        except BaseException:
            close_untouched(connection, self.path)
            remove_empty(self.path)
            raise
        return connection

    def _reopen(self) -> apsw.Connection:
        """The writer's connection once more, after a fork or a failure."""
        place = look_at(self.path)
        connection = open_writer(self.path, self._options)
        try:
            require_same(connection, self.path, place)
            self.writer.trust.require_same()
            self._require_newest(
                schema.verify(connection, self.path), "another process brought it there: open it again"
            )
        except BaseException:
            connection.close()
            raise
        return connection

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
            readers = self.readers
            cursor = readers.lend_for_long()
            return self._begin_to_read(cursor.connection, lambda: readers.take_back(cursor))
        self.writer.begin(durable=durable, wait=wait)
        try:
            return SQLiteSession(self._lend(self.writer.connection, self.writer.end, self.writer))
        except BaseException:
            self.writer.end()
            raise

    def share(self, members: Sequence[Member], wait: float | None = None) -> None:
        """Run writes that may share a commit."""
        self.writer.commits.share(members, wait)

    def snapshot(self) -> Snapshot:
        """A session for a scan on a connection of its own; without WAL one that reads page by page."""
        if not self._options.wal_mode:
            return PageByPage(self)
        with forking.opening(self.path):
            connection = self.readers.open()
            return self._begin_to_read(connection, connection.close)

    def _begin_to_read(self, connection: apsw.Connection, give_back: Callable[[], None]) -> Session:
        return SQLiteSession(self._lend_to_read(connection, give_back))

    def _lend_to_read(self, connection: apsw.Connection, give_back: Callable[[], None]) -> Lending:
        try:
            connection.execute(BEGIN)
            connection.execute(PIN).fetchall()
            if not connection.in_transaction:
                # What SQLite reads with the schema could not be read, and it said nothing.
                raise StorageCorruptError(f"{self.path}: the statistics of the file are damaged")
        except BaseException as error:
            with contextlib.suppress(*DRIVER_ERRORS):
                roll_back(connection)
            give_back()
            if isinstance(error, DRIVER_ERRORS):
                raise self.failure(error) from error
            raise
        lending = self._lend(connection, give_back)
        self._reading_since[id(lending)] = time.monotonic()
        return lending

    def _lend(
        self, connection: apsw.Connection, give_back: Callable[[], None], writer: Writer | None = None
    ) -> Lending:
        lending = Lending(self, connection, give_back, writer)
        self._lent[id(lending)] = lending.thread
        self._sessions.add(lending)
        return lending

    def ended(self, lending: Lending) -> None:
        """A session gave its connection back, and nothing of its transaction is open any more."""
        self._sessions.discard(lending)
        self._lent.pop(id(lending), None)
        self._reading_since.pop(id(lending), None)

    def ended_error(self) -> StorageError:
        """Why a session takes no more calls."""
        return self.closed_error() if self._why_closed else TransactionError("the transaction has ended")

    def closed_error(self) -> StorageClosedError:
        """Why the store takes no more calls."""
        return StorageClosedError(f"{self.path}: {self._why_closed or _CLOSED}")

    def reading(self) -> contextlib.AbstractContextManager[apsw.Connection]:
        """A reader's connection, for one statement."""
        return self.readers.reading()

    def writing(self) -> contextlib.AbstractContextManager[apsw.Connection]:
        """The writer's connection, inside a transaction that is committed at the end of the block."""
        return self.writer.writing()

    def time(self, now: int) -> int:
        """The time of a write that is a transaction of its own."""
        return self.writer.time(now)

    # ---- failures

    def failure(self, error: Exception, *, committing: bool = False) -> StorageError:
        """The library's error for one of the driver's; `committing` as in `to_storage_error`."""
        if isinstance(error, apsw.SQLError | apsw.ConstraintError | apsw.MismatchError) and not self._why_closed:
            found = self._why_refused()
            if found is not None:
                return found
        return to_storage_error(error, self.path, committing=committing)

    def _why_refused(self) -> StorageError | None:
        """What is wrong with the tables, or with what they hold, where SQLite refuses a statement that is right."""
        try:
            with (
                forking.opening(self.path),
                contextlib.closing(open_reader(self.path, self._options)) as look,
            ):
                version = look.execute("SELECT max(version) FROM schema_version").get
                if version == schema.NEWEST - 1:  # another process took the file there
                    message = f"{self.path}: the file has schema version {version} now: migrate() it, or open it again"
                    return SchemaVersionError(message)
                schema.verify(look, self.path)  # which tells of a newer one
                for namespace, key in look.execute(MALFORMED):
                    message = f"{self.path}: {key!r} in namespace {namespace!r} holds a text that is no JSON"
                    return StorageCorruptError(message)
        except DRIVER_ERRORS as error:
            found = to_storage_error(error, self.path)
            # Then it was not seen what is wrong. What is damaged does not always let itself be looked at.
            return found if isinstance(found, StorageCorruptError | StorageIOError) else None
        except ConfigError:
            return None
        except StorageError as error:  # somebody changed the tables
            return error
        return None

    # ---- upkeep

    def holds_expiring(self) -> bool:
        return self._holds_expiring

    def oldest_read(self) -> float | None:
        """For how many seconds the oldest transaction that reads, scan or backup of this process has been open."""
        since = list(self._reading_since.copy().values())
        return time.monotonic() - min(since) if since else None

    def status(self) -> EngineStatus:
        """Sizes, settings and versions, and who keeps the -wal from being written back."""
        try:
            return self._status()
        except OSError as error:
            raise of_system(error, self.path) from error

    def _status(self) -> EngineStatus:
        oldest = self.oldest_read()
        with self.reading() as connection:
            details: dict[str, Any] = {
                "journal_mode": connection.pragma("journal_mode"),
                "synchronous": self._options.synchronous,
                "page_size": connection.pragma("page_size"),
                "free_pages": connection.pragma("freelist_count"),
                "wal_bytes": size_of(self.path + "-wal"),
                "readers": self.readers.made,
                "refuses_writes": self.writer.trust.doubt,
                "max_readers": self._options.max_readers,
                "checksums": self._options.checksums,
                "encrypted": self._options.encryption_key is not None,
                "sqlite_version": apsw.sqlite_lib_version(),
                "open_reads": len(self._reading_since),
                "oldest_read_seconds": None if oldest is None else round(oldest, 3),
            }
            # After a statement that has read: before the first one a connection knows of no -wal.
            try:
                frames, written_back = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
                waiting = max(0, frames - written_back) * details["page_size"]
            except apsw.ReadOnlyError:  # the -shm may only be read, and who may write is the one who knows
                waiting = None
            details["wal_bytes_to_write_back"] = waiting
            details["wal_is_held"] = None if waiting is None else waiting > checkpoints.WAL_LIMIT
        return EngineStatus(self.path, schema.NEWEST, size_of(self.path) + details["wal_bytes"], details)

    def check(self, findings: Findings, now: int) -> None:
        """Look through the whole file in one state of it, on a connection of its own."""
        lending = self._lend_apart()
        try:
            checking.check(lending, self.path, findings, now, lambda: self.closed_error() if self._why_closed else None)
        finally:
            lending.rollback()

    def backup(self, path: str, *, overwrite: bool, progress: Progress | None) -> None:
        """Copy the file, as it is at one moment, while others write."""
        teller, what = Teller(progress), f"{self.path} to {path}"
        with copying.new_file(path, self._options, overwrite=overwrite, store=self.path) as target:
            lending = self._lend_apart()
            try:
                whole_files.copy(lending, target, what, teller, self.readers.open)
            finally:
                lending.rollback()
            copying.complete(target, path, self._options, teller)

    def _lend_apart(self) -> Lending:
        """A connection that is nobody else's, inside a transaction that reads."""
        with forking.opening(self.path):
            connection = self.readers.open()
            return self._lend_to_read(connection, connection.close)

    def restore(self, path: str, *, progress: Progress | None) -> None:
        """Write the pages of another file into this one, in one transaction, so that every connection notices."""
        teller = Teller(progress)
        with self.reading() as connection:
            shape = copying.Shape(connection)
        with copying.prepared(path, self._options, teller, beside=self.path, store=self.path, shape=shape) as source:
            self.writer.replace(lambda target: self._replace(source, target, path, teller))

    def _replace(self, source: apsw.Connection, target: apsw.Connection, path: str, teller: Teller) -> None:
        copying.raise_floor(source, copying.greatest_version(target))
        source.execute(BEGIN)
        source.execute(PIN).fetchall()

        def tell(done: int, total: int) -> None:
            self.writer.trust.require(target)
            teller.tell("restoring", done, total)

        copying.copy_pages(source, target, f"{path} to {self.path}", tell, committing=True)

    def optimize(self) -> None:
        """Fresh statistics where SQLite wants them, and the -wal written back."""
        self.writer.optimize()

    def migrate(self, to: int | None) -> None:
        """Bring the file to a schema version, up or down, in one transaction."""
        target = schema.NEWEST if to is None else to
        if target not in (1, 2):
            raise ConfigError(f"to: {to!r} is no schema version this library knows: 1 or {schema.NEWEST}")
        self.writer.lock(None)
        try:
            self._migrate(self.writer.connection, target, self.writer.commit)
        except DRIVER_ERRORS as error:
            raise self.writer.failure(error) from error
        finally:
            self.writer.unlock()

    def _migrate(self, connection: apsw.Connection, target: int, commit: Callable[[], object] | None = None) -> None:
        """What has to be done is decided under the file's lock: another process may have been here first."""
        begin_to_write(connection)
        try:
            self._bring_to(connection, target)
            if commit is None:
                connection.execute(COMMIT)
            else:
                commit()
        except BaseException:
            with contextlib.suppress(*DRIVER_ERRORS):  # it is closed by then, or not lent to others before it is clean
                roll_back(connection)
            raise

    def _bring_to(self, connection: apsw.Connection, target: int) -> None:
        now_ms = int(self._options.clock() * 1000)
        version = schema.verify(connection, self.path)
        if version == 0:
            schema.create(connection, now_ms)
        elif version < target:
            schema.upgrade(connection, self.path, now_ms)
        elif version > target:
            schema.downgrade(connection, self.path, now_ms)

    # ---- the end, and forks

    def close(self) -> None:
        """End what is open, write the -wal back, and close every connection."""
        if self._why_closed:
            return
        self.checkpoints.close()
        with forking.opening(self.path):
            self._close()

    def _close(self) -> None:
        self._why_closed = _CLOSED
        self.writer.is_closed = True
        for lending in forking.all_of(self._sessions):
            lending.rollback()
        deadline = time.monotonic() + self._options.busy_timeout
        try:
            for readers in (self.readers, *self._former_readers):
                readers.close(max(0.0, deadline - time.monotonic()))
        finally:
            self.writer.close(max(0.0, deadline - time.monotonic()))

    def refuse_reads(self) -> None:
        """From now on: what could be read is not known to have happened."""
        old = self.readers
        old.refuse(self.writer.trust.refusal)
        # Others in their place, so that the reads of all other days need not ask.
        self.readers = old.anew(is_closed=old.is_closed)
        self._former_readers.append(old)
        old.close(0.0)

    def before_fork(self) -> bool:
        """Close every connection, once all of them are free; False where that takes longer than `busy_timeout`."""
        if self._why_closed:
            return not self.readers.made  # a read that was longer than close() was patient
        here, writer = threading.get_ident(), self.writer
        if writer.holder == here or here in self._lent.copy().values():
            return False
        deadline = time.monotonic() + self._options.busy_timeout
        if not writer.line.acquire(self._options.busy_timeout):
            return False
        try:
            while self._lent and time.monotonic() < deadline:
                time.sleep(0.002)  # scans and transactions that read, in other threads
            self._is_held = (
                not self._lent
                and all(former.close(max(0.0, deadline - time.monotonic())) for former in self._former_readers)
                and self.checkpoints.let_go(max(0.0, deadline - time.monotonic()))
                and self.readers.hold(max(0.0, deadline - time.monotonic()))
            )
            if self._is_held:
                writer.go_dormant()
                if writer.trust.doubt is not None:
                    # Whoever opens the file anew may find done what was not, or the other way round.
                    self.readers.refuse(writer.trust.refusal)
        finally:
            if not self._is_held:
                writer.unlock()
        return self._is_held

    def after_fork(self, *, in_child: bool, is_ready: bool) -> None:
        """Open again when needed. A child that inherited an open connection never uses it, nor closes it."""
        if in_child:
            self._begin_anew(is_ready=is_ready)
        elif self._is_held:
            self._is_held = False
            self.readers.let_go()
            self.writer.unlock()

    def _begin_anew(self, *, is_ready: bool) -> None:
        self._is_held = False
        # Threads of the parent had locks, or stood in line, and are not here to give them back.
        sessions = forking.all_of(self._sessions)
        if not is_ready:
            forking.inherited.add(self.path)
            keep_for_ever(self.writer.connection, self.checkpoints, self.readers, *self._former_readers, *sessions)
            self._why_closed = _FORKED
        for lending in sessions:
            lending.abandon()
        self._sessions = weakref.WeakSet()
        self._lent = {}
        self._reading_since = {}
        self.checkpoints = Checkpoints(self, self._options)
        self._former_readers = []
        self.readers = self.readers.anew(is_closed=bool(self._why_closed))
        self.writer.begin_anew(is_closed=bool(self._why_closed))


def keep_for_ever(*things: object) -> None:
    """Let nothing collect them, not even the end of the interpreter: closing them would release the parent's locks."""
    for thing in things:
        _kept.append(thing)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
