"""What the bytes of a stored value are: a pickle, JSON, either of them compressed. And the value that they spell.

Called by the file of each format that keeps values as bytes.

The two cannot be mistaken for each other: a pickle begins with the opcode of protocols 2 and later, which is no UTF-8,
or ends with its last opcode, a full stop, as no JSON text does. What zlib has compressed begins with an "x", and
neither a pickle nor a JSON text does.
"""

from __future__ import annotations

import zlib
from typing import Final

from mycelia_storage.foreign.found import NotPlainError
from mycelia_storage.foreign.pickles import read_pickle
from mycelia_storage.json_texts import decode_line

_PROTOCOL: Final = b"\x80"
_STOP: Final = b"."
_ZLIB: Final = b"x"
_NEITHER: Final = "neither a pickle nor JSON"
_BYTES: Final = "bytes are not JSON: convert them to text, by base64 for example"


def value_of(data: bytes, limit: int) -> object:
    """The value that some bytes spell, whatever they were made by. Raises NotPlainError."""
    if data.startswith(_ZLIB):
        data = _decompress(data, limit, _NEITHER)
    if data.startswith(_PROTOCOL) or data.endswith(_STOP):
        return read_pickle(data, limit)
    return value_of_json(data, limit, _NEITHER)


def value_of_json(data: bytes, limit: int, what: str = "") -> object:
    """The value that a JSON text spells; the reason that there is none begins with `what`. Raises NotPlainError."""
    if len(data) > limit:
        raise NotPlainError(too_long(len(data), limit))
    try:
        return decode_line(data)
    except ValueError as error:
        raise NotPlainError(f"{what}: {error}" if what else str(error)) from None


def compressed_json(data: bytes, limit: int) -> object:
    """The value of a compressed JSON text. Raises NotPlainError, for bytes that are anything else too."""
    if not data.startswith(_ZLIB):
        raise NotPlainError(_BYTES)
    return value_of_json(_decompress(data, limit, _BYTES), limit, "bytes, and no compressed JSON")


def too_long(size: int, limit: int) -> str:
    """The reason not to read a value of so many bytes."""
    return f"{size:,} bytes, and {limit:,} are the limit of a value"


def _decompress(data: bytes, limit: int, otherwise: str) -> bytes:
    machine = zlib.decompressobj()
    try:
        found = machine.decompress(data, limit + 1)
    except zlib.error:
        raise NotPlainError(otherwise) from None
    if len(found) > limit:
        raise NotPlainError(f"more than {limit:,} bytes when decompressed, the limit of a value")
    if not machine.eof:
        raise NotPlainError("compressed bytes that are cut off")
    return found
