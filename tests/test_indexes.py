"""Hazard: a created index loses its meaning where others are about: threads, processes, reopening, rollback, old files,
damaged statistics. What indexes are as such is asked of every engine by the contract suite.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from mycelia_storage import (
    CapacityError,
    InvalidFilterError,
    SchemaVersionError,
    StorageBusyError,
    StorageError,
    UniqueIndexError,
    field,
    open_storage,
    path,
)
from mycelia_storage.engines.sqlite import indexes
from mycelia_storage.engines.sqlite.engine import SQLiteEngine

if TYPE_CHECKING:
    from pathlib import Path

    from mycelia_storage import Storage
    from mycelia_storage.testing import FakeClock

N = field("n")

# Each process claims every number under a key of its own; for each number one of them has to win.
CLAIMER = """
import sys
from mycelia_storage import UniqueIndexError, open_storage
name, file = sys.argv[1:]
with open_storage(file, busy_timeout=30) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    won = []
    for number in range(60):
        try:
            if number % 3 == 0:
                store.set(f"{name}{number}", {"n": number})
            elif number % 3 == 1:
                store.set_many({f"{name}{number}": {"n": number}, f"{name}{number}+": {"m": 1}})
            else:
                with store.transaction() as tx:
                    tx.set(f"{name}{number}", {"n": number})
            won.append(number)
        except UniqueIndexError as error:
            assert error.index == "one n", error
    print(won, flush=True)
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_unique_index_holds_across_processes(tmp_path: Path) -> None:
    file = str(tmp_path / "store.db")
    with open_storage(file) as store:
        store.create_index("n", unique=True, name="one n")
        processes = [start(CLAIMER, name, file) for name in "abc"]
        try:
            for process in processes:
                assert line(process) == "ready\n"
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            won = [eval(line(process)) for process in processes]
        finally:
            for process in processes:
                process.communicate(timeout=60)
        assert sorted(number for numbers in won for number in numbers) == list(range(60))
        expected = {f"{name}{number}": number for name, numbers in zip("abc", won, strict=True) for number in numbers}
        assert {entry.key: entry.value["n"] for entry in store.scan(N.exists())} == expected
        # Nothing of a batch that was refused is there.
        assert store.count(field("m") == 1) == 20
        store.check()


@pytest.mark.parametrize("namespace", ["default", None])
def test_a_unique_index_holds_across_threads(any_store: Storage, namespace: str | None) -> None:
    any_store.create_index("n", unique=True, namespace=namespace)

    def claim(turn: int) -> bool:
        number = turn % 20
        try:
            if turn % 3 == 0:
                any_store.set(f"key{turn}", {"n": number})
            elif turn % 3 == 1:
                any_store.set_many({f"key{turn}": {"n": number}, f"more{turn}": {}})
            else:
                any_store.run_transaction(lambda tx: tx.add(f"key{turn}", {"n": number}))
        except UniqueIndexError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(100))) == 20
    assert sorted(entry.value["n"] for entry in any_store.scan(N.exists())) == list(range(20))


def test_two_threads_make_and_drop_indexes_while_others_read_and_write(any_store: Storage) -> None:
    any_store.set_many({f"key{number:02}": {"n": number} for number in range(50)})
    done = threading.Event()
    errors: list[BaseException] = []

    def guarded(step: Any) -> threading.Thread:
        def run() -> None:
            try:
                while not done.is_set():
                    step()
            except BaseException as error:  # noqa: BLE001 - shown by the test
                errors.append(error)

        return threading.Thread(target=run)

    def read() -> None:
        assert any_store.query(N.between(10, 19), sort="-n").keys() == [f"key{number}" for number in range(19, 9, -1)]
        assert any_store.count(N >= 0) == 50

    def write() -> None:
        for number in (3, 47):
            any_store.set(f"key{number:02}", {"n": number, "m": 1})

    threads = [guarded(read), guarded(read), guarded(write)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(15):
            name = any_store.create_index("n", unique=bool(turn % 2), namespace=("default", None)[turn % 3 == 0])
            read()
            any_store.drop_index(name)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert any_store.list_indexes() == []


def test_statistics_are_refreshed_while_several_threads_write(tmp_path: Path) -> None:
    """Looking whether they are stale must not meet a writer in the middle of a statement."""
    with open_storage(tmp_path / "store.db") as store:
        name = store.create_index("n")

        def write(thread: int) -> None:
            for turn in range(2000):
                store.set(f"key{thread}.{turn}", {"n": thread * 10_000 + turn})
                if turn % 4 == 3:
                    store.delete(f"key{thread}.{turn}")

        interval = sys.getswitchinterval()
        sys.setswitchinterval(0.000_01)
        try:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(write, range(4)))
        finally:
            sys.setswitchinterval(interval)
        assert store.count(N >= 0) == 4 * 1500
        assert store.explain(N == 10_001).indexes == (name,)
        store.check()


