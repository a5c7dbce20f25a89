"""Random sequences of all verbs on memory and SQLite at once: every answer and every error has to be the same.

The machine is public (`mycelia_storage.testing.differential_verbs`). The normal run takes half a minute;
`--hypothesis-profile=long` goes on looking (see conftest.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, settings

from mycelia_storage import open_storage
from mycelia_storage.testing.differential_verbs import DifferentialMachine

if TYPE_CHECKING:
    from pathlib import Path

    from mycelia_storage import Storage
    from mycelia_storage.testing import FakeClock


class MemoryAndSQLite(DifferentialMachine):
    def open_other(self, directory: Path, clock: FakeClock) -> Storage:
        # Nobody else holds a lock here; what waits for one would wait for itself, and need not take long.
        return open_storage(directory / "store.db", clock=clock, busy_timeout=0.25)


TestMemoryAndSQLite = MemoryAndSQLite.TestCase
# Long sequences are the interesting ones; how many there are is the profile's to say, above the least that is useful.
TestMemoryAndSQLite.settings = settings(
    max_examples=max(200, settings().max_examples), stateful_step_count=50, report_multiple_bugs=False
)


class MemoryAndALateClock(DifferentialMachine):
    def open_other(self, directory: Path, clock: FakeClock) -> Storage:
        return open_storage("memory:", clock=lambda: clock() - 0.000001)


def test_a_difference_is_found() -> None:
    machine = MemoryAndALateClock.TestCase
    machine.settings = settings(max_examples=20, phases=[Phase.generate])
    with pytest.raises(AssertionError, match="differs from memory"):
        machine("runTest").runTest()
