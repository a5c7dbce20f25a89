"""The statements of `query`, `count` and `delete_where`: filter, sort, cursor and limit as one SQL statement.

Called by the primitives in `session.py`.

A page behind a cursor is a cascade: the entries with the same values and a greater key, then those with the same
values but a greater last one, and so on up to those where the field is missing. Each arm is an equal prefix and one
range, which an index can seek, where one OR over all of it would visit everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mycelia_storage.engines.sqlite.expressions import (
    Bindings,
    Conditions,
    field_sql,
    order_terms,
    text_literal,
    typed_paths,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mycelia_storage.engines.engine import Query
    from mycelia_storage.engines.sqlite.strategy import Strategy
    from mycelia_storage.filters import SortKey
    from mycelia_storage.matching import Place

COLUMNS: Final = "e.key, e.version, e.created_at, e.updated_at, e.expires_at, e.metadata, e.value"


class Statement:
    """A statement under construction: its bindings, and the conditions that all of its arms share."""

    def __init__(self, namespace: str, query: Query, now: int, strategy: Strategy) -> None:
        self.bindings: Bindings = Bindings()
        self._query = query
        self._indexed = strategy.indexed
        self._typed = typed_paths(query.filter)
        # The namespace is a literal, because an index of one namespace is a partial index, and SQLite takes one only
        # where the statement says which namespace it is about. The + keeps it from walking by any index.
        scope = f"{'+' if strategy.by_table else ''}e.namespace = {text_literal(namespace)}"
        self._expiry = self.bindings.add(now // 1000)
        behind = {} if query.after is None else {key.path: key.descending for key in query.sort}
        self.condition: str = Conditions(self.bindings, scope, self._indexed, behind).of(query.filter)
        self._matching = f"{scope} AND {self.condition}"
        self._shared = f"{self._matching} AND (e.expires_at IS NULL OR e.expires_at > {self._expiry})"

    def find(self) -> str:
        """Rows, in order."""
        query = self._query
        # No limit is written where there is none: one that is bound makes the planner hope for a short walk.
        limit = "" if query.limit is None else f" LIMIT {self.bindings.add(query.limit)}"
        if query.after is None:
            if query.offset:
                limit = f"{limit or ' LIMIT -1'} OFFSET {self.bindings.add(query.offset)}"
            # Where all has to be found anyway, walking by key, to save the sort, gains nothing over an index.
            all_of_it = query.limit is None and not query.sort and self._indexed
            terms = ["+e.key"] if all_of_it else order_terms(query.sort, self._typed)
            return self._arm((), terms) + limit
        places, key = query.after
        behind = list(self._behind(query.sort, places, key))
        if query.sort and query.sort[0].path.root != "$key" and query.sort[0].path not in self._indexed:
            # There is nothing to seek by: one walk that asks for all of it, instead of a walk for each arm.
            anywhere = " OR ".join(f"({' AND '.join(conditions)})" for conditions, _ in behind)
            return self._arm((f"({anywhere})",), order_terms(query.sort, self._typed)) + limit
        arms = [f"SELECT * FROM ({self._arm(conditions, rest)}{limit or ' LIMIT -1'})" for conditions, rest in behind]
        return " UNION ALL ".join(arms) + limit

    def count(self) -> str:
        """How many: all that match but those that have expired, so that an index alone can answer the first part."""
        # The LIMIT keeps SQLite from merging the inner SELECT into the outer one, where it might not find its index.
        expired = (
            "SELECT * FROM storage_entries INDEXED BY storage_entries_expiry "
            f"WHERE expires_at <= {self._expiry} LIMIT -1"
        )
        return (
            f"SELECT (SELECT count(*) FROM storage_entries AS e WHERE {self._matching}) "
            f"- (SELECT count(*) FROM ({expired}) AS e WHERE {self._matching})"
        )

    def delete(self) -> str:
        """Remove them; gives their versions."""
        chosen = f"SELECT e.id FROM storage_entries AS e WHERE {self._shared}"
        return f"DELETE FROM storage_entries WHERE id IN ({chosen}) RETURNING version, expires_at"

    def _arm(self, conditions: tuple[str, ...], terms: list[str]) -> str:
        where = " AND ".join((self._shared, *conditions))
        return f"SELECT {COLUMNS} FROM storage_entries AS e WHERE {where} ORDER BY {', '.join(terms)}"

    def _behind(
        self, sort: tuple[SortKey, ...], places: tuple[Place, ...], key: str
    ) -> Iterator[tuple[tuple[str, ...], list[str]]]:
        """The arms of the cascade in order: the conditions of each, and what remains to order by."""
        descending = bool(sort) and sort[-1].descending
        key_term = "e.key DESC" if descending else "e.key"
        sign = "<" if descending else ">"
        equal: list[str] = []
        outer: list[tuple[tuple[str, ...], list[str]]] = []
        for index, (sort_key, place) in enumerate(zip(sort, places, strict=True)):
            rest = order_terms(sort[index + 1 :], self._typed) if index + 1 < len(sort) else [key_term]
            same, ranges = self._around(sort_key, place, rest)
            outer = [((*equal, condition), terms) for condition, terms in ranges] + outer
            equal.append(same)
        yield (*equal, f"e.key {sign} {self.bindings.add(key)}"), [key_term]
        yield from outer

    def _around(self, key: SortKey, place: Place, rest: list[str]) -> tuple[str, list[tuple[str, list[str]]]]:
        """The condition "same place by this field", and the ranges behind it with what they are ordered by."""
        field = field_sql(key.path)
        indexed = key.path in self._indexed
        is_missing, rank, value = place
        missing = field.is_missing(indexed=True) if field.is_json else field.is_missing()
        if is_missing:
            return missing, []
        sign = "<" if key.descending else ">"
        is_typed = key.path in self._typed
        terms = field.terms(descending=key.descending, is_typed=is_typed)
        if not field.is_json:
            bound = self.bindings.add(value)
            ranges = [(f"{field.column} {sign} {bound}", [*terms, *rest])]
            if key.path.root == "$expires_at":
                ranges.append((missing, rest))
            return f"{field.column} = {bound}", ranges
        ranges = []
        same = f"{field.R} = {rank}"
        if rank in (4, 5):
            bound = self.bindings.add(value)
            ranges.append((f"{field.R} = {rank} AND {field.V} {sign} {bound}", [terms[-1], *rest]))
            same = f"{field.R} = {rank} AND {field.V} = {bound}"
            if is_typed:  # there is no other rank behind, and nothing missing
                return same, ranges
        elif rank < 4 and indexed:
            same = f"{field.R} = {rank} AND {field.V} = 0"
        ranges.append((f"{field.R} {sign} {rank}", [*terms, *rest]))
        ranges.append((missing, rest))
        return same, ranges
