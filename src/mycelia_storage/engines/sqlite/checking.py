"""Looking through a whole file, in one state of it: what SQLite finds, and what only this library knows.

Called by the engine for `check`.

1. The schema, SQLite's own integrity check, and the small tables. (Whatever the statistics say changes no answer.)
2. Every row, by the rules for keys, values and times. What cannot be read is stepped over.
3. Every index against the table. SQLite's check misses entries that belong to no row in partial indexes, and wrong
   values in those on expressions. Both sides are hashed entry by entry into a sum, which does not mind the order and
   takes the same memory for every size. Where the sums differ, those parts of both sides that differ are compared
   entry by entry, to name keys.

The state is one that reads, so in WAL mode nobody waits for it; a statement is stopped when its caller has gone or the
store is closed.
"""

from __future__ import annotations

import contextlib
import re
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import apsw

from mycelia_storage.checking import (
    MAX_VERSION,
    Findings,
    named,
    problem_of_entry,
    problem_of_namespace,
    problem_of_newer,
)
from mycelia_storage.engines.limits import check_limit, is_over
from mycelia_storage.engines.sqlite import schema
from mycelia_storage.engines.sqlite.connection import STEPS_BETWEEN_LOOKS
from mycelia_storage.engines.sqlite.expressions import FieldSQL, text_literal
from mycelia_storage.engines.sqlite.failures import DRIVER_ERRORS, to_storage_error
from mycelia_storage.engines.sqlite.indexes import MAX_INDEXES, PREFIX, all_indexes
from mycelia_storage.errors import NotAStorageFileError, StorageCorruptError, StorageError, TransactionError
from mycelia_storage.indexing import check_index_name
from mycelia_storage.keys import DEFAULT_NAMESPACE, ORIGIN, check_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mycelia_storage.engines.engine import IndexRow
    from mycelia_storage.engines.sqlite.lending import Lending

_MOST_LINES: Final = 1000
INTEGRITY: Final = f"PRAGMA integrity_check({_MOST_LINES})"
NAMESPACES: Final = "SELECT name, metadata, created_at FROM storage_namespaces"
IS_REGISTERED: Final = "SELECT 1 FROM storage_namespaces WHERE name = ?"
# SELECT DISTINCT goes from one to the next by the index too, and in one that is out of order for ever.
UNREGISTERED: Final = """
WITH RECURSIVE holding(name) AS (
  SELECT min(namespace) FROM storage_entries
  UNION
  SELECT (SELECT min(namespace) FROM storage_entries WHERE namespace > holding.name) FROM holding
  WHERE holding.name IS NOT NULL)
SELECT name FROM holding WHERE name IS NOT NULL AND name NOT IN (SELECT name FROM storage_namespaces)"""
FLOOR: Final = "SELECT id, version FROM storage_version_floor"
DEFINITIONS: Final = "SELECT name, namespace, is_unique, created_at FROM storage_indexes"

_COLUMNS: Final = "namespace, key, value, metadata, created_at, updated_at, version, expires_at"
# By the table itself: NOT INDEXED, or an expression would come from an index that has it.
ROWS: Final = "SELECT id, {} FROM storage_entries NOT INDEXED WHERE id > ?1 ORDER BY id LIMIT ?2"
ROW: Final = "SELECT id, {} FROM storage_entries NOT INDEXED WHERE id = ?1"
NEXT_ID: Final = "SELECT id FROM storage_entries NOT INDEXED WHERE id >= ?1 ORDER BY id LIMIT 1"
NAME_OF_ROW: Final = """
SELECT CAST(namespace AS BLOB), CAST(key AS BLOB) FROM storage_entries NOT INDEXED WHERE id = ?1"""
EXPIRY_OF_ROW: Final = "SELECT namespace, key, expires_at FROM storage_entries NOT INDEXED WHERE id = ?1"
# All cells of an index's pages, whatever is in them.
CELLS: Final = "SELECT ncell FROM dbstat WHERE name = ? AND aggregate = TRUE"

