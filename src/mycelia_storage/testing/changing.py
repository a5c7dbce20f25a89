"""The contract of the verbs that change a part of an entry in one step: modify, merge, increment, touch, metadata.

Run by subclasses of `StorageContract`.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import InvalidValueError, KeyNotFoundError, VersionConflictError
from mycelia_storage.testing.base import ContractBase
from mycelia_storage.testing.compare import difference

if TYPE_CHECKING:
    from mycelia_storage import Storage
    from mycelia_storage.testing.clock import FakeClock

# The examples of RFC 7396, appendix A: target, patch, result. None as a result at the top is "the member is gone"
# when the three stand inside a member of an object, as they do here.
RFC_7396_EXAMPLES: tuple[tuple[Any, Any, Any], ...] = (
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
)


def _add_one(value: Any) -> Any:
    return value + 1


class ChangingContract(ContractBase):
    """modify, merge, increment, touch, get_metadata, set_metadata."""

    def test_modify_writes_and_gives_the_new_value(self, store: Storage) -> None:
        store.set("key", 1)
        assert store.modify("key", _add_one) == 2
        assert store.get("key") == 2

    def test_modify_keeps_metadata_expiry_and_creation(self, store: Storage, clock: FakeClock) -> None:
        store.set("key", 1, metadata={"by": "me"}, ttl=60)
        before = store.get_entry("key")
        clock.advance(1)
        store.modify("key", _add_one)
        after = store.get_entry("key")
        assert (after.metadata, after.expires_at, after.created_at) == (
            {"by": "me"},
            before.expires_at,
            before.created_at,
        )
        assert after.version > before.version
        assert after.updated_at == clock.time

    def test_modify_with_ttl_sets_and_with_none_clears_the_expiry(self, store: Storage, clock: FakeClock) -> None:
        store.set("key", 1)
        store.modify("key", _add_one, ttl=5)
        assert store.get_entry("key").expires_at == clock.time + timedelta(seconds=5)
        store.modify("key", _add_one, ttl=None)
        assert store.get_entry("key").expires_at is None

    def test_modify_of_a_missing_key_raises_without_a_default(self, store: Storage) -> None:
        calls: list[Any] = []
        with pytest.raises(KeyNotFoundError, match="missing"):
            store.modify("missing", calls.append, namespace="fresh")
        assert not calls
        assert store.list_namespaces() == ["default"]

    def test_modify_of_a_missing_key_starts_from_the_default(self, store: Storage) -> None:
        assert store.modify("key", _add_one, default=10) == 11
        assert store.get("key") == 11
        assert store.modify("key", _add_one, default=10) == 12

    def test_modify_takes_none_for_a_default(self, store: Storage) -> None:
        seen: list[Any] = []

        def note(value: Any) -> str:
            seen.append(value)
            return "new"

        assert store.modify("key", note, default=None) == "new"
        assert seen == [None]

    def test_modify_refuses_a_function_that_returns_none(self, store: Storage) -> None:
        store.set("key", [1])
        before = store.get_entry("key")

        def forgetful(value: Any) -> None:
            value.append(2)

        with pytest.raises(InvalidValueError, match="return"):
            store.modify("key", forgetful)
        assert not difference(store.get_entry("key"), before)

    def test_modify_lets_the_functions_own_error_out(self, store: Storage) -> None:
        store.set("key", 1)
        before = store.get_entry("key")

        def fail(_: Any) -> object:
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            store.modify("key", fail)
        assert not difference(store.get_entry("key"), before)
        store.set("key", 2)

    def test_modify_refuses_a_bad_result(self, store: Storage) -> None:
        store.set("key", 1)
        with pytest.raises(InvalidValueError, match=r"^\$\.a\[0\]"):
            store.modify("key", lambda _: {"a": [math.nan]})
        assert store.get("key") == 1

    def test_modify_with_a_version(self, store: Storage) -> None:
        version = store.set("key", 1)
        assert store.modify("key", _add_one, if_version=version) == 2
        with pytest.raises(VersionConflictError) as caught:
            store.modify("key", _add_one, if_version=version)
        assert caught.value.actual == store.get_entry("key").version
        assert store.get("key") == 2

    def test_modify_with_a_version_on_a_missing_key(self, store: Storage) -> None:
        with pytest.raises(VersionConflictError) as caught:
            store.modify("key", _add_one, if_version=7, default=1)
        assert caught.value.actual == 0
        assert store.modify("key", _add_one, if_version=0, default=1) == 2

    def test_what_modify_gives_is_the_callers_own(self, store: Storage) -> None:
        kept: list[Any] = []

        def keep(value: Any) -> Any:
            kept.append(value)
            return value

        store.set("key", {"a": [1]})
        store.modify("key", keep)["a"].append(2)
        kept[0]["a"].append(3)
        assert store.get("key") == {"a": [1]}

    # merge

    @pytest.mark.parametrize(("target", "patch", "expected"), RFC_7396_EXAMPLES)
    def test_merge_follows_rfc_7396_inside_a_document(
        self, store: Storage, target: Any, patch: Any, expected: Any
    ) -> None:
        store.set("key", {"member": target, "other": 1})
        result = store.merge("key", {"member": patch})
        wanted = {"other": 1} if expected is None else {"member": expected, "other": 1}
        assert result == wanted
        assert store.get("key") == wanted

    @pytest.mark.parametrize(
        ("target", "patch", "expected"), [example for example in RFC_7396_EXAMPLES if isinstance(example[1], dict)]
    )
    def test_merge_follows_rfc_7396_at_the_top(self, store: Storage, target: Any, patch: Any, expected: Any) -> None:
        store.set("key", target)
        assert store.merge("key", patch) == expected
        assert store.get("key") == expected

    def test_merge_of_a_missing_key_starts_from_an_empty_document(self, store: Storage) -> None:
        assert store.merge("key", {"a": {"b": 1, "c": None}}) == {"a": {"b": 1}}
        assert store.get("key") == {"a": {"b": 1}}

    def test_merge_keeps_the_order_of_what_is_there(self, store: Storage) -> None:
        store.set("key", {"b": 1, "a": 2, "c": 3})
        result = store.merge("key", {"c": 4, "d": 5, "b": 6})
        assert not difference(result, {"b": 6, "a": 2, "c": 4, "d": 5})
        assert not difference(store.get("key"), result)

    def test_merge_keeps_metadata_and_expiry_and_bumps_the_version(self, store: Storage, clock: FakeClock) -> None:
        store.set("key", {}, metadata={"by": "me"}, ttl=60)
        before = store.get_entry("key")
        clock.advance(1)
        store.merge("key", {"a": 1})
        after = store.get_entry("key")
        assert (after.metadata, after.expires_at) == (before.metadata, before.expires_at)
        assert after.version > before.version
        assert after.updated_at == clock.time

    def test_merge_with_ttl_sets_and_with_none_clears_the_expiry(self, store: Storage, clock: FakeClock) -> None:
        store.set("key", {})
        store.merge("key", {"a": 1}, ttl=5)
        assert store.get_entry("key").expires_at == clock.time + timedelta(seconds=5)
        store.merge("key", {"a": 1}, ttl=None)
        assert store.get_entry("key").expires_at is None

    def test_merge_with_a_version(self, store: Storage) -> None:
        version = store.set("key", {})
        store.merge("key", {"a": 1}, if_version=version)
        with pytest.raises(VersionConflictError):
            store.merge("key", {"a": 2}, if_version=version)
        with pytest.raises(VersionConflictError) as caught:
            store.merge("missing", {"a": 2}, if_version=version)
        assert caught.value.actual == 0
        assert store.list_keys() == ["key"]
        assert store.get("key") == {"a": 1}

    def test_merge_refuses_a_bad_patch(self, store: Storage) -> None:
        store.set("key", {"a": 1})
        before = store.get_entry("key")
        bad: Any
        for bad in ({"a": {1}}, {"a": {"b": math.nan}}, {1: 2}, "text", [1], None):
            with pytest.raises(InvalidValueError):
                store.merge("key", bad)
        assert not difference(store.get_entry("key"), before)

    # increment

    def test_increment_counts(self, store: Storage) -> None:
        assert store.increment("key") == 1
        assert store.increment("key") == 2
        assert store.increment("key", 40) == 42
        assert store.increment("key", -2) == 40
        assert not difference(store.get("key"), 40)

    def test_increment_of_a_missing_key_starts_at_0(self, store: Storage) -> None:
        assert not difference(store.increment("int", 5), 5)
        assert not difference(store.increment("float", 0.5), 0.5)
        assert not difference(store.increment("field", 5, field="n"), 5)
        assert store.get("field") == {"n": 5}

    def test_increment_of_a_field(self, store: Storage) -> None:
        store.set("key", {"n": 1, "other": "x"})
        assert store.increment("key", 2, field="n") == 3
        assert store.increment("key", field="new") == 1
        assert store.get("key") == {"n": 3, "other": "x", "new": 1}

    def test_increment_by_a_float(self, store: Storage) -> None:
        store.set("key", 1.5)
        assert not difference(store.increment("key", 0.25), 1.75)
        assert not difference(store.get("key"), 1.75)

    def test_an_int_step_onto_a_float_is_refused(self, store: Storage) -> None:
        store.set("key", 1.5)
        store.set("document", {"n": 1.5})
        with pytest.raises(InvalidValueError):
            store.increment("key", 1)
        with pytest.raises(InvalidValueError):
            store.increment("document", 1, field="n")
        assert (store.get("key"), store.get("document")) == (1.5, {"n": 1.5})

    @pytest.mark.parametrize("value", ["1", None, True, [1], {"n": 1}], ids=repr)
    def test_increment_of_what_is_no_number_is_refused(self, store: Storage, value: object) -> None:
        store.set("key", value)
        store.set("document", {"n": value})
        before = store.get_entry("key")
        with pytest.raises(InvalidValueError):
            store.increment("key")
        with pytest.raises(InvalidValueError):
            store.increment("document", field="n")
        assert not difference(store.get_entry("key"), before)

    @pytest.mark.parametrize("value", [1, "text", None, [1]], ids=repr)
    def test_increment_of_a_field_of_what_is_no_document_is_refused(self, store: Storage, value: object) -> None:
        store.set("key", value)
        with pytest.raises(InvalidValueError):
            store.increment("key", field="n")
        assert not difference(store.get("key"), value)

    @pytest.mark.parametrize("step", ["1", None, True, math.nan, math.inf, 2**63, 1j], ids=repr)
    def test_increment_by_what_is_no_number_is_refused(self, store: Storage, step: Any) -> None:
        with pytest.raises(InvalidValueError):
            store.increment("key", step, namespace="fresh")
        assert store.list_namespaces() == ["default"]

    def test_increment_beyond_64_bits_is_refused(self, store: Storage) -> None:
        store.set("top", 2**63 - 2)
        assert store.increment("top") == 2**63 - 1
        with pytest.raises(InvalidValueError):
            store.increment("top")
        store.set("bottom", -(2**63))
        with pytest.raises(InvalidValueError):
            store.increment("bottom", -1)
        store.set("float", 1.7e308)
        with pytest.raises(InvalidValueError):
            store.increment("float", 1.7e308)
        assert store.get_many(["top", "bottom", "float"]) == {"top": 2**63 - 1, "bottom": -(2**63), "float": 1.7e308}

    def test_the_ttl_of_increment_counts_only_when_it_creates(self, store: Storage, clock: FakeClock) -> None:
        store.increment("key", ttl=60)
        expires_at = clock.time + timedelta(seconds=60)
        clock.advance(10)
        store.increment("key", ttl=60)
        store.increment("key", ttl=None)
        assert store.get_entry("key").expires_at == expires_at
        clock.advance(50)
        assert store.increment("key", ttl=60) == 1
        assert store.get_entry("key").expires_at == clock.time + timedelta(seconds=60)

    def test_increment_keeps_metadata_and_bumps_the_version(self, store: Storage) -> None:
        version = store.set("key", 1, metadata={"by": "me"})
        store.increment("key")
        entry = store.get_entry("key")
        assert entry.metadata == {"by": "me"}
        assert entry.version > version

    # touch

    def test_touch_sets_and_clears_the_expiry(self, store: Storage, clock: FakeClock) -> None:
        store.set("key", [1], metadata={"by": "me"})
        assert store.touch("key", ttl=5) is True
        assert store.get_entry("key").expires_at == clock.time + timedelta(seconds=5)
        assert store.touch("key", ttl=timedelta(hours=2)) is True
        assert store.get_entry("key").expires_at == clock.time + timedelta(hours=2)
        assert store.touch("key", ttl=None) is True
        entry = store.get_entry("key")
        assert (entry.expires_at, entry.value, entry.metadata) == (None, [1], {"by": "me"})

    def test_touch_bumps_the_version_and_updated_at(self, store: Storage, clock: FakeClock) -> None:
        version = store.set("key", 1)
        created_at = clock.time
        clock.advance(1)
        store.touch("key", ttl=None)
        entry = store.get_entry("key")
        assert entry.version > version
        assert (entry.created_at, entry.updated_at) == (created_at, clock.time)

    def test_touch_of_a_missing_key_is_false(self, store: Storage) -> None:
        assert store.touch("key", ttl=5) is False
        assert store.touch("key", ttl=None, namespace="fresh") is False
        assert store.list_namespaces() == ["default"]
        assert not store.has("key")

    # metadata

    def test_get_metadata_of_a_missing_key_raises(self, store: Storage) -> None:
        with pytest.raises(KeyNotFoundError, match="missing"):
            store.get_metadata("missing")
        with pytest.raises(KeyNotFoundError, match="missing"):
            store.set_metadata("missing", {"a": 1})
        assert not store.has("missing")

    def test_set_metadata_merges_shallowly_and_keeps_nulls(self, store: Storage) -> None:
        store.set("key", 1, metadata={"a": 1, "b": {"x": 1}, "c": 3})
        store.set_metadata("key", {"b": {"y": 2}, "c": None, "d": 4})
        assert not difference(store.get_metadata("key"), {"a": 1, "b": {"y": 2}, "c": None, "d": 4})

    def test_set_metadata_without_merge_replaces(self, store: Storage) -> None:
        store.set("key", 1, metadata={"a": 1})
        store.set_metadata("key", {"b": 2}, merge=False)
        assert store.get_metadata("key") == {"b": 2}
        store.set_metadata("key", {}, merge=False)
        assert store.get_metadata("key") == {}

    def test_set_metadata_leaves_the_value_and_bumps_the_version(self, store: Storage, clock: FakeClock) -> None:
        version = store.set("key", [1], ttl=60)
        before = store.get_entry("key")
        clock.advance(1)
        new_version = store.set_metadata("key", {"a": 1})
        after = store.get_entry("key")
        assert new_version == after.version > version
        assert (after.value, after.expires_at, after.created_at) == ([1], before.expires_at, before.created_at)
        assert after.updated_at == clock.time

    def test_set_metadata_with_a_version(self, store: Storage) -> None:
        version = store.set("key", 1)
        store.set_metadata("key", {"a": 1}, if_version=version)
        with pytest.raises(VersionConflictError) as caught:
            store.set_metadata("key", {"a": 2}, if_version=version)
        assert caught.value.expected == version
        with pytest.raises(VersionConflictError) as caught:
            store.set_metadata("missing", {"a": 2}, if_version=version)
        assert caught.value.actual == 0
        assert store.get_metadata("key") == {"a": 1}
