"""The verbs on one entry and on many: each stands here once, for stores and for transactions, for every engine.

Called by users through `Storage`, `Transaction` and namespace views. Here arguments are checked, values become text,
and it is decided what has expired, which version is expected and what a change makes of a document; the rows that
result go to the engine's primitives.

Arguments that mean the same everywhere:

`namespace`: where the key stands, "default" unless said; it is registered by its first write.
`metadata`: a mapping kept beside the value; None keeps what is there, {} empties it.
`ttl`: seconds (or a timedelta) until the entry expires, rounded up to milliseconds; None: it stays.
`if_version`: write only if the entry has this version now, 0 meaning that it must not exist.
`durable`: True: when the call returns, this write and all before it survive a power cut.
"""

from __future__ import annotations

from inspect import iscoroutine
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from mycelia_storage.arguments import (
    KEEP,
    MISSING,
    Keep,
    check_function,
    check_if_version,
    check_one_of,
    check_progress,
    check_whole,
    expiry,
    ttl_ms,
    ttl_or_keep,
)
from mycelia_storage.batches import Batch, batch_error, collect, each_key, pairs
from mycelia_storage.codec import decode, decode_object, encode, encode_object
from mycelia_storage.documents import increment, merge_patch
from mycelia_storage.entries import Entry, LoadReport, damaged, entry_of
from mycelia_storage.errors import (
    InvalidValueError,
    KeyExistsError,
    KeyNotFoundError,
    VersionConflictError,
)
from mycelia_storage.finding import Finding
from mycelia_storage.keys import DEFAULT_NAMESPACE, KeyRange, check_key, check_namespace
from mycelia_storage.loading import Loader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import timedelta

    from mycelia_storage.engines.engine import Primitives, PutRow, Row
    from mycelia_storage.entries import Put

D = TypeVar("D")
E = TypeVar("E")

# How many expired entries a write that sets an expiry removes along the way.
_PURGED_ALONG = 16


