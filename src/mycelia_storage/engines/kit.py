"""What an engine may be built with: rules and answers in Python that are the same for all of them.

Called by the memory engine, and by engines of other distributions, which may rely on every name in `__all__`; see
docs/writing-an-engine.md. An engine whose database gives an answer itself needs no function for it from here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mycelia_storage.checking import (
    MAX_VERSION,
    Findings,
    named,
    problem_of_entry,
    problem_of_namespace,
    problem_of_newer,
)
from mycelia_storage.engines.claims import Claim, candidate_of, claim_of, duplicates, duplicates_error, owned_error
from mycelia_storage.engines.engine import Row
from mycelia_storage.engines.files import ROWS_AT_ONCE, Contents
from mycelia_storage.engines.files import read as read_backup
from mycelia_storage.engines.files import write as write_backup
from mycelia_storage.engines.forking import register as register_for_forks
from mycelia_storage.engines.limits import check_limit, is_hurried, time_left
from mycelia_storage.engines.line import Line
from mycelia_storage.errors import CapacityError, TransactionConflictError
from mycelia_storage.keys import DEFAULT_NAMESPACE, ORIGIN, KeyRange, successor
from mycelia_storage.keys import matches as matches_pattern
from mycelia_storage.matching import Candidate, Position, compile_filter, in_order, is_behind, position
from mycelia_storage.query import parse_sort
from mycelia_storage.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mycelia_storage.engines.engine import Engine, IndexRow, Member, NamespaceRow, PutRow, Query, Session
    from mycelia_storage.filters import Filter

__all__ = [
    "DEFAULT_NAMESPACE",
    "MAX_INDEXES",
    "MAX_VERSION",
    "ORIGIN",
    "ROWS_AT_ONCE",
    "AutoWrites",
    "Candidate",
    "Claim",
    "Contents",
    "Findings",
    "KeyRange",
    "Line",
    "Position",
    "Retries",
    "candidate_of",
    "check_limit",
    "check_room_for_index",
    "claim_of",
    "compile_filter",
    "duplicates",
    "duplicates_error",
    "find_among",
    "in_order",
    "is_behind",
    "is_hurried",
    "is_in_range",
    "is_live",
    "matches_pattern",
    "matching",
    "named",
    "new_row",
    "owned_error",
    "parse_sort",
    "position",
    "problem_of_entry",
    "problem_of_namespace",
    "problem_of_newer",
    "problem_of_row",
    "read_backup",
    "register_for_forks",
    "share_one_by_one",
    "size_of",
    "successor",
    "time_left",
    "transact",
    "write_backup",
]

R = TypeVar("R")

# Each index costs every write; `create_index` beyond so many is a CapacityError on every engine.
MAX_INDEXES: Final = 64
_ROWS_BETWEEN_LOOKS: Final = 1000
# A write that others came between is tried so often, and not begun again after so many seconds.
_ATTEMPTS: Final = 200
_DEADLINE: Final = 30.0


# ---- one row


def is_live(row: Row, now: int) -> bool:
    """Whether a row has not expired."""
    return row.expires_at is None or row.expires_at > now // 1000


def size_of(row: Row) -> int:
    """The bytes of value and metadata together, as an outline has them."""
    return sum(len(text) if text.isascii() else len(text.encode()) for text in (row.value, row.metadata or ""))


def new_row(new: PutRow, old: Row | None, floor: int, now: int) -> Row:
    """What a put makes of the row that is there, expired or not: the rule for versions, times and metadata."""
    now_ms = now // 1000
    key, value, metadata, expires_at = new
    version = max(now, floor + 1, 0 if old is None else old.version + 1)
    if old is None or not is_live(old, now):
        return Row(key, version, now_ms, now_ms, expires_at, metadata, value)
    kept = old.metadata if metadata is None else metadata
    return Row(key, version, old.created_at, max(old.updated_at, now_ms), expires_at, kept, value)


def is_in_range(span: KeyRange, key: str) -> bool:
    """Whether a range of keys has a key."""
    is_between = key >= span.low and (span.high is None or key < span.high)
    return is_between and (span.pieces is None or matches_pattern(span.pieces, key))


def problem_of_row(namespace: str, row: Row) -> str | None:
    """Which rule a stored row breaks, if any: for a check."""
    problem = problem_of_entry(namespace, row.key, row.value, row.metadata, row.created_at, row.updated_at)
    return problem or problem_of_newer(row.version, row.expires_at)


# ---- many rows


def matching(namespace: str, rows: Iterable[Row], filter: Filter, now: int) -> Iterator[tuple[Row, Candidate]]:
    """The live rows that meet a filter, each with what filters and sorts see of it. Stops where the read is over."""
    test = compile_filter(filter)
    for number, row in enumerate(rows):
        if not number % _ROWS_BETWEEN_LOOKS:
            check_limit()
        if is_live(row, now):
            candidate = candidate_of(namespace, row)
            if test(candidate):
                yield row, candidate


def find_among(namespace: str, rows: Iterable[Row], query: Query, now: int) -> list[Row]:
    """The answer to a query, from all rows of the namespace in any order."""
    placed = ((position(query.sort, seen), row) for row, seen in matching(namespace, rows, query.filter, now))
    first, after = query.offset, query.after
    if after is not None:
        placed = ((place, row) for place, row in placed if is_behind(query.sort, place, after))
        first = 0
    found: list[Row] = in_order(query.sort, list(placed))
    return found[first : None if query.limit is None else first + query.limit]


def check_room_for_index(indexes: Sequence[IndexRow]) -> None:
    """Raise CapacityError where the store has as many indexes as it may."""
    if len(indexes) >= MAX_INDEXES:
        raise CapacityError(f"the store has {MAX_INDEXES} indexes, which is the limit: each one costs every write")


# ---- transactions


def transact(
    engine: Engine, step: Callable[[Session, int], R], now: int = 0, *, durable: bool = False, wait: float | None = None
) -> R:
    """What a step gives, run in a transaction of its own and committed; again where another one came between.

    It takes the session and the time, `now` at least, which is read once the transaction has begun: a write's is not
    before that of one that it follows.
    """
    retries: Retries | None = None
    while True:
        session = engine.begin(durable=durable, wait=wait)
        try:
            result = step(session, max(now, round(engine.clock() * 1_000_000)))
            session.commit()
        except TransactionConflictError:
            retries = retries or Retries(_ATTEMPTS, _DEADLINE)
            pause = retries.pause()
            if pause is None:
                raise
        else:
            return result
        finally:
            session.rollback()
        time.sleep(pause)


def share_one_by_one(engine: Engine, members: Sequence[Member], wait: float | None, busy_timeout: float) -> None:
    """`Engine.share` without a commit in common: for an engine whose commits cost little.

    All members together wait for the lock no longer than one would.
    """
    deadline = time.monotonic() + (busy_timeout if wait is None else wait)
    for member in members:
        left = max(0.0, deadline - time.monotonic())
        try:
            result: Any = transact(engine, member.step, durable=member.durable, wait=left)
        except Exception as error:  # noqa: BLE001  it is the member's, whose caller gets it
            member.done(error=error)
        else:
            member.done(result)


class AutoWrites:
    """The primitives that write, each as a transaction of its own: a base of an engine's `auto`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def put(self, namespace: str, rows: Sequence[PutRow], now: int) -> list[int]:
        return transact(self._engine, lambda session, now: session.put(namespace, rows, now), now)

    def delete(self, namespace: str, keys: Sequence[str], now: int) -> int:
        return transact(self._engine, lambda session, now: session.delete(namespace, keys, now), now)

    def delete_matching(self, namespace: str, filter: Filter, now: int) -> int:
        return transact(self._engine, lambda session, now: session.delete_matching(namespace, filter, now), now)

    def clear(self, namespace: str | None, now: int) -> int:
        return transact(self._engine, lambda session, now: session.clear(namespace, now), now)

    def purge(self, now: int, limit: int) -> int:
        return transact(self._engine, lambda session, now: session.purge(now, limit), now)

    def register(self, namespace: str, metadata: str | None, now: int) -> bool:
        return transact(self._engine, lambda session, now: session.register(namespace, metadata, now), now)

    def unregister(self, namespace: str) -> None:
        transact(self._engine, lambda session, _: session.unregister(namespace))

    def create_index(self, index: IndexRow, now: int) -> None:
        transact(self._engine, lambda session, now: session.create_index(index, now), now)

    def drop_index(self, name: str) -> bool:
        return transact(self._engine, lambda session, _: session.drop_index(name))

    def place(self, namespace: str, rows: Sequence[Row], now: int) -> None:
        transact(self._engine, lambda session, now: session.place(namespace, rows, now), now)

    def place_namespace(self, row: NamespaceRow) -> None:
        transact(self._engine, lambda session, _: session.place_namespace(row))

    def raise_floor(self, version: int) -> None:
        transact(self._engine, lambda session, _: session.raise_floor(version))
