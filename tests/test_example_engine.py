"""The engine of `examples/journal.py`, as its users have it: installed as a distribution, found by its entry point.

It passes the whole contract suite, and that of the facet, and gives the answers of memory. So do the
parts of `mycelia_storage.engines` that it is made of, which other distributions rely on.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from distributions import Site
from hypothesis import settings

from mycelia_storage import (
    AsyncStorage,
    ConfigError,
    NotAStorageFileError,
    OutcomeUnknownError,
    StorageBusyError,
    StorageClosedError,
    StorageCorruptError,
    StorageFacet,
    StorageFullError,
    StorageIOError,
    open_storage,
)
from mycelia_storage.testing import FacetContract, StorageContract
from mycelia_storage.testing.differential_verbs import DifferentialMachine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import Unpack

    from mycelia_storage import Storage, StorageOptions
    from mycelia_storage.testing import FakeClock

EXAMPLE = Path(__file__).parents[1] / "examples" / "journal.py"


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory where the distribution is, which this process finds."""
    directory = tmp_path_factory.mktemp("site-packages")
    source = EXAMPLE.read_text(encoding="utf-8")
    Site(directory).install("mycelia-journal", {"journal": "journal:JournalEngine"}, {"journal": source})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        yield directory
        sys.modules.pop("journal", None)


def open_journal(directory: Path, **options: Unpack[StorageOptions]) -> Storage:
    return open_storage(f"journal:///{directory}/store.jsonl", **options)


