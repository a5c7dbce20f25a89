"""The contract of single verbs used by several threads at once: each is one step that nobody comes between.

Run by subclasses of `StorageContract`.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import pytest

from mycelia_storage import TransactionError, VersionConflictError
from mycelia_storage.testing.base import ContractBase

if TYPE_CHECKING:
    from collections.abc import Callable

    from mycelia_storage import Storage

R = TypeVar("R")


def _at_once(function: Callable[[int], R], times: int) -> list[R]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(function, range(times)))


class ThreadsContract(ContractBase):
    """Verbs in several threads, and in several tasks of one thread."""

    def test_no_increment_is_lost(self, store: Storage) -> None:
        sums = _at_once(lambda _: store.increment("n"), 100)
        assert sorted(sums) == list(range(1, 101))
        assert store.get("n") == 100

    def test_no_modification_is_lost(self, store: Storage) -> None:
        _at_once(lambda n: store.modify("all", lambda value: [*value, n], default=[]), 60)
        assert sorted(store.modify("all", list)) == list(range(60))

    def test_no_merge_is_lost(self, store: Storage) -> None:
        _at_once(lambda n: store.merge("all", {f"n{n}": n}), 60)
        assert store.get("all") == {f"n{n}": n for n in range(60)}

    def test_one_of_several_adds(self, store: Storage) -> None:
        assert _at_once(lambda n: store.add("key", n), 20).count(True) == 1

    def test_one_of_several_takes(self, store: Storage) -> None:
        store.set_many({f"key{n}": n for n in range(10)})
        taken = _at_once(lambda n: store.take(f"key{n % 10}", None), 40)
        assert sorted(entry.value for entry in taken if entry is not None) == list(range(10))

    def test_one_of_several_meets_the_version(self, store: Storage) -> None:
        version = store.set("key", 0)

        def write(n: int) -> bool:
            try:
                store.set("key", n, if_version=version)
            except VersionConflictError:
                return False
            return True

        assert _at_once(write, 20).count(True) == 1

    def test_versions_of_one_entry_are_never_the_same(self, store: Storage) -> None:
        versions = _at_once(lambda n: store.set("key", n), 60)
        assert len(set(versions)) == 60

    def test_a_batch_is_seen_as_a_whole(self, store: Storage) -> None:
        keys = [f"key{n}" for n in range(20)]
        store.set_many(dict.fromkeys(keys, 0))

        def look_or_write(n: int) -> int:
            if n % 2:
                store.set_many(dict.fromkeys(keys, n))
            return len(set(store.get_many(keys).values()))

        assert set(_at_once(look_or_write, 60)) == {1}

    def test_a_transaction_belongs_to_its_task(self, store: Storage) -> None:
        store.set("a", 1)

        async def work() -> None:
            inside, done = asyncio.Event(), asyncio.Event()

            async def write() -> None:
                with store.transaction() as tx:
                    tx.set("a", 2)
                    inside.set()
                    await done.wait()
                    with pytest.raises(TransactionError, match=r"\btx\b"):
                        store.get("a")

            async def read() -> None:
                await inside.wait()
                assert store.get("a") == 1
                done.set()

            await asyncio.gather(write(), read())

        asyncio.run(work())
        assert store.get("a") == 2
