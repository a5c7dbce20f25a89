"""A disk that does not confirm what was written: commits whose outcome is unknown, and checkpoints after a commit."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from children import run
from faults import Fault, failing, losing
from faulty import state_of
from stepping import Gate, Workers, error_of, until, waiting

from mycelia_storage import (
    AsyncStorage,
    KeyExistsError,
    OutcomeUnknownError,
    Storage,
    StorageError,
    StorageIOError,
    Transaction,
    open_storage,
)
from mycelia_storage.engines.sqlite import writer
from mycelia_storage.engines.sqlite.checkpoints import Checkpoints
from mycelia_storage.engines.sqlite.trust import COMMIT_IN_DOUBT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Every sync from now on; or the first one only.
FOR_GOOD = Fault("sync", at=1, for_good=True)
ONCE = Fault("sync", at=1)

WRITES: dict[str, Callable[[Storage], object]] = {
    "set": lambda store: store.set("k", 2),
    "set with a condition": lambda store: store.set("k", 2, overwrite=False, namespace="other"),
    "set_many": lambda store: store.set_many({"a": 1, "b": 2}),
    "delete": lambda store: store.delete("k"),
    "delete_many": lambda store: store.delete_many(["k", "l"]),
    "clear": lambda store: store.clear(),
    "modify": lambda store: store.modify("k", lambda value: value),
    "transaction": lambda store: store.run_transaction(lambda tx: tx.set("k", 2)),
    "create_index": lambda store: store.create_index("age"),
    "optimize": lambda store: store.optimize(),
    "migrate": lambda store: store.migrate(to=1),
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "store.db")
    with open_storage(path) as store:
        store.set("k", 1)
    return path


def crashed(path: str, into: Path) -> dict[str, Any]:
    """What a store would show if the process were killed now, and nobody else had the file open."""
    into.mkdir()
    copy = str(into / "store.db")
    for end in ("", "-wal", "-journal"):
        if os.path.exists(path + end):
            shutil.copy(path + end, copy + end)
    with open_storage(copy) as store:
        store.check()
        return state_of(store)


@contextmanager
def in_doubt(path: str, **options: Any) -> Iterator[Storage]:
    """A store after a commit that nobody knows of: it sets k to "doubtful"."""
    store = open_storage(path, **options)
    store.set("l", 1)
    with failing(ONCE), pytest.raises(OutcomeUnknownError, match="open it again"):
        store.set("k", "doubtful", durable=True)
    try:
        yield store
    finally:
        store.close()


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("wal", [True, False])
def test_after_an_unknown_outcome_nothing_is_written_until_the_store_is_opened_again(
    path: str, write: Callable[[Storage], object], wal: bool
) -> None:
    with in_doubt(path, wal_mode=wal) as store:
        for _ in range(2):
            with pytest.raises(StorageIOError, match="did not confirm an earlier commit.*open it again"):
                write(store)
    with open_storage(path, wal_mode=wal) as again:
        assert again.get("k") in (1, "doubtful")
        assert again.get("l") == 1
        write(again)


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.set("k", "doubtful", durable=True),
        lambda store: store.set_many({"k": "doubtful"}, durable=True),
        lambda store: store.set("k", "doubtful", overwrite=True, metadata={}, durable=True),
        lambda store: store.modify("k", lambda _: "doubtful", durable=True),
        lambda store: store.run_transaction(lambda tx: tx.set("k", "doubtful"), durable=True),
    ],
)
def test_every_way_to_commit_tells_that_the_outcome_is_unknown(path: str, call: Callable[[Storage], object]) -> None:
    with open_storage(path) as store:
        with failing(FOR_GOOD), pytest.raises(OutcomeUnknownError) as raised:
            call(store)
        assert isinstance(raised.value.__cause__, apsw.IOError)
        assert (raised.value.code, raised.value.retryable) == ("outcome_unknown", False)


def test_with_a_wal_what_is_read_is_the_state_before(path: str) -> None:
    with in_doubt(path) as store:
        assert store.get("k") == 1
        assert [entry.value for entry in store.scan()] == [1, 1]
        assert store.get_status().details["refuses_writes"]


def test_without_a_wal_nothing_is_read_either(path: str) -> None:
    with in_doubt(path, wal_mode=False) as store:
        for read in (lambda: store.get("k"), lambda: store.has("k"), lambda: list(store.scan()), store.get_status):
            with pytest.raises(StorageIOError, match="open it again"):
                read()
        with pytest.raises(StorageIOError, match="open it again"), store.transaction(read_only=True) as tx:
            tx.get("k")


def test_an_old_reader_is_not_lent_again(path: str) -> None:
    """One that was idle before, and one that was in use."""
    store = open_storage(path, wal_mode=False, max_readers=2)
    assert store.get("k") == 1
    with failing(ONCE), pytest.raises(OutcomeUnknownError):
        store.set("k", "doubtful")
    with pytest.raises(StorageIOError, match="open it again"):
        store.get("k")
    store.close()


def test_every_task_of_a_shared_commit_is_told(path: str) -> None:
    async def main(store: Storage) -> list[Any]:
        front = AsyncStorage(store)
        with failing(FOR_GOOD):
            found = await asyncio.gather(
                *(front.set(f"{n}", n, durable=True) for n in range(5)),
                front.set("k", 3, overwrite=False),
                return_exceptions=True,
            )
        await front._stop()
        return list(found)

    store = open_storage(path)
    *found, refused = asyncio.run(main(store))
    assert [type(one) for one in found] == [OutcomeUnknownError] * 5
    assert len({id(one) for one in found}) == 5
    assert isinstance(refused, KeyExistsError | StorageIOError), "it has failed by itself, or had not begun"
    assert store.list_keys() == ["k"]
    store.close()
    with open_storage(path) as again:
        assert set(again.list_keys()) in ({"k"}, {"k", *map(str, range(5))})


def test_a_crash_may_bring_the_commit_and_a_close_makes_certain_that_it_has_not_happened(
    path: str, tmp_path: Path
) -> None:
    """Also where the -wal goes on, because another store has the file open."""
    with open_storage(path) as other:
        assert other.get("k") == 1
        with in_doubt(path) as store:
            before = state_of(store)
            happened = crashed(path, tmp_path / "in doubt")
            assert happened != before, "then this test proves nothing"
            assert happened["entries"]["default"]["k"] == "doubtful"
        assert crashed(path, tmp_path / "closed") == before
        assert state_of(other) == before
    with open_storage(path) as again:
        assert state_of(again) == before


def test_a_close_makes_it_certain_where_a_reader_keeps_the_wal_as_it_is(path: str, tmp_path: Path) -> None:
    """It cannot be cut then: another commit has to take the place of the one in doubt."""
    with open_storage(path) as other:
        other.set("m", 1)
        with other.transaction(read_only=True) as tx:
            assert tx.get("k") == 1
            with in_doubt(path, busy_timeout=0.1) as store:
                before = state_of(store)
                assert crashed(path, tmp_path / "in doubt") != before, "then this test proves nothing"
            assert crashed(path, tmp_path / "closed") == before
        assert state_of(other) == before


def test_another_store_goes_on_and_makes_it_certain(path: str, tmp_path: Path) -> None:
    with open_storage(path) as other, in_doubt(path) as store:
        other.set("m", 1)
        assert store.get("m") == 1
        assert crashed(path, tmp_path / "now")["entries"]["default"] == {"k": 1, "l": 1, "m": 1}


def test_a_store_that_cannot_be_settled_closes_all_the_same(path: str, caplog: pytest.LogCaptureFixture) -> None:
    store = open_storage(path)
    with failing(FOR_GOOD):
        with pytest.raises(OutcomeUnknownError):
            store.set("k", "doubtful", durable=True)
        store.close()
    assert "could not be settled" in caplog.text
    with open_storage(path) as again:
        assert again.get("k") in (1, "doubtful")
        again.set("k", 2)


FORKS = """
import os, sys
sys.path.insert(0, sys.argv[2])
from faults import Fault, failing, losing
from mycelia_storage import OutcomeUnknownError, StorageIOError, open_storage
store = open_storage(sys.argv[1])
with failing(Fault("sync", at=1)):
    try:
        store.set("k", "doubtful", durable=True)
    except OutcomeUnknownError:
        pass
