"""How a command fails: the exit codes, and the errors that carry one.

Raised by every verb of the command line, turned into one line on standard error in `app.run`.
"""

from __future__ import annotations

from typing import Final

from mycelia_storage.errors import (
    ConfigError,
    CopyTargetError,
    IndexExistsError,
    IndexNotFoundError,
    InvalidFilterError,
    InvalidKeyError,
    InvalidNamespaceError,
    InvalidValueError,
    KeyNotFoundError,
    NamespaceNotFoundError,
    StorageCorruptError,
    StorageError,
    UniqueIndexError,
)

DONE: Final = 0
NOT_DONE: Final = 1
WRONG_USE: Final = 2
STORAGE_FAILED: Final = 3
INTERRUPTED: Final = 130  # as a shell reports SIGINT
NOBODY_READS: Final = 141  # as a shell reports SIGPIPE

# A value that a unique index refuses is for the script what a bad line is: this document, and not the store.
_NOT_DONE: Final = (KeyNotFoundError, NamespaceNotFoundError, IndexNotFoundError, UniqueIndexError)
_WRONG_ARGUMENT: Final = (
    ConfigError,
    CopyTargetError,
    IndexExistsError,
    InvalidFilterError,
    InvalidKeyError,
    InvalidNamespaceError,
    InvalidValueError,
)


class CommandError(Exception):
    """A failure that has a message for the user and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class InputError(CommandError):
    """What was looked for is not there, or the input holds what cannot be stored."""

    def __init__(self, message: str) -> None:
        super().__init__(message, NOT_DONE)


class UsageError(CommandError):
    """The command was called in a way that has no meaning."""

    def __init__(self, message: str) -> None:
        super().__init__(message, WRONG_USE)


def message_of(error: StorageError) -> str:
    """What a storage error says, with the verbs that help. (Its own words are for programs too, and name none.)"""
    if isinstance(error, StorageCorruptError):
        return f"{error}: keep the file, `restore` a backup into a new one, or `salvage` what can be read"
    return str(error)


def exit_code_of(error: StorageError) -> int:
    """The exit code that tells a script what a storage error means for it."""
    if isinstance(error, _NOT_DONE):
        return NOT_DONE
    if isinstance(error, _WRONG_ARGUMENT):
        return WRONG_USE
    return STORAGE_FAILED
