"""Random sequences of all verbs on two stores at once: every answer and every error has to be the same.

What surrounds the verbs stands here: two stores, one clock, open transactions and scans, and the comparison. The
verbs themselves are in `differential_verbs.py`, whose `DifferentialMachine` is what one subclasses. Needs Hypothesis.
"""

from __future__ import annotations

import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mycelia_storage import (
    Put,
    StorageBusyError,
    StorageError,
    TransactionConflictError,
    UniqueIndexError,
    field,
    open_storage,
)
from mycelia_storage.testing.bad_values import BadValue
from mycelia_storage.testing.base import in_another_thread
from mycelia_storage.testing.clock import FakeClock
from mycelia_storage.testing.compare import difference
from mycelia_storage.testing.strategies import DURABLE, FIRST_ITEMS, KEYS, NAMESPACES, PREFIXES, mostly

if TYPE_CHECKING:
    from collections.abc import Callable

    from mycelia_storage import Storage

SHORT_STEPS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "set": lambda tx, key, name: tx.set(key, "in a block", namespace=name, metadata={"x": 2}, ttl=1),
    "delete": lambda tx, key, name: tx.delete(key, namespace=name),
    "delete many": lambda tx, key, name: tx.delete_many([key, "a", "B"], namespace=name),
    "delete where": lambda tx, _, name: tx.delete_where(field("n") == 1, namespace=name),
    "clear": lambda tx, _, name: tx.clear(namespace=name),
    "index": lambda tx, _, name: tx.create_index("n", unique=True, namespace=name),
    "drop index": lambda tx, _, name: tx.drop_index(f"{name}: n (unique)"),
    "delete namespace": lambda tx, _, name: tx.delete_namespace(name, recursive=True),
    "look": lambda tx, _, name: [
        tx.list_keys(namespace=name),
        list(tx.scan(namespace=name)),
        tx.count(namespace=name),
        tx.query(field("n") >= 1, sort="-n", limit=2, namespace=name).keys(),
        tx.list_indexes(),
    ],
}


class OwnError(Exception):
    """An error of the user's own."""


class Raised(NamedTuple):
    """An error, as far as both stores have to agree on it."""

    kind: str
    message: str
    details: Any


