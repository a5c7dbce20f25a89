"""Hazard: the power fails, and a file is damaged, half a transaction is there, or what was acknowledged is gone.

Workloads run on a recorded disk (`recording.py`). For every position of the log, in several ways to tear what was on
its way, the disk is rebuilt and opened: it has to be whole, and its state the one after some step that had begun, and
where the settings promise it, none before the last that was acknowledged. Who waits for another's commit looks all the
time whether it is said to be done, and other threads run before each write to the disk: an acknowledgement that comes
too early stands in the log before what it speaks of.

The long form takes every position in more ways, a hundred points and more of every combination, and prints how many:

    pytest --hypothesis-profile=long -n 0 -s tests/test_power_loss.py
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
import tempfile
from collections import Counter
from contextlib import closing, nullcontext, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import apsw
import pytest
from recording import MODES, Disk, recording
from stepping import Held, Workers, line_up, result, until

from mycelia_storage import AsyncStorage, Storage, StorageError, UniqueIndexError, open_storage
from mycelia_storage.engines import turns
from mycelia_storage.engines.sqlite import checkpoints, writer
from mycelia_storage.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from recording import Log, Mode

    Rows = frozenset[tuple[Any, ...]]
    State = tuple[Rows, Rows, Rows]  # entries, namespaces, indexes
    Workload = Callable[["Play"], None]

LEAST_POINTS = 100  # of each of the hundred combinations and more of a setting and a workload, in the long form
FEW_PAGES = 4  # in a -wal: then it is written back

ROWS = "SELECT namespace, key, value, metadata FROM storage_entries"
NAMESPACES = "SELECT name FROM storage_namespaces WHERE name <> 'default'"
INDEXES = "SELECT name, namespace, fields, is_unique FROM storage_indexes"


class Setting(NamedTuple):
    """How a store is opened, whether its writes ask for more, and what that promises."""

    name: str
    options: dict[str, Any]
    durable: bool = False
    promises: bool = False  # that every acknowledged step survives


SETTINGS = (
    Setting("NORMAL", {"synchronous": "NORMAL"}),
    Setting("FULL", {"synchronous": "FULL"}, promises=True),
    Setting("EXTRA", {"synchronous": "EXTRA"}, promises=True),
    Setting("NORMAL, durable", {"synchronous": "NORMAL"}, durable=True),
    Setting("journal, NORMAL", {"synchronous": "NORMAL", "wal_mode": False}),
    # The deletion of the journal is the commit, and FULL does not synchronize the directory.
    Setting("journal, FULL", {"synchronous": "FULL", "wal_mode": False}),
    Setting("journal, EXTRA", {"synchronous": "EXTRA", "wal_mode": False}, promises=True),
    Setting("journal, NORMAL, durable", {"synchronous": "NORMAL", "wal_mode": False}, durable=True),
)
OFF = (
    Setting("OFF", {"synchronous": "OFF"}, promises=True),
    Setting("journal, OFF", {"synchronous": "OFF", "wal_mode": False}, promises=True),
)


class Play:
    """A workload in its course: it opens stores, takes steps, and notes the state after each."""

    def __init__(self, log: Log, path: str, setting: Setting) -> None:
        self._log = log
        self._path = path
        self._setting = setting
        self.clock = FakeClock()
        self.states = [state_of(path)]
        # For the verbs that take it.
        self.durable: dict[str, Any] = {"durable": True} if setting.durable else {}

    def open(self, **options: Any) -> Storage:
        return open_storage(self._path, clock=self.clock, **self._setting.options, **options)

    def step(self, call: Callable[[], object], *, durable: bool = True, always: bool = False) -> Any:
        """One change. `durable=False` says that the call could not ask for more than the setting gives.

        `always`: it asks for it by itself.
        """
        number = len(self.states)
        self._log.begin(number)
        found = call()
        self.states.append(state_of(self._path))
        if always:
            self._log.acknowledge(number)
        self._acknowledge(number, durable=durable)
        return found

    def steps_together(
        self,
        store: Storage,
        calls: list[Callable[[], object]],
        changes: list[dict[str, str]],
        failing: Callable[[], object] | None = None,
    ) -> None:
        """Several changes that share a commit, by threads that are told each for itself.

        Behind them comes one that fails, if there is one, so that each gets a commit of its own after all.
        """
        first = self._expect(changes)

        def told(number: int, call: Callable[[], object]) -> None:
            call()
            self._acknowledge(number, durable=True)

        with Workers() as workers, Held(store) as held:
            members = [lambda n=n, call=call: told(first + n, call) for n, call in enumerate(calls)]
            futures = line_up(store, workers, [*members, *([failing] if failing else [])])
            self._log.gives_way = True
            held.let_go()
            until(lambda: all(future.done() for future in futures), "the end of every write")
            for future in futures:
                result(future)
        self._log.gives_way = False
        assert state_of(self._path) == self.states[-1]

    def tasks_together(
        self, runner: asyncio.Runner, calls: list[Callable[[], Awaitable[object]]], changes: list[dict[str, str]]
    ) -> None:
        """The same by tasks of an event loop, which come in this order."""
        first = self._expect(changes)

        async def told(number: int, call: Callable[[], Awaitable[object]]) -> None:
            await call()
            self._acknowledge(number, durable=True)

        async def all_of_them() -> None:
            await asyncio.gather(*(told(first + n, call) for n, call in enumerate(calls)))

        self._log.gives_way = True
        runner.run(all_of_them())
        self._log.gives_way = False
        assert state_of(self._path) == self.states[-1]

    def _expect(self, changes: list[dict[str, str]]) -> int:
        """The number of the first of several steps to come, each of which sets some keys."""
        first = len(self.states)
        rows, namespaces, made = self.states[-1]
        for change in changes:
            kept = {row for row in rows if row[1] not in change}
            rows = frozenset(kept | {("default", key, value, None) for key, value in change.items()})
            self.states.append((rows, namespaces, made))
        self._log.begin(len(self.states) - 1)
        return first

    def _acknowledge(self, number: int, *, durable: bool) -> None:
        if self._setting.promises or (self._setting.durable and durable):
            self._log.acknowledge(number)


def state_of(path: str) -> State:
    """What a file holds, whatever its version, without the library. Nothing where it has no tables."""
    if not os.path.exists(path):
        return frozenset(), frozenset(), frozenset()
    with closing(apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE, vfs="unix")) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
        rows = connection.execute(ROWS).fetchall() if "storage_entries" in tables else []
        names = connection.execute(NAMESPACES).fetchall() if "storage_namespaces" in tables else []
        made = connection.execute(INDEXES).fetchall() if "storage_indexes" in tables else []
    return frozenset(rows), frozenset(names), frozenset(made)


# ---- workloads


class UndoError(Exception):
    """Ends a transaction that is not to be."""


def sets(play: Play) -> None:
    with play.open() as store:
        for number in range(4):
            play.step(lambda: store.set("a", number, **play.durable))  # noqa: B023 - called at once
            play.step(lambda: store.set(f"new {number}", "x" * 300, **play.durable))  # noqa: B023
        play.step(lambda: store.delete("new 1", **play.durable))
        play.step(lambda: store.increment("a", **play.durable))
        play.step(lambda: store.set("a", "y" * 9000, metadata={"m": 1}, **play.durable))


def batches(play: Play) -> None:
    with play.open() as store:
        for number in range(3):
            rows = {f"{n:03}": [number, "z" * 200] for n in range(60)}
            play.step(lambda: store.set_many(rows, namespace=f"batch {number % 2}", **play.durable))  # noqa: B023
        play.step(lambda: store.delete_many([f"{n:03}" for n in range(0, 60, 2)], namespace="batch 0", **play.durable))
        play.step(lambda: store.clear(namespace="batch 1"), durable=False)
        play.step(lambda: store.set("last", 1, **play.durable))


def shared_commits(play: Play) -> None:
    def fail() -> None:
        with pytest.raises(UniqueIndexError):  # after it has written
            store.set_many({"p": {"n": 2}, "q": {"n": 1}}, namespace="unique")

    with play.open() as store:
        play.step(lambda: store.create_index("n", unique=True, namespace="unique"), durable=False)
        play.step(lambda: store.set("first", {"n": 1}, namespace="unique", **play.durable))
        for number in range(4):
            changes = [{f"{n}:left": str(number), f"{n}:right": str(number)} for n in range(5)]
            calls: list[Callable[[], object]] = [
                lambda n=n: store.set_many(  # type: ignore[misc]
                    {f"{n}:left": number, f"{n}:right": number},  # noqa: B023 - called at once
                    # One is enough for all.
                    **(play.durable if n == number else {}),  # noqa: B023
                )
                for n in range(5)
            ]
            play.steps_together(store, calls, changes, fail if number % 2 else None)


def transactions(play: Play) -> None:
    def change(store: Storage, number: int) -> None:
        with store.transaction(**play.durable) as tx:
            tx.set("left", number)
            tx.set_many({f"{n}": ["t" * 150, number] for n in range(40)})
            with suppress(UndoError), tx.transaction() as inner:
                inner.set("undone", number)
                inner.clear()
                raise UndoError
            with tx.transaction() as inner:
                inner.delete(f"{number}")
                inner.set("right", number)

    def leave(store: Storage) -> None:
        with suppress(UndoError), store.transaction() as tx:
            tx.clear()
            raise UndoError

    with play.open() as store:
        for number in range(3):
            play.step(lambda: change(store, number))  # noqa: B023 - called at once
            play.step(lambda: leave(store))
            play.step(lambda: store.run_transaction(lambda tx: tx.increment("n"), **play.durable))


def indexes(play: Play) -> None:
    people = {f"{n:03}": {"age": n % 7, "name": f"{n}"} for n in range(80)}
    with play.open() as store:
        play.step(lambda: store.set_many(people, namespace="people", **play.durable))
        play.step(lambda: store.create_index("age", namespace="people"), durable=False)
        play.step(lambda: store.create_index("name", namespace="people", unique=True, name="names"), durable=False)
        play.step(lambda: store.set("080", {"age": 1, "name": "80"}, namespace="people", **play.durable))
        play.step(lambda: store.drop_index("names"), durable=False)
        play.step(lambda: store.delete("003", namespace="people", **play.durable))


def expiry(play: Play) -> None:
    with play.open() as store:
        fleeting = {f"{n:03}": "e" * 200 for n in range(60)}
        play.step(lambda: store.set_many(fleeting, ttl=60, **play.durable))
        play.step(lambda: store.set("stays", 1, **play.durable))
        play.clock.advance(61)
        play.step(store.optimize, durable=False)
        play.step(lambda: store.set("000", 2, ttl=1, **play.durable))
        play.clock.advance(2)
        play.step(lambda: store.set("000", 3, **play.durable))


def clean_up(play: Play) -> None:
    """Step by step, as the thread does it, between other writes."""
    with play.open() as store:
        for number in range(2):
            fleeting = {f"{number} {n:03}": "e" * 200 for n in range(60)}
            play.step(lambda: store.set_many(fleeting, ttl=60, **play.durable))  # noqa: B023 - called at once
        play.step(lambda: store.set("stays", 1, ttl=3600, **play.durable))
        play.clock.advance(61)
        removed: list[int] = []  # a step is smaller where the one before took long, as on a busy machine
        while not removed or removed[-1]:
            removed.append(play.step(lambda: store._home.upkeep.remove_some(None)[0], durable=False))
            play.step(lambda: store.increment("between", **play.durable))
        assert (sum(removed), len(removed) > 2) == (120, True)


def tasks(play: Play) -> None:
    async def change() -> None:
        async with store.transaction(**play.durable) as tx:
            await tx.set("left", 1)
            await tx.set_many({f"{n}": ["t" * 150] for n in range(30)})
            await tx.delete("3")

    with asyncio.Runner() as runner:
        store = AsyncStorage(play.open())
        play.step(lambda: runner.run(store.set("warm", 0, **play.durable)))
        for number in range(3):
            changes = [{f"{n}:task": str(number)} for n in range(12)]
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda n=n: store.set(f"{n}:task", number, **play.durable)  # type: ignore[misc]  # noqa: B023
                for n in range(12)
            ]
            play.tasks_together(runner, calls, changes)
        play.step(lambda: runner.run(change()))
        play.step(lambda: runner.run(store.delete("0:task", **play.durable)))
        runner.run(store.close())


def several_connections(play: Play) -> None:
    """Two stores on the file; each keeps the other from writing back, until a thread waits for it and cuts the -wal."""
    is_wal = play._setting.options.get("wal_mode", True)
    usual, checkpoints.WAL_LIMIT = checkpoints.WAL_LIMIT, 30_000
    try:
        with play.open() as one, play.open() as other:
            for number in range(3):
                # Without WAL a read would keep writers waiting.
                with other.transaction(read_only=True) if is_wal else nullcontext():
                    for n in range(4):
                        play.step(lambda: one.set(f"{n}", [number] * 1000, **play.durable))  # noqa: B023
                play.step(lambda: other.set("other", number, **play.durable))  # noqa: B023
                play.step(lambda: other.set_many({f"{n}": number for n in range(30)}, **play.durable))  # noqa: B023
    finally:
        checkpoints.WAL_LIMIT = usual


def written_back_meanwhile(play: Play) -> None:
    """By a thread, while the next ones write, and the rest by who commits."""
    usual = writer.AHEAD_PAGES, writer.WAL_PAGES
    writer.AHEAD_PAGES, writer.WAL_PAGES = 3, 12
    try:
        with play.open() as store:
            for number in range(12):
                play.step(lambda: store.set(f"{number % 5}", [number] * 1000, **play.durable))  # noqa: B023
                if number % 4 == 3:
                    until(lambda: not store._engine.checkpoints.is_ahead, "the end of the thread's work")  # type: ignore[attr-defined]
    finally:
        writer.AHEAD_PAGES, writer.WAL_PAGES = usual


def restores(play: Play) -> None:
    """It is durable whatever the setting. Every other writer's state before and after it stays whole, too."""
    with play.open() as store:
        play.step(lambda: store.set("before", 1, **play.durable))
        source = os.path.join(os.path.dirname(play._path), "good")
        play.step(lambda: store.restore(source), always=True)
        play.step(lambda: store.set("after", 1, **play.durable))
        play.step(lambda: store.restore(source), always=True)


