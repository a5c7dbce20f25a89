"""The statements of `query`, `count` and `delete_where`: filter, sort, cursor and limit as one SQL statement.

Called by the primitives in `session.py`, and by `explaining.py`.

A page is a sequence of arms, each of which an index can walk: behind a cursor those with the same values and a greater
key, then those with the same values but a greater last one, and so on; and in a descending sort the entries without the
field come after all others. Each arm has the limit, so that none is run by parallel workers, and later arms are not run
at all where the earlier ones have enough.

An index has not quite the order of a sort: it holds the beginnings of strings (see `expressions.py`), and read from its
end it has missing fields first. But where none of the first entries in its order has such a value, these are the first
entries in the order of the sort, too. So a page is taken in the order of indexes, and only if one of its entries leaves
doubt, the arms are run once more in the exact order. Both is one statement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from mycelia_storage.engines.postgres.expressions import (
    CUT,
    FALSE,
    IS_TEXT,
    MISSING,
    PLACES,
    Bindings,
    Conditions,
    FieldSQL,
    all_of,
    any_of,
    field_sql,
    fixed_paths,
    kinds,
    text_literal,
)

if TYPE_CHECKING:
    from mycelia_storage.engines.engine import Query
    from mycelia_storage.filters import Path, SortKey
    from mycelia_storage.matching import Place

COLUMNS: Final = "e.key, e.version, e.created_at, e.updated_at, e.expires_at, e.metadata, e.value"
_NAMES: Final = "key, version, created_at, updated_at, expires_at, metadata, value"
_NUMBER: Final = 4
_STRING: Final = 5
_DOUBT: Final = "coalesce((SELECT bool_or(is_doubtful) FROM page), false)"

# A page of more entries is sorted as a whole: to look it through costs as much.
MAX_PAGE: Final = 10_000


class Arm(NamedTuple):
    """Entries that follow each other in the order: their conditions, and what is left to sort them by.

    `is_there`: by its conditions the first field left is never missing.
    """

    conditions: tuple[str, ...]
    sort: tuple[SortKey, ...]
    is_there: bool = False


class Statement:
    """A statement under construction; `values` are what it binds, once one of the methods has given its text.

    `indexed` are the paths that indexes of the namespace have; None where that is not known. The answer is the same,
    but a sort without an index is better made in one go.
    """

    def __init__(
        self, namespace: str, query: Query, now: int, schema: str, indexed: frozenset[Path] | None = None
    ) -> None:
        self._table = f"{schema}.entries"
        self._bindings = Bindings()
        self._query = query
        self._indexed = indexed
        expiry = self._bindings.add(now // 1000, "bigint")
        self._conditions = Conditions(self._bindings, indexed)
        self.condition: str = self._conditions.of(query.filter)
        # A literal, because an index of one namespace is a partial index.
        scope = f"e.namespace = {text_literal(namespace)}"
        live = f"(e.expires_at IS NULL OR e.expires_at > {expiry})"
        self._shared = f"{scope} AND {self.condition} AND {live}"
        self._bound = len(self._bindings.values)
        self._kinds = kinds(query.filter)
        self._descends = bool(query.sort) and query.sort[-1].descending
        # Of the sort, what says something: nothing behind the key does, and no field that is the same everywhere.
        fixed = fixed_paths(query.filter)
        self._sort: list[tuple[int, SortKey]] = []
        for number, key in enumerate(query.sort):
            if key.path.root == "$key":
                self._descends = key.descending
                break
            if key.path not in fixed:
                self._sort.append((number, key))
        self.sort: tuple[SortKey, ...] = tuple(key for _, key in self._sort)

    @property
    def values(self) -> list[object]:
        """What is bound, in order."""
        return self._bindings.values

    # ---- statements

    def find(self) -> str:
        """Rows, in order; the columns are those of `Row`."""
        self._begin()
        query = self._query
        limit = "" if query.limit is None else f" LIMIT {query.limit:d}"
        most = query.limit
        if query.after is None and query.offset:
            limit += f" OFFSET {query.offset:d}"
            most = None if query.limit is None else query.limit + query.offset
        arms = [Arm((), self.sort)] if query.after is None else self._behind(*query.after)
        if most is None or most > MAX_PAGE or not self._is_seekable():
            behind = any_of([all_of(list(arm.conditions)) for arm in arms])
            return f"{self._select(behind)} ORDER BY {self._exactly(Arm((), self.sort), by_index=False)}{limit}"
        if query.after is None:
            arms = self._split((), self.sort)
        doubts = [self._doubt(arm) for arm in arms]
        if all(doubt == FALSE for doubt in doubts):
            walks = [f"{self._select(*arm.conditions)} ORDER BY {self._by_index(arm)}" for arm in arms]
            return _one_after_the_other(walks, most, limit)
        page = [
            f"{self._select(*arm.conditions, more=f', {doubt} AS is_doubtful')} ORDER BY {self._by_index(arm)}"
            for arm, doubt in zip(arms, doubts, strict=True)
        ]
        exact = [f"{self._select(*arm.conditions)} ORDER BY {self._exactly(arm, by_index=True)}" for arm in arms]
        return (
            f"WITH page AS MATERIALIZED ({_one_after_the_other(page, most)}) "
            f"(SELECT {_NAMES} FROM page WHERE NOT {_DOUBT}) UNION ALL "
            f"(SELECT {_NAMES} FROM ({_one_after_the_other(exact, most)}) AS exact WHERE {_DOUBT}){limit}"
        )

    def count(self) -> str:
        """How many match."""
        self._begin()
        return f"SELECT count(*) FROM {self._table} AS e WHERE {self._shared}"

    def delete(self) -> str:
        """Remove them; gives their versions, and when they would have expired."""
        self._begin()
        return f"DELETE FROM {self._table} AS e WHERE {self._shared} RETURNING e.version, e.expires_at"

    # ---- parts

    def _begin(self) -> None:
        del self._bindings.values[self._bound :]

    def _is_seekable(self) -> bool:
        return not self.sort or self._indexed is None or self.sort[0].path in self._indexed

    def _select(self, *conditions: str, more: str = "") -> str:
        where = all_of([self._shared, *conditions])
        return f"SELECT {COLUMNS}{more} FROM {self._table} AS e WHERE {where}"

    def _key_term(self) -> str:
        return "e.key DESC" if self._descends else "e.key"

    def _by_index(self, arm: Arm) -> str:
        """What an index has, in its order or from its end."""
        terms = [f"{term} DESC" if key.descending else term for key in arm.sort for term in field_sql(key.path).terms]
        return ", ".join([*terms, self._key_term()])

    def _exactly(self, arm: Arm, *, by_index: bool) -> str:
        """The order of the sort; `by_index` with the terms that an index has before those that it has not."""
        terms: list[str] = []
        for number, key in enumerate(arm.sort):
            place, end = field_sql(key.path), " DESC" if key.descending else ""
            if key.descending and self._can_miss(key) and not (number == 0 and arm.is_there):
                terms.append(f"({place.missing})")
            terms += [f"{term}{end}" for term in (place.terms if by_index else place.terms[:1])]
            if place.is_json and self._kinds.get(key.path) != _NUMBER:
                terms.append(f"{place.S}{end}")
        return ", ".join([*terms, self._key_term()])

    def _doubt(self, arm: Arm) -> str:
        """Whether an entry of an arm may stand elsewhere in the exact order."""
        doubts: list[str] = []
        for number, key in enumerate(arm.sort):
            place = field_sql(key.path)
            if key.descending and self._can_miss(key) and not (number == 0 and arm.is_there):
                doubts.append(place.missing)
            if place.is_json and self._kinds.get(key.path) != _NUMBER:
                doubts.append(f"char_length({place.L}) >= {CUT}")
        return any_of(doubts)

    def _can_miss(self, key: SortKey) -> bool:
        return field_sql(key.path).can_miss and key.path not in self._kinds

    def _split(self, conditions: tuple[str, ...], sort: tuple[SortKey, ...]) -> list[Arm]:
        """The arms of all that meets some conditions."""
        if not sort or not sort[0].descending or not self._can_miss(sort[0]):
            return [Arm(conditions, sort)]
        place = field_sql(sort[0].path)
        return [
            Arm((*conditions, place.there), sort, is_there=True),
            *self._split((*conditions, self._missing(sort[0])), sort[1:]),
        ]

    def _missing(self, key: SortKey) -> str:
        place = field_sql(key.path)
        return self._conditions.at(key.path, MISSING) if place.is_json else place.missing

    def _behind(self, places: tuple[Place, ...], key: str) -> list[Arm]:
        """The arms behind a position, in order."""
        same: list[str] = []
        outer: list[Arm] = []
        for number, (index, sort_key) in enumerate(self._sort):
            equal, behind = self._around(sort_key, places[index])
            here: list[Arm] = []
            if behind != FALSE:
                here.append(Arm((*same, behind), self.sort[number:], is_there=True))
            # Ascending they are behind everything else anyway.
            if sort_key.descending and self._can_miss(sort_key) and not places[index][0]:
                here += self._split((*same, self._missing(sort_key)), self.sort[number + 1 :])
            outer = here + outer
            same.append(equal)
        sign = "<" if self._descends else ">"
        return [Arm((*same, f"e.key {sign} {self._bindings.text(key)}"), ()), *outer]

    def _around(self, key: SortKey, place: Place) -> tuple[str, str]:
        """The conditions "same place by this field" and "behind it"."""
        field = field_sql(key.path)
        is_missing, kind, value = place
        if is_missing:
            return self._missing(key), FALSE
        sign = "<" if key.descending else ">"
        if not field.is_json:
            bound = self._bindings.add(str(value), "bigint")
            return f"{field.column} = {bound}", f"{field.column} {sign} {bound}"
        if kind == _STRING:
            return self._around_text(field, sign, value)
        at = self._bindings.number(value) if kind == _NUMBER else PLACES[kind]
        return self._conditions.at(key.path, at), f"{field.P} {sign} {at}"

    def _around_text(self, field: FieldSQL, sign: str, text: str) -> tuple[str, str]:
        cut = self._bindings.text(text[:CUT])
        same, pair = f"{field.P} = {IS_TEXT} AND {field.L} = {cut}", f"({field.P}, {field.L})"
        if len(text) < CUT:
            return f"({same})", f"{pair} {sign} ({IS_TEXT}, {cut})"
        whole = self._bindings.text(text)
        behind = f"({pair} {sign}= ({IS_TEXT}, {cut}) AND ({field.P} {sign} {IS_TEXT} OR {field.S} {sign} {whole}))"
        return f"({same} AND {field.S} = {whole})", behind


def _one_after_the_other(walks: list[str], most: int, limit: str | None = None) -> str:
    """The first entries of several walks; `limit` where that is another than LIMIT `most`."""
    limit = f" LIMIT {most}" if limit is None else limit
    return (
        walks[0] + limit if len(walks) == 1 else " UNION ALL ".join(f"({walk} LIMIT {most})" for walk in walks) + limit
    )
