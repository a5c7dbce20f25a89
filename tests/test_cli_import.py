"""`import` and `export`: every format, bad lines, keys, the way there and back, memory, and the progress bar."""

from __future__ import annotations

import json
import os
import pty
import random
import shlex
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mycelia_storage import json_texts, open_storage
from mycelia_storage.cli import main, readers

PROGRAM = [sys.executable, "-m", "mycelia_storage.cli"]
CODE_WITH_PEAK = (
    "import resource, sys; from mycelia_storage.cli import main; code = main();"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
)


class Result(NamedTuple):
    code: int
    out: bytes
    errors: list[str]

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Runner:
    """Runs the command in this process, which is what makes so many cases affordable."""

    def __init__(self, folder: Path, captured: pytest.CaptureFixture[bytes]) -> None:
        self.folder = folder
        self.path = folder / "store.db"
        self._captured = captured

    def __call__(self, *arguments: str, store: str = "store.db") -> Result:
        self._captured.readouterr()
        code = main(["--store", str(self.folder / store), *arguments])
        out, err = self._captured.readouterr()
        return Result(code, out, [line.removeprefix("mycelia-storage: ") for line in err.decode().splitlines()])

    def load(self, content: str | bytes, *arguments: str, name: str = "data") -> Result:
        """Import a file of this content."""
        file = self.folder / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return self("import", str(file), *arguments)

    def stored(self, namespace: str = "default") -> dict[str, Any]:
        with open_storage(self.path) as store:
            return {entry.key: entry.value for entry in store.scan(namespace=namespace)}


