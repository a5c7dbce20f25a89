"""The memory engine: rows in dictionaries, with the same transactions, isolation and rollback as a file.

Called by the verbs. It is the reference for every answer, so it is written to be believed, not to be fast.

Committed rows stand in one `_Table` a namespace. A transaction keeps its changes beside them and reads through both;
committing applies them under a lock. A snapshot shares the tables, and whoever commits to a shared table first takes
a copy of it, so a snapshot costs nothing unless it is written to meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from bisect import bisect_left
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, TypeVar

from mycelia_storage.engines.engine import EngineStatus, Isolation, NamespaceRow, PutRow, Row
from mycelia_storage.errors import (
    CapacityError,
    ConfigError,
    StorageBusyError,
    StorageClosedError,
    StorageError,
    TransactionError,
)
from mycelia_storage.keys import DEFAULT_NAMESPACE, matches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from mycelia_storage.engines.engine import Primitives, Session, Snapshot
    from mycelia_storage.keys import KeyRange
    from mycelia_storage.options import Options

R = TypeVar("R")

SCHEMA_VERSION: Final = 2


class _Table:
    """The rows of one namespace.

    The order of the keys is made when it is asked for, and kept until a key comes or goes.
    """

    __slots__ = ("_order", "is_shared", "rows")

    def __init__(self, rows: dict[str, Row]) -> None:
        self.rows = rows
        self.is_shared = False
        self._order: list[str] | None = None

    def copy(self) -> _Table:
        table = _Table(self.rows.copy())
        table._order = self._order
        return table

    def apply(self, changes: dict[str, Row | None]) -> None:
        for key, row in changes.items():
            if row is None:
                if self.rows.pop(key, None) is not None:
                    self._order = None
            else:
                if key not in self.rows:
                    self._order = None
                self.rows[key] = row

    def keys(self, low: str, high: str | None) -> list[str]:
        if self._order is None:
            self._order = sorted(self.rows)
        start = bisect_left(self._order, low)
        stop = len(self._order) if high is None else bisect_left(self._order, high)
        return self._order[start:stop]


class _State:
    """Everything that is committed: the tables, the registered namespaces, the version floor."""

    def __init__(self) -> None:
        self.tables: dict[str, _Table] = {}
        self.registered: dict[str, NamespaceRow] = {}
        self.floor = 0
        # When what may expire, soonest first. A row that was written again since leaves its old place standing.
        self.expiring: list[tuple[int, str, str]] = []
        # What the open transaction has taken from that order; until it commits, the rows are there for all others.
        self.taken: list[tuple[int, str, str]] = []
        self.is_snapshot = False

    def expect(self, namespace: str, rows: Iterable[Row | None]) -> None:
        for row in rows:
            if row is not None and row.expires_at is not None:
                heappush(self.expiring, (row.expires_at, namespace, row.key))
        if len(self.expiring) > 2 * self.size() + 1000:
            self.expiring = [
                (row.expires_at, name, row.key)
                for name, table in self.tables.items()
                for row in table.rows.values()
                if row.expires_at is not None
            ]
            heapify(self.expiring)

    def share(self) -> _State:
        """The same state for somebody who only reads it."""
        shared = _State()
        shared.is_snapshot = True  # where the order of expiry is not kept
        for table in self.tables.values():
            table.is_shared = True
        shared.tables = self.tables.copy()
        shared.registered = self.registered.copy()
        shared.floor = self.floor
        return shared

    def size(self) -> int:
        return sum(len(table.rows) for table in self.tables.values())


class _Changes:
    """What a transaction has written so far: None stands for a row, or a registration, that is removed."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Row | None]] = {}
        self.registered: dict[str, NamespaceRow | None] = {}
        self.floor = 0
        self.growth = 0

    def copy(self) -> _Changes:
        changes = _Changes()
        changes.rows = {namespace: rows.copy() for namespace, rows in self.rows.items()}
        changes.registered = self.registered.copy()
        changes.floor = self.floor
        changes.growth = self.growth
        return changes

    def apply(self, state: _State) -> None:
        for namespace, rows in self.rows.items():
            table = state.tables.get(namespace)
            if table is None:
                table = state.tables[namespace] = _Table({})
            elif table.is_shared:
                table = state.tables[namespace] = table.copy()
            table.apply(rows)
            state.expect(namespace, rows.values())
            if not table.rows:
                del state.tables[namespace]
        for name, registration in self.registered.items():
            if registration is None:
                state.registered.pop(name, None)
            else:
                state.registered[name] = registration
        state.floor = max(state.floor, self.floor)


