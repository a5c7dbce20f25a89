"""The primitives in SQL: every statement on entries and namespaces stands here.

Called by the verbs through an engine's `auto` (each call a transaction of its own) or through a transaction's session.
Both share the primitives and differ in where a connection comes from and in what surrounds a write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import apsw
import orjson

from mycelia_storage.engines.engine import IndexRow, NamespaceRow, PlanRow, PutRow, Query, Row
from mycelia_storage.engines.sqlite import indexes
from mycelia_storage.engines.sqlite.explaining import explain
from mycelia_storage.engines.sqlite.expressions import glob_literal
from mycelia_storage.engines.sqlite.failures import extended_code, one_state
from mycelia_storage.engines.sqlite.indexes import indexed_paths
from mycelia_storage.engines.sqlite.queries import Statement
from mycelia_storage.engines.sqlite.strategy import choose
from mycelia_storage.engines.sqlite.whole_rows import (
    EXPIRED,
    FLOOR,
    NO_UPPER_END,
    WholeRows,
    purge_all,
    raise_floor_for,
    texts_of,
)
from mycelia_storage.errors import StorageCorruptError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

    from mycelia_storage.filters import Filter
    from mycelia_storage.keys import KeyRange

VALUE: Final = "SELECT value, expires_at FROM storage_entries WHERE namespace = ? AND key = ?"
# SQLite goes from the index to the row only where the branch is taken: when nothing has expired, the index is enough.
HAS: Final = """
SELECT CASE WHEN EXISTS (SELECT 1 FROM storage_entries INDEXED BY storage_entries_expiry WHERE expires_at <= ?3)
  THEN expires_at END
FROM storage_entries WHERE namespace = ?1 AND key = ?2"""

# Keys travel as one JSON array: one statement whatever their number, and no limit on bound variables.
VALUES: Final = """
SELECT e.key, e.value, e.expires_at
FROM json_each(?1) AS asked CROSS JOIN storage_entries AS e ON e.namespace = ?2 AND e.key = asked.value"""
_COLUMNS: Final = "e.key, e.version, e.created_at, e.updated_at, e.expires_at, e.metadata, e.value"
ROW: Final = f"SELECT {_COLUMNS} FROM storage_entries AS e WHERE e.namespace = ?2 AND e.key = ?1"
ROWS: Final = f"""
SELECT {_COLUMNS}
FROM json_each(?1) AS asked CROSS JOIN storage_entries AS e ON e.namespace = ?2 AND e.key = asked.value"""

# The listing reads the index on (namespace, key) alone. Looking at expires_at would fetch every row; the few expired
# keys, where there are any, are taken from their own index instead.
_KEYS: Final = """
SELECT key FROM storage_entries
WHERE namespace = ?1 AND key >= ?2 AND key < ?3
  AND CASE WHEN EXISTS (
    SELECT 1 FROM storage_entries INDEXED BY storage_entries_expiry WHERE expires_at <= ?4 AND namespace = ?1)
  THEN key NOT IN (
    SELECT key FROM storage_entries INDEXED BY storage_entries_expiry WHERE expires_at <= ?4 AND namespace = ?1)
  ELSE 1 END
