"""`StorageResult`, the answer of every method of the facet, and how it looks at a message boundary.

Called by `StorageFacet`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, final

import msgspec

from mycelia_storage.entries import EPOCH, Entry, Status
from mycelia_storage.errors import StorageError

_MILLISECOND: Final = timedelta(milliseconds=1)
_HOLD_OUR_VALUES: Final = ("results", "errors", "status")


@final
class StorageResult(msgspec.Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """What a method of the facet answers: whether it succeeded, what it found, and otherwise the error.

    Each method fills the fields that belong to it, and the others are None. `results` is a list of entries from
    `query`, and a result for each key from `set_many` and `delete_many`. `error` is None exactly when `success` is
    True; where several keys failed it is a BatchError, and `errors` has the error of each.
    """

    success: bool
    data: Any = None
    exists: bool | None = None
    results: Any = None
    keys: list[str] | None = None
    count: int | None = None
    namespaces: list[str] | None = None
    metadata: dict[str, Any] | None = None
    version: int | None = None
    versions: dict[str, int] | None = None
    status: Status | None = None
    transaction_id: str | None = None
    errors: dict[str, StorageError] | None = None
    error: StorageError | None = None
    # The fields that this answer has: `data` may be None because that is the value.
    _payload: tuple[str, ...] = ()
    _is_brief: bool = False

    def __bool__(self) -> bool:
        # `if await facet.has(key)` would hold whatever the answer is.
        raise TypeError("a StorageResult is neither true nor false: ask it for .success, or for what it found")

    def to_dict(self, *, camel_case: bool = False) -> dict[str, Any]:
        """The answer as plain JSON values, with the fields that it has and no others.

        Times are whole milliseconds since 1970, errors `{"code": …, "message": …}`. With `camel_case` the names are
        `transactionId`, `createdAt` and so on; what stands inside values and metadata stays as it is.
        """
        writer = _Writer(camel_case)
        shown: dict[str, Any] = {"success": self.success}
        for name in self._payload:
            shown[writer.name(name)] = writer.field(name, getattr(self, name), is_brief=self._is_brief)
        if self.error is not None:
            shown["error"] = writer.error(self.error)
        return shown


def succeeded(**payload: Any) -> StorageResult:
    """A successful answer with these fields."""
    return StorageResult(success=True, _payload=tuple(payload), **payload)


def failed(error: StorageError, **payload: Any) -> StorageResult:
    """An answer that tells of an error, and of what was done all the same."""
    return StorageResult(success=False, error=error, _payload=tuple(payload), **payload)


class _Writer:
    """Fields of a result as plain JSON values."""

    def __init__(self, camel_case: bool) -> None:
        self._camel_case = camel_case

    def name(self, name: str) -> str:
        if not self._camel_case:
            return name
        first, *rest = name.split("_")
        return first + "".join(part.capitalize() for part in rest)

    def field(self, name: str, value: Any, *, is_brief: bool) -> Any:
        if name in _HOLD_OUR_VALUES and isinstance(value, dict):
            return {key: self.plain(held, is_brief=is_brief) for key, held in value.items()}
        if name in _HOLD_OUR_VALUES and isinstance(value, list):
            return [self.plain(held, is_brief=is_brief) for held in value]
        return self.plain(value, is_brief=is_brief) if name in _HOLD_OUR_VALUES else value

    def plain(self, value: object, *, is_brief: bool) -> Any:
        """A value of ours, and not of the user's, as plain JSON."""
        if isinstance(value, StorageError):
            return self.error(value)
        if isinstance(value, Entry):
            return self._entry(value, is_brief=is_brief)
        if isinstance(value, StorageResult):
            return value.to_dict(camel_case=self._camel_case)
        return self._status(value) if isinstance(value, Status) else value

    def error(self, error: StorageError) -> dict[str, str]:
        # Half a surrogate pair, from a key that was refused, is no character that JSON could carry.
        message = str(error).encode("utf-8", "backslashreplace").decode()
        return {"code": error.code, "message": message}

    def _entry(self, entry: Entry[Any], *, is_brief: bool) -> dict[str, Any]:
        if is_brief:
            return {"key": entry.key, "value": entry.value}
        return {
            "namespace": entry.namespace,
            "key": entry.key,
            "value": entry.value,
            "metadata": entry.metadata,
            "version": entry.version,
            self.name("created_at"): _milliseconds(entry.created_at),
            self.name("updated_at"): _milliseconds(entry.updated_at),
            self.name("expires_at"): None if entry.expires_at is None else _milliseconds(entry.expires_at),
        }

    def _status(self, status: Status) -> dict[str, Any]:
        return {
            "healthy": True,
            "backend": status.backend,
            "target": status.target,
            self.name("schema_version"): status.schema_version,
            "size": status.entries,
            "namespaces": status.namespaces,
            self.name("size_bytes"): status.size_bytes,
            "details": msgspec.to_builtins(status.details),
        }


def _milliseconds(time: datetime) -> int:
    return (time - EPOCH) // _MILLISECOND