def write_back(play: Play) -> None:
    for number in range(3):
        with play.open() as store:
            for n in range(6):
                play.step(lambda: store.set(f"{n}", [number] * 500, **play.durable))  # noqa: B023 - called at once
            play.step(store.optimize, durable=False)
            play.step(lambda: store.set("after", number, **play.durable))  # noqa: B023


def up(play: Play) -> None:
    play.step(lambda: play.open().close(), durable=False)
    with play.open() as store:
        play.step(lambda: store.set("later", 1, **play.durable))


def down(play: Play) -> None:
    with play.open() as store:
        play.step(lambda: store.set("before", 1, **play.durable))
        play.step(lambda: store.migrate(to=1), durable=False)
    up(play)


def other_journal(play: Play) -> None:
    """The file goes from one journal mode to the other and back."""
    setting = play._setting
    for wal_mode in (True, False, True):
        # Without WAL less is promised.
        options = {**setting.options, "wal_mode": wal_mode}
        is_promised = setting.durable or options["synchronous"] == "EXTRA"
        play._setting = setting._replace(options=options, promises=is_promised and setting.promises)
        with play.open() as store:
            play.step(lambda: store.set("journal", wal_mode, **play.durable))  # noqa: B023 - called at once
            play.step(lambda: store.set_many({f"{n}": wal_mode for n in range(50)}, **play.durable))  # noqa: B023
    play._setting = setting


