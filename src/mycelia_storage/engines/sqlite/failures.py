"""The one place where the driver's errors become this library's, by result code, never by message.

Called wherever the SQLite engine runs SQL.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Final

import apsw

from mycelia_storage.engines.limits import timeout_error
from mycelia_storage.engines.sqlite.places import why_not_opened
from mycelia_storage.errors import (
    CapacityError,
    NotAStorageFileError,
    OutcomeUnknownError,
    StorageBusyError,
    StorageClosedError,
    StorageCorruptError,
    StorageError,
    StorageFullError,
    StorageIOError,
    StorageReadOnlyError,
    TransactionError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# What a statement can raise: the driver's errors, and text in a damaged file that is no UTF-8.
DRIVER_ERRORS: Final = (apsw.Error, UnicodeDecodeError)

_NEEDS_FILES_BESIDE: Final = (
    StorageReadOnlyError,
    "SQLite has to write a file beside it, even to read, and the directory cannot be written",
)
_NO_ROOM_BESIDE: Final = (
    StorageFullError,
    "the -shm beside it could not be made longer: there is no room left on the disk, or it fails",
)
_BY_EXTENDED_CODE: Final[dict[int, tuple[type[StorageError], str]]] = {
    apsw.SQLITE_IOERR_DATA: (StorageCorruptError, "a page does not fit its checksum: the file is damaged"),
    apsw.SQLITE_IOERR_CORRUPTFS: (StorageCorruptError, "the file system reports damage"),
    apsw.SQLITE_IOERR_SHMSIZE: _NO_ROOM_BESIDE,
    apsw.SQLITE_IOERR_BLOCKED: (StorageBusyError, "another connection holds the lock"),
    apsw.SQLITE_IOERR_NOMEM: (StorageIOError, "there is no memory left"),
    apsw.SQLITE_READONLY_DIRECTORY: _NEEDS_FILES_BESIDE,
    apsw.SQLITE_READONLY_CANTINIT: _NEEDS_FILES_BESIDE,
    apsw.SQLITE_READONLY_DBMOVED: (StorageIOError, "the file was moved or replaced while it was open"),
}

_BY_CODE: Final[dict[int, tuple[type[StorageError], str]]] = {
    apsw.SQLITE_BUSY: (
        StorageBusyError,
        "another process, another store of this one, or without WAL somebody who reads, holds the lock",
    ),
    apsw.SQLITE_LOCKED: (StorageBusyError, "another connection holds the lock"),
    apsw.SQLITE_PROTOCOL: (StorageBusyError, "others took the lock again and again"),
    apsw.SQLITE_SCHEMA: (StorageBusyError, "others changed the tables again and again"),
    apsw.SQLITE_READONLY: (StorageReadOnlyError, "the file cannot be written"),
    apsw.SQLITE_IOERR: (StorageIOError, "the operating system refused a read or write"),
    apsw.SQLITE_CORRUPT: (StorageCorruptError, "the file is damaged"),
    # What the library writes fits its tables: these are others, or hold what never was written to them.
    apsw.SQLITE_CONSTRAINT: (StorageCorruptError, "a table refuses what the library writes: it is not as it was made"),
    apsw.SQLITE_MISMATCH: (StorageCorruptError, "a table refuses what the library writes: it is not as it was made"),
    apsw.SQLITE_NOTADB: (NotAStorageFileError, "the file is no SQLite database"),
    apsw.SQLITE_FORMAT: (NotAStorageFileError, "the file is no SQLite database"),
    apsw.SQLITE_FULL: (StorageFullError, "there is no room left on the disk"),
    apsw.SQLITE_NOLFS: (StorageFullError, "the file system does not take so large a file"),
    apsw.SQLITE_CANTOPEN: (StorageIOError, "the file, or one beside it, cannot be opened"),
    apsw.SQLITE_PERM: (StorageIOError, "permission is denied"),
    apsw.SQLITE_AUTH: (StorageIOError, "permission is denied"),
    apsw.SQLITE_NOMEM: (StorageIOError, "there is no memory left"),
    apsw.SQLITE_TOOBIG: (CapacityError, "a text is longer than SQLite can hold"),
    apsw.SQLITE_ABORT: (TransactionError, "the transaction ended while one of its statements ran"),
}

# Errors of the driver's own, which have no code of SQLite's.
_BY_TYPE: Final[tuple[tuple[type[apsw.Error], type[StorageError], str], ...]] = (
    (apsw.ConnectionClosedError, StorageClosedError, "the store is closed"),
    (apsw.CursorClosedError, StorageClosedError, "the store is closed"),
    (apsw.VFSFileClosedError, StorageClosedError, "the store is closed"),
    (apsw.ForkingViolationError, StorageClosedError, "the connection was opened before this process was forked"),
    (apsw.ThreadingViolationError, TransactionError, "two threads used one connection at the same time"),
    (apsw.VFSNotImplementedError, StorageIOError, "the file system layer cannot do what SQLite asks of it"),
)

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_FAILED_SYNC: Final = (apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_DIR_FSYNC)

# With these a COMMIT may have failed after everything had been written that lets it be found after a crash: in WAL mode
# the pages of the -shm come last; without it the end of the -journal, and after that a weaker lock. (A write that fails
# comes before, and so does a lack of room.)
_UNSURE_AT_COMMIT: Final = (
    apsw.SQLITE_IOERR_SHMOPEN,
    apsw.SQLITE_IOERR_SHMSIZE,
    apsw.SQLITE_IOERR_SHMLOCK,
    apsw.SQLITE_IOERR_SHMMAP,
    apsw.SQLITE_IOERR_DELETE,
    apsw.SQLITE_IOERR_DELETE_NOENT,
    apsw.SQLITE_IOERR_TRUNCATE,
    apsw.SQLITE_IOERR_CLOSE,
    apsw.SQLITE_IOERR_UNLOCK,
    apsw.SQLITE_IOERR_RDLOCK,
    apsw.SQLITE_IOERR_NOMEM,
    apsw.SQLITE_NOMEM,
)


def to_storage_error(error: Exception, path: str, *, committing: bool = False) -> StorageError:
    """The library's error for one of `DRIVER_ERRORS`; the caller raises it from the driver's.

    `committing` says that the statement ended a transaction, so that after a failed sync nobody knows its outcome.
    """
    if isinstance(error, UnicodeDecodeError):
        return StorageCorruptError(f"{path}: a stored text is no UTF-8: the file is damaged")
    if isinstance(error, apsw.InterruptError):
        return timeout_error()
    for kind, ours, reason in _BY_TYPE:
        if isinstance(error, kind):
            return ours(f"{path}: {reason}")
    if committing and is_failed_sync(error):
        return outcome_unknown(path)
    extended = extended_code(error)
    found = _BY_EXTENDED_CODE.get(extended) or _BY_CODE.get(getattr(error, "result", -1))
    if found is None:
        return StorageError(f"{path}: SQLite failed with {type(error).__name__} ({error})")
    ours, reason = found
    if getattr(error, "result", -1) == apsw.SQLITE_CANTOPEN:
        reason = why_not_opened(path) or reason
    return ours(f"{path}: {reason}")


def of_system(error: OSError, path: str) -> StorageError:
    """The library's error for one of the operating system's."""
    if error.errno in _NO_ROOM:
        return StorageFullError(f"{path}: there is no room left on the disk")
    return StorageIOError(f"{path}: {error.strerror or error}")


def outcome_unknown(path: str) -> OutcomeUnknownError:
    """For whoever waited for a commit that may or may not have happened."""
    message = "the commit was not confirmed, and may or may not have happened: close the store, open it again and read"
    return OutcomeUnknownError(f"{path}: {message}")


def is_failed_sync(error: Exception) -> bool:
    """Whether the disk did not confirm what was written; then nobody knows what of it is there, now or later."""
    return extended_code(error) in _FAILED_SYNC


def is_unsure(error: Exception) -> bool:
    """Whether a COMMIT that failed with it may be found done after a crash."""
    return extended_code(error) in _UNSURE_AT_COMMIT


def extended_code(error: BaseException) -> int:
    """SQLite's extended result code, -1 for an error that is the driver's own."""
    code: int = getattr(error, "extendedresult", -1)
    return code


def roll_back(connection: apsw.Connection) -> None:
    """Undo an open transaction; after some errors SQLite has done so already."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")


@contextlib.contextmanager
def one_state(connection: apsw.Connection) -> Iterator[None]:
    """Let several statements that read see one state of the file, whatever other connections commit meanwhile."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        roll_back(connection)
