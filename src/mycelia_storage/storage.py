"""`Storage`, an open store: the verbs on data, each as a transaction of its own, and those on the store itself.

Called by users; `open_storage` makes one. The verbs stand in `verbs.py` and `finding.py`, and reach the engine through
the few methods at the end of the class.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from inspect import iscoroutine, isgenerator
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeVar, Unpack

from mycelia_storage.arguments import check_function, check_progress, check_whole
from mycelia_storage.checking import Findings
from mycelia_storage.engines.engine import Member
from mycelia_storage.engines.registry import open_engine
from mycelia_storage.entries import CheckReport, Status
from mycelia_storage.errors import (
    InvalidValueError,
    StorageBusyError,
    StorageError,
    StorageReadOnlyError,
    TransactionConflictError,
)
from mycelia_storage.keys import ORIGIN
from mycelia_storage.options import DEFAULT_TARGET, Options, StorageOptions, file_path, read_options
from mycelia_storage.retries import RETRIED, Retries
from mycelia_storage.sharing import SharedVerbs
from mycelia_storage.transaction import Home, Owner, Transaction
from mycelia_storage.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import timedelta
    from os import PathLike
    from types import TracebackType

    from mycelia_storage.engines.engine import Engine, Isolation, Primitives
    from mycelia_storage.entries import CopyProgress
    from mycelia_storage.query import StorageQuery
    from mycelia_storage.sharing import Call

R = TypeVar("R")

MAX_SCANS: Final = 16
_END_SCANS: Final = (
    "end some, by close(), a with block or a walk to their end; pages() holds nothing between two pages, however many"
)
# A verb that others came between is run again so often, and not begun again after so many seconds.
_ATTEMPTS: Final = 200
_DEADLINE: Final = 30.0


def open_storage(
    target: str | PathLike[str] | Mapping[str, Any] = DEFAULT_TARGET, /, **options: Unpack[StorageOptions]
) -> Storage:
    """Open a store, or make it.

    `target`: a path; `sqlite:///relative.db` or `sqlite:////absolute.db`; `memory:` for a new store in memory;
    `postgresql://user@host/database` for a server, which needs the extra `postgres`; the URL of an engine that another
    distribution has registered; or a mapping `{"storage": {"backend": "sqlite", "options": {…}}}`, with or without the
    outer key.

    Raises ConfigError for a bad target or option, NotAStorageFileError for a file of somebody else and
    SchemaVersionError for one of another version (both leave it as it is), StorageBusyError, StorageIOError,
    StorageUnavailableError where a server cannot be reached.

    >>> with open_storage("memory:") as store:
    ...     store.set("greeting", {"text": "hello"}) > 0
    True
    """
    read = read_options(target, options)
    return Storage(open_engine(read), read)


class Storage(Verbs):
    """An open store, for any number of threads. Close it, or use it as a context manager.

    Every verb but `load` is a transaction of its own: when it returns, its change is there for everybody and survives
    the end of this process; when it raises, nothing was changed.
    """

    def __init__(self, engine: Engine, options: Options) -> None:
        """Users call `open_storage`."""
        self._engine = engine
        self._options = options
        self._auto = engine.auto
        self._home = Home(engine, options)
        self._inside = self._home.inside
        self._clock = engine.clock
        self._max_value_bytes = options.max_value_bytes
        self._is_read_only = options.read_only
        self._scan_slots = deque(range(MAX_SCANS))
        if not options.read_only and engine.holds_expiring():
            self._expiring()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a store is neither pickled nor copied: each process opens its own, with open_storage(target)")

    def __repr__(self) -> str:
        state = "closed" if self._home.is_closed else "open"
        return f"<Storage {self._engine.backend} {state}>"

    # ---- together

    def transaction(
        self,
        *,
        read_only: bool = False,
        isolation: Isolation | None = None,
        durable: bool | None = None,
        wait: float | timedelta | None = None,
        max_duration: float | timedelta | None = None,
    ) -> AbstractContextManager[Transaction]:
        """Several verbs as one step, in a with block that gives a `Transaction` with the same verbs.

        Leaving the block commits, an exception rolls back. A writing transaction has the write lock from its start,
        so what it has read stays true; it waits for the lock `wait` seconds at most (default: `busy_timeout`), then
        StorageBusyError. After `max_duration` seconds it is rolled back, and whatever uses it then gets a
        TransactionError. `durable=True` makes its commit survive a power cut. `read_only=True` reads one state and
        hinders nobody. `isolation` is the least isolation wanted; SQLite and memory are always serializable. Inside the
        block, use the transaction and not the store.
        """
        return self._transaction(
            read_only=read_only, isolation=isolation, durable=durable, wait=wait, max_duration=max_duration
        )

    def _transaction(
        self,
        *,
        owner: Owner = "calling",
        read_only: bool = False,
        isolation: Isolation | None = None,
        durable: bool | None = None,
        wait: float | timedelta | None = None,
        max_duration: float | timedelta | None = None,
    ) -> Transaction:
        """`transaction`, for somebody else than the calling thread or task."""
        return Transaction(
            self._home,
            read_only=read_only,
            isolation=isolation,
            durable=durable,
            wait=wait,
            max_duration=max_duration,
            owner=owner,
        )

    def run_transaction(
        self,
        function: Callable[[Transaction], R],
        *,
        attempts: int = 50,
        deadline: float = 30.0,
        isolation: Isolation | None = None,
        durable: bool | None = None,
    ) -> R:
        """Call `function` with a transaction and commit; after a conflict or a busy lock, again.

        It is tried `attempts` times at most and not begun again after `deadline` seconds; then the last error is
        raised. Any other error is raised at once. The function may run several times, so what it does besides has to
        bear that.
        """
        check_function("function", function)
        retries = Retries(attempts, deadline)
        while True:
            try:
                with self.transaction(isolation=isolation, durable=durable) as tx:
                    result = function(tx)
                    if iscoroutine(result) or isgenerator(result):
                        result.close()
                        raise TypeError(
                            "run_transaction needs a plain function: an async one, or one that yields, has not run "
                            "when the transaction ends (AsyncStorage has a run_transaction for async functions)"
                        )
                    return result
            except RETRIED:
                pause = retries.pause()
                if pause is None:
                    raise
            time.sleep(pause)

    # ---- the store

    def get_status(self) -> Status:
        """What the store is and how full, without a visit to every entry's value."""
        rows = self._reading()
        namespaces = sum(1 for row in rows.namespaces() if row.name != ORIGIN)
        status = self._engine.status()
        return Status(
            self._engine.backend,
            status.target,
            status.schema_version,
            rows.count(None, self._now()),
            namespaces,
            status.size_bytes,
            status.details,
        )

    def check(self) -> CheckReport:
        """Look at everything, in one state of the store, while others go on to read and write.

        Every entry and namespace by the rules for keys, values, versions and times; every index against the entries,
        in both directions; and the file by SQLite's own integrity check. Takes as long as reading the whole store some
        times, and little memory. Raises StorageCorruptError that lists what is wrong, by key where it can; what is
        damaged does not keep it from looking at the rest.
        """
        started = time.perf_counter()
        findings = Findings()
        self._home.engine().check(findings, self._now())
        if findings.count:
            raise findings.error()
        seconds = time.perf_counter() - started
        return CheckReport(self._engine.backend, findings.entries, findings.namespaces, findings.indexes, seconds)

    def backup(
        self,
        path: str | PathLike[str],
        *,
        overwrite: bool = False,
        progress: Callable[[CopyProgress], object] | None = None,
    ) -> None:
        """Write a SQLite file of the store as it is now, while others go on to read and write.

        The file is only for its owner to read, and is looked through and on the disk before it gets its name; whatever
        fails leaves none. One that is there is refused with a ConfigError, unless `overwrite` is True. `progress` is
        called again and again with a `CopyProgress`; what it raises cancels the backup.
        Raises StorageCorruptError where the store itself is damaged, StorageFullError, StorageIOError.
        """
        engine = self._home.engine()
        if not isinstance(overwrite, bool):
            raise InvalidValueError(f"overwrite: {type(overwrite).__name__} is neither True nor False")
        check_progress(progress)
        engine.backup(file_path("path", path), overwrite=overwrite, progress=progress)

    def restore(self, path: str | PathLike[str], *, progress: Callable[[CopyProgress], object] | None = None) -> None:
        """Put what a file holds, a backup for one, in place of everything in the store, indexes included, in one step.

        The file is only read. It is looked through first, and brought to the newest version where it is older. Other
        threads and processes read the old state until the new one is there; what fails, or is cancelled by what
        `progress` raises, leaves the old one. Afterwards the restored state survives a power cut.
        Raises NotAStorageFileError, SchemaVersionError, StorageCorruptError for a file that cannot be taken.
        """
        self._writing()
        check_progress(progress)
        source = file_path("path", path)
        who = self._home.enter()
        try:
            self._engine.restore(source, progress=progress)
        finally:
            self._home.leave(who)
        self._expiring()

    def optimize(self) -> None:
        """Remove what has expired, and let the engine do its upkeep. Safe at any time, worth a call now and then."""
        self._writing()
        retries = Retries(_ATTEMPTS, _DEADLINE)
        while True:
            try:
                if not self._home.upkeep.remove_some(None)[0]:
                    break
            except TransactionConflictError:
                pause = retries.pause()
                if pause is None:
                    raise
                time.sleep(pause)
        self._engine.optimize()

    def migrate(self, *, to: int | None = None) -> None:
        """Bring the schema to version `to`, None meaning the newest, in one transaction.

        Version 1 is what the original JavaScript adapter reads. Going down to it raises SchemaVersionError while an
        entry has an expiry, naming it; nothing is changed then. Afterwards this store only takes `migrate` and `close`.
        """
        self._writing()
        if to is not None:
            to = check_whole("to", to, least=0)
        self._engine.migrate(to)

    def close(self) -> None:
        """Release everything. Open transactions are rolled back; a second close does nothing."""
        self._home.close()
        self._engine.close()

    # ---- what the verbs run on

    def _advise(self, rows: Primitives, namespace: str, wanted: StorageQuery, now: int) -> None:
        self._home.advisor.look(rows, namespace, wanted, now)

    def _reading(self) -> Primitives:
        if self._inside:
            self._home.refuse_inside()
        return self._auto

    def _writing(self) -> Primitives:
        if self._inside:
            self._home.refuse_inside(waiting=True)
        if self._home.is_closed:
            raise self._home.closed_error()
        if self._is_read_only:
            raise StorageReadOnlyError("the store was opened with read_only=True")
        return self._auto

    def _now(self) -> int:
        return round(self._clock() * 1_000_000)

    def _together(self, step: Callable[[Primitives, int], R], *, durable: bool | None = None, alone: bool = False) -> R:
        self._writing()
        is_durable = self._home.check_durable(durable)
        if alone:
            return self._alone(step, is_durable)
        member = Member(step, durable=is_durable)
        self._engine.share((member,))
        return member.outcome()  # type: ignore[no-any-return]

    def _alone(self, step: Callable[[Primitives, int], R], durable: bool) -> R:
        """A transaction of its own, where the step may run what callers have given: they must not use the store."""
        retries = Retries(_ATTEMPTS, _DEADLINE)
        while True:
            session = self._engine.begin(durable=durable, wait=None)
            who = self._home.enter()
            try:
                result = step(session, self._now())
                session.commit()
            except TransactionConflictError:
                pause = retries.pause()
                if pause is None:
                    raise
            else:
                return result
            finally:
                self._home.leave(who)
                session.rollback()
            time.sleep(pause)

    def _share(self, calls: Sequence[Call], wait: float | None = None) -> None:
        """Run every call in one shared commit, in order; afterwards each has its result or its error.

        For somebody who has collected writes of several callers, and waits `wait` seconds for the lock at most (None:
        `busy_timeout`).
        """
        try:
            self._writing()
        except StorageError as error:
            for call in calls:
                call.done(error=copy.copy(error))
            return
        self._give_verbs(calls)
        self._engine.share(calls, wait)

    def _share_at_once(self, calls: Sequence[Call]) -> bool:
        """As the engine's `share_at_once`, where the store may be written to just now."""
        share = self._engine.share_at_once
        if share is None or self._home.is_closed or self._is_read_only:
            return False
        self._give_verbs(calls)
        return share(calls)

    def _give_verbs(self, calls: Sequence[Call]) -> None:
        verbs = SharedVerbs(self._home)
        for call in calls:
            call.verbs = verbs

    def _expiring(self) -> None:
        self._home.upkeep.expect_expiry()

    def _start_scan(self) -> tuple[Callable[[], Primitives], Callable[[], object], int]:
        engine, now = self._home.engine(), self._now()
        try:
            slot = self._scan_slots.pop()
        except IndexError:
            # At once: whoever has forgotten scans would wait for itself.
            message = f"{self._home.where}: {MAX_SCANS} scans are open, and no more can be: {_END_SCANS}"
            raise StorageBusyError(message) from None
        try:
            snapshot = engine.snapshot()
        except BaseException:
            self._scan_slots.append(slot)
            raise

        def rows() -> Primitives:
            if self._home.is_closed:
                raise self._home.closed_error()
            return snapshot

        def end() -> None:
            # Called by the garbage collector too, at any point of any thread: so no lock.
            self._scan_slots.append(slot)
            snapshot.rollback()

        return rows, end, now


def check_store(name: str, store: object) -> None:
    """A store, of those that are not awaited."""
    if not isinstance(store, Storage):
        kind = type(store).__name__
        hint = ": give its .sync" if kind == "AsyncStorage" else ", such as open_storage(target) gives"
        raise InvalidValueError(f"{name}: a Storage is needed, not {kind}{hint}")
