"""Records what SQLite does to a disk, and rebuilds what a power cut may leave of it.

Called by the tests of power loss. `recording` puts every file that is opened under a directory on a driver's VFS that
passes everything through and keeps a log. A `Disk` is fed the log up to a position and says what may be there then:
what was synchronized is, and of the rest anything may be. What SQLite may rely on is what it assumes of any disk:

1. A sync brings the whole file to the disk. The first one of a new -journal or -wal is followed by one of the
   directory, which brings every earlier change of names; so is a deletion that asks for it. Nothing else does.
2. Names change in the order in which they were changed. Everything else that is not synchronized arrives in any order.
3. A write arrives by whole sectors, and leaves the bytes around it as they are.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import apsw

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

SECTOR: Final = 512
MODES: Final = ("nothing", "everything", "prefix", "subset", "torn")
Mode = Literal["nothing", "everything", "prefix", "subset", "torn"]

_RECORDED: Final = apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL
# A new file of one of these has its directory synchronized with it.
_WITH_DIRECTORY: Final = ("-journal", "-wal")


class Event(NamedTuple):
    """Something done to the file `name`, or a mark of the test: "begin" and "acknowledge" with a number as offset."""

    kind: Literal["create", "write", "truncate", "sync", "delete", "begin", "acknowledge"]
    name: str
    offset: int = 0
    data: bytes = b""
    is_synchronized: bool = False


class Log(apsw.VFS):
    """The VFS, and what it has seen: `before` is the directory as it was, `events` what came then."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.before: dict[str, bytes] = {}
        for name in os.listdir(directory):
            with open(os.path.join(directory, name), "rb") as file:
                self.before[name] = file.read()
        self.events: list[Event] = []
        self._known = set(self.before)
        super().__init__("recording", "unix")

    def begin(self, number: int) -> None:
        """From here on step `number` may be on the disk."""
        self.events.append(Event("begin", "", number))

    def acknowledge(self, number: int) -> None:
        """The caller was told, with a promise for power cuts, that step `number` is done."""
        self.events.append(Event("acknowledge", "", number))

    @property
    def acknowledged(self) -> int:
        """How many steps came with a promise."""
        return sum(event.kind == "acknowledge" for event in self.events)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - the driver's name
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if path is None or not flags[0] & _RECORDED or os.path.dirname(path) != self.directory:
            return apsw.VFSFile("unix", name, flags)
        file = _Recorded(self, os.path.basename(path), name, flags)
        if os.path.basename(path) not in self._known:
            self._known.add(os.path.basename(path))
            self.events.append(Event("create", os.path.basename(path)))
        return file

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - the driver's name
        super().xDelete(filename, syncdir)
        name = os.path.basename(filename)
        if os.path.dirname(filename) == self.directory and name in self._known:
            self._known.discard(name)
            self.events.append(Event("delete", name, is_synchronized=bool(syncdir)))


