"""Every primitive in plain Python, on rows that are all in memory: the slow way, for engines to begin with.

Called by engines of other distributions, which may rely on every name in `__all__`; see docs/writing-an-engine.md.
An engine that keeps changes, and nothing else of its own, is complete with these; one with a database behind it
overrides what its database does better, one primitive after the other.

A state that is committed never changes: a session that writes works on a copy of it. So a state can be read by any
number of threads, and stays what it was for whoever reads it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from mycelia_storage.engines import kit
from mycelia_storage.engines.engine import IndexRow, NamespaceRow, PlanRow, Row, Tally
from mycelia_storage.errors import TransactionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mycelia_storage.checking import Findings
    from mycelia_storage.engines.engine import Engine, Newer, Outline, PutRow, Query
    from mycelia_storage.filters import Filter
    from mycelia_storage.keys import KeyRange

__all__ = ["Auto", "Change", "Session", "State", "View", "changes_of"]

# One thing that a commit does, as JSON can have it: ["row", namespace, key, None or the rest of the row],
# ["namespace", name, None or its metadata and time], ["index", name, None or the rest of it], ["floor", version],
# ["empty"], which removes everything but the floor.
Change: TypeAlias = list[Any]


class State:
    """All that a store holds at one moment."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Row]] = {}
        self.namespaces: dict[str, NamespaceRow] = {}
        self.indexes: dict[str, IndexRow] = {}
        self.floor: int = 0

    def copy(self) -> State:
        copy = State()
        copy.rows = {namespace: rows.copy() for namespace, rows in self.rows.items()}
        copy.namespaces, copy.indexes, copy.floor = self.namespaces.copy(), self.indexes.copy(), self.floor
        return copy

    def apply(self, change: Change) -> None:
        """Raises ValueError, TypeError, LookupError or InvalidFilterError for what is no change, or cannot be."""
        match change:
            case ["row", str(namespace), str(key), None]:
                del self.rows[namespace][key]
                if not self.rows[namespace]:
                    del self.rows[namespace]
            case ["row", str(namespace), str(key), rest]:
                self.rows.setdefault(namespace, {})[key] = Row(key, *rest)
            case ["namespace", str(name), None]:
                self.namespaces.pop(name, None)
            case ["namespace", str(name), [metadata, created_at]]:
                self.namespaces[name] = NamespaceRow(name, metadata, created_at)
            case ["index", str(name), None]:
                del self.indexes[name]
            case ["index", str(name), [namespace, fields, is_unique, created_at]]:
                self.indexes[name] = IndexRow(name, namespace, kit.parse_sort(fields), is_unique, created_at)
            case ["floor", int(version)]:
                self.floor = version
            case ["empty"]:
                self.rows, self.namespaces, self.indexes = {}, {}, {}
            case _:
                raise ValueError("no change")

    def contents(self, now: int) -> kit.Contents:
        """What has not expired, for a backup."""
        rows = [(name, [row for row in rows.values() if kit.is_live(row, now)]) for name, rows in self.rows.items()]
        total = sum(len(some) for _, some in rows)
        return kit.Contents(list(self.namespaces.values()), self.floor, total, rows, list(self.indexes.values()))

    def check(self, findings: Findings, now: int) -> None:
        """Look at every row by the rules, and at the unique indexes."""
        names = {kit.DEFAULT_NAMESPACE, *self.rows, *self.namespaces}
        findings.namespaces, findings.indexes = len(names - {kit.ORIGIN}), len(self.indexes)
        for name in sorted(names):
            problem = kit.problem_of_namespace(*self.namespaces.get(name, (name, None, None)))
            if problem is not None:
                findings.add(f"namespace {name!r}: {problem}")
            live: list[Row] = []
            for row in self.rows.get(name, {}).values():
                problem = kit.problem_of_row(name, row)
                if problem is not None:
                    findings.add(f"{kit.named(name, row.key)}: {problem}")
                elif kit.is_live(row, now):
                    live.append(row)
                findings.entries += problem is not None or kit.is_live(row, now)
            for index in self.indexes.values():
                if _is_unique_in(index, name) and kit.duplicates(index, name, live):
                    findings.add(f"the index {index.name!r} is unique, and has one value twice in namespace {name!r}")