class TestJournal(StorageContract):
    def open_store(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
        return open_journal(directory, **options)


class TestFacetOverJournal(FacetContract):
    @contextlib.asynccontextmanager
    async def open_facet(self, directory: Path, **options: Unpack[StorageOptions]) -> AsyncIterator[StorageFacet]:
        fronted = AsyncStorage(open_journal(directory, **options))
        try:
            async with StorageFacet(fronted) as facet:
                yield facet
        finally:
            await fronted.close()


class MemoryAndJournal(DifferentialMachine):
    def open_other(self, directory: Path, clock: FakeClock) -> Storage:
        return open_journal(directory, clock=clock, busy_timeout=0.25)


TestMemoryAndJournal = MemoryAndJournal.TestCase
TestMemoryAndJournal.settings = settings(
    max_examples=max(20, settings().max_examples // 5), stateful_step_count=30, report_multiple_bugs=False
)


# ---- what the suite cannot know of: the file, and its end


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.jsonl"


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_commit_is_a_line(tmp_path: Path, path: Path, clock: FakeClock) -> None:
    with open_journal(tmp_path, clock=clock) as store:
        store.set_many({"a": 1, "b": {"text": "ä\n"}})
        with store.transaction() as tx:
            tx.set("c", 1)
            tx.rollback()
        store.get("a")
        with store.transaction() as tx:
            tx.delete("a")
            tx.create_index("text", unique=True)
    lines = lines_of(path)
    assert lines[0] == {"journal": 1}
    assert [[change[:3] for change in line] for line in lines[2:]] == [
        [["row", "default", "a"], ["row", "default", "b"]],
        [
            ["row", "default", "a"],
            ["floor", clock.micros],
            ["index", "default: text (unique)", ["default", ["text"], True, clock.micros // 1000]],
        ],
    ]


def test_a_line_that_a_crash_cut_off_was_never_committed(tmp_path: Path, path: Path) -> None:
    with open_journal(tmp_path) as store:
        store.set("a", 1)
        store.set_many({"b": 1, "c": 1})
    whole = path.read_bytes()
    before = whole[: whole[:-1].rindex(b"\n") + 1]
    for size in range(len(before), len(whole), 7):
        path.write_bytes(whole[:size])
        with open_journal(tmp_path) as store:
            assert store.list_keys() == ["a"]
            store.set("d", 1)
        with open_journal(tmp_path) as store:
            assert store.list_keys() == ["a", "d"]
    for size in range(15):
        path.write_bytes(whole[:size])
        with open_journal(tmp_path) as store:
            store.set("a", 1)


def test_what_is_no_journal_is_left_as_it_is(tmp_path: Path, path: Path) -> None:
    path.write_bytes(b"something else\n")
    with pytest.raises(NotAStorageFileError, match="no journal"):
        open_journal(tmp_path)
    assert path.read_bytes() == b"something else\n"
    with pytest.raises(StorageIOError):
        open_storage(f"journal:///{tmp_path}/none/store.jsonl", read_only=True)


@pytest.mark.parametrize(
    "line",
    ["{", "[5]", '[["row", "default"]]', '[["row", "default", "none", null]]', '[["row", "default", "a", [1]]]',
     '[["index", "i", ["default", ["["], true, 1]]]', '"\\ud800', "\\xff"],
)  # fmt: skip
def test_a_damaged_line_is_told_of(tmp_path: Path, path: Path, line: str) -> None:
    open_journal(tmp_path).close()
    with path.open("a") as file:
        file.write(f"{line}\n[]\n")
    with pytest.raises(StorageCorruptError, match="line 3 is no commit"):
        open_journal(tmp_path)


def test_a_check_finds_what_somebody_wrote_into_the_file(tmp_path: Path, path: Path) -> None:
    with open_journal(tmp_path) as store:
        store.create_index("n", unique=True)
        store.set("a", {"n": 1})
    row = lines_of(path)[-1][0]
    with path.open("a") as file:
        broken = [["row", "default", "b", row[3]], ["row", "bad", "c", [-1, *row[3][1:]]]]
        file.write(json.dumps(broken) + "\n")
    with open_journal(tmp_path) as store, pytest.raises(StorageCorruptError) as caught:
        store.check()
    told = str(caught.value)
    assert "'c' in namespace 'bad': its version is none" in told
    assert "one value twice in namespace 'default'" in told
    assert "namespace 'bad'" in told


def test_a_full_disk_leaves_the_store_as_it_was(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def half_and_then_full(file: int, data: bytes) -> int:
        if len(data) > 100:
            return real(file, data[:50])
        raise OSError(28, "No space left on device")

    with open_journal(tmp_path) as store:
        store.set("a", 1)
        before = path.read_bytes()
        monkeypatch.setattr(os, "write", half_and_then_full)
        with pytest.raises(StorageFullError):
            store.set("b", "x" * 100)
        monkeypatch.undo()
        assert path.read_bytes() == before
        assert not store.has("b")
        store.set("c", 1)
    with open_journal(tmp_path) as store:
        assert store.list_keys() == ["a", "c"]


def test_after_a_failed_sync_nobody_is_told_that_anything_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with open_journal(tmp_path) as store:
        store.set("a", 1, durable=True)
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OutcomeUnknownError):
            store.set("a", 2, durable=True)
        with pytest.raises(StorageIOError, match="open the store again"):
            store.set("b", 1)
    with open_journal(tmp_path, engine_options={"always_durable": True}) as store, pytest.raises(OutcomeUnknownError):
        store.set("b", 1)


def test_one_process_at_a_time_and_a_child_leaves_the_file_to_its_parent(tmp_path: Path, installed: Path) -> None:
    program = (
        "import os, sys\n"
        "from mycelia_storage import *\n"
        "store = open_storage(sys.argv[1])\n"
        "if os.fork() == 0:\n"
        "    try: store.set('b', 1)\n"
        "    except StorageClosedError: os._exit(0)\n"
        "    os._exit(1)\n"
        "code = os.waitstatus_to_exitcode(os.wait()[1])\n"
        "store.set('a', 1)\n"
        "try: open_storage(sys.argv[1])\n"
        "except StorageBusyError: print(code, store.list_keys())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), *sys.path])}
    arguments = [sys.executable, "-c", program, f"journal:///{tmp_path}/store.jsonl"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("0 ['a']\n", "")
    with open_journal(tmp_path) as store:
        with pytest.raises(StorageBusyError):
            open_journal(tmp_path)
        assert store.list_keys() == ["a"]
    with pytest.raises(StorageClosedError):
        store.get("a")


def test_the_command_line_finds_it_too(tmp_path: Path, installed: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), *sys.path])}

    def run(*words: str) -> str:
        program = [sys.executable, "-m", "mycelia_storage.cli", "--store", f"journal:///{tmp_path}/store.jsonl", *words]
        done = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    run("set", "--json", "a", '{"n": 1}')
    assert run("get", "a") == '{"n":1}\n'
    assert json.loads(run("status"))["backend"] == "journal"


def test_backup_and_restore_keep_everything(tmp_path: Path, clock: FakeClock) -> None:
    with open_journal(tmp_path, clock=clock) as store:
        store.create_namespace("made", metadata={"by": "me"})
        store.create_index("n", unique=True)
        store.set("a", {"n": 1}, metadata={"x": 1}, ttl=50)
        store.set("b", {"n": 2})
        store.set("b", {"n": 3})
        before = [*store.scan()], store.list_indexes(), store.list_namespaces()
        store.backup(tmp_path / "backup.db")
        store.set("b", {"n": 1}, namespace="other")
        version = store.set("c", 5)
        store.restore(tmp_path / "backup.db")
        assert ([*store.scan()], store.list_indexes(), store.list_namespaces()) == before
        assert store.set("c", 5) > version, "no version is given twice"
        store.delete("c")
    with open_journal(tmp_path, clock=clock) as store, open_storage(tmp_path / "backup.db", clock=clock) as backup:
        assert [*store.scan()] == [*backup.scan()] == before[0]
        assert store.check().entries == 2


def test_options_of_its_own_are_checked(tmp_path: Path) -> None:
    with open_journal(tmp_path, engine_options={"always_durable": True}) as store:
        assert store.get_status().details == {"always_durable": True}
    with pytest.raises(ConfigError, match="'allways_durable'"):
        open_journal(tmp_path, engine_options={"allways_durable": True})
    for target in ("journal://", "journal:///"):
        with pytest.raises(ConfigError, match="names no file"):
            open_storage(target)
