"""The store that a command is about: how it is named, and how it is opened.

Called by every verb.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from mycelia_storage import open_storage
from mycelia_storage.cli.failures import STORAGE_FAILED, CommandError, UsageError
from mycelia_storage.options import read_options

if TYPE_CHECKING:
    from mycelia_storage import Storage

ENVIRONMENT: Final = "MYCELIA_STORAGE"

Namespace = Annotated[str, typer.Option("--namespace", "-n", metavar="NAME", help="The namespace.")]


def target_of(context: typer.Context) -> str:
    """What --store or the environment names. Raises UsageError when neither does."""
    target = cast("str | None", context.obj)
    if target is None:
        raise UsageError(f"name the store: --store TARGET before the verb, or {ENVIRONMENT} in the environment")
    return target


def open_store(context: typer.Context, *, create: bool = False) -> Storage:
    """The store; only a verb that writes makes a new one, so that a slip in the name is noticed."""
    target = target_of(context)
    path = read_options(target, {}).path
    if path and not create and not os.path.exists(path):
        raise CommandError(f"there is no store at {path}", STORAGE_FAILED)
    return open_storage(target)
