"""How every connection to a store's file is opened: one policy, by small named functions.

Called by the engine for its writer and its readers, and by whoever looks at a file before it is opened for good.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

import apsw

from mycelia_storage.engines.limits import is_hurried, is_limited, is_over
from mycelia_storage.engines.sqlite import pages, whole_rows
from mycelia_storage.engines.sqlite.expressions import create_functions
from mycelia_storage.errors import StorageBusyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mycelia_storage.engines.sqlite.pages import Kind
    from mycelia_storage.options import Options, Secret

MINIMUM_SQLITE: Final = (3, 51, 3)
SQL_LOG: Final = logging.getLogger("mycelia_storage.sql")

# About some milliseconds of work.
STEPS_BETWEEN_LOOKS: Final = 50_000
# About some microseconds of work, or a few rows.
_STEPS_IN_A_HURRY: Final = 200

LOOK: Final = "SELECT 1 FROM sqlite_schema LIMIT 1"

_PIECE: Final = 1024 * 1024

# Beyond this the -wal is cut back after a checkpoint, whatever one big transaction made of it.
_JOURNAL_SIZE_LIMIT: Final = 64 * 1024 * 1024


def require_safe_sqlite() -> None:
    """Refuse a SQLite library that can corrupt a file in WAL mode (the WAL-reset bug, 3.7.0 to 3.51.2)."""
    version = apsw.sqlite_lib_version()
    if tuple(int(part) for part in version.split(".")[:3]) < MINIMUM_SQLITE:
        needed = ".".join(map(str, MINIMUM_SQLITE))
        message = f"SQLite {version} can corrupt files in WAL mode: install a current apsw (SQLite {needed} or later)"
        raise ImportError(message)


def create_file(path: str) -> None:
    """Make the file, 0600, and the directories above it, 0700, where they are missing."""
    _make_directories(os.path.dirname(path))
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY, 0o600)
    except FileExistsError:
        return
    try:
        os.fchmod(descriptor, 0o600)  # the umask may have taken even that away
    finally:
        os.close(descriptor)


def open_writer(path: str, options: Options) -> apsw.Connection:
    """The connection that writes. The file exists already; its journal mode is set by `set_journal_mode`."""
    connection = _open(path, apsw.SQLITE_OPEN_READWRITE, options)
    try:
        connection.execute(f"PRAGMA synchronous={options.synchronous}")
        connection.execute(f"PRAGMA journal_size_limit={_JOURNAL_SIZE_LIMIT}")
    except BaseException:  # a schema that cannot be read shows here
        close_untouched(connection, path)
        raise
    return connection


def open_to_write_back(path: str, options: Options) -> apsw.Connection:
    """A connection for checkpoints. Others may have much to do meanwhile: it goes the shortest way there."""
    start = _start(path)
    pages.require_fitting(path, pages.kind_of(start), options)
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
    connection = _connect(path, start, options.encryption_key, flags, patience=options.busy_timeout)
    try:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        _trust_no_schema(connection)
        if options.synchronous == "OFF":  # or else the driver's own setting confirms as much as any other
            connection.execute("PRAGMA synchronous=OFF")
        connection.execute(LOOK).fetchall()  # before it has read, a connection knows of no -wal
    except BaseException:
        close_untouched(connection, path)
        raise
    return connection


def open_reader(path: str, options: Options) -> apsw.Connection:
    """A connection that cannot write."""
    return _open(path, apsw.SQLITE_OPEN_READONLY, options)


def close_untouched(connection: apsw.Connection, path: str) -> None:
    """Close a connection to a file that is refused: its -wal stays as it is, and an empty one is not left behind."""
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, int(size_of(path + "-wal") > 0))
    connection.close()


def open_to_look(path: str, secret: Secret | None = None) -> apsw.Connection:
    """A connection that leaves a file that may be somebody else's, and its -wal, as they are to the byte.

    Without a -wal everything stands in the file itself, which can then be read without locks or files beside it. With
    one, it is read through it, and not written back on closing. Raises ConfigError for an encrypted file without its
    key; the key of a file that is not encrypted is left aside.
    """
    has_wal = bool(size_of(path + "-wal"))
    name = path if has_wal else f"file:{urllib.parse.quote(path)}?immutable=1"
    connection = _connect(path, _start(path), secret, apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI, name=name)
    if has_wal:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    _distrust(connection)
    return connection


def is_held_fast(connection: apsw.Connection) -> bool:
    """Whether what a connection of `open_to_look` reads cannot change meanwhile: where it reads a -wal, under locks."""
    return bool(connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, -1))


def open_to_read(path: str, patience: float) -> apsw.Connection:
    """A connection to a database of somebody else, which others may write to meanwhile; it changes nothing of it.

    1. Not in WAL mode: read under SQLite's locks, for which nothing is written.
    2. In WAL mode, with files beside it: a program has it open, or had. Read through these, and not written back.
    3. In WAL mode, and alone: nobody has it open, and reading it as usual would make files beside it.
    """
    is_alone = _start(path)[19:20] == b"\2" and not any(map(os.path.lexists, (path + "-wal", path + "-shm")))
    name = f"file:{urllib.parse.quote(path)}?immutable=1" if is_alone else path
    flags = apsw.SQLITE_OPEN_READONLY | (apsw.SQLITE_OPEN_URI if is_alone else 0)
    connection = apsw.Connection(name, flags=flags, vfs=pages.FILE_LAYER)
    try:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.set_busy_handler(Patience(patience))
        _distrust(connection)
        connection.execute("PRAGMA temp_store=MEMORY")
    except BaseException:
        connection.close()
        raise
    return connection


def open_copy(path: str, secret: Secret | None) -> apsw.Connection:
    """A connection to a copy of a file, which may have a journal beside it that has to be rolled back."""
    return _connect(path, _start(path), secret, apsw.SQLITE_OPEN_READWRITE)


def kind_at(path: str) -> Kind:
    """What kind of file there is."""
    return pages.kind_of(_start(path))


def read_file(path: str, first: int, size: int) -> bytes:
    """A piece of a database file as it lies on the disk, read by SQLite's own file layer; shorter at its end.

    Never by open() and close(): closing a file drops every lock that this process has on it, and with them those of
    other stores (sqlite.org/howtocorrupt.html, 2.2). SQLite's layer knows of them, and closes later.
    """
    file = apsw.VFSFile(pages.FILE_LAYER, path, [apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_MAIN_DB, 0])
    try:
        return file.xRead(max(0, min(size, file.xFileSize() - first)), first)
    finally:
        file.xClose()


def copy_file(path: str, copy: str) -> None:
    """A copy of a database file as it lies on the disk."""
    with open(copy, "xb") as target:
        while piece := read_file(path, target.tell(), _PIECE):
            target.write(piece)


def set_journal_mode(connection: apsw.Connection, path: str, *, wal: bool, timeout: float) -> None:
    """Bring the file into WAL mode, or out of it.

    Changing the mode needs the file for itself for a moment and reports busy without asking the busy handler; after
    `timeout` seconds that is a StorageBusyError.
    """
    wanted = "wal" if wal else "delete"
    deadline = time.monotonic() + timeout
    while True:
        try:
            mode = connection.pragma("journal_mode", wanted)
        except apsw.BusyError:
            mode = None
        if mode == wanted:
            return
        if time.monotonic() >= deadline:
            raise StorageBusyError(f"{path}: the file is in use, so its journal mode could not be set to {wanted}")
        _pause()


class Patience:
    """A busy handler: short random pauses until a deadline.

    SQLite's own waits longer and longer, so that who waits longest is served least.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._deadline = 0.0

    def __call__(self, tries: int) -> bool:
        if is_hurried():
            return False
        now = time.monotonic()
        if tries == 0:
            self._deadline = now + self.timeout
        if now >= self._deadline:
            return False
        _pause()
        return True


