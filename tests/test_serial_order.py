"""Random interleavings of transactions and single verbs by several threads, held against a serial model.

Whatever came of them must be what some serial order gives, in which nobody who had ended comes after somebody who had
not begun. The test says who takes the next step, and knows who stands in line; the scheduler has no say in it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from stepping import Workers, error_of, until, waiting

from mycelia_storage import Storage, StorageBusyError, StorageError, open_storage

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from stepping import Worker

    from mycelia_storage import Transaction

State: TypeAlias = dict[str, int]
Operation: TypeAlias = tuple[Any, ...]

KEYS = ("a", "b", "c")


class Refused(Exception):  # noqa: N818 - an outcome, not a mistake
    """The model's way to say that a verb raises."""


def on_store(verbs: Any, operation: Operation) -> Any:
    """What a verb gives, or the name of the error that it raises."""
    name, *arguments = operation
    try:
        return CALLS[name](verbs, *arguments)
    except StorageError as error:
        return type(error).__name__


def on_model(state: State, operation: Operation) -> Any:
    """The same by the model, which it changes."""
    name, *arguments = operation
    try:
        return MODEL[name](state, *arguments)
    except Refused as error:
        return str(error)


CALLS: dict[str, Callable[..., Any]] = {
    "get": lambda verbs, key: verbs.get(key),
    "get_many": lambda verbs: verbs.get_many(KEYS),
    "list_keys": lambda verbs: verbs.list_keys(),
    "values": lambda verbs: verbs.query().values(),
    "count": lambda verbs: verbs.count(),
    "set": lambda verbs, key, value: verbs.set(key, value) > 0,
    "add": lambda verbs, key, value: verbs.add(key, value),
    "set_new": lambda verbs, key, value: verbs.set(key, value, overwrite=False) > 0,
    "set_at_zero": lambda verbs, key, value: verbs.set(key, value, if_version=0) > 0,
    "set_many": lambda verbs, value: sorted(verbs.set_many(dict.fromkeys(KEYS, value))),
    "increment": lambda verbs, key: verbs.increment(key),
    "modify": lambda verbs, key: verbs.modify(key, lambda value: value * 2 + 1),
    "delete": lambda verbs, key: verbs.delete(key),
    "take": lambda verbs, key: verbs.take(key).value,
    "clear": lambda verbs: verbs.clear(),
}


def _set(state: State, key: str, value: int) -> bool:
    state[key] = value
    return True


def _absent(state: State, key: str, error: str) -> None:
    if key in state:
        raise Refused(error)


def _present(state: State, key: str) -> None:
    if key not in state:
        raise Refused("KeyNotFoundError")


def _set_new(state: State, key: str, value: int) -> bool:
    _absent(state, key, "KeyExistsError")
    return _set(state, key, value)


def _set_at_zero(state: State, key: str, value: int) -> bool:
    _absent(state, key, "VersionConflictError")
    return _set(state, key, value)


def _set_many(state: State, value: int) -> list[str]:
    state.update(dict.fromkeys(KEYS, value))
    return list(KEYS)


def _increment(state: State, key: str) -> int:
    state[key] = state.get(key, 0) + 1
    return state[key]


def _modify(state: State, key: str) -> int:
    _present(state, key)
    state[key] = state[key] * 2 + 1
    return state[key]


def _take(state: State, key: str) -> int:
    _present(state, key)
    return state.pop(key)


def _clear(state: State) -> int:
    count = len(state)
    state.clear()
    return count


MODEL: dict[str, Callable[..., Any]] = {
    "get": lambda state, key: state.get(key),
    "get_many": lambda state: {key: state[key] for key in KEYS if key in state},
    "list_keys": sorted,
    "values": lambda state: [state[key] for key in sorted(state)],
    "count": len,
    "set": _set,
    "add": lambda state, key, value: key not in state and _set(state, key, value),
    "set_new": _set_new,
    "set_at_zero": _set_at_zero,
    "set_many": _set_many,
    "increment": _increment,
    "modify": _modify,
    "delete": lambda state, key: state.pop(key, None) is not None,
    "take": _take,
    "clear": _clear,
}

