"""The store that a command is about: how it is named, and how it is opened.

Called by every verb.
"""

from __future__ import annotations

import os
import urllib.parse
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from mycelia_storage import open_storage
from mycelia_storage.cli.failures import STORAGE_FAILED, CommandError, UsageError, exit_code_of
from mycelia_storage.engines.sqlite import schema
from mycelia_storage.engines.sqlite.failures import DRIVER_ERRORS
from mycelia_storage.engines.sqlite.places import is_there, why_not_written
from mycelia_storage.engines.sqlite.telling import failing_as
from mycelia_storage.errors import SchemaVersionError, StorageError
from mycelia_storage.options import read_options

if TYPE_CHECKING:
    from mycelia_storage import Storage, StorageOptions
    from mycelia_storage.options import Options

ENVIRONMENT: Final = "MYCELIA_STORAGE"
KEY: Final = "MYCELIA_STORAGE_KEY"
KEY_FILE: Final = "MYCELIA_STORAGE_KEY_FILE"
NEW_KEY: Final = "MYCELIA_STORAGE_NEW_KEY"
NEW_KEY_FILE: Final = "MYCELIA_STORAGE_NEW_KEY_FILE"

_FIRST_VERSION: Final = (
    "the file has schema version 1, as the JavaScript adapter writes it, and was not changed: `mycelia-storage migrate`"
    " brings it to this library's, after which that program cannot write to it (see the page on migrations)"
)

Namespace = Annotated[str, typer.Option("--namespace", "-n", metavar="NAME", help="The namespace.")]


def target_of(context: typer.Context) -> str:
    """What --store or the environment names. Raises UsageError when neither does."""
    target = cast("str | None", context.obj)
    if target is None:
        raise UsageError(f"name the store: --store TARGET before the verb, or {ENVIRONMENT} in the environment")
    return target


def open_store(context: typer.Context, *, create: bool = False, migrate: bool = False) -> Storage:
    """The store, to write to it; only a verb that may make a new one does, so that a slip in the name is noticed.

    `migrate` as in `open_target`.
    """
    target = target_of(context)
    path = read_options(target, {}).path
    if path and not create:
        require_store(path)
    return open_target(target, options_from_environment(), create=create, migrate=migrate)


def open_to_read(context: typer.Context) -> Storage:
    """The store, to read it; with `read_only` where the user may do no more than that with its file.

    Who may write to it opens it as everybody does: only then can what a killed program has left be undone, and no files
    are left beside it.
    """
    target, given = target_of(context), options_from_environment()
    path = read_options(target, {}).path
    if path:
        require_store(path)
        with failing_as(path):
            if why_not_written(path) is not None:
                given["read_only"] = True
    return open_target(target, given, create=False)


def is_store_there(path: str) -> bool:
    """Whether there is a file. Raises StorageIOError where nobody lets the user know."""
    with failing_as(path):
        return is_there(path)


def is_new_file(target: str) -> bool:
    """Whether a verb that makes stores would make a file. One that then fails should not leave an empty one behind."""
    path = read_options(target, {}).path
    return bool(path) and not is_store_there(path)


def require_store(path: str) -> None:
    """Raise CommandError where there is no file, StorageIOError where nobody lets the user know."""
    if not is_store_there(path):
        raise CommandError(f"there is no store at {path}", STORAGE_FAILED)


def open_target(target: str, given: StorageOptions, *, create: bool, migrate: bool = False) -> Storage:
    """The store of a verb, by its target and what else is known of it.

    A file of an older schema is for another program, which can write to it no longer once it is migrated. So no verb
    does that on its way: only `migrate`, and `restore`, which replaces everything.
    """
    known = read_options(target, given)
    if known.backend == "postgresql":
        given = {**given, "migrate": create}
    elif known.path:
        given = {**given, "migrate": migrate}
    try:
        return open_storage(target, **given)
    except SchemaVersionError as error:
        if known.path and not migrate and _is_first_version(known):
            raise CommandError(f"{known.path}: {_FIRST_VERSION}", exit_code_of(error)) from error
        raise


def _is_first_version(options: Options) -> bool:
    try:
        return schema.version_of(options.path, options.encryption_key) == 1
    except (StorageError, *DRIVER_ERRORS):  # then the first error says more
        return False


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