def _make_directories(directory: str) -> None:
    # os.makedirs gives its mode to the last directory only.
    if not os.path.isdir(directory):
        _make_directories(os.path.dirname(directory))
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
            os.chmod(directory, 0o700)


def _open(path: str, flags: int, options: Options) -> apsw.Connection:
    # The path is resolved: a link in it was put there since.
    flags |= apsw.SQLITE_OPEN_NOFOLLOW
    start = _start(path)
    pages.require_fitting(path, pages.kind_of(start), options)
    connection = _connect(
        path,
        start,
        options.encryption_key,
        flags,
        new_as="checksums" if options.checksums else "encrypted" if options.encryption_key else "plain",
        patience=options.busy_timeout,
        statementcachesize=options.prepare_cache_size,
    )
    try:
        _distrust(connection)
        plan_once(connection)
        create_functions(connection)
        whole_rows.create_functions(connection)
        if options.debug:
            connection.trace_v2(apsw.SQLITE_TRACE_STMT | apsw.SQLITE_TRACE_PROFILE, _StatementLog())
    except BaseException:
        close_untouched(connection, path)
        raise
    return connection


def _start(path: str) -> bytes:
    return read_file(path, 0, pages.HEADER_BYTES)


def _connect(
    path: str,
    start: bytes,
    secret: Secret | None,
    flags: int,
    *,
    name: str | None = None,
    new_as: Kind = "plain",
    patience: float = 0.0,
    **more: int,
) -> apsw.Connection:
    """A connection by the layer, and with the key, that the pages of a file take which begins with `start`.

    `name` is what SQLite opens, where that is more than the path; `new_as` is what a file becomes that is new.
    """
    kind = pages.kind_of(start)
    is_new = kind == "new"
    if is_new:
        kind = new_as
    if kind == "encrypted":
        secret = pages.require_key(path, secret)
    connection = apsw.Connection(path if name is None else name, flags=flags, vfs=pages.layer_for(kind), **more)
    try:
        connection.set_busy_handler(Patience(patience))
        if kind == "encrypted" and secret is not None:
            pages.unlock(connection, path, secret, start)
        if kind == "checksums" and is_new:
            connection.reserve_bytes("main", pages.CHECKSUM_BYTES)
        # Statement journals in memory: a temporary file for each costs more than the write itself.
        connection.execute("PRAGMA temp_store=MEMORY")
    except BaseException:
        close_untouched(connection, path)
        raise
    return connection


