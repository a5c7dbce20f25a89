"""The verb `import-from`: the entries of another library's files into the store, with a report.

Called by `app`, where it is a command.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from mycelia_storage import ImportReport, import_from, open_storage
from mycelia_storage.cli import output
from mycelia_storage.cli.failures import INTERRUPTED, CommandError, InputError, exit_code_of, message_of
from mycelia_storage.cli.opening import is_store_there, open_target, options_from_environment, target_of
from mycelia_storage.cli.progress import entries_bar
from mycelia_storage.errors import BatchError, StorageError
from mycelia_storage.foreign.importing import require_source
from mycelia_storage.options import read_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from mycelia_storage import Storage

_NOTHING = ImportReport("", None, 0, 0, 0, 0, 0, 0, 0, (), (), (), False)


def import_from_library(
    context: typer.Context,
    kind: Annotated[
        Literal["sqlitedict", "diskcache", "shelve", "tinydb"], typer.Argument(metavar="LIBRARY", help="Whose files.")
    ],
    path: Annotated[str, typer.Argument(metavar="PATH", help="The file or directory that this library was given.")],
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", metavar="NAME", help="The namespace; default, or that of TinyDB's table."),
    ] = None,
    table: Annotated[
        str | None, typer.Option(metavar="NAME", help="One table of several (sqlitedict, tinydb).")
    ] = None,
    existing: Annotated[
        Literal["refuse", "overwrite", "skip"],
        typer.Option(help="A key that the store has with another value: a bad entry, replaced, or left as it is."),
    ] = "refuse",
    on_error: Annotated[
        Literal["stop", "skip"], typer.Option(help="At a bad entry: stop, or leave it out and go on.")
    ] = "stop",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing, and report what would happen.")] = False,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Entries a transaction.")] = 1000,
) -> None:
    """Take over what sqlitedict, diskcache, shelve or tinydb have stored at PATH."""
    require_source(kind, path, namespace, table)
    started = time.monotonic()
    with _open(context, is_dry=dry_run) as store, entries_bar() as show:
        run = functools.partial(
            import_from,
            store,
            kind,
            path,
            namespace=namespace,
            table=table,
            existing=existing,
            on_error=on_error,
            dry_run=dry_run,
            batch_size=batch_size,
        )
        last, stopped = _followed(run, show, is_dry=dry_run)
    seconds = time.monotonic() - started
    facts = {"path": path, **msgspec.to_builtins(last), "seconds": round(seconds, 3)}
    output.show_problems(facts, _lines(last, path, seconds))
    if stopped is not None:
        raise InputError(stopped)
    if last.failed:
        were = "was" if last.failed == 1 else "were"
        raise InputError(f"{output.counted(last.failed, 'bad entry', 'bad entries')} {were} left out")


def _followed(
    run: functools.partial[ImportReport], show: Callable[[int, int | None], object], *, is_dry: bool
) -> tuple[ImportReport, str | None]:
    """Run an import; its last report, and why it was stopped at a bad entry. Any other end tells what is stored."""
    last = _NOTHING

    def follow(report: ImportReport) -> None:
        nonlocal last
        last = report
        show(report.read, report.total)

    try:
        return run(progress=follow), None
    except BatchError as error:
        return last, str(error)
    except StorageError as error:
        if not last.written or is_dry:
            raise
        raise CommandError(f"{message_of(error)} ({_stored(last)})", exit_code_of(error)) from error
    except KeyboardInterrupt:
        raise CommandError(f"interrupted ({_stored(last)})", INTERRUPTED) from None


def _open(context: typer.Context, *, is_dry: bool) -> Storage:
    """The store, or for a dry run what is as good and cannot be written: no file is made, and none is migrated."""
    target = target_of(context)
    given = options_from_environment()
    options = read_options(target, given)
    if is_dry and options.backend != "memory":
        if options.path and not is_store_there(options.path):
            return open_storage("memory:")
        given["read_only"] = True
    return open_target(target, given, create=not is_dry)


def _stored(report: ImportReport) -> str:
    return f"{output.entry_count(report.written)} {'is' if report.written == 1 else 'are'} stored"


def _lines(report: ImportReport, path: str, seconds: float) -> list[str]:
    """What a person is told: each bad entry, what else there is to know, and the numbers."""
    lines = [f"{problem.key!r} in namespace {problem.namespace!r}: {problem.reason}" for problem in report.problems]
    if report.failed > len(report.problems):
        lines.append(f"… and {report.failed - len(report.problems):,} more")
    lines += [f"note: {note}" for note in report.notes]
    verb = "would be written" if report.dry_run else "written"
    parts = [f"{output.entry_count(report.read)} of {path} read in {seconds:.1f} s", f"{report.written:,} {verb}"]
    for number, what in (
        (report.replaced, "of them in place of others"),
        (report.unchanged, "there already"),
        (report.skipped, "left as the store has them"),
        (report.expired, "already expired"),
        (report.failed, "bad"),
    ):
        if number:
            parts.append(f"{number:,} {what}")
    return [*lines, "; ".join(parts)]
