"""Hazards of the PostgreSQL engine: what several clients, their clocks, a pooler or a foreign schema do to a store."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest
from children import run, run_together
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mycelia_storage import (
    CapacityError,
    ConfigError,
    NotAStorageFileError,
    SchemaVersionError,
    StorageBusyError,
    StorageClosedError,
    StorageCorruptError,
    StorageReadOnlyError,
    StorageTimeoutError,
    StorageUnavailableError,
    TransactionConflictError,
    UniqueIndexError,
    field,
    open_async_storage,
    open_storage,
)
from mycelia_storage.cli.doctor_server import findings_on_server
from mycelia_storage.engines.postgres.clock import ServerClock
from mycelia_storage.engines.postgres.parameters import parameters_of
from mycelia_storage.testing.postgres_server import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mycelia_storage import Storage

THREADS = 6
STEPS = 15


@pytest.fixture
def store(postgres_dsn: str, postgres_schema: str) -> Iterator[Storage]:
    with open_storage(postgres_dsn, schema=postgres_schema) as store:
        yield store


def together(count: int, work: Callable[[int], object]) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return [future.result(60) for future in [pool.submit(work, number) for number in range(count)]]


def behind(connection: psycopg.Connection[Any], text: str, values: Sequence[object] | None = None) -> Any:
    """Run a statement behind the library's back."""
    return connection.execute(text.encode(), values)


# ---- several clients


@pytest.mark.parametrize("how", ["increment", "modify", "run_transaction", "if_version"])
def test_no_update_is_lost_between_threads_with_connections_of_their_own(store: Storage, how: str) -> None:
    from mycelia_storage import VersionConflictError

    store.set("n", 0)

    def step() -> None:
        if how == "increment":
            store.increment("n")
        elif how == "modify":
            store.modify("n", lambda n: n + 1)
        elif how == "run_transaction":
            store.run_transaction(lambda tx: tx.set("n", tx.get("n", 0) + 1), attempts=1000, deadline=60)
        else:
            while True:
                entry = store.get_entry("n")
                with contextlib.suppress(VersionConflictError):
                    store.set("n", entry.value + 1, if_version=entry.version)
                    break

    def steps(_: int) -> None:
        for _ in range(STEPS):
            step()

    together(THREADS, steps)
    assert store.get("n") == THREADS * STEPS


PROCESS = """
from mycelia_storage import open_storage
begin()
with open_storage(sys.argv[1], schema=sys.argv[2]) as store:
    for n in range(20):
        store.increment("total")
        store.add(f"key {n}", sys.argv[3])
        store.set_many({f"shared {k}": sys.argv[3] for k in range(30)})
"""


def test_processes_that_open_a_new_store_at_once_make_it_once_and_lose_nothing(
    postgres_dsn: str, postgres_schema: str
) -> None:
    run_together(PROCESS, 4, postgres_dsn, postgres_schema)
    with open_storage(postgres_dsn, schema=postgres_schema) as store:
        assert store.get("total") == 80
        assert store.count() == 51
        assert len(set(store.get_many([f"shared {k}" for k in range(30)]).values())) == 1  # a batch is one step
        store.check()


def test_two_that_write_skewed_are_not_both_committed(store: Storage) -> None:
    store.set_many({"a": 1, "b": 1})
    barrier = threading.Barrier(2)

    def off(number: int) -> bool:
        key, other = ("a", "b") if number else ("b", "a")
        try:
            with store.transaction() as tx:
                is_free = tx.get(other) == 1
                barrier.wait(30)
                if is_free:
                    tx.set(key, 0)
        except TransactionConflictError:
            return False
        return True

    assert together(2, off).count(True) == 1
    assert sorted(store.get_many(["a", "b"]).values()) == [0, 1]


def test_less_isolation_is_given_where_it_is_asked_for(store: Storage) -> None:
    store.set("a", 1)
    for isolation, both in (("read_committed", True), ("snapshot", True), ("serializable", False)):
        store.set_many({"a": 1, "b": 1})
        barrier = threading.Barrier(2)

        def off(number: int, isolation: Any = isolation, barrier: threading.Barrier = barrier) -> bool:
            key, other = ("a", "b") if number else ("b", "a")
            try:
                with store.transaction(isolation=isolation) as tx:
                    assert tx.get(other) == 1
                    barrier.wait(30)
                    tx.set(key, 0)
            except TransactionConflictError:
                return False
            return True

        assert all(together(2, off)) is both


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
def test_at_no_isolation_a_verb_goes_by_what_is_no_longer_so(store: Storage, isolation: Any) -> None:
    def comes_late(verb: str) -> None:
        with store.transaction(isolation=isolation) as tx:
            assert tx.get("seen", 0) == 0
            together(1, lambda _: store.set("a", "first"))
            if verb == "add":
                assert tx.add("a", "second")
            else:
                tx.set("a", "second", if_version=0)

    for verb in ("add", "if_version"):
        store.delete("a")
        with pytest.raises(TransactionConflictError):
            comes_late(verb)
        assert store.get("a") == "first"


