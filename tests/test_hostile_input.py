"""Hazard: an argument that nobody thought of crashes, hangs, is half written, or raises what a caller cannot catch.

Every verb is called with anything for any of its arguments, on both engines: it has to answer, or raise an error of
the library (or a TypeError of Python's for what its signature forbids, or what the object itself has raised), to do
the same on both, and to leave the store as it was where it raises.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from hostile_calls import Pair, calls, lies, perform
from hostile_objects import MineError, objects
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mycelia_storage import (
    ConfigError,
    InvalidFilterError,
    InvalidValueError,
    Storage,
    StorageFacet,
    StorageQuery,
    StorageResult,
    field,
    match,
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


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.chdir(tmp_path)  # where a relative path of a hostile argument leads to
    made = Pair(tmp_path / "store.db")
    yield made
    for store in made.stores:
        store.close()


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
