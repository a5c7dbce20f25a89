"""How the command line opens a store: what it never changes on its way, what it may only read, and what it never makes.

Each test is named for what a user would find one morning: another program's file migrated, an empty store that nobody
meant to make, or "there is no store" where only a permission was missing.
"""

from __future__ import annotations

import ctypes
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import apsw
import orjson
import pytest

from mycelia_storage import StorageError, StorageIOError, StorageReadOnlyError, open_storage, rekey, salvage
from mycelia_storage.cli import main, mounts, output

if TYPE_CHECKING:
    from collections.abc import Callable

    from command_line import Result

ORIGINAL = Path(__file__).parent / "data" / "original_adapter_v1.db"


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


# ---- files of the JavaScript adapter

EVERY_VERB = [
    ("status",),
    ("get", "user:1"),
    ("get", "no such key"),
    ("list",),
    ("query",),
    ("query", "--limit", "1"),
    ("count",),
    ("explain",),
    ("namespaces",),
    ("check",),
    ("export",),
    ("export", "--all", "-o", "{beside}/export.jsonl"),
    ("backup", "{beside}/backup.db"),
    ("index", "list"),
    ("index", "create", "name"),
    ("index", "drop", "name"),
    ("set", "a", "b"),
    ("delete", "no such key"),
    ("delete", "user:1"),
    ("delete", "--prefix", "user"),
    ("delete", "--prefix", "user", "--yes"),
    ("restore", "{beside}/other.db"),
    ("import", "{beside}/lines.jsonl"),
    ("import-from", "tinydb", "{beside}/tiny.json"),
    ("import-from", "tinydb", "{beside}/tiny.json", "--dry-run"),
    ("copy", "{path}", "{beside}/copy.db"),
    ("copy", "{beside}/other.db", "{path}"),
]


