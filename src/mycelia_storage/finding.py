"""The verbs that find entries and look after namespaces: each stands here once, for stores and for transactions.

Called by users through `Storage`, `Transaction` and namespace views.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from mycelia_storage.advice import make_plan
from mycelia_storage.arguments import check_whole
from mycelia_storage.codec import decode_object, encode_object
from mycelia_storage.engines.limits import limited
from mycelia_storage.entries import IndexInfo, NamespaceInfo, Plan, to_datetime
from mycelia_storage.errors import (
    IndexNotFoundError,
    InvalidNamespaceError,
    InvalidValueError,
    NamespaceExistsError,
    NamespaceNotEmptyError,
    NamespaceNotFoundError,
)
from mycelia_storage.indexing import check_index_name, define_index, info_of, make_index
from mycelia_storage.keys import DEFAULT_NAMESPACE, ORIGIN, check_namespace, key_range
from mycelia_storage.namespace import Namespace
from mycelia_storage.query import StorageQuery
from mycelia_storage.querying import find_page, read_choice, read_condition, read_query
from mycelia_storage.scan import Scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import timedelta

    from typing_extensions import TypeForm

    from mycelia_storage.engines.engine import Primitives
    from mycelia_storage.filters import Field, SortKey
    from mycelia_storage.page import Page
    from mycelia_storage.query import Filterable, Sortable

T = TypeVar("T")
R = TypeVar("R")


class Finding:
    """What verbs need of the store or transaction that they run in, and the verbs that find."""

    _max_value_bytes: int

    def _reading(self) -> Primitives:
        """Where to read. Raises when nothing may be read here now."""
        raise NotImplementedError

    def _writing(self) -> Primitives:
        """Where to write. Raises when nothing may be written here now."""
        raise NotImplementedError

    def _now(self) -> int:
        """The time in µs since 1970; one and the same throughout a transaction."""
        raise NotImplementedError

    def _together(self, step: Callable[[Primitives, int], R], *, durable: bool | None = None, alone: bool = False) -> R:
        """Run several primitives as one. `step` takes them and the time, and may be run again after a conflict.

        With `alone` it shares its commit with nobody: for what takes long, or runs what callers have given.
        """
        raise NotImplementedError

    def _expiring(self) -> None:
        """Something was written that expires."""

    def _start_scan(self) -> tuple[Callable[[], Primitives], Callable[[], object], int]:
        """Where a scan reads, how it ends, and its time."""
        raise NotImplementedError

    # ---- finding

    def list_keys(
        self,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        pattern: str | None = None,
        prefix: str | None = None,
        start_after: str | None = None,
        limit: int | None = None,
        offset: int = 0,
        reverse: bool = False,
    ) -> list[str]:
        """Keys in order of code points, or against it with `reverse`.

        `prefix` is taken literally. In `pattern` a `*` is any run of characters, `\\*` and `\\\\` are literal, and the
        whole key has to match (`escape_pattern` helps). `start_after` goes on behind a key, in the direction of the
        listing.
        """
        namespace = check_namespace(namespace)
        span = key_range(prefix, pattern, start_after, reverse=reverse)
        count = None if limit is None else check_whole("limit", limit, least=0)
        skipped = check_whole("offset", offset, least=0)
        return self._reading().keys(namespace, span, self._now(), limit=count, offset=skipped, reverse=bool(reverse))

    def query(
        self,
        filter: Filterable | StorageQuery | None = None,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        sort: Sortable | None = None,
        limit: int | None = None,
        offset: int = 0,
        cursor: str | None = None,
        timeout: float | timedelta | None = None,
    ) -> Page[Any]:
        """The entries that a filter matches, in the order of `sort` (without it, of their keys).

        A page with a `limit` has a `cursor` while there is more: given back with the same filter and sort it goes on
        behind the last entry, exactly, whatever was written meanwhile. `offset` counts from the start instead.

        Raises InvalidFilterError for a filter, sort or cursor that is wrong, naming the place; StorageTimeoutError
        after `timeout` seconds (None: no limit).
        """
        namespace = check_namespace(namespace)
        wanted = read_query(filter, sort=sort, limit=limit, offset=offset)
        rows, now = self._reading(), self._now()
        with limited(timeout):
            self._advise(rows, namespace, wanted, now)
            return find_page(rows, namespace, wanted, cursor, now)

    def pages(
        self,
        filter: Filterable | StorageQuery | None = None,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        sort: Sortable | None = None,
        page_size: int = 100,
    ) -> Iterator[Page[Any]]:
        """Everything that a filter matches, a page at a time, by cursors: each page is of its own moment.

        No entry that stays is skipped or given twice, whatever is written meanwhile.
        """
        namespace = check_namespace(namespace)
        size = check_whole("page_size", page_size, least=1)
        wanted = read_query(filter, sort=sort).limited_to(size, "page_size")
        self._advise(self._reading(), namespace, wanted, self._now())
        return self._pages(namespace, wanted)

    def _pages(self, namespace: str, wanted: StorageQuery) -> Iterator[Page[Any]]:
        cursor: str | None = None
        while True:
            page = find_page(self._reading(), namespace, wanted, cursor, self._now())
            if page:
                yield page
            cursor = page.cursor
            if cursor is None:
                return

    def scan(
        self,
        filter: Filterable | StorageQuery | None = None,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        prefix: str | None = None,
        batch_size: int = 500,
    ) -> Scan[Any]:
        """Walk through entries in key order, `batch_size` in memory at a time, on the state of the store at the start.

        Reading and writing meanwhile is fine. At most 16 scans at once, else StorageBusyError; use it in a with block
        where it may end early. Inside a transaction, and in a file without WAL, it reads batch by batch and sees what
        is written ahead of it.
        """
        namespace = check_namespace(namespace)
        wanted = None if filter is None else read_condition(filter, "scan")
        span = key_range(prefix)
        size = check_whole("batch_size", batch_size, least=1)
        if wanted is not None:
            self._advise(self._reading(), namespace, StorageQuery(wanted), self._now())
        rows, end, now = self._start_scan()
        return Scan(rows, end, namespace, span, now, size, wanted)

    def count(
        self,
        filter: Filterable | StorageQuery | None = None,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        timeout: float | timedelta | None = None,
    ) -> int:
        """How many entries a namespace holds, or how many of them a filter matches.

        Raises StorageTimeoutError after `timeout` seconds (None: no limit).
        """
        namespace = check_namespace(namespace)
        with limited(timeout):
            if filter is None:
                return self._reading().count(namespace, self._now())
            wanted = read_condition(filter, "count")
            rows, now = self._reading(), self._now()
            self._advise(rows, namespace, StorageQuery(wanted), now)
            return rows.count_matching(namespace, wanted, now)

    def delete_where(
        self,
        filter: Filterable | StorageQuery,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        durable: bool | None = None,
    ) -> int:
        """Remove the entries that a filter matches, in one step; gives how many. `clear` removes all.

        Raises InvalidFilterError for a filter without a comparison, such as [], or one that an empty group makes match
        every entry.
        """
        namespace = check_namespace(namespace)
        wanted = read_choice(filter, "delete_where")
        self._advise(self._writing(), namespace, StorageQuery(wanted), self._now())
        return self._together(lambda rows, now: rows.delete_matching(namespace, wanted, now), durable=durable)

    def explain(
        self,
        filter: Filterable | StorageQuery | None = None,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        sort: Sortable | None = None,
        limit: int | None = None,
    ) -> Plan:
        """How `query` would be run: the indexes it uses, whether it visits everything, and what would help."""
        namespace = check_namespace(namespace)
        return make_plan(self._reading(), namespace, read_query(filter, sort=sort, limit=limit), self._now())

    # ---- indexes

    def create_index(
        self,
        *fields: str | Field | SortKey,
        namespace: str | None = DEFAULT_NAMESPACE,
        unique: bool = False,
        name: str | None = None,
    ) -> str:
        """Build an index on one or several fields and give its name. An equal one that is there changes nothing.

        Fields are as in `sort`: "age", "-created", `field("a.b").desc()`, "$metadata.owner", "$updated_at".
        `namespace=None` makes one index for all namespaces. In a `unique` one no two entries of a namespace have the
        same value: a write that would is a UniqueIndexError; a missing field, an array or an object is no value.

        Raises UniqueIndexError naming the keys of existing duplicates, IndexExistsError for another index of this
        name, CapacityError beyond 64, InvalidFilterError.
        """
        where = None if namespace is None else check_namespace(namespace)
        index = define_index(fields, where, unique, name)

        def step(rows: Primitives, now: int) -> str:
            return make_index(rows, index, named=name is not None, now=now)

        return self._together(step, alone=True)

    def drop_index(self, name: str) -> None:
        """Remove an index. Raises IndexNotFoundError."""
        checked = check_index_name(name)
        if not self._together(lambda rows, _: rows.drop_index(checked), alone=True):
            raise IndexNotFoundError(f"there is no index {checked!r}")

    def list_indexes(self, *, namespace: str | None = None) -> list[IndexInfo]:
        """The created indexes, ordered by name: all, or those of one namespace."""
        where = None if namespace is None else check_namespace(namespace)
        return [info_of(index) for index in self._reading().indexes() if where in (None, index.namespace)]

    def _advise(self, rows: Primitives, namespace: str, wanted: StorageQuery, now: int) -> None:
        """A place for a store to warn of slow queries."""

    # ---- namespaces

    @overload
    def namespace(self, name: str) -> Namespace[Any]: ...
    @overload
    def namespace(self, name: str, type: TypeForm[T]) -> Namespace[T]: ...
    def namespace(self, name: str, type: Any = Any) -> Namespace[Any]:
        """A view of one namespace as a mutable mapping with all verbs of the store.

        With a `type` (a dataclass, TypedDict, msgspec.Struct, …) values are given and taken as that type; a document
        that does not fit it is a ValueTypeError when it is read.
        """
        return Namespace(self, check_namespace(name), type)  # type: ignore[arg-type]

    def create_namespace(
        self, name: str, *, metadata: Mapping[str, object] | None = None, exist_ok: bool = False
    ) -> None:
        """Register an empty namespace. Raises NamespaceExistsError; with `exist_ok` an existing one stays as it is."""
        name = check_namespace(name)
        text = None if metadata is None else encode_object(metadata, self._max_value_bytes, what="metadata")
        if not self._writing().register(name, text, self._now()) and not exist_ok:
            raise NamespaceExistsError(f"the namespace {name!r} is there already")

    def delete_namespace(self, name: str, *, recursive: bool = False) -> None:
        """Remove a namespace, and with `recursive` all that it holds.

        Raises NamespaceNotFoundError, NamespaceNotEmptyError, and InvalidNamespaceError for "default", which stays.
        """
        name = check_namespace(name)
        if name == DEFAULT_NAMESPACE:
            raise InvalidNamespaceError("the namespace 'default' cannot be deleted; clear() empties it")

        def step(rows: Primitives, now: int) -> None:
            if rows.namespace(name) is None:
                raise NamespaceNotFoundError(f"there is no namespace {name!r}")
            count = 0 if recursive else rows.count(name, now)
            if count:
                message = f"the namespace {name!r} holds {count:,} entries: clear it first, or give recursive=True"
                raise NamespaceNotEmptyError(message)
            rows.clear(name, now)
            rows.unregister(name)
            for index in rows.indexes():
                if index.namespace == name:
                    rows.drop_index(index.name)

        self._together(step, alone=True)

    def list_namespaces(self, *, prefix: str | None = None) -> list[str]:
        """The names of all namespaces that are registered or hold entries, in order."""
        if prefix is not None and not isinstance(prefix, str):
            raise InvalidValueError(f"prefix: a str is needed, not {type(prefix).__name__}")
        names = [row.name for row in self._reading().namespaces() if row.name != ORIGIN]
        return names if prefix is None else [name for name in names if name.startswith(prefix)]

    def namespace_info(self, name: str) -> NamespaceInfo:
        """How many entries a namespace holds, its metadata, and since when it is registered."""
        name = check_namespace(name)
        rows = self._reading()
        row = rows.namespace(name)
        if row is None:
            raise NamespaceNotFoundError(f"there is no namespace {name!r}")
        created_at = None if row.created_at is None else to_datetime(row.created_at)
        return NamespaceInfo(name, rows.count(name, self._now()), decode_object(row.metadata, name, ""), created_at)
