"""Hazard: the server restarts, is away, full or slow, and a caller loses a write, hangs, or hears nonsense.

Also: a password that comes to light in an error, a log or a status.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from postgres_writers import Writers

from mycelia_storage import (
    ConfigError,
    OutcomeUnknownError,
    StorageBusyError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
    open_storage,
)
from mycelia_storage.testing.postgres_server import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mycelia_storage import Storage

PATIENCE_SECONDS = 30


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--hypothesis-profile") == "long")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server of this file's own, which its tests may end; they leave it running."""
    with PostgresServer(tcp=True) as server:
        yield server


@pytest.fixture
def store(server: PostgresServer, postgres_schema: str) -> Iterator[Storage]:
    with open_storage(server.dsn(), schema=postgres_schema, busy_timeout=PATIENCE_SECONDS, pool_max=4) as store:
        yield store


# ---- restarts


def _crash(server: PostgresServer) -> None:
    server.kill()
    server.start()


RESTARTS: dict[str, Callable[[PostgresServer], None]] = {
    "fast": PostgresServer.restart,
    "immediate": lambda server: server.restart("immediate"),
    "crash": _crash,
}


@pytest.mark.parametrize("how", RESTARTS)
def test_a_restart_under_load_loses_nothing_and_needs_no_help(
    server: PostgresServer, store: Storage, how: str, is_long: bool
) -> None:
    rounds = 50 if is_long else 2
    with Writers(store) as writers:
        for _ in range(rounds):
            writers.go_on(10)
            RESTARTS[how](server)
        writers.go_on(10)
    assert writers.wrong() == []
    print(f"{rounds} times {how}: {writers.said()}, 0 lost")


def test_a_store_whose_server_was_away_for_long_works_again_when_it_is_back(
    server: PostgresServer, postgres_schema: str
) -> None:
    with open_storage(server.dsn(), schema=postgres_schema, busy_timeout=0.3, pool_max=2) as store:
        version = store.set("key", 1)
        server.stop()
        calls: list[Callable[[], object]] = [
            lambda: store.get("key"),
            lambda: store.set("key", 2),
            lambda: store.increment("key"),
            lambda: store.run_transaction(lambda tx: tx.set("key", 2)),
            lambda: store.scan().__enter__(),
            store.get_status,
        ]
        for call in calls * 2:
            with pytest.raises(StorageUnavailableError) as raised:
                call()
            assert raised.value.retryable
        server.start()
        assert store.get_entry("key").version == version
        store.set("key", 3)
        assert store.get("key") == 3


def test_nothing_is_opened_where_there_is_no_server(server: PostgresServer, postgres_schema: str) -> None:
    server.stop()
    with pytest.raises(StorageUnavailableError):
        open_storage(server.dsn(), schema=postgres_schema)
    server.start()
    with pytest.raises(ConfigError, match="database") as raised:
        open_storage(server.dsn("nowhere"), schema=postgres_schema)
    assert '"nowhere" does not exist' in str(raised.value.__cause__)
    with open_storage(server.dsn(), schema=postgres_schema) as store:
        store.set("key", 1)


def test_a_server_that_takes_connections_and_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(StorageUnavailableError):
            open_storage(f"postgresql://postgres@127.0.0.1:{port}/postgres", connect_timeout=1)


def keepalive_of(port: int) -> set[tuple[int, ...]]:
    """What is set on this process's connections to a port."""
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
    found: set[tuple[int, ...]] = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as other:
                if other.family == socket.AF_INET and other.getpeername()[1] == port:
                    found.add(tuple(other.getsockopt(socket.IPPROTO_TCP, option) for option in options))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks for its connections in /proc")
def test_a_server_that_is_gone_without_a_word_is_noticed_within_a_minute(
    server: PostgresServer, postgres_schema: str
) -> None:
    with open_storage(server.dsn(), schema=postgres_schema) as store:
        store.set("key", 1)
        assert keepalive_of(server.port) == {(30, 10, 3, 60_000)}
    with open_storage(f"{server.dsn()}?keepalives_idle=7", schema=postgres_schema) as store:
        assert store.get("key") == 1
        assert keepalive_of(server.port) == {(7, 10, 3, 60_000)}


# ---- standbys that have to confirm


WRITES: dict[str, Callable[[Storage], object]] = {
    "set": lambda store: store.set("key", "new"),
    "set_many": lambda store: store.set_many({"key": "new", "other": 1}),
    "a transaction": lambda store: store.run_transaction(lambda tx: tx.set("key", "new")),
}
CANCEL = "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'"
TERMINATE = "select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'"


