"""Which types the values of a view can have.

Called by `Namespace`, once for each type: looking through one takes a hundred times longer than asking msgspec for a
decoder, and views are made in passing.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import inspect

from mycelia_storage.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of what is said of a type, whose own text may be long.
_LONGEST_REASON: Final = 500
# What a document is made of when it is read. A class that one of these belongs to can be checked after all.
_JSON_KINDS: Final = (dict, list, str, int, float, bool, type(None))


def check_value_type(kind: Any) -> None:
    """Raise ConfigError unless values of this type can become JSON and come back as what they were."""
    try:
        hash(kind)
    except TypeError:
        _check(kind)
    else:
        _check_once(kind)


def _check(kind: Any) -> None:
    try:
        msgspec.json.Decoder(kind)
        strangers = list(_strangers(inspect.type_info(kind)))
    except (TypeError, NameError, ValueError, RecursionError) as error:
        raise ConfigError(f"type: it cannot be checked against JSON: {str(error)[:_LONGEST_REASON]}") from error
    for stranger in strangers:
        inside = "" if stranger is kind else ", which is inside it,"
        name = stranger.__name__
        raise ConfigError(f"type: {name}{inside} cannot be checked against JSON: {_hint(stranger)}"[:_LONGEST_REASON])


_check_once: Final = functools.lru_cache(maxsize=256)(_check)


def _strangers(whole: inspect.Type) -> Iterator[type]:
    """The classes in a type that msgspec does not know. It takes them, counting on hooks of ours that make and read
    them, and finds out with the first value that there are none."""
    waiting: list[Any] = [whole]
    seen: set[int] = set()  # a type may hold itself
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, inspect.CustomType):
            if not any(_is_within(kind, part.cls) for kind in _JSON_KINDS):
                yield part.cls
        elif isinstance(part, inspect.Field):
            waiting.append(part.type)
        elif isinstance(part, tuple):
            waiting.extend(part)
        elif isinstance(part, inspect.Type):
            waiting.extend(getattr(part, name) for name in part.__struct_fields__)


def _is_within(kind: type, stranger: type) -> bool:
    try:
        return issubclass(kind, stranger)
    except TypeError:  # a protocol that cannot be asked
        return False


def _hint(stranger: type) -> str:
    if callable(getattr(stranger, "model_dump", None)):
        return (
            "write what its model_dump(mode='json') gives through a view without a type, and read that with "
            "its model_validate()"
        )
    for kind in (str, bool, int, float, dict, list, tuple):
        if issubclass(stranger, kind):
            return f"a subclass of {kind.__name__} comes back as {kind.__name__}: use that"
    return "use a dataclass, a TypedDict or a msgspec.Struct, or a view without a type"
