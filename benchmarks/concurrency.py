"""Several threads and several processes on one store: what they get done, how long each waits, and who is left out.

Called by `__main__` for `--threads`. Subjects and numbers of threads take turns, in an order that rotates from round to
round. The workers of several processes are this module's, started as `python -m benchmarks.concurrency`.
"""

# ruff: noqa: D102

from __future__ import annotations

import importlib
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import orjson

from benchmarks.harness import rotated
from benchmarks.workload import make_workload
from mycelia_storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from benchmarks.workload import Document, Item

Mode = Literal["FULL", "NORMAL"]

MODES: Final[tuple[Mode, ...]] = ("FULL", "NORMAL")
THREADS: Final = (1, 16, 64)
READERS: Final = 4
CROWDS: Final = (1, 4, 16, 64)
PROCESSES: Final = 4
THREADS_EACH: Final = 4
ALONE: Final = "no writer"
STEADY: Final = "a steady writer"
WITHOUT_PAUSE: Final = "one without pause"
# So many sets a second make a steady writer.
STEADY_RATE: Final = 1_000
_ENTRIES: Final = 2_000
_KEY: Final = "counter"
_PATIENCE: Final = 60.0
# One pause, for a checkpoint say, is in all workers' times: a thousandth of them has to be many more than they.
_LONGER: Final = 6
# Reads with and without a writer take turns so often in each round: what is compared has to be close together.
_SLICES: Final = 4


class Shared(ABC):
    """A store that several threads use at once."""

    name: ClassVar[str]

    @abstractmethod
    def open(self, place: Path, mode: Mode) -> None:
        """Open or make the store in this directory."""

    @abstractmethod
    def set(self, key: str, document: Document) -> None:
        """Store one document."""

    @abstractmethod
    def get(self, key: str) -> Document | None:
        """Read one document."""

    @abstractmethod
    def change(self, key: str) -> None:
        """Read a number, and write the next one, as one step."""

    @abstractmethod
    def number(self, key: str) -> int:
        """The number that `change` counts."""

    @abstractmethod
    def close(self) -> None:
        """Close it."""


class Ours(Shared):
    """This library."""

    name = "sqlite"

    def open(self, place: Path, mode: Mode) -> None:
        self._store = open_storage(place / "store.db", synchronous=mode, busy_timeout=_PATIENCE)

    def set(self, key: str, document: Document) -> None:
        self._store.set(key, document)

    def get(self, key: str) -> Document | None:
        found: Document | None = self._store.get(key)
        return found

    def change(self, key: str) -> None:
        with self._store.transaction() as tx:
            tx.set(key, tx.get(key, 0) + 1)

    def number(self, key: str) -> int:
        found: int = self._store.get(key, 0)
        return found

    def close(self) -> None:
        self._store.close()


class Cached(Shared):
    """diskcache, which opens a connection for each thread."""

    name = "diskcache"

    def __init__(self) -> None:
        self._library: Any = importlib.import_module("diskcache")

    def open(self, place: Path, mode: Mode) -> None:
        self._cache: Any = self._library.Cache(
            str(place), timeout=_PATIENCE, sqlite_synchronous={"NORMAL": 1, "FULL": 2}[mode]
        )

    def set(self, key: str, document: Document) -> None:
        self._cache.set(key, document)

    def get(self, key: str) -> Document | None:
        found: Document | None = self._cache.get(key)
        return found

    def change(self, key: str) -> None:
        with self._cache.transact():
            self._cache.set(key, self._cache.get(key, 0) + 1)

    def number(self, key: str) -> int:
        found: int = self._cache.get(key, 0)
        return found

    def close(self) -> None:
        self._cache.close()


SUBJECTS: Final[tuple[type[Shared], ...]] = (Ours, Cached)


@dataclass(frozen=True)
class Turns:
    """What the workers of several processes had of one contended number."""

    changes_per_second: float
    median_us: float
    p999_us: float
    least_of_mean: float

    @property
    def spread(self) -> float:
        """How many times the median the slowest thousandth takes."""
        return self.p999_us / self.median_us


