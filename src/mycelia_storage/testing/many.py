"""The contract of the verbs on many entries: get_many, get_entries, set_many, add_many, delete_many, load.

Run by subclasses of `StorageContract`.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import (
    BatchError,
    InvalidKeyError,
    InvalidValueError,
    KeyExistsError,
    LoadReport,
    Put,
    StorageError,
)
from mycelia_storage.testing.base import ContractBase
from mycelia_storage.testing.compare import difference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mycelia_storage import Storage
    from mycelia_storage.testing.clock import FakeClock


def _kinds(errors: dict[Any, StorageError]) -> dict[Any, type[StorageError]]:
    return {key: type(error) for key, error in errors.items()}


class ManyContract(ContractBase):
    """get_many, get_entries, set_many, add_many, delete_many."""

    def test_get_many_gives_what_is_there_in_the_order_asked(self, store: Storage) -> None:
        store.set_many({"a": 1, "b": None, "c": 3})
        assert not difference(store.get_many(["c", "missing", "b", "a", "c"]), {"c": 3, "b": None, "a": 1})
        assert store.get_many([]) == {}
        assert store.get_many(["a"], namespace="nowhere") == {}

    def test_get_many_takes_any_iterable(self, store: Storage) -> None:
        store.set_many({"a": 1, "b": 2})
        assert store.get_many(key for key in ("b", "a")) == {"a": 1, "b": 2}
        assert store.get_many({"a": 0}) == {"a": 1}

    def test_get_many_of_very_many(self, store: Storage) -> None:
        items = {f"key{n:05}": n for n in range(5000)}
        store.set_many(items)
        assert not difference(store.get_many(reversed(list(items))), dict(reversed(items.items())))
        assert len(store.get_entries(items)) == 5000
        assert store.delete_many(items) == 5000

    def test_get_many_refuses_a_bad_key(self, store: Storage) -> None:
        with pytest.raises(InvalidKeyError):
            store.get_many(["a", ""])
        with pytest.raises(InvalidKeyError):
            store.get_entries(["a", ""])

    def test_get_entries_gives_entries_in_the_order_asked(self, store: Storage) -> None:
        store.set("a", 1, metadata={"n": 1}, namespace="place")
        store.set("b", 2, ttl=5, namespace="place")
        entries = store.get_entries(["b", "missing", "a"], namespace="place")
        expected = {key: store.get_entry(key, namespace="place") for key in ("b", "a")}
        assert not difference(entries, expected)

    def test_set_many_takes_a_mapping_pairs_and_puts(self, store: Storage) -> None:
        store.set_many({"a": 1})
        store.set_many([("b", 2), Put("c", 3)])
        store.set_many((key, 4) for key in ("d", "e"))
        assert store.get_many(list("abcde")) == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 4}

    def test_set_many_of_nothing(self, store: Storage) -> None:
        assert store.set_many({}) == {}
        assert store.add_many([]) == []
        assert store.delete_many([]) == 0

    def test_set_many_gives_the_new_versions(self, store: Storage) -> None:
        store.set("b", 0)
        versions = store.set_many({"b": 2, "a": 1}, namespace="default")
        assert versions == {key: entry.version for key, entry in store.get_entries(["a", "b"]).items()}

    def test_set_many_gives_metadata_and_ttl_to_all(self, store: Storage, clock: FakeClock) -> None:
        store.set_many({"a": 1, "b": 2}, metadata={"by": "me"}, ttl=5)
        for entry in store.get_entries(["a", "b"]).values():
            assert entry.metadata == {"by": "me"}
            assert entry.expires_at == clock.time + timedelta(seconds=5)

    def test_a_put_has_metadata_and_ttl_of_its_own(self, store: Storage, clock: FakeClock) -> None:
        items = [Put("own", 1, metadata={"of": "its own"}, ttl=7), Put("none", 2), Put("empty", 3, metadata={})]
        store.set_many(items, metadata={"of": "the call"}, ttl=5)
        entries = store.get_entries(["own", "none", "empty"])
        assert [entry.metadata for entry in entries.values()] == [{"of": "its own"}, {"of": "the call"}, {}]
        seconds = [entry.expires_at and (entry.expires_at - clock.time).seconds for entry in entries.values()]
        assert seconds == [7, 5, 5]

    def test_set_many_keeps_metadata_and_clears_the_expiry(self, store: Storage, clock: FakeClock) -> None:
        store.set("a", 1, metadata={"by": "me"}, ttl=60)
        created_at = clock.time
        clock.advance(1)
        store.set_many({"a": 2})
        entry = store.get_entry("a")
        assert (entry.metadata, entry.expires_at, entry.created_at) == ({"by": "me"}, None, created_at)

    def test_twice_the_same_key_the_last_wins(self, store: Storage) -> None:
        versions = store.set_many([("a", 1), ("b", 2), Put("a", 3, metadata={"by": "me"})])
        assert set(versions) == {"a", "b"}
        assert store.get_many(["a", "b"]) == {"a": 3, "b": 2}
        assert store.get_metadata("a") == {"by": "me"}
        store.add_many([("c", 1), ("c", 2)])
        assert store.get("c") == 2
        assert store.delete_many(["c", "c"]) == 1

    def test_all_of_a_batch_has_one_time(self, store: Storage, clock: FakeClock) -> None:
        store.set_many([(f"key{n}", n) for n in range(100)])
        assert {entry.created_at for entry in store.scan()} == {clock.time}
        assert {entry.version for entry in store.scan()} == {clock.micros}

    def test_set_many_without_overwrite_writes_all_or_nothing(self, store: Storage) -> None:
        store.set("b", 0)
        with pytest.raises(BatchError) as caught:
            store.set_many({"a": 1, "b": 2, "c": 3}, overwrite=False)
        assert _kinds(caught.value.errors) == {"b": KeyExistsError}
        assert store.get_many(["a", "b", "c"]) == {"b": 0}
        store.set_many({"a": 1, "c": 3}, overwrite=False)
        assert store.get_many(["a", "b", "c"]) == {"a": 1, "b": 0, "c": 3}

    def test_keys_that_are_there_are_named_in_the_order_given(self, store: Storage) -> None:
        store.set_many(dict.fromkeys("dbac", 0))
        for order in ("abcd", "dcba", "cadb"):
            with pytest.raises(BatchError, match=f"^'{order[0]}': ") as caught:
                store.set_many(dict.fromkeys(order, 1), overwrite=False)
            assert "".join(caught.value.errors) == order

    def test_bad_items_are_told_before_anything_is_written(self, store: Storage) -> None:
        items: list[tuple[Any, Any]] = [("good", 1), ("bad", math.nan), ("", 1), ("worse", {"a": {1}}), ("good2", 1)]
        for verb in (store.set_many, store.add_many):
            with pytest.raises(BatchError) as caught:
                verb(items, namespace="fresh")
            kinds = {"bad": InvalidValueError, "": InvalidKeyError, "worse": InvalidValueError}
            assert _kinds(caught.value.errors) == kinds
            assert str(caught.value.errors["worse"]).startswith("$.a")
        assert store.list_namespaces() == ["default"]

    def test_bad_metadata_and_ttl_of_a_put_are_bad_items(self, store: Storage) -> None:
        bad: Any = -1
        items = [Put("good", 1), Put("metadata", 1, metadata={"a": {1}}), Put("ttl", 1, ttl=bad)]
        with pytest.raises(BatchError) as caught:
            store.set_many(items)
        assert _kinds(caught.value.errors) == {"metadata": InvalidValueError, "ttl": InvalidValueError}
        assert store.count() == 0

    @pytest.mark.parametrize("item", ["ab", 1, None, ("a",), ("a", 1, 2), [], {"key": "a"}], ids=repr)
    def test_what_is_no_item_is_a_bad_item(self, store: Storage, item: Any) -> None:
        with pytest.raises(BatchError) as caught:
            store.set_many([("good", 1), item])
        assert len(caught.value.errors) == 1
        assert store.count() == 0

    def test_a_key_that_cannot_be_in_a_dict_stands_there_as_its_repr(self, store: Storage) -> None:
        items: list[Any] = [("good", 1), (["list"], 2)]
        with pytest.raises(BatchError) as caught:
            store.set_many(items)
        assert _kinds(caught.value.errors) == {"['list']": InvalidKeyError}

    def test_a_batch_error_names_its_keys(self, store: Storage) -> None:
        with pytest.raises(BatchError, match="the-bad-one"):
            store.set_many({"the-bad-one": math.nan})

    def test_an_error_of_the_iterable_writes_nothing(self, store: Storage) -> None:
        def items() -> Iterator[tuple[str, object]]:
            yield "a", 1
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            store.set_many(items())
        with pytest.raises(LookupError, match="mine"):
            store.add_many(items())
        assert store.count() == 0

    def test_add_many_gives_the_keys_that_were_added(self, store: Storage) -> None:
        store.set("b", 0, metadata={"by": "me"})
        before = store.get_entry("b")
        assert sorted(store.add_many({"c": 3, "b": 2, "a": 1}, metadata={"by": "you"}, ttl=60)) == ["a", "c"]
        assert not difference(store.get_entry("b"), before)
        assert store.get_many(list("abc")) == {"a": 1, "b": 0, "c": 3}
        assert store.get_metadata("a") == {"by": "you"}

    def test_delete_many_counts_what_was_there(self, store: Storage) -> None:
        store.set_many({"a": 1, "b": 2, "c": 3})
        assert store.delete_many(["a", "missing", "c"]) == 2
        assert store.delete_many(key for key in ("a", "b")) == 1
        assert store.count() == 0

    def test_delete_many_with_a_bad_key_removes_nothing(self, store: Storage) -> None:
        store.set("a", 1)
        with pytest.raises(InvalidKeyError):
            store.delete_many(["a", ""])
        assert store.has("a")

    def test_a_durable_batch_is_a_batch(self, store: Storage) -> None:
        store.set_many({"a": 1}, durable=True)
        assert store.add_many({"b": 1}, durable=True) == ["b"]
        assert store.delete_many(["a", "b"], durable=True) == 2


class LoadContract(ContractBase):
    """load."""

    def test_load_stores_items_of_every_form(self, store: Storage) -> None:
        report = store.load([("a", 1), Put("b", 2, metadata={"by": "me"}, ttl=60)], namespace="place")
        assert (report.loaded, report.failed, report.problems) == (2, 0, ())
        assert store.get_many(["a", "b"], namespace="place") == {"a": 1, "b": 2}
        assert store.get_metadata("b", namespace="place") == {"by": "me"}

    def test_load_replaces_what_is_there(self, store: Storage) -> None:
        store.set("a", 1, metadata={"by": "me"})
        assert store.load([("a", 2)]).loaded == 1
        assert (store.get("a"), store.get_metadata("a")) == (2, {"by": "me"})

    def test_load_of_nothing(self, store: Storage) -> None:
        assert store.load([]) == LoadReport(loaded=0, failed=0, problems=())

    def test_load_commits_batch_after_batch(self, store: Storage) -> None:
        counts: list[int] = []

        def items() -> Iterator[tuple[str, object]]:
            for n in range(10):
                counts.append(store.count())
                yield f"key{n}", n

        assert store.load(items(), batch_size=4).loaded == 10
        assert counts == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]
        assert store.count() == 10

    def test_load_tells_its_progress(self, store: Storage) -> None:
        reports: list[tuple[int, int]] = []

        def progress(report: LoadReport) -> None:
            reports.append((report.loaded, report.failed))

        store.load(((f"key{n}", n) for n in range(10)), batch_size=4, progress=progress)
        assert reports == [(4, 0), (8, 0), (10, 0)]

    def test_load_stops_at_a_bad_item_and_keeps_earlier_batches(self, store: Storage) -> None:
        items: list[tuple[str, object]] = [("a", 1), ("b", 2), ("c", 3), ("bad", {1}), ("d", 4)]
        with pytest.raises(BatchError) as caught:
            store.load(items, batch_size=2)
        assert _kinds(caught.value.errors) == {"bad": InvalidValueError}
        assert caught.value.report is not None
        assert caught.value.report.loaded == 2
        assert store.list_keys() == ["a", "b"]

    def test_load_draws_nothing_beyond_a_bad_item(self, store: Storage) -> None:
        drawn: list[str] = []

        def items() -> Iterator[tuple[str, object]]:
            for key, value in (("a", 1), ("bad", math.nan), ("c", 3)):
                drawn.append(key)
                yield key, value

        with pytest.raises(BatchError):
            store.load(items())
        assert drawn == ["a", "bad"]
        assert store.count() == 0

    def test_load_skips_bad_items_and_tells_them(self, store: Storage) -> None:
        items: list[Any] = [("a", 1), ("bad", {1}), ("b", 2), ("", 3), "no item", ("c", 4)]
        report = store.load(items, batch_size=2, on_error="skip")
        assert (report.loaded, report.failed) == (3, 3)
        assert [problem.index for problem in report.problems] == [1, 3, 4]
        assert [problem.key for problem in report.problems[:2]] == ["bad", ""]
        assert [type(problem.error) for problem in report.problems[:2]] == [InvalidValueError, InvalidKeyError]
        assert isinstance(report.problems[2].error, StorageError)
        assert store.list_keys() == ["a", "b", "c"]

    def test_load_tells_each_problem_once_to_progress(self, store: Storage) -> None:
        seen: list[int] = []

        def progress(report: LoadReport) -> None:
            seen.extend(problem.index for problem in report.problems)

        items: list[tuple[str, object]] = [("a", 1), ("bad", {1}), ("b", 2), ("bad", {1}), ("c", 3), ("bad", {1})]
        store.load(items, batch_size=2, on_error="skip", progress=progress)
        assert seen == [1, 3, 5]

    def test_load_reports_the_first_hundred_problems_and_counts_all(self, store: Storage) -> None:
        seen: list[int] = []
        report = store.load(
            ((f"bad{n}", {1}) for n in range(250)),
            batch_size=10,
            on_error="skip",
            progress=lambda report: seen.extend(problem.index for problem in report.problems),
        )
        assert (report.loaded, report.failed, len(report.problems)) == (0, 250, 100)
        assert seen == list(range(250))

    def test_the_same_key_twice_in_a_load_the_last_wins(self, store: Storage) -> None:
        store.load([("a", 1), ("a", 2), ("b", 3), ("a", 4)], batch_size=3)
        assert store.get_many(["a", "b"]) == {"a": 4, "b": 3}

    def test_load_passes_the_iterables_error_on(self, store: Storage) -> None:
        def items() -> Iterator[tuple[str, object]]:
            yield "a", 1
            yield "b", 2
            yield "c", 3
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            store.load(items(), batch_size=2)
        assert store.list_keys() == ["a", "b"]

    def test_load_refuses_a_misused_option(self, store: Storage) -> None:
        wrong: Any
        for wrong in (0, -1, 1.5, "10", None, True):
            with pytest.raises(InvalidValueError, match="batch_size"):
                store.load([("a", 1)], batch_size=wrong)
        wrong = "ignore"
        with pytest.raises(InvalidValueError, match="on_error"):
            store.load([("a", 1)], on_error=wrong)
        assert store.count() == 0
