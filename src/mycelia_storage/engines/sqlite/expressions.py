"""Filters and sorts as SQL: what each operator is, exactly, in terms of SQLite's JSON functions.

Called by `queries.py` and `indexes.py`. Paths become validated, quoted literals, so that expression indexes match;
operands are bound.

A field is two expressions. R is the rank of its type: 1 null, 2 false, 3 true, 4 number, 5 string, 6 array or object,
NULL when it is missing. V is its value among those of its rank: the number or string itself, 0 for null and the
booleans, NULL for arrays and objects. An index on (R, V, key) then serves equality, ranges and the order of `sort`,
and a unique one never takes true for 1, or two arrays for equal. Where no index has the field, `json_type` beside
`json_extract` says the same and is quicker to compute.
"""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any, Final

import apsw
import orjson

from mycelia_storage.errors import InvalidFilterError, StorageCorruptError
from mycelia_storage.filters import DOCUMENT, METADATA, ORDERING, And, Comparison, Filter, Not, Or, Path, SortKey
from mycelia_storage.keys import successor
from mycelia_storage.matching import equal, rank

if TYPE_CHECKING:
    from collections.abc import Mapping

TRUE: Final = "1"
FALSE: Final = "0"

_SIGNS: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_NUMBERS: Final = "('integer', 'real')"
_TYPE_OF_RANK: Final = {1: "'null'", 2: "'false'", 3: "'true'", 5: "'text'"}

# What stands in a JSON string as it is, and is neither so short that it is everywhere, nor too long to search for.
_SEARCHABLE: Final = re.compile(r'[^"\\\x00-\x1f]{2,200}')

_NOWHERE: Final[Mapping[Path, bool]] = {}

# So many of the strings in an array or object.
_SEARCHED: Final = 3

_SHORT: Final = 100_000

EQUAL_FUNCTION: Final = "mycelia_equal"
AMONG_FUNCTION: Final = "mycelia_among"


def create_functions(connection: apsw.Connection) -> None:
    """What SQL cannot say: the equality of arrays and objects. For statements only, never for a schema."""
    for name, function in ((EQUAL_FUNCTION, _deeply_equal), (AMONG_FUNCTION, _among)):
        connection.create_scalar_function(name, function, 2, deterministic=True, flags=apsw.SQLITE_DIRECTONLY)


def _deeply_equal(*texts: Any) -> bool:
    one, other = texts
    return equal(_stored(one), _operand(other))


def _among(*texts: Any) -> bool:
    one, others = texts
    value = _stored(one)
    return any(equal(value, other) for other in _operand(others))


def _stored(text: str) -> Any:
    """A part of a document. SQLite takes texts for JSON that nobody here has written."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise StorageCorruptError("a stored value is not JSON: the file is damaged") from None


def _operand(text: str) -> Any:
    # The same for every entry that is looked at. A long one costs less to read than to keep.
    return _short_operand(text) if len(text) < _SHORT else orjson.loads(text)


@functools.lru_cache(maxsize=64)
def _short_operand(text: str) -> Any:
    return orjson.loads(text)


class Bindings:
    """The values of a statement, each with a number, so that a part of it may stand in several places."""

    def __init__(self) -> None:
        self.values: list[object] = []

    def add(self, value: object) -> str:
        """Bind a value; gives what stands for it in the statement."""
        self.values.append(value)
        return f"?{len(self.values)}"


def glob_literal(text: str) -> str:
    """A text in SQLite's GLOB that matches itself: a class of one character is that character."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in text)


def text_literal(text: str) -> str:
    """A str as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def json_path(path: Path) -> str:
    """The segments as a literal in SQLite's JSON path notation."""
    parts = [f"[{part}]" if isinstance(part, int) else "." + json.dumps(part) for part in path.segments]
    return text_literal("$" + "".join(parts))


