"""Hazard: a program ends without closing its stores: it hangs, crashes, says things on stderr, or loses what it wrote.

The long form does thirty times as much: `pytest --hypothesis-profile=long tests/test_exit.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import children
import pytest
from children import Child, run

from mycelia_storage import open_storage

if TYPE_CHECKING:
    from pathlib import Path

PRELUDE = """
import atexit, os, sys, threading
from mycelia_storage import open_storage
path = sys.argv[1]
store = open_storage(path, busy_timeout=600)
store.set("n", 1)
def daemon(work, *arguments):
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread
"""

# Each leaves the program with something open. Whoever waited for busy_timeout would wait for ten minutes.
ENDS: dict[str, str] = {
    "a write has just returned": "store.set('n', 0); store.increment('n')",
    "readers are open": "assert store.get('n') == 1 and store.count() == 1 and len(store.query()) == 1",
    "a transaction in a variable": "tx = store.transaction(); tx.__enter__(); tx.set('n', 2)",
    "a read-only transaction in a variable": "tx = store.transaction(read_only=True); tx.__enter__(); tx.get('n')",
    "a transaction in a generator": """
def steps():
    with store.transaction() as tx:
        tx.set('n', 2)
        yield
steps = steps()
next(steps)""",
    "an exit inside a transaction": """
with store.transaction() as tx:
    tx.set('n', 2)
    sys.exit(0)""",
    "a transaction in a cycle": """
class Holder: pass
holder = Holder()
holder.self, holder.tx = holder, store.transaction()
holder.tx.__enter__().set('n', 2)""",
    "scans": """
store.set_many({'a': 1, 'b': 2})
scans = [store.scan(batch_size=1) for _ in range(16)]
[next(scan) for scan in scans]""",
    "a transaction with a time limit": "tx = store.transaction(max_duration=3000); tx.__enter__(); tx.set('n', 2)",
    "a transaction that a daemon thread holds": """
holds = threading.Event()
def hold():
    with store.transaction() as tx:
        tx.set('n', 2)
        holds.set()
        threading.Event().wait()
daemon(hold)
holds.wait()""",
    "daemon threads that wait for the lock": """
tx = store.transaction()
tx.__enter__()
tx.set('n', 2)
begun = [threading.Event() for _ in range(8)]
def wait(event):
    event.set()
    store.set('n', 3)
for event in begun:
    daemon(wait, event)
for event in begun:
    event.wait()""",
    "daemon threads that read": """
store.set_many({str(number): number for number in range(2000)}, namespace='other')
begun = threading.Barrier(5)
def read():
    store.get('n')
    begun.wait()
    while True:
        store.count({'field': 'a', 'operator': 'eq', 'value': 1}, namespace='other')
        for entry in store.scan(namespace='other'): pass
for _ in range(4):
    daemon(read)
begun.wait()""",
    "a program that uses the store at its very end": "atexit.register(lambda: store.set('late', store.get('n')))",
    "a pool of threads": """
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(4)
futures = [pool.submit(store.increment, 'n', 0) for _ in range(100)]""",
    "another store in memory": """
other = open_storage('memory:')
other.set_many({'a': 1, 'b': 2})
scan = other.scan(batch_size=1)
next(scan)
tx = other.transaction()
tx.__enter__().set('n', 1)""",
    "a store that was closed inside a transaction": """
tx = store.transaction()
tx.__enter__().set('n', 2)
scan = store.scan
store.close()""",
}


@pytest.fixture
def times(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many times the short form."""
    if request.config.getoption("--hypothesis-profile") != "long":
        return 1
    monkeypatch.setattr(children, "PATIENCE_SECONDS", 1800)
    return 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.mark.parametrize("end", ENDS)
def test_a_program_that_forgets_to_close_ends_quietly(path: Path, end: str) -> None:
    assert run(PRELUDE + ENDS[end], path) == ""
    with open_storage(path, busy_timeout=1) as store:
        assert store.get("n") == 1, "what was not committed is not there, and what was is"
        store.set("n", 2)
        store.check()


@pytest.mark.parametrize("wal", [True, False])
def test_what_was_acknowledged_before_the_end_is_there(path: Path, times: int, wal: bool) -> None:
    for round_ in range(times):
        file = path.with_name(f"{round_}.db")
        output = run(
            """
import os, threading
from mycelia_storage import open_storage
store = open_storage(sys.argv[1], wal_mode=sys.argv[2] == "True", busy_timeout=600)
enough = threading.Semaphore(0)
def write(thread):
    number = 0
    while True:
        number += 1
        if number % 5:
            store.set(f"{thread}:{number}", number)
            store.increment(f"count:{thread}")
        else:
            with store.transaction() as tx:
                tx.set(f"{thread}:{number}", number)
                tx.increment(f"count:{thread}")
        os.write(1, f"{thread}:{number}\\n".encode())
        enough.release()
for thread in range(6):
    threading.Thread(target=write, args=(thread,), daemon=True).start()
for _ in range(60):
    enough.acquire()
""",
            file,
            wal,
        )
        told = output.splitlines()
        assert len(told) >= 60
        with open_storage(file, wal_mode=wal) as store:
            assert [key for key in told if not store.has(key)] == []
            for thread in range(6):
                count = sum(key.startswith(f"{thread}:") for key in told)
                assert count <= store.get(f"count:{thread}", 0) <= count + 1
            store.check()


def test_a_program_that_fails_says_why_and_nothing_else(path: Path) -> None:
    with Child(
        PRELUDE + "tx = store.transaction()\ntx.__enter__().set('n', 2)\nraise SystemExit('why')", path
    ) as child:
        output, errors = child.process.communicate(timeout=40)
    assert (child.process.returncode, output, errors) == (1, b"", b"why\n")
    with open_storage(path) as store:
        assert store.get("n") == 1


def test_the_end_waits_for_threads_that_are_no_daemons_and_their_writes(path: Path) -> None:
    program = """
main = threading.main_thread()
def work():
    main.join()
    for _ in range(100):
        store.increment("n")
    with store.transaction() as tx:
        tx.increment("n")
for _ in range(4):
    threading.Thread(target=work).start()
"""
    run(PRELUDE + program, path)
    with open_storage(path) as store:
        assert store.get("n") == 1 + 4 * 101


# Its object is destroyed when the interpreter takes its modules apart.
DESTROYED = """
from mycelia_storage import open_storage
class Keeper:
    def __init__(self):
        self.store = open_storage(sys.argv[1])
        if sys.argv[3] == "busy":
            self.write()
    def write(self):
        for number in range(12):
            self.store.set(f"{number}", "w" * 500_000)
    def __del__(self, is_to_close=sys.argv[2] == "closed"):
        self.write()
        if is_to_close:
            self.store.close()
        print("written")
keeper = Keeper()
"""


@pytest.mark.parametrize("end", ["closed", "open"])
@pytest.mark.parametrize("before", ["busy", "idle"])
def test_who_writes_much_in_a_destructor_at_the_very_end_does_not_hang(tmp_path: Path, before: str, end: str) -> None:
    """Threads neither begin nor end any more then, and what they do is done without them."""
    assert run(DESTROYED, tmp_path / "store.db", end, before) == "written"
    with open_storage(tmp_path / "store.db") as store:
        assert store.count() == 12
