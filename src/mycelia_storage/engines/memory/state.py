"""What the memory engine keeps: committed tables, and the changes of a transaction beside them.

Called by `view.py` and `engine.py`.

Committed rows stand in one `Table` a namespace. A transaction keeps its changes beside them and reads through both;
committing applies them under a lock. A snapshot shares the tables, and whoever commits to a shared table first takes
a copy of it, so a snapshot costs nothing unless it is written to meanwhile.
"""

from __future__ import annotations

from bisect import bisect_left
from heapq import heapify, heappush
from itertools import islice
from typing import TYPE_CHECKING, Final

from mycelia_storage.engines.kit import ROWS_AT_ONCE, Contents, is_live
from mycelia_storage.engines.memory.order import Order
from mycelia_storage.engines.memory.unique import Claims

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mycelia_storage.engines.engine import IndexRow, NamespaceRow, Row
    from mycelia_storage.filters import SortKey

MAX_ORDERS: Final = 4


class Table:
    """The rows of one namespace.

    The order of the keys is made when it is asked for, and kept until a key comes or goes. So are the last orders of
    sorts, each with what has changed since.
    """

    __slots__ = ("_order", "_orders", "is_shared", "rows")

    def __init__(self, rows: dict[str, Row]) -> None:
        self.rows: dict[str, Row] = rows
        self.is_shared: bool = False
        self._order: list[str] | None = None
        self._orders: dict[tuple[SortKey, ...], tuple[Order, dict[str, Row | None]]] = {}

    def copy(self) -> Table:
        table = Table(self.rows.copy())
        table._order = self._order
        table._orders = {sort: (order, since.copy()) for sort, (order, since) in list(self._orders.items())}
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
        for sort, (_, since) in list(self._orders.items()):
            since.update(changes)
            if len(since) > len(self.rows):
                del self._orders[sort]

    def keys(self, low: str, high: str | None) -> list[str]:
        if self._order is None:
            self._order = sorted(self.rows)
        start = bisect_left(self._order, low)
        stop = len(self._order) if high is None else bisect_left(self._order, high)
        return self._order[start:stop]

    def kept_keys(self) -> list[str] | None:
        """The order of the keys, where it is kept: for a check."""
        return self._order

    def kept_orders(self) -> list[tuple[tuple[SortKey, ...], list[Row]]]:
        """The orders of sorts that are kept, as they would be used next: for a check."""
        return [(sort, order.changed(since).rows()) for sort, (order, since) in list(self._orders.items())]

    def in_order(self, namespace: str, sort: tuple[SortKey, ...]) -> list[Row]:
        """All rows in the order of a sort, made anew."""
        return Order(namespace, sort, self.rows.values()).rows()

    def order(self, namespace: str, sort: tuple[SortKey, ...]) -> Order:
        """All rows in the order of a sort."""
        order, since = self._orders.get(sort, (None, {}))
        if order is None:
            order = Order(namespace, sort, self.rows.values())
            if len(self._orders) >= MAX_ORDERS:
                self._orders = {}
        elif since:
            order = order.changed(since)
        else:
            return order
        self._orders[sort] = order, {}
        return order


class State:
    """Everything that is committed: the tables, the registered namespaces, the version floor."""

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {}
        self.registered: dict[str, NamespaceRow] = {}
        self.floor: int = 0
        self.indexes: dict[str, IndexRow] = {}
        self.claims: dict[str, Claims] = {}
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

    def put_back(self) -> None:
        """What purge took from the order of expiry is there again, or may be: changes were undone."""
        for due in self.taken:
            heappush(self.expiring, due)
        self.taken.clear()

    def share(self) -> State:
        """The same state for somebody who only reads it."""
        shared = State()
        shared.is_snapshot = True  # where the order of expiry is not kept
        for table in self.tables.values():
            table.is_shared = True
        shared.tables = self.tables.copy()
        shared.registered = self.registered.copy()
        shared.floor = self.floor
        shared.indexes = self.indexes.copy()
        return shared

    def contents(self, now: int) -> Contents:
        """All of it that has not expired. Nobody changes the state meanwhile."""

        def rows() -> Iterator[tuple[str, list[Row]]]:
            for name, table in self.tables.items():
                left = iter(table.rows.values())
                while some := list(islice(left, ROWS_AT_ONCE)):
                    yield name, [row for row in some if is_live(row, now)]

        return Contents(list(self.registered.values()), self.floor, self.size(), rows(), list(self.indexes.values()))

    @classmethod
    def of(cls, contents: Contents) -> State:
        """A state that holds it."""
        state = cls()
        state.registered = {row.name: row for row in contents.namespaces}
        state.floor = contents.floor
        for namespace, rows in contents.rows:
            state.tables.setdefault(namespace, Table({})).rows.update((row.key, row) for row in rows)
        state.indexes = {index.name: index for index in contents.indexes}
        return state

    def become(self, other: State) -> None:
        """Hold what another state holds, and give no version that was given before."""
        versions = (row.version for table in self.tables.values() for row in table.rows.values())
        self.floor = max(self.floor, other.floor, *versions)
        self.tables = other.tables
        self.registered = other.registered
        self.indexes = other.indexes
        self.claims = {name: _claims(index, self) for name, index in self.indexes.items() if index.is_unique}
        self.expiring.clear()
        for namespace, table in self.tables.items():
            self.expect(namespace, table.rows.values())

    def size(self) -> int:
        return sum(len(table.rows) for table in self.tables.values())


