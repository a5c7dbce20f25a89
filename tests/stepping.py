"""Threads that a test steps: each does one call at a time, and the test knows when one stands in line for the lock.

Called by the tests of what many do at once. A test says who does what, in which order; the scheduler has no say in it.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self, TypeVar

from mycelia_storage.engines.memory import MemoryEngine
from mycelia_storage.engines.sqlite.engine import SQLiteEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    import pytest

    from mycelia_storage import Storage, Transaction
    from mycelia_storage.engines.line import Line

R = TypeVar("R")

# Only for what is broken: nothing that is right comes near it.
PATIENCE_SECONDS = 10.0


class Worker:
    """A thread that does what it is given, one call after the other."""

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="stepped", daemon=True)
        self._thread.start()

    def start(self, call: Callable[[], R]) -> Future[R]:
        """Let it begin; the future is done when the call is."""
        future: Future[R] = Future()
        self._work.put((future, call))
        return future

    def do(self, call: Callable[[], R]) -> R:
        """Let it do a call to the end."""
        return result(self.start(call))

    def let_end(self) -> None:
        """The thread ends after what it has been given."""
        self._work.put(None)

    def join(self, deadline: float) -> None:
        """Wait for its end, but not for one that hangs."""
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while True:
            work = self._work.get()
            if work is None:
                return
            future, call = work
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                future.set_exception(error)
            del work, future, call


class Workers:
    """A context manager for as many workers as a test asks for."""

    def __init__(self) -> None:
        self._all: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        for worker in self._all:
            worker.let_end()
        for worker in self._all:
            worker.join(deadline)

    def one(self) -> Worker:
        worker = Worker()
        self._all.append(worker)
        return worker

    def some(self, count: int) -> list[Worker]:
        return [self.one() for _ in range(count)]


class Held:
    """A context manager: a thread of its own is inside a write transaction of the store, so that others wait in line.

    Its transaction is rolled back at the end, or by `let_go`.
    """

    def __init__(self, store: Storage) -> None:
        self.store = store
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._worker = self._stack.enter_context(Workers()).one()
        self.transaction: Transaction = self._worker.do(lambda: self.store.transaction().__enter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.let_go()
        finally:
            self._stack.close()

    def let_go(self) -> None:
        if self.transaction._is_open():
            self._worker.do(self.transaction.rollback)


class Gate:
    """At a function or a method: whoever calls it `comes` up to it, and goes on as soon as it `may_pass`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> None:
        self.comes: threading.Event = threading.Event()
        self.may_pass: threading.Event = threading.Event()
        function: Any = getattr(module, name)

        def stopped(*arguments: Any) -> Any:
            self.comes.set()
            assert self.may_pass.wait(PATIENCE_SECONDS)
            return function(*arguments)

        monkeypatch.setattr(module, name, stopped)


def result(future: Future[R]) -> R:
    """What a call gave; raises what it raised, and never waits for ever."""
    return future.result(PATIENCE_SECONDS)


def error_of(future: Future[Any]) -> BaseException | None:
    """What a call raised, None where it raised nothing."""
    return future.exception(PATIENCE_SECONDS)


def kinds(futures: Sequence[Future[Any]]) -> list[type[BaseException] | None]:
    """The classes of what calls raised."""
    errors = map(error_of, futures)
    return [None if error is None else type(error) for error in errors]


def line_of(store: Storage) -> Line:
    engine = store._engine
    assert isinstance(engine, SQLiteEngine | MemoryEngine)
    return engine.writer.line if isinstance(engine, SQLiteEngine) else engine._line


def waiting(store: Storage) -> int:
    """How many stand in line for the write lock."""
    return len(line_of(store)._waiting)


def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait for something that is bound to come, however long the machine takes for it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.0005)


def line_up(store: Storage, workers: Workers, calls: Sequence[Callable[[], Any]]) -> list[Future[Any]]:
    """Let each call wait in line, in this order, each in a thread of its own. Somebody else has the lock."""
    futures: list[Future[Any]] = []
    for call in calls:
        before = waiting(store)
        futures.append(workers.one().start(call))
        until(lambda before=before: waiting(store) == before + 1, "a place in line")  # type: ignore[misc]
    return futures


def at_once(calls: Sequence[Callable[[], R]]) -> list[R]:
    """Run each call in a thread of its own, all let go at the same moment; gives their results."""
    barrier = threading.Barrier(len(calls))

    def after_all_are_there(call: Callable[[], R]) -> R:
        barrier.wait(PATIENCE_SECONDS)
        return call()

    with Workers() as workers:
        futures = [workers.one().start(lambda call=call: after_all_are_there(call)) for call in calls]  # type: ignore[misc]
        return [future.result(60) for future in futures]
