"""How the entries of a query are printed: a JSON object a line for a pipe, a table on a terminal.

Called by `querying`, and by the verbs that list keys.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec
import orjson
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mycelia_storage.arguments import MISSING
from mycelia_storage.cli import output
from mycelia_storage.filters import DOCUMENT, METADATA
from mycelia_storage.matching import Candidate, lookup

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mycelia_storage import Storage
    from mycelia_storage.entries import Entry
    from mycelia_storage.filters import Path

# A listing is read in pages of so many keys, so that it takes the same memory however long it is.
_PAGE: Final = 10_000
_LINES: Final = 500
_WIDEST_CELL: Final = 40
_GAP: Final = 2
_NAMED: Final = 20


class Form(NamedTuple):
    """What to print of each entry: some fields, everything, the key alone, or key and value."""

    fields: tuple[Path, ...] = ()
    is_whole: bool = False
    is_keys: bool = False


class _Column(NamedTuple):
    """A column by its heading; a document may have a member called "key" too."""

    name: str
    is_member: bool


def show_page(entries: Sequence[Entry[Any]], form: Form) -> None:
    """Print entries that are all there already."""
    if form.is_keys or not output.is_terminal():
        show_lines(entries, form)
    elif form.is_whole:
        for entry in entries:
            output.show_json(msgspec.to_builtins(entry))
    elif entries:
        _show_table(entries, form.fields)


def show_lines(entries: Iterable[Entry[Any]], form: Form) -> None:
    """Print entries as they come, a line each."""
    if form.is_keys:
        output.show_keys((entry.key for entry in entries), "\n")
        return
    lines: list[bytes] = []
    for entry in entries:
        lines.append(orjson.dumps(_line(entry, form), option=orjson.OPT_APPEND_NEWLINE))
        if len(lines) == _LINES:
            output.write(b"".join(lines))
            lines.clear()
    output.write(b"".join(lines))


def _line(entry: Entry[Any], form: Form) -> dict[str, Any]:
    if form.is_whole:
        return cast("dict[str, Any]", msgspec.to_builtins(entry))
    if form.fields:
        return {"key": entry.key, "value": _chosen(entry, form.fields)}
    return {"key": entry.key, "value": entry.value}


def _chosen(entry: Entry[Any], fields: tuple[Path, ...]) -> dict[str, Any]:
    """The fields that are there, by their paths."""
    found = ((str(field), _lookup(entry, field)) for field in fields)
    return {name: value for name, value in found if value is not MISSING}


def _lookup(entry: Entry[Any], path: Path) -> Any:
    if path.root not in (DOCUMENT, METADATA):
        value = getattr(entry, path.root[1:])
        return MISSING if value is None else msgspec.to_builtins(value)
    return lookup(path, Candidate(entry.key, entry.value, entry.metadata, entry.version, 0, 0, None))


def _show_table(entries: Sequence[Entry[Any]], fields: tuple[Path, ...]) -> None:
    """A table that keeps to the width of the terminal, unless its columns were chosen."""
    rows = [_row(entry, fields) for entry in entries]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    console = Console()
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    left = console.width
    shown: list[list[str]] = []
    for column in columns:
        values = [row.get(column, MISSING) for row in rows]
        cells = [output.escape_unseen(column.name), *map(_cell, values)]
        if not fields:
            cells = [_shortened(cell) for cell in cells]
            left -= max(map(cell_len, cells)) + _GAP
            if left < 0 and shown:
                break
        is_number = all(type(value) in (int, float) or value is MISSING for value in values)
        table.add_column(Text(cells[0]), justify="right" if is_number else "left", overflow="fold")
        shown.append(cells[1:])
    for texts in zip(*shown, strict=True):
        table.add_row(*map(Text, texts))
    console.print(table)
    if len(shown) < len(columns):
        sys.stdout.flush()
        left_out = [column.name for column in columns[len(shown) :]]
        more = ", …" if len(left_out) > _NAMED else ""
        output.report(f"no room for {', '.join(left_out[:_NAMED])}{more} (--show chooses columns)")


def _row(entry: Entry[Any], fields: tuple[Path, ...]) -> dict[_Column, Any]:
    """The columns of an entry: its key and the fields, or without any the members of its value."""
    value: Any = _chosen(entry, fields) if fields else entry.value
    members = cast("dict[str, Any]", value) if type(value) is dict else {"value": value}
    return {_Column("key", is_member=False): entry.key} | {
        _Column(name, is_member=True): found for name, found in members.items()
    }


def _cell(value: Any) -> str:
    if value is MISSING:
        return ""
    return output.escape_unseen(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _shortened(text: str) -> str:
    return text if cell_len(text) <= _WIDEST_CELL else set_cell_size(text, _WIDEST_CELL - 1) + "…"


def key_pages(store: Storage, limit: int | None, *, offset: int = 0, **what: Any) -> Iterator[list[str]]:
    """The keys of `list_keys` in pages, each begun behind the one before."""
    while limit is None or limit > 0:
        size = _PAGE if limit is None else min(_PAGE, limit)
        keys = store.list_keys(limit=size, offset=offset, **what)
        yield keys
        if len(keys) < size:
            return
        what["start_after"] = keys[-1]
        offset = 0
        limit = None if limit is None else limit - size
