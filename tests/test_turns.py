"""Hazard: who runs passes who sleeps, and somebody is passed for too long, or is never woken though it is its turn."""

from __future__ import annotations

import contextlib
import gc
import random
import threading
import time
from collections import deque
from itertools import pairwise
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest
from stepping import PATIENCE_SECONDS, Held, Workers, error_of, kinds, line_of, result, until

from mycelia_storage import Storage, StorageBusyError, StorageClosedError, open_storage
from mycelia_storage.engines import turns
from mycelia_storage.engines.limits import hurrying
from mycelia_storage.engines.line import Line, Ticket
from mycelia_storage.engines.sqlite import readers as readers_module
from mycelia_storage.engines.sqlite import writer as writer_module
from mycelia_storage.engines.sqlite.engine import SQLiteEngine
from mycelia_storage.sharing import Call
from mycelia_storage.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from stepping import Worker

    from mycelia_storage.engines.sqlite.readers import Readers

# Longer than any test may take: who sleeps for this long by mistake is found by `result`.
FOR_EVER = 3600.0


class Clock:
    """The time of those who wait: it stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0
        # What is done when a thread asks for the time: the last one of them at the next time.
        self.hooks: dict[int, list[Callable[[], None]]] = {}

    def __call__(self) -> float:
        hooks = self.hooks.get(threading.get_ident())
        if hooks:
            hooks.pop()()
        return self.now


class Bell:
    """In place of that of a waiter, who sleeps on until the test wakes it, whatever rings and however late it is."""

    made: SimpleQueue[Bell]

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._may_wake = threading.Event()
        self.raises: BaseException | None = None

    def acquire(self, timeout: float | None = None) -> bool:
        if timeout is None:
            return self._lock.acquire()
        if not self._may_wake.is_set():
            self.made.put(self)  # now it sleeps
            assert self._may_wake.wait(PATIENCE_SECONDS)
        if self.raises is not None:
            raise self.raises
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        self._lock.release()

    def is_ringing(self) -> bool:
        return not self._lock.locked()

    def wake(self) -> None:
        self._may_wake.set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(turns, "monotonic", clock)
    return clock


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Future[Any]], Bell]]:
    """Gives the bell of a call that has gone to sleep in line; and none of them wakes up by itself."""
    bells: list[Bell] = []

    def bell_of(future: Future[Any]) -> Bell:
        until(lambda: future.done() or not Bell.made.empty(), "somebody asleep")
        assert not future.done(), "it did not wait"
        bells.append(Bell.made.get())
        return bells[-1]

    monkeypatch.setattr(Bell, "made", SimpleQueue(), raising=False)
    monkeypatch.setattr(turns, "Lock", Bell)
    monkeypatch.setattr(turns, "_LONGEST_SLEEP", FOR_EVER)
    yield bell_of
    while not Bell.made.empty():
        bells.append(Bell.made.get())
    for bell in bells:
        bell.wake()


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers() as workers:
        yield workers


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Storage]:
    """One connection to read by."""
    with open_storage(tmp_path / "store.db", max_readers=1, busy_timeout=60) as store:
        store.set("a", 1)
        store.get("a")
        yield store


def open_store(directory: Path, options: dict[str, Any] | None) -> Storage:
    """A file with these options, or one in memory."""
    return open_storage("memory:") if options is None else open_storage(directory / "store.db", **options)


def readers_of(store: Storage) -> Readers:
    engine = store._engine
    assert isinstance(engine, SQLiteEngine)
    return engine.readers


def begin_to_read(store: Storage, worker: Worker) -> Callable[[], None]:
    """A worker has a connection from now on; gives what lets go of it."""
    snapshot = worker.do(lambda: store.transaction(read_only=True).__enter__())
    return lambda: worker.do(snapshot.rollback)


def rescue(futures: list[Future[Any]]) -> None:
    """Wake all who sleep, again and again: so that a test that has failed comes to its end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not all(future.done() for future in futures) and time.monotonic() < deadline:
        for waiter in [found for found in gc.get_objects() if isinstance(found, turns.Waiter)]:
            with contextlib.suppress(RuntimeError):
                waiter.bell.release()


# ---- who may pass