def test_a_transaction_reads_the_state_of_its_beginning_not_of_its_first_read(store: Storage) -> None:
    store.set("a", 1)
    for read_only in (True, False):
        with store.transaction(read_only=read_only) as tx:
            together(1, lambda _: store.increment("a"))
            seen = tx.get("a", 0)
        assert seen + 1 == store.get("a")


def test_batches_in_any_order_end_in_no_deadlock(store: Storage) -> None:
    keys = [f"k{n:03}" for n in range(200)]

    def work(number: int) -> None:
        for _ in range(5):
            store.set_many(dict.fromkeys(keys[::-1] if number % 2 else keys, number))
            store.delete_many(keys[::-1] if number % 2 else keys)

    together(4, work)
    assert store.count() == 0


def test_a_conflict_in_the_commit_runs_the_verb_again_and_not_the_callers_transaction(store: Storage) -> None:
    calls: list[int] = []

    def change(value: Any) -> Any:
        calls.append(value)
        if len(calls) == 1:
            together(1, lambda _: store.set("a", 10))
        return value + 1

    store.set("a", 1)
    assert store.modify("a", change) == 11
    assert calls == [1, 10]

    def comes_late() -> None:
        with store.transaction() as tx:
            seen = tx.get("a", 0)
            together(1, lambda _: store.set("a", 20))
            tx.set("a", seen + 1)

    with pytest.raises(TransactionConflictError):
        comes_late()
    assert store.get("a") == 20


def test_no_version_is_given_twice_beside_a_removal(postgres_dsn: str, postgres_schema: str) -> None:
    """A `set` that waits for a transaction which removes the entry has to know of the version that went."""
    with open_storage(postgres_dsn, schema=postgres_schema, clock=lambda: 1_700_000_000.0) as store:
        seen = {store.set("k", n) for n in range(5)}
        with store.transaction() as tx:
            tx.delete("k")
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(store.set, "k", "new")
                await_lock(store)
                tx.set("other", 1)
                tx.__exit__(None, None, None)
                assert waiting.result(30) not in seen


def await_lock(store: Storage) -> None:
    """Until some statement waits for a lock."""
    waits = "select 1 from pg_locks where not granted"
    engine: Any = store._engine
    while engine.auto.read(lambda cursor: cursor.execute(waits).fetchone()) is None:
        pass


@pytest.mark.parametrize("removes", ["delete", "clear"])
def test_a_removal_beside_a_change_removes_what_every_state_had(store: Storage, removes: str) -> None:
    store.set("k", 1)
    with store.transaction() as tx:
        tx.take("k")
        tx.set("k", 2)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(lambda: store.delete("k") if removes == "delete" else store.clear())
            await_lock(store)
            tx.__exit__(None, None, None)
            assert waiting.result(30) == 1
    assert store.list_keys() == []


# ---- what ends a transaction, and what does not


def test_a_transaction_goes_on_after_a_refusal(store: Storage) -> None:
    store.create_index("n", unique=True)
    store.set("a", {"n": 1})
    with store.transaction() as tx:
        tx.set("b", {"n": 2})
        with pytest.raises(UniqueIndexError, match="'a'"):
            tx.set("c", {"n": 1})
        with pytest.raises(UniqueIndexError):
            tx.set_many({"d": {"n": 5}, "e": {"n": 5}})
        with pytest.raises(StorageTimeoutError):
            tx.query(field("n") > 0, timeout=0)
        tx.set("f", {"n": 3})
    assert store.list_keys() == ["a", "b", "f"]


def test_a_key_too_long_for_the_index_of_the_server_ends_in_a_clear_error(store: Storage) -> None:
    store.create_index("text")
    store.set("long", {"text": "ж" * 5000})  # an indexed text of any length
    assert [entry.key for entry in store.query(field("text") == "ж" * 5000)] == ["long"]


