"""Runs the public contract suite on encrypted files, by the driver that encrypts.

`contract_in_other_ways.py` has the rest, for who asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import apsw
import pytest

from mycelia_storage import open_storage
from mycelia_storage.engines.sqlite import pages
from mycelia_storage.engines.sqlite.connection import MINIMUM_SQLITE
from mycelia_storage.testing import StorageContract

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Unpack

    from mycelia_storage import Storage
    from mycelia_storage.options import StorageOptions

KEY = "correct horse battery staple"


@pytest.fixture(autouse=True)
def a_key_is_derived_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deriving one is slow on purpose, and each of these tests makes a file; other tests derive them as they are."""
    monkeypatch.setattr(pages, "_ITERATIONS", 1)


class TestEncrypted(StorageContract):
    def open_store(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
        options["encryption_key"] = KEY
        return open_storage(directory / "store.db", **options)


def test_the_driver_brings_a_sqlite_that_does_not_corrupt() -> None:
    assert hasattr(apsw, "mc_version")
    assert tuple(int(part) for part in apsw.sqlite_lib_version().split(".")) >= MINIMUM_SQLITE
