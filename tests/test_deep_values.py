"""Hazard: how deep a value nests is guessed wrongly: one too deep is stored, or another refused."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia_storage import InvalidValueError, open_storage
from mycelia_storage.codec import nests_at_most

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mycelia_storage import Storage

# Whatever looks like the end of a string or of a container, without being one.
TEXTS = st.text('[]{}"\\a,:', max_size=6)
VALUES = st.recursive(
    st.none() | st.integers(0, 9) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=25,
)
# Before and after what a list holds: what seems to end the list, and to begin another one.
TEMPTING = (
    ("", ""),
    ("]", "["),
    ("]]]]", "[[[["),
    ('"]"', '"["'),
    ('\\"]', '[\\"'),
    ("}", "{"),
    ('""', ""),
    ("]\n", "\n["),
)


def nesting(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(nesting, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(nesting, value), default=0)
    return 0


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


@given(VALUES, st.integers(0, 6))
def test_what_is_found_without_a_walk_is_so(value: Any, depth: int) -> None:
    found = nests_at_most(orjson.dumps(value).decode(), depth)
    if found or not any(mark in text for text in texts(value) for mark in '[]{}\\"'):
        assert found == (nesting(value) <= depth)


@pytest.mark.parametrize(("before", "after"), TEMPTING)
@pytest.mark.parametrize("depth", [200, 201])
def test_among_many_members_the_deepest_one_decides(before: str, after: str, depth: int) -> None:
    deep: Any = []
    for level in range(depth - 2):
        deep = {"list": deep} if level % 3 == 0 else [before, deep, after]
    value = {"flat": [{"name": before, "tags": [after]}] * 300, "deep": deep}
    with open_storage("memory:") as store:
        if depth > 200:
            with pytest.raises(InvalidValueError, match="nested more than 200 deep"):
                store.set("a", value)
            assert not store.has("a")
        else:
            store.set("a", value)
            assert store.get("a") == value


@pytest.mark.parametrize("depth", [200, 201])
def test_objects_alone_make_a_value_deep(memory_store: Storage, depth: int) -> None:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"name": value}
    with pytest.raises(InvalidValueError, match="nested more") if depth > 200 else contextlib.nullcontext():
        memory_store.set("a", value)
    assert memory_store.has("a") == (depth == 200)
