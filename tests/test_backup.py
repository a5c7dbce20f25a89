"""Hazard: a backup that cannot be restored, or a restore that leaves less than there was."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from children import Child, run

from mycelia_storage import (
    CapacityError,
    ConfigError,
    CopyProgress,
    InvalidValueError,
    NotAStorageFileError,
    SchemaVersionError,
    Storage,
    StorageBusyError,
    StorageClosedError,
    StorageCorruptError,
    StorageError,
    StorageIOError,
    StorageReadOnlyError,
    TransactionError,
    UniqueIndexError,
    field,
    open_async_storage,
    open_storage,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mycelia_storage.testing import FakeClock

ORIGINAL = Path(__file__).parent / "data" / "original_adapter_v1.db"
SQLITE_HEADER_BYTES = 100


class CancelledError(Exception):
    """What a test's progress raises."""


def fill(store: Storage, count: int = 300) -> None:
    """Something of everything that an entry can have; more than one step of pages from some thousand entries on."""
    store.create_namespace("empty", metadata={"note": "nothing here"})
    store.set_many({f"key{number:06}": {"n": number, "text": "x" * 400} for number in range(count)}, metadata={"a": 1})
    store.create_index("n", unique=True)
    store.set_many({"soon": {"s": 1}, "later": {"s": 2}}, ttl=1000, namespace="expiring")


def everything(store: Storage) -> list[Any]:
    with store.transaction(read_only=True) as tx:
        names = tx.list_namespaces()
        entries = [entry for name in names for entry in tx.scan(namespace=name)]
        return [entries, [tx.namespace_info(name) for name in names], tx.list_indexes()]


