"""Documents out of a byte stream, one by one and in constant memory: JSON Lines, a JSON array or object, CSV.

Called by `importing`. A reader yields a `Record` for each document and a `Problem` for each one that is bad but can
be passed over; where it cannot go on behind a fault it raises `UnreadableError`.

An array or object is taken apart by the standard library's scanner over a window of text that moves along the
file. It keeps every integer and float as it is written and leaves a lone surrogate to be refused; event parsers in C
were tried, and refuse 2**63 - 1 or put a question mark without a word.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, TypeAlias

import msgspec

from mycelia_storage.cli.output import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader

# No document may be longer than this, so that a file without line ends or closing quotes does not fill the memory.
LONGEST_BYTES: Final = 1 << 28

_TOO_LONG: Final = f"longer than {LONGEST_BYTES:,} bytes"
_WINDOW_BYTES: Final = 1 << 18
# What a token cut off by the window's end may look like: at most "\ud83d\ude00" in a string, "1.5e+" in a number.
_LONGEST_TOKEN: Final = 16
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_STRING: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BAD_BYTE: Final = re.compile("[\udc80-\udcff]")
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")
_DECIMAL: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
# What the standard library says, followed by a place.
_OPEN_STRING: Final = "Unterminated string starting at"
_LINE_END: Final = "\n"
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


class UnreadableError(Exception):
    """The text cannot be read beyond this line or item."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number
        self.reason = reason


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


def decode_line(line: bytes) -> object:
    """The document in a line. Raises ValueError with a reason that shows nothing of it."""
    try:
        return msgspec.json.decode(line)
    except (ValueError, RecursionError):
        pass
    # Refused. The standard library tells why, and takes what the store itself refuses with a better reason (NaN).
    try:
        return json.loads(line.decode("utf-8-sig").rstrip())
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {_fault_in_line(error)}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {error.start + 1} of the line") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        raise ValueError("not JSON: a number has too many digits") from None


def _fault_in_line(error: json.JSONDecodeError) -> str:
    """What is wrong with a text, and where: its column, with the number of the line where there are several."""
    text = error.doc.rstrip()

    def place(position: int) -> str:
        column = f"column {position - text.rfind(_LINE_END, 0, position)}"
        return f"line {text.count(_LINE_END, 0, position) + 1}, {column}" if _LINE_END in text else column

    if text and error.pos >= len(text):
        return f"cut off behind {place(len(text) - 1)}"
    if error.msg == _OPEN_STRING:
        return f"cut off behind {place(len(text) - 1)}, in the string that begins at {place(error.pos)}"
    return f"{error.msg.removesuffix(' at')} at {place(error.pos)}"


def read_json_array(stream: BufferedReader) -> Records:
    """Each item of one JSON array."""
    text = _Window(stream)
    text.expect("[")
    if not text.accept("]"):
        while True:
            text.next_item()
            record = text.record(None, text.value())
            # Only what follows shows that the item is whole: 12 may be the beginning of 123 in a file cut off.
            is_last = text.expect_next_or("]")
            yield record
            if is_last:
                break
    text.next_item()
    text.expect("")


def read_json_object(stream: BufferedReader) -> Records:
    """Each member of one JSON object: its name is the key, its value the document."""
    text = _Window(stream)
    text.expect("{")
    if not text.accept("}"):
        while True:
            text.next_item()
            if text.look() != '"':
                text.fail("a name in double quotes is missing")
            key = text.value()
            text.expect(":")
            record = text.record(str(key), text.value())
            is_last = text.expect_next_or("}")
            yield record
            if is_last:
                break
    text.next_item()
    text.expect("")


