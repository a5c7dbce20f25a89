"""Hazard: what a document holds stands in an error, a log or a traceback, where others read it.

A word that is in documents, metadata, operands and files, and nowhere else, goes through every way to fail that there
is. Names may be told: of keys, namespaces, members and files.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import shutil
import subprocess
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import apsw
import pytest

from mycelia_storage import (
    BatchError,
    LoadReport,
    Put,
    Storage,
    StorageFacet,
    StorageQuery,
    field,
    match,
    open_storage,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Put together here, so that no line of this file, which a traceback shows, has it.
WORD = "".join(("wh1sp", "er"))
NUMBER = int("77317" * 3)


class Text(str):
    __slots__ = ()


@dataclass
class Secret:
    word: str = WORD


def deep(depth: int) -> Any:
    value: Any = WORD
    for _ in range(depth):
        value = {"a": [value]}
    return value


BAD: dict[str, Any] = {
    "NaN beside it": [WORD, NUMBER, math.nan],
    "bytes": WORD.encode(),
    "bytes inside": {"a": WORD.encode()},
    "a set": {WORD},
    "an int beyond 64 bits": NUMBER * 10**30,
    "U+0000": {"a": f"{WORD}\0"},
    "a lone surrogate": [f"{WORD}\ud800"],
    "a subclass": Text(WORD),
    "an object": Secret(),
    "a function": lambda: WORD,
    "too deep": deep(150),
    "too large": WORD * 1000,
    "a bad name beside it": {"a": WORD, 1: WORD},
    "an exception": ValueError(WORD),
}
BAD_OPERANDS: list[Any] = [*BAD.values(), [WORD], {"a": WORD}, WORD, NUMBER, [WORD, math.nan], {1: WORD}]
OPERATORS = ("eq", "ne", "gt", "lte", "in", "nin", "contains", "startsWith", "endsWith", "exists", WORD)


def told_by(error: BaseException) -> str:
    """All that anybody might print of an error."""
    texts = ["".join(traceback.format_exception(error)), str(error), repr(error), repr(error.args)]
    if isinstance(error, BatchError):
        texts += [told_by(one) for one in error.errors.values()]
        texts.append(repr(error.report))
    return "\n".join(texts)


class Listener:
    """Collects what is told while calls fail."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self.failed = 0
        self.texts: list[str] = []

    def __call__(self, call: Callable[[], object]) -> None:
        try:
            found = call()
        except Exception as error:  # noqa: BLE001  of whatever is raised the text is looked at
            self.failed += 1
            self.texts.append(told_by(error))
        else:
            if isinstance(found, LoadReport):
                self.failed += found.failed
                self.texts.append(repr(found))

    def heard(self) -> list[str]:
        told = [*self.texts, self._caplog.text, *(repr(record.args) for record in self._caplog.records)]
        return [text for text in told if WORD in text or str(NUMBER) in text or WORD.encode().hex() in text]


@pytest.fixture
def listen(caplog: pytest.LogCaptureFixture) -> Iterator[Listener]:
    caplog.set_level(logging.DEBUG)
    listener = Listener(caplog)
    yield listener
    assert listener.heard() == []
    assert listener.failed > 0


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    target = "memory:" if request.param == "memory" else tmp_path / "store.db"
    options: Any = {} if request.param == "memory" else {"debug": True}
    with open_storage(target, max_value_bytes=5000, **options) as opened:
        opened.set("text", WORD)
        opened.set("object", {"n": NUMBER, "t": WORD, "list": [WORD]}, metadata={"m": WORD})
        yield opened


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_of_a_bad_value(store: Storage, listen: Listener, bad: Any) -> None:
    view = store.namespace("default", dict[str, int])
    for call in (
        lambda: store.set("key", bad),
        lambda: store.set("key", 1, metadata={"m": bad}),
        lambda: store.set("key", 1, metadata=bad),
        lambda: store.add("key", bad),
        lambda: store.modify("text", lambda _: bad),
        lambda: store.modify("missing", lambda value: value, default=bad),
        lambda: store.merge("object", {"a": bad}),
        lambda: store.merge("object", bad),
        lambda: store.set_metadata("object", {"m": bad}),
        lambda: store.set_many({"key": bad, "good": WORD}),
        lambda: store.set_many([Put("key", 1, metadata={"a": bad})]),
        lambda: store.set_many([Put("key", bad), Put("good", WORD)], metadata={"m": WORD}),
        lambda: store.set_many([("key", bad), bad]),
        lambda: store.add_many([("key", bad)]),
        lambda: store.load([("key", bad)]),
        lambda: store.load([("key", bad), ("good", WORD)], on_error="skip"),
        lambda: store.create_namespace("new", metadata={"m": bad}),
        lambda: store.increment("object", bad, field="n"),
        lambda: store.set("key", 1, ttl=bad),
        lambda: store.set("key", 1, if_version=bad),
        lambda: store.touch("object", ttl=bad),
        lambda: view.set("key", bad),
        lambda: view.set_many({"key": bad}),
    ):
        listen(call)


