"""Calls on their way between event loops and threads: what each kind is, how it is run, and how its result goes back.

Called by the threads that run them, and by the classes whose verbs make them.
"""

from __future__ import annotations

from queue import Empty
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from mycelia_storage.errors import StorageBusyError, StorageClosedError, StorageError
from mycelia_storage.sharing import Call

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence
    from queue import SimpleQueue

    from mycelia_storage.aio.threads import Writer
    from mycelia_storage.engines.engine import Primitives
    from mycelia_storage.engines.limits import Limit
    from mycelia_storage.storage import Storage
    from mycelia_storage.transaction import Transaction


T = TypeVar("T")

NO_OPTIONS: Final[Mapping[str, Any]] = {}


class _Handed:
    """What only some kinds of call have."""

    __slots__ = ()

    limit: Limit | None = None
    session: Session | None = None
    is_alone: bool = False


class Read(_Handed):
    """A read that takes no time to speak of. `future` is None where nobody waits, but it has to be run.

    `since` is when it was made, in the time of `time.monotonic`; every kind of call has that.
    """

    __slots__ = ("error", "function", "future", "result", "since")

    def __init__(self, function: Callable[[Any], Any], future: asyncio.Future[Any] | None) -> None:
        self.function: Callable[[Any], Any] = function
        self.future: asyncio.Future[Any] | None = future
        self.since: float = monotonic()
        self.result: Any = None
        self.error: BaseException | None = None


class Task(Read):
    """Any call that is run by itself: one that may be stopped, one of a transaction, a write that shares nothing."""

    __slots__ = ("is_alone", "limit", "session")

    def __init__(
        self,
        function: Callable[[Any], Any],
        future: asyncio.Future[Any] | None,
        *,
        limit: Limit | None = None,
        session: Session | None = None,
        is_alone: bool = False,
    ) -> None:
        super().__init__(function, future)
        self.limit: Limit | None = limit
        self.session: Session | None = session
        self.is_alone: bool = is_alone


class Write(_Handed, Call):
    """A write that may share its commit. `is_small`: it writes a few rows, and need not be durable."""

    __slots__ = ("arguments", "future", "is_small", "options", "since")

    def __init__(
        self,
        verb: Callable[..., Any],
        arguments: Sequence[Any],
        options: Mapping[str, Any],
        future: asyncio.Future[Any] | None,
        since: float,
        durable: bool,
        is_small: bool,
    ) -> None:
        # As a `Call` does, but without a reference of the call to itself, and without a closure for each: what is
        # made for each of many calls costs most when it is collected.
        self.function: Callable[..., Any] = verb
        self.arguments: Sequence[Any] = arguments
        self.options: Mapping[str, Any] = options
        self.durable: bool = durable
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_done: bool = False
        self.future: asyncio.Future[Any] | None = future
        self.is_small: bool = is_small
        self.since: float = since

    def step(self, rows: Primitives, now: int) -> Any:
        """What a member does; no attribute here, which would make a circle of the call and its method."""
        verbs = self.verbs
        verbs._rows, verbs._time = rows, now  # as `on` does, with one call less
        options = self.options
        if options:
            return self.function(verbs, *self.arguments, **options)
        return self.function(verbs, *self.arguments)

    def finish(self) -> None:
        """As a member does. What to run is kept, since it may be tried again."""
        self.is_done = True

    def forget(self) -> None:
        """It will not be tried again: an error that somebody keeps may know it, and it knows what it was given."""
        self.function, self.arguments, self.options = nothing, (), NO_OPTIONS


def upkeep() -> Write:
    """A write that writes nothing: what is due after one is seen to."""
    return Write(nothing, (), NO_OPTIONS, None, monotonic(), False, False)


# A call on its way.
Job: TypeAlias = Read | Write


