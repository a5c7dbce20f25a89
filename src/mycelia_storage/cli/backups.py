"""The verbs that copy a whole store to a file and back, with a bar on a terminal.

Called by `app`, where they are commands.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mycelia_storage import open_storage
from mycelia_storage.cli import output
from mycelia_storage.cli.failures import STORAGE_FAILED, CommandError, UsageError
from mycelia_storage.cli.opening import is_store_there, open_store, open_to_read, options_from_environment, target_of
from mycelia_storage.cli.progress import copying_bar
from mycelia_storage.engines.sqlite import copying, schema
from mycelia_storage.engines.sqlite.telling import failing_as
from mycelia_storage.errors import ConfigError
from mycelia_storage.options import read_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mycelia_storage import Storage
    from mycelia_storage.options import Options


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
    started = time.monotonic()
    if is_new:
        count = _restore_new(path, known)
    else:
        with open_store(context, create=True, migrate=True) as store:
            count = _restore_into(store, path)
    seconds = time.monotonic() - started
    facts: dict[str, object] = {"path": path, "entries": count, "seconds": round(seconds, 3)}
    output.show_facts(facts, f"restored {output.entry_count(count)} from {path} in {seconds:.1f} s")


def _restore_into(store: Storage, path: str) -> int:
    with copying_bar() as progress:
        store.restore(path, progress=progress)
    return store.get_status().entries


def _restore_new(path: str, known: Options) -> int:
    """Into a file that gets its name when all of it is there: a backup that turns out to be damaged leaves none."""
    with failing_as(path):
        schema.version_of(os.path.realpath(path), known.encryption_key)
    own = known.path
    with _directories_of(own), copying.file_beside(own) as partial:
        with open_storage(Path(partial), **options_from_environment()) as store:
            count = _restore_into(store, path)
        try:
            copying.put_in_place(partial, own, overwrite=False)
        except ConfigError as error:  # in words for programs
            message = f"{own} was made by another program meanwhile, and is as that one made it"
            raise CommandError(message, STORAGE_FAILED) from error
    return count


@contextlib.contextmanager
def _directories_of(path: str) -> Iterator[None]:
    """Make the directories that a new file wants; those that are empty at the end of the block go again."""
    made: list[str] = []
    directory = os.path.dirname(path)
    while not os.path.isdir(directory):
        made.append(directory)
        directory = os.path.dirname(directory)
    try:
        with failing_as(path):
            for each in reversed(made):
                os.mkdir(each, 0o700)
        yield
    finally:
        for each in made:
            with contextlib.suppress(OSError):
                os.rmdir(each)
