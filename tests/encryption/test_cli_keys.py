"""Hazard: a key on the command line, where every user of the machine can read it, or in what the command prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from mycelia_storage import open_storage

if TYPE_CHECKING:
    from pathlib import Path

KEY = "open sesame"


def shell(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "mycelia_storage.cli", *arguments],
        capture_output=True,
        check=False,
        timeout=60,
        cwd=folder,
        env={**os.environ, "MYCELIA_STORAGE": "store.db", **environment},
        text=True,
    )
    assert "sesame" not in done.stdout + done.stderr
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with open_storage(tmp_path / "store.db", encryption_key=KEY) as store:
        store.set("a", 1)
    (tmp_path / "key").write_bytes(KEY.encode())
    (tmp_path / "key-of-an-editor").write_bytes(KEY.encode() + b"\n")
    return tmp_path


def test_every_verb_takes_the_key_from_the_environment_or_a_file(folder: Path) -> None:
    by_file = {"MYCELIA_STORAGE_KEY_FILE": "key"}
    assert shell(folder, "get", "a", MYCELIA_STORAGE_KEY=KEY).stdout == "1\n"
    assert shell(folder, "get", "a", MYCELIA_STORAGE_KEY_FILE="key-of-an-editor").stdout == "1\n"
    assert shell(folder, "export", "-o", "all.jsonl", **by_file).returncode == 0
    assert shell(folder, "--store", "new.db", "import", "all.jsonl", **by_file).returncode == 0
    assert shell(folder, "backup", "backup.db", **by_file).returncode == 0
    assert shell(folder, "restore", "backup.db", "--yes", **by_file).returncode == 0
    for name in ("store.db", "new.db", "backup.db"):
        with open_storage(folder / name, encryption_key=KEY) as store:
            assert store.list_keys() == ["a"]


@pytest.mark.parametrize(
    ("environment", "code", "says"),
    [
        ({}, 2, "is encrypted, and no key was given"),
        ({"MYCELIA_STORAGE_KEY": "another sesame"}, 2, "does not open with this key"),
        ({"MYCELIA_STORAGE_KEY": ""}, 2, "it is empty"),
        ({"MYCELIA_STORAGE_KEY_FILE": "nowhere"}, 3, "nowhere cannot be read"),
        ({"MYCELIA_STORAGE_KEY_FILE": "key", "MYCELIA_STORAGE_KEY": KEY}, 2, "cannot go together"),
    ],
)
def test_a_bad_key_is_one_line_and_an_exit_code(
    folder: Path, environment: dict[str, str], code: int, says: str
) -> None:
    done = shell(folder, "get", "a", **environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert says in done.stderr


def test_rekey_changes_the_key(folder: Path) -> None:
    done = shell(folder, "rekey", MYCELIA_STORAGE_KEY=KEY, MYCELIA_STORAGE_NEW_KEY="new sesame")
    assert json.loads(done.stdout)["encrypted"] is True
    assert shell(folder, "get", "a", MYCELIA_STORAGE_KEY=KEY).returncode == 2
    assert shell(folder, "get", "a", MYCELIA_STORAGE_KEY="new sesame").stdout == "1\n"
    done = shell(folder, "rekey", "--decrypt", MYCELIA_STORAGE_KEY="new sesame")
    assert json.loads(done.stdout)["encrypted"] is False
    assert shell(folder, "get", "a").stdout == "1\n"
    assert shell(folder, "rekey", MYCELIA_STORAGE_NEW_KEY_FILE="key").returncode == 0
    assert shell(folder, "get", "a", MYCELIA_STORAGE_KEY_FILE="key").stdout == "1\n"


@pytest.mark.parametrize("arguments", [("rekey",), ("rekey", "--decrypt")])
def test_rekey_without_saying_to_what_is_wrong_use(folder: Path, arguments: tuple[str, ...]) -> None:
    new = {"MYCELIA_STORAGE_NEW_KEY": "new sesame"} if "--decrypt" in arguments else {}
    assert shell(folder, *arguments, MYCELIA_STORAGE_KEY=KEY, **new).returncode == 2
    assert shell(folder, "get", "a", MYCELIA_STORAGE_KEY=KEY).stdout == "1\n"