@pytest.fixture
def run(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Runner:
    return Runner(tmp_path, capfdbinary)


def exactly(value: object) -> str:
    """A form in which 1 and 1.0, 0.0 and -0.0, and the order of members differ."""
    return repr(value)


# ---- formats

DOCUMENTS: list[Any] = [
    {"id": "a", "n": 2**63 - 1, "m": -(2**63), "text": 'line\nend \u2028 é 😀 \\ "'},
    {"z": 1, "id": "b", "a": [-0.0, 1e308, 5e-324, 0.1, 1.0, 1e16, 123456789012345678]},
    {"id": "c", "deep": [[[{"x": [None, True, False, "", {}, []]}]]]},
]


def test_json_lines(run: Runner) -> None:
    text = "\n".join(json.dumps(document) for document in DOCUMENTS[:2]) + "\r\n\n  \n" + json.dumps(DOCUMENTS[2])
    done = run.load(text, "--key", "id", name="d.jsonl")
    assert (done.code, done.errors) == (0, [])
    assert done.json | {"seconds": 0} == {
        "format": "jsonl",
        "namespaces": ["default"],
        "loaded": 3,
        "replaced": 0,
        "failed": 0,
        "expired": 0,
        "bytes": len(text.encode()),
        "seconds": 0,
    }
    assert exactly(run.stored()) == exactly({document["id"]: document for document in DOCUMENTS})


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_array_and_object(run: Runner, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(DOCUMENTS, indent=indent, ensure_ascii=ascii_only)
    assert run.load(text, "-n", "array", "--key", "id").json["format"] == "array"
    members = {f"key {number} é\n": document for number, document in enumerate(DOCUMENTS)}
    text = json.dumps(members, indent=indent, ensure_ascii=ascii_only)
    assert run.load(text, "-n", "object", name="d.json").json["format"] == "object"
    assert exactly(run.stored("array")) == exactly({document["id"]: document for document in DOCUMENTS})
    assert exactly(run.stored("object")) == exactly(members)
    assert run.load(text, "-n", "named", "--key", "id", name="d.json").code == 0
    assert list(run.stored("named")) == ["a", "b", "c"]


def test_csv(run: Runner) -> None:
    text = 'id,name,n\r\n1,"Doe, ""J""\nunior",1.50\r\n\r\n2,Zürich,\r\n'
    assert run.load(text, "--key", "id", name="d.csv").code == 0
    assert run.stored() == {
        "1": {"id": "1", "name": 'Doe, "J"\nunior', "n": "1.50"},
        "2": {"id": "2", "name": "Zürich", "n": ""},
    }
    assert (
        run.load(text.replace("\r", ""), "--key", "id", "-n", "typed", "--csv-types", "infer", name="d.csv").code == 0
    )
    assert exactly(run.stored("typed")["1"]) == exactly({"id": 1, "name": 'Doe, "J"\nunior', "n": 1.5})
    assert run.stored("typed")["2"]["n"] is None
    assert run.load("id\tn\nx\t1\n", "--key", "id", "-n", "tabs", name="d.tsv").code == 0
    assert run.load("id;n\nx;1\n", "--key", "id", "-n", "semi", "--delimiter", ";", name="d.csv").code == 0
    assert run.stored("tabs") == run.stored("semi") == {"x": {"id": "x", "n": "1"}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-9223372036854775808", -(2**63)),
        ("9223372036854775808", "9223372036854775808"),
        ("-0.0", -0.0),
        ("1e3", 1000.0),
        ("1e999", "1e999"),
        ("", None),
        ("true", True),
        ("false", False),
        *(
            (text, text)
            for text in ("007", "+1", "-0", "0x1", "NaN", "inf", ".5", "1.", "1_0", " 1", "٣", "null", "True")
        ),
    ],
)
def test_types_that_csv_columns_look_like(text: str, value: object) -> None:
    assert exactly(readers.infer_type(text)) == exactly(value)


def test_a_byte_order_mark_is_passed_over(run: Runner) -> None:
    mark = b"\xef\xbb\xbf"
    assert run.load(mark + b'{"id": "a"}\n', "--key", "id", name="d.jsonl").code == 0
    assert run.load(mark + b'["b"]', "--number-from", "1").code == 0
    assert run.load(mark + b'{"c":\n1}').code == 0
    assert run.load(mark + b"id\nd\n", "--key", "id", name="d.csv").code == 0
    assert list(run.stored()) == ["000000000001", "a", "c", "d"]
    assert run.load('{"id": "a"}'.encode("utf-16"), "--key", "id").code == 1


def test_standard_input(tmp_path: Path) -> None:
    """A pipe that is filled slowly, and a file as standard input."""
    path = tmp_path / "store.db"
    command = [*PROGRAM, "--store", str(path), "import", "-", "--key", "id"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        for part in (b'{"i', b'd": "a"}\n', b'{"id":', b' "b"}\n'):
            process.stdin.write(part)
            process.stdin.flush()
            time.sleep(0.01)
        out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert json.loads(out)["loaded"] == 2
    (tmp_path / "d").write_text('[{"id": "c"}]')
    with open(tmp_path / "d", "rb") as file:
        assert subprocess.run(command, stdin=file, stdout=subprocess.DEVNULL, check=False).returncode == 0
    with open_storage(path) as store:
        assert store.list_keys() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "text", "format"),
    [
        ("d.jsonl", '{"a":\n1}', "jsonl"),  # the ending decides, right or wrong
        ("d.ndjson", "1\n", "jsonl"),
        ("d.json", '{"a": 1}', "object"),
        ("d.json", '{"a": 1}\n{"a": 2}\n', "jsonl"),
        ("d.json", " \n[1]", "array"),
        ("d", '\n{"a": 1}\n\n{"a": 2}\n', "jsonl"),
        ("d", '{\n"a": 1}', "object"),
        ("d", '{"a": {"b":\n1}}', "object"),
        ("d", "[1]\n[2]", "array"),
        ("d", "", "jsonl"),
        ("d", '{"a": 1}', None),
        ("d", '"text"', None),
        ("d", "id,name", None),
        ("d", '{"a": "' + "x" * 1_100_000 + '"}', None),
    ],
)
def test_the_format_is_found_or_asked_for(run: Runner, name: str, text: str, format: str | None) -> None:
    done = run.load(text, name=name)
    if format is None:
        assert done.code == 2
        assert "--format" in done.errors[0]
        assert not run.path.exists()
    else:
        assert done.json["format"] == format


# ---- keys


def test_running_numbers(run: Runner) -> None:
    done = run.load("1\nbad\n3\n", "--on-error", "skip", name="d.jsonl")
    assert done.code == 1
    assert run.stored() == {"000000000001": 1, "000000000003": 3}
    refused = run.load("1\n", name="d.jsonl")
    assert refused.code == 2
    assert "--number-from" in refused.errors[0]
    assert run.load("4\n", "--number-from", "10", name="d.jsonl").code == 0
    assert run.stored() == {"000000000001": 1, "000000000003": 3, "000000000010": 4}


