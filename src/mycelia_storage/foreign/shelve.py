"""Files of shelve: a dbm file of one kind or another, each value a pickle.

Called by `importing`. Which kind it is depends on the Python that made the file: `dbm.sqlite3` since 3.13, else what
was built in of `dbm.gnu`, `dbm.ndbm` and, last, `dbm.dumb`. They are told apart by what lies there, as `dbm.whichdb`
does, and read here, whatever this Python has: `dbm_files` knows all but SQLite.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from mycelia_storage.engines.sqlite.telling import failing_as
from mycelia_storage.errors import ConfigError, NotAStorageFileError
from mycelia_storage.foreign import dbm_files, sqlite_files
from mycelia_storage.foreign.contents import too_long
from mycelia_storage.foreign.found import Found, Item, NotPlainError, Refused, Source, text_of_key
from mycelia_storage.foreign.pickles import read_pickle
from mycelia_storage.foreign.plain_files import steady
from mycelia_storage.keys import MAX_KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mycelia_storage.foreign.dbm_files import Pair
    from mycelia_storage.foreign.plain_files import PlainFile

WHAT: Final = "shelve"
TABLE: Final = "Dict"
COLUMNS: Final = ("key", "value")

ROWS: Final = "SELECT rowid, octet_length(key), {key}, octet_length(value), {value} FROM Dict"

# What an ending that a kind of dbm adds says of the name that shelve was given.
_ENDINGS: Final = (".dat", ".dir", ".bak", ".db", ".pag")


@contextlib.contextmanager
def opened(path: str, table: str | None, limit: int, patience: float) -> Iterator[Source]:
    """The entries of a shelf, by the name that `shelve.open` was given, or by that of one of its files."""
    if table is not None:
        raise ConfigError("table: a file of shelve has no tables to choose from")
    with contextlib.ExitStack() as stack:
        pairs, files = _open(path, limit, patience, stack)
        yield Source(steady(_items(pairs, limit), *files))


def _open(
    path: str, limit: int, patience: float, stack: contextlib.ExitStack
) -> tuple[Iterator[Pair], list[PlainFile]]:
    base = next((path.removesuffix(end) for end in _ENDINGS if path.endswith(end)), path)
    for file, is_dumb in _candidates(path, base):
        if is_dumb:
            return dbm_files.read_dumb(file, limit, stack)
        found = _open_one(os.path.realpath(file), limit, patience, stack)
        if found is not None:
            return found
    if any(map(os.path.exists, (path, f"{base}.db", f"{base}.pag", f"{base}.dat"))):
        raise NotAStorageFileError(
            f"{path}: no dbm file of a kind that is known: read it with the Python that wrote it, "
            "and write its entries as JSON"
        )
    raise ConfigError(f"path: there is no file {path}, nor one with an ending that dbm adds")


def _candidates(*names: str) -> Iterator[tuple[str, bool]]:
    """Files that may be the shelf, those that `dbm.whichdb` would take first, and whether as one of dbm.dumb."""
    for name in dict.fromkeys(names):
        # 1. dbm.ndbm: .pag and .dir, or with Berkeley DB one file that ends in .db. A database of SQLite is another's,
        #    a store of ours for instance: no dbm adds an ending to the name of one.
        for file in (f"{name}.pag", f"{name}.db"):
            if os.path.isfile(file) and not _start(file).startswith(sqlite_files.MAGIC):
                yield file, False
        # 2. dbm.dumb: .dat and .dir. Others have files of these names, too: an index is empty, or begins with a text.
        has_both = os.path.isfile(f"{name}.dat") and os.path.isfile(f"{name}.dir")
        if has_both and _start(f"{name}.dir")[:1] in (b"", b"'", b'"'):
            yield name, True
        # 3. dbm.gnu, dbm.sqlite3: the name.
        if os.path.isfile(name):
            yield name, False
        # 4. dbm.dumb with an index that is damaged.
        if has_both:
            yield name, True
    # 5. dbm.sqlite3, where the program itself has given the ending that is left out here.
    for name in dict.fromkeys(names):
        if os.path.isfile(f"{name}.db"):
            yield f"{name}.db", False


def _start(path: str) -> bytes:
    with failing_as(path):
        return dbm_files.start_of(path)


def _open_one(
    path: str, limit: int, patience: float, stack: contextlib.ExitStack
) -> tuple[Iterator[Pair], list[PlainFile]] | None:
    start = _start(path)
    if start.startswith(sqlite_files.MAGIC):
        connection = stack.enter_context(sqlite_files.reading(path, WHAT, patience))
        sqlite_files.require_table(connection, path, TABLE, WHAT, COLUMNS)
        columns = {"key": sqlite_files.bounded("key", MAX_KEY_BYTES), "value": sqlite_files.bounded("value", limit)}
        return _rows(sqlite_files.rows_of(connection, path, ROWS.format(**columns))), []
    read = dbm_files.reader_for(start)
    if read is None:
        return None
    pairs, file = read(path, limit, stack)
    return pairs, [file]


def _rows(rows: Iterator[tuple[int, int | None, object, int | None, object]]) -> Iterator[Pair]:
    for rowid, key_size, key, size, value in rows:
        yield (
            f"row {rowid}",
            key if isinstance(key, bytes) else None,
            value if isinstance(value, bytes) else None,
            key_size or 0,
            size or 0,
        )


def _items(pairs: Iterator[Pair], limit: int) -> Iterator[Item]:
    for place, key, value, key_size, size in pairs:
        shown = place
        try:
            if key is None:
                long = f"the key has {key_size:,} bytes, and {MAX_KEY_BYTES:,} are the limit of a key"
                raise NotPlainError(long if key_size > MAX_KEY_BYTES else "the key is no bytes")
            shown = text_of_key(key)
            if value is None:
                raise NotPlainError(too_long(size, limit) if size > limit else "no pickle")
            yield Found(shown, read_pickle(value, limit))
        except NotPlainError as error:
            yield Refused(shown, str(error))
