"""Which way a query goes where the planner cannot know: by an index, by key, or through the table as it lies.

Called before a statement is made. The planner takes every range for a small one or every one for a large one, so here
it is looked, at a bounded cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mycelia_storage.engines.sqlite.expressions import Bindings, Conditions, paths_of, text_literal
from mycelia_storage.filters import ORDERING, And, Comparison, Filter

if TYPE_CHECKING:
    from collections.abc import Iterator

    import apsw

    from mycelia_storage.engines.engine import Query
    from mycelia_storage.filters import Path

# How many of eight entries, spread evenly over the file, belong to a namespace.
_SHARE: Final = """
SELECT sum(namespace = ?1) FROM (
  SELECT (
    SELECT namespace FROM storage_entries WHERE id >= ends.low + (ends.high - ends.low) * place.value / 7 LIMIT 1
  ) AS namespace
  FROM (SELECT (SELECT min(id) FROM storage_entries) AS low, (SELECT max(id) FROM storage_entries) AS high) AS ends,
    json_each('[0,1,2,3,4,5,6,7]') AS place)"""
_MOST: Final = 7
# A range with so many entries is a wide one.
_WIDE: Final = 1000


class Indexed(NamedTuple):
    """The paths that the indexes of a namespace have, and those that an index begins with."""

    paths: frozenset[Path]
    leading: frozenset[Path]


class Strategy(NamedTuple):
    """`indexed`: the paths to be written so that an index can serve them. `by_table`: read the table as it lies."""

    indexed: frozenset[Path]
    by_table: bool = False


def choose(connection: apsw.Connection, namespace: str, query: Query, there: Indexed) -> Strategy:
    """The way of a query, with the indexes that are there."""
    indexed = there.paths
    if indexed and query.limit is not None and not query.sort:
        indexed -= _wide(connection, namespace, query.filter, there)
    return Strategy(indexed, _walks_table(connection, namespace, query, indexed))


def _wide(connection: apsw.Connection, namespace: str, filter: Filter, there: Indexed) -> frozenset[Path]:
    """The paths of wide ranges, where the first few in key order are wanted: these are soon found by walking by key.

    By the index all of the range would be fetched and sorted for them.
    """
    found: set[Path] = set()
    for part in _conjuncts(filter):
        if not isinstance(part, Comparison) or part.path not in there.leading:
            continue
        if part.operator not in (*ORDERING, "exists", "startsWith"):
            return frozenset()  # an equality, which the index answers best
        scope = f"e.namespace = {text_literal(namespace)}"
        bindings = Bindings()
        condition = Conditions(bindings, scope, there.paths).of(part)
        sql = f"SELECT count(*) FROM (SELECT 1 FROM storage_entries AS e WHERE {scope} AND {condition} LIMIT {_WIDE})"
        if connection.execute(sql, bindings.values).get < _WIDE:
            return frozenset()
        found.add(part.path)
    return frozenset(found)


def _walks_table(connection: apsw.Connection, namespace: str, query: Query, indexed: frozenset[Path]) -> bool:
    """Whether to read the whole table in the order it lies in the file, rather than the namespace in key order.

    Twice as fast where everything of the namespace has to be looked at and it is nearly all that the file holds.
    """
    if not query.sort and (query.limit is not None or query.after is not None):
        return False
    paths = paths_of(query.filter).union(key.path for key in query.sort)
    if not indexed.isdisjoint(paths) or any(path.root == "$key" for path in paths):
        return False
    share: Any = connection.execute(_SHARE, (namespace,)).get
    return share is not None and share >= _MOST


def _conjuncts(filter: Filter) -> Iterator[Filter]:
    if isinstance(filter, And):
        for part in filter.filters:
            yield from _conjuncts(part)
    else:
        yield filter
