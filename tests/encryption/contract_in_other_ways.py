"""Runs the public contract suite on encrypted files in more ways; only where it is named, since it takes a minute:

PYTHONPATH=src .venv-encryption/bin/python -m pytest tests/encryption/contract_in_other_ways.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mycelia_storage import open_storage
from mycelia_storage.testing import DrivenStorage, StorageContract

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Unpack

    from mycelia_storage import Storage
    from mycelia_storage.options import StorageOptions

KEY = b"correct horse battery staple"


class TestEncryptedWithoutWal(StorageContract):
    snapshots: ClassVar[bool] = False

    def open_store(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
        options["wal_mode"] = False
        options["encryption_key"] = KEY
        return open_storage(directory / "store.db", **options)


class TestAsyncEncrypted(StorageContract):
    def open_store(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
        options["encryption_key"] = KEY
        return DrivenStorage(open_storage(directory / "store.db", **options))


class TestNotEncrypted(StorageContract):
    """The driver that encrypts, and a store that is not encrypted."""

    def open_store(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
        return open_storage(directory / "store.db", **options)
