"""Hazard: a store is closed while others use it: a half-applied transaction, a lock that stays, a raw driver error."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import (
    AsyncStorage,
    Storage,
    StorageClosedError,
    StorageFacet,
    open_async_storage,
    open_storage,
)
from mycelia_storage.testing.base import in_another_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from mycelia_storage import Transaction


class Worker(threading.Thread):
    """Runs a function that stops in its middle until it may go on, and keeps what it raised."""

    def __init__(self, work: Callable[[Callable[[], None]], object]) -> None:
        super().__init__()
        self.in_the_middle = threading.Event()
        self.may_go_on = threading.Event()
        self.raised: BaseException | None = None
        self._work = work

    def run(self) -> None:
        try:
            self._work(self._pause)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.raised = error

    def _pause(self) -> None:
        self.in_the_middle.set()
        assert self.may_go_on.wait(10)


@pytest.fixture(params=["memory", "sqlite"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return "memory:" if request.param == "memory" else tmp_path / "store.db"


def close_in_the_middle(store: Storage, work: Callable[[Callable[[], None]], object]) -> BaseException | None:
    worker = Worker(work)
    worker.start()
    assert worker.in_the_middle.wait(10)
    store.close()
    worker.may_go_on.set()
    worker.join()
    return worker.raised


def kept(target: Any) -> list[str]:
    """What is in the file afterwards; it can be written too, so no lock stayed."""
    if target == "memory:":
        return []
    with open_storage(target, busy_timeout=0.2) as store:
        found = store.list_keys()
        store.set("still works", 1)
    return found


def test_between_two_calls_of_a_transaction_nothing_of_it_stays(target: Any) -> None:
    store = open_storage(target)

    def work(pause: Callable[[], None]) -> None:
        with store.transaction() as tx:
            tx.set("first", 1)
            pause()
            tx.set("second", 2)

    assert isinstance(close_in_the_middle(store, work), StorageClosedError)
    assert kept(target) == []


def test_before_the_commit_nothing_of_it_stays(target: Any) -> None:
    store = open_storage(target)

    def work(pause: Callable[[], None]) -> None:
        with store.transaction() as tx:
            tx.set_many({"first": 1, "second": 2})
            pause()

    assert isinstance(close_in_the_middle(store, work), StorageClosedError)
    assert kept(target) == []


def test_in_the_middle_of_a_call_of_a_transaction_nothing_of_it_stays(target: Any) -> None:
    store = open_storage(target)

    def work(pause: Callable[[], None]) -> None:
        def change(value: int) -> int:
            pause()
            return value + 1

        with store.transaction() as tx:
            tx.set("first", 1)
            tx.modify("first", change)

    assert close_in_the_middle(store, work) is not None
    assert kept(target) == []


def test_in_the_middle_of_a_verb_of_the_store_nothing_of_it_stays(target: Any) -> None:
    store = open_storage(target)

    def work(pause: Callable[[], None]) -> None:
        def change(value: int) -> int:
            pause()
            return value + 1

        store.modify("first", change, default=0)

    assert close_in_the_middle(store, work) is not None
    assert kept(target) == []


def test_a_scan_that_goes_on_says_that_the_store_is_closed(target: Any) -> None:
    store = open_storage(target)
    store.set_many({str(number): number for number in range(10)})

    def work(pause: Callable[[], None]) -> None:
        for _ in store.scan(batch_size=3):
            if not pause.__self__.may_go_on.is_set():  # type: ignore[attr-defined]
                pause()

    assert isinstance(close_in_the_middle(store, work), StorageClosedError)


def test_a_second_close_and_calls_afterwards_are_clear(target: Any) -> None:
    store = open_storage(target)
    store.close()
    store.close()
    for call in (
        lambda: store.get("a"),
        lambda: store.set("a", 1),
        lambda: store.scan(),
        lambda: store.transaction().__enter__(),
    ):
        with pytest.raises(StorageClosedError):
            call()


def test_a_scan_of_a_closed_store_gives_nothing_more(target: Any) -> None:
    store = open_storage(target)
    store.set_many({"a": 1, "b": 2})
    scan = store.scan()
    next(scan)
    store.close()
    with pytest.raises(StorageClosedError):
        next(scan)


# ---- which store it was: a program that has several open sees no more of it at night than the message


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def known(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, dict[str, Any], str]:
    """A target, options, and how a message has to name the store."""
    if request.param == "memory":
        return "memory:", {}, "memory:"
    if request.param == "sqlite":
        return tmp_path / "orders.db", {}, f"{tmp_path}/orders.db"
    psycopg = pytest.importorskip("psycopg")
    dsn: str = request.getfixturevalue("postgres_dsn")
    has = psycopg.conninfo.conninfo_to_dict(dsn)
    port = f":{has['port']}" if "port" in has else ""
    where = f"postgresql://{has['user']}@{has['host']}{port}/{has['dbname']}"
    schema: str = request.getfixturevalue("postgres_schema")
    target = psycopg.conninfo.make_conninfo(dsn, password="hunter2")
    return {"backend": "postgresql", "options": {"dsn": target}}, {"schema": schema}, where


def test_every_way_into_a_closed_store_says_which_one_it_is(known: tuple[Any, dict[str, Any], str]) -> None:
    target, options, where = known
    store = open_storage(target, **options)
    store.set_many({"a": 1, "b": 2, "c": 3})
    view, scan, pages = store.namespace("n"), store.scan(batch_size=1), store.pages(page_size=1)
    next(scan)
    next(pages)
    begun = store.transaction()
    tx: Transaction = in_another_thread(begun.__enter__)  # which is inside of it then, and this thread is not
    inside = tx.namespace("n")
    reader = store.transaction(read_only=True)
    reading = reader.__enter__()
    store.close()
    ways: dict[str, Callable[[], object]] = {
        "a read": lambda: store.get("a"),
        "a read of metadata": lambda: store.get_metadata("a"),
        "a query": lambda: store.query(sort="x"),
        "a write": lambda: store.set("a", 1),
        "a batch": lambda: store.set_many({"a": 1, "b": 2}),
        "a change": lambda: store.modify("a", lambda value: value),
        "a view that reads": lambda: view["a"],
        "a view that writes": lambda: view.update({"a": 1}),
        "a walk that begins": lambda: next(store.scan()),
        "a walk that goes on": lambda: list(scan),
        "pages that go on": lambda: next(pages),
        "a transaction that begins": lambda: store.transaction().__enter__(),
        "a transaction to read that begins": lambda: store.transaction(read_only=True).__enter__(),
        "a transaction that writes on": lambda: tx.set("a", 1),
        "a view in it": lambda: inside["a"],
        "a transaction that reads on": lambda: reading.get("a"),
        "its commit": lambda: begun.__exit__(None, None, None),
        "the end of one that reads": lambda: reader.__exit__(None, None, None),
        "a function in a transaction": lambda: store.run_transaction(lambda tx: tx.get("a")),
        "a status": store.get_status,
        "a check": store.check,
        "upkeep": store.optimize,
        "a migration": store.migrate,
        "a backup": lambda: store.backup("/nowhere/at/all"),
        "a restore": lambda: store.restore("/nowhere/at/all"),
    }
    told = dict.fromkeys(ways, "")
    for what, call in ways.items():
        with pytest.raises(StorageClosedError) as refused:
            call()
        told[what] = str(refused.value)
    assert told == dict.fromkeys(ways, f"{where}: the store is closed")


def test_every_awaited_way_into_a_closed_store_says_which_one_it_is(known: tuple[Any, dict[str, Any], str]) -> None:
    target, options, where = known

    async def refusal(work: Awaitable[object]) -> str:
        with pytest.raises(StorageClosedError) as refused:
            await work
        return str(refused.value)

    async def main() -> None:
        store = await open_async_storage(target, **options)
        view, scan = store.namespace("n"), store.scan(batch_size=1)
        await store.set_many({"a": 1, "b": 2, "c": 3})
        await anext(scan)
        tx = await asyncio.create_task(store.transaction().__aenter__())  # so that this task is not inside of it
        facet = StorageFacet(store)
        await store.close()
        for work in (
            store.get("a"),
            store.set("a", 1),
            store.query(),
            store.modify("a", lambda value: value),
            store.load([]),
            store.get_status(),
            store.backup("/nowhere/at/all"),
            view.get("a"),
            view.set("a", 1),
            anext(store.scan()),
            store.transaction().__aenter__(),
            tx.get("a"),
            tx.set("a", 1),
            tx.namespace("n").get("a"),
        ):
            assert await refusal(work) == f"{where}: the store is closed"
        async with AsyncStorage(store.sync) as again:
            assert await refusal(again.get("a")) == f"{where}: the store is closed"
        for answer in (await facet.get("a"), await facet.set("a", 1), await facet.begin_transaction()):
            assert str(answer.error) == f"{where}: the store is closed"
        await facet.close()
        for answer in (await facet.get("a"), await facet.begin_transaction()):
            assert str(answer.error) == f"{where}: the facet was closed"

    asyncio.run(main())
