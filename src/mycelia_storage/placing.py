"""The target of a copy: rows placed there and keys removed, in transactions in which nothing that others wrote is lost.

Called by `moving.py`, whose class for a copy or a catch-up inherits it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from mycelia_storage.errors import TransactionConflictError, UniqueIndexError
from mycelia_storage.lineage import written_meanwhile
from mycelia_storage.lockstep import Found, versions_of
from mycelia_storage.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mycelia_storage.engines.engine import Primitives, Row
    from mycelia_storage.storage import Storage

R = TypeVar("R")

_ATTEMPTS: Final = 50
_DEADLINE: Final = 30.0


class _Change(NamedTuple):
    """What a write changes in the sums of the target, and the keys that were not there before."""

    entries: int
    versions: int
    new: list[str]


class Placing:
    """What is written to the target, and what the target holds by that."""

    # What was copied has no greater version: whoever inherits this says so before anything is written.
    _floor: int
    # The time at which both sides are looked at, in microseconds: what had expired by then is not there.
    _now: int

    def __init__(self, source: Storage, target: Storage, *, reads_back: bool) -> None:
        self._source, self._target = source, target
        self._reads_back = reads_back
        self._written = self._deleted = self._verified = 0
        # Number of entries and sum of versions that the target has by all that was read and written; None: not known.
        self._has: tuple[int, int] | None = None
        # Keys that the target did not have before, where they are kept.
        self._keeps_new = False
        self._new: dict[str, list[str]] = {}

    def _makes_index(self, name: str) -> bool:
        """Whether an index of this name is made in the end, so that it may go until then."""
        raise NotImplementedError

    def _refresh(self) -> None:
        """Let the time be now, by either clock: what was removed from a side by then had expired."""
        self._now = max(self._now, self._source._now(), self._target._now())

    def _there(self) -> Primitives:
        """Where the target is read."""
        return self._target._reading()

    def _change(self, step: Callable[[Primitives, int], R], *, durable: bool = False) -> R:
        """A transaction on the target. What it removes by itself, since it has expired, may come between.

        The step gets the time there. What had expired by the later of both clocks was not compared, and may not stand
        against what is: where it gives way to a unique index, that time counts.
        """
        retries = Retries(_ATTEMPTS, _DEADLINE)
        while True:
            try:
                return self._target._together(step, durable=durable, alone=True)
            except TransactionConflictError:
                pause = retries.pause()
                if pause is None:
                    raise
            time.sleep(pause)

    def _replace(self, target: Primitives, namespace: str, rows: Sequence[Row], gone: Sequence[str]) -> _Change:
        """What it changes to have these rows and not those keys, inside the transaction that does so.

        Raises CopyTargetError where something is in the way that is not copied.
        """
        entries = versions = 0
        there: set[str] = set()
        for key, version, expires_at in versions_of(target, namespace, [*gone, *(row.key for row in rows)]):
            if version > self._floor:
                raise written_meanwhile(namespace, key)
            if expires_at is None or expires_at > self._now // 1000:
                there.add(key)
                versions -= version % 2**32
        for row in rows:
            versions += row.version % 2**32
        entries = len(rows) - len(there)
        return _Change(entries, versions, [row.key for row in rows if row.key not in there])

    def _changed(self, namespace: str, change: _Change) -> None:
        """It is committed."""
        if self._has is not None:
            entries, versions = self._has
            self._has = entries + change.entries, versions + change.versions
        if self._keeps_new:
            self._new.setdefault(namespace, []).extend(change.new)

    def _write(self, namespace: str, rows: Sequence[Row], gone: Sequence[str]) -> None:
        """One transaction: some rows, and the keys that go."""

        def step(target: Primitives, now: int) -> _Change:
            change = self._replace(target, namespace, rows, gone)
            if gone:
                target.delete(namespace, gone, now)
            if rows:
                target.place(namespace, rows, max(now, self._now))
            return change

        try:
            change = self._change(step)
        except UniqueIndexError:
            change = self._write_past_indexes(namespace, rows, gone)
        self._changed(namespace, change)
        self._written += len(rows)
        self._deleted += len(gone)
        if any(row.expires_at is not None for row in rows):
            self._target._expiring()
        if self._reads_back:
            self._read_back(namespace, rows)

    def _read_back(self, namespace: str, rows: Sequence[Row]) -> None:
        back = {row.key: row for row in self._there().rows(namespace, [row.key for row in rows])}
        found = Found()
        # What has expired meanwhile may be removed by now.
        now_ms = max(self._now, self._source._now(), self._target._now()) // 1000
        found.add(
            namespace,
            [
                row.key
                for row in rows
                if back.get(row.key) != row and (row.key in back or row.expires_at is None or row.expires_at > now_ms)
            ],
        )
        found.raise_if_any()
        self._verified += len(rows)

    def _write_past_indexes(self, namespace: str, rows: Sequence[Row], gone: Sequence[str]) -> _Change:
        """The source's state has no value twice, but a step on the way there may: two entries exchanged theirs.

        1. Within these rows: all of them go first.
        2. With rows that come later: the index goes, and is made again when everything is there. It has to be one that
           the source has too; any other is the target's own, and stands against this copy.
        """

        def step(target: Primitives, now: int) -> _Change:
            change = self._replace(target, namespace, rows, gone)
            target.delete(namespace, [*gone, *(row.key for row in rows)], now)
            target.place(namespace, rows, max(now, self._now))
            return change

        while True:
            try:
                return self._change(step)
            except UniqueIndexError as error:
                name = error.index
                # Whatever it is there, and in the source by now: it is made in the end as the source has it.
                if not self._makes_index(name):
                    raise
                self._change(lambda target, _, name=name: target.drop_index(name))  # type: ignore[misc]
