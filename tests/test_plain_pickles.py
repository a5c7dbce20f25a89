"""Hazard: a pickle from elsewhere runs code, eats the memory, or is read as another value than it holds.

The reader knows plain data alone. What it gives is compared with the standard library's unpickler, whose `find_class`
is closed here and whose Python form is used: the one in C reserves what a broken pickle asks for.
"""

from __future__ import annotations

import collections
import copyreg
import datetime as dt
import decimal
import io
import os
import pickle
import pickletools
import random
import struct
import sys
import tracemalloc
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia_storage import InvalidValueError
from mycelia_storage.codec import encode
from mycelia_storage.foreign.found import NotPlainError
from mycelia_storage.foreign.pickles import read_pickle

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 1 << 20
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.sampled_from([0, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31) - 1])
    | st.floats()
    | st.text()
    | st.text(min_size=250, max_size=260)
)
plain = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text(), inner)
        | inner.map(lambda value: [value, value, {"a": value}])  # the same object several times
    ),
    max_leaves=30,
)


class Closed(pickle._Unpickler):
    """The standard library's own, in Python, which finds no class."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")


def exactly(value: object) -> str:
    """A text by which 1, 1.0 and True differ, and -0.0, NaN and the order of members count."""
    return repr(value)


def reason(data: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(NotPlainError) as caught:
        read_pickle(data, limit)
    return str(caught.value)


# ---- plain data


@given(plain, st.sampled_from(PROTOCOLS))
def test_plain_data_comes_as_it_went(value: object, protocol: int) -> None:
    for data in (
        pickle.dumps(value, protocol),
        pickle._dumps(value, protocol),  # type: ignore[attr-defined]
        pickletools.optimize(pickle.dumps(value, protocol)),
    ):
        assert exactly(read_pickle(data, 1 << 26)) == exactly(value)


def test_long_lists_and_objects_are_read_through_all_their_batches() -> None:
    words = {str(number): number for number in range(5000)}
    long: list[object] = [list(range(5000)), words, tuple(range(5000)), [[]] * 5000]
    for value in long:
        for protocol in PROTOCOLS:
            assert read_pickle(pickle.dumps(value, protocol), LIMIT) == value


def test_what_stands_behind_the_end_is_left_aside_as_by_everybody() -> None:
    assert read_pickle(pickle.dumps([1]) + b"garbage", LIMIT) == [1]


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"S'it\\'s \\\\ \\x41\\n'\n.", "it's \\ A\n"),
        (b'S"a"\n.', "a"),
        (b"U\x02ab.", "ab"),
        (b"T\x02\x00\x00\x00ab.", "ab"),
        (b"(lp0\nI01\naI00\naI7\naL8L\naF1.5\na.", [True, False, 7, 8, 1.5]),
        (b"(dp1\nS'a'\np2\n(I1\nI2\ntp3\nsS'b'\ng3\ns.", {"a": (1, 2), "b": (1, 2)}),
        (b"]q\x00(K\x01K\x02e.", [1, 2]),
        (b"N0K\x01.", 1),
        (b"(K\x02K\x031K\x01.", 1),
    ],
)
def test_pickles_of_old_pythons(data: bytes, value: object) -> None:
    assert exactly(read_pickle(data, LIMIT)) == exactly(value) == exactly(pickle.loads(data))


# ---- what is no plain data


class Plain:
    def __init__(self) -> None:
        self.a = 1


class Slots:
    __slots__ = ("a",)


class Words(dict[str, int]):
    pass


class Items(list[int]):
    pass


OTHERS: list[tuple[object, str]] = [
    (b"abc", "bytes"),
    (b"", "bytes"),
    (b"x" * 300, "bytes"),
    (bytearray(b"abc"), "bytes"),
    ({1, 2}, "set"),
    (frozenset({1}), "frozenset"),
    (dt.datetime(2024, 1, 1, tzinfo=dt.UTC), "datetime.datetime"),
    (dt.date(2024, 1, 1), "datetime.date"),
    (decimal.Decimal("1.5"), "decimal.Decimal"),
    (uuid.UUID(int=1), "uuid.UUID"),
    (1j, "complex"),
    (print, "print"),
    (Plain, "Plain"),
    (Plain(), "Plain"),
    (Slots(), "Slots"),
    (Words(a=1), "Words"),
    (Items([1]), "Items"),
    (collections.OrderedDict(a=1), "collections.OrderedDict"),
    (collections.defaultdict(list, {"a": [1]}), "collections.defaultdict"),
    (collections.Counter("aab"), "collections.Counter"),
    (ValueError("x"), "ValueError"),
    (2**64, "integer beyond 64 bits"),
    (10**4000, "integer beyond 64 bits"),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("value", "name"), OTHERS, ids=[name for _, name in OTHERS])
def test_anything_else_is_named_with_its_place(value: object, name: str, protocol: int) -> None:
    if isinstance(value, Slots) and protocol < 2:
        return  # Python itself does not pickle it so
    data = pickle.dumps({"list": [1, {"member": value}], "behind": 1}, protocol)
    try:
        found = read_pickle(data, LIMIT)
    except NotPlainError as error:
        told = str(error)
    else:
        with pytest.raises(InvalidValueError) as caught:  # a long integer may be left to the rules for every value
            encode(found, LIMIT)
        told = str(caught.value)
    assert told.startswith("$.list[1].member: ")
    assert name in told.replace("bytearray", "bytes")


@pytest.mark.parametrize("key", [1, 1.5, None, True, (1, 2), b"a", frozenset({1})])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_key_that_is_no_text_is_told_with_its_place(key: object, protocol: int) -> None:
    told = reason(pickle.dumps({"a": [{key: 1}]}, protocol))
    assert told.startswith("$.a[0]: a key is of type ")


@pytest.mark.parametrize("make", [lambda a: [a], lambda a: {"x": a}, lambda a: (a, 1)])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_contains_itself_is_told_as_that(make: Any, protocol: int) -> None:
    inner: list[Any] = []
    inner.append(make(inner))
    assert "contains itself" in reason(pickle.dumps(inner, protocol))


# ---- pickles that were made to do harm


class Attack:
    """What pickles itself as a call."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.how = call, arguments

    def __reduce__(self) -> Any:
        return self.how