def refusals():
    for call in (lambda: store.get("k"), lambda: store.set("k", 2)):
        try:
            call()
        except StorageIOError as error:
            yield "open it again" in str(error)
child = os.fork()
if child:
    os.waitpid(child, 0)
print("parent" if child else "child", list(refusals()), flush=True)
if not child:
    os._exit(0)
store.close()
"""


def test_after_a_fork_nothing_is_read_that_may_have_changed(path: str) -> None:
    """The connections were closed, so that whoever opens the file may find the commit done."""
    printed = run(FORKS, path, os.path.dirname(__file__)).splitlines()
    assert printed == ["child [True, True]", "parent [True, True]"]


# ---- checkpoints


@pytest.fixture
def checkpoint_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "WAL_PAGES", 1)


@pytest.mark.usefixtures("checkpoint_each_time")
@pytest.mark.parametrize("at", [2, 3])  # the first one is that of a -wal which begins: then come -wal and file
def test_a_checkpoint_that_is_not_confirmed_is_done_once_more(
    path: str, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit before has happened, and is not told to have failed."""
    with open_storage(path) as store:
        with failing(Fault("sync", at=at)) as state:
            store.set("k", 2)
        assert state.failed == 1, "no checkpoint: then this test proves nothing"
        assert "did not confirm a checkpoint" in caplog.text
        assert os.path.getsize(path + "-wal") == 0, "the -wal was not begun anew"
        store.set("k", 3)
        assert store.get_status().details["refuses_writes"] is None
    with open_storage(path) as again:
        assert again.get("k") == 3