def test_of_documents_that_do_not_fit(store: Storage, listen: Listener) -> None:
    for kind in (int, list[int], dict[str, int], dict[str, bool], Secret, list[dict[str, int]]):
        view = store.namespace("default", kind)
        for key in ("text", "object"):
            listen(lambda: view.get(key))  # noqa: B023
            listen(lambda: view[key])  # noqa: B023
            listen(lambda: view.take(key))  # noqa: B023
            listen(lambda: view.modify(key, lambda value: value))  # noqa: B023
        listen(lambda: list(view.values()))  # noqa: B023
        listen(lambda: view.query(field("t") == WORD))  # noqa: B023
        listen(lambda: view.set("key", cast("Any", WORD)))  # noqa: B023
    for call in (
        lambda: store.increment("text"),
        lambda: store.increment("object", field="t"),
        lambda: store.increment("object", field="list[0]"),
        lambda: store.increment("object", field="t.deeper"),
        lambda: store.increment("object", 2**62 * 2 - 1, field="n"),
        lambda: store.set("text", WORD, overwrite=False),
        lambda: store.set("text", WORD, if_version=1),
    ):
        listen(call)


def test_of_unique_values(store: Storage, listen: Listener) -> None:
    store.set_many({"one": {"t": WORD, "n": NUMBER}, "two": {"t": WORD, "n": NUMBER}}, namespace="twice")
    listen(lambda: store.create_index("t", unique=True, namespace="twice"))
    store.create_index("t", "n", unique=True)
    for call in (
        lambda: store.set("other", {"t": WORD, "n": NUMBER}),
        lambda: store.set_many({"other": {"t": WORD, "n": NUMBER}}),
        lambda: store.load([("other", {"t": WORD, "n": NUMBER})]),
        lambda: store.load([("other", {"t": WORD, "n": NUMBER})], on_error="skip"),
        lambda: store.merge("missing", {"t": WORD, "n": NUMBER}),
        lambda: store.modify("text", lambda _: {"t": WORD, "n": NUMBER}),
    ):
        listen(call)


@pytest.mark.parametrize("operator", OPERATORS[:-1])
def test_of_an_operand(store: Storage, listen: Listener, operator: str) -> None:
    for operand in BAD_OPERANDS:
        form = {"field": "t", "operator": operator, "value": operand}
        for call in (
            lambda: store.query(form),  # noqa: B023
            lambda: store.count([form, form]),  # noqa: B023
            lambda: store.delete_where({"and": [form, {"not": form}]}),  # noqa: B023
            lambda: store.count({"field": "$version", "operator": operator, "value": operand}),  # noqa: B023
            lambda: StorageQuery.from_dict({"filters": form, "limit": operand}),  # noqa: B023
            lambda: StorageQuery(form).matches(operand),  # noqa: B023
            lambda: match(t=operand),  # noqa: B023
            lambda: field("$created_at") > operand,  # noqa: B023
            lambda: store.query(operand),  # noqa: B023
            lambda: store.query(limit=operand),  # noqa: B023
            lambda: store.query(timeout=operand),  # noqa: B023
        ):
            with contextlib.suppress(RecursionError):
                listen(call)


