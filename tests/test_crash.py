"""Hazard: processes are killed at any moment, and something acknowledged is lost, half applied, or the file is damaged.

Several processes write to one file: threads that share commits, an asyncio program, one that opens and closes the
store all the time, one that keeps house. In each of them threads remove what has expired and cut the -wal, all the
time, and are killed in the middle of that, too. Between the last statement of a transaction and its commit some time
may pass, and whoever waits for another's commit looks all the time whether it is said to be done: so that who was told
too early is found out. Each worker of each does steps that are told by their number alone, one after the other, and
says over a pipe which it has done, once the call has returned. They are killed; then each worker's entries have to be
those after the last step it has told of, or after the one behind it. The file goes on to the next round.

The long form plays 1,000 rounds, and prints what there was:

    pytest --hypothesis-profile=long -n 0 -s tests/test_crash.py
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from children import Child

from mycelia_storage import open_storage

if TYPE_CHECKING:
    from pathlib import Path

    State = dict[str, Any]
    Worker = tuple[int, str]  # the round, and its name

SHORT = {True: 13, False: 7}  # rounds, with a WAL and without
LONG = {True: 700, False: 300}
ROUNDS_A_FILE = 20
LONGEST_LIFE = 0.15  # seconds after each has told of its first step

# What all programs have in common: it forks them, so that a round does not begin with four interpreters starting.
COMMON = """
import asyncio, json, os, random, signal, threading, time, traceback
import apsw
from mycelia_storage import UniqueIndexError, open_async_storage, open_storage, upkeep
from mycelia_storage.engines import turns
from mycelia_storage.engines.sqlite import checkpoints, writer

upkeep.CLEAN_UP_EVERY = 0.005
checkpoints.WAL_LIMIT = 60_000

def told(worker, number):
    os.write(1, f"{worker} {number}\\n".encode())

def failed(*_):
    os.write(1, f"failed {traceback.format_exc()!r}\\n".encode())
    os._exit(1)

threading.excepthook = failed
writer.AHEAD_PAGES, writer.WAL_PAGES = 4, 12

# Who was told too early has its chance to say so before the commit.
turns._LONGEST_SLEEP = 0.0002

def committing():
    if random.random() < 0.2:
        time.sleep(random.uniform(0, 0.002))
    return False

apsw.connection_hooks.append(lambda connection: connection.set_commit_hook(committing))
"""

FORKS = """
print("ready", flush=True)
for line in sys.stdin:
    path, is_wal, round, order = json.loads(line)
    options = {"wal_mode": is_wal, "busy_timeout": 60}
    crew = {}
    for program in order:
        crew[program] = os.fork()
        if not crew[program]:
            try:
                PROGRAMS[program]()
            except BaseException:
                failed()
            signal.pause()
    os.write(1, f"crew {json.dumps(crew)}\\n".encode())
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in crew.values()]
    os.write(1, f"over {json.dumps(ends)}\\n".encode())
"""

STEPS = """
def step(store, worker, number):
    space = f"{round} {worker}"
    kind = number % 6
    if kind == 0:
        store.set("single", number, namespace=space, ttl=3600)
        store.set_many({f"{n}": "e" * 300 for n in range(20)}, namespace=f"expired {worker}", ttl=0.001)
    elif kind == 1:
        store.set_many({"left": number, "right": number}, namespace=space)
    elif kind == 2:
        store.increment("count", namespace=space)
    elif kind == 3:
        with store.transaction() as tx:
            tx.set("left", -number, namespace=space)
            try:
                with tx.transaction() as inner:
                    inner.clear(namespace=space)
                    inner.set("never", number, namespace=space)
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass
            tx.set("right", -number, namespace=space)
            tx.set("big", "b" * 5000, namespace=space)
    elif kind == 4:
        store.set("gone", number, namespace=space, durable=number % 4 == 0)
    else:
        store.delete("gone", namespace=space)

