"""The memory engine itself: its lock, its transactions, and the primitives as transactions of their own.

Called by the verbs.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import threading
import weakref
from typing import TYPE_CHECKING, Final, TypeVar

from mycelia_storage.engines import files, forking
from mycelia_storage.engines.engine import (
    EngineStatus,
    IndexRow,
    Isolation,
    NamespaceRow,
    Newer,
    Outline,
    PlanRow,
    Query,
    Row,
    Tally,
)
from mycelia_storage.engines.kit import AutoWrites, share_one_by_one, transact
from mycelia_storage.engines.limits import is_hurried
from mycelia_storage.engines.line import Line
from mycelia_storage.engines.memory import checking
from mycelia_storage.engines.memory.state import Changes, State
from mycelia_storage.engines.memory.view import View
from mycelia_storage.engines.sqlite.pages import require_driver
from mycelia_storage.errors import (
    CapacityError,
    ConfigError,
    StorageBusyError,
    StorageClosedError,
    StorageError,
    TransactionError,
)
from mycelia_storage.keys import DEFAULT_NAMESPACE, ORIGIN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from mycelia_storage.checking import Findings
    from mycelia_storage.engines.engine import Member, Primitives, Progress, Session, Snapshot
    from mycelia_storage.filters import Filter
    from mycelia_storage.keys import KeyRange
    from mycelia_storage.options import Options

R = TypeVar("R")

SCHEMA_VERSION: Final = 2


class MemorySession(View):
    """A transaction: a view whose changes stay its own until they are committed."""

    def __init__(self, engine: MemoryEngine, state: State, *, read_only: bool) -> None:
        super().__init__(state, Changes(), engine.capacity)
        self._engine = engine
        self._read_only = read_only
        self._points: list[Changes] = []
        self._is_open = True

    def __del__(self) -> None:
        # Nobody has it any more, and nobody ended it: an exception came between beginning and keeping it.
        self.rollback()

    def _check_open(self) -> None:
        if not self._is_open:
            raise self._engine.ended_error()

    def commit(self) -> None:
        self._check_open()
        if not self._read_only:
            with self._engine.lock:
                self._changes.apply(self._state)
            self._state.taken.clear()
        self.rollback()

    def rollback(self) -> None:
        if self._is_open:
            self._is_open = False
            self._state.put_back()
            self._engine.ended(self, read_only=self._read_only)

    def abandon(self) -> None:
        """For the child of a fork: forget a transaction that is the parent's."""
        if self._is_open:
            self._is_open = False
            self._state.put_back()

    def savepoint(self) -> int:
        self._check_open()
        self._points.append(self._changes.copy())
        return len(self._points)

    def release(self, savepoint: int) -> None:
        self._check_open()
        del self._points[savepoint - 1 :]

    def rollback_to(self, savepoint: int) -> None:
        self._check_open()
        self._state.put_back()
        self._changes = self._points[savepoint - 1]
        self.release(savepoint)


