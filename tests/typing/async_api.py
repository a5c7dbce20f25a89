"""The asynchronous surface as a type checker sees it: read by mypy --strict and pyright strict, never run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, assert_type

from mycelia_storage import (
    KEEP,
    AsyncNamespace,
    AsyncScan,
    AsyncStorage,
    AsyncTransaction,
    CheckReport,
    Entry,
    IndexInfo,
    LoadReport,
    NamespaceInfo,
    Page,
    Plan,
    Put,
    Status,
    Storage,
    open_async_storage,
    open_storage,
)

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager


@dataclass
class User:
    name: str
    age: int = 0


async def opening() -> None:
    assert_type(await open_async_storage("memory:", busy_timeout=timedelta(seconds=1)), AsyncStorage)
    async with open_async_storage({"storage": {"backend": "memory"}}) as store:
        assert_type(store, AsyncStorage)
        assert_type(store.sync, Storage)
    assert_type(AsyncStorage(open_storage("memory:")), AsyncStorage)
    assert_type(await store.close(), None)


async def one_entry(store: AsyncStorage) -> None:
    assert_type(await store.get("key"), Any | None)
    assert_type(await store.get("key", 5, namespace="n"), Any | int)
    assert_type(await store.set("key", {"a": 1}, metadata={"b": 2}, ttl=timedelta(days=1), if_version=3), int)
    assert_type(await store.add("key", 1), bool)
    assert_type(await store.increment("n"), int)
    assert_type(await store.increment("n", 2, field="a.b"), int)
    assert_type(await store.increment("n", 0.5), float)
    assert_type(await store.get_entry("key"), Entry[Any])
    assert_type(await store.get_entry("key", None), Entry[Any] | None)
    assert_type(await store.take("key"), Entry[Any])
    assert_type(await store.take("key", None), Entry[Any] | None)
    assert_type(await store.touch("key", ttl=None), bool)
    assert_type(await store.delete("key", durable=True), bool)
    assert_type(await store.has("key"), bool)
    assert_type(await store.get_metadata("key"), dict[str, Any])
    assert_type(await store.set_metadata("key", {"a": 1}), int)
    await store.modify("key", lambda document: document | {"a": 1}, default={}, ttl=KEEP)
    await store.merge("key", {"a": None}, ttl=5)


async def many(store: AsyncStorage) -> None:
    assert_type(await store.get_many(["a", "b"]), dict[str, Any])
    assert_type(await store.get_entries(iter(["a"])), dict[str, Entry[Any]])
    assert_type(await store.set_many([("a", 1), Put("b", 2, ttl=1)]), dict[str, int])
    assert_type(await store.add_many({"a": 1}), list[str])
    assert_type(await store.delete_many({"a", "b"}), int)
    assert_type(await store.load((str(i), i) for i in range(3)), LoadReport)
    assert_type(await store.clear(), int)
    assert_type(await store.clear_all(), int)


async def finding(store: AsyncStorage) -> None:
    assert_type(await store.list_keys(prefix="a", limit=3, reverse=True), list[str])
    assert_type(await store.query({"field": "a", "operator": "eq", "value": 1}, limit=3), Page[Any])
    assert_type(await store.count(), int)
    assert_type(await store.explain(), Plan)
    async with store.scan(prefix="a") as scan:
        async for entry in scan:
            assert_type(entry, Entry[Any])
    async for page in store.pages(page_size=10):
        assert_type(page, Page[Any])
    assert_type(await store.list_indexes(), list[IndexInfo])
    assert_type(await store.create_index("a", "-b", unique=True), str)
    assert_type(await store.list_namespaces(), list[str])
    assert_type(await store.namespace_info("a"), NamespaceInfo)
    assert_type(await store.get_status(), Status)
    assert_type(await store.check(), CheckReport)
    await store.backup("backup.db", overwrite=True, progress=print)
    await store.restore("backup.db")


async def tasks(store: AsyncStorage) -> None:
    async with asyncio.TaskGroup() as group:
        assert_type(group.create_task(store.set("a", 1)), asyncio.Task[int])
        assert_type(group.create_task(store.get("a", 5)), asyncio.Task[Any | int])
        assert_type(group.create_task(store.namespace("users", User).get("a")), asyncio.Task[User | None])


async def views(store: AsyncStorage) -> None:
    assert_type(store.namespace("n"), AsyncNamespace[Any])
    users = store.namespace("users", User)
    assert_type(users, AsyncNamespace[User])
    assert_type(store.namespace("maybe", int | None), AsyncNamespace[int | None])
    assert_type(await users.get("a"), User | None)
    assert_type(await users.get("a", 5), User | int)
    assert_type(await users.set("a", User("A"), ttl=5), int)
    assert_type(await users.get_entry("a"), Entry[User])
    assert_type(await users.take("a", None), Entry[User] | None)
    assert_type(await users.get_many(["a"]), dict[str, User])
    assert_type(await users.modify("a", lambda user: User(user.name, user.age + 1)), User)
    assert_type(await users.query(), Page[User])
    assert_type(users.scan(), AsyncScan[Entry[User]])
    async for page in users.pages():
        assert_type(page, Page[User])
    await users.set_many({"a": User("A")})


async def transactions(store: AsyncStorage) -> None:
    block: AbstractAsyncContextManager[AsyncTransaction] = store.transaction()
    async with block as tx:
        assert_type(tx, AsyncTransaction)
    async with store.transaction(read_only=True, wait=1.5, max_duration=timedelta(seconds=5)) as tx:
        assert_type(await tx.get("a", 5), Any | int)
        async with tx.transaction() as inner:
            assert_type(inner, AsyncTransaction)
            await inner.rollback()
        users = store.namespace("users", User)
        assert_type(tx.namespace(users), AsyncNamespace[User])
        assert_type(tx.namespace("users", User), AsyncNamespace[User])
        assert_type(tx.namespace("users"), AsyncNamespace[Any])

    async def work(tx: AsyncTransaction) -> str:
        return str(await tx.get("a"))

    assert_type(await store.run_transaction(work), str)


async def wrong(store: AsyncStorage) -> None:
    await store.set("a", 1, name="no")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await store.get(1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await store.namespace("users", User).set("a", 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
