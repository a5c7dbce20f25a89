"""`DrivenStorage`: an `AsyncStorage` that can be used as if it were a `Storage`, so that it runs the contract suite.

Called by tests that run `StorageContract` through `AsyncStorage`:

    class TestMyAsyncStore(StorageContract):
        def open_store(self, directory: Path, **options: Unpack[StorageOptions]) -> Storage:
            return DrivenStorage(open_storage(directory / "my.db", **options))

Each verb is awaited on an event loop in a thread of its own. All calls of one thread (within an event loop: of one
task) are awaited by one and the same task there, because a transaction belongs to the task that began it.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self, TypeVar

from mycelia_storage.aio import AsyncNamespace, AsyncScan, AsyncStorage, AsyncTransaction
from mycelia_storage.aio.verbs import writing_alone
from mycelia_storage.namespace import Namespace
from mycelia_storage.scan import Scan
from mycelia_storage.storage import Storage
from mycelia_storage.transaction import Transaction, calling
from mycelia_storage.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from mycelia_storage.transaction import Caller

R = TypeVar("R")
T = TypeVar("T")


class Driver:
    """An event loop in a thread of its own, with a task for each caller."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._queues: dict[Caller, asyncio.Queue[tuple[Callable[[], Any], Future[Any]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="contract-event-loop", daemon=True)
        self._thread.start()

    def drive(self, make: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Await the coroutine that `make` gives, in the caller's task."""
        if self._loop.is_closed():
            return asyncio.run(make())
        future: Future[R] = Future()
        self._loop.call_soon_threadsafe(self._put, calling(), make, future)
        return future.result()

    def close(self) -> None:
        """End the loop and its thread."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _put(self, caller: Caller, make: Callable[[], Any], future: Future[Any]) -> None:
        queue = self._queues.get(caller)
        if queue is None:
            queue = self._queues[caller] = asyncio.Queue()
            self._tasks.add(self._loop.create_task(self._serve(queue)))
        queue.put_nowait((make, future))

    async def _serve(self, queue: asyncio.Queue[tuple[Callable[[], Any], Future[Any]]]) -> None:
        while True:
            make, future = await queue.get()
            try:
                future.set_result(await make())
            except BaseException as error:  # noqa: BLE001  handed over to the caller, who raises it
                future.set_exception(error)
            del make, future

    async def _finish(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._loop.shutdown_default_executor()


def driven(verb: str | Callable[..., Coroutine[Any, Any, Any]]) -> Any:
    """A method that waits for the awaited verb of this name, or for this one; its type is that of what it overrides."""

    def call(self: Any, /, *args: Any, **options: Any) -> Any:
        awaited = getattr(self._front, verb) if isinstance(verb, str) else functools.partial(verb, self._front)
        return self._driver.drive(lambda: awaited(*args, **options))

    call.__name__ = verb if isinstance(verb, str) else verb.__name__
    return call


def walked(name: str) -> Any:
    """A method that waits for the items of an asynchronous walk."""

    def call(self: Any, /, *args: Any, **options: Any) -> Any:
        return DrivenScan(self._driver, getattr(self._front, name)(*args, **options))

    call.__name__ = name
    return call


class DrivenScan(Scan[Any]):
    """An `AsyncScan` as a `Scan`: it has begun when it is made."""

    def __init__(self, driver: Driver, front: AsyncScan[Any]) -> None:
        self._driver = driver
        self._front = front
        driver.drive(front.__aenter__)

    def __next__(self) -> Any:
        try:
            return self._driver.drive(self._front.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        self._driver.drive(self._front.aclose)


class DrivenVerbs(Verbs):
    """Every verb on data."""

    _front: Any
    _driver: Driver

    get: Any = driven("get")
    get_entry: Any = driven("get_entry")
    set: Any = driven("set")
    add: Any = driven("add")
    modify: Any = driven("modify")
    merge: Any = driven("merge")
    increment: Any = driven("increment")
    touch: Any = driven("touch")
    take: Any = driven("take")
    delete: Any = driven("delete")
    has: Any = driven("has")
    get_metadata: Any = driven("get_metadata")
    set_metadata: Any = driven("set_metadata")
    get_many: Any = driven("get_many")
    get_entries: Any = driven("get_entries")
    set_many: Any = driven("set_many")
    add_many: Any = driven("add_many")
    delete_many: Any = driven("delete_many")
    load: Any = driven("load")
    clear: Any = driven("clear")
    clear_all: Any = driven("clear_all")
    list_keys: Any = driven("list_keys")
    query: Any = driven("query")
    count: Any = driven("count")
    delete_where: Any = driven("delete_where")
    explain: Any = driven("explain")
    scan: Any = walked("scan")
    pages: Any = walked("pages")
    create_index: Any = driven("create_index")
    drop_index: Any = driven("drop_index")
    list_indexes: Any = driven("list_indexes")
    create_namespace: Any = driven("create_namespace")
    delete_namespace: Any = driven("delete_namespace")
    list_namespaces: Any = driven("list_namespaces")
    namespace_info: Any = driven("namespace_info")

    # What the mapping's methods of a view call besides.
    _take: Any = driven(writing_alone(Verbs._take))
    _take_first: Any = driven(writing_alone(Verbs._take_first))
    _get_or_add: Any = driven(writing_alone(Verbs._get_or_add))


class DrivenNamespace(Namespace[T]):
    """An `AsyncNamespace` as a `Namespace`: the verbs are its own, a mapping's methods are made of verbs."""

    def __init__(self, verbs: DrivenVerbs, front: AsyncNamespace[T], type: Any) -> None:
        super().__init__(verbs, front.name, type)
        self._front = front
        self._driver = verbs._driver

    get_entry: Any = driven("get_entry")
    set: Any = driven("set")
    add: Any = driven("add")
    modify: Any = driven("modify")
    merge: Any = driven("merge")
    increment: Any = driven("increment")
    touch: Any = driven("touch")
    take: Any = driven("take")
    delete: Any = driven("delete")
    has: Any = driven("has")
    get_metadata: Any = driven("get_metadata")
    set_metadata: Any = driven("set_metadata")
    get_many: Any = driven("get_many")
    get_entries: Any = driven("get_entries")
    set_many: Any = driven("set_many")
    add_many: Any = driven("add_many")
    delete_many: Any = driven("delete_many")
    load: Any = driven("load")
    list_keys: Any = driven("list_keys")
    query: Any = driven("query")
    count: Any = driven("count")
    delete_where: Any = driven("delete_where")
    explain: Any = driven("explain")
    scan: Any = walked("scan")
    pages: Any = walked("pages")
    create_index: Any = driven("create_index")
    drop_index: Any = driven("drop_index")
    list_indexes: Any = driven("list_indexes")
    info: Any = driven("info")


class DrivenTransaction(DrivenVerbs, Transaction):
    """An `AsyncTransaction` as a `Transaction`."""

    def __init__(self, driver: Driver, front: AsyncTransaction) -> None:
        self._driver = driver
        self._front: AsyncTransaction = front

    def __enter__(self) -> Self:
        self._driver.drive(self._front.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._driver.drive(lambda: self._front.__aexit__(kind, error, traceback))

    rollback: Any = driven("rollback")

    def transaction(self, **options: Any) -> DrivenTransaction:
        return DrivenTransaction(self._driver, self._front.transaction(**options))

    def namespace(self, name: Any, type: Any = Any) -> Any:
        if isinstance(name, DrivenNamespace):
            return DrivenNamespace(self, self._front.namespace(name._front), name._type)
        return DrivenNamespace(self, self._front.namespace(name, type), type)


class DrivenStorage(DrivenVerbs, Storage):
    """An `AsyncStorage` as a `Storage`."""

    def __init__(self, storage: Storage) -> None:
        self._driver = Driver()
        self._front: AsyncStorage = AsyncStorage(storage)

    def __repr__(self) -> str:
        return repr(self._front)

    get_status: Any = driven("get_status")
    check: Any = driven("check")
    backup: Any = driven("backup")
    restore: Any = driven("restore")
    optimize: Any = driven("optimize")
    migrate: Any = driven("migrate")

    def namespace(self, name: Any, type: Any = Any) -> Any:
        return DrivenNamespace(self, self._front.namespace(name, type), type)

    def transaction(self, **options: Any) -> DrivenTransaction:
        return DrivenTransaction(self._driver, self._front.transaction(**options))

    def run_transaction(self, function: Callable[[Transaction], R], **options: Any) -> R:
        async def work(tx: AsyncTransaction) -> R:
            return await asyncio.to_thread(function, DrivenTransaction(self._driver, tx))

        return self._driver.drive(lambda: self._front.run_transaction(work, **options))

    def close(self) -> None:
        self._driver.drive(self._front.close)
        self._driver.close()
