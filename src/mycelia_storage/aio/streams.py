"""`AsyncScan`: what a sync verb walks through, as an async iterator.

Called by the verbs `scan` and `pages` of everything that is awaited.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, Protocol, Self, TypeVar

from mycelia_storage.errors import StorageClosedError, TransactionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from mycelia_storage.aio.jobs import Job

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)

_BATCH: Final = 500


class Walking(Protocol[V_co]):
    """What a walk needs of the object that it is called on: a way to run its steps, one after the other."""

    def _walk(self, *, is_held: bool) -> Callable[[Callable[[V_co], Any]], Job]:
        """What runs the steps of one walk, in order. `is_held`: it reads from something that it holds already."""
        ...


class AsyncScan(Generic[T]):
    """An async iterator, and an async context manager that ends it.

    It begins with the block, or when the first item is asked for, and reads the state of that moment. It ends when it
    is exhausted, closed, or collected. For one task at a time. When a task is cancelled while it waits for an item,
    no item is lost: where the read was stopped, the next call raises StorageTimeoutError.
    """

    def __init__(
        self, step: Callable[[Callable[[Any], Any]], Job], start: Callable[[Any], Iterator[T]], batch: int
    ) -> None:
        self._step = step
        self._start = start
        self._batch = batch
        self._iterator: Iterator[T] | None = None
        self._job: Job | None = None
        self._items: list[T] = []
        self._error: BaseException | None = None
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._is_over:
                raise StopAsyncIteration
            await self._fetch(self._batch)
        return self._items.pop()

    async def __aenter__(self) -> Self:
        if self._iterator is None and not self._is_over:
            await self._fetch(0)
            if self._error is not None:
                error, self._error = self._error, None
                raise error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not GeneratorExit:
            await self.aclose()

    async def aclose(self) -> None:
        """End the walk and give back what it held. A closed one is exhausted."""
        self._is_over = True
        job = self._job
        if job is not None:
            if job.limit is not None:
                job.limit.cancel()
            await until_done(job.future)
            if job.future is not None:
                _forget(job.future)
        self._items, self._error, self._job = [], None, None
        iterator, self._iterator = self._iterator, None
        end = getattr(iterator, "close", None)
        if end is not None:
            try:
                job = self._step(lambda _: end())
            except (StorageClosedError, TransactionError):
                return  # it has ended with the store or the transaction, or does so when it is collected
            await until_done(job.future)
            if job.future is not None:
                job.future.result()

    async def _fetch(self, count: int) -> None:
        job = self._job
        if job is None:
            job = self._job = self._step(lambda verbs: self._take(verbs, count))
        try:
            await until_done(job.future, is_patient=False)
        except asyncio.CancelledError:
            # What was read, or that it was stopped, is there for whoever asks next.
            if job.limit is not None:
                job.limit.cancel()
            if job.future is not None:
                job.future.add_done_callback(_forget)  # perhaps nobody does
            raise
        if self._job is not job or job.future is None:
            return  # somebody else has taken it
        self._job = None
        self._items, self._error, is_over = job.future.result()
        self._is_over |= is_over

    def _take(self, verbs: Any, count: int) -> tuple[list[T], BaseException | None, bool]:
        """In a thread: the next items backwards, the error that came after them, and whether nothing follows."""
        items: list[T] = []
        error: BaseException | None = None
        is_over = False
        try:
            if self._iterator is None:
                self._iterator = self._start(verbs)
            items.extend(itertools.islice(self._iterator, count))
            is_over = len(items) < count
        except BaseException as caught:  # noqa: BLE001  raised where its item would be
            error = caught
            is_over = self._iterator is None
        items.reverse()
        return items, error, is_over


def scanning(verb: Callable[Concatenate[V, P], Iterator[T]]) -> Callable[Concatenate[Walking[V], P], AsyncScan[T]]:
    """The form of `scan` that is iterated with `async for`."""

    @functools.wraps(verb)
    def call(self: Walking[V], /, *args: P.args, **options: P.kwargs) -> AsyncScan[T]:
        size: Any = options.get("batch_size", _BATCH)
        batch = min(size, _BATCH) if isinstance(size, int) and size > 0 else _BATCH
        return AsyncScan(self._walk(is_held=True), lambda verbs: verb(verbs, *args, **options), batch)

    return call


def paging(verb: Callable[Concatenate[V, P], Iterator[T]]) -> Callable[Concatenate[Walking[V], P], AsyncScan[T]]:
    """The form of `pages` that is iterated with `async for`."""

    @functools.wraps(verb)
    def call(self: Walking[V], /, *args: P.args, **options: P.kwargs) -> AsyncScan[T]:
        return AsyncScan(self._walk(is_held=False), lambda verbs: verb(verbs, *args, **options), 1)

    return call


async def until_done(future: asyncio.Future[Any] | None, *, is_patient: bool = True) -> None:
    """Wait for a future that must not be cancelled.

    Where it is patient, it waits to the end however often the waiting task is cancelled, and lets it know then.
    """
    cancelled: asyncio.CancelledError | None = None
    while future is not None and not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as error:
            if not is_patient:
                raise
            cancelled = error
    if cancelled is not None:
        if future is not None:
            _forget(future)
        raise cancelled


def _forget(future: asyncio.Future[Any]) -> None:
    """Let an error go that nobody waits for any more."""
    if not future.cancelled():
        future.exception()
