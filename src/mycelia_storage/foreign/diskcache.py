"""Directories of diskcache: a database `cache.db` with a table of keys, and a file beside it for each large value.

Called by `importing`. `Cache`, `Index` and `Deque` make one such directory; `FanoutCache` (and Django's cache) makes
one with a number for each shard, and more below `cache`, `deque` and `index`.

A row has a mode: 1, the value as SQLite keeps it; 2, bytes in a file; 3, UTF-8 in a file; 4, a pickle, in the row or in
a file. With `JSONDisk` keys and values are the bytes of compressed JSON. The names of files stand in rows, so anybody
could have written them: each is opened from the directory down, component by component, and no link is followed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
import zlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mycelia_storage.arguments import MAX_TIME_MS
from mycelia_storage.engines.sqlite.telling import failing_as
from mycelia_storage.errors import ConfigError, NotAStorageFileError
from mycelia_storage.foreign import sqlite_files
from mycelia_storage.foreign.contents import compressed_json, too_long
from mycelia_storage.foreign.found import Found, Item, NotPlainError, Refused, Source, key_of, shown_key, text_of_key
from mycelia_storage.foreign.pickles import read_pickle
from mycelia_storage.keys import MAX_KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    import apsw

WHAT: Final = "diskcache"
DATABASE: Final = "cache.db"
TABLE: Final = "Cache"
COLUMNS: Final = ("rowid", "key", "raw", "expire_time", "tag", "mode", "filename", "value")

ROWS: Final = (
    "SELECT rowid, typeof(key), {key}, raw, typeof(expire_time), expire_time, typeof(tag), {tag}, mode, {filename},"
    " typeof(value), octet_length(value), {value} FROM Cache ORDER BY rowid"
)
TWIN: Final = "SELECT 1 FROM Cache WHERE raw = 1 AND key IN ({marks}) LIMIT 1"
SAME: Final = "SELECT 1 FROM Cache WHERE raw = ? AND key = ? LIMIT 1"

_RAW: Final = 1
_BINARY: Final = 2
_TEXT: Final = 3
_PICKLE: Final = 4

_SHARD: Final = re.compile(r"\d{3}")
_SEPARATORS: Final = re.compile(r"[\\/]")
_LONGEST_NAME: Final = 4096
# Keys may be bytes of compressed JSON, or a pickle.
_LONGEST_KEY: Final = 16 * MAX_KEY_BYTES
# Without waiting, where it is a pipe.
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_DIRECTORY: Final = _OPEN_FILE | os.O_DIRECTORY


class _Row(NamedTuple):
    rowid: int
    key_type: str
    key: Any
    raw: Any
    expire_type: str
    expire_time: Any
    tag_type: str
    tag: Any
    mode: Any
    filename: Any
    value_type: str
    size: Any
    value: Any


@contextlib.contextmanager
def opened(path: str, table: str | None, limit: int, patience: float) -> Iterator[Source]:
    """The entries of a cache, or of every shard of one."""
    if table is not None:
        raise ConfigError("table: a cache of diskcache has no tables to choose from")
    directory = os.path.dirname(path) if os.path.basename(path) == DATABASE else path
    with contextlib.ExitStack() as stack:
        source = Source(iter(()), 0)
        caches: list[_Cache] = []
        for shard in _shards(directory, source.notes):
            database = os.path.join(shard, DATABASE)
            with failing_as(shard):
                descriptor = os.open(shard, _OPEN_DIRECTORY)
            stack.callback(os.close, descriptor)
            connection = stack.enter_context(sqlite_files.reading(database, WHAT, patience))
            sqlite_files.require_table(connection, database, TABLE, WHAT, COLUMNS, exactly=False)
            source.total = (source.total or 0) + sqlite_files.count_of(connection, database, TABLE)
            caches.append(_Cache(connection, database, descriptor, limit))
        source.items = (item for index, cache in enumerate(caches) for item in cache.items(caches[:index], caches))
        yield source


def _shards(directory: str, notes: list[str]) -> list[str]:
    """The directories that have a database each: this one, or those in it."""
    with failing_as(directory):
        if not os.path.isdir(directory):
            raise ConfigError(f"path: there is no directory {directory}")
        names = sorted(os.listdir(directory))
    if DATABASE in names:
        return [directory]
    notes.extend(
        f"{os.path.join(directory, name)} has caches of its own, which are not read: name them one by one"
        for name in ("cache", "deque", "index")
        if name in names
    )
    shards = [os.path.join(directory, name) for name in names if _SHARD.fullmatch(name)]
    if not shards:
        raise NotAStorageFileError(f"{directory}: a directory without {DATABASE}, which {WHAT} makes")
    return shards


class _Cache:
    """One database, and the directory of its files."""

    def __init__(self, connection: apsw.Connection, path: str, directory: int, limit: int) -> None:
        self._connection = connection
        self._path = path
        self._directory = directory
        self._limit = limit

    def items(self, before: list[_Cache], caches: list[_Cache]) -> Iterator[Item]:
        """The entries, held against the shards that were read before this one, and against all of them."""
        statement = ROWS.format(
            key=sqlite_files.bounded("key", _LONGEST_KEY),
            tag=sqlite_files.bounded("tag", self._limit),
            filename=sqlite_files.bounded("filename", _LONGEST_NAME),
            value=sqlite_files.bounded("value", self._limit),
        )
        for columns in sqlite_files.rows_of(self._connection, self._path, statement):
            row = _Row(*columns)
            key = f"row {row.rowid}"
            try:
                found = self._key(row)
                key = shown_key(found)
                text = key_of(found)
                if type(found) is int:
                    _require_no_twin(found, caches)
                _require_first(row, before)
                yield Found(text, self._value(row), None, _metadata(row), _expires_at(row))
            except NotPlainError as error:
                yield Refused(key, str(error))

    def _key(self, row: _Row) -> object:
        if row.key_type == "text" and row.key is not None:
            return text_of_key(row.key)
        if row.key_type in ("integer", "real"):
            return row.key
        if not isinstance(row.key, bytes):
            raise NotPlainError("the key is too long, or none")
        if row.raw == 0:
            return read_pickle(row.key, _LONGEST_KEY)
        try:
            return compressed_json(row.key, _LONGEST_KEY)
        except NotPlainError:
            return row.key

    def has(self, statement: str, bindings: tuple[object, ...]) -> bool:
        """Whether a statement finds anything here."""
        with sqlite_files.failing(self._path):
            return self._connection.execute(statement, bindings).get is not None

    def _value(self, row: _Row) -> object:
        if row.mode == _RAW:
            return self._raw_value(row)
        if row.mode == _BINARY:
            return compressed_json(self._file(row), self._limit)
        if row.mode == _TEXT:
            return sqlite_files.text(self._file(row))
        if row.mode == _PICKLE:
            data = self._file(row) if row.value_type == "null" else self._whole(row)
            if not isinstance(data, bytes):
                raise NotPlainError("no pickle, where the row says that there is one")
            return read_pickle(data, self._limit)
        raise NotPlainError("a mode that diskcache does not have")

    def _raw_value(self, row: _Row) -> object:
        if row.value_type == "null":
            raise NotPlainError("NaN (or nothing) is not JSON: use None")  # SQLite keeps NaN as NULL
        value = self._whole(row)
        if row.value_type == "text":
            return sqlite_files.text(value)
        if row.value_type == "blob" and isinstance(value, bytes):
            return compressed_json(value, self._limit)
        return value

    def _whole(self, row: _Row) -> object:
        if row.value is None:
            raise NotPlainError(too_long(row.size, self._limit))
        return row.value

    def _file(self, row: _Row) -> bytes:
        """What the file of a value holds. It is opened from the directory down, without following any link."""
        parts = _SEPARATORS.split(sqlite_files.text(row.filename))
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise NotPlainError("its file lies outside of the cache, and is not read")
        directory = os.dup(self._directory)
        try:
            for part in parts[:-1]:
                below = os.open(part, _OPEN_DIRECTORY, dir_fd=directory)
                os.close(directory)
                directory = below
            file = os.open(parts[-1], _OPEN_FILE, dir_fd=directory)
        except FileNotFoundError:
            raise NotPlainError("its file is missing") from None
        except OSError as error:
            raise NotPlainError(f"its file cannot be opened: {error.strerror}") from None
        finally:
            os.close(directory)
        try:
            about = os.fstat(file)
            if not stat.S_ISREG(about.st_mode):
                raise NotPlainError("its file is no regular one")
            if about.st_size > self._limit:
                raise NotPlainError(too_long(about.st_size, self._limit))
            with failing_as(self._path), open(file, "rb", closefd=False) as stream:
                return stream.read(self._limit)
        finally:
            os.close(file)


def _require_no_twin(key: int, caches: list[_Cache]) -> None:
    """The number 1 and the text "1" are two keys there, often in two shards, and would be one here: the text has it."""
    text = str(key)
    plain = json.dumps(text).encode()
    # As JSONDisk may have written it, at whatever level.
    twins = (text, *{zlib.compress(plain, level) for level in range(10)})
    statement = TWIN.format(marks=", ".join("?" * len(twins)))
    if any(cache.has(statement, twins) for cache in caches):
        raise NotPlainError("the key is a number, and there is an entry whose key is the same number as a text")


def _require_first(row: _Row, before: list[_Cache]) -> None:
    """Opened with more or fewer shards than before, a cache may have a key in two: which is old, nobody knows."""
    key = row.key.decode() if row.key_type == "text" else row.key
    if any(cache.has(SAME, (row.raw, key)) for cache in before):
        raise NotPlainError("a shard before this one has an entry with the same key")


def _metadata(row: _Row) -> dict[str, object] | None:
    if row.tag_type == "null":
        return None
    if row.tag_type == "blob" or row.tag is None:
        raise NotPlainError("its tag is bytes, or too long")
    return {"tag": sqlite_files.text(row.tag) if row.tag_type == "text" else row.tag}


def _expires_at(row: _Row) -> int | None:
    if row.expire_type == "null" or row.expire_time == math.inf:
        return None
    if row.expire_type not in ("real", "integer") or not abs(row.expire_time) <= MAX_TIME_MS / 1000:
        raise NotPlainError("the time when it expires is none, or beyond the year 9999")
    return math.ceil(float(row.expire_time) * 1000)
