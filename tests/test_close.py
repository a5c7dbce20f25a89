"""Hazard: a store is closed while others use it: a half-applied transaction, a lock that stays, a raw driver error."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import Storage, StorageClosedError, open_storage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
