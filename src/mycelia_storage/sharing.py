"""`Call`: one write among several that share a commit, and the verbs it is run with.

Called by `AsyncStorage`, whose writer thread hands over everything that waits, and by `Storage`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from mycelia_storage.engines.engine import Member
from mycelia_storage.errors import TransactionError
from mycelia_storage.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Callable

    from mycelia_storage.engines.engine import Primitives
    from mycelia_storage.transaction import Home

R = TypeVar("R")


class Call(Member):
    """What to run with the verbs of a shared transaction, and afterwards what came of it."""

    __slots__ = ("function", "verbs")

    def __init__(self, function: Callable[[Verbs], Any], *, durable: bool = False) -> None:
        super().__init__(self._run, durable=durable)
        self.function: Callable[[Verbs], Any] = function
        self.verbs: SharedVerbs  # of the store that runs it, which sets them

    def finish(self) -> None:
        """As a member does."""
        super().finish()
        self.function = _nothing

    def _run(self, rows: Primitives, now: int) -> Any:
        return self.function(self.verbs.on(rows, now))


def _nothing(verbs: Verbs) -> None:
    """What a call does that is done."""


class SharedVerbs(Verbs):
    """The verbs inside a transaction that several calls share: none of them is a transaction of its own."""

    __slots__ = ("_home", "_max_value_bytes", "_rows", "_time")

    _rows: Primitives
    _time: int

    def __init__(self, home: Home) -> None:
        self._home = home
        self._max_value_bytes = home.max_value_bytes

    def on(self, rows: Primitives, now: int) -> SharedVerbs:
        """The same on the rows of a transaction and at its time."""
        self._rows = rows
        self._time = now
        return self

    def _reading(self) -> Primitives:
        return self._rows

    _writing = _reading

    def _now(self) -> int:
        return self._time

    def _together(self, step: Callable[[Primitives, int], R], *, durable: bool | None = None, alone: bool = False) -> R:
        self._home.check_durable(durable)  # whether the commit is to be durable stands in the call
        if alone:
            raise TransactionError("this verb shares no commit with others")
        return step(self._rows, self._time)

    def _expiring(self) -> None:
        self._home.upkeep.expect_expiry()

    def _start_scan(self) -> Any:
        raise TransactionError("a scan shares no transaction with others")