@pytest.mark.usefixtures("checkpoint_each_time")
@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.set("k", 2),
        lambda store: store.set_many({"k": 2}),
        lambda store: store.run_transaction(lambda tx: tx.set("k", 2)),
    ],
)
def test_a_checkpoint_that_is_never_confirmed_stops_the_next_write(
    path: str, write: Callable[[Storage], object]
) -> None:
    """Or what is promised to survive a power cut from then on might stand behind something that does not."""
    with open_storage(path) as store:
        with failing(Fault("sync", at=2, for_good=True)):
            write(store)
            with pytest.raises(StorageIOError, match="did not confirm what was written to it.*open it again"):
                store.set("k", 3, durable=True)
        assert store.get("k") == 2
        assert "power cut" in store.get_status().details["refuses_writes"]
    with open_storage(path) as again:
        assert again.get("k") == 2
        again.set("k", 3, durable=True)


@pytest.mark.usefixtures("checkpoint_each_time")
def test_a_durable_commit_is_durable_though_the_checkpoint_after_it_is_not_confirmed(path: str) -> None:
    with open_storage(path) as store, failing(Fault("sync", at=3, for_good=True)) as state:
        store.set("k", 2, durable=True)
        assert state.failed > 0
    with open_storage(path) as again:
        assert again.get("k") == 2


def writes_back_in_vain(store: Storage, at: int) -> bool:
    """Whether a set was done, and what came after it was not."""
    with failing(Fault("pwrite64", at=at, for_good=True)) as state:
        try:
            store.set("k", 2)
        except StorageIOError:
            return False
    return state.failed > 0


