"""A store's file copied as it lies on the disk, in large pieces, while others write to the store.

Called by the engine for `backup`. SQLite's own way, page after page through two caches, takes twice as long. It stays
the way for files of which each page has to be taken apart (checksums, encryption), and where the -wal is large beside
the file or cannot be asked. What was copied is looked through afterwards, either way.

While a read transaction is open, the file and a part of the -wal make one state:

1. Without WAL nobody writes to the file as long as somebody reads.
2. In WAL mode the file changes only when pages of the -wal are written back into it, and that goes no further than to
   where the oldest read began. If all of the -wal is written back at some moment of the read, the file alone is what is
   read, and stays so: what others commit from then on is not written back before the read has ended.
3. If some of it is not, the file and the frames that the -wal has at that moment are the state of the last commit in
   them. What is written back meanwhile is in these frames too. They stay as well: the -wal is begun anew only when all
   of it is written back, which cannot be before the read has ended.

SQLite itself then puts the frames into the copy, as after a crash, and looks at their checksums.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

import apsw

from mycelia_storage.engines import forking
from mycelia_storage.engines.sqlite import copying, pages
from mycelia_storage.engines.sqlite.soundness import Beside
from mycelia_storage.engines.sqlite.telling import failing_as
from mycelia_storage.errors import StorageCorruptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mycelia_storage.engines.sqlite.lending import Lending
    from mycelia_storage.engines.sqlite.telling import Teller

# A fraction of a millisecond each: with much smaller ones the two who copy wait for each other, and with much
# larger ones for memory that is fetched anew each time.
_PIECE: Final = 1024 * 1024
_WAL_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
# A -wal is copied where the file is so many times as large at least: of it every version of a page is read.
_TIMES_AS_LARGE: Final = 4


class _Files(NamedTuple):
    """What makes one state: of each file so many bytes, and how many pages that is."""

    main: apsw.VFSFile
    main_bytes: int
    wal: apsw.VFSFile | None
    wal_bytes: int
    frames: int
    page_size: int
    pages: int


def copy(
    lending: Lending, target: apsw.Connection, what: str, teller: Teller, open_reader: Callable[[], apsw.Connection]
) -> None:
    """Copy the store that `lending` reads into the new and empty file of another connection.

    Raises StorageCorruptError where what the -wal has does not fit its checksums.
    """
    with contextlib.ExitStack() as stack:
        frames = _frames_beside(lending.connection.filename, open_reader, what)
        with lending as connection, failing_as(what):
            files = None if frames is None else _opened(connection, frames, stack)
        if files is None:
            _copy_pages(lending, target, what, teller)
            return

        def tell(done: int) -> None:
            teller.tell("copying", min(done // files.page_size, files.pages), files.pages)

        tell(0)
        with _opened_to_fill(target.filename, 0, what) as descriptor:
            _copy_file(_Pieces(files.main, descriptor, files.main_bytes), lending, what, tell)
        if files.wal is None:
            return
        with _opened_to_fill(target.filename + "-wal", os.O_CREAT | os.O_EXCL, what) as descriptor:
            _copy_file(_Pieces(files.wal, descriptor, files.wal_bytes), lending, what, lambda _: tell(files.main_bytes))
    with failing_as(what):
        target.execute(copying.PIN).fetchall()
        found, _ = target.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
    if found != files.frames:
        raise StorageCorruptError(f"{what}: the store is damaged: what was written last does not fit its checksums")


def _copy_pages(lending: Lending, target: apsw.Connection, what: str, teller: Teller) -> None:
    with failing_as(what):  # pages that are encrypted cannot become those of a file with others
        target.pragma("page_size", lending.connection.pragma("page_size"))
        for connection in (lending.connection, target):
            connection.execute(copying.READ_ONCE)
    copying.copy_pages(
        lending.connection, target, what, lambda done, total: teller.tell("copying", done, total), lambda: lending
    )


def _frames_beside(path: str, open_reader: Callable[[], apsw.Connection], what: str) -> int | None:
    """How many frames of the -wal belong to the file's state, after a read has begun; None where nobody can tell."""
    with forking.opening(path), contextlib.closing(open_reader()) as connection, failing_as(what):
        connection.execute(copying.PIN).fetchall()  # before it has read, a connection knows of no -wal
        if connection.pragma("journal_mode") != "wal":
            return 0
        try:
            frames, written_back = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        except apsw.ReadOnlyError:  # the -shm may only be read
            return None
        return 0 if frames == written_back else frames


