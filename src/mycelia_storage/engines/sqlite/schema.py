"""The layout of a store's file, how a file is recognised, and how it goes from one version to the next.

Called by the engine when it opens a file and by `migrate`.

Version 1 is the layout that the Mycelia Kernel's JavaScript adapter plans and writes. Version 2 is this library's:

- no AUTOINCREMENT, and none of version 1's four indexes: UNIQUE(namespace, key) serves the lookups, and each further
  index costs every write;
- `version`, NOT NULL without a default, so that a writer who does not know it fails loudly instead of resetting it;
- `expires_at`, with an index over those entries only that have one;
- the value stands last, so that reading the columns before it never walks through a long value's pages;
- `storage_version_floor`: one row, the greatest version that was removed while it lay ahead of the clock;
- `application_id`, "MySt" in ASCII.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import tempfile
import time
from typing import TYPE_CHECKING, Final, TypeAlias

import apsw

from mycelia_storage.checking import MAX_VERSION, problem_of_entry, problem_of_namespace
from mycelia_storage.engines.sqlite import pages
from mycelia_storage.engines.sqlite.connection import copy_file, open_copy, open_to_look, read_file, size_of
from mycelia_storage.engines.sqlite.failures import one_state
from mycelia_storage.engines.sqlite.indexes import PREFIX, all_indexes, definition
from mycelia_storage.errors import (
    NotAStorageFileError,
    SchemaVersionError,
    StorageBusyError,
    StorageCorruptError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mycelia_storage.engines.engine import IndexRow
    from mycelia_storage.options import Secret

NEWEST: Final = 2
APPLICATION_ID: Final = 0x4D795374

_SCHEMA_VERSION_TABLE: Final = "CREATE TABLE schema_version (version INTEGER PRIMARY KEY, applied_at INTEGER NOT NULL)"
_NAMESPACES_TABLE: Final = (
    "CREATE TABLE storage_namespaces (name TEXT PRIMARY KEY, metadata TEXT, created_at INTEGER NOT NULL)"
)

_ENTRIES_1: Final = """CREATE TABLE storage_entries (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  namespace TEXT NOT NULL DEFAULT 'default',
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  metadata TEXT,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  UNIQUE(namespace, key)
)"""
_INDEXES_1: Final = (
    "CREATE INDEX idx_storage_namespace_key ON storage_entries(namespace, key)",
    "CREATE INDEX idx_storage_namespace ON storage_entries(namespace)",
    "CREATE INDEX idx_storage_created_at ON storage_entries(created_at)",
    "CREATE INDEX idx_storage_updated_at ON storage_entries(updated_at)",
)

_ENTRIES_2: Final = """CREATE TABLE storage_entries (
  id INTEGER PRIMARY KEY,
  namespace TEXT NOT NULL,
  key TEXT NOT NULL,
  version INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  expires_at INTEGER,
  metadata TEXT,
  value TEXT NOT NULL,
  UNIQUE(namespace, key)
) STRICT"""
_EXPIRY_2: Final = (
    "CREATE INDEX storage_entries_expiry ON storage_entries(expires_at, namespace) WHERE expires_at IS NOT NULL"
)
_FLOOR_2: Final = (
    "CREATE TABLE storage_version_floor (id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL) STRICT"
)

_INDEXES_2: Final = """CREATE TABLE storage_indexes (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  namespace TEXT,
  fields TEXT NOT NULL,
  is_unique INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  analyzed_entries INTEGER NOT NULL
) STRICT"""

# What a file of each version holds, as sqlite_schema has it but for white space and quotes.
_EXPECTED: Final[dict[int, tuple[str, ...]]] = {
    1: (_ENTRIES_1, *_INDEXES_1, _NAMESPACES_TABLE, _SCHEMA_VERSION_TABLE),
    2: (_ENTRIES_2, _EXPIRY_2, _FLOOR_2, _INDEXES_2, _NAMESPACES_TABLE, _SCHEMA_VERSION_TABLE),
}
# What SQLite itself puts into a file of ours, and the plain tables of the replication tool Litestream: names and types
# of columns, and no expression that a check of the file, or a write, would run.
_OF_SQLITE: Final = (
    "CREATE TABLE sqlite_stat1(tbl,idx,stat)",
    "CREATE TABLE sqlite_stat4(tbl,idx,neq,nlt,ndlt,sample)",
    "CREATE TABLE sqlite_sequence(name,seq)",
)
_OF_LITESTREAM: Final = re.compile(r'CREATE TABLE "?_litestream_\w+"? ?\([\w\s,]*\)', re.ASCII | re.IGNORECASE)

_CREATE_1: Final = (_SCHEMA_VERSION_TABLE, _NAMESPACES_TABLE, _ENTRIES_1, *_INDEXES_1)
_CREATE_2: Final = (
    _SCHEMA_VERSION_TABLE,
    _NAMESPACES_TABLE,
    _ENTRIES_2,
    _EXPIRY_2,
    _FLOOR_2,
    _INDEXES_2,
    "INSERT INTO storage_version_floor (id, version) VALUES (1, 0)",
    "INSERT INTO storage_namespaces (name, created_at) VALUES ('default', ?1)",
    "INSERT INTO schema_version (version, applied_at) VALUES (2, ?1)",
    f"PRAGMA application_id={APPLICATION_ID}",
)

# A version is µs where a time is ms, and positive whatever the clock of the old writer said.
_UP_TO_2: Final = (
    "ALTER TABLE storage_entries RENAME TO storage_entries_before",
    _ENTRIES_2,
    """INSERT INTO storage_entries (id, namespace, key, version, created_at, updated_at, metadata, value)
       SELECT id, namespace, key, max(1, updated_at * 1000), created_at, updated_at, metadata, value
       FROM storage_entries_before ORDER BY id""",
    "DROP TABLE storage_entries_before",
    _EXPIRY_2,
    _FLOOR_2,
    _INDEXES_2,
    "INSERT INTO storage_version_floor (id, version) VALUES (1, 0)",
    """INSERT OR IGNORE INTO storage_namespaces (name, created_at)
       SELECT namespace, min(created_at) FROM storage_entries GROUP BY namespace""",
    "INSERT OR IGNORE INTO storage_namespaces (name, created_at) VALUES ('default', ?1)",
    "INSERT INTO schema_version (version, applied_at) VALUES (2, ?1)",
    f"PRAGMA application_id={APPLICATION_ID}",
)
_DOWN_TO_1: Final = (
    "DELETE FROM storage_entries WHERE expires_at <= ?1",
    "ALTER TABLE storage_entries RENAME TO storage_entries_before",
    _ENTRIES_1,
    """INSERT INTO storage_entries (id, namespace, key, value, metadata, created_at, updated_at)
       SELECT id, namespace, key, value, metadata, created_at, updated_at
       FROM storage_entries_before ORDER BY id""",
    "DROP TABLE storage_entries_before",
    "DROP TABLE storage_version_floor",
    "DELETE FROM storage_namespaces WHERE name = ''",
    "DROP TABLE storage_indexes",
    *_INDEXES_1,
    "DELETE FROM schema_version WHERE version > 1",
    "INSERT OR IGNORE INTO schema_version (version, applied_at) VALUES (1, ?1)",
    "PRAGMA application_id=0",
)

_SCHEMA: Final = "SELECT type, name, tbl_name, sql FROM sqlite_schema"
_FLOOR: Final = "SELECT version FROM storage_version_floor"
# SQLite reads them with the schema, and says nothing where that fails; an open transaction is gone then.
_STATISTICS: Final = ("SELECT * FROM sqlite_stat1", "SELECT * FROM sqlite_stat4")
_VERSION: Final = "SELECT max(version) FROM schema_version"
_ROWS: Final = "SELECT namespace, key, value, metadata, created_at, updated_at FROM storage_entries ORDER BY id"
_NAMESPACES: Final = "SELECT name, metadata, created_at FROM storage_namespaces"
_ORIGIN: Final = "SELECT name FROM storage_namespaces WHERE name = ''"
_EXPIRING: Final = "SELECT namespace, key FROM storage_entries WHERE expires_at > ? ORDER BY namespace, key LIMIT 4"

Folded: TypeAlias = tuple[str, ...]
# Literals and quoted names whole, since white space and case count in them.
_WORDS: Final = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\w+|[^\w\s]""")
_QUOTED_WORD: Final = re.compile(r'"\w+"')
# So many seconds a file may look like no database, because another process creates or closes it.
_LONGEST_MOVE: Final = 1.0
# So often a first page is read that does not fit its checksum: it may be written just now.
_LOOKS_AT_START: Final = 3
_SHOWN_PROBLEMS: Final = 20
_SHOWN_EXPIRING: Final = 3


