"""JSON documents under a namespace and a key, with metadata, transactions, expiry and versions.

One contract on SQLite, on PostgreSQL and in memory: `open_storage` is where to begin.
"""

from mycelia_storage.aio import AsyncNamespace, AsyncScan, AsyncStorage, AsyncTransaction, open_async_storage
from mycelia_storage.arguments import KEEP, MISSING
from mycelia_storage.engines.sqlite.rekeying import rekey
from mycelia_storage.entries import (
    CheckReport,
    CopyProgress,
    CopyReport,
    Entry,
    ImportProblem,
    ImportReport,
    IndexInfo,
    LoadProblem,
    LoadReport,
    LostEntry,
    NamespaceInfo,
    Plan,
    Put,
    SalvageReport,
    Status,
)
from mycelia_storage.errors import (
    BatchError,
    CapacityError,
    ConfigError,
    ContractError,
    CopyMismatchError,
    CopyTargetError,
    IndexExistsError,
    IndexNotFoundError,
    InvalidFilterError,
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
    StorageUnavailableError,
    TransactionConflictError,
    TransactionError,
    UniqueIndexError,
    ValueTypeError,
    VersionConflictError,
)
from mycelia_storage.facet import StorageFacet
from mycelia_storage.facet_contract import enforce_contract
from mycelia_storage.facet_result import StorageResult
from mycelia_storage.filters import Field, Filter
from mycelia_storage.foreign.importing import import_from
from mycelia_storage.keys import escape_pattern
from mycelia_storage.moving import catch_up, copy
from mycelia_storage.namespace import Namespace
from mycelia_storage.options import StorageOptions
from mycelia_storage.page import Page
from mycelia_storage.query import StorageQuery, field, match, path
from mycelia_storage.salvaging import salvage
from mycelia_storage.scan import Scan
from mycelia_storage.storage import Storage, open_storage
from mycelia_storage.transaction import Transaction

__version__ = "0.1.0"

__all__ = [
    "KEEP",
    "MISSING",
    "AsyncNamespace",
    "AsyncScan",
    "AsyncStorage",
    "AsyncTransaction",
    "BatchError",
    "CapacityError",
    "CheckReport",
    "ConfigError",
    "ContractError",
    "CopyMismatchError",
    "CopyProgress",
    "CopyReport",
    "CopyTargetError",
    "Entry",
    "Field",
    "Filter",
    "ImportProblem",
    "ImportReport",
    "IndexExistsError",
    "IndexInfo",
    "IndexNotFoundError",
    "InvalidFilterError",
    "InvalidKeyError",
    "InvalidNamespaceError",
    "InvalidValueError",
    "KeyExistsError",
    "KeyNotFoundError",
    "LoadProblem",
    "LoadReport",
    "LostEntry",
    "Namespace",
    "NamespaceExistsError",
    "NamespaceInfo",
    "NamespaceNotEmptyError",
    "NamespaceNotFoundError",
    "NotAStorageFileError",
    "OutcomeUnknownError",
    "Page",
    "Plan",
    "Put",
    "SalvageReport",
    "Scan",
    "SchemaVersionError",
    "Status",
    "Storage",
    "StorageBusyError",
    "StorageClosedError",
    "StorageCorruptError",
    "StorageError",
    "StorageFacet",
    "StorageFullError",
    "StorageIOError",
    "StorageOptions",
    "StorageQuery",
    "StorageReadOnlyError",
    "StorageResult",
    "StorageTimeoutError",
    "StorageUnavailableError",
    "Transaction",
    "TransactionConflictError",
    "TransactionError",
    "UniqueIndexError",
    "ValueTypeError",
    "VersionConflictError",
    "catch_up",
    "copy",
    "enforce_contract",
    "escape_pattern",
    "field",
    "import_from",
    "match",
    "open_async_storage",
    "open_storage",
    "path",
    "rekey",
    "salvage",
]
