"""The threads behind an `AsyncStorage`: calls go in from event loops, results go back to them.

Called by the classes beside it. A call goes to a thread through a queue, and its result comes back by
`call_soon_threadsafe`. That way costs many times what a point read costs, so it is shared: a thread takes call after
call, and hands back together what was done meanwhile.

What the threads promise to event loops, whatever happens in a call:

- Every call that was taken in is answered, unless nobody waits for it any more. (After the end of a thread, whoever put
  something into its queue, or the thread itself, whichever comes last, refuses what is left.)
- A call that nobody waits for is not begun. One that was begun comes to its end.
- No thread waits for something that only itself could end: while a transaction that writes is open, the writer serves
  that one only, and keeps all others waiting in its own list, with an eye on the clock.

Where the engine lets transactions go on beside each other, each has a writer of its own, while there are enough.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import weakref
from collections import deque
from itertools import cycle
from math import inf
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeVar

from mycelia_storage.aio.gathering import Gathering
from mycelia_storage.aio.jobs import Job, Session, Task, Write, deliver, is_unwanted, refuse, rest_of, run, share
from mycelia_storage.aio.streams import until_done
from mycelia_storage.errors import StorageBusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mycelia_storage.errors import StorageClosedError
    from mycelia_storage.storage import Storage

R = TypeVar("R")

# Results of one thread that go back together: so many, or what was done within so many seconds.
_RESULTS_TOGETHER: Final = 256
_PATIENCE: Final = 0.005
# Writes that share a commit.
_WRITES_TOGETHER: Final = 1000
_MOST_QUERIES: Final = 3
# Threads for scans, and as many for transactions that read.
_HOLDERS: Final = 2
# How long the exit of the interpreter waits for calls that are under way.
_EXIT_PATIENCE: Final = 5.0
# A transaction is ended by the store when its time is over; the writer looks a little later whether that was done.
_AFTER_DEADLINE: Final = 0.02


class Readers:
    """Up to `most` threads, started when needed, that take calls from one queue."""

    def __init__(self, threads: Threads, name: str, most: int, *, batch: int = 1) -> None:
        self._threads = threads
        self._name = name
        self._most = most
        self._batch = batch
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._started: list[threading.Thread] = []
        # One that its owner may take again: a destructor may come at any point.
        self._lock = threading.RLock()
        self._is_stopping = False
        self.is_over: bool = False
        # Only where there may be several threads: how many are needed, and what may be cancelled.
        self._waiting_or_running: set[Job] = set()

    def submit(self, job: Job) -> None:
        """Have a call run. From any thread, a destructor's included."""
        if self._most > 1 or not self._started:
            with self._lock:
                if self._most > 1:
                    self._waiting_or_running.add(job)
                if not self._is_stopping and len(self._started) < min(self._most, len(self._waiting_or_running) or 1):
                    self._start()
        self._queue.put(job)
        if self.is_over:
            self.refuse_rest()

    def _start(self) -> None:
        number = f"-{len(self._started) + 1}" if self._most > 1 else ""
        thread = threading.Thread(target=self._serve, name=f"mycelia-{self._name}{number}", daemon=True)
        thread.start()
        self._started.append(thread)

    def stop(self) -> None:
        """Let the threads finish what is in the queue, and end."""
        with self._lock:
            self._is_stopping = True
            for _ in self._started:
                self._queue.put(None)

    def join(self) -> None:
        """Wait for the end of the threads."""
        for thread in self._started:
            thread.join()

    def cancel(self) -> None:
        """Stop the reads that are under way."""
        with self._lock:
            for job in self._waiting_or_running:
                if job.limit is not None:
                    job.limit.cancel()

    def refuse_rest(self) -> None:
        """No thread takes anything any more: answer what is left, and what will come."""
        self.is_over = True
        refuse(rest_of(self._queue), self._threads.closed_error)

    def _serve(self) -> None:
        queue, batch, storage = self._queue, self._batch, self._threads.storage
        done: list[Job] = []
        flush_at = 0.0
        # Who has waited since then, or longer, is refused: nothing was to be had for as long as one may wait.
        hopeless = -inf
        while True:
            try:
                job = queue.get_nowait()
            except Empty:
                deliver(done)
                done = []
                job = queue.get()
            if job is None:
                deliver(done)
                return
            future = job.future
            if future is None or not future.done():
                if not done:
                    flush_at = monotonic() + _PATIENCE
                # (Not the end of a transaction, for which nobody may wait: it gives back what others wait for.)
                if job.since <= hopeless and future is not None and (job.session is None or job.is_alone):
                    job.error = StorageBusyError("the store was busy for longer than busy_timeout")
                else:
                    run(job, storage)
                    if job.error is not None and isinstance(job.error, StorageBusyError):
                        hopeless = monotonic() - self._threads.busy_timeout
                        flush_at = 0.0  # the next one may wait as long
                done.append(job)
                if len(done) >= batch or not flush_at or (not len(done) & 15 and monotonic() >= flush_at):
                    deliver(done)
                    done = []
            if self._most > 1:
                with self._lock:
                    self._waiting_or_running.discard(job)
            # Whoever waits owns the call now: a transaction or a scan must be able to go while this thread sleeps.
            del job


