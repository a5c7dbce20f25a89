"""What the driver can raise, at any statement: none of it reaches a caller as it is, and the store can be used on."""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import os
import pickle
import shutil
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import apsw
import pytest
from faults import no_hang
from faulty import TYPES, WORKLOADS, Run, begin, copies, state_of

from mycelia_storage import (
    AsyncStorage,
    CapacityError,
    NotAStorageFileError,
    OutcomeUnknownError,
    SchemaVersionError,
    Storage,
    StorageBusyError,
    StorageClosedError,
    StorageCorruptError,
    StorageError,
    StorageFullError,
    StorageIOError,
    StorageReadOnlyError,
    StorageTimeoutError,
    TransactionError,
    open_storage,
)
from mycelia_storage.engines.sqlite.failures import to_storage_error
from mycelia_storage.sharing import Call
from mycelia_storage.testing import FakeClock
from mycelia_storage.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# By its primary code. What is missing has no better class than StorageError: mistakes of the library itself.
BY_CODE: dict[str, type[StorageError]] = {
    "SQLITE_ABORT": TransactionError,
    "SQLITE_AUTH": StorageIOError,
    "SQLITE_BUSY": StorageBusyError,
    "SQLITE_CANTOPEN": StorageIOError,
    "SQLITE_CONSTRAINT": StorageCorruptError,
    "SQLITE_CORRUPT": StorageCorruptError,
    "SQLITE_FORMAT": NotAStorageFileError,
    "SQLITE_FULL": StorageFullError,
    "SQLITE_INTERRUPT": StorageTimeoutError,
    "SQLITE_IOERR": StorageIOError,
    "SQLITE_LOCKED": StorageBusyError,
    "SQLITE_MISMATCH": StorageCorruptError,
    "SQLITE_NOLFS": StorageFullError,
    "SQLITE_NOMEM": StorageIOError,
    "SQLITE_NOTADB": NotAStorageFileError,
    "SQLITE_PERM": StorageIOError,
    "SQLITE_PROTOCOL": StorageBusyError,
    "SQLITE_READONLY": StorageReadOnlyError,
    "SQLITE_SCHEMA": StorageBusyError,
    "SQLITE_TOOBIG": CapacityError,
}
NO_BETTER = {
    "SQLITE_EMPTY",
    "SQLITE_ERROR",
    "SQLITE_INTERNAL",
    "SQLITE_MISUSE",
    "SQLITE_NOTFOUND",
    "SQLITE_RANGE",
}
BY_EXTENDED_CODE: dict[str, type[StorageError]] = {
    "SQLITE_IOERR_BLOCKED": StorageBusyError,
    "SQLITE_IOERR_CORRUPTFS": StorageCorruptError,
    "SQLITE_IOERR_DATA": StorageCorruptError,
    "SQLITE_IOERR_SHMSIZE": StorageFullError,
    "SQLITE_READONLY_DBMOVED": StorageIOError,
}
OF_THE_DRIVER: dict[str, type[StorageError]] = {
    "BindingsError": StorageError,
    "ConnectionClosedError": StorageClosedError,
    "ConnectionNotClosedError": StorageError,
    "CursorClosedError": StorageClosedError,
    "Error": StorageError,
    "ExecTraceAbort": StorageError,
    "ExecutionCompleteError": StorageError,
    "ExtensionLoadingError": StorageError,
    "ForkingViolationError": StorageClosedError,
    "IncompleteExecutionError": StorageError,
    "InvalidContextError": StorageError,
    "NoFTS5Error": StorageError,
    "ThreadingViolationError": TransactionError,
    "VFSFileClosedError": StorageClosedError,
    "VFSNotImplementedError": StorageIOError,
}
# The driver raises none of these, and has no class for them.
NO_ERRORS = ("SQLITE_OK", "SQLITE_ROW", "SQLITE_DONE", "SQLITE_NOTICE", "SQLITE_WARNING")

CODES: dict[str, int] = {
    name: code
    for table in (apsw.mapping_result_codes, apsw.mapping_extended_result_codes)
    for name, code in table.items()
    if isinstance(name, str) and isinstance(code, int) and not name.startswith(NO_ERRORS)
}


