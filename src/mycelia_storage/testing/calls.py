"""One plain call of every verb, so that a rule for all verbs is tested on all of them.

Called by the parts of the suite that test such a rule: closed stores, bad keys, bad namespaces, finished
transactions. A verb that is missing here fails the suite (see `StoreContract`).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from mycelia_storage import IndexNotFoundError, field

if TYPE_CHECKING:
    from collections.abc import Callable

    KeyCall = Callable[[Any, Any, Any], object]
    NamespaceCall = Callable[[Any, Any], object]
    StoreCall = Callable[[Any], object]


def _same(value: object) -> object:
    return value


def _drop_index(verbs: Any) -> None:
    with contextlib.suppress(IndexNotFoundError):
        verbs.drop_index("no such index")


# Verbs on one key: (verbs, key, namespace).
READS_OF_A_KEY: Final[dict[str, KeyCall]] = {
    "get": lambda verbs, key, ns: verbs.get(key, namespace=ns),
    "get_entry": lambda verbs, key, ns: verbs.get_entry(key, None, namespace=ns),
    "has": lambda verbs, key, ns: verbs.has(key, namespace=ns),
    "get_metadata": lambda verbs, key, ns: verbs.get_metadata(key, namespace=ns),
    "get_many": lambda verbs, key, ns: verbs.get_many([key], namespace=ns),
    "get_entries": lambda verbs, key, ns: verbs.get_entries([key], namespace=ns),
}
WRITES_OF_A_KEY: Final[dict[str, KeyCall]] = {
    "set": lambda verbs, key, ns: verbs.set(key, 1, namespace=ns),
    "add": lambda verbs, key, ns: verbs.add(key, 1, namespace=ns),
    "modify": lambda verbs, key, ns: verbs.modify(key, _same, default=1, namespace=ns),
    "merge": lambda verbs, key, ns: verbs.merge(key, {"a": 1}, namespace=ns),
    "increment": lambda verbs, key, ns: verbs.increment(key, namespace=ns),
    "touch": lambda verbs, key, ns: verbs.touch(key, ttl=None, namespace=ns),
    "take": lambda verbs, key, ns: verbs.take(key, None, namespace=ns),
    "delete": lambda verbs, key, ns: verbs.delete(key, namespace=ns),
    "set_metadata": lambda verbs, key, ns: verbs.set_metadata(key, {"a": 1}, namespace=ns),
    "delete_many": lambda verbs, key, ns: verbs.delete_many([key], namespace=ns),
}
# These tell a bad key by a BatchError, but a bad namespace as all others do.
BATCH_WRITES: Final[dict[str, KeyCall]] = {
    "set_many": lambda verbs, key, ns: verbs.set_many([(key, 1)], namespace=ns),
    "add_many": lambda verbs, key, ns: verbs.add_many([(key, 1)], namespace=ns),
    "load": lambda verbs, key, ns: verbs.load([(key, 1)], namespace=ns),
}
READS_OF_A_NAMESPACE: Final[dict[str, NamespaceCall]] = {
    "list_keys": lambda verbs, ns: verbs.list_keys(namespace=ns),
    "scan": lambda verbs, ns: list(verbs.scan(namespace=ns)),
    "count": lambda verbs, ns: verbs.count(namespace=ns),
    "query": lambda verbs, ns: verbs.query(namespace=ns),
    "pages": lambda verbs, ns: list(verbs.pages(namespace=ns)),
    "explain": lambda verbs, ns: verbs.explain(namespace=ns),
    "namespace_info": lambda verbs, ns: verbs.namespace_info(ns),
}
WRITES_OF_A_NAMESPACE: Final[dict[str, NamespaceCall]] = {
    "clear": lambda verbs, ns: verbs.clear(namespace=ns),
    "delete_where": lambda verbs, ns: verbs.delete_where(field("$key").exists(), namespace=ns),
    "create_namespace": lambda verbs, ns: verbs.create_namespace(ns, exist_ok=True),
    "delete_namespace": lambda verbs, ns: verbs.delete_namespace(ns, recursive=True),
}
READS_OF_THE_WHOLE: Final[dict[str, StoreCall]] = {
    "list_namespaces": lambda verbs: verbs.list_namespaces(),
    "list_indexes": lambda verbs: verbs.list_indexes(),
}
WRITES_OF_THE_WHOLE: Final[dict[str, StoreCall]] = {
    "clear_all": lambda verbs: verbs.clear_all(),
    "create_index": lambda verbs: verbs.create_index("n"),
    "drop_index": _drop_index,
}
# What only a store has, not a transaction.
OF_A_STORE_ONLY: Final[dict[str, StoreCall]] = {
    "run_transaction": lambda store: store.run_transaction(_same),
    "get_status": lambda store: store.get_status(),
    "check": lambda store: store.check(),
    "backup": lambda store: store.backup("a path that nothing is written to/backup.db"),
    "restore": lambda store: store.restore("a path that nothing is read from/backup.db"),
    "optimize": lambda store: store.optimize(),
    "migrate": lambda store: store.migrate(),
}


def _enter(verbs: Any) -> None:
    with verbs.transaction():
        pass


def _with_key(calls: dict[str, KeyCall]) -> dict[str, StoreCall]:
    def bind(call: KeyCall) -> StoreCall:
        return lambda verbs: call(verbs, "key", "default")

    return {name: bind(call) for name, call in calls.items()}


def _with_namespace(calls: dict[str, NamespaceCall]) -> dict[str, StoreCall]:
    def bind(call: NamespaceCall) -> StoreCall:
        return lambda verbs: call(verbs, "place")

    return {name: bind(call) for name, call in calls.items()}


NAMESPACE_CALLS: Final[dict[str, NamespaceCall]] = READS_OF_A_NAMESPACE | WRITES_OF_A_NAMESPACE
WRITES: Final[dict[str, StoreCall]] = (
    _with_key(WRITES_OF_A_KEY) | _with_key(BATCH_WRITES) | _with_namespace(WRITES_OF_A_NAMESPACE) | WRITES_OF_THE_WHOLE
)
READS: Final[dict[str, StoreCall]] = (
    _with_key(READS_OF_A_KEY) | _with_namespace(READS_OF_A_NAMESPACE) | READS_OF_THE_WHOLE
)
TRANSACTION_CALLS: Final[dict[str, StoreCall]] = READS | WRITES | {"transaction": _enter}
STORE_CALLS: Final[dict[str, StoreCall]] = TRANSACTION_CALLS | OF_A_STORE_ONLY
