"""The pages of a database file, read one by one and believed only as far as they make sense.

Called by `salvaging.py`. SQLite gives up a whole tree where one page on the way is damaged. Here every page is taken
by itself: what it is, its cells, and the records in them (sqlite.org/fileformat2.html). A page that is not as it should
be, or a cell of it, is a `DamagedError`, and the next one is read. Nothing is written and no lock is taken. What is
newer in a -wal counts, and what stood there before a program was killed, as its journal tells.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC: Final = b"SQLite format 3\0"
TABLE_LEAF: Final = 0x0D
TABLE_INTERIOR: Final = 0x05
INDEX_LEAF: Final = 0x0A
INDEX_INTERIOR: Final = 0x02
LEAVES: Final = (TABLE_LEAF, INDEX_LEAF)
KINDS: Final = (TABLE_LEAF, TABLE_INTERIOR, INDEX_LEAF, INDEX_INTERIOR)

_FILE_LAYER: Final = "unix" if os.name == "posix" else "win32"
_HEADER: Final = 100
_SIZES: Final = tuple(2**power for power in range(9, 17))
# What an extension that keeps checksums reserves at the end of each page; most files reserve nothing.
_CHECKSUM: Final = 8
_SAMPLED_PAGES: Final = 300
_LOCK_PLACE: Final = 2**30

_WAL_HEADER: Final = struct.Struct(">8I")
_FRAME_HEADER: Final = struct.Struct(">6I")
_WAL_MAGIC: Final = 0x377F0682
_JOURNAL_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
_JOURNAL_HEADER: Final = struct.Struct(">8s5I")
_MANY: Final = 0xFFFFFFFF
_INTEGER_SIZES: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


class DamagedError(Exception):
    """A page or a cell is not as it should be; the message says what."""


class Cell(NamedTuple):
    """One cell. `payload` is None on the inner pages of a table; it is cut short where its other pages are damaged."""

    child: int
    number: int
    payload: bytes | None
    is_whole: bool


class BTreePage(NamedTuple):
    """A page of a tree: its kind, its cells, the last child, and how many cells made no sense."""

    kind: int
    cells: list[Cell]
    last_child: int
    overflow: list[int]
    broken: int


class PageFile:
    """The pages of a file as whoever opens it would read them. Close it.

    `is_known` says that the header was there; without it the size of the pages is guessed by what fits.
    """

    def __init__(self, path: str) -> None:
        self._file = apsw.VFSFile(_FILE_LAYER, path, [apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_MAIN_DB, 0])
        try:
            self.problems: list[str] = []
            self._bytes: int = self._file.xFileSize()
            self._newer: dict[int, tuple[str, int]] = {}
            self._beside: dict[str, int] = {}
            # So many pages the file has after what stands beside it; 0 where nothing does.
            self._last_size = 0
            self._are_checked = False
            self.size: int = 0
            self.reserved: int = 0
            self.count: int = 0
            self._read_beside(path)
            self.count = self._last_size or -(-self._bytes // self.size)
            self._are_checked = self.reserved == _CHECKSUM and self._have_checksums()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file and those beside it."""
        self._file.xClose()
        for descriptor in getattr(self, "_beside", {}).values():
            os.close(descriptor)

    @property
    def usable(self) -> int:
        """So many bytes of a page hold something."""
        return self.size - self.reserved

    def header(self) -> bytes:
        """The first hundred bytes, whatever they are."""
        try:
            return self._raw(1)[:_HEADER].ljust(_HEADER, b"\0")
        except (apsw.Error, OSError):
            return bytes(_HEADER)

    def read(self, number: int) -> bytes:
        """One page, from 1 on. Raises DamagedError where the file has no such page, or its checksum does not fit."""
        if not 1 <= number <= self.count:
            raise DamagedError(f"page {number} is not in the file")
        try:
            page = self._raw(number)
        except (apsw.Error, OSError):
            raise DamagedError(f"page {number} cannot be read from the disk") from None
        if len(page) != self.size:
            raise DamagedError(f"page {number} is cut off")
        if self._are_checked and number not in self._newer and not _fits_checksum(page):
            raise DamagedError(f"page {number} does not fit its checksum")
        return page

    def tree_page(self, number: int) -> BTreePage:
        """A page of a tree, with those of its cells that make sense. Raises DamagedError where it is none."""
        page = self.read(number)
        start = _HEADER if number == 1 else 0
        kind = page[start]
        if kind not in KINDS:
            raise DamagedError(f"page {number} is no page of a tree")
        size, content = struct.unpack_from(">HH", page, start + 3)
        first = start + (8 if kind in LEAVES else 12)
        places = first + 2 * size
        if places > self.usable or (content or 65536) < places or (content or 65536) > self.usable:
            raise DamagedError(f"page {number} has a damaged header")
        last_child = 0 if kind in LEAVES else struct.unpack_from(">I", page, start + 8)[0]
        cells: list[Cell] = []
        overflow: list[int] = []
        broken = 0
        for (place,) in struct.iter_unpack(">H", page[first:places]):
            try:
                if not places <= place < self.usable:
                    raise DamagedError(f"page {number} has a damaged cell")
                cells.append(self._cell(page, kind, place, overflow))
            except (DamagedError, IndexError, struct.error):
                broken += 1
        return BTreePage(kind, cells, last_child, overflow, broken)

    def is_lock_page(self, number: int) -> bool:
        """Whether it is the one page that SQLite never uses."""
        return number == _LOCK_PLACE // self.size + 1

    # ---- cells

    def _cell(self, page: bytes, kind: int, place: int, overflow: list[int]) -> Cell:
        child, number = 0, 0
        if kind in (TABLE_INTERIOR, INDEX_INTERIOR):
            (child,) = struct.unpack_from(">I", page, place)
            place += 4
        if kind == TABLE_INTERIOR:
            number, _ = varint(page, place)
            return Cell(child, number, None, is_whole=True)
        size, place = varint(page, place)
        if kind == TABLE_LEAF:
            number, place = varint(page, place)
        local = self._local(size, is_table=kind == TABLE_LEAF)
        if size < 0 or place + local + (4 if local < size else 0) > self.usable:
            raise DamagedError("a cell is longer than its page")
        payload = page[place : place + local]
        if local == size:
            return Cell(child, number, payload, is_whole=True)
        (following,) = struct.unpack_from(">I", page, place + local)
        pieces = [payload, *self._overflow(following, size - local, overflow)]
        whole = b"".join(pieces)
        return Cell(child, number, whole, is_whole=len(whole) == size)

    def _local(self, size: int, *, is_table: bool) -> int:
        """How much of a payload stands in the page itself."""
        most = self.usable - 35 if is_table else (self.usable - 12) * 64 // 255 - 23
        if size <= most:
            return size
        least = (self.usable - 12) * 32 // 255 - 23
        fitting = least + (size - least) % (self.usable - 4)
        return fitting if fitting <= most else least

    def _overflow(self, number: int, size: int, used: list[int]) -> list[bytes]:
        """The rest of a payload, from its own pages; less of it where one of them cannot be."""
        pieces: list[bytes] = []
        seen: set[int] = set()
        while size > 0:
            if number in seen:
                return pieces
            try:
                page = self.read(number)
            except DamagedError:
                return pieces
            seen.add(number)
            piece = page[4 : 4 + min(size, self.usable - 4)]
            size -= len(piece)
            (number,) = struct.unpack_from(">I", page)
            if bool(number) != (size > 0):
                return pieces  # it ends too early, or goes on behind its end
            pieces.append(piece)
        used += seen
        return pieces

    # ---- the file, and those beside it

    def _raw(self, number: int) -> bytes:
        place = self._newer.get(number)
        if place is not None:
            return os.pread(self._beside[place[0]], self.size, place[1])
        first = (number - 1) * self.size
        return self._file.xRead(max(0, min(self.size, self._bytes - first)), first)

    def _read_beside(self, path: str) -> None:
        try:
            header = self._file.xRead(min(_HEADER, self._bytes), 0).ljust(_HEADER, b"\0")
        except (apsw.Error, OSError):  # a disk may have lost this page too
            header = bytes(_HEADER)
        self.is_known: bool = header[:16] == MAGIC and page_size(header) > 0
        if self.is_known:
            self.size, self.reserved = page_size(header), header[20]
        for end, read in (("-journal", self._read_journal), ("-wal", self._read_wal)):
            try:
                descriptor = os.open(path + end, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            self._beside[end] = descriptor
            read(descriptor)
        newer = self._newer.get(1)
        if newer is not None:
            header = os.pread(self._beside[newer[0]], _HEADER, newer[1])
            self.is_known = header[:16] == MAGIC and page_size(header) == self.size
            self.reserved = header[20]
        if not self.is_known or (not self._score(self.size, self.reserved) and self._bytes > self.size):
            self._guess()

    def _read_wal(self, descriptor: int) -> None:
        """The pages of every transaction that was committed to the -wal: the last copy of each."""
        data = os.pread(descriptor, 32, 0)
        if len(data) < 32:
            return
        magic, _, size, _, *salts, one, two = _WAL_HEADER.unpack(data)
        if magic & ~1 != _WAL_MAGIC or size not in _SIZES or (self.size and self.size != size):
            self.problems.append("the -wal file is damaged, or that of another file")
            return
        order = ">" if magic & 1 else "<"
        sums = checksum(data[:24], order)
        if sums != (one, two):
            self.problems.append("the -wal file is damaged: nothing of it counts")
            return
        place, found = 32, dict[int, tuple[str, int]]()
        while len(frame := os.pread(descriptor, 24 + size, place)) == 24 + size:
            number, pages, salt, pepper, one, two = _FRAME_HEADER.unpack_from(frame)
            sums = checksum(frame[24:], order, checksum(frame[:8], order, sums))
            if [salt, pepper] != salts or sums != (one, two):
                break
            found[number] = "-wal", place + 24
            if pages:
                self._newer |= found
                self._last_size, self.size = pages, size
                found.clear()
            place += 24 + size

    def _read_journal(self, descriptor: int) -> None:
        """The pages as they were before a transaction that was never committed."""
        place, end = 0, os.fstat(descriptor).st_size
        while place < end:
            data = os.pread(descriptor, _JOURNAL_HEADER.size, place)
            if len(data) < _JOURNAL_HEADER.size:
                return
            magic, records, nonce, pages, sector, size = _JOURNAL_HEADER.unpack(data)
            if magic != _JOURNAL_MAGIC or size not in _SIZES or (self.size and self.size != size) or sector < 32:
                return
            if not place:
                self._last_size = pages
            self.size = size
            place += sector
            if records == _MANY:
                records = (end - place) // (size + 8)
            for _ in range(records):
                record = os.pread(descriptor, size + 8, place)
                if len(record) < size + 8:
                    return
                number, page = int.from_bytes(record[:4], "big"), record[4:-4]
                total = nonce + sum(page[byte] for byte in range(size - 200, 0, -200))
                if total & 0xFFFFFFFF != int.from_bytes(record[-4:], "big"):
                    return
                self._newer.setdefault(number, ("-journal", place + 4))
                place += size + 8
            place += -place % sector

    def _have_checksums(self) -> bool:
        return any(_fits_checksum(page) for page in self._sample())

    def _sample(self) -> Iterator[bytes]:
        """Some pages from all over the file. (The first one begins behind its header.)"""
        for number in range(1, self.count + 1, max(1, self.count // _SAMPLED_PAGES)):
            with contextlib.suppress(DamagedError):
                yield self.read(number)

    def _guess(self) -> None:
        """The size of the pages with which most of the file makes sense."""
        sizes = (self.size,) if self._newer else _SIZES
        shapes = [(size, reserved) for size in sizes for reserved in (0, _CHECKSUM)]
        kept = (self.size, self.reserved)
        best, size, reserved = max((self._score(*shape), -shape[0], shape[1]) for shape in shapes)
        self.size, self.reserved = (-size, reserved) if best or not kept[0] else kept

    def _score(self, size: int, reserved: int) -> int:
        """How much of a file is pages of trees, if they are of this size: the first cell of one stands at its end."""
        self.size, self.reserved, found = size, reserved, 0
        self.count = -(-self._bytes // size)
        for position, page in enumerate(self._sample()):
            for start in (0,) if position else (0, _HEADER):
                if page[start] in KINDS and self._is_filled(page, start):
                    found += size
        return found * max(1, self.count // _SAMPLED_PAGES)

    def _is_filled(self, page: bytes, start: int) -> bool:
        count = int.from_bytes(page[start + 3 : start + 5], "big")
        first = start + (8 if page[start] in LEAVES else 12)
        places = [place for (place,) in struct.iter_unpack(">H", page[first : first + 2 * count])]
        if not places or first + 2 * count > min(places):
            return False
        try:
            return any(self._end(page, page[start], place) == self.usable for place in places)
        except (IndexError, struct.error):
            return False

    def _end(self, page: bytes, kind: int, place: int) -> int:
        """Where a cell ends."""
        if kind in (TABLE_INTERIOR, INDEX_INTERIOR):
            place += 4
        if kind == TABLE_INTERIOR:
            return varint(page, place)[1]
        size, place = varint(page, place)
        if kind == TABLE_LEAF:
            place = varint(page, place)[1]
        local = self._local(size, is_table=kind == TABLE_LEAF)
        return place + local + (4 if local < size else 0)


def page_size(header: bytes) -> int:
    """What a header says, 0 where that is no size."""
    size = int.from_bytes(header[16:18], "big")
    size = 65536 if size == 1 else size
    return size if size in _SIZES else 0


def varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of one to nine bytes, and the place behind it."""
    value = 0
    for position in range(place, place + 8):
        byte = data[position]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, position + 1
    value = value << 8 | data[place + 8]
    return (value - 2**64 if value >= 2**63 else value), place + 9


def record(payload: bytes, *, is_whole: bool = True) -> list[Any]:
    """The columns of a record; with `is_whole` False as many as are there. Raises DamagedError.

    A text that is no UTF-8 is given as its bytes.
    """
    try:
        end, place = varint(payload, 0)
        kinds: list[int] = []
        while place < end:
            kind, place = varint(payload, place)
            kinds.append(kind)
    except IndexError:
        raise DamagedError("a record ends in its header") from None
    if place != end or end < 1:
        raise DamagedError("the header of a record does not end where it says")
    columns: list[Any] = []
    for kind in kinds:
        size = _size_of(kind)
        if place + size > len(payload):
            if is_whole:
                raise DamagedError("a record is longer than what is there of it")
            return columns
        columns.append(_column(kind, payload[place : place + size]))
        place += size
    if is_whole and place != len(payload):
        raise DamagedError("a record is shorter than what is there of it")
    return columns


def _size_of(kind: int) -> int:
    if kind >= 12:
        return (kind - 12) // 2
    if kind < 0 or kind in (10, 11):
        raise DamagedError("a column is of no type")
    return 8 if kind == 7 else _INTEGER_SIZES.get(kind, 0)


def _column(kind: int, data: bytes) -> Any:
    if kind == 0:
        return None
    if kind == 7:
        return struct.unpack(">d", data)[0]
    if kind in (8, 9):
        return kind - 8
    if kind in _INTEGER_SIZES:
        return int.from_bytes(data, "big", signed=True)
    if kind % 2:
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data
    return data


def checksum(data: bytes, order: str, sums: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """SQLite's checksum of a -wal, and of the extension that keeps one in each page."""
    one, two = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for position in range(0, len(words), 2):
        one = one + words[position] + two & 0xFFFFFFFF
        two = two + words[position + 1] + one & 0xFFFFFFFF
    return one, two


def _fits_checksum(page: bytes) -> bool:
    return struct.pack("<2I", *checksum(page[:-_CHECKSUM], "<")) == page[-_CHECKSUM:]
