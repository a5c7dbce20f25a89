"""Hazard: a backup that is damaged takes the place of a good one, or what is restored is not what was stored.

A file has each key, and each time to live, twice: in its row and in an index. Where they differ nobody can say which is
right, so neither a backup nor a restore may choose.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from mycelia_storage import CopyProgress, Storage, StorageCorruptError, StorageIOError, field, open_storage
from mycelia_storage.engines.sqlite import checkpoints, copying, soundness
from mycelia_storage.engines.sqlite.places import rename_to_free

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


NOW = 4_000_000_000.0
EXPIRES_AT = ((4_000_000_000 + 86400 * 300) * 1000).to_bytes(6, "big")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"
    with open_storage(path, clock=lambda: NOW) as store:
        fill(store)
    return path


@pytest.fixture(params=[(2000, 16), (3, 1)], ids=["at once, few namespaces", "in steps, many namespaces"])
def some_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many entries are compared at once, and so many namespaces are few."""
    for name, number in zip(("_AT_ONCE", "_FEW"), request.param, strict=True):
        monkeypatch.setattr(soundness, name, number)


def fill(store: Storage) -> None:
    store.set("user:0001", {"balance": 1}, namespace="another")
    for number in range(9):
        store.set(f"user:000{number}", {"balance": number})
    store.set("user:0009", {"balance": 9}, ttl=86400 * 300)
    store.set("user:0001", {"balance": 1}, namespace="later")
    store.set("user:0001", {"balance": 1}, namespace="defaulu")  # one bit from the other one
    store.create_index("balance")


def in_its_row(raw: bytearray, namespace: bytes, key: bytes) -> int:
    """Where the row of a key has both. The table's only page comes before those of the indexes."""
    return raw.index(namespace + key)


def in_the_key_index(raw: bytearray, namespace: bytes, key: bytes) -> int:
    return raw.index(namespace + key, in_its_row(raw, namespace, key) + 1)


def in_the_expiry_index(raw: bytearray) -> int:
    """Where the index has the only expiry, behind which the namespace stands."""
    return raw.index(EXPIRES_AT + b"default")


def a_key(raw: bytearray) -> None:
    """One bit, in a row: the index goes on to have the right one."""
    raw[in_its_row(raw, b"default", b"user:0004") + 15] ^= 0x40


def a_namespace(raw: bytearray) -> None:
    raw[in_its_row(raw, b"default", b"user:0004") + 6] ^= 0x01


def an_id(raw: bytearray) -> None:
    """The id stands before the eleven bytes that say of what types the columns are."""
    raw[in_its_row(raw, b"later", b"user:0001") - 11] ^= 0x10


def an_expiry(raw: bytearray) -> None:
    raw[raw.index(EXPIRES_AT + b'{"balance":9}') + 5] ^= 0x01


def a_key_of_the_index(raw: bytearray) -> None:
    raw[in_the_key_index(raw, b"default", b"user:0004") + 15] ^= 0x40


def the_order_of_the_key_index(raw: bytearray) -> None:
    """A search for what comes behind this key finds what came before it."""
    raw[in_the_key_index(raw, b"default", b"user:0004") + 15] ^= 0x10


def the_last_key_of_the_index(raw: bytearray) -> None:
    raw[in_the_key_index(raw, b"later", b"user:0001") + 13] ^= 0x02


def a_namespace_of_the_key_index(raw: bytearray) -> None:
    raw[in_the_key_index(raw, b"default", b"user:0004") + 6] ^= 0x01


def an_id_of_the_key_index(raw: bytearray) -> None:
    raw[in_the_key_index(raw, b"default", b"user:0004") + 16] ^= 0x01


def the_type_of_a_key_of_the_index(raw: bytearray) -> None:
    """The same bytes, as a blob, which no search for the text finds."""
    raw[in_the_key_index(raw, b"default", b"user:0004") - 2] ^= 0x01


def the_type_of_the_first_key_of_the_index(raw: bytearray) -> None:
    raw[in_the_key_index(raw, b"another", b"user:0001") - 2] ^= 0x01


