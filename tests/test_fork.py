"""Hazard: a process forks while stores are open, and the child writes with locks that only its parent has.

Each test runs a program of its own, because a process that runs tests has threads of others. `parent` and `child` in
the programs say who does what. The long form does twenty times as much:
`pytest --hypothesis-profile=long tests/test_fork.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import children
import pytest
from children import PATIENCE_SECONDS, run

from mycelia_storage import Storage, open_storage

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="open files are listed on Linux only")

# `hooks` run after the library's own hook before a fork (they run in reverse order), `early_hooks` before it.
PRELUDE = """
import os, signal, sys, threading, traceback
hooks, early_hooks = [], []
os.register_at_fork(before=lambda: [hooks.pop()() for _ in hooks.copy()])
from mycelia_storage import StorageClosedError, StorageError, TransactionError, open_storage
os.register_at_fork(before=lambda: [early_hooks.pop()() for _ in early_hooks.copy()])
path = sys.argv[1]

def start(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread

def fork(work):
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(20)  # a child that hangs fails
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)

def wait(*pids):
    for pid in pids:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == 0, f"a child ended with {code}"

def refused(*calls):
    for number, call in enumerate(calls):
        try:
            call()
        except StorageClosedError as error:
            assert "forked" in str(error), f"{number}: {error}"
        else:
            raise AssertionError(f"call {number} was not refused")

def increment():
    store.increment("n")
"""

EVERY_VERB = """
verbs = {
    "add": lambda: store.add("a", 1),
    "add_many": lambda: store.add_many({"a": 1}),
    "backup": lambda: store.backup(path + ".copy"),
    "check": lambda: store.check(),
    "clear": lambda: store.clear(),
    "clear_all": lambda: store.clear_all(),
    "count": lambda: store.count(),
    "create_index": lambda: store.create_index("a"),
    "create_namespace": lambda: store.create_namespace("other"),
    "delete": lambda: store.delete("a"),
    "delete_many": lambda: store.delete_many(["a"]),
    "delete_namespace": lambda: store.delete_namespace("other"),
    "delete_where": lambda: store.delete_where({"field": "a", "operator": "eq", "value": 1}),
    "drop_index": lambda: store.drop_index("a"),
    "explain": lambda: store.explain(),
    "get": lambda: store.get("a"),
    "get_entries": lambda: store.get_entries(["a"]),
    "get_entry": lambda: store.get_entry("a", None),
    "get_many": lambda: store.get_many(["a"]),
    "get_metadata": lambda: store.get_metadata("a"),
    "get_status": lambda: store.get_status(),
    "has": lambda: store.has("a"),
    "increment": lambda: store.increment("a"),
    "list_indexes": lambda: store.list_indexes(),
    "list_keys": lambda: store.list_keys(),
    "list_namespaces": lambda: store.list_namespaces(),
    "load": lambda: store.load([("a", 1)]),
    "merge": lambda: store.merge("a", {}),
    "migrate": lambda: store.migrate(),
    "modify": lambda: store.modify("a", str, default=1),
    "namespace_info": lambda: store.namespace_info("default"),
    "optimize": lambda: store.optimize(),
    "pages": lambda: next(store.pages()),
    "query": lambda: store.query(),
    "restore": lambda: store.restore(path + ".copy"),
    "run_transaction": lambda: store.run_transaction(lambda tx: None),
    "scan": lambda: next(store.scan()),
    "set": lambda: store.set("a", 1),
    "set_many": lambda: store.set_many({"a": 1}),
    "set_metadata": lambda: store.set_metadata("a", {}),
    "take": lambda: store.take("a", None),
    "touch": lambda: store.touch("a", ttl=None),
    "transaction": lambda: store.transaction().__enter__(),
}
public = {name for name in dir(store) if not name.startswith("_")}
named = public & set(verbs)
left = public - set(verbs) - {"close", "namespace"}
assert not left, f"not looked at: {left}"
verbs = {name: verbs[name] for name in named}

