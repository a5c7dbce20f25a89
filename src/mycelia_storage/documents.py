"""Changes inside a document: JSON Merge Patch, and adding to a number.

Called by `merge` and `increment`. Plain JSON values in, plain JSON values out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

from mycelia_storage.arguments import MISSING, shown
from mycelia_storage.codec import MAX_DEPTH, MAX_INT, MIN_INT, show_path
from mycelia_storage.errors import InvalidValueError
from mycelia_storage.paths import Segments, parse_path

if TYPE_CHECKING:
    from collections.abc import Callable

Number: TypeAlias = int | float


def merge_patch(target: Any, patch: Any) -> Any:
    """`target` changed by a JSON Merge Patch (RFC 7396, section 2)."""
    if type(patch) is not dict:
        return patch
    merged: dict[str, Any] = dict(target) if type(target) is dict else {}
    for name, change in patch.items():
        if change is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), change)
    return merged


def increment(by: object, field: object, key: str) -> Callable[[Any], tuple[Any, Number]]:
    """A function that adds `by` to a document, or to the number at `field`; it gives the new document and the sum."""
    if isinstance(by, bool) or not isinstance(by, int | float):
        raise InvalidValueError(f"by: a number is needed, not {type(by).__name__}")
    if isinstance(by, float) and not math.isfinite(by):
        raise InvalidValueError(f"by: {by} cannot be added")
    segments = () if field is None else _parse(field)
    place = f"the value of {key!r}" if field is None else f"{show_path(segments)[1:]} of {key!r}"

    def add(document: Any) -> tuple[Any, Number]:
        old = _at(document, segments, place)
        total = _sum(0 if old is MISSING else old, by, place)
        return _with(document, segments, total, place), total

    return add


def _parse(field: object) -> Segments:
    if not isinstance(field, str):
        raise InvalidValueError(f"field: a path such as 'a.b' is needed, not {type(field).__name__}")
    try:
        segments = parse_path(field)
    except ValueError as error:
        raise InvalidValueError(f"field: {shown(field)} is no path: {error}") from None
    if len(segments) > MAX_DEPTH:
        raise InvalidValueError(f"field: {len(segments):,} segments lead deeper than a document's {MAX_DEPTH} levels")
    if isinstance(segments[0], str) and field.startswith("$"):
        raise InvalidValueError(f"field: {shown(field)} is a special name; a member of that name is written in quotes")
    return segments


def _sum(old: Any, by: Number, place: str) -> Number:
    if type(old) is not int and type(old) is not float:
        raise InvalidValueError(f"{place} is no number but {_kind(old)}: nothing can be added to it")
    if type(old) is float and isinstance(by, int):
        raise InvalidValueError(f"{place} is a float, and the step an int: give a float, such as 1.0")
    try:
        total = old + by
    except OverflowError:
        raise InvalidValueError(f"{place} would leave the range of a float") from None
    if isinstance(total, float):
        if not math.isfinite(total):
            raise InvalidValueError(f"{place} would leave the range of a float")
    elif not MIN_INT <= total <= MAX_INT:
        raise InvalidValueError(f"{place} would leave the range of 64 bits")
    return total


def _at(document: Any, segments: Segments, place: str) -> Any:
    for segment in segments:
        if document is MISSING:
            return MISSING
        if isinstance(segment, str):
            if type(document) is not dict:
                raise InvalidValueError(f"{place} leads into {_kind(document)}, where {shown(segment)} needs an object")
            document = document.get(segment, MISSING)
        else:
            if type(document) is not list or segment >= len(document):
                raise InvalidValueError(f"{place} leads to no element: index {segment} needs a longer array")
            document = document[segment]
    return document


def _with(document: Any, segments: Segments, total: Number, place: str) -> Any:
    """The document with `total` at the path; objects that are missing on the way are made."""
    if not segments:
        return total
    first, rest = segments[0], segments[1:]
    if document is MISSING:
        document = {}
    if isinstance(first, int):
        if type(document) is not list:
            raise InvalidValueError(f"{place} leads to no element: index {first} needs an array")
        document[first] = _with(document[first], rest, total, place)
    else:
        document[first] = _with(document.get(first, MISSING), rest, total, place)
    return document


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), "a number")
