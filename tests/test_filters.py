"""Hazard: a filter means something else than it says, changes after it was made, or is refused without a reason.

Everything here is about the values alone: every form, printing, limits, messages, and the reference matcher on the
tables that the contract suite asks of every engine.
"""

from __future__ import annotations

import copy
import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mycelia_storage import InvalidFilterError, InvalidValueError, StorageQuery, field, match, path
from mycelia_storage.filters import And, Comparison, Filter, Not, Or, SortKey
from mycelia_storage.query import parse_filter, parse_sort
from mycelia_storage.testing.filter_cases import CASES, DOCUMENTS, Case
from mycelia_storage.testing.query_strategies import NAMES, worlds
from mycelia_storage.testing.strategies import texts

A = field("a")


class Color(StrEnum):
    RED = "red"


class Place(IntEnum):
    FIRST = 0


# ---- what it means


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_the_reference_matcher(case: Case) -> None:
    if "$key" in repr(case.filter) or "$version" in repr(case.filter):
        return  # known of an entry only; the contract suite asks for these
    query = StorageQuery(case.filter)
    assert {key for key, document in DOCUMENTS.items() if query.matches(document)} == case.keys


def test_what_is_not_known_of_a_value_alone_is_missing() -> None:
    for name in ("$key", "$version", "$created_at", "$updated_at", "$expires_at"):
        assert not StorageQuery(field(name).exists()).matches(1)
        assert StorageQuery(field(name) != ("1" if name == "$key" else 1)).matches(1)


def test_metadata_is_asked_beside_the_value() -> None:
    query = StorageQuery((field("$metadata.m.n") == 1) & (A == 2))
    assert query.matches({"a": 2}, {"m": {"n": 1}})
    assert query.matches({"a": 2}, MappingProxyType({"m": {"n": 1}}))
    assert not query.matches({"a": 2, "m": {"n": 1}})
    assert not query.matches({"a": 2}, {})


def test_a_tuple_matches_as_the_list_that_it_becomes() -> None:
    assert StorageQuery(A == [1, [2]]).matches({"a": (1, (2,))})
    assert StorageQuery(field("a[1][0]") == 2).matches({"a": (1, (2,))})
    assert (A == (1, 2)) == (A == [1, 2])


def test_what_could_not_be_stored_is_not_matched_either() -> None:
    with pytest.raises(InvalidValueError, match=r"\$\.a"):
        StorageQuery(A == 1).matches({"a": {1}})
    with pytest.raises(InvalidValueError, match="metadata"):
        StorageQuery(A == 1).matches({"a": 1}, {"m": object()})


# ---- forms


def comparison(operator: str, value: object, name: str = "a") -> dict[str, object]:
    return {"field": name, "operator": operator, "value": value}


METHODS: tuple[tuple[Filter, str, object], ...] = (
    (A == 1, "eq", 1),
    (A != 1, "ne", 1),
    (A > 1, "gt", 1),
    (A >= 1, "gte", 1),
    (A < "x", "lt", "x"),
    (A <= 1.5, "lte", 1.5),
    (A.eq({"b": [1]}), "eq", {"b": [1]}),
    (A.ne(None), "ne", None),
    (A.gt(1), "gt", 1),
    (A.gte(1), "gte", 1),
    (A.lt(1), "lt", 1),
    (A.lte(1), "lte", 1),
    (A.contains("x"), "contains", "x"),
    (A.startswith("x"), "startsWith", "x"),
    (A.endswith("x"), "endsWith", "x"),
    (A.is_in([1, "x"]), "in", [1, "x"]),
    (A.is_in(number for number in (1, 2)), "in", [1, 2]),
    (A.not_in((1, 2)), "nin", [1, 2]),
    (A.exists(), "exists", True),
    (A.is_null(), "eq", None),
)


@pytest.mark.parametrize(("made", "operator", "value"), METHODS, ids=repr)
def test_methods_and_dictionaries_are_the_same(made: Filter, operator: str, value: object) -> None:
    written = comparison(operator, value)
    assert parse_filter(written) == made == Comparison(A.path, operator, value)
    assert made.to_dict() == written
    assert parse_filter(MappingProxyType(written)) == made
    assert parse_filter([written]) == And([made])
    assert parse_filter({"not": written}) == ~made


