"""The whole contract of a store as one class, put together of its parts.

Subclassed by the tests of every engine; see the docstring of the package.
"""

from __future__ import annotations

from mycelia_storage.testing.changing import ChangingContract
from mycelia_storage.testing.finding import ListKeysContract, ScanContract
from mycelia_storage.testing.indexes import IndexContract, UniqueIndexContract
from mycelia_storage.testing.many import LoadContract, ManyContract
from mycelia_storage.testing.mapping import NamespaceViewContract
from mycelia_storage.testing.moving import CopyContract
from mycelia_storage.testing.namespaces import NamespacesContract
from mycelia_storage.testing.nesting import NestedTransactionContract
from mycelia_storage.testing.one_entry import OneEntryContract
from mycelia_storage.testing.queries import FilteringContract, PagingContract, QueryContract
from mycelia_storage.testing.store import ErrorsContract, StoreContract
from mycelia_storage.testing.threads import ThreadsContract
from mycelia_storage.testing.transactions import (
    ReadOnlyTransactionContract,
    RunTransactionContract,
    TransactionContract,
)
from mycelia_storage.testing.typed import TypedViewContract
from mycelia_storage.testing.values import KeysContract, ValuesContract
from mycelia_storage.testing.versions import ExpiryContract, VersionsContract


class StorageContract(
    OneEntryContract,
    ChangingContract,
    VersionsContract,
    ExpiryContract,
    ManyContract,
    LoadContract,
    ListKeysContract,
    ScanContract,
    QueryContract,
    PagingContract,
    FilteringContract,
    IndexContract,
    UniqueIndexContract,
    NamespacesContract,
    NamespaceViewContract,
    TypedViewContract,
    TransactionContract,
    ReadOnlyTransactionContract,
    NestedTransactionContract,
    RunTransactionContract,
    ThreadsContract,
    ValuesContract,
    KeysContract,
    StoreContract,
    CopyContract,
    ErrorsContract,
):
    """The whole contract. A subclass says how a store is opened; see the package's docstring."""
