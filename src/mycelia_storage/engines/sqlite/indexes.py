"""Created indexes: their definitions, the SQL that makes them, and what a unique one refuses.

Called by the primitives in `session.py`, and by `schema.py`, which knows no index that is not defined here.

Every index begins with the namespace, also a partial one, so that the planner weighs it against the index on
(namespace, key) as its equal; and ends with the key, in the direction of its last field, so that it gives the whole
order of a sort.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw

from mycelia_storage.codec import decode, decode_object
from mycelia_storage.engines.engine import IndexRow
from mycelia_storage.engines.sqlite.expressions import FieldSQL, text_literal
from mycelia_storage.engines.sqlite.strategy import Indexed
from mycelia_storage.entries import to_datetime
from mycelia_storage.errors import CapacityError, StorageCorruptError, StorageError, UniqueIndexError
from mycelia_storage.matching import Candidate, position
from mycelia_storage.query import parse_sort

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mycelia_storage.engines.engine import PutRow
    from mycelia_storage.filters import SortKey

MAX_INDEXES: Final = 64
PREFIX: Final = "storage_index_"

INDEXES: Final = "SELECT id, name, namespace, fields, is_unique, created_at FROM storage_indexes ORDER BY name"
FIELDS: Final = "SELECT fields FROM storage_indexes WHERE namespace = ? OR namespace IS NULL"
INSERT_INDEX: Final = """
INSERT INTO storage_indexes (name, namespace, fields, is_unique, created_at, analyzed_entries)
VALUES (?, ?, ?, ?, ?, 0) RETURNING id"""
DELETE_INDEX: Final = "DELETE FROM storage_indexes WHERE name = ? RETURNING id"
ANALYZED: Final = "SELECT id, analyzed_entries FROM storage_indexes"
SET_ANALYZED: Final = "UPDATE storage_indexes SET analyzed_entries = ? WHERE id = ?"
COUNT: Final = "SELECT count(*) FROM (SELECT 1 FROM storage_entries WHERE namespace = ? LIMIT ?)"
COUNT_ALL: Final = "SELECT count(*) FROM (SELECT 1 FROM storage_entries LIMIT ?)"
GREATEST_ID: Final = "SELECT ifnull(max(id), 0) FROM storage_entries"
FLOOR: Final = "SELECT version FROM storage_version_floor WHERE id = 1"
KEPT: Final = """
SELECT version, created_at, updated_at, metadata FROM storage_entries
WHERE namespace = ? AND key = ? AND (expires_at IS NULL OR expires_at > ?)"""
_KEY_INDEX: Final = "tbl = 'storage_entries' AND idx = 'sqlite_autoindex_storage_entries_1'"
KEY_STATISTICS: Final = f"SELECT stat FROM sqlite_stat1 WHERE {_KEY_INDEX}"
SET_KEY_STATISTICS: Final = f"UPDATE sqlite_stat1 SET stat = ? WHERE {_KEY_INDEX}"
# So many rows of each index are read, from its low end. A tenth of a second at the most; a thousand would do for a
# uniform field, but take one with many equal values at its low end for useless.
ANALYSIS_LIMIT: Final = "PRAGMA analysis_limit=200000"

_NONE: Final = Indexed(frozenset(), frozenset())


def all_indexes(connection: apsw.Connection) -> dict[int, IndexRow]:
    """Every definition by its number. Raises StorageCorruptError where one of them defines no index."""
    found = _fetch(connection, INDEXES)
    if len(found) > MAX_INDEXES:
        raise StorageCorruptError(f"the file defines {len(found):,} indexes, and this library makes {MAX_INDEXES}")
    return {row[0]: _index(*row) for row in found}


def _index(number: object, name: Any, namespace: Any, fields: Any, is_unique: Any, created_at: Any) -> IndexRow:
    try:
        keys = _fields(fields)
        if not (keys and isinstance(name, str) and isinstance(namespace, str | None)):
            raise ValueError("no definition")
        to_datetime(created_at)
    except (ValueError, TypeError, RecursionError, StorageError):
        raise StorageCorruptError(f"the definition of the created index {number} is damaged") from None
    return IndexRow(name, namespace, keys, bool(is_unique), created_at)


def indexed_paths(connection: apsw.Connection, namespace: str) -> Indexed:
    """The paths that the indexes of this namespace have."""
    texts = _fetch(connection, FIELDS, (namespace,))
    try:
        return _indexed(tuple(text for (text,) in texts)) if texts else _NONE
    except (ValueError, TypeError, LookupError, RecursionError):
        raise StorageCorruptError("the definition of a created index is damaged") from None


def indexed_of(indexes: Iterable[IndexRow], namespace: str) -> Indexed:
    """The same of definitions."""
    fields = [index.fields for index in indexes if index.namespace in (None, namespace)]
    return Indexed(frozenset(key.path for keys in fields for key in keys), frozenset(keys[0].path for keys in fields))


def create(connection: apsw.Connection, index: IndexRow) -> None:
    """Define and build an index. A unique one raises UniqueIndexError where entries have the same value already."""
    if len(all_indexes(connection)) >= MAX_INDEXES:
        raise CapacityError(f"the store has {MAX_INDEXES} indexes, which is the limit: each one costs every write")
    fields = json.dumps([str(key) for key in index.fields])
    bindings = (index.name, index.namespace, fields, int(index.is_unique), index.created_at)
    number = _fetch(connection, INSERT_INDEX, bindings)[0][0]
    try:
        connection.execute(definition(number, index))
    except apsw.ConstraintError:
        raise UniqueIndexError(_duplicates(connection, index), index.name) from None
    _analyze(connection)
    connection.execute(SET_ANALYZED, (_entries(connection, index), number))


def drop(connection: apsw.Connection, name: str) -> bool:
    """Remove an index; False where there is none."""
    found = _fetch(connection, DELETE_INDEX, (name,))
    if found:
        connection.execute(f"DROP INDEX {PREFIX}{found[0][0]}")
    return bool(found)


def refresh_is_due(connection: apsw.Connection) -> bool:
    """Whether some index's namespace has grown, or shrunk, tenfold since it was looked at."""
    return bool(_stale(connection))


