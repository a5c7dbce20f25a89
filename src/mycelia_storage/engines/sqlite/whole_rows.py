"""The primitives for a copy into another engine, in SQL: outlines, tallies, whole rows placed as they are; the floor.

Called through the classes in `session.py`, which inherit them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import apsw
import orjson

from mycelia_storage.engines.engine import Tally
from mycelia_storage.engines.sqlite import indexes
from mycelia_storage.engines.sqlite.failures import extended_code, one_state
from mycelia_storage.entries import damaged
from mycelia_storage.keys import without

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mycelia_storage.engines.engine import NamespaceRow, Newer, Outline, Row
    from mycelia_storage.engines.sqlite.session import Lender
    from mycelia_storage.keys import KeyRange

# octet_length() does not read the text.
_SIZE: Final = "octet_length(value) + ifnull(octet_length(metadata), 0)"
OUTLINE: Final = f"""
SELECT key, version, {_SIZE} FROM storage_entries
WHERE namespace = ?1 AND key >= ?2 AND key < ?3 AND (expires_at IS NULL OR expires_at > ?4)
ORDER BY key LIMIT ?5"""
# The table as it lies in the file: through an index each of a million rows would have to be looked for.
NEWER: Final = f"""
SELECT namespace, key, version, size FROM (
  SELECT namespace, key, version, {_SIZE} AS size FROM storage_entries NOT INDEXED
  WHERE version > ?1 AND (expires_at IS NULL OR expires_at > ?2) LIMIT ?3)
