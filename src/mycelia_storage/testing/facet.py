"""The kernel's contract: what every facet answers, method by method.

Run by subclasses of `FacetContract`, which say how a facet is opened. The tests are coroutine functions inside, each in
an event loop of its own, so that no plugin of pytest's is needed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import orjson
import pytest

from mycelia_storage.errors import (
    BatchError,
    InvalidFilterError,
    InvalidKeyError,
    InvalidNamespaceError,
    InvalidValueError,
    KeyExistsError,
    KeyNotFoundError,
    NamespaceExistsError,
    NamespaceNotEmptyError,
    NamespaceNotFoundError,
    StorageBusyError,
    StorageClosedError,
    StorageError,
    TransactionError,
    VersionConflictError,
)
from mycelia_storage.facet_contract import enforce_contract
from mycelia_storage.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from typing import Unpack

    from mycelia_storage.facet import StorageFacet
    from mycelia_storage.facet_result import StorageResult
    from mycelia_storage.options import StorageOptions

Contract: TypeAlias = "FacetContract"
Written: TypeAlias = "Callable[[Any, StorageFacet, FakeClock], Coroutine[Any, Any, None]]"


def served(test: Written, *, busy_timeout: float = 5.0) -> Callable[[Contract, Path, FakeClock], None]:
    """A test that is written with a facet and a clock, as one that pytest calls."""

    def run(self: Contract, tmp_path: Path, clock: FakeClock) -> None:
        async def opened() -> None:
            async with self.open_facet(tmp_path, clock=clock, busy_timeout=busy_timeout) as facet:
                await test(self, facet, clock)

        asyncio.run(opened())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def served_impatiently(test: Written) -> Callable[[Contract, Path, FakeClock], None]:
    """As `served`, where nobody waits for a lock for long."""
    return served(test, busy_timeout=0.05)


def good(result: StorageResult) -> StorageResult:
    """The result, which must be a success and go through a message."""
    assert result.success, result.error
    assert result.error is None
    orjson.loads(orjson.dumps(result.to_dict()))
    return result


def bad(kind: type[StorageError], result: StorageResult, *words: str) -> StorageResult:
    """The result, which must be an error of this kind with these words in it."""
    assert not result.success
    assert type(result.error) is kind
    shown = orjson.loads(orjson.dumps(result.to_dict()))
    assert shown["success"] is False
    assert shown["error"] == {"code": kind.code, "message": str(result.error)}
    assert all(word in str(result.error) for word in words)
    return result


class FacetContract:
    """The twenty methods of the kernel's contract. A subclass says how a facet over a new store is opened.

    It says too whether a transaction that writes keeps others waiting there (`write_lock`).
    """

    write_lock: ClassVar[bool] = True

    def open_facet(
        self, directory: Path, **options: Unpack[StorageOptions]
    ) -> AbstractAsyncContextManager[StorageFacet]:
        """A facet over a new store in `directory`; leaving the block closes both."""
        raise NotImplementedError(f"{type(self).__name__} has to say how its facet is opened: override open_facet")

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    # ---- one entry

    @served
    async def test_what_is_set_can_be_got(self, facet: StorageFacet, _: FakeClock) -> None:
        version = good(await facet.set("a", {"n": [1, None]}, {"metadata": {"by": "me"}})).version
        assert good(await facet.get("a")).to_dict() == {"success": True, "data": {"n": [1, None]}}
        whole = good(await facet.get("a", {"include_metadata": True}))
        assert (whole.data, whole.metadata, whole.version) == ({"n": [1, None]}, {"by": "me"}, version)
        assert whole == await facet.get("a", {"includeMetadata": True})

    @served
    async def test_a_stored_null_is_no_missing_key(self, facet: StorageFacet, _: FakeClock) -> None:
        good(await facet.set("a", None))
        assert good(await facet.get("a")).to_dict() == {"success": True, "data": None}
        assert good(await facet.get_many(["a"])).data == {"a": None}

    @served
    async def test_a_missing_key_is_an_error_of_get_and_none_of_delete(self, facet: StorageFacet, _: FakeClock) -> None:
        for options in ({}, {"include_metadata": True}):
            result = bad(KeyNotFoundError, await facet.get("a", options), "'a'", "'default'")
            assert set(result.to_dict()) == {"success", "error"}
        assert good(await facet.delete("a")).exists is False
        good(await facet.set("a", 1))
        assert good(await facet.delete("a")).to_dict() == {"success": True, "exists": True}
        assert good(await facet.has("a")).to_dict() == {"success": True, "exists": False}

    @served
    async def test_the_options_of_set(self, facet: StorageFacet, clock: FakeClock) -> None:
        version = good(await facet.set("a", 1, {"namespace": "place", "ttl": 10})).version
        bad(KeyExistsError, await facet.set("a", 2, {"namespace": "place", "overwrite": False}))
        good(await facet.set("a", 2, {"overwrite": False}))
        bad(VersionConflictError, await facet.set("a", 3, {"namespace": "place", "if_version": 1}))
        good(await facet.set("a", 3, {"namespace": "place", "ifVersion": version, "ttl": 10}))
        assert good(await facet.get("a", {"namespace": "place"})).data == 3
        clock.advance(10)
        bad(KeyNotFoundError, await facet.get("a", {"namespace": "place"}))
        assert good(await facet.get("a")).data == 2
        bad(InvalidValueError, await facet.set("a", 4, {"overwrite": False, "if_version": 1}), "if_version")

    @served
    async def test_delete_and_metadata_by_version(self, facet: StorageFacet, _: FakeClock) -> None:
        first = good(await facet.set("a", 1, {"metadata": {"x": 1}})).version
        assert good(await facet.get_metadata("a")).metadata == {"x": 1}
        second = good(await facet.set_metadata("a", {"y": None}, {"if_version": first})).version
        assert good(await facet.get_metadata("a")).metadata == {"x": 1, "y": None}
        good(await facet.set_metadata("a", {"z": 1}, {"merge": False}))
        assert good(await facet.get_metadata("a")).to_dict() == {"success": True, "metadata": {"z": 1}}
        bad(VersionConflictError, await facet.delete("a", {"if_version": second}))
        bad(VersionConflictError, await facet.set_metadata("a", {}, {"ifVersion": second}))
        bad(KeyNotFoundError, await facet.get_metadata("b"))
        bad(KeyNotFoundError, await facet.set_metadata("b", {}))

    # ---- many

    @served
    async def test_get_many_gives_what_is_there_and_an_error_for_the_rest(self, facet: StorageFacet, _: Any) -> None:
        version = good(await facet.set("a", 1, {"metadata": {"x": 1}})).version
        assert good(await facet.get_many([])).data == {}
        wrong: Any = ["b", "a", 7]
        result = bad(BatchError, await facet.get_many(wrong))
        assert result.data == {"a": 1}
        assert result.errors is not None
        assert {key: type(error) for key, error in result.errors.items()} == {
            "b": KeyNotFoundError,
            "7": InvalidKeyError,
        }
        assert result.to_dict()["errors"]["b"]["code"] == "key_not_found"
        whole = good(await facet.get_many(iter(["a"]), {"include_metadata": True}))
        assert (whole.data, whole.metadata, whole.versions) == ({"a": 1}, {"a": {"x": 1}}, {"a": version})

    @served
    async def test_set_many_stores_the_good_ones(self, facet: StorageFacet, _: FakeClock) -> None:
        good(await facet.set("there", 1))
        entries: list[Any] = [
            {"key": "a", "value": 1},
            {"key": "b", "value": {1}},
            {"key": "there", "value": 2, "options": {"overwrite": False}},
            {"key": "c", "value": 3, "options": {"namespace": "place", "metadata": {"x": 1}}},
            {"key": "d", "value": 4, "options": {"ifVersion": 0}},
            {"key": "e", "value": 5, "options": {"if_version": 7}},
            {"key": "f", "value": 5, "options": {"namspace": "place"}},
            {"key": "g"},
            {"value": 5},
            {"key": "h", "value": 5, "ttl": 5},
            {"key": "", "value": 5},
            ["i", 5],
        ]
        result = bad(BatchError, await facet.set_many(entries, {"metadata": {"y": 1}}))
        outcomes = {name: found.success for name, found in result.results.items()}
        stored = {"a", "c", "d"}
        assert outcomes == {
            name: name in stored
            for name in ("a", "b", "there", "c", "d", "e", "f", "g", "entry 8", "h", "", "entry 11")
        }
        assert list(outcomes)[:3] == ["a", "b", "there"]
        assert result.errors is not None
        assert set(result.errors) == set(outcomes) - stored
        assert type(result.errors["there"]) is KeyExistsError
        assert "did you mean 'namespace'" in str(result.errors["f"])
        assert good(await facet.list()).keys == ["a", "d", "there"]
        assert good(await facet.get("c", {"namespace": "place", "include_metadata": True})).metadata == {"x": 1}
        assert good(await facet.get_metadata("a")).metadata == {"y": 1}
        shown = result.to_dict()["results"]
        assert shown["a"] == {"success": True, "version": result.results["a"].version}
        assert shown["there"]["error"]["code"] == "key_exists"

    @served
    async def test_set_many_where_all_are_good(self, facet: StorageFacet, clock: FakeClock) -> None:
        assert good(await facet.set_many([])).results == {}
        entries = [{"key": name, "value": n} for n, name in enumerate("abca")]
        result = good(await facet.set_many(entries, {"namespace": "place", "ttl": 5}))
        assert good(await facet.get_many(["a", "b", "c"], {"namespace": "place"})).data == {"a": 3, "b": 1, "c": 2}
        found = good(await facet.get("a", {"namespace": "place", "include_metadata": True}))
        assert found.version == result.results["a"].version
        clock.advance(5)
        assert good(await facet.count({"namespace": "place"})).count == 0
        wrong: Any = {"a": 1}
        bad(InvalidValueError, await facet.set_many(wrong), "list")

    @served
    async def test_a_failure_is_told_where_one_key_stands_in_two_namespaces(self, facet: StorageFacet, _: Any) -> None:
        entries: list[dict[str, Any]] = [
            {"key": "a", "value": 1, "options": {"namespace": "one"}},
            {"key": "a", "value": {1}, "options": {"namespace": "two"}},
            {"key": "a", "value": 3, "options": {"namespace": "three"}},
        ]
        result = bad(BatchError, await facet.set_many(entries))
        assert not result.results["a"].success
        assert good(await facet.list_namespaces()).namespaces == ["default", "one", "three"]

    @served
    async def test_delete_many(self, facet: StorageFacet, _: FakeClock) -> None:
        good(await facet.set_many([{"key": key, "value": 1} for key in "abc"]))
        wrong: Any = ["a", "missing", None, "b"]
        result = bad(BatchError, await facet.delete_many(wrong))
        assert {name: found.success for name, found in result.results.items()} == {
            "a": True,
            "missing": True,
            "b": True,
            "None": False,
        }
        assert result.count == 2
        assert good(await facet.delete_many(("c",))).to_dict() == {
            "success": True,
            "results": {"c": {"success": True}},
            "count": 1,
        }
        assert good(await facet.list()).keys == []

    # ---- finding

    @served
    async def test_list(self, facet: StorageFacet, _: FakeClock) -> None:
        good(await facet.set_many([{"key": key, "value": 1} for key in ("a:1", "a:2", "a:3", "b:1", "*")]))
        good(await facet.set("far", 1, {"namespace": "place"}))
        assert good(await facet.list()).keys == ["*", "a:1", "a:2", "a:3", "b:1"]
        assert good(await facet.list({"pattern": "a:*", "limit": 1, "offset": 1})).keys == ["a:2"]
        assert good(await facet.list({"pattern": "*1"})).keys == ["a:1", "b:1"]
        assert good(await facet.list({"pattern": "\\*"})).to_dict() == {"success": True, "keys": ["*"]}
        assert good(await facet.list({"namespace": "place", "limit": None})).keys == ["far"]
        assert good(await facet.list({"namespace": "nowhere"})).keys == []
        bad(InvalidValueError, await facet.list({"limit": -1}), "limit")
        bad(InvalidValueError, await facet.list({"offset": "1"}), "offset")

    @served
    async def test_query(self, facet: StorageFacet, clock: FakeClock) -> None:
        for name, age in (("ada", 36), ("bob", 17), ("cyd", 41), ("dan", 36)):
            good(await facet.set(name, {"age": age}, {"metadata": {"age": -age}, "ttl": 60}))
        adults = {"field": "age", "operator": "gte", "value": 18}
        options = {"sort": {"field": "age", "order": "desc"}, "limit": 2, "offset": 1}
        result = good(await facet.query(adults, options))
        assert [entry.key for entry in result.results] == ["dan", "ada"]
        now = clock.micros // 1000
        assert result.to_dict()["results"][1] == {
            "namespace": "default",
            "key": "ada",
            "value": {"age": 36},
            "metadata": {"age": -36},
            "version": result.results[1].version,
            "created_at": now,
            "updated_at": now,
            "expires_at": now + 60_000,
        }
        brief = good(await facet.query([adults], options | {"include_metadata": False}))
        assert brief.to_dict()["results"][1] == {"key": "ada", "value": {"age": 36}}
        assert "createdAt" in result.to_dict(camel_case=True)["results"][0]
        assert len(good(await facet.query(None, {"filter": adults})).results) == 3
        assert len(good(await facet.query({"filters": [adults], "limit": 1})).results) == 1
        assert [found.key for found in good(await facet.query()).results] == ["ada", "bob", "cyd", "dan"]
        bad(InvalidFilterError, await facet.query(adults, {"filter": adults}), "twice")
        bad(InvalidFilterError, await facet.query({"field": "age", "operator": "near", "value": 1}), "near")
        bad(InvalidFilterError, await facet.query(adults, {"sort": 5}), "sort")

    @served
    async def test_times_in_a_message_can_be_asked_for(self, facet: StorageFacet, clock: FakeClock) -> None:
        good(await facet.set("a", 1))
        clock.advance(1)
        good(await facet.set("b", 1))
        shown = good(await facet.query()).to_dict()["results"]
        later = {"field": "$created_at", "operator": "gt", "value": shown[0]["created_at"]}
        assert [found.key for found in good(await facet.query(later)).results] == ["b"]

    @served
    async def test_count(self, facet: StorageFacet, _: FakeClock) -> None:
        for n in range(3):
            good(await facet.set(f"key{n}", {"n": n}, {"namespace": "place"}))
        assert good(await facet.count()).to_dict() == {"success": True, "count": 0}
        assert good(await facet.count({"namespace": "place"})).count == 3
        few = {"field": "n", "operator": "lt", "value": 1}
        assert good(await facet.count({"namespace": "place", "filter": few})).count == 1
        bad(InvalidFilterError, await facet.count({"filter": "n < 1"}))

    # ---- namespaces and the store

    @served
    async def test_namespaces(self, facet: StorageFacet, _: FakeClock) -> None:
        assert good(await facet.create_namespace("place", {"metadata": {"x": 1}})).to_dict() == {"success": True}
        bad(NamespaceExistsError, await facet.create_namespace("place"))
        bad(InvalidNamespaceError, await facet.create_namespace("a*"))
        assert good(await facet.list_namespaces()).namespaces == ["default", "place"]
        good(await facet.set("a", 1, {"namespace": "place"}))
        bad(NamespaceNotEmptyError, await facet.delete_namespace("place"))
        good(await facet.delete_namespace("place", {"recursive": True}))
        bad(NamespaceNotFoundError, await facet.delete_namespace("place"))
        bad(InvalidNamespaceError, await facet.delete_namespace("default"))

    @served
    async def test_clear(self, facet: StorageFacet, _: FakeClock) -> None:
        for namespace in ("default", "one", "two"):
            good(await facet.set("a", 1, {"namespace": namespace}))
        bad(InvalidNamespaceError, await facet.clear({"namespace": None}))
        assert good(await facet.clear({"namespace": "one"})).count == 1
        assert good(await facet.count({"namespace": "two"})).count == 1
        assert good(await facet.clear()).to_dict() == {"success": True, "count": 2}
        assert good(await facet.list_namespaces()).namespaces == ["default", "one", "two"]

    @served
    async def test_status(self, facet: StorageFacet, _: FakeClock) -> None:
        good(await facet.set("a", 1, {"namespace": "place"}))
        result = good(await facet.get_status())
        assert result.status is not None
        assert result.status.entries == 1
        shown = result.to_dict(camel_case=True)["status"]
        assert (shown["healthy"], shown["size"], shown["namespaces"]) == (True, 1, 2)
        assert {"backend", "target", "schemaVersion", "sizeBytes", "details"} < set(shown)
        assert "entries" not in shown

    @served
    async def test_the_contract_is_kept(self, facet: StorageFacet, _: FakeClock) -> None:
        enforce_contract(facet)
        assert facet.supports_transactions is facet.supports_query is facet.supports_metadata is True

    # ---- transactions

    @served
    async def test_a_transaction_is_seen_by_its_id_alone(self, facet: StorageFacet, _: FakeClock) -> None:
        good(await facet.set("a", 1))
        tx = good(await facet.begin_transaction()).transaction_id
        inside = {"transaction_id": tx}
        good(await facet.set("a", 2, inside))
        entries: list[dict[str, Any]] = [{"key": "b", "value": 2}, {"key": "c", "value": {1}}]
        bad(BatchError, await facet.set_many(entries, inside | {"namespace": "n"}))
        good(await facet.set_metadata("a", {"x": 1}, {"transactionId": tx}))
        good(await facet.create_namespace("place", inside))
        assert good(await facet.get("a", inside)).data == 2
        assert good(await facet.get_many(["a"], inside)).data == {"a": 2}
        assert good(await facet.list_namespaces(inside)).namespaces == ["default", "n", "place"]
        assert good(await facet.count(inside | {"namespace": "n"})).count == 1
        assert good(await facet.get("a")).data == 1
        assert good(await facet.list_namespaces()).namespaces == ["default"]
        assert good(await facet.commit(tx or "")).to_dict() == {"success": True}
        assert good(await facet.get("a", {"include_metadata": True})).metadata == {"x": 1}
        assert good(await facet.list({"namespace": "n"})).keys == ["b"]

    @served
    async def test_rollback_undoes_everything(self, facet: StorageFacet, _: FakeClock) -> None:
        good(await facet.set("a", 1))
        tx = good(await facet.begin_transaction({"isolation": "serializable"})).transaction_id
        good(await facet.clear({"transaction_id": tx}))
        good(await facet.delete_many(["a"], {"transaction_id": tx}))
        good(await facet.rollback(tx or ""))
        assert good(await facet.get("a")).data == 1

    @served
    async def test_a_finished_or_unknown_id_is_an_error(self, facet: StorageFacet, _: FakeClock) -> None:
        wrong: Any
        for wrong in ("", "nothing", "\ud800", None, 5, ["a"], {}):
            bad(TransactionError, await facet.get("a", {"transaction_id": wrong}))
            bad(TransactionError, await facet.set("a", 1, {"transaction_id": wrong}))
            bad(TransactionError, await facet.commit(wrong))
            bad(TransactionError, await facet.rollback(wrong))
        assert good(await facet.count()).count == 0
        for end, word in ((facet.commit, "committed"), (facet.rollback, "rolled back")):
            tx = good(await facet.begin_transaction()).transaction_id or ""
            good(await end(tx))
            for call in (facet.commit(tx), facet.rollback(tx), facet.set("a", 1, {"transaction_id": tx})):
                bad(TransactionError, await call, word)
        assert good(await facet.count()).count == 0

    @served
    async def test_a_refused_call_leaves_the_transaction_open(self, facet: StorageFacet, _: FakeClock) -> None:
        tx = good(await facet.begin_transaction()).transaction_id or ""
        good(await facet.set("a", 1, {"transaction_id": tx}))
        bad(KeyExistsError, await facet.set("a", 2, {"transaction_id": tx, "overwrite": False}))
        bad(InvalidValueError, await facet.set("a", {1}, {"transaction_id": tx}))
        bad(InvalidValueError, await facet.commit(tx, {"force": True}))
        good(await facet.commit(tx))
        assert good(await facet.get("a")).data == 1

    @served
    async def test_two_calls_at_once_on_one_id_are_refused(self, facet: StorageFacet, _: FakeClock) -> None:
        tx = good(await facet.begin_transaction()).transaction_id or ""
        calls = (
            facet.set("a", 1, {"transaction_id": tx}),
            facet.set("b", 1, {"transaction_id": tx}),
            facet.commit(tx),
            facet.rollback(tx),
        )
        first, *others = await asyncio.gather(*calls)
        good(first)
        for other in others:
            bad(TransactionError, other, "one call at a time")
        good(await facet.commit(tx))
        assert good(await facet.list()).keys == ["a"]

    @served_impatiently
    async def test_who_writes_beside_a_transaction_is_told_that_it_is_busy(self, facet: StorageFacet, _: Any) -> None:
        tx = good(await facet.begin_transaction()).transaction_id or ""
        if not self.write_lock:
            good(await facet.set("a", 1))
            second = good(await facet.begin_transaction()).transaction_id or ""
            good(await facet.set("b", 2, {"transaction_id": second}))
            good(await facet.commit(second))
            good(await facet.rollback(tx))
            assert good(await facet.list()).keys == ["a", "b"]
            return
        bad(StorageBusyError, await facet.set("a", 1))
        bad(StorageBusyError, await facet.begin_transaction())
        for result in (
            await facet.set_many([{"key": "a", "value": 1}, {"key": "b", "value": 2, "options": {"if_version": 0}}]),
            await facet.set_many([{"key": "a", "value": 1}, {"key": "b", "value": 2}]),
            await facet.delete_many(["a", "b"]),
        ):
            bad(StorageBusyError, result)
            assert {name: type(found.error) for name, found in result.results.items()} == {
                "a": StorageBusyError,
                "b": StorageBusyError,
            }
        good(await facet.rollback(tx))
        good(await facet.set("a", 1))

    @served
    async def test_who_writes_beside_a_transaction_waits_for_it(self, facet: StorageFacet, _: FakeClock) -> None:
        tx = good(await facet.begin_transaction()).transaction_id or ""
        waiting = asyncio.ensure_future(facet.set("a", 2))
        good(await facet.commit(tx))
        good(await waiting)
        assert good(await facet.get("a")).data == 2

    @served
    async def test_closing_rolls_back_what_is_open(self, facet: StorageFacet, _: FakeClock) -> None:
        tx = good(await facet.begin_transaction()).transaction_id or ""
        writing = asyncio.ensure_future(facet.set("a", 1, {"transaction_id": tx}))
        await asyncio.sleep(0)  # it is under way
        await facet.close()
        await facet.close()
        good(await writing)
        bad(StorageClosedError, await facet.commit(tx))
        bad(StorageClosedError, await facet.get("a"))
        bad(StorageClosedError, await facet.get_status())