def test_other_names_of_operators() -> None:
    assert parse_filter(comparison("starts_with", "x")) == A.startswith("x")
    assert parse_filter(comparison("ends_with", "x")) == A.endswith("x")
    assert parse_filter(comparison("exists", False)) == ~A.exists()
    assert parse_filter({"field": "a", "operator": "exists"}) == A.exists()


def test_groups_of_every_form() -> None:
    one, two, three = A == 1, A == 2, A == 3
    assert one & two == And([one, two])
    assert one | two == Or([one, two])
    assert ~one == Not(one)
    assert one & two & three == And([one, two, three]) == one & (two & three)
    assert one | two | three == Or([one, two, three]) == one | (two | three)
    assert one & two | three == Or([And([one, two]), three])
    written = [comparison("eq", 1), {"or": [comparison("eq", 2), {"not": {"and": [comparison("eq", 3)]}}]}]
    assert parse_filter(written) == And([one, Or([two, Not(And([three]))])])
    assert parse_filter({"and": [one, [two], {"not": three}]}) == And([one, And([two]), Not(three)])
    assert parse_filter((one, two)) == And([one, two])


def test_everything_and_nothing() -> None:
    assert parse_filter([]) == parse_filter({"and": []}) == parse_filter(None) == And(())
    assert parse_filter({"or": []}) == Or(())
    assert parse_filter([[]]) == And([And(())])
    assert parse_filter({"not": []}) == Not(And(()))
    # They do not melt away in a group.
    assert (And(()) | (A == 1)) == Or([And(()), A == 1])
    assert (Or(()) & (A == 1)) == And([Or(()), A == 1])


def test_match_takes_names_literally() -> None:
    assert match(a=1, b=None) == And([A == 1, field("b") == None])  # noqa: E711
    assert match(**{"a.b": 1, "$key": 2}) == And([path("a.b") == 1, path("$key") == 2])
    assert match() == And(())


def test_between_is_two_comparisons() -> None:
    assert A.between(1, 2) == (A >= 1) & (A <= 2)


def test_fields_stand_where_names_do() -> None:
    for given_field in ("b.c[0]", ["b", "c", 0], field("b.c[0]"), path("b", "c", 0)):
        assert parse_filter({"field": given_field, "operator": "eq", "value": 1}) == (field("b.c[0]") == 1)
        assert parse_sort({"field": given_field}) == (field("b.c[0]").asc(),)


def test_enum_members_are_taken_as_what_they_are_in_paths() -> None:
    made = path(Color.RED, Place.FIRST).path
    assert made == path("red", 0).path
    assert [type(segment) for segment in made.segments] == [str, int]
    assert field(Color.RED).path == field("red").path


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (None, ()),
        ([], ()),
        ("a", (A.asc(),)),
        ("-a", (A.desc(),)),
        ('-"-a"', (path("-a").desc(),)),
        ("--a", (path("-a").desc(),)),
        ("-$created_at", (field("$created_at").desc(),)),
        (A, (A.asc(),)),
        (A.desc(), (A.desc(),)),
        ({"field": "a"}, (A.asc(),)),
        ({"field": "a", "order": "asc"}, (A.asc(),)),
        ({"field": ["a"], "order": "desc"}, (A.desc(),)),
        (["a", "-b", {"field": "c"}, field("d")], tuple(parse_sort(name)[0] for name in ("a", "-b", "c", "d"))),
        (("a",), (A.asc(),)),
    ],
    ids=repr,
)
def test_forms_of_a_sort(written: Any, expected: tuple[SortKey, ...]) -> None:
    assert parse_sort(written) == expected
    assert parse_sort([str(key) for key in expected]) == expected


