"""Paths into a document: `address.city`, `tags[0]`, `"a.b"."c d"`.

Called by the verbs that take a field. A str segment enters objects only, an int segment arrays only.
"""

from __future__ import annotations

import json
import re
from typing import Final, TypeAlias

Segments: TypeAlias = tuple[str | int, ...]

_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_PLAIN: Final = re.compile(r'[^."\[\]]+')
_INDEX: Final = re.compile(r"\[(0|[1-9][0-9]*)\]")
# No array is longer; SQLite reads an index as 32 bits.
MAX_INDEX: Final = 2**31 - 1


def parse_path(text: str) -> Segments:
    """The segments of a path. Raises ValueError that says what is wrong and at which character."""
    segments: list[str | int] = []
    position = 0
    expects_name = True
    while position < len(text) or expects_name:
        if not expects_name and text[position] == ".":
            position += 1
            expects_name = True
            continue
        index = _INDEX.match(text, position)
        if index is not None and (not expects_name or not segments):
            if len(index[1]) > 10 or int(index[1]) > MAX_INDEX:
                raise ValueError(f"the index at character {position} is too large")
            segments.append(int(index[1]))
            position = index.end()
            expects_name = False
        elif expects_name:
            name, position = _read_name(text, position)
            segments.append(name)
            expects_name = False
        else:
            raise ValueError(f"'.' or an index like [0] is expected at character {position}")
    return tuple(segments)


def _read_name(text: str, position: int) -> tuple[str, int]:
    quoted = _QUOTED.match(text, position)
    if quoted is not None:
        try:
            return json.loads(quoted[0]), quoted.end()
        except ValueError:
            raise ValueError(f"the quoted name at character {position} is no JSON string") from None
    plain = _PLAIN.match(text, position)
    if plain is None:
        raise ValueError(f"a name is expected at character {position}; a name with . [ ] or quotes is quoted like JSON")
    return plain[0], plain.end()
