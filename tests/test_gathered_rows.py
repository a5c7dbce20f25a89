"""Hazard: rows of a shared commit are written later, many by one statement, when their members have had their answers:
an answer is wrong then, a row is missing or there too much, or one member's failure becomes another's.

The normal run takes seconds; `--hypothesis-profile=long` goes on for minutes (see conftest.py).
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_shared_commits import SqlLog, logged_store, sql

from mycelia_storage import (
    Entry,
    Storage,
    StorageBusyError,
    StorageError,
    UniqueIndexError,
    open_storage,
)
from mycelia_storage.engines.limits import hurrying
from mycelia_storage.engines.sqlite import commits as commits_module
from mycelia_storage.engines.sqlite import shared as shared_module
from mycelia_storage.sharing import Call
from mycelia_storage.testing import FakeClock, difference
from mycelia_storage.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Fixtures.
__all__ = ["logged_store", "sql"]

IS_SHORT = settings().max_examples == 100


# ---- random members, held against the same calls one after the other


class OwnError(Exception):
    """A caller's own."""


class Operation(NamedTuple):
    name: str
    key: str
    namespace: str
    value: Any
    metadata: Any
    ttl: float | None
    version: str


class Doing(NamedTuple):
    """What one member does; and whether it goes on where something fails, or fails at its end."""

    operations: list[Operation]
    goes_on: bool
    fails: bool


class Group(NamedTuple):
    doings: list[Doing]
    rows: int  # so many plain rows besides,
    place: int  # before that member
    pause: float
    is_hurried: bool


def delete_namespace(verbs: Any, namespace: str) -> int:
    """What the verb does, which shares no commit because it may take long."""
    if namespace == "default":
        return 0
    rows = verbs._writing()
    removed: int = rows.clear(namespace, verbs._now())
    rows.unregister(namespace)
    return removed


# Each with the namespace as `n`, and the version to expect.
OPERATIONS: dict[str, Callable[[Any, Operation, Any, int], Any]] = {
    "set": lambda verbs, o, n, _: Verbs.set(verbs, o.key, o.value, **n),
    "set with metadata": lambda verbs, o, n, _: Verbs.set(verbs, o.key, o.value, metadata=o.metadata, **n),
    "set for a while": lambda verbs, o, n, _: Verbs.set(verbs, o.key, o.value, ttl=o.ttl, **n),
    "set new": lambda verbs, o, n, _: Verbs.set(verbs, o.key, o.value, overwrite=False, **n),
    "set version": lambda verbs, o, n, version: Verbs.set(verbs, o.key, o.value, if_version=version, **n),
    "add": lambda verbs, o, n, _: Verbs.add(verbs, o.key, o.value, ttl=o.ttl, **n),
    "increment": lambda verbs, o, n, _: Verbs.increment(verbs, o.key, field="n", ttl=o.ttl, **n),
    "merge": lambda verbs, o, n, _: Verbs.merge(verbs, o.key, {"m": o.value}, **n),
    "touch": lambda verbs, o, n, _: Verbs.touch(verbs, o.key, ttl=o.ttl, **n),
    "set metadata": lambda verbs, o, n, _: Verbs.set_metadata(verbs, o.key, o.metadata or {}, **n),
    "delete": lambda verbs, o, n, _: Verbs.delete(verbs, o.key, **n),
    "delete version": lambda verbs, o, n, version: Verbs.delete(verbs, o.key, if_version=version, **n),
    "take": lambda verbs, o, n, _: Verbs.take(verbs, o.key, **n),
    "get": lambda verbs, o, n, _: Verbs.get_entry(verbs, o.key, None, **n),
    "list": lambda verbs, _, n, __: [Verbs.list_keys(verbs, **n), Verbs.count(verbs)],
    "set many": lambda verbs, o, n, _: Verbs.set_many(verbs, {o.key: o.value, "m": 0}, ttl=o.ttl, **n),
    "set many new": lambda verbs, o, n, _: Verbs.set_many(verbs, {o.key: o.value, "m": 0}, overwrite=False, **n),
    "add many": lambda verbs, o, n, _: Verbs.add_many(verbs, {o.key: o.value, "m": 0}, **n),
    "delete many": lambda verbs, o, n, _: Verbs.delete_many(verbs, [o.key, "m"], **n),
    "clear": lambda verbs, _, n, __: Verbs.clear(verbs, **n),
    "clear all": lambda verbs, _, __, ___: Verbs.clear_all(verbs),
    "create namespace": lambda verbs, o, _, __: Verbs.create_namespace(verbs, o.namespace, metadata=o.metadata),
    "delete namespace": lambda verbs, o, _, __: delete_namespace(verbs, o.namespace),
    "create index": lambda verbs, _, n, __: Verbs.create_index(verbs, "n", unique=True, **n),
}
SIMPLE = ["set", "set with metadata", "set for a while"]
NAMES = st.sampled_from([*SIMPLE * 20, *OPERATIONS])
TEXTS = {"of some pages": "x" * 6_000, "large": "y" * 150_000}
VALUES = st.sampled_from([0, {"n": 0}, {"n": 1}, {"n": 2}, {"n": 2}, {"n": 3}, *TEXTS])