def of_code(name: str) -> apsw.Error:
    error = apsw.exception_for(CODES[name])
    assert isinstance(error, apsw.Error)
    return error


def primary(name: str) -> str:
    return next(one for one in CODES if CODES[one] == CODES[name] & 0xFF)


def test_the_tables_here_have_every_code_and_class_of_the_driver() -> None:
    assert {primary(name) for name in CODES} == set(BY_CODE) | NO_BETTER
    classes = {name for name, kind in vars(apsw).items() if inspect.isclass(kind) and issubclass(kind, apsw.Error)}
    of_codes = {type(of_code(name)).__name__ for name in CODES}
    assert classes == of_codes | set(OF_THE_DRIVER)
    assert len(CODES) > 80


@pytest.mark.parametrize("name", CODES)
def test_every_code_becomes_the_class_of_its_decision(name: str) -> None:
    expected = BY_EXTENDED_CODE.get(name) or BY_CODE.get(primary(name), StorageError)
    found = to_storage_error(of_code(name), "the/path")
    assert type(found) is expected
    if expected is not StorageTimeoutError:
        assert str(found).startswith("the/path: ")
    is_sync = name in {"SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC"}
    committing = to_storage_error(of_code(name), "the/path", committing=True)
    assert type(committing) is (OutcomeUnknownError if is_sync else expected)


@pytest.mark.parametrize("name", OF_THE_DRIVER)
def test_every_error_of_the_drivers_own_has_a_class(name: str) -> None:
    assert type(to_storage_error(getattr(apsw, name)("text"), "the/path")) is OF_THE_DRIVER[name]


def test_the_message_of_the_driver_decides_nothing() -> None:
    error = of_code("SQLITE_FULL")
    error.args = ("disk I/O error: database is locked",)
    assert type(to_storage_error(error, "the/path")) is StorageFullError


@pytest.mark.parametrize("name", [*BY_CODE, "SQLITE_IOERR_FSYNC"])
def test_errors_survive_pickling_and_copying(name: str) -> None:
    found = to_storage_error(of_code(name), "the/path", committing=True)
    for again in (pickle.loads(pickle.dumps(found)), copy.copy(found)):
        assert (type(again), str(again)) == (type(found), str(found))


# ---- at every statement


class Trap:
    """Lets the n-th statement of all connections raise, once, in place of being run. Without a number it counts."""

    def __init__(self, at: int = 0, error: Callable[[], Exception] | None = None) -> None:
        self.at = at
        self.error = error
        self.seen: list[str] = []

    def disarm(self) -> None:
        self.error = None

    def __call__(self, cursor: apsw.Cursor, statement: str, bindings: Any) -> bool:
        self.seen.append(statement)
        if self.error is not None and len(self.seen) == self.at:
            raise self.error()
        return True


@contextmanager
def trapped(trap: Trap | Traps) -> Iterator[None]:
    """Connections that are opened in the block have the trap."""

    def hook(connection: apsw.Connection) -> None:
        connection.exec_trace = trap

    apsw.connection_hooks.append(hook)
    try:
        yield
    finally:
        apsw.connection_hooks.remove(hook)
        trap.disarm()


class Case(NamedTuple):
    name: str
    error: Callable[[], Exception]


def damaged_text() -> Exception:
    return UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


CASES = (
    *(
        Case(name, lambda name=name: of_code(name))  # type: ignore[misc]
        for name in (
            "SQLITE_IOERR_READ",
            "SQLITE_IOERR_FSYNC",
            "SQLITE_IOERR_SHMMAP",
            "SQLITE_FULL",
            "SQLITE_CORRUPT",
            "SQLITE_NOMEM",
            "SQLITE_BUSY",
            "SQLITE_PROTOCOL",
            "SQLITE_ERROR",
            "SQLITE_CONSTRAINT_CHECK",
        )
    ),
    Case("a damaged text", damaged_text),
    Case("two threads", lambda: apsw.ThreadingViolationError("text")),
    Case("wrong bindings", lambda: apsw.BindingsError("text")),
)
# `StorageError` itself is what a mistake in the library gives, as wrong bindings are.
ANY = (*TYPES, StorageError)