def test_times_are_the_milliseconds_that_are_stored() -> None:
    moment = datetime(2024, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    created = field("$created_at")
    assert (created > moment) == (created > 1_704_164_645_678)
    assert (created == moment.astimezone(timezone(timedelta(hours=2)))) == (created == moment)
    assert (created > moment + timedelta(microseconds=500)) == (created > 1_704_164_645_678.5)
    assert created.is_in([moment, 5]) == created.is_in([1_704_164_645_678, 5])
    assert created.between(moment, moment) == created.between(1_704_164_645_678, 1_704_164_645_678)
    assert parse_filter({"field": "$updated_at", "operator": "lt", "value": moment}) == (field("$updated_at") < moment)
    with pytest.raises(InvalidFilterError, match="time zone"):
        created.gt(datetime(2024, 1, 1))  # noqa: DTZ001
    with pytest.raises(InvalidFilterError, match="datetime"):
        A.gt(moment)


# ---- paths


@pytest.mark.parametrize(
    ("text", "segments", "canonical"),
    [
        ("name", ("name",), "name"),
        ("address.city", ("address", "city"), "address.city"),
        ("tags[0]", ("tags", 0), "tags[0]"),
        ("[0]", (0,), "[0]"),
        ("[0][10].a", (0, 10, "a"), "[0][10].a"),
        ('"a.b"."c d"', ("a.b", "c d"), '"a.b"."c d"'),
        ("c d", ("c d",), '"c d"'),
        ('""', ("",), '""'),
        ('"\\"\\\\"', ('"\\',), '"\\"\\\\"'),
        ('"$key"', ("$key",), '"$key"'),
        ("a.$key", ("a", "$key"), 'a."$key"'),
        ("é", ("é",), '"\\u00e9"'),
        ('"\\ud83d\\ude00"', ("\U0001f600",), '"\\ud83d\\ude00"'),
        ("0", ("0",), '"0"'),
        ("a.0", ("a", "0"), 'a."0"'),
        ("a-b", ("a-b",), '"a-b"'),
        ("_a1", ("_a1",), "_a1"),
        ("a'b", ("a'b",), '"a\'b"'),
        ("a[2147483647]", ("a", 2**31 - 1), "a[2147483647]"),
    ],
)
def test_a_path_and_its_canonical_form(text: str, segments: tuple[str | int, ...], canonical: str) -> None:
    made = field(text)
    assert made.path == path(*segments).path
    assert str(made) == str(made.path) == canonical
    assert field(canonical).path == made.path
    assert repr(made) == f"field({canonical!r})"


@pytest.mark.parametrize("name", ["$key", "$value", "$version", "$created_at", "$updated_at", "$expires_at"])
def test_special_names(name: str) -> None:
    made = field(name)
    assert str(made) == name
    assert made.path != path(name).path
    assert str(path(name)) == f'"{name}"'


def test_metadata_is_a_special_name_with_a_path_below() -> None:
    made = field('$metadata."a b"[0]')
    assert (made.path.root, made.path.segments) == ("$metadata", ("a b", 0))
    assert field(str(made)).path == made.path


segments = st.lists(st.sampled_from(NAMES) | texts(max_size=5) | st.integers(0, 2**31 - 1), min_size=1, max_size=5)


@given(segments=segments, below=st.sampled_from(["", "$metadata"]))
@example(segments=["x y" * 300], below="")
@example(segments=["\x01" * 1024], below="")
@example(segments=[""] * 1025, below="")
@example(segments=["\x01\x7f\u2028\ufeff\uffff\U0010ffff"], below="")
@example(segments=["-"], below="")
def test_canonical_paths_come_back(segments: list[str | int], below: str) -> None:
    made = path(*segments)
    if below:
        printed = str(made) if isinstance(segments[0], int) else f".{made}"
        made = field(below + printed)
    assert field(str(made)).path == made.path
    assert str(field(str(made))) == str(made)
    assert parse_sort(f"-{made}") == (made.desc(),)
    assert parse_sort(str(made)) == (made.asc(),)
    assert parse_filter((made == 1).to_dict()) == (made == 1)
    assert eval(repr(made), {"field": field}).path == made.path


# ---- values


WORLDS = worlds()


@given(data=st.data())
def test_every_filter_comes_back_from_each_of_its_forms(data: st.DataObject) -> None:
    drawn = data.draw(data.draw(WORLDS).filters())
    written = drawn.to_dict()
    assert parse_filter(written) == drawn
    assert parse_filter(json.loads(json.dumps(written))) == drawn
    for twin in (pickle.loads(pickle.dumps(drawn)), copy.copy(drawn), copy.deepcopy(drawn)):
        assert twin == drawn
        assert hash(twin) == hash(drawn)
        assert repr(twin) == repr(drawn)
        assert type(twin) is type(drawn)
    assert drawn != ~drawn
    assert not drawn.__eq__(written)


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        (A == 1, "field('a').eq(1)"),
        (A != None, "field('a').ne(None)"),  # noqa: E711
        (A.startswith("x") & ~A.exists(), "(field('a').startswith('x') & ~field('a').exists())"),
        (A.is_in([1, "b"]) | A.not_in([]), "(field('a').is_in([1, 'b']) | field('a').not_in([]))"),
        (~((A > 1) | (A < 0)), "~(field('a').gt(1) | field('a').lt(0))"),
        (path("a.b", 0).contains({"x": [True]}), "field('\"a.b\"[0]').contains({'x': [True]})"),
        (And(()), "And(())"),
        (Or(()), "Or(())"),
    ],
    ids=repr,
)
def test_a_repr_reads_as_the_code_that_makes_it(filter: Filter, expected: str) -> None:
    assert repr(filter) == expected
    assert eval(expected, {"field": field, "And": And, "Or": Or}) == filter


