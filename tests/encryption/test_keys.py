"""Hazard: a key that opens what it should not, is lost, or gets out; a file that is changed by a wrong key.

The short form flips 300 bits, the long form 5,000 and prints what there was:

    pytest --hypothesis-profile=long -n 0 -s tests/encryption/test_keys.py
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import pickle
import random
import stat
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from children import Child, run, run_together
from flips import everything, fill, look_through, write_flipped

from mycelia_storage import (
    ConfigError,
    NotAStorageFileError,
    StorageBusyError,
    StorageCorruptError,
    StorageError,
    StorageFullError,
    StorageIOError,
    open_async_storage,
    open_storage,
    rekey,
)
from mycelia_storage.engines.sqlite import connection, copying, engine, pages, rekeying
from mycelia_storage.options import read_options

if TYPE_CHECKING:
    from pathlib import Path

KEY = "open sesame"
SHORT, LONG = 300, 5_000
MALFORMED: list[Any] = ["", b"", 7, True, ["open sesame"], bytearray(b"open sesame"), "\ud800 sesame"]


def state_of(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.iterdir()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed, encrypted store."""
    path = tmp_path / "store.db"
    with open_storage(path, encryption_key=KEY) as store:
        store.set("a", 1)
    return path


# ---- which key opens what


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "is encrypted, and no key was given"),
        ({"checksums": False}, "is encrypted, and no key was given"),
        ({"encryption_key": "open sesam"}, "does not open with this key"),
        ({"encryption_key": "open sesame "}, "does not open with this key"),
        ({"encryption_key": b"\0"}, "does not open with this key"),
        ({"encryption_key": KEY, "checksums": True}, "not together"),
    ],
)
def test_a_wrong_or_missing_key_is_told_and_changes_nothing(
    path: Path, read_only: bool, options: dict[str, Any], says: str
) -> None:
    before = state_of(path.parent)
    with pytest.raises(ConfigError, match=says):
        open_storage(path, read_only=read_only, **options)
    assert state_of(path.parent) == before


@pytest.mark.parametrize("options", [{}, {"encryption_key": "wrong"}])
def test_what_a_killed_process_left_is_as_safe_from_a_wrong_key(path: Path, options: dict[str, Any]) -> None:
    program = """
import os, sys
from mycelia_storage import open_storage
store = open_storage(sys.argv[1], encryption_key="open sesame")
store.set("b", 2)
os._exit(0)
"""
    run(program, path)
    before = {name: data for name, (data, _) in state_of(path.parent).items() if not name.endswith("-shm")}
    assert before["store.db-wal"]
    with pytest.raises(ConfigError):
        open_storage(path, **options)
    after = {name: data for name, (data, _) in state_of(path.parent).items() if not name.endswith("-shm")}
    assert after == before
    with open_storage(path, encryption_key=KEY) as store:
        assert store.get_many(["a", "b"]) == {"a": 1, "b": 2}


@pytest.mark.parametrize("checksums", [False, True])
def test_a_file_that_is_not_encrypted_is_not_opened_with_a_key(tmp_path: Path, checksums: bool) -> None:
    with open_storage(tmp_path / "store.db", checksums=checksums) as store:
        store.set("a", 1)
    before = state_of(tmp_path)
    for read_only in (False, True):
        with pytest.raises(ConfigError, match="is not encrypted"):
            open_storage(tmp_path / "store.db", encryption_key=KEY, read_only=read_only)
    assert state_of(tmp_path) == before


@pytest.mark.parametrize("data", [b"no database at all, but some text" * 100, bytes(range(256)) * 40])
def test_what_is_no_database_is_called_so(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "store.db").write_bytes(data)
    with pytest.raises(NotAStorageFileError):
        open_storage(tmp_path / "store.db", encryption_key=KEY)
    assert (tmp_path / "store.db").read_bytes() == data


def test_an_encrypted_database_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    with contextlib.closing(apsw.Connection(str(tmp_path / "store.db"))) as other:
        other.pragma("key", KEY)
        other.execute("CREATE TABLE theirs (a); INSERT INTO theirs VALUES (1)")
    before = state_of(tmp_path)
    with pytest.raises(NotAStorageFileError, match="somebody else"):
        open_storage(tmp_path / "store.db", encryption_key=KEY)
    assert state_of(tmp_path) == before


