"""`rekey`: the same file under another key, encrypted for the first time, or not any more.

Called by users, and by the command line. The file is written anew beside its place, looked through, and only then put
there: SQLite's own way changes it page by page, and leaves a mixture behind where that ends too early.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from typing import TYPE_CHECKING, Any, Final

from mycelia_storage.engines import forking
from mycelia_storage.engines.sqlite import copying, pages, schema
from mycelia_storage.engines.sqlite.connection import close_untouched, open_writer, set_journal_mode
from mycelia_storage.engines.sqlite.places import is_there, look_at, require_same
from mycelia_storage.engines.sqlite.soundness import check_structure
from mycelia_storage.engines.sqlite.telling import Teller, failing_as
from mycelia_storage.errors import ConfigError, NotAStorageFileError
from mycelia_storage.options import read_options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta
    from os import PathLike

    import apsw

    from mycelia_storage.options import Options

# In this mode the file's lock, once taken, is kept until the connection is closed.
KEEP_LOCKED: Final = "PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT"
# In the name of the new file, until it gets that of the old one.
KIND: Final = ".rekey"

LOG: Final = logging.getLogger("mycelia_storage")


def rekey(
    path: str | PathLike[str],
    /,
    *,
    encryption_key: str | bytes | None,
    new_encryption_key: str | bytes | None,
    busy_timeout: float | timedelta = 5.0,
) -> None:
    """Encrypt the file of a store, which nobody has open, with another key.

    `encryption_key` is the one it has, None where it is not encrypted; `new_encryption_key` is the one it gets, None
    where it is not to be encrypted any more. Others have `busy_timeout` to let go of it.

    Raises ConfigError for a bad key, one that does not open the file, or a driver that cannot encrypt;
    StorageBusyError where somebody has it open (without WAL, where somebody uses it just then: a store that is idle is
    not noticed, and raises StorageIOError afterwards); NotAStorageFileError, StorageCorruptError, StorageFullError,
    StorageIOError. Whatever it raises, the file is as it was. What a call that was killed has left beside it, the next
    one removes.
    """
    options = read_options(os.fspath(path), {"encryption_key": encryption_key, "busy_timeout": busy_timeout})
    wanted = read_options(os.fspath(path), {"encryption_key": new_encryption_key})
    if options.backend != "sqlite":
        raise ConfigError("path: only a SQLite file can be encrypted, and no store in memory or on a server")
    if options.encryption_key is None and wanted.encryption_key is None:
        raise ConfigError("new_encryption_key: neither an old key nor a new one was given, so there is nothing to do")
    for given in (options, wanted):
        pages.require_driver(given)
    with failing_as(options.path):
        if not is_there(options.path):
            raise ConfigError(f"path: there is no file {options.path}")
    with forking.opening(options.path):
        _write_anew(options, wanted)


def _write_anew(options: Options, wanted: Options) -> None:
    path, teller = options.path, Teller(None)
    with _alone(options) as source, copying.file_beside(path, KIND) as partial:
        check_structure(source, f"{path}: the file is damaged", teller)
        with failing_as(path):
            target = open_writer(partial, wanted)
        try:
            copying.rebuild(source, target, path, teller)
            copying.complete(target, path, wanted, teller)
        finally:
            target.close()
        with failing_as(path):
            _keep_owner(path, partial)
        copying.put_in_place(partial, path, overwrite=True)


@contextlib.contextmanager
def _alone(options: Options) -> Iterator[apsw.Connection]:
    """A connection to the file, which nobody else can use meanwhile; all of it stands in the file itself."""
    path = options.path
    with contextlib.ExitStack() as stack, failing_as(path):
        place = look_at(path)
        schema.recognise(path, options.busy_timeout, options.encryption_key)
        connection = open_writer(path, options)
        stack.callback(close_untouched, connection, path)
        require_same(connection, path, place)
        if schema.verify(connection, path) == 0:
            raise NotAStorageFileError(f"{path}: the file is empty: open it as a store with the new key")
        set_journal_mode(connection, path, wal=False, timeout=options.busy_timeout)
        connection.execute(KEEP_LOCKED).fetchall()
        require_same(connection, path, place)  # whoever had it meanwhile may have put another file in its place
        _remove_left_behind(path)
        kept = stack.pop_all()
    with kept:
        yield connection


def _remove_left_behind(path: str) -> None:
    """Remove what calls that were killed have left. None is at work on this file, which nobody else has."""
    directory, name = os.path.split(path)
    if len(os.fsencode(name)) >= copying.LONGEST_START:
        return  # the same start may be that of another file's name
    left = re.compile(rf"{re.escape(name)}\.[0-9a-f]{{8}}{re.escape(KIND)}\.partial(-journal|-wal|-shm)?")
    for found in os.listdir(directory):
        if left.fullmatch(found):
            try:
                os.unlink(os.path.join(directory, found))
            except OSError as error:
                LOG.warning("%s: a rekey that was killed has left %s: remove it (%s)", path, found, error.strerror)
            else:
                LOG.warning("%s: removed %s, which a rekey has left that was killed", path, found)


def _keep_owner(path: str, partial: str) -> None:
    found: Any = os.stat(path)
    with contextlib.suppress(PermissionError):  # one's own files have one's own name on them
        os.chown(partial, found.st_uid, found.st_gid)
    shutil.copymode(path, partial)  # last: what a group may do is meant for that group