class Verbs(Finding):
    """Every verb on data. `Storage` runs each as a transaction of its own, `Transaction` within itself."""

    # ---- one entry

    @overload
    def get(self, key: str, default: None = None, *, namespace: str = ...) -> Any | None: ...
    @overload
    def get(self, key: str, default: D, *, namespace: str = ...) -> Any | D: ...
    def get(self, key: str, default: object = None, *, namespace: str = DEFAULT_NAMESPACE) -> Any:
        """The value of a key, `default` where there is none. It is the caller's own: changing it changes no store."""
        namespace, key = check_namespace(namespace), check_key(key)
        found = self._reading().value(namespace, key)
        if found is None:
            return default
        text, expires_at = found
        try:
            if expires_at is not None and expires_at <= self._now() // 1000:
                return default
        except TypeError:
            raise damaged(namespace, key) from None
        return decode(text, namespace, key)

    @overload
    def get_entry(self, key: str, *, namespace: str = ...) -> Entry[Any]: ...
    @overload
    def get_entry(self, key: str, default: D, *, namespace: str = ...) -> Entry[Any] | D: ...
    def get_entry(self, key: str, default: object = MISSING, *, namespace: str = DEFAULT_NAMESPACE) -> Any:
        """The value of a key with its metadata, version and times. Without `default`: KeyNotFoundError."""
        namespace, key = check_namespace(namespace), check_key(key)
        row = _live(self._reading(), namespace, key, self._now())
        if row is not None:
            return entry_of(namespace, row)
        return _default_or_raise(default, namespace, key)

    def set(
        self,
        key: str,
        value: object,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        metadata: Mapping[str, object] | None = None,
        ttl: float | timedelta | None = None,
        overwrite: bool = True,
        if_version: int | None = None,
        durable: bool | None = None,
    ) -> int:
        """Write a value, and give its new version. Without `ttl` an earlier expiry is cleared.

        Raises KeyExistsError with `overwrite=False` where the key is there, VersionConflictError where `if_version`
        does not hold, InvalidKeyError, InvalidNamespaceError and InvalidValueError. After any of these nothing is
        written; after an OutcomeUnknownError read before writing again.
        """
        namespace, key = check_namespace(namespace), check_key(key)
        text = encode(value, self._max_value_bytes)
        encoded = None if metadata is None else self._encode_metadata(metadata)
        if ttl is None and overwrite and if_version is None and not durable:
            return self._writing().put(namespace, ((key, text, encoded, None),), self._now())[0]
        return self._set_step(namespace, (key, text, encoded), ttl, overwrite, if_version, durable)

    def _set_step(
        self,
        namespace: str,
        put: tuple[str, str, str | None],
        ttl: float | timedelta | None,
        overwrite: bool,
        if_version: int | None,
        durable: bool | None,
    ) -> int:
        """A `set` that takes more than one statement. Not within `set`, where the step's variables would cost it."""
        key, text, encoded = put
        if if_version is not None and not overwrite:
            raise TypeError("overwrite=False and if_version exclude each other: if_version=0 says the same")
        lasting, expected = ttl_ms(ttl), check_if_version(if_version)

        def step(rows: Primitives, now: int) -> int:
            if not overwrite and _live(rows, namespace, key, now) is not None:
                raise KeyExistsError(f"the key {key!r} is already in namespace {namespace!r}")
            if expected is not None:
                _expect(expected, _live(rows, namespace, key, now), namespace, key)
            return self._put(rows, namespace, (key, text, encoded, expiry(now, lasting)), now)

        return self._together(step, durable=durable)

    def add(
        self,
        key: str,
        value: object,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        metadata: Mapping[str, object] | None = None,
        ttl: float | timedelta | None = None,
        durable: bool | None = None,
    ) -> bool:
        """Write a value only if the key is absent. False: it was there, and nothing was written."""
        namespace, key = check_namespace(namespace), check_key(key)
        text = encode(value, self._max_value_bytes)
        encoded = None if metadata is None else self._encode_metadata(metadata)
        lasting = ttl_ms(ttl)

        def step(rows: Primitives, now: int) -> bool:
            if _live(rows, namespace, key, now) is not None:
                return False
            self._put(rows, namespace, (key, text, encoded, expiry(now, lasting)), now)
            return True

        return self._together(step, durable=durable)

    def modify(
        self,
        key: str,
        function: Callable[[Any], object],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        default: object = MISSING,
        ttl: float | timedelta | Keep | None = KEEP,
        if_version: int | None = None,
        durable: bool | None = None,
    ) -> Any:
        """Read, change and write in one step that nobody comes between; gives the new value.

        `function` takes the value (a copy of `default` where there is none) and returns the new one. It may be called
        again after a conflict, and must not use the store. Metadata stays, the expiry too unless `ttl` is given.

        Raises KeyNotFoundError without `default`, VersionConflictError, InvalidValueError where the function returns
        None or what is not JSON, and whatever the function raises. Nothing is written then.
        """
        namespace, key = check_namespace(namespace), check_key(key)
        check_function("function", function)
        start = None if default is MISSING else encode(default, self._max_value_bytes)
        lasting, expected = ttl_or_keep(ttl), check_if_version(if_version)

        def change(text: str | None) -> str:
            if text is None and start is None:
                raise KeyNotFoundError(f"there is no key {key!r} in namespace {namespace!r}")
            value = function(decode(text or start or "", namespace, key))
            if value is None:
                raise InvalidValueError(f"the function given to modify({key!r}) returned None: return the new value")
            if iscoroutine(value):
                value.close()
                raise InvalidValueError(
                    f"the function given to modify({key!r}) is an async one, which has not run: it has to be a plain "
                    "function, of an AsyncStorage too (run_transaction takes async ones there)"
                )
            return encode(value, self._max_value_bytes)

        return self._change(namespace, key, change, lasting, expected, durable, alone=True)

    def merge(
        self,
        key: str,
        patch: Mapping[str, object],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        ttl: float | timedelta | Keep | None = KEEP,
        if_version: int | None = None,
        durable: bool | None = None,
    ) -> Any:
        """Change the members of a document that `patch` names, by JSON Merge Patch (RFC 7396); gives the new value.

        A member that is None in the patch is removed, mappings are merged, everything else is replaced. A missing key,
        or a value that is no object, counts as {}.
        """
        namespace, key = check_namespace(namespace), check_key(key)
        changes = decode(encode_object(patch, self._max_value_bytes, what="patch"), namespace, key)

        def change(text: str | None) -> str:
            target = None if text is None else decode(text, namespace, key)
            return encode(merge_patch(target, changes), self._max_value_bytes)

        return self._change(namespace, key, change, ttl_or_keep(ttl), check_if_version(if_version), durable)

    @overload
    def increment(
        self,
        key: str,
        by: int = 1,
        *,
        namespace: str = ...,
        field: str | None = ...,
        ttl: float | timedelta | Keep | None = ...,
        durable: bool | None = ...,
    ) -> int: ...
    @overload
    def increment(
        self,
        key: str,
        by: float,
        *,
        namespace: str = ...,
        field: str | None = ...,
        ttl: float | timedelta | Keep | None = ...,
        durable: bool | None = ...,
    ) -> float: ...
    def increment(
        self,
        key: str,
        by: float = 1,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        field: str | None = None,
        ttl: float | timedelta | Keep | None = KEEP,
        durable: bool | None = None,
    ) -> float:
        """Add to a number, or to the number at the path `field` of a document; gives the sum.

        A missing key or field starts at 0. An existing expiry stays: `ttl` counts only when the key is created.

        Raises InvalidValueError where there is no number, for an int step onto a float (give 1.0), and where the sum
        does not fit 64 bits. Nothing is written then.
        """
        return self._increment(namespace, key, by, field, ttl, durable)

    def touch(self, key: str, *, namespace: str = DEFAULT_NAMESPACE, ttl: float | timedelta | None) -> bool:
        """Set when an entry expires, counted from now; None: it stays. False: there is no such entry."""
        namespace, key = check_namespace(namespace), check_key(key)
        lasting = ttl_ms(ttl)

        def step(rows: Primitives, now: int) -> bool:
            row = _live(rows, namespace, key, now)
            if row is not None:
                self._put(rows, namespace, (key, row.value, None, expiry(now, lasting)), now)
            return row is not None

        return self._together(step)

    @overload
    def take(self, key: str, *, namespace: str = ..., durable: bool | None = ...) -> Entry[Any]: ...
    @overload
    def take(self, key: str, default: D, *, namespace: str = ..., durable: bool | None = ...) -> Entry[Any] | D: ...
    def take(
        self,
        key: str,
        default: object = MISSING,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        durable: bool | None = None,
    ) -> Any:
        """Remove an entry and give it, so that of several callers one gets it. Without `default`: KeyNotFoundError."""
        taken = self._take(namespace, key, None, durable)
        return _default_or_raise(default, namespace, key) if taken is None else taken

    def delete(
        self,
        key: str,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        if_version: int | None = None,
        durable: bool | None = None,
    ) -> bool:
        """Remove an entry. False: there was none. Raises VersionConflictError where `if_version` does not hold."""
        namespace, key = check_namespace(namespace), check_key(key)
        if if_version is None and not durable:
            return self._writing().delete(namespace, (key,), self._now()) > 0
        expected = check_if_version(if_version)

        def step(rows: Primitives, now: int) -> bool:
            if expected is not None:
                _expect(expected, _live(rows, namespace, key, now), namespace, key)
            return rows.delete(namespace, [key], now) > 0

        return self._together(step, durable=durable)

    def has(self, key: str, *, namespace: str = DEFAULT_NAMESPACE) -> bool:
        """Whether the key is there."""
        return self._reading().has(check_namespace(namespace), check_key(key), self._now())

    def get_metadata(self, key: str, *, namespace: str = DEFAULT_NAMESPACE) -> dict[str, Any]:
        """The metadata of an entry, {} where it has none. Raises KeyNotFoundError."""
        namespace, key = check_namespace(namespace), check_key(key)
        row = _live(self._reading(), namespace, key, self._now())
        if row is None:
            raise KeyNotFoundError(f"there is no key {key!r} in namespace {namespace!r}")
        return decode_object(row.metadata, namespace, key)

    def set_metadata(
        self,
        key: str,
        metadata: Mapping[str, object],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        merge: bool = True,
        if_version: int | None = None,
    ) -> int:
        """Change an entry's metadata and give its new version; `merge=False` replaces all of it.

        Merging is shallow: each name given replaces what it named, with None too. Raises KeyNotFoundError,
        VersionConflictError, InvalidValueError.
        """
        namespace, key = check_namespace(namespace), check_key(key)
        new = decode_object(self._encode_metadata(metadata), namespace, key)
        expected = check_if_version(if_version)

        def step(rows: Primitives, now: int) -> int:
            row = _live(rows, namespace, key, now)
            if expected is not None:
                _expect(expected, row, namespace, key)
            if row is None:
                raise KeyNotFoundError(f"there is no key {key!r} in namespace {namespace!r}")
            old = decode_object(row.metadata, namespace, key) if merge else {}
            text = self._encode_metadata(old | new)
            return self._put(rows, namespace, (key, row.value, text, row.expires_at), now)

        return self._together(step)

    # ---- many

    def get_many(self, keys: Iterable[str], *, namespace: str = DEFAULT_NAMESPACE) -> dict[str, Any]:
        """The values of those keys that are there, in the order asked."""
        namespace = check_namespace(namespace)
        asked = each_key(keys)
        now_ms = self._now() // 1000
        texts = {key: text for key, text, _ in _live_values(self._reading(), namespace, asked, now_ms)}
        return {key: decode(texts[key], namespace, key) for key in asked if key in texts}

    def get_entries(self, keys: Iterable[str], *, namespace: str = DEFAULT_NAMESPACE) -> dict[str, Entry[Any]]:
        """The entries of those keys that are there, in the order asked."""
        namespace = check_namespace(namespace)
        asked = each_key(keys)
        now_ms = self._now() // 1000
        found = self._reading().rows(namespace, asked)
        try:
            rows = {row.key: row for row in found if row.expires_at is None or row.expires_at > now_ms}
        except TypeError:
            raise damaged(namespace, None) from None
        return {key: entry_of(namespace, rows[key]) for key in asked if key in rows}

    def set_many(
        self,
        items: Mapping[str, object] | Iterable[tuple[str, object] | Put],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        metadata: Mapping[str, object] | None = None,
        ttl: float | timedelta | None = None,
        overwrite: bool = True,
        durable: bool | None = None,
    ) -> dict[str, int]:
        """Write all of the items or none; gives each key's new version. Twice the same key: the last wins.

        Raises BatchError before anything is written: `.errors` holds the error of each bad item, and with
        `overwrite=False` a KeyExistsError for each key that is there.
        """
        namespace = check_namespace(namespace)
        batch = self._batch(items, metadata, ttl)

        def step(rows: Primitives, now: int) -> dict[str, int]:
            if not overwrite:
                there = set(_live_keys(rows, namespace, list(batch), now))  # in any order
                _refuse_existing([key for key in batch if key in there], namespace)
            keys = sorted(batch)
            versions = self._put_batch(rows, namespace, batch, keys, now)
            written = dict(zip(keys, versions, strict=True))
            return {key: written[key] for key in batch}

        return self._together(step, durable=durable)

    def add_many(
        self,
        items: Mapping[str, object] | Iterable[tuple[str, object] | Put],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        metadata: Mapping[str, object] | None = None,
        ttl: float | timedelta | None = None,
        durable: bool | None = None,
    ) -> list[str]:
        """Write those items whose key is absent, in one step; gives the keys that were added, in the order given."""
        namespace = check_namespace(namespace)
        batch = self._batch(items, metadata, ttl)

        def step(rows: Primitives, now: int) -> list[str]:
            there = set(_live_keys(rows, namespace, list(batch), now))
            added = [key for key in batch if key not in there]
            self._put_batch(rows, namespace, batch, sorted(added), now)
            return added

        return self._together(step, durable=durable)

    def delete_many(
        self, keys: Iterable[str], *, namespace: str = DEFAULT_NAMESPACE, durable: bool | None = None
    ) -> int:
        """Remove the entries of these keys in one step; gives how many were there."""
        namespace = check_namespace(namespace)
        asked = sorted(each_key(keys))
        return self._together(lambda rows, now: rows.delete(namespace, asked, now), durable=durable)

    def load(
        self,
        items: Iterable[tuple[str, object] | Put] | Mapping[str, object],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        batch_size: int = 1000,
        on_error: Literal["stop", "skip"] = "stop",
        progress: Callable[[LoadReport], object] | None = None,
    ) -> LoadReport:
        """Write a stream of items of any length in bounded memory, a transaction for every `batch_size` of them.

        Each item is checked when it is drawn. A bad one ends the load with BatchError and keeps nothing of its batch
        (earlier batches stay; `.report` counts them), or with `on_error="skip"` is left out and reported. `progress`
        is called after each batch. Inside a transaction everything is part of that transaction.
        """
        check_whole("batch_size", batch_size, least=1)
        check_one_of("on_error", on_error, ("stop", "skip"))
        check_progress(progress)
        namespace = check_namespace(namespace)
        self._writing()

        def write(batch: Batch) -> None:
            self._together(lambda rows, now: self._put_batch(rows, namespace, batch, sorted(batch), now))

        loader = Loader(write, self._max_value_bytes, batch_size, on_error, progress)
        return loader.run(pairs(items))

    def clear(self, *, namespace: str = DEFAULT_NAMESPACE) -> int:
        """Remove every entry of a namespace, which stays registered; gives how many there were."""
        return self._writing().clear(check_namespace(namespace), self._now())

    def clear_all(self) -> int:
        """Remove every entry of every namespace; gives how many there were."""
        return self._writing().clear(None, self._now())

    # ---- what the views of a namespace need besides

    def _get_or_add(self, namespace: str, key: str, value: object) -> Any:
        """The value of a key, which is written first where there is none."""
        namespace, key = check_namespace(namespace), check_key(key)
        text = encode(value, self._max_value_bytes)

        def step(rows: Primitives, now: int) -> str:
            row = _live(rows, namespace, key, now)
            if row is not None:
                return row.value
            self._put(rows, namespace, (key, text, None, None), now)
            return text

        return decode(self._together(step), namespace, key)

    def _increment(
        self,
        namespace: str,
        key: str,
        by: float,
        field: str | None,
        ttl: float | timedelta | Keep | None,
        durable: bool | None,
        accept: Callable[[Any], object] | None = None,
    ) -> float:
        """`increment`, with a function that raises where the document it makes is not acceptable."""
        namespace, key = check_namespace(namespace), check_key(key)
        add = increment(by, field, key)
        lasting = ttl_or_keep(ttl)

        def step(rows: Primitives, now: int) -> float:
            row = _live(rows, namespace, key, now)
            document, total = add(MISSING if row is None else decode(row.value, namespace, key))
            if accept is not None:
                accept(document)
            expires_at = expiry(now, lasting) if row is None else row.expires_at
            self._put(rows, namespace, (key, encode(document, self._max_value_bytes), None, expires_at), now)
            return total

        return self._together(step, durable=durable, alone=accept is not None)

    def _take(
        self, namespace: str, key: str, convert: Callable[[Entry[Any]], E] | None, durable: bool | None = None
    ) -> E | Entry[Any] | None:
        """Remove an entry and give it, converted where that is wanted; what cannot be converted is not removed."""
        namespace, key = check_namespace(namespace), check_key(key)

        def step(rows: Primitives, now: int) -> E | Entry[Any] | None:
            row = _live(rows, namespace, key, now)
            return None if row is None else _remove(rows, namespace, row, now, convert)

        return self._together(step, durable=durable, alone=convert is not None)

    def _take_first(self, namespace: str, convert: Callable[[Entry[Any]], E] | None) -> E | Entry[Any]:
        """Remove the first entry in key order and give it."""

        def step(rows: Primitives, now: int) -> E | Entry[Any]:
            found = rows.page(namespace, KeyRange(), now, limit=1)
            if not found:
                raise KeyNotFoundError(f"the namespace {namespace!r} is empty")
            return _remove(rows, namespace, found[0], now, convert)

        return self._together(step, alone=convert is not None)

    # ---- what several verbs share

    def _put(self, rows: Primitives, namespace: str, row: PutRow, now: int) -> int:
        version = rows.put(namespace, (row,), now)[0]
        if row[3] is not None:
            rows.purge(now, _PURGED_ALONG)
            self._expiring()
        return version

    def _put_batch(self, rows: Primitives, namespace: str, batch: Batch, keys: list[str], now: int) -> list[int]:
        """Write these keys of a batch in the order given, which is key order; gives their versions."""
        new: list[PutRow] = []
        expiring = 0
        for key in keys:
            text, metadata, lasting = batch[key]
            if lasting is None:
                new.append((key, text, metadata, None))
            else:
                new.append((key, text, metadata, expiry(now, lasting)))
                expiring += 1
        versions = rows.put(namespace, new, now)
        if expiring:
            rows.purge(now, expiring + _PURGED_ALONG)
            self._expiring()
        return versions

    def _encode_metadata(self, metadata: object) -> str:
        return encode_object(metadata, self._max_value_bytes, what="metadata")

    def _batch(self, items: object, metadata: object, ttl: float | timedelta | None) -> Batch:
        encoded = None if metadata is None else self._encode_metadata(metadata)
        batch, errors = collect(pairs(items), encoded, ttl_ms(ttl), self._max_value_bytes)
        if errors:
            raise batch_error(errors, "nothing was written")
        return batch

    def _change(
        self,
        namespace: str,
        key: str,
        change: Callable[[str | None], str],
        lasting: int | Keep | None,
        expected: int | None,
        durable: bool | None,
        *,
        alone: bool = False,
    ) -> Any:
        """Replace a value by what `change` makes of its text (None where there is none); gives the new value."""

        def step(rows: Primitives, now: int) -> str:
            row = _live(rows, namespace, key, now)
            if expected is not None:
                _expect(expected, row, namespace, key)
            text = change(None if row is None else row.value)
            if lasting is KEEP:
                expires_at = None if row is None else row.expires_at
            else:
                expires_at = expiry(now, lasting)
            self._put(rows, namespace, (key, text, None, expires_at), now)
            return text

        return decode(self._together(step, durable=durable, alone=alone), namespace, key)


