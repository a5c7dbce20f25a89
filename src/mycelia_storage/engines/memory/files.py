"""A store in memory as a SQLite file, and back: the same rows, with their versions, times, expiry and indexes.

Called by the engine for `backup` and `restore`.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from mycelia_storage.engines.engine import NamespaceRow, Row
from mycelia_storage.engines.memory.state import State, Table, is_live
from mycelia_storage.engines.sqlite import copying, indexes, schema
from mycelia_storage.engines.sqlite.copying import Teller, failing_as
from mycelia_storage.errors import CapacityError

if TYPE_CHECKING:
    import apsw

    from mycelia_storage.engines.engine import Progress
    from mycelia_storage.options import Options

_ROWS_AT_ONCE: Final = 1000

NO_NAMESPACES: Final = "DELETE FROM storage_namespaces"
ADD_NAMESPACE: Final = "INSERT INTO storage_namespaces (name, metadata, created_at) VALUES (?, ?, ?)"
ADD_ROW: Final = """
INSERT INTO storage_entries (namespace, key, version, created_at, updated_at, expires_at, metadata, value)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""

NAMESPACES: Final = "SELECT name, metadata, created_at FROM storage_namespaces"
COUNT: Final = "SELECT count(*) FROM storage_entries"
ROWS: Final = """
SELECT namespace, key, version, created_at, updated_at, expires_at, metadata, value FROM storage_entries
ORDER BY namespace, key"""


def write(state: State, path: str, options: Options, *, overwrite: bool, progress: Progress | None) -> None:
    """A file of everything that has not expired."""
    teller = Teller(progress)
    with copying.new_file(path, options, overwrite=overwrite, store=None) as target:
        with failing_as(path):
            target.execute("BEGIN IMMEDIATE")
            _lay_out(state, target, options)
        _write_rows(state, target, path, options, teller)
        with failing_as(path):
            for index in state.indexes.values():
                indexes.create(target, index)
            target.execute("COMMIT")
        copying.complete(target, path, teller)


def read(path: str, options: Options, beside: str, progress: Progress | None) -> State:
    """What such a file holds. The copy that is looked at stands in the directory of `beside`."""
    teller = Teller(progress)
    with copying.prepared(path, options, teller, beside=beside) as source:
        state = State()
        with failing_as(path):
            total = source.execute(COUNT).get
            if options.capacity is not None and total > options.capacity:
                message = f"{path}: the file holds {total} entries, and capacity={options.capacity} is the limit"
                raise CapacityError(message)
            state.registered = {row[0]: NamespaceRow(*row) for row in source.execute(NAMESPACES)}
            state.floor = copying.greatest_version(source)
            rows = source.execute(ROWS)
        teller.tell("restoring", 0, total)
        done = 0
        while some := _some(rows, path):
            for namespace, *columns in some:
                row = Row(*columns)
                state.tables.setdefault(namespace, Table({})).rows[row.key] = row
            done += len(some)
            if done < total:
                teller.tell("restoring", done, total)
        with failing_as(path):
            state.indexes = {index.name: index for index in indexes.all_indexes(source).values()}
    return state


def _lay_out(state: State, target: apsw.Connection, options: Options) -> None:
    schema.create(target, int(options.clock() * 1000))
    target.execute(NO_NAMESPACES)
    target.executemany(ADD_NAMESPACE, state.registered.values())
    copying.raise_floor(target, state.floor)


def _write_rows(state: State, target: apsw.Connection, path: str, options: Options, teller: Teller) -> None:
    now, total, done = round(options.clock() * 1_000_000), state.size(), 0
    for name, table in state.tables.items():
        rows = iter(table.rows.values())
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            teller.tell("copying", done, total)
            with failing_as(path):
                target.executemany(ADD_ROW, [(name, *row) for row in some if is_live(row, now)])
            done += len(some)


def _some(rows: apsw.Cursor, path: str) -> list[tuple[Any, ...]]:
    with failing_as(path):
        return list(islice(rows, _ROWS_AT_ONCE))
