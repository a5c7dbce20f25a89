"""Hypothesis strategies for what queries are made of: hostile documents, fields, filters, sorts, indexes.

Called by differential tests, ours and those of an engine's author. Needs Hypothesis.

Names and values come from pools that hold what engines get wrong: names that look like syntax, numbers that a float
cannot tell apart, texts whose order depends on the encoding. A `World` is a few of them, so that what is asked meets
what is there:

    @given(st.data())
    def test_mine(data):
        world = data.draw(worlds())
        items = data.draw(st.lists(world.documents()))
        filter = data.draw(world.filters())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st

from mycelia_storage import field, path
from mycelia_storage.filters import COLUMNS, IN_TEXT, ORDERING, And, Comparison, Not, Or, SortKey
from mycelia_storage.testing.strategies import json_values, scalars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import SearchStrategy

    from mycelia_storage.filters import Filter, Path

NAMES: Final = (
    *("a", "b", "c"),
    *("a.b", 'q"x', "", "$key", "$value", "é", "\U0001f600", "x'y", "0", "[0]", "-a", "A", "a b", "a\\b", "%", "*"),
    *("\x01", "?1", "{}", "\u2028", "x" * 90, "y " * 50),
)
NUMBERS: Final = (
    *(0, 1, -1, 2, 3, 1.0, 2.5, 0.0, -0.0, 0.1, 1e308, -1e308, 5e-324, 1e23, 10**18, 2**53, 2**53 + 1, float(2**53)),
    *(2**63 - 1, -(2**63), float(2**63), 1e16 + 2),
)
TEXTS: Final = (
    *(
        "",
        "a",
        "b",
        "ab",
        "abc",
        "A",
        "B",
        "é",
        "e\u0301",
        "\ue000",
        "\uffff",
        "\U0001f600",
        "a%",
        "a_b",
        "a*",
        "%",
        "_",
    ),
    *("1", "true", "null", "[1]", '{"a":1}', "'", '"', "\\", "[a", "[^a]", "\x01", "a\n", "\u2028", "' OR 1=1 --"),
)
# An index may hold no more than their beginnings.
LONG_TEXTS: Final = (
    *("x" * 79, "x" * 80, "x" * 80 + "a", "x" * 80 + "b", "x" * 4000, "\U0001f600" * 80, "\U0001f600" * 81),
    *("x" * 79 + "\U0010ffff", "\U0010ffff" * 81),
)
SCALARS: Final = (None, True, False, *NUMBERS, *TEXTS, *LONG_TEXTS)
NESTED: Final[tuple[Any, ...]] = (
    *([], [1], [1.0], [True], ["a"], ["a", None, True], [2**53 + 1], [[1]], [{"a": 1}], [""], [[]]),
    *({}, {"a": 1}, {"a": 1.0}, {"a": True}, {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": None}, {"a": {"b": [1]}}),
)
METADATA: Final[tuple[Any, ...]] = (
    None,
    None,
    None,
    {},
    {"a": 1},
    {"a": "x", "b": 1},
    {"a": True},
    {"b": None},
    {"a": [1]},
    {"a.b": 2},
)
SPECIAL: Final = (
    *("$key", "$value", "$metadata.a", "$metadata.b", '$metadata."a.b"'),
    *("$version", "$created_at", "$updated_at", "$expires_at"),
)

# What a database, or a careless comparison, takes for the same.
ALIKE: Final[tuple[tuple[Any, ...], ...]] = (
    (1, True, 1.0, "1", [1]),
    (0, False, -0.0, "", None, "0"),
    (None, "null", [], {}, False),
    (2**53, 2**53 + 1, float(2**53), 2**63 - 1, float(2**63)),
    ("a", "A", "ab", "a%", "a_b", "abc", "[a"),
    ("\uffff", "\U0001f600", "\ue000", "é", "e\u0301"),
    (5, "5", "text", 7, True, "a"),
    ([1], [True], [1.0], {"a": 1}, {"a": True}, ["a"]),
    ("x" * 80, "x" * 80 + "a", "x" * 80 + "b", "x" * 79, "y"),
)
# By how often they are drawn.
_OPERATORS: Final = {
    **dict.fromkeys(("ne", "gt", "gte", "lt", "lte", "contains", "startsWith", "endsWith", "nin", "exists"), 2),
    **dict.fromkeys(("eq", "in"), 5),
}
_ARRAY_INDEXES: Final = (0, 0, 1, 2, 2**31 - 1)
_ANYTHING: Final = json_values(max_leaves=3)
_SCALAR: Final = st.sampled_from(SCALARS)
_SPECIAL: Final = st.sampled_from(SPECIAL).map(lambda name: field(name).path)


def weighted(*choices: tuple[int, SearchStrategy[Any]]) -> SearchStrategy[Any]:
    """One of several, each as often as its weight says; `one_of` forgets that a strategy was given twice."""
    strategies = [strategy for weight, strategy in choices for _ in range(weight)]

    def chosen(index: int) -> SearchStrategy[Any]:
        return strategies[index]

    return st.integers(0, len(strategies) - 1).flatmap(chosen)


class World:
    """A few names and values, and strategies for documents and queries that are made of them."""

    def __init__(self, names: Sequence[str], values: Sequence[Any]) -> None:
        name, leaf = st.sampled_from(names), st.sampled_from(values)
        texts = [value for value in values if isinstance(value, str)]
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        self._texts = st.sampled_from([*texts, *texts, *TEXTS])
        self._comparable = st.sampled_from([*numbers, *numbers, *texts, *texts, *NUMBERS, *TEXTS])
        # By hand instead of `recursive`, which draws many of its trees several times.
        flat: SearchStrategy[Any] = st.dictionaries(name, leaf, max_size=2) | st.lists(leaf, max_size=3)
        value = weighted((8, leaf), (1, flat))
        deep = st.dictionaries(name, value, max_size=3) | st.lists(value, max_size=2)
        some = st.dictionaries(name, value, max_size=3)
        whole = st.fixed_dictionaries(dict.fromkeys(names, value))
        self._documents = weighted(
            (6, whole), (4, some), (2, st.dictionaries(name, deep, max_size=3)), (1, value), (1, _ANYTHING)
        )
        self._operands = weighted((8, leaf), (2, value), (1, _SCALAR), (1, scalars()))
        self._paths = _paths(name)
        self._leaf = weighted(*((weight, self._comparison(operator)) for operator, weight in _OPERATORS.items()))
        shallow = weighted((2, self._leaf), (1, _deeper(self._leaf)))
        self._filters = weighted((4, self._leaf), (3, _deeper(self._leaf)), (2, _deeper(shallow)))

    def documents(self) -> SearchStrategy[Any]:
        """Mostly objects; now and then anything else."""
        return self._documents

    def paths(self) -> SearchStrategy[Path]:
        """A field of a document, mostly at its top, or a special one."""
        return self._paths

    def filters(self) -> SearchStrategy[Filter]:
        """A tree of comparisons up to three deep, with empty groups too."""
        return self._filters

    def sorts(self, *, min_size: int = 0, max_size: int = 3) -> SearchStrategy[list[SortKey]]:
        """Distinct fields, each in one direction."""
        keys = st.tuples(self._paths, st.booleans()).map(_sort_key)
        return st.lists(keys, min_size=min_size, max_size=max_size).map(_distinct)

    def index_fields(self) -> SearchStrategy[list[SortKey]]:
        """The fields of an index: `$key` has one always."""
        return self.sorts(min_size=1, max_size=2).map(
            lambda keys: [key for key in keys if key.path.root != "$key"] or [SortKey(field("a").path)]
        )

    def _comparison(self, operator: str) -> SearchStrategy[Filter]:
        operand: SearchStrategy[Any]
        if operator in ORDERING:
            operand = self._comparable
        elif operator in ("startsWith", "endsWith"):
            operand = self._texts
        elif operator in ("in", "nin"):
            operand = st.lists(self._operands, max_size=4)
        else:
            operand = st.just(True) if operator == "exists" else self._operands
        return st.tuples(self._paths, operand).map(lambda drawn: _comparison(drawn[0], operator, drawn[1]))


def _comparison(path: Path, operator: str, operand: Any) -> Filter:
    """What was drawn, made to fit where the field is of one type alone."""
    if path.root not in COLUMNS or operator == "exists":
        return Comparison(path, operator, operand)
    if path.root != "$key" and operator in IN_TEXT:
        operator = "lte"
    if operator in ("in", "nin"):
        return Comparison(path, operator, [_of_type(path, part) for part in operand])
    return Comparison(path, operator, _of_type(path, operand))


def _of_type(path: Path, operand: Any) -> Any:
    if path.root == "$key":
        return operand if isinstance(operand, str) else repr(operand)
    return operand if isinstance(operand, int | float) and not isinstance(operand, bool) else len(repr(operand))


def _paths(name: SearchStrategy[str]) -> SearchStrategy[Path]:
    segment: SearchStrategy[str | int] = st.one_of(name, st.sampled_from(_ARRAY_INDEXES))
    top = name.map(lambda drawn: path(drawn).path)
    below = st.tuples(name, segment).map(lambda drawn: path(*drawn).path)
    deep = st.tuples(name, segment, segment).map(lambda drawn: path(*drawn).path)
    return weighted((9, top), (1, below), (1, deep), (1, _SPECIAL))


def _sort_key(drawn: tuple[Path, bool]) -> SortKey:
    return SortKey(*drawn)


def _distinct(keys: list[SortKey]) -> list[SortKey]:
    return list({key.path: key for key in keys}.values())


def _deeper(inner: SearchStrategy[Filter]) -> SearchStrategy[Filter]:
    parts = st.lists(inner, min_size=2, max_size=3) | st.lists(inner, max_size=1)
    return weighted((3, parts.map(And)), (3, parts.map(Or)), (1, inner.map(Not)))


def worlds() -> SearchStrategy[World]:
    """A few names and values of the pools; the values are mostly such as are taken for each other."""
    names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)
    alike = st.sampled_from(ALIKE)
    others = st.lists(weighted((4, _SCALAR), (1, st.sampled_from(NESTED))), max_size=2)
    values = st.tuples(alike, alike, others).map(lambda drawn: [*drawn[0], *drawn[1], *drawn[2]])
    return st.tuples(names, values).map(lambda drawn: World(*drawn))
