"""The contract of `copy` and `catch_up` with a store of the engine as their target: nothing of its own is lost.

Run by subclasses of `StorageContract`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mycelia_storage import CopyTargetError, Storage, catch_up, copy, open_storage
from mycelia_storage.keys import KeyRange
from mycelia_storage.testing.base import ContractBase
from mycelia_storage.testing.driving import DrivenStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mycelia_storage.testing.clock import FakeClock


def _itself(store: Storage) -> Storage:
    """The store that is copied, where another one stands before it."""
    return store._front.sync if isinstance(store, DrivenStorage) else store


def _write_and_remove(store: Storage, _: Path | None = None) -> None:
    with store.transaction() as tx:
        tx.set("lock", "mine")
        tx.delete("lock")


def _restore(store: Storage, folder: Path) -> None:
    store.backup(folder / "its own.backup")
    store.restore(folder / "its own.backup")


def _restore_another(store: Storage, folder: Path) -> None:
    with open_storage(folder / "another.db") as other:
        other.set_many({"order": "paid", "a": 100, "b": 2})
        other.backup(folder / "another.backup")
    store.restore(folder / "another.backup")


class CopyContract(ContractBase):
    """copy, catch_up."""

    @pytest.fixture
    def source(self, clock: FakeClock) -> Iterator[Storage]:
        """A store that was made at another time, with the clock of the target."""
        with open_storage("memory:", clock=clock) as source:
            clock.advance(1)
            source.set_many({"a": 1, "b": 2})
            yield source

    @pytest.mark.parametrize("happens", [_write_and_remove, _restore, _restore_another])
    def test_what_was_written_to_a_copy_is_not_overwritten_whatever_happened_since(
        self, source: Storage, store: Storage, clock: FakeClock, tmp_path: Path, happens: Callable[..., None]
    ) -> None:
        copy(source, _itself(store))
        clock.advance(1)
        store.set_many({"order": "paid", "a": 100})
        clock.advance(1)
        happens(store, tmp_path)
        for bring in (catch_up, copy):
            with pytest.raises(CopyTargetError):
                bring(source, _itself(store))
        assert dict(store.namespace("default")) == {"a": 100, "b": 2, "order": "paid"}

    def test_a_source_is_not_overwritten_by_its_copy(self, source: Storage, store: Storage, clock: FakeClock) -> None:
        del source
        store.set_many({"a": 1, "b": 2})
        with open_storage("memory:", clock=clock) as other:
            copy(_itself(store), other)
            clock.advance(1)
            store.set("order", "paid")
            _write_and_remove(store)
            for bring in (catch_up, copy):
                with pytest.raises(CopyTargetError, match="is no copy of this source"):
                    bring(other, _itself(store))
        assert store.get("order") == "paid"

    def test_what_is_removed_from_a_copy_at_once_keeps_nobody_from_catching_up(
        self, source: Storage, store: Storage, clock: FakeClock
    ) -> None:
        copy(source, _itself(store))
        _write_and_remove(store)
        clock.advance(1)
        source.set("a", 3)
        source.delete("b")
        report = catch_up(source, _itself(store))
        assert (report.written, report.deleted) == (1, 1)
        assert store.get_entry("a") == source.get_entry("a")

    def test_what_a_copy_asks_for_at_once_is_what_it_would_get_one_by_one(
        self, store: Storage, clock: FakeClock
    ) -> None:
        store.set_many({f"k{number:02d}": number for number in range(0, 40, 2)})
        store.set("k11", 1, ttl=1)
        store.set_many({"a": 1, "b": 2}, namespace="other")
        before = store.get_entry("k00").version
        clock.advance(1)
        store.set_many({"k00": 1, "k31": 1, "\U0010ffff": 1})
        store.set("b", 1, namespace="other")
        itself = _itself(store)
        rows, now = itself._reading(), itself._now()
        spans = [KeyRange("", "k04"), KeyRange("k04", "k04x"), KeyRange("k1", "k2"), KeyRange("k3")]
        one_by_one = [
            rows.keys("default", span, now, limit=None, offset=0, reverse=False) for span in (*spans, KeyRange())
        ]
        assert rows.keys_in("default", spans, now) == [key for keys in one_by_one[:-1] for key in keys]
        assert rows.keys_in("default", spans[:2], now) == ["k00", "k02", "k04"]
        assert rows.keys_in("default", [KeyRange()], now) == one_by_one[-1]
        assert rows.keys_in("default", [], now) == rows.keys_in("nowhere", spans, now) == []
        for namespaces in (None, ["default"], ["other", "nowhere"], []):
            for version in (0, before, now):
                found = rows.tally_and_newer(namespaces, version, now, limit=100)
                assert found == (rows.tally(namespaces, now), rows.newer(version, now, limit=100))
        assert len(rows.tally_and_newer(None, 0, now, limit=3)[1]) == 3

    def test_what_a_copy_knows_of_itself_is_no_namespace(self, source: Storage, store: Storage) -> None:
        copy(source, _itself(store))
        assert store.list_namespaces() == source.list_namespaces() == ["default"]
        assert store.get_status().namespaces == store.check().namespaces == 1
