"""Hazard: on PostgreSQL an index is there and a query walks past it, a page reads all that comes before it, or a
document is refused because it is too long for an index.

What queries find is compared with the reference in `test_differential_queries.py`; here it is about how.
"""

from __future__ import annotations

import functools
import os
import random
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from test_query_plans import ENTRIES, KINDS, A, B, explain
from test_query_plans import document as document_of

from mycelia_storage import Put, UniqueIndexError, field, open_storage
from mycelia_storage.engines.engine import IndexRow, Query
from mycelia_storage.engines.postgres import seeking
from mycelia_storage.engines.postgres.documents import query_form
from mycelia_storage.engines.postgres.explaining import EXPLAIN, explained
from mycelia_storage.engines.postgres.indexes import MAX_FIELDS_WITH_TEXT, index_sql, statistics_sql
from mycelia_storage.engines.postgres.queries import Statement
from mycelia_storage.matching import Candidate, is_behind, position
from mycelia_storage.query import parse_filter, parse_sort
from mycelia_storage.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

    from mycelia_storage import Storage
    from mycelia_storage.matching import Position

    Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture(scope="module")
def filled_schema(postgres_dsn: str) -> Iterator[str]:
    """A schema with entries and without indexes, which no test changes."""
    import psycopg
    from psycopg.sql import SQL, Identifier

    name = f"plans_{os.getpid()}"
    clock = FakeClock()
    clock.micros = 1_700_000_000_000_000
    with open_storage(postgres_dsn, schema=name, clock=clock) as store:
        for start in range(0, ENTRIES, 100):
            clock.micros = 1_700_000_000_000_000 + start * 1000
            store.set_many({f"key{number:05}": document_of(number) for number in range(start, start + 100)})
        some = {f"key{number:05}": document_of(number) for number in range(500)}
        store.set_many(some, metadata={"m": 1}, namespace="x")
        store.set_metadata("key00005", {"m": 5})
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute(SQL("ANALYZE {}.entries").format(Identifier(name)))
        yield name
        connection.execute(SQL("DROP SCHEMA {} CASCADE").format(Identifier(name)))


@pytest.fixture
def store(postgres_dsn: str, filled_schema: str) -> Iterator[Storage]:
    """Whatever a test does to the store is rolled back."""
    with open_storage(postgres_dsn, schema=filled_schema) as store, store.transaction() as tx:
        yield tx  # type: ignore[misc]
        tx.rollback()


# ---- plans


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_takes_its_index_on_postgres(store: Storage, kind: str) -> None:
    asked = KINDS[kind]
    without = explain(store, asked)
    assert (without.uses_index, without.indexes, without.full_scan) == (False, (), True)
    before = store.query(asked.filter, sort=asked.sort, limit=asked.limit).keys()

    where = None if len(kind) % 2 else "default"
    name = store.create_index(*asked.fields, namespace=where)
    plan = explain(store, asked)
    assert plan.indexes == (name,), plan.sql
    assert not plan.full_scan
    assert store.query(asked.filter, sort=asked.sort, limit=asked.limit).keys() == before


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "sort" in kind or kind.startswith(("equality", "or", "in"))]
)
def test_advice_is_found_to_help_when_it_is_followed_on_postgres(store: Storage, kind: str) -> None:
    asked = KINDS[kind]
    plan = explain(store, asked)
    assert plan.advice is not None or "whole" in kind or "metadata" in kind
    if plan.advice is not None:
        eval(f"store.{plan.advice}", {"store": store, "field": field})
        followed = explain(store, asked)
        assert followed.uses_index
        assert followed.advice is None


def test_a_unique_index_serves_queries_on_postgres(store: Storage) -> None:
    name = store.create_index("s", unique=True)
    for wanted, sort, limit in ((field("s") == "text 00005", None, None), (None, "s", 10), (None, "-s", 10)):
        plan = store.explain(wanted, sort=sort, limit=limit)
        assert (plan.indexes, plan.full_scan) == ((name,), False)


def test_an_index_of_another_namespace_is_not_taken_on_postgres(store: Storage) -> None:
    store.create_index("a", namespace="x")
    assert store.explain(A == 5).full_scan


def test_a_filter_beside_a_sort_may_visit_everything_on_postgres(store: Storage) -> None:
    """The index gives the order, but how far one has to walk nobody knows."""
    name = store.create_index("a")
    plan = store.explain(field("s").contains("1"), sort="-a", limit=10)
    assert (plan.indexes, plan.full_scan) == ((name,), True)


