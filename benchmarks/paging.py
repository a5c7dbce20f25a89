"""Whether a page at the end of many entries costs more than the first one.

Called by `__main__` for `--pages`. The cursor of the last page is not walked to but jumped to, by an offset, which is
not timed.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness import timed
from benchmarks.verify import WrongAnswerError
from benchmarks.workload import make_workload
from mycelia_storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mycelia_storage import Storage

PAGE_SIZE: Final = 100
# By the key, and in both directions of an index in which a thousand entries have the same value.
SORTS: Final = (None, "score", "-score")
_DISTINCT: Final = 1_000
_BATCH: Final = 10_000
_TIMES: Final = 25


@dataclass(frozen=True)
class Paging:
    """Microseconds of the first page and of the last full one, by what is sorted by; each of every turn."""

    entries: int
    first: dict[str, list[float]]
    last: dict[str, list[float]]

    def factor(self, sort: str) -> float:
        """How many times as long as the first page the last one takes: the median of the turns' ratios."""
        pairs = zip(self.first[sort], self.last[sort], strict=True)
        return statistics.median(last / first for first, last in pairs)


def measure_paging(entries: int, directory: Path, tell: Callable[[str], None]) -> Paging:
    """Ask for both pages again and again, of so many entries in a file in `directory`."""
    paging = Paging(entries, {}, {})
    documents = [document for _, document in make_workload(_DISTINCT).new]
    with open_storage(directory / "pages.db") as store:
        tell(f"pages: writing {entries:,} entries")
        for start in range(0, entries, _BATCH):
            numbers = range(start, min(start + _BATCH, entries))
            store.set_many([(f"entry:{number:09d}", documents[number % _DISTINCT]) for number in numbers])
        store.create_index("score")
        for sort in SORTS:
            title = sort or "key"
            tell(f"pages: sorted by {title}")
            cursor = _cursor_before_last(store, sort, entries)
            paging.first[title] = []
            paging.last[title] = []
            for _ in range(_TIMES):
                paging.first[title].append(timed(_page, store, sort, None) * 1e6)
                paging.last[title].append(timed(_page, store, sort, cursor) * 1e6)
    return paging


def _page(store: Storage, sort: str | None, cursor: str | None) -> Any:
    return store.query(sort=sort, limit=PAGE_SIZE, cursor=cursor)


def _cursor_before_last(store: Storage, sort: str | None, entries: int) -> str:
    """The cursor behind which there are a page and one entry more, so that both pages end with a cursor."""
    before = entries - PAGE_SIZE - 2
    cursor = store.query(sort=sort, limit=1, offset=before).cursor
    expected = store.query(sort=sort, limit=PAGE_SIZE, offset=before + 1).keys()
    got = [] if cursor is None else _page(store, sort, cursor).keys()
    if cursor is None or got != expected or len(got) != PAGE_SIZE:
        raise WrongAnswerError(f"the last page by {sort or 'key'}: {got!r:.200} and not {expected!r:.200}")
    return cursor