def nothing_before(path: str) -> None:
    """The workload makes the file."""


def some_before(path: str) -> None:
    with open_storage(path, clock=FakeClock()) as store:
        store.set_many({f"old {n}": "o" * 100 for n in range(30)})
        store.set_many({f"{n:03}": "p" * 100 for n in range(30)}, namespace="older")


def version_1_before(path: str) -> None:
    some_before(path)
    with open_storage(path, clock=FakeClock()) as store:
        store.set_many({f"old {n}": "o" * 100 for n in range(30, 90)}, metadata={"m": 1})
        store.migrate(to=1)


def backup_before(path: str) -> None:
    """A store, and beside it a backup of another one, called "good"."""
    some_before(path)
    with tempfile.TemporaryDirectory() as directory:
        with open_storage(os.path.join(directory, "other.db"), clock=FakeClock()) as store:
            store.set_many({f"restored {n}": "r" * 200 for n in range(40)}, namespace="restored")
            store.create_index("n", namespace="restored")
            store.backup(os.path.join(directory, "good"))
        shutil.copyfile(os.path.join(directory, "good"), os.path.join(os.path.dirname(path), "good"))


WORKLOADS: tuple[tuple[Workload, Callable[[str], None]], ...] = (
    (sets, nothing_before),
    (batches, some_before),
    (shared_commits, some_before),
    (transactions, some_before),
    (indexes, some_before),
    (expiry, some_before),
    (write_back, nothing_before),
    (clean_up, some_before),
    (tasks, some_before),
    (several_connections, some_before),
    (written_back_meanwhile, some_before),
    (restores, backup_before),
    (up, version_1_before),
    (down, some_before),
    (other_journal, some_before),
)