def test_a_read_passes_one_that_is_called_and_still_asleep(
    store: Storage, workers: Workers, clock: Clock, asleep: Any
) -> None:
    let_go = begin_to_read(store, workers.one())
    sleeper = workers.one().start(lambda: store.get("a"))
    bell = asleep(sleeper)
    assert not bell.is_ringing()
    let_go()
    assert bell.is_ringing()
    assert [store.get("a"), store.has("a"), store.get_many(["a"]), store.count()] == [1, True, {"a": 1}, 1]
    assert not sleeper.done()
    bell.wake()
    assert result(sleeper) == 1


def test_a_write_passes_one_that_is_called_and_still_asleep(
    store: Storage, workers: Workers, clock: Clock, asleep: Any
) -> None:
    with Held(store) as held:
        sleeper = workers.one().start(lambda: store.set("sleeper", 1))
        bell = asleep(sleeper)
        held.let_go()
    assert bell.is_ringing()
    store.set("a", 2)
    assert store.delete("a")
    store.set("b", 2)
    assert store.list_keys() == ["b"]
    bell.wake()
    result(sleeper)
    assert store.list_keys() == ["b", "sleeper"]


def test_who_passes_and_may_share_its_commit_takes_those_along_whom_it_passes(
    store: Storage, workers: Workers, clock: Clock, asleep: Any
) -> None:
    with Held(store) as held:
        sleepers = []
        for key in ("first", "second"):
            sleepers.append(workers.one().start(lambda key=key: store.set(key, 1)))  # type: ignore[misc]
            asleep(sleepers[-1])
        held.let_go()
    assert store.increment("n") == 1
    assert store.list_keys() == ["a", "first", "n", "second"]
    assert not any(sleeper.done() for sleeper in sleepers)


# ---- for how long


@pytest.mark.parametrize("kind", ["read", "write"])
@pytest.mark.parametrize(("passing", "seconds"), [(None, 0.005), (1000.0, 30.0)], ids=["5 ms", "half of its patience"])
def test_who_was_passed_for_so_long_is_handed_over_to(
    tmp_path: Path,
    workers: Workers,
    clock: Clock,
    asleep: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    passing: float | None,
    seconds: float,
) -> None:
    if passing is not None:
        for module in (readers_module, writer_module):
            monkeypatch.setattr(module, "PASSING", passing)
    with open_storage(tmp_path / "store.db", max_readers=1, busy_timeout=60) as store:

        def call() -> Any:
            return store.get("a") if kind == "read" else store.set("a", 1)

        store.set("a", 1)
        if kind == "read":
            let_go = begin_to_read(store, workers.one())
            sleeper = workers.one().start(call)
            bell = asleep(sleeper)
            let_go()
        else:
            with Held(store) as held:
                sleeper = workers.one().start(call)
                bell = asleep(sleeper)
                held.let_go()
        clock.now += seconds * 0.99
        call()
        clock.now += seconds * 0.02
        late = workers.one().start(call)
        late_bell = asleep(late)
        assert not late_bell.is_ringing()  # what it waits for is not free: it belongs to who sleeps
        bell.wake()
        result(sleeper)
        assert late_bell.is_ringing()
        late_bell.wake()
        result(late)


def test_nobody_is_passed_for_longer_than_one_behind_it_may_be(
    tmp_path: Path, workers: Workers, clock: Clock, asleep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers_module, "PASSING", 1000.0)
    with open_storage(tmp_path / "store.db", max_readers=1, busy_timeout=FOR_EVER) as store:
        store.set("a", 1)
        let_go = begin_to_read(store, workers.one())
        calls: list[Callable[[], Any]] = [lambda: store.get("a"), lambda: store.count(timeout=60)]
        sleepers, bells = [], []
        for call in calls:
            sleepers.append(workers.one().start(call))
            bells.append(asleep(sleepers[-1]))
        let_go()
        clock.now += 29
        assert store.get("a") == 1
        clock.now += 2
        late = workers.one().start(lambda: store.get("a"))
        bells.append(asleep(late))
        for bell in bells:
            bell.wake()
        assert [result(future) for future in [*sleepers, late]] == [1, 1, 1]


# ---- who is passed by nobody, and who passes nobody


