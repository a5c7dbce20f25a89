"""Hazard: a process is killed in the middle of a migration, and the file is neither of the two versions."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import apsw
import pytest

from mycelia_storage import SchemaVersionError, open_storage
from mycelia_storage.engines.sqlite import schema

if TYPE_CHECKING:
    from collections.abc import Iterator

ORIGINAL = Path(__file__).parent / "data" / "original_adapter_v1.db"

# Runs in a process of its own: has a child for each line that it reads, which kills itself before the statement of that
# number, counted over all connections. (A child that is forked need not import everything first. Nothing is open then.)
DIES_AT = """
import os, signal, sys
import apsw
from mycelia_storage import open_storage

def die_at(target, fatal, direction):
    seen, armed = 0, True

    def count(*_):
        nonlocal seen
        seen += 1
        if armed and seen == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    def watch(connection):
        connection.exec_trace = count

    apsw.connection_hooks.append(watch)
    if direction == "up":
        open_storage(target).close()
    elif direction.startswith("new"):
        open_storage(target, wal_mode=direction == "new with wal").close()
    else:
        armed = False
        store = open_storage(target)
        seen, armed = 0, True
        store.migrate(to=1)
        store.close()

for line in sys.stdin:
    target, fatal, direction = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if not child:
        try:
            die_at(target, int(fatal), direction)
        finally:
            os._exit(sys.exc_info()[0] is not None)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Mortals:
    """Processes that are killed before a statement, one after the other."""

    def __init__(self) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-c", DIES_AT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._parent.communicate()

    def run_until(self, path: Path, fatal: int, direction: str) -> bool:
        """Whether the process came through alive."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(f"{path}\t{fatal}\t{direction}\n")
        self._parent.stdin.flush()
        code = int(self._parent.stdout.readline())
        assert code in (0, -signal.SIGKILL)
        return code == 0


@pytest.fixture
def mortals() -> Iterator[Mortals]:
    with Mortals() as mortals:
        yield mortals


def schema_of(path: Path) -> list[Any]:
    connection = apsw.Connection(str(path))
    try:
        assert connection.execute("PRAGMA integrity_check").get == "ok"
        return sorted(connection.execute("SELECT name FROM sqlite_schema").fetchall())
    finally:
        connection.close()


def copy_with_companions(source: Path, target: Path) -> None:
    for end in ("", "-wal", "-journal"):
        if Path(f"{source}{end}").exists():
            shutil.copyfile(f"{source}{end}", f"{target}{end}")


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_kill_before_any_statement_of_a_migration_leaves_one_version_whole(
    tmp_path: Path, mortals: Mortals, direction: str
) -> None:
    start = tmp_path / "start.db"
    shutil.copyfile(ORIGINAL, start)
    version_1 = schema_of(start)
    if direction == "down":
        open_storage(start).close()
    whole = {1: version_1}
    other = tmp_path / "other.db"
    shutil.copyfile(ORIGINAL, other)
    open_storage(other).close()
    whole[2] = schema_of(other)

    seen: set[int] = set()
    for fatal in range(1, 100):
        path = tmp_path / f"{fatal}.db"
        shutil.copyfile(start, path)
        survived = mortals.run_until(path, fatal, direction)
        look = tmp_path / f"{fatal}-look.db"
        copy_with_companions(path, look)
        found = [version for version, schema in whole.items() if schema == schema_of(look)]
        assert len(found) == 1, f"killed before statement {fatal}: neither version 1 nor 2"
        seen.add(found[0])
        with open_storage(path) as store:
            assert store.get_status().entries == 209
            assert store.get("big") == 9007199254740991
            store.check()
        if survived:
            break
    else:
        pytest.fail("the migration never came to its end")
    assert fatal > 12, "the kills fell between the statements of the migration"
    assert seen == {1, 2}


def test_a_kill_while_a_new_file_is_made_leaves_one_that_opens(tmp_path: Path, mortals: Mortals) -> None:
    for wal_mode in (True, False):
        for fatal in range(1, 100):
            path = tmp_path / f"{wal_mode}-{fatal}.db"
            survived = mortals.run_until(path, fatal, f"new {'with' if wal_mode else 'without'} wal")
            with open_storage(path, wal_mode=wal_mode) as store:
                store.set("key", fatal)
                store.check()
            if survived:
                break
        else:
            pytest.fail("the file was never finished")
        assert fatal > 8


def test_many_that_open_an_old_file_at_once_migrate_it_once(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    shutil.copyfile(ORIGINAL, path)
    opens = (
        f"from mycelia_storage import open_storage; s = open_storage({str(path)!r}); print(s.count(namespace='users'))"
    )
    children = [subprocess.Popen([sys.executable, "-c", opens], stdout=subprocess.PIPE, text=True) for _ in range(8)]
    outputs = [child.communicate()[0].strip() for child in children]
    assert outputs == ["200"] * 8
    connection = apsw.Connection(str(path))
    assert connection.execute("SELECT count(*) FROM schema_version WHERE version = 2").get == 1
    connection.close()


def test_many_that_make_the_same_new_file_at_once_share_it(tmp_path: Path) -> None:
    for wal_mode in (True, False):
        path = tmp_path / f"{wal_mode}.db"
        writes = (
            "import sys; from mycelia_storage import open_storage\n"
            f"with open_storage({str(path)!r}, wal_mode={wal_mode}, busy_timeout=30) as s: s.set(sys.argv[1], 1)"
        )
        children = [subprocess.Popen([sys.executable, "-c", writes, str(i)]) for i in range(8)]
        assert [child.wait() for child in children] == [0] * 8
        with open_storage(path, wal_mode=wal_mode) as store:
            assert store.list_keys() == [str(i) for i in range(8)]


def test_threads_that_make_the_same_new_file_at_once_share_it(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            with open_storage(path) as store:
                store.set(str(number), number)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with open_storage(path) as store:
        assert store.count() == 8


@pytest.mark.parametrize("error", [apsw.CorruptError, apsw.CantOpenError])
def test_a_look_between_two_writes_of_somebody_else_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[apsw.Error]
) -> None:
    """What is torn only for a moment is no damage: somebody creates the file, or writes its -wal back."""
    path = tmp_path / "store.db"
    open_storage(path).close()
    looks = 0
    look = schema._recognise_once

    def torn(*arguments: Any) -> int:
        nonlocal looks
        looks += 1
        if looks <= 2:
            with path.open("ab") as file:  # others write
                file.write(b"\0" * 4096)
            raise error
        return look(*arguments)

    monkeypatch.setattr(schema, "_recognise_once", torn)
    with open_storage(path) as store:
        assert store.count() == 0
    assert looks == 3


def test_a_file_that_went_down_and_was_not_written_back_is_migrated_again(tmp_path: Path) -> None:
    """The header in the file itself says version 2 still; version 1 stands in the -wal."""
    file = tmp_path / "store.db"
    script = """
import os, sys
from mycelia_storage import open_storage
store = open_storage(sys.argv[1])
store.set("a", 1)
store.optimize()
store.migrate(to=1)
os._exit(0)
"""
    for options in ({"migrate": False}, {"read_only": True}):
        subprocess.run([sys.executable, "-c", script, file], check=True, timeout=60)
        with pytest.raises(SchemaVersionError, match="version 1"):
            open_storage(file, **options)  # type: ignore[arg-type]
        with open_storage(file) as store:
            assert store.get("a") == 1
            store.set("b", 2)
            store.check()
