"""Filters, fields and sorts as immutable values.

Made by users through `field`, `path` and `match`, and by `query.py` from every other form. What a filter means stands
in `matching.py`; how an engine evaluates it, in the engine.

Every form comes down to a tree of four kinds: `Comparison`, `And`, `Or`, `Not`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, NoReturn, cast, final

import orjson

from mycelia_storage.codec import encode, show_path
from mycelia_storage.entries import EPOCH
from mycelia_storage.errors import InvalidFilterError, InvalidValueError

if TYPE_CHECKING:
    from mycelia_storage.paths import Segments

MAX_OPERAND_BYTES: Final = 16 * 1024 * 1024
MAX_DEPTH: Final = 100
MAX_LEAVES: Final = 1000
MAX_OPERANDS: Final = 30_000
MAX_PARTS: Final = 10_000
# Of all its names and indexes, with a dot between two of them.
MAX_PATH_BYTES: Final = 1024

DOCUMENT: Final = "$value"
METADATA: Final = "$metadata"
TIMES: Final = ("$created_at", "$updated_at", "$expires_at")
COLUMNS: Final = ("$key", "$version", *TIMES)

# By every name that is accepted, the one that is printed.
OPERATORS: Final[dict[str, str]] = {
    **{name: name for name in ("eq", "ne", "gt", "gte", "lt", "lte", "contains", "in", "nin", "exists")},
    "startsWith": "startsWith",
    "starts_with": "startsWith",
    "endsWith": "endsWith",
    "ends_with": "endsWith",
}
ORDERING: Final = ("gt", "gte", "lt", "lte")
IN_TEXT: Final = ("contains", "startsWith", "endsWith")


class Path(NamedTuple):
    """A place in an entry: a special name, and segments below it. A document's own fields lie below "$value"."""

    root: str
    segments: Segments

    def __str__(self) -> str:
        """The one canonical form."""
        below = show_path(self.segments, in_full=True)
        if self.root != DOCUMENT:
            return self.root + below
        return below[1:] if below.startswith(".") else below or DOCUMENT


