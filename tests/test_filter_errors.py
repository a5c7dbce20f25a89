"""Hazard: what is no filter is taken for one, or is refused without a reason that names the place.

Every InvalidFilterError of filters, paths, sorts and queries, and the limits on how large a filter is.
"""

from __future__ import annotations

import pickle
import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import InvalidFilterError, InvalidValueError, Storage, StorageQuery, field, match, path
from mycelia_storage.filters import And
from mycelia_storage.query import parse_filter, parse_sort

if TYPE_CHECKING:
    from collections.abc import Callable

A = field("a")


class Color(StrEnum):
    RED = "red"


def comparison(operator: str, value: object, name: str = "a") -> dict[str, object]:
    return {"field": name, "operator": operator, "value": value}


# ---- paths


BAD_PATHS: tuple[tuple[Any, str], ...] = (
    ("", "character 0"),
    (".", "character 0"),
    ("a.", "character 2"),
    ("a..b", "character 2"),
    (".a", "character 0"),
    ("a[", "character 1"),
    ("a[]", "character 1"),
    ("a[-1]", "character 1"),
    ("a[01]", "character 1"),
    ("a[x]", "character 1"),
    ("a[0", "character 1"),
    ("a[0]b", "character 4"),
    ("a.[0]", "character 2"),
    ("a]", "character 1"),
    ('a"b', "character 1"),
    ('"a', "character 0"),
    ('"a"b', "character 3"),
    ('"\\x"', "character 0"),
    ('"a\nb"', "character 0"),
    ("a[2147483648]", "character 1"),
    ("a[99999999999999999999]", "character 1"),
    ("a\0", r"U\+0000"),
    ("\ud800", "surrogate"),
    ('"\\ud800"', "surrogate"),
    ('"\\u0000"', r"U\+0000"),
    ("$metadata", r"\$metadata\.name"),
    ("$other", "special name"),
    ("$", "special name"),
    ("$key.a", "special name"),
    ("$value.a", "special name"),
    ("$created_at[0]", "special name"),
    (b"a", "bytes"),
    (None, "NoneType"),
    (1, "int"),
    (("a", "b"), "tuple"),
    ([], "at least one segment"),
    (["", "\0"], r"U\+0000"),
    (["a", -1], "-1"),
    (["a", 2**31], str(2**31)),
    (["a", True], "True"),
    (["a", 1.0], "float"),
    (["a", None], "NoneType"),
    ("a" * 1025, "1,025 bytes .* 1,024 are the limit"),
    ("a." + "b" * 1023, "1,025 bytes"),
    ("\U0001f600" * 257, "1,028 bytes"),
    ("[0]" * 513, "1,025 bytes"),
    ("$metadata." + "m" * 1015, "1,025 bytes"),
    ("a" * 100_000, "100,000 characters"),
    (["a" * 1025], "1,025 bytes"),
    ([""] * 1026, "1,025 bytes"),
    ([0] * 513, "1,025 bytes"),
    (["a" * 1_000_000], "1,000,000 bytes"),
)


@pytest.mark.parametrize(("bad", "reason"), BAD_PATHS, ids=lambda given: repr(given)[:40])
def test_a_bad_path_is_refused_with_its_place(bad: Any, reason: str) -> None:
    with pytest.raises(InvalidFilterError, match=rf"^filter\.field: .*{reason}"):
        parse_filter({"field": bad, "operator": "eq", "value": 1})
    with pytest.raises(InvalidFilterError, match=rf"^filter\[1\]\.or\[0\]\.not\.field: .*{reason}"):
        parse_filter([A == 1, {"or": [{"not": {"field": bad, "operator": "eq", "value": 1}}]}])
    with pytest.raises(InvalidFilterError, match=reason):
        parse_sort([{"field": "b"}, {"field": bad}])
    if isinstance(bad, str):
        with pytest.raises(InvalidFilterError, match=rf"^field: .*{reason}"):
            field(bad)
        with pytest.raises(InvalidFilterError, match=rf"^sort\[1\]: .*{reason}"):
            parse_sort(["a", f"-{bad}"])
    elif isinstance(bad, list):
        with pytest.raises(InvalidFilterError, match=rf"^path: .*{reason}"):
            path(*bad)


