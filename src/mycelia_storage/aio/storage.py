"""`AsyncStorage`: an open store for event loops, whose verbs are awaited and run on threads of its own.

Called by users; `open_async_storage` makes one.
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from contextvars import copy_context
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Concatenate, Final, Literal, NoReturn, ParamSpec, Self, TypeVar, Unpack, overload

from mycelia_storage.aio.at_once import AtOnce
from mycelia_storage.aio.jobs import Read, Task
from mycelia_storage.aio.namespace import AsyncNamespace
from mycelia_storage.aio.threads import Threads, run_in_thread
from mycelia_storage.aio.transaction import AsyncTransaction
from mycelia_storage.aio.verbs import AsyncVerbs, named, querying, writing_alone
from mycelia_storage.arguments import check_function
from mycelia_storage.engines.limits import Limit
from mycelia_storage.options import DEFAULT_TARGET
from mycelia_storage.retries import RETRIED, Retries
from mycelia_storage.storage import Storage, open_storage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
    from datetime import timedelta
    from os import PathLike
    from types import TracebackType

    from typing_extensions import TypeForm

    from mycelia_storage.aio.jobs import Job
    from mycelia_storage.engines.engine import Isolation
    from mycelia_storage.options import StorageOptions

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def open_async_storage(
    target: str | PathLike[str] | Mapping[str, Any] = DEFAULT_TARGET, /, **options: Unpack[StorageOptions]
) -> Opening:
    """Open a store, or make it, as `open_storage` does, without holding up the event loop.

    Either `async with open_async_storage(…) as store:`, which closes it at the end, or
    `store = await open_async_storage(…)`.
    """
    return Opening(functools.partial(open_storage, target, **options))


_FORMS: Final = "write 'async with open_async_storage(…) as store:' or 'store = await open_async_storage(…)'"


class Opening:
    """A store that is about to be opened: await it, or enter it."""

    def __init__(self, open_it: Callable[[], Storage]) -> None:
        self._open = open_it
        self._is_used = False
        self._store: AsyncStorage | None = None

    if not TYPE_CHECKING:  # to a type checker there is nothing of these

        def __getattr__(self, name: str) -> NoReturn:
            message = f"nothing is open yet, so there is no {name!r}: {_FORMS}"
            raise AttributeError(message, name=name, obj=self)

        def __enter__(self) -> NoReturn:
            raise TypeError(f"a plain with block cannot open a store for asyncio: {_FORMS}")

        def __exit__(self, *_: object) -> None:
            """Not reached; without it `with` would not look at `__enter__`."""

    def __await__(self) -> Generator[Any, None, AsyncStorage]:
        return self._opened().__await__()

    async def __aenter__(self) -> AsyncStorage:
        self._store = await self._opened()
        return self._store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._store is not None:
            await self._store.__aexit__(kind, error, traceback)

    async def _opened(self) -> AsyncStorage:
        if self._is_used:
            # As with a coroutine. It would be a second store, beside the one that the caller has.
            raise RuntimeError(f"what open_async_storage gives opens one store, once: keep the store; {_FORMS}")
        self._is_used = True
        return AsyncStorage(await run_in_thread(self._open, Storage.close))


def _copying(
    verb: Callable[Concatenate[Storage, P], None],
) -> Callable[Concatenate[AsyncStorage, P], Coroutine[Any, Any, None]]:
    """The awaited form of a verb on whole files. It has a thread of its own, and is stopped when its task is cancelled.

    The caller's function is called in that thread, and sees the caller's context variables.
    """

    @functools.wraps(verb)
    async def call(self: AsyncStorage, /, *args: P.args, **options: P.kwargs) -> None:
        context = copy_context()
        await self._copy(lambda storage: context.run(verb, storage, *args, **options))

    return call


@named
class AsyncStorage(AsyncVerbs):
    """An open store whose verbs are awaited, for any number of tasks and event loops. Close it, or use `async with`.

    Every verb but `load` is a transaction of its own: when it returns, its change is there for everybody and survives
    the end of this process; when it raises, nothing was changed. A task that is cancelled while it waits does not know:
    a call that had not begun is dropped, a read is stopped, a write comes to its end.
    """

    def __init__(self, storage: Storage) -> None:
        if not isinstance(storage, Storage):
            kind = type(storage).__name__
            raise TypeError(f"AsyncStorage needs an open store, not {kind}: open_async_storage(target) opens one")
        self._storage = storage
        self._home = storage._home
        self._inside = storage._inside
        options = storage._options
        self._threads = Threads(storage, busy_timeout=options.busy_timeout, max_readers=options.max_readers)
        self._at_once = (AtOnce(storage), storage)
        # Forgotten and collected: the threads end, the store stays with whoever has it.
        weakref.finalize(self, self._threads.let_go).atexit = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not GeneratorExit:
            await self.close()

    def __repr__(self) -> str:
        return f"<Async{repr(self._storage)[1:]}"

    @property
    def sync(self) -> Storage:
        """The store behind it, whose verbs are called without await."""
        return self._storage

    # ---- the store
    get_status: Final = querying(Storage.get_status)
    check: Final = querying(Storage.check)
    backup: Final = _copying(Storage.backup)
    restore: Final = _copying(Storage.restore)
    optimize: Final = writing_alone(Storage.optimize)
    migrate: Final = writing_alone(Storage.migrate)

    @overload
    def namespace(self, name: str) -> AsyncNamespace[Any]: ...
    @overload
    def namespace(self, name: str, type: TypeForm[T]) -> AsyncNamespace[T]: ...
    def namespace(self, name: str, type: Any = Any) -> AsyncNamespace[Any]:
        """A view of one namespace with all verbs on entries; with a `type` values are given and taken as that type."""
        return AsyncNamespace(self, self._storage.namespace(name, type))

    async def close(self) -> None:
        """Finish what was accepted, end the threads, and close the store. Open transactions are rolled back.

        Afterwards every call is a StorageClosedError; a second close does nothing.
        """
        await self._finish(self._storage.close)

    async def _stop(self) -> None:
        """As `close`, but the store behind it stays open."""
        await self._finish(lambda: None)

    async def _finish(self, last: Callable[[], None]) -> None:
        future = asyncio.get_running_loop().create_future()
        self._threads.close(Task(lambda _: last(), future))
        await future

    # ---- together

    def transaction(
        self,
        *,
        read_only: bool = False,
        isolation: Isolation | None = None,
        durable: bool | None = None,
        wait: float | timedelta | None = None,
        max_duration: float | timedelta | None = None,
    ) -> AsyncTransaction:
        """Several verbs as one step, in an `async with` block that gives an `AsyncTransaction` with the same verbs.

        See `Storage.transaction`. While it is open, writes of other tasks wait, `busy_timeout` at most; on PostgreSQL
        only those that it comes between, with TransactionConflictError for one of both.
        """
        return self._transaction(
            "calling", read_only=read_only, isolation=isolation, durable=durable, wait=wait, max_duration=max_duration
        )

    async def run_transaction(
        self,
        function: Callable[[AsyncTransaction], Awaitable[R]],
        *,
        attempts: int = 50,
        deadline: float = 30.0,
        isolation: Isolation | None = None,
        durable: bool | None = None,
    ) -> R:
        """Await `function` with a transaction and commit; after a conflict or a busy lock, again.

        See `Storage.run_transaction`. The function may run several times, so what it does besides has to bear that.
        """
        check_function("function", function)
        retries = Retries(attempts, deadline)
        while True:
            try:
                async with self.transaction(isolation=isolation, durable=durable) as tx:
                    work = function(tx)
                    if not isawaitable(work):
                        raise TypeError("run_transaction of an AsyncStorage needs an async function: async def …")
                    return await work
            except RETRIED:
                pause = retries.pause()
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    def _transaction(self, owner: Literal["calling", "nobody"], **options: Any) -> AsyncTransaction:
        transaction = self._storage._transaction(owner="nobody", **options)
        return AsyncTransaction(self._threads, transaction, owner=owner, store=self)

    async def _begin(self, *, owner: Literal["calling", "nobody"] = "nobody", **options: Any) -> AsyncTransaction:
        """A transaction that has begun, known by whoever has it; `_commit` or `_rollback` ends it."""
        return await self._transaction(owner, **options).__aenter__()

    # ---- where the verbs run

    @property
    def _here(self) -> tuple[AtOnce, Storage] | None:
        if self._inside or self._threads.is_closed:
            self._check()
        return self._at_once

    def _read(self, function: Callable[[Any], R], /) -> Awaitable[R]:
        if self._inside or self._threads.is_closed:
            self._check()
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._threads.short.submit(Read(function, future))
        return future

    async def _query(self, function: Callable[[Any], R], /) -> R:
        self._check()
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        limit = Limit()
        self._threads.queries.submit(Task(function, future, limit=limit))
        try:
            return await future
        except asyncio.CancelledError:
            limit.cancel()
            raise

    def _write(
        self, verb: Callable[..., R], arguments: Sequence[Any], options: Mapping[str, Any], /, *, is_small: bool
    ) -> Awaitable[R]:
        if self._inside or self._threads.is_closed:
            self._check()
        return self._threads.writer.gathering.add(verb, arguments, options, is_small=is_small)

    def _write_alone(self, function: Callable[[Any], R], /) -> Awaitable[R]:
        self._check()
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._threads.writer.submit(Task(function, future, is_alone=True))
        return future

    def _load(self, function: Callable[[Any], R], /) -> Awaitable[R]:
        self._check()
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._threads.loads.submit(Task(function, future))
        return future

    async def _copy(self, function: Callable[[Any], None]) -> None:
        self._check()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        limit = Limit()
        self._threads.copies.submit(Task(function, future, limit=limit))
        try:
            await future
        except asyncio.CancelledError:
            limit.cancel()
            raise

    def _walk(self, *, is_held: bool) -> Callable[[Callable[[Any], Any]], Job]:
        readers = self._threads.scanner() if is_held else self._threads.queries

        def step(function: Callable[[Any], Any]) -> Job:
            self._check()
            job = Task(function, asyncio.get_running_loop().create_future(), limit=Limit())
            readers.submit(job)
            return job

        return step

    def _check(self) -> None:
        if self._inside:
            self._home.refuse_inside()
        if self._threads.is_closed:
            raise self._home.closed_error()
