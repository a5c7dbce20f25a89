"""The SQL of every primitive but those with filters, and the primitives on it.

Called by the verbs through an engine's `auto` (each call a transaction of its own) or through a transaction's session.
Both share the primitives, and differ in how a step is run: see `Runner`.

`{s}` is the schema's quoted name. Tables are always written with it, so that no setting of a connection is relied on,
which a pooler between here and the server might give to somebody else.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from mycelia_storage.engines.engine import IndexRow, NamespaceRow, PlanRow, PutRow, Query, Row
from mycelia_storage.engines.postgres import created
from mycelia_storage.engines.postgres.arrays import Numbers, Texts
from mycelia_storage.engines.postgres.documents import forms_of, query_form
from mycelia_storage.engines.postgres.explaining import EXPLAIN, explained, with_more
from mycelia_storage.engines.postgres.failures import TakenError
from mycelia_storage.engines.postgres.indexes import index_row
from mycelia_storage.engines.postgres.queries import Statement
from mycelia_storage.engines.postgres.schema import quoted
from mycelia_storage.engines.postgres.seeking import Seeking
from mycelia_storage.engines.postgres.whole_rows import SQL as WHOLE_ROWS
from mycelia_storage.engines.postgres.whole_rows import WholeRows
from mycelia_storage.errors import StorageCorruptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mycelia_storage.engines.postgres.connections import Cursor
    from mycelia_storage.filters import Filter
    from mycelia_storage.keys import KeyRange


R = TypeVar("R")

_COLUMNS: Final = "e.key, e.version, e.created_at, e.updated_at, e.expires_at, e.metadata, e.value"
_IS_LIVE: Final = "(e.expires_at IS NULL OR e.expires_at > $3::bigint)"

SQL: Final[dict[str, str]] = {
    "value": "SELECT value, expires_at FROM {s}.entries WHERE namespace = $1 AND key = $2",
    "has": f"SELECT 1 FROM {{s}}.entries AS e WHERE e.namespace = $1 AND e.key = $2 AND {_IS_LIVE}",
    "values": "SELECT key, value, expires_at FROM {s}.entries WHERE namespace = $1 AND key = ANY($2::text[])",
    "row": f"SELECT {_COLUMNS} FROM {{s}}.entries AS e WHERE e.namespace = $1 AND e.key = $2",
    "rows": f"SELECT {_COLUMNS} FROM {{s}}.entries AS e WHERE e.namespace = $1 AND e.key = ANY($2::text[])",
    "keys": f"SELECT e.key FROM {{s}}.entries AS e WHERE e.namespace = $1 AND e.key >= $2 AND {_IS_LIVE}",
    "page": f"SELECT {_COLUMNS} FROM {{s}}.entries AS e WHERE e.namespace = $1 AND e.key >= $2 AND {_IS_LIVE}",
    # All by the primary key, which alone is read where a vacuum has been, less the few that have expired.
    "count": """
SELECT (SELECT count(*) FROM {s}.entries WHERE namespace = $1)
  - (SELECT count(*) FROM {s}.entries WHERE namespace = $1 AND expires_at <= $2::bigint)""",
    "count_all": """
SELECT (SELECT count(*) FROM {s}.entries) - (SELECT count(*) FROM {s}.entries WHERE expires_at <= $1::bigint)""",
    "namespace": """
SELECT name, metadata, created_at FROM {s}.namespaces WHERE name = $1
UNION ALL
SELECT $1::text, NULL, NULL WHERE NOT EXISTS (SELECT 1 FROM {s}.namespaces WHERE name = $1)
  AND EXISTS (SELECT 1 FROM {s}.entries WHERE namespace = $1)""",
    # From one namespace to the next by the index, not by a visit to every entry.
    "namespaces": """
WITH RECURSIVE holding(name) AS (
  (SELECT namespace FROM {s}.entries ORDER BY namespace LIMIT 1)
  UNION ALL
  SELECT (SELECT e.namespace FROM {s}.entries AS e WHERE e.namespace > holding.name ORDER BY e.namespace LIMIT 1)
  FROM holding WHERE holding.name IS NOT NULL)
