"""Hazard: the primary dies under load, and something that was acknowledged is gone afterwards, or clients stay away.

A primary and two standbys on this machine, of which one has to confirm each commit. The primary and all its processes
are killed while threads write through one store, and the more advanced standby is promoted. The long form does that
again and again:

    pytest --hypothesis-profile=long -n 0 -s tests/postgres/test_failover.py
"""

from __future__ import annotations

import contextlib
import time

import pytest
from postgres_writers import Writers

from mycelia_storage import open_storage
from mycelia_storage.testing.postgres_server import PostgresServer, Setting, most_advanced, multi_host_dsn

QUORUM = "ANY 1 (s1, s2, s3)"
PATIENCE_SECONDS = 30


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--hypothesis-profile") == "long")


def test_no_acknowledged_write_is_lost_when_the_primary_dies(is_long: bool) -> None:
    rounds = 20 if is_long else 1
    with contextlib.ExitStack() as stack:
        # They keep their names and ports: whoever was the primary comes back as a standby in the same place.
        settings = {"synchronous_standby_names": QUORUM, "cluster_name": "s3"}
        primary = stack.enter_context(PostgresServer(tcp=True, settings=settings))
        standbys = [stack.enter_context(primary.standby(name)) for name in ("s1", "s2")]
        store = stack.enter_context(
            open_storage(multi_host_dsn([primary, *standbys]), pool_max=4, busy_timeout=PATIENCE_SECONDS)
        )
        gaps: list[float] = []
        with Writers(store) as writers:
            for number in range(rounds):
                writers.go_on(50)
                killed = time.monotonic()
                primary.kill()
                chosen = most_advanced(standbys)
                (other,) = (server for server in standbys if server is not chosen)
                other.follow(chosen)  # before: from now on it has to confirm what is written
                chosen.promote()
                writers.go_on(50)
                gaps.append(writers.gap(killed))
                if number + 1 < rounds:
                    primary.rejoin(chosen)
                    primary, standbys = chosen, [other, primary]
        assert writers.wrong() == []
        assert store.get_status().entries > 100 * rounds
    print(f"{rounds} failovers: {writers.said()}, 0 lost; nothing acknowledged for at most {max(gaps):.2f} s")


def test_what_an_asynchronous_standby_had_not_received_is_lost() -> None:
    with (
        PostgresServer(tcp=True) as primary,
        primary.standby("s1") as standby,
        open_storage(multi_host_dsn([primary, standby]), busy_timeout=PATIENCE_SECONDS) as store,
    ):
        versions = store.set_many({f"early{number}": number for number in range(100)})
        standby.wait_for(primary)
        standby.stop()
        for number in range(100):
            store.set(f"late{number}", number)  # acknowledged: nobody has to confirm it
        primary.kill()
        standby.start()
        standby.promote()
        assert {entry.key: entry.version for entry in store.scan()} == versions
        store.set("late0", "again")
        assert store.get("late0") == "again"
    print("asynchronous standby, 100 writes behind: 100 acknowledged writes lost")


@pytest.mark.parametrize("durable", [False, True])
def test_what_is_to_be_durable_outlives_a_server_that_commits_asynchronously(durable: bool) -> None:
    # Its commits wait in memory for the process that writes the log, which takes its time.
    settings: dict[str, Setting] = {
        "synchronous_commit": False,
        "wal_writer_delay": "10s",
        "wal_writer_flush_after": "1GB",
    }
    with (
        PostgresServer(settings=settings) as server,
        open_storage(server.dsn(), busy_timeout=PATIENCE_SECONDS) as store,
    ):
        for number in range(20):
            store.set(f"before{number}", number)
        store.set("key", 1, durable=durable)
        for number in range(20):
            store.set(f"after{number}", number)
        server.kill()
        server.start()
        keys = store.list_keys()
    if durable:
        assert {"key", *(f"before{number}" for number in range(20))} <= set(keys)
    assert "after19" not in keys, "the server was to lose what nobody had asked it to keep"
