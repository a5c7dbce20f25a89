"""Hazard: an index is there and a query walks past it. For each kind of filter and sort that an index can serve,
`explain` names the index, and without the index says that everything is visited.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import apsw
import pytest

from mycelia_storage import Plan, StorageQuery, field, open_storage
from mycelia_storage.filters import SortKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mycelia_storage import Storage
    from mycelia_storage.testing import FakeClock

ENTRIES = 3000
A, B, S, R = field("a"), field("b"), field("s"), field("r")
CREATED = field("$created_at")


def document(number: int) -> dict[str, Any]:
    mixed: tuple[Any, ...] = (None, True, False, number, str(number), [number], {"n": number})
    return {
        "a": number,
        "b": number % 50,
        "s": f"text {number:05}",
        "r": number % 20,
        **({"b2": 1} if number % 50 else {}),
        "mixed": mixed[number % 7],
        "deep": {"x.y": [number]},
        **({"rare": number} if number % 100 == 0 else {}),
    }


class Asked(NamedTuple):
    """A query, and the index that it is expected to take."""

    filter: Any
    fields: tuple[Any, ...]
    sort: Any = None
    limit: int | None = None


KINDS: dict[str, Asked] = {
    "equality of a number": Asked(A == 5, ("a",)),
    "equality of a text": Asked(S == "text 00005", ("s",)),
    "equality of null": Asked(field("rare").is_null(), ("rare",)),
    "equality of a bool": Asked(field("rare") == True, ("rare",)),  # noqa: E712
    "equality of a float": Asked(A == 5.0, ("a",)),
    "equality deep inside": Asked(field('deep."x.y"[0]') == 5, ('deep."x.y"[0]',)),
    "equality in metadata": Asked(field("$metadata.m") == 5, ("$metadata.m",)),
    "equality of the whole": Asked(field("$value") == "x", ("$value",)),
    "greater than": Asked(A > 2990, ("a",)),
    "greater or equal": Asked(A >= 2990, ("a",)),
    "less than": Asked(A < 10, ("a",)),
    "less or equal": Asked(A <= 10, ("a",)),
    "a range of numbers": Asked(A.between(100, 110), ("a",)),
    "a range of texts": Asked((S >= "text 00100") & (S < "text 00110"), ("s",)),
    "a range on a descending index": Asked(A.between(100, 110), ("-a",)),
    "in": Asked(A.is_in([1, 2, 3]), ("a",)),
    "in of texts": Asked(S.is_in(["text 00001", "text 00002"]), ("s",)),
    "in of several types": Asked(field("mixed").is_in([5, "4", 3]), ("mixed",)),
    "startsWith": Asked(S.startswith("text 0001"), ("s",)),
    "equality and others": Asked((A == 5) & B.contains("x") & ~S.exists(), ("a",)),
    "others and equality": Asked(S.endswith("5") & (A == 5), ("a",)),
    "equality inside a list": Asked([[A == 5], {"not": B == 3}], ("a",)),
    "equality by several fields": Asked((B == 5) & (R == 5), ("b", "r")),
    "equality by the first of several fields": Asked(B == 5, ("b", "a")),
    "equality and a range": Asked((B == 5) & (A > 2000), ("b", "a")),
    "equality and startsWith": Asked((B == 5) & S.startswith("text 0"), ("b", "s")),
    "a negation's inside": Asked(~(A != 5), ("a",)),
    "sort with a limit": Asked(None, ("a",), "a", 10),
    "sort descending with a limit": Asked(None, ("a",), "-a", 10),
    "sort on a descending index": Asked(None, ("-a",), "-a", 10),
    "sort ascending on a descending index": Asked(None, ("-a",), "a", 10),
    "sort by several fields": Asked(None, ("b", "a"), ["b", "a"], 10),
    "sort by several fields descending": Asked(None, ("b", "a"), ["-b", "-a"], 10),
    "sort by mixed directions": Asked(None, ("b", "-a"), ["b", "-a"], 10),
    "sort by mixed directions turned round": Asked(None, ("b", "-a"), ["-b", "a"], 10),
    "sort by time": Asked(None, ("$updated_at",), "-$updated_at", 10),
    "sort by metadata": Asked(None, ("$metadata.m",), "$metadata.m", 10),
    "a range sorted by itself": Asked(A > 100, ("a",), "a", 10),
    "a range sorted by itself descending": Asked(A > 100, ("a",), "-a", 10),
    "sort after equality": Asked(B == 5, ("b", "a"), "a", 10),
    "sort descending after equality": Asked(B == 5, ("b", "a"), "-a", 10),
    "sort after equality, a part of it": Asked((B == 5) & S.contains("1"), ("b", "a"), "a", 10),
    "or of one field": Asked((A == 5) | (A == 7), ("a",)),
    "or of ranges": Asked((A < 5) | (A > 2990), ("a",)),
    "not exists": Asked(~field("b2").exists(), ("b2",)),
    "created_at": Asked(CREATED >= 1_700_000_002_990, ("$created_at",)),
    "created_at equal": Asked(CREATED == 1_700_000_000_005, ("$created_at",)),
    "version": Asked(field("$version") < 5, ("$version",)),
    "expires_at": Asked(field("$expires_at") < 1_800_000_000_000, ("$expires_at",)),
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with entries and without indexes, which no test changes."""
    file = tmp_path_factory.mktemp("plans") / "store.db"
    now = [1_700_000_000.0]
    with open_storage(file, clock=lambda: now[0]) as store:
        for start in range(0, ENTRIES, 100):
            now[0] = 1_700_000_000 + start / 1000
            store.set_many({f"key{number:05}": document(number) for number in range(start, start + 100)})
        store.set_many({f"key{number:05}": document(number) for number in range(500)}, metadata={"m": 1}, namespace="x")
        store.set_metadata("key00005", {"m": 5})
    return file