class Writer:
    """A thread that writes, mostly the only one. A transaction that writes owns it while it is open."""

    def __init__(
        self, threads: Threads, name: str, at_end: Callable[[], None], next_one: Callable[[Writer], Job | None]
    ) -> None:
        self._threads = threads
        self._busy_timeout = threads.busy_timeout
        self._name = name
        self._at_end = at_end
        self._next_one = next_one
        self._queue: SimpleQueue[Sequence[Job] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.is_over: bool = False
        # What tasks want to have written goes through here.
        self.gathering: Gathering = Gathering(threads.storage, self)
        # So many calls the thread was given, which is counted under the lock, and so many it has answered.
        self._given = 0
        self._answered = 0
        # Only for the thread itself.
        self._open: Session | None = None
        self._own: deque[Job] = deque()
        self._waiting: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Have a call run. From any thread, a destructor's included."""
        with self.gathering.lock:
            self.submit_all([*self.gathering.take(), job])

    def submit_all(self, jobs: Sequence[Job]) -> None:
        """Have calls run, in this order."""
        with self.gathering.lock:
            if self._thread is None and not self.is_over:
                self._start()
            self._given += len(jobs)
            self._queue.put(jobs)
        if self.is_over:
            self.refuse_rest()

    def has_more(self) -> bool:
        """Whether it was given something that it has not looked at."""
        return not self._queue.empty()

    def is_idle(self) -> bool:
        """Whether all that the thread was given is answered."""
        return self._answered == self._given

    def _answer(self, jobs: Sequence[Job]) -> None:
        self._answered += len(jobs)  # first: whoever hears of it may write again at once
        deliver(jobs)

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"mycelia-{self._name}", daemon=True)
        thread.start()
        self._thread = thread

    def is_started(self) -> bool:
        """Whether there is something to stop."""
        return self._thread is not None or bool(self.gathering)

    def stop(self) -> None:
        """Let the thread finish what was taken in, and end."""
        with self.gathering.lock:
            self.submit_all(self.gathering.take())
            self._queue.put(None)

    def end(self) -> None:
        """As `stop`, where it was started; where not, it takes nothing any more."""
        with self.gathering.lock:
            if self._thread is None:
                self.is_over = True
            else:
                self._queue.put(None)

    def join(self, seconds: float | None = None) -> None:
        """Wait for the end of the thread, so long at most."""
        if self._thread is not None:
            self._thread.join(seconds)

    def refuse_rest(self) -> None:
        """The thread takes nothing any more: answer what is left, and what will come."""
        self.is_over = True
        refuse([job for jobs in rest_of(self._queue) for job in jobs], self._threads.closed_error)

    def _serve(self) -> None:
        is_stopping = False
        while True:
            while not self._queue.empty():
                is_stopping |= self._sort(self._queue.get())
            if self._own:
                self._run_own(self._own.popleft())
            elif is_stopping and self._open is not None:
                self._end_open()
            elif self._open is None and self._waiting:
                self._run_waiting()
            elif is_stopping:
                break
            elif not self._seek():
                try:
                    is_stopping |= self._sort(self._queue.get(timeout=self._patience()))
                except Empty:
                    self._look_at_the_clock()
        self._at_end()

    def _sort(self, jobs: Sequence[Job] | None) -> bool:
        """Put calls where they belong; True where it is said to stop."""
        if jobs is None:
            return True
        for job in jobs:
            # The call that begins a transaction waits its turn, those inside one do not.
            (self._waiting if job.session is None or job.is_alone else self._own).append(job)
        return False

    # ---- a transaction

    def _run_own(self, job: Job) -> None:
        if not is_unwanted(job):
            run(job, self._threads.storage)
            self._note(job.session)
            self._seek()  # before the answer: whoever gets it may begin the next one at once
        self._answer([job])

    def _seek(self) -> bool:
        """Take up what waits for any thread, where nothing waits for this one."""
        job = self._next_one(self) if self._open is None and not self._waiting else None
        if job is not None:
            self._waiting.append(job)
        return job is not None

    def _note(self, session: Session | None) -> None:
        """After every call that may have begun or ended a transaction: who owns the writer now."""
        if self._open is None:
            self._open = session if session is not None and session.is_open() else None
        elif not self._open.is_open():
            self._open = None

    def _end_open(self) -> None:
        session, self._open = self._open, None
        if session is not None:
            session.end()

    def _patience(self) -> float | None:
        """How long the thread may sleep."""
        if self._open is None:
            return None
        times = [] if self._open.ends_at is None else [self._open.ends_at + _AFTER_DEADLINE]
        times += [job.since + self._busy_timeout for job in self._waiting if job.session is None][:1]
        return max(0.0, min(times) - monotonic()) if times else None

    def _look_at_the_clock(self) -> None:
        """End a transaction whose time is over, and refuse those that have waited too long for it."""
        now = monotonic()
        if self._open is not None and self._open.ends_at is not None and now >= self._open.ends_at:
            self._open.transaction._expire()
            self._note(None)
        if self._open is not None:
            self._refuse_waiting(now - self._busy_timeout)

    def _refuse_waiting(self, since: float) -> None:
        """Refuse what waits since then, or longer. (A call that begins a transaction has a time of its own.)"""
        refused = [job for job in self._waiting if job.session is None and job.since <= since]
        if refused:
            self._waiting = deque(job for job in self._waiting if job.session is not None or job.since > since)
            for job in refused:
                waited = f"this call waited for it longer than busy_timeout ({self._busy_timeout:g} s)"
                job.error = StorageBusyError(f"something else is writing, and {waited}")
            self._answer(refused)

    # ---- writes

    def _run_waiting(self) -> None:
        """One call that has to be alone, or all that wait and may share a commit."""
        waiting, alone, together = self._waiting, None, list[Write]()
        while waiting and len(together) < _WRITES_TOGETHER:
            job = waiting.popleft()
            future = job.future
            if future is not None and future.done():
                self._answer([job])  # nobody waits for it any more
            elif type(job) is Write:
                together.append(job)
            elif together:
                waiting.appendleft(job)
                break
            else:
                alone = job
                break
        jobs: Sequence[Job] = together if alone is None else [alone]
        if alone is not None:
            if alone.session is not None:
                alone.session.writer = self
            run(alone, self._threads.storage)
            self._note(alone.session)
        elif together:
            again = share(self._threads.storage, together, self._busy_timeout)
            if again:
                jobs = [job for job in together if job not in again]
                self._waiting.extendleft(reversed(again))
        was_busy = alone is not None and isinstance(alone.error, StorageBusyError)
        self._answer(jobs)  # after which a call forgets its error
        if was_busy:
            # Perhaps it waited for as long as one may, and then so did those that came before it was begun.
            self._refuse_waiting(monotonic() - self._busy_timeout)


