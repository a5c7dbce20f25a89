"""`Connections`: psycopg's pool, and what this library wants of it.

Called by the engine. A connection is lent to one caller at a time. Before it is lent it is looked whether the server
has closed it meanwhile, which costs a microsecond: what is lent has a good chance to work, so that a restart of the
server, or a failover, costs no caller an error. Whoever finds a connection lost gives it back as such, and takes
another one.

The pool's own way of trying again grows slower with every attempt; here it tries once, and a caller who waits asks it
to try again a few times a second. So it is known why there is no connection when the time is over: the others have
them all (StorageBusyError), or the server is away (StorageUnavailableError).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar, cast

import psycopg
import psycopg.conninfo
import psycopg_pool
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.rows import TupleRow

from mycelia_storage.engines.limits import check_limit, is_limited, is_over, time_left, timeout_error
from mycelia_storage.engines.postgres import arrays
from mycelia_storage.engines.postgres.failures import ENDS, cause_of, to_refusal, to_storage_error
from mycelia_storage.engines.postgres.refusals import refusal
from mycelia_storage.errors import StorageBusyError, StorageClosedError, StorageError, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from psycopg.abc import PQGen

    from mycelia_storage.engines.postgres.clock import ServerClock

RV = TypeVar("RV")
LOG: Final = logging.getLogger("mycelia_storage")
SQL_LOG: Final = logging.getLogger("mycelia_storage.sql")
_POOL_LOG: Final = logging.getLogger("psycopg.pool")

# A caller who waits for a connection asks for one to be opened so often.
_SLICE_SECONDS: Final = 0.1
_LONG_SLICE_SECONDS: Final = 2.0
_AWAY_SECONDS: Final = 5.0
# A connection more than `pool_min` that nobody needed for so long is closed.
_IDLE_SECONDS: Final = 60.0
# So often in a row a connection is used without the pool.
_KEPT_TIMES: Final = 1000
_SAY_AGAIN_SECONDS: Final = 10.0
_NAME: Final = "mycelia-storage"
# What has a limit is looked at so often.
_LOOK_SECONDS: Final = 0.02
_CANCEL_SECONDS: Final = 5.0
# A warning with this state, while a commit is under way, says that it was not confirmed by a standby.
_WARNING: Final = "01000"
# And one with this that there was no transaction to commit.
_NO_TRANSACTION: Final = "25P01"
# A standby takes nothing at the level that is the default here.
ON_STANDBY: Final = "SET default_transaction_isolation = 'repeatable read'"


class Cursor(Protocol):
    """What is used of psycopg's RawCursor. It takes any text: the statements are put together here."""

    statusmessage: str | None

    def execute(self, query: str, params: Sequence[object] | None = None, *, prepare: bool | None = None) -> Self:
        """Run a statement; `$1` is the first of `params`. Without them it may be several."""
        ...

    def fetchone(self) -> Any:
        """The next row."""
        ...

    def fetchall(self) -> list[Any]:
        """All rows."""
        ...

    def nextset(self) -> bool | None:
        """Go on to what the next statement gave."""
        ...


