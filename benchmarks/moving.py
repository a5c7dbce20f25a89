"""How fast a store is copied into another one, how long the pause of the switch is, and whether memory stays flat.

Called by `__main__` for `--moving`. The source is a SQLite file of small entries, whose keys were written in an order
that is not their own, as an application writes them. The target is a new SQLite file, and where its programs
are found a PostgreSQL server that waits for the disk. Memory is that of the command line, in a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from benchmarks.workload import make_workload
from mycelia_storage import catch_up, copy, open_storage
from mycelia_storage.testing.postgres_server import PostgresNotFoundError, PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mycelia_storage import CopyReport, Storage

_KEEPING: Final = {"fsync": True, "full_page_writes": True, "synchronous_commit": True, "autovacuum": True}
CHANGES: Final = 1_000
_PART: Final = 8
_BATCH: Final = 10_000
_PAUSES: Final = 3


@dataclass
class Leg:
    """Seconds of each thing, from a SQLite file to one target; `pauses` are of rounds with so many changes each."""

    target: str
    entries: int
    copying: float = 0.0
    verifying: float = 0.0
    again: float = 0.0
    idle: float = 0.0
    pauses: list[float] = field(default_factory=list)

    @property
    def entries_per_second(self) -> float:
        """With verification."""
        return self.entries / (self.copying + self.verifying)

    @property
    def pause(self) -> float:
        """The median of the rounds."""
        return sorted(self.pauses)[len(self.pauses) // 2]


@dataclass
class Moving:
    """Everything that was measured; `peaks` are entries and the most megabytes that copying them took."""

    legs: list[Leg]
    peaks: list[tuple[int, float]]


def measure_moving(entries: int, directory: Path, tell: Callable[[str], None]) -> Moving:
    """Copy so many entries, in files made in `directory`."""
    small, large = directory / "moving-small.db", directory / "moving.db"
    tell(f"writing {entries:,} entries")
    _fill(small, max(1, entries // _PART))
    _fill(large, entries)
    peaks = [(count, _peak(file, directory)) for file, count in ((small, max(1, entries // _PART)), (large, entries))]
    legs: list[Leg] = []
    with _server(tell) as server:
        for target in [str(directory / "moved.db"), *([] if server is None else [server.dsn()])]:
            with open_storage(large) as source, open_storage(target) as there:
                leg = Leg(there.get_status().backend, source.count())
                tell(f"copying into {leg.target}")
                _measure(source, there, leg)
                legs.append(leg)
    for file in (small, large, directory / "moved.db"):
        file.unlink()
    return Moving(legs, peaks)


@contextlib.contextmanager
def _server(tell: Callable[[str], None]) -> Iterator[PostgresServer | None]:
    """A server for as long as the block takes, where there is one to start."""
    if importlib.util.find_spec("psycopg") is None:
        tell("moving to PostgreSQL: left out (psycopg not installed)")
        yield None
        return
    try:
        server = PostgresServer(settings=_KEEPING)
        server.start()
    except PostgresNotFoundError:
        tell("moving to PostgreSQL: left out (no server installed)")
        yield None
        return
    with contextlib.closing(server):
        yield server


def _key(number: int) -> str:
    return f"user:{number * 7_368_787 % 100_000_000:08d}"


def _fill(file: Path, entries: int) -> None:
    documents = [document for _, document in make_workload(1_000).new]
    with open_storage(file) as store:
        for start in range(0, entries, _BATCH):
            numbers = range(start, min(start + _BATCH, entries))
            store.set_many({_key(number): documents[number % 1_000] for number in numbers})


def _measure(source: Storage, target: Storage, leg: Leg) -> None:
    begun: dict[str, float] = {}
    start = time.perf_counter()
    copy(source, target, progress=lambda progress: begun.setdefault(progress.step, time.perf_counter()))
    leg.verifying = time.perf_counter() - begun["verifying"]
    leg.copying = begun["verifying"] - start
    leg.again = copy(source, target, verify=False).seconds
    leg.idle = catch_up(source, target).seconds
    chance = random.Random(1)
    for _ in range(_PAUSES):
        _change(source, leg.entries, chance)
        leg.pauses.append(_caught_up(source, target).seconds)


def _change(source: Storage, entries: int, chance: random.Random) -> None:
    """Seven tenths are written anew, two are deleted, one is new."""
    keys = [_key(number) for number in chance.sample(range(entries), min(entries, CHANGES * 9 // 10))]
    changed = len(keys) * 7 // 9
    source.set_many({key: {"changed": chance.random()} for key in keys[:changed]})
    source.delete_many(keys[changed:])
    source.set_many({f"new:{chance.randrange(2**40)}": {"n": 1} for _ in range(CHANGES // 10)})


def _caught_up(source: Storage, target: Storage) -> CopyReport:
    report = catch_up(source, target)
    if report.entries != target.count():
        raise RuntimeError("the copy does not hold what its source holds")
    return report


def _peak(file: Path, directory: Path) -> float:
    """The most megabytes that the command takes to copy a file."""
    target, written = directory / "peak.db", directory / "peak.json"
    command = [sys.executable, "-m", "benchmarks.child", str(written), "copy", str(file), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the copy of {file} ended with {done.returncode}: {done.stderr.strip()}")
    for end in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{target}{end}")
    figures: dict[str, Any] = orjson.loads(written.read_bytes())
    return float(figures["peak"]) / 1e6
