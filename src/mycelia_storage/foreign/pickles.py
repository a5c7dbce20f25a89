"""Pickles, read without unpickling: plain data out of them, and a name for everything else.

Called by `contents`, for values and keys of sqlitedict, diskcache and shelve.

A pickle is a program, and `pickle.Unpickler` runs it. A subclass whose `find_class` raises takes its teeth out, but
what is left is still the interpreter's own machine, made for pickles that one trusts: a class that is known by its
number in the extension registry is taken from a cache without asking `find_class`; ten bytes reserve gigabytes, by a
memo's index or the length of a bytearray; the hash of a tuple that is nested deep enough ends the process; and the
first object that is no plain data ends the reading, so that nobody learns where in the value it stands.

So this is a machine of its own. Its rules:

1. It knows the opcodes of plain data: None, bool, int, float, str, list, tuple, dict. It imports nothing, looks nothing
   up and calls nothing that a pickle names.
2. An opcode that would name, make or change any other object (GLOBAL, REDUCE, BUILD, EXT1, PERSID, …) takes from the
   stack what it has to, and leaves an `Other` there, which knows only what it would have been called. So the rest is
   read to its end, and the report names the place: `$.created: a datetime.datetime`.
3. A length is held against what is there before anything is read or reserved. The memo is a dict. Keys of objects are
   texts; nothing else is ever hashed.
4. Nothing here is recursive but `Survey`, which stops at the depth that a document may have. It looks at each list and
   object once, however often a pickle shares it, and adds up how long the JSON would be: a kilobyte can spell more
   than fits on any disk.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any, Final, NoReturn

from mycelia_storage.codec import MAX_DEPTH
from mycelia_storage.foreign.found import NotPlainError
from mycelia_storage.foreign.survey import LONG_INT, WRONG_KEY, Other, Survey

if TYPE_CHECKING:
    from collections.abc import Callable

_HIGHEST_PROTOCOL: Final = 5
# A container, and a place in the memo, take some hundred bytes of memory, and one byte of a pickle.
_MOST_CONTAINERS: Final = 2_000_000
_MOST_MEMOS: Final = 4_000_000
_TOO_MANY_MEMOS: Final = f"a pickle that remembers more than {_MOST_MEMOS:,} objects"
# Each container that is being filled has one mark.
_MOST_MARKS: Final = 4 * MAX_DEPTH
_LONGEST_NUMBER: Final = 400  # characters of a float, or of an integer with leading zeros
_LONGEST_NAME: Final = 80
_LONG_TEXT: Final = 100
_INT_BYTES: Final = 9  # of an integer that may fit 64 bits
_BYTES: Final = "bytes"

# What the repr of an 8-bit string of Python 2 holds, and nothing more.
_ESCAPE: Final = re.compile(rb"\\(x[0-9a-fA-F]{2}|[\\'\"nrt])")
_UNBROKEN: Final = re.compile(rb"(?:[^\\]|\\(?:x[0-9a-fA-F]{2}|[\\'\"nrt]))*", re.DOTALL)
_ESCAPED: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_PRINTABLE: Final = re.compile(r"[^ -~]")


def read_pickle(data: bytes, limit: int) -> Any:
    """The plain value in a pickle, of at most `limit` bytes and as many of JSON. Raises NotPlainError."""
    if len(data) > limit:
        raise NotPlainError(f"a pickle of {len(data):,} bytes, and {limit:,} are the limit of a value")
    machine = _Machine(data)
    value = machine.run()
    if machine.is_suspicious:
        Survey(limit).look_at(value)
    return value


class _Machine:
    """One pickle being read. `is_suspicious` is set by whatever only a look at the whole value can judge."""

    __slots__ = ("at", "containers", "data", "end", "is_suspicious", "marks", "memo", "stack")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.end = len(data)
        self.stack: list[Any] = []
        self.marks: list[int] = []  # the height of the stack at each
        self.memo: dict[int, Any] = {}
        self.containers = 0
        self.is_suspicious = False

    def run(self) -> Any:
        data, end = self.data, self.end
        try:
            while self.at < end:
                opcode = data[self.at]
                self.at += 1
                if opcode == _STOP:
                    break
                _OPCODES[opcode](self)
            else:
                self.fail("it is cut off")
        except KeyError:
            self.fail(f"there is no opcode {data[self.at - 1]:#04x}")
        except IndexError:
            self.fail("an opcode lacks what it works on")
        except UnicodeDecodeError:
            self.fail("a text in it is none")
        if len(self.stack) != 1 or self.marks:
            self.fail("something is left over at its end")
        return self.stack.pop()

    def fail(self, reason: str) -> NoReturn:
        raise NotPlainError(f"a broken pickle: {reason}")

    # ---- what opcodes read and work on

    def take(self, size: int) -> bytes:
        begin = self.at
        self.at = begin + size
        if size < 0 or self.at > self.end:
            self.fail("it is cut off")
        return self.data[begin : self.at]

    def skip(self, size: int) -> None:
        self.at += size
        if size < 0 or self.at > self.end:
            self.fail("it is cut off")

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> bytes:
        begin = self.at
        found = self.data.find(b"\n", begin)
        if found < 0:
            self.fail("it is cut off")
        self.at = found + 1
        return self.data[begin:found]

    def push(self, value: object) -> None:
        """Put what is no container and no mark of something else on the stack."""
        self.stack.append(value)

    def push_other(self, name: str) -> None:
        self.is_suspicious = True
        self.count()
        self.stack.append(Other(name))

    def push_container(self, value: object) -> None:
        self.count()
        self.stack.append(value)

    def count(self) -> None:
        self.containers += 1
        if self.containers > _MOST_CONTAINERS:
            raise NotPlainError(f"a pickle of more than {_MOST_CONTAINERS:,} lists and objects")

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            self.fail("an opcode lacks what it works on")
        return self.stack.pop()

    def top(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            self.fail("an opcode lacks what it works on")
        return self.stack[-1]

    def mark(self) -> None:
        if len(self.marks) >= _MOST_MARKS:
            raise NotPlainError(f"nested more than {MAX_DEPTH} deep")
        self.marks.append(len(self.stack))

    def pop_mark(self) -> list[Any]:
        """What has been put on the stack since the last mark."""
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def memoize(self) -> None:
        """Remember what is on top in the next free place; nearly as frequent as texts."""
        stack, marks, memo = self.stack, self.marks, self.memo
        if marks and len(stack) <= marks[-1]:
            self.fail("an opcode lacks what it works on")
        memo[len(memo)] = stack[-1]
        if len(memo) > _MOST_MEMOS:
            raise NotPlainError(_TOO_MANY_MEMOS)

    def put(self, index: int) -> None:
        self.memo[index] = self.top()
        if len(self.memo) > _MOST_MEMOS:
            raise NotPlainError(_TOO_MANY_MEMOS)

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.fail("it refers to what it does not hold")
        value = self.memo[index]
        # Of what stands in the value twice only long texts and containers can make much out of little.
        if type(value) is not str or len(value) > _LONG_TEXT:
            self.is_suspicious = True
        self.stack.append(value)

    def fill(self, target: object, items: list[Any]) -> None:
        """Add keys and values by turns to a dict."""
        if len(items) % 2:
            self.fail("a key has no value")
        if type(target) is not dict:
            self.require_other(target)
            return
        # Keys one after the other and not by zip and update: one that is no text must not be hashed.
        for at in range(0, len(items), 2):
            key = items[at]
            if type(key) is str:
                target[key] = items[at + 1]
            else:
                self.is_suspicious = True
                target[WRONG_KEY] = key.name if isinstance(key, Other) else type(key).__name__

    def require_other(self, target: object) -> None:
        """An object that is not made takes whatever is added to it; plain data takes only what it can hold."""
        if not isinstance(target, Other):
            self.fail(f"{type(target).__name__} cannot take what an opcode adds to it")


# ---- opcodes of plain data


def _int(vm: _Machine) -> None:
    text = vm.line()
    if text in (b"00", b"01"):
        vm.push(text == b"01")  # as bools were before protocol 2
    else:
        _push_decimal(vm, text)


def _long(vm: _Machine) -> None:
    _push_decimal(vm, vm.line().removesuffix(b"L"))


def _push_decimal(vm: _Machine, text: bytes) -> None:
    if len(text) > _LONGEST_NUMBER:
        vm.push_other(LONG_INT)
        return
    try:
        vm.push(int(text, 0))  # as the standard library reads it
    except ValueError:
        vm.fail("a number in it is none")


def _push_binary(vm: _Machine, size: int) -> None:
    if size > _INT_BYTES:
        vm.skip(size)
        vm.push_other(LONG_INT)
    else:
        vm.push(int.from_bytes(vm.take(size), "little", signed=True))


def _binint1(vm: _Machine) -> None:
    vm.stack.append(vm.data[vm.at])  # past the end it is an IndexError
    vm.at += 1


def _binint(vm: _Machine) -> None:
    vm.push(int.from_bytes(vm.take(4), "little", signed=True))


def _float(vm: _Machine) -> None:
    text = vm.line()
    if len(text) > _LONGEST_NUMBER:
        vm.fail("a number in it is none")
    try:
        vm.push(float(text))
    except ValueError:
        vm.fail("a number in it is none")


def _binfloat(vm: _Machine) -> None:
    vm.push(struct.unpack(">d", vm.take(8))[0])


def _unicode(vm: _Machine) -> None:
    vm.push(str(vm.line(), "raw-unicode-escape"))


def _push_text(vm: _Machine, size: int) -> None:
    vm.push(str(vm.take(size), "utf-8", "surrogatepass"))


def _short_text(vm: _Machine) -> None:
    """The most frequent of all, and so without the calls that the others make."""
    data, begin = vm.data, vm.at + 1
    end = begin + data[vm.at]
    if end > vm.end:
        vm.fail("it is cut off")
    vm.at = end
    vm.stack.append(str(data[begin:end], "utf-8", "surrogatepass"))


def _string(vm: _Machine) -> None:
    line = vm.line()
    is_quoted = len(line) >= 2 and line[:1] == line[-1:] and line[:1] in (b"'", b'"')
    text = unescape(line[1:-1]) if is_quoted else None
    if text is None:
        vm.fail("a text in it is none")
    _push_old_text(vm, text)


def unescape(text: bytes) -> bytes | None:
    """What stands between the quotes of a text as Python writes it, a byte a character; None for anything else."""
    return _ESCAPE.sub(_unescaped, text) if _UNBROKEN.fullmatch(text) else None


def _unescaped(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return bytes((int(code[1:], 16),)) if len(code) == 3 else _ESCAPED.get(code, code)


def _push_old_text(vm: _Machine, text: bytes) -> None:
    """A `str` of Python 2, which may have been text or bytes: what is ASCII was text."""
    if text.isascii():
        vm.push(text.decode())
    else:
        vm.push_other("8-bit string of Python 2")


def _list(vm: _Machine) -> None:
    vm.push_container(vm.pop_mark())


def _tuple(vm: _Machine) -> None:
    vm.push_container(tuple(vm.pop_mark()))


def _short_tuple(size: int) -> Callable[[_Machine], None]:
    def make(vm: _Machine) -> None:
        items = [vm.pop() for _ in range(size)]
        vm.push_container(tuple(reversed(items)))

    return make


def _dict(vm: _Machine) -> None:
    items = vm.pop_mark()
    new: dict[str, Any] = {}
    vm.fill(new, items)
    vm.push_container(new)


def _append(vm: _Machine) -> None:
    value = vm.pop()
    _extend(vm, [value])


def _appends(vm: _Machine) -> None:
    items = vm.pop_mark()
    _extend(vm, items)


def _extend(vm: _Machine, items: list[Any]) -> None:
    target = vm.top()
    if type(target) is list:
        target.extend(items)
    else:
        vm.require_other(target)


def _setitem(vm: _Machine) -> None:
    value, key = vm.pop(), vm.pop()
    vm.fill(vm.top(), [key, value])


def _setitems(vm: _Machine) -> None:
    items = vm.pop_mark()
    vm.fill(vm.top(), items)


def _pop(vm: _Machine) -> None:
    if vm.marks and len(vm.stack) == vm.marks[-1]:
        vm.marks.pop()
    else:
        vm.stack.pop()


def _pop_mark(vm: _Machine) -> None:
    vm.pop_mark()


def _proto(vm: _Machine) -> None:
    protocol = vm.number(1)
    if protocol > _HIGHEST_PROTOCOL:
        raise NotPlainError(f"a pickle of protocol {protocol}, and {_HIGHEST_PROTOCOL} is the highest that is known")


def _frame(vm: _Machine) -> None:
    if vm.number(8) > vm.end - vm.at:
        vm.fail("it is cut off")


def _put_line(vm: _Machine) -> None:
    vm.put(_index(vm))


def _get_line(vm: _Machine) -> None:
    vm.get(_index(vm))


def _index(vm: _Machine) -> int:
    text = vm.line()
    if not text.isdigit() or len(text) > 10:
        vm.fail("a number in it is none")
    return int(text)


# ---- opcodes of everything else, which leave an `Other`


def _bytes(width: int) -> Callable[[_Machine], None]:
    def read(vm: _Machine) -> None:
        vm.skip(vm.number(width))
        vm.push_other(_BYTES)

    return read


def _old_text(width: int) -> Callable[[_Machine], None]:
    def read(vm: _Machine) -> None:
        _push_old_text(vm, vm.take(vm.number(width)))

    return read


def _additems(vm: _Machine) -> None:
    vm.pop_mark()
    vm.require_other(vm.top())


def _frozenset(vm: _Machine) -> None:
    vm.pop_mark()
    vm.push_other("frozenset")


def _global(vm: _Machine) -> None:
    vm.push_other(_name(vm.line().decode(), vm.line().decode()))


def _stack_global(vm: _Machine) -> None:
    name, module = vm.pop(), vm.pop()
    if type(name) is not str or type(module) is not str:
        vm.fail("a name in it is none")
    vm.push_other(_name(module, name))


def _name(module: str, name: str) -> str:
    """What a class or function is called, short and without anything that a terminal would obey."""
    module, name = module[:_LONGEST_NAME], name[:_LONGEST_NAME]
    whole = name if module in ("builtins", "__builtin__") else f"{module}.{name}"
    return _PRINTABLE.sub("?", whole[:_LONGEST_NAME])


def _reduce(vm: _Machine) -> None:
    arguments, called = vm.pop(), vm.pop()
    if getattr(called, "name", "") in ("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__"):
        # Objects before protocol 2: the class is the first argument.
        called = arguments[0] if type(arguments) is tuple and arguments else called
    elif getattr(called, "name", "") == "_codecs.encode":
        vm.push_other(_BYTES)  # as bytes are written before protocol 3
        return
    vm.push_other(_called(vm, called))


def _called(vm: _Machine, called: object) -> str:
    if not isinstance(called, Other):
        vm.fail("it calls what nobody can call")
    return called.name


def _build(vm: _Machine) -> None:
    vm.pop()
    vm.require_other(vm.top())


def _inst(vm: _Machine) -> None:
    name = _name(vm.line().decode(), vm.line().decode())
    vm.pop_mark()
    vm.push_other(name)


def _obj(vm: _Machine) -> None:
    items = vm.pop_mark()
    vm.push_other(_called(vm, items[0]))


def _newobj(vm: _Machine) -> None:
    vm.pop()
    vm.push_other(_called(vm, vm.pop()))


def _newobj_ex(vm: _Machine) -> None:
    vm.pop()
    _newobj(vm)


def _extension(width: int) -> Callable[[_Machine], None]:
    def read(vm: _Machine) -> None:
        vm.push_other(f"class with the number {vm.number(width)} in a registry of extensions")

    return read


def _persid(vm: _Machine) -> None:
    vm.line()
    vm.push_other("reference to something outside of the pickle")


def _binpersid(vm: _Machine) -> None:
    vm.pop()
    vm.push_other("reference to something outside of the pickle")


def _buffer(vm: _Machine) -> None:
    vm.push_other("buffer outside of the pickle")


_STOP: Final = ord(".")
# Every opcode of protocols 0 to 5 but STOP, and DUP, which no pickler writes.
_OPCODES: Final[dict[int, Callable[[_Machine], None]]] = {
    ord(opcode): run
    for opcode, run in (
        ("(", _Machine.mark),
        ("0", _pop),
        ("1", _pop_mark),
        ("N", lambda vm: vm.push(None)),
        ("\x88", lambda vm: vm.push(True)),
        ("\x89", lambda vm: vm.push(False)),
        ("I", _int),
        ("J", _binint),
        ("K", _binint1),
        ("M", lambda vm: vm.push(vm.number(2))),
        ("L", _long),
        ("\x8a", lambda vm: _push_binary(vm, vm.number(1))),
        ("\x8b", lambda vm: _push_binary(vm, vm.number(4))),
        ("F", _float),
        ("G", _binfloat),
        ("V", _unicode),
        ("X", lambda vm: _push_text(vm, vm.number(4))),
        ("\x8c", _short_text),
        ("\x8d", lambda vm: _push_text(vm, vm.number(8))),
        ("S", _string),
        ("T", _old_text(4)),
        ("U", _old_text(1)),
        ("]", lambda vm: vm.push_container([])),
        ("l", _list),
        ("a", _append),
        ("e", _appends),
        (")", lambda vm: vm.push(())),
        ("t", _tuple),
        ("\x85", _short_tuple(1)),
        ("\x86", _short_tuple(2)),
        ("\x87", _short_tuple(3)),
        ("}", lambda vm: vm.push_container({})),
        ("d", _dict),
        ("s", _setitem),
        ("u", _setitems),
        ("p", _put_line),
        ("q", lambda vm: vm.put(vm.number(1))),
        ("r", lambda vm: vm.put(vm.number(4))),
        ("\x94", _Machine.memoize),
        ("g", _get_line),
        ("h", lambda vm: vm.get(vm.number(1))),
        ("j", lambda vm: vm.get(vm.number(4))),
        ("\x80", _proto),
        ("\x95", _frame),
        # What is no plain data.
        ("B", _bytes(4)),
        ("C", _bytes(1)),
        ("\x8e", _bytes(8)),
        ("\x96", _bytes(8)),
        ("\x8f", lambda vm: vm.push_other("set")),
        ("\x90", _additems),
        ("\x91", _frozenset),
        ("c", _global),
        ("\x93", _stack_global),
        ("R", _reduce),
        ("b", _build),
        ("i", _inst),
        ("o", _obj),
        ("\x81", _newobj),
        ("\x92", _newobj_ex),
        ("\x82", _extension(1)),
        ("\x83", _extension(2)),
        ("\x84", _extension(4)),
        ("P", _persid),
        ("Q", _binpersid),
        ("\x97", _buffer),
        ("\x98", lambda vm: vm.require_other(vm.top())),
    )
}
