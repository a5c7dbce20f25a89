"""The store that a command is about: how it is named, and how it is opened.

Called by every verb.
"""

from __future__ import annotations

import os
import urllib.parse
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from mycelia_storage import open_storage
from mycelia_storage.cli.failures import STORAGE_FAILED, CommandError, UsageError
from mycelia_storage.options import read_options

if TYPE_CHECKING:
    from mycelia_storage import Storage, StorageOptions

ENVIRONMENT: Final = "MYCELIA_STORAGE"
KEY: Final = "MYCELIA_STORAGE_KEY"
KEY_FILE: Final = "MYCELIA_STORAGE_KEY_FILE"
NEW_KEY: Final = "MYCELIA_STORAGE_NEW_KEY"
NEW_KEY_FILE: Final = "MYCELIA_STORAGE_NEW_KEY_FILE"

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
    options, known = options_from_environment(), read_options(target, {})
    if known.path and not create and not os.path.exists(known.path):
        raise CommandError(f"there is no store at {known.path}", STORAGE_FAILED)
    if known.backend == "postgresql":
        options["migrate"] = create
    return open_storage(target, **options)


def refuse_password(name: str, target: str) -> None:
    """Raise UsageError where an argument holds a password."""
    if "://" not in target:
        return
    parts = urllib.parse.urlsplit(target)
    if parts.password is not None or "password" in urllib.parse.parse_qs(parts.query):
        raise UsageError(
            f"{name}: no password in an argument, which everybody here can read: PGPASSWORD, or PGPASSFILE"
        )


def options_from_environment() -> StorageOptions:
    """What the environment says about how the store is opened. Raises UsageError, CommandError."""
    key = read_key(KEY, KEY_FILE)
    return {} if key is None else {"encryption_key": key}


def read_key(name: str, file_name: str) -> bytes | None:
    """A key from the environment, or from a file that it names; never an argument, which everybody here can read.

    A key file need not be text. A newline at its end is an editor's, and no part of the key.
    """
    text, path = os.environ.get(name), os.environ.get(file_name)
    if text is not None and path is not None:
        raise UsageError(f"{name} and {file_name} cannot go together")
    if text is not None:
        return os.fsencode(text)
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            key = file.read()
    except OSError as error:
        raise CommandError(f"{file_name}: {path} cannot be read: {error.strerror}", STORAGE_FAILED) from None
    return key.removesuffix(b"\n").removesuffix(b"\r")
