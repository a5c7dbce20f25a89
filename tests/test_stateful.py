"""Random sequences of all verbs on memory and another engine at once: every answer and every error has to be the same.

The machine is public (`mycelia_storage.testing.differential_verbs`). The normal run takes half a minute for SQLite and
a few seconds for PostgreSQL; `--hypothesis-profile=long` goes on looking (see conftest.py).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from mycelia_storage import open_storage
from mycelia_storage.testing.differential_verbs import DifferentialMachine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import psycopg

    from mycelia_storage import Storage
    from mycelia_storage.testing import FakeClock


class MemoryAndSQLite(DifferentialMachine):
    def open_other(self, directory: Path, clock: FakeClock) -> Storage:
        # Nobody else holds a lock here; what waits for one would wait for itself, and need not take long.
        return open_storage(directory / "store.db", clock=clock, busy_timeout=0.25)


TestMemoryAndSQLite = MemoryAndSQLite.TestCase
# Long sequences are the interesting ones; how many there are is the profile's to say, above the least that is useful.
TestMemoryAndSQLite.settings = settings(
    max_examples=60 if settings().max_examples == 100 else settings().max_examples,
    stateful_step_count=50,
    report_multiple_bugs=False,
)


HELD = """
SELECT EXISTS (
  SELECT FROM pg_locks WHERE relation = to_regclass(%s || '.entries') AND mode = 'AccessExclusiveLock' AND granted
)"""


def test_memory_and_postgres(
    postgres_dsn: str,
    new_postgres_schema: Callable[[], str],
    postgres_connection: psycopg.Connection[tuple[Any, ...]],
) -> None:
    schemas = defaultdict[object, str](new_postgres_schema)

    class MemoryAndPostgres(DifferentialMachine):
        def open_other(self, directory: Path, clock: FakeClock) -> Storage:
            return open_storage(postgres_dsn, schema=schemas[directory], clock=clock)

        def do_readers_wait(self) -> bool:
            return postgres_connection.execute(HELD, (schemas[self.directory],)).fetchone() == (True,)

    short = settings().max_examples == 100
    machine_settings = settings(max_examples=10 if short else 300, stateful_step_count=50, report_multiple_bugs=False)
    run_state_machine_as_test(MemoryAndPostgres, settings=machine_settings)


class MemoryAndALateClock(DifferentialMachine):
    def open_other(self, directory: Path, clock: FakeClock) -> Storage:
        return open_storage("memory:", clock=lambda: clock() - 0.000001)


def test_a_difference_is_found() -> None:
    machine = MemoryAndALateClock.TestCase
    machine.settings = settings(max_examples=20, phases=[Phase.generate])
    with pytest.raises(AssertionError, match="differs from memory"):
        machine("runTest").runTest()