@pytest.fixture
def store(filled: Path) -> Iterator[Storage]:
    """Whatever a test does to the file is rolled back."""
    with open_storage(filled) as store, store.transaction() as tx:
        yield tx  # type: ignore[misc]
        tx.rollback()


def explain(store: Storage, asked: Asked) -> Plan:
    return store.explain(asked.filter, sort=asked.sort, limit=asked.limit)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_takes_its_index(store: Storage, kind: str) -> None:
    asked = KINDS[kind]
    without = explain(store, asked)
    assert (without.uses_index, without.indexes, without.full_scan) == (False, (), True)
    before = store.query(asked.filter, sort=asked.sort, limit=asked.limit).keys()

    name = store.create_index(*asked.fields)
    plan = explain(store, asked)
    assert plan.uses_index, plan.sql
    assert plan.indexes == (name,)
    assert not plan.full_scan
    assert plan.entries == ENTRIES
    assert store.query(asked.filter, sort=asked.sort, limit=asked.limit).keys() == before

    store.drop_index(name)
    again = explain(store, asked)
    assert (again.uses_index, again.full_scan) == (False, True)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_over_all_namespaces_serves_as_well(store: Storage, kind: str) -> None:
    asked = KINDS[kind]
    name = store.create_index(*asked.fields, namespace=None)
    assert explain(store, asked).indexes == (name,)
    elsewhere = store.explain(asked.filter, sort=asked.sort, limit=asked.limit, namespace="x")
    assert elsewhere.indexes == (name,) or not elsewhere.full_scan


@pytest.mark.parametrize("kind", KINDS)
def test_advice_is_found_to_help_when_it_is_followed(store: Storage, kind: str) -> None:
    asked = KINDS[kind]
    plan = explain(store, asked)
    if plan.advice is None:
        # Nobody has to know of an index for every kind; but for the plain ones the library does.
        assert not kind.startswith(("equality of a", "greater", "less", "a range", "in", "sort with", "startsWith"))
        return
    eval(f"store.{plan.advice}", {"store": store, "field": field})
    followed = explain(store, asked)
    assert followed.uses_index
    assert followed.advice is None
    assert followed.sql


def test_advice_names_the_namespace(store: Storage) -> None:
    advice = store.explain(A == 5, namespace="x").advice
    assert advice == "create_index('a', namespace='x')"
    eval(f"store.{advice}", {"store": store})
    assert store.explain(A == 5, namespace="x").uses_index
    assert not store.explain(A == 5).uses_index