def is_refused():
    refused(*verbs.values(), lambda: store.transaction(read_only=True).__enter__())
    refused(lambda: store.namespace("default")["a"], lambda: len(store.namespace("default")))
    refused(lambda: open_storage(path), lambda: open_storage(path, read_only=True))
    refused(lambda: open_storage(os.path.join(os.path.dirname(path), ".", os.path.basename(path))))
    os.symlink(path, path + ".link")
    refused(lambda: open_storage(path + ".link"))
    os.unlink(path + ".link")
    store.close()
    store.close()
    refused(lambda: open_storage(path))
    with open_storage(path + ".other") as other:  # what was not inherited may be used
        other.increment("n")
"""


@pytest.fixture
def times(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many times the short form."""
    if request.config.getoption("--hypothesis-profile") != "long":
        return 1
    monkeypatch.setattr(children, "PATIENCE_SECONDS", 1800)
    return 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def forking(program: str, *arguments: object) -> str:
    return run(PRELUDE + program, *arguments)


def counted(path: Path, *, wal: bool = True) -> int:
    """The counter `n`, in a file that is whole."""
    with open_storage(path, wal_mode=wal) as store:
        store.check()
        found: int = store.get("n", 0)
        return found


# ---- open connections


@pytest.mark.parametrize("wal", [True, False])
def test_parent_and_children_write_on_and_nothing_is_lost(path: Path, times: int, wal: bool) -> None:
    forking(
        """
store = open_storage(path, wal_mode=sys.argv[2] == "True", busy_timeout=60)
def many():
    for _ in range(20):
        store.increment("n")
        assert store.get("n") > 0
def again():
    with open_storage(path, wal_mode=sys.argv[2] == "True", busy_timeout=60) as other:
        for _ in range(20):
            other.increment("n")
            assert store.get("n") <= other.get("n")
for _ in range(int(sys.argv[3])):
    children = [fork(work) for work in (many, many, again, again)]
    many()
    wait(*children)
store.close()
""",
        path,
        wal,
        2 * times,
    )
    assert counted(path, wal=wal) == 2 * times * 5 * 20


@on_linux
def test_a_child_inherits_no_open_connection(path: Path) -> None:
    forking(
        """
store = open_storage(path)
increment()
with store.scan() as scan, store.transaction(read_only=True) as tx:
    next(scan), tx.get("n")
store.close()
store = open_storage(path)
store.get("n")
increment()
def look():
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    assert not [link for link in links if os.path.islink(link) and path in os.readlink(link)]
    increment()
wait(fork(look))
increment()
""",
        path,
    )
    assert counted(path) == 4


def test_children_of_children_write_too(path: Path) -> None:
    forking(
        """
store = open_storage(path)
def descend(depth):
    increment()
    if depth:
        children = [fork(lambda: descend(depth - 1)) for _ in range(2)]
        increment()
        wait(*children)
descend(3)
""",
        path,
    )
    assert counted(path) == 15 + 7


def test_a_store_that_was_closed_before_is_no_matter(path: Path) -> None:
    forking(
        """
store = open_storage(path)
with store.transaction() as tx:
    tx.set("n", 1)
store.close()
def opens():
    with open_storage(path) as other:
        other.increment("n")
    try:
        store.get("n")
    except StorageClosedError as error:
        assert "forked" not in str(error)
wait(fork(opens), fork(opens))
opens()
""",
        path,
    )
    assert counted(path) == 4


def test_a_child_may_end_as_programs_do(path: Path) -> None:
    forking(
        """
store = open_storage(path)
increment()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    increment()
    scan = store.scan()
    next(scan)
    sys.exit(0)
wait(pid)
increment()
""",
        path,
    )
    assert counted(path) == 3


