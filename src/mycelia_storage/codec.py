"""Values to JSON text and back: what a document may be is decided here, once, for every engine.

Called by the verbs before anything is written and after anything is read.

A walk over a value in Python costs more than encoding it, so `encode` walks only where a cheap sign says that
something may be wrong:

1. `marshal` takes exact built-in types alone, so it refuses every subclass, enum, UUID, Decimal, dataclass and
   `orjson.Fragment`; what it takes beyond JSON (bytes, sets, complex, buffers) orjson refuses.
2. orjson's strict integers stop beyond 2**53; whether such an integer fits 64 bits, the walk decides.
3. orjson writes NaN and Infinity as null, and U+0000 as an escape: both leave a trace in what was encoded.
4. orjson nests to 254: more than 200 opening brackets may be too deep, unless pairs of them, taken out innermost first,
   are all gone soon enough.
"""

from __future__ import annotations

import json
import marshal
import math
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import orjson

from mycelia_storage.arguments import shown_number
from mycelia_storage.errors import InvalidValueError, StorageCorruptError

MAX_DEPTH: Final = 200
_TOO_SHORT_TO_BE_DEEP: Final = 2 * MAX_DEPTH
MIN_INT: Final = -(2**63)
MAX_INT: Final = 2**63 - 1

_EXACT_TYPES: Final = (
    orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
)
_FAST: Final = _EXACT_TYPES | orjson.OPT_STRICT_INTEGER
# In marshal's version 2 (later ones mark what is shared) a float is "g" and eight bytes, little end first; NaN and the
# infinities have all exponent bits.
_PERHAPS_NOT_FINITE: Final = re.compile(rb"g.{6}[\xf0-\xff][\x7f\xff]", re.DOTALL)
_LONG_INTEGER: Final = re.compile(r"\d{19}")
# What is left of a text: quotes, and brackets of one kind.
_MARKS: Final = bytes.maketrans(b"{}", b"[]")
_NO_MARKS: Final = bytes(set(range(256)) - set(b'"[]{}'))
_PLAIN_SEGMENT: Final = re.compile(r"[^\W\d]\w*", re.ASCII)
_SHOWN_KEY_LENGTH: Final = 80
_SHOWN_SEGMENTS: Final = 20

_HINTS: Final[dict[str, str]] = {
    "datetime": "convert it with .isoformat() or to milliseconds",
    "date": "convert it with .isoformat()",
    "time": "convert it with .isoformat()",
    "timedelta": "convert it to seconds with .total_seconds()",
    "bytes": "convert it to text, by base64 for example",
    "bytearray": "convert it to text, by base64 for example",
    "memoryview": "convert it to text, by base64 for example",
    "set": "convert it to a list",
    "frozenset": "convert it to a list",
    "Decimal": "convert it to str or float",
    "UUID": "convert it to str",
    "complex": "convert it to a list of two numbers",
    "ndarray": "convert it with .tolist()",
}
_ANY_HINT: Final = "convert it to None, bool, int, float, str, list or dict"


class Unfit:
    """Stands in a batch for a value that a typed view refuses, so that the batch reports the error as the item's."""

    def __init__(self, error: InvalidValueError) -> None:
        self.error = error


def encode(value: object, max_bytes: int, *, what: str = "$") -> str:
    """The JSON text of `value`, at most `max_bytes` of UTF-8.

    Raises InvalidValueError that names the place inside the value, beginning with `what`.
    """
    try:
        exact = marshal.dumps(value, 2)  # type: ignore[arg-type]  # it says what it does not take
        text = orjson.dumps(value, None, _FAST).decode()
    except (ValueError, TypeError, RecursionError):
        text = _encode_carefully(value, what)
    else:
        if (
            ("null" in text and (0x7F in exact or 0xFF in exact) and _PERHAPS_NOT_FINITE.search(exact))
            or ("\\" in text and "\\u0000" in text)
            or (
                len(text) > _TOO_SHORT_TO_BE_DEEP
                and text.count("[") + text.count("{") > MAX_DEPTH
                and not nests_at_most(text, MAX_DEPTH)
            )
        ):
            check(value, what)
    if len(text) > max_bytes // 4:
        size = len(text) if text.isascii() else len(text.encode())
        if size > max_bytes:
            raise InvalidValueError(f"{what}: {size:,} bytes of JSON are more than max_value_bytes={max_bytes:,}")
    return text