@dataclass(frozen=True)
class Concurrency:
    """What was reached a second, by subject and by what it was done with; one figure a round."""

    writes: dict[str, dict[str, dict[int, list[float]]]]
    reads: dict[str, dict[str, list[float]]]
    crowds: dict[str, dict[int, list[float]]]
    turns: dict[str, list[Turns]]

    def gain(self, mode: str, subject: str, threads: int) -> float:
        """How many times what one thread writes so many write: the median of the rounds' ratios."""
        by_threads = self.writes[mode][subject]
        return _median_ratio(by_threads[threads], by_threads[1])

    def kept(self, subject: str, how: str) -> float:
        """Which part of the reads is left beside such a writer: the median of the rounds' ratios."""
        return _median_ratio(self.reads[subject][how], self.reads[subject][ALONE])

    def spread(self, subject: str) -> float:
        """The slowest thousandth of the changes by the median one: the median of the rounds."""
        return statistics.median(turn.spread for turn in self.turns[subject])

    def least(self, subject: str) -> float:
        """What the least served worker had, by what one has on average: the median of the rounds."""
        return statistics.median(turn.least_of_mean for turn in self.turns[subject])


def measure_concurrency(
    seconds: float, rounds: int, directory: Path, tell: Callable[[str], None], processes: int = PROCESSES
) -> Concurrency:
    """Let every subject do everything for so many seconds in each round."""
    kinds = list(_installed(tell))
    names = [kind.name for kind in kinds]
    measured = Concurrency(
        writes={mode: {name: {threads: [] for threads in THREADS} for name in names} for mode in MODES},
        reads={name: {ALONE: [], STEADY: [], WITHOUT_PAUSE: []} for name in names},
        crowds={name: {threads: [] for threads in CROWDS} for name in names},
        turns={name: [] for name in names},
    )
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}")
        for mode in MODES:
            _measure_writes(
                rotated(kinds, number), mode, measured, seconds, directory / f"writes{number}{mode}", number
            )
        _measure_reads(rotated(kinds, number), measured, seconds, directory / f"reads{number}", number)
        for kind in rotated(kinds, number):
            turns = _contend(kind, directory / f"turns{number}{kind.name}", _LONGER * seconds, processes)
            measured.turns[kind.name].append(turns)
    return measured


def _installed(tell: Callable[[str], None]) -> Iterator[type[Shared]]:
    for kind in SUBJECTS:
        try:
            kind()
        except ImportError as error:
            tell(f"{kind.name}: left out ({error})")
        else:
            yield kind


def _measure_writes(
    kinds: Sequence[type[Shared]], mode: Mode, measured: Concurrency, seconds: float, place: Path, turn: int
) -> None:
    documents = [document for _, document in make_workload(_ENTRIES).new]
    for kind in kinds:
        for threads in rotated(THREADS, turn):
            store = _opened(kind, place, mode)
            done = work_together(_writes(store, documents[0], threads), seconds)
            # Everybody was told that theirs is stored.
            _expect(store.get(f"key:{sum(done) - 1}") == documents[0], kind, "a write is missing")
            _close(store, place)
            measured.writes[mode][kind.name][threads].append(sum(done) / seconds)


def _measure_reads(
    kinds: Sequence[type[Shared]], measured: Concurrency, seconds: float, place: Path, turn: int
) -> None:
    items = make_workload(_ENTRIES).new
    keys = [key for key, _ in items]
    for kind in kinds:
        store = _opened(kind, place, "NORMAL")
        for key, document in items:
            store.set(key, document)

        reads = _reads(store, keys)
        write = _write_again(store, items)
        done = {ALONE: 0, STEADY: 0, WITHOUT_PAUSE: 0}
        for slice_ in range(_SLICES):
            for how in rotated((ALONE, STEADY, WITHOUT_PAUSE), turn + slice_):
                beside = {ALONE: [], STEADY: [_paced(write)], WITHOUT_PAUSE: [write]}[how]
                counts = work_together([*reads, *beside], seconds / 2)
                done[how] += sum(counts[:READERS])
                _expect(not beside or counts[READERS] > 0, kind, f"{how} has written nothing")
        for how, reads_done in done.items():
            measured.reads[kind.name][how].append(reads_done / (_SLICES * seconds / 2))
        for threads in rotated(CROWDS, turn):
            counts = work_together(_reads(store, keys, threads), seconds / 2)
            measured.crowds[kind.name][threads].append(sum(counts) / (seconds / 2))
        _close(store, place)