def test_reading_and_writing_threads_go_on_around_forks(path: Path, times: int) -> None:
    forking(
        """
store = open_storage(path, busy_timeout=60)
is_over = threading.Event()
written = []
def write():
    count = 0
    while not is_over.is_set():
        if count % 3:
            increment()
        else:
            with store.transaction() as tx:
                tx.set("n", tx.get("n", 0) + 1)
        count += 1
    written.append(count)
def read():
    while not is_over.is_set():
        store.get("n")
        store.count()
        for entry in store.scan():
            pass
        with store.transaction(read_only=True) as tx:
            tx.get("n")
threads = [start(write) for _ in range(3)] + [start(read) for _ in range(2)]
def child():
    for _ in range(5):
        increment()
    assert len([*store.scan()]) == store.count() == 1
try:
    for _ in range(int(sys.argv[2])):
        wait(fork(child), fork(child))
finally:
    is_over.set()
    for thread in threads:
        thread.join()
print(sum(written) + 10 * int(sys.argv[2]))
assert store.get("n") == sum(written) + 10 * int(sys.argv[2])
""",
        path,
        10 * times,
    )
    assert counted(path) > 0


@on_linux
def test_what_another_thread_begins_during_the_fork_is_not_inherited(path: Path) -> None:
    # The thread begins when every store has made itself ready, and the fork is yet to come.
    forking(
        """
store = open_storage(path)
store.set_many({"n": 0, "o": 0})
def child():
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    assert not [link for link in links if os.path.islink(link) and path in os.readlink(link)]
    increment()
for work in (
    lambda: next(store.scan(batch_size=1)),
    lambda: store.get("n"),
    lambda: store.increment("m"),
    lambda: store.transaction(read_only=True).__enter__(),
    lambda: open_storage(path).get("n"),
    lambda: open_storage(path + ".new").get("n"),
):
    threads = []
    def begin():
        threads.append(start(work))
        threads[0].join(0.1)
    hooks.append(begin)
    wait(fork(child))
    threads[0].join()
increment()
""",
        path,
    )
    assert counted(path) == 7


@on_linux
@pytest.mark.parametrize("ends", ["closed", "forgotten"])
def test_a_scan_that_is_just_being_closed_is_waited_for(path: Path, ends: str) -> None:
    # Another thread is in the middle of closing, where it has said goodbye already and the connection is still open.
    forking(
        """
from mycelia_storage.engines.sqlite import lending
store = open_storage(path, busy_timeout=20)
store.set_many({"n": 0, "o": 0})
in_the_middle, go_on = threading.Event(), threading.Event()
roll_back = lending.roll_back
def slowly(connection):
    if threading.current_thread() is not threading.main_thread():
        in_the_middle.set()
        assert go_on.wait(20)
    roll_back(connection)
lending.roll_back = slowly
def scan():
    if sys.argv[2] == "closed":
        with store.scan(batch_size=1) as found:
            next(found)
    else:
        store._engine.snapshot()  # nobody keeps it
thread = start(scan)
assert in_the_middle.wait(20)
early_hooks.append(lambda: threading.Timer(0.2, go_on.set).start())
def child():
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    assert not [link for link in links if os.path.islink(link) and path in os.readlink(link)]
    increment()
wait(fork(child))
thread.join()
""",
        path,
        ends,
    )
    assert counted(path) == 1


@pytest.mark.parametrize("moment", ["hooks", "early_hooks"])
def test_a_close_during_the_fork_comes_to_its_end(path: Path, moment: str) -> None:
    forking(
        """
store = open_storage(path, busy_timeout=5)
increment()
threads = []
def close():
    threads.append(start(store.close))
    threads[0].join(0.2)
globals()[sys.argv[2]].append(close)
def child():
    with open_storage(path) as other:
        other.increment("n")
wait(fork(child))
threads[0].join(10)
assert not threads[0].is_alive(), "close() hangs"
if os.path.isdir("/proc/self/fd"):
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    assert not [link for link in links if os.path.islink(link) and path in os.readlink(link)]
""",
        path,
        moment,
    )
    assert counted(path) == 2


@pytest.mark.parametrize("busy_timeout", [60, 0])
def test_several_threads_fork_at_the_same_moment(path: Path, times: int, busy_timeout: int) -> None:
    forking(
        """
store = open_storage(path, busy_timeout=int(sys.argv[2]))
sys.setswitchinterval(1e-5)
def child():
    try:
        increment()
        os._exit(0)
    except StorageError:  # where nobody waits, a fork may be refused, and a lock may be taken
        os._exit(0 if busy_timeout == 0 else 1)
busy_timeout = int(sys.argv[2])
def forks():
    for _ in range(int(sys.argv[3])):
        wait(fork(child))
threads = [start(forks) for _ in range(3)]
for thread in threads:
    thread.join()
increment()
""",
        path,
        busy_timeout,
        10 * times,
    )
    assert counted(path) == 30 * times + 1 or busy_timeout == 0


