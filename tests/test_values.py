"""Random values, keys and patterns: what goes in comes out exactly, and what is bad is found wherever it hides.

The table of what is refused, and the edges that are known, are in `mycelia_storage.testing`; here Hypothesis looks
for those that are not.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mycelia_storage import (
    BatchError,
    InvalidKeyError,
    InvalidNamespaceError,
    InvalidValueError,
    escape_pattern,
    open_storage,
)
from mycelia_storage.testing import BAD_VALUES, BadValue, difference
from mycelia_storage.testing.bad_values import ENDLESS, PRECISE
from mycelia_storage.testing.strategies import json_values, keys, namespaces, scalars

if TYPE_CHECKING:
    from pathlib import Path

    from mycelia_storage import Storage

# One store serves all examples of a test: each example leaves it as it found it, or does not mind.
many_examples_one_store = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

# Some characters that patterns, ranges, SQL and encodings treat in their own ways.
_SPECIAL = st.text(st.sampled_from("ab*\\%_?[.\x01\x7f\u00e9\ud7ff\ue000\uffff\U00010000\U0010ffff"), max_size=6)
# So few that random patterns meet random keys.
_FEW = st.text(st.sampled_from("ab*\\?[]"), max_size=4)


@many_examples_one_store
@given(value=json_values(max_leaves=30), metadata=st.dictionaries(st.sampled_from("abc"), json_values()))
def test_a_value_comes_back_exactly(any_store: Storage, value: Any, metadata: dict[str, Any]) -> None:
    any_store.set("key", value, metadata=metadata)
    entry = any_store.get_entry("key")
    assert not difference(entry.value, value)
    assert not difference(entry.metadata, metadata)
    assert not difference(any_store.get("key"), value)
    any_store.set_many({"key": value, "other": [value]})
    assert not difference(any_store.get_many(["other", "key"]), {"other": [value], "key": value})
    assert not difference([entry.value for entry in any_store.scan()], [value, [value]])


@many_examples_one_store
@given(values=st.lists(json_values(), min_size=1, max_size=30))
def test_values_survive_a_file(tmp_path: Path, values: list[Any]) -> None:
    documents = {f"key{n:02}": value for n, value in enumerate(values)}
    with open_storage(tmp_path / "store.db") as store:
        store.clear()
        store.set_many(documents)
    with open_storage(tmp_path / "store.db") as store:
        assert not difference({entry.key: entry.value for entry in store.scan()}, documents)


@many_examples_one_store
@given(number=st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1))
def test_a_number_keeps_its_type_and_bits(any_store: Storage, number: float) -> None:
    any_store.set("key", [number, {"n": number}])
    assert not difference(any_store.get("key"), [number, {"n": number}])


@many_examples_one_store
@given(number=st.integers(min_value=2**63) | st.integers(max_value=-(2**63) - 1))
def test_an_integer_beyond_64_bits_is_refused(any_store: Storage, number: int) -> None:
    with pytest.raises(InvalidValueError, match=r"^\$\[1\]\.n"):
        any_store.set("key", [0, {"n": number}])
    assert any_store.count() == 0


@st.composite
def hiding_places(draw: st.DrawFn) -> tuple[list[str | int], list[Any]]:
    """A path of names and indexes, and the document around each of its steps."""
    path: list[str | int] = []
    around: list[Any] = []
    for _ in range(draw(st.integers(0, 6))):
        if draw(st.booleans()):
            path.append(draw(st.sampled_from(["a", "name", "_x", "B2"])))
            around.append(draw(st.dictionaries(st.text("cdef", max_size=3), scalars(), max_size=3)))
        else:
            around.append(draw(st.lists(scalars(), max_size=3)))
            path.append(draw(st.integers(0, len(around[-1]))))
    return path, around


def _hide(bad: object, path: list[str | int], around: list[Any]) -> Any:
    value = bad
    for step, document in zip(reversed(path), reversed(around), strict=True):
        if isinstance(step, str):
            value = {**document, step: value}
        else:
            value = [*document[:step], value, *document[step:]]
    return value


def _shown(path: list[str | int]) -> str:
    return "$" + "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in path)


@many_examples_one_store
@given(bad=st.sampled_from(PRECISE), place=hiding_places())
def test_a_bad_value_is_found_wherever_it_hides(
    any_store: Storage, bad: BadValue, place: tuple[list[str | int], list[Any]]
) -> None:
    path, around = place
    expected = _shown(path) + bad.path
    with pytest.raises(InvalidValueError) as caught:
        any_store.set("key", _hide(bad.make(), path, around), namespace="fresh")
    assert str(caught.value).startswith(expected)
    with pytest.raises(BatchError) as batch:
        any_store.set_many({"good": 1, "key": _hide(bad.make(), path, around)}, namespace="fresh")
    assert str(batch.value.errors["key"]).startswith(expected)
    assert any_store.list_namespaces() == ["default"]


@pytest.mark.parametrize("bad", ENDLESS, ids=lambda bad: bad.name)
def test_what_has_no_end_is_refused_from_inside_too(any_store: Storage, bad: BadValue) -> None:
    with pytest.raises(InvalidValueError, match=r"^\$\.a\[1\]"):
        any_store.set("key", {"a": [1, bad.make()]}, namespace="fresh")
    assert any_store.list_namespaces() == ["default"]


@pytest.mark.parametrize("bad", BAD_VALUES, ids=lambda bad: bad.name)
def test_a_bad_value_in_metadata_is_refused(any_store: Storage, bad: BadValue) -> None:
    with pytest.raises(InvalidValueError):
        any_store.set("key", 1, metadata={"a": bad.make()}, namespace="fresh")
    with pytest.raises(InvalidValueError):
        any_store.create_namespace("fresh", metadata={"a": bad.make()})
    assert any_store.list_namespaces() == ["default"]


@pytest.mark.parametrize("name", ["a b", "a.b", "", "1", "\u00e9", 'say "a"'])
def test_a_name_that_is_no_word_stands_in_quotes_in_a_path(any_store: Storage, name: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        any_store.set("key", {"x": {name: [{1}]}})
    message = str(caught.value)
    quoted = {f"$.x.{json.dumps(name)}[0]", f"$.x.{json.dumps(name, ensure_ascii=False)}[0]"}
    assert any(message.startswith(path) for path in quoted), message


# ---- keys and namespaces


@many_examples_one_store
@given(chosen=st.lists(keys() | _SPECIAL.filter(bool), min_size=1, max_size=20, unique=True))
def test_keys_are_kept_and_ordered_by_code_point(any_store: Storage, chosen: list[str]) -> None:
    any_store.clear()
    any_store.set_many(dict.fromkeys(chosen, 1))
    assert any_store.list_keys() == sorted(chosen)
    assert any_store.list_keys(reverse=True) == sorted(chosen, reverse=True)
    assert [entry.key for entry in any_store.scan(batch_size=3)] == sorted(chosen)
    assert list(any_store.get_many(chosen)) == chosen


@many_examples_one_store
@given(key=st.text(max_size=30) | st.text("\u20ac\U0001f600x", min_size=200, max_size=1030) | st.text("\ud800a\x00"))
def test_a_key_is_taken_exactly_if_it_is_valid(any_store: Storage, key: str) -> None:
    any_store.clear()
    if _utf8_length(key) in range(1, 1025) and "\0" not in key:
        any_store.set(key, 1)
        assert any_store.list_keys() == [key]
    else:
        with pytest.raises(InvalidKeyError):
            any_store.set(key, 1)
        assert any_store.count() == 0


@many_examples_one_store
@given(name=namespaces() | st.text(max_size=20) | st.text("\u20acx", min_size=80, max_size=260) | st.text("\x85*a"))
def test_a_namespace_is_taken_exactly_if_its_name_is_valid(any_store: Storage, name: str) -> None:
    control = any(character < " " or "\x7f" <= character <= "\x9f" for character in name)
    if _utf8_length(name) in range(1, 256) and "*" not in name and not control:
        any_store.set("key", 1, namespace=name)
        assert name in any_store.list_namespaces()
        assert any_store.list_keys(namespace=name) == ["key"]
    else:
        with pytest.raises(InvalidNamespaceError):
            any_store.set("key", 1, namespace=name)
        assert name not in any_store.list_namespaces()


def _utf8_length(text: str) -> int:
    """-1 for what cannot be written as UTF-8."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return -1


