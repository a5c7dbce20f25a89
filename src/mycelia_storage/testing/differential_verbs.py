"""The verbs as rules of a state machine: each draws its arguments, bad ones included, and asks both stores.

    class MineAgainstMemory(DifferentialMachine):
        def open_other(self, directory: Path, clock: FakeClock) -> Storage:
            return open_storage(directory / "my.db", clock=clock)

    TestMine = MineAgainstMemory.TestCase

Memory is the reference: it is simple enough to be believed. Needs Hypothesis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from mycelia_storage import MISSING, StorageError
from mycelia_storage.testing.differential import OwnError, TwoStores, made, pairs, puts
from mycelia_storage.testing.differential_queries import Queries
from mycelia_storage.testing.strategies import (
    DURABLE,
    ITEMS,
    KEY_LISTS,
    KEYS,
    LIMITS,
    METADATA,
    NAMESPACES,
    PATTERNS,
    PREFIXES,
    PUTS,
    TTLS,
    TTLS_OR_KEEP,
    VALUES,
    VERSIONS,
    json_values,
    mostly,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _always(value: object) -> Callable[[Any], object]:
    return lambda _: value


class OneEntry(TwoStores):
    """The verbs on one entry."""

    @rule(key=KEYS, namespace=NAMESPACES, default=st.none() | st.just("default"))
    def read(self, key: Any, namespace: Any, default: Any) -> None:
        self.both(lambda verbs: verbs.get(key, default, namespace=namespace))
        self.both(lambda verbs: verbs.get_entry(key, default, namespace=namespace))
        self.both(lambda verbs: verbs.get_entry(key, namespace=namespace))
        self.both(lambda verbs: verbs.has(key, namespace=namespace))
        self.both(lambda verbs: verbs.get_metadata(key, namespace=namespace))

    @rule(
        key=KEYS,
        value=VALUES,
        namespace=NAMESPACES,
        metadata=METADATA,
        ttl=TTLS,
        overwrite=st.sampled_from([True, True, False]),
        if_version=VERSIONS,
        durable=DURABLE,
    )
    def set(
        self,
        key: Any,
        value: Any,
        namespace: Any,
        metadata: Any,
        ttl: Any,
        overwrite: bool,
        if_version: Any,
        durable: Any,
    ) -> None:
        self.expire(ttl)
        version = self.version(if_version, key, namespace)
        self.both(
            lambda verbs: verbs.set(
                key,
                made(value),
                namespace=namespace,
                metadata=metadata,
                ttl=ttl,
                overwrite=overwrite,
                if_version=version,
                durable=durable,
            )
        )

    @rule(writes=st.lists(st.tuples(KEYS, VALUES, METADATA), min_size=1, max_size=4), namespace=NAMESPACES)
    def set_some_plainly(self, writes: list[Any], namespace: Any) -> None:
        for key, value, metadata in writes:
            self.both(lambda verbs: verbs.set(key, made(value), metadata=metadata, namespace=namespace))  # noqa: B023

    @rule(key=KEYS, value=VALUES, namespace=NAMESPACES, metadata=METADATA, ttl=TTLS, durable=DURABLE)
    def add(self, key: Any, value: Any, namespace: Any, metadata: Any, ttl: Any, durable: Any) -> None:
        self.expire(ttl)
        self.both(
            lambda verbs: verbs.add(key, made(value), namespace=namespace, metadata=metadata, ttl=ttl, durable=durable)
        )

    @rule(
        key=KEYS,
        value=VALUES,
        namespace=NAMESPACES,
        default=st.sampled_from([MISSING, 0, {}]),
        ttl=TTLS_OR_KEEP,
        if_version=VERSIONS,
        how=st.sampled_from(["replace", "wrap", "forget", "fail"]),
    )
    def modify(self, key: Any, value: Any, namespace: Any, default: Any, ttl: Any, if_version: Any, how: str) -> None:
        self.expire(ttl)
        version = self.version(if_version, key, namespace)

        def change(old: Any) -> Any:
            if how == "fail":
                raise OwnError("mine")
            return {"replace": made(value), "wrap": [old], "forget": None}[how]

        self.both(
            lambda verbs: verbs.modify(key, change, default=default, ttl=ttl, if_version=version, namespace=namespace)
        )

    @rule(
        key=KEYS,
        namespace=NAMESPACES,
        patch=mostly(
            st.dictionaries(st.sampled_from("nmo"), st.none() | json_values(max_leaves=3), max_size=3),
            [None, "text", {1: 1}, {"n": {1}}, [1]],
        ),
        ttl=TTLS_OR_KEEP,
        if_version=VERSIONS,
    )
    def merge(self, key: Any, namespace: Any, patch: Any, ttl: Any, if_version: Any) -> None:
        self.expire(ttl)
        version = self.version(if_version, key, namespace)
        self.both(lambda verbs: verbs.merge(key, patch, ttl=ttl, if_version=version, namespace=namespace))

    @rule(
        key=KEYS,
        namespace=NAMESPACES,
        by=mostly(st.sampled_from([1, 1, -2, 0.5, 2**62, 1e308]), [float("nan"), "1", True]),
        field=mostly(st.sampled_from([None, None, "n", "m.k"]), ["", 1]),
        ttl=TTLS_OR_KEEP,
        durable=DURABLE,
    )
    def increment(self, key: Any, namespace: Any, by: Any, field: Any, ttl: Any, durable: Any) -> None:
        self.expire(ttl)
        self.both(lambda verbs: verbs.increment(key, by, field=field, ttl=ttl, namespace=namespace, durable=durable))

    @rule(key=KEYS, namespace=NAMESPACES, ttl=TTLS)
    def touch(self, key: Any, namespace: Any, ttl: Any) -> None:
        self.expire(ttl)
        self.both(lambda verbs: verbs.touch(key, ttl=ttl, namespace=namespace))

    @rule(key=KEYS, namespace=NAMESPACES, default=st.sampled_from([MISSING, None]), durable=DURABLE)
    def take(self, key: Any, namespace: Any, default: Any, durable: Any) -> None:
        self.both(lambda verbs: verbs.take(key, default, namespace=namespace, durable=durable))

    @rule(key=KEYS, namespace=NAMESPACES, if_version=VERSIONS, durable=DURABLE)
    def delete(self, key: Any, namespace: Any, if_version: Any, durable: Any) -> None:
        version = self.version(if_version, key, namespace)
        self.both(lambda verbs: verbs.delete(key, if_version=version, namespace=namespace, durable=durable))

    @rule(key=KEYS, namespace=NAMESPACES, metadata=METADATA, merge=st.booleans(), if_version=VERSIONS)
    def set_metadata(self, key: Any, namespace: Any, metadata: Any, merge: bool, if_version: Any) -> None:
        version = self.version(if_version, key, namespace)
        self.both(lambda verbs: verbs.set_metadata(key, metadata, merge=merge, if_version=version, namespace=namespace))


class ManyEntries(OneEntry):
    """The verbs on many entries, and those that find."""

    @rule(keys=KEY_LISTS, namespace=NAMESPACES)
    def get_many(self, keys: list[Any], namespace: Any) -> None:
        self.both(lambda verbs: verbs.get_many(keys, namespace=namespace))
        self.both(lambda verbs: verbs.get_entries(iter(keys), namespace=namespace))

    @rule(
        items=ITEMS,
        namespace=NAMESPACES,
        metadata=METADATA,
        ttl=TTLS,
        overwrite=st.sampled_from([True, True, False]),
        durable=DURABLE,
    )
    def set_many(
        self, items: list[Any], namespace: Any, metadata: Any, ttl: Any, overwrite: bool, durable: Any
    ) -> None:
        self.expire(ttl)
        self.both(
            lambda verbs: verbs.set_many(
                pairs(items), namespace=namespace, metadata=metadata, ttl=ttl, overwrite=overwrite, durable=durable
            )
        )

    @rule(items=PUTS, namespace=NAMESPACES, ttl=TTLS, only_new=st.booleans())
    def set_or_add_puts(self, items: list[Any], namespace: Any, ttl: Any, only_new: bool) -> None:
        for each in (ttl, *(item[3] for item in items)):
            self.expire(each)
        if only_new:
            self.both(lambda verbs: verbs.add_many(puts(items), ttl=ttl, namespace=namespace))
        else:
            self.both(lambda verbs: verbs.set_many(puts(items), ttl=ttl, namespace=namespace))

    @rule(keys=KEY_LISTS, namespace=NAMESPACES, durable=DURABLE)
    def delete_many(self, keys: list[Any], namespace: Any, durable: Any) -> None:
        self.both(lambda verbs: verbs.delete_many(keys, namespace=namespace, durable=durable))

    @rule(
        items=ITEMS,
        namespace=NAMESPACES,
        batch_size=mostly(st.sampled_from([1, 2, 3, 1000]), [0]),
        on_error=mostly(st.sampled_from(["stop", "skip", "skip"]), ["ignore"]),
        no_item=st.booleans(),
        breaks=st.sampled_from([False, False, True]),
    )
    def load(
        self, items: list[Any], namespace: Any, batch_size: int, on_error: Any, no_item: bool, breaks: bool
    ) -> None:
        def load(verbs: Any) -> Any:
            def stream() -> Iterator[Any]:
                yield from pairs(items)
                if no_item:
                    yield "no item"
                if breaks:
                    raise OwnError("mine")

            told: list[Any] = []
            options = {"batch_size": batch_size, "on_error": on_error, "progress": told.append}
            try:
                return [verbs.load(stream(), namespace=namespace, **options), told]
            except (StorageError, OwnError) as error:
                return [error, told]

        self.both(load)

    @rule(
        namespace=NAMESPACES,
        pattern=PATTERNS,
        prefix=PREFIXES,
        start_after=st.none() | KEYS,
        limit=LIMITS,
        offset=st.just(0) | LIMITS,
        reverse=st.booleans(),
    )
    def list_keys(
        self, namespace: Any, pattern: Any, prefix: Any, start_after: Any, limit: Any, offset: Any, reverse: bool
    ) -> None:
        self.both(
            lambda verbs: verbs.list_keys(
                namespace=namespace,
                pattern=pattern,
                prefix=prefix,
                start_after=start_after,
                limit=limit,
                offset=offset,
                reverse=reverse,
            )
        )

    @rule(namespace=NAMESPACES, prefix=PREFIXES, batch_size=st.sampled_from([1, 3, 500]))
    def scan_and_count(self, namespace: Any, prefix: Any, batch_size: int) -> None:
        self.both(lambda verbs: list(verbs.scan(namespace=namespace, prefix=prefix, batch_size=batch_size)))
        self.both(lambda verbs: verbs.count(namespace=namespace))


class DifferentialMachine(ManyEntries, Queries):
    """Every verb: those above, queries and indexes, namespaces and their views."""

    @rule(name=NAMESPACES, metadata=METADATA, exist_ok=st.booleans())
    def create_namespace(self, name: Any, metadata: Any, exist_ok: bool) -> None:
        self.both(lambda verbs: verbs.create_namespace(name, metadata=metadata, exist_ok=exist_ok))

    @rule(name=NAMESPACES, recursive=st.booleans())
    def delete_namespace(self, name: Any, recursive: bool) -> None:
        self.both(lambda verbs: verbs.delete_namespace(name, recursive=recursive))

    @rule(name=NAMESPACES, prefix=PREFIXES)
    def look_at_namespaces(self, name: Any, prefix: Any) -> None:
        self.both(lambda verbs: verbs.list_namespaces(prefix=prefix))
        self.both(lambda verbs: verbs.namespace_info(name))

    @rule(name=NAMESPACES, whole=st.sampled_from([False, False, True]))
    def clear(self, name: Any, whole: bool) -> None:
        self.both(lambda verbs: verbs.clear_all() if whole else verbs.clear(namespace=name))

    def view(self, name: Any, kind: Any, call: Callable[[Any], Any]) -> None:
        self.both(lambda verbs: call(verbs.namespace(name, kind)))

    @rule(name=NAMESPACES, key=KEYS, kind=st.sampled_from([Any, Any, int, dict[str, int]]))
    def read_a_view(self, name: Any, key: Any, kind: Any) -> None:
        self.view(name, kind, lambda view: view[key])
        self.view(name, kind, lambda view: view.get(key, "default"))
        self.view(name, kind, lambda view: key in view)
        self.view(name, kind, lambda view: [len(view), bool(view), list(view), list(view.keys())])
        self.view(name, kind, lambda view: [list(view.items()), list(view.values())])
        self.view(name, kind, lambda view: [key in view.keys(), (key, 1) in view.items(), 1 in view.values()])  # noqa: SIM118
        self.view(name, kind, lambda view: list(view.scan()))

    @rule(
        name=NAMESPACES,
        key=KEYS,
        value=VALUES,
        kind=st.sampled_from([Any, Any, int]),
        how=st.sampled_from(["set", "del", "pop", "pop or default", "popitem", "setdefault", "add", "take", "modify"]),
    )
    def change_a_view(self, name: Any, key: Any, value: Any, kind: Any, how: str) -> None:
        calls: dict[str, Callable[[Any], Any]] = {
            "set": lambda view: view.__setitem__(key, made(value)),
            "del": lambda view: view.__delitem__(key),
            "pop": lambda view: view.pop(key),
            "pop or default": lambda view: view.pop(key, None),
            "popitem": lambda view: view.popitem(),
            "setdefault": lambda view: view.setdefault(key, made(value)),
            "add": lambda view: view.add(key, made(value)),
            "take": lambda view: view.take(key),
            "modify": lambda view: view.modify(key, _always(made(value))),
        }
        self.view(name, kind, calls[how])

    @rule(name=NAMESPACES, items=ITEMS, how=st.sampled_from(["update", "or", "clear", "keywords"]))
    def change_all_of_a_view(self, name: Any, items: list[Any], how: str) -> None:
        calls: dict[str, Callable[[Any], Any]] = {
            "update": lambda view: view.update(pairs(items)),
            "or": lambda view: view.__ior__(pairs(items)) is view,
            "clear": lambda view: view.clear(),
            "keywords": lambda view: view.update({"ab": 1}, B=2),
        }
        self.view(name, Any, calls[how])