_OUT_OF_ORDER: Final = "the rows behind {} are out of order, and are not read any further"
_ROWS_AT_ONCE: Final = 500
_BUCKETS: Final = 4096
_MOST_BUCKETS: Final = 16
_SHOWN_OF_AN_INDEX: Final = 10
_GREATEST_ID: Final = 2**63 - 1
_HASHES: Final = 2**64
_NAME_OF_INDEX: Final = re.compile(rf"\b{PREFIX}(\d+)\b")


class _UnreadableError(Exception):
    """A statement failed because of the file; the reason in words."""


def check(lending: Lending, path: str, findings: Findings, now: int, closed: Callable[[], StorageError | None]) -> None:
    """Look at everything in the state that was lent. `closed` gives the error for a store that was closed meanwhile.

    Raises SchemaVersionError where another process has migrated the file, StorageTimeoutError, StorageClosedError.
    """
    _Check(lending, path, findings, now, closed).run()


class Side:
    """One side of a comparison: how many entries, and a sum of their hashes for each part of the ids."""

    def __init__(self) -> None:
        self.count: int = 0
        self.sums: list[int] = [0] * _BUCKETS

    def add(self, number: int, entry: tuple[Any, ...]) -> None:
        self.count += 1
        bucket = number % _BUCKETS
        if -1 in entry:  # whose hash is that of -2
            entry = (*entry, *[column == -1 for column in entry])
        self.sums[bucket] = (self.sums[bucket] + hash((number, entry))) % _HASHES


class Index:
    """An index as SQLite has it, and how its entries are asked for on both sides."""

    def __init__(self, name: str, shown: str, columns: list[str], where: str = "", row: IndexRow | None = None) -> None:
        self.name: str = name
        self.shown: str = shown
        self.columns: list[str] = columns
        self.row: IndexRow | None = row
        self.is_partial_by_expiry: bool = columns[0] == "expires_at"
        self.entries: str = f"SELECT id, {', '.join(columns)} FROM storage_entries INDEXED BY {name} {where}"
        self.table: Side = Side()
        self.index: Side = Side()
        self.is_readable: bool = True

    @property
    def expressions(self) -> list[str]:
        """The same of a row. What is no JSON has no place in an index, and would fail the whole statement."""
        found = [_of_json(column) for column in self.columns]
        if self.row is not None and self.row.namespace is not None:
            inside = f"namespace = {text_literal(self.row.namespace)}"
            found[1:] = [f"CASE WHEN {inside} THEN {column} END" for column in found[1:]]
        return found

    def has(self, entry: tuple[Any, ...]) -> bool:
        """Whether a row with these values belongs into it."""
        if self.is_partial_by_expiry:
            return entry[0] is not None
        return self.row is None or self.row.namespace in (None, entry[0])


def created(number: int, row: IndexRow) -> Index:
    """A created index."""
    columns = ["namespace"]
    for key in row.fields:
        columns += FieldSQL(key.path, "").columns()
    if not row.is_unique:
        columns.append("key")
    where = "" if row.namespace is None else f"WHERE namespace = {text_literal(row.namespace)}"
    return Index(f"{PREFIX}{number}", f"the index {row.name!r}", columns, where, row)


def _of_json(column: str) -> str:
    for name in ("value", "metadata"):
        if f"({name}, " in column:
            return f"CASE WHEN json_valid({name}) THEN {column} END"
    return column


