"""Hazard: engines disagree on what a filter means or what order a sort gives, with an index or without.

Random documents, filters, sorts, pages and indexes: memory, SQLite, SQLite with indexes, and PostgreSQL have to find
the same keys in the same order as the reference matcher, which is asked here about each entry in turn. The normal run
takes some twenty seconds, and as many on PostgreSQL; `--hypothesis-profile=long` asks each of them 20,000 queries
(see conftest.py), and with `-s` says how many were asked.
"""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from mycelia_storage import Put, UniqueIndexError, field, open_storage
from mycelia_storage.engines.postgres import seeking
from mycelia_storage.filters import And, Comparison, Filter, Not, Or, SortKey
from mycelia_storage.matching import Candidate, Position, compile_filter, is_behind, position
from mycelia_storage.testing import FakeClock, difference
from mycelia_storage.testing.query_strategies import METADATA, worlds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from hypothesis.strategies import DrawFn

    from mycelia_storage import Entry, Storage

QUERIES = 8
IS_SHORT = settings().max_examples == 100
LONG_EXAMPLES = 20_000 // QUERIES
KEYS = ("a", "a1", "b", "é", "\ue000", "\uffff", "\U0001f600", "A", "a%", "'", "[0]", "\x01", "10", "9")
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
TTLS = (None, None, None, None, 5, 1000)


class Item(NamedTuple):
    key: str
    value: Any
    metadata: Any
    ttl: float | None
    pause: float


class Question(NamedTuple):
    filter: Filter
    sort: list[SortKey]
    page_sizes: list[int]
    offset: int
    prefix: str


class Index(NamedTuple):
    fields: list[SortKey]
    unique: bool
    namespace: str | None


class Case(NamedTuple):
    items: list[Item]
    questions: list[Question]
    indexes: list[Index]


@st.composite
def cases(draw: DrawFn) -> Case:
    """A world's documents, and what is asked about them."""
    world = draw(worlds())
    items = st.tuples(
        st.sampled_from(KEYS),
        world.documents(),
        st.sampled_from(METADATA),
        st.sampled_from(TTLS),
        st.sampled_from([0, 0.001, 1]),
    )
    questions = st.tuples(
        world.filters(),
        st.tuples(world.sorts(), st.sampled_from([None, False, True])),
        st.sampled_from([[1], [2], [3], [5], [50], [1, 2], [2, 3]]),
        st.integers(0, 4),
        st.sampled_from(["", "", "a", "\ue000"]),
    )
    indexes = st.tuples(
        world.index_fields(), st.sampled_from([False, False, True]), st.sampled_from(["default", "default", None])
    )
    return Case(
        [Item(*drawn) for drawn in draw(st.lists(items, min_size=3, max_size=16))],
        [
            Question(drawn[0], sorted_by(drawn[0], *drawn[1]), *drawn[2:])
            for drawn in draw(st.lists(questions, min_size=QUERIES, max_size=QUERIES))
        ],
        [Index(*drawn) for drawn in draw(st.lists(indexes, max_size=3))],
    )


def sorted_by(filter: Filter, sort: list[SortKey], descending: bool | None) -> list[SortKey]:
    """A random sort seldom is by what the filter is about; with a direction it begins so."""
    first = next(paths_of(filter), None)
    if descending is None or first is None:
        return sort
    return [SortKey(first.path, descending), *(key for key in sort if key.path != first.path)]


# ---- the reference: every entry in turn, by matching.py alone


def milliseconds(time: datetime | None) -> int | None:
    return None if time is None else round(time.timestamp() * 1000)


def seen(entry: Entry[Any]) -> Candidate:
    created_at, updated_at = milliseconds(entry.created_at), milliseconds(entry.updated_at)
    assert created_at is not None
    assert updated_at is not None
    return Candidate(
        entry.key,
        entry.value,
        entry.metadata,
        entry.version,
        created_at,
        updated_at,
        milliseconds(entry.expires_at),
    )


def reference(entries: list[Entry[Any]], filter: Filter, sort: list[SortKey]) -> list[str]:
    test, by = compile_filter(filter), tuple(sort)

    def compare(one: Position, other: Position) -> int:
        return is_behind(by, one, other) - is_behind(by, other, one)

    found = [position(by, candidate) for candidate in map(seen, entries) if test(candidate)]
    return [key for _, key in sorted(found, key=functools.cmp_to_key(compare))]


# ---- asking a store in every way


