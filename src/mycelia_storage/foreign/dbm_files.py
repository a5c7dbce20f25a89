"""Files of dbm: those of `dbm.dumb`, of `dbm.gnu` and of `dbm.ndbm` with Berkeley DB, read without these modules.

Called by `shelve`. A Python often lacks the module that another one has made a file with; and these are libraries in C
that trust their files. What each format says of places and lengths is held against the file's own size.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final, TypeAlias

from mycelia_storage.engines.sqlite.connection import read_file
from mycelia_storage.errors import NotAStorageFileError
from mycelia_storage.foreign.pickles import unescape
from mycelia_storage.foreign.plain_files import PlainFile
from mycelia_storage.keys import MAX_KEY_BYTES

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Iterator

# Where it stands; key and value, None where too long; and how long they are.
Pair: TypeAlias = tuple[str, bytes | None, bytes | None, int, int]
Pairs: TypeAlias = "Iterator[Pair]"

_START_BYTES: Final = 64

# dbm.dumb: a line for each key, `'key', (place, size)`, as Python writes a text in Latin-1.
_DUMB_LINE: Final = re.compile(
    rb"""(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"), \((\d{1,18}), (\d{1,18})\)\s*""", re.DOTALL
)
_LONGEST_LINE: Final = 1 << 20
_LARGEST_INDEX: Final = 1 << 30

# GNU dbm, where places have 8 bytes: the header; buckets, each with six places that are free, and its elements.
_GNU_MAGIC: Final = (0x13579ACE, 0x13579ACF)
_GNU_HEADER: Final = "iiqiiiiq"
_GNU_FREE: Final = 8 + 6 * 16
_GNU_ELEMENTS: Final = _GNU_FREE + 8
_GNU_ELEMENT: Final = "i4sqii"
_GNU_EMPTY: Final = -1

# Berkeley DB, access method hash.
_BERKELEY_MAGIC: Final = 0x061561
_BERKELEY_MAGIC_AT: Final = 12
_BERKELEY_HEADER: Final = 26
_HASH_PAGES: Final = (2, 13)
_OVERFLOW_PAGE: Final = 7
_KEYDATA: Final = 1
_OFFPAGE: Final = 3


def start_of(path: str) -> bytes:
    """The first bytes of a file, by which its kind is known."""
    return read_file(path, 0, _START_BYTES)


def reader_for(start: bytes) -> Callable[[str, int, contextlib.ExitStack], tuple[Pairs, PlainFile]] | None:
    """What reads a file that begins so; None for one of no kind that is known."""
    for order in "<>":
        if len(start) == _START_BYTES:
            if struct.unpack_from(f"{order}I", start)[0] in _GNU_MAGIC:
                return _gnu(order)
            if struct.unpack_from(f"{order}I", start, _BERKELEY_MAGIC_AT)[0] == _BERKELEY_MAGIC:
                return _berkeley(order)
    return None


def read_dumb(name: str, limit: int, stack: contextlib.ExitStack) -> tuple[Pairs, list[PlainFile]]:
    """The pairs of a file of dbm.dumb, whose index has to be in memory as a whole."""
    index, data = PlainFile(f"{name}.dir", stack), PlainFile(f"{name}.dat", stack)
    if index.size > _LARGEST_INDEX:
        raise NotAStorageFileError(f"{index.path}: {index.size:,} bytes, which is too large for an index of dbm.dumb")
    return _dumb_pairs(index, data, limit), [index, data]


def _dumb_pairs(index: PlainFile, data: PlainFile, limit: int) -> Pairs:
    places: dict[bytes, tuple[int, int]] = {}  # of equal keys the last one counts
    while line := index.stream.readline(_LONGEST_LINE):
        found = _DUMB_LINE.fullmatch(line)
        key = None if found is None else unescape(found[2] if found[1] is None else found[1])
        if found is None or key is None:
            raise index.damaged("a line of it is no place of a value")
        places[key] = int(found[3]), int(found[4])
    for key, (place, size) in places.items():
        yield _pair(data, f"the value at byte {place:,}", key, place, size, limit)


def _pair(file: PlainFile, where: str, key: bytes, place: int, size: int, limit: int) -> Pair:
    if place + size > file.size:
        raise file.damaged("a value lies outside of it")
    is_key = len(key) <= MAX_KEY_BYTES
    value = file.piece(place, size) if is_key and size <= limit else None
    return where, key if is_key else None, value, len(key), size


# ---- GNU dbm