@pytest.mark.parametrize(
    "key",
    [
        "'", '"', "'; DROP TABLE storage_entries; --", "x'00ff'", "raw:" + "ab" * 32, "raw:" + "ab" * 48, "%s", "a\0b",
        "ключ", "🔑" * 100, " ", "x" * 10_000, b"\0", bytes(range(256)), b"\xff\xfe",
    ],
)  # fmt: skip
def test_any_text_and_any_bytes_are_a_key(tmp_path: Path, key: str | bytes) -> None:
    path = tmp_path / "store.db"
    with open_storage(path, encryption_key=key) as store:
        store.set("a", 1)
    with open_storage(path, encryption_key=key) as store:
        assert store.get("a") == 1
    same = key.encode() if isinstance(key, str) else key
    with open_storage(path, encryption_key=same, read_only=True) as store:
        assert store.get("a") == 1
    with pytest.raises(ConfigError, match="does not open"):
        open_storage(path, encryption_key=same + b"x")


@pytest.mark.parametrize("key", MALFORMED, ids=lambda key: repr(key)[:12])
def test_what_is_no_key_is_refused_without_being_shown(tmp_path: Path, key: Any) -> None:
    with pytest.raises(ConfigError, match="encryption_key") as caught:
        open_storage(tmp_path / "store.db", encryption_key=key)
    assert "sesame" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_other_tools_open_the_file_by_the_same_passphrase(path: Path) -> None:
    """Keys are derived as SQLite3 Multiple Ciphers derives them, so that nobody depends on this library."""
    with contextlib.closing(apsw.Connection(str(path))) as other:
        other.pragma("cipher", "chacha20")
        other.pragma("key", KEY)
        assert other.execute("SELECT value FROM storage_entries").get == "1"
        other.execute("UPDATE storage_entries SET value = '2'")
    with open_storage(path, encryption_key=KEY) as store:
        assert store.get("a") == 2


def test_two_files_with_one_key_have_nothing_in_common(tmp_path: Path) -> None:
    for name in ("one.db", "two.db"):
        with open_storage(tmp_path / name, encryption_key=KEY) as store:
            store.set("a", 1)
            store.backup(tmp_path / f"{name}.backup")
    salts = {path.read_bytes()[:16] for path in tmp_path.iterdir()}
    assert len(salts) == 4


# ---- the key stays inside


