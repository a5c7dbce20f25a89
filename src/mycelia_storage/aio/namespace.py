"""`AsyncNamespace`: one namespace, with every verb awaited and without `namespace=`.

Called by users through `AsyncStorage.namespace` and `AsyncTransaction.namespace`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from mycelia_storage.aio.streams import paging, scanning
from mycelia_storage.aio.verbs import (
    Front,
    converting,
    loading,
    named,
    querying,
    reading,
    reading_many,
    writing,
    writing_alone,
    writing_many,
)
from mycelia_storage.namespace import Namespace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from mycelia_storage.aio.at_once import AtOnce
    from mycelia_storage.aio.jobs import Job

T = TypeVar("T")
R = TypeVar("R")


@named
class AsyncNamespace(Generic[T]):
    """The verbs on the entries of one namespace, whose values are of type T. See `Namespace` for what each does."""

    def __init__(self, front: Front[Any], view: Namespace[T]) -> None:
        """Users call `store.namespace(name)`."""
        self._front = front
        self._view = view
        self.name: Final = view.name

    def __repr__(self) -> str:
        return f"<Async{repr(self._view)[1:]}"

    def within(self, front: Front[Any]) -> AsyncNamespace[T]:
        """The same view inside a transaction; `tx.namespace(view)` is the same."""
        return AsyncNamespace(front, self._view)

    # ---- one entry
    get: Final = reading(Namespace[T].get)
    get_entry: Final = reading(Namespace[T].get_entry)
    set: Final = writing(Namespace[T].set)
    add: Final = writing(Namespace[T].add)
    modify: Final = writing_alone(Namespace[T].modify)
    merge: Final = converting(Namespace[T].merge)
    increment: Final = converting(Namespace[T].increment)
    touch: Final = writing(Namespace[T].touch)
    take: Final = converting(Namespace[T].take)
    delete: Final = writing(Namespace[T].delete)
    has: Final = reading(Namespace[T].has)
    get_metadata: Final = reading(Namespace[T].get_metadata)
    set_metadata: Final = writing(Namespace[T].set_metadata)

    # ---- many
    get_many: Final = reading_many(Namespace[T].get_many)
    get_entries: Final = reading_many(Namespace[T].get_entries)
    set_many: Final = writing_many(Namespace[T].set_many)
    add_many: Final = writing_many(Namespace[T].add_many)
    delete_many: Final = writing_many(Namespace[T].delete_many)
    load: Final = loading(Namespace[T].load)
    clear: Final = writing_many(Namespace[T].clear)

    # ---- finding
    list_keys: Final = querying(Namespace[T].list_keys)
    query: Final = querying(Namespace[T].query)
    count: Final = querying(Namespace[T].count)
    delete_where: Final = writing_alone(Namespace[T].delete_where)
    explain: Final = querying(Namespace[T].explain)
    scan: Final = scanning(Namespace[T].scan)
    pages: Final = paging(Namespace[T].pages)

    # ---- the namespace itself
    create_index: Final = writing_alone(Namespace[T].create_index)
    drop_index: Final = writing_alone(Namespace[T].drop_index)
    list_indexes: Final = reading(Namespace[T].list_indexes)
    info: Final = querying(Namespace[T].info)

    # ---- where they run

    @property
    def _converts(self) -> bool:
        return self._view._is_typed

    @property
    def _here(self) -> tuple[AtOnce, Namespace[T]] | None:
        here = self._front._here
        return None if here is None else (here[0], self._view)

    def _read(self, function: Callable[[Namespace[T]], R], /) -> Awaitable[R]:
        return self._front._read(lambda verbs: function(self._view.within(verbs)))

    def _query(self, function: Callable[[Namespace[T]], R], /) -> Awaitable[R]:
        return self._front._query(lambda verbs: function(self._view.within(verbs)))

    def _write(
        self, verb: Callable[..., R], arguments: Sequence[Any], options: Mapping[str, Any], /, *, is_small: bool
    ) -> Awaitable[R]:
        def within(verbs: Any, *arguments: Any, **options: Any) -> R:
            return verb(self._view.within(verbs), *arguments, **options)

        return self._front._write(within, arguments, options, is_small=is_small)

    def _write_alone(self, function: Callable[[Namespace[T]], R], /) -> Awaitable[R]:
        return self._front._write_alone(lambda verbs: function(self._view.within(verbs)))

    def _load(self, function: Callable[[Namespace[T]], R], /) -> Awaitable[R]:
        return self._front._load(lambda verbs: function(self._view.within(verbs)))

    def _walk(self, *, is_held: bool) -> Callable[[Callable[[Namespace[T]], Any]], Job]:
        step = self._front._walk(is_held=is_held)
        return lambda function: step(lambda verbs: function(self._view.within(verbs)))
