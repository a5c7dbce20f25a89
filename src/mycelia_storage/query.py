"""Reading filters and sorts from every form that is accepted, and `StorageQuery`, which holds them together.

Called by users (`field`, `path`, `match`, `StorageQuery`) and by the verbs that take a filter.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias, final

from mycelia_storage.arguments import check_whole, shown, shown_number
from mycelia_storage.codec import check
from mycelia_storage.errors import InvalidFilterError, InvalidValueError
from mycelia_storage.filters import (
    COLUMNS,
    DOCUMENT,
    MAX_DEPTH,
    MAX_PATH_BYTES,
    METADATA,
    OPERATORS,
    And,
    Comparison,
    Field,
    Filter,
    Immutable,
    Not,
    Or,
    Path,
    SortKey,
)
from mycelia_storage.matching import matches_value
from mycelia_storage.paths import MAX_INDEX, Segments, parse_path

MAX_SORT_KEYS: Final = 16
# Every byte of a name is written with six characters at the most, beside two quotes and a dot for each name.
_MAX_WRITTEN: Final = 10 * MAX_PATH_BYTES
# What SQL writes behind a name.
_DIRECTION: Final = re.compile(r"\s(asc|desc)\s*$", re.IGNORECASE)


def field(name: str) -> Field:
    """A field by its path: `age`, `address.city`, `tags[0]`, `"a.b"."c d"`.

    Special: `$key`, `$value` (the whole value), `$metadata.x`, `$version`, `$created_at`, `$updated_at`,
    `$expires_at`. Raises InvalidFilterError for what is no path.

    >>> (field("age") >= 18) & ~field("tags").contains("x")
    (field('age').gte(18) & ~field('tags').contains('x'))
    """
    return Field(parse_field(name))


def path(*segments: str | int) -> Field:
    """A field of a document by its literal segments: a str enters objects, an int (0 or more) arrays."""
    return Field(_literal_path(segments, "path"))


def match(**fields: object) -> Filter:
    """All of these top-level fields equal these values."""
    return And(Comparison(_literal_path((name,), "match"), "eq", value) for name, value in fields.items())


# ---- reading the other forms


def parse_field(given: object, where: str = "field") -> Path:
    """The path that a str, a list of segments, or a `Field` stands for."""
    if isinstance(given, Field):
        return given.path
    if isinstance(given, list):
        return _literal_path(given, where)
    if not isinstance(given, str):
        raise InvalidFilterError(f"{where}: a path such as 'a.b' is needed, not {type(given).__name__}")
    try:
        return _parse_name(str.__str__(given))
    except ValueError as error:
        raise InvalidFilterError(f"{where}: {shown(given)} is {error}") from None


@functools.lru_cache(maxsize=1024)
def _parse_name(text: str) -> Path:
    """The path of a text. Raises ValueError that says what the text is instead."""
    if len(text) > _MAX_WRITTEN:
        raise ValueError(f"no path: {len(text):,} characters are more than any path has")
    try:
        segments = parse_path(text)
        _check_names(segments)
    except (ValueError, InvalidValueError) as error:
        raise ValueError(f"no path: {error}") from None
    first = segments[0]
    if isinstance(first, int) or not first.startswith("$") or text.startswith('"'):
        return Path(DOCUMENT, segments)
    if first == METADATA and len(segments) > 1:
        return Path(METADATA, segments[1:])
    if first in (DOCUMENT, *COLUMNS) and len(segments) == 1:
        return Path(first, ())
    known = ", ".join((DOCUMENT, f"{METADATA}.name", *COLUMNS))
    raise ValueError(f"no special name ({known}); a member of that name is written in quotes")


def _literal_path(segments: Sequence[object], where: str) -> Path:
    if not segments:
        raise InvalidFilterError(f"{where}: a path has at least one segment; '$value' is the whole value")
    for segment in segments:
        is_index = isinstance(segment, int) and not isinstance(segment, bool) and 0 <= segment <= MAX_INDEX
        if not is_index and not isinstance(segment, str):
            found = shown_number(segment) if isinstance(segment, int) else type(segment).__name__
            raise InvalidFilterError(f"{where}: a segment is a str, or an int from 0 to {MAX_INDEX:,}, not {found}")
    plain = tuple(str.__str__(part) if isinstance(part, str) else int(part) for part in segments)  # type: ignore[call-overload]
    try:
        _check_names(plain)
    except (ValueError, InvalidValueError) as error:
        raise InvalidFilterError(f"{where}: {error}") from None
    return Path(DOCUMENT, plain)


def _check_names(segments: Segments) -> None:
    check(list(segments))
    size = len(".".join(map(str, segments)).encode())
    if size > MAX_PATH_BYTES:
        raise ValueError(f"its names have {size:,} bytes of UTF-8; {MAX_PATH_BYTES:,} are the limit for a path")


def parse_filter(given: object, where: str = "filter") -> Filter:
    """A filter from any form. Raises InvalidFilterError that names the place.

    None and an empty list match everything.
    """
    return _Reader().read(given, where, 1)


class _Reader:
    """Reads the dictionary and list forms."""

    def read(self, given: object, where: str, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            raise InvalidFilterError(f"{where}: nested more than {MAX_DEPTH} deep")
        if given is None:
            return And(())
        if isinstance(given, Filter):
            return given
        if isinstance(given, Mapping):
            return self._read_mapping(given, where, depth)
        if isinstance(given, list | tuple):
            return self._group(And, given, where, depth)
        example = "field('age') >= 18, or {'field': 'age', 'operator': 'gte', 'value': 18}"
        if isinstance(given, Field):
            raise InvalidFilterError(f"{where}: a field alone is no filter; compare it: {example}")
        raise InvalidFilterError(f"{where}: {type(given).__name__} is no filter; write {example}")

    def _group(self, kind: type[And | Or], given: Sequence[object], where: str, depth: int) -> Filter:
        parts = [self.read(part, f"{where}[{index}]", depth + 1) for index, part in enumerate(given)]
        try:
            return kind(parts)
        except InvalidFilterError as error:
            raise InvalidFilterError(f"{where}: {error}") from None

    def _read_mapping(self, given: Mapping[Any, Any], where: str, depth: int) -> Filter:
        for word, kind in (("and", And), ("or", Or)):
            if word in given:
                _only(given, (word,), where)
                parts = given[word]
                if not isinstance(parts, list | tuple):
                    raise InvalidFilterError(f"{where}.{word}: a list of filters is needed, not {type(parts).__name__}")
                return self._group(kind, parts, f"{where}.{word}", depth)
        if "not" in given:
            _only(given, ("not",), where)
            if given["not"] is None:
                raise InvalidFilterError(f"{where}.not: a filter is needed, not None")
            return Not(self.read(given["not"], f"{where}.not", depth + 1))
        return self._read_comparison(given, where)

    def _read_comparison(self, given: Mapping[Any, Any], where: str) -> Filter:
        _only(given, ("field", "operator", "value"), where)
        for name in ("field", "operator"):
            if name not in given:
                raise InvalidFilterError(f"{where}: {name!r} is missing; a comparison has field, operator and value")
        operator = given["operator"]
        if not isinstance(operator, str) or operator not in OPERATORS:
            names = ", ".join(dict.fromkeys(OPERATORS.values()))
            raise InvalidFilterError(f"{where}.operator: {shown(operator)} is none of {names}")
        operator = OPERATORS[operator]
        if "value" not in given and operator != "exists":
            raise InvalidFilterError(f"{where}: 'value' is missing")
        place = parse_field(given["field"], f"{where}.field")
        value = given.get("value", True)
        if operator == "exists" and value is False:
            return Not(Comparison(place, "exists", True))
        try:
            return Comparison(place, operator, value)
        except InvalidFilterError as error:
            raise InvalidFilterError(f"{where}.value: {error}") from None


def parse_sort(given: object, where: str = "sort") -> tuple[SortKey, ...]:
    """The fields to sort by, from any form; none: by key."""
    if given is None:
        return ()
    if isinstance(given, SortKey | Field | str | Mapping):
        return (_parse_sort_key(given, where),)
    if not isinstance(given, list | tuple):
        raise InvalidFilterError(f"{where}: {type(given).__name__} is no sort; write 'age', '-age' or a list of these")
    keys = tuple(_parse_sort_key(part, f"{where}[{index}]") for index, part in enumerate(given))
    paths = [key.path for key in keys]
    if len(set(paths)) < len(paths):
        twice = next(found for found in paths if paths.count(found) > 1)
        raise InvalidFilterError(f"{where}: {str(twice)!r} is named twice")
    if len(keys) > MAX_SORT_KEYS:
        raise InvalidFilterError(f"{where}: more than {MAX_SORT_KEYS} fields")
    return keys


def _parse_sort_key(given: object, where: str) -> SortKey:
    if isinstance(given, SortKey):
        return given
    if isinstance(given, Field):
        return SortKey(given.path)
    if isinstance(given, str):
        direction = _DIRECTION.search(given)
        if direction is not None:
            sign, opposite = ("-", "") if direction[1].lower() == "desc" else ("", "-")
            raise InvalidFilterError(
                f"{where}: {shown(given)} ends in a direction, which is no part of a path: write '{sign}age' for it, "
                f"'{opposite}age' for the opposite; a member of that name is written in quotes"
            )
        descending = given.startswith("-")
        return SortKey(parse_field(given[1:] if descending else given, where), descending)
    if isinstance(given, Mapping):
        _only(given, ("field", "order"), where)
        if "field" not in given:
            raise InvalidFilterError(f"{where}: 'field' is missing")
        order = given.get("order", "asc")
        if not isinstance(order, str) or order not in ("asc", "desc"):
            raise InvalidFilterError(f"{where}.order: {shown(order)} is neither 'asc' nor 'desc'")
        return SortKey(parse_field(given["field"], f"{where}.field"), order == "desc")
    raise InvalidFilterError(f"{where}: {type(given).__name__} is no field to sort by; write 'age' or '-age'")


Filterable: TypeAlias = Filter | Mapping[str, Any] | Sequence[Any]
Sortable: TypeAlias = str | Field | SortKey | Mapping[str, Any] | Sequence[Any]


@final
class StorageQuery(Immutable):
    """Filters, a sort and limits as one immutable value, to keep, send, and run with `query`.

    `filters` is any form of filter; `limit` and `offset` are whole numbers.
    """

    __slots__ = ("filter", "limit", "offset", "sort")

    filter: Filter
    sort: tuple[SortKey, ...]
    limit: int | None
    offset: int

    def __init__(
        self,
        filters: Filterable | None = None,
        *,
        sort: Sortable | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> None:
        object.__setattr__(self, "filter", parse_filter(filters, "filters"))
        object.__setattr__(self, "sort", parse_sort(sort))
        object.__setattr__(self, "limit", None if limit is None else check_whole("limit", limit, least=0))
        object.__setattr__(self, "offset", check_whole("offset", offset, least=0))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorageQuery) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        return self.filter, self.sort, self.limit, self.offset

    def __repr__(self) -> str:
        sort = [str(key) for key in self.sort]
        return f"StorageQuery({self.filter!r}, sort={sort!r}, limit={self.limit!r}, offset={self.offset!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return StorageQuery.from_dict, (self.to_dict(),)

    def to_dict(self) -> dict[str, Any]:
        """The query as plain JSON values, which `from_dict` reads."""
        return {
            "filters": self.filter.to_dict(),
            "sort": [{"field": str(key.path), "order": "desc" if key.descending else "asc"} for key in self.sort],
            "limit": self.limit,
            "offset": self.offset,
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> StorageQuery:
        """The query that `to_dict` has written. Raises InvalidFilterError."""
        if not isinstance(given, Mapping):
            raise InvalidFilterError(f"query: a mapping is needed, not {type(given).__name__}")
        _only(given, ("filters", "sort", "limit", "offset"), "query")
        return cls(
            given.get("filters"), sort=given.get("sort"), limit=given.get("limit"), offset=given.get("offset", 0)
        )

    def limited_to(self, limit: int, name: str) -> StorageQuery:
        """The same query with a limit, which it must not have yet."""
        if self.limit is not None or self.offset:
            raise InvalidFilterError(f"{name}: the query has a limit or offset of its own, and cannot have both")
        return StorageQuery(self.filter, sort=self.sort, limit=limit)

    def matches(self, value: object, metadata: Mapping[str, object] | None = None) -> bool:
        """Whether a value with this metadata meets the filters; by the reference matcher, without any store."""
        return matches_value(self.filter, value, metadata)


def _only(given: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
    if not given:
        raise InvalidFilterError(f"{where}: an empty mapping says nothing; [] matches everything")
    for name in given:
        if not isinstance(name, str) or name not in known:
            raise InvalidFilterError(f"{where}: unknown entry {shown(name)}; known here: {', '.join(known)}")