class TellingCursor(psycopg.RawCursor[TupleRow]):
    """One that logs each statement with its time, and never what is bound. For `debug=True`."""

    def execute(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Self:
        """As the driver does."""
        started = time.perf_counter()
        try:
            return super().execute(query, params, prepare=prepare, binary=binary)
        finally:
            SQL_LOG.debug("%.3f ms  %s", (time.perf_counter() - started) * 1000, " ".join(str(query).split()))


class Connection(psycopg.Connection[TupleRow]):
    """One connection, with the one cursor that everything runs on, and the flag that a commit was not confirmed."""

    raw: Cursor
    is_unconfirmed: bool = False
    is_stray: bool = False
    # The store is closed: nothing is sent any more.
    is_cut: bool = False
    # It began on a standby, where nothing is serializable. After a promotion it still is at the lower level.
    is_on_standby: bool = False
    # When what is sent now, to be committed with it, has taken too long.
    until: float | None = None
    times_kept: int = 0
    _is_ending: bool = False

    def get_ready(self, *, debug: bool = False) -> None:
        """Called once, when it is open."""
        arrays.register(self)  # before the cursor, which takes a copy
        self.raw = cast("Cursor", TellingCursor(self) if debug else psycopg.RawCursor(self))
        self._poll = select.poll()
        self._poll.register(self.fileno(), select.POLLIN)
        self.add_notice_handler(self._notice)
        if self.prepare_threshold is not None and self.pgconn.parameter_status(b"in_hot_standby") == b"on":
            self.is_on_standby = True
            self.execute(ON_STANDBY)

    def _notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.sqlstate == _WARNING and diagnostic.severity_nonlocalized == "WARNING":
            self.is_unconfirmed = True
        if diagnostic.sqlstate == _NO_TRANSACTION:
            self.is_stray = True
        if (diagnostic.sqlstate or "") in ENDS:
            self._is_ending = True

    def is_usable(self) -> bool:
        """Whether the server is still there, as far as can be known without a question."""
        if self._poll.poll(0):
            # The server says something without being asked: good bye, mostly.
            try:
                self.pgconn.consume_input()
                self.pgconn.is_busy()  # which looks at it, and makes a notice of what nobody has asked for
            except psycopg.Error:
                return False
            if self.pgconn.status != ConnStatus.OK or self._poll.poll(0):
                return False
        return not self._is_ending and not self.closed

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """As the driver does; what has a limit is cancelled when it is over. Nothing is sent on one that is cut."""
        if self.is_cut:
            raise psycopg.OperationalError("the store is closed")
        if self.until is not None or is_limited():
            return super().wait(self._watched(gen), _LOOK_SECONDS, timeout)
        return super().wait(gen, interval, timeout)

    def _watched(self, gen: PQGen[RV]) -> Generator[Any, Any, RV]:
        cancelled = False
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not cancelled and not ready and (is_over() or self._is_late()):
                    cancelled = True
                    self.cancel_soon()
                wanted = gen.send(ready)
        except StopIteration as end:
            result: RV = end.value
            return result

    def _is_late(self) -> bool:
        return self.until is not None and time.monotonic() > self.until

    def cancel_soon(self, timeout: float = _CANCEL_SECONDS) -> None:
        """Ask the server to stop what runs on it. The answer to that is an error of its own."""
        try:
            self.cancel_safe(timeout=timeout)
        except psycopg.Error as error:
            LOG.warning("a statement that is over could not be cancelled: %s", type(error).__name__)

    def cut(self) -> None:
        """End it under a statement that another thread waits for, who then finds it lost, as the server does.

        The socket and not the driver's memory, which that thread may be using.
        """
        with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self.pgconn.socket)) as there:
            there.shutdown(socket.SHUT_RDWR)


class _NotOurPools(logging.Filter):
    """Keeps the pool's own warnings on our connections back, unless the program has given its logger a level.

    For each caller who waits it tries again several times a second, and says so each time, with the addresses of
    objects. Where nothing was configured, that went to stderr. What a program needs to hear `_Away` says.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        is_ours = isinstance(record.args, tuple) and any(
            isinstance(told, Connection) or told == _NAME for told in record.args
        )
        # (The driver gives its own logger the level WARNING where it has none.)
        is_wanted = _POOL_LOG.level != logging.NOTSET or _POOL_LOG.isEnabledFor(logging.INFO)
        return is_wanted or not is_ours or record.levelno < logging.WARNING


_POOL_LOG.addFilter(_NotOurPools())


class _Away:
    """Says once in a while that the server of one store cannot be reached, and once that it can be again."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._lock = threading.Lock()
        self._not_before: float | None = None  # while it is away

    def failed(self, error: psycopg.Error) -> None:
        """An attempt to connect did."""
        with self._lock:
            now = time.monotonic()
            if self._not_before is not None and now < self._not_before:
                return
            self._not_before = now + _SAY_AGAIN_SECONDS
        LOG.warning("%s (while anybody waits for it, it is tried again)", to_storage_error(error, self._where))

    def succeeded(self) -> None:
        """An attempt to connect did."""
        with self._lock:
            was_away, self._not_before = self._not_before is not None, None
        if was_away:
            LOG.info("%s: the server can be reached again", self._where)


