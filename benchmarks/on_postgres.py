"""On a PostgreSQL server: this library beside what one would write by hand with psycopg, on the same server.

Called by `__main__` for `--postgres`. The server comes from the wheel, without fsync, so that what is compared is work
and not the disk. By hand a document is one `jsonb` with a version, which gives up the order of its keys and how its
numbers were written; a batch is COPY into a temporary table and one statement that takes it over; a query has an index
on its field made for it. Both sides use one connection, take turns, and must agree.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import psycopg
from psycopg.types.json import Jsonb

from mycelia_storage import field as document_field
from mycelia_storage import open_storage
from mycelia_storage.testing.postgres_server import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from mycelia_storage import Storage

# What is to be reached, as a part of the speed by hand.
LEAST: Final = {"get": 0.7, "set": 0.7, "set_many": 0.6, "query": 0.7}
TITLES: Final = {
    "get": "get",
    "set": "set, an entry that is there",
    "set_many": "set_many, all of them",
    "query": "query by an indexed field",
}
AGES: Final = 90
_CALLS: Final = 1_000
_QUERIES: Final = 100

CREATE: Final = """
CREATE TABLE by_hand (
  namespace text COLLATE "C", key text COLLATE "C", document jsonb NOT NULL, updated_at bigint, version bigint,
  PRIMARY KEY (namespace, key))"""
INDEX: Final = "CREATE INDEX ON by_hand (namespace, ((document->>'age')::int), key)"
GET: Final = "SELECT document FROM by_hand WHERE namespace = %s AND key = %s"
SET: Final = """
INSERT INTO by_hand VALUES (%s, %s, %s, %s, 1) ON CONFLICT (namespace, key) DO UPDATE SET
  document = excluded.document, updated_at = excluded.updated_at, version = by_hand.version + 1
RETURNING version"""
BATCH: Final = "CREATE TEMPORARY TABLE batch (key text, document jsonb, updated_at bigint) ON COMMIT DROP"
COPY: Final = "COPY batch FROM STDIN"
TAKE_OVER: Final = """
INSERT INTO by_hand SELECT 'default', key, document, updated_at, 1 FROM batch ORDER BY key
ON CONFLICT (namespace, key) DO UPDATE SET
  document = excluded.document, updated_at = excluded.updated_at, version = by_hand.version + 1"""
QUERY: Final = """
SELECT key, document FROM by_hand WHERE namespace = %s AND (document->>'age')::int = %s ORDER BY key"""


@dataclass(frozen=True)
class OnPostgres:
    """Microseconds for a call in each round, by operation: of this library, and by hand."""

    documents: int
    version: str
    ours: dict[str, list[float]] = field(default_factory=dict)
    by_hand: dict[str, list[float]] = field(default_factory=dict)

    def ratio(self, operation: str) -> float:
        """How many times as fast as by hand: the median of the rounds' ratios."""
        pairs = zip(self.by_hand[operation], self.ours[operation], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


class _Side(Protocol):
    def get(self, number: int) -> Any: ...
    def set(self, number: int) -> Any: ...
    def set_many(self, number: int) -> Any: ...
    def query(self, number: int) -> Any: ...


class _Ours:
    def __init__(self, store: Storage, documents: dict[str, Any]) -> None:
        self.store, self.documents, self.keys = store, documents, list(documents)

    def get(self, number: int) -> Any:
        return self.store.get(self.keys[number])

    def set(self, number: int) -> Any:
        return self.store.set(self.keys[number], self.documents[self.keys[number]])

    def set_many(self, number: int) -> Any:
        del number
        return len(self.store.set_many(self.documents))

    def query(self, number: int) -> Any:
        return {entry.key: entry.value for entry in self.store.query(document_field("age") == number % AGES)}


class _ByHand:
    def __init__(self, connection: psycopg.Connection[Any], documents: dict[str, Any]) -> None:
        self.connection, self.documents, self.keys, self.as_json = connection, documents, list(documents), Jsonb

    def get(self, number: int) -> Any:
        row = self.connection.execute(GET, ("default", self.keys[number])).fetchone()
        return None if row is None else row[0]

    def set(self, number: int) -> Any:
        key = self.keys[number]
        row = self.connection.execute(SET, ("default", key, self.as_json(self.documents[key]), _now())).fetchone()
        return None if row is None else row[0]

    def set_many(self, number: int) -> Any:
        del number
        with self.connection.transaction():
            self.connection.execute(BATCH)
            with self.connection.cursor().copy(COPY) as copy:
                for key, document in self.documents.items():
                    copy.write_row((key, json.dumps(document), _now()))
            self.connection.execute(TAKE_OVER)
        return len(self.documents)

    def query(self, number: int) -> Any:
        return dict(self.connection.execute(QUERY, ("default", number % AGES)).fetchall())


def measure_on_postgres(documents: int, rounds: int, tell: Callable[[str], None]) -> OnPostgres:
    """Measure all operations in so many rounds on a server that is started for it, and stopped."""
    tell("starting a PostgreSQL server")
    made = _documents(documents)
    with PostgresServer() as server, psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(CREATE)
        row = connection.execute("SHOW server_version").fetchone()
        measured = OnPostgres(documents, row[0] if row else "")
        with open_storage(server.dsn(), schema="ours", pool_max=1) as store:
            sides: dict[str, _Side] = {"by_hand": _ByHand(connection, made), "ours": _Ours(store, made)}
            for side in sides.values():
                side.set_many(0)
            connection.execute(INDEX)
            store.create_index("age")
            connection.execute("ANALYZE by_hand")
            for number in range(rounds):
                tell(f"round {number + 1} of {rounds}")
                for operation in LEAST:
                    _turn(operation, sides, measured, documents, first=number % 2)
                connection.execute("VACUUM by_hand")
                connection.execute("VACUUM ours.entries")
    return measured


def _documents(count: int) -> dict[str, Any]:
    text = "lorem ipsum dolor sit amet " * 8
    return {
        f"person:{n:07}": {"id": n, "name": f"Name {n}", "age": n % AGES, "tags": ["a", "b"], "text": text}
        for n in range(count)
    }


def _turn(operation: str, sides: dict[str, _Side], measured: OnPostgres, documents: int, *, first: int) -> None:
    calls = {"set_many": 1, "query": _QUERIES}.get(operation, min(_CALLS, documents))
    answers = []
    for name in ("ours", "by_hand") if first else ("by_hand", "ours"):
        call = getattr(sides[name], operation)
        started = time.perf_counter()
        answer = None
        for number in range(calls):
            answer = call(number)
        seconds = time.perf_counter() - started
        getattr(measured, name).setdefault(operation, []).append(seconds / calls * 1e6)
        answers.append(answer)
    if operation != "set" and answers[0] != answers[1]:
        raise AssertionError(f"{operation}: the two sides answer differently")


def _now() -> int:
    return int(time.time() * 1000)