def test_an_error_of_the_server_ends_the_transaction_and_nothing_is_kept(
    store: Storage, postgres_connection: psycopg.Connection[Any], postgres_schema: str
) -> None:
    store.set("a", 1)

    def meets_it() -> None:
        with store.transaction() as tx:
            tx.delete("a")
            behind(postgres_connection, f"alter table {postgres_schema}.namespaces rename to elsewhere")
            tx.list_namespaces()

    with pytest.raises(StorageCorruptError):
        meets_it()
    behind(postgres_connection, f"alter table {postgres_schema}.elsewhere rename to namespaces")
    assert store.list_keys() == ["a"]


def test_a_forgotten_transaction_gives_its_connection_back(postgres_dsn: str, postgres_schema: str) -> None:
    with open_storage(postgres_dsn, schema=postgres_schema, pool_max=1, busy_timeout=5) as store:
        for _ in range(3):
            store.transaction().__enter__().set("a", 1)
            gc.collect()
        store.set("b", 2)
        assert store.list_keys() == ["b"]


# ---- connections


def test_a_pool_with_nothing_left_is_busy_after_its_timeout(postgres_dsn: str, postgres_schema: str) -> None:
    with open_storage(postgres_dsn, schema=postgres_schema, pool_max=2, busy_timeout=0.2) as store:
        store.set("a", 1)
        with store.transaction(read_only=True) as one, store.transaction(read_only=True) as two:
            with pytest.raises(StorageBusyError, match="pool_max"):
                store.get("a")
            assert one.get("a") == two.get("a") == 1
        assert store.get("a") == 1


@pytest.mark.parametrize("most", [1, 2])
def test_who_waits_for_a_connection_is_given_the_next_one(postgres_dsn: str, postgres_schema: str, most: int) -> None:
    """Though the one that comes back could be kept at hand for its next use."""
    with open_storage(postgres_dsn, schema=postgres_schema, pool_max=most, busy_timeout=10) as store:
        store.set("key", 1)

        def reads(_: int) -> set[object]:
            return {store.get("key") for _ in range(100)}

        assert together(6, reads) == [{1}] * 6
        assert store.get_status().details["connections_in_use"] == 0


def test_scans_use_no_connection_of_the_pool(postgres_dsn: str, postgres_schema: str) -> None:
    with open_storage(postgres_dsn, schema=postgres_schema, pool_max=1, busy_timeout=0.5) as store:
        store.set_many({f"k{n}": n for n in range(5)})
        with store.scan(batch_size=1) as one, store.scan(batch_size=1) as two:
            assert (next(one).key, next(two).key) == ("k0", "k0")
            store.delete("k1")
            assert [entry.key for entry in one] == ["k1", "k2", "k3", "k4"]


@pytest.mark.parametrize("how", ["pg_terminate_backend", "pg_cancel_backend"])
def test_connections_that_the_server_has_ended_cost_no_caller_an_error(
    postgres_dsn: str, postgres_schema: str, postgres_connection: psycopg.Connection[Any], how: str
) -> None:
    name = f"{postgres_schema}_app"
    dsn = make_conninfo(postgres_dsn, application_name=name)
    with open_storage({"backend": "postgresql", "options": {"dsn": dsn, "schema": postgres_schema}}) as store:
        together(4, lambda n: store.set(f"k{n}", n))
        ended = [
            pid
            for (pid, _) in behind(
                postgres_connection,
                f"select pid, {how}(pid) from pg_stat_activity where application_name = %s",
                (name,),
            ).fetchall()
        ]
        assert ended
        there = "select 1 from pg_stat_activity where pid = any(%s)"
        while how == "pg_terminate_backend" and behind(postgres_connection, there, (ended,)).fetchall():
            pass  # until they are gone
        for n in range(8):
            store.set(f"k{n}", n)
            assert store.get(f"k{n}") == n
        with store.transaction() as tx:
            tx.set("tx", 1)
        assert store.count() == 9


def test_a_lock_that_others_hold_is_waited_for_no_longer_than_busy_timeout(
    postgres_dsn: str, postgres_schema: str, postgres_connection: psycopg.Connection[Any]
) -> None:
    with open_storage(postgres_dsn, schema=postgres_schema, busy_timeout=0.2) as store:
        store.set("a", 1)
        with postgres_connection.transaction():
            behind(postgres_connection, f"select * from {postgres_schema}.entries for update")
            with pytest.raises(StorageBusyError, match="busy_timeout"):
                store.set("a", 2)
        store.set("a", 3)


