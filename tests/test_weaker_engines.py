"""Hazard: the contract suite leaves out what a weaker engine does not do, and so does not see that it does it badly.

An engine that claims as little as the flags of `ContractBase` allow passes the suite with these flags, and with each of
them alone set wrongly it does not.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, ClassVar

import pytest
from distributions import Site

from mycelia_storage import (
    ConfigError,
    StorageClosedError,
    StorageError,
    TransactionConflictError,
    TransactionError,
    open_storage,
)
from mycelia_storage.engines import kit, plain
from mycelia_storage.engines.engine import EngineStatus, Primitives
from mycelia_storage.testing import (
    ContractBase,
    IndexContract,
    NestedTransactionContract,
    QueryContract,
    RunTransactionContract,
    ThreadsContract,
    TransactionContract,
    UniqueIndexContract,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Unpack

    from mycelia_storage import Storage, StorageOptions
    from mycelia_storage.engines.engine import Findings, IndexRow, Isolation, Member, Progress, Snapshot
    from mycelia_storage.options import Options


class WeakSession(plain.Session):
    weak: frozenset[str] = frozenset()

    def savepoint(self) -> int:
        if "savepoints" in self.weak:
            raise TransactionError("savepoints: this engine has none")
        return super().savepoint()

    def create_index(self, index: IndexRow, now: int) -> None:
        if index.is_unique and "unique_indexes" in self.weak:
            raise ConfigError("unique: this engine has no unique indexes")
        super().create_index(index, now)


class WeakEngine:
    """In memory; without a write lock, savepoints and unique indexes. Of two that write at once, the first one wins."""

    backend = "weak"
    reads_at_once = True
    has_write_lock = True
    share_at_once = None

    def __init__(self, options: Options) -> None:
        self.clock: Callable[[], float] = options.clock
        self._busy_timeout = options.busy_timeout
        self._weak = frozenset(options.engine_options)
        self._state: plain.State | None = plain.State()
        self.auto: Primitives = plain.Auto(self, self._committed)
        kit.transact(self, lambda session, now: session.register(kit.DEFAULT_NAMESPACE, None, now))

    def _committed(self) -> plain.State:
        if self._state is None:
            raise StorageClosedError("the store is closed")
        return self._state

    def begin(
        self,
        *,
        read_only: bool = False,
        isolation: Isolation | None = None,
        durable: bool = False,
        wait: float | None = None,
    ) -> WeakSession:
        before = self._committed()

        def commit(_: list[plain.Change], state: plain.State) -> None:
            if self._committed() is not before:
                raise TransactionConflictError("somebody else came between")
            self._state = state

        session = WeakSession(before, None if read_only else commit)
        session.weak = self._weak
        return session

    def share(self, members: Sequence[Member], wait: float | None = None) -> None:
        kit.share_one_by_one(self, members, wait, self._busy_timeout)

    def snapshot(self) -> Snapshot:
        return WeakSession(self._committed())

    def holds_expiring(self) -> bool:
        return False

    def status(self) -> EngineStatus:
        self._committed()
        return EngineStatus("weak", 1, 0, {})

    def check(self, findings: Findings, now: int) -> None:
        self._committed().check(findings, now)

    def backup(self, path: str, *, overwrite: bool, progress: Progress | None) -> None:
        self._committed()

    def restore(self, path: str, *, progress: Progress | None) -> None:
        self._committed()

    def optimize(self) -> None:
        self._committed()

    def migrate(self, to: int | None) -> None:
        self._committed()

    def close(self) -> None:
        self._state = None


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    directory = tmp_path_factory.mktemp("site-packages")
    Site(directory).install("mycelia-weak", {"weak": f"{__name__}:WeakEngine"})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        yield


class OnWeak(ContractBase):
    """What a class says not to be is what its engine is not; only the write lock no engine here has."""

    persistent: ClassVar[bool] = False
    write_lock: ClassVar[bool] = False

    def open_store(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
        options["engine_options"] = {n: True for n in ("savepoints", "unique_indexes") if not getattr(self, n)}
        return open_storage("weak://", **options)


class TestWeak(
    OnWeak,
    TransactionContract,
    NestedTransactionContract,
    RunTransactionContract,
    IndexContract,
    UniqueIndexContract,
    QueryContract,
    ThreadsContract,
):
    """The parts that a flag is about. (The others ask nothing of it; it passes them too.)"""

    savepoints: ClassVar[bool] = False
    unique_indexes: ClassVar[bool] = False


class TestWithoutSavepoints(OnWeak, NestedTransactionContract, IndexContract, UniqueIndexContract):
    savepoints: ClassVar[bool] = False


class TestWithoutUniqueIndexes(OnWeak, NestedTransactionContract, IndexContract, UniqueIndexContract):
    unique_indexes: ClassVar[bool] = False


class Modest(ContractBase):
    """Says less than is true."""

    savepoints: ClassVar[bool] = False
    unique_indexes: ClassVar[bool] = False
    write_lock: ClassVar[bool] = False


CASES: list[tuple[type[ContractBase], str]] = [
    (NestedTransactionContract, "test_siblings_do_not_share_a_fate"),
    (NestedTransactionContract, "test_a_transaction_goes_on_where_none_can_be_inside"),
    (UniqueIndexContract, "test_each_namespace_has_values_of_its_own"),
    (IndexContract, "test_a_unique_index_that_is_refused_changes_nothing"),
    (TransactionContract, "test_a_writer_waits_no_longer_than_told"),
]


@pytest.mark.parametrize(("part", "name"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_flag_that_is_set_wrongly_is_found(part: type[ContractBase], name: str) -> None:
    class Boasting(part):  # type: ignore[misc, valid-type]
        pass

    class TooModest(Modest, part):  # type: ignore[misc, valid-type]
        pass

    all_weak = {"savepoints": True, "unique_indexes": True}
    with (
        open_storage("weak://", engine_options=all_weak) as weak,
        pytest.raises((StorageError, pytest.fail.Exception)),
    ):
        getattr(Boasting(), name)(weak)
    with open_storage("memory:", busy_timeout=0.2) as strong, pytest.raises((StorageError, pytest.fail.Exception)):
        getattr(TooModest(), name)(strong)


def test_a_fixture_that_is_refused_is_no_reason_to_pass(tmp_path: Path) -> None:
    with open_storage("weak://", engine_options={"unique_indexes": True}) as store:
        for flag in (True, False):

            class Part(UniqueIndexContract):
                unique_indexes: ClassVar[bool] = flag

            make = inspect.unwrap(vars(UniqueIndexContract)["unique"])
            if flag:
                with pytest.raises(AssertionError):
                    make(Part(), store)
            else:
                Part().test_no_verb_lets_a_duplicate_in(make(Part(), store))
