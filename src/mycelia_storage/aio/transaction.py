"""`AsyncTransaction`: every verb, awaited, as part of one step that commits as a whole or not at all.

Called by users through `AsyncStorage.transaction` and `run_transaction`, and by the facet.

A transaction that writes runs on a writer's thread and owns it while it is open; one that reads runs on a thread for
those that hold a connection. Who is inside it is noted on the event loop, from the moment the block is entered to the
moment it is left.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, overload

from mycelia_storage.aio.jobs import Session, Task
from mycelia_storage.aio.namespace import AsyncNamespace
from mycelia_storage.aio.streams import until_done
from mycelia_storage.aio.verbs import AsyncVerbs, named
from mycelia_storage.engines.limits import Limit
from mycelia_storage.errors import StorageBusyError, TransactionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import TypeForm

    from mycelia_storage.aio.jobs import Job
    from mycelia_storage.aio.threads import Readers, Threads, Writer
    from mycelia_storage.engines.engine import Isolation
    from mycelia_storage.transaction import Caller, Transaction

R = TypeVar("R")
T = TypeVar("T")

# The writer's thread itself refuses a transaction that has waited too long for a lock. Only where it has no time to,
# because it is doing something else, it is refused from here, so much later.
_GRACE: Final = 0.02


@named
class AsyncTransaction(AsyncVerbs):
    """An async context manager: leaving the block commits, an exception or a cancellation rolls back.

    Within it every verb reads one state of the store and its own writes, which nobody else sees before the commit. One
    call at a time: a second one meanwhile is a TransactionError. It may be handed to another task.
    """

    def __init__(
        self,
        threads: Threads,
        transaction: Transaction,
        *,
        owner: Literal["calling", "nobody"] = "calling",
        outer: AsyncTransaction | None = None,
        store: object = None,
    ) -> None:
        """Users call `store.transaction()`."""
        self._threads = threads
        self._store = store  # whose threads end when it is collected
        self._transaction = transaction
        self._outer = outer
        self._owner: Literal["calling", "nobody"] = owner
        self._caller: Caller | None = None
        self._is_begun = False
        self._is_over = False
        if outer is None:
            self._session = Session(transaction)
            self._holder: Readers | None = threads.holder() if transaction._is_read_only else None
            # The call that is under way, of this transaction or one inside it.
            self._current: Job | None = None

    def __repr__(self) -> str:
        state = "ended" if self._is_over else "open" if self._is_begun else "not begun"
        return f"<AsyncTransaction {state}>"

    @property
    def _root(self) -> AsyncTransaction:
        """The outermost one. (An attribute would be a cycle, and keep a forgotten transaction open.)"""
        return self if self._outer is None else self._outer._root

    @property
    def _thread(self) -> Writer | Readers:
        """Of the outermost one: where its calls are run."""
        return self._holder or self._session.writer or self._threads.writer

    # ---- the block

    async def __aenter__(self) -> Self:
        if self._is_begun:
            raise TransactionError("a transaction is entered once: call transaction() again for another")
        self._is_begun = True
        if self._outer is not None:
            await self._run(lambda transaction: transaction.__enter__())
            return self
        home = self._transaction._home
        if home.inside:
            home.refuse_inside()
        await self._begin()
        if not self._transaction._is_read_only:
            self._caller = home.enter(self._owner)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is GeneratorExit:
            # The coroutine is destroyed, its loop perhaps gone: there is nothing to wait with.
            self._abandon()
            return
        await self._end(lambda transaction: transaction.__exit__(kind, error, None))

    def __del__(self) -> None:
        if getattr(self, "_is_begun", False) and not self._is_over and self._outer is None:
            self._abandon()

    async def rollback(self) -> None:
        """Undo everything and end the transaction; the block may be left as usual then."""
        await self._run(lambda transaction: transaction.rollback(), is_read=False)
        self._leave()

    def transaction(
        self, *, read_only: bool = False, isolation: Isolation | None = None, durable: bool | None = None
    ) -> AsyncTransaction:
        """A transaction within this one, undone alone when it fails (a savepoint).

        While it is open, whatever else would write in this one is a TransactionError.
        """
        inner: Any = self._transaction.transaction(read_only=read_only, isolation=isolation, durable=durable)
        return AsyncTransaction(self._threads, inner, outer=self)

    @overload
    def namespace(self, name: str) -> AsyncNamespace[Any]: ...
    @overload
    def namespace(self, name: str, type: TypeForm[T]) -> AsyncNamespace[T]: ...
    @overload
    def namespace(self, name: AsyncNamespace[T]) -> AsyncNamespace[T]: ...
    def namespace(self, name: Any, type: Any = Any) -> AsyncNamespace[Any]:
        """A view of one namespace that belongs to this transaction, by name or from a view of the store."""
        if isinstance(name, AsyncNamespace):
            return name.within(self)
        return AsyncNamespace(self, self._transaction.namespace(name, type))

    # ---- by id, for the facet

    async def _commit(self) -> None:
        await self._end(lambda transaction: transaction.__exit__(None, None, None))

    async def _rollback(self) -> None:
        await self._end(lambda transaction: transaction.rollback())

    # ---- beginning and ending

    async def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        transaction, session = self._transaction, self._session
        wait = self._threads.busy_timeout if transaction._wait is None else transaction._wait
        deadline = time.monotonic() + wait

        def begin(_: object) -> None:
            transaction._wait = max(0.0, deadline - time.monotonic())
            transaction.__enter__()
            if transaction._max_duration is not None:
                session.ends_at = time.monotonic() + transaction._max_duration
            if future.done():
                session.end()  # whoever waited has gone

        def give_up() -> None:
            if not future.done():
                message = f"another transaction is writing, and this one waited {wait:g} s for it"
                future.set_exception(StorageBusyError(message))

        job = Task(begin, future, is_alone=True, session=session)
        self._check_open()
        if transaction._is_read_only:
            self._threads.queries.submit(job)
        else:
            self._threads.begin(job)
        timer = loop.call_later(wait + _GRACE, give_up)
        try:
            await future
        except BaseException:
            self._abandon()
            raise
        finally:
            timer.cancel()

    async def _end(self, end: Callable[[Transaction], object]) -> None:
        """Commit or roll back, whatever the waiting task is told meanwhile."""
        if self._is_over and self._outer is None:
            return
        transaction = self._transaction
        job = self._job(lambda: end(transaction))
        try:
            self._root._thread.submit(job)
            await until_done(job.future)
        finally:
            self._leave()
        if job.future is not None:
            job.future.result()

    def _leave(self) -> None:
        self._is_over = True
        caller, self._caller = self._caller, None
        if caller is not None:
            self._transaction._home.leave(caller)

    def _abandon(self) -> None:
        """Have it rolled back; nobody waits for that. From any thread, a destructor's included."""
        self._leave()
        session = self._root._session
        if self._outer is None:
            self._thread.submit(Task(lambda _: session.end(), None, session=session))

    # ---- where the verbs run

    def _job(self, function: Callable[[], Any], limit: Limit | None = None) -> Job:
        future = asyncio.get_running_loop().create_future()
        return Task(lambda _: function(), future, limit=limit, session=self._root._session)

    def _submit(self, function: Callable[[Transaction], Any], limit: Limit | None) -> Job:
        self._check_open()
        root, transaction = self._root, self._transaction
        if root._current is not None:
            raise TransactionError("another task is using this transaction just now: one call at a time")
        job = self._job(lambda: function(transaction), limit)
        root._thread.submit(job)
        root._current = job
        return job

    def _check_open(self) -> None:
        if self._threads.is_closed:
            raise self._threads.closed_error()

    async def _run(self, function: Callable[[Transaction], R], *, is_read: bool = False) -> R:
        """Run a call, the only one at its time. When the caller is cancelled, a read is stopped, a write finishes."""
        root = self._root
        limit = Limit() if is_read else None
        job = self._submit(function, limit)
        try:
            result: R = await job.future  # type: ignore[misc]
        except asyncio.CancelledError:
            if limit is not None:
                limit.cancel()
            raise
        finally:
            root._current = None
        return result

    async def _read(self, function: Callable[[Any], R], /) -> R:
        return await self._run(function, is_read=True)

    async def _query(self, function: Callable[[Any], R], /) -> R:
        return await self._run(function, is_read=True)

    async def _write(
        self, verb: Callable[..., R], arguments: Sequence[Any], options: Mapping[str, Any], /, *, is_small: bool
    ) -> R:
        del is_small
        return await self._run(lambda transaction: verb(transaction, *arguments, **options))

    async def _write_alone(self, function: Callable[[Any], R], /) -> R:
        return await self._run(function)

    def _walk(self, *, is_held: bool) -> Callable[[Callable[[Any], Any]], Job]:
        del is_held  # everything in a transaction is

        def step(function: Callable[[Any], Any]) -> Job:
            job = self._submit(function, Limit())
            if job.future is not None:
                job.future.add_done_callback(lambda _: self._stepped(job))
            return job

        return step

    def _stepped(self, job: Job) -> None:
        if self._root._current is job:
            self._root._current = None
