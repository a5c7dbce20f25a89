"""`AsyncStorage`: what it adds to the store behind it. (test_contract_async.py shows that its verbs do the same.)"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import threading
import weakref
from typing import TYPE_CHECKING, Any

import anyio
import apsw
import pytest

from mycelia_storage import (
    AsyncNamespace,
    AsyncStorage,
    AsyncTransaction,
    ConfigError,
    InvalidValueError,
    KeyExistsError,
    Namespace,
    NotAStorageFileError,
    Storage,
    StorageBusyError,
    StorageClosedError,
    StorageError,
    Transaction,
    TransactionError,
    ValueTypeError,
    open_async_storage,
    open_storage,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator
    from pathlib import Path

NOT_AWAITED = {"namespace", "transaction", "scan", "pages"}


@pytest.fixture
def front(any_store: Storage) -> Iterator[AsyncStorage]:
    made = AsyncStorage(any_store)
    yield made
    asyncio.run(made._stop())


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run on a fresh event loop, and never for ever."""

    async def bounded() -> Any:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(bounded())


class Gate:
    """A place where a thread stops until it is let through; the event loop sees that it is there."""

    def __init__(self) -> None:
        self._arrived = threading.Event()
        self._opened = threading.Event()

    def pass_through(self, _: object) -> int:
        self._arrived.set()
        assert self._opened.wait(30)
        return 1

    async def arrival(self) -> None:
        while not self._arrived.is_set():
            await asyncio.sleep(0)

    def open(self) -> None:
        self._opened.set()


def hold(store: AsyncStorage, gate: Gate) -> Coroutine[Any, Any, Any]:
    """A write that keeps the writer's thread until the gate is opened."""
    return store.modify("held", gate.pass_through, default=0)


# ---- the surface


def public(owner: type) -> set[str]:
    return {name for name in dir(owner) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("twin", "original"), [(AsyncStorage, Storage), (AsyncTransaction, Transaction)], ids=lambda kind: kind.__name__
)
def test_every_verb_has_its_awaited_twin(twin: type, original: type) -> None:
    assert public(twin) == public(original) | ({"sync"} if twin is AsyncStorage else set())
    for name in public(original):
        assert inspect.signature(getattr(twin, name)).parameters.keys() == (
            inspect.signature(getattr(original, name)).parameters.keys()
        ), name
        assert inspect.iscoroutinefunction(getattr(twin, name)) == (name not in NOT_AWAITED), name
        if name not in NOT_AWAITED | {"close", "rollback", "run_transaction"}:
            assert inspect.signature(getattr(twin, name)) == inspect.signature(getattr(original, name)), name


def test_a_view_has_every_verb_on_entries() -> None:
    mapping = {"pop", "popitem", "setdefault", "update", "keys", "values", "items"}
    assert public(AsyncNamespace) == public(Namespace) - mapping
    for name in public(AsyncNamespace) - {"within"}:
        twin, original = getattr(AsyncNamespace, name), getattr(Namespace, name)
        assert inspect.signature(twin) == inspect.signature(original), name
        assert inspect.iscoroutinefunction(twin) == (name not in NOT_AWAITED), name


# ---- opening and closing


def test_a_store_is_opened_by_await_and_by_async_with(tmp_path: Path) -> None:
    async def work() -> None:
        async with open_async_storage(tmp_path / "store.db") as store:
            await store.set("a", 1)
        with pytest.raises(StorageClosedError):
            await store.get("a")
        again = await open_async_storage(tmp_path / "store.db")
        assert await again.get("a") == 1
        await again.close()

    run(work())


def test_what_is_wrong_with_a_target_is_told(tmp_path: Path) -> None:
    (tmp_path / "other.db").write_bytes(b"x" * 5000)

    async def work() -> None:
        with pytest.raises(NotAStorageFileError):
            await open_async_storage(tmp_path / "other.db")
        with pytest.raises(ConfigError):
            async with open_async_storage("redis://x"):
                pass

    run(work())


def test_a_store_opened_for_a_cancelled_task_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Storage] = []
    close = Storage.close

    def closes(store: Storage) -> None:
        close(store)
        closed.append(store)

    async def work() -> None:
        opening = asyncio.ensure_future(open_async_storage(tmp_path / "store.db")._opened())
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        while not closed or any(thread.name == "mycelia-open" for thread in threading.enumerate()):
            await asyncio.sleep(0)

    monkeypatch.setattr(Storage, "close", closes)
    run(work())


