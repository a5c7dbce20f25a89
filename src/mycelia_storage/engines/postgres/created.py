"""Making and removing created indexes, and telling who is in whose way in a unique one.

Called by the primitives in `statements.py` and `whole_rows.py`; the SQL comes from `indexes.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mycelia_storage.engines.claims import Claim, candidate_of, claim_of
from mycelia_storage.engines.engine import IndexRow, Row
from mycelia_storage.engines.postgres.arrays import Texts
from mycelia_storage.engines.postgres.indexes import (
    by_sql_name,
    drop_sql,
    duplicates_error,
    duplicates_sql,
    fields_text,
    index_row,
    index_sql,
    owned_error,
    owner_sql,
    refused_error,
    statistics_sql,
)
from mycelia_storage.errors import CapacityError, UniqueIndexError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mycelia_storage.engines.engine import PutRow
    from mycelia_storage.engines.postgres.connections import Cursor

ALL: Final = "SELECT name, namespace, fields, is_unique, created_at FROM {s}.indexes ORDER BY name"
ADD: Final = """
INSERT INTO {s}.indexes (name, namespace, fields, is_unique, created_at) VALUES ($1, $2, $3, $4::boolean, $5::bigint)"""
METADATA: Final = """
SELECT key, metadata FROM {s}.entries
WHERE namespace = $1 AND key = ANY($2::text[]) AND (expires_at IS NULL OR expires_at > $3::bigint)"""
REMOVE: Final = "DELETE FROM {s}.indexes WHERE name = $1 RETURNING 1"
# Without statistics of its expressions the planner knows nothing about an index.
ANALYZE: Final = "ANALYZE {s}.entries"

MAX_INDEXES: Final = 64


def all_indexes(cursor: Cursor, schema: str) -> list[IndexRow]:
    """Every created index, ordered by name."""
    return [index_row(*row) for row in cursor.execute(ALL.format(s=schema)).fetchall()]


def create(cursor: Cursor, schema: str, index: IndexRow) -> None:
    """Make it, in a transaction. Raises CapacityError, and the driver's error where two rows have the same value."""
    if len(all_indexes(cursor, schema)) >= MAX_INDEXES:
        raise CapacityError(f"the store has {MAX_INDEXES} indexes, which is the limit: each one costs every write")
    bound = (index.name, index.namespace, fields_text(index.fields), index.is_unique, index.created_at)
    cursor.execute(ADD.format(s=schema), bound)
    for statement in (index_sql(index, schema), *statistics_sql(index, schema)):
        cursor.execute(statement)
    cursor.execute(ANALYZE.format(s=schema))


def drop(cursor: Cursor, schema: str, name: str) -> bool:
    """Remove it, in a transaction; False where there is none."""
    if cursor.execute(REMOVE.format(s=schema), (name,)).fetchone() is None:
        return False
    for statement in drop_sql(name, schema):
        cursor.execute(statement)
    return True


def duplicates(cursor: Cursor, schema: str, index: IndexRow) -> UniqueIndexError:
    """Why an index cannot be unique."""
    found: list[Any] = cursor.execute(duplicates_sql(index, schema)).fetchall()
    return duplicates_error(index, found)


def refusal(
    cursor: Cursor, schema: str, constraint: str, namespace: str, rows: Sequence[PutRow], now: int
) -> UniqueIndexError:
    """Which of some rows, put one after the other, an index refuses first, and because of which other one."""
    index = by_sql_name(all_indexes(cursor, schema)).get(constraint)
    if index is None:  # it was dropped meanwhile
        return refused_error(namespace, rows[0][0])
    kept: dict[str, str | None] = dict(
        cursor.execute(METADATA.format(s=schema), (namespace, Texts([row[0] for row in rows]), now // 1000)).fetchall()
    )
    owners: dict[Claim, str] = {}
    written: set[str] = set()
    for key, value, metadata, expires_at in rows:
        row = Row(key, 0, now // 1000, now // 1000, expires_at, metadata or kept.get(key), value)
        claim = claim_of(index.fields, namespace, row)
        found = owner_sql(index, namespace, candidate_of(namespace, row), now, schema)
        if claim is not None and found is not None:
            text, values = found
            there = [owner for (owner,) in cursor.execute(text, values).fetchall() if owner not in written]
            if claim in owners or there:
                return owned_error(index, namespace, key, owners.get(claim) or there[0])
            owners[claim] = key
        written.add(key)
    return refused_error(namespace, rows[0][0])
