"""Hazard: a view takes a type that it can neither write nor read, and blames the first value or document for it."""

from __future__ import annotations

import asyncio
import collections
import enum
import typing
import uuid
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

import msgspec
import pytest

from mycelia_storage import ConfigError, InvalidFilterError, InvalidValueError, Storage, field, open_async_storage

T = TypeVar("T")


class Plain:
    def __init__(self, number: int) -> None:
        self.number = number


class Model:
    """What a pydantic model looks like from outside."""

    def __init__(self, number: int) -> None:
        self.number = number

    def model_dump(self, *, mode: str = "python") -> dict[str, object]:
        return {"number": self.number, "mode": mode}


class Text(str):
    __slots__ = ()


class Running(typing.Protocol):
    def run(self) -> None: ...


class Box(Generic[T]):
    pass


@dataclass
class Holder:
    name: str
    plain: Plain | None = None


class Tree(msgspec.Struct):
    branches: list[Tree] = []
    label: int | msgspec.UnsetType = msgspec.UNSET
    extra: object = None


class Members(TypedDict, total=False):
    model: Model


class Pair(NamedTuple):
    one: int
    other: Model


class Color(enum.Enum):
    RED = "red"


CANNOT: tuple[tuple[Any, str], ...] = (
    (Plain, r"^type: Plain cannot .*use a dataclass"),
    (Model, r"^type: Model cannot .*model_dump\(mode='json'\).*model_validate"),
    (list[Model], r"^type: Model, which is inside it, cannot .*model_dump"),
    (dict[str, list[Plain | None]], "^type: Plain, which is inside it,"),
    (Holder, "^type: Plain, which is inside it,"),
    (Members, "^type: Model, which is inside it,"),
    (Pair, "^type: Model, which is inside it,"),
    (Annotated[list[Plain], ["a note"]], "^type: Plain, which is inside it,"),
    (Text, "^type: Text cannot .* comes back as str"),
    (collections.OrderedDict, "^type: OrderedDict cannot .* comes back as dict"),
    (Box[int], "^type: Box, which is inside it,"),
    (complex, "^type: complex cannot"),
    (Running, "^type: Running cannot"),
    (int | Plain, "^type: it cannot be checked"),
    ("NoSuchName", "^type: it cannot be checked"),
)


@pytest.mark.parametrize(("kind", "message"), CANNOT, ids=lambda given: str(given)[:40])
def test_a_type_that_no_value_can_have_is_refused_at_once(memory_store: Storage, kind: Any, message: str) -> None:
    for _ in range(2):  # the second time from memory
        with pytest.raises(ConfigError, match=message):
            memory_store.namespace("view", kind)
    with memory_store.transaction() as tx, pytest.raises(ConfigError, match=message):
        tx.namespace("view", kind)


async def _view_of(kind: Any) -> None:
    async with open_async_storage("memory:") as store:
        store.namespace("view", kind)


def test_an_async_view_refuses_it_too() -> None:
    with pytest.raises(ConfigError, match="^type: Plain cannot"):
        asyncio.run(_view_of(Plain))


CAN: tuple[tuple[Any, Any], ...] = (
    (Tree, Tree([Tree(), Tree(label=3, extra={"a": [1]})])),
    (list[object], [1, "a", None]),
    (typing.Hashable, "text"),
    (typing.SupportsInt, 1.5),
    (Annotated[int, ["a note"]], 3),
    (Literal["a", "b"], "b"),
    (Color, Color.RED),
    (dict[str, tuple[int, ...]], {"a": (1, 2)}),
    (set[int], {1, 2}),
    (Decimal, Decimal("1.10")),
    (uuid.UUID, uuid.UUID(int=7)),
    (datetime | None, None),
    (None, None),
)


@pytest.mark.parametrize(("kind", "value"), CAN, ids=lambda given: str(given)[:40])
def test_a_type_that_values_can_have_is_taken(memory_store: Storage, kind: Any, value: Any) -> None:
    view = memory_store.namespace("view", kind)
    view["key"] = value
    assert view["key"] == value
    assert type(view["key"]) is type(value)


def test_the_message_of_a_model_says_how_to_write_it(memory_store: Storage) -> None:
    with pytest.raises(InvalidValueError, match=r"^\$\[0\]\.a: Model is not JSON: .*\.model_dump\(mode='json'\)"):
        memory_store.set("key", [{"a": Model(1)}])
    with pytest.raises(InvalidFilterError, match=r"model_dump\(mode=.json.\)"):
        _ = field("a") == Model(1)  # an operand is a value as well
