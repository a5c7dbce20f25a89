"""What every part of the contract suite stands on: how a store is opened, its clock, a second thread.

Called by the parts beside it; a third party meets it through `StorageContract`.
"""

from __future__ import annotations

import functools
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar, cast

import pytest

from mycelia_storage.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Unpack

    from mycelia_storage import Storage
    from mycelia_storage.options import StorageOptions

R = TypeVar("R")
T = TypeVar("T")


class ContractBase:
    """How the engine under test is opened, and what it claims.

    A claim that an engine does not make is not left untested: the suite then asserts the weaker behaviour.
    """

    persistent: ClassVar[bool] = True
    """What was stored is there again when the same directory is opened a second time."""

    snapshots: ClassVar[bool] = True
    """A scan and a read-only transaction see one moment, whatever is written meanwhile."""

    write_lock: ClassVar[bool] = True
    """A transaction that writes keeps others that do waiting. Else the first one to commit wins.

    The other one is a TransactionConflictError then, at its commit at the latest.
    """

    savepoints: ClassVar[bool] = True
    """A transaction may have others inside. Else one that may write is a TransactionError; the outer one goes on."""

    unique_indexes: ClassVar[bool] = True
    """An index may be unique. Else making one is a ConfigError, and changes nothing."""

    def open_store(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
        """Open the store that lives in `directory`: the same directory, the same store (if persistent)."""
        raise NotImplementedError(f"{type(self).__name__} has to say how its store is opened: override open_store")

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def store(self, tmp_path: Path, clock: FakeClock) -> Iterator[Storage]:
        with self.open_store(tmp_path, clock=clock) as store:
            yield store


def needs(flag: str, error: type[Exception]) -> Callable[[T], T]:
    """Of a test, or of each test of a class: where the engine does not claim this, it has to end in this error."""

    def decorate(what: T) -> T:
        if isinstance(what, type):
            for name, test in list(vars(what).items()):
                if name.startswith("test_"):
                    setattr(what, name, _needing(test, flag, error))
            return what
        return cast("T", _needing(cast("Callable[..., None]", what), flag, error))

    return decorate


def _needing(test: Callable[..., None], flag: str, error: type[Exception]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(self: ContractBase, *args: Any, **arguments: Any) -> None:
        if getattr(self, flag):
            test(self, *args, **arguments)
        else:
            with pytest.raises(error):
                test(self, *args, **arguments)

    return run


class Refused:
    """Stands for a store that could not be made ready: whatever it is asked for raises why."""

    def __init__(self, why: Exception) -> None:
        self._why = why

    def __getattr__(self, name: str) -> NoReturn:
        raise self._why


def in_another_thread(function: Callable[[], R], *, timeout: float = 30.0) -> R:
    """Call `function` in a thread of its own; give what it returns, raise what it raises, never hang for ever."""
    future: Future[R] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - handed over to the caller, who raises it
            future.set_exception(error)

    thread = threading.Thread(target=run, name="contract-second-thread", daemon=True)
    thread.start()
    result = future.result(timeout)
    thread.join(timeout)
    return result


def is_refused(kind: type[Exception], call: Callable[..., object], *arguments: object) -> bool:
    """Whether the call raises an error of this kind. Any other error goes on to the test."""
    try:
        call(*arguments)
    except kind:
        return True
    return False