def test_no_verb_migrates_the_file_of_another_program_on_its_way(
    path: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    shutil.copyfile(ORIGINAL, path)
    with open_storage(tmp_path / "other.db") as other:
        other.set("a", 1)
    (tmp_path / "lines.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    (tmp_path / "tiny.json").write_text('{"_default": {"1": {"a": 1}}}')
    before = contents(path.parent)
    for verb in EVERY_VERB:
        done = run(*(word.format(beside=tmp_path, path=path) for word in verb))
        assert (verb, done.code, contents(path.parent) == before) == (verb, 3, True)
        assert "`mycelia-storage migrate`" in done.err


def test_migrate_and_restore_are_told_to_change_a_file_of_an_older_schema(
    path: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    for verb in (("migrate",), ("restore", str(tmp_path / "backup.db"), "--yes")):
        shutil.copyfile(ORIGINAL, path)
        shutil.copyfile(ORIGINAL, tmp_path / "backup.db")
        assert run(*verb).code == 0
        assert run("status").json["entries"] > 0


def test_a_newer_file_is_not_said_to_be_an_old_one(path: Path, run: Callable[..., Result]) -> None:
    with open_storage(path) as store:
        store.set("a", 1)
    with apsw.Connection(str(path)) as connection:
        connection.execute("INSERT INTO schema_version VALUES (7, 0)")
    connection.close()
    done = run("get", "a")
    assert done.code == 3
    assert "version 7" in done.err
    assert "migrate" not in done.err


# ---- files for which a permission is missing


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("process", ctypes.c_int))


def _obey_modes() -> None:
    """Let this thread be bound by modes, also as root: without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    library = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert library.capget(ctypes.byref(header), sets) == 0
    sets[0] &= ~0b110  # effective
    sets[1] &= ~0b110  # permitted
    assert library.capset(ctypes.byref(header), sets) == 0


@pytest.fixture
def as_user() -> Callable[[Callable[[], Any]], Any]:
    """Call something where modes count. (As root in a thread of its own, since nothing is given back to one.)"""

    def call(what: Callable[[], Any]) -> Any:
        def run() -> Any:
            _obey_modes()
            return what()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(run).result()

    return call


def test_what_may_only_be_read_is_read_by_every_verb_that_reads(
    path: Path, tmp_path: Path, run: Callable[..., Result], as_user: Callable[..., Any]
) -> None:
    with open_storage(path) as store:
        store.set("a", {"b": 1})
    path.chmod(0o444)
    before = path.read_bytes()
    for verb in (
        ("get", "a"),
        ("list",),
        ("query",),
        ("count",),
        ("explain",),
        ("namespaces",),
        ("status",),
        ("check",),
        ("export",),
        ("index", "list"),
        ("backup", str(tmp_path / "backup.db")),
        ("copy", str(path), str(tmp_path / "copy.db")),
    ):
        done = as_user(lambda verb=verb: run(*verb))
        assert (verb, done.code, done.err) == (verb, 0, "")
    for writing in (("set", "a", "2"), ("delete", "a"), ("delete", "--prefix", "a", "--yes"), ("index", "create", "b")):
        done = as_user(lambda verb=writing: run(*verb))
        assert (writing, done.code) == (writing, 3)
        assert "only be opened for reading" in done.err
    assert as_user(lambda: run("delete", "--prefix", "a")).code == 2  # it counts, and writes nothing
    assert path.read_bytes() == before


def test_a_file_that_can_only_be_read_is_a_read_only_error_that_says_why(
    path: Path, as_user: Callable[..., Any]
) -> None:
    open_storage(path).close()
    path.chmod(0o444)
    with pytest.raises(StorageReadOnlyError, match="only be opened for reading") as caught:
        as_user(lambda: open_storage(path))
    assert isinstance(caught.value.__cause__, PermissionError)
    path.chmod(0o600)
    open_storage(path).close()


def test_a_file_that_nobody_lets_us_see_is_not_said_to_be_missing(
    path: Path, tmp_path: Path, run: Callable[..., Result], as_user: Callable[..., Any]
) -> None:
    with open_storage(path) as store:
        store.set("a", 1)
    path.parent.chmod(0)
    try:
        for options in ({}, {"read_only": True}):
            with pytest.raises(StorageIOError, match="Permission denied") as caught:
                as_user(lambda options=options: open_storage(path, **options))
            assert isinstance(caught.value.__cause__, PermissionError)
        for call in (
            lambda: salvage(path, tmp_path / "rescued.db"),
            lambda: rekey(path, encryption_key=None, new_encryption_key="k"),
        ):
            with pytest.raises(StorageError) as refused:
                as_user(call)
            assert "there is no file" not in str(refused.value)
        for verb in (("get", "a"), ("check",), ("salvage", str(tmp_path / "rescued.db")), ("set", "a", "2")):
            done = as_user(lambda verb=verb: run(*verb))
            assert (verb, done.code) == (verb, 3)
            assert "Permission denied" in done.err
        done = as_user(lambda: run("doctor"))
        assert done.code == 3
        assert [(finding["level"], "Permission denied" in finding["what"]) for finding in done.json["findings"]] == [
            ("problem", True)
        ]
        done = as_user(lambda: run("restore", str(path.parent / "backup.db"), "--yes"))
        assert "Permission denied" in done.err
    finally:
        path.parent.chmod(0o700)


@pytest.mark.parametrize("name", ["file.txt/store.db", f"{'x' * 300}.db"])
def test_a_path_that_cannot_be_is_not_said_to_be_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(StorageIOError) as caught:
        open_storage(tmp_path / name, read_only=True)
    assert isinstance(caught.value.__cause__, OSError)


def test_which_permission_is_missing_is_said(path: Path, as_user: Callable[..., Any]) -> None:
    with open_storage(path) as store:
        store.set("a", 1)
    path.chmod(0)
    for options in ({}, {"read_only": True}):
        with pytest.raises(StorageIOError, match="permission to read it is denied to user"):
            as_user(lambda options=options: open_storage(path, **options))
    path.chmod(0o600)
    path.parent.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="beside it"):
            as_user(lambda: open_storage(path))
    finally:
        path.parent.chmod(0o700)


# ---- messages that help at a shell


def test_a_shell_is_told_of_verbs_and_options_and_not_of_arguments(
    path: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    with open_storage(path) as store:
        store.set_many({f"key {number}": "x" * 1000 for number in range(100)})
    other = tmp_path / "other.db"
    other.write_bytes(b"")
    for verb, word in (
        (("backup", str(other)), "--overwrite replaces it"),
        (("salvage", str(other)), "name a new file"),
        (("copy", str(path), str(tmp_path / "copy.db"), "--catch-up"), "without --catch-up"),
    ):
        done = run(*verb)
        assert (verb, done.code) == (verb, 2)
        assert word in done.err
        assert "overwrite=" not in done.err
        assert "copy()" not in done.err
    assert other.read_bytes() == b""
    assert run("backup", str(other), "--overwrite").code == 0
    with open(path, "r+b") as file:
        file.truncate(5 * 4096)
    for damaged in (("status",), ("count",), ("check",), ("get", "key 1"), ("backup", str(other), "--overwrite")):
        done = run(*damaged)
        assert (damaged, done.code) == (damaged, 3)
        assert "`salvage`" in done.err
        assert "`restore`" in done.err


def test_doctor_does_not_call_sound_what_it_has_not_read(
    path: Path, tmp_path: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Garbage in five pages: only a check finds it."""
    with open_storage(path) as store:
        store.set_many({f"key {number}": "x" * 1000 for number in range(100)})
    with open(path, "r+b") as file:
        for page in range(10, 15):
            file.seek(page * 4096)
            file.write(b"garbage!" * 512)
    done = run("doctor")
    assert "check" in done.json["pages"]
    assert run("check").code == 3
    plain = tmp_path / "mountinfo"
    plain.write_text("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n")
    monkeypatch.setattr(mounts, "MOUNTS", str(plain))
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    assert b"nothing odd was found about the file and around it; its pages were not read: `check`" in run("doctor").out


# ---- stores that nobody meant to make


@pytest.mark.parametrize(
    ("verb", "code"),
    [
        (("set", "", "x"), 2),
        (("set", "a", "x", "-n", ""), 2),
        (("set", "a", "x", "--ttl", "-1"), 2),
        (("set", "a", "[9223372036854775808]", "--json"), 2),
        (("copy", "--catch-up", "{beside}/other.db", "{path}"), 2),
        (("copy", "--namespaces", "nope", "{beside}/other.db", "{path}"), 1),
        (("import", "{beside}/no json.jsonl"), 1),
        (("import", "{beside}/no key.jsonl"), 1),
        (("import", "{beside}/too large.jsonl"), 1),
        (("import", "{beside}/no document.jsonl", "--key", "id"), 1),
        (("import", "{beside}/other.jsonl", "-n", ""), 2),
        (("import", "{beside}/no json.jsonl", "--on-error", "skip", "--key", "no"), 1),
        (("import", "{beside}/bad keys.jsonl", "--on-error", "skip", "--key", "id", "--batch-size", "2"), 1),
        (("import", "{beside}/too large.jsonl", "--on-error", "skip", "--key", "id"), 1),
        (("import", "{beside}/no key.jsonl", "--on-error", "skip"), 1),
        (("import", "{beside}/no index.jsonl", "--on-error", "skip"), 1),
        (("restore", "{beside}/damaged.backup", "--yes"), 3),
        (("--store", "{path.parent}/new/place.db", "restore", "{beside}/damaged.backup", "--yes"), 3),
        (("restore", "{beside}/other.jsonl", "--yes"), 3),
        (("restore", "{beside}", "--yes"), 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_command_that_fails_leaves_no_empty_store(
    path: Path, tmp_path: Path, run: Callable[..., Result], verb: tuple[str, ...], code: int
) -> None:
    with open_storage(tmp_path / "other.db") as other:
        other.set("a", 1)
        other.set_many({f"key {number}": "x" * 1000 for number in range(100)})
        other.backup(tmp_path / "damaged.backup")
    with open(tmp_path / "damaged.backup", "r+b") as file:
        file.seek(10 * 4096)
        file.write(b"garbage!" * 2048)
    for name, lines in {
        "other": '{"a": 1}\n',
        "no json": '{"id": "a"}\n{"id": \n',
        "no key": '{"mycelia_storage_export":1,"exported_at":"2026-01-01T00:00:00.000Z","namespace":"x"}\n{"key":""}\n',
        "too large": '{"a": 1}\n{"a": 9223372036854775808}\n',
        "no document": '{"id": "a"}\n{"id": ""}\n',
        "bad keys": '{"id": ""}\n' * 3 + "[]\n" + '{"id": null}\n' + '{"id": ""}\n',
        "no index": '{"mycelia_storage_export":1,"exported_at":"2026-01-01T00:00:00.000Z","namespace":"x"}\n'
        '{"index":["a["]}\n',
    }.items():
        (tmp_path / f"{name}.jsonl").write_text(lines)
    done = run(*(word.format(beside=tmp_path, path=path) for word in verb))
    assert (done.code, contents(path.parent)) == (code, {}), done.err


def test_the_batches_before_a_bad_line_are_in_the_store_that_was_made_for_them(
    path: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    """And of those items that were tried before it was made, each is loaded once."""
    lines = [f'{{"id": "{number}", "n": {number}}}' for number in range(10)]
    lines[7] = '{"id": ""}'
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    done = run("import", str(tmp_path / "lines.jsonl"), "--key", "id", "--batch-size", "3")
    assert done.code == 1
    assert "line 8" in done.err
    assert (done.json["loaded"], done.json["replaced"]) == (6, 0)
    assert run("count").json == 6
    path.unlink()
    done = run("import", str(tmp_path / "lines.jsonl"), "--batch-size", "4")
    assert (done.code, done.json["loaded"], done.json["replaced"]) == (0, 10, 0)
    assert run("get", "000000000010").json == {"id": "9", "n": 9}


def test_bad_lines_before_the_first_good_one_are_told_of_with_their_numbers(
    path: Path, tmp_path: Path, run: Callable[..., Result], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    lines = ['{"id": ""}', "[]", '{"id": ""}', '{"id": "a"}', '{"id": ""}', '{"id": "b"}', '{"id": "b"}']
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    command = ("--store", str(path), "import", str(tmp_path / "lines.jsonl"), "--key", "id", "--on-error", "skip")
    for batch_size in ("1", "2", "100"):
        capfdbinary.readouterr()
        code = main([*command, "--batch-size", batch_size])
        out, err = capfdbinary.readouterr()
        facts = orjson.loads(out)
        assert (code, facts["loaded"], facts["replaced"], facts["failed"]) == (1, 3, 1, 4)
        told = [line.split(b": ")[1] for line in err.splitlines()[:-1]]
        assert told == [b"line 1", b"line 2", b"line 3", b"line 5"]
        assert run("list").out == b"a\nb\n"
        path.unlink()


def test_a_restore_makes_the_store_that_is_not_there_yet(
    path: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    with open_storage(tmp_path / "other.db") as other:
        other.set("a", 1)
        other.create_index("x", name="by x")
        other.backup(tmp_path / "app.backup")
    new = path.parent / "not" / "there?yet=1" / "store.db"
    for source in (tmp_path / "app.backup", ORIGINAL):
        done = run("--store", f"sqlite:///{quote(str(new))}", "restore", str(source), "--yes")
        assert done.code == 0, done.err
        assert [entry.name for entry in new.parent.iterdir()] == ["store.db"]
        assert [place.stat().st_mode & 0o777 for place in (new, new.parent, new.parent.parent)] == [0o600, 0o700, 0o700]
        with open_storage(new) as store:
            assert store.get_status().entries == done.json["entries"] > 0
            assert store.check().entries
        new.unlink()
