"""How long it takes to open a file, a new one, an empty one and one of many entries.

Called by `__main__` for `--open`. Opening is timed alone and together with a first read, so that what an `open` puts
off until the first use shows too.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.harness import rotated, timed
from benchmarks.subjects import Raw, Sqlite, Subject
from benchmarks.workload import KINDS, make_workload

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.workload import Item

OPENED: Final[tuple[type[Subject], ...]] = (Raw, Sqlite)
FILES: Final = ("new", "empty", "full")
_TIMES: Final = 25
_BATCH: Final = 10_000


@dataclass(frozen=True)
class Opening:
    """Median microseconds by subject and file; `with_read` is opening and one read."""

    entries: int
    alone: dict[str, dict[str, float]]
    with_read: dict[str, dict[str, float]]

    def factor(self, subject: str) -> float:
        """How many times as long as an empty file the full one takes, first read included."""
        return self.with_read[subject]["full"] / self.with_read[subject]["empty"]


def measure_opening(entries: int, directory: Path, tell: Callable[[str], None]) -> Opening:
    """Open each kind of file again and again in turn, on files made in `directory`."""
    alone: dict[str, dict[str, list[float]]] = {kind.name: {file: [] for file in FILES} for kind in OPENED}
    with_read: dict[str, dict[str, list[float]]] = {kind.name: {file: [] for file in FILES} for kind in OPENED}
    for kind in OPENED:
        tell(f"{kind.name}: writing {entries:,} entries")
        _make(kind(), directory / kind.name / "empty", 0)
        _make(kind(), directory / kind.name / "full", entries)
    tell("opening")
    for turn in range(_TIMES):
        for kind in OPENED:
            for file in rotated(FILES, turn):
                place = directory / kind.name / (file if file != "new" else f"new{turn}")
                place.mkdir(exist_ok=True)
                subject = kind()
                opened = timed(subject.open, place)
                read = timed(subject.has_each, [_key(entries // 2)])
                subject.close()
                alone[kind.name][file].append(opened)
                with_read[kind.name][file].append(opened + read)
    return Opening(entries, _medians(alone), _medians(with_read))


def _make(subject: Subject, place: Path, entries: int) -> None:
    place.mkdir(parents=True)
    documents = [document for _, document in make_workload(1_000).new]
    subject.open(place)
    for start in range(0, entries, _BATCH):
        numbers = range(start, min(start + _BATCH, entries))
        items: list[Item] = [(_key(number), documents[number % len(documents)]) for number in numbers]
        subject.set_many(items)
    subject.close()


def _key(number: int) -> str:
    # In ascending order, which is the fastest way to fill a file.
    return f"{KINDS[0]}:{number:08d}"


def _medians(seconds: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {file: statistics.median(times) * 1e6 for file, times in files.items()} for name, files in seconds.items()
    }