def attacks(mark: str) -> dict[str, bytes]:
    """Pickles each of which makes a file, if it is unpickled."""
    command = f"touch {mark}".encode()
    code = f"open({mark!r}, 'w').close()".encode()
    found = {f"REDUCE {protocol}": pickle.dumps(Attack(os.system, f"touch {mark}"), protocol) for protocol in PROTOCOLS}
    found |= {f"exec {protocol}": pickle.dumps([1, Attack(exec, code.decode())], protocol) for protocol in PROTOCOLS}
    found |= {
        "GLOBAL REDUCE": b"cposix\nsystem\n(S'" + command + b"'\ntR.",
        "INST": b"(S'" + command + b"'\niposix\nsystem\n.",
        "OBJ": b"(cposix\nsystem\nS'" + command + b"'\no.",
        "NEWOBJ": b"\x80\x02cbuiltins\nmap\n(cposix\nsystem\n]S'" + command + b"'\nat\x81(cbuiltins\nlist\nh0t.",
        "BUILD": b"\x80\x02cbuiltins\nexec\n}U\x01aU\x01bsb.",
        "popped": b"cbuiltins\nexec\n(S'" + code.replace(b"'", b'"') + b"'\ntR0N.",
        "memo": b"cposix\nsystem\np0\n0(S'" + command + b"'\ntp1\n0g0\ng1\nR.",
    }
    return found


