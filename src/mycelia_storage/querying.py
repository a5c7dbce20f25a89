"""What stands between a query's arguments and the engine: one checked value, a page, a plan with its advice.

Called by the verbs in `finding.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mycelia_storage.arguments import check_whole
from mycelia_storage.codec import MAX_INT
from mycelia_storage.engines.engine import IndexRow, Query
from mycelia_storage.entries import Entry, Plan, entry_of
from mycelia_storage.errors import InvalidFilterError
from mycelia_storage.filters import ORDERING, And, Comparison, Filter, Not, Or, Path, SortKey
from mycelia_storage.matching import Candidate, position
from mycelia_storage.page import Page, identity, read_cursor, write_cursor
from mycelia_storage.query import StorageQuery, parse_filter, parse_sort

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mycelia_storage.engines.engine import PlanRow, Primitives, Row

# Fields of one advised index, and how many candidates are tried.
_MAX_ADVISED: Final = 3
_MAX_CANDIDATES: Final = 12


def read_query(given: object, *, sort: object = None, limit: object = None, offset: object = 0) -> StorageQuery:
    """A filter, or a whole query, and the arguments beside it as one query."""
    if not isinstance(given, StorageQuery):
        counted = None if limit is None else check_whole("limit", limit, least=0)
        return StorageQuery(
            parse_filter(given), sort=parse_sort(sort), limit=counted, offset=check_whole("offset", offset, least=0)
        )
    for name, own, other in (
        ("sort", given.sort, sort),
        ("limit", given.limit is not None, limit is not None),
        ("offset", given.offset, offset),
    ):
        if own and other:
            raise InvalidFilterError(f"{name}: given twice, in the query and beside it")
    return StorageQuery(
        given.filter,
        sort=given.sort or parse_sort(sort),
        limit=given.limit if limit is None else check_whole("limit", limit, least=0),
        offset=given.offset or check_whole("offset", offset, least=0),
    )


def read_condition(given: object, verb: str) -> Filter:
    """A filter alone; a query with a sort or limits is refused, since they would be without effect."""
    if not isinstance(given, StorageQuery):
        return parse_filter(given)
    if given.sort or given.limit is not None or given.offset:
        raise InvalidFilterError(f"filter: {verb} takes no sort, limit or offset, and the query has some")
    return given.filter


def find_page(rows: Primitives, namespace: str, wanted: StorageQuery, cursor: str | None, now: int) -> Page[Any]:
    """The page of a query, or the one behind a cursor."""
    after = None
    if cursor is not None:
        if wanted.offset:
            raise InvalidFilterError("offset: it counts from the start, a cursor from elsewhere: give one of them")
        after = read_cursor(identity(namespace, wanted.filter, wanted.sort), cursor, len(wanted.sort))
    # One more than asked for tells whether there is anything behind.
    limit = None if wanted.limit is None or wanted.limit == MAX_INT else wanted.limit + 1
    found = rows.find(namespace, Query(wanted.filter, wanted.sort, limit, wanted.offset, after), now)
    more = limit is not None and len(found) == limit
    if more:
        found.pop()
    entries = [entry_of(namespace, row) for row in found]
    if not more or not entries:
        return Page(entries, None)
    last = position(wanted.sort, _candidate(entries[-1], found[-1]))
    return Page(entries, write_cursor(identity(namespace, wanted.filter, wanted.sort), last))


def _candidate(entry: Entry[Any], row: Row) -> Candidate:
    return Candidate(row.key, entry.value, entry.metadata, row.version, row.created_at, row.updated_at, row.expires_at)


def shape_of(namespace: str, wanted: StorageQuery) -> tuple[str, str]:
    """What queries have in common that differ in their operands alone, without any of these."""
    sort = f", sorted by {', '.join(map(str, wanted.sort))}" if wanted.sort else ""
    return namespace, f"{_shape(wanted.filter)}{sort}"


def _shape(given: Filter) -> str:
    if isinstance(given, Comparison):
        return f"{given.path} {given.operator}"
    if isinstance(given, Not):
        return f"not {_shape(given.filter)}"
    if isinstance(given, And | Or):
        return f"({f' {given.word} '.join(map(_shape, given.filters))})"
    return ""


def make_plan(rows: Primitives, namespace: str, wanted: StorageQuery, now: int) -> Plan:
    """How the engine goes about a query, and the index that would help."""
    query = Query(wanted.filter, wanted.sort, wanted.limit, wanted.offset)
    found = rows.plan(namespace, query, now)
    advice = None
    if not found.indexes and found.sql:
        advice = _advice(rows, namespace, query, now, found)
    return Plan(bool(found.indexes), found.indexes, found.full_scan, rows.count(namespace, now), found.sql, advice)


def _advice(rows: Primitives, namespace: str, query: Query, now: int, found: PlanRow) -> str | None:
    """The first candidate that the engine says it would use."""
    if not found.full_scan and not query.sort:
        return None
    there = {index.fields for index in rows.indexes() if index.namespace in (None, namespace)}
    for fields in _candidates(query):
        if fields in there:  # the engine has it and thinks better of it
            continue
        index = IndexRow("advised", namespace, fields, is_unique=False, created_at=0)
        if rows.plan(namespace, query, now, (index,)).indexes:
            arguments = [repr(str(key)) for key in fields]
            if namespace != "default":
                arguments.append(f"namespace={namespace!r}")
            return f"create_index({', '.join(arguments)})"
    return None


def _candidates(query: Query) -> Iterator[tuple[SortKey, ...]]:
    """Fields of an index, the most promising first: equalities, then the sort or a range."""
    equal: dict[Path, None] = {}
    ranged: dict[Path, None] = {}
    for part in _conjuncts(query.filter):
        if not isinstance(part, Comparison) or part.path.root == "$key":
            continue
        if part.operator == "eq":
            equal[part.path] = None
        elif part.operator in (*ORDERING, "startsWith", "in"):
            ranged[part.path] = None
    by_equality = tuple(SortKey(path) for path in list(equal)[:_MAX_ADVISED])
    by_sort = tuple(key for key in query.sort if key.path not in equal and key.path.root != "$key")[:_MAX_ADVISED]
    by_range = tuple(SortKey(path) for path in ranged)[:1]
    seen: set[tuple[SortKey, ...]] = set()
    for fields in (by_equality + by_sort, by_equality + by_range, by_equality, by_range, by_sort):
        if fields and fields not in seen:
            seen.add(fields)
            yield fields


def _conjuncts(given: Filter) -> Iterator[Filter]:
    """The parts that must all hold; of a choice, its first part, which has to have an index too."""
    if isinstance(given, And):
        for part in given.filters:
            yield from _conjuncts(part)
    elif isinstance(given, Or):
        for part in given.filters[:1]:
            yield from _conjuncts(part)
    else:
        yield given