SELECT name, metadata, created_at FROM {s}.namespaces
UNION ALL
SELECT name, NULL, NULL FROM holding
WHERE name IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {s}.namespaces AS n WHERE n.name = holding.name)
ORDER BY 1""",
    "register": """
INSERT INTO {s}.namespaces (name, metadata, created_at) VALUES ($1, $2, $3::bigint)
ON CONFLICT (name) DO NOTHING RETURNING 1""",
    "indexes": "SELECT name, namespace, fields, is_unique, created_at FROM {s}.indexes ORDER BY name",
    "register_and_look": """
INSERT INTO {s}.namespaces (name, metadata, created_at) VALUES ($1, NULL, $2::bigint)
ON CONFLICT (name) DO NOTHING RETURNING EXISTS (SELECT 1 FROM {s}.entries WHERE namespace = $1)""",
    "unregister_empty": """
DELETE FROM {s}.namespaces WHERE name = $1 AND metadata IS NULL AND created_at = $2::bigint
  AND NOT EXISTS (SELECT 1 FROM {s}.entries WHERE namespace = $1)""",
    "register_held": """
INSERT INTO {s}.namespaces (name, metadata, created_at)
SELECT $1, NULL, $2::bigint WHERE EXISTS (SELECT 1 FROM {s}.entries WHERE namespace = $1)
ON CONFLICT (name) DO NOTHING""",
    "unregister": "DELETE FROM {s}.namespaces WHERE name = $1",
}

_INSERT: Final = """
INSERT INTO {s}.entries AS e
  (namespace, key, version, created_at, updated_at, expires_at, metadata, meta, value, doc)"""
# The engine's rule for a put. An expired entry (what is compared is NULL where there is no expiry) counts for nothing
# but its version.
_OR_UPDATE: Final = """
ON CONFLICT (namespace, key) DO UPDATE SET
  version = greatest(excluded.version, e.version + 1),
  created_at = CASE WHEN e.expires_at <= $2::bigint THEN $2::bigint ELSE e.created_at END,
  updated_at = CASE WHEN e.expires_at <= $2::bigint THEN $2::bigint ELSE greatest(e.updated_at, $2::bigint) END,
  expires_at = excluded.expires_at,
  metadata = CASE WHEN excluded.metadata IS NOT NULL OR e.expires_at <= $2::bigint
    THEN excluded.metadata ELSE e.metadata END,
  meta = CASE WHEN excluded.metadata IS NOT NULL OR e.expires_at <= $2::bigint THEN excluded.meta ELSE e.meta END,
  value = excluded.value,
  doc = excluded.doc"""
# By the key of a table with one row, or the planner takes it for two thousand. Where the namespace is not registered,
# nothing is written and nothing comes back.
_KNOWN: Final = "{s}.namespaces AS n, {s}.state AS f WHERE n.name = $1 AND f.id = 1"
_VERSION: Final = "greatest($3::bigint, f.floor + 1)"
# Most texts are their own query form, and need not travel twice.
SQL["put"] = f"""{_INSERT}
SELECT n.name, $4, {_VERSION}, $2::bigint, $2::bigint, $7::bigint, $6::text, $6::text::jsonb, $5::text, $5::text::jsonb
FROM {_KNOWN}
{_OR_UPDATE}
RETURNING version"""
SQL["put_formed"] = f"""{_INSERT}
SELECT n.name, $4, {_VERSION}, $2::bigint, $2::bigint, $7::bigint, $6::text, $9::jsonb, $5::text, $8::jsonb
FROM {_KNOWN}
{_OR_UPDATE}
RETURNING version"""
SQL["put_many"] = f"""{_INSERT}
SELECT n.name, r.key, {_VERSION}, $2::bigint, $2::bigint, r.expires_at, r.metadata,
  coalesce(r.meta, r.metadata)::jsonb, r.value, coalesce(r.form, r.value)::jsonb
FROM unnest($4::text[], $5::text[], $6::text[], $7::bigint[], $8::text[], $9::text[])
  AS r(key, value, metadata, expires_at, form, meta),
  {_KNOWN}
{_OR_UPDATE}
RETURNING key, version"""

# What every removal does besides: the floor goes up to the greatest version that is removed and lies not behind now.
_RAISING: Final = """
WITH gone AS ({removal}),
raised AS (
  UPDATE {s}.state SET floor = top.version
  FROM (SELECT max(version) AS version FROM gone WHERE version >= {now}::bigint) AS top
  WHERE top.version > floor)
