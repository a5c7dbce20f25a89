"""Hazard: a query for one value of an indexed field, which PostgreSQL runs by one plan for every value, gives another
answer than others, is cut short where there are many entries, or reads everything where there are few.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import field, open_storage
from mycelia_storage.engines.postgres import seeking
from mycelia_storage.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mycelia_storage import Storage

LONG = "x" * 79
TEXTS = ("", "1", "é", LONG, LONG + "x", LONG + "xx", LONG + "xy")
VALUES = (1, 1.0, 2, -0.0, 2**62, 2**62 + 1, 1e300, *TEXTS, None, True, False, [1], {"a": 1})
SORTS = (None, "$key", "-$key", "a", "-a", "-b", ["a", "-$key"], ["-a", "-b"], ["b", "$key"], ["-$key", "b"])
MOST = 3


@pytest.fixture
def pair(
    postgres_dsn: str, new_postgres_schema: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Storage, Storage, FakeClock]]:
    """A store on the server, that takes few entries for many, and one in memory."""
    monkeypatch.setattr(seeking, "LEAST_BYTES", 0)
    monkeypatch.setattr(seeking, "MOST", MOST)
    clock = FakeClock()
    with (
        open_storage(postgres_dsn, schema=new_postgres_schema(), clock=clock) as there,
        open_storage("memory:", clock=clock) as here,
    ):
        yield there, here, clock


def fill(store: Storage, clock: FakeClock, start: int) -> None:
    """Each value once, some more often, some expired."""
    clock.micros = start
    for number, value in enumerate((*VALUES, 2, 2, 2, 2, "1", "1", LONG, None)):
        store.set(f"k{number:02}", {"a": value, "b": number % 3}, ttl=5 if number % 7 == 3 else None)
        store.set(f"k{number:02}", {"a": 2, "b": 1}, namespace="other")
    store.set("without", {"b": 1})
    clock.advance(60)


@pytest.mark.parametrize(
    ("indexes", "of_all"),
    [(["a"], False), (["-a", "b"], True), ([("b", "-a")], False), ([("a", "b"), "a"], False)],
    ids=repr,
)
def test_one_value_is_found_as_everywhere_else(
    pair: tuple[Storage, Storage, FakeClock], monkeypatch: pytest.MonkeyPatch, indexes: list[Any], of_all: bool
) -> None:
    there, here, clock = pair
    monkeypatch.setattr(seeking, "MOST", 20)
    start = clock.micros
    for store in (there, here):
        fill(store, clock, start)
    for fields in indexes:
        names = (fields,) if isinstance(fields, str) else fields
        there.create_index(*names, namespace=None if of_all else "default")
    filters = [field("a") == value for value in VALUES]
    filters += [(field("a") == 2) & (field("b") == b) for b in range(3)]
    filters += [(field("a") == 2) & (field("a") == 1), (field("a") == 2) & (field("b") >= 1), field("a") == 3]
    for number, asked in enumerate(filters):
        for sort in SORTS if number == 2 else (None, "-$key"):
            expected = list(here.query(asked, sort=sort))
            assert list(there.query(asked, sort=sort)) == expected
            assert list(there.query(asked, sort=sort, offset=1)) == expected[1:]
            assert list(there.query(asked, sort=sort, limit=MOST, offset=1)) == expected[1 : MOST + 1]
            assert [entry for page in there.pages(asked, sort=sort, page_size=1) for entry in page] == expected
    with there.transaction() as tx:
        for asked in filters[:3]:
            assert list(tx.query(asked)) == list(here.query(asked))
    assert there.query(filters[2], namespace="other").keys() == here.query(filters[2], namespace="other").keys()


def test_one_value_is_found_by_a_unique_index(pair: tuple[Storage, Storage, FakeClock]) -> None:
    there, _, clock = pair
    there.set_many({f"k{number:02}": {"a": text} for number, text in enumerate(TEXTS)})
    there.create_index("a", unique=True)
    for number, text in enumerate(TEXTS):
        assert there.query(field("a") == text).keys() == [f"k{number:02}"]
    there.set("k00", {"a": 1}, ttl=5)
    clock.advance(6)
    there.set("k01", {"a": 1})
    assert there.query(field("a") == 1).keys() == ["k01"]


def test_a_value_of_many_entries_finds_them_all(pair: tuple[Storage, Storage, FakeClock]) -> None:
    """And more than once: the first time it turns out that they are many."""
    store = pair[0]
    keys = [f"k{number}" for number in range(9)]
    store.set_many({key: {"a": number // MOST} for number, key in enumerate(keys)})
    store.set_many({key: {"a": 0} for key in keys}, namespace="x")
    store.create_index("a", namespace=None)
    for _ in range(20):  # the server comes to its one plan after ten
        for value in (0, 1, 2):
            found = store.query(field("a") == value).keys()
            assert found == keys[value * MOST : (value + 1) * MOST]
        assert store.query(field("a") == 0, namespace="x").keys() == keys
        assert store.query(field("a") == 0, namespace="x", sort="-$key", limit=2).keys() == ["k8", "k7"]


def test_an_index_that_others_have_removed_is_not_missed(
    pair: tuple[Storage, Storage, FakeClock], postgres_dsn: str
) -> None:
    store = pair[0]
    store.set_many({f"k{number}": {"a": number % 5} for number in range(10)})
    name = store.create_index("a")
    for _ in range(12):
        assert store.query(field("a") == 3).keys() == ["k3", "k8"]
    with open_storage(postgres_dsn, schema=store.get_status().details["schema"]) as other:
        other.drop_index(name)
        other.delete("k3")
    assert store.query(field("a") == 3).keys() == ["k8"]


def test_what_is_written_is_found_within_its_transaction(pair: tuple[Storage, Storage, FakeClock]) -> None:
    store = pair[0]
    store.set("k1", {"a": 1})
    store.create_index("a")
    with store.transaction() as tx:
        for number in range(2, 2 + 2 * MOST):
            tx.set(f"k{number}", {"a": 1})
            assert len(tx.query(field("a") == 1)) == number