def test_a_transaction_is_passed_by_nobody(store: Storage, workers: Workers, clock: Clock, asleep: Any) -> None:
    order: list[str] = []

    def change() -> None:
        with store.transaction() as tx:
            tx.set("a", "transaction")
            order.append("transaction")

    def write() -> None:
        store.set("a", "write")
        order.append("write")

    with Held(store) as held:
        sleeper = workers.one().start(change)
        bell = asleep(sleeper)
        held.let_go()
    writes: list[Future[Any]] = [workers.one().start(write), workers.one().start(lambda: store.increment("n"))]
    bells = [asleep(future) for future in writes]
    bell.wake()
    result(sleeper)
    for each in bells:
        each.wake()
    assert kinds(writes) == [None, None]
    assert order == ["transaction", "write"]


@pytest.mark.parametrize("comes", ["before the write is called", "after that"])
def test_a_write_that_stands_before_a_transaction_is_passed_by_nobody(
    store: Storage, workers: Workers, clock: Clock, asleep: Any, comes: str
) -> None:
    def change() -> None:
        with store.transaction() as tx:
            tx.set("a", "transaction")

    with Held(store) as held:
        futures: list[Future[Any]] = [workers.one().start(lambda: store.set("a", "first"))]
        bells = [asleep(futures[0])]
        if comes == "after that":
            held.let_go()
            store.set("a", "passes")
        futures.append(workers.one().start(change))
        bells.append(asleep(futures[1]))
    futures.append(workers.one().start(lambda: store.set("a", "last")))
    bells.append(asleep(futures[2]))
    for future, bell in zip(futures, bells, strict=True):
        assert not future.done()
        bell.wake()
        result(future)
    assert store.get("a") == "last"


def test_a_write_that_is_put_back_is_passed_by_nobody(clock: Clock, workers: Workers, asleep: Any) -> None:
    """Whoever took it along was interrupted; and a transaction has come meanwhile, which knows nothing of it."""
    line = Line(passing=60.0)
    assert line.acquire(0)
    taken: list[Ticket] = []
    tickets = [Ticket([Call(lambda verbs: Verbs.set(verbs, "a", 1))]), Ticket()]
    futures = [workers.one().start(lambda: line.wait(tickets[0], FOR_EVER))]
    bells = [asleep(futures[0])]
    line.take(taken, 10, durable=False)
    futures.append(workers.one().start(lambda: line.wait(tickets[1], FOR_EVER)))
    bells.append(asleep(futures[1]))
    line.put_back(taken)
    line.release()
    assert not line.try_to_pass()
    for ticket, future, bell in zip(tickets, futures, bells, strict=True):
        bell.wake()
        assert result(future)
        assert ticket.is_owner
        line.release()


@pytest.mark.parametrize(
    "options",
    [{"synchronous": "FULL"}, {"synchronous": "EXTRA"}, {"wal_mode": False}, None],
    ids=str,
)
@pytest.mark.parametrize("verb", ["set", "delete", "increment"])
def test_no_write_passes_where_each_commit_waits_for_the_disk_or_costs_nothing(
    tmp_path: Path, workers: Workers, clock: Clock, asleep: Any, options: dict[str, Any] | None, verb: str
) -> None:
    with open_store(tmp_path, options) as store:
        with Held(store) as held:
            sleeper = workers.one().start(lambda: store.set("a", 1))
            bell = asleep(sleeper)
            held.let_go()
        late = workers.one().start(lambda: store.set("b", 1) if verb == "set" else getattr(store, verb)("b"))
        late_bell = asleep(late)
        bell.wake()
        result(sleeper)
        late_bell.wake()
        result(late)


def test_what_is_durable_or_a_transaction_passes_nobody(
    store: Storage, workers: Workers, clock: Clock, asleep: Any
) -> None:
    def change() -> None:
        with store.transaction() as tx:
            tx.set("t", 1)

    with Held(store) as held:
        sleeper = workers.one().start(lambda: store.set("sleeper", 1))
        bell = asleep(sleeper)
        held.let_go()
    store.set("passes", 1)
    durable = workers.one().start(lambda: store.set("d", 1, durable=True))
    bells = [asleep(durable)]
    changing = workers.one().start(change)
    bells.append(asleep(changing))
    bell.wake()
    result(sleeper)
    for each in bells:
        each.wake()
    assert (error_of(durable), error_of(changing)) == (None, None)


