"""`load`: a stream of any length into a store, batch by batch.

Called by the verb of that name. Nothing is drawn from the stream while a transaction is open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mycelia_storage.batches import Batch, add_item, batch_error, name_of
from mycelia_storage.entries import LoadProblem, LoadReport
from mycelia_storage.errors import StorageError, UniqueIndexError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_KEPT_PROBLEMS: Final = 100
# Characters of JSON: large documents fill a batch before their number does.
_MAX_BATCH: Final = 16 * 1024 * 1024


class Loader:
    """One run of `load`: what is waiting to be written, and what has been counted so far."""

    def __init__(
        self,
        write: Callable[[Batch], object],
        max_bytes: int,
        batch_size: int,
        on_error: str,
        progress: Callable[[LoadReport], object] | None,
    ) -> None:
        self._write = write
        self._max_bytes = max_bytes
        self._batch_size = batch_size
        self._stops = on_error == "stop"
        self._progress = progress
        self._batch: Batch = {}
        self._places: dict[str, int] = {}
        self._waiting = 0
        self._size = 0
        self._loaded = 0
        self._failed = 0
        self._problems: list[LoadProblem] = []
        self._fresh: list[LoadProblem] = []

    def run(self, items: Iterator[object]) -> LoadReport:
        """Draw everything and write it."""
        for index, item in enumerate(items):
            try:
                key, size = add_item(self._batch, item, None, None, self._max_bytes)
            except StorageError as error:
                self._refuse(name_of(item, index), index, error)
            else:
                self._places[key] = index
                self._waiting += 1
                self._size += size
            if self._waiting >= self._batch_size or self._size >= _MAX_BATCH or len(self._fresh) >= _KEPT_PROBLEMS:
                self._flush()
        if self._waiting or self._fresh:
            self._flush()
        return LoadReport(self._loaded, self._failed, tuple(self._problems))

    def _refuse(self, name: object, index: int, error: StorageError) -> None:
        problem = LoadProblem(index, name, error)
        self._failed += 1
        if len(self._problems) < _KEPT_PROBLEMS:
            self._problems.append(problem)
        self._fresh.append(problem)
        if self._stops:
            stopped = batch_error({name: error}, f"stopped at item {index}; {self._loaded:,} before it are stored")
            stopped.report = LoadReport(self._loaded, self._failed, tuple(self._problems))
            raise stopped from error

    def _write_one_by_one(self) -> None:
        """A batch in which some value is in a unique index already: all that can be is written."""
        for key in sorted(self._batch):
            try:
                self._write({key: self._batch[key]})
                self._loaded += 1
            except UniqueIndexError as error:
                self._refuse(key, self._places[key], error)

    def _flush(self) -> None:
        if self._batch:
            try:
                self._write(self._batch)
                self._loaded += self._waiting
            except UniqueIndexError as error:
                if self._stops:
                    self._refuse(error.key, self._places.get(error.key, 0), error)
                self._write_one_by_one()
            self._batch, self._places, self._waiting, self._size = {}, {}, 0, 0
        if self._progress is not None:
            self._progress(LoadReport(self._loaded, self._failed, tuple(self._fresh)))
        self._fresh = []
