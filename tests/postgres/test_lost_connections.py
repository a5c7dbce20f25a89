"""Hazard: a connection is lost, and a write is taken for done, done twice, or its caller gets the wrong error.

A proxy between the store and the shared server cuts a connection at a chosen message: before the server hears of a
commit, or after it has done it and before the client hears of that. To the client both look the same.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from proxy import Proxy, Said, When, commits, says

from mycelia_storage import (
    ConfigError,
    OutcomeUnknownError,
    StorageReadOnlyError,
    StorageUnavailableError,
    field,
    open_async_storage,
    open_storage,
)
from mycelia_storage.testing.postgres_server import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

    from mycelia_storage import Storage, Transaction

PATIENCE_SECONDS = 20

both_ways = pytest.mark.parametrize("when", ["before", "after"])


@pytest.fixture
def proxy(postgres_dsn: str) -> Iterator[Proxy]:
    with Proxy(postgres_dsn) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: Proxy, postgres_schema: str) -> Iterator[Storage]:
    with open_storage(proxy.dsn, schema=postgres_schema, busy_timeout=PATIENCE_SECONDS, pool_max=4) as store:
        yield store


# ---- a commit

MANY = {f"key{number:05}": number for number in range(3000)}

# What is written over which value, and what is there afterwards.
WRITES: dict[str, tuple[Callable[[Storage], object], object, object]] = {
    "set": (lambda store: store.set("key", "new"), "old", "new"),
    "merge": (lambda store: store.merge("key", {"b": 2}), {"a": 1}, {"a": 1, "b": 2}),
    "increment": (lambda store: store.increment("key"), 1, 2),
    "modify": (lambda store: store.modify("key", lambda value: value + 1), 1, 2),
    "delete": (lambda store: store.delete("key"), "old", None),
    "take": (lambda store: store.take("key"), "old", None),
    "set_many": (lambda store: store.set_many({"key": "new", "other": 1}), "old", "new"),
    "set_many of many": (lambda store: store.set_many({**MANY, "key": "new"}), "old", "new"),
    "load": (lambda store: store.load(MANY | {"key": "new"}, batch_size=10_000), "old", "new"),
    "clear": (lambda store: store.clear(), "old", None),
    "delete_where": (lambda store: store.delete_where(field("$key") == "key"), "old", None),
}


@both_ways
@pytest.mark.parametrize("name", WRITES)
def test_of_a_commit_that_nobody_confirmed_the_outcome_is_unknown(
    store: Storage, proxy: Proxy, when: When, name: str
) -> None:
    write, before, after = WRITES[name]
    store.set("key", before)
    proxy.cut_at(commits, when)
    with pytest.raises(OutcomeUnknownError, match="may or may not have happened"):
        write(store)
    assert proxy.cuts == 1
    assert store.get("key") == (before if when == "before" else after)
    store.set("key", "afterwards")
    assert store.get("key") == "afterwards"


@both_ways
def test_a_transaction_is_not_run_again_when_its_commit_may_have_happened(
    store: Storage, proxy: Proxy, when: When
) -> None:
    runs: list[int] = []

    def count(tx: Transaction) -> None:
        runs.append(1)
        tx.increment("n")

    proxy.cut_at(commits, when)
    with pytest.raises(OutcomeUnknownError):
        store.run_transaction(count)
    assert runs == [1]
    assert store.get("n") == (None if when == "before" else 1)

    proxy.cut_at(commits, when)
    with pytest.raises(OutcomeUnknownError), store.transaction() as tx:
        tx.set_many({"key": 1, "other": 2})
    assert store.get_many(["key", "other"]) == ({} if when == "before" else {"key": 1, "other": 2})


@both_ways
def test_everyone_who_shared_a_commit_hears_that_its_outcome_is_unknown(
    proxy: Proxy, postgres_schema: str, when: When
) -> None:
    async def main() -> None:
        async with open_async_storage(proxy.dsn, schema=postgres_schema, busy_timeout=PATIENCE_SECONDS) as store:
            await store.set("first", 0)
            proxy.cut_at(lambda said: said.is_inside and commits(said), when)
            writes = (store.set(f"key{number}", number) for number in range(20))
            outcomes = await asyncio.gather(*writes, return_exceptions=True)
            assert proxy.cuts == 1
            kept = await store.get_many([f"key{number}" for number in range(20)])
            unknown = 0
            for number, outcome in enumerate(outcomes):
                if isinstance(outcome, BaseException):
                    assert isinstance(outcome, OutcomeUnknownError)
                    assert (f"key{number}" in kept) is (when == "after")
                    unknown += 1
                else:
                    assert kept[f"key{number}"] == number
            assert unknown > 1

    asyncio.run(main())


# ---- anything else


def set_and_get(store: Storage, between: Callable[[], object] | None = None) -> None:
    with store.transaction() as tx:
        tx.set("key", "new")
        if between is not None:
            between()
        tx.get("key")


def test_what_was_not_to_be_committed_yet_did_not_happen(store: Storage, proxy: Proxy) -> None:
    store.set("key", "old")
    proxy.cut_at(says("SELECT value"))
    with pytest.raises(StorageUnavailableError) as raised:
        set_and_get(store)
    assert raised.value.retryable
    assert store.get("key") == "old"

    proxy.cut_at(lambda said: said.is_inside and "entries" in said.text, "after")
    with pytest.raises(StorageUnavailableError):
        store.increment("n")
    assert proxy.cuts == 2
    assert store.get("n") is None


@both_ways
def test_a_read_is_done_again_on_another_connection(store: Storage, proxy: Proxy, when: When) -> None:
    store.set("key", {"n": 1})
    proxy.cut_at(says("SELECT"), when, times=3)
    assert store.get("key") == {"n": 1}
    assert proxy.cuts == 3
    for read, answer in READS:
        proxy.cut_at(lambda said: "SELECT" in said.text and not said.is_inside, when)
        assert read(store) == answer


READS: list[tuple[Callable[[Storage], Any], Any]] = [
    (lambda store: store.has("key"), True),
    (lambda store: store.get_many(["key", "none"]), {"key": {"n": 1}}),
    (lambda store: store.list_keys(), ["key"]),
    (lambda store: store.query({"field": "n", "operator": "eq", "value": 1}).keys(), ["key"]),
    (lambda store: store.count(), 1),
    (lambda store: store.list_namespaces(), ["default"]),
    (lambda store: store.get_status().entries, 1),
]


def test_a_transaction_begins_on_another_connection(store: Storage, proxy: Proxy) -> None:
    proxy.cut_at(says("BEGIN"), times=3)
    with store.transaction() as tx:
        tx.set("key", 1)
    assert proxy.cuts == 3
    assert store.get("key") == 1


def test_connections_that_were_lost_while_nobody_used_them_cost_nobody_an_error(
    proxy: Proxy, postgres_schema: str
) -> None:
    with open_storage(proxy.dsn, schema=postgres_schema, pool_min=4, pool_max=4) as store:
        store.set("n", 0)
        for number in range(3):
            proxy.cut_all()
            store.set("key", number)  # of which nobody would know the outcome, had it been sent
            proxy.cut_all()
            store.increment("n")
        assert store.get_many(["key", "n"]) == {"key": 2, "n": 3}


def test_a_scan_whose_connection_is_lost_says_so(store: Storage, proxy: Proxy) -> None:
    store.set_many(MANY)
    with store.scan(batch_size=100) as scan:
        next(scan)
        proxy.cut_at(lambda said: said.is_inside)
        with pytest.raises(StorageUnavailableError):
            list(scan)
    assert proxy.cuts == 1
    assert sum(1 for _ in store.scan()) == len(MANY)


def test_a_killed_server_process_is_like_a_lost_connection(
    store: Storage, postgres_connection: psycopg.Connection[tuple[Any, ...]], postgres_schema: str
) -> None:
    store.set("key", "old")
    terminate = "select pg_terminate_backend(pid) from pg_stat_activity where state like 'idle in%%' and query like %s"
    with pytest.raises(StorageUnavailableError):
        set_and_get(store, lambda: postgres_connection.execute(terminate, [f"%{postgres_schema}%"]))
    assert store.get("key") == "old"


# ---- a server that may only be read


@pytest.fixture(scope="module")
def primary_and_standby() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    with PostgresServer() as primary, primary.standby("s1") as standby:
        yield primary, standby


def test_whoever_comes_to_a_standby_looks_for_the_primary(
    primary_and_standby: tuple[PostgresServer, PostgresServer], postgres_schema: str
) -> None:
    primary, standby = primary_and_standby
    with (
        Proxy(primary.dsn()) as proxy,
        open_storage(proxy.dsn, schema=postgres_schema, busy_timeout=PATIENCE_SECONDS, pool_max=1) as store,
    ):
        store.set("key", 0)
        standby.wait_for(primary)
        writes: list[Callable[[], object]] = [
            lambda: store.set("key", 1),
            lambda: store.increment("key"),
            lambda: store.run_transaction(lambda tx: tx.increment("key")),
        ]
        for write in writes:
            proxy.route = [standby.dsn(), primary.dsn()]
            proxy.cut_all()
            write()
            assert len(proxy.route) == 1
        assert store.get("key") == 3

        proxy.route = [standby.dsn()]
        proxy.cut_all()
        with pytest.raises(StorageReadOnlyError):
            store.set("key", 4)
        with pytest.raises(StorageReadOnlyError), store.transaction() as tx:
            tx.set("key", 4)
        assert store.get("key") in (0, 1, 2, 3)  # as far as the standby is
        proxy.route = [primary.dsn()]
        proxy.cut_all()
        store.set("key", 5)
        assert store.get("key") == 5


# ---- a pooler between


@pytest.mark.parametrize("threshold", [None, 0])
def test_behind_a_pooler_nothing_is_kept_on_a_connection(
    postgres_dsn: str, postgres_schema: str, threshold: int | None
) -> None:
    with Proxy(postgres_dsn, pooling=2) as proxy:

        def work() -> None:
            with open_storage(
                proxy.dsn, schema=postgres_schema, prepare_threshold=threshold, pool_min=1, pool_max=1
            ) as store:
                for number in range(20):
                    store.set(f"key{number}", {"n": number})
                    store.increment("n")
                    assert store.get(f"key{number}") == {"n": number}
                store.set_many(MANY)
                store.create_index("n", unique=True)
                with store.transaction() as tx:
                    tx.set("a", {"n": -1})
                    with tx.transaction() as inner:
                        inner.set("b", {"n": -2})
                assert store.query({"field": "n", "operator": "lt", "value": 3}, sort="n").keys() == [
                    "b",
                    "a",
                    "key0",
                    "key1",
                    "key2",
                ]
                assert sum(1 for _ in store.scan(batch_size=100)) == len(store.list_keys())

        if threshold is None:
            work()
        else:  # this pooler does find it out
            with pytest.raises(ConfigError, match="prepare_threshold=None"):
                work()


def test_the_proxy_tells_commits_from_other_statements() -> None:
    assert commits(Said("COMMIT", is_inside=True))
    assert commits(Said("\nWITH gone AS (DELETE", is_inside=False))
    assert not commits(Said("\nWITH gone AS (DELETE", is_inside=True))
    assert not commits(Said("SELECT 1", is_inside=False))
