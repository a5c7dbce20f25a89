"""JSON documents under a namespace and a key, with metadata, transactions, expiry and versions.

One contract on SQLite and in memory: `open_storage` is where to begin.
"""

from mycelia_storage.arguments import KEEP, MISSING
from mycelia_storage.entries import (
    CheckReport,
    Entry,
    LoadProblem,
    LoadReport,
    NamespaceInfo,
    Put,
    Status,
)
from mycelia_storage.errors import (
    BatchError,
    CapacityError,
    ConfigError,
    InvalidKeyError,
    InvalidNamespaceError,
    InvalidValueError,
    KeyExistsError,
    KeyNotFoundError,
    NamespaceExistsError,
    NamespaceNotEmptyError,
    NamespaceNotFoundError,
    NotAStorageFileError,
    OutcomeUnknownError,
    SchemaVersionError,
    StorageBusyError,
    StorageClosedError,
    StorageCorruptError,
    StorageError,
    StorageFullError,
    StorageIOError,
    StorageReadOnlyError,
    StorageTimeoutError,
    TransactionConflictError,
    TransactionError,
    ValueTypeError,
    VersionConflictError,
)
from mycelia_storage.keys import escape_pattern
from mycelia_storage.namespace import Namespace
from mycelia_storage.options import StorageOptions
from mycelia_storage.scan import Scan
from mycelia_storage.storage import Storage, open_storage
from mycelia_storage.transaction import Transaction

__version__ = "0.1.0"

__all__ = [
    "KEEP",
    "MISSING",
    "BatchError",
    "CapacityError",
    "CheckReport",
    "ConfigError",
    "Entry",
    "InvalidKeyError",
    "InvalidNamespaceError",
    "InvalidValueError",
    "KeyExistsError",
    "KeyNotFoundError",
    "LoadProblem",
    "LoadReport",
    "Namespace",
    "NamespaceExistsError",
    "NamespaceInfo",
    "NamespaceNotEmptyError",
    "NamespaceNotFoundError",
    "NotAStorageFileError",
    "OutcomeUnknownError",
    "Put",
    "Scan",
    "SchemaVersionError",
    "Status",
    "Storage",
    "StorageBusyError",
    "StorageClosedError",
    "StorageCorruptError",
    "StorageError",
    "StorageFullError",
    "StorageIOError",
    "StorageOptions",
    "StorageReadOnlyError",
    "StorageTimeoutError",
    "Transaction",
    "TransactionConflictError",
    "TransactionError",
    "ValueTypeError",
    "VersionConflictError",
    "escape_pattern",
    "open_storage",
]
