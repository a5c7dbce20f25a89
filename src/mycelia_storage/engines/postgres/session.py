"""How the primitives run: each as a transaction of its own (`Auto`), or all inside an open one (`PostgresSession`).

Called by the engine, which makes them.

Everything is SERIALIZABLE, a statement alone too, and is run again where another transaction came between.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from mycelia_storage.engines.limits import is_limited
from mycelia_storage.engines.postgres.failures import (
    STANDBY,
    cause_of,
    is_conflict,
    is_lost,
    outcome_unknown,
    state_of,
    taken,
)
from mycelia_storage.engines.postgres.statements import Statements
from mycelia_storage.errors import StorageClosedError, TransactionConflictError, TransactionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mycelia_storage.engines.engine import IndexRow, Isolation
    from mycelia_storage.engines.postgres.connections import Connection, Cursor
    from mycelia_storage.engines.postgres.engine import PostgresEngine
    from mycelia_storage.errors import StorageError

R = TypeVar("R")

# READ COMMITTED is less than the verbs need, which read and then write: `if_version`, `add` and the like would go by
# what is no longer so. Whoever asks for it is given the next level.
LEVELS: Final[dict[Isolation, str]] = {
    "read_committed": "REPEATABLE READ",
    "repeatable_read": "REPEATABLE READ",
    "snapshot": "REPEATABLE READ",
    "serializable": "SERIALIZABLE",
}
# For who locks what it reads.
UNDER_LOCK: Final = "READ COMMITTED"
# The namespaces with unique indexes come along, in the same message: what is written there may be refused, and the
# transaction has to be able to go on then. (It is also what makes the transaction's state that of its beginning.)
BEGIN: Final = "BEGIN ISOLATION LEVEL {level} {mode}; {settings}SELECT namespace FROM {s}.indexes WHERE is_unique"
# Only where less was configured: a standby that has to confirm goes on to be asked.
DURABLE: Final = """
SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'; """
LOCAL: Final = "SET LOCAL {name} = {milliseconds}; "
COMMIT: Final = "COMMIT"
ROLLBACK: Final = "ROLLBACK"
POINT: Final = "SAVEPOINT {name}"
RELEASE: Final = "RELEASE SAVEPOINT {name}"
BACK_TO: Final = "ROLLBACK TO SAVEPOINT {name}"
_GUARD: Final = "guard"


class Auto(Statements):
    """The primitives with each call a transaction of its own, for any thread."""

    def __init__(self, engine: PostgresEngine) -> None:
        super().__init__(engine.texts, self)
        self._engine = engine
        self._connections = engine.connections

    def read(self, step: Callable[[Cursor], R]) -> R:
        """On any connection; one that is lost is replaced, and the step run again."""
        left = self._connections.most
        retries = None
        while True:
            connection = self._connections.lend()
            try:
                result = step(connection.raw)
            except psycopg.Error as error:
                self._connections.give_back(connection, lost=is_lost(error))
                if is_lost(error) and left:
                    left -= 1
                    continue
                if is_conflict(error):
                    retries = retries or self._engine.retries()
                    if retries.wait():
                        continue
                raise self._engine.failure(error) from cause_of(error)
            except BaseException:
                self._connections.give_back(connection)
                raise
            self._connections.give_back(connection)
            return result

    def write(self, step: Callable[[Cursor], R], namespace: str | None = None) -> R:
        """One statement, which commits itself: where the connection is lost over it, nobody knows its outcome."""
        del namespace
        if self._engine.local_settings:
            # Behind a pooler a connection has somebody else's settings, the isolation of a statement among them.
            return self.together(step)
        left = self._connections.most
        retries = None
        while True:
            connection = self._connections.lend()
            connection.is_unconfirmed = False
            try:
                result = step(connection.raw)
            except psycopg.Error as error:
                is_standby = state_of(error) == STANDBY and not self._engine.is_read_only
                self._connections.give_back(connection, lost=is_lost(error) or is_standby)
                refused = taken(error)
                if refused is not None:
                    raise refused from None
                if is_standby and left:
                    left -= 1
                    continue
                failure = self._engine.failure(error, committing=True)
                if isinstance(failure, TransactionConflictError):
                    retries = retries or self._engine.retries()
                    if retries.wait():
                        continue
                raise failure from cause_of(error)
            except BaseException:
                self._connections.give_back(connection)
                raise
            is_unconfirmed = connection.is_unconfirmed
            self._connections.give_back(connection)
            if is_unconfirmed:
                raise outcome_unknown(self._engine.where)
            return result

    def together(self, step: Callable[[Cursor], R]) -> R:
        """A transaction, again and again until nobody comes between."""
        retries = self._engine.retries()
        while True:
            session = self._engine.begin_session()
            try:
                result = session.together(step)
                session.commit()
            except TransactionConflictError:
                if not retries.wait():
                    raise
            else:
                return result
            finally:
                session.rollback()


