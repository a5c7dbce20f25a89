"""`salvage`: what can still be read of a damaged file, in a new one.

Called by users, for a file that does not open any more, or of which `check` finds damage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mycelia_storage.engines.sqlite import salvaging
from mycelia_storage.engines.sqlite.telling import Teller
from mycelia_storage.errors import InvalidValueError
from mycelia_storage.options import Options, file_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from mycelia_storage.entries import CopyProgress, SalvageReport


def salvage(
    path: str | PathLike[str],
    into: str | PathLike[str],
    *,
    progress: Callable[[CopyProgress], object] | None = None,
) -> SalvageReport:
    """Copy every entry that can still be read from a store's file at `path` to a new one, and tell what was lost.

    The file at `path`, of either schema version, is only read, and so are a -wal or -journal beside it, whose
    transactions count. The new one, of the newest version, keeps versions, times, expiry, metadata, namespaces and
    indexes; it is 0600, and has been looked through when it gets its name. No program may write to the old one
    meanwhile. `progress` is called again and again with a `CopyProgress`; what it raises cancels the call, and then
    there is no new file.

    Raises NotAStorageFileError where there is nothing of a store in the file, SchemaVersionError for one of a newer
    library, StorageBusyError for one that was changed meanwhile, ConfigError where `into` is there already,
    StorageFullError, StorageIOError.
    """
    if progress is not None and not callable(progress):
        raise InvalidValueError(f"progress: a function is needed, not {type(progress).__name__}")
    source, target = file_path("path", path), file_path("into", into)
    options = Options(backend="sqlite", path=target)
    return salvaging.salvage(source, target, options, Teller(progress))