def files_of(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def edit(path: Path, *statements: str) -> None:
    connection = apsw.Connection(str(path))
    for statement in statements:
        connection.execute(statement)
    connection.close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "backups"
    folder.mkdir()
    return folder / "backup.db"


# ---- what is in it


@pytest.mark.parametrize("into", ["memory", "sqlite"])
def test_everything_survives_in_a_store_of_either_engine(
    any_store: Storage, tmp_path: Path, target: Path, clock: FakeClock, into: str
) -> None:
    fill(any_store)
    before = everything(any_store)
    any_store.backup(target)
    assert files_of(target.parent) == {"backup.db"}
    with open_storage("memory:" if into == "memory" else tmp_path / "other.db", clock=clock) as other:
        other.set("other", {"n": 1})
        other.create_index("gone")
        other.restore(target)
        assert everything(other) == before
        other.check()
        with pytest.raises(UniqueIndexError):
            other.set("new", {"n": 7})
        clock.advance(1000)
        assert other.list_keys(namespace="expiring") == []
    with open_storage(target, read_only=True) as opened:
        assert opened.count() == 300


def test_what_has_expired_does_not_come_back(any_store: Storage, target: Path, clock: FakeClock) -> None:
    fill(any_store)
    any_store.backup(target)
    clock.advance(2000)
    any_store.restore(target)
    assert any_store.count(namespace="expiring") == 0
    any_store.optimize()
    assert any_store.check().entries == 300


def test_a_version_is_not_given_twice_though_the_clock_was_set_back(
    any_store: Storage, target: Path, clock: FakeClock
) -> None:
    any_store.set("a", 1)
    any_store.backup(target)
    clock.advance(1000)
    later = any_store.set("a", 2)
    any_store.restore(target)
    clock.advance(-1000)
    assert any_store.set("a", 3) > later
    assert any_store.set("new", 3) > later


def test_a_backup_stands_alone(sqlite_store: Storage, target: Path) -> None:
    fill(sqlite_store)
    sqlite_store.backup(target)
    header = target.read_bytes()[:SQLITE_HEADER_BYTES]
    assert header[18:20] == b"\x01\x01", "it needs no -wal beside it"
    target.parent.chmod(0o500)
    try:
        with open_storage("memory:") as memory:
            memory.restore(target)
            assert memory.count() == 300
    finally:
        target.parent.chmod(0o700)


def test_a_backup_under_writers_is_one_state(tmp_path: Path, target: Path) -> None:
    """Two entries that are always written together are equal in it, and what was acknowledged before is there."""
    program = """
from mycelia_storage import open_storage
with open_storage(sys.argv[1]) as store:
    begin()
    number = 0
    while True:
        number += 1
        store.set_many({"left": number, "right": number, f"more{number % 2000}": "x" * 500}, namespace=sys.argv[2])
        if number == 1: print("writing", flush=True)
"""
    path = tmp_path / "store.db"
    with open_storage(path) as store:
        fill(store, 3000)
        stopped = threading.Event()

        def write() -> None:
            number = 0
            while not stopped.is_set():
                number += 1
                store.set_many({"left": number, "right": number, f"more{number % 500}": "y" * 500}, namespace="thread")

        threads = [threading.Thread(target=write) for _ in range(2)]
        with Child(program, path, "process") as child:
            assert child.line() == "ready"
            child.tell()
            assert child.line() == "writing"
            for thread in threads:
                thread.start()
            try:
                for round_ in range(6):
                    acknowledged = store.set("acknowledged", round_)
                    store.backup(target, overwrite=True)
                    with open_storage("memory:") as copy:
                        copy.restore(target)
                        for name in ("thread", "process"):
                            assert copy.get("left", namespace=name) == copy.get("right", namespace=name)
                        assert copy.get_entry("acknowledged").version == acknowledged
                        assert copy.count() == 3001
            finally:
                stopped.set()
                for thread in threads:
                    thread.join()
    assert files_of(target.parent) == {"backup.db"}


# ---- where it stands


def test_an_existing_target_is_refused_and_stays(any_store: Storage, target: Path) -> None:
    target.write_bytes(b"somebody's")
    with pytest.raises(ConfigError, match="overwrite=True"):
        any_store.backup(target)
    assert target.read_bytes() == b"somebody's"
    any_store.backup(target, overwrite=True)
    any_store.restore(target)
    assert files_of(target.parent) == {"backup.db"}


def test_a_target_that_came_meanwhile_stays(any_store: Storage, target: Path) -> None:
    def come(_: CopyProgress) -> None:
        target.write_bytes(b"somebody's")

    with pytest.raises(ConfigError, match="overwrite=True"):
        any_store.backup(target, progress=come)
    assert target.read_bytes() == b"somebody's"
    assert files_of(target.parent) == {"backup.db"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_is_never_followed(any_store: Storage, target: Path, tmp_path: Path, overwrite: bool) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    for pointed in (precious, tmp_path / "nothing"):
        target.symlink_to(pointed)
        with pytest.raises(ConfigError, match="no link"):
            any_store.backup(target, overwrite=overwrite)
        target.unlink()
    assert precious.read_bytes() == b"precious"
    assert not (tmp_path / "nothing").exists()


def test_the_stores_own_files_are_no_target_and_no_source(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with open_storage(path) as store:
        store.set("a", 1)
        os.link(path, tmp_path / "hard")
        (tmp_path / "folder").symlink_to(tmp_path)
        for name in ("store.db", "store.db-wal", "store.db-shm", "store.db-journal", "hard", "folder/store.db"):
            with pytest.raises(ConfigError, match="own file"):
                store.backup(tmp_path / name, overwrite=True)
        for name in ("store.db", "hard", "folder/store.db"):
            with pytest.raises(ConfigError, match="own file"):
                store.restore(tmp_path / name)
        assert store.get("a") == 1
        store.check()


@pytest.mark.parametrize("end", ["-wal", "-journal"])
def test_a_target_with_a_log_beside_it_is_refused(any_store: Storage, target: Path, end: str) -> None:
    beside = target.with_name(target.name + end)
    beside.write_bytes(b"")
    with pytest.raises(ConfigError, match="part of the backup"):
        any_store.backup(target, overwrite=True)
    assert files_of(target.parent) == {beside.name}


def test_another_open_store_is_no_target(any_store: Storage, target: Path) -> None:
    with open_storage(target) as other:
        other.set("a", "theirs")
        with pytest.raises(ConfigError, match="has .* open"):
            any_store.backup(target, overwrite=True)
        assert other.get("a") == "theirs"


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_a_backup_is_for_its_owner_only(any_store: Storage, target: Path, umask: int) -> None:
    target.write_bytes(b"")
    target.chmod(0o666)
    before = os.umask(umask)
    modes: set[int] = set()
    try:
        any_store.backup(
            target,
            overwrite=True,
            progress=lambda _: modes.update(
                stat.S_IMODE(path.stat().st_mode) for path in target.parent.iterdir() if path != target
            ),
        )
    finally:
        os.umask(before)
    assert modes == {0o600}
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_a_link_to_a_backup_is_followed_by_a_restore(any_store: Storage, target: Path, tmp_path: Path) -> None:
    """Such as one to the latest of many."""
    any_store.set("a", 1)
    any_store.backup(target)
    any_store.set("a", 2)
    latest = tmp_path / "latest"
    latest.symlink_to(target)
    any_store.restore(latest)
    assert any_store.get("a") == 1
    latest.unlink()
    latest.symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="no file"):
        any_store.restore(latest)


BAD_PATHS: list[Any] = ["", 5, None, b"bytes", "a\0b", "\ud800"]


@pytest.mark.parametrize("path", BAD_PATHS, ids=repr)
def test_what_is_no_path_is_refused(any_store: Storage, path: Any) -> None:
    for verb in (any_store.backup, any_store.restore):
        with pytest.raises(ConfigError, match="path"):
            verb(path)


def test_directories_and_missing_files_are_named(any_store: Storage, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="regular file"):
        any_store.backup(tmp_path, overwrite=True)
    with pytest.raises(StorageIOError, match="No such file"):
        any_store.backup(tmp_path / "nowhere" / "backup.db")
    with pytest.raises(ConfigError, match="no file"):
        any_store.restore(tmp_path)
    with pytest.raises(ConfigError, match="there is no file"):
        any_store.restore(tmp_path / "missing.db")
    assert any_store.count() == 0


def test_a_long_name_is_no_hindrance(any_store: Storage, target: Path) -> None:
    name = target.with_name("é" * 120)
    any_store.backup(name)
    any_store.restore(name)


# ---- what fails


def test_progress_tells_of_every_step(any_store: Storage, target: Path) -> None:
    fill(any_store, 12_000)
    told: list[CopyProgress] = []
    any_store.backup(target, progress=told.append)
    assert list(dict.fromkeys(one.step for one in told)) == ["copying", "checking"]
    copied = [one.done for one in told if one.step == "copying"]
    assert copied == sorted(copied)
    assert len(copied) > 1
    assert all(0 <= one.done <= one.total for one in told)
    told.clear()
    any_store.restore(target, progress=told.append)
    assert list(dict.fromkeys(one.step for one in told)) == ["copying", "checking", "restoring"]


@pytest.mark.parametrize("step", ["copying", "checking"])
def test_a_cancelled_backup_leaves_nothing(any_store: Storage, target: Path, step: str) -> None:
    fill(any_store, 12_000)
    target.write_bytes(b"the last one")
    seen: list[CopyProgress] = []

    def cancel(progress: CopyProgress) -> None:
        seen.append(progress)
        if progress.step == step and [one.step for one in seen].count(step) == 2:
            raise CancelledError

    with pytest.raises(CancelledError):
        any_store.backup(target, overwrite=True, progress=cancel)
    assert files_of(target.parent) == {"backup.db"}
    assert target.read_bytes() == b"the last one"
    any_store.set("a", 1)
    any_store.backup(target, overwrite=True)


@pytest.mark.parametrize("step", ["copying", "checking", "restoring"])
def test_a_cancelled_restore_changes_nothing(any_store: Storage, tmp_path: Path, target: Path, step: str) -> None:
    fill(any_store, 12_000)
    any_store.backup(target)
    any_store.clear()
    any_store.set("new", 1)
    before, files = everything(any_store), files_of(tmp_path)
    seen: list[str] = []

    def cancel(progress: CopyProgress) -> None:
        seen.append(progress.step)
        if progress.step == step and seen.count(step) == 2:
            raise CancelledError

    with pytest.raises(CancelledError):
        any_store.restore(target, progress=cancel)
    assert everything(any_store) == before
    assert files_of(tmp_path) == files
    any_store.set("newer", 1)
    any_store.restore(target)
    assert any_store.count() == 12_000


def test_progress_of_a_restore_cannot_use_the_store(any_store: Storage, target: Path) -> None:
    any_store.backup(target)
    with pytest.raises(TransactionError):
        any_store.restore(target, progress=lambda _: any_store.set("a", 1))
    assert any_store.count() == 0


def test_inside_a_transaction_both_are_refused(any_store: Storage, target: Path) -> None:
    with any_store.transaction() as tx:
        tx.set("a", 1)
        with pytest.raises(TransactionError, match="tx"):
            any_store.backup(target)
        with pytest.raises(TransactionError, match="tx"):
            any_store.restore(target)
    assert any_store.get("a") == 1
    assert not target.exists()


def test_a_restore_waits_for_its_turn_no_longer_than_busy_timeout(tmp_path: Path, target: Path) -> None:
    with open_storage(tmp_path / "store.db") as first, open_storage(tmp_path / "store.db", busy_timeout=0.05) as second:
        first.set("a", 1)
        second.backup(target)
        with first.transaction() as tx:
            tx.set("a", 2)
            with pytest.raises(StorageBusyError):
                second.restore(target)
        assert second.get("a") == 2


def test_a_read_only_store_is_backed_up_and_not_restored(tmp_path: Path, target: Path) -> None:
    with open_storage(tmp_path / "store.db") as store:
        store.set("a", 1)
    with open_storage(tmp_path / "store.db", read_only=True) as store:
        store.backup(target)
        with pytest.raises(StorageReadOnlyError):
            store.restore(target)


def test_a_store_that_is_closed_meanwhile_ends_the_backup(tmp_path: Path, target: Path) -> None:
    store = open_storage(tmp_path / "store.db")
    fill(store, 12_000)
    with pytest.raises(StorageClosedError):
        store.backup(target, progress=lambda _: store.close())
    assert files_of(target.parent) == set()


FULL = """
import resource, signal
from mycelia_storage import StorageError, open_storage
path, target, verb, limit = sys.argv[1:]
with open_storage(path if path == "memory:" else path) as store:
    if path == "memory:":
        store.set_many({str(n): "x" * 500 for n in range(2000)})
    before = store.count()
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    try:
        store.backup(target) if verb == "backup" else store.restore(target)
    except StorageError as error:
        print(error.code)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert store.count() == before
    store.set("still", 1)
    store.check()
"""


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_backup_that_finds_no_room_leaves_nothing(tmp_path: Path, target: Path, kind: str) -> None:
    path = "memory:" if kind == "memory" else str(tmp_path / "store.db")
    if kind == "sqlite":
        with open_storage(path) as store:
            fill(store, 2000)
    assert run(FULL, path, target, "backup", 200_000) in ("io", "full")
    assert files_of(target.parent) == set()


@pytest.mark.parametrize("limit", [100_000, 1_200_000])
def test_a_restore_that_finds_no_room_changes_nothing(tmp_path: Path, target: Path, limit: int) -> None:
    """With the smaller limit the copy beside finds none, with the greater one the store's own log."""
    path = tmp_path / "store.db"
    with open_storage(path) as store:
        fill(store, 1000 if limit < 1_000_000 else 2300)
        store.backup(target)
        size = target.stat().st_size
        assert size > limit or size + 30_000 > limit
        store.clear()
        store.set("old", {"n": 1})
    assert run(FULL, path, target, "restore", limit) in ("io", "full")
    with open_storage(path) as store:
        assert store.get("old") == {"n": 1}
        assert store.count() == 2
        store.check()
    assert not [name for name in files_of(tmp_path) if name.endswith(".partial")]


KILLED = """
import os, signal
from mycelia_storage import open_storage
path, target, verb, count = sys.argv[1:]
def kill(progress):
    global count
    count = int(count) - 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
with open_storage(path) as store:
    store.backup(target, progress=kill) if verb == "backup" else store.restore(target, progress=kill)
print("not killed")
"""


def test_a_process_killed_at_any_step_leaves_a_whole_backup_or_none(tmp_path: Path, target: Path) -> None:
    path = tmp_path / "store.db"
    with open_storage(path) as store:
        fill(store, 12_000)
    for count in (1, 2, 3, 5):
        with Child(KILLED, path, target, "backup", count) as child:
            assert child.line() == "ready" or child.line() == ""
        assert not target.exists()
    with open_storage(path) as store:
        assert store.check().entries == 12_002
        store.backup(target)
        store.restore(target)


def test_a_process_killed_at_any_step_of_a_restore_leaves_the_old_state(tmp_path: Path, target: Path) -> None:
    path = tmp_path / "store.db"
    with open_storage(path) as store:
        fill(store, 12_000)
        store.backup(target)
        told: list[CopyProgress] = []
        store.restore(target, progress=told.append)
        store.clear()
        store.set("old", {"n": 1})
    steps = [one.step for one in told]
    for count in (1, steps.index("checking") + 1, steps.index("restoring") + 1, len(steps)):
        with Child(KILLED, path, target, "restore", count) as child:
            assert child.line() == ""
        with open_storage(path) as store:
            assert store.list_keys() == ["old"]
            store.check()


# ---- what is restored


def test_other_connections_and_processes_see_the_restored_state(tmp_path: Path, target: Path) -> None:
    program = """
from mycelia_storage import open_storage
with open_storage(sys.argv[1]) as store:
    begin()
    print(store.get("a"), store.count(), flush=True)
    begin()
    print(store.get("a"), store.count(), [index.name for index in store.list_indexes()], flush=True)
    store.set("child", 1)
"""
    path = tmp_path / "store.db"
    with open_storage(path) as store, open_storage(path) as other, Child(program, path) as child:
        store.create_index("n", name="by n")
        store.set("a", "backed up")
        store.backup(target)
        store.drop_index("by n")
        store.set_many({"a": "newer", "b": 1})
        assert (other.get("a"), other.count()) == ("newer", 2)
        assert child.line() == "ready"
        child.tell()
        assert child.line() == "newer 2"
        assert child.line() == "ready"
        with other.transaction(read_only=True) as tx:
            assert tx.get("a") == "newer"
            store.restore(target)
            assert tx.get("a") == "newer", "who reads one state goes on to read it"
        assert (other.get("a"), other.count()) == ("backed up", 1)
        assert [index.name for index in other.list_indexes()] == ["by n"]
        child.tell()
        assert child.output() == "backed up 1 ['by n']"
        assert store.get("child") == 1
        store.check()


@pytest.mark.parametrize("page_size", [512, 1024, 8192, 65536])
@pytest.mark.parametrize("wal", [True, False])
def test_pages_of_any_size_become_those_of_the_store(tmp_path: Path, target: Path, page_size: int, wal: bool) -> None:
    path = tmp_path / "store.db"
    with open_storage(path, wal_mode=wal) as store:
        fill(store)
        before = everything(store)
        store.backup(target)
        edit(target, f"PRAGMA page_size={page_size}", "VACUUM")
        assert int.from_bytes(target.read_bytes()[16:18], "big") in (page_size, 1)
        store.clear_all()
        store.restore(target)
        assert everything(store) == before
        assert store.get_status().details["page_size"] == 4096
        store.set("a", {"n": -1})
        store.check()


def reserve(path: Path, count: int) -> None:
    connection = apsw.Connection(str(path))
    connection.reserve_bytes("main", count)
    connection.execute("VACUUM")
    connection.close()
    assert path.read_bytes()[20] == count


@pytest.mark.parametrize(("of_store", "of_source"), [(0, 16), (16, 0), (16, 16)])
def test_reserved_bytes_become_those_of_the_store(tmp_path: Path, target: Path, of_store: int, of_source: int) -> None:
    """What they are for is known to who reserved them: too few or too many would make the file unreadable for him."""
    path = tmp_path / "store.db"
    with open_storage(path, wal_mode=False) as store:
        fill(store)
        before = everything(store)
        store.backup(target)
    reserve(path, of_store)
    if of_source:
        reserve(target, of_source)
    with open_storage(path) as store:
        store.clear_all()
        store.restore(target)
        assert everything(store) == before
        store.set("a", {"n": -1})
        store.check()
    assert path.read_bytes()[20] == of_store


@pytest.mark.parametrize("wal", [True, False])
def test_a_store_without_wal_is_copied_too(tmp_path: Path, target: Path, wal: bool) -> None:
    path = tmp_path / "store.db"
    with open_storage(path, wal_mode=False) as store:
        fill(store)
        before = everything(store)
        store.backup(target)
        with open_storage(tmp_path / "other.db", wal_mode=wal) as other:
            other.restore(target)
            assert everything(other) == before
            assert other.get_status().details["journal_mode"] == ("wal" if wal else "delete")


def test_a_file_that_is_written_to_while_it_is_read_is_not_restored(any_store: Storage, target: Path) -> None:
    """Nobody had it open at first, so it is read without locks: part of it would be of before, and part of after."""
    with open_storage(target) as store:
        fill(store, 9000)
    any_store.set("old", 1)
    with contextlib.closing(apsw.Connection(str(target))) as writer:

        def write(progress: CopyProgress) -> None:
            if (progress.step, progress.done) == ("copying", 1024):
                writer.execute("UPDATE storage_entries SET value = replace(value, 'xxx', 'yyy'), version = version + 1")
                writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                writer.execute("UPDATE storage_namespaces SET metadata = NULL")
                assert os.path.getsize(f"{target}-wal")

        with pytest.raises(StorageBusyError, match="was changed while it was read"):
            any_store.restore(target, progress=write)
    assert any_store.list_keys() == ["old"]


def test_a_file_with_its_log_beside_it_is_restored_with_it(any_store: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source.db"
    with open_storage(source) as store:
        store.set("a", 1)
        for end in ("", "-wal"):
            shutil.copyfile(f"{source}{end}", tmp_path / f"copy.db{end}")
    copy = tmp_path / "copy.db"
    before = {path.name: digest(path) for path in tmp_path.glob("copy.db*")}
    assert set(before) == {"copy.db", "copy.db-wal"}
    any_store.restore(copy)
    assert any_store.get("a") == 1
    assert {name: digest(tmp_path / name) for name in before} == before


def test_a_file_of_version_1_is_brought_up_and_stays_as_it_is(any_store: Storage, tmp_path: Path) -> None:
    source = tmp_path / "original.db"
    shutil.copyfile(ORIGINAL, source)
    before = digest(source)
    any_store.restore(source)
    assert digest(source) == before
    assert any_store.get_status().schema_version == 2
    assert any_store.check().entries == 209
    assert any_store.get_metadata("user:0", namespace="users") == {"source": "import", "row": 0}


def test_a_file_of_version_1_is_refused_with_migrate_false(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db", migrate=False) as store:
        store.set("a", 1)
        with pytest.raises(SchemaVersionError, match="migrate=False"):
            store.restore(ORIGINAL)
        assert store.get("a") == 1


def corrupt_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def spoil_header(path: Path) -> None:
    path.write_bytes(b"no database at all" + path.read_bytes()[18:])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_database(path: Path) -> None:
    path.write_bytes(b'{"a": 1}\n' * 100)


def sql(*statements: str) -> Callable[[Path], None]:
    return lambda path: edit(path, *statements)


def change_a_row_behind_its_index(path: Path, number: int = -7) -> None:
    """While the index is out of the schema: every row can still be read, and only a walk through both tells."""
    connection = apsw.Connection(str(path))
    kept = connection.execute("SELECT * FROM sqlite_schema WHERE name = 'storage_index_1'").fetchall()
    connection.execute("PRAGMA writable_schema=ON; DELETE FROM sqlite_schema WHERE name = 'storage_index_1'")
    connection.close()
    edit(path, f"UPDATE storage_entries SET value = '{{\"n\":{number}}}' WHERE key = 'key000100'")
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA writable_schema=ON")
    connection.executemany("INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", kept)
    connection.close()


UNACCEPTABLE: dict[str, tuple[Callable[[Path], None], type[StorageError]]] = {
    "no database": (no_database, NotAStorageFileError),
    "empty": (empty, NotAStorageFileError),
    "header": (spoil_header, NotAStorageFileError),
    "another application": (sql("PRAGMA application_id=1234"), NotAStorageFileError),
    "a table more": (sql("CREATE TABLE other (a)"), StorageCorruptError),
    "a trigger": (
        sql("CREATE TRIGGER t AFTER INSERT ON storage_entries BEGIN DELETE FROM storage_entries; END"),
        StorageCorruptError,
    ),
    "newer": (sql("INSERT INTO schema_version VALUES (3, 1)"), SchemaVersionError),
    "damaged page": (corrupt_page, StorageCorruptError),
    "truncated": (truncate, StorageCorruptError),
    "two entries with a unique value": (lambda path: change_a_row_behind_its_index(path, 99), StorageCorruptError),
    "a value that is no JSON": (
        sql("UPDATE storage_entries SET value = '{' WHERE namespace = 'expiring' AND key = 'soon'"),
        StorageCorruptError,
    ),
    "a value that is no UTF-8": (
        sql("UPDATE storage_entries SET value = CAST(x'22ff22' AS TEXT) WHERE key = 'soon'"),
        StorageCorruptError,
    ),
}


@pytest.mark.parametrize("name", UNACCEPTABLE)
def test_a_file_that_cannot_be_taken_changes_nothing(
    any_store: Storage, tmp_path: Path, target: Path, name: str
) -> None:
    spoil, expected = UNACCEPTABLE[name]
    fill(any_store, 500)
    any_store.backup(target)
    spoil(target)
    any_store.set("new", {"n": -1})
    before, source, files = everything(any_store), digest(target), files_of(tmp_path)
    with pytest.raises(expected) as caught:
        any_store.restore(target)
    assert "backup.db" in str(caught.value)
    assert ".partial" not in str(caught.value)
    assert everything(any_store) == before
    assert digest(target) == source
    assert files_of(tmp_path) == files
    assert files_of(target.parent) == {"backup.db"}
    any_store.check()


def test_an_index_that_disagrees_is_built_anew(
    any_store: Storage, tmp_path: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A backup does not compare indexes with entries. What it lets through can be restored, and nothing is lost."""
    fill(any_store, 500)
    any_store.backup(target)
    change_a_row_behind_its_index(target)
    second = target.parent / "second.db"
    with open_storage(target) as damaged:
        with pytest.raises(StorageCorruptError):
            damaged.check()
        damaged.backup(second)
    any_store.restore(second)
    assert "indexes did not fit the entries and were built anew" in caplog.messages[0]
    assert len(caplog.messages) == 1
    any_store.check()
    assert any_store.get("key000100") == {"n": -7}
    assert any_store.query(field("n") == -7).keys() == ["key000100"], "by the index"


def test_a_damaged_store_gives_no_backup(tmp_path: Path, target: Path) -> None:
    path = tmp_path / "store.db"
    with open_storage(path) as store:
        fill(store, 500)
    corrupt_page(path)
    target.write_bytes(b"the last good one")
    with open_storage(path) as store, pytest.raises(StorageCorruptError, match="damaged"):
        store.backup(target, overwrite=True)
    assert target.read_bytes() == b"the last good one"
    assert files_of(target.parent) == {"backup.db"}


def test_a_store_in_memory_takes_no_more_than_its_capacity(sqlite_store: Storage, target: Path) -> None:
    fill(sqlite_store, 20)
    sqlite_store.backup(target)
    with open_storage("memory:", capacity=10) as memory:
        memory.set("a", 1)
        with pytest.raises(CapacityError):
            memory.restore(target)
        assert memory.list_keys() == ["a"]


# ---- asyncio


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_an_event_loop_goes_on_while_it_is_copied(tmp_path: Path, target: Path, kind: str) -> None:
    async def work() -> None:
        async with open_async_storage("memory:" if kind == "memory" else tmp_path / "store.db") as store:
            await store.set("a", 1)
            loop_thread, threads = threading.get_ident(), set[int]()
            is_copying, go_on = asyncio.Event(), threading.Event()
            loop = asyncio.get_running_loop()

            def wait(_: CopyProgress) -> None:
                threads.add(threading.get_ident())
                loop.call_soon_threadsafe(is_copying.set)
                assert go_on.wait(30)

            copy = asyncio.create_task(store.backup(target, progress=wait))
            await is_copying.wait()
            assert await store.set("a", 2)
            assert await store.get("a") == 2
            go_on.set()
            await copy
            assert loop_thread not in threads
            await store.restore(target)
            assert await store.get("a") == 1

    asyncio.run(work())


def test_a_cancelled_task_ends_the_backup(tmp_path: Path, target: Path) -> None:
    async def work() -> None:
        async with open_async_storage(tmp_path / "store.db") as store:
            await store.set("a", 1)
            is_copying, go_on = asyncio.Event(), threading.Event()
            loop = asyncio.get_running_loop()

            def wait(_: CopyProgress) -> None:
                loop.call_soon_threadsafe(is_copying.set)
                assert go_on.wait(30)

            copy = asyncio.create_task(store.backup(target, progress=wait))
            await is_copying.wait()
            copy.cancel()
            with pytest.raises(asyncio.CancelledError):
                await copy
            go_on.set()
            await store.set("b", 1)

    asyncio.run(work())
    assert files_of(target.parent) == set()


def test_a_bad_progress_is_the_callers_error(any_store: Storage, target: Path) -> None:
    with pytest.raises(InvalidValueError, match="progress"):
        any_store.backup(target, progress="often")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidValueError, match="overwrite"):
        any_store.backup(target, overwrite=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert not target.exists()


# ---- the command line


def shell(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mycelia_storage.cli", *arguments],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        cwd=folder,
        env={**os.environ, "MYCELIA_STORAGE": "store.db"},
    )


def test_the_command_line_backs_up_and_restores(tmp_path: Path) -> None:
    assert shell(tmp_path, "set", "a", "1").returncode == 0
    assert shell(tmp_path, "backup", "b.db").returncode == 0
    again = shell(tmp_path, "backup", "b.db")
    assert (again.returncode, "there already" in again.stderr) == (2, True)
    assert shell(tmp_path, "backup", "b.db", "--overwrite").returncode == 0
    assert shell(tmp_path, "set", "b", "2").returncode == 0
    refused = shell(tmp_path, "restore", "b.db")
    assert refused.returncode == 2
    assert "2 entries" in refused.stderr
    assert "--yes" in refused.stderr
    assert shell(tmp_path, "list").stdout == "a\nb\n"
    done = shell(tmp_path, "restore", "b.db", "--yes")
    assert (done.returncode, '"entries":1' in done.stdout) == (0, True)
    assert shell(tmp_path, "list").stdout == "a\n"


def test_the_command_line_restores_a_store_that_is_gone(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db") as store:
        store.set("a", 1)
        store.backup(tmp_path / "b.db")
    (tmp_path / "store.db").unlink()
    refused = shell(tmp_path, "restore", "b.db")
    assert refused.returncode == 2
    assert not (tmp_path / "store.db").exists()
    assert shell(tmp_path, "restore", "missing.db", "--yes").returncode == 3
    assert not (tmp_path / "store.db").exists()
    assert shell(tmp_path, "restore", "b.db", "--yes").returncode == 0
    assert shell(tmp_path, "list").stdout == "a\n"


def test_the_command_line_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    assert shell(tmp_path, "set", "a", "1").returncode == 0
    (tmp_path / "bad.db").write_text("nothing of a database")
    refused = shell(tmp_path, "restore", "bad.db", "--yes")
    assert refused.returncode in (2, 3)
    assert "no SQLite database" in refused.stderr
    assert shell(tmp_path, "get", "a").stdout == '"1"\n'
