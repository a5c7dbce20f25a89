"""Hazard: a request costs what nobody has bounded, or the cost grows with the square of what a caller sends.

Each limit of the table in docs/security.md: what is at it works, and what is beyond is its error, on every engine. The
growth of a cost is measured by the calls that Python makes, which are the same on a slow machine.
"""

from __future__ import annotations

import itertools
import re
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import (
    CapacityError,
    InvalidFilterError,
    InvalidKeyError,
    InvalidNamespaceError,
    InvalidValueError,
    Storage,
    StorageBusyError,
    StorageError,
    StorageQuery,
    field,
    keys,
    match,
    open_storage,
    path,
)
from mycelia_storage.testing.bad_values import nested_dicts, nested_lists

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mycelia_storage import Filter

    Call = Callable[[Storage, int], object]

PAGE = Path(__file__).parent.parent / "docs" / "security.md"


def negated(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"field": "n", "operator": "eq", "value": 1}
    for _ in range(depth - 1):
        made = {"not": made}
    return made


def scanning(store: Storage, count: int) -> None:
    scans: list[Any] = []
    try:
        for _ in range(count):
            scans.append(store.scan(batch_size=1))
            next(scans[-1])
    finally:
        for scan in scans:
            scan.close()


def indexing(store: Storage, count: int) -> None:
    with store.transaction() as tx:
        for number in range(count):
            tx.create_index(f"f{number}")
        tx.rollback()


# As the table in docs/security.md names it: the greatest that is taken, a call of any size, and the error beyond.
LIMITS: dict[str, tuple[int, Call, type[StorageError]]] = {
    "bytes of a value": (10_000, lambda store, size: store.set("key", "x" * (size - 2)), InvalidValueError),
    "bytes of metadata": (
        10_000,
        lambda store, size: store.set("key", 1, metadata={"a": "x" * (size - 8)}),
        InvalidValueError,
    ),
    "depth of a value": (200, lambda store, size: store.set("key", nested_lists(size)), InvalidValueError),
    "depth of metadata": (
        200,
        lambda store, size: store.set("key", 1, metadata=nested_dicts(size)),
        InvalidValueError,
    ),
    "bytes of a key": (1024, lambda store, size: store.set("k" * size, 1), InvalidKeyError),
    "bytes of a namespace": (255, lambda store, size: store.set("key", 1, namespace="n" * size), InvalidNamespaceError),
    "characters of a pattern": (4096, lambda store, size: store.list_keys(pattern="*" * size), InvalidValueError),
    "comparisons in a filter": (
        1000,
        lambda store, size: store.count([{"field": "n", "operator": "eq", "value": 1}] * size),
        InvalidFilterError,
    ),
    "parts of a filter": (10_000, lambda store, size: store.count([[]] * (size - 1)), InvalidFilterError),
    "depth of a filter": (100, lambda store, size: store.count(negated(size)), InvalidFilterError),
    "operands of `in`": (
        30_000,
        lambda store, size: StorageQuery(field("n").is_in([1] * size)),
        InvalidFilterError,
    ),
    "bytes of operands": (
        16 * 1024 * 1024,
        lambda store, size: StorageQuery(field("n") == "x" * (size - 2)),
        InvalidFilterError,
    ),
    "bytes of a path": (1024, lambda store, size: store.count(path("a" * size).exists()), InvalidFilterError),
    "fields of a sort": (
        16,
        lambda store, size: store.query(sort=[f"f{number}" for number in range(size)]),
        InvalidFilterError,
    ),
    "indexes of a store": (64, indexing, CapacityError),
    "scans at once": (16, scanning, StorageBusyError),
}