# ---- what is refused


BAD_FILTERS: tuple[tuple[Any, str], ...] = (
    (True, r"^filter: bool is no filter; write field\('age'\)"),
    (False, r"^filter: bool is no filter"),
    ("a = 1", r"^filter: str is no filter; write field\('age'\)"),
    (1, r"^filter: int"),
    (b"a", r"^filter: bytes"),
    ({"a"}, r"^filter: set"),
    (A, r"^filter: a field alone"),
    (A.asc(), r"^filter"),
    (..., r"^filter: ellipsis"),
    (range(1), r"^filter: "),
    ({}, r"^filter: .*\[\] matches everything"),
    ({"a": 1}, r"^filter: unknown entry 'a'; known here: field, operator, value"),
    ({1: 2}, r"^filter: unknown entry int"),
    ({A == 1: 2}, r"^filter: unknown entry Comparison"),
    ({"field": "a"}, r"^filter: 'operator' is missing"),
    ({"operator": "eq", "value": 1}, r"^filter: 'field' is missing"),
    ({"field": "a", "operator": "eq"}, r"^filter: 'value' is missing"),
    ({"field": "a", "operator": "eq", "value": 1, "more": 2}, r"^filter: unknown entry 'more'"),
    ({"field": "a", "operator": "eq", "value": 1, "and": []}, r"^filter: unknown entry 'field'"),
    (comparison("like", 1), r"^filter\.operator: 'like' is none of eq, ne, .*exists"),
    (comparison("EQ", 1), r"^filter\.operator: 'EQ'"),
    (comparison("==", 1), r"^filter\.operator: '=='"),
    ({"field": "a", "operator": None, "value": 1}, r"^filter\.operator: NoneType"),
    ({"field": "a", "operator": ["eq"], "value": 1}, r"^filter\.operator: list"),
    ({"and": []} | {"or": []}, r"^filter: unknown entry 'or'"),
    ({"and": None}, r"^filter\.and: a list"),
    ({"and": {}}, r"^filter\.and: a list of filters is needed, not dict"),
    ({"or": "ab"}, r"^filter\.or: a list"),
    ({"or": [A == 1, "x"]}, r"^filter\.or\[1\]: str"),
    ({"not": None}, r"^filter\.not: a filter is needed"),
    ({"not": {}}, r"^filter\.not: "),
    ({"not": A == 1, "and": []}, r"^filter: unknown entry 'not'"),
    ([[A == 1, [[{"x": 1}]]]], r"^filter\[0\]\[1\]\[0\]\[0\]: unknown entry 'x'"),
    ([comparison("eq", {1})], r"^filter\[0\]\.value: .*set"),
    (StorageQuery(A == 1), r"^filter: StorageQuery"),
)


@pytest.mark.parametrize(("bad", "reason"), BAD_FILTERS, ids=repr)
def test_what_is_no_filter_is_refused_with_its_place(bad: Any, reason: str) -> None:
    with pytest.raises(InvalidFilterError, match=reason):
        parse_filter(bad)


BAD_OPERANDS: tuple[tuple[str, Any, str], ...] = (
    *((operator, None, "null") for operator in ("gt", "gte", "lt", "lte", "startsWith", "endsWith", "in", "nin")),
    *((operator, True, "bool") for operator in ("gt", "gte", "lt", "lte", "startsWith", "endsWith", "in", "nin")),
    *((operator, [1], "list") for operator in ("gt", "gte", "lt", "lte", "startsWith", "endsWith")),
    *((operator, {"a": 1}, "dict") for operator in ("gt", "gte", "lt", "lte", "in", "nin")),
    *((operator, 1, "int") for operator in ("startsWith", "endsWith", "in", "nin", "exists")),
    *((operator, "abc", "str") for operator in ("in", "nin", "exists")),
    ("exists", None, "null"),
    ("eq", float("nan"), "NaN"),
    ("gt", float("inf"), "infinities"),
    ("eq", 2**63, "64 bits"),
    ("lt", -(2**63) - 1, "64 bits"),
    ("eq", "a\0", r"U\+0000"),
    ("startsWith", "\ud800", "surrogate"),
    ("contains", b"a", "bytes"),
    ("eq", datetime(2024, 1, 1, tzinfo=UTC), "datetime"),
    ("eq", {1: 2}, "key"),
    ("eq", Color.RED, "Color"),
    ("in", [1, [{"b": {2}}]], r"\$\[1\]\[0\]\.b: set"),
    ("in", {1, 2}, "set"),
    ("eq", "x" * (16 * 1024 * 1024), "16,777,218 bytes"),
)