def test_close_finishes_what_was_accepted(front: AsyncStorage) -> None:
    async def work() -> None:
        tasks = [asyncio.create_task(front.set(f"key{n}", n)) for n in range(500)]
        reads = [asyncio.create_task(front.get(f"key{n}")) for n in range(50)]
        await asyncio.sleep(0)
        await front._stop()
        assert all(await asyncio.gather(*tasks))
        await asyncio.gather(*reads)
        with pytest.raises(StorageClosedError):
            await front.set("late", 1)

    run(work())
    assert front.sync.count() == 500


def test_close_may_be_called_by_many_and_again(tmp_path: Path) -> None:
    async def work() -> None:
        store = await open_async_storage(tmp_path / "store.db")
        await store.set("a", 1)
        await asyncio.gather(*(store.close() for _ in range(5)))
        await store.close()
        assert "closed" in repr(store)

    run(work())


def test_a_store_is_closed_though_only_its_threads_were_ended_before(tmp_path: Path) -> None:
    async def work() -> None:
        store = AsyncStorage(open_storage(tmp_path / "store.db"))
        await store._stop()
        store.sync.set("a", 1)
        await store.close()
        with pytest.raises(StorageClosedError):
            store.sync.get("a")

    run(work())


def test_closing_rolls_back_what_is_open_and_says_so(front: AsyncStorage) -> None:
    async def work() -> None:
        waiting: asyncio.Task[int] | None = None
        with pytest.raises((StorageClosedError, TransactionError)):  # noqa: PT012  the block is what is tested
            async with front.transaction() as tx:
                await tx.set("a", 1)
                waiting = asyncio.create_task(front.set("b", 2))
                await asyncio.sleep(0)
                await front._stop()
                with pytest.raises(StorageClosedError):
                    await tx.set("c", 1)
        assert waiting is not None
        assert await waiting

    run(work())
    assert front.sync.list_keys() == ["b"]


def test_closing_rolls_back_what_is_open_though_nobody_waits_for_it(front: AsyncStorage) -> None:
    async def work() -> None:
        tx = await front._begin()
        await tx.set("a", 1)
        await front._stop()
        front.sync.set("b", 2)
        with pytest.raises(StorageClosedError):
            await tx.set("c", 1)

    run(work())
    assert front.sync.list_keys() == ["b"]


def test_no_thread_is_started_before_it_is_needed_and_none_stays(any_store: Storage) -> None:
    before = set(threading.enumerate())
    front = AsyncStorage(any_store)
    assert set(threading.enumerate()) == before

    async def work(store: AsyncStorage) -> None:
        await store.delete_many(["a"])
        assert [thread.name for thread in set(threading.enumerate()) - before] == ["mycelia-writer"]
        await store.get("a")
        await asyncio.gather(*(store.query() for _ in range(50)))
        await store.set("a", 1)

    run(work(front))
    assert len(set(threading.enumerate()) - before) <= 5
    threads = weakref.ref(front._threads)
    del front
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    gc.collect()
    assert threads() is None


def test_a_transaction_and_a_view_outlive_the_name_of_their_store(any_store: Storage) -> None:
    async def work() -> None:
        view = AsyncStorage(any_store).namespace("place")
        async with AsyncStorage(any_store).transaction() as tx:
            gc.collect()
            await tx.set("a", 1)
        await view.set("b", 1)
        scan = AsyncStorage(any_store).scan()
        gc.collect()
        assert [entry.key async for entry in scan] == ["a"]

    run(work())
    gc.collect()


# ---- event loops


def test_one_store_serves_several_loops_one_after_the_other(front: AsyncStorage) -> None:
    for n in range(3):
        run(front.set("a", n))
        assert run(front.get("a")) == n