def test_a_plan_is_made_for_what_is_asked_on_postgres(
    postgres_dsn: str, new_postgres_schema: Callable[[], str], postgres_connection: Connection
) -> None:
    """One that was good for nearly everything, and kept, would read everything to find the few."""
    schema, name = new_postgres_schema(), f"asks {os.getpid()}"
    read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE schemaname = %s AND relname = 'entries'"
    with open_storage(postgres_dsn, schema=schema) as store:
        store.set_many({f"key{number:05}": {"a": number} for number in range(ENTRIES)})
        store.create_index("a")
    target = f"{postgres_dsn}{'&' if '?' in postgres_dsn else '?'}application_name={quote(name)}"
    with open_storage(target, schema=schema) as store:
        for _ in range(20):
            assert len(store.query(A >= 0, limit=20)) == 20
    before = _when_gone(postgres_connection, name, read, schema)
    with open_storage(target, schema=schema) as store:
        for _ in range(20):
            assert len(store.query(A >= 0, limit=20)) == 20
        for _ in range(20):
            assert len(store.query(A >= ENTRIES - 10, limit=20)) == 10
            assert store.count(A >= ENTRIES - 10) == 10
    # What the counts of entries have read that belong to advice is among it, too.
    assert _when_gone(postgres_connection, name, read, schema) - before < 10 * ENTRIES


