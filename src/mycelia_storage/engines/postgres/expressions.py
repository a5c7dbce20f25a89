"""Filters and sorts as SQL: what each operator is, exactly, in terms of PostgreSQL's jsonb.

Called by `queries.py` and `indexes.py`. Paths become quoted literals, so that expression indexes match; operands are
bound, each with a cast, so that no type is guessed.

A field of a document is three expressions, none of which is ever NULL:

- P, its place: a number is itself, and what is no number stands where the order of types has it, by numbers that no
  document can hold: null -3e400, false -2e400, true -1e400, strings 1e400, arrays and objects 2e400, missing 3e400.
- S, the text of a string; "" for everything else.
- L, the first CUT characters of S. An index has this one: a key of an index is 2,704 bytes at the most, and no document
  may be refused because it is long. Where a text may be longer than L, S is compared too.

An index on (P, L, key) serves equality, ranges and the order of `sort` in both directions.

All text is compared under COLLATE "C", which is the order of code points in UTF-8.
"""

from __future__ import annotations

import functools
import json
import math
from typing import Any, Final

import orjson

from mycelia_storage.engines.postgres.documents import number, query_form
from mycelia_storage.errors import InvalidFilterError
from mycelia_storage.filters import DOCUMENT, METADATA, ORDERING, And, Comparison, Filter, Not, Or, Path
from mycelia_storage.keys import successor
from mycelia_storage.matching import rank

TRUE: Final = "true"
FALSE: Final = "false"

# Characters of up to four bytes. Three of these, sixteen numbers, the namespace and the key fit in a key of an index.
CUT: Final = 80

PLACES: Final = {1: "-3e400", 2: "-2e400", 3: "-1e400", 5: "1e400", 6: "2e400"}
IS_TEXT: Final = PLACES[5]
MISSING: Final = "3e400"
_ALL: Final = (*PLACES.values(), MISSING)
# What stands for an expiry that there is not: no time is so late.
NEVER: Final = "9223372036854775807"

_SIGNS: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_MAX_BIGINT: Final = 2**63 - 1


class Bindings:
    """The values of a statement, each with a number, so that a part of it may stand in several places."""

    def __init__(self) -> None:
        self.values: list[object] = []

    def add(self, value: object, kind: str) -> str:
        """Bind a value; gives what stands for it in the statement."""
        self.values.append(value)
        return f"${len(self.values)}::{kind}"

    def text(self, value: str) -> str:
        """Bind a text. U+0000 is in nothing that is stored, and comes only in cursors that somebody made up."""
        return self.add(value.partition("\0")[0], "text")

    def texts(self, values: list[str]) -> str:
        return self.add(values, "text[]")

    def number(self, value: float) -> str:
        """Bind a number as a decimal; the driver would round a float."""
        return self.add(number(value), "numeric")


def text_literal(text: str) -> str:
    """A str as an SQL literal, whatever `standard_conforming_strings` says."""
    quoted = text.replace("'", "''")
    return "E'" + quoted.replace("\\", "\\\\") + "'" if "\\" in quoted else f"'{quoted}'"


def _json(column: str, path: Path) -> str:
    """What stands at a path, as jsonb; NULL where nothing does."""
    if not any(isinstance(part, int) for part in path.segments):
        steps = "".join(f"->{text_literal(part)}::text" for part in path.segments if isinstance(part, str))
        return f"({column}{steps})"
    # `->0` would take a scalar for an array of one.
    parts = [f"[{part}]" if isinstance(part, int) else "." + json.dumps(part) for part in path.segments]
    literal = text_literal("strict $" + "".join(parts))
    return f"jsonb_path_query_first({column}, {literal}::jsonpath, '{{}}'::jsonb, true)"


def spelled(place: str) -> str:
    """A place as it stands in the definition of an index, where PostgreSQL would keep and show all of its digits."""
    return f"('{place}'::text)::numeric"


