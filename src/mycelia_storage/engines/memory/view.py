"""The primitives in memory, on a state and the changes of a transaction.

Called by the verbs through `engine.py`, which adds locks and the ends of transactions.
"""

from __future__ import annotations

import sys
from heapq import heappop
from itertools import islice
from typing import TYPE_CHECKING

from mycelia_storage.engines.claims import claim_of, duplicates, duplicates_error, owned_error
from mycelia_storage.engines.engine import IndexRow, NamespaceRow, Newer, Outline, PlanRow, PutRow, Query, Row, Tally
from mycelia_storage.engines.kit import check_room_for_index, is_live, matching, new_row, size_of
from mycelia_storage.engines.memory.order import Order
from mycelia_storage.engines.memory.unique import Claims
from mycelia_storage.errors import CapacityError, UniqueIndexError
from mycelia_storage.keys import matches
from mycelia_storage.matching import in_order, position

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mycelia_storage.engines.memory.state import Changes, State
    from mycelia_storage.filters import Filter, SortKey
    from mycelia_storage.keys import KeyRange
    from mycelia_storage.matching import Candidate, Position


class View:
    """The primitives on a state and, for a transaction, its changes."""

    def __init__(self, state: State, changes: Changes, capacity: int | None) -> None:
        self._state = state
        self._changes = changes
        self._capacity = capacity
        self._last_order: tuple[tuple[object, ...], Order] | None = None

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
        stays = [key for key in keys if key not in changed]
        comes = [key for key, row in changed.items() if row is not None and key >= low and (high is None or key < high)]
        return sorted(stays + sorted(comes))  # two runs, which are merged in one pass

    def _all_rows(self, namespace: str, low: str = "") -> Iterator[Row]:
        for key in self._all_keys(namespace, low):
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
            if row is not None and is_live(row, now) and (pieces is None or matches(pieces, key)):
                yield key

    def _holding(self) -> set[str]:
        names = {*self._state.tables, *self._changes.rows}
        return {name for name in names if self._all_keys(name)}

    def value(self, namespace: str, key: str) -> tuple[str, int | None] | None:
        row = self._row(namespace, key)
        return None if row is None else (row.value, row.expires_at)

    def has(self, namespace: str, key: str, now: int) -> bool:
        row = self._row(namespace, key)
        return row is not None and is_live(row, now)

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

    def outline(self, namespace: str, span: KeyRange, now: int, *, limit: int) -> list[Outline]:
        return [(row.key, row.version, size_of(row)) for row in self.page(namespace, span, now, limit=limit)]

    def newer(self, version: int, now: int, *, limit: int) -> list[Newer]:
        found = (
            (name, row.key, row.version, size_of(row))
            for name in sorted(self._holding())
            for row in self._all_rows(name)
            if row.version > version and is_live(row, now)
        )
        return list(islice(found, limit))

    def counts(self, namespace: str, spans: Sequence[KeyRange], now: int) -> list[int]:
        return [sum(1 for _ in self._live_keys(namespace, span, now)) for span in spans]

    def keys_in(self, namespace: str, spans: Sequence[KeyRange], now: int) -> list[str]:
        return [key for span in spans for key in self._live_keys(namespace, span, now)]

    def tally(self, namespaces: Sequence[str] | None, now: int) -> Tally:
        entries = versions = greatest = 0
        for name in self._holding():
            is_counted = namespaces is None or name in namespaces
            for row in self._all_rows(name):
                greatest = max(greatest, row.version)
                if is_counted and is_live(row, now):
                    entries += 1
                    versions += row.version % 2**32
        return Tally(entries, versions, greatest, max(self._state.floor, self._changes.floor))

    def tally_and_newer(
        self, namespaces: Sequence[str] | None, version: int, now: int, *, limit: int
    ) -> tuple[Tally, list[Newer]]:
        return self.tally(namespaces, now), self.newer(version, now, limit=limit)

    def count(self, namespace: str | None, now: int) -> int:
        names = self._holding() if namespace is None else (namespace,)
        if self._nothing_is_due(now):
            return sum(self._size(name) for name in names)
        return sum(1 for name in names for row in self._all_rows(name) if is_live(row, now))

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

    # ---- by filters

    def _matching(self, namespace: str, rows: Iterable[Row], filter: Filter, now: int) -> Iterator[Candidate]:
        return (candidate for _, candidate in matching(namespace, rows, filter, now))

    def find(self, namespace: str, query: Query, now: int) -> list[Row]:
        first, last = query.offset, None if query.limit is None else query.offset + query.limit
        if query.after is not None:
            first, last = 0, query.limit
        if query.sort and query.after is None:
            found = self._matching(namespace, self._all_rows(namespace), query.filter, now)
            keys: Iterable[str] = in_order(query.sort, [(position(query.sort, seen), seen.key) for seen in found])
        else:
            # The order is there already, so that a page visits no more of it than it has to.
            rows = self._rows_behind(namespace, query.sort, query.after)
            keys = (seen.key for seen in self._matching(namespace, rows, query.filter, now))
        found_keys = list(islice(keys, None if last is None else min(last, sys.maxsize)))
        return self.rows(namespace, found_keys[first:])

    def _rows_behind(self, namespace: str, sort: tuple[SortKey, ...], after: Position | None) -> Iterable[Row]:
        """All rows, or those behind a position, in order."""
        if not sort or after is None:
            # No key holds U+0000, so this is the very next place behind a key.
            return self._all_rows(namespace, "" if after is None else after[1] + "\0")
        return self._order(namespace, sort).behind(after)

    def _order(self, namespace: str, sort: tuple[SortKey, ...]) -> Order:
        """All rows in the order of a sort. That of a transaction is kept until it writes, or asks for another one."""
        table = self._state.tables.get(namespace)
        committed = None if table is None else table.order(namespace, sort)
        changes = self._changes.rows.get(namespace, {})
        if committed is not None and not changes:
            return committed
        source = (namespace, sort, committed, changes)
        if self._last_order is None or self._last_order[0] != source:
            order = Order(namespace, sort, ()) if committed is None else committed
            self._last_order = (namespace, sort, committed, changes.copy()), order.changed(changes)
        return self._last_order[1]

    def count_matching(self, namespace: str, filter: Filter, now: int) -> int:
        return sum(1 for _ in self._matching(namespace, self._all_rows(namespace), filter, now))

    def delete_matching(self, namespace: str, filter: Filter, now: int) -> int:
        found = self._matching(namespace, self._all_rows(namespace), filter, now)
        return self.delete(namespace, [seen.key for seen in found], now)

    def plan(self, namespace: str, query: Query, now: int, extra: Sequence[IndexRow] = ()) -> PlanRow:
        del namespace, query, now, extra  # there is one way to go about everything
        return PlanRow("", (), full_scan=True)

    # ---- indexes

    def indexes(self) -> list[IndexRow]:
        merged = {**self._state.indexes, **self._changes.indexes}
        return [index for _, index in sorted(merged.items()) if index is not None]

    def create_index(self, index: IndexRow, now: int) -> None:
        self._check_open()
        check_room_for_index(self.indexes())
        if index.is_unique:
            self._purge_all(now)  # a value has one owner in the index, which must be none that has expired
            for name in sorted(self._holding()) if index.namespace is None else (index.namespace,):
                keys = duplicates(index, name, self._all_rows(name))
                if keys:
                    raise duplicates_error(index, name, keys)
        self._changes.indexes[index.name] = index
        self._changes.claims.pop(index.name, None)

    def drop_index(self, name: str) -> bool:
        self._check_open()
        there = any(index.name == name for index in self.indexes())
        if there:
            self._changes.indexes[name] = None
            self._changes.claims.pop(name, None)
        return there

    def _owners(self, namespace: str, row: Row) -> list[tuple[IndexRow, Row]]:
        """Who has a value already that a row would have in a unique index."""
        found: list[tuple[IndexRow, Row]] = []
        for index in self.indexes():
            if index.is_unique and index.namespace in (None, namespace):
                key = self._owner(index, namespace, row)
                owner = None if key is None else self._row(namespace, key)
                if owner is not None:
                    found.append((index, owner))
        return found

    def _owner(self, index: IndexRow, namespace: str, row: Row) -> str | None:
        claim = claim_of(index.fields, namespace, row)
        if claim is None:
            return None
        owner = self._claims(index).owner(claim, row.key)
        if owner is not None or self._is_new(index):
            return owner
        owner = self._state.claims[index.name].owner(claim, row.key)
        return None if owner in self._changes.rows.get(namespace, {}) else owner

    def _is_new(self, index: IndexRow) -> bool:
        return index.name in self._changes.indexes or index.name not in self._state.claims

    def _claims(self, index: IndexRow) -> Claims:
        """Who has what among the rows that this transaction has written; among all rows, where it made the index."""
        claims = self._changes.claims.get(index.name)
        if claims is None:
            claims = Claims(index)
            for namespace in filter(claims.covers, self._holding() if self._is_new(index) else self._changes.rows):
                keys = self._all_keys(namespace) if self._is_new(index) else self._changes.rows[namespace]
                for key in keys:
                    claims.update(namespace, key, self._row(namespace, key))
            self._changes.claims[index.name] = claims
        return claims

    # ---- writing

    def _check_open(self) -> None:
        """Raise where nothing may be written any more."""

    def put(self, namespace: str, rows: Sequence[PutRow], now: int) -> list[int]:
        self._check_open()
        if not rows:
            return []
        self._make_room(namespace, [row[0] for row in rows], now)
        self.register(namespace, None, now)
        before = self._changes.mark()
        try:
            return [self._put_one(namespace, row, now) for row in rows]
        except UniqueIndexError:
            self._changes.go_back(before)
            self._state.put_back()
            raise
        finally:
            self._changes.forget_mark()

    def _put_one(self, namespace: str, new: PutRow, now: int) -> int:
        row = self._new_row(namespace, new, now)
        while self._clear_the_way(namespace, row, now):
            row = self._new_row(namespace, new, now)
        self._changes.growth += self._row(namespace, row.key) is None
        self._changes.write(namespace, row.key, row)
        return row.version

    def _clear_the_way(self, namespace: str, row: Row, now: int) -> bool:
        """Remove what has expired, is still there, and has a value of a unique index that a row would have.

        False: there was nothing. Raises UniqueIndexError where what has it is alive.
        """
        owners = self._owners(namespace, row)
        for index, owner in owners:
            if is_live(owner, now):
                raise owned_error(index, namespace, row.key, owner.key)
        self._remove(namespace, {owner.key: owner for _, owner in owners}.values(), now)
        return bool(owners)

    def _new_row(self, namespace: str, new: PutRow, now: int) -> Row:
        return new_row(new, self._row(namespace, new[0]), max(self._state.floor, self._changes.floor), now)

    def _make_room(self, namespace: str, keys: Sequence[str], now: int) -> None:
        if self._capacity is None:
            return
        for attempt in ("as it is", "without what has expired"):
            new = sum(1 for key in keys if self._row(namespace, key) is None)
            if self._state.size() + self._changes.growth + new <= self._capacity:
                return
            if attempt == "as it is":
                self.purge(now, self._state.size() + len(keys))
        raise CapacityError(
            f"the store holds its capacity of {self._capacity:,} entries: delete some, or set it higher"
        )

    def _remove(self, namespace: str, rows: Iterable[Row], now: int) -> int:
        self._check_open()
        live = 0
        for row in list(rows):
            self._changes.write(namespace, row.key, None)
            self._changes.growth -= 1
            if row.version >= now:
                self._changes.floor = max(self._changes.floor, row.version)
            live += is_live(row, now)
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

    def _purge_all(self, now: int) -> None:
        self.purge(now, self._state.size() + 1)

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

    def place(self, namespace: str, rows: Sequence[Row], now: int) -> None:
        self._check_open()
        self._make_room(namespace, [row.key for row in rows], now)
        before = self._changes.mark()
        try:
            for row in rows:
                self._clear_the_way(namespace, row, now)
                self._changes.growth += self._row(namespace, row.key) is None
                self._changes.write(namespace, row.key, row)
        except UniqueIndexError:
            self._changes.go_back(before)
            self._state.put_back()
            raise
        finally:
            self._changes.forget_mark()

    def place_namespace(self, row: NamespaceRow) -> None:
        self._check_open()
        self._changes.registered[row.name] = row

    def raise_floor(self, version: int) -> None:
        self._check_open()
        self._changes.floor = max(self._changes.floor, version)
