"""Keys, namespaces, prefixes and patterns: what is valid, and which range of keys a pattern spans.

Called by every verb before it reaches an engine.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple

from mycelia_storage.errors import InvalidKeyError, InvalidNamespaceError, InvalidValueError, StorageCorruptError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DEFAULT_NAMESPACE: Final = "default"
# No namespace can have this name: what is registered under it is what a store knows of itself, see `lineage.py`.
ORIGIN: Final = ""
MAX_KEY_BYTES: Final = 1024
MAX_NAMESPACE_BYTES: Final = 255
# Twice a key's bytes, and as many stars again: what is longer can match nothing.
MAX_PATTERN: Final = 4096

_known_namespaces: set[str] = {DEFAULT_NAMESPACE}
_MAX_KNOWN: Final = 4096
_LAST_CODE_POINT: Final = 0x10FFFF


def check_key(key: object) -> str:
    """The key as a plain str. Raises InvalidKeyError that says what is wrong with it."""
    if type(key) is str and key.isascii() and 0 < len(key) <= MAX_KEY_BYTES and "\0" not in key:
        return key
    return _check_key_slowly(key)


def _check_key_slowly(key: object) -> str:
    if not isinstance(key, str):
        raise InvalidKeyError(f"a key is a str, not {type(key).__name__}")
    key = str.__str__(key)  # a StrEnum member, say, as the text that it is
    if not key:
        raise InvalidKeyError("a key is at least one character long")
    if len(key) > MAX_KEY_BYTES:
        raise InvalidKeyError(f"the key {_shown(key)} has {len(key):,} characters; {MAX_KEY_BYTES} bytes are the limit")
    size = len(_utf8(key, InvalidKeyError, "key"))
    if size > MAX_KEY_BYTES:
        raise InvalidKeyError(f"the key {_shown(key)} has {size:,} bytes of UTF-8; {MAX_KEY_BYTES} are the limit")
    return key


def check_namespace(name: object) -> str:
    """The namespace's name as a plain str. Raises InvalidNamespaceError that says what is wrong with it."""
    if type(name) is str and name in _known_namespaces:
        return name
    return _check_namespace_slowly(name)


def _check_namespace_slowly(name: object) -> str:
    if not isinstance(name, str):
        raise InvalidNamespaceError(f"a namespace is a str, not {type(name).__name__}")
    name = str.__str__(name)
    if not name:
        raise InvalidNamespaceError("a namespace is at least one character long")
    size = len(_utf8(name, InvalidNamespaceError, "namespace"))
    if size > MAX_NAMESPACE_BYTES:
        message = f"the namespace {_shown(name)} has {size:,} bytes of UTF-8; {MAX_NAMESPACE_BYTES} are the limit"
        raise InvalidNamespaceError(message)
    for character in name:
        # C0, DEL and C1: what a terminal or a log would take for a command.
        if character < " " or "\x7f" <= character <= "\x9f":
            raise InvalidNamespaceError(f"the namespace {_shown(name)} holds a control character, {character!r}")
    if "*" in name:
        raise InvalidNamespaceError(f"the namespace {_shown(name)} holds '*', which is kept for patterns")
    if len(_known_namespaces) >= _MAX_KNOWN:
        _known_namespaces.clear()
    _known_namespaces.add(name)
    return name


class KeyRange(NamedTuple):
    """Which keys of a namespace are meant: those from `low` (included) to `high` (excluded) that match `pieces`.

    `high` is None where there is no upper end. `pieces` are a pattern's literal parts, None where every key of the
    range matches.
    """

    low: str = ""
    high: str | None = None
    pieces: tuple[str, ...] | None = None