def test_of_a_cursor_and_a_slow_query(store: Storage, listen: Listener) -> None:
    store.set_many({f"key{number:04}": {"t": WORD, "n": number} for number in range(2000)})
    for _ in range(2):
        store.query((field("t") == WORD) & (field("n") >= 0), sort="t", limit=5)
    page = store.query((field("t") == WORD) & (field("n") >= 0), sort="t", limit=5)
    assert page.cursor is not None
    listen(lambda: store.query(sort="n", limit=5, cursor=page.cursor))
    listen(lambda: store.query(sort="t", limit=5, cursor=f"{page.cursor}{WORD}"))
    listen(lambda: store.query(field("t") == WORD, sort="t", timeout=0))
    assert WORD not in store.explain(field("t") == WORD, sort="t").sql
    assert WORD not in repr(store)
    assert WORD not in repr(page)
    assert WORD not in repr(store.get_status())


def test_of_a_facet(store: Storage, listen: Listener) -> None:
    async def ask() -> None:
        async with StorageFacet(store) as facet:
            for bad in BAD.values():
                for answer in (
                    await facet.set("key", bad),
                    await facet.set("key", 1, {"metadata": {"m": bad}}),
                    await facet.set("key", 1, {"ttl": bad}),
                    await facet.set_many([{"key": "key", "value": bad}, {"key": "good", "value": WORD}]),
                    await facet.set_many(bad),
                    await facet.set_metadata("object", bad),
                    await facet.query({"field": "t", "operator": "gt", "value": bad}),
                    await facet.query([bad]),
                    await facet.get("text", {"transactionId": bad}),
                    await facet.begin_transaction({"isolation": [bad]}),
                    await facet.create_namespace("new", {"metadata": {"m": bad}}),
                ):
                    if not answer.success:
                        listen.failed += 1
                        listen.texts += [repr(answer.error), str(answer.to_dict()["error"]), repr(answer.errors)]

    asyncio.run(ask())


# ---- files


CELLS = {
    "no JSON": ("value", f'\'{{"a":"{WORD}\''),
    "no UTF-8": ("value", f"CAST(x'22{WORD.encode().hex()}ff22' AS TEXT)"),
    "too deep": ("value", f"replace(printf('%1500s', ''), ' ', '[') || '\"{WORD}\"'"),
    "a blob": ("value", f"CAST('\"{WORD}\"' AS BLOB)"),
    "twins": ("value", f'\'{{"a":"{WORD}","a":"{WORD}"}}\''),
    "metadata that are a text": ("metadata", f"'\"{WORD}\"'"),
    "metadata that are no JSON": ("metadata", f"'{{{WORD}'"),
    "metadata that are a blob": ("metadata", f"CAST('{WORD}' AS BLOB)"),
    "a time": ("created_at", f"'{WORD}'"),
    "an expiry": ("expires_at", f"'{WORD}'"),
    "a version": ("version", f"'{WORD}'"),
}


