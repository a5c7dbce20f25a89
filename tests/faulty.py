"""What a store goes through while things fail, and what its file may hold afterwards.

Called by the tests of faults. A `Run` does every change that was acknowledged on a store in memory, too. Afterwards its
file has to be whole and to hold what that holds, and of what was not acknowledged nothing. A write whose outcome is
unknown may be there or not; but whole, and for good.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import (
    AsyncStorage,
    OutcomeUnknownError,
    Storage,
    StorageBusyError,
    StorageCorruptError,
    StorageError,
    StorageFullError,
    StorageIOError,
    StorageReadOnlyError,
    open_storage,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mycelia_storage.testing import FakeClock

# What a disk that fails may look like. Everything else would hide it.
TYPES = (
    StorageIOError,
    StorageFullError,
    StorageCorruptError,
    StorageBusyError,
    StorageReadOnlyError,
    OutcomeUnknownError,
)

State = dict[str, Any]


def state_of(store: Storage) -> State:
    """Everything that a store holds and is asked for here."""
    entries = {name: dict(store.namespace(name).items()) for name in store.list_namespaces()}
    return {"entries": entries, "indexes": sorted(index.name for index in store.list_indexes())}


class Run:
    """A store whose disk fails, and what its file may hold afterwards."""

    def __init__(
        self,
        path: str,
        options: dict[str, Any],
        clock: FakeClock,
        mirror: Storage,
        types: tuple[type[StorageError], ...] = TYPES,
    ) -> None:
        self.types = types
        self.path = path
        self.options = {**options, "clock": clock, "busy_timeout": 0.2}
        self.mirror = mirror
        self.allowed: list[State] = [state_of(mirror)]
        self.errors: Counter[str] = Counter()
        self.is_doubtful = False
        self.is_for_good = False

    def open(self) -> Storage | None:
        """The store; None where it cannot be opened."""
        found: list[Storage] = []
        self.attempt(lambda: found.append(open_storage(self.path, **self.options)))
        return found[0] if found else None

    def attempt(self, call: Callable[[], object]) -> bool:
        """Do something that changes no state. Whether it was done."""
        try:
            call()
        except StorageError as error:
            self.failed(error)
            return False
        return True

    def step(self, store: Storage, change: Callable[[Storage], object]) -> None:
        """Change something; once more, where the first time was refused and the next one may go well."""
        for number in range(2):
            try:
                change(store)
            except OutcomeUnknownError as error:
                self.unknown(store, change, error)
                return
            except StorageError as error:
                self.failed(error)
                if "open it again" in str(error):
                    return
                if number and not self.is_for_good:
                    pytest.fail(f"it fails though the fault is gone: {error!r}")
            else:
                self.done(store, change)
                return

    def done(self, store: Storage, change: Callable[[Storage], object]) -> None:
        if self.is_doubtful:  # then there was nothing to change
            self.look_at_state_before(store)
            return
        change(self.mirror)
        self.allowed = [state_of(self.mirror)]

    def look_at_state_before(self, store: Storage) -> None:
        with suppress(*self.types):
            assert state_of(store) == self.allowed[0]

    def unknown(self, store: Storage, change: Callable[[Storage], object], error: StorageError) -> None:
        self.failed(error)
        change(self.mirror)
        self.allowed.append(state_of(self.mirror))
        self.is_doubtful = True
        with pytest.raises(StorageIOError, match="open it again"):
            store.set("after", 1)
        if self.options["wal_mode"]:
            self.look_at_state_before(store)
        else:
            with pytest.raises(StorageIOError, match="open it again"):
                store.get("after")

    def look(self, store: Storage) -> None:
        """What is read is right, or is not read."""
        if not self.is_doubtful:
            self.attempt(lambda: self.compare(store))

    def compare(self, store: Storage) -> None:
        assert state_of(store) == self.allowed[-1]

    def failed(self, error: StorageError) -> None:
        assert isinstance(error, self.types), repr(error)
        self.errors[type(error).__name__] += 1

    def verdict(self) -> None:
        """With the fault gone."""
        for _ in range(2):
            with open_storage(self.path, **self.options) as store:
                problems = store.check()
                found = state_of(store)
                assert found in self.allowed, problems
                # For good: what it shows now, it shows ever after.
                self.allowed = [found]
                store.set("works again", 1)
            self.allowed[0]["entries"]["default"]["works again"] = 1


# ---- workloads


def singles(run: Run) -> None:
    store = run.open()
    if store is None:
        return
    for number in range(4):
        run.step(store, lambda to: to.set("a", number))  # noqa: B023 - called at once
        run.step(store, lambda to: to.set(f"new {number}", "x" * 3000, durable=True))  # noqa: B023
    run.step(store, lambda to: to.delete("new 1"))
    run.step(store, lambda to: to.set("old", 9, if_version=to.get_entry("old").version))
    run.look(store)
    run.attempt(store.close)


def batches(run: Run) -> None:
    store = run.open()
    if store is None:
        return
    for number in range(2):
        rows = {f"{n:03}": [number, "z" * 300] for n in range(40)}
        run.step(store, lambda to: to.set_many(rows, namespace="batch", durable=True))  # noqa: B023 - at once
    run.step(store, lambda to: to.delete_many([f"{n:03}" for n in range(0, 40, 2)], namespace="batch"))
    run.look(store)
    run.step(store, lambda to: to.clear(namespace="batch"))
    run.attempt(store.close)


def transactions(run: Run) -> None:
    def change(to: Storage) -> None:
        with to.transaction(durable=True) as tx:
            tx.set("left", 1)
            with tx.transaction() as inner:
                inner.set_many({f"{n}": "t" * 500 for n in range(30)})
            tx.set("right", tx.get("left"))

    store = run.open()
    if store is None:
        return
    run.step(store, change)
    run.step(store, lambda to: to.run_transaction(lambda tx: tx.increment("n"), durable=True))
    run.look(store)
    run.step(store, lambda to: to.modify("old", lambda value: value + 1))
    run.attempt(store.close)


def shared_commits(run: Run) -> None:
    """Many tasks; each has an answer of its own."""
    store = run.open()
    if store is None:
        return
    changes: list[Callable[[Storage], object]] = [
        lambda to, n=n: to.set_many({f"{n} left": n, f"{n} right": "s" * 900})  # type: ignore[misc]
        for n in range(6)
    ]

    async def main() -> list[Any]:
        front = AsyncStorage(store)
        answers = [front.set_many({f"{n} left": n, f"{n} right": "s" * 900}, durable=n == 3) for n in range(6)]
        found = await asyncio.gather(*answers, return_exceptions=True)
        await front._stop()
        return list(found)

    unknown = []
    for change, answer in zip(changes, asyncio.run(main()), strict=True):
        if isinstance(answer, OutcomeUnknownError):
            run.failed(answer)
            unknown.append(change)
        elif isinstance(answer, StorageError):
            run.failed(answer)
        else:
            assert isinstance(answer, dict), answer
            run.done(store, change)
    if unknown:  # they shared one commit
        for change in unknown:
            change(run.mirror)
        run.allowed.append(state_of(run.mirror))
        run.is_doubtful = True
    run.look(store)
    run.attempt(store.close)


def drop(store: Storage) -> None:
    for index in store.list_indexes():
        if index.unique:
            store.drop_index(index.name)


def indexes(run: Run) -> None:
    store = run.open()
    if store is None:
        return
    people = {f"{n:03}": {"age": n % 7, "name": f"{n}"} for n in range(60)}
    run.step(store, lambda to: to.set_many(people, namespace="people"))
    run.step(store, lambda to: to.create_index("age", namespace="people", name="ages"))
    run.step(store, lambda to: to.create_index("name", namespace="people", unique=True, name="names"))
    run.attempt(lambda: len(store.query({"field": "age", "operator": "eq", "value": 3}, namespace="people")))
    run.step(store, drop)
    run.look(store)
    run.attempt(store.close)


def upkeep(run: Run) -> None:
    store = run.open()
    if store is None:
        return
    run.step(store, lambda to: to.set_many({f"{n}": "u" * 500 for n in range(60)}, ttl=60))
    run.attempt(store.optimize)
    run.step(store, lambda to: to.set("between", 1, durable=True))
    run.attempt(lambda: store.get_status())
    run.attempt(lambda: store.check())
    run.attempt(lambda: [entry.key for entry in store.scan(prefix="1")])
    run.attempt(store.close)


def migrations(run: Run) -> None:
    store = run.open()
    if store is None:
        return
    done = run.attempt(lambda: store.migrate(to=1))
    run.attempt(store.migrate)
    if done:
        run.attempt(store.migrate)
    run.attempt(store.close)
    again = run.open()
    if again is not None:
        run.step(again, lambda to: to.set("later", 1))
        run.attempt(again.close)


def copies(run: Run) -> None:
    store = run.open()
    if store is None:
        return
    target = run.path + ".backup"
    before = state_of(run.mirror)
    done = run.attempt(lambda: store.backup(target))
    assert os.path.exists(target) == done
    assert not [name for name in os.listdir(os.path.dirname(target)) if name.endswith(".partial")]
    run.step(store, lambda to: to.set("since", 1))
    if done:
        run.step(store, lambda to: to.restore(target) if to is store else to.delete("since"))
        assert before in run.allowed or run.errors
        run.look(store)
    run.attempt(store.close)


WORKLOADS: tuple[Callable[[Run], None], ...] = (
    singles, batches, transactions, shared_commits, indexes, upkeep, migrations, copies,
)  # fmt: skip


def begin(store: Storage) -> None:
    """What is there before."""
    store.set("old", 1)
    store.set_many({f"old {n}": "o" * 400 for n in range(20)})
