"""Transactions: every verb as part of one step that commits as a whole or not at all.

Called by `Storage.transaction` and `Storage.run_transaction`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, TypeVar, cast, get_args, overload

from mycelia_storage.advice import Advisor
from mycelia_storage.arguments import check_duration, check_one_of
from mycelia_storage.engines import forking
from mycelia_storage.engines.engine import Isolation, Primitives
from mycelia_storage.engines.limits import Limit
from mycelia_storage.engines.watchdog import Watchdog
from mycelia_storage.errors import (
    ConfigError,
    InvalidValueError,
    StorageClosedError,
    StorageIOError,
    StorageReadOnlyError,
    StorageTimeoutError,
    TransactionError,
)
from mycelia_storage.namespace import Namespace
from mycelia_storage.upkeep import Upkeep
from mycelia_storage.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from datetime import timedelta
    from types import TracebackType

    from typing_extensions import TypeForm

    from mycelia_storage.engines.engine import Engine, Session
    from mycelia_storage.options import Options
    from mycelia_storage.query import StorageQuery

T = TypeVar("T")
R = TypeVar("R")

ISOLATIONS = get_args(Isolation)
LOG: Final = logging.getLogger("mycelia_storage")
# A thread and a task: objects of their own, because the numbers of those that ended are used again.
Caller: TypeAlias = tuple[object, object]
# Whose transaction it is: of who enters it, of nobody (it is known by an id), or of a caller named beforehand.
Owner: TypeAlias = Caller | Literal["calling", "nobody"]
_of_thread = threading.local()


class Home:
    """What a store shares with its transactions: the engine, the options, and who is inside a write transaction."""

    def __init__(self, engine: Engine, options: Options) -> None:
        self._engine = engine
        # (An engine of others may say where it is, as PostgreSQL's does: without a password.)
        self.where: str = options.path or getattr(engine, "where", f"{engine.backend}:")
        self._clock = engine.clock
        self.max_value_bytes: int = options.max_value_bytes
        self.read_only: bool = options.read_only
        self._can_be_durable = options.synchronous != "OFF"
        self.inside: set[Caller] = set()
        self.is_closed: bool = False
        self.watchdog: Watchdog = Watchdog("mycelia-watchdog")
        self.upkeep: Upkeep = Upkeep(engine, self.now)
        self.advisor: Advisor = Advisor()
        forking.register(self)

    def before_fork(self) -> bool:
        """There is nothing to close."""
        return True

    def after_fork(self, *, in_child: bool, is_ready: bool) -> None:
        """The child is inside no transaction."""
        del is_ready
        if in_child:
            self.inside.clear()
            self.upkeep.forget()

    def engine(self, *, writing: bool = False) -> Engine:
        """The engine, for a caller who may use the store now."""
        if self.inside:
            self.refuse_inside(waiting=writing)
        if self.is_closed:
            raise self.closed_error()
        return self._engine

    def closed_error(self) -> StorageClosedError:
        """For whoever uses the store after its end."""
        return StorageClosedError.of(self.where)

    def check_durable(self, durable: object) -> bool:
        """Whether a commit has to survive a power cut. Raises ConfigError where it cannot."""
        if durable is not None and not isinstance(durable, bool):
            raise InvalidValueError(f"durable: {type(durable).__name__} is neither True nor False")
        if durable and not self._can_be_durable:
            raise ConfigError("durable: True needs synchronous 'NORMAL', 'FULL' or 'EXTRA', and it is 'OFF'")
        return bool(durable)

    def now(self) -> int:
        """The time in µs since 1970, by the store's clock."""
        return round(self._clock() * 1_000_000)

    def close(self) -> None:
        """Nothing is begun any more."""
        self.is_closed = True
        self.watchdog.close()
        self.upkeep.close()

    def enter(self, owner: Owner = "calling") -> Caller | None:
        """Note that somebody is inside a write transaction."""
        if owner == "nobody":
            return None
        who = calling() if owner == "calling" else owner
        self.inside.add(who)
        return who

    def leave(self, who: Caller | None) -> None:
        """Note that it no longer is."""
        if who is not None:
            self.inside.discard(who)

    def refuse_inside(self, *, waiting: bool = False) -> None:
        """Raise TransactionError where the caller is inside a write transaction.

        With `waiting`, where the calling thread would wait for the lock, also where another task of its event loop is:
        that one could not go on meanwhile.
        """
        thread, task = calling()
        # Without a task the whole thread is inside: an event loop that it runs, too.
        if (thread, task) in self.inside or (thread, None) in self.inside:
            who, block = ("thread", "with") if (thread, None) in self.inside else ("task", "async with")
            raise TransactionError(
                f"this {who} is inside a write transaction of this store, where the store itself would wait for it or "
                f"read what is old: use the transaction (tx) that the {block} block gave"
            )
        if waiting and any(other is thread for other, _ in self.inside.copy()):
            raise TransactionError(
                "another task of this thread is inside a write transaction, and could not go on while this call waits "
                "for it: use AsyncStorage and await the call"
            )


