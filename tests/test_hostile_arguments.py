"""Hazard: an argument that nobody thought of, to what is done with a whole store, or to any verb that is awaited.

As in `test_hostile_input.py`: there is an answer, or an error that a caller can catch; the same on both engines, and
with and without `await`; and what raises has changed nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hostile_calls import Pair, calls, outcome, perform
from hostile_objects import objects
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mycelia_storage import AsyncStorage, Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Maker = Callable[[], Any]

FUZZ = settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    max_examples=max(150, settings().max_examples),
)

RIGHT: dict[str, list[Maker]] = {
    "path": [lambda: "copy.db", lambda: "other.db", lambda: "new/copy.db"],
    "overwrite": [lambda: True, lambda: False],
    "progress": [lambda: None, lambda: lambda progress: None],
    "read_only": [lambda: False, lambda: True],
    "isolation": [lambda: None, lambda: "serializable"],
    "durable": [lambda: None, lambda: True],
    "wait": [lambda: None, lambda: 1],
    "max_duration": [lambda: None, lambda: 60],
    "function": [lambda: lambda tx: tx.set("n", 1), lambda: lambda tx: tx.get("k")],
    "attempts": [lambda: 1, lambda: 50],
    "deadline": [lambda: 1.0],
    "to": [lambda: None, lambda: 2],
}
VERBS = ("backup", "restore", "transaction", "run_transaction", "migrate")


class Copies(Pair):
    """Each store has a directory of its own to be in, with a copy to restore from."""

    def __init__(self, directory: Path) -> None:
        self.directories = [directory / name for name in ("memory", "sqlite")]
        self.copy = directory / "copy.db"
        super().__init__(directory / "store.db")
        self.stores[0].backup(self.copy)
        self.let_alone()

    def let_alone(self) -> None:
        for directory in self.directories:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            shutil.copyfile(self.copy, directory / "copy.db")


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copies]:
    monkeypatch.chdir(tmp_path)
    made = Copies(tmp_path)
    yield made
    os.chdir(tmp_path)
    for store in made.stores:
        store.close()


@st.composite
def calls_of_stores(draw: st.DrawFn) -> tuple[str, dict[str, Maker]]:
    verb = draw(st.sampled_from(VERBS))
    names = list(inspect.signature(getattr(Storage, verb)).parameters)[1:]
    hostile = draw(st.sampled_from(names))
    given: dict[str, Maker] = {}
    for name in names:
        if name == hostile or draw(st.integers(0, 9)) == 0:
            given[name] = draw(objects())
        elif name in ("path", "function") or draw(st.booleans()):
            given[name] = draw(st.sampled_from(RIGHT[name]))
    return verb, given


def in_transaction(store: Storage, options: dict[str, Any]) -> None:
    with store.transaction(**options) as tx:
        assert tx.has("k")
        if not options.get("read_only"):
            tx.set("n", 1)


def do(store: Storage, call: tuple[str, dict[str, Maker]]) -> str:
    verb, given = call
    options = {name: make() for name, make in given.items()}
    if verb == "transaction":
        return outcome(lambda: in_transaction(store, options))
    if verb == "run_transaction" and callable(options.get("function")):
        with contextlib.suppress(TypeError):  # that of a function which is called with a transaction
            return outcome(lambda: store.run_transaction(**options))
        return "TypeError"
    return outcome(lambda: getattr(store, verb)(**options))


@FUZZ
@given(call=calls_of_stores())
def test_any_argument_of_a_verb_on_a_whole_store_is_taken_or_refused(copies: Copies, call: Any) -> None:
    found = []
    for store, directory in zip(copies.stores, copies.directories, strict=True):
        os.chdir(directory)
        found.append(do(store, call))
    verb, given = call
    if verb == "migrate" and found[1] == "SchemaVersionError":  # a version that is known, but has no unique indexes
        assert given["to"]() == 1
    elif found[0] != found[1] and "MineError" not in found:
        assert "max_duration" in given, "whether a transaction of a microsecond comes to its end is not known"
    assert "too long" not in found[1]
    if verb == "backup" or "answered" not in found:
        assert [copies.state(store) for store in copies.stores] == copies.before, "nothing was written"
    if verb == "backup" and found[1] != "answered":
        assert [os.listdir(directory) for directory in copies.directories] == [["copy.db"]] * 2
    if verb != "transaction" and "answered" in found:
        copies.let_alone()
        copies.reset()
    elif "answered" in found or verb == "transaction":
        copies.reset()


async def perform_awaited(store: Storage, call: tuple[str, str, list[Maker], dict[str, Maker]]) -> str:
    """As `perform`, by a front for asyncio."""
    where, verb, positional, named = call
    given = [make() for make in positional]
    options = {name: make() for name, make in named.items()}
    front = AsyncStorage(store)
    try:
        if where == "transaction":
            async with front.transaction() as tx:
                found = await awaited_outcome(lambda: getattr(tx, verb)(*given, **options))
                assert await tx.has("k") or found == "answered", "the transaction goes on"
            return found
        if where == "view":
            options.pop("namespace", None)
        on = front.namespace("default") if where == "view" else front
        return await awaited_outcome(lambda: getattr(on, verb)(*given, **options))
    finally:
        await front._stop()


async def awaited_outcome(call: Callable[[], Any]) -> str:
    raised: list[BaseException] = []
    try:
        found = call()
        if inspect.isawaitable(found):
            found = await found
        if hasattr(found, "__aiter__"):
            async with contextlib.aclosing(found.__aiter__()) as items:
                for _ in range(3):
                    await anext(items, None)
    except Exception as error:  # noqa: BLE001 - it is looked at below
        raised.append(error)
    return outcome(lambda: _raise(raised))


def _raise(raised: list[BaseException]) -> None:
    for error in raised:
        raise error


@FUZZ
@given(call=calls(), first=st.integers(0, 1))
def test_any_argument_of_any_verb_that_is_awaited_does_as_without(pair: Pair, call: Any, first: int) -> None:
    where, verb, _, _ = call
    if where == "mapping" or (where == "view" and not hasattr(pair.stores[0].namespace("default"), verb)):
        return
    plain, front = pair.stores[first], pair.stores[1 - first]
    found = [perform(plain, call), asyncio.run(perform_awaited(front, call))]
    # Of several that are wrong, another one may be met first; what it raises itself is as good as an error.
    assert found[0] == found[1] or "MineError" in found
    states = [pair.state(store) for store in pair.stores]
    assert states[0] == states[1]
    if states != pair.before:
        assert "answered" in found or verb == "load"
        pair.reset()


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.chdir(tmp_path)
    made = Pair(tmp_path / "store.db")
    yield made
    for store in made.stores:
        store.close()
