"""Hazard: a read that has to end does not, ends somebody else's, or takes a transaction or a connection along."""

from __future__ import annotations

import math
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from stepping import Workers, error_of, kinds, result

from mycelia_storage import (
    InvalidValueError,
    Storage,
    StorageBusyError,
    StorageTimeoutError,
    field,
    open_storage,
)
from mycelia_storage.engines import claims, kit
from mycelia_storage.engines.limits import Limit
from mycelia_storage.engines.sqlite import connection, expressions, lending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mycelia_storage import Filter, Transaction

    Read = Callable[[Any], object]

# Every entry that is looked at for this one goes through `Rows.look`.
WANTED: Filter = field("deep") == {"number": -1}
TIMED: dict[str, Callable[..., Any]] = {
    "query": lambda verbs, **options: verbs.query(WANTED, **options),
    "sorted query": lambda verbs, **options: verbs.query(WANTED, sort="-number", limit=5, **options),
    "count": lambda verbs, **options: verbs.count(WANTED, **options),
}


class Rows:
    """What happens at each entry that a read looks at: nothing, until a test says otherwise."""

    def __init__(self) -> None:
        self.look: Callable[[], object] = lambda: None


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    """Looked at one by one by both engines, which ask at every few whether they may go on."""
    rows = Rows()

    def equal(*texts: Any) -> bool:
        rows.look()
        return bool(texts[0] == texts[1])

    def candidate(*arguments: Any) -> Any:
        rows.look()
        return candidate_of(*arguments)

    candidate_of = claims.candidate_of
    monkeypatch.setattr(expressions, "_deeply_equal", equal)
    monkeypatch.setattr(connection, "STEPS_BETWEEN_LOOKS", 20)
    monkeypatch.setattr(lending, "STEPS_BETWEEN_LOOKS", 20)
    monkeypatch.setattr(kit, "candidate_of", candidate)
    monkeypatch.setattr(kit, "_ROWS_BETWEEN_LOOKS", 1)
    return rows


def fill(store: Storage) -> Storage:
    store.set_many({f"{number:03}": {"deep": {"number": number}, "number": number} for number in range(60)})
    return store


@pytest.fixture(params=["memory", "sqlite", "sqlite without WAL"])
def store(request: pytest.FixtureRequest, tmp_path: Path, rows: Rows) -> Iterator[Storage]:
    target: Any = "memory:" if request.param == "memory" else tmp_path / "store.db"
    options: dict[str, Any] = {"wal_mode": False, "synchronous": "OFF"} if "without" in request.param else {}
    with open_storage(target, max_readers=2, busy_timeout=5, **options) as store:
        yield fill(store)


@pytest.fixture
def one_reader(tmp_path: Path, rows: Rows) -> Iterator[Storage]:
    with open_storage(tmp_path / "store.db", max_readers=1, busy_timeout=30) as store:
        yield fill(store)


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers() as workers:
        yield workers


def be_slow() -> None:
    time.sleep(0.02)  # an entry that takes long to look at


class Stop:
    """Holds a read in its middle until it may go on."""

    def __init__(self, rows: Rows, thread_of: Workers | None = None) -> None:
        self.in_the_middle = threading.Event()
        self.may_go_on = threading.Event()
        rows.look = self._look

    def _look(self) -> None:
        self.in_the_middle.set()
        assert self.may_go_on.wait(10)

    def reached(self) -> None:
        assert self.in_the_middle.wait(10)


@pytest.mark.parametrize("name", sorted(TIMED))
def test_a_read_that_takes_too_long_is_stopped(store: Storage, rows: Rows, name: str) -> None:
    rows.look = be_slow
    for timeout in (0.01, timedelta(milliseconds=10)):
        with pytest.raises(StorageTimeoutError, match="timeout"):
            TIMED[name](store, timeout=timeout)
    rows.look = lambda: None
    assert store.count(WANTED, timeout=60) == 0
    assert store.count(timeout=60) == 60
    assert len(store.query(timeout=60)) == 60


