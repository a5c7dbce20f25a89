"""Hazard: the memory engine looks at everything again for each page of a query, so that a walk through a namespace
takes the square of its size; or it keeps an order from one page to the next that is no longer true.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import field, open_storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from mycelia_storage import Storage

N = field("n")
SORTS = ("n", "-n", ["-m", "n"], "-$key", "$version", ["missing", "-m"])


def filled(count: int) -> Storage:
    store = open_storage("memory:")
    store.set_many({f"key{number:05}": {"n": number * 7 % 10, "m": number % 3} for number in range(count)})
    return store


def calls(step: Callable[[], object]) -> int:
    """How many functions of Python were called, and generators resumed: the work, without a clock."""
    count = 0

    def trace(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(trace)
    try:
        step()
    finally:
        sys.setprofile(before)
    return count


def through_pages(verbs: Any, **options: Any) -> list[str]:
    return [entry.key for page in verbs.pages(page_size=10, **options) for entry in page]


def through_scan(verbs: Any) -> list[str]:
    return [entry.key for entry in verbs.scan(N >= 0, batch_size=10)]


WALKS: dict[str, Callable[[Any], list[str]]] = {
    "scan": through_scan,
    "by key": through_pages,
    "filter": lambda verbs: through_pages(verbs, filter=N < 5),
    **{f"sort {sort!r}": lambda verbs, sort=sort: through_pages(verbs, sort=sort) for sort in SORTS},  # type: ignore[misc]
}


@pytest.mark.parametrize("walk", WALKS.values(), ids=list(WALKS))
def test_four_times_the_entries_are_some_four_times_the_work(walk: Callable[[Any], list[str]]) -> None:
    work: list[int] = []
    for count in (200, 800):
        store = filled(count)
        work.append(calls(lambda store=store: walk(store)))  # type: ignore[misc]
    assert work[1] < 7 * work[0]


@pytest.mark.parametrize("walk", WALKS.values(), ids=list(WALKS))
def test_a_transaction_that_has_written_is_no_worse(walk: Callable[[Any], list[str]]) -> None:
    work: list[int] = []
    for count in (200, 800):
        with filled(count).transaction() as tx:
            tx.set("key00005", {"n": 3})
            tx.delete("key00007")
            tx.set("new", {"n": 3})
            work.append(calls(lambda tx=tx: walk(tx)))  # type: ignore[misc]
    assert work[1] < 7 * work[0]


@pytest.mark.parametrize("sort", SORTS, ids=repr)
def test_an_order_follows_what_is_written(sort: Any) -> None:
    """One order is kept through all of this; another store, asked once, says what it should be."""
    store = filled(50)
    for turn in range(120):
        through_pages(store, sort=sort)
        key = f"key{turn * 13 % 60:05}"
        if turn % 5 == 0:
            store.delete(key)
        else:
            store.set(key, {"n": turn % 11, "m": turn % 4} if turn % 3 else {"m": [turn]})
        if turn % 40 == 39:
            store.set_many({f"key{number:05}": {"n": number % 4} for number in range(turn, turn + 40)})
        if turn % 50 == 49:
            store.delete_where(N < 5)
        assert through_pages(store, sort=sort) == store.query(sort=sort).keys()


@pytest.mark.parametrize("sort", SORTS, ids=repr)
def test_an_order_is_the_transactions_own(sort: Any) -> None:
    store = filled(50)
    before = through_pages(store, sort=sort)
    with store.transaction(read_only=True) as reader, store.transaction() as tx:
        for turn in range(10):
            tx.set(f"key{turn:05}", {"n": -turn})
            assert through_pages(tx, sort=sort) == tx.query(sort=sort).keys()
            with tx.transaction() as inner:
                inner.delete(f"key{turn + 20:05}")
                assert through_pages(inner, sort=sort) == inner.query(sort=sort).keys()
                inner.rollback()
            assert through_pages(tx, sort=sort) == tx.query(sort=sort).keys()
            tx.set("fresh", {"n": turn}, namespace="new")
            assert through_pages(tx, sort=sort, namespace="new") == ["fresh"]
            assert through_pages(reader, sort=sort) == before
    assert through_pages(store, sort=sort) == store.query(sort=sort).keys()
    assert through_pages(store, filter=N <= 0) != []
