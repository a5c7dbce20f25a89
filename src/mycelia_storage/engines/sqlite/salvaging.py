"""What can still be read of a damaged file, entry by entry, written into a new one.

Called by `salvage`. The source is only read, page by page (`raw_pages.py`):

1. Every tree is walked from its root, and so is the list of free pages. What neither leads to hangs below a damaged
   page. It is read too, unless the list of free pages is damaged itself: then nobody knows whether such a page is in
   use, or a free one with deleted entries on it, and only what the key index confirms is taken.
2. The key index tells which keys there were. They are kept in a scratch file.
3. Every record that is an entry, and keeps the rules, goes into the new file; of two with one key that with the greater
   version. One whose place in the key index has another key is damaged in its key, and not taken.
4. What the index has, or a record without its value, and the new file has not, is lost, by key.

Then the indexes are made, and the file is checked and put in place as a backup is.
"""

from __future__ import annotations

import contextlib
import json
import os
from array import array
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw
import msgspec

from mycelia_storage.checking import (
    MAX_VERSION,
    SHOWN_PROBLEMS,
    named,
    problem_of_entry,
    problem_of_names,
    problem_of_namespace,
    problem_of_newer,
)
from mycelia_storage.engines.engine import IndexRow
from mycelia_storage.engines.sqlite import copying, indexes, schema
from mycelia_storage.engines.sqlite.connection import kind_at
from mycelia_storage.engines.sqlite.places import is_there
from mycelia_storage.engines.sqlite.raw_pages import (
    INDEX_INTERIOR,
    INDEX_LEAF,
    LEAVES,
    TABLE_INTERIOR,
    TABLE_LEAF,
    DamagedError,
    PageFile,
    record,
)
from mycelia_storage.engines.sqlite.telling import failing_as
from mycelia_storage.entries import LostEntry, SalvageReport
from mycelia_storage.errors import (
    ConfigError,
    NotAStorageFileError,
    SchemaVersionError,
    StorageBusyError,
    StorageError,
)
from mycelia_storage.indexing import check_index_name
from mycelia_storage.keys import check_namespace
from mycelia_storage.query import parse_sort

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mycelia_storage.engines.sqlite.raw_pages import BTreePage, Cell
    from mycelia_storage.engines.sqlite.telling import Teller
    from mycelia_storage.options import Options

# Of version 2 of the schema, and the one that version 1 has besides.
KEY_INDEXES: Final = ("sqlite_autoindex_storage_entries_1", "idx_storage_namespace_key")
SHOWN_LOST: Final = 1000
_AT_ONCE: Final = 500
_PAGES_BETWEEN_LOOKS: Final = 256

SCRATCH: Final = """
PRAGMA scratch.journal_mode=MEMORY; PRAGMA scratch.synchronous=OFF;
CREATE TABLE scratch.known (
  namespace TEXT, key TEXT, id INTEGER, sure INTEGER, PRIMARY KEY (namespace, key, id)) WITHOUT ROWID;
CREATE TABLE scratch.lost (namespace TEXT, key TEXT, reason TEXT, PRIMARY KEY (namespace, key)) WITHOUT ROWID"""
KNOW: Final = "INSERT OR IGNORE INTO scratch.known VALUES (?, ?, ?, ?)"
IS_KNOWN: Final = "SELECT 1 FROM scratch.known WHERE namespace = ? AND key = ? AND id = ?"
LOSE: Final = "INSERT OR IGNORE INTO scratch.lost VALUES (?, ?, ?)"
_MISSING: Final = """
scratch.{} AS l WHERE NOT EXISTS (
  SELECT 1 FROM main.storage_entries AS e WHERE e.namespace = l.namespace AND e.key = l.key)"""
