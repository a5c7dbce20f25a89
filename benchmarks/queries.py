"""How fast queries are beside hand-written SQL, beside loading everything, and what an index costs a write.

Called by `__main__` for `--queries`. Every question is asked in two files: in one the namespace is all there is, in the
other it is one of twenty that were filled in turn. The files are made once and only read then, so that a round is
nothing but questions.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import apsw
import orjson

from benchmarks.harness import Results, rotated, run, timed
from benchmarks.questions import INDEXED_FIELDS, QUESTIONS, RawTable, comparable, decode, operands
from benchmarks.subjects import Memory, Raw, Sqlite
from benchmarks.verify import WrongAnswerError
from benchmarks.workload import NAMESPACE, SLICES, make_workload
from mycelia_storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from benchmarks.questions import Found, Question
    from benchmarks.workload import Item
    from mycelia_storage import Storage

NAMESPACES: Final = 20
LOAD: Final = "load, json"
LOAD_FAST: Final = "load, orjson"
SAME_INDEX: Final = "raw, same index"
SETS: Final = ("set", "overwrite")
# The memory engine looks at every document whatever is asked, so it asks less often.
_MEMORY_SHARE: Final = 0.01
# Loading takes so long that whoever only asks may do it more than once.
_ASKS: Final = 5
# So much is written to a namespace at a time where twenty are filled in turn.
_BATCH: Final = 500
_RAW_INDEX: Final = "create index entries_by_name on storage_entries (namespace, json_extract(value, '$.name'))"
_INDEX_OF_LIBRARY: Final = "select sql from sqlite_schema where type = 'index' and name glob 'storage_index_*'"


@dataclass(frozen=True)
class Queries:
    """Everything that was measured: the questions in both files, loading beside asking, writes with an index."""

    documents: int
    alone: Results
    among: Results
    loaded: Results
    sets: Results


def measure_queries(documents: int, rounds: int, directory: Path, tell: Callable[[str], None]) -> Queries:
    """Measure with so many documents in so many rounds, on files in `directory`."""
    with _quiet():
        tell(f"queries: {documents:,} documents alone")
        alone = _measure_questions(documents, 1, rounds, _new(directory, "alone"))
        tell(f"queries: {documents:,} documents among {NAMESPACES * documents:,}")
        among = _measure_questions(documents, NAMESPACES, rounds, _new(directory, "among"))
        tell(f"queries: {2 * documents:,} documents, asked or loaded")
        loaded = _measure_loading(2 * documents, rounds, _new(directory, "loaded"))
        tell("queries: writes with an index")
        sets = _measure_sets(documents, rounds, _new(directory, "sets"), tell)
    return Queries(documents, alone, among, loaded, sets)


# ---- questions


def _measure_questions(documents: int, namespaces: int, rounds: int, directory: Path) -> Results:
    results = Results({question.name: {} for question in QUESTIONS})
    items = make_workload(documents).new
    _fill(directory / "mycelia.db", items, namespaces)
    shutil.copyfile(directory / "mycelia.db", directory / "raw.db")
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(contextlib.closing(RawTable(directory / "raw.db")))
        stores = {Sqlite.name: stack.enter_context(open_storage(directory / "mycelia.db"))}
        if namespaces == 1:
            stores[Memory.name] = stack.enter_context(open_storage("memory:"))
            stores[Memory.name].set_many(items)
        for is_indexed in (False, True):
            if is_indexed:
                raw.create_indexes()
                for store in stores.values():
                    for name in INDEXED_FIELDS:
                        store.create_index(name)
            for number in range(rounds):
                for question in QUESTIONS:
                    if question.is_indexed == is_indexed:
                        _ask(question, raw, stores, number, results)
    shutil.rmtree(directory)
    return results


def _fill(path: Path, items: Sequence[Item], namespaces: int) -> None:
    names = [NAMESPACE, *(f"other{number:02d}" for number in range(1, namespaces))]
    with open_storage(path) as store:
        for start in range(0, len(items), _BATCH):
            with store.transaction() as together:
                for name in names:
                    together.set_many(items[start : start + _BATCH], namespace=name)


def _ask(question: Question, raw: RawTable, stores: dict[str, Storage], number: int, results: Results) -> None:
    """One round of a question: its slices in turn, after a look whether all give the same answer."""
    parts = operands(question, SLICES, number)
    _verify(question, raw, stores, parts[0][0])
    subjects: dict[str, tuple[Callable[[Any, Any], Any], Any, float]] = {Raw.name: (question.ask_raw, raw, 1.0)}
    for name, store in stores.items():
        subjects[name] = (question.ask, store, _MEMORY_SHARE if name == Memory.name else 1.0)
    seconds = dict.fromkeys(subjects, 0.0)
    calls = dict.fromkeys(subjects, 0)
    gc.collect()
    for turn, part in enumerate(parts):
        for name in rotated(list(subjects), turn):
            ask, subject, share = subjects[name]
            sample = part[: max(1, round(len(part) * share))]
            seconds[name] += timed(_ask_each, ask, subject, sample)
            calls[name] += len(sample)
    for name in subjects:
        results.seconds[question.name].setdefault(name, []).append(seconds[name] / calls[name])


def _ask_each(ask: Callable[[Any, Any], Any], subject: Any, asked: Sequence[Any]) -> None:
    for operand in asked:
        ask(subject, operand)


def _verify(question: Question, raw: RawTable, stores: dict[str, Storage], operand: Any) -> None:
    expected = comparable(question.ask_raw(raw, operand))
    for name, store in stores.items():
        got = comparable(question.ask(store, operand))
        if name == Memory.name and not isinstance(got, int) and not isinstance(expected, int):
            # It was filled at another time.
            got, expected = [one[:2] for one in got], [one[:2] for one in expected]
        if got != expected:
            raise WrongAnswerError(f"{name}, {question.name} {operand!r}: {got!r:.200} and not {expected!r:.200}")


# ---- loading


def _measure_loading(documents: int, rounds: int, directory: Path) -> Results:
    """An equality without an index, beside reading the namespace, decoding all of it and filtering then."""
    question = QUESTIONS[0]
    _fill(directory / "mycelia.db", make_workload(documents).new, 1)
    shutil.copyfile(directory / "mycelia.db", directory / "raw.db")
    seconds: dict[str, list[float]] = {}
    with (
        contextlib.closing(RawTable(directory / "raw.db")) as raw,
        open_storage(directory / "mycelia.db") as store,
    ):
        ways: dict[str, Callable[[Any], Any]] = {
            Raw.name: lambda name: question.ask_raw(raw, name),
            Sqlite.name: lambda name: question.ask(store, name),
            LOAD: lambda name: _load_and_filter(raw, name, json.loads),
            LOAD_FAST: lambda name: _load_and_filter(raw, name, orjson.loads),
        }
        for number in range(rounds):
            operand = operands(question, 1, number)[0][0]
            _verify(question, raw, {Sqlite.name: store}, operand)
            for name in rotated(list(ways), number):
                calls = 1 if name in (LOAD, LOAD_FAST) else _ASKS
                gc.collect()
                taken = timed(_ask_each, lambda way, one: way(one), ways[name], [operand] * calls)
                seconds.setdefault(name, []).append(taken / calls)
    shutil.rmtree(directory)
    return Results({question.name: seconds})


def _load_and_filter(raw: RawTable, name: str, loads: Callable[[str], Any]) -> list[Found]:
    return [found for found in decode(raw.all_rows(), loads) if found.value.get("name") == name]


# ---- writes


class _IndexedRaw(Raw):
    """The hand-written loop on a table with the index that one would write."""

    def open(self, place: Path) -> None:
        super().open(place)
        self._connection.execute(self._index(place))

    def _index(self, place: Path) -> str:  # noqa: ARG002
        return _RAW_INDEX


class _SameIndexRaw(_IndexedRaw):
    """The same with the very index that the library makes."""

    name = SAME_INDEX

    def _index(self, place: Path) -> str:
        example = place / "example.db"
        with open_storage(example) as store:
            store.create_index(INDEXED_FIELDS[0])
        with contextlib.closing(apsw.Connection(str(example))) as connection:
            return str(connection.execute(_INDEX_OF_LIBRARY).get)


class _IndexedSqlite(Sqlite):
    def open(self, place: Path) -> None:
        super().open(place)
        self._store.create_index(INDEXED_FIELDS[0])


def _measure_sets(documents: int, rounds: int, directory: Path, tell: Callable[[str], None]) -> Results:
    subjects = [_IndexedRaw(), _SameIndexRaw(), _IndexedSqlite()]
    return run(subjects, make_workload(documents), rounds=rounds, chosen=SETS, directory=directory, tell=tell)


def _new(directory: Path, name: str) -> Path:
    made = directory / f"queries-{name}"
    made.mkdir()
    return made


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's advice to create an index."""
    logger = logging.getLogger("mycelia_storage")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