@pytest.mark.parametrize("cell", CELLS)
def test_of_a_damaged_row(tmp_path: Path, listen: Listener, cell: str) -> None:
    path, column = tmp_path / "store.db", CELLS[cell][0]
    with open_storage(path) as store:
        store.set_many({f"k{number}": {"t": WORD} for number in range(5)})
    for statement in (
        "UPDATE sqlite_schema SET sql = replace(sql, ') STRICT', ')') WHERE name = 'storage_entries'",
        f"UPDATE storage_entries SET {column} = {CELLS[cell][1]} WHERE key = 'k1'",
        "UPDATE sqlite_schema SET sql = sql || ' STRICT' WHERE name = 'storage_entries'",
    ):
        connection = apsw.Connection(str(path))
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
        connection.execute(f"PRAGMA writable_schema=ON; {statement}")
        connection.close()
    shutil.copyfile(path, tmp_path / "backup.db")
    with open_storage(path, debug=True) as store:
        for call in (
            lambda: store.get("k1"),
            lambda: store.get_entry("k1"),
            lambda: store.get_many(["k1"]),
            lambda: store.get_metadata("k1"),
            lambda: list(store.scan()),
            lambda: store.query(field("t") == WORD),
            lambda: store.query(field("t") == [WORD]),
            lambda: store.query(sort="t"),
            lambda: store.count(field("t") != WORD),
            lambda: store.merge("k1", {"t": WORD}),
            lambda: store.modify("k1", lambda value: value),
            lambda: store.create_index("t"),
            lambda: store.create_index("t", unique=True),
            lambda: store.set("k1", WORD),
            lambda: store.check(),
            lambda: store.backup(tmp_path / "new.db"),
            lambda: store.restore(tmp_path / "backup.db"),
            lambda: store.migrate(to=1),
        ):
            listen(call)
    listen(lambda: open_storage(path).migrate())
    listen(lambda: open_storage("memory:").restore(tmp_path / "backup.db"))


def test_of_a_file_of_version_1(tmp_path: Path, listen: Listener) -> None:
    path = tmp_path / "old.db"
    with open_storage(path) as store:
        store.set_many({"a": {"t": WORD}, "b": 1})
        store.migrate(to=1)
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE storage_entries SET value = ?, metadata = ?", (f"{{{WORD}", f"[{WORD}"))
    connection.close()
    listen(lambda: open_storage(path))


def test_of_a_configuration(listen: Listener) -> None:
    for target in (
        f"postgresql://user:{WORD}@host/db",
        f"mysql://user:{WORD}@host/db",
        f"sqlite://user:{WORD}@host/x.db",
        f"sqlite:///x.db?key={WORD}",
        f"sqlite:///x.db#{WORD}",
        {"backend": {"sqlite": WORD}},
        {"backend": "sqlite", "options": [WORD]},
        {"options": {"busyTimeout": [WORD]}},
        {"options": {"wal_mode": {"a": WORD}}},
        {"options": {"encryption_key": [WORD]}},
        {"options": {"encryption_key": "", "busy_timeout": [WORD]}},
        {"storage": [WORD]},
        {"backend": "memory", "options": {"engine_options": {"a": WORD}}},
    ):
        listen(lambda: open_storage(target))  # noqa: B023
    listen(lambda: open_storage(f"postgresql://user:{WORD}@host/db", db_path="a.db"))


def test_of_the_command_line(tmp_path: Path) -> None:
    """Bad lines of files, and bad conditions: what is printed names lines, places and columns."""
    files = {
        "bad.jsonl": f'{{"id": "a"}}\n{{"id": "b", "t": "{WORD}\n{{"id": "c", "n": {NUMBER}e999}}\n"{WORD}"\n',
        "bad.json": f'[{{"id": "a", "t": "{WORD}"}}, {{"id": 5, "t": "{WORD}"}}, "{WORD}"]',
        "broken.json": f'[{{"id": "a", "t": "{WORD}"',
        "bad.csv": f'id,t\na,"{WORD}"\nb,"{WORD}",{WORD}\n,"{WORD}"\nc,"{WORD}',
    }
    calls = []
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        calls += [["import", name, "--key", "id"], ["import", name, "--key", "id", "--on-error", "skip"]]
    for condition in (
        f"t>[{WORD}",
        f"t>{{{WORD}}}",
        f"$created_at>{WORD}",
        f"t in {WORD}",
        f't~"{WORD}"',
        f'n>="{WORD}',
    ):
        calls.append(["query", "--where", condition])
    program = [sys.executable, "-m", "mycelia_storage.cli", "--store", "store.db"]
    failed = 0
    for arguments in calls:
        done = subprocess.run([*program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        failed += done.returncode != 0
        assert WORD not in done.stderr, arguments
        assert str(NUMBER) not in done.stderr, arguments
        assert "Traceback" not in done.stderr, arguments
    assert failed > len(calls) // 2
