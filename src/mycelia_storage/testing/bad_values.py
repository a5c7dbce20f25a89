"""Everything that looks like a JSON value and is none, each with the place where the library must find it.

Called by the contract suite, and by tests that hide these inside random documents.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import math
import pathlib
import types
import uuid
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable


_MINUS_INF: Final = -math.inf


class BadValue(NamedTuple):
    """A value that no store may take.

    `path` is what the library has to add to the path of the value itself: empty where the value as a whole is bad.
    """

    name: str
    make: Callable[[], object]
    path: str = ""


class _Colour(enum.Enum):
    RED = "red"


class _Text(enum.StrEnum):
    A = "a"


class _Number(enum.IntEnum):
    ONE = 1


class _Int(int):
    pass


class _Float(float):
    pass


class _Str(str):
    __slots__ = ()


class _List(list[Any]):
    pass


class _Dict(dict[str, Any]):
    pass


class _Pair(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class _Point:
    x: int = 1


def _itself_in_a_list() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


def _itself_in_a_dict() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["me"] = loop
    return loop


def nested_lists(depth: int) -> list[Any]:
    """`[[[…]]]`: so many lists in each other."""
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def nested_dicts(depth: int) -> dict[str, Any]:
    """`{"a": {"a": …}}`: so many dicts in each other."""
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


NUMBERS: Final = (
    BadValue("nan", lambda: float("nan")),
    BadValue("inf", lambda: float("inf")),
    BadValue("minus_inf", lambda: float("-inf")),
    # Objects that others hold too: an encoder's shortcuts may see them in another form.
    BadValue("shared_nan", lambda: math.nan),
    BadValue("shared_inf", lambda: math.inf),
    BadValue("shared_minus_inf", lambda: _MINUS_INF),
    BadValue("two_to_63", lambda: 2**63),
    BadValue("below_minus_two_to_63", lambda: -(2**63) - 1),
    BadValue("two_to_64", lambda: 2**64),
    BadValue("hundred_digits", lambda: 10**100),
    BadValue("complex", lambda: 1j),
    BadValue("decimal", lambda: decimal.Decimal("1.5")),
    BadValue("fraction", lambda: fractions.Fraction(1, 2)),
    BadValue("int_subclass", lambda: _Int(1)),
    BadValue("float_subclass", lambda: _Float(1.5)),
    BadValue("int_enum", lambda: _Number.ONE),
)
TEXTS: Final = (
    BadValue("high_surrogate", lambda: "a\ud800b"),
    BadValue("low_surrogate", lambda: "\udfff"),
    BadValue("surrogate_pair_apart", lambda: "\ud83d\ude00"),
    BadValue("nul", lambda: "\x00"),
    BadValue("nul_inside", lambda: "a\x00b"),
    BadValue("str_subclass", lambda: _Str("a")),
    BadValue("str_enum", lambda: _Text.A),
    BadValue("bytes", lambda: b"a"),
    BadValue("bytearray", lambda: bytearray(b"a")),
)
KEYS: Final = (
    BadValue("int_key", lambda: {1: "a"}),
    BadValue("none_key", lambda: {None: "a"}),
    BadValue("bool_key", lambda: {True: "a"}),
    BadValue("bytes_key", lambda: {b"a": "a"}),
    BadValue("tuple_key", lambda: {("a", "b"): "a"}),
    BadValue("str_subclass_key", lambda: {_Str("a"): "a"}),
    BadValue("enum_key", lambda: {_Text.A: "a"}),
    BadValue("uuid_key", lambda: {uuid.UUID(int=1): "a"}),
    BadValue("surrogate_in_key", lambda: {"a\ud800": "a"}),
    BadValue("nul_in_key", lambda: {"\x00": "a"}),
    BadValue("second_key", lambda: {"a": 1, 2: "b"}),
)
OTHERS: Final = (
    BadValue("datetime", lambda: dt.datetime(2024, 1, 1, tzinfo=dt.UTC)),
    BadValue("naive_datetime", lambda: dt.datetime(2024, 1, 1)),  # noqa: DTZ001 - naive is the case
    BadValue("date", lambda: dt.date(2024, 1, 1)),
    BadValue("time", lambda: dt.time(12, 0)),
    BadValue("timedelta", lambda: dt.timedelta(seconds=1)),
    BadValue("uuid", lambda: uuid.UUID(int=1)),
    BadValue("enum", lambda: _Colour.RED),
    BadValue("path", lambda: pathlib.PurePosixPath("a")),
    BadValue("fragment", lambda: orjson.Fragment(b'{"a":1}')),
    BadValue("object", object),
    BadValue("class", lambda: int),
    BadValue("function", lambda: nested_lists),
    BadValue("ellipsis", lambda: ...),
)
CONTAINERS: Final = (
    BadValue("set", lambda: {1}),
    BadValue("frozenset", lambda: frozenset((1,))),
    BadValue("dataclass", _Point),
    BadValue("named_tuple", lambda: _Pair(1, 2)),
    BadValue("list_subclass", lambda: _List([1])),
    BadValue("dict_subclass", lambda: _Dict(a=1)),
    BadValue("counter", lambda: collections.Counter("a")),
    BadValue("ordered_dict", lambda: collections.OrderedDict[str, int](a=1)),
    BadValue("default_dict", lambda: collections.defaultdict(int, a=1)),
    BadValue("deque", lambda: collections.deque([1])),
    BadValue("mapping_proxy", lambda: types.MappingProxyType({"a": 1})),
    BadValue("dict_keys", {"a": 1}.keys),
    BadValue("range", lambda: range(3)),
    BadValue("generator", lambda: (n for n in range(3))),
    BadValue("array", lambda: array.array("d", [1.0])),
    BadValue("memoryview", lambda: memoryview(b"a")),
    BadValue("memoryview_of_floats", lambda: memoryview(array.array("d", [1.0]))),
)
# Where exactly such a value becomes bad is a matter of taste: its path only has to begin right.
ENDLESS: Final = (
    BadValue("list_in_itself", _itself_in_a_list),
    BadValue("dict_in_itself", _itself_in_a_dict),
    BadValue("lists_201_deep", lambda: nested_lists(201)),
    BadValue("dicts_201_deep", lambda: nested_dicts(201)),
    BadValue("lists_100000_deep", lambda: nested_lists(100_000)),
)
INSIDE: Final = (
    BadValue("bad_in_list", lambda: [0, 1, 2, {1}], "[3]"),
    BadValue("bad_in_tuple", lambda: (0, (1, 1j)), "[1][1]"),
    BadValue("bad_in_dict", lambda: {"a": {"b": [0, 1, 2, float("nan")]}}, ".a.b[3]"),
    BadValue("first_of_two", lambda: {"a": 1, "b": [float("inf")], "c": {1}}, ".b[0]"),
)
PRECISE: Final = NUMBERS + TEXTS + KEYS + OTHERS + CONTAINERS + INSIDE
BAD_VALUES: Final = PRECISE + ENDLESS