_keys, _values = st.sampled_from(KEYS), st.integers(0, 9)
READS = st.one_of(
    st.tuples(st.just("get"), _keys),
    st.sampled_from(["get_many", "list_keys", "values", "count"]).map(lambda name: (name,)),
)
WRITES = st.one_of(
    st.tuples(st.sampled_from(["set", "add", "set_new", "set_at_zero"]), _keys, _values),
    st.tuples(st.sampled_from(["increment", "modify", "delete", "take"]), _keys),
    st.tuples(st.just("set_many"), _values),
    st.just(("clear",)),
)
OPERATIONS = READS | WRITES


class Unit:
    """A transaction, or a verb that is one by itself: what it did and saw, and when it began and ended."""

    def __init__(self, began: int) -> None:
        self.began = began
        self.ended: int | None = None
        self.steps: list[tuple[Operation, Any]] = []
        self.is_kept = False

    def replay(self, state: State) -> State | None:
        """The state after it; None where it would have seen something else."""
        points: list[State] = []
        now = state.copy()
        for operation, outcome in self.steps:
            if operation[0] == "savepoint":
                points.append(now.copy())
            elif operation[0] == "kept":
                points.pop()
            elif operation[0] == "undone":
                now = points.pop()
            elif on_model(now, operation) != outcome:
                return None
        return now if self.is_kept else state

    def __repr__(self) -> str:
        fate = "kept" if self.is_kept else "undone"
        return f"{self.began}-{self.ended} {fate}: {self.steps}"


def serial_order(units: list[Unit]) -> list[Unit] | None:
    """An order of the units that explains what each of them saw; None where there is none."""
    hopeless: set[tuple[frozenset[int], tuple[tuple[str, int], ...]]] = set()

    def go_on(left: frozenset[int], state: State) -> list[Unit] | None:
        if not left:
            return []
        seen = left, tuple(sorted(state.items()))
        if seen in hopeless:
            return None
        first_end = min(ended for number in left if (ended := units[number].ended) is not None)
        for number in sorted(left):
            if units[number].began < first_end and (after := units[number].replay(state)) is not None:
                rest = go_on(left - {number}, after)
                if rest is not None:
                    return [units[number], *rest]
        hopeless.add(seen)
        return None

    return go_on(frozenset(range(len(units))), {})