def test_the_key_is_in_no_message_log_or_representation(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shown = io.StringIO()
    with caplog.at_level(logging.DEBUG):
        options = read_options(str(path), {"encryption_key": KEY})
        print(options, repr(options), vars(options.encryption_key.__class__), options.encryption_key, file=shown)
        with open_storage(path, encryption_key=KEY, debug=True) as store:
            store.set("b", 2)
            print(store, repr(store), store.get_status(), store.check(), store.explain(), file=shown)
            store.backup(path.parent / "backup.db")
            with pytest.raises(StorageError) as caught:
                store.restore(path.parent / "nowhere.db")
            print(*traceback.format_exception(caught.value), file=shown)
    for key, checksums in (("wrong sesame", None), ("wrong sesame", True), (KEY, True)):
        with pytest.raises(ConfigError) as refused:
            open_storage(path, encryption_key=key, checksums=checksums)
        error = refused.value
        print(*traceback.format_exception(error), repr(error), vars(error), pickle.dumps(error), file=shown)
    print(caplog.text, file=shown)
    assert "INSERT INTO storage_entries" in shown.getvalue()
    # What the pages are really encrypted with, which opens the file as well as the passphrase does.
    derived = hashlib.pbkdf2_hmac("sha256", KEY.encode(), path.read_bytes()[:16], 64_007, 32).hex()
    assert options.encryption_key is not None
    text = shown.getvalue().lower()
    assert "sesame" not in text
    assert derived not in text


# ---- damage


def test_every_flipped_bit_is_seen(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_ITERATIONS", 1)  # or most of the time would go into deriving the key
    is_long = request.config.getoption("--hypothesis-profile") == "long"
    flips = LONG if is_long else SHORT
    path = tmp_path / "store.db"
    with open_storage(path, encryption_key=KEY) as store:
        fill(store)
        store.set_many({f"more:{number}": "y" * 20_000 for number in range(12)})  # so that no page is free
        truth = everything(store)
        assert not store.get_status().details["free_pages"]
    data = path.read_bytes()
    chance = random.Random(11)
    outcomes: Counter[str] = Counter()
    for bit in (chance.randrange(len(data) * 8) for _ in range(flips)):
        write_flipped(path, data, bit)
        seen = look_through(path, truth, encryption_key=KEY)
        assert not seen.is_wrong
        # Nobody can tell a first page that is damaged from one with another key.
        expected = StorageCorruptError if bit >= 4096 * 8 else ConfigError | NotAStorageFileError
        assert isinstance(seen.error, expected), (bit, seen)
        outcomes[type(seen.error).__name__] += 1
    print(f"encryption: {flips} bits flipped in {len(data) // 4096} pages, {outcomes.total()} seen: {dict(outcomes)}")


# ---- copies


@pytest.mark.parametrize("wal", [True, False])
def test_backups_have_the_key_of_their_store(tmp_path: Path, path: Path, wal: bool) -> None:
    backup = tmp_path / "backup.db"
    with open_storage(path, encryption_key=KEY, wal_mode=wal) as store:
        fill(store)
        truth = everything(store)
        store.backup(backup)
        store.clear_all()
        store.restore(backup)
        assert everything(store) == truth
        store.set("b", 2)
        store.check()
    with pytest.raises(ConfigError):
        open_storage(backup)
    with open_storage(backup, encryption_key=KEY) as store:
        assert everything(store) == truth


def test_restoring_what_has_another_key_changes_nothing(tmp_path: Path, path: Path) -> None:
    with (
        open_storage(tmp_path / "other.db", encryption_key="another") as other,
        open_storage(tmp_path / "plain.db") as plain,
    ):
        for store in (other, plain):
            store.set("b", 2)
            with pytest.raises(ConfigError, match="encryption_key"):
                store.restore(path)
            assert store.list_keys() == ["b"]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("page_size", [4096, 1024])
def test_restoring_what_is_not_encrypted_encrypts_it(
    tmp_path: Path, checksums: bool, version: int, page_size: int
) -> None:
    plain = tmp_path / "plain.db"
    with contextlib.closing(apsw.Connection(str(plain))) as shape:
        shape.execute(f"PRAGMA page_size={page_size}; VACUUM")
        if checksums:
            plain.unlink()
    with open_storage(plain, checksums=checksums or None) as store:
        fill(store, 100)
        truth = everything(store)
        if version == 1:
            store.delete_namespace("expiring", recursive=True)
            for index in store.list_indexes():
                store.drop_index(index.name)
            store.migrate(to=1)
    with open_storage(tmp_path / "store.db", encryption_key=KEY) as store:
        store.restore(plain)
        assert store.get_many(store.list_keys()).keys() == {key for name, key in truth if name == "default"}
        if version == 2:
            assert everything(store) == truth
        store.set("b", 2)
        store.check()
    with open_storage(tmp_path / "store.db", encryption_key=KEY) as store:
        assert store.get("b") == 2


def test_pages_of_another_size_are_rebuilt(tmp_path: Path) -> None:
    odd = tmp_path / "odd.db"
    with contextlib.closing(apsw.Connection(str(odd))) as shape:
        shape.pragma("cipher", "chacha20")
        shape.pragma("key", KEY)
        shape.execute("PRAGMA page_size=8192; CREATE TABLE t (a); DROP TABLE t; VACUUM")
    with open_storage(odd, encryption_key=KEY) as store:
        fill(store, 100)
        truth = everything(store)
        assert store.get_status().details["page_size"] == 8192
        store.backup(tmp_path / "backup.db")
    with open_storage(tmp_path / "store.db", encryption_key=KEY) as store:
        store.restore(odd)
        assert everything(store) == truth
        store.check()
        store.set("b", 2)
        store.backup(tmp_path / "usual.db")
    with open_storage(odd, encryption_key=KEY) as store:
        store.restore(tmp_path / "usual.db")
        assert store.get("b") == 2
        store.restore(tmp_path / "backup.db")
        assert everything(store) == truth
        store.check()
        assert store.get_status().details["page_size"] == 8192


# ---- rekey


@pytest.mark.parametrize("wal", [True, False])
@pytest.mark.parametrize(("old", "new"), [(KEY, "new"), (KEY, b"new"), (None, "new"), (KEY, None), (KEY, KEY)])
@pytest.mark.parametrize("checksums", [True, None])
def test_rekey_changes_the_key_and_nothing_else(
    tmp_path: Path, wal: bool, old: str | None, new: str | bytes | None, checksums: bool | None
) -> None:
    path = tmp_path / "store.db"
    with open_storage(path, encryption_key=old, wal_mode=wal, checksums=None if old else checksums) as store:
        fill(store)
        truth, indexes = everything(store), store.list_indexes()
    path.chmod(0o640)
    rekey(path, encryption_key=old, new_encryption_key=new)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [found.name for found in tmp_path.iterdir()] == ["store.db"]
    with open_storage(path, encryption_key=new, wal_mode=wal) as store:
        assert (everything(store), store.list_indexes()) == (truth, indexes)
        store.set("b", 2)
        store.check()
    with open_storage(path, encryption_key=new, wal_mode=wal) as store:
        assert store.get("b") == 2
        store.backup(tmp_path / "backup.db")
    if old != new:
        with pytest.raises(ConfigError, match="encryption_key"):
            open_storage(path, encryption_key=old)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("wrong", "new", "does not open"),
        (None, "new", "no key was given"),
        (KEY, "", "empty"),
        (None, None, "nothing to do"),
    ],
)
def test_rekey_refuses_what_it_cannot_do(path: Path, old: str | None, new: str | None, says: str) -> None:
    before = state_of(path.parent)
    with pytest.raises(ConfigError, match=says):
        rekey(path, encryption_key=old, new_encryption_key=new)
    assert state_of(path.parent) == before


