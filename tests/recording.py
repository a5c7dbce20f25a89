"""Records what SQLite does to a disk, and rebuilds what a power cut may leave of it.

Called by the tests of power loss. `recording` puts every file that is opened under a directory on a driver's VFS that
passes everything through and keeps a log; what the library does to names and files there by the operating system's own
calls is in the log, too. A `Disk` is fed the log up to a position and says what may be there then:
what was synchronized is, and of the rest anything may be. What SQLite may rely on is what it assumes of any disk:

1. A sync brings the whole file to the disk. The first one of a new -journal or -wal is followed by one of the
   directory, which brings every earlier change of names; so is a deletion that asks for it, and so does a sync of the
   directory itself. Nothing else does.
2. Names change in the order in which they were changed. Everything else that is not synchronized arrives in any order.
3. A write arrives by whole sectors, and leaves the bytes around it as they are.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import apsw

from mycelia_storage.engines.sqlite import copying
from mycelia_storage.engines.sqlite.places import rename_to_free

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

SECTOR: Final = 512
_TIME_FOR_OTHERS: Final = 0.001
MODES: Final = ("nothing", "everything", "prefix", "subset", "torn")
Mode = Literal["nothing", "everything", "prefix", "subset", "torn"]

_RECORDED: Final = apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL
# A new file of one of these has its directory synchronized with it.
_WITH_DIRECTORY: Final = ("-journal", "-wal")


_TO_FREE: Final = "rename_to_free"


class Event(NamedTuple):
    """Something done to the file `name`, or to the directory where that is "".

    Or a mark of the test: "begin" and "acknowledge" with a number as offset.
    """

    kind: Literal["create", "write", "truncate", "sync", "delete", "link", "begin", "acknowledge"]
    name: str
    offset: int = 0
    data: bytes = b""
    is_synchronized: bool = False
    other: str = ""  # of a link: the name that there was
    is_moved: bool = False  # and that there is no more


class Log(apsw.VFS):
    """The VFS, and what it has seen: `before` is the directory as it was, `events` what came then."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.before: dict[str, bytes] = {}
        for name in os.listdir(directory):
            with open(os.path.join(directory, name), "rb") as file:
                self.before[name] = file.read()
        self.events: list[Event] = []
        self.gives_way = False  # other threads run before each write and sync: who was told too early says so
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
        self.note_new(os.path.basename(path))
        return file

    def note_new(self, name: str) -> None:
        """A file of this name is opened or made; nothing where there is one."""
        if name not in self._known:
            self._known.add(name)
            self.events.append(Event("create", name))

    def note_link(self, old: str, new: str, *, is_moved: bool = False) -> None:
        """A file has got a name, in place of another file's where there is one, and keeps its old one or does not."""
        self._known.add(new)
        if is_moved:
            self._known.discard(old)
        self.events.append(Event("link", new, other=old, is_moved=is_moved))

    def note_gone(self, name: str) -> None:
        """A name was removed, by a call that synchronizes nothing."""
        if name in self._known:
            self._known.discard(name)
            self.events.append(Event("delete", name))

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - the driver's name
        super().xDelete(filename, syncdir)
        name = os.path.basename(filename)
        if os.path.dirname(filename) == self.directory and name in self._known:
            self._known.discard(name)
            self.events.append(Event("delete", name, is_synchronized=bool(syncdir)))


