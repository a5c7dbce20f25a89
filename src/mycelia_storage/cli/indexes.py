"""The verbs `index create`, `index list` and `index drop`.

Called by `app`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from mycelia_storage.cli import output
from mycelia_storage.cli.failures import UsageError
from mycelia_storage.cli.opening import Namespace, open_store, open_to_read
from mycelia_storage.keys import DEFAULT_NAMESPACE

index: typer.Typer = typer.Typer(no_args_is_help=False, help="Make, list and drop indexes, which make queries fast.")


@index.command("create")
def create_index(
    context: typer.Context,
    fields: Annotated[
        list[str],
        typer.Argument(metavar="FIELD...", help="Paths such as address.city; -path descends (behind a --)."),
    ],
    namespace: Namespace = DEFAULT_NAMESPACE,
    everywhere: Annotated[bool, typer.Option("--all", help="One index over every namespace.")] = False,
    unique: Annotated[bool, typer.Option("--unique", help="No two entries may have the same value.")] = False,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name; without it, one that tells what it is.")
    ] = None,
) -> None:
    """Make an index on one FIELD or several; where an equal one is there, nothing changes."""
    if everywhere and namespace != DEFAULT_NAMESPACE:
        raise UsageError("--all and --namespace cannot go together")
    with open_store(context) as store:
        made = store.create_index(*fields, namespace=None if everywhere else namespace, unique=unique, name=name)
    output.show_facts({"name": made}, f"the index {made!r} is there")


@index.command("list")
def list_indexes(
    context: typer.Context,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Those of this namespace alone.")
    ] = None,
) -> None:
    """List the indexes, ordered by their names."""
    with open_to_read(context) as store:
        rows = [msgspec.to_builtins(info) for info in store.list_indexes(namespace=namespace)]
    headings = {
        "name": "name",
        "namespace": "namespace",
        "fields": "fields",
        "unique": "unique",
        "created_at": "created",
    }
    output.show_table(rows, headings)


@index.command("drop")
def drop_indexes(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="The names that list shows.")],
) -> None:
    """Remove indexes, all of those that are named or, where one is not there, none."""
    with open_store(context) as store, store.transaction() as tx:
        for name in dict.fromkeys(names):
            tx.drop_index(name)
    output.show_facts({"dropped": len(set(names))}, f"dropped {', '.join(map(repr, dict.fromkeys(names)))}")