# ---- the verdict


class Course(NamedTuple):
    """What a workload has done to the disk, and the state after each of its steps."""

    log: Log
    states: list[State]
    options: dict[str, Any]


@pytest.fixture
def scratch() -> Iterator[str]:
    """In memory where there is such a directory: thousands of disks are written here."""
    directory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=directory) as name:
        yield os.path.realpath(name)


@pytest.fixture(autouse=True)
def written_back_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that checkpoints fall into every workload; and whoever waits looks all the time."""
    monkeypatch.setattr(writer, "WAL_PAGES", FEW_PAGES)
    monkeypatch.setattr(turns, "_LONGEST_SLEEP", 0.0001)


def record(scratch: str, workload: Workload, prepare: Callable[[str], None], setting: Setting) -> Course:
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        path = os.path.join(directory, "store.db")
        prepare(path)
        with recording(directory) as log:
            play = Play(log, path, setting)
            workload(play)
        assert any(event.kind == "write" for event in log.events), "the library has opened its file past the recording"
    return Course(log, play.states, setting.options)


def cuts(course: Course, modes: tuple[Mode, ...], stride: int) -> Iterator[tuple[str, dict[str, bytes], int, int]]:
    """What may be left at every `stride`-th position, with the first and the last step whose state it may show.

    A position lies before something that changes the disk: after everything that was acknowledged until then.
    """
    disk, least, last, position = Disk(course.log.before), 0, 0, 0
    for number, event in enumerate((*course.log.events, None)):
        if event is not None and event.kind == "begin":
            last = event.offset
        elif event is not None and event.kind == "acknowledge":
            least = max(least, event.offset)
        else:
            position += 1
            if position % stride == 0 or event is None:
                for way, mode in enumerate(modes):
                    seed = f"{number} {way}"
                    where = f"before event {number} ({event and event.kind} of {event and event.name}), {mode}"
                    yield where, disk.after_a_cut(mode, random.Random(seed)), least, last
            if event is not None:
                disk.do(event)


def verdict(path: str, course: Course, left: dict[str, bytes], least: int, last: int) -> str:
    """ "" for a disk that is as promised, or what is wrong: "damaged", "half" or "lost"."""
    for end in ("", "-wal", "-journal", "-shm"):
        if os.path.exists(path + end):
            os.unlink(path + end)
    for name, content in left.items():
        with open(os.path.join(os.path.dirname(path), name), "wb") as file:
            file.write(content)
    options = {**course.options, "synchronous": "OFF"}  # the rebuilt disk needs no syncs
    try:
        with open_storage(path, clock=FakeClock(), **options) as store:
            store.check()
        found = state_of(path)
    except (StorageError, apsw.Error) as error:
        return f"damaged: {error!r}"
    if found in course.states[least : last + 1]:
        return ""
    return "lost" if found in course.states else "half"


def judge(scratch: str, course: Course, modes: tuple[Mode, ...], stride: int) -> tuple[int, dict[str, str]]:
    """How many points there were, and what was wrong at which."""
    points, wrong = 0, {}
    seen: dict[tuple[Any, ...], str] = {}
    path = os.path.join(scratch, "store.db")
    for where, left, least, last in cuts(course, modes, stride):
        points += 1
        same = (tuple(sorted(left.items())), least, last)
        if same not in seen:
            seen[same] = verdict(path, course, left, least, last)
        if seen[same]:
            wrong[where] = seen[same]
    return points, wrong


def kinds_of(wrong: dict[str, str]) -> Counter[str]:
    return Counter(text.partition(":")[0] for text in wrong.values())


@pytest.fixture(scope="module")
def is_long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--hypothesis-profile") == "long")


# ---- tests


@pytest.mark.parametrize(("workload", "prepare"), WORKLOADS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_power_cut_leaves_a_whole_file_and_what_was_promised(
    scratch: str, setting: Setting, workload: Workload, prepare: Callable[[str], None], is_long: bool
) -> None:
    modes: tuple[Mode, ...] = (*MODES, "subset", "torn") if is_long else MODES
    course = record(scratch, workload, prepare, setting)
    points, wrong = judge(scratch, course, modes, 1 if is_long else 10)
    assert not wrong, f"{kinds_of(wrong)} of {points}; first: {next(iter(wrong.items()))}"
    print(f"{setting.name}, {workload.__name__}: {points} points, {course.log.acknowledged} promises, nothing wrong")
    assert points >= (LEAST_POINTS if is_long else 10)


def backup_verdict(directory: str, course: Course, left: dict[str, bytes], least: int, last: int) -> str:
    """ "" where the backup is as promised; its states are those of the course."""
    for name, content in left.items():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(content)
    path = os.path.join(directory, "backup")
    if "backup" in left:
        if any(f"backup{end}" in left for end in ("-wal", "-journal")):
            return "half: something stands beside it"
        try:
            with open_storage(path, clock=FakeClock(), read_only=True) as store:
                store.check()
        except (StorageError, apsw.Error) as error:
            return f"damaged: {error!r}"
    found = state_of(path)
    if found in course.states[least : last + 1]:
        return ""
    return "lost" if found in course.states else "half"


@pytest.mark.parametrize("before", ["no backup", "another backup"])
@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[4]], ids=lambda setting: setting.name)
def test_a_power_cut_leaves_a_whole_backup_or_none(scratch: str, setting: Setting, before: str, is_long: bool) -> None:
    """It has its name when it is complete and on the disk; one that was there stays until then."""
    has_another = before == "another backup"
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        path, target = os.path.join(directory, "store.db"), os.path.join(directory, "backup")
        (backup_before if has_another else some_before)(path)
        if has_another:
            os.rename(os.path.join(directory, "good"), target)
        states = [state_of(target)]
        with recording(directory) as log, open_storage(path, clock=FakeClock(), **setting.options) as store:
            for number in range(3):
                store.set_many({f"{n}": [number] * 150 for n in range(30)})
                log.begin(number + 1)
                store.backup(target, overwrite=has_another or number > 0)
                log.acknowledge(number + 1)
                states.append(state_of(target))
    assert len(set(states)) == 4
    course = Course(log, states, {})
    modes: tuple[Mode, ...] = (*MODES, "subset", "torn") if is_long else MODES
    points, wrong = 0, {}
    for where, left, least, last in cuts(course, modes, 1 if is_long else 10):
        points += 1
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            found = backup_verdict(directory, course, left, least, last)
        if found:
            wrong[where] = found
    assert not wrong, f"{kinds_of(wrong)} of {points}; first: {next(iter(wrong.items()))}"
    print(f"{setting.name}, backups, {before}: {points} points, nothing wrong")
    assert points >= (LEAST_POINTS if is_long else 10)


@pytest.mark.parametrize("setting", OFF, ids=lambda setting: setting.name)
def test_without_synchronizing_the_same_test_finds_damage_and_loss(
    scratch: str, setting: Setting, is_long: bool
) -> None:
    """The control: a test that passes here would prove nothing."""
    found: Counter[str] = Counter()
    total = 0
    for workload, prepare in WORKLOADS[: 7 if is_long else 4]:
        course = record(scratch, workload, prepare, setting)
        points, wrong = judge(scratch, course, MODES, 1 if is_long else 10)
        total += points
        found += kinds_of(wrong)
        assert wrong, workload.__name__
    print(f"{setting.name}: {total} points, {dict(found)}")
    assert found["damaged"] > 0
    assert found["lost"] > 0


@pytest.mark.parametrize("name", ["NORMAL", "journal, FULL"])
def test_what_is_not_promised_is_really_lost(scratch: str, name: str, is_long: bool) -> None:
    """Acknowledged steps may be gone, and are: `durable=True` is not what one has anyway. Nothing else is wrong."""
    (setting,) = (setting._replace(promises=True) for setting in SETTINGS if setting.name == name)
    points, wrong = judge(scratch, record(scratch, sets, nothing_before, setting), MODES, 1 if is_long else 5)
    print(f"{name}: {points} points, {dict(kinds_of(wrong))}")
    assert set(kinds_of(wrong)) == {"lost"}


def test_the_same_seed_leaves_the_same_disk(scratch: str) -> None:
    """What a failure names can be looked at again."""
    course = record(scratch, transactions, some_before, SETTINGS[0])
    once, again = (list(itertools.islice(cuts(course, MODES, 3), 200)) for _ in range(2))
    assert once == again
    assert len({tuple(sorted(left.items())) for _, left, _, _ in once}) > 50
