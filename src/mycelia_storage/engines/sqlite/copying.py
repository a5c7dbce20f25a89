"""Whole files: a backup that takes its place only when it is good, and a source made ready to be restored from.

Called by both engines for `backup` and `restore`.

Nothing is ever written to a file that somebody may be looking for: what is made stands in a file beside it, `.partial`
at the end of its name, until it is complete, looked at and on the disk. Whatever fails removes that one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from typing import TYPE_CHECKING, Any, Final

import apsw

from mycelia_storage.engines.sqlite import indexes, schema
from mycelia_storage.engines.sqlite.connection import is_held_fast, kind_at, open_reader, open_writer, size_of
from mycelia_storage.engines.sqlite.failures import DRIVER_ERRORS, roll_back, to_storage_error
from mycelia_storage.engines.sqlite.leftovers import remove_empty
from mycelia_storage.engines.sqlite.pages import CHECKSUM_BYTES
from mycelia_storage.engines.sqlite.places import BESIDE, is_there, look_at, rename_to_free
from mycelia_storage.engines.sqlite.soundness import (
    INTEGRITY,
    SHOWN_PROBLEMS,
    Beside,
    check_structure,
    compare,
    problems_of,
    raise_problems,
)
from mycelia_storage.engines.sqlite.telling import failing_as, none_raw
from mycelia_storage.errors import (
    ConfigError,
    NotAStorageFileError,
    SchemaVersionError,
    StorageBusyError,
    StorageCorruptError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from mycelia_storage.engines.sqlite.telling import Teller
    from mycelia_storage.options import Options

# A few milliseconds each: so often progress is told, and so soon a copy is cancelled.
PAGES_AT_ONCE: Final = 1024
_ROWS_BETWEEN_LOOKS: Final = 1000
# So many look through one file at the same time.
_MOST_AT_ONCE: Final = 3
# So many bytes of a file's name stand in that of one beside it.
LONGEST_START: Final = 200

BEGIN_TO_WRITE: Final = "BEGIN IMMEDIATE"
COMMIT: Final = "COMMIT"
BEGIN_FILE: Final = "PRAGMA user_version=0"
# For pages that pass once, in order: so many fit into the processor's own memory.
READ_ONCE: Final = "PRAGMA cache_size=100"
PIN: Final = "SELECT count(*) FROM sqlite_schema"
GREATEST_VERSION: Final = """
SELECT max((SELECT version FROM storage_version_floor WHERE id = 1),
           (SELECT ifnull(max(version), 0) FROM storage_entries))"""
_TABLES_1: Final = {
    "schema_version": "version, applied_at",
    "storage_namespaces": "name, metadata, created_at",
    "storage_entries": "id, namespace, key, value, metadata, created_at, updated_at",
}
_TABLES_2: Final = _TABLES_1 | {
    "storage_version_floor": "id, version",
    "storage_entries": "id, namespace, key, version, created_at, updated_at, expires_at, metadata, value",
}
RAISE_FLOOR: Final = "UPDATE storage_version_floor SET version = max(version, ?) WHERE id = 1"

LOG: Final = logging.getLogger("mycelia_storage")


# ---- files


def check_target(target: str, *, overwrite: bool, store: str | None = None) -> None:
    """Raise ConfigError where a backup must not be written; `store` is the file that it is made of."""
    with failing_as(target):
        if store is not None and (target in (store, *(store + end for end in BESIDE)) or _is_same(target, store)):
            raise ConfigError(f"path: {target} is the store's own file: a backup needs another one")
        if os.path.islink(target) or (os.path.lexists(target) and not os.path.isfile(target)):
            raise ConfigError(f"path: {target} is no regular file: name a file, and no link to one")
        if not overwrite and os.path.lexists(target):
            raise ConfigError(f"path: {target} is there already: overwrite=True replaces it")
        for end in BESIDE[:2]:
            if os.path.lexists(target + end):
                _require_removed(target, end)


# Why a file beside the place of a backup is in the way.
_WHY_BESIDE: Final = {
    "in use": "a program has {target} open",
    "kept": "nobody has {target} open, and something in it may not be written back yet: open {target} as a store and "
    "close it, or take another name",
    "unknown": "a program has {target} open, or had: open it as a store and close it, or take another name",
}


def _require_removed(target: str, end: str) -> None:
    """Raise ConfigError, unless it was an empty -wal that nobody uses: whoever only looked at a backup left it."""
    found = remove_empty(target)
    if found == "none":
        if not os.path.lexists(target + end):
            return
        found = "kept"
    raise ConfigError(
        f"path: {target + end} is there. SQLite would take it for a part of the backup: "
        + _WHY_BESIDE[found].format(target=target)
    )


@contextlib.contextmanager
def file_beside(path: str, kind: str = "") -> Iterator[str]:
    """An empty file in the same directory, 0600, that is removed at the end of the block, if it is still there.

    `kind` stands in its name, for whoever has to tell it from others after a kill.
    """
    directory, name = os.path.split(path)
    # A name may have 255 bytes, and this one is longer than the one beside it.
    start = os.fsdecode(os.fsencode(name)[:LONGEST_START])
    partial = os.path.join(directory, f"{start}.{secrets.token_hex(4)}{kind}.partial")
    with failing_as(path):
        descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY, 0o600)
    try:
        try:
            os.fchmod(descriptor, 0o600)  # the umask may have taken even that away
        finally:
            os.close(descriptor)
        yield partial
    finally:
        for end in ("", *BESIDE):
            with contextlib.suppress(OSError):
                os.unlink(partial + end)


def put_in_place(partial: str, target: str, *, overwrite: bool) -> None:
    """Give a complete file its name, for good. Raises ConfigError where another has got it meanwhile."""
    check_target(target, overwrite=overwrite)
    with failing_as(target):
        if overwrite:
            os.replace(partial, target)
        else:
            try:
                rename_to_free(partial, target)
            except FileExistsError:
                raise ConfigError(f"path: {target} is there already: overwrite=True replaces it") from None
        _sync(os.path.dirname(target))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_same(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:  # there is none, or none that could be opened either, which tells more of it
        return False


# ---- backup


@contextlib.contextmanager
def new_file(target: str, options: Options, *, overwrite: bool, store: str | None) -> Iterator[apsw.Connection]:
    """A connection to fill a new file by, which `finish` then puts in place of `target`."""
    check_target(target, overwrite=overwrite, store=store)
    with none_raw(target), file_beside(target) as partial:
        with failing_as(target):
            connection = open_writer(partial, options)
        try:
            with failing_as(target):
                # It is synchronized as a whole, once it is complete.
                connection.execute("PRAGMA synchronous=OFF")
            yield connection
        finally:
            connection.close()
        put_in_place(partial, target, overwrite=overwrite)


def complete(connection: apsw.Connection, target: str, options: Options, teller: Teller) -> None:
    """Look through a file that was just filled, and have it on the disk. Raises StorageCorruptError."""
    what, path = f"{target}: what was copied is damaged, and so is the store", connection.filename
    with contextlib.ExitStack() as stack:
        with failing_as(target):
            # One that is complete without files beside it, and can be read where nothing can be written.
            connection.pragma("journal_mode", "delete")
            if schema.verify(connection, target) == 0:
                raise StorageCorruptError(f"{what}: it is empty")
            # What is looked through is the file, and not what the connection that wrote it remembers of it.
            first, *others = (
                stack.enter_context(contextlib.closing(open_reader(path, options))) for _ in range(_looking_on())
            )
            for each in (first, *others):
                each.execute(READ_ONCE)
                # What it would look at is looked at by SQLite's check of the whole file, which goes on beside.
                each.execute("PRAGMA cell_size_check=OFF")
                each.execute("BEGIN")
        # At the same time: one is busy with the disk, and the others with the processors.
        on_disk = Beside(lambda: _sync(path))
        try:
            check_structure(first, what, teller, others)
        finally:
            on_disk.wait()
        with failing_as(target):
            on_disk.result()


def _looking_on() -> int:
    """So many look through a file: as many as there are processors, within reason, and one of them in this thread."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(processors, _MOST_AT_ONCE))