def key_range(
    prefix: object = None, pattern: object = None, start_after: object = None, *, reverse: bool = False
) -> KeyRange:
    """The range that a verb's `prefix`, `pattern` and `start_after` span together."""
    low, high = "", None
    if prefix is not None:
        low = _check_text(prefix, "prefix")
        high = successor(low)
    pieces = None
    if pattern is not None:
        text = _check_text(pattern, "pattern")
        if len(text) > MAX_PATTERN:
            raise InvalidValueError(f"pattern: {len(text):,} characters are more than {MAX_PATTERN:,}")
        pieces = _pieces(text)
        first = pieces[0]
        low = max(low, first)
        # Without a star the pattern is one key. No key holds U+0000, so key + U+0000 is the very next place.
        high = _lower(high, first + "\0" if len(pieces) == 1 else successor(first))
    if start_after is not None:
        after = _check_text(start_after, "start_after")
        if reverse:
            high = _lower(high, after)
        else:
            low = max(low, after + "\0")
    return KeyRange(low, high, pieces)


def without(counts: list[int], spans: Sequence[KeyRange], keys: Iterable[str]) -> list[int]:
    """How many keys the ranges hold when these, wherever they are, are left out. The ranges are in order."""
    lows = [span.low for span in spans]
    for key in keys:
        number = bisect_right(lows, key) - 1
        if number >= 0:
            high = spans[number].high
            counts[number] -= high is None or key < high
    return counts


def behind(span: KeyRange, namespace: str, last: object) -> KeyRange:
    """What is left of a range behind the last key that was read of it.

    Raises StorageCorruptError for one that cannot have been read there: an index out of order would be read for ever.
    """
    if type(last) is not str or last < span.low:
        raise StorageCorruptError(f"the keys in namespace {namespace!r} are out of order: the file is damaged")
    # No key holds U+0000, so this is the very next place.
    return span._replace(low=last + "\0")


def matches(pieces: tuple[str, ...], key: str) -> bool:
    """Whether the whole key is the pieces in their order with any runs of characters between them."""
    first, last = pieces[0], pieces[-1]
    if len(pieces) == 1:
        return key == first
    end = len(key) - len(last)
    position = len(first)
    if position > end or not key.startswith(first) or not key.endswith(last):
        return False
    for piece in pieces[1:-1]:
        found = key.find(piece, position, end)
        if found < 0:
            return False
        position = found + len(piece)
    return True


def escape_pattern(text: str) -> str:
    """`text` as a pattern that matches exactly itself.

    For text from users `prefix=` is usually what is wanted: it takes everything literally.

    >>> escape_pattern("50*2")
    '50\\\\*2'
    """
    return text.replace("\\", "\\\\").replace("*", "\\*")


def successor(prefix: str) -> str | None:
    """The smallest text that is greater than every text with this prefix, None when there is none."""
    while prefix:
        code = ord(prefix[-1])
        if code < _LAST_CODE_POINT:
            code += 1
            if 0xD800 <= code <= 0xDFFF:  # surrogates are no characters
                code = 0xE000
            return prefix[:-1] + chr(code)
        prefix = prefix[:-1]
    return None


def _pieces(pattern: str) -> tuple[str, ...]:
    """The literal parts between the stars; `\\*` and `\\\\` are literal, any other backslash is itself."""
    pieces: list[str] = []
    part: list[str] = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        if character == "\\" and pattern[position + 1 : position + 2] in ("*", "\\"):
            position += 1
            part.append(pattern[position])
        elif character == "*":
            pieces.append("".join(part))
            part = []
        else:
            part.append(character)
        position += 1
    return (*pieces, "".join(part))


def _lower(high: str | None, other: str | None) -> str | None:
    if high is None or other is None:
        return other if high is None else high
    return min(high, other)


def _check_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise InvalidValueError(f"{name}: a str is needed, not {type(value).__name__}")
    text = str.__str__(value)
    _utf8(text, InvalidValueError, name)
    return text


def _utf8(text: str, error: type[InvalidKeyError | InvalidNamespaceError | InvalidValueError], what: str) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise error(f"the {what} {_shown(text)} holds a lone surrogate, which is no character") from None
    if b"\0" in encoded:
        raise error(f"the {what} {_shown(text)} holds U+0000, which not every engine can hold")
    return encoded


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 80 else text[:80] + "…")
