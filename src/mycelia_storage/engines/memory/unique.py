"""Unique indexes of the memory engine: who has which value.

Called by `state.py` and `view.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mycelia_storage.engines.claims import Claim, claim_of

if TYPE_CHECKING:
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
