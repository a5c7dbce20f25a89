"""The conditions of `--where`: a small grammar over the same filters that programs use.

Called by `querying`. One text is one comparison:

    condition = path operator [operand]          an operand, unless the operator is `exists`
    path      = as in filters: name, address.city, tags[0], "a.b"."c d", $metadata.x, $created_at;
                a name with white space or one of = ! < > in it is quoted as well
    operator  = "=" | "==" | "!=" | ">" | ">=" | "<" | "<=" | ["not"] word
    word      = contains | startswith | endswith | in | exists | eq | ne | gt | gte | lt | lte | nin
    operand   = value; behind `in` and `nin` values with commas between them, in parentheses or not, or a JSON array
    value     = "text", with JSON's escapes | 'text', as it is | a JSON array or object | a bare word
    bare word = true | false | null | a number as JSON writes it | any other text without white space

Whatever is no condition is an InvalidFilterError that names the character, counted from 1, and shows no operand.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NoReturn, cast

from mycelia_storage.arguments import shown
from mycelia_storage.errors import InvalidFilterError
from mycelia_storage.filters import OPERATORS, ORDERING, TIMES, Comparison, Not
from mycelia_storage.query import parse_field

if TYPE_CHECKING:
    from mycelia_storage.filters import Filter

_PATH: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s=!<>"])+', re.DOTALL)
_SIGN: Final = re.compile(r"==|!=|>=|<=|=|>|<")
_WORD: Final = re.compile(r"[A-Za-z_]+(?![^\s\"'(\[{])")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
# What a person may take for a number though JSON does not.
_PERHAPS_NUMBER: Final = re.compile(r"[+-]?[0-9_,.]*[0-9][0-9_,.]*(?:[eE][+-]?[0-9]+)?")
_BARE: Final = re.compile(r"[^\s\"]+")
_BARE_IN_LIST: Final = re.compile(r"[^\s\",()]+")
_SPACE: Final = re.compile(r"\s*")
# In the reason why a text is no path, counted from 0.
_PLACE_IN_PATH: Final = re.compile(r" at character (\d+)")

_SIGNS: Final = {"=": "eq", "==": "eq", "!=": "ne", ">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_WORDS: Final = {**OPERATORS, "startswith": "startsWith", "endswith": "endsWith"}
_KNOWN: Final = "= != > >= < <= contains startswith endswith in exists, and not before a word"
_CONSTANTS: Final[dict[str, object]] = {"true": True, "false": False, "null": None}
_DECODER: Final = json.JSONDecoder()


def parse_where(text: str, where: str = "--where") -> Filter:
    """The filter that a condition spells. Raises InvalidFilterError that begins with `where` and the place."""
    return _Reader(text, where).condition()


class _Reader:
    """Reads one condition from its beginning to its end."""

    def __init__(self, text: str, where: str) -> None:
        self._text = text
        self._where = where
        self._position = 0

    def condition(self) -> Filter:
        self._skip_space()
        found = _PATH.match(self._text, self._position)
        if found is None:
            is_quote = self._text[self._position : self._position + 1] == '"'
            self._fail("the quoted name does not end" if is_quote else "a path is missing, such as address.city")
        try:
            path = parse_field(found[0])
        except InvalidFilterError as error:
            self._fail_in_path(found[0], str(error))
        self._position = found.end()
        operator, is_negated = self._operator()
        self._skip_space()
        start = self._position
        if operator == "exists":
            operand: object = True
        else:
            operand = self._list() if operator in ("in", "nin") else self._value(_BARE, operator)
            if path.root in TIMES:
                operand = self._times(operand, start)
        self._expect_end(operator)
        try:
            comparison = Comparison(path, operator, operand)
        except InvalidFilterError as error:
            self._fail(str(error), start)
        return Not(comparison) if is_negated else comparison

    def _fail_in_path(self, text: str, message: str) -> NoReturn:
        """Refuse a path. It is not shown, since behind a wrong operator it goes on into the operand."""
        reason = message.removeprefix(f"field: {shown(text)} is ")
        place = _PLACE_IN_PATH.search(reason)
        offset = 0 if place is None else int(place[1])
        self._fail(f"this is {_PLACE_IN_PATH.sub('', reason)}", self._position + offset)

    def _operator(self) -> tuple[str, bool]:
        """The operator's name in filters, and whether `not` stands before it."""
        self._skip_space()
        sign = _SIGN.match(self._text, self._position)
        if sign is not None:
            self._position = sign.end()
            return _SIGNS[sign[0]], False
        word = self._word()
        is_negated = word == "not"
        if is_negated:
            self._skip_space()
            word = self._word()
        if word not in _WORDS:
            self._fail(f"an operator is expected: {_KNOWN}")
        self._position += len(word)
        return _WORDS[word], is_negated

    def _word(self) -> str:
        found = _WORD.match(self._text, self._position)
        if found is None:
            return ""
        if found[0] == "not":
            self._position = found.end()
        return found[0]

    def _list(self) -> list[object]:
        """The operands of `in`: a JSON array, or values with commas between them."""
        if self._is_next("["):
            return cast("list[object]", self._json())
        is_enclosed = self._accept("(")
        found = [self._value(_BARE_IN_LIST)]
        while self._accept(","):
            found.append(self._value(_BARE_IN_LIST))
        if is_enclosed and not self._accept(")"):
            self._fail("a comma or ) is expected")
        return found

    def _value(self, bare: re.Pattern[str], operator: str = "in") -> object:
        self._skip_space()
        if self._is_next('"') or self._is_next("[") or self._is_next("{"):
            return self._json()
        if self._is_next("'"):
            end = self._text.find("'", self._position + 1)
            if end < 0:
                self._fail("the quoted text does not end")
            literal = self._text[self._position + 1 : end]
            self._position = end + 1
            return literal
        found = bare.match(self._text, self._position)
        if found is None:
            self._fail('an operand is missing; "" is the empty text')
        word = found[0]
        if word[0] in "=<>!":
            self._fail(f"an operand cannot begin with {word[0]}; a text that does is quoted")
        value = self._bare(word, operator)
        self._position = found.end()
        return value

    def _bare(self, word: str, operator: str) -> object:
        if word in _CONSTANTS:
            return _CONSTANTS[word]
        if _NUMBER.fullmatch(word):
            try:
                return json.loads(word)
            except ValueError:
                self._fail("a number has too many digits")
        if operator in ORDERING and _PERHAPS_NUMBER.fullmatch(word):
            self._fail("a number or a text? Numbers are written as in JSON (1000000, 0.5, -2e3), such a text in quotes")
        return word

    def _json(self) -> object:
        try:
            value, self._position = _DECODER.raw_decode(self._text, self._position)
        except json.JSONDecodeError as error:
            self._fail(f"not JSON: {error.msg.removesuffix(' at').removesuffix(' starting')}", error.pos)
        except RecursionError:
            self._fail("nested too deeply")
        except ValueError:
            self._fail("a number has too many digits")
        return value

    def _times(self, operand: object, start: int) -> object:
        """Texts as the times they tell; without a time zone they are in UTC, as everything that is printed."""
        if isinstance(operand, list):
            return [self._times(part, start) for part in cast("list[object]", operand)]
        if not isinstance(operand, str):
            return operand
        try:
            moment = datetime.fromisoformat(operand)
        except ValueError:
            self._fail(
                "a time is needed, such as 2024-05-01 or 2024-05-01T12:30:00Z, or milliseconds since 1970", start
            )
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

    def _expect_end(self, operator: str) -> None:
        self._skip_space()
        if self._position == len(self._text):
            return
        if operator == "exists":
            self._fail("exists takes no operand; its opposite is: not exists")
        self._fail(
            "the condition should end here: quote a text of several words, give a second condition its own --where"
        )

    def _skip_space(self) -> None:
        found = _SPACE.match(self._text, self._position)
        self._position = found.end() if found else self._position

    def _is_next(self, character: str) -> bool:
        return self._text.startswith(character, self._position)

    def _accept(self, character: str) -> bool:
        self._skip_space()
        is_next = self._is_next(character)
        self._position += is_next
        return is_next

    def _fail(self, reason: str, position: int | None = None) -> NoReturn:
        place = (self._position if position is None else position) + 1
        raise InvalidFilterError(f"{self._where}: character {place}: {reason}")
