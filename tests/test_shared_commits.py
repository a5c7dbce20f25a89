"""Hazard: writes of several callers share a commit, and one gets another's result, is lost, or is applied twice."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from stepping import Held, Workers, error_of, kinds, line_of, line_up, result, until, waiting

from mycelia_storage import (
    AsyncStorage,
    BatchError,
    ConfigError,
    InvalidValueError,
    KeyExistsError,
    KeyNotFoundError,
    Storage,
    StorageBusyError,
    StorageClosedError,
    StorageFullError,
    StorageReadOnlyError,
    TransactionError,
    UniqueIndexError,
    VersionConflictError,
    open_storage,
)
from mycelia_storage.engines.sqlite import commits as commits_module
from mycelia_storage.engines.sqlite.engine import SQLiteEngine
from mycelia_storage.sharing import Call
from mycelia_storage.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from mycelia_storage.testing import FakeClock

    Write = Callable[[], Any]


class SqlLog(logging.Handler):
    """The statements that were run, as `debug=True` logs them."""

    def __init__(self) -> None:
        super().__init__()
        self.statements: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.statements.append(record.getMessage().split("ms  ", 1)[1])

    def of(self, *words: str) -> list[str]:
        """Those that begin with one of the words, in order, each cut to the word."""
        found = ((statement, word) for statement in self.statements for word in words if statement.startswith(word))
        return [word for _, word in found]

    def synchronizing(self) -> list[str]:
        """The outline of transactions: how they are synchronized, where they begin and end."""
        words = ("PRAGMA synchronous=", "BEGIN IMMEDIATE", "COMMIT")
        return [statement for statement in self.statements if statement.startswith(words)]


@pytest.fixture
def sql() -> Iterator[SqlLog]:
    logger, handler = logging.getLogger("mycelia_storage.sql"), SqlLog()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def logged_store(tmp_path: Path, sql: SqlLog) -> Iterator[Storage]:
    """Its statements are in `sql`."""
    with open_storage(tmp_path / "store.db", debug=True) as store:
        store.set("warm", 0)
        yield store


@pytest.fixture(params=["memory", "sqlite"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return "memory:" if request.param == "memory" else tmp_path / "store.db"


def together(store: Storage, writes: Sequence[Write], log: SqlLog | None = None) -> list[Future[Any]]:
    """Let all of them wait in line, in this order, and then go on; gives what came of each."""
    with Workers() as workers:
        with Held(store) as held:
            futures = line_up(store, workers, writes)
            held.let_go()
            until(lambda: all(future.done() for future in futures), "the end of every write")
        if log is not None:
            log.statements = log.statements[log.statements.index("ROLLBACK") + 1 :]
        return futures


def results(futures: Sequence[Future[Any]]) -> list[Any]:
    return [result(future) for future in futures]


def writer_connection(store: Storage) -> apsw.Connection:
    engine = store._engine
    assert isinstance(engine, SQLiteEngine)
    return engine.writer.connection


# ---- one commit


def test_writes_that_wait_share_one_commit(logged_store: Storage, sql: SqlLog) -> None:
    store = logged_store
    store.set_many({"old": 1, "deleted": 1, "taken": 1, "merged": {"a": 1}})
    sql.statements.clear()
    writes: list[Write] = [
        lambda: store.set("new", 1),
        lambda: store.add("added", 1),
        lambda: store.delete("deleted"),
        lambda: store.take("taken").value,
        lambda: store.increment("old", 5),
        lambda: store.merge("merged", {"b": 2}),
        lambda: store.set_many({"x": 1, "y": 2}) and None,
        lambda: store.delete_many(["nothing"]),
        lambda: store.touch("new", ttl=60),
        lambda: store.set_metadata("new", {"m": 1}) > 0,
    ]
    found = results(together(store, writes, sql))
    assert sql.of("BEGIN", "COMMIT") == ["BEGIN", "COMMIT"]
    assert found[1:] == [True, True, 1, 6, {"a": 1, "b": 2}, None, 0, True, True]
    assert store.get_entry("new").version > found[0]
    assert store.list_keys() == ["added", "merged", "new", "old", "warm", "x", "y"]


def test_calls_that_are_handed_over_together_share_one_commit(logged_store: Storage, sql: SqlLog) -> None:
    sql.statements.clear()
    calls = [Call(lambda verbs: Verbs.increment(verbs, "n")) for _ in range(100)]
    logged_store._share(calls)
    assert sql.of("BEGIN", "COMMIT") == ["BEGIN", "COMMIT"]
    assert [call.result for call in calls] == list(range(1, 101))


def test_what_a_shared_commit_knows_of_a_namespace_is_forgotten_with_it(any_store: Storage) -> None:
    store = any_store
    for _ in range(2):
        store._share([Call(lambda verbs: Verbs.set(verbs, "a", 1, namespace="passing")) for _ in range(2)])
        assert "passing" in store.list_namespaces()
        store.check()
        store.delete_namespace("passing", recursive=True)


@pytest.mark.parametrize("is_apart", [False, True])
def test_a_version_is_greater_than_one_that_was_removed_in_the_same_commit_or_between_two(
    any_store: Storage, clock: FakeClock, is_apart: bool
) -> None:
    """What lay ahead of the clock and was removed is a floor for what comes."""
    store = any_store
    clock.advance(3_600)
    ahead = store.set("ahead", 1)
    clock.advance(-3_600)
    before, remove, after = (
        Call(lambda verbs: Verbs.set(verbs, "other", 1)),
        Call(lambda verbs: Verbs.delete(verbs, "ahead")),
        Call(lambda verbs: Verbs.set(verbs, "ahead", 2)),
    )
    for calls in [[before], [remove], [after]] if is_apart else [[before, remove, after]]:
        store._share(calls)
    assert remove.result is True
    assert after.result > ahead
    assert store.get_entry("ahead").version == after.result


def test_a_lone_caller_runs_one_statement(logged_store: Storage, sql: SqlLog) -> None:
    writes: list[Write] = [lambda: logged_store.set("a", 1), lambda: logged_store.delete("a")]
    for write in writes:
        sql.statements.clear()
        write()
        assert len(sql.statements) == 1


def test_so_many_share_a_commit_and_the_rest_the_next(
    logged_store: Storage, sql: SqlLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits_module, "MOST_TOGETHER", 3)
    found = results(together(logged_store, [lambda: logged_store.increment("n")] * 10, sql))
    assert found == list(range(1, 11))
    assert 3 <= len(sql.of("COMMIT")) <= 4


def test_nobody_has_an_answer_before_the_commit(tmp_path: Path) -> None:
    early: list[list[bool]] = []
    futures: list[Future[Any]] = []
    with open_storage(tmp_path / "store.db") as store, Workers() as workers:

        def look(event: dict[str, Any]) -> None:
            if event["sql"].startswith("COMMIT") and futures:
                early.append([future.done() for future in futures])

        with Held(store) as held:
            futures += line_up(store, workers, [lambda: store.increment("n")] * 5)
            writer_connection(store).trace_v2(apsw.SQLITE_TRACE_STMT, look)
            held.let_go()
            assert results(futures) == [1, 2, 3, 4, 5]
        writer_connection(store).trace_v2(0, None)
    assert early == [[False] * 5]


# ---- each its own result or error


def test_each_gets_its_own_result_in_the_order_of_the_line(any_store: Storage) -> None:
    writes: list[Write] = [
        *[lambda: any_store.increment("n")] * 5,
        *[lambda: any_store.add("once", 1)] * 3,
        *(lambda n=n: any_store.set("last", n) for n in range(5)),
        *[lambda: any_store.delete("once")] * 2,
    ]
    found = results(together(any_store, writes))
    assert found[:5] == [1, 2, 3, 4, 5]
    assert found[5:8] == [True, False, False]
    assert len(set(found[8:13])) == 5
    assert found[8:13] == sorted(found[8:13])
    assert found[13:] == [True, False]
    assert any_store.get_entry("last").version == found[12]
    assert any_store.get("last") == 4


def failing(store: Storage) -> list[tuple[Write, type[BaseException]]]:
    """Writes that fail, each in its own way; the last two have written something before they do."""
    store.set_many({"there": 1, "text": "one", "whole": 1, "greatest": 2**63 - 1})
    store.create_index("n", unique=True, namespace="unique", name="unique n")
    store.set("first", {"n": 1}, namespace="unique")
    return [
        (lambda: store.set("there", 2, if_version=1), VersionConflictError),
        (lambda: store.set("missing", 2, if_version=1), VersionConflictError),
        (lambda: store.delete("there", if_version=1), VersionConflictError),
        (lambda: store.set("there", 2, overwrite=False), KeyExistsError),
        (lambda: store.set_many({"new": 1, "there": 2}, overwrite=False), BatchError),
        (lambda: store.increment("text"), InvalidValueError),
        (lambda: store.increment("greatest"), InvalidValueError),
        (lambda: store.set_metadata("missing", {}), KeyNotFoundError),
        (lambda: store.take("missing"), KeyNotFoundError),
        (lambda: store.set("second", {"n": 1}, namespace="unique"), UniqueIndexError),
        (lambda: store.merge("first", {"n": 1, "ok": True}, namespace="unique", if_version=5), VersionConflictError),
        (lambda: store.set_many({"p": {"n": 2}, "q": {"n": 1}}, namespace="unique"), UniqueIndexError),
        (lambda: store.add_many({"r": {"n": 3}, "s": {"n": 1}}, namespace="unique"), UniqueIndexError),
    ]


def test_one_that_fails_harms_no_other(any_store: Storage) -> None:
    wrong = failing(any_store)
    for at_a_time in (1, len(wrong)):
        for start in range(0, len(wrong), at_a_time):
            some = wrong[start : start + at_a_time]
            before = any_store.get("n", 0)
            writes: list[Write] = [lambda: any_store.increment("n")]
            for write, _ in some:
                writes += [write, lambda: any_store.increment("n")]
            futures = together(any_store, writes)
            assert results(futures[::2]) == list(range(before + 1, before + len(some) + 2))
            assert kinds(futures[1::2]) == [kind for _, kind in some]
            assert any_store.get("n") == before + len(some) + 1
    assert any_store.get_many(["there", "text", "greatest"]) == {"there": 1, "text": "one", "greatest": 2**63 - 1}
    assert any_store.list_keys(namespace="unique") == ["first"]
    assert any_store.get("first", namespace="unique") == {"n": 1}


def test_conditions_hold_as_if_each_were_alone(any_store: Storage) -> None:
    version = any_store.set("v", 0)
    writes: list[Write] = [
        *(lambda n=n: any_store.set("v", n, if_version=version) for n in range(1, 5)),
        *(lambda n=n: any_store.set("new", n, overwrite=False) for n in range(4)),
        *(lambda n=n: any_store.set("zero", n, if_version=0) for n in range(4)),
    ]
    found = kinds(together(any_store, writes))
    assert found == [
        None, *[VersionConflictError] * 3, None, *[KeyExistsError] * 3, None, *[VersionConflictError] * 3,
    ]  # fmt: skip
    assert any_store.get_many(["v", "new", "zero"]) == {"v": 1, "new": 0, "zero": 0}


def test_members_see_what_those_before_them_did(any_store: Storage) -> None:
    any_store.create_index("n", unique=True, namespace="unique", name="unique n")
    writes: list[Write] = [
        lambda: any_store.set("a", {"n": 1}, namespace="unique"),
        lambda: any_store.set("b", {"n": 1}, namespace="unique"),
        lambda: any_store.delete("a", namespace="unique"),
        lambda: any_store.set("c", {"n": 1}, namespace="unique"),
        lambda: any_store.take("c", namespace="unique").value,
    ]
    futures = together(any_store, writes)
    assert kinds(futures) == [None, UniqueIndexError, None, None, None]
    assert result(futures[4]) == {"n": 1}
    assert any_store.count(namespace="unique") == 0


def test_a_call_that_fails_after_it_wrote_leaves_nothing(any_store: Storage) -> None:
    def writes_and_fails(verbs: Verbs) -> None:
        Verbs.set(verbs, "half", 1)
        Verbs.increment(verbs, "n")
        raise ZeroDivisionError

    calls = [Call(lambda verbs: Verbs.increment(verbs, "n")) for _ in range(5)]
    calls[2] = Call(writes_and_fails)
    any_store._share(calls)
    assert [call.result for call in calls] == [1, 2, None, 3, 4]
    assert isinstance(calls[2].error, ZeroDivisionError)
    assert [call.error for call in calls if call is not calls[2]] == [None] * 4
    assert any_store.list_keys() == ["n"]
    assert any_store.get("n") == 4


@pytest.mark.parametrize("verb", ["set_many", "add_many", "delete_many"])
def test_a_call_that_runs_again_has_all_of_its_items(any_store: Storage, verb: str) -> None:
    """What it was given may be an iterator, which can be drawn from once only."""
    any_store.set_many({"a": 0, "b": 0}, namespace="deleted")
    any_store.create_index("n", unique=True, namespace="unique", name="unique n")
    any_store.set("first", {"n": 1}, namespace="unique")
    items = iter(["a", "b"] if verb == "delete_many" else [("a", 1), ("b", 2)])
    namespace = "deleted" if verb == "delete_many" else "stored"

    async def main() -> list[Any]:
        store = AsyncStorage(any_store)
        # Two writes after it has begun to write, and one of them fails when the other has written already.
        with Held(any_store) as held:
            first = asyncio.ensure_future(store.set("warm", 0))
            await asyncio.to_thread(until, lambda: waiting(any_store) == 1, "a place in line")
            writes = [
                asyncio.ensure_future(getattr(store, verb)(items, namespace=namespace)),
                asyncio.ensure_future(store.set_many({"p": {"n": 2}, "q": {"n": 1}}, namespace="unique")),
            ]
            await asyncio.sleep(0)
            held.let_go()
            await first
            found = await asyncio.gather(*writes, return_exceptions=True)
        await store._stop()
        return list(found)

    given, failed = asyncio.run(main())
    assert type(failed) is UniqueIndexError
    if verb == "delete_many":
        assert (given, any_store.count(namespace="deleted")) == (2, 0)
    else:
        assert sorted(given) == ["a", "b"]
        assert any_store.get_many(["a", "b"], namespace=namespace) == {"a": 1, "b": 2}


def test_a_full_disk_fails_the_one_that_has_no_room(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db") as store:
        store.set("warm", 0)
        connection = writer_connection(store)
        pages = connection.pragma("page_count")
        connection.execute(f"PRAGMA max_page_count={pages + 10}")
        huge = "x" * 200_000
        writes: list[Write] = [
            lambda: store.increment("n"),
            lambda: store.set("huge", huge),
            lambda: store.increment("n"),
            lambda: store.set_many({"small": 1, "huge too": huge}),
            lambda: store.increment("n"),
        ]
        futures = together(store, writes)
        assert kinds(futures) == [None, StorageFullError, None, StorageFullError, None]
        assert results(futures[::2]) == [1, 2, 3]
        assert store.get_many(["n", "huge", "small"]) == {"n": 3}
        connection.execute(f"PRAGMA max_page_count={pages + 1000}")
        store.set("huge", huge)
        assert store.check().entries == 3


def test_what_shares_no_commit_is_told_so(any_store: Storage) -> None:
    calls = [
        Call(lambda verbs: Verbs.increment(verbs, "n")),
        Call(lambda verbs: Verbs.modify(verbs, "n", lambda value: value + 1)),
        Call(lambda verbs: list(Verbs.scan(verbs))),
        Call(lambda verbs: Verbs.increment(verbs, "n")),
    ]
    any_store._share(calls)
    assert [type(call.error) for call in calls] == [type(None), TransactionError, TransactionError, type(None)]
    assert [calls[0].result, calls[3].result] == [1, 2]


def test_calls_that_cannot_run_at_all_have_each_its_error(target: Any) -> None:
    def calls() -> list[Call]:
        return [Call(lambda verbs: Verbs.increment(verbs, "n")) for _ in range(3)]

    store = open_storage(target, busy_timeout=0.01)
    inside, busy, closed = calls(), calls(), calls()
    with store.transaction() as tx:
        store._share(inside)
        with Workers() as workers:
            workers.one().do(lambda: store._share(busy))
        tx.set("a", 1)
    assert store.list_keys() == ["a"]
    store.close()
    store._share(closed)
    for group, kind in ((inside, TransactionError), (busy, StorageBusyError), (closed, StorageClosedError)):
        assert [type(call.error) for call in group] == [kind] * 3
        assert len({id(call.error) for call in group}) == 3
    if target != "memory:":
        with open_storage(target, read_only=True) as store:
            refused = calls()
            store._share(refused)
            assert [type(call.error) for call in refused] == [StorageReadOnlyError] * 3


# ---- order


def test_the_order_of_each_caller_holds(any_store: Storage) -> None:
    """Each caller's writes follow each other, whoever's commit they share."""
    seen: list[list[int]] = [[] for _ in range(6)]
    for _ in range(20):

        def write(number: int) -> None:
            seen[number].append(any_store.set(f"own {number}", len(seen[number])))
            any_store.increment("n")

        results(together(any_store, [lambda n=n: write(n) for n in range(6)]))  # type: ignore[misc]
    assert all(versions == sorted(set(versions)) for versions in seen)
    assert any_store.get("n") == 120
    assert [any_store.get(f"own {number}") for number in range(6)] == [19] * 6


def test_calls_of_one_group_run_in_order(any_store: Storage) -> None:
    calls = [Call(lambda verbs, n=n: Verbs.set(verbs, "last", n)) for n in range(50)]  # type: ignore[misc]
    calls.append(Call(lambda verbs: Verbs.delete(verbs, "last")))
    calls.append(Call(lambda verbs: Verbs.add(verbs, "last", "added")))
    any_store._share(calls)
    versions = [call.result for call in calls[:50]]
    assert versions == sorted(set(versions))
    assert [call.result for call in calls[50:]] == [True, True]
    assert any_store.get("last") == "added"


# ---- durability


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_durable_member_makes_its_group_durable(logged_store: Storage, sql: SqlLog, place: int) -> None:
    writes: list[Write] = [lambda n=n: logged_store.set(f"{n}", n, durable=n == place) for n in range(5)]  # type: ignore[misc]
    results(together(logged_store, writes, sql))
    assert sql.synchronizing() == [
        "PRAGMA synchronous=FULL", "BEGIN IMMEDIATE", "COMMIT", "PRAGMA synchronous=NORMAL",
    ]  # fmt: skip


def test_a_group_without_a_durable_member_is_not(logged_store: Storage, sql: SqlLog) -> None:
    results(together(logged_store, [lambda: logged_store.increment("n", durable=False)] * 3, sql))
    assert sql.synchronizing() == ["BEGIN IMMEDIATE", "COMMIT"]


def test_a_durable_group_that_has_to_run_one_by_one_stays_durable(logged_store: Storage, sql: SqlLog) -> None:
    store = logged_store
    wrong = failing(store)[-1][0]
    sql.statements.clear()
    writes: list[Write] = [lambda: store.increment("n"), wrong, lambda: store.increment("n", durable=True)]
    assert kinds(together(store, writes, sql)) == [None, UniqueIndexError, None]
    outline = sql.synchronizing()
    assert outline[0] == "PRAGMA synchronous=FULL"
    assert outline[-1] == "PRAGMA synchronous=NORMAL"
    assert "PRAGMA synchronous=NORMAL" not in outline[:-1]
    assert store.get("n") == 2


@pytest.mark.parametrize(
    ("options", "before", "after"),
    [
        ({"wal_mode": False}, ["PRAGMA synchronous=EXTRA"], ["PRAGMA synchronous=NORMAL"]),
        ({"synchronous": "FULL"}, [], []),
        ({"synchronous": "EXTRA"}, [], []),
        ({"synchronous": "FULL", "wal_mode": False}, ["PRAGMA synchronous=EXTRA"], ["PRAGMA synchronous=FULL"]),
    ],
    ids=str,
)
def test_durable_is_what_the_journal_needs_for_it(
    tmp_path: Path, sql: SqlLog, options: dict[str, Any], before: list[str], after: list[str]
) -> None:
    with open_storage(tmp_path / "store.db", debug=True, **options) as store:
        store.set("warm", 0)
        for write in (
            lambda: store.set("a", 1, durable=True),
            lambda: store.delete("a", durable=True),
            lambda: store.modify("n", lambda value: value + 1, default=0, durable=True),
            lambda: store.run_transaction(lambda tx: tx.set("b", 1), durable=True),
        ):
            sql.statements.clear()
            write()
            assert sql.synchronizing() == [*before, "BEGIN IMMEDIATE", "COMMIT", *after]


def test_a_durable_call_makes_its_group_durable(logged_store: Storage, sql: SqlLog) -> None:
    sql.statements.clear()
    calls = [Call(lambda verbs: Verbs.increment(verbs, "n"), durable=number == 1) for number in range(3)]
    logged_store._share(calls)
    assert sql.synchronizing()[0] == "PRAGMA synchronous=FULL"
    assert [call.result for call in calls] == [1, 2, 3]


def test_durable_where_nothing_is_ever_synchronized_fails_its_own_caller_only(tmp_path: Path) -> None:
    with (
        open_storage(tmp_path / "store.db", synchronous="OFF") as store,
        Workers() as workers,
        Held(store) as held,
    ):
        futures = line_up(store, workers, [lambda: store.increment("n")] * 2)
        with pytest.raises(ConfigError, match="durable"):
            workers.one().do(lambda: store.increment("n", durable=True))
        held.let_go()
        assert results(futures) == [1, 2]


# ---- Ctrl-C in the leader


def lead_into_an_interrupt(store: Storage, arm: Callable[[], object], followers: Sequence[Write]) -> list[Future[Any]]:
    """The main thread leads; somebody interrupts it, and the others stand behind it."""
    with Workers() as workers, Held(store) as held:

        def others_come() -> list[Future[Any]]:
            until(lambda: waiting(store) == 1, "the leader in line")
            futures = line_up(store, workers, followers)
            arm()
            held.let_go()
            return futures

        lining_up = workers.one().start(others_come)
        with contextlib.suppress(KeyboardInterrupt):
            store.increment("leader's own")
        futures = result(lining_up)
        until(lambda: all(future.done() for future in futures), "the end of every other write")
        return futures


def is_well(store: Storage) -> bool:
    store.set("later", 1)
    with store.transaction() as tx:
        tx.delete("later")
    return waiting(store) == 0 and store.get("leader's own", 0) in {0, 1}


@pytest.mark.parametrize("word", ["BEGIN", "INSERT", "COMMIT"])
def test_ctrl_c_in_the_leader_loses_nobodys_work(tmp_path: Path, word: str) -> None:
    with open_storage(tmp_path / "store.db") as store:
        store.set("warm", 0)
        connection = writer_connection(store)
        fired: list[str] = []

        def interrupt(event: dict[str, Any]) -> None:
            if word in event["sql"] and not fired:
                fired.append(event["sql"])
                _thread.interrupt_main()

        def arm() -> None:
            connection.trace_v2(apsw.SQLITE_TRACE_STMT, interrupt)

        futures = lead_into_an_interrupt(store, arm, [lambda: store.increment("n")] * 5)
        connection.trace_v2(0, None)
        assert fired
        assert results(futures) == [1, 2, 3, 4, 5]
        assert store.get("n") == 5
        assert is_well(store)


def test_ctrl_c_in_the_leader_leaves_nobody_the_error_of_a_try_that_was_undone(tmp_path: Path) -> None:
    """The leader's own write was in the way of another, which is written now that it is gone."""
    with open_storage(tmp_path / "store.db") as store:
        store.set("warm", 0)
        connection, inserts = writer_connection(store), list[str]()

        def interrupt(event: dict[str, Any]) -> None:
            if "INSERT" in event["sql"]:
                inserts.append(event["sql"])
                if len(inserts) == 2:
                    _thread.interrupt_main()

        futures = lead_into_an_interrupt(
            store,
            lambda: connection.trace_v2(apsw.SQLITE_TRACE_STMT, interrupt),
            [lambda: store.set("leader's own", 1, if_version=0), lambda: store.increment("n")],
        )
        connection.trace_v2(0, None)
        assert len(inserts) > 2
        assert kinds(futures) == [None, None]
        assert store.get_many(["leader's own", "n"]) == {"leader's own": 1, "n": 1}