def test_one_store_serves_the_loops_of_several_threads(front: AsyncStorage) -> None:
    async def work(number: int) -> None:
        await asyncio.gather(*(front.increment("n") for _ in range(50)))
        await asyncio.gather(*(front.set(f"{number}-{n}", n) for n in range(50)))
        assert await front.get(f"{number}-7") == 7

    threads = [threading.Thread(target=run, args=(work(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert front.sync.get("n") == 200
    assert front.sync.count() == 201


def test_a_loop_that_is_gone_harms_nobody(front: AsyncStorage) -> None:
    gate = Gate()
    loop = asyncio.new_event_loop()
    held = loop.create_task(hold(front, gate))
    queued = loop.create_task(front.set("queued", 1))
    loop.run_until_complete(gate.arrival())
    held.cancel()
    queued.cancel()
    loop.run_until_complete(asyncio.gather(held, queued, return_exceptions=True))
    loop.close()
    gate.open()
    run(front.set("after", 1))
    assert front.sync.list_keys() == ["after", "held"]


@pytest.fixture(scope="session")
def uvloop() -> Any:
    """uvloop, with what it keeps open for the whole process; it is not there on every system."""
    module = pytest.importorskip("uvloop")
    module.run(asyncio.sleep(0))
    return module


def test_uvloop_works(uvloop: Any, front: AsyncStorage) -> None:
    uvloop.run(everything(front))


def test_anyio_works(front: AsyncStorage) -> None:
    anyio.run(everything, front)


async def everything(store: AsyncStorage) -> None:
    await store.set("a", 1)
    async with anyio.create_task_group() as group:
        for n in range(100):
            group.start_soon(store.set, f"key{n:03}", n)
    async with store.transaction() as tx:
        assert await tx.increment("a") == 2
    with anyio.move_on_after(0.01) as scope:
        async with store.transaction() as tx:
            await tx.set("a", "never")
            await anyio.sleep(60)
    assert scope.cancelled_caught
    assert await store.get("a") == 2
    assert len([entry async for entry in store.scan(prefix="key", batch_size=7)]) == 100
    async with store.transaction(read_only=True) as tx:
        assert [len(page) async for page in tx.pages(page_size=60)] == [60, 41]


# ---- many at once


def test_two_thousand_tasks_lose_nothing(front: AsyncStorage) -> None:
    async def one(n: int) -> None:
        version = await front.set(f"key{n}", n)
        assert await front.get(f"key{n}") == n
        assert await front.set(f"key{n}", -n, if_version=version) > version
        await front.increment("sum", n)

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            for n in range(2000):
                group.create_task(one(n))

    run(work())
    assert front.sync.get("sum") == sum(range(2000))
    assert {entry.key: entry.value for entry in front.sync.scan(prefix="key")} == {f"key{n}": -n for n in range(2000)}


def test_a_call_that_fails_among_others_fails_alone(front: AsyncStorage) -> None:
    async def work() -> None:
        front.sync.set("there", 0)
        calls: list[Any] = []
        for n in range(60):
            calls += [front.set(f"key{n}", n), front.set("there", n, overwrite=False), front.set(f"bad{n}", {1})]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, int) for result in results[::3])
        assert {type(result) for result in results[1::3]} == {KeyExistsError}
        assert {type(result) for result in results[2::3]} == {InvalidValueError}

    run(work())
    assert front.sync.count() == 61
    assert front.sync.get("there") == 0


def test_one_of_many_tasks_adds_and_one_takes(front: AsyncStorage) -> None:
    async def work() -> None:
        assert (await asyncio.gather(*(front.add("key", n) for n in range(100)))).count(True) == 1
        taken = await asyncio.gather(*(front.take("key", None) for _ in range(100)))
        assert len([entry for entry in taken if entry is not None]) == 1

    run(work())


def test_a_write_is_seen_by_whoever_was_told_of_it(front: AsyncStorage) -> None:
    async def one(n: int) -> None:
        for turn in range(20):
            await front.set(f"key{n}", turn)
            assert await front.get(f"key{n}") == turn

    async def work() -> None:
        await asyncio.gather(*(one(n) for n in range(30)))

    run(work())


def test_the_loop_goes_on_while_somebody_else_writes(front: AsyncStorage) -> None:
    inside, done = threading.Event(), threading.Event()

    def write() -> None:
        with front.sync.transaction() as tx:
            tx.set("a", 1)
            inside.set()
            assert done.wait(30)

    async def work() -> None:
        other = asyncio.create_task(front.set("b", 2))
        for _ in range(100):
            assert await front.get("a") is None
        assert not other.done()
        done.set()
        await other

    thread = threading.Thread(target=write)
    thread.start()
    assert inside.wait(30)
    run(work())
    thread.join()
    assert front.sync.list_keys() == ["a", "b"]


# ---- functions of the caller's


def test_a_function_sees_the_callers_context(front: AsyncStorage) -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")

    async def one(name: str) -> None:
        who.set(name)
        assert await front.modify(name, lambda _: who.get(), default="") == name
        async with front.transaction() as tx:
            assert await tx.modify(name, lambda _: who.get() + "!", default="") == name + "!"

    async def work() -> None:
        await asyncio.gather(*(one(f"task{n}") for n in range(20)))

    run(work())


class OddError(BaseException):
    """What is no Exception."""


@pytest.mark.parametrize("error", [OddError("odd"), asyncio.CancelledError(), LookupError("mine")], ids=repr)
def test_whatever_a_function_raises_reaches_its_caller_only(front: AsyncStorage, error: BaseException) -> None:
    def fail(_: object) -> object:
        raise error

    async def work() -> None:
        with pytest.raises(type(error)):
            await front.modify("a", fail, default=0)
        with pytest.raises(type(error)):  # noqa: PT012  the block is what is tested
            async with front.transaction() as tx:
                await tx.set("b", 1)
                await tx.modify("a", fail, default=0)
        await front.set("c", 1)

    run(work())
    assert front.sync.list_keys() == ["c"]


def test_a_stop_iteration_in_a_function_ends_nothing_quietly(front: AsyncStorage) -> None:
    async def work() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await front.modify("a", lambda _: next(iter(())), default=0)
        assert await front.get("a") is None

    run(work())


def test_a_function_that_uses_the_store_is_refused(front: AsyncStorage) -> None:
    async def work() -> None:
        with pytest.raises(TransactionError):
            await front.modify("a", lambda _: front.sync.get("b", 1), default=0)

    run(work())


# ---- transactions


def test_writes_of_others_wait_for_a_transaction_and_reads_do_not(front: AsyncStorage) -> None:
    async def work() -> None:
        async with front.transaction() as tx:
            await tx.set("n", 1)
            write = asyncio.create_task(front.increment("n"))
            begun: asyncio.Task[object] = asyncio.create_task(front.run_transaction(lambda inner: inner.increment("n")))
            assert await asyncio.create_task(front.get("n")) is None
            assert await tx.increment("n") == 2
            assert not write.done()
        assert await write == 3
        assert await begun == 4

    run(work())


def test_transactions_begin_in_the_order_in_which_they_were_asked_for(front: AsyncStorage) -> None:
    order: list[int] = []

    async def one(n: int) -> None:
        async with front.transaction() as tx:
            order.append(n)
            await tx.set("n", n)

    async def work() -> None:
        await asyncio.gather(*(one(n) for n in range(50)))

    run(work())
    assert order == list(range(50))


def test_a_store_is_refused_to_a_task_inside_its_own_transaction_only(front: AsyncStorage) -> None:
    async def work() -> None:
        async with front.transaction():
            for call in (front.get("a"), front.set("a", 1), front.query(), front.modify("a", bool)):
                with pytest.raises(TransactionError, match=r"\btx\b"):
                    await call
            with pytest.raises(TransactionError, match=r"\btx\b"):
                front.sync.get("a")
            with pytest.raises(TransactionError, match=r"\btx\b"):
                async with front.transaction():
                    pass
            assert await asyncio.create_task(front.get("a")) is None
        await front.set("a", 1)

    run(work())


def test_two_calls_at_once_on_a_transaction_are_refused(front: AsyncStorage) -> None:
    async def work() -> None:
        gate = Gate()
        async with front.transaction() as tx:
            held = asyncio.create_task(tx.modify("a", gate.pass_through, default=0))
            await gate.arrival()
            with pytest.raises(TransactionError, match="one call at a time"):
                await tx.get("a")
            with pytest.raises(TransactionError, match="one call at a time"):
                await anext(tx.scan())
            gate.open()
            assert await held == 1
            assert await tx.get("a") == 1

    run(work())


def test_a_transaction_may_be_handed_to_another_task(front: AsyncStorage) -> None:
    async def work() -> None:
        async with front.transaction() as tx:
            await asyncio.create_task(tx.set("a", 1))
            assert await asyncio.create_task(tx.get("a")) == 1

    run(work())
    assert front.sync.get("a") == 1


def test_a_write_does_not_wait_longer_than_busy_timeout(tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            open_async_storage(tmp_path / "store.db", busy_timeout=0.05) as store,
            store.transaction() as tx,
        ):
            await tx.set("a", 1)
            with pytest.raises(StorageBusyError):
                await asyncio.create_task(store.set("a", 2))
            with pytest.raises(StorageBusyError):
                await asyncio.create_task(store.modify("a", bool))
            with pytest.raises(StorageBusyError):
                await asyncio.create_task(enter(store.transaction()))
            assert await tx.get("a") == 1

    run(work())


def test_a_write_is_not_refused_because_another_one_was(front: AsyncStorage) -> None:
    """Whoever is behind one that was refused at once has not waited for `busy_timeout` yet."""
    go_on = threading.Event()

    def wait(value: object) -> object:
        go_on.wait(30)
        return value

    def refuse(value: object) -> object:
        raise StorageBusyError("some other store is busy")

    async def work() -> None:
        await front.set("a", 1)
        calls: list[Coroutine[Any, Any, Any]] = [
            front.modify("a", wait),
            front.modify("a", refuse),
            enter(front.transaction(wait=0)),
            front.set("b", 2),
            front.increment("n"),
        ]
        tasks = []
        for call in calls:
            tasks.append(asyncio.create_task(call))
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # what is gathered goes to the thread
        go_on.set()
        first, refused, _, *others = await asyncio.gather(*tasks, return_exceptions=True)
        assert (first, type(refused)) == (1, StorageBusyError)
        assert [type(other) for other in others] == [int, int]

    run(work())


def test_a_read_is_not_refused_because_another_one_has_waited_too_long(tmp_path: Path) -> None:
    async def work() -> None:
        async with open_async_storage(tmp_path / "store.db", max_readers=1, busy_timeout=1) as store:
            await store.set("a", 1)
            with store.sync.transaction(read_only=True) as tx:
                assert tx.get("a") == 1
                first = asyncio.create_task(store.get("a"))
                readers: Any = store.sync._engine
                while not readers.readers._waiting:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.5)  # so much less than the first one has the second one waited
                second = asyncio.create_task(store.get("a"))
                with pytest.raises(StorageBusyError):
                    await first
            assert await second == 1

    run(work())


async def enter(block: AsyncTransaction) -> None:
    async with block:
        pass


def test_a_transaction_waits_as_long_as_told(front: AsyncStorage) -> None:
    async def work() -> None:
        async with front.transaction() as tx:
            await tx.set("a", 1)
            for wait in (0, 0.01):
                with pytest.raises(StorageBusyError):
                    await asyncio.create_task(enter(front.transaction(wait=wait)))
            patient = asyncio.create_task(enter(front.transaction(wait=30)))
            await asyncio.sleep(0)
        await patient
        await enter(front.transaction(wait=0))

    run(work())


def test_max_duration_frees_the_writer_though_nobody_comes_back(front: AsyncStorage) -> None:
    async def work() -> None:
        tx = await front._begin(max_duration=0.05)
        await tx.set("a", 1)
        await front.set("b", 2)
        with pytest.raises(TransactionError):
            await tx.set("a", 2)
        with pytest.raises(TransactionError):
            await tx._commit()
        with pytest.raises(TransactionError, match="max_duration"):  # noqa: PT012  the block is what is tested
            async with front.transaction(max_duration=0.05) as other:
                await other.set("c", 1)
                await asyncio.create_task(front.set("d", 1))

    run(work())
    assert front.sync.list_keys() == ["b", "d"]


def test_a_forgotten_transaction_frees_the_writer(front: AsyncStorage) -> None:
    async def work() -> None:
        tx = await front._begin()
        await tx.set("a", 1)
        del tx
        gc.collect()
        await front.set("b", 2)
        gc.collect()

    run(work())
    assert front.sync.list_keys() == ["b"]


def test_a_coroutine_that_is_destroyed_inside_a_transaction_frees_the_writer(front: AsyncStorage) -> None:
    async def stay() -> None:
        async with front.transaction() as tx:
            await tx.set("a", 1)
            await asyncio.Event().wait()

    async def begin(task: asyncio.Task[None]) -> None:
        while not front.sync._home.inside:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)  # on to the place where it stays, or not quite: it does not matter
        assert not task.done()

    loop = asyncio.new_event_loop()
    task = loop.create_task(stay())
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.run_until_complete(begin(task))
    loop.close()
    del task
    gc.collect()
    run(front.set("b", 2))
    assert front.sync.list_keys() == ["b"]