def test_a_snapshot_which_may_stay_passes_no_read(store: Storage, workers: Workers, clock: Clock, asleep: Any) -> None:
    let_go = begin_to_read(store, workers.one())
    sleeper = workers.one().start(lambda: store.get("a"))
    bell = asleep(sleeper)
    let_go()
    assert store.get("a") == 1
    late = workers.one().start(store.transaction(read_only=True).__enter__)
    late_bell = asleep(late)
    bell.wake()
    assert result(sleeper) == 1
    late_bell.wake()
    result(late).rollback()


def test_the_child_of_a_fork_lets_pass_as_its_parent_does(tmp_path: Path, workers: Workers, clock: Clock) -> None:
    with open_storage(tmp_path / "store.db") as store:
        before = line_of(store)
        store._engine.after_fork(in_child=True, is_ready=store._engine.before_fork())  # type: ignore[attr-defined]
        assert line_of(store) is not before
        assert line_of(store)._passing == before._passing == turns.PASSING
        store.set("a", 1)


# ---- who was called and does not come


def test_of_two_connections_that_come_back_each_goes_to_one_who_waits(
    tmp_path: Path, workers: Workers, clock: Clock, asleep: Any
) -> None:
    with open_storage(tmp_path / "store.db", max_readers=2) as store:
        store.set("a", 1)
        let_go = [begin_to_read(store, workers.one()) for _ in range(2)]
        futures, bells = [], []
        for _ in range(3):
            futures.append(workers.one().start(store.transaction(read_only=True).__enter__))
            bells.append(asleep(futures[-1]))
        for give_back in let_go:
            give_back()
        assert [bell.is_ringing() for bell in bells] == [True, False, False]
        for number in range(2):
            assert bells[number].is_ringing()
            bells[number].wake()
            result(futures[number])
        assert not bells[2].is_ringing()
        result(futures[0]).rollback()
        assert bells[2].is_ringing()
        bells[2].wake()
        for future in futures[1:]:
            result(future).rollback()


@pytest.mark.parametrize("kind", ["read", "write"])
def test_ctrl_c_in_one_that_was_called_calls_the_next(
    store: Storage, workers: Workers, clock: Clock, asleep: Any, kind: str
) -> None:
    def call() -> Any:
        return store.get("a") if kind == "read" else store.set("a", 1)

    def line_up() -> None:
        for _ in range(2):
            futures.append(workers.one().start(call))
            bells.append(asleep(futures[-1]))

    futures: list[Future[Any]] = []
    bells: list[Bell] = []
    if kind == "read":
        let_go = begin_to_read(store, workers.one())
        line_up()
        let_go()
    else:
        with Held(store) as held:
            line_up()
            held.let_go()
    assert [bell.is_ringing() for bell in bells] == [True, False]
    bells[0].raises = KeyboardInterrupt()
    bells[0].wake()
    assert isinstance(error_of(futures[0]), KeyboardInterrupt)
    assert bells[1].is_ringing()
    bells[1].wake()
    result(futures[1])


@pytest.mark.parametrize("kind", ["read", "transaction"])
def test_ctrl_c_in_one_that_was_handed_what_it_waits_for_gives_it_back(
    store: Storage, workers: Workers, clock: Clock, asleep: Any, kind: str
) -> None:
    def change() -> None:
        with store.transaction() as tx:
            tx.set("a", 1)

    if kind == "read":
        let_go = begin_to_read(store, workers.one())
        sleeper: Future[Any] = workers.one().start(lambda: store.get("a"))
        bell = asleep(sleeper)
        clock.now += 1.0
        let_go()
    else:
        with Held(store) as held:
            sleeper = workers.one().start(change)
            bell = asleep(sleeper)
            held.let_go()
    bell.raises = KeyboardInterrupt()
    bell.wake()
    assert isinstance(error_of(sleeper), KeyboardInterrupt)
    next_one: Future[Any] = workers.one().start((lambda: store.get("a")) if kind == "read" else change)
    until(lambda: next_one.done() or not Bell.made.empty(), "the next one")
    assert next_one.done()
    result(next_one)


