"""Hazard: a store that is used all the time grows without end, and nobody can tell why."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from children import Child, run
from stepping import Gate, Workers, result, until

from mycelia_storage import Storage, open_storage
from mycelia_storage.engines.sqlite import checkpoints, writer
from mycelia_storage.engines.sqlite.checkpoints import Checkpoints
from mycelia_storage.engines.sqlite.connection import Patience

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMIT = 200_000

# Opens a transaction that reads, and keeps it until it is told to end.
READER = """
from mycelia_storage import open_storage
with open_storage(sys.argv[1], read_only=True) as store, store.transaction(read_only=True) as tx:
    tx.get("0")
    begin()
"""

# Forks while the thread is busy; prints what is there at the end.
FORKING = """
import os
from mycelia_storage import open_storage
from mycelia_storage.engines.sqlite import checkpoints, writer
from mycelia_storage.engines.sqlite.checkpoints import Checkpoints
checkpoints.WAL_LIMIT = 200_000
with open_storage(sys.argv[1]) as store:
    for number in range(40):
        store.set(f"{number}", "w" * 20_000)
    while not store._engine.writer.is_wal_left:
        store.set("0", 1)
    child = os.fork()
    mine = f"{bool(child)}"
    for number in range(40):
        store.set(f"{mine} {number}", "w" * 20_000)
    if not child:
        store.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.check()
    print(store.count())
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "store.db")