def test_keys_from_a_field(run: Runner) -> None:
    lines = ['{"id": "a"}', '{"id": 7}', '{"id": null}', '{"id": 1.5}', '{"id": true}', "{}", "[1]", '{"id": ""}']
    done = run.load("\n".join(lines), "--key", "id", "--on-error", "skip", name="d.jsonl")
    assert done.code == 1
    assert list(run.stored()) == ["7", "a"]
    assert [error.partition(":")[0] for error in done.errors[:-1]] == [f"line {number}" for number in range(3, 9)]
    assert "null" in done.errors[0]
    assert "float" in done.errors[1]
    assert "missing" in done.errors[3]
    assert done.errors[-1] == "6 bad lines were left out"


def test_what_took_the_place_of_another_is_counted(run: Runner) -> None:
    text = '{"id": "a", "n": 1}\n{"id": "b"}\n{"id": "a", "n": 2}\n'
    assert run.load(text, "--key", "id", name="d.jsonl").json["replaced"] == 1
    assert run.stored()["a"] == {"id": "a", "n": 2}
    assert run.load(text, "--key", "id", name="d.jsonl").json["replaced"] == 3


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("d.csv", "id\n1\n", ["--key", "missing"]),
        ("d.csv", "id\n1\n", ["--delimiter", ";;"]),
        ("d.jsonl", "1\n", ["--delimiter", ";"]),
        ("d.jsonl", "1\n", ["--csv-types", "infer"]),
        ("d.jsonl", "1\n", ["--key", "id", "--number-from", "1"]),
        ("d.json", "{}", ["--number-from", "1"]),
        ("d.jsonl", "1\n", ["--batch-size", "0"]),
        ("d.jsonl", "1\n", ["--namespace", "bad*name"]),
    ],
)
def test_options_that_have_no_use_are_2(run: Runner, name: str, text: str, arguments: list[str]) -> None:
    done = run.load(text, *arguments, name=name)
    assert (done.code, len(done.errors), done.out) == (2, 1, b"")


# ---- bad lines


def bad_lines(total: int, bad: dict[int, str]) -> str:
    return "".join(bad.get(number, f'{{"n": {number}}}') + "\n" for number in range(1, total + 1))


def test_stop_keeps_nothing_of_the_batch(run: Runner) -> None:
    text = bad_lines(100, {58: '{"secret": oops}'})
    done = run.load(text, "--batch-size", "10", name="d.jsonl")
    assert (done.code, len(done.errors)) == (1, 1)
    assert done.errors[0].startswith("line 58: not JSON: ")
    assert "50 entries" in done.errors[0]
    assert "secret" not in done.errors[0]
    assert "oops" not in done.errors[0]
    assert len(run.stored()) == 50
    assert (done.json["loaded"], done.json["failed"]) == (50, 1)


def test_stop_at_what_the_store_refuses(run: Runner) -> None:
    text = bad_lines(100, {58: '{"a": {"b": [0, NaN]}, "secret": 1}'})
    done = run.load(text, "--batch-size", "10", name="d.jsonl")
    assert (done.code, len(done.errors)) == (1, 1)
    assert done.errors[0].startswith("line 58: $.a.b[1]: ")
    assert len(run.stored()) == 50


def test_skip_goes_on_and_reports_in_order(run: Runner) -> None:
    bad = {
        3: "oops",
        4: "",  # a blank line is no document, and none is missing
        12: "[NaN]",
        13: '"\\ud800"',
        14: "18446744073709551616",
        35: '{"a": 1} 2',
        58: '{"a": "\\u0000"}',
        60: "[" * 300 + "]" * 300,
        61: "[" * 100_000,
        62: "1" + "0" * 5000,
        100: '{"a": 1e999}',
    }
    done = run.load(bad_lines(100, bad), "--batch-size", "10", "--on-error", "skip", name="d.jsonl")
    assert done.code == 1
    reported = [error.partition(":")[0] for error in done.errors[:-1]]
    assert reported == [f"line {number}" for number in sorted(bad) if number != 4]
    assert done.errors[-1] == "10 bad lines were left out"
    assert (done.json["loaded"], done.json["failed"]) == (89, 10)
    assert [value["n"] for value in run.stored().values()] == [n for n in range(1, 101) if n not in bad]


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_what_a_unique_index_refuses_is_told_with_its_own_line(run: Runner, on_error: str) -> None:
    with open_storage(run.path) as store:
        store.set("taken", {"n": 58})
        store.create_index("n", unique=True)
    done = run.load(
        bad_lines(100, {}), "--number-from", "1", "--batch-size", "40", "--on-error", on_error, name="d.jsonl"
    )
    assert (done.code, done.json["loaded"]) == (1, 40 if on_error == "stop" else 99)
    assert done.errors[0].startswith("line 58: unique index ")