@pytest.mark.parametrize("name", sorted(TIMED))
def test_time_that_is_over_already_is_too_long(store: Storage, name: str) -> None:
    with pytest.raises(StorageTimeoutError):
        TIMED[name](store, timeout=0)
    assert TIMED[name](store) in (0, []) or len(TIMED[name](store)) == 0


@pytest.mark.parametrize("wrong", [-1, math.nan, "1", True, [1], timedelta(seconds=-1)], ids=repr)
def test_a_timeout_that_is_none_is_refused(store: Storage, wrong: Any) -> None:
    for call in (store.query, store.count):
        with pytest.raises(InvalidValueError, match="timeout"):
            call(timeout=wrong)


def test_what_was_stopped_limits_nothing_afterwards(one_reader: Storage, rows: Rows) -> None:
    for _ in range(5):
        rows.look = be_slow
        with pytest.raises(StorageTimeoutError):
            one_reader.count(WANTED, timeout=0.01)
        rows.look = lambda: None
        assert one_reader.count(WANTED) == 0
        one_reader.set("000", {"deep": {}, "number": 0})
        assert one_reader.get("000") == {"deep": {}, "number": 0}
    assert one_reader.get_status().details["readers"] <= 1


def test_a_view_has_timeouts_too(store: Storage, rows: Rows) -> None:
    rows.look = be_slow
    with pytest.raises(StorageTimeoutError):
        store.namespace("default").query(WANTED, timeout=0.01)


# ---- in transactions


@pytest.mark.parametrize("name", sorted(TIMED))
def test_a_transaction_survives_a_read_that_was_stopped(store: Storage, rows: Rows, name: str) -> None:
    with store.transaction() as tx:
        tx.set("written", 1)
        rows.look = be_slow
        with pytest.raises(StorageTimeoutError):
            TIMED[name](tx, timeout=0.01)
        with tx.transaction() as inner:
            inner.set("nested", 1)
            with pytest.raises(StorageTimeoutError):
                TIMED[name](inner, timeout=0.01)
        rows.look = lambda: None
        assert tx.get_many(["written", "nested"]) == {"written": 1, "nested": 1}
        assert tx.count(WANTED) == 0
        tx.set("later", 1)
    assert store.count() == 63


def test_a_snapshot_survives_a_read_that_was_stopped(store: Storage, rows: Rows, workers: Workers) -> None:
    with store.transaction(read_only=True) as tx:
        rows.look = be_slow
        with pytest.raises(StorageTimeoutError):
            tx.query(WANTED, timeout=0.01)
        rows.look = lambda: None
        if store.get_status().details.get("journal_mode") != "delete":
            workers.one().do(lambda: store.set("new", 1))
        assert tx.count() == 60


def write_and_read_for_long(tx: Transaction) -> None:
    with tx.transaction() as inner:
        inner.set("undone", 1)
        inner.count(WANTED, timeout=0.01)


def test_a_savepoint_around_a_stopped_read_can_be_undone(store: Storage, rows: Rows) -> None:
    with store.transaction() as tx:
        tx.set("kept", 1)
        rows.look = be_slow
        with pytest.raises(StorageTimeoutError):
            write_and_read_for_long(tx)
        rows.look = lambda: None
    assert store.get_many(["kept", "undone"]) == {"kept": 1}


# ---- cancelled by somebody else


def test_a_cancelled_read_stops(store: Storage, rows: Rows, workers: Workers) -> None:
    stop, limit = Stop(rows), Limit()

    def read() -> object:
        with limit:
            return store.count(WANTED)

    future = workers.one().start(read)
    stop.reached()
    limit.cancel()
    stop.may_go_on.set()
    error = error_of(future)
    assert isinstance(error, StorageTimeoutError)
    assert "cancelled" in str(error)
    assert store.count(WANTED) == 0


def test_a_read_whose_limit_is_cancelled_before_does_not_begin(store: Storage, rows: Rows) -> None:
    limit = Limit()
    limit.cancel()
    seen: list[int] = []
    rows.look = lambda: seen.append(1)
    with pytest.raises(StorageTimeoutError, match="cancelled"), limit:
        store.count(WANTED)
    assert seen == []
    assert store.count(WANTED) == 0


