"""What an engine has to be able to do: some thirty primitives on plain rows, and transactions around them.

The verbs call these and nothing else. Everything that has a meaning of its own (which keys and values are valid, what
has expired, how `if_version` and `merge` work) is decided above; an engine keeps rows and finds them again.

Two rules belong to every engine, because only it can keep them in one atomic step:

- **put** keeps `created_at` of a live entry and its metadata where none are given; `updated_at` never decreases;
  `version` becomes the greatest of `now`, the floor + 1, and the entry's own + 1. An expired entry is replaced as if
  it were not there, except that its version counts.
- **delete, clear, purge** raise the floor to the greatest version that they remove, where that is `now` or more, so
  that no version of a key is used again.
- **unique indexes**: no two live rows of a namespace have the same scalars or nulls in all fields of one. Where
  expired rows are in the way of a put, it removes these, and no more than it can without keeping others waiting; where
  a live one is, it raises UniqueIndexError, and nothing is written. Rows are put one after the other, each against
  those before it.

Times: `now` is microseconds since 1970; stored times are milliseconds. An entry is expired when
`expires_at <= now // 1000`. Texts are ordered by code point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

from mycelia_storage.checking import Findings
from mycelia_storage.entries import CopyProgress
from mycelia_storage.filters import Filter, SortKey
from mycelia_storage.keys import KeyRange
from mycelia_storage.matching import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# What a writer of another engine may rely on; see docs/writing-an-engine.md.
__all__ = [
    "CopyProgress",
    "Engine",
    "EngineStatus",
    "Filter",
    "Findings",
    "IndexRow",
    "Isolation",
    "KeyRange",
    "Member",
    "NamespaceRow",
    "Newer",
    "Outline",
    "PlanRow",
    "Position",
    "Primitives",
    "Progress",
    "PutRow",
    "Query",
    "Row",
    "Session",
    "Snapshot",
    "SortKey",
    "Tally",
]

Isolation: TypeAlias = Literal["read_committed", "repeatable_read", "snapshot", "serializable"]

# Told how far a copy of the store is; what it raises cancels that.
Progress: TypeAlias = "Callable[[CopyProgress], object]"


class Row(NamedTuple):
    """One entry as it is kept. `value` and `metadata` are JSON texts; metadata is None where there never was any."""

    key: str
    version: int
    created_at: int
    updated_at: int
    expires_at: int | None
    metadata: str | None
    value: str


# One entry to write: key, value, metadata, expires_at. Metadata None keeps what a live entry has; expires_at None means
# that it stays. A plain tuple, because a batch has many.
PutRow: TypeAlias = tuple[str, str, str | None, int | None]


# A row without its texts: key, version, bytes of value and metadata together. A plain tuple: a range has many.
Outline: TypeAlias = tuple[str, int, int]
# The same of a row of any namespace, whose name comes first.
Newer: TypeAlias = tuple[str, str, int, int]


class Tally(NamedTuple):
    """What a store holds in sum: two that hold the same have the same `entries` and `versions`.

    `entries` counts live rows; `versions` is the sum of their versions, each modulo 2**32. `greatest` is the greatest
    version of any row, also of one that has expired, 0 where there is none; `floor` is the floor.
    """

    entries: int
    versions: int
    greatest: int
    floor: int


class NamespaceRow(NamedTuple):
    """A namespace; `created_at` is None for one that holds entries and was never registered."""

    name: str
    metadata: str | None
    created_at: int | None


class Query(NamedTuple):
    """What to find. `after` is the position of an entry to go on behind; `offset` counts only without it."""

    filter: Filter
    sort: tuple[SortKey, ...] = ()
    limit: int | None = None
    offset: int = 0
    after: Position | None = None


class IndexRow(NamedTuple):
    """The definition of a created index; `namespace` None means all of them, each for itself."""

    name: str
    namespace: str | None
    fields: tuple[SortKey, ...]
    is_unique: bool
    created_at: int


class PlanRow(NamedTuple):
    """How an engine would run a query: the created indexes it uses, and whether it visits the whole namespace."""

    sql: str
    indexes: tuple[str, ...]
    full_scan: bool


class Member:
    """A write that may share its commit with others: what it does, and afterwards what came of it.

    `step` takes primitives inside a transaction and that transaction's time. It may be run again, after everything it
    did was undone.
    """

    __slots__ = ("durable", "error", "is_done", "result", "step")

    def __init__(self, step: Callable[[Primitives, int], Any], *, durable: bool = False) -> None:
        self.step: Callable[[Primitives, int], Any] = step
        self.durable: bool = durable
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_done: bool = False

    def done(self, result: Any = None, error: BaseException | None = None) -> None:
        """It has failed, or it is committed with this result; nothing will be run again."""
        self.result, self.error = result, error
        self.finish()

    def finish(self) -> None:
        """It is committed. What it did is forgotten: an error that somebody keeps may know all who shared a commit."""
        self.is_done = True
        self.step = _nothing

    def outcome(self) -> Any:
        """The result; raises the error instead where there is one."""
        error, self.error = self.error, None
        if error is None:
            return self.result
        try:
            raise error
        finally:
            del error  # the traceback would keep this frame, and the frame the error


def _nothing(rows: Primitives, now: int) -> None:
    """What a member does that is done."""


class Primitives(Protocol):
    """Reading and writing rows. On an engine's `auto` each call is a transaction of its own."""

    # reading; what has expired is included where `expires_at` is given back, and left out where `now` is taken
    def value(self, namespace: str, key: str) -> tuple[str, int | None] | None:
        """The value's text and `expires_at`; None where there is no such row."""
        ...

    def has(self, namespace: str, key: str, now: int) -> bool:
        """Whether there is such a live row, without touching its value."""
        ...

    def values(self, namespace: str, keys: Sequence[str]) -> Iterable[tuple[str, str, int | None]]:
        """Key, value and `expires_at` of those keys that are there, in any order."""
        ...

    def rows(self, namespace: str, keys: Sequence[str]) -> list[Row]:
        """The whole rows of those keys that are there, in any order."""
        ...

    def keys(
        self, namespace: str, span: KeyRange, now: int, *, limit: int | None, offset: int, reverse: bool
    ) -> list[str]:
        """The live keys of a range in order."""
        ...

    def page(self, namespace: str, span: KeyRange, now: int, *, limit: int) -> list[Row]:
        """The first live rows of a range in key order."""
        ...

    def count(self, namespace: str | None, now: int) -> int:
        """How many live entries a namespace holds, or the store."""
        ...

    def namespaces(self) -> list[NamespaceRow]:
        """Every namespace that is registered or holds entries, ordered by name, and what is registered under "".

        That is no namespace: a store keeps there what it knows of itself. It is placed, asked for and forgotten as any.
        """
        ...

    def namespace(self, name: str) -> NamespaceRow | None:
        """One namespace, None where it is neither registered nor holds entries."""
        ...

    # for a copy into another engine
    def outline(self, namespace: str, span: KeyRange, now: int, *, limit: int) -> list[Outline]:
        """The first live rows of a range in key order, without their texts. No range has `pieces` here."""
        ...

    def newer(self, version: int, now: int, *, limit: int) -> list[Newer]:
        """Live rows of any namespace with a greater version, at most `limit` of them, ordered by namespace and key.

        Where there are more, it does not matter which come. It is meant to take one pass over everything.
        """
        ...

    def counts(self, namespace: str, spans: Sequence[KeyRange], now: int) -> list[int]:
        """How many live rows each range holds: in a call or two to a server, however many they are.

        They are in order, do not overlap, and have no `pieces`.
        """
        ...

    def keys_in(self, namespace: str, spans: Sequence[KeyRange], now: int) -> list[str]:
        """The live keys of such ranges, in order: in a call or two to a server, too."""
        ...

    def tally(self, namespaces: Sequence[str] | None, now: int) -> Tally:
        """The sums over some namespaces, or the whole store; `greatest` and `floor` are the whole store's."""
        ...

    def tally_and_newer(
        self, namespaces: Sequence[str] | None, version: int, now: int, *, limit: int
    ) -> tuple[Tally, list[Newer]]:
        """What `tally` and `newer` give, by one pass over everything where that is faster."""
        ...

    # by filters
    def find(self, namespace: str, query: Query, now: int) -> list[Row]:
        """The live rows that match, in order."""
        ...

    def count_matching(self, namespace: str, filter: Filter, now: int) -> int:
        """How many live rows match."""
        ...

    def delete_matching(self, namespace: str, filter: Filter, now: int) -> int:
        """Remove the live rows that match; gives how many."""
        ...

    def plan(self, namespace: str, query: Query, now: int, extra: Sequence[IndexRow] = ()) -> PlanRow:
        """How `find` would go about it, or would with these indexes more."""
        ...

    # indexes
    def indexes(self) -> list[IndexRow]:
        """Every created index, ordered by name."""
        ...

    def create_index(self, index: IndexRow, now: int) -> None:
        """Make an index of a name that is free. Raises UniqueIndexError, CapacityError."""
        ...

    def drop_index(self, name: str) -> bool:
        """Remove an index; False where there is none."""
        ...

    # writing
    def put(self, namespace: str, rows: Sequence[PutRow], now: int) -> list[int]:
        """Write rows of distinct keys, all or none, by the rule above; register the namespace. Gives their versions."""
        ...

    def delete(self, namespace: str, keys: Sequence[str], now: int) -> int:
        """Remove rows of distinct keys; gives how many of them were live."""
        ...

    def clear(self, namespace: str | None, now: int) -> int:
        """Remove every row of a namespace, or of the store; gives how many of them were live."""
        ...

    def purge(self, now: int, limit: int) -> int:
        """Remove up to `limit` expired rows of any namespace, fewer where they are big; gives how many.

        0 says that none is left.
        """
        ...

    def register(self, namespace: str, metadata: str | None, now: int) -> bool:
        """Register a namespace; False where it was registered already, which changes nothing."""
        ...

    def unregister(self, namespace: str) -> None:
        """Forget a namespace's registration; its rows stay."""
        ...

    # writing, for a copy from another engine
    def place(self, namespace: str, rows: Sequence[Row], now: int) -> None:
        """Write whole rows of distinct keys as they are, all or none, in place of any with the same keys.

        The rule of a put does not count: versions, times and metadata are the rows' own, and the namespace is not
        registered. Unique indexes do, as in a put: what has expired by `now` gives way, then UniqueIndexError.
        """
        ...

    def place_namespace(self, row: NamespaceRow) -> None:
        """Register a namespace as it is, in place of an earlier registration. Its `created_at` is not None."""
        ...

    def raise_floor(self, version: int) -> None:
        """Let the floor be no less than a version."""
        ...