def test_opening_and_closing_stores_around_forks(path: Path, times: int) -> None:
    forking(
        """
sys.setswitchinterval(1e-5)
store = open_storage(path, busy_timeout=60)
others = [open_storage("memory:") for _ in range(50)]
is_over = threading.Event()
def opens():
    while not is_over.is_set():
        with open_storage(path + ".other", busy_timeout=60) as other, open_storage("memory:"):
            other.increment("n")
thread = start(opens)
def child():
    increment()
    with open_storage(path + ".other", busy_timeout=60) as other:
        other.increment("n")
try:
    for _ in range(int(sys.argv[2])):
        wait(fork(child), fork(child))
finally:
    is_over.set()
    thread.join()
""",
        path,
        10 * times,
    )
    assert counted(path) == 20 * times
    assert counted(path.with_name("store.db.other")) > 20 * times


# ---- forks that are refused


OPEN_IN_THIS_THREAD = {
    "transaction": "with store.transaction() as open: open.set('n', 1)",
    "nested transaction": "with store.transaction() as outer, outer.transaction() as open: open.set('n', 1)",
    "read-only transaction": "with store.transaction(read_only=True) as open: open.get('n')",
    "scan": "with store.scan(batch_size=1) as open: next(open)",
}


@pytest.mark.parametrize("kind", OPEN_IN_THIS_THREAD)
def test_a_child_of_a_fork_in_the_middle_is_told_and_the_parent_goes_on(path: Path, kind: str) -> None:
    opened, use = OPEN_IN_THIS_THREAD[kind].split(": ")
    forking(
        f"""
store = open_storage(path, busy_timeout=60)
store.set_many({{"a": 1, "b": 2, "c": 3}})
{EVERY_VERB}
{opened}:
    {use}
    def child():
        refused(lambda: {use})
        is_refused()
    wait(fork(child))
    {use}
with store.transaction() as tx:
    tx.increment("n")
""",
        path,
    )
    assert counted(path) == (2 if "n', 1" in use else 1)
    assert counted(path.with_name("store.db.other")) == 1


@pytest.mark.parametrize("kind", OPEN_IN_THIS_THREAD)
def test_a_refused_child_that_leaves_the_block_and_ends_harms_nobody(path: Path, kind: str) -> None:
    opened, use = OPEN_IN_THIS_THREAD[kind].split(": ")
    forking(
        f"""
store = open_storage(path, busy_timeout=60)
store.set_many({{"a": 1, "b": 2, "c": 3}})
pid = None
try:
    {opened}:
        {use}
        pid = os.fork()
        if pid:
            wait(pid)
            {use}
        elif {kind!r} == "scan":
            next(open)
except StorageClosedError as error:
    assert pid == 0 and "forked" in str(error)
if pid:
    with store.transaction() as tx:
        tx.increment("n")
else:
    store = open = tx = outer = None
    sys.exit(0)
""",
        path,
    )
    assert counted(path) == (2 if "n', 1" in use else 1)


def test_a_child_that_exits_inside_the_block_harms_nobody(path: Path) -> None:
    forking(
        """
store = open_storage(path)
with store.transaction() as tx:
    tx.set("n", 1)
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    wait(pid)
    tx.set("n", 2)
""",
        path,
    )
    assert counted(path) == 2


