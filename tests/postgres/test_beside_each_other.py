"""Hazard: on PostgreSQL, which lets both go on where a file lets one wait, one verb undoes what another relies on.

A namespace that is removed while somebody writes to it, a restore while a transaction is open, what has expired
removed under a transaction that is about it.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import time
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import StorageError, TransactionConflictError, open_storage
from mycelia_storage.testing.base import in_another_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import psycopg

    from mycelia_storage import Storage
    from mycelia_storage.testing import FakeClock

LEVELS: tuple[Any, ...] = ("read_committed", "repeatable_read", "serializable")
WAITS = """
SELECT EXISTS (SELECT FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE NOT l.granted AND a.query ~ %s)"""


@pytest.fixture
def store(postgres_dsn: str, postgres_schema: str, clock: FakeClock) -> Iterator[Storage]:
    with open_storage(postgres_dsn, schema=postgres_schema, clock=clock, busy_timeout=20) as store:
        yield store


class Other:
    """Somebody else, in a thread, and whether he waits for us."""

    def __init__(self, connection: psycopg.Connection[Any], schema: str, call: Callable[[], object]) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._called = self._pool.submit(call)
        deadline = time.monotonic() + 30
        while not self._called.done() and connection.execute(WAITS, (schema,)).fetchone() != (True,):
            assert time.monotonic() < deadline, "he neither ends nor waits"
            time.sleep(0.001)

    def ended(self) -> bool:
        """Wait for his end: False where he was refused."""
        try:
            return not isinstance(self._called.exception(30), StorageError)
        finally:
            self._pool.shutdown()


# ---- a namespace that is removed


def remove(store: Storage, level: Any) -> None:
    with store.transaction(isolation=level) as tx:
        tx.delete_namespace("n", recursive=True)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("verb", ["set", "set_many"])
def test_what_is_written_to_a_namespace_that_is_removed_meanwhile_is_registered(
    store: Storage,
    postgres_connection: psycopg.Connection[Any],
    postgres_schema: str,
    level: Any,
    verb: str,
) -> None:
    def write(verbs: Any) -> None:
        verbs.set("k", 1, namespace="n") if verb == "set" else verbs.set_many({"k": 1, "j": 1}, namespace="n")

    def begin_anew() -> None:
        store.set("before", 1, namespace="n")

    def is_as_it_has_to_be(*, was_written: bool) -> None:
        assert store.has("k", namespace="n") is was_written
        store.check()  # which finds entries of namespaces that are not registered
        if "n" in store.list_namespaces():
            store.delete_namespace("n", recursive=True)

    # 1. A verb by itself, while the transaction is open that removes: that one gives way, or both are kept.
    begin_anew()
    with store.transaction(isolation=level) as tx:
        tx.get("a")
        in_another_thread(lambda: write(store))
        try:
            tx.delete_namespace("n", recursive=True)
        except TransactionConflictError:
            tx.rollback()
    is_as_it_has_to_be(was_written=True)

    for mine in LEVELS:
        # 2. A transaction that began before, and writes afterwards.
        begin_anew()
        try:
            with store.transaction(isolation=mine) as tx:
                tx.get("a")
                in_another_thread(lambda: remove(store, level))
                write(tx)
        except TransactionConflictError:
            is_as_it_has_to_be(was_written=False)
        else:
            is_as_it_has_to_be(was_written=True)

        # 3. One that has written, and commits afterwards.
        begin_anew()
        other = None
        try:
            with store.transaction(isolation=mine) as tx:
                write(tx)
                other = Other(postgres_connection, postgres_schema, lambda: remove(store, level))
        except TransactionConflictError:
            kept = False
        else:
            kept = True
        assert other is not None
        is_removed = other.ended()
        assert kept or is_removed, "both were refused"
        is_as_it_has_to_be(was_written=kept and store.has("k", namespace="n"))


# ---- a restore


def restore_under(store: Storage, path: Path, level: Any, key: str, namespace: str, *, is_read: bool) -> None:
    with store.transaction(isolation=level) as tx:
        if is_read:
            assert tx.get("b") == 1
        in_another_thread(lambda: store.restore(path))
        tx.set(key, "of the old state", namespace=namespace)


@pytest.mark.parametrize("level", LEVELS)
def test_what_began_before_a_restore_is_not_committed_after_it(store: Storage, tmp_path: Path, level: Any) -> None:
    store.set_many({"a": 1, "b": 1})
    store.create_namespace("n")
    store.backup(tmp_path / "backup.db")
    store.set("late", 1)
    before = list(store.scan())
    for key, is_read, in_n in itertools.product(("a", "new"), (True, False), (True, False)):
        with pytest.raises(TransactionConflictError):
            restore_under(store, tmp_path / "backup.db", level, key, "n" if in_n else "default", is_read=is_read)
        assert list(store.scan()) == [entry for entry in before if entry.key != "late"]
        assert store.count(namespace="n") == 0
        assert store.list_namespaces() == ["default", "n"]


def test_a_restore_waits_for_what_was_written_before_it(
    store: Storage, postgres_connection: psycopg.Connection[Any], postgres_schema: str, tmp_path: Path
) -> None:
    store.set("a", 1)
    store.backup(tmp_path / "backup.db")
    with store.transaction() as tx:
        tx.set("b", 1)
        other = Other(postgres_connection, postgres_schema, lambda: store.restore(tmp_path / "backup.db"))
        tx.set("c", 1)
    assert other.ended()
    assert store.list_keys() == ["a"]
    store.check()


# ---- what has expired

ABOUT_WHAT_HAS_EXPIRED: dict[str, Callable[[Any], object]] = {
    "set": lambda tx: tx.set("a", 2),
    "set to expire": lambda tx: tx.set("a", 2, ttl=9),
    "set many to expire": lambda tx: tx.set_many({"a": 1, "b": 2}, ttl=9),
    "add": lambda tx: tx.add("a", 2),
    "modify": lambda tx: tx.modify("a", lambda n: n + 1, default=0),
    "touch": lambda tx: tx.touch("a", ttl=9),
    "delete": lambda tx: tx.delete("a"),
    "delete many": lambda tx: tx.delete_many(["a", "b", "live"]),
    "take": lambda tx: tx.take("a", None),
    "read, and write elsewhere": lambda tx: [tx.get("a"), tx.set("live", 2)],
    "take its place in a unique index": lambda tx: tx.set("d", {"u": 1}),
}


@pytest.mark.parametrize("level", LEVELS)
def test_no_transaction_is_refused_since_what_has_expired_was_removed(
    store: Storage, clock: FakeClock, level: Any
) -> None:
    store.create_index("u", unique=True)
    for change in ABOUT_WHAT_HAS_EXPIRED.values():
        store.clear_all()
        store.set_many({key: {"u": number} for number, key in enumerate("cab")}, ttl=1)
        store.set("live", 1)
        clock.advance(2)
        with store.transaction(isolation=level) as tx:
            tx.get("live")
            in_another_thread(store.optimize)  # which begins with that
            change(tx)
        store.check()


def test_a_transaction_removes_nothing_of_others_along_with_its_own(
    store: Storage, clock: FakeClock, postgres_connection: psycopg.Connection[Any], postgres_schema: str
) -> None:
    """It would hold what it removes until its end, and be refused where others remove the same."""
    store.set_many({f"k{n}": 1 for n in range(5)}, ttl=1)
    clock.advance(2)
    with store.transaction() as one:
        one.set("one", 1, ttl=10)
        in_another_thread(lambda: store.run_transaction(lambda tx: tx.set("two", 1, ttl=10), attempts=1))
    assert store.list_keys() == ["one", "two"]
    store.set("three", 1, ttl=10)  # but a verb by itself does
    assert postgres_connection.execute(f"SELECT count(*) FROM {postgres_schema}.entries".encode()).fetchone() == (3,)
