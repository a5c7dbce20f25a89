"""Hypothesis strategies: for values, keys and namespaces, and for the arguments of every verb, bad ones included.

Called by property tests, ours and those of an engine's author. Needs Hypothesis.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from mycelia_storage import KEEP
from mycelia_storage.testing.bad_values import BAD_VALUES

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

INT_MIN = -(2**63)
INT_MAX = 2**63 - 1


def texts(*, min_size: int = 0, max_size: int | None = None) -> SearchStrategy[str]:
    """Any text that a store takes: no lone surrogates, no U+0000; control and non-BMP characters included."""
    return st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=min_size, max_size=max_size
    )


def scalars() -> SearchStrategy[Any]:
    """None, bools, 64-bit integers, finite floats and texts, with the values at their edges more often."""
    edges = st.sampled_from(
        [0, 1, -1, INT_MIN, INT_MAX, 2**53 + 1, 0.0, -0.0, 1.0, 1e16, 1e23, 5e-324, 1.7976931348623157e308, "", "null"]
    )
    tricky = st.sampled_from(["\\u0000", "NaN", "9" * 20, "[" * 300, '"\\', "\x7f\x1f\u2028", "\U0001f600", "\uffff"])
    numbers = st.integers(INT_MIN, INT_MAX) | st.floats(allow_nan=False, allow_infinity=False)
    return st.none() | st.booleans() | edges | tricky | numbers | texts(max_size=20)


def json_values(*, max_leaves: int = 15) -> SearchStrategy[Any]:
    """Any value that a store takes, lists and dicts inside each other included."""

    def deeper(inner: SearchStrategy[Any]) -> SearchStrategy[Any]:
        return st.lists(inner, max_size=5) | st.dictionaries(texts(max_size=10), inner, max_size=5)

    return st.recursive(scalars(), deeper, max_leaves=max_leaves)


def keys() -> SearchStrategy[str]:
    """Any key: one to 1024 bytes of UTF-8."""
    return texts(min_size=1, max_size=256)


def namespaces() -> SearchStrategy[str]:
    """Any name of a namespace: one to 255 bytes of UTF-8, no control characters, no `*`."""
    return st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="*"), min_size=1, max_size=63)


# ---- arguments of verbs


def mostly(good: SearchStrategy[Any], bad: list[Any]) -> SearchStrategy[Any]:
    """Good input in nineteen of twenty draws: a call has several arguments, and one bad one is enough to refuse it."""
    return st.integers(0, 19).flatmap(lambda n: st.sampled_from(bad) if n == 19 else good)


# Few keys and namespaces, so that the verbs meet each other; their order is not the one of UTF-16 or of any locale.
GOOD_KEYS = ["a", "a*", "ab", "B", "\uffff", "\U0001f600"]
KEYS = mostly(st.sampled_from(GOOD_KEYS), ["", "\x00", "\ud800", "x" * 1025, None, 1, ["a"]])
NAMESPACES = mostly(st.sampled_from(["default", "default", "place", "\U0001f600"]), ["", "a*", "a\n", None, 5])
VALUES = mostly(
    st.integers(-5, 5) | st.dictionaries(st.sampled_from("nm"), st.integers(0, 5)) | json_values(max_leaves=5),
    list(BAD_VALUES),
)
METADATA = mostly(
    st.sampled_from([None, None, {}, {"x": 1}, {"x": None, "y": {"deep": 1}}, {"y": 2, "z": [3]}]),
    [{"x": {1}}, {1: 2}, "text", [1]],
)
TTLS = mostly(
    st.sampled_from([None, None, None, 0.0004, 0.5, 1, 10, timedelta(seconds=2)]),
    [0, -1, float("nan"), "1", True, timedelta(0), 1e300],
)
TTLS_OR_KEEP = st.just(KEEP) | TTLS
DURABLE = st.sampled_from([None, None, None, None, False, True])
# Resolved against what is there when the rule runs.
VERSIONS = mostly(st.sampled_from([None, None, None, "current", "current", "older", "newer", 0]), [1, -1, "1", True])
KEY_LISTS = st.lists(KEYS, max_size=5)
LIMITS = mostly(st.none() | st.integers(0, 4), [-1, 1.5, "1", True])
PREFIXES = mostly(st.sampled_from([None, None, "", "a", "a*", "\U0001f600", "\U0010ffff", "x"]), [1])
PATTERNS = mostly(
    st.sampled_from([None, None, "*", "a*", "a\\*", "*b", "**", "\\\\", "", "*\uffff*", "a?", "*[bB]*", "*\\**"]), [1]
)
ITEMS = st.lists(st.tuples(KEYS, VALUES), max_size=5)
PUTS = st.lists(st.tuples(KEYS, VALUES, METADATA, TTLS), max_size=4)
FIRST_ITEMS = st.lists(
    st.tuples(
        st.sampled_from(GOOD_KEYS),
        st.integers(0, 3),
        st.sampled_from([None, {"x": 1}, {"y": {"deep": 1}}]),
        st.sampled_from([None, None, 1, 10]),
    ),
    max_size=6,
)
