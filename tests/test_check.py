"""Hazard: a check that finds nothing wrong with a store that is damaged, or stops at the first damage."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import apsw
import pytest

from mycelia_storage import Storage, StorageClosedError, StorageCorruptError, StorageTimeoutError, open_storage
from mycelia_storage.engines.engine import NamespaceRow
from mycelia_storage.engines.limits import Limit
from mycelia_storage.engines.memory import MemoryEngine
from mycelia_storage.engines.sqlite import SQLiteEngine, checking
from mycelia_storage.engines.sqlite.checking import created
from mycelia_storage.engines.sqlite.indexes import all_indexes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mycelia_storage.engines.memory.state import State
    from mycelia_storage.testing import FakeClock

PAGE = 4096
SECRET = "SECRET"


def fill(store: Storage) -> None:
    """Entries with every kind of index on them, and some in a namespace with none of its own."""
    store.set_many({f"k{number:03}": {"n": number, "t": SECRET * (number % 3)} for number in range(200)})
    store.set_many({f"p{number:03}": {"n": number} for number in range(100)}, namespace="plain", metadata={"m": 1})
    store.set_many({f"e{number:03}": number for number in range(50)}, namespace="expiring", ttl=1000)
    store.create_index("n")
    store.create_index("t", "-n", name="two")
    store.create_index("n", unique=True, name="unique")
    store.create_index("$updated_at", name="time")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path, clock: FakeClock) -> Iterator[Storage]:
    with open_storage(path, clock=clock) as opened:
        fill(opened)
        opened.check()
        yield opened


def edit(path: Path, *statements: str) -> None:
    """What no verb would do."""
    connection = apsw.Connection(str(path))
    try:
        connection.execute("PRAGMA writable_schema=ON")
        for statement in statements:
            connection.execute(statement)
    finally:
        connection.close()


def edit_unseen(path: Path, index: str, *statements: str) -> None:
    """Change the table while an index does not notice."""
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA writable_schema=ON")
    row = connection.execute("SELECT * FROM sqlite_schema WHERE name = ?", (index,)).get
    connection.execute("DELETE FROM sqlite_schema WHERE name = ?", (index,))
    connection.close()
    edit(path, *statements)
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA writable_schema=ON")
    connection.execute("INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", row)
    connection.close()


def number_of(path: Path, name: str) -> int:
    connection = apsw.Connection(str(path))
    found = connection.execute("SELECT id FROM storage_indexes WHERE name = ?", (name,)).get
    connection.close()
    return int(found)


def problems_of(store: Storage) -> tuple[str, ...]:
    with pytest.raises(StorageCorruptError) as caught:
        store.check()
    error = caught.value
    assert error.count >= len(error.problems) > 0
    assert all(problem in str(error) for problem in error.problems)
    assert SECRET not in str(error)
    return error.problems


def assert_found(store: Storage, *words: str) -> None:
    found = problems_of(store)
    assert any(all(word in problem for word in words) for problem in found), found


def test_a_report_tells_how_much_was_looked_at(store: Storage, clock: FakeClock) -> None:
    report = store.check()
    assert (report.backend, report.entries, report.namespaces, report.indexes) == ("sqlite", 350, 3, 4)
    clock.advance(1000)
    assert store.check().entries == 300


# ---- rows


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("value = '{\"a\": '", "the value: not JSON"),
        ("value = '{\"a\": NaN}'", "not JSON"),
        ("value = '[99999999999999999999]'", "beyond 64 bits"),
        ("value = ''", "not JSON"),
        ("value = '\"' || char(0) || '\"'", "not JSON"),
        ("metadata = '[1]'", "the metadata: list where an object belongs"),
        ("metadata = '{'", "the metadata: not JSON"),
        ("version = 0", "version"),
        ("version = -5", "version"),
        (f"version = {2**63 - 1}", "version"),
        ("created_at = -1", "created_at"),
        (f"updated_at = {2**60}", "updated_at"),
        (f"expires_at = {2**60}", "expires_at"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named(store: Storage, path: Path, change: str, word: str) -> None:
    edit(path, f"UPDATE storage_entries SET {change} WHERE key = 'p007'")
    assert_found(store, "'p007' in namespace 'plain'", word)
    assert len(problems_of(store)) == 1


@pytest.mark.parametrize(("key", "word"), [("''", "at least one character"), ("hex(zeroblob(600))", "bytes")])
def test_a_key_that_breaks_a_rule_is_named(store: Storage, path: Path, key: str, word: str) -> None:
    edit(path, f"UPDATE storage_entries SET key = {key} WHERE key = 'p007'")
    assert_found(store, word)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE storage_entries SET namespace = 'lost' WHERE namespace = 'plain'", ("'lost' is not registered",)),
        ("DELETE FROM storage_namespaces WHERE name = 'default'", ("'default' is not registered",)),
        ("UPDATE storage_namespaces SET metadata = '[]' WHERE name = 'plain'", ("'plain'", "metadata")),
        ("UPDATE storage_namespaces SET created_at = -5 WHERE name = 'plain'", ("'plain'", "created_at")),
        ("INSERT INTO storage_namespaces VALUES ('a*b', NULL, 1)", ("'a*b'",)),
        ("INSERT INTO storage_namespaces VALUES (x'00', NULL, 1)", ("namespace b'",)),
        ("DELETE FROM storage_version_floor", ("storage_version_floor",)),
        ("UPDATE storage_version_floor SET version = -1", ("floor",)),
        (f"UPDATE storage_version_floor SET version = {2**63 - 1}", ("floor",)),
        ("DELETE FROM schema_version WHERE version = 2", ("somebody else",)),
        ("UPDATE storage_indexes SET is_unique = 2 WHERE name = 'unique'", ("'unique'",)),
        ("UPDATE storage_indexes SET created_at = -2 WHERE name = 'two'", ("'two'", "damaged")),
        ("UPDATE storage_indexes SET fields = 'SECRET' WHERE name = 'two'", ("definition", "2 is damaged")),
        ("UPDATE storage_indexes SET fields = '[\"n\"]' WHERE name = 'two'", ("storage_index_2",)),
        ("UPDATE storage_indexes SET name = '' WHERE name = 'two'", ("definition of the index ''",)),
        ("DELETE FROM storage_indexes WHERE name = 'two'", ("storage_index_2",)),
        ("INSERT INTO storage_indexes VALUES (9, 'x', NULL, '[\"n\"]', 0, 0, 0)", ("storage_index_9",)),
        ("DROP INDEX storage_index_2", ("storage_index_2",)),
        ("DROP INDEX storage_entries_expiry", ("storage_entries_expiry",)),
        ("CREATE TABLE planted (a)", ("planted",)),
        ("CREATE TRIGGER planted AFTER DELETE ON storage_entries BEGIN SELECT 1; END", ("planted",)),
        ("CREATE VIEW planted AS SELECT 1", ("planted",)),
        ("CREATE INDEX planted ON storage_entries(version)", ("planted",)),
    ],
)
def test_damage_to_the_tables_beside_is_found(store: Storage, path: Path, change: str, words: tuple[str, ...]) -> None:
    edit(path, change)
    assert_found(store, *words)


def test_two_damages_are_two_problems(store: Storage, path: Path) -> None:
    edit(
        path,
        "UPDATE storage_entries SET value = 'x' WHERE key = 'p001'",
        "UPDATE storage_entries SET value = 'x' WHERE key = 'p002'",
        "CREATE TABLE planted (a)",
        "DELETE FROM storage_version_floor",
    )
    assert len(problems_of(store)) == 4


def test_however_many_problems_there_are_the_list_is_short(store: Storage, path: Path) -> None:
    edit(path, "UPDATE storage_entries SET value = 'x' WHERE namespace = 'plain'")
    with pytest.raises(StorageCorruptError) as caught:
        store.check()
    assert caught.value.count == 100
    assert len(caught.value.problems) == 50
    assert "and 50 more" in str(caught.value)


# ---- indexes


@pytest.mark.parametrize(
    ("index", "change", "words"),
    [
        ("n", "UPDATE storage_entries SET value = '{\"n\":-1}' WHERE key = 'k005'", ("another value", "'k005'")),
        ("n", "DELETE FROM storage_entries WHERE key = 'k005'", ("which is missing",)),
        (
            "n",
            "INSERT INTO storage_entries VALUES (9999,'default','new',1,1,1,NULL,NULL,'{}')",
            ("missing in", "'new'"),
        ),
        ("n", "UPDATE storage_entries SET namespace = 'plain' WHERE key = 'k005'", ("'k005'", "does not belong")),
        ("n", "UPDATE storage_entries SET namespace = 'default' WHERE key = 'p005'", ("'p005'", "is missing in")),
        ("n", "UPDATE storage_entries SET key = 'other' WHERE key = 'k005'", ("'other'", "another value")),
        ("unique", "UPDATE storage_entries SET value = '{\"n\":-1}' WHERE key = 'k005'", ("another value", "'k005'")),
        ("unique", "DELETE FROM storage_entries WHERE key = 'k005'", ("which is missing",)),
        ("two", "UPDATE storage_entries SET value = '{\"n\":5}' WHERE key = 'k005'", ("another value", "'k005'")),
        ("time", "UPDATE storage_entries SET updated_at = 5 WHERE key = 'k005'", ("another value", "'k005'")),
        ("", "UPDATE storage_entries SET expires_at = NULL WHERE key = 'e005'", ("'e005'", "does not belong")),
        ("", "UPDATE storage_entries SET expires_at = 5 WHERE key = 'e005'", ("another value", "'e005'")),
        ("", "UPDATE storage_entries SET expires_at = 5 WHERE key = 'k005'", ("is missing in", "'k005'")),
        ("", "UPDATE storage_entries SET namespace = 'plain' WHERE key = 'e005'", ("another value", "'e005'")),
    ],
)
def test_an_index_that_does_not_agree_with_the_table_is_found(
    path: Path, clock: FakeClock, index: str, change: str, words: tuple[str, ...]
) -> None:
    with open_storage(path, clock=clock) as store:
        fill(store)
        # Only this index, or the others would be right about the change, and the statement would keep them so.
        for info in store.list_indexes():
            if info.name not in (f"default: {index}", index):
                store.drop_index(info.name)
        names = [info.name for info in store.list_indexes()]
        hidden = f"storage_index_{number_of(path, names[0])}" if names else "storage_entries_expiry"
        edit_unseen(path, hidden, change)
        shown = f"index {names[0]!r}" if names else "the expiry index"
        assert_found(store, shown, *words)


def test_what_is_no_json_is_named_where_an_index_is_on_it(path: Path, clock: FakeClock) -> None:
    with open_storage(path, clock=clock) as store:
        store.set_many({f"k{number}": {"n": number} for number in range(100)})
        store.create_index("n")
        edit_unseen(path, "storage_index_1", "UPDATE storage_entries SET value = '{' WHERE key = 'k50'")
        assert_found(store, "'k50'", "the value: not JSON")
        assert_found(store, "'k50'", "another value")


def test_an_index_over_all_namespaces_is_compared_too(store: Storage, path: Path) -> None:
    store.create_index("$metadata.m", namespace=None, name="everywhere")
    store.check()
    hidden = f"storage_index_{number_of(path, 'everywhere')}"
    edit_unseen(path, hidden, "UPDATE storage_entries SET metadata = '{\"m\":2}' WHERE key = 'p005'")
    assert_found(store, "'p005'", "another value in the index 'everywhere'")


def test_entries_of_a_partial_index_that_no_query_finds_are_counted(store: Storage, path: Path) -> None:
    """An entry of another namespace: what seeks the index's own never comes across it."""
    hidden, schema = (
        f"storage_index_{number_of(path, 'time')}",
        "UPDATE sqlite_schema SET sql = replace(sql, '{}', '{}')",
    )
    edit(
        path,
        schema.format("WHERE namespace = ''default''", "WHERE namespace = ''plain''") + f" WHERE name = '{hidden}'",
    )
    edit(path, "INSERT INTO storage_entries VALUES (9999,'plain','new',1,1,1,NULL,NULL,'{}')")
    edit(
        path,
        schema.format("WHERE namespace = ''plain''", "WHERE namespace = ''default''") + f" WHERE name = '{hidden}'",
    )
    assert_found(store, "'time'", "201 entries, of which 200")


