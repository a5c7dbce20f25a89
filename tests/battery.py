"""Every kind of verb once, on a store whose file may hold anything: it gives an answer or an error of the library.

Called by the tests on hostile and on mutated files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mycelia_storage import Storage, StorageError, field

if TYPE_CHECKING:
    from collections.abc import Callable

KEYS = [f"k{number}" for number in range(20)]


def fill(store: Storage) -> None:
    """What the files hold before they are made hostile."""
    store.set_many({key: {"n": number, "t": "x" * 50} for number, key in enumerate(KEYS)})
    store.create_index("n")
    store.set("expiring", 1, ttl=100_000)
    store.set("other", [1], namespace="other", metadata={"a": 1})


def _indexes(store: Storage) -> None:
    for index in store.list_indexes():
        store.drop_index(index.name)


READS: dict[str, Callable[[Storage], Any]] = {
    "get": lambda store: [store.get(key) for key in KEYS],
    "get_entry": lambda store: [store.get_entry(key, None) for key in KEYS],
    "get_many": lambda store: store.get_many(KEYS),
    "get_entries": lambda store: store.get_entries(KEYS),
    "get_metadata": lambda store: store.get_metadata("other", namespace="other"),
    "has": lambda store: [store.has(key) for key in KEYS],
    "list_keys": lambda store: store.list_keys(),
    "list_keys of a pattern": lambda store: store.list_keys(pattern="*1*", reverse=True),
    "query": lambda store: store.query(),
    "query by the index": lambda store: store.query(field("n") >= 3, limit=4),
    "query by equality of lists": lambda store: store.query(field("n") == [1, 2]),
    "query for one of several": lambda store: store.query(field("$value").is_in([[1, 2], {"n": 1}])),
    "query for an element": lambda store: store.query(field("$value").contains([1])),
    "query of metadata": lambda store: store.query(field("$metadata.a") == 1, namespace="other"),
    "query sorted": lambda store: store.query(sort="-n"),
    "pages": lambda store: list(store.pages(page_size=3)),
    "pages sorted": lambda store: list(store.pages(sort="n", page_size=3)),
    "count": lambda store: store.count(),
    "count with a filter": lambda store: store.count(field("t").startswith("x")),
    "scan": lambda store: list(store.scan(batch_size=2)),
    "scan with a filter": lambda store: list(store.scan(field("n") < 15, batch_size=2)),
    "explain": lambda store: store.explain(field("n") == 1),
    "list_namespaces": lambda store: store.list_namespaces(),
    "namespace_info": lambda store: store.namespace_info("default"),
    "list_indexes": lambda store: store.list_indexes(),
    "get_status": lambda store: store.get_status(),
    "check": lambda store: store.check(),
}
WRITES: dict[str, Callable[[Storage], Any]] = {
    "set": lambda store: store.set("new", {"n": 5}),
    "set again": lambda store: store.set("k2", {"n": 6}),
    "set_many": lambda store: store.set_many({"a": 1, "k3": 2}),
    "merge": lambda store: store.merge("k1", {"z": 1}),
    "increment": lambda store: store.increment("k1", field="n"),
    "touch": lambda store: store.touch("k6", ttl=100_000),
    "set_metadata": lambda store: store.set_metadata("k7", {"a": 2}),
    "delete": lambda store: store.delete("k2"),
    "delete_many": lambda store: store.delete_many(["k4", "k5"]),
    "take": lambda store: store.take("k8", None),
    "delete_where": lambda store: store.delete_where(field("n") == 3),
    "create_index": lambda store: store.create_index("t"),
    "drop_index": _indexes,
    "clear": lambda store: store.clear(namespace="other"),
    "optimize": lambda store: store.optimize(),
}


def run(store: Storage, verbs: dict[str, Callable[[Storage], Any]]) -> dict[str, Any]:
    """What each verb gives; an error of the library as such. Whatever else is raised goes up."""
    found: dict[str, Any] = {}
    for name, verb in verbs.items():
        try:
            found[name] = verb(store)
        except StorageError as error:
            found[name] = error
        except Exception as error:
            error.add_note(f"by the verb {name!r}")
            raise
    return found