@pytest.mark.parametrize(("operator", "bad", "reason"), BAD_OPERANDS, ids=lambda given: repr(given)[:40])
def test_a_wrong_operand_is_refused_with_its_place(operator: str, bad: Any, reason: str) -> None:
    with pytest.raises(InvalidFilterError, match=rf"^filter\[0\]\.value: a {operator}: .*{reason}"):
        parse_filter([comparison(operator, bad)])


@pytest.mark.parametrize("name", ["a" * 1024, "\U0001f600" * 256, "\x01" * 1024, '"' * 1024], ids=lambda name: name[:1])
def test_a_path_has_as_many_bytes_as_a_key(name: str) -> None:
    assert field(str(path(name))).path == path(name).path == parse_filter(match(**{name: 1}).to_dict()).filters[0].path  # type: ignore[attr-defined]
    with pytest.raises(InvalidFilterError, match="^path: .*1,024 are the limit"):
        path(name + "x")
    with pytest.raises(InvalidFilterError, match="^match: .*1,024 are the limit"):
        match(**{name + "x": 1})


@pytest.mark.parametrize("bad", ["\0", "\ud800"], ids=repr)
def test_match_takes_no_name_that_no_document_has(bad: str) -> None:
    with pytest.raises(InvalidFilterError, match="^match: "):
        match(**{bad: 1})


# A field that is always of one type: what is of another one could only find nothing, or everything.
TIMES = ("$created_at", "$updated_at", "$expires_at")
COMPARING = ("eq", "ne", "gt", "gte", "lt", "lte")


@pytest.mark.parametrize("operator", [*COMPARING, "in", "nin"])
@pytest.mark.parametrize(
    ("name", "bad", "reason"),
    [
        *((name, "2024-01-01", "a datetime or milliseconds since 1970 is needed, not str") for name in TIMES),
        *((name, True, "a datetime or milliseconds since 1970 is needed, not bool") for name in TIMES),
        *((name, None, "a datetime or milliseconds since 1970 is needed, not null; exists") for name in TIMES),
        *((name, [1], "a datetime or milliseconds since 1970 is needed, not list") for name in TIMES),
        *((name, datetime(2024, 1, 1), "a datetime without a time zone") for name in TIMES),  # noqa: DTZ001
        ("$version", "5", "a number is needed, not str"),
        ("$version", False, "a number is needed, not bool"),
        ("$version", None, "a number is needed, not null"),
        ("$version", datetime(2024, 1, 1, tzinfo=UTC), "a number is needed, not datetime"),
        ("$key", 5, "a string is needed, not int"),
        ("$key", True, "a string is needed, not bool"),
        ("$key", None, "a string is needed, not null"),
        ("$key", {}, "a string is needed, not dict"),
    ],
    ids=repr,
)
def test_an_operand_that_the_field_can_never_have_is_refused(operator: str, name: str, bad: Any, reason: str) -> None:
    many = operator in ("in", "nin")
    good = "text" if name == "$key" else 5
    operand = [good, bad] if many else bad
    place = rf"\{name} {operator}: " + (r"\$\[1\]: " if many else "")
    with pytest.raises(InvalidFilterError, match=rf"^filter\.or\[0\]\.value: {place}{reason}"):
        parse_filter({"or": [comparison(operator, operand, name)]})
    with pytest.raises(InvalidFilterError, match=rf"^{place}{reason}"):
        getattr(field(name), {"in": "is_in", "nin": "not_in"}.get(operator, operator))(operand)
    parse_filter(comparison(operator, [good] if many else good, name))


