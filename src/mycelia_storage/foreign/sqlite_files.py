"""Databases of other libraries: opened without changing anything, looked at, and read as one state.

Called by the files of the formats that are kept in SQLite: sqlitedict, diskcache, shelve.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, Any, Final

import apsw

from mycelia_storage.engines.sqlite.connection import open_to_read, read_file
from mycelia_storage.engines.sqlite.failures import to_storage_error
from mycelia_storage.engines.sqlite.places import BESIDE
from mycelia_storage.engines.sqlite.telling import failing_as
from mycelia_storage.errors import (
    ConfigError,
    NotAStorageFileError,
    StorageCorruptError,
    StorageError,
    StorageReadOnlyError,
)
from mycelia_storage.foreign.found import NotPlainError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC: Final = b"SQLite format 3\0"

ENCODING: Final = "PRAGMA encoding"
TABLES: Final = "SELECT name, type, sql FROM sqlite_schema WHERE type IN ('table', 'view') ORDER BY rowid"
COLUMNS: Final = "SELECT name, hidden FROM pragma_table_xinfo(?)"
COUNT: Final = "SELECT count(*) FROM {table}"

# Texts as bytes, so that one which is no UTF-8 is one entry's problem; and nothing that is longer than the limit.
BOUNDED: Final = (
    "CASE WHEN octet_length({column}) > {limit} THEN NULL"
    " WHEN typeof({column}) = 'text' THEN CAST({column} AS BLOB) ELSE {column} END"
)


@contextlib.contextmanager
def failing(path: str) -> Iterator[None]:
    """As `failing_as`, for statements on tables of others: where one makes no sense there, the tables are to blame."""
    try:
        with failing_as(path):
            yield
    except StorageError as error:
        if isinstance(error.__cause__, apsw.SQLError):
            raise NotAStorageFileError(f"{path}: its tables are not what they look like") from error.__cause__
        raise


def require_regular(path: str, what: str) -> None:
    """Raise ConfigError unless a resolved path leads to a file, and no link or pipe stands in for one beside it."""
    with failing_as(path):
        if not os.path.lexists(path):
            raise ConfigError(f"path: there is no file {path}")
        for end in ("", *BESIDE):
            with contextlib.suppress(FileNotFoundError):
                mode = os.lstat(path + end).st_mode
                if not stat.S_ISREG(mode):
                    kind = "a link" if stat.S_ISLNK(mode) else "a directory" if stat.S_ISDIR(mode) else "no file"
                    raise ConfigError(f"path: {path + end} is {kind}, where {what} has a file")


@contextlib.contextmanager
def reading(path: str, what: str, patience: float) -> Iterator[apsw.Connection]:
    """A read transaction on somebody else's database; `what` is made by what it should be, for messages."""
    require_regular(path, what)
    with failing(path):
        if not read_file(path, 0, len(MAGIC)).startswith(MAGIC):
            raise NotAStorageFileError(f"{path}: no SQLite database, as {what} makes")
        connection = open_to_read(path, patience)
    try:
        with failing(path):
            try:
                connection.execute("BEGIN")
                encoding = connection.execute(ENCODING).get
            except (apsw.ReadOnlyError, apsw.CantOpenError) as error:
                raise _interrupted(path, error) from error
            if encoding != "UTF-8":
                raise NotAStorageFileError(f"{path}: a database in {encoding}, and {what} makes them in UTF-8")
        yield connection
    finally:
        if connection.in_transaction:
            with contextlib.suppress(apsw.Error):
                connection.execute("ROLLBACK")
        connection.close()


def _interrupted(path: str, error: apsw.Error) -> Exception:
    for end in BESIDE[:2]:
        if os.path.lexists(path + end):
            return StorageReadOnlyError(
                f"{path}: {os.path.basename(path + end)} beside it holds what a program wrote that was killed, and"
                " cannot be taken in by reading alone: open the file once with the library that wrote it"
            )
    return to_storage_error(error, path)


def tables_in(connection: apsw.Connection, path: str) -> dict[str, str]:
    """The plain tables, and None for what only looks like one, by name."""
    with failing(path):
        found = connection.execute(TABLES).fetchall()
    tables: dict[str, str] = {}
    for name, kind, sql in found:
        if isinstance(name, str) and not name.startswith("sqlite_"):
            is_virtual = isinstance(sql, str) and sql.lstrip()[:14].upper() == "CREATE VIRTUAL"
            tables[name] = "virtual table" if is_virtual else str(kind)
    return tables


def require_table(
    connection: apsw.Connection, path: str, table: str, what: str, columns: tuple[str, ...], *, exactly: bool = True
) -> None:
    """Raise NotAStorageFileError unless there is a plain table with these columns, and with `exactly` no others."""
    kind = tables_in(connection, path).get(table)
    if kind != "table":
        there = "there is no table" if kind is None else f"a {kind} is called"
        raise NotAStorageFileError(f"{path}: {there} {table!r}, where {what} keeps a table")
    with failing(path):
        found = {str(name): bool(hidden) for name, hidden in connection.execute(COLUMNS, (table,))}
    # A column that is computed runs what the file says.
    if any(found.values()) or not (set(columns) == set(found) if exactly else set(columns) <= set(found)):
        raise NotAStorageFileError(f"{path}: the table {table!r} has other columns than {what} makes")


def quoted(name: str) -> str:
    """A name as SQL spells it."""
    return '"' + name.replace('"', '""') + '"'


def bounded(column: str, limit: int) -> str:
    """SQL for a column whose value is left out where it is longer than the limit."""
    return BOUNDED.format(column=column, limit=limit)


def count_of(connection: apsw.Connection, path: str, table: str) -> int:
    """How many rows a table has."""
    with failing(path):
        count: int = connection.execute(COUNT.format(table=quoted(table))).get
    return count


def rows_of(connection: apsw.Connection, path: str, statement: str, bindings: tuple[Any, ...] = ()) -> Iterator[Any]:
    """The rows of a statement whose first column is the rowid, in the order of these.

    Raises StorageCorruptError for rows out of order: a damaged file could be read for ever.
    """
    with failing(path):
        rows = connection.execute(statement, bindings)
    before = None
    while True:
        with failing(path):
            row = next(rows, None)
        if row is None:
            return
        if type(row[0]) is not int or (before is not None and row[0] <= before):
            raise StorageCorruptError(f"{path}: its rows are out of order: the file is damaged")
        before = row[0]
        yield row


def text(data: object) -> str:
    """A text that was read as bytes. Raises NotPlainError."""
    if not isinstance(data, bytes):
        raise NotPlainError("a part of the row is no text")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise NotPlainError("a text in the row is no UTF-8") from None
