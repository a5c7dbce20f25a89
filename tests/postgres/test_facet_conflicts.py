"""Hazard: somebody else writes between two steps of one call of the facet, and the call is answered with a conflict.

A program that speaks by messages has nothing to do about one: the library's own calls run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import StorageFacet, TransactionConflictError, VersionConflictError, open_storage
from mycelia_storage.testing.base import in_another_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mycelia_storage import Storage, StorageResult


@pytest.fixture
def store(postgres_dsn: str, postgres_schema: str) -> Iterator[Storage]:
    with open_storage(postgres_dsn, schema=postgres_schema) as store:
        yield store


class Meddling(Mapping[str, Any]):
    """Metadata that let somebody else in when they are looked at, so many times."""

    def __init__(self, times: int, call: Callable[[], object]) -> None:
        self._times = times
        self._call = call

    def __getitem__(self, key: str) -> int:
        return {"by": 1}[key]

    def __iter__(self) -> Iterator[str]:
        if self._times:
            self._times -= 1
            in_another_thread(self._call)
        return iter(("by",))

    def __len__(self) -> int:
        return 1


def batch(meddling: Meddling, **second: Any) -> list[dict[str, Any]]:
    """Two entries that are no plain batch; before the second one is written, somebody is let in."""
    return [
        {"key": "a", "value": "ours", "options": {"namespace": "n", "overwrite": False}},
        {"key": "b", "value": "ours", "options": {"metadata": meddling, **second}},
    ]


def test_set_many_runs_again_after_a_conflict_and_decides_anew(store: Storage) -> None:
    def meddle() -> None:
        store.delete("a", namespace="n")
        store.increment("b")

    async def ask(times: int, **second: Any) -> StorageResult:
        async with StorageFacet(store) as facet:
            return await facet.set_many(batch(Meddling(times, meddle), **second))

    store.set("a", "in the way, but not for long", namespace="n")
    store.set("b", 0)
    result = asyncio.run(ask(3))
    assert result.success, result.error
    assert result.results is not None
    assert (store.get("a", namespace="n"), store.get("b"), store.get_metadata("b")) == ("ours", "ours", {"by": 1})
    assert result.results["b"].version == store.get_entry("b").version

    store.delete("a", namespace="n")
    before = store.set("b", 0)
    result = asyncio.run(ask(1, if_version=before))
    assert result.results is not None
    assert result.results["a"].success
    assert isinstance(result.results["b"].error, VersionConflictError)
    assert (store.get("a", namespace="n"), store.get("b")) == ("ours", 1)


def test_in_a_transaction_by_id_a_conflict_is_told_and_nothing_is_kept(store: Storage) -> None:
    async def ask() -> tuple[StorageResult, StorageResult]:
        async with StorageFacet(store) as facet:
            begun = await facet.begin_transaction()
            inside = {"transaction_id": begun.transaction_id}
            await facet.set("before", 1, inside)
            result = await facet.set_many(batch(Meddling(1, lambda: store.set("b", "theirs"))), inside)
            assert begun.transaction_id is not None
            return result, await facet.commit(begun.transaction_id)

    result, commit = asyncio.run(ask())
    assert isinstance(result.error, TransactionConflictError)
    assert not commit.success
    assert store.list_keys() == ["b"]
    assert store.get("b") == "theirs"
    assert not store.has("a", namespace="n")
