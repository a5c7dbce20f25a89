"""How SQLite would run a query, with the indexes there are or with more of them.

Called by the primitive `plan`.

Whether an index would help is not guessed: the tables are laid out once more in memory, without entries but with the
statistics and the index, and SQLite is asked there.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, Final

import apsw

from mycelia_storage.engines.engine import IndexRow, PlanRow, Query
from mycelia_storage.engines.sqlite.connection import plan_once
from mycelia_storage.engines.sqlite.expressions import FALSE, TRUE, create_functions
from mycelia_storage.engines.sqlite.indexes import PREFIX, all_indexes, definition, indexed_of
from mycelia_storage.engines.sqlite.queries import Statement
from mycelia_storage.engines.sqlite.strategy import Strategy, choose

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_INDEX: Final = re.compile(rf"INDEX {PREFIX}(\d+)(?: \((.*)\))?$")
_BY_KEY: Final = re.compile(r"\(namespace=\? AND key[<>=]")
_TABLES: Final = """
SELECT sql FROM sqlite_schema
WHERE type IN ('table', 'index') AND sql IS NOT NULL AND name GLOB 'storage_*'
ORDER BY type = 'index'"""
_SORTED: Final = "USE TEMP B-TREE FOR ORDER BY"
_TABLE: Final = "storage_entries"
_BY_KEY_INDEX: Final = "sqlite_autoindex_storage_entries_1"
_STATISTICS: Final = "SELECT tbl, idx, stat FROM sqlite_stat1"


def explain(connection: apsw.Connection, namespace: str, query: Query, now: int, extra: Sequence[IndexRow]) -> PlanRow:
    """What `EXPLAIN QUERY PLAN` tells."""
    numbered = all_indexes(connection)
    # Which of the ranges are wide can be looked up only by indexes that are there.
    strategy = choose(connection, namespace, query, indexed_of(numbered.values(), namespace))
    if not extra:
        return _explain(connection, Statement(namespace, query, now, strategy), query, numbered)
    more = dict(enumerate(extra, start=max(numbered, default=0) + 1))
    strategy = Strategy(strategy.indexed | indexed_of(more.values(), namespace).paths)
    with _hypothetical(connection, namespace, more) as twin:
        return _explain(twin, Statement(namespace, query, now, strategy), query, numbered | more)


def _explain(connection: apsw.Connection, statement: Statement, query: Query, numbered: dict[int, IndexRow]) -> PlanRow:
    sql = statement.find()
    if statement.condition == FALSE:
        return PlanRow(sql, (), False)
    used: list[str] = []
    full_scan = False
    # Not from the cache: an EXPLAIN never notices that the schema has changed, and would tell of a dropped index.
    plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", statement.bindings.values, can_cache=False)
    rows: list[Any] = plan.fetchall()
    # Where nothing has to match, a limit ends a walk that is in order.
    ends_early = query.limit is not None and statement.condition == TRUE
    sorted_parts = {parent for _, parent, _, detail in rows if detail == _SORTED}
    for _, parent, _, detail in rows:
        if not detail.startswith(("SEARCH e ", "SCAN e")):
            continue
        found = _INDEX.search(detail)
        everything = found[2] == "namespace=?" if found else _BY_KEY.search(detail) is None
        in_order = parent not in sorted_parts
        full_scan |= everything and not (ends_early and in_order)
        if found and (in_order or not everything):
            name = numbered[int(found[1])].name
            if name not in used:
                used.append(name)
    return PlanRow(sql, tuple(used), full_scan)


@contextlib.contextmanager
def _hypothetical(connection: apsw.Connection, namespace: str, more: dict[int, IndexRow]) -> Iterator[apsw.Connection]:
    """The same tables and indexes and more of them in memory, without entries, with the statistics they would have."""
    twin = apsw.Connection(":memory:")
    try:
        plan_once(twin)
        create_functions(twin)
        for (sql,) in connection.execute(_TABLES).fetchall():
            twin.execute(str(sql))
        for number, index in more.items():
            twin.execute(definition(number, index))
        twin.execute("ANALYZE")
        rows: list[Any] = []
        with contextlib.suppress(apsw.SQLError):  # no statistics were ever made
            rows = connection.execute(_STATISTICS).fetchall()
        known = {name for _, name, _ in rows}
        entries: Any = connection.execute("SELECT count(*) FROM storage_entries").get
        here: Any = connection.execute("SELECT count(*) FROM storage_entries WHERE namespace = ?", (namespace,)).get
        if _BY_KEY_INDEX not in known:
            rows.append((_TABLE, _BY_KEY_INDEX, f"{entries} {here} 1"))
        for number, index in more.items():
            # As an index usually is: of one type, with a few entries of each value.
            columns = " ".join(f"{here} {max(1, min(10, here // 100))}" for _ in index.fields)
            rows.append((_TABLE, f"{PREFIX}{number}", f"{here} {here} {columns} 1"))
        twin.executemany("INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES (?, ?, ?)", rows)
        twin.execute("ANALYZE sqlite_schema")
        yield twin
    finally:
        twin.close()