def test_a_transaction_by_id_may_be_ended_by_another_task_and_loop(front: AsyncStorage) -> None:
    async def begin(key: str) -> AsyncTransaction:
        tx = await front._begin()
        await tx.set(key, 1)
        assert await front.get(key) is None
        return tx

    run(run(begin("a"))._commit())
    run(run(begin("b"))._rollback())
    run(front.set("c", 1))
    assert front.sync.list_keys() == ["a", "c"]


def test_more_readers_than_connections_do_not_stop_each_other(tmp_path: Path) -> None:
    async def one(store: AsyncStorage, all_in: asyncio.Barrier) -> None:
        async with store.transaction(read_only=True) as tx:
            await all_in.wait()
            assert await tx.get("a") == 1
            assert [entry.key async for entry in tx.scan()] == ["a"]

    async def work() -> None:
        async with open_async_storage(tmp_path / "store.db", max_readers=2) as store:
            await store.set("a", 1)
            barrier = asyncio.Barrier(2)
            async with asyncio.TaskGroup() as group:
                readers = [group.create_task(one(store, barrier)) for _ in range(2)]
                others = [group.create_task(store.get("a")) for _ in range(20)]
                more = [group.create_task(store.query()) for _ in range(20)]
            assert all(task.done() for task in [*readers, *others, *more])

    run(work())