@pytest.mark.parametrize("name", list(attacks("")))
def test_nothing_is_called(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "was_here"
    data = attacks(str(mark))[name]
    try:
        value = read_pickle(data, LIMIT)
    except NotPlainError:
        pass
    else:
        assert value is None  # what was made is thrown away by the pickle itself
    assert not mark.exists()


def test_the_attacks_would_hit_who_unpickles(tmp_path: Path) -> None:
    mark = tmp_path / "was_here"
    for name in ("REDUCE 0", "REDUCE 5", "GLOBAL REDUCE", "INST", "OBJ", "popped", "memo"):
        mark.unlink(missing_ok=True)
        pickle.loads(attacks(str(mark))[name])
        assert mark.exists(), name


def test_no_module_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("this", "antigravity"):
        monkeypatch.delitem(sys.modules, module, raising=False)
        for data in (
            b"c%b\nx\n." % module.encode(),
            b"\x80\x04\x8c%c%b\x8c\x01x\x93." % (len(module), module.encode()),
        ):
            assert f"{module}.x is not JSON" in reason(data)
        assert module not in sys.modules


def test_a_name_is_told_short_and_without_what_a_terminal_would_obey() -> None:
    told = reason(b"c\x1b[31m" + b"m" * 5000 + b"\nn\xc3\xa9\n.")
    assert len(told) < 250
    assert told.isascii()
    assert told.isprintable()


def test_the_registry_of_extensions_is_not_asked() -> None:
    copyreg.add_extension("collections", "OrderedDict", 240)
    try:
        data = pickle.dumps(collections.OrderedDict, 2)
        assert data[2:] == b"\x82\xf0."
        pickle.loads(data)  # from now on it stands in a cache, which find_class does not guard
        for opcode in (b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"):
            assert "class with the number 240" in reason(b"\x80\x02" + opcode + b")R.")
    finally:
        copyreg.remove_extension("collections", "OrderedDict", 240)
        copyreg._extension_cache.pop(240, None)  # type: ignore[attr-defined]


def test_references_to_what_is_elsewhere_are_followed_nowhere() -> None:
    for data in (b"Pname\n.", b"\x80\x02U\x04nameQ.", b"\x80\x05\x97.", b"\x80\x05\x97\x98."):
        assert "outside of the pickle is not JSON" in reason(data)


def billion_laughs(levels: int) -> bytes:
    """A list of ten references to a list of ten references to a list …"""
    parts = [b"\x80\x04]\x94(", b"\x8c\x03lol" * 10, b"e"]
    parts += [b"0]\x94(" + b"h" + bytes((level,)) + (b"h" + bytes((level,))) * 9 + b"e" for level in range(levels)]
    return b"".join(parts) + b"."


def test_a_billion_laughs_are_refused_at_once() -> None:
    assert read_pickle(billion_laughs(2), LIMIT) == [[["lol"] * 10] * 10] * 10
    for levels in (9, 100, 150):
        assert "more than 1,048,576 bytes of JSON" in reason(billion_laughs(levels))
    long = b"\x80\x04X" + struct.pack("<I", 100_000) + b"x" * 100_000 + b"\x940(" + b"h\x00" * 20_000 + b"t."
    assert "more than 1,048,576 bytes of JSON" in reason(long)


def refused(data: bytes, limit: int = 1 << 24) -> str:
    """Why an entry with this pickle is not taken over, by the reader or by the rules for every value."""
    try:
        value = read_pickle(data, limit)
        encode(value, limit)
    except (NotPlainError, InvalidValueError) as error:
        return str(error)
    raise AssertionError("it was accepted")


DEEP = 100_000


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
        b"\x80\x02)" + b"\x85" * DEEP + b".",
        b"(" * DEEP + b"t" * DEEP + b".",
        b"(lp0\n" * DEEP + b"a" * (DEEP - 1) + b".",
        b"\x80\x02" + b"}U\x01a" * DEEP + b"N" + b"s" * DEEP + b".",
        b"\x80\x02])" + b"\x85" * DEEP + b"q\x00h\x00\x86a.",
    ],
)
def test_depth_without_end_is_refused(data: bytes) -> None:
    assert "nested more than 200 deep" in refused(data)


def test_what_is_shared_counts_with_the_depth_at_which_it_stands() -> None:
    inner: list[Any] = []
    for _ in range(150):
        inner = [inner]
    deep: list[Any] = inner
    for _ in range(60):
        deep = [deep]
    assert "nested more than 200 deep" in reason(pickle.dumps([inner, deep, inner]))
    assert read_pickle(pickle.dumps([inner, inner]), LIMIT) == [inner, inner]


def test_marks_without_end_are_not_gathered() -> None:
    assert reason(b"(" * 5000 + b"N.") == "nested more than 200 deep"