def _plain(answer: Any) -> Any:
    """An answer with every error and iterator inside made comparable."""
    if isinstance(answer, BaseException):
        names = ("expected", "actual", "errors", "report", "index")
        # Of several duplicates each store names those that it meets first.
        message = "" if isinstance(answer, UniqueIndexError) else str(answer)
        return Raised(type(answer).__name__, message, [_plain(getattr(answer, name, None)) for name in names])
    if isinstance(answer, dict):
        return {key: _plain(value) for key, value in answer.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(answer, list | tuple):
        return [_plain(item) for item in answer]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(answer, msgspec.Struct):
        return {name: _plain(getattr(answer, name)) for name in answer.__struct_fields__}
    return answer


def _answer(call: Callable[[Any], Any], verbs: Any) -> Any:
    try:
        return _plain(call(verbs))
    except (StorageError, TypeError, OwnError, StopIteration) as error:
        return _plain(error)


def in_a_list(value: Any) -> list[Any]:
    """A change for `modify`."""
    return [value]


def made(value: Any) -> Any:
    """A value to write: what the strategy drew, or the bad value that it named."""
    return value.make() if isinstance(value, BadValue) else value


def pairs(items: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    return [(key, made(value)) for key, value in items]


def puts(items: list[tuple[Any, Any, Any, Any]]) -> list[Put]:
    return [Put(key, made(value), metadata, ttl) for key, value, metadata, ttl in items]


class TwoStores(RuleBasedStateMachine):
    """What surrounds the verbs. Both stores share one clock that stands, runs and goes back."""

    @initialize(here=FIRST_ITEMS, there=FIRST_ITEMS)
    def open_both(self, here: list[Any], there: list[Any]) -> None:
        self.clock: FakeClock = FakeClock()
        # Blocks that are open, outermost first: the context managers, and what they gave.
        self.blocks: list[tuple[Any, Any]] = []
        self.inside: list[tuple[Any, Any]] = []
        self.scans: list[tuple[Any, Any]] = []
        self.expiries: set[int] = set()
        self.latest: int = self.clock.micros
        self.memory: Storage = open_storage("memory:", clock=self.clock)
        self.directory: Path = Path(tempfile.mkdtemp(prefix="mycelia-stateful-"))
        self.other: Storage = self.open_other(self.directory, self.clock)
        for item in here + there:
            self.expire(item[3])
        self.stores(lambda store: [store.set_many(puts(here)), store.set_many(puts(there), namespace="place")])

    def open_other(self, directory: Path, clock: FakeClock) -> Storage:
        """Open the store that is held against memory: the same directory, the same store."""
        raise NotImplementedError(f"{type(self).__name__} has to say which store is compared: override open_other")

    def do_readers_wait(self) -> bool:
        """Whether the open transaction keeps all others waiting: PostgreSQL drops no index while somebody reads."""
        return False

    def teardown(self) -> None:
        if not hasattr(self, "other"):  # it could not be opened
            return
        while self.scans:
            self._close_scan()
        while self.blocks:
            self._leave(None)
        self.memory.close()
        self.other.close()
        shutil.rmtree(self.directory)

    # ---- asking both

    def compare(self, call: Callable[[Any], Any], memory: Any, other: Any) -> Any:
        expected, actual = _answer(call, memory), _answer(call, other)
        found = difference(actual, expected)
        assert not found, f"the other store differs from memory at {found}"
        return expected

    def both(self, call: Callable[[Any], Any]) -> Any:
        """Ask the innermost transaction, or the stores where there is none."""
        return self.compare(call, *(self.inside[-1] if self.inside else (self.memory, self.other)))

    def stores(self, call: Callable[[Any], Any]) -> Any:
        """Ask the stores, whatever is open."""
        return self.compare(call, self.memory, self.other)

    def version(self, wanted: Any, key: Any, namespace: Any) -> Any:
        """A version to expect: what is drawn by name is looked up."""
        if wanted not in ("current", "older", "newer"):
            return wanted
        verbs = self.inside[-1][0] if self.inside else self.memory
        try:
            current = verbs.get_entry(key, namespace=namespace).version
        except StorageError:
            return 7
        return current + {"current": 0, "older": -1, "newer": 1}[wanted]

    def expire(self, ttl: Any) -> None:
        """Note when something may expire: the clock must not go back across it."""
        seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
        if isinstance(seconds, int | float) and 0 < seconds < 1e9:
            self.expiries.add(self.clock.micros + round(seconds * 1_000_000) + 2000)

    # ---- the clock

    @rule(seconds=st.sampled_from([0.000001, 0.001, 0.0015, 0.5, 1, 2, 10, 3600]))
    def advance_the_clock(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.latest = max(self.latest, self.clock.micros)

    @rule(seconds=st.sampled_from([0.000001, 0.0015, 1, 10, 3600]))
    def set_the_clock_back(self, seconds: float) -> None:
        # What has expired may have been removed, or not yet: no clock must call it back to life.
        passed = [expiry for expiry in self.expiries if expiry - 3000 <= self.latest]
        earliest = max(passed, default=0)
        wanted = self.clock.micros - round(seconds * 1_000_000)
        if wanted >= earliest:
            self.clock.micros = wanted

    # ---- transactions

    @precondition(lambda self: len(self.blocks) < 4)
    @rule(read_only=st.sampled_from([False, False, False, True]), durable=DURABLE, key=KEYS, namespace=NAMESPACES)
    def begin(self, read_only: bool, durable: bool | None, key: Any, namespace: Any) -> None:
        if self._enter(read_only=read_only, durable=durable):
            self.both(lambda tx: tx.modify(key, in_a_list, default=0, namespace=namespace))

    def _enter(self, **options: Any) -> bool:
        entered: list[tuple[Any, Any]] = []

        def enter(verbs: Any) -> str:
            block = verbs.transaction(**options)
            entered.append((block, block.__enter__()))
            return "entered"

        if self.both(enter) != "entered":  # a block cannot be opened in one that has ended
            return False
        memory, other = entered
        self.blocks.append((memory[0], other[0]))
        self.inside.append((memory[1], other[1]))
        return True

    def _leave(self, error: BaseException | None) -> None:
        blocks = self.blocks.pop()
        self.inside.pop()
        kind = None if error is None else type(error)
        leaving = iter(blocks)
        self.compare(lambda _: bool(next(leaving).__exit__(kind, error, None)), None, None)

    @precondition(lambda self: self.blocks)
    @rule(how=st.sampled_from(["commit", "commit", "fail", "roll back"]))
    def end(self, how: str) -> None:
        if how == "roll back":
            self.both(lambda tx: tx.rollback())
        else:
            self._leave(OwnError("mine") if how == "fail" else None)

    @rule(
        steps=st.lists(st.tuples(st.sampled_from(sorted(SHORT_STEPS)), KEYS, NAMESPACES), max_size=4),
        how=st.sampled_from(["commit", "fail", "fail", "roll back"]),
        watched=st.booleans(),
    )
    def a_whole_block(self, steps: list[tuple[str, Any, Any]], how: str, watched: bool) -> None:
        if not self._enter():
            return
        for step, key, namespace in steps:
            self.both(lambda tx: SHORT_STEPS[step](tx, key, namespace))  # noqa: B023
        if watched and not self.do_readers_wait():
            self.stores(lambda store: in_another_thread(lambda: _everything(store)))
        if how == "roll back":
            self.both(lambda tx: tx.rollback())
        self._leave(OwnError("mine") if how == "fail" else None)

    @precondition(lambda self: self.blocks)
    @rule(key=KEYS, namespace=NAMESPACES)
    def use_the_stores_beside(self, key: Any, namespace: Any) -> None:
        def look(store: Any) -> Any:
            return [
                store.list_namespaces(),
                store.count(),
                {entry.key: entry for entry in store.scan()},
                store.get_entry(key, None, namespace=namespace),
            ]

        if not self.do_readers_wait():
            self.stores(lambda store: in_another_thread(lambda: look(store)))
        self.stores(lambda store: store.get(key))
        self.stores(lambda store: store.set(key, 1))
        self.stores(lambda store: store.namespace("place").get("a"))

    @rule(key=KEYS, failures=st.integers(0, 3), attempts=st.integers(1, 3), boom=st.booleans(), nested=st.booleans())
    def run_transaction(self, key: Any, failures: int, attempts: int, boom: bool, nested: bool) -> None:
        def run(store: Any) -> Any:
            tries = iter(range(100))

            def work(tx: Any) -> Any:
                if nested:
                    with tx.transaction() as inner:
                        inner.set("B", 1)
                tx.modify(key, in_a_list, default=0)
                if next(tries) < failures:
                    raise (TransactionConflictError if failures % 2 else StorageBusyError)("again")
                if boom:
                    raise OwnError("mine")
                return tx.get_entry(key)

            return store.run_transaction(work, attempts=attempts)

        self.stores(run)

    # ---- the store as a whole

    @rule(how=st.sampled_from(["reopen", "reopen", "optimize", "migrate", "ask"]))
    def look_after_the_store(self, how: str) -> None:
        if how == "reopen" and not self.blocks:
            while self.scans:
                self._close_scan()
            self.other.close()
            self.other = self.open_other(self.directory, self.clock)
        elif how == "optimize":
            self.stores(lambda store: store.optimize())
        elif how == "migrate":
            self.stores(lambda store: store.migrate())
        elif how == "ask":
            self.stores(lambda store: [getattr(store.get_status(), name) for name in ("entries", "namespaces")])
            self.stores(lambda store: [getattr(store.check(), name) for name in ("entries", "namespaces")])

    # ---- scans that stay open

    @rule(
        namespace=NAMESPACES,
        prefix=PREFIXES,
        batch_size=mostly(st.sampled_from([1, 2, 500]), [0]),
        steps=st.lists(st.sampled_from(["start", "start", "next", "next", "write", "end"]), min_size=1, max_size=5),
    )
    def scan_on(self, namespace: Any, prefix: Any, batch_size: int, steps: list[str]) -> None:
        for step in steps:
            if step == "start" and len(self.scans) < 3:
                self._start_scan(namespace=namespace, prefix=prefix, batch_size=batch_size)
            elif step == "next":
                for scans_of_both in self.scans:
                    self.compare(next, *scans_of_both)
            elif step == "write":
                self.both(lambda verbs: verbs.set("ab", "later", namespace=namespace))
            elif step == "end" and self.scans:
                self._close_scan()

    def _start_scan(self, **options: Any) -> None:
        started: list[Any] = []

        def start(verbs: Any) -> None:
            started.append(verbs.scan(**options))

        self.both(start)
        if started:
            memory, other = started
            self.scans.append((memory, other))

    def _close_scan(self) -> None:
        self.compare(lambda scan: scan.close(), *self.scans.pop(0))

    # ---- what holds after every step

    @invariant()
    def everything_is_the_same(self) -> None:
        if hasattr(self, "directory"):
            self.both(_everything)


def _everything(verbs: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"": verbs.list_indexes()}
    for name in verbs.list_namespaces():
        keys = verbs.list_keys(namespace=name)
        entries = verbs.get_entries(keys, namespace=name)
        info = verbs.namespace_info(name)
        assert keys == sorted(keys)
        assert len(keys) == len(entries) == info.entries == verbs.count(namespace=name)
        for key, entry in entries.items():
            assert (entry.namespace, entry.key) == (name, key)
            assert entry.created_at <= entry.updated_at
            assert entry.version > 0
        found[name] = [entries, info]
    return found
