"""Created indexes: the SQL that makes them, and what a unique one refuses.

Called by the primitives in `session.py`, and by `explaining.py`.

An index has the fields, each as (P, L) or as its column, and then the key in the direction of its last field, so that
it gives the order of a sort, forwards or backwards. Over all namespaces it begins with the namespace; over one it is a
partial index.

A unique one has no key but U: NULL where some field is missing, an array or an object, which is never equal to another
NULL; and else a hash of those strings that L does not hold as a whole.
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from mycelia_storage.engines.engine import IndexRow
from mycelia_storage.engines.postgres.expressions import (
    CUT,
    IS_TEXT,
    PLACES,
    Bindings,
    Conditions,
    FieldSQL,
    field_sql,
    spelled,
    text_literal,
)
from mycelia_storage.entries import to_datetime
from mycelia_storage.errors import StorageCorruptError, StorageError, UniqueIndexError
from mycelia_storage.matching import position
from mycelia_storage.query import parse_sort

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mycelia_storage.filters import Path, SortKey
    from mycelia_storage.matching import Candidate

PREFIX: Final = "ix_"
# Statistics of the expressions, without which the planner knows nothing about them. After an index was made.
ANALYZE: Final = "ANALYZE entries"

# The first so many fields of an index have their texts in it: three of CUT characters are all that fits.
MAX_FIELDS_WITH_TEXT: Final = 3


def sql_name(name: str) -> str:
    """The name of an index in the database: bounded, without anything to quote, and one for each name."""
    return PREFIX + hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def by_sql_name(indexes: Iterable[IndexRow]) -> dict[str, IndexRow]:
    """The indexes by the names that the database tells, in a plan or with an error."""
    return {sql_name(index.name): index for index in indexes}


def fields_text(fields: Sequence[SortKey]) -> str:
    """The fields of an index as they are kept."""
    return json.dumps([str(key) for key in fields])


def index_row(name: Any, namespace: Any, fields: Any, is_unique: Any, created_at: Any) -> IndexRow:
    """A definition that was kept. Raises StorageCorruptError where it defines no index."""
    try:
        keys = _fields(fields)
        if not (keys and isinstance(name, str) and isinstance(namespace, str | None)):
            raise ValueError("no definition")
        to_datetime(created_at)
    except (ValueError, TypeError, RecursionError, StorageError):
        raise StorageCorruptError(f"the definition of the created index {name!r} is damaged") from None
    return IndexRow(name, namespace, keys, bool(is_unique), created_at)


def indexed_paths(indexes: Iterable[IndexRow], namespace: str) -> frozenset[Path]:
    """The paths that the indexes of a namespace have."""
    return frozenset(key.path for index in indexes if index.namespace in (None, namespace) for key in index.fields)


def index_sql(index: IndexRow, schema: str) -> str:
    """The statement that builds an index."""
    columns = [] if index.namespace is not None else ["namespace"]
    places = [FieldSQL(key.path, is_definition=True) for key in index.fields]
    for number, (key, place) in enumerate(zip(index.fields, places, strict=True)):
        terms = place.terms if number < MAX_FIELDS_WITH_TEXT else place.terms[:1]
        columns += [f"({term}){' DESC' if key.descending else ''}" for term in terms]
    if index.is_unique:
        columns.append(f"({_unlike(places)})")
    else:
        columns.append("key DESC" if index.fields[-1].descending else "key")
    kind = "UNIQUE INDEX" if index.is_unique else "INDEX"
    where = "" if index.namespace is None else f" WHERE namespace = {text_literal(index.namespace)}"
    return f"CREATE {kind} {sql_name(index.name)} ON {schema}.entries ({', '.join(columns)}){where}"


def statistics_sql(index: IndexRow, schema: str) -> list[str]:
    """The statements that have the planner know the values of an index.

    Those of a partial index it leaves out of account, and takes every range for a small one.
    """
    if index.namespace is None:
        return []
    places = [FieldSQL(key.path, is_definition=True) for key in index.fields[:MAX_FIELDS_WITH_TEXT]]
    terms = [term for place in places if place.is_json for term in place.terms]
    names = _statistics(index.name, schema)
    return [
        f"CREATE STATISTICS {name} ON ({term}) FROM {schema}.entries" for name, term in zip(names, terms, strict=False)
    ]


def drop_sql(name: str, schema: str) -> list[str]:
    """The statements that remove an index and what belongs to it."""
    return [
        f"DROP INDEX IF EXISTS {schema}.{sql_name(name)}",
        f"DROP STATISTICS IF EXISTS {', '.join(_statistics(name, schema))}",
    ]


def _statistics(name: str, schema: str) -> list[str]:
    """The names for as many as there may be: two for each field."""
    return [f"{schema}.{sql_name(name)}_{number}" for number in range(2 * MAX_FIELDS_WITH_TEXT)]


def _is_scalar(place: FieldSQL) -> str:
    if place.is_json:
        return f"{place.P} < {spelled(PLACES[6])}"
    return place.there


def _unlike(places: list[FieldSQL]) -> str:
    """U: NULL where a field has no scalar, else what else there is in the values to be unique."""
    rest: list[str] = []
    for number, place in enumerate(places):
        if place.is_json:
            is_cut = f" AND char_length({place.L}) >= {CUT}" if number < MAX_FIELDS_WITH_TEXT else ""
            rest.append(f"CASE WHEN {place.P} = {spelled(IS_TEXT)}{is_cut} THEN md5({place.S}) ELSE '' END")
    return f"CASE WHEN {' AND '.join(map(_is_scalar, places))} THEN {' || '.join(rest) or text_literal('')} END"


# ---- what a unique index refuses


def duplicates_sql(index: IndexRow, schema: str) -> str:
    """Which keys have the same value: namespace, the first and the last of them."""
    places = [field_sql(key.path) for key in index.fields]
    columns = ["e.namespace"]
    for place in places:
        columns += [place.P, place.S] if place.is_json else [place.column]
    where = "" if index.namespace is None else f" AND e.namespace = {text_literal(index.namespace)}"
    return (
        f"SELECT e.namespace, min(e.key), max(e.key) FROM {schema}.entries AS e "
        f"WHERE {' AND '.join(map(_is_scalar, places))}{where} "
        f"GROUP BY {', '.join(columns)} HAVING count(*) > 1 LIMIT 3"
    )


def duplicates_error(index: IndexRow, found: Iterable[tuple[str, str, str]]) -> UniqueIndexError:
    """The error for an index that cannot be unique, with what `duplicates_sql` has found."""
    keys = "; ".join(f"{one!r} and {other!r} in {namespace!r}" for namespace, one, other in found)
    message = f"these keys have the same value of {_names(index)}: {keys}"
    return UniqueIndexError(f"unique index {index.name!r}: {message}", index.name)


def owner_sql(
    index: IndexRow, namespace: str, candidate: Candidate, now: int, schema: str
) -> tuple[str, list[object]] | None:
    """The statement that finds who else has the value of an entry, and what it binds; None where none can have it."""
    places, _ = position(index.fields, candidate)
    bindings = Bindings()
    live = f"(e.expires_at IS NULL OR e.expires_at > {bindings.add(str(now // 1000), 'bigint')})"
    conditions = [live, f"e.namespace = {text_literal(namespace)}", f"e.key <> {bindings.text(candidate.key)}"]
    for key, (is_missing, kind, value) in zip(index.fields, places, strict=True):
        if is_missing or kind == 6:
            return None
        conditions.append(Conditions(bindings).same(key.path, kind, value))
    return f"SELECT e.key FROM {schema}.entries AS e WHERE {' AND '.join(conditions)} LIMIT 1", bindings.values


def owned_error(index: IndexRow, namespace: str, key: str, owner: str) -> UniqueIndexError:
    """The error for an entry whose value another has."""
    message = f"{owner!r} in namespace {namespace!r} has the value of {_names(index)} that {key!r} would have"
    return UniqueIndexError(f"unique index {index.name!r}: the key {message}", index.name, key)


def refused_error(namespace: str, key: str) -> UniqueIndexError:
    """The error where it is not known whose value it is: whoever had it is gone again."""
    return UniqueIndexError(
        f"the key {key!r} in namespace {namespace!r} has a value that a unique index refuses", key=key
    )


def _names(index: IndexRow) -> str:
    return ", ".join(str(key.path) for key in index.fields)


@functools.lru_cache(maxsize=256)
def _fields(text: str) -> tuple[SortKey, ...]:
    return parse_sort(json.loads(text))
