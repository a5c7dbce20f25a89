"""Looking through a store in PostgreSQL: every row by the rules, its query form, and the indexes.

Called by the engine for `check`, with a snapshot. Whether an index holds what its table does is the server's to know
(`amcheck` looks, for who may install it); here it is asked whether the server takes them for valid, and whether they
are those that the store has defined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mycelia_storage.checking import (
    MAX_VERSION,
    Findings,
    named,
    problem_of_entry,
    problem_of_namespace,
    problem_of_newer,
)
from mycelia_storage.engines.limits import check_limit
from mycelia_storage.engines.postgres import indexes
from mycelia_storage.engines.postgres.arrays import Texts
from mycelia_storage.engines.postgres.documents import query_form
from mycelia_storage.keys import DEFAULT_NAMESPACE, ORIGIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mycelia_storage.engines.postgres.session import PostgresSession
    from mycelia_storage.engines.postgres.statements import Wording

ROWS: Final = """
SELECT namespace, key, version, created_at, updated_at, expires_at, metadata, value
FROM {s}.entries WHERE (namespace, key) > ($1, $2) ORDER BY namespace, key LIMIT $3::bigint"""
# Equal as jsonb, as every filter sees them.
OTHER_FORM: Final = """
SELECT e.namespace, e.key FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS r(namespace, key, form, meta)
JOIN {s}.entries AS e ON e.namespace = r.namespace AND e.key = r.key
WHERE e.doc IS DISTINCT FROM r.form::jsonb OR e.meta IS DISTINCT FROM r.meta::jsonb"""
NAMESPACES: Final = "SELECT name, metadata, created_at FROM {s}.namespaces ORDER BY name"
FLOOR: Final = "SELECT floor FROM {s}.state"
MADE: Final = """
SELECT c.relname::text, i.indisvalid AND i.indisready, i.indisunique FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
WHERE i.indrelid = (
  SELECT t.oid FROM pg_catalog.pg_class AS t JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
  WHERE n.nspname = $1 AND t.relname = 'entries')"""

_AT_ONCE: Final = 500


def check(session: PostgresSession, texts: Wording, schema: str, findings: Findings, now: int) -> None:
    """Look at everything."""
    registered = {row[0]: row for row in _all(session, NAMESPACES.format(s=texts.schema))}
    for name, metadata, created_at in registered.values():
        problem = problem_of_namespace(name, metadata, created_at)
        if problem is not None:
            findings.add(f"namespace {name!r}: {problem}")
    seen = {DEFAULT_NAMESPACE, *registered}
    for rows in _rows(session, texts):
        check_limit()
        _check_rows(session, texts, rows, findings, now)
        for name in {row[0] for row in rows} - seen:
            seen.add(name)
            findings.add(f"namespace {name!r} is not registered")
    findings.namespaces = len(seen - {ORIGIN})
    floors = _all(session, FLOOR.format(s=texts.schema))
    if len(floors) != 1 or not 0 <= floors[0][0] < MAX_VERSION:
        findings.add("the version floor is no version")
    _check_indexes(session, schema, findings)


def _all(session: PostgresSession, text: str, bound: tuple[object, ...] = ()) -> list[Any]:
    return session.read(lambda cursor: cursor.execute(text, bound).fetchall())


def _rows(session: PostgresSession, texts: Wording) -> Iterator[list[Any]]:
    text, last = ROWS.format(s=texts.schema), ("", "")
    while rows := _all(session, text, (*last, _AT_ONCE)):
        yield rows
        last = rows[-1][:2]


def _check_rows(session: PostgresSession, texts: Wording, rows: list[Any], findings: Findings, now: int) -> None:
    sound: list[tuple[str, str, str, str | None]] = []
    for namespace, key, version, created_at, updated_at, expires_at, metadata, value in rows:
        problem = problem_of_entry(namespace, key, value, metadata, created_at, updated_at)
        problem = problem or problem_of_newer(version, expires_at)
        if problem is None:
            sound.append((namespace, key, query_form(value), None if metadata is None else query_form(metadata)))
        else:
            findings.add(f"{named(namespace, key)}: {problem}")
        findings.entries += problem is not None or expires_at is None or expires_at > now // 1000
    if sound:
        columns = tuple(map(Texts, zip(*sound, strict=True)))
        for namespace, key in _all(session, OTHER_FORM.format(s=texts.schema), columns):
            findings.add(f"{named(namespace, key)}: its query form is not that of its value or metadata")


def _check_indexes(session: PostgresSession, schema: str, findings: Findings) -> None:
    created = session.indexes()
    findings.indexes = len(created)
    made = {name: (is_valid, is_unique) for name, is_valid, is_unique in _all(session, MADE, (schema,))}
    for name, (is_valid, _) in made.items():
        if not is_valid:
            findings.add(f"the server does not take its index {name!r} for valid: REINDEX it")
    for name in sorted(made.keys() - {indexes.sql_name(index.name) for index in created}):
        if name.startswith(indexes.PREFIX):
            findings.add(f"the database has an index {name!r} that the store does not define: DROP INDEX it")
    for index in created:
        found = made.get(indexes.sql_name(index.name))
        if found is None:
            findings.add(f"the index {index.name!r} is not there")
        elif found[1] != index.is_unique:
            findings.add(f"the index {index.name!r} is unique in its definition or in the database, and not in both")