def test_two_live_entries_with_one_value_in_a_unique_index_are_named(
    store: Storage, path: Path, clock: FakeClock
) -> None:
    name = f"storage_index_{number_of(path, 'unique')}"
    schema = "UPDATE sqlite_schema SET sql = replace(sql, '{}', '{}') WHERE name = '{}'"
    edit(path, schema.format("UNIQUE INDEX", "INDEX", name))
    edit(
        path,
        "UPDATE storage_entries SET value = '{\"n\":6}' WHERE key = 'k005'",
        "INSERT INTO storage_entries VALUES (9999,'default','new',1,1,1,NULL,NULL,'{\"n\":[]}')",
        "INSERT INTO storage_entries VALUES (9998,'default','newer',1,1,1,NULL,NULL,'{\"n\":[]}')",
        "INSERT INTO storage_entries VALUES (9997,'default','expired',1,1,1,1,NULL,'{\"n\":7}')",
    )
    edit(path, schema.format("CREATE INDEX", "CREATE UNIQUE INDEX", name))
    found = [problem for problem in problems_of(store) if "is unique, and" in problem]
    assert found == [
        "the index 'unique' is unique, and 'k005' and 'k006' in namespace 'default' have the same value"
    ], found


def test_what_an_index_says_is_read_from_the_index_alone(store: Storage, path: Path) -> None:
    """Or a stale entry would be compared with itself."""
    store.create_index("$value", '-"odd \'name"[0]', "$metadata.a.b", "$version", "-$created_at", name="odd")
    store.create_index("a", "$expires_at", namespace="it's", unique=True, name="quoted")
    store.create_index("a", "-b", namespace=None, name="everywhere")
    store.check()
    connection = apsw.Connection(str(path))
    looked_at = 0
    for number, row in all_indexes(connection).items():
        plan = connection.execute("EXPLAIN QUERY PLAN " + created(number, row).entries).fetchall()
        assert f"USING COVERING INDEX storage_index_{number}" in str(plan[0][-1])
        looked_at += 1
    connection.close()
    assert looked_at == 7