SELECT count(*) FILTER (WHERE expires_at IS NULL OR expires_at > {now_ms}::bigint), count(*) FROM gone"""


def _removing(removal: str, now: str = "$1", now_ms: str = "$2") -> str:
    text = _RAISING.replace("{removal}", removal)
    return text.replace("{now}", now).replace("{now_ms}", now_ms)


_WHAT_WENT: Final = "RETURNING version, expires_at"
_ONE: Final = "namespace = $3 AND key = $4"
_SOME: Final = "namespace = $3 AND key = ANY($4::text[])"
_NOT_EXPIRED: Final = "(expires_at IS NULL OR expires_at > $2::bigint)"
# Rows are locked in the order of their keys, so that two of these never wait for each other.
_DELETE_SOME: Final = """
DELETE FROM {s}.entries AS e USING (
  SELECT namespace, key FROM {s}.entries WHERE {which} ORDER BY key FOR UPDATE) AS a
WHERE e.namespace = a.namespace AND e.key = a.key RETURNING e.version, e.expires_at"""
SQL["delete_one"] = _removing(f"DELETE FROM {{s}}.entries WHERE {_ONE} {_WHAT_WENT}")
SQL["delete"] = _removing(_DELETE_SOME.replace("{which}", _SOME))
# What has expired may be removed by others at any time, and is theirs to remove.
SQL["delete_live_one"] = _removing(f"DELETE FROM {{s}}.entries WHERE {_ONE} AND {_NOT_EXPIRED} {_WHAT_WENT}")
SQL["delete_live"] = _removing(_DELETE_SOME.replace("{which}", f"{_SOME} AND {_NOT_EXPIRED}"))
SQL["clear"] = _removing(f"DELETE FROM {{s}}.entries WHERE namespace = $3 {_WHAT_WENT}")
SQL["clear_all"] = _removing(f"DELETE FROM {{s}}.entries {_WHAT_WENT}")
# Those that others are at work with are left for another time.
SQL["purge"] = _removing("""
DELETE FROM {s}.entries AS e USING (
  SELECT namespace, key FROM {s}.entries WHERE expires_at <= $2::bigint
  ORDER BY expires_at LIMIT $3::bigint FOR UPDATE SKIP LOCKED) AS a