@pytest.mark.parametrize(
    "value",
    [A, A == 1, (A == 1) & (A == 2), (A == 1) | (A == 2), ~(A == 1), StorageQuery(A == 1, sort="a", limit=1)],
    ids=repr,
)
def test_nothing_can_be_changed(value: Any) -> None:
    before = repr(value)
    names = {name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())}
    assert names
    for name in (*names, "new"):
        with pytest.raises(AttributeError, match="cannot be changed"):
            setattr(value, name, 1)
        with pytest.raises(AttributeError, match="cannot be changed"):
            delattr(value, name)
    assert repr(value) == before
    assert not hasattr(value, "__dict__")


def test_what_went_in_and_what_comes_out_is_not_shared() -> None:
    operand = {"b": [1]}
    made = Comparison(A.path, "eq", operand)
    before = hash(made)
    operand["b"].append(2)
    made.operand["b"].append(3)
    made.to_dict()["value"]["b"].append(4)
    assert made.operand == {"b": [1]}
    assert hash(made) == before
    parts = [A == 1]
    group = And(parts)
    parts.append(A == 2)
    assert group == And([A == 1])


def test_filters_are_equal_when_they_say_the_same() -> None:
    assert len({A == 1, field("a") == 1, path("a").eq(1), parse_filter(comparison("eq", 1))}) == 1
    assert len({A == 1, A == 1.0, A == True, A == "1", A != 1, field("b") == 1}) == 6  # noqa: E712
    assert (A == 1) & (A == 2) != (A == 2) & (A == 1)
    assert And([A == 1]) != Or([A == 1])
    assert And(()) != Or(())


def test_a_field_is_no_member_of_a_set_since_its_comparison_is_a_filter() -> None:
    untyped: Any = field("a")
    with pytest.raises(TypeError, match="unhashable"):
        _ = {untyped}
    with pytest.raises(TypeError, match="unhashable"):
        _ = {untyped: 1}
    assert {str(field("a")), str(path("a")), str(field("b"))} == {"a", "b"}
    assert len({field("a").asc(), path("a").asc(), field("a").desc()}) == 2


# ---- StorageQuery


QUERY = StorageQuery(
    [A >= 18, {"or": [field("b") == None, A.is_in([1])]}],  # noqa: E711
    sort=["-a", field("$created_at")],
    limit=10,
    offset=5,
)


def test_a_query_goes_through_json_and_comes_back() -> None:
    written = json.loads(json.dumps(QUERY.to_dict()))
    assert StorageQuery.from_dict(written) == QUERY
    assert written["sort"] == [{"field": "a", "order": "desc"}, {"field": "$created_at", "order": "asc"}]
    assert (written["limit"], written["offset"]) == (10, 5)
    for twin in (pickle.loads(pickle.dumps(QUERY)), copy.copy(QUERY), copy.deepcopy(QUERY)):
        assert twin == QUERY
        assert hash(twin) == hash(QUERY)
    assert StorageQuery.from_dict({"filters": []}) == StorageQuery()


def test_a_query_says_what_it_is() -> None:
    assert repr(StorageQuery(A == 1, sort="-a", limit=3)) == (
        "StorageQuery(field('a').eq(1), sort=['-a'], limit=3, offset=0)"
    )
    assert eval(repr(QUERY), {"StorageQuery": StorageQuery, "field": field}) == QUERY


def test_queries_differ_in_any_part() -> None:
    queries = {
        StorageQuery(A == 1),
        StorageQuery(A == 2),
        StorageQuery(A == 1, sort="a"),
        StorageQuery(A == 1, limit=1),
        StorageQuery(A == 1, offset=1),
        StorageQuery(),
    }
    assert len(queries) == 6
    assert StorageQuery(None) == StorageQuery([]) == StorageQuery()
    assert StorageQuery(A == 1) != (A == 1)
