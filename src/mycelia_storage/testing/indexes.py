"""The contract of created indexes: their definitions, and what a unique one refuses.

Run by subclasses of `StorageContract`. That a query uses an index is each engine's own affair; that it changes no
answer is tested with the queries.
"""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import pytest

from mycelia_storage import (
    BatchError,
    CapacityError,
    ConfigError,
    IndexExistsError,
    IndexInfo,
    IndexNotFoundError,
    InvalidFilterError,
    InvalidNamespaceError,
    InvalidValueError,
    Put,
    TransactionError,
    UniqueIndexError,
    field,
    path,
)
from mycelia_storage.testing.base import ContractBase, Refused, needs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mycelia_storage import Storage
    from mycelia_storage.testing.clock import FakeClock

N = field("n")


def _names(verbs: Any) -> list[str]:
    return [index.name for index in verbs.list_indexes()]


class IndexContract(ContractBase):
    """create_index, drop_index, list_indexes."""

    @needs("unique_indexes", ConfigError)
    def test_an_index_is_listed_as_it_was_made(self, store: Storage, clock: FakeClock) -> None:
        name = store.create_index("a", "-b.c[0]", field("$metadata.m").desc(), "$created_at", namespace="place")
        assert isinstance(name, str)
        fields = ("a", "-b.c[0]", "-$metadata.m", "$created_at")
        assert store.list_indexes() == [IndexInfo(name, "place", fields, False, clock.time)]
        assert store.create_index("a", unique=True, name="mine") == "mine"
        assert _names(store) == sorted([name, "mine"])
        mine = next(index for index in store.list_indexes() if index.name == "mine")
        assert mine == IndexInfo("mine", "default", ("a",), True, clock.time)

    def test_indexes_of_one_namespace(self, store: Storage) -> None:
        for namespace in ("default", "place", None):
            store.create_index("a", namespace=namespace, name=f"of {namespace}")
        assert _names(store) == ["of None", "of default", "of place"]
        assert [index.name for index in store.list_indexes(namespace="place")] == ["of place"]
        assert store.list_indexes(namespace="nowhere") == []
        view = store.namespace("place")
        assert [index.name for index in view.list_indexes()] == ["of place"]
        assert view.create_index("-b", name="viewed") == "viewed"
        assert store.list_indexes(namespace="place")[1].namespace == "place"
        view.drop_index("viewed")
        assert _names(store) == ["of None", "of default", "of place"]

    @needs("unique_indexes", ConfigError)
    def test_an_equal_definition_changes_nothing(self, store: Storage, clock: FakeClock) -> None:
        name = store.create_index("a", "-b")
        clock.advance(1)
        before = store.list_indexes()
        assert store.create_index("a", "-b") == name
        assert store.create_index(field("a"), path("b").desc(), name=name) == name
        assert store.list_indexes() == before
        others = [
            store.create_index("a"),
            store.create_index("-b", "a"),
            store.create_index("a", "b"),
            store.create_index("a", "-b", unique=True),
            store.create_index("a", "-b", namespace="place"),
            store.create_index("a", "-b", namespace=None),
        ]
        assert len({name, *others}) == 7
        assert _names(store) == sorted({name, *others})

    def test_a_name_is_taken_once_in_the_store(self, store: Storage) -> None:
        store.create_index("a", name="mine")
        assert store.create_index("a", name="mine") == "mine"
        wrong: tuple[Callable[[], str], ...] = (
            lambda: store.create_index("b", name="mine"),
            lambda: store.create_index("-a", name="mine"),
            lambda: store.create_index("a", name="mine", unique=True),
            lambda: store.create_index("a", name="mine", namespace="place"),
            lambda: store.create_index("a", name="mine", namespace=None),
        )
        for call in wrong:
            with pytest.raises(IndexExistsError, match="'mine'"):
                call()
        assert _names(store) == ["mine"]

    @needs("unique_indexes", ConfigError)
    def test_no_namespace_makes_the_name_of_another_index(self, store: Storage) -> None:
        made: list[str] = []
        for namespace in ("x", "unique x", "x (unique)", "x: a", "x: 'a'", None):
            for unique in (False, True):
                made += [
                    store.create_index(*fields, namespace=namespace, unique=unique)
                    for fields in (("a",), ('"a: a"',), ('"a (unique)"', "b"), ('"*: a"',))
                ]
        assert len(set(made)) == len(made)
        assert _names(store) == sorted(made)

    @needs("unique_indexes", ConfigError)
    def test_the_error_for_a_taken_name_says_what_differs(self, store: Storage) -> None:
        store.create_index("a", name="plain")
        store.create_index("a", name="special", unique=True, namespace=None)
        wrong: tuple[tuple[Callable[[], str], str], ...] = (
            (lambda: store.create_index("b", name="plain"), "'plain' already, on other fields"),
            (lambda: store.create_index("a", name="plain", unique=True), "'plain' already, which is not unique"),
            (lambda: store.create_index("a", name="plain", namespace="x"), "already, on the namespace 'default'"),
            (lambda: store.create_index("a", name="special", unique=True), "'special' already, on all namespaces"),
            (lambda: store.create_index("a", name="special", namespace=None), "'special' already, which is unique"),
        )
        for call, reason in wrong:
            with pytest.raises(IndexExistsError, match=reason):
                call()

    @needs("unique_indexes", ConfigError)
    def test_a_dropped_index_is_gone(self, store: Storage) -> None:
        name = store.create_index("a", unique=True)
        store.set("x", {"a": 1})
        store.drop_index(name)
        assert store.list_indexes() == []
        store.set("y", {"a": 1})
        for missing in (name, "nowhere"):
            with pytest.raises(IndexNotFoundError, match="no index"):
                store.drop_index(missing)

    @needs("unique_indexes", ConfigError)
    def test_whatever_name_an_index_gets_it_can_be_dropped_by(self, store: Storage) -> None:
        made = [
            store.create_index("a", namespace=None),
            store.create_index('"a*"', '"x\'y"'),
            store.create_index(path("x y" * 300), unique=True),
            store.create_index(path("\x01\u2028"), path("\U0001f600")),
            store.create_index("a", namespace="\U0001f600" * 60),
            store.create_index("a", name='it\'s "mine"; DROP TABLE x --'),
        ]
        assert _names(store) == sorted(made)
        assert store.query(path("x y" * 300) == 1).keys() == []
        for name in made:
            store.drop_index(name)
        assert store.list_indexes() == []

    def test_a_definition_survives_names_of_any_kind(self, store: Storage) -> None:
        names = ["x y" * 300, "a.b", "$key", "-", "-a", 'q"', "x'y", "", "\U0001f600", "\x01", "a\\b"]
        for name in names:
            store.create_index(path(name).desc(), path("below", 2**31 - 1, name))
        listed = {index.fields for index in store.list_indexes()}
        assert listed == {(f"-{path(name)}", str(path("below", 2**31 - 1, name))) for name in names}
        for name in names:
            store.create_index(path(name).desc(), path("below", 2**31 - 1, name))
        assert len(store.list_indexes()) == len(names)

    def test_sixty_four_are_the_limit(self, store: Storage) -> None:
        for number in range(64):
            store.create_index(f"f{number}", namespace=("default", "place", None)[number % 3], name=f"i{number:02}")
        with pytest.raises(CapacityError, match="64"):
            store.create_index("more")
        assert store.create_index("f0", name="i00") == "i00"
        store.drop_index("i63")
        store.create_index("more", name="j")
        assert len(_names(store)) == 64

    @pytest.mark.parametrize(
        ("fields", "options", "kind", "reason"),
        [
            ((), {}, InvalidFilterError, "^fields: "),
            (("",), {}, InvalidFilterError, r"^fields\[0\]: "),
            (("a", 5), {}, InvalidFilterError, r"^fields\[1\]: int"),
            (("a", None), {}, InvalidFilterError, r"^fields\[1\]: NoneType"),
            ((N == 1,), {}, InvalidFilterError, r"^fields\[0\]: "),
            ((["a"],), {}, InvalidFilterError, r"^fields\[0\]: "),
            (("a", "-a"), {}, InvalidFilterError, "^fields: 'a' is named twice"),
            (("$key",), {}, InvalidFilterError, r"^fields: .*\$key"),
            (("$other",), {}, InvalidFilterError, r"^fields\[0\]: .*special"),
            (tuple(f"f{number}" for number in range(17)), {}, InvalidFilterError, "^fields: more than 16"),
            (("a",), {"unique": 1}, InvalidValueError, "^unique: int"),
            (("a",), {"unique": None}, InvalidValueError, "^unique: "),
            (("a",), {"name": ""}, InvalidValueError, "^name: "),
            (("a",), {"name": 5}, InvalidValueError, "^name: .*int"),
            (("a",), {"name": "x" * 1025}, InvalidValueError, "^name: "),
            (("a",), {"name": "\0"}, InvalidValueError, "^name: "),
            (("a",), {"namespace": "a*"}, InvalidNamespaceError, "kept for patterns"),
            (("a",), {"namespace": ""}, InvalidNamespaceError, "at least one"),
        ],
        ids=repr,
    )
    def test_a_bad_definition_is_refused(
        self, store: Storage, fields: tuple[Any, ...], options: Any, kind: type[Exception], reason: str
    ) -> None:
        with pytest.raises(kind, match=reason):
            store.create_index(*fields, **options)
        assert store.list_indexes() == []

    @pytest.mark.parametrize("bad", ["", None, 5, "\0", "\ud800"], ids=repr)
    def test_dropping_what_is_no_name_is_refused(self, store: Storage, bad: Any) -> None:
        with pytest.raises(InvalidValueError, match=r"^name: "):
            store.drop_index(bad)

    def test_an_index_registers_its_namespace_and_goes_with_it(self, store: Storage) -> None:
        store.create_index("a", namespace="place", name="placed")
        store.create_index("a", namespace="placebo", name="other")
        store.create_index("a", namespace=None, name="everywhere")
        assert store.list_namespaces() == ["default", "place", "placebo"]
        store.set("x", 1, namespace="place")
        store.delete_namespace("place", recursive=True)
        assert _names(store) == ["everywhere", "other"]
        store.clear(namespace="placebo")
        store.clear_all()
        assert _names(store) == ["everywhere", "other"]

    @needs("unique_indexes", ConfigError)
    @needs("savepoints", TransactionError)
    def test_what_a_transaction_makes_is_undone_with_it(self, store: Storage) -> None:
        store.create_index("old", name="old")
        store.set_many({"x": {"n": 1}, "y": {"n": 2}})
        with store.transaction() as tx:
            tx.drop_index("old")
            tx.create_index("n", unique=True, name="new")
            assert _names(tx) == ["new"]
            assert tx.query(N == 2).keys() == ["y"]
            with pytest.raises(UniqueIndexError):
                tx.set("z", {"n": 1})
            with tx.transaction() as inner:
                inner.drop_index("new")
                inner.create_index("-n", name="newer")
                inner.set("z", {"n": 1})
                assert _names(inner) == ["newer"]
                inner.rollback()
            assert _names(tx) == ["new"]
            with pytest.raises(UniqueIndexError):
                tx.set("z", {"n": 1})
            tx.rollback()
        assert _names(store) == ["old"]
        store.set("z", {"n": 1})

    @needs("savepoints", TransactionError)
    @needs("unique_indexes", ConfigError)
    def test_what_a_transaction_makes_stays_when_it_commits(self, store: Storage) -> None:
        with store.transaction() as tx:
            tx.set("x", {"n": 1})
            with tx.transaction() as inner:
                inner.create_index("n", unique=True, name="new")
        assert _names(store) == ["new"]
        with pytest.raises(UniqueIndexError):
            store.set("y", {"n": 1})

    @needs("unique_indexes", ConfigError)
    def test_a_failed_index_leaves_a_transaction_as_it_was(self, store: Storage) -> None:
        with store.transaction() as tx:
            tx.set_many({"x": {"n": 1}, "y": {"n": 1}})
            with pytest.raises(UniqueIndexError):
                tx.create_index("n", unique=True, namespace="default")
            assert tx.list_indexes() == []
            assert tx.list_keys() == ["x", "y"]
        assert store.list_keys() == ["x", "y"]
        assert store.list_indexes() == []

    @needs("unique_indexes", ConfigError)
    def test_indexes_are_there_after_reopening(self, tmp_path: Path, clock: FakeClock) -> None:
        with self.open_store(tmp_path, clock=clock) as store:
            store.create_index("n", unique=True, name="unique")
            store.create_index(path("x y" * 300).desc(), "$metadata.m", namespace=None)
            store.set("x", {"n": 1})
            before = store.list_indexes()
        with self.open_store(tmp_path, clock=clock) as store:
            assert store.list_indexes() == (before if self.persistent else [])
            if self.persistent:
                with pytest.raises(UniqueIndexError):
                    store.set("y", {"n": 1})
                store.create_index(path("x y" * 300).desc(), "$metadata.m", namespace=None)
                assert store.list_indexes() == before

    def test_a_unique_index_that_is_refused_changes_nothing(self, store: Storage) -> None:
        if self.unique_indexes:
            assert store.create_index("n", unique=True, name="one n") == "one n"
            return
        store.set_many({"a": {"n": 1}, "b": {"n": 1}})
        with store.transaction() as tx:
            for verbs in (tx, tx.namespace("default")):
                with pytest.raises(ConfigError):
                    verbs.create_index("n", unique=True)
            tx.create_index("n")
        assert [index.unique for index in store.list_indexes()] == [False]
        assert store.query(N == 1).keys() == ["a", "b"]


