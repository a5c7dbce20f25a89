"""Hazard: on PostgreSQL a task that is slow inside its transaction keeps the writes of all other tasks waiting.

Each transaction that is open has a thread and a connection of its own there, and ends with the store.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import (
    AsyncStorage,
    StorageBusyError,
    StorageClosedError,
    TransactionConflictError,
    open_async_storage,
)
from mycelia_storage.aio.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

PATIENCE = 20.0


@pytest.fixture
def opened(postgres_dsn: str, postgres_schema: str) -> Callable[..., Any]:
    def open_it(**options: Any) -> Any:
        options.setdefault("busy_timeout", PATIENCE)
        return open_async_storage(postgres_dsn, schema=postgres_schema, **options)

    return open_it


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


def writers() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("mycelia-writer"))


async def ending() -> list[str]:
    """The threads that do not end."""
    for thread in threading.enumerate():
        if thread.name.startswith("mycelia-writer"):
            await asyncio.to_thread(thread.join, PATIENCE)
    return writers()


async def begun(store: AsyncStorage, **options: Any) -> Any:
    """A transaction that another task has entered, so that this one is not inside it."""
    return await in_time(asyncio.create_task(store.transaction(**options).__aenter__()))


async def in_time(awaitable: Awaitable[Any]) -> Any:
    """What waits for an open transaction waits for ever here, since nobody ends it."""
    return await asyncio.wait_for(awaitable, PATIENCE / 2)


@in_a_loop
async def test_others_write_and_have_transactions_while_one_is_open(opened: Callable[..., Any]) -> None:
    async with opened() as store:
        await store.set("other", 1)
        async with store.transaction(isolation="read_committed") as tx:
            await tx.set("mine", 1)

            async def meanwhile() -> None:
                await store.set("other", 2)
                await asyncio.gather(*(store.increment("n") for _ in range(5)))
                async with store.transaction(isolation="read_committed") as second:
                    assert await second.get("mine") is None
                    await second.set("third", 3)

            await in_time(asyncio.create_task(meanwhile()))
            assert await tx.get("mine") == 1
        assert await store.get_many(["mine", "other", "third", "n"]) == {"mine": 1, "other": 2, "third": 3, "n": 5}


@in_a_loop
async def test_calls_of_transactions_that_are_open_at_once_stay_apart(opened: Callable[..., Any]) -> None:
    async with opened() as store:
        there = asyncio.Barrier(6)

        async def work(number: int) -> None:
            async with store.transaction(isolation="read_committed") as tx:
                await tx.set(f"key{number}", 0)
                await in_time(there.wait())  # all are open, and none has written what another has
                for step in range(1, 11):
                    await tx.set(f"key{number}", step)
                assert await tx.list_keys() == [f"key{number}"]
                if number == 3:
                    await tx.rollback()

        await asyncio.gather(*map(work, range(6)))
        assert await store.list_keys() == ["key0", "key1", "key2", "key4", "key5"]
        assert set((await store.get_many(await store.list_keys())).values()) == {10}


@in_a_loop
async def test_no_update_of_tasks_is_lost(opened: Callable[..., Any]) -> None:
    async with opened() as store:
        await store.set("n", 0)

        async def add(tx: Any) -> None:
            await tx.set("n", await tx.get("n") + 1)

        await asyncio.gather(*(store.run_transaction(add, attempts=1000, deadline=60.0) for _ in range(12)))
        assert await store.get("n") == 12


@in_a_loop
async def test_two_tasks_that_come_between_each_other_are_not_both_committed(opened: Callable[..., Any]) -> None:
    async with opened() as store:
        await store.set_many({"a": 1, "b": 1})
        there = asyncio.Barrier(2)

        async def leave_if_another_stays(mine: str) -> bool:
            try:
                async with store.transaction() as tx:
                    on_duty = await tx.get_many(["a", "b"])
                    await in_time(there.wait())
                    if sum(on_duty.values()) == 2:
                        await tx.set(mine, 0)
            except TransactionConflictError:
                return False
            return True

        left = await asyncio.gather(*map(leave_if_another_stays, "ab"))
        assert sorted(left) == [False, True]
        assert sum((await store.get_many(["a", "b"])).values()) == 1


@in_a_loop
async def test_who_finds_every_thread_taken_gets_the_first_that_is_free(opened: Callable[..., Any]) -> None:
    """With three connections there are two threads, since one is left for all others."""
    async with opened(pool_max=3) as store:
        first, second = await begun(store), await begun(store)
        waits = [asyncio.create_task(store.transaction().__aenter__()) for _ in range(2)]
        await in_time(store.set("a", 1))  # whoever has waited for a thread before this has a place in its line
        assert not any(task.done() for task in waits)
        await second.__aexit__(None, None, None)
        third = await in_time(waits[0])
        assert not waits[1].done()
        await third.set("b", 2)
        await third.__aexit__(None, None, None)
        fourth = await in_time(waits[1])
        assert await fourth.get("b") == 2
        await first.__aexit__(None, None, None)
        await fourth.__aexit__(None, None, None)
        assert len(writers()) == 3


@in_a_loop
async def test_the_wait_for_a_thread_has_its_limit_and_leaves_nothing(opened: Callable[..., Any]) -> None:
    async with opened(pool_max=2) as store:
        async with store.transaction() as tx:
            await tx.set("a", 1)

            async def meanwhile() -> None:
                with pytest.raises(StorageBusyError):
                    await store.transaction(wait=0.05).__aenter__()
                waiting = asyncio.create_task(store.transaction().__aenter__())
                await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting

            await asyncio.create_task(meanwhile())
        async with store.transaction(wait=PATIENCE) as tx:
            assert await tx.get("a") == 1
        assert "mycelia-writer-2" not in writers()


@in_a_loop
async def test_a_thread_is_used_again(opened: Callable[..., Any]) -> None:
    async with opened() as store:
        for number in range(20):
            async with store.transaction() as tx:
                await tx.set("n", number)
        assert writers() == ["mycelia-writer-1"]


@in_a_loop
async def test_a_forgotten_transaction_is_undone_and_its_thread_free(opened: Callable[..., Any]) -> None:
    async with opened(pool_max=2) as store:
        tx = await begun(store)
        await tx.set("a", 1)
        del tx
        gc.collect()
        async with store.transaction() as tx:
            assert await tx.get("a") is None


@in_a_loop
async def test_close_undoes_every_open_transaction(opened: Callable[..., Any]) -> None:
    store: AsyncStorage = await opened(pool_max=4)
    open_ones = [await begun(store) for _ in range(3)]
    for number, tx in enumerate(open_ones):
        await tx.set(f"key{number}", 1)
    waiting = asyncio.create_task(store.transaction().__aenter__())
    await asyncio.sleep(0)
    await in_time(store.close())
    assert await ending() == []
    with pytest.raises(StorageClosedError):
        await in_time(waiting)
    for tx in open_ones:
        with pytest.raises(StorageClosedError):
            await tx.set("late", 1)
    with pytest.raises(StorageClosedError):
        await store.transaction().__aenter__()
    async with opened() as again:
        assert await again.count() == 0


@in_a_loop
async def test_close_answers_those_who_wait_while_a_thread_becomes_free(
    opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store: AsyncStorage = await opened(pool_max=2)
    tx = await begun(store)
    waiting = [asyncio.create_task(store.transaction().__aenter__()) for _ in range(3)]
    await asyncio.sleep(0)
    closed_error = Threads.closed_error
    free: list[Any] = []

    def refused(threads: Threads) -> StorageClosedError:
        if not free:  # while the first one is refused
            free.append(threads._next_to_begin(threads._apart[0]))
        return closed_error(threads)

    monkeypatch.setattr(Threads, "closed_error", refused)
    await in_time(store.close())
    assert free == [None]
    answers = await in_time(asyncio.gather(*waiting, return_exceptions=True))
    assert [type(answer) for answer in answers] == [StorageClosedError] * 3
    with pytest.raises(StorageClosedError):
        await tx.set("late", 1)


@in_a_loop
async def test_a_store_that_is_forgotten_ends_the_threads_of_its_transactions(opened: Callable[..., Any]) -> None:
    store: Any = await opened()
    async with store.transaction() as tx:
        await tx.set("a", 1)
    assert writers() == ["mycelia-writer-1"]
    sync = store.sync
    del store, tx
    gc.collect()
    assert await ending() == []
    sync.close()