class FieldSQL:
    """The expressions of one path: in a query, or for the definition of an index, where columns have no alias."""

    def __init__(self, path: Path, *, is_definition: bool = False) -> None:
        table = "" if is_definition else "e."
        self.is_json: bool = path.root in (DOCUMENT, METADATA)
        self.is_key: bool = path.root == "$key"
        self.can_miss: bool = self.is_json or path.root == "$expires_at"
        if self.is_json:
            column = f"{table}{'doc' if path.root == DOCUMENT else 'meta'}"
            if path.root == METADATA and not path.segments:
                column = f"coalesce({column}, '{{}}'::jsonb)"  # there always is some, perhaps empty
            self.json: str = _json(column, path)
            null, false, true, string, deep, missing = map(spelled, _ALL) if is_definition else _ALL
            self.P: str = (
                f"(CASE jsonb_typeof({self.json}) WHEN 'number' THEN {self.json}::numeric WHEN 'string' THEN {string} "
                f"WHEN 'boolean' THEN CASE {self.json} WHEN 'true'::jsonb THEN {true} ELSE {false} END "
                f"WHEN 'null' THEN {null} WHEN 'array' THEN {deep} WHEN 'object' THEN {deep} ELSE {missing} END)"
            )
            text = f"CASE jsonb_typeof({self.json}) WHEN 'string' THEN {self.json} #>> '{{}}' ELSE '' END"
            self.S: str = f'({text} COLLATE "C")'
            self.L: str = f'(left({text}, {CUT}) COLLATE "C")'
            self.terms: tuple[str, ...] = (self.P, self.L)
            self.missing: str = f"{self.P} = {MISSING}"
            self.there: str = f"{self.P} < {MISSING}"
        else:
            column = f"{table}{path.root[1:]}"
            self.column: str = f"coalesce({column}, {NEVER})" if self.can_miss else column
            self.terms = (self.column,)
            self.missing = f"{self.column} = {NEVER}" if self.can_miss else FALSE
            self.there = f"{self.column} < {NEVER}" if self.can_miss else TRUE


@functools.lru_cache(maxsize=128)
def field_sql(path: Path) -> FieldSQL:
    """The expressions of a path in a query."""
    return FieldSQL(path)