class FieldSQL:
    """The expressions of one path. `table` is the alias before its columns, "" where indexes are defined."""

    def __init__(self, path: Path, table: str = "e.") -> None:
        self.column: str = f"{table}{path.root[1:]}"
        self.is_json: bool = path.root in (DOCUMENT, METADATA)
        self.fixed_rank = 5 if path.root == "$key" else 4
        if self.is_json:
            self.type: str = f"json_type({self.column}, {json_path(path)})"
            self.value: str = f"json_extract({self.column}, {json_path(path)})"
            self.elements: str = f"json_each({self.column}, {json_path(path)})"
            self.R = (
                f"CASE {self.type} WHEN 'integer' THEN 4 WHEN 'real' THEN 4 WHEN 'text' THEN 5 WHEN 'null' THEN 1 "
                "WHEN 'false' THEN 2 WHEN 'true' THEN 3 WHEN 'array' THEN 6 WHEN 'object' THEN 6 END"
            )
            self.V = (
                f"CASE {self.type} WHEN 'null' THEN 0 WHEN 'false' THEN 0 WHEN 'true' THEN 0 "
                f"WHEN 'array' THEN NULL WHEN 'object' THEN NULL ELSE {self.value} END"
            )

    def terms(self, *, descending: bool = False, is_typed: bool = False) -> list[str]:
        """What ORDER BY takes. Missing comes last in either direction.

        `is_typed` says that the filter lets only numbers through, or only strings, so that the rank says nothing.
        """
        if self.is_json and is_typed:
            return [f"{self.V} DESC" if descending else self.V]
        if self.is_json:
            return [f"{self.R} DESC", f"{self.V} DESC"] if descending else [f"{self.R} NULLS LAST", self.V]
        return [f"{self.column} DESC" if descending else f"{self.column} NULLS LAST"]

    def columns(self, *, descending: bool = False) -> list[str]:
        """What an index has."""
        end = " DESC" if descending else ""
        return [f"{self.R}{end}", f"{self.V}{end}"] if self.is_json else [f"{self.column}{end}"]

    def is_missing(self, *, indexed: bool = False) -> str:
        """A condition."""
        if self.is_json and indexed:
            return f"({self.R} IS NULL AND {self.V} IS NULL)"  # with the second, the planner takes it for few
        if self.is_json:
            return f"{self.type} IS NULL"
        return f"{self.column} IS NULL"

    def there(self, *, indexed: bool) -> str:
        """A condition; where there is an index, a range of it that is taken for a small one."""
        if indexed:
            return f"unlikely({self.R} >= 1)" if self.is_json else f"unlikely({self.column} > {-(2**63) + 1})"
        return f"{self.type if self.is_json else self.column} IS NOT NULL"

    def has_rank(self, kind: int, *, indexed: bool) -> str:
        """A condition: the type of the value that is there."""
        if not self.is_json:
            return TRUE if kind == self.fixed_rank else FALSE
        if indexed:
            return f"{self.R} = {kind}"
        if kind == 4:
            return f"{self.type} IN {_NUMBERS}"
        return f"{self.type} IN ('array', 'object')" if kind == 6 else f"{self.type} = {_TYPE_OF_RANK[kind]}"

    def compared(self, *, indexed: bool) -> str:
        """The number or string to compare, where the rank is known."""
        if not self.is_json:
            return self.column
        return self.V if indexed else self.value


@functools.lru_cache(maxsize=128)
def field_sql(path: Path) -> FieldSQL:
    """The expressions of a path in a query."""
    return FieldSQL(path)


