"""A store of any engine as a SQLite file, and back: the same rows, with their versions, times, expiry and indexes.

Called by the engines whose stores are no such files, for `backup` and `restore`.
"""

from __future__ import annotations

import contextlib
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mycelia_storage.engines.engine import IndexRow, NamespaceRow, Row
from mycelia_storage.engines.sqlite import copying, indexes, schema
from mycelia_storage.engines.sqlite.telling import Teller, failing_as

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import apsw

    from mycelia_storage.engines.engine import Progress
    from mycelia_storage.options import Options

ROWS_AT_ONCE: Final = 1000

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


class Contents(NamedTuple):
    """Everything that a store holds. `rows` come some at a time, with their namespace; `total` is about how many."""

    namespaces: Sequence[NamespaceRow]
    floor: int
    total: int
    rows: Iterable[tuple[str, Sequence[Row]]]
    indexes: Sequence[IndexRow]


def write(
    contents: Contents, path: str, options: Options, now_ms: int, *, overwrite: bool, progress: Progress | None
) -> None:
    """A file of it, which gets its name once it is known to be good."""
    teller = Teller(progress)
    with copying.new_file(path, options, overwrite=overwrite, store=None) as target:
        with failing_as(path):
            copying.begin_file(target, target.pragma("page_size"))
            target.execute("BEGIN IMMEDIATE")
            schema.create(target, now_ms)
            target.execute(NO_NAMESPACES)
            target.executemany(ADD_NAMESPACE, contents.namespaces)
            copying.raise_floor(target, contents.floor)
        done = 0
        for namespace, rows in contents.rows:
            teller.tell("copying", done, max(done, contents.total))
            with failing_as(path):
                target.executemany(ADD_ROW, [(namespace, *row) for row in rows])
            done += len(rows)
        with failing_as(path):
            for index in contents.indexes:
                indexes.create(target, index)
            target.execute("COMMIT")
        copying.complete(target, path, options, teller)


@contextlib.contextmanager
def read(path: str, options: Options, beside: str, progress: Progress | None) -> Iterator[Contents]:
    """What such a file holds, to be read within the block. A copy of it is looked at, in the directory of `beside`."""
    teller = Teller(progress)
    with copying.prepared(path, options, teller, beside=beside) as source:
        with failing_as(path):
            total = source.execute(COUNT).get
            registered = [NamespaceRow(*row) for row in source.execute(NAMESPACES)]
            floor = copying.greatest_version(source)
            created = list(indexes.all_indexes(source).values())
        yield Contents(registered, floor, total, _rows(source, path, total, teller), created)


def _rows(source: apsw.Connection, path: str, total: int, teller: Teller) -> Iterator[tuple[str, Sequence[Row]]]:
    with failing_as(path):
        cursor = source.execute(ROWS)
    teller.tell("restoring", 0, total)
    done = 0
    while some := _some(cursor, path):
        first = 0
        while first < len(some):
            namespace = some[first][0]
            behind = next((n for n in range(first, len(some)) if some[n][0] != namespace), len(some))
            yield namespace, [Row(*row[1:]) for row in some[first:behind]]
            first = behind
        done += len(some)
        if done < total:
            teller.tell("restoring", done, total)


def _some(rows: apsw.Cursor, path: str) -> list[tuple[Any, ...]]:
    with failing_as(path):
        return list(islice(rows, ROWS_AT_ONCE))