class Actor:
    """One thread and what it is doing: nothing, waiting for a call to return, or inside a transaction."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.unit: Unit | None = None
        self.pending: tuple[str, Operation, Future[Any]] | None = None
        self.open: list[Transaction] = []
        self.is_writing = False

    @property
    def is_idle(self) -> bool:
        return self.unit is None


class Interleavings(RuleBasedStateMachine):
    """Three threads, each of which begins, goes on with or ends something of its own."""

    def open_store(self, directory: Path) -> Storage:
        raise NotImplementedError

    def seen_by(self, actor: Actor) -> Any:
        """What an actor inside a transaction uses."""
        return actor.open[-1]

    @initialize()
    def start(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mycelia-"))
        self.store = self.open_store(self.directory)
        self.workers = Workers()
        self.guest = self.workers.one()
        self.actors = [Actor(worker) for worker in self.workers.some(3)]
        self.units: list[Unit] = []
        self.time = 0

    # ---- what may happen

    # One rule: with several, Hypothesis would leave some of them out of most runs.
    @rule(who=st.integers(0, 2), choice=st.integers(0, 9), operation=OPERATIONS, flag=st.booleans())
    def go_on(self, who: int, choice: int, operation: Operation, flag: bool) -> None:
        able = [actor for actor in self.actors if not actor.pending]
        actor = able[who % len(able)]
        if actor.is_idle:
            if choice < 3:
                self.call(actor, "write", (), self.enter)
            elif choice < 6:
                self.call(actor, "read", (), lambda: self.enter(read_only=True))
            elif choice < 7:
                self.begin_without_waiting(actor)
            else:
                self.call(actor, "verb", operation, lambda: on_store(self.store, operation))
        elif choice < 7:
            self.use_the_transaction(actor, operation, by_guest=flag)
        elif choice < 8:
            self.nest(actor)
        else:
            self.end(actor, keep=flag, raising=choice == 8)

    def begin_without_waiting(self, actor: Actor) -> None:
        held = any(other.is_writing for other in self.actors)
        self.call(actor, "write", (), lambda: self.enter(wait=0))
        assert actor.is_idle == held, "the lock was held and is not, or the other way round"

    def use_the_transaction(self, actor: Actor, operation: Operation, *, by_guest: bool) -> None:
        assert actor.unit
        if not actor.is_writing and operation[0] not in READ_NAMES:
            operation = ("get_many",) if len(operation) == 1 else ("get", KEYS[len(actor.unit.steps) % 3])
        worker, verbs = self.guest if by_guest else actor.worker, self.seen_by(actor)
        actor.unit.steps.append((operation, worker.do(lambda: on_store(verbs, operation))))

    def nest(self, actor: Actor) -> None:
        assert actor.unit
        actor.open.append(actor.worker.do(lambda: actor.open[-1].transaction().__enter__()))
        actor.unit.steps.append((("savepoint",), None))

    def end(self, actor: Actor, *, keep: bool, raising: bool) -> None:
        assert actor.unit
        transaction = actor.open.pop()
        if keep:
            actor.worker.do(lambda: transaction.__exit__(None, None, None))
        elif raising:
            actor.worker.do(lambda: transaction.__exit__(ValueError, ValueError(), None))
        else:
            actor.worker.do(transaction.rollback)
        if actor.open:
            actor.unit.steps.append((("kept" if keep else "undone",), None))
        else:
            self.finish(actor, keep=keep)
            self.settle()

    # ---- how

    def enter(self, **options: Any) -> Transaction:
        return self.store.transaction(**options).__enter__()

    def call(self, actor: Actor, kind: str, operation: Operation, call: Callable[[], Any]) -> None:
        actor.unit = Unit(self.tick())
        actor.pending = kind, operation, actor.worker.start(call)
        self.settle()

    def tick(self) -> int:
        self.time += 1
        return self.time

    def settle(self) -> None:
        """Wait until everybody has what they called for, or stands in line."""
        until(self.is_settled, "the end of a call")
        for actor in self.actors:
            if actor.pending and actor.pending[2].done():
                self.has_returned(actor)

    def is_settled(self) -> bool:
        running = sum(1 for actor in self.actors if actor.pending and not actor.pending[2].done())
        return running == waiting(self.store) and (not running or any(actor.is_writing for actor in self.writers()))

    def writers(self) -> list[Actor]:
        """Those with the lock, counting those who have it without knowing."""
        return [
            actor
            for actor in self.actors
            if actor.is_writing or (actor.pending and actor.pending[0] == "write" and self.has_begun(actor))
        ]

    def has_begun(self, actor: Actor) -> bool:
        assert actor.pending
        future = actor.pending[2]
        if future.done() and future.exception() is None:
            actor.is_writing = True
        return actor.is_writing

    def has_returned(self, actor: Actor) -> None:
        assert actor.pending
        assert actor.unit
        (kind, operation, future), actor.pending = actor.pending, None
        if isinstance(error_of(future), StorageBusyError):
            actor.unit = None
        elif kind == "verb":
            actor.unit.steps.append((operation, future.result()))
            self.finish(actor, keep=True)
        else:
            actor.open = [future.result()]
            actor.is_writing = kind == "write"

    def finish(self, actor: Actor, *, keep: bool) -> None:
        assert actor.unit
        actor.unit.ended, actor.unit.is_kept = self.tick(), keep
        self.units.append(actor.unit)
        actor.unit, actor.is_writing = None, False

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        try:
            # Those who have the lock end first, then those that get it then.
            while inside := [actor for actor in self.actors if actor.open]:
                self.end(inside[0], keep=True, raising=False)
            self.call(self.actors[0], "verb", ("get_many",), lambda: on_store(self.store, ("get_many",)))
            assert all(actor.is_idle for actor in self.actors)
            units = sorted(self.units, key=lambda unit: unit.began)
            shown = "\n".join(map(repr, units))
            assert serial_order(units) is not None, f"no serial order explains\n{shown}"
        finally:
            self.workers.__exit__(None, None, None)
            self.store.close()
            shutil.rmtree(self.directory)


READ_NAMES = {"get", "get_many", "list_keys", "values", "count"}


class OnMemory(Interleavings):
    def open_store(self, directory: Path) -> Storage:
        return open_storage("memory:", busy_timeout=30)


class OnSQLite(Interleavings):
    def open_store(self, directory: Path) -> Storage:
        return open_storage(directory / "store.db", synchronous="OFF", busy_timeout=30)


# Long sequences are the interesting ones; how many there are is the profile's to say.
_HOW = settings(max_examples=max(40, settings().max_examples // 3), stateful_step_count=40, report_multiple_bugs=False)
TestOnMemory = OnMemory.TestCase
TestOnMemory.settings = _HOW
TestOnSQLite = OnSQLite.TestCase
TestOnSQLite.settings = _HOW


class WithoutSnapshots(OnMemory):
    """Some reads inside a transaction are of the store as it is by now."""

    def seen_by(self, actor: Actor) -> Any:
        return actor.open[-1] if actor.is_writing else Peeking(actor.open[-1], self.store)


class Peeking:
    def __init__(self, transaction: Transaction, store: Storage) -> None:
        self.query, self.list_keys, self.count = transaction.query, transaction.list_keys, transaction.count
        self.get, self.get_many = store.get, store.get_many


def test_a_read_of_another_moment_is_found() -> None:
    machine = WithoutSnapshots.TestCase
    machine.settings = settings(max_examples=100, stateful_step_count=40, phases=[Phase.generate])
    with pytest.raises(AssertionError, match="no serial order"):
        machine("runTest").runTest()


def unit(began: int, ended: int, *steps: tuple[Operation, Any], kept: bool = True) -> Unit:
    made = Unit(began)
    made.ended, made.is_kept, made.steps = ended, kept, list(steps)
    return made


@pytest.mark.parametrize(
    ("units", "has_order"),
    [
        ([unit(1, 2, (("increment", "a"), 1)), unit(3, 4, (("increment", "a"), 2))], True),
        ([unit(1, 2, (("increment", "a"), 1)), unit(3, 4, (("increment", "a"), 1))], False),  # a lost update
        ([unit(1, 2, (("increment", "a"), 2)), unit(3, 4, (("increment", "a"), 1))], False),  # against time
        ([unit(1, 4, (("increment", "a"), 2)), unit(2, 3, (("increment", "a"), 1))], True),  # at the same time
        ([unit(1, 4, (("set", "a", 1), True), kept=False), unit(2, 3, (("get", "a"), 1))], False),  # a dirty read
        ([unit(1, 5, (("get", "a"), None), (("get", "b"), 1)), unit(2, 3, (("set_many", 1), [*KEYS]))], False),  # torn
        ([unit(1, 2, (("set_many", 1), [*KEYS])), unit(3, 4, (("count",), 0))], False),  # a stale read
    ],
)  # fmt: skip
def test_the_judge_knows_the_anomalies(units: list[Unit], has_order: bool) -> None:
    assert (serial_order(units) is not None) == has_order