class Session:
    """A transaction as its thread sees it. `ends_at` is when it is over by itself, in the time of `time.monotonic`.

    `writer` is the thread that has begun it, where it writes.
    """

    __slots__ = ("_is_ended", "ends_at", "transaction", "writer")

    def __init__(self, transaction: Transaction) -> None:
        self.transaction: Transaction = transaction
        self.ends_at: float | None = None
        self.writer: Writer | None = None
        self._is_ended = False

    def is_open(self) -> bool:
        """Whether it has begun and not ended."""
        return not self._is_ended and self.transaction._is_open()

    def end(self) -> None:
        """Roll back where that has not happened yet. Who still uses the transaction is told that it has ended."""
        session = self.transaction._session
        if session is not None:
            self._is_ended = True
            try:
                session.rollback()
            except StorageError:
                pass  # it is over, or nothing more can be done


def is_unwanted(job: Job) -> bool:
    """Whether nobody waits for it any more."""
    return job.future is not None and job.future.done()


def run(job: Job, verbs: Any) -> None:
    """Call the function of a job and keep what comes of it."""
    try:
        if job.limit is None:
            job.result = job.function(verbs)
        else:
            with job.limit:
                job.result = job.function(verbs)
    except BaseException as error:  # noqa: BLE001  whoever waits raises it
        job.error = error
    finally:
        del job  # the traceback knows this frame, and the future of the job will know the error


def deliver(jobs: Sequence[Job]) -> None:
    """Hand results back to the event loops that wait for them."""
    if not jobs:
        return
    # Nearly always they are of one loop.
    last: asyncio.AbstractEventLoop | None = None
    of_loop: list[Job] = []
    by_loop: list[tuple[asyncio.AbstractEventLoop, list[Job]]] = []
    for job in jobs:
        future = job.future
        if future is not None:
            loop = future.get_loop()
            if loop is not last:
                last, of_loop = loop, []
                by_loop.append((loop, of_loop))
            of_loop.append(job)
    for loop, of_loop in by_loop:
        try:
            loop.call_soon_threadsafe(resolve, of_loop)
        except RuntimeError:
            pass  # the loop is closed: nobody waits there


def resolve(jobs: Sequence[Job]) -> None:
    """On the event loop: what was done goes to those who wait for it."""
    for job in jobs:
        future, error = job.future, job.error
        if future is None or future.done():
            continue
        if error is None:
            future.set_result(job.result)
            continue
        # The traceback of the error knows the job, so the job forgets the error.
        job.error = None
        if isinstance(error, StopIteration):
            # No future takes one, and no coroutine lets one through.
            stopped = RuntimeError("the function raised StopIteration")
            stopped.__cause__ = error
            error = stopped
        future.set_exception(error)


def share(storage: Storage, jobs: list[Write], busy_timeout: float) -> list[Write]:
    """Run calls in a shared commit, waiting as long as the oldest of them may. Gives those that may wait for longer."""
    try:
        storage._share(jobs, max(0.0, busy_timeout - (monotonic() - jobs[0].since)))
    except BaseException as error:  # noqa: BLE001  whoever waits raises it
        for job in jobs:
            job.error = job.error or error
    again: list[Write] = []
    if any(job.error is not None for job in jobs):
        now = monotonic()
        for job in jobs:
            if job.error is not None and isinstance(job.error, StorageBusyError) and now < job.since + busy_timeout:
                job.error, job.is_done = None, False
                again.append(job)
            else:
                job.forget()
    return again


def nothing(verbs: Any) -> None:
    """What a call does that is done: an error that somebody keeps may know it."""


def rest_of(queue: SimpleQueue[T | None]) -> list[T]:
    """Everything in a queue that no thread takes from any more."""
    rest: list[T] = []
    while True:
        try:
            item = queue.get_nowait()
        except Empty:
            return rest
        if item is not None:
            rest.append(item)


def refuse(jobs: Sequence[Job], why: Callable[[], StorageClosedError]) -> None:
    """Answer calls that no thread will run any more."""
    for job in jobs:
        if job.session is not None and not job.is_alone:
            run(job, None)  # the end of a transaction, or a call that is told of it
        else:
            job.error = why()
    deliver(jobs)
