"""The questions that queries are measured by, each asked of hand-written SQL and of this library.

Called by `queries`. The documents are those of the workload, and `name` has a hundred values, so that an equality finds
one document of a hundred.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import apsw
import orjson

from benchmarks.workload import CITIES, NAMESPACE, make_name
from mycelia_storage import field

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from benchmarks.workload import Document
    from mycelia_storage import Entry, Storage

# What an answer is compared by: a number, or all that is known of each document.
Answer: TypeAlias = int | list[tuple[Any, ...]]


class Found(NamedTuple):
    """What the hand-written subject makes of a row: the same that an entry tells."""

    key: str
    value: Document
    metadata: dict[str, Any]
    version: int
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None


_COLUMNS: Final = "key, version, created_at, updated_at, expires_at, metadata, value"
_NAME: Final = "json_extract(value, '$.name')"
_SCORE: Final = "json_extract(value, '$.score')"
_CITY: Final = "json_extract(value, '$.city')"
RAW_EQUAL: Final = f"select {_COLUMNS} from storage_entries where namespace = ? and {_NAME} = ? order by key"
RAW_TOP: Final = f"""
select {_COLUMNS} from storage_entries where namespace = ? and {_SCORE} >= ? order by {_SCORE}, key limit 10"""
RAW_COUNT_CITY: Final = f"select count(*) from storage_entries where namespace = ? and {_CITY} = ?"
RAW_COUNT_NAME: Final = f"select count(*) from storage_entries where namespace = ? and {_NAME} = ?"
RAW_ALL: Final = f"select {_COLUMNS} from storage_entries where namespace = ? order by key"
# With the key behind the value an index gives the whole order, and with statistics SQLite takes it.
RAW_INDEXES: Final = f"""
create index entries_by_name on storage_entries (namespace, {_NAME}, key);
create index entries_by_score on storage_entries (namespace, {_SCORE}, key);
analyze;
"""
INDEXED_FIELDS: Final = ("name", "score")


class RawTable:
    """The library's own table in APSW by hand: paths as one writes them, no types compared, no expiry."""

    def __init__(self, path: Path) -> None:
        self._connection = apsw.Connection(str(path))
        self._cursor = self._connection.cursor()

    def close(self) -> None:
        """Close it."""
        self._cursor.close()
        self._connection.close()

    def create_indexes(self) -> None:
        """Create the indexes that one would."""
        self._connection.execute(RAW_INDEXES)

    def find(self, statement: str, *operands: Any) -> list[Found]:
        """The rows of a statement, decoded."""
        return decode(self._cursor.execute(statement, (NAMESPACE, *operands)))

    def number(self, statement: str, *operands: Any) -> int:
        """The one number that a statement gives."""
        return int(self._cursor.execute(statement, (NAMESPACE, *operands)).get)

    def all_rows(self) -> list[Any]:
        """Every row of the namespace as it is stored."""
        return self._cursor.execute(RAW_ALL, (NAMESPACE,)).fetchall()


def decode(rows: Iterable[Any], loads: Callable[[str], Any] = orjson.loads) -> list[Found]:
    """What rows hold."""
    at = datetime.fromtimestamp
    return [
        Found(
            key,
            loads(value),
            {} if metadata is None else loads(metadata),
            version,
            at(created_at / 1000, UTC),
            at(updated_at / 1000, UTC),
            None if expires_at is None else at(expires_at / 1000, UTC),
        )
        for key, version, created_at, updated_at, expires_at, metadata, value in rows
    ]


@dataclass(frozen=True)
class Question:
    """One line of the table.

    `calls` is how often it is asked in a slice, each time with another operand; `least` is how fast the library is to
    be in terms of the raw statement, 0 where nothing is wanted; `is_indexed` says whether the files have indexes.
    """

    name: str
    least: float
    calls: int
    is_indexed: bool
    operand: Callable[[random.Random], Any]
    ask_raw: Callable[[RawTable, Any], Any]
    ask: Callable[[Storage, Any], Any]


def operands(question: Question, slices: int, seed: int) -> list[list[Any]]:
    """What is asked for in each slice, the same for every subject."""
    chance = random.Random(f"{question.name} {seed}")
    return [[question.operand(chance) for _ in range(question.calls)] for _ in range(slices)]


def comparable(answer: int | list[Found] | Iterable[Entry[Any]]) -> Answer:
    """An answer of either side in a form that can be compared."""
    if isinstance(answer, int):
        return answer
    return [
        (one.key, one.value, one.metadata, one.version, one.created_at, one.updated_at, one.expires_at)
        for one in answer
    ]


def _a_city(chance: random.Random) -> str:
    return chance.choice(CITIES)


def _a_score(chance: random.Random) -> float:
    return chance.randrange(900_000) / 1000


QUESTIONS: Final = (
    Question(
        "equality, no index", 0.6, 1, False, make_name,
        lambda raw, name: raw.find(RAW_EQUAL, name),
        lambda store, name: store.query(field("name") == name),
    ),
    Question(
        "count with a filter, no index", 0.7, 1, False, _a_city,
        lambda raw, city: raw.number(RAW_COUNT_CITY, city),
        lambda store, city: store.count(field("city") == city),
    ),
    Question(
        "equality, index", 0.7, 10, True, make_name,
        lambda raw, name: raw.find(RAW_EQUAL, name),
        lambda store, name: store.query(field("name") == name),
    ),
    Question(
        "range, sort, limit 10, index", 0.5, 100, True, _a_score,
        lambda raw, score: raw.find(RAW_TOP, score),
        lambda store, score: store.query(field("score") >= score, sort="score", limit=10),
    ),
    Question(
        "count with a filter, index", 0, 100, True, make_name,
        lambda raw, name: raw.number(RAW_COUNT_NAME, name),
        lambda store, name: store.count(field("name") == name),
    ),
)  # fmt: skip