def _live(rows: Primitives, namespace: str, key: str, now: int) -> Row | None:
    found = rows.rows(namespace, (key,))
    if not found:
        return None
    row = found[0]
    try:
        return row if row.expires_at is None or row.expires_at > now // 1000 else None
    except TypeError:
        raise damaged(namespace, key) from None


def _live_keys(rows: Primitives, namespace: str, keys: list[str], now: int) -> list[str]:
    return [key for key, _, _ in _live_values(rows, namespace, keys, now // 1000)]


def _live_values(rows: Primitives, namespace: str, keys: list[str], now_ms: int) -> list[tuple[str, str, int | None]]:
    found = rows.values(namespace, keys)
    try:
        return [row for row in found if row[2] is None or row[2] > now_ms]
    except TypeError:
        raise damaged(namespace, None) from None


def _remove(
    rows: Primitives, namespace: str, row: Row, now: int, convert: Callable[[Entry[Any]], E] | None
) -> E | Entry[Any]:
    entry = entry_of(namespace, row)
    converted = entry if convert is None else convert(entry)
    rows.delete(namespace, [row.key], now)
    return converted


def _expect(expected: int, row: Row | None, namespace: str, key: str) -> None:
    actual = 0 if row is None else row.version
    if actual != expected:
        there = "does not exist" if row is None else f"has version {actual}"
        message = f"the key {key!r} in namespace {namespace!r} {there}, and if_version={expected} was given"
        raise VersionConflictError(message, expected, actual)


def _refuse_existing(there: list[str], namespace: str) -> None:
    if there:
        reason = f"is already in namespace {namespace!r}"
        errors = {key: KeyExistsError(f"the key {key!r} {reason}") for key in there}
        raise batch_error(errors, "nothing was written")


def _default_or_raise(default: object, namespace: str, key: str) -> object:
    if default is MISSING:
        raise KeyNotFoundError(f"there is no key {key!r} in namespace {namespace!r}")
    return default