class Conditions:
    """Makes one filter an SQL condition. `indexed` are the paths that an index has, where R and V are written.

    `behind` are the fields of a sort, with their directions, where a cursor says from where on: an index is to be
    sought by the bound of the cursor then, and that of the filter, on the same side, is only tested.

    `scope` is the condition for the namespace. The sides of an OR repeat it: SQLite seeks each of them by an index of
    its own, and looks only at what stands in that side.
    """

    def __init__(
        self,
        bindings: Bindings,
        scope: str,
        indexed: frozenset[Path] = frozenset(),
        behind: Mapping[Path, bool] = _NOWHERE,
    ) -> None:
        self._bindings = bindings
        self._scope = scope
        self._indexed = indexed
        self._behind = behind

    def _any_of(self, parts: list[str]) -> str:
        parts = [part for part in parts if part != FALSE]
        if not parts or TRUE in parts:
            return TRUE if parts else FALSE
        if self._indexed and len(parts) > 1:
            parts = [f"({self._scope} AND {part})" for part in parts]
        return _balanced(parts, " OR ")

    def of(self, given: Filter, *, negated: bool = False) -> str:
        """The condition, true exactly where the filter matches; elsewhere false or NULL."""
        if isinstance(given, Not):
            return self.of(given.filter, negated=not negated)
        if isinstance(given, And | Or):
            before = len(self._bindings.values)
            parts = [self.of(part, negated=negated) for part in given.filters]
            condition = self._any_of(parts) if isinstance(given, And) == negated else _all_of(parts)
            if condition in (TRUE, FALSE):
                del self._bindings.values[before:]  # of the parts that do not matter now
            return condition
        if not isinstance(given, Comparison):
            raise InvalidFilterError(f"{type(given).__name__} is no kind of filter")
        operator = given.operator
        if operator in ("ne", "nin"):
            operator, negated = {"ne": "eq", "nin": "in"}[operator], not negated
        if negated and operator == "exists":
            return field_sql(given.path).is_missing(indexed=given.path in self._indexed)
        if not negated:
            return self._leaf(given.path, operator, given.operand, given.operand_text, given.path in self._indexed)
        leaf = self._leaf(given.path, operator, given.operand, given.operand_text, False)
        if leaf in (TRUE, FALSE):
            return FALSE if leaf == TRUE else TRUE
        # A condition that is NULL, because the field is missing or of another type, does not hold either.
        return f"({leaf}) IS NOT TRUE"

    def _leaf(self, path: Path, operator: str, operand: Any, text: str, indexed: bool) -> str:
        place = field_sql(path)
        if operator == "exists":
            return place.there(indexed=indexed)
        if operator == "eq":
            return self._equals(place, operand, text, indexed)
        if operator == "in":
            return self._is_in(place, operand, indexed)
        if operator in ORDERING:
            return self._range(path, operand, operator, indexed)
        if operator == "startsWith":
            return self._starts(path, operand, indexed)
        if operator == "endsWith":
            return self._ends(place, operand, indexed)
        return self._contains(place, operand, text, indexed)

    def _range(self, path: Path, operand: Any, operator: str, indexed: bool) -> str:
        place, sign = field_sql(path), _SIGNS[operator]
        has_rank = place.has_rank(rank(operand), indexed=indexed)
        if has_rank == FALSE or not indexed:
            return self._typed(place, rank(operand), f"{sign} {{}}", [operand], indexed)
        bound = f"{sign} {self._bindings.add(operand)}"
        if self._behind.get(path) is (sign[0] == "<"):
            return f"({has_rank} AND +{place.compared(indexed=True)} {bound})"
        # Without a hint the planner takes a range with one end for a quarter of everything, and rather walks by key.
        return f"({has_rank} AND unlikely({place.compared(indexed=True)} {bound}))"

    def _typed(self, place: FieldSQL, kind: int, comparison: str, operands: list[Any], indexed: bool) -> str:
        """A comparison of values of one rank; each `{}` in it stands for an operand."""
        has_rank = place.has_rank(kind, indexed=indexed)
        if has_rank == FALSE:
            return FALSE
        bound = comparison.format(*map(self._bindings.add, operands))
        compared = f"{place.compared(indexed=indexed)} {bound}"
        if indexed:
            return f"({has_rank} AND {compared})"
        # A scan compares first, and looks at the type of the few that are left.
        condition = f"{compared} AND {has_rank}"
        if kind == 5 and len(operands) == 1 and comparison == "= {}":
            return f"({self._holding(place, operands[0])}{condition})"
        return f"({condition})"

    def _holding(self, place: FieldSQL, text: str) -> str:
        """A first look at the whole document as text, which is five times as fast as taking it apart.

        A JSON text without a backslash has every string in it as it is, so a document that holds neither the string
        nor any backslash cannot match.
        """
        if not place.is_json or not _SEARCHABLE.fullmatch(text):
            return ""
        glob = self._bindings.add(f"*{glob_literal(text)}*")
        return f"({place.column} GLOB {glob} OR {place.column} GLOB '*\\*') AND "

    def _equals(self, place: FieldSQL, operand: Any, text: str, indexed: bool) -> str:
        kind = rank(operand)
        has_rank = place.has_rank(kind, indexed=indexed)
        if kind in (4, 5):
            return self._typed(place, kind, "= {}", [operand], indexed)
        if kind == 6 and place.is_json:
            is_equal = f"{EQUAL_FUNCTION}({place.value}, {self._bindings.add(text)})"
            if indexed:
                return f"(unlikely({has_rank}) AND {is_equal})"
            holding = "".join(self._holding(place, found) for found in _strings(operand)[:_SEARCHED])
            return f"({holding}{has_rank} AND {is_equal})"
        if indexed and place.is_json and kind < 4:
            return f"({has_rank} AND {place.V} = 0)"
        return has_rank

    def _is_in(self, place: FieldSQL, operands: list[Any], indexed: bool) -> str:
        arms: list[str] = []
        for kind in (4, 5):
            scalars = [value for value in operands if rank(value) == kind]
            if scalars:
                arms.append(self._typed(place, kind, f"IN ({', '.join('{}' for _ in scalars)})", scalars, indexed))
        constants = {rank(value): value for value in operands if rank(value) < 4}
        arms += [self._equals(place, value, "", indexed) for value in constants.values()]
        deep = [value for value in operands if rank(value) == 6]
        if deep and place.is_json:
            has_rank = place.has_rank(6, indexed=indexed)
            among = f"{AMONG_FUNCTION}({place.value}, {self._bindings.add(orjson.dumps(deep).decode())})"
            arms.append(f"({f'unlikely({has_rank})' if indexed else has_rank} AND {among})")
        return self._any_of(arms)

    def _starts(self, path: Path, prefix: str, indexed: bool) -> str:
        place, end = field_sql(path), successor(prefix)
        has_rank = place.has_rank(5, indexed=indexed)
        if has_rank == FALSE:
            return FALSE
        compared = place.compared(indexed=indexed)
        direction = self._behind.get(path) if indexed else None
        condition = f"{'+' if direction is False else ''}{compared} >= {self._bindings.add(prefix)}"
        if end is not None:
            condition += f" AND {'+' if direction is True else ''}{compared} < {self._bindings.add(end)}"
        return f"({has_rank} AND {condition})" if indexed else f"({condition} AND {has_rank})"

    def _ends(self, place: FieldSQL, suffix: str, indexed: bool) -> str:
        has_rank = place.has_rank(5, indexed=indexed)
        if not suffix:
            return has_rank
        if has_rank == FALSE:
            return FALSE
        found = f"substr({place.compared(indexed=indexed)}, -{len(suffix)}) = {self._bindings.add(suffix)}"
        return f"({has_rank} AND {found})"

    def _contains(self, place: FieldSQL, operand: Any, text: str, indexed: bool) -> str:
        arms: list[str] = []
        kind = rank(operand)
        has_rank = place.has_rank(5, indexed=indexed)
        if kind == 5 and has_rank != FALSE:
            found = f"instr({place.compared(indexed=indexed)}, {self._bindings.add(operand)}) > 0"
            arms.append(f"({has_rank} AND {found})")
        if place.is_json:
            element = self._element(kind, operand, text)
            array = f"{place.R} = 6 AND {place.type} = 'array'" if indexed else f"{place.type} = 'array'"
            arms.append(f"({array} AND EXISTS (SELECT 1 FROM {place.elements} AS item WHERE {element}))")
        return _balanced(arms, " OR ") if arms else FALSE

    def _element(self, kind: int, operand: Any, text: str) -> str:
        if kind == 4:
            return f"item.type IN {_NUMBERS} AND item.atom = {self._bindings.add(operand)}"
        if kind == 5:
            return f"item.type = 'text' AND item.atom = {self._bindings.add(operand)}"
        if kind == 6:
            return f"item.type IN ('array', 'object') AND {EQUAL_FUNCTION}(item.value, {self._bindings.add(text)})"
        return f"item.type = {_TYPE_OF_RANK[kind]}"


