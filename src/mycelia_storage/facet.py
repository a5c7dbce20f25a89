"""`StorageFacet`: the storage contract of the Mycelia Kernel, twenty async methods that answer with results.

Called by users who speak to a store by messages. It stands on `AsyncStorage`, and adds no behaviour of the store's:
here options are read, errors become results, and transactions get ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import msgspec

from mycelia_storage import facet_batches
from mycelia_storage.aio import AsyncStorage
from mycelia_storage.errors import (
    InvalidFilterError,
    KeyNotFoundError,
    StorageClosedError,
    StorageError,
)
from mycelia_storage.facet_contract import METHODS, TRANSACTION_ID, read_options
from mycelia_storage.facet_result import StorageResult, failed, succeeded
from mycelia_storage.facet_transactions import OpenTransactions
from mycelia_storage.keys import DEFAULT_NAMESPACE
from mycelia_storage.options import StorageOptions, is_for
from mycelia_storage.query import StorageQuery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from types import TracebackType

    from mycelia_storage.aio import AsyncTransaction
    from mycelia_storage.query import Filterable
    from mycelia_storage.storage import Storage

Given: TypeAlias = dict[str, Any]
Verbs: TypeAlias = "AsyncStorage | AsyncTransaction"
_ABSENT: Final = object()
# What a configuration shows must be plain, and no secret.
_NOT_SHOWN: Final = frozenset({"clock", "db_path", "base_dir", "encryption_key", "dsn", "engine_options"})


class StorageFacet:
    """The kernel's contract over an open store: what goes wrong is an answer, and not an exception.

    Every method takes a last argument `options`, a mapping with names in snake_case or camelCase, and gives a
    `StorageResult`. Only what a method's own signature forbids, a missing argument, is a TypeError; cancellation goes
    through. An option that a method does not take is an InvalidValueError that names it.

    Over a `Storage` the facet has threads of its own, so that the event loop never waits. `close`, or leaving an
    `async with`, rolls back what is open and ends them; the store stays open.
    """

    def __init__(self, storage: Storage | AsyncStorage) -> None:
        self._given = storage
        self._owns_threads = not isinstance(storage, AsyncStorage)
        self._storage = storage if isinstance(storage, AsyncStorage) else AsyncStorage(storage)
        self._options = self._storage.sync._options
        self._transactions = OpenTransactions(self._storage, self._options.transaction_timeout)
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<StorageFacet of {self._storage.sync!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Roll back the transactions that are open and end the facet's threads. The store is not closed."""
        self._is_closed = True
        await self._transactions.close()
        if self._owns_threads:
            await self._storage._stop()

    # ---- the properties of the contract

    @property
    def supports_transactions(self) -> bool:
        """True: on every engine."""
        return True

    @property
    def supports_query(self) -> bool:
        """True: filters are evaluated by the engine."""
        return True

    @property
    def supports_metadata(self) -> bool:
        """True: every entry and every namespace has metadata."""
        return True

    @property
    def _storage_backend(self) -> Storage | AsyncStorage:
        return self._given

    @property
    def _config(self) -> dict[str, Any]:
        """The configuration in the form that `open_storage` takes, without what is a secret or a function."""
        backend = self._options.backend
        names = [name for name in StorageOptions.__annotations__ if name not in _NOT_SHOWN and is_for(name, backend)]
        options: dict[str, Any] = {name: getattr(self._options, name) for name in names}
        if self._options.path:
            options["db_path"] = self._options.path
        return {"backend": backend, "options": options}

    # ---- one entry

    async def get(self, key: str, options: Mapping[str, Any] | None = None) -> StorageResult:
        """The value of a key in `data`; a missing one is a KeyNotFoundError.

        Options: `namespace`, `transaction_id`; with `include_metadata` the answer has `metadata` and `version` too.
        """
        return await self._answer("get", options, _get, key)

    async def set(self, key: str, value: object, options: Mapping[str, Any] | None = None) -> StorageResult:
        """Write a value; the answer has its new `version`.

        Options: `namespace`, `metadata`, `overwrite`, `ttl` (seconds), `if_version`, `transaction_id`.
        """
        return await self._answer("set", options, _set, key, value)

    async def delete(self, key: str, options: Mapping[str, Any] | None = None) -> StorageResult:
        """Remove an entry. A missing one is a success too: `exists` tells whether it was there.

        Options: `namespace`, `if_version`, `transaction_id`.
        """
        return await self._answer("delete", options, _delete, key)

    async def has(self, key: str, options: Mapping[str, Any] | None = None) -> StorageResult:
        """Whether the key is there, in `exists`. Options: `namespace`, `transaction_id`."""
        return await self._answer("has", options, _has, key)

    async def get_metadata(self, key: str, options: Mapping[str, Any] | None = None) -> StorageResult:
        """The metadata of an entry, {} where it has none. Options: `namespace`, `transaction_id`."""
        return await self._answer("get_metadata", options, _get_metadata, key)

    async def set_metadata(
        self, key: str, metadata: Mapping[str, object], options: Mapping[str, Any] | None = None
    ) -> StorageResult:
        """Change an entry's metadata; the answer has its new `version`.

        Options: `namespace`, `merge` (False replaces all of it), `if_version`, `transaction_id`.
        """
        return await self._answer("set_metadata", options, _set_metadata, key, metadata)

    # ---- many

    async def get_many(self, keys: Iterable[str], options: Mapping[str, Any] | None = None) -> StorageResult:
        """Values by key in `data`. Where one is missing this is no success: `errors` has an error for each.

        Options: `namespace`, `transaction_id`; with `include_metadata` the answer has `metadata` and `versions` too.
        """
        return await self._answer("get_many", options, _get_many, keys)

    async def set_many(
        self, entries: Iterable[Mapping[str, Any]], options: Mapping[str, Any] | None = None
    ) -> StorageResult:
        """Write `{key, value, options}` mappings, those that can be; `results` has an answer for each key.

        Options: `namespace`, `metadata`, `overwrite`, `ttl`, and `transaction_id`. An entry's own options go before
        these, and may have `if_version`. All that is written is written in one commit.
        """
        return await self._answer("set_many", options, _set_many, entries)

    async def delete_many(self, keys: Iterable[str], options: Mapping[str, Any] | None = None) -> StorageResult:
        """Remove entries in one step; `results` has an answer for each key, `count` tells how many were there.

        Options: `namespace`, `transaction_id`.
        """
        return await self._answer("delete_many", options, _delete_many, keys)

    # ---- finding

    async def list(self, options: Mapping[str, Any] | None = None) -> StorageResult:
        """The keys of a namespace in order, in `keys`.

        Options: `namespace`, `pattern` (`*` is any run of characters), `limit`, `offset`, `transaction_id`.
        """
        return await self._answer("list", options, _list)

    async def query(
        self, filter: Filterable | StorageQuery | None = None, options: Mapping[str, Any] | None = None
    ) -> StorageResult:
        """The entries that a filter matches, in `results`; the filter may stand in the options instead.

        Options: `namespace`, `filter`, `sort`, `limit`, `offset`, `transaction_id`; with `include_metadata` False
        `to_dict` shows keys and values only.
        """
        return await self._answer("query", options, _query, filter)

    async def count(self, options: Mapping[str, Any] | None = None) -> StorageResult:
        """How many entries there are, in `count`. Options: `namespace`, `filter`, `transaction_id`."""
        return await self._answer("count", options, _count)

    # ---- namespaces

    async def create_namespace(self, name: str, options: Mapping[str, Any] | None = None) -> StorageResult:
        """Register an empty namespace. Options: `metadata`, `transaction_id`."""
        return await self._answer("create_namespace", options, _create_namespace, name)

    async def delete_namespace(self, name: str, options: Mapping[str, Any] | None = None) -> StorageResult:
        """Remove a namespace. Options: `recursive` (with all that it holds), `transaction_id`."""
        return await self._answer("delete_namespace", options, _delete_namespace, name)

    async def list_namespaces(self, options: Mapping[str, Any] | None = None) -> StorageResult:
        """The names of all namespaces in order, in `namespaces`. Option: `transaction_id`."""
        return await self._answer("list_namespaces", options, _list_namespaces)

    async def clear(self, options: Mapping[str, Any] | None = None) -> StorageResult:
        """Remove every entry of a namespace, and without `namespace` every entry of all; `count` tells how many.

        Options: `namespace`, `transaction_id`.
        """
        return await self._answer("clear", options, _clear)

    # ---- transactions

    async def begin_transaction(self, options: Mapping[str, Any] | None = None) -> StorageResult:
        """Open a transaction and give its `transaction_id`, which other calls take as an option.

        It has the write lock until `commit`, `rollback` or `transaction_timeout`, whichever comes first. Calls without
        the id go on beside it and do not see it; those that write wait for it. Option: `isolation`.
        """
        return await self._answer("begin_transaction", options, self._begin)

    async def commit(self, transaction_id: str, options: Mapping[str, Any] | None = None) -> StorageResult:
        """Make everything that was done under the id lasting, and visible, at once. The id is finished either way."""
        return await self._answer("commit", options, self._commit, transaction_id)

    async def rollback(self, transaction_id: str, options: Mapping[str, Any] | None = None) -> StorageResult:
        """Undo everything that was done under the id, which is finished."""
        return await self._answer("rollback", options, self._rollback, transaction_id)

    # ---- the store

    async def get_status(self, options: Mapping[str, Any] | None = None) -> StorageResult:
        """The state of the store in `status`; `to_dict` shows it as the contract has it, with `size` and `healthy`."""
        return await self._answer("get_status", options, self._get_status)

    # ---- how each of them is run

    async def _answer(
        self, name: str, options: object, work: Callable[..., Awaitable[StorageResult]], *arguments: object
    ) -> StorageResult:
        """Run a method with its options; what it raises, but for cancellation, is its answer."""
        try:
            if self._is_closed:
                raise StorageClosedError(f"{self._storage._home.where}: the facet was closed")
            given = read_options(name, METHODS[name].options, options)
            if TRANSACTION_ID not in given:
                return await work(self._storage, given, *arguments)
            # An id that is None is refused there, too: it is what a begin that failed has left.
            async with self._transactions.using(given.pop(TRANSACTION_ID)) as tx:
                return await work(tx, given, *arguments)
        except StorageError as error:
            return failed(error)
        except Exception as error:  # noqa: BLE001  from an iterator or a mapping of the caller's, say
            unexpected = StorageError(f"{name}: unexpected {type(error).__name__}")
            unexpected.__cause__ = error
            return failed(unexpected)

    async def _begin(self, _: object, given: Given) -> StorageResult:
        return succeeded(transaction_id=await self._transactions.begin(**given))

    async def _commit(self, _: object, __: Given, identifier: object) -> StorageResult:
        await self._transactions.end(identifier, "commit")
        return succeeded()

    async def _rollback(self, _: object, __: Given, identifier: object) -> StorageResult:
        await self._transactions.end(identifier, "rollback")
        return succeeded()

    async def _get_status(self, _: object, __: Given) -> StorageResult:
        return succeeded(status=await self._storage.get_status())


