"""`Line`: the lock of a store's one writer, and the line before it, in which several writes may be served as one.

Called by the engines that have one writer.

Whoever waits stands in line with a ticket. A ticket with members is a write that may share a commit: the owner of the
lock takes such tickets from the head of the line and does their work with its own, so that its own turn serves them
all (the leader-and-followers form of group commit, as in PostgreSQL's and MySQL's binary logs). A ticket without
members wants the lock for itself.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from mycelia_storage.engines.turns import Turns, Waiter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mycelia_storage.engines.engine import Member


class Ticket(Waiter):
    """A place in line. `is_owner`: its turn has come."""

    __slots__ = ("is_owner", "members")

    def __init__(self, members: Sequence[Member] = ()) -> None:
        super().__init__()
        self.members: Sequence[Member] = members
        self.is_owner: bool = False

    def is_served(self) -> bool:
        return self.is_owner or self.is_done

    @property
    def is_done(self) -> bool:
        """Whether all of its work is done."""
        return bool(self.members) and all(member.is_done for member in self.members)

    @property
    def is_durable(self) -> bool:
        return any(member.durable for member in self.members)


class Line(Turns[Ticket]):
    """The lock and those who wait for it.

    `passing`: so long at most, in seconds, the write of somebody else may pass one that has been called; never a
    ticket without members.
    """

    def __init__(self, passing: float = 0.0) -> None:
        super().__init__(passing)
        self._owned = Lock()

    def try_acquire(self) -> bool:
        """Take the lock if it is free and nobody waits for it."""
        return not self._waiting and self._owned.acquire(blocking=False)

    def try_to_pass(self) -> bool:
        """Take the lock if it is free and whoever waits for it may be passed."""
        return self._may_pass() and self._owned.acquire(blocking=False)

    def acquire(self, timeout: float) -> bool:
        """Take the lock, waiting so many seconds at most. False: it was not to be had."""
        return self.try_acquire() or self.wait(Ticket(), timeout)

    def wait(self, ticket: Ticket, timeout: float) -> bool:
        """Stand in line. True: its turn has come, or its work was done by somebody else; False: neither, in time."""
        return self._wait(ticket, timeout, passable=bool(ticket.members))

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
            for ticket in tickets:
                ticket.may_be_passed_until = 0.0  # it has had its turn; and a transaction may stand behind it by now
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

    def served(self, tickets: Sequence[Ticket]) -> None:
        """Wake those whose work is done."""
        with self._changing:
            for ticket in tickets:
                ticket.ring()

    def _is_free(self) -> bool:
        return not self._owned.locked()

    def _serve(self, waiter: Ticket) -> bool:
        if self._owned.acquire(blocking=False):
            waiter.is_owner = True
        return waiter.is_owner  # which a destructor or a signal handler may have made it meanwhile

    def _take_from(self, waiter: Ticket) -> None:
        if waiter.is_owner:
            self._owned.release()
