"""`SharedStatements`: the primitives in a shared commit, of which putting a row is what most members do.

Called by `SharedCommits`. Most of those rows go the same simple way, so that their result is known before they are
written. They are gathered, and written by one statement for many: a call of the driver for each costs more than what
SQLite does, and gives the interpreter's lock away each time, which other threads wait for. Where one of them turns out
not to go that way, `UnfitError` is raised, and the transaction has to be done again without gathering.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

import apsw

from mycelia_storage.engines.limits import is_hurried
from mycelia_storage.engines.sqlite.session import PUT, PUT_IF_SIMPLE, Statements, put_otherwise, put_together
from mycelia_storage.errors import StorageBusyError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from mycelia_storage.engines.engine import PutRow
    from mycelia_storage.engines.sqlite.writer import Writer

# So many rows go into one statement at most, and those that are left into one of half as many, and so on.
_MOST_ROWS: Final = 64
_PUT_ROWS: Final = {2**power: put_together(2**power) for power in range(_MOST_ROWS.bit_length())}
_PUT_ONE_MORE: Final = _PUT_ROWS[1]
# A value or metadata of more characters than this is written at once: those that are gathered are held in memory, twice
# while they are written, and of pages that are replaced SQLite keeps copies until the statement has ended.
_MOST_GATHERED: Final = 2_000
# A value of more characters than this is for those who may wait.
_LARGE: Final = 100_000


class UnfitError(Exception):
    """A row that was gathered could not be written as its member was told."""


class _Shared:
    """Lends the writer to the members of a shared commit, whose errors its owner looks at."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.is_gathering: bool = False
        # Namespaces of which this transaction knows that they are registered, and that `now` is a version for them.
        self.known: set[str] = set()
        # Where this transaction has put something, by namespace: a key that is put again gets a later version.
        self.keys: dict[str, set[str]] = {}
        # The rows that are not written yet, with their namespaces. Only ever added to, one by one, or replaced, since a
        # signal handler may raise at any point.
        self.rows: list[tuple[str, str, str, str | None, int | None]] = []
        self.now: int = 0
        self.is_unfit: bool = False

    def reading(self) -> _Shared:
        if self.rows or self.is_unfit:
            self.flush()
        return self

    def writing(self) -> _Shared:
        self.reading()
        self.known.clear()  # whatever is written now may change that
        return self

    def time(self, now: int) -> int:
        return now

    def __enter__(self) -> apsw.Connection:
        return self._writer.connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing is given back."""

    def forget(self) -> None:
        self.known.clear()
        self.keys.clear()
        self.rows = []
        self.is_unfit = False

    def keys_of(self, namespace: str) -> set[str]:
        keys = self.keys.get(namespace)
        if keys is None:
            keys = self.keys[namespace] = set()
        return keys

    def flush(self) -> None:
        """Write what is gathered. Raises UnfitError, and from then on whenever it is called."""
        if self.is_unfit:
            raise UnfitError
        self.is_unfit = True  # until all is written, whoever catches what is raised here
        writer, rows, self.rows = self._writer, self.rows, []
        try:
            begin, left = 0, len(rows)
            while left:
                count = 1 << (min(left, _MOST_ROWS).bit_length() - 1)
                end = begin + count
                some = rows[0] if left == len(rows) == 1 else chain.from_iterable(rows[begin:end])
                writer.cursor.execute(_PUT_ROWS[count], (self.now, self.now // 1000, *some))
                if writer.connection.changes() != count:
                    raise UnfitError
                begin, left = end, left - count
        except apsw.ConstraintError:
            raise UnfitError from None
        self.is_unfit = False


class SharedStatements(Statements):
    """The primitives in a shared commit."""

    def __init__(self, writer: Writer) -> None:
        self.shared: _Shared = _Shared(writer)
        super().__init__(self.shared)
        self._writer = writer

    def begin(self, *, is_gathering: bool) -> None:
        """For each transaction, before its first member: nothing is known of what others have done since the last."""
        self.shared.forget()
        self.shared.is_gathering = is_gathering

    def flush(self) -> None:
        """After the last member, before the commit: see to it that all is written. Raises UnfitError."""
        self.shared.reading()

    def put(self, namespace: str, rows: Sequence[PutRow], now: int) -> list[int]:
        shared = self.shared
        if len(rows) != 1:
            if shared.is_gathering:
                shared.keys_of(namespace).update(row[0] for row in rows)
            return super().put(namespace, rows, now)
        key, value, metadata, expires_at = rows[0]
        if len(value) > _LARGE and is_hurried():
            raise StorageBusyError("it takes long to write a large value")
        is_known = namespace in shared.known
        is_again = False
        if shared.is_gathering:
            keys = shared.keys.get(namespace)
            if keys is None:
                keys = shared.keys_of(namespace)
            is_again = key in keys
            keys.add(key)
            if is_known and not is_again and len(value) + len(metadata or "") <= _MOST_GATHERED:
                shared.now = now
                waiting = shared.rows
                waiting.append((namespace, key, value, metadata, expires_at))
                if len(waiting) == _MOST_ROWS:
                    shared.flush()
                return [now]
            shared.reading()
        # As `put_one` does, with fewer calls for each of many members.
        writer = self._writer
        try:
            if is_again:
                return [writer.cursor.execute(PUT, (namespace, key, value, metadata, expires_at, now, now // 1000)).get]
            if is_known:
                writer.cursor.execute(_PUT_ONE_MORE, (now, now // 1000, namespace, key, value, metadata, expires_at))
            else:
                writer.cursor.execute(PUT_IF_SIMPLE, (namespace, key, value, metadata, expires_at, now, now // 1000))
            if writer.connection.changes():
                shared.known.add(namespace)
                return [now]
        except apsw.ConstraintError:
            pass  # it is met again
        shared.known.clear()
        return [put_otherwise(writer.connection, namespace, rows[0], now)]