class _Check:
    def __init__(
        self,
        lending: Lending,
        path: str,
        findings: Findings,
        now: int,
        closed: Callable[[], StorageError | None],
    ) -> None:
        self._lending = lending
        self._path = path
        self._findings = findings
        self._now_ms = now // 1000
        self._closed = closed
        self._names: dict[int, str] = {}
        self._unexplained = ""

    def run(self) -> None:
        try:
            self._look()
        except TransactionError:  # and with it the one state that is to be looked at
            self._findings.add("the rest was not looked at: SQLite gave the file up, after something it could not read")

    def _look(self) -> None:
        if self._schema():
            self._integrity()
            for look in (self._namespaces, self._floor, self._definitions):
                with self._stepping_over("a table of the store's own"):
                    look()
            if self._unexplained and not self._findings.count:
                self._findings.add(self._unexplained)
            self._entries()

    # ---- statements

    @contextlib.contextmanager
    def _connection(self) -> Iterator[apsw.Connection]:
        """The connection for one statement, or some rows of one. Raises _UnreadableError."""
        check_limit()
        failed: Exception | None = None
        with self._lending as connection:
            connection.set_progress_handler(lambda: is_over() or self._closed() is not None, STEPS_BETWEEN_LOOKS)
            try:
                yield connection
            except apsw.InterruptError:
                error = self._closed()
                if error is not None:
                    raise error from None
                raise
            except DRIVER_ERRORS as error:
                failed = error
            finally:
                connection.set_progress_handler(None)
        if failed is not None:
            reason = str(to_storage_error(failed, self._path)).removeprefix(f"{self._path}: ")
            raise _UnreadableError(reason) from failed

    def _fetch(self, statement: str, bindings: tuple[Any, ...] = ()) -> list[Any]:
        with self._connection() as connection:
            return connection.execute(statement, bindings).fetchall()

    def _stream(self, statement: str) -> Iterator[Any]:
        with self._connection() as connection:
            rows = connection.execute(statement)
        while True:
            with self._connection():
                some = list(islice(rows, _ROWS_AT_ONCE))
            if not some:
                return
            yield from some

    @contextlib.contextmanager
    def _stepping_over(self, what: str) -> Iterator[None]:
        try:
            yield
        except _UnreadableError as error:
            self._findings.add(f"{what}: {error}")

    # ---- 1. the schema, SQLite's own check, the small tables

    def _schema(self) -> bool:
        """Whether the tables can be asked."""
        try:
            with self._connection() as connection:
                schema.verify(connection, self._path)
        except _UnreadableError as error:
            self._findings.add(f"the schema: {error}")
            return False
        except (StorageCorruptError, NotAStorageFileError) as error:
            with self._stepping_over("the schema"), self._connection() as connection:
                try:
                    names = schema.differing(connection)
                except StorageCorruptError:
                    names = []
                for name in names:
                    self._findings.add(f"the schema: {name!r} is not as this library makes it")
                if not names:
                    self._unexplained = str(error).removeprefix(f"{self._path}: ")
        return True

    def _integrity(self) -> None:
        with self._stepping_over("what the indexes are"), self._connection() as connection:
            try:
                self._names = {number: row.name for number, row in all_indexes(connection).items()}
            except StorageCorruptError:
                self._names = {}
        with self._stepping_over("SQLite's integrity check"):
            lines = [str(line) for (line,) in self._fetch(INTEGRITY)]
            for line in lines:
                if line != "ok":
                    self._findings.add(_NAME_OF_INDEX.sub(self._shown, line))

    def _shown(self, found: re.Match[str]) -> str:
        name = self._names.get(int(found[1]))
        return found[0] if name is None else repr(name)

    def _namespaces(self) -> None:
        for name, metadata, created_at in self._stream(NAMESPACES):
            self._findings.namespaces += name != ORIGIN
            problem = problem_of_namespace(name, metadata, created_at)
            if problem is not None:
                self._findings.add(f"namespace {name!r}: {problem}")
        if not self._fetch(IS_REGISTERED, (DEFAULT_NAMESPACE,)):
            self._findings.add(f"namespace {DEFAULT_NAMESPACE!r} is not registered")
        for (name,) in self._stream(UNREGISTERED):
            if name != DEFAULT_NAMESPACE:
                self._findings.namespaces += 1
                self._findings.add(f"namespace {name!r} is not registered")

    def _floor(self) -> None:
        found = self._fetch(FLOOR)
        if [number for number, _ in found] != [1]:
            self._findings.add(f"storage_version_floor has {len(found)} rows where one belongs")
        for _, version in found:
            if type(version) is not int or not 0 <= version < MAX_VERSION:
                self._findings.add("the version floor is no version")

    def _definitions(self) -> None:
        found = self._fetch(DEFINITIONS)
        if len(found) > MAX_INDEXES:
            self._findings.add(f"there are {len(found)} indexes, and {MAX_INDEXES} is the limit")
        for name, namespace, is_unique, created_at in found:
            try:
                check_index_name(name)
                if namespace is not None:
                    check_namespace(namespace)
            except StorageError as error:
                self._findings.add(f"the definition of the index {name!r}: {error}")
            if is_unique not in (0, 1) or type(created_at) is not int or created_at < 0:
                self._findings.add(f"the definition of the index {name!r} is damaged")

    # ---- 2. every row

    def _entries(self) -> None:
        indexes = [
            Index("sqlite_autoindex_storage_entries_1", "the key index", ["namespace", "key"]),
            Index(
                "storage_entries_expiry",
                "the expiry index",
                ["expires_at", "namespace"],
                "WHERE expires_at IS NOT NULL",
            ),
        ]
        with self._stepping_over("the created indexes"), self._connection() as connection:
            try:
                indexes += [created(number, row) for number, row in all_indexes(connection).items()]
            except StorageCorruptError:  # which was told of with the schema
                pass
        self._findings.indexes = len(indexes) - 2
        self._look_at_rows(indexes)
        for index in indexes:
            with self._stepping_over(index.shown):
                self._look_at_index(index)

    def _look_at_rows(self, indexes: list[Index]) -> None:
        columns, places = [_COLUMNS], []
        first = 1 + _COLUMNS.count(",") + 1
        for index in indexes:
            columns += index.expressions
            places.append((index, first, first + len(index.columns)))
            first += len(index.columns)
        for row in self._rows(", ".join(columns), self._findings.add):
            self._look_at_row(row)
            for index, start, end in places:
                entry = row[start:end]
                if index.has(entry):
                    index.table.add(row[0], entry)

    def _look_at_row(self, row: tuple[Any, ...]) -> None:
        _, namespace, key, value, metadata, created_at, updated_at, version, expires_at = row[:9]
        problem = problem_of_entry(namespace, key, value, metadata, created_at, updated_at)
        problem = problem or problem_of_newer(version, expires_at)
        if problem is not None:
            self._findings.add(f"{named(namespace, key)}: {problem}")
        self._findings.entries += problem is not None or expires_at is None or expires_at > self._now_ms

    def _rows(self, columns: str, tell: Callable[[str], None]) -> Iterator[tuple[Any, ...]]:
        """Every row that can be read, by its id; `tell` is told of those that cannot."""
        last = -_GREATEST_ID - 1
        while True:
            try:
                rows = self._fetch(ROWS.format(columns), (last, _ROWS_AT_ONCE))
            except _UnreadableError:
                rows = None
            if rows is None:
                for _ in range(_ROWS_AT_ONCE):
                    number = self._next_readable(last, tell)
                    if number is None:
                        return
                    if number <= last:
                        tell(_OUT_OF_ORDER.format(last))
                        return
                    yield from self._one_row(columns, number, tell)
                    last = number
                continue
            yield from rows
            if len(rows) < _ROWS_AT_ONCE:
                return
            if rows[-1][0] <= last:  # they would be read again and again
                tell(_OUT_OF_ORDER.format(last))
                return
            last = rows[-1][0]

    def _one_row(self, columns: str, number: int, tell: Callable[[str], None]) -> list[tuple[Any, ...]]:
        try:
            return self._fetch(ROW.format(columns), (number,))
        except _UnreadableError as error:
            reason = str(error)
        try:
            ((namespace, key),) = self._fetch(NAME_OF_ROW, (number,))
            tell(f"{named(_text(namespace), _text(key))}: {reason}")
        except (_UnreadableError, ValueError, TypeError):
            tell(f"the row {number}: {reason}")
        return []

    def _next_readable(self, last: int, tell: Callable[[str], None]) -> int | None:
        """The id of the next row behind `last` that SQLite finds; None at the end.

        A damaged page takes a range of ids with it: first a place behind it is found in steps that double, then its
        end by halving them.
        """
        if last == _GREATEST_ID:
            return None
        bad, step = last, 1
        while True:
            place = min(last + step, _GREATEST_ID)
            try:
                found = self._fetch(NEXT_ID, (place,))
            except _UnreadableError:
                bad = place
                if place == _GREATEST_ID:
                    tell(f"the rows behind {last} cannot be read")
                    return None
                step *= 2
                continue
            break
        good, number = place, found[0][0] if found else None
        if bad == last:
            return number
        while good - bad > 1:
            middle = (good + bad) // 2
            try:
                found = self._fetch(NEXT_ID, (middle,))
            except _UnreadableError:
                bad = middle
            else:
                good, number = middle, found[0][0] if found else None
        tell(f"rows between {last} and {good} cannot be read")
        return number

    # ---- 3. indexes

    def _look_at_index(self, index: Index) -> None:
        before: tuple[Any, ...] = ()
        unique = index.row is not None and index.row.is_unique
        for number, *columns in self._stream(index.entries):
            entry = tuple(columns)
            index.index.add(number, entry)
            if unique:
                if entry == before[1:] and None not in entry:
                    self._look_at_twins(index, before[0], number)
                before = (number, *entry)
        for (cells,) in self._fetch(CELLS, (index.name,)):
            if cells != index.index.count:
                self._findings.add(f"{index.shown} has {cells} entries, of which {index.index.count} can be found")
        if index.index.sums != index.table.sums:
            self._compare(index)

    def _look_at_twins(self, index: Index, one: int, other: int) -> None:
        found = [row for number in (one, other) for row in self._fetch(EXPIRY_OF_ROW, (number,))]
        live = [(namespace, key) for namespace, key, at in found if at is None or at > self._now_ms]
        if len(live) == 2:
            keys = " and ".join(repr(key) for _, key in live)
            self._findings.add(f"{index.shown} is unique, and {keys} in namespace {live[0][0]!r} have the same value")

    def _compare(self, index: Index) -> None:
        """Name the entries of which table and index say different things."""
        differing = [number for number in range(_BUCKETS) if index.index.sums[number] != index.table.sums[number]]
        buckets = frozenset(differing[:_MOST_BUCKETS])
        there: dict[int, tuple[Any, ...]] = {}
        twice: list[int] = []
        for number, *columns in self._stream(index.entries):
            if number % _BUCKETS in buckets:
                if number in there:
                    twice.append(number)
                there[number] = tuple(columns)
        problems: list[str] = []
        names = ", ".join(["namespace", "key", *index.expressions])
        for number, namespace, key, *columns in self._rows(names, lambda _: None):
            entry = tuple(columns)
            if number % _BUCKETS in buckets and index.has(entry):
                other = there.pop(number, None)
                if other is None:
                    problems.append(f"{named(namespace, key)} is missing in {index.shown}")
                elif other != entry:
                    problems.append(f"{named(namespace, key)} has another value in {index.shown}")
        problems += [self._stray(index, number, entry) for number, entry in there.items()]
        problems += [f"{index.shown} has the row {number} twice" for number in twice]
        for problem in problems[:_SHOWN_OF_AN_INDEX]:
            self._findings.add(problem)
        if len(problems) > _SHOWN_OF_AN_INDEX or len(differing) > len(buckets) or not problems:
            self._findings.add(f"{index.shown} and the table do not say the same of more entries")

    def _stray(self, index: Index, number: int, entry: tuple[Any, ...]) -> str:
        what = f"{index.shown} has an entry"
        if index.row is None and not index.is_partial_by_expiry:
            return f"{what} for {named(*entry)}, whose row is missing or cannot be read"
        try:
            rows = self._fetch(EXPIRY_OF_ROW, (number,))
        except _UnreadableError:
            return f"{what} for the row {number}, which cannot be read"
        if not rows:
            return f"{what} for the row {number}, which is missing"
        return f"{what} for {named(*rows[0][:2])} that does not belong there"


def _text(column: Any) -> str:
    if not isinstance(column, bytes):
        raise TypeError("there is no name left")
    return column.decode(errors="backslashreplace")