def recognise(path: str, patience: float, secret: Secret | None = None) -> int:
    """The version of the file at `path` by its header and tables, 0 for one that is new. Changes nothing.

    Raises NotAStorageFileError for what is no database or somebody else's, ConfigError for an encrypted file without a
    key, StorageCorruptError where the first page does not fit its checksum, StorageBusyError where others kept it from
    being read for `patience` seconds, and the driver's errors where it could not be read. A version is only read here
    where the header does not say that the file is ours, or cannot be read without the key; then it is `NEWEST`, and
    `verify` looks closer.
    """
    started = time.monotonic()
    before: tuple[int, ...] = ()
    while True:
        try:
            return _recognise_once(path, secret)
        except apsw.NotADBError:
            raise NotAStorageFileError(f"{path}: the file is no SQLite database") from None
        except (apsw.BusyError, apsw.LockedError) as error:
            # Another process reads its -wal for the first time, or is the last one to close it.
            if time.monotonic() >= started + patience:
                raise StorageBusyError(f"{path}: another process kept the file locked for {patience:g} s") from error
        except apsw.Error as error:
            # Somebody may be creating, writing back or closing it now, and the look fell between two of its writes.
            # So what is found is only believed when it is found again, and nothing has changed meanwhile.
            now = _sizes_and_time(path)
            is_moving = (
                now != before or size_of(path + "-journal") or isinstance(error, apsw.CantOpenError | apsw.IOError)
            )
            before = now
            if not is_moving or time.monotonic() >= started + min(patience, _LONGEST_MOVE):
                if not isinstance(error, apsw.CorruptError | apsw.SQLError):
                    raise  # it says nothing about the file
                message = f"{path}: the file cannot be read as a SQLite database ({type(error).__name__})"
                raise NotAStorageFileError(message) from error
        time.sleep(0.01)