def the_type_of_the_last_key_of_the_index(raw: bytearray) -> None:
    raw[in_the_key_index(raw, b"later", b"user:0001") - 2] ^= 0x01


def the_type_of_the_last_namespace_of_the_index(raw: bytearray) -> None:
    raw[in_the_key_index(raw, b"later", b"user:0001") - 3] ^= 0x01


def an_expiry_of_the_index(raw: bytearray) -> None:
    raw[in_the_expiry_index(raw) + 5] ^= 0x01


def a_namespace_of_the_expiry_index(raw: bytearray) -> None:
    """It becomes another one that there is."""
    raw[in_the_expiry_index(raw) + 12] ^= 0x01


def the_type_of_a_namespace_of_the_expiry_index(raw: bytearray) -> None:
    raw[in_the_expiry_index(raw) - 2] ^= 0x01


def an_id_of_the_expiry_index(raw: bytearray) -> None:
    raw[in_the_expiry_index(raw) + 13] ^= 0x01


DAMAGES = [
    a_key,
    a_namespace,
    an_id,
    an_expiry,
    a_key_of_the_index,
    the_order_of_the_key_index,
    the_last_key_of_the_index,
    a_namespace_of_the_key_index,
    an_id_of_the_key_index,
    the_type_of_a_key_of_the_index,
    the_type_of_the_first_key_of_the_index,
    the_type_of_the_last_key_of_the_index,
    the_type_of_the_last_namespace_of_the_index,
    an_expiry_of_the_index,
    a_namespace_of_the_expiry_index,
    the_type_of_a_namespace_of_the_expiry_index,
    an_id_of_the_expiry_index,
]
damaged = pytest.mark.parametrize("how", DAMAGES, ids=lambda how: how.__name__)


def damage(path: str | Path, how: Callable[[bytearray], None]) -> None:
    with open(path, "r+b") as file:
        raw = bytearray(file.read())
        how(raw)
        file.seek(0)
        file.write(raw)


@pytest.mark.usefixtures("some_at_once")
@damaged
def test_a_backup_of_which_row_and_index_differ_is_not_restored(
    tmp_path: Path, path: Path, how: Callable[[bytearray], None]
) -> None:
    damage(path, how)
    with open_storage(tmp_path / "other.db") as store:
        store.set("old", 1)
        with pytest.raises(StorageCorruptError):
            store.restore(path)
        assert store.list_keys() == ["old"]


@pytest.mark.usefixtures("some_at_once")
@damaged
def test_a_store_of_which_row_and_index_differ_gives_no_backup(
    tmp_path: Path, path: Path, how: Callable[[bytearray], None]
) -> None:
    damage(path, how)
    with open_storage(path) as store, pytest.raises(StorageCorruptError, match="do not say the same|out of order"):
        store.backup(tmp_path / "backup.db")
    assert not list(tmp_path.glob("backup*"))