def begin_file(target: apsw.Connection, page_size: int) -> None:
    """Have a new file that is to have checksums begin so.

    The layer that makes them knows by the first page that it has to. That one is written last where a transaction
    is larger than the cache, and the pages before it would have none.
    """
    if target.reserve_bytes("main", -1) == CHECKSUM_BYTES and not target.pragma("page_count"):
        target.pragma("page_size", page_size)
        target.execute(BEGIN_FILE)


def copy_pages(
    source: apsw.Connection,
    target: apsw.Connection,
    what: str,
    tell: Callable[[int, int], None],
    using: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    *,
    committing: bool = False,
) -> None:
    """Copy a whole database, some pages at once, into another, which has it in one transaction.

    `source` has to be inside a transaction, or each change of it would begin the copy anew. `using` is entered for each
    of the steps and left while `tell` runs: after the last one it is not called, since nothing can be cancelled then.
    """
    with using(), failing_as(what):
        total = source.pragma("page_count")
        if source.reserve_bytes("main", -1) == target.reserve_bytes("main", -1):
            begin_file(target, source.pragma("page_size"))
    tell(0, total)
    with using(), failing_as(what):
        backup = target.backup("main", source, "main")
    try:
        while True:
            with using(), failing_as(what, committing=committing):
                if backup.step(PAGES_AT_ONCE):
                    backup.finish()
                    return
                done, total = backup.page_count - backup.remaining, backup.page_count
            tell(done, total)
    finally:
        backup.close(True)