async def _get(verbs: Verbs, given: Given, key: str) -> StorageResult:
    if given.pop("include_metadata", False):
        entry = await verbs.get_entry(key, **given)
        return succeeded(data=entry.value, metadata=entry.metadata, version=entry.version)
    value = await verbs.get(key, _ABSENT, **given)
    if value is _ABSENT:
        namespace = given.get("namespace", DEFAULT_NAMESPACE)
        raise KeyNotFoundError(f"there is no key {key!r} in namespace {namespace!r}")
    return succeeded(data=value)


async def _set(verbs: Verbs, given: Given, key: str, value: object) -> StorageResult:
    return succeeded(version=await facet_batches.set_one(verbs, key, value, given))


async def _delete(verbs: Verbs, given: Given, key: str) -> StorageResult:
    return succeeded(exists=await verbs.delete(key, **given))


async def _has(verbs: Verbs, given: Given, key: str) -> StorageResult:
    return succeeded(exists=await verbs.has(key, **given))


async def _get_metadata(verbs: Verbs, given: Given, key: str) -> StorageResult:
    return succeeded(metadata=await verbs.get_metadata(key, **given))


async def _set_metadata(verbs: Verbs, given: Given, key: str, metadata: Mapping[str, object]) -> StorageResult:
    return succeeded(version=await verbs.set_metadata(key, metadata, **given))