class InterruptsWhoServes(deque[Any]):
    """Ctrl-C comes when somebody is served, and still stands in line."""

    is_armed = True

    def popleft(self) -> Any:
        if self.is_armed:
            self.is_armed = False
            raise KeyboardInterrupt
        return super().popleft()


@pytest.mark.parametrize("comes_to", ["who gives it back", "both"])
@pytest.mark.parametrize("kind", ["increment", "transaction"])
def test_ctrl_c_in_the_middle_of_handing_over_loses_no_lock_and_does_nothing_twice(
    store: Storage,
    workers: Workers,
    clock: Clock,
    asleep: Any,
    monkeypatch: pytest.MonkeyPatch,
    comes_to: str,
    kind: str,
) -> None:
    def call() -> None:
        if kind == "increment":
            store.increment("n")
        else:
            store.run_transaction(lambda tx: tx.increment("n"))

    monkeypatch.setattr(turns, "_LONGEST_SLEEP", 0.001)
    line = line_of(store)
    assert line.try_acquire()
    sleeper = workers.one().start(call)
    bell = asleep(sleeper)
    clock.now += 1.0
    line._waiting = InterruptsWhoServes(line._waiting)
    with pytest.raises(KeyboardInterrupt):
        line.release()
    if comes_to == "both":
        bell.raises = KeyboardInterrupt()
    bell.wake()
    assert isinstance(error_of(sleeper), KeyboardInterrupt if comes_to == "both" else type(None))
    next_one = workers.one().start(call)
    until(lambda: next_one.done() or not Bell.made.empty(), "the next one")
    assert next_one.done()
    result(next_one)
    assert store.get("n") == (1 if comes_to == "both" else 2)


class GivenBackBefore(deque[Any]):
    """Just before somebody stands in line, what it will wait for is given back; and nobody was there to be told."""

    give_back: Callable[[], None]

    def append(self, item: Any) -> None:
        self.give_back()
        super().append(item)