def changes_of(contents: kit.Contents, floor: int = 0) -> list[Change]:
    """What makes any state into one that holds this, and has the greater floor of both."""
    changes: list[Change] = [["empty"], ["floor", max(floor, contents.floor)]]
    changes += [["namespace", row.name, [row.metadata, row.created_at]] for row in contents.namespaces]
    changes += [_written(namespace, row) for namespace, rows in contents.rows for row in rows]
    return changes + [_made(index) for index in contents.indexes]


def _written(namespace: str, row: Row) -> Change:
    return ["row", namespace, row.key, list(row[1:])]


def _made(index: IndexRow) -> Change:
    fields = [str(key) for key in index.fields]
    return ["index", index.name, [index.namespace, fields, index.is_unique, index.created_at]]


def _is_unique_in(index: IndexRow, namespace: str) -> bool:
    return index.is_unique and index.namespace in (None, namespace)


def _same(row: Row) -> Row:
    return row


class View:
    """The primitives that read, on `state`."""

    @property
    def state(self) -> State:
        """What is read."""
        raise NotImplementedError

    def ordered(self, namespace: str, now: int | None = None) -> list[Row]:
        """The rows of a namespace in the order of their keys; with a time, those that are live then."""
        rows = sorted(self.state.rows.get(namespace, {}).values())
        return rows if now is None else [row for row in rows if kit.is_live(row, now)]

    def value(self, namespace: str, key: str) -> tuple[str, int | None] | None:
        row = self.state.rows.get(namespace, {}).get(key)
        return None if row is None else (row.value, row.expires_at)

    def has(self, namespace: str, key: str, now: int) -> bool:
        row = self.state.rows.get(namespace, {}).get(key)
        return row is not None and kit.is_live(row, now)

    def values(self, namespace: str, keys: Sequence[str]) -> Iterable[tuple[str, str, int | None]]:
        return [(row.key, row.value, row.expires_at) for row in self.rows(namespace, keys)]

    def rows(self, namespace: str, keys: Sequence[str]) -> list[Row]:
        rows = self.state.rows.get(namespace, {})
        return [rows[key] for key in keys if key in rows]

    def keys(
        self, namespace: str, span: KeyRange, now: int, *, limit: int | None, offset: int, reverse: bool
    ) -> list[str]:
        found = [row.key for row in self.ordered(namespace, now) if kit.is_in_range(span, row.key)]
        return (found[::-1] if reverse else found)[offset : None if limit is None else offset + limit]

    def page(self, namespace: str, span: KeyRange, now: int, *, limit: int) -> list[Row]:
        return [row for row in self.ordered(namespace, now) if kit.is_in_range(span, row.key)][:limit]

    def count(self, namespace: str | None, now: int) -> int:
        names = self.state.rows if namespace is None else (namespace,)
        return sum(len(self.ordered(name, now)) for name in names)

    def namespaces(self) -> list[NamespaceRow]:
        state = self.state
        holding = {name: NamespaceRow(name, None, None) for name in state.rows}
        return [row for _, row in sorted({**holding, **state.namespaces}.items())]

    def namespace(self, name: str) -> NamespaceRow | None:
        return next((row for row in self.namespaces() if row.name == name), None)

    def outline(self, namespace: str, span: KeyRange, now: int, *, limit: int) -> list[Outline]:
        return [(row.key, row.version, kit.size_of(row)) for row in self.page(namespace, span, now, limit=limit)]

    def newer(self, version: int, now: int, *, limit: int) -> list[Newer]:
        rows = ((name, row) for name in sorted(self.state.rows) for row in self.ordered(name, now))
        return [(name, row.key, row.version, kit.size_of(row)) for name, row in rows if row.version > version][:limit]

    def counts(self, namespace: str, spans: Sequence[KeyRange], now: int) -> list[int]:
        rows = self.ordered(namespace, now)
        return [sum(1 for row in rows if kit.is_in_range(span, row.key)) for span in spans]

    def keys_in(self, namespace: str, spans: Sequence[KeyRange], now: int) -> list[str]:
        rows = self.ordered(namespace, now)
        return [row.key for row in rows if any(kit.is_in_range(span, row.key) for span in spans)]

    def tally(self, namespaces: Sequence[str] | None, now: int) -> Tally:
        state = self.state
        names = state.rows if namespaces is None else set(namespaces)
        versions = [row.version for name in names for row in self.ordered(name, now)]
        greatest = max((row.version for rows in state.rows.values() for row in rows.values()), default=0)
        return Tally(len(versions), sum(version % 2**32 for version in versions), greatest, state.floor)

    def tally_and_newer(
        self, namespaces: Sequence[str] | None, version: int, now: int, *, limit: int
    ) -> tuple[Tally, list[Newer]]:
        return self.tally(namespaces, now), self.newer(version, now, limit=limit)

    def find(self, namespace: str, query: Query, now: int) -> list[Row]:
        return kit.find_among(namespace, self.ordered(namespace), query, now)

    def count_matching(self, namespace: str, filter: Filter, now: int) -> int:
        return sum(1 for _ in kit.matching(namespace, self.ordered(namespace), filter, now))

    def plan(self, namespace: str, query: Query, now: int, extra: Sequence[IndexRow] = ()) -> PlanRow:
        del namespace, query, now, extra  # there is one way to go about everything
        return PlanRow("", (), full_scan=True)

    def indexes(self) -> list[IndexRow]:
        return [index for _, index in sorted(self.state.indexes.items())]