@pytest.mark.parametrize("read_only", [True, False])
def test_what_another_thread_holds_for_too_long_refuses_the_child(path: Path, read_only: bool) -> None:
    forking(
        f"""
store = open_storage(path, busy_timeout=0.3)
store.set("n", 0)
{EVERY_VERB}
holds, may_end = threading.Event(), threading.Event()
def hold():
    with store.transaction(read_only={read_only}) as tx:
        tx.get("n") if {read_only} else tx.increment("n")
        holds.set()
        may_end.wait()
        tx.get("n") if {read_only} else tx.increment("n")
thread = start(hold)
holds.wait()
wait(fork(is_refused))
may_end.set()
thread.join()
increment()
wait(fork(increment))
""",
        path,
    )
    assert counted(path) == (2 if read_only else 4)


def test_a_scan_that_another_thread_keeps_open_for_too_long_refuses_the_child(path: Path) -> None:
    forking(
        f"""
store = open_storage(path, busy_timeout=0.3)
store.set_many({{"n": 0, "o": 0}})
{EVERY_VERB}
holds, may_end = threading.Event(), threading.Event()
def hold():
    with store.scan(batch_size=1) as scan:
        next(scan)
        holds.set()
        may_end.wait()
        next(scan)
thread = start(hold)
holds.wait()
wait(fork(is_refused))
may_end.set()
thread.join()
wait(fork(increment))
""",
        path,
    )
    assert counted(path) == 1


def test_a_child_is_refused_where_the_thread_that_writes_back_has_the_file_open_for_too_long(path: Path) -> None:
    forking(
        f"""
from mycelia_storage.engines.sqlite import writer
from mycelia_storage.engines.sqlite.checkpoints import Checkpoints
writer.AHEAD_PAGES = 1
comes, may_end, parent = threading.Event(), threading.Event(), os.getpid()
write_back = Checkpoints._write_back_unread
def slowly(*arguments):
    if os.getpid() == parent:
        comes.set()
        may_end.wait()
    return write_back(*arguments)
Checkpoints._write_back_unread = slowly
store = open_storage(path, busy_timeout=0.3)
{EVERY_VERB}
increment()
comes.wait()
wait(fork(is_refused))
increment()
may_end.set()
while store._engine.checkpoints.is_ahead:
    pass
wait(fork(increment))
""",
        path,
    )
    assert counted(path) == 3


def test_a_file_that_another_thread_is_opening_for_too_long_is_refused_to_the_child(path: Path) -> None:
    forking(
        """
from mycelia_storage.engines import forking
forking._PATIENCE = 0.1
opens, may_end = threading.Event(), threading.Event()
def open_it():
    with forking.opening(path):
        opens.set()
        may_end.wait()
thread = start(open_it)
opens.wait()
wait(fork(lambda: refused(lambda: open_storage(path))))
may_end.set()
thread.join()
store = open_storage(path)
increment()
""",
        path,
    )
    assert counted(path) == 1


def test_what_another_thread_ends_in_time_is_waited_for(path: Path) -> None:
    forking(
        """
store = open_storage(path, busy_timeout=60)
store.set_many({"n": 0, "o": 0})
def hold(make, use):
    with make() as held:
        use(held)
        holds.set()
        is_forking.wait()
for work in (
    (lambda: store.transaction(), lambda tx: tx.get("n")),
    (lambda: store.transaction(read_only=True), lambda tx: tx.get("n")),
    (lambda: store.scan(batch_size=1), next),
):
    holds, is_forking = threading.Event(), threading.Event()
    thread = start(lambda: hold(*work))
    holds.wait()
    early_hooks.append(is_forking.set)
    wait(fork(increment))
    thread.join()
increment()
""",
        path,
    )
    assert counted(path) == 4


def test_a_fork_within_the_function_of_modify_refuses_the_child(path: Path) -> None:
    forking(
        """
store = open_storage(path, busy_timeout=60)
def change(value):
    wait(fork(lambda: refused(lambda: store.get("n"), lambda: store.set("n", 9), lambda: open_storage(path))))
    return value + 1
assert store.modify("n", change, default=0) == 1
""",
        path,
    )
    assert counted(path) == 1