def test_rekey_makes_no_file_and_takes_no_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        rekey(tmp_path / "nowhere.db", encryption_key=None, new_encryption_key=KEY)
    with pytest.raises(ConfigError, match="memory"):
        rekey("memory:", encryption_key=None, new_encryption_key=KEY)
    (tmp_path / "text.txt").write_text("no database " * 100)
    with contextlib.closing(apsw.Connection(str(tmp_path / "theirs.db"))) as other:
        other.execute("CREATE TABLE theirs (a)")
    before = state_of(tmp_path)
    for name in ("text.txt", "theirs.db"):
        with pytest.raises(NotAStorageFileError):
            rekey(tmp_path / name, encryption_key=None, new_encryption_key=KEY)
    assert state_of(tmp_path) == before


@pytest.mark.parametrize("busy", ["open", "reading", "writing"])
def test_rekey_leaves_a_file_that_is_in_use(path: Path, busy: str) -> None:
    program = """
import sys
from mycelia_storage import open_storage
wal = sys.argv[2] == "open"
with open_storage(sys.argv[1], encryption_key="open sesame", wal_mode=wal) as store:
    store.get("a")
    with store.transaction(read_only=sys.argv[2] != "writing") as tx:
        tx.get("a") if sys.argv[2] != "writing" else tx.set("a", 2)
        begin()
"""
    with Child(program, path, busy) as child:
        assert child.line() == "ready"
        with pytest.raises(StorageBusyError):
            rekey(f"sqlite:///{path}", encryption_key=KEY, new_encryption_key="new", busy_timeout=0.3)
        child.tell()
        child.output()
    assert not list(path.parent.glob("*.partial"))
    with open_storage(path, encryption_key=KEY) as store:
        assert store.get("a") in {1, 2}


@pytest.mark.parametrize("step", ["rebuild", "complete", "put_in_place"])
def test_a_rekey_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise StorageFullError("no room")

    before = path.read_bytes()
    monkeypatch.setattr(copying, step, fail)
    with pytest.raises(StorageFullError):
        rekey(path, encryption_key=KEY, new_encryption_key="new")
    assert [found.name for found in path.parent.iterdir()] == ["store.db"]
    with open_storage(path, encryption_key=KEY, read_only=True) as store:
        assert store.get("a") == 1
    assert len(path.read_bytes()) == len(before)


def test_a_rekey_that_is_killed_leaves_the_old_key_or_the_new_one(path: Path) -> None:
    program = """
import os, signal, sys
from mycelia_storage import rekey
from mycelia_storage.engines.sqlite import copying
def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(copying, sys.argv[2], kill)
rekey(sys.argv[1], encryption_key="open sesame", new_encryption_key="new")
"""
    for step in ("rebuild", "complete", "put_in_place", "_sync"):
        with Child(program, path, step) as child:
            child.process.wait(40)
        keys = []
        for key in (KEY, "new"):
            with contextlib.suppress(ConfigError), open_storage(path, encryption_key=key) as store:
                assert store.get("a") == 1
                keys.append(key)
        assert keys == [KEY], step
        assert [found.name for found in path.parent.glob("*.partial")], step
    others = {f"store.db.{name}" for name in ("12345678.partial", "1234567.rekey.partial", "12345678.rekey.partial.db")}
    others |= {"other.db.12345678.rekey.partial"}  # of which a rekey may be at work just now
    for name in others:
        (path.parent / name).touch()
    rekey(path, encryption_key=KEY, new_encryption_key="new")
    assert {found.name for found in path.parent.iterdir()} == {"store.db", *others}


