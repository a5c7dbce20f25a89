"""Calls of any verb with anything for any of its arguments, and what may come of them.

Called by the tests on hostile input, of stores and of their fronts for asyncio.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from typing import TYPE_CHECKING, Any

from hostile_objects import MineError, objects
from hypothesis import strategies as st

from mycelia_storage import Storage, StorageError, field, open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Maker = Callable[[], Any]

LONGEST_MESSAGE = 2000
# What Python says of arguments that a function does not have, of what a dict's update() would not take, of an object
# that is not what it says it is, and what a function that is given for `progress` says of what it is told. And what the
# library says of two arguments that no call may have both.
IS_SIGNATURE = re.compile(
    "positional argument|keyword argument|argument after|Value after|LyingClass|LoadReport|exclude each other"
)

DOCUMENTS = {"k": {"n": 1, "t": "x"}, "k2": {"n": 2}, "k3": [1, 2, 3], "k4": 4}

# What is right for each argument, so that the others are looked at too.
RIGHT: dict[str, list[Maker]] = {
    "key": [lambda: "k", lambda: "k4", lambda: "new"],
    "default": [lambda: None],
    "namespace": [lambda: "default", lambda: "other", lambda: "fresh"],
    "value": [lambda: {"n": 5}],
    "metadata": [lambda: None, lambda: {"a": 1}],
    "ttl": [lambda: None, lambda: 10],
    "overwrite": [lambda: True],
    "if_version": [lambda: None, lambda: 0],
    "durable": [lambda: None],
    "function": [lambda: lambda value: value],
    "patch": [lambda: {"n": 7}],
    "by": [lambda: 1],
    "field": [lambda: None, lambda: "n"],
    "merge": [lambda: True],
    "keys": [lambda: ["k", "k2"]],
    "items": [lambda: {"a": 1, "b": 2}, lambda: [("a", 1)]],
    "batch_size": [lambda: 2],
    "on_error": [lambda: "stop", lambda: "skip"],
    "progress": [lambda: None],
    "pattern": [lambda: None, lambda: "k*"],
    "prefix": [lambda: None, lambda: "k"],
    "start_after": [lambda: None, lambda: "k"],
    "limit": [lambda: None, lambda: 2],
    "offset": [lambda: 0, lambda: 1],
    "reverse": [lambda: False],
    "filter": [lambda: None, lambda: field("n") > 1],
    "sort": [lambda: None, lambda: "-n"],
    "cursor": [lambda: None],
    "timeout": [lambda: None],
    "page_size": [lambda: 2],
    "name": [lambda: "other", lambda: "fresh"],
    "fields": [lambda: "t"],
    "unique": [lambda: False],
    "exist_ok": [lambda: False],
    "recursive": [lambda: True],
    "type": [lambda: Any],
    "other": [lambda: {"a": 1}],
    "amount": [lambda: 1],
}
VERBS = (
    "get", "get_entry", "set", "add", "modify", "merge", "increment", "touch", "take", "delete", "has", "get_metadata",
    "set_metadata", "get_many", "get_entries", "set_many", "add_many", "delete_many", "load", "list_keys", "query",
    "pages", "scan", "count", "delete_where", "explain", "create_index", "drop_index", "list_indexes", "namespace",
    "create_namespace", "delete_namespace", "list_namespaces", "namespace_info", "clear", "clear_all",
)  # fmt: skip
MAPPING = ("__getitem__", "__setitem__", "__delitem__", "__contains__", "update", "setdefault", "pop", "__ior__")


class Pair:
    """The same store on both engines, with one clock."""

    def __init__(self, file: Path) -> None:
        self.time = 1_000_000.0
        self.stores = [
            open_storage("memory:", clock=lambda: self.time),
            open_storage(file, clock=lambda: self.time),
        ]
        self.reset()

    def reset(self) -> None:
        """As at the start."""
        for store in self.stores:
            for index in store.list_indexes():
                store.drop_index(index.name)
            for name in store.list_namespaces():
                if name != "default":
                    store.delete_namespace(name, recursive=True)
            store.clear_all()
            store.set_many(DOCUMENTS, metadata={"m": 1})
            store.set("k", "there", namespace="other")
            store.create_index("n", unique=True)
        self.before = [self.state(store) for store in self.stores]

    @staticmethod
    def state(store: Storage) -> Any:
        """Everything that is in it but for versions, which never come back."""
        entries = [
            (name, entry.key, entry.value, entry.metadata, entry.expires_at)
            for name in store.list_namespaces()
            for entry in store.scan(namespace=name)
        ]
        return entries, store.list_namespaces(), [index.name for index in store.list_indexes()]


def consume(found: Any) -> Any:
    """Let what is lazy do something."""
    if inspect.isgenerator(found) or hasattr(found, "batch_size") or type(found).__name__ == "Scan":
        try:
            for _, _ in zip(range(3), found, strict=False):
                pass
        finally:
            found.close()
    return found


def outcome(call: Callable[[], Any]) -> str:
    """In a word, what came of a call; what no call may raise goes up."""
    try:
        consume(call())
    except StorageError as error:
        return type(error).__name__ if len(str(error)) < LONGEST_MESSAGE else f"a message too long: {error}"
    except MineError:
        return "MineError"
    except TypeError as error:
        if not IS_SIGNATURE.search(str(error)):
            raise
        return f"TypeError: {error}"
    return "answered"


@contextlib.contextmanager
def lies() -> Iterator[None]:
    """For an object that is not what it says it is, a TypeError will do."""
    try:
        yield
    except TypeError as error:
        if "LyingClass" not in str(error):
            raise


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, str, list[Maker], dict[str, Maker]]:
    """Where, which verb, and its arguments: right ones, and one or more that are anything."""
    where = draw(st.sampled_from(("store", "store", "transaction", "view", "mapping")))
    verb = draw(st.sampled_from(MAPPING if where == "mapping" else VERBS))
    if where == "mapping":
        anything = [draw(objects()), draw(objects())]
        return where, verb, anything[: 2 if verb in ("__setitem__", "setdefault", "pop") else 1], {}
    parameters = list(inspect.signature(getattr(Storage, verb)).parameters.values())[1:]
    hostile = draw(st.sampled_from(parameters)).name if parameters else ""
    positional: list[Maker] = []
    named: dict[str, Maker] = {}
    for parameter in parameters:
        is_hostile = parameter.name == hostile or draw(st.integers(0, 9)) == 0
        is_needed = parameter.default is parameter.empty
        if not is_hostile and not is_needed and draw(st.booleans()):
            continue
        maker = draw(objects()) if is_hostile else draw(st.sampled_from(RIGHT[parameter.name]))
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL) or (is_needed and not named):
            positional.append(maker)
        else:
            named[parameter.name] = maker
    return where, verb, positional, named


def perform(store: Storage, call: tuple[str, str, list[Maker], dict[str, Maker]]) -> str:
    where, verb, positional, named = call
    given = [make() for make in positional]
    options = {name: make() for name, make in named.items()}
    if where == "transaction":
        with store.transaction() as tx:
            found = outcome(lambda: getattr(tx, verb)(*given, **options))
            assert tx.has("k") or found == "answered", "the transaction goes on"
        return found
    if where in ("view", "mapping"):
        view = store.namespace("default")
        options.pop("namespace", None)
        if not hasattr(view, verb):
            return "answered"
        return outcome(lambda: getattr(view, verb)(*given, **options))
    return outcome(lambda: getattr(store, verb)(*given, **options))
