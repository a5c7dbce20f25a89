"""Transactions that live by an id: begun by one call, used and ended by others, rolled back when they were abandoned.

Called by `StorageFacet`.

An id is forgotten before its transaction ends, and so no call can come between. Whoever ends a transaction holds its
lock, and a call that is under way holds it too: a call that finds it taken is refused, an expiry waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Any, Final, Literal

from mycelia_storage.arguments import shown
from mycelia_storage.errors import (
    InvalidValueError,
    StorageBusyError,
    StorageClosedError,
    StorageError,
    TransactionError,
)
from mycelia_storage.transaction import ISOLATIONS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from mycelia_storage.aio import AsyncStorage, AsyncTransaction

MAX_OPEN: Final = 1000
_ID_BYTES: Final = 16
_REMEMBERED: Final = 1000
# What the kernel's contract calls by other names than this library.
_OTHER_ISOLATIONS: Final = {
    "read-uncommitted": "read_committed",
    "read-committed": "read_committed",
    "repeatable-read": "repeatable_read",
}


class _Held:
    """An open transaction: until when, who rolls it back then, and the lock of whoever uses it."""

    __slots__ = ("deadline", "lock", "loop", "timer", "transaction")

    def __init__(
        self,
        transaction: AsyncTransaction,
        deadline: float,
        loop: asyncio.AbstractEventLoop,
        timer: asyncio.TimerHandle,
    ) -> None:
        self.transaction = transaction
        self.deadline = deadline
        self.loop = loop
        self.timer = timer
        self.lock = asyncio.Lock()


class OpenTransactions:
    """The open transactions of one facet by their ids, at most `MAX_OPEN`, each for `timeout` seconds at most."""

    def __init__(self, storage: AsyncStorage, timeout: float) -> None:
        self._storage = storage
        self._timeout = timeout
        self._open: dict[str, _Held] = {}
        self._beginning = 0
        self._ended: dict[str, str] = {}  # how the last ones ended
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    async def begin(self, isolation: object = None) -> str:
        """Open a transaction that has the write lock from here on; gives its id, which nobody can guess.

        Raises StorageBusyError where the lock is taken for longer than `busy_timeout`, or too many are open.
        """
        least = _read_isolation(isolation)
        self._expire_overdue()
        if len(self._open) + self._beginning >= MAX_OPEN:
            raise StorageBusyError(f"{MAX_OPEN:,} transactions are open or wait to be: commit or roll back some")
        self._beginning += 1
        try:
            transaction = await self._storage._begin(owner="nobody", isolation=least, max_duration=self._timeout)
        finally:
            self._beginning -= 1
        if self._is_closed:
            await asyncio.shield(self._start(_end(transaction, "rollback")))
            raise StorageClosedError(f"{self._storage._home.where}: the facet was closed")
        # From here to the end nothing is awaited, so that a cancelled caller leaves nothing without an id.
        identifier = secrets.token_hex(_ID_BYTES)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._timeout, self._expire, identifier)
        self._open[identifier] = _Held(transaction, time.monotonic() + self._timeout, loop, timer)
        return identifier

    @contextlib.asynccontextmanager
    async def using(self, identifier: object) -> AsyncIterator[AsyncTransaction]:
        """The transaction of an id, for one call. Raises TransactionError where there is none, or it is in use."""
        held = self._find(identifier)[1]
        async with held.lock:
            yield held.transaction

    async def end(self, identifier: object, how: Literal["commit", "rollback"]) -> None:
        """Commit or roll back. It happens even where the caller is cancelled meanwhile; either way the id is finished.

        Raises TransactionError as `using` does, and what the commit raises.
        """
        known, held = self._find(identifier)
        self._forget(known, "was committed" if how == "commit" else "was rolled back")
        ending = self._start(self._finish(known, held, how))
        error = await asyncio.shield(ending)
        if error is not None:
            raise error

    async def close(self) -> None:
        """Roll back what is open, after the calls that are under way."""
        self._is_closed = True
        for identifier in tuple(self._open):
            self._expire(identifier, "was rolled back when the facet was closed")
        loop = asyncio.get_running_loop()
        while tasks := [task for task in self._tasks if task.get_loop() is loop]:
            await asyncio.wait(tasks)

    # ---- ends

    def _find(self, identifier: object) -> tuple[str, _Held]:
        if not isinstance(identifier, str):
            message = f"{type(identifier).__name__} is no id of a transaction: begin_transaction gives a str"
            raise TransactionError(message)
        held = self._open.get(identifier)
        if held is not None and held.deadline <= time.monotonic():
            self._expire_overdue()  # its timer is late
            raise TransactionError(f"the transaction {self._too_long()}")
        if held is None:
            how = self._ended.get(identifier)
            raise TransactionError("no transaction has this id" if how is None else f"the transaction {how}")
        if held.lock.locked():
            raise TransactionError("another call is using this transaction just now: one call at a time")
        return identifier, held

    def _forget(self, identifier: str, how: str) -> _Held | None:
        held = self._open.pop(identifier, None)
        if held is None:
            return None
        if held.loop is _running_loop():
            held.timer.cancel()
        self._ended[identifier] = how
        if len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]
        return held

    def _expire(self, identifier: str, how: str | None = None) -> None:
        held = self._forget(identifier, how or self._too_long())
        if held is not None:
            self._start(self._finish(identifier, held, "rollback"))

    def _expire_overdue(self) -> None:
        """End those whose timer is late, or gone with its event loop."""
        now, running = time.monotonic(), asyncio.get_running_loop()
        for identifier, held in list(self._open.items()):
            # A lock is for one event loop: what belongs to another one that is alive, that one ends.
            if held.deadline <= now and (held.loop is running or held.loop.is_closed()):
                self._expire(identifier)

    def _too_long(self) -> str:
        return f"was rolled back after {self._timeout:g} seconds (transaction_timeout)"

    async def _finish(self, identifier: str, held: _Held, how: Literal["commit", "rollback"]) -> StorageError | None:
        # A task of its own: an error is handed back and not raised, since nobody may be there any more to take it.
        async with held.lock:
            error = await _end(held.transaction, how)
        if error is not None and how == "commit" and identifier in self._ended:
            is_late = held.deadline <= time.monotonic()
            self._ended[identifier] = self._too_long() if is_late else "has ended, since it could not be committed"
        return error

    def _start(self, work: Coroutine[Any, Any, StorageError | None]) -> asyncio.Task[StorageError | None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _end(transaction: AsyncTransaction, how: Literal["commit", "rollback"]) -> StorageError | None:
    try:
        if how == "commit":
            await transaction._commit()
        else:
            await transaction._rollback()
    except StorageError as error:
        return error
    return None


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _read_isolation(isolation: object) -> Any:
    if isolation is None:
        return None
    if isinstance(isolation, str):
        found = _OTHER_ISOLATIONS.get(isolation, isolation)
        if found in ISOLATIONS:
            return found
    known = ", ".join(map(repr, ISOLATIONS))
    raise InvalidValueError(f"isolation: {shown(isolation)} is none of {known}")
