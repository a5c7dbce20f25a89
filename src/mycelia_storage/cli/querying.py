"""The verbs `query`, `count` and `explain`: entries by what their documents contain.

Called by `app`, and by `deleting` for its conditions. `where` reads the conditions, `listing` prints what was found.
"""

from __future__ import annotations

import ast
import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Final, cast

import msgspec
import typer

from mycelia_storage.cli import listing, output
from mycelia_storage.cli.failures import UsageError
from mycelia_storage.cli.opening import Namespace, open_to_read
from mycelia_storage.cli.where import parse_where
from mycelia_storage.errors import InvalidFilterError
from mycelia_storage.json_texts import decode_line
from mycelia_storage.keys import DEFAULT_NAMESPACE
from mycelia_storage.query import parse_field, parse_filter, parse_sort

if TYPE_CHECKING:
    from mycelia_storage.filters import Filter

# A table is for reading; who wants more says so.
_TABLE_ROWS: Final = 100

Conditions = Annotated[
    list[str] | None,
    typer.Option("--where", "-w", metavar="CONDITION", help="Such as 'population>1000000'; several must all hold."),
]
JSONFilter = Annotated[
    str | None, typer.Option("--filter", metavar="JSON", help="A filter in its JSON form; - reads standard input.")
]
Sorting = Annotated[
    list[str] | None, typer.Option(metavar="FIELD", help="The order: a path, or -path from the greatest down.")
]
Limit = Annotated[int | None, typer.Option(min=0, help="At most so many.")]


def query(
    context: typer.Context,
    where: Conditions = None,
    json_filter: JSONFilter = None,
    sort: Sorting = None,
    limit: Limit = None,
    offset: Annotated[int, typer.Option(min=0, help="Leave out so many at the beginning.")] = 0,
    cursor: Annotated[str | None, typer.Option(metavar="TEXT", help="Go on where a page ended.")] = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    show: Annotated[
        list[str] | None, typer.Option(metavar="FIELD", help="Print these fields instead of the whole value.")
    ] = None,
    entry: Annotated[bool, typer.Option("--entry", help="Print metadata, version and times too.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="Print the keys alone, one a line.")] = False,
) -> None:
    """Print the entries that all conditions match, in key order or by --sort."""
    if (show is not None) + entry + keys > 1:
        raise UsageError("--show, --entry and --keys cannot go together")
    wanted = read_filter(where, json_filter)
    form = listing.Form(tuple(parse_field(text, "--show") for text in show or ()), is_whole=entry, is_keys=keys)
    order = list(parse_sort(sort, "--sort"))
    with open_to_read(context) as store:
        if limit is None and not output.is_terminal() and not order and cursor is None and not offset:
            with store.scan(wanted, namespace=namespace) as found:
                listing.show_lines(found, form)
            return
        rows = _TABLE_ROWS if limit is None and output.is_terminal() else limit
        page = store.query(wanted, sort=order, limit=rows, offset=offset, cursor=cursor, namespace=namespace)
    listing.show_page(page, form)
    if page.cursor is not None:
        # Flushed first, so that on a terminal it stands below the table.
        sys.stdout.flush()
        output.report(f"there is more: --cursor={page.cursor}")


def count(
    context: typer.Context,
    where: Conditions = None,
    json_filter: JSONFilter = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """Print how many entries all conditions match; without any, how many there are."""
    wanted = read_filter(where, json_filter)
    with open_to_read(context) as store:
        found = store.count(wanted, namespace=namespace)
    output.show_json(found)


def explain(
    context: typer.Context,
    where: Conditions = None,
    json_filter: JSONFilter = None,
    sort: Sorting = None,
    limit: Limit = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """Tell how a query would be run: the indexes it uses, and the one that would help."""
    wanted = read_filter(where, json_filter)
    with open_to_read(context) as store:
        plan = store.explain(wanted, sort=list(parse_sort(sort, "--sort")), limit=limit, namespace=namespace)
    facts = msgspec.to_builtins(plan)
    sql = facts.pop("sql")
    output.show_fields(facts | {"command": None if plan.advice is None else command_of(plan.advice), "sql": sql})


def command_of(advice: str) -> str:
    """A call of `create_index` as the command that does the same."""
    call = cast("ast.Call", ast.parse(advice, mode="eval").body)
    fields = [str(ast.literal_eval(field)) for field in call.args]
    words = [output.PROGRAM, "index", "create"]
    for keyword in call.keywords:
        words += [f"--{keyword.arg}", str(ast.literal_eval(keyword.value))]
    if any(field.startswith("-") for field in fields):
        words.append("--")
    return shlex.join([*words, *fields])


def read_filter(conditions: list[str] | None, text: str | None) -> Filter | None:
    """All conditions and the JSON filter together; None without any."""
    several = conditions is not None and len(conditions) > 1
    found = [
        parse_where(condition, f"--where {number}" if several else "--where")
        for number, condition in enumerate(conditions or (), start=1)
    ]
    if text is not None:
        found.append(_json_filter(sys.stdin.buffer.read() if text == "-" else os.fsencode(text)))
    return parse_filter(found, "filter") if found else None


def _json_filter(data: bytes) -> Filter:
    try:
        given = decode_line(data)
    except ValueError as error:
        raise UsageError(f"--filter is {error}") from None
    if given is None:
        raise InvalidFilterError("--filter: null is no filter; [] matches everything")
    return parse_filter(given, "--filter")
