"""The query form of a document: the text that PostgreSQL reads as `jsonb`, beside the exact text that is kept.

Called by whoever writes a row, for values and metadata, and by `expressions.py` for operands.

jsonb holds numbers as decimals, so a number has to be written as the decimal that the library takes it for. For a
float that is its shortest form, with one exception: from 2**53 on that may be another whole number than the float is
(1.2345678901234567e16 is …568), and must not be equal to the integer that it looks like. Floats from 2**64 on are
greater than every integer, so they stay as they are, and short.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_EXACT_FLOATS: Final = 2**53
_GREATEST: Final = 2**64
_LEAST: Final = -(2**63)

# A number that may be so great: sixteen digits, or a positive exponent. Strings that look like it are told apart later.
_SUSPECT: Final = re.compile(r"[\[:,]\s*-?(?:\d{16}|\d[\d.]*[eE]\+?\d)")
_TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.]*(?:[eE][+-]?\d+)?', re.DOTALL)
_QUICK: Final = "-0123456789"


def query_form(text: str) -> str:
    """The text to be read as jsonb for a JSON text; nearly always the same one.

    Every number in it is the decimal that `expressions.number` makes of it as an operand.
    """
    if _SUSPECT.search(text) is None and text[:1] not in _QUICK:
        return text
    return _TOKEN.sub(_exact, text)


def forms_of(texts: Iterable[str | None]) -> list[str | None]:
    """The query forms of those texts that are not their own; None for the others."""
    forms: list[str | None] = []
    for text in texts:
        form = None if text is None else query_form(text)
        forms.append(None if form is text else form)
    return forms


def number(value: float) -> str:
    """A number as the decimal that it is taken for."""
    if isinstance(value, int):
        return str(value)
    return str(int(value)) if _EXACT_FLOATS <= abs(value) < _GREATEST else repr(value).replace("e+", "e")


def _exact(found: re.Match[str]) -> str:
    token = found[0]
    if token[0] == '"':
        return token
    is_integer = "." not in token and "e" not in token and "E" not in token
    # An integer beyond 64 bits is read as a float.
    if is_integer and (len(token) < 19 or _LEAST <= int(token) < _GREATEST):
        return token
    value = float(token)
    if not math.isfinite(value) or abs(value) < _EXACT_FLOATS:
        return token
    return number(value)
