"""How the primitives run: each as a transaction of its own (`Auto`), or all inside an open one (`PostgresSession`).

Called by the engine, which makes them.

Everything is SERIALIZABLE, a statement alone too, and is run again where another transaction came between.
"""

from __future__ import annotations

import logging
import threading
import time
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
from mycelia_storage.errors import StorageError, TransactionConflictError, TransactionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mycelia_storage.engines.engine import IndexRow, Isolation
    from mycelia_storage.engines.postgres.connections import Connection, Cursor
    from mycelia_storage.engines.postgres.engine import PostgresEngine

R = TypeVar("R")
LOG: Final = logging.getLogger("mycelia_storage")

# READ COMMITTED is less than the verbs need, which read and then write: `if_version`, `add` and the like would go by
# what is no longer so. Whoever asks for it is given the next level.
LEVELS: Final[dict[Isolation, str]] = {
    "read_committed": "REPEATABLE READ",
    "repeatable_read": "REPEATABLE READ",
    "snapshot": "REPEATABLE READ",
    "serializable": "SERIALIZABLE",
}
# The namespaces with unique indexes come along, in the same message: what is written there may be refused, and the
# transaction has to be able to go on then. (It is also what makes the transaction's state that of its beginning.)
BEGIN: Final = """
BEGIN ISOLATION LEVEL {level} {mode}; {local}{lock}{durable}SELECT namespace FROM {s}.indexes WHERE is_unique"""
# Before anything that reads, or the state would be one from before the lock. First the table that most writers lock
# first. Readers go on with the old state until the commit; writers wait for it.
LOCK: Final = "LOCK TABLE {s}.entries, {s}.state, {s}.namespaces, {s}.indexes IN SHARE ROW EXCLUSIVE MODE; "
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
# A request to cancel has at least so long, or it would not even be tried.
_LEAST_SECONDS: Final = 0.1
_ENDED: Final = "the transaction had ended before its commit: nothing of it was kept"


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
                failure, cause = self._engine.failure(error), cause_of(error)
            except BaseException:
                self._connections.give_back(connection)
                raise
            else:
                self._connections.give_back(connection)
                return result
            # Out here, or it would keep the driver's error, and in it what the server shows of values, as its context.
            raise failure from cause

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
            connection.is_unconfirmed, connection.until = False, self._engine.until()
            try:
                if connection.is_on_standby:
                    raise psycopg.errors.ReadOnlySqlTransaction("cannot write on a standby")
                result = step(connection.raw)
            except psycopg.Error as error:
                connection.until = None
                is_standby = state_of(error) == STANDBY and not self._engine.is_read_only
                self._connections.give_back(connection, lost=is_lost(error) or is_standby)
                refused = taken(error)
                if is_standby and left:
                    left -= 1
                    continue
                failure, cause = self._engine.failure(error, committing=True), cause_of(error)
            except BaseException:
                connection.until = None
                self._connections.give_back(connection)
                raise
            else:
                is_unconfirmed, connection.until = connection.is_unconfirmed, None
                self._connections.give_back(connection, lost=is_unconfirmed)  # a late request to cancel may be coming
                if is_unconfirmed:
                    raise outcome_unknown(self._engine.where)
                return result
            if refused is not None:
                raise refused
            if isinstance(failure, TransactionConflictError):
                retries = retries or self._engine.retries()
                if retries.wait():
                    continue
            raise failure from cause

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

    Another thread may close the store at any time. A step has several statements, and the rest of them must never run
    outside of the transaction that the others were in, where each would commit itself: so each step holds a lock, and
    nobody rolls back or gives the connection back meanwhile.
    """

    def __init__(
        self,
        engine: PostgresEngine,
        connection: Connection,
        *,
        read_only: bool,
        is_extra: bool = False,
        is_callers: bool = False,
    ) -> None:
        super().__init__(engine.texts, self)
        self._engine = engine
        self._read_only = read_only
        self._is_extra = is_extra
        # Nobody runs it again, and it may be open for long.
        self._is_callers = is_callers
        # Held for each step as a whole.
        self._running = threading.Lock()
        # Held for moments: who has the connection, and whether it may be cut.
        self._lock = threading.Lock()
        self._is_committing = False
        self._points = 0
        # Of namespaces, and None for an index of all of them.
        self._unique: set[str | None] = set()
        self._unregistered: set[str] = set()
        self._is_serializable = True
        self.writes: int = 0
        # Last: whoever is interrupted before has a connection that no session will give back.
        self._connection: Connection | None = connection

    def start(self, level: str, *, durable: bool, alone: bool = False) -> None:
        """Begin; `alone`: once nobody else writes. Raises what the driver raises; then there is no transaction."""
        self._is_serializable = level == LEVELS["serializable"]
        if not self._is_serializable:
            self.use(self._engine.locking_texts)
        text = BEGIN.format(
            level=level,
            mode="READ ONLY" if self._read_only else "READ WRITE",
            local=self._engine.local_settings,
            lock=LOCK.format(s=self._texts.schema) if alone else "",
            durable=DURABLE if durable else "",
            s=self._texts.schema,
        )
        connection = self._open()
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
        with self._running:
            return self._step(step)

    def _guarded(self, step: Callable[[Cursor], R]) -> R:
        with self._running:
            self._step(lambda cursor: cursor.execute(POINT.format(name=_GUARD)))
            connection = self._open()
            try:
                result = step(connection.raw)
            except psycopg.Error as error:
                is_over = is_lost(error) or is_conflict(error) or connection.is_cut
                refused, failure, cause = taken(error), self._engine.failure(error), cause_of(error)
                lost = is_lost(error) and not connection.is_cut
            except BaseException:
                self._back(_GUARD)
                raise
            else:
                self._step(lambda cursor: cursor.execute(RELEASE.format(name=_GUARD)))
                return result
            if is_over:
                self._end(lost=lost)
            else:
                self._back(_GUARD)
            if refused is not None:
                raise refused
            raise failure from cause

    def _step(self, step: Callable[[Cursor], R]) -> R:
        """Run it, with the lock held."""
        connection = self._open()
        try:
            return step(connection.raw)
        except psycopg.Error as error:
            self._end(lost=is_lost(error) and not connection.is_cut)
            if taken(error) is not None:  # by an index that was made since this transaction began
                failure: StorageError = TransactionConflictError(
                    f"{self._engine.where}: an index was created meanwhile"
                )
                cause = None
            else:
                failure, cause = self._engine.failure(error), cause_of(error)
        except BaseException:
            # Ctrl-C, in the middle of a statement for one.
            if connection.broken or connection.pgconn.transaction_status != TransactionStatus.INTRANS:
                self._end(lost=True)
            raise
        raise failure from cause

    def _back(self, name: str) -> None:
        """Undo what came after a savepoint, with the lock held."""

        def step(cursor: Cursor) -> None:
            cursor.execute(BACK_TO.format(name=name))
            cursor.execute(RELEASE.format(name=name))

        self._step(step)

    # ---- its life

    def create_index(self, index: IndexRow, now: int) -> None:
        super().create_index(index, now)
        if index.is_unique:
            self._unique.add(index.namespace)

    def delete(self, namespace: str, keys: Sequence[str], now: int) -> int:
        return self._delete("delete_live" if self._is_callers else "delete", namespace, keys, now)

    def purge(self, now: int, limit: int) -> int:
        """Along with what a caller's transaction is for, nothing: it would be refused where others do the same."""
        return 0 if self._is_callers and self.writes else super().purge(now, limit)

    def unregister(self, namespace: str) -> None:
        super().unregister(namespace)
        self._unregistered.add(namespace)

    def commit(self) -> None:
        with self._running:
            connection = self._open()
            if self._read_only:
                self._end()
            else:
                self._commit(connection)
        for namespace in sorted(self._unregistered):
            try:
                self._engine.auto.settle(namespace, self._engine.now(), was_serializable=self._is_serializable)
            except StorageError as error:  # what was to be committed is, and must not look as if it were not
                LOG.warning("it could not be seen whether the namespace %r was written to: %s", namespace, error)

    def _commit(self, connection: Connection) -> None:
        with self._lock:
            # From here on the store that closes waits for the answer, since it cannot be taken back any more.
            self._is_committing = not connection.is_cut
        if not self._is_committing:
            self._end()
            raise self._engine.ended_error()
        if connection.pgconn.transaction_status != TransactionStatus.INTRANS:
            self._end()
            raise TransactionError(_ENDED)
        connection.is_unconfirmed = connection.is_stray = False
        try:
            connection.until = self._engine.until()
            try:
                connection.raw.execute(COMMIT, prepare=False)
            finally:
                connection.until = None
            ended_with = connection.raw.statusmessage
        except psycopg.Error as error:
            self._end(lost=is_lost(error))
            raise self._engine.failure(error, committing=True) from cause_of(error)
        except BaseException:
            self._end(lost=True)
            raise
        is_unconfirmed, is_stray = connection.is_unconfirmed, connection.is_stray
        self._end(lost=is_unconfirmed)  # a late request to cancel may be coming
        if ended_with != COMMIT or is_stray:
            raise TransactionError(_ENDED)
        if is_unconfirmed:
            raise outcome_unknown(self._engine.where)

    def rollback(self) -> None:
        self.end()

    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self._connection is not None

    def end(self, *, lost: bool = False) -> None:
        """Give the connection back, once no step runs; what was written is undone where it is not committed."""
        if self._connection is not None:
            with self._running:
                self._end(lost=lost)

    def _end(self, *, lost: bool = False) -> None:
        """The same, with the lock held."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is None:
            return
        self._engine.ended(self)
        if self._is_extra:
            connection.close()
        else:
            self._engine.connections.give_back(connection, lost=lost)

    def stop(self, until: float) -> None:
        """For the store that closes, first: what runs now is cancelled, and no further statement of it begins."""
        with self._lock:
            connection = self._connection
            if connection is None or self._is_committing:
                return
            connection.is_cut = True
            if self._running.locked():
                connection.cancel_soon(max(_LEAST_SECONDS, until - time.monotonic()))

    def end_by(self, until: float) -> None:
        """For the store that closes, then: roll back, or where a step goes on until then, cut its connection."""
        if self._running.acquire(timeout=max(0.0, until - time.monotonic())):
            try:
                self._end()
            finally:
                self._running.release()
            return
        with self._lock:
            if self._connection is not None:
                self._connection.cut()

    def abandon(self) -> list[object]:
        """For the child of a fork: forget a transaction that is the parent's. Gives what has to be kept."""
        connection, self._connection = self._connection, None
        # A thread that is not here any more may have held them.
        self._running, self._lock = threading.Lock(), threading.Lock()
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
        with self._running:
            self._back(f"point_{savepoint}")
        self._points = savepoint - 1
