"""What a row claims in a unique index, a row as filters see it, and the errors that tell who is in whose way.

Called by the engines. (Those whose database keeps unique indexes itself tell with it whose value it was.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from mycelia_storage.codec import decode, decode_object
from mycelia_storage.errors import UniqueIndexError
from mycelia_storage.matching import Candidate, position

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mycelia_storage.engines.engine import IndexRow, Row
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


def duplicates(index: IndexRow, namespace: str, rows: Iterable[Row]) -> list[str]:
    """The keys of the first value that several rows have."""
    owners: dict[Claim, list[str]] = {}
    for row in rows:
        claim = claim_of(index.fields, namespace, row)
        if claim is not None:
            owners.setdefault(claim, []).append(row.key)
    return next((keys for keys in owners.values() if len(keys) > 1), [])


def owned_error(index: IndexRow, namespace: str, key: str, owner: str) -> UniqueIndexError:
    """The error for an entry whose value another has."""
    message = f"{owner!r} in namespace {namespace!r} has the value of {_fields(index)} that {key!r} would have"
    return UniqueIndexError(f"unique index {index.name!r}: the key {message}", index.name, key)


def duplicates_error(index: IndexRow, namespace: str, keys: list[str]) -> UniqueIndexError:
    """The error for an index that cannot be unique, because these keys have one value."""
    shown = f"{', '.join(map(repr, keys[:3]))} in {namespace!r}"
    message = f"these keys have the same value of {_fields(index)}: {shown}"
    return UniqueIndexError(f"unique index {index.name!r}: {message}", index.name)


def _fields(index: IndexRow) -> str:
    return ", ".join(str(key.path) for key in index.fields)
