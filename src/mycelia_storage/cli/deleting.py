"""The verb `delete`: by keys, by how keys begin, or by what documents contain.

Called by `app`. What names no keys deletes only with --yes, and tells how much it would be without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from mycelia_storage.cli import output
from mycelia_storage.cli.failures import InputError, UsageError
from mycelia_storage.cli.listing import key_pages
from mycelia_storage.cli.opening import Namespace, open_store, open_to_read
from mycelia_storage.cli.querying import Conditions, JSONFilter, read_filter
from mycelia_storage.keys import DEFAULT_NAMESPACE
from mycelia_storage.querying import read_choice

if TYPE_CHECKING:
    from mycelia_storage import Storage
    from mycelia_storage.filters import Filter

_AT_ONCE: Final = 10_000


def delete(
    context: typer.Context,
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", show_default=False)] = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    prefix: Annotated[str | None, typer.Option(metavar="TEXT", help="Delete all keys that begin with TEXT.")] = None,
    where: Conditions = None,
    json_filter: JSONFilter = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do delete by --prefix, --where or --filter.")] = False,
) -> None:
    """Delete the KEYs, or with --yes all that begin or match alike, in one transaction.

    --prefix and --where without --yes only tell how many it would be.
    """
    by_filter = bool(where) or json_filter is not None
    if bool(keys) + (prefix is not None) + by_filter != 1:
        raise UsageError("name keys to delete, or a --prefix, or conditions (--where, --filter): one of the three")
    if prefix == "":
        raise UsageError("an empty --prefix would delete every key")
    wanted = read_choice(read_filter(where, json_filter), "delete", otherwise="") if by_filter else None
    missing: list[str] = []
    if keys:
        with open_store(context) as store:
            deleted, missing = _delete_keys(store, keys, namespace)
    elif yes:
        with open_store(context) as store:
            if wanted is not None:
                deleted = store.delete_where(wanted, namespace=namespace)
            else:
                deleted = _delete_prefix(store, prefix or "", namespace)
    else:
        with open_to_read(context) as store:
            raise UsageError(_what_it_would_be(store, prefix, wanted, namespace))
    output.show_facts({"deleted": deleted}, f"deleted {output.entry_count(deleted)}")
    if missing:
        raise InputError(f"not found: {', '.join(map(repr, missing))}")


def _what_it_would_be(store: Storage, prefix: str | None, wanted: Filter | None, namespace: str) -> str:
    if prefix is not None:
        count = sum(map(len, key_pages(store, None, prefix=prefix, namespace=namespace)))
        which = f"{'key begins' if count == 1 else 'keys begin'} with {prefix!r}"
    else:
        count = store.count(wanted, namespace=namespace)
        which = "entry matches" if count == 1 else "entries match"
    return f"{count:,} {which}: add --yes to delete {'it' if count == 1 else 'them'}"


def _delete_keys(store: Storage, keys: list[str], namespace: str) -> tuple[int, list[str]]:
    """How many were deleted, and which were not there."""
    different = list(dict.fromkeys(keys))
    with store.transaction() as tx:
        missing = [key for key in different if not tx.delete(key, namespace=namespace)]
    return len(different) - len(missing), missing


def _delete_prefix(store: Storage, prefix: str, namespace: str) -> int:
    deleted = 0
    with store.transaction() as tx:
        while page := tx.list_keys(prefix=prefix, limit=_AT_ONCE, namespace=namespace):
            deleted += tx.delete_many(page, namespace=namespace)
    return deleted