class Conditions:
    """Makes one filter an SQL condition. `indexed` are the paths that an index has, None where that is not known."""

    def __init__(self, bindings: Bindings, indexed: frozenset[Path] | None = None) -> None:
        self._bindings = bindings
        self._indexed = indexed

    def of(self, given: Filter, *, negated: bool = False) -> str:
        """The condition, true exactly where the filter matches; never NULL."""
        if isinstance(given, Not):
            return self.of(given.filter, negated=not negated)
        if isinstance(given, And | Or):
            before = len(self._bindings.values)
            parts = [self.of(part, negated=negated) for part in given.filters]
            condition = any_of(parts) if isinstance(given, And) == negated else all_of(parts)
            if condition in (TRUE, FALSE):
                del self._bindings.values[before:]  # of the parts that do not matter now
            return condition
        if not isinstance(given, Comparison):
            raise InvalidFilterError(f"{type(given).__name__} is no kind of filter")
        operator = given.operator
        if operator in ("ne", "nin"):
            operator, negated = {"ne": "eq", "nin": "in"}[operator], not negated
        place = field_sql(given.path)
        if operator == "exists":
            return place.missing if negated else place.there
        leaf = self._json_leaf(place, operator, given) if place.is_json else self._column(place, operator, given)
        if not negated:
            return leaf
        return {TRUE: FALSE, FALSE: TRUE}.get(leaf, f"NOT {leaf}")

    def same(self, path: Path, kind: int, value: Any) -> str:
        """The condition for one scalar, by the rank of its type."""
        place = field_sql(path)
        if not place.is_json:
            return f"{place.column} = {self._bindings.add(str(value), 'text' if place.is_key else 'bigint')}"
        if kind == 5:
            return all_of(self._same_text(place, value))
        return self.at(path, self._bindings.number(value) if kind == 4 else PLACES[kind])

    def at(self, path: Path, where: str) -> str:
        """The condition for a place that is no string's."""
        place = field_sql(path)
        if self._indexed is not None and path not in self._indexed:
            return f"{place.P} = {where}"
        # That L is empty then is news to the planner, which takes what comes behind it in an index as sorted.
        return f"({place.P} = {where} AND {place.L} = '')"

    # ---- fields of documents

    def _json_leaf(self, place: FieldSQL, operator: str, given: Comparison) -> str:
        operand = given.operand
        if operator == "eq":
            return self._equals(given.path, operand, given.operand_text)
        if operator == "in":
            return self._is_in(place, operand)
        if operator in ORDERING:
            if rank(operand) == 4:
                return self._range_of_numbers(place, operator, operand)
            return self._texts(place, *self._bounds(place, operator, operand))
        if operator == "startsWith":
            return self._starts(place, operand)
        if operator == "endsWith":
            if not operand:
                return self._texts(place)
            return self._texts(place, f"right({place.S}, {len(operand)}) = {self._bindings.text(operand)}")
        return self._contains(place, operand, given.operand_text)

    def _texts(self, place: FieldSQL, *conditions: str) -> str:
        """Conditions on strings."""
        return all_of([f"{place.P} = {IS_TEXT}", *conditions])

    def _range_of_numbers(self, place: FieldSQL, operator: str, operand: float) -> str:
        end = f"{place.P} > {PLACES[3]}" if operator in ("lt", "lte") else f"{place.P} < {IS_TEXT}"
        return f"({place.P} {_SIGNS[operator]} {self._bindings.number(operand)} AND {end})"

    def _bounds(self, place: FieldSQL, operator: str, operand: str) -> list[str]:
        """A text before or behind another: by L as far as it goes."""
        sign = _SIGNS[operator]
        if len(operand) < CUT:
            return [f"{place.L} {sign} {self._bindings.text(operand)}"]
        cut = f"{place.L} {sign[0]}= {self._bindings.text(operand[:CUT])}"
        return [cut, f"{place.S} {sign} {self._bindings.text(operand)}"]

    def _starts(self, place: FieldSQL, prefix: str) -> str:
        if not prefix:
            return self._texts(place)
        end = successor(prefix)
        bounds = self._bounds(place, "gte", prefix)
        if end is not None:
            bounds += self._bounds(place, "lt", end)
        return self._texts(place, *bounds)

    def _same_text(self, place: FieldSQL, text: str) -> list[str]:
        """The conditions for one string."""
        conditions = [f"{place.P} = {IS_TEXT}", f"{place.L} = {self._bindings.text(text[:CUT])}"]
        if len(text) >= CUT:
            conditions.append(f"{place.S} = {self._bindings.text(text)}")
        return conditions

    def _equals(self, path: Path, operand: Any, text: str) -> str:
        if rank(operand) < 6:
            return self.same(path, rank(operand), operand)
        place = field_sql(path)
        return f"({place.P} = {PLACES[6]} AND {place.json} = {self._bindings.add(query_form(text), 'jsonb')})"

    def _is_in(self, place: FieldSQL, operands: list[Any]) -> str:
        arms: list[str] = []
        # Null and the booleans have a number each, too.
        places = [number(value) if rank(value) == 4 else PLACES[rank(value)] for value in operands if rank(value) < 5]
        if places:
            arms.append(f"{place.P} = ANY({self._bindings.add(places, 'numeric[]')})")
        texts = [value for value in operands if rank(value) == 5]
        if texts:
            conditions = [f"{place.L} = ANY({self._bindings.texts(list({text[:CUT] for text in texts}))})"]
            if any(len(text) >= CUT for text in texts):
                conditions.append(f"{place.S} = ANY({self._bindings.texts(texts)})")
            arms.append(self._texts(place, *conditions))
        deep = [query_form(orjson.dumps(value).decode()) for value in operands if rank(value) == 6]
        if deep:
            among = f"{place.json} = ANY({self._bindings.add(deep, 'jsonb[]')})"
            arms.append(f"({place.P} = {PLACES[6]} AND {among})")
        return any_of(arms)

    def _contains(self, place: FieldSQL, operand: Any, text: str) -> str:
        # For one scalar `@>` is exact; for a deep value it holds also where there is more, so that it only narrows.
        item = self._bindings.add(query_form(f"[{text}]"), "jsonb")
        condition = f"jsonb_typeof({place.json}) = 'array' AND {place.json} @> {item}"
        if rank(operand) == 6:
            array = f"CASE jsonb_typeof({place.json}) WHEN 'array' THEN {place.json} END"
            condition += (
                f" AND EXISTS (SELECT 1 FROM jsonb_array_elements({array}) AS item WHERE item.value = {item}->0)"
            )
        condition = f"coalesce({condition}, false)"
        if rank(operand) != 5:
            return condition
        found = [f"strpos({place.S}, {self._bindings.text(operand)}) > 0"] if operand else []
        return any_of([self._texts(place, *found), condition])

    # ---- columns

    def _column(self, place: FieldSQL, operator: str, given: Comparison) -> str:
        condition = (
            self._text(place, operator, given.operand) if place.is_key else self._integer(place, operator, given)
        )
        if condition in (TRUE, FALSE) or not place.can_miss:
            return condition
        return all_of([condition, place.there])

    def _text(self, place: FieldSQL, operator: str, operand: Any) -> str:
        column = place.column
        if operator == "eq":
            return f"{column} = {self._bindings.text(operand)}"
        if operator == "in":
            return f"{column} = ANY({self._bindings.texts(operand)})" if operand else FALSE
        if operator in ORDERING:
            return f"{column} {_SIGNS[operator]} {self._bindings.text(operand)}"
        if not operand:
            return TRUE
        if operator == "startsWith":
            low, end = f"{column} >= {self._bindings.text(operand)}", successor(operand)
            return low if end is None else f"({low} AND {column} < {self._bindings.text(end)})"
        if operator == "endsWith":
            return f"right({column}, {len(operand)}) = {self._bindings.text(operand)}"
        return f"strpos({column}, {self._bindings.text(operand)}) > 0"

    def _integer(self, place: FieldSQL, operator: str, given: Comparison) -> str:
        """A comparison of a column of integers; with a fraction, by the next integer."""
        column, operand = place.column, given.operand
        if operator in ("eq", "in"):
            values = [operand] if operator == "eq" else operand
            whole = [str(int(value)) for value in values if value == int(value) and abs(value) <= _MAX_BIGINT]
            if not whole:
                return FALSE
            if operator == "in":
                return f"{column} = ANY({self._bindings.add(whole, 'bigint[]')})"
            return f"{column} = {self._bindings.add(whole[0], 'bigint')}"
        bound = math.floor(operand) if operator in ("gt", "lte") else math.ceil(operand)
        if abs(bound) > _MAX_BIGINT:
            if (bound > 0) != (operator in ("lt", "lte")):
                return FALSE
            return place.there
        return f"{column} {_SIGNS[operator]} {self._bindings.add(str(bound), 'bigint')}"


