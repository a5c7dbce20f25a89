"""Hazard: an option is misread, ignored or silently replaced; a path leads where it must not."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import ConfigError, Storage, StorageBusyError, open_storage
from mycelia_storage.options import Options, StorageOptions, read_options

if TYPE_CHECKING:
    from collections.abc import Callable


def opened(target: Any, **options: Any) -> Storage:
    return open_storage(target, **options)


@pytest.mark.parametrize(
    ("target", "file"),
    [
        ("plain.db", "plain.db"),
        (Path("path.db"), "path.db"),
        ("sqlite:///relative.db", "relative.db"),
        ("sqlite:///below/relative.db", "below/relative.db"),
        ("SQLITE:///loud.db", "loud.db"),
        ("sqlite:///a%20b%3F.db", "a b?.db"),
        ({"storage": {"backend": "sqlite", "options": {"dbPath": "camel.db"}}}, "camel.db"),
        ({"backend": "auto", "options": {"db_path": "snake.db"}}, "snake.db"),
        ({"storage": {"options": {"db_path": Path("nobackend.db")}}}, "nobackend.db"),
        ({}, "data/storage.db"),
        ({"storage": {"backend": "sqlite"}}, "data/storage.db"),
        ({"backend": "sqlite", "options": None}, "data/storage.db"),
    ],
)
def test_a_target_leads_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any, file: str) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(target) as store:
        store.set("a", 1)
        assert store.get_status().target == str((tmp_path / file).resolve())
    assert (tmp_path / file).is_file()


def test_the_default_target_and_db_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_storage().close()
    open_storage(db_path="named.db").close()
    open_storage(f"sqlite:///{tmp_path}/absolute.db").close()
    assert {found.name for found in tmp_path.iterdir()} == {"data", "named.db", "absolute.db"}


@pytest.mark.parametrize("target", ["memory:", ":memory:", {"backend": "memory"}, {"storage": {"backend": "memory"}}])
def test_each_opening_in_memory_is_a_store_of_its_own(target: Any) -> None:
    with opened(target) as one, opened(target) as other:
        one.set("a", 1)
        assert not other.has("a")
        assert one.get_status().backend == "memory"


def test_changing_the_backend_alone_is_enough() -> None:
    options = {"dbPath": "unused.db", "walMode": True, "busyTimeout": 100, "prepareCacheSize": 5}
    with opened({"storage": {"backend": "memory", "options": options}}) as store:
        store.set("a", 1)


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        ("", {}, "empty string"),
        (None, {}, "NoneType"),
        (7, {}, "int"),
        (b"bytes.db", {}, "bytes"),
        ("mysql://x/y", {}, "mysql://"),
        ("http://x/y", {}, "http://"),
        ("sqlite://", {}, "names no file"),
        ("sqlite:///", {}, "names no file"),
        ("sqlite://host/x.db", {}, "names no file"),
        ("sqlite:///:memory:", {}, "memory:"),
        ("sqlite:///x.db?mode=ro", {}, "query"),
        ("a\0b.db", {}, "U\\+0000"),
        ("a\udcffb\ud800.db", {}, "surrogate"),
        ({"storage": {"backend": "oracle"}}, {}, "'oracle' is none of"),
        ({"storage": {"backend": ["sqlite"]}}, {}, "is none of"),
        ({"storage": []}, {}, "storage: a mapping"),
        ({"backend": "sqlite", "options": 5}, {}, "options: a mapping"),
        ({"backend": "sqlite", "option": {}}, {}, "did you mean 'options'"),
        ({"storage": {}, "more": 1}, {}, "unknown entry 'more'"),
        ({"options": {"dbPaht": "x"}}, {}, "did you mean 'dbPath'"),
        ({"options": {"walmode": True}}, {}, "did you mean 'walMode'|did you mean 'wal_mode'"),
        ({"options": {"db_path": "a", "dbPath": "b"}}, {}, "given twice"),
        ({"options": {"busyTimeout": "100"}}, {}, "milliseconds"),
        ({"options": {"busyTimeout": 5_000_000}}, {}, "hour"),
        ("a.db", {"busy_timout": 1}, "did you mean 'busy_timeout'"),
        ("a.db", {"walMode": True}, "did you mean 'wal_mode'"),
        ("a.db", {"zzz": 1}, "unknown option 'zzz'"),
        ("a.db", {"db_path": "b.db"}, "give one of the two"),
        ("a.db", {"busy_timeout": -1}, "busy_timeout: -1"),
        ("a.db", {"busy_timeout": float("nan")}, "busy_timeout: nan"),
        ("a.db", {"busy_timeout": True}, "busy_timeout: True"),
        ("a.db", {"busy_timeout": "5"}, "busy_timeout: '5'"),
        ("a.db", {"busy_timeout": 5000}, "Milliseconds\\? Then write 5"),
        ("a.db", {"busy_timeout": timedelta(hours=2)}, "more than an hour"),
        ("a.db", {"synchronous": "SOMETIMES"}, "OFF, NORMAL, FULL, EXTRA"),
        ("a.db", {"synchronous": 1}, "synchronous: 1"),
        ("a.db", {"wal_mode": "yes"}, "wal_mode: 'yes'"),
        ("a.db", {"migrate": 1}, "migrate: 1"),
        ("a.db", {"read_only": None}, "read_only: None"),
        ("a.db", {"debug": "on"}, "debug: 'on'"),
        ("a.db", {"max_readers": 0}, "max_readers: 0"),
        ("a.db", {"max_readers": 2.0}, "max_readers: 2.0"),
        ("a.db", {"prepare_cache_size": -1}, "prepare_cache_size: -1"),
        ("a.db", {"max_value_bytes": 0}, "max_value_bytes: 0"),
        ("a.db", {"clock": 5}, "clock: 5"),
        ("a.db", {"capacity": 5}, "capacity"),
        ("memory:", {"capacity": 0}, "capacity: 0"),
        ("memory:", {"capacity": "5"}, "capacity: '5'"),
        ("a.db", {"base_dir": 5}, "base_dir"),
        ("a.db", {"base_dir": ""}, "base_dir"),
        ("below/", {}, "directory"),
    ],
)
def test_a_bad_target_or_option_is_named_with_what_would_be_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any, options: dict[str, Any], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=says):
        opened(target, **options)
    assert list(tmp_path.iterdir()) == [], "nothing was made"


def test_durations_are_seconds_in_python_and_milliseconds_under_camel_case() -> None:
    assert read_options("memory:", {"busy_timeout": 2}).busy_timeout == 2.0
    assert read_options("memory:", {"busy_timeout": timedelta(milliseconds=250)}).busy_timeout == 0.25
    assert read_options({"backend": "memory", "options": {"busyTimeout": 2500}}, {}).busy_timeout == 2.5
    assert read_options({"backend": "memory", "options": {"busy_timeout": 2.5}}, {}).busy_timeout == 2.5
    assert read_options({"backend": "memory", "options": {"busy_timeout": 2.5}}, {"busy_timeout": 3}).busy_timeout == 3


def test_every_option_has_a_default_and_a_check() -> None:
    given = set(StorageOptions.__annotations__)
    assert given - {"db_path", "base_dir"} == set(Options.__struct_fields__) - {"backend", "path", "clock_is_given"}


@pytest.mark.parametrize("name", ["../out.db", "/elsewhere/x.db", "a/../../out.db", "link/out.db", ".", "a/.."])
def test_base_dir_holds_paths_inside(tmp_path: Path, name: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (tmp_path / "outside").mkdir()
    (base / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(ConfigError, match="base_dir|directory"):
        open_storage(name, base_dir=base)
    assert list((tmp_path / "outside").iterdir()) == []
    with open_storage("fine/x.db", base_dir=base) as store:
        assert store.get_status().target == str((base / "fine" / "x.db").resolve())
    open_storage(base / "absolute.db", base_dir=base).close()
    assert (base / "absolute.db").is_file()


def test_a_link_that_leads_out_of_base_dir_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "x.db").symlink_to(tmp_path / "secret.db")
    with pytest.raises(ConfigError, match="leads out of base_dir"):
        open_storage("x.db", base_dir=base)
    assert not (tmp_path / "secret.db").exists()


def test_debug_logs_statements_with_their_time_and_never_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mycelia_storage.sql")
    with open_storage(tmp_path / "quiet.db") as store:
        store.set("hidden key", "hidden value")
    assert caplog.text == ""
    with open_storage(tmp_path / "loud.db", debug=True) as store:
        store.set("hidden key", "hidden value", metadata={"hidden": "metadata"})
        store.set_many({"hidden a": "hidden b", "hidden c": "hidden d"})
        store.get("hidden key")
        store.get_many(["hidden a", "hidden key"])
        store.list_keys(pattern="hidden*key")
        store.delete("hidden key")
        with store.transaction() as tx:
            tx.set("hidden key", "hidden value", namespace="hidden namespace")
    assert "hidden" not in caplog.text
    assert "INSERT INTO storage_entries" in caplog.text
    assert "SELECT value" in caplog.text
    assert all(" ms " in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("options", "pragma", "value"),
    [
        ({}, "journal_mode", "wal"),
        ({"wal_mode": False}, "journal_mode", "delete"),
    ],
)
def test_the_journal_mode_is_what_was_asked_for(
    tmp_path: Path, options: dict[str, Any], pragma: str, value: str
) -> None:
    with opened(tmp_path / "store.db", **options) as store:
        assert store.get_status().details[pragma] == value
        store.set("a", 1)
        assert [entry.key for entry in store.scan()] == ["a"]
        with store.transaction(read_only=True) as tx:
            assert tx.get("a") == 1
    with opened(tmp_path / "store.db", wal_mode=not options.get("wal_mode", True)) as store:
        assert store.get("a") == 1


def test_a_capacity_is_held_and_what_has_expired_makes_room() -> None:
    from mycelia_storage import CapacityError

    now = 1000.0
    with open_storage("memory:", capacity=3, clock=lambda: now) as store:
        store.set("a", 1)
        store.set("b", 1, ttl=5)
        store.set("c", 1)
        store.set("a", 2)
        with pytest.raises(CapacityError, match="3"):
            store.set("d", 1)
        with pytest.raises(CapacityError):
            store.set_many({"a": 3, "d": 1})
        assert store.get("a") == 2, "all of a batch or nothing"
        now = 1006.0
        store.set("d", 1)
        assert store.list_keys() == ["a", "c", "d"]
        with store.transaction() as tx:
            tx.delete("a")
            tx.set("e", 1)
            with pytest.raises(CapacityError):
                tx.set("f", 1)
        assert store.list_keys() == ["c", "d", "e"]


def test_a_write_that_another_process_keeps_waiting_is_busy_after_busy_timeout(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with open_storage(path, busy_timeout=0.05) as store:
        store.set("a", 1)
        holds = (
            "import apsw, sys\n"
            f"c = apsw.Connection({str(path)!r})\n"
            "c.execute('BEGIN IMMEDIATE'); print('held', flush=True); sys.stdin.read()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stdout.readline() == "held\n"
            for write in (
                lambda: store.set("a", 2),
                lambda: store.set_many({"a": 2, "b": 2}),
                lambda: store.delete("a"),
                lambda: store.increment("a"),
                lambda: store.transaction(wait=0.01).__enter__(),
            ):
                with pytest.raises(StorageBusyError) as caught:
                    write()
                assert caught.value.retryable
            assert store.get("a") == 1, "a reader does not wait for a writer"
            child.stdin.close()
        store.set("a", 2)
        assert store.get("a") == 2


def test_a_journal_mode_that_another_store_keeps_from_changing_is_busy(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db") as store:
        store.set("a", 1)
        with pytest.raises(StorageBusyError, match="journal mode"):
            open_storage(tmp_path / "store.db", wal_mode=False, busy_timeout=0.02)
        assert store.get("a") == 1


def test_the_process_umask_is_left_alone(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        open_storage(tmp_path / "store.db").close()
    finally:
        assert os.umask(before) == 0o027


SLIPS = [
    "memory",
    ":memory",
    "sqlite:app.db",
    "sqlite3:app.db",
    "SQLite:/app.db",
    "~/app.db",
    " sqlite:///app.db",
    "  ",
    "\n",
    " app.db",
    "app.db\n",
    " memory:",
    " postgresql://app:geheim@db/app",
    "postgresql://app:geheim@db/app ",
    "postgresql:/app:geheim@db/app",
    "postgresql:app:geheim@db/app",
    "POSTGRES:app:geheim@db/app",
    "postgres:",
    "file:app.db",
    "file:app.db?mode=ro&key=geheim",
    "file:///app.db",
    "app.db?mode=ro",
    "app.db?key=geheim",
    "host=/tmp dbname=x",
    "password=geheim dbname=x",
    "password = geheim dbname=x",
]


@pytest.mark.parametrize("target", SLIPS)
def test_what_looks_like_something_else_makes_no_file(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="taken for a mistake|unknown scheme") as caught:
        open_storage(target)
    assert list(tmp_path.iterdir()) == []
    assert "geheim" not in str(caught.value), "a password may stand behind a scheme"


@pytest.mark.parametrize("target", [" postgresql://app@db/app", "postgresql:/app@db/app", "file:app.db"])
def test_a_mistyped_server_in_the_environment_makes_no_file(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mycelia_storage.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MYCELIA_STORAGE", target)
    assert main(["set", "a", "1"]) == 2
    assert "taken for a mistake" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SLIPS)
def test_a_file_can_have_every_name_all_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_storage(Path(name)) as store:
        store.set("a", 1)
    with open_storage(db_path=Path(name) if "://" in name else name) as store:
        assert store.get("a") == 1


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        (
            "postgresql://app:hunter2@db/app",
            "give it as the target, open_storage('postgresql://…'), or as the option dsn",
        ),
        ("POSTGRES://app:hunter2@db/app", "or as the option dsn with the backend 'postgresql'"),
        ("sqlite:///data/app.db", "give the path without 'sqlite://', or the URL as the target"),
        ("mysql://root:hunter2@db/app", "for a file of that name give a Path"),
    ],
)
def test_a_url_as_the_path_of_a_file_makes_none(
    url: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ways: list[Callable[[], object]] = [
        lambda: open_storage(db_path=url),
        lambda: open_storage(db_path=f" {url}"),
        lambda: open_storage({"storage": {"backend": "sqlite", "options": {"dbPath": url}}}),
        lambda: open_storage({"options": {"db_path": url}}, base_dir=tmp_path),
    ]
    for way in ways:
        with pytest.raises(ConfigError) as refused:
            way()
        message = str(refused.value)
        assert message.startswith("db_path: ")
        assert advice in message
        assert "hunter2" not in message
        assert "@" not in message
    assert list(tmp_path.iterdir()) == []
    with open_storage(db_path=Path(url)) as store:  # which is taken literally
        store.set("a", 1)
    assert (tmp_path / url).is_file()
