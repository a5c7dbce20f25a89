"""What a row claims in a unique index, and a row as filters see it.

Called by the engines for the memory's unique indexes, and to tell who is in whose way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from mycelia_storage.codec import decode, decode_object
from mycelia_storage.matching import Candidate, position

if TYPE_CHECKING:
    from mycelia_storage.engines.engine import Row
    from mycelia_storage.filters import SortKey

# The namespace and the value of each field: its rank and the value among those of that rank.
Claim: TypeAlias = tuple[Any, ...]


def candidate_of(namespace: str, row: Row) -> Candidate:
    """A row as filters, sorts and indexes see it."""
    return Candidate(
        row.key,
        decode(row.value, namespace, row.key),
        decode_object(row.metadata, namespace, row.key),
        row.version,
        row.created_at,
        row.updated_at,
        row.expires_at,
    )


def claim_of(fields: tuple[SortKey, ...], namespace: str, row: Row) -> Claim | None:
    """What a row claims in an index, None where it claims nothing: a missing field, an array or an object."""
    places, _ = position(fields, candidate_of(namespace, row))
    if any(is_missing or rank == 6 for is_missing, rank, _ in places):
        return None
    return (namespace, *((rank, value) for _, rank, value in places))