def _sizes_and_time(path: str) -> tuple[int, ...]:
    try:
        return size_of(path), os.stat(path).st_mtime_ns, size_of(path + "-wal")
    except FileNotFoundError:
        return ()


def version_of(path: str, secret: Secret | None) -> int:
    """The version of a file by what it holds, 0 for an empty one. Changes nothing. Raises as `recognise`, `verify`."""
    recognise(path, _LONGEST_MOVE, secret)
    with looking(path, secret) as connection:
        return verify(connection, path)


def verify(connection: apsw.Connection, path: str) -> int:
    """The version of a file by what it holds, 0 for an empty one.

    Raises SchemaVersionError for a newer file, NotAStorageFileError for one that is not ours, StorageCorruptError for
    one of ours whose tables are not as they should be.
    """
    try:
        with one_state(connection):  # others create and drop indexes, and migrate
            return _verify(connection, path)
    except apsw.SQLError as error:
        raise StorageCorruptError(f"{path}: the schema cannot be read: the file is damaged") from error


def _verify(connection: apsw.Connection, path: str) -> int:
    if connection.pragma("encoding") != "UTF-8":
        # SQLite would compare texts by their bytes in UTF-16, which is no order of code points.
        raise NotAStorageFileError(f"{path}: this database keeps its texts in UTF-16: copy it into one in UTF-8")
    found = _objects(connection)
    ours = connection.pragma("application_id") == APPLICATION_ID
    if not found and not ours:
        return 0
    if "schema_version" not in found or "storage_entries" not in found:
        raise NotAStorageFileError(f"{path}: this database holds tables of somebody else")
    try:
        version = connection.execute(_VERSION).get
    except apsw.SQLError:
        raise NotAStorageFileError(f"{path}: this database holds tables of somebody else") from None
    if isinstance(version, int) and version > NEWEST:
        message = f"{path}: the file has schema version {version}, this library knows {NEWEST}: use a newer library"
        raise SchemaVersionError(message)
    expected = NEWEST if ours else 1
    if version == expected:
        names = _differing(connection, found, expected)
        if not names:
            if ours:
                _verify_floor(connection, path)
            _read_statistics(connection)
            return expected
        if ours:
            raise StorageCorruptError(f"{path}: the schema is not as this library made it: see {names[0]!r}")
    raise NotAStorageFileError(f"{path}: this database holds tables of somebody else")


