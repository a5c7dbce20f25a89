"""The command line through its real entry points: every verb but import, every exit code, pipes and terminals.

A child process is what a user runs, so nearly everything here is one; `test_cli_import.py` has the rest.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from command_line import PROGRAM, Result, one_line
from terminals import on_terminal
from typer.main import get_command

from mycelia_storage import open_storage
from mycelia_storage.cli import main
from mycelia_storage.cli.app import app

if TYPE_CHECKING:
    from collections.abc import Callable


class Shell:
    """Runs the command on one store, as a shell would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "store.db"

    def __call__(self, *arguments: str | bytes, stdin: bytes = b"", **environment: str) -> Result:
        done = subprocess.run(
            [*PROGRAM, *arguments],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=60,
            cwd=self.folder,
            env={**os.environ, "MYCELIA_STORAGE": str(self.path), **environment},
        )
        return Result(done.returncode, done.stdout, done.stderr.decode())

    def on_terminal(self, *arguments: str) -> tuple[int, str]:
        """The exit code and everything that reached a terminal, from both outputs."""
        environment = {"MYCELIA_STORAGE": str(self.path)}
        return on_terminal([*PROGRAM, *arguments], environment=environment, cwd=self.folder)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def path(shell: Shell) -> Path:
    return shell.path


@pytest.fixture
def here(run: Callable[..., Result]) -> Callable[..., Result]:
    """The same command in this process, for cases that are many."""
    return run


# ---- get and set


def test_what_is_set_is_got(shell: Shell) -> None:
    done = shell("set", "user:1", '{"b": [1, 2.0], "a": "Zürich"}', "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["key"] == "user:1"
    with open_storage(shell.path) as store:
        assert done.json["version"] == store.get_entry("user:1").version
    got = shell("get", "user:1")
    assert (got.code, got.out, got.err) == (0, '{"b":[1,2.0],"a":"Zürich"}\n'.encode(), "")


def test_text_is_kept_as_it_is(shell: Shell) -> None:
    assert shell("set", "k", "[1, 2]").code == 0
    assert shell("get", "k").out == b'"[1, 2]"\n'
    assert shell("get", "k", "--raw").out == b"[1, 2]"
    assert shell("set", "k", "-", stdin=b"line\n\x1b[31mred\n").code == 0
    assert shell("get", "k", "--raw").out == b"line\n\x1b[31mred\n"


def test_raw_prints_what_is_no_text_as_json(here: Callable[..., Result]) -> None:
    here("set", "k", "[1,2]", "--json")
    assert here("get", "k", "--raw").out == b"[1,2]\n"


def test_set_with_metadata_ttl_and_namespace(shell: Shell, here: Callable[..., Result]) -> None:
    done = here("set", "k", "v", "-n", "other", "--ttl", "3600", "--metadata", '{"source": "mail"}')
    assert done.code == 0
    entry = here("get", "k", "--namespace", "other", "--entry").json
    assert entry["value"] == "v"
    assert entry["metadata"] == {"source": "mail"}
    assert entry["namespace"] == "other"
    with open_storage(shell.path) as store:
        stored = store.get_entry("k", namespace="other")
        assert stored.expires_at is not None
        assert entry["version"] == stored.version
    assert here("get", "k").code == 1


def test_numbers_come_back_to_the_bit(here: Callable[..., Result]) -> None:
    numbers = "[9223372036854775807,-9223372036854775808,-0.0,1e308,5e-324,0.1,1.0]"
    here("set", "k", numbers, "--json")
    got = here("get", "k").json
    assert [repr(number) for number in got] == [repr(number) for number in json.loads(numbers)]


# ---- delete


def test_delete_names_what_was_not_there(here: Callable[..., Result]) -> None:
    here("set", "a", "1")
    here("set", "b", "2")
    done = here("delete", "a", "missing", "b", "a")
    assert (done.code, done.json) == (1, {"deleted": 2})
    assert "'missing'" in one_line(done)
    assert here("list").out == b""
    assert here("delete", "a").code == 1


def test_delete_by_prefix_only_with_yes(shell: Shell, here: Callable[..., Result]) -> None:
    with open_storage(shell.path) as store:
        store.set_many({f"log:{number:05}": number for number in range(12_000)})
        store.set("other", 1)
    refused = here("delete", "--prefix", "log:")
    assert refused.code == 2
    assert "12,000" in one_line(refused)
    done = here("delete", "--prefix", "log:", "--yes")
    assert (done.code, done.json, done.err) == (0, {"deleted": 12_000}, "")
    assert here("list").out == b"other\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--yes"],
        ["a", "--prefix", "b"],
        ["--prefix", "", "--yes"],
        ["a", "--where", "$key=a", "--yes"],
        ["--prefix", "a", "--where", "$key=a", "--yes"],
        ["--filter", "[]", "--yes"],
        ["--filter", "null", "--yes"],
        ["--filter", '{"or": [{"and": []}, {"field": "a", "operator": "eq", "value": 1}]}', "--yes"],
        ["--filter", "[]"],
        ["--where", "a", "--yes"],
    ],
)
def test_delete_wants_to_know_what(arguments: list[str], here: Callable[..., Result]) -> None:
    here("set", "a", "1")
    done = here("delete", *arguments)
    assert done.code == 2
    one_line(done)
    assert here("list").out == b"a\n"


