"""Cancellation, wherever a task waits: the store stays usable, nothing is half there, nothing stays locked.

Each scenario is run again and again, cancelled at its first, second, third … suspension, until it is through before it
is reached. It is cancelled either when it begins to wait, or when what it waits for is there, but not yet known to it.
"""

from __future__ import annotations

import asyncio
import functools
import operator
import sys
import threading
import time
import types
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import AsyncStorage, StorageBusyError, StorageTimeoutError, field, open_async_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterator
    from pathlib import Path

    from mycelia_storage import Storage

    Scenario = Callable[[AsyncStorage, int], Coroutine[Any, Any, None]]


@pytest.fixture
def front(any_store: Storage) -> Iterator[AsyncStorage]:
    made = AsyncStorage(any_store)
    yield made
    asyncio.run(made._stop())


class Stepped:
    """A coroutine whose task is cancelled at its n-th suspension."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], at: int, *, late: bool) -> None:
        self._coroutine = coroutine
        self._at = at
        self._late = late
        self.is_reached = False

    async def run(self) -> None:
        """Await the coroutine."""
        await self._steps()

    @types.coroutine
    def _steps(self) -> Generator[Any, Any, None]:
        error: BaseException | None = None
        suspensions = 0
        while True:
            try:
                waiting = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
            except StopIteration:
                return
            suspensions += 1
            if suspensions == self._at:
                self._cancel(waiting)
            error = None
            try:
                yield waiting
            except BaseException as thrown:  # noqa: BLE001  it goes on into the coroutine
                error = thrown

    def _cancel(self, waiting: asyncio.Future[Any] | None) -> None:
        self.is_reached = True
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        if self._late and waiting is not None:
            waiting.add_done_callback(lambda _: task.cancel())
        else:
            loop.call_soon(task.cancel)


async def single_verbs(store: AsyncStorage, n: int) -> None:
    await store.set("single", n)
    await store.get("single")
    await store.query({"field": "$value", "operator": "gte", "value": 0})
    await store.modify("modified", lambda _: n, default=0)
    await store.count()
    await store.take("single", None)


async def two_keys_in_a_transaction(store: AsyncStorage, n: int) -> None:
    async with store.transaction() as tx:
        await tx.set("a", n)
        await tx.get("a")
        await tx.query()
        await tx.set("b", n)


async def two_keys_in_a_nested_transaction(store: AsyncStorage, n: int) -> None:
    async with store.transaction() as tx:
        await tx.set("a", n)
        async with tx.transaction() as inner:
            await inner.set("c", n)
        await tx.set("b", n)


async def two_keys_at_once(store: AsyncStorage, n: int) -> None:
    await store.set_many({"a": n, "b": n})
    await store.delete_many(["a", "b"])


async def two_keys_by_run_transaction(store: AsyncStorage, n: int) -> None:
    async def work(tx: Any) -> None:
        await tx.set("a", n)
        await tx.set("b", n)

    await store.run_transaction(work)


async def rolled_back(store: AsyncStorage, n: int) -> None:
    async with store.transaction() as tx:
        await tx.set("a", "never")
        await tx.rollback()


async def one_that_reads(store: AsyncStorage, n: int) -> None:
    async with store.transaction(read_only=True) as tx:
        await tx.get("a")
        await tx.list_keys()
        assert [entry async for entry in tx.scan()] == [entry async for entry in tx.scan()]


async def walks(store: AsyncStorage, n: int) -> None:
    async with store.scan(batch_size=2) as scan:
        async for _ in scan:
            pass
    async for _ in store.pages(page_size=2):
        pass


async def one_by_id(store: AsyncStorage, n: int) -> None:
    tx = await store._begin()
    try:
        await tx.set("a", n)
        await tx.set("b", n)
        await tx._commit()
    except asyncio.CancelledError:
        await tx._rollback()
        raise


async def one_that_waits_for_another(store: AsyncStorage, n: int) -> None:
    async def other() -> None:
        async with store.transaction() as tx:
            await tx.set("a", n)
            await asyncio.sleep(0)
            await tx.set("b", n)

    task = asyncio.create_task(other())
    try:
        await asyncio.sleep(0)
        async with store.transaction() as tx:
            await tx.set("a", -n)
            await tx.set("b", -n)
    finally:
        await task


SCENARIOS = [
    single_verbs,
    two_keys_in_a_transaction,
    two_keys_in_a_nested_transaction,
    two_keys_at_once,
    two_keys_by_run_transaction,
    rolled_back,
    one_that_reads,
    walks,
    one_by_id,
    one_that_waits_for_another,
]


@pytest.mark.parametrize("late", [False, True], ids=["while waiting", "when done"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_cancelled_at_every_suspension(front: AsyncStorage, scenario: Scenario, late: bool) -> None:
    async def work() -> None:
        for n in range(1, 200):
            stepped = Stepped(scenario(front, n), n, late=late)
            task = asyncio.create_task(stepped.run())
            done, _ = await asyncio.wait([task], timeout=30)
            assert done, f"it hangs when it is cancelled at its suspension {n}"
            await look(front, n)
            assert task.cancelled() == stepped.is_reached
            if not stepped.is_reached:
                return
        raise AssertionError("it never comes to an end")

    asyncio.run(work())


async def look(store: AsyncStorage, n: int) -> None:
    """Nothing is half there, and everybody can go on."""
    found = await store.get_many(["a", "b"])
    assert found.get("a") == found.get("b")
    async with store.transaction(wait=10) as tx:
        await tx.set("looked", n)
    assert store.sync._home.inside == set()
    assert await store.get("looked") == n


def test_a_queued_call_is_dropped_and_a_begun_write_comes_to_its_end(front: AsyncStorage) -> None:
    arrived, opened = threading.Event(), threading.Event()

    def hold(_: object) -> int:
        arrived.set()
        assert opened.wait(30)
        return 1

    async def work() -> None:
        begun = asyncio.create_task(front.modify("begun", hold, default=0))
        while not arrived.is_set():
            await asyncio.sleep(0)
        queued = asyncio.create_task(front.set("queued", 1))
        kept = asyncio.create_task(front.set("kept", 1))
        await asyncio.sleep(0)
        for task in (begun, queued):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        opened.set()
        await kept
        assert await front.list_keys() == ["begun", "kept"]

    asyncio.run(work())


def test_one_that_is_cancelled_when_all_is_done_keeps_no_other_waiting(front: AsyncStorage) -> None:
    async def work() -> None:
        writer = front._threads.writer
        tasks = [asyncio.create_task(front.set(f"key{n}", n)) for n in range(20)]
        while not writer._given:
            await asyncio.sleep(0)
        while not writer.is_idle():
            pass  # the answers are on their way to this loop, which has no turn yet
        tasks[5].cancel()
        _, waiting = await asyncio.wait(tasks, timeout=30)
        assert not waiting
        assert await front.count() == 20

    asyncio.run(work())


def test_a_task_that_is_cancelled_twice_still_leaves_its_transaction(front: AsyncStorage) -> None:
    arrived, opened = threading.Event(), threading.Event()

    def hold(_: object) -> int:
        arrived.set()
        assert opened.wait(30)
        return 1

    async def inside() -> None:
        async with front.transaction() as tx:
            await tx.modify("a", hold, default=0)

    async def work() -> None:
        task = asyncio.create_task(inside())
        while not arrived.is_set():
            await asyncio.sleep(0)
        for _ in range(5):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done(), "it waits for the end of what its thread does"
        opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await front.set("b", 1)
        assert await front.list_keys() == ["b"]

    asyncio.run(work())


def test_a_call_of_a_transaction_goes_on_after_one_that_was_given_up(front: AsyncStorage) -> None:
    arrived, opened = threading.Event(), threading.Event()

    def hold(_: object) -> int:
        arrived.set()
        assert opened.wait(30)
        return 1

    async def work() -> None:
        async with front.transaction() as tx:
            given_up = asyncio.create_task(tx.modify("a", hold, default=0))
            while not arrived.is_set():
                await asyncio.sleep(0)
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            follows = asyncio.create_task(tx.get("a"))
            await asyncio.sleep(0)
            opened.set()
            assert await follows == 1

    asyncio.run(work())


def test_a_queued_call_of_a_transaction_is_dropped(front: AsyncStorage) -> None:
    arrived, opened = threading.Event(), threading.Event()

    def hold(_: object) -> int:
        arrived.set()
        assert opened.wait(30)
        return 1

    async def work() -> None:
        async with front.transaction() as tx:
            given_up = asyncio.create_task(tx.modify("held", hold, default=0))
            while not arrived.is_set():
                await asyncio.sleep(0)
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            queued = asyncio.create_task(tx.set("queued", 1))
            await asyncio.sleep(0)
            queued.cancel()
            with pytest.raises(asyncio.CancelledError):
                await queued
            opened.set()
            assert await tx.list_keys() == ["held"]

    asyncio.run(work())


def test_a_read_of_a_transaction_is_stopped_where_its_task_is_cancelled(
    front: AsyncStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived, opened = threading.Event(), threading.Event()
    seldom = functools.reduce(operator.or_, (field("text").contains(f"d{number}") for number in range(20)))
    ends: list[Any] = []

    async def work() -> None:
        await front.set_many({f"key{n}": {"text": "abc" * 10} for n in range(3000)})
        async with front.transaction() as tx:
            session: Any = tx._transaction._alone.session
            count = session.count_matching

            def hold(*arguments: Any) -> int:
                arrived.set()
                assert opened.wait(30)
                try:
                    ends.append(count(*arguments))
                except StorageTimeoutError as error:
                    ends.append(type(error))
                    raise
                return 0

            monkeypatch.setattr(session, "count_matching", hold)
            task = asyncio.create_task(tx.count(seldom))
            while not arrived.is_set():
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            opened.set()
            assert await tx.count() == 3000
            assert ends == [StorageTimeoutError]

    asyncio.run(work())


@pytest.mark.parametrize("target", ["memory:", "store.db"])
def test_a_page_whose_read_was_stopped_is_no_end(tmp_path: Path, target: str) -> None:
    arrived, opened = threading.Event(), threading.Event()
    holds = False

    def clock() -> float:
        if holds:
            arrived.set()
            assert opened.wait(30)
        return time.time()

    async def work() -> None:
        nonlocal holds
        where = target if target == "memory:" else tmp_path / target
        async with open_async_storage(where, clock=clock) as store:
            await store.set_many({f"key{n}": n for n in range(10)})
            pages = store.pages(page_size=4)
            assert len(await anext(pages)) == 4
            holds = True
            task = asyncio.ensure_future(pages.__anext__())
            async with asyncio.timeout(30):
                while not arrived.is_set():
                    await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            holds = False
            opened.set()
            # A read that is over before it looks at its limit is not lost either.
            try:
                assert (await anext(pages)).keys() == ["key4", "key5", "key6", "key7"]
            except StorageTimeoutError:
                with pytest.raises(StopAsyncIteration):
                    await anext(pages)

    asyncio.run(work())


def test_a_begin_that_is_given_up_while_the_file_is_locked_leaves_nothing_open(tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            open_async_storage(tmp_path / "store.db") as store,
            open_async_storage(tmp_path / "store.db", busy_timeout=0.05) as other,
        ):
            async with store.transaction() as tx:
                await tx.set("a", 1)
                waiting = asyncio.create_task(enter(other))
                while other._threads.writer._thread is None:
                    await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                with pytest.raises(StorageBusyError):
                    await other.set("a", 2)
            await other.set("a", 3)
            await store.set("a", 4)

    asyncio.run(work())


async def enter(store: AsyncStorage) -> None:
    async with store.transaction():
        pass


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks that begin at once came with Python 3.12")
def test_tasks_that_begin_at_once_work(front: AsyncStorage) -> None:
    async def work() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        await asyncio.gather(*(front.set(f"key{n}", n) for n in range(100)))
        await two_keys_in_a_transaction(front, 1)
        await look(front, 1)

    asyncio.run(work())
