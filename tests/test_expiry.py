"""Hazard: what has expired comes back to life, or what is alive is cleaned up with it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from stepping import Held, Workers, result, until, waiting

from mycelia_storage import Storage, Transaction, TransactionError, open_storage, upkeep
from mycelia_storage.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["memory", "sqlite"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return "memory:" if request.param == "memory" else tmp_path / "store.db"


def seen_by_another_thread(store: Storage) -> tuple[int, list[str], bool, list[str]]:
    found: list[tuple[int, list[str], bool, list[str]]] = []

    def look() -> None:
        found.append((store.count(), store.list_keys(), store.has("a"), [entry.key for entry in store.scan()]))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("ends", ["commit", "rollback", "savepoint"])
def test_a_clean_up_inside_an_open_transaction_brings_nothing_back_for_others(target: Any, ends: str) -> None:
    clock = FakeClock()
    with open_storage(target, clock=clock) as store:
        store.set("a", 0, ttl=1)
        clock.advance(1)
        with store.transaction() as tx:
            if ends == "savepoint":
                with tx.transaction() as inner:
                    inner.set("b", 1, ttl=5)  # a write with an expiry cleans up along the way
                    inner.rollback()
            else:
                tx.set("b", 1, ttl=5)
            assert seen_by_another_thread(store) == (0, [], False, [])
            if ends != "commit":
                tx.rollback()
        expected = ["b"] if ends == "commit" else []
        assert seen_by_another_thread(store) == (len(expected), expected, False, expected)
        store.optimize()
        assert store.list_keys() == expected


def test_every_clean_up_leaves_what_is_alive(target: Any) -> None:
    clock = FakeClock()
    with open_storage(target, clock=clock) as store:
        for number in range(100):
            store.set(f"{number:03}", number, ttl=number + 1)
        for number in range(100):
            clock.advance(1)
            store.set("other", number, namespace="other", ttl=0.5)
            assert store.count() == 99 - number
            assert store.list_keys(limit=1) == ([f"{number + 1:03}"] if number < 99 else [])
        assert store.check().entries == 1


def test_the_last_millisecond_counts(target: Any) -> None:
    clock = FakeClock()
    with open_storage(target, clock=clock) as store:
        store.set("a", 1, ttl=0.0021)  # rounded up to 3 ms
        clock.advance(0.002)
        assert store.get("a") == 1
        clock.advance(0.001)
        assert store.get("a") is None
        assert store.add("a", 2)


def rows_kept(store: Storage, target: Any) -> int:
    if target == "memory:":
        return int(store.get_status().details["rows"])
    connection = apsw.Connection(str(target), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return int(connection.execute("SELECT count(*) FROM storage_entries").get)
    finally:
        connection.close()


def test_what_has_expired_is_removed_though_nobody_writes(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "CLEAN_UP_EVERY", 0.005)
    clock = FakeClock()
    with open_storage(target, clock=clock) as store:
        store.set_many({f"{number:04}": number for number in range(2500)}, ttl=1)
        store.set("stays", 1)
        assert rows_kept(store, target) == 2501
        clock.advance(1)
        deadline = time.monotonic() + 30
        while rows_kept(store, target) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert store.list_keys() == ["stays"]


def read_for_ever(tx: Transaction) -> None:
    while True:
        tx.get("a")


def test_a_clean_up_does_not_keep_transactions_from_being_ended(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "CLEAN_UP_EVERY", 0.005)
    clock = FakeClock()
    with open_storage(target, clock=clock) as store:
        store.set("a", 1, ttl=1)
        clock.advance(1)
        with pytest.raises(TransactionError, match="max_duration"), store.transaction(max_duration=0.1) as tx:
            read_for_ever(tx)


def test_a_store_that_is_opened_later_removes_what_has_expired(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.db"
    with open_storage(path, clock=clock) as store:
        store.set_many({f"{number:04}": number for number in range(100)}, ttl=1)
        store.set("stays", 1)
    clock.advance(1)
    with open_storage(path, clock=clock, read_only=True) as store:
        assert not any(thread.name == "mycelia-upkeep" for thread in threading.enumerate())
    monkeypatch.setattr(upkeep, "CLEAN_UP_EVERY", 0.005)
    with open_storage(path, clock=clock) as store:
        until(lambda: rows_kept(store, path) == 1, "the end of the clean-up")
        assert store.list_keys() == ["stays"]


@pytest.fixture
def removed_by_commit() -> Iterator[list[int]]:
    """How many rows each commit removed, of every connection that is opened during the test."""
    found: list[int] = []

    def hook(connection: apsw.Connection) -> None:
        before = [0]

        def committing() -> bool:
            now = connection.total_changes()
            found.append(now - before[0])
            before[0] = now
            return False

        connection.set_commit_hook(committing)

    apsw.connection_hooks.append(hook)
    yield found
    apsw.connection_hooks.remove(hook)


def test_steps_are_small_and_smaller_where_entries_are_big(
    tmp_path: Path, clock: FakeClock, removed_by_commit: list[int]
) -> None:
    with open_storage(tmp_path / "store.db", clock=clock) as store:
        store.set_many({f"{number:04}": number for number in range(3000)}, ttl=1)
        clock.advance(1)
        removed_by_commit.clear()
        store.optimize()
        assert sum(removed_by_commit) == 3000
        assert max(removed_by_commit) <= 1000

        for number in range(30):
            store.set(f"big {number}", "b" * 1_000_000, ttl=1)
        clock.advance(1)
        removed_by_commit.clear()
        store.optimize()
        assert sum(removed_by_commit) == 30
        assert max(removed_by_commit) <= 5, "a step frees the pages of some 4 MB"


def test_steps_that_take_long_become_small(
    tmp_path: Path, clock: FakeClock, removed_by_commit: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_WANTED_SECONDS", -1)  # so that each takes too long
    with open_storage(tmp_path / "store.db", clock=clock) as store:
        store.set_many({f"{number:04}": number for number in range(200)}, ttl=1)
        clock.advance(1)
        removed_by_commit.clear()
        store.optimize()
        assert [removed for removed in removed_by_commit if removed] == [64, 32, 16, 8, 4, 2, *[1] * 74]
        assert store.get_status().entries == 0


def test_a_clean_up_has_its_turn_however_much_is_written(target: Any) -> None:
    clock = FakeClock()
    with open_storage(target, clock=clock) as store, Workers() as workers:
        store.set("a", 1, ttl=1)
        clock.advance(1)
        with Held(store) as held:
            step = workers.one().start(lambda: store._home.upkeep.clean_up())
            until(lambda: waiting(store) == 1, "a place in line")
            writer = workers.one().start(lambda: store.set("b", 2))
            until(lambda: waiting(store) == 2, "a place behind it")
            held.let_go()
            result(step)
            result(writer)
        assert rows_kept(store, target) == 1, "it was served, and not left out because somebody writes"


def test_a_clean_up_that_cannot_have_the_lock_gives_up_soon(target: Any) -> None:
    clock = FakeClock()
    with open_storage(target, clock=clock) as store, Workers() as workers:
        store.set("a", 1, ttl=1)
        clock.advance(1)
        with Held(store):
            assert result(workers.one().start(lambda: store._home.upkeep.clean_up()))
            assert waiting(store) == 0
        assert rows_kept(store, target) == 1
        store.optimize()
        assert rows_kept(store, target) == 0
