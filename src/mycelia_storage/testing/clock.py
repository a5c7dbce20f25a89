"""A clock that stands still until a test moves it: given to a store as `clock=`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

START: Final = 1_700_000_000.0


class FakeClock:
    """Seconds since 1970 that only `advance` and `set` change.

    The time is kept in whole microseconds, so that many small steps add up without drift.

        clock = FakeClock()
        store = open_storage("memory:", clock=clock)
        store.set("token", 1, ttl=60)
        clock.advance(60)
        assert store.get("token") is None
    """

    def __init__(self, seconds: float = START) -> None:
        self.micros: int = _to_micros(seconds)

    def __call__(self) -> float:
        return self.micros / 1_000_000

    def advance(self, seconds: float) -> None:
        """Move on by `seconds`; a negative number moves back."""
        self.micros += _to_micros(seconds)

    def set(self, seconds: float) -> None:
        """Stand at `seconds` since 1970."""
        self.micros = _to_micros(seconds)

    @property
    def time(self) -> datetime:
        """The time as stores report it: aware, UTC, cut to milliseconds."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=self.micros // 1000)


def _to_micros(seconds: float) -> int:
    return round(seconds * 1_000_000)
