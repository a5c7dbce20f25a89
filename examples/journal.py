"""An engine of somebody else's: a store in one text file, to which each commit adds a line of JSON.

docs/writing-an-engine.md takes it apart; the tests run the whole contract suite on it, opened as

    open_storage("journal:///relative.jsonl")  # or journal:////absolute.jsonl

which finds it by the entry point `journal = "journal:JournalEngine"` of the group `mycelia_storage.engines`. Everything
is in memory, and the file in use by one process at a time: it suits some thousands of entries. What it is about is how
an engine begins, commits, fails and ends; the primitives it has from `mycelia_storage.engines.plain`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import tempfile
import threading
import urllib.parse
from functools import partial
from typing import TYPE_CHECKING

from mycelia_storage import (
    ConfigError,
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
from mycelia_storage.engines import kit, plain
from mycelia_storage.engines.engine import EngineStatus, Primitives

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mycelia_storage.engines.engine import Findings, Isolation, Member, Progress, Snapshot
    from mycelia_storage.options import Options

FIRST_LINE = b'{"journal":1}\n'


class JournalEngine:
    """The store: the state that is committed, and the file."""

    backend = "journal"
    reads_at_once = True  # nobody who reads waits for anybody
    has_write_lock = True
    share_at_once = None  # who writes waits for a file

    def __init__(self, options: Options) -> None:
        own = dict(options.engine_options)
        self._always_durable = bool(own.pop("always_durable", False))
        if own:
            raise ConfigError(f"engine_options: a journal knows 'always_durable', and not {', '.join(map(repr, own))}")
        self._options, self._path = options, path_of(options)
        self.clock: Callable[[], float] = options.clock
        self._line = kit.Line()  # those who write, one at a time
        self._lock = threading.Lock()  # of the file itself, against its end
        self._state, self._is_whole, self._is_closed = plain.State(), True, False
        self._file = open_file(self._path, read_only=options.read_only)
        try:
            self._read()
        except BaseException:
            self.close()
            raise
        self.auto: Primitives = plain.Auto(self, self._committed)
        kit.register_for_forks(self)

    def _read(self) -> None:
        with open(self._file, "rb", closefd=False) as file:
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]  # what stands behind it was never committed: a crash cut it off
        if not data.startswith(FIRST_LINE) and not FIRST_LINE.startswith(data):
            raise NotAStorageFileError(f"{self._path} is no journal, and is left as it is")
        for number, line in enumerate(whole.split(b"\n")[1:-1], start=2):
            try:
                for change in json.loads(line):
                    self._state.apply(change)
            except (LookupError, TypeError, ValueError, StorageError) as error:
                raise StorageCorruptError(f"{self._path}: line {number} is no commit") from error
        self._length = len(whole)
        if not self._options.read_only:
            os.ftruncate(self._file, len(whole))
            if not whole:
                os.write(self._file, FIRST_LINE)
                self._length = len(FIRST_LINE)
                kit.transact(self, lambda session, now: session.register(kit.DEFAULT_NAMESPACE, None, now))

    def _committed(self) -> plain.State:
        if self._is_closed:
            raise StorageClosedError("the store is closed")
        return self._state

    def _append(self, changes: list[plain.Change], state: plain.State, *, durable: bool) -> None:
        """Commit: first to the file, then for everybody to see."""
        line = json.dumps(changes, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._committed()
            if not self._is_whole:
                raise StorageIOError(f"{self._path}: an earlier write failed: open the store again")
            self._is_whole = False  # until the line is, or is gone
            try:
                left = line
                while left:
                    left = left[os.write(self._file, left) :]
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._length)
                    self._is_whole = True
                raise failure(self._path, error) from error
            try:
                if durable:
                    os.fsync(self._file)
            except OSError as error:
                raise OutcomeUnknownError(f"{self._path}: the commit may be kept or not: {error.strerror}") from error
            self._is_whole, self._state = True, state
            self._length += len(line)

    def begin(
        self,
        *,
        read_only: bool = False,
        isolation: Isolation | None = None,
        durable: bool = False,
        wait: float | None = None,
    ) -> plain.Session:
        """A transaction, serializable whatever was asked for: only one at a time writes."""
        del isolation
        if read_only:
            return plain.Session(self._committed())
        patience = self._options.busy_timeout if wait is None else wait
        if not self._line.acquire(patience):
            raise StorageBusyError(f"{self._path}: another transaction held the write lock for {patience:g} s")
        try:
            commit = partial(self._append, durable=durable or self._always_durable)
            return plain.Session(self._committed(), commit, self._line.release)
        except BaseException:
            self._line.release()
            raise

    def share(self, members: Sequence[Member], wait: float | None = None) -> None:
        kit.share_one_by_one(self, members, wait, self._options.busy_timeout)

    def snapshot(self) -> Snapshot:
        return plain.Session(self._committed())

    def holds_expiring(self) -> bool:
        return any(row.expires_at is not None for rows in self._committed().rows.values() for row in rows.values())

    def status(self) -> EngineStatus:
        self._committed()
        return EngineStatus(self._path, 1, self._length, {"always_durable": self._always_durable})

    def check(self, findings: Findings, now: int) -> None:
        self._committed().check(findings, now)

    def backup(self, path: str, *, overwrite: bool, progress: Progress | None) -> None:
        now = round(self.clock() * 1_000_000)
        contents = self._committed().contents(now)
        kit.write_backup(contents, path, self._options, now // 1000, overwrite=overwrite, progress=progress)

    def restore(self, path: str, *, progress: Progress | None) -> None:
        self._committed()
        with tempfile.TemporaryDirectory() as made:
            beside = os.path.join(os.path.realpath(made), "store")
            with kit.read_backup(path, self._options, beside, progress) as contents:
                session = self.begin(durable=True)
                try:
                    session.replace(contents)
                    session.commit()
                finally:
                    session.rollback()

    def optimize(self) -> None:
        self._committed()  # a journal grows for ever: to write it anew is left to the reader

    def migrate(self, to: int | None) -> None:
        self._committed()
        if to not in (None, 1):
            raise ConfigError("to: a journal has schema version 1, and no other")

    def before_fork(self) -> bool:
        return True

    def after_fork(self, *, in_child: bool, is_ready: bool) -> None:
        """The file stays the parent's."""
        del is_ready
        if in_child:
            self._lock = threading.Lock()  # which a thread of the parent's may have had
            self.close()

    def close(self) -> None:
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._file)


def path_of(options: Options) -> str:
    """`journal:///relative`, `journal:////absolute`. Raises ConfigError."""
    url = "" if options.dsn is None else options.dsn.reveal().decode()
    path = urllib.parse.unquote(url.partition("://")[2].removeprefix("/"))
    if not path or "\0" in path:
        raise ConfigError("target: it names no file: write 'journal:///relative.jsonl' or 'journal:////absolute.jsonl'")
    return os.path.abspath(path)


def open_file(path: str, *, read_only: bool) -> int:
    """The file, which nobody else may open meanwhile."""
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND | (0 if read_only else os.O_CREAT), 0o600)
    except OSError as error:
        raise failure(path, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise StorageBusyError(f"{path}: another process, or another store of this one, has it open") from None
    return file


def failure(path: str, error: OSError) -> StorageError:
    """The library's error for one of the system's, by its number: nothing was changed."""
    kinds = {errno.ENOSPC: StorageFullError, errno.EDQUOT: StorageFullError, errno.EROFS: StorageReadOnlyError}
    return kinds.get(error.errno or 0, StorageIOError)(f"{path}: {error.strerror}")
