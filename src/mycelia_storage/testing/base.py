"""What every part of the contract suite stands on: how a store is opened, its clock, a second thread.

Called by the parts beside it; a third party meets it through `StorageContract`.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, ClassVar, TypeVar

import pytest

from mycelia_storage.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Unpack

    from mycelia_storage import Storage
    from mycelia_storage.options import StorageOptions

R = TypeVar("R")


class ContractBase:
    """How the engine under test is opened, and what it claims.

    A claim that an engine does not make is not left untested: the suite then asserts the weaker behaviour.
    """

    persistent: ClassVar[bool] = True
    """What was stored is there again when the same directory is opened a second time."""

    snapshots: ClassVar[bool] = True
    """A scan and a read-only transaction see one moment, whatever is written meanwhile."""

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
