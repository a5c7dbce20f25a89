"""The verb that changes the key of an encrypted store.

Called by `app`, where it is a command.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from mycelia_storage import rekey as rekey_file
from mycelia_storage.cli import output
from mycelia_storage.cli.failures import UsageError
from mycelia_storage.cli.opening import KEY, KEY_FILE, NEW_KEY, NEW_KEY_FILE, read_key, target_of
from mycelia_storage.options import read_options


def rekey(
    context: typer.Context,
    decrypt: Annotated[bool, typer.Option("--decrypt", help="Let the store be encrypted no longer.")] = False,
) -> None:
    """Encrypt the store with the key in MYCELIA_STORAGE_NEW_KEY, or in the file that …_NEW_KEY_FILE names.

    The key that it has is taken from MYCELIA_STORAGE_KEY or …_KEY_FILE. Nobody may have the store open.
    """
    target, new = target_of(context), read_key(NEW_KEY, NEW_KEY_FILE)
    if (new is None) != decrypt:
        raise UsageError(f"give a new key in {NEW_KEY} or {NEW_KEY_FILE}, or else --decrypt")
    started = time.monotonic()
    rekey_file(target, encryption_key=read_key(KEY, KEY_FILE), new_encryption_key=new)
    path, seconds = read_options(target, {}).path, round(time.monotonic() - started, 3)
    facts: dict[str, object] = {"path": path, "encrypted": not decrypt, "seconds": seconds}
    output.show_facts(facts, f"{path} is no longer encrypted" if decrypt else f"{path} is encrypted with the new key")