def test_a_statement_that_takes_too_long_is_ended_by_the_server(
    postgres_dsn: str, postgres_schema: str, postgres_connection: psycopg.Connection[Any]
) -> None:
    with open_storage(postgres_dsn, schema=postgres_schema, statement_timeout=0.2) as store:
        with postgres_connection.transaction():
            behind(postgres_connection, f"lock table {postgres_schema}.entries in access exclusive mode")
            for call in (lambda: store.get("a"), lambda: store.set("a", 1), store.count):
                with pytest.raises(StorageTimeoutError, match="statement_timeout"):
                    call()
        store.set("a", 1)


def test_a_query_is_ended_by_its_timeout_and_its_connection_goes_on(
    store: Storage, postgres_connection: psycopg.Connection[Any], postgres_schema: str
) -> None:
    store.set_many({f"k{n}": n for n in range(10)})
    with postgres_connection.transaction():
        behind(postgres_connection, f"lock table {postgres_schema}.entries in access exclusive mode")
        started = time.monotonic()
        with pytest.raises(StorageTimeoutError, match=r"0\.3"):
            store.query(field("x") == 1, timeout=0.3)
        assert time.monotonic() - started < 4  # and not after busy_timeout
    assert store.count(timeout=30) == 10


FORKS = """
import os
from mycelia_storage import open_storage
store = open_storage(sys.argv[1], schema=sys.argv[2], pool_max=3)
store.set("parent", 1)
tx = store.transaction()
inside = tx.__enter__()
inside.set("in the transaction", 1)


def served_by():
    return store._engine.auto.read(lambda cursor: cursor.execute("SELECT pg_backend_pid()").fetchone())[0]


for _ in range(3):
    mine = served_by()
    pid = os.fork()
    if not pid:
        assert store.get("parent") == 1
        assert served_by() != mine
        store.increment("children")
        try:
            inside.get("parent")
        except Exception as error:
            print(type(error).__name__, flush=True)
        store.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
pid = os.fork()
if not pid:
    store.increment("children")
    sys.exit(0)  # through the interpreter's usual end, without closing anything
assert os.waitpid(pid, 0)[1] == 0
pid = os.fork()
if not pid:
    sys.exit(0)  # one that never uses the store
assert os.waitpid(pid, 0)[1] == 0
assert inside.get("in the transaction") == 1
tx.__exit__(None, None, None)
assert store.get("children") == 4
store.close()
print("done")
"""


def test_a_fork_gives_the_child_connections_of_its_own_and_leaves_the_parents(
    postgres_dsn: str, postgres_schema: str
) -> None:
    printed = run(FORKS, postgres_dsn, postgres_schema)
    assert printed.split() == ["TransactionError"] * 3 + ["done"]


# ---- time


def test_the_time_is_the_servers_whatever_the_clock_of_this_machine_says(
    store: Storage, monkeypatch: pytest.MonkeyPatch, postgres_connection: psycopg.Connection[Any]
) -> None:
    row = behind(postgres_connection, "select extract(epoch from clock_timestamp())::float8").fetchone()
    assert row is not None
    monkeypatch.setattr(time, "time", lambda: 1.0)
    store.set("a", 1, ttl=3600)
    created = store.get_entry("a").created_at.timestamp()
    assert abs(created - row[0]) < 60
    assert store.has("a")


# ---- a pooler between


def test_behind_a_pooler_nothing_rests_on_a_session(
    postgres_dsn: str, postgres_schema: str, postgres_connection: psycopg.Connection[Any]
) -> None:
    """In transaction mode a pooler gives each transaction another connection, with the settings of somebody else."""
    with open_storage(postgres_dsn, schema=postgres_schema, prepare_threshold=None, busy_timeout=0.2) as store:
        for n in range(8):
            store.set("a", n)
            store.query(field("x") == n)
        assert store._engine.auto.read(  # type: ignore[attr-defined]
            lambda cursor: cursor.execute("select count(*) from pg_prepared_statements").fetchone()
        ) == (0,)
        assert store._engine.auto.read(  # type: ignore[attr-defined]
            lambda cursor: cursor.execute("select current_setting('lock_timeout')").fetchone()
        ) == ("0",)
        with postgres_connection.transaction():
            behind(postgres_connection, f"select * from {postgres_schema}.entries for update")
            with pytest.raises(StorageBusyError), store.transaction() as tx:
                tx.set("a", 2)


# ---- whose schema it is


