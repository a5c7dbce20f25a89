"""The contract of typed views: `store.namespace(name, type)`.

Run by subclasses of `StorageContract`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec
import pytest

from mycelia_storage import BatchError, InvalidValueError, StorageError, ValueTypeError
from mycelia_storage.testing.base import ContractBase
from mycelia_storage.testing.compare import difference

if TYPE_CHECKING:
    from mycelia_storage import Namespace, Storage


class Address(msgspec.Struct):
    city: str
    zip: str | None = None


class Person(msgspec.Struct):
    name: str
    age: int = 0
    tags: list[str] = msgspec.field(default_factory=list[str])
    address: Address | None = None


@dataclass
class Point:
    x: float
    y: float
    labels: list[str] = field(default_factory=list[str])


class Movie(TypedDict):
    title: str
    year: int


class TypedViewContract(ContractBase):
    """Views of msgspec Structs, dataclasses, TypedDicts and plain types."""

    @pytest.fixture
    def people(self, store: Storage) -> Namespace[Person]:
        return store.namespace("people", Person)

    def test_a_struct_is_stored_as_a_plain_document(self, store: Storage, people: Namespace[Person]) -> None:
        people["ada"] = Person("Ada", 36, ["math"], Address("London"))
        assert not difference(
            store.get("ada", namespace="people"),
            {"name": "Ada", "age": 36, "tags": ["math"], "address": {"city": "London", "zip": None}},
        )

    def test_a_struct_comes_back_as_one(self, people: Namespace[Person]) -> None:
        ada = Person("Ada", 36, ["math"], Address("London"))
        people["ada"] = ada
        assert not difference(people["ada"], ada)
        assert not difference(people.get("ada"), ada)
        assert not difference(people.get_entry("ada").value, ada)
        assert not difference(people.get_many(["ada"]), {"ada": ada})
        assert not difference(people.get_entries(["ada"])["ada"].value, ada)
        assert not difference(list(people.values()), [ada])
        assert not difference(list(people.items()), [("ada", ada)])
        assert not difference([entry.value for entry in people.scan()], [ada])
        assert not difference(people.setdefault("ada", Person("Bob")), ada)
        assert not difference(people.take("ada").value, ada)

    def test_a_default_is_given_as_it_is(self, people: Namespace[Person]) -> None:
        assert people.get("missing") is None
        assert people.get("missing", "default") == "default"
        assert people.get_entry("missing", 1) == 1
        assert people.pop("missing", 2) == 2
        assert people.take("missing", 3) == 3

    def test_writing_verbs_take_structs(self, store: Storage, people: Namespace[Person]) -> None:
        people.set("a", Person("A"))
        people.add("b", Person("B"))
        people.set_many({"c": Person("C")})
        people.add_many({"d": Person("D")})
        people.update({"e": Person("E")})
        people.load([("f", Person("F"))])
        people.setdefault("g", Person("G"))
        assert [people[key].name for key in people] == ["A", "B", "C", "D", "E", "F", "G"]
        assert store.namespace("people")["f"]["name"] == "F"

    def test_modify_works_on_structs(self, store: Storage, people: Namespace[Person]) -> None:
        people["ada"] = Person("Ada", 36)

        def birthday(person: Person) -> Person:
            person.age += 1
            return person

        assert not difference(people.modify("ada", birthday), Person("Ada", 37))
        assert store.namespace("people")["ada"]["age"] == 37
        assert people.modify("bob", birthday, default=Person("Bob")).age == 1

    def test_pop_and_popitem_give_structs(self, people: Namespace[Person]) -> None:
        people.update({"a": Person("A"), "b": Person("B")})
        assert not difference(people.pop("a"), Person("A"))
        assert not difference(people.popitem(), ("b", Person("B")))

    def test_defaults_fill_what_a_document_lacks(self, store: Storage, people: Namespace[Person]) -> None:
        store.set("ada", {"name": "Ada"}, namespace="people")
        assert not difference(people["ada"], Person("Ada"))

    @pytest.mark.parametrize(
        "document", [{"age": 36}, {"name": 1}, "Ada", None, [], {"name": "A", "age": "36"}], ids=repr
    )
    def test_a_document_that_does_not_fit_is_told(
        self, store: Storage, people: Namespace[Person], document: Any
    ) -> None:
        store.set("ada", document, namespace="people")
        for read in (
            lambda: people["ada"],
            lambda: people.get("ada"),
            lambda: people.get_entry("ada"),
            lambda: people.get_many(["ada"]),
            lambda: list(people.values()),
            lambda: people.modify("ada", lambda person: person),
        ):
            with pytest.raises(ValueTypeError, match="ada"):
                read()
        assert not difference(store.get("ada", namespace="people"), document)
        assert "ada" in people
        assert list(people) == ["ada"]

    def test_taking_what_does_not_fit_loses_nothing(self, store: Storage, people: Namespace[Person]) -> None:
        store.set("ada", "text", namespace="people")
        for remove in (lambda: people.take("ada"), lambda: people.pop("ada"), people.popitem):
            with pytest.raises(ValueTypeError):
                remove()
        assert store.get("ada", namespace="people") == "text"

    def test_writing_what_does_not_fit_is_refused(self, store: Storage, people: Namespace[Person]) -> None:
        wrong: Any = {"name": 1}
        with pytest.raises((ValueTypeError, InvalidValueError)):
            people["ada"] = wrong
        with pytest.raises(StorageError):
            people.update({"ada": wrong})
        assert store.count(namespace="people") == 0

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (str, uuid.UUID(int=1)),
            (str, datetime(2024, 1, 1, tzinfo=UTC)),
            (str, b"bytes"),
            (list[int], {1, 2}),
            (dict[str, int], {1: 2}),
            (dict[str, Any], {"at": datetime(2024, 1, 1, tzinfo=UTC)}),
            (dict[str, Any], {"point": Point(1, 2)}),
            (Person, Point(1, 2)),
        ],
        ids=repr,
    )
    def test_a_value_that_would_come_back_as_another_is_refused(self, store: Storage, kind: Any, value: Any) -> None:
        view = store.namespace("place", kind)
        try:
            view["a"] = value
        except (ValueTypeError, InvalidValueError):
            assert store.count(namespace="place") == 0
        else:
            assert not difference(view["a"], value)

    def test_the_error_of_a_batch_says_what_does_not_fit(self, people: Namespace[Person]) -> None:
        wrong: Any = {"name": 1}
        for batch in (people.set_many, people.add_many, people.load):
            with pytest.raises(BatchError) as caught:
                batch([("fine", Person("A")), ("ada", wrong)])
            assert caught.value.errors.keys() == {"ada"}
            assert "name" in str(caught.value.errors["ada"])
        assert not people

    def test_a_dataclass_comes_back_as_one(self, store: Storage) -> None:
        points = store.namespace("points", Point)
        points["a"] = Point(1.5, -0.0, ["x"])
        assert not difference(points["a"], Point(1.5, -0.0, ["x"]))
        assert not difference(store.get("a", namespace="points"), {"x": 1.5, "y": -0.0, "labels": ["x"]})

    def test_a_typed_dict_comes_back_as_a_dict(self, store: Storage) -> None:
        movies = store.namespace("movies", Movie)
        movies["a"] = {"title": "Metropolis", "year": 1927}
        assert not difference(movies["a"], {"title": "Metropolis", "year": 1927})
        store.set("b", {"title": "Metropolis"}, namespace="movies")
        with pytest.raises(ValueTypeError, match="year"):
            movies["b"]

    def test_plain_types_are_types_too(self, store: Storage) -> None:
        numbers = store.namespace("numbers", int)
        numbers["a"] = 1
        assert numbers["a"] == 1
        store.set("b", "text", namespace="numbers")
        with pytest.raises(ValueTypeError):
            numbers["b"]
        lists = store.namespace("lists", list[int])
        lists["a"] = [1, 2]
        assert lists["a"] == [1, 2]

    def test_a_value_type_error_names_entry_and_place_but_not_the_value(
        self, store: Storage, people: Namespace[Person]
    ) -> None:
        store.set("ada", {"name": "secret", "age": "hidden"}, namespace="people")
        with pytest.raises(ValueTypeError) as caught:
            people["ada"]
        message = str(caught.value)
        assert "ada" in message
        assert "people" in message
        assert "age" in message
        assert "hidden" not in message

    def test_a_typed_view_inside_a_transaction(self, store: Storage, people: Namespace[Person]) -> None:
        with store.transaction() as tx:
            inside = tx.namespace(people)
            inside["ada"] = Person("Ada")
            assert not difference(inside["ada"], Person("Ada"))
            assert not difference(tx.namespace("people", Person)["ada"], Person("Ada"))
        assert not difference(people["ada"], Person("Ada"))