WHERE e.namespace = a.namespace AND e.key = a.key RETURNING e.version, e.expires_at""")
SQL["purge_namespace"] = _removing(
    f"DELETE FROM {{s}}.entries WHERE namespace = $3 AND expires_at <= $2::bigint {_WHAT_WENT}"
)
_MOST: Final = 2**63 - 1
# Whoever writes registers the namespace where it is not, and somebody else may remove it again meanwhile.
_ATTEMPTS: Final = 20


class Runner(Protocol):
    """How a step on a cursor is run. It may be run again, after everything it did was undone.

    Raises the library's errors, and TakenError.
    """

    def read(self, step: Callable[[Cursor], R]) -> R:
        """One statement that reads."""
        ...

    def write(self, step: Callable[[Cursor], R], namespace: str | None = None) -> R:
        """One statement that writes. Where a namespace is named, the transaction goes on after a TakenError."""
        ...

    def together(self, step: Callable[[Cursor], R]) -> R:
        """Several statements, all or none of them; whatever fails, what was done before them stays."""
        ...


class Wording:
    """The statements of one store; `is_prepared` says whether the server keeps plans for them."""

    def __init__(self, schema: str, *, is_prepared: bool) -> None:
        self.schema: str = quoted(schema)
        self.seeking: Seeking = Seeking(self.schema, is_prepared=is_prepared)
        self.sql: dict[str, str] = {name: text.replace("{s}", self.schema) for name, text in (SQL | WHOLE_ROWS).items()}
        self.value: str = self.sql["value"]
        self.put: str = self.sql["put"]

    def locking(self) -> Wording:
        """The same for transactions that are not serializable: the namespace that is written to stays until the end."""
        other, known = copy.copy(self), _KNOWN.replace("{s}", self.schema)
        other.sql = {name: text.replace(known, f"{known} FOR KEY SHARE OF n") for name, text in self.sql.items()}
        other.put = other.sql["put"]
        return other


def like_pattern(pieces: tuple[str, ...]) -> str:
    """A pattern's literal parts for LIKE."""
    escaped = [piece.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") for piece in pieces]
    return "%".join(escaped)


class Statements(WholeRows):
    """The primitives, by a runner."""

    def __init__(self, texts: Wording, run: Runner) -> None:
        self._run = run
        self.use(texts)

    def use(self, texts: Wording) -> None:
        """Go on with these statements."""
        self._texts: Wording = texts
        self._sql = texts.sql

    # ---- reading

    def value(self, namespace: str, key: str) -> tuple[str, int | None] | None:
        text = self._texts.value
        found: Any = self._run.read(lambda cursor: cursor.execute(text, (namespace, key)).fetchone())
        return found  # type: ignore[no-any-return]

    def has(self, namespace: str, key: str, now: int) -> bool:
        bound = (namespace, key, now // 1000)
        return self._run.read(lambda cursor: cursor.execute(self._sql["has"], bound).fetchone()) is not None

    def values(self, namespace: str, keys: Sequence[str]) -> Iterable[tuple[str, str, int | None]]:
        return self._by_keys("values", namespace, keys)

    def rows(self, namespace: str, keys: Sequence[str]) -> list[Row]:
        if len(keys) == 1:
            return list(map(Row._make, self._all("row", (namespace, keys[0]))))
        return list(map(Row._make, self._by_keys("rows", namespace, keys)))

    def _by_keys(self, name: str, namespace: str, keys: Sequence[str]) -> list[Any]:
        if not keys:
            return self._run.read(_nothing)  # which is refused where the store is closed
        return self._all(name, (namespace, Texts(keys)))

    def keys(
        self, namespace: str, span: KeyRange, now: int, *, limit: int | None, offset: int, reverse: bool
    ) -> list[str]:
        text, values = self._ranged("keys", namespace, span, now)
        if span.pieces is not None and len(span.pieces) > 1:
            values.append(like_pattern(span.pieces))
            text += f" AND e.key LIKE ${len(values)}"
        values += (_most(limit), _most(offset))
        last = len(values)
        text += f" ORDER BY e.key{' DESC' if reverse else ''} LIMIT ${last - 1}::bigint OFFSET ${last}::bigint"
        found = self._run.read(lambda cursor: cursor.execute(text, values).fetchall())
        return [key for (key,) in found]

    def page(self, namespace: str, span: KeyRange, now: int, *, limit: int) -> list[Row]:
        text, values = self._ranged("page", namespace, span, now)
        values.append(_most(limit))
        text += f" ORDER BY key LIMIT ${len(values)}::bigint"
        found = self._run.read(lambda cursor: cursor.execute(text, values).fetchall())
        return list(map(Row._make, found))

    def count(self, namespace: str | None, now: int) -> int:
        if namespace is None:
            return int(self._all("count_all", (now // 1000,))[0][0])
        return int(self._all("count", (namespace, now // 1000))[0][0])

    def namespaces(self) -> list[NamespaceRow]:
        return list(map(NamespaceRow._make, self._all("namespaces")))

    def namespace(self, name: str) -> NamespaceRow | None:
        found = self._all("namespace", (name,))
        return NamespaceRow._make(found[0]) if found else None

    def _all(self, name: str, bound: Sequence[object] = ()) -> list[Any]:
        text = self._sql[name]
        return self._run.read(lambda cursor: cursor.execute(text, bound).fetchall())

    # ---- by filters

    def _statement(self, namespace: str, query: Query, now: int) -> Statement:
        return Statement(namespace, query, now, self._texts.schema)

    def find(self, namespace: str, query: Query, now: int) -> list[Row]:
        found = self._sought(namespace, query, now) if self._texts.seeking.can_seek(query) else None
        if found is not None:
            return found
        statement = self._statement(namespace, query, now)
        text = statement.find()
        found = self._run.read(lambda cursor: _planned(cursor, text, statement.values).fetchall())
        return list(map(Row._make, found))

    def _sought(self, namespace: str, query: Query, now: int) -> list[Row] | None:
        """What a query finds by one value of an index; None where it has to be run in the general way."""
        seeking = self._texts.seeking
        if seeking.is_due():
            seeking.learn(self._run.read(lambda cursor: cursor.execute(seeking.knowledge).fetchall()))
        sought = seeking.statement(namespace, query, now)
        if sought is None:
            return None
        found = self._run.read(lambda cursor: cursor.execute(sought.text, sought.values).fetchall())
        if len(found) > sought.most:
            seeking.had_many(sought.kind)
            return None
        return list(map(Row._make, found))

    def count_matching(self, namespace: str, filter: Filter, now: int) -> int:
        statement = self._statement(namespace, Query(filter), now)
        text = statement.count()
        (count,) = self._run.read(lambda cursor: _planned(cursor, text, statement.values).fetchone()) or (0,)
        return int(count)

    def delete_matching(self, namespace: str, filter: Filter, now: int) -> int:
        statement = self._statement(namespace, Query(filter), now)
        removal, last = statement.delete(), len(statement.values)
        around = _removing("{removal}", f"${last + 1}", f"${last + 2}").replace("{s}", self._texts.schema)
        text = around.replace("{removal}", removal, 1)  # last, since it holds what somebody wrote
        bound = (*statement.values, now, now // 1000)
        return self._run.write(lambda cursor: _counts(_planned(cursor, text, bound)))[0]

    def plan(self, namespace: str, query: Query, now: int, extra: Sequence[IndexRow] = ()) -> PlanRow:
        statement = self._statement(namespace, query, now)
        text = statement.find()

        def step(cursor: Cursor) -> Any:
            return _planned(cursor, f"{EXPLAIN}{text}", statement.values).fetchone()

        (told,) = self._run.read(step)
        found = explained(statement, text, told, query, self.indexes())
        return with_more(found, query, extra, namespace) if extra else found

    # ---- indexes

    def indexes(self) -> list[IndexRow]:
        return [index_row(*row) for row in self._all("indexes")]

    def create_index(self, index: IndexRow, now: int) -> None:
        def step(cursor: Cursor) -> None:
            if index.is_unique:
                self._purge_for(cursor, index, now)
            created.create(cursor, self._texts.schema, index)

        self._texts.seeking.forget()
        try:
            self._run.together(step)
        except TakenError:
            raise self._run.read(lambda cursor: created.duplicates(cursor, self._texts.schema, index)) from None

    def _purge_for(self, cursor: Cursor, index: IndexRow, now: int) -> None:
        if index.namespace is None:
            cursor.execute(self._sql["purge"], (now, now // 1000, _MOST))
        else:
            cursor.execute(self._sql["purge_namespace"], (now, now // 1000, index.namespace))

    def drop_index(self, name: str) -> bool:
        self._texts.seeking.forget()
        return self._run.together(lambda cursor: created.drop(cursor, self._texts.schema, name))

    # ---- writing

    def put(self, namespace: str, rows: Sequence[PutRow], now: int) -> list[int]:
        if not rows:
            return []
        text, bound = self._put_one(namespace, rows[0], now) if len(rows) == 1 else self._put_many(namespace, rows, now)
        try:
            found = self._run.write(lambda cursor: cursor.execute(text, bound).fetchall(), namespace)
            for _ in range(_ATTEMPTS):
                if found:
                    break
                self.register(namespace, None, now)
                found = self._run.write(lambda cursor: cursor.execute(text, bound).fetchall(), namespace)
        except TakenError:
            found = self._put_again(namespace, rows, text, bound, now)
        if not found:
            raise StorageCorruptError("nothing could be written: the table 'state' of the store has lost its row")
        if len(rows) == 1:
            return [found[0][0]]
        versions: dict[str, int] = dict(found)
        return [versions[row[0]] for row in rows]

    def _put_one(self, namespace: str, row: PutRow, now: int) -> tuple[str, tuple[object, ...]]:
        key, value, metadata, expires_at = row
        bound = (namespace, now // 1000, now, key, value, metadata, expires_at)
        form = query_form(value)
        meta = metadata if metadata is None else query_form(metadata)
        if form is value and meta is metadata:
            return self._texts.put, bound
        return self._sql["put_formed"], (*bound, form, meta)

    def _put_many(self, namespace: str, rows: Sequence[PutRow], now: int) -> tuple[str, tuple[object, ...]]:
        keys, values, metadata, expiries = map(list, zip(*rows, strict=True))
        bound = (
            namespace, now // 1000, now, Texts(keys), Texts(values), Texts(metadata), Numbers(expiries),
            Texts(forms_of(values)), Texts(forms_of(metadata)),
        )  # fmt: skip
        return self._sql["put_many"], bound

    def _put_again(
        self, namespace: str, rows: Sequence[PutRow], text: str, bound: tuple[object, ...], now: int
    ) -> list[Any]:
        """After a unique index refused it: what has expired, but is still there, is in nobody's way."""

        def step(cursor: Cursor) -> list[Any]:
            cursor.execute(self._sql["purge_namespace"], (now, now // 1000, namespace))
            return cursor.execute(text, bound).fetchall()

        try:
            return self._run.together(step)
        except TakenError as taken:
            constraint = taken.constraint
        raise self._run.read(
            lambda cursor: created.refusal(cursor, self._texts.schema, constraint, namespace, rows, now)
        )

    def delete(self, namespace: str, keys: Sequence[str], now: int) -> int:
        return self._delete("delete", namespace, keys, now)

    def _delete(self, name: str, namespace: str, keys: Sequence[str], now: int) -> int:
        if len(keys) == 1:
            return self._remove(f"{name}_one", now, namespace, keys[0])[0]
        return self._remove(name, now, namespace, Texts(keys))[0] if keys else 0

    def clear(self, namespace: str | None, now: int) -> int:
        return (self._remove("clear_all", now) if namespace is None else self._remove("clear", now, namespace))[0]

    def purge(self, now: int, limit: int) -> int:
        return self._remove("purge", now, limit)[1]

    def _remove(self, name: str, now: int, *which: object) -> tuple[int, int]:
        text, bound = self._sql[name], (now, now // 1000, *which)
        return self._run.write(lambda cursor: _counts(cursor.execute(text, bound)))

    def register(self, namespace: str, metadata: str | None, now: int) -> bool:
        text, bound = self._sql["register"], (namespace, metadata, now // 1000)
        return self._run.write(lambda cursor: cursor.execute(text, bound).fetchone()) is not None

    def settle(self, namespace: str, now: int, *, was_serializable: bool) -> None:
        """After the commit of a transaction that removed a namespace: what others wrote to it meanwhile is registered.

        Of two serializable transactions PostgreSQL refuses one. Otherwise:

        1. A serializable one had found the namespace there, and writes to it, whatever one does that was not. So the
           removal is done once more by one that is: it puts the namespace there, looks, and removes it again. Whoever
           had found it there before, and is not seen here, is refused.
        2. One that is not serializable locks the namespace that it writes to. Who removes it waits for that, or else
           the writer is refused; but what he wrote is seen only now.
        """
        bound = (namespace, now // 1000)

        look = self._sql["register_and_look"]
        if not was_serializable and self._run.write(lambda cursor: cursor.execute(look, bound).fetchone()) == (False,):
            self._run.write(lambda cursor: cursor.execute(self._sql["unregister_empty"], bound))
        self._run.write(lambda cursor: cursor.execute(self._sql["register_held"], bound))

    def unregister(self, namespace: str) -> None:
        text = self._sql["unregister"]
        self._run.write(lambda cursor: cursor.execute(text, (namespace,)))


def _nothing(cursor: Cursor) -> list[Any]:
    del cursor
    return []


def _counts(cursor: Cursor) -> tuple[int, int]:
    """How many live rows a removal removed, and how many in all."""
    live, removed = cursor.fetchone() or (0, 0)
    return live, removed


def _most(number: int | None) -> int:
    """What LIMIT and OFFSET take."""
    return _MOST if number is None else min(number, _MOST)


def _planned(cursor: Cursor, text: str, bound: Sequence[object]) -> Cursor:
    """Run a statement of a filter, planned for what it binds: one plan for all of that would take the wrong index."""
    return cursor.execute(text, bound, prepare=False)