def test_one_is_counted_in_the_singular(run: Runner) -> None:
    done = run.load("1\nbad\n", "--batch-size", "1", name="d.jsonl")
    assert done.errors[0].endswith("(stopped: 1 entry of earlier batches is stored, none of its own batch)")
    done = run.load("1\nbad\n", "--on-error", "skip", "-n", "b", name="d.jsonl")
    assert done.errors[-1] == "1 bad line was left out"
    assert run("delete", "--prefix", "0").errors == ["1 key begins with '0': add --yes to delete it"]


def test_a_full_disk_leaves_whole_batches_and_tells_how_many_entries(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps({"n": number, "text": "x" * 200}) + "\n" for number in range(10_000)))
    command = shlex.join([*PROGRAM, "--store", str(tmp_path / "store.db"), "import", str(file)])
    # A limit to the size of files, in blocks of half a kilobyte or of one.
    done = subprocess.run(["sh", "-c", f"ulimit -f 1500 && exec {command}"], capture_output=True, check=False)
    assert done.returncode == 3
    with open_storage(tmp_path / "store.db") as store:
        stored = store.count()
    assert 0 < stored < 10_000
    assert stored % 1000 == 0
    assert done.stderr.decode().endswith(f" ({stored:,} entries are stored)\n")


def test_input_that_fails_in_its_middle_tells_how_many_entries_are_stored(tmp_path: Path) -> None:
    """A terminal that hangs up is input that ends with an error."""
    leader, follower = pty.openpty()
    os.write(follower, b"1\n2\n3\n")
    os.close(follower)
    command = [*PROGRAM, "--store", str(tmp_path / "store.db"), "import", "-", "--format", "jsonl", "--batch-size", "2"]
    done = subprocess.run(command, stdin=leader, capture_output=True, check=False)
    os.close(leader)
    assert done.returncode == 3
    assert done.stderr.decode().startswith("mycelia-storage: cannot read standard input: ")
    assert done.stderr.decode().endswith(" (2 entries are stored)\n")


def test_more_bad_lines_than_good_ones(run: Runner) -> None:
    bad = {number: "[NaN]" if number % 2 else "oops" for number in range(1, 3001) if number % 100}
    done = run.load(bad_lines(3000, bad), "--on-error", "skip", name="d.jsonl")
    assert done.code == 1
    assert (done.json["loaded"], done.json["failed"]) == (30, 2970)
    assert sorted(int(error.partition(":")[0][5:]) for error in done.errors[:-1]) == sorted(bad)


def test_bad_bytes_spoil_their_own_document(run: Runner) -> None:
    done = run.load(b'1\n"caf\xe9"\n3\n', "--on-error", "skip", name="d.jsonl")
    assert done.errors[0] == "line 2: not UTF-8: byte 5 of the line"
    done = run.load(b'["\xc3\xa9", "caf\xe9", "\xc3\xa9"]', "--on-error", "skip", "-n", "array")
    assert done.errors[0] == "item 2: not UTF-8"
    done = run.load(b'{"k\xe9y":\n1, "b": 2}', "--on-error", "skip", "-n", "object")
    assert done.errors[0] == "item 1: not UTF-8"
    done = run.load(b'a,b\n1,"x\xe9\ny"\n3,4\n', "--on-error", "skip", "-n", "csv", name="d.csv")
    assert done.errors[0].startswith("line 2: not UTF-8")
    assert list(run.stored().values()) == [1, 3]
    assert list(run.stored("array").values()) == ["é", "é"]
    assert run.stored("object") == {"b": 2}
    assert list(run.stored("csv").values()) == [{"a": "3", "b": "4"}]