@pytest.fixture
def store(path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A -wal of more than 200 kB is too large for it."""
    monkeypatch.setattr(checkpoints, "WAL_LIMIT", LIMIT)
    with open_storage(path) as store:
        store.set("0", 0)
        yield store


def wal_size(path: str) -> int:
    return os.path.getsize(path + "-wal")


def grow(store: Storage) -> None:
    """Write five times as much as the -wal may hold."""
    for number in range(50):
        store.set(f"{number % 10}", f"{number:05}" * 4_000)  # what stays the same is not written


@contextlib.contextmanager
def reading(store: Storage) -> Iterator[None]:
    """Somebody reads for long."""
    with store.transaction(read_only=True) as tx:
        tx.get("0")
        yield


def is_wal_left(store: Storage) -> Any:
    """Whether commits leave the -wal alone."""
    return store._engine.writer.is_wal_left  # type: ignore[attr-defined]


def test_the_wal_is_cut_once_its_reader_has_ended_though_nobody_writes_any_more(store: Storage, path: str) -> None:
    with reading(store):
        grow(store)
        assert wal_size(path) > 4 * LIMIT
    until(lambda: wal_size(path) == 0, "an empty -wal")
    store.check()


def test_the_wal_is_cut_though_there_is_always_somebody_who_reads(store: Storage, path: str) -> None:
    """Each of two readers ends when the other has begun, so that at no moment there is none."""
    turns = [threading.Event(), threading.Event()]
    stop = threading.Event()

    def read(own: threading.Event, other: threading.Event) -> None:
        while not stop.is_set():
            with store.transaction(read_only=True) as tx:
                tx.get("0")
                own.clear()
                other.set()
                while not own.wait(0.01) and not stop.is_set():
                    pass

    with Workers() as workers:
        readers = [workers.one().start(lambda n=n: read(turns[n], turns[1 - n])) for n in (0, 1)]  # type: ignore[misc]
        try:
            for _ in range(5):
                grow(store)
                until(lambda: wal_size(path) < LIMIT, "a small -wal")
        finally:
            stop.set()
        for reader in readers:
            result(reader)


def test_a_few_big_values_are_noticed_as_soon_as_many_small_ones(store: Storage) -> None:
    with reading(store):
        for number in range(3):
            store.set("big", f"{number}" * 2 * LIMIT)
        until(lambda: is_wal_left(store), "the thread")


def test_commits_write_back_again_once_the_wal_is_small(store: Storage, path: str) -> None:
    assert not is_wal_left(store)
    with reading(store):
        grow(store)
        until(lambda: is_wal_left(store), "the thread")
    until(lambda: not is_wal_left(store), "the end of the thread")
    assert wal_size(path) == 0


def test_writers_do_not_wait_again_and_again_for_one_that_reads_for_long(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    class Noted(Patience):
        def __init__(self, timeout: float) -> None:
            waited.append(timeout)
            super().__init__(timeout)

    monkeypatch.setattr(checkpoints, "Patience", Noted)
    with reading(store):
        grow(store)
        until(lambda: len(waited) >= 3, "three tries")
    assert waited[0] > 0
    assert 0.0 in waited[1:]
    assert all(seconds <= 1 for seconds in waited)


def test_the_status_tells_of_a_reader_of_this_process_that_is_in_the_way(store: Storage) -> None:
    details = store.get_status().details
    assert (details["open_reads"], details["oldest_read_seconds"], details["wal_is_held"]) == (0, None, False)
    with store.transaction(read_only=True) as tx:
        tx.get("0")
        first = store.get_status().details
        grow(store)
        with reading(store):
            details = store.get_status().details
            assert details["open_reads"] == 2
        assert details["oldest_read_seconds"] >= first["oldest_read_seconds"] >= 0
        assert details["wal_is_held"]
        assert details["wal_bytes_to_write_back"] > LIMIT
    until(lambda: not store.get_status().details["wal_is_held"], "a -wal that is written back")
    assert store.get_status().details["oldest_read_seconds"] is None


def test_the_status_tells_that_another_process_is_in_the_way(store: Storage, path: str) -> None:
    with Child(READER, path) as child:
        assert child.line() == "ready"
        grow(store)
        details = store.get_status().details
        assert details["wal_is_held"]
        assert details["oldest_read_seconds"] is None, "so it is nobody here"
        child.tell()
        child.output()
    until(lambda: wal_size(path) == 0, "an empty -wal")


def test_a_reader_that_stays_in_the_way_is_worth_a_warning(
    store: Storage, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoints, "_STUCK_SECONDS", 0)
    with caplog.at_level(logging.WARNING, "mycelia_storage"), reading(store):
        grow(store)
        until(lambda: caplog.messages, "a warning")
        until(lambda: store._engine.checkpoints._later > 0.3, "two more tries")  # type: ignore[attr-defined]
    assert len(caplog.messages) == 1, "one is enough"
    assert caplog.messages[0].startswith(f"{path}: the -wal file has grown to ")
    assert "a scan or a backup has been open in this process" in caplog.messages[0]


def test_a_store_is_closed_while_its_wal_is_held(store: Storage, path: str) -> None:
    with Child(READER, path) as child:
        assert child.line() == "ready"
        grow(store)
        until(lambda: is_wal_left(store), "the thread")
        store.close()
        child.tell()
        child.output()
    with open_storage(path) as again:
        assert again.get("9") == "00049" * 4_000


def test_a_fork_while_the_thread_is_busy_loses_nothing(store: Storage, path: str) -> None:
    with Child(READER, path) as child:
        assert child.line() == "ready"
        assert run(FORKING, path) == "120"  # 40 before the fork, "0" among them, and 40 by each side
        child.tell()
        child.output()


def test_what_is_written_back_already_is_not_counted(store: Storage, path: str) -> None:
    store.set("a", "a" * 50_000)
    assert store.get_status().details["wal_bytes_to_write_back"] >= 50_000
    with contextlib.closing(apsw.Connection(path)) as other:
        other.execute("SELECT 1 FROM sqlite_schema").fetchall()  # before that it knows of no -wal
        other.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        details = store.get_status().details
    assert details["wal_bytes"] >= 50_000
    assert details["wal_bytes_to_write_back"] == 0


def test_without_a_wal_there_is_nothing_to_hold(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db", wal_mode=False) as store:
        store.set("a", 1)
        details = store.get_status().details
        assert (details["wal_bytes_to_write_back"], details["wal_is_held"]) == (0, False)


# ---- while others go on writing


# Forks while the thread has the file open, or is about to; prints what is there at the end.
FORKING_AHEAD = """
import os
from mycelia_storage import open_storage
from mycelia_storage.engines.sqlite import writer
writer.AHEAD_PAGES = 5
with open_storage(sys.argv[1]) as store:
    for number in range(10):
        store.set(f"{number}", "w" * 20_000)
        child = os.fork()
        if not child:
            store.set(f"child {number}", "w" * 20_000)
            store.close()
            os._exit(0)
        store.set(f"parent {number}", "w" * 20_000)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.check()
    print(store.count())
"""


@pytest.fixture
def few_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few in the -wal are written back by the thread, and three times as many by whoever has committed."""
    monkeypatch.setattr(writer, "AHEAD_PAGES", 10)
    monkeypatch.setattr(writer, "WAL_PAGES", 30)


def is_at_work(store: Storage) -> Any:
    """Whether the thread writes back what there is."""
    return store._engine.checkpoints.is_ahead  # type: ignore[attr-defined]


def to_write_back(store: Storage) -> Any:
    return store.get_status().details["wal_bytes_to_write_back"]


@pytest.mark.usefixtures("few_pages")
def test_no_commit_waits_for_the_thread_that_writes_back(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, Checkpoints, "_write_back_unread")
    monkeypatch.setattr(writer, "WAL_PAGES", 1000)
    with open_storage(path) as store:
        store.set("0", "w" * 50_000)
        assert gate.comes.wait(30)
        for number in range(5):
            store.set(f"{number}", "v" * 50_000)
        assert to_write_back(store) > 250_000
        gate.may_pass.set()
        until(lambda: to_write_back(store) == 0, "a -wal that is written back, though nobody writes any more")
        assert store.get("4") == "v" * 50_000
    assert not os.path.exists(path + "-wal")


@pytest.mark.usefixtures("few_pages")
def test_under_a_steady_writer_the_wal_is_begun_anew(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread never comes to an end, since more is written meanwhile: whoever commits writes back the rest."""
    write_back = Checkpoints._write_back_unread

    def writing_meanwhile(self: Checkpoints, connection: apsw.Connection) -> Any:
        with reading(steady):  # so that it is not begun anew just now
            found = write_back(self, connection)
            steady.set("meanwhile", 1)
        return found

    monkeypatch.setattr(Checkpoints, "_write_back_unread", writing_meanwhile)
    with open_storage(path) as steady:
        for number in range(30):
            steady.set("0", f"{number:05}" * 10_000)
            until(lambda: not is_at_work(steady), "the end of the thread's work")
        assert wal_size(path) < 500_000, "30 times 50 kB"


@pytest.mark.usefixtures("few_pages")
def test_whoever_writes_more_than_the_thread_writes_back_waits_for_it(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the -wal would grow for as long as the disk is slow."""
    gate = Gate(monkeypatch, Checkpoints, "_write_back_unread")
    wait = Checkpoints.wait
    waited: list[int] = []

    def waiting(self: Checkpoints) -> None:
        waited.append(wal_size(path))
        gate.may_pass.set()
        wait(self)

    monkeypatch.setattr(Checkpoints, "wait", waiting)
    with open_storage(path) as store:
        for number in range(30):
            gate.may_pass.clear()
            store.set("0", f"{number:05}" * 10_000)
        assert waited
        assert max(*waited, wal_size(path)) < 400_000
        gate.may_pass.set()


@pytest.mark.usefixtures("few_pages")
def test_what_the_thread_cannot_do_is_done_by_commits(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> apsw.Connection:
        raise apsw.CantOpenError("too many open files")

    monkeypatch.setattr(checkpoints, "open_to_write_back", refuse)
    monkeypatch.setattr(writer, "WAL_PAGES", 1000)
    with open_storage(path) as store:
        store.set("0", "w" * 50_000)
        until(lambda: not is_at_work(store), "the end of the thread's work")
        assert caplog.messages == [f"{path}: the -wal file could not be written back: CantOpenError"]
        store.set("1", "w" * 50_000)
        assert to_write_back(store) == 0
        until(lambda: not is_at_work(store), "the end of the thread's work")
        assert len(caplog.messages) == 1, "it is tried again for each commit"


@pytest.mark.usefixtures("few_pages")
def test_the_thread_writes_nothing_to_a_file_that_has_taken_the_place_of_the_stores(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, Checkpoints, "_write_back_unread")
    with open_storage(tmp_path / "other.db") as other:
        other.set("0", "other")
    before = (tmp_path / "other.db").read_bytes()
    store = open_storage(path)
    try:
        store.set("0", "w" * 50_000)
        assert gate.comes.wait(30)
        os.rename(path, path + ".away")
        os.rename(tmp_path / "other.db", path)
        gate.may_pass.set()
        until(lambda: not is_at_work(store), "the end of the thread's work")
        with open(path, "rb") as file:
            assert file.read() == before
    finally:
        os.rename(path + ".away", path)
        store.close()
    with open_storage(path) as again:
        assert again.get("0") == "w" * 50_000


@pytest.mark.usefixtures("few_pages")
def test_a_store_is_closed_while_the_thread_writes_back(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, Checkpoints, "_write_back_unread")
    store = open_storage(path)
    store.set("0", "w" * 50_000)
    assert gate.comes.wait(30)
    with Workers() as workers:
        closing = workers.one().start(store.close)
        gate.may_pass.set()
        result(closing)
    assert not os.path.exists(path + "-wal")
    with open_storage(path) as again:
        assert again.get("0") == "w" * 50_000


def test_forks_while_the_thread_writes_back_lose_nothing(path: str) -> None:
    assert run(FORKING_AHEAD, path) == "30"


@pytest.mark.usefixtures("few_pages")
def test_the_thread_is_gone_soon(path: str) -> None:
    """Whoever forks is warned where there are other threads."""
    with open_storage(path) as store:
        store.set("0", "w" * 50_000)
        until(lambda: to_write_back(store) == 0, "a -wal that is written back")
        until(lambda: not any(each.name == "mycelia-checkpoints" for each in threading.enumerate()), "its end")
