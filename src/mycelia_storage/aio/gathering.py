"""`Gathering`: the writes that tasks begin in one turn of an event loop, and whether a thread is needed for them.

Called by `Writer`. What comes in one turn of the loop goes on together: to the writer's thread, where it shares a
commit. The way there and back costs many times what a small write costs, though, where a commit does not wait for the
disk. So a few small writes are tried on the loop's own thread first, within these bounds:

- They wait for nobody, nor for the disk: where somebody else writes to the store, the file is locked, or the disk would
  have to confirm something, they go to the thread.
- What takes longer than some milliseconds is undone, and goes to the thread. So do the writes after it, for a while: a
  disk that is slow holds up the loop once a second and no more.
- Everything is written in the order in which it was called: as long as the thread has something to do, and when
  something else is given to it, what is gathered goes there too.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mycelia_storage.aio.jobs import Write, resolve, upkeep
from mycelia_storage.engines.limits import hurrying

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from mycelia_storage.aio.threads import Writer
    from mycelia_storage.storage import Storage

R = TypeVar("R")

# More than so many share the way to the thread, and would hold up the loop for longer than a way takes.
_FEW: Final = 16
# What takes longer is undone where that can be, and is a reason to leave the next ones to the thread.
_LONGEST: Final = 0.003
_BY_THREAD_FOR: Final = 1.0


class Gathering:
    """What is gathered for the writer's thread of one `AsyncStorage`, by the event loops that use it."""

    def __init__(self, storage: Storage, writer: Writer) -> None:
        self._storage = storage
        self._writer = writer
        self._by_thread_until = 0.0
        # For whoever takes calls and gives them to the thread: nobody comes in between. Reentrant: a destructor may
        # have something for the thread at any point.
        self.lock: AbstractContextManager[object] = threading.RLock()
        # Only a loop's own thread makes its entry, adds to it and removes it; so it needs no lock for adding.
        self._by_loop: dict[asyncio.AbstractEventLoop, _Turn] = {}

    def add(
        self, verb: Callable[..., R], arguments: Sequence[Any], options: Mapping[str, Any], *, is_small: bool
    ) -> asyncio.Future[R]:
        """Have a verb called together with all that come in this turn of the running loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        turn = self._by_loop.get(loop)
        if turn is None:
            turn = self._by_loop[loop] = _Turn()
            loop.call_soon(self._run, loop)
        durable = "durable" in options and options["durable"] is True
        turn.jobs.append(Write(verb, arguments, options, future, turn.since, durable, is_small and not durable))
        return future

    def __bool__(self) -> bool:
        return any(turn.jobs for turn in self._by_loop.copy().values())

    def take(self) -> list[Write]:
        """What is gathered, to go to the thread before anything else. From any thread, a destructor's included."""
        with self.lock:
            return [job for turn in self._by_loop.copy().values() for job in turn.take()]

    def forget(self) -> None:
        """In the child of a fork: what was gathered is the parent's, and so is whoever had the lock."""
        self.lock = threading.RLock()
        self._by_loop = {}

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        with self.lock:
            turn = self._by_loop.pop(loop, None)
            jobs = [] if turn is None else list(turn.jobs)  # nobody else can have it any more
        if 0 < len(jobs) <= _FEW and self._writer.is_idle() and monotonic() >= self._by_thread_until:
            jobs = self._run_at_once(jobs)
        if jobs:
            self._writer.submit_all(jobs)

    def _run_at_once(self, jobs: list[Write]) -> list[Write]:
        """Gives those that the thread has to run, be it one that does nothing."""
        jobs = [job for job in jobs if job.future is not None and not job.future.done()]
        if not all(job.is_small for job in jobs):
            return jobs
        began = monotonic()
        hurrying.hurry_until = began + _LONGEST
        try:
            is_upkeep_due = self._storage._share_at_once(jobs)
        except BaseException:
            # A signal handler raised: what is not done gets another turn.
            self._writer.submit_all([job for job in jobs if not job.is_done])
            raise
        finally:
            hurrying.hurry_until = 0.0
            now = monotonic()
            if now - began > _LONGEST:
                self._by_thread_until = now + _BY_THREAD_FOR
            resolve([job for job in jobs if job.is_done])
        left = [job for job in jobs if not job.is_done]
        return [*left, upkeep()] if is_upkeep_due else left


class _Turn:
    """What came in one turn of a loop, and when that began."""

    __slots__ = ("jobs", "since")

    def __init__(self) -> None:
        self.jobs: deque[Write] = deque()
        self.since: float = monotonic()

    def take(self) -> list[Write]:
        """All of it, once: the loop's thread may add something meanwhile, or another thread take it."""
        jobs: list[Write] = []
        with contextlib.suppress(IndexError):
            while True:
                jobs.append(self.jobs.popleft())
        return jobs
