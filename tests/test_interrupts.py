"""Hazard: an exception comes at a bad moment (Ctrl-C, a clock that fails, a damaged text) and later writes are lost,
a lock is kept for ever, or a kept exception pins an old state of the file."""

from __future__ import annotations

import _thread
import contextlib
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from mycelia_storage import Storage, StorageCorruptError, open_storage
from mycelia_storage.engines.sqlite.engine import SQLiteEngine

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=["memory", "sqlite"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return "memory:" if request.param == "memory" else tmp_path / "store.db"


def interrupt_at(store: Storage, word: str) -> apsw.Connection:
    """Ctrl-C arrives while the writer runs a statement with this word in it."""
    engine = store._engine
    assert isinstance(engine, SQLiteEngine)

    def interrupt(event: dict[str, Any]) -> None:
        if word in event["sql"]:
            _thread.interrupt_main()

    engine.writer.connection.trace_v2(apsw.SQLITE_TRACE_STMT, interrupt)
    return engine.writer.connection


@pytest.mark.parametrize("word", ["BEGIN", "COMMIT", "INSERT", "SAVEPOINT"])
def test_after_ctrl_c_in_a_write_later_writes_are_kept(tmp_path: Path, word: str) -> None:
    path = tmp_path / "store.db"
    store = open_storage(path, busy_timeout=0.2)
    for write in (
        lambda: store.increment("n"),
        lambda: store.set_many({"a": 1, "b": 2}),
        lambda: store.set("c", 1),
        lambda: store.transaction().__enter__().set("d", 1),
    ):
        writer = interrupt_at(store, word)
        with contextlib.suppress(KeyboardInterrupt):
            write()
        writer.trace_v2(0, None)
        store.set("later", word)
        store.delete("later")
        store.set("kept", word)
    store.close()
    with open_storage(path) as store:
        assert store.get("kept") == word
        store.check()


def test_a_kept_exception_pins_no_old_state(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with open_storage(path, max_readers=1) as store:
        store.set("a", 1)
        other = apsw.Connection(str(path))
        other.execute(
            "INSERT INTO storage_entries (namespace, key, version, created_at, updated_at, value) VALUES "
            "('default', CAST(x'62ff' AS TEXT), 1, 1, 1, '1'), ('default', 'z', 1, 1, 1, '1')"
        )
        other.close()
        kept: list[BaseException] = []
        for read in (lambda: store.list_keys(), lambda: list(store.scan()), lambda: store.check()):
            try:
                read()
            except StorageCorruptError as error:
                kept.append(error)
            store.set("a", len(kept))
            assert store.get("a") == len(kept)
            assert store.has("a")
        assert len(kept) == 3


def test_a_clock_that_fails_keeps_no_lock_and_no_scan(target: Any) -> None:
    failing = False

    def clock() -> float:
        if failing:
            raise RuntimeError("no time")
        return 1_000.0

    with open_storage(target, clock=clock, busy_timeout=0.05) as store:
        for _ in range(20):
            failing = True
            for call in (
                lambda: store.transaction().__enter__(),
                lambda: store.transaction(read_only=True).__enter__(),
                lambda: store.scan(),
                lambda: store.increment("n"),
                lambda: store.set("n", 1),
                lambda: store.delete("n"),
            ):
                with pytest.raises(RuntimeError, match="no time"):
                    call()
            failing = False
            store.set("n", 1)
            with store.scan() as scan:
                assert [entry.key for entry in scan] == ["n"]


def test_a_transaction_that_is_forgotten_gives_its_lock_back(target: Any) -> None:
    with open_storage(target, busy_timeout=0.05) as store:
        tx = store.transaction()
        tx.__enter__().set("a", 1)
        del tx
        with store.transaction() as another:
            another.set("b", 1)
        assert store.list_keys() == ["b"]


def test_a_write_on_an_ended_transaction_is_refused_even_from_inside_modify(target: Any) -> None:
    from mycelia_storage import TransactionError

    def change(value: int) -> int:
        tx.rollback()
        return value + 1

    with open_storage(target) as store:
        store.set("k", 1)
        with store.transaction() as tx, pytest.raises(TransactionError):
            tx.modify("k", change)
        assert store.get("k") == 1


def test_an_error_of_the_engine_in_a_nested_transaction_is_the_one_that_is_seen(tmp_path: Path) -> None:
    from mycelia_storage import StorageFullError

    with open_storage(tmp_path / "store.db") as store:
        engine = store._engine
        assert isinstance(engine, SQLiteEngine)
        engine.writer.connection.execute("PRAGMA max_page_count=12")

        def work() -> None:
            with store.transaction() as tx:
                tx.set("a", 1)
                with tx.transaction() as inner:
                    inner.set("b", "x" * 200_000)

        with pytest.raises(StorageFullError):
            work()
        assert store.list_keys() == []


def test_a_version_is_not_used_again_by_a_write_that_waited_for_a_delete(target: Any) -> None:
    import threading

    time = 1_000.0
    with open_storage(target, clock=lambda: time) as store:
        store.set("k", "first")
        version = store.get_entry("k").version
        waiter = threading.Thread(target=lambda: store.set("k", "second"))
        with store.transaction() as tx:
            waiter.start()
            time = 1_001.0
            tx.delete("k")
        waiter.join()
        assert store.get_entry("k").version > version
