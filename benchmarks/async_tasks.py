"""Many asyncio tasks on one store, beside a hand-written loop without any, and beside other ways to store from asyncio.

Called by `__main__` for `--async`. Each task awaits one call after another. The subjects take turns, in an order that
rotates from round to round, each round on new files.
"""

# ruff: noqa: D102

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import shutil
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from benchmarks.harness import Results, rotated, timed
from benchmarks.subjects import Raw
from benchmarks.workload import make_workload
from mycelia_storage import AsyncStorage, open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from pathlib import Path

    from benchmarks.workload import Document, Item

Mode = Literal["FULL", "NORMAL"]

TASKS: Final = 256
KEYS_AT_ONCE: Final = 100
# A task alone waits for its thread each time, and a commit at FULL for the disk: they do less.
_SHARE_OF_ONE: Final = 0.1
_SHARE_AT_FULL: Final = 0.04


class Tasks(ABC):
    """A store whose calls are awaited."""

    name: ClassVar[str]
    share: ClassVar[float] = 1.0
    lacks: ClassVar[frozenset[str]] = frozenset()
    modes: ClassVar[tuple[Mode, ...]] = ("NORMAL", "FULL")

    @abstractmethod
    def open(self, place: Path, mode: Mode) -> None:
        """Open or make the store in this directory."""

    @abstractmethod
    async def close(self) -> None:
        """Close it."""

    @abstractmethod
    async def set(self, item: Item) -> Any:
        """Store one document."""

    @abstractmethod
    async def get(self, key: str) -> Any:
        """Read one document."""

    async def get_many(self, keys: Sequence[str]) -> Any:
        """Read several documents."""
        raise NotImplementedError

    def new_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()


class Ours(Tasks):
    """This library."""

    name = "sqlite"

    def open(self, place: Path, mode: Mode) -> None:
        self._store = AsyncStorage(open_storage(place / "mycelia.db", synchronous=mode))

    async def close(self) -> None:
        await self._store.close()

    async def set(self, item: Item) -> int:
        return await self._store.set(*item)

    async def get(self, key: str) -> Any:
        return await self._store.get(key)

    async def get_many(self, keys: Sequence[str]) -> dict[str, Any]:
        return await self._store.get_many(keys)


class OursOnUvloop(Ours):
    """The same on another event loop."""

    name = "sqlite, uvloop"

    def __init__(self) -> None:
        self._uvloop: Any = importlib.import_module("uvloop")

    def new_loop(self) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = self._uvloop.new_event_loop()
        return loop


class HopPerCall(Tasks):
    """The hand-written statements on a thread of their own, one way there and back for each, as aiosqlite does."""

    name = "a hop a call"
    share = 0.2

    def open(self, place: Path, mode: Mode) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._raw = _RawIn(mode)
        self._thread.submit(self._raw.open, place).result()

    async def close(self) -> None:
        await self._run(self._raw.close)
        self._thread.shutdown()

    async def set(self, item: Item) -> None:
        await self._run(self._raw.set_each, [item])

    async def get(self, key: str) -> Any:
        return await self._run(self._raw.get_each, [key])

    async def get_many(self, keys: Sequence[str]) -> Any:
        return await self._run(self._raw.get_many, keys)

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


class DiskCacheInThreads(Tasks):
    """diskcache, each call by `asyncio.to_thread`."""

    name = "diskcache, to_thread"
    share = 0.05
    lacks = frozenset({"get_many"})

    def __init__(self) -> None:
        self._library: Any = importlib.import_module("diskcache")

    def open(self, place: Path, mode: Mode) -> None:
        self._cache: Any = self._library.Cache(str(place), sqlite_synchronous={"FULL": 2, "NORMAL": 1}[mode])

    async def close(self) -> None:
        self._cache.close()

    async def set(self, item: Item) -> None:
        await asyncio.to_thread(self._cache.set, item[0], item[1])

    async def get(self, key: str) -> Any:
        return await asyncio.to_thread(self._cache.get, key)


class KeyValueDisk(Tasks):
    """py-key-value's disk store, with its defaults."""

    name = "py-key-value, disk"
    share = 0.05
    modes = ("NORMAL",)  # what its file has; there is no setting

    def __init__(self) -> None:
        self._library: Any = importlib.import_module("key_value.aio.stores.disk")

    def open(self, place: Path, mode: Mode) -> None:
        del mode
        self._store: Any = self._library.DiskStore(directory=str(place))

    async def close(self) -> None:
        await self._store.close()

    async def set(self, item: Item) -> None:
        await self._store.put(item[0], item[1])

    async def get(self, key: str) -> Any:
        return await self._store.get(key)

    async def get_many(self, keys: Sequence[str]) -> Any:
        return await self._store.get_many(keys)