# It has written when it fails: whoever shares its commit runs once more, each with a commit of its own.
WRONG = {"p": {"n": 2}, "q": {"n": 1}}

def prepare(store):
    store.create_index("n", namespace="unique", unique=True, name="unique n")
    store.set("first", {"n": 1}, namespace="unique")

def fail(store):
    try:
        store.set_many(WRONG, namespace="unique")
    except UniqueIndexError:
        return
    raise AssertionError("two have the same value of a unique index")
"""

THREADS = """
def threads():
    store = open_storage(path, **options)
    prepare(store)
    def work(worker):
        number = 0
        while True:
            number += 1
            step(store, worker, number)
            told(worker, number)
            if number % 2:
                fail(store)
    for n in range(4):
        threading.Thread(target=work, args=(f"thread{n}",)).start()
    signal.pause()
"""

ASYNCIO = """
async def astep(store, worker, number):
    space = f"{round} {worker}"
    kind = number % 6
    if kind == 0:
        await store.set("single", number, namespace=space, ttl=3600)
        await store.set_many({f"{n}": "e" * 300 for n in range(20)}, namespace=f"expired {worker}", ttl=0.001)
    elif kind == 1:
        await store.set_many({"left": number, "right": number}, namespace=space)
    elif kind == 2:
        await store.increment("count", namespace=space)
    elif kind == 3:
        async with store.transaction() as tx:
            await tx.set("left", -number, namespace=space)
            try:
                async with tx.transaction() as inner:
                    await inner.clear(namespace=space)
                    await inner.set("never", number, namespace=space)
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass
            await tx.set("right", -number, namespace=space)
            await tx.set("big", "b" * 5000, namespace=space)
    elif kind == 4:
        await store.set("gone", number, namespace=space, durable=number % 4 == 0)
    else:
        await store.delete("gone", namespace=space)

async def afail(store):
    try:
        await store.set_many(WRONG, namespace="unique")
    except UniqueIndexError:
        return
    raise AssertionError("two have the same value of a unique index")

async def work(store, worker):
    number = 0
    while True:
        number += 1
        await astep(store, worker, number)
        told(worker, number)
        if number % 5 == 0:
            await afail(store)

async def main():
    async with open_async_storage(path, **options) as store:
        prepare(store.sync)
        await asyncio.gather(*(work(store, f"task{n}") for n in range(8)))

def tasks():
    asyncio.run(main())
"""

OTHERS = """
def opener():
    number = 0
    while True:
        with open_storage(path, **options) as store:
            for _ in range(2):
                number += 1
                step(store, "opener", number)
                told("opener", number)

def keeper():
    store = open_storage(path, **options)
    number = 0
    while True:
        for _ in range(3):
            number += 1
            step(store, "keeper", number)
            told("keeper", number)
        store.set("expires", 1, namespace="house", ttl=0.0001)
        store.optimize()
        store.create_index("n", namespace="house", name="house")
        store.set(f"{number % 9}", {"n": number}, namespace="house")
        store.drop_index("house")

PROGRAMS = {"thread": threads, "task": tasks, "opener": opener, "keeper": keeper}
"""

NURSERY = COMMON + STEPS + THREADS + ASYNCIO + OTHERS + FORKS
PROGRAMS = ("thread", "task", "opener", "keeper")
WORKERS = [*(f"thread{n}" for n in range(4)), *(f"task{n}" for n in range(8)), "opener", "keeper"]


def after(steps: int) -> State:
    """A worker's entries after so many steps."""
    state: State = {}
    for number in range(1, steps + 1):
        match number % 6:
            case 0:
                state["single"] = number
            case 1:
                state |= {"left": number, "right": number}
            case 2:
                state["count"] = state.get("count", 0) + 1
            case 3:
                state |= {"left": -number, "right": -number, "big": "b" * 5000}
            case 4:
                state["gone"] = number
            case _:
                state.pop("gone", None)
    return state