@pytest.mark.parametrize("operator", ["contains", "startsWith", "endsWith"])
@pytest.mark.parametrize("operand", ["2024", 1], ids=repr)
def test_there_is_no_text_in_a_number(operator: str, operand: object) -> None:
    for name in (*TIMES, "$version"):
        with pytest.raises(InvalidFilterError, match=rf"\{name} {operator}: \{name} is a number"):
            parse_filter(comparison(operator, operand, name))
    parse_filter(comparison(operator, "2024", "$key"))
    with pytest.raises(InvalidFilterError, match=rf"\$key {operator}: a string is needed, not int"):
        parse_filter(comparison(operator, 1, "$key"))


def test_one_field_is_not_compared_with_another() -> None:
    for operator in ("eq", "gt", "contains", "startsWith"):
        with pytest.raises(InvalidFilterError, match=f"a {operator}: a value is needed; a field is not compared"):
            parse_filter(comparison(operator, field("b")))
    with pytest.raises(InvalidFilterError, match="b eq: a value is needed"):
        _ = field("b") == A


def test_an_operand_that_is_nested_too_deep_is_refused() -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    assert A.eq(deep).to_dict()["value"] == deep
    with pytest.raises(InvalidFilterError, match="nested"):
        A.eq([deep])


BAD_SORTS: tuple[tuple[Any, str], ...] = (
    (1, r"^sort: int is no sort"),
    (True, r"^sort: bool"),
    ({"a"}, r"^sort: set"),
    (A == 1, r"^sort: Comparison"),
    ({}, r"^sort: "),
    ({"order": "asc"}, r"^sort: 'field' is missing"),
    ({"field": "a", "order": "up"}, r"^sort\.order: 'up' is neither 'asc' nor 'desc'"),
    ({"field": "a", "order": None}, r"^sort\.order: NoneType"),
    ({"field": "a", "order": ["asc"]}, r"^sort\.order: list"),
    ({"field": "a", "order": A}, r"^sort\.order: Field"),
    ({"field": "a", "order": A == 1}, r"^sort\.order: Comparison"),
    ({"field": "a", "by": 1}, r"^sort: unknown entry 'by'"),
    (["a", None], r"^sort\[1\]: NoneType"),
    (["a", ["b"]], r"^sort\[1\]: list"),
    (["a", "-a"], r"^sort: 'a' is named twice"),
    (["a.b", {"field": ["a", "b"]}], r"^sort: 'a.b' is named twice"),
    ([f"f{number}" for number in range(17)], r"^sort: more than 16 fields"),
    ("", r"^sort: '' is no path"),
    ("-", r"^sort: '' is no path"),
)


@pytest.mark.parametrize(("bad", "reason"), BAD_SORTS, ids=repr)
def test_what_is_no_sort_is_refused_with_its_place(bad: Any, reason: str) -> None:
    with pytest.raises(InvalidFilterError, match=reason):
        parse_sort(bad)


def test_the_ways_a_python_programmer_goes_wrong_are_shown_the_right_one() -> None:
    untyped: Any = A == 1
    with pytest.raises(InvalidFilterError, match="write & for and"):
        bool(A == 1)
    with pytest.raises(InvalidFilterError, match="between"):
        _ = 1 < A < 5
    with pytest.raises(InvalidFilterError, match="write & for and"):
        _ = (A == 1) and (field("b") == 2)
    with pytest.raises(InvalidFilterError, match="write & for and"):
        _ = not untyped
    with pytest.raises(InvalidFilterError, match=r"is_in\(\[…\]\)"):
        _ = "x" in A
    with pytest.raises(InvalidFilterError, match=r"field\('a'\).contains"):
        list(A)
    with pytest.raises(InvalidFilterError, match="exists"):
        bool(A)
    for wrong in (True, "b = 2", None, A):
        with pytest.raises(InvalidFilterError, match=r"& needs a filter on both sides.*in parentheses"):
            _ = (A == 1) & wrong
        with pytest.raises(InvalidFilterError, match=r"\| needs a filter"):
            _ = (A == 1) | wrong
    for wrong_list in ("abc", b"abc", {"a": 1}, 5, None):
        with pytest.raises(InvalidFilterError, match="^a in: a list of values is needed"):
            A.is_in(wrong_list)  # type: ignore[arg-type]
        with pytest.raises(InvalidFilterError, match=r"^b\[0\] nin: a list of values is needed"):
            field("b[0]").not_in(wrong_list)  # type: ignore[arg-type]