def has_outgrown_statistics(connection: apsw.Connection) -> bool:
    """Whether it has grown tenfold; a quicker question, which counts no further than it has to."""
    analyzed = dict(_fetch(connection, ANALYZED))
    if not analyzed or _fetch(connection, GREATEST_ID)[0][0] < 10 * max(min(analyzed.values()), 10):
        return False
    return any(
        _entries(connection, index, 10 * max(analyzed[number], 10)) >= 10 * max(analyzed[number], 10)
        for number, index in all_indexes(connection).items()
        if number in analyzed  # else another process has made it since, and looked
    )


def refresh_statistics(connection: apsw.Connection) -> None:
    """Look again at the table, for those indexes."""
    stale = _stale(connection)
    _analyze(connection)
    for number, entries in stale:
        connection.execute(SET_ANALYZED, (entries, number))


def _stale(connection: apsw.Connection) -> list[tuple[int, int]]:
    analyzed = dict(_fetch(connection, ANALYZED))
    # Outside of a transaction another process may have made one since, and looked.
    found = {number: index for number, index in all_indexes(connection).items() if number in analyzed}
    counted = [(number, _entries(connection, index)) for number, index in found.items()]
    return [
        (number, entries)
        for number, entries in counted
        if entries >= 10 * max(analyzed[number], 10) or analyzed[number] >= 10 * max(entries, 10)
    ]


def _analyze(connection: apsw.Connection) -> None:
    """Statistics for the planner, without which it takes no index for `in`, `or` and sorts.

    Of all indexes of the table: without them it would think that a namespace has ten entries.
    """
    connection.execute(ANALYSIS_LIMIT)
    connection.execute("ANALYZE storage_entries")
    largest = max((_entries(connection, index) for index in all_indexes(connection).values()), default=0)
    for (stat,) in _fetch(connection, KEY_STATISTICS):
        # ANALYZE notes the mean of all namespaces. An index of a large one would look worse beside it than it is.
        total, of_namespace, *rest = stat.split()
        most = max(int(of_namespace), largest)
        connection.execute(SET_KEY_STATISTICS, (" ".join((total, str(most), *rest)),))
    connection.execute("ANALYZE sqlite_schema")  # which reads them again


def _entries(connection: apsw.Connection, index: IndexRow, most: int = -1) -> int:
    """How many entries an index's namespace has; `most` where counting further is of no use."""
    if index.namespace is None:
        return _fetch(connection, COUNT_ALL, (most,))[0][0]  # type: ignore[no-any-return]
    return _fetch(connection, COUNT, (index.namespace, most))[0][0]  # type: ignore[no-any-return]


def definition(number: int, index: IndexRow) -> str:
    """The statement that builds an index."""
    columns = ["namespace"]
    for key in index.fields:
        columns += FieldSQL(key.path, "").columns(descending=key.descending)
    if not index.is_unique:
        columns.append("key DESC" if index.fields[-1].descending else "key")
    kind = "UNIQUE INDEX" if index.is_unique else "INDEX"
    where = "" if index.namespace is None else f" WHERE namespace = {text_literal(index.namespace)}"
    return f"CREATE {kind} {PREFIX}{number} ON storage_entries ({', '.join(columns)}){where}"


