"""Hazard: a name leads to another engine than was meant; one that is broken fails far from its cause; a URL's password
is told on the way; everybody pays for engines that nobody has.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import sys
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from distributions import site

from mycelia_storage import (
    ConfigError,
    Storage,
    StorageFacet,
    StorageUnavailableError,
    open_async_storage,
    open_storage,
)
from mycelia_storage.options import read_options

if TYPE_CHECKING:
    from pathlib import Path

    from distributions import Site

__all__ = ["site"]  # a fixture

# Put together here, so that no line of this file, which a traceback shows, has it.
PASSWORD = "".join(("gehe", "im"))

# An engine that is the memory engine, and keeps what it was given.
ENGINE = """
from mycelia_storage.engines.memory import MemoryEngine

SEEN = []

class Engine(MemoryEngine):
    backend = "mine"

def make(options):
    SEEN.append(options)
    return Engine(options)
"""


def opened(target: Any, **options: Any) -> Storage:
    return open_storage(target, **options)


@pytest.fixture
def mine(site: Site) -> Site:
    site.install("mycelia-mine", {"mine": "its_module:make"}, {"its_module": ENGINE})
    return site


def given() -> Any:
    """What the engine was last opened with."""
    return sys.modules["its_module"].SEEN[-1]


@pytest.mark.parametrize(
    "target", ["mine://host/db", "MINE://host/db", {"backend": "mine"}, {"storage": {"backend": "mine"}}]
)
def test_an_engine_of_another_distribution_is_found_by_its_name(mine: Site, target: Any) -> None:
    with opened(target) as store:
        assert store.get_status().backend == "mine"
        store.set("a", 1)
        assert store.get("a") == 1
    assert given().backend == "mine"


def test_an_engine_gets_the_common_options_checked_its_url_and_options_of_its_own(mine: Site) -> None:
    def clock() -> float:
        return 1000.0

    own = {"fleet": [1, 2], "token": PASSWORD}
    url = f"mine://user:{PASSWORD}@host/db?x=1#y"
    with opened(url, busy_timeout=2, max_value_bytes=9, read_only=False, clock=clock, engine_options=own, debug=True):
        options = given()
    assert (options.busy_timeout, options.max_value_bytes, options.debug) == (2.0, 9, True)
    assert (options.migrate, options.transaction_timeout, options.read_only) == (True, 30.0, False)
    assert (options.clock, options.clock_is_given, options.path) == (clock, True, "")
    assert options.dsn.reveal() == url.encode()
    assert options.engine_options == own
    assert options.engine_options is not own, "nobody changes them afterwards"
    mapping = {"backend": "mine", "options": {"dsn": url, "busyTimeout": 1500, "engineOptions": own}}
    with opened(mapping, engine_options={"fleet": 1}):
        options = given()
    assert (options.dsn.reveal(), options.busy_timeout, options.engine_options) == (url.encode(), 1.5, {"fleet": 1})
    with opened({"backend": "mine"}):
        assert (given().dsn, given().engine_options) == (None, {})


def test_of_awaited_stores_too(mine: Site) -> None:
    async def main() -> str:
        async with open_async_storage("mine://host") as store:
            return (await store.get_status()).backend

    assert asyncio.run(main()) == "mine"


def test_no_option_shows_what_may_be_a_secret(
    mine: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"mine://user:{PASSWORD}@host/db"
    with opened(url, engine_options={"token": PASSWORD}) as store:
        shown = [
            repr(given()),
            str(given()),
            f"{given().engine_options}",
            repr(store),
            repr(StorageFacet(store)._config),
        ]
    assert "token" in shown[0]
    from mycelia_storage.cli import main

    monkeypatch.setenv("MYCELIA_STORAGE", url)
    assert main(["doctor"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert (settings["backend"], settings["dsn"]) == ("mine", "given")
    assert PASSWORD not in repr((shown, settings))


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        (
            "mine://x",
            {"db_path": "a.db"},
            "db_path: an option of SQLite files, and the target is a store of the engine 'mine'",
        ),
        ("mine://x", {"base_dir": "a"}, "base_dir: an option of SQLite files"),
        ("mine://x", {"dsn": "mine://y"}, "give one of the two"),
        ("mine://x", {"capacity": 5}, "capacity: an option of the memory engine"),
        ("mine://x", {"checksums": True}, "checksums: an option of SQLite files"),
        ("mine://x", {"encryption_key": "k"}, "encryption_key: an option of SQLite files"),
        ("mine://x", {"schema": "s"}, "schema: an option of PostgreSQL"),
        ("mine://x", {"busy_timeout": -1}, "busy_timeout: -1"),
        ("mine://x", {"fleet": 1}, "unknown option 'fleet'"),
        ("mine://x", {"engine_options": [1]}, "engine_options: a mapping is needed, not list"),
        ("mine://x", {"engine_options": {1: 2}}, "engine_options: the name of an option is a str, not int"),
        ("memory:", {"engine_options": {"a": 1}}, "engine_options: an option of other distributions' engines"),
        ("a.db", {"engine_options": {"a": 1}}, "and the target is a SQLite file"),
        ("min://x", {}, r"unknown scheme 'min://': did you mean 'mine://…'\? Otherwise write a path, .*'mine://…' or"),
        ("sqllite:///x", {}, r"did you mean 'sqlite://…'\?"),
        ({"backend": "mina"}, {}, r"'mina' is none of .*'mine': did you mean 'mine'\?"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(
    mine: Site, monkeypatch: pytest.MonkeyPatch, target: Any, options: dict[str, Any], says: str
) -> None:
    monkeypatch.chdir(mine.directory)
    with pytest.raises(ConfigError, match=says):
        opened(target, **options)
    assert "its_module" not in sys.modules, "nothing of it was run"


def test_no_distribution_can_stand_in_the_place_of_our_own_engines(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["sqlite", "SQLite", "memory", "postgresql", "Postgres", "auto", "sqlite3", "file"]
    site.install("mycelia-thief", dict.fromkeys(names, "its_module:make"), {"its_module": ENGINE})
    monkeypatch.chdir(tmp_path)
    ours: tuple[Any, ...] = (
        "memory:",
        "a.db",
        f"sqlite:///{tmp_path}/b.db",
        {"backend": "auto"},
        {"backend": "memory"},
    )
    for target in ours:
        with opened(target) as store:
            assert store.get_status().backend in ("memory", "sqlite")
    with pytest.raises((StorageUnavailableError, ConfigError)):
        opened("postgresql://127.0.0.1:1/x", connect_timeout=1)
    others: tuple[Any, ...] = ("memory://x", "sqlite3://x", "file:///x", {"backend": "SQLite"}, {"backend": "Postgres"})
    for target in others:
        with pytest.raises(ConfigError) as caught:
            opened(target)
        assert "thief" not in str(caught.value)
    assert "its_module" not in sys.modules


def test_nobody_else_pays_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        pytest.fail("entry points were looked up")

    monkeypatch.setattr(importlib.metadata, "entry_points", fail)
    monkeypatch.chdir(tmp_path)
    ours: tuple[Any, ...] = ("memory:", "a.db", tmp_path / "b.db", "sqlite:///c.db", {"backend": "sqlite"}, {})
    for target in ours:
        opened(target).close()
    assert read_options("postgres://host/db", {}).backend == "postgresql"


@pytest.mark.parametrize(
    ("value", "source", "says"),
    [
        ("its_module:make", "import no_such_driver", "ModuleNotFoundError: No module named 'no_such_driver'"),
        ("its_module:make", "1 +", "SyntaxError"),
        ("its_module:make", "raise RuntimeError('not on this machine')", "RuntimeError: not on this machine"),
        ("its_module:make", "", "AttributeError"),
        ("no_such_module:make", "", "ModuleNotFoundError"),
        ("its_module:make", "make = 5", "its_module:make cannot be called"),
        ("its_module:make", "make = lambda options: object()", "does not fit this version .* backend, "),
    ],
)
def test_an_engine_that_cannot_be_loaded_is_a_config_error_that_names_its_distribution(
    site: Site, value: str, source: str, says: str
) -> None:
    site.install("mycelia-broken", {"broken": value}, {"its_module": source})
    with pytest.raises(ConfigError, match=says) as caught:
        open_storage(f"broken://user:{PASSWORD}@host")
    assert "the engine 'broken' of mycelia-broken 1.2" in str(caught.value)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_an_engine_for_another_version_of_the_protocol_is_refused_and_closed(site: Site) -> None:
    source = """
