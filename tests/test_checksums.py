"""Hazard: a disk changes a bit, and what is read is wrong, or right by luck; or a guard against it does damage itself.

The short form flips 300 bits, the long form 20,000 and prints what there was:

    pytest --hypothesis-profile=long -n 0 -s tests/test_checksums.py
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from children import Child, run, run_together
from flips import everything, fill, look_through, used_bits, write_flipped
from recording import recording

from mycelia_storage import (
    ConfigError,
    Storage,
    StorageCorruptError,
    open_storage,
)
from mycelia_storage.engines.sqlite import connection, engine
from mycelia_storage.sharing import Call
from mycelia_storage.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHORT, LONG = 300, 20_000
RESERVED_AT = 20
HEADER_BYTES = 100


def has_checksums(store: Storage) -> bool:
    found: bool = store.get_status().details["checksums"]
    return found


def bytes_of(path: Path) -> dict[str, bytes]:
    return {found.name: found.read_bytes() for found in path.parent.iterdir() if found.is_file()}


@pytest.fixture
def guarded(tmp_path: Path) -> tuple[Path, bytes, dict[tuple[str, str], Any]]:
    """A closed file with checksums, its bytes, and what it holds."""
    path = tmp_path / "store.db"
    with open_storage(path, checksums=True) as store:
        fill(store)
        truth = everything(store)
    assert not os.path.exists(f"{path}-wal")
    return path, path.read_bytes(), truth


# ---- what is seen


def test_every_flipped_bit_is_seen(
    guarded: tuple[Path, bytes, dict[tuple[str, str], Any]], request: pytest.FixtureRequest
) -> None:
    path, data, truth = guarded
    is_long = request.config.getoption("--hypothesis-profile") == "long"
    flips = LONG if is_long else SHORT
    missed = []
    for bit in used_bits(data, random.Random(7), flips):
        write_flipped(path, data, bit)
        seen = look_through(path, truth)
        if seen.is_wrong or not isinstance(seen.error, StorageCorruptError):
            missed.append((bit, seen))
    print(f"checksums: {flips} bits flipped in {len(data) // 4096} pages, {flips - len(missed)} seen")
    assert missed == []


def test_every_flipped_bit_of_the_header_is_seen_when_the_file_is_opened(
    guarded: tuple[Path, bytes, dict[tuple[str, str], Any]],
) -> None:
    """Also those that say that there are checksums, and how long a page is."""
    path, data, _ = guarded
    telling = range(16 * 8, 24 * 8)
    for bit in (*telling, *random.Random(1).sample(range(HEADER_BYTES * 8), 80)):
        write_flipped(path, data, bit)
        with pytest.raises(StorageCorruptError, match="checksum"):
            open_storage(path, read_only=bool(bit % 4))


def statistics_bit(path: Path) -> int:
    """A bit in a page of SQLite's statistics, which it reads with the schema without a word where that fails."""
    with contextlib.closing(apsw.Connection(str(path), vfs="unix", flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_stat1'").get
    return int(page) * 4096 * 8 - 30 * 8


def test_damaged_statistics_are_seen_when_the_file_is_opened(
    guarded: tuple[Path, bytes, dict[tuple[str, str], Any]],
) -> None:
    path, data, _ = guarded
    write_flipped(path, data, statistics_bit(path))
    for read_only in (False, True):
        with pytest.raises(StorageCorruptError):
            open_storage(path, read_only=read_only)


FLIP = """
import sys
with open(sys.argv[1], "r+b") as file:
    file.seek(int(sys.argv[2]) // 8)
    byte = file.read(1)[0]
    file.seek(-1, 1)
    file.write(bytes([byte ^ 1 << int(sys.argv[2]) % 8]))
"""


def test_statistics_that_are_damaged_later_end_no_transaction_silently(
    guarded: tuple[Path, bytes, dict[tuple[str, str], Any]],
) -> None:
    path, _, _ = guarded
    with open_storage(path) as store:
        run(FLIP, path, statistics_bit(path))
        with pytest.raises(StorageCorruptError):
            list(store.scan())
        with pytest.raises(StorageCorruptError), store.transaction(read_only=True) as tx:
            tx.get("key:0001")


CHANGES_TABLES = """
import sys
from mycelia_storage import open_storage
with open_storage(sys.argv[1]) as store:
    store.create_index("later", name="later")
    store.optimize()
"""


class UndoError(Exception):
    """Ends a transaction that is not to be."""


def undo(store: Storage) -> None:
    with store.transaction() as tx:
        tx.set("a", 1)
        tx.set("b", 1)
        raise UndoError


def do_two(store: Storage) -> None:
    with store.transaction() as tx:
        tx.set("a", 1)
        tx.set("b", 1)


@pytest.mark.parametrize(
    "write",
    [
        do_two,
        undo,
        lambda store: store.set_many({"a": 1, "b": 1}),
        lambda store: store._share([Call(lambda verbs: [Verbs.set(verbs, key, 1) for key in "ab"])]),
        lambda store: store.migrate(to=1),  # which is refused, for there are indexes
    ],
    ids=["transaction", "rollback", "set_many", "shared commit", "migrate"],
)
def test_statistics_that_are_damaged_later_leave_no_half_of_a_transaction(
    guarded: tuple[Path, bytes, dict[tuple[str, str], Any]], write: Callable[[Storage], object]
) -> None:
    """SQLite reads them with the first statement after another process has changed the tables, and ends all of it."""
    path, _, _ = guarded
    with open_storage(path) as store:
        store.set("warm", 1)
        store.optimize()
        run(CHANGES_TABLES, path)
        run(FLIP, path, statistics_bit(path))
        with contextlib.suppress(StorageCorruptError, UndoError):
            write(store)
        with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as raw:
            found = raw.execute("SELECT count(*) FROM storage_entries WHERE key IN ('a', 'b')").get
            assert raw.execute("SELECT max(version) FROM schema_version").get == 2
        assert found in ((0,) if write in (do_two, undo) else (0, 2))


def test_without_checksums_most_flipped_bits_are_not_seen(tmp_path: Path) -> None:
    """So the tests above can fail."""
    path = tmp_path / "store.db"
    with open_storage(path) as store:
        fill(store)
        truth = everything(store)
    data = path.read_bytes()
    outcomes: Counter[str] = Counter()
    for bit in used_bits(data, random.Random(7), 60):
        write_flipped(path, data, bit)
        seen = look_through(path, truth)
        outcomes["wrong" if seen.is_wrong else "seen" if seen.error else "missed"] += 1
    assert outcomes["wrong"] > 5
    assert outcomes["missed"] > 5


def test_damage_is_not_carried_into_a_backup_or_out_of_one(
    guarded: tuple[Path, bytes, dict[tuple[str, str], Any]], tmp_path: Path
) -> None:
    path, data, truth = guarded
    with open_storage(tmp_path / "other.db", checksums=True) as other:
        other.restore(path)
        assert everything(other) == truth
        for bit in [3_000 * 8, *used_bits(data, random.Random(3), 15)]:
            write_flipped(path, data, bit)
            with pytest.raises(StorageCorruptError):
                other.restore(path)
            try:
                with open_storage(path) as store, pytest.raises(StorageCorruptError):
                    store.backup(tmp_path / "backup.db")
            except StorageCorruptError:
                pass  # it did not even open
            assert not (tmp_path / "backup.db").exists()
        assert everything(other) == truth
    assert not [name for name in bytes_of(path) if name.endswith(".partial")]


def test_a_file_that_somebody_writes_without_the_layer_is_not_believed(
    guarded: tuple[Path, bytes, dict[tuple[str, str], Any]],
) -> None:
    path, _, _ = guarded
    with contextlib.closing(apsw.Connection(str(path), vfs="unix")) as connection:
        connection.execute("PRAGMA journal_mode=delete").fetchall()
        connection.execute("UPDATE storage_entries SET metadata = '{}' WHERE key = 'key:0003'")
    with pytest.raises(StorageCorruptError):
        open_storage(path)


# ---- which files have them


def test_a_new_file_has_them_where_it_was_asked_for(tmp_path: Path) -> None:
    for number, (given, expected) in enumerate([(None, False), (False, False), (True, True)]):
        path = tmp_path / f"{number}.db"
        with open_storage(path, checksums=given) as store:
            store.set("a", 1)
            assert has_checksums(store) is expected
        assert path.read_bytes()[RESERVED_AT] == (8 if expected else 0)
        with open_storage(path) as store:
            assert (store.get("a"), has_checksums(store)) == (1, expected)


@pytest.mark.parametrize(("made_with", "asked_for"), [(True, False), (False, True)])
def test_a_file_of_the_other_kind_is_refused_and_left_alone(tmp_path: Path, made_with: bool, asked_for: bool) -> None:
    path = tmp_path / "store.db"
    with open_storage(path, checksums=made_with) as store:
        store.set("a", 1)
    before = bytes_of(path)
    for read_only in (False, True):
        with pytest.raises(ConfigError, match="checksums"):
            open_storage(path, checksums=asked_for, read_only=read_only)
    assert bytes_of(path) == before


@pytest.mark.parametrize("value", [1, 0, "yes", "", []])
def test_what_is_no_truth_value_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ConfigError, match="checksums"):
        open_storage(tmp_path / "store.db", checksums=value)


@pytest.mark.parametrize("wal", [True, False])
@pytest.mark.parametrize("of_store", [True, False])
@pytest.mark.parametrize("of_source", [True, False])
def test_backups_and_restored_stores_keep_their_own_kind(
    tmp_path: Path, wal: bool, of_store: bool, of_source: bool
) -> None:
    source, path, backup = (tmp_path / name for name in ("source.db", "store.db", "backup.db"))
    with open_storage(source, checksums=of_source, wal_mode=wal) as store:
        fill(store, 50)
        truth = everything(store)
        store.backup(backup)
    assert (backup.read_bytes()[RESERVED_AT] == 8) is of_source
    with open_storage(path, checksums=of_store, wal_mode=wal) as store:
        store.set("a", 1)
        store.restore(backup)
        assert everything(store) == truth
        store.set("a", 2)
        store.check()
        assert has_checksums(store) is of_store
    data = path.read_bytes()
    assert (data[RESERVED_AT] == 8) is of_store
    if of_store:
        with open_storage(path, wal_mode=wal) as store:
            truth = everything(store)
        for bit in used_bits(data, random.Random(5), 10):
            write_flipped(path, data, bit)
            assert isinstance(look_through(path, truth, wal_mode=wal).error, StorageCorruptError)


def test_a_store_in_memory_makes_backups_with_them(tmp_path: Path) -> None:
    with open_storage("memory:", checksums=True) as store:
        store.set("a", 1)
        store.backup(tmp_path / "backup.db")
    with open_storage(tmp_path / "backup.db", read_only=True) as store:
        assert (store.get("a"), has_checksums(store)) == (1, True)


@pytest.mark.parametrize("of_store", [True, False])
def test_backups_of_more_than_a_cache_holds_have_them_too(tmp_path: Path, of_store: bool) -> None:
    """The layer that makes them knows by the first page of a file that it has to, and that one is written last."""
    source, backup = tmp_path / "source.db", tmp_path / "backup.db"
    with open_storage(source, checksums=True) as store:
        store.set_many({f"{n}": "x" * 900 for n in range(3000)})
        store.backup(backup)
    with open_storage(tmp_path / "other.db", checksums=of_store) as store:
        store.restore(backup)
        assert store.check().entries == 3000
    with open_storage("memory:", checksums=True) as memory:
        memory.restore(backup)
        memory.backup(backup, overwrite=True)
    with open_storage(backup, read_only=True) as store:
        assert (store.check().entries, has_checksums(store)) == (3000, True)


@pytest.mark.parametrize("schema_version", [1, 2])
def test_migrations_keep_them(tmp_path: Path, schema_version: int) -> None:
    with open_storage(tmp_path / "store.db", checksums=True) as store:
        store.set("a", 1)
        store.migrate(to=schema_version)
    with open_storage(tmp_path / "store.db", checksums=True) as store:
        assert store.get("a") == 1
        store.check()


# ---- several at once

WRITER = """
import sys
from mycelia_storage import open_storage
path, wal, number = sys.argv[1], sys.argv[2] == "True", sys.argv[3]
begin()
with open_storage(path, wal_mode=wal, checksums=True) as store:
    for step in range(100):
        store.set(f"{number}:{step}", "x" * 3000)
"""


@pytest.mark.parametrize("wal", [True, False])
def test_processes_share_a_file_with_them_from_its_first_moment_on(tmp_path: Path, wal: bool) -> None:
    path = tmp_path / "store.db"
    run_together(WRITER, 3, path, wal)
    with open_storage(path, wal_mode=wal) as store:
        assert store.count() == 300
        store.check()
        assert has_checksums(store)


KILLED = """
import os, signal, sys
from mycelia_storage import open_storage
store = open_storage(sys.argv[1], wal_mode=sys.argv[2] == "True", checksums=True)
for step in range(400):
    store.set(f"key:{step}", str(step) * 500)
with store.transaction() as tx:
    tx.set_many({f"lost:{step}": "x" * 5000 for step in range(3000)})
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("wal", [True, False])
def test_what_was_acknowledged_before_a_kill_is_there_and_fits(tmp_path: Path, wal: bool) -> None:
    path = tmp_path / "store.db"
    with Child(KILLED, path, wal) as child:
        child.process.wait(40)
    with open_storage(path, wal_mode=wal) as store:
        assert store.get_many(f"key:{step}" for step in range(400)) == {
            f"key:{step}": str(step) * 500 for step in range(400)
        }
        assert store.count() == 400
        store.check()


def test_a_fork_opens_it_as_it_is(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db", checksums=True) as store:
        store.set("a", 1)
        if not (child := os.fork()):
            store.set("a", 2)
            store.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert store.get("a") == 2
        store.set("a", 3)
        store.check()


@pytest.mark.parametrize("wal", [True, False])
@pytest.mark.parametrize(("ours", "theirs"), [(None, True), (True, None)])
def test_who_finds_a_new_file_made_by_another_takes_it_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wal: bool, ours: bool | None, theirs: bool | None
) -> None:
    """Two open a file that is not there, and the other one is first, between two steps of ours."""
    path = tmp_path / "store.db"
    program = (
        "from mycelia_storage import open_storage\n"
        f"with open_storage({str(path)!r}, checksums={theirs}, wal_mode={wal}) as store: store.set('a', 'theirs')"
    )
    open_writer = connection.open_writer
    times = 0

    def overtaken(*arguments: Any) -> apsw.Connection:
        nonlocal times
        opened = open_writer(*arguments)
        if not times:
            run(program)
        times += 1
        return opened

    monkeypatch.setattr(engine, "open_writer", overtaken)
    if theirs:
        with open_storage(path, checksums=ours, wal_mode=wal) as store:
            store.set("b", "ours")
            assert has_checksums(store)
    else:
        with pytest.raises(ConfigError, match="without"):
            open_storage(path, checksums=ours, wal_mode=wal)
    with open_storage(path, wal_mode=wal) as store:
        assert store.get("a") == "theirs"
        store.check()


# ---- the extension and its surroundings


def test_other_connections_are_opened_as_before(tmp_path: Path) -> None:
    """The extension makes itself the layer of everything that is opened; programs and tests have others."""
    with open_storage(tmp_path / "first.db", checksums=True) as store:
        store.set("a", 1)
    assert apsw.vfs_names()[0] == "unix"
    folder = tmp_path / "recorded"
    folder.mkdir()
    with recording(str(folder)) as log:
        with open_storage(folder / "store.db") as store:
            store.set("a", 1)
        with open_storage(tmp_path / "first.db") as store:
            assert store.get("a") == 1
        assert apsw.vfs_names()[0] == "recording"
    assert [event for event in log.events if event.kind == "write"]


FIRST_WHILE_RECORDING = """
import sys
import apsw
sys.path.insert(0, sys.argv[2])
from recording import recording
from mycelia_storage import open_storage
with recording(sys.argv[1]):
    with open_storage(sys.argv[1] + "/../store.db", checksums=True) as store:
        store.set("a", 1)
    assert apsw.vfs_names()[0] == "recording"
with open_storage(sys.argv[1] + "/../store.db", checksums=True) as store:
    assert store.get("a") == 1
    store.check()
"""


def test_it_does_not_stand_on_a_layer_that_may_go(tmp_path: Path) -> None:
    folder = tmp_path / "recorded"
    folder.mkdir()
    run(FIRST_WHILE_RECORDING, folder, os.path.dirname(__file__))


def test_without_the_extension_a_file_with_checksums_is_refused(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db", checksums=True) as store:
        store.set("a", 1)
    program = """
import sys
import apsw.sqlite_extra
apsw.sqlite_extra.has = lambda name: None
from mycelia_storage import ConfigError, open_storage
for name, options in (("store.db", {}), ("new.db", {"checksums": True})):
    try:
        open_storage(sys.argv[1] + "/" + name, **options)
    except ConfigError as error:
        print(error)
"""
    assert run(program, tmp_path).count("lacks SQLite's extension cksumvfs") == 2


# ---- the driver that does not encrypt


@pytest.mark.parametrize("target", ["store.db", "memory:", "old.db"])
@pytest.mark.parametrize("key", ["open sesame", b"\0\1"])
def test_a_key_is_refused_where_nothing_would_be_encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, key: str | bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    open_storage("old.db").close()
    with pytest.raises(ConfigError, match="pip uninstall apsw, then pip install apsw-sqlite3mc") as caught:
        open_storage(target, encryption_key=key)
    assert "sesame" not in str(caught.value)
    assert not (tmp_path / "store.db").exists()