class Nursery:
    """The process that forks those that are killed."""

    def __init__(self) -> None:
        self.child = Child(NURSERY)
        assert self.child.line() == "ready", self.child.output()

    def play(self, path: Path, number: int, chance: random.Random, *, wal_mode: bool) -> Counter[str]:
        """Let them write, and kill each in its own time; gives how many steps each worker has told of."""
        order = chance.sample(PROGRAMS, len(PROGRAMS))
        self.child.tell(json.dumps([str(path), wal_mode, number, order]))
        told: Counter[str] = Counter()
        crew: dict[str, int] = {}
        waits = chance.random() < 0.75  # else some die while they open the store
        while not crew or (waits and not all(any(name.startswith(program) for name in told) for program in PROGRAMS)):
            word, _, rest = self.child.line().partition(" ")
            if word == "crew":
                crew = json.loads(rest)
            else:
                self._note(told, word, rest)
        self._kill(crew, chance)
        while True:
            word, _, rest = self.child.line().partition(" ")
            if word == "over":
                assert set(json.loads(rest)) == {-signal.SIGKILL}
                return told
            self._note(told, word, rest)

    @staticmethod
    def _kill(crew: dict[str, int], chance: random.Random) -> None:
        past = 0.0
        for moment, pid in sorted((chance.uniform(0, LONGEST_LIFE), pid) for pid in crew.values()):
            time.sleep(moment - past)
            past = moment
            with contextlib.suppress(ProcessLookupError):  # it has failed, and what it says of that is read next
                os.kill(pid, signal.SIGKILL)

    @staticmethod
    def _note(told: Counter[str], worker: str, number: str) -> None:
        assert worker not in {"", "failed"}, number
        assert int(number) == told[worker] + 1
        told[worker] = int(number)


def look(path: Path, told: dict[Worker, int], *, wal_mode: bool) -> dict[Worker, State]:
    """Open the file after a crash; gives what every worker of every round so far has left."""
    with open_storage(path, wal_mode=wal_mode, busy_timeout=1) as store:
        store.check()
        found = {}
        for worker in told:
            own = store.namespace(f"{worker[0]} {worker[1]}")
            found[worker] = own.get_many(own.list_keys())
        store.set("next", 1)
    return found


@pytest.mark.parametrize("wal_mode", [True, False], ids=["wal", "journal"])
def test_killed_processes_lose_nothing_they_acknowledged(
    tmp_path: Path, request: pytest.FixtureRequest, wal_mode: bool
) -> None:
    is_long = request.config.getoption("--hypothesis-profile") == "long"
    rounds = (LONG if is_long else SHORT)[wal_mode]
    chance = random.Random()
    acknowledged = unacknowledged = silent = 0
    told: dict[Worker, int] = {}  # of the rounds on the present file
    nursery = Nursery()
    try:
        for number in range(rounds):
            path = tmp_path / f"{number // ROUNDS_A_FILE}.db"
            if number % ROUNDS_A_FILE == 0:
                told.clear()
            last = nursery.play(path, number, chance, wal_mode=wal_mode)
            told |= {(number, name): last[name] for name in WORKERS}
            found = look(path, told, wal_mode=wal_mode)
            for worker, state in found.items():
                steps = told[worker]
                if state == after(steps + 1) != after(steps):
                    unacknowledged += 1
                    told[worker] = steps + 1  # it is on the disk, and has to stay there
                else:
                    assert state == after(steps), f"{worker} has told of {steps} steps, in round {number}"
            acknowledged += last.total()
            silent += sum(not last[name] for name in WORKERS)
    finally:
        nursery.child.kill()
    print(
        f"{'wal' if wal_mode else 'journal'}: {rounds} rounds, {rounds * len(PROGRAMS)} processes killed, "
        f"{acknowledged} steps acknowledged, {unacknowledged} more on the disk, "
        f"{silent} workers killed before their first"
    )
    assert acknowledged > 3 * rounds, "they were killed before they could begin"