# ---- limits


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = comparison("eq", 1)
    for _ in range(depth - 1):
        found = {"not": found}
    return found


def test_a_hundred_levels_are_the_limit() -> None:
    deepest = parse_filter(nested(100))
    assert parse_filter(deepest.to_dict()) == deepest
    assert eval(repr(deepest), {"field": field}) == deepest
    assert pickle.loads(pickle.dumps(deepest)) == deepest
    assert hash(deepest) == hash(parse_filter(nested(100)))
    assert not StorageQuery(deepest).matches({"a": 1})
    for too_deep in (nested(101), nested(5000)):
        with pytest.raises(InvalidFilterError, match="100"):
            parse_filter(too_deep)
    with pytest.raises(InvalidFilterError, match="100"):
        _ = ~deepest
    with pytest.raises(InvalidFilterError, match="100"):
        _ = deepest & (A == 1)
    with pytest.raises(InvalidFilterError, match="100"):
        parse_filter([deepest])


def test_lists_and_mappings_that_hold_themselves_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidFilterError, match="100"):
        parse_filter(endless)
    ring: dict[str, Any] = {}
    ring["not"] = ring
    with pytest.raises(InvalidFilterError, match="100"):
        parse_filter(ring)


def test_a_thousand_comparisons_are_the_limit() -> None:
    most = parse_filter([comparison("eq", number) for number in range(1000)])
    assert isinstance(most, And)
    assert len(most.filters) == 1000
    for too_many in ([A == 1] * 1001, {"or": [most, A == 1]}, [{"not": most}, most]):
        with pytest.raises(InvalidFilterError, match="1,000"):
            parse_filter(too_many)
    with pytest.raises(InvalidFilterError, match="1,000"):
        _ = most & (A == 1)


def test_thirty_thousand_operands_are_the_limit() -> None:
    parse_filter([A.is_in(range(29_999)), A == 1])
    for too_many in (lambda: A.is_in(range(30_001)), lambda: [A.is_in(range(30_000)), A == 1]):
        with pytest.raises(InvalidFilterError, match="30,000"):
            parse_filter(too_many())


@pytest.mark.parametrize("wrap", [lambda part: [part, part], lambda part: {"or": [part, part]}], ids=["list", "or"])
@pytest.mark.parametrize("inside", [[], A == 1], ids=repr)
def test_what_doubles_with_each_level_is_refused_before_it_is_built(wrap: Any, inside: Any) -> None:
    for _ in range(60):
        inside = wrap(inside)
    with pytest.raises(InvalidFilterError, match="more than"):
        parse_filter(inside)


# ---- StorageQuery


@pytest.mark.parametrize(
    ("given", "kind", "reason"),
    [
        ([], InvalidFilterError, "^query: a mapping is needed, not list"),
        (None, InvalidFilterError, "^query: "),
        ({}, InvalidFilterError, "^query: "),
        ({"filter": []}, InvalidFilterError, "^query: unknown entry 'filter'"),
        ({"filters": True}, InvalidFilterError, "^filters: bool"),
        ({"filters": [{"x": 1}]}, InvalidFilterError, r"^filters\[0\]: unknown entry 'x'"),
        ({"filters": [], "sort": 1}, InvalidFilterError, "^sort: int"),
        ({"filters": [], "limit": -1}, InvalidValueError, "^limit: -1"),
        ({"filters": [], "limit": 1.5}, InvalidValueError, "^limit: 1.5"),
        ({"filters": [], "limit": True}, InvalidValueError, "^limit: True"),
        ({"filters": [], "offset": None}, InvalidValueError, "^offset: None"),
        ({"filters": [], "offset": "1"}, InvalidValueError, "^offset: str"),
        ({"filters": [], "limit": 2**63}, InvalidValueError, "^limit: "),
    ],
    ids=repr,
)
def test_a_bad_query_is_refused_with_its_place(given: Any, kind: type[Exception], reason: str) -> None:
    with pytest.raises(kind, match=reason):
        StorageQuery.from_dict(given)


