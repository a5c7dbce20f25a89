"""What the command line prints: JSON for a pipe, something readable for a terminal, one line for an error.

Called by every verb. Nothing that comes out of a store reaches a terminal as it is: what cannot be seen is escaped,
so that a key cannot move the cursor or change colours.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, cast

import orjson
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

PROGRAM: Final = "mycelia-storage"

_PERHAPS_UNSEEN: Final = re.compile(r"[^ -~]")
_SPACES: Final = re.compile(r"\s+")


def counted(number: int, one: str, many: str = "") -> str:
    """A number of things in words: `1 entry`, `2,000 entries`. `many` is `one` with an s unless given."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def entry_count(number: int) -> str:
    """A number of entries in words."""
    return counted(number, "entry", "entries")


def is_terminal() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout.isatty()


def escape_unseen(text: str, *, keep: str = "") -> str:
    """`text` with every character that is not visible (but a space) written as an escape; `keep` stays as it is."""

    def escaped(match: re.Match[str]) -> str:
        character = match[0]
        if character.isprintable() or character in keep:
            return character
        # As JSON spells it: the same in a key and inside a printed document.
        return json.dumps(character)[1:-1] if ord(character) != 0x7F else "\\u007f"

    return _PERHAPS_UNSEEN.sub(escaped, text)


def report(message: str) -> None:
    """Print one line on standard error, whatever the message holds."""
    sys.stderr.write(one_line(f"{PROGRAM}: {message}") + "\n")
    sys.stderr.flush()


def one_line(message: str) -> str:
    """The message without line breaks and with nothing that a terminal would obey."""
    return escape_unseen(_SPACES.sub(" ", message).strip())


class _Reporter(logging.Handler):
    """Gives what the library logs to a person who watches, and leaves the errors of a script to errors."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if sys.stderr.isatty():
            report(record.getMessage())


@contextmanager
def warnings_reported() -> Generator[None, None, None]:
    """Within the block the library's warnings are reports, and nothing that a terminal would obey."""
    logger = logging.getLogger("mycelia_storage")
    handler = _Reporter(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def write(data: bytes) -> None:
    """Write to standard output as it is: for a pipe, whose encoding is always UTF-8."""
    sys.stdout.buffer.write(data)


def show_json(value: object) -> None:
    """A document: one line of JSON for a pipe, indented and coloured on a terminal."""
    if not is_terminal():
        write(orjson.dumps(value) + b"\n")
        return
    text = escape_unseen(json.dumps(value, indent=2, ensure_ascii=False), keep="\n")
    Console().print(JSONHighlighter()(text), soft_wrap=True)


def show_text(text: str) -> None:
    """A text: exactly as it is for a pipe, with a line end and without control characters on a terminal."""
    if not is_terminal():
        write(text.encode())
        return
    sys.stdout.write(escape_unseen(text, keep="\n\t") + ("" if text.endswith("\n") else "\n"))


def show_keys(keys: Iterable[str], end: str) -> None:
    """Keys, each followed by `end`."""
    if is_terminal():
        sys.stdout.write("".join(escape_unseen(key) + end for key in keys))
    else:
        write("".join(key + end for key in keys).encode())


def show_facts(answer: dict[str, object], sentence: str) -> None:
    """What was done: JSON for a pipe, a sentence on a terminal."""
    if is_terminal():
        sys.stdout.write(one_line(sentence) + "\n")
    else:
        show_json(answer)


def show_problems(answer: dict[str, object], lines: Iterable[str]) -> None:
    """What was found: JSON for a pipe, a line each on a terminal."""
    if is_terminal():
        sys.stdout.write("".join(one_line(line) + "\n" for line in lines))
    else:
        show_json(answer)


def show_table(rows: Sequence[dict[str, object]], columns: dict[str, str]) -> None:
    """Rows: a JSON object a line for a pipe, a table with these `columns` (field: heading) on a terminal."""
    if not is_terminal():
        write(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        return
    table = Table(box=None, pad_edge=False)
    for field, heading in columns.items():
        is_number = bool(rows) and type(rows[0][field]) is int
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row[field])) for field in columns))
    Console().print(table)


def show_fields(fields: dict[str, object]) -> None:
    """One thing and what is known of it: a JSON object for a pipe, a field a line on a terminal."""
    if not is_terminal():
        show_json(fields)
        return
    flat: dict[str, object] = {}
    for name, value in fields.items():
        flat.update(cast("dict[str, object]", value) if isinstance(value, dict) else {name: value})
    width = max(map(len, flat))
    for name, value in flat.items():
        sys.stdout.write(f"{name:{width}}  {_cell(value)}\n")


def _cell(value: object) -> str:
    if type(value) is int:
        return f"{value:,}"
    if value is None:
        return ""
    return escape_unseen(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
