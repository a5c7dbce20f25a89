"""Hazard: a file that is not ours, or from a newer library, is opened, migrated or rewritten."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest

from mycelia_storage import (
    ConfigError,
    NotAStorageFileError,
    SchemaVersionError,
    StorageCorruptError,
    StorageIOError,
    open_storage,
)
from mycelia_storage.engines.sqlite.schema import APPLICATION_ID

if TYPE_CHECKING:
    from collections.abc import Callable


def state_of(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def make(path: Path, *statements: str, wal: bool = False) -> None:
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal" if wal else "delete")
    for statement in statements:
        connection.execute(statement)
    connection.close()


FOREIGN = {
    "a table of somebody else": ("CREATE TABLE t (a)", "INSERT INTO t VALUES (1)"),
    "an application id": ("CREATE TABLE t (a)", "PRAGMA application_id=1234"),
    "only an application id": ("PRAGMA application_id=1234",),
    "a view": ("CREATE VIEW v AS SELECT 1",),
    "our table with other columns": (
        "CREATE TABLE storage_entries (namespace, key, value)",
        "CREATE TABLE schema_version (version INTEGER)",
        "INSERT INTO schema_version VALUES (1)",
    ),
    "half of version 1": (
        "CREATE TABLE schema_version (version INTEGER PRIMARY KEY, applied_at INTEGER NOT NULL)",
        "INSERT INTO schema_version VALUES (1, 1)",
    ),
    "a schema_version without a version": ("CREATE TABLE schema_version (a)", "CREATE TABLE storage_entries (b)"),
}


@pytest.mark.parametrize("wal", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_database_is_refused_and_stays_byte_identical(tmp_path: Path, name: str, wal: bool) -> None:
    path = tmp_path / "foreign.db"
    make(path, *FOREIGN[name], wal=wal)
    before = state_of(tmp_path)
    for read_only in (False, True):
        with pytest.raises(NotAStorageFileError, match="foreign.db"):
            open_storage(path, read_only=read_only)
    assert state_of(tmp_path) == before


def test_a_foreign_database_with_a_wal_keeps_both_as_they_are(tmp_path: Path) -> None:
    live = tmp_path / "live.db"
    writer = apsw.Connection(str(live))
    writer.pragma("journal_mode", "wal")
    writer.execute("CREATE TABLE t (a)")
    writer.execute("INSERT INTO t VALUES (1)")
    place = tmp_path / "copy"
    place.mkdir()
    for end in ("", "-wal"):
        shutil.copyfile(f"{live}{end}", place / f"foreign.db{end}")
    writer.close()
    before = state_of(place)
    with pytest.raises(NotAStorageFileError):
        open_storage(place / "foreign.db")
    after = state_of(place)
    assert {name: after[name] for name in before} == before
    look = apsw.Connection(str(place / "foreign.db"))
    assert look.execute("SELECT a FROM t").get == 1
    look.close()


def test_a_foreign_database_with_a_hot_journal_is_not_rolled_back(tmp_path: Path) -> None:
    path = tmp_path / "foreign.db"
    dies = (
        "import apsw, os, signal\n"
        f"c = apsw.Connection({str(path)!r})\n"
        "c.execute('CREATE TABLE t (a)'); c.execute('PRAGMA cache_size=5')\n"
        "c.execute('BEGIN'); c.executemany('INSERT INTO t VALUES (?)', [(\"x\" * 900,)] * 2000)\n"
        "c.cache_flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", dies], check=False)
    assert (tmp_path / "foreign.db-journal").stat().st_size > 0
    before = state_of(tmp_path)
    with pytest.raises(NotAStorageFileError):
        open_storage(path)
    assert state_of(tmp_path) == before


@pytest.mark.parametrize(
    "content",
    [b"hello", b"\0" * 4096, b"SQLite format 3\0", b"SQLite format 3\0" + b"\xff" * 5000, os.urandom(8192)],
    ids=["text", "zeros", "the magic alone", "the magic and rubbish", "noise"],
)
def test_what_is_no_database_is_refused_and_stays_byte_identical(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.db"
    path.write_bytes(content)
    with pytest.raises(NotAStorageFileError, match="file.db"):
        open_storage(path)
    assert path.read_bytes() == content
    assert [found.name for found in tmp_path.iterdir()] == ["file.db"]


@pytest.mark.parametrize("wal", [False, True])
def test_a_file_from_a_newer_library_is_refused_and_stays_byte_identical(tmp_path: Path, wal: bool) -> None:
    path = tmp_path / "newer.db"
    open_storage(path, wal_mode=wal).close()
    make_newer = apsw.Connection(str(path))
    make_newer.execute("INSERT INTO schema_version VALUES (3, 1)")
    make_newer.execute("CREATE TABLE storage_of_tomorrow (a)")
    make_newer.close()
    before = state_of(tmp_path)
    for options in ({}, {"read_only": True}, {"migrate": False}):
        with pytest.raises(SchemaVersionError, match="version 3"):
            open_storage(path, **options)  # type: ignore[arg-type]
    assert {name: digest for name, digest in state_of(tmp_path).items() if name in before} == before


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON storage_entries BEGIN DELETE FROM storage_namespaces; END",
        "CREATE VIEW v AS SELECT * FROM storage_entries",
        "CREATE TABLE extra (a)",
        "DROP INDEX storage_entries_expiry",
        "ALTER TABLE storage_entries ADD COLUMN more TEXT",
    ],
)
def test_a_file_of_ours_with_an_altered_schema_is_refused(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "store.db"
    open_storage(path).close()
    make(path, statement)
    with pytest.raises(StorageCorruptError, match="schema"):
        open_storage(path)


def test_tables_of_sqlite_and_litestream_are_no_alteration(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with open_storage(path) as store:
        store.set("a", 1)
    make(path, "CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)", "ANALYZE", wal=True)
    with open_storage(path) as store:
        assert store.get("a") == 1
        store.check()


def test_an_empty_file_and_an_empty_database_are_new(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    make(tmp_path / "database.db", "CREATE TABLE t (a)", "DROP TABLE t")
    for name in ("empty.db", "database.db"):
        with open_storage(tmp_path / name) as store:
            store.set("a", 1)
        found = apsw.Connection(str(tmp_path / name))
        assert found.pragma("application_id") == APPLICATION_ID
        found.close()


def test_files_and_directories_are_private_under_any_umask(tmp_path: Path) -> None:
    for umask in (0o000, 0o022, 0o777):
        old = os.umask(umask)
        try:
            store = open_storage(tmp_path / f"{umask:o}" / "a" / "b.db")
            store.set("key", 1)
            for end in ("", "-wal", "-shm"):
                assert os.stat(tmp_path / f"{umask:o}" / "a" / f"b.db{end}").st_mode & 0o777 == 0o600
            store.close()
        finally:
            os.umask(old)
        for directory in (tmp_path / f"{umask:o}", tmp_path / f"{umask:o}" / "a"):
            assert directory.stat().st_mode & 0o777 == 0o700


def test_a_directory_and_an_unusable_place_are_named_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="directory"):
        open_storage(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageIOError, match="file/below.db"):
        open_storage(tmp_path / "file" / "below.db")
    with pytest.raises(ConfigError, match="no file"):
        open_storage(tmp_path / "missing.db", read_only=True)
    assert not (tmp_path / "missing.db").exists()


def test_a_name_that_sqlite_would_interpret_is_a_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = ("./file:x.db", "a b%20#?.db", "ünï.db", "./:memory:", "-rf.db")
    for name in (*plain, "file:x.db?mode=memory", "file:x.db"):
        with open_storage(name) if name in plain else open_storage(db_path=name) as store:
            store.set("key", name)
        with open_storage(Path(name)) as store:
            assert store.get("key") == name
        assert (tmp_path / name).is_file()


def test_a_store_opened_through_a_link_is_the_file_it_leads_to(tmp_path: Path) -> None:
    real, link = tmp_path / "real.db", tmp_path / "link.db"
    with open_storage(real) as store:
        store.set("a", 1)
    link.symlink_to(real)
    with open_storage(link) as store:
        store.set("b", 2)
    assert not (tmp_path / "link.db-wal").exists()
    with open_storage(real) as store:
        assert store.list_keys() == ["a", "b"]


def test_a_read_only_store_reads_and_refuses_every_write(tmp_path: Path) -> None:
    from mycelia_storage import StorageReadOnlyError

    path = tmp_path / "store.db"
    with open_storage(path) as store:
        store.set("a", 1)
    with open_storage(path, read_only=True) as store:
        assert store.get("a") == 1
        assert store.check().entries == 1
        writes: list[Callable[[], object]] = [
            lambda: store.set("a", 2),
            lambda: store.delete("a"),
            lambda: store.set_many({"b": 1}),
            lambda: store.clear(),
            lambda: store.create_namespace("n"),
            lambda: store.optimize(),
            lambda: store.migrate(to=1),
            lambda: store.load([("a", 1)]),
        ]
        for write in writes:
            with pytest.raises(StorageReadOnlyError):
                write()
        with store.transaction() as tx, pytest.raises(StorageReadOnlyError):
            tx.set("a", 2)
    with open_storage(path) as store:
        assert store.get("a") == 1