class Auto(kit.AutoWrites, View):
    """The primitives, each a transaction of its own. `committed` gives the state, or raises StorageClosedError."""

    def __init__(self, engine: Engine, committed: Callable[[], State]) -> None:
        super().__init__(engine)
        self._committed = committed

    @property
    def state(self) -> State:
        return self._committed()


class Session(View):
    """One transaction.

    `commit` is what makes it permanent: it gets the changes, and the state that they lead to, which never changes any
    more. Without it the session only reads. `ended` is called once, whichever way it ends.
    """

    # Of one that was never made whole.
    _state: State | None = None

    def __init__(
        self,
        state: State,
        commit: Callable[[list[Change], State], object] | None = None,
        ended: Callable[[], object] | None = None,
    ) -> None:
        self._commit, self._ended = commit, ended
        self._changes: list[Change] = []
        self._points: list[tuple[State, int]] = []
        self._state = state if commit is None else state.copy()

    def __del__(self) -> None:
        self.rollback()  # nobody has it any more, and nobody ended it

    @property
    def state(self) -> State:
        if self._state is None:
            raise TransactionError("the transaction has ended")
        return self._state

    def change(self, *changes: Change) -> None:
        """Do it, and remember it for the commit."""
        state = self.state
        for change in changes:
            state.apply(change)
            self._changes.append(change)

    def commit(self) -> None:
        if self._changes and self._commit is not None:
            self._commit(self._changes, self.state)
        self.rollback()

    def rollback(self) -> None:
        if self._state is not None:
            self._state = None
            if self._ended is not None:
                self._ended()

    def savepoint(self) -> int:
        return self._point()

    def _point(self) -> int:
        self._points.append((self.state.copy(), len(self._changes)))
        return len(self._points)

    def release(self, savepoint: int) -> None:
        del self._points[savepoint - 1 :]

    def rollback_to(self, savepoint: int) -> None:
        self._state, count = self._points[savepoint - 1]
        del self._changes[count:]
        self.release(savepoint)

    def put(self, namespace: str, rows: Sequence[PutRow], now: int) -> list[int]:
        def new(row: PutRow) -> Row:
            return kit.new_row(row, self.state.rows.get(namespace, {}).get(row[0]), self.state.floor, now)

        if not rows:
            return []
        self.register(namespace, None, now)
        return self._write(namespace, [partial(new, row) for row in rows], now)

    def place(self, namespace: str, rows: Sequence[Row], now: int) -> None:
        self._write(namespace, [partial(_same, row) for row in rows], now)

    def _write(self, namespace: str, rows: Sequence[Callable[[], Row]], now: int) -> list[int]:
        """Write each row as it is when its turn comes, or none of them. Gives their versions."""
        point = self._point()
        versions: list[int] = []
        try:
            for make in rows:
                row = make()
                while self._make_way(namespace, row, now):
                    row = make()  # by the floor that is now
                self.change(_written(namespace, row))
                versions.append(row.version)
        except BaseException:
            Session.rollback_to(self, point)
            raise
        Session.release(self, point)
        return versions

    def _make_way(self, namespace: str, row: Row, now: int) -> bool:
        """Remove what has expired and has a value of a unique index that this row would have; False: there is nothing.

        Raises UniqueIndexError where what has it is alive.
        """
        in_the_way: list[Row] = []
        for index in self.indexes():
            claim = kit.claim_of(index.fields, namespace, row) if _is_unique_in(index, namespace) else None
            for other in self.ordered(namespace) if claim is not None else ():
                if other.key != row.key and kit.claim_of(index.fields, namespace, other) == claim:
                    if kit.is_live(other, now):
                        raise kit.owned_error(index, namespace, row.key, other.key)
                    in_the_way.append(other)
        self._remove(namespace, list({other.key: other for other in in_the_way}.values()), now)
        return bool(in_the_way)

    def _remove(self, namespace: str, rows: Sequence[Row], now: int) -> int:
        self.change(*(["row", namespace, row.key, None] for row in rows))
        greatest = max((row.version for row in rows), default=0)
        if greatest >= now:
            self.raise_floor(greatest)
        return sum(kit.is_live(row, now) for row in rows)

    def delete(self, namespace: str, keys: Sequence[str], now: int) -> int:
        return self._remove(namespace, self.rows(namespace, keys), now)

    def delete_matching(self, namespace: str, filter: Filter, now: int) -> int:
        found = kit.matching(namespace, self.ordered(namespace), filter, now)
        return self._remove(namespace, [row for row, _ in found], now)

    def clear(self, namespace: str | None, now: int) -> int:
        names = list(self.state.rows) if namespace is None else [namespace]
        return sum(self._remove(name, self.ordered(name), now) for name in names)

    def purge(self, now: int, limit: int) -> int:
        rows = ((name, row) for name in list(self.state.rows) for row in self.ordered(name))
        due = [(name, row) for name, row in rows if not kit.is_live(row, now)][:limit]
        for name, row in due:
            self._remove(name, [row], now)
        return len(due)

    def register(self, namespace: str, metadata: str | None, now: int) -> bool:
        if namespace in self.state.namespaces:
            return False
        self.place_namespace(NamespaceRow(namespace, metadata, now // 1000))
        return True

    def place_namespace(self, row: NamespaceRow) -> None:
        self.change(["namespace", row.name, [row.metadata, row.created_at]])

    def unregister(self, namespace: str) -> None:
        self.change(["namespace", namespace, None])

    def raise_floor(self, version: int) -> None:
        if version > self.state.floor:
            self.change(["floor", version])

    def create_index(self, index: IndexRow, now: int) -> None:
        kit.check_room_for_index(self.indexes())
        for name in list(self.state.rows):
            if _is_unique_in(index, name):
                self._remove(name, [row for row in self.ordered(name) if not kit.is_live(row, now)], now)
                keys = kit.duplicates(index, name, self.ordered(name))
                if keys:
                    raise kit.duplicates_error(index, name, keys)
        self.change(_made(index))

    def drop_index(self, name: str) -> bool:
        is_there = name in self.state.indexes
        if is_there:
            self.change(["index", name, None])
        return is_there

    def replace(self, contents: kit.Contents) -> None:
        """Put what a backup holds in place of everything. No version that was given before is given again."""
        versions = (row.version for rows in self.state.rows.values() for row in rows.values())
        self.change(*changes_of(contents, max(self.state.floor, *versions, 0)))