UNREAD: Final = f"SELECT l.namespace, l.key, l.id, l.sure FROM {_MISSING.format('known')}"
COUNT_LOST: Final = f"SELECT count(*) FROM {_MISSING.format('lost')}"
LOST: Final = f"SELECT l.namespace, l.key, l.reason FROM {_MISSING.format('lost')} ORDER BY 1, 2 LIMIT {SHOWN_LOST}"
OF_ID: Final = "SELECT namespace, key FROM storage_entries WHERE id = ?"
REMOVE: Final = "DELETE FROM storage_entries WHERE id = ?"
ADD: Final = """
INSERT INTO storage_entries (id, namespace, key, version, created_at, updated_at, expires_at, metadata, value)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (namespace, key) DO UPDATE SET version = excluded.version, created_at = excluded.created_at,
  updated_at = excluded.updated_at, expires_at = excluded.expires_at, metadata = excluded.metadata,
  value = excluded.value
WHERE excluded.version > storage_entries.version"""
ADD_NAMESPACE: Final = "INSERT OR REPLACE INTO storage_namespaces (name, metadata, created_at) VALUES (?, ?, ?)"
ADD_MISSING_NAMESPACES: Final = """
INSERT OR IGNORE INTO storage_namespaces (name, created_at)
SELECT namespace, min(created_at) FROM storage_entries GROUP BY namespace"""
PURGE: Final = "DELETE FROM storage_entries WHERE expires_at <= ?"
COUNTS: Final = (
    "SELECT (SELECT count(*) FROM storage_entries), (SELECT count(*) FROM storage_namespaces WHERE name <> '')"
)
GREATEST: Final = "SELECT ifnull(max(version), 0) FROM storage_entries"


class Row(NamedTuple):
    """An entry as it was found, whatever its columns are."""

    id: int
    namespace: Any
    key: Any
    version: Any
    created_at: Any
    updated_at: Any
    expires_at: Any
    metadata: Any
    value: Any


def salvage(source: str, target: str, options: Options, teller: Teller) -> SalvageReport:
    """Write what can be read of one file into another, which is not there yet. The source is only read."""
    with failing_as(source):
        _require_files(source)
    if os.path.lexists(target):
        raise ConfigError(f"into: {target} is there already: name a new file")
    before = _state(source)
    with contextlib.ExitStack() as stack:
        with failing_as(source):
            kind = kind_at(source)
            if kind == "encrypted":
                raise ConfigError(f"{source}: the file is encrypted, and salvage reads only what is not")
            if kind == "checksums":
                options = msgspec.structs.replace(options, checksums=True)
            pages = PageFile(source)
            stack.callback(pages.close)
        work = _Salvage(pages, source, teller)
        work.survey()
        connection = stack.enter_context(copying.new_file(target, options, overwrite=False, store=source))
        with copying.file_beside(target) as scratch:
            with failing_as(target):
                connection.execute("ATTACH ? AS scratch", (scratch,))
                for statement in SCRATCH.split(";"):
                    connection.execute(statement).fetchall()
            report = work.copy(connection, target, int(options.clock() * 1000))
            with failing_as(target):
                connection.execute("DETACH scratch")
        if _state(source) != before:
            raise StorageBusyError(f"{source}: the file was changed while it was read: end the programs that use it")
        copying.complete(connection, target, options, teller)
        return report


def _require_files(source: str) -> None:
    for path in (source, *(source + end for end in ("-journal", "-wal"))):
        if os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path)):
            raise ConfigError(f"path: {path} is no regular file")
    if not is_there(source):
        raise ConfigError(f"path: there is no file {source}")


def _state(source: str) -> list[tuple[int, int, int] | None]:
    found: list[tuple[int, int, int] | None] = []
    for end in ("", "-journal", "-wal"):
        try:
            about = os.stat(source + end)
        except FileNotFoundError:
            found.append(None)
        else:
            found.append((about.st_ino, about.st_size, about.st_mtime_ns))
    return found


class _Child(NamedTuple):
    """A page that another one names, and between which ids its rows have to lie."""

    number: int
    low: int
    high: int