@pytest.mark.parametrize(
    ("filter", "sort", "limit", "expected"),
    [
        (A == 5, None, None, "create_index('a')"),
        ((A == 5) & (B == 3), None, None, "create_index('a', 'b')"),
        (A > 5, "-a", 10, "create_index("),
        (B == 5, "-a", 10, "create_index('b', '-a')"),
        (field('"x y".z') == 5, None, None, "create_index('\"x y\".z')"),
        (S.startswith("text 00"), None, None, "create_index('s')"),
    ],
    ids=repr,
)
def test_advice_is_what_one_would_write(store: Storage, filter: Any, sort: Any, limit: Any, expected: str) -> None:
    advice = store.explain(filter, sort=sort, limit=limit).advice
    assert advice is not None
    assert advice.startswith(expected)


def test_no_advice_where_nothing_would_help(store: Storage) -> None:
    nothings: tuple[Any, ...] = (
        None,
        S.endswith("5"),
        S.contains("5"),
        A != 5,
        ~(B == 5),
        [],
        {"or": []},
        field("$key") == "key00001",
    )
    for nothing in nothings:
        assert store.explain(nothing).advice is None, nothing


def test_both_sides_of_an_or_need_an_index(store: Storage) -> None:
    either = (A == 5) | (S == "text 00007")
    first = store.create_index("a")
    assert store.explain(either).full_scan
    second = store.create_index("s")
    plan = store.explain(either)
    assert set(plan.indexes) == {first, second}
    assert not plan.full_scan
    assert store.query(either).keys() == ["key00005", "key00007"]
    both = either & (B < 10)
    assert set(store.explain(both).indexes) == {first, second}
    assert store.query(both).keys() == ["key00005", "key00007"]
    assert set(store.explain(either | A.is_in([1, 2])).indexes) == {first, second}


def test_an_index_that_gives_only_the_namespace_serves_nothing(store: Storage) -> None:
    store.create_index("$updated_at")
    plan = store.explain(sort="a", limit=10)
    assert (plan.uses_index, plan.full_scan, plan.advice) == (False, True, "create_index('a')")


def test_a_dropped_index_is_not_told_of_any_more(store: Storage) -> None:
    for _ in range(2):
        name = store.create_index("a")
        assert store.explain(A == 5).indexes == (name,)
        store.drop_index(name)
        assert store.explain(A == 5).indexes == ()


