"""Hazard: a file to import that is damaged, or made to do harm, crashes the import, or puts in what is not in the file.

Files of every format are changed at random, byte by byte and field by field, and imported. What is no document is told
with its place, in the command line's own error, without its content; what is stored is whole.

    pytest --hypothesis-profile=long -n 0 tests/test_hostile_imports.py
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mycelia_storage import open_storage
from mycelia_storage.cli.failures import CommandError
from mycelia_storage.cli.importing import ImportOptions, Outcome, run_import

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

FUZZ = settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    max_examples=max(150, settings().max_examples),
)
SECRET = "sEcReT"
DOCUMENTS = [{"id": f"k{n}", "n": n, "t": "x" * n, "deep": {"list": [n, None, 1.5, True]}} for n in range(6)]

EXPORT: list[dict[str, Any]] = [
    {"mycelia_storage_export": 1, "exported_at": "2025-01-01T00:00:00.000Z"},
    {"namespace": "default", "metadata": {"m": 1}},
    {"namespace": "default", "key": "a", "value": {"n": 1}, "metadata": {"s": 1}},
    {"namespace": "default", "key": "b", "value": [1, 2], "expires_at": "2099-01-01T00:00:00.000Z"},
    {"namespace": "default", "key": "gone", "value": 1, "expires_at": "1999-01-01T00:00:00.000Z"},
    {"namespace": "other", "metadata": {}},
    {"namespace": "other", "key": "c", "value": "text"},
    {"index": ["n", "-deep.list[0]"], "namespace": "default", "unique": True, "name": "mine"},
    {"index": ["n"], "namespace": None},
    {"mycelia_storage_export_end": 1, "entries": 4},
]


def lines(documents: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


FILES: dict[str, bytes] = {
    "data.jsonl": lines(DOCUMENTS),
    "export.jsonl": lines(EXPORT),
    "array.json": json.dumps(DOCUMENTS, indent=1).encode(),
    "object.json": json.dumps({document["id"]: document for document in DOCUMENTS}).encode(),
    "data.csv": b"id,n,t\n" + b"".join(f'k{n},{n},"x, ""{n}"""\n'.encode() for n in range(6)),
    "data.tsv": b"id\tn\tt\n" + b"".join(f"k{n}\t{n}\tx\n".encode() for n in range(6)),
}
# What is put in, or in place of something.
PIECES = (
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b"\r", b"\r\n\r\n", b'"', b"'", b"\\", b"\\u0000",
    b"\\ud800", b'"\\ud800"', b"{", b"}", b"[", b"]", b",", b":", b"[" * 5000, b'{"a":' * 2000, b"null", b"NaN",
    b"Infinity", b"1e999", b"-0", b"9" * 400, b"9223372036854775808", b"0" * 50, b"1.", b"tru", b"x" * 70_000,
    b'"' + b"k" * 5000 + b'"', b'"key"', b'"value"', b'"namespace":', b'"expires_at": "9999-12-31T23:59:59Z",', b'""',
    b'{"mycelia_storage_export": 1}\n', b'{"mycelia_storage_export": 2}\n', b"\x1a", b"\t",
    b'{"mycelia_storage_export_end": 1, "entries": 0}\n',
)  # fmt: skip
ANY_JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([0, -1, 1, 2**63 - 1, 2**63, 10**30, 1.5, 1e308, 5e-324, float("inf"), float("nan")]),
        st.sampled_from(["", "k", "\0", "\ud800", "$key", "-", "a" * 5000, "2099-01-01", "9999-12-31T23:59:59+00:00"]),
        st.sampled_from(["0001-01-01T00:00:00+23:59", "2099-01-01T00:00:00.000Z", "default", "n"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "n", "", "key", "$k"]), inner, max_size=3)
    ),
    max_leaves=6,
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "on_error": st.sampled_from(["stop", "skip"]),
        "batch_size": st.sampled_from([1, 2, 1000]),
        "key_field": st.sampled_from(["id", "n", "missing", ""]),
        "format": st.sampled_from(["jsonl", "array", "object", "csv", "export"]),
        "namespace": st.sampled_from(["default", "elsewhere", "", "a\0"]),
        "number_from": st.sampled_from([0, 5, 10**30]),
        "infer_types": st.booleans(),
        "delimiter": st.sampled_from([",", "\t", "", "ab", '"', "\0"]),
    },
)
_number = itertools.count()


def import_it(folder: Path, name: str, content: bytes, options: dict[str, Any], output: Any) -> None:
    target = folder / f"{next(_number)}.db"
    file = folder / name
    file.write_bytes(content)
    output.readouterr()
    outcome: Outcome | None = None
    message = ""
    try:
        outcome = run_import(ImportOptions(str(target), str(file), **options))
    except CommandError as error:
        message = str(error)
    printed = "".join(output.readouterr()) + message + ((outcome and outcome.stopped) or "")
    assert SECRET not in printed
    assert len(printed) < 20_000
    assert "Traceback" not in printed
    if target.exists():
        with open_storage(target) as store:
            found = store.check()
            if outcome is not None and outcome.stopped is None:
                assert found.entries == outcome.loaded - outcome.replaced
    for end in ("", "-wal", "-shm"):
        target.with_name(target.name + end).unlink(missing_ok=True)


@FUZZ
@given(
    name=st.sampled_from(sorted(FILES)),
    changes=st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from([0, 0, 1, 5, 40, 100_000]), st.sampled_from(PIECES)),
        min_size=1,
        max_size=4,
    ),
    options=OPTIONS,
)
def test_any_bytes_are_imported_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, changes: Any, options: dict[str, Any]
) -> None:
    content = FILES[name]
    for where, removed, put_in in changes:
        at = int(where * len(content))
        content = content[:at] + put_in + content[at + removed :]
    import_it(tmp_path, name, content, options, capsys)


@FUZZ
@given(
    is_export=st.booleans(),
    changes=st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from(["field", "line", "twice", "gone"]), st.integers(0, 9), ANY_JSON),
        min_size=1,
        max_size=3,
    ),
    options=OPTIONS,
)
def test_any_field_of_a_line_is_imported_or_refused_without_showing_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_export: bool, changes: Any, options: dict[str, Any]
) -> None:
    found: list[Any] = [dict(line) for line in (EXPORT if is_export else DOCUMENTS)]
    for line in found:
        for name in ("value", "t"):
            if name in line:
                line[name] = {"secret": SECRET}
        if line.get("metadata"):
            line["metadata"] = {"secret": SECRET}
    for place, what, which, value in changes:
        line = found[place % len(found)]
        if what == "field" and isinstance(line, dict):
            line[sorted(line)[which % len(line)] if line and which < 8 else "unknown"] = value
        elif what == "line":
            found[place % len(found)] = value
        elif what == "twice":
            found.insert(which % len(found), line)
        elif len(found) > 1:
            del found[place % len(found)]
    # As others write it, too: Infinity, lone surrogates, numbers of any length.
    content = b"".join(json.dumps(line).encode() + b"\n" for line in found)
    import_it(tmp_path, "data.jsonl", content, options, capsys)
