"""The public surface as a type checker sees it: read by mypy --strict and pyright strict, never run."""

from __future__ import annotations

from collections.abc import ItemsView, KeysView, ValuesView
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict, assert_type

from mycelia_storage import (
    KEEP,
    CheckReport,
    CopyProgress,
    Entry,
    ImportReport,
    LoadReport,
    LostEntry,
    Namespace,
    NamespaceInfo,
    Put,
    SalvageReport,
    Status,
    Storage,
    Transaction,
    import_from,
    open_storage,
    salvage,
)


@dataclass
class User:
    name: str
    age: int = 0


class City(TypedDict):
    name: str
    population: int


def opening() -> None:
    assert_type(open_storage("memory:"), Storage)
    assert_type(open_storage(Path("a.db"), busy_timeout=timedelta(seconds=1), synchronous="FULL"), Storage)
    assert_type(open_storage({"storage": {"backend": "memory"}}), Storage)
    with open_storage() as store:
        assert_type(store, Storage)


def one_entry(store: Storage) -> None:
    assert_type(store.get("key"), Any | None)
    assert_type(store.get("key", 5), Any | int)
    assert_type(store.set("key", {"a": 1}, metadata={"b": 2}, ttl=timedelta(days=1)), int)
    city: City = {"name": "Oslo", "population": 1}
    store.set("key", city, if_version=3, durable=True)
    assert_type(store.add("key", 1), bool)
    assert_type(store.increment("n"), int)
    assert_type(store.increment("n", 2, field="a.b"), int)
    assert_type(store.increment("n", 0.5), float)
    assert_type(store.get_entry("key"), Entry[Any])
    assert_type(store.get_entry("key", None), Entry[Any] | None)
    assert_type(store.take("key"), Entry[Any])
    assert_type(store.take("key", None), Entry[Any] | None)
    assert_type(store.touch("key", ttl=None), bool)
    assert_type(store.delete("key"), bool)
    assert_type(store.has("key", namespace="n"), bool)
    assert_type(store.get_metadata("key"), dict[str, Any])
    assert_type(store.set_metadata("key", {"a": 1}), int)
    store.modify("key", lambda document: document | {"a": 1}, default={}, ttl=KEEP)
    store.merge("key", {"a": None}, ttl=5)
    entry = store.get_entry("key")
    assert_type(entry.created_at, datetime)
    assert_type(entry.expires_at, datetime | None)


def many(store: Storage) -> None:
    assert_type(store.get_many(["a", "b"]), dict[str, Any])
    assert_type(store.get_entries(iter(["a"])), dict[str, Entry[Any]])
    assert_type(store.set_many({"a": 1}), dict[str, int])
    assert_type(store.set_many([("a", 1), Put("b", 2, ttl=1)]), dict[str, int])
    assert_type(store.add_many({"a": 1}), list[str])
    assert_type(store.delete_many({"a", "b"}), int)
    assert_type(store.load((str(i), i) for i in range(3)), LoadReport)
    assert_type(store.clear(), int)
    assert_type(store.clear_all(), int)


def finding(store: Storage) -> None:
    assert_type(store.list_keys(prefix="a", limit=3, reverse=True), list[str])
    assert_type(store.count(), int)
    with store.scan(prefix="a") as scan:
        for entry in scan:
            assert_type(entry, Entry[Any])
    assert_type(store.list_namespaces(), list[str])
    assert_type(store.namespace_info("a"), NamespaceInfo)
    assert_type(store.get_status(), Status)
    assert_type(store.check(), CheckReport)
    taken = import_from(store, "diskcache", Path("cache"), existing="skip", progress=lambda report: print(report.read))
    assert_type(taken, ImportReport)
    assert_type(taken.written, int)
    assert_type([problem.reason for problem in taken.problems], list[str])
    rescued = salvage("damaged.db", "new.db", progress=lambda progress: print(progress.done))
    assert_type(rescued, SalvageReport)
    assert_type(rescued.lost_entries, tuple[LostEntry, ...])
    assert_type(rescued.is_complete, bool)


def copies(store: Storage, path: Path) -> None:
    def show(progress: CopyProgress) -> None:
        assert_type(progress.done, int)

    store.backup("backup.db")
    store.backup(path, overwrite=True, progress=show)
    store.restore(path, progress=lambda progress: None)


def views(store: Storage) -> None:
    assert_type(store.namespace("n"), Namespace[Any])
    users = store.namespace("users", User)
    assert_type(users, Namespace[User])
    assert_type(store.namespace("tags", list[str]), Namespace[list[str]])
    assert_type(store.namespace("maybe", int | None), Namespace[int | None])
    assert_type(users["a"], User)
    assert_type(users.get("a"), User | None)
    assert_type(users.get("a", 5), User | int)
    assert_type(users.pop("a"), User)
    assert_type(users.popitem(), tuple[str, User])
    assert_type(users.keys(), KeysView[str])
    assert_type(users.values(), ValuesView[User])
    assert_type(users.items(), ItemsView[str, User])
    assert_type(users.get_entry("a"), Entry[User])
    assert_type(users.get_many(["a"]), dict[str, User])
    assert_type(users.modify("a", lambda user: User(user.name, user.age + 1)), User)
    for user in users.scan():
        assert_type(user, Entry[User])
    users["a"] = User("A")
    users |= {"b": User("B")}
    users.update(c=User("C"))


def transactions(store: Storage) -> None:
    assert_type(store.transaction(), AbstractContextManager[Transaction])
    with store.transaction(read_only=True, wait=1.5) as tx:
        assert_type(tx, Transaction)
        with tx.transaction() as inner:
            inner.rollback()
        users = store.namespace("users", User)
        assert_type(tx.namespace(users), Namespace[User])
        assert_type(tx.namespace("users", User), Namespace[User])
        assert_type(tx.namespace("users"), Namespace[Any])

    def work(tx: Transaction) -> str:
        return str(tx.get("a"))

    assert_type(store.run_transaction(work), str)
