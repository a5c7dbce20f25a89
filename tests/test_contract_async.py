"""Runs the public contract suite through `AsyncStorage`, on every engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mycelia_storage import open_storage
from mycelia_storage.testing import DrivenStorage, StorageContract

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Unpack

    from mycelia_storage import Storage
    from mycelia_storage.options import StorageOptions


class TestAsyncMemory(StorageContract):
    persistent: ClassVar[bool] = False

    def open_store(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
        return DrivenStorage(open_storage("memory:", **options))


class TestAsyncSQLite(StorageContract):
    def open_store(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
        return DrivenStorage(open_storage(directory / "store.db", **options))