class _Recorded(apsw.VFSFile):
    def __init__(self, log: Log, short_name: str, name: Any, flags: list[int]) -> None:
        self._log = log
        self._events = log.events
        self._name = short_name
        super().__init__("unix", name, flags)

    def _give_way(self) -> None:
        if self._log.gives_way:
            time.sleep(_TIME_FOR_OTHERS)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - the driver's name
        self._give_way()
        super().xWrite(data, offset)
        self._events.append(Event("write", self._name, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - the driver's name
        super().xTruncate(newsize)
        self._events.append(Event("truncate", self._name, newsize))

    def xSync(self, flags: int) -> None:  # noqa: N802 - the driver's name
        self._give_way()
        # Nobody cuts the power of this machine: noting it is enough, and a hundred times as fast.
        self._events.append(Event("sync", self._name))


class _Calls:
    """The operating system's calls that change or synchronize something, recorded where that is of the directory."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._open, self._pwrite = os.open, os.pwrite
        self._paths: dict[int, str] = {}
        self._real = {name: getattr(os, name) for name in ("link", "replace", "rename", "unlink")}

    def name_of(self, path: Any) -> str | None:
        path = os.path.abspath(os.fsdecode(path))
        return os.path.basename(path) if os.path.dirname(path) == self._log.directory else None

    def open(self, path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        descriptor = self._open(path, flags, *arguments, **options)
        name = self.name_of(path)
        if name is not None or os.path.abspath(os.fsdecode(path)) == self._log.directory:
            self._paths[descriptor] = name or ""
            if name and flags & os.O_CREAT:
                self._log.note_new(name)
        else:
            self._paths.pop(descriptor, None)
        return descriptor

    def fsync(self, descriptor: int) -> None:
        if descriptor in self._paths:
            self._log.events.append(Event("sync", self._paths[descriptor]))

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        written = self._pwrite(descriptor, data, offset)
        if self._paths.get(descriptor):
            self._log.events.append(Event("write", self._paths[descriptor], offset, bytes(data[:written])))
        return written

    def link(self, source: Any, target: Any) -> None:
        self._real["link"](source, target)
        old, new = self.name_of(source), self.name_of(target)
        if old is not None and new is not None:
            self._log.note_link(old, new)

    def replace(self, source: Any, target: Any) -> None:
        self._real["replace"](source, target)
        old, new = self.name_of(source), self.name_of(target)
        if old is not None and new is not None:
            self._log.note_link(old, new, is_moved=True)

    rename = replace

    def rename_to_free(self, source: str, target: str) -> None:
        """A call of the system that Python has not."""
        rename_to_free(source, target)
        old, new = self.name_of(source), self.name_of(target)
        if old is not None and new is not None:
            self._log.note_link(old, new, is_moved=True)

    def unlink(self, path: Any) -> None:
        self._real["unlink"](path)
        name = self.name_of(path)
        if name is not None:
            self._log.note_gone(name)


@contextlib.contextmanager
def recording(directory: str) -> Iterator[Log]:
    """Files that are opened in the block under `directory` are recorded. None of them may be open before."""
    log = Log(directory)
    calls = _Calls(log)
    names = ("open", "fsync", "pwrite", "link", "replace", "rename", "unlink")
    usual = {name: getattr(os, name) for name in names}
    apsw.set_default_vfs("recording")
    try:
        for name in names:
            setattr(os, name, getattr(calls, name))
        setattr(copying, _TO_FREE, calls.rename_to_free)
        yield log
    finally:
        setattr(copying, _TO_FREE, rename_to_free)
        for name, function in usual.items():
            setattr(os, name, function)
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
        self._changes: list[tuple[str, _File | None, str]] = []  # of names, and of one that goes with it
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
            case "link":
                # A renaming is one change: the name it was is gone when the name it becomes is there.
                self._rename(name, self._names[event.other], gone=event.other if event.is_moved else "")
            case "write" | "truncate":
                self._pending.append((self._names[name], event))
            case "sync" if not name:
                self._settle_names()
            case "sync":
                self._settle(self._names[name], with_directory=name.endswith(_WITH_DIRECTORY))

    def after_a_cut(self, mode: Mode, random: random.Random) -> dict[str, bytes]:
        """The files with their content that may be there when the power fails now.

        Of what is on its way: nothing, everything, so much of it in order, any part, or so much in order and some
        sectors of the next write.
        """
        files = {file: bytearray(file.durable) for file in (*self._certain.values(), *self._names.values())}
        files |= {file: bytearray(file.durable) for _, file, _ in self._changes if file is not None}
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
        for name, file, gone in self._changes[: random.randint(0, len(self._changes))]:
            _set(names, name, file)
            names.pop(gone, None)
        return names

    def _rename(self, name: str, file: _File | None, gone: str = "") -> None:
        _set(self._names, name, file)
        self._names.pop(gone, None)
        self._changes.append((name, file, gone))

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