def test_a_transaction_that_reads_sees_one_moment(front: AsyncStorage) -> None:
    async def work() -> None:
        await front.set("a", 1)
        async with front.transaction(read_only=True) as tx:
            assert await tx.get("a") == 1
            await front.set("a", 2)
            assert await tx.get("a") == 1
        assert await front.get("a") == 2

    run(work())


def test_nested_transactions_are_undone_alone(front: AsyncStorage) -> None:
    async def work() -> None:
        async with front.transaction() as tx:
            await tx.set("a", 1)
            with pytest.raises(LookupError):  # noqa: PT012  the block is what is tested
                async with tx.transaction() as inner:
                    await inner.set("a", 2)
                    raise LookupError
            async with tx.transaction() as inner:
                await inner.set("b", 2)
            assert await tx.get_many(["a", "b"]) == {"a": 1, "b": 2}

    run(work())
    assert front.sync.get_many(["a", "b"]) == {"a": 1, "b": 2}


# ---- walks


def test_a_scan_ends_where_its_block_is_left(front: AsyncStorage) -> None:
    async def work() -> None:
        await front.set_many({f"key{n:03}": n for n in range(100)})
        for _ in range(40):  # more than may be open at once
            async with front.scan(batch_size=10) as scan:
                assert (await anext(scan)).key == "key000"
        async with front.scan() as scan:
            await front.set("zzz", 1)
            assert len([entry async for entry in scan]) == 100
        with pytest.raises(StopAsyncIteration):
            await anext(scan)
        with pytest.raises(StorageError):
            await anext(front.scan({}))

    run(work())


