"""What filters and sorts mean, as tables that a reader can check by hand: documents, and which of them are found.

Called by the contract suite and by the tests of the reference matcher. An engine that answers all of this differs
from the others in nothing that has a name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mycelia_storage import field, match, path
from mycelia_storage.filters import And, Or

if TYPE_CHECKING:
    from mycelia_storage import Filter

BIG: Final = 2**53

# Their keys name what stands at `v`. In the order of these keys they are found without a sort.
DOCUMENTS: Final[dict[str, Any]] = {
    "a": {"v": "a"},
    "A": {"v": "A"},
    "abc": {"v": "abc"},
    "a%c": {"v": "a%c"},
    "a_c": {"v": "a_c"},
    "empty text": {"v": ""},
    "text 1": {"v": "1"},
    "text null": {"v": "null"},
    "e000": {"v": "\ue000"},
    "emoji": {"v": "\U0001f600"},
    "0": {"v": 0},
    "-0.0": {"v": -0.0},
    "1": {"v": 1},
    "1.0": {"v": 1.0},
    "1.5": {"v": 1.5},
    "-2": {"v": -2},
    "big": {"v": BIG},
    "big float": {"v": float(BIG)},
    "big + 1": {"v": BIG + 1},
    "true": {"v": True},
    "false": {"v": False},
    "null": {"v": None},
    "missing": {"w": 1},
    "[]": {"v": []},
    "[1, a, null]": {"v": [1, "a", None]},
    "[1.0]": {"v": [1.0]},
    "[true]": {"v": [True]},
    "[[1]]": {"v": [[1]]},
    "{}": {"v": {}},
    "{x, y}": {"v": {"x": 1, "y": [2]}},
    "{y, x}": {"v": {"y": [2.0], "x": 1.0}},
    "{x}": {"v": {"x": True}},
    "no object": "v",
    "an array": [{"v": 1}],
}

_V = field("v")
_TEXTS = {"a", "A", "abc", "a%c", "a_c", "empty text", "text 1", "text null", "e000", "emoji"}
_ARRAYS = {"[]", "[1, a, null]", "[1.0]", "[true]", "[[1]]"}
_OBJECTS = {"{}", "{x, y}", "{y, x}", "{x}"}
_WITHOUT = {"missing", "no object", "an array"}
_ALL = set(DOCUMENTS)


class Case(NamedTuple):
    """A filter, and the keys of the documents that it matches."""

    filter: Filter
    keys: set[str]

    def __repr__(self) -> str:
        return repr(self.filter)


_EQUAL: Final = (
    Case(_V == 1, {"1", "1.0"}),
    Case(_V == 1.0, {"1", "1.0"}),
    Case(_V == True, {"true"}),  # noqa: E712 - a comparison that makes a filter
    Case(_V == False, {"false"}),  # noqa: E712
    Case(_V == 0, {"0", "-0.0"}),
    Case(_V == -0.0, {"0", "-0.0"}),
    Case(_V.is_null(), {"null"}),
    Case(_V == None, {"null"}),  # noqa: E711
    Case(_V == "1", {"text 1"}),
    Case(_V == "null", {"text null"}),
    Case(_V == "", {"empty text"}),
    Case(_V == "a", {"a"}),
    Case(_V == BIG, {"big", "big float"}),
    Case(_V.eq(float(BIG)), {"big", "big float"}),
    Case(_V == BIG + 1, {"big + 1"}),
    Case(_V == [], {"[]"}),
    Case(_V == [1], {"[1.0]"}),
    Case(_V == [True], {"[true]"}),
    Case(_V == [1.0, "a", None], {"[1, a, null]"}),
    Case(_V == ["a", 1, None], set()),
    Case(_V == {}, {"{}"}),
    Case(_V == {"y": [2], "x": 1}, {"{x, y}", "{y, x}"}),
    Case(_V == {"x": 1}, set()),
    Case(_V == {"x": True}, {"{x}"}),
    Case(_V != 1, _ALL - {"1", "1.0"}),
    Case(_V != None, _ALL - {"null"}),  # noqa: E711
    Case(_V != [], _ALL - {"[]"}),
    Case(~(_V == 1), _ALL - {"1", "1.0"}),
    Case(~(_V != 1), {"1", "1.0"}),
)
_MEMBERS: Final = (
    Case(_V.is_in([]), set()),
    Case(_V.not_in([]), _ALL),
    Case(_V.is_in([1, "a", None]), {"1", "1.0", "a", "null"}),
    Case(_V.is_in([True, BIG + 1]), {"true", "big + 1"}),
    Case(_V.is_in([[1], {}, "1"]), {"[1.0]", "{}", "text 1"}),
    Case(_V.not_in([1, "a", None]), _ALL - {"1", "1.0", "a", "null"}),
    Case(~_V.is_in([1]), _ALL - {"1", "1.0"}),
    Case(_V.exists(), _ALL - _WITHOUT),
    Case(~_V.exists(), _WITHOUT),
)
_RANGES: Final = (
    Case(_V > 1, {"1.5", "big", "big float", "big + 1"}),
    Case(_V >= 1, {"1", "1.0", "1.5", "big", "big float", "big + 1"}),
    Case(_V < 1, {"0", "-0.0", "-2"}),
    Case(_V <= 1.0, {"0", "-0.0", "-2", "1", "1.0"}),
    Case(_V > BIG, {"big + 1"}),
    Case(_V.gt(float(BIG)), {"big + 1"}),
    Case(_V < BIG + 1, {"0", "-0.0", "1", "1.0", "1.5", "-2", "big", "big float"}),
    Case(_V < -0.0, {"-2"}),
    Case(_V > "a", {"abc", "a%c", "a_c", "text null", "e000", "emoji"}),
    Case(_V >= "a", {"a", "abc", "a%c", "a_c", "text null", "e000", "emoji"}),
    Case(_V < "a", {"A", "empty text", "text 1"}),
    Case(_V >= "", _TEXTS),
    Case(_V > "\uffff", {"emoji"}),
    Case(_V.between(1, 1.5), {"1", "1.0", "1.5"}),
    Case(_V.between("A", "a"), {"A", "a"}),
    Case(_V.between(2, 1), set()),
    Case(~(_V > 1), _ALL - {"1.5", "big", "big float", "big + 1"}),
)
_PARTS: Final = (
    Case(_V.contains("a"), {"a", "abc", "a%c", "a_c", "[1, a, null]"}),
    Case(_V.contains(""), _TEXTS),
    Case(_V.contains("%"), {"a%c"}),
    Case(_V.contains("_"), {"a_c"}),
    Case(_V.contains("A"), {"A"}),
    Case(_V.contains(1), {"[1, a, null]", "[1.0]"}),
    Case(_V.contains(True), {"[true]"}),
    Case(_V.contains(None), {"[1, a, null]"}),
    Case(_V.contains([1.0]), {"[[1]]"}),
    Case(_V.contains({}), set()),
    Case(~_V.contains("a"), _ALL - {"a", "abc", "a%c", "a_c", "[1, a, null]"}),
    Case(_V.startswith("a"), {"a", "abc", "a%c", "a_c"}),
    Case(_V.startswith("a%"), {"a%c"}),
    Case(_V.startswith("a_"), {"a_c"}),
    Case(_V.startswith(""), _TEXTS),
    Case(_V.startswith("\U0001f600"), {"emoji"}),
    Case(~_V.startswith(""), _ALL - _TEXTS),
    Case(_V.endswith("c"), {"abc", "a%c", "a_c"}),
    Case(_V.endswith("%c"), {"a%c"}),
    Case(_V.endswith("_c"), {"a_c"}),
    Case(_V.endswith(""), _TEXTS),
    Case(_V.endswith("xabc"), set()),
    Case(_V.endswith("\U0001f600"), {"emoji"}),
)
_GROUPS: Final = (
    Case(And(()), _ALL),
    Case(Or(()), set()),
    Case(~And(()), set()),
    Case(~Or(()), _ALL),
    Case((_V == 1) & (_V == 1.0), {"1", "1.0"}),
    Case((_V == 1) & (_V == 2), set()),
    Case((_V == 1) | (_V == "a") | ~_V.exists(), {"1", "1.0", "a", *_WITHOUT}),
    Case(~((_V == 1) | _V.exists()), _WITHOUT),
    Case(~((_V > 1) & (_V < 2)), _ALL - {"1.5"}),
    Case(match(v=1), {"1", "1.0"}),
    Case(match(), _ALL),
    Case(match(v=1, w=1), set()),
)
_PATHS: Final = (
    Case(field("v.x") == 1, {"{x, y}", "{y, x}"}),
    Case(field("v.y[0]") == 2, {"{x, y}", "{y, x}"}),
    Case(field("v[0]") == 1, {"[1, a, null]", "[1.0]"}),
    Case(field("v[2]").is_null(), {"[1, a, null]"}),
    Case(field("v[0][0]") == 1, {"[[1]]"}),
    Case(field('v."0"').exists(), set()),
    Case(path("v", "0").exists(), set()),
    Case(path(0, "v") == 1, {"an array"}),
    Case(field("[0].v") == 1, {"an array"}),
    Case(field("$value") == "v", {"no object"}),
    Case(field("$value").startswith("v"), {"no object"}),
    Case(field("$value").contains({"v": 1.0}), {"an array"}),
    Case(field("$value") == {"v": 1}, {"1", "1.0"}),
    Case(field("$value").exists(), _ALL),
    Case(field("$key") == "1", {"1"}),
    Case(field("$key").is_in(["1", "1.0", "x"]), {"1", "1.0"}),
    Case(field("$key").not_in([]), _ALL),
    Case(field("$key") != "1", _ALL - {"1"}),
    Case(field("$key").startswith("big"), {"big", "big float", "big + 1"}),
    Case(field("$key").endswith(" 1"), {"text 1", "big + 1"}),
    Case(field("$key").contains("x"), {"empty text", "text 1", "text null", "{x, y}", "{y, x}", "{x}"}),
    Case(field("$key") < "-2", {"-0.0"}),
    Case(field("$metadata.m").exists(), set()),
    Case(field("$expires_at").exists(), set()),
    Case(field("$version") > 0, _ALL),
    Case(field("$version") == 0.5, set()),
    Case(field("$version").not_in([0, 1.5]), _ALL),
    Case(field("$created_at") < 0, set()),
)
CASES: Final = (*_EQUAL, *_MEMBERS, *_RANGES, *_PARTS, *_GROUPS, *_PATHS)

# The documents by `v`, ascending. Those in one group stand at the same place, and go by their keys.
ORDER: Final[tuple[tuple[str, ...], ...]] = (
    ("null",),
    ("false",),
    ("true",),
    ("-2",),
    ("-0.0", "0"),
    ("1", "1.0"),
    ("1.5",),
    ("big", "big float"),
    ("big + 1",),
    ("empty text",),
    ("text 1",),
    ("A",),
    ("a",),
    ("a%c",),
    ("a_c",),
    ("abc",),
    ("text null",),
    ("e000",),
    ("emoji",),
    tuple(sorted(_ARRAYS | _OBJECTS)),
)
MISSING_LAST: Final = tuple(sorted(_WITHOUT))


def in_order(*, descending: bool = False) -> list[str]:
    """The keys of the documents sorted by `v`: missing last either way, ties by key in the same direction."""
    if descending:
        there = [key for group in reversed(ORDER) for key in reversed(group)]
        return [*there, *reversed(MISSING_LAST)]
    return [key for group in ORDER for key in group] + list(MISSING_LAST)