def _gnu(order: str) -> Callable[[str, int, contextlib.ExitStack], tuple[Pairs, PlainFile]]:
    def read(path: str, limit: int, stack: contextlib.ExitStack) -> tuple[Pairs, PlainFile]:
        file = PlainFile(path, stack)
        return _gnu_pairs(file, order, limit), file

    return read


def _gnu_pairs(file: PlainFile, order: str, limit: int) -> Pairs:
    """Every bucket of the directory, and in each the elements that are in use."""
    header = struct.Struct(order + _GNU_HEADER)
    _, _, directory, directory_size, _, bucket_size, elements, _ = header.unpack(file.piece(0, header.size))
    element = struct.Struct(order + _GNU_ELEMENT)
    if directory_size % 8 or elements < 1 or bucket_size < _GNU_ELEMENTS + elements * element.size:
        raise file.damaged("its header says what cannot be")
    places = file.piece(directory, directory_size)
    met: set[int] = set()  # several places of the directory lead to one bucket
    for (place,) in struct.iter_unpack(order + "q", places):
        if place in met:
            continue
        met.add(place)
        bucket = file.piece(place, bucket_size)
        for at in range(_GNU_ELEMENTS, _GNU_ELEMENTS + elements * element.size, element.size):
            used, _, data, key_size, size = element.unpack_from(bucket, at)
            if used == _GNU_EMPTY:
                continue
            where = f"the entry at byte {data:,}"
            if key_size > MAX_KEY_BYTES:
                yield where, None, None, key_size, size
            else:
                yield _pair(file, where, file.piece(data, key_size), data + key_size, size, limit)


# ---- Berkeley DB


def _berkeley(order: str) -> Callable[[str, int, contextlib.ExitStack], tuple[Pairs, PlainFile]]:
    def read(path: str, limit: int, stack: contextlib.ExitStack) -> tuple[Pairs, PlainFile]:
        file = PlainFile(path, stack)
        return _Berkeley(file, order).pairs(limit), file

    return read


class _Berkeley:
    """Pages, each with a header, places of its items at its beginning, and the items at its end."""

    def __init__(self, file: PlainFile, order: str) -> None:
        self._file = file
        self._order = order
        (self._size,) = struct.unpack(f"{order}I", file.piece(20, 4))
        if not (512 <= self._size <= 65536 and self._size & (self._size - 1) == 0):
            raise file.damaged("its header says what cannot be")
        if file.piece(24, 1) != b"\0":
            raise NotAStorageFileError(f"{file.path}: the file is encrypted")

    def pairs(self, limit: int) -> Pairs:
        """Page by page, whatever bucket it belongs to: keys and values by turns."""
        for number in range(self._file.size // self._size):
            page = self._file.piece(number * self._size, self._size)
            count, _, _, kind = struct.unpack_from(f"{self._order}HHBB", page, 20)
            if kind not in _HASH_PAGES:
                continue
            if count % 2 or _BERKELEY_HEADER + 2 * count > self._size:
                raise self._file.damaged(f"page {number} says what cannot be")
            places = struct.unpack_from(f"{self._order}{count}H", page, _BERKELEY_HEADER)
            items = [page[place:end] for place, end in zip(places, (self._size, *places), strict=False)]
            for at in range(0, count, 2):
                key_size, key = self._item(items[at], MAX_KEY_BYTES)
                size, value = self._item(items[at + 1], limit)
                yield f"entry {at // 2} of page {number}", key, value, key_size, size

    def _item(self, item: bytes, limit: int) -> tuple[int, bytes | None]:
        """How long an item is, and what it is unless that is too long."""
        kind = item[:1]
        if kind == bytes((_KEYDATA,)):
            return len(item) - 1, item[1:] if len(item) - 1 <= limit else None
        if kind != bytes((_OFFPAGE,)) or len(item) != 12:
            raise self._file.damaged("an item is of no kind that dbm writes")
        number, size = struct.unpack_from(f"{self._order}II", item, 4)
        return size, self._chain(number, size) if size <= limit else None

    def _chain(self, number: int, size: int) -> bytes:
        """What stands on a chain of pages."""
        found = bytearray()
        while len(found) < size:
            page = self._file.piece(number * self._size, self._size)
            following, _, length, _, kind = struct.unpack_from(f"{self._order}IHHBB", page, 16)
            if kind != _OVERFLOW_PAGE or not 0 < length <= self._size - _BERKELEY_HEADER:
                raise self._file.damaged(f"page {number} is none that a value goes on at")
            found += page[_BERKELEY_HEADER : _BERKELEY_HEADER + length]
            number = following
        if len(found) != size:
            raise self._file.damaged("a value is longer than it says")
        return bytes(found)
