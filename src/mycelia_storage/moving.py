"""`copy` and `catch_up`: everything of one store in another, of whichever engine, with versions, times and expiry.

Called by users and by the command line. How far a copy came is not remembered: where one stands is found by comparing
keys and versions, so that one that was killed, a finished one, and one whose source has changed since are the same
case. A version is never used twice for a key, so two rows of a key and a version are the same row.

Whether the target is a copy of the source at all, and what was written to it by others, is decided in `lineage.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from concurrent.futures import Future
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Self, TypeVar

from mycelia_storage.arguments import check_chosen, check_flag, check_progress
from mycelia_storage.deletions import NAMESPACES_KEPT, Ranges, cutter, recall, remember, surplus, suspicious
from mycelia_storage.entries import CopyProgress, CopyReport
from mycelia_storage.errors import (
    CopyMismatchError,
    CopyTargetError,
    InvalidValueError,
    NamespaceNotFoundError,
)
from mycelia_storage.keys import DEFAULT_NAMESPACE
from mycelia_storage.lineage import Adopted, Wanted, adopted, lineage_of, named, refuse_same, written_meanwhile
from mycelia_storage.lockstep import (
    EVERYTHING,
    ROWS_AT_ONCE,
    Found,
    at_once,
    compare,
    differences,
    pieces,
    read,
    versions_of,
    walk,
)
from mycelia_storage.placing import Placing
from mycelia_storage.storage import Storage, check_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mycelia_storage.engines.engine import IndexRow, Newer, Outline, Primitives, Row, Tally
    from mycelia_storage.entries import CopyStep
    from mycelia_storage.lockstep import Difference

R = TypeVar("R")

# Where more has changed, everything is gone through in key order instead.
MOST_NEWER: Final = 50_000
# A transaction waits so long for what the source is asked meanwhile; a server may end one that does nothing.
_PATIENCE: Final = 5.0
# A transaction that was open when the source was read had begun no earlier than so many microseconds before.
_OVERLAP: Final = 1_000_000


def copy(
    source: Storage,
    target: Storage,
    *,
    namespaces: Iterable[str] | None = None,
    verify: bool = True,
    resume: bool = True,
    progress: Callable[[CopyProgress], object] | None = None,
) -> CopyReport:
    """Make `target` hold what `source` holds now: values, metadata, versions, times, expiry, namespaces and indexes.

    The source is only read, in one state, while others go on to write to it. The target has to be empty, or an earlier
    copy of this source, whole or not, to which nothing else was written: then only what differs is copied, and what is
    gone from the source is removed. So a call that failed, was cancelled or killed goes on where it was when it is made
    again; with `resume=False` the target has to be empty. `namespaces` chooses some; None means all. What has expired
    stays behind. With `verify` every copied row is read back and compared, text by text, before this returns; without,
    their keys and versions are. `progress` is called again and again with a `CopyProgress`; what it raises cancels.

    When this returns, everything is in the target and survives a power cut. When it raises, what was copied until then
    is there, and the source is as it was. Raises CopyTargetError, before anything is written, for a target that is
    neither empty nor a copy of this source, and later on for one that is written to meanwhile, where that would be
    lost; CopyMismatchError naming the keys where the target is not the same in the
    end; ConfigError where both are the same store; NamespaceNotFoundError; and what the target raises for an entry that
    it cannot hold.
    """
    verify, resume = check_flag("verify", verify), check_flag("resume", resume)
    with _Copy(source, target, namespaces, progress, reads_back=False) as running:
        running.look(resume=resume, needs_copy=False)
        running.copy_everything()
        running.remove_namespaces()
        running.finish()
        running.compare_sums()
        if verify:
            running.verify()
        return running.report()


def catch_up(
    source: Storage,
    target: Storage,
    *,
    namespaces: Iterable[str] | None = None,
    progress: Callable[[CopyProgress], object] | None = None,
) -> CopyReport:
    """Bring an earlier copy to the state of its source: what was written, expired or deleted since, and nothing else.

    For the moment of the switch, while nobody writes to the source: it takes about as long as reading the versions of
    everything once. What it writes is read back and compared; of the rest it is known by number and sum of the versions
    that nothing has changed. Where that does not come out, as when the source was restored or its clock set back, it
    goes through all keys and versions, which takes longer. Deletions are found faster by the process, and with the
    `target`, that has copied or caught up before.

    Arguments and errors are those of `copy`; an empty target is a CopyTargetError.
    """
    with _Copy(source, target, namespaces, progress, reads_back=True) as running:
        is_small = running.copy_newer(running.look(resume=True, needs_copy=True))
        running.remove_namespaces()
        if is_small:
            running.copy_deletions()
        # Before the indexes are made: a unique one stands against entries that are not yet as they are in the source.
        if not is_small or not running.has_same_sums_now():
            running.copy_everything()
            running.finish()
            running.compare_sums()
        else:
            running.finish()
        return running.report()


class _NotYetError(Exception):
    """The source takes longer than a transaction on the target may wait."""


class _Copy(Placing):
    """One call: the source in one state, the target, and what was done so far."""

    def __init__(
        self,
        source: Storage,
        target: Storage,
        namespaces: Iterable[str] | None,
        progress: Callable[[CopyProgress], object] | None,
        *,
        reads_back: bool,
    ) -> None:
        for name, store in (("source", source), ("target", target)):
            check_store(name, store)
        check_progress(progress)
        refuse_same(source, target)
        super().__init__(source, target, reads_back=reads_back)
        chosen = check_chosen(namespaces)
        self._chosen = None if chosen is None else tuple(sorted({*chosen}))
        self._progress = progress
        self._started = time.perf_counter()
        # Numbers of keys: of the target in the end of the last call, of the source, of the target now.
        self._remembered: dict[str, Ranges] | None = None
        self._counted: dict[str, Ranges] | None = None
        self._ranges: dict[str, Ranges] | None = None

    def __enter__(self) -> Self:
        self._rows, self._end, self._read_at = self._source._start_scan()
        self._now = self._read_at
        try:
            self._refresh()
            there = {row.name: row for row in named(self._rows().namespaces())}
            missing = sorted(set(self._chosen or ()) - there.keys())
            if missing:
                raise NamespaceNotFoundError(f"the source has no namespace {', '.join(map(repr, missing))}")
            names = self._chosen or there
            self._namespaces = [there[name] for name in sorted(names)]
            self._born = there[DEFAULT_NAMESPACE]
            self._origin = lineage_of(self._rows())
            self._source_indexes = self._rows().indexes()
            self._kept = lineage_of(self._there())
            remembered = recall(self._target, self._kept, self._chosen)
            self._remembered = remembered if len(self._namespaces) <= NAMESPACES_KEPT else None
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _tell(self, step: CopyStep, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(CopyProgress(step, done, total))

    # ---- what the target is

    def look(self, *, resume: bool, needs_copy: bool) -> list[Newer] | None:
        """Make the target known as a copy of this source, or raise CopyTargetError where it may not be written to.

        Both sides are added up at the same time. Gives what is newer than in the target, as far as `copy_newer` takes
        it, where that needs to be a copy; None where it is not known since when.
        """
        before = self._kept.floor or 0
        sums: Future[Tally] = Future()
        adopt = partial(self.adopt, sums, resume=resume, needs_copy=needs_copy)

        def adopt_soon() -> Adopted | None:
            with contextlib.suppress(_NotYetError):
                return adopt()
            return None

        newer, taken = at_once(partial(self._look_at_source, sums, is_copied=needs_copy), adopt_soon)
        held, self._kept, self._default = taken or adopt()
        self._floor = self._kept.floor or 0
        self._copied = before  # whatever is there has no greater version
        self._is_empty = not held.entries
        if self._chosen is None:
            self._has = held[:2]
        return newer

    def _look_at_source(self, sums: Future[Tally], *, is_copied: bool) -> list[Newer] | None:
        newer: list[Newer] | None = None
        try:
            rows, since = self._rows(), self._kept.since
            if is_copied and since is not None and self._kept.covers(self._chosen):
                self._sums, newer = rows.tally_and_newer(self._chosen, since, self._now, limit=MOST_NEWER + 1)
            else:
                self._sums = rows.tally(self._chosen, self._now)
            sums.set_result(self._sums)
        finally:
            sums.cancel()  # where there are none, nobody has to wait for them
        if self._remembered is not None and newer is not None and len(newer) <= MOST_NEWER:
            self._counted = {  # while the target adds up
                namespace.name: self._before(namespace.name).counted(self._rows, namespace.name, self._now)
                for namespace in self._namespaces
            }
            self._keeps_new = True
        return newer

    def _before(self, name: str) -> Ranges:
        return (self._remembered or {}).get(name) or Ranges()

    def adopt(self, sums: Future[Tally], *, resume: bool, needs_copy: bool) -> Adopted:
        """Make it known as a copy of this source, before anything else of it is there: all in one transaction."""
        all_indexes = frozenset(index.name for index in self._source_indexes)
        indexes = frozenset(index.name for index in self._wanted_indexes())
        has_metadata = self._chosen is None or DEFAULT_NAMESPACE in self._chosen
        wanted = Wanted(self._origin, self._born, has_metadata, all_indexes, indexes)

        def step(rows: Primitives, now: int) -> Adopted:
            held = rows.tally(None, self._now)
            if lineage_of(rows) != self._kept:
                raise CopyTargetError("the target was made the copy of another store, or restored, just now")
            try:
                ours = sums.result(timeout=_PATIENCE)
            except TimeoutError:
                raise _NotYetError from None
            if needs_copy and ours.entries and not held.entries:
                raise CopyTargetError("the target is empty, and no copy yet: a copy comes first")
            if held.entries and not resume:
                raise CopyTargetError(f"the target holds {held.entries:,} entries, and resume=False needs an empty one")
            return adopted(rows, now, held, ours, wanted)

        return self._change(step)

    def _makes_index(self, name: str) -> bool:
        return name in {index.name for index in self._wanted_indexes()}

    def _wanted_indexes(self) -> list[IndexRow]:
        """Those of the source that are copied."""
        names = {namespace.name for namespace in self._namespaces}
        return [index for index in self._source_indexes if index.namespace is None or index.namespace in names]

    # ---- copying

    def copy_everything(self) -> None:
        """Go through all keys in order, and write what the target does not have in the same version."""
        self._tell("copying", 0, self._sums.entries)
        self._copy_namespaces()
        self._has, self._counted, self._keeps_new = None, None, False  # it is added up in the end
        self._ranges = {} if len(self._namespaces) <= NAMESPACES_KEPT else None
        passed = 0
        for namespace in self._namespaces:
            name = namespace.name
            is_new = self._is_empty or not self._there().outline(name, EVERYTHING, self._now, limit=1)
            ranges = Ranges()
            if self._ranges is not None:
                self._ranges[name] = ranges
            for difference in differences(self._rows, None if is_new else self._there, name, self._now):
                self._apply(name, difference)
                ranges.add([key for key, _, _ in difference.ours])
                passed += len(difference.ours)
                self._tell("copying", passed, self._sums.entries)
        self._is_empty = False

    def copy_newer(self, found: Sequence[Newer] | None) -> bool:
        """Write what `look` has found. False: that is a lot, or not known, and nothing was written."""
        if found is None or len(found) > MOST_NEWER:
            return False
        self._tell("copying", 0, self._sums.entries)
        self._copy_namespaces()
        names = {namespace.name for namespace in self._namespaces}
        for name, group in itertools.groupby(found, key=itemgetter(0)):
            if name in names:
                self._write_pieces(name, self._missing(name, [row[1:] for row in group]), [])
        self._tell("copying", self._sums.entries, self._sums.entries)
        return True

    def _missing(self, name: str, newer: list[Outline]) -> list[Outline]:
        """Without what was there before: what was newer then may have come with a greater floor, or in the overlap."""
        known = [key for key, version, _ in newer if version <= self._copied]
        there = {key: version for key, version, _ in versions_of(self._there(), name, known)}
        return [row for row in newer if there.get(row[0]) != row[1]]

    def copy_deletions(self) -> None:
        """Remove what the source no longer has: everything newer is there, so that it shows in the numbers of keys.

        1. By what is remembered of the target: in each range, whatever the sums say.
        2. By counting both sides, where the sums differ: nothing is remembered, or somebody else was there.
        """
        self._ranges = self._counted
        for name, ranges in (self._counted or {}).items():
            found = self._before(name).with_more(self._new.get(name, ())).unlike(ranges)
            self._remove(name, surplus(self._rows, self._there, name, found, self._now))
        if self.has_same_sums():
            return
        self._ranges = dict(self._counted or {})
        for namespace in self._namespaces:
            name = namespace.name
            is_only = len(self._namespaces) == 1
            if is_only or self._rows().count(name, self._now) != self._there().count(name, self._now):
                self._remove_surplus(name, self._ranges)
        if len(self._ranges) != len(self._namespaces):
            self._ranges = None

    def _remove_surplus(self, name: str, counted: dict[str, Ranges]) -> None:
        source, target = self._source._engine, self._target._engine
        by = cutter(is_source_far=not source.reads_at_once, is_target_far=not target.reads_at_once)
        counted[name] = Ranges()
        found = suspicious(self._rows, self._there, name, self._now, by, counted[name])
        self._remove(name, surplus(self._rows, self._there, name, found, self._now))

    def _remove(self, namespace: str, found: Iterator[list[str]]) -> None:
        """A transaction waits for the disk, so that many keys share one."""
        gone: list[str] = []
        for keys in found:
            gone += keys
            if len(gone) >= ROWS_AT_ONCE:
                self._write(namespace, (), gone)
                gone = []
        if gone:
            self._write(namespace, (), gone)

    def _apply(self, namespace: str, difference: Difference) -> None:
        is_whole = len(difference.stale) == len(difference.ours)
        self._write_pieces(namespace, difference.stale, difference.gone, is_whole=is_whole)

    def _write_pieces(
        self, namespace: str, stale: Sequence[Outline], gone: Sequence[str], *, is_whole: bool = False
    ) -> None:
        if gone and not stale:
            self._write(namespace, [], gone)
        for piece in pieces(stale):
            rows = read(self._rows(), namespace, piece, self._now, is_whole=is_whole)
            self._check_sizes(namespace, rows, piece)
            self._write(namespace, rows, gone)
            gone = ()

    def _check_sizes(self, namespace: str, rows: Sequence[Row], piece: Sequence[Outline]) -> None:
        most = self._target._max_value_bytes
        if all(size <= most for _, _, size in piece):
            return
        for row in rows:
            size = max(len(row.value.encode()), len((row.metadata or "").encode()))
            if size > most:
                message = f"{row.key!r} in namespace {namespace!r} has {size:,} bytes"
                raise InvalidValueError(f"{message}, and max_value_bytes of the target is {most:,}")

    def _copy_namespaces(self) -> None:
        """Registrations, with their metadata and times."""
        there = {row.name: row for row in named(self._there().namespaces())}
        changed = [row for row in self._namespaces if there.get(row.name) != row]

        def step(target: Primitives, _: int) -> None:
            for row in changed:
                if row.created_at is not None:
                    target.place_namespace(row)
                elif row.name in there:
                    target.unregister(row.name)

        if changed:
            self._change(step)

    # ---- the end of it

    def remove_namespaces(self) -> None:
        """Those that are gone, with all that they hold."""
        if self._chosen is not None:
            return
        names = {namespace.name for namespace in self._namespaces}
        for row in named(self._there().namespaces()):
            if row.name not in names:
                self._remove_namespace(row.name)

    def finish(self) -> None:
        """Indexes, and a commit that survives a power cut with all before it."""
        self._make_indexes()
        is_durable = self._target._options.synchronous != "OFF"
        since = min(max(self._sums.greatest, self._sums.floor), self._read_at - _OVERLAP)
        whole = self._kept.up_to(since, self._chosen)

        def step(target: Primitives, _: int) -> bool:
            target.place_namespace(self._default)  # only a commit that writes something is waited for by the disk
            is_ours = lineage_of(target) == self._kept  # nobody else has brought it further since
            if is_ours:
                target.place_namespace(whole.row())
            return is_ours

        if self._change(step, durable=is_durable):
            self._kept = whole

    def _remove_namespace(self, name: str) -> None:
        def step(target: Primitives, now: int) -> int:
            for outlines in walk(lambda: target, name, now):
                for key, version, _ in outlines:
                    if version > self._floor:
                        raise written_meanwhile(name, key)
            removed = target.clear(name, now)
            target.unregister(name)
            for index in target.indexes():
                if index.namespace == name:
                    target.drop_index(index.name)
            return removed

        self._deleted += self._change(step)
        self._has = None

    def _make_indexes(self) -> None:
        """Those of the source that are not there. After the entries, since each index would cost every write."""
        self._indexes = self._wanted_indexes()
        there = {index.name: index for index in self._there().indexes()}
        missing = [index for index in self._indexes if _definition(index) != _definition(there.get(index.name))]
        for done, index in enumerate(missing):
            self._tell("indexing", done, len(missing))

            def step(target: Primitives, now: int, index: IndexRow = index) -> None:
                target.drop_index(index.name)
                target.create_index(index, max(now, self._now))

            self._change(step)
        if missing:
            self._tell("indexing", len(missing), len(missing))

    def has_same_sums(self) -> bool:
        """Whether both sides have the same number of entries, and the same sum of their versions.

        Of the target that is reckoned from what was there, and what each transaction has replaced: to know what is left
        to do.
        """
        if self._has is None:
            self._has = self._there().tally(self._chosen, self._now)[:2]
        return self._has == self._sums[:2]

    def has_same_sums_now(self) -> bool:
        """The same in the end, when the target is added up again; something may have expired meanwhile, and be gone."""
        if self._written or self._deleted:
            self._has = None
        if self.has_same_sums():
            return True
        with self._target_state() as there:
            ours, theirs = self._rows().tally(self._chosen, self._now), there().tally(self._chosen, self._now)
            return ours[:2] == theirs[:2]

    def compare_sums(self) -> None:
        """Raise CopyMismatchError where that is not so, naming keys."""
        if self.has_same_sums_now():
            return
        found = Found()
        with self._target_state() as there:
            for namespace in self._namespaces:
                for difference in differences(self._rows, there, namespace.name, self._now):
                    found.add(namespace.name, [*(key for key, _, _ in difference.stale), *difference.gone])
        found.raise_if_any()

    def verify(self) -> None:
        """Read everything again, on both sides, and compare. Raises CopyMismatchError naming keys."""
        found = Found()
        self._verified = 0
        with self._target_state() as there:
            self._tell("verifying", 0, self._sums.entries)
            for namespace in self._namespaces:
                if there().namespace(namespace.name) != namespace:
                    raise CopyMismatchError(f"the namespace {namespace.name!r} is not registered as in the source")
                for compared in compare(self._rows, there, namespace.name, self._now):
                    found.add(namespace.name, compared.keys)
                    self._verified += compared.entries
                    self._tell("verifying", self._verified, max(self._verified, self._sums.entries))
            made = {index.name: _definition(index) for index in there().indexes()}
            for index in self._indexes:
                if made.get(index.name) != _definition(index):
                    raise CopyMismatchError(f"the index {index.name!r} is not as in the source")
        found.raise_if_any()

    @contextlib.contextmanager
    def _target_state(self) -> Iterator[Callable[[], Primitives]]:
        """The target in one state, and the time after that began."""
        there, end, _ = self._target._start_scan()
        try:
            self._refresh()
            yield there
        finally:
            end()

    def report(self) -> CopyReport:
        """What came of it, which is remembered for the next time."""
        remember(self._target, self._kept, self._chosen, self._ranges)
        return CopyReport(
            entries=self._sums.entries,
            namespaces=len(self._namespaces),
            indexes=len(self._indexes),
            written=self._written,
            deleted=self._deleted,
            verified=self._verified,
            seconds=time.perf_counter() - self._started,
        )


def _definition(index: IndexRow | None) -> tuple[object, ...] | None:
    return None if index is None else (index.namespace, index.fields, index.is_unique)