@pytest.mark.parametrize("kind", ["read", "write", "transaction"])
def test_who_comes_just_when_it_is_given_back_is_not_left_waiting(
    store: Storage, workers: Workers, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(turns, "_LONGEST_SLEEP", FOR_EVER)
    line, readers = line_of(store), readers_of(store)
    if kind == "read":
        cursor = readers.lend()
        readers._waiting = given_back = GivenBackBefore()
        given_back.give_back = lambda: readers.give_back(cursor)
    else:
        assert line.try_acquire()
        line._waiting = given_back = GivenBackBefore()
        given_back.give_back = line.release
    calls: dict[str, Callable[[], Any]] = {
        "read": lambda: store.get("a"),
        "write": lambda: store.set("a", 2),
        "transaction": lambda: store.run_transaction(lambda tx: tx.set("a", 2)),
    }
    future = workers.one().start(calls[kind])
    try:
        result(future)
    finally:
        rescue([future])


def test_one_that_was_called_and_gives_up_calls_the_next(clock: Clock, workers: Workers, asleep: Any) -> None:
    """Somebody passes it and gives the lock back just when it has looked for the last time."""
    line = Line(passing=0.005)
    assert line.acquire(0)
    tickets = [Ticket([Call(lambda verbs: Verbs.set(verbs, "a", 1))]) for _ in range(2)]
    impatient = workers.one()
    futures = [impatient.start(lambda: line.wait(tickets[0], 1.0))]
    bells = [asleep(futures[0])]
    futures.append(workers.one().start(lambda: line.wait(tickets[1], FOR_EVER)))
    bells.append(asleep(futures[1]))
    line.release()
    assert line.try_to_pass()

    def too_late() -> None:
        line.release()
        clock.now += 2.0

    # It asks for the time when it looks who is next, and then whether it is late.
    clock.hooks[impatient._thread.ident or 0] = [too_late, lambda: None]
    bells[0].wake()
    assert result(futures[0]) is False
    assert bells[1].is_ringing()
    bells[1].wake()
    assert result(futures[1]) is True
    assert tickets[1].is_owner


def test_who_has_been_passed_does_not_sleep_before_what_is_free(
    store: Storage, workers: Workers, asleep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is called once, and whoever passed it has nothing more to do."""
    naps: list[float] = []
    line = line_of(store)
    line._passing = 60.0

    def acquire(bell: Bell, timeout: float | None = None) -> bool:
        if timeout is None:
            return bell._lock.acquire()
        naps.append(timeout)
        if len(naps) == 1:
            Bell.made.put(bell)
            assert bell._may_wake.wait(PATIENCE_SECONDS)
            return bell._lock.acquire(timeout=PATIENCE_SECONDS)
        if len(naps) == 6:
            line._owned.release()
        return False

    with Held(store) as held:
        monkeypatch.setattr(Bell, "acquire", acquire)
        sleeper = workers.one().start(lambda: store.set("a", 1))
        bell = asleep(sleeper)
        held.let_go()
    assert line.try_to_pass()  # given back without a word to anybody, see above
    bell.wake()
    result(sleeper)
    assert len(naps) == 6
    assert naps[1] <= turns._FIRST_NAP
    assert all(3.9 < after / before < 4.1 for before, after in pairwise(naps[1:]))


# ---- connections that go away


def test_of_a_discarded_connection_somebody_opens_another_where_an_event_loop_did_not(
    store: Storage, workers: Workers, clock: Clock, asleep: Any
) -> None:
    readers = readers_of(store)
    cursor = readers.lend()
    sleeper = workers.one().start(lambda: store.get("a"))
    bell = asleep(sleeper)
    readers.discard(cursor)
    hurrying.hurry_until = time.monotonic() + FOR_EVER
    try:
        with pytest.raises(StorageBusyError):
            store.get("a")
    finally:
        hurrying.hurry_until = 0.0
    bell.wake()
    assert result(sleeper) == 1


def test_of_a_discarded_connection_the_next_opens_another_where_the_first_could_not(
    store: Storage, workers: Workers, clock: Clock, asleep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = readers_of(store)
    cursor = readers.lend()
    futures, bells = [], []
    for _ in range(2):
        futures.append(workers.one().start(lambda: store.get("a")))
        bells.append(asleep(futures[-1]))
    open_reader, failures = readers.open, iter([ZeroDivisionError()])

    def fail_once() -> Any:
        for failure in failures:
            raise failure
        return open_reader()

    monkeypatch.setattr(readers, "open", fail_once)
    readers.discard(cursor)
    for bell in bells:
        bell.wake()
    assert kinds(futures) == [ZeroDivisionError, None]


def test_who_waits_for_a_connection_that_a_fork_closes_opens_its_own(
    store: Storage, workers: Workers, clock: Clock, asleep: Any
) -> None:
    engine = store._engine
    assert isinstance(engine, SQLiteEngine)
    cursor = engine.readers.lend()
    sleeper = workers.one().start(lambda: store.get("a"))
    bell = asleep(sleeper)
    engine.readers.give_back(cursor)
    assert engine.before_fork()
    engine.after_fork(in_child=False, is_ready=True)
    bell.wake()
    assert result(sleeper) == 1


@pytest.mark.parametrize("is_back", [True, False])
def test_who_waits_for_a_connection_is_told_at_once_that_the_store_is_closed(
    tmp_path: Path, workers: Workers, clock: Clock, asleep: Any, is_back: bool
) -> None:
    store = open_storage(tmp_path / "store.db", max_readers=1, busy_timeout=0.02)
    store.set("a", 1)
    readers = readers_of(store)
    cursor = readers.lend()
    futures, bells = [], []
    for _ in range(2):
        futures.append(workers.one().start(lambda: store.get("a")))
        bells.append(asleep(futures[-1]))
    if is_back:
        readers.give_back(cursor)
    store.close()
    for bell in bells:
        bell.wake()
    assert kinds(futures) == [StorageClosedError] * 2
    if not is_back:
        readers.discard(cursor)


# ---- destructors


class CollectsBehind:
    """The garbage collector may run behind any call; here it does when a lock was not to be had, or a reader was."""

    def __init__(self, real: Any, is_armed: Callable[[], object]) -> None:
        self._real = real
        self._is_armed = is_armed
        for name in ("locked", "release", "put", "get", "empty"):
            if hasattr(real, name):
                setattr(self, name, getattr(real, name))

    def acquire(self, *, blocking: bool) -> bool:
        is_mine: bool = self._real.acquire(blocking=blocking)
        if not is_mine and self._is_armed():
            gc.collect()
        return is_mine

    def get_nowait(self) -> Any:
        found = self._real.get_nowait()
        if self._is_armed():
            gc.collect()
        return found


def forget(store: Storage, worker: Worker, *, read_only: bool) -> None:
    """A transaction that nobody has any more, and that only the garbage collector finds."""

    def begin() -> None:
        forgotten: list[Any] = [store.transaction(read_only=read_only).__enter__()]
        forgotten.append(forgotten)

    worker.do(begin)


@pytest.fixture
def no_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("options", [{"synchronous": "FULL"}, None], ids=str)
def test_a_forgotten_transaction_that_is_collected_while_the_lock_is_handed_over_hangs_nobody(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any] | None
) -> None:
    monkeypatch.setattr(turns, "_LONGEST_SLEEP", FOR_EVER)
    with open_store(tmp_path, options) as store:
        line = line_of(store)
        forget(store, workers.one(), read_only=False)
        monkeypatch.setattr(line, "_owned", CollectsBehind(line._owned, lambda: line._waiting))
        result(workers.one().start(lambda: store.set("a", 1)))
        assert store.get("a") == 1


@pytest.mark.usefixtures("no_collections")
def test_a_forgotten_snapshot_that_is_collected_while_a_reader_is_handed_over_hangs_nobody(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch, asleep: Any
) -> None:
    monkeypatch.setattr(readers_module, "PASSING", 0.0)
    with open_storage(tmp_path / "store.db", max_readers=2) as store:
        store.set("a", 1)
        readers = readers_of(store)
        let_go = begin_to_read(store, workers.one())
        forget(store, workers.one(), read_only=True)
        futures, bells = [], []
        for _ in range(2):
            futures.append(workers.one().start(lambda: store.get("a")))
            bells.append(asleep(futures[-1]))
        idle = readers._idle
        monkeypatch.setattr(readers, "_idle", CollectsBehind(idle, lambda: readers._waiting))
        let_go()
        for bell in bells:
            bell.wake()
        assert [result(future) for future in futures] == [1, 1]
        assert idle.qsize() == 2


# ---- everybody at once

_THREADS = 8
_CALLS = 700


def do_many_things(store: Storage, seed: int, barrier: threading.Barrier) -> int:
    """One thread's part; gives how often it has incremented."""
    choice = random.Random(seed)
    increments = 0
    barrier.wait(PATIENCE_SECONDS)
    for number in range(_CALLS):
        kind = choice.randrange(12)
        if kind < 3:
            store.get("a")
        elif kind == 3:
            with store.transaction(read_only=True) as tx:
                tx.get("a")
                tx.count()
        elif kind == 4:
            with store.transaction() as tx:
                tx.increment("n")
            increments += 1
        elif kind == 5:
            store.increment("n", durable=True)
            increments += 1
        elif kind == 6:
            calls_of_one = [Call(lambda verbs: Verbs.increment(verbs, "n")) for _ in range(3)]
            store._share(calls_of_one)
            increments += 3
        elif kind == 7:
            store.delete("b")
        elif kind == 8:
            store.set_many({"b": number, "c": seed})
        elif kind == 9:
            store.increment("n")
            increments += 1
        else:
            store.set("a", number)
    return increments


@pytest.mark.parametrize("passing", [0.0, 0.0001, turns.PASSING, 0.05])
def test_nobody_sleeps_on_when_its_turn_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passing: float
) -> None:
    """Whoever is not woken sleeps for ever here, and so is found."""
    barrier = threading.Barrier(_THREADS)
    monkeypatch.setattr(turns, "_LONGEST_SLEEP", FOR_EVER)
    for module in (readers_module, writer_module):
        monkeypatch.setattr(module, "PASSING", passing)
    with (
        open_storage(tmp_path / "store.db", max_readers=2, busy_timeout=FOR_EVER) as store,
        Workers() as workers,
    ):
        store.set("n", 0)
        futures = [
            workers.one().start(lambda seed=seed: do_many_things(store, seed, barrier))  # type: ignore[misc]
            for seed in range(_THREADS)
        ]
        try:
            increments = [result(future) for future in futures]
        finally:
            rescue(futures)
        assert store.get("n") == sum(increments)
        assert (len(line_of(store)._waiting), len(readers_of(store)._waiting)) == (0, 0)