# ---- damaged pages


def pages_of(path: Path, name: str) -> list[int]:
    connection = apsw.Connection(str(path))
    found = connection.execute("SELECT pageno FROM dbstat WHERE name = ? ORDER BY path", (name,)).fetchall()
    connection.close()
    return [int(str(number)) for (number,) in found]


def overwrite(path: Path, page: int, data: bytes, offset: int = 0) -> None:
    with open(path, "r+b") as file:
        file.seek((page - 1) * PAGE + offset)
        file.write(data)


@pytest.fixture
def closed(path: Path, clock: FakeClock) -> Path:
    with open_storage(path, clock=clock) as store:
        store.set_many({f"k{number:04}": {"n": number, "t": "x" * 200} for number in range(3000)})
        store.set("long", "y" * 50_000)
        store.create_index("n")
    return path


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "name", ["storage_entries", "sqlite_autoindex_storage_entries_1", "storage_index_1", "storage_namespaces"]
)
def test_damaged_pages_are_found_and_stepped_over(closed: Path, name: str, seed: int) -> None:
    pages, chosen = pages_of(closed, name), random.Random(seed)
    for page in chosen.sample(pages, min(2, len(pages))):
        overwrite(closed, page, chosen.randbytes(PAGE) if seed % 2 else bytes(PAGE))
    with open_storage(closed) as store:
        assert problems_of(store)


