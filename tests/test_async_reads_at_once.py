"""Hazard: short reads that run on the event loop's own thread hold it up.

Where a read ran is told by the option `clock`, which is called for entries that expire.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import pytest
from thread_clock import ThreadClock

from mycelia_storage import AsyncStorage, StorageClosedError, open_storage
from mycelia_storage.aio import at_once
from mycelia_storage.engines.limits import hurrying
from mycelia_storage.engines.sqlite.connection import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path


class Clock(ThreadClock):
    """Tells whether a read was made by this very thread."""

    def was_here(self) -> bool:
        """Whether what ran last ran on this very thread."""
        return self.threads[-1] == threading.get_ident()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "memory"])
def front(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[AsyncStorage]:
    target = "memory:" if request.param == "memory" else tmp_path / "store.db"
    with opened(target, clock) as made:
        yield made


@contextlib.contextmanager
def opened(target: Any, clock: Clock, **options: Any) -> Iterator[AsyncStorage]:
    with open_storage(target, clock=clock, **options) as store:
        store.set("a", 1, ttl=3000, metadata={"by": "test"})
        store.get("a")  # so that a connection is there
        made = AsyncStorage(store)
        yield made
        asyncio.run(made._stop())


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(bounded())


async def gets_when_let(front: AsyncStorage, let: Callable[[], object]) -> Any:
    """What `get` gives, which has to wait until `let` was called: the loop goes on meanwhile."""
    task = asyncio.ensure_future(front.get("a"))
    for _ in range(50):
        await asyncio.sleep(0)
        assert not task.done()
    let()
    return await task


READS = {
    "get": lambda front: front.get("a"),
    "get_entry": lambda front: front.get_entry("a"),
    "has": lambda front: front.has("a"),
    "get_metadata": lambda front: front.get_metadata("a"),
    "get_many": lambda front: front.get_many(["a", "b"]),
    "get_entries": lambda front: front.get_entries(["a", "b"]),
    "a view": lambda front: front.namespace("default", int).get("a"),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_short_read_needs_no_thread(front: AsyncStorage, clock: Clock, read: Callable[[Any], Any]) -> None:
    async def work() -> None:
        before = threading.active_count()
        clock.threads.clear()
        assert await read(front)
        assert set(clock.threads) == {threading.get_ident()}
        assert threading.active_count() == before

    run(work())


def test_the_loop_goes_on_while_every_connection_is_lent(tmp_path: Path, clock: Clock) -> None:
    async def work(front: AsyncStorage) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(front.sync.transaction(read_only=True))
            assert await gets_when_let(front, stack.close) == 1
        assert not clock.was_here()

    with opened(tmp_path / "store.db", clock, max_readers=1) as front:
        run(work(front))


def test_the_loop_goes_on_while_a_thread_has_all_of_the_memory(clock: Clock) -> None:
    inside, done = threading.Event(), threading.Event()

    async def work(front: AsyncStorage) -> None:
        lock = front.sync._engine.lock  # type: ignore[attr-defined]

        def hold() -> None:
            with lock:
                inside.set()
                assert done.wait(30)

        thread = threading.Thread(target=hold)
        thread.start()
        assert inside.wait(30)
        assert await gets_when_let(front, done.set) == 1
        assert not clock.was_here()
        thread.join()

    with opened("memory:", clock) as front:
        run(work(front))


def test_in_a_hurry_nobody_waits_for_a_locked_file() -> None:
    patience = Patience(3600)
    assert patience(0)
    hurrying.hurry_until = 1.0
    try:
        assert not patience(1)
    finally:
        hurrying.hurry_until = 0.0
    assert patience(2)


def test_without_wal_a_read_has_a_thread_because_it_waits_for_writers(tmp_path: Path, clock: Clock) -> None:
    async def work(front: AsyncStorage) -> None:
        assert await front.get("a") == 1
        assert not clock.was_here()

    with opened(tmp_path / "store.db", clock, wal_mode=False) as front:
        run(work(front))


def test_a_task_that_only_reads_lets_the_others_go_on(front: AsyncStorage) -> None:
    async def work() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        for _ in range(320):
            assert await front.get("a") == 1
        assert turns >= 9
        task.cancel()

    run(work())


def test_many_tasks_that_only_read_get_their_turns_alike(front: AsyncStorage) -> None:
    async def work() -> None:
        reads = [0] * 50
        is_over = False

        async def one(number: int) -> None:
            while not is_over:
                await front.get("a")
                reads[number] += 1

        async with asyncio.TaskGroup() as group:
            for number in range(len(reads)):
                group.create_task(one(number))
            while max(reads) < 500:
                await asyncio.sleep(0)
            is_over = True
        # At each of its turns a task makes from one read to 32.
        assert min(reads) >= 500 // 32

    run(work())


def test_after_a_slow_read_the_next_ones_have_their_thread(front: AsyncStorage, clock: Clock) -> None:
    async def work() -> None:
        assert await front.get("a") == 1
        assert clock.was_here()
        front._at_once[0]._by_thread_until = 0.0  # this machine may have been busy
        clock.delay = 0.01
        assert await front.get("a") == 1
        assert clock.was_here()
        assert await front.get("a") == 1
        assert not clock.was_here()

    run(work())


def test_large_values_are_read_by_a_thread(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    # A read that has begun here, and turns out to take long, is stopped and run again by its thread.
    monkeypatch.setattr(at_once, "_LONGEST", 1e-6)
    keys = [f"key{number:03}" for number in range(200)]

    async def work(front: AsyncStorage) -> None:
        clock.threads.clear()
        found = await front.get_many(keys)
        assert list(found) == keys
        assert not clock.was_here()

    with opened(tmp_path / "store.db", clock) as front:
        front.sync.set_many(dict.fromkeys(keys, "x" * 1000), ttl=3000)
        run(work(front))
        assert front.sync.get("a") == 1


def test_a_read_by_the_loop_is_refused_by_a_closed_store(front: AsyncStorage) -> None:
    async def work() -> None:
        await front._stop()
        with pytest.raises(StorageClosedError):
            await front.get("a")

    run(work())


def test_what_a_thread_reads_meanwhile_waits_as_ever(tmp_path: Path, clock: Clock) -> None:
    """The hurry is the loop's: a thread that waits for a connection is not told that the store is busy."""

    async def work(front: AsyncStorage) -> None:
        found: list[object] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(front.sync.transaction(read_only=True))
            thread = threading.Thread(target=lambda: found.append(front.sync.get("a")))
            thread.start()
            assert await gets_when_let(front, stack.close) == 1
        thread.join()
        assert found == [1]

    with opened(tmp_path / "store.db", clock, max_readers=1, busy_timeout=30) as front:
        run(work(front))