def encode_object(value: object, max_bytes: int, *, what: str) -> str:
    """The JSON text of a mapping, which metadata and patches have to be."""
    if type(value) is not dict:
        if not isinstance(value, Mapping):
            raise InvalidValueError(f"{what}: {type(value).__name__} is not a mapping")
        value = dict(value)
    return encode(value, max_bytes, what=what)


def decode(text: str, namespace: str, key: str) -> Any:
    """The value of a stored text. Raises StorageCorruptError naming the entry when it is no JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        message = f"the stored value of {key!r} in namespace {namespace!r} is not JSON: the file is damaged"
        raise StorageCorruptError(message) from error


def decode_object(text: str | None, namespace: str, key: str) -> dict[str, Any]:
    """Stored metadata, {} where there is none."""
    if text is None:
        return {}
    value = decode(text, namespace, key)
    if type(value) is not dict:
        raise StorageCorruptError(f"the metadata of {key!r} in namespace {namespace!r} is no object")
    return value


def nests_at_most(text: str, depth: int) -> bool:
    """Whether a JSON text surely nests no deeper. False says nothing where a string holds a backslash or a bracket.

    Without backslashes a string without brackets leaves two quotes side by side. Those of one with brackets stay apart,
    and so stay.
    """
    if "\\" in text:
        return False
    marks = text.encode().translate(_MARKS, _NO_MARKS).replace(b'""', b"")
    while marks and depth:
        marks = marks.replace(b"[]", b"")  # the innermost ones, and no others
        depth -= 1
    return not marks


def check(value: object, what: str = "$") -> None:
    """Raise InvalidValueError, naming the place, unless `value` is JSON within the limits."""
    problem = _problem(value, 0)
    if problem is not None:
        segments, reason = problem
        segments.reverse()
        if len(segments) >= MAX_DEPTH:
            repeated = _repeated(value, segments)
            if repeated is not None:
                segments, reason = repeated
        shown = show_path(segments[:_SHOWN_SEGMENTS]) + ("…" if len(segments) > _SHOWN_SEGMENTS else "")
        raise InvalidValueError(f"{what}{shown}: {reason}")


def problem_of_text(text: object, *, is_object: bool = False) -> str | None:
    """Why a JSON text found in a file is not one that `encode` could have written, or None when it is fine."""
    if not isinstance(text, str):
        return "no text"
    try:
        value = orjson.loads(text)
        if _LONG_INTEGER.search(text) is not None:
            # orjson reads an integer beyond 64 bits as a float, without a word.
            value = json.loads(text)
        if is_object and type(value) is not dict:
            return f"{type(value).__name__} where an object belongs"
        check(value)
        if "{" in text and orjson.dumps(value) != text.encode():
            # Somebody else has written it. orjson takes the last of two members with the same name, SQLite the first.
            json.loads(text, object_pairs_hook=_without_twins)
    except InvalidValueError as error:
        return str(error)
    except (ValueError, RecursionError):
        return "not JSON"
    return None


def _without_twins(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        raise InvalidValueError("$: an object has two members with the same name")
    return found


def show_path(segments: Any, *, in_full: bool = False) -> str:
    """Path segments as filters and messages print them: `.a."b c"[3]`. Messages cut long names."""
    parts: list[str] = []
    for segment in segments:
        if type(segment) is int:
            parts.append(f"[{segment}]")
        elif _PLAIN_SEGMENT.fullmatch(segment):
            parts.append(f".{segment}")
        else:
            name = segment
            if len(segment) > _SHOWN_KEY_LENGTH and not in_full:
                name = segment[:_SHOWN_KEY_LENGTH] + "…"
            parts.append("." + json.dumps(name))
    return "".join(parts)


def _encode_carefully(value: object, what: str) -> str:
    if isinstance(value, Unfit):
        raise value.error
    check(value, what)
    try:
        return orjson.dumps(value, option=_EXACT_TYPES).decode()
    except orjson.JSONEncodeError as error:
        raise InvalidValueError(f"{what}: {error}") from error


def _problem(value: object, depth: int) -> tuple[list[str | int], str] | None:
    """The first bad place, its segments innermost first, and the reason."""
    if type(value) is str:
        reason = _text_problem(value)
        return None if reason is None else ([], reason)
    if type(value) is bool or value is None:
        return None
    if type(value) is int:
        return None if MIN_INT <= value <= MAX_INT else ([], "an integer beyond 64 bits: convert it to str")
    if type(value) is float:
        return None if math.isfinite(value) else ([], "NaN and the infinities are not JSON: use None")
    if type(value) is dict:
        return _problem_in_dict(value, depth)
    if type(value) is list or type(value) is tuple:
        return _problem_in_list(value, depth)
    return [], f"{type(value).__name__} is not JSON: {_hint(value)}"


def _repeated(value: Any, segments: list[str | int]) -> tuple[list[str | int], str] | None:
    """The first place on a path that leads back to where it came from."""
    seen = {id(value)}
    for count, segment in enumerate(segments, 1):
        value = value[segment]
        if id(value) in seen and isinstance(value, dict | list | tuple):
            return segments[:count], f"a {type(value).__name__} that holds itself has no end, and JSON cannot say so"
        seen.add(id(value))
    return None


def _problem_in_dict(value: dict[object, object], depth: int) -> tuple[list[str | int], str] | None:
    if depth == MAX_DEPTH:
        return [], f"nested more than {MAX_DEPTH} deep"
    for key, item in value.items():
        if type(key) is not str:
            given = f" {shown_number(key)}" if isinstance(key, int | float | None) else ""
            return [], f"the key{given} is of type {type(key).__name__}, and a key is a str: convert it with str()"
        reason = _text_problem(key)
        if reason is not None:
            return [key], f"in the key: {reason}"
        problem = _problem(item, depth + 1)
        if problem is not None:
            problem[0].append(key)
            return problem
    return None


def _problem_in_list(value: list[object] | tuple[object, ...], depth: int) -> tuple[list[str | int], str] | None:
    if depth == MAX_DEPTH:
        return [], f"nested more than {MAX_DEPTH} deep"
    for index, item in enumerate(value):
        problem = _problem(item, depth + 1)
        if problem is not None:
            problem[0].append(index)
            return problem
    return None


def _text_problem(text: str) -> str | None:
    if "\0" in text:
        return "the text holds U+0000, which not every engine can hold: remove it"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "the text holds a lone surrogate: decode it with errors='replace', for example"
    return None


def hint_for(type_name: str) -> str:
    """What to do about a value of a type that is only known by its name."""
    return _HINTS.get(type_name, _ANY_HINT)


def _hint(value: object) -> str:
    for kind in type(value).__mro__:
        if kind.__name__ in _HINTS:
            return _HINTS[kind.__name__]
        if kind.__name__ == "Enum":
            return "convert it with .value"
    if callable(getattr(type(value), "model_dump", None)):
        return "convert it with .model_dump(mode='json')"
    for kind in (str, bool, int, float, dict, list, tuple):
        if isinstance(value, kind):
            return f"a subclass of {kind.__name__} would not come back as one: convert it with {kind.__name__}()"
    if callable(getattr(value, "item", None)):
        return "convert it with .item()"
    if isinstance(value, msgspec.Struct) or hasattr(type(value), "__dataclass_fields__"):
        return "convert it with msgspec.to_builtins(), or use a typed namespace view"
    return _ANY_HINT
