"""Items of a batch: from whatever the caller gave to checked texts by key, with the error of each that is bad.

Called by `set_many`, `add_many`, `load` and the verbs that take many keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from mycelia_storage.arguments import shown, ttl_ms
from mycelia_storage.codec import encode, encode_object
from mycelia_storage.entries import Put
from mycelia_storage.errors import BatchError, InvalidKeyError, InvalidValueError, StorageError
from mycelia_storage.keys import check_key

# By key: the value's text, the metadata's text, the time to live in milliseconds.
Batch: TypeAlias = dict[str, tuple[str, str | None, int | None]]

_SHOWN: Final = 100


def each_key(keys: Iterable[str]) -> list[str]:
    """Checked keys in the order given, each once."""
    if isinstance(keys, str):
        raise InvalidKeyError("several keys are needed, and one str was given: put it into a list")
    if not isinstance(keys, Iterable):
        raise InvalidKeyError(f"several keys are needed, and {type(keys).__name__} cannot be iterated over")
    return list(dict.fromkeys(map(check_key, keys)))


def pairs(items: object) -> Iterator[object]:
    """The items one by one: pairs of key and value, or Puts."""
    if isinstance(items, Mapping):
        return iter(items.items())
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        kind = type(items).__name__
        raise InvalidValueError(f"items: a mapping, or an iterable of pairs of key and value, is needed, not {kind}")
    return iter(items)


def collect(
    items: Iterator[object], metadata: str | None, lasting: int | None, max_bytes: int
) -> tuple[Batch, dict[Any, StorageError]]:
    """All items as a batch, and the errors of the bad ones by key. Of equal keys the last one stands."""
    batch: Batch = {}
    errors: dict[Any, StorageError] = {}
    for index, item in enumerate(items):
        try:
            if type(item) is tuple and len(item) == 2:
                # The usual form, without a further call for each of what may be thousands.
                batch[check_key(item[0])] = encode(item[1], max_bytes), metadata, lasting
            else:
                add_item(batch, item, metadata, lasting, max_bytes)
        except StorageError as error:
            errors[name_of(item, index)] = error
    return batch, errors


def add_item(batch: Batch, item: object, metadata: str | None, lasting: int | None, max_bytes: int) -> tuple[str, int]:
    """Put one item into the batch; gives its key and the length of its text. Raises the error of a bad one."""
    if isinstance(item, Put):
        key, value = check_key(item.key), item.value
        if item.metadata is not None:
            metadata = encode_object(item.metadata, max_bytes, what="metadata")
        if item.ttl is not None:
            lasting = ttl_ms(item.ttl)
    elif isinstance(item, tuple | list) and len(item) == 2:
        key, value = check_key(item[0]), item[1]
    else:
        message = f"an item is a pair of key and value or a Put, not {type(item).__name__}"
        raise InvalidValueError(message)
    text = encode(value, max_bytes)
    batch[key] = text, metadata, lasting
    return key, len(text)


def name_of(item: object, index: int) -> object:
    """What stands for a bad item among the errors: its key, the repr of what cannot be one, or its place."""
    if isinstance(item, Put):
        key: object = item.key
    elif isinstance(item, tuple | list) and len(item) == 2:
        key = item[0]
    else:
        return f"item {index}"
    try:
        return key if _stands_in_mapping(key) else repr(key)[:_SHOWN]
    except Exception:  # noqa: BLE001  whatever a key of the caller's raises, it says nothing of the others
        return f"item {index}"


def _stands_in_mapping(key: object) -> bool:
    try:
        return {key: True}[key]
    except TypeError:
        return False


def batch_error(errors: Mapping[Any, StorageError], outcome: str) -> BatchError:
    """The error of a batch, which shows the first of its items' errors."""
    first = next(iter(errors))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return BatchError(f"{shown(first)}: {errors[first]}{more}; {outcome}", errors)
