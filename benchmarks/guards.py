"""What page checksums and encryption cost: the operations with each, beside the same store without.

Called by `__main__` for `--guards`. Both have work to do where pages go to a file and come from one, so a store is also
read whose pages are all to be fetched anew: right after it was opened. Encryption is left out where the driver does
not encrypt.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import apsw

import mycelia_storage
from benchmarks import harness
from benchmarks.subjects import Library, Sqlite
from benchmarks.workload import OPERATIONS, make_workload

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.workload import Workload

UNGUARDED: Final = Sqlite.name
_PASSPHRASE: Final = "correct horse battery staple"
_OPENED: Final = "open"
_COLD: Final = "scan, just opened"
_OPENINGS_IN_A_ROUND: Final = 5


class Checksums(Library):
    """With a checksum in every page."""

    name = "checksums"

    def open(self, place: Path) -> None:
        """As `Subject.open`."""
        self._store = mycelia_storage.open_storage(place / "mycelia.db", checksums=True)


class Encrypted(Library):
    """With every page encrypted."""

    name = "encrypted"

    def open(self, place: Path) -> None:
        """As `Subject.open`."""
        self._store = mycelia_storage.open_storage(place / "mycelia.db", encryption_key=_PASSPHRASE)


@dataclass(frozen=True)
class Guards:
    """Seconds by operation, by subject, one a round."""

    documents: int
    results: harness.Results
    after_opening: harness.Results


def measure_guards(documents: int, rounds: int, directory: Path, tell: Callable[[str], None]) -> Guards:
    """Run the workload on each, and then open and read files of them again and again, in turn."""
    subjects: list[Library] = [Sqlite(), Checksums()]
    if hasattr(apsw, "mc_version"):
        subjects.append(Encrypted())
    else:
        tell("encrypted: left out (needs apsw-sqlite3mc in place of apsw)")
    workload = make_workload(documents)
    names = [operation.name for operation in OPERATIONS]
    results = harness.run(subjects, workload, rounds=rounds, chosen=names, directory=directory, tell=tell)
    return Guards(documents, results, _reopen(subjects, workload, rounds, directory))


def _reopen(subjects: list[Library], workload: Workload, rounds: int, directory: Path) -> harness.Results:
    """Seconds of an opening as a whole, and of a scan for each document."""
    seconds: dict[str, dict[str, list[float]]] = {_OPENED: {}, _COLD: {}}
    try:
        for subject in subjects:
            (directory / subject.name).mkdir()
            subject.open(directory / subject.name)
            subject.set_many(workload.new)
            subject.close()
        for turn in range(_OPENINGS_IN_A_ROUND * rounds):
            for subject in harness.rotated(subjects, turn):
                opened = harness.timed(subject.open, directory / subject.name)
                scanned = harness.timed(subject.scan) / len(workload.new)
                subject.close()
                seconds[_OPENED].setdefault(subject.name, []).append(opened)
                seconds[_COLD].setdefault(subject.name, []).append(scanned)
    finally:
        for subject in subjects:
            shutil.rmtree(directory / subject.name, ignore_errors=True)
    return harness.Results(seconds)
