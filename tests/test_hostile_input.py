"""Hazard: an argument that nobody thought of crashes, hangs, is half written, or raises what a caller cannot catch.

Every verb is called with anything for any of its arguments, on both engines: it has to answer, or raise an error of
the library (or a TypeError of Python's for what its signature forbids, or what the object itself has raised), to do
the same on both, and to leave the store as it was where it raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
from typing import TYPE_CHECKING, Any

import pytest
from hostile_objects import MineError, objects
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mycelia_storage import (
    ConfigError,
    InvalidFilterError,
    InvalidValueError,
    Storage,
    StorageError,
    StorageFacet,
    StorageQuery,
    StorageResult,
    field,
    match,
    open_storage,
    path,
)
from mycelia_storage.facet_contract import METHODS
from mycelia_storage.options import StorageOptions, read_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Maker = Callable[[], Any]

FUZZ = settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    max_examples=max(400, settings().max_examples),
)

LONGEST_MESSAGE = 2000
# What Python says of arguments that a function does not have, of what a dict's update() would not take, and of an
# object that is not what it says it is.
IS_SIGNATURE = re.compile("positional argument|keyword argument|argument after|Value after|LyingClass")

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


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.chdir(tmp_path)  # where a relative path of a hostile argument leads to
    made = Pair(tmp_path / "store.db")
    yield made
    for store in made.stores:
        store.close()


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


@FUZZ
@given(call=calls())
def test_any_argument_of_any_verb_is_taken_or_refused(pair: Pair, call: Any) -> None:
    found = [perform(store, call) for store in pair.stores]
    assert found[0] == found[1]
    assert "too long" not in found[0]
    states = [pair.state(store) for store in pair.stores]
    assert states[0] == states[1]
    verb = call[1]
    if found[0] == "answered" or (verb == "load" and states != pair.before):  # which keeps the batches before
        if states != pair.before:
            pair.reset()
    else:
        assert states == pair.before, "nothing was written"


@FUZZ
@given(
    method=st.sampled_from(sorted(METHODS)),
    arguments=st.lists(objects(), min_size=2, max_size=2),
    options=st.one_of(
        objects(),
        st.dictionaries(
            st.sampled_from(
                ["namespace", "metadata", "overwrite", "ttl", "ifVersion", "includeMetadata", "pattern", "limit",
                 "offset", "sort", "filter", "recursive", "merge", "isolation", "transactionId", "nonsense"]
            ),
            objects(),
            max_size=3,
        ).map(lambda made: lambda: {name: make() for name, make in made.items()}),
    ),
)  # fmt: skip
def test_any_message_to_a_facet_has_an_answer(pair: Pair, method: str, arguments: list[Maker], options: Maker) -> None:
    async def ask(store: Storage) -> str:
        async with contextlib.AsyncExitStack() as stack:
            facet = await stack.enter_async_context(StorageFacet(store))
            given = [make() for make in arguments[: len(METHODS[method].arguments)]]
            try:
                found = await getattr(facet, method)(*given, options())
            except MineError:
                return "MineError"
            assert isinstance(found, StorageResult)
            if not found.success:
                told = found.to_dict()
                assert isinstance(told["error"]["message"], str)
                return str(told["error"]["code"])
        return "answered"

    found = [asyncio.run(ask(store)) for store in pair.stores]
    assert found[0] == found[1]
    states = [pair.state(store) for store in pair.stores]
    assert states[0] == states[1]
    if states != pair.before:
        # set_many stores the good of its entries, and says which.
        assert found[0] == "answered" or method == "set_many"
        pair.reset()


@FUZZ
@given(
    target=objects(),
    options=st.dictionaries(st.sampled_from(sorted(StorageOptions.__annotations__)), objects(), max_size=3),
    is_nested=st.sampled_from(("target", "options", "mapping", "inner mapping")),
)
def test_any_configuration_is_taken_or_a_config_error(target: Maker, options: dict[str, Maker], is_nested: str) -> None:
    made = {name: make() for name, make in options.items()}
    given: Any = {
        "target": target(),
        "options": "memory:",
        "mapping": {"backend": "memory", "options": made},
        "inner mapping": {"storage": {"backend": target(), "options": made}},
    }[is_nested]
    with contextlib.suppress(ConfigError, MineError), lies():
        read_options(given, made if is_nested == "options" else {})


@FUZZ
@given(text=st.text(st.sampled_from("sqlite:/memory.~%2e2Fab\0\ud800?#\\ \n"), max_size=30))
def test_any_text_as_a_target_is_a_path_below_or_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    base = tmp_path / "base"
    base.mkdir(exist_ok=True)
    monkeypatch.chdir(base)
    with contextlib.suppress(ConfigError):
        found = read_options(text, {"base_dir": base})
        assert found.backend == "memory" or found.path.startswith(f"{base.resolve()}/")


@FUZZ
@given(
    given=st.one_of(
        objects(),
        st.dictionaries(st.sampled_from(["filters", "sort", "limit", "offset", "more"]), objects(), max_size=4).map(
            lambda made: lambda: {name: make() for name, make in made.items()}
        ),
    ),
    value=objects(),
)
def test_any_form_of_a_query_is_taken_or_refused(given: Maker, value: Maker) -> None:
    for make in (
        lambda: StorageQuery.from_dict(given()),
        lambda: StorageQuery(given()),
        lambda: StorageQuery(sort=given()),
        lambda: path(given()),
        lambda: field(given()),
        lambda: field("a").is_in(given()),
        lambda: field("a") == given(),
        lambda: match(a=given()),
        lambda: StorageQuery(field("a") == 1).matches(value()),
    ):
        with contextlib.suppress(InvalidFilterError, InvalidValueError, MineError), lies():
            made = make()
            repr(made)
            if isinstance(made, StorageQuery):
                assert StorageQuery.from_dict(made.to_dict()) == made
