"""Definitions of indexes: names, fields, and what happens when one is there already.

Called by the verbs in `finding.py`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mycelia_storage.engines.engine import IndexRow
from mycelia_storage.entries import IndexInfo, to_datetime
from mycelia_storage.errors import IndexExistsError, InvalidFilterError, InvalidKeyError, InvalidValueError
from mycelia_storage.keys import MAX_KEY_BYTES, check_key
from mycelia_storage.query import parse_sort

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mycelia_storage.engines.engine import Primitives
    from mycelia_storage.filters import SortKey


def define_index(fields: Sequence[object], namespace: str | None, unique: object, name: object) -> IndexRow:
    """A checked definition; without a name it has one that says what it is."""
    if not fields:
        raise InvalidFilterError("fields: an index is on one field or several, and none was given")
    keys = parse_sort(list(fields), "fields")
    for key in keys:
        if key.path.root == "$key":
            raise InvalidFilterError("fields: every namespace has an index on $key")
    if not isinstance(unique, bool):
        raise InvalidValueError(f"unique: {type(unique).__name__} is neither True nor False")
    if name is None:
        name = _name_of(namespace, keys, is_unique=unique)
    else:
        name = check_index_name(name)
    return IndexRow(name, namespace, keys, unique, 0)


def _name_of(namespace: str | None, keys: tuple[SortKey, ...], *, is_unique: bool) -> str:
    """A name that no other definition has: what is odd in a field is in quotes, so all before it is the namespace."""
    where = "*" if namespace is None else namespace
    kind = " (unique)" if is_unique else ""
    name = f"{where}: {', '.join(map(str, keys))}{kind}"
    if len(name.encode()) <= MAX_KEY_BYTES:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    return f"{where}: {len(keys)} fields {digest}{kind}"


def check_index_name(name: object) -> str:
    """A name, by the rules for keys."""
    try:
        return check_key(name)
    except InvalidKeyError as error:
        raise InvalidValueError(f"name: {str(error).replace('key', 'name of an index')}") from None


def make_index(rows: Primitives, index: IndexRow, *, named: bool, now: int) -> str:
    """Make the index unless it is there; gives its name."""
    for other in rows.indexes():
        is_equal = (other.namespace, other.fields, other.is_unique) == (index.namespace, index.fields, index.is_unique)
        if is_equal and (not named or other.name == index.name):
            return other.name
        if other.name == index.name:
            message = f"there is an index {index.name!r} already, {_difference(other, index)}"
            raise IndexExistsError(f"{message}: drop it first, or take another name")
    if index.namespace is not None:
        rows.register(index.namespace, None, now)
    rows.create_index(index._replace(created_at=now // 1000), now)
    return index.name


def _difference(there: IndexRow, wanted: IndexRow) -> str:
    if there.fields != wanted.fields:
        return "on other fields"
    if there.namespace != wanted.namespace:
        return "on all namespaces" if there.namespace is None else f"on the namespace {there.namespace!r}"
    return "which is unique" if there.is_unique else "which is not unique"


def info_of(index: IndexRow) -> IndexInfo:
    """A definition as users see it."""
    fields = tuple(str(key) for key in index.fields)
    return IndexInfo(index.name, index.namespace, fields, index.is_unique, to_datetime(index.created_at))