# ---- list, namespaces, status, check


def test_list_chooses(shell: Shell, here: Callable[..., Result]) -> None:
    def listed(*arguments: str) -> bytes:
        return here("list", *arguments).out

    with open_storage(shell.path) as store:
        store.set_many({f"k{number:05}": None for number in range(20_500)})
        store.set_many({"x": 1, "a*b": 1, "é\n": 1})
    assert listed().count(b"\n") == 20_504  # one key holds a line end
    assert listed("-0").count(b"\0") == 20_503
    assert listed("--prefix", "k", "--limit", "20001", "--offset", "1").split()[-1] == b"k20001"
    assert listed("--reverse", "--prefix", "k", "--limit", "10002").split()[-1] == b"k10498"
    assert listed("--pattern", "k*0499") == b"k00499\nk10499\nk20499\n"
    assert listed("--pattern", r"a\*b") == b"a*b\n"
    assert listed("--start-after", "k20498", "--prefix", "k") == b"k20499\n"
    assert listed("--limit", "0") == b""
    assert listed("-n", "nobody") == b""


def test_namespaces_status_and_check(shell: Shell, here: Callable[..., Result]) -> None:
    with open_storage(shell.path) as store:
        store.create_namespace("empty", metadata={"note": "nothing"})
        store.set_many({"a": 1, "b": 2}, namespace="cities")
    rows = [json.loads(line) for line in here("namespaces").out.splitlines()]
    assert [(row["name"], row["entries"]) for row in rows] == [("cities", 2), ("default", 0), ("empty", 0)]
    assert rows[2]["metadata"] == {"note": "nothing"}
    assert len(here("namespaces", "--prefix", "c").out.splitlines()) == 1
    status = here("status").json
    assert status["backend"] == "sqlite"
    assert status["entries"] == 2
    checked = here("check")
    assert checked.code == 0
    assert checked.json["entries"] == 2


# ---- exit codes and errors


def test_a_missing_key_is_1(here: Callable[..., Result]) -> None:
    here("set", "a", "1")
    done = here("get", "b")
    assert (done.code, done.out) == (1, b"")
    one_line(done)


