"""Hazard: threads use one store at once, and an update is lost, a read is torn, or somebody waits for ever."""

from __future__ import annotations

import contextlib
import functools
import gc
import operator
import os
import random
import threading
import time
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import apsw
import pytest
from stepping import Gate, Held, Workers, at_once, error_of, kinds, line_of, line_up, result, until, waiting

from mycelia_storage import (
    KeyNotFoundError,
    Storage,
    StorageBusyError,
    StorageReadOnlyError,
    TransactionError,
    VersionConflictError,
    field,
    open_storage,
)
from mycelia_storage.engines.limits import hurrying
from mycelia_storage.engines.memory.state import Table
from mycelia_storage.testing.calls import STORE_CALLS, TRANSACTION_CALLS, WRITES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mycelia_storage import Transaction

# Longer than a test may take: whoever waits for this long by mistake fails by `result`.
FOR_EVER = 30.0
# The time of a transaction that is to be over soon, but after a call or two on a machine that stalls.
A_MOMENT = 0.3


class Opener(Protocol):
    """Opens a store of one engine; the same file every time."""

    kind: str

    def __call__(self, **options: Any) -> Storage: ...


class _Opener:
    def __init__(self, kind: str, path: Path) -> None:
        self.kind = kind
        self.path = path
        self.opened: list[Storage] = []

    def __call__(self, **options: Any) -> Storage:
        if self.kind == "sqlite without WAL":
            options = {"wal_mode": False, "synchronous": "OFF", **options}
        store = open_storage("memory:" if self.kind == "memory" else self.path, **options)
        self.opened.append(store)
        return store


def _opener(kind: str, directory: Path) -> Iterator[Opener]:
    opener = _Opener(kind, directory / "store.db")
    yield opener
    for store in opener.opened:
        store.close()


