"""What is odd about a PostgreSQL server, for the verb `doctor`.

Called by `doctor`, with the store's status.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mycelia_storage.cli.doctor import Level

# Older ones have not been tested.
_TESTED: Final = 150_000
# The server keeps some connections for administrators, and others want some too.
_SHARE_OF_CONNECTIONS: Final = 0.5


def findings_on_server(details: Mapping[str, Any]) -> Iterator[tuple[Level, str, str]]:
    """Level, what is odd, and what to do about it."""
    for is_odd, level, what, advice in _RULES:
        if is_odd(details):
            yield level, what, advice


def _is_off(name: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda details: details.get(name) == "off"


_RULES: Final[tuple[tuple[Callable[[Mapping[str, Any]], bool], Level, str, str], ...]] = (
    (
        _is_off("fsync"),
        "problem",
        "the server runs with fsync = off",
        "a power cut can destroy the whole database: set it to on",
    ),
    (
        _is_off("full_page_writes"),
        "problem",
        "the server runs with full_page_writes = off",
        "a power cut can damage pages: set it to on",
    ),
    (
        _is_off("synchronous_commit"),
        "warning",
        "the server runs with synchronous_commit = off",
        "what was acknowledged in the last second can be lost: set it to on, or write what counts with durable=True",
    ),
    (
        _is_off("autovacuum"),
        "warning",
        "the server runs with autovacuum = off",
        "every write leaves an old row behind, and nothing removes them: set it to on",
    ),
    (
        lambda details: int(details.get("server_version_num", _TESTED)) < _TESTED,
        "warning",
        "the server is older than those that were tested",
        "PostgreSQL 15 and later were",
    ),
    (
        lambda details: details["pool_max"] > _SHARE_OF_CONNECTIONS * int(details.get("max_connections", 1000)),
        "warning",
        "pool_max is more than half of the server's max_connections",
        "a second process may find none left: lower the one or raise the other",
    ),
    (
        lambda details: details.get("over_network") == "yes" and details.get("encrypted_connection") == "no",
        "warning",
        "the connection goes over a network and is not encrypted",
        "add sslmode=verify-full to the target",
    ),
    (
        lambda details: details.get("is_standby") == "yes",
        "note",
        "the server is a standby",
        "it only reads; name all hosts in the target, and writes find the primary",
    ),
)
