"""Threads that write through one store while its server is ended, and remember what they were told.

Called by the tests of failover and of restarts. What they were told is then held against what is there:

- what was acknowledged is there, with the version that was acknowledged;
- what failed in any other way than OutcomeUnknownError is not there;
- a transaction is there as a whole or not at all, and an increment once or not at all.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Self

from mycelia_storage import OutcomeUnknownError, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from mycelia_storage import Storage, Transaction

PATIENCE_SECONDS = 60


class Writers:
    """Four threads: two with `set`, one with `increment`, one with transactions of two writes."""

    def __init__(self, store: Storage, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.store = store
        self._patience_seconds = patience_seconds
        self.acknowledged: dict[str, int] = {}
        self.unknown: set[str] = set()
        self.refused: set[str] = set()
        self.increments = 0
        self.unknown_increments = 0
        self.times: list[float] = []
        self.failures: list[BaseException] = []
        self._changed = threading.Condition()
        self._is_over = False
        steps = (self._set, self._set, self._increment, self._pair)
        self._threads = [
            threading.Thread(target=self._run, args=(step, number), name=f"writer {number}")
            for number, step in enumerate(steps)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over = True
        for thread in self._threads:
            thread.join()

    def go_on(self, count: int) -> None:
        """Wait for so many more acknowledgements, of each of the threads."""
        deadline = time.monotonic() + self._patience_seconds
        with self._changed:
            wanted = [counted + count for counted in self._counts()]
            while not self.failures and any(now < then for now, then in zip(self._counts(), wanted, strict=True)):
                assert self._changed.wait(deadline - time.monotonic()), "no write was acknowledged for long"
        assert self.failures == []

    def gap(self, since: float) -> float:
        """For how long at most nothing was acknowledged, from this time on."""
        times = [since, *(at for at in sorted(self.times) if at > since)]
        return max(later - at for at, later in itertools.pairwise(times))

    def wrong(self) -> list[str]:
        """What is not as the threads were told, after they have ended."""
        wrong: list[str] = []
        versions = {entry.key: entry.version for entry in self.store.scan(prefix="w")}
        wrong += [f"{key} is lost" for key in self.acknowledged if key not in versions]
        wrong += [
            f"{key} has version {versions[key]}, and {version} was acknowledged"
            for key, version in self.acknowledged.items()
            if key in versions and versions[key] != version
        ]
        wrong += [f"{key} was refused, and is there" for key in self.refused if key in versions]
        wrong += [f"{key} came from nowhere" for key in versions.keys() - self.acknowledged.keys() - self.unknown]
        halves = {key.rpartition("/")[0] for key in versions if "/" in key}
        wrong += [f"{key} is there by half" for key in halves if not {f"{key}/a", f"{key}/b"} <= versions.keys()]
        total = self.store.get("increments", 0)
        if not self.increments <= total <= self.increments + self.unknown_increments:
            wrong.append(f"{total} increments, {self.increments} acknowledged, {self.unknown_increments} unknown")
        return wrong

    def said(self) -> str:
        unknown = len(self.unknown) + self.unknown_increments
        return f"{len(self.times)} acknowledged, {unknown} of unknown outcome, {len(self.refused)} refused"

    # ---- the threads

    def _counts(self) -> list[int]:
        return [getattr(thread, "acknowledged", 0) for thread in self._threads]

    def _run(self, step: Callable[[str], None], number: int) -> None:
        thread = threading.current_thread()
        count = 0
        try:
            for round_ in itertools.count():
                if self._is_over:
                    return
                key = f"w{number}:{round_:06}"
                try:
                    step(key)
                except StorageUnavailableError:
                    self._note(self.refused, key, step)
                except OutcomeUnknownError:
                    self._note(self.unknown, key, step)
                else:
                    count += 1
                    with self._changed:
                        self.times.append(time.monotonic())
                        thread.acknowledged = count  # type: ignore[attr-defined]
                        self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - the test's own thread shows it
            with self._changed:
                self.failures.append(error)
                self._changed.notify_all()

    def _note(self, kept: set[str], key: str, step: Callable[[str], None]) -> None:
        if step == self._pair:
            kept.update((f"{key}/a", f"{key}/b"))
        elif step == self._set:
            kept.add(key)
        elif kept is self.unknown:
            self.unknown_increments += 1

    def _set(self, key: str) -> None:
        self.acknowledged[key] = self.store.set(key, {"text": "t" * 100})

    def _increment(self, key: str) -> None:
        self.store.increment("increments")
        self.increments += 1

    def _pair(self, key: str) -> None:
        def write(tx: Transaction) -> dict[str, int]:
            return {name: tx.set(name, 1) for name in (f"{key}/a", f"{key}/b")}

        self.acknowledged |= self.store.run_transaction(write)
