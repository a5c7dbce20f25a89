"""The contract of namespaces themselves: how they come into being, what they are called, how they end.

Run by subclasses of `StorageContract`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import (
    InvalidNamespaceError,
    InvalidValueError,
    NamespaceExistsError,
    NamespaceNotEmptyError,
    NamespaceNotFoundError,
    StorageError,
)
from mycelia_storage.testing.base import ContractBase

if TYPE_CHECKING:
    from pathlib import Path

    from mycelia_storage import Storage
    from mycelia_storage.testing.clock import FakeClock


class NamespacesContract(ContractBase):
    """create_namespace, delete_namespace, list_namespaces, namespace_info, clear, clear_all."""

    def test_default_is_always_listed(self, store: Storage) -> None:
        assert store.list_namespaces() == ["default"]
        assert store.namespace_info("default").entries == 0

    def test_the_first_write_registers_a_namespace(self, store: Storage) -> None:
        store.set("key", 1, namespace="set")
        store.add("key", 1, namespace="add")
        store.set_many({"key": 1}, namespace="set_many")
        store.add_many({"key": 1}, namespace="add_many")
        store.increment("key", namespace="increment")
        store.modify("key", str, default=1, namespace="modify")
        store.load([("key", 1)], namespace="load")
        expected = ["add", "add_many", "default", "increment", "load", "modify", "set", "set_many"]
        assert store.list_namespaces() == expected

    def test_what_writes_nothing_registers_nothing(self, store: Storage) -> None:
        calls = (
            lambda: store.set("key", math.nan, namespace="fresh"),
            lambda: store.set("key", 1, if_version=7, namespace="fresh"),
            lambda: store.set_many({}, namespace="fresh"),
            lambda: store.add_many({}, namespace="fresh"),
            lambda: store.load([], namespace="fresh"),
            lambda: store.delete("key", namespace="fresh"),
            lambda: store.delete_many(["key"], namespace="fresh"),
            lambda: store.take("key", None, namespace="fresh"),
            lambda: store.touch("key", ttl=None, namespace="fresh"),
            lambda: store.set_metadata("key", {}, namespace="fresh"),
            lambda: store.clear(namespace="fresh"),
        )
        for call in calls:
            try:
                call()
            except StorageError:
                continue
        assert store.list_namespaces() == ["default"]

    def test_namespaces_are_listed_in_the_order_of_code_points(self, store: Storage) -> None:
        names = ["Z", "a", "\u00e4", "\ufffd", "\U0001f600", " ", "a b", "a/b", "%"]
        for name in names:
            store.create_namespace(name)
        assert store.list_namespaces() == sorted([*names, "default"])

    def test_a_prefix_of_namespaces_is_literal(self, store: Storage) -> None:
        for name in ("a", "a%", "a_b", "ab", "b"):
            store.create_namespace(name)
        assert store.list_namespaces(prefix="a") == ["a", "a%", "a_b", "ab"]
        assert store.list_namespaces(prefix="a_") == ["a_b"]
        assert store.list_namespaces(prefix="d") == ["default"]
        assert store.list_namespaces(prefix="x") == []
        assert len(store.list_namespaces(prefix="")) == 6

    def test_the_prefix_of_namespaces_is_a_text(self, store: Storage) -> None:
        wrong: Any = 1
        with pytest.raises(InvalidValueError, match="prefix"):
            store.list_namespaces(prefix=wrong)

    def test_create_registers_with_metadata(self, store: Storage, clock: FakeClock) -> None:
        store.create_namespace("place", metadata={"by": "me"})
        assert store.list_namespaces() == ["default", "place"]
        info = store.namespace_info("place")
        assert (info.name, info.entries, info.metadata, info.created_at) == ("place", 0, {"by": "me"}, clock.time)

    def test_create_of_what_is_there_is_refused(self, store: Storage) -> None:
        store.create_namespace("place", metadata={"by": "me"})
        with pytest.raises(NamespaceExistsError, match="place"):
            store.create_namespace("place", metadata={"by": "you"})
        assert store.namespace_info("place").metadata == {"by": "me"}

    def test_create_of_what_a_write_registered_is_refused(self, store: Storage) -> None:
        store.set("key", 1, namespace="place")
        with pytest.raises(NamespaceExistsError):
            store.create_namespace("place")

    def test_create_of_default_is_refused(self, store: Storage) -> None:
        with pytest.raises(NamespaceExistsError):
            store.create_namespace("default")
        store.create_namespace("default", exist_ok=True)

    def test_create_may_be_told_that_existing_is_fine(self, store: Storage) -> None:
        store.create_namespace("place", metadata={"by": "me"})
        store.create_namespace("place", exist_ok=True)
        assert store.namespace_info("place").metadata == {"by": "me"}

    def test_create_refuses_bad_metadata(self, store: Storage) -> None:
        bad: Any
        for bad in ({"a": {1}}, {1: 2}, {"a": math.nan}, "text", [1]):
            with pytest.raises(InvalidValueError):
                store.create_namespace("place", metadata=bad)
        assert store.list_namespaces() == ["default"]

    def test_delete_removes_an_empty_namespace(self, store: Storage) -> None:
        store.create_namespace("place")
        store.delete_namespace("place")
        assert store.list_namespaces() == ["default"]
        with pytest.raises(NamespaceNotFoundError):
            store.namespace_info("place")

    def test_delete_of_a_missing_namespace_is_refused(self, store: Storage) -> None:
        with pytest.raises(NamespaceNotFoundError, match="place"):
            store.delete_namespace("place")
        with pytest.raises(NamespaceNotFoundError):
            store.delete_namespace("place", recursive=True)

    def test_delete_of_a_namespace_with_entries_needs_recursive(self, store: Storage) -> None:
        store.set("key", 1, namespace="place")
        with pytest.raises(NamespaceNotEmptyError, match="place"):
            store.delete_namespace("place")
        assert store.get("key", namespace="place") == 1
        store.delete_namespace("place", recursive=True)
        assert store.list_namespaces() == ["default"]
        assert not store.has("key", namespace="place")

    def test_default_cannot_be_deleted(self, store: Storage) -> None:
        store.set("key", 1)
        for recursive in (False, True):
            with pytest.raises(InvalidNamespaceError, match="default"):
                store.delete_namespace("default", recursive=recursive)
        assert store.get("key") == 1

    def test_a_deleted_namespace_may_come_back_empty(self, store: Storage, clock: FakeClock) -> None:
        store.create_namespace("place", metadata={"by": "me"})
        store.set("old", 1, namespace="place")
        store.delete_namespace("place", recursive=True)
        clock.advance(1)
        store.set("new", 1, namespace="place")
        info = store.namespace_info("place")
        assert (info.entries, info.metadata, info.created_at) == (1, {}, clock.time)
        assert store.list_keys(namespace="place") == ["new"]

    def test_info_of_a_missing_namespace_is_refused(self, store: Storage) -> None:
        with pytest.raises(NamespaceNotFoundError, match="place"):
            store.namespace_info("place")

    def test_info_counts_entries(self, store: Storage) -> None:
        store.set_many({"a": 1, "b": 2}, namespace="place")
        store.set("c", 3)
        assert store.namespace_info("place").entries == 2
        assert store.namespace_info("default").entries == 1

    def test_the_metadata_of_a_namespace_is_the_callers_own(self, store: Storage) -> None:
        store.create_namespace("place", metadata={"tags": ["x"]})
        store.namespace_info("place").metadata["tags"].append("y")
        assert store.namespace_info("place").metadata == {"tags": ["x"]}

    def test_clear_removes_the_entries_of_one_namespace(self, store: Storage) -> None:
        store.set_many({"a": 1, "b": 2}, namespace="place")
        store.create_namespace("place", metadata=None, exist_ok=True)
        store.set("c", 3)
        assert store.clear(namespace="place") == 2
        assert store.clear(namespace="place") == 0
        assert store.clear(namespace="nowhere") == 0
        assert store.list_namespaces() == ["default", "place"]
        assert (store.count(namespace="place"), store.count()) == (0, 1)
        assert store.clear() == 1

    def test_clear_all_removes_the_entries_of_all_namespaces(self, store: Storage) -> None:
        store.set_many({"a": 1, "b": 2}, namespace="place")
        store.set("c", 3)
        assert store.clear_all() == 3
        assert store.clear_all() == 0
        assert store.list_namespaces() == ["default", "place"]
        assert (store.count(namespace="place"), store.count()) == (0, 0)

    def test_namespaces_are_there_after_reopening(self, tmp_path: Path) -> None:
        with self.open_store(tmp_path) as store:
            store.create_namespace("made", metadata={"by": "me"})
            store.set("key", 1, namespace="written")
        with self.open_store(tmp_path) as store:
            assert store.list_namespaces() == (["default", "made", "written"] if self.persistent else ["default"])
