"""Documents out of a byte stream, one by one and in constant memory: JSON Lines, a JSON array or object, CSV.

Called by `importing`. A reader yields a `Record` for each document and a `Problem` for each one that is bad but can
be passed over; where it cannot go on behind a fault it raises `UnreadableError`.

`json_texts` takes the texts themselves apart.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from mycelia_storage.cli.output import counted
from mycelia_storage.json_texts import LONGEST_BYTES, JsonWindow, UnreadableError, decode_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader

_TOO_LONG: Final = f"longer than {LONGEST_BYTES:,} bytes"
_WINDOW_BYTES: Final = 1 << 18
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")
_DECIMAL: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_MAX_INT: Final = 2**63 - 1


class Record(NamedTuple):
    """A document, the number of its line or item, its own key if the format has one, and its text fields (CSV)."""

    number: int
    key: str | None
    value: object
    texts: dict[str, str] | None = None


class Problem(NamedTuple):
    """A line or item that is no document, and why. The reason shows nothing of its content."""

    number: int
    reason: str


Records: TypeAlias = "Iterator[Record | Problem]"


def read_json_lines(stream: BufferedReader) -> Records:
    """A document from each line that is not blank."""
    number = 0
    while line := stream.readline(LONGEST_BYTES):
        number += 1
        if _is_cut_short(line, stream):
            yield Problem(number, _TOO_LONG)
        elif not line.isspace():
            try:
                record = Record(number, None, decode_line(line))
            except ValueError as error:
                yield Problem(number, str(error))
            else:
                yield record


def _is_cut_short(line: bytes, stream: BufferedReader) -> bool:
    """Whether `line` is only the beginning of one that is too long. If so, go past its rest."""
    if len(line) < LONGEST_BYTES or line.endswith(b"\n"):
        return False
    while (rest := stream.readline(_WINDOW_BYTES)) and not rest.endswith(b"\n"):
        pass
    return True


def read_json_array(stream: BufferedReader) -> Records:
    """Each item of one JSON array."""
    text = JsonWindow(stream)
    text.expect("[")
    if not text.accept("]"):
        while True:
            text.next_item()
            record = _record(text, None, text.value())
            # Only what follows shows that the item is whole: 12 may be the beginning of 123 in a file cut off.
            is_last = text.expect_next_or("]")
            yield record
            if is_last:
                break
    text.next_item()
    text.expect("")


def read_json_object(stream: BufferedReader) -> Records:
    """Each member of one JSON object: its name is the key, its value the document."""
    text = JsonWindow(stream)
    text.expect("{")
    if not text.accept("}"):
        while True:
            text.next_item()
            if text.look() != '"':
                text.fail("a name in double quotes is missing")
            key = text.value()
            text.expect(":")
            record = _record(text, str(key), text.value())
            is_last = text.expect_next_or("}")
            yield record
            if is_last:
                break
    text.next_item()
    text.expect("")


def _record(text: JsonWindow, key: str | None, value: object) -> Record | Problem:
    """The item that has been read."""
    return Problem(text.number, "not UTF-8") if text.is_spoiled else Record(text.number, key, value)


def read_csv(stream: BufferedReader, delimiter: str, convert: Callable[[str], object]) -> Records:
    """An object from each row below the header row. `convert` makes a column's text a value."""
    lines = _CsvLines(stream)
    csv.field_size_limit(LONGEST_BYTES)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        number = rows.line_num + 1
        row: list[str] | None
        try:
            row = next(rows, None)
        except csv.Error as error:
            row = []
            reason: str | None = lines.take_fault() or f"not CSV: {error}"
        else:
            reason = lines.take_fault()
        if row is None:
            break
        if names is None:
            names = _column_names(number, row, reason)
        elif reason is None and row and len(row) != len(names):
            yield Problem(number, f"{counted(len(row), 'column')}, where the header row has {len(names)}")
        elif reason is not None:
            yield Problem(number, reason)
        elif row:
            texts = dict(zip(names, row, strict=True))
            yield Record(number, None, {name: convert(text) for name, text in texts.items()}, texts)
    if names is None:
        raise UnreadableError(1, "no header row")


def infer_type(text: str) -> object:
    """What a CSV column's text looks like: a number, true, false, null for nothing, or else the text."""
    if not text:
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text) and -_MAX_INT - 1 <= int(text) <= _MAX_INT:
        return int(text)
    if not text.lstrip("-").isdigit() and _DECIMAL.fullmatch(text):
        number = float(text)
        return text if number in (float("inf"), float("-inf")) else number
    return text


class _CsvLines:
    """The lines that the csv module asks for, with the fault of those it was given since the last row."""

    def __init__(self, stream: BufferedReader) -> None:
        self._stream = stream
        self._fault: str | None = None

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(LONGEST_BYTES)
        if not line:
            raise StopIteration
        if _is_cut_short(line, self._stream):
            self._fault = _TOO_LONG
            return "\n"
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self._fault = f"not UTF-8: byte {error.start + 1} of the line"
            # The structure of quotes and line ends still counts, or the rows behind would be taken apart wrongly.
            return line.decode(errors="surrogateescape")

    def take_fault(self) -> str | None:
        fault, self._fault = self._fault, None
        return fault


def _column_names(number: int, row: list[str], reason: str | None) -> list[str]:
    """The header row's names. A fault in it spoils every document."""
    if reason is None and not row:
        reason = "the header row is blank"
    if reason is None and len(set(row)) < len(row):
        # Their places, because without a header row these are values of the first document.
        first, second = next((row.index(name), at) for at, name in enumerate(row) if row.index(name) < at)
        reason = f"the header row gives columns {first + 1} and {second + 1} the same name"
    if reason is not None:
        raise UnreadableError(number, reason)
    return row