def test_a_rare_value_is_found_by_its_index_on_postgres(
    postgres_dsn: str,
    new_postgres_schema: Callable[[], str],
    postgres_connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though every other entry has the value that was asked for before, which a walk by key soon comes to."""
    monkeypatch.setattr(seeking, "LEAST_BYTES", 0)
    schema, name = new_postgres_schema(), f"seeks {os.getpid()}"
    read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE schemaname = %s AND relname = 'entries'"
    with open_storage(postgres_dsn, schema=schema) as store:
        store.set_many({f"key{number:05}": {"a": number % 2, "text": "x" * 300} for number in range(ENTRIES)})
        store.create_index("a")
        store.set_many({f"key{number:05}": {"a": 7} for number in range(0, ENTRIES, 1000)})
    target = f"{postgres_dsn}{'&' if '?' in postgres_dsn else '?'}application_name={quote(name)}"
    with open_storage(target, schema=schema) as store:
        assert len(store.query(A == 1, limit=5)) == 5
    before = _when_gone(postgres_connection, name, read, schema)
    with open_storage(target, schema=schema) as store:
        for asked, count in [(A == 1, 5)] * 20 + [(A == 7, 3)] * 20:
            assert len(store.query(asked, limit=5)) == count
    # What the counts of entries have read that belong to advice is among it, too.
    assert _when_gone(postgres_connection, name, read, schema) - before < 10 * ENTRIES


def _when_gone(connection: Connection, name: str, sql: Any, schema: str) -> int:
    """A server's process tells what it has read when it ends, and is seen until then."""
    deadline = time.monotonic() + 30
    while (
        connection.execute("SELECT FROM pg_stat_activity WHERE application_name = %s", (name,)).fetchone() is not None
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ((found,),) = connection.execute(sql, (schema,)).fetchall()
    return int(found)


# ---- pages


@pytest.mark.parametrize(
    ("fields", "sort", "filter"),
    [
        (["a"], ["a"], None),
        (["a"], ["-a"], None),
        (["-a"], ["a"], None),
        (["s"], ["s"], None),
        (["s"], ["-s"], None),
        (["mixed"], ["mixed"], None),
        (["mixed"], ["-mixed"], None),
        (["b", "a"], ["b", "a"], None),
        (["b", "a"], ["-b", "-a"], None),
        (["b", "-a"], ["b", "-a"], None),
        (["b", "-a"], ["-b", "a"], None),
        (["b", "a"], ["a"], B == 5),
        (["b", "a"], ["-a"], B == 5),
        (["$updated_at"], ["-$updated_at"], None),
    ],
    ids=repr,
)
def test_a_page_is_sought_where_it_begins_on_postgres(
    postgres_connection: Connection, filled_schema: str, fields: list[str], sort: list[str], filter: Any
) -> None:
    """Not walked to from the beginning, and not looked for in everything."""
    index = IndexRow("an index", "default", parse_sort(fields), is_unique=False, created_at=0)
    query = Query(parse_filter(filter), parse_sort(sort), 20)
    with postgres_connection.transaction(force_rollback=True):
        made = Made(postgres_connection, filled_schema)
        made.create(index)
        order = made.positions(query)
        page = Statement("default", query._replace(after=order[len(order) // 2]), 0, filled_schema)
        sql = page.find()
        plan = made.run(f"{EXPLAIN}{sql}", page.values)[0][0]
        told = explained(page, sql, plan, query, [index])
        assert (told.indexes, told.full_scan) == (("an index",), False)
        found = [row[0] for row in made.run(sql, page.values)]
        assert found == [key for _, key in order[len(order) // 2 + 1 :][:20]]
        analyzed = made.run(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", page.values)[0][0]
        assert _rows_read(analyzed[0]["Plan"]) < 300


class Made:
    """A connection to run the library's own statements on."""

    def __init__(self, connection: Connection, schema: str) -> None:
        import psycopg

        self._cursor: Any = psycopg.RawCursor(connection)
        self._schema = schema

    def run(self, sql: str, values: list[Any] | None = None) -> list[Any]:
        return self._cursor.execute(sql, values).fetchall()  # type: ignore[no-any-return]

    def create(self, index: IndexRow) -> None:
        for statement in (index_sql(index, self._schema), *statistics_sql(index, self._schema)):
            self._cursor.execute(statement)
        self._cursor.execute(f"ANALYZE {self._schema}.entries")

    def positions(self, query: Query) -> list[Position]:
        """Where each entry of a query stands, in order, by the reference."""
        import orjson

        whole = Statement("default", query._replace(limit=None), 0, self._schema)
        rows = self.run(whole.find(), whole.values)
        candidates = [Candidate(row[0], orjson.loads(row[6]), {}, row[1], row[2], row[3], row[4]) for row in rows]
        order = [position(query.sort, candidate) for candidate in candidates]

        def compare(one: Position, other: Position) -> int:
            return is_behind(query.sort, one, other) - is_behind(query.sort, other, one)

        assert sorted(order, key=functools.cmp_to_key(compare)) == order
        return order


def _rows_read(node: dict[str, Any]) -> float:
    here = 0.0
    if node.get("Relation Name") == "entries":
        here = node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
    return here + sum(map(_rows_read, node.get("Plans", ())))


def test_pages_are_exact_where_an_index_is_not_on_postgres(
    postgres_dsn: str, new_postgres_schema: Callable[[], str]
) -> None:
    """It has only the beginnings of texts, and has what is missing at the wrong end."""
    chooser = random.Random(7)
    ends = ("", "a", "b", "a" * 50, "\U0001f600")
    values = {
        f"key{number:02}": {
            **({"s": "x" * chooser.choice((78, 79, 80, 81)) + chooser.choice(ends)} if number % 5 else {}),
            **({"n": number % 3} if number % 4 else {}),
        }
        for number in range(60)
    }
    with open_storage("memory:") as memory, open_storage(postgres_dsn, schema=new_postgres_schema()) as store:
        for fields in (["s"], ["n", "s"], ["s", "n"]):
            store.create_index(*fields)
        for filled in (memory, store):
            filled.set_many(values)
        for sort in (["s"], ["-s"], ["n", "s"], ["n", "-s"], ["-n", "-s"], ["-s", "n"], ["s", "-n"], ["-s", "-n"]):
            expected = memory.query(sort=sort).keys()
            for size in (3, 20):
                pages = store.pages(sort=sort, page_size=size)
                assert [entry.key for page in pages for entry in page] == expected, (sort, size)


# ---- indexes and long values


def text_of_wide_characters(seed: int, length: int) -> str:
    """Which no compression makes shorter."""
    chooser = random.Random(seed)
    return "".join(chr(chooser.randrange(0x10000, 0x110000)) for _ in range(length))


@pytest.mark.parametrize("unique", [False, True])
def test_no_document_is_too_long_for_an_index_on_postgres(
    postgres_dsn: str, new_postgres_schema: Callable[[], str], unique: bool
) -> None:
    names = [f"f{number}" for number in range(16)]
    texts = {name: text_of_wide_characters(number, 3000) for number, name in enumerate(names)}
    numbers = (-1.2345678901234567e-300, 1.7976931348623157e308, 2**63 - 1, -12345.678901234567, 1.8446744073709550e19)
    mixed = {
        name: texts[name] if place < MAX_FIELDS_WITH_TEXT else numbers[place % len(numbers)]
        for place, name in enumerate(names)
    }
    namespace, key = text_of_wide_characters(50, 63), text_of_wide_characters(51, 255)
    with open_storage(postgres_dsn, schema=new_postgres_schema()) as store:
        for fields in (names, names[:3], names[:1], ["f5"], ["$metadata.m", "f1", "$updated_at"]):
            for where in (None, namespace):
                store.create_index(*fields, namespace=where, unique=unique)
        for number, entry in enumerate((texts, {**mixed, "f0": texts["f0"] + "!"})):
            store.set(f"{key}{number}", entry, metadata={"m": texts["f0"] + str(number)}, namespace=namespace)
        assert store.query(field("f0") == texts["f0"], namespace=namespace).keys() == [f"{key}0"]
        store.check()


@pytest.mark.parametrize("length", [79, 80, 81, 5000])
def test_a_unique_index_looks_at_all_of_a_long_text_on_postgres(
    postgres_dsn: str, new_postgres_schema: Callable[[], str], length: int
) -> None:
    with open_storage(postgres_dsn, schema=new_postgres_schema()) as store:
        name = store.create_index("s", "t", unique=True)
        text = "x" * length
        store.set("a", {"s": text, "t": 1})
        store.set_many([Put("b", {"s": text + "y", "t": 1}), Put("c", {"s": text[:-1] + "z", "t": 1})])
        store.set("d", {"s": text, "t": 2})
        store.set("e", {"s": text, "t": "1"})
        with pytest.raises(UniqueIndexError, match="'a' in namespace 'default' has the value of s, t") as caught:
            store.set("f", {"s": text, "t": 1.0})
        assert (caught.value.index, caught.value.key) == (name, "f")
        with pytest.raises(UniqueIndexError):
            store.set("f", {"s": text + "y", "t": 1})
        assert store.count() == 5


# ---- the query form


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('{"a":[1,2.5,-0.0,5e-324,1e300,9007199254740992]}', None),
        ('{"a":1e16}', '{"a":10000000000000000}'),
        ("1.2345678901234567e16", "12345678901234568"),
        ("[-9.223372036854776e18,1e19]", "[-9223372036854775808,10000000000000000000]"),
        ('{"a":"x\\":1e16,","b":"[1e16"}', None),
        ('["\\\\",1e16]', '["\\\\",10000000000000000]'),
        ('{"1e16":[[1e16]]}', '{"1e16":[[10000000000000000]]}'),
        ("[1700000000000000000,-9223372036854775808]", None),
        # Not written by this library, and read as floats.
        ("[100000000000000000000000, 9007199254740993.0]", "[1e23, 9007199254740992]"),
        ("[\n9007199254740993.0]", "[\n9007199254740992]"),
    ],
)
def test_the_query_form_of_a_number_is_its_exact_value_on_postgres(text: str, form: str | None) -> None:
    assert query_form(text) == (text if form is None else form)


def test_a_count_reads_the_key_alone_and_no_entry_on_postgres(
    postgres_dsn: str, postgres_schema: str, postgres_connection: Connection
) -> None:
    """Values may be large, and are not needed for it; nor is what has expired counted."""
    clock = FakeClock()
    with open_storage(postgres_dsn, schema=postgres_schema, clock=clock) as store:
        store.set_many({f"key{number:05}": "x" * 1000 for number in range(1000)})
        store.set_many({f"gone{number}": 1 for number in range(7)}, ttl=1)
        store.set("elsewhere", 1, namespace="other", ttl=1)
        clock.advance(2)
        assert (store.count(), store.count(namespace="other"), store.get_status().entries) == (1000, 0, 1000)
        texts = store._reading()._texts.sql  # type: ignore[attr-defined]
        postgres_connection.execute(f"VACUUM ANALYZE {postgres_schema}.entries".encode())
        run = Made(postgres_connection, postgres_schema).run
        for name, bound in (("count", ["default", clock.micros // 1000]), ("count_all", [clock.micros // 1000])):
            ((plan,),) = run(f"EXPLAIN (ANALYZE, FORMAT JSON) {texts[name]}", bound)
            found = {node["Node Type"]: node.get("Heap Fetches") for node in _nodes(plan[0]["Plan"])}
            assert found.get("Index Only Scan") == 0, found
            assert "Seq Scan" not in found


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in node.get("Plans", ()):
        yield from _nodes(below)
