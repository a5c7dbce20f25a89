"""The verbs that find entries and look after namespaces: each stands here once, for stores and for transactions.

Called by users through `Storage`, `Transaction` and namespace views.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from mycelia_storage.arguments import check_whole
from mycelia_storage.codec import decode_object, encode_object
from mycelia_storage.entries import NamespaceInfo, to_datetime
from mycelia_storage.errors import (
    InvalidNamespaceError,
    InvalidValueError,
    NamespaceExistsError,
    NamespaceNotEmptyError,
    NamespaceNotFoundError,
)
from mycelia_storage.keys import DEFAULT_NAMESPACE, check_namespace, key_range
from mycelia_storage.namespace import Namespace
from mycelia_storage.scan import Scan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import TypeForm

    from mycelia_storage.engines.engine import Primitives

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

    def _together(self, step: Callable[[Primitives, int], R], *, durable: bool | None = None) -> R:
        """Run several primitives as one. `step` takes them and the time, and may be run again after a conflict."""
        raise NotImplementedError

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

    def scan(
        self, *, namespace: str = DEFAULT_NAMESPACE, prefix: str | None = None, batch_size: int = 500
    ) -> Scan[Any]:
        """Walk through entries in key order, `batch_size` in memory at a time, on the state of the store at the start.

        Reading and writing meanwhile is fine. At most 16 scans at once, else StorageBusyError; use it in a with block
        where it may end early. Inside a transaction, and in a file without WAL, it reads batch by batch and sees what
        is written ahead of it.
        """
        namespace = check_namespace(namespace)
        span = key_range(prefix)
        size = check_whole("batch_size", batch_size, least=1)
        rows, end, now = self._start_scan()
        return Scan(rows, end, namespace, span, now, size)

    def count(self, *, namespace: str = DEFAULT_NAMESPACE) -> int:
        """How many entries a namespace holds."""
        return self._reading().count(check_namespace(namespace), self._now())

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

        self._together(step)

    def list_namespaces(self, *, prefix: str | None = None) -> list[str]:
        """The names of all namespaces that are registered or hold entries, in order."""
        if prefix is not None and not isinstance(prefix, str):
            raise InvalidValueError(f"prefix: a str is needed, not {type(prefix).__name__}")
        names = [row.name for row in self._reading().namespaces()]
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