def test_a_refused_fork_of_one_store_leaves_the_others_usable(path: Path) -> None:
    forking(
        """
store, other = open_storage(path, busy_timeout=60), open_storage(path + ".other", busy_timeout=60)
def child():
    refused(lambda: other.get("n"), lambda: open_storage(path + ".other"))
    increment()
with other.transaction() as tx:
    tx.set("n", 1)
    wait(fork(child))
increment()
other.increment("n")
""",
        path,
    )
    assert counted(path) == 2
    assert counted(path.with_name("store.db.other")) == 2


def test_a_signal_handler_that_raises_during_the_wait_leaves_no_lock(path: Path) -> None:
    output = forking(
        """
store, other = open_storage(path, busy_timeout=5), open_storage(path + ".other", busy_timeout=5)
for one in (store, other):
    one.set("n", 0), one.get("n")
holds, may_end = threading.Event(), threading.Event()
def hold():
    with store.transaction() as tx:
        holds.set()
        may_end.wait()
thread = start(hold)
holds.wait()
def ring(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGUSR1, ring)
main = threading.main_thread().ident
early_hooks.append(lambda: threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGUSR1)).start())
sys.unraisablehook = lambda _: None  # Python tells of exceptions in hooks, and forks all the same
def child():
    refused(lambda: store.set("n", 9), lambda: store.get("n"), lambda: open_storage(path))
    try:
        other.increment("n")
    except StorageClosedError as error:
        assert "forked" in str(error)
try:
    wait(fork(child))
finally:
    may_end.set()
    thread.join()
increment()
other.increment("n")
""",
        path,
    )
    assert output == ""
    assert counted(path) == 1
    assert counted(path.with_name("store.db.other")) in {1, 2}


# ---- memory


def test_a_child_has_a_copy_of_a_store_in_memory(path: Path) -> None:
    forking(
        """
store = open_storage("memory:")
increment()
def child():
    assert store.get("n") == 1
    increment()
    assert store.get("n") == 2
wait(fork(child), fork(child))
assert store.get("n") == 1
""",
        path,
    )


def test_a_store_in_memory_that_other_threads_use_does_not_hang_the_child(path: Path, times: int) -> None:
    forking(
        """
store = open_storage("memory:", busy_timeout=5)
store.set_many({str(number): {"n": number} for number in range(2000)})
def count():
    while not is_over.is_set():
        store.count({"field": "n", "operator": "gt", "value": 5})
def transaction():
    while not is_over.is_set():
        with store.transaction() as tx:
            tx.set_many({"1": {"n": 1}, "new": 1})
            tx.delete("new")
            tx.list_keys()
def work():
    while not is_over.is_set():
        increment()
def child():
    assert store.get("1") == {"n": 1}
    assert store.count() in (2000, 2001)  # the counter
    assert not store.has("new")
    store.set("x", 1)
for use in (count, transaction, work):
    is_over = threading.Event()
    thread = start(use)
    try:
        for _ in range(int(sys.argv[2])):
            wait(fork(child))
    finally:
        is_over.set()
        thread.join()
""",
        path,
        5 * times,
    )


# ---- other ways to make processes


def test_a_child_has_no_half_of_a_commit_in_memory(path: Path) -> None:
    forking(
        """
from mycelia_storage.engines.memory.state import Table
store = open_storage("memory:")
def put(value):
    with store.transaction() as tx:
        tx.set("a", value)
        tx.set("a", value, namespace="other")
put(1)
def child():
    assert store.get("a") == store.get("a", namespace="other")
apply, calls, forks = Table.apply, [], []
def applied(table, changes):
    calls.append(table)
    if len(calls) == 2:
        forks.append(start(lambda: ended.append(wait(fork(child)))))
        forks[0].join(0.2)
    apply(table, changes)
Table.apply, ended = applied, []
put(2)
forks[0].join()
assert ended
""",
        path,
    )


def test_programs_started_beside_a_transaction_disturb_nothing(path: Path) -> None:
    forking(
        """
import subprocess
store = open_storage(path, busy_timeout=60)
store.set_many({"a": 1, "b": 2})
with store.scan(batch_size=1) as scan, store.transaction() as tx:
    next(scan)
    tx.set("n", 1)
    reads = "from mycelia_storage import open_storage; import sys; print(open_storage(sys.argv[1]).get('n'))"
    done = subprocess.run([sys.executable, "-c", reads, path], capture_output=True, text=True, check=True)
    assert done.stdout == "None\\n", done
    tx.increment("n")
""",
        path,
    )
    assert counted(path) == 2


