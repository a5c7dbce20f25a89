"""Hazards of the kernel's contract: an error that is raised, an option that is ignored, a transaction left behind."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import pickle
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
import pytest

from mycelia_storage import (
    ConfigError,
    ContractError,
    InvalidValueError,
    StorageClosedError,
    StorageError,
    StorageFacet,
    StorageIOError,
    StorageResult,
    TransactionError,
    enforce_contract,
    facet_transactions,
    open_storage,
)
from mycelia_storage.aio import AsyncStorage
from mycelia_storage.facet_contract import METHODS
from mycelia_storage.options import read_options
from mycelia_storage.testing import FacetContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
    from pathlib import Path
    from typing import Unpack

    from mycelia_storage import Storage, StorageOptions


@contextlib.asynccontextmanager
async def over_storage(target: str | Path, **options: Unpack[StorageOptions]) -> AsyncIterator[StorageFacet]:
    with open_storage(target, **options) as store:
        async with StorageFacet(store) as facet:
            yield facet


@contextlib.asynccontextmanager
async def over_async_storage(target: str | Path, **options: Unpack[StorageOptions]) -> AsyncIterator[StorageFacet]:
    fronted = AsyncStorage(open_storage(target, **options))
    try:
        async with StorageFacet(fronted) as facet:
            yield facet
    finally:
        await fronted.close()


class TestMemory(FacetContract):
    def open_facet(
        self, directory: Path, **options: Unpack[StorageOptions]
    ) -> contextlib.AbstractAsyncContextManager[StorageFacet]:
        return over_storage("memory:", **options)


class TestSQLite(FacetContract):
    def open_facet(
        self, directory: Path, **options: Unpack[StorageOptions]
    ) -> contextlib.AbstractAsyncContextManager[StorageFacet]:
        return over_storage(directory / "store.db", **options)


class TestMemoryOverAsyncStorage(FacetContract):
    def open_facet(
        self, directory: Path, **options: Unpack[StorageOptions]
    ) -> contextlib.AbstractAsyncContextManager[StorageFacet]:
        return over_async_storage("memory:", **options)


class TestSQLiteOverAsyncStorage(FacetContract):
    def open_facet(
        self, directory: Path, **options: Unpack[StorageOptions]
    ) -> contextlib.AbstractAsyncContextManager[StorageFacet]:
        return over_async_storage(directory / "store.db", **options)


def test_a_contract_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="open_facet"):
        FacetContract().open_facet(tmp_path)


def asked(store: Storage, ask: Callable[[StorageFacet], Coroutine[Any, Any, Any]]) -> Any:
    """What a coroutine function makes of a facet over the store."""

    async def run() -> Any:
        async with StorageFacet(store) as facet:
            return await ask(facet)

    return asyncio.run(run())


def good_arguments(name: str) -> list[Any]:
    known = {
        "keys": ["key"],
        "entries": [{"key": "key", "value": 1}],
        "filter": None,
        "metadata": {},
        "name": "place",
        "transaction_id": "unknown",
    }
    return [known.get(argument, "key") for argument in METHODS[name].arguments]


# ---- nothing raises


class Hostile:
    """A mapping, an iterable, a str: and none of it works."""

    def __repr__(self) -> str:
        raise RuntimeError

    def __iter__(self) -> Iterator[Any]:
        raise LookupError("of the caller's own")

    def __len__(self) -> int:
        raise OSError

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]


class HostileMapping(dict[str, Any]):
    def items(self) -> Any:
        raise LookupError("of the caller's own")

    def __iter__(self) -> Iterator[str]:
        raise LookupError("of the caller's own")


def breaking_off() -> Iterator[str]:
    yield "key"
    raise LookupError("of the caller's own")


def deep() -> Any:
    value: list[Any] = []
    for _ in range(2_000):
        value = [value]
    return value


WRONG: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: 5,
    lambda: float("nan"),
    lambda: -(2**70),
    lambda: True,
    lambda: b"key",
    lambda: "",
    lambda: "\ud800",
    lambda: "a\0b",
    lambda: "x" * 5000,
    lambda: ["\ud800", 5, None, [], "x" * 5000],
    lambda: [{}],
    lambda: [{"key": []}, {"key": 5, "value": 1}, {5: 6}, {"key": "\ud800", "value": 1}],
    lambda: [{"key": "a", "value": 1, "options": 5}, {"key": "a", "value": 1, "options": {"ttl": "x"}}],
    lambda: {"key": 5},
    lambda: {5: 6},
    lambda: {"filters": 5},
    lambda: {"field": "\ud800", "operator": "eq", "value": 1},
    lambda: {1, 2},
    object,
    Hostile,
    lambda: [Hostile()],
    lambda: [{"key": Hostile(), "value": Hostile()}],
    HostileMapping,
    lambda: HostileMapping(key="a", value=1),
    lambda: [HostileMapping(key="a", value=1)],
    breaking_off,
    lambda: int,
    deep,
    lambda: timedelta(seconds=1),
)
OPTION_NAMES = sorted({name for method in METHODS.values() for name in method.options})


@pytest.mark.parametrize("name", METHODS)
def test_no_argument_makes_a_method_raise(any_store: Storage, name: str) -> None:
    async def ask(facet: StorageFacet) -> None:
        async def call(*arguments: Any) -> None:
            result = answer(await getattr(facet, name)(*arguments))
            if result.transaction_id is not None:
                answer(await facet.rollback(result.transaction_id))

        for make in WRONG:
            for place in range(len(METHODS[name].arguments)):
                arguments = good_arguments(name)
                arguments[place] = make()
                await call(*arguments)
            await call(*good_arguments(name), make())
            for option in METHODS[name].options:
                await call(*good_arguments(name), {option: make()})

    asked(any_store, ask)


def answer(result: object) -> StorageResult:
    assert type(result) is StorageResult
    assert (result.error is None) is result.success
    assert result.error is None or isinstance(result.error, StorageError)
    orjson.loads(orjson.dumps(result.to_dict()))
    return result


def test_what_a_caller_s_own_object_raises_is_the_cause(memory_store: Storage) -> None:
    result = answer(asked(memory_store, lambda facet: facet.get_many(breaking_off())))
    assert result.error is not None
    assert isinstance(result.error.__cause__, LookupError)
    assert "of the caller" not in str(result.error)


@pytest.mark.parametrize("name", METHODS)
def test_a_missing_argument_is_a_mistake_of_the_program(memory_store: Storage, name: str) -> None:
    async def ask(facet: StorageFacet) -> None:
        method = getattr(facet, name)
        with pytest.raises(TypeError):
            await method(*good_arguments(name), {}, {})
        if METHODS[name].arguments and name != "query":
            with pytest.raises(TypeError):
                await method()

    asked(memory_store, ask)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_interrupts_and_cancellation_go_through(memory_store: Storage, error: type[BaseException]) -> None:
    def interrupted() -> Iterator[str]:
        raise error
        yield "key"

    async def ask(facet: StorageFacet) -> None:
        call = facet.get_many(interrupted())
        with pytest.raises(error):
            call.send(None)

    asked(memory_store, ask)


def test_a_closed_store_is_an_answer_too(any_store: Storage) -> None:
    async def ask(facet: StorageFacet) -> None:
        any_store.close()
        for name in METHODS:
            result = answer(await getattr(facet, name)(*good_arguments(name)))
            assert type(result.error) in (StorageClosedError, TransactionError)

    asked(any_store, ask)


# ---- options


@pytest.mark.parametrize("name", METHODS)
def test_an_option_is_taken_or_refused_and_never_ignored(memory_store: Storage, name: str) -> None:
    async def ask(facet: StorageFacet) -> None:
        method = getattr(facet, name)
        for option in OPTION_NAMES:
            result = answer(await method(*good_arguments(name), {option: object()}))
            assert result.error is not None, f"{name} does not look at {option}"
            is_unknown = f"{name} takes no option" in str(result.error)
            assert is_unknown is (option not in METHODS[name].options)

    asked(memory_store, ask)


def test_every_option_of_the_contract_is_known() -> None:
    contract = (
        "namespace metadata overwrite ttl if_version include_metadata pattern limit offset sort filter recursive merge "
        "isolation transaction_id"
    )
    assert sorted(contract.split()) == OPTION_NAMES


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("get", {"namespce": "a"}, "get: unknown option 'namespce': did you mean 'namespace'?"),
        ("get", {"transactionID": "a"}, "did you mean 'transactionId'?"),
        ("get_status", {"xyz": 1}, "unknown option 'xyz'; it takes none"),
        ("delete", {"recursive": True}, "delete takes no option 'recursive'; it takes namespace, if_version"),
        ("get", {"include_metadata": True, "includeMetadata": True}, "given twice"),
        ("get", {"include_metadata": 1}, "True or False, not int"),
        ("set", {"overwrite": "false"}, "True or False, not str"),
        ("get", {5: 1}, "a str, not int"),
        ("get", [("namespace", "a")], "a mapping, not list"),
    ],
)
def test_a_wrong_option_is_named(memory_store: Storage, name: str, options: Any, words: str) -> None:
    result = answer(asked(memory_store, lambda facet: getattr(facet, name)(*good_arguments(name), options)))
    assert type(result.error) is InvalidValueError
    assert words in str(result.error)


def test_isolation_has_the_names_of_the_kernel_too(memory_store: Storage) -> None:
    async def ask(facet: StorageFacet) -> None:
        names = ("read-uncommitted", "read-committed", "repeatable-read", "read_committed", "snapshot", "serializable")
        for name in (*names, None):
            tx = answer(await facet.begin_transaction({"isolation": name})).transaction_id
            assert tx is not None
            answer(await facet.rollback(tx))
        for wrong in ("chaos", 5, ["serializable"]):
            result = answer(await facet.begin_transaction({"isolation": wrong}))
            assert type(result.error) is InvalidValueError

    asked(memory_store, ask)


# ---- transactions by id


def test_an_abandoned_transaction_gives_the_lock_back(tmp_path: Path) -> None:
    for target in ("memory:", tmp_path / "store.db"):
        with open_storage(target, transaction_timeout=0.05, busy_timeout=30) as store:

            async def ask(facet: StorageFacet) -> None:
                tx = answer(await facet.begin_transaction()).transaction_id or ""
                answer(await facet.set("a", 1, {"transaction_id": tx}))
                assert answer(await facet.set("b", 1)).success  # which waits until the transaction is given up
                for call in (facet.commit, facet.rollback):
                    result = answer(await call(tx))
                    assert type(result.error) is TransactionError
                    assert "rolled back after 0.05 seconds" in str(result.error)
                assert answer(await facet.list()).keys == ["b"]

            asked(store, ask)
            assert store.list_keys() == ["b"]


def test_a_transaction_whose_event_loop_is_gone_is_ended_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facet_transactions, "MAX_OPEN", 1)
    for target in ("memory:", tmp_path / "store.db"):
        with open_storage(target, transaction_timeout=0.05, busy_timeout=30) as store:
            facet = StorageFacet(store)
            tx = answer(asyncio.run(facet.begin_transaction())).transaction_id or ""
            assert answer(asyncio.run(facet.set("a", 1))).success
            result = answer(asyncio.run(facet.commit(tx)))
            assert type(result.error) is TransactionError
            assert answer(asyncio.run(facet.begin_transaction())).success  # it is no longer among those that are open
            asyncio.run(facet.close())


def test_a_transaction_may_be_used_from_several_event_loops(any_store: Storage) -> None:
    facet = StorageFacet(any_store)
    tx = answer(asyncio.run(facet.begin_transaction())).transaction_id or ""
    assert answer(asyncio.run(facet.set("a", 1, {"transaction_id": tx}))).success
    assert answer(asyncio.run(facet.commit(tx))).success
    assert any_store.get("a") == 1
    asyncio.run(facet.close())


def test_a_transaction_that_waits_to_begin_is_not_old_yet(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db", transaction_timeout=0.2, busy_timeout=30) as store:

        async def ask(facet: StorageFacet) -> None:
            abandoned = answer(await facet.begin_transaction())
            tx = answer(await facet.begin_transaction()).transaction_id
            assert answer(await facet.set("a", 1, {"transaction_id": tx})).success
            assert answer(await facet.commit(tx or "")).success
            assert not answer(await facet.commit(abandoned.transaction_id or "")).success

        asked(store, ask)


def test_open_transactions_are_bounded(memory_store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facet_transactions, "MAX_OPEN", 2)

    async def ask(facet: StorageFacet) -> None:
        tx = answer(await facet.begin_transaction()).transaction_id or ""
        waiting = asyncio.ensure_future(facet.begin_transaction())
        await asyncio.sleep(0)  # it waits for the lock
        refused = answer(await facet.begin_transaction())
        assert refused.error is not None
        assert (refused.error.code, refused.error.retryable) == ("busy", True)
        assert "2 transactions" in str(refused.error)
        answer(await facet.rollback(tx))
        second = answer(await waiting).transaction_id or ""
        assert answer(await facet.commit(second)).success

    asked(memory_store, ask)


def test_closing_a_facet_ends_its_transactions_and_leaves_an_async_storage_open(any_store: Storage) -> None:
    async def run() -> None:
        fronted = AsyncStorage(any_store)
        facet = StorageFacet(fronted)
        tx = answer(await facet.begin_transaction()).transaction_id
        answer(await facet.set("a", 1, {"transaction_id": tx}))
        await facet.close()
        with any_store.transaction(wait=0):
            pass  # nothing is left to be undone
        await fronted.set("b", 1)
        assert await fronted.list_keys() == ["b"]
        await fronted.close()

    asyncio.run(run())


def test_closing_leaves_no_transaction_that_is_about_to_begin(any_store: Storage) -> None:
    async def ask(facet: StorageFacet) -> None:
        answer(await facet.begin_transaction())
        waiting = [asyncio.ensure_future(facet.begin_transaction()) for _ in range(3)]
        await asyncio.sleep(0)  # they wait for the lock
        await facet.close()
        for result in await asyncio.gather(*waiting):
            assert type(answer(result).error) is StorageClosedError

    asked(any_store, ask)
    any_store.set("a", 1)  # nobody holds the lock


def test_many_tasks_lose_no_update(tmp_path: Path) -> None:
    async def step(facet: StorageFacet) -> None:
        tx = answer(await facet.begin_transaction()).transaction_id or ""
        count = answer(await facet.get("n", {"transaction_id": tx})).data
        assert answer(await facet.set("n", count + 1, {"transaction_id": tx})).success
        assert answer(await facet.commit(tx)).success

    async def ask(facet: StorageFacet) -> None:
        await asyncio.gather(*(step(facet) for _ in range(100)))

    for target in ("memory:", tmp_path / "store.db"):
        with open_storage(target, busy_timeout=60) as store:
            store.set("n", 0)
            asked(store, ask)
            assert store.get("n") == 100


def test_a_store_that_is_read_only_has_transactions_that_read(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db") as store:
        store.set("a", 1)

    async def ask(facet: StorageFacet) -> None:
        tx = answer(await facet.begin_transaction()).transaction_id or ""
        assert answer(await facet.get("a", {"transaction_id": tx})).data == 1
        refused = answer(await facet.set("a", 2, {"transaction_id": tx}))
        assert refused.error is not None
        assert refused.error.code == "read_only"
        assert answer(await facet.commit(tx)).success

    with open_storage(tmp_path / "store.db", read_only=True) as store:
        asked(store, ask)


def test_ids_cannot_be_guessed(memory_store: Storage) -> None:
    async def ask(facet: StorageFacet) -> list[str]:
        ids: list[str] = []
        for _ in range(50):
            ids.append(answer(await facet.begin_transaction()).transaction_id or "")
            answer(await facet.rollback(ids[-1]))
        return ids

    ids = asked(memory_store, ask)
    assert len({found[:8] for found in ids}) == 50
    assert all(len(found) >= 22 for found in ids)  # 128 bits


def test_a_commit_happens_though_its_caller_is_cancelled(any_store: Storage) -> None:
    async def ask(facet: StorageFacet) -> None:
        tx = answer(await facet.begin_transaction()).transaction_id or ""
        answer(await facet.set("a", 1, {"transaction_id": tx}))
        committing = asyncio.ensure_future(facet.commit(tx))
        await asyncio.sleep(0)  # it is under way
        committing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await committing
        assert answer(await facet.set("b", 1)).success  # waits for the commit
        assert answer(await facet.list()).keys == ["a", "b"]
        assert "was committed" in str(answer(await facet.commit(tx)).error)

    asked(any_store, ask)


def test_a_commit_that_fails_is_told(tmp_path: Path) -> None:
    path, away = tmp_path / "store.db", tmp_path / "away.db"

    async def ask(facet: StorageFacet) -> None:
        tx = answer(await facet.begin_transaction()).transaction_id or ""
        answer(await facet.set("a", 1, {"transaction_id": tx}))
        path.rename(away)
        failed = answer(await facet.commit(tx))
        away.rename(path)
        assert type(failed.error) is StorageIOError
        assert "could not be committed" in str(answer(await facet.commit(tx)).error)
        assert answer(await facet.list()).keys == []

    with open_storage(path) as store:
        asked(store, ask)


def test_a_begin_whose_caller_is_cancelled_leaves_nothing_open(any_store: Storage) -> None:
    async def ask(facet: StorageFacet) -> None:
        for steps in range(4):
            beginning = asyncio.ensure_future(facet.begin_transaction())
            for _ in range(steps):
                await asyncio.sleep(0)
            beginning.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                answer(await facet.rollback((await beginning).transaction_id or ""))
            assert answer(await facet.set("a", steps)).success

    asked(any_store, ask)


def test_closing_the_facet_leaves_the_store_open(any_store: Storage) -> None:
    async def ask(facet: StorageFacet) -> None:
        answer(await facet.set("a", 1))
        tx = answer(await facet.begin_transaction()).transaction_id
        answer(await facet.set("a", 2, {"transaction_id": tx}))

    asked(any_store, ask)
    assert any_store.get("a") == 1
    any_store.set("a", 3)
    assert asked(any_store, lambda facet: facet.get("a")).data == 3


def test_the_timeout_is_an_option() -> None:
    assert read_options("memory:", {}).transaction_timeout == 30.0
    assert read_options("memory:", {"transaction_timeout": timedelta(seconds=2)}).transaction_timeout == 2.0
    mapping = {"backend": "memory", "options": {"transactionTimeout": 1500}}
    assert read_options(mapping, {}).transaction_timeout == 1.5
    for wrong in (0, -1, "5", None, 4000, float("nan")):
        with pytest.raises(ConfigError, match="transaction_timeout"):
            read_options("memory:", {"transaction_timeout": wrong})
    with pytest.raises(ConfigError, match="transaction_timeout"):
        read_options({"backend": "memory", "options": {"transactionTimeout": 0}}, {})


# ---- results and properties


def test_a_result_is_frozen_and_survives_pickling(any_store: Storage) -> None:
    any_store.set("a", None, metadata={"x": 1})

    async def ask(facet: StorageFacet) -> list[StorageResult]:
        return [await facet.get("a"), await facet.get_many(["a", "b"]), await facet.query(), await facet.get_status()]

    for result in asked(any_store, ask):
        with pytest.raises(AttributeError):
            result.success = True
        for twin in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
            assert twin.to_dict() == result.to_dict()


def test_camel_case_is_for_names_of_the_contract_alone(memory_store: Storage) -> None:
    async def ask(facet: StorageFacet) -> None:
        await facet.set("snake_key", {"snake_member": 1}, {"metadata": {"snake_name": 1}})
        tx = answer(await facet.begin_transaction())
        assert tx.to_dict(camel_case=True) == {"success": True, "transactionId": tx.transaction_id}
        answer(await facet.rollback(tx.transaction_id or ""))
        shown = answer(await facet.query()).to_dict(camel_case=True)["results"][0]
        assert (shown["key"], shown["value"], shown["metadata"]) == (
            "snake_key",
            {"snake_member": 1},
            {"snake_name": 1},
        )
        many = answer(await facet.get_many(["snake_key"])).to_dict(camel_case=True)
        assert many == {"success": True, "data": {"snake_key": {"snake_member": 1}}}

    asked(memory_store, ask)


def test_the_configuration_opens_the_same_store(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db", busy_timeout=1.5, max_readers=2) as store:
        facet = StorageFacet(store)
        assert facet._storage_backend is store
        config = facet._config
        orjson.dumps(config)
        store.set("a", 1)
        asyncio.run(facet.close())
    with open_storage(config) as again:
        assert again.get("a") == 1
        assert StorageFacet(again)._config == config
    with open_storage("memory:") as memory:
        assert StorageFacet(memory)._config["backend"] == "memory"


# ---- the contract as a check


async def _method(*arguments: Any, options: Mapping[str, Any] | None = None) -> None:
    """Shaped as no method of the contract."""


def complete() -> Any:
    """An object of somebody else's that keeps the contract."""

    def shaped(arguments: tuple[str, ...]) -> Any:
        names: dict[str, Any] = {}
        exec(f"async def method({', '.join((*arguments, 'options=None'))}): ...", names)
        return names["method"]

    class Complete:
        supports_transactions = False
        supports_query = supports_metadata = True

        def __init__(self) -> None:
            self._storage_backend: object = object()
            self._config: object = {}
            for name, method in METHODS.items():
                setattr(self, name, shaped(method.arguments))

    return Complete()


