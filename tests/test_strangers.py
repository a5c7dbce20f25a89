"""Others on the same file: an old adapter, other versions of this library, other SQLite libraries. A clock set back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import apsw
import pytest
from children import Child, run

from mycelia_storage import SchemaVersionError, Storage, open_storage
from mycelia_storage.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "store.db")
    with open_storage(path) as store:
        store.set("k", 1)
    return path


# ---- an adapter that knows version 1

ADAPTER = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], timeout=10)
for statement in (
    "INSERT OR REPLACE INTO storage_entries (namespace, key, value, metadata, created_at, updated_at) "
    "VALUES (?, ?, ?, ?, ?, ?)",
    "INSERT INTO storage_entries (namespace, key, value, metadata, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT(namespace, key) DO UPDATE SET value = excluded.value",
):
    for key in ("k", "new"):
        try:
            with connection:
                connection.execute(statement, ("default", key, "2", None, 1, 1))
            print("written")
        except sqlite3.IntegrityError as error:
            print("refused", "version" in str(error))
print(connection.execute("SELECT value FROM storage_entries WHERE key = 'k'").fetchall())
connection.close()
"""


def test_an_old_adapter_that_replaces_rows_is_refused_and_can_read(path: str) -> None:
    with open_storage(path) as store:
        before = store.get_entry("k")
        printed = run(ADAPTER, path).splitlines()
        assert printed == ["refused True"] * 4 + ["[('1',)]"]
        assert store.get_entry("k") == before
        assert store.list_keys() == ["k"]


# ---- other versions of the library

USES: list[Callable[[Storage], object]] = [
    lambda store: store.set("k", 2),
    lambda store: store.set_many({"k": 2, "l": 2}),
    lambda store: store.get_entry("k"),
    lambda store: store.run_transaction(lambda tx: tx.set("k", 2)),
]


def test_a_file_that_a_newer_library_took_over_while_it_was_open_says_so(path: str) -> None:
    with open_storage(path) as store:
        assert store.get("k") == 1
        newer = apsw.Connection(path)
        newer.execute(
            "BEGIN; ALTER TABLE storage_entries RENAME COLUMN metadata TO about; "
            "INSERT INTO schema_version VALUES (3, 1); COMMIT"
        )
        for use in USES:
            with pytest.raises(SchemaVersionError, match="version 3.* use a newer library"):
                use(store)
        newer.close()
    with pytest.raises(SchemaVersionError, match="newer"):
        open_storage(path)


ONE_COLUMN_MORE = """
BEGIN;
CREATE TABLE more (namespace TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL, expires_at INTEGER, metadata TEXT, value TEXT NOT NULL, extra TEXT NOT NULL,
  UNIQUE(namespace, key));
INSERT INTO more SELECT namespace, key, version, created_at, updated_at, expires_at, metadata, value, ''
  FROM storage_entries;
DROP TABLE storage_entries;
ALTER TABLE more RENAME TO storage_entries;
INSERT INTO schema_version VALUES (3, 1);
COMMIT"""


def test_a_newer_version_with_a_column_more_refuses_the_writes_of_this_one(path: str) -> None:
    """As version 2 does to whoever knows version 1."""
    with open_storage(path) as store:
        newer = apsw.Connection(path)
        newer.execute(ONE_COLUMN_MORE)
        newer.close()
        for use in (USES[0], USES[1], USES[3]):
            with pytest.raises(SchemaVersionError, match="version 3.* use a newer library"):
                use(store)


# ---- another SQLite library

OTHER_LIBRARY = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None)
begin()
for number in range(150):
    connection.execute("BEGIN IMMEDIATE")
    (value,) = connection.execute("SELECT value FROM storage_entries WHERE key = 'n'").fetchone()
    connection.execute(
        "UPDATE storage_entries SET value = ?, version = version + 1 WHERE key = 'n'", (str(int(value) + 1),))
    connection.execute("COMMIT")
connection.close()
print("done")
"""


def test_another_library_in_another_process_loses_nothing(path: str) -> None:
    """In the same process it would: the system's locks are the process's, and neither library knows of the other's."""
    with open_storage(path, busy_timeout=20) as store, Child(OTHER_LIBRARY, path) as child:
        store.set("n", 0)
        assert child.line() == "ready"
        child.tell()
        for _ in range(150):
            store.increment("n")
        assert child.output() == "done"
        assert store.get("n") == 300


# ---- a clock that is set back


def test_a_clock_that_is_set_back_takes_nothing_from_an_entry(any_store: Storage, clock: FakeClock) -> None:
    writes: list[Callable[[], object]] = [
        lambda: any_store.set("k", 2),
        lambda: any_store.set_many({"k": 3, "l": 3}),
        lambda: any_store.modify("k", lambda value: value + 1),
        lambda: any_store.merge("k", {"a": 1}),
        lambda: any_store.touch("k", ttl=60),
        lambda: any_store.set_metadata("k", {"m": 1}),
        lambda: any_store.run_transaction(lambda tx: tx.set("k", 4)),
    ]
    any_store.set("k", 1)
    before = any_store.get_entry("k")
    clock.advance(-3_600)
    for write in writes:
        write()
        after = any_store.get_entry("k")
        assert after.version > before.version
        assert after.updated_at >= before.updated_at
        assert after.created_at == before.created_at
        before = after


def test_a_clock_that_is_set_back_makes_an_expiry_come_later_and_not_never(
    any_store: Storage, clock: FakeClock
) -> None:
    any_store.set("k", 1, ttl=60)
    clock.advance(-3_600)
    assert any_store.get("k") == 1
    any_store.set("l", 1, ttl=60)  # by the new time
    clock.advance(61)
    assert (any_store.get("k"), any_store.get("l")) == (1, None)
    clock.advance(3_600)
    assert any_store.list_keys() == []


def test_a_key_that_was_deleted_before_the_clock_was_set_back_gets_a_greater_version(
    any_store: Storage, clock: FakeClock
) -> None:
    """Where the version lay ahead of the clock at the time of the deletion; otherwise see the docs."""
    any_store.set("k", 1)
    version = any_store.get_entry("k").version
    clock.advance(-3_600)
    any_store.delete("k")
    any_store.set("k", 2)
    assert any_store.get_entry("k").version > version


def test_a_clock_that_is_set_back_between_two_openings(tmp_path: Path) -> None:
    clock = FakeClock()
    with open_storage(tmp_path / "store.db", clock=clock) as store:
        store.set("k", 1)
        before = store.get_entry("k")
    clock.advance(-86_400)
    with open_storage(tmp_path / "store.db", clock=clock) as store:
        store.set("k", 2)
        after = store.get_entry("k")
        assert (after.version > before.version, after.updated_at >= before.updated_at) == (True, True)
        store.check()
