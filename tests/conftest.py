"""Fixtures of every test: a store on each engine, and a guard against threads and file descriptors left behind.

Hypothesis has two profiles. `short` is what every run takes: few examples, the same ones each time, so that a
failure is a change in the code and not luck. `long` looks for what is not known yet; it takes minutes:

    pytest --hypothesis-profile=long tests/test_stateful.py tests/test_values.py
"""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest
import real_postgres
from command_line import path, run
from hypothesis import HealthCheck, settings
from real_postgres import new_postgres_schema, postgres_connection, postgres_dsn, postgres_schema

from mycelia_storage import open_storage
from mycelia_storage.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mycelia_storage import Storage

# Fixtures.
__all__ = ["new_postgres_schema", "path", "postgres_connection", "postgres_dsn", "postgres_schema", "run"]

# A shared machine stalls now and then: a deadline for one example would fail for reasons that are not the code's.
settings.register_profile("short", deadline=None, derandomize=True, max_examples=100, print_blob=True)
settings.register_profile(
    "long", deadline=None, max_examples=3000, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("short")

# They need the driver that encrypts, which has the module name of the one that does not: `make test` runs them in an
# environment of their own.
IS_ENCRYPTING = hasattr(apsw, "mc_version")
collect_ignore = [] if IS_ENCRYPTING else ["encryption"]

# ---- where the files of tests are

_IN_MEMORY = "/dev/shm"
_ROOM = 4 << 30


def pytest_configure() -> None:
    """In memory, where there is room: no test learns anything from a disk, and there each waits for all others' syncs.

    `PYTEST_DEBUG_TEMPROOT=/tmp` or `--basetemp` say otherwise.
    """
    if "PYTEST_DEBUG_TEMPROOT" not in os.environ and os.path.isdir(_IN_MEMORY) and os.access(_IN_MEMORY, os.W_OK):
        room = os.statvfs(_IN_MEMORY)
        if room.f_bavail * room.f_frsize >= _ROOM:
            os.environ["PYTEST_DEBUG_TEMPROOT"] = _IN_MEMORY


# ---- one PostgreSQL server for all tests


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgres-locale", help='the order of texts on the server: "not-C", "C", "icu:de-DE", …')
    parser.addoption("--patroni", action="store_true", help="install Patroni and etcd and let them do a failover")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    is_by_hand = collection_path.name == "test_patroni.py" and not config.getoption("--patroni")
    return True if is_by_hand else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than processors: some tests wait, for a server, a process, or the end of a patience."""
    return 1 + (os.cpu_count() or 1)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    if not IS_ENCRYPTING:
        node.workerinput["postgres"] = real_postgres.start(node.config)


def pytest_collection_finish(session: pytest.Session) -> None:
    # Before the first test, or its pipes would look like something that a test has left behind.
    if not IS_ENCRYPTING and any(map(real_postgres.needs_server, session.items)):
        real_postgres.start(session.config)
    # Thousands of tests are a million objects that stay. Each collection that looked through all of them, those below
    # for instance, took a third of a second: all together a fifth of a run.
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    real_postgres.stop(config)


# ---- nothing is left behind

_DESCRIPTORS = Path("/proc/self/fd")
_PATIENCE_SECONDS = 2.0


def _open_files() -> set[tuple[int, str]]:
    """Every open descriptor with what it points at; nothing on systems that do not tell."""
    if not _DESCRIPTORS.is_dir():
        return set()
    found: set[tuple[int, str]] = set()
    for name in os.listdir(_DESCRIPTORS):
        try:
            found.add((int(name), os.readlink(_DESCRIPTORS / name)))
        except OSError:  # the descriptor that was listing them
            continue
    return found


def _left_behind(threads: set[threading.Thread], files: set[tuple[int, str]]) -> list[str]:
    left = [f"thread {thread.name}" for thread in threading.enumerate() if thread not in threads]
    return left + [f"file descriptor {number}: {target}" for number, target in sorted(_open_files() - files)]


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fails a test after which a thread still runs or a file is still open."""
    threads, files = set(threading.enumerate()), _open_files()
    yield
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while left := _left_behind(threads, files):
        gc.collect()
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {', '.join(left)}", pytrace=False)
        time.sleep(0.01)


# ---- stores


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def memory_store(clock: FakeClock) -> Iterator[Storage]:
    with open_storage("memory:", clock=clock) as store:
        yield store


@pytest.fixture
def sqlite_store(tmp_path: Path, clock: FakeClock) -> Iterator[Storage]:
    with open_storage(tmp_path / "store.db", clock=clock) as store:
        yield store


@pytest.fixture(params=["memory_store", "sqlite_store"])
def any_store(request: pytest.FixtureRequest) -> Storage:
    """The same test on every engine."""
    store: Storage = request.getfixturevalue(request.param)
    return store
