"""How PostgreSQL would run a query, with the indexes there are or with more.

Called by the primitive `plan`.

With the indexes there are, PostgreSQL tells. It has nothing like an index that is only thought of: to make one and roll
that back would stop all writers for as long as it takes. What another index would do is therefore reasoned out, from
what the statements of `queries.py` ask for; it may be wrong where an index would serve, but so little that PostgreSQL
rather reads everything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from mycelia_storage.engines.engine import IndexRow, PlanRow, Query
from mycelia_storage.engines.postgres.expressions import FALSE, NEVER, TRUE, conjuncts, fixed_paths
from mycelia_storage.engines.postgres.indexes import by_sql_name
from mycelia_storage.filters import ORDERING, And, Comparison, Filter, Not, Or

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mycelia_storage.engines.postgres.queries import Statement
    from mycelia_storage.filters import Path

# Before a statement of `find`.
EXPLAIN: Final = "EXPLAIN (FORMAT JSON) "

_BY_KEY: Final = "entries_pkey"
_MISSING: Final = re.compile(rf"'(?:30{{400}}|{NEVER})'")
_LITERAL: Final = re.compile(r"'(?:[^']|'')*'")
_KEY: Final = re.compile(r"\bkey\b")
# What every entry of a namespace meets, or every one that has the field.
_SAYS_NOTHING: Final = re.compile(r"\(namespace = ''::text\)|< missing::\w+\)+$")


def explained(statement: Statement, sql: str, plan: Any, query: Query, indexes: Iterable[IndexRow]) -> PlanRow:
    """What `EXPLAIN (FORMAT JSON)` has told of a statement's `find`; `plan` is its one value, parsed."""
    if statement.condition == FALSE:
        return PlanRow(sql, (), False)
    names = by_sql_name(indexes)
    # Where nothing has to match, a limit ends a walk that is in order.
    ends_early = query.limit is not None and statement.condition == TRUE
    used: list[str] = []
    full_scan = False
    for node, is_sorted in _scans(_page(plan[0]["Plan"])):
        index = names.get(node.get("Index Name", ""))
        everything = _visits_everything(node, by_created=index is not None)
        full_scan |= everything and (is_sorted or not ends_early)
        if index is not None and index.name not in used and not (everything and is_sorted):
            used.append(index.name)
    return PlanRow(sql, tuple(used), full_scan)


def _page(plan: dict[str, Any]) -> dict[str, Any]:
    """The part of a plan that is always run: the page, where there is another in the exact order."""
    for child in plan.get("Plans", ()):
        if child.get("Subplan Name") == "CTE page":
            return child  # type: ignore[no-any-return]
        found = _page(child)
        if found is not child:
            return found
    return plan


def _scans(node: dict[str, Any], *, is_sorted: bool = False) -> Iterator[tuple[dict[str, Any], bool]]:
    """The nodes that read entries, and whether what they read is sorted as a whole."""
    kind = node["Node Type"]
    if kind == "Bitmap Index Scan" or (kind != "Bitmap Heap Scan" and node.get("Relation Name") == "entries"):
        yield node, is_sorted
    for child in node.get("Plans", ()):
        yield from _scans(child, is_sorted=is_sorted or kind in ("Sort", "Bitmap Heap Scan"))


def _visits_everything(node: dict[str, Any], *, by_created: bool) -> bool:
    condition = node.get("Index Cond")
    if "Index Name" not in node or condition is None:
        return True
    condition = _LITERAL.sub("''", _MISSING.sub("missing", condition))
    if node["Index Name"] == _BY_KEY:
        return _KEY.search(condition) is None
    return by_created and all(_SAYS_NOTHING.search(clause) for clause in condition.split(" AND "))


# ---- with more indexes


def with_more(found: PlanRow, query: Query, more: Sequence[IndexRow], namespace: str) -> PlanRow:
    """A plan as it would be with indexes more: those of them that would serve the query."""
    usable = [index for index in more if index.namespace in (None, namespace)]
    used = [index for index in usable if _is_in_order(query, index)][:1] or _serving(query.filter, usable)
    if not used:
        return found
    return PlanRow(found.sql, (*found.indexes, *(index.name for index in used)), False)


def _serving(given: Filter, indexes: Sequence[IndexRow]) -> list[IndexRow]:
    """The indexes by which the entries that a filter lets through are found; none where all have to be looked at."""
    narrowing = [index for index in indexes if _narrows(given, index)]
    if narrowing:
        return [max(narrowing, key=lambda index: _equal_fields(given, index))]
    for part in conjuncts(given):
        if isinstance(part, Or):
            sides = [_serving(side, indexes) for side in part.filters]
            if sides and all(sides):
                return list({index.name: index for side in sides for index in side}.values())
    return []


def _narrows(given: Filter, index: IndexRow) -> bool:
    """Whether a filter says something of an index's first field that is more than that it is there."""
    return index.fields[0].path in _sought(given)


def _sought(given: Filter) -> set[Path]:
    found: set[Path] = set()
    for part in conjuncts(given):
        is_negated = isinstance(part, Not)
        leaf = part.filter if isinstance(part, Not) else part
        if isinstance(leaf, Comparison):
            seeking = ("ne", "nin", "exists") if is_negated else ("eq", "in", "startsWith", *ORDERING)
            if leaf.operator in seeking:
                found.add(leaf.path)
    return found


def _equal_fields(given: Filter, index: IndexRow) -> int:
    """How many of an index's first fields a filter fixes."""
    fixed = fixed_paths(given)
    return next((number for number, key in enumerate(index.fields) if key.path not in fixed), len(index.fields))


def _is_in_order(query: Query, index: IndexRow) -> bool:
    """Whether an index has the first entries of a query at one place, in the order of its sort."""
    fixed = _equal_fields(query.filter, index)
    sort = [key for key in query.sort if key.path not in fixed_paths(query.filter)]
    rest = index.fields[fixed:]
    if not sort or query.limit is None or len(rest) < len(sort):
        return False
    if not fixed and query.filter != And(()) and not _narrows(query.filter, index):
        return False
    turns = {key.descending != there.descending for key, there in zip(sort, rest, strict=False)}
    return len(turns) == 1 and all(key.path == there.path for key, there in zip(sort, rest, strict=False))
