"""The contract of a namespace's view as a mapping: what a dict does, and the verbs beside it.

Run by subclasses of `StorageContract`.
"""

from __future__ import annotations

from collections.abc import ItemsView, KeysView, MutableMapping, ValuesView
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import (
    BatchError,
    InvalidKeyError,
    InvalidNamespaceError,
    InvalidValueError,
    KeyNotFoundError,
    StorageClosedError,
)
from mycelia_storage.testing.base import ContractBase
from mycelia_storage.testing.calls import (
    BATCH_WRITES,
    READS_OF_A_KEY,
    WRITES_OF_A_KEY,
)
from mycelia_storage.testing.compare import difference

if TYPE_CHECKING:
    from pathlib import Path

    from mycelia_storage import Namespace, Storage
    from mycelia_storage.testing.clock import FakeClock

# Verbs whose names a mapping uses otherwise, and those that a view has no use for.
CLASHING = {"get", "clear"}
DATA_VERBS = (
    READS_OF_A_KEY.keys()
    | WRITES_OF_A_KEY.keys()
    | BATCH_WRITES.keys()
    | {"list_keys", "scan", "count", "query", "pages", "explain", "delete_where"}
    | {"create_index", "drop_index", "list_indexes"}
)


class NamespaceViewContract(ContractBase):
    """The view that `Storage.namespace` gives."""

    @pytest.fixture
    def view(self, store: Storage) -> Namespace[Any]:
        return store.namespace("place")

    def test_a_view_is_a_mutable_mapping(self, view: Namespace[Any]) -> None:
        assert isinstance(view, MutableMapping)

    def test_a_view_registers_nothing(self, store: Storage) -> None:
        view = store.namespace("place")
        assert (len(view), list(view), bool(view), "key" in view) == (0, [], False, False)
        assert store.list_namespaces() == ["default"]

    @pytest.mark.parametrize("name", ["", "a*b", "a\nb", "a\x00b", "x" * 256, "\ud800", None, 1], ids=ascii)
    def test_a_view_of_a_bad_name_is_refused(self, store: Storage, name: Any) -> None:
        with pytest.raises(InvalidNamespaceError):
            store.namespace(name)

    def test_a_view_and_the_store_see_the_same(self, store: Storage, view: Namespace[Any]) -> None:
        view["key"] = {"a": 1}
        assert store.get("key", namespace="place") == {"a": 1}
        store.set("key", 2, namespace="place")
        assert view["key"] == 2
        store.delete("key", namespace="place")
        assert "key" not in view

    def test_a_missing_key_is_a_key_error(self, view: Namespace[Any]) -> None:
        with pytest.raises(KeyNotFoundError, match="missing"):
            view["missing"]
        with pytest.raises(KeyNotFoundError, match="missing"):
            del view["missing"]
        with pytest.raises(KeyNotFoundError, match="missing"):
            view.pop("missing")
        with pytest.raises(KeyError):
            view.popitem()

    def test_del_removes(self, view: Namespace[Any]) -> None:
        view["key"] = 1
        del view["key"]
        assert "key" not in view

    def test_a_key_that_is_no_str_is_refused_but_in_is_false(self, view: Namespace[Any]) -> None:
        key: Any
        for key in (1, None, b"key", ("a",), ["a"]):
            with pytest.raises(InvalidKeyError):
                view[key]
            with pytest.raises(InvalidKeyError):
                view[key] = 1
            with pytest.raises(InvalidKeyError):
                del view[key]
            with pytest.raises(InvalidKeyError):
                view.get(key)
            assert key not in view
            assert key not in view.keys()  # noqa: SIM118 - the view over keys is what is tested
        assert len(view) == 0

    def test_setting_an_item_is_a_plain_set(self, store: Storage, view: Namespace[Any], clock: FakeClock) -> None:
        view.set("key", 1, metadata={"by": "me"}, ttl=60)
        clock.advance(1)
        view["key"] = 2
        entry = store.get_entry("key", namespace="place")
        assert (entry.value, entry.metadata, entry.expires_at) == (2, {"by": "me"}, None)
        with pytest.raises(InvalidValueError):
            view["other"] = {1}
        assert "other" not in view

    def test_get_is_that_of_a_dict(self, view: Namespace[Any]) -> None:
        view["key"] = None
        assert view.get("key", 1) is None
        assert view.get("missing") is None
        assert view.get("missing", 1) == 1

    def test_pop_gives_the_value_or_the_default(self, view: Namespace[Any]) -> None:
        view["key"] = [1]
        assert view.pop("key") == [1]
        assert view.pop("key", "default") == "default"
        assert view.pop("key", None) is None
        assert len(view) == 0

    def test_popitem_gives_one_item_after_the_other(self, view: Namespace[Any]) -> None:
        items = {"a": 1, "b": 2, "c": 3}
        view.update(items)
        popped = [view.popitem() for _ in range(3)]
        assert all(type(item) is tuple for item in popped)
        assert dict(popped) == items
        assert not view

    def test_setdefault_gives_what_is_there(self, view: Namespace[Any]) -> None:
        assert view.setdefault("key", [1]) == [1]
        assert view.setdefault("key", [2]) == [1]
        assert view["key"] == [1]
        assert view.setdefault("none") is None
        assert "none" in view

    def test_what_setdefault_gives_is_the_callers_own(self, view: Namespace[Any]) -> None:
        given: list[int] = []
        view.setdefault("key", given).append(1)
        given.append(2)
        view.setdefault("key", given).append(3)
        assert view["key"] == []

    def test_update_takes_what_a_dict_takes(self, view: Namespace[Any]) -> None:
        view.update({"a": 1})
        view.update([("b", 2)])
        view.update(c=3)
        view.update({"d": 4}, e=5)
        view.update()
        view.update(other=6, self=7)
        assert dict(view) == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "other": 6, "self": 7}

    def test_update_takes_another_view(self, store: Storage, view: Namespace[Any]) -> None:
        store.namespace("source").update(a=1, b=2)
        source: Any = store.namespace("source")
        view.update(source)
        assert dict(view) == {"a": 1, "b": 2}

    def test_update_takes_what_only_has_keys(self, view: Namespace[Any]) -> None:
        class Keyed:
            def keys(self) -> list[str]:
                return ["a", "b"]

            def __getitem__(self, key: str) -> str:
                return key + "!"

        keyed: Any = Keyed()
        view.update(keyed)
        assert dict(view) == {"a": "a!", "b": "b!"}

    def test_update_writes_all_or_nothing(self, view: Namespace[Any]) -> None:
        view["a"] = 0
        with pytest.raises(BatchError):
            view.update({"a": 1, "b": {1}})
        assert dict(view) == {"a": 0}

    def test_clear_removes_all_of_this_namespace(self, store: Storage, view: Namespace[Any]) -> None:
        view.update(a=1, b=2)
        store.set("c", 3)
        view.clear()
        assert len(view) == 0
        assert store.get("c") == 3

    def test_len_and_iteration_are_those_of_the_keys_in_order(self, view: Namespace[Any]) -> None:
        view.update({"b": 2, "\U0001f600": 3, "a": 1, "\ufffd": 4})
        assert len(view) == 4
        assert list(view) == ["a", "b", "\ufffd", "\U0001f600"]

    def test_reversed_is_refused_or_right(self, view: Namespace[Any]) -> None:
        view.update(b=2, a=1)
        wrong: Any = view
        try:
            backwards = list(reversed(wrong))
        except TypeError:
            return
        assert backwards == ["b", "a"]

    def test_a_view_over_keys(self, view: Namespace[Any]) -> None:
        keys = view.keys()
        view.update(b=2, a=1)
        assert (list(keys), len(keys), "a" in keys, "x" in keys) == (["a", "b"], 2, True, False)
        assert isinstance(keys, KeysView)
        assert keys & {"a", "x"} == {"a"}
        assert keys == {"a", "b"}

    def test_a_view_over_values(self, view: Namespace[Any]) -> None:
        values = view.values()
        view.update(b=[2], a=1)
        assert (list(values), len(values), [2] in values, 7 in values) == ([1, [2]], 2, True, False)
        assert isinstance(values, ValuesView)

    def test_a_view_over_items(self, view: Namespace[Any]) -> None:
        items = view.items()
        view.update(b=2, a=1)
        assert (list(items), len(items)) == ([("a", 1), ("b", 2)], 2)
        assert ("a", 1) in items
        assert ("a", 2) not in items
        assert ("x", 1) not in items
        assert isinstance(items, ItemsView)

    def test_a_namespace_may_be_changed_while_one_iterates(self, view: Namespace[Any]) -> None:
        view.update({f"key{n:03}": n for n in range(100)})
        for key, value in view.items():
            view[key] = value + 1
        assert list(view.values()) == list(range(1, 101))
        for key in view:
            del view[key]
        assert not view

    def test_the_or_operators_are_those_of_a_dict(self, view: Namespace[Any]) -> None:
        alias = view
        view |= {"a": 1}
        view |= [("b", 2)]
        assert view is alias
        assert dict(view) == {"a": 1, "b": 2}

    def test_truth_is_whether_there_is_an_entry(self, view: Namespace[Any], clock: FakeClock) -> None:
        assert not view
        view.set("key", 0, ttl=1)
        assert view
        clock.advance(1)
        assert not view

    def test_equality_is_identity(self, store: Storage, view: Namespace[Any]) -> None:
        view["a"] = 1
        other = store.namespace("place")
        assert view == view  # noqa: PLR0124 - equal to itself is what is tested
        contents: object = {"a": 1}
        assert view != contents
        assert (view == other) is (view is other)
        assert len({view, store.namespace("elsewhere")}) == 2
        assert hash(view) == hash(view)

    def test_a_view_becomes_a_dict(self, view: Namespace[Any]) -> None:
        view.update(b=2, a=1)
        assert not difference(dict(view), {"a": 1, "b": 2})
        assert {**view} == {"a": 1, "b": 2}

    def test_a_view_fits_a_pattern_for_mappings(self, view: Namespace[Any]) -> None:
        view.update(a=1, b=2)
        mapping: Any = view
        match mapping:
            case {"a": found}:
                assert found == 1
            case _:
                pytest.fail("a namespace's view is not matched as a mapping")

    def test_the_name_of_a_view_is_shown(self, view: Namespace[Any]) -> None:
        assert "place" in repr(view)

    # the verbs beside

    def test_a_view_has_every_data_verb(self, view: Namespace[Any]) -> None:
        lacking = {name for name in DATA_VERBS - CLASHING if not callable(getattr(view, name, None))}
        assert not lacking

    def test_the_verbs_of_a_view_take_no_namespace(self, view: Namespace[Any]) -> None:
        wrong: Any = view
        with pytest.raises(TypeError):
            wrong.set("key", 1, namespace="other")
        with pytest.raises(TypeError):
            wrong.count(namespace="other")

    def test_verbs_on_one_entry(self, view: Namespace[Any]) -> None:
        version = view.set("key", 1, metadata={"by": "me"}, if_version=0)
        assert view.get_entry("key").version == version
        assert view.get_entry("key").namespace == "place"
        assert view.get_entry("missing", None) is None
        assert view.add("key", 2) is False
        assert view.modify("key", lambda value: value + 1, if_version=version) == 2
        assert view.increment("key", 2) == 4
        assert view.has("key") is True
        assert view.get_metadata("key") == {"by": "me"}
        view.set_metadata("key", {"a": 1}, merge=False)
        assert view.get_metadata("key") == {"a": 1}
        assert view.touch("key", ttl=60) is True
        assert view.take("key").value == 4
        assert view.delete("key") is False
        view.set("document", {"a": 1, "b": 2})
        assert view.merge("document", {"a": None}) == {"b": 2}

    def test_verbs_on_many_entries(self, view: Namespace[Any], clock: FakeClock) -> None:
        assert set(view.set_many({"a": 1, "b": 2}, ttl=timedelta(minutes=1))) == {"a", "b"}
        assert view.get_entry("a").expires_at == clock.time + timedelta(minutes=1)
        assert view.add_many({"b": 0, "c": 3}) == ["c"]
        assert view.get_many(["c", "x", "a"]) == {"c": 3, "a": 1}
        assert list(view.get_entries(["c", "x", "a"])) == ["c", "a"]
        assert view.delete_many(["a", "x"]) == 1
        assert view.load([("d", 4)]).loaded == 1
        assert view.list_keys(reverse=True) == ["d", "c", "b"]
        assert view.list_keys(prefix="c", limit=1) == ["c"]
        assert [entry.value for entry in view.scan(prefix="b")] == [2]
        assert view.count() == 3

    def test_a_view_of_a_closed_store_is_closed(self, tmp_path: Path) -> None:
        store = self.open_store(tmp_path)
        view = store.namespace("place")
        store.close()
        with pytest.raises(StorageClosedError):
            view["key"]
        with pytest.raises(StorageClosedError):
            len(view)
        with pytest.raises(StorageClosedError):
            list(view.items())
