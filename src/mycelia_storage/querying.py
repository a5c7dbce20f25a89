"""What stands between a query's arguments and the engine: one checked value, and a page.

Called by the verbs in `finding.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mycelia_storage.arguments import check_whole
from mycelia_storage.codec import MAX_INT
from mycelia_storage.engines.engine import Query
from mycelia_storage.entries import Entry, entry_of
from mycelia_storage.errors import InvalidFilterError, StorageCorruptError
from mycelia_storage.matching import Candidate, answer_to_all, is_behind, position
from mycelia_storage.page import Page, identity, read_cursor, write_cursor
from mycelia_storage.query import StorageQuery, parse_filter, parse_sort

if TYPE_CHECKING:
    from mycelia_storage.engines.engine import Primitives, Row
    from mycelia_storage.filters import Filter


def read_query(given: object, *, sort: object = None, limit: object = None, offset: object = 0) -> StorageQuery:
    """A filter, or a whole query, and the arguments beside it as one query."""
    if not isinstance(given, StorageQuery):
        counted = None if limit is None else check_whole("limit", limit, least=0)
        return StorageQuery(
            parse_filter(given), sort=parse_sort(sort), limit=counted, offset=check_whole("offset", offset, least=0)
        )
    for name, own, is_beside in (
        ("sort", given.sort, sort is not None),
        ("limit", given.limit is not None, limit is not None),
        ("offset", given.offset, offset != 0),
    ):
        if own and is_beside:
            raise InvalidFilterError(f"{name}: given twice, in the query and beside it")
    return StorageQuery(
        given.filter,
        sort=given.sort or parse_sort(sort),
        limit=given.limit if limit is None else check_whole("limit", limit, least=0),
        offset=given.offset or check_whole("offset", offset, least=0),
    )


def read_condition(given: object, verb: str) -> Filter:
    """A filter alone; a query with a sort or limits is refused, since they would be without effect."""
    if not isinstance(given, StorageQuery):
        return parse_filter(given)
    if given.sort or given.limit is not None or given.offset:
        raise InvalidFilterError(f"filter: {verb} takes no sort, limit or offset, and the query has some")
    return given.filter


def read_choice(given: object, verb: str, otherwise: str = "; clear() removes every entry") -> Filter:
    """The same for a verb that removes what it finds: a filter that every entry meets is a mistake there.

    It is mostly a list of conditions that stayed empty, on its own or in a place where it makes up for all others.
    """
    wanted = read_condition(given, verb)
    if given is None or not wanted.size.leaves:
        raise InvalidFilterError(f"filter: {verb} needs one that compares something{otherwise}")
    if answer_to_all(wanted) is True:
        raise InvalidFilterError(
            f"filter: {verb} needs one that tells entries apart, and an empty group makes this one match every entry"
            f"{otherwise}"
        )
    return wanted


def find_page(rows: Primitives, namespace: str, wanted: StorageQuery, cursor: str | None, now: int) -> Page[Any]:
    """The page of a query, or the one behind a cursor."""
    after = None
    if cursor is not None:
        if wanted.offset:
            raise InvalidFilterError("offset: it counts from the start, a cursor from elsewhere: give one of them")
        after = read_cursor(identity(namespace, wanted.filter, wanted.sort), cursor, len(wanted.sort))
    # One more than asked for tells whether there is anything behind.
    limit = None if wanted.limit is None or wanted.limit == MAX_INT else wanted.limit + 1
    found = rows.find(namespace, Query(wanted.filter, wanted.sort, limit, wanted.offset, after), now)
    more = limit is not None and len(found) == limit
    if more:
        found.pop()
    entries = [entry_of(namespace, row) for row in found]
    if not more or not entries:
        return Page(entries, None)
    last = position(wanted.sort, _candidate(entries[-1], found[-1]))
    if after is not None and not is_behind(wanted.sort, last, after):
        # An index out of order: its pages would be read for ever.
        raise StorageCorruptError(f"the entries in namespace {namespace!r} are out of order: the file is damaged")
    return Page(entries, write_cursor(identity(namespace, wanted.filter, wanted.sort), last))


def _candidate(entry: Entry[Any], row: Row) -> Candidate:
    return Candidate(row.key, entry.value, entry.metadata, row.version, row.created_at, row.updated_at, row.expires_at)
