"""Queries and indexes as rules of a state machine, for both stores at once.

Called by `differential_verbs.py`, whose machine has these rules beside those of all other verbs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from mycelia_storage import StorageQuery
from mycelia_storage.testing.differential import TwoStores
from mycelia_storage.testing.query_strategies import World
from mycelia_storage.testing.strategies import DURABLE, LIMITS, NAMESPACES, PREFIXES, mostly

if TYPE_CHECKING:
    from collections.abc import Callable

    from mycelia_storage.filters import SortKey

# The names and values that the other rules write most.
WORLD: Final = World(["n", "m", "x"], [0, 1, 2, 3, -1, 1.0, True, None, "text", [0], {"k": 1}])
FILTERS: Final = mostly(
    WORLD.filters(), [True, "n = 1", {}, {"n": 1}, {"field": "n", "operator": "like", "value": 1}, [None, 5]]
)
SORTS: Final = mostly(WORLD.sorts(max_size=2), [5, "", ["n", "-n"], {"field": "n", "order": "up"}])
INDEX_NAMES: Final = mostly(st.sampled_from([None, None, None, "one", "two"]), ["", 5, "x" * 1025])
INDEX_FIELDS: Final = mostly(
    st.one_of(WORLD.index_fields(), st.sampled_from([["n"], ["-n"], ["n", "m"], ["$metadata.x"]])), [[], ["$key"], [5]]
)


class Queries(TwoStores):
    """The verbs that take a filter, cursors that are kept, and created indexes."""

    def __init__(self) -> None:
        super().__init__()
        # Pages that were cut off: how they were asked for, and the cursor of each store.
        self.cursors: list[tuple[dict[str, Any], Any, Any]] = []
        self.index_names: list[str] = []

    @rule(filter=FILTERS, sort=SORTS, namespace=NAMESPACES, limit=LIMITS, offset=st.just(0) | LIMITS)
    def query(self, filter: Any, sort: Any, namespace: Any, limit: Any, offset: Any) -> None:
        asked: dict[str, Any] = {"filter": filter, "sort": sort, "namespace": namespace}
        cursors: list[Any] = []

        def ask(verbs: Any) -> Any:
            page = verbs.query(**asked, limit=limit, offset=offset)
            cursors.append(page.cursor)
            return [list(page), page.cursor is None]

        self.both(ask)
        if len(cursors) == 2 and cursors[0] is not None:
            self.cursors = [*self.cursors[-4:], (asked, cursors[0], cursors[1])]

    @precondition(lambda self: self.cursors)
    @rule(limit=LIMITS, which=st.integers(0, 4))
    def go_on_with_a_page(self, limit: Any, which: int) -> None:
        asked, memory, other = self.cursors[which % len(self.cursors)]
        cursors = iter((memory, other))

        def ask(verbs: Any) -> Any:
            page = verbs.query(**asked, limit=limit, cursor=next(cursors))
            return [list(page), page.cursor is None]

        self.both(ask)

    @rule(
        filter=FILTERS,
        sort=SORTS,
        namespace=NAMESPACES,
        page_size=mostly(st.sampled_from([1, 2, 100]), [0, "1"]),
        prefix=PREFIXES,
        batch_size=st.sampled_from([1, 2, 500]),
    )
    def find_in_other_ways(
        self, filter: Any, sort: Any, namespace: Any, page_size: Any, prefix: Any, batch_size: int
    ) -> None:
        options = {"namespace": namespace}
        self.both(lambda verbs: [list(page) for page in verbs.pages(filter, sort=sort, page_size=page_size, **options)])
        self.both(lambda verbs: list(verbs.scan(filter, prefix=prefix, batch_size=batch_size, **options)))
        self.both(lambda verbs: verbs.count(filter, **options))
        self.both(lambda verbs: verbs.explain(filter, sort=sort, **options).entries)

    @rule(filter=WORLD.filters(), sort=WORLD.sorts(max_size=2), limit=st.none() | st.integers(0, 3), name=NAMESPACES)
    def ask_by_a_whole_query(self, filter: Any, sort: list[SortKey], limit: int | None, name: Any) -> None:
        asked = StorageQuery(filter, sort=sort, limit=limit)
        self.both(lambda verbs: list(verbs.query(asked, namespace=name)))
        self.both(lambda verbs: verbs.count(asked, namespace=name))

    @rule(filter=FILTERS, namespace=NAMESPACES, durable=DURABLE)
    def delete_where(self, filter: Any, namespace: Any, durable: Any) -> None:
        self.both(lambda verbs: verbs.delete_where(filter, namespace=namespace, durable=durable))

    @rule(
        fields=INDEX_FIELDS,
        namespace=NAMESPACES | st.none(),
        unique=mostly(st.booleans(), [1, None]),
        name=INDEX_NAMES,
    )
    def create_index(self, fields: list[Any], namespace: Any, unique: Any, name: Any) -> None:
        made = self.both(lambda verbs: verbs.create_index(*fields, namespace=namespace, unique=unique, name=name))
        if isinstance(made, str):
            self.index_names = [*self.index_names[-4:], made]

    @rule(name=INDEX_NAMES, which=st.integers(0, 4))
    def drop_index(self, name: Any, which: int) -> None:
        if name is None and self.index_names:
            name = self.index_names[which % len(self.index_names)]
        self.both(lambda verbs: verbs.drop_index(name))

    @rule(namespace=NAMESPACES)
    def list_indexes(self, namespace: Any) -> None:
        self.both(lambda verbs: verbs.list_indexes(namespace=namespace))

    @rule(filter=FILTERS, sort=SORTS, name=NAMESPACES, kind=st.sampled_from([Any, Any, int, dict[str, int]]))
    def find_in_a_view(self, filter: Any, sort: Any, name: Any, kind: Any) -> None:
        calls: list[Callable[[Any], Any]] = [
            lambda view: list(view.query(filter, sort=sort, limit=3)),
            lambda view: [page.values() for page in view.pages(filter, sort=sort, page_size=2)],
            lambda view: [list(view.scan(filter)), view.count(filter)],
        ]
        for call in calls:
            self.both(lambda verbs: call(verbs.namespace(name, kind)))  # noqa: B023
