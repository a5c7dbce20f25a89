"""The one place where the driver's errors become this library's, by result code, never by message.

Called wherever the SQLite engine runs SQL.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import apsw

from mycelia_storage.engines.limits import timeout_error
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
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# What a statement can raise: the driver's errors, and text in a damaged file that is no UTF-8.
DRIVER_ERRORS: Final = (apsw.Error, UnicodeDecodeError)

_BY_EXTENDED_CODE: Final[dict[int, tuple[type[StorageError], str]]] = {
    apsw.SQLITE_IOERR_DATA: (StorageCorruptError, "a page does not fit its checksum: the file is damaged"),
    apsw.SQLITE_IOERR_CORRUPTFS: (StorageCorruptError, "the file system reports damage"),
    apsw.SQLITE_READONLY_DIRECTORY: (
        StorageReadOnlyError,
        "SQLite has to write a file beside it, even to read, and the directory cannot be written",
    ),
    apsw.SQLITE_READONLY_CANTINIT: (
        StorageReadOnlyError,
        "SQLite has to write a file beside it, even to read, and the directory cannot be written",
    ),
    apsw.SQLITE_READONLY_DBMOVED: (StorageIOError, "the file was moved or replaced while it was open"),
}

_BY_CODE: Final[dict[int, tuple[type[StorageError], str]]] = {
    apsw.SQLITE_BUSY: (StorageBusyError, "another process, or another store of this one, holds the lock"),
    apsw.SQLITE_LOCKED: (StorageBusyError, "another connection holds the lock"),
    apsw.SQLITE_READONLY: (StorageReadOnlyError, "the file cannot be written"),
    apsw.SQLITE_IOERR: (StorageIOError, "the operating system refused a read or write"),
    apsw.SQLITE_CORRUPT: (StorageCorruptError, "the file is damaged"),
    apsw.SQLITE_NOTADB: (NotAStorageFileError, "the file is no SQLite database"),
    apsw.SQLITE_FULL: (StorageFullError, "there is no room left on the disk"),
    apsw.SQLITE_CANTOPEN: (StorageIOError, "the file, or one beside it, cannot be opened"),
    apsw.SQLITE_PERM: (StorageIOError, "permission is denied"),
    apsw.SQLITE_NOMEM: (StorageIOError, "there is no memory left"),
    apsw.SQLITE_TOOBIG: (CapacityError, "a text is longer than SQLite can hold"),
}

_FAILED_SYNC: Final = (apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_DIR_FSYNC)


def to_storage_error(error: Exception, path: str, *, committing: bool = False) -> StorageError:
    """The library's error for one of `DRIVER_ERRORS`; the caller raises it from the driver's.

    `committing` says that the statement ended a transaction, so that after a failed sync nobody knows its outcome.
    """
    if isinstance(error, UnicodeDecodeError):
        return StorageCorruptError(f"{path}: a stored text is no UTF-8: the file is damaged")
    if isinstance(error, apsw.ConnectionClosedError):
        return StorageClosedError("the store is closed")
    if isinstance(error, apsw.InterruptError):
        return timeout_error()
    extended = extended_code(error)
    if committing and extended in _FAILED_SYNC:
        return OutcomeUnknownError(
            f"{path}: the disk did not confirm the commit, which may or may not have happened: open it again and read"
        )
    found = _BY_EXTENDED_CODE.get(extended) or _BY_CODE.get(getattr(error, "result", -1))
    if found is None:
        return StorageError(f"{path}: SQLite failed with {type(error).__name__} ({error})")
    kind, reason = found
    return kind(f"{path}: {reason}")


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