@pytest.mark.parametrize(
    "arguments",
    [
        ["get"],
        ["get", "a", "b"],
        ["gett", "a"],
        ["get", "a", "--nonsense"],
        ["get", ""],
        ["get", "k" * 1025],
        ["get", "\udcff"],
        ["get", "a", "-n", "bad*name"],
        ["get", "a", "--raw", "--entry"],
        ["list", "--limit", "-1"],
        ["list", "--limit", "many"],
        ["set", "a", "{secret", "--json"],
        ["set", "a", '{"a": "secret", "b": NaN}', "--json"],
        ["set", "a", '"\\ud800secret"', "--json"],
        ["set", "a", "18446744073709551616", "--json"],
        ["set", "a", "secret\udcff"],
        ["set", "a", "secret", "--ttl", "0"],
        ["set", "a", "secret", "--ttl", "nan"],
        ["set", "a", "secret", "--metadata", "[]"],
        ["set", "a", "secret", "--metadata", "{secret"],
        ["import", "missing.jsonl"],
        ["import", "."],
        ["import", "x", "--format", "xml"],
        ["export", "--all", "-n", "other"],
        ["export", "-o", "missing/folder.jsonl"],
        ["export", "-o", "/dev/null"],
        ["export", "-o", "store.db"],
        ["export", "-o", "store.db-wal"],
    ],
)
def test_wrong_use_is_2_and_shows_no_value(
    shell: Shell, arguments: list[str], monkeypatch: pytest.MonkeyPatch, here: Callable[..., Result]
) -> None:
    monkeypatch.chdir(shell.folder)
    with open_storage(shell.path) as store:
        store.set("a", 1)
    done = here(*arguments)
    assert (done.code, done.out) == (2, b"")
    assert "secret" not in one_line(done)
    with open_storage(shell.path) as store:
        assert store.get("a") == 1
    assert sorted(os.listdir(shell.folder)) in (["store.db"], ["store.db", "store.db-shm", "store.db-wal"])


@pytest.mark.parametrize("target", ["", "redis://there", "sqlite://here", "nul\x01/../"])
def test_a_bad_target_is_2(target: str, here: Callable[..., Result]) -> None:
    done = here("--store", target, "list")
    assert done.code == 2
    one_line(done)


def test_no_target_is_2(shell: Shell) -> None:
    done = subprocess.run(
        [*PROGRAM, "list"],
        capture_output=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "MYCELIA_STORAGE"},
    )
    assert done.returncode == 2
    assert b"--store" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "verb", [["get", "a"], ["list"], ["delete", "a"], ["namespaces"], ["status"], ["check"], ["export"]]
)
def test_no_store_is_3_and_none_is_made(shell: Shell, verb: list[str], here: Callable[..., Result]) -> None:
    done = here(*verb)
    assert done.code == 3
    assert "store.db" in one_line(done)
    assert os.listdir(shell.folder) == []


def test_a_file_of_somebody_else_is_3(shell: Shell) -> None:
    shell.path.write_bytes(b"my diary, long before this program " * 100)
    for verb in (["list"], ["set", "a", "1"], ["import", "-", "--format", "jsonl"]):
        done = shell(*verb)
        assert done.code == 3
        one_line(done)


def test_a_full_disk_is_3(shell: Shell) -> None:
    with open_storage(shell.path) as store:
        store.set("a", "x" * 100_000)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PROGRAM, "--store", str(shell.path), "get", "a"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 3
    assert done.stderr == b"mycelia-storage: No space left on device\n"