@pytest.mark.usefixtures("checkpoint_each_time")
def test_a_checkpoint_that_cannot_be_written_is_put_off(path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with open_storage(path) as store:
        # The first writes are the commit's.
        assert any(writes_back_in_vain(store, at) for at in range(1, 30))
        assert "could not be written back, and is kept" in caplog.text
        store.set("k", 3)
        assert store.get("k") == 3


def test_closing_tells_that_the_wal_could_not_be_written_back_and_closes(path: str) -> None:
    store = open_storage(path)
    store.set("k", 2)
    with failing(FOR_GOOD), pytest.raises(StorageIOError):
        store.close()
    store.close()
    with open_storage(path) as again:
        assert again.get("k") == 2


@pytest.mark.parametrize("number", range(1, 5))
def test_a_restore_that_is_not_confirmed_is_unknown_or_done(path: str, tmp_path: Path, number: int) -> None:
    backup = str(tmp_path / "backup.db")
    with open_storage(path) as store:
        store.backup(backup)
        store.set("since", 1)
        with failing(Fault("sync", at=number)):
            try:
                store.restore(backup)
            except OutcomeUnknownError:
                with pytest.raises(StorageIOError, match="open it again"):
                    store.set("k", 2)
            except StorageError:
                assert store.get("since") == 1
            else:
                assert store.list_keys() == ["k"]
    with open_storage(path) as again:
        assert again.list_keys() in (["k"], ["k", "since"])
        assert again.get("k") == 1


def test_a_directory_that_is_not_synchronized_leaves_the_commit_unknown(path: str) -> None:
    """Without WAL a commit is done when the name of the -journal is gone for good."""
    read, write = os.pipe()  # which cannot be synchronized
    with closing_both(read, write), open_storage(path, wal_mode=False, synchronous="EXTRA") as store:
        with directories_are(write) as opened, pytest.raises(OutcomeUnknownError):
            store.set("k", 2)
        assert opened
        with pytest.raises(StorageIOError, match="open it again"):
            store.get("k")
    with open_storage(path, wal_mode=False) as again:
        assert again.get("k") in (1, 2)


@contextmanager
def closing_both(*descriptors: int) -> Iterator[None]:
    try:
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@contextmanager
def directories_are(descriptor: int) -> Iterator[list[int]]:
    """SQLite gets a copy of this descriptor where it opens a directory."""
    import ctypes

    opened: list[int] = []
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int))

    def open_directory(name: bytes, into: Any) -> int:
        opened.append(os.dup(descriptor))
        into[0] = opened[-1]
        return 0

    replacement = prototype(open_directory)
    vfs = apsw.VFS("directories", "unix")
    before = vfs.xGetSystemCall("openDirectory")
    vfs.xSetSystemCall("openDirectory", ctypes.cast(replacement, ctypes.c_void_p).value or 0)
    try:
        yield opened
    finally:
        vfs.xSetSystemCall("openDirectory", before or 0)
        vfs.unregister()


# ---- the system's own syncs

TRACED = """
import sys
from mycelia_storage import OutcomeUnknownError, StorageIOError, open_storage
store = open_storage(sys.argv[1])
for number in range(3):
    try:
        store.set("k", number + 2, durable=True)
    except (OutcomeUnknownError, StorageIOError) as error:
        print(type(error).__name__)
store.close()
"""


@pytest.mark.parametrize("first", [1, 2, 3] if shutil.which("strace") else [])
def test_a_sync_that_the_system_fails(path: str, first: int) -> None:
    import subprocess
    import sys

    inject = f"inject=fsync,fdatasync:error=EIO:when={first}+"
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", inject]
    command = [*strace, sys.executable, "-c", TRACED, path]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    unknown, *refused = found.stdout.split()
    assert unknown == "OutcomeUnknownError"
    assert set(refused) <= {"StorageIOError"}
    done = 2 - len(refused)
    with open_storage(path) as again:
        assert again.get("k") in (1 + done, 2 + done)


@pytest.fixture
def written_back_by_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "AHEAD_PAGES", 1)


def is_at_work(store: Storage) -> Any:
    return store._engine.checkpoints.is_ahead  # type: ignore[attr-defined]


def until_written_back(store: Storage) -> None:
    until(lambda: not is_at_work(store), "the end of the thread's work")