def of_four_bytes(size: int) -> str:
    """A text of so many bytes, and a quarter as many characters."""
    return "\U0001f344" * (size // 4) + "a" * (size % 4)


def negated_object(depth: int) -> Filter:
    made: Filter = field("n") == 1
    for _ in range(depth - 1):
        made = ~made
    return made


def living(_: Storage, milliseconds: int) -> None:
    """Written 799,999 milliseconds before the last one that there is."""
    with open_storage("memory:", clock=lambda: 253_402_300_000.0) as store:
        store.set("key", 1, ttl=timedelta(milliseconds=milliseconds))


# Other ways to come to these, and limits of numbers.
OTHERS: dict[str, tuple[int, Call, type[StorageError]]] = {
    "bytes of a value": (
        10_000,
        lambda store, size: store.set("key", of_four_bytes(size - 2)),
        InvalidValueError,
    ),
    "bytes of a value in a batch": (
        10_000,
        lambda store, size: store.set_many({"key": of_four_bytes(size - 2)}),
        StorageError,
    ),
    "bytes of metadata": (
        10_000,
        lambda store, size: store.set("key", 1, metadata={"a": of_four_bytes(size - 8)}),
        InvalidValueError,
    ),
    "depth of objects": (200, lambda store, size: store.set("key", nested_dicts(size)), InvalidValueError),
    "bytes of a key": (1024, lambda store, size: store.set(of_four_bytes(size), 1), InvalidKeyError),
    "characters of a key": (1024, lambda store, size: store.set("k" * (size - 1) + "\n", 1), InvalidKeyError),
    "bytes of a namespace": (
        255,
        lambda store, size: store.set("key", 1, namespace=of_four_bytes(size)),
        InvalidNamespaceError,
    ),
    "bytes of a path": (1024, lambda store, size: store.count(path(of_four_bytes(size)).exists()), InvalidFilterError),
    "operands of two `in`": (
        30_000,
        lambda store, size: StorageQuery(field("n").is_in([1] * 20_000) | field("n").is_in([1] * (size - 20_000))),
        InvalidFilterError,
    ),
    "depth of a filter of objects": (
        100,
        lambda store, size: store.count(negated_object(size)),
        InvalidFilterError,
    ),
    "segments to a number": (
        200,
        lambda store, size: store.increment("key", field=".".join("a" * size)),
        InvalidValueError,
    ),
    "an integer": (2**63 - 1, lambda store, size: store.set("key", size), InvalidValueError),
    "a limit": (2**63 - 1, lambda store, size: store.list_keys(limit=size), InvalidValueError),
    "an index in a path": (
        2**31 - 1,
        lambda store, size: store.count(path("a", size).exists()),
        InvalidFilterError,
    ),
    "seconds to live": (
        7000 * 365 * 86_400,
        lambda store, size: store.set("key", 1, ttl=size),
        InvalidValueError,
    ),
    "seconds of a timeout": (
        int(threading.TIMEOUT_MAX),
        lambda store, size: store.query(timeout=size),
        InvalidValueError,
    ),
    "milliseconds to the end of 9999": (799_999, living, InvalidValueError),
}


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    target = "memory:" if request.param == "memory" else tmp_path / "store.db"
    with open_storage(target, max_value_bytes=10_000) as opened:
        opened.set_many({"a": {"n": 1}, "b": {"n": 2}})
        yield opened


@pytest.mark.parametrize(
    ("limit", "call", "error"),
    [*LIMITS.values(), *OTHERS.values()],
    ids=[*LIMITS, *(f"{name}, otherwise" for name in OTHERS)],
)
def test_what_is_at_a_limit_works_and_what_is_beyond_is_its_error(
    store: Storage, limit: int, call: Call, error: type[StorageError]
) -> None:
    call(store, limit)
    before = store.list_keys(), store.list_namespaces()
    with pytest.raises(error):
        call(store, limit + 1)
    assert (store.list_keys(), store.list_namespaces()) == before


@pytest.mark.parametrize("name", ["depth of a value", "depth of metadata", "depth of a filter"])
def test_what_is_far_beyond_a_limit_is_the_same_error(store: Storage, name: str) -> None:
    """And not that of an interpreter which has gone too deep."""
    _, call, error = LIMITS[name]
    with pytest.raises(error):
        call(store, 100_000)


def test_names_that_are_asked_for_once_are_not_kept_for_ever(store: Storage) -> None:
    for number in range(2 * keys._MAX_KNOWN):
        store.has("key", namespace=f"asked for once {number}")
    assert len(keys._known_namespaces) <= keys._MAX_KNOWN


def test_the_page_tells_of_each_limit() -> None:
    rows = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| [^|]*`(\w+)`[^|]* \|$", PAGE.read_text(), re.MULTILINE)
    told = {name: (value, error) for name, value, error in rows}
    for name, (limit, _, error) in LIMITS.items():
        value, told_error = told[name]
        assert told_error == error.__name__, name
        if "max_value_bytes" not in value:
            assert value == (f"{limit:,}" if limit < 2**20 else f"{limit // 2**20} MiB"), name


# ---- growth


def calls_of(function: Callable[[], object]) -> int:
    """How many calls Python makes, of its own functions and of built-in ones."""
    count = 0

    def look(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(look)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def unique_batch(size: int) -> None:
    with open_storage("memory:") as store:
        store.create_index("n", unique=True)
        store.set_many({f"key{number}": {"n": number} for number in range(size)})


def unique_transaction(size: int) -> None:
    with open_storage("memory:") as store:
        store.create_index("n", unique=True)
        with store.transaction() as tx:
            tx.create_index("m", unique=True)
            for number in range(size):
                tx.set(f"key{number}", {"n": number, "m": number})


def bad_batch(size: int) -> None:
    with open_storage("memory:") as store, pytest.raises(StorageError):
        store.set_many([(f"key{number}", {number}) for number in range(size)])


def long_pattern(size: int) -> None:
    with open_storage("memory:") as store:
        store.set_many({"a" * length: 1 for length in range(900, 1000)})
        store.list_keys(pattern="*a" * size + "*b")


# Paths that were read once are known.
FRESH = itertools.count()
GROWING: dict[str, tuple[int, Callable[[int], object]]] = {
    "a batch beside a unique index": (200, unique_batch),
    "a transaction beside unique indexes": (200, unique_transaction),
    "a batch of bad values": (200, bad_batch),
    "many comparisons in a list": (
        200,
        lambda size: StorageQuery([{"field": "n", "operator": "eq", "value": 1}] * size),
    ),
    "members of match()": (100, lambda size: match(**{f"f{number}": number for number in range(size)})),
    "operands": (2000, lambda size: field("n").is_in(list(range(size)))),
    "segments of a path": (100, lambda size: path(*["a"] * size)),
    "brackets of a path": (100, lambda size: field(f"f{next(FRESH)}" + "[0]" * size)),
    "a path in quotes": (100, lambda size: field(f'"f{next(FRESH)}' + "\\\\" * size + '"')),
    "stars in a pattern": (100, long_pattern),
}


@pytest.mark.parametrize("name", GROWING)
def test_a_cost_grows_with_what_is_sent_and_not_with_its_square(name: str) -> None:
    size, function = GROWING[name]
    function(size)  # whatever is imported or cached
    small, large = calls_of(lambda: function(size)), calls_of(lambda: function(4 * size))
    assert large < 7 * small
