"""Random sequences of all verbs on memory and SQLite at once: every answer and every error has to be the same.

The memory engine is the reference: it is simple enough to be believed. Both stores share one clock that stands, runs
and goes back. The normal run takes half a minute; `--hypothesis-profile=long` goes on looking (see conftest.py).
"""

from __future__ import annotations

import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mycelia_storage import (
    KEEP,
    MISSING,
    Put,
    Storage,
    StorageBusyError,
    StorageError,
    TransactionConflictError,
    open_storage,
)
from mycelia_storage.testing import BAD_VALUES, FakeClock, difference, in_another_thread
from mycelia_storage.testing.bad_values import BadValue
from mycelia_storage.testing.strategies import json_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hypothesis.strategies import SearchStrategy


def mostly(good: SearchStrategy[Any], bad: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Good input in nine of ten draws."""
    return st.integers(0, 9).flatmap(lambda n: bad if n == 9 else good)


# Few keys and namespaces, so that the verbs meet each other; their order is not the one of UTF-16 or of any locale.
GOOD_KEYS = ["a", "a*", "ab", "B", "\u00e9", "\uffff", "\U0001f600"]
KEYS = mostly(st.sampled_from(GOOD_KEYS), st.sampled_from(["", "\x00", "\ud800", "x" * 1025, None, 1, ["a"]]))
NAMESPACES = mostly(st.sampled_from(["default", "place", "\U0001f600"]), st.sampled_from(["", "a*", "a\n", None, 5]))
VALUES = mostly(
    st.integers(-5, 5) | st.just(1.5) | st.dictionaries(st.sampled_from("nm"), st.integers(0, 5)) | json_values(max_leaves=5),
    st.sampled_from(BAD_VALUES),
)
METADATA = mostly(
    st.none() | st.dictionaries(st.sampled_from("xyz"), st.none() | st.integers(0, 3) | st.just({"deep": 1}), max_size=2),
    st.sampled_from([{"x": {1}}, {1: 2}, "text", [1]]),
)
TTLS = mostly(
    st.sampled_from([None, None, None, 0.0004, 0.5, 1, 10, timedelta(seconds=2)]),
    st.sampled_from([0, -1, float("nan"), "1", True, timedelta(0), 1e300]),
)
TTLS_OR_KEEP = st.just(KEEP) | TTLS
DURABLE = st.sampled_from([None, None, None, False, True])
# Resolved against what is there when the rule runs.
VERSIONS = st.sampled_from([None, None, None, "current", "current", "older", "newer", 0, 0, 1, -1, "1", True])
KEY_LISTS = st.lists(KEYS, max_size=5)
LIMITS = mostly(st.none() | st.integers(0, 4), st.sampled_from([-1, 1.5, "1", True]))
PREFIXES = st.sampled_from([None, None, "", "a", "a*", "\U0001f600", "\U0010ffff", "x", 1])
PATTERNS = st.sampled_from([None, None, "*", "a*", "a\\*", "*b", "**", "\\\\", "", "*\u00e9*", 1])
ITEMS = st.lists(st.tuples(KEYS, VALUES), max_size=5)
PUTS = st.lists(st.tuples(KEYS, VALUES, METADATA, TTLS), max_size=4)


class Boom(Exception):
    """An error of the user's own."""


class Raised(NamedTuple):
    """An error, as far as both engines have to agree on it."""

    kind: str
    message: str
    details: Any


def _plain(answer: Any) -> Any:
    """An answer with every error and iterator inside made comparable."""
    if isinstance(answer, BaseException):
        details = [_plain(getattr(answer, name, None)) for name in ("expected", "actual", "errors", "report")]
        return Raised(type(answer).__name__, str(answer), details)
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
    except (StorageError, TypeError, Boom, StopIteration) as error:
        return _plain(error)


def made(value: Any) -> Any:
    """A value to write: what the strategy drew, or the bad value that it named."""
    return value.make() if isinstance(value, BadValue) else value


def pairs(items: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    return [(key, made(value)) for key, value in items]


def puts(items: list[tuple[Any, Any, Any, Any]]) -> list[Put]:
    return [Put(key, made(value), metadata, ttl) for key, value, metadata, ttl in items]


class TwoEngines(RuleBasedStateMachine):
    """What surrounds the verbs: two stores, one clock, open transactions, and the comparison."""

    @initialize()
    def open_both(self) -> None:
        self.clock = FakeClock()
        self.directory = Path(tempfile.mkdtemp(prefix="mycelia-stateful-"))
        self.memory = open_storage("memory:", clock=self.clock)
        self.sqlite = self._open_sqlite()
        # Blocks that are open, outermost first: the context managers, and what they gave.
        self.blocks: list[tuple[Any, Any]] = []
        self.inside: list[tuple[Any, Any]] = []
        self.scans: list[tuple[Any, Any]] = []
        self.expiries: set[int] = set()
        self.latest = self.clock.micros

    def _open_sqlite(self) -> Storage:
        return open_storage(self.directory / "store.db", clock=self.clock)

    def teardown(self) -> None:
        if not hasattr(self, "directory"):
            return
        while self.scans:
            self._close_scan(0)
        while self.blocks:
            self._leave(None)
        self.memory.close()
        self.sqlite.close()
        shutil.rmtree(self.directory)

    # ---- asking both

    def compare(self, call: Callable[[Any], Any], memory: Any, sqlite: Any) -> Any:
        expected, actual = _answer(call, memory), _answer(call, sqlite)
        found = difference(actual, expected)
        assert not found, f"SQLite and memory differ at {found}"
        return expected

    def both(self, call: Callable[[Any], Any]) -> Any:
        """Ask the innermost transaction, or the stores where there is none."""
        return self.compare(call, *(self.inside[-1] if self.inside else (self.memory, self.sqlite)))

    def stores(self, call: Callable[[Any], Any]) -> Any:
        """Ask the stores, whatever is open."""
        return self.compare(call, self.memory, self.sqlite)

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
    @rule(read_only=st.sampled_from([False, False, False, True]), durable=DURABLE)
    def begin(self, read_only: bool, durable: bool | None) -> None:
        if self.inside:
            found = self._enter(lambda verbs: verbs.transaction(read_only=read_only, durable=durable), *self.inside[-1])
        else:
            found = self._enter(
                lambda verbs: verbs.transaction(read_only=read_only, durable=durable), self.memory, self.sqlite
            )
        if found is not None:
            blocks, inside = found
            self.blocks.append(blocks)
            self.inside.append(inside)

    def _enter(self, call: Callable[[Any], Any], memory: Any, sqlite: Any) -> Any:
        entered: list[tuple[Any, Any]] = []

        def enter(verbs: Any) -> str:
            block = call(verbs)
            entered.append((block, block.__enter__()))
            return "entered"

        if self.compare(enter, memory, sqlite) != "entered":
            return None
        return tuple(zip(*entered, strict=True))

    def _leave(self, error: BaseException | None) -> None:
        blocks = self.blocks.pop()
        self.inside.pop()
        kind = None if error is None else type(error)
        leaving = iter(blocks)
        self.compare(lambda _: bool(next(leaving).__exit__(kind, error, None)), None, None)

    @precondition(lambda self: self.blocks)
    @rule()
    def commit(self) -> None:
        self._leave(None)

    @precondition(lambda self: self.blocks)
    @rule()
    def fail(self) -> None:
        self._leave(Boom("mine"))

    @precondition(lambda self: self.blocks)
    @rule()
    def roll_back_by_hand(self) -> None:
        self.both(lambda tx: tx.rollback())

    @precondition(lambda self: self.blocks)
    @rule(key=KEYS, namespace=NAMESPACES)
    def look_from_outside(self, key: Any, namespace: Any) -> None:
        def look(store: Any) -> Any:
            return [
                store.list_namespaces(),
                store.count(),
                {entry.key: entry for entry in store.scan()},
                store.get_entry(key, None, namespace=namespace),
            ]

        self.stores(lambda store: in_another_thread(lambda: look(store)))

    @precondition(lambda self: self.blocks)
    @rule(key=KEYS, value=VALUES)
    def use_the_store_inside(self, key: Any, value: Any) -> None:
        self.stores(lambda store: store.get(key))
        self.stores(lambda store: store.set(key, made(value)))
        self.stores(lambda store: store.namespace("place").get("a"))

    @rule(key=KEYS, failures=st.integers(0, 3), attempts=st.integers(1, 3), boom=st.booleans(), nested=st.booleans())
    def run_transaction(self, key: Any, failures: int, attempts: int, boom: bool, nested: bool) -> None:
        def run(store: Any) -> Any:
            tries = iter(range(100))

            def work(tx: Any) -> Any:
                if nested:
                    with tx.transaction() as inner:
                        inner.set("B", 1)
                tx.modify(key, lambda value: [value][:1], default=0)
                if next(tries) < failures:
                    raise (TransactionConflictError if failures % 2 else StorageBusyError)("again")
                if boom:
                    raise Boom("mine")
                return tx.get_entry(key)

            return store.run_transaction(work, attempts=attempts)

        self.stores(run)

    # ---- the store as a whole

    @precondition(lambda self: not self.blocks)
    @rule()
    def reopen_the_file(self) -> None:
        while self.scans:
            self._close_scan(0)
        self.sqlite.close()
        self.sqlite = self._open_sqlite()

    @rule()
    def look_after_the_store(self) -> None:
        self.stores(lambda store: store.optimize())
        self.stores(lambda store: store.migrate())

    @rule()
    def ask_for_the_state(self) -> None:
        self.stores(lambda store: [getattr(store.get_status(), name) for name in ("entries", "namespaces")])
        self.stores(lambda store: [getattr(store.check(), name) for name in ("entries", "namespaces")])

    # ---- scans that stay open

    @precondition(lambda self: len(self.scans) < 3)
    @rule(namespace=NAMESPACES, prefix=PREFIXES, batch_size=st.sampled_from([1, 2, 500, 0]))
    def start_a_scan(self, namespace: Any, prefix: Any, batch_size: int) -> None:
        scans: list[Any] = []
        self.both(lambda verbs: scans.append(verbs.scan(namespace=namespace, prefix=prefix, batch_size=batch_size)))
        if scans:
            self.scans.append((scans[0], scans[1]))

    @precondition(lambda self: self.scans)
    @rule(index=st.integers(0, 2), count=st.integers(1, 5))
    def go_on_with_a_scan(self, index: int, count: int) -> None:
        for _ in range(count):
            self.compare(next, *self.scans[index % len(self.scans)])

    @precondition(lambda self: self.scans)
    @rule(index=st.integers(0, 2))
    def end_a_scan(self, index: int) -> None:
        self._close_scan(index % len(self.scans))

    def _close_scan(self, index: int) -> None:
        self.compare(lambda scan: scan.close(), *self.scans.pop(index))

    # ---- what holds after every step

    @invariant()
    def everything_is_the_same(self) -> None:
        if hasattr(self, "directory"):
            self.both(_everything)


def _everything(verbs: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
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


class OneEntry(TwoEngines):
    """The verbs on one entry."""

    @rule(key=KEYS, namespace=NAMESPACES, default=st.none() | st.just("default"))
    def read(self, key: Any, namespace: Any, default: Any) -> None:
        self.both(lambda verbs: verbs.get(key, default, namespace=namespace))
        self.both(lambda verbs: verbs.get_entry(key, default, namespace=namespace))
        self.both(lambda verbs: verbs.get_entry(key, namespace=namespace))
        self.both(lambda verbs: verbs.has(key, namespace=namespace))
        self.both(lambda verbs: verbs.get_metadata(key, namespace=namespace))

    @rule(
        key=KEYS,
        value=VALUES,
        namespace=NAMESPACES,
        metadata=METADATA,
        ttl=TTLS,
        overwrite=st.sampled_from([True, True, False]),
        if_version=VERSIONS,
        durable=DURABLE,
    )
    def set(
        self,
        key: Any,
        value: Any,
        namespace: Any,
        metadata: Any,
        ttl: Any,
        overwrite: bool,
        if_version: Any,
        durable: Any,
    ) -> None:
        self.expire(ttl)
        version = self.version(if_version, key, namespace)
        self.both(
            lambda verbs: verbs.set(
                key,
                made(value),
                namespace=namespace,
                metadata=metadata,
                ttl=ttl,
                overwrite=overwrite,
                if_version=version,
                durable=durable,
            )
        )

    @rule(key=KEYS, value=VALUES, namespace=NAMESPACES)
    def set_plainly(self, key: Any, value: Any, namespace: Any) -> None:
        self.both(lambda verbs: verbs.set(key, made(value), namespace=namespace))

    @rule(key=KEYS, value=VALUES, namespace=NAMESPACES, metadata=METADATA, ttl=TTLS, durable=DURABLE)
    def add(self, key: Any, value: Any, namespace: Any, metadata: Any, ttl: Any, durable: Any) -> None:
        self.expire(ttl)
        self.both(
            lambda verbs: verbs.add(key, made(value), namespace=namespace, metadata=metadata, ttl=ttl, durable=durable)
        )

    @rule(
        key=KEYS,
        value=VALUES,
        namespace=NAMESPACES,
        default=st.sampled_from([MISSING, 0, {}]),
        ttl=TTLS_OR_KEEP,
        if_version=VERSIONS,
        how=st.sampled_from(["replace", "wrap", "forget", "fail"]),
    )
    def modify(
        self, key: Any, value: Any, namespace: Any, default: Any, ttl: Any, if_version: Any, how: str
    ) -> None:
        self.expire(ttl)
        version = self.version(if_version, key, namespace)

        def change(old: Any) -> Any:
            if how == "fail":
                raise Boom("mine")
            return {"replace": made(value), "wrap": [old], "forget": None}[how]

        self.both(
            lambda verbs: verbs.modify(key, change, default=default, ttl=ttl, if_version=version, namespace=namespace)
        )

    @rule(
        key=KEYS,
        namespace=NAMESPACES,
        patch=mostly(
            st.dictionaries(st.sampled_from("nmo"), st.none() | json_values(max_leaves=3), max_size=3),
            st.sampled_from([None, "text", {1: 1}, {"n": {1}}, [1]]),
        ),
        ttl=TTLS_OR_KEEP,
        if_version=VERSIONS,
    )
    def merge(self, key: Any, namespace: Any, patch: Any, ttl: Any, if_version: Any) -> None:
        self.expire(ttl)
        version = self.version(if_version, key, namespace)
        self.both(lambda verbs: verbs.merge(key, patch, ttl=ttl, if_version=version, namespace=namespace))

    @rule(
        key=KEYS,
        namespace=NAMESPACES,
        by=st.sampled_from([1, 1, -2, 0.5, 2**62, 1e308, float("nan"), "1", True]),
        field=st.sampled_from([None, None, "n", "m.k", "", 1]),
        ttl=TTLS_OR_KEEP,
        durable=DURABLE,
    )
    def increment(self, key: Any, namespace: Any, by: Any, field: Any, ttl: Any, durable: Any) -> None:
        self.expire(ttl)
        self.both(
            lambda verbs: verbs.increment(key, by, field=field, ttl=ttl, namespace=namespace, durable=durable)
        )

    @rule(key=KEYS, namespace=NAMESPACES, ttl=TTLS)
    def touch(self, key: Any, namespace: Any, ttl: Any) -> None:
        self.expire(ttl)
        self.both(lambda verbs: verbs.touch(key, ttl=ttl, namespace=namespace))

    @rule(key=KEYS, namespace=NAMESPACES, default=st.sampled_from([MISSING, None]), durable=DURABLE)
    def take(self, key: Any, namespace: Any, default: Any, durable: Any) -> None:
        self.both(lambda verbs: verbs.take(key, default, namespace=namespace, durable=durable))

    @rule(key=KEYS, namespace=NAMESPACES, if_version=VERSIONS, durable=DURABLE)
    def delete(self, key: Any, namespace: Any, if_version: Any, durable: Any) -> None:
        version = self.version(if_version, key, namespace)
        self.both(lambda verbs: verbs.delete(key, if_version=version, namespace=namespace, durable=durable))

    @rule(key=KEYS, namespace=NAMESPACES, metadata=METADATA, merge=st.booleans(), if_version=VERSIONS)
    def set_metadata(self, key: Any, namespace: Any, metadata: Any, merge: bool, if_version: Any) -> None:
        version = self.version(if_version, key, namespace)
        self.both(
            lambda verbs: verbs.set_metadata(key, metadata, merge=merge, if_version=version, namespace=namespace)
        )


class ManyEntries(OneEntry):
    """The verbs on many entries, and those that find."""

    @rule(keys=KEY_LISTS, namespace=NAMESPACES)
    def get_many(self, keys: list[Any], namespace: Any) -> None:
        self.both(lambda verbs: verbs.get_many(keys, namespace=namespace))
        self.both(lambda verbs: verbs.get_entries(iter(keys), namespace=namespace))

    @rule(
        items=ITEMS,
        namespace=NAMESPACES,
        metadata=METADATA,
        ttl=TTLS,
        overwrite=st.sampled_from([True, True, False]),
        durable=DURABLE,
    )
    def set_many(
        self, items: list[Any], namespace: Any, metadata: Any, ttl: Any, overwrite: bool, durable: Any
    ) -> None:
        self.expire(ttl)
        self.both(
            lambda verbs: verbs.set_many(
                pairs(items), namespace=namespace, metadata=metadata, ttl=ttl, overwrite=overwrite, durable=durable
            )
        )

    @rule(items=PUTS, namespace=NAMESPACES, ttl=TTLS, only_new=st.booleans())
    def set_or_add_puts(self, items: list[Any], namespace: Any, ttl: Any, only_new: bool) -> None:
        for each in (ttl, *(item[3] for item in items)):
            self.expire(each)
        if only_new:
            self.both(lambda verbs: verbs.add_many(puts(items), ttl=ttl, namespace=namespace))
        else:
            self.both(lambda verbs: verbs.set_many(puts(items), ttl=ttl, namespace=namespace))

    @rule(keys=KEY_LISTS, namespace=NAMESPACES, durable=DURABLE)
    def delete_many(self, keys: list[Any], namespace: Any, durable: Any) -> None:
        self.both(lambda verbs: verbs.delete_many(keys, namespace=namespace, durable=durable))

    @rule(
        items=ITEMS,
        namespace=NAMESPACES,
        batch_size=st.sampled_from([1, 2, 3, 1000, 0]),
        on_error=st.sampled_from(["stop", "skip", "skip", "ignore"]),
        no_item=st.booleans(),
        breaks=st.sampled_from([False, False, True]),
    )
    def load(
        self, items: list[Any], namespace: Any, batch_size: int, on_error: Any, no_item: bool, breaks: bool
    ) -> None:
        def load(verbs: Any) -> Any:
            def stream() -> Iterator[Any]:
                yield from pairs(items)
                if no_item:
                    yield "no item"
                if breaks:
                    raise Boom("mine")

            told: list[Any] = []
            options = {"batch_size": batch_size, "on_error": on_error, "progress": told.append}
            try:
                return [verbs.load(stream(), namespace=namespace, **options), told]
            except (StorageError, Boom) as error:
                return [error, told]

        self.both(load)

    @rule(
        namespace=NAMESPACES,
        pattern=PATTERNS,
        prefix=PREFIXES,
        start_after=st.none() | KEYS,
        limit=LIMITS,
        offset=st.just(0) | LIMITS,
        reverse=st.booleans(),
    )
    def list_keys(
        self, namespace: Any, pattern: Any, prefix: Any, start_after: Any, limit: Any, offset: Any, reverse: bool
    ) -> None:
        self.both(
            lambda verbs: verbs.list_keys(
                namespace=namespace,
                pattern=pattern,
                prefix=prefix,
                start_after=start_after,
                limit=limit,
                offset=offset,
                reverse=reverse,
            )
        )

    @rule(namespace=NAMESPACES, prefix=PREFIXES, batch_size=st.sampled_from([1, 3, 500]))
    def scan_and_count(self, namespace: Any, prefix: Any, batch_size: int) -> None:
        self.both(lambda verbs: list(verbs.scan(namespace=namespace, prefix=prefix, batch_size=batch_size)))
        self.both(lambda verbs: verbs.count(namespace=namespace))


class Namespaces(ManyEntries):
    """Namespaces and their views."""

    @rule(name=NAMESPACES, metadata=METADATA, exist_ok=st.booleans())
    def create_namespace(self, name: Any, metadata: Any, exist_ok: bool) -> None:
        self.both(lambda verbs: verbs.create_namespace(name, metadata=metadata, exist_ok=exist_ok))

    @rule(name=NAMESPACES, recursive=st.booleans())
    def delete_namespace(self, name: Any, recursive: bool) -> None:
        self.both(lambda verbs: verbs.delete_namespace(name, recursive=recursive))

    @rule(name=NAMESPACES, prefix=PREFIXES)
    def look_at_namespaces(self, name: Any, prefix: Any) -> None:
        self.both(lambda verbs: verbs.list_namespaces(prefix=prefix))
        self.both(lambda verbs: verbs.namespace_info(name))

    @rule(name=NAMESPACES, whole=st.sampled_from([False, False, True]))
    def clear(self, name: Any, whole: bool) -> None:
        self.both(lambda verbs: verbs.clear_all() if whole else verbs.clear(namespace=name))

    def view(self, name: Any, kind: Any, call: Callable[[Any], Any]) -> None:
        self.both(lambda verbs: call(verbs.namespace(name, kind)))

    @rule(name=NAMESPACES, key=KEYS, kind=st.sampled_from([Any, Any, int, dict[str, int]]))
    def read_a_view(self, name: Any, key: Any, kind: Any) -> None:
        self.view(name, kind, lambda view: view[key])
        self.view(name, kind, lambda view: view.get(key, "default"))
        self.view(name, kind, lambda view: key in view)
        self.view(name, kind, lambda view: [len(view), bool(view), list(view), list(view.keys())])
        self.view(name, kind, lambda view: [list(view.items()), list(view.values())])
        self.view(name, kind, lambda view: [key in view.keys(), (key, 1) in view.items(), 1 in view.values()])  # noqa: SIM118
        self.view(name, kind, lambda view: list(view.scan()))

    @rule(
        name=NAMESPACES,
        key=KEYS,
        value=VALUES,
        kind=st.sampled_from([Any, Any, int]),
        how=st.sampled_from(["set", "del", "pop", "pop or default", "popitem", "setdefault", "add", "take", "modify"]),
    )
    def change_a_view(self, name: Any, key: Any, value: Any, kind: Any, how: str) -> None:
        calls: dict[str, Callable[[Any], Any]] = {
            "set": lambda view: view.__setitem__(key, made(value)),
            "del": lambda view: view.__delitem__(key),
            "pop": lambda view: view.pop(key),
            "pop or default": lambda view: view.pop(key, None),
            "popitem": lambda view: view.popitem(),
            "setdefault": lambda view: view.setdefault(key, made(value)),
            "add": lambda view: view.add(key, made(value)),
            "take": lambda view: view.take(key),
            "modify": lambda view: view.modify(key, lambda _: made(value)),
        }
        self.view(name, kind, calls[how])

    @rule(name=NAMESPACES, items=ITEMS, how=st.sampled_from(["update", "or", "clear", "keywords"]))
    def change_all_of_a_view(self, name: Any, items: list[Any], how: str) -> None:
        calls: dict[str, Callable[[Any], Any]] = {
            "update": lambda view: view.update(pairs(items)),
            "or": lambda view: view.__ior__(pairs(items)) is view,
            "clear": lambda view: view.clear(),
            "keywords": lambda view: view.update({"ab": 1}, B=2),
        }
        self.view(name, Any, calls[how])


TestMemoryAndSQLite = Namespaces.TestCase
# Many steps make a sequence interesting; the profile says how many sequences there are.
TestMemoryAndSQLite.settings = settings(max_examples=max(40, settings.default.max_examples // 3), stateful_step_count=50)
