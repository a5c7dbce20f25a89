"""The plain, frozen values that verbs take and give: entries, items to put, reports.

Called by the verbs and by everything that presents their answers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypeVar, final

import msgspec

from mycelia_storage.codec import decode, decode_object
from mycelia_storage.errors import StorageCorruptError, StorageError

if TYPE_CHECKING:
    from mycelia_storage.engines.engine import Row

T = TypeVar("T")

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@final
class Entry(msgspec.Struct, Generic[T], frozen=True):
    """One document as it is stored: its value and all that is known about it.

    `version` grows with every write of the entry and is what `if_version` compares. Times are aware UTC datetimes
    of millisecond precision; `expires_at` is None for an entry that stays.
    """

    namespace: str
    key: str
    value: T
    metadata: dict[str, Any]
    version: int
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None


@final
class Put(msgspec.Struct, frozen=True):
    """An item of `set_many`, `add_many` or `load` with metadata and a time to live of its own.

    What is None here is taken from the call.
    """

    key: str
    value: object
    metadata: Mapping[str, object] | None = None
    ttl: float | timedelta | None = None


@final
class LoadProblem(msgspec.Struct, frozen=True):
    """A bad item of a `load`: its place in the stream (from 0), its key as far as it has one, and the reason."""

    index: int
    key: object
    error: StorageError


@final
class LoadReport(msgspec.Struct, frozen=True):
    """What a `load` did: items stored, items refused, and the first hundred refusals.

    As an argument of `progress` it tells the same of the load so far; `problems` then holds those since the
    previous call, so that each can be reported in time however many there are.
    """

    loaded: int
    failed: int
    problems: tuple[LoadProblem, ...]


@final
class ImportProblem(msgspec.Struct, frozen=True):
    """An entry that `import_from` did not take over: its key, or what is known of it, and the reason."""

    namespace: str
    key: str
    reason: str


@final
class ImportReport(msgspec.Struct, frozen=True):
    """What an `import_from` did, or with `dry_run` would do.

    Of the entries `read` each counts once more: `written`; `unchanged`, since the store has the very same; `skipped`,
    since it has another one of that key and `existing="skip"` was given; `expired`; or `failed`. `replaced` of the
    written ones have taken the place of another. `total` is how many the source has, None where it does not tell.
    `problems` are the first hundred of the failed ones; `notes` tell what else there is to know of the source.

    As an argument of `progress` it tells the same of the import so far; `problems` are then those since the last call.
    """

    kind: str
    total: int | None
    read: int
    written: int
    replaced: int
    unchanged: int
    skipped: int
    expired: int
    failed: int
    namespaces: tuple[str, ...]
    problems: tuple[ImportProblem, ...]
    notes: tuple[str, ...]
    dry_run: bool


@final
class NamespaceInfo(msgspec.Struct, frozen=True):
    """A namespace: how many live entries it holds, its own metadata, and when it was registered."""

    name: str
    entries: int
    metadata: dict[str, Any]
    created_at: datetime | None


@final
class IndexInfo(msgspec.Struct, frozen=True):
    """A created index. `fields` are paths, with a "-" before those that descend; `namespace` None means all of them."""

    name: str
    namespace: str | None
    fields: tuple[str, ...]
    unique: bool
    created_at: datetime


@final
class Plan(msgspec.Struct, frozen=True):
    """How a query would be run.

    `indexes` are the created indexes that serve it; `full_scan` says that every entry of the namespace is visited;
    `entries` is how many it holds; `sql` is what the engine runs, "" where it runs none. `advice` is a create_index
    call that was found to help (several with "; " between them, where each side of an `or` needs one), None where
    none is needed or known.
    """

    uses_index: bool
    indexes: tuple[str, ...]
    full_scan: bool
    entries: int
    sql: str
    advice: str | None


@final
class Status(msgspec.Struct, frozen=True):
    """The state of a store, cheap enough for a health page.

    `entries` counts live entries; `size_bytes` is what the store occupies on disk (0 in memory); `details` holds
    what only this engine can tell.
    """

    backend: str
    target: str
    schema_version: int
    entries: int
    namespaces: int
    size_bytes: int
    details: dict[str, Any]


@final
class CheckReport(msgspec.Struct, frozen=True):
    """A check that found nothing wrong, and how much it looked at. (One that does raises StorageCorruptError.)

    `entries` counts live ones, `indexes` the created ones.
    """

    backend: str
    entries: int
    namespaces: int
    indexes: int
    seconds: float


# What a backup or a restore does just now: copying a file's pages, checking the copy, writing it into the store. And
# what `copy` does: copying entries, making indexes, comparing both sides.
CopyStep: TypeAlias = Literal["copying", "checking", "restoring", "indexing", "verifying"]


@final
class CopyProgress(msgspec.Struct, frozen=True):
    """How far a backup, a restore or a copy into another store is: `done` of `total` parts of a `step`.

    The steps are "copying", "checking" and, of a restore, "restoring". The parts are the file's pages; while a store in
    memory is copied, its entries. A check does not tell how far it is: its `done` stays 0. Of `copy` and `catch_up` the
    steps are "copying" and "verifying", in entries, and "indexing", in indexes.
    """

    step: CopyStep
    done: int
    total: int


@final
class CopyReport(msgspec.Struct, frozen=True):
    """What a `copy` or a `catch_up` did.

    `entries` live ones in `namespaces` with `indexes` were in the source, and are in the target. `written` and
    `deleted` count what this call changed there: less than `entries` where much of it was there already. `verified`
    counts the entries that were read back from the target and compared, text by text.
    """

    entries: int
    namespaces: int
    indexes: int
    written: int
    deleted: int
    verified: int
    seconds: float


@final
class LostEntry(msgspec.Struct, frozen=True):
    """An entry that `salvage` could not copy, and why."""

    namespace: str
    key: str
    reason: str


@final
class SalvageReport(msgspec.Struct, frozen=True):
    """What a `salvage` copied, and what it could not.

    `entries`, `namespaces` and `indexes` are in the new file. `lost` counts the entries of which the file still has a
    key, and that are not there; `lost_entries` names the first thousand of them. (What is left of a damaged page can
    look like a key that never was one, and is named too.) `lost_indexes` says which created
    indexes could not be made again. `damaged_pages` have no more than a part of what they had: where they held entries
    and the key index alike, entries are lost of which nothing is known. `problems` describes the first fifty of
    `problem_count` damages.
    """

    entries: int
    namespaces: int
    indexes: int
    lost: int
    lost_entries: tuple[LostEntry, ...]
    lost_indexes: tuple[str, ...]
    damaged_pages: int
    problem_count: int
    problems: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether nothing was found to be damaged, so that everything is there."""
        return not (self.lost or self.lost_indexes or self.problem_count)