def any_of(parts: list[str]) -> str:
    """One of these."""
    parts = [part for part in parts if part != FALSE]
    if not parts or TRUE in parts:
        return TRUE if parts else FALSE
    return parts[0] if len(parts) == 1 else f"({' OR '.join(parts)})"


def all_of(parts: list[str]) -> str:
    """All of these."""
    parts = [part for part in parts if part != TRUE]
    if not parts or FALSE in parts:
        return FALSE if parts else TRUE
    return parts[0] if len(parts) == 1 else f"({' AND '.join(parts)})"


def conjuncts(given: Filter) -> list[Filter]:
    """The parts that must all hold."""
    if isinstance(given, And):
        return [part for group in given.filters for part in conjuncts(group)]
    return [given]


def fixed_paths(given: Filter) -> frozenset[Path]:
    """The paths where all that a filter lets through is equal."""
    return frozenset(part.path for part in conjuncts(given) if isinstance(part, Comparison) and part.operator == "eq")


def kinds(given: Filter) -> dict[Path, int]:
    """The paths where a filter lets only numbers through, or only strings, and which (by `rank`)."""
    found: dict[Path, int] = {}
    for part in conjuncts(given):
        if isinstance(part, Comparison):
            if part.operator in ORDERING:
                found[part.path] = rank(part.operand)
            elif part.operator in ("startsWith", "endsWith"):
                found[part.path] = 5
    return found