@pytest.fixture
def asked_so_far() -> Iterator[Counter[str]]:
    """What a run has asked, which it says at its end: what was planned may not be what was run."""
    counts = Counter[str]()
    yield counts
    print(f"\n{', '.join(f'{count:,} {name}' for name, count in counts.items())}")


def page_by_page(verbs: Any, filter: Any, sort: list[SortKey], size: int) -> Iterator[str]:
    cursor: str | None = None
    for _ in range(len(KEYS) + 1):
        page = verbs.query(filter, sort=sort, limit=size, cursor=cursor)
        yield from page.keys()
        cursor = page.cursor
        if cursor is None:
            return
        assert len(page) == size, "a page before the last one is not full"
    raise AssertionError("the pages have no end")


def check(store: Storage, asked: Question, expected: list[str]) -> None:
    sort = asked.sort
    assert store.query(asked.filter, sort=sort).keys() == expected
    assert store.query(asked.filter, sort=sort, offset=asked.offset).keys() == expected[asked.offset :]
    for size in asked.page_sizes:
        assert list(page_by_page(store, asked.filter, sort, size)) == expected, f"pages of {size}"
        piece = store.query(asked.filter.to_dict(), sort=[str(key) for key in sort], limit=size, offset=asked.offset)
        assert piece.keys() == expected[asked.offset : asked.offset + size]
    assert [entry.key for page in store.pages(asked.filter, sort=sort, page_size=3) for entry in page] == expected
    assert store.count(asked.filter) == len(expected)
    scanned = [key for key in sorted(expected) if key.startswith(asked.prefix)]
    with store.scan(asked.filter, prefix=asked.prefix, batch_size=asked.page_sizes[0]) as scan:
        assert [entry.key for entry in scan] == scanned
    with store.transaction() as tx:
        before = tx.list_keys()
        assert tx.query(asked.filter, sort=sort).keys() == expected
        assert tx.delete_where(to_delete(asked.filter)) == len(expected)
        assert tx.list_keys() == [key for key in before if key not in expected]
        assert tx.count(asked.filter) == 0
        tx.rollback()


def to_delete(filter: Filter) -> Filter:
    """The same with a comparison that every entry meets: `delete_where` takes no filter that compares nothing."""
    return field("$key").exists() & filter


def paths_of(filter: Filter) -> Iterator[SortKey]:
    if isinstance(filter, Comparison):
        yield SortKey(filter.path)
    elif isinstance(filter, Not):
        yield from paths_of(filter.filter)
    elif isinstance(filter, And | Or):
        for part in filter.filters:
            yield from paths_of(part)


def fitting(asked: Question) -> Index | None:
    """An index on what a question asks about: a random one seldom is."""
    keys: dict[Any, SortKey] = {}
    for key in (*list(paths_of(asked.filter))[:1], *asked.sort):
        if key.path.root != "$key":
            keys.setdefault(key.path, key)
    return Index(list(keys.values())[:3], False, "default") if keys else None


def create(store: Storage, indexes: list[Index]) -> list[bool]:
    made: list[bool] = []
    for index in indexes:
        try:
            store.create_index(*index.fields, unique=index.unique, namespace=index.namespace)
            made.append(True)
        except UniqueIndexError:  # there are duplicates, and both engines have to say so
            made.append(False)
    return made


def fill(store: Storage, clock: FakeClock, items: list[Item]) -> None:
    for item in items:
        clock.advance(item.pause)
        store.set(item.key, item.value, metadata=item.metadata, ttl=item.ttl)
    store.set_many([Put(item.key, item.value, item.metadata) for item in items], namespace="other")


def tell(store: Storage, asked: Question, entries: list[Entry[Any]], expected: list[str]) -> None:
    """What kind of question it was, for `--hypothesis-show-statistics`."""
    event("found nothing" if not expected else "found all" if len(expected) == len(entries) else "found some")
    event(f"an index serves it: {store.explain(asked.filter, sort=asked.sort).uses_index}")


