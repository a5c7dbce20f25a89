"""Other libraries behind the same methods, where they are installed.

Called by the harness. Each is used as its own documentation shows, with its defaults, and an operation that it does not
have is left out, not rebuilt: a loop around its get is no get_many. `Subject` says what each method does.
"""

# ruff: noqa: D102

from __future__ import annotations

import importlib
import json
import sqlite3
from typing import TYPE_CHECKING, Any, ClassVar, Final

from benchmarks.subjects import Subject
from benchmarks.workload import NAMESPACE, SET_MANY_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.workload import Document, Item


class Peer(Subject):
    """Another library; `module` is what has to be importable. (No peer has type hints: their objects are Any.)"""

    module: ClassVar[str]
    share = 0.1

    def __init__(self) -> None:
        self._library: Any = importlib.import_module(self.module)


class DiskCache(Peer):
    """diskcache with its default Disk, which pickles."""

    name = "diskcache"
    module = "diskcache"
    lacks = frozenset({"get_many", "list_keys"})

    def open(self, place: Path) -> None:
        self._cache: Any = self._library.Cache(str(place), disk=self._disk())

    def _disk(self) -> Any:
        return self._library.Disk

    def close(self) -> None:
        self._cache.close()

    def set_each(self, items: Sequence[Item]) -> None:
        store_one = self._cache.set
        for key, value in items:
            store_one(key, value)

    def get_each(self, keys: Sequence[str]) -> Document | None:
        get = self._cache.get
        value: Document | None = None
        for key in keys:
            value = get(key)
        return value

    def has_each(self, keys: Sequence[str]) -> bool:
        cache = self._cache
        there = False
        for key in keys:
            there = key in cache
        return there

    def delete_each(self, keys: Sequence[str]) -> None:
        delete = self._cache.delete
        for key in keys:
            delete(key)

    def set_many(self, items: Sequence[Item]) -> None:
        with self._cache.transact():
            self.set_each(items)

    def count(self) -> int:
        return len(self._cache)


class JsonDisk(DiskCache):
    """diskcache with its JSONDisk: JSON, compressed by zlib."""

    name = "jsondisk"

    def _disk(self) -> Any:
        return self._library.JSONDisk


class SqliteDict(Peer):
    """sqlitedict with autocommit, its way to store each document as it is set; values are pickled.

    Its writes return before they are stored, so each slice ends by waiting for them.
    """

    name = "sqlitedict"
    module = "sqlitedict"
    share = 0.05
    lacks = frozenset({"get_many", "list_keys"})
    options: ClassVar[dict[str, Any]] = {}

    def open(self, place: Path) -> None:
        self._path = str(place / "sqlitedict.db")
        self._dict: Any = self._library.SqliteDict(self._path, autocommit=True, **self.options)
        # With autocommit every document of an update is a transaction: many in one need a second object without.
        self._batches: Any = self._library.SqliteDict(self._path, autocommit=False, **self.options)

    def close(self) -> None:
        self._batches.close()
        self._dict.close()

    def set_each(self, items: Sequence[Item]) -> None:
        documents = self._dict
        for key, value in items:
            documents[key] = value
        documents.commit(blocking=True)

    def get_each(self, keys: Sequence[str]) -> Document | None:
        get = self._dict.get
        value: Document | None = None
        for key in keys:
            value = get(key)
        return value

    def has_each(self, keys: Sequence[str]) -> bool:
        documents = self._dict
        there = False
        for key in keys:
            there = key in documents
        return there

    def delete_each(self, keys: Sequence[str]) -> None:
        documents = self._dict
        for key in keys:
            del documents[key]
        documents.commit(blocking=True)

    def set_many(self, items: Sequence[Item]) -> None:
        self._batches.update(items)
        self._batches.commit(blocking=True)

    def fill(self, items: Sequence[Item]) -> None:
        # What takes most of its time by default is a look at the caller's stack, which nothing here needs.
        options = {"autocommit": False, "outer_stack": False, **self.options}
        with self._library.SqliteDict(self._path, **options) as documents:
            documents.update(items)
            documents.commit(blocking=True)

    def count(self) -> int:
        return len(self._dict)


class SqliteDictJson(SqliteDict):
    """sqlitedict with JSON in place of pickle."""

    name = "sqlitedict-json"
    options: ClassVar[dict[str, Any]] = {"encode": json.dumps, "decode": json.loads}


class LangGraph(Peer):
    """LangGraph's SqliteStore on a connection of its own making: a rollback journal and synchronous=FULL."""

    name = "langgraph"
    module = "langgraph.store.sqlite"
    share = 0.02
    lacks = frozenset({"has", "list_keys", "count"})
    _namespace: Final = (NAMESPACE,)
    # It writes a batch as one statement of five variables a document.
    _variables_per_put: Final = 5

    def __init__(self) -> None:
        super().__init__()
        base: Any = importlib.import_module("langgraph.store.base")
        self._get_op: Any = base.GetOp
        self._put_op: Any = base.PutOp
        self._batch_limit = _variable_limit() // self._variables_per_put
        if self._batch_limit < SET_MANY_SIZE:
            self.lacks = self.lacks | {"set_many"}

    def open(self, place: Path) -> None:
        self._context: Any = self._library.SqliteStore.from_conn_string(str(place / "langgraph.db"))
        self._store: Any = self._context.__enter__()
        self._store.setup()

    def close(self) -> None:
        self._context.__exit__(None, None, None)

    def set_each(self, items: Sequence[Item]) -> None:
        put, namespace = self._store.put, self._namespace
        for key, value in items:
            put(namespace, key, value)

    def get_each(self, keys: Sequence[str]) -> Document | None:
        get, namespace = self._store.get, self._namespace
        item: Any = None
        for key in keys:
            item = get(namespace, key)
        return None if item is None else item.value

    def delete_each(self, keys: Sequence[str]) -> None:
        delete, namespace = self._store.delete, self._namespace
        for key in keys:
            delete(namespace, key)

    def get_many(self, keys: Sequence[str]) -> dict[str, Document]:
        items = self._store.batch([self._get_op(self._namespace, key) for key in keys])
        return {item.key: item.value for item in items if item is not None}

    def set_many(self, items: Sequence[Item]) -> None:
        self._store.batch([self._put_op(self._namespace, key, value) for key, value in items])

    def fill(self, items: Sequence[Item]) -> None:
        size = min(self._batch_limit, SET_MANY_SIZE)
        for start in range(0, len(items), size):
            self.set_many(items[start : start + size])


def _variable_limit() -> int:
    connection = sqlite3.connect(":memory:")
    try:
        return connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
    finally:
        connection.close()


PEERS: Final[tuple[type[Peer], ...]] = (DiskCache, JsonDisk, SqliteDict, SqliteDictJson, LangGraph)