def test_every_key_on_a_damaged_page_is_named_and_the_others_are_looked_at(closed: Path) -> None:
    pages = pages_of(closed, "storage_entries")
    connection = apsw.Connection(str(closed))
    connection.execute("DROP INDEX storage_index_1; DELETE FROM storage_indexes")
    connection.execute("UPDATE storage_entries SET value = '{' WHERE key IN ('k0001', 'k2999')")
    before = {key for (key,) in connection.execute("SELECT key FROM storage_entries")}
    connection.close()
    overwrite(closed, pages[len(pages) // 3], bytes(PAGE))
    connection = apsw.Connection(str(closed))
    there: set[str] = set()
    for (key,) in connection.execute("SELECT key FROM storage_entries NOT INDEXED ORDER BY id DESC"):
        there.add(key)
        if key == "k1500":
            break
    connection.close()
    with open_storage(closed) as store:
        found = problems_of(store)
    assert any("'k0001'" in problem and "not JSON" in problem for problem in found)
    assert any("'k2999'" in problem and "not JSON" in problem for problem in found)
    lost = [problem for problem in found if "missing or cannot be read" in problem]
    assert lost
    assert not [problem for problem in lost if any(repr(key) in problem for key in there)]
    assert before >= there


def test_a_text_that_is_no_utf8_is_named(closed: Path) -> None:
    data = closed.read_bytes()
    place = data.index(b'{"n":1234,')
    overwrite(closed, place // PAGE + 1, b"\xff", place % PAGE + 2)
    with open_storage(closed) as store:
        assert_found(store, "'k1234' in namespace 'default'", "UTF-8")


def test_pages_that_nothing_leads_to_are_found(closed: Path) -> None:
    """What only SQLite's own check can see."""
    edit(closed, "DELETE FROM storage_entries WHERE key < 'k2000'")
    overwrite(closed, 1, bytes(8), 32)  # where the list of free pages begins, and how many there are
    with open_storage(closed) as store:
        assert_found(store, "never used")


def test_a_truncated_file_is_no_untyped_error(closed: Path) -> None:
    size = closed.stat().st_size
    with open(closed, "r+b") as file:
        file.truncate(size // 2 // PAGE * PAGE)
    with pytest.raises(StorageCorruptError), open_storage(closed) as store:
        store.check()


# ---- one state, while others write


class Hook(Limit):
    """A limit that does something whenever it is asked."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__()
        self._function = function
        self._is_busy = True

    def __enter__(self) -> Self:
        super().__enter__()
        self._is_busy = False
        return self

    def reason(self) -> str | None:
        if not self._is_busy:
            self._is_busy = True
            self._function()
            self._is_busy = False
        return super().reason()


@pytest.mark.parametrize("target", ["memory:", "sqlite"])
def test_writers_go_on_and_the_check_sees_one_state(tmp_path: Path, clock: FakeClock, target: str) -> None:
    with open_storage(target if target == "memory:" else tmp_path / "store.db", clock=clock, busy_timeout=0.0) as store:
        fill(store)
        before = store.check()
        count = 0

        def write() -> None:
            nonlocal count
            count += 1
            store.set_many({f"new{count}": {"n": 1000 + count}, "k005": {"n": 5, "t": str(count)}})
            store.delete(f"k{100 + count % 90}")
            store.set("p001", count, namespace=f"made{count}", ttl=5)

        with Hook(write):
            report = store.check()
        assert count > 2
        assert (report.entries, report.namespaces) == (before.entries, before.namespaces)
        assert store.check().entries != before.entries


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long statement asks now and then whether it shall go on. Here a short one does."""
    monkeypatch.setattr(checking, "STEPS_BETWEEN_LOOKS", 50)


@pytest.mark.parametrize("when", [1, 2, 3, 5, 8, 13, 100])
def test_a_check_can_be_stopped_and_the_store_is_as_usable_as_before(
    any_store: Storage, often: None, when: int
) -> None:
    fill(any_store)
    count = 0

    def stop() -> None:
        nonlocal count
        count += 1
        if count == when:
            limit.cancel()

    limit = Hook(stop)
    with limit:
        try:
            any_store.check()
        except StorageTimeoutError:
            assert count < when + 2
        else:
            assert count < when
    assert any_store.check().entries == 350


@pytest.mark.parametrize("when", [1, 5, 10, 100, 1000])
def test_a_store_that_is_closed_meanwhile_does_not_wait_for_the_check(path: Path, often: None, when: int) -> None:
    store = open_storage(path)
    fill(store)
    engine = store._engine
    assert isinstance(engine, SQLiteEngine)
    closing = threading.Thread(target=store.close)
    count = 0

    def close() -> None:
        nonlocal count
        count += 1
        if count == when:
            closing.start()
            while not engine._why_closed:
                time.sleep(0.001)

    with Hook(close), pytest.raises(StorageClosedError):
        store.check()
    closing.join()
    assert count < when + 3
    with pytest.raises(StorageClosedError):
        store.check()


# ---- in memory


@pytest.fixture
def state(memory_store: Storage) -> State:
    fill(memory_store)
    memory_store.query(sort="-n", limit=5, offset=2)
    page = memory_store.query(sort="-n", limit=5)
    memory_store.query(sort="-n", limit=5, cursor=page.cursor)
    memory_store.list_keys()
    memory_store.check()
    engine = memory_store._engine
    assert isinstance(engine, MemoryEngine)
    return engine._state


def change(state: State, of: str, **fields: Any) -> None:
    rows = state.tables["default"].rows
    rows[of] = rows[of]._replace(**fields)


def forget_claim(state: State) -> None:
    state.claims["unique"]._claims.popitem()


def change_owner(state: State) -> None:
    owners = state.claims["unique"]._owners
    first = next(iter(owners))
    owners[first] = "k150"


def add_claim(state: State) -> None:
    claims = state.claims["unique"]._claims
    claims["default", "nobody"] = ("default", (4, 10**6))


def reverse_keys(state: State) -> None:
    order = state.tables["default"]._order
    assert order is not None
    order.reverse()


def reverse_order(state: State) -> None:
    ((order, _),) = state.tables["default"]._orders.values()
    order._placed.reverse()


def forget_in_order(state: State) -> None:
    ((order, _),) = state.tables["default"]._orders.values()
    order._placed.pop()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda state: change(state, "k007", value="{"), ("'k007'", "not JSON")),
        (lambda state: change(state, "k007", metadata="[]"), ("'k007'", "metadata")),
        (lambda state: change(state, "k007", version=0), ("'k007'", "version")),
        (lambda state: change(state, "k007", updated_at=-1), ("'k007'", "updated_at")),
        (lambda state: change(state, "k007", key="k008"), ("'k008'", "'k007'")),
        (lambda state: change(state, "k007", value='{"n":-1}'), ("'k007'", "'unique'")),
        (lambda state: change(state, "k007", expires_at=2**41), ("'k007'", "order of expiry")),
        (lambda state: state.expiring.clear(), ("'e000'", "order of expiry")),
        (lambda state: state.registered.pop("plain"), ("'plain' is not registered",)),
        (lambda state: state.registered.pop("default"), ("'default' is not registered",)),
        (lambda state: state.registered.update({"x": NamespaceRow("x", "[]", 1)}), ("'x'", "metadata")),
        (lambda state: state.registered.update({"x": NamespaceRow("y", None, 1)}), ("'x'", "'y'")),
        (lambda state: setattr(state, "floor", -1), ("floor",)),
        (lambda state: state.claims.clear(), ("'unique'", "keeps no values")),
        (forget_claim, ("another value in the index 'unique'",)),
        (change_owner, ("does not own its value in the index 'unique'",)),
        (add_claim, ("'nobody'", "missing")),
        (reverse_keys, ("order of its keys",)),
        (reverse_order, ("the order by -n",)),
        (forget_in_order, ("the order by -n",)),
    ],
)
def test_damage_in_memory_is_found(
    memory_store: Storage, state: State, damage: Callable[[State], object], words: tuple[str, ...]
) -> None:
    damage(state)
    assert_found(memory_store, *words)


def test_duplicates_in_a_unique_index_in_memory_are_named(memory_store: Storage, state: State) -> None:
    change(state, "k007", value='{"n":8}')
    claims = state.claims["unique"]
    claims.update("default", "k007", state.tables["default"].rows["k007"])
    assert_found(memory_store, "'unique' is unique", "'k007' and 'k008'")


def test_more_entries_than_the_capacity_are_found(clock: FakeClock) -> None:
    with open_storage("memory:", clock=clock, capacity=2) as store:
        store.set_many({"a": 1, "b": 2})
        store.check()
        engine = store._engine
        assert isinstance(engine, MemoryEngine)
        rows = engine._state.tables["default"].rows
        rows["c"] = rows["a"]._replace(key="c")
        assert_found(store, "capacity=2")
