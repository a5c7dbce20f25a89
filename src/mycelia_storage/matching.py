"""What a filter means and what order a sort gives: the reference that every engine is compared with.

Called by the memory engine and by `StorageQuery.matches`. Plain Python, to be read and believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from mycelia_storage.arguments import MISSING
from mycelia_storage.codec import check, encode_object
from mycelia_storage.errors import InvalidFilterError
from mycelia_storage.filters import DOCUMENT, METADATA, And, Comparison, Filter, Not, Or, Path, SortKey

_UNLIMITED: Final = 2**63


class Candidate(NamedTuple):
    """An entry as a filter sees it. Fields that a filter does not look at may be anything."""

    key: str
    value: Any
    metadata: Any
    version: int
    created_at: int
    updated_at: int
    expires_at: int | None


Test: TypeAlias = Callable[[Candidate], bool]
# The place of a field in the order: whether it is missing, the rank of its type, the value among those of its rank.
Place: TypeAlias = tuple[int, int, Any]
# The place of an entry: one for each field of the sort, then the key.
Position: TypeAlias = tuple[tuple[Place, ...], str]


# ---- looking


def lookup(path: Path, entry: Candidate) -> Any:
    """What stands at a path, MISSING where nothing does. A str enters objects only, an int arrays only."""
    if path.root not in (DOCUMENT, METADATA):
        found = getattr(entry, path.root[1:])
        return MISSING if found is None else found
    found = entry.value if path.root == DOCUMENT else entry.metadata
    for segment in path.segments:
        if isinstance(segment, str):
            if type(found) is not dict or segment not in found:
                return MISSING
            found = found[segment]
        else:
            if type(found) is not list or segment >= len(found):
                return MISSING
            found = found[segment]
    return found


def rank(value: Any) -> int:
    """The place of a value's type in the order: null, false, true, numbers, strings, arrays and objects."""
    if value is None:
        return 1
    if value is False:
        return 2
    if value is True:
        return 3
    if isinstance(value, int | float):
        return 4
    return 5 if isinstance(value, str) else 6


# ---- comparing


def equal(one: Any, other: Any) -> bool:
    """The same JSON type and value: 1 equals 1.0 but not True; arrays and objects deeply, members in any order."""
    if rank(one) != rank(other) or isinstance(one, list) != isinstance(other, list):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[name]) for name, value in one.items())
    return bool(one == other)  # Python compares an int with a float exactly, and strings by code point


def _comparable(one: Any, other: Any) -> bool:
    return rank(one) == rank(other) and rank(one) in (4, 5)


def _contains(value: Any, operand: Any) -> bool:
    if isinstance(value, str):
        return isinstance(operand, str) and operand in value
    return isinstance(value, list) and any(equal(element, operand) for element in value)


# What each operator says of a value that is there.
_OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "eq": equal,
    "gt": lambda value, operand: _comparable(value, operand) and value > operand,
    "gte": lambda value, operand: _comparable(value, operand) and value >= operand,
    "lt": lambda value, operand: _comparable(value, operand) and value < operand,
    "lte": lambda value, operand: _comparable(value, operand) and value <= operand,
    "contains": _contains,
    "startsWith": lambda value, operand: isinstance(value, str) and value.startswith(operand),
    "endsWith": lambda value, operand: isinstance(value, str) and value.endswith(operand),
    "in": lambda value, operand: any(equal(value, one) for one in operand),
    "exists": lambda _, __: True,
}
_OPPOSITES: Final = {"ne": "eq", "nin": "in"}


def compile_filter(given: Filter) -> Test:
    """A function that tells whether an entry meets a filter."""
    if isinstance(given, And):
        tests = [compile_filter(part) for part in given.filters]
        return lambda entry: all(test(entry) for test in tests)
    if isinstance(given, Or):
        tests = [compile_filter(part) for part in given.filters]
        return lambda entry: any(test(entry) for test in tests)
    if isinstance(given, Not):
        opposite = compile_filter(given.filter)
        return lambda entry: not opposite(entry)
    if isinstance(given, Comparison):
        return _compile_comparison(given)
    raise InvalidFilterError(f"{type(given).__name__} is no kind of filter")


def _compile_comparison(given: Comparison) -> Test:
    path, operand = given.path, given.operand
    if given.operator in _OPPOSITES:
        test = _OPERATORS[_OPPOSITES[given.operator]]
        # The exact negation: a missing field is not equal to anything.
        return lambda entry: (value := lookup(path, entry)) is MISSING or not test(value, operand)
    test = _OPERATORS[given.operator]
    return lambda entry: (value := lookup(path, entry)) is not MISSING and test(value, operand)


def answer_to_all(given: Filter) -> bool | None:
    """What a filter says of every entry alike, whatever its comparisons find; None where it depends on them."""
    if isinstance(given, Not):
        answer = answer_to_all(given.filter)
        return None if answer is None else not answer
    if not isinstance(given, And | Or):
        return None
    answers = [answer_to_all(part) for part in given.filters]
    settles = isinstance(given, Or)  # the answer of one part that is that of the group
    if settles in answers:
        return settles
    return None if None in answers else not settles


def matches_value(given: Filter, value: object, metadata: Mapping[str, object] | None) -> bool:
    """Whether a value with this metadata meets a filter; nothing else of an entry is known, so it is missing."""
    check(value)
    if metadata is not None:
        encode_object(metadata, _UNLIMITED, what="metadata")
    unknown: Any = None
    entry = Candidate(unknown, _plain(value), _plain(dict(metadata or {})), unknown, unknown, unknown, None)
    return compile_filter(given)(entry)


def _plain(value: Any) -> Any:
    """Tuples as the lists that they become."""
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return {name: _plain(part) for name, part in value.items()} if isinstance(value, dict) else value


# ---- ordering


def place(path: Path, entry: Candidate) -> Place:
    """Where an entry stands by one field. Arrays and objects are equal among themselves."""
    value = lookup(path, entry)
    if value is MISSING:
        return 1, 0, 0
    kind = rank(value)
    return 0, kind, value if kind in (4, 5) else 0


def position(sort: tuple[SortKey, ...], entry: Candidate) -> Position:
    """Where an entry stands by all fields of a sort and its key."""
    return tuple(place(key.path, entry) for key in sort), entry.key


def is_behind(sort: tuple[SortKey, ...], one: Position, other: Position) -> bool:
    """Whether `one` comes after `other`: missing last in either direction, ties by key in the last direction."""
    for key, mine, others in zip(sort, one[0], other[0], strict=True):
        if mine[0] != others[0]:
            return mine[0] > others[0]
        if mine != others:
            return (mine > others) != key.descending
    return (one[1] > other[1]) != _keys_descend(sort) and one[1] != other[1]


def in_order(sort: tuple[SortKey, ...], found: list[tuple[Position, Any]]) -> list[Any]:
    """What was found, in order: sorted by the key, then by each field from the last to the first, each sort stable."""
    found = sorted(found, key=lambda item: item[0][1], reverse=_keys_descend(sort))
    for index in reversed(range(len(sort))):
        there = [item for item in found if not item[0][0][index][0]]
        missing = [item for item in found if item[0][0][index][0]]
        there.sort(key=lambda item: item[0][0][index], reverse=sort[index].descending)
        found = there + missing
    return [item for _, item in found]


def _keys_descend(sort: tuple[SortKey, ...]) -> bool:
    return bool(sort) and sort[-1].descending
