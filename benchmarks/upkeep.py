"""Beside its callers: how long the removal of expired entries keeps a `set`, and how fast a backup is.

Called by `__main__` for `--upkeep`. Every round of the removal begins on a copy of the same file, in which everything
has expired; one thread sets a key again and again, with pauses, until nothing expired is left. A backup takes turns
with the plain backup API, as a careful user has it: in one step, closed, and synchronized with the disk by an fsync of
the target. Both read a file that the system has in memory and end with one of the same entries that is on the disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import apsw

from benchmarks.workload import make_workload
from mycelia_storage import Storage, open_storage, upkeep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BIG: Final = 1_000_000
# So many big ones for each small one less.
_BIG_ARE_FEWER: Final = 1_000
_BATCH: Final = 10_000
_BIG_BATCH: Final = 20
_PAUSE: Final = 0.001
_BEFORE_SECONDS: Final = 1.0
_LOOK_EVERY: Final = 0.25
_PAST: Final = 1_000_000_000.0
_TTL: Final = 60.0

EXPIRED_LEFT: Final = (
    "SELECT 1 FROM storage_entries INDEXED BY storage_entries_expiry WHERE expires_at IS NOT NULL LIMIT 1"
)


@dataclass(frozen=True)
class Removal:
    """The longest `set` of each round, in milliseconds, before anything is removed and meanwhile; and the seconds."""

    entries: int
    value_bytes: int
    before: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def worst(self) -> float:
        """The median of the rounds' longest `set`."""
        return statistics.median(self.beside)


@dataclass(frozen=True)
class Backups:
    """Seconds of each round, of this library and of the plain backup API."""

    megabytes: float
    ours: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)

    @property
    def speed(self) -> float:
        """How many times as fast as the plain API: the median of the rounds' ratios."""
        return statistics.median(raw / ours for raw, ours in zip(self.raw, self.ours, strict=True))


@dataclass(frozen=True)
class Upkeep:
    """Everything that was measured."""

    removals: list[Removal]
    backups: Backups


def measure_upkeep(entries: int, rounds: int, directory: Path, tell: Callable[[str], None]) -> Upkeep:
    """Measure both on files of so many entries, made in `directory`."""
    small, big = directory / "small.db", directory / "big.db"
    tell(f"writing {entries:,} entries")
    bytes_each = _fill(small, entries)
    removals = [Removal(entries, bytes_each), Removal(max(10, entries // _BIG_ARE_FEWER), BIG)]
    _fill_big(big, removals[1].entries)
    backups = Backups(small.stat().st_size / 1e6)
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}")
        for file, removal in zip((small, big), removals, strict=True):
            _measure_removal(file, removal, directory / "copy.db")
        for kind in ("ours", "raw") if number % 2 else ("raw", "ours"):
            _measure_backup(kind, small, directory / "backup.db", backups)
    for file in (small, big):
        file.unlink()
    return Upkeep(removals, backups)


def _fill(file: Path, entries: int) -> int:
    documents = [document for _, document in make_workload(1_000).new]
    with open_storage(file, clock=lambda: _PAST) as store:
        for start in range(0, entries, _BATCH):
            numbers = range(start, min(start + _BATCH, entries))
            # In an order that is not the one of the keys, so that what expires together does not stand together.
            store.set_many({_key(number): documents[number % 1_000] for number in numbers}, ttl=_TTL)
    return 150


def _key(number: int) -> str:
    return f"{number * 7_919 % 100_000_007:09d}"


def _fill_big(file: Path, entries: int) -> None:
    text = "b" * BIG
    with open_storage(file, clock=lambda: _PAST) as store:
        for start in range(0, entries, _BIG_BATCH):
            store.set_many({_key(n): text for n in range(start, min(start + _BIG_BATCH, entries))}, ttl=_TTL)


def _measure_removal(file: Path, removal: Removal, copy: Path) -> None:
    shutil.copyfile(file, copy)
    _sync(copy)  # the copying is not to be in the way of what is measured
    with (
        _cleaning_up_after(_BEFORE_SECONDS),
        open_storage(copy, clock=lambda: _PAST + 10 * _TTL) as store,
        contextlib.closing(apsw.Connection(str(copy), flags=apsw.SQLITE_OPEN_READONLY)) as look,
    ):
        opened = time.perf_counter()
        removal.before.append(_longest_set(store, lambda: time.perf_counter() - opened > 0.9 * _BEFORE_SECONDS) * 1e3)
        removal.beside.append(_longest_set(store, lambda: look.execute(EXPIRED_LEFT).get is None) * 1e3)
        removal.seconds.append(time.perf_counter() - opened - _BEFORE_SECONDS)
    copy.unlink()


@contextlib.contextmanager
def _cleaning_up_after(seconds: float) -> Iterator[None]:
    usual, upkeep.CLEAN_UP_EVERY = upkeep.CLEAN_UP_EVERY, seconds
    try:
        yield
    finally:
        upkeep.CLEAN_UP_EVERY = usual


def _longest_set(store: Storage, is_over: Callable[[], bool]) -> float:
    longest, number = 0.0, 0
    look_at = time.perf_counter() + _LOOK_EVERY
    while True:
        started = time.perf_counter()
        store.set("set", number)
        ended = time.perf_counter()
        longest = max(longest, ended - started)
        number += 1
        if ended > look_at:
            if is_over():
                return longest
            look_at = time.perf_counter() + _LOOK_EVERY
        time.sleep(_PAUSE)


def _measure_backup(kind: str, file: Path, target: Path, backups: Backups) -> None:
    if kind == "ours":
        with open_storage(file, read_only=True) as store:
            started = time.perf_counter()
            store.backup(target)
            backups.ours.append(time.perf_counter() - started)
    else:
        started = time.perf_counter()
        with (
            contextlib.closing(apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READONLY)) as source,
            contextlib.closing(apsw.Connection(str(target))) as copy,
            copy.backup("main", source, "main") as backup,
        ):
            backup.step(-1)
        _sync(target)
        backups.raw.append(time.perf_counter() - started)
    target.unlink()


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
