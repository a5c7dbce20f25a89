"""`Page`, the answer of a query, and the cursor that goes on behind it.

Called by `query` and `pages`.

A cursor is the place of the last entry in the order of its query, and a digest of that query: who has another query
cannot use it, and a damaged one is noticed. It is opaque, not secret: it holds the values that were sorted by.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

import orjson

from mycelia_storage.entries import Entry
from mycelia_storage.errors import InvalidFilterError
from mycelia_storage.filters import And, Comparison, Not, Or

if TYPE_CHECKING:
    from mycelia_storage.filters import Filter, SortKey
    from mycelia_storage.matching import Position

T = TypeVar("T")

_DIGEST_BYTES: Final = 12


class Page(Sequence[Entry[T]], Generic[T]):
    """Entries in the order asked for. `cursor` goes on behind the last one, None where there is nothing behind."""

    __slots__ = ("_entries", "cursor")

    def __init__(self, entries: Sequence[Entry[T]], cursor: str | None) -> None:
        self._entries = tuple(entries)
        self.cursor = cursor

    @overload
    def __getitem__(self, index: int) -> Entry[T]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry[T]]: ...
    def __getitem__(self, index: int | slice) -> Entry[T] | Sequence[Entry[T]]:
        return self._entries[index]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Page) and (self._entries, self.cursor) == (other._entries, other.cursor)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        more = "" if self.cursor is None else ", and more behind"
        return f"<Page of {len(self._entries)} entries{more}>"

    def keys(self) -> list[str]:
        """The keys, in order."""
        return [entry.key for entry in self._entries]

    def values(self) -> list[T]:
        """The values, in order."""
        return [entry.value for entry in self._entries]


def identity(namespace: str, filter: Filter, sort: tuple[SortKey, ...]) -> bytes:
    """What ties a cursor to its query."""
    digest = hashlib.blake2b(orjson.dumps([namespace, [str(key) for key in sort]]), digest_size=32)
    _feed(filter, digest)
    return digest.digest()


def _feed(filter: Filter, digest: hashlib.blake2b) -> None:
    """Every part of a filter in order, each with its number of parts, so that no two filters feed the same."""
    if isinstance(filter, Comparison):
        digest.update(orjson.dumps((str(filter.path), filter.operator, filter.operand_text)))
    elif isinstance(filter, Not):
        digest.update(b"not")
        _feed(filter.filter, digest)
    elif isinstance(filter, And | Or):
        digest.update(f"{filter.word} {len(filter.filters)}".encode())
        for part in filter.filters:
            _feed(part, digest)


def write_cursor(query: bytes, position: Position) -> str:
    """The cursor of a position."""
    places, key = position
    payload = orjson.dumps([*(list(place) for place in places), key])
    return base64.urlsafe_b64encode(_seal(query, payload) + payload).decode().rstrip("=")


def read_cursor(query: bytes, cursor: object, fields: int) -> Position:
    """The position of a cursor. Raises InvalidFilterError for one that is damaged or of another query."""
    if not isinstance(cursor, str):
        raise InvalidFilterError(f"cursor: a str from Page.cursor is needed, not {type(cursor).__name__}")
    try:
        data = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        data = b""
    seal, payload = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if not hmac.compare_digest(seal, _seal(query, payload)):
        raise InvalidFilterError("cursor: it is damaged, or it belongs to another filter, sort or namespace")
    *places, key = orjson.loads(payload)
    found: list[Any] = [tuple(place) for place in places]
    if len(found) != fields:
        raise InvalidFilterError("cursor: it belongs to another sort")
    return tuple(found), key


def _seal(query: bytes, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES, key=query).digest()
