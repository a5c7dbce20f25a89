"""The contract of a store as a whole: status, check, closing, reopening, and of the errors it raises.

Run by subclasses of `StorageContract`.
"""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from typing import TYPE_CHECKING, Any

import pytest

import mycelia_storage
from mycelia_storage import (
    BatchError,
    InvalidValueError,
    KeyNotFoundError,
    LoadReport,
    Storage,
    StorageClosedError,
    StorageError,
    Transaction,
    VersionConflictError,
)
from mycelia_storage.testing.base import ContractBase, is_refused
from mycelia_storage.testing.calls import OF_A_STORE_ONLY, STORE_CALLS, TRANSACTION_CALLS

if TYPE_CHECKING:
    from pathlib import Path

    from mycelia_storage.testing.clock import FakeClock

# What a closed store still answers to.
ALWAYS_FREE = {"close", "namespace"}


def _public_verbs(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, callable) if not name.startswith("_")}


class StoreContract(ContractBase):
    """get_status, check, optimize, migrate, close."""

    def test_every_verb_of_a_store_is_called_by_this_suite(self) -> None:
        assert _public_verbs(Storage) - ALWAYS_FREE == STORE_CALLS.keys()

    def test_every_verb_of_a_transaction_is_called_by_this_suite(self) -> None:
        assert _public_verbs(Transaction) - {"namespace", "rollback"} == TRANSACTION_CALLS.keys()
        assert not OF_A_STORE_ONLY.keys() & _public_verbs(Transaction)

    def test_status_counts_living_entries(self, store: Storage, clock: FakeClock) -> None:
        store.set_many({"a": 1, "b": 2})
        store.set("c", 3, namespace="place")
        store.set("gone", 4, ttl=1)
        clock.advance(1)
        status = store.get_status()
        assert (status.entries, status.namespaces) == (3, 2)
        assert status.backend
        assert status.schema_version >= 1
        assert status.size_bytes >= 0

    def test_check_finds_nothing_wrong(self, store: Storage) -> None:
        store.set_many({f"key{n}": {"n": n} for n in range(100)})
        store.set("c", 3, namespace="place")
        report = store.check()
        assert (report.entries, report.namespaces) == (101, 2)
        assert report.backend == store.get_status().backend
        assert report.seconds >= 0

    def test_optimize_and_migrate_change_no_answer(self, store: Storage) -> None:
        store.set_many({f"key{n}": {"n": n} for n in range(100)})
        before = list(store.scan())
        store.optimize()
        store.migrate()
        assert list(store.scan()) == before

    def test_a_store_is_a_context_manager(self, tmp_path: Path) -> None:
        with self.open_store(tmp_path) as store:
            store.set("a", 1)
        with pytest.raises(StorageClosedError):
            store.get("a")

    def test_an_exception_closes_too(self, tmp_path: Path) -> None:
        store = self.open_store(tmp_path)
        with pytest.raises(LookupError, match="mine"), store:
            raise LookupError("mine")
        with pytest.raises(StorageClosedError):
            store.get("a")

    @pytest.mark.parametrize("name", sorted(STORE_CALLS))
    def test_every_verb_of_a_closed_store_is_refused(self, tmp_path: Path, name: str) -> None:
        store = self.open_store(tmp_path)
        store.close()
        with pytest.raises(StorageClosedError):
            STORE_CALLS[name](store)

    def test_a_closed_store_refuses_even_nothing(self, tmp_path: Path) -> None:
        store = self.open_store(tmp_path)
        store.close()
        verbs = (store.get_many, store.get_entries, store.set_many, store.add_many, store.delete_many, store.load)
        taken = [verb.__name__ for verb in verbs if not is_refused(StorageClosedError, verb, [])]
        assert not taken

    def test_closing_twice_is_fine(self, tmp_path: Path) -> None:
        store = self.open_store(tmp_path)
        store.close()
        store.close()

    def test_what_was_written_is_there_after_reopening(self, tmp_path: Path, clock: FakeClock) -> None:
        with self.open_store(tmp_path, clock=clock) as store:
            store.set("a", {"n": 1}, metadata={"by": "me"}, ttl=60, namespace="place")
            store.set_many({"b": 1, "c": 2})
            store.delete("b")
            before = [*store.scan(namespace="place"), *store.scan()]
        clock.advance(1)
        with self.open_store(tmp_path, clock=clock) as store:
            after = [*store.scan(namespace="place"), *store.scan()]
            assert after == (before if self.persistent else [])

    def test_two_stores_in_two_places_share_nothing(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        with self.open_store(tmp_path / "one") as one, self.open_store(tmp_path / "two") as two:
            one.set("key", 1)
            assert two.count() == 0

    def test_a_store_that_reads_only_refuses_to_write(self, tmp_path: Path) -> None:
        with self.open_store(tmp_path) as store:
            store.set("key", 1)
        if not self.persistent:
            return
        with self.open_store(tmp_path, read_only=True) as store:
            assert store.get("key") == 1
            assert [entry.key for entry in store.scan()] == ["key"]
            for name in ("set", "add", "delete", "set_many", "clear", "clear_all", "create_namespace", "increment"):
                with pytest.raises(mycelia_storage.StorageReadOnlyError):
                    STORE_CALLS[name](store)
            assert store.count() == 1


def _all_errors(kind: type[StorageError] = StorageError) -> list[type[StorageError]]:
    return [kind, *(deeper for sub in kind.__subclasses__() for deeper in _all_errors(sub))]


def _pickled(error: Any, protocol: int | None = None) -> Any:
    return pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - it was pickled in the same line


class ErrorsContract(ContractBase):
    """What holds for every error, made by hand and raised by the engine."""

    @pytest.mark.parametrize("kind", _all_errors(), ids=lambda kind: kind.__name__)
    def test_an_error_survives_pickling_and_copying(self, kind: type[StorageError]) -> None:
        error = kind("what happened to 'key'")
        error.add_note("a note")
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert_same_error(_pickled(error, protocol), error)
        assert_same_error(copy.copy(error), error)
        assert_same_error(copy.deepcopy(error), error)

    @pytest.mark.parametrize("kind", _all_errors(), ids=lambda kind: kind.__name__)
    def test_the_str_of_an_error_is_its_message(self, kind: type[StorageError]) -> None:
        assert str(kind("what 'happened'")) == "what 'happened'"

    def test_codes_are_snake_case_and_unique(self) -> None:
        codes = [kind.code for kind in _all_errors()]
        assert len(set(codes)) == len(codes)
        assert all(code == code.lower() and code.replace("_", "").isalpha() for code in codes)

    def test_errors_with_more_to_tell_keep_it(self) -> None:
        conflict = VersionConflictError("conflict", 3, 7)
        batch = BatchError("batch", {"a": conflict}, LoadReport(loaded=1, failed=1, problems=()))
        copies: tuple[Any, ...] = (_pickled(batch), copy.copy(batch), copy.deepcopy(batch))
        for again in copies:
            assert again.report == batch.report
            assert (again.errors["a"].expected, again.errors["a"].actual) == (3, 7)

    def test_errors_as_they_are_raised_survive_pickling(self, store: Storage) -> None:
        store.set("key", 1)
        calls: tuple[Any, ...] = (
            lambda: store.get_entry("missing"),
            lambda: store.set("key", 1, if_version=7),
            lambda: store.set_many({"a": math.nan, "": 1}),
            lambda: store.load([("a", math.nan)]),
            lambda: store.set("key", {1}),
            lambda: store.delete_namespace("nowhere"),
        )
        for call in calls:
            with pytest.raises(StorageError) as caught:
                call()
            assert_same_error(_pickled(caught.value), caught.value)

    def test_errors_fit_the_classes_that_python_programmers_catch(self, store: Storage) -> None:
        with pytest.raises(KeyError):
            store.get_entry("missing")
        with pytest.raises(ValueError, match=r"\$"):
            store.set("key", {1})
        assert issubclass(KeyNotFoundError, KeyError)
        assert issubclass(InvalidValueError, ValueError)


def assert_same_error(again: StorageError, error: StorageError) -> None:
    """Class, message, attributes and notes are the same."""
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert (again.code, again.retryable) == (error.code, error.retryable)
    assert getattr(again, "__notes__", None) == getattr(error, "__notes__", None)
    if isinstance(error, VersionConflictError):
        assert isinstance(again, VersionConflictError)
        assert (again.expected, again.actual) == (error.expected, error.actual)
    if isinstance(error, BatchError):
        assert isinstance(again, BatchError)
        assert again.errors.keys() == error.errors.keys()
