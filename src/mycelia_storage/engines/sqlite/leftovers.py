"""What connections that only read leave beside a file in WAL mode: removed, where nobody has the file open.

Called by the engine when a store that only reads is closed, and for the place of a backup.

SQLite's last connection to a file removes its -wal and -shm, but for one that cannot write: that makes both, and leaves
them. They are removed here in SQLite's own way: under the file's exclusive lock. Every connection that has a -wal open
has a shared lock on the database for as long, so whoever gets the exclusive one is alone, and whoever comes meanwhile
waits with opening them. Only an empty -wal is removed, so nothing that was committed can be in it, and the database
itself is never written to.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Literal, TypeAlias

import apsw

from mycelia_storage.engines.sqlite.connection import size_of
from mycelia_storage.engines.sqlite.pages import FILE_LAYER

if TYPE_CHECKING:
    from collections.abc import Iterator

# Whether a file has a -wal beside it. "kept": nobody has the file open, and something stands in the -wal. "unknown":
# the file cannot be locked, since it is not there or cannot be written to.
Found: TypeAlias = Literal["none", "in use", "kept", "unknown"]


def remove_empty(path: str) -> Found:
    """Remove an empty -wal, and the -shm, where nobody has the file open; and what is there then. Never raises.

    The order matters: what the size of the -wal is, is asked under the lock.
    """
    try:
        with _alone(path) as is_alone:
            if not is_alone:
                return "in use"
            if size_of(path + "-wal"):
                return "kept"
            for end in ("-shm", "-wal"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path + end)
            return "none"
    except (OSError, apsw.Error):
        return "unknown"


@contextlib.contextmanager
def _alone(path: str) -> Iterator[bool]:
    """The file's exclusive lock, for the block, and whether it could be had at once.

    By SQLite's own file layer, which knows of this process's other connections: an open() and close() of ours would
    drop their locks.
    """
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_NOFOLLOW
    file = apsw.VFSFile(FILE_LAYER, path, [flags, 0])
    try:
        try:
            file.xLock(apsw.SQLITE_LOCK_SHARED)
            file.xLock(apsw.SQLITE_LOCK_EXCLUSIVE)
        except apsw.BusyError:
            yield False
        else:
            yield True
    finally:
        with contextlib.suppress(apsw.Error):
            file.xUnlock(apsw.SQLITE_LOCK_NONE)
        file.xClose()
