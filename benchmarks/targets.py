"""The figures that the library is held to, and how near a run came.

Called by `__main__`. A missed target is printed and changes no exit code: a busy machine is no defect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.async_tasks import LINES
from benchmarks.concurrency import STEADY, WITHOUT_PAUSE, Ours
from benchmarks.harness import MEASURE
from benchmarks.on_postgres import LEAST
from benchmarks.on_postgres import TITLES as TITLES_ON_POSTGRES
from benchmarks.paging import PAGE_SIZE
from benchmarks.peers import DiskCache, JsonDisk, SqliteDict, SqliteDictJson
from benchmarks.queries import LOAD, NAMESPACES, SAME_INDEX, SETS
from benchmarks.questions import QUESTIONS
from benchmarks.subjects import Sqlite
from benchmarks.workload import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.concurrency import Concurrency
    from benchmarks.harness import Results
    from benchmarks.importing import Import
    from benchmarks.moving import Moving
    from benchmarks.on_postgres import OnPostgres
    from benchmarks.opening import Opening
    from benchmarks.paging import Paging
    from benchmarks.queries import Queries
    from benchmarks.upkeep import Upkeep

OURS: Final = Sqlite.name
TITLES: Final = {operation.name: operation.title or operation.name for operation in OPERATIONS}
OPEN_AT_MOST: Final = 3.0
# Resident memory is to stay the same whatever the file; what an allocator keeps back differs by a little.
MEMORY_AT_MOST: Final = 1.1
LOADING_AT_LEAST: Final = 20.0
SET_WITH_INDEX: Final = 0.7
LAST_PAGE_AT_MOST: Final = 2.0
THREADS_GAIN: Final = (("FULL", 16, 2.0), ("FULL", 64, 3.0), ("NORMAL", 16, 0.5))
READS_BESIDE_A_WRITER: Final = 0.7
SLOWEST_AT_MOST: Final = 50.0
LEAST_SERVED: Final = 0.3
KEPT_AT_MOST: Final = 50.0
BACKUP_AT_LEAST: Final = 0.7
COPIED_A_SECOND: Final = 20_000.0
PAUSE_AT_MOST: Final = 1.0

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
                yield Verdict(f"{TITLES[operation.name]} vs {against}", f">= {least:g}", reached, reached >= least)


def judge_queries(queries: Queries) -> Iterator[Verdict]:
    """The verdicts on questions in both files, on asking instead of loading, and on writes with an index."""
    for results, where in ((queries.alone, ""), (queries.among, f", 1/{NAMESPACES} of the file")):
        for question in QUESTIONS:
            reached = results.ratio(question.name, OURS)
            if question.least and reached is not None:
                what = f"{question.name}{where} vs {MEASURE}"
                yield Verdict(what, f">= {question.least:g}", reached, reached >= question.least)
    for name in queries.loaded.seconds:
        reached = queries.loaded.ratio(name, OURS, LOAD)
        if reached is not None:
            what = f"{name}, {2 * queries.documents:,} documents vs {LOAD}"
            yield Verdict(what, f">= {LOADING_AT_LEAST:g}", reached, reached >= LOADING_AT_LEAST)
    for name in SETS:
        reached = queries.sets.ratio(name, OURS, SAME_INDEX)
        if reached is not None:
            what = f"{TITLES[name]}, with an index vs {SAME_INDEX}"
            yield Verdict(what, f">= {SET_WITH_INDEX:g}", reached, reached >= SET_WITH_INDEX)


def judge_paging(paging: Paging) -> Iterator[Verdict]:
    """The verdicts on the last page of many, for each sort."""
    for sort in paging.first:
        reached = paging.factor(sort)
        what = f"page of {PAGE_SIZE} at the end of {paging.entries:,} by {sort} vs the first"
        yield Verdict(what, f"<= {LAST_PAGE_AT_MOST:g}", reached, reached <= LAST_PAGE_AT_MOST)


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


def judge_concurrency(measured: Concurrency) -> Iterator[Verdict]:
    """The verdicts on writes of many threads, on reads beside a writer, and on fairness between processes."""
    ours = Ours.name
    for mode, threads, least in THREADS_GAIN:
        reached = measured.gain(mode, ours, threads)
        yield Verdict(f"sets at {mode}, {threads} threads vs one", f">= {least:g}", reached, reached >= least)
    for how in (STEADY, WITHOUT_PAUSE):
        kept = measured.kept(ours, how)
        what = f"reads by 4 threads, beside a writer vs none: {how}"
        yield Verdict(what, f">= {READS_BESIDE_A_WRITER:g}", kept, kept >= READS_BESIDE_A_WRITER)
    slowest = measured.spread(ours)
    what = "changes by 4 processes x 4 threads, p99.9 vs median"
    yield Verdict(what, f"<= {SLOWEST_AT_MOST:g}", slowest, slowest <= SLOWEST_AT_MOST)
    served = measured.least(ours)
    what = "the same, least served worker vs mean"
    yield Verdict(what, f">= {LEAST_SERVED:g}", served, served >= LEAST_SERVED)


def judge_tasks(results: Results) -> Iterator[Verdict]:
    """The verdicts on many asyncio tasks, and on one alone."""
    for line in LINES:
        reached = results.ratio(line.name, OURS)
        if reached is not None:
            yield Verdict(f"{line.name} vs {MEASURE}", f">= {line.least:g}", reached, reached >= line.least)


def judge_upkeep(measured: Upkeep) -> Iterator[Verdict]:
    """The verdicts on how long a `set` waits while expired entries are removed, and on the speed of backups."""
    for removal in measured.removals:
        what = f"longest set while {removal.entries:,} of {removal.value_bytes:,} bytes are removed, ms"
        yield Verdict(what, f"<= {KEPT_AT_MOST:g}", removal.worst, removal.worst <= KEPT_AT_MOST)
    speed = measured.backups.speed
    yield Verdict("backup vs the plain backup API", f">= {BACKUP_AT_LEAST:g}", speed, speed >= BACKUP_AT_LEAST)


def judge_on_postgres(measured: OnPostgres) -> Iterator[Verdict]:
    """The verdicts on each operation on a PostgreSQL server."""
    for operation, least in LEAST.items():
        reached = measured.ratio(operation)
        what = f"on PostgreSQL: {TITLES_ON_POSTGRES[operation]} vs psycopg by hand"
        yield Verdict(what, f">= {least:g}", reached, reached >= least)


def judge_moving(measured: Moving) -> Iterator[Verdict]:
    """The verdicts on copies into other stores: speed with verification, the pause of a switch, memory."""
    for leg in measured.legs:
        speed = leg.entries_per_second
        yield Verdict(
            f"copy to {leg.target}, verified, entries/s", f">= {COPIED_A_SECOND:,.0f}", speed, speed >= COPIED_A_SECOND
        )
        yield Verdict(
            f"pause of a switch to {leg.target}, seconds",
            f"<= {PAUSE_AT_MOST:g}",
            leg.pause,
            leg.pause <= PAUSE_AT_MOST,
        )
    small, large = (peak for _, peak in measured.peaks)
    grown = large / small
    yield Verdict("memory of a copy, large vs small", f"<= {MEMORY_AT_MOST:g}", grown, grown <= MEMORY_AT_MOST)
