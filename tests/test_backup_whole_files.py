"""Hazard: a file that is copied in pieces, while others write to it and write the -wal back, is no state of the store.

What was committed before the call has to be in the copy, and nothing of what came in later than it began; and it must
not depend on how much of the -wal was written back then, or is meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from mycelia_storage import CopyProgress, Storage, StorageClosedError, StorageCorruptError, open_storage
from mycelia_storage.engines.sqlite import copying, whole_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mycelia_storage.engines.sqlite.whole_files import _Pieces

PAGE = 4096
WAL_HEADER = 32
FRAME = 24 + PAGE


@pytest.fixture(autouse=True)
def no_single_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is copied in pieces, and small ones, however large the -wal is beside it."""
    monkeypatch.setattr(whole_files, "_TIMES_AS_LARGE", 0)
    monkeypatch.setattr(whole_files, "_PIECE", 8 * PAGE)
    monkeypatch.setattr(copying, "copy_pages", lambda *_, **__: pytest.fail("pages were copied one by one"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[Storage]:
    """Its file holds a thousand entries, and all of the -wal is written back."""
    with open_storage(path) as store:
        write(store, 0)
        store.optimize()
        yield store


def write(store: Storage, number: int, some: int = 1000) -> None:
    store.set_many({f"{n}": {"number": number, "text": "x" * 400} for n in range(some)})


def numbers(path: Path, some: int = 1000) -> set[Any]:
    with open_storage(path, read_only=True) as copy:
        assert copy.check().entries == 1000
        return {value["number"] for value in copy.get_many([f"{n}" for n in range(some)]).values()}


def frames_of(path: Path) -> tuple[int, int]:
    """How many frames the -wal has, and how many of them are written back."""
    with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
        return connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)


def write_back(path: Path, mode: int = apsw.SQLITE_CHECKPOINT_PASSIVE) -> None:
    with contextlib.closing(apsw.Connection(str(path))) as connection, contextlib.suppress(apsw.BusyError):
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
        connection.wal_checkpoint(mode=mode)


def all_back(path: Path, store: Storage) -> None:
    write_back(path)
    found = frames_of(path)
    assert found[0] == found[1] > 0


def cut(path: Path, store: Storage) -> None:
    write_back(path, apsw.SQLITE_CHECKPOINT_TRUNCATE)
    assert frames_of(path) == (0, 0)


def some_back(path: Path, store: Storage) -> None:
    """Somebody reads from before the last write, which therefore is not written back."""
    write(store, 1, 500)
    with store.transaction(read_only=True) as tx:
        assert tx.count() == 1000
        write(store, 1)
        write_back(path)
    frames, back = frames_of(path)
    assert 0 < back < frames


def none_back(path: Path, store: Storage) -> None:
    cut(path, store)
    write(store, 1)
    frames, back = frames_of(path)
    assert back == 0 < frames


BEFORE = {"all written back": all_back, "cut": cut, "some written back": some_back, "nothing written back": none_back}


@pytest.mark.parametrize("before", BEFORE)
def test_it_is_the_state_of_the_call_whatever_is_written_and_written_back_meanwhile(
    path: Path, store: Storage, tmp_path: Path, before: str
) -> None:
    write(store, 1)
    BEFORE[before](path, store)
    told: list[int] = []

    def meddle(progress: CopyProgress) -> None:
        if progress.step == "copying":
            told.append(progress.done)
            write(store, len(told) + 1, 1 + 100 * len(told))
            for mode in (apsw.SQLITE_CHECKPOINT_PASSIVE, apsw.SQLITE_CHECKPOINT_TRUNCATE):
                write_back(path, mode)

    store.backup(tmp_path / "backup.db", progress=meddle)
    assert len(told) > 1
    assert numbers(tmp_path / "backup.db") == {1}
    assert sorted(os.listdir(tmp_path)) == ["backup.db", "store.db", "store.db-shm", "store.db-wal"]


@pytest.mark.parametrize("wal", [True, False])
def test_a_file_that_has_no_wal_is_copied_alone(path: Path, tmp_path: Path, wal: bool) -> None:
    with open_storage(path, wal_mode=wal) as store:
        write(store, 1)
    with open_storage(path, wal_mode=wal, read_only=True) as store:
        store.backup(tmp_path / "backup.db")
    assert numbers(tmp_path / "backup.db") == {1}


def test_what_was_deleted_is_gone_from_the_copy_too(path: Path, store: Storage, tmp_path: Path) -> None:
    """The -wal may make the file smaller than it lies there."""
    store.clear()
    edit = apsw.Connection(str(path))
    edit.execute("VACUUM")
    assert frames_of(path)[0] > frames_of(path)[1]
    store.backup(tmp_path / "backup.db")
    edit.close()
    assert os.path.getsize(tmp_path / "backup.db") < os.path.getsize(path) / 4
    with open_storage(tmp_path / "backup.db", read_only=True) as copy:
        assert copy.check().entries == 0


@pytest.mark.parametrize("frame", [0, 3, -1], ids=["first", "fourth", "last"])
def test_a_frame_that_does_not_fit_its_checksum_gives_no_backup(
    path: Path, store: Storage, tmp_path: Path, frame: int
) -> None:
    """Without it the copy would be whole, and lack what was committed last."""
    none_back(path, store)
    frames = frames_of(path)[0]
    with open(f"{path}-wal", "r+b") as file:
        file.seek(WAL_HEADER + (frame % frames) * FRAME + 24 + PAGE // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(StorageCorruptError, match="fit its checksums"):
        store.backup(tmp_path / "backup.db")
    assert not list(tmp_path.glob("backup*"))


def test_a_store_that_is_closed_meanwhile_gives_none(store: Storage, tmp_path: Path) -> None:
    def close(progress: CopyProgress) -> None:
        if progress.done:
            store.close()

    with pytest.raises(StorageClosedError):
        store.backup(tmp_path / "backup.db", progress=close)
    assert not list(tmp_path.glob("backup*"))


def test_a_store_that_is_closed_during_the_last_piece_gives_none(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read since then may be of another state."""
    stop = whole_files._Pieces.stop

    def close_first(pieces: _Pieces) -> None:
        store.close()
        stop(pieces)

    monkeypatch.setattr(whole_files._Pieces, "stop", close_first)
    with pytest.raises(StorageClosedError):
        store.backup(tmp_path / "backup.db")
    assert not list(tmp_path.glob("backup*"))


def test_pages_with_checksums_are_copied_one_by_one(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is looked at then; those that are free, too, which nobody would look at in the copy."""
    monkeypatch.undo()
    monkeypatch.setattr(whole_files, "_copy_file", lambda *_: pytest.fail("the file was copied in pieces"))
    with open_storage(path, checksums=True) as store:
        write(store, 1)
        store.optimize()
        store.backup(tmp_path / "backup.db")
    assert numbers(tmp_path / "backup.db") == {1}
