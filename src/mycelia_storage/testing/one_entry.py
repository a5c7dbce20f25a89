"""The contract of the verbs on one entry that take or give it whole: get, set, add, take, delete, has.

Run by subclasses of `StorageContract`.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import (
    Entry,
    InvalidValueError,
    KeyExistsError,
    KeyNotFoundError,
    VersionConflictError,
)
from mycelia_storage.testing.base import ContractBase
from mycelia_storage.testing.compare import difference

if TYPE_CHECKING:
    from mycelia_storage import Storage
    from mycelia_storage.testing.clock import FakeClock

BAD_TTLS: tuple[Any, ...] = (
    0,
    0.0,
    -1,
    -0.5,
    math.nan,
    math.inf,
    -math.inf,
    "60",
    True,
    [60],
    timedelta(0),
    timedelta(seconds=-1),
    1e300,
    10**30,
    timedelta.max,
)


class OneEntryContract(ContractBase):
    """get, get_entry, set, add, take, delete, has."""

    def test_get_gives_the_value(self, store: Storage) -> None:
        store.set("key", {"a": [1, 2.5, None]})
        assert not difference(store.get("key"), {"a": [1, 2.5, None]})

    def test_get_of_a_missing_key_is_none_or_the_default(self, store: Storage) -> None:
        marker = object()
        assert store.get("missing") is None
        assert store.get("missing", marker) is marker
        assert store.get("missing", namespace="nowhere") is None

    def test_get_tells_a_stored_none_from_a_missing_key(self, store: Storage) -> None:
        store.set("key", None)
        assert store.get("key", "default") is None
        assert store.has("key")

    def test_get_does_not_register_a_namespace(self, store: Storage) -> None:
        store.get("key", namespace="looked-at")
        assert store.list_namespaces() == ["default"]

    def test_the_same_key_in_two_namespaces_is_two_entries(self, store: Storage) -> None:
        store.set("key", 1)
        store.set("key", 2, namespace="other")
        assert (store.get("key"), store.get("key", namespace="other")) == (1, 2)
        store.delete("key")
        assert store.get("key", namespace="other") == 2

    def test_get_entry_tells_all_about_an_entry(self, store: Storage, clock: FakeClock) -> None:
        version = store.set("key", [1], metadata={"by": "me"}, ttl=60, namespace="place")
        entry = store.get_entry("key", namespace="place")
        expected = Entry(
            namespace="place",
            key="key",
            value=[1],
            metadata={"by": "me"},
            version=version,
            created_at=clock.time,
            updated_at=clock.time,
            expires_at=clock.time + timedelta(seconds=60),
        )
        assert not difference(entry, expected)

    def test_get_entry_times_are_aware_and_utc(self, store: Storage) -> None:
        store.set("key", 1, ttl=1)
        entry = store.get_entry("key")
        assert entry.expires_at is not None
        for time in (entry.created_at, entry.updated_at, entry.expires_at):
            assert time.utcoffset() == timedelta(0)

    def test_get_entry_of_a_plain_entry(self, store: Storage) -> None:
        store.set("key", 1)
        entry = store.get_entry("key")
        assert (entry.metadata, entry.expires_at) == ({}, None)

    def test_get_entry_of_a_missing_key_raises_without_a_default(self, store: Storage) -> None:
        with pytest.raises(KeyNotFoundError) as caught:
            store.get_entry("missing-key")
        assert "missing-key" in str(caught.value)
        assert isinstance(caught.value, KeyError)

    def test_get_entry_of_a_missing_key_gives_the_default(self, store: Storage) -> None:
        marker = object()
        assert store.get_entry("missing", marker) is marker
        assert store.get_entry("missing", None) is None

    def test_an_entry_is_frozen(self, store: Storage) -> None:
        store.set("key", 1)
        entry: Any = store.get_entry("key")
        with pytest.raises(AttributeError):
            entry.value = 2

    # set

    def test_set_replaces_the_value(self, store: Storage) -> None:
        store.set("key", {"a": 1})
        store.set("key", "text")
        assert store.get("key") == "text"
        assert store.count() == 1

    def test_set_gives_the_new_version(self, store: Storage) -> None:
        version = store.set("key", 1)
        assert type(version) is int
        assert version == store.get_entry("key").version

    def test_set_without_metadata_keeps_what_is_there(self, store: Storage) -> None:
        store.set("key", 1, metadata={"by": "me"})
        store.set("key", 2)
        assert store.get_metadata("key") == {"by": "me"}

    def test_set_with_empty_metadata_empties_it(self, store: Storage) -> None:
        store.set("key", 1, metadata={"by": "me"})
        store.set("key", 2, metadata={})
        assert store.get_metadata("key") == {}

    def test_set_with_metadata_replaces_all_of_it(self, store: Storage) -> None:
        store.set("key", 1, metadata={"by": "me", "since": 1})
        store.set("key", 2, metadata={"by": "you"})
        assert store.get_metadata("key") == {"by": "you"}

    def test_set_without_overwrite_takes_a_free_key(self, store: Storage) -> None:
        version = store.set("key", 1, overwrite=False)
        assert store.get_entry("key").version == version

    def test_set_without_overwrite_leaves_what_is_there(self, store: Storage) -> None:
        store.set("key", 1, metadata={"by": "me"})
        before = store.get_entry("key")
        with pytest.raises(KeyExistsError, match="key"):
            store.set("key", 2, overwrite=False, metadata={}, ttl=1)
        assert not difference(store.get_entry("key"), before)

    def test_set_without_overwrite_and_with_if_version_is_a_misuse(self, store: Storage) -> None:
        with pytest.raises(TypeError):
            store.set("key", 1, overwrite=False, if_version=0)
        assert not store.has("key")

    def test_set_with_the_right_version(self, store: Storage) -> None:
        first = store.set("key", 1)
        second = store.set("key", 2, if_version=first)
        assert second > first
        assert store.get("key") == 2

    def test_set_with_another_version_changes_nothing(self, store: Storage) -> None:
        first = store.set("key", 1)
        second = store.set("key", 2)
        before = store.get_entry("key")
        with pytest.raises(VersionConflictError) as caught:
            store.set("key", 3, if_version=first, metadata={"a": 1}, ttl=5)
        assert (caught.value.expected, caught.value.actual) == (first, second)
        assert not difference(store.get_entry("key"), before)

    def test_set_with_version_0_means_the_key_must_not_exist(self, store: Storage) -> None:
        version = store.set("key", 1, if_version=0)
        with pytest.raises(VersionConflictError) as caught:
            store.set("key", 2, if_version=0)
        assert (caught.value.expected, caught.value.actual) == (0, version)
        assert store.get("key") == 1

    def test_set_with_a_version_on_a_missing_key(self, store: Storage) -> None:
        with pytest.raises(VersionConflictError) as caught:
            store.set("key", 1, if_version=7)
        assert (caught.value.expected, caught.value.actual) == (7, 0)
        assert not store.has("key")

    @pytest.mark.parametrize("version", [-1, 1.0, "1", True, math.nan, [1]], ids=repr)
    def test_what_is_no_version_is_refused(self, store: Storage, version: Any) -> None:
        store.set("key", 1)
        calls = (
            lambda: store.set("key", 2, if_version=version),
            lambda: store.modify("key", str, if_version=version),
            lambda: store.merge("key", {}, if_version=version),
            lambda: store.delete("key", if_version=version),
            lambda: store.set_metadata("key", {}, if_version=version),
        )
        for call in calls:
            with pytest.raises(InvalidValueError, match="if_version"):
                call()
        assert store.get("key") == 1

    def test_a_durable_set_is_a_set(self, store: Storage) -> None:
        version = store.set("key", 1, durable=True)
        assert store.get_entry("key").version == version

    @pytest.mark.parametrize("ttl", BAD_TTLS, ids=repr)
    def test_a_bad_ttl_is_refused_and_nothing_written(self, store: Storage, ttl: Any) -> None:
        with pytest.raises(InvalidValueError, match="ttl"):
            store.set("key", 1, ttl=ttl, namespace="fresh")
        with pytest.raises(InvalidValueError, match="ttl"):
            store.add("key", 1, ttl=ttl, namespace="fresh")
        with pytest.raises(InvalidValueError, match="ttl"):
            store.increment("key", ttl=ttl, namespace="fresh")
        assert store.list_namespaces() == ["default"]

    # add

    def test_add_takes_a_free_key_only(self, store: Storage) -> None:
        assert store.add("key", 1, metadata={"by": "me"}, ttl=60) is True
        before = store.get_entry("key")
        assert store.add("key", 2, metadata={"by": "you"}, ttl=5) is False
        assert not difference(store.get_entry("key"), before)
        assert (before.value, before.metadata) == (1, {"by": "me"})

    def test_add_keeps_its_ttl(self, store: Storage, clock: FakeClock) -> None:
        store.add("key", 1, ttl=timedelta(minutes=1))
        assert store.get_entry("key").expires_at == clock.time + timedelta(minutes=1)

    # take, delete, has

    def test_take_removes_and_gives_the_entry(self, store: Storage) -> None:
        store.set("key", [1], metadata={"by": "me"}, ttl=60)
        before = store.get_entry("key")
        assert not difference(store.take("key"), before)
        assert not store.has("key")

    def test_take_of_a_missing_key(self, store: Storage) -> None:
        marker = object()
        assert store.take("key", marker) is marker
        assert store.take("key", None) is None
        with pytest.raises(KeyNotFoundError, match="key"):
            store.take("key")

    def test_delete_tells_whether_the_key_was_there(self, store: Storage) -> None:
        store.set("key", None)
        assert store.delete("key") is True
        assert store.delete("key") is False
        assert store.delete("key", namespace="nowhere") is False
        assert store.get("key", "gone") == "gone"

    def test_delete_with_the_right_version(self, store: Storage) -> None:
        version = store.set("key", 1)
        assert store.delete("key", if_version=version) is True
        assert not store.has("key")

    def test_delete_with_another_version_removes_nothing(self, store: Storage) -> None:
        version = store.set("key", 1)
        with pytest.raises(VersionConflictError) as caught:
            store.delete("key", if_version=version + 1)
        assert (caught.value.expected, caught.value.actual) == (version + 1, version)
        assert store.get("key") == 1

    def test_delete_with_a_version_on_a_missing_key(self, store: Storage) -> None:
        with pytest.raises(VersionConflictError) as caught:
            store.delete("key", if_version=7)
        assert caught.value.actual == 0

    def test_deleting_the_last_entry_leaves_the_namespace(self, store: Storage) -> None:
        store.set("key", 1, namespace="place")
        store.delete("key", namespace="place")
        assert store.list_namespaces() == ["default", "place"]

    def test_has_tells_whether_a_key_is_there(self, store: Storage) -> None:
        assert store.has("key") is False
        store.set("key", False)
        assert store.has("key") is True
        assert store.has("key", namespace="other") is False

    # what comes back is the caller's own

    def test_changing_what_was_given_changes_no_store(self, store: Storage) -> None:
        value: dict[str, Any] = {"a": [1]}
        metadata = {"tags": ["x"]}
        store.set("key", value, metadata=metadata)
        value["a"].append(2)
        metadata["tags"].append("y")
        entry = store.get_entry("key")
        assert (entry.value, entry.metadata) == ({"a": [1]}, {"tags": ["x"]})

    def test_changing_what_was_read_changes_no_store(self, store: Storage) -> None:
        store.set("key", {"a": [1]}, metadata={"tags": ["x"]})
        value: Any = store.get("key")
        value["a"].append(2)
        store.get_many(["key"])["key"]["a"].append(2)
        store.get_metadata("key")["tags"].append("y")
        entry = store.get_entry("key")
        entry.value["a"].append(2)
        entry.metadata["tags"].append("y")
        store.get_entries(["key"])["key"].value["a"].append(2)
        with store.scan() as scan:
            next(scan).value["a"].append(2)
        again = store.get_entry("key")
        assert (again.value, again.metadata) == ({"a": [1]}, {"tags": ["x"]})