ORDER BY namespace, key"""
# Where these rows were met in another pass.
ROWS_MET: Final = f"""
SELECT namespace, key, version, {_SIZE} FROM storage_entries WHERE id IN (SELECT value FROM json_each(?1))
ORDER BY namespace, key"""
# The index on the keys alone; the few that have expired come from their own.
COUNT_RANGE: Final = "SELECT count(*) FROM storage_entries WHERE namespace = ?1 AND key >= ?2 AND key < ?3"
KEYS_IN_RANGE: Final = """
SELECT key FROM storage_entries WHERE namespace = ?1 AND key >= ?2 AND key < ?3 ORDER BY key"""
EXPIRED_KEYS: Final = """
SELECT key FROM storage_entries INDEXED BY storage_entries_expiry
WHERE expires_at <= ?1 AND namespace = ?2"""
# Sums of whole versions would soon be greater than SQLite's integers. All rows, and then those that have expired, of
# which there are few: looking at each expires_at would take a third longer.
_SUMS: Final = "SELECT count(*), ifnull(sum(version & 0xffffffff), 0)"
_OF_SOME: Final = "namespace IN (SELECT value FROM json_each(?2))"
_SUMS_OF_SOME: Final = f"""
SELECT count(CASE WHEN {_OF_SOME} THEN 1 END), ifnull(sum(CASE WHEN {_OF_SOME} THEN version & 0xffffffff END), 0)"""
_GREATEST: Final = "ifnull(max(version), 0)"
_EACH: Final = "FROM storage_entries NOT INDEXED WHERE ?1 IS NOT NULL"
TALLY_OF_ALL: Final = f"{_SUMS}, {_GREATEST} {_EACH}"
TALLY: Final = f"{_SUMS_OF_SOME}, {_GREATEST} {_EACH}"
# Those that are newer, and their ids: a function is called for these alone, and keeps no more than so many.
MET_FUNCTION: Final = "mycelia_met"
_MET: Final = f"{MET_FUNCTION}(id, ?4) FILTER (WHERE version > ?3 AND (expires_at IS NULL OR expires_at > ?1))"
TALLY_AND_MET_OF_ALL: Final = f"{_SUMS}, {_GREATEST}, {_MET} {_EACH} AND ?2 IS NULL"
TALLY_AND_MET: Final = f"{_SUMS_OF_SOME}, {_GREATEST}, {_MET} {_EACH}"
TALLY_OF_EXPIRED: Final = f"""
{_SUMS} FROM storage_entries INDEXED BY storage_entries_expiry WHERE expires_at <= ?1"""
NO_UPPER_END: Final = b""  # a blob, which is greater than every text

PLACE: Final = """
INSERT INTO storage_entries (namespace, key, version, created_at, updated_at, expires_at, metadata, value)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (namespace, key) DO UPDATE SET
  version = excluded.version, created_at = excluded.created_at, updated_at = excluded.updated_at,
  expires_at = excluded.expires_at, metadata = excluded.metadata, value = excluded.value"""
PLACE_NAMESPACE: Final = "INSERT OR REPLACE INTO storage_namespaces (name, metadata, created_at) VALUES (?, ?, ?)"

EXPIRED: Final = "storage_entries INDEXED BY storage_entries_expiry WHERE expires_at <= ?1"
PURGE_ALL: Final = f"DELETE FROM {EXPIRED} RETURNING version"
FLOOR: Final = "SELECT version FROM storage_version_floor WHERE id = 1"
RAISE_FLOOR: Final = "UPDATE storage_version_floor SET version = ?1 WHERE id = 1 AND version < ?1"


class WholeRows:
    """These primitives, on connections that a lender gives."""

    _lender: Lender

    def outline(self, namespace: str, span: KeyRange, now: int, *, limit: int) -> list[Outline]:
        high = NO_UPPER_END if span.high is None else span.high
        with self._lender.reading() as connection:
            found: list[Any] = connection.execute(OUTLINE, (namespace, span.low, high, now // 1000, limit)).fetchall()
        return found

    def newer(self, version: int, now: int, *, limit: int) -> list[Newer]:
        with self._lender.reading() as connection:
            found: list[Any] = connection.execute(NEWER, (version, now // 1000, limit)).fetchall()
        return found

    def counts(self, namespace: str, spans: Sequence[KeyRange], now: int) -> list[int]:
        with self._lender.reading() as connection, one_state(connection):
            found: list[int] = [
                connection.execute(
                    COUNT_RANGE, (namespace, span.low, NO_UPPER_END if span.high is None else span.high)
                ).get
                for span in spans
            ]
            expired: list[Any] = connection.execute(EXPIRED_KEYS, (now // 1000, namespace)).fetchall()
        return without(found, spans, (key for (key,) in expired))

    def keys_in(self, namespace: str, spans: Sequence[KeyRange], now: int) -> list[str]:
        with self._lender.reading() as connection, one_state(connection):
            keys: list[Any] = []
            for span in spans:
                high = NO_UPPER_END if span.high is None else span.high
                keys += connection.execute(KEYS_IN_RANGE, (namespace, span.low, high)).fetchall()
            expired: list[Any] = connection.execute(EXPIRED_KEYS, (now // 1000, namespace)).fetchall()
        if expired:
            gone = set(expired)
            keys = [row for row in keys if row not in gone]
        return texts_of(namespace, [key for (key,) in keys])

    def tally(self, namespaces: Sequence[str] | None, now: int) -> Tally:
        names = _bound(namespaces)
        with self._lender.reading() as connection, one_state(connection):
            if names is None:
                sums: Any = connection.execute(TALLY_OF_ALL, (now // 1000,)).fetchone()
            else:
                sums = connection.execute(TALLY, (now // 1000, names)).fetchone()
            return _without_expired(connection, names, now, sums)

    def tally_and_newer(
        self, namespaces: Sequence[str] | None, version: int, now: int, *, limit: int
    ) -> tuple[Tally, list[Newer]]:
        names = _bound(namespaces)
        text = TALLY_AND_MET_OF_ALL if names is None else TALLY_AND_MET
        with self._lender.reading() as connection, one_state(connection):
            *sums, met = connection.execute(text, (now // 1000, names, version, limit)).fetchone()  # type: ignore[misc]
            newer: list[Any] = connection.execute(ROWS_MET, (met,)).fetchall()
            return _without_expired(connection, names, now, sums), newer

    def place(self, namespace: str, rows: Sequence[Row], now: int) -> None:
        bindings = [(namespace, *row) for row in rows]
        with self._lender.writing() as connection:
            connection.execute("SAVEPOINT place")
            try:
                try:
                    connection.executemany(PLACE, bindings)
                except apsw.ConstraintError as error:
                    if extended_code(error) != apsw.SQLITE_CONSTRAINT_UNIQUE:
                        raise
                    connection.execute("ROLLBACK TO place")
                    _place_slowly(connection, namespace, rows, self._lender.time(now))
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK TO place")
                    connection.execute("RELEASE place")
                raise
            connection.execute("RELEASE place")

    def place_namespace(self, row: NamespaceRow) -> None:
        with self._lender.writing() as connection:
            connection.execute(PLACE_NAMESPACE, row)

    def raise_floor(self, version: int) -> None:
        with self._lender.writing() as connection:
            connection.execute(RAISE_FLOOR, (version,))


def create_functions(connection: apsw.Connection) -> None:
    """What SQL cannot say: that it is enough. For statements only, never for a schema."""
    connection.create_aggregate_function(MET_FUNCTION, _Met, 2, flags=apsw.SQLITE_DIRECTONLY)


class _Met:
    """The first of the numbers that are met, as JSON: no more than may be held in memory."""

    def __init__(self) -> None:
        self._numbers: list[int] = []

    def step(self, *values: Any) -> None:
        number, limit = values
        if len(self._numbers) < limit:
            self._numbers.append(number)

    def final(self) -> str:
        return orjson.dumps(self._numbers).decode()


def _bound(namespaces: Sequence[str] | None) -> str | None:
    return None if namespaces is None else orjson.dumps(list(namespaces)).decode()


def _without_expired(connection: apsw.Connection, names: str | None, now: int, sums: Sequence[Any]) -> Tally:
    """The sums over all rows, less those that have expired."""
    if names is None:
        expired: Any = connection.execute(TALLY_OF_EXPIRED, (now // 1000,)).fetchone()
    else:
        expired = connection.execute(f"{TALLY_OF_EXPIRED} AND {_OF_SOME}", (now // 1000, names)).fetchone()
    floor: Any = connection.execute(FLOOR).get
    return Tally(sums[0] - expired[0], sums[1] - expired[1], sums[2], floor)


def texts_of(namespace: str, keys: list[str]) -> list[str]:
    """The same. Raises StorageCorruptError where one of them is no text."""
    try:
        "".join(keys)  # the quickest way to see that each is a str
    except TypeError:
        raise damaged(namespace, None) from None
    return keys


def _place_slowly(connection: apsw.Connection, namespace: str, rows: Sequence[Row], now: int) -> None:
    """Without what has expired, and row by row, so that it is known which one a unique index refuses."""
    purge_all(connection, now)
    for row in rows:
        try:
            connection.execute(PLACE, (namespace, *row))
        except apsw.ConstraintError as error:
            if extended_code(error) != apsw.SQLITE_CONSTRAINT_UNIQUE:
                raise
            put = (row.key, row.value, row.metadata, row.expires_at)
            owners = indexes.owners(connection, namespace, put, now)
            raise indexes.refusal(namespace, row.key, owners) from error


def purge_all(connection: apsw.Connection, now: int) -> None:
    """Remove what has expired, all of it."""
    versions: list[Any] = [row[0] for row in connection.execute(PURGE_ALL, (now // 1000,)).fetchall()]
    raise_floor_for(connection, max(versions, default=None), now)


def raise_floor_for(connection: apsw.Connection, version: int | None, now: int) -> None:
    """After a version was removed: the floor has to keep one that lies ahead of the clock."""
    if version is not None and version >= now:
        connection.execute(RAISE_FLOOR, (version,))
