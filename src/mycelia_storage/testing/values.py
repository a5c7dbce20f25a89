"""The contract of values, metadata, keys and namespace names: what is taken, what comes back, what is refused.

Run by subclasses of `StorageContract`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import BatchError, InvalidKeyError, InvalidNamespaceError, InvalidValueError, KeyExistsError
from mycelia_storage.testing.bad_values import (
    BAD_VALUES,
    PRECISE,
    BadValue,
    nested_dicts,
    nested_lists,
)
from mycelia_storage.testing.base import ContractBase, is_refused
from mycelia_storage.testing.calls import BATCH_WRITES, NAMESPACE_CALLS, READS_OF_A_KEY, WRITES_OF_A_KEY
from mycelia_storage.testing.compare import difference

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mycelia_storage import Storage

GOOD_VALUES: tuple[object, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    1234567890123456789,
    0.0,
    -0.0,
    1.0,
    0.1,
    0.30000000000000004,
    1e16,
    1e22,
    1e23,
    1.7976931348623157e308,
    5e-324,
    2.2250738585072014e-308,
    -123456789.12345679,
    "",
    "text",
    "null",
    "NaN",
    "true",
    "\\u0000",
    "\\x00",
    '"\\/\b\f\n\r\t',
    "\x01\x1f\x7f\x80\x9f",
    "\u2028\u2029",
    "\ufeff",
    "\ufffe\uffff",
    "e\u0301 \u00e9",
    "\U0001f600\U0010ffff",
    "\u202eabc",
    "9" * 40,
    "[" * 1000 + "{" * 1000,
    "x" * 100_000,
    [],
    {},
    [list[Any](), dict[str, Any](), [list[Any]()]],
    [None] * 300,
    [[1]] * 300,
    [0, False, 0.0, "0", None],
    [1, True, 1.0, "1"],
    {"b": 1, "a": 2, "c": {"z": 1, "y": 2}},
    {"": 1, " ": 2, "a.b": 3, "$key": 4, "\U0001f600": 5, "'": 6, '"': 7, "\n": 8, "0": 9},
    {"True": True, "1": 1, "1.0": 1.0},
    {str(n): [n, float(n)] for n in range(300)},
    nested_lists(200),
    nested_dicts(200),
    [nested_lists(199), nested_dicts(199)],
)
GOOD_KEYS = (
    " ",
    "a",
    " a ",
    "A",
    "%",
    "*",
    "\\",
    "'; DROP TABLE storage_entries; --",
    '"',
    "\n",
    "\x01",
    "\x7f",
    "a/b/../c",
    "\u00e9",
    "e\u0301",
    "\U0001f600",
    "\U0010ffff",
    "x" * 1024,
    "\u00e9" * 512,
    "\u20ac" * 341 + "x",
    "\U0001f600" * 256,
)
BAD_KEYS: tuple[Any, ...] = (
    "",
    "x" * 1025,
    "\u00e9" * 512 + "x",
    "\U0001f600" * 257,
    "\x00",
    "a\x00b",
    "\ud800",
    "a\udfffb",
    None,
    1,
    True,
    1.5,
    b"key",
    bytearray(b"key"),
    ("a",),
    ["a"],
    {"a": 1},
    ...,
)
GOOD_NAMES = (
    " ",
    "a",
    "A",
    " a ",
    "%",
    "_",
    "a.b/c:d",
    "\\",
    "'\"",
    "\u00a0",
    "\u00e9",
    "e\u0301",
    "\U0001f600",
    "x" * 255,
    "\u00e9" * 127 + "x",
    "\U0001f600" * 63 + "xyz",
)
BAD_NAMES: tuple[Any, ...] = (
    "",
    "x" * 256,
    "\u00e9" * 128,
    "\U0001f600" * 64,
    "*",
    "a*",
    "\x00",
    "a\nb",
    "\t",
    "\x1f",
    "\x7f",
    "\x80",
    "\x9f",
    "\ud800",
    None,
    1,
    True,
    b"a",
    ("a",),
    ["a"],
)


def _replaced_by(value: object) -> Callable[[Any], object]:
    return lambda _: [value]


# Every way a value gets in; "there" is an entry that exists, "new" one that does not.
WRITES_OF_A_VALUE: dict[str, Callable[[Any, Any], object]] = {
    "set": lambda store, value: store.set("there", value),
    "add": lambda store, value: store.add("new", value),
    "modify": lambda store, value: store.modify("there", _replaced_by(value)),
    "merge": lambda store, value: store.merge("there", {"a": value}),
    "set, as metadata": lambda store, value: store.set("there", 1, metadata={"a": value}),
    "set_metadata": lambda store, value: store.set_metadata("there", {"a": value}),
    "set_metadata without merge": lambda store, value: store.set_metadata("there", {"a": value}, merge=False),
    "setdefault": lambda store, value: store.namespace("default").setdefault("new", value),
    "item": lambda store, value: store.namespace("default").__setitem__("new", value),
    "set_many": lambda store, value: store.set_many([("fine", 1), ("new", value)]),
    "add_many": lambda store, value: store.add_many([("fine", 1), ("new", value)]),
    "load": lambda store, value: store.load([("fine", 1), ("new", value)]),
    "update": lambda store, value: store.namespace("default").update({"fine": 1, "new": value}),
}
BATCHES = {"set_many", "add_many", "load", "update"}


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 30 else f"{text[:26]}..{len(text)}"


class ValuesContract(ContractBase):
    """Values and metadata."""

    @pytest.mark.parametrize("value", GOOD_VALUES, ids=_short)
    def test_a_value_comes_back_equal_in_value_and_type(self, store: Storage, value: object) -> None:
        store.set("key", value, metadata={"m": value} if not _is_too_deep_inside(value) else None)
        assert not difference(store.get("key"), value)
        assert not difference(store.get_entry("key").value, value)
        assert not difference(store.get_many(["key"])["key"], value)
        assert not difference(next(iter(store.scan())).value, value)
        if not _is_too_deep_inside(value):
            assert not difference(store.get_metadata("key"), {"m": value})
        assert not difference(store.take("key").value, value)

    def test_values_come_back_after_reopening(self, tmp_path: Path) -> None:
        values = {f"key{n:03}": value for n, value in enumerate(GOOD_VALUES)}
        with self.open_store(tmp_path) as store:
            store.set_many(values)
        with self.open_store(tmp_path) as store:
            assert not difference(store.get_many(list(values)), values if self.persistent else {})

    def test_a_tuple_comes_back_as_a_list(self, store: Storage) -> None:
        store.set("key", (1, (2, [3, ()])), metadata={"a": ((),)})
        entry = store.get_entry("key")
        expected: tuple[Any, Any] = ([1, [2, [3, list[Any]()]]], {"a": [list[Any]()]})
        assert not difference((entry.value, entry.metadata), expected)

    def test_the_same_object_twice_is_no_loop(self, store: Storage) -> None:
        shared = {"a": [1]}
        store.set("key", [shared, shared, {"x": shared}])
        assert store.get("key") == [{"a": [1]}, {"a": [1]}, {"x": {"a": [1]}}]

    @pytest.mark.parametrize("bad", BAD_VALUES, ids=lambda bad: bad.name)
    def test_a_bad_value_is_refused_and_nothing_written(self, store: Storage, bad: BadValue) -> None:
        with pytest.raises(InvalidValueError) as caught:
            store.set("key", bad.make(), namespace="fresh")
        assert str(caught.value).startswith(f"${bad.path}")
        assert not store.has("key", namespace="fresh")
        assert store.list_namespaces() == ["default"]

    @pytest.mark.parametrize("bad", PRECISE, ids=lambda bad: bad.name)
    def test_the_error_names_the_place_inside_the_value(self, store: Storage, bad: BadValue) -> None:
        value = {"fine": [1, {"b": None}], "a": {"b": [0, 1.5, "2", bad.make()]}, "later": bad.make()}
        with pytest.raises(InvalidValueError) as caught:
            store.set("key", value)
        assert str(caught.value).startswith(f"$.a.b[3]{bad.path}")

    def test_every_writing_verb_refuses_a_bad_value(self, store: Storage) -> None:
        store.set("there", {"n": 1}, metadata={"by": "me"})
        before = store.get_entry("there")
        taken = [
            f"{bad.name} by {verb}"
            for bad in BAD_VALUES
            for verb, call in WRITES_OF_A_VALUE.items()
            if not is_refused(BatchError if verb in BATCHES else InvalidValueError, call, store, bad.make())
        ]
        assert not taken
        assert not difference(store.get_entry("there"), before)
        assert store.list_keys() == ["there"]

    def test_an_error_names_neither_the_value_nor_its_neighbours(self, store: Storage) -> None:
        with pytest.raises(InvalidValueError) as caught:
            store.set("key", {"password": "hunter2", "data": b"hunter3"})
        assert "hunter" not in str(caught.value)
        assert "bytes" in str(caught.value)

    def test_an_add_of_a_bad_value_is_refused_though_the_key_is_there(self, store: Storage) -> None:
        store.set("key", 1)
        with pytest.raises(InvalidValueError):
            store.add("key", {1})
        with pytest.raises((InvalidValueError, KeyExistsError)):
            store.set("key", {1}, overwrite=False)

    def test_a_value_may_be_as_large_as_allowed(self, tmp_path: Path) -> None:
        with self.open_store(tmp_path, max_value_bytes=100) as store:
            for value in ("x" * 98, "\u00e9" * 49, [1] * 49, {"a": "x" * 92}):
                store.set("key", value)
                assert store.get("key") == value
            for value in ("x" * 99, "\u00e9" * 49 + "x", [1] * 50, {"a": "x" * 93}, '"' * 50):
                with pytest.raises(InvalidValueError, match=r"^\$.*max_value_bytes"):
                    store.set("other", value)
            with pytest.raises(BatchError):
                store.set_many({"small": 1, "large": "x" * 99})
            with pytest.raises(InvalidValueError):
                store.merge("key", {"b": "x" * 99})
            assert store.list_keys() == ["key"]

    @pytest.mark.parametrize("metadata", ["text", 1, [("a", 1)], True, {1: 2}, {"a": {1}}, {"a\x00": 1}], ids=repr)
    def test_metadata_is_a_mapping_of_values(self, store: Storage, metadata: Any) -> None:
        with pytest.raises(InvalidValueError):
            store.set("key", 1, metadata=metadata, namespace="fresh")
        with pytest.raises(InvalidValueError):
            store.add("key", 1, metadata=metadata, namespace="fresh")
        assert store.list_namespaces() == ["default"]
        store.set("key", 1)
        with pytest.raises(InvalidValueError):
            store.set_metadata("key", metadata)
        assert store.get_metadata("key") == {}


def _is_too_deep_inside(value: object) -> bool:
    """Whether the value, one level deeper, is deeper than what is allowed."""
    depth, level = 0, [value]
    while level:
        depth += any(isinstance(item, list | dict) for item in level)
        level = [inner for item in level for inner in _members(item)]
    return depth >= 200


def _members(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return list(item.values())  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return list(item) if isinstance(item, list) else []  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


class KeysContract(ContractBase):
    """Keys and the names of namespaces."""

    @pytest.mark.parametrize("key", GOOD_KEYS, ids=_short)
    def test_a_key_is_kept_as_it_is(self, store: Storage, key: str) -> None:
        store.set(key, 1)
        assert store.list_keys() == [key]
        assert store.get(key) == 1
        assert store.get_entry(key).key == key
        assert store.get_many([key]) == {key: 1}
        assert store.list_keys(prefix=key) == [key]
        assert store.delete(key) is True

    def test_keys_are_not_trimmed_folded_or_normalised(self, store: Storage) -> None:
        keys = ["a", "A", " a", "a ", "\u00e9", "e\u0301", "\u00c9", "\u212b", "\u00c5"]
        store.set_many({key: n for n, key in enumerate(keys)})
        assert store.count() == len(keys)
        assert store.get_many(keys) == {key: n for n, key in enumerate(keys)}

    @pytest.mark.parametrize("verb", sorted(READS_OF_A_KEY | WRITES_OF_A_KEY))
    def test_every_verb_refuses_a_bad_key(self, store: Storage, verb: str) -> None:
        call = (READS_OF_A_KEY | WRITES_OF_A_KEY)[verb]
        taken = [key for key in BAD_KEYS if not is_refused(InvalidKeyError, call, store, key, "fresh")]
        assert not taken
        assert store.list_namespaces() == ["default"]

    @pytest.mark.parametrize("verb", sorted(BATCH_WRITES))
    @pytest.mark.parametrize("key", BAD_KEYS, ids=_short)
    def test_every_batch_tells_a_bad_key(self, store: Storage, verb: str, key: Any) -> None:
        with pytest.raises(BatchError) as caught:
            BATCH_WRITES[verb](store, key, "fresh")
        (error,) = caught.value.errors.values()
        assert isinstance(error, InvalidKeyError)
        assert store.list_namespaces() == ["default"]

    @pytest.mark.parametrize("name", GOOD_NAMES, ids=_short)
    def test_a_namespace_is_called_as_it_is(self, store: Storage, name: str) -> None:
        store.set("key", 1, namespace=name)
        assert store.list_namespaces() == sorted(["default", name])
        assert store.get_entry("key", namespace=name).namespace == name
        assert store.list_namespaces(prefix=name) == [name]
        store.delete_namespace(name, recursive=True)
        assert store.list_namespaces() == ["default"]

    @pytest.mark.parametrize("verb", sorted(READS_OF_A_KEY | WRITES_OF_A_KEY | BATCH_WRITES))
    def test_every_verb_on_a_key_refuses_a_bad_namespace(self, store: Storage, verb: str) -> None:
        call = (READS_OF_A_KEY | WRITES_OF_A_KEY | BATCH_WRITES)[verb]
        taken = [name for name in BAD_NAMES if not is_refused(InvalidNamespaceError, call, store, "key", name)]
        assert not taken
        assert store.list_namespaces() == ["default"]

    @pytest.mark.parametrize("verb", sorted(NAMESPACE_CALLS))
    def test_every_verb_on_a_namespace_refuses_a_bad_one(self, store: Storage, verb: str) -> None:
        call = NAMESPACE_CALLS[verb]
        taken = [name for name in BAD_NAMES if not is_refused(InvalidNamespaceError, call, store, name)]
        assert not taken
        assert store.list_namespaces() == ["default"]
