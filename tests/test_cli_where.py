"""The grammar of `--where`: a condition means its filter, a wrong one names its place, any text is one or the other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mycelia_storage import InvalidFilterError, StorageQuery, field, path
from mycelia_storage.cli.where import parse_where

if TYPE_CHECKING:
    from mycelia_storage import Filter

A = field("a")
MEANINGS: list[tuple[str, Filter]] = [
    ("a=1", A == 1),
    ("a == 1", A == 1),
    (" a  !=\t1 ", A != 1),
    ("a>1", A > 1),
    ("a>=1.5", A >= 1.5),
    ("a<-1", A < -1),
    ("a<=2e3", A <= 2000.0),
    ("a=x", A == "x"),
    ("a=true", A == True),  # noqa: E712
    ("a=false", A == False),  # noqa: E712
    ("a=null", A == None),  # noqa: E711
    ("a=True", A == "True"),
    ('a="true"', A == "true"),
    ('a="1"', A == "1"),
    ("a='1'", A == "1"),
    ("a=007", A == "007"),
    ("a=+1", A == "+1"),
    ("a=1_000", A == "1_000"),
    ("a=9223372036854775807", A == 2**63 - 1),
    ("a=9007199254740993", A == 2**53 + 1),
    ("a=NaN", A == "NaN"),
    ('a=""', A == ""),
    ("a=''", A == ""),
    ('a="\\u00e9\\n\\""', A == 'é\n"'),
    ("a='\\n\"'", A == '\\n"'),
    ("a=O'Brien", A == "O'Brien"),
    ("a=x=y", A == "x=y"),
    ("a=a,b", A == "a,b"),
    ("a>2024-05-01", A > "2024-05-01"),
    ('a>"1,000"', A > "1,000"),
    ("a=[1, [2]]", A == [1, [2]]),
    ('a={"b": null}', A == {"b": None}),
    ("a contains x", A.contains("x")),
    ("a contains 1", A.contains(1)),
    ('a contains"x y"', A.contains("x y")),
    ("a not contains x", ~A.contains("x")),
    ("a startswith x", A.startswith("x")),
    ("a startsWith x", A.startswith("x")),
    ("a ends_with x", A.endswith("x")),
    ("a not endswith 'x'", ~A.endswith("x")),
    ("a exists", A.exists()),
    ("a not  exists", ~A.exists()),
    ("a gt 1", A > 1),
    ("a eq x", A == "x"),
    ("a in 1", A.is_in([1])),
    ("a in JP,US , 'New York', null", A.is_in(["JP", "US", "New York", None])),
    ("a in (1, x)", A.is_in([1, "x"])),
    ("a in(1,x)", A.is_in([1, "x"])),
    ('a in [1, "x", [2]]', A.is_in([1, "x", [2]])),
    ("a in []", A.is_in([])),
    ("a nin 1,2", A.not_in([1, 2])),
    ("a not in 1,2", ~A.is_in([1, 2])),
    ("a.b[0].c=1", field("a.b[0].c") == 1),
    ('"a b"."c=d"=1', path("a b", "c=d") == 1),
    ('"a\\"b"=1', path('a"b') == 1),
    ("in in in", field("in").is_in(["in"])),
    ("not not in 1", ~field("not").is_in([1])),
    ("[0]=1", field("[0]") == 1),
    ("$value=1", field("$value") == 1),
    ("$metadata.source=mail", field("$metadata.source") == "mail"),
    ("$key startswith user:", field("$key").startswith("user:")),
    ("$version>5", field("$version") > 5),
    ("$created_at>=1970-01-01", field("$created_at") >= 0),
    ("$created_at>=1970-01-01T01:00:00+01:00", field("$created_at") >= 0),
    ("$updated_at in 1970-01-01T00:00:01Z, 2", field("$updated_at").is_in([1000, 2])),
    ("$expires_at not exists", ~field("$expires_at").exists()),
    ("größe=7", field("größe") == 7),
]


@pytest.mark.parametrize(("text", "meaning"), MEANINGS, ids=[text for text, _ in MEANINGS])
def test_a_condition_means_its_filter(text: str, meaning: Filter) -> None:
    assert parse_where(text) == meaning


@pytest.mark.parametrize(
    ("text", "character"),
    [
        ("", 1),
        ("  ", 3),
        ("=1", 1),
        ("a", 2),
        ("a ", 3),
        ("a 1", 3),
        ("a!", 2),
        ("a like x", 3),
        ("a=", 3),
        ("a= ", 4),
        ("a=1 2", 5),
        ("a=x and b=y", 5),
        ("a==>1", 4),
        ("a=<1", 3),
        ("a>1,000", 3),
        ("a>1_000", 3),
        ("a<.5", 3),
        ("a>=+5", 4),
        ("a>true", 3),
        ("a>null", 3),
        ("a>[1]", 3),
        ('a="x', 3),
        ('a="x"y', 6),
        ('a=x"y"', 4),
        ("a='x", 3),
        ("a=[1", 5),
        ("a={1}", 4),
        ("a=[draft]", 4),
        ("a=1e999", 3),
        ("a=9223372036854775808", 3),
        ("a startswith 1", 14),
        ("a contains", 11),
        ("a not = 1", 7),
        ("a not", 6),
        ("a exists 1", 10),
        ("a in", 5),
        ("a in 1,", 8),
        ("a in (1", 8),
        ("a in 1)", 7),
        ("a in ,1", 6),
        ("a in [1],2", 9),
        ("a..b=1", 3),
        (" a[x]=1", 3),
        ('"a=1', 1),
        ('"a""b"=1', 4),
        ("$nothing=1", 1),
        ("$created_at>yesterday", 13),
        ("$created_at=", 13),
    ],
)
def test_a_wrong_condition_names_its_place(text: str, character: int) -> None:
    with pytest.raises(InvalidFilterError, match=rf"^--where: character {character}: "):
        parse_where(text)


def test_a_wrong_condition_does_not_show_its_operand() -> None:
    for text in (
        "a=x secret",
        'a="secret',
        "a>secret secret",
        "a in (secret",
        "a={secret}",
        "$created_at>secret",
        "a:[secret",
    ):
        with pytest.raises(InvalidFilterError) as caught:
            parse_where(text)
        assert "secret" not in str(caught.value)


def test_long_and_deep_conditions_are_typed_errors() -> None:
    for text in ("a=" + "[" * 100_000, "a=" + "9" * 10_000, "a=" + "[" * 300 + "]" * 300, ".".join("a" * 9) + "=" * 99):
        with pytest.raises(InvalidFilterError):
            parse_where(text)
    many = ", ".join(map(str, range(1000)))
    assert parse_where(f"a in {many}") == A.is_in(list(range(1000)))


PIECES = st.sampled_from(
    [
        *"=!<>()[]{}\"',.$ \t\n\\-",
        "a",
        "not",
        "in",
        "exists",
        "contains",
        "$created_at",
        "$value",
        "null",
        "1",
        "2024-01-01",
        "\x00",
    ]
)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=12).map("".join), st.text(max_size=20), st.text(st.characters(), max_size=20)
)


@settings(max_examples=600)
@given(TEXTS)
@example("\udcff=1")
@example("a=\udcff")
@example('"\\ud800"=1')
def test_any_text_is_a_condition_or_a_typed_error(text: str) -> None:
    try:
        query = StorageQuery(parse_where(text))
    except InvalidFilterError as error:
        message = str(error)
        assert message.startswith("--where: character ")
        return
    assert StorageQuery.from_dict(query.to_dict()) == query
    query.matches({"a": 1})


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


@given(WORDS.filter(bool), VALUES, st.booleans())
def test_every_path_and_operand_can_be_spelled(name: str, value: Any, is_ascii: bool) -> None:
    place = json.dumps(name, ensure_ascii=is_ascii)
    operand = json.dumps(value, ensure_ascii=is_ascii)
    assert parse_where(f"{place} != {operand}") == (path(name) != value)
    assert parse_where(f"{place} in [{operand}]") == path(name).is_in([value])