class InterruptsTheLeader(deque[Any]):
    """Ctrl-C comes just when the leader has taken somebody out of the line."""

    is_armed = False

    def popleft(self) -> Any:
        item = super().popleft()
        if self.is_armed and _thread.get_ident() == self.main:
            self.is_armed = False
            raise KeyboardInterrupt
        return item

    main = _thread.get_ident()


def test_ctrl_c_while_the_leader_takes_others_along_leaves_nobody_waiting(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db") as store:
        store.set("warm", 0)
        line = line_of(store)
        line._waiting = waiting_ones = InterruptsTheLeader()

        def arm() -> None:
            waiting_ones.is_armed = True

        futures = lead_into_an_interrupt(store, arm, [lambda: store.increment("n")] * 5)
        assert results(futures) == [1, 2, 3, 4, 5]
        assert is_well(store)


class Bell:
    """Rings like the one of a ticket, and Ctrl-C comes just then."""

    def __init__(self, bell: Any) -> None:
        self._bell = bell
        self.acquire = bell.acquire

    def release(self) -> None:
        self._bell.release()
        if _thread.get_ident() == InterruptsTheLeader.main:
            raise KeyboardInterrupt


def test_ctrl_c_while_the_leader_wakes_the_others_leaves_nobody_waiting(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db") as store:
        store.set("warm", 0)

        def arm() -> None:
            for ticket in list(line_of(store)._waiting)[1:]:
                ticket.bell = Bell(ticket.bell)  # type: ignore[assignment]

        futures = lead_into_an_interrupt(store, arm, [lambda: store.increment("n")] * 5)
        assert results(futures) == [1, 2, 3, 4, 5]
        assert is_well(store)


def test_ctrl_c_in_the_leader_applies_nothing_twice(tmp_path: Path) -> None:
    """Several calls of one waiter run one by one, because one of them fails; Ctrl-C comes between two of them."""
    with open_storage(tmp_path / "store.db") as store:
        wrong = failing(store)[-1]
        assert wrong[1] is UniqueIndexError
        interrupts = iter([KeyboardInterrupt()])

        def interrupted(verbs: Verbs) -> int:
            for interrupt in interrupts:
                raise interrupt
            return Verbs.increment(verbs, "n")

        def fails(verbs: Verbs) -> object:
            return Verbs.set_many(verbs, {"p": {"n": 2}, "q": {"n": 1}}, namespace="unique")

        calls = [Call(lambda verbs: Verbs.increment(verbs, "n")), Call(fails), Call(interrupted)]
        futures = lead_into_an_interrupt(store, lambda: None, [lambda: store._share(calls)])
        assert results(futures) == [None]
        assert [call.result for call in calls] == [1, None, 2]
        assert isinstance(calls[1].error, UniqueIndexError)
        assert store.get("n") == 2
        assert is_well(store)


# ---- who waits too long, and the end


def test_those_who_wait_too_long_are_told_and_their_work_is_not_done(target: Any) -> None:
    with open_storage(target, busy_timeout=0.02) as store, Workers() as workers, Held(store):
        writes: list[Write] = [
            lambda: store.set("a", 1),
            lambda: store.increment("n"),
            lambda: store.add("b", 1),
            lambda: store.delete("a"),
            lambda: store.set("c", 1, durable=True),
        ]
        assert kinds([workers.one().start(write) for write in writes]) == [StorageBusyError] * 5
        assert waiting(store) == 0
        assert store.list_keys() == []


def test_one_that_gave_up_is_not_done_by_those_who_stayed(target: Any) -> None:
    with open_storage(target, busy_timeout=0.2) as store, Workers() as workers, Held(store) as held:
        early = workers.one().start(lambda: store.increment("early"))
        until(lambda: waiting(store) == 1, "the early one in line")
        assert isinstance(error_of(early), StorageBusyError)
        late = line_up(store, workers, [lambda: store.increment("late")] * 2)
        held.let_go()
        until(lambda: all(future.done() for future in late), "the late ones")
        # On a machine that stalls they too may have had to give up: but then they have not written.
        assert store.get("late", 0) == kinds(late).count(None)
        assert store.get("early") is None


def test_many_calls_wait_as_long_as_one(target: Any) -> None:
    """Each of five hundred waiting by itself would take a minute and more."""
    with open_storage(target, busy_timeout=0.2) as store, Workers() as workers, Held(store):
        calls = [Call(lambda verbs: Verbs.increment(verbs, "n")) for _ in range(500)]
        workers.one().do(lambda: store._share(calls))
        assert {type(call.error) for call in calls} == {StorageBusyError}


def test_without_a_wal_many_calls_wait_for_a_reader_as_long_as_one(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db", wal_mode=False, busy_timeout=0.2) as store, Workers() as workers:
        store.set("a", 1)
        with store.transaction(read_only=True) as tx:
            tx.get("a")
            calls = [Call(lambda verbs: Verbs.increment(verbs, "n")) for _ in range(500)]
            workers.one().do(lambda: store._share(calls))
            assert {type(call.error) for call in calls} == {StorageBusyError}
        assert store.increment("n") == 1


def test_close_while_others_wait_hangs_nobody_and_writes_nothing(target: Any) -> None:
    store = open_storage(target, busy_timeout=30)
    with Workers() as workers:
        holder = workers.one()
        tx = holder.do(lambda: store.transaction().__enter__())
        holder.do(lambda: tx.set("held", 1))
        writes: list[Write] = [
            lambda: store.set("a", 1),
            lambda: store.increment("n"),
            lambda: store.delete("a"),
            lambda: store.modify("n", lambda value: value, default=1),
            lambda: store.run_transaction(lambda inner: inner.set("b", 1)),
            lambda: store.clear(),
            lambda: store._share([Call(lambda verbs: Verbs.set(verbs, "c", 1))]),
        ]
        futures = line_up(store, workers, writes)
        workers.one().do(store.close)
        assert kinds(futures) == [*[StorageClosedError] * 6, None]
        with pytest.raises(StorageClosedError):
            holder.do(lambda: tx.set("held", 2))
    if target != "memory:":
        with open_storage(target, busy_timeout=0.1) as store:
            assert store.list_keys() == []
            store.set("works", 1)