def test_keys_need_no_index(store: Storage) -> None:
    key = field("$key")
    for asked in (key == "key00005", key.is_in(["key00005"]), key > "key02990", key.startswith("key0299")):
        plan = store.explain(asked)
        assert (plan.uses_index, plan.full_scan) == (False, False), plan.sql
    assert store.explain(sort="-$key", limit=5).advice is None


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """What stores with debug=True log while a test runs: the statements without their times."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage().partition(" ms  ")[2])

    logger, handler = logging.getLogger("mycelia_storage.sql"), Handler()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield found
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)


def steps_of(file: Path, statement: str) -> list[str]:
    """What SQLite says it would do for a statement."""
    bindings = [None] * max(map(int, re.findall(r"\?(\d+)", statement)))
    with contextlib.closing(apsw.Connection(str(file))) as connection:
        return [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", bindings)]


@pytest.mark.parametrize("sort", ["a", "-a", ["b", "a"], ["-b", "-a"], None], ids=repr)
def test_what_is_behind_a_cursor_is_sought_not_walked_to(
    filled: Path, tmp_path: Path, statements: list[str], sort: Any
) -> None:
    file = tmp_path / "store.db"
    shutil.copy(filled, file)
    asked = A >= 0 if sort == "a" else None
    with open_storage(file, debug=True) as store:
        store.create_index("a", name="by a")
        store.create_index("b", "a", name="by b")
        cursor = store.query(asked, sort=sort, limit=1000).cursor
        keys = store.query(asked, sort=sort).keys()
        statements.clear()
        assert store.query(asked, sort=sort, limit=5, cursor=cursor).keys() == keys[1000:1005]
        walked = [statement for statement in statements if statement.startswith("SELECT * FROM (SELECT e.key")]
    assert len(walked) == 1
    steps = [step for step in steps_of(file, walked[0]) if re.match(r"(SEARCH|SCAN) e\b", step)]
    sought = [step for step in steps if re.search(r"^SEARCH .*(<expr>|key)[<>]\?\)$", step)]
    assert steps[0] in sought
    # The entries without the field are all there are behind the others, so there is no place among them to seek.
    assert len(steps) - len(sought) == len(re.findall(r" IS NULL\)* ORDER BY", walked[0])), steps


def test_an_index_of_one_namespace_serves_no_other(store: Storage) -> None:
    store.create_index("a", namespace="x")
    assert store.explain(A == 5, namespace="x").uses_index
    assert store.explain(A == 5).full_scan
    assert store.explain(A == 5, namespace="nowhere").entries == 0


def test_an_index_on_another_field_or_type_of_path_serves_nothing(store: Storage) -> None:
    for fields in (("b",), ('"deep.x"',), ("$metadata.a",), ('"$created_at"',)):
        store.create_index(*fields)
    assert store.explain(A == 5).full_scan
    assert store.explain(CREATED == 5).full_scan
    assert store.explain(field("deep.x") == 5).full_scan


def test_a_unique_index_serves_queries_too(store: Storage) -> None:
    name = store.create_index("a", unique=True)
    assert store.explain(A == 5).indexes == (name,)
    assert store.explain(A.between(5, 8)).indexes == (name,)
    assert store.explain(sort="-a", limit=10).indexes == (name,)


def test_a_query_object_is_explained_as_it_is(store: Storage) -> None:
    name = store.create_index("b", "a")
    assert store.explain(StorageQuery(B == 5, sort="-a", limit=10)).indexes == (name,)
    assert store.explain(StorageQuery(B == 5), sort=SortKey(A.path), limit=10).indexes == (name,)


def test_statistics_are_kept_without_the_user(tmp_path: Path) -> None:
    """An index that was made over nothing is taken when there is something."""
    with open_storage(tmp_path / "store.db") as store:
        name = store.create_index("a")
        other = store.create_index("b")
        for start in range(0, 5000, 500):
            store.set_many({f"key{number:05}": {"a": number, "b": 1} for number in range(start, start + 500)})
        assert store.explain(A == 5).indexes == (name,)
        assert store.explain(A.is_in([1, 2, 3])).indexes == (name,)
        assert store.explain((A == 5) & (B == 1)).indexes == (name,)
        assert store.explain(sort="a", limit=5).indexes == (name,)
        assert other in {index.name for index in store.list_indexes()}


def test_plans_hold_after_reopening(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    with open_storage(file) as store:
        store.set_many({f"key{number:05}": {"a": number} for number in range(1000)})
        name = store.create_index("a")
    for _ in range(2):
        with open_storage(file) as store:
            assert store.explain(A == 5).indexes == (name,)
            assert store.explain(sort="-a", limit=3).indexes == (name,)


def test_a_plan_shows_no_values(store: Storage) -> None:
    plan = store.explain((S == "secret") & A.is_in([123456789]) & field("$metadata.m").contains("hidden"))
    for hidden in ("secret", "123456789", "hidden"):
        assert hidden not in plan.sql


def test_a_slow_query_is_told_once_with_advice(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="mycelia_storage")
    with open_storage(tmp_path / "store.db", clock=clock) as store:
        store.load((f"key{number:06}", {"a": number, "secret": 1}) for number in range(12_000))
        assert not caplog.records
        for number in range(5):
            store.query(A.eq(number) & (field("secret") == "hidden"))
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 1
        assert "create_index('a', 'secret')" in told[0]
        assert "hidden" not in told[0]
        store.query(field("b") == 1)
        assert len(caplog.records) == 2
        store.create_index("c")
        store.query(field("c") == 1)
        store.query(field("$key") == "key000005")
        store.query(S.contains("x"))
        assert len(caplog.records) == 2


def test_a_slow_query_is_told_of_that_was_quick_at_first_and_by_every_verb(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A look at the first run alone would never see a namespace grow."""
    caplog.set_level(logging.WARNING, logger="mycelia_storage")
    with open_storage(tmp_path / "store.db", clock=clock) as store:
        asks: dict[str, Any] = {
            "a": lambda: store.query(field("a") == 1),
            "b": lambda: store.count(field("b") == 1),
            "c": lambda: list(store.scan(field("c") == 1)),
            "d": lambda: store.delete_where(field("d") == -1),
            "e": lambda: list(store.pages(field("e") == 1)),
            "f": lambda: ask_in_transaction(store),
        }
        for ask in asks.values():
            ask()
        assert not caplog.records
        store.set_many({f"{number:05}": dict.fromkeys("abcdef", number) for number in range(10_000)})
        for ask in asks.values():
            for _ in range(4):
                ask()
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == len(asks)
        assert all(f"create_index('{name}')" in line for name, line in zip(asks, told, strict=True))