def test_a_rekey_that_has_waited_for_another_does_not_undo_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By then the file that it has opened is none any more, and the new one may have been written to."""
    waits: Any = vars(rekeying)["set_journal_mode"]

    def overtaken(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(rekeying, "set_journal_mode", waits)
        other = path.parent / "other.db"
        with open_storage(path, encryption_key=KEY) as store:
            store.backup(other)
        rekey(other, encryption_key=KEY, new_encryption_key="other")
        with open_storage(other, encryption_key="other") as store:
            store.set("since", 1)
        waits(*arguments, **options)
        other.replace(path)

    monkeypatch.setattr(rekeying, "set_journal_mode", overtaken)
    with pytest.raises(StorageIOError, match="replaced"):
        rekey(path, encryption_key=KEY, new_encryption_key="new")
    with open_storage(path, encryption_key="other") as store:
        assert store.list_keys() == ["a", "since"]


def test_a_new_file_has_its_owner_before_its_mode(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group may read it by its mode, and that is not the group of whoever runs this."""
    path.chmod(0o640)
    modes: list[int] = []
    monkeypatch.setattr(os, "chown", lambda name, *_: modes.append(stat.S_IMODE(os.stat(name).st_mode)))
    rekey(path, encryption_key=KEY, new_encryption_key="new")
    assert modes == [0o600]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


# ---- several at once

WRITER = """
import sys
from mycelia_storage import open_storage
path, wal, number = sys.argv[1], sys.argv[2] == "True", sys.argv[3]
begin()
with open_storage(path, wal_mode=wal, encryption_key="open sesame") as store:
    for step in range(50):
        store.set(f"{number}:{step}", "x" * 3000)
"""


@pytest.mark.parametrize("wal", [True, False])
def test_processes_share_a_file_from_its_first_moment_on(tmp_path: Path, wal: bool) -> None:
    run_together(WRITER, 3, tmp_path / "store.db", wal)
    with open_storage(tmp_path / "store.db", wal_mode=wal, encryption_key=KEY) as store:
        assert store.count() == 150
        store.check()


@pytest.mark.parametrize("wal", [True, False])
@pytest.mark.parametrize(("ours", "theirs"), [(KEY, KEY), (None, KEY), (KEY, None)])
def test_who_finds_a_new_file_made_by_another_takes_it_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wal: bool, ours: str | None, theirs: str | None
) -> None:
    """Two open a file that is not there, each with a salt of its own, and the other one is first."""
    path = tmp_path / "store.db"
    program = (
        "from mycelia_storage import open_storage\n"
        f"with open_storage({str(path)!r}, encryption_key={theirs!r}, wal_mode={wal}) as store: store.set('a', 1)"
    )
    open_writer = connection.open_writer
    times = 0

    def overtaken(*arguments: Any) -> apsw.Connection:
        nonlocal times
        opened = open_writer(*arguments)
        if not times:
            run(program)
        times += 1
        return opened

    monkeypatch.setattr(engine, "open_writer", overtaken)
    if ours == theirs:
        with open_storage(path, encryption_key=ours, wal_mode=wal) as store:
            store.set("b", 2)
    else:
        with pytest.raises(ConfigError, match="encryption_key"):
            open_storage(path, encryption_key=ours, wal_mode=wal)
    with open_storage(path, encryption_key=theirs, wal_mode=wal) as store:
        assert store.get("a") == 1
        store.check()


def test_a_fork_needs_no_key_again(path: Path) -> None:
    with open_storage(path, encryption_key=KEY) as store:
        if not (child := os.fork()):
            store.set("b", 2)
            store.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert store.get_many(["a", "b"]) == {"a": 1, "b": 2}


async def _use(path: Path) -> Any:
    async with open_async_storage(path, encryption_key=KEY) as store:
        await store.set("b", 2)
        return await store.get_many(["a", "b"])


def test_asyncio_has_it_too(path: Path) -> None:
    import asyncio

    assert asyncio.run(_use(path)) == {"a": 1, "b": 2}


def test_a_configuration_mapping_has_it_too(path: Path) -> None:
    config = {"storage": {"backend": "sqlite", "options": {"dbPath": str(path), "encryptionKey": KEY}}}
    with open_storage(config) as store:
        assert store.get("a") == 1
        assert store.get_status().details["encrypted"]