@pytest.fixture
def unconfirming(server: PostgresServer, store: Storage) -> Iterator[PostgresServer]:
    """The server, waiting for a standby that there is not."""
    store.set("key", "old")
    server.configure(synchronous_standby_names="missing")
    yield server
    server.configure(synchronous_standby_names="")


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("end", [CANCEL, TERMINATE], ids=["cancelled", "terminated"])
def test_a_commit_that_no_standby_has_confirmed_is_of_unknown_outcome(
    unconfirming: PostgresServer, store: Storage, name: str, end: str
) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(WRITES[name], store)
        with unconfirming.connect() as connection:
            while not future.done():
                connection.execute(end.encode())
        with pytest.raises(OutcomeUnknownError):
            future.result()
    assert store.get("key") == "new"  # here it is; on a standby that takes over it may not be
    unconfirming.configure(synchronous_standby_names="")
    store.set("key", "confirmed by nobody, since nobody has to")


def end_unconfirmed(server: PostgresServer, call: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        try:
            assert type(future.exception(20)) is OutcomeUnknownError
        finally:
            if not future.done():
                server.configure(synchronous_standby_names="")


@pytest.mark.parametrize("name", WRITES)
def test_a_commit_waits_for_a_standby_no_longer_than_statement_timeout(
    unconfirming: PostgresServer, postgres_schema: str, name: str
) -> None:
    """Of itself a server waits for as long as it takes, whatever its timeouts say."""
    with open_storage(unconfirming.dsn(), schema=postgres_schema, statement_timeout=0.4) as hasty:
        end_unconfirmed(unconfirming, lambda: WRITES[name](hasty))
        assert hasty.get("key") == "new"
        unconfirming.configure(synchronous_standby_names="")
        WRITES[name](hasty)


def test_no_commit_waits_for_longer_behind_a_pooler(unconfirming: PostgresServer, postgres_schema: str) -> None:
    options: dict[str, Any] = {"prepare_threshold": None, "statement_timeout": 0.4}
    with open_storage(unconfirming.dsn(), schema=postgres_schema, **options) as pooled:
        end_unconfirmed(unconfirming, lambda: pooled.set("key", "new"))
        assert pooled.get("key") == "new"


# ---- others, and time


def test_whoever_finds_every_connection_in_use_is_told_so(server: PostgresServer, postgres_schema: str) -> None:
    with open_storage(server.dsn(), schema=postgres_schema, pool_max=2, busy_timeout=0.2) as store:
        store.set("a", 1)
        with store.transaction(read_only=True) as first, store.transaction(read_only=True) as second:
            for call in (lambda: store.get("a"), lambda: store.set("b", 1), store.count):
                with pytest.raises(StorageBusyError, match=r"all 2 connections \(pool_max\)"):
                    call()
            assert first.get("a") == second.get("a") == 1
        store.set("b", 1)
        assert store.get_many(["a", "b"]) == {"a": 1, "b": 1}


def test_whoever_waits_for_a_lock_for_too_long_is_told_so(server: PostgresServer, postgres_schema: str) -> None:
    with (
        open_storage(server.dsn(), schema=postgres_schema, busy_timeout=0.2) as store,
        ThreadPoolExecutor(1) as pool,
    ):
        store.set("key", 0)
        with store.transaction() as tx:
            tx.set("key", 1)
            with pytest.raises(StorageBusyError, match="held a lock"):
                pool.submit(store.set, "key", 2).result()
        assert store.get("key") == 1


def test_a_statement_that_takes_too_long_is_stopped(server: PostgresServer, postgres_schema: str) -> None:
    with (
        open_storage(
            server.dsn(), schema=postgres_schema, statement_timeout=0.2, busy_timeout=PATIENCE_SECONDS
        ) as store,
        server.connect() as connection,
    ):
        store.set("key", 0)
        with connection.transaction():
            connection.execute(f'lock table "{postgres_schema}".entries in access exclusive mode'.encode())
            for call in (lambda: store.get("key"), store.count):
                with pytest.raises(StorageTimeoutError, match="statement_timeout"):
                    call()
            with pytest.raises(StorageTimeoutError):
                store.run_transaction(lambda tx: tx.set("key", 1))
        assert store.get("key") == 0


def test_a_server_without_connections_left_is_away(postgres_schema: str) -> None:
    with PostgresServer(settings={"max_connections": 8, "superuser_reserved_connections": 0}) as server:
        dsn = server.dsn()
        with open_storage(dsn, schema=postgres_schema, pool_max=2, busy_timeout=0.3) as store:
            store.set("key", 1)
            others: list[psycopg.Connection[Any]] = []
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    others.append(server.connect())
            assert store.get("key") == 1
            with pytest.raises(StorageUnavailableError):
                open_storage(dsn, schema=postgres_schema)
            for other in others:
                other.close()


# ---- passwords

PASSWORD = "s3cr3t-never-shown"


def everything_told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + str(error) + repr(error.__cause__)


@pytest.mark.parametrize(
    "target",
    [
        "postgresql://postgres:{password}@127.0.0.1:{port}/postgres",
        "postgresql://postgres:{password}@127.0.0.1:1/postgres",
        "postgresql://postgres:{password}@no-such-host.invalid/postgres",
        "postgresql://postgres:{password}@127.0.0.1:{port},127.0.0.1:1/postgres",
        "postgresql://postgres@127.0.0.1:{port}/postgres?password={password}",
        "postgresql://postgres@127.0.0.1:{port}/postgres?password={password}&nonsense=1",
        "postgresql://postgres:{password}@[::1/postgres",
        "postgresql://postgres:{password}@127.0.0.1:port/postgres",
    ],
)
def test_no_error_shows_a_password(
    server: PostgresServer, target: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises((StorageUnavailableError, ConfigError)) as raised:
        open_storage(target.format(password=PASSWORD, port=server.port), connect_timeout=2)
    assert PASSWORD not in everything_told(raised.value)
    assert PASSWORD not in caplog.text
    assert PASSWORD not in "".join(capfd.readouterr())


def test_a_wrong_password_is_told_as_that(server: PostgresServer) -> None:
    with pytest.raises(ConfigError, match="refuses the user or the password") as raised:
        open_storage(server.dsn(password=PASSWORD))
    assert not raised.value.retryable
    assert "password authentication failed" in str(raised.value.__cause__)
    with pytest.raises(ConfigError, match="asks for a password, and none was given"):
        open_storage(f"postgresql://postgres@127.0.0.1:{server.port}/postgres")


REFUSED = """
CREATE ROLE no_login NOLOGIN;
CREATE ROLE full LOGIN CONNECTION LIMIT 0;
CREATE ROLE stranger LOGIN;
CREATE DATABASE closed;
REVOKE CONNECT ON DATABASE closed FROM PUBLIC"""


def test_who_is_not_let_in_is_told_why_and_whether_it_may_pass() -> None:
    """The driver has no code of it, and no message in the server's language is gone by."""
    with PostgresServer(settings={"max_connections": 6}) as server:
        for statement in REFUSED.split(";"):
            server.execute(statement)
        targets = (
            (server.dsn("missing"), "no database of this name"),
            (server.dsn(user="missing"), "refuses the user"),
            (server.dsn(user="no_login"), "refuses the user"),
            (server.dsn("closed", "stranger"), "refuses the user, the database or a setting"),
            (f"{server.dsn()}?options=-c%20nonsense%3D1", "a setting"),
        )
        for target, told in targets:
            with pytest.raises(ConfigError, match=told) as refused:
                open_storage(target, connect_timeout=60)
            assert not refused.value.retryable
        with pytest.raises(StorageUnavailableError, match="no more connections"):
            open_storage(server.dsn(user="full"))


def test_a_role_that_is_shut_out_while_a_store_is_open_is_told_so() -> None:
    with PostgresServer() as server:
        server.execute("CREATE ROLE app LOGIN")
        server.execute("CREATE SCHEMA s AUTHORIZATION app")
        with open_storage(server.dsn(user="app"), schema="s", busy_timeout=0.5) as store:
            store.set("key", 1)
            server.execute("ALTER ROLE app NOLOGIN")
            server.restart()
            for call in (lambda: store.get("key"), lambda: list(store.scan())):
                with pytest.raises(ConfigError, match="refuses the user"):
                    call()
            server.execute("ALTER ROLE app LOGIN")
            assert store.get("key") == 1


def test_where_it_cannot_be_known_why_nobody_is_let_in_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with PostgresServer() as server, pytest.raises(StorageUnavailableError, match="or refuses the user"):
        open_storage(server.dsn("missing"))


def test_neither_a_store_nor_its_status_nor_its_log_shows_the_password(
    server: PostgresServer, postgres_schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with open_storage(server.dsn(), schema=postgres_schema, debug=True, busy_timeout=0.3) as store:
        assert server.password in server.dsn()
        store.set("key", 1)
        shown = repr(store) + str(store) + repr(store.get_status())
        server.stop()
        with pytest.raises(StorageUnavailableError) as raised:
            store.set("key", 2)
        server.start()
        shown += everything_told(raised.value)
    assert "127.0.0.1" in shown
    assert server.password not in shown + caplog.text
    assert server.password not in re.sub(r"\W", "", caplog.text)


def test_a_password_may_come_from_the_environment_or_a_file(
    server: PostgresServer, postgres_schema: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    target = f"postgresql://postgres@127.0.0.1:{server.port}/postgres"
    with pytest.raises(StorageError):
        open_storage(target, schema=postgres_schema)
    with monkeypatch.context() as patched:
        patched.setenv("PGPASSWORD", server.password)
        with open_storage(target, schema=postgres_schema) as store:
            store.set("key", 1)
    file = tmp_path / "pgpass"
    file.write_text(f"127.0.0.1:{server.port}:*:postgres:{server.password}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    with open_storage(target, schema=postgres_schema) as store:
        assert store.get("key") == 1


def test_many_threads_that_come_at_once_while_the_server_is_away_are_all_told(
    server: PostgresServer, postgres_schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_storage(server.dsn(), schema=postgres_schema, busy_timeout=0.5, pool_max=2) as store:
        store.set("key", 1)
        server.stop()
        start = threading.Barrier(8)

        def get() -> type[BaseException]:
            start.wait()
            with pytest.raises(StorageError) as raised:
                store.get("key")
            return raised.type

        with ThreadPoolExecutor(8) as pool:
            told = [future.result() for future in [pool.submit(get) for _ in range(8)]]
        server.start()
        assert set(told) == {StorageUnavailableError}
        assert store.get("key") == 1
    # They have tried dozens of times.
    said = [(record.name, record.levelname) for record in caplog.records]
    assert said == [("mycelia_storage", "WARNING")]


AWAY = """
import sys, threading
from mycelia_storage import StorageError, open_storage

dsn, schema = sys.argv[1:]
with open_storage(dsn, schema=schema, busy_timeout=0.5) as store:
    store.set("key", 1)
    print("ready", flush=True)
    input()
    for call in [lambda: store.get("key"), lambda: store.set("key", 2), lambda: store.query()]:
        try:
            call()
        except StorageError as error:
            print(error, flush=True)
    input()
    print(store.get("key"), flush=True)
"""


def test_a_program_that_configured_no_logging_hears_once_that_the_server_is_away(
    server: PostgresServer, postgres_schema: str
) -> None:
    command = [sys.executable, "-c", AWAY, server.dsn(), postgres_schema]
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, **pipes) as program:
        assert program.stdout is not None
        assert program.stdin is not None
        assert program.stderr is not None
        assert program.stdout.readline() == "ready\n", program.communicate("")[1]
        server.stop()
        program.stdin.write("\n")
        program.stdin.flush()
        told = [program.stdout.readline() for _ in range(3)]
        server.start()
        program.stdin.write("\n")
        program.stdin.close()
        assert program.stdout.read() == "1\n"
        said = program.stderr.read()
    where = f"postgresql://postgres@127.0.0.1:{server.port}/postgres"
    assert [line.startswith(f"{where}: ") for line in told] == [True] * 3
    assert server.password not in "".join(told)
    assert re.fullmatch(rf"{re.escape(where)}: .*cannot be reached.*, it is tried again\)\n", said), said


def test_a_program_that_wants_to_hear_the_pool_hears_it(
    server: PostgresServer, postgres_schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_storage(server.dsn(), schema=postgres_schema, busy_timeout=0.5) as store:
        server.stop()
        with caplog.at_level(logging.INFO, "psycopg"):
            while not {"psycopg.pool", "mycelia_storage"} <= {record.name for record in caplog.records}:
                with pytest.raises(StorageError):
                    store.get("key")
        caplog.clear()
        with caplog.at_level(logging.INFO, "mycelia_storage"):
            server.start()
            for _ in range(PATIENCE_SECONDS):
                with contextlib.suppress(StorageError):
                    assert store.get("key") is None
                    break
        news = [record.message for record in caplog.records if record.levelno == logging.INFO]
        assert news == [f"{store.get_status().target}: the server can be reached again"]
