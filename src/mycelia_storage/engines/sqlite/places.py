"""Whether a store's file, and those that SQLite keeps beside it, are what they seem: no links, pipes or second names.

Called before a file is opened, and again when it is open: what SQLite has opened has to be what was looked at.

SQLite itself follows no link to a -wal, -journal or -shm, but takes a second name of another file, and waits for ever
to open a pipe. A second name of the database would have a -wal of its own, so that two programs overwrite each other's
pages (sqlite.org/howtocorrupt.html, 2.5). Only names are looked at here, and nothing is opened: closing a file drops
the locks that this process has on it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from typing import Final, NamedTuple

import apsw

from mycelia_storage.errors import ConfigError, StorageIOError

# What SQLite keeps beside a file, in this order.
BESIDE: Final = ("-journal", "-wal", "-shm")


_RENAME_NOREPLACE: Final = 1
_AT_FDCWD: Final = -100


class Identity(NamedTuple):
    """Which file a name stands for."""

    device: int
    inode: int


def look_at(path: str) -> Identity | None:
    """Which file a resolved path leads to, None where there is none yet.

    Raises ConfigError where a directory of the path has become a link since it was resolved, and where the file, or one
    beside it, is no regular file or has a second name.
    """
    if os.path.realpath(path) != path:
        raise ConfigError(f"db_path: {path} leads elsewhere now: a directory was replaced by a link, or the file was")
    identity = _look_at_one(path, path)
    for end in BESIDE:
        _look_at_one(path + end, path)
    return identity


def _look_at_one(path: str, store: str) -> Identity | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode):
        raise ConfigError(
            f"db_path: {path} is a link, and {store} is opened only with files of its own: remove the link"
        )
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"db_path: {path} is no regular file: remove it, or name another file")
    if found.st_nlink > 1:
        raise ConfigError(
            f"db_path: {path} has {found.st_nlink} names (hard links), and what is written by one of them damages the "
            "others: remove all but one, or make a copy"
        )
    return Identity(found.st_dev, found.st_ino)


def is_there(path: str) -> bool:
    """Whether there is something of that name. Raises OSError where that cannot be known, as in a closed directory."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def is_permitted(path: str, mode: int) -> bool:
    """Whether this process may do that with a file or directory (os.R_OK and the like)."""
    return (
        os.access(path, mode, effective_ids=True) if os.access in os.supports_effective_ids else os.access(path, mode)
    )


def why_not_written(path: str) -> OSError | None:
    """What the operating system would say to whoever opens a file for writing; None where it would not mind.

    (To try it would be to close the file again, and with it the locks that other stores have on it.)
    """
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return OSError(errno.EROFS, os.strerror(errno.EROFS), path)
    return None if is_permitted(path, os.W_OK) else OSError(errno.EACCES, os.strerror(errno.EACCES), path)


def why_not_opened(path: str) -> str | None:
    """Which permission is missing to read a store's file as SQLite does, with those beside it; None where none is."""
    if not os.path.lexists(path):
        return None
    user = f"user {os.geteuid()}"
    if not is_permitted(path, os.R_OK):
        return f"permission to read it is denied to {user}"
    for beside in (path + end for end in BESIDE):
        if os.path.lexists(beside) and not is_permitted(beside, os.R_OK | os.W_OK):
            return f"permission to read and write {beside} is denied to {user}"
    if not is_permitted(os.path.dirname(path), os.W_OK | os.X_OK):
        return f"permission to make files beside it, as SQLite has to, is denied to {user}"
    return None


def require_same(connection: apsw.Connection, path: str, before: Identity | None) -> None:
    """Raise StorageIOError unless what a connection has open is what was looked at, and the path still leads there.

    Who may write into the directory can put another file there before the look, or after this. What he cannot do is to
    have one file looked at and another one opened.
    """
    is_moved = ctypes.c_int(0)
    connection.file_control("main", apsw.SQLITE_FCNTL_HAS_MOVED, ctypes.addressof(is_moved))
    if is_moved.value or before is None or look_at(path) != before:
        raise StorageIOError(f"{path}: the file was replaced while it was being opened")


def rename_to_free(path: str, name: str) -> None:
    """Give a file another name, which nobody must have: FileExistsError.

    In one step where the system can (Linux). Elsewhere it has both names for a moment, or, on a file system without
    hard links, whoever takes the name at the same moment loses it.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is not None:
        old, new = os.fsencode(path), os.fsencode(name)
        if renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(code, os.strerror(code), path, None, name)
    try:
        os.link(path, name)
    except FileExistsError:
        raise
    except OSError:
        os.rename(path, name)
    else:
        os.unlink(path)
