"""A store in PostgreSQL as the contents of a file, and back.

Called by the engine for `backup` and `restore`.
"""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any, Final

from mycelia_storage.engines import files
from mycelia_storage.engines.files import ROWS_AT_ONCE, Contents
from mycelia_storage.keys import KeyRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mycelia_storage.engines.engine import Progress, Row
    from mycelia_storage.engines.postgres.session import PostgresSession
    from mycelia_storage.engines.postgres.statements import Wording
    from mycelia_storage.options import Options

# No version that was given before is given again.
RAISE_FLOOR: Final = """
UPDATE {s}.state SET floor = greatest(floor, $1::bigint, (SELECT coalesce(max(version), 0) FROM {s}.entries))"""
NO_ENTRIES: Final = "DELETE FROM {s}.entries"
NO_NAMESPACES: Final = "DELETE FROM {s}.namespaces"


def contents_of(session: PostgresSession, now: int) -> Contents:
    """Everything that has not expired, as the session sees it."""

    def rows() -> Iterator[tuple[str, Sequence[Row]]]:
        for namespace in session.namespaces():
            low = ""
            while some := session.page(namespace.name, KeyRange(low), now, limit=ROWS_AT_ONCE):
                yield namespace.name, some
                low = some[-1].key + "\0"

    tally = session.tally(None, now)
    registered = [row for row in session.namespaces() if row.created_at is not None]
    return Contents(registered, tally.floor, tally.entries, rows(), session.indexes())


def restore(
    begin: Callable[[], PostgresSession],
    words: Wording,
    path: str,
    options: Options,
    now: int,
    progress: Progress | None,
) -> None:
    """Put what a file holds in place of everything, in one transaction, which `begin` gives once nobody else writes.

    It is serializable: one that began before and writes afterwards goes by what is no longer there, and is refused.
    """
    with tempfile.TemporaryDirectory() as made:
        beside = os.path.join(os.path.realpath(made), "store")  # no link in it, which no store is opened through
        with files.read(path, options, beside, progress) as contents:
            session = begin()
            try:
                _replace(session, words, contents, now)
                session.commit()
            finally:
                session.rollback()


def _replace(session: PostgresSession, words: Wording, contents: Contents, now: int) -> None:
    def empty(cursor: Any) -> None:
        cursor.execute(RAISE_FLOOR.format(s=words.schema), (contents.floor,))
        cursor.execute(NO_ENTRIES.format(s=words.schema))
        cursor.execute(NO_NAMESPACES.format(s=words.schema))

    session.write(empty)
    for index in session.indexes():
        session.drop_index(index.name)
    for row in contents.namespaces:
        session.place_namespace(row)
    for namespace, rows in contents.rows:
        session.place(namespace, rows, now)
    for index in contents.indexes:
        session.create_index(index, now)
