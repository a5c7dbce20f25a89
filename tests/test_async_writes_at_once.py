"""Hazard: small writes that run on the event loop's own thread hold it up, overtake others, are lost or done twice.

Where a write ran is told by the option `clock`, which gives its version.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from stepping import Held, Workers, line_of
from thread_clock import ThreadClock

from mycelia_storage import (
    AsyncStorage,
    InvalidValueError,
    StorageClosedError,
    TransactionError,
    UniqueIndexError,
    VersionConflictError,
    open_storage,
)
from mycelia_storage.aio import gathering, threads
from mycelia_storage.aio.jobs import share
from mycelia_storage.engines.sqlite import commits, writer
from mycelia_storage.engines.sqlite.checkpoints import Checkpoints
from mycelia_storage.engines.sqlite.engine import SQLiteEngine
from mycelia_storage.engines.sqlite.indexes import refresh_is_due
from mycelia_storage.engines.sqlite.trust import Trust
from mycelia_storage.sharing import Call
from mycelia_storage.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from pathlib import Path

    Write = Callable[[AsyncStorage], Coroutine[Any, Any, Any]]


class Clock(ThreadClock):
    """Tells whether writes were made by this very thread."""

    def was_here(self) -> bool:
        """Whether what was written since the last look was written by this very thread, and nothing by another."""
        where, self.threads = set(self.threads), []
        return where == {threading.get_ident()}

    def was_elsewhere(self) -> bool:
        where, self.threads = set(self.threads), []
        return bool(where) and threading.get_ident() not in where


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with something else is no slow disk."""
    monkeypatch.setattr(gathering, "_LONGEST", 60.0)


