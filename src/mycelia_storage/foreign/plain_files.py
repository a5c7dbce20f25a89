"""Files of other libraries that are no databases: opened to read, and held against what they were when that began.

Called by the files of the formats that nobody locks: TinyDB, and all of shelve but SQLite.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from mycelia_storage.engines.sqlite.telling import failing_as
from mycelia_storage.errors import ConfigError, StorageBusyError, StorageCorruptError

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Iterator
    from io import BufferedReader

    from mycelia_storage.foreign.found import Item


class PlainFile:
    """One file, of which pieces are read by their place."""

    def __init__(self, path: str, stack: contextlib.ExitStack) -> None:
        """Open a regular file until the stack is left. Raises ConfigError, StorageIOError."""
        self.path = path
        with failing_as(path):
            if not os.path.lexists(path):
                raise ConfigError(f"path: there is no file {path}")
            # Before it is opened: opening a pipe waits for whoever writes to it.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise ConfigError(f"path: {path} is no regular file")
            self.stream: BufferedReader = open(path, "rb")  # noqa: SIM115  the stack closes it
            stack.callback(self.stream.close)
            self._before = self._state()
        self.size: int = self._before[0]

    def piece(self, place: int, size: int) -> bytes:
        """So many bytes from there. Raises StorageCorruptError where they are not all there."""
        if place < 0 or size < 0 or place + size > self.size:
            raise self.damaged("what it refers to lies outside of it")
        with failing_as(self.path):
            self.stream.seek(place)
            data = self.stream.read(size)
        if len(data) < size:
            raise self.damaged("it ends too early")
        return data

    def damaged(self, reason: str) -> StorageCorruptError:
        """The error for a file that cannot be as it was written."""
        return StorageCorruptError(f"{self.path}: {reason}: the file is damaged")

    def require_unchanged(self) -> None:
        """Raise StorageBusyError where the file was written to since it was opened."""
        with failing_as(self.path):
            after = self._state()
        if after != self._before:
            raise StorageBusyError(f"{self.path}: the file was changed while it was read: end what writes to it")

    def _state(self) -> tuple[int, int]:
        about = os.fstat(self.stream.fileno())
        return about.st_size, about.st_mtime_ns


def steady(items: Iterator[Item], *files: PlainFile) -> Iterator[Item]:
    """The items, and at their end that nobody has changed the files meanwhile. Raises StorageBusyError."""
    try:
        yield from items
    except StorageCorruptError:
        for file in files:
            file.require_unchanged()  # the better reason
        raise
    for file in files:
        file.require_unchanged()