class _View:
    """The primitives on a state and, for a transaction, its changes."""

    def __init__(self, state: _State, changes: _Changes, capacity: int | None) -> None:
        self._state = state
        self._changes = changes
        self._capacity = capacity

    # ---- reading

    def _row(self, namespace: str, key: str) -> Row | None:
        changed = self._changes.rows.get(namespace)
        if changed is not None and key in changed:
            return changed[key]
        table = self._state.tables.get(namespace)
        return None if table is None else table.rows.get(key)

    def _all_keys(self, namespace: str, low: str = "", high: str | None = None) -> list[str]:
        table = self._state.tables.get(namespace)
        keys = [] if table is None else table.keys(low, high)
        changed = self._changes.rows.get(namespace)
        if not changed:
            return keys
        merged = {key for key in keys if key not in changed}
        for key, row in changed.items():
            if row is not None and key >= low and (high is None or key < high):
                merged.add(key)
        return sorted(merged)

    def _all_rows(self, namespace: str) -> Iterator[Row]:
        for key in self._all_keys(namespace):
            row = self._row(namespace, key)
            if row is not None:
                yield row

    def _nothing_is_due(self, now: int) -> bool:
        expiring = self._state.expiring
        is_known = not self._state.is_snapshot and not self._state.taken
        return is_known and (not expiring or expiring[0][0] > now // 1000)

    def _live_keys(self, namespace: str, span: KeyRange, now: int, *, reverse: bool = False) -> Iterable[str]:
        keys = self._all_keys(namespace, span.low, span.high)
        if span.pieces is None and self._nothing_is_due(now):
            return reversed(keys) if reverse else keys
        return self._filtered(namespace, reversed(keys) if reverse else keys, span.pieces, now)

    def _filtered(self, namespace: str, keys: Iterable[str], pieces: tuple[str, ...] | None, now: int) -> Iterator[str]:
        for key in keys:
            row = self._row(namespace, key)
            if row is not None and _is_live(row, now) and (pieces is None or matches(pieces, key)):
                yield key

    def _holding(self) -> set[str]:
        names = {*self._state.tables, *self._changes.rows}
        return {name for name in names if self._all_keys(name)}

    def value(self, namespace: str, key: str) -> tuple[str, int | None] | None:
        row = self._row(namespace, key)
        return None if row is None else (row.value, row.expires_at)

    def has(self, namespace: str, key: str, now: int) -> bool:
        row = self._row(namespace, key)
        return row is not None and _is_live(row, now)

    def values(self, namespace: str, keys: Sequence[str]) -> Iterable[tuple[str, str, int | None]]:
        return [(row.key, row.value, row.expires_at) for row in self.rows(namespace, keys)]

    def rows(self, namespace: str, keys: Sequence[str]) -> list[Row]:
        return [row for key in keys if (row := self._row(namespace, key)) is not None]

    def keys(
        self, namespace: str, span: KeyRange, now: int, *, limit: int | None, offset: int, reverse: bool
    ) -> list[str]:
        found = list(self._live_keys(namespace, span, now, reverse=reverse))
        return found[offset : None if limit is None else offset + limit]

    def page(self, namespace: str, span: KeyRange, now: int, *, limit: int) -> list[Row]:
        found: list[Row] = []
        for key in self._live_keys(namespace, span, now):
            if len(found) == limit:
                break
            found += self.rows(namespace, [key])
        return found

    def count(self, namespace: str | None, now: int) -> int:
        names = self._holding() if namespace is None else (namespace,)
        if self._nothing_is_due(now):
            return sum(self._size(name) for name in names)
        return sum(1 for name in names for row in self._all_rows(name) if _is_live(row, now))

    def _size(self, namespace: str) -> int:
        if self._changes.rows.get(namespace):
            return len(self._all_keys(namespace))
        table = self._state.tables.get(namespace)
        return 0 if table is None else len(table.rows)

    def namespace(self, name: str) -> NamespaceRow | None:
        if name in self._changes.registered:
            registration = self._changes.registered[name]
        else:
            registration = self._state.registered.get(name)
        if registration is None and self._all_keys(name):
            return NamespaceRow(name, None, None)
        return registration

    def namespaces(self) -> list[NamespaceRow]:
        names = {*self._state.registered, *self._changes.registered, *self._holding()}
        return [row for name in sorted(names) if (row := self.namespace(name)) is not None]

    # ---- writing

    def _check_open(self) -> None:
        """Raise where nothing may be written any more."""

    def put(self, namespace: str, rows: Sequence[PutRow], now: int) -> list[int]:
        self._check_open()
        if not rows:
            return []
        self._make_room(namespace, rows, now)
        self.register(namespace, None, now)
        least = max(now, max(self._state.floor, self._changes.floor) + 1)
        return [self._put_one(namespace, row, now, least) for row in rows]

    def _put_one(self, namespace: str, new: PutRow, now: int, least: int) -> int:
        now_ms = now // 1000
        key, value, new_metadata, expires_at = new
        old = self._row(namespace, key)
        version = least if old is None else max(least, old.version + 1)
        created_at, updated_at, metadata = now_ms, now_ms, new_metadata
        if old is not None and _is_live(old, now):
            created_at = old.created_at
            updated_at = max(old.updated_at, now_ms)
            metadata = old.metadata if new_metadata is None else new_metadata
        row = Row(key, version, created_at, updated_at, expires_at, metadata, value)
        self._changes.rows.setdefault(namespace, {})[key] = row
        if old is None:
            self._changes.growth += 1
        return version

    def _make_room(self, namespace: str, rows: Sequence[PutRow], now: int) -> None:
        if self._capacity is None:
            return
        for attempt in ("as it is", "without what has expired"):
            new = sum(1 for row in rows if self._row(namespace, row[0]) is None)
            if self._state.size() + self._changes.growth + new <= self._capacity:
                return
            if attempt == "as it is":
                self.purge(now, self._state.size() + len(rows))
        raise CapacityError(
            f"the store holds its capacity of {self._capacity:,} entries: delete some, or set it higher"
        )

    def _remove(self, namespace: str, rows: Iterable[Row], now: int) -> int:
        self._check_open()
        live = 0
        for row in list(rows):
            self._changes.rows.setdefault(namespace, {})[row.key] = None
            self._changes.growth -= 1
            if row.version >= now:
                self._changes.floor = max(self._changes.floor, row.version)
            live += _is_live(row, now)
        return live

    def delete(self, namespace: str, keys: Sequence[str], now: int) -> int:
        return self._remove(namespace, self.rows(namespace, keys), now)

    def clear(self, namespace: str | None, now: int) -> int:
        names = self._holding() if namespace is None else (namespace,)
        return sum(self._remove(name, self._all_rows(name), now) for name in names)

    def purge(self, now: int, limit: int) -> int:
        expiring, removed = self._state.expiring, 0
        while removed < limit and expiring and expiring[0][0] <= now // 1000:
            due = expiring[0]
            self._state.taken.append(due)  # first this, so that a reader at any moment knows
            heappop(expiring)
            expires_at, namespace, key = due
            row = self._row(namespace, key)
            if row is not None and row.expires_at == expires_at:
                self._remove(namespace, [row], now)
                removed += 1
        return removed

    def register(self, namespace: str, metadata: str | None, now: int) -> bool:
        self._check_open()
        changed = self._changes.registered
        known = changed[namespace] if namespace in changed else self._state.registered.get(namespace)
        if known is not None:
            return False
        changed[namespace] = NamespaceRow(namespace, metadata, now // 1000)
        return True

    def unregister(self, namespace: str) -> None:
        self._check_open()
        self._changes.registered[namespace] = None


class MemorySession(_View):
    """A transaction: a view whose changes stay its own until they are committed."""

    def __init__(self, engine: MemoryEngine, state: _State, *, read_only: bool) -> None:
        super().__init__(state, _Changes(), engine.capacity)
        self._engine = engine
        self._read_only = read_only
        self._points: list[_Changes] = []
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
            self._put_back()
            self._engine.ended(self, read_only=self._read_only)

    def savepoint(self) -> int:
        self._check_open()
        self._points.append(self._changes.copy())
        return len(self._points)

    def release(self, savepoint: int) -> None:
        self._check_open()
        del self._points[savepoint - 1 :]

    def rollback_to(self, savepoint: int) -> None:
        self._check_open()
        self._put_back()
        self._changes = self._points[savepoint - 1]
        self.release(savepoint)

    def _put_back(self) -> None:
        """What purge took from the order of expiry, and may be there again."""
        for due in self._state.taken:
            heappush(self._state.expiring, due)
        self._state.taken.clear()


class MemoryAuto(_View):
    """The primitives with each call a transaction of its own."""

    def __init__(self, engine: MemoryEngine, state: _State) -> None:
        super().__init__(state, _Changes(), engine.capacity)
        self._engine = engine

    def value(self, namespace: str, key: str) -> tuple[str, int | None] | None:
        with self._engine.lock:
            return super().value(namespace, key)

    def has(self, namespace: str, key: str, now: int) -> bool:
        with self._engine.lock:
            return super().has(namespace, key, now)

    def rows(self, namespace: str, keys: Sequence[str]) -> list[Row]:
        with self._engine.lock:
            return super().rows(namespace, keys)

    def keys(
        self, namespace: str, span: KeyRange, now: int, *, limit: int | None, offset: int, reverse: bool
    ) -> list[str]:
        with self._engine.lock:
            return super().keys(namespace, span, now, limit=limit, offset=offset, reverse=reverse)

    def page(self, namespace: str, span: KeyRange, now: int, *, limit: int) -> list[Row]:
        with self._engine.lock:
            return super().page(namespace, span, now, limit=limit)

    def count(self, namespace: str | None, now: int) -> int:
        with self._engine.lock:
            return super().count(namespace, now)

    def namespace(self, name: str) -> NamespaceRow | None:
        with self._engine.lock:
            return super().namespace(name)

    def namespaces(self) -> list[NamespaceRow]:
        with self._engine.lock:
            return super().namespaces()

    def put(self, namespace: str, rows: Sequence[PutRow], now: int) -> list[int]:
        return self._write(lambda session: session.put(namespace, rows, self._engine.time(now)))

    def delete(self, namespace: str, keys: Sequence[str], now: int) -> int:
        return self._write(lambda session: session.delete(namespace, keys, self._engine.time(now)))

    def clear(self, namespace: str | None, now: int) -> int:
        return self._write(lambda session: session.clear(namespace, self._engine.time(now)))

    def purge(self, now: int, limit: int) -> int:
        return self._write(lambda session: session.purge(self._engine.time(now), limit))

    def register(self, namespace: str, metadata: str | None, now: int) -> bool:
        return self._write(lambda session: session.register(namespace, metadata, self._engine.time(now)))

    def unregister(self, namespace: str) -> None:
        self._write(lambda session: session.unregister(namespace))

    def _write(self, step: Callable[[Session], R]) -> R:
        session = self._engine.begin(wait=None)
        try:
            result = step(session)
            session.commit()
        finally:
            session.rollback()
        return result


class MemoryEngine:
    """The rows of one store in memory."""

    backend = "memory"

    def __init__(self, options: Options) -> None:
        self.capacity = options.capacity
        self.lock: AbstractContextManager[object] = threading.RLock()
        self._busy_timeout = options.busy_timeout
        self._clock = options.clock
        self._write_lock = threading.Lock()
        self._state = _State()
        self._sessions: weakref.WeakSet[MemorySession] = weakref.WeakSet()
        self._closed = False
        self._state.registered[DEFAULT_NAMESPACE] = NamespaceRow(DEFAULT_NAMESPACE, None, int(self._clock() * 1000))
        self.auto: Primitives = MemoryAuto(self, self._state)

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
        if not self._write_lock.acquire(blocking=False) and not self._write_lock.acquire(timeout=patience):
            raise StorageBusyError(f"memory: another transaction held the write lock for {patience:g} s")
        try:
            return self._open_session(read_only=False)
        except BaseException:
            self._write_lock.release()
            raise

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
            self._write_lock.release()

    def time(self, now: int) -> int:
        """The time of a write that is a transaction of its own, read under the lock: not before a write it follows."""
        return max(now, round(self._clock() * 1_000_000))

    def ended_error(self) -> StorageError:
        """Why a session takes no more calls."""
        if self._closed:
            return StorageClosedError("the store is closed")
        return TransactionError("the transaction has ended")

    def status(self) -> EngineStatus:
        """How full it is."""
        with self.lock:
            return EngineStatus("memory:", SCHEMA_VERSION, 0, {"rows": self._state.size(), "capacity": self.capacity})

    def check(self) -> list[str]:
        """Dictionaries do not break."""
        with self.lock:
            return []

    def optimize(self) -> None:
        """There are no files to look after."""
        with self.lock:
            pass

    def migrate(self, to: int | None) -> None:
        """A new store has the newest schema, and no other exists in memory."""
        with self.lock:
            if to not in (None, SCHEMA_VERSION):
                raise ConfigError(f"to: a store in memory has schema version {SCHEMA_VERSION}, and no other")

    def close(self) -> None:
        """Forget everything."""
        if not self._closed:
            self._closed = True
            for session in list(self._sessions):
                session.rollback()
            self.lock = _Closed()


class _Closed(contextlib.AbstractContextManager[object]):
    """Stands where the lock of a closed store was."""

    def __enter__(self) -> object:
        raise StorageClosedError("the store is closed")

    def __exit__(self, *_: object) -> None:
        """Never entered."""


def _is_live(row: Row, now: int) -> bool:
    return row.expires_at is None or row.expires_at > now // 1000