def entry_of(namespace: str, row: Row) -> Entry[Any]:
    """The entry that a row holds. Raises StorageCorruptError where a part of it is not what that part has to be."""
    key, version, created_at, updated_at, expires_at, metadata, value = row
    if type(key) is not str or type(version) is not int:
        raise damaged(namespace, key)
    try:
        return Entry(
            namespace,
            key,
            decode(value, namespace, key),
            decode_object(metadata, namespace, key),
            version,
            _to_datetime(created_at),
            _to_datetime(updated_at),
            None if expires_at is None else _to_datetime(expires_at),
        )
    except (TypeError, OverflowError):
        raise damaged(namespace, key) from None


def to_datetime(milliseconds: int) -> datetime:
    """The stored milliseconds since 1970 as an aware datetime. Raises StorageCorruptError."""
    try:
        return _to_datetime(milliseconds)
    except (TypeError, OverflowError):
        raise StorageCorruptError("a stored time is no time in milliseconds: the file is damaged") from None


@functools.lru_cache(maxsize=4096)
def _to_datetime(milliseconds: int) -> datetime:
    # What was written together shares its times.
    return EPOCH + timedelta(milliseconds=milliseconds)


def damaged(namespace: str, key: object) -> StorageCorruptError:
    """The error for a row of which a part is of another type than it was written with, or out of all bounds.

    The tables are STRICT, so no writer can have made it so: somebody changed the file, or a disk did.
    """
    name = repr(key) if isinstance(key, str) else "an entry whose key is no text"
    return StorageCorruptError(f"the stored row of {name} in namespace {namespace!r} is damaged")