class Threads:
    """All threads of one `AsyncStorage`.

    Short reads have a thread of their own, so that they share their way and wait for nothing long. So have calls in
    transactions that read and in scans, which hold a connection already, and must not wait behind somebody who waits
    for one; nor transactions behind scans, which without WAL may wait for a writer, who waits for a transaction.
    """

    def __init__(self, storage: Storage, *, busy_timeout: float, max_readers: int) -> None:
        self.storage: Storage = storage
        self.busy_timeout: float = busy_timeout
        self._max_readers = max_readers
        self.is_closed: bool = False
        self.is_over: bool = False
        self._closing: list[Job] = []
        self._lock = threading.Lock()
        self._make()
        _all.add(self)

    def closed_error(self) -> StorageClosedError:
        """For whoever calls after the end."""
        return self.storage._home.closed_error()

    def _make(self) -> None:
        self.writer: Writer = Writer(self, "writer", self.finish, lambda _: None)
        # For transactions, where they do not keep each other waiting. One connection is left for everybody else.
        self._most_apart = 0 if self.storage._engine.has_write_lock else max(1, self.storage._options.pool_max - 1)
        self._apart: list[Writer] = []
        self._free: list[Writer] = []  # those of them that have none
        self._unbegun: deque[Job] = deque()
        self.short: Readers = Readers(self, "reader", 1, batch=_RESULTS_TOGETHER)
        self.queries: Readers = Readers(self, "query", max(1, min(_MOST_QUERIES, self._max_readers - 1)))
        # Loads stand in the line of the store with each batch, as everybody does, and keep no other task waiting.
        self.loads: Readers = Readers(self, "loader", 1)
        # Backups and restores take long, and are made one after the other.
        self.copies: Readers = Readers(self, "copier", 1)
        self._holders = [Readers(self, f"holder-{number + 1}", 1) for number in range(_HOLDERS)]
        self._scanners = [Readers(self, f"scanner-{number + 1}", 1) for number in range(_HOLDERS)]
        self._next_holder, self._next_scanner = cycle(self._holders), cycle(self._scanners)

    def holder(self) -> Readers:
        """A thread for calls of one transaction that reads, which are run in the order in which they come."""
        return next(self._next_holder)

    def scanner(self) -> Readers:
        """The same for a scan."""
        return next(self._next_scanner)

    def begin(self, job: Job) -> None:
        """Have a transaction that writes begun, by a thread that its session knows from then on."""
        if not self._most_apart:
            self.writer.submit(job)
            return
        with self._lock:
            if self.is_closed:
                raise self.closed_error()
            if not self._free and len(self._apart) < self._most_apart:
                self._apart.append(Writer(self, f"writer-{len(self._apart) + 1}", lambda: None, self._next_to_begin))
                self._free.append(self._apart[-1])
            if self._free:
                self._free.pop().submit(job)
            else:
                self._unbegun.append(job)

    def _next_to_begin(self, writer: Writer) -> Job | None:
        with self._lock:
            with contextlib.suppress(IndexError):
                return self._unbegun.popleft()
            if writer not in self._free and not writer.has_more():
                self._free.append(writer)
            return None

    def close(self, job: Job) -> None:
        """Take nothing more, finish what was taken in, end the threads, and run this call last."""
        with self._lock:
            is_first = not self.is_closed
            self.is_closed = True
            is_over = self.is_over
            if not is_over:
                self._closing.append(job)
        if is_over:
            _start_thread(job)
        elif is_first:
            self.writer.stop()

    def finish(self) -> None:
        """On the writer's thread, as the last thing that it does."""
        self._end_apart()
        for writer in self._apart:
            writer.join()
            writer.refuse_rest()
        for readers in self._all_readers():
            readers.stop()
        for readers in self._all_readers():
            readers.join()
        closing: list[Job] = []
        while True:
            with self._lock:
                if len(closing) == len(self._closing):
                    self.is_over = True
                    break
                closing.append(self._closing[len(closing)])
            run(closing[-1], self.storage)
        self.writer.refuse_rest()
        for readers in self._all_readers():
            readers.refuse_rest()
        deliver(closing)

    def _end_apart(self) -> None:
        for writer in self._apart:
            writer.end()
        # One by one and without the lock: a thread may become free meanwhile, and a destructor may come at any point.
        unbegun: list[Job] = []
        with contextlib.suppress(IndexError):
            while True:
                unbegun.append(self._unbegun.popleft())
        refuse(unbegun, self.closed_error)

    def _all_readers(self) -> list[Readers]:
        return [self.short, self.queries, self.loads, self.copies, *self._holders, *self._scanners]

    def let_go(self) -> None:
        """End the threads once they are done; nobody waits for that. From any thread, a destructor's included."""
        self.is_closed = True
        if self.writer.is_started():
            self.writer.stop()
        else:
            self._end_apart()
            for readers in self._all_readers():
                readers.stop()

    def stop_at_exit(self, deadline: float) -> None:
        """Finish what was taken in, but do not wait longer than until then."""
        self.queries.cancel()
        self.let_go()
        for writer in (self.writer, *self._apart):
            writer.join(max(0.0, deadline - monotonic()))

    def begin_anew(self) -> None:
        """In the child of a fork: the threads are not here, and what they had to do is the parent's."""
        self._lock = threading.Lock()
        self._closing = []
        self.is_over = self.is_closed
        # For transactions that were open: whoever has one here is told that it has ended.
        for writer in (self.writer, *self._apart):
            writer.is_over = True
            writer.gathering.forget()
        for readers in self._all_readers():
            readers.is_over = True
        self._make()


async def run_in_thread(function: Callable[[], R], undo: Callable[[R], object]) -> R:
    """Run a function in a thread of its own. When the waiting task is cancelled, what comes of it is undone."""
    future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
    _start_thread(Task(lambda _: function(), future))
    try:
        await until_done(future, is_patient=False)
    except asyncio.CancelledError:
        future.add_done_callback(lambda done: _undo(done, undo))
        raise
    return future.result()


def _undo(done: asyncio.Future[R], undo: Callable[[R], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        result = done.result()
        _start_thread(Task(lambda _: undo(result), None))


def _start_thread(job: Job) -> None:
    def work() -> None:
        run(job, None)
        deliver([job])

    threading.Thread(target=work, name="mycelia-open", daemon=True).start()


_all: weakref.WeakSet[Threads] = weakref.WeakSet()


def _stop_all() -> None:
    deadline = monotonic() + _EXIT_PATIENCE
    for threads in list(_all):
        threads.stop_at_exit(deadline)


def _begin_all_anew() -> None:
    for threads in list(_all):
        threads.begin_anew()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_all_anew)
