"""`Namespace`, a view of one namespace: a mutable mapping, and every verb without `namespace=`.

Called by users through `Storage.namespace` and `Transaction.namespace`. Each method is a line or two over a verb; the
only thing added here is the type of the values.
"""

from __future__ import annotations

import copy
import re
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from inspect import iscoroutine
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    Protocol,
    Self,
    TypeVar,
    cast,
    overload,
    runtime_checkable,
)

import msgspec

from mycelia_storage.arguments import KEEP, MISSING, Keep, Missing, check_function
from mycelia_storage.codec import Unfit, check, show_path
from mycelia_storage.documents import merge_patch
from mycelia_storage.entries import Entry, IndexInfo, LoadReport, NamespaceInfo, Plan, Put
from mycelia_storage.errors import InvalidKeyError, InvalidValueError, KeyNotFoundError, ValueTypeError
from mycelia_storage.page import Page
from mycelia_storage.value_types import check_value_type

if TYPE_CHECKING:
    from abc import ABCMeta
    from collections.abc import Callable
    from datetime import timedelta

    from mycelia_storage.filters import Field, SortKey
    from mycelia_storage.query import Filterable, Sortable, StorageQuery
    from mycelia_storage.scan import Scan
    from mycelia_storage.verbs import Verbs

T = TypeVar("T")
D = TypeVar("D")
T_co = TypeVar("T_co", covariant=True)

# The messages of msgspec's validation that show the value: of enums and of tagged unions.
_SHOWN_VALUE: Final = re.compile(r"^Invalid (enum )?value .*(?=( - at `)|$)", re.DOTALL)


@runtime_checkable
class Keyed(Protocol[T_co]):
    """What `dict.update` takes for a mapping: something with keys, and a value for each."""

    def keys(self) -> Iterable[str]:
        """The keys."""
        ...

    def __getitem__(self, key: str, /) -> T_co:
        """The value of a key."""
        ...


