"""Makes the operating system fail: SQLite's system calls and its syncs, at the call that a test wants.

Called by the tests of faults. Only what SQLite does through its file layer "unix" is reached, in this process, and all
of it is: whatever files a test wants to fail are the only ones that may be open meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import tempfile
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_int, _long, _pointer, _size, _text = ctypes.c_int, ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
_SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "open": (_int, _text, _int, _int),
    "close": (_int, _int),
    "access": (_int, _text, _int),
    "stat": (_int, _text, _pointer),
    "fstat": (_int, _int, _pointer),
    "ftruncate": (_int, _int, _long),
    "fcntl": (_int, _int, _int, _pointer),
    "pread64": (_long, _int, _pointer, _size, _long),
    "pwrite64": (_long, _int, _pointer, _size, _long),
    "unlink": (_int, _text),
    "mmap": (_pointer, _pointer, _size, _int, _int, _int, _long),
}
_MAP_FAILED: Final = ctypes.c_void_p(-1).value

# Where a file's methods stand, and xSync among them: part of SQLite's stable interface (struct sqlite3_io_methods).
_METHODS: Final = 6
_SYNC: Final = 5
_Sync = ctypes.CFUNCTYPE(_int, _pointer, _int)
_SYNC_OF_FILE: Final = "sync"
# Where the descriptor stands in SQLite's own part of an open file (struct unixFile).
_DESCRIPTOR: Final = 3 * ctypes.sizeof(_pointer)


class Fault(NamedTuple):
    """A call that fails: "sync" or a system call's name, how, and from which call on. 0: it is only counted."""

    call: str
    error: int = errno.EIO
    at: int = 0
    for_good: bool = False

    def __str__(self) -> str:
        return f"{self.call} {errno.errorcode[self.error]} at {self.at}{' for good' if self.for_good else ''}"


class Failing:
    """While it fails: how many calls there were, and whether one has failed."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._lock = threading.Lock()
        self.calls: int = 0
        self.failed: int = 0

    def is_due(self) -> bool:
        """Whether this call is to fail."""
        with self._lock:
            self.calls += 1
            at = self._fault.at
            is_due = bool(at) and (self.calls >= at if self._fault.for_good else self.calls == at)
            self.failed += is_due
            return is_due


@contextlib.contextmanager
def failing(fault: Fault) -> Iterator[Failing]:
    """The fault, for the length of the block."""
    state = Failing(fault)
    with _sync_failing(lambda _: state.is_due()) if fault.call == _SYNC_OF_FILE else _call_failing(state, fault):
        yield state


@contextlib.contextmanager
def _call_failing(state: Failing, fault: Fault) -> Iterator[None]:
    result, *parameters = _SIGNATURES[fault.call]
    prototype = ctypes.CFUNCTYPE(result, *parameters, use_errno=True)
    vfs = apsw.VFS("faults", "unix")
    address = vfs.xGetSystemCall(fault.call)
    assert address is not None, fault.call
    real = prototype(address)
    failure = _MAP_FAILED if fault.call == "mmap" else -1

    def call(*arguments: Any) -> Any:
        if state.is_due():
            ctypes.set_errno(fault.error)
            return failure
        return real(*arguments)

    replacement = prototype(call)
    vfs.xSetSystemCall(fault.call, ctypes.cast(replacement, _pointer).value or 0)
    try:
        yield
    finally:
        vfs.xSetSystemCall(fault.call, address)
        vfs.unregister()


@contextlib.contextmanager
def losing(at: int) -> Iterator[Failing]:
    """The sync that fails, as Linux tells it: to every descriptor that has the file open then, each once."""
    state, told_later = Failing(Fault(_SYNC_OF_FILE, at=at)), set[int]()

    def fails(file: int) -> bool:
        number = ctypes.c_int.from_address(file + _DESCRIPTOR).value
        if state.is_due():
            told_later.update(_descriptors_of(os.fstat(number)))
        elif number not in told_later:
            return False
        told_later.discard(number)
        return True

    vfs = apsw.VFS("closing", "unix")
    address = vfs.xGetSystemCall("close")
    prototype = ctypes.CFUNCTYPE(_int, _int, use_errno=True)
    real = prototype(address or 0)

    def close(number: int) -> int:
        told_later.discard(number)
        return int(real(number))

    replacement = prototype(close)
    vfs.xSetSystemCall("close", ctypes.cast(replacement, _pointer).value or 0)
    try:
        with _sync_failing(fails):
            yield state
    finally:
        vfs.xSetSystemCall("close", address or 0)
        vfs.unregister()


def _descriptors_of(file: os.stat_result) -> Iterator[int]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that was listing them
            if os.path.samestat(os.fstat(int(name)), file):
                yield int(name)


@contextlib.contextmanager
def _sync_failing(fails: Callable[[int], bool]) -> Iterator[None]:
    """Syncs go past the system calls that can be replaced, so SQLite's table of a file's methods is changed instead.

    (What a method in Python raises would come out at the wrong place; a code that is returned does not.)
    """
    tables = _tables_of_methods()
    addresses = [table[_SYNC] for table in tables]
    real = _Sync(addresses[0])  # the same in all

    def sync(file: int, flags: int) -> int:
        return apsw.SQLITE_IOERR_FSYNC if fails(file) else real(file, flags)

    replacement = _Sync(sync)
    for table in tables:
        _write(table, _SYNC, ctypes.cast(replacement, _pointer).value)
    try:
        yield
    finally:
        for table, address in zip(tables, addresses, strict=True):
            _write(table, _SYNC, address)


_found: list[Any] = []


def _tables_of_methods() -> list[Any]:
    """The tables that files have in common: that of databases, and that of logs, which are never locked."""
    if not _found:
        with tempfile.TemporaryDirectory() as directory:
            connection = apsw.Connection(os.path.join(directory, "any.db"))
            connection.pragma("journal_mode", "wal")
            connection.execute("CREATE TABLE t (a)")
            for kind in (apsw.SQLITE_FCNTL_FILE_POINTER, apsw.SQLITE_FCNTL_JOURNAL_POINTER):
                file = ctypes.c_void_p()
                connection.file_control("main", kind, ctypes.addressof(file))
                methods = ctypes.c_void_p.from_address(file.value or 0).value
                _found.append((ctypes.c_void_p * _METHODS).from_address(methods or 0))
            connection.close()
        assert len({table[_SYNC] for table in _found}) == 1
    return _found


def _write(table: Any, index: int, address: int | None) -> None:
    """Into a page that is read-only since the program was loaded."""
    libc = ctypes.CDLL(None, use_errno=True)
    first = ctypes.addressof(table) // mmap.PAGESIZE * mmap.PAGESIZE
    length = ctypes.addressof(table) + ctypes.sizeof(table) - first
    _protect(libc, first, length, mmap.PROT_READ | mmap.PROT_WRITE)
    table[index] = address
    _protect(libc, first, length, mmap.PROT_READ)


def _protect(libc: ctypes.CDLL, first: int, length: int, protection: int) -> None:
    if libc.mprotect(_pointer(first), _size(length), protection):
        raise OSError(ctypes.get_errno(), "mprotect")


@contextlib.contextmanager
def no_hang(seconds: int) -> Iterator[None]:
    """Fails a block that takes so long: a deadlock is to fail a test and not to stop all of them."""

    def hangs(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"hangs for {seconds} s")

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again and again: what is raised inside a system call is lost
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