class Immutable:
    """Its attributes are set while it is made, and never again."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} cannot be changed")


class Size(NamedTuple):
    """How large a filter is, kept with each part, so that none that is too large is ever made."""

    depth: int
    leaves: int
    operands: int
    parts: int


class Filter(Immutable):
    """A condition on entries. Combine filters with `&`, `|` and `~`, in parentheses."""

    __slots__ = ()

    size: Size

    def __and__(self, other: object) -> Filter:
        return And((*_parts(self, And), *_parts(_operand(other, "&"), And)))

    def __or__(self, other: object) -> Filter:
        return Or((*_parts(self, Or), *_parts(_operand(other, "|"), Or)))

    # The other side is no filter, or its own method would have been asked.
    def __rand__(self, other: object) -> NoReturn:
        _refuse_operand(other, "&")

    def __ror__(self, other: object) -> NoReturn:
        _refuse_operand(other, "|")

    def __invert__(self) -> Filter:
        return Not(self)

    def __bool__(self) -> NoReturn:
        raise InvalidFilterError(
            "a filter has no truth value: write & for and, | for or, ~ for not, each side in parentheses, "
            "and .between(a, b) for a <= field <= b"
        )

    def to_dict(self) -> dict[str, Any]:
        """The dictionary form, of plain JSON values."""
        raise NotImplementedError


@final
class Comparison(Filter):
    """One operator on one field. The operand is kept as JSON text: nobody can change it, and it is hashable."""

    __slots__ = ("operand_text", "operator", "path", "size")

    path: Path
    operator: str
    operand_text: str

    def __init__(self, path: Path, operator: str, operand: object) -> None:
        """Users write `field("a") == 1`. Raises InvalidFilterError for an operand that the operator cannot take."""
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "operator", operator)
        object.__setattr__(self, "operand_text", _checked_operand(path, operator, operand))
        count = len(cast("Sequence[object]", operand)) if operator in ("in", "nin") else 1
        object.__setattr__(self, "size", _checked_size(Size(1, 1, count, 1)))

    @property
    def operand(self) -> Any:
        """The operand; a new copy each time."""
        return orjson.loads(self.operand_text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Comparison) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Path, str, str]:
        return self.path, self.operator, self.operand_text

    def __reduce__(self) -> tuple[Any, ...]:
        return Comparison, (self.path, self.operator, self.operand)

    def __repr__(self) -> str:
        operand = "" if self.operator == "exists" else repr(self.operand)
        return f"{Field(self.path)!r}.{_METHODS[self.operator]}({operand})"

    def to_dict(self) -> dict[str, Any]:
        """The dictionary form."""
        return {"field": str(self.path), "operator": self.operator, "value": self.operand}


class _Group(Filter):
    """Filters that are combined."""

    __slots__ = ("filters", "size")

    filters: tuple[Filter, ...]
    word = ""
    _sign = ""

    def __init__(self, filters: Iterable[Filter]) -> None:
        parts = tuple(filters)
        object.__setattr__(self, "filters", parts)
        object.__setattr__(self, "size", _sum(parts))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.filters == other.filters

    def __hash__(self) -> int:
        return hash((self.word, self.filters))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.filters,)

    def __repr__(self) -> str:
        if not self.filters:
            return f"{type(self).__name__}(())"
        return "(" + f" {self._sign} ".join(map(repr, self.filters)) + ")"

    def to_dict(self) -> dict[str, Any]:
        """The dictionary form."""
        return {self.word: [part.to_dict() for part in self.filters]}


@final
class And(_Group):
    """All of them; of none: everything."""

    __slots__ = ()
    word = "and"
    _sign = "&"


@final
class Or(_Group):
    """Any of them; of none: nothing."""

    __slots__ = ()
    word = "or"
    _sign = "|"


@final
class Not(Filter):
    """The exact opposite."""

    __slots__ = ("filter", "size")

    filter: Filter

    def __init__(self, filter: Filter) -> None:
        object.__setattr__(self, "filter", filter)
        object.__setattr__(self, "size", _sum((filter,)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Not) and self.filter == other.filter

    def __hash__(self) -> int:
        return hash(("not", self.filter))

    def __reduce__(self) -> tuple[Any, ...]:
        return Not, (self.filter,)

    def __repr__(self) -> str:
        return f"~{self.filter!r}"

    def to_dict(self) -> dict[str, Any]:
        """The dictionary form."""
        return {"not": self.filter.to_dict()}


class SortKey(NamedTuple):
    """One field to sort by, and its direction."""

    path: Path
    descending: bool = False

    def __str__(self) -> str:
        """As `sort=` takes it."""
        return f"{'-' if self.descending else ''}{self.path}"


@final
class Field(Immutable):
    """A place in entries to compare, sort or index by; made by `field` and `path`.

    `== != > >= < <=` and the methods make filters. `eq` compares type and value exactly: 1 equals 1.0, True is no
    number, None equals only a null that is there. Since `==` does not say whether two fields are the same, a field
    cannot stand in a set or be the key of a dict; `str(field)` can.
    """

    __slots__ = ("path",)

    path: Path

    def __init__(self, path: Path) -> None:
        """Users call `field` or `path`."""
        object.__setattr__(self, "path", path)

    def __repr__(self) -> str:
        return f"field({str(self.path)!r})"

    def __str__(self) -> str:
        return str(self.path)

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Field, (self.path,)

    def __contains__(self, value: object) -> NoReturn:
        raise InvalidFilterError(f"'in' cannot make a filter: write {self!r}.contains(…) or {self!r}.is_in([…])")

    def __iter__(self) -> NoReturn:
        raise InvalidFilterError(f"a field has no items to iterate over: write {self!r}.contains(…)")

    def __bool__(self) -> NoReturn:
        raise InvalidFilterError(f"a field has no truth value: write {self!r} == True or {self!r}.exists()")

    # `field("a") == 1 & field("b") == 2` is, to Python, a comparison with `1 & field("b")`.
    def __and__(self, other: object) -> NoReturn:
        _refuse_operand(self, "&")

    def __rand__(self, other: object) -> NoReturn:
        _refuse_operand(self, "&")

    def __or__(self, other: object) -> NoReturn:
        _refuse_operand(self, "|")

    def __ror__(self, other: object) -> NoReturn:
        _refuse_operand(self, "|")

    def __invert__(self) -> NoReturn:
        raise InvalidFilterError("~ needs a filter, not a field: put the comparison in parentheses, ~(field('a') == 1)")

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]
        return self.eq(value)

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]
        return self.ne(value)

    def __gt__(self, value: object) -> Filter:
        return self.gt(value)

    def __ge__(self, value: object) -> Filter:
        return self.gte(value)

    def __lt__(self, value: object) -> Filter:
        return self.lt(value)

    def __le__(self, value: object) -> Filter:
        return self.lte(value)

    def eq(self, value: object) -> Filter:
        """The same JSON type and the same value; arrays and objects deeply, whatever the order of members."""
        return Comparison(self.path, "eq", value)

    def ne(self, value: object) -> Filter:
        """Not `eq`, so it matches a missing field."""
        return Comparison(self.path, "ne", value)

    def gt(self, value: object) -> Filter:
        """A number greater than a number, or a string behind a string; any other pair does not match."""
        return Comparison(self.path, "gt", value)

    def gte(self, value: object) -> Filter:
        """`gt` or equal."""
        return Comparison(self.path, "gte", value)

    def lt(self, value: object) -> Filter:
        """A number less than a number, or a string before a string."""
        return Comparison(self.path, "lt", value)

    def lte(self, value: object) -> Filter:
        """`lt` or equal."""
        return Comparison(self.path, "lte", value)

    def between(self, low: object, high: object) -> Filter:
        """From `low` to `high`, both included: two numbers, or two strings; nothing where `low` is the greater one."""
        ends = And((self.gte(low), self.lte(high)))
        if isinstance(low, str) is not isinstance(high, str):
            raise InvalidFilterError(f"{self.path} between: nothing lies between a number and a string")
        return ends

    def contains(self, value: object) -> Filter:
        """A string with this text in it, or an array with an element `eq` to this value."""
        return Comparison(self.path, "contains", value)

    def startswith(self, prefix: str) -> Filter:
        """A string with this beginning."""
        return Comparison(self.path, "startsWith", prefix)

    def endswith(self, suffix: str) -> Filter:
        """A string with this end."""
        return Comparison(self.path, "endsWith", suffix)

    def is_in(self, values: Iterable[object]) -> Filter:
        """`eq` to any of these."""
        return Comparison(self.path, "in", _listed(self.path, "in", values))

    def not_in(self, values: Iterable[object]) -> Filter:
        """`eq` to none of these, so it matches a missing field."""
        return Comparison(self.path, "nin", _listed(self.path, "nin", values))

    def exists(self) -> Filter:
        """There, even if it is null."""
        return Comparison(self.path, "exists", True)

    def is_null(self) -> Filter:
        """There, and null."""
        return Comparison(self.path, "eq", None)

    def asc(self) -> SortKey:
        """For `sort=`: ascending."""
        return SortKey(self.path)

    def desc(self) -> SortKey:
        """For `sort=` and `create_index`: descending."""
        return SortKey(self.path, descending=True)


_METHODS: Final = {name: name for name in OPERATORS.values()} | {
    "startsWith": "startswith",
    "endsWith": "endswith",
    "in": "is_in",
    "nin": "not_in",
}


def narrowed(given: Filter, *conditions: Comparison) -> Filter:
    """A filter and conditions of our own beside it, which do not count against its limits."""
    made = And(())
    object.__setattr__(made, "filters", (*conditions, given))
    object.__setattr__(made, "size", given.size)
    return made


def _sum(parts: tuple[Filter, ...]) -> Size:
    return _checked_size(
        Size(
            1 + max((part.size.depth for part in parts), default=0),
            sum(part.size.leaves for part in parts),
            sum(part.size.operands for part in parts),
            1 + sum(part.size.parts for part in parts),
        )
    )


def _checked_size(size: Size) -> Size:
    for name, found, most in (
        ("levels of nesting", size.depth, MAX_DEPTH),
        ("comparisons", size.leaves, MAX_LEAVES),
        ("operands", size.operands, MAX_OPERANDS),
        ("parts", size.parts, MAX_PARTS),
    ):
        if found > most:
            raise InvalidFilterError(f"more than {most:,} {name} in one filter")
    return size


def _parts(given: Filter, kind: type[_Group]) -> tuple[Filter, ...]:
    """`a & b & c` makes one group, not a tree that grows deeper with each step."""
    return given.filters if isinstance(given, kind) and given.filters else (given,)


def _operand(other: object, sign: str) -> Filter:
    if not isinstance(other, Filter):
        _refuse_operand(other, sign)
    return other


def _refuse_operand(other: object, sign: str) -> NoReturn:
    raise InvalidFilterError(
        f"{sign} needs a filter on both sides, not {type(other).__name__}: put comparisons in parentheses, "
        f"(field('a') == 1) {sign} (field('b') == 2)"
    )


def _listed(path: Path, operator: str, values: Iterable[object]) -> list[object]:
    if isinstance(values, str | bytes | Mapping | Field) or not isinstance(values, Iterable):
        raise InvalidFilterError(f"{path} {operator}: a list of values is needed, not {type(values).__name__}")
    return list(values)


def _checked_operand(path: Path, operator: str, operand: object) -> str:
    """The operand as JSON text."""
    if isinstance(operand, Field):
        raise InvalidFilterError(f"{path} {operator}: a value is needed; a field is not compared with another one")
    if path.root in COLUMNS and operator != "exists":
        operand = _operand_of_column(path, operator, operand)
    if operator in ORDERING and (isinstance(operand, bool) or not isinstance(operand, int | float | str)):
        raise InvalidFilterError(f"{path} {operator}: a number or a string is needed, not {_kind(operand)}")
    if operator in ("startsWith", "endsWith") and not isinstance(operand, str):
        raise InvalidFilterError(f"{path} {operator}: a string is needed, not {_kind(operand)}")
    if operator in ("in", "nin") and not isinstance(operand, list | tuple):
        raise InvalidFilterError(f"{path} {operator}: a list is needed, not {_kind(operand)}")
    if operator == "exists" and operand is not True:
        raise InvalidFilterError(f"{path} exists: True or False is needed, not {_kind(operand)}")
    try:
        return encode(operand, MAX_OPERAND_BYTES)
    except InvalidValueError as error:
        raise InvalidFilterError(f"{path} {operator}: {error}") from None


def _operand_of_column(path: Path, operator: str, operand: object) -> object:
    """The operand for a field that is always of one type: `$key` is a string, the others are numbers.

    One of another type could only find nothing, or everything.
    """
    where = f"{path} {operator}"
    if operator in IN_TEXT and path.root != "$key":
        raise InvalidFilterError(f"{where}: {path} is a number, which has no text in it")
    if operator in ("in", "nin") and isinstance(operand, list | tuple):
        return [_fitting(path, part, f"{where}: $[{index}]") for index, part in enumerate(operand)]
    return operand if operator in ("in", "nin") else _fitting(path, operand, where)


def _fitting(path: Path, value: object, where: str) -> object:
    if path.root == "$key":
        fits, needed = isinstance(value, str), "a string"
    else:
        value = _time(value, where) if path.root in TIMES else value
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        needed = "a datetime or milliseconds since 1970" if path.root in TIMES else "a number"
    if not fits:
        hint = "; exists() asks whether it is there" if value is None else ""
        raise InvalidFilterError(f"{where}: {needed} is needed, not {_kind(value)}{hint}")
    return value


def _time(value: object, where: str) -> object:
    """A datetime as the milliseconds that are stored; everything else as it is."""
    if not isinstance(value, datetime):
        return value
    if value.tzinfo is None:
        raise InvalidFilterError(f"{where}: a datetime without a time zone: add one, such as tzinfo=timezone.utc")
    microseconds = (value - EPOCH) // timedelta(microseconds=1)
    return microseconds // 1000 if microseconds % 1000 == 0 else microseconds / 1000


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