def _opened(connection: apsw.Connection, frames: int, stack: contextlib.ExitStack) -> _Files | None:
    """The files that a connection reads, where their pages are plain ones and the -wal is small beside the other."""
    size, page_count = connection.pragma("page_size"), connection.pragma("page_count")
    main = _open(connection.filename, apsw.SQLITE_OPEN_MAIN_DB, stack)
    main_bytes, wal_bytes = main.xFileSize(), _WAL_HEADER_BYTES + frames * (_FRAME_HEADER_BYTES + size)
    if pages.kind_of(main.xRead(pages.HEADER_BYTES, 0)) != "plain":
        return None
    wal = None
    if frames:
        if wal_bytes * _TIMES_AS_LARGE > main_bytes:
            return None
        wal = _open(connection.filename + "-wal", apsw.SQLITE_OPEN_WAL, stack)
    else:
        main_bytes = min(main_bytes, page_count * size)
    is_moved = ctypes.c_int(0)  # then others may have been opened
    connection.file_control("main", apsw.SQLITE_FCNTL_HAS_MOVED, ctypes.addressof(is_moved))
    return None if is_moved.value else _Files(main, main_bytes, wal, wal_bytes, frames, size, page_count)


def _open(path: str, flags: int, stack: contextlib.ExitStack) -> apsw.VFSFile:
    """By SQLite's own file layer: an open() and close() of ours would drop this process's locks on the file."""
    flags |= apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_NOFOLLOW
    file = apsw.VFSFile(pages.FILE_LAYER, path, [flags, 0])
    stack.callback(file.xClose)
    return file


class _Pieces:
    """What is left to copy of a file; each piece is copied by one of those who take them."""

    def __init__(self, source: apsw.VFSFile, target: int, size: int) -> None:
        self._source = source
        self._target = target
        self._size = size
        self._lock = threading.Lock()
        self.done: int = 0

    def copy_one(self) -> bool:
        """Copy the next piece. False: there is none left."""
        with self._lock:
            start, end = self.done, min(self.done + _PIECE, self._size)
            self.done = end
        if start >= end:
            return False
        # Only the writing lets other threads of Python run.
        piece = memoryview(self._source.xRead(end - start, start))
        while piece:
            written = os.pwrite(self._target, piece, start)
            piece, start = piece[written:], start + written
        return True

    def copy_all(self) -> None:
        """Copy pieces until none is left."""
        while self.copy_one():
            pass

    def stop(self) -> None:
        """Leave the rest."""
        with self._lock:
            self._size = 0


@contextlib.contextmanager
def _opened_to_fill(path: str, flags: int, what: str) -> Iterator[int]:
    with failing_as(what):
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | flags, 0o600)
    try:
        with failing_as(what):
            os.fchmod(descriptor, 0o600)  # the umask may have taken even that away
        yield descriptor
    finally:
        os.close(descriptor)


def _copy_file(pieces: _Pieces, lending: Lending, what: str, tell: Callable[[int], None]) -> None:
    """Copy a file, by this thread and another. If it was cut, what is looked through next tells what is missing."""
    another = Beside(pieces.copy_all)
    try:
        is_left = True
        while is_left:
            with lending, failing_as(what):  # who closes the store, or waits no longer, ends it between two pieces
                is_left = pieces.copy_one()
            tell(pieces.done)
    finally:
        pieces.stop()
        another.wait()
    with lending, failing_as(what):  # all of it was read before the transaction ended
        another.result()
