"""What a source no longer has and its copy still has: in which ranges of keys that is, and which keys they are.

Called by `moving.py`. Deletions leave nothing behind, so that they show in the numbers of keys only. Where those differ
is found in one of two ways:

1. By memory. Whoever copied or caught up remembers, as long as the process lives, how many keys the target had in each
   range in the end. The source is counted again, in these ranges; the target is not.
2. By counting. Both sides are counted, in ranges of so many keys.

What is remembered is a hint and no more: that all deletions were found is known by number and sum of the versions,
which `moving.py` compares afterwards. Where they do not come out, both sides are counted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakKeyDictionary

from mycelia_storage.keys import KeyRange
from mycelia_storage.lockstep import at_once, keys_without

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from mycelia_storage.lineage import Lineage
    from mycelia_storage.lockstep import Rows
    from mycelia_storage.storage import Storage

# Ranges have so many keys. Where a range begins costs a call: on a server more than to read those ranges that differ.
KEYS_COUNTED: Final = 250
KEYS_COUNTED_FAR: Final = 1000
RANGES_AT_ONCE: Final = 500
_COUNTED_AT_ONCE: Final = 2
# Of the ranges that differ about so many keys are read at once; a range with more goes by itself, in pieces.
KEYS_READ: Final = 20_000
# Of a namespace more ranges than this are not remembered, but longer ones; nothing is of more namespaces, since each is
# counted by itself, or where a range has become so long that it would take long to read.
RANGES_KEPT: Final = 10_000
NAMESPACES_KEPT: Final = 50
KEYS_KEPT: Final = 20_000


class Ranges:
    """All keys of a namespace in ranges: the first key of each, and how many there are in it."""

    def __init__(self) -> None:
        self.lows: list[str] = [""]
        self.counts: list[int] = [0]

    def add(self, keys: Sequence[str]) -> None:
        """These keys come next, in order."""
        for start in range(0, len(keys), KEYS_COUNTED):
            self._add(keys[start], len(keys[start : start + KEYS_COUNTED]))

    def _add(self, low: str, count: int) -> None:
        if not self.counts[-1]:
            self.counts[-1] = count
            return
        self.lows.append(low)
        self.counts.append(count)
        if len(self.lows) > RANGES_KEPT:
            self.counts = [sum(self.counts[start : start + 2]) for start in range(0, len(self.counts), 2)]
            del self.lows[1::2]

    def spans(self) -> list[KeyRange]:
        """Where they lie."""
        return [KeyRange(low, high) for low, high in pairwise([*self.lows, None]) if low is not None]

    def counted(self, rows: Rows, namespace: str, now: int) -> Ranges:
        """The same ranges, with as many keys as there are now."""
        ranges = Ranges()
        ranges.lows, ranges.counts = self.lows, rows().counts(namespace, self.spans(), now)
        return ranges

    def with_more(self, keys: Iterable[str]) -> Ranges:
        """The same ranges, with these keys besides."""
        ranges = Ranges()
        ranges.lows, ranges.counts = self.lows, list(self.counts)
        for key in keys:
            ranges.counts[bisect_right(self.lows, key) - 1] += 1
        return ranges

    def unlike(self, other: Ranges) -> Iterator[Suspicion]:
        """Those that have another number of keys there."""
        for span, ours, theirs in zip(self.spans(), self.counts, other.counts, strict=True):
            if ours != theirs:
                yield Suspicion(span, max(ours, theirs))


class Suspicion(NamedTuple):
    """A range in which the sides differ in their number of keys, and the greater one of these."""

    span: KeyRange
    keys: int


# ---- what is remembered


class _Memory(NamedTuple):
    """Of what the target was, and which namespaces were chosen: it holds for the same ones only."""

    lineage: Lineage
    chosen: tuple[str, ...] | None
    ranges: dict[str, Ranges]


_memories: Final[WeakKeyDictionary[Storage, _Memory]] = WeakKeyDictionary()


def remember(
    target: Storage, lineage: Lineage, chosen: tuple[str, ...] | None, ranges: dict[str, Ranges] | None
) -> None:
    """Keep how many keys the target has; None where that is not known."""
    if ranges is None or len(ranges) > NAMESPACES_KEPT:
        return
    longest = max((max(of_one.counts) for of_one in ranges.values()), default=0)
    entries = sum(sum(of_one.counts) for of_one in ranges.values())
    if longest <= max(KEYS_KEPT, 10 * entries // RANGES_KEPT):
        _memories[target] = _Memory(lineage, chosen, ranges)


def recall(target: Storage, lineage: Lineage, chosen: tuple[str, ...] | None) -> dict[str, Ranges] | None:
    """What was kept, where nobody else has brought the target up to date since, and forget it."""
    memory = _memories.pop(target, None)
    return None if memory is None or memory[:2] != (lineage, chosen) else memory.ranges


# ---- counting both sides


class Cutter(NamedTuple):
    """Who tells where the ranges begin, and how many keys they have there."""

    is_target: bool
    size: int


def cutter(*, is_source_far: bool, is_target_far: bool) -> Cutter:
    """The side that is no server, the source where both are or none is."""
    is_far = is_source_far and is_target_far
    return Cutter(is_source_far and not is_target_far, KEYS_COUNTED_FAR if is_far else KEYS_COUNTED)


def suspicious(
    source: Rows, target: Rows, namespace: str, now: int, by: Cutter, counted: Ranges
) -> Iterator[Suspicion]:
    """The ranges of a namespace in which the source has another number of keys than the target.

    The target counts some while others are found, or read by whoever gets them. `counted` is filled with what the
    source has.
    """
    counted.lows, counted.counts = [], []
    spans = _cut(target if by.is_target else source, namespace, now, by.size)
    with ThreadPoolExecutor(_COUNTED_AT_ONCE, thread_name_prefix="mycelia-moving") as pool:
        under_way: deque[tuple[list[KeyRange], list[int], Future[list[int]]]] = deque()
        while True:
            while len(under_way) < _COUNTED_AT_ONCE and (some := list(islice(spans, RANGES_AT_ONCE))):
                theirs = pool.submit(target().counts, namespace, some, now)
                under_way.append((some, _counted(source, namespace, some, now, by), theirs))
            if not under_way:
                return
            some, ours, of_target = under_way.popleft()
            counted.lows += [span.low for span in some]
            counted.counts += ours
            for span, here, there in zip(some, ours, of_target.result(), strict=True):
                if here != there:
                    yield Suspicion(span, max(here, there))


def _counted(source: Rows, namespace: str, spans: list[KeyRange], now: int, by: Cutter) -> list[int]:
    """How many keys the source has, which is known of those that it was cut in, but for the last one."""
    unknown = spans if by.is_target else [span for span in spans if span.high is None]
    counts = source().counts(namespace, unknown, now) if unknown else []
    return [by.size] * (len(spans) - len(counts)) + counts


def _cut(rows: Rows, namespace: str, now: int, size: int) -> Iterator[KeyRange]:
    """All keys in ranges of so many."""
    low: str | None = ""
    while low is not None:
        found = rows().keys(namespace, KeyRange(low), now, limit=1, offset=size, reverse=False)
        high = found[0] if found else None
        yield KeyRange(low, high)
        low = high


# ---- reading them


def surplus(source: Rows, target: Rows, namespace: str, found: Iterable[Suspicion], now: int) -> Iterator[list[str]]:
    """The keys of such ranges that only the target has. An index on the keys alone gives them, on every engine."""
    for some in _batches(found):
        if len(some) == 1 and some[0].keys > KEYS_READ:
            span = some[0].span
            known = set(source().keys(namespace, span, now, limit=None, offset=0, reverse=False))
            yield from keys_without(target, namespace, span, now, known)
            continue
        spans = [each.span for each in some]
        ours, theirs = at_once(
            partial(source().keys_in, namespace, spans, now), partial(target().keys_in, namespace, spans, now)
        )
        here = set(ours)
        yield [key for key in theirs if key not in here]


def _batches(found: Iterable[Suspicion]) -> Iterator[list[Suspicion]]:
    batch: list[Suspicion] = []
    keys = 0
    for each in found:
        if batch and keys + each.keys > KEYS_READ:
            yield batch
            batch, keys = [], 0
        batch.append(each)
        keys += each.keys
    if batch:
        yield batch
