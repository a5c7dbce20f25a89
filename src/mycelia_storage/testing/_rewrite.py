"""Lets pytest rewrite the asserts of the suite, so that a failure tells what differs.

Imported by `mycelia_storage.testing` before any part of the suite: pytest rewrites only what is not yet imported.
"""

from __future__ import annotations

from typing import Final

import pytest

PARTS: Final = (
    "changing",
    "contract",
    "differential",
    "differential_verbs",
    "facet",
    "finding",
    "indexes",
    "many",
    "mapping",
    "moving",
    "namespaces",
    "nesting",
    "one_entry",
    "queries",
    "store",
    "threads",
    "transactions",
    "typed",
    "values",
    "versions",
)

pytest.register_assert_rewrite(*(f"mycelia_storage.testing.{part}" for part in PARTS))
