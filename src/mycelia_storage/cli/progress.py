"""The progress of imports and copies on standard error: a bar on a terminal, nothing in a pipe.

Called by `importing`, `importing_from`, `backups`, `moving` and `repairs`.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mycelia_storage.cli.output import PROGRAM, entry_count, one_line, report

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    from mycelia_storage import CopyProgress
    from mycelia_storage.cli.source import Source


class ImportProgress:
    """A context manager that shows how far an import is, and prints bad lines without tearing the bar."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._started = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            end = TimeElapsedColumn() if source.size is None else TimeRemainingColumn()
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TextColumn("{task.fields[entries]}"),
                TextColumn("{task.fields[rate]:,.0f}/s"),
                end,
                TextColumn("elapsed" if source.size is None else "left"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("import", total=source.size, entries=entry_count(0), rate=0.0)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """How long the import has taken."""
        return time.monotonic() - self._started

    def show(self, entries: int) -> None:
        """Tell how many entries are stored by now."""
        if self._bar is not None:
            rate = entries / max(self.seconds, 1e-9)
            self._bar.update(self._task, completed=self._source.bytes_read, entries=entry_count(entries), rate=rate)

    def report(self, message: str) -> None:
        """Print one line on standard error, above the bar where there is one."""
        if self._bar is None:
            report(message)
        else:
            text = one_line(f"{PROGRAM}: {message}")
            self._bar.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


@contextmanager
def copying_bar() -> Generator[Callable[[CopyProgress], object] | None, None, None]:
    """What shows how far it is, None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("copying", total=None)

        def show(progress: CopyProgress) -> None:
            is_known = progress.step != "checking"
            total = progress.total if is_known else None
            bar.update(task, description=progress.step, completed=progress.done, total=total)

        yield show


@contextmanager
def entries_bar() -> Generator[Callable[[int, int | None], object], None, None]:
    """What shows how many entries have been read, of how many where that is known; nothing where nobody watches."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[entries]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("import", total=None, entries=entry_count(0))
        yield lambda done, total: bar.update(task, completed=done, total=total, entries=entry_count(done))
