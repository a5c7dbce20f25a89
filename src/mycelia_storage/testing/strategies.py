"""Hypothesis strategies for values, keys and namespaces. Needs Hypothesis; nothing else in this package does.

Called by property tests, ours and those of an engine's author.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

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