operations = st.builds(
    Operation,
    name=NAMES,
    key=st.sampled_from("abcdef"),
    namespace=st.sampled_from(["default", "default", "place", "unique", "unique"]),
    value=VALUES,
    metadata=st.sampled_from([None, None, {}, {"m": 1}]),
    ttl=st.sampled_from([None, None, 0.001, 1.0]),
    version=st.sampled_from(["0", "current", "current", "older"]),
)
doings = st.builds(
    Doing,
    operations=st.lists(operations, min_size=1, max_size=3) | operations.map(lambda one: [one]),
    goes_on=st.booleans(),
    fails=st.integers(0, 24).map(lambda number: number == 24),
)
groups = st.builds(
    Group,
    doings=st.lists(doings, min_size=5, max_size=14),
    rows=st.sampled_from([0, 0, 0, 0, 3, 9]),
    place=st.integers(0, 12),
    pause=st.sampled_from([0.0, 0.000001, 0.0015, 2.0, 2.0, -0.000001, -0.0015, -1.0]),
    is_hurried=st.sampled_from([False, False, True]),
)


def _made(value: Any) -> Any:
    return TEXTS.get(value, value) if isinstance(value, str) else value


def _plain(answer: Any) -> Any:
    if isinstance(answer, BaseException):
        # Of several duplicates each store names those that it meets first.
        message = "" if isinstance(answer, UniqueIndexError) else str(answer)
        return type(answer).__name__, message
    return answer