def test_bad_rows_of_csv(run: Runner) -> None:
    text = 'a,b\n1,2\n3\n4,5,6\n"x"y,7\n8,9\n"open,1\n'
    done = run.load(text, "--on-error", "skip", name="d.csv")
    assert done.code == 1
    assert [error.partition(":")[0] for error in done.errors[:-1]] == ["line 3", "line 4", "line 5", "line 7"]
    assert list(run.stored().values()) == [{"a": "1", "b": "2"}, {"a": "8", "b": "9"}]
    stopped = run.load(text, "-n", "other", name="d.csv")
    assert stopped.code == 1
    assert stopped.errors[0].startswith("line 3: 1 column, where the header row has 2")
    assert run.stored("other") == {}


def test_a_header_row_that_is_a_document_is_not_shown(run: Runner) -> None:
    done = run.load("secret,b,secret\n", name="d.csv")
    assert done.errors[0].startswith("line 1: the header row gives columns 1 and 3 the same name")
    assert "secret" not in done.errors[0]


@pytest.mark.parametrize("header", ["", "\n", "a,a\n1,2\n", b"a,\xe9\n1,2\n", '"a\n'])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_csv_without_a_good_header(run: Runner, header: str | bytes, on_error: str) -> None:
    done = run.load(header, "--on-error", on_error, name="d.csv")
    assert done.code == 1
    assert done.errors[0].startswith("line 1: ")
    assert run.stored() == {}


@pytest.mark.parametrize(
    ("format", "text", "place"),
    [
        ("array", '[1, 2, {"secret" 3}, 4]', "item 3"),
        ("array", "[1, 2, 3", "item 3"),
        ("array", '[1, 2, "secret', "item 3"),
        ("array", "[1, 2, ]", "item 3"),
        ("array", "[1, 2, " + "[" * 100_000, "item 3"),
        ("array", "[1, 2] 3", "item 3"),
        ("array", "secret", "the beginning"),
        ("array", "", "the beginning"),
        ("object", '{"a": 1, "b": 2, secret: 3}', "item 3"),
        ("object", '{"a": 1, "b": 2, "c" 3}', "item 3"),
        ("object", '{"a": 1, "b": 2, "c": 3', "item 3"),
        ("object", "[]", "the beginning"),
    ],
)
def test_a_fault_in_the_syntax_ends_it_either_way(run: Runner, format: str, text: str, place: str) -> None:
    skipped = run.load(text, "--format", format, "--on-error", "skip")
    assert skipped.code == 1
    assert skipped.errors[0].startswith(f"{place}: ")
    assert skipped.errors[1] == f"nothing behind {place} could be read"
    assert "secret" not in "".join(skipped.errors)
    assert len(run.stored()) == (0 if place == "the beginning" else 2)
    stopped = run.load(text, "--format", format, "-n", "other")
    assert (stopped.code, len(stopped.errors)) == (1, 1)
    assert stopped.errors[0].startswith(f"{place}: ")
    assert run.stored("other") == {}


@pytest.mark.parametrize(
    ("format", "text", "message"),
    [
        ("jsonl", '{"id": 2', "line 1: not JSON: cut off behind column 8"),
        ("jsonl", '{"id": 2\n{"id": 3}\n', "line 1: not JSON: cut off behind column 8"),
        ("jsonl", '{"id": 2, \r\n', "line 1: not JSON: cut off behind column 9"),
        (
            "jsonl",
            '1\n{"id": "ab\n',
            "line 2: not JSON: cut off behind column 10, in the string that begins at column 8",
        ),
        ("jsonl", '["a\tb"]', "line 1: not JSON: Invalid control character at column 4"),
        ("jsonl", "secret", "line 1: not JSON: Expecting value at column 1"),
        ("array", '[{"a": 1},{"a": 2}', "item 2: ',' or ']' is missing: cut off behind character 18"),
        ("array", '[{"a": 1},{"a": 2}\n', "item 2: ',' or ']' is missing: cut off behind character 19"),
        ("array", '[{"a": 1} {"a": 2}]', "item 1: ',' or ']' is missing at character 11"),
        ("array", "[1,", "item 2: not JSON: cut off behind character 3"),
        ("array", '[{"a": 1},{"a": 2', "item 2: not JSON: cut off behind character 17"),
        (
            "array",
            '[1,"ab',
            "item 2: not JSON: a string that begins at character 4 does not end: cut off behind character 6",
        ),
        ("array", '["a\tb"]', "item 1: not JSON: Invalid control character at character 4"),
        ("object", '{"a": 1', "item 1: ',' or '}' is missing: cut off behind character 7"),
        ("object", '{"a"', "item 1: ':' is missing: cut off behind character 4"),
    ],
)
def test_a_fault_is_told_with_its_place(run: Runner, format: str, text: str, message: str) -> None:
    done = run.load(text, "--format", format)
    assert done.errors[0].startswith(f"{message} (stopped: ")


