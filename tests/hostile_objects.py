"""Objects that lie, raise and never end, for arguments where something else is expected.

Called by the tests on hostile input. What they raise themselves is a `MineError`, which is the
caller's own.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import itertools
import math
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, cast

from hypothesis import strategies as st

from mycelia_storage import Put, field
from mycelia_storage.testing.bad_values import BAD_VALUES

if TYPE_CHECKING:
    from collections.abc import Callable


class MineError(Exception):
    """What a hostile object raises."""


def _raise(*_: object, **__: object) -> NoReturn:
    raise MineError


class RaisesAtAll:
    """Every question to it raises."""

    __eq__ = __ne__ = __lt__ = __gt__ = __bool__ = __len__ = __iter__ = __call__ = _raise
    __getitem__ = __contains__ = __index__ = __int__ = __float__ = __fspath__ = __add__ = _raise
    __hash__ = _raise
    __str__ = __repr__ = __format__ = _raise

    def __getattr__(self, name: str) -> Any:
        raise MineError


class RaisingText(str):
    """A str whose comparisons raise, and whose texts too."""

    __slots__ = ()
    __eq__ = __ne__ = __lt__ = __contains__ = __len__ = __iter__ = startswith = encode = _raise
    __hash__ = _raise
    __str__ = __repr__ = _raise


class LyingText(str):
    """A str that looks like another one."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash("k")

    def __str__(self) -> str:
        return "k"

    def isascii(self) -> bool:
        return True

    def __len__(self) -> int:
        return 1


class RaisingNumber(int):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __int__ = __index__ = __float__ = __add__ = _raise
    __hash__ = _raise
    __repr__ = __str__ = _raise


class LyingNumber(int):
    """It is less and greater than everything."""

    def __lt__(self, other: object) -> bool:
        return True

    __le__ = __gt__ = __ge__ = __lt__


class RaisingFloat(float):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __mul__ = __rmul__ = __float__ = __round__ = _raise
    __hash__ = _raise


class RaisingDict(dict[Any, Any]):
    __iter__ = __getitem__ = __len__ = keys = items = get = __contains__ = _raise


class RaisingList(list[Any]):
    __iter__ = __getitem__ = __len__ = _raise


class LyingMapping(Mapping[Any, Any]):
    """It has other items each time, and another length than that."""

    def __init__(self) -> None:
        self._calls = itertools.count()

    def __getitem__(self, key: object) -> Any:
        return next(self._calls)

    def __iter__(self) -> Iterator[Any]:
        return iter([f"k{next(self._calls)}", "filters", 5])

    def __len__(self) -> int:
        return 0


class LyingClass:
    """It says that it is a str."""

    def __getattr__(self, name: str) -> Any:
        raise MineError

    @property
    def __class__(self) -> type:
        return str

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise MineError


class RaisingPath:
    def __fspath__(self) -> str:
        raise MineError


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"bytes.db"


class Colour(enum.Enum):
    RED = "red"


class Text(enum.StrEnum):
    KEY = "k"


def raising_iterator() -> Iterator[Any]:
    yield "k", 1
    raise MineError


def _cyclic() -> list[Any]:
    loop: list[Any] = [1]
    loop.append({"loop": loop})
    return loop


def _deep_filter() -> dict[str, Any]:
    made: dict[str, Any] = {"field": "n", "operator": "eq", "value": 1}
    for _ in range(100_000):
        made = {"not": made}
    return made


def _cyclic_filter() -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["and"] = [made]
    return made


MAKERS: list[Callable[[], Any]] = [
    lambda: None,
    lambda: True,
    lambda: 0,
    lambda: -1,
    lambda: 1,
    lambda: 2**31,
    lambda: 2**63,
    lambda: -(2**63) - 1,
    lambda: 10**400,
    lambda: 10**5000,
    lambda: -(10**5000),
    lambda: {10**5000: 1},
    lambda: [{"key": [10**5000], "value": 1}],
    lambda: [{"key": "k", "value": 1, 10**5000: 1}],
    lambda: 0.5,
    lambda: math.nan,
    lambda: math.inf,
    lambda: -0.0,
    lambda: 1e308,
    lambda: "",
    lambda: "k",
    lambda: "\0",
    lambda: "a\0b",
    lambda: "\ud800",
    lambda: "x" * 3_000_000,
    lambda: "\u20ac" * 1000,
    lambda: "*" * 5000,
    lambda: "-",
    lambda: "$",
    lambda: '"',
    lambda: "a[99999999999]",
    lambda: ".".join("a" * 5000),
    lambda: b"bytes",
    lambda: bytearray(b"a"),
    lambda: (),
    list,
    dict,
    lambda: set[int](),
    lambda: [1, "a", None],
    lambda: ["k", ["k"]],
    lambda: [("k", 1), ("k", 2)],
    lambda: {"k": 1},
    lambda: {1: 2},
    lambda: {"k": {"k": [1, 2, {"k": None}]}},
    lambda: [Put("k", 1, metadata={"a": object()})],
    lambda: [Put("k", 1, ttl=cast("Any", "soon"))],
    lambda: [Put(cast("Any", 5), 1)],
    lambda: {"field": "n", "operator": "eq", "value": 1},
    lambda: {"field": "n", "operator": "regex", "value": "(a+)+$"},
    lambda: [{"field": "n", "operator": "eq", "value": 1}] * 20_000,
    lambda: {"field": "n", "operator": "in", "value": list(range(100_000))},
    _deep_filter,
    _cyclic_filter,
    _cyclic,
    lambda: field("n"),
    lambda: field("n") > 1,
    lambda: dt.datetime(1, 1, 1, tzinfo=dt.UTC),
    lambda: dt.datetime(9999, 12, 31, tzinfo=dt.timezone(dt.timedelta(hours=-23))),
    lambda: dt.timedelta.max,
    lambda: dt.timedelta.min,
    lambda: decimal.Decimal("NaN"),
    lambda: uuid.UUID(int=0),
    lambda: 1j,
    lambda: Colour.RED,
    lambda: Text.KEY,
    lambda: object(),
    lambda: int,
    lambda: len,
    lambda: lambda *_: None,
    lambda: lambda *_: object(),
    _raise,
    lambda: iter([("k", 1)]),
    raising_iterator,
    lambda: memoryview(b"a"),
    RaisesAtAll,
    lambda: RaisingText("k"),
    lambda: LyingText("other"),
    lambda: LyingText(""),
    lambda: RaisingNumber(1),
    lambda: LyingNumber(-5),
    lambda: RaisingFloat(1),
    lambda: RaisingDict(k=1),
    lambda: RaisingList([1]),
    LyingMapping,
    LyingClass,
    RaisingPath,
    BytesPath,
    *(bad.make for bad in BAD_VALUES),
]


def _make(maker: Callable[[], Any]) -> Any:
    try:
        return maker()
    except MineError:
        return _raise


# Made anew for each use: some of them are used up, or are another thing the second time.
makers = st.sampled_from(MAKERS)


@st.composite
def objects(draw: st.DrawFn) -> Callable[[], Any]:
    """A function that makes the same hostile object each time; now and then inside a list, a dict or a pair."""
    maker = draw(makers)
    around = draw(st.sampled_from(("", "", "", "", "list", "dict", "pair", "key")))

    def make() -> Any:
        made = _make(maker)
        if around == "list":
            return [made]
        if around == "dict":
            return {"k": made}
        if around == "pair":
            return [("k", made), (made, 1)]
        if around == "key":
            try:
                return {made: 1}
            except (TypeError, ValueError, MineError):
                return [made]
        return made

    return make
