"""`query`, `count`, `explain` and `index` through the real entry points, and indexes that go through an export.

The grammar of `--where` by itself is in `test_cli_where.py`.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from terminals import on_terminal
from typer.main import get_command

from mycelia_storage import field, open_storage, path
from mycelia_storage.cli import main
from mycelia_storage.cli.app import app
from mycelia_storage.cli.querying import command_of

if TYPE_CHECKING:
    from mycelia_storage import Storage

PROGRAM = [sys.executable, "-m", "mycelia_storage.cli"]

CITIES: dict[str, dict[str, Any]] = {
    "1": {"name": "Tokyo", "countrycode": "JP", "population": 9_733_276, "tags": ["capital", "port"]},
    "2": {"name": "Osaka", "countrycode": "JP", "population": 2_753_862, "tags": []},
    "3": {"name": "Lagos", "countrycode": "NG", "population": 15_388_000, "mayor": None},
    "4": {"name": "New York", "countrycode": "US", "population": 8_804_190, "at": {"state": "NY"}},
    "5": {"name": "Nowhere", "countrycode": "JP"},
}


class Result(NamedTuple):
    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def keys(self) -> list[str]:
        return [line["key"] for line in self.lines]

    @property
    def cursor(self) -> str | None:
        _, found, cursor = self.err.strip().partition("--cursor=")
        return cursor if found else None


class Runner:
    """Runs the command on one store: in this process, as a child of a shell, or on a terminal."""

    def __init__(self, folder: Path, captured: pytest.CaptureFixture[bytes]) -> None:
        self.folder = folder
        self.path = folder / "store.db"
        self._captured = captured

    def __call__(self, *arguments: str, store: str = "store.db") -> Result:
        self._captured.readouterr()
        code = main(["--store", str(self.folder / store), *arguments])
        out, err = self._captured.readouterr()
        return Result(code, out, err.decode())

    def child(self, *arguments: str | bytes, stdin: bytes = b"") -> Result:
        environment = {**os.environ, "MYCELIA_STORAGE": str(self.path)}
        done = subprocess.run(
            [*PROGRAM, *arguments], input=stdin, capture_output=True, check=False, timeout=60, env=environment
        )
        return Result(done.returncode, done.stdout, done.stderr.decode())

    def on_terminal(self, *arguments: str, width: int = 100) -> tuple[int, str]:
        environment = {"MYCELIA_STORAGE": str(self.path), "TERM": "xterm"}
        code, seen = on_terminal([*PROGRAM, *arguments], environment=environment, width=width)
        # Without bold and colours, which are the command's own.
        return code, re.sub(r"\x1b\[[0-9;]*m", "", seen)

    def refused(self, *arguments: str) -> str:
        """The one line in which a wrong command ends."""
        done = self(*arguments)
        assert (done.code, done.out) == (2, b""), done
        assert done.err.startswith("mycelia-storage: ")
        assert done.err.count("\n") == 1
        return done.err.removeprefix("mycelia-storage: ").strip()


@pytest.fixture
def run(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Runner:
    runner = Runner(tmp_path, capfdbinary)
    with open_storage(runner.path) as store:
        store.set_many(CITIES)
    return runner


# ---- delete


def test_delete_by_conditions_only_tells_how_many_without_yes(run: Runner) -> None:
    japanese = ("--where", "countrycode=JP", "-w", "population>1e6")
    expected = run("query", "--keys", *japanese).out.decode().split()
    assert len(expected) == 2
    assert run.refused("delete", *japanese) == "2 entries match: add --yes to delete them"
    assert run.refused("delete", "--where", "name=Lagos") == "1 entry matches: add --yes to delete it"
    assert run.refused("delete", "--where", "name=Lagos", "-n", "other") == "0 entries match: add --yes to delete them"
    assert run("query").keys == list(CITIES)
    done = run.child("delete", *japanese, "--yes")
    assert (done.code, done.json, done.err) == (0, {"deleted": 2}, "")
    assert run("query").keys == [key for key in CITIES if key not in expected]
    again = run("delete", *japanese, "--yes")
    assert (again.code, again.json) == (0, {"deleted": 0})


def test_delete_takes_the_json_form(run: Runner) -> None:
    either = {"not": {"field": "name", "operator": "eq", "value": "Lagos"}}
    done = run.child("delete", "--filter", "-", "--yes", stdin=json.dumps(either).encode())
    assert (done.code, done.json) == (0, {"deleted": 4})
    assert [line["value"]["name"] for line in run("query").lines] == ["Lagos"]
    everything = run.refused("delete", "--filter", "[]", "--yes")
    assert everything == "filter: delete needs one that compares something"
    assert run("count").json == 1


# ---- query


def test_query_prints_what_matches(run: Runner) -> None:
    done = run.child("query", "--where", "countrycode=JP", "-w", "population > 1e6", "--sort", "-population")
    assert (done.code, done.err) == (0, "")
    assert done.lines == [{"key": "1", "value": CITIES["1"]}, {"key": "2", "value": CITIES["2"]}]
    everything = run("query")
    assert everything.keys == list(CITIES)
    nothing = run("query", "-w", "countrycode=XX")
    assert (nothing.code, nothing.out, nothing.err) == (0, b"", "")


def test_query_takes_the_json_form(run: Runner) -> None:
    either = {
        "or": [
            {"field": "name", "operator": "eq", "value": "Lagos"},
            {"not": {"field": "population", "operator": "exists"}},
        ]
    }
    assert run("query", "--filter", json.dumps(either)).keys == ["3", "5"]
    assert run("query", "--filter", json.dumps(either), "--where", "countrycode=JP").keys == ["5"]
    assert run.child("query", "--filter", "-", "--keys", stdin=json.dumps(either).encode()).out == b"3\n5\n"
    assert run("count", "--filter", "[]").json == 5


def test_query_sorts_by_several_fields(run: Runner) -> None:
    assert run("query", "--sort", "countrycode", "--sort", "-name").keys == ["1", "2", "5", "3", "4"]
    assert run("query", "--sort", "population").keys == ["2", "4", "1", "3", "5"]
    assert run("query", "--sort=-population").keys == ["3", "1", "4", "2", "5"]


def test_query_forms_of_output(run: Runner) -> None:
    assert run("query", "--keys", "--limit", "5").out == b"1\n2\n3\n4\n5\n"
    chosen = run(
        "query", "-w", "name='New York'", "--show", "at.state", "--show", "missing", "--show", "$version"
    ).lines
    with open_storage(run.path) as store:
        entry = store.get_entry("4")
    assert chosen == [{"key": "4", "value": {"at.state": "NY", "$version": entry.version}}]
    whole = run("query", "--entry", "--limit", "1").lines[0]
    assert list(whole) == ["namespace", "key", "value", "metadata", "version", "created_at", "updated_at", "expires_at"]
    assert "cannot go together" in run.refused("query", "--entry", "--keys")


def test_query_pages_by_cursor_and_offset(run: Runner) -> None:
    seen: list[str] = []
    cursor: str | None = None
    while True:
        more = [] if cursor is None else [f"--cursor={cursor}"]
        page = run("query", "--sort", "-population", "--limit", "2", *more)
        assert page.code == 0
        seen += page.keys
        cursor = page.cursor
        if cursor is None:
            assert page.err == ""
            break
        assert page.err == f"mycelia-storage: there is more: --cursor={cursor}\n"
    assert seen == ["3", "1", "4", "2", "5"]
    assert run("query", "--offset", "3").keys == ["4", "5"]
    assert run("query", "--limit", "1", "--offset", "1").keys == ["2"]
    first = run("query", "--limit", "1").cursor
    assert first is not None
    assert run("query", "--cursor", first).keys == ["2", "3", "4", "5"]
    assert "cursor" in run.refused("query", "--cursor", first, "--sort", "name")
    assert "cursor" in run.refused("query", "--cursor", first[:-1])
    assert "offset" in run.refused("query", "--cursor", first, "--offset", "1")


def test_a_long_answer_streams_and_may_be_cut_off(run: Runner) -> None:
    with open_storage(run.path) as store:
        store.load((f"n{number:05}", {"n": number, "text": "x" * 200}) for number in range(3000))
    assert len(run.child("query", "-w", "n>=0").lines) == 3000
    command = f"{sys.executable} -m mycelia_storage.cli query | head -1"
    done = subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        check=False,
        env={**os.environ, "MYCELIA_STORAGE": str(run.path)},
    )
    assert done.stdout.splitlines()[-1] == b"141"
    assert done.stderr == b""


def test_count(run: Runner) -> None:
    done = run.child("count", "-w", "countrycode in JP, NG")
    assert (done.code, done.out, done.err) == (0, b"4\n", "")
    assert run("count").json == 5
    assert run("count", "-n", "empty").json == 0


# ---- on a terminal


def test_a_table_on_a_terminal(run: Runner) -> None:
    code, text = run.on_terminal("query", "--sort", "-population", "--limit", "2")
    assert code == 0
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0].split() == ["key", "name", "countrycode", "population", "mayor", "tags"]
    assert lines[1].split() == ["3", "Lagos", "NG", "15388000", "null"]
    assert lines[2].split() == ["1", "Tokyo", "JP", "9733276", '["capital",', '"port"]']
    assert lines[3].startswith("mycelia-storage: there is more: --cursor=")
    code, text = run.on_terminal("query", "--sort", "-population", "--limit", "2", width=30)
    assert "no room for population, mayor, tags" in text
    code, text = run.on_terminal("query", "--show", "name", "--show", "at.state", "-w", "at exists")
    assert [line.split() for line in text.splitlines()] == [["key", "name", "at.state"], ["4", "New", "York", "NY"]]
    code, text = run.on_terminal("query", "--entry", "--limit", "1")
    assert json.loads(text[: text.rindex("}") + 1])["value"] == CITIES["1"]
    assert run.on_terminal("query", "-w", "name=X") == (0, "")


def test_a_terminal_shows_a_hundred_rows_unless_told(run: Runner) -> None:
    with open_storage(run.path) as store:
        store.set_many({f"n{number:03}": number for number in range(150)})
    code, text = run.on_terminal("query")
    assert code == 0
    assert len(text.splitlines()) == 1 + 100 + 1
    assert "--cursor=" in text
    code, text = run.on_terminal("query", "--limit", "200")
    assert len(text.splitlines()) == 1 + 155


def test_what_is_stored_cannot_drive_the_terminal(run: Runner) -> None:
    evil = "\x1b[2Jred\x07\r\u202e"
    with open_storage(run.path) as store:
        store.set_many({evil: {evil: evil, "n": 1, "list": [evil]}, "plain": evil})
        store.create_index(path(evil), name="safe")
    for arguments in (
        ["query"],
        ["query", "--show", "n"],
        ["query", "--keys"],
        ["query", "--entry"],
        ["index", "list"],
    ):
        _, text = run.on_terminal(*arguments, width=300)
        assert not set(text) & {"\x1b", "\x07", "\u202e"}, arguments
        assert "\\u001b" in text
    _, text = run.on_terminal("query", "-w", f"{evil}..=1")
    assert "\x1b" not in text


def test_explain_and_index_on_a_terminal(run: Runner) -> None:
    code, text = run.on_terminal("explain", "-w", "name=Tokyo", width=300)
    assert code == 0
    assert "full_scan" in text
    assert "mycelia-storage index create name" in text
    assert run.on_terminal("index", "create", "name") == (0, "the index 'default: name' is there\r\n")
    assert "default: name" in run.on_terminal("index", "list")[1]
    assert run.on_terminal("index", "drop", "default: name") == (0, "dropped 'default: name'\r\n")
    assert run.on_terminal("count", "-w", "name=Tokyo")[1].strip() == "1"


# ---- explain and index


def test_explain_advises_a_command_that_helps(run: Runner) -> None:
    with open_storage(run.path) as store:
        store.load((f"n{number}", {"a b": number, "n": number % 7}) for number in range(2000))
    query = ["-w", '"a b"=5', "--sort=-n", "--limit", "3"]
    before = run("explain", *query)
    assert before.code == 0
    plan = before.json
    assert (plan["uses_index"], plan["full_scan"], plan["indexes"]) == (False, True, [])
    words = plan["command"].split()
    assert words[:3] == ["mycelia-storage", "index", "create"]
    subprocess.run(
        ["sh", "-c", plan["command"].replace("mycelia-storage", f"{sys.executable} -m mycelia_storage.cli", 1)],
        check=True,
        capture_output=True,
        env={**os.environ, "MYCELIA_STORAGE": str(run.path)},
    )
    after = run("explain", *query).json
    assert (after["uses_index"], after["full_scan"], after["command"]) == (True, False, None)
    assert run("query", *query).keys == ["n5"]


def test_advice_becomes_a_command() -> None:
    assert command_of("create_index('a')") == "mycelia-storage index create a"
    advice = "create_index('\"a b\"', '-n', namespace=\"it's\")"
    assert command_of(advice) == """mycelia-storage index create --namespace 'it'"'"'s' -- '"a b"' -n"""


def test_index_create_list_drop(run: Runner) -> None:
    assert run("index", "create", "countrycode", "--", "-population").json == {
        "name": "default: countrycode, -population"
    }
    assert run("index", "create", "countrycode", "--", "-population").code == 0
    assert run("index", "create", "name", "--unique", "--name", "names").json == {"name": "names"}
    assert run("index", "create", "$updated_at", "--all").code == 0
    assert run("index", "create", "name", "-n", "other").code == 0
    rows = run("index", "list").lines
    assert [(row["name"], row["namespace"], row["fields"], row["unique"]) for row in rows] == [
        ("*: $updated_at", None, ["$updated_at"], False),
        ("default: countrycode, -population", "default", ["countrycode", "-population"], False),
        ("names", "default", ["name"], True),
        ("other: name", "other", ["name"], False),
    ]
    assert [row["name"] for row in run("index", "list", "-n", "other").lines] == ["other: name"]
    assert run("index", "drop", "names", "other: name").json == {"dropped": 2}
    assert len(run("index", "list").lines) == 2


def test_exit_codes_of_indexes(run: Runner) -> None:
    run("index", "create", "name", "--unique", "--name", "names")
    missing = run("index", "drop", "names", "nothing")
    assert missing.code == 1
    assert "'nothing'" in missing.err
    assert len(run("index", "list").lines) == 1  # none, rather than half of them
    assert "another name" in run.refused("index", "create", "population", "--name", "names")
    double = run("index", "create", "countrycode", "--unique")
    assert double.code == 1
    assert "'1'" in double.err
    refused = run("set", "6", '{"name": "Tokyo"}', "--json")
    assert refused.code == 1
    assert "names" in refused.err
    assert "cannot go together" in run.refused("index", "create", "a", "--all", "-n", "x")
    run.refused("index", "create")
    run.refused("index", "create", "a..b")
    run.refused("index", "create", "$key")
    run.refused("index")
    assert run("index", "list", store="none.db").code == 3
    assert run("query", store="none.db").code == 3
    assert not (run.folder / "none.db").exists()


def test_help_of_every_verb(run: Runner) -> None:
    for words in (
        ["query"],
        ["count"],
        ["explain"],
        ["index"],
        ["index", "create"],
        ["index", "list"],
        ["index", "drop"],
    ):
        done = run(*words, "--help")
        assert done.code == 0
        assert done.out
    text = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text()
    group: Any = get_command(app)
    for verb, command in group.commands["index"].commands.items():
        assert f"`index {verb}" in text
        for option in (name for parameter in command.params for name in parameter.opts if name.startswith("--")):
            assert option in text, f"{verb} {option}"


# ---- what is wrong with a query


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--filter", "{"], "--filter is not JSON"),
        (["--filter", "null"], "null is no filter"),
        (["--filter", "{}"], "--filter: an empty mapping"),
        (["--filter", "3"], "--filter: int is no filter"),
        (["--filter", '[{"field": "a", "operator": "like", "value": 1}]'], "--filter[0].operator: 'like'"),
        (["--filter", "\udcff"], "--filter is not UTF-8"),
        (["--sort", "a..b"], "--sort[0]"),
        (["--sort", "a", "--sort", "-a"], "named twice"),
        (["--limit", "-1"], "--limit"),
        (["--where", "a=1", "--where", "b"], "--where 2: character 2"),
        (["--show", "a..b"], "--show"),
        (["--where", "a=\udcff"], "surrogate"),
    ],
)
def test_a_wrong_query_is_told_in_one_line(run: Runner, arguments: list[str], message: str) -> None:
    assert message in run.refused("query", *arguments)


def test_a_warning_of_the_library_stays_out_of_pipes(run: Runner) -> None:
    with open_storage(run.path) as store:
        store.load((f"n{number}", {"n": number}) for number in range(12_000))
    assert run.child("query", "-w", "n=5", "--sort", "n").err == ""
    assert "create_index" in run.on_terminal("query", "-w", "n=5", "--sort", "n")[1]


def test_hostile_conditions_reach_no_further_than_the_parser(run: Runner) -> None:
    """The same fuzz through the command: each ends in 0 or in one line and 2."""
    chance = random.Random(7)
    pieces = [
        "a",
        "'",
        '"',
        ";",
        "--",
        "$.a",
        "[0]",
        "=",
        ">",
        "in",
        " ",
        "not",
        "exists",
        "x'); DROP TABLE t;",
        "\\",
        "%",
        "_",
        "é",
    ]
    for _ in range(150):
        text = "".join(chance.choices(pieces, k=chance.randint(1, 7)))
        done = run("count", f"--where={text}")
        assert done.code in (0, 2), text
        assert done.err.count("\n") == (done.code == 2), text
    assert run("count").json == 5


# ---- indexes go through an export


def definitions(store: Storage) -> set[tuple[Any, ...]]:
    return {(one.name, one.namespace, one.fields, one.unique) for one in store.list_indexes()}


@pytest.fixture
def indexed(run: Runner) -> Runner:
    with open_storage(run.path) as store:
        store.create_index("countrycode", field("population").desc())
        store.create_index("name", unique=True, name="names")
        store.create_index('"a b".c[0]', "$metadata.x", "$updated_at", namespace="empty")
        store.create_index("$created_at", namespace=None)
    return run


def test_indexes_survive_an_export_of_everything(indexed: Runner) -> None:
    file = str(indexed.folder / "all.jsonl")
    assert indexed("export", "--all", "-o", file).code == 0
    for _ in range(2):  # again changes nothing
        back = indexed("import", file, store="other.db")
        assert (back.code, back.err) == (0, "")
        assert back.json["indexes"] == 4
        with open_storage(indexed.path) as one, open_storage(indexed.folder / "other.db") as other:
            assert definitions(one) == definitions(other)
            assert other.explain(field("name") == "Tokyo").indexes == ("names",)


def test_an_export_of_one_namespace_has_its_own_indexes(indexed: Runner) -> None:
    done = indexed("export")
    lines = [line for line in done.lines if "index" in line]
    assert lines == [
        {"index": ["countrycode", "-population"]},
        {"index": ["name"], "unique": True, "name": "names"},
    ]
    file = indexed.folder / "one.jsonl"
    file.write_bytes(done.out)
    moved = indexed("import", str(file), "-n", "copy")
    assert (moved.code, moved.json["indexes"]) == (0, 2)
    with open_storage(indexed.path) as store:
        assert {one.name for one in store.list_indexes(namespace="copy")} == {
            "copy: countrycode, -population",
            "copy: name (unique)",
        }


def test_an_old_export_has_no_indexes_and_stays_readable(run: Runner) -> None:
    file = run.folder / "old.jsonl"
    file.write_text(
        '{"mycelia_storage_export":1,"exported_at":"2026-01-01T00:00:00.000Z","namespace":"old"}\n'
        '{"namespace":"old","metadata":{}}\n{"key":"k","value":1}\n{"mycelia_storage_export_end":1,"entries":1}\n'
    )
    done = run("import", str(file))
    assert (done.code, done.err, done.json["loaded"], done.json["indexes"]) == (0, "", 1, 0)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize(
    "line",
    [
        '{"index": ["name"], "unique": true}',  # there are two of one name
        '{"index": ["other"], "name": "taken"}',
        '{"index": []}',
        '{"index": ["a..b"]}',
        '{"index": "a"}',
        '{"index": [1]}',
        '{"index": ["a"], "unique": 1}',
        '{"index": ["a"], "name": ""}',
        '{"index": ["a"], "where": 1}',
        '{"index": ["a"], "namespace": 3}',
    ],
)
def test_an_index_that_cannot_be_is_a_bad_line(run: Runner, on_error: str, line: str) -> None:
    run("set", "twin", '{"name": "Tokyo"}', "--json")
    run("index", "create", "x", "--name", "taken")
    file = run.folder / "bad.jsonl"
    header = '{"mycelia_storage_export":1,"exported_at":"","namespace":"default"}'
    end = '{"mycelia_storage_export_end":1,"entries":1}'
    file.write_text("\n".join([header, '{"key":"k","value":1}', line, end]))
    done = run("import", str(file), "--on-error", on_error)
    assert done.code == 1
    assert "line 3: " in done.err
    assert "Traceback" not in done.err
    assert done.json["indexes"] == 0
    assert len(run("index", "list").lines) == 1


def test_a_field_that_looks_like_the_namespace_is_not_taken_for_it(run: Runner) -> None:
    refused = run("index", "create", "population", "-name")
    assert refused.code == 2
    assert "-n ame" in refused.err
    assert run("index", "create", "--", "population", "-name").code == 0
    assert run("index", "list").lines[0]["fields"] == ["population", "-name"]