def test_a_warning_says_whose_it_is_and_nothing_of_a_filter_that_is_not_there(
    store: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """It stands on standard error in a script that configures no logging."""
    caplog.set_level(logging.WARNING, logger="mycelia_storage")
    store.set_many({f"{number:05}": {"a": number} for number in range(10_000)})
    store.query(sort="-a", limit=1)
    store.query(field("b") == 1, sort="a", limit=1)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("mycelia-storage: a query (sorted by -a) visits all ")
    assert second.startswith("mycelia-storage: a query (b eq, sorted by a) visits all")


def ask_in_transaction(store: Storage) -> None:
    with store.transaction() as tx:
        tx.query(field("f") == 1)


def test_an_order_that_an_index_gives_does_not_hide_a_filter_that_visits_everything(store: Storage) -> None:
    store.create_index("b")
    plan = store.explain(A == 5, sort="b", limit=10)
    assert (plan.full_scan, plan.advice) == (True, "create_index('a', 'b')")
    assert not store.explain(limit=10).full_scan
    assert not store.explain(sort="-$key", limit=3).full_scan
    assert not store.explain({"or": []}).full_scan


def test_the_sides_of_an_or_get_their_indexes_whatever_their_order(store: Storage) -> None:
    for either in ((A == 5) | (S == "text 00007"), (S == "text 00007") | (A == 5)):
        advice = store.explain(either).advice
        assert advice is not None
        assert set(advice.split("; ")) == {"create_index('a')", "create_index('s')"}
    store.create_index("a")
    for either in ((A == 5) | (S == "text 00007"), (S == "text 00007") | (A == 5)):
        assert store.explain(either).advice == "create_index('s')"


def test_the_first_few_of_a_wide_range_are_walked_to_by_key(store: Storage) -> None:
    name = store.create_index("a")
    assert store.explain(A >= 0, limit=10).indexes == ()
    assert store.explain(A >= ENTRIES - 100, limit=10).indexes == (name,)
    assert store.explain((A >= 0) & (B == 3), limit=10).full_scan
    assert store.query(A >= 0, limit=3).keys() == ["key00000", "key00001", "key00002"]


def test_an_index_on_a_small_namespace_spoils_no_plan_of_a_large_one(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db") as store:
        for number in range(300):
            store.set_many({f"k{entry}": {"c": entry} for entry in range(20)}, namespace=f"small{number}")
        store.set_many({f"k{entry:05}": {"c": entry} for entry in range(5000)}, namespace="big")
        name = store.create_index("c", namespace="big")
        asks: list[dict[str, Any]] = [{"sort": "c", "limit": 5}, {"filter": field("c") > 4990, "limit": 5}]
        before = [store.explain(**ask, namespace="big").indexes for ask in asks]
        store.create_index("c", namespace="small3")
        assert [store.explain(**ask, namespace="big").indexes for ask in asks] == before == [(name,)] * 2
    with open_storage(tmp_path / "store.db") as store:
        assert [store.explain(**ask, namespace="big").indexes for ask in asks] == before


def test_statistics_are_fresh_though_nobody_writes_much_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    with open_storage(file) as store:
        store.create_index("c")
        store.create_index("name")
    for part in range(20):
        with open_storage(file) as store:
            store.set_many({f"{part}-{n}": {"c": part * 200 + n, "name": f"n{part * 200 + n}"} for n in range(200)})
    with open_storage(file) as store:
        assert len(store.explain((field("c") == 5) | (field("name") == "n7")).indexes) == 2