def _strings(operand: Any) -> list[str]:
    """Every string in a value, names of members included."""
    if isinstance(operand, str):
        return [operand]
    if isinstance(operand, dict):
        return [*operand, *(text for value in operand.values() for text in _strings(value))]
    return [text for value in operand for text in _strings(value)] if isinstance(operand, list) else []


def paths_of(given: Filter) -> frozenset[Path]:
    """The paths that a filter looks at."""
    if isinstance(given, Comparison):
        return frozenset((given.path,))
    parts = given.filters if isinstance(given, And | Or) else (given.filter,) if isinstance(given, Not) else ()
    return frozenset().union(*map(paths_of, parts))


def _all_of(parts: list[str]) -> str:
    parts = [part for part in parts if part != TRUE]
    if not parts or FALSE in parts:
        return FALSE if parts else TRUE
    return _balanced(parts, " AND ")


def typed_paths(given: Filter) -> frozenset[Path]:
    """The paths where a filter lets only numbers through, or only strings."""
    if isinstance(given, And):
        return frozenset().union(*map(typed_paths, given.filters))
    if isinstance(given, Comparison):
        is_scalar = given.operator == "eq" and rank(given.operand) in (4, 5)
        if is_scalar or given.operator in (*ORDERING, "startsWith", "endsWith"):
            return frozenset((given.path,))
    return frozenset()


def order_terms(sort: tuple[SortKey, ...], typed: frozenset[Path] = frozenset()) -> list[str]:
    """ORDER BY of a sort, the key included."""
    terms: list[str] = []
    for key in sort:
        if key.path.root == "$key":
            # It is its own tie-breaker, and there are no ties behind it.
            return [*terms, "e.key DESC" if key.descending else "e.key"]
        terms += field_sql(key.path).terms(descending=key.descending, is_typed=key.path in typed)
    return [*terms, "e.key DESC" if sort and sort[-1].descending else "e.key"]


def _balanced(parts: list[str], word: str) -> str:
    """Many parts with one word between, as a tree that is as flat as can be: SQLite limits the depth."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    return f"({_balanced(parts[:middle], word)}{word}{_balanced(parts[middle:], word)})"
