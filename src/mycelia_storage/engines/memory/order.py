"""The order of a sort over a whole namespace, kept between the pages of a query.

Called by `state.py` and `view.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, TypeAlias

from mycelia_storage.engines.claims import candidate_of
from mycelia_storage.matching import in_order, is_behind, position

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mycelia_storage.engines.engine import Row
    from mycelia_storage.filters import SortKey
    from mycelia_storage.matching import Position

Placed: TypeAlias = "tuple[Position, Row]"


class Order:
    """Rows in the order of a sort, whatever filter they are asked with. It never changes, so any thread may read it."""

    def __init__(self, namespace: str, sort: tuple[SortKey, ...], rows: Iterable[Row]) -> None:
        self._namespace = namespace
        self._sort = sort
        self._placed = self._in_order(map(self._place, rows))

    def _place(self, row: Row) -> Placed:
        return position(self._sort, candidate_of(self._namespace, row)), row

    def _in_order(self, placed: Iterable[Placed]) -> list[Placed]:
        return in_order(self._sort, [(item[0], item) for item in placed])

    def changed(self, changes: Mapping[str, Row | None]) -> Order:
        """The order when these rows have come or gone."""
        if not changes:
            return self
        stays = [item for item in self._placed if item[1].key not in changes]
        comes = [self._place(row) for row in changes.values() if row is not None]
        order = Order(self._namespace, self._sort, ())
        if len(comes) > len(stays) // 8:
            order._placed = self._in_order(stays + comes)
        else:
            for item in comes:
                stays.insert(self._start(stays, item[0]), item)
            order._placed = stays
        return order

    def rows(self) -> list[Row]:
        """All of them."""
        return [row for _, row in self._placed]

    def behind(self, after: Position) -> Iterator[Row]:
        """The rows behind a position."""
        for index in range(self._start(self._placed, after), len(self._placed)):
            yield self._placed[index][1]

    def _start(self, placed: list[Placed], after: Position) -> int:
        """The first place behind a position."""
        return bisect_left(placed, True, key=lambda item: is_behind(self._sort, item[0], after))