class MemoryAuto(AutoWrites, View):
    """The primitives with each call a transaction of its own."""

    def __init__(self, engine: MemoryEngine, state: State) -> None:
        View.__init__(self, state, Changes(), engine.capacity)
        AutoWrites.__init__(self, engine)
        self._memory = engine  # whose `lock` is another one after a fork, and after the end

    def value(self, namespace: str, key: str) -> tuple[str, int | None] | None:
        with self._memory.lock:
            return super().value(namespace, key)

    def has(self, namespace: str, key: str, now: int) -> bool:
        with self._memory.lock:
            return super().has(namespace, key, now)

    def rows(self, namespace: str, keys: Sequence[str]) -> list[Row]:
        with self._memory.lock:
            return super().rows(namespace, keys)

    def keys(
        self, namespace: str, span: KeyRange, now: int, *, limit: int | None, offset: int, reverse: bool
    ) -> list[str]:
        with self._memory.lock:
            return super().keys(namespace, span, now, limit=limit, offset=offset, reverse=reverse)

    def page(self, namespace: str, span: KeyRange, now: int, *, limit: int) -> list[Row]:
        with self._memory.lock:
            return super().page(namespace, span, now, limit=limit)

    def outline(self, namespace: str, span: KeyRange, now: int, *, limit: int) -> list[Outline]:
        with self._memory.lock:
            return super().outline(namespace, span, now, limit=limit)

    def newer(self, version: int, now: int, *, limit: int) -> list[Newer]:
        with self._memory.lock:
            return super().newer(version, now, limit=limit)

    def counts(self, namespace: str, spans: Sequence[KeyRange], now: int) -> list[int]:
        with self._memory.lock:
            return super().counts(namespace, spans, now)

    def tally(self, namespaces: Sequence[str] | None, now: int) -> Tally:
        with self._memory.lock:
            return super().tally(namespaces, now)

    def count(self, namespace: str | None, now: int) -> int:
        with self._memory.lock:
            return super().count(namespace, now)

    def namespace(self, name: str) -> NamespaceRow | None:
        with self._memory.lock:
            return super().namespace(name)

    def namespaces(self) -> list[NamespaceRow]:
        with self._memory.lock:
            return super().namespaces()

    def find(self, namespace: str, query: Query, now: int) -> list[Row]:
        with self._memory.lock:
            return super().find(namespace, query, now)

    def count_matching(self, namespace: str, filter: Filter, now: int) -> int:
        with self._memory.lock:
            return super().count_matching(namespace, filter, now)

    def plan(self, namespace: str, query: Query, now: int, extra: Sequence[IndexRow] = ()) -> PlanRow:
        with self._memory.lock:
            return super().plan(namespace, query, now, extra)

    def indexes(self) -> list[IndexRow]:
        with self._memory.lock:
            return super().indexes()