class _Salvage:
    def __init__(self, pages: PageFile, path: str, teller: Teller) -> None:
        self._pages = pages
        self._path = path
        self._teller = teller
        self._reached = bytearray(pages.count + 1)
        self._free = bytearray(pages.count + 1)
        self._is_free_known = False
        self._take_orphans = False
        self._roots: dict[str, int] = {}
        # By tree: the pages with cells that were reached from its root.
        self._leaves: dict[str, array[int]] = {}
        # Pages with rows whose ids belong elsewhere: written to a wrong place, or long ago.
        self._misplaced: set[int] = set()
        self._key_trees: list[str] = []
        self._orphans = array("I")
        self._problem_count = 0
        self._problems: list[str] = []
        self._damaged: set[int] = set()
        self._namespaces: list[list[Any]] = []
        self._indexes: list[list[Any]] = []
        self._seen = 0

    def _tell(self, problem: str) -> None:
        self._problem_count += 1
        if len(self._problems) < SHOWN_PROBLEMS:
            self._problems.append(problem)

    # ---- 1. what belongs to what

    def survey(self) -> None:
        """Find the trees, the free pages, and what nothing leads to.

        Raises NotAStorageFileError, SchemaVersionError.
        """
        for problem in self._pages.problems:
            self._tell(problem)
        if not self._pages.count:
            raise NotAStorageFileError(f"{self._path}: the file is empty: there is nothing to salvage")
        if not self._pages.is_known:
            self._tell("the header of the file is damaged")
        self._walk("sqlite_schema", 1)
        for columns in self._records("sqlite_schema", 5):
            _, name, _, root, sql = columns
            if isinstance(name, str) and type(root) is int and root > 1:
                self._roots[name] = root
                if name in KEY_INDEXES or (name.startswith(indexes.PREFIX) and _has_keys(sql)):
                    self._key_trees.append(name)
        for name, root in self._roots.items():
            self._walk(name, root)
        self._require_ours()
        self._find_free()
        for number in range(2, self._pages.count + 1):
            if not (self._reached[number] or self._free[number] or self._pages.is_lock_page(number)):
                self._orphans.append(number)
        # Without roots nothing leads anywhere, and everything would be doubtful.
        self._take_orphans = self._is_free_known or not self._roots
        if not self._is_free_known and self._orphans:
            self._tell("the list of free pages is damaged: what nothing leads to may be an old state, or deleted")

    def _require_ours(self) -> None:
        if self._roots and "storage_entries" not in self._roots and not self._damaged:
            raise NotAStorageFileError(f"{self._path}: this database holds tables of somebody else")
        header = self._pages.header()
        application_id = int.from_bytes(header[68:72], "big")
        is_foreign = application_id not in (0, schema.APPLICATION_ID)
        if self._pages.is_known and is_foreign and "storage_entries" not in self._roots:
            message = f"{self._path}: the database belongs to another application (application_id {application_id:#x})"
            raise NotAStorageFileError(message)
        versions = [number for number, _ in self._numbered("schema_version", 2)]
        if versions and max(versions) > schema.NEWEST:
            message = (
                f"{self._path}: the file has schema version {max(versions)}, and this library knows {schema.NEWEST}"
            )
            raise SchemaVersionError(f"{message}: use a newer library")

    def _walk(self, tree: str, root: int) -> None:
        """Note every page of a tree, those with the rest of long records included."""
        leaves = self._leaves.setdefault(tree, array("I"))
        waiting = [_Child(root, -(2**63) - 1, 2**63 - 1)]
        while waiting:
            self._seen += 1
            if not self._seen % _PAGES_BETWEEN_LOOKS:
                self._teller.tell("copying", 0, self._pages.count)
            child = waiting.pop()
            number = child.number
            if not 1 <= number <= self._pages.count or self._reached[number]:
                self._tell(f"{tree!r} leads to page {number}, which cannot be its own")
                continue
            self._reached[number] = 1
            try:
                page = self._pages.tree_page(number)
            except DamagedError as error:
                self._damage(number, f"{tree!r}: {error}")
                continue
            for overflow in page.overflow:
                self._reached[overflow] = 1
            if page.broken:
                self._damage(number, f"{tree!r}: {page.broken} cells of page {number} are damaged")
            if page.kind == TABLE_LEAF and not all(child.low < cell.number <= child.high for cell in page.cells):
                self._misplaced.add(number)
                self._damage(number, f"{tree!r}: page {number} is not the one that belongs there")
            if page.kind != TABLE_INTERIOR:
                leaves.append(number)
            if page.kind not in LEAVES:
                waiting += reversed(_children(page, child))

    def _damage(self, number: int, problem: str) -> None:
        if number not in self._damaged:
            self._damaged.add(number)
            self._tell(problem)

    def _find_free(self) -> None:
        header = self._pages.header()
        found: set[int] = set()
        trunk, count = int.from_bytes(header[32:36], "big"), int.from_bytes(header[36:40], "big")
        while self._pages.is_known and trunk and trunk not in found:
            leaves = self._trunk(trunk)
            if leaves is None:
                break
            found |= {trunk, *leaves[1:]}
            trunk = leaves[0]
        self._is_free_known = self._pages.is_known and not trunk and len(found) == count
        if not self._is_free_known:
            for number in range(2, self._pages.count + 1):
                leaves = None if self._reached[number] else self._trunk(number)
                if leaves is not None and len(leaves) > 1:
                    found |= {number, *leaves[1:]}
        for number in found:
            self._free[number] = not self._reached[number]

    def _trunk(self, number: int) -> list[int] | None:
        """The next page of the list, and the free pages that this one names; None where it cannot be one of them."""
        try:
            page = self._pages.read(number)
        except DamagedError:
            return None
        size = int.from_bytes(page[4:8], "big")
        if size > self._pages.usable // 4 - 2:
            return None
        numbers = [int.from_bytes(page[place : place + 4], "big") for place in range(8, 8 + 4 * size, 4)]
        following = int.from_bytes(page[:4], "big")
        are_right = all(2 <= other <= self._pages.count for other in numbers) and len(set(numbers)) == size
        return [following, *numbers] if are_right and following <= self._pages.count else None

    # ---- records

    def _cells(self, number: int, kinds: tuple[int, ...]) -> Iterator[Cell]:
        try:
            page: BTreePage = self._pages.tree_page(number)
        except DamagedError:
            return
        if page.kind in kinds:
            yield from page.cells

    def _numbered(self, tree: str, size: int, *, orphans: bool = False) -> Iterator[tuple[int, list[Any]]]:
        """The records of a table with so many columns, and their ids."""
        for number in [*self._leaves.get(tree, ()), *(self._orphans if orphans else [])]:
            for cell in self._cells(number, (TABLE_LEAF,)):
                with contextlib.suppress(DamagedError):
                    columns = record(cell.payload or b"", is_whole=cell.is_whole)
                    if cell.is_whole and len(columns) == size:
                        yield cell.number, columns

    def _records(self, tree: str, size: int, *, orphans: bool = False) -> Iterator[list[Any]]:
        for _, columns in self._numbered(tree, size, orphans=orphans):
            yield columns

    # ---- 2. to 4. into the new file

    def copy(self, connection: apsw.Connection, target: str, now_ms: int) -> SalvageReport:
        """Fill the new file."""
        with failing_as(target):
            connection.execute("BEGIN IMMEDIATE")
            schema.create(connection, now_ms)
        self._know_keys(connection, target)
        self._copy_entries(connection, target)
        with failing_as(target):
            self._find_lost(connection)
            self._copy_namespaces(connection)
            self._copy_floor(connection)
            made, not_made = self._copy_indexes(connection, now_ms)
            counts: list[Any] = connection.execute(COUNTS).fetchall()
            entries, namespaces = counts[0]
            lost = connection.execute(COUNT_LOST).get
            shown = tuple(LostEntry(*row) for row in connection.execute(LOST))
            connection.execute("COMMIT")
        if not entries and not lost and not self._roots:
            raise NotAStorageFileError(
                f"{self._path}: there is nothing of a store in this file; if it is encrypted, "
                "or another database, it is none that can be salvaged"
            )
        return SalvageReport(
            entries,
            namespaces,
            made,
            lost,
            shown,
            not_made,
            len(self._damaged),
            self._problem_count,
            tuple(self._problems),
        )

    def _know_keys(self, connection: apsw.Connection, target: str) -> None:
        batch: list[tuple[str, str, int, bool]] = []
        for number in self._pages_with_keys():
            records: list[list[Any]] = []
            for cell in self._cells(number, (INDEX_LEAF, INDEX_INTERIOR)):
                with contextlib.suppress(DamagedError):
                    columns = record(cell.payload or b"") if cell.is_whole else []
                    if len(columns) >= 3 and type(columns[-1]) is int:
                        records.append(columns)
            # A damaged cell may still look like one, but hardly stands in order between the others.
            in_order = _in_order(records)
            is_sure = number not in self._damaged and len(in_order) == len(records)
            for namespace, *_, key, row in in_order:
                if problem_of_names(namespace, key) is None:
                    batch.append((namespace, key, row, is_sure))
            if len(batch) >= _AT_ONCE:
                with failing_as(target):
                    connection.executemany(KNOW, batch)
                batch.clear()
        with failing_as(target):
            connection.executemany(KNOW, batch)

    def _pages_with_keys(self) -> Iterator[int]:
        """Those of the trees that have a namespace, a key and a row's id in each cell. Of others it cannot be told."""
        for tree in self._key_trees:
            yield from self._leaves.get(tree, ())
        if self._take_orphans:
            for number in self._orphans:
                cells = list(self._cells(number, (INDEX_LEAF, INDEX_INTERIOR)))
                with contextlib.suppress(DamagedError):
                    if cells and cells[0].is_whole and len(record(cells[0].payload or b"")) == 3:
                        yield number

    def _copy_entries(self, connection: apsw.Connection, target: str) -> None:
        reached = self._leaves.get("storage_entries", array("I"))
        total = len(reached) + len(self._orphans)
        for done, number in enumerate([*reached, *self._orphans]):
            if not done % _PAGES_BETWEEN_LOOKS:
                self._teller.tell("copying", done, total)
            is_orphan = done >= len(reached)
            is_doubtful = number in self._misplaced or (is_orphan and not self._take_orphans)
            with failing_as(target):
                for cell in self._cells(number, (TABLE_LEAF,)):
                    self._copy_cell(connection, cell, is_doubtful=is_doubtful)
        self._teller.tell("copying", total, total)

    def _copy_cell(self, connection: apsw.Connection, cell: Cell, *, is_doubtful: bool) -> None:
        try:
            columns = record(cell.payload or b"", is_whole=cell.is_whole)
        except DamagedError:
            return
        if not cell.is_whole:
            if len(columns) >= 3 and [type(column) for column in columns[:3]] == [type(None), str, str]:
                self._lose(connection, columns[1], columns[2], "a part of its value cannot be read")
            return
        row = _row_of(cell.number, columns)
        if row is None:
            return
        if is_doubtful and not connection.execute(IS_KNOWN, (row.namespace, row.key, row.id)).fetchall():
            return
        problem = problem_of_entry(row.namespace, row.key, row.value, row.metadata, row.created_at, row.updated_at)
        problem = problem or problem_of_newer(row.version, row.expires_at)
        if problem is not None:
            self._lose(connection, row.namespace, row.key, problem)
            return
        try:
            connection.execute(ADD, row)
        except apsw.ConstraintError:  # another one has the id, which nobody outside knows
            connection.execute(ADD, (None, *row[1:]))

    def _lose(self, connection: apsw.Connection, namespace: Any, key: Any, reason: str) -> None:
        connection.execute(LOSE, (_shown(namespace), _shown(key), reason))

    def _find_lost(self, connection: apsw.Connection) -> None:
        unread = connection.execute(UNREAD)
        while some := list(islice(unread, _AT_ONCE)):
            for namespace, key, number, is_sure in some:
                reason: str | None = "it is in the key index, and cannot be read"
                for other_namespace, other in connection.execute(OF_ID, (number,)).fetchall():
                    if not is_sure or connection.execute(IS_KNOWN, (other_namespace, other, number)).fetchall():
                        reason = None  # it is that one's, and what the index has is damaged
                        continue
                    reason = f"in its place is {named(other_namespace, other)}, which the key index lacks"
                    self._lose(connection, other_namespace, other, f"the key index has {key!r} in its place")
                    connection.execute(REMOVE, (number,))
                if reason is not None:
                    self._lose(connection, namespace, key, reason)

    def _copy_namespaces(self, connection: apsw.Connection) -> None:
        for columns in self._records("storage_namespaces", 3, orphans=self._take_orphans):
            name, metadata, created_at = columns
            if not isinstance(name, str) or not (metadata is None or isinstance(metadata, str)):
                continue
            if type(created_at) is not int:
                continue
            problem = problem_of_namespace(name, metadata, created_at)
            if problem is None:
                connection.execute(ADD_NAMESPACE, (name, metadata, created_at))
            else:
                self._tell(f"namespace {name!r}: {problem}")
        connection.execute(ADD_MISSING_NAMESPACES)

    def _copy_floor(self, connection: apsw.Connection) -> None:
        """The version floor; where it is lost, what is written next has at least greater versions than the rest."""
        floors = [columns[1] for columns in self._records("storage_version_floor", 2) if type(columns[1]) is int]
        floor = max([0, *(floor for floor in floors if 0 <= floor < MAX_VERSION)])
        if self._damaged or not floors:
            floor = max(floor, connection.execute(GREATEST).get)
        copying.raise_floor(connection, floor)

    def _copy_indexes(self, connection: apsw.Connection, now_ms: int) -> tuple[int, tuple[str, ...]]:
        """Make the created indexes again; gives how many, and which could not be made."""
        not_made: list[str] = []
        rows: dict[str, IndexRow | None] = {}
        for columns in self._records("storage_indexes", 7, orphans=self._take_orphans):
            _, name, namespace, fields, is_unique, created_at, _ = columns
            if not isinstance(name, str) or type(is_unique) is not int or rows.get(name) is not None:
                continue
            try:
                keys = parse_sort(json.loads(fields))
                rows[name] = IndexRow(check_index_name(name), namespace, keys, bool(is_unique), created_at)
                if namespace is not None:
                    check_namespace(namespace)
            except (ValueError, TypeError):
                rows[name] = None
        for name, row in rows.items():
            reason = "its definition is damaged" if row is None else self._make_index(connection, row, now_ms)
            if reason is not None:
                not_made.append(f"{name!r}: {reason}")
        return len(rows) - len(not_made), tuple(not_made)

    def _make_index(self, connection: apsw.Connection, row: IndexRow, now_ms: int) -> str | None:
        """Why an index could not be made, if so. What has expired is in nobody's way."""
        reason: str | None = None
        for attempt in ("as it is", "without what has expired"):
            if attempt != "as it is":
                connection.execute(PURGE, (now_ms,))
            connection.execute("SAVEPOINT one")
            try:
                indexes.create(connection, row)
            except StorageError as error:
                connection.execute("ROLLBACK TO one")
                reason = str(error)
            else:
                return None
            finally:
                connection.execute("RELEASE one")
        return reason


