"""`Scan`: a walk through a namespace in key order, in bounded memory, on one state of the store.

Called by the verb of that name and by the views of a namespace.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from mycelia_storage.engines.engine import Query
from mycelia_storage.entries import Entry, entry_of
from mycelia_storage.filters import Comparison, Path, narrowed
from mycelia_storage.keys import behind

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from mycelia_storage.engines.engine import Primitives, Row
    from mycelia_storage.filters import Filter
    from mycelia_storage.keys import KeyRange

T = TypeVar("T")


class Scan(Generic[T]):
    """An iterator over entries, and a context manager that ends it.

    It ends when it is exhausted, closed, or collected; until then it holds a connection of its own. For one thread at
    a time.
    """

    def __init__(
        self,
        rows: Callable[[], Primitives],
        end: Callable[[], object],
        namespace: str,
        span: KeyRange,
        now: int,
        batch_size: int,
        filter: Filter | None = None,
    ) -> None:
        self._rows = rows
        self._namespace = namespace
        self._span = span
        self._now = now
        self._batch_size = batch_size
        self._filter = filter
        self._after: str | None = None
        self._convert: Callable[[Entry[Any]], Entry[T]] | None = None
        self._batch: list[Entry[Any]] = []
        self._is_last = False
        self._end = weakref.finalize(self, end)
        self._end.atexit = False  # another thread may be reading

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Entry[T]:
        if self._batch:
            self._rows()  # raises where the store was closed, or the transaction has ended
        else:
            self._fetch()
        entry = self._batch.pop()
        return cast("Entry[T]", entry if self._convert is None else self._convert(entry))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def converted(self, convert: Callable[[Entry[Any]], Entry[T]]) -> Self:
        """The same scan, whose entries go through a function first; for a view that gives its values a type."""
        self._convert = convert
        return self

    def close(self) -> None:
        """End the scan and give back what it held. A closed scan is exhausted."""
        self._batch = []
        self._is_last = True
        self._end()

    def _fetch(self) -> None:
        if self._is_last:
            self.close()
            raise StopIteration
        try:
            found = self._next_rows()
            self._batch = [entry_of(self._namespace, row) for row in reversed(found)]
            if found:
                self._after = found[-1].key
                self._span = behind(self._span, self._namespace, self._after)
        except BaseException:
            self.close()
            raise
        self._is_last = len(found) < self._batch_size
        if not found:
            self.close()
            raise StopIteration
        if self._is_last:
            self._end()

    def _next_rows(self) -> list[Row]:
        if self._filter is None:
            return self._rows().page(self._namespace, self._span, self._now, limit=self._batch_size)
        after = None if self._after is None else ((), self._after)
        wanted = self._filter
        if self._after is None and self._span.low:
            wanted = narrowed(wanted, Comparison(Path("$key", ()), "gte", self._span.low))
        if self._span.high is not None:
            wanted = narrowed(wanted, Comparison(Path("$key", ()), "lt", self._span.high))
        return self._rows().find(self._namespace, Query(wanted, (), self._batch_size, 0, after), self._now)
