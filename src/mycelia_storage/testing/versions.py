"""The contract of what the library keeps about an entry by itself: versions, timestamps, expiry.

Run by subclasses of `StorageContract`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from mycelia_storage import KeyNotFoundError, VersionConflictError
from mycelia_storage.testing.base import ContractBase
from mycelia_storage.testing.clock import START
from mycelia_storage.testing.compare import difference

if TYPE_CHECKING:
    from pathlib import Path

    from mycelia_storage import Storage
    from mycelia_storage.testing.clock import FakeClock


class VersionsContract(ContractBase):
    """`version`, `created_at`, `updated_at`."""

    def test_a_version_is_the_time_in_microseconds(self, store: Storage, clock: FakeClock) -> None:
        assert store.set("key", 1) == clock.micros
        clock.advance(0.5)
        assert store.set("key", 2) == clock.micros

    def test_no_time_is_cut_short(self, store: Storage, clock: FakeClock) -> None:
        wrong: list[int] = []
        for step in range(200):
            clock.set(START + step + step / 1000)
            entry = store.get_entry(f"key{step}") if store.set(f"key{step}", 1, ttl=0.001) == clock.micros else None
            if entry is None or entry.created_at != clock.time:
                wrong.append(clock.micros)
        assert not wrong

    def test_a_version_grows_while_the_clock_stands(self, store: Storage, clock: FakeClock) -> None:
        versions = [store.set("key", n) for n in range(5)]
        assert versions == [clock.micros + n for n in range(5)]

    def test_a_version_grows_while_the_clock_goes_back(self, store: Storage, clock: FakeClock) -> None:
        first = store.set("key", 1)
        clock.advance(-3600)
        assert store.set("key", 2) == first + 1

    def test_entries_do_not_share_a_counter(self, store: Storage, clock: FakeClock) -> None:
        for _ in range(5):
            store.set("busy", 1)
        assert store.set("key", 1) == clock.micros

    def test_every_write_of_an_entry_bumps_its_version(self, store: Storage) -> None:
        writes = (
            lambda: store.set("key", {}),
            lambda: store.set("key", {}),
            lambda: store.modify("key", lambda value: value),
            lambda: store.merge("key", {}),
            lambda: store.increment("key", field="n"),
            lambda: store.touch("key", ttl=None),
            lambda: store.set_metadata("key", {}),
            lambda: store.set_many({"key": {}}),
        )
        versions: list[int] = []
        for write in writes:
            write()
            versions.append(store.get_entry("key").version)
        assert versions == sorted(set(versions)), "strictly growing"

    def test_reading_bumps_nothing(self, store: Storage) -> None:
        store.set("key", 1)
        before = store.get_entry("key")
        store.get("key")
        store.has("key")
        store.get_metadata("key")
        store.get_many(["key"])
        store.add("key", 2)
        store.list_keys()
        assert not difference(store.get_entry("key"), before)

    def test_a_version_is_not_used_again_after_a_delete(self, store: Storage) -> None:
        version = store.set("key", 1)
        store.delete("key")
        assert store.set("key", 1) > version

    def test_a_version_is_not_used_again_after_a_take(self, store: Storage) -> None:
        version = store.set("key", 1)
        store.take("key")
        assert store.set("key", 1) > version

    def test_a_version_is_not_used_again_after_a_delete_of_many(self, store: Storage) -> None:
        version = max(store.set("key", 1) for _ in range(5))
        store.delete_many(["key"])
        assert store.set("key", 1) > version

    def test_a_version_is_not_used_again_after_a_clear(self, store: Storage) -> None:
        version = store.set("key", 1)
        store.clear()
        second = store.set("key", 1)
        store.clear_all()
        third = store.set("key", 1)
        assert third > second > version

    def test_a_version_is_not_used_again_after_its_namespace_was_deleted(self, store: Storage) -> None:
        version = store.set("key", 1, namespace="place")
        store.delete_namespace("place", recursive=True)
        assert store.set("key", 1, namespace="place") > version

    def test_a_version_is_not_used_again_after_an_expiry(self, store: Storage, clock: FakeClock) -> None:
        version = store.set("key", 1, ttl=1)
        clock.advance(-10)
        version = store.set("key", 1, ttl=1)
        clock.advance(1)
        store.optimize()
        assert store.set("key", 1) > version

    def test_a_version_is_not_used_again_after_a_delete_while_the_clock_was_behind(
        self, store: Storage, clock: FakeClock
    ) -> None:
        version = store.set("key", 1)
        clock.advance(-3600)
        store.delete("key")
        assert store.set("key", 1) > version

    def test_an_old_version_does_not_fit_a_later_entry(self, store: Storage) -> None:
        version = store.set("key", 1)
        store.delete("key")
        store.set("key", 2)
        with pytest.raises(VersionConflictError):
            store.set("key", 3, if_version=version)
        with pytest.raises(VersionConflictError):
            store.delete("key", if_version=version)

    def test_versions_go_on_after_reopening(self, tmp_path: Path, clock: FakeClock) -> None:
        with self.open_store(tmp_path, clock=clock) as store:
            version = store.set("key", 1)
            store.delete("key")
        with self.open_store(tmp_path, clock=clock) as store:
            assert store.set("key", 1) == (version + 1 if self.persistent else version)

    def test_created_at_stays_while_the_entry_lives(self, store: Storage, clock: FakeClock) -> None:
        created_at = clock.time
        store.set("key", {})
        clock.advance(1)
        store.set("key", {})
        store.merge("key", {"a": 1})
        store.touch("key", ttl=None)
        store.set_metadata("key", {"a": 1})
        store.modify("key", lambda value: value)
        store.set_many({"key": {}})
        entry = store.get_entry("key")
        assert (entry.created_at, entry.updated_at) == (created_at, clock.time)

    def test_created_at_starts_anew_after_a_delete(self, store: Storage, clock: FakeClock) -> None:
        store.set("key", 1)
        store.delete("key")
        clock.advance(1)
        store.set("key", 1)
        assert store.get_entry("key").created_at == clock.time

    def test_updated_at_never_decreases(self, store: Storage, clock: FakeClock) -> None:
        store.set("key", 1)
        time = clock.time
        clock.advance(-3600)
        store.set("key", 2)
        entry = store.get_entry("key")
        assert (entry.created_at, entry.updated_at) == (time, time)


class ExpiryContract(ContractBase):
    """`ttl` and what becomes of an entry when its time is over."""

    def test_an_entry_expires_at_its_time_and_not_before(self, store: Storage, clock: FakeClock) -> None:
        store.set("key", 1, ttl=10)
        clock.advance(9.999)
        assert store.get("key") == 1
        clock.advance(0.001)
        assert store.get("key") is None

    def test_a_timedelta_is_a_ttl(self, store: Storage, clock: FakeClock) -> None:
        store.set("key", 1, ttl=timedelta(milliseconds=1500))
        assert store.get_entry("key").expires_at == clock.time + timedelta(milliseconds=1500)

    @pytest.mark.parametrize(("ttl", "milliseconds"), [(0.0001, 1), (0.001, 1), (0.0015, 2), (0.25, 250), (1e-9, 1)])
    def test_a_ttl_rounds_up_to_milliseconds(
        self, store: Storage, clock: FakeClock, ttl: float, milliseconds: int
    ) -> None:
        store.set("key", 1, ttl=ttl)
        store.set("same", 1, ttl=timedelta(seconds=ttl) or timedelta(microseconds=1))
        expires_at = clock.time + timedelta(milliseconds=milliseconds)
        assert (store.get_entry("key").expires_at, store.get_entry("same").expires_at) == (expires_at, expires_at)

    def test_set_without_ttl_clears_an_earlier_expiry(self, store: Storage, clock: FakeClock) -> None:
        store.set("key", 1, ttl=10)
        store.set("key", 2)
        assert store.get_entry("key").expires_at is None
        clock.advance(10)
        assert store.get("key") == 2

    def test_an_expired_entry_is_invisible_to_every_read(self, store: Storage, clock: FakeClock) -> None:
        store.set("gone", 1, ttl=1, metadata={"a": 1})
        store.set("here", 2)
        clock.advance(1)
        assert store.get("gone", "default") == "default"
        assert store.get_entry("gone", None) is None
        assert not store.has("gone")
        assert store.get_many(["gone", "here"]) == {"here": 2}
        assert list(store.get_entries(["gone", "here"])) == ["here"]
        assert store.list_keys() == ["here"]
        assert [entry.key for entry in store.scan()] == ["here"]
        assert store.count() == 1
        assert store.namespace_info("default").entries == 1
        assert store.get_status().entries == 1
        assert store.check().entries == 1
        with pytest.raises(KeyNotFoundError):
            store.get_metadata("gone")

    def test_an_expired_entry_is_invisible_to_every_write(self, store: Storage, clock: FakeClock) -> None:
        for key in ("touch", "take", "delete", "many", "metadata", "modify"):
            store.set(key, 1, ttl=1)
        clock.advance(1)
        assert store.touch("touch", ttl=5) is False
        assert store.take("take", None) is None
        assert store.delete("delete") is False
        assert store.delete_many(["many"]) == 0
        with pytest.raises(KeyNotFoundError):
            store.set_metadata("metadata", {"a": 1})
        with pytest.raises(KeyNotFoundError):
            store.modify("modify", lambda value: value)
        assert store.clear() == 0

    def test_an_expired_entry_is_no_obstacle(self, store: Storage, clock: FakeClock) -> None:
        for key in ("set", "version", "add", "many", "default", "increment"):
            store.set(key, 41, ttl=1)
        clock.advance(1)
        store.set("set", 1, overwrite=False)
        store.set("version", 1, if_version=0)
        assert store.add("add", 1) is True
        assert store.add_many({"many": 1}) == ["many"]
        assert store.modify("default", lambda value: value, default=1) == 1
        assert store.increment("increment") == 1
        assert set(store.get_many(store.list_keys()).values()) == {1}

    def test_the_version_of_an_expired_entry_fits_no_more(self, store: Storage, clock: FakeClock) -> None:
        version = store.set("key", 1, ttl=1)
        clock.advance(1)
        with pytest.raises(VersionConflictError) as caught:
            store.set("key", 2, if_version=version)
        assert (caught.value.expected, caught.value.actual) == (version, 0)

    def test_nothing_of_an_expired_entry_is_passed_on(self, store: Storage, clock: FakeClock) -> None:
        store.set("key", 1, metadata={"by": "me"}, ttl=1)
        clock.advance(1)
        store.set("key", 2)
        entry = store.get_entry("key")
        assert (entry.metadata, entry.created_at, entry.expires_at) == ({}, clock.time, None)

    def test_nothing_of_an_expired_entry_is_passed_on_by_a_change(self, store: Storage, clock: FakeClock) -> None:
        store.set("key", 41, metadata={"by": "me"}, ttl=1)
        clock.advance(1)
        store.increment("key")
        entry = store.get_entry("key")
        assert (entry.value, entry.metadata, entry.created_at, entry.expires_at) == (1, {}, clock.time, None)

    def test_a_namespace_of_expired_entries_is_empty(self, store: Storage, clock: FakeClock) -> None:
        store.set("key", 1, ttl=1, namespace="place")
        clock.advance(1)
        assert store.list_namespaces() == ["default", "place"]
        store.delete_namespace("place")
        assert store.list_namespaces() == ["default"]

    def test_optimize_takes_away_no_living_entry(self, store: Storage, clock: FakeClock) -> None:
        store.set("here", 1)
        store.set("later", 1, ttl=10)
        for n in range(300):
            store.set(f"gone{n}", n, ttl=1)
        clock.advance(1)
        store.optimize()
        assert store.list_keys() == ["here", "later"]
        assert store.check().entries == 2

    def test_an_expiry_is_kept_after_reopening(self, tmp_path: Path, clock: FakeClock) -> None:
        with self.open_store(tmp_path, clock=clock) as store:
            store.set("key", 1, ttl=10)
        with self.open_store(tmp_path, clock=clock) as store:
            assert store.get("key") == (1 if self.persistent else None)
            clock.advance(10)
            assert store.get("key") is None
