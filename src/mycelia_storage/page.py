"""`Page`, the answer of a query, and the cursor that goes on behind it.

Called by `query` and `pages`.

A cursor is the place of the last entry in the order of its query, and a digest of that query: who has another query
cannot use it, and a damaged one is noticed. It is opaque, not secret: it holds the values that were sorted by.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, Generic, NamedTuple, TypeVar, overload

import orjson

from mycelia_storage.codec import MAX_INT, MIN_INT
from mycelia_storage.entries import Entry
from mycelia_storage.errors import InvalidFilterError
from mycelia_storage.filters import COLUMNS, And, Comparison, Not, Or

if TYPE_CHECKING:
    from mycelia_storage.filters import Filter, Path, SortKey
    from mycelia_storage.matching import Position

T = TypeVar("T")

_DIGEST_BYTES: Final = 12


class Page(Sequence[Entry[T]], Generic[T]):
    """Entries in the order asked for. `cursor` goes on behind the last one, None where there is nothing behind."""

    __slots__ = ("_entries", "cursor")

    def __init__(self, entries: Sequence[Entry[T]], cursor: str | None) -> None:
        self._entries = tuple(entries)
        self.cursor: str | None = cursor

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

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        more = "" if self.cursor is None else ", and more behind"
        count = len(self._entries)
        return f"<Page of {count} {'entry' if count == 1 else 'entries'}{more}>"

    def keys(self) -> list[str]:
        """The keys, in order."""
        return [entry.key for entry in self._entries]

    def values(self) -> list[T]:
        """The values, in order."""
        return [entry.value for entry in self._entries]


class Identity(NamedTuple):
    """What ties a cursor to its query: a digest of all that decides the order, and the sort."""

    digest: bytes
    sort: tuple[SortKey, ...]


def identity(namespace: str, filter: Filter, sort: tuple[SortKey, ...]) -> Identity:
    """The identity of a query."""
    digest = hashlib.blake2b(orjson.dumps([namespace, [str(key) for key in sort]]), digest_size=32)
    _feed(filter, digest)
    return Identity(digest.digest(), sort)


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


def write_cursor(query: Identity, position: Position) -> str:
    """The cursor of a position."""
    places, key = position
    payload = orjson.dumps([*(list(place) for place in places), key])
    return base64.urlsafe_b64encode(_seal(query, payload) + payload).decode().rstrip("=")


def read_cursor(query: Identity, cursor: object, fields: int) -> Position:
    """The position of a cursor. Raises InvalidFilterError for one that is damaged, of another query, or made up.

    The digest is no secret, so what a cursor holds is checked like everything else that comes from outside.
    """
    if not isinstance(cursor, str):
        raise InvalidFilterError(f"cursor: a str from Page.cursor is needed, not {type(cursor).__name__}")
    try:
        data = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        data = b""
    seal, payload = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if not hmac.compare_digest(seal, _seal(query, payload)):
        raise InvalidFilterError("cursor: it is damaged, or it belongs to another filter, sort or namespace")
    try:
        found = orjson.loads(payload)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, list) or len(found) != fields + 1:
        raise InvalidFilterError("cursor: it holds no place in the order of this query")
    *places, key = found
    for sort_key, place in zip(query.sort, places, strict=True):
        if not _is_place(place, sort_key.path):
            raise InvalidFilterError(f"cursor: it holds no place in the order by {sort_key.path}")
    if not isinstance(key, str):
        raise InvalidFilterError("cursor: it holds no key")
    return tuple(map(tuple, places)), key


def _is_place(found: object, path: Path) -> bool:
    """Whether an entry can stand there: it has no such field, or a value of a rank, and of the path's own type."""
    if not isinstance(found, list) or len(found) != 3 or any(isinstance(part, bool) for part in found):
        return False
    is_missing, kind, value = found
    if is_missing == 1:
        return found == [1, 0, 0] and (path.root not in COLUMNS or path.root == "$expires_at")
    if is_missing != 0 or not isinstance(kind, int) or (path.root in COLUMNS and kind != _rank_of(path)):
        return False
    if kind == 5:
        return isinstance(value, str)
    if kind == 4 and isinstance(value, float):
        return math.isfinite(value)
    if kind == 4:
        return isinstance(value, int) and MIN_INT <= value <= MAX_INT
    return kind in (1, 2, 3, 6) and value == 0


def _rank_of(column: Path) -> int:
    return 5 if column.root == "$key" else 4


def _seal(query: Identity, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES, key=query.digest).digest()
