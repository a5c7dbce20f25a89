"""What the facet does with many keys: what is good is done, and each key has an answer of its own.

Called by `StorageFacet`, with the storage or with the transaction that a call belongs to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mycelia_storage.aio import AsyncTransaction
from mycelia_storage.arguments import shown
from mycelia_storage.batches import batch_error, each_key
from mycelia_storage.entries import Put
from mycelia_storage.errors import (
    BatchError,
    CapacityError,
    InvalidKeyError,
    InvalidNamespaceError,
    InvalidValueError,
    KeyExistsError,
    KeyNotFoundError,
    StorageError,
    TransactionConflictError,
    UniqueIndexError,
    VersionConflictError,
)
from mycelia_storage.facet_contract import ENTRY_OPTIONS, read_options
from mycelia_storage.facet_result import StorageResult, failed, succeeded
from mycelia_storage.keys import DEFAULT_NAMESPACE, check_key
from mycelia_storage.retries import Retries

if TYPE_CHECKING:
    from mycelia_storage.aio import AsyncStorage

# As the verbs of a store, which run again after a conflict by themselves.
_ATTEMPTS: Final = 200
_DEADLINE: Final = 30.0
_MEMBERS: Final = ("key", "value", "options")
# Errors of single items: a transaction goes on after them.
_OF_ITEMS: Final = (
    BatchError,
    CapacityError,
    InvalidKeyError,
    InvalidNamespaceError,
    InvalidValueError,
    KeyExistsError,
    UniqueIndexError,
    VersionConflictError,
)


class _Item(NamedTuple):
    """An entry of set_many, read: the name it is reported by, and what `set` is called with."""

    name: str
    key: str
    value: object
    given: dict[str, Any]


async def get_many(
    verbs: AsyncStorage | AsyncTransaction,
    keys: Iterable[str],
    *,
    namespace: str = DEFAULT_NAMESPACE,
    include_metadata: bool = False,
) -> StorageResult:
    """The values of those keys that are there, and an error for each of the others."""
    asked, errors = _sort_out(keys)
    payload: dict[str, Any]
    if include_metadata:
        entries = await verbs.get_entries(asked, namespace=namespace)
        payload = {
            "data": {key: entry.value for key, entry in entries.items()},
            "metadata": {key: entry.metadata for key, entry in entries.items()},
            "versions": {key: entry.version for key, entry in entries.items()},
        }
    else:
        payload = {"data": await verbs.get_many(asked, namespace=namespace)}
    for key in asked:
        if key not in payload["data"]:
            errors[key] = KeyNotFoundError(f"there is no key {key!r} in namespace {namespace!r}")
    return _answer(payload, errors, "the others were read" if payload["data"] else "nothing was found")


async def delete_many(
    verbs: AsyncStorage | AsyncTransaction, keys: Iterable[str], *, namespace: str = DEFAULT_NAMESPACE
) -> StorageResult:
    """Remove the entries of these keys in one step, but for keys that cannot be."""
    asked, errors = _sort_out(keys)
    whole: StorageError | None = None
    count = 0
    try:
        count = await verbs.delete_many(asked, namespace=namespace)
    except StorageError as error:
        whole = error
        errors |= dict.fromkeys(asked, error)
    results = {key: succeeded() for key in asked} | {name: failed(error) for name, error in errors.items()}
    return _answer({"results": results, "count": count}, errors, "the others were deleted", whole)


async def set_many(
    verbs: AsyncStorage | AsyncTransaction, entries: Iterable[Mapping[str, Any]], given: dict[str, Any]
) -> StorageResult:
    """Write each entry that can be written, all in one commit, and tell of each what came of it."""
    items, names, results = _read_entries(entries, given)
    whole: StorageError | None = None
    try:
        written = await _set_together(verbs, items)
    except StorageError as error:
        whole = error
        written = {item.name: failed(error) for item in items}
    for name, result in written.items():
        _note(results, name, result)
    results = {name: results[name] for name in names}
    errors = {name: result.error for name, result in results.items() if result.error is not None}
    nothing = len(errors) == len(results)
    return _answer({"results": results}, errors, "nothing was written" if nothing else "the others were written", whole)


async def _set_together(verbs: AsyncStorage | AsyncTransaction, items: list[_Item]) -> dict[str, StorageResult]:
    """Write items as one batch, or where that cannot be one after the other within one transaction.

    What is wrong with an item is its result. What is raised is of the store, and nothing is written then.
    """
    plain = _plain_batch(items)
    if plain is not None:
        namespace, puts = plain
        try:
            versions = await verbs.set_many(puts, namespace=namespace)
            return {item.name: succeeded(version=versions[item.key]) for item in items}
        except _OF_ITEMS:
            pass  # nothing was written: one by one, then
    return await _set_in_turn(verbs, items) if items else {}


async def _set_in_turn(verbs: AsyncStorage | AsyncTransaction, items: list[_Item]) -> dict[str, StorageResult]:
    """Write items one after the other within one transaction; after a conflict all of it again.

    `run_transaction` would try again after a busy lock too, and so wait for longer than `busy_timeout`.
    """
    retries = Retries(_ATTEMPTS, _DEADLINE)
    while True:
        results: dict[str, StorageResult] = {}
        try:
            async with verbs.transaction() as tx:
                for item in items:
                    try:
                        result = succeeded(version=await set_one(tx, item.key, item.value, item.given))
                    except _OF_ITEMS as error:
                        result = failed(error)
                    _note(results, item.name, result)
        except TransactionConflictError:
            # The caller's own transaction has ended with it: only the caller knows what else was in it.
            pause = None if isinstance(verbs, AsyncTransaction) else retries.pause()
            if pause is None:
                raise
        else:
            return results
        await asyncio.sleep(pause)


async def set_one(verbs: AsyncStorage | AsyncTransaction, key: str, value: object, given: dict[str, Any]) -> int:
    """`set` with options as read; gives the new version."""
    if given.get("if_version") is not None and not given.get("overwrite", True):
        raise InvalidValueError("overwrite False and if_version exclude each other: if_version 0 says the same")
    return await verbs.set(key, value, **given)


def _read_entries(
    entries: object, given: dict[str, Any]
) -> tuple[list[_Item], dict[str, None], dict[str, StorageResult]]:
    """The entries that can be tried, the names of all in the order given, and the failures of the others."""
    if isinstance(entries, str | bytes | Mapping) or not isinstance(entries, Iterable):
        kind = type(entries).__name__
        raise InvalidValueError(f"set_many: a list of {{key, value, options}} mappings is needed, not {kind}")
    items: list[_Item] = []
    names: dict[str, None] = {}
    results: dict[str, StorageResult] = {}
    for index, entry in enumerate(entries):
        name = f"entry {index}"
        try:
            if not isinstance(entry, Mapping):
                kind = type(entry).__name__
                raise InvalidValueError(f"set_many: an entry is a {{key, value, options}} mapping, not {kind}")
            name = _name_of(entry["key"]) if "key" in entry else name
            items.append(_read_entry(name, entry, given))
        except StorageError as error:
            _note(results, name, failed(error))
        names[name] = None
    return items, names, results


def _read_entry(name: str, entry: Mapping[Any, Any], given: dict[str, Any]) -> _Item:
    for member in entry:
        if member not in _MEMBERS:
            raise InvalidValueError(f"set_many: an entry has key, value and options, and no {shown(member)}")
    for member in _MEMBERS[:2]:
        if member not in entry:
            raise InvalidValueError(f"set_many: an entry has no {member}")
    own = read_options("an entry of set_many", ENTRY_OPTIONS, entry.get("options"))
    return _Item(name, check_key(entry["key"]), entry["value"], given | own)


def _plain_batch(items: list[_Item]) -> tuple[str, list[Put]] | None:
    """All items as one batch, if they have one namespace and no condition."""
    namespaces: list[Any] = []
    puts: list[Put] = []
    for item in items:
        namespace = item.given.get("namespace", DEFAULT_NAMESPACE)
        if item.given.get("if_version") is not None or not item.given.get("overwrite", True):
            return None
        if namespaces and namespace != namespaces[0]:
            return None
        namespaces.append(namespace)
        puts.append(Put(item.key, item.value, item.given.get("metadata"), item.given.get("ttl")))
    return (namespaces[0], puts) if puts else None


def _sort_out(keys: Iterable[str]) -> tuple[list[str], dict[str, StorageError]]:
    """The keys that can be keys, each once in the order given, and the errors of the others."""
    if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
        return each_key(keys), {}  # which says what is wrong
    asked: dict[str, None] = {}
    errors: dict[str, StorageError] = {}
    for key in keys:
        try:
            asked[check_key(key)] = None
        except StorageError as error:
            errors[_name_of(key)] = error
    return list(asked), errors


def _name_of(key: object) -> str:
    """What stands for a key in an answer: itself, or where it cannot be written down its repr."""
    if not isinstance(key, str):
        try:
            return ascii(key)[:100]
        except Exception:  # noqa: BLE001  whatever a key of the caller's raises, it says nothing of the others
            return type(key).__name__
    return key.encode("utf-8", "backslashreplace").decode()


def _note(results: dict[str, StorageResult], name: str, result: StorageResult) -> None:
    """Note what came of an entry. Of several with the same key, a failure is what is told."""
    if name not in results or results[name].success:
        results[name] = result


def _answer(
    payload: dict[str, Any], errors: dict[str, StorageError], outcome: str, whole: StorageError | None = None
) -> StorageResult:
    """The answer for many keys. `whole` is an error of the store and not of single keys: a busy one, say."""
    if not errors and whole is None:
        return succeeded(**payload)
    return failed(whole or batch_error(errors, outcome), **payload, errors=errors)
