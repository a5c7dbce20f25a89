"""Hazard: text from users becomes SQL, or anything but a result or a typed error comes of it.

Paths are the only part of a query that becomes SQL text (quoted), namespaces of indexes the other; values are bound.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mycelia_storage import (
    InvalidFilterError,
    InvalidNamespaceError,
    InvalidValueError,
    StorageQuery,
    UniqueIndexError,
    field,
    match,
    open_storage,
    path,
)
from mycelia_storage.filters import OPERATORS
from mycelia_storage.testing.query_strategies import NAMES, SPECIAL, TEXTS
from mycelia_storage.testing.strategies import scalars, texts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mycelia_storage import Storage

HOSTILE = (
    "'",
    "''",
    '"',
    '""',
    "\\",
    "\\'",
    '\\"',
    "`",
    ";",
    "--",
    "/*",
    "*/",
    "?",
    "?1",
    ":a",
    "@a",
    "$a",
    "%s",
    "%(a)s",
    "{}",
    "{0}",
    "'; DROP TABLE storage_entries; --",
    "') OR 1=1 --",
    '"] OR 1=1 --',
    "x') UNION SELECT key, 1, 1, 1, 1, value, value FROM storage_entries --",
    "$.a",
    "$.*",
    "a.b",
    "[0]",
    "[#-1]",
    "a\nb",
    "a\tb",
    "\x01",
    "\x7f",
    "\u2028",
    "\ufeff",
    "\U0001f600",
    "%",
    "_",
    "*",
    "\\u0041",
    "A",
    "a" * 1000,
    "'" * 500,
    '"' * 500,
    "\\" * 501,
    "é",
    "e\u0301",
    "İ",
    "ß",
    "-",
    "-a",
    "0",
    "null",
    "rowid",
    "e.value",
    "namespace",
)


@pytest.fixture
def full(any_store: Storage) -> Storage:
    """One entry for each hostile text, which has it as a name, a value, a key, and in its metadata."""
    for number, text in enumerate(HOSTILE):
        key = text if text.isprintable() and len(text) < 500 else f"key {number}"
        any_store.set(key, {text: number, "text": text, "deep": {text: [text]}}, metadata={text: number})
    assert any_store.count() == len(HOSTILE)
    return any_store


@pytest.mark.parametrize("indexed", [False, True], ids=["without", "indexed"])
def test_hostile_names_are_names(full: Storage, indexed: bool) -> None:
    for number, text in enumerate(HOSTILE):
        index = full.create_index(path(text), path("deep", text, 0).desc()) if indexed else None
        for asked in (
            path(text) == number,
            match(**{text: number}),
            path("deep", text, 0) == text,
            path("deep", text).contains(text),
            {"field": [text], "operator": "gte", "value": number} if number else path(text).exists(),
        ):
            found = full.query(asked)
            assert [entry.value["text"] for entry in found] == [text], text
            assert full.count(asked) == 1
        assert [entry.value["text"] for entry in full.query(sort=path(text), limit=1)] == [text]
        assert full.query(field("$metadata." + str(path(text))) == number).values()[0]["text"] == text
        if index is not None:
            full.drop_index(index)


def test_hostile_values_are_values(full: Storage) -> None:
    for text in HOSTILE:
        assert [value["text"] for value in full.query(field("text") == text).values()] == [text]
        assert [value["text"] for value in full.query(field("text").is_in([text, "nowhere"])).values()] == [text]
        for asked, expected in (
            (field("text").startswith(text), [other for other in HOSTILE if other.startswith(text)]),
            (field("text").endswith(text), [other for other in HOSTILE if other.endswith(text)]),
            (field("text").contains(text), [other for other in HOSTILE if text in other]),
            (field("text") > text, [other for other in HOSTILE if other > text]),
            (field("text") != text, [other for other in HOSTILE if other != text]),
        ):
            assert sorted(value["text"] for value in full.query(asked).values()) == sorted(expected), (asked, text)
        assert full.delete_where(field("text") == text + "nowhere") == 0
    assert full.count() == len(HOSTILE)


def test_hostile_keys_and_prefixes(full: Storage) -> None:
    keys = full.list_keys()
    for text in keys:
        assert full.query(field("$key") == text).keys() == [text]
        expected = [key for key in keys if key.startswith(text)]
        assert [entry.key for entry in full.scan(field("text").exists(), prefix=text, batch_size=2)] == expected
        cursor = full.query(field("$key") >= text, limit=1).cursor
        if cursor is not None:
            rest = [key for key in keys if key > text]
            assert full.query(field("$key") >= text, cursor=cursor).keys() == rest


def test_hostile_namespaces(any_store: Storage) -> None:
    good: list[str] = []
    for text in HOSTILE:
        try:
            any_store.set("key", {"n": 1}, namespace=text)
            good.append(text)
        except InvalidNamespaceError:
            with pytest.raises(InvalidNamespaceError):
                any_store.query(namespace=text)
    assert len(good) > 35
    for text in good:
        any_store.create_index("n", namespace=text, name=f"of {text}", unique=True)
        any_store.set("other", {"n": 2}, namespace=text)
        with pytest.raises(UniqueIndexError):
            any_store.set("third", {"n": 1}, namespace=text)
        assert any_store.query(field("n") == 1, namespace=text).keys() == ["key"]
        assert any_store.explain(field("n") == 1, namespace=text).entries == 2
        assert any_store.delete_where(field("n") == 2, namespace=text) == 1
    assert [index.namespace for index in any_store.list_indexes()] == sorted(good, key=lambda text: f"of {text}")
    assert all(any_store.count(namespace=text) == 1 for text in good)
    any_store.check()


def test_hostile_index_names(any_store: Storage) -> None:
    any_store.set("key", {"n": 1})
    good = [text for text in HOSTILE if len(text) <= 1024]
    for number, text in enumerate(good):
        assert any_store.create_index("n", f"f{number}", name=text) == text
        assert [index.name for index in any_store.list_indexes()] == [text]
        assert any_store.query(field("n") == 1).keys() == ["key"]
        any_store.drop_index(text)
    assert any_store.list_indexes() == []
    assert any_store.count() == 1
    any_store.check()


def test_advice_can_be_run_as_it_stands(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db") as store:
        documents = {f"key{number:04}": {HOSTILE[number % len(HOSTILE)]: number} for number in range(2000)}
        store.set_many(documents, namespace='it\'s "here"')
        for text in HOSTILE:
            advice = store.explain(path(text) == 1, namespace='it\'s "here"').advice
            assert advice is not None
            name = eval(f"store.{advice}", {"store": store})
            assert store.explain(path(text) == 1, namespace='it\'s "here"').indexes == (name,)
            store.drop_index(name)


def test_a_file_with_hostile_definitions_opens_again(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    places = [text for text in HOSTILE if text.isprintable() and "*" not in text and len(text) < 60]
    with open_storage(file) as store:
        for text in places[:60]:
            store.create_index(path(text), namespace=text)
        before = store.list_indexes()
    with open_storage(file) as store:
        assert store.list_indexes() == before
        for text in places[:60]:
            store.set("key", {text: 1}, namespace=text)
            assert store.query(path(text) == 1, namespace=text).keys() == ["key"]
        store.check()


# ---- fuzz: a result or an InvalidFilterError, and nothing else


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[list[Storage]]:
    with open_storage("memory:") as memory, open_storage(tmp_path / "store.db") as sqlite:
        for store in (memory, sqlite):
            store.create_index("a")
            store.create_index("-b", "a", namespace=None)
            store.set_many({f"key{number}": dict.fromkeys(NAMES[number:], number) for number in range(10)})
        yield [memory, sqlite]


class Strange:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("compared")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Strange()"


ODD: list[Any] = [
    b"a",
    {1},
    1j,
    float("nan"),
    float("inf"),
    2**63,
    -(2**64),
    object(),
    Strange(),
    datetime.now(UTC),
    (1,),
]
odd = st.sampled_from(ODD)
anything: Any = st.recursive(
    st.one_of(scalars(), odd, st.sampled_from([*TEXTS, *NAMES, *SPECIAL, *OPERATORS, "and", "or", "not", "field"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["and", "or", "not", "field", "operator", "value", "order"]), inner, max_size=4
        ),
        st.dictionaries(texts(max_size=3), inner, max_size=2),
    ),
    max_leaves=8,
)
paths: Any = st.one_of(
    st.text(st.sampled_from('ab."[]0123456789$\\-\x00\ud800\né '), max_size=8),
    st.sampled_from([*NAMES, *SPECIAL]),
    st.lists(st.one_of(st.sampled_from([*NAMES, 0, 1, -1, True, 2**31, None, 1.5]), texts(max_size=3)), max_size=3),
    anything,
)
comparisons: Any = st.fixed_dictionaries(
    {"field": paths, "operator": st.one_of(st.sampled_from(sorted(OPERATORS)), anything), "value": anything}
)
forms: Any = st.recursive(
    st.one_of(comparisons, comparisons, comparisons, anything),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.fixed_dictionaries({"and": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"or": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"not": inner}),
    ),
    max_leaves=5,
)
order: Any = st.one_of(paths, st.lists(st.one_of(paths, st.fixed_dictionaries({"field": paths, "order": anything}))))

FUZZ = settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    max_examples=max(300, settings().max_examples),
)


def outcome(call: Any) -> Any:
    """What a call gives; an InvalidFilterError as its message. Anything else goes up and fails the test."""
    try:
        return call()
    except InvalidFilterError as error:
        return f"refused: {error}"


def by_fours(store: Storage, sort: Any) -> list[list[str]]:
    return [page.keys() for page in store.pages(sort=sort, page_size=4)]


@FUZZ
@given(form=forms)
def test_every_form_of_a_filter_is_answered_or_refused(stores: list[Storage], form: Any) -> None:
    for ask in (
        lambda store: store.query(form).keys(),
        lambda store: store.query(form, limit=2).keys(),
        lambda store: store.count(form) if form is not None else None,
        lambda store: [entry.key for entry in store.scan(form)],
        lambda store: store.explain(form).entries,
        lambda store: [page.keys() for page in store.pages(form, page_size=1)],
    ):
        memory, sqlite = (outcome(lambda: ask(store)) for store in stores)  # noqa: B023
        assert memory == sqlite
    outcome(lambda: StorageQuery(form).matches({"a": 1}))
    outcome(lambda: StorageQuery.from_dict({"filters": form}))


@FUZZ
@given(sort=order)
def test_every_form_of_a_sort_is_answered_or_refused(stores: list[Storage], sort: Any) -> None:
    memory, sqlite = (outcome(lambda: store.query(sort=sort).keys()) for store in stores)  # noqa: B023
    assert memory == sqlite
    memory, sqlite = (outcome(lambda: by_fours(store, sort)) for store in stores)  # noqa: B023
    assert memory == sqlite


@FUZZ
@given(place=paths, value=anything, operator=st.sampled_from(["eq", "gt", "contains", "startswith", "is_in", "not_in"]))
def test_every_method_of_a_field_makes_a_filter_or_refuses(place: Any, value: Any, operator: str) -> None:
    def make() -> object:
        made = path(*place) if isinstance(place, list) else field(place)
        chosen = getattr(made, operator)(value)
        return [repr(chosen), chosen.to_dict(), hash(chosen), StorageQuery(chosen).matches({"a": [1]})]

    outcome(make)


@FUZZ
@given(places=st.lists(paths, max_size=3), name=st.one_of(st.none(), anything), unique=st.booleans())
def test_every_definition_of_an_index_is_made_or_refused(
    stores: list[Storage], places: list[Any], name: Any, unique: bool
) -> None:
    def define(store: Storage) -> Any:
        with store.transaction() as tx:
            try:
                made = tx.create_index(*places, unique=unique, name=name)
            except (InvalidFilterError, InvalidValueError, UniqueIndexError) as error:
                return type(error)
            assert tx.query(sort=list(places)).keys() == [f"key{number}" for number in range(10)] or places
            tx.drop_index(made)
            tx.rollback()
        return made

    memory, sqlite = map(define, stores)
    assert memory == sqlite


@FUZZ
@given(cursor=st.one_of(anything, st.text(max_size=60), st.binary(max_size=40)), limit=anything, offset=anything)
def test_every_cursor_limit_and_offset_is_taken_or_refused(
    stores: list[Storage], cursor: Any, limit: Any, offset: Any
) -> None:
    for store in stores:
        if cursor is not None:
            with pytest.raises(InvalidFilterError, match="^cursor"):
                store.query(sort="a", limit=2, cursor=cursor)
        try:
            page = store.query(limit=limit, offset=offset)
        except InvalidValueError as error:
            found = str(error)
        else:
            found = "limit: kept" if limit is None or len(page) <= limit else "too many"
        assert found.startswith(("limit: ", "offset: "))
