"""The verbs that copy a whole store to a file and back, with a bar on a terminal.

Called by `app`, where they are commands.
"""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer

from mycelia_storage.cli import output
from mycelia_storage.cli.failures import STORAGE_FAILED, CommandError, UsageError
from mycelia_storage.cli.opening import is_store_there, open_store, open_to_read, options_from_environment, target_of
from mycelia_storage.cli.progress import copying_bar
from mycelia_storage.engines.sqlite import schema
from mycelia_storage.engines.sqlite.telling import failing_as
from mycelia_storage.options import read_options


def backup(
    context: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH", help="The file to make.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace PATH if it is there.")] = False,
) -> None:
    """Write the whole store to PATH, checked, while others use it."""
    if not overwrite and os.path.lexists(path):
        raise UsageError(f"{path} is there already: --overwrite replaces it")
    started = time.monotonic()
    with open_to_read(context) as store, copying_bar() as progress:
        store.backup(path, overwrite=overwrite, progress=progress)
    size, seconds = os.stat(path).st_size, time.monotonic() - started
    facts: dict[str, object] = {"path": path, "bytes": size, "seconds": round(seconds, 3)}
    output.show_facts(facts, f"backed up to {path}, {output.counted(size, 'byte')} in {seconds:.1f} s")


def restore(
    context: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A backup, or another file of a store.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do replace what the store holds.")] = False,
) -> None:
    """With --yes, put what PATH holds in place of everything in the store."""
    if not is_store_there(path):
        raise CommandError(f"there is no file {path}", STORAGE_FAILED)
    if not os.path.isfile(path):
        raise CommandError(f"{path} is no file", STORAGE_FAILED)
    known = read_options(target_of(context), options_from_environment())
    is_new = bool(known.path) and not is_store_there(known.path)
    if not yes:
        count = 0
        if not is_new:
            with open_to_read(context) as store:
                count = store.get_status().entries
        raise UsageError(f"the store holds {output.entry_count(count)}: add --yes to replace all of it by {path}")
    if is_new:
        with failing_as(path):
            schema.version_of(os.path.realpath(path), known.encryption_key)
    started = time.monotonic()
    with open_store(context, create=True, migrate=True) as store:
        with copying_bar() as progress:
            store.restore(path, progress=progress)
        count = store.get_status().entries
    seconds = time.monotonic() - started
    facts: dict[str, object] = {"path": path, "entries": count, "seconds": round(seconds, 3)}
    output.show_facts(facts, f"restored {output.entry_count(count)} from {path} in {seconds:.1f} s")