class _Recorded(apsw.VFSFile):
    def __init__(self, log: Log, short_name: str, name: Any, flags: list[int]) -> None:
        self._events = log.events
        self._name = short_name
        super().__init__("unix", name, flags)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - the driver's name
        super().xWrite(data, offset)
        self._events.append(Event("write", self._name, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - the driver's name
        super().xTruncate(newsize)
        self._events.append(Event("truncate", self._name, newsize))

    def xSync(self, flags: int) -> None:  # noqa: N802 - the driver's name
        # Nobody cuts the power of this machine: noting it is enough, and a hundred times as fast.
        self._events.append(Event("sync", self._name))


@contextlib.contextmanager
def recording(directory: str) -> Iterator[Log]:
    """Files that are opened in the block under `directory` are recorded. None of them may be open before."""
    log = Log(directory)
    apsw.set_default_vfs("recording")
    try:
        yield log
    finally:
        apsw.set_default_vfs("unix")
        log.unregister()


class _File:
    """What is certain to be on the disk of one file, which may have had its name or not."""

    def __init__(self, durable: bytes = b"", *, is_new: bool = True) -> None:
        self.durable = durable
        self.is_new = is_new


class Disk:
    """What a disk holds for certain, and what is on its way there."""

    def __init__(self, before: dict[str, bytes]) -> None:
        self._certain = {name: _File(data, is_new=False) for name, data in before.items()}
        self._names: dict[str, _File] = dict(self._certain)
        self._changes: list[tuple[str, _File | None]] = []  # of names
        self._pending: list[tuple[_File, Event]] = []

    def do(self, event: Event) -> None:
        """The next event of the log."""
        name = event.name
        match event.kind:
            case "create":
                self._rename(name, _File())
            case "delete":
                self._rename(name, None)
                if event.is_synchronized:
                    self._settle_names()
            case "write" | "truncate":
                self._pending.append((self._names[name], event))
            case "sync":
                self._settle(self._names[name], with_directory=name.endswith(_WITH_DIRECTORY))

    def after_a_cut(self, mode: Mode, random: random.Random) -> dict[str, bytes]:
        """The files with their content that may be there when the power fails now.

        Of what is on its way: nothing, everything, so much of it in order, any part, or so much in order and some
        sectors of the next write.
        """
        files = {file: bytearray(file.durable) for file in (*self._certain.values(), *self._names.values())}
        files |= {file: bytearray(file.durable) for _, file in self._changes if file is not None}
        for file, event in self._arrived(mode, random):
            if file in files:
                _apply(files[file], event)
        return {name: bytes(files[file]) for name, file in self._arrived_names(mode, random).items()}

    def _arrived(self, mode: Mode, random: random.Random) -> Sequence[tuple[_File, Event]]:
        pending = self._pending
        if mode == "nothing":
            return ()
        if mode == "everything":
            return pending
        if mode == "subset":
            share = random.choice((0.1, 0.5, 0.9))
            return [one for one in pending if random.random() < share]
        cut = random.randint(0, len(pending))
        if mode == "prefix" or cut == len(pending):
            return pending[:cut]
        file, event = pending[cut]
        return [*pending[:cut], *((file, part) for part in _sectors(event) if random.random() < 0.5)]

    def _arrived_names(self, mode: Mode, random: random.Random) -> dict[str, _File]:
        if mode in {"nothing", "everything"}:
            return self._certain if mode == "nothing" else self._names
        names = dict(self._certain)
        for name, file in self._changes[: random.randint(0, len(self._changes))]:
            _set(names, name, file)
        return names

    def _rename(self, name: str, file: _File | None) -> None:
        _set(self._names, name, file)
        self._changes.append((name, file))

    def _settle_names(self) -> None:
        self._certain = dict(self._names)
        self._changes = []

    def _settle(self, file: _File, *, with_directory: bool) -> None:
        content = bytearray(file.durable)
        for other, event in self._pending:
            if other is file:
                _apply(content, event)
        self._pending = [one for one in self._pending if one[0] is not file]
        file.durable = bytes(content)
        if file.is_new and with_directory:
            self._settle_names()
        file.is_new = False


def _set(names: dict[str, _File], name: str, file: _File | None) -> None:
    if file is None:
        names.pop(name, None)
    else:
        names[name] = file


def _apply(content: bytearray, event: Event) -> None:
    length = event.offset if event.kind == "truncate" else event.offset + len(event.data)
    if len(content) < length:
        content.extend(bytes(length - len(content)))
    if event.kind == "truncate":
        del content[length:]
    else:
        content[event.offset : length] = event.data


def _sectors(event: Event) -> Iterator[Event]:
    """The parts of a write that arrive whole."""
    if event.kind == "truncate":
        yield event
        return
    start, end = event.offset, event.offset + len(event.data)
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        yield event._replace(offset=start, data=event.data[start - event.offset : stop - event.offset])
        start = stop