from mycelia_storage.engines.memory import MemoryEngine
CLOSED = []

class Old:
    def __init__(self, options):
        self._engine = MemoryEngine(options)

    def __getattr__(self, name):
        if name == "share":
            raise AttributeError(name)
        return Auto(self._engine.auto) if name == "auto" else getattr(self._engine, name)

    def close(self):
        CLOSED.append(True)
        self._engine.close()

class Auto:
    def __init__(self, auto):
        self._auto = auto

    def __getattr__(self, name):
        if name in ("tally", "place"):
            raise AttributeError(name)
        return getattr(self._auto, name)
"""
    site.install("mycelia-old", {"old": "its_module:Old"}, {"its_module": source})
    with pytest.raises(ConfigError, match=r"engines have share, auto\.tally, auto\.place besides"):
        open_storage("old://")
    assert sys.modules["its_module"].CLOSED == [True]


def test_two_distributions_with_one_name_are_refused(site: Site) -> None:
    site.install("mycelia-one", {"mine": "its_module:make"}, {"its_module": ENGINE})
    site.install("mycelia-other", {"Mine": "its_module:make"}, version="3")
    with pytest.raises(ConfigError, match=r"registered by mycelia-one 1\.2 and mycelia-other 3"):
        open_storage("mine://")
    assert "its_module" not in sys.modules


def test_what_an_engine_raises_goes_on_to_the_caller(site: Site) -> None:
    source = """
from mycelia_storage import StorageUnavailableError

def make(options):
    raise StorageUnavailableError("nobody is there")
"""
    site.install("mycelia-away", {"away": "its_module:make"}, {"its_module": source})
    with pytest.raises(StorageUnavailableError, match="nobody is there"):
        open_storage("away://")
