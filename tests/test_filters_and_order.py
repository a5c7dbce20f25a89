"""Hazard: a filter that fixes the type of a field leaves the type out of the order, and another filter does so too."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import pytest

from mycelia_storage import field
from mycelia_storage.filters import Or
from mycelia_storage.testing.filter_cases import CASES, DOCUMENTS, in_order

if TYPE_CHECKING:
    from mycelia_storage import Storage

V = field("v")
MIXED = (
    V.is_in([1, "a", None, True, -2]),
    V.is_in([None, -2]),
    V.contains("a"),
    ~(V > 1),
    ~(V == 1),
    ~V.startswith("a"),
    Or([V > 0, V < "b"]),
    Or([V == "a", V == 1]),
    (V > 0) | V.contains("a") | ~V.exists(),
)


@pytest.mark.parametrize("indexed", [None, "v", "-v"], ids=repr)
@pytest.mark.parametrize("descending", [False, True], ids=["", "desc"])
def test_what_each_filter_finds_is_in_the_order_of_all(
    any_store: Storage, indexed: str | None, descending: bool
) -> None:
    any_store.set_many(DOCUMENTS)
    if indexed:
        any_store.create_index(indexed)
    sort, order = V.desc() if descending else V.asc(), in_order(descending=descending)
    filters = [(case.filter, set(case.keys)) for case in CASES]
    filters += [(given, set(any_store.query(given).keys())) for given in MIXED]
    for given, found in filters:
        expected = [key for key in order if key in found]
        assert any_store.query(given, sort=sort).keys() == expected, repr(given)
        pages = any_store.pages(given, sort=sort, page_size=2)
        assert list(chain.from_iterable(page.keys() for page in pages)) == expected, repr(given)
