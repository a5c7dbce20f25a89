"""The public contract suite: what every engine has to do, as pytest classes. Needs pytest.

docs/writing-an-engine.md tells how an engine is written, tested and registered.

Run by this project's tests on its own engines, and by whoever writes another engine or wraps a store:

    from pathlib import Path
    from typing import Unpack

    from mycelia_storage import Storage, StorageOptions, open_storage
    from mycelia_storage.testing import StorageContract

    class TestMyStore(StorageContract):
        persistent = True      # what was stored is there when the same directory is opened again
        snapshots = True       # a scan sees one moment

        def open_store(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
            return open_storage(directory / "my.db", **options)

`open_store` is called with a fresh directory for each test, and with the options that the test needs: a `clock`
that stands still above all. It has to pass them on. `ContractBase` has all flags that an engine may set to say that it
does less; the suite asserts the weaker behaviour then. Its parts can also be run one by one, as the bases of a test
class, in place of `StorageContract`.

`FacetContract` is the same for the kernel's contract: a subclass says how a facet is opened.

`DrivenStorage` makes a store out of an `AsyncStorage`, whose awaited verbs the suite then calls.

Two stores can also be held against each other by random sequences of all verbs: see `DifferentialMachine` in
`mycelia_storage.testing.differential_verbs`, and `strategies` beside it. These need Hypothesis.

pytest shows what differs in a failed assert only in modules that it has rewritten. Importing this package takes care
of that for the suite; a module of your own with asserts, imported by your tests, needs a
`pytest.register_assert_rewrite("its.name")` in your `conftest.py`, before it is imported.
"""

from __future__ import annotations

from importlib.util import find_spec

from mycelia_storage.testing.clock import FakeClock

if find_spec("pytest") is not None:  # the suite needs it; the clock and `postgres_server` do not
    from mycelia_storage.testing import _rewrite as _rewrite
    from mycelia_storage.testing.bad_values import BAD_VALUES, BadValue
    from mycelia_storage.testing.base import ContractBase, in_another_thread
    from mycelia_storage.testing.changing import ChangingContract
    from mycelia_storage.testing.compare import difference
    from mycelia_storage.testing.contract import StorageContract
    from mycelia_storage.testing.driving import DrivenStorage
    from mycelia_storage.testing.facet import FacetContract
    from mycelia_storage.testing.finding import ListKeysContract, ScanContract
    from mycelia_storage.testing.indexes import IndexContract, UniqueIndexContract
    from mycelia_storage.testing.many import LoadContract, ManyContract
    from mycelia_storage.testing.mapping import NamespaceViewContract
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

__all__ = [
    "BAD_VALUES",
    "BadValue",
    "ChangingContract",
    "ContractBase",
    "DrivenStorage",
    "ErrorsContract",
    "ExpiryContract",
    "FacetContract",
    "FakeClock",
    "FilteringContract",
    "IndexContract",
    "KeysContract",
    "ListKeysContract",
    "LoadContract",
    "ManyContract",
    "NamespaceViewContract",
    "NamespacesContract",
    "NestedTransactionContract",
    "OneEntryContract",
    "PagingContract",
    "QueryContract",
    "ReadOnlyTransactionContract",
    "RunTransactionContract",
    "ScanContract",
    "StorageContract",
    "StoreContract",
    "ThreadsContract",
    "TransactionContract",
    "TypedViewContract",
    "UniqueIndexContract",
    "ValuesContract",
    "VersionsContract",
    "difference",
    "in_another_thread",
]