def test_an_object_that_keeps_the_contract_passes() -> None:
    enforce_contract(complete())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *((name, None, "a method is needed, not NoneType") for name in METHODS),
        ("get", lambda key, options=None: None, "not async"),
        ("get", _method, "(key, options=None) is needed"),
        ("get", AsyncStorage.close, "(key, options=None) is needed"),
        ("supports_query", 1, "a bool is needed, not int"),
        ("supports_transactions", None, "a bool is needed, not NoneType"),
        ("_storage_backend", None, "an object is needed, not NoneType"),
        ("_storage_backend", "sqlite", "an object is needed, not str"),
        ("_config", [], "a Mapping is needed, not list"),
    ],
)
def test_a_wrong_member_is_named(name: str, value: Any, words: str) -> None:
    obj = complete()
    setattr(obj, name, value)
    with pytest.raises(ContractError, match=name) as caught:
        enforce_contract(obj)
    assert list(caught.value.problems) == [name]
    assert words in caught.value.problems[name]


def test_the_shape_of_a_method_is_looked_at() -> None:
    async def required(key: str, options: Any) -> None: ...
    async def more(key: str, options: Any = None, *, needed: int) -> None: ...
    async def elsewhere(options: Any = None, key: str = "") -> None: ...
    async def fewer(key: str) -> None: ...
    async def named(key: str, settings: Any = None) -> None: ...

    class Called:
        async def __call__(self, key: str, options: Any = None, *, extra: int = 1) -> None: ...

    for wrong in (required, more, elsewhere, fewer, named):
        obj = complete()
        obj.has = wrong
        with pytest.raises(ContractError, match="has"):
            enforce_contract(obj)
    obj = complete()
    obj.has = Called()
    enforce_contract(obj)