def test_a_document_that_does_not_fit_is_told_at_its_place(front: AsyncStorage) -> None:
    async def work() -> None:
        await front.set_many({"a": 1, "b": "two", "c": 3}, namespace="numbers")
        numbers: AsyncNamespace[int] = front.namespace("numbers", int)
        scan = numbers.scan()
        assert (await anext(scan)).value == 1
        with pytest.raises(ValueTypeError):
            await anext(scan)
        assert (await anext(scan)).value == 3
        with pytest.raises(StopAsyncIteration):
            await anext(scan)

    run(work())


def test_views_give_and_take_their_type(front: AsyncStorage) -> None:
    async def work() -> None:
        numbers = front.namespace("numbers", int)
        await numbers.set("a", 1)
        assert await numbers.modify("a", lambda value: value + 1) == 2
        with pytest.raises(InvalidValueError):
            await numbers.set("a", "one")  # type: ignore[arg-type]
        async with front.transaction() as tx:
            assert await tx.namespace(numbers).increment("a") == 3
        assert await asyncio.gather(*(numbers.get("a") for _ in range(10))) == [3] * 10
        assert repr(numbers) == "<AsyncNamespace 'numbers' of int>"

    run(work())


async def drained(iterator: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in iterator]


def test_a_walk_that_is_forgotten_gives_back_what_it_held(front: AsyncStorage) -> None:
    async def work() -> None:
        await front.set_many({f"key{n:03}": n for n in range(100)})
        for _ in range(40):
            await anext(front.scan(batch_size=10))
        assert len(await drained(front.scan())) == 100

    run(work())


