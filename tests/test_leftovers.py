"""Files that looking at a store leaves beside it: none, and none is removed that another process is using."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import apsw
import pytest
from children import Child, run

from mycelia_storage import ConfigError, SchemaVersionError, Storage, open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "made.db"
    with open_storage(made) as store:
        store.set("a", 1)
    return made


@pytest.fixture
def memory() -> Iterator[Storage]:
    with open_storage("memory:") as store:
        store.set("a", "new")
        yield store


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent))


def leave_empty_wal(path: Path) -> None:
    """As a program does that only reads, by plain SQLite, or is killed while it does."""
    with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        connection.execute("SELECT count(*) FROM storage_entries").fetchall()
    assert os.path.getsize(f"{path}-wal") == 0


def test_a_look_at_a_store_leaves_nothing_beside_it(path: Path) -> None:
    for _ in range(2):
        with open_storage(path, read_only=True) as store:
            assert store.get("a") == 1
            assert list(store.scan())
        assert names(path) == ["made.db"]


def test_a_look_that_is_refused_leaves_nothing_beside_it(path: Path) -> None:
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.execute("INSERT INTO schema_version (version, applied_at) VALUES (99, 1)")
    assert names(path) == ["made.db"]
    with pytest.raises(SchemaVersionError):
        open_storage(path, read_only=True)
    assert names(path) == ["made.db"]


def test_the_last_of_those_who_look_tidies_up(path: Path) -> None:
    first, second = open_storage(path, read_only=True), open_storage(path, read_only=True)
    first.close()
    assert second.get("a") == 1
    assert os.path.exists(f"{path}-wal"), "the other one has it open"
    second.close()
    assert names(path) == ["made.db"]


def test_a_backup_that_was_looked_at_can_be_replaced(tmp_path: Path) -> None:
    backup = tmp_path / "app.backup"
    with open_storage(tmp_path / "a.db") as store:
        for round_ in range(2):
            store.set("a", round_)
            store.backup(backup, overwrite=True)
            with open_storage(backup) as copy:
                assert copy.count() == 1
            with open_storage(backup, read_only=True) as copy:
                copy.check()
                assert copy.get("a") == round_
        leave_empty_wal(backup)
        store.backup(backup, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["a.db", "app.backup"]


KILLED = """
import os, sys
from mycelia_storage import open_storage
store = open_storage(sys.argv[1])
store.set("b", 2)
print("set", flush=True)
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_left_in_the_wal_is_kept(path: Path, memory: Storage) -> None:
    with Child(KILLED, path) as child:
        assert child.line() == "set"
        child.process.wait()
    before = {end: os.stat(f"{path}{end}").st_ino for end in ("", "-wal")}
    assert os.path.getsize(f"{path}-wal")
    content = path.read_bytes()
    with open_storage(path, read_only=True) as store:
        assert store.get("b") == 2
    with pytest.raises(ConfigError, match="nobody has .* open, and something in it may not be written back"):
        memory.backup(path, overwrite=True)
    assert {end: os.stat(f"{path}{end}").st_ino for end in before} == before
    assert path.read_bytes() == content, "who only looks writes nothing back"
    with open_storage(path) as store:
        assert store.get("b") == 2
    memory.backup(path, overwrite=True)


OTHER = """
import sys
from mycelia_storage import open_storage
store = open_storage(sys.argv[1], read_only=sys.argv[2] == "reads")
assert store.get("a") == 1
begin()
if sys.argv[2] == "writes":
    store.set("b", 2, durable=True)
assert store.get("a") == 1
store.check()
print("done", flush=True)
sys.stdin.readline()
store.close()
"""


@pytest.mark.parametrize("other", ["writes", "reads"])
def test_a_store_that_another_process_has_open_is_never_harmed(path: Path, memory: Storage, other: str) -> None:
    """Its -wal is empty, and so looks like one that was left behind."""
    with Child(OTHER, path, other) as child:
        assert child.line() == "ready"
        assert os.path.getsize(f"{path}-wal") == 0
        before = {end: os.stat(f"{path}{end}").st_ino for end in ("", "-wal", "-shm")}
        for _ in range(3):
            with open_storage(path, read_only=True) as store:
                assert store.get("a") == 1
            with pytest.raises(ConfigError, match=r"a program has .*made\.db open"):
                memory.backup(path, overwrite=True)
        assert {end: os.stat(f"{path}{end}").st_ino for end in before} == before
        child.tell()
        assert child.line() == "done", child.output()
        with open_storage(path, read_only=True) as store:
            assert store.get("b") == (2 if other == "writes" else None)
        child.tell()
        child.output()
    with open_storage(path) as store:
        assert store.get("b") == (2 if other == "writes" else None)
        store.check()


REPLACING = """
import sys
from mycelia_storage import ConfigError, open_storage
with open_storage("memory:") as store:
    try:
        store.backup(sys.argv[1], overwrite=True)
    except ConfigError as error:
        print(error)
"""


def test_tidying_up_drops_no_lock_of_this_process(path: Path, memory: Storage) -> None:
    """Closing a file by hand would drop all of them, and the next process would take the store for closed."""
    with open_storage(path) as store:
        assert store.get("a") == 1
        open_storage(path, read_only=True).close()
        with pytest.raises(ConfigError, match="a program has"):
            memory.backup(path, overwrite=True)
        assert "a program has" in run(REPLACING, path)
        store.set("b", 2)
    with open_storage(path) as store:
        assert store.list_keys() == ["a", "b"]


WRITER = """
import sys
from mycelia_storage import open_storage
begin()
for number in range(25):
    with open_storage(sys.argv[1]) as store:
        store.set(f"{sys.argv[2]}:{number}", number)
print("done")
"""


def test_those_who_come_and_go_lose_nothing_by_those_who_look(path: Path) -> None:
    """Each opens the file at any moment of another's tidying up."""
    crew = [Child(WRITER, path, number) for number in range(2)]
    try:
        for child in crew:
            assert child.line() == "ready"
        for child in crew:
            child.tell()
        while any(child.process.poll() is None for child in crew):
            open_storage(path, read_only=True).close()
        for child in crew:
            assert child.output() == "done"
    finally:
        for child in crew:
            child.kill()
    with open_storage(path) as store:
        assert store.count() == 1 + 2 * 25
        store.check()