"""
KEYS: Final = {
    (False, False): f"{_KEYS} ORDER BY key LIMIT ?5 OFFSET ?6",
    (False, True): f"{_KEYS} ORDER BY key DESC LIMIT ?5 OFFSET ?6",
    (True, False): f"{_KEYS} AND key GLOB ?7 ORDER BY key LIMIT ?5 OFFSET ?6",
    (True, True): f"{_KEYS} AND key GLOB ?7 ORDER BY key DESC LIMIT ?5 OFFSET ?6",
}
PAGE: Final = f"""
SELECT {_COLUMNS} FROM storage_entries AS e
WHERE e.namespace = ?1 AND e.key >= ?2 AND e.key < ?3 AND (e.expires_at IS NULL OR e.expires_at > ?4)
ORDER BY e.key LIMIT ?5"""

COUNT: Final = """
SELECT (SELECT count(*) FROM storage_entries WHERE namespace = ?1)
     - (SELECT count(*) FROM storage_entries INDEXED BY storage_entries_expiry
        WHERE expires_at <= ?2 AND namespace = ?1)"""
COUNT_ALL: Final = """
SELECT (SELECT count(*) FROM storage_entries)
     - (SELECT count(*) FROM storage_entries INDEXED BY storage_entries_expiry WHERE expires_at <= ?1)"""

# The engine's rule for a put, in one statement. An unregistered namespace makes the NOT NULL constraint fail, so that
# registering costs nothing but at the first write. (SELECT … instead of VALUES would cost a statement journal.)
_INSERT: Final = """
INSERT INTO storage_entries (namespace, key, version, created_at, updated_at, expires_at, metadata, value)"""
_OR_UPDATE: Final = """
ON CONFLICT (namespace, key) DO UPDATE SET
  version = max(excluded.version, version + 1),
  created_at = CASE WHEN expires_at <= ?7 THEN ?7 ELSE created_at END,
  updated_at = CASE WHEN expires_at <= ?7 THEN ?7 ELSE max(updated_at, ?7) END,
  expires_at = excluded.expires_at,
  metadata = CASE WHEN ?4 IS NOT NULL THEN ?4 WHEN expires_at <= ?7 THEN NULL ELSE metadata END,
  value = excluded.value"""
PUT: Final = f"""{_INSERT}
VALUES (
  (SELECT name FROM storage_namespaces WHERE name = ?1), ?2,
  max(?6, (SELECT version + 1 FROM storage_version_floor WHERE id = 1)), ?7, ?7, ?5, ?4, ?3)
{_OR_UPDATE}
RETURNING version"""
# The same where `now` can be the version and no expired entry is in the way, as nearly always: nothing has to be given
# back then, which saves a tenth, and the driver looks a shorter text up. Where it cannot, the version is NULL and fails
# too, or no row is changed.
_IF_SIMPLE: Final = """
ON CONFLICT (namespace, key) DO UPDATE SET
  version = ?6, updated_at = max(updated_at, ?7), expires_at = ?5, metadata = ifnull(?4, metadata), value = ?3
WHERE version < ?6 AND ifnull(expires_at > ?7, TRUE)"""
PUT_IF_SIMPLE: Final = f"""{_INSERT}
VALUES (
  (SELECT name FROM storage_namespaces WHERE name = ?1), ?2,
  (SELECT ?6 FROM storage_version_floor WHERE id = 1 AND version < ?6), ?7, ?7, ?5, ?4, ?3)
{_IF_SIMPLE}"""
# The same for many rows of a namespace that is registered, with a version above the floor.
PUT_UNLESS_AHEAD: Final = f"""{_INSERT}
VALUES (?1, ?2, ?6, ?7, ?7, ?5, ?4, ?3)
{_OR_UPDATE}
WHERE excluded.version > version"""
# `_IF_SIMPLE` for many rows at once.
_EACH_IF_SIMPLE: Final = """
ON CONFLICT (namespace, key) DO UPDATE SET
  version = excluded.version, updated_at = max(updated_at, excluded.updated_at), expires_at = excluded.expires_at,
  metadata = ifnull(excluded.metadata, metadata), value = excluded.value
WHERE version < excluded.version AND ifnull(expires_at > excluded.updated_at, TRUE)"""


def put_together(count: int) -> str:
    """`PUT_IF_SIMPLE` for so many rows at once, of any such namespaces.

    After `now` and that in ms there are five values for each row.
    """
    rows = [f"(?{at},?{at + 1},?1,?2,?2,?{at + 4},?{at + 3},?{at + 2})" for at in range(3, 3 + 5 * count, 5)]
    return f"{_INSERT} VALUES {','.join(rows)} {_EACH_IF_SIMPLE}"


# Where the version cannot have to raise the floor.
DELETE_IF_SIMPLE: Final = """
DELETE FROM storage_entries WHERE namespace = ?1 AND key = ?2 AND version < ?3 RETURNING version, expires_at"""
DELETE: Final = """
DELETE FROM storage_entries WHERE id IN (
  SELECT e.id FROM json_each(?1) AS asked CROSS JOIN storage_entries AS e ON e.namespace = ?2 AND e.key = asked.value)