def test_what_an_array_holds_that_the_store_refuses(run: Runner) -> None:
    text = '[1, NaN, 3, -Infinity, {"\\ud800": 1}, 18446744073709551616, 7, "\\u0000"]'
    done = run.load(text, "--on-error", "skip")
    assert [error.partition(":")[0] for error in done.errors[:-1]] == [f"item {number}" for number in (2, 4, 5, 6, 8)]
    assert list(run.stored().values()) == [1, 3, 7]


def test_windows_of_any_size_read_what_json_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Numbers, escapes and words cut at every place; and faults are found wherever the window ends."""
    chance = random.Random(2)
    file = tmp_path / "d"
    text = json.dumps(dict(enumerate([*DOCUMENTS, 1.5e-7, -1, "\\u00e9\ud83d\ude00", True])), ensure_ascii=True)
    for size in range(1, 60):
        monkeypatch.setattr(json_texts, "_WINDOW_BYTES", size)
        position = chance.randrange(len(text))
        for spoiled in (text, text[:position] + chance.choice('{}[]",:\\0-e.n ') + text[position + 1 :]):
            file.write_text(spoiled)
            assert read_object(file) == by_json(spoiled)


def read_object(file: Path) -> str | None:
    with open(file, "rb") as stream:
        try:
            return exactly([tuple(record)[1:3] for record in readers.read_json_object(stream)])
        except json_texts.UnreadableError:
            return None


def by_json(text: str) -> str | None:
    """What the standard library reads from the same text, members in their order; None where it refuses it."""
    members: list[list[tuple[str, Any]]] = []

    def remember(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members.append(pairs)
        return dict(pairs)

    try:
        json.loads(text, object_pairs_hook=remember)
    except ValueError:
        return None
    return exactly(members[-1])


# ---- export, and back


def hostile_store(path: Path) -> None:
    with open_storage(path) as store:
        store.create_namespace("empty", metadata={"note": "é\n"})
        store.create_namespace("a b", metadata={"owner": [1, 2.0]})
        for number, document in enumerate(DOCUMENTS):
            store.set(f"k{number}", document, metadata={"z": 2**63 - 1, "a": -0.0} if number else None)
        for key in ("\n", "\x1b[31m", '"', "é😀\u2028", "\ufeff", " ", "mycelia_storage_export", "-" * 1024):
            store.set(key, {"mycelia_storage_export": 1, "exported_at": "", "key": "x"}, namespace="a b")
        store.set("later", "v", ttl=3600.123, namespace="a b")
        store.set("much later", [1], ttl=10**9, metadata={"m": 1})
        store.set("soon", "v", ttl=0.5)


def everything(path: Path) -> dict[str, list[str]]:
    """All that must survive: keys, values, metadata, expiry, namespaces and their metadata."""
    with open_storage(path) as store:
        return {
            f"{name} {store.namespace_info(name).metadata}": [
                exactly((entry.key, entry.value, entry.metadata, entry.expires_at))
                for entry in store.scan(namespace=name)
                if entry.key != "soon"
            ]
            for name in store.list_namespaces()
        }


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_there_and_back(run: Runner, on_error: str) -> None:
    hostile_store(run.path)
    file = run.folder / "all.jsonl"
    done = run("export", "--all", "-o", str(file))
    assert (done.code, done.errors) == (0, [])
    assert done.json["namespaces"] == ["a b", "default", "empty"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    entries = done.json["entries"]
    assert entries == 8 + 2 + 3 + 1
    time.sleep(0.6)
    back = run("import", str(file), "--on-error", on_error, "--batch-size", "3", store="other.db")
    assert (back.code, back.errors) == (0, [])
    assert (back.json["loaded"], back.json["expired"]) == (entries - 1, 1)
    assert everything(run.folder / "other.db") == everything(run.path)
    again = run("import", str(file), store="other.db")
    assert again.json["replaced"] == entries - 1
    assert everything(run.folder / "other.db") == everything(run.path)


def test_one_namespace_and_into_another(run: Runner) -> None:
    hostile_store(run.path)
    file = run.folder / "one.jsonl"
    file.write_bytes(run("export", "-n", "a b").out)
    assert run("import", str(file), store="other.db").code == 0
    assert run("import", str(file), "-n", "renamed", store="other.db").code == 0
    original = everything(run.path)["a b {'owner': [1, 2.0]}"]
    assert everything(run.folder / "other.db") == {
        "a b {'owner': [1, 2.0]}": original,
        "default {}": [],
        "renamed {'owner': [1, 2.0]}": original,
    }
    assert run("export", "-n", "nobody").code == 1


def test_expiry_survives_a_slow_pipe_to_the_millisecond(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db") as store:
        store.set_many({f"k{number}": number for number in range(4)}, ttl=1000.077)
        expected = [entry.expires_at for entry in store.scan()]
    command = [*PROGRAM, "--store", str(tmp_path / "store.db"), "export"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines(keepends=True)
    command = [*PROGRAM, "--store", str(tmp_path / "other.db"), "import", "-", "--batch-size", "3"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        for line in lines:
            process.stdin.write(line)
            process.stdin.flush()
            time.sleep(0.1)
    with open_storage(tmp_path / "other.db") as store:
        assert [entry.expires_at for entry in store.scan()] == expected


def test_exports_one_after_the_other(run: Runner) -> None:
    with open_storage(run.path) as store:
        store.set("k", 1)
        store.set("k", 2, namespace="b")
    both = run("export").out + run("export", "-n", "b").out
    done = run.load(both, "-n", "c")
    assert (done.code, done.json["loaded"]) == (0, 2)
    assert run.stored("c") == {"k": 2}


def test_a_cut_off_export_is_noticed(run: Runner) -> None:
    with open_storage(run.path) as store:
        store.set_many({f"k{number}": number for number in range(10)})
    lines = run("export").out.splitlines(keepends=True)
    for missing in ([*lines[:-1]], [*lines[:5], *lines[6:]], [*lines[:4], *lines]):
        for on_error, kept in (("skip", True), ("stop", False)):
            (run.folder / "other.db").unlink(missing_ok=True)
            (run.folder / "cut").write_bytes(b"".join(missing))
            done = run("import", str(run.folder / "cut"), "--on-error", on_error, store="other.db")
            assert done.code == 1
            assert "export" in done.errors[0]
            assert (done.json["loaded"] > 0) == kept


def test_lines_that_are_none_of_an_export(run: Runner) -> None:
    lines = [
        '{"key": "good", "value": 1}',
        '{"key": "a"}',
        '{"key": 1, "value": 1}',
        '{"key": "a", "value": 1, "extra": "secret"}',
        '{"key": "a", "value": 1, "metadata": "secret"}',
        '{"key": "a", "value": 1, "expires_at": "secret"}',
        '{"key": "a", "value": 1, "expires_at": "2030-01-01T00:00:00"}',
        '{"key": "a", "value": 1, "namespace": 5}',
        '{"key": "", "value": 1}',
        '{"value": "secret"}',
        '["secret"]',
        "secret",
    ]
    done = run.load("\n".join(lines), "--format", "export", "--on-error", "skip")
    assert done.code == 1
    assert [error.partition(":")[0] for error in done.errors[:-1]] == [f"line {number}" for number in range(2, 13)]
    assert "secret" not in "".join(done.errors)
    assert run.stored() == {"good": 1}
    placed = [
        '{"mycelia_storage_export": 1, "exported_at": ""}',
        '{"namespace": "no*", "metadata": {}}',
        '{"namespace": "no*", "key": "a", "value": 1}',
        '{"namespace": "b", "metadata": {"a": NaN}}',
        '{"namespace": "b", "key": "a", "value": 1}',
        '{"mycelia_storage_export_end": 1, "entries": 2}',
    ]
    done = run.load("\n".join(placed), "--on-error", "skip")
    assert (done.code, done.json["loaded"]) == (1, 1)
    assert [error.partition(":")[0] for error in done.errors[:-1]] == ["line 2", "line 3", "line 4"]
    assert run.load("\n".join(placed)).errors[0].startswith("line 2: ")
    several = run.load('{"mycelia_storage_export": 1, "exported_at": ""}\n', "-n", "one")
    assert several.code == 2
    newer = run.load('{"mycelia_storage_export": 2, "exported_at": ""}\n')
    assert newer.code == 2
    assert run.load('{"mycelia_storage_export": 1, "exported_at": ""}\n', "--key", "id").code == 2


def test_the_export_that_the_docs_show_can_be_imported(run: Runner) -> None:
    docs = Path(__file__).parents[1] / "docs" / "command-line.md"
    shown = next(
        block for block in docs.read_text().split("```") if block.startswith('json\n{"mycelia_storage_export"')
    )
    text = shown.removeprefix("json\n").replace("2026-", "2999-")
    assert run.load(text).json["loaded"] == 1
    with open_storage(run.path) as store:
        assert store.get_entry("user:1").metadata == {"source": "mail"}


def test_plain_documents_that_look_like_entries_stay_plain(run: Runner) -> None:
    text = '{"key": "a", "value": 1}\n{"key": "b", "value": 2, "metadata": {}}\n'
    assert run.load(text, "--key", "key", name="d.jsonl").json["format"] == "jsonl"
    assert run.stored()["a"] == {"key": "a", "value": 1}
    header = '{"mycelia_storage_export": 1, "exported_at": "x"}\n'
    assert run.load(header + text, "--format", "jsonl", "-n", "plain").json["loaded"] == 3


def test_an_export_of_all_namespaces_is_one_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with open_storage(path) as store:
        # More than a pipe takes, so that the export waits in its first namespace.
        store.set_many({f"k{number:03}": "x" * 10_000 for number in range(100)}, namespace="a")
        store.set("before", 1, namespace="b")
        command = [*PROGRAM, "--store", str(path), "export", "--all"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b'{"mycelia_storage_export"')
            store.set("meanwhile", 2, namespace="b")
            store.delete("before", namespace="b")
            lines = [json.loads(line) for line in process.stdout]
        assert process.returncode == 0
    assert [line["key"] for line in lines if "key" in line and line["namespace"] == "b"] == ["before"]


def test_a_failed_export_leaves_what_was_there(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_storage(run.path) as store:
        store.set("k", 1)
    file = run.folder / "out.jsonl"
    file.write_text("before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        done = run("export", "-o", str(file))
    assert (done.code, len(done.errors)) == (3, 1)
    assert file.read_text() == "before"
    assert not list(run.folder.glob(".*"))
    link = run.folder / "link"
    link.symlink_to(file)
    assert run("export", "-o", str(link)).code == 0
    assert link.is_symlink()
    assert file.read_text().count("\n") == 4


# ---- size


def write_object(path: Path, documents: int) -> None:
    with open(path, "w") as file:
        file.write("{")
        for number in range(documents):
            document = {"number": number, "text": f"{number:x}" * 40, "list": list(range(number % 50))}
            file.write(f'{"," if number else ""}"{number:06}": {json.dumps(document)}')
        file.write("}")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks: list[int] = []
    for documents in (2_000, 120_000):
        file = tmp_path / "d.json"
        write_object(file, documents)
        store = tmp_path / f"{documents}.db"
        command = [sys.executable, "-c", CODE_WITH_PEAK, "--store", str(store), "import", str(file)]
        done = subprocess.run(command, capture_output=True, check=True)
        assert json.loads(done.stdout)["loaded"] == documents
        peaks.append(int(done.stderr))
    assert file.stat().st_size > 30_000_000
    assert peaks[1] - peaks[0] < 12_000  # kilobytes: the page cache of SQLite fills up, and no more


def test_the_bar_appears_on_a_terminal_and_not_in_a_pipe(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text(bad_lines(20_000, {500: "oops"}))
    command = [*PROGRAM, "--store", str(tmp_path / "store.db"), "import", str(file), "--on-error", "skip"]
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "160"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=environment)
    os.close(follower)
    seen = bytearray()
    while True:
        try:
            seen += os.read(leader, 65536)
        except OSError:  # how Linux says that nobody has the other end open
            break
    os.close(leader)
    out, _ = process.communicate()
    assert process.returncode == 1
    assert json.loads(out)["loaded"] == 19_999
    shown = seen.decode()
    for part in ("import", "━", "entries", "/s", "left", "100" if "100%" in shown else "19,999"):
        assert part in shown
    assert "mycelia-storage: line 500: not JSON" in shown
    quiet = subprocess.run([*command, "-n", "other"], capture_output=True, check=False)
    assert quiet.stderr.decode().splitlines()[1:] == ["mycelia-storage: 1 bad line was left out"]
    assert b"\x1b" not in quiet.stdout + quiet.stderr
