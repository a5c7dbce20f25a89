"""Tells where two answers differ, in value, type, order or the bits of a float: `==` sees none but the first.

Called by the contract suite and by differential tests.
"""

from __future__ import annotations

import struct
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator


def difference(actual: object, expected: object) -> str:
    """The first place where `actual` is not exactly `expected`, in words; an empty str where there is none.

    Types have to be the same, so have the order of dict keys and the bits of floats: `1`, `1.0` and `True` all
    differ, and so do `0.0` and `-0.0`.
    """
    return next(_differences(actual, expected, "$"), "")


def _differences(actual: object, expected: object, path: str) -> Iterator[str]:
    if type(actual) is not type(expected):
        yield f"{path}: {actual!r} is a {type(actual).__name__}, expected {expected!r}, a {type(expected).__name__}"
    elif isinstance(actual, dict):
        yield from _dict_differences(cast("Any", actual), cast("Any", expected), path)
    elif isinstance(actual, list | tuple):
        yield from _sequence_differences(cast("list[Any]", actual), cast("list[Any]", expected), path)
    elif isinstance(actual, float):
        if struct.pack("<d", actual) != struct.pack("<d", cast("float", expected)):
            yield f"{path}: {actual!r} has other bits than {expected!r}"
    elif _field_names(actual):
        for name in _field_names(actual):
            yield from _differences(getattr(actual, name), getattr(expected, name), f"{path}.{name}")
    elif actual != expected:
        yield f"{path}: {actual!r}, expected {expected!r}"


def _field_names(record: object) -> tuple[str, ...]:
    if isinstance(record, msgspec.Struct):
        return record.__struct_fields__
    if is_dataclass(record):
        return tuple(field.name for field in fields(record))
    return ()


def _dict_differences(actual: dict[Any, Any], expected: dict[Any, Any], path: str) -> Iterator[str]:
    missing = [key for key in expected if key not in actual]
    surplus = [key for key in actual if key not in expected]
    if missing or surplus:
        yield f"{path}: lacks {missing!r}, has besides {surplus!r}"
        return
    if list(actual) != list(expected):
        yield f"{path}: keys in the order {list(actual)!r}, expected {list(expected)!r}"
    for key, value in expected.items():
        yield from _differences(actual[key], value, f"{path}.{key}")


def _sequence_differences(actual: list[Any], expected: list[Any], path: str) -> Iterator[str]:
    if len(actual) != len(expected):
        yield f"{path}: {len(actual)} items, expected {len(expected)}: {actual!r}, expected {expected!r}"
        return
    for index, (mine, theirs) in enumerate(zip(actual, expected, strict=True)):
        yield from _differences(mine, theirs, f"{path}[{index}]")