# ---- restore


class Shape:
    """What a file's pages have to be like to be copied into another, and how far its versions have come."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.page_size: int = connection.pragma("page_size")
        self.reserved: int = connection.reserve_bytes("main", -1)


@contextlib.contextmanager
def prepared(
    path: str, options: Options, teller: Teller, *, beside: str, store: str | None = None, shape: Shape | None = None
) -> Iterator[apsw.Connection]:
    """A connection to a copy of a source, in the newest version and known to be sound, with pages of that shape.

    The source itself is only read. Raises NotAStorageFileError, SchemaVersionError, StorageCorruptError.
    """
    if store is not None and _is_same(path, store):
        raise ConfigError(f"path: {path} is the store's own file: there is nothing to restore")
    with none_raw(path), contextlib.ExitStack() as stack:
        copy = stack.enter_context(file_beside(beside))
        connection = _bring(path, copy, options, teller, stack)
        _make_sound(connection, path, options, teller)
        with failing_as(path):
            is_alike = shape is None or vars(Shape(connection)) == vars(shape)
        if not is_alike:
            other = stack.enter_context(file_beside(beside))
            with failing_as(path):
                rebuilt = open_writer(other, options)
            stack.callback(rebuilt.close)
            rebuild(connection, rebuilt, path, teller, shape)
            connection = rebuilt
        yield connection


def rebuild(
    source: apsw.Connection, target: apsw.Connection, path: str, teller: Teller, shape: Shape | None = None
) -> None:
    """The same rows in the pages of a new file, where those of the source cannot be copied.

    (VACUUM INTO cannot make what is reserved in each page less, and takes a key in a text that its errors repeat.)
    """
    with failing_as(path):
        version = schema.verify(source, path)
        pages = source.pragma("page_count")
    with teller.telling(source, "copying", pages), failing_as(path):
        target.execute("PRAGMA synchronous=OFF")
        if shape is not None:
            target.execute(f"PRAGMA page_size={shape.page_size}")
            target.reserve_bytes("main", shape.reserved)
        begin_file(target, target.pragma("page_size"))
        target.execute(BEGIN_TO_WRITE)
        if version == 1:
            schema.create_first(target)
        else:
            schema.create(target, 0)
        for table, columns in (_TABLES_1 if version == 1 else _TABLES_2).items():
            target.execute(f"DELETE FROM {table}")
            places = ", ".join("?" * (columns.count(",") + 1))
            rows = source.execute(f"SELECT {columns} FROM {table}")
            target.executemany(f"INSERT INTO {table} ({columns}) VALUES ({places})", rows)
        if version != 1:
            for index in indexes.all_indexes(source).values():
                indexes.create(target, index)
        target.execute(COMMIT)


def _bring(path: str, copy: str, options: Options, teller: Teller, stack: contextlib.ExitStack) -> apsw.Connection:
    """A connection to a copy of a source in its own version and, but for encryption, with its own pages."""
    with failing_as(path):
        if not os.path.isfile(path):
            raise ConfigError(f"path: {path} is no file" if is_there(path) else f"path: there is no file {path}")
        # A link is followed, since the file is only read; SQLite's own file layer follows none.
        path = os.path.realpath(path)
        look_at(path)
        before = _state(path)
        if schema.recognise(path, options.busy_timeout, options.encryption_key) == 0:
            raise NotAStorageFileError(f"{path}: the file is empty: there is nothing to restore")
    with contextlib.ExitStack() as looking:
        with failing_as(path):
            source = looking.enter_context(schema.looking(path, options.encryption_key))
            may_change = not is_held_fast(source)
            source.execute("BEGIN")
            source.execute(PIN).fetchall()
            target = open_writer(copy, options)
        stack.callback(target.close)
        with failing_as(path):
            is_alike = kind_at(source.filename) == "encrypted" and vars(Shape(source)) == vars(Shape(target))
        if options.encryption_key is not None and not is_alike:
            check_structure(source, f"{path}: the file is damaged", teller)
            rebuild(source, target, path, teller)
        else:
            with failing_as(path):
                target.execute("PRAGMA synchronous=OFF")
            copy_pages(source, target, path, lambda done, total: teller.tell("copying", done, total))
    if may_change and _state(path) != before:
        raise StorageBusyError(f"{path}: the file was changed while it was read: make a backup, and restore that")
    with failing_as(path):
        target.pragma("journal_mode", "delete")
    return target


def _state(path: str) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, size_of(path + "-wal")


def _make_sound(connection: apsw.Connection, path: str, options: Options, teller: Teller) -> None:
    with failing_as(path):
        version = schema.verify(connection, path)
    if version == 1 and not options.migrate:
        raise SchemaVersionError(f"{path}: the file has schema version 1, and migrate=False keeps it there")
    _check_or_rebuild(connection, path, teller)
    if version == schema.NEWEST:
        # SQLite's check passes over what only the index of expiries has, since it is one of some rows.
        compare(connection, f"{path}: the file is damaged", teller)
        _check_rows(connection, path, teller)
        return
    with failing_as(path):
        connection.execute(BEGIN_TO_WRITE)
        try:
            schema.upgrade(connection, path, int(options.clock() * 1000))
            connection.execute(COMMIT)
        finally:
            roll_back(connection)


def _check_or_rebuild(connection: apsw.Connection, path: str, teller: Teller) -> None:
    """SQLite's own check. Where only created indexes do not fit, they are built anew: they are made of the rows."""
    what = f"{path}: the file is damaged"
    problems = problems_of(connection, INTEGRITY, what, teller)
    if not problems:
        return
    with failing_as(what):
        made = [f"{indexes.PREFIX}{number}" for number in indexes.all_indexes(connection)]
    try:
        with teller.telling(connection, "checking", connection.pragma("page_count")):
            for name in made:
                connection.execute(f"REINDEX {name}")
    except (apsw.ConstraintError, apsw.SQLError):  # two rows of the same key, or a value that is no JSON
        raise_problems(problems, what)
    except DRIVER_ERRORS as error:
        raise to_storage_error(error, what) from error
    raise_problems(problems_of(connection, INTEGRITY, what, teller), what)
    LOG.warning("%s: indexes did not fit the entries and were built anew from them: %s", path, "; ".join(problems))


def _check_rows(connection: apsw.Connection, path: str, teller: Teller) -> None:
    """That every entry keeps the rules: what SQLite finds nothing wrong with may still be no JSON."""
    with failing_as(path):
        pages = connection.pragma("page_count")
        problems = iter(schema.problems_of(connection, every=_ROWS_BETWEEN_LOOKS))
    found: list[str] = []
    while len(found) < SHOWN_PROBLEMS:
        with failing_as(path):
            problem = next(problems, "")
        if problem is None:
            teller.tell("checking", 0, pages)
        elif problem:
            found.append(problem)
        else:
            break
    if found:
        raise StorageCorruptError(f"{path}: the file is damaged: {'; '.join(found)}")


def greatest_version(connection: apsw.Connection) -> int:
    """A version that no entry of this file ever had more than."""
    version: int = connection.execute(GREATEST_VERSION).get
    return version


def raise_floor(connection: apsw.Connection, version: int) -> None:
    """Let what is written from now on have greater versions, whatever the clock says."""
    connection.execute(RAISE_FLOOR, (version,))
