"""Hazard: a backup that is damaged takes the place of a good one, or what is restored is not what was stored.

A file has each key, and each time to live, twice: in its row and in an index. Where they differ nobody can say which is
right, so neither a backup nor a restore may choose.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import Storage, StorageCorruptError, StorageIOError, field, open_storage
from mycelia_storage.engines.sqlite import checkpoints, copying
from mycelia_storage.engines.sqlite.places import rename_to_free

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"
    with open_storage(path) as store:
        for number in range(9):
            store.set(f"user:000{number}", {"balance": number})
        store.set("user:0009", {"balance": 9}, ttl=86400 * 300)
        store.create_index("balance")
    return path


def in_a_key(raw: bytearray) -> None:
    """One bit of a key, in its row: the key index goes on to have the right one."""
    raw[raw.rindex(b"user:0004", 0, raw.index(b'{"balance":4}')) + 8] ^= 0x40


def in_an_expiry(raw: bytearray) -> None:
    """One bit of a time to live, in its row."""
    with_expiry = raw.index(b'{"balance":9}')
    raw[raw.rindex(b"user:0009", 0, with_expiry) + len(b"user:0009") + 8 + 6 + 6 + 5] ^= 0x01


DAMAGES = {"key": in_a_key, "expiry": in_an_expiry}


def damage(path: Path, how: Callable[[bytearray], None]) -> None:
    raw = bytearray(path.read_bytes())
    how(raw)
    path.write_bytes(raw)


@pytest.mark.parametrize("how", DAMAGES.values(), ids=DAMAGES)
def test_a_backup_of_which_row_and_index_differ_is_not_restored(
    tmp_path: Path, path: Path, how: Callable[[bytearray], None]
) -> None:
    damage(path, how)
    with open_storage(tmp_path / "other.db") as store:
        store.set("old", 1)
        with pytest.raises(StorageCorruptError):
            store.restore(path)
        assert store.list_keys() == ["old"]


@pytest.mark.parametrize("how", DAMAGES.values(), ids=DAMAGES)
def test_a_store_of_which_row_and_index_differ_gives_no_backup(
    tmp_path: Path, path: Path, how: Callable[[bytearray], None]
) -> None:
    damage(path, how)
    with open_storage(path) as store, pytest.raises(StorageCorruptError, match="do not say the same"):
        store.backup(tmp_path / "backup.db")
    assert not list(tmp_path.glob("backup*"))


def test_what_was_copied_as_nothing_is_no_backup(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = copying.complete

    def emptied(connection: Any, *rest: Any) -> None:
        os.truncate(connection.filename, 0)
        complete(connection, *rest)

    monkeypatch.setattr(copying, "complete", emptied)
    with open_storage(path) as store, pytest.raises(StorageCorruptError):
        store.backup(tmp_path / "backup.db")
    assert not list(tmp_path.glob("backup*"))


def test_a_backup_can_be_opened_as_soon_as_it_has_its_name(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second name would have it refused, and for good where the process is killed before it is taken away."""
    sync, links = copying._sync, list[int]()
    target = tmp_path / "backup.db"

    def looking(what: str) -> None:
        if target.exists():
            links.append(target.stat().st_nlink)
            with open_storage(target) as copy:
                assert copy.count() == 10
        sync(what)

    monkeypatch.setattr(copying, "_sync", looking)
    with open_storage(path) as store:
        store.backup(target)
    assert links == [1]


@pytest.mark.parametrize("system", ["linux", "another"])
def test_a_name_that_somebody_has_is_not_taken(tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", system)
    one, other, free = tmp_path / "one", tmp_path / "other", tmp_path / "free"
    one.write_text("one")
    other.write_text("other")
    with pytest.raises(FileExistsError):
        rename_to_free(str(one), str(other))
    assert other.read_text() == "other"
    rename_to_free(str(one), str(free))
    assert free.read_text() == "one"
    assert not one.exists()
    assert free.stat().st_nlink == 1


# ---- no thread to be had


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.mark.usefixtures("no_threads")
def test_a_backup_needs_no_thread(tmp_path: Path, path: Path) -> None:
    """There is none to be had at the end of the interpreter."""
    with open_storage(path) as store:
        store.backup(tmp_path / "backup.db")
    with open_storage(tmp_path / "backup.db") as copy:
        assert copy.query(field("balance") == 4).keys() == ["user:0004"]


def test_without_threads_writes_are_stored_and_the_store_closes(
    path: Path, no_threads: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoints, "WAL_LIMIT", 20_000)
    with open_storage(path) as store:
        for number in range(300):
            store.set(f"key{number}", "x" * 200)
        store.set("soon gone", 1, ttl=1000)
        with pytest.raises(StorageIOError, match="max_duration"), store.transaction(max_duration=60) as tx:
            tx.set("a", 1)
        store.set("b", 2)
    assert "no thread could be started" in caplog.text
    with open_storage(path) as store:
        assert store.count() == 10 + 300 + 2


def test_a_thread_that_was_not_to_be_had_is_started_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "WAL_LIMIT", 20_000)
    start = threading.Thread.start
    attempts: list[str] = []

    def first_not(thread: threading.Thread) -> None:
        attempts.append(thread.name)
        if attempts.count("mycelia-checkpoints") == 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", first_not)
    with open_storage(path) as store:
        for number in range(300):
            store.set(f"key{number}", "x" * 200)
    assert attempts.count("mycelia-checkpoints") == 2


def test_closing_does_not_wait_for_a_checkpoint_that_waits_for_a_fork(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is at work while the store is being closed opens no connection any more."""
    with open_storage(path) as store:
        keeper = engine_of(store).checkpoints
        monkeypatch.setattr(checkpoints, "WAL_LIMIT", 0)
        monkeypatch.setattr(checkpoints, "open_writer", lambda *_: pytest.fail("a connection is opened"))
        keeper._is_closed = True
        assert keeper.step()


def engine_of(store: Storage) -> Any:
    return store._engine