class _OneAtATime:
    """The primitives of a session, refusing a second thread while a call is under way."""

    def __init__(self, limit: Limit | None) -> None:
        self.session: Session | None = None
        self.lock = threading.RLock()
        self.limit = limit
        self.why_late: str | None = None  # set when the time of the transaction is over

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            raise TransactionError("another thread is using this transaction just now: one call at a time")

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def _one_at_a_time(name: str) -> Callable[..., Any]:
    def call(self: _OneAtATime, *args: Any, **options: Any) -> Any:
        with self:
            if self.limit is None:
                return getattr(self.session, name)(*args, **options)
            try:
                with self.limit:
                    return getattr(self.session, name)(*args, **options)
            except StorageTimeoutError as error:
                if self.why_late is None:
                    raise
                raise TransactionError(self.why_late) from error

    return call


for _name in vars(Primitives):
    if not _name.startswith("_"):
        setattr(_OneAtATime, _name, _one_at_a_time(_name))


class Transaction(Verbs):
    """A context manager: leaving the block commits, an exception rolls back.

    Within it every verb reads one state of the store and its own writes, which nobody else sees before the commit.
    After an error of the engine (a full disk, say) it has ended, and nothing of it is kept.
    """

    def __init__(
        self,
        home: Home,
        *,
        read_only: bool = False,
        isolation: Isolation | None = None,
        durable: bool | None = None,
        wait: float | timedelta | None = None,
        max_duration: float | timedelta | None = None,
        owner: Owner = "calling",
        outer: Transaction | None = None,
    ) -> None:
        if isolation is not None:
            check_one_of("isolation", isolation, ISOLATIONS)
        self._home = home
        self._max_value_bytes = home.max_value_bytes
        self._is_read_only = read_only or home.read_only
        self._isolation: Isolation | None = isolation
        self._durable = home.check_durable(durable)
        self._wait = None if wait is None else check_duration("wait", wait)
        self._max_duration = None if max_duration is None else check_duration("max_duration", max_duration)
        self._owner: Owner = owner
        self._outer = outer
        self._session: Session | None = None
        self._limit = None if max_duration is None else Limit()
        self._alone: _OneAtATime = _OneAtATime(self._limit) if outer is None else outer._alone
        self._savepoint = 0
        self._inner: weakref.ref[Transaction] | None = None
        self._caller: Caller | None = None
        self._time = 0
        self._was_entered = False
        self._deadline = math.inf

    def __enter__(self) -> Self:
        if self._was_entered:
            raise TransactionError("a transaction is entered once: call transaction() again for another")
        self._was_entered = True
        if self._outer is not None:
            session = self._outer._open_session()
            self._time = self._outer._time
            if not self._is_read_only:
                with self._alone:
                    self._outer._require_no_inner("end it first, or begin the new one within that one")
                    self._savepoint = session.savepoint()
                    self._outer._inner = weakref.ref(self)
            self._session = session
        else:
            self._session = self._home.engine(writing=not self._is_read_only).begin(
                read_only=self._is_read_only, isolation=self._isolation, durable=self._durable, wait=self._wait
            )
            self._alone.session = self._session
            try:
                self._time = self._home.now()
                if not self._is_read_only:
                    self._caller = self._home.enter(self._owner)
                if self._max_duration is not None:
                    self._deadline = time.monotonic() + self._max_duration
                    if not self._home.watchdog.watch(self._max_duration, self._expire):
                        raise StorageIOError("max_duration: no thread could be started to end the transaction in time")
            except BaseException:
                self._session.rollback()
                self._finish()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._alone.lock:  # a call that another thread has under way comes to its end first
            if time.monotonic() >= self._deadline:
                self._expire()
            if self._session is None or (self._outer is not None and not self._outer._is_open()):
                self._finish()  # ended by rollback(), its own or that of the transaction around it
                if error is None and self._outer is None and self._alone.why_late is not None:
                    raise TransactionError(self._alone.why_late)
                return
            if error is not None:
                # Where an error of the engine has ended everything already, that error is the one to see.
                with contextlib.suppress(TransactionError, StorageClosedError):
                    self.rollback()
                return
            try:
                session = self._open_session()
                if self._outer is None:
                    session.commit()
                elif self._savepoint:
                    session.release(self._savepoint)
            finally:
                self._finish()

    def __del__(self) -> None:
        # Left open and forgotten: what the session held it gives back itself.
        caller = getattr(self, "_caller", None)
        if caller is not None:
            self._home.leave(caller)

    def rollback(self) -> None:
        """Undo everything and end the transaction; the block may be left as usual then."""
        with self._alone:
            session = self._session
            if session is None:
                raise TransactionError(self._why_ended())
            try:
                if self._outer is None:
                    session.rollback()
                elif self._savepoint and self._outer._is_open():
                    session.rollback_to(self._savepoint)
            finally:
                self._finish()

    def transaction(
        self, *, read_only: bool = False, isolation: Isolation | None = None, durable: bool | None = None
    ) -> AbstractContextManager[Transaction]:
        """A transaction within this one, undone alone when it fails (a savepoint).

        While it is open, whatever else would write in this one is a TransactionError.
        """
        if durable:
            raise TransactionError("durable is given to the outermost transaction, which is what commits")
        self._open_session()
        read_only = read_only or self._is_read_only
        return Transaction(self._home, read_only=read_only, isolation=isolation, outer=self)

    @overload
    def namespace(self, name: str) -> Namespace[Any]: ...
    @overload
    def namespace(self, name: str, type: TypeForm[T]) -> Namespace[T]: ...
    @overload
    def namespace(self, name: Namespace[T]) -> Namespace[T]: ...
    def namespace(self, name: Any, type: Any = Any) -> Namespace[Any]:
        """A view of one namespace that belongs to this transaction, by name or from a view of the store."""
        if isinstance(name, Namespace):
            return name.within(self)
        return super().namespace(name, type)

    # ---- what the verbs run on

    def _is_open(self) -> bool:
        return self._session is not None and (self._outer is None or self._outer._is_open())

    def _require_no_inner(self, advice: str) -> None:
        """What two that write beside each other keep and undo could not be told apart."""
        inner = None if self._inner is None else self._inner()
        if inner is None or not inner._is_open():
            self._inner = None
        else:
            raise TransactionError(f"another transaction within this one is open: {advice}")

    def _open_session(self) -> Session:
        session = self._session
        if session is None or self._alone.why_late is not None:
            raise TransactionError(self._why_ended())
        if self._home.is_closed:
            raise self._home.closed_error()
        if self._outer is not None:
            self._outer._open_session()
        return session

    def _reading(self) -> Primitives:
        self._open_session()
        return cast("Primitives", self._alone)

    def _writing(self) -> Primitives:
        if self._is_read_only:
            self._open_session()
            raise StorageReadOnlyError("this transaction is read-only")
        if self._inner is not None:
            self._require_no_inner("write by that one, or this would be undone with it")
        return self._reading()

    def _now(self) -> int:
        return self._time

    def _together(self, step: Callable[[Primitives, int], R], *, durable: bool | None = None, alone: bool = False) -> R:
        del alone
        self._writing()
        if durable:
            raise TransactionError("durable is given to transaction(), whose commit makes everything durable at once")
        with self._alone:
            return step(self._open_session(), self._time)

    def _advise(self, rows: Primitives, namespace: str, wanted: StorageQuery, now: int) -> None:
        self._home.advisor.look(rows, namespace, wanted, now)

    def _expiring(self) -> None:
        self._home.upkeep.expect_expiry()

    def _start_scan(self) -> tuple[Callable[[], Primitives], Callable[[], object], int]:
        self._open_session()
        return self._reading, _nothing, self._time

    def _expire(self) -> bool:
        """Its time is over: roll back, unless a call is under way, which is stopped first."""
        if self._session is None:
            return True
        self._alone.why_late = (
            f"the transaction was rolled back: it took longer than its max_duration of {self._max_duration:g} s"
        )
        if not self._alone.lock.acquire(blocking=False):
            if self._limit is not None:
                self._limit.cancel()
            return False
        try:
            if self._session is not None:
                self._session.rollback()
                self._finish()
        finally:
            self._alone.lock.release()
        return True

    def _finish(self) -> None:
        self._session = None
        if self._caller is not None:
            self._home.leave(self._caller)
            self._caller = None

    def _why_ended(self) -> str:
        if self._alone.why_late is not None:
            return self._alone.why_late
        if self._was_entered:
            return "the transaction has ended"
        return "the transaction has not begun: use it in a with block (async with, where it is awaited)"


def calling() -> Caller:
    """Who is calling: the thread, and within an event loop the task."""
    try:
        thread: object = _of_thread.token
    except AttributeError:
        thread = _of_thread.token = object()
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        with contextlib.suppress(RuntimeError):  # no event loop runs in this thread
            task = asyncio.current_task()
            # Weakly, so that a task that is never run again can be collected, which rolls its transaction back.
            return thread, None if task is None else weakref.ref(task)
    return thread, None


def _nothing() -> None:
    """A scan inside a transaction holds nothing of its own."""
