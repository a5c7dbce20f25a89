"""The verbs that look for damage, rescue what can be read, and take a file to another schema version.

Called by `app`, where they are commands.
"""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import typer

from mycelia_storage import salvage as salvage_file
from mycelia_storage.cli import output
from mycelia_storage.cli.failures import STORAGE_FAILED, CommandError, InputError, UsageError
from mycelia_storage.cli.opening import open_store, open_to_read, options_from_environment, require_store, target_of
from mycelia_storage.cli.progress import copying_bar
from mycelia_storage.engines.sqlite import schema
from mycelia_storage.errors import StorageCorruptError
from mycelia_storage.options import read_options


def check(context: typer.Context) -> None:
    """Read the whole store and look for damage."""
    with open_to_read(context) as store:
        try:
            found = store.check()
        except StorageCorruptError as error:
            if not error.problems:
                raise
            output.show_problems({"problems": list(error.problems), "count": error.count}, error.problems)
            were = "problem was" if error.count == 1 else "problems were"
            message = f"{error.count:,} {were} found: keep the file, restore a backup, or salvage what can be read"
            raise CommandError(message, STORAGE_FAILED) from error
    sentence = (
        f"nothing wrong with {output.entry_count(found.entries)} in {output.counted(found.namespaces, 'namespace')}"
    )
    output.show_facts(msgspec.to_builtins(found), f"{sentence} ({found.seconds:.1f} s)")


def salvage(
    context: typer.Context,
    into: Annotated[str, typer.Argument(metavar="PATH", help="The new file to make.")],
) -> None:
    """Copy what can be read of a damaged store's file to PATH, and tell what was lost."""
    source = _file_of(context)
    started = time.monotonic()
    with copying_bar() as progress:
        report = salvage_file(source, into, progress=progress)
    seconds = time.monotonic() - started
    facts = {"path": into, **msgspec.to_builtins(report), "seconds": round(seconds, 3)}
    lost = [f"lost: {entry.key!r} in namespace {entry.namespace!r}: {entry.reason}" for entry in report.lost_entries]
    lost += [f"lost: the index {index}" for index in report.lost_indexes]
    sentence = f"{output.entry_count(report.entries)} copied to {into} in {seconds:.1f} s"
    output.show_problems(facts, [*report.problems, *lost, sentence])
    if not report.is_complete:
        damages = output.counted(report.problem_count, "damage")
        indexes = output.counted(len(report.lost_indexes), "index", "indexes")
        raise InputError(f"{damages} in {source}; {output.entry_count(report.lost)} and {indexes} known to be lost")


def migrate(
    context: typer.Context,
    to: Annotated[
        int | None, typer.Option("--to", metavar="VERSION", min=1, help="The schema version; without it, the newest.")
    ] = None,
) -> None:
    """Bring the file to another schema version, in one transaction."""
    path = _file_of(context)
    wanted = schema.NEWEST if to is None else to
    before = schema.version_of(path, read_options(path, options_from_environment()).encryption_key)
    if before != wanted or wanted != 1:  # opening one of version 1 would migrate it
        with open_store(context, migrate=True) as store:
            store.migrate(to=wanted)
    facts: dict[str, object] = {"path": path, "from": before, "to": wanted}
    sentence = f"{path} is in schema version {wanted}" + ("" if before == wanted else f", and was in {before}")
    output.show_facts(facts, sentence)


def _file_of(context: typer.Context) -> str:
    path = read_options(target_of(context), {}).path
    if not path:
        raise UsageError("the store is no SQLite file")
    require_store(path)
    return path
