"""Runs the public contract suite on every engine, and holds the suite itself to what it promises."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections import Counter
from typing import TYPE_CHECKING, ClassVar

import pytest

import mycelia_storage.testing
from mycelia_storage import CapacityError, ConfigError, open_storage
from mycelia_storage.testing import ContractBase, StorageContract, difference
from mycelia_storage.testing._rewrite import PARTS

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Unpack

    from mycelia_storage import Storage
    from mycelia_storage.options import StorageOptions
    from mycelia_storage.testing import FakeClock


class TestMemory(StorageContract):
    persistent: ClassVar[bool] = False

    def open_store(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
        return open_storage("memory:", **options)

    def test_a_full_store_takes_no_more(self, tmp_path: Path, clock: FakeClock) -> None:
        with self.open_store(tmp_path, clock=clock, capacity=3) as store:
            store.set_many({"a": 1, "b": 2})
            with pytest.raises(CapacityError):
                store.set_many({"c": 3, "d": 4})
            store.set("c", 3, namespace="other", ttl=1)
            store.set("a", 5)
            with pytest.raises(CapacityError):
                store.set("d", 4)
            assert (store.count(), store.count(namespace="other"), store.get("a")) == (2, 1, 5)
            clock.advance(1)
            store.set("d", 4)
            with store.transaction() as tx:
                tx.delete("d")
                tx.set("e", 5)
                with pytest.raises(CapacityError):
                    tx.set("f", 6)
            assert store.list_keys() == ["a", "b", "e"]


class TestSQLite(StorageContract):
    def open_store(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
        return open_storage(directory / "store.db", **options)

    def test_durable_is_refused_where_nothing_is_ever_synchronized(self, tmp_path: Path) -> None:
        with self.open_store(tmp_path, synchronous="OFF") as store:
            calls = (
                lambda: store.set("a", 1, durable=True),
                lambda: store.set_many({"a": 1}, durable=True),
                lambda: store.delete("a", durable=True),
                lambda: store.run_transaction(lambda tx: tx.set("a", 1), durable=True),
            )
            for call in calls:
                with pytest.raises(ConfigError, match="durable"):
                    call()
            assert store.list_keys() == []
            store.set("a", 1)


class TestSQLiteWithoutWal(StorageContract):
    snapshots: ClassVar[bool] = False

    def open_store(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
        options["wal_mode"] = False
        return open_storage(directory / "store.db", **options)


def test_every_part_of_the_suite_is_rewritten_by_pytest() -> None:
    modules = [
        importlib.import_module(f"mycelia_storage.testing.{found.name}")
        for found in pkgutil.iter_modules(mycelia_storage.testing.__path__)
    ]
    with_tests = {
        module.__name__.rpartition(".")[2]
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__ == module.__name__ and issubclass(kind, ContractBase) and kind is not ContractBase
    }
    assert with_tests <= set(PARTS)
    assert all("@pytest_ar" in vars(module) for module in modules if module.__name__.rpartition(".")[2] in PARTS)


def test_every_part_of_the_suite_is_in_the_whole() -> None:
    parts = {kind for kind in ContractBase.__subclasses__() if kind.__module__.startswith("mycelia_storage.testing.")}
    assert parts == set(StorageContract.__bases__)


def test_no_test_of_one_part_hides_that_of_another() -> None:
    names = Counter(name for part in StorageContract.__bases__ for name in vars(part) if name.startswith("test_"))
    assert [name for name, times in names.items() if times > 1] == []


def test_a_contract_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="open_store"):
        StorageContract().open_store(tmp_path)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        ([1], (1,)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": [1, {"b": 0}]}, {"a": [1, {"b": False}]}),
        ([1], [1, 2]),
        ({"a": 1}, {"a": 1, "b": 2}),
        (None, False),
    ],
    ids=repr,
)
def test_difference_sees_what_equality_does_not(actual: object, expected: object) -> None:
    assert difference(actual, expected)
    assert not difference(actual, actual)
