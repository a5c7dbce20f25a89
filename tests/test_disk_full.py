"""A disk without room: nothing is lost or half done, and with room again the store goes on."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from faulty import state_of

from mycelia_storage import Storage, StorageError, StorageFullError, open_storage
from mycelia_storage.engines.sqlite import writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZE = 2 * 1024 * 1024

WRITES: dict[str, Callable[[Storage, int], object]] = {
    "set": lambda store, number: store.set(f"{number}", "f" * 20_000),
    "set_many": lambda store, number: store.set_many({f"{number} {n}": "f" * 5_000 for n in range(8)}),
    "transaction": lambda store, number: store.run_transaction(
        lambda tx: [tx.set(f"{number} {n}", "f" * 5_000) for n in range(8)]
    ),
}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(directory)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this system mounts no tmpfs for us")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def fill(directory: Path) -> Path:
    """Leave no byte."""
    filler = directory / "filler"
    with open(filler, "wb", buffering=0) as file:
        for piece in (65_536, 4_096):
            try:
                while file.write(b"\0" * piece) == piece:
                    pass
            except OSError:
                continue
    return filler


def fill_by(store: Storage, write: Callable[[Storage, int], object]) -> dict[str, Any]:
    """Write until there is no room. What was acknowledged last."""
    for number in range(1_000):
        before = state_of(store)
        try:
            write(store, number)
        except StorageFullError:
            assert state_of(store) == before
            return before
    pytest.fail("the disk is never full")


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("wal", [True, False], ids=["WAL", "journal"])
@pytest.mark.parametrize("pages", [50, 100_000], ids=["few pages in the -wal", "all of it in the -wal"])
def test_a_full_file_system(
    small: Path, wal: bool, pages: int, write: Callable[[Storage, int], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "WAL_PAGES", pages)
    path = str(small / "store.db")
    with open_storage(path, wal_mode=wal) as store:
        store.set("k", 1)
        filler = small / "filler"
        filler.write_bytes(b"\0" * 200_000)
        state = fill_by(store, write)
        for _ in range(3):
            with pytest.raises(StorageFullError):
                store.set("more", "m" * 200_000)
            assert state_of(store) == state
        filler.unlink()
        store.set("k", 2)
        assert store.get("k") == 2
    with open_storage(path, wal_mode=wal) as again:
        again.check()
        assert again.get("k") == 2
        found = state_of(again)
        for one in (found, state):
            del one["entries"]["default"]["k"]
        assert found == state


@pytest.mark.parametrize("wal", [True, False], ids=["WAL", "journal"])
def test_a_file_is_opened_and_closed_on_a_full_disk(small: Path, wal: bool) -> None:
    """What cannot be done there says so; and nothing is lost that was there."""
    path = str(small / "store.db")
    with open_storage(path, wal_mode=wal) as store:
        store.set_many({f"{n}": "o" * 1_000 for n in range(100)})
        filler = fill(small)
    for _ in range(2):
        try:
            with open_storage(path, wal_mode=wal) as store:
                assert store.count() == 100
        except StorageError as error:
            if error.code not in {"full", "io"}:
                raise
    filler.unlink()
    with open_storage(path, wal_mode=wal) as store:
        store.check()
        assert store.count() == 100
        store.set("100", 1)


def test_a_new_file_on_a_full_disk(small: Path) -> None:
    filler = fill(small)
    for _ in range(2):
        with pytest.raises(StorageError) as raised:
            open_storage(small / "store.db")
        assert raised.value.code in {"full", "io"}
    filler.unlink()
    with open_storage(small / "store.db") as store:
        store.set("k", 1)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("wal", [True, False], ids=["WAL", "journal"])
def test_a_file_that_may_not_grow(tmp_path: Path, wal: bool, write: Callable[[Storage, int], object]) -> None:
    """The same without a file system of one's own."""
    path = str(tmp_path / "store.db")
    with open_storage(path, wal_mode=wal) as store:
        store.set("k", 1)
        connection = store._engine.writer.connection  # type: ignore[attr-defined]
        connection.execute("PRAGMA max_page_count=60")
        state = fill_by(store, write)
        store.set("k", 2)
        connection.execute("PRAGMA max_page_count=100000")
        write(store, 1_000)
        assert store.get("k") == 2
        assert set(state["entries"]["default"]) < set(store.list_keys())
    assert os.path.exists(path)