class Snapshot(Primitives, Protocol):
    """One state of the store to read from."""

    def rollback(self) -> None:
        """End it, undoing whatever was written. Does nothing where it has ended already."""
        ...


class Session(Snapshot, Protocol):
    """One open transaction: what it writes nobody else sees until `commit`, and it reads one state of the store."""

    def commit(self) -> None:
        """Make everything permanent, and end the session. After an error nothing of it is there."""
        ...

    def savepoint(self) -> int:
        """Mark a point to roll back to; points nest."""
        ...

    def release(self, savepoint: int) -> None:
        """Forget a point, and those made after it; what was written since stays part of the transaction."""
        ...

    def rollback_to(self, savepoint: int) -> None:
        """Undo everything since that point, and forget it and those made after it."""
        ...


class Engine(Protocol):
    """A place that keeps rows.

    `reads_at_once`: the primitives that read a few rows by their keys take microseconds, and inside a `Hurry` raise
    StorageBusyError where they would have to wait. An event loop's own thread may call them then.

    `has_write_lock`: a transaction that writes keeps every other one, and every write, waiting until it ends. Where it
    does not, tasks of an event loop have theirs beside each other, each in a thread of its own.

    `clock` gives the store's time in seconds since 1970: the one that was given, or else this machine's, or a server's.

    """

    backend: str
    reads_at_once: bool
    has_write_lock: bool
    clock: Callable[[], float]

    @property
    def share_at_once(self) -> Callable[[Sequence[Member]], bool] | None:
        """As `share`, for a few members, by an event loop's own thread inside a hurry; None where nothing is done so.

        It does what needs to wait neither for anybody nor for a disk. Members that are not done afterwards are as they
        were, and for `share`. True: that should be called anyhow, for upkeep that takes longer.
        """
        ...

    @property
    def auto(self) -> Primitives:
        """The primitives with each call a transaction of its own, for any thread."""
        ...

    def begin(
        self, *, read_only: bool = False, isolation: Isolation | None = None, durable: bool = False, wait: float | None
    ) -> Session:
        """Open a transaction, which reads the state of this moment.

        One that writes either holds the write lock from here on, or any call on it may raise TransactionConflictError,
        which has ended it, where another one came between. `wait` bounds the wait for the lock, or for a connection, in
        seconds (None: the configured `busy_timeout`), then StorageBusyError.
        `durable` makes its commit survive a power cut. `isolation` is the least isolation wanted; an engine may give
        more.
        """
        ...

    def share(self, members: Sequence[Member], wait: float | None = None) -> None:
        """Run each member as if in a transaction of its own, in order, with as few commits as can be.

        Returns when all of them are committed or have failed, each with its own result or error. One that fails leaves
        nothing behind and harms no other.
        """
        ...

    def snapshot(self) -> Snapshot:
        """A state for a scan to read from, outside the limit on ordinary readers."""
        ...

    def holds_expiring(self) -> bool:
        """Whether some row had an expiry when the engine was opened."""
        ...

    def status(self) -> EngineStatus:
        """What the engine knows about itself, without a visit to every row."""
        ...

    def check(self, findings: Findings, now: int) -> None:
        """Look at every row by the rules, and at the engine's own structures, in one state; tell what is wrong."""
        ...

    def backup(self, path: str, *, overwrite: bool, progress: Progress | None) -> None:
        """Write a SQLite file of one state of the store, and give it its name once it is known to be good."""
        ...

    def restore(self, path: str, *, progress: Progress | None) -> None:
        """Replace everything by what such a file holds, as a whole or not at all."""
        ...

    def optimize(self) -> None:
        """Whatever upkeep the engine's files want."""
        ...

    def migrate(self, to: int | None) -> None:
        """Bring the schema to a version, None meaning the newest."""
        ...

    def close(self) -> None:
        """Release everything. A second close does nothing."""
        ...


class EngineStatus(NamedTuple):
    """An engine's part of a status."""

    target: str
    schema_version: int
    size_bytes: int
    details: dict[str, Any]