class Namespace(Generic[T]):
    """One namespace as a mutable mapping of keys to values of type T, with all verbs besides.

    Methods of mappings mean what they mean for dict, each in one atomic step. `keys()`, `values()`, `items()` and
    iteration are scans in key order, each on one state of the store.
    """

    def __init__(self, verbs: Verbs, name: str, type: Any = Any) -> None:
        """Users call `store.namespace(name)`."""
        self._verbs = verbs
        self.name: Final = name
        self._type = type
        self._is_typed = type is not Any and type is not object
        if self._is_typed:
            check_value_type(type)

    def __repr__(self) -> str:
        of = f" of {getattr(self._type, '__name__', self._type)}" if self._is_typed else ""
        return f"<Namespace {self.name!r}{of}>"

    def within(self, verbs: Verbs) -> Namespace[T]:
        """The same view inside a transaction; `tx.namespace(view)` is the same."""
        view = copy.copy(self)  # whose type has been checked already
        view._verbs = verbs
        return view

    # ---- a mapping

    def __getitem__(self, key: str) -> T:
        value = self._verbs.get(key, MISSING, namespace=self.name)
        if value is MISSING:
            raise KeyNotFoundError(f"there is no key {key!r} in namespace {self.name!r}")
        return self._take_in(value, key)

    def __setitem__(self, key: str, value: T) -> None:
        self._verbs.set(key, self._give_out(value), namespace=self.name)

    def __delitem__(self, key: str) -> None:
        if not self._verbs.delete(key, namespace=self.name):
            raise KeyNotFoundError(f"there is no key {key!r} in namespace {self.name!r}")

    def __contains__(self, key: object) -> bool:
        try:
            return self._verbs.has(key, namespace=self.name)  # type: ignore[arg-type]
        except InvalidKeyError:
            return False

    def __iter__(self) -> Iterator[str]:
        return (entry.key for entry in self._verbs.scan(namespace=self.name))

    # As with every MutableMapping; list_keys(reverse=True) gives keys backwards.
    __reversed__ = None

    def __len__(self) -> int:
        return self._verbs.count(namespace=self.name)

    def __bool__(self) -> bool:
        return bool(self._verbs.list_keys(namespace=self.name, limit=1))

    def __ior__(self, other: Keyed[T] | Iterable[tuple[str, T]]) -> Self:
        self.update(other)
        return self

    def keys(self) -> KeysView[str]:
        """The keys, in order."""
        return _Keys(cast("Mapping[str, Any]", self))

    def values(self) -> ValuesView[T]:
        """The values, in the order of their keys."""
        return _Values(self)

    def items(self) -> ItemsView[str, T]:
        """The pairs of key and value, in the order of their keys."""
        return _Items(self)

    @overload
    def get(self, key: str, default: None = None) -> T | None: ...
    @overload
    def get(self, key: str, default: D) -> T | D: ...
    def get(self, key: str, default: object = None) -> Any:
        """The value of a key, `default` where there is none."""
        value = self._verbs.get(key, MISSING, namespace=self.name)
        return default if value is MISSING else self._take_in(value, key)

    @overload
    def pop(self, key: str) -> T: ...
    @overload
    def pop(self, key: str, default: D) -> T | D: ...
    def pop(self, key: str, default: object = MISSING) -> Any:
        """Remove a key and give its value. Without `default`: KeyNotFoundError."""
        entry = self._verbs._take(self.name, key, self._converter())
        if entry is not None:
            return entry.value
        if default is MISSING:
            raise KeyNotFoundError(f"there is no key {key!r} in namespace {self.name!r}")
        return default

    def popitem(self) -> tuple[str, T]:
        """Remove the first entry in key order and give its key and value. Raises KeyNotFoundError when empty."""
        entry = self._verbs._take_first(self.name, self._converter())
        return entry.key, entry.value

    @overload
    def setdefault(self, key: str, default: None = None) -> T | None: ...
    @overload
    def setdefault(self, key: str, default: T) -> T: ...
    def setdefault(self, key: str, default: Any = None) -> Any:
        """The value of a key; where there is none, `default`, which is written first."""
        return self._take_in(self._verbs._get_or_add(self.name, key, self._give_out(default)), key)

    def update(self, other: Keyed[T] | Iterable[tuple[str, T]] = (), /, **more: T) -> None:
        """Write all of these items or none."""
        items: Any = other
        if isinstance(other, Mapping | Namespace):
            items = cast("Mapping[str, T]", other).items()
        elif isinstance(other, Keyed):
            items = [(key, other[key]) for key in other.keys()]  # noqa: SIM118 - it may not be iterable
        self.set_many([*items, *more.items()])

    def clear(self) -> None:
        """Remove every entry, in one statement. (The store's verb of that name also tells how many.)"""
        self._verbs.clear(namespace=self.name)

    # ---- the verbs

    @overload
    def get_entry(self, key: str) -> Entry[T]: ...
    @overload
    def get_entry(self, key: str, default: D) -> Entry[T] | D: ...
    def get_entry(self, key: str, default: object = MISSING) -> Any:
        """As `Storage.get_entry`."""
        if default is MISSING:
            return self._typed_entry(self._verbs.get_entry(key, namespace=self.name))
        entry = self._verbs.get_entry(key, default, namespace=self.name)
        return self._typed_entry(entry) if isinstance(entry, Entry) else entry

    def set(
        self,
        key: str,
        value: T,
        *,
        metadata: Mapping[str, object] | None = None,
        ttl: float | timedelta | None = None,
        overwrite: bool = True,
        if_version: int | None = None,
        durable: bool | None = None,
    ) -> int:
        """As `Storage.set`."""
        return self._verbs.set(
            key,
            self._give_out(value),
            namespace=self.name,
            metadata=metadata,
            ttl=ttl,
            overwrite=overwrite,
            if_version=if_version,
            durable=durable,
        )

    def add(
        self,
        key: str,
        value: T,
        *,
        metadata: Mapping[str, object] | None = None,
        ttl: float | timedelta | None = None,
        durable: bool | None = None,
    ) -> bool:
        """As `Storage.add`."""
        out = self._give_out(value)
        return self._verbs.add(key, out, namespace=self.name, metadata=metadata, ttl=ttl, durable=durable)

    def modify(
        self,
        key: str,
        function: Callable[[T], T],
        *,
        default: T | Missing = MISSING,
        ttl: float | timedelta | Keep | None = KEEP,
        if_version: int | None = None,
        durable: bool | None = None,
    ) -> T:
        """As `Storage.modify`; the function takes and gives a value of the view's type.

        A document with members that the type does not know is a ValueTypeError, since writing it would drop them.
        """

        check_function("function", function)

        def change(value: Any) -> object:
            taken = self._take_in(value, key)
            self._refuse_to_lose(value, taken, key)
            changed: object = function(taken)
            # What is no value at all is for the verb to refuse.
            return changed if changed is None or iscoroutine(changed) else self._give_out(changed)

        start = MISSING if default is MISSING else self._give_out(default)
        new = self._verbs.modify(
            key, change, namespace=self.name, default=start, ttl=ttl, if_version=if_version, durable=durable
        )
        return self._take_in(new, key)

    def merge(
        self,
        key: str,
        patch: Mapping[str, object],
        *,
        ttl: float | timedelta | Keep | None = KEEP,
        if_version: int | None = None,
        durable: bool | None = None,
    ) -> T:
        """As `Storage.merge`. A result that does not fit the view's type is an InvalidValueError, and not written."""
        if not self._is_typed:
            return cast(
                "T",
                self._verbs.merge(key, patch, namespace=self.name, ttl=ttl, if_version=if_version, durable=durable),
            )
        if not isinstance(patch, Mapping):
            raise InvalidValueError(f"patch: {type(patch).__name__} is not a mapping")
        changes = dict(patch)
        check(changes, "patch")

        def merge(value: object) -> object:
            merged = merge_patch(value, changes)
            self._fitting(merged)
            return merged

        new = self._verbs.modify(
            key,
            merge,
            namespace=self.name,
            default={},
            ttl=ttl,
            if_version=if_version,
            durable=durable,
        )
        return self._take_in(new, key)

    @overload
    def increment(
        self,
        key: str,
        by: int = 1,
        *,
        field: str | None = ...,
        ttl: float | timedelta | Keep | None = ...,
        durable: bool | None = ...,
    ) -> int: ...
    @overload
    def increment(
        self,
        key: str,
        by: float,
        *,
        field: str | None = ...,
        ttl: float | timedelta | Keep | None = ...,
        durable: bool | None = ...,
    ) -> float: ...
    def increment(
        self,
        key: str,
        by: float = 1,
        *,
        field: str | None = None,
        ttl: float | timedelta | Keep | None = KEEP,
        durable: bool | None = None,
    ) -> float:
        """As `Storage.increment`."""
        accept = self._fitting if self._is_typed else None
        return self._verbs._increment(self.name, key, by, field, ttl, durable, accept)

    def touch(self, key: str, *, ttl: float | timedelta | None) -> bool:
        """As `Storage.touch`."""
        return self._verbs.touch(key, namespace=self.name, ttl=ttl)

    @overload
    def take(self, key: str, *, durable: bool | None = ...) -> Entry[T]: ...
    @overload
    def take(self, key: str, default: D, *, durable: bool | None = ...) -> Entry[T] | D: ...
    def take(self, key: str, default: object = MISSING, *, durable: bool | None = None) -> Any:
        """As `Storage.take`."""
        entry = self._verbs._take(self.name, key, self._converter(), durable)
        if entry is None and default is MISSING:
            raise KeyNotFoundError(f"there is no key {key!r} in namespace {self.name!r}")
        return default if entry is None else entry

    def delete(self, key: str, *, if_version: int | None = None, durable: bool | None = None) -> bool:
        """As `Storage.delete`."""
        return self._verbs.delete(key, namespace=self.name, if_version=if_version, durable=durable)

    def has(self, key: str) -> bool:
        """As `Storage.has`."""
        return self._verbs.has(key, namespace=self.name)

    def get_metadata(self, key: str) -> dict[str, Any]:
        """As `Storage.get_metadata`."""
        return self._verbs.get_metadata(key, namespace=self.name)

    def set_metadata(
        self, key: str, metadata: Mapping[str, object], *, merge: bool = True, if_version: int | None = None
    ) -> int:
        """As `Storage.set_metadata`."""
        return self._verbs.set_metadata(key, metadata, namespace=self.name, merge=merge, if_version=if_version)

    def get_many(self, keys: Iterable[str]) -> dict[str, T]:
        """As `Storage.get_many`."""
        found = self._verbs.get_many(keys, namespace=self.name)
        return {key: self._take_in(value, key) for key, value in found.items()} if self._is_typed else found

    def get_entries(self, keys: Iterable[str]) -> dict[str, Entry[T]]:
        """As `Storage.get_entries`."""
        found = self._verbs.get_entries(keys, namespace=self.name)
        return {key: self._typed_entry(entry) for key, entry in found.items()}

    def set_many(
        self,
        items: Mapping[str, T] | Iterable[tuple[str, T] | Put],
        *,
        metadata: Mapping[str, object] | None = None,
        ttl: float | timedelta | None = None,
        overwrite: bool = True,
        durable: bool | None = None,
    ) -> dict[str, int]:
        """As `Storage.set_many`."""
        out = self._give_out_items(items)
        return self._verbs.set_many(
            out, namespace=self.name, metadata=metadata, ttl=ttl, overwrite=overwrite, durable=durable
        )

    def add_many(
        self,
        items: Mapping[str, T] | Iterable[tuple[str, T] | Put],
        *,
        metadata: Mapping[str, object] | None = None,
        ttl: float | timedelta | None = None,
        durable: bool | None = None,
    ) -> list[str]:
        """As `Storage.add_many`."""
        out = self._give_out_items(items)
        return self._verbs.add_many(out, namespace=self.name, metadata=metadata, ttl=ttl, durable=durable)

    def delete_many(self, keys: Iterable[str], *, durable: bool | None = None) -> int:
        """As `Storage.delete_many`."""
        return self._verbs.delete_many(keys, namespace=self.name, durable=durable)

    def load(
        self,
        items: Mapping[str, T] | Iterable[tuple[str, T] | Put],
        *,
        batch_size: int = 1000,
        on_error: Literal["stop", "skip"] = "stop",
        progress: Callable[[LoadReport], object] | None = None,
    ) -> LoadReport:
        """As `Storage.load`."""
        out = self._give_out_items(items)
        return self._verbs.load(out, namespace=self.name, batch_size=batch_size, on_error=on_error, progress=progress)

    def list_keys(
        self,
        *,
        pattern: str | None = None,
        prefix: str | None = None,
        start_after: str | None = None,
        limit: int | None = None,
        offset: int = 0,
        reverse: bool = False,
    ) -> list[str]:
        """As `Storage.list_keys`."""
        return self._verbs.list_keys(
            namespace=self.name,
            pattern=pattern,
            prefix=prefix,
            start_after=start_after,
            limit=limit,
            offset=offset,
            reverse=reverse,
        )

    def query(
        self,
        filter: Filterable | StorageQuery | None = None,
        *,
        sort: Sortable | None = None,
        limit: int | None = None,
        offset: int = 0,
        cursor: str | None = None,
        timeout: float | timedelta | None = None,
    ) -> Page[T]:
        """As `Storage.query`."""
        page = self._verbs.query(
            filter, namespace=self.name, sort=sort, limit=limit, offset=offset, cursor=cursor, timeout=timeout
        )
        return self._typed_page(page)

    def pages(
        self,
        filter: Filterable | StorageQuery | None = None,
        *,
        sort: Sortable | None = None,
        page_size: int = 100,
    ) -> Iterator[Page[T]]:
        """As `Storage.pages`."""
        return map(self._typed_page, self._verbs.pages(filter, namespace=self.name, sort=sort, page_size=page_size))

    def scan(
        self,
        filter: Filterable | StorageQuery | None = None,
        *,
        prefix: str | None = None,
        batch_size: int = 500,
    ) -> Scan[T]:
        """As `Storage.scan`."""
        scan = self._verbs.scan(filter, namespace=self.name, prefix=prefix, batch_size=batch_size)
        return cast("Scan[T]", scan.converted(self._typed_entry) if self._is_typed else scan)

    def count(
        self, filter: Filterable | StorageQuery | None = None, *, timeout: float | timedelta | None = None
    ) -> int:
        """As `Storage.count`."""
        return self._verbs.count(filter, namespace=self.name, timeout=timeout)

    def delete_where(self, filter: Filterable | StorageQuery, *, durable: bool | None = None) -> int:
        """As `Storage.delete_where`."""
        return self._verbs.delete_where(filter, namespace=self.name, durable=durable)

    def explain(
        self,
        filter: Filterable | StorageQuery | None = None,
        *,
        sort: Sortable | None = None,
        limit: int | None = None,
    ) -> Plan:
        """As `Storage.explain`."""
        return self._verbs.explain(filter, namespace=self.name, sort=sort, limit=limit)

    def create_index(self, *fields: str | Field | SortKey, unique: bool = False, name: str | None = None) -> str:
        """As `Storage.create_index`, for this namespace."""
        return self._verbs.create_index(*fields, namespace=self.name, unique=unique, name=name)

    def drop_index(self, name: str) -> None:
        """As `Storage.drop_index`."""
        self._verbs.drop_index(name)

    def list_indexes(self) -> list[IndexInfo]:
        """As `Storage.list_indexes`, for this namespace."""
        return self._verbs.list_indexes(namespace=self.name)

    def info(self) -> NamespaceInfo:
        """As `Storage.namespace_info`."""
        return self._verbs.namespace_info(self.name)

    # ---- types

    def _give_out(self, value: object) -> object:
        """A value of the view's type as plain JSON values. Raises InvalidValueError where it is not of that type."""
        if not self._is_typed:
            return value
        try:
            plain: object = msgspec.to_builtins(value, str_keys=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidValueError(f"$: {type(value).__name__} cannot become JSON: {error}") from error
        converted = self._fitting(plain)
        # What the type would give back has to be what was given: a set in a list's place would come back as a list.
        if converted != value or not _is_same_kind(converted, value):
            check(plain)
            kind = getattr(self._type, "__name__", self._type)
            message = f"$: {type(value).__name__} would not come back from {self!r} as it is given: give {kind}"
            raise InvalidValueError(message)
        # Where an int was given for a float, the float is what is written.
        return cast("object", msgspec.to_builtins(converted, str_keys=True))

    def _fitting(self, plain: object) -> T:
        try:
            return cast("T", msgspec.convert(plain, self._type, str_keys=True))
        except msgspec.ValidationError as error:
            raise InvalidValueError(f"the value does not fit {self!r}: {_without_value(error)}") from None

    def _take_in(self, value: Any, key: str) -> T:
        """A stored value as the view's type."""
        if not self._is_typed:
            return cast("T", value)
        try:
            return cast("T", msgspec.convert(value, self._type, str_keys=True))
        except msgspec.ValidationError as error:
            message = f"the document {key!r} in namespace {self.name!r} does not fit: {_without_value(error)}"
            raise ValueTypeError(message) from None

    def _refuse_to_lose(self, value: object, taken: T, key: str) -> None:
        """Writing back what a type has taken would drop the members of the document that the type does not know."""
        if self._is_typed:
            lost = _first_lost(value, msgspec.to_builtins(taken, str_keys=True))
            if lost is not None:
                place = show_path(reversed(lost))[1:]
                message = (
                    f"the document {key!r} in namespace {self.name!r} has {place}, which {self!r} does not know and "
                    "would drop: use merge(), or a type that knows it"
                )
                raise ValueTypeError(message)

    def _typed_page(self, page: Page[Any]) -> Page[T]:
        return Page([self._typed_entry(entry) for entry in page], page.cursor) if self._is_typed else page

    def _converter(self) -> Callable[[Entry[Any]], Entry[T]] | None:
        return self._typed_entry if self._is_typed else None

    def _typed_entry(self, entry: Entry[Any]) -> Entry[T]:
        if not self._is_typed:
            return entry
        return msgspec.structs.replace(entry, value=self._take_in(entry.value, entry.key))

    def _give_out_items(self, items: Any) -> Any:
        if isinstance(items, Namespace):
            items = items.items()
        if not self._is_typed or isinstance(items, str | bytes) or not isinstance(items, Iterable):
            return items
        pairs: Iterable[object] = items.items() if isinstance(items, Mapping) else items
        return map(self._give_out_item, pairs)

    def _give_out_item(self, item: object) -> object:
        """An item with its value as plain JSON, or with the value's error in its place, for the batch to report."""
        try:
            if isinstance(item, Put):
                return msgspec.structs.replace(item, value=self._give_out(item.value))
            if isinstance(item, tuple | list) and len(item) == 2:
                return item[0], self._give_out(item[1])
        except InvalidValueError as error:
            if isinstance(item, Put):
                return msgspec.structs.replace(item, value=Unfit(error))
            return cast("tuple[object, object]", item)[0], Unfit(error)
        return item


cast("ABCMeta", MutableMapping).register(Namespace)


class _Keys(KeysView[str]):
    """The keys of a namespace."""


class _Values(ValuesView[T]):
    """The values of a namespace, by a scan instead of a read for each."""

    def __init__(self, namespace: Namespace[T]) -> None:
        super().__init__(cast("Mapping[Any, T]", namespace))
        self._namespace = namespace

    def __iter__(self) -> Iterator[T]:
        return map(_value_of, self._namespace.scan())

    def __contains__(self, value: object) -> bool:
        return any(value == found for found in self)


class _Items(ItemsView[str, T]):
    """The items of a namespace, by a scan instead of a read for each."""

    def __init__(self, namespace: Namespace[T]) -> None:
        super().__init__(cast("Mapping[str, T]", namespace))
        self._namespace = namespace

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple) or len(item) != 2 or item[0] not in self._namespace:
            return False
        return bool(self._namespace.get(item[0]) == item[1])

    def __iter__(self) -> Iterator[tuple[str, T]]:
        return map(_item_of, self._namespace.scan())


# Not generators, which an exception ends: after a document that does not fit, the next one can still be asked for.
def _value_of(entry: Entry[T]) -> T:
    return entry.value


def _item_of(entry: Entry[T]) -> tuple[str, T]:
    return entry.key, entry.value


def _first_lost(stored: object, kept: object) -> list[str | int] | None:
    """The path, innermost segment first, of a member that is in `stored` and not in `kept`."""
    if isinstance(stored, dict) and isinstance(kept, dict):
        for name, value in stored.items():
            lost: list[str | int] | None = [] if name not in kept else _first_lost(value, kept[name])
            if lost is not None:
                return [*lost, name]
    elif isinstance(stored, list) and isinstance(kept, list | tuple):
        if len(stored) > len(kept):
            return [len(kept)]
        for index, (value, other) in enumerate(zip(stored, kept, strict=False)):
            lost = _first_lost(value, other)
            if lost is not None:
                return [*lost, index]
    return None


def _is_same_kind(converted: object, value: object) -> bool:
    # An int is as good as a float where one is wanted.
    return type(converted) is type(value) or (type(converted) is float and type(value) is int)


def _without_value(error: msgspec.ValidationError) -> str:
    return _SHOWN_VALUE.sub("Invalid value", str(error))