class _Window:
    """The part of a JSON text that is being looked at. `number` is the item that is being read, from 1."""

    def __init__(self, stream: BufferedReader) -> None:
        self.number = 0
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._has_bad_bytes = False  # somewhere in the text
        self._is_spoiled = False  # in the item that is being read
        self._scan = json.JSONDecoder().raw_decode
        self._text = ""
        self._position = 0
        self._passed = 0  # characters that have left the window
        self._is_complete = False  # the window reaches to the end of the file

    def next_item(self) -> None:
        self.number += 1
        self._is_spoiled = False

    def record(self, key: str | None, value: object) -> Record | Problem:
        """The item that has been read."""
        return Problem(self.number, "not UTF-8") if self._is_spoiled else Record(self.number, key, value)

    def look(self) -> str:
        """The next character that is not white space, "" at the end."""
        while True:
            character = self._text[self._position : self._position + 1]
            if character and character not in " \t\n\r":
                return character
            if match := _SPACE.match(self._text, self._position):
                self._position = match.end()
            if self._position == len(self._text):
                if self._is_complete:
                    return ""
                self._extend()

    def accept(self, character: str) -> bool:
        """Whether `character` comes next; if so, go past it."""
        is_next = self.look() == character
        self._position += is_next
        return is_next

    def expect(self, character: str) -> None:
        """Go past `character`; with "" the text must end here."""
        found = self.look()
        if found != character:
            self.fail(f"{character!r} is missing" if character else "something follows the end")
        self._position += len(character)

    def expect_next_or(self, end: str) -> bool:
        """Go past the comma before a further item, or past `end`; tells whether it was the end."""
        is_end = self.accept(end)
        if not is_end and not self.accept(","):
            self.fail(f"',' or '{end}' is missing")
        return is_end

    def value(self) -> object:
        """The JSON value that comes next; the window grows until it is whole."""
        self.look()
        while True:
            try:
                value, end = self._scan(self._text, self._position)
            except json.JSONDecodeError as error:
                if self._is_complete or not self._is_cut_off(error.pos):
                    self.fail_json(error)
            except RecursionError:
                self.fail("nested too deeply")
            except ValueError:
                self.fail("not JSON: a number has too many digits")
            else:
                if self._is_complete or len(self._text) - end >= _LONGEST_TOKEN:
                    if self._has_bad_bytes and _BAD_BYTE.search(self._text, self._position, end):
                        self._is_spoiled = True
                    self._position = end
                    return value
            self._extend()

    def fail(self, reason: str, position: int | None = None) -> NoReturn:
        """Raise UnreadableError for the item that is being read, which is cut off where the text ends there."""
        place = self._position if position is None else position
        if self._is_complete and place >= len(self._text):
            raise UnreadableError(self.number, f"{reason}: cut off behind character {self._passed + place:,}")
        raise UnreadableError(self.number, f"{reason} at character {self._passed + place + 1:,}")

    def fail_json(self, error: json.JSONDecodeError) -> NoReturn:
        """Raise UnreadableError for what the scanner met."""
        end = len(self._text)
        if error.msg == _OPEN_STRING:
            begin = f"a string that begins at character {self._passed + error.pos + 1:,} does not end"
            self.fail(f"not JSON: {begin}", end)
        if error.pos >= len(self._text.rstrip()):
            self.fail("not JSON", end)
        self.fail(f"not JSON: {error.msg.removesuffix(' at')}", error.pos)

    def _is_cut_off(self, position: int) -> bool:
        """Whether a fault at `position` may be due to the window's end alone."""
        if position >= len(self._text) - _LONGEST_TOKEN:
            return True
        return self._text[position] == '"' and _STRING.match(self._text, position) is None

    def _extend(self) -> None:
        rest = self._text[self._position :]
        if len(rest) > LONGEST_BYTES:
            self.fail(f"longer than {LONGEST_BYTES:,} characters")
        self._passed += self._position
        # Doubling keeps the repeated scanning of a long document in proportion to its length.
        data = self._stream.read(max(_WINDOW_BYTES, len(rest)))
        self._is_complete = not data
        self._text = rest + self._decode(data)
        self._position = 0

    def _decode(self, data: bytes) -> str:
        try:
            return self._decoder.decode(data, final=not data)
        except UnicodeDecodeError:
            # From here on such a byte becomes a lone surrogate, which spoils the item it is in and no other.
            self._decoder.errors = "surrogateescape"
            self._has_bad_bytes = True
            return self._decoder.decode(data, final=not data)


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
