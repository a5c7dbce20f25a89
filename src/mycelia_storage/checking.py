"""The rules for what is stored, and the list of what breaks them: the part of a check that every engine shares.

Called by the engines for `check`, by migrations and restores, and by `salvage`.
"""

from __future__ import annotations

from typing import Final

from mycelia_storage.arguments import MAX_TIME_MS
from mycelia_storage.codec import problem_of_text
from mycelia_storage.errors import StorageCorruptError, StorageError
from mycelia_storage.keys import ORIGIN, check_key, check_namespace

# Twice the year 9999 in µs. No version comes near it, whatever a clock says.
MAX_VERSION: Final = 2**59
SHOWN_PROBLEMS: Final = 50


class Findings:
    """What a check has looked at, and what it found wrong: so many, and the first of them in words."""

    def __init__(self) -> None:
        self.entries: int = 0
        self.namespaces: int = 0
        self.indexes: int = 0
        self.count: int = 0
        self.shown: list[str] = []

    def add(self, problem: str) -> None:
        """One more. Keys and namespaces are named, values never."""
        self.count += 1
        if len(self.shown) < SHOWN_PROBLEMS:
            self.shown.append(problem)

    def error(self) -> StorageCorruptError:
        """All of them as one error."""
        more = f"; and {self.count - len(self.shown)} more" if self.count > len(self.shown) else ""
        what = "1 problem" if self.count == 1 else f"{self.count} problems"
        return StorageCorruptError(f"{what}: {'; '.join(self.shown)}{more}", tuple(self.shown), self.count)


def named(namespace: object, key: object) -> str:
    """An entry in a message."""
    return f"{key!r} in namespace {namespace!r}"


def problem_of_entry(
    namespace: object, key: object, value: object, metadata: object, created_at: object, updated_at: object
) -> str | None:
    """Which rule an entry breaks that both versions of the schema have, if any."""
    return (
        problem_of_names(namespace, key)
        or _problem_of_text("the value", value)
        or (None if metadata is None else _problem_of_text("the metadata", metadata, is_object=True))
        or _problem_of_time("created_at", created_at)
        or _problem_of_time("updated_at", updated_at)
    )


def problem_of_newer(version: object, expires_at: object) -> str | None:
    """The same for what version 2 of the schema has besides."""
    if type(version) is not int or not 1 <= version < MAX_VERSION:
        return "its version is none"
    return None if expires_at is None else _problem_of_time("expires_at", expires_at)


def problem_of_namespace(name: object, metadata: object, created_at: object) -> str | None:
    """Which rule a registration breaks, if any."""
    return (
        (None if name == ORIGIN else problem_of_names(name, "any"))
        or (None if metadata is None else _problem_of_text("the metadata", metadata, is_object=True))
        or _problem_of_time("created_at", created_at)
    )


def problem_of_names(namespace: object, key: object) -> str | None:
    """Why they are no namespace and key, if so."""
    try:
        check_namespace(namespace)
        check_key(key)
    except StorageError as error:
        return str(error)
    return None


def _problem_of_text(what: str, text: object, *, is_object: bool = False) -> str | None:
    reason = problem_of_text(text, is_object=is_object)
    return None if reason is None else f"{what}: {reason}"


def _problem_of_time(what: str, milliseconds: object) -> str | None:
    if isinstance(milliseconds, int) and 0 <= milliseconds <= MAX_TIME_MS:
        return None
    return f"{what} is no time in milliseconds"
