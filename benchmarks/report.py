"""What a run prints: aligned tables, verdicts, and the same as JSON.

Called by `__main__`; nothing is measured or decided here.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import apsw

from benchmarks.concurrency import ALONE, CROWDS, PROCESSES, READERS, STEADY, THREADS_EACH, WITHOUT_PAUSE
from benchmarks.guards import UNGUARDED
from benchmarks.harness import MEASURE
from benchmarks.moving import CHANGES
from benchmarks.on_postgres import TITLES as TITLES_ON_POSTGRES
from benchmarks.opening import FILES
from benchmarks.paging import PAGE_SIZE
from benchmarks.queries import NAMESPACES
from benchmarks.workload import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.concurrency import Concurrency
    from benchmarks.guards import Guards
    from benchmarks.harness import Results
    from benchmarks.importing import Import
    from benchmarks.moving import Moving
    from benchmarks.on_postgres import OnPostgres
    from benchmarks.opening import Opening
    from benchmarks.paging import Paging
    from benchmarks.queries import Queries
    from benchmarks.targets import Verdict
    from benchmarks.upkeep import Upkeep

NOTHING: Final = "–"
_PACKAGES: Final = (
    "mycelia-storage", "apsw", "orjson", "msgspec", "diskcache", "sqlitedict", "langgraph-checkpoint-sqlite",
)  # fmt: skip


@dataclass
class Measured:
    """What a run measured; what it did not is None or empty."""

    operations: Results | None = None
    queries: Queries | None = None
    paging: Paging | None = None
    opening: Opening | None = None
    imports: Sequence[Import] = ()
    imports_from: Sequence[Import] = ()
    concurrency: Concurrency | None = None
    tasks: Results | None = None
    upkeep: Upkeep | None = None
    moving: Moving | None = None
    on_postgres: OnPostgres | None = None
    guards: Guards | None = None


def environment() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    versions: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "sqlite of apsw": apsw.sqlite_lib_version(),
        "sqlite of the standard library": sqlite3.sqlite_version,
        **versions,
    }


def environment_lines() -> list[str]:
    """The environment, to stand above everything else."""
    return [", ".join(f"{name} {value}" for name, value in environment().items())]


def workload_lines(results: Results, subjects: Sequence[str], width: int) -> list[str]:
    """Microseconds by operation and subject, and in the last columns the speeds relative to the raw loop."""
    operations = [operation for operation in OPERATIONS if operation.name in results.seconds]
    names = [["operation", *(operation.title or operation.name for operation in operations)]]
    names.append(["per", *(operation.per for operation in operations)])
    times = [
        [name, *(figure(results.microseconds(operation.name, name)) for operation in operations)] for name in subjects
    ]
    ratios = [
        [name, *(figure(results.ratio(operation.name, name)) for operation in operations)]
        for name in subjects
        if name != MEASURE
    ]
    return side_by_side(
        [("", names), ("microseconds", times), (f"speed, {MEASURE} = 1 (more is faster)", ratios)], width
    )


def query_lines(queries: Queries) -> list[str]:
    """Microseconds and speeds of the questions in both files, of asking beside loading, and of writes with an index."""
    tables = (
        (f"{queries.documents:,} documents, which are all there is", queries.alone),
        (f"{queries.documents:,} documents, among {NAMESPACES} times as many", queries.among),
        (f"{2 * queries.documents:,} documents, asked for or loaded and filtered", queries.loaded),
        ("one write, with an index", queries.sets),
    )
    lines: list[str] = []
    for title, results in tables:
        lines += [title, *_result_lines(results), ""]
    return lines[:-1]


def guard_lines(guards: Guards) -> list[str]:
    """Microseconds and speeds of the operations, and of reading what was just opened."""
    title = f"checksums and encryption, {guards.documents:,} documents"
    first, second = (_result_lines(found, UNGUARDED) for found in (guards.results, guards.after_opening))
    return [title, *first, "", *second]


def _result_lines(results: Results, measure: str = MEASURE) -> list[str]:
    measured = results.seconds
    subjects = list(dict.fromkeys(name for by_subject in measured.values() for name in by_subject))
    names = [["query", *measured]]
    times = [[name, *(figure(results.microseconds(one, name)) for one in measured)] for name in subjects]
    ratios = [
        [name, *(figure(results.ratio(one, name, measure)) for one in measured)] for name in subjects if name != measure
    ]
    return side_by_side([("", names), ("microseconds", times), (f"speed, {measure} = 1", ratios)], sys.maxsize)


def paging_lines(paging: Paging) -> list[str]:
    """What the first page takes and the last."""
    columns = [
        ["sorted by", *paging.first],
        ["first", *(figure(statistics.median(times)) for times in paging.first.values())],
        ["last", *(figure(statistics.median(times)) for times in paging.last.values())],
        ["times the first", *(figure(paging.factor(sort)) for sort in paging.first)],
    ]
    title = f"a page of {PAGE_SIZE} of {paging.entries:,} entries, microseconds"
    return [title, *side_by_side([("", columns)], width=sys.maxsize)[1:]]


def opening_lines(opening: Opening) -> list[str]:
    """Microseconds to open each kind of file."""
    columns: list[list[str]] = [["open", *FILES[:-1], f"{opening.entries:,} entries", "times the empty one"]]
    for name in opening.alone:
        for title, times in ((name, opening.alone[name]), (f"{name} + a read", opening.with_read[name])):
            columns.append([title, *(figure(times[file]) for file in FILES), figure(times["full"] / times["empty"])])
    return side_by_side([("microseconds", columns)], width=sys.maxsize)


def import_lines(imports: Sequence[Import], title: str = "import by the command line") -> list[str]:
    """What the imports of some files took."""
    columns = [
        ["file", *(one.file for one in imports)],
        ["file MB", *(f"{one.megabytes:.1f}" for one in imports)],
        ["documents", *(f"{one.documents:,}" for one in imports)],
        ["seconds", *(f"{one.seconds:.1f}" for one in imports)],
        ["documents/s", *(f"{one.documents / one.seconds:,.0f}" for one in imports)],
        ["resident MB at most", *(f"{one.peak_mb:.1f}" for one in imports)],
    ]
    return side_by_side([(title, columns)], width=sys.maxsize)


def concurrency_lines(measured: Concurrency) -> list[str]:
    """What threads and processes got done a second, and how long they waited for each other."""
    rows: list[list[str]] = []
    for mode, by_subject in measured.writes.items():
        for name, by_threads in by_subject.items():
            a_second = [figure(statistics.median(rounds)) for rounds in by_threads.values()]
            gains = [figure(measured.gain(mode, name, threads)) for threads in by_threads]
            rows.append([mode, name, *a_second, *gains[1:]])
    threads = [str(number) for number in next(iter(next(iter(measured.writes.values())).values()))]
    titles = ["synchronous", "", *threads, *(f"{number} vs 1" for number in threads[1:])]
    lines = ["sets a second, by the number of threads", *_table(titles, rows), ""]
    rows = [
        [
            name,
            *(figure(statistics.median(found)) for found in by_how.values()),
            *(figure(measured.kept(name, how)) for how in (STEADY, WITHOUT_PAUSE)),
        ]
        for name, by_how in measured.reads.items()
    ]
    titles = ["", ALONE, STEADY, WITHOUT_PAUSE, "kept, steady", "kept, without pause"]
    lines += [f"reads a second by {READERS} threads, beside", *_table(titles, rows), ""]
    rows = [
        [name, *(figure(statistics.median(found)) for found in by_threads.values())]
        for name, by_threads in measured.crowds.items()
    ]
    lines += ["reads a second, by the number of threads", *_table(["", *map(str, CROWDS)], rows), ""]
    rows = [[name, *map(figure, _contention(measured, name))] for name in measured.turns]
    titles = ["", "a second", "median µs", "p99.9 µs", "p99.9 vs median", "least vs mean"]
    return [*lines, f"changes of one number, {PROCESSES} processes x {THREADS_EACH} threads", *_table(titles, rows)]


def task_lines(results: Results) -> list[str]:
    """Microseconds a document by line and subject, and the speeds relative to the raw loop."""
    names = list(dict.fromkeys(name for by_subject in results.seconds.values() for name in by_subject))
    names.sort(key=lambda name: name != MEASURE)
    times = [[line, *(figure(results.microseconds(line, name)) for name in names)] for line in results.seconds]
    ratios = [[line, *(figure(results.ratio(line, name)) for name in names[1:])] for line in results.seconds]
    lines = ["asyncio tasks: microseconds a document", *_table(["", *names], times), ""]
    return [*lines, f"asyncio tasks: speed, {MEASURE} = 1 (more is faster)", *_table(["", *names[1:]], ratios)]


def upkeep_lines(measured: Upkeep) -> list[str]:
    """How long a `set` took at most before and during the removal, how long that took, and what backups took."""
    rows = [
        [
            f"{removal.entries:,} x {removal.value_bytes:,} bytes",
            *(figure(statistics.median(rounds)) for rounds in (removal.before, removal.beside)),
            figure(max(removal.beside)),
            figure(statistics.median(removal.seconds)),
        ]
        for removal in measured.removals
    ]
    titles = ["", "before", "meanwhile", "in any round", "seconds"]
    lines = ["removal of expired entries: milliseconds of the longest set", *_table(titles, rows), ""]
    backups = measured.backups
    times = [figure(statistics.median(rounds)) for rounds in (backups.raw, backups.ours)]
    row = [f"{backups.megabytes:,.0f} MB", *times, figure(backups.speed)]
    return [*lines, "backups: seconds", *_table(["", "plain API", "sqlite", "speed, plain API = 1"], [row])]


def postgres_lines(measured: OnPostgres) -> list[str]:
    """Microseconds of each operation, by hand and by this library."""
    rows = [
        [
            TITLES_ON_POSTGRES[operation],
            *(figure(statistics.median(side[operation])) for side in (measured.by_hand, measured.ours)),
            figure(measured.ratio(operation)),
        ]
        for operation in measured.ours
    ]
    title = f"on PostgreSQL {measured.version}, {measured.documents:,} documents: microseconds a call"
    return [title, *_table(["", "psycopg by hand", "postgresql", "speed, by hand = 1"], rows)]


def moving_lines(measured: Moving) -> list[str]:
    """Seconds and rates of copies into each target, and the memory of the command."""
    titles = ["from sqlite to", "entries", "copy", "verify", "entries/s", "again", "idle catch-up", "pause"]
    rows = [
        [
            leg.target,
            f"{leg.entries:,}",
            *(figure(seconds) for seconds in (leg.copying, leg.verifying)),
            f"{leg.entries_per_second:,.0f}",
            *(figure(seconds) for seconds in (leg.again, leg.idle, leg.pause)),
        ]
        for leg in measured.legs
    ]
    memory = [[f"{entries:,}", figure(megabytes)] for entries, megabytes in measured.peaks]
    lines = [f"moving: seconds; a pause takes over {CHANGES:,} changes", *_table(titles, rows), ""]
    return [*lines, "memory of the command", *_table(["entries", "MB at most"], memory)]


def _contention(measured: Concurrency, name: str) -> list[float]:
    turns = measured.turns[name]
    return [
        statistics.median(turn.changes_per_second for turn in turns),
        statistics.median(turn.median_us for turn in turns),
        statistics.median(turn.p999_us for turn in turns),
        measured.spread(name),
        measured.least(name),
    ]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    columns = [[title, *(row[number] for row in rows)] for number, title in enumerate(titles)]
    return side_by_side([("", columns)], width=sys.maxsize)[1:]


def verdict_lines(verdicts: Iterable[Verdict], note: str) -> list[str]:
    """Each target with the figure reached."""
    rows = list(verdicts)
    columns = [
        ["target", *(row.what for row in rows)],
        ["wanted", *(row.target for row in rows)],
        ["reached", *(figure(row.reached) for row in rows)],
        ["", *("ok" if row.is_met else "missed" for row in rows)],
    ]
    return [*side_by_side([("", columns)], width=sys.maxsize)[1:], *([note] if note else [])]


def side_by_side(blocks: Sequence[tuple[str, list[list[str]]]], width: int) -> list[str]:
    """Blocks of columns next to each other, or beneath each other where the terminal is narrower than that.

    The first block names the rows, so it is repeated beside each of the others when they are stacked. A block without
    columns is left out.
    """
    drawn = [_block(title, columns) for title, columns in blocks if columns]
    lines = ["   ".join(parts).rstrip() for parts in zip(*drawn, strict=True)]
    if max(map(len, lines)) <= width or len(drawn) == 1:
        return lines
    stacked: list[str] = []
    for block in drawn[1:]:
        stacked += ["   ".join(parts).rstrip() for parts in zip(drawn[0], block, strict=True)] + [""]
    return stacked[:-1]


def _block(title: str, columns: list[list[str]]) -> list[str]:
    """A title line and the rows, every column as wide as its widest cell; words to the left, figures to the right."""
    widths = [max(map(len, column)) for column in columns]
    rows = [
        "  ".join(
            cell.rjust(width) if _is_number(column[1:]) else cell.ljust(width)
            for cell, width, column in zip(cells, widths, columns, strict=True)
        )
        for cells in zip(*columns, strict=True)
    ]
    full = max([len(title), *map(len, rows)])
    return [title.ljust(full), *(row.ljust(full) for row in rows)]


def _is_number(cells: Sequence[str]) -> bool:
    return all(cell == NOTHING or cell.replace(",", "").replace(".", "").isdigit() for cell in cells)


def figure(value: float | None) -> str:
    """Three figures that count, two below a tenth; a dash for what was not measured."""
    if value is None:
        return NOTHING
    for least, places in ((99.95, 0), (9.995, 1), (0.0995, 2)):
        if value >= least:
            return f"{value:,.{places}f}"
    return f"{value:.3f}"


def as_json(measured: Measured, verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """Everything of a run as plain values."""
    answer: dict[str, Any] = {"environment": environment()}
    if measured.operations is not None:
        answer["operations"] = _plain(measured.operations)
    if measured.queries is not None:
        parts = ("alone", "among", "loaded", "sets")
        tables = {part: _plain(getattr(measured.queries, part)) for part in parts}
        answer["queries"] = {"documents": measured.queries.documents, **tables}
    if measured.paging is not None:
        answer["pages"] = vars(measured.paging)
    if measured.opening is not None:
        opening = measured.opening
        answer["open"] = {"entries": opening.entries, "alone": opening.alone, "with_read": opening.with_read}
    if measured.imports:
        answer["import"] = [vars(one) for one in measured.imports]
    if measured.imports_from:
        answer["import_from"] = [vars(one) for one in measured.imports_from]
    if measured.concurrency is not None:
        found = measured.concurrency
        writes = {mode: _by_threads(by_subject) for mode, by_subject in found.writes.items()}
        turns = {name: [vars(turn) for turn in rounds] for name, rounds in found.turns.items()}
        answer["threads"] = {
            "writes": writes,
            "reads": found.reads,
            "crowds": _by_threads(found.crowds),
            "turns": turns,
        }
    if measured.tasks is not None:
        answer["async"] = _plain(measured.tasks)
    if measured.moving is not None:
        answer["moving"] = {"legs": [vars(leg) for leg in measured.moving.legs], "peaks": measured.moving.peaks}
    if measured.on_postgres is not None:
        answer["postgres"] = vars(measured.on_postgres)
    if measured.upkeep is not None:
        removals = [vars(removal) for removal in measured.upkeep.removals]
        answer["upkeep"] = {"removals": removals, "backups": vars(measured.upkeep.backups)}
    if measured.guards is not None:
        guards = measured.guards
        found_both = {**guards.results.seconds, **guards.after_opening.seconds}
        answer["guards"] = {"documents": guards.documents, "seconds": found_both}
    answer["targets"] = [vars(verdict) for verdict in verdicts]
    return answer


def _by_threads(by_subject: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
    return {
        name: {str(threads): rounds for threads, rounds in by_threads.items()}
        for name, by_threads in by_subject.items()
    }


def _plain(results: Results) -> dict[str, Any]:
    return {
        operation: {
            name: {
                "microseconds": results.microseconds(operation, name),
                "speed": results.ratio(operation, name),
                "rounds": [seconds * 1e6 for seconds in rounds],
            }
            for name, rounds in by_subject.items()
        }
        for operation, by_subject in results.seconds.items()
    }