def test_everything_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(ContractError) as caught:
        enforce_contract(object())
    assert len(caught.value.problems) == len(METHODS) + 5
    assert all(f"{name}: missing" in str(caught.value) for name in caught.value.problems)
    for twin in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert twin.problems == caught.value.problems
    assert caught.value.code == "contract"


def test_a_property_that_raises_is_a_problem_and_no_error() -> None:
    class Broken:
        @property
        def get(self) -> Any:
            raise RuntimeError

        @property
        def _config(self) -> Any:
            raise RuntimeError

    with pytest.raises(ContractError) as caught:
        enforce_contract(Broken())
    assert "raises RuntimeError" in caught.value.problems["get"]
    assert "raises RuntimeError" in caught.value.problems["_config"]


def test_a_store_is_no_facet(any_store: Storage) -> None:
    with pytest.raises(ContractError, match="begin_transaction: missing"):
        enforce_contract(any_store)


def test_the_facet_has_no_other_methods() -> None:
    public = {name for name in dir(StorageFacet) if not name.startswith("_")}
    assert public == {*METHODS, "close", "supports_transactions", "supports_query", "supports_metadata"}
    assert len(METHODS) == 20
    for name, method in METHODS.items():
        signature = inspect.signature(getattr(StorageFacet, name))
        assert list(signature.parameters) == ["self", *method.arguments, "options"]
    assert issubclass(StorageResult, msgspec.Struct)