# ---- finding keys


def _as_regex(pattern: str) -> re.Pattern[str]:
    r"""What a pattern means, said a second time: `*` is any run, `\*` and `\\` are literal, the rest is itself."""
    parts = re.findall(r"\\[*\\]|\*|[^*\\]+|\\", pattern, re.DOTALL)
    meaning = {"*": ".*", "\\*": r"\*", "\\\\": r"\\"}
    return re.compile("".join(meaning.get(part) or re.escape(part) for part in parts), re.DOTALL)


@many_examples_one_store
@given(
    chosen=st.lists((_SPECIAL | _FEW).filter(bool), max_size=12, unique=True),
    pattern=st.none() | _SPECIAL | _FEW | _FEW,
    prefix=st.none() | st.none() | _SPECIAL | _FEW,
    after=st.none() | st.none() | _SPECIAL,
    limit=st.none() | st.integers(0, 5),
    offset=st.integers(0, 3),
    reverse=st.booleans(),
)
def test_list_keys_gives_what_its_arguments_mean(
    any_store: Storage,
    chosen: list[str],
    pattern: str | None,
    prefix: str | None,
    after: str | None,
    limit: int | None,
    offset: int,
    reverse: bool,
) -> None:
    any_store.clear()
    any_store.set_many(dict.fromkeys(chosen, 1))
    expected = [
        key
        for key in sorted(chosen, reverse=reverse)
        if (pattern is None or _as_regex(pattern).fullmatch(key))
        and key.startswith(prefix or "")
        and (after is None or (key < after if reverse else key > after))
    ][offset:][:limit]
    found = any_store.list_keys(
        pattern=pattern, prefix=prefix, start_after=after, limit=limit, offset=offset, reverse=reverse
    )
    assert found == expected


@many_examples_one_store
@given(text=_SPECIAL | st.text(max_size=10), others=st.lists(_SPECIAL, max_size=5))
def test_an_escaped_text_is_a_pattern_for_itself_alone(any_store: Storage, text: str, others: list[str]) -> None:
    candidates = {key for key in [text, *others, text + "a", "a" + text] if _utf8_length(key) > 0 and "\0" not in key}
    any_store.clear()
    any_store.set_many(dict.fromkeys(candidates, 1))
    if _utf8_length(text) >= 0 and "\0" not in text:
        assert any_store.list_keys(pattern=escape_pattern(text)) == ([text] if text else [])
        assert any_store.list_keys(pattern=escape_pattern(text) + "*") == sorted(
            key for key in candidates if key.startswith(text)
        )