def test_cancelling_one_read_leaves_the_others_alone(store: Storage, rows: Rows, workers: Workers) -> None:
    if store._engine.backend == "memory":
        pytest.skip("one read at a time")
    both, may_go_on = threading.Barrier(3), threading.Event()
    paused = threading.local()

    def pause_once() -> None:
        if not hasattr(paused, "done"):
            paused.done = True
            both.wait(10)
            assert may_go_on.wait(10)

    rows.look = pause_once
    limits = [Limit(), Limit()]

    def read(limit: Limit) -> int:
        with limit:
            return store.count(WANTED)

    futures = [workers.one().start(lambda limit=limit: read(limit)) for limit in limits]  # type: ignore[misc]
    both.wait(10)
    limits[0].cancel()
    may_go_on.set()
    assert kinds(futures) == [StorageTimeoutError, None]
    assert result(futures[1]) == 0


def test_a_limit_that_comes_too_late_stops_nothing(one_reader: Storage, rows: Rows, workers: Workers) -> None:
    """The connection is somebody else's by then."""
    limit = Limit()
    with limit:
        assert one_reader.count(WANTED) == 0
    stop = Stop(rows)
    future = workers.one().start(lambda: one_reader.count(WANTED))
    stop.reached()
    limit.cancel()
    stop.may_go_on.set()
    assert result(future) == 0


def test_of_nested_limits_each_counts(store: Storage, rows: Rows) -> None:
    outer, inner = Limit(), Limit()
    seen: list[int] = []

    def cancel() -> None:
        seen.append(1)
        outer.cancel()

    rows.look = cancel
    with pytest.raises(StorageTimeoutError, match="cancelled"), outer, inner:
        store.count(WANTED, timeout=60)
    assert 0 < len(seen) < 60
    assert store.count(WANTED) == 0


def test_a_cancelled_read_in_a_transaction_leaves_it_open(store: Storage, rows: Rows, workers: Workers) -> None:
    with store.transaction() as tx:
        tx.set("written", 1)
        stop, limit = Stop(rows), Limit()

        def read() -> object:
            with limit:
                return tx.count(WANTED)

        future = workers.one().start(read)
        stop.reached()
        limit.cancel()
        stop.may_go_on.set()
        assert isinstance(error_of(future), StorageTimeoutError)
        tx.set("later", 1)
    assert store.count() == 62


# ---- waiting for a connection


def test_who_waits_for_the_connection_of_a_read_that_is_stopped_gets_it(
    one_reader: Storage, rows: Rows, workers: Workers
) -> None:
    stop, limit = Stop(rows), Limit()

    def read() -> object:
        with limit:
            return one_reader.count(WANTED)

    stopped = workers.one().start(read)
    stop.reached()
    started = threading.Event()

    def read_too() -> int:
        started.set()
        one_reader.get("001")
        return one_reader.count()

    others = [worker.start(read_too) for worker in workers.some(3)]
    assert started.wait(10)
    limit.cancel()
    stop.may_go_on.set()
    assert isinstance(error_of(stopped), StorageTimeoutError)
    for other in others:
        assert result(other) == 60


def test_a_timeout_bounds_the_wait_for_a_connection(one_reader: Storage, workers: Workers) -> None:
    with one_reader.transaction(read_only=True) as tx:
        tx.get("001")
        for name in sorted(TIMED):
            future = workers.one().start(lambda name=name: TIMED[name](one_reader, timeout=0.02))  # type: ignore[misc]
            assert isinstance(error_of(future), StorageTimeoutError)
    assert one_reader.count() == 60


def test_busy_timeout_bounds_it_where_that_is_shorter(tmp_path: Path, workers: Workers) -> None:
    with open_storage(tmp_path / "store.db", max_readers=1, busy_timeout=0.02) as store:
        with store.transaction(read_only=True) as tx:
            tx.get("001")
            future = workers.one().start(lambda: store.count(timeout=60))
            assert isinstance(error_of(future), StorageBusyError)
        assert store.count(timeout=60) == 0
