"""Hazard: a step of several statements is cut in two, and the rest of it commits outside of its transaction.

By a store that is closed in another thread, or by a server that ended the transaction. And what else goes by how a
transaction ended: a commit is taken for done that was not, or for unknown that surely did not happen.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from mycelia_storage import (
    OutcomeUnknownError,
    StorageClosedError,
    StorageCorruptError,
    TransactionError,
    open_storage,
)
from mycelia_storage.engines.postgres import connections, engine
from mycelia_storage.engines.postgres.clock import ServerClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mycelia_storage import Storage

PATIENCE_SECONDS = 20


@pytest.fixture
def store(postgres_dsn: str, postgres_schema: str) -> Iterator[Storage]:
    with open_storage(postgres_dsn, schema=postgres_schema, busy_timeout=PATIENCE_SECONDS) as store:
        yield store


class Pause:
    """Stops whoever is about to run a statement with this text in it, until it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        self.is_there = threading.Event()
        self.may_go_on = threading.Event()
        real = psycopg.RawCursor.execute

        def execute(cursor: Any, query: Any, *arguments: Any, **options: Any) -> Any:
            if text in query and not self.is_there.is_set():
                self.is_there.set()
                assert self.may_go_on.wait(PATIENCE_SECONDS)
            return real(cursor, query, *arguments, **options)

        monkeypatch.setattr(psycopg.RawCursor, "execute", execute)


