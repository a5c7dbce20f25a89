"""The figures that the library is held to, and how near a run came.

Called by `__main__`. A missed target is printed and changes no exit code: a busy machine is no defect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.harness import MEASURE
from benchmarks.peers import DiskCache, JsonDisk, SqliteDict, SqliteDictJson
from benchmarks.subjects import Sqlite
from benchmarks.workload import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.harness import Results
    from benchmarks.importing import Import
    from benchmarks.opening import Opening

OURS: Final = Sqlite.name
OPEN_AT_MOST: Final = 3.0
# Resident memory is to stay the same whatever the file; what an allocator keeps back differs by a little.
MEMORY_AT_MOST: Final = 1.1

_AGAINST_RAW: Final = {
    "set": 0.75, "overwrite": 0.75, "get": 0.6, "has": 0.5, "get_many": 0.7, "list_keys": 0.7, "count": 0.9,
    "set_many": 0.45, "delete": 0.7,
}  # fmt: skip
_AGAINST_DISKCACHE: Final = {"set": 2.0, "overwrite": 2.0, "get": 0.8, "has": 1.0}
# Both keep or scan a count in a way of their own: no target.
_TWICE: Final = {operation.name: 2.0 for operation in OPERATIONS if operation.name != "count"}

TARGETS: Final[dict[str, dict[str, float]]] = {
    MEASURE: _AGAINST_RAW,
    DiskCache.name: _AGAINST_DISKCACHE,
    JsonDisk.name: _TWICE,
    SqliteDict.name: _TWICE,
    SqliteDictJson.name: _TWICE,
}


@dataclass(frozen=True)
class Verdict:
    """One target and the figure that was reached."""

    what: str
    target: str
    reached: float
    is_met: bool


def judge(results: Results) -> Iterator[Verdict]:
    """A verdict for every target whose operation was measured on both sides."""
    for against, wanted in TARGETS.items():
        for operation in OPERATIONS:
            reached = results.ratio(operation.name, OURS, against)
            if operation.name in wanted and reached is not None:
                least = wanted[operation.name]
                title = operation.title or operation.name
                yield Verdict(f"{title} vs {against}", f">= {least:g}", reached, reached >= least)


def judge_opening(opening: Opening) -> Verdict:
    """The verdict on opening a large file."""
    reached = opening.factor(OURS)
    what = f"open {opening.entries:,} entries vs empty"
    return Verdict(what, f"<= {OPEN_AT_MOST:g}", reached, reached <= OPEN_AT_MOST)


def judge_imports(imports: Sequence[Import]) -> Verdict:
    """The verdict on the memory of importing the large file, by that of the small one."""
    small, large = imports
    reached = large.peak_mb / small.peak_mb
    what = f"memory, importing {large.documents:,} documents vs {small.documents:,}"
    return Verdict(what, f"<= {MEMORY_AT_MOST:g}", reached, reached <= MEMORY_AT_MOST)
