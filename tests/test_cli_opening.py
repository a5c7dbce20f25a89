"""How the command line opens a store: what it never changes on its way, what it may only read, and what it never makes.

Each test is named for what a user would find one morning: another program's file migrated, an empty store that nobody
meant to make, or "there is no store" where only a permission was missing.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import apsw
import orjson
import pytest

from mycelia_storage import open_storage
from mycelia_storage.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

ORIGINAL = Path(__file__).parent / "data" / "original_adapter_v1.db"


class Result(NamedTuple):
    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:
        return orjson.loads(self.out)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir(mode=0o700)
    return folder / "store.db"


@pytest.fixture
def run(path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Result]:
    """A command on the store at `path`. Whatever fails is one line, and no traceback."""

    def call(*arguments: str) -> Result:
        capfdbinary.readouterr()
        code = main(["--store", str(path), *arguments])
        out, err = capfdbinary.readouterr()
        assert err.count(b"\n") <= 1
        return Result(code, out, err.decode())

    return call


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


@pytest.mark.parametrize("verb", EVERY_VERB, ids=" ".join)
def test_no_verb_migrates_the_file_of_another_program_on_its_way(
    path: Path, tmp_path: Path, run: Callable[..., Result], verb: tuple[str, ...]
) -> None:
    shutil.copyfile(ORIGINAL, path)
    with open_storage(tmp_path / "other.db") as other:
        other.set("a", 1)
    (tmp_path / "lines.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    (tmp_path / "tiny.json").write_text('{"_default": {"1": {"a": 1}}}')
    before = contents(path.parent)
    done = run(*(word.format(beside=tmp_path, path=path) for word in verb))
    assert contents(path.parent) == before
    assert done.code == 3
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
