"""Hazard: an object of the wrong kind, or used in the wrong way, gives an error about the inside of the library.

What a slip of the hand raises says what to write instead, and changes nothing.
"""

from __future__ import annotations

import asyncio
import copy as copying
import inspect
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import (
    AsyncNamespace,
    AsyncStorage,
    AsyncTransaction,
    InvalidValueError,
    Storage,
    TransactionError,
    catch_up,
    copy,
    import_from,
    open_async_storage,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_no_store_is_not_imported_into(tmp_path: Path, memory_store: Storage) -> None:
    async def try_it() -> None:
        async with open_async_storage("memory:") as store:
            wrong: Any = store
            with pytest.raises(InvalidValueError, match=r"^store: a Storage is needed, not AsyncStorage: .*\.sync"):
                import_from(wrong, "shelve", tmp_path / "shelf")
            with pytest.raises(InvalidValueError, match=r"^target: a Storage is needed, not AsyncStorage: .*\.sync"):
                copy(memory_store, wrong)

    asyncio.run(try_it())
    for wrong in ("o.db", None, AsyncStorage):
        with pytest.raises(InvalidValueError, match=r"^store: a Storage is needed, not \w+, such as open_storage"):
            import_from(wrong, "shelve", "sh")  # type: ignore[arg-type]
        with pytest.raises(InvalidValueError, match=r"^source: a Storage is needed"):
            catch_up(wrong, memory_store)  # type: ignore[arg-type]


def test_a_store_that_is_not_opened_yet_says_how(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    opening: Any = open_async_storage(file)
    with pytest.raises(AttributeError, match=r"'get'.*async with open_async_storage\(…\) as store.*= await"):
        opening.get("a")
    assert not hasattr(opening, "no_such_thing")
    with pytest.raises(TypeError, match=r"async with open_async_storage"), opening:
        raise AssertionError
    assert not file.exists()


def test_what_opens_a_store_opens_no_second_one() -> None:
    async def try_it() -> None:
        opening = open_async_storage("memory:")
        store = await opening
        await store.set("a", 1)
        with pytest.raises(RuntimeError, match="keep the store"):
            await opening
        with pytest.raises(RuntimeError, match="keep the store"):
            async with opening:
                raise AssertionError
        assert await store.get("a") == 1
        await store.close()

    asyncio.run(try_it())


def test_a_store_is_not_sent_to_another_process(any_store: Storage) -> None:
    any_store.set("a", 1)
    for call in (pickle.dumps, copying.copy, copying.deepcopy):
        for one in (any_store, any_store.namespace("other"), [any_store]):
            if one is not any_store and call is copying.copy:
                continue  # which copies what is around the store only
            with pytest.raises(TypeError, match=r"each process opens its own, with open_storage\(target\)"):
                call(one)
    assert any_store.get("a") == 1


def test_inside_a_transaction_the_message_names_who_is(any_store: Storage) -> None:
    with (
        any_store.transaction(),
        pytest.raises(TransactionError, match=r"^this thread is .*\(tx\) that the with block"),
    ):
        any_store.get("a")

    async def try_it() -> None:
        store = AsyncStorage(any_store)
        async with store.transaction():
            with pytest.raises(TransactionError, match=r"^this task is .*\(tx\) that the async with block gave"):
                await store.get("a")
        await store.close()

    asyncio.run(try_it())


@dataclass
class Count:
    n: int


async def _changed(value: Any) -> Any:
    raise AssertionError


def test_modify_takes_no_async_function_for_a_value(memory_store: Storage) -> None:
    memory_store.set("a", {"n": 1})
    hint = r"^the function given to modify\('a'\) is an async one"
    function: Any = _changed
    with pytest.raises(InvalidValueError, match=hint):
        memory_store.modify("a", function)
    with pytest.raises(InvalidValueError, match=hint):
        memory_store.namespace("default", Count).modify("a", function)

    async def try_it() -> None:
        store = AsyncStorage(memory_store)
        with pytest.raises(InvalidValueError, match=hint):
            await store.modify("a", function)
        assert await store.get("a") == {"n": 1}
        await store.close()

    asyncio.run(try_it())


def test_a_value_that_holds_itself_is_told_from_a_deep_one(memory_store: Storage) -> None:
    ring: list[Any] = []
    ring.append(ring)
    about: dict[str, Any] = {"list": [1]}
    about["list"].append(about)
    shared = [1]
    deep: Any = [shared, shared]
    for _ in range(200):
        deep = {"a member with a name": deep}
    for value, message in (
        (ring, "$[0]: a list that holds itself"),
        ({"top": ring}, "$.top[0]: a list that holds itself"),
        ([about], "$[0].list[1]: a dict that holds itself"),
        (deep, '$."a member with a name"."a member'),
    ):
        with pytest.raises(InvalidValueError) as caught:
            memory_store.set("a", value)
        assert str(caught.value).startswith(message)
        assert len(str(caught.value)) < 600
    assert str(caught.value).endswith('"…: nested more than 200 deep')
    place: Any = float("nan")
    for _ in range(19):
        place = [place]
    with pytest.raises(InvalidValueError, match=r"^\$(\[0\]){19}: NaN"):
        memory_store.set("a", place)


def test_a_forgotten_await_is_warned_of_by_the_name_that_was_written() -> None:
    async def forget() -> None:
        async with open_async_storage("memory:") as store:
            with pytest.warns(RuntimeWarning, match=r"^coroutine 'AsyncStorage\.get' was never awaited"):
                store.get("a")  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
            with pytest.warns(RuntimeWarning, match=r"^coroutine 'AsyncNamespace\.set' was never awaited"):
                store.namespace("n").set("a", 1)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
            async with store.transaction() as tx:
                with pytest.warns(RuntimeWarning, match=r"^coroutine 'AsyncTransaction\.set' was never awaited"):
                    tx.set("a", 1)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
            assert await store.count() == 0

    asyncio.run(forget())


@pytest.mark.parametrize("kind", [AsyncStorage, AsyncTransaction, AsyncNamespace])
def test_every_awaited_verb_has_the_name_of_its_class(kind: type[Any]) -> None:
    names = [name for name, verb in inspect.getmembers(kind) if not name.startswith("_") and callable(verb)]
    assert {"get", "set_many", "scan"} <= set(names)
    shown = {name: getattr(kind, name).__qualname__ for name in names}
    assert shown == {name: f"{kind.__name__}.{name}" for name in names}
    assert all(pickle.loads(pickle.dumps(getattr(kind, name))) is getattr(kind, name) for name in names)