class Owner(NamedTuple):
    """Who has the value of a unique index that a row would have."""

    of: IndexRow
    key: str
    expires_at: int | None


def owners(connection: apsw.Connection, namespace: str, row: PutRow, now: int) -> list[Owner]:
    """Who is in the way of a row that some unique index refuses."""
    key, value, metadata, expires_at = row
    now_ms = now // 1000
    version = max(now, _fetch(connection, FLOOR)[0][0] + 1)
    created_at = updated_at = now_ms
    for old_version, old_created_at, old_updated_at, old_metadata in _fetch(connection, KEPT, (namespace, key, now_ms)):
        # What the entry would have kept.
        version, created_at, updated_at = max(version, old_version + 1), old_created_at, max(now_ms, old_updated_at)
        metadata = old_metadata if metadata is None else metadata
    candidate = Candidate(
        key,
        decode(value, namespace, key),
        decode_object(metadata, namespace, key),
        version,
        created_at,
        updated_at,
        expires_at,
    )
    found: list[Owner] = []
    for index in all_indexes(connection).values():
        if index.is_unique and index.namespace in (None, namespace):
            found += _owners(connection, index, namespace, candidate)
    return found


def _owners(connection: apsw.Connection, index: IndexRow, namespace: str, candidate: Candidate) -> Iterable[Owner]:
    """The other row that has the candidate's value, by the index itself."""
    places, _ = position(index.fields, candidate)
    # A literal, as in the definition of the index: otherwise it would not be used, and every entry visited.
    conditions, bindings = [f"e.namespace = {text_literal(namespace)}", "e.key <> ?"], list[object]([candidate.key])
    for key, (is_missing, rank, value) in zip(index.fields, places, strict=True):
        if is_missing or rank == 6:
            return []
        field = FieldSQL(key.path)
        if field.is_json:
            conditions += [f"{field.R} = ?", f"{field.V} = ?"]
            bindings += [rank, value]
        else:
            conditions.append(f"{field.column} = ?")
            bindings.append(value)
    statement = f"SELECT e.key, e.expires_at FROM storage_entries AS e WHERE {' AND '.join(conditions)} LIMIT 1"
    return [Owner(index, *found) for found in _fetch(connection, statement, tuple(bindings))]


def refusal(namespace: str, key: str, owners: Iterable[Owner]) -> UniqueIndexError:
    """The error for a row that has these in its way: which index refuses it, and whose value it is."""
    for index, owner, _ in owners:
        fields = ", ".join(str(sort_key.path) for sort_key in index.fields)
        message = f"{owner!r} in namespace {namespace!r} has the value of {fields} that {key!r} would have"
        return UniqueIndexError(f"unique index {index.name!r}: the key {message}", index.name, key)
    message = f"the key {key!r} in namespace {namespace!r} has a value that a unique index refuses"
    return UniqueIndexError(message, key=key)


def _duplicates(connection: apsw.Connection, index: IndexRow) -> str:
    columns = ["e.namespace"]
    for key in index.fields:
        columns += FieldSQL(key.path).columns()
    where = "" if index.namespace is None else f"AND e.namespace = {text_literal(index.namespace)}"
    there = " AND ".join(f"({column}) IS NOT NULL" for column in columns)
    statement = (
        f"SELECT e.namespace, min(e.key), max(e.key) FROM storage_entries AS e WHERE {there} {where} "
        f"GROUP BY {', '.join(columns)} HAVING count(*) > 1 LIMIT 3"
    )
    found = [f"{one!r} and {other!r} in {namespace!r}" for namespace, one, other in _fetch(connection, statement)]
    fields = ", ".join(str(key.path) for key in index.fields)
    return f"unique index {index.name!r}: these keys have the same value of {fields}: {'; '.join(found)}"


@functools.lru_cache(maxsize=256)
def _indexed(texts: tuple[str, ...]) -> Indexed:
    return indexed_of((IndexRow("", None, _fields(text), False, 0) for text in texts), "")


@functools.lru_cache(maxsize=256)
def _fields(text: str) -> tuple[SortKey, ...]:
    return parse_sort(json.loads(text))


def _fetch(connection: apsw.Connection, statement: str, bindings: tuple[Any, ...] = ()) -> list[Any]:
    return connection.execute(statement, bindings).fetchall()
