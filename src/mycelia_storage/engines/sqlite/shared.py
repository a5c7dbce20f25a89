"""`SharedStatements`: the primitives in a shared commit, of which putting a row is what most members do.

Called by `SharedCommits`. Most of those rows go the same simple way, so that their result is known before they are
written. They are gathered, and written by one statement for many: a call of the driver for each costs more than what
SQLite does, and gives the interpreter's lock away each time, which other threads wait for. Where one of them turns out
not to go that way, `UnfitError` is raised, and the transaction has to be done again without gathering.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import apsw

from mycelia_storage.engines.limits import is_hurried
from mycelia_storage.engines.sqlite.session import PUT_IF_SIMPLE, Statements, put_one, put_together
from mycelia_storage.errors import StorageBusyError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from mycelia_storage.engines.engine import PutRow
    from mycelia_storage.engines.sqlite.writer import Writer

# So many rows go into one statement at most, and those that are left into one of half as many, and so on.
_MOST_ROWS: Final = 64
_PUT_ROWS: Final = {2**power: put_together(2**power) for power in range(_MOST_ROWS.bit_length())}
_PER_ROW: Final = 5
# A value of more characters than this is for those who may wait.
_LARGE: Final = 100_000


class UnfitError(Exception):
    """A row that was gathered could not be written as its member was told."""


class _Shared:
    """Lends the writer to the members of a shared commit, whose errors its owner looks at."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.is_gathering: bool = False
        # Namespaces of which this transaction knows that they are registered, and that `now` is a version for them; and
        # the keys that it has put there, which get a later version where they are put again.
        self.known: dict[str, set[str]] = {}
        # Of the rows that are not written yet: the bindings, and how many they are.
        self.bindings: list[Any] = []
        self.gathered: int = 0
        self.now: int = 0
        self.is_unfit: bool = False

    def reading(self) -> _Shared:
        if self.gathered:
            self.flush()
        return self

    def writing(self) -> _Shared:
        if self.gathered:
            self.flush()
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
        self.bindings, self.gathered = [], 0
        self.is_unfit = False

    def flush(self) -> None:
        """Write what is gathered. Raises UnfitError."""
        writer = self._writer
        bindings, left = self.bindings, self.gathered
        self.bindings, self.gathered = [], 0
        self.is_unfit = True  # until all is written, whoever catches what is raised here
        begin = 0
        while left:
            rows = 1 << (min(left, _MOST_ROWS).bit_length() - 1)
            end = begin + rows * _PER_ROW
            try:
                writer.cursor.execute(_PUT_ROWS[rows], (self.now, self.now // 1000, *bindings[begin:end]))
            except apsw.ConstraintError:
                raise UnfitError from None
            if writer.connection.changes() != rows:
                raise UnfitError
            begin, left = end, left - rows
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
        if self.shared.is_unfit:
            raise UnfitError

    def put(self, namespace: str, rows: Sequence[PutRow], now: int) -> list[int]:
        if len(rows) != 1:
            return super().put(namespace, rows, now)
        # As `put_one` does, with one call less for each of many members.
        key, value, metadata, expires_at = rows[0]
        if len(value) > _LARGE and is_hurried():
            raise StorageBusyError("it takes long to write a large value")
        shared = self.shared
        keys = shared.known.get(namespace)
        if keys is not None and key not in keys:
            keys.add(key)
            shared.now = now
            shared.bindings += (namespace, key, value, metadata, expires_at)
            shared.gathered += 1
            if shared.gathered == _MOST_ROWS:
                shared.flush()
            return [now]
        shared.reading()
        writer = self._writer
        try:
            writer.cursor.execute(PUT_IF_SIMPLE, (namespace, key, value, metadata, expires_at, now, now // 1000))
            if writer.connection.changes():
                if shared.is_gathering:
                    shared.known[namespace] = {key}
                return [now]
        except apsw.ConstraintError:
            pass  # it is met again
        shared.known.clear()
        return [put_one(writer.connection, namespace, rows[0], now, writer.cursor)]