def _verify_floor(connection: apsw.Connection, path: str) -> None:
    """Without its one row nothing could be written, and beyond all clocks there are no versions left to give."""
    floors = connection.execute(_FLOOR).fetchall()
    if len(floors) != 1 or not isinstance(floors[0][0], int) or not 0 <= floors[0][0] < MAX_VERSION:
        raise StorageCorruptError(f"{path}: what storage_version_floor holds is not as this library writes it")


def differing(connection: apsw.Connection) -> list[str]:
    """The names of whatever is not in a file of ours as this library makes it: missing, too much, or altered."""
    return _differing(connection, _objects(connection), NEWEST)


def _differing(connection: apsw.Connection, found: dict[str, Folded], version: int) -> list[str]:
    made = {f"{PREFIX}{number}": definition(number, index) for number, index in _created(connection, found).items()}
    wanted = {_name(sql): sql for sql in _EXPECTED[version]} | made
    return sorted({name for name, _ in set(found.items()) ^ {(name, _folded(sql)) for name, sql in wanted.items()}})


def _read_statistics(connection: apsw.Connection) -> None:
    for statement in _STATISTICS:
        with contextlib.suppress(apsw.SQLError):  # there are none yet
            for _ in connection.execute(statement):
                pass


def create(connection: apsw.Connection, now_ms: int) -> None:
    """Lay out a new file, inside the caller's transaction."""
    _run(connection, _CREATE_2, now_ms)


def create_first(connection: apsw.Connection) -> None:
    """Lay out a file of version 1 without any rows, inside the caller's transaction."""
    _run(connection, _CREATE_1, 0)


def upgrade(connection: apsw.Connection, path: str, now_ms: int) -> None:
    """From version 1 to 2, inside the caller's transaction. Raises SchemaVersionError that names what is in the way."""
    problems: list[str] = []
    count = 0
    # Version 2 keeps one name for itself.
    own = (f"namespace {name!r}: a name is needed" for (name,) in connection.execute(_ORIGIN))
    for problem in itertools.chain(own, problems_of(connection)):
        if problem is None:
            continue
        count += 1
        if len(problems) < _SHOWN_PROBLEMS:
            problems.append(problem)
    if count:
        more = f" and {count - len(problems)} more" if count > len(problems) else ""
        message = f"{path}: version 1 holds what version 2 cannot: {'; '.join(problems)}{more}. The file is unchanged"
        raise SchemaVersionError(message)
    _run(connection, _UP_TO_2, now_ms)


def downgrade(connection: apsw.Connection, path: str, now_ms: int) -> None:
    """From version 2 to 1, inside the caller's transaction.

    Raises SchemaVersionError while an entry has an expiry or a created index exists.
    """
    indexes = [index.name for index in all_indexes(connection).values()]
    if indexes:
        message = f"{path}: version 1 knows no created indexes; drop these first: {', '.join(map(repr, indexes))}"
        raise SchemaVersionError(f"{message}. The file is unchanged")
    expiring = connection.execute(_EXPIRING, (now_ms,)).fetchall()
    if expiring:
        shown = ", ".join(f"{key!r} in {namespace!r}" for namespace, key in expiring[:_SHOWN_EXPIRING])
        more = " and more" if len(expiring) > _SHOWN_EXPIRING else ""
        message = (
            f"{path}: version 1 knows no expiry, and these entries have one: {shown}{more}. Delete them or touch() "
            "them with ttl=None. The file is unchanged"
        )
        raise SchemaVersionError(message)
    _run(connection, _DOWN_TO_1, now_ms)