@pytest.mark.parametrize("at", ["write", "close"])
def test_an_index_that_another_process_makes_during_a_look_at_the_statistics_is_in_nobodys_way(
    tmp_path: Path, at: str
) -> None:
    with open_storage(tmp_path / "store.db") as other, open_storage(tmp_path / "store.db") as store:
        store.create_index("n", name="z")
        made: list[str] = []

        def make(_: object, statement: str, __: object) -> bool:
            if statement == indexes.INDEXES and not made:
                made.append("a")
                other.create_index("m", name="a")
            return True

        engine = store._engine
        assert isinstance(engine, SQLiteEngine)
        engine.writer.connection.exec_trace = make
        store.set_many({f"{number}": {"n": number} for number in range(1100 if at == "write" else 500)})
        assert bool(made) == (at == "write")
        store.close()
        assert made
        assert other.get("499") == {"n": 499}


def test_statistics_are_collected_though_another_process_writes_just_then(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db") as store, open_storage(tmp_path / "store.db", busy_timeout=0) as other:
        store.set("first", {"n": 1})
        store.optimize()
        store.create_index("n")
        store.optimize()
        store.set_many({f"{number}": {"n": number} for number in range(900)})
        tried: list[bool] = []

        def write(event: dict[str, Any]) -> None:
            if event["sql"].startswith("ANALYZE"):
                tried.append(True)
                with suppress(StorageBusyError):
                    other.set("more", 1)

        engine = store._engine
        assert isinstance(engine, SQLiteEngine)
        engine.writer.connection.trace_v2(apsw.SQLITE_TRACE_STMT, write)
        store.optimize()
        engine.writer.connection.trace_v2(0, None)
        assert tried
        other.set("more", 1)


def test_another_store_on_the_file_meets_the_index_at_once(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    with open_storage(file) as one, open_storage(file) as two:
        two.set_many({f"key{number:04}": {"n": number} for number in range(1000)})
        assert two.explain(N == 5).full_scan
        name = one.create_index("n", unique=True)
        assert two.explain(N == 5).indexes == (name,)
        assert two.query(N == 5).keys() == ["key0005"]
        with pytest.raises(UniqueIndexError):
            two.set("other", {"n": 5})
        two.drop_index(name)
        one.set("other", {"n": 5})
        assert one.query(N == 5).keys() == ["key0005", "other"]
        assert one.list_indexes() == []


def test_sixty_four_count_over_all_openings(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    with open_storage(file) as one, open_storage(file) as two:
        for number in range(32):
            one.create_index(f"a{number}")
            two.create_index(f"b{number}", namespace=None)
        for store in (one, two):
            with pytest.raises(CapacityError, match="64"):
                store.create_index("c")
            store.set("key", {"a1": 1, "b1": 2})
        assert one.query((field("a1") == 1) & (field("b1") == 2)).keys() == ["key"]


def test_sixty_four_hold_inside_a_transaction_too(any_store: Storage) -> None:
    with any_store.transaction() as tx:
        for number in range(64):
            tx.create_index(f"a{number}")
        with pytest.raises(CapacityError):
            tx.create_index("more")
        with tx.transaction() as inner:
            inner.drop_index("default: a1")
            inner.create_index("more")
            inner.rollback()
        with pytest.raises(CapacityError):
            tx.create_index("more")
    assert len(any_store.list_indexes()) == 64


def test_indexes_come_back_with_all_they_do(tmp_path: Path, clock: FakeClock) -> None:
    file = tmp_path / "store.db"
    with open_storage(file, clock=clock) as store:
        store.create_index("n", unique=True, namespace=None)
        store.create_index(path("x y" * 300, "'").desc(), "$metadata.m", "$created_at", name="it's")
        store.set_many({f"key{number:04}": {"n": number} for number in range(1000)}, namespace="place")
        before = store.list_indexes()
    for _ in range(2):
        with open_storage(file, clock=clock) as store:
            assert store.list_indexes() == before
            assert store.explain(N == 5, namespace="place").uses_index
            with pytest.raises(UniqueIndexError) as caught:
                store.set("other", {"n": 5}, namespace="place")
            assert caught.value.index == "*: n (unique)"
            assert "'key0005'" in str(caught.value)
            store.check()
            store.optimize()


def test_a_reader_sees_the_indexes_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    with open_storage(file) as store:
        store.set_many({f"key{number:04}": {"n": number} for number in range(1000)})
        name = store.create_index("n")
    with open_storage(file, read_only=True) as store:
        assert [index.name for index in store.list_indexes()] == [name]
        assert store.explain(N == 5).indexes == (name,)
        assert store.explain(field("m") == 5).advice == "create_index('m')" or store.explain(field("m") == 5).full_scan
        for call in (
            lambda: store.create_index("m"),
            lambda: store.drop_index(name),
            lambda: store.delete_where(N == 1),
        ):
            with pytest.raises(StorageError) as caught:
                call()
            assert caught.value.code == "read_only"


def test_migrating_down_is_refused_while_there_is_an_index(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    with open_storage(file) as store:
        store.set("key", {"n": 1})
        store.create_index("n", name="by n")
        store.create_index("m", namespace=None, name="it's")
        with pytest.raises(SchemaVersionError, match="'by n'.*it's"):
            store.migrate(to=1)
        assert store.query(N == 1).keys() == ["key"]
        assert [index.name for index in store.list_indexes()] == ["by n", "it's"]
        store.drop_index("by n")
        with pytest.raises(SchemaVersionError, match="it's"):
            store.migrate(to=1)
        store.drop_index("it's")
        store.migrate(to=1)
    connection = apsw.Connection(str(file))
    objects = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema").fetchall()}
    connection.close()
    assert not {name for name in objects if str(name).startswith("storage_index")}
    with open_storage(file) as store:
        store.create_index("n")
        assert store.query(N == 1).keys() == ["key"]


def test_a_crash_while_an_index_is_built_leaves_none_of_it(tmp_path: Path) -> None:
    file = str(tmp_path / "store.db")
    with open_storage(file) as store:
        store.set_many({f"key{number:04}": {"n": number} for number in range(100)})
    script = """
import os, sys
from mycelia_storage import open_storage
store = open_storage(sys.argv[1])
tx = store.transaction().__enter__()
tx.create_index("n", unique=True)
tx.drop_index("default: n (unique)")
tx.create_index("n", name="half made")
tx.set("half", {"n": 5})
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script, file], check=False, timeout=60).returncode == 9
    with open_storage(file) as store:
        assert store.list_indexes() == []
        assert store.count() == 100
        store.check()
        store.create_index("n", name="half made")


def test_duplicates_are_named_but_not_all_of_thousands(any_store: Storage) -> None:
    any_store.set_many({f"key{number:04}": {"n": number // 2} for number in range(4000)})
    with pytest.raises(UniqueIndexError) as caught:
        any_store.create_index("n", unique=True)
    assert "'key0000'" in str(caught.value)
    assert "'key0001'" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_an_error_shows_no_values(any_store: Storage) -> None:
    any_store.set_many({"a": {"n": "secret"}, "b": {"n": "secret"}})
    with pytest.raises(UniqueIndexError) as caught:
        any_store.create_index("n", unique=True)
    assert "secret" not in str(caught.value)
    any_store.delete("b")
    any_store.create_index("n", unique=True)
    with pytest.raises(UniqueIndexError) as caught:
        any_store.set("b", {"n": "secret"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("values", [(1, True), (0, False), (1, "1"), (None, "null"), (2**53, 2**53 + 1)], ids=repr)
def test_values_that_a_database_might_take_for_equal(any_store: Storage, values: tuple[Any, Any]) -> None:
    any_store.create_index("n", unique=True)
    any_store.create_index("$metadata.n", unique=True, namespace=None)
    for number, value in enumerate(values):
        any_store.set(f"key{number}", {"n": value}, metadata={"n": value})
        with pytest.raises(UniqueIndexError):
            any_store.set("other", {"n": value})
        with pytest.raises(UniqueIndexError):
            any_store.set("other", 1, metadata={"n": value})
        assert any_store.query(N.eq(value)).keys() == [f"key{number}"]


def test_times_can_be_unique(any_store: Storage, clock: FakeClock) -> None:
    any_store.create_index("$created_at", unique=True)
    any_store.set("a", 1)
    with pytest.raises(UniqueIndexError, match="'a'"):
        any_store.set("b", 1)
    clock.advance(0.001)
    any_store.set("b", 1)
    any_store.set("a", 2)


def test_expired_entries_go_when_they_are_in_the_way(any_store: Storage, clock: FakeClock) -> None:
    any_store.create_index("n", unique=True, namespace=None)
    any_store.set_many({f"key{number:03}": {"n": number} for number in range(200)}, ttl=1)
    any_store.set("stays", {"n": -1})
    first = any_store.get_entry("key000").version
    clock.advance(1)
    any_store.set_many({f"new{number:03}": {"n": number} for number in range(200)})
    assert any_store.count() == 201
    clock.advance(-0.5)
    assert any_store.set("key000", {"n": 1000}) > first
    with pytest.raises(UniqueIndexError, match="'stays'"):
        any_store.set("other", {"n": -1.0})


def test_only_what_is_in_the_way_is_removed(any_store: Storage, clock: FakeClock) -> None:
    """A clock that is set back shows what of that which had expired is still there."""
    any_store.create_index("n", unique=True)
    any_store.create_index("m", unique=True)
    any_store.set_many({f"old {n}": {"n": n, "m": n} for n in range(20)}, ttl=10)
    any_store.set("elsewhere", {"n": 1}, namespace="place", ttl=10)
    clock.advance(10)
    any_store.set("new", {"n": 3, "m": 4})
    any_store.set_many({"newer": {"n": 5, "m": 5}, "newest": {"n": 6}})
    any_store.set("old 7", {"n": 8})
    any_store.set("stays", {"n": 100})
    with pytest.raises(UniqueIndexError, match="'stays'"):
        any_store.set("refused", {"n": 100, "m": 10})
    with pytest.raises(UniqueIndexError, match="'stays'"):
        any_store.set_many({"refused": {"n": 11}, "refused, too": {"n": 100}})
    clock.advance(-1)
    gone = {f"old {n}" for n in (3, 4, 5, 6, 8)}
    there = {"new", "newer", "newest", "stays", *(f"old {n}" for n in range(20))} - gone
    assert set(any_store.list_keys()) == there
    assert any_store.get("old 7") == {"n": 8}
    assert any_store.has("elsewhere", namespace="place")


def test_what_is_removed_because_it_is_in_the_way_leaves_its_version_behind(
    any_store: Storage, clock: FakeClock
) -> None:
    """Versions are unique here, too: the new entry would have that of the one which is in its way."""
    any_store.create_index("n", unique=True)
    any_store.create_index("$version", unique=True)
    first = any_store.set("a", {"n": 1}, ttl=0.001)
    with any_store.transaction() as tx:
        for key, last in (("a", first + 1001), ("b", first + 1000)):
            while tx.set(key, {"n": key}, ttl=0.001) < last:
                pass
    clock.advance(0.001)
    assert any_store.set("new", {"n": 3}) == first + 1002
    any_store.drop_index("default: $version (unique)")
    assert any_store.set("a", {"n": 1}) > first + 1001
    assert any_store.list_keys() == ["a", "new"]


@pytest.mark.parametrize("namespace", ["default", None], ids=repr)
def test_what_is_in_the_way_is_found_without_a_visit_to_every_entry(
    sqlite_store: Storage, clock: FakeClock, namespace: str | None
) -> None:
    store = sqlite_store
    store.create_index("n", unique=True, namespace=namespace)
    store.set_many({f"{number}": {"n": number} for number in range(5000)})
    store.set("old", {"n": -1}, ttl=1)
    clock.advance(1)
    steps = 0

    def step() -> bool:
        nonlocal steps
        steps += 100
        return False

    connection = store._engine.writer.connection  # type: ignore[attr-defined]
    connection.set_progress_handler(step, 100)
    store.set("new", {"n": -1})
    with pytest.raises(UniqueIndexError, match="'new'"):
        store.set("refused", {"n": -1})
    connection.set_progress_handler(None)
    assert 0 < steps < 5000


def test_what_is_in_the_way_of_two_indexes_makes_room_once(clock: FakeClock) -> None:
    with open_storage("memory:", capacity=3, clock=clock) as store:
        store.create_index("n", unique=True)
        store.create_index("m", unique=True)
        store.set("old", {"n": 1, "m": 1}, ttl=1)
        store.set("stays", 1)
        clock.advance(1)
        with store.transaction() as tx:
            tx.set("new", {"n": 1, "m": 1})
            tx.set("third", 1)
            with pytest.raises(CapacityError):
                tx.set("fourth", 1)


def test_an_entry_keeps_its_own_value(any_store: Storage) -> None:
    any_store.create_index("n", unique=True)
    any_store.create_index("n", "m", unique=True)
    any_store.set_many({f"key{number}": {"n": number, "m": 1} for number in range(5)})
    for _ in range(2):
        any_store.set_many({f"key{number}": {"n": number, "m": 1} for number in range(5)})
        any_store.set("key1", {"n": 1, "m": 2})
        any_store.merge("key1", {"x": 1})
        any_store.touch("key1", ttl=None)
        any_store.increment("key1", field="count")
        any_store.set_metadata("key1", {"a": 1})
        any_store.modify("key1", lambda value: value)
    assert any_store.count() == 5


def test_a_definition_that_is_refused_changes_nothing(any_store: Storage) -> None:
    any_store.create_index("n")
    before = any_store.list_indexes()
    wrong: list[Any] = [(), ("a", "a"), ("$key",), ("$nothing",), ("a", 5)]
    for fields in wrong:
        with pytest.raises(InvalidFilterError):
            any_store.create_index(*fields, namespace="fresh")
    assert any_store.list_indexes() == before
    assert any_store.list_namespaces() == ["default"]