async def _get_many(verbs: Verbs, given: Given, keys: Iterable[str]) -> StorageResult:
    return await facet_batches.get_many(verbs, keys, **given)


async def _set_many(verbs: Verbs, given: Given, entries: Iterable[Mapping[str, Any]]) -> StorageResult:
    return await facet_batches.set_many(verbs, entries, given)


async def _delete_many(verbs: Verbs, given: Given, keys: Iterable[str]) -> StorageResult:
    return await facet_batches.delete_many(verbs, keys, **given)


async def _list(verbs: Verbs, given: Given) -> StorageResult:
    return succeeded(keys=await verbs.list_keys(**given))


async def _query(verbs: Verbs, given: Given, filter: Filterable | StorageQuery | None) -> StorageResult:
    whole = given.pop("include_metadata", True)
    if filter is not None and "filter" in given:
        raise InvalidFilterError("query: the filter is given twice, as an argument and as an option")
    wanted = _read_filter(given.pop("filter", filter))
    page = await verbs.query(wanted, **given)
    return msgspec.structs.replace(succeeded(results=[*page]), _is_brief=not whole)


async def _count(verbs: Verbs, given: Given) -> StorageResult:
    return succeeded(count=await verbs.count(_read_filter(given.pop("filter", None)), **given))


def _read_filter(filter: Any) -> Any:
    """A filter as it came; a query that `StorageQuery.to_dict` has written as the query that it was."""
    return StorageQuery.from_dict(filter) if isinstance(filter, Mapping) and "filters" in filter else filter


async def _create_namespace(verbs: Verbs, given: Given, name: str) -> StorageResult:
    await verbs.create_namespace(name, **given)
    return succeeded()


async def _delete_namespace(verbs: Verbs, given: Given, name: str) -> StorageResult:
    await verbs.delete_namespace(name, **given)
    return succeeded()


async def _list_namespaces(verbs: Verbs, given: Given) -> StorageResult:
    return succeeded(namespaces=await verbs.list_namespaces(**given))


async def _clear(verbs: Verbs, given: Given) -> StorageResult:
    # A namespace that is None is refused there, and never taken for "all of them".
    return succeeded(count=await (verbs.clear(**given) if given else verbs.clear_all()))