def test_a_reader_who_left_is_141_and_quiet(shell: Shell) -> None:
    with open_storage(shell.path) as store:
        store.set_many({f"{number:0100}": None for number in range(20_000)})
    for verb in ("list", "export"):
        with subprocess.Popen(
            [*PROGRAM, "--store", str(shell.path), verb], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.read(10)
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(60) == 141


def test_interrupted_is_130(shell: Shell) -> None:
    with subprocess.Popen(
        [*PROGRAM, "--store", str(shell.path), "import", "-", "--format", "jsonl", "--batch-size", "10"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Where the tests run in the background of a shell, the child would inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  no threads here
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"1\n" * 25)
        process.stdin.flush()
        while not shell.path.exists() or open_and_count(shell.path) < 20:
            threading.Event().wait(0.05)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"mycelia-storage: interrupted (20 entries are stored)\n"
        assert process.wait(60) == 130
    assert open_and_count(shell.path) == 20


def open_and_count(path: Path) -> int:
    with open_storage(path) as store:
        return store.count()


# ---- terminals


def test_a_terminal_gets_nothing_that_it_would_obey(shell: Shell) -> None:
    hostile = "\x1b[31mred\x07\x9b0m\u202ekey\r\n\x7f[bold]"
    with open_storage(shell.path) as store:
        store.set(hostile, {"\x9bname": "\x1b]0;title\x07 Zürich \u200f"}, metadata={"\x9bm": 1})
        store.set("text", "\x1b[2J\tcleared\n")
    for verb in (
        ["list"],
        ["list", "-0"],
        ["get", hostile],
        ["get", hostile, "--entry"],
        ["get", "text", "--raw"],
        ["delete", hostile + "?"],
        ["namespaces"],
        ["status"],
        ["check"],
        ["set", hostile, "v"],
    ):
        _, seen = shell.on_terminal(*verb)
        for control in ("\x07", "\x9b", "\u202e", "\u200f", "\x7f", "\x1b[31mred", "\x1b[2J", "\x1b]"):
            assert control not in seen, (verb, seen)
        assert "Traceback" not in seen
    _, seen = shell.on_terminal("list")
    assert "\\u001b[31mred\\u0007\\u009b0m\\u202ekey\\r\\n\\u007f[bold]" in seen


def test_a_terminal_shows_documents_indented_and_tables(shell: Shell) -> None:
    with open_storage(shell.path) as store:
        store.set("k", {"name": "Zürich", "size": [1, 2]})
    code, seen = shell.on_terminal("get", "k")
    assert code == 0
    assert len(seen.splitlines()) == 7
    assert "Zürich" in seen
    code, seen = shell.on_terminal("namespaces")
    assert code == 0
    assert re.sub(r"\x1b\[[0-9;]*m", "", seen).split()[:3] == ["namespace", "entries", "created"]
    assert "entries" in shell.on_terminal("status")[1]
    assert "nothing wrong with 1 entry in 1 namespace (" in shell.on_terminal("check")[1]
    assert "deleted 1 entry" in shell.on_terminal("delete", "k")[1]


# ---- entry points


def test_the_console_script_is_the_same_function() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"]["mycelia-storage"].partition(":")
    assert getattr(importlib.import_module(module), function) is main


def test_main_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = str(tmp_path / "store.db")
    assert main(["--store", path, "set", "k", "v"]) == 0
    monkeypatch.setattr(sys, "argv", ["mycelia-storage", "--store", path, "get", "k"])
    capfdbinary.readouterr()
    assert main() == 0
    assert capfdbinary.readouterr().out == b'"v"\n'


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_one_line_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from mycelia_storage.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "list"], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"extra 'cli'" in done.stderr


def test_help_tells_the_exit_codes_and_every_verb(shell: Shell) -> None:
    done = shell("--help")
    assert done.code == 0
    text = done.out.decode()
    for word in ("get", "set", "delete", "list", "import", "export", "namespaces", "status", "check", "Exit codes: 0"):
        assert word in text
    assert shell().code == 2
    assert shell("import", "-h").code == 0
    version = shell("--version")
    assert version.code == 0
    assert version.out.startswith(b"mycelia-storage ")


def test_the_docs_name_every_verb_and_option() -> None:
    text = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text()
    group: Any = get_command(app)
    for verb, command in group.commands.items():
        assert f"`{verb}" in text
        for option in (name for parameter in command.params for name in parameter.opts if name.startswith("--")):
            assert option in text, f"{verb} {option}"
    for code in (0, 1, 2, 3, 130, 141):
        assert f"\n| {code} |" in text
