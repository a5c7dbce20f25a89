"""The arguments that many verbs share: what is acceptable, and what stands for "not given".

Called by the verbs. What is wrong is an InvalidValueError that names the argument.
"""

from __future__ import annotations

import enum
import math
import threading
from collections.abc import Iterable
from datetime import timedelta
from typing import Final, Literal, TypeAlias, cast

from mycelia_storage.errors import InvalidValueError
from mycelia_storage.keys import check_namespace

MAX_TIME_MS: Final = 253_402_300_799_999  # the last millisecond of the year 9999
_MAX_TTL_SECONDS: Final = 7_000 * 365 * 86_400
_SHOWN: Final = 80  # characters of a text, or bits of an integer
_MICROSECOND: Final = timedelta(microseconds=1)


class _NotGiven(enum.Enum):
    MISSING = "MISSING"
    KEEP = "KEEP"

    def __repr__(self) -> str:
        return self.name


Missing: TypeAlias = Literal[_NotGiven.MISSING]
Keep: TypeAlias = Literal[_NotGiven.KEEP]
MISSING: Final = _NotGiven.MISSING
KEEP: Final = _NotGiven.KEEP


def shown(value: object) -> str:
    """What was given, for a message: a short text, or of anything else the type.

    Nothing of the value's own is run, which might raise, and no message is long because a value is.
    """
    kind = type(value)
    if not issubclass(kind, str):
        return kind.__name__
    text = str.__getitem__(cast("str", value), slice(_SHOWN + 1))
    return ascii(text) if len(text) <= _SHOWN else ascii(text[:_SHOWN]) + "…"


def shown_number(value: object) -> str:
    """The same for what should have been a number, or True, False or None: these are shown."""
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return repr(value)
    if kind is int:
        bits = cast("int", value).bit_length()
        return repr(value) if bits <= _SHOWN else f"an integer of {bits:,} bits"
    return shown(value)


def ttl_or_keep(ttl: float | timedelta | Keep | None) -> int | Keep | None:
    """As `ttl_ms`, for the verbs that can keep an expiry as it is."""
    return KEEP if ttl is KEEP else ttl_ms(ttl)


def ttl_ms(ttl: float | timedelta | None) -> int | None:
    """A time to live in whole milliseconds, rounded up."""
    if ttl is None:
        return None
    if isinstance(ttl, int | float) and ttl > _MAX_TTL_SECONDS:
        raise InvalidValueError("ttl: it is longer than 7,000 years; None means that the entry stays")
    if isinstance(ttl, timedelta):
        microseconds = ttl // _MICROSECOND
    elif isinstance(ttl, bool) or not isinstance(ttl, int | float):
        raise InvalidValueError(f"ttl: seconds or a timedelta are needed, not {type(ttl).__name__}")
    elif not ttl > -_MAX_TTL_SECONDS:  # NaN too; an int may be beyond all floats
        raise InvalidValueError(f"ttl: {shown_number(ttl)} is no time; None means that the entry stays")
    else:
        # Through whole microseconds first: 1.1 * 1000 is a little more than 1100, and would round up to 1101.
        microseconds = max(round(ttl * 1_000_000), 1 if ttl > 0 else 0)
    if microseconds <= 0:
        raise InvalidValueError(f"ttl: {ttl} is not greater than 0; None means that the entry stays")
    return -(-microseconds // 1000)


def expiry(now: int, lasting: int | Keep | None) -> int | None:
    """When an entry written `now` (µs) for `lasting` milliseconds expires, in milliseconds since 1970."""
    if lasting is None or lasting is KEEP:
        return None
    expires_at = now // 1000 + lasting
    if expires_at > MAX_TIME_MS:
        raise InvalidValueError(
            f"ttl: {lasting / 1000:g} seconds from now are beyond the year 9999; None means that it stays"
        )
    return expires_at


def check_if_version(version: object) -> int | None:
    """A version to expect, 0 or more."""
    return None if version is None else check_whole("if_version", version, least=0)


def check_whole(name: str, value: object, *, least: int) -> int:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        given = shown_number(value) if isinstance(value, int | float | None) else type(value).__name__
        raise InvalidValueError(f"{name}: {given} is no whole number of {least} or more")
    return int(value)


def check_duration(name: str, value: object, *, least: float = 0.0) -> float:
    """A duration in seconds, or a timedelta, as seconds."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, int | float) and seconds > threading.TIMEOUT_MAX:
        raise InvalidValueError(f"{name}: it is longer than {threading.TIMEOUT_MAX:,.0f} seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidValueError(f"{name}: seconds or a timedelta are needed, not {type(value).__name__}")
    if not seconds >= least or math.isinf(seconds):
        raise InvalidValueError(f"{name}: {shown_number(seconds)} is no duration of {least:g} seconds or more")
    return float(seconds)


def check_function(name: str, function: object) -> None:
    """Something that can be called."""
    if not callable(function):
        raise InvalidValueError(f"{name}: a function is needed, not {type(function).__name__}")


def check_progress(progress: object) -> None:
    """A function to tell how far something is, or None."""
    if progress is not None and not callable(progress):
        raise InvalidValueError(f"progress: a function is needed, not {type(progress).__name__}")


def check_one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """One of some words."""
    if not isinstance(value, str) or value not in known:
        raise InvalidValueError(f"{name}: {shown(value)} is none of {', '.join(map(repr, known))}")


def check_chosen(namespaces: object) -> list[str] | None:
    """The names of some namespaces, each once and in order; None means all. Raises InvalidValueError."""
    if namespaces is None:
        return None
    if isinstance(namespaces, str) or not isinstance(namespaces, Iterable):
        raise InvalidValueError("namespaces: several names are needed, in a list for instance")
    names = sorted({check_namespace(name) for name in namespaces})
    if not names:
        raise InvalidValueError("namespaces: none is named; None means all of them")
    return names


def check_flag(name: str, value: object) -> bool:
    """True or False, and nothing that looks like it. Raises InvalidValueError."""
    if not isinstance(value, bool):
        raise InvalidValueError(f"{name}: {type(value).__name__} is neither True nor False")
    return value