class MemoryEngine:
    """The rows of one store in memory."""

    backend = "memory"
    reads_at_once = True
    has_write_lock = True

    def __init__(self, options: Options) -> None:
        require_driver(options)  # for backups
        self._options = options
        self.capacity: int | None = options.capacity
        self.lock: AbstractContextManager[object] = _Lock()
        self._busy_timeout = options.busy_timeout
        self.clock: Callable[[], float] = options.clock
        self._line = Line()
        self._state = State()
        self._sessions: weakref.WeakSet[MemorySession] = weakref.WeakSet()
        self._closed = False
        now_ms = int(self.clock() * 1000)
        self._state.registered[DEFAULT_NAMESPACE] = NamespaceRow(DEFAULT_NAMESPACE, None, now_ms)
        # Two may be made in one millisecond, and are not the same for a copy.
        self._state.registered[ORIGIN] = NamespaceRow(ORIGIN, f'{{"id":"{secrets.token_hex(8)}"}}', now_ms)
        self.auto: Primitives = MemoryAuto(self, self._state)
        forking.register(self)

    def begin(
        self,
        *,
        read_only: bool = False,
        isolation: Isolation | None = None,
        durable: bool = False,
        wait: float | None = None,
    ) -> Session:
        """A transaction, serializable whatever was asked for. There is nothing to make durable."""
        del isolation, durable
        if read_only:
            return self._open_session(read_only=True)
        patience = self._busy_timeout if wait is None else wait
        if not self._line.acquire(patience):
            raise StorageBusyError(f"memory: other transactions held the write lock for {patience:g} s")
        try:
            return self._open_session(read_only=False)
        except BaseException:
            self._line.release()
            raise

    def share(self, members: Sequence[Member], wait: float | None = None) -> None:
        """Each by itself: a commit costs nothing here."""
        share_one_by_one(self, members, wait, self._busy_timeout)

    def share_at_once(self, members: Sequence[Member]) -> bool:
        """The same, up to the first that would have to wait."""
        for member in members:
            try:
                result: object = transact(self, member.step, wait=0.0)
            except StorageBusyError:
                break
            except Exception as error:  # noqa: BLE001  it is the member's, whose caller gets it
                member.done(error=error)
            else:
                member.done(result)
        return False

    def snapshot(self) -> Snapshot:
        """The same as a transaction that reads."""
        return self._open_session(read_only=True)

    def _open_session(self, *, read_only: bool) -> MemorySession:
        with self.lock:
            session = MemorySession(self, self._state.share() if read_only else self._state, read_only=read_only)
            self._sessions.add(session)
            return session

    def ended(self, session: MemorySession, *, read_only: bool) -> None:
        """A session has ended."""
        self._sessions.discard(session)
        if not read_only:
            self._line.release()

    def time(self, now: int) -> int:
        """The time of a write that is a transaction of its own, read under the lock: not before a write it follows."""
        return max(now, round(self.clock() * 1_000_000))

    def ended_error(self) -> StorageError:
        """Why a session takes no more calls."""
        if self._closed:
            return StorageClosedError.of("memory:")
        return TransactionError("the transaction has ended")

    def holds_expiring(self) -> bool:
        """A new store holds nothing."""
        return False

    def status(self) -> EngineStatus:
        """How full it is."""
        with self.lock:
            return EngineStatus("memory:", SCHEMA_VERSION, 0, {"rows": self._state.size(), "capacity": self.capacity})

    def check(self, findings: Findings, now: int) -> None:
        """Look at what is committed now; writers wait for no more than it takes to copy what they would change."""
        with self.lock:
            frozen = checking.Frozen(self._state)
        checking.check(frozen, findings, now, self.capacity)

    def backup(self, path: str, *, overwrite: bool, progress: Progress | None) -> None:
        """Write a SQLite file of what is committed."""
        with self.lock:
            state = self._state.share()
        now = self.time(0)
        contents = state.contents(now)
        files.write(contents, path, self._options, now // 1000, overwrite=overwrite, progress=progress)

    def restore(self, path: str, *, progress: Progress | None) -> None:
        """Put what such a file holds in place of everything."""
        with self.lock:
            pass
        with tempfile.TemporaryDirectory() as made:
            directory = os.path.realpath(made)  # no link in it, which no store is opened through
            with files.read(path, self._options, os.path.join(directory, "store"), progress) as contents:
                if self.capacity is not None and contents.total > self.capacity:
                    message = (
                        f"{path}: the file holds {contents.total} entries, and capacity={self.capacity} is the limit"
                    )
                    raise CapacityError(message)
                restored = State.of(contents)
        session = self.begin(wait=None)
        try:
            with self.lock:
                self._state.become(restored)
        finally:
            session.rollback()

    def optimize(self) -> None:
        """There are no files to look after."""
        with self.lock:
            pass

    def migrate(self, to: int | None) -> None:
        """A new store has the newest schema, and no other exists in memory."""
        with self.lock:
            if to not in (None, SCHEMA_VERSION):
                raise ConfigError(f"to: a store in memory has schema version {SCHEMA_VERSION}, and no other")

    def before_fork(self) -> bool:
        """Let nobody change anything while the memory is copied."""
        self._held = self.lock
        try:
            self._held.__enter__()
        except StorageClosedError:
            return False
        return True

    def after_fork(self, *, in_child: bool, is_ready: bool) -> None:
        """The child has a copy of what was committed; transactions of its parent's threads are not its own."""
        if is_ready:
            self._held.__exit__(None, None, None)
        if in_child and not self._closed:
            self.lock = _Lock()
            self._line = Line()
            for session in forking.all_of(self._sessions):
                session.abandon()

    def close(self) -> None:
        """Forget everything."""
        if not self._closed:
            self._closed = True
            for session in list(self._sessions):
                session.rollback()
            self.lock = _Closed()


class _Lock:
    """The lock of everything that is committed, reentrant. A query has it for as long as it lasts."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._acquire = self._lock.acquire
        self._release = self._lock.release

    def __enter__(self) -> object:
        if not self._acquire(blocking=False):
            if is_hurried():
                raise StorageBusyError("memory: another thread reads or writes just now")
            self._acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._release()


class _Closed(contextlib.AbstractContextManager[object]):
    """Stands where the lock of a closed store was."""

    def __enter__(self) -> object:
        raise StorageClosedError.of("memory:")

    def __exit__(self, *_: object) -> None:
        """Never entered."""