def test_tables_of_somebody_else_are_refused_and_left(
    postgres_dsn: str, postgres_schema: str, postgres_connection: psycopg.Connection[Any]
) -> None:
    behind(postgres_connection, f"create schema {postgres_schema}")
    behind(postgres_connection, f"create table {postgres_schema}.entries (mine int)")
    with pytest.raises(NotAStorageFileError, match="entries"):
        open_storage(postgres_dsn, schema=postgres_schema)
    tables = behind(
        postgres_connection,
        "select table_name from information_schema.tables where table_schema = %s",
        (postgres_schema,),
    ).fetchall()
    assert tables == [("entries",)]


def test_a_store_of_a_newer_library_is_refused(
    postgres_dsn: str, postgres_schema: str, postgres_connection: psycopg.Connection[Any]
) -> None:
    open_storage(postgres_dsn, schema=postgres_schema).close()
    behind(postgres_connection, f"update {postgres_schema}.state set schema_version = 99")
    with pytest.raises(SchemaVersionError, match="99"):
        open_storage(postgres_dsn, schema=postgres_schema)


def test_read_only_and_migrate_false_make_nothing(
    postgres_dsn: str, postgres_schema: str, postgres_connection: psycopg.Connection[Any]
) -> None:
    with pytest.raises(StorageReadOnlyError):
        open_storage(postgres_dsn, schema=postgres_schema, read_only=True)
    with pytest.raises(SchemaVersionError):
        open_storage(postgres_dsn, schema=postgres_schema, migrate=False)
    found = behind(postgres_connection, "select 1 from pg_namespace where nspname = %s", (postgres_schema,)).fetchall()
    assert found == []
    with open_storage(postgres_dsn, schema=postgres_schema) as store:
        store.set("a", 1)
    with open_storage(postgres_dsn, schema=postgres_schema, read_only=True, migrate=False) as store:
        assert store.get("a") == 1
        with pytest.raises(StorageReadOnlyError):
            store.set("a", 2)
        with store.transaction() as tx, pytest.raises(StorageReadOnlyError):
            tx.set("a", 2)


def test_any_name_of_a_schema_is_quoted(postgres_dsn: str, postgres_connection: psycopg.Connection[Any]) -> None:
    from psycopg.sql import SQL, Identifier

    name = f"""a"b'; drop table {{s}} % $1 é {os.getpid()}"""
    try:
        with open_storage(postgres_dsn, schema=name) as store:
            store.set("a", {"n": 1})
            store.create_index("n", unique=True)
            assert store.explain(field("n") == 1).entries == 1
            assert [entry.key for entry in store.query(field("n") == 1, sort="-n")] == ["a"]
            store.check()
            store.drop_index(store.list_indexes()[0].name)
            assert store.delete_where(field("n") == 1) == 1
    finally:
        postgres_connection.execute(SQL("drop schema {} cascade").format(Identifier(name)))


# ---- check, and what others write


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("update {s}.entries set value = '{{' where key = 'a'", "'a'"),
        ("update {s}.entries set doc = '5' where key = 'a'", "query form"),
        ("update {s}.entries set version = 0 where key = 'a'", "version"),
        ("delete from {s}.namespaces where name = 'other'", "'other'"),
        ("update {s}.state set floor = -1", "floor"),
        ("drop index {s}.{index}", "'mine'"),
        ("delete from {s}.indexes", "does not define"),
    ],
)
def test_check_finds_what_others_have_done_to_the_tables(
    store: Storage, postgres_connection: psycopg.Connection[Any], postgres_schema: str, damage: str, told: str
) -> None:
    store.set_many({"a": {"n": 1}, "b": {"n": 2}})
    store.set("c", 1, namespace="other")
    store.create_index("n", name="mine")
    assert store.check().entries == 3
    row = behind(
        postgres_connection,
        "select indexname from pg_indexes where schemaname = %s and indexname like 'ix%%'",
        (postgres_schema,),
    ).fetchone()
    assert row is not None
    behind(postgres_connection, damage.format(s=postgres_schema, index=row[0]))
    with pytest.raises(StorageCorruptError, match=told):
        store.check()


# ---- backups