class Worker(threading.Thread):
    """Does something, and keeps what it raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__()
        self.raised: BaseException | None = None
        self._work = work
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.raised = error


# Each is stopped between two of the statements that have to happen together.
STEPS: dict[str, tuple[str, Callable[[Storage, Path], object]]] = {
    "restore": ("DELETE FROM", lambda store, path: store.restore(path)),
    "restore, later": ("ON CONFLICT (namespace, key) DO UPDATE SET\n  version = excluded.version",
                       lambda store, path: store.restore(path)),
    "create_index": ("CREATE INDEX", lambda store, _: store.create_index("n", name="new")),
    "create_index, later": ("ANALYZE", lambda store, _: store.create_index("n", name="new")),
    "drop_index": ("DROP INDEX", lambda store, _: store.drop_index("old")),
}  # fmt: skip


@pytest.mark.parametrize("goes_on", ["afterwards", "meanwhile"])
@pytest.mark.parametrize("name", STEPS)
def test_a_store_that_is_closed_in_the_middle_of_a_step_keeps_what_was_there(
    store: Storage,
    postgres_dsn: str,
    postgres_schema: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    goes_on: str,
) -> None:
    text, work = STEPS[name]
    store.set_many({f"key{number}": {"n": number} for number in range(50)})
    store.backup(tmp_path / "backup.db")
    store.create_index("n", name="old")
    pause = Pause(monkeypatch, text)
    if goes_on == "afterwards":  # close() does not wait for ever for whoever does not come back
        monkeypatch.setattr(engine, "_CLOSING_SECONDS", 0.05)
    else:
        monkeypatch.setattr(connections.Connection, "cancel_soon", lambda *_: pause.may_go_on.set())
    worker = Worker(lambda: work(store, tmp_path / "backup.db"))
    assert pause.is_there.wait(PATIENCE_SECONDS)
    store.close()
    pause.may_go_on.set()
    worker.join()
    assert type(worker.raised) is StorageClosedError
    with open_storage(postgres_dsn, schema=postgres_schema) as again:
        assert again.count() == 50
        assert [index.name for index in again.list_indexes()] == ["old"]
        again.check()


def test_a_commit_that_is_under_way_when_the_store_is_closed_is_waited_for(
    store: Storage, postgres_dsn: str, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = Pause(monkeypatch, "COMMIT")
    worker = Worker(lambda: store.set("key", 1, if_version=0))
    assert pause.is_there.wait(PATIENCE_SECONDS)
    closing = Worker(store.close)
    pause.may_go_on.set()
    worker.join()
    closing.join()
    assert worker.raised is None
    with open_storage(postgres_dsn, schema=postgres_schema) as again:
        assert again.get("key") == 1


def test_whoever_waits_for_a_commit_too_long_for_close_hears_that_its_outcome_is_unknown(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_CLOSING_SECONDS", 0.05)
    pause = Pause(monkeypatch, "COMMIT")
    worker = Worker(lambda: store.set("key", 1, if_version=0))
    assert pause.is_there.wait(PATIENCE_SECONDS)
    store.close()
    pause.may_go_on.set()
    worker.join()
    assert type(worker.raised) is OutcomeUnknownError


def waited_for(connection: psycopg.Connection[Any], text: str, values: tuple[object, ...]) -> None:
    """Until a question has an answer."""
    end = time.monotonic() + PATIENCE_SECONDS
    while connection.execute(text.encode(), values).fetchone() is None:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_close_cancels_a_statement_that_waits_for_a_lock(
    store: Storage, postgres_dsn: str, postgres_schema: str, postgres_connection: psycopg.Connection[Any]
) -> None:
    store.set("key", 1)
    with psycopg.connect(postgres_dsn) as other:
        other.execute(SQL("select 1 from {}.entries for update").format(Identifier(postgres_schema)))
        worker = Worker(lambda: store.increment("key"))
        waited_for(
            postgres_connection,
            "select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like %s",
            (f"%{postgres_schema}%",),
        )
        store.close()
        worker.join(PATIENCE_SECONDS / 2)
        assert not worker.is_alive()  # and the lock is still held
        other.rollback()
    assert type(worker.raised) is StorageClosedError


@pytest.mark.parametrize("when", ["before the commit", "in its stead"])
def test_a_commit_without_a_transaction_is_no_success(
    store: Storage, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    store.set("key", "old")
    real = psycopg.RawCursor.execute

    def execute(cursor: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        if when == "in its stead" and query == "COMMIT":
            real(cursor, "ROLLBACK")
        result = real(cursor, query, *arguments, **options)
        if when == "before the commit" and "INSERT" in query:
            cursor.connection.execute("ROLLBACK")
        return result

    def work() -> None:
        with store.transaction() as tx:
            monkeypatch.setattr(psycopg.RawCursor, "execute", execute)
            tx.set("key", "new")

    with pytest.raises(TransactionError) as caught:
        work()
    assert type(caught.value) is TransactionError
    monkeypatch.undo()
    assert store.get("key") == "old"


@pytest.mark.parametrize("how", ["commit", "set"])
def test_a_transaction_that_the_server_ended_as_idle_surely_did_not_happen(
    postgres_dsn: str, postgres_schema: str, postgres_connection: psycopg.Connection[Any], how: str
) -> None:
    dsn = make_conninfo(
        postgres_dsn, application_name=postgres_schema, options="-c idle_in_transaction_session_timeout=50"
    )
    with open_storage(
        {"backend": "postgresql", "options": {"dsn": dsn, "schema": postgres_schema}}, pool_min=0, pool_max=1
    ) as store:

        def work() -> None:
            with store.transaction() as tx:
                tx.set("key", 1)
                waited_for(
                    postgres_connection,
                    "select 1 where not exists (select 1 from pg_stat_activity where application_name = %s)",
                    (postgres_schema,),
                )
                if how == "set":
                    tx.set("key", 2)

        with pytest.raises(TransactionError) as caught:
            work()
        assert type(caught.value) is TransactionError
        assert not store.has("key")


def test_what_the_server_warns_of_while_it_looks_at_tables_is_no_unknown_outcome(
    store: Storage, postgres_dsn: str, postgres_schema: str, postgres_connection: psycopg.Connection[Any]
) -> None:
    role, schema = Identifier(f"r_{postgres_schema}"), Identifier(postgres_schema)
    postgres_connection.execute(SQL("create role {}").format(role))
    try:
        postgres_connection.execute(SQL("grant usage on schema {} to {}").format(schema, role))
        postgres_connection.execute(
            SQL("grant select, update, delete on all tables in schema {} to {}").format(schema, role)
        )
        dsn = make_conninfo(postgres_dsn, options=f"-c role=r_{postgres_schema}")
        with open_storage({"backend": "postgresql", "options": {"dsn": dsn, "schema": postgres_schema}}) as mine:
            mine.optimize()  # which the server does not do for this role, and warns of
    finally:
        postgres_connection.execute(SQL("drop owned by {}").format(role))
        postgres_connection.execute(SQL("drop role {}").format(role))


def test_a_store_whose_state_is_gone_says_so_to_whoever_writes(
    store: Storage, postgres_schema: str, postgres_connection: psycopg.Connection[Any]
) -> None:
    postgres_connection.execute(SQL("delete from {}.state").format(Identifier(postgres_schema)))
    with pytest.raises(StorageCorruptError, match="state"):
        store.set("key", 1)
    with pytest.raises(StorageCorruptError, match="state"), store.transaction() as tx:
        tx.set_many({"a": 1, "b": 2})


def test_an_index_that_the_database_lost_can_be_dropped(
    store: Storage, postgres_schema: str, postgres_connection: psycopg.Connection[Any]
) -> None:
    store.create_index("n", name="lost")
    found = postgres_connection.execute(
        "select indexname from pg_indexes where schemaname = %s and indexname like 'ix%%'", (postgres_schema,)
    ).fetchall()
    postgres_connection.execute(SQL("drop index {}.{}").format(Identifier(postgres_schema), Identifier(found[0][0])))
    store.drop_index("lost")
    store.check()


def test_an_interrupt_while_a_connection_is_looked_at_leaks_none(
    postgres_dsn: str, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with open_storage(postgres_dsn, schema=postgres_schema, pool_max=2, busy_timeout=1) as store:
        with monkeypatch.context() as patched:
            patched.setattr(ServerClock, "is_due", lambda _: True)
            patched.setattr(ServerClock, "ask", interrupted)
            for _ in range(3):
                with pytest.raises(KeyboardInterrupt):
                    store.get("key")
        store.set("key", 1)
        with store.transaction(read_only=True):
            assert store.get("key") == 1  # both connections are there