# ---- slips of the hand


# As much as a caller without a type checker knows.
ONE: Any = field("a")
TWO: Any = field("b")

SLIPS: tuple[tuple[Callable[[], object], str], ...] = (
    (lambda: ONE == 1 & TWO == 2, "&"),
    (lambda: (ONE == 1) & TWO == 2, "&"),
    (lambda: 1 & (TWO == 2), "&"),
    (lambda: ONE & (TWO == 2), "&"),
    (lambda: ONE & TWO, "&"),
    (lambda: ONE == "x" | TWO == "y", "|"),
    (lambda: (ONE == 1) | TWO == 2, "|"),
    (lambda: 1 | (TWO == 2), "|"),
    (lambda: ONE | (TWO == 2), "|"),
    (lambda: {"a": 1} | (ONE == 1), "|"),
)


@pytest.mark.parametrize(("slip", "sign"), SLIPS)
def test_comparisons_without_parentheses_are_refused_with_a_hint(slip: Callable[[], object], sign: str) -> None:
    hint = f"^{re.escape(sign)} needs a filter on both sides, not (Field|int|dict): put comparisons in parentheses"
    with pytest.raises(InvalidFilterError, match=hint):
        slip()


def test_the_opposite_of_a_field_is_refused_with_a_hint() -> None:
    with pytest.raises(InvalidFilterError, match=r"~\(field\('a'\) == 1\)"):
        _ = ~ONE == 1


@pytest.mark.parametrize("text", ["age desc", "age DESC ", "-age desc", '"the age".of desc', "a\tDesc"])
def test_a_direction_behind_a_name_is_not_taken_for_the_name(memory_store: Storage, text: str) -> None:
    for call, where in (
        (lambda: parse_sort(text), "sort"),
        (lambda: parse_sort(["a", text]), r"sort\[1\]"),
        (lambda: memory_store.query(sort=text), "sort"),
        (lambda: StorageQuery(sort=text), "sort"),
        (lambda: memory_store.create_index("a", text), r"fields\[1\]"),
    ):
        with pytest.raises(InvalidFilterError, match=f"^{where}: .* ends in a direction.*: write '-age'.*in quotes"):
            call()
    assert memory_store.list_indexes() == []


def test_a_name_that_only_looks_like_a_direction_can_be_sorted_by(memory_store: Storage) -> None:
    memory_store.set_many({"a": {"age desc": 2, "desc": 1}, "b": {"age desc": 1, "desc": 2}})
    assert memory_store.query(sort='"age desc"').keys() == ["b", "a"]
    assert memory_store.query(sort=path("age desc").desc()).keys() == ["a", "b"]
    assert memory_store.query(sort="desc").keys() == ["a", "b"]
    assert memory_store.query(sort={"field": "age desc"}).keys() == ["b", "a"]
    memory_store.create_index('-"age desc"')
    assert memory_store.list_indexes()[0].fields == ('-"age desc"',)
    with pytest.raises(InvalidFilterError, match="ends in a direction.*: write 'age' for it"):
        memory_store.query(sort="age asc")


def test_a_range_that_no_value_can_lie_in_is_told_from_an_empty_one(memory_store: Storage) -> None:
    memory_store.set_many({"a": {"a": 3}, "b": {"a": "m"}})
    for low, high in ((1, "x"), ("a", 5.0)):
        with pytest.raises(InvalidFilterError, match="^a between: nothing lies between a number and a string"):
            A.between(low, high)
    assert memory_store.query(A.between(1, 5.5)).keys() == ["a"]
    assert memory_store.query(A.between("a", "z")).keys() == ["b"]
    assert memory_store.count(A.between(5, 1)) == memory_store.count(A.between("z", "a")) == 0
    assert memory_store.count(field("$created_at").between(0, datetime(9999, 1, 1, tzinfo=UTC))) == 2
