"""The kernel's contract as a type checker sees it: read by mypy --strict and pyright strict, never run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, assert_type

from mycelia_storage import (
    ContractError,
    Status,
    Storage,
    StorageError,
    StorageFacet,
    StorageResult,
    enforce_contract,
    field,
)

if TYPE_CHECKING:
    from mycelia_storage.aio import AsyncStorage


async def opening(storage: Storage, fronted: AsyncStorage) -> None:
    facet = StorageFacet(storage)
    assert_type(StorageFacet(fronted), StorageFacet)
    async with facet as entered:
        assert_type(entered, StorageFacet)
    assert_type(await facet.close(), None)
    assert_type(facet.supports_transactions, bool)


async def one_entry(facet: StorageFacet) -> None:
    assert_type(await facet.get("key"), StorageResult)
    assert_type(await facet.get("key", {"namespace": "place", "includeMetadata": True}), StorageResult)
    assert_type(await facet.set("key", {"a": 1}, {"ttl": 5}), StorageResult)
    assert_type(await facet.set_metadata("key", {"a": 1}, options={"merge": False}), StorageResult)
    async with asyncio.TaskGroup() as group:
        assert_type(group.create_task(facet.has("key")), asyncio.Task[StorageResult])


async def many(facet: StorageFacet) -> None:
    assert_type(await facet.get_many(["a", "b"]), StorageResult)
    assert_type(await facet.set_many([{"key": "a", "value": 1, "options": {"if_version": 0}}]), StorageResult)
    assert_type(await facet.delete_many(("a",)), StorageResult)
    assert_type(await facet.query({"field": "age", "operator": "gte", "value": 18}, {"sort": "-age"}), StorageResult)
    assert_type(await facet.query(field("age") >= 18), StorageResult)
    assert_type(await facet.list({"pattern": "a*"}), StorageResult)
    assert_type(await facet.clear(), StorageResult)


async def results(facet: StorageFacet) -> None:
    result = await facet.begin_transaction({"isolation": "serializable"})
    assert_type(result.success, bool)
    assert_type(result.error, StorageError | None)
    assert_type(result.transaction_id, str | None)
    assert_type(result.data, Any)
    assert_type(result.exists, bool | None)
    assert_type(result.keys, list[str] | None)
    assert_type(result.count, int | None)
    assert_type(result.version, int | None)
    assert_type(result.errors, dict[str, StorageError] | None)
    assert_type(result.status, Status | None)
    assert_type(result.to_dict(camel_case=True), dict[str, Any])
    await facet.commit(result.transaction_id or "")


def checking(anything: object) -> dict[str, str]:
    try:
        enforce_contract(anything)
    except ContractError as error:
        return error.problems
    return {}