def _writes(store: Shared, document: Document, threads: int) -> list[Callable[[], object]]:
    """New keys, each a number higher, whoever writes it."""
    numbers = count()
    return [lambda: store.set(f"key:{next(numbers)}", document)] * threads


def _reads(store: Shared, keys: Sequence[str], threads: int = READERS) -> list[Callable[[], object]]:
    def read(chance: random.Random) -> None:
        if store.get(chance.choice(keys)) is None:
            raise RuntimeError(f"{store.name}: an entry is missing")

    return [partial(read, random.Random(number)) for number in range(threads)]


def _write_again(store: Shared, items: Sequence[Item]) -> Callable[[], object]:
    chance = random.Random(READERS)
    return lambda: store.set(*chance.choice(items))


def _paced(write: Callable[[], object]) -> Callable[[], object]:
    """The same at `STEADY_RATE`; who was kept waiting catches up."""
    started, numbers = time.monotonic(), count()

    def write_in_time() -> None:
        time.sleep(max(0.0, started + next(numbers) / STEADY_RATE - time.monotonic()))
        write()

    return write_in_time


def work_together(works: Sequence[Callable[[], object]], seconds: float) -> list[int]:
    """Let each work be done again and again in a thread of its own, for so long, once at least; how often it was."""
    counts = [0] * len(works)
    failures: list[BaseException] = []
    is_over = threading.Event()
    barrier = threading.Barrier(len(works) + 1)

    def run(number: int, work: Callable[[], object]) -> None:
        barrier.wait()
        done = 0
        try:
            while not done or not is_over.is_set():
                work()
                done += 1
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)
        counts[number] = done

    threads = [threading.Thread(target=run, args=(number, work)) for number, work in enumerate(works)]
    for thread in threads:
        thread.start()
    barrier.wait()
    time.sleep(seconds)
    is_over.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return counts


def _contend(kind: type[Shared], place: Path, seconds: float, processes: int) -> Turns:
    """Several processes with several threads each change one number, each for so many seconds."""
    store = _opened(kind, place, "NORMAL")
    command = [sys.executable, "-m", "benchmarks.concurrency", kind.name, str(place), str(seconds)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()
    outputs: list[list[list[float]]] = []
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    for worker in workers:
        output, _ = worker.communicate()
        _expect(worker.returncode == 0, kind, f"a worker ended with {worker.returncode}")
        outputs.append(orjson.loads(output))
    by_worker = [waits for output in outputs for waits in output]
    served = [len(waits) for waits in by_worker]
    _expect(store.number(_KEY) == sum(served), kind, f"{sum(served)} changes made {store.number(_KEY)}")
    _close(store, place)
    waits = sorted(wait for waits in by_worker for wait in waits)
    return Turns(
        changes_per_second=len(waits) / seconds,
        median_us=statistics.median(waits) * 1e6,
        p999_us=waits[len(waits) * 999 // 1000] * 1e6,
        least_of_mean=min(served) / statistics.mean(served),
    )


def worker(name: str, place: Path, seconds: float) -> list[list[float]]:
    """What one of the processes does; how long each change took, by thread."""
    store = next(kind for kind in SUBJECTS if kind.name == name)()
    store.open(place, "NORMAL")
    waits: list[list[float]] = [[] for _ in range(THREADS_EACH)]

    def change(mine: list[float]) -> None:
        started = time.perf_counter()
        store.change(_KEY)
        mine.append(time.perf_counter() - started)

    print("ready", flush=True)
    sys.stdin.readline()
    work_together([partial(change, mine) for mine in waits], seconds)
    store.close()
    return waits


def _opened(kind: type[Shared], place: Path, mode: Mode) -> Shared:
    place.mkdir()
    store = kind()
    store.open(place, mode)
    return store


def _close(store: Shared, place: Path) -> None:
    store.close()
    shutil.rmtree(place)


def _expect(is_right: bool, kind: type[Shared], problem: str) -> None:
    if not is_right:
        raise RuntimeError(f"{kind.name}: {problem}")


def _median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(over, under, strict=True))


if __name__ == "__main__":
    from pathlib import Path

    sys.stdout.buffer.write(orjson.dumps(worker(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))))