class _Nothing:
    """Stands for a row that a transaction has not touched."""


_NOTHING: Final = _Nothing()


class Changes:
    """What a transaction has written so far: None stands for a row, or a registration, that is removed."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Row | None]] = {}
        self.registered: dict[str, NamespaceRow | None] = {}
        self.indexes: dict[str, IndexRow | None] = {}
        self.floor: int = 0
        self.growth: int = 0
        # Who has what in a unique index among these rows; made when it is asked for.
        self.claims: dict[str, Claims] = {}
        # What stood where something was written since `mark`, in that order. None while there is no mark.
        self._written: list[tuple[str, str, Row | _Nothing | None]] | None = None

    def write(self, namespace: str, key: str, row: Row | None) -> None:
        """A row, or None for one that is removed."""
        rows = self.rows.setdefault(namespace, {})
        if self._written is not None:
            self._written.append((namespace, key, rows.get(key, _NOTHING)))
        rows[key] = row
        for claims in self.claims.values():
            if claims.covers(namespace):
                claims.update(namespace, key, row)

    def mark(self) -> tuple[int, int]:
        """A moment to go back to, without a copy of everything."""
        self._written = []
        return self.floor, self.growth

    def go_back(self, mark: tuple[int, int]) -> None:
        """Let everything be as it was at the mark, but for namespaces that were registered."""
        for namespace, key, old in reversed(self._written or []):
            if isinstance(old, _Nothing):
                del self.rows[namespace][key]
            else:
                self.rows[namespace][key] = old
        self.floor, self.growth = mark
        self.claims.clear()

    def forget_mark(self) -> None:
        """What is written from now on is not gone back behind."""
        self._written = None

    def copy(self) -> Changes:
        changes = Changes()
        changes.rows = {namespace: rows.copy() for namespace, rows in self.rows.items()}
        changes.registered = self.registered.copy()
        changes.indexes = self.indexes.copy()
        changes.floor = self.floor
        changes.growth = self.growth
        return changes

    def apply(self, state: State) -> None:
        for namespace, rows in self.rows.items():
            table = state.tables.get(namespace)
            if table is None:
                table = state.tables[namespace] = Table({})
            elif table.is_shared:
                table = state.tables[namespace] = table.copy()
            table.apply(rows)
            for claims in state.claims.values():
                if claims.covers(namespace):
                    for key, row in rows.items():
                        claims.update(namespace, key, row)
            state.expect(namespace, rows.values())
            if not table.rows:
                del state.tables[namespace]
        for name, registration in self.registered.items():
            if registration is None:
                state.registered.pop(name, None)
            else:
                state.registered[name] = registration
        state.floor = max(state.floor, self.floor)
        for name, index in self.indexes.items():
            state.indexes.pop(name, None)
            state.claims.pop(name, None)
            if index is not None:
                state.indexes[name] = index
                if index.is_unique:
                    state.claims[name] = _claims(index, state)


def _claims(index: IndexRow, state: State) -> Claims:
    claims = Claims(index)
    for namespace, table in state.tables.items():
        if claims.covers(namespace):
            for key, row in table.rows.items():
                claims.update(namespace, key, row)
    return claims
