"""Every error a caller can meet, one class for each decision that the caller can take.

StorageError                      .code  .retryable  __cause__ = the driver's error
├── KeyNotFoundError              (also KeyError)
├── KeyExistsError
├── VersionConflictError          .expected  .actual
├── UniqueIndexError              .index  .key
├── IndexExistsError
├── IndexNotFoundError
├── NamespaceNotFoundError
├── NamespaceExistsError
├── NamespaceNotEmptyError
├── InvalidKeyError               (also ValueError)
├── InvalidNamespaceError         (also ValueError)
├── InvalidFilterError            (also ValueError)
├── InvalidValueError             (also ValueError)
├── ConfigError                   (also ValueError)
├── ValueTypeError                a stored document does not fit the view's type
├── BatchError                    .errors  .report
├── CapacityError
├── CopyTargetError
├── CopyMismatchError             .keys  .count
├── ContractError                 .problems
├── TransactionError              unknown, finished, expired, misused
├── TransactionConflictError      retryable
├── StorageBusyError              retryable
├── StorageTimeoutError
├── StorageFullError
├── StorageCorruptError           .problems  .count
├── StorageReadOnlyError
├── StorageIOError
├── StorageClosedError
├── StorageUnavailableError       retryable
├── OutcomeUnknownError           the commit may or may not have happened
├── SchemaVersionError
└── NotAStorageFileError

Errors name keys, namespaces, options and places inside a value, never the values themselves. All of them survive
pickling and copying.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mycelia_storage.entries import LoadReport


class StorageError(Exception):
    """The base of all errors of this library.

    `code` is a stable snake_case name for message boundaries. `retryable` says that the same call, unchanged, may
    succeed later. Where a driver's error was the reason, it is `__cause__`.
    """

    code: ClassVar[str] = "storage_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def __str__(self) -> str:
        # KeyError, a base of KeyNotFoundError, would print the repr of the message.
        return str(self.args[0])


class KeyNotFoundError(StorageError, KeyError):
    """No live entry has this key. Nothing was changed."""

    code = "key_not_found"


class KeyExistsError(StorageError):
    """`overwrite=False`, and the key is there. Nothing was written."""

    code = "key_exists"


class VersionConflictError(StorageError):
    """`if_version` did not hold. Nothing was written; read again, decide again, write again.

    `actual` is the version that is there, 0 where there is no entry; `expected` is what the caller gave.
    """

    code = "version_conflict"

    def __init__(self, message: str, expected: int = 0, actual: int = 0) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.expected, self.actual), _notes(self)


class UniqueIndexError(StorageError):
    """Two entries would have the same value in a unique index. Nothing was written.

    `index` is its name, `key` the one that was to be written ("" while an index is made); the message names both keys.
    """

    code = "unique_index"

    def __init__(self, message: str, index: str = "", key: str = "") -> None:
        super().__init__(message)
        self.index = index
        self.key = key

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.index, self.key), _notes(self)


class IndexExistsError(StorageError):
    """An index of this name is there, with another definition."""

    code = "index_exists"


class IndexNotFoundError(StorageError):
    """There is no index of this name."""

    code = "index_not_found"


class NamespaceNotFoundError(StorageError):
    """The namespace is neither registered nor does it hold an entry."""

    code = "namespace_not_found"


class NamespaceExistsError(StorageError):
    """The namespace to create is there already."""

    code = "namespace_exists"


class NamespaceNotEmptyError(StorageError):
    """The namespace to delete holds entries, and `recursive` was not given. Nothing was removed."""

    code = "namespace_not_empty"


class InvalidKeyError(StorageError, ValueError):
    """The key is no key: not a str, empty, too long, or with a character that not every engine can hold."""

    code = "invalid_key"


class InvalidNamespaceError(StorageError, ValueError):
    """The namespace's name is not valid, or this namespace cannot be deleted."""

    code = "invalid_namespace"


class InvalidFilterError(StorageError, ValueError):
    """A filter, sort, path or cursor is wrong; the message names the place. Nothing was read or written."""

    code = "invalid_filter"


class InvalidValueError(StorageError, ValueError):
    """A value, its metadata, or an argument such as `ttl` or `limit` is not acceptable. Nothing was written."""

    code = "invalid_value"


class ConfigError(StorageError, ValueError):
    """A target or an option is wrong. Nothing was opened."""

    code = "config"


class ValueTypeError(StorageError):
    """A stored document does not fit the type of the namespace view. The document itself is unharmed."""

    code = "value_type"


