"""Files of sqlitedict: a table of keys and values, each value a pickle, JSON, or what `encode=` made of either.

Called by `importing`. `CREATE TABLE "unnamed" (key TEXT PRIMARY KEY, value BLOB)` is all there is in such a file, once
for each `tablename=`. The column has the affinity BLOB, so a value has the type that `encode=` gave it: bytes of a
pickle unless said otherwise; a text with `encode=json.dumps`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from mycelia_storage.errors import ConfigError, NotAStorageFileError
from mycelia_storage.foreign import sqlite_files
from mycelia_storage.foreign.contents import too_long, value_of, value_of_json
from mycelia_storage.foreign.found import Found, Item, NotPlainError, Refused, Source, text_of_key
from mycelia_storage.keys import MAX_KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    import apsw

WHAT: Final = "sqlitedict"
COLUMNS: Final = ("key", "value")
DEFAULT_TABLE: Final = "unnamed"

ROWS: Final = "SELECT rowid, typeof(key), {key}, typeof(value), octet_length(value), {value} FROM {table}"


@contextlib.contextmanager
def opened(path: str, table: str | None, limit: int, patience: float) -> Iterator[Source]:
    """The entries of one table; the one called "unnamed", or the only one, where none is named."""
    with sqlite_files.reading(path, WHAT, patience) as connection:
        names = [name for name, kind in sqlite_files.tables_in(connection, path).items() if kind == "table"]
        chosen = _choose(path, table, names)
        sqlite_files.require_table(connection, path, chosen, WHAT, COLUMNS)
        source = Source(_items(connection, path, chosen, limit), sqlite_files.count_of(connection, path, chosen))
        others = [name for name in names if name != chosen]
        if others:
            source.notes.append(f"only the table {chosen!r} is read; others: {', '.join(map(repr, others))}")
        yield source


def _choose(path: str, table: str | None, names: list[str]) -> str:
    if table is not None:
        if table not in names:
            raise ConfigError(f"table: {path} has no table {table!r}, but {', '.join(map(repr, names)) or 'none'}")
        return table
    if not names:
        raise NotAStorageFileError(f"{path}: a database without tables")
    if DEFAULT_TABLE in names:
        return DEFAULT_TABLE
    if len(names) > 1:
        raise ConfigError(f"table: name one of the tables of {path}: {', '.join(map(repr, names))}")
    return names[0]


def _items(connection: apsw.Connection, path: str, table: str, limit: int) -> Iterator[Item]:
    statement = ROWS.format(
        key=sqlite_files.bounded("key", MAX_KEY_BYTES),
        value=sqlite_files.bounded("value", limit),
        table=sqlite_files.quoted(table),
    )
    for rowid, key_type, key_data, kind, size, value in sqlite_files.rows_of(connection, path, statement):
        key = f"row {rowid}"
        try:
            key = _key(key_type, key_data)
            yield Found(key, _value(kind, size, value, limit))
        except NotPlainError as error:
            yield Refused(key, str(error))


def _key(kind: str, key: Any) -> str:
    if kind == "integer":
        return str(key)
    if kind != "text":
        raise NotPlainError(f"the key is of type {kind}, and a key is a text or a whole number")
    if key is None:
        raise NotPlainError(f"the key has more than {MAX_KEY_BYTES:,} bytes of UTF-8")
    return text_of_key(key)


def _value(kind: str, size: int, value: Any, limit: int) -> object:
    if kind in ("text", "blob"):
        if value is None:
            raise NotPlainError(too_long(size, limit))
        return value_of_json(value, limit) if kind == "text" else value_of(value, limit)
    return value  # a number or None, as it stands: encode= has left it alone