@pytest.mark.usefixtures("written_back_by_a_thread")
@pytest.mark.parametrize("at", [2, 3])
def test_a_checkpoint_of_the_thread_that_is_not_confirmed_is_done_once_more(
    path: str, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    with open_storage(path) as store:
        with failing(Fault("sync", at=at)) as state:
            store.set("k", 2)
            until(lambda: state.failed, "a checkpoint")
            until(lambda: not os.path.getsize(path + "-wal"), "a -wal that is begun anew")
            until(lambda: store.get_status().details["refuses_writes"] is None, "the end of the doubt")
        assert "did not confirm a checkpoint" in caplog.text
        store.set("k", 3)
    with open_storage(path) as again:
        assert again.get("k") == 3


@pytest.mark.usefixtures("written_back_by_a_thread")
def test_a_checkpoint_of_the_thread_that_is_never_confirmed_stops_the_next_write(path: str) -> None:
    with open_storage(path) as store:
        with failing(Fault("sync", at=2, for_good=True)):
            store.set("k", 2)
            until_written_back(store)
            with pytest.raises(StorageIOError, match="did not confirm what was written to it.*open it again"):
                store.set("k", 3, durable=True)
        assert store.get("k") == 2
    with open_storage(path) as again:
        assert again.get("k") == 2
        again.set("k", 3, durable=True)


@pytest.mark.usefixtures("written_back_by_a_thread")
def test_nothing_is_promised_between_a_checkpoint_that_failed_and_the_one_that_mends_it(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk confirms then might stand behind something that it has lost."""
    stopped = Gate(monkeypatch, Checkpoints, "_write_back_unread")

    def fail_meanwhile(tx: Transaction) -> None:
        tx.set("k", 3)
        stopped.may_pass.set()
        until(lambda: store._engine.writer.trust.doubt, "the doubt")  # type: ignore[attr-defined]

    with open_storage(path) as store:
        store.set("k", 2)
        assert stopped.comes.wait(30)
        with failing(ONCE):
            with pytest.raises(StorageIOError, match="did not confirm"):
                store.run_transaction(fail_meanwhile, durable=True)
            until(lambda: store.get_status().details["refuses_writes"] is None, "the end of the doubt")
        assert store.get("k") == 2
        store.set("k", 4, durable=True)
    with open_storage(path) as again:
        assert again.get("k") == 4


@pytest.mark.usefixtures("written_back_by_a_thread")
def test_nothing_is_written_back_after_a_commit_of_unknown_outcome(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = Gate(monkeypatch, Checkpoints, "_write_back_unread")
    with open_storage(path) as store:
        store.set("l", 1)
        assert stopped.comes.wait(30)
        with open(path, "rb") as file:
            before = file.read()
        with failing(Fault("sync", at=1, for_good=True)), pytest.raises(OutcomeUnknownError):
            store.set("k", "doubtful", durable=True)
        reason = store.get_status().details["refuses_writes"]
        stopped.may_pass.set()
        until_written_back(store)
        with open(path, "rb") as file:
            assert file.read() == before
        assert store.get_status().details["refuses_writes"] == reason


@pytest.mark.usefixtures("written_back_by_a_thread")
def test_nothing_is_written_back_while_a_commit_finds_out_that_its_outcome_is_unknown(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk tells it to those who had the file open, and the thread is one of them."""
    gate = Gate(monkeypatch, Checkpoints, "_write_back_unread")
    finds_out, may_tell, distrust = threading.Event(), threading.Event(), writer.Writer.distrust

    def later(self: writer.Writer, reason: str) -> None:
        if reason == COMMIT_IN_DOUBT:
            finds_out.set()
            assert may_tell.wait(30)
        distrust(self, reason)

    monkeypatch.setattr(writer.Writer, "distrust", later)
    with open_storage(path) as store, Workers() as workers:
        store.set("l", 1)
        assert gate.comes.wait(30)
        before = Path(path).read_bytes()
        with losing(1), monkeypatch.context() as settling:
            settling.setattr(writer.Writer, "_settle", lambda _: False)  # nor does the disk confirm another commit
            found = workers.one().start(lambda: store.set("k", "doubtful", durable=True))
            assert finds_out.wait(30)
            gate.may_pass.set()
            until(lambda: waiting(store) or not is_at_work(store), "what the thread does")
            may_tell.set()
            assert isinstance(error_of(found), OutcomeUnknownError)
            until(lambda: not waiting(store), "the end of the thread's work")
        assert Path(path).read_bytes() == before


@pytest.mark.usefixtures("written_back_by_a_thread")
@pytest.mark.parametrize("at", [2, 3])
def test_what_the_thread_has_mended_is_not_told_to_the_next_commit(path: str, at: int) -> None:
    with open_storage(path) as store, losing(at) as state:
        store.set("k", 2)
        until(lambda: state.failed, "a checkpoint")
        until(lambda: not os.path.getsize(path + "-wal"), "a -wal that is begun anew")
        until(lambda: store.get_status().details["refuses_writes"] is None, "the end of the doubt")
        store.set("k", 3, durable=True)
        store.set("k", 4, durable=True)
        until_written_back(store)
    with open_storage(path) as again:
        assert again.get("k") == 4
