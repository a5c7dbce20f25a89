"""JSON texts from outside: one that is there, and one that is taken apart while it is read, in constant memory.

Called by the command line's imports, and by those of other libraries' files.

For the second, the standard library's scanner works on a window that moves along a byte stream. It keeps every integer
and float as it is written and leaves a lone surrogate to be refused; event parsers in C were tried, and refuse
2**63 - 1 or put a question mark without a word.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

if TYPE_CHECKING:
    from io import BufferedReader

# No item may be longer than this, so that a file without closing quotes does not fill the memory.
LONGEST_BYTES: Final = 1 << 28

_WINDOW_BYTES: Final = 1 << 18
# What a token cut off by the window's end may look like: at most "\ud83d\ude00" in a string, "1.5e+" in a number.
_LONGEST_TOKEN: Final = 16
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_STRING: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BAD_BYTE: Final = re.compile("[\udc80-\udcff]")
# What the standard library says, followed by a place.
_OPEN_STRING: Final = "Unterminated string starting at"
_LINE_END: Final = "\n"


class UnreadableError(Exception):
    """The text cannot be read beyond this line or item."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number
        self.reason = reason


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


class JsonWindow:
    """The part of a JSON text that is being looked at. `number` is the item that is being read, from 1."""

    def __init__(self, stream: BufferedReader) -> None:
        self.number: int = 0
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
        """Count the item that comes next."""
        self.number += 1
        self._is_spoiled = False

    @property
    def is_spoiled(self) -> bool:
        """Whether a byte of the item that has been read is no UTF-8."""
        return self._is_spoiled

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