class _RawIn(Raw):
    """The hand-written loop, with a `synchronous` of one's choice."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode

    def open(self, place: Path) -> None:
        super().open(place)
        self._connection.pragma("synchronous", self._mode.lower())


KINDS: Final[tuple[type[Tasks], ...]] = (Ours, OursOnUvloop, HopPerCall, DiskCacheInThreads, KeyValueDisk)


@dataclass(frozen=True)
class Line:
    """One line of the table; `least` is the target, raw = 1."""

    name: str
    verb: Literal["set", "get", "get_many"]
    tasks: int
    mode: Mode
    share: float
    least: float


LINES: Final = (
    Line(f"set, {TASKS} tasks", "set", TASKS, "NORMAL", 1, 1.5),
    Line(f"set at FULL, {TASKS} tasks", "set", TASKS, "FULL", _SHARE_AT_FULL, 8),
    Line("set, one task", "set", 1, "NORMAL", _SHARE_OF_ONE, 0.12),
    Line(f"get, {TASKS} tasks", "get", TASKS, "NORMAL", 1, 0.4),
    Line(f"get_many({KEYS_AT_ONCE}), one task", "get_many", 1, "NORMAL", 1, 0.7),
)


def measure_tasks(documents: int, rounds: int, directory: Path, tell: Callable[[str], None]) -> Results:
    """Measure with so many documents in so many rounds, on files in `directory`."""
    items = make_workload(documents).new
    subjects: list[Tasks] = []
    for kind in KINDS:
        try:
            subjects.append(kind())
        except ImportError as error:
            tell(f"{kind.name}: left out ({error})")
    results = Results({line.name: {} for line in LINES})
    for number in range(rounds):
        tell(f"asyncio: round {number + 1} of {rounds}")
        modes: tuple[Mode, ...] = ("NORMAL", "FULL")
        for mode in modes:
            lines = [line for line in LINES if line.mode == mode]
            able = [subject for subject in subjects if mode in subject.modes]
            for subject in rotated([None, *able], number):
                place = directory / "async"
                place.mkdir()
                for line, seconds in _measure(subject, lines, items, place, mode):
                    name = Raw.name if subject is None else subject.name
                    results.seconds[line.name].setdefault(name, []).append(seconds)
                shutil.rmtree(place)
    return results


def _measure(
    subject: Tasks | None, lines: Sequence[Line], items: Sequence[Item], place: Path, mode: Mode
) -> Iterator[tuple[Line, float]]:
    if subject is None:
        raw = _RawIn(mode)
        raw.open(place)
        with contextlib.closing(raw):
            for line in lines:
                part = _part(items, line.share)
                yield line, timed(_run_raw, raw, line, part) / len(part)
        return
    with asyncio.Runner(loop_factory=subject.new_loop) as runner:
        subject.open(place, mode)
        for line in lines:
            if line.verb not in subject.lacks:
                part = _part(items, line.share * (1 if line.tasks == 1 else subject.share))
                calls: list[Any] = list(part) if line.verb == "set" else [key for key, _ in part]
                if line.verb == "get_many":
                    calls = [calls[start : start + KEYS_AT_ONCE] for start in range(0, len(calls), KEYS_AT_ONCE)]
                work = functools.partial(_run_tasks, getattr(subject, line.verb), calls, line.tasks)
                yield line, timed(lambda work=work: runner.run(work())) / len(part)
                if line.verb == "set" and mode == "NORMAL" and line.tasks > 1:
                    # Not timed: everybody reads among as many.
                    runner.run(_run_tasks(subject.set, items[len(part) :], line.tasks))
        runner.run(subject.close())


def _part(items: Sequence[Item], share: float) -> Sequence[Item]:
    return items[: max(1, round(len(items) * share))]


def _run_raw(raw: Raw, line: Line, part: Sequence[Item]) -> None:
    keys = [key for key, _ in part]
    if line.verb == "set":
        raw.set_each(part)
    elif line.verb == "get":
        raw.get_each(keys)
    else:
        for start in range(0, len(keys), KEYS_AT_ONCE):
            raw.get_many(keys[start : start + KEYS_AT_ONCE])


async def _run_tasks(call: Callable[[Any], Coroutine[Any, Any, Document]], given: Sequence[Any], tasks: int) -> None:
    """So many tasks, each of which takes the next call as soon as its last one is answered."""
    rest = iter(given)

    async def one() -> None:
        for argument in rest:
            await call(argument)

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(one())
