"""Unique indexes of the memory engine: who has which value.

Called by `state.py` and `view.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mycelia_storage.engines.claims import Claim, claim_of
from mycelia_storage.errors import UniqueIndexError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mycelia_storage.engines.engine import IndexRow, Row


class Claims:
    """One unique index: the key that has each claim, and the claim of each key."""

    def __init__(self, index: IndexRow) -> None:
        self.index = index
        self._owners: dict[Claim, str] = {}
        self._claims: dict[tuple[str, str], Claim] = {}

    def covers(self, namespace: str) -> bool:
        """Whether the index is about a namespace."""
        return self.index.namespace in (None, namespace)

    def copied(self) -> tuple[dict[Claim, str], dict[tuple[str, str], Claim]]:
        """Who has what, as it is now: for a check."""
        return self._owners.copy(), self._claims.copy()

    def owner(self, claim: Claim, key: str) -> str | None:
        """The other key that has this claim."""
        owner = self._owners.get(claim)
        return None if owner == key else owner

    def update(self, namespace: str, key: str, row: Row | None) -> None:
        """A row was written, or removed."""
        old = self._claims.pop((namespace, key), None)
        if old is not None and self._owners.get(old) == key:
            del self._owners[old]
        claim = None if row is None else claim_of(self.index.fields, namespace, row)
        if claim is not None:
            self._claims[namespace, key] = claim
            self._owners[claim] = key


def duplicates(index: IndexRow, namespace: str, rows: Iterable[Row]) -> list[str]:
    """The keys of the first value that several rows have."""
    owners: dict[Claim, list[str]] = {}
    for row in rows:
        claim = claim_of(index.fields, namespace, row)
        if claim is not None:
            owners.setdefault(claim, []).append(row.key)
    return next((keys for keys in owners.values() if len(keys) > 1), [])


def refusal(index: IndexRow, namespace: str, owner: str, key: str) -> UniqueIndexError:
    """The error for a row of which another one has the value."""
    fields = ", ".join(str(sort_key.path) for sort_key in index.fields)
    message = f"{owner!r} in namespace {namespace!r} has the value of {fields} that {key!r} would have"
    return UniqueIndexError(f"unique index {index.name!r}: the key {message}", index.name, key)
