"""Flips bits of a store's file, and tells what reading it gives then.

Called by the tests of checksums and of encryption.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mycelia_storage import Storage, StorageError, open_storage

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

_FIRST_FREE: Final = slice(32, 36)
_ENDS: Final = ("", "-wal", "-shm", "-journal")


class Seen(NamedTuple):
    """What reading everything, and then `check()`, gave."""

    error: StorageError | None
    is_wrong: bool  # something was returned as good that was never stored


def fill(store: Storage, count: int = 500) -> None:
    """Pages of every kind: entries in the table and its indexes, long values in pages of their own, free pages."""
    store.set_many({f"key:{number:04}": {"n": number, "text": f"{number} " * 20} for number in range(count)})
    store.set_many({f"long:{number}": str(number) * 20_000 for number in range(10)}, metadata={"kind": "long"})
    store.set_many({f"gone:{number}": "x" * 20_000 for number in range(10)})
    store.delete_many([f"gone:{number}" for number in range(10)])
    store.set("soon", [1, 2], ttl=3000, namespace="expiring")
    store.create_index("n", unique=True)
    store.optimize()


def everything(store: Storage) -> dict[tuple[str, str], Any]:
    """Every entry with all that belongs to it, found by key and by index."""
    found = {
        (name, entry.key): (entry.value, entry.metadata, entry.version, entry.created_at, entry.expires_at)
        for name in store.list_namespaces()
        for entry in store.scan(namespace=name)
    }
    found |= {
        ("by index", entry.key): entry.value
        for page in store.pages({"field": "n", "operator": "gte", "value": 0})
        for entry in page
    }
    return found


def used_bits(data: bytes, random: random.Random, count: int) -> Iterator[int]:
    """Numbers of bits in pages that hold something; what SQLite has free, it does not read."""
    size = int.from_bytes(data[16:18], "big")
    free, trunk = set(), int.from_bytes(data[_FIRST_FREE], "big")
    while trunk:
        start = (trunk - 1) * size
        length = int.from_bytes(data[start + 4 : start + 8], "big")
        leaves = range(start + 8, start + 8 + 4 * length, 4)
        free |= {int.from_bytes(data[place : place + 4], "big") for place in leaves}
        trunk = int.from_bytes(data[start : start + 4], "big")
    pages = [page for page in range(1, len(data) // size + 1) if page not in free]
    for _ in range(count):
        yield ((random.choice(pages) - 1) * size + random.randrange(size)) * 8 + random.randrange(8)


def write_flipped(path: Path, data: bytes, bit: int) -> None:
    """The file with one bit flipped, and nothing beside it."""
    for end in _ENDS[1:]:
        if os.path.exists(f"{path}{end}"):
            os.unlink(f"{path}{end}")
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)


def look_through(path: Path, truth: dict[tuple[str, str], Any], **options: Any) -> Seen:
    """Open a file, read what there is, and check it."""
    is_wrong = False
    try:
        with open_storage(path, **options) as store:
            is_wrong = not everything(store).items() <= truth.items()
            store.check()
    except StorageError as error:
        return Seen(error, is_wrong)
    return Seen(None, is_wrong)
