"""What the readers of foreign files give: entries, and what is in the way of one.

Made by the file of each format, drawn by `importing`.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SHOWN: Final = 80


class NotPlainError(Exception):
    """A value, or a key, that is no plain data. The message says what it is, and where, and nothing of its content."""


class Found(NamedTuple):
    """An entry of the source. `namespace` None is the one that the caller named; `expires_at` is in milliseconds."""

    key: str
    value: object
    namespace: str | None = None
    metadata: Mapping[str, object] | None = None
    expires_at: int | None = None


class Refused(NamedTuple):
    """An entry of the source that cannot be one here. `key` is the key, or what is known of it."""

    key: str
    reason: str
    namespace: str | None = None


Item: TypeAlias = Found | Refused


@dataclass
class Source:
    """An open source: its entries, how many they are as far as that is known, and what else there is to tell.

    `twins` says why a second entry with the same namespace and key is refused; it is "" where there can be none, and
    nobody has to remember the keys.
    """

    items: Iterator[Item]
    total: int | None = None
    notes: list[str] = field(default_factory=list[str])
    twins: str = ""


def key_of(value: object) -> str:
    """The key that stands for one of another library: a text is itself, a whole number its decimal text.

    Raises NotPlainError: two of any other type may have the same text, and nobody would ask for it by that text.
    """
    if type(value) is str:
        return value
    if type(value) is int:
        return str(value)
    raise NotPlainError(f"the key is of type {type(value).__name__}, and a key is a text or a whole number")


def shown_key(value: object) -> str:
    """What a report calls an entry whose key is no text: short, whatever the key is made of."""
    if isinstance(value, str):
        return value
    text = reprlib.repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def text_of_key(key: bytes) -> str:
    """The key that UTF-8 spells. Raises NotPlainError."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise NotPlainError("the key is no UTF-8") from None