def test_a_blocking_call_beside_a_transaction_of_its_own_event_loop_is_refused_and_does_not_hang(
    any_store: Storage,
) -> None:
    any_store.set("a", 1)

    async def work() -> None:
        begun, done = asyncio.Event(), asyncio.Event()

        async def inside() -> None:
            with any_store.transaction() as tx:
                tx.set("a", 2)
                begun.set()
                await done.wait()

        task = asyncio.create_task(inside())
        await begun.wait()
        with pytest.raises(TransactionError, match="another task of this thread"):
            any_store.set("b", 1)
        with pytest.raises(TransactionError, match="another task"), any_store.transaction():
            pass
        assert any_store.get("a") == 1  # who reads waits for nobody
        done.set()
        await task

    asyncio.run(work())
    assert any_store.get("a") == 2


def test_a_loop_inside_a_transaction_of_its_thread_is_inside_it(any_store: Storage) -> None:
    async def read() -> None:
        await AsyncStorage(any_store).get("a")

    with any_store.transaction(), pytest.raises(TransactionError, match="inside a write transaction"):
        asyncio.run(read())


def test_a_load_lets_other_writes_in_between_its_batches(front: AsyncStorage) -> None:
    async def work() -> int:
        loop = asyncio.get_running_loop()
        drawing, go_on = asyncio.Event(), threading.Event()

        def items() -> Iterator[tuple[str, int]]:
            yield "a", 1
            loop.call_soon_threadsafe(drawing.set)
            assert go_on.wait(60)
            yield "b", 2

        load = asyncio.create_task(front.load(items(), batch_size=1))
        await drawing.wait()
        await front.set("other", 1)
        assert await front.get("a") == 1
        go_on.set()
        return (await load).loaded

    assert run(work()) == 2
    assert front.sync.list_keys() == ["a", "b", "other"]


def test_run_transaction_refuses_a_function_that_has_not_run_when_it_returns(any_store: Storage) -> None:
    async def wait(tx: Any) -> None:
        await tx.set("a", 1)

    def steps(tx: Any) -> Iterator[Any]:
        yield tx.set("a", 1)

    for function in (wait, steps):
        with pytest.raises(TypeError, match="plain function"):
            any_store.run_transaction(function)
    plain: Any = lambda tx: tx.set("a", 1).close()  # noqa: E731
    with pytest.raises(TypeError, match="async function"):
        run(AsyncStorage(any_store).run_transaction(plain))
    assert not any_store.has("a")


def test_what_is_no_store_is_told_from_one() -> None:
    wrong: Any = "data.db"
    with pytest.raises(TypeError, match="open_async_storage"):
        AsyncStorage(wrong)


def test_without_a_wal_a_snapshot_goes_on_while_scans_wait_for_a_writer_that_waits_for_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with open_async_storage(tmp_path / "store.db", wal_mode=False, busy_timeout=20) as store:
            await store.set_many({"a": 1, "b": 2})

            async def scanned() -> list[str]:
                return [entry.key async for entry in store.scan()]

            async with store.transaction(read_only=True) as tx:
                writing = asyncio.create_task(store.set("c", 3))
                with contextlib.closing(apsw.Connection(str(tmp_path / "store.db"))) as beside:
                    while await asyncio.sleep(0.001, result=True):
                        try:
                            beside.execute("SELECT count(*) FROM storage_entries").fetchall()
                        except apsw.BusyError:  # the writer lets nobody else in
                            break
                scans = [asyncio.create_task(scanned()) for _ in range(4)]
                await asyncio.sleep(0)  # each of them has handed its first step to a thread
                assert await asyncio.wait_for(tx.get("a"), 10) == 1
            assert await writing > 0
            assert await asyncio.gather(*scans) == [["a", "b", "c"]] * 4

    asyncio.run(work())