MULTIPROCESSING = """
import multiprocessing, sys
from mycelia_storage import open_storage

store = None

def opens(path):
    with open_storage(path, busy_timeout=60) as other:
        for _ in range(10):
            other.increment("n")

def inherits(path):
    for _ in range(10):
        store.increment("n")

if __name__ == "__main__":
    path, method = sys.argv[1:]
    context = multiprocessing.get_context(None if method == "default" else method)
    store = open_storage(path, busy_timeout=60)
    store.set("n", 0)
    work = inherits if context.get_start_method() == "fork" else opens
    workers = [context.Process(target=work, args=(path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
        store.increment("n")
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    with context.Pool(1) as pool:
        pool.map(opens, [path] * 3)
        pool.close()
        pool.join()
    assert store.increment("n") == 53, store.get("n")
    store.close()
"""


@pytest.mark.parametrize("method", ["default", "fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing_lose_nothing(path: Path, method: str) -> None:
    # A file, because `spawn` imports it again.
    program = path.with_name("program.py")
    program.write_text(MULTIPROCESSING)
    done = subprocess.run(
        [sys.executable, "-Wignore:This process:DeprecationWarning", str(program), str(path), method],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert counted(path) == 53


def test_a_server_may_open_before_it_forks_its_workers(path: Path) -> None:
    # The parent reads before it forks, replaces a worker that has died, and asks for a number itself at the end.
    output = forking(
        """
import socket
store = open_storage(path, busy_timeout=60)
store.set("n", 0)
listener = socket.create_server(("127.0.0.1", 0))
def serve():
    signal.alarm(60)
    while True:
        connection, _ = listener.accept()
        with connection:
            if connection.recv(1) == b"!":
                os.kill(os.getpid(), signal.SIGKILL)
            connection.sendall(b"%d" % store.increment("n"))
def ask(what):
    with socket.create_connection(listener.getsockname()) as connection:
        connection.sendall(what)
        try:
            return connection.recv(100)
        except ConnectionResetError:
            return b""
workers = [fork(serve) for _ in range(3)]
assert store.get("n") == 0
answers = [int(ask(b"?")) for _ in range(20)]
assert ask(b"!") == b""
dead, _ = os.waitpid(-1, 0)
workers[workers.index(dead)] = fork(serve)
def asks():
    answers.extend(int(ask(b"?")) for _ in range(20))
threads = [start(asks) for _ in range(3)]
for thread in threads:
    thread.join()
for worker in workers:
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
assert sorted(answers) == [*range(1, 81)], answers
print(store.increment("n"))
""",
        path,
    )
    assert output == "81"
    assert counted(path) == 81


def test_a_transaction_that_would_expire_does_so_in_the_parent_alone(path: Path) -> None:
    forking(
        """
store = open_storage(path, busy_timeout=60)
with store.transaction(max_duration=3600) as tx:
    tx.set("n", 1)
def child():
    with store.transaction(max_duration=3600) as tx:
        tx.increment("n")
    store.close()
wait(fork(child))
with store.transaction(max_duration=3600) as tx:
    tx.increment("n")
store.close()
""",
        path,
    )
    assert counted(path) == 3


def test_a_child_ends_its_own_transactions_in_time(path: Path) -> None:
    forking(
        """
store = open_storage(path)
with store.transaction(max_duration=60) as tx:
    tx.increment("n")
def child():
    tx = store.transaction(max_duration=0.01).__enter__()
    while tx._is_open():
        pass
    increment()
wait(fork(child))
""",
        path,
    )
    assert counted(path) == 2


def test_the_verbs_that_a_child_is_refused_are_all_there() -> None:
    named = {line.split('"')[1] for line in EVERY_VERB.splitlines() if line.startswith('    "')}
    public = {name for name in dir(Storage) if not name.startswith("_")}
    assert public - named == {"close", "namespace"}
