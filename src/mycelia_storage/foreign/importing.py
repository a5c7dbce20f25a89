"""`import_from`: the entries of another library's files, in a store.

Called by users, and by the command line. Each format has a file of its own that gives entries, one after the other, and
what is in the way of one; here they are held against the rules and against what the store has, and written batch by
batch.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from mycelia_storage.arguments import check_one_of, check_progress, check_whole
from mycelia_storage.batches import batch_error
from mycelia_storage.codec import encode, encode_object
from mycelia_storage.entries import EPOCH, ImportProblem, ImportReport, LoadProblem, LoadReport, Put
from mycelia_storage.errors import (
    ConfigError,
    InvalidValueError,
    KeyExistsError,
    StorageError,
    UniqueIndexError,
)
from mycelia_storage.foreign import diskcache, shelve, sqlitedict, tinydb
from mycelia_storage.foreign.found import Found, Refused
from mycelia_storage.keys import DEFAULT_NAMESPACE, check_key, check_namespace
from mycelia_storage.options import file_path
from mycelia_storage.storage import check_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from mycelia_storage.entries import Entry
    from mycelia_storage.foreign.found import Item, Source
    from mycelia_storage.storage import Storage
    from mycelia_storage.transaction import Transaction

Kind: TypeAlias = Literal["sqlitedict", "diskcache", "shelve", "tinydb"]
Existing: TypeAlias = Literal["refuse", "overwrite", "skip"]

_READERS: Final = {
    "sqlitedict": sqlitedict.opened,
    "diskcache": diskcache.opened,
    "shelve": shelve.opened,
    "tinydb": tinydb.opened,
}
KINDS: Final = tuple(_READERS)
EXISTING: Final = ("refuse", "overwrite", "skip")

_KEPT_PROBLEMS: Final = 100
# Characters of JSON: large documents fill a batch before their number does.
_MAX_BATCH: Final = 16 * 1024 * 1024
_MILLISECOND: Final = timedelta(milliseconds=1)


def import_from(
    store: Storage,
    kind: Kind,
    path: str | PathLike[str],
    *,
    namespace: str | None = None,
    table: str | None = None,
    existing: Existing = "refuse",
    on_error: Literal["stop", "skip"] = "stop",
    dry_run: bool = False,
    batch_size: int = 1000,
    progress: Callable[[ImportReport], object] | None = None,
) -> ImportReport:
    """Write the entries of another library's files to a store, in bounded memory, a transaction for each batch.

    `kind` is "sqlitedict", "diskcache", "shelve" or "tinydb", and `path` the file or directory that this library was
    given. It is only read; none of the libraries is needed, and nothing in the file is run or unpickled: plain data is
    taken over, and everything else is a bad entry. So is one whose key the store has with another value (unless
    `existing` is "overwrite" or "skip"); one that the store has already, just the same, is left as it is. Of two
    entries of the source that would have one key here, one is a bad entry, whatever `existing` says.

    `table` chooses one of several (sqlitedict, TinyDB). `namespace` is where everything goes, "default" unless said;
    of TinyDB each table goes to the namespace of its name, unless one of them is chosen. `dry_run=True` writes nothing.

    A bad entry ends the import with BatchError and keeps nothing of its batch (earlier batches stay; `.report` counts
    them), or with `on_error="skip"` is left out and reported. `progress` is called after each batch, and before the
    import ends with a BatchError.

    Raises ConfigError where there is no such file or table, NotAStorageFileError for a file of another kind,
    StorageCorruptError for a damaged one, StorageBusyError for one that is being written to, StorageIOError. What was
    written until then stays, and a second import goes on from there.
    """
    check_store("store", store)
    check_one_of("kind", kind, KINDS)
    check_one_of("existing", existing, EXISTING)
    check_one_of("on_error", on_error, ("stop", "skip"))
    check_whole("batch_size", batch_size, least=1)
    check_progress(progress)
    _check_place(kind, namespace, table)
    limit = store._max_value_bytes
    with _READERS[kind](_place(path), table, limit, store._options.busy_timeout) as source:
        rules = _Rules(kind, namespace or DEFAULT_NAMESPACE, existing, on_error == "stop", dry_run, batch_size, limit)
        return _Run(store, source, rules, progress).run()


def require_source(kind: Kind, path: str | PathLike[str], namespace: str | None, table: str | None) -> None:
    """Raise what `import_from` would raise where it cannot even begin: for who makes a store first."""
    _check_place(kind, namespace, table)
    with _READERS[kind](_place(path), table, 0, 0.0):
        pass


def _check_place(kind: Kind, namespace: str | None, table: str | None) -> None:
    if namespace is None:
        return
    check_namespace(namespace)
    if kind == "tinydb" and table is None:
        raise ConfigError(
            "namespace: each table of TinyDB goes to the namespace of its name: choose one of them as the table, too"
            f" ({tinydb.DEFAULT_TABLE!r} is the one that has no name)"
        )


def _place(path: str | PathLike[str]) -> str:
    return os.path.realpath(file_path("path", path))


class _Rules(NamedTuple):
    kind: str
    namespace: str
    existing: str
    stops: bool
    is_dry: bool
    batch_size: int
    max_bytes: int


class _Ready(NamedTuple):
    """An entry that can be stored: its place in the source, from 0, and the texts by which it is compared."""

    place: int
    found: Found
    text: str
    metadata: str | None


class _Plan(NamedTuple):
    """What is to happen to the entries of a batch."""

    puts: list[Put]
    replaced: int
    unchanged: int
    skipped: int
    expired: int
    refused: list[_Ready]


class _Run:
    """One import: what is waiting to be written, and what has been counted so far."""

    def __init__(
        self, store: Storage, source: Source, rules: _Rules, progress: Callable[[ImportReport], object] | None
    ) -> None:
        self._store = store
        self._source = source
        self._rules = rules
        self._progress = progress
        self._namespace = rules.namespace  # of the batch
        self._batch: dict[str, _Ready] = {}
        self._size = 0
        self._read = self._written = self._replaced = 0
        self._unchanged = self._skipped = self._expired = self._failed = 0
        self._namespaces: dict[str, None] = {}
        self._met: set[tuple[str, str]] = set()  # where the source may have a key twice
        self._problems: list[ImportProblem] = []
        self._fresh: list[ImportProblem] = []

    def run(self) -> ImportReport:
        """Draw everything and write it."""
        for item in self._source.items:
            self._read += 1
            self._add(item)
            if (
                len(self._batch) >= self._rules.batch_size
                or self._size >= _MAX_BATCH
                or len(self._fresh) >= _KEPT_PROBLEMS
            ):
                self._flush()
        self._flush()
        return self._report(self._problems)

    def _report(self, problems: list[ImportProblem]) -> ImportReport:
        return ImportReport(
            kind=self._rules.kind,
            total=self._source.total,
            read=self._read,
            written=self._written,
            replaced=self._replaced,
            unchanged=self._unchanged,
            skipped=self._skipped,
            expired=self._expired,
            failed=self._failed,
            namespaces=tuple(self._namespaces),
            problems=tuple(problems),
            notes=tuple(self._source.notes),
            dry_run=self._rules.is_dry,
        )

    def _add(self, item: Item) -> None:
        namespace = self._rules.namespace if item.namespace is None else item.namespace
        if isinstance(item, Refused):
            self._refuse(self._read - 1, namespace, item.key, InvalidValueError(item.reason))
            return
        try:
            check_namespace(namespace)
            check_key(item.key)
            text = encode(item.value, self._rules.max_bytes)
            metadata = None
            if item.metadata is not None:
                metadata = encode_object(item.metadata, self._rules.max_bytes, what="metadata")
        except StorageError as error:
            self._refuse(self._read - 1, namespace, item.key, error)
            return
        # Not even `existing="overwrite"` lets one entry of the source take the place of another.
        if self._source.twins:
            if (namespace, item.key) in self._met:
                self._refuse(self._read - 1, namespace, item.key, KeyExistsError(self._source.twins))
                return
            self._met.add((namespace, item.key))
        # The same key once more is held against what the first one has written.
        if namespace != self._namespace or item.key in self._batch:
            self._flush()
        self._namespace = namespace
        self._batch[item.key] = _Ready(self._read - 1, item, text, metadata)
        self._size += len(text)

    def _refuse(self, index: int, namespace: str, key: str, error: StorageError) -> None:
        self._failed += 1
        problem = ImportProblem(namespace, key, str(error))
        if len(self._problems) < _KEPT_PROBLEMS:
            self._problems.append(problem)
        self._fresh.append(problem)
        if self._rules.stops:
            if self._progress is not None:
                self._progress(self._report(self._fresh))
            would = "would be" if self._rules.is_dry else "are"
            stopped = batch_error(
                {key: error}, f"stopped at entry {index + 1}; {self._written:,} before it {would} stored"
            )
            stopped.report = LoadReport(self._written, self._failed, (LoadProblem(index, key, error),))
            raise stopped from error

    # ---- a batch

    def _flush(self) -> None:
        batch, self._batch, self._size = list(self._batch.values()), {}, 0
        if batch:
            try:
                self._settle(self._write(batch))
            except UniqueIndexError as error:
                if self._rules.stops:
                    index = next((ready.place for ready in batch if ready.found.key == error.key), batch[0].place)
                    self._refuse(index, self._namespace, error.key, error)
                self._write_one_by_one(batch)
        if self._progress is not None and (batch or self._fresh):
            self._progress(self._report(self._fresh))
        self._fresh = []

    def _write_one_by_one(self, batch: list[_Ready]) -> None:
        """A batch in which some value is in a unique index already: all that can be is written."""
        for ready in batch:
            try:
                self._settle(self._write([ready]))
            except UniqueIndexError as error:
                self._refuse(ready.place, self._namespace, ready.found.key, error)

    def _write(self, batch: list[_Ready]) -> _Plan:
        if self._rules.is_dry:
            with self._store.transaction(read_only=True) as tx:
                return self._plan(tx, batch)

        def step(tx: Transaction) -> _Plan:
            plan = self._plan(tx, batch)
            if plan.puts and not (plan.refused and self._rules.stops):
                tx.set_many(plan.puts, namespace=self._namespace)
            return plan

        return self._store.run_transaction(step)

    def _plan(self, tx: Transaction, batch: list[_Ready]) -> _Plan:
        """Compare with what is there. Both see one time, that of the transaction, so that no expiry is off."""
        now_ms = tx._now() // 1000
        there = tx.get_entries([ready.found.key for ready in batch], namespace=self._namespace)
        puts: list[Put] = []
        refused: list[_Ready] = []
        replaced = unchanged = skipped = expired = 0
        for ready in batch:
            _, value, _, metadata, expires_at = ready.found
            if expires_at is not None and expires_at <= now_ms:
                expired += 1
                continue
            entry = there.get(ready.found.key)
            if entry is not None:
                if self._is_same(ready, entry):
                    unchanged += 1
                    continue
                if self._rules.existing == "skip":
                    skipped += 1
                    continue
                if self._rules.existing == "refuse":
                    refused.append(ready)
                    continue
                replaced += 1
            ttl = None if expires_at is None else (expires_at - now_ms) * _MILLISECOND
            puts.append(Put(ready.found.key, value, metadata, ttl))
        return _Plan(puts, replaced, unchanged, skipped, expired, refused)

    def _is_same(self, ready: _Ready, entry: Entry[object]) -> bool:
        expires_at = None if entry.expires_at is None else (entry.expires_at - EPOCH) // _MILLISECOND
        return (
            ready.found.expires_at == expires_at
            and ready.text == encode(entry.value, self._rules.max_bytes)
            and ready.metadata in (None, encode_object(entry.metadata, self._rules.max_bytes, what="metadata"))
        )

    def _settle(self, plan: _Plan) -> None:
        """Count what has happened to a batch."""
        if not (plan.refused and self._rules.stops):
            self._written += len(plan.puts)
            self._replaced += plan.replaced
            self._unchanged += plan.unchanged
            self._skipped += plan.skipped
            self._expired += plan.expired
            self._namespaces[self._namespace] = None
        for ready in plan.refused:
            error = KeyExistsError(
                f"the store has another entry with the key {ready.found.key!r} in namespace {self._namespace!r}"
            )
            self._refuse(ready.place, self._namespace, ready.found.key, error)