@needs("unique_indexes", ConfigError)
class UniqueIndexContract(ContractBase):
    """A unique index: what is a duplicate, and that none gets in by any verb."""

    @pytest.fixture
    def unique(self, store: Storage) -> Storage:
        try:
            store.create_index("n", unique=True, name="one n")
        except ConfigError as error:
            assert not self.unique_indexes
            assert store.list_indexes() == []
            return cast("Storage", Refused(error))
        return store

    @pytest.mark.parametrize("value", [1, 1.5, 2**53 + 1, -0.0, "a", "", None, True, False, "\U0001f600"], ids=repr)
    def test_scalars_and_null_are_duplicates(self, unique: Storage, value: Any) -> None:
        unique.set("a", {"n": value})
        with pytest.raises(UniqueIndexError, match="'a'") as caught:
            unique.set("b", {"n": value})
        assert caught.value.index == "one n"
        assert pickle.loads(pickle.dumps(caught.value)).index == "one n"  # noqa: S301 - pickled in the same line
        assert unique.list_keys() == ["a"]
        unique.set("a", {"n": value, "more": 1})

    def test_a_number_is_one_number_however_it_is_written(self, unique: Storage) -> None:
        unique.set_many({"a": {"n": 1}, "b": {"n": 0}, "c": {"n": 2**53}})
        for value in (1.0, -0.0, float(2**53)):
            with pytest.raises(UniqueIndexError):
                unique.set("d", {"n": value})
        unique.set("d", {"n": 2**53 + 1})

    def test_other_types_are_other_values(self, unique: Storage) -> None:
        values = [1, True, "1", 0, False, "0", None, "null", "", "true", 2, 2**53, 2**53 + 1, "a", "A", "a "]
        unique.set_many({f"key{number:02}": {"n": value} for number, value in enumerate(values)})
        assert unique.count() == len(values)

    @pytest.mark.parametrize("value", [[], [1], {}, {"a": 1}], ids=repr)
    def test_arrays_and_objects_are_no_duplicates(self, unique: Storage, value: Any) -> None:
        unique.set_many({"a": {"n": value}, "b": {"n": value}})

    def test_what_is_missing_is_no_duplicate(self, unique: Storage) -> None:
        unique.set_many({"a": {}, "b": {"m": 1}, "c": 5, "d": [1], "e": {}})

    def test_one_missing_field_of_several_is_enough(self, store: Storage) -> None:
        store.create_index("a", "-b", unique=True)
        store.set_many({"1": {"a": 1, "b": 1}, "2": {"a": 1, "b": 2}, "3": {"a": 1}, "4": {"a": 1}, "5": {"b": 1}})
        store.set_many({"6": {"a": 1, "b": []}, "7": {"a": 1, "b": []}, "8": {"a": 1, "b": True}})
        with pytest.raises(UniqueIndexError, match="'2'"):
            store.set("9", {"a": 1.0, "b": 2})

    @pytest.mark.parametrize("name", ["$metadata.m", "$value", "$value.n"], ids=repr)
    def test_other_places_than_fields(self, store: Storage, name: str) -> None:
        if name == "$value.n":
            store.create_index(path("$value", "n"), unique=True)
            store.set("a", {"$value": {"n": 1}})
            with pytest.raises(UniqueIndexError):
                store.set("b", {"$value": {"n": 1}})
            return
        store.create_index(name, unique=True)
        store.set("a", 1, metadata={"m": 1})
        store.set("b", 2, metadata={"m": 2})
        with pytest.raises(UniqueIndexError, match="'a'"):
            store.set("c", 1, metadata={"m": 1})
        if name == "$metadata.m":
            with pytest.raises(UniqueIndexError, match="'a'"):
                store.set_metadata("b", {"m": 1})
        assert store.list_keys() == ["a", "b"]

    def test_no_verb_lets_a_duplicate_in(self, unique: Storage) -> None:
        unique.set_many({"a": {"n": 1}, "b": {"n": 2}})
        before = list(unique.scan())
        calls: tuple[Callable[[], object], ...] = (
            lambda: unique.set("c", {"n": 1}),
            lambda: unique.set("b", {"n": 1}),
            lambda: unique.set("c", {"n": 1}, if_version=0),
            lambda: unique.add("c", {"n": 1}),
            lambda: unique.modify("b", lambda _: {"n": 1}),
            lambda: unique.merge("b", {"n": 1}),
            lambda: unique.increment("b", -1, field="n"),
            lambda: unique.set_many({"c": {"n": 3}, "d": {"n": 1}}),
            lambda: unique.add_many({"c": {"n": 3}, "d": {"n": 1}}),
            lambda: unique.set_many({"c": {"n": 3}, "d": {"n": 3}}),
            lambda: unique.namespace("default").update({"c": {"n": 1}}),
        )
        for call in calls:
            with pytest.raises(UniqueIndexError) as caught:
                call()
            assert caught.value.index == "one n"
            assert list(unique.scan()) == before
        with pytest.raises((UniqueIndexError, BatchError)):
            unique.load([("c", {"n": 3}), ("d", {"n": 1})])
        assert list(unique.scan()) == before

    def test_a_value_that_was_given_up_is_free(self, unique: Storage) -> None:
        unique.set_many({"a": {"n": 1}, "b": {"n": 2}})
        unique.set("a", {"n": 3})
        unique.set("b", {"n": 1})
        unique.delete("b")
        unique.set("c", {"n": 1})
        unique.delete_where(N == 1)
        unique.set("d", {"n": 1})
        unique.clear()
        unique.set("e", {"n": 1})

    def test_a_batch_is_written_in_key_order_one_by_one(self, unique: Storage) -> None:
        unique.set_many({"a": {"n": 1}, "b": {"n": 2}, "c": {"n": 3}})
        unique.set_many({"c": {"n": 2}, "b": {"n": 1}, "a": {"n": 0}})
        assert [entry.value["n"] for entry in unique.scan()] == [0, 1, 2]
        for swap in ({"a": {"n": 1}, "b": {"n": 0}}, {"a": {"n": 1}, "b": {"n": 2}, "c": {"n": 0}}):
            with pytest.raises(UniqueIndexError):
                unique.set_many(swap)
            assert [entry.value["n"] for entry in unique.scan()] == [0, 1, 2]

    @needs("savepoints", TransactionError)
    def test_a_refused_write_leaves_a_transaction_going(self, unique: Storage) -> None:
        unique.set("a", {"n": 1})
        with unique.transaction() as tx:
            tx.set("b", {"n": 2})
            with pytest.raises(UniqueIndexError):
                tx.set("c", {"n": 2})
            with pytest.raises(UniqueIndexError):
                tx.set_many({"c": {"n": 3}, "d": {"n": 1}})
            with tx.transaction() as inner:
                inner.delete("a")
                inner.set("c", {"n": 1})
                inner.rollback()
            with pytest.raises(UniqueIndexError):
                tx.set("c", {"n": 1})
            tx.delete("a")
            tx.set("c", {"n": 1})
        assert unique.list_keys() == ["b", "c"]
        with unique.transaction() as tx:
            tx.set("d", {"n": 5})
            tx.rollback()
        unique.set("e", {"n": 5})

    def test_what_has_expired_blocks_nothing(self, unique: Storage, clock: FakeClock) -> None:
        unique.set_many({"a": {"n": 1}, "b": {"n": 2}}, ttl=1)
        with pytest.raises(UniqueIndexError):
            unique.set("c", {"n": 1})
        clock.advance(1)
        unique.set("c", {"n": 1})
        unique.set_many([Put("d", {"n": 2}), Put("e", {"n": 3}, ttl=1)])
        clock.advance(1)
        with unique.transaction() as tx:
            tx.set("f", {"n": 3})
            tx.rollback()
        assert unique.list_keys() == ["c", "d"]
        with unique.transaction() as tx:
            tx.set("f", {"n": 3})
        with pytest.raises(UniqueIndexError):
            unique.set("e", {"n": 3})

    def test_what_has_expired_is_in_the_way_of_no_index(self, unique: Storage, clock: FakeClock) -> None:
        unique.create_index("m", unique=True)
        unique.set_many({f"old {n}": {"n": n, "m": n} for n in range(20)}, ttl=10)
        clock.advance(10)
        unique.set("new", {"n": 3, "m": 4})
        unique.set_many({"newer": {"n": 5, "m": 5}, "newest": {"n": 6}})
        unique.set("old 7", {"n": 8})
        unique.set("stays", {"n": 100})
        with pytest.raises(UniqueIndexError, match="'stays'"):
            unique.set("refused", {"n": 100, "m": 10})
        with pytest.raises(UniqueIndexError, match="'stays'"):
            unique.set_many({"refused": {"n": 11}, "refused, too": {"n": 100}})
        assert set(unique.list_keys()) == {"new", "newer", "newest", "old 7", "stays"}

    def test_what_has_expired_is_no_duplicate_of_a_new_index(self, store: Storage, clock: FakeClock) -> None:
        store.set("a", {"n": 1}, ttl=1)
        store.set("b", {"n": 1})
        with pytest.raises(UniqueIndexError, match=r"'a'.*'b'"):
            store.create_index("n", unique=True)
        clock.advance(1)
        store.create_index("n", unique=True)
        with pytest.raises(UniqueIndexError):
            store.set("a", {"n": 1})

    @pytest.mark.parametrize("namespace", ["default", None], ids=repr)
    def test_an_expired_entry_takes_no_value_from_a_live_one(
        self, store: Storage, clock: FakeClock, namespace: str | None
    ) -> None:
        store.set_many({"live": {"n": 1}, "x live": {"n": 2}})
        store.set_many({"expired": {"n": 2}, "x expired": {"n": 1}}, ttl=1)
        clock.advance(1)
        store.create_index("n", unique=True, namespace=namespace)
        for _ in range(2):
            for number, owner in ((1, "'live'"), (2, "'x live'")):
                with pytest.raises(UniqueIndexError, match=owner):
                    store.set("new", {"n": number})
            store.optimize()
        assert store.query(N.is_in([1, 2])).keys() == ["live", "x live"]

    def test_an_index_of_a_transaction_knows_no_expired_owners(self, store: Storage, clock: FakeClock) -> None:
        store.set("live", {"n": 1})
        store.set("x", {"n": 1}, ttl=1)
        clock.advance(1)
        with store.transaction() as tx:
            tx.create_index("n", unique=True)
            with pytest.raises(UniqueIndexError, match="'live'"):
                tx.set("new", {"n": 1})
        with pytest.raises(UniqueIndexError, match="'live'"):
            store.set("new", {"n": 1})
        assert store.list_keys() == ["live"]

    @needs("savepoints", TransactionError)
    def test_a_refused_write_brings_nothing_expired_back(self, unique: Storage, clock: FakeClock) -> None:
        unique.set_many({"a": {"n": 1}, "b": {"n": 2}}, ttl=1)
        unique.set("stays", {"n": 3})
        clock.advance(1)
        with unique.transaction() as tx:
            with pytest.raises(UniqueIndexError, match="'stays'"):
                tx.set("new", {"n": 3})
            assert (tx.list_keys(), tx.count()) == (["stays"], 1)
            with tx.transaction() as inner:
                inner.set("other", {"n": 2})
                with pytest.raises(UniqueIndexError, match="'stays'"):
                    inner.set_many({"new": {"n": 1}, "newer": {"n": 3}})
                assert inner.list_keys() == ["other", "stays"]
                inner.rollback()
            assert (tx.list_keys(), tx.count()) == (["stays"], 1)
        assert (unique.list_keys(), unique.count()) == (["stays"], 1)
        unique.set("c", {"n": 1})
        unique.set("d", {"n": 2})
        assert unique.list_keys() == ["c", "d", "stays"]

    def test_a_batch_that_is_refused_behind_an_expired_value_leaves_it_free(
        self, unique: Storage, clock: FakeClock
    ) -> None:
        unique.set("a", {"n": 1}, ttl=1)
        unique.set("stays", {"n": 3})
        clock.advance(1)
        with unique.transaction() as tx:
            with pytest.raises(UniqueIndexError, match="'stays'"):
                tx.set_many({"b": {"n": 1}, "c": {"n": 3}})
            assert tx.list_keys() == ["stays"]
            tx.set("d", {"n": 1})
        assert unique.list_keys() == ["d", "stays"]

    def test_duplicates_that_are_there_are_named(self, store: Storage) -> None:
        store.set_many({"x": {"n": 1}, "y": {"n": 2}, "it's": {"n": 2.0}, "z": {}})
        with pytest.raises(UniqueIndexError, match="it's") as caught:
            store.create_index("n", unique=True, name="mine")
        assert "'y'" in str(caught.value)
        assert "'x'" not in str(caught.value)
        assert caught.value.index == "mine"
        assert store.list_indexes() == []
        store.set("y", {"n": 3})
        assert store.create_index("n", unique=True, name="mine") == "mine"

    def test_each_namespace_has_values_of_its_own(self, store: Storage) -> None:
        for namespace in ("default", "place"):
            store.set("a", {"n": 1}, namespace=namespace)
        store.create_index("n", unique=True, namespace=None, name="everywhere")
        for namespace in ("default", "place"):
            with pytest.raises(UniqueIndexError) as caught:
                store.set("b", {"n": 1}, namespace=namespace)
            assert caught.value.index == "everywhere"
        store.set_many({"a": {"n": 1}, "b": {"n": 2}}, namespace="new")
        store.drop_index("everywhere")
        store.create_index("n", unique=True, namespace="place")
        store.set("b", {"n": 1})
        with pytest.raises(UniqueIndexError):
            store.set("b", {"n": 1}, namespace="place")

    def test_duplicates_in_any_namespace_stop_an_index_over_all(self, store: Storage) -> None:
        store.set_many({"a": {"n": 1}, "b": {"n": 1}}, namespace="place")
        with pytest.raises(UniqueIndexError, match="'place'"):
            store.create_index("n", unique=True, namespace=None)
        store.create_index("n", unique=True)

    def test_of_several_threads_one_wins(self, unique: Storage) -> None:
        def write(number: int) -> bool:
            try:
                unique.set(f"key{number}", {"n": number % 4})
            except UniqueIndexError:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(write, range(40))) == 4
        assert sorted(entry.value["n"] for entry in unique.scan()) == [0, 1, 2, 3]