@pytest.fixture(params=["sqlite", "memory"])
def front(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[AsyncStorage]:
    target = "memory:" if request.param == "memory" else tmp_path / "store.db"
    with opened(target, clock) as made:
        yield made


@pytest.fixture
def filed(tmp_path: Path, clock: Clock) -> Iterator[AsyncStorage]:
    with opened(tmp_path / "store.db", clock) as made:
        yield made


@contextlib.contextmanager
def opened(target: Any, clock: Clock, **options: Any) -> Iterator[AsyncStorage]:
    with open_storage(target, clock=clock, **options) as store:
        store.set_many({"a": {"n": 1}, "b": {"n": 1}, "n": 0})  # so that there is a -wal
        made = AsyncStorage(store)
        clock.threads.clear()
        yield made
        asyncio.run(made._stop())


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(bounded())


async def when_let(waiting: Coroutine[Any, Any, Any], let: Callable[[], object]) -> Any:
    """What a call gives that has to wait until `let` was called: the loop goes on meanwhile."""
    task = asyncio.ensure_future(waiting)
    for _ in range(50):
        await asyncio.sleep(0)
        assert not task.done()
    let()
    return await task


SMALL: dict[str, Write] = {
    "set": lambda store: store.set("x", 1),
    "add": lambda store: store.add("x", 1),
    "merge": lambda store: store.merge("a", {"m": 2}),
    "increment": lambda store: store.increment("n"),
    "touch": lambda store: store.touch("a", ttl=None),
    "take": lambda store: store.take("a"),
    "delete": lambda store: store.delete("a"),
    "set_metadata": lambda store: store.set_metadata("a", {"m": 1}),
    "if_version": lambda store: store.set("x", 1, if_version=0),
    "a view": lambda store: store.namespace("default", int).set("x", 1),
}


@pytest.mark.parametrize("write", SMALL.values(), ids=SMALL)
def test_a_small_write_needs_no_thread(front: AsyncStorage, clock: Clock, write: Write) -> None:
    async def work() -> None:
        before = set(threading.enumerate())
        assert await write(front)
        assert clock.was_here()
        assert set(threading.enumerate()) <= before

    run(work())


OTHERS: dict[str, Write] = {
    "durable": lambda store: store.set("x", 1, durable=True),
    "many": lambda store: store.set_many({"x": 1, "y": 2}),
    "everything": lambda store: store.clear(),
    "a function of the caller's": lambda store: store.modify("n", lambda n: n + 1),
    "a large value": lambda store: store.set("x", "x" * 200_000),
}


@pytest.mark.parametrize("write", OTHERS.values(), ids=OTHERS)
def test_what_may_take_long_has_a_thread(filed: AsyncStorage, clock: Clock, write: Write) -> None:
    async def work() -> None:
        await write(filed)
        # A large value is refused only when it is about to be written.
        assert clock.threads[-1] != threading.get_ident()

    run(work())


@pytest.mark.parametrize("options", [{"synchronous": "FULL"}, {"wal_mode": False}], ids=["FULL", "no WAL"])
def test_a_commit_that_waits_for_the_disk_has_a_thread(tmp_path: Path, clock: Clock, options: dict[str, Any]) -> None:
    async def work(front: AsyncStorage) -> None:
        await front.set("x", 1)
        assert clock.was_elsewhere()

    with opened(tmp_path / "store.db", clock, **options) as front:
        run(work(front))


def test_a_few_share_a_turn_and_many_the_way_to_the_thread(front: AsyncStorage, clock: Clock) -> None:
    async def work() -> None:
        few = await asyncio.gather(*(front.increment("n") for _ in range(gathering._FEW)))
        assert clock.was_here()
        many = await asyncio.gather(*(front.increment("n") for _ in range(100)))
        assert clock.was_elsewhere()
        assert [*few, *many] == list(range(1, gathering._FEW + 101))

    run(work())


# ---- who waits


def test_the_loop_goes_on_while_a_thread_has_a_transaction(front: AsyncStorage, clock: Clock) -> None:
    async def work() -> None:
        with Held(front.sync) as held:
            clock.threads.clear()
            assert await when_let(front.increment("n"), held.let_go) == 1
            assert clock.was_elsewhere()

    run(work())


def test_the_loop_goes_on_while_somebody_writes(front: AsyncStorage, clock: Clock) -> None:
    line = line_of(front.sync)
    assert line.try_acquire()
    assert run(when_let(front.increment("n"), line.release)) == 1
    assert clock.was_elsewhere()


def test_the_loop_goes_on_while_a_thread_has_all_of_the_memory(clock: Clock) -> None:
    arrived, opened_ = threading.Event(), threading.Event()

    def hold(lock: Any) -> None:
        with lock:
            arrived.set()
            assert opened_.wait(30)

    with opened("memory:", clock) as front, Workers() as workers:
        held = workers.one().start(lambda: hold(front.sync._engine.lock))  # type: ignore[attr-defined]
        assert arrived.wait(30)
        try:
            assert run(when_let(front.increment("n"), opened_.set)) == 1
        finally:
            opened_.set()
        held.result(30)
        assert clock.was_elsewhere()


def test_the_loop_goes_on_while_the_file_is_locked(filed: AsyncStorage, clock: Clock) -> None:
    engine = filed.sync._engine
    assert isinstance(engine, SQLiteEngine)
    other = apsw.Connection(engine.path)
    other.execute("BEGIN IMMEDIATE")
    try:
        assert run(when_let(filed.increment("n"), lambda: other.execute("ROLLBACK"))) == 1
        assert clock.was_elsewhere()
    finally:
        other.close()


def test_the_loop_goes_on_while_a_transaction_of_another_task_is_open(front: AsyncStorage) -> None:
    async def work() -> None:
        inside, done = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with front.transaction() as tx:
                inside.set()
                await done.wait()
                await tx.set("n", 10)

        task = asyncio.create_task(hold())
        await inside.wait()
        assert await when_let(front.increment("n"), done.set) == 11
        await task

    run(work())


def test_who_is_inside_a_transaction_is_told_so(front: AsyncStorage) -> None:
    async def work() -> None:
        async with front.transaction():
            with pytest.raises(TransactionError):
                await front.set("x", 1)
        await front.set("x", 2)

    run(work())


@pytest.mark.parametrize("verb", ["set", "increment"])
def test_what_takes_too_long_is_undone_and_done_once_by_the_thread(
    filed: AsyncStorage, clock: Clock, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    async def work() -> None:
        monkeypatch.setattr(gathering, "_LONGEST", 1e-9)
        calls = [filed.increment("n") if verb == "increment" else filed.set(f"x{n}", n) for n in range(3)]
        found = await asyncio.gather(*calls)
        if verb == "increment":
            assert found == [1, 2, 3]
        assert not clock.was_here()
        monkeypatch.setattr(gathering, "_LONGEST", 60.0)
        await filed.set("y", 1)
        assert clock.was_elsewhere(), "for a while all have the thread"
        filed._threads.writer.gathering._by_thread_until = 0.0
        await filed.set("y", 2)
        assert clock.was_here()

    run(work())


def test_after_a_slow_write_the_next_ones_have_their_thread(
    front: AsyncStorage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        clock.delay = 0.02
        await front.set("x", 1)
        monkeypatch.setattr(gathering, "_LONGEST", 0.01)
        clock.threads.clear()
        await front.set("x", 2)
        clock.threads.clear()
        await front.set("x", 3)
        assert clock.was_elsewhere()

    run(work())


def test_the_loop_never_writes_the_wal_back_nor_begins_it_anew(
    filed: AsyncStorage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = threading.get_ident()
    by: dict[str, list[int]] = {"written back": [], "statistics": []}
    write_back, write_ahead = Trust.write_back, Checkpoints._write_back_unread

    def noting(self: Trust, connection: apsw.Connection, mode: int) -> bool:
        by["written back"].append(threading.get_ident())
        return write_back(self, connection, mode)

    def noting_ahead(self: Checkpoints, connection: apsw.Connection) -> tuple[int, int] | None:
        by["written back"].append(threading.get_ident())
        return write_ahead(self, connection)

    def looking(connection: apsw.Connection) -> bool:
        by["statistics"].append(threading.get_ident())
        return refresh_is_due(connection)

    monkeypatch.setattr(Trust, "write_back", noting)
    monkeypatch.setattr(Checkpoints, "_write_back_unread", noting_ahead)
    monkeypatch.setattr(writer, "refresh_is_due", looking)
    engine = filed.sync._engine
    assert isinstance(engine, SQLiteEngine)
    serve_at_once = engine.writer.commits._serve_at_once
    begun_anew: list[bool] = []

    def serving(members: Sequence[Any]) -> None:
        # Whoever writes to a -wal of which nothing is left to be written back begins it anew.
        pages, done = engine.writer.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        begun_anew.append(pages <= done)
        serve_at_once(members)

    async def work() -> None:
        monkeypatch.setattr(engine.writer.commits, "_serve_at_once", serving)
        for number in range(1500):
            await filed.set(f"key{number}", {"text": "x" * 500})
        assert clock.threads.count(here) > 1000, "most of them were written here"

    run(work())
    assert not any(begun_anew)
    assert by["written back"]
    assert here not in by["written back"]
    assert by["statistics"]
    assert here not in by["statistics"]


# ---- order


def test_a_write_overtakes_none_that_the_thread_has(front: AsyncStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, opened_ = threading.Event(), threading.Event()

    def late(*arguments: Any) -> Any:
        arrived.set()
        assert opened_.wait(30)
        return share(*arguments)

    async def work() -> None:
        monkeypatch.setattr(threads, "share", late)
        first = asyncio.ensure_future(front.set_many({"a": 1}))
        while not arrived.is_set():
            await asyncio.sleep(0)
        try:
            await when_let(front.set("a", 2), opened_.set)
        finally:
            opened_.set()
            await first
        assert await front.get("a") == 2

    run(work())


def test_what_is_called_in_one_turn_is_written_in_that_order(front: AsyncStorage) -> None:
    async def inside() -> Any:
        async with front.transaction() as tx:
            return await tx.increment("n")

    async def work() -> None:
        for other in (lambda: front.modify("n", lambda n: n + 1), inside, lambda: front.set("n", 2, durable=True)):
            calls = [front.set("n", 1), other(), front.set("m", 1)]
            await asyncio.gather(*calls)
            assert await front.get("n") == 2

    run(work())


def test_close_finishes_what_was_gathered(tmp_path: Path, clock: Clock) -> None:
    async def work() -> int:
        front = AsyncStorage(open_storage(tmp_path / "store.db", clock=clock))
        await front.set("n", 1)
        last = asyncio.ensure_future(front.increment("n"))
        await asyncio.sleep(0)
        assert not last.done()
        await front.close()
        with pytest.raises(StorageClosedError):
            await front.set("n", 1)
        return await last

    assert run(work()) == 2
    with open_storage(tmp_path / "store.db") as store:
        assert store.get("n") == 2


def test_what_a_loop_leaves_behind_is_finished_at_close(tmp_path: Path, clock: Clock) -> None:
    front = AsyncStorage(open_storage(tmp_path / "store.db", clock=clock))
    loop = asyncio.new_event_loop()
    task = loop.create_task(front.set("n", 1))
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert not task.done()
    run(front.close())
    loop.run_until_complete(task)
    loop.close()
    with open_storage(tmp_path / "store.db") as store:
        assert store.get("n") == 1


# ---- each its own result, once


def test_a_gathered_call_that_is_cancelled_is_dropped(front: AsyncStorage) -> None:
    async def work() -> None:
        task, other = asyncio.ensure_future(front.set("x", 1)), asyncio.ensure_future(front.set("y", 1))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await other
        assert await front.get_many(["x", "y"]) == {"y": 1}

    run(work())


def test_one_that_fails_harms_no_other(front: AsyncStorage, clock: Clock) -> None:
    front.sync.create_index("n", unique=True, namespace="unique", name="unique n")
    front.sync.set("first", {"n": 1}, namespace="unique")
    clock.threads.clear()

    async def work() -> None:
        found = await asyncio.gather(
            front.increment("n"),
            front.set("a", 2, if_version=1),
            front.increment("n"),
            front.set("second", {"n": 1}, namespace="unique"),
            front.increment("a"),
            front.set("x", object()),
            front.increment("n"),
            return_exceptions=True,
        )
        kinds = [VersionConflictError, UniqueIndexError, InvalidValueError, InvalidValueError]
        assert found[::2][:2] == [1, 2]
        assert found[6] == 3
        assert [type(found[number]) for number in (1, 3, 4, 5)] == kinds
        assert await front.get("n") == 3
        assert await front.get_many(["first", "second"], namespace="unique") == {"first": {"n": 1}}

    run(work())


def test_what_could_not_be_done_at_once_is_undone_before_anybody_else_has_a_turn(filed: AsyncStorage) -> None:
    """Not by whoever writes next, who may be long in coming: until then the file would be locked."""

    def writes_and_fails(verbs: Verbs) -> None:
        Verbs.set(verbs, "half", 1)
        raise ZeroDivisionError

    call = Call(writes_and_fails)
    filed.sync._share_at_once([call])
    assert not call.is_done
    with open_storage(filed.sync.get_status().target, busy_timeout=0) as other:
        other.set("x", 1)
        assert not other.has("half")


def test_a_commit_that_has_happened_is_not_called_interrupted(
    filed: AsyncStorage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is over just when it is committed, and SQLite asks after each of its steps."""
    engine = filed.sync._engine
    assert isinstance(engine, SQLiteEngine)
    shared = engine.writer.commits

    async def work() -> None:
        monkeypatch.setattr(commits, "_STEPS_IN_A_HURRY", 1)
        monkeypatch.setattr(commits, "is_over", lambda: bool(shared._committing))
        assert await asyncio.gather(*(filed.increment("n") for _ in range(5))) == [1, 2, 3, 4, 5]
        assert clock.was_here()
        assert await filed.get("n") == 5

    run(work())


def test_a_signal_handler_that_raises_loses_no_call(front: AsyncStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    share = front._storage._share_at_once
    is_first = True

    def interrupted(calls: Any) -> bool:
        nonlocal is_first
        found = share(calls[:1]) if is_first else share(calls)
        if is_first:
            is_first = False
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(front._storage, "_share_at_once", interrupted)
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(front.increment("n")) for _ in range(3)]
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(asyncio.wait(tasks))
    loop.run_until_complete(asyncio.wait(tasks, timeout=30))
    assert [task.result() for task in tasks] == [1, 2, 3]
    loop.close()


def test_two_loops_and_threads_write_side_by_side(front: AsyncStorage) -> None:
    results: list[list[int]] = [[], [], []]

    def by_loop(number: int) -> None:
        async def work() -> None:
            async def one() -> None:
                for _ in range(20):
                    results[number].append(await front.increment("n"))

            await asyncio.gather(*(one() for _ in range(10)))

        run(work())

    def by_thread() -> None:
        results[2].extend(front.sync.increment("n") for _ in range(200))

    with Workers() as workers:
        futures = [
            workers.one().start(lambda: by_loop(0)),
            workers.one().start(lambda: by_loop(1)),
            workers.one().start(by_thread),
        ]
        for future in futures:
            future.result(60)
    assert sorted(itertools.chain(*results)) == list(range(1, 601))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_child_does_not_do_what_its_parent_gathered(filed: AsyncStorage) -> None:
    async def work() -> None:
        task = asyncio.ensure_future(filed.increment("n"))
        await asyncio.sleep(0)
        child = os.fork()
        if child == 0:
            try:
                for _ in range(10):
                    await asyncio.sleep(0)
                os._exit(int(task.done() or filed.sync.get("n") != 0))
            finally:
                os._exit(2)
        _, status = os.waitpid(child, 0)
        assert status == 0
        assert await task == 1

    run(work())