def test_a_backup_is_a_sqlite_file_that_either_engine_restores(store: Storage, tmp_path: Any) -> None:
    store.set_many({f"k{n:04}": {"n": n} for n in range(2500)}, metadata={"m": 1})
    store.set("x", 1, namespace="other", ttl=3600)
    store.create_index("n", unique=True, name="mine")
    store.backup(tmp_path / "backup.db")
    before = list(store.scan()), list(store.scan(namespace="other"))
    with open_storage(tmp_path / "backup.db") as file:
        assert (list(file.scan()), list(file.scan(namespace="other"))) == before
        assert [index.name for index in file.list_indexes()] == ["mine"]
        file.check()
    store.clear_all()
    store.drop_index("mine")
    store.set("later", 1)
    version = store.get_entry("later").version
    store.restore(tmp_path / "backup.db")
    assert (list(store.scan()), list(store.scan(namespace="other"))) == before
    assert [index.name for index in store.list_indexes()] == ["mine"]
    assert store.set("later", 2) > version
    store.check()


def test_a_restore_that_is_cancelled_leaves_the_old_state(store: Storage, tmp_path: Any) -> None:
    store.set_many({f"k{n:04}": n for n in range(3000)})
    store.backup(tmp_path / "backup.db")
    store.clear_all()
    store.set("old", 1)

    def cancel(progress: Any) -> None:
        if progress.step == "restoring" and progress.done:
            raise InterruptedError("no more")

    with pytest.raises(InterruptedError):
        store.restore(tmp_path / "backup.db", progress=cancel)
    assert store.list_keys() == ["old"]
    store.set("goes on", 1)


def test_a_scan_waits_for_a_server_that_is_away_as_a_read_does() -> None:
    with PostgresServer() as server, open_storage(server.dsn(), schema="s", busy_timeout=20) as store:
        store.set_many({"a": 1, "b": 2})
        server.stop()
        back = threading.Timer(0.5, server.start)
        back.start()
        assert [entry.key for entry in store.scan()] == ["a", "b"]
        back.join()
        store.check()
        server.stop()
    with pytest.raises(StorageUnavailableError):
        open_storage(server.dsn(), schema="s", busy_timeout=60)  # what is wrong with a target is known at once


def test_a_document_beyond_what_the_server_takes_is_told_as_that(store: Storage) -> None:
    with pytest.raises(CapacityError, match="elements"):
        store.set("a", [0] * 17_000_000)
    assert store.list_keys() == []
    store.set("a", 1)


def test_debug_logs_statements_with_their_time_and_never_values(
    postgres_dsn: str, postgres_schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="mycelia_storage.sql")
    with open_storage(postgres_dsn, schema=postgres_schema) as store:
        store.set("a", "quiet")
    assert caplog.records == []
    with open_storage(postgres_dsn, schema=postgres_schema, debug=True) as store:
        store.set("a key", {"password": "opensesame"})
        store.query(field("password") == "opensesame")
    texts = [record.getMessage() for record in caplog.records]
    assert any(" ms  INSERT INTO" in text for text in texts)
    assert [text for text in texts if "opensesame" in text or "a key" in text] == []


# ---- what the surroundings say


@pytest.mark.parametrize("encoding", ["latin1", "sql_ascii"])
def test_texts_stay_what_they_are_whatever_encoding_a_client_is_told(
    postgres_dsn: str, postgres_schema: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"ä": "äöü", "€": "€ 😀"}
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    with open_storage(postgres_dsn, schema=postgres_schema) as store:
        store.set_many(texts)
        store.set("one", "€")
    with open_storage(postgres_dsn, schema=postgres_schema) as store:
        assert store.get_many(texts) == texts
        assert store.get("one") == "€"


def test_a_slow_answer_of_the_server_moves_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Slow:
        def __init__(self, seconds_on_the_way: float, ahead: float = 0.0) -> None:
            self.delay, self.ahead = seconds_on_the_way, ahead

        def execute(self, text: str) -> Slow:
            now[0] += self.delay / 2
            self.answer = (1_000.0 + now[0] + self.ahead) * 1_000_000
            now[0] += self.delay / 2
            return self

        def fetchone(self) -> tuple[int]:
            return (round(self.answer),)

    clock = ServerClock()
    for delay, ahead, error in ((0.001, 0, 0.001), (3.0, -1.4, 0.01), (0.001, 5.0, 0.002), (2.0, 60.0, 1.1)):
        clock.ask(cast("Any", Slow(delay, ahead)))
        believed = 0.0 if ahead == -1.4 else ahead  # which is less than such an answer can be wrong by
        assert clock() == pytest.approx(1_000.0 + now[0] + believed, abs=error)