class TwoStores:
    """The same calls: together on SQLite, and one after the other in memory. One clock for both."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.clock = FakeClock()
        self.expiries: list[int] = []
        self.latest = self.clock.micros
        self.stores: list[Storage] = [
            open_storage("memory:", clock=self.clock),
            open_storage(directory / "store.db", clock=self.clock, **options),
        ]
        for store in self.stores:
            store.create_index("n", unique=True, namespace="unique", name="unique n")
            store.set("a", {"n": 3}, namespace="unique")

    def close(self) -> None:
        for store in self.stores:
            store.close()

    def wait(self, seconds: float) -> None:
        """Let time go by, or go back. What has expired may have been removed or not: it must not come to life again."""
        passed = [expiry for expiry in self.expiries if expiry - 3000 <= self.latest]
        wanted = self.clock.micros + round(seconds * 1_000_000)
        if seconds >= 0 or wanted >= max(passed, default=0):
            self.clock.micros = wanted
        self.latest = max(self.latest, self.clock.micros)

    def run(self, group: Group) -> None:
        self.wait(group.pause)
        work: list[Callable[[Verbs], Any]] = [self._work(doing) for doing in group.doings]
        work[group.place : group.place] = [
            lambda verbs, n=n: Verbs.set(verbs, f"row {n}", {"n": 100 + n}, namespace="unique")  # type: ignore[misc]
            for n in range(group.rows)
        ]
        expected, actual = (self._answers(store, work, is_hurried=group.is_hurried) for store in self.stores)
        found = difference(actual, expected)
        assert not found, f"together differs from one by one at {found}"
        found = difference(contents(self.stores[1]), contents(self.stores[0]))
        assert not found, f"what is stored differs at {found}"

    def _answers(self, store: Storage, work: Sequence[Callable[[Verbs], Any]], *, is_hurried: bool) -> Any:
        calls = [Call(function) for function in work]
        if is_hurried:
            hurrying.hurry_until = time.monotonic() + 60.0
            try:
                store._share_at_once(calls)
            finally:
                hurrying.hurry_until = 0.0
        left = [call for call in calls if not call.is_done]
        if left:
            store._share(left)
        assert all(call.is_done for call in calls)
        return [_plain(call.result if call.error is None else call.error) for call in calls]

    def _work(self, doing: Doing) -> Callable[[Verbs], Any]:
        memory = self.stores[0]
        steps: list[tuple[Operation, int]] = []
        for operation in doing.operations:
            if operation.ttl is not None:
                self.expiries.append(self.clock.micros + round(operation.ttl * 1_000_000) + 2000)
            entry: Entry[Any] | None = memory.get_entry(operation.key, None, namespace=operation.namespace)
            current = 0 if entry is None else entry.version
            made = operation._replace(value=_made(operation.value))
            steps.append((made, {"0": 0, "current": current, "older": max(0, current - 1)}[operation.version]))

        def run(verbs: Verbs) -> list[Any]:
            answers: list[Any] = []
            for operation, version in steps:
                try:
                    answers.append(
                        OPERATIONS[operation.name](verbs, operation, {"namespace": operation.namespace}, version)
                    )
                except StorageError as error:
                    if not doing.goes_on or isinstance(error, StorageBusyError):
                        raise
                    answers.append(_plain(error))
            if doing.fails:
                raise OwnError
            return answers

        return run


def contents(store: Storage) -> dict[str, Any]:
    return {
        name: [store.namespace_info(name), store.get_entries(store.list_keys(namespace=name), namespace=name)]
        for name in store.list_namespaces()
    }


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    directory = Path(
        tempfile.mkdtemp(prefix="mycelia-gathered-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    )
    yield directory
    shutil.rmtree(directory)


# The version that a removed one makes necessary.
LAST = Group(
    [Doing([Operation("set", "z", "place", 0, None, None, "0")], goes_on=False, fails=False)], 0, 0, 0.0, False
)
OPTIONS: list[dict[str, Any]] = [{}, {}, {"wal_mode": False}, {"checksums": True}, {"prepare_cache_size": 1}]


@settings(
    max_examples=50 if IS_SHORT else 3000, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.lists(groups, min_size=1, max_size=4), st.sampled_from([1, 2, 4, 4, 64]), st.sampled_from(OPTIONS))
def test_members_have_the_answers_of_calls_one_by_one(
    place: Path, some: list[Group], most: int, options: dict[str, Any]
) -> None:
    directory = Path(tempfile.mkdtemp(dir=place))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_module, "_MOST_ROWS", most)
        patch.setattr(commits_module, "_PLAIN_GROUPS", 0)
        stores = TwoStores(directory, **options)
        try:
            for group in [*some, LAST]:
                stores.run(group)
            stores.stores[1].check()
        finally:
            stores.close()
            shutil.rmtree(directory)


# ---- one hazard each


def setting(key: str, value: object = 1, **options: Any) -> Call:
    return Call(lambda verbs: Verbs.set(verbs, key, value, **options))


def shared(store: Storage, calls: Sequence[Call]) -> list[Any]:
    """What came of calls that share a commit."""
    store._share(calls)
    return [_plain(call.outcome()) if call.error is None else type(call.error) for call in calls]


def rows(prefix: str, count: int) -> list[Call]:
    return [setting(f"{prefix} {number}", number) for number in range(count)]


def unique(store: Storage, *, taken: int = 0) -> None:
    store.create_index("n", unique=True, namespace="unique", name="unique n")
    store.set("taken", {"n": taken}, namespace="unique")


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 66, 129, 1000])
def test_so_many_rows_are_all_there_and_written_by_few_statements(
    logged_store: Storage, sql: SqlLog, count: int
) -> None:
    shared(logged_store, rows("row", count))
    sql.statements.clear()
    versions = shared(logged_store, rows("row", count))
    assert sql.of("BEGIN", "ROLLBACK", "COMMIT") == ["BEGIN", "COMMIT"]
    assert 1 <= len(sql.of("INSERT INTO storage_entries")) <= 1 + count // 64 + 6
    entries = logged_store.get_entries([f"row {number}" for number in range(count)])
    assert [entry.value for entry in entries.values()] == list(range(count))
    assert [entry.version for entry in entries.values()] == versions


def test_the_same_key_twice_has_two_versions_and_the_last_value(any_store: Storage) -> None:
    keys = ["a", "b", "a", "c", "b", "a", "d", "c"]
    versions = shared(any_store, [setting(key, number) for number, key in enumerate(keys)])
    for key in set(keys):
        of_key = [version for version, other in zip(versions, keys, strict=True) if other == key]
        assert of_key == sorted(set(of_key))
        assert any_store.get_entry(key).version == of_key[-1]
    assert any_store.get_many(list("abcd")) == {"a": 5, "b": 4, "c": 7, "d": 6}


def test_keys_that_come_again_and_again_are_done_once(logged_store: Storage, sql: SqlLog) -> None:
    """What is told too early for them would be done twice."""
    sql.statements.clear()
    calls = [setting(f"{number * number % 7}", number) for number in range(50)]
    calls[20:20] = [
        Call(lambda verbs: Verbs.set_many(verbs, {"x": 1, "y": 1})),
        setting("z"),
        setting("x"),
        setting("y"),
    ]
    calls[40:40] = [Call(lambda verbs: Verbs.increment(verbs, f"{n}")) for n in range(3)]  # noqa: B023
    shared(logged_store, calls)
    assert sql.of("BEGIN", "ROLLBACK", "COMMIT") == ["BEGIN", "COMMIT"]


def test_a_version_grows_where_the_clock_is_behind_one_that_is_stored(any_store: Storage, clock: FakeClock) -> None:
    clock.advance(3_600)
    ahead = any_store.set("ahead", 1)
    clock.advance(-3_600)
    before = any_store.set("before", 0)
    found = shared(any_store, [*rows("row", 5), setting("ahead", 2), *rows("more", 5)])
    assert found == [before] * 5 + [ahead + 1] + [before] * 5
    assert (any_store.get("ahead"), any_store.get_entry("ahead").version) == (2, ahead + 1)
    assert any_store.count() == 12


def test_a_version_is_greater_than_one_that_made_way_for_another(any_store: Storage, clock: FakeClock) -> None:
    """What had expired, with a version ahead of the clock and a value that must be unique, leaves a floor behind."""
    unique(any_store)
    clock.advance(3_600)
    any_store.set("expired", 0, namespace="unique")
    clock.advance(-3_600)
    ahead = any_store.set("expired", {"n": 1}, ttl=1, namespace="unique")
    clock.advance(5)
    calls = [setting(f"{number}", {"n": value}, namespace="unique") for number, value in enumerate([5, 6, 1, 7, 8])]
    versions = shared(any_store, calls)
    assert versions[1] < ahead < min(versions[2:])


def test_a_duplicate_among_them_fails_its_own_member_and_the_others_share_one_commit(
    logged_store: Storage, sql: SqlLog
) -> None:
    store = logged_store
    unique(store)
    sql.statements.clear()
    calls = [setting(f"{number}", {"n": number % 90}, namespace="unique") for number in range(1, 101)]
    found = shared(store, [*calls, Call(lambda verbs: Verbs.increment(verbs, "counter"))])
    assert [number for number, one in enumerate(found, 1) if one is UniqueIndexError] == list(range(90, 101))
    assert sql.of("BEGIN", "ROLLBACK", "COMMIT") == ["BEGIN", "ROLLBACK", "BEGIN", "COMMIT"]
    assert store.count(namespace="unique") == 90


def test_where_duplicates_come_again_and_again_few_groups_are_done_twice(
    logged_store: Storage, sql: SqlLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits_module, "_PLAIN_GROUPS", 3)
    store = logged_store
    unique(store)
    sql.statements.clear()
    for group in range(8):
        calls = [setting(f"{group} {n}", {"n": group * 10 + n}, namespace="unique") for n in range(1, 5)]
        assert shared(store, [*calls, setting("bad", {"n": 0}, namespace="unique")])[-1] is UniqueIndexError
    assert sql.of("ROLLBACK") == ["ROLLBACK"] * 2
    assert store.count(namespace="unique") == 33


READS: dict[str, tuple[Callable[[Verbs], Any], Any]] = {
    "get": (lambda verbs: Verbs.get(verbs, "row 2"), 2),
    "has": (lambda verbs: Verbs.has(verbs, "row 3"), True),
    "get_many": (lambda verbs: Verbs.get_many(verbs, ["row 1", "row 2"]), {"row 1": 1, "row 2": 2}),
    "list_keys": (lambda verbs: len(Verbs.list_keys(verbs, prefix="row")), 5),
    "count": (lambda verbs: Verbs.count(verbs), 5),
    "query": (lambda verbs: len(Verbs.query(verbs)), 5),
    "increment": (lambda verbs: Verbs.increment(verbs, "row 4"), 5),
    "add": (lambda verbs: Verbs.add(verbs, "row 2", 7), False),
    "delete": (lambda verbs: Verbs.delete(verbs, "row 4"), True),
    "clear": (lambda verbs: Verbs.clear(verbs), 5),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_what_comes_between_sees_them(any_store: Storage, read: tuple[Callable[[Verbs], Any], Any]) -> None:
    function, expected = read
    found = shared(any_store, [*rows("row", 5), Call(function), *rows("more", 5)])
    assert found[5] == expected
    assert any_store.get_many([f"more {n}" for n in range(5)]) == {f"more {n}": n for n in range(5)}


def test_what_has_expired_is_replaced_and_leaves_nothing_behind(any_store: Storage, clock: FakeClock) -> None:
    for number in (1, 3):
        any_store.set(f"row {number}", "old", metadata={"old": True}, ttl=1)
    clock.advance(5)
    shared(any_store, rows("row", 5))
    entries = any_store.get_entries([f"row {number}" for number in range(5)])
    assert [(entry.value, entry.metadata, entry.expires_at) for entry in entries.values()] == [
        (number, {}, None) for number in range(5)
    ]
    assert {entry.created_at for entry in entries.values()} == {clock.time}


def test_what_is_replaced_keeps_its_beginning_and_its_metadata(any_store: Storage, clock: FakeClock) -> None:
    began = clock.time
    any_store.set_many({f"row {number}": "old" for number in range(5)}, metadata={"m": 1})
    any_store.touch("row 4", ttl=60)
    clock.advance(5)
    shared(any_store, [*rows("row", 4), setting("row 4", 4, metadata={"m": 2}), setting("row 5", 5, ttl=60)])
    entries = list(any_store.get_entries([f"row {number}" for number in range(5)]).values())
    assert [entry.metadata["m"] for entry in entries] == [1, 1, 1, 1, 2]
    assert {(entry.created_at, entry.updated_at, entry.expires_at) for entry in entries} == {(began, clock.time, None)}
    assert any_store.get_entry("row 5").expires_at == clock.time + timedelta(seconds=60)


def test_one_that_fails_after_its_row_was_gathered_leaves_nothing(any_store: Storage) -> None:
    def fails(verbs: Verbs) -> None:
        Verbs.set(verbs, "half", 1)
        raise OwnError

    found = shared(any_store, [*rows("row", 3), Call(fails), *rows("more", 3)])
    assert found[3] is OwnError
    assert "half" not in any_store.list_keys()
    assert any_store.count() == 6


def test_a_namespace_that_is_deleted_between_is_registered_again(any_store: Storage) -> None:
    def in_turn(number: int) -> list[Call]:
        return [setting(f"{number} {n}", n, namespace=f"turn {n % 2}") for n in range(6)]

    delete = Call(lambda verbs: delete_namespace(verbs, "turn 0"))
    shared(any_store, [*in_turn(0), delete, *in_turn(1)])
    assert any_store.count(namespace="turn 0") == 3
    assert any_store.count(namespace="turn 1") == 6
    assert {"turn 0", "turn 1"} <= set(any_store.list_namespaces())
    any_store.check()


def test_one_that_goes_on_after_whatever_fails_hides_nothing(any_store: Storage, clock: FakeClock) -> None:
    """It may meet the failure of another's row, which is not its own to forgive."""

    def forgives(verbs: Verbs) -> None:
        with contextlib.suppress(Exception):
            Verbs.get(verbs, "row 0")

    clock.advance(3_600)
    ahead = any_store.set("ahead", 1)
    clock.advance(-3_600)
    found = shared(
        any_store, [*rows("row", 3), setting("ahead", 2), *rows("lost", 3), Call(forgives), *rows("more", 3)]
    )
    assert found[3] == ahead + 1
    assert any_store.get("ahead") == 2
    assert any_store.count() == 10


@pytest.mark.parametrize("what", ["value", "metadata"])
def test_long_texts_are_not_kept_until_others_come(logged_store: Storage, sql: SqlLog, what: str) -> None:
    """Sixty-four of the greatest values would be four gigabytes."""
    sql.statements.clear()
    text = "x" * 10_000
    options: dict[str, Any] = {} if what == "value" else {"metadata": {"m": text}}
    shared(logged_store, [setting(f"{n}", text if what == "value" else n, **options) for n in range(20)])
    assert len(sql.of("INSERT INTO storage_entries")) == 20