RETURNING version, expires_at"""
GREATEST: Final = "SELECT max(version) FROM storage_entries WHERE namespace = ?"
GREATEST_OF_ALL: Final = "SELECT max(version) FROM storage_entries"
CLEAR: Final = "DELETE FROM storage_entries WHERE namespace = ?"
CLEAR_ALL: Final = "DELETE FROM storage_entries"
# As many rows as hold so many bytes: each page of a big value is visited. octet_length() does not read the value.
PURGE: Final = f"""
DELETE FROM storage_entries WHERE id IN (
  SELECT id FROM (
    SELECT id, sum(bytes) OVER (ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
    FROM (SELECT id, octet_length(value) AS bytes FROM {EXPIRED} ORDER BY expires_at LIMIT ?2))
  WHERE ifnull(before, 0) < ?3)
RETURNING version"""
PURGED_BYTES: Final = 4 * 1024 * 1024

REGISTER: Final = "INSERT OR IGNORE INTO storage_namespaces (name, metadata, created_at) VALUES (?, ?, ?)"
UNREGISTER: Final = "DELETE FROM storage_namespaces WHERE name = ?"
NAMESPACE: Final = """
SELECT name, metadata, created_at FROM storage_namespaces WHERE name = ?1
UNION ALL
SELECT ?1, NULL, NULL WHERE NOT EXISTS (SELECT 1 FROM storage_namespaces WHERE name = ?1)
  AND EXISTS (SELECT 1 FROM storage_entries WHERE namespace = ?1)"""
# From one namespace to the next by the index, not by a visit to every entry. UNION ends where a name comes again, as it
# does in an index that is damaged and out of order.
NAMESPACES: Final = """
WITH RECURSIVE holding(name) AS (
  SELECT min(namespace) FROM storage_entries
  UNION
  SELECT (SELECT min(namespace) FROM storage_entries WHERE namespace > holding.name) FROM holding
  WHERE holding.name IS NOT NULL)
SELECT name, metadata, created_at FROM storage_namespaces
UNION ALL
SELECT name, NULL, NULL FROM holding
WHERE name IS NOT NULL AND name NOT IN (SELECT name FROM storage_namespaces)
ORDER BY name"""


# What a put can mend: a namespace that is not registered yet, and an expired entry in the way of a unique index.
MENDABLE: Final = (apsw.SQLITE_CONSTRAINT_NOTNULL, apsw.SQLITE_CONSTRAINT_UNIQUE)

_NO_TIME: Final = "a stored time is no number: the file is damaged"


class Lender(Protocol):
    """What primitives need of their surroundings: connections, lent for the length of a with block.

    Leaving the block with a driver's error raises the library's error in its place.
    """

    def reading(self) -> AbstractContextManager[apsw.Connection]:
        """A connection to run one statement with."""
        ...

    def writing(self) -> AbstractContextManager[apsw.Connection]:
        """The writer connection, inside a transaction."""
        ...

    def time(self, now: int) -> int:
        """The time of the transaction, for a call that was given `now`."""
        ...


class Statements(WholeRows):
    """The primitives, on connections that a lender gives."""

    def __init__(self, lender: Lender) -> None:
        self._lender = lender

    def value(self, namespace: str, key: str) -> tuple[str, int | None] | None:
        with self._lender.reading() as connection:
            return connection.execute(VALUE, (namespace, key)).get  # type: ignore[no-any-return]

    def has(self, namespace: str, key: str, now: int) -> bool:
        with self._lender.reading() as connection:
            found = connection.execute(HAS, (namespace, key, now // 1000)).fetchall()
        return is_there(found, now)

    def values(self, namespace: str, keys: Sequence[str]) -> Iterable[tuple[str, str, int | None]]:
        with self._lender.reading() as connection:
            found: list[Any] = connection.execute(VALUES, (_array(keys), namespace)).fetchall()
        return found

    def rows(self, namespace: str, keys: Sequence[str]) -> list[Row]:
        with self._lender.reading() as connection:
            asked, statement = (keys[0], ROW) if len(keys) == 1 else (_array(keys), ROWS)
            found: list[Any] = connection.execute(statement, (asked, namespace)).fetchall()
        return list(map(Row._make, found))

    def keys(
        self, namespace: str, span: KeyRange, now: int, *, limit: int | None, offset: int, reverse: bool
    ) -> list[str]:
        many_pieces = span.pieces is not None and len(span.pieces) > 1
        high = NO_UPPER_END if span.high is None else span.high
        bindings: tuple[Any, ...] = (
            namespace, span.low, high, now // 1000, -1 if limit is None else limit, offset,
        )  # fmt: skip
        if many_pieces:
            bindings = (*bindings, _glob(span.pieces or ()))
        with self._lender.reading() as connection:
            found: list[Any] = connection.execute(KEYS[many_pieces, reverse], bindings).fetchall()
        return texts_of(namespace, [key for (key,) in found])

    def page(self, namespace: str, span: KeyRange, now: int, *, limit: int) -> list[Row]:
        high = NO_UPPER_END if span.high is None else span.high
        with self._lender.reading() as connection:
            found: list[Any] = connection.execute(PAGE, (namespace, span.low, high, now // 1000, limit)).fetchall()
        return list(map(Row._make, found))

    def count(self, namespace: str | None, now: int) -> int:
        with self._lender.reading() as connection:
            return _count(connection, namespace, now)

    def namespaces(self) -> list[NamespaceRow]:
        with self._lender.reading() as connection:
            found: list[Any] = connection.execute(NAMESPACES).fetchall()
        return [_namespace_row(*row) for row in found]

    def namespace(self, name: str) -> NamespaceRow | None:
        with self._lender.reading() as connection:
            row = connection.execute(NAMESPACE, (name,)).fetchone()
        return None if row is None else _namespace_row(*row)

    def find(self, namespace: str, query: Query, now: int) -> list[Row]:
        with self._lender.reading() as connection:
            statement = _statement(connection, namespace, query, now)
            found: list[Any] = connection.execute(statement.find(), statement.bindings.values).fetchall()
        return list(map(Row._make, found))

    def count_matching(self, namespace: str, filter: Filter, now: int) -> int:
        with self._lender.reading() as connection:
            statement = _statement(connection, namespace, Query(filter), now)
            return connection.execute(statement.count(), statement.bindings.values).get  # type: ignore[no-any-return]

    def delete_matching(self, namespace: str, filter: Filter, now: int) -> int:
        with self._lender.writing() as connection:
            statement = _statement(connection, namespace, Query(filter), now)
            removed = connection.execute(statement.delete(), statement.bindings.values).fetchall()
            return _live_of_removed(connection, removed, self._lender.time(now))

    def plan(self, namespace: str, query: Query, now: int, extra: Sequence[IndexRow] = ()) -> PlanRow:
        with self._lender.reading() as connection, one_state(connection):  # others create and drop indexes
            return explain(connection, namespace, query, now, extra)

    def indexes(self) -> list[IndexRow]:
        with self._lender.reading() as connection:
            return list(indexes.all_indexes(connection).values())

    def create_index(self, index: IndexRow, now: int) -> None:
        with self._lender.writing() as connection:
            connection.execute("SAVEPOINT create_index")
            try:
                if index.is_unique:
                    purge_all(connection, now)
                indexes.create(connection, index)
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK TO create_index")
                    connection.execute("RELEASE create_index")
                raise
            connection.execute("RELEASE create_index")

    def drop_index(self, name: str) -> bool:
        with self._lender.writing() as connection:
            return indexes.drop(connection, name)

    def put(self, namespace: str, rows: Sequence[PutRow], now: int) -> list[int]:
        with self._lender.writing() as connection:
            now = self._lender.time(now)
            if len(rows) == 1:
                return [put_one(connection, namespace, rows[0], now)]
            return _put_many(connection, namespace, rows, now)

    def delete(self, namespace: str, keys: Sequence[str], now: int) -> int:
        with self._lender.writing() as connection:
            removed = connection.execute(DELETE, (_array(keys), namespace)).fetchall()
            return _live_of_removed(connection, removed, self._lender.time(now))

    def clear(self, namespace: str | None, now: int) -> int:
        with self._lender.writing() as connection:
            now = self._lender.time(now)
            live = _count(connection, namespace, now)
            if namespace is None:
                greatest = connection.execute(GREATEST_OF_ALL).get
                connection.execute(CLEAR_ALL)
            else:
                greatest = connection.execute(GREATEST, (namespace,)).get
                connection.execute(CLEAR, (namespace,))
            raise_floor_for(connection, greatest, now)
            return live

    def purge(self, now: int, limit: int) -> int:
        with self._lender.writing() as connection:
            now = self._lender.time(now)
            removed: list[Any] = connection.execute(PURGE, (now // 1000, limit, PURGED_BYTES)).fetchall()
            versions: list[int] = [version for (version,) in removed]
            raise_floor_for(connection, max(versions, default=None), now)
            return len(versions)

    def register(self, namespace: str, metadata: str | None, now: int) -> bool:
        with self._lender.writing() as connection:
            before = connection.total_changes()
            connection.execute(REGISTER, (namespace, metadata, now // 1000))
            return connection.total_changes() > before

    def unregister(self, namespace: str) -> None:
        with self._lender.writing() as connection:
            connection.execute(UNREGISTER, (namespace,))


class SQLiteSession(Statements):
    """One open transaction on one connection, which it gives back when it ends."""

    def __init__(self, lender: SessionLender) -> None:
        super().__init__(lender)
        self._session = lender
        self._savepoints = 0

    def commit(self) -> None:
        self._session.commit()

    def rollback(self) -> None:
        self._session.rollback()

    def savepoint(self) -> int:
        with self._session.writing() as connection:
            connection.execute(f"SAVEPOINT point_{self._savepoints + 1}")
        self._savepoints += 1
        return self._savepoints

    def release(self, savepoint: int) -> None:
        with self._session.writing() as connection:
            connection.execute(f"RELEASE point_{savepoint}")
        self._savepoints = savepoint - 1

    def rollback_to(self, savepoint: int) -> None:
        with self._session.writing() as connection:
            connection.execute(f"ROLLBACK TO point_{savepoint}")
            connection.execute(f"RELEASE point_{savepoint}")
        self._savepoints = savepoint - 1


class SessionLender(Lender, Protocol):
    """What a session needs besides: the end of its transaction."""

    def commit(self) -> None:
        """Commit, and give the connection back."""
        ...

    def rollback(self) -> None:
        """Roll back, and give the connection back; does nothing where that has happened already."""
        ...


def _statement(connection: apsw.Connection, namespace: str, query: Query, now: int) -> Statement:
    strategy = choose(connection, namespace, query, indexed_paths(connection, namespace))
    return Statement(namespace, query, now, strategy)


def put_one(connection: apsw.Connection, namespace: str, row: PutRow, now: int) -> int:
    """Write one row inside a transaction; gives its version."""
    key, value, metadata, expires_at = row
    try:
        connection.execute(PUT_IF_SIMPLE, (namespace, key, value, metadata, expires_at, now, now // 1000))
        if connection.changes():
            return now
    except apsw.ConstraintError as error:
        if extended_code(error) not in MENDABLE:
            raise
    return put_otherwise(connection, namespace, row, now)


def put_otherwise(connection: apsw.Connection, namespace: str, row: PutRow, now: int) -> int:
    """The same where `PUT_IF_SIMPLE` cannot do it."""
    key, value, metadata, expires_at = row
    bindings = (namespace, key, value, metadata, expires_at, now, now // 1000)
    is_registered = False
    while True:
        try:
            return connection.execute(PUT, bindings).get  # type: ignore[no-any-return]
        except apsw.ConstraintError as error:
            code = extended_code(error)
            if code == apsw.SQLITE_CONSTRAINT_UNIQUE:
                _clear_the_way(connection, namespace, row, now)
            elif code == apsw.SQLITE_CONSTRAINT_NOTNULL and not is_registered:
                connection.execute(REGISTER, (namespace, None, now // 1000))
                is_registered = True
            else:
                raise


def _clear_the_way(connection: apsw.Connection, namespace: str, row: PutRow, now: int) -> None:
    """Remove what has expired, is still there, and has a value of a unique index that a row would have.

    Raises UniqueIndexError where what has it is alive.
    """
    owners = indexes.owners(connection, namespace, row, now)
    live = [owner for owner in owners if owner.expires_at is None or owner.expires_at > now // 1000]
    if live or not owners:
        raise indexes.refusal(namespace, row[0], live)
    removed = connection.execute(DELETE, (_array([owner.key for owner in owners]), namespace)).fetchall()
    _live_of_removed(connection, removed, now)


def _put_many(connection: apsw.Connection, namespace: str, rows: Sequence[PutRow], now: int) -> list[int]:
    """All or none: in a transaction that goes on after a failure, a savepoint undoes the half that was written."""
    if not rows:
        return []
    now_ms = now // 1000
    connection.execute("SAVEPOINT put_many")
    try:
        connection.execute(REGISTER, (namespace, None, now_ms))
        version = max(now, connection.execute(FLOOR).get + 1)
        before = connection.total_changes()
        bindings = [
            (namespace, key, value, metadata, expires_at, version, now_ms) for key, value, metadata, expires_at in rows
        ]
        try:
            connection.executemany(PUT_UNLESS_AHEAD, bindings)
            is_complete = connection.total_changes() - before == len(rows)
        except apsw.ConstraintError as error:
            if extended_code(error) not in MENDABLE:
                raise
            is_complete = False
        if is_complete:
            versions = [version] * len(rows)
        else:
            connection.execute("ROLLBACK TO put_many")
            versions = [put_one(connection, namespace, row, now) for row in rows]
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK TO put_many")
            connection.execute("RELEASE put_many")
        raise
    connection.execute("RELEASE put_many")
    return versions


def _count(connection: apsw.Connection, namespace: str | None, now: int) -> int:
    if namespace is None:
        return connection.execute(COUNT_ALL, (now // 1000,)).get  # type: ignore[no-any-return]
    return connection.execute(COUNT, (namespace, now // 1000)).get  # type: ignore[no-any-return]


def _live_of_removed(connection: apsw.Connection, removed: list[Any], now: int) -> int:
    """How many of the removed rows were live; their versions raise the floor where they have to."""
    if not removed:
        return 0
    raise_floor_for(connection, max(version for version, _ in removed), now)
    now_ms = now // 1000
    try:
        return sum(1 for _, expires_at in removed if expires_at is None or expires_at > now_ms)
    except TypeError:
        raise StorageCorruptError(_NO_TIME) from None


def is_there(found: list[Any], now: int) -> bool:
    """What the rows of `HAS` say."""
    if not found:
        return False
    expires_at: int | None = found[0][0]
    try:
        return expires_at is None or expires_at > now // 1000
    except TypeError:
        raise StorageCorruptError(_NO_TIME) from None


def _namespace_row(name: object, metadata: object, created_at: object) -> NamespaceRow:
    """A row of a table that is not STRICT, since version 1 has it too."""
    if isinstance(name, str) and isinstance(metadata, str | None) and isinstance(created_at, int | None):
        return NamespaceRow(name, metadata, created_at)
    shown = repr(name) if isinstance(name, str) else "a name that is no text"
    raise StorageCorruptError(f"the registration of {shown} as a namespace is damaged")


def _array(keys: Sequence[str]) -> str:
    return orjson.dumps(keys).decode()


def _glob(pieces: Sequence[str]) -> str:
    """The pieces of a pattern in SQLite's GLOB."""
    return "*".join(map(glob_literal, pieces))
