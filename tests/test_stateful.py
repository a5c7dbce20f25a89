"""Random sequences of all verbs on memory and another engine at once: every answer and every error has to be the same.

The machine is public (`mycelia_storage.testing.differential_verbs`). The normal run takes half a minute for SQLite and
a few seconds for PostgreSQL; `--hypothesis-profile=long` runs 20,000 sequences of each (see conftest.py), and with `-s`
says how many were run.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from mycelia_storage import open_storage, upkeep
from mycelia_storage.testing.differential_verbs import DifferentialMachine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import psycopg

    from mycelia_storage import Storage
    from mycelia_storage.testing import FakeClock

IS_SHORT = settings().max_examples == 100
# How many sequences, and how long they may be. Long ones get furthest; of short ones more can be run. In parts, so that
# it is seen how far it is.
LONG_FORM = ((250, 50), (4_750, 10)) * 4


@pytest.fixture(autouse=True)
def nothing_is_cleaned_up_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a minute, which a sequence may last on a machine that was halted, its answers would be others."""
    monkeypatch.setattr(upkeep, "CLEAN_UP_EVERY", 1e6)


class Counting(DifferentialMachine):
    """Counts what was really run, and keeps the first error."""

    sequences = 0
    calls = 0
    first_error = ""

    def compare(self, call: Callable[[Any], Any], memory: Any, other: Any) -> Any:
        type(self).calls += 1
        try:
            return super().compare(call, memory, other)
        except Exception:
            type(self).first_error = type(self).first_error or traceback.format_exc()
            raise

    def teardown(self) -> None:
        super().teardown()
        type(self).sequences += 1


def run(machine: type[Counting], *forms: tuple[int, int]) -> None:
    for examples, steps in forms:
        how = settings(max_examples=examples, stateful_step_count=steps, report_multiple_bugs=False)
        try:
            run_state_machine_as_test(machine, settings=how)
        except Flaky as error:
            # An error that did not come again: the same steps go further then, which looks as if other ones were drawn.
            error.add_note(f"The first error was:\n{machine.first_error}")
            raise
        print(f"\n{machine.__name__}: {machine.sequences:,} sequences with {machine.calls:,} comparisons")


class MemoryAndSQLite(Counting):
    def open_other(self, directory: Path, clock: FakeClock) -> Storage:
        # Nobody else holds a lock here; what waits for one would wait for itself, and need not take long.
        return open_storage(directory / "store.db", clock=clock, busy_timeout=0.25)


def test_memory_and_sqlite() -> None:
    run(MemoryAndSQLite, *([(60, 50)] if IS_SHORT else LONG_FORM))


HELD = """
SELECT EXISTS (
  SELECT FROM pg_locks WHERE relation = to_regclass(%s || '.entries') AND mode = 'AccessExclusiveLock' AND granted
)"""
CREATED = """
SELECT 'INDEX', indexname::text FROM pg_indexes
WHERE schemaname = %(schema)s AND indexname NOT LIKE '%%\\_pkey' AND indexname <> 'entries_expiry'
UNION ALL SELECT 'STATISTICS', stxname::text FROM pg_statistic_ext WHERE stxnamespace = %(schema)s::regnamespace"""
EMPTY = """
TRUNCATE {0}.entries, {0}.namespaces, {0}.indexes;
UPDATE {0}.state SET floor = 0;
INSERT INTO {0}.namespaces VALUES ('default', NULL, {1})"""


class OneSchema:
    """A schema for one sequence after the other, as good as new for each: to make one takes as long as a sequence."""

    def __init__(self, dsn: str, name: str, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self.dsn = dsn
        self.name = name
        self.connection = connection
        self._directory: Path | None = None

    def open(self, directory: Path, clock: FakeClock) -> Storage:
        if self._directory not in (None, directory):
            self._empty(clock)
        self._directory = directory
        return open_storage(self.dsn, schema=self.name, clock=clock)

    def _empty(self, clock: FakeClock) -> None:
        from psycopg.sql import SQL, Identifier

        with self.connection.transaction():
            for kind, name in self.connection.execute(CREATED, {"schema": self.name}).fetchall():
                self.connection.execute(SQL("DROP {} {}").format(SQL(kind), Identifier(self.name, name)))
            self.connection.execute(SQL(EMPTY).format(Identifier(self.name), clock.micros // 1000))


def test_memory_and_postgres(
    postgres_dsn: str, postgres_schema: str, postgres_connection: psycopg.Connection[tuple[Any, ...]]
) -> None:
    schema = OneSchema(postgres_dsn, postgres_schema, postgres_connection)

    class MemoryAndPostgres(Counting):
        def open_other(self, directory: Path, clock: FakeClock) -> Storage:
            return schema.open(directory, clock)

        def do_readers_wait(self) -> bool:
            return postgres_connection.execute(HELD, (postgres_schema,)).fetchone() == (True,)

    run(MemoryAndPostgres, *([(10, 50)] if IS_SHORT else LONG_FORM))


class MemoryAndALateClock(DifferentialMachine):
    def open_other(self, directory: Path, clock: FakeClock) -> Storage:
        return open_storage("memory:", clock=lambda: clock() - 0.000001)


def test_a_difference_is_found() -> None:
    machine = MemoryAndALateClock.TestCase
    machine.settings = settings(max_examples=20, phases=[Phase.generate])
    with pytest.raises(AssertionError, match="differs from memory"):
        machine("runTest").runTest()


class MemoryAndOneThatIsBusyOnce(MemoryAndSQLite):
    """As a server is on a machine that has too much to do."""

    steps = 0

    def both(self, call: Callable[[Any], Any]) -> Any:
        type(self).steps += 1
        if type(self).steps == 40:
            self.compare(lambda verbs: verbs is self.memory, self.memory, self.other)
        return super().both(call)


def test_of_a_difference_that_does_not_come_again_it_is_said_what_it_was() -> None:
    """And not that the steps were drawn otherwise, which is how it looks."""
    with pytest.raises(Flaky) as raised:
        run(MemoryAndOneThatIsBusyOnce, (20, 50))
    assert "differs from memory" in "".join(raised.value.__notes__)