def _run(connection: apsw.Connection, statements: Iterable[str], now_ms: int) -> None:
    for statement in statements:
        connection.execute(statement, (now_ms,) if "?1" in statement else None)


def _recognise_once(path: str, secret: Secret | None) -> int:
    header = read_file(path, 0, 100)
    if not header:
        return 0
    if size_of(path + "-journal") and not header.strip(b"\0"):
        # Somebody was creating it when the power went: what is right stands in the journal.
        with looking(path, secret) as connection:
            return verify(connection, path)
    if pages.kind_of(header) == "encrypted":
        pages.require_key(path, secret)
        return NEWEST
    _check_start(path)
    if not header.startswith(pages.MAGIC):
        raise NotAStorageFileError(f"{path}: the file is no SQLite database")
    application_id = int.from_bytes(header[68:72], "big")
    if application_id == APPLICATION_ID:
        return NEWEST
    if application_id:
        message = f"{path}: the database belongs to another application (application_id {application_id:#x})"
        raise NotAStorageFileError(message)
    with looking(path, secret) as connection:
        return verify(connection, path)


def _check_start(path: str) -> None:
    """Raise StorageCorruptError where the first page had a checksum and does not fit it."""
    for _ in range(_LOOKS_AT_START):
        if not pages.has_damaged_start(read_file(path, 0, pages.LONGEST_PAGE)):
            return
        if size_of(path + "-wal") or size_of(path + "-journal"):
            return  # what is right stands there, and this page may be half written
        time.sleep(0.001)
    raise StorageCorruptError(f"{path}: its first page does not fit its checksum: the file is damaged")


@contextlib.contextmanager
def looking(path: str, secret: Secret | None = None) -> Iterator[apsw.Connection]:
    """A connection to a file that may be somebody else's.

    One with a rollback journal beside it would be rolled back by whoever reads it, so a copy is read instead.
    """
    with contextlib.ExitStack() as stack:
        if size_of(path + "-journal"):
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            copy = os.path.join(directory, "copy")
            copy_file(path, copy)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(path + "-journal", copy + "-journal")
            connection = open_copy(copy, secret)
        else:
            connection = open_to_look(path, secret)
        stack.callback(connection.close)
        yield connection


def _objects(connection: apsw.Connection) -> dict[str, Folded]:
    """What the schema holds besides what is allowed to be there, by name."""
    return {
        str(name): _folded(str(sql))
        for kind, name, table, sql in connection.execute(_SCHEMA)
        # An index without a text is that of a UNIQUE in its table's text, or SQLite reads no schema with it.
        if not ((kind == "index" and sql is None) or (kind == "table" and name == table and _is_allowed(sql)))
    }


def _is_allowed(sql: object) -> bool:
    return sql in _OF_SQLITE or (isinstance(sql, str) and _OF_LITESTREAM.fullmatch(sql) is not None)


def _created(connection: apsw.Connection, found: dict[str, Folded]) -> dict[int, IndexRow]:
    """The created indexes, where the table of their definitions is as it should be."""
    return all_indexes(connection) if found.get("storage_indexes") == _folded(_INDEXES_2) else {}


def _folded(sql: str) -> Folded:
    """The words and signs of a statement: what stays where white space, case and needless quotes differ."""
    return tuple(
        word if word.startswith("'") else (word[1:-1] if _QUOTED_WORD.fullmatch(word) else word).lower()
        for word in _WORDS.findall(sql)
    )


def _name(sql: str) -> str:
    return sql.split()[2].partition("(")[0]


def problems_of(connection: apsw.Connection, *, every: int = 0) -> Iterator[str | None]:
    """What version 2 would not take, in a file of either, a line each; and after so many rows None, where asked for."""
    for number, row in enumerate(connection.execute(_ROWS), start=1):
        namespace, key, value, metadata, created_at, updated_at = row
        if every and not number % every:
            yield None
        reason = problem_of_entry(namespace, key, value, metadata, created_at, updated_at)
        if reason is not None:
            yield f"{key!r} in {namespace!r}: {reason}"
    for name, metadata, created_at in connection.execute(_NAMESPACES):
        reason = problem_of_namespace(name, metadata, created_at)
        if reason is not None:
            yield f"namespace {name!r}: {reason}"
