"""`ServerClock`: the time of the PostgreSQL server, known here without asking it for every call.

Called by the engine, which has the store's `now` from it where no `clock` was given. Many machines write to one server,
and their clocks differ; expiry and versions go by the server's. It is asked when the store is opened, and now and then
on a connection that is needed anyway. In between the monotonic clock of this machine goes on from there, so that the
error is half the time of a round trip, and what this machine's clock gains in a few seconds.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mycelia_storage.engines.postgres.connections import Cursor

NOW: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"

# So many seconds an answer counts.
_GOOD_FOR: Final = 10.0
# What two clocks may gain on each other, in seconds a second.
_DRIFT: Final = 0.0005


class ServerClock:
    """Called, it gives seconds since 1970."""

    def __init__(self) -> None:
        self._known: tuple[float, float] = (time.time(), time.monotonic())
        self._error = math.inf  # the most that it can be wrong by
        self._ask_again = -1.0

    def __call__(self) -> float:
        there, here = self._known
        return there + (time.monotonic() - here)

    def is_due(self) -> bool:
        """Whether the server is to be asked again."""
        return time.monotonic() >= self._ask_again

    def ask(self, cursor: Cursor) -> None:
        """Ask the server. Raises what the driver raises."""
        before = time.monotonic()
        (microseconds,) = cursor.execute(NOW).fetchone() or (0,)
        after = time.monotonic()
        self._ask_again = after + _GOOD_FOR
        error = (after - before) / 2
        there, here = microseconds / 1_000_000, before + error
        known, noted = self._known
        age = here - noted
        doubt = self._error + age * _DRIFT
        # An answer that was long on its way is worse than what is known already, unless that cannot be so any more.
        if error <= doubt or abs(there - known - age) > error + doubt:
            self._known, self._error = (there, here), error