def _distrust(connection: apsw.Connection) -> None:
    """What a file could bring along is not run: no triggers, views, functions in the schema, or tricks with pages."""
    _trust_no_schema(connection)
    connection.execute("PRAGMA cell_size_check=ON")
    connection.execute("PRAGMA mmap_size=0")


def _trust_no_schema(connection: apsw.Connection) -> None:
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_VIEW, 0)


def plan_once(connection: apsw.Connection) -> None:
    """Plan a statement when it is prepared, not again for each new operand of a range (SQLite with STAT4 does that).

    The planning costs more than most queries, and the statistics it looks at are not collected here. Whoever compares
    plans has to set this on both connections.
    """
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)


@contextlib.contextmanager
def limited(connection: apsw.Connection) -> Iterator[None]:
    """Stop statements of the block when the current thread's `Limit` is over.

    Only where there is one: asking takes the interpreter lock, which other threads may keep for long.
    """
    if not is_limited():
        yield
        return
    connection.set_progress_handler(is_over, _STEPS_IN_A_HURRY if is_hurried() else STEPS_BETWEEN_LOOKS)
    try:
        yield
    finally:
        connection.set_progress_handler(None)


class _StatementLog:
    """Logs each statement with its time, which SQLite itself counts in whole milliseconds.

    The text of a statement has no values in it: they are bound.
    """

    def __init__(self) -> None:
        self._started: dict[int, float] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        if event["code"] == apsw.SQLITE_TRACE_STMT:
            self._started.setdefault(event["id"], time.perf_counter())
            return
        seconds = time.perf_counter() - self._started.pop(event["id"], time.perf_counter())
        SQL_LOG.debug("%.3f ms  %s", seconds * 1000, " ".join(event["sql"].split()))


def _pause() -> None:
    time.sleep(random.uniform(0.0002, 0.002))


def size_of(path: str) -> int:
    """The size of a file in bytes, 0 where there is none."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
