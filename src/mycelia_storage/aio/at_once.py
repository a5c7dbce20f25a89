"""`AtOnce`: short reads on the event loop's own thread, where nothing has to be waited for.

Called by the awaited verbs. The way to a thread and back costs many times what a point read costs. So such a read is
tried here first, within these bounds, and goes to its thread where they do not hold:

- It waits for nobody: where every connection is lent, or the file is locked, it raises instead (`hurrying`).
- It is stopped after some milliseconds, and the reads after it go to their thread for a while: a disk that is slow
  holds up the loop once a second and no more.
- Whoever reads again and again lets other tasks come in between, as if it had waited.
"""

from __future__ import annotations

import asyncio
import enum
import math
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mycelia_storage.engines.limits import hurrying
from mycelia_storage.errors import StorageBusyError, StorageTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mycelia_storage.storage import Storage

R = TypeVar("R")

# A read that takes longer is stopped where that can be, and is a reason to leave the next ones to the thread.
_LONGEST: Final = 0.003
_BY_THREAD_FOR: Final = 1.0
# After so many reads, or so long a time of the loop's turn, a task lets the others go on.
_READS_IN_A_ROW: Final = 32
_TURN: Final = 0.002
# The time of the turn is looked at after so many reads, and after each that took longer than this.
_READS_BETWEEN_LOOKS: Final = 8
_QUICK: Final = 0.0001


class Later(enum.Enum):
    """Instead of a result: the read has to go to its thread."""

    LATER = enum.auto()


LATER: Final = Later.LATER


class AtOnce:
    """The bounds of one `AsyncStorage`, for all event loops that use it.

    After each read: `must_yield` says that the task has to let others come in between before it goes on.
    """

    __slots__ = ("_by_thread_until", "_reads", "_turns", "must_yield", "storage")

    def __init__(self, storage: Storage) -> None:
        self.storage: Storage = storage
        self.must_yield: bool = False
        self._by_thread_until = 0.0 if storage._engine.reads_at_once else math.inf
        self._reads = 0
        # When the present turn of a loop had its first read. An entry lives as long as the turn.
        self._turns: dict[asyncio.AbstractEventLoop, float] = {}

    def read(self, verb: Callable[..., R], verbs: Any, args: tuple[Any, ...], options: dict[str, Any]) -> R | Later:
        """What the verb gives; LATER where it has to be run by a thread."""
        began = monotonic()
        if began < self._by_thread_until:
            return LATER
        hurrying.hurry_until = began + _LONGEST
        try:
            found = verb(verbs, *args, **options) if options else verb(verbs, *args)
        except StorageBusyError:
            return LATER
        except StorageTimeoutError:
            self._by_thread_until = began + _BY_THREAD_FOR
            return LATER
        finally:
            hurrying.hurry_until = 0.0
        now = monotonic()
        reads = self._reads = self._reads + 1
        self.must_yield = False
        if reads % _READS_BETWEEN_LOOKS == 0 or now - began > _QUICK:
            self._look_at_turn(began, now)
        return found

    def _look_at_turn(self, began: float, now: float) -> None:
        if now - began > _LONGEST:
            self._by_thread_until = now + _BY_THREAD_FOR
        loop = asyncio.get_running_loop()
        turn = self._turns.get(loop)
        if turn is None:
            turn = self._turns[loop] = began
            loop.call_soon(self._turns.pop, loop, None)
        self.must_yield = self._reads >= _READS_IN_A_ROW or now - turn > _TURN
        if self.must_yield:
            self._reads = 0
