"""Which store is a copy of which: what is kept of that in the copy, and whether a store may be a target.

Called by `moving.py`. A copy keeps a registration under the name "", which no namespace can have: so every engine keeps
it already, in the same transactions as everything else, and in backups. What makes a store the copy of another one:

1. It says so: `of` is the other one's `id`, and `born` the millisecond at which the other one's `default` was made.
2. Whatever was written to the copy itself has a version above `floor`. A copy first raises the store's own floor to the
   greatest version that the source has given, and `floor` is that, of the last copy. The store's own floor may rise
   later on, above rows that somebody wrote there: by a transaction that writes an entry and removes it, by a restore.

3. `since` is what a version has to be above to be newer than what a copy took over that came to its end, of the
   namespaces in `scope` (None: all). It is no more than the time at which the source was read, less a second for the
   transactions that were open then: as long as the clock is not set back, nothing is written later with a version below
   that. (`floor` may lie ahead of the clock. New entries may get a version then that others had before.)

A store has an `id` where it is a copy, or lives in memory: those are made faster than milliseconds pass. So the copy of
a copy is not taken for one of the first source, although `born` is the same.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from mycelia_storage.engines.engine import NamespaceRow
from mycelia_storage.errors import ConfigError, CopyTargetError
from mycelia_storage.keys import DEFAULT_NAMESPACE, ORIGIN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mycelia_storage.engines.engine import Primitives, Tally
    from mycelia_storage.storage import Storage

_PLACE_ON_A_SERVER: Final = ("server_started", "database_oid", "schema")


class Lineage(NamedTuple):
    """What is kept of it. `of`, `born` and `floor` are None where a store is no copy, `since` until a copy is whole.

    `indexes` are the names of those that came with a copy, so that they can go as well.
    """

    id: str | None = None
    of: str | None = None
    born: int | None = None
    floor: int | None = None
    indexes: tuple[str, ...] = ()
    since: int | None = None
    scope: tuple[str, ...] | None = None

    def is_of(self, source: Lineage, born: int | None) -> bool:
        """Whether this is the copy of a source that was made then."""
        return self.floor is not None and (self.of, self.born) == (source.id, born)

    def covers(self, chosen: tuple[str, ...] | None) -> bool:
        """Whether these namespaces are all there up to `since`; None means all that the source has."""
        return self.since is not None and (self.scope is None or (chosen is not None and {*chosen} <= {*self.scope}))

    def up_to(self, since: int, chosen: tuple[str, ...] | None) -> Lineage:
        """The same once these namespaces are all there up to then; of others that is not known any more."""
        return self._replace(since=since, scope=chosen)

    def row(self) -> NamespaceRow:
        """As it is kept."""
        kept = {name: value for name, value in self._asdict().items() if value is not None}
        return NamespaceRow(ORIGIN, orjson.dumps(kept).decode(), self.born or 0)


def new_id() -> str:
    """One that no other store has."""
    return secrets.token_hex(8)


def lineage_of(rows: Primitives) -> Lineage:
    """What a store says of itself. What cannot be read is not known."""
    row = rows.namespace(ORIGIN)
    if row is None or row.metadata is None:
        return Lineage()
    try:
        kept: Any = orjson.loads(row.metadata)
    except orjson.JSONDecodeError:
        return Lineage()
    if not isinstance(kept, dict):
        return Lineage()
    known: dict[str, Any] = {}
    for name in ("id", "of"):
        known[name] = kept.get(name) if isinstance(kept.get(name), str) else None
    for name in ("born", "floor", "since"):
        known[name] = kept.get(name) if type(kept.get(name)) is int else None
    indexes, scope = kept.get("indexes"), kept.get("scope")
    known["indexes"] = tuple(map(str, indexes)) if isinstance(indexes, list) else ()
    known["scope"] = tuple(map(str, scope)) if isinstance(scope, list) else None
    return Lineage(**known)


def named(rows: Iterable[NamespaceRow]) -> list[NamespaceRow]:
    """Those that are namespaces."""
    return [row for row in rows if row.name != ORIGIN]


class Wanted(NamedTuple):
    """What a store is to be the copy of: the source's lineage, its `default`, and the indexes that it has.

    `metadata` says whether that of `default` is copied; `indexes` are the names of those that are.
    """

    origin: Lineage
    born: NamespaceRow
    has_metadata: bool
    all_indexes: frozenset[str]
    indexes: frozenset[str]


class Adopted(NamedTuple):
    """What a target held, in one state, and what is kept of it from then on."""

    held: Tally
    kept: Lineage
    default: NamespaceRow


def adopted(rows: Primitives, now: int, held: Tally, ours: Tally, wanted: Wanted) -> Adopted:
    """Make a store known as a copy, inside a transaction that has added up what it holds; the source has `ours`.

    Raises CopyTargetError where it may not be written to. Nobody writes between the sums and the new floor, above which
    that would show: so says the transaction.
    """
    kept, origin, born = lineage_of(rows), wanted.origin, wanted.born
    # What it says of itself, as far as it is a copy of this source.
    said = kept if kept.is_of(origin, born.created_at) else Lineage(kept.id)
    copied = said.floor or 0
    if held.entries:
        _refuse(rows, held, kept, copied, wanted)
    mine = rows.namespace(DEFAULT_NAMESPACE)
    metadata = born.metadata if wanted.has_metadata or mine is None else mine.metadata
    default = NamespaceRow(DEFAULT_NAMESPACE, metadata, born.created_at or 0)
    came = wanted.all_indexes.intersection(said.indexes)
    indexes = (wanted.indexes - {index.name for index in rows.indexes()}) | came
    new = said._replace(
        id=kept.id or new_id(),
        of=origin.id,
        born=born.created_at,
        floor=max(ours.greatest, ours.floor, copied),
        indexes=tuple(sorted(indexes)),
    )
    if (kept, mine) != (new, default):
        if not held.entries and held.greatest:
            _clear_expired(rows, copied, now)
        rows.raise_floor(new.floor or 0)
        rows.place_namespace(default)
        rows.place_namespace(new.row())
        for name in {*said.indexes} - came:
            rows.drop_index(name)
    return Adopted(held, new, default)


def _refuse(there: Primitives, held: Tally, kept: Lineage, copied: int, wanted: Wanted) -> None:
    holds = f"the target holds {held.entries:,} entries"
    _refuse_other(there, kept, wanted.origin, wanted.born, holds)
    # Where its own floor is lower, versions were given anew: the file was of version 1 meanwhile.
    if held.greatest > copied or held.floor < copied:
        message = "was written to since it was made as a copy of this source, which would be lost"
        raise CopyTargetError(f"{holds}, and {message}: copy into an empty store")


def _clear_expired(rows: Primitives, copied: int, now: int) -> None:
    """Remove what has expired by the later clock. Raises CopyTargetError for what somebody wrote who has the other."""
    for name, key, _, _ in rows.newer(copied, now, limit=1):
        raise written_meanwhile(name, key)
    rows.clear(None, now)


def _refuse_other(there: Primitives, kept: Lineage, source: Lineage, born: NamespaceRow, held: str) -> None:
    """Raise CopyTargetError for a store with entries that is not known to be a copy of this source."""
    if kept.is_of(source, born.created_at):
        return
    mine = there.namespace(born.name)
    if kept.floor is None and source.id is None and mine is not None and mine.created_at == born.created_at:
        message = "and it is not known what they are: nothing in it says that it is a copy of this source"
        why = "A copy that an earlier version of this library made says nothing, nor does the source itself"
        raise CopyTargetError(f"{held}, {message}. {why}: copy into an empty store")
    raise CopyTargetError(f"{held}, and is no copy of this source: copy into an empty store")


def refuse_same(source: Storage, target: Storage) -> None:
    """Whatever name it goes by: a file is known by its inode, a server by the moment at which it was started."""
    one, other = source._engine, target._engine
    is_same = one is other
    if not is_same and one.backend == other.backend != "memory":
        here, there = one.status(), other.status()
        if one.backend == "postgresql":
            is_same = all(here.details[name] == there.details[name] for name in _PLACE_ON_A_SERVER)
        else:
            is_same = here.target == there.target
        if one.backend == "sqlite":
            with contextlib.suppress(OSError):
                is_same = is_same or os.path.samefile(here.target, there.target)
    if is_same:
        raise ConfigError("source and target are the same store")


def written_meanwhile(namespace: str, key: str) -> CopyTargetError:
    """The error for a row that somebody else wrote to the target."""
    message = f"{key!r} in namespace {namespace!r} was written to the target itself, which would be lost"
    return CopyTargetError(f"{message}: nobody may write there until the switch")
