"""Hazard: a shortcut of queries, an index, or a limit of SQLite gives another answer than the filter's meaning.

Each case is the smallest one that a random search or a mutant led to.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from mycelia_storage import StorageCorruptError, UniqueIndexError, field, open_storage, path
from mycelia_storage.filters import And, Or

if TYPE_CHECKING:
    from pathlib import Path

    from mycelia_storage import Storage
    from mycelia_storage.testing import FakeClock

X = field("x")

# What GLOB would take for the beginning of a class that is never closed, or for one that holds other characters.
WILD = ("aB", "a[b", "[a", "[^a", "[^a]", "[!b]", "[]", "[]]", "a*b", "a?b", "**", "??", "a]b", "[[", "*[?")


@pytest.mark.parametrize("text", WILD)
@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: [text], lambda text: {text: 1}], ids=["", "[]", "{}"])
def test_a_string_with_wildcards_finds_itself_alone(any_store: Storage, text: str, wrap: Any) -> None:
    any_store.set_many({f"key{number:02}": {"x": wrap(other)} for number, other in enumerate(WILD)})
    expected = [f"key{WILD.index(text):02}"]
    assert any_store.query(X.eq(wrap(text))).keys() == expected
    assert any_store.query(X.is_in([wrap(text)])).keys() == expected
    assert any_store.query(wrap(text) != X).keys() == [
        entry.key for entry in any_store.scan() if entry.key not in expected
    ]


@pytest.mark.parametrize("indexed", [False, True], ids=["without", "indexed"])
def test_text_that_another_writer_has_escaped_is_the_same_text(tmp_path: Path, indexed: bool) -> None:
    """JSON may write any character as an escape; other programs do, and a file of theirs is kept as it is."""
    file = tmp_path / "store.db"
    with open_storage(file) as store:
        store.set_many({"a": {"x": "0"}, "b": {"x": "0"}, "c": {"x": "0"}, "d": {"x": "other"}, "e": {"é": "0"}})
    connection = apsw.Connection(str(file))
    for key, text in {
        "a": r'{"x":"caf\u00e9"}',
        "b": r'{"x":["caf\u00e9"]}',
        "c": r'{"x":"\u0063af\u00E9 \/ \ud83d\ude00"}',
        "e": r'{"\u00e9":"caf\u00e9"}',
    }.items():
        connection.execute("UPDATE storage_entries SET value = ? WHERE key = ?", (text, key))
    connection.close()
    with open_storage(file) as store:
        if indexed:
            store.create_index("x")
        assert store.query(X == "café").keys() == ["a"]
        assert store.query(X.is_in(["café"])).keys() == ["a"]
        assert store.query(X == ["café"]).keys() == ["b"]
        assert store.query(X.contains("café")).keys() == ["a", "b", "c"]
        assert store.query(X == "café / \U0001f600").keys() == ["c"]
        assert store.query(path("é") == "café").keys() == ["e"]
        assert store.query(X.startswith("caf"), sort="-x").keys() == ["c", "a"]


@pytest.mark.parametrize("indexed", [False, True], ids=["without", "indexed"])
def test_the_elements_of_an_array_are_compared_exactly(any_store: Storage, indexed: bool) -> None:
    big = 2**53
    any_store.set_many({"big": {"x": [big]}, "float": {"x": [float(big)]}, "next": {"x": [big + 1]}})
    any_store.set_many({"true": {"x": [True]}, "one": {"x": [1.0]}, "text": {"x": ["1"]}})
    if indexed:
        any_store.create_index("x")
    assert any_store.query(X.contains(big)).keys() == ["big", "float"]
    assert any_store.query(X.contains(float(big))).keys() == ["big", "float"]
    assert any_store.query(X.contains(big + 1)).keys() == ["next"]
    assert any_store.query(X.contains(1)).keys() == ["one"]
    assert any_store.query(X.contains(True)).keys() == ["true"]


def test_an_expired_duplicate_takes_no_claim_of_a_new_unique_index(any_store: Storage, clock: FakeClock) -> None:
    any_store.set("a", {"x": 1})
    any_store.set("b", {"x": 1}, ttl=1)
    clock.advance(2)
    any_store.create_index("x", unique=True)
    with pytest.raises(UniqueIndexError, match="'a'"):
        any_store.set("c", {"x": 1})
    assert any_store.query(X == 1).keys() == ["a"]


def test_a_refused_write_in_a_transaction_brings_no_expired_entry_back(any_store: Storage, clock: FakeClock) -> None:
    any_store.create_index("x", unique=True)
    any_store.set("a", {"x": 1}, ttl=1)
    any_store.set("b", {"x": 2})
    clock.advance(1)
    with any_store.transaction() as tx, pytest.raises(UniqueIndexError):
        tx.set("c", {"x": 2})
    assert any_store.list_keys() == ["b"]
    assert any_store.count() == 1
    any_store.set("d", {"x": 1})
    assert any_store.list_keys() == ["b", "d"]


def test_a_refusal_knows_the_metadata_that_an_entry_keeps(any_store: Storage) -> None:
    any_store.set("a", {"x": 1}, metadata={"m": 1})
    any_store.set("b", {"x": 2}, metadata={"m": 1})
    any_store.create_index("$metadata.m", "x", unique=True, name="mx")
    with pytest.raises(UniqueIndexError, match="the key 'a'") as caught:
        any_store.set("b", {"x": 1})
    assert caught.value.index == "mx"


@pytest.mark.parametrize("indexed", [False, True], ids=["without", "indexed"])
def test_as_many_arrays_as_operands_are_allowed(any_store: Storage, indexed: bool) -> None:
    any_store.set_many({"a": {"x": ["abc1", "def", "ghi"]}, "b": {"x": 1}})
    if indexed:
        any_store.create_index("x")
    operands: list[Any] = [[f"abc{number}", "def", "ghi"] for number in range(9000)]
    assert any_store.query(X.is_in(operands)).keys() == ["a"]
    assert any_store.query(X.not_in(operands)).keys() == ["b"]


def test_a_scan_with_a_prefix_takes_the_largest_filters(any_store: Storage) -> None:
    any_store.set_many({f"k{number}": {"x": number} for number in range(3)})
    wide = Or([X.eq(number) for number in range(1000)])
    deep = X == 1
    for _ in range(99):
        deep = ~deep
    many = X.is_in(range(30_000))
    for given in (wide, deep, many):
        assert [entry.key for entry in any_store.scan(given, prefix="k")] == any_store.query(given).keys()


def test_empty_groups_in_great_number_are_counted_and_deleted(any_store: Storage) -> None:
    any_store.set_many({"a": {"x": 1}, "b": {"x": 2}})
    given = X == 1
    for level in range(98):
        outer = And if level % 2 else Or
        given = outer([given, *[outer(()) for _ in range(99)]])
    assert any_store.query(given).keys() == ["a"]
    assert any_store.count(given) == 1
    assert any_store.delete_where(given) == 1
    assert any_store.list_keys() == ["b"]


@pytest.mark.parametrize("indexed", [False, True], ids=["without", "indexed"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_pages_by_expiry_go_on_to_what_never_expires(any_store: Storage, indexed: bool, size: int) -> None:
    for key, ttl in {"a": None, "b": 20, "c": 10, "d": None, "e": 20}.items():
        any_store.set(key, 1, ttl=ttl)
    if indexed:
        any_store.create_index("$expires_at")
    for sort, expected in (("$expires_at", "cbead"), ("-$expires_at", "ebcda")):
        pages = any_store.pages(sort=sort, page_size=size)
        assert "".join(chain.from_iterable(page.keys() for page in pages)) == expected


def test_a_text_that_is_no_json_is_named_by_whoever_meets_it(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    with open_storage(file) as store:
        store.set_many({"good": {"x": 1}, "bad": {"x": 2}})
    connection = apsw.Connection(str(file))
    connection.execute("UPDATE storage_entries SET value = '{\"x\":' WHERE key = 'bad'")
    connection.close()
    with open_storage(file) as store:
        for call in (
            lambda: store.query(X == 2),
            lambda: store.count(X > 0),
            lambda: store.delete_where(X == 1),
            lambda: store.create_index("x"),
        ):
            with pytest.raises(StorageCorruptError, match="'bad' in namespace 'default'"):
                call()
        assert store.get("good") == {"x": 1}