class BatchError(StorageError):
    """Some items of a batch are bad. `errors` maps each bad key to its error; nothing of the batch was written.

    A key that cannot stand in a mapping (a list, say) stands there as its repr. From `load`, `report` tells what
    the batches before this one have stored.
    """

    code = "batch"

    def __init__(
        self, message: str, errors: Mapping[Any, StorageError] | None = None, report: LoadReport | None = None
    ) -> None:
        super().__init__(message)
        self.errors: dict[Any, StorageError] = dict(errors or {})
        self.report = report

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.errors, self.report), _notes(self)


class CapacityError(StorageError):
    """A limit on how much the store may hold is reached. Nothing was written."""

    code = "capacity"


class CopyTargetError(StorageError):
    """The target of a `copy` is neither empty nor an untouched copy of its source.

    Nothing was written to it, unless the message names a key: somebody wrote that to it meanwhile, and it is as it was.
    """

    code = "copy_target"


class CopyMismatchError(StorageError):
    """After a `copy` the target is not the same as the source. The source is as it was; do not switch to the target.

    `keys` names what differs, as pairs of namespace and key, `count` says how much that is: the first thousand are
    named. Copying again mends what has another version, and compares everything once more.
    """

    code = "copy_mismatch"

    def __init__(self, message: str, keys: tuple[tuple[str, str], ...] = (), count: int = 0) -> None:
        super().__init__(message)
        self.keys = keys
        self.count = count

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.keys, self.count), _notes(self)


class ContractError(StorageError):
    """An object does not keep the kernel's storage contract. `problems` says of each member what is wrong with it."""

    code = "contract"

    def __init__(self, message: str, problems: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.problems: dict[str, str] = dict(problems or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.problems), _notes(self)


class TransactionError(StorageError):
    """The transaction is unknown, finished, expired or misused."""

    code = "transaction"


class TransactionConflictError(StorageError):
    """Another transaction came between. This one was rolled back; run it again (`run_transaction` does)."""

    code = "transaction_conflict"
    retryable = True


class StorageBusyError(StorageError):
    """Somebody else held the lock for longer than the time to wait. Nothing was written."""

    code = "busy"
    retryable = True


class StorageTimeoutError(StorageError):
    """The call took longer than its `timeout` and was stopped. Nothing was written."""

    code = "timeout"


class StorageFullError(StorageError):
    """No room on the disk. The transaction was rolled back."""

    code = "full"


class StorageCorruptError(StorageError):
    """The file is damaged. Nothing was written; keep the file, and restore a backup or `salvage` it.

    From `check`, `problems` says what is wrong, a line each, and `count` how many there are: the message and `problems`
    have the first fifty.
    """

    code = "corrupt"

    def __init__(self, message: str, problems: tuple[str, ...] = (), count: int = 0) -> None:
        super().__init__(message)
        self.problems = problems
        self.count = count

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.problems, self.count), _notes(self)


class StorageReadOnlyError(StorageError):
    """The store or its file cannot be written."""

    code = "read_only"


class StorageIOError(StorageError):
    """The operating system refused a read or a write, or the file was moved. The transaction was rolled back.

    Also what a store raises that writes nothing any more until it is closed and opened again; the message says so.
    """

    code = "io"


class StorageClosedError(StorageError):
    """The store was closed."""

    code = "closed"

    @classmethod
    def of(cls, where: str) -> StorageClosedError:
        """The usual one, of a store that is known by its path, or its server and database without a password."""
        return cls(f"{where}: the store is closed")


class StorageUnavailableError(StorageError):
    """The server cannot be reached, or the connection to it was lost before a commit. Nothing was written.

    The store goes on to work by itself when the server is back.
    """

    code = "unavailable"
    retryable = True


class OutcomeUnknownError(StorageError):
    """The commit may or may not have happened, but not in part: read before writing again.

    A store in a file has to be closed and opened again first.
    """

    code = "outcome_unknown"


class SchemaVersionError(StorageError):
    """The file's schema is newer than the library, or older with `migrate=False`, or cannot be migrated as it is.

    The file was not changed.
    """

    code = "schema_version"


class NotAStorageFileError(StorageError):
    """The file is no SQLite database, or a database of somebody else. It was not changed."""

    code = "not_a_storage_file"


def _notes(error: BaseException) -> dict[str, Any]:
    """What pickling must carry besides the constructor's arguments: notes added with `add_note`."""
    notes: list[str] | None = getattr(error, "__notes__", None)
    return {} if notes is None else {"__notes__": notes}