class PostgresSession(Statements):
    """One open transaction on one connection, which it gives back when it ends.

    After an error that ends a transaction in PostgreSQL, which is nearly every one, it has ended. What a caller may go
    on after is done behind a savepoint: a write that a unique index may refuse, a read with a limit, a definition.
    """

    def __init__(self, engine: PostgresEngine, connection: Connection, *, read_only: bool, is_extra: bool) -> None:
        super().__init__(engine.texts, self)
        self._engine = engine
        self._connection: Connection | None = connection
        self._read_only = read_only
        self._is_extra = is_extra
        self._lock = threading.Lock()
        self._points = 0
        # Of namespaces, and None for an index of all of them.
        self._unique: set[str | None] = set()
        self.writes = 0

    def start(self, level: str, *, durable: bool) -> None:
        """Begin. Raises what the driver raises; then there is no transaction."""
        mode = "READ ONLY" if self._read_only else "READ WRITE"
        settings = self._engine.local_settings + (DURABLE if durable else "")
        text = BEGIN.format(level=level, mode=mode, settings=settings, s=self._texts.schema)
        connection = self._open()
        connection.is_unconfirmed = False
        try:
            cursor = connection.raw.execute(text, prepare=False)
        except psycopg.errors.FeatureNotSupported as error:
            # A standby refuses READ WRITE with this, and every write with the other.
            raise psycopg.errors.ReadOnlySqlTransaction(*error.args) from error
        while cursor.nextset():
            pass
        self._unique = {namespace for (namespace,) in cursor.fetchall()}

    def __del__(self) -> None:
        # Nobody has it any more, and nobody ended it. This may be anywhere, so nothing is waited for.
        connection, self._connection = getattr(self, "_connection", None), None
        if connection is not None:
            connection.pgconn.finish()
            if self._is_extra:
                connection.close()
            else:
                self._engine.connections.abandoned.append(connection)

    def _open(self) -> Connection:
        connection = self._connection
        if connection is None:
            raise self._engine.ended_error()
        return connection

    # ---- how a step runs

    def read(self, step: Callable[[Cursor], R]) -> R:
        if is_limited():
            return self._guarded(step)
        return self._plainly(step)

    def write(self, step: Callable[[Cursor], R], namespace: str | None = None) -> R:
        self.writes += 1
        if namespace is not None and self._unique and (namespace in self._unique or None in self._unique):
            return self._guarded(step)
        return self._plainly(step)

    def together(self, step: Callable[[Cursor], R]) -> R:
        self.writes += 1
        return self._guarded(step)

    def _plainly(self, step: Callable[[Cursor], R]) -> R:
        connection = self._open()
        try:
            return step(connection.raw)
        except psycopg.Error as error:
            if self._connection is None:  # another thread has closed the store meanwhile
                raise self._engine.ended_error() from None
            self.end(lost=is_lost(error))
            if taken(error) is not None:  # by an index that was made since this transaction began
                raise TransactionConflictError(f"{self._engine.where}: an index was created meanwhile") from None
            raise self._engine.failure(error) from cause_of(error)
        except BaseException:
            # Ctrl-C, in the middle of a statement for one.
            if connection.broken or connection.pgconn.transaction_status != TransactionStatus.INTRANS:
                self.end(lost=True)
            raise

    def _guarded(self, step: Callable[[Cursor], R]) -> R:
        self._plainly(lambda cursor: cursor.execute(POINT.format(name=_GUARD)))
        try:
            result = step(self._open().raw)
        except BaseException as error:
            if not isinstance(error, psycopg.Error):
                self._back(_GUARD)
                raise
            refused = taken(error)
            if is_lost(error) or is_conflict(error):
                self.end(lost=is_lost(error))
            else:
                self._back(_GUARD)
            if refused is not None:
                raise refused from None
            raise self._engine.failure(error) from cause_of(error)
        self._plainly(lambda cursor: cursor.execute(RELEASE.format(name=_GUARD)))
        return result

    def _back(self, name: str) -> None:
        def step(cursor: Cursor) -> None:
            cursor.execute(BACK_TO.format(name=name))
            cursor.execute(RELEASE.format(name=name))

        self._plainly(step)

    # ---- its life

    def create_index(self, index: IndexRow, now: int) -> None:
        super().create_index(index, now)
        if index.is_unique:
            self._unique.add(index.namespace)

    def commit(self) -> None:
        connection = self._open()
        if self._read_only:
            self.rollback()
            return
        try:
            connection.raw.execute(COMMIT, prepare=False)
            ended_with = connection.raw.statusmessage
        except psycopg.Error as error:
            self.end(lost=is_lost(error))
            raise self._engine.failure(error, committing=True) from cause_of(error)
        except BaseException:
            self.end(lost=True)
            raise
        is_unconfirmed = connection.is_unconfirmed
        self.end()
        if ended_with != COMMIT:
            raise TransactionError("an earlier error has ended the transaction: nothing of it was kept")
        if is_unconfirmed:
            raise outcome_unknown(self._engine.where)

    def rollback(self) -> None:
        self.end()

    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self._connection is not None

    def end(self, *, lost: bool = False) -> None:
        """Give the connection back; what was written is undone where it is not committed."""
        with self._lock:  # the store may be closed meanwhile
            connection, self._connection = self._connection, None
        if connection is None:
            return
        self._engine.ended(self)
        if self._is_extra:
            connection.close()
        else:
            self._engine.connections.give_back(connection, lost=lost)

    def abandon(self) -> list[object]:
        """For the child of a fork: forget a transaction that is the parent's. Gives what has to be kept."""
        connection, self._connection = self._connection, None
        return [connection]

    def savepoint(self) -> int:
        name = f"point_{self._points + 1}"
        self._plainly(lambda cursor: cursor.execute(POINT.format(name=name)))
        self._points += 1
        return self._points

    def release(self, savepoint: int) -> None:
        self._plainly(lambda cursor: cursor.execute(RELEASE.format(name=f"point_{savepoint}")))
        self._points = savepoint - 1

    def rollback_to(self, savepoint: int) -> None:
        self._back(f"point_{savepoint}")
        self._points = savepoint - 1


def closed_or_ended(*, is_closed: bool) -> StorageError:
    """Why a session takes no more calls."""
    return StorageClosedError("the store is closed") if is_closed else TransactionError("the transaction has ended")
