"""`Retries`: how often, and until when, a transaction is tried again.

Called by `run_transaction` of `Storage` and of `AsyncStorage`.
"""

from __future__ import annotations

import random
import time
from typing import Final

from mycelia_storage.arguments import check_duration, check_whole
from mycelia_storage.errors import StorageBusyError, TransactionConflictError

RETRIED: Final = (TransactionConflictError, StorageBusyError)
_LONGEST_PAUSE: Final = 0.25


class Retries:
    """At most `attempts`, and none begun after `deadline` seconds."""

    def __init__(self, attempts: int, deadline: float) -> None:
        self._left = check_whole("attempts", attempts, least=1)
        self._last = time.monotonic() + check_duration("deadline", deadline)
        self._failed = 0

    def pause(self) -> float | None:
        """After a failed attempt: the seconds to wait before the next one, None where there is none."""
        self._left -= 1
        self._failed += 1
        pause = random.uniform(0, min(_LONGEST_PAUSE, 0.001 * 2 ** min(self._failed, 16)))
        return None if self._left == 0 or time.monotonic() + pause >= self._last else pause
