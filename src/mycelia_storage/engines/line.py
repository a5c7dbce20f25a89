"""`Line`: the lock of a store's one writer, first come, first served, in which several writes may be served as one.

Called by the engines that have one writer.

Whoever waits stands in line with a ticket. A ticket with members is a write that may share a commit: the owner of the
lock takes such tickets from the head of the line and does their work with its own, so that its own turn serves them
all (the leader-and-followers form of group commit, as in PostgreSQL's and MySQL's binary logs). A ticket without
members wants the lock for itself.
"""

from __future__ import annotations

import math
import time
from collections import deque
from threading import Lock, RLock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mycelia_storage.engines.engine import Member

# Nobody sleeps longer than this without a look whether the lock has become free: an exception from a signal handler
# may have kept its last owner from waking the next.
_LONGEST_SLEEP: Final = 0.5


class Ticket:
    """A place in line. `is_owner`: its turn has come.

    `is_gone`: nobody waits with it any more, because an exception came from a signal handler.
    """

    __slots__ = ("bell", "is_gone", "is_owner", "members")

    def __init__(self, members: Sequence[Member] = ()) -> None:
        self.members: Sequence[Member] = members
        self.is_owner: bool = False
        self.is_gone: bool = False
        self.bell: Lock = Lock()
        self.bell.acquire()

    @property
    def is_done(self) -> bool:
        """Whether all of its work is done."""
        return bool(self.members) and all(member.is_done for member in self.members)

    @property
    def is_durable(self) -> bool:
        return any(member.durable for member in self.members)


class Line:
    """The lock and those who wait for it."""

    def __init__(self) -> None:
        self._owned = Lock()
        # Reentrant: the garbage collector may end a forgotten transaction, and so give the lock back, at any point.
        self._changing = RLock()
        self._waiting: deque[Ticket] = deque()

    def try_acquire(self) -> bool:
        """Take the lock if it is free and nobody waits for it."""
        return not self._waiting and self._owned.acquire(blocking=False)

    def acquire(self, timeout: float) -> bool:
        """Take the lock, waiting so many seconds at most. False: it was not to be had."""
        return self.try_acquire() or self.wait(Ticket(), timeout)

    def wait(self, ticket: Ticket, timeout: float) -> bool:
        """Stand in line. True: its turn has come, or its work was done by somebody else; False: neither, in time."""
        deadline = time.monotonic() + timeout
        try:
            with self._changing:
                self._waiting.append(ticket)
            self._call_next()
            while not ticket.bell.acquire(timeout=max(0.0, min(deadline - time.monotonic(), _LONGEST_SLEEP))):
                if ticket.is_owner or ticket.is_done:  # and whoever wanted to ring was interrupted
                    break
                self._call_next()
                if time.monotonic() < deadline:
                    continue
                if self._leave(ticket):
                    return False
                # Just now its turn came, or it was taken: that comes to its end, however long it takes.
                deadline = math.inf
        except BaseException:
            if not self._leave(ticket, for_good=True) and ticket.is_owner:
                self.release()
            raise
        return True

    def take(self, into: list[Ticket], most: int, *, durable: bool) -> None:
        """For the owner: take the tickets with members at the head of the line, with `most` members in all.

        Without `durable` up to the first one that has to be durable.
        """
        with self._changing:
            while self._waiting and self._waiting[0].members and (durable or not self._waiting[0].is_durable):
                most -= len(self._waiting[0].members)
                if most < 0:
                    break
                into.append(self._waiting[0])
                self._waiting.popleft()

    def put_back(self, tickets: Sequence[Ticket]) -> None:
        """For the owner: what was taken stands at the head of the line again."""
        with self._changing:
            there = set(map(id, self._waiting))
            self._waiting.extendleft(
                ticket for ticket in reversed(tickets) if not ticket.is_gone and id(ticket) not in there
            )

    def wants_durable(self, most: int) -> bool:
        """For the owner: whether one of the tickets that `take` would give has to be durable."""
        with self._changing:
            for ticket in self._waiting:
                most -= len(ticket.members)
                if not ticket.members or most < 0:
                    return False
                if ticket.is_durable:
                    return True
        return False

    def is_empty(self) -> bool:
        """Whether nobody waits."""
        return not self._waiting

    def release(self) -> None:
        """Give the lock back; the head of the line gets it."""
        self._owned.release()
        if self._waiting:
            self._call_next()

    def _call_next(self) -> None:
        """Give the lock, where it is free, to the head of the line."""
        with self._changing:
            if self._waiting and self._owned.acquire(blocking=False):
                ticket = self._waiting.popleft()
                ticket.is_owner = True
                ticket.bell.release()

    def _leave(self, ticket: Ticket, *, for_good: bool = False) -> bool:
        with self._changing:
            try:
                self._waiting.remove(ticket)
            except ValueError:
                ticket.is_gone = for_good
                return False
            return True


def served(tickets: Sequence[Ticket]) -> None:
    """Wake those whose work is done."""
    for ticket in tickets:
        ticket.bell.release()