@pytest.mark.usefixtures("some_at_once")
@damaged
def test_a_copy_that_is_not_what_was_copied_is_no_backup(
    tmp_path: Path, path: Path, how: Callable[[bytearray], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is whole: what is looked through has to be the copy, as the file has it."""
    complete = copying.complete

    def spoilt(connection: Any, *rest: Any) -> None:
        damage(connection.filename, how)
        complete(connection, *rest)

    monkeypatch.setattr(copying, "complete", spoilt)
    with open_storage(path) as store, pytest.raises(StorageCorruptError, match="do not say the same|out of order"):
        store.backup(tmp_path / "backup.db")
    assert not list(tmp_path.glob("backup*"))


@pytest.mark.parametrize("how", [a_key, an_expiry])
def test_a_copy_of_a_store_in_memory_is_read_back(
    tmp_path: Path, how: Callable[[bytearray], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = copying.complete

    def spoilt(connection: Any, *rest: Any) -> None:
        damage(connection.filename, how)
        complete(connection, *rest)

    monkeypatch.setattr(copying, "complete", spoilt)
    with open_storage("memory:", clock=lambda: NOW) as store:
        fill(store)
        with pytest.raises(StorageCorruptError, match="do not say the same"):
            store.backup(tmp_path / "backup.db")
    assert not list(tmp_path.glob("backup*"))


@pytest.mark.parametrize("few", [0, 16])
@pytest.mark.parametrize("how", [an_expiry, an_expiry_of_the_index, an_id_of_the_expiry_index])
def test_expiries_in_a_namespace_that_is_not_registered_are_compared_too(
    tmp_path: Path, path: Path, how: Callable[[bytearray], None], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soundness, "_FEW", few)
    edit(path, "DELETE FROM storage_namespaces")
    with open_storage(path) as store:
        store.backup(tmp_path / "good.db")
        damage(path, how)
        with pytest.raises(StorageCorruptError, match="storage_entries_expiry do not say the same"):
            store.backup(tmp_path / "backup.db")


@pytest.mark.parametrize(
    "change", ["expires_at = NULL WHERE key = 'user:0009'", "expires_at = 1 WHERE key = 'user:0002'"]
)
def test_an_expiry_that_only_the_row_or_only_the_index_has_is_seen(tmp_path: Path, path: Path, change: str) -> None:
    """SQLite's own check passes over an entry of an index of some rows that belongs to none of them."""
    kept = edit(
        path,
        "SELECT * FROM sqlite_schema WHERE name = 'storage_entries_expiry'",
        "PRAGMA writable_schema=ON; DELETE FROM sqlite_schema WHERE name = 'storage_entries_expiry'",
    )
    edit(path, f"UPDATE storage_entries SET {change} AND namespace = 'default'")
    edit(path, "PRAGMA writable_schema=ON; INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", bindings=kept)
    with open_storage(path) as store, pytest.raises(StorageCorruptError, match="do not say the same"):
        store.backup(tmp_path / "backup.db")
    with open_storage(tmp_path / "other.db") as store, pytest.raises(StorageCorruptError):
        store.restore(path)


def edit(path: Path, *statements: str, bindings: Any = ()) -> Any:
    """What the first of the statements gives, of one that is no store's connection."""
    connection = apsw.Connection(str(path))
    found = [connection.execute(statement, bindings).fetchall() for statement in statements]
    connection.close()
    return found[0][0] if found[0] else None


def test_what_only_sqlites_own_check_sees_is_seen(tmp_path: Path, path: Path) -> None:
    def the_list_of_free_pages(raw: bytearray) -> None:
        raw[39] ^= 0x01

    damage(path, the_list_of_free_pages)
    with open_storage(path) as store, pytest.raises(StorageCorruptError, match="(?i)freelist"):
        store.backup(tmp_path / "backup.db")


def test_a_key_that_is_no_text_any_more_is_told_as_damage(tmp_path: Path, path: Path) -> None:
    """It is the same in its row and in the index."""
    edit(path, "UPDATE storage_entries SET key = CAST(x'ff' AS TEXT) WHERE key = 'user:0003'")
    with open_storage(path) as store, pytest.raises(StorageCorruptError):
        store.backup(tmp_path / "backup.db")


@pytest.mark.usefixtures("some_at_once")
def test_keys_of_every_kind_are_the_same_in_both(tmp_path: Path, path: Path) -> None:
    keys = ["\x01", "a\x01b", "\U0010ffff", "\ufffd", "é" * 500, "k" * 1024, "1", "-1", " ", "'", "a\n", "user:0001 "]
    with open_storage(path) as store:
        for number, namespace in enumerate(["default", "defaulu", "é", "\U0010ffff", "1", "n" * 255]):
            store.set_many({key: {"balance": number} for key in keys}, namespace=namespace, ttl=number or None)
        store.delete("user:0005")
        store.backup(tmp_path / "backup.db")
        with open_storage("memory:") as copy:
            copy.restore(tmp_path / "backup.db")
            assert copy.list_keys() == store.list_keys()


@pytest.mark.parametrize("how", [a_key, an_expiry])
def test_entries_are_compared_whatever_their_ids_are(
    tmp_path: Path, path: Path, how: Callable[[bytearray], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are taken by ranges of ids, which may be far apart, and as small and great as can be."""
    monkeypatch.setattr(soundness, "_AT_ONCE", 3)
    ids = [
        -(2**63),
        -(2**63) + 1,
        -(10**12),
        -2,
        -1,
        0,
        5,
        2**40,
        2**40 + 1,
        2**40 + 2,
        2**40 + 1000,
        2**63 - 2,
        2**63 - 1,
    ]
    edit(path, "UPDATE storage_entries SET id = id + 1000")
    edit(path, *(f"UPDATE storage_entries SET id = {wanted} WHERE id = {old}" for old, wanted in enumerate(ids, 1001)))
    with open_storage(path) as store:
        store.backup(tmp_path / "good.db")
    damage(path, how)
    with open_storage(path) as store, pytest.raises(StorageCorruptError, match="do not say the same"):
        store.backup(tmp_path / "backup.db")


def test_a_backup_that_cannot_be_brought_to_the_disk_is_none(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(what: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), what)

    monkeypatch.setattr(copying, "_sync", fail)
    with open_storage(path) as store, pytest.raises(StorageIOError):
        store.backup(tmp_path / "backup.db")
    assert not list(tmp_path.glob("backup*"))


# ---- several walks at the same time


def held(monkeypatch: pytest.MonkeyPatch, name: str) -> threading.Event:
    """One of the walks does not begin before the event is set, and can be stopped until then; it waits some seconds."""
    walk, may_go_on = getattr(soundness, name), threading.Event()

    def hold(connection: Any, what: str, go_on: Callable[[], None], *rest: Any) -> Any:
        for _ in range(10_000):
            if may_go_on.wait(0.001):
                break
            go_on()
        may_go_on.set()
        return walk(connection, what, go_on, *rest)

    monkeypatch.setattr(soundness, name, hold)
    return may_go_on


def test_an_index_that_is_out_of_order_is_not_walked_for_ever(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soundness, "_AT_ONCE", 1)
    told = list[str]()

    def have_patience(progress: CopyProgress) -> None:
        told.append(progress.step)
        assert len(told) < 500, "it goes round and round"

    damage(path, the_order_of_the_key_index)
    with open_storage(path) as store, pytest.raises(StorageCorruptError, match="do not say the same|out of order"):
        store.backup(tmp_path / "backup.db", progress=have_patience)


@pytest.mark.parametrize("name", ["_of_rows", "_of_indexes"])
def test_progress_is_told_until_the_last_walk_is_over(
    tmp_path: Path, path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, told = held(monkeypatch, name), list[str]()

    def count(progress: CopyProgress) -> None:
        told.append(progress.step)
        if told.count("checking") == 4:
            may_go_on.set()

    with open_storage(path) as store:
        store.backup(tmp_path / "backup.db", progress=count)
    assert told.count("checking") >= 4


@pytest.mark.parametrize("name", ["_of_rows", "_of_indexes"])
@pytest.mark.parametrize("when", [1, 4])
def test_what_cancels_a_backup_stops_every_walk(
    tmp_path: Path, path: Path, name: str, when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran_out, told = held(monkeypatch, name), list[str]()

    def cancel(progress: CopyProgress) -> None:
        told.append(progress.step)
        if told.count("checking") == when:
            raise KeyError("enough")

    with open_storage(path) as store, pytest.raises(KeyError, match="enough"):
        store.backup(tmp_path / "backup.db", progress=cancel)
    assert not list(tmp_path.glob("backup*"))
    assert not [thread for thread in threading.enumerate() if thread.name == "mycelia-check"]
    assert not ran_out.is_set()


# ---- others


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
        monkeypatch.setattr(checkpoints, "open_to_write_back", lambda *_: pytest.fail("a connection is opened"))
        keeper._is_closed = True
        assert keeper.step()


def engine_of(store: Storage) -> Any:
    return store._engine
