"""While a whole file is copied or looked through: how far it is, who wants it to end, and errors of the driver.

Called by whatever copies, checks or salvages whole files.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import apsw

from mycelia_storage.engines.limits import check_limit
from mycelia_storage.engines.sqlite.connection import STEPS_BETWEEN_LOOKS
from mycelia_storage.engines.sqlite.failures import DRIVER_ERRORS, of_system, to_storage_error
from mycelia_storage.entries import CopyProgress
from mycelia_storage.errors import StorageTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mycelia_storage.entries import CopyStep


class Teller:
    """Tells a caller how far a copy is. What the caller's function raises cancels it."""

    def __init__(self, progress: Callable[[CopyProgress], object] | None) -> None:
        self._progress = progress

    def tell(self, step: CopyStep, done: int, total: int) -> None:
        """So much is done. Raises what the caller's function raises, or StorageTimeoutError where nobody waits."""
        check_limit()
        if self._progress is not None:
            self._progress(CopyProgress(step, done, total))

    @contextlib.contextmanager
    def telling(self, connection: apsw.Connection, step: CopyStep, total: int) -> Iterator[None]:
        """During the block's statements it is told again and again that they go on, so that they can be cancelled."""
        raised: list[BaseException] = []

        def go_on() -> bool:
            try:
                self.tell(step, 0, total)
            except BaseException as error:  # noqa: BLE001  it is raised again below, by who called the statement
                raised.append(error)
            return bool(raised)

        self.tell(step, 0, total)
        connection.set_progress_handler(go_on, STEPS_BETWEEN_LOOKS)
        try:
            yield
        except (apsw.InterruptError, StorageTimeoutError):
            if raised:
                raise raised[0] from None
            raise
        finally:
            connection.set_progress_handler(None)


@contextlib.contextmanager
def failing_as(what: str, *, committing: bool = False) -> Iterator[None]:
    """The driver's and the operating system's errors of the block become the library's. No caller's code runs in it."""
    try:
        yield
    except DRIVER_ERRORS as error:
        raise to_storage_error(error, what, committing=committing) from error
    except OSError as error:
        raise of_system(error, what) from error


@contextlib.contextmanager
def none_raw(what: str) -> Iterator[None]:
    """Around all of it: what the driver raises between those blocks. What callers' code raises in it stays as it is."""
    try:
        yield
    except apsw.Error as error:
        raise to_storage_error(error, what) from error
