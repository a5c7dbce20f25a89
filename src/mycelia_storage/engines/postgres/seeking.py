"""Queries for one value of an indexed field, the most frequent ones, by one plan for every value.

Called by the primitive `find`.

To plan a statement of a filter takes the server longer than to find a hundred rows by it. One plan for every value
would be a gamble with any other statement: the server guesses then how many entries there are, takes the wrong index or
none, and reads everything. Here it is none, since it can only take the one index, and reads no more than is asked for:

1. The filter says which value each field of an index has, and nothing else; the order is that of the keys, which that
   index has. No other index begins with one of these fields.
2. Each value is demanded three times (`=`, `>=`, `<=`). That is the same to the index, and has the server expect hardly
   any rows, so that no other way is worth it, whatever it knows of the values.
3. No more than MOST rows are read. Where there turn out to be more, the query is planned for its values after all, and
   so are, for a while, the others of its kind: at worst a query is slower once in a while by what MOST rows take.
4. The table is not so small that everything would be read anyway, and such a plan be kept while it grows.

Which indexes there are is read once in a while. Knowledge that is out of date costs time, and changes no answer.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from mycelia_storage.engines.postgres.expressions import (
    CUT,
    IS_TEXT,
    Bindings,
    all_of,
    conjuncts,
    field_sql,
    text_literal,
)
from mycelia_storage.engines.postgres.indexes import MAX_FIELDS_WITH_TEXT, index_row
from mycelia_storage.engines.postgres.queries import COLUMNS
from mycelia_storage.errors import StorageCorruptError
from mycelia_storage.filters import Comparison
from mycelia_storage.matching import rank

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mycelia_storage.engines.engine import IndexRow, Query
    from mycelia_storage.filters import Path

KNOWLEDGE: Final = """
SELECT name, namespace, fields, is_unique, created_at, pg_relation_size({table}::regclass) FROM {s}.indexes"""
MOST: Final = 1_000
LEAST_BYTES: Final = 512 * 1024
_GOOD_FOR_SECONDS: Final = 30.0

Kind = tuple[str, frozenset["Path"]]


class Sought(NamedTuple):
    """A statement and what it binds; where it gives more rows than `most`, there may be others besides."""

    text: str
    values: Sequence[object]
    kind: Kind
    most: int


class Seeking:
    """What one store knows of its indexes. Threads may share it: what it knows is replaced as a whole."""

    def __init__(self, schema: str, *, is_prepared: bool) -> None:
        self._table = f"{schema}.entries"
        self.knowledge: str = KNOWLEDGE.format(s=schema, table=text_literal(self._table))
        # Without prepared statements there is no plan to be kept.
        self._is_on = is_prepared
        self._indexes: tuple[IndexRow, ...] = ()
        self._ask_again = -1.0
        # Kinds of queries, and whether they go by an index so; those that had too many rows do not.
        self._kinds: dict[Kind, bool] = {}

    def is_due(self) -> bool:
        """Whether what is known should be read anew, for a query that could make use of it."""
        return time.monotonic() >= self._ask_again

    def learn(self, rows: Iterable[Sequence[object]]) -> None:
        """What the statement `knowledge` has given."""
        indexes: list[IndexRow] = []
        try:
            for *definition, size in rows:
                if isinstance(size, int) and size >= LEAST_BYTES:
                    indexes.append(index_row(*definition))
        except StorageCorruptError:  # `check` tells of it, and whoever asks for the indexes
            indexes = []
        self._indexes, self._kinds = tuple(indexes), {}
        self._ask_again = time.monotonic() + _GOOD_FOR_SECONDS

    def forget(self) -> None:
        """An index was made or removed here."""
        self._indexes, self._kinds, self._ask_again = (), {}, -1.0

    def had_many(self, kind: Kind) -> None:
        """A query of this kind had more rows than are read so."""
        self._kinds[kind] = False

    def can_seek(self, query: Query) -> bool:
        """Whether a query is for one value of some fields, in the order of the keys."""
        if not self._is_on or (query.limit is not None and query.limit + query.offset > MOST):
            return False
        if query.limit is None and query.offset:
            return False
        parts = conjuncts(query.filter)
        paths = {part.path for part in parts if isinstance(part, Comparison) and _is_for_a_value(part)}
        if not 0 < len(paths) == len(parts) <= MAX_FIELDS_WITH_TEXT:
            return False
        rest = [key for key in query.sort if key.path not in paths]
        return not rest or rest[0].path.root == "$key"

    def statement(self, namespace: str, query: Query, now: int) -> Sought | None:
        """The statement for a query that `can_seek`; None where there is no index for it."""
        parts = [part for part in conjuncts(query.filter) if isinstance(part, Comparison)]
        kind = namespace, frozenset(part.path for part in parts)
        kinds = self._kinds
        if kind not in kinds:
            kinds[kind] = self._has_index(*kind)
        if not kinds[kind]:
            return None
        bindings = Bindings()
        conditions = [f"e.namespace = {text_literal(namespace)}"]  # a literal, since an index may be a partial one
        for part in parts:
            place, operand = field_sql(part.path), part.operand
            is_text = rank(operand) == 5
            where = bindings.add(IS_TEXT, "numeric") if is_text else bindings.number(operand)
            text = bindings.text(operand if is_text else "")
            conditions += [f"{place.P} {sign} {where}" for sign in ("=", ">=", "<=")]
            conditions += [f"{place.L} {sign} {text}" for sign in ("=", ">=", "<=")]
        conditions.append(f"(e.expires_at IS NULL OR e.expires_at > {bindings.add(now // 1000, 'bigint')})")
        descends = bool(query.sort) and query.sort[-1].descending
        for key in query.sort:
            if key.path.root == "$key":
                descends = key.descending
                break
        offset = query.offset
        if query.after is not None:
            conditions.append(f"e.key {'<' if descends else '>'} {bindings.text(query.after[1])}")
            offset = 0
        limit, most = (MOST + 1, MOST) if query.limit is None else (query.limit, query.limit)
        # Literals, or the server would take its plan for every value for one that costs more.
        text = (
            f"SELECT {COLUMNS} FROM {self._table} AS e WHERE {all_of(conditions)} "
            f"ORDER BY e.key{' DESC' if descends else ''} LIMIT {limit:d} OFFSET {offset:d}"
        )
        return Sought(text, bindings.values, kind, most)

    def _has_index(self, namespace: str, paths: frozenset[Path]) -> bool:
        near = [
            index for index in self._indexes if index.namespace in (None, namespace) and index.fields[0].path in paths
        ]
        return bool(near) and all({key.path for key in index.fields} == paths for index in near)


def _is_for_a_value(part: Comparison) -> bool:
    if part.operator != "eq" or not field_sql(part.path).is_json:
        return False
    kind = rank(part.operand)
    return kind == 4 or (kind == 5 and len(part.operand) < CUT)
