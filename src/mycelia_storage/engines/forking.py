"""What happens to open stores when a process forks.

Called by Python around `os.fork`, for the engines that registered themselves.

A child that inherits an open SQLite connection, and opens the file itself, loses commits of its parent: the parent's
lock table came along, and the operating system's locks did not (measured; see also sqlite.org/howtocorrupt.html, 2.6).
So every connection is closed before the fork, and both sides open their own when they next need one. Where that is not
possible, because a transaction or a scan is open, the parent goes on and the child may not use the file.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

# How long a fork waits for files that other threads are opening just now.
_PATIENCE: Final = 5.0


class Forking(Protocol):
    """Something that has to do with forks."""

    def before_fork(self) -> bool:
        """Close what must not be inherited. False: it was not possible, and nothing is changed."""
        ...

    def after_fork(self, *, in_child: bool, is_ready: bool) -> None:
        """Go on; `is_ready` is what `before_fork` gave."""
        ...


class _Forks:
    """One fork at a time, and none while a connection is open that nobody knows of yet."""

    def __init__(self) -> None:
        self.registered: weakref.WeakSet[Forking] = weakref.WeakSet()
        self.changed = threading.Condition()  # on a reentrant lock
        self.openings: list[str] = []
        self.forking_thread = 0
        self.ready: list[tuple[Forking, bool]] = []
        # Files that this process must not open, because it inherited open connections to them.
        self.inherited: set[str] = set()

    @contextlib.contextmanager
    def opening(self, path: str) -> Iterator[None]:
        """Put off forks of other threads while a connection to a file is opened and made known."""
        with self.changed:
            while self.forking_thread not in (0, threading.get_ident()):
                self.changed.wait()
            self.openings.append(path)
        try:
            yield
        finally:
            with self.changed:
                if path in self.openings:
                    self.openings.remove(path)
                self.changed.notify_all()

    def before(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        with self.changed:
            while self.forking_thread not in (0, threading.get_ident()):
                self.changed.wait()
            self.forking_thread = threading.get_ident()
            self.ready = []
            while self.openings and time.monotonic() < deadline:
                self.changed.wait(deadline - time.monotonic())
        for member in all_of(self.registered):
            is_ready = False
            try:
                is_ready = member.before_fork()
            finally:
                self.ready.append((member, is_ready))

    def after_in_parent(self) -> None:
        ready, self.ready = self.ready, []
        with self.changed:
            self.forking_thread = 0
            self.changed.notify_all()
        for member, is_ready in ready:
            member.after_fork(in_child=False, is_ready=is_ready)

    def after_in_child(self) -> None:
        ready, self.ready = self.ready, []
        self.changed = threading.Condition()
        self.forking_thread = 0
        self.inherited.update(self.openings)
        self.openings = []
        known = {id(member) for member, _ in ready}
        # What an exception, from a signal handler say, kept from getting ready was open when the process forked.
        ready += [(member, False) for member in all_of(self.registered) if id(member) not in known]
        for member, is_ready in ready:
            member.after_fork(in_child=True, is_ready=is_ready)


def all_of(members: weakref.WeakSet[T]) -> list[T]:
    """The members of a set that other threads may add to meanwhile."""
    while True:
        with contextlib.suppress(RuntimeError):
            return list(members)


_forks: Final = _Forks()
register: Final = _forks.registered.add
opening: Final = _forks.opening
inherited: Final = _forks.inherited

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_forks.before, after_in_parent=_forks.after_in_parent, after_in_child=_forks.after_in_child
    )
