"""What is measured: the hand-written loop and this library, each behind the few methods that the workload calls.

Called by the harness. A method whose name ends in `_each` holds the caller's own loop, so that the hand-written subject
pays for no call that a program of its kind would not make, and the library pays for the one that its callers make.
`Subject` says what each method does.
"""

# ruff: noqa: D102

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final

import apsw
import orjson

import mycelia_storage
from benchmarks.workload import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.workload import Document, Item


class Subject(ABC):
    """One thing that is measured. It is opened anew, on an empty place, for every round."""

    name: ClassVar[str]
    # The part of the single-document operations that is run: the slow ones are sampled.
    share: ClassVar[float] = 1.0
    lacks: frozenset[str] = frozenset()

    @abstractmethod
    def open(self, place: Path) -> None:
        """Open, or create, what is kept under `place` (a directory that exists)."""

    @abstractmethod
    def close(self) -> None:
        """Close it; its files may be removed then."""

    @abstractmethod
    def set_each(self, items: Sequence[Item]) -> None:
        """Store the documents one by one, each in a transaction of its own; all are stored when this returns."""

    @abstractmethod
    def get_each(self, keys: Sequence[str]) -> Document | None:
        """Read the documents one by one; the last one is given back."""

    @abstractmethod
    def delete_each(self, keys: Sequence[str]) -> None:
        """Delete the documents one by one, each in a transaction of its own."""

    @abstractmethod
    def set_many(self, items: Sequence[Item]) -> None:
        """Store all documents in one transaction."""

    def has_each(self, keys: Sequence[str]) -> bool:
        """Ask for the keys one by one; the last answer is given back."""
        raise NotImplementedError

    def get_many(self, keys: Sequence[str]) -> dict[str, Document]:
        """Read the documents in one call."""
        raise NotImplementedError

    def list_keys(self, prefix: str) -> list[str]:
        """The keys that begin with `prefix`, in order."""
        raise NotImplementedError

    def count(self) -> int:
        """How many documents there are."""
        raise NotImplementedError

    def fill(self, items: Sequence[Item]) -> None:
        """Store documents whose writing is not timed."""
        self.set_many(items)


RAW_SCHEMA: Final = """
create table if not exists storage_entries (
  id integer primary key,
  namespace text not null,
  key text not null,
  version integer not null,
  created_at integer not null,
  updated_at integer not null,
  expires_at integer,
  metadata text,
  value text not null,
  unique (namespace, key)
) strict;
create index if not exists storage_entries_expiry on storage_entries (expires_at, namespace)
  where expires_at is not null;
"""
RAW_SET: Final = """
insert into storage_entries (namespace, key, version, created_at, updated_at, value) values (?, ?, ?, ?, ?, ?)
on conflict (namespace, key)
do update set version = excluded.version, updated_at = excluded.updated_at, value = excluded.value
"""
RAW_GET: Final = "select value from storage_entries where namespace = ? and key = ?"
RAW_HAS: Final = "select 1 from storage_entries where namespace = ? and key = ?"
RAW_DELETE: Final = "delete from storage_entries where namespace = ? and key = ?"
# Measured: one placeholder a key is a tenth faster than a list through json_each.
RAW_GET_MANY: Final = "select key, value from storage_entries where namespace = ? and key in ({})"
RAW_LIST_KEYS: Final = "select key from storage_entries where namespace = ? and key >= ? and key < ? order by key"
RAW_COUNT: Final = "select count(*) from storage_entries where namespace = ?"


class Raw(Subject):
    """APSW and orjson by hand, on the library's own table: no checks, no expiry, no versions that only grow.

    Of each statement the fastest of the forms that one would write by hand is taken.
    """

    name = "raw"

    def open(self, place: Path) -> None:
        self._connection = apsw.Connection(str(place / "raw.db"))
        self._connection.pragma("journal_mode", "wal")
        self._connection.pragma("synchronous", "normal")
        self._connection.execute(RAW_SCHEMA)
        self._cursor = self._connection.cursor()

    def close(self) -> None:
        self._cursor.close()
        self._connection.close()

    def set_each(self, items: Sequence[Item]) -> None:
        execute, dumps, clock = self._cursor.execute, orjson.dumps, time.time_ns
        for key, value in items:
            now = clock() // 1000
            execute(RAW_SET, (NAMESPACE, key, now, now // 1000, now // 1000, dumps(value).decode()))

    def get_each(self, keys: Sequence[str]) -> Document | None:
        execute, loads = self._cursor.execute, orjson.loads
        value: Document | None = None
        for key in keys:
            value = loads(execute(RAW_GET, (NAMESPACE, key)).get)
        return value

    def has_each(self, keys: Sequence[str]) -> bool:
        execute = self._cursor.execute
        there = False
        for key in keys:
            there = execute(RAW_HAS, (NAMESPACE, key)).get is not None
        return there

    def delete_each(self, keys: Sequence[str]) -> None:
        execute = self._cursor.execute
        for key in keys:
            execute(RAW_DELETE, (NAMESPACE, key))

    def get_many(self, keys: Sequence[str]) -> dict[str, Document]:
        loads = orjson.loads
        statement = RAW_GET_MANY.format(",".join("?" * len(keys)))
        return {key: loads(value) for key, value in self._cursor.execute(statement, (NAMESPACE, *keys))}

    def set_many(self, items: Sequence[Item]) -> None:
        dumps = orjson.dumps
        now = time.time_ns() // 1000
        stamp = now // 1000
        self._cursor.execute("begin immediate")
        rows = ((NAMESPACE, key, now, stamp, stamp, dumps(value).decode()) for key, value in items)
        self._cursor.executemany(RAW_SET, rows)
        self._cursor.execute("commit")

    def list_keys(self, prefix: str) -> list[str]:
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        return [key for (key,) in self._cursor.execute(RAW_LIST_KEYS, (NAMESPACE, prefix, end))]

    def count(self) -> int:
        return int(self._cursor.execute(RAW_COUNT, (NAMESPACE,)).get)


class Library(Subject):
    """This library, by its public verbs."""

    def __init__(self, target: str = "") -> None:
        self._target = target

    def open(self, place: Path) -> None:
        self._store = mycelia_storage.open_storage(self._target or place / "mycelia.db")

    def close(self) -> None:
        self._store.close()

    def set_each(self, items: Sequence[Item]) -> None:
        store_one = self._store.set
        for key, value in items:
            store_one(key, value)

    def get_each(self, keys: Sequence[str]) -> Document | None:
        get = self._store.get
        value: Document | None = None
        for key in keys:
            value = get(key)
        return value

    def has_each(self, keys: Sequence[str]) -> bool:
        has = self._store.has
        there = False
        for key in keys:
            there = has(key)
        return there

    def delete_each(self, keys: Sequence[str]) -> None:
        delete = self._store.delete
        for key in keys:
            delete(key)

    def get_many(self, keys: Sequence[str]) -> dict[str, Document]:
        return self._store.get_many(keys)

    def set_many(self, items: Sequence[Item]) -> None:
        self._store.set_many(items)

    def list_keys(self, prefix: str) -> list[str]:
        return self._store.list_keys(prefix=prefix)

    def count(self) -> int:
        return self._store.count()

    def scan(self) -> None:
        """Read all documents, once."""
        for _ in self._store.scan():
            pass


class Sqlite(Library):
    """This library's SQLite engine, as it opens by default."""

    name = "sqlite"


class Memory(Library):
    """This library's memory engine."""

    name = "memory"

    def __init__(self) -> None:
        super().__init__("memory:")
