"""A clock that tells which thread asked for the time, so where a verb ran: for tests of what a loop's thread does."""

from __future__ import annotations

import threading
import time


class ThreadClock:
    """Real time, and the threads that asked for it; `delay` makes what asks slow."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.delay = 0.0

    def __call__(self) -> float:
        self.threads.append(threading.get_ident())
        time.sleep(self.delay)
        return time.time()
