"""Hazard: a file written by the original JavaScript adapter loses something, or is changed when it must not be."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import orjson
import pytest

from mycelia_storage import (
    InvalidValueError,
    NotAStorageFileError,
    SchemaVersionError,
    Storage,
    StorageError,
    open_storage,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ORIGINAL = Path(__file__).parent / "data" / "original_adapter_v1.db"

V1 = """
CREATE TABLE storage_entries (
  id INTEGER PRIMARY KEY AUTOINCREMENT, namespace TEXT NOT NULL DEFAULT 'default', key TEXT NOT NULL,
  value TEXT NOT NULL, metadata TEXT, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
  UNIQUE(namespace, key));
CREATE TABLE storage_namespaces (name TEXT PRIMARY KEY, metadata TEXT, created_at INTEGER NOT NULL);
CREATE TABLE schema_version (version INTEGER PRIMARY KEY, applied_at INTEGER NOT NULL);
CREATE INDEX idx_storage_namespace_key ON storage_entries(namespace, key);
CREATE INDEX idx_storage_namespace ON storage_entries(namespace);
CREATE INDEX idx_storage_created_at ON storage_entries(created_at);
CREATE INDEX idx_storage_updated_at ON storage_entries(updated_at);
INSERT INTO schema_version VALUES (1, 1);
INSERT INTO storage_namespaces VALUES ('default', NULL, 1);
"""

# What the JavaScript adapter runs to store a document.
JAVASCRIPT_SET = """
INSERT INTO storage_entries (namespace, key, value, metadata, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT(namespace, key) DO UPDATE SET value = excluded.value, metadata = excluded.metadata,
  updated_at = excluded.updated_at"""


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "original.db"
    shutil.copyfile(ORIGINAL, path)
    return path


def raw_rows(path: Path, sql: str) -> list[Any]:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def make_v1(path: Path, *rows: tuple[Any, ...], namespaces: tuple[tuple[Any, ...], ...] = ()) -> Path:
    connection = apsw.Connection(str(path))
    connection.execute(V1)
    connection.executemany(JAVASCRIPT_SET, rows)
    connection.executemany("INSERT INTO storage_namespaces VALUES (?, ?, ?)", namespaces)
    connection.close()
    return path


def fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_value_metadata_and_timestamp_of_the_original_is_kept(original: Path) -> None:
    before = raw_rows(
        original, "SELECT namespace, key, value, metadata, created_at, updated_at FROM storage_entries ORDER BY id"
    )
    assert len(before) == 209
    with open_storage(original) as store:
        for namespace, key, value, metadata, created_at, updated_at in before:
            entry = store.get_entry(key, namespace=namespace)
            assert orjson.dumps(entry.value).decode() == value
            assert entry.metadata == ({} if metadata is None else orjson.loads(metadata))
            assert round(entry.created_at.timestamp() * 1000) == created_at
            assert round(entry.updated_at.timestamp() * 1000) == updated_at
            assert entry.version == updated_at * 1000
            assert entry.expires_at is None
        assert store.get_status().entries == len(before)
    after = raw_rows(
        original, "SELECT namespace, key, value, metadata, created_at, updated_at FROM storage_entries ORDER BY id"
    )
    assert after == before, "the texts themselves are kept to the byte"


def test_the_namespace_that_the_original_forgot_is_registered(original: Path) -> None:
    registered = {name for (name,) in raw_rows(original, "SELECT name FROM storage_namespaces")}
    assert registered == {"default", "empty"}
    with open_storage(original) as store:
        assert store.list_namespaces() == ["default", "empty", "implicit", "users"]
        assert store.namespace_info("empty").metadata == {"note": "nothing here"}
        assert store.namespace_info("implicit").created_at is not None
        store.clear(namespace="implicit")
        assert "implicit" in store.list_namespaces()


def test_an_old_file_goes_on_and_stays_sound(original: Path) -> None:
    with open_storage(original) as store:
        store.set("user:0", {"name": "new"}, namespace="users", ttl=60)
        store.set("fresh", 1, namespace="brand new")
        store.increment("big", -1)
    with open_storage(original) as store:
        assert store.get("user:0", namespace="users") == {"name": "new"}
        assert store.get_metadata("user:0", namespace="users") == {"source": "import", "row": 0}
        assert store.get("big") == 9007199254740990
        assert store.check().entries == 210


def test_migrate_false_refuses_an_old_file_and_leaves_it_as_it_is(original: Path) -> None:
    before = fingerprint(original)
    with pytest.raises(SchemaVersionError, match="version 1"):
        open_storage(original, migrate=False)
    with pytest.raises(SchemaVersionError, match="version 1"):
        open_storage(original, read_only=True)
    assert fingerprint(original) == before
    assert sorted(path.name for path in original.parent.iterdir()) == [original.name]


def test_an_old_file_with_a_wal_beside_it_keeps_what_the_wal_holds(tmp_path: Path) -> None:
    path = make_v1(tmp_path / "v1.db")
    writer = apsw.Connection(str(path))
    writer.pragma("journal_mode", "wal")
    writer.execute(JAVASCRIPT_SET, ("default", "in the wal", "1", None, 5, 5))
    copy = tmp_path / "copy.db"
    for end in ("", "-wal"):
        shutil.copyfile(f"{path}{end}", f"{copy}{end}")
    writer.close()
    with open_storage(copy) as store:
        assert store.get("in the wal") == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("default", "k", "{", None, 1, 1), "not JSON"),
        (("default", "k", '"\\ud800"', None, 1, 1), "value"),
        (("default", "k", '{"a": [1, 12345678901234567890]}', None, 1, 1), "64 bits"),
        (("default", "k", "123456789012345678901234567890", None, 1, 1), "64 bits"),
        (("default", "k", '"a\\u0000b"', None, 1, 1), "U\\+0000"),
        (("default", "k", "[" * 201 + "]" * 201, None, 1, 1), "200"),
        (("default", "k", "1", "[1]", 1, 1), "metadata"),
        (("default", "k", "1", "{", 1, 1), "metadata"),
        (("default", "", "1", None, 1, 1), "at least one character"),
        (("default", "k" * 1025, "1", None, 1, 1), "1024"),
        (("a*b", "k", "1", None, 1, 1), "\\*"),
        (("", "k", "1", None, 1, 1), "namespace"),
        (("default", "k", "1", None, -1, 1), "created_at"),
        (("default", "k", "1", None, 1, "yesterday"), "updated_at"),
        (("default", "k", b"1", None, 1, 1), "no text"),
        (("default", "k", "1e999", None, 1, 1), "value"),
    ],
)
def test_a_row_that_breaks_the_rules_stops_the_migration_and_changes_nothing(
    tmp_path: Path, row: tuple[Any, ...], reason: str
) -> None:
    path = make_v1(tmp_path / "v1.db", ("default", "fine", "1", None, 1, 1), row)
    before = fingerprint(path)
    with pytest.raises(SchemaVersionError, match=reason) as caught:
        open_storage(path)
    assert repr(row[1][:5])[:-1] in str(caught.value), "the key is named"
    assert fingerprint(path) == before


def test_a_registered_namespace_that_breaks_the_rules_stops_the_migration(tmp_path: Path) -> None:
    path = make_v1(tmp_path / "v1.db", namespaces=(("bad\nname", None, 1),))
    with pytest.raises(SchemaVersionError, match="control character"):
        open_storage(path)


def test_all_bad_rows_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    path = make_v1(tmp_path / "v1.db", *[("default", f"bad{i}", "{", None, 1, 1) for i in range(100)])
    with pytest.raises(SchemaVersionError, match="'bad0'.*and 80 more"):
        open_storage(path)


def test_an_old_writer_fails_loudly_on_a_migrated_file(original: Path) -> None:
    with open_storage(original) as store:
        store.set("counter", 1)
        version = store.get_entry("counter").version
        javascript = apsw.Connection(str(original))
        with pytest.raises(apsw.ConstraintError):
            javascript.execute(JAVASCRIPT_SET, ("default", "counter", "2", None, 1, 1))
        with pytest.raises(apsw.ConstraintError):
            javascript.execute(JAVASCRIPT_SET, ("default", "new", "2", None, 1, 1))
        javascript.close()
        assert store.get("counter") == 1
        assert store.get_entry("counter").version == version


def test_going_down_gives_what_the_original_adapter_reads_and_writes(original: Path) -> None:
    before = raw_rows(original, "SELECT * FROM storage_entries ORDER BY id")
    schema_before = sorted(raw_rows(original, "SELECT name FROM sqlite_schema"))
    with open_storage(original) as store:
        store.migrate(to=1)
    assert raw_rows(original, "SELECT * FROM storage_entries ORDER BY id") == before
    assert sorted(raw_rows(original, "SELECT name FROM sqlite_schema")) == schema_before
    assert raw_rows(original, "PRAGMA application_id") == [(0,)]
    javascript = apsw.Connection(str(original))
    javascript.execute(JAVASCRIPT_SET, ("default", "from javascript", "[1]", None, 7, 7))
    javascript.close()
    with open_storage(original) as store:
        assert store.get("from javascript") == [1]
        assert store.get_status().entries == len(before) + 1


def test_going_down_refuses_while_an_entry_has_an_expiry_and_names_it(original: Path) -> None:
    with open_storage(original) as store:
        store.set("session", 1, namespace="users", ttl=3600)
        with pytest.raises(SchemaVersionError, match="'session' in 'users'"):
            store.migrate(to=1)
        assert store.get("session", namespace="users") == 1
        store.touch("session", namespace="users", ttl=None)
        store.migrate(to=1)
    assert raw_rows(original, "SELECT max(version) FROM schema_version") == [(1,)]


def test_what_has_expired_does_not_hinder_going_down_and_does_not_come_back(tmp_path: Path) -> None:
    now = 1_000_000.0
    path = tmp_path / "store.db"
    with open_storage(path, clock=lambda: now) as store:
        store.set("gone", 1, ttl=1)
        store.set("stays", 2)
        now += 2
        store.migrate(to=1)
        store.migrate()
        assert store.list_keys() == ["stays"]
        assert not store.has("gone")


def test_a_store_whose_file_went_down_says_so_until_it_is_migrated_again(original: Path) -> None:
    with open_storage(original) as store:
        store.migrate(to=1)
        for call in USES:
            with pytest.raises(SchemaVersionError, match="version 1 now"):
                call(store)
        store.migrate()
        assert store.get("big") == 9007199254740991


USES: list[Callable[[Storage], object]] = [
    lambda store: store.get("big"),
    lambda store: store.set("big", 1),
    lambda store: store.delete("big"),
    lambda store: store.has("big"),
    lambda store: store.get_many(["big", "x"]),
    lambda store: store.set_many({"a": 1, "b": 2}),
    lambda store: store.list_keys(),
    lambda store: store.count(),
    lambda store: list(store.scan()),
    lambda store: store.modify("big", lambda value: value),
]


def test_versions_after_down_and_up_are_positive_and_grow(tmp_path: Path) -> None:
    path = make_v1(tmp_path / "v1.db", ("default", "epoch", "1", None, 0, 0))
    with open_storage(path) as store:
        first = store.get_entry("epoch").version
        assert first >= 1
        assert store.set("epoch", 2) > first


def test_an_unknown_target_version_is_refused(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db") as store:
        for to in (0, 3, 99):
            with pytest.raises(StorageError, match=f"{to}"):
                store.migrate(to=to)
        bad: Any = "1"
        with pytest.raises(InvalidValueError, match="to"):
            store.migrate(to=bad)
        assert_works(store)


def assert_works(store: Storage) -> None:
    store.set("works", True)
    assert store.get("works") is True


def test_a_file_of_the_original_in_utf_16_is_refused_because_its_order_is_another(tmp_path: Path) -> None:
    file = tmp_path / "wide.db"
    wide = apsw.Connection(str(file))
    wide.execute(f"PRAGMA encoding='UTF-16le'; {V1}")
    wide.close()
    before = file.read_bytes()
    with pytest.raises(NotAStorageFileError, match="UTF-16"):
        open_storage(file)
    assert file.read_bytes() == before