def test_writers_of_one_loop_wait_together_for_a_server_that_is_away() -> None:
    async def main(dsn: str) -> tuple[float, set[str]]:
        async with open_async_storage(dsn, schema="s", busy_timeout=0.5) as store:
            server.stop()
            started = time.monotonic()
            results = await asyncio.gather(*(store.set(f"k{n}", n) for n in range(20)), return_exceptions=True)
            return time.monotonic() - started, {type(result).__name__ for result in results}

    with PostgresServer() as server:
        seconds, kinds = asyncio.run(main(server.dsn()))
    assert kinds == {"StorageUnavailableError"}
    assert seconds < 20 * 0.5 / 2  # one wait, or a few, and not one for each


# ---- secrets


def test_no_password_is_shown_anywhere(
    postgres_dsn: str, postgres_schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "hunter2-swordfish"
    dsn = make_conninfo(postgres_dsn, password=secret)
    caplog.set_level(logging.DEBUG)
    with open_storage({"backend": "postgresql", "options": {"dsn": dsn, "schema": postgres_schema}}) as store:
        store.set("a", 1)
        shown = [repr(store), repr(store.get_status()), repr(store._options)]
    away = make_conninfo("", host="/nowhere/at/all", password=secret, user="me", dbname="db")
    with pytest.raises(StorageUnavailableError) as caught:
        open_storage({"backend": "postgresql", "options": {"dsn": away}})
    shown += [str(caught.value), repr(caught.value.__cause__), caplog.text]
    with pytest.raises(ConfigError) as refused:
        open_storage(f"postgresql://me:{secret}@host/db?nothing={secret}")
    shown += [str(refused.value), "".join(traceback.format_exception(refused.value))]
    for torn in (f"postgresql://me:{secret}/tail@127.0.0.1:1/db", f"postgresql://me:x@{secret}@127.0.0.1:1/db"):
        with pytest.raises(ConfigError, match="%40") as refused:
            open_storage(torn)
        shown += ["".join(traceback.format_exception(refused.value))]
    assert [text for text in shown if secret in text] == []


def test_what_a_unique_index_refuses_is_in_no_error(store: Storage) -> None:
    store.create_index("card")
    store.create_index("id", unique=True)
    store.set("a", {"id": "secret-value-1"})
    with pytest.raises(UniqueIndexError) as caught:
        store.set("b", {"id": "secret-value-1"})
    with pytest.raises(UniqueIndexError) as inside, store.transaction() as tx:
        tx.set("b", {"id": "secret-value-1"})
    left: list[BaseException | None] = [caught.value, inside.value]
    while left:
        error = left.pop()
        if error is not None:
            assert "secret-value" not in str(error)
            left += (error.__cause__, error.__context__)


# ---- options


@pytest.mark.parametrize(
    ("dsn", "told"),
    [
        ("postgresql://me@host/db?sslmod=x", "no setting 'sslmod': did you mean 'sslmode'"),
        ("POSTGRESQL://me@host/db?sslmode=require&SSLROOTCERT=x", "did you mean 'sslrootcert'"),
        ("postgres://me@host/db?nothing=geheim", "no setting 'nothing'"),
        ("postgresql://me@host/db?pasword=geheim", "did you mean 'password'"),
        ("host=a sslmod=geheim", "did you mean 'sslmode'"),
        ("host=a password='ge heim' sslmode=x", None),
        # What stands behind a password may be a piece of it.
        ("postgresql://me@host/db?password=x&geheim=1", "no PostgreSQL URL"),
        ("postgresql://me@host/db?pasword=x&geheim=1", "did you mean 'password'"),
        ("postgresql://me:pw/a?geheim=1@host/db", "no PostgreSQL URL"),
        ("host=a password=x geheim=1", "no PostgreSQL URL"),
        ("host=a geheim", "no PostgreSQL URL"),
    ],
)
def test_a_mistyped_setting_is_named_and_no_secret_shown(dsn: str, told: str | None) -> None:
    if told is None:
        assert parameters_of(dsn)["password"] == "ge heim"
        return
    with pytest.raises(ConfigError, match=told) as caught:
        open_storage({"backend": "postgresql", "options": {"dsn": dsn}})
    assert "geheim" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("scheme", ["POSTGRESQL", "Postgres"])
def test_a_scheme_in_capitals_is_a_server_too(scheme: str, postgres_dsn: str, postgres_schema: str) -> None:
    parameters = conninfo_to_dict(postgres_dsn)
    url = f"{scheme}://{parameters['user']}@/{parameters['dbname']}?host={parameters['host']}&port={parameters['port']}"
    with open_storage(url, schema=postgres_schema) as store:
        store.set("a", 1)
        assert store.get_status().backend == "postgresql"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"schema": ""}, "schema"),
        ({"schema": "pg_catalog"}, "schema"),
        ({"schema": "x" * 64}, "schema"),
        ({"pool_min": 5, "pool_max": 2}, "pool_min"),
        ({"pool_max": 0}, "pool_max"),
        ({"db_path": "x.db"}, "db_path"),
        ({"base_dir": "x"}, "base_dir"),
        ({"checksums": True}, "checksums"),
        ({"encryption_key": "k"}, "encryption_key"),
        ({"capacity": 5}, "capacity"),
        ({"dsn": "postgresql://other/db"}, "dsn"),
        ({"statement_timeout": -1}, "statement_timeout"),
        ({"prepare_threshold": -1}, "prepare_threshold"),
    ],
)
def test_options_that_are_wrong_for_a_server_are_refused(postgres_dsn: str, options: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        open_storage(postgres_dsn, **options)


def test_options_of_a_server_are_refused_for_files(tmp_path: Any) -> None:
    for options in ({"dsn": "postgresql://h/d"}, {"schema": "s"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            open_storage(tmp_path / "a.db", **options)  # type: ignore[arg-type]


def test_a_closed_store_says_so(postgres_dsn: str, postgres_schema: str) -> None:
    store = open_storage(postgres_dsn, schema=postgres_schema)
    tx = store.transaction()
    inside = tx.__enter__()
    store.close()
    with pytest.raises(StorageClosedError):
        inside.set("a", 1)
    with pytest.raises(StorageClosedError):
        tx.__exit__(None, None, None)
    for call in (lambda: store.get("a"), lambda: store.set("a", 1), store.check, lambda: store.get_many([])):
        with pytest.raises(StorageClosedError):
            call()
    store.close()


# ---- the command line


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mycelia_storage.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_a_password_in_an_argument_is_refused_and_one_in_the_environment_taken(postgres_dsn: str) -> None:
    parameters = conninfo_to_dict(postgres_dsn)
    url = f"postgresql://{parameters['user']}:swordfish@/{parameters['dbname']}?host={parameters['host']}"
    refused = shell("--store", url, "count")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "PGPASSWORD" in refused.stderr
    assert "swordfish" not in refused.stderr
    taken = shell("status", MYCELIA_STORAGE=url)
    assert "swordfish" not in taken.stdout + taken.stderr
    assert "PGPASSWORD" not in taken.stderr


def test_a_verb_that_reads_makes_no_store_on_a_server(
    postgres_dsn: str, postgres_connection: psycopg.Connection[Any]
) -> None:
    database = f"empty_{os.getpid()}"
    behind(postgres_connection, f"create database {database}")
    try:
        place = make_conninfo(postgres_dsn, dbname=database)
        parameters = conninfo_to_dict(place)
        url = f"postgresql://{parameters['user']}@/{database}?host={parameters['host']}&port={parameters['port']}"
        for verb in (["get", "a"], ["count"], ["status"], ["doctor"]):
            done = shell("--store", url, *verb)
            assert done.returncode == 3, verb
        with psycopg.connect(place) as connection:
            assert behind(connection, "select 1 from pg_namespace where nspname = 'mycelia'").fetchall() == []
        assert shell("--store", url, "set", "a", "1").returncode == 0
        assert shell("--store", url, "get", "a").stdout == '"1"\n'
        told = shell("--store", url, "doctor")
        assert "fsync = off" in told.stdout  # as the server of the tests is set up
        assert told.returncode == 3
    finally:
        behind(postgres_connection, f"drop database {database} with (force)")


@pytest.mark.parametrize(
    ("details", "levels"),
    [
        ({}, []),
        ({"synchronous_commit": "off"}, ["warning"]),
        ({"fsync": "off", "full_page_writes": "off"}, ["problem", "problem"]),
        ({"autovacuum": "off"}, ["warning"]),
        ({"server_version_num": "130002"}, ["warning"]),
        ({"max_connections": "20"}, ["warning"]),
        ({"over_network": "yes", "encrypted_connection": "no"}, ["warning"]),
        ({"over_network": "yes", "encrypted_connection": "yes"}, []),
        ({"is_standby": "yes"}, ["note"]),
    ],
)
def test_doctor_tells_what_is_odd_about_a_server(details: dict[str, str], levels: list[str]) -> None:
    usual = {"pool_max": 16, "max_connections": "100", "server_version_num": "160003", "fsync": "on"}
    assert [level for level, _, _ in findings_on_server(usual | details)] == levels
