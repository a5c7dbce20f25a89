"""Where an import reads from: a file or standard input as a stream of bytes that counts itself, and its format.

Called by `importing`; `readers` take the stream apart.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from mycelia_storage.cli.export_format import is_header
from mycelia_storage.cli.failures import STORAGE_FAILED, CommandError, InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Protocol

    from _typeshed import WriteableBuffer

    class RawReader(Protocol):
        """The part of an unbuffered binary file that is used."""

        def read(self, size: int, /) -> bytes | None:
            """Up to `size` bytes, none at the end."""
            ...


Format: TypeAlias = Literal["jsonl", "array", "object", "csv", "export"]

_STDIN: Final = 0
_HEAD_BYTES: Final = 1 << 20
_BUFFER_BYTES: Final = 1 << 18
_UTF8_MARK: Final = b"\xef\xbb\xbf"
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_FORMAT_OF_SUFFIX: Final[dict[str, Format]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
}


class Source(io.RawIOBase):
    """A byte stream that can be looked at before it is read, and that knows how far it was read.

    `size` is None where nobody can know it, as for a pipe. A byte order mark of UTF-8 is left out.
    """

    def __init__(self, file: RawReader, name: str, size: int | None) -> None:
        super().__init__()
        self.name = name
        self.size = size
        self.bytes_read: int = 0
        self._file = file
        self._head = b""
        self._fill_head(4)
        if self._head.startswith(_UTF16_MARKS):
            raise InputError(f"{name} is UTF-16: convert it to UTF-8, with iconv for example")
        self._head = self._head.removeprefix(_UTF8_MARK)

    @property
    def suffix(self) -> str:
        """The ending of the name, in small letters."""
        return Path(self.name).suffix.lower()

    def first_line(self) -> tuple[bytes, bytes]:
        """The first line that is not blank and what is known to follow it, without reading past them.

        A line longer than a megabyte is given only in part, and nothing then follows.
        """
        while True:
            line, end, rest = self._head.lstrip().partition(b"\n")
            if (end and rest.strip()) or len(self._head) >= _HEAD_BYTES or not self._fill_head(len(self._head) + 1):
                return line, rest

    def buffered(self) -> io.BufferedReader:
        """The stream to read from."""
        return io.BufferedReader(self, _BUFFER_BYTES)

    def readable(self) -> bool:
        """Yes, as `io.RawIOBase` wants to be told."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read what fits; the primitive of `io.RawIOBase`."""
        view = memoryview(buffer).cast("B")
        data = self._head[: len(view)]
        if data:
            self._head = self._head[len(data) :]
        else:
            data = self._read(len(view))
        view[: len(data)] = data
        return len(data)

    def _fill_head(self, size: int) -> bool:
        """Look ahead until the head has `size` bytes, if the stream does; False at its end."""
        while len(self._head) < size:
            data = self._read(_BUFFER_BYTES)
            if not data:
                return False
            self._head += data
        return True

    def _read(self, size: int) -> bytes:
        try:
            data = self._file.read(size) or b""
        except OSError as error:
            raise CommandError(f"cannot read {self.name}: {error.strerror or error}", STORAGE_FAILED) from error
        self.bytes_read += len(data)
        return data


@contextmanager
def open_source(path: str) -> Generator[Source, None, None]:
    """The file at `path`, or standard input for `-`."""
    is_stdin = path == "-"
    name = "standard input" if is_stdin else path
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        descriptor = _STDIN if is_stdin else os.open(path, os.O_RDONLY)
        about = os.fstat(descriptor)
    except (OSError, ValueError) as error:  # ValueError: U+0000 in the name
        raise UsageError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
    with open(descriptor, "rb", buffering=0, closefd=not is_stdin) as file:
        yield Source(file, name, about.st_size if stat.S_ISREG(about.st_mode) else None)


def detect_format(source: Source) -> Format:
    """The format, from the name's ending and the first bytes; where these leave a doubt, a UsageError."""
    by_suffix = _FORMAT_OF_SUFFIX.get(source.suffix)
    if by_suffix == "csv":
        return "csv"
    line, rest = source.first_line()
    if is_header(line):
        return "export"
    if by_suffix is not None:
        return by_suffix
    if not line or line.startswith(b"["):
        return "array" if line else "jsonl"
    if line.startswith(b"{"):
        is_document = _is_json(line)
        if is_document and rest.lstrip().startswith(b"{"):
            return "jsonl"
        if source.suffix == ".json" or (rest.strip() and not is_document):
            return "object"  # in one line, or going on over several
    raise UsageError(
        f"cannot tell the format of {source.name} from its name and first bytes: name it with --format"
        " jsonl, array, object or csv"
    )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
