"""A look at a whole value that came out of a pickle: what in it is no plain data, and where that stands.

Called by `pickles`, for values that are not plain for sure.
"""

from __future__ import annotations

from typing import Any, Final

from mycelia_storage.codec import MAX_DEPTH, hint_for, show_path
from mycelia_storage.foreign.found import NotPlainError

WRONG_KEY: Final = object()  # stands in a dict for the keys that are no texts
LONG_INT: Final = "int beyond 64 bits"


class Other:
    """Stands for an object that is no plain data. It is never made: this is what it would have been called."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name: str = name

    def __repr__(self) -> str:
        return self.name


class _FoundError(Exception):
    """Something that is no plain data. The way to it grows while the survey goes back up: innermost first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason: str = reason
        self.segments: list[str | int] = []


class Survey:
    """A look at a whole value: objects that are none, what contains itself, what is too deep or too long."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._measured: dict[int, tuple[int, int]] = {}  # by id: how deep, and how long the JSON is at least
        self._open: set[int] = set()

    def look_at(self, value: object) -> None:
        """Raises NotPlainError that names the place."""
        try:
            _, length = self._measure(value, 0)
        except _FoundError as found:
            raise NotPlainError(f"${show_path(reversed(found.segments))}: {found.reason}") from None
        if length > self._limit:
            raise NotPlainError(f"it spells more than {self._limit:,} bytes of JSON, the limit of a value")

    def _measure(self, value: object, depth: int) -> tuple[int, int]:
        if type(value) is str:
            return 0, len(value) + 2
        if isinstance(value, Other):
            raise _FoundError(_other_reason(value.name))
        if not isinstance(value, dict | list | tuple):
            return 0, 1
        known = self._measured.get(id(value))
        if known is None:
            if id(value) in self._open:
                raise _FoundError("it contains itself")
            if depth >= MAX_DEPTH:
                raise _FoundError(f"nested more than {MAX_DEPTH} deep")
            self._open.add(id(value))
            known = self._measure_members(value, depth + 1)
            self._open.discard(id(value))
            self._measured[id(value)] = known
        if depth + known[0] > MAX_DEPTH:
            raise _FoundError(f"nested more than {MAX_DEPTH} deep")
        return known

    def _measure_members(self, value: dict[Any, Any] | list[Any] | tuple[Any, ...], depth: int) -> tuple[int, int]:
        height, length = 0, 2
        members: Any = value.items() if isinstance(value, dict) else enumerate(value)
        for name, member in members:
            if name is WRONG_KEY:
                raise _FoundError(f"a key is of type {member}, and a key is a str: convert it with str()")
            try:
                below, long = self._measure(member, depth)
            except _FoundError as found:
                found.segments.append(name)
                raise
            height = max(height, below)
            # Held down, or sharing would make it a number of a thousand digits.
            length = min(length + long + (len(name) + 4 if type(name) is str else 1), self._limit + 1)
        return height + 1, length


def _other_reason(name: str) -> str:
    if name == LONG_INT:
        return "an integer beyond 64 bits: convert it to str"
    return f"{name} is not JSON: {hint_for(name.rpartition('.')[2])}"
