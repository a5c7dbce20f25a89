"""One real PostgreSQL server for a whole run, and a schema of its own for each test.

The fixtures are imported by `conftest.py`. With pytest-xdist the process that controls the workers starts the server
and tells them where it is; without, it is started before the first test, if one needs it. `PG_BIN=…` takes another
server's programs. Its order of texts is one that nothing may rely on, `--postgres-locale=C` takes another.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import platform
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage.testing.postgres_server import PostgresNotFoundError, PostgresServer, PostgresServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

# Where `make test` installs a server, a run without one is a failure. Elsewhere its tests are skipped.
_IS_PROMISED = sys.platform == "linux" and platform.machine() in {"x86_64", "aarch64"}
_SETTINGS = {"max_connections": 200}
_KEY = pytest.StashKey[PostgresServer]()
_FOUND = pytest.StashKey[dict[str, str]]()
_numbers = itertools.count()


def start(config: pytest.Config) -> dict[str, str]:
    """Start the server of this run, once: where it is, or why it is not there."""
    if _FOUND in config.stash:
        return config.stash[_FOUND]
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker is not None:
        found: dict[str, str] = worker["postgres"]
    else:
        found = _started(config)
    config.stash[_FOUND] = found
    return found


def _started(config: pytest.Config) -> dict[str, str]:
    if importlib.util.find_spec("psycopg") is None:
        return {"missing": "psycopg is not installed"}
    locale = str(config.getoption("--postgres-locale") or ("not-C" if shutil.which("localedef") else "C"))
    server = PostgresServer(locale=locale, settings=_SETTINGS)
    try:
        server.start()
    except PostgresNotFoundError as error:
        return {"missing": str(error)}
    except PostgresServerError as error:
        server.close()
        return {"broken": str(error)}
    config.stash[_KEY] = server
    return {"dsn": server.dsn(), "locale": locale}


def stop(config: pytest.Config) -> None:
    if _KEY in config.stash:
        config.stash[_KEY].close()


def needs_server(item: pytest.Item) -> bool:
    """Also the pages of the manual, of which some do."""
    return "postgres" in item.nodeid.lower() or "page_database" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def postgres_dsn(pytestconfig: pytest.Config) -> str:
    """Where this run's server is. It is shared: tests keep to schemas of their own, and leave the server running."""
    found = start(pytestconfig)
    if "dsn" in found:
        return found["dsn"]
    if "missing" in found and not _IS_PROMISED:
        pytest.skip(found["missing"])
    pytest.fail(found.get("missing") or found["broken"], pytrace=False)


@pytest.fixture
def postgres_connection(postgres_dsn: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A connection to look behind the library's back; each statement is committed by itself."""
    import psycopg

    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute("set lock_timeout = '20s'")  # what a test holds itself it would wait for without an end
        yield connection


@pytest.fixture
def new_postgres_schema(postgres_dsn: str) -> Iterator[Callable[[], str]]:
    """Gives names of schemas that are not there yet. They are dropped after the test, whatever they hold then."""
    names: list[str] = []

    def new() -> str:
        names.append(f"test_{os.getpid()}_{next(_numbers)}")
        return names[-1]

    yield new
    if names:
        import psycopg
        from psycopg.sql import SQL, Identifier

        with psycopg.connect(postgres_dsn, autocommit=True) as connection:
            connection.execute("set lock_timeout = '10s'; set client_min_messages = warning")
            for name in names:
                connection.execute(SQL("drop schema if exists {} cascade").format(Identifier(name)))


@pytest.fixture
def postgres_schema(new_postgres_schema: Callable[[], str]) -> str:
    """The name of a schema that is not there yet, for the option `schema=`."""
    return new_postgres_schema()
