"""Hazard: something of an encrypted store stands readable in a file, its log or journal, a copy, a temporary one.

Every text that is stored here holds a word to search for. Files are looked at in the middle of what makes them: while a
store is open, in an open transaction, during a backup, a restore and a rekey, and after a kill.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any, Literal

import pytest
from children import Child

from mycelia_storage import Storage, field, open_storage, rekey
from mycelia_storage.engines.sqlite import copying

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "open sesame"
WORD = "Xanadu"
SQLITE = b"SQLite format 3"


def fill(store: Storage, count: int = 3000) -> None:
    store.create_namespace(f"{WORD}-namespace", metadata={"note": WORD})
    items = {f"{WORD}:{number:05}": {WORD: f"{WORD} {number}", "n": number} for number in range(count)}
    store.set_many(items, metadata={"by": WORD})
    store.set(f"{WORD}:long", WORD * 50_000, namespace=f"{WORD}-namespace", ttl=3000)


def readable(*folders: Path) -> list[str]:
    """The files in which the word, or SQLite's own, stands readable. A file may be gone by the time it is looked at."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                data = path.read_bytes() if path.is_file() else b""
            except FileNotFoundError:
                continue
            if WORD.encode() in data or SQLITE in data:
                found.append(path.name)
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for the store; temporary files go into another one, which is looked at too."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("SQLITE_TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield tmp_path
    assert readable(tmp_path) == []


def test_the_search_finds_what_is_not_encrypted(tmp_path: Path) -> None:
    with open_storage(tmp_path / "plain.db") as store:
        fill(store, 10)
        assert set(readable(tmp_path)) == {"plain.db", "plain.db-wal"}
    assert readable(tmp_path) == ["plain.db"]


@pytest.mark.parametrize("wal", [True, False])
def test_an_open_store_leaves_nothing_readable(place: Path, wal: bool) -> None:
    with open_storage(place / "store.db", encryption_key=KEY, wal_mode=wal) as store:
        fill(store)
        assert readable(place) == []
        store.create_index(WORD)
        store.create_index(field(WORD).desc(), "n", name=WORD)
        assert readable(place) == []
        store.query(field(WORD).contains(WORD), sort=[f"-{WORD}", "n"], limit=10)
        store.delete_where(field("n") < 1000)
        store.optimize()
        store.check()
        assert readable(place) == []


@pytest.mark.parametrize("wal", [True, False])
def test_a_long_transaction_leaves_nothing_readable(place: Path, wal: bool) -> None:
    """Longer than what SQLite keeps in memory, so that changed pages are on the disk before the commit."""
    with open_storage(place / "store.db", encryption_key=KEY, wal_mode=wal) as store:
        fill(store, 100)
        with store.transaction() as tx:
            before = sum(path.stat().st_size for path in place.glob("store.db*"))
            tx.set_many({f"{WORD}:{number}": WORD * 500 for number in range(3000)})
            assert sum(path.stat().st_size for path in place.glob("store.db*")) > before + 1_000_000
            assert (place / ("store.db-wal" if wal else "store.db-journal")).stat().st_size
            assert readable(place) == []
            with tx.transaction() as inner:
                inner.clear()
                assert readable(place) == []
                inner.rollback()


def test_migrations_leave_nothing_readable(place: Path) -> None:
    with open_storage(place / "store.db", encryption_key=KEY) as store:
        store.set_many({f"{WORD}:{number:05}": WORD * 100 for number in range(2000)})
        store.migrate(to=1)
        assert readable(place) == []
        store.migrate()
        assert readable(place) == []
        store.check()


def test_backups_and_restores_leave_nothing_readable(place: Path) -> None:
    seen: set[str] = set()

    def look(_: Any) -> None:
        seen.update(path.suffix for path in place.iterdir())
        assert readable(place) == []

    with open_storage(place / "store.db", encryption_key=KEY) as store:
        fill(store)
        store.backup(place / "backup.db", progress=look)
        assert readable(place) == []
        store.restore(place / "backup.db", progress=look)
        assert store.count() == 3000
    assert ".partial" in seen


def test_a_store_in_memory_makes_encrypted_backups(place: Path) -> None:
    with open_storage("memory:", encryption_key=KEY) as store:
        fill(store)
        store.backup(place / "backup.db", progress=lambda _: assert_nothing(place))
        assert readable(place) == []
        store.restore(place / "backup.db", progress=lambda _: assert_nothing(place))
    with open_storage(place / "backup.db", encryption_key=KEY) as store:
        assert store.count() == 3000


def assert_nothing(place: Path) -> None:
    assert readable(place) == []


def test_what_was_readable_is_encrypted_without_a_readable_copy(place: Path) -> None:
    """By a restore from a file that is not encrypted, and by rekey."""
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    with open_storage(elsewhere / "plain.db") as store:
        fill(store)
    with open_storage(place / "store.db", encryption_key=KEY) as store:
        names = readable(place)
        store.restore(elsewhere / "plain.db", progress=lambda _: assert_only(place, names))
        assert readable(place) == ["plain.db"]
        assert store.count() == 3000
    rekey(elsewhere / "plain.db", encryption_key=None, new_encryption_key="other")


def assert_only(place: Path, names: list[str]) -> None:
    assert readable(place) == names


def test_a_rekey_leaves_nothing_readable(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_storage(place / "store.db", encryption_key=KEY) as store:
        fill(store)
    looked = []
    put_in_place = copying.put_in_place

    def look_first(*arguments: Any, overwrite: bool) -> None:
        looked.append(readable(place))
        put_in_place(*arguments, overwrite=overwrite)

    monkeypatch.setattr(copying, "put_in_place", look_first)
    rekey(place / "store.db", encryption_key=KEY, new_encryption_key="other")
    assert looked == [[]]


KILLED = """
import os, signal, sys
from mycelia_storage import open_storage
word = sys.argv[3]
store = open_storage(sys.argv[1], wal_mode=sys.argv[2] == "True", encryption_key="open sesame")
for step in range(200):
    store.set(f"{word}:{step}", word * 100)
if sys.argv[4] == "transaction":
    with store.transaction() as tx:
        tx.set_many({f"{word}:lost:{step}": word * 900 for step in range(3000)})
        os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[4] == "backup":
    store.backup(sys.argv[1] + ".backup", progress=lambda _: os.kill(os.getpid(), signal.SIGKILL))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("wal", [True, False])
@pytest.mark.parametrize("moment", ["idle", "transaction", "backup"])
def test_a_kill_leaves_nothing_readable_and_nothing_lost(
    place: Path, wal: bool, moment: Literal["idle", "transaction", "backup"]
) -> None:
    with Child(KILLED, place / "store.db", wal, WORD, moment) as child:
        child.process.wait(40)
    left = {path.name.rpartition("store.db")[2] for path in place.iterdir() if path.is_file()}
    assert len(left) > 1 or not wal
    assert readable(place) == []
    with open_storage(place / "store.db", encryption_key=KEY, wal_mode=wal) as store:
        assert store.list_keys() == sorted(f"{WORD}:{step}" for step in range(200))
        store.check()