def test_what_is_no_text_is_not_hashed_as_a_key() -> None:
    assert "a key is of type tuple" in reason(b"\x80\x02}]\x85K\x01s.")  # a tuple with a list in it has no hash
    assert "a key is of type tuple" in reason(b"\x80\x02})" + b"\x85" * DEEP + b"K\x01s.")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
        b"\x80\x05\x8e" + b"\xff" * 8 + b".",
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b".",
        b"B\xff\xff\xff\xff.",
        b"X\xff\xff\xff\xff.",
        b"T\xff\xff\xff\xff.",
        b"\x80\x02\x8b\xff\xff\xff\xff.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
        b"\x80\x02Nr\xff\xff\xff\xff0.",
        b"\x80\x02Np4294967295\n0.",
        b"L" + b"9" * 500_000 + b"L\n.",
        b"I" + b"9" * 500_000 + b"\n.",
        b"F" + b"9" * 500_000 + b"\n.",
    ],
)
def test_a_length_or_place_reserves_nothing(data: bytes) -> None:
    tracemalloc.start()
    try:
        refused(data)
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_pickle_is_no_longer_than_a_value_may_be() -> None:
    data = pickle.dumps("x" * 100)
    assert read_pickle(data, len(data)) == "x" * 100
    assert f"{len(data)} bytes, and {len(data) - 1} are the limit" in reason(data, len(data) - 1)


def test_broken_pickles_are_told_as_that() -> None:
    value = {"a": [1, 2.5, "é", None, True, 2**40, ("x", "y", "z", "w")], "b": "x" * 300}
    for protocol in PROTOCOLS:
        data = pickle.dumps(value, protocol)
        for length in range(len(data)):
            assert reason(data[:length]).startswith("a broken pickle: ")
    for data in (b"", b".", b"0.", b"a.", b"N2.", b"\xff.", b"((.", b"NN.", b"}K\x01u.", b"Na.", b"h\x00.", b"gx\n."):
        assert reason(data).startswith("a broken pickle: ")
    for data in (
        b"S'\\q'\n.",
        b"S'a\n.",
        b"Sa\n.",
        b"V\\uZZZZ\n.",
        b"X\x01\x00\x00\x00\xff.",
        b"Ix\n.",
        b"Fx\n.",
        b"Lx\n.",
    ):
        assert reason(data).startswith("a broken pickle: ")
    assert "protocol 6" in reason(b"\x80\x06N.")


# A marked place (open list) must not give away what stands below the mark.
@pytest.mark.parametrize("data", [b"]](K\x01ae.", b"K\x01(\x85t.", b"K\x01(R.", b"K\x01(bt.", b"}U\x01a(K\x01st."])
def test_no_opcode_reaches_below_a_mark(data: bytes) -> None:
    assert "lacks what it works on" in reason(data)


def test_spoiled_pickles_are_refused_or_read_as_everybody_reads_them() -> None:
    chance = random.Random(7)
    values: list[Any] = [
        {"name": "Ada", "born": 1815, "tags": ["a", "b", ["c"]], "at": (1.5, None, True)},
        [{"k": 1}, {"k": 2}, {"k": "k"}] * 3,
        [b"bytes", {1: 2}, {"set": {1, 2}}, dt.date(2024, 1, 1)],
    ]
    kept = 0
    for _ in range(6000):
        data = bytearray(pickle.dumps(chance.choice(values), chance.randrange(6)))
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(data))
            how = chance.randrange(3)
            if how == 0:
                data[at] = chance.choice(
                    b"().012NIJKMLFGSTUVXBClaetdsu}])pqrghjcRbioPQ\x80\x81\x85\x86\x87\x8c\x94\x93"
                )
            elif how == 1:
                data[at] ^= 1 << chance.randrange(8)
            else:
                del data[at : at + chance.randint(1, 4)]
            data = data or bytearray(b".")
        try:
            value = read_pickle(bytes(data), LIMIT)
        except NotPlainError:
            continue
        kept += 1
        assert exactly(value) == exactly(Closed(io.BytesIO(data)).load())
    assert kept > 200
