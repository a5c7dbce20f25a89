"""Looking through a store in memory: every row by the rules, and what is kept beside the rows against them.

Called by the engine for `check`, with a state that nobody changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mycelia_storage.checking import (
    MAX_VERSION,
    Findings,
    named,
    problem_of_namespace,
)
from mycelia_storage.engines.claims import claim_of
from mycelia_storage.engines.kit import is_live, problem_of_row
from mycelia_storage.engines.limits import check_limit
from mycelia_storage.errors import StorageCorruptError
from mycelia_storage.keys import DEFAULT_NAMESPACE, ORIGIN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mycelia_storage.engines.claims import Claim
    from mycelia_storage.engines.engine import Row
    from mycelia_storage.engines.memory.state import State, Table

_ROWS_BETWEEN_LOOKS: Final = 1000


class Frozen:
    """A state as it is at one moment: the shared tables, and copies of what writers go on to change."""

    def __init__(self, state: State) -> None:
        self.state: State = state.share()
        self.claims: dict[str, tuple[dict[Claim, str], dict[tuple[str, str], Claim]]] = {
            name: claims.copied() for name, claims in state.claims.items()
        }
        # What an open transaction has taken from the order is still there for all others. It takes some, or puts them
        # back, just now: asked before and after, the order has what moves.
        self.expiring: set[tuple[int, str, str]] = {*state.expiring, *state.taken, *state.expiring}


def check(frozen: Frozen, findings: Findings, now: int, capacity: int | None) -> None:
    """Look at everything. Raises StorageTimeoutError where nobody waits any more."""
    state = frozen.state
    names = {DEFAULT_NAMESPACE, *state.registered, *state.tables}
    findings.namespaces, findings.indexes = len(names - {ORIGIN}), len(state.indexes)
    for name in sorted(names):
        _check_namespace(name, state, findings)
    for name, table in state.tables.items():
        _check_rows(name, table, frozen, findings, now)
        _check_orders(name, table, findings)
    if type(state.floor) is not int or not 0 <= state.floor < MAX_VERSION:
        findings.add("the version floor is no version")
    if capacity is not None and state.size() > capacity:
        findings.add(f"there are {state.size()} entries, and capacity={capacity} is the limit")
    _check_claims(frozen, findings, now)


def _check_namespace(name: str, state: State, findings: Findings) -> None:
    row = state.registered.get(name)
    if row is None:
        findings.add(f"namespace {name!r} is not registered")
        return
    problem = problem_of_namespace(row.name, row.metadata, row.created_at)
    if problem is None and row.name != name:
        problem = f"it is registered under the name {row.name!r}"
    if problem is not None:
        findings.add(f"namespace {name!r}: {problem}")


def _check_rows(name: str, table: Table, frozen: Frozen, findings: Findings, now: int) -> None:
    for number, (key, row) in enumerate(table.rows.items()):
        if not number % _ROWS_BETWEEN_LOOKS:
            check_limit()
        problem = problem_of_row(name, row)
        if problem is None and row.key != key:
            problem = f"it stands under the key {key!r}"
        if problem is None and row.expires_at is not None and (row.expires_at, name, key) not in frozen.expiring:
            problem = "it is missing in the order of expiry"
        if problem is not None:
            findings.add(f"{named(name, row.key)}: {problem}")
        findings.entries += problem is not None or is_live(row, now)


def _check_orders(name: str, table: Table, findings: Findings) -> None:
    """That the order of the keys and those of sorts, where they are kept, are what they would be made anew."""
    kept = table.kept_keys()
    if kept is not None and kept != sorted(table.rows):
        findings.add(f"namespace {name!r}: the order of its keys is not that of its entries")
    for sort, rows in table.kept_orders():
        check_limit()
        try:
            is_right = rows == table.in_order(name, sort)
        except StorageCorruptError:  # which was told of where the row was looked at
            continue
        if not is_right:
            findings.add(f"namespace {name!r}: the order by {', '.join(map(str, sort))} is not that of its entries")


def _check_claims(frozen: Frozen, findings: Findings, now: int) -> None:
    for name, index in frozen.state.indexes.items():
        if not index.is_unique:
            continue
        if name not in frozen.claims:
            findings.add(f"the index {name!r} is unique, and keeps no values")
            continue
        owners, claims = frozen.claims[name]
        seen: dict[Claim, Row] = {}
        for namespace, row in _covered(frozen.state, index.namespace):
            try:
                claim = claim_of(index.fields, namespace, row)
            except StorageCorruptError:  # which was told of where the row was looked at
                continue
            if claims.pop((namespace, row.key), None) != claim:
                findings.add(f"{named(namespace, row.key)} has another value in the index {name!r}")
            elif claim is not None and is_live(row, now):
                if claim in seen:
                    keys = f"{seen[claim].key!r} and {row.key!r} in namespace {namespace!r}"
                    findings.add(f"the index {name!r} is unique, and {keys} have the same value")
                elif owners.get(claim) != row.key:
                    findings.add(f"{named(namespace, row.key)} does not own its value in the index {name!r}")
                seen[claim] = row
        for namespace, key in claims:
            findings.add(f"the index {name!r} has an entry for {named(namespace, key)}, which is missing")


def _covered(state: State, namespace: str | None) -> Iterable[tuple[str, Row]]:
    for name, table in state.tables.items():
        if namespace in (None, name):
            for number, row in enumerate(table.rows.values()):
                if not number % _ROWS_BETWEEN_LOOKS:
                    check_limit()
                yield name, row