@pytest.fixture
def original(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "original"
    directory.mkdir()
    with open_storage(directory / "store.db", clock=FakeClock()) as store:
        begin(store)
    logger = logging.getLogger("mycelia_storage")
    logger.setLevel(logging.CRITICAL)
    yield directory
    logger.setLevel(logging.NOTSET)


def once(original: Path, workload: Callable[[Run], None], trap: Trap) -> Counter[str]:
    directory = original.parent / "run"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(original, directory)
    clock = FakeClock()
    with open_storage("memory:", clock=clock) as mirror:
        begin(mirror)
        run = Run(os.path.join(directory, "store.db"), {"wal_mode": True}, clock, mirror, ANY)
        try:
            with trapped(trap), no_hang(30):
                workload(run)
            run.verdict()
        except BaseException as error:
            error.add_note(f"{workload.__name__}, statement {trap.at}: {trap.seen[trap.at - 1 : trap.at]}")
            raise
    return run.errors


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_error_at_any_statement_is_typed_and_leaves_the_store_usable(
    original: Path, case: Case, request: pytest.FixtureRequest
) -> None:
    is_long = request.config.getoption("--hypothesis-profile") == "long"
    runs, errors = 0, Counter[str]()
    for number, workload in enumerate(WORKLOADS):
        counting = Trap()
        once(original, workload, counting)
        first = 1 if is_long else 1 + (CASES.index(case) + 5 * number) % 47
        for at in range(first, len(counting.seen) + 1, 1 if is_long else 47):
            errors += once(original, workload, Trap(at, case.error))
            runs += 1
    print(f"{case.name}: {runs} runs; {dict(errors)}")
    assert errors


def test_settings_of_whole_files_fail_as_statements_do(original: Path) -> None:
    """They are read between the steps of a copy, where callers' own code runs too, whose errors stay as they are."""
    counting = Trap()
    once(original, copies, counting)
    asked = ('pragma "page_', "PRAGMA synchronous=OFF")
    places = [at for at, statement in enumerate(counting.seen, 1) if statement.startswith(asked)]
    assert len(places) > 8
    for at in places:
        once(original, copies, Trap(at, damaged_text))


# ---- what is not a statement


def test_a_text_that_is_no_utf_8_is_damage_for_every_way_to_read(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    with open_storage(path) as store:
        store.set("good", 1)
        store.set("bad", "text")
        raw = apsw.Connection(path)
        raw.execute("UPDATE storage_entries SET value = CAST(x'22ff22' AS TEXT) WHERE key = 'bad'")
        raw.close()
        reads: list[Callable[[], object]] = [
            lambda: store.get("bad"),
            lambda: store.get_entry("bad"),
            lambda: store.get_many(["good", "bad"]),
            lambda: list(store.scan()),
            lambda: store.query(),
            lambda: store.query(sort="-$key"),
            lambda: list(store.pages()),
            lambda: store.modify("bad", lambda value: value),
            lambda: store.merge("bad", {}),
            lambda: store.take("bad"),
            lambda: store.run_transaction(lambda tx: tx.get("bad")),
            lambda: store.namespace("default")["bad"],
            lambda: asyncio.run(awaited(store)),
        ]
        for read in reads:
            with pytest.raises(StorageCorruptError):
                read()
            assert store.get("good") == 1
        store.set("bad", "mended")
        assert store.get("bad") == "mended"


async def awaited(store: Storage) -> Any:
    front = AsyncStorage(store)
    try:
        return await front.get("bad")
    finally:
        await front._stop()


def test_tables_that_somebody_changed_meanwhile_are_told_as_that(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    with open_storage(path) as store:
        store.set("k", 1)
        raw = apsw.Connection(path)
        raw.execute("ALTER TABLE storage_entries RENAME COLUMN metadata TO renamed")
        for call in (lambda: store.set("k", 2), lambda: store.get_entry("k"), lambda: store.set_many({"a": 1})):
            with pytest.raises(StorageCorruptError):
                call()
        raw.execute("ALTER TABLE storage_entries RENAME COLUMN renamed TO metadata")
        raw.close()
        store.set("k", 3)
        assert store.get("k") == 3


@pytest.mark.parametrize("wal", [True, False])
def test_memory_that_python_has_not_leaves_the_store_usable(tmp_path: Path, wal: bool) -> None:
    is_short = False

    def clock() -> float:
        if is_short:
            raise MemoryError
        return 1_700_000_000.0

    with open_storage(tmp_path / "store.db", clock=clock, wal_mode=wal) as store:
        store.set("k", 1)
        is_short = True
        for call in (lambda: store.set("k", 2), lambda: store.set_many({"k": 2}), lambda: store.delete("k")):
            with pytest.raises(MemoryError):
                call()
        is_short = False
        assert store.get("k") == 1
        store.set("k", 3)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("a file/store.db", StorageIOError),
        ("x" * 300, StorageIOError),
        ("directory", StorageError),
        ("nul\0", StorageError),
        ("surrogate\udc80\ud800", StorageError),
    ],
)
def test_what_the_system_refuses_to_open_is_told(tmp_path: Path, target: str, expected: type[StorageError]) -> None:
    (tmp_path / "a file").write_text("")
    (tmp_path / "directory").mkdir()
    with pytest.raises(expected) as raised:
        open_storage(f"{tmp_path}/{target}")
    assert raised.value.code != "storage_error"


def test_a_schema_error_is_not_taken_for_damage(tmp_path: Path) -> None:
    """Another process brought the file to the version before."""
    path = str(tmp_path / "store.db")
    with open_storage(path) as store, open_storage(path) as other:
        store.set("k", 1)
        other.migrate(to=1)
        for call in (lambda: store.set("k", 2), lambda: store.get_entry("k"), lambda: state_of(store)):
            with pytest.raises(SchemaVersionError), suppress(TransactionError):
                call()


# ---- several errors


class Traps:
    """Lets statements raise that begin with these words, in place of being run; one time for each error."""

    def __init__(self) -> None:
        self.errors: dict[str, list[Callable[[apsw.Connection], Exception]]] = {}

    @property
    def are_sprung(self) -> bool:
        return not any(self.errors.values())

    def disarm(self) -> None:
        self.errors = {}

    def __call__(self, cursor: apsw.Cursor, statement: str, bindings: Any) -> bool:
        for words in [words for words, errors in self.errors.items() if errors]:
            if statement.strip().startswith(words):
                raise self.errors[words].pop()(cursor.connection)
        return True


def failing_with(name: str) -> Callable[[apsw.Connection], Exception]:
    return lambda connection: of_code(name)


CHANGES: dict[str, Callable[[Storage], object]] = {
    "set_many": lambda store: store.set_many({"k": 2, "l": 2}),
    "increment": lambda store: store.increment("k"),
    "transaction": lambda store: store.run_transaction(lambda tx: (tx.set("k", 2), tx.set("l", 2))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_connection_that_cannot_roll_back_is_replaced(
    tmp_path: Path, change: Callable[[Storage], object], caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "store.db")
    traps = Traps()
    with trapped(traps), open_storage(path) as store, open_storage(path, busy_timeout=0.05) as other:
        store.set("k", 1)
        traps.errors = {"COMMIT": [failing_with("SQLITE_FULL")] * 2, "ROLLBACK": [failing_with("SQLITE_IOERR_READ")]}
        with pytest.raises(StorageFullError):
            change(store)
        traps.disarm()
        assert "cannot roll back" in caplog.text
        other.set("other", 1)  # nothing keeps the lock
        assert store.get_many(["k", "l"]) == {"k": 1}
        change(store)
        assert store.get("k") == 2


def test_what_is_to_be_durable_is_so_on_a_connection_that_was_replaced_meanwhile(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    traps = Traps()
    with trapped(traps), open_storage(tmp_path / "store.db", debug=True) as store:
        store.set("n", 1)
        traps.errors = {"COMMIT": [failing_with("SQLITE_FULL")], "ROLLBACK": [failing_with("SQLITE_IOERR_READ")]}
        with caplog.at_level(logging.DEBUG, "mycelia_storage.sql"):
            assert store.increment("n", durable=True) == 2
        assert "cannot roll back" in caplog.text
        run = [record.getMessage().split("ms  ", 1)[-1] for record in caplog.records]
        before = run[: max(place for place, statement in enumerate(run) if statement == "COMMIT")]
        modes = [statement for statement in before if statement.startswith("PRAGMA synchronous=")]
        assert modes[-2:] == ["PRAGMA synchronous=NORMAL", "PRAGMA synchronous=FULL"]


@pytest.mark.parametrize("name", ["SQLITE_IOERR_READ", "SQLITE_CORRUPT", "SQLITE_CONSTRAINT_CHECK", "SQLITE_ERROR"])
def test_after_an_error_inside_a_transaction_nothing_of_it_stays(tmp_path: Path, name: str) -> None:
    """Of a verb of several statements half is done then; whoever goes on is told that it is over."""
    traps = Traps()
    with trapped(traps), open_storage(tmp_path / "store.db") as store:
        store.set("k", 1)
        with suppress(TransactionError), store.transaction() as tx:
            tx.set("first", 1)
            traps.errors = {"DELETE": [failing_with(name)]}
            with pytest.raises(StorageError):
                tx.set("expiring", 1, ttl=3600)  # and cleans up along the way
            assert traps.are_sprung
            with pytest.raises(TransactionError):
                tx.set("second", 1)
        assert store.list_keys() == ["k"]
        store.set("k", 2)


@pytest.mark.parametrize("name", ["SQLITE_IOERR_READ", "SQLITE_BUSY", "SQLITE_CONSTRAINT_CHECK", "SQLITE_FULL"])
def test_a_member_that_fails_at_any_statement_leaves_nothing_in_the_commit_of_the_others(
    tmp_path: Path, name: str
) -> None:
    def calls() -> list[Call]:
        return [
            Call(lambda verbs: Verbs.increment(verbs, "n")),
            Call(lambda verbs: Verbs.set(verbs, "expiring", 1, ttl=3600)),
            Call(lambda verbs: Verbs.set_many(verbs, {"a": 1, "b": 2}, ttl=3600)),
            Call(lambda verbs: Verbs.take(verbs, "taken")),
            Call(lambda verbs: Verbs.increment(verbs, "n")),
        ]

    counting, at = Trap(), 0
    for at in range(1000):
        trap = Trap()
        with trapped(trap), open_storage(tmp_path / f"{at}.db", synchronous="OFF") as store:
            store.set_many({"n": 0, "taken": 1})
            trap.seen.clear()
            trap.at, trap.error = at, lambda: of_code(name)
            some = calls()
            store._share(some)
            trap.error = None
            done = [call.error is None for call in some]
            assert all(isinstance(call.error, StorageError) for call in some if call.error is not None)
            expected = {"n": done[0] + done[4]} | ({} if done[3] else {"taken": 1})
            expected |= {"expiring": 1} if done[1] else {}
            expected |= {"a": 1, "b": 2} if done[2] else {}
            assert dict(store.namespace("default").items()) == expected, (at, trap.seen)
            if not at:
                counting = trap
            elif at >= len(counting.seen):
                break
    assert at > 10


def test_a_check_whose_reading_was_given_up_says_what_it_has_not_seen(tmp_path: Path) -> None:
    """After some errors SQLite ends the transaction in which one state is looked at."""

    def ends_it(connection: apsw.Connection) -> Exception:
        connection.execute("ROLLBACK")
        return of_code("SQLITE_IOERR_SHORT_READ")

    traps = Traps()
    with trapped(traps), open_storage(tmp_path / "store.db") as store:
        store.set("k", 1)
        traps.errors = {"PRAGMA integrity_check": [ends_it]}
        with pytest.raises(StorageCorruptError, match="not looked at") as raised:
            store.check()
        assert len(raised.value.problems) == 2
        assert store.check().entries == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SQLITE_CORRUPT", StorageCorruptError),
        ("SQLITE_IOERR_SHORT_READ", StorageIOError),
        ("SQLITE_BUSY", StorageError),
    ],
)
def test_what_cannot_be_looked_at_is_the_reason_where_a_right_statement_is_refused(
    tmp_path: Path, name: str, expected: type[StorageError]
) -> None:
    traps = Traps()
    with trapped(traps), open_storage(tmp_path / "store.db") as store:
        store.set("k", 1)
        traps.errors = {
            "CREATE INDEX": [failing_with("SQLITE_ERROR")],
            "SELECT namespace, key FROM storage_entries": [failing_with(name)],
        }
        with pytest.raises(expected) as raised:
            store.create_index("n")
        assert type(raised.value) is expected
        assert traps.are_sprung
        store.create_index("n")
