"""Runs the public contract suites on a PostgreSQL server: called directly, awaited, and through the kernel's facet."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from mycelia_storage import AsyncStorage, StorageFacet, open_storage
from mycelia_storage.testing import (
    DrivenStorage,
    FacetContract,
    NestedTransactionContract,
    RunTransactionContract,
    ScanContract,
    StorageContract,
    ThreadsContract,
    TransactionContract,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from typing import Unpack

    from mycelia_storage import Storage
    from mycelia_storage.options import StorageOptions


class OnPostgres:
    """A schema stands for a directory."""

    @pytest.fixture(autouse=True)
    def place(self, postgres_dsn: str, new_postgres_schema: Callable[[], str]) -> None:
        self.dsn = postgres_dsn
        self.schemas = defaultdict[object, str](new_postgres_schema)

    def open_on_server(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
        options["schema"] = self.schemas[directory]
        return open_storage(self.dsn, **options)


class TestPostgres(OnPostgres, StorageContract):
    def open_store(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
        return self.open_on_server(directory, **options)


class TestAsyncPostgres(
    OnPostgres, ScanContract, TransactionContract, NestedTransactionContract, RunTransactionContract, ThreadsContract
):
    """Those parts where it matters who waits for whom: the verbs themselves are the same objects."""

    def open_store(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
        return DrivenStorage(self.open_on_server(directory, **options))


class TestFacetOverPostgres(OnPostgres, FacetContract):
    write_lock = False

    @contextlib.asynccontextmanager
    async def open_facet(self, directory: Path, **options: Unpack[StorageOptions]) -> AsyncIterator[StorageFacet]:
        fronted = AsyncStorage(self.open_on_server(directory, **options))
        try:
            async with StorageFacet(fronted) as facet:
                yield facet
        finally:
            await fronted.close()
