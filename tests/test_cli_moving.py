"""`mycelia-storage copy` through its entry point: what it copies, what it prints, every exit code, no passwords."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from test_cli import Shell

from mycelia_storage import open_storage

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    with open_storage(tmp_path / "a.db") as store:
        store.set_many({f"key {number}": number for number in range(10)})
        store.set("cart", 1, namespace="carts")
    return Shell(tmp_path)


def test_a_store_is_copied_and_brought_up_to_date(shell: Shell) -> None:
    done = shell("copy", "a.db", "b.db")
    assert (done.code, done.err) == (0, "")
    assert {name: done.json[name] for name in ("entries", "namespaces", "written", "verified")} == {
        "entries": 11, "namespaces": 2, "written": 11, "verified": 11,
    }  # fmt: skip
    assert shell("--store", "a.db", "delete", "key 3").code == 0
    assert shell("--store", "a.db", "set", "key 4", "new").code == 0
    done = shell("copy", "--catch-up", "a.db", "b.db")
    assert (done.json["entries"], done.json["written"], done.json["deleted"]) == (10, 1, 1)
    assert shell("--store", "b.db", "get", "key 4", "--raw").out == b"new"
    done = shell("copy", "--no-verify", "sqlite:///a.db", "b.db")
    assert (done.json["written"], done.json["verified"]) == (0, 0)


def test_some_namespaces_are_chosen(shell: Shell) -> None:
    assert shell("copy", "a.db", "b.db", "--namespaces", "carts").json["entries"] == 1
    assert shell("copy", "a.db", "b.db", "-n", "carts", "-n", "default").json["entries"] == 11
    done = shell("copy", "a.db", "b.db", "-n", "nothing")
    assert done.code == 1
    assert "'nothing'" in done.err


def test_a_target_that_is_somebodys_is_wrong_use(shell: Shell) -> None:
    shell("copy", "a.db", "b.db")
    shell("--store", "b.db", "set", "mine", "1")
    done = shell("copy", "a.db", "b.db")
    assert (done.code, done.out) == (2, b"")
    assert "was written to since" in done.err
    for arguments, part in (
        (("a.db", "a.db"), "same store"),
        (("a.db", "memory:"), "in memory"),
        (("memory:", "c.db"), "in memory"),
        (("--catch-up", "--no-verify", "a.db", "c.db"), "--no-verify"),
        (("--catch-up", "a.db", "c.db"), "without --catch-up"),
        (("a.db",), "TARGET"),
    ):
        done = shell("copy", *arguments)
        assert (done.code, done.out) == (2, b"")
        assert part in done.err


def test_a_source_that_is_not_there_is_noticed_before_a_target_is_made(shell: Shell) -> None:
    done = shell("copy", "nothing.db", "b.db")
    assert done.code == 3
    assert "there is no store" in done.err
    assert not (shell.folder / "b.db").exists()
    assert not (shell.folder / "nothing.db").exists()


def test_what_differs_is_printed(shell: Shell, tmp_path: Path) -> None:
    shell("copy", "a.db", "b.db")
    # A program that does nothing but lose an expiry.
    with open_storage(tmp_path / "b.db") as store:
        rows = store._engine.auto.rows("default", ["key 5"])
        store._engine.auto.place("default", [rows[0]._replace(value="6")], 0)
    done = shell("copy", "a.db", "b.db")
    assert done.code == 3
    assert done.json == {"differs": [["default", "key 5"]], "count": 1}
    assert "'key 5' in namespace 'default'" in done.err
    code, text = shell.on_terminal("copy", "a.db", "b.db")
    assert code == 3
    assert "differs: 'key 5' in namespace 'default'" in text


def test_a_terminal_sees_a_sentence(shell: Shell) -> None:
    code, text = shell.on_terminal("copy", "a.db", "b.db")
    assert code == 0
    assert "11 entries of 2 namespaces are in b.db: 11 written, 0 deleted, 11 read back" in text


@pytest.mark.parametrize("url", ["postgresql://u:geheim@host/db", "postgres://host/db?password=geheim&user=u"])
def test_a_password_in_an_argument_is_refused_and_not_shown(shell: Shell, url: str) -> None:
    for arguments in (("a.db", url), (url, "b.db")):
        done = shell("copy", *arguments)
        assert done.code == 2
        assert "PGPASSWORD" in done.err
        assert "geheim" not in done.err


def test_a_source_of_an_older_schema_is_not_migrated(shell: Shell) -> None:
    assert shell("--store", "a.db", "migrate", "--to", "1").code == 0
    done = shell("copy", "a.db", "b.db")
    assert done.code == 3
    assert "schema" in done.err
    assert (shell.folder / "a.db").exists()


def test_a_key_is_for_both_files(shell: Shell) -> None:
    """Where the driver does not encrypt, it says so, for either of them."""
    done = shell("copy", "a.db", "b.db", MYCELIA_STORAGE_NEW_KEY="secret key")
    assert done.code == 2
    assert "secret key" not in done.err
    assert not (shell.folder / "b.db").exists()