@pytest.fixture(params=["memory", "sqlite", "sqlite without WAL"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    yield from _opener(request.param, tmp_path)


@pytest.fixture(params=["memory", "sqlite"])
def opened_with_snapshots(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Where a reader does not keep a writer out."""
    yield from _opener(request.param, tmp_path)


@pytest.fixture(params=["sqlite", "sqlite without WAL"])
def opened_file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    yield from _opener(request.param, tmp_path)


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers() as workers:
        yield workers


def picture(verbs: Any) -> dict[str, Any]:
    """What a store looks like through every verb that reads."""
    return {
        "get": verbs.get("a"),
        "has": verbs.has("b"),
        "get_many": verbs.get_many(["a", "b", "c"]),
        "get_entries": list(verbs.get_entries(["a", "b", "c"])),
        "get_entry": verbs.get_entry("a").version,
        "get_metadata": verbs.get_metadata("a"),
        "list_keys": verbs.list_keys(),
        "scan": [(entry.key, entry.value) for entry in verbs.scan()],
        "query": verbs.query(field("n") > 0).keys(),
        "pages": [page.keys() for page in verbs.pages(page_size=1)],
        "count": (verbs.count(), verbs.count(field("n") > 0)),
        "namespaces": verbs.list_namespaces(),
        "indexes": [index.name for index in verbs.list_indexes()],
    }


def fill(store: Storage) -> None:
    store.set_many({"a": {"n": 1}, "b": {"n": 2}}, metadata={"by": "fill"})


def change_everything(verbs: Any) -> None:
    verbs.set("a", {"n": -1}, metadata={"by": "change"})
    verbs.delete("b")
    verbs.set("c", {"n": 3})
    verbs.set("x", 1, namespace="another")
    verbs.create_index("n", name="by n")


# ---- lost updates


def test_no_update_is_lost_by_transactions_that_read_and_write(opened: Opener) -> None:
    store = opened()
    store.set("n", 0)

    def work() -> None:
        for _ in range(20):
            with store.transaction() as tx:
                tx.set("n", tx.get("n", 0) + 1)

    at_once([work] * 6)
    assert store.get("n") == 120


def test_no_update_is_lost_whatever_verb_makes_it(opened: Opener) -> None:
    store = opened()
    store.set_many({"incremented": 0, "modified": 0, "in a field": {"n": 0}, "by version": 0})

    def by_version() -> None:
        while True:
            entry = store.get_entry("by version")
            try:
                store.set("by version", entry.value + 1, if_version=entry.version)
            except VersionConflictError:
                continue
            return

    def work() -> None:
        for _ in range(12):
            store.increment("incremented")
            store.modify("modified", lambda value: value + 1)
            store.increment("in a field", field="n")
            by_version()

    at_once([work] * 5)
    assert store.get_many(["incremented", "modified", "in a field", "by version"]) == {
        "incremented": 60, "modified": 60, "in a field": {"n": 60}, "by version": 60,
    }  # fmt: skip


def test_run_transaction_brings_everybody_through_where_the_lock_is_never_free_for_long(opened: Opener) -> None:
    store = opened(busy_timeout=0.001)
    with Held(store) as held, Workers() as workers:
        futures = [workers.one().start(lambda: store.run_transaction(add_one, attempts=100_000)) for _ in range(6)]
        until(lambda: waiting(store), "somebody who waits")
        until(lambda: not waiting(store), "somebody who gave up waiting for now")
        assert not any(future.done() for future in futures)
        held.let_go()
        assert sorted(map(result, futures)) == [1, 2, 3, 4, 5, 6]
    assert store.get("n") == 6


def add_one(tx: Transaction) -> int:
    tx.set("n", tx.get("n", 0) + 1)
    value: int = tx.get("n", 0)
    return value


# ---- torn reads


def test_two_keys_that_are_always_written_together_are_never_read_apart(opened: Opener) -> None:
    store = opened()
    store.set_many({"left": 0, "right": 0})
    stop = threading.Event()
    torn: list[Any] = []

    def write() -> int:
        for number in range(1, 60):
            if number % 2:
                store.set_many({"left": number, "right": number})
            else:
                with store.transaction() as tx:
                    tx.set("left", number)
                    tx.set("right", number)
        stop.set()
        return 0

    def look() -> int:
        looks = 0
        while not stop.is_set() or not looks:
            with store.transaction(read_only=True) as tx:
                seen = [(tx.get("left"), tx.get("right"))]
            seen += [
                tuple(store.get_many(["left", "right"]).values()),
                tuple(entry.value for entry in store.get_entries(["left", "right"]).values()),
                tuple(store.query().values()),
                tuple(entry.value for entry in store.scan()),
            ]
            torn.extend(pair for pair in seen if pair[0] != pair[1])
            looks += 1
        return looks

    looks = at_once([write, look, look])
    assert min(looks[1:]) > 0
    assert torn == []
    assert store.get("right") == 59


def test_a_commit_in_memory_is_not_read_halfway(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, refused = workers.one(), []
    apply = Table.apply

    def look() -> object:
        hurrying.hurry_until = time.monotonic() + FOR_EVER  # it is told where it would have to wait
        return store.get_many(["a", "b"])

    def applied(table: Table, changes: Any) -> None:
        refused.append(error_of(reader.start(look)))
        apply(table, changes)

    with open_storage("memory:") as store:
        monkeypatch.setattr(Table, "apply", applied)
        store.set_many({"a": 1, "b": 1})
    assert [type(error) for error in refused] == [StorageBusyError]


def test_a_snapshot_in_steps_stays_what_it_was(opened_with_snapshots: Opener, workers: Workers) -> None:
    store = opened_with_snapshots()
    fill(store)
    early, late = workers.one(), workers.one()
    first = early.do(lambda: store.transaction(read_only=True).__enter__())
    before = picture(store)
    with store.transaction() as tx:
        change_everything(tx)
        assert early.do(lambda: picture(first)) == before
    after = picture(store)
    second = late.do(lambda: store.transaction(read_only=True).__enter__())
    store.clear()
    assert (early.do(lambda: picture(first)), late.do(lambda: picture(second))) == (before, after)
    early.do(lambda: first.__exit__(None, None, None))
    late.do(lambda: second.__exit__(None, None, None))
    assert early.do(store.list_keys) == []


def test_a_snapshot_is_of_its_beginning_and_not_of_its_first_read(opened_with_snapshots: Opener) -> None:
    store = opened_with_snapshots()
    store.set("a", "old")
    with store.transaction(read_only=True) as tx, Workers() as workers:
        workers.one().do(lambda: store.set("a", "new"))
        assert tx.get("a") == "old"
        assert store.get("a") == "new"


def test_without_a_wal_a_snapshot_keeps_writers_out_until_it_ends(tmp_path: Path, workers: Workers) -> None:
    with open_storage(tmp_path / "store.db", wal_mode=False, busy_timeout=0.02) as store:
        store.set("a", "old")
        with store.transaction(read_only=True) as tx:
            writer = workers.one()
            for write in (
                lambda: store.set("a", "new"),
                lambda: store.delete("a"),
                lambda: store.increment("n"),
                lambda: store.run_transaction(lambda inner: inner.set("a", "new"), attempts=2),
            ):
                with pytest.raises(StorageBusyError):
                    writer.do(write)
            assert tx.get("a") == "old"
        writer.do(lambda: store.set("a", "new"))
        assert store.get("a") == "new"


# ---- isolation


def test_nothing_of_an_open_transaction_is_seen_by_others(opened: Opener, workers: Workers) -> None:
    store = opened()
    fill(store)
    others = workers.some(2)
    before = picture(store)
    for end in ("rollback", "commit"):
        with store.transaction() as tx:
            change_everything(tx)
            inside = picture(tx)
            for other in others:
                assert other.do(lambda: picture(store)) == before
            if end == "rollback":
                tx.rollback()
        assert picture(store) == (before if end == "rollback" else inside | {"get_entry": picture(store)["get_entry"]})
        assert others[0].do(lambda: picture(store)) == picture(store)


def test_a_writer_waits_for_the_open_transaction_and_works_on_what_it_left(opened: Opener, workers: Workers) -> None:
    store = opened()
    store.set_many({"a": 1, "b": 1})
    with store.transaction() as tx:
        tx.set("a", 10)
        calls: list[Callable[[], object]] = [
            lambda: store.increment("a"),
            lambda: store.modify("a", lambda value: value * 2),
            lambda: store.add("a", 0),
            lambda: store.take("b").value,
        ]
        futures = line_up(store, workers, calls)
        tx.set("b", 20)
        assert not any(future.done() for future in futures)
    assert [result(future) for future in futures] == [11, 22, False, 20]
    assert store.get_many(["a", "b"]) == {"a": 22}


# ---- a constant sum


def test_money_is_neither_made_nor_lost_while_it_is_moved(opened: Opener) -> None:
    store = opened()
    accounts = [f"account {number}" for number in range(6)]
    store.set_many(dict.fromkeys(accounts, 100))
    wrong: list[int] = []
    movers = 3
    done = threading.Semaphore(0)

    def move(seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(25):
            source, target = choice.sample(accounts, 2)
            amount = choice.randrange(1, 60)
            try:
                with store.transaction() as tx:
                    tx.increment(target, amount)
                    if tx.increment(source, -amount) < 0:
                        raise KeyNotFoundError("not enough")  # the whole of it is undone
            except KeyNotFoundError:
                continue
        done.release()

    def audit() -> None:
        for _ in range(movers):
            while not done.acquire(blocking=False):
                with store.transaction(read_only=True) as tx:
                    wrong.extend({sum(tx.get(account, 0) for account in accounts)} - {600})
                totals = {
                    sum(store.get_many(accounts).values()),
                    sum(store.query().values()),
                    sum(entry.value for entry in store.scan(batch_size=100)),
                }
                wrong.extend(totals - {600})

    at_once([*(lambda seed=seed: move(seed) for seed in range(movers)), audit])
    assert wrong == []
    assert sum(store.get_many(accounts).values()) == 600
    assert min(store.get_many(accounts).values()) >= 0


# ---- first come, first served


def test_writers_are_served_in_the_order_in_which_they_came(opened: Opener) -> None:
    store = opened()
    order: list[int] = []

    def in_a_transaction(number: int) -> None:
        with store.transaction() as tx:
            order.append(number)
            tx.set("last", number)

    def by_modify(number: int) -> None:
        def change(_: int) -> int:
            order.append(number)
            return number

        store.modify("last", change, default=0)

    with Held(store) as held, Workers() as workers:
        calls = [lambda n=n: (by_modify if n % 2 else in_a_transaction)(n) for n in range(10)]
        futures = line_up(store, workers, calls)
        held.let_go()
        assert kinds(futures) == [None] * 10
    assert order == list(range(10))
    assert store.get("last") == 9


def test_who_comes_back_stands_behind_those_who_wait(opened: Opener, workers: Workers) -> None:
    store = opened()
    order: list[str] = []
    again, waiter = workers.one(), workers.one()

    def write(name: str) -> None:
        with store.transaction() as tx:
            order.append(name)
            tx.set("last", name)

    def first_and_again() -> None:
        with store.transaction() as tx:
            tx.set("last", "first")
            futures.append(waiter.start(lambda: write("waiter")))
            until(lambda: waiting(store) == 1, "the waiter in line")
        write("again")

    futures: list[Any] = []
    again.do(first_and_again)
    result(futures[0])
    assert order == ["waiter", "again"]


def test_who_gives_up_leaves_the_line_to_those_behind(opened: Opener) -> None:
    store = opened(busy_timeout=FOR_EVER)
    with Held(store) as held, Workers() as workers:

        def briefly() -> None:
            with store.transaction(wait=0.01):
                pass

        def patiently() -> int:
            with store.transaction() as tx:
                return tx.increment("n")

        impatient = workers.one().start(briefly)
        patient = workers.one().start(patiently)
        assert isinstance(error_of(impatient), StorageBusyError)
        until(lambda: waiting(store) == 1, "the patient one alone in line")
        held.let_go()
        assert result(patient) == 1
    assert waiting(store) == 0


# ---- connections


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts the open files of the process")
def test_two_hundred_threads_share_a_few_connections(opened_file: Opener, tmp_path: Path) -> None:
    store = opened_file(max_readers=3)
    store.set_many({str(number): number for number in range(50)})
    path = os.path.realpath(tmp_path / "store.db")
    counts: list[int] = []

    def connections() -> int:
        found = 0
        for name in os.listdir("/proc/self/fd"):
            try:
                found += os.readlink(f"/proc/self/fd/{name}") == path
            except OSError:
                continue
        return found

    def work(number: int) -> int:
        assert store.get(str(number % 50)) == number % 50
        if number % 20 == 0:
            counts.append(connections())
        store.increment("n")
        with store.transaction(read_only=True) as tx:
            tx.count()
            if number % 20 == 10:
                counts.append(connections())
        with store.transaction() as tx:
            tx.increment("m")
        return store.count()

    at_once([lambda number=number: work(number) for number in range(200)])  # type: ignore[misc]
    assert store.get_many(["n", "m"]) == {"n": 200, "m": 200}
    assert max(counts) <= 3 + 1
    assert store.get_status().details["readers"] <= 3


@pytest.mark.parametrize("left", ["transaction", "read-only transaction", "scan", "raised in the block"])
def test_a_thread_that_dies_gives_back_what_it_held(opened: Opener, left: str) -> None:
    store = opened(busy_timeout=0.5, max_readers=1)
    store.set_many({"a": 1, "b": 2})

    def die() -> None:
        if left == "transaction":
            store.transaction().__enter__().set("a", 5)
        elif left == "read-only transaction":
            store.transaction(read_only=True).__enter__().get("a")
        elif left == "scan":
            next(store.scan(batch_size=1))
        else:
            with contextlib.suppress(SystemExit), store.transaction() as tx:
                tx.set("a", 5)
                raise SystemExit

    for _ in range(20):
        thread = threading.Thread(target=die)
        thread.start()
        thread.join()
    gc.collect()
    store.set("c", 3)
    with store.transaction() as tx:
        assert tx.get_many(["a", "b", "c"]) == {"a": 1, "b": 2, "c": 3}
    assert store.list_keys() == ["a", "b", "c"]


class CollectsWhenSomebodyComes(deque[Any]):
    """The garbage collector may run at any call; here it runs when somebody takes a place in line."""

    def append(self, item: Any) -> None:
        super().append(item)
        gc.collect()


def test_a_forgotten_transaction_that_is_collected_by_a_waiting_thread_hangs_nobody(opened: Opener) -> None:
    store = opened()
    line_of(store)._waiting = CollectsWhenSomebodyComes()
    gc.disable()
    try:
        forgotten: list[Any] = [store.transaction().__enter__()]
        forgotten[0].set("a", 1)
        forgotten.append(forgotten)
        del forgotten
        done = threading.Event()

        def write() -> None:
            store.set("b", 2)
            done.set()

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        if not done.wait(5):
            line_of(store)._changing = threading.RLock()  # for the end of this test
            pytest.fail("the thread that waited hangs")
        thread.join()
    finally:
        gc.enable()
    assert store.list_keys() == ["b"]


# ---- one transaction, several threads


@pytest.mark.parametrize("name", sorted(TRANSACTION_CALLS))
def test_a_second_call_at_once_on_a_transaction_is_refused(any_store: Storage, name: str) -> None:
    def change(value: int) -> int:
        with Workers() as workers:
            assert isinstance(error_of(workers.one().start(lambda: TRANSACTION_CALLS[name](tx))), TransactionError)
            assert isinstance(error_of(workers.one().start(tx.rollback)), TransactionError)
        return value + 1

    any_store.set("k", 1)
    with any_store.transaction() as tx:
        tx.set("before", 1)
        assert tx.modify("k", change) == 2
        assert tx.get_many(["before", "k"]) == {"before": 1, "k": 2}
    assert any_store.get_many(["before", "k"]) == {"before": 1, "k": 2}


def test_a_transaction_goes_from_thread_to_thread(opened: Opener, workers: Workers) -> None:
    store = opened()
    first, second, third, fourth = workers.some(4)
    tx = first.do(lambda: store.transaction().__enter__())
    second.do(lambda: tx.set("a", 1))
    inner = third.do(lambda: tx.transaction().__enter__())
    first.do(lambda: inner.set("b", 2))
    second.do(lambda: inner.__exit__(None, None, None))
    assert third.do(lambda: picture_of_keys(tx)) == ["a", "b"]
    assert fourth.do(lambda: picture_of_keys(store)) == []
    assert isinstance(error_of(first.start(lambda: store.get("a"))), TransactionError)
    fourth.do(lambda: tx.__exit__(None, None, None))
    assert fourth.do(lambda: picture_of_keys(store)) == ["a", "b"]
    for worker in (first, second, third, fourth):
        worker.do(lambda: store.increment("n"))
        with pytest.raises(TransactionError):
            worker.do(lambda: tx.get("a"))
    assert store.get("n") == 4


def picture_of_keys(verbs: Any) -> list[str]:
    keys: list[str] = verbs.list_keys()
    return keys


def test_a_transaction_that_another_thread_ended_is_over_for_its_own(opened: Opener, workers: Workers) -> None:
    store = opened()
    with store.transaction() as tx:
        tx.set("a", 1)
        workers.one().do(tx.rollback)
        for name, call in TRANSACTION_CALLS.items():
            with pytest.raises(TransactionError):
                print(name, call(tx))
        store.set("b", 2)  # the thread is no longer inside
    assert store.list_keys() == ["b"]


# ---- the store inside its own transaction


@pytest.mark.parametrize("name", sorted(STORE_CALLS))
def test_the_store_is_refused_inside_its_own_write_transaction(any_store: Storage, name: str) -> None:
    any_store.set("key", {})
    with any_store.transaction() as tx:
        tx.set("a", 1)
        with pytest.raises(TransactionError, match=r"\btx\b"):
            STORE_CALLS[name](any_store)
        with tx.transaction() as inner, pytest.raises(TransactionError, match=r"\btx\b"):
            STORE_CALLS[name](any_store)
        assert not inner._is_open()
    assert any_store.list_keys() == ["a", "key"]


def test_the_store_is_refused_inside_a_function_given_to_modify(any_store: Storage) -> None:
    any_store.set("key", 1)

    def change(value: int) -> int:
        with Workers() as workers:
            assert workers.one().do(lambda: any_store.get("key")) == 1
        for name, call in STORE_CALLS.items():
            with pytest.raises(TransactionError):
                print(name, call(any_store))
        return value + 1

    assert any_store.modify("key", change) == 2
    assert any_store.increment("key") == 3


def test_only_who_is_inside_is_refused(tmp_path: Path, any_store: Storage, workers: Workers) -> None:
    with open_storage(tmp_path / "another.db") as another, any_store.transaction() as tx:
        another.set("a", 1)
        tx.set("a", 2)
        assert workers.one().do(lambda: any_store.get("a")) is None
        with another.transaction() as other_tx:
            other_tx.set("b", tx.get("a"))
        assert another.get("b") == 2
    assert any_store.get("a") == 2


def test_a_transaction_that_reads_lets_its_thread_use_the_store(opened_with_snapshots: Opener) -> None:
    store = opened_with_snapshots()
    with store.transaction(read_only=True) as tx:
        store.set("a", 1)
        assert (store.get("a"), tx.get("a")) == (1, None)
        for name, call in WRITES.items():
            with pytest.raises(StorageReadOnlyError):
                print(name, call(tx))


def test_a_thread_is_not_taken_for_one_that_died_inside(any_store: Storage) -> None:
    """The numbers of threads that have ended are used again."""
    kept: list[Transaction] = []

    def leave_it_open() -> None:
        kept.append(any_store.transaction().__enter__())

    def look() -> None:
        seen.append(any_store.get("a"))

    seen: list[Any] = []
    for work in (leave_it_open, *[look] * 20):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [None] * 20
    kept.pop().rollback()


# ---- how long one waits


def test_wait_bounds_the_wait_and_not_busy_timeout(opened: Opener, workers: Workers) -> None:
    store = opened(busy_timeout=FOR_EVER)

    def begin(wait: Any) -> None:
        with store.transaction(wait=wait) as tx:
            tx.increment("n")

    with Held(store):
        for wait in (0, 0.0, 0.01, timedelta(milliseconds=10)):
            with pytest.raises(StorageBusyError):
                workers.one().do(lambda wait=wait: begin(wait))  # type: ignore[misc]
    assert waiting(store) == 0
    begin(0)
    assert store.get("n") == 1


def test_wait_may_be_longer_than_busy_timeout(opened: Opener) -> None:
    store = opened(busy_timeout=0.001)

    def begin() -> None:
        with store.transaction(wait=FOR_EVER) as tx:
            tx.increment("n")

    with Held(store) as held, Workers() as workers:
        patient = line_up(store, workers, [begin])
        for _ in range(3):
            with pytest.raises(StorageBusyError):
                workers.one().do(lambda: store.set("a", 1))
        held.let_go()
        result(patient[0])
    assert store.list_keys() == ["n"]


def test_every_write_gives_up_after_busy_timeout_and_leaves_nothing(opened: Opener, workers: Workers) -> None:
    store = opened(busy_timeout=0.01)
    store.set("key", {})
    with Held(store):
        worker = workers.one()
        for name, call in WRITES.items():
            with pytest.raises(StorageBusyError):
                print(name, worker.do(lambda call=call: call(store)))  # type: ignore[misc]
    assert store.list_keys() == ["key"]
    assert store.list_namespaces() == ["default"]
    assert store.get("key") == {}
    assert waiting(store) == 0


def test_wait_and_busy_timeout_bound_the_wait_for_the_file_too(
    opened_file: Opener, tmp_path: Path, workers: Workers
) -> None:
    store = opened_file(busy_timeout=0.02)
    other = apsw.Connection(str(tmp_path / "store.db"))
    other.execute("BEGIN IMMEDIATE")
    try:
        calls: list[Callable[[], object]] = [
            lambda: store.set("a", 1),
            lambda: store.increment("n"),
            lambda: store.add("a", 1),
        ]
        for call in calls:
            with pytest.raises(StorageBusyError):
                call()
        for wait in (0, 0.01):
            with pytest.raises(StorageBusyError), store.transaction(wait=wait):
                pass
        patient = opened_file(busy_timeout=FOR_EVER)
        assert isinstance(error_of(workers.one().start(patient.transaction(wait=0).__enter__)), StorageBusyError)
    finally:
        other.execute("ROLLBACK")
        other.close()
    store.set("a", 1)
    assert store.list_keys() == ["a"]


def test_a_reader_that_waits_too_long_for_a_connection_is_told(tmp_path: Path, workers: Workers) -> None:
    with open_storage(tmp_path / "store.db", max_readers=2, busy_timeout=0.02) as store:
        store.set("a", 1)
        open_ones = [worker.do(lambda: store.transaction(read_only=True).__enter__()) for worker in workers.some(2)]
        for read in (
            lambda: store.get("a"), lambda: store.count(), lambda: store.transaction(read_only=True).__enter__(),
        ):  # fmt: skip
            with pytest.raises(StorageBusyError, match="reader"):
                read()
        store.set("a", 2)
        assert [entry.value for entry in store.scan()] == [2]
        open_ones[0].rollback()
        assert store.get("a") == 2
        open_ones[1].rollback()


# ---- how long a transaction may take


def test_a_transaction_over_its_time_gives_the_lock_to_the_next(opened: Opener, workers: Workers) -> None:
    store = opened(busy_timeout=FOR_EVER)

    def work() -> None:
        with store.transaction(max_duration=A_MOMENT) as tx:
            tx.set("a", 1)
            assert workers.one().do(lambda: store.increment("n")) == 1
            for name, call in TRANSACTION_CALLS.items():
                with pytest.raises(TransactionError, match="max_duration"):
                    print(name, call(tx))
            store.set("b", 1)  # this thread is no longer inside

    with pytest.raises(TransactionError, match="max_duration"):
        work()
    assert store.list_keys() == ["b", "n"]


def test_a_nested_transaction_ends_with_the_one_around_it(opened: Opener, workers: Workers) -> None:
    store = opened(busy_timeout=FOR_EVER)

    def work() -> None:
        with store.transaction(max_duration=timedelta(seconds=A_MOMENT)) as tx:
            with tx.transaction() as inner:
                inner.set("a", 1)
                workers.one().do(lambda: store.increment("n"))
                for verbs in (inner, tx):
                    with pytest.raises(TransactionError, match="max_duration"):
                        verbs.set("b", 1)
            with pytest.raises(TransactionError, match="max_duration"), tx.transaction():
                pass

    with pytest.raises(TransactionError, match="max_duration"):
        work()
    assert store.list_keys() == ["n"]


def test_a_snapshot_over_its_time_gives_its_connection_back(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db", max_readers=1, busy_timeout=60) as store:
        store.set("a", 1)
        snapshot = store.transaction(read_only=True, max_duration=A_MOMENT).__enter__()
        assert store.get("a") == 1  # waits for the only connection
        with pytest.raises(TransactionError, match="max_duration"):
            snapshot.get("a")


def test_a_long_read_in_progress_is_stopped_when_the_time_is_over(opened: Opener, workers: Workers) -> None:
    store = opened(busy_timeout=FOR_EVER)
    store.set_many({f"{number:05}": {"text": "abc" * 10, "number": number} for number in range(3000)})
    seldom = (field("text").contains("d")) | (field("number") < 0)

    def read_for_ever() -> None:
        with store.transaction(max_duration=0.05) as tx:
            tx.set("a", 1)
            while True:
                tx.count(seldom)

    future = workers.one().start(read_for_ever)
    assert isinstance(error_of(future), TransactionError)
    assert not store.has("a")


def test_it_is_the_read_under_way_that_is_stopped(
    opened: Opener, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened()
    store.set_many({f"{number:05}": {"text": "abc" * 10} for number in range(3000)})
    seldom = functools.reduce(operator.or_, (field("text").contains(f"d{number}") for number in range(20)))
    monkeypatch.setattr(store._home.watchdog, "watch", lambda *_: True)  # it comes when this test says so

    def work() -> None:
        with store.transaction(max_duration=0) as tx:
            gate = Gate(monkeypatch, tx._alone.session, "count_matching")
            counting = workers.one().start(lambda: tx.count(seldom))
            assert gate.comes.wait(FOR_EVER)
            assert not tx._expire()
            gate.may_pass.set()
            assert isinstance(error_of(counting), TransactionError)

    with pytest.raises(TransactionError, match="max_duration"):
        work()


def test_a_block_that_is_left_before_the_watchdog_comes_has_not_been_committed(
    any_store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(any_store._home.watchdog, "watch", lambda *_: True)
    with pytest.raises(TransactionError, match="max_duration"), any_store.transaction(max_duration=0) as tx:
        tx.set("a", 1)
    assert any_store.list_keys() == []


@pytest.mark.parametrize("nested", [False, True])
def test_a_block_that_is_left_late_has_not_been_committed(any_store: Storage, nested: bool) -> None:
    any_store.set("k", 0)

    def take_too_long(value: int) -> int:
        time.sleep(0.03)  # this is how long it takes; the time of the transaction is over by then
        return value + 1

    def work() -> None:
        with any_store.transaction(max_duration=0.01) as tx:
            if nested:
                with tx.transaction() as inner:
                    inner.modify("k", take_too_long)
            else:
                tx.modify("k", take_too_long)

    for _ in range(5):
        with pytest.raises(TransactionError, match="max_duration"):
            work()
    assert any_store.get("k") == 0


def test_a_call_after_a_late_one_says_that_the_time_is_over(any_store: Storage) -> None:
    any_store.set("k", 0)

    def take_too_long(value: int) -> int:
        time.sleep(0.03)
        for call in (lambda: tx.get("k"), lambda: tx.count(), lambda: tx.set("k", 5)):
            with pytest.raises(TransactionError, match="max_duration"):
                call()
        return value + 1

    with pytest.raises(TransactionError, match="max_duration"), any_store.transaction(max_duration=0.01) as tx:
        tx.modify("k", take_too_long)
    assert any_store.get("k") == 0


def test_an_exception_leaves_a_late_block_as_it_is(any_store: Storage, workers: Workers) -> None:
    def work() -> None:
        with any_store.transaction(max_duration=A_MOMENT) as tx:
            tx.set("a", 1)
            workers.one().do(lambda: any_store.increment("n"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert any_store.list_keys() == ["n"]


def test_what_ended_in_time_is_not_touched_later(any_store: Storage, workers: Workers) -> None:
    with any_store.transaction(max_duration=A_MOMENT) as tx:
        tx.set("a", 1)
    with any_store.transaction() as tx:  # while this is open, the time of the first is over
        tx.set("b", 2)
        late = any_store.transaction(max_duration=A_MOMENT, read_only=True)
        workers.one().do(late.__enter__)
        until(lambda: not late._is_open(), "the end of a later one")  # type: ignore[attr-defined]
        tx.set("c", 3)
    assert any_store.list_keys() == ["a", "b", "c"]