@settings(
    max_examples=40 if IS_SHORT else LONG_EXAMPLES,
    suppress_health_check=[*SLOW, HealthCheck.function_scoped_fixture],
)
@given(case=cases(), late=st.booleans(), wait=st.sampled_from([0, 5, 6]))
def test_every_engine_answers_as_the_reference(asked_so_far: Counter[str], case: Case, late: bool, wait: float) -> None:
    items, questions = case.items, case.questions
    indexes = [*case.indexes, *(index for asked in questions[:3] if (index := fitting(asked)))]
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="mycelia-queries-"))
        clock = FakeClock()
        targets = ("memory:", f"{directory}/plain.db", f"{directory}/indexed.db")
        memory, plain, indexed = (stack.enter_context(open_storage(target, clock=clock)) for target in targets)
        start = clock.micros
        # An index that is there before the entries are, and one that is built over them.
        if not late:
            create(indexed, [index for index in indexes if not index.unique])
        for store in (memory, plain, indexed):
            clock.micros = start
            fill(store, clock, items)
        clock.advance(wait)
        if late:
            assert create(indexed, indexes) == create(memory, indexes)
        entries = list(memory.scan())
        for store in (plain, indexed):
            assert not difference(list(store.scan()), entries)
        for asked in questions:
            expected = reference(entries, asked.filter, asked.sort)
            tell(indexed, asked, entries, expected)
            for store in (memory, plain, indexed):
                check(store, asked, expected)
        for store in (memory, plain, indexed):
            check_deleting(store, questions[-1], entries, case)
    asked_so_far["queries of memory and of SQLite with and without indexes"] += len(questions)


def check_deleting(store: Storage, asked: Question, entries: list[Entry[Any]], case: Case) -> None:
    expected = reference(entries, asked.filter, asked.sort)
    assert store.delete_where(to_delete(asked.filter)) == len(expected)
    assert store.list_keys() == [entry.key for entry in entries if entry.key not in expected]
    assert store.count(namespace="other") == len({item.key for item in case.items})
    store.check()


# ---- PostgreSQL

# It reads few entries as a whole, whatever indexes there are. So it is also made to take an index wherever it can.
FORCED = "-c enable_seqscan=off -c enable_sort=off -c enable_bitmapscan=off"


class OnPostgres(NamedTuple):
    """Two stores that are there for all examples, with one clock: one as it is, one that is made to take indexes."""

    clock: FakeClock
    natural: Storage
    forced: Storage


@pytest.fixture
def on_postgres(
    postgres_dsn: str, new_postgres_schema: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[OnPostgres]:
    clock = FakeClock()
    # A value is looked up in its index where that has few of it: here, too, where there are few entries at all.
    monkeypatch.setattr(seeking, "LEAST_BYTES", 0)
    monkeypatch.setattr(seeking, "MOST", 2)
    forced = f"{postgres_dsn}{'&' if '?' in postgres_dsn else '?'}options={quote(FORCED)}"
    with (
        open_storage(postgres_dsn, schema=new_postgres_schema(), clock=clock) as natural,
        open_storage(forced, schema=new_postgres_schema(), clock=clock) as other,
    ):
        yield OnPostgres(clock, natural, other)


def empty(store: Storage) -> None:
    for index in store.list_indexes():
        store.drop_index(index.name)
    for name in store.list_namespaces():
        store.clear(namespace=name)


# A query on a server takes a hundred times as long as one in a file.
@settings(
    max_examples=30 if IS_SHORT else LONG_EXAMPLES,
    suppress_health_check=[*SLOW, HealthCheck.function_scoped_fixture],
)
@given(case=cases(), late=st.booleans(), forced=st.booleans(), wait=st.sampled_from([0, 5, 6]))
def test_postgres_answers_as_the_reference(
    on_postgres: OnPostgres, asked_so_far: Counter[str], case: Case, late: bool, forced: bool, wait: float
) -> None:
    clock, store = on_postgres.clock, on_postgres.forced if forced else on_postgres.natural
    indexes = [*case.indexes, *(index for asked in case.questions[:3] if (index := fitting(asked)))]
    empty(store)
    clock.advance(10_000)
    start = clock.micros
    if not late:
        create(store, [index for index in indexes if not index.unique])
    with open_storage("memory:", clock=clock) as memory:
        fill(memory, clock, case.items)
        clock.micros = start
        fill(store, clock, case.items)
        clock.advance(wait)
        if late:
            assert create(store, indexes) == create(memory, indexes)
        entries = list(memory.scan())
    assert not difference(list(store.scan()), entries)
    for asked in case.questions:
        expected = reference(entries, asked.filter, asked.sort)
        tell(store, asked, entries, expected)
        check(store, asked, expected)
    check_deleting(store, case.questions[-1], entries, case)
    asked_so_far["queries of PostgreSQL"] += len(case.questions)
