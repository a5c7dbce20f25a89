"""The verb `export`: entries of one snapshot as JSON Lines, to standard output or into a file that appears whole.

Called by `app`; `export_format` writes the lines.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from mycelia_storage.cli.export_format import end_line, entry_line, header, index_line, namespace_line
from mycelia_storage.cli.failures import STORAGE_FAILED, CommandError, UsageError
from mycelia_storage.errors import NamespaceNotFoundError

if TYPE_CHECKING:
    from collections.abc import Generator

    from mycelia_storage import Storage


@dataclass(frozen=True)
class Exported:
    """What was written."""

    entries: int
    namespaces: list[str]
    seconds: float


def export(store: Storage, output: str | None, namespace: str | None) -> Exported:
    """Write one namespace, or with None all of them, to the file `output`, or with None to standard output."""
    started = time.monotonic()
    if output is None:
        entries, namespaces = _write(store, sys.stdout.buffer, namespace)
    else:
        with _whole_file(output) as file:
            entries, namespaces = _write(store, file, namespace)
    return Exported(entries, namespaces, time.monotonic() - started)


def _write(store: Storage, file: IO[bytes], namespace: str | None) -> tuple[int, list[str]]:
    entries = 0
    with store.transaction(read_only=True) as tx:
        known = tx.list_namespaces()
        if namespace is not None and namespace not in known:
            raise NamespaceNotFoundError(f"there is no namespace {namespace!r}")
        chosen = known if namespace is None else [namespace]
        file.write(header(namespace))
        for name in chosen:
            file.write(namespace_line(tx.namespace_info(name)))
            for entry in tx.scan(namespace=name):
                file.write(entry_line(entry, with_namespace=namespace is None))
                entries += 1
        # Behind the entries, since an index is built faster than it is kept up. One over all namespaces belongs to
        # an export of all.
        for info in tx.list_indexes(namespace=namespace):
            file.write(index_line(info, with_namespace=namespace is None))
    file.write(end_line(entries))
    file.flush()
    return entries, chosen


@contextmanager
def _whole_file(path: str) -> Generator[IO[bytes], None, None]:
    """A file that stands at `path` once the block has ended well, and until then not at all. It is 0600."""
    target = os.path.realpath(path)
    if os.path.exists(target) and not stat.S_ISREG(os.stat(target).st_mode):
        raise UsageError(f"{path} is no file that could be replaced: write to standard output instead")
    folder, name = os.path.split(target)
    try:
        descriptor, draft = tempfile.mkstemp(prefix=f".{name[:100]}.", suffix=".part", dir=folder)  # made with 0600
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)  # the umask may have taken even that away
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException as error:
        os.unlink(draft)
        if isinstance(error, OSError):
            raise CommandError(f"cannot write {path}: {error.strerror or error}", STORAGE_FAILED) from error
        raise
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Make the new name survive a power cut, where a folder can be opened at all."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
