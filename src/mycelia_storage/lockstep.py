"""Two stores read side by side in key order: where they differ, and whether what is the same by version is the same.

Called by `moving.py`. Both sides are read a bounded piece at a time: first outlines (keys, versions, sizes), which are
quick and small; the texts of a piece are read once its size is known, so that memory does not depend on the store.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from mycelia_storage.errors import CopyMismatchError
from mycelia_storage.keys import KeyRange, behind

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from mycelia_storage.engines.engine import Outline, Primitives, Row

    Rows = Callable[[], Primitives]

R = TypeVar("R")
S = TypeVar("S")

# A piece is so many rows at most, and so many bytes unless it is a single row.
ROWS_AT_ONCE: Final = 2000
BYTES_AT_ONCE: Final = 4 * 1024 * 1024

# So many of the keys that differ are named.
KEYS_NAMED: Final = 1000
_KEYS_SHOWN: Final = 5

# Rows whose sizes are not known are read so many at once, and more as long as they are small.
_FIRST_ROWS: Final = 64

EVERYTHING: Final = KeyRange()


def at_once(ours: Callable[[], R], theirs: Callable[[], S]) -> tuple[R, S]:
    """What both give, the second one on a thread of its own: two engines work, where one would wait for the other."""
    with ThreadPoolExecutor(1, thread_name_prefix="mycelia-moving") as pool:
        future = pool.submit(theirs)
        return ours(), future.result()


class Found:
    """Keys that differ: the first of them by name, and how many there are."""

    def __init__(self) -> None:
        self._keys: list[tuple[str, str]] = []
        self._count = 0

    def add(self, namespace: str, keys: Sequence[str]) -> None:
        """These are not the same."""
        self._count += len(keys)
        self._keys += [(namespace, key) for key in keys[: KEYS_NAMED - len(self._keys)]]

    def raise_if_any(self) -> None:
        """Raise CopyMismatchError where there are some."""
        if not self._count:
            return
        shown = ", ".join(f"{key!r} in namespace {namespace!r}" for namespace, key in self._keys[:_KEYS_SHOWN])
        more = f" and {self._count - _KEYS_SHOWN:,} more" if self._count > _KEYS_SHOWN else ""
        are = "entry is" if self._count == 1 else "entries are"
        message = f"{self._count:,} {are} not the same in the target: {shown}{more}"
        raise CopyMismatchError(f"{message}; was it written to meanwhile?", tuple(self._keys), self._count)


class Difference(NamedTuple):
    """A piece of the key order: the rows that the source has in it, and what the target has otherwise.

    `stale` are the source's rows that the target does not have in the same version; `gone` the target's keys that the
    source does not have.
    """

    ours: list[Outline]
    stale: list[Outline]
    gone: list[str]


def differences(
    source: Rows, target: Rows | None, namespace: str, now: int, span: KeyRange = EVERYTHING
) -> Iterator[Difference]:
    """Every piece of a range in order, with what differs in it by version; without a target, everything does."""
    while True:
        ours = source().outline(namespace, span, now, limit=ROWS_AT_ONCE)
        theirs = [] if target is None else target().outline(namespace, span, now, limit=ROWS_AT_ONCE)
        # What is compared goes no further than both were read.
        ends = [side[-1][0] for side in (ours, theirs) if len(side) == ROWS_AT_ONCE]
        end = min(ends, default=None)
        if end is not None:
            ours = [row for row in ours if row[0] <= end]
            theirs = [row for row in theirs if row[0] <= end]
        yield _difference(ours, theirs)
        if end is None:
            return
        span = behind(span, namespace, end)


def _difference(ours: list[Outline], theirs: list[Outline]) -> Difference:
    if ours == theirs:
        return Difference(ours, [], [])
    if not theirs:
        return Difference(ours, ours, [])
    there = {key: version for key, version, _ in theirs}
    here = {key for key, _, _ in ours}
    stale = [row for row in ours if there.get(row[0]) != row[1]]
    return Difference(ours, stale, [key for key in there if key not in here])


def pieces(outlines: Sequence[Outline]) -> Iterator[Sequence[Outline]]:
    """The same rows in pieces that can be held in memory."""
    start = size = 0
    for index, (_, _, of_row) in enumerate(outlines):
        if index > start and (size + of_row > BYTES_AT_ONCE or index - start >= ROWS_AT_ONCE):
            yield outlines[start:index]
            start, size = index, 0
        size += of_row
    if start < len(outlines):
        yield outlines[start:]


def read(rows: Primitives, namespace: str, piece: Sequence[Outline], now: int, *, is_whole: bool) -> list[Row]:
    """The rows of a piece in key order; `is_whole` says that there are no others between its first and its last."""
    if is_whole:
        return rows.page(namespace, KeyRange(piece[0][0]), now, limit=len(piece))
    return sorted(rows.rows(namespace, [key for key, _, _ in piece]))


class Compared(NamedTuple):
    """A piece whose texts were compared: how many rows the source has in it, and the keys that differ in anything."""

    entries: int
    keys: list[str]


def compare(source: Rows, target: Rows, namespace: str, now: int) -> Iterator[Compared]:
    """Read every row of a namespace whole, on both sides, piece by piece, without a gap between the pieces."""
    low, span = "", EVERYTHING
    while True:
        outlines = source().outline(namespace, span, now, limit=ROWS_AT_ONCE)
        for piece in pieces(outlines):
            high = piece[-1][0] + "\0"
            yield from _compare(source(), target(), namespace, KeyRange(low, high), now, len(piece))
            low = high
        if len(outlines) < ROWS_AT_ONCE:
            for extra in keys_without(target, namespace, KeyRange(low), now, ()):
                yield Compared(0, extra)
            return
        span = behind(span, namespace, outlines[-1][0])


def _compare(
    source: Primitives, target: Primitives, namespace: str, span: KeyRange, now: int, size: int
) -> Iterator[Compared]:
    ours = source.page(namespace, span, now, limit=size)
    theirs = target.page(namespace, span, now, limit=size + 1)
    if ours == theirs:
        yield Compared(len(ours), [])
        return
    here = {row.key: row for row in ours}
    there = {row.key: row for row in target.rows(namespace, list(here))}
    yield Compared(len(ours), [key for key, row in here.items() if there.get(key) != row])
    for extra in keys_without(lambda: target, namespace, span, now, here.keys()):
        yield Compared(0, extra)


def keys_without(target: Rows, namespace: str, span: KeyRange, now: int, known: Container[str]) -> Iterator[list[str]]:
    """What the target has in a range besides the known keys, however many."""
    while keys := target().keys(namespace, span, now, limit=ROWS_AT_ONCE, offset=0, reverse=False):
        extra = [key for key in keys if key not in known]
        if extra:
            yield extra
        if len(keys) < ROWS_AT_ONCE:
            return
        span = behind(span, namespace, keys[-1])


def walk(rows: Rows, namespace: str, now: int) -> Iterator[list[Outline]]:
    """All of a namespace in order, without the texts."""
    span = EVERYTHING
    while outlines := rows().outline(namespace, span, now, limit=ROWS_AT_ONCE):
        yield outlines
        span = behind(span, namespace, outlines[-1][0])


def versions_of(rows: Primitives, namespace: str, keys: Sequence[str]) -> Iterator[tuple[str, int, int | None]]:
    """Those of the keys that are there, each with its version and `expires_at`."""
    start, many = 0, _FIRST_ROWS
    while start < len(keys):
        found = rows.rows(namespace, keys[start : start + many])
        yield from ((row.key, row.version, row.expires_at) for row in found)
        start += many
        size = sum(len(row.value) + len(row.metadata or "") for row in found)
        many = many * 4 if size * 8 < BYTES_AT_ONCE else max(1, many // 4)