def _children(page: BTreePage, parent: _Child) -> list[_Child]:
    ids = [cell.number for cell in page.cells]
    if page.kind != TABLE_INTERIOR or page.broken or ids != sorted(set(ids)):
        numbers = [*(cell.child for cell in page.cells), page.last_child]
        return [_Child(number, parent.low, parent.high) for number in numbers]
    lows, highs = [parent.low, *ids], [*ids, parent.high]
    return list(map(_Child, [*(cell.child for cell in page.cells), page.last_child], lows, highs))


def _row_of(number: int, columns: list[Any]) -> Row | None:
    """An entry of either version of the schema, told from the records of other tables by its columns."""
    if len(columns) == 9 and columns[0] is None and isinstance(columns[3], int):
        _, namespace, key, version, created_at, updated_at, expires_at, metadata, value = columns
        return Row(number, namespace, key, version, created_at, updated_at, expires_at, metadata, value)
    if len(columns) == 7 and columns[0] is None and not isinstance(columns[4], int):
        _, namespace, key, value, metadata, created_at, updated_at = columns
        version = max(1, updated_at * 1000) if type(updated_at) is int else None
        return Row(number, namespace, key, version, created_at, updated_at, None, metadata, value)
    return None


def _in_order(records: list[list[Any]]) -> list[list[Any]]:
    """Those that are greater than the one before, and less than the one behind, as SQLite compares."""
    ranks = [[_rank(column) for column in columns] for columns in records]
    return [
        columns
        for place, columns in enumerate(records)
        if (place == 0 or ranks[place - 1] < ranks[place])
        and (place + 1 == len(ranks) or ranks[place] < ranks[place + 1])
    ]


def _rank(column: Any) -> tuple[int, Any]:
    if column is None:
        return 0, 0
    return (1, column) if isinstance(column, int | float) else (2 if isinstance(column, str) else 3, column)


def _has_keys(sql: Any) -> bool:
    """Whether an index has the key at the end of each entry, which a unique one has not."""
    return isinstance(sql, str) and sql.startswith("CREATE INDEX")


def _shown(name: Any) -> str:
    return name if isinstance(name, str) else repr(name)
