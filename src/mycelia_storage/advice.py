"""How a query would be run, the index that would help it, and the warning to whoever has none.

Called by `explain`, and by every verb that takes a filter.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from mycelia_storage.engines.engine import IndexRow, Query
from mycelia_storage.entries import Plan
from mycelia_storage.errors import StorageError
from mycelia_storage.filters import ORDERING, And, Comparison, Filter, Not, Or, Path, SortKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mycelia_storage.engines.engine import Primitives
    from mycelia_storage.query import StorageQuery

LOG: Final = logging.getLogger("mycelia_storage")

# A walk through so many entries is worth a warning.
_MANY_ENTRIES: Final = 10_000
# So many queries of a store are all counted, and of those after them one of so many.
_ALL_LOOKED_AT: Final = 1000
_ONE_OF: Final = 16
# A query of one shape is looked at when it first runs, at every doubling of its runs, and then at every so many.
_RUNS_BETWEEN_LOOKS: Final = 1000
_MAX_SHAPES: Final = 1000
# Fields of one advised index, and sides of an `or` that each need one.
_MAX_ADVISED: Final = 3
_MAX_SIDES: Final = 4


class Advisor:
    """Warns once of each shape of query that visits many entries where an index would help."""

    def __init__(self) -> None:
        # How often each shape has run; None once it was warned of.
        self._runs: dict[tuple[str, str], int | None] = {}
        self._queries = 0

    def look(self, rows: Primitives, namespace: str, wanted: StorageQuery, now: int) -> None:
        """A query is about to be run."""
        self._queries += 1
        if self._queries > _ALL_LOOKED_AT and self._queries % _ONE_OF:
            return  # naming the shape costs a tenth of a quick query
        shape = shape_of(namespace, wanted)
        runs = self._runs.get(shape, 0)
        if runs is None:
            return
        if len(self._runs) >= _MAX_SHAPES:
            self._runs.clear()
        self._runs[shape] = runs + 1
        if runs % _RUNS_BETWEEN_LOOKS and runs & (runs - 1):
            return
        try:
            self._warn(rows, namespace, wanted, now, shape)
        except StorageError as error:  # the query itself says so too, if it matters to it
            LOG.debug("no advice on a query (%s): %s", shape[1], error)

    def _warn(self, rows: Primitives, namespace: str, wanted: StorageQuery, now: int, shape: tuple[str, str]) -> None:
        found = rows.plan(namespace, Query(wanted.filter, wanted.sort, wanted.limit, wanted.offset), now)
        if not found.full_scan or not found.sql or rows.count(namespace, now) < _MANY_ENTRIES:
            return
        plan = make_plan(rows, namespace, wanted, now)
        if plan.advice is not None:
            self._runs[shape] = None
            message = "mycelia-storage: a query%s visits all %s entries of namespace %r; %s would help"
            told = f" ({shape[1]})" if shape[1] else ""
            LOG.warning(message, told, f"{plan.entries:,}", namespace, plan.advice)


def shape_of(namespace: str, wanted: StorageQuery) -> tuple[str, str]:
    """What queries have in common that differ in their operands alone, without any of these."""
    parts = [_shape(wanted.filter)]
    if wanted.sort:
        parts.append(f"sorted by {', '.join(map(str, wanted.sort))}")
    return namespace, ", ".join(filter(None, parts))


def _shape(given: Filter) -> str:
    if isinstance(given, Comparison):
        return f"{given.path} {given.operator}"
    if isinstance(given, Not):
        return f"not {_shape(given.filter)}"
    if isinstance(given, And | Or) and given.filters:
        return f"({f' {given.word} '.join(map(_shape, given.filters))})"
    return ""


def make_plan(rows: Primitives, namespace: str, wanted: StorageQuery, now: int) -> Plan:
    """How the engine goes about a query, and the index that would help."""
    query = Query(wanted.filter, wanted.sort, wanted.limit, wanted.offset)
    found = rows.plan(namespace, query, now)
    advice = None
    if found.sql and (found.full_scan or (query.sort and not found.indexes)):
        advice = _advice(rows, namespace, query, now)
    return Plan(bool(found.indexes), found.indexes, found.full_scan, rows.count(namespace, now), found.sql, advice)


def _advice(rows: Primitives, namespace: str, query: Query, now: int) -> str | None:
    """The first candidate that the engine says it would use, and would not visit everything with."""
    there = {index.fields for index in rows.indexes() if index.namespace in (None, namespace)}
    for candidate in _candidates(query):
        wanted = [fields for fields in candidate if fields not in there]
        extra = [
            IndexRow(f"advised {number}", namespace, fields, is_unique=False, created_at=0)
            for number, fields in enumerate(wanted)
        ]
        if not extra:  # the engine has it and thinks better of it
            continue
        plan = rows.plan(namespace, query, now, extra)
        if not plan.full_scan and all(index.name in plan.indexes for index in extra):
            return "; ".join(_call(namespace, fields) for fields in wanted)
    return None


def _call(namespace: str, fields: tuple[SortKey, ...]) -> str:
    arguments = [repr(str(key)) for key in fields]
    if namespace != "default":
        arguments.append(f"namespace={namespace!r}")
    return f"create_index({', '.join(arguments)})"


def _candidates(query: Query) -> Iterator[list[tuple[SortKey, ...]]]:
    """Sets of indexes to try, the most promising first: one for all of it, then for one or each side of an `or`."""
    for fields in _one_for_all(query.filter, query.sort):
        yield [fields]
    for choice in _conjuncts(query.filter):
        if isinstance(choice, Or) and len(choice.filters) <= _MAX_SIDES:
            sides = [next(_one_for_all(side, ()), ()) for side in choice.filters]
            if all(sides):
                each = list(dict.fromkeys(sides))
                yield from ([fields] for fields in each)
                yield each


def _one_for_all(given: Filter, sort: tuple[SortKey, ...]) -> Iterator[tuple[SortKey, ...]]:
    """Fields of one index: equalities, then the sort or a range."""
    equal: dict[Path, None] = {}
    ranged: dict[Path, None] = {}
    for part in _conjuncts(given):
        if not isinstance(part, Comparison) or part.path.root == "$key":
            continue
        if part.operator == "eq":
            equal[part.path] = None
        elif part.operator in (*ORDERING, "startsWith", "in"):
            ranged[part.path] = None
    by_equality = tuple(SortKey(path) for path in list(equal)[:_MAX_ADVISED])
    by_sort = tuple(key for key in sort if key.path not in equal and key.path.root != "$key")[:_MAX_ADVISED]
    by_range = tuple(SortKey(path) for path in ranged)[:1]
    seen: set[tuple[SortKey, ...]] = set()
    for fields in (by_equality + by_sort, by_equality + by_range, by_equality, by_range, by_sort):
        if fields and fields not in seen:
            seen.add(fields)
            yield fields


def _conjuncts(given: Filter) -> Iterator[Filter]:
    """The parts that must all hold."""
    if isinstance(given, And):
        for part in given.filters:
            yield from _conjuncts(part)
    else:
        yield given
