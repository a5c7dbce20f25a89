"""The verb that copies one store into another, of whichever engine, and brings such a copy up to date.

Called by `app`, where it is a command.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from mycelia_storage import CopyMismatchError, catch_up
from mycelia_storage import copy as copy_store
from mycelia_storage.cli import output
from mycelia_storage.cli.failures import UsageError
from mycelia_storage.cli.opening import (
    KEY,
    KEY_FILE,
    NEW_KEY,
    NEW_KEY_FILE,
    is_store_there,
    open_target,
    read_key,
    refuse_password,
    require_store,
)
from mycelia_storage.cli.progress import copying_bar
from mycelia_storage.options import read_options

if TYPE_CHECKING:
    from mycelia_storage import StorageOptions


def copy(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The store to read: a path, or a URL.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The store to make, or an earlier copy of SOURCE.")],
    namespaces: Annotated[
        list[str] | None,
        typer.Option("--namespaces", "-n", metavar="NAME", help="Only this namespace; may be given several times."),
    ] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not read everything back; compare keys and versions only.")
    ] = False,
    only_changes: Annotated[
        bool, typer.Option("--catch-up", help="TARGET is a copy: take over what has changed in SOURCE since.")
    ] = False,
) -> None:
    """Copy everything in SOURCE to TARGET, of whichever engine, or go on with a copy that was interrupted."""
    if no_verify and only_changes:
        raise UsageError("--catch-up reads back what it writes, and no more: leave out --no-verify")
    for name, store in (("SOURCE", source), ("TARGET", target)):
        refuse_password(name, store)
    key = read_key(KEY, KEY_FILE)
    new_key = read_key(NEW_KEY, NEW_KEY_FILE)
    with ExitStack() as stack:
        path = read_options(source, {}).path
        if path:
            require_store(path)
        own = read_options(target, {}).path
        if only_changes and own and not is_store_there(own):
            raise UsageError(f"there is no store at {own}: `copy` without --catch-up makes it")
        to_read: StorageOptions = {"read_only": True, **_options("SOURCE", source, key)}
        to_write = _options("TARGET", target, key if new_key is None else new_key)
        here = stack.enter_context(open_target(source, to_read, create=False))
        for name in namespaces or ():
            here.namespace_info(name)  # one that is not there is noticed before a target is made
        there = stack.enter_context(open_target(target, to_write, create=True))
        progress = stack.enter_context(copying_bar())
        try:
            if only_changes:
                report = catch_up(here, there, namespaces=namespaces, progress=progress)
            else:
                report = copy_store(here, there, namespaces=namespaces, verify=not no_verify, progress=progress)
        except CopyMismatchError as error:
            lines = [f"differs: {key!r} in namespace {namespace!r}" for namespace, key in error.keys]
            facts: dict[str, object] = {"differs": [list(pair) for pair in error.keys], "count": error.count}
            output.show_problems(facts, lines)
            raise
    done = f"{output.entry_count(report.entries)} of {output.counted(report.namespaces, 'namespace')} are in {target}"
    changed = f"{report.written:,} written, {report.deleted:,} deleted, {report.verified:,} read back"
    output.show_facts(msgspec.to_builtins(report), f"{done}: {changed} ({report.seconds:.1f} s)")


def _options(name: str, target: str, key: bytes | None) -> StorageOptions:
    backend = read_options(target, {}).backend
    if backend == "memory":
        raise UsageError(f"{name}: a store in memory is gone when the command ends")
    return {} if key is None or backend != "sqlite" else {"encryption_key": key}