class Connections:
    """At most so many connections for callers, and those that scans open besides."""

    def __init__(
        self,
        conninfo: str,
        where: str,
        clock: ServerClock | None,
        *,
        least: int,
        most: int,
        patience: float,
        prepare_threshold: int | None,
        debug: bool,
    ) -> None:
        self._get_ready = functools.partial(Connection.get_ready, debug=debug)
        self._conninfo = conninfo
        self._where = where
        self._clock = clock
        self._least = least
        self.most: int = most
        self._patience = patience
        self._settings: dict[str, Any] = {"autocommit": True, "prepare_threshold": prepare_threshold}
        self._last_failure: tuple[float, psycopg.Error] | None = None
        self._away = _Away(where)
        # Of transactions that nobody has any more. The garbage collector put them here, which must not take a lock.
        self.abandoned: deque[Connection] = deque()
        self.is_closed: bool = False
        # The last one that came back, where nobody waits for one: to the pool it is lent. See `_keep`.
        self._kept: deque[Connection] = deque()
        self._waiting: deque[None] = deque()
        self._keeps = least > 0
        self._pool = self._new_pool()

    def _new_pool(self) -> psycopg_pool.ConnectionPool[Connection]:
        return psycopg_pool.ConnectionPool(
            self._conninfo,
            connection_class=self._class_of_connections(),
            kwargs=self._settings,
            configure=self._get_ready,
            min_size=self._least,
            max_size=self.most,
            timeout=self._patience,
            max_idle=_IDLE_SECONDS,
            reconnect_timeout=0,
            open=False,
            name=_NAME,
        )

    def _class_of_connections(self) -> type[Connection]:
        noted = self

        class Noting(Connection):
            """Notes why it could not connect, and that it could."""

            @classmethod
            def connect(cls, conninfo: str = "", **settings: Any) -> Any:
                try:
                    connection = super().connect(conninfo, **settings)
                except psycopg.Error as error:
                    noted._last_failure = (time.monotonic(), error)
                    noted._away.failed(error)
                    raise
                noted._away.succeeded()
                return connection

        return Noting

    def open(self) -> None:
        """Let the pool begin, and wait for its first connections.

        (Whoever came before they are there would make it open others, which then take turns with them: one connection
        in steady use is twice as fast as two that take turns.)
        """
        started = time.monotonic()
        try:
            self._pool.open(wait=self._least > 0, timeout=max(self._patience, _SLICE_SECONDS))
        except psycopg_pool.PoolTimeout:
            raise self._why_none(started, self._patience) from None

    def extra(self, patience: float | None = None) -> Connection:
        """A connection outside the pool, which the caller closes; None: it is waited for as `lend` does."""
        last = time.monotonic() + (self._patience if patience is None else patience)
        while True:
            if self.is_closed:
                raise StorageClosedError.of(self._where)
            try:
                connection: Connection = Connection.connect(self._conninfo, **self._settings)
            except psycopg.Error as error:
                failure, cause = self._why_refused(error), cause_of(error)
            else:
                self._get_ready(connection)
                return connection
            check_limit()
            if not failure.retryable or time.monotonic() + _SLICE_SECONDS >= last:
                raise failure from cause
            time.sleep(_SLICE_SECONDS)

    def lend(self, wait: float | None = None) -> Connection:
        """A connection that seems to work; `wait` bounds the wait in seconds.

        Raises StorageBusyError, StorageUnavailableError, StorageTimeoutError, StorageClosedError.
        """
        connection = self._take_kept()
        if connection is not None:
            return connection
        self._waiting.append(None)
        try:
            return self._take_kept() or self._lend(self._patience if wait is None else wait)
        finally:
            self._waiting.pop()

    def _lend(self, patience: float) -> Connection:
        left, started = patience, time.monotonic()
        while True:
            while self.abandoned:
                self.give_back(self.abandoned.popleft())
            try:
                connection = self._pool.getconn(max(0.0, min(left, self._slice(), time_left(left))))
            except psycopg_pool.PoolTimeout:
                if is_over():
                    raise timeout_error() from None
            except psycopg_pool.PoolClosed:
                if self.is_closed:
                    raise StorageClosedError.of(self._where) from None
                self._pool.open()  # the child of a fork, which needs one for the first time
                continue
            else:
                if self._is_good(connection):
                    return connection
            left = started + patience - time.monotonic()
            if left <= 0:
                raise self._why_none(started, patience) from None

    def _is_good(self, connection: Connection) -> bool:
        """Whether it seems to work; one that does not is given back."""
        try:
            if connection.is_usable() and self._told_the_time(connection):
                return True
        except BaseException:  # Ctrl-C, mostly
            self.give_back(connection, lost=True)
            raise
        self.give_back(connection, lost=True)
        return False

    def _take_kept(self) -> Connection | None:
        """The one that was kept, which takes a third of the time that the pool takes to give it."""
        if self._kept and not self.abandoned and not self.is_closed:
            try:
                connection = self._kept.pop()
            except IndexError:  # another thread was quicker
                return None
            if self._is_good(connection):
                return connection
        return None

    def _keep(self, connection: Connection) -> bool:
        """Keep one that came back, unless somebody waits for one. Once in a while the pool has it, which ages them.

        Whoever waits says so before looking for a kept one, and who keeps one looks for those who wait afterwards: so
        none is kept while somebody waits. The same with the store that closes.
        """
        connection.times_kept += 1
        if self._kept or not self._keeps or connection.times_kept % _KEPT_TIMES == 0:
            return False
        self._kept.append(connection)
        if self._waiting or self.is_closed:
            self._give_kept()
        return True

    def _give_kept(self) -> None:
        """Give the pool what is kept."""
        with contextlib.suppress(IndexError):
            while True:
                self._pool.putconn(self._kept.pop())

    def _slice(self) -> float:
        """How long to wait in the pool's line before somebody asks for a new connection, or looks at limits.

        Whoever leaves the line and comes back stands at its end, so this is short only where it has to be.
        """
        failure = self._last_failure
        is_away = failure is not None and time.monotonic() - failure[0] < _AWAY_SECONDS
        return _SLICE_SECONDS if is_away or is_limited() else _LONG_SLICE_SECONDS

    def _told_the_time(self, connection: Connection) -> bool:
        """Ask for the server's time where that is due; False where the connection is lost over it."""
        if self._clock is not None and self._clock.is_due():
            try:
                self._clock.ask(connection.raw)
            except psycopg.Error:
                return False
        return True

    def _why_none(self, started: float, patience: float) -> StorageError:
        failure = self._last_failure
        if failure is None or failure[0] < started:
            return StorageBusyError(
                f"{self._where}: all {self.most} connections (pool_max) were in use for {patience:g} s"
            )
        error = self._why_refused(failure[1])
        if not isinstance(error, StorageUnavailableError):
            return error
        return StorageUnavailableError(f"{self._where}: the server could not be reached for {patience:g} s")

    def _why_refused(self, error: psycopg.Error) -> StorageError:
        """Of an attempt to connect. Where the driver does not know why, and it may be for good, it is looked into."""
        failure = to_storage_error(error, self._where)
        if not isinstance(failure, StorageUnavailableError) or isinstance(error, psycopg.errors.ConnectionTimeout):
            return failure
        state = refusal(self._conninfo)
        return to_refusal(state, self._where) if state else failure

    def give_back(self, connection: Connection, *, lost: bool = False) -> None:
        """Whoever has found it lost says so: it is closed then, and another one takes its place."""
        try:
            if lost or connection.pgconn.transaction_status != TransactionStatus.IDLE:
                self._end(connection, lost=lost)
        except BaseException:  # Ctrl-C, mostly
            connection.close()
            self._pool.putconn(connection)
            raise
        if lost or connection.closed or not self._keep(connection):
            self._pool.putconn(connection)  # which closes it where the pool is closed

    @staticmethod
    def _end(connection: Connection, *, lost: bool) -> None:
        """Roll back what is open, or close it where that does not work."""
        if not lost and not connection.closed:
            connection.is_cut = False
            try:
                connection.execute("ROLLBACK")  # on a cursor of its own: another thread may read from the other one
            except psycopg.Error:
                lost = True
        if lost:
            connection.close()

    def lent(self) -> int:
        """How many are with callers now."""
        stats = self._pool.get_stats()
        return stats.get("pool_size", 0) - stats.get("pool_available", 0) - len(self._kept)

    def forget(self) -> list[object]:
        """For the child of a fork: begin anew, once it is needed. Gives what has to be kept: the parent's connections.

        They are the parent's to use, and to say good bye on.
        """
        kept: list[object] = [self._pool, list(self.abandoned), list(self._kept)]
        self.abandoned, self._kept, self._waiting = deque(), deque(), deque()
        self._away = _Away(self._where)  # whose lock a thread may have had that is not here
        if not self.is_closed:
            self._pool = self._new_pool()
        return kept

    def close(self) -> None:
        """Close them all; those that are lent when they come back."""
        self.is_closed = True
        self._give_kept()
        self._pool.close()
