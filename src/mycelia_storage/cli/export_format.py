"""The lines of an export: how entries are written as JSON Lines, and how such lines are read again.

Called by `exporting` and `importing`. An export is a text of JSON objects, one a line:

1. a header, `{"mycelia_storage_export": 1, "exported_at": …}`, with `"namespace"` when it holds a single one;
2. for each namespace that was registered a line `{"namespace": …, "metadata": {…}}`, and after it
3. its entries, `{"key": …, "value": …}`, with `"metadata"` unless empty, `"expires_at"` unless they stay, and
   `"namespace"` unless the header names it;
4. for each created index `{"index": [field, …]}`, with `"unique": true` if it is, `"name"` unless it is the one that
   the fields give, and `"namespace"` as in 3, null for an index over all namespaces;
5. a closing line, `{"mycelia_storage_export_end": 1, "entries": n}`, by which a cut-off file is noticed.

Exports may be written one after the other into one file. Those of earlier versions had no lines of indexes.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast

import msgspec
import orjson

from mycelia_storage.entries import EPOCH
from mycelia_storage.indexing import define_index

if TYPE_CHECKING:
    from mycelia_storage.entries import Entry, IndexInfo, NamespaceInfo

VERSION: Final = 1

_HEADER: Final = "mycelia_storage_export"
_END: Final = "mycelia_storage_export_end"
_LONGEST_HEADER: Final = 4096
_HEADER_FIELDS: Final = frozenset({_HEADER, "exported_at", "namespace"})
_ENTRY_FIELDS: Final = frozenset({"namespace", "key", "value", "metadata", "expires_at"})
_NAMESPACE_FIELDS: Final = frozenset({"namespace", "metadata"})
_INDEX: Final = "index"
_INDEX_FIELDS: Final = frozenset({_INDEX, "namespace", "name", "unique"})


class Header(NamedTuple):
    """The first line: the namespace of all entries, or None when each names its own."""

    version: int
    namespace: str | None


class NamespaceLine(NamedTuple):
    """A namespace that was registered, with its metadata."""

    name: str
    metadata: dict[str, Any]


class EntryLine(NamedTuple):
    """An entry; `expires_at` in milliseconds since 1970, `namespace` None when the header names it."""

    namespace: str | None
    key: str
    value: object
    metadata: dict[str, Any]
    expires_at: int | None


class IndexLine(NamedTuple):
    """A created index; `namespace` as in an entry, but None with `is_everywhere` for one over all namespaces."""

    namespace: str | None
    fields: list[str]
    is_unique: bool
    name: str | None
    is_everywhere: bool


class EndLine(NamedTuple):
    """The closing line: how many entries were written."""

    entries: int


Line: TypeAlias = Header | NamespaceLine | EntryLine | IndexLine | EndLine


def header(namespace: str | None) -> bytes:
    """The header line of an export of one namespace, or with None of several."""
    fields: dict[str, object] = {_HEADER: VERSION, "exported_at": _to_text(datetime.now(UTC))}
    if namespace is not None:
        fields["namespace"] = namespace
    return _line(fields)


def namespace_line(info: NamespaceInfo) -> bytes:
    """The line that tells of a namespace."""
    return _line({"namespace": info.name, "metadata": info.metadata})


def entry_line(entry: Entry[Any], *, with_namespace: bool) -> bytes:
    """The line of an entry, which names its namespace where the header does not."""
    fields: dict[str, object] = {"namespace": entry.namespace} if with_namespace else {}
    fields["key"] = entry.key
    fields["value"] = entry.value
    if entry.metadata:
        fields["metadata"] = entry.metadata
    if entry.expires_at is not None:
        fields["expires_at"] = _to_text(entry.expires_at)
    return _line(fields)


def index_line(info: IndexInfo, *, with_namespace: bool) -> bytes:
    """The line of an index. Its name is left out where the fields give the same one, in another namespace too."""
    fields: dict[str, object] = {_INDEX: info.fields}
    if with_namespace:
        fields["namespace"] = info.namespace
    if info.unique:
        fields["unique"] = True
    if info.name != define_index(info.fields, info.namespace, info.unique, None).name:
        fields["name"] = info.name
    return _line(fields)


def end_line(entries: int) -> bytes:
    """The closing line."""
    return _line({_END: VERSION, "entries": entries})


def is_header(line: bytes) -> bool:
    """Whether a file that begins with this line is an export."""
    if len(line) > _LONGEST_HEADER or _HEADER.encode() not in line:
        return False
    try:
        return isinstance(parse(msgspec.json.decode(line)), Header)
    except ValueError:  # msgspec's errors are ValueErrors
        return False


def parse(document: object) -> Line:
    """What a line of an export says. Raises ValueError, which tells why it is none and shows no value."""
    if type(document) is not dict:
        raise ValueError("no line of an export: not an object")
    fields = cast("dict[str, Any]", document)
    if "key" in fields:
        return _parse_entry(fields)
    if _HEADER in fields and fields.keys() <= _HEADER_FIELDS:
        return Header(_whole_number(fields, _HEADER), _text(fields, "namespace") if "namespace" in fields else None)
    if _END in fields:
        return EndLine(_whole_number(fields, "entries"))
    if _INDEX in fields:
        return _parse_index(fields)
    if fields.keys() == _NAMESPACE_FIELDS:
        return NamespaceLine(_text(fields, "namespace"), _object(fields, "metadata"))
    raise ValueError("no line of an export: it has no key")


def _parse_entry(fields: dict[str, Any]) -> EntryLine:
    _expect_known(fields, _ENTRY_FIELDS)
    if "value" not in fields:
        raise ValueError("no line of an export: it has no value")
    return EntryLine(
        _text(fields, "namespace") if "namespace" in fields else None,
        _text(fields, "key"),
        fields["value"],
        _object(fields, "metadata") if "metadata" in fields else {},
        _milliseconds(_text(fields, "expires_at")) if "expires_at" in fields else None,
    )


def _parse_index(fields: dict[str, Any]) -> IndexLine:
    _expect_known(fields, _INDEX_FIELDS)
    paths: object = fields[_INDEX]
    if type(paths) is not list or not all(type(path) is str for path in cast("list[object]", paths)):
        raise ValueError("no line of an export: index is no list of texts")
    is_everywhere = "namespace" in fields and fields["namespace"] is None
    is_unique = fields.get("unique", False)
    if type(is_unique) is not bool:
        raise ValueError("no line of an export: unique is neither true nor false")
    return IndexLine(
        None if is_everywhere or "namespace" not in fields else _text(fields, "namespace"),
        cast("list[str]", paths),
        is_unique,
        _text(fields, "name") if "name" in fields else None,
        is_everywhere,
    )


def _expect_known(fields: dict[str, Any], known: frozenset[str]) -> None:
    unknown = fields.keys() - known
    if unknown:
        raise ValueError(f"no line of an export: the field {min(unknown)!r} is unknown")


def _line(fields: dict[str, object]) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def _to_text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _milliseconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("expires_at is no ISO 8601 time") from None
    if moment.tzinfo is None:
        raise ValueError("expires_at names no time zone: end it with Z for UTC")
    return (moment - EPOCH) // timedelta(milliseconds=1)


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields[name]
    if type(value) is not str:
        raise ValueError(f"{name} is no text")
    return value


def _object(fields: dict[str, Any], name: str) -> dict[str, Any]:
    value = fields[name]
    if type(value) is not dict:
        raise ValueError(f"{name} is no object")
    return cast("dict[str, Any]", value)


def _whole_number(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int:
        raise ValueError(f"{name} is no whole number")
    return value
