"""Whether a whole file is sound: SQLite's own check, and whether rows and indexes say the same of keys and expiries.

Called before a backup gets its name, and before anything is made of a file that may be damaged.

A file has each key, and each expiry, twice: in its row and in an index. Where the two differ nobody can say which is
right. SQLite's own comparison searches the index for each row, which takes several times as long as to read both once:

- of both sides a number is made of each entry, and the sums of these are compared, since a sum does not mind the order;
- in SQL, some thousand rows at once, since what SQLite does inside a statement runs beside other threads, and a row
  that is handed to Python does not;
- in threads beside SQLite's check where there are connections for them, or else one after the other.
"""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

import apsw

from mycelia_storage.engines.sqlite import schema
from mycelia_storage.engines.sqlite.connection import STEPS_BETWEEN_LOOKS
from mycelia_storage.engines.sqlite.failures import DRIVER_ERRORS, to_storage_error
from mycelia_storage.engines.sqlite.telling import failing_as
from mycelia_storage.errors import StorageCorruptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mycelia_storage.engines.sqlite.telling import Teller

T = TypeVar("T")

SHOWN_PROBLEMS: Final = 20
INTEGRITY: Final = f"PRAGMA integrity_check({SHOWN_PROBLEMS})"
# All but whether each index has what the rows say.
STRUCTURE: Final = f"PRAGMA quick_check({SHOWN_PROBLEMS})"

_KEY_INDEX: Final = "sqlite_autoindex_storage_entries_1"
_EXPIRY_INDEX: Final = "storage_entries_expiry"
_LEAST_ID: Final = -(2**63)
_GREATEST_ID: Final = 2**63 - 1
# The texts of so many entries are in memory at once: for each side some megabytes, where keys are as long as can be.
_AT_ONCE: Final = 2000
# So many namespaces are told apart by comparing each entry's with all of them, which is faster than any search; and so
# many by which a text is chosen faster than it is put together.
_FEW: Final = 16
_VERY_FEW: Final = 3
# So often who waits for the threads tells that they go on.
_SECONDS_BETWEEN_LOOKS: Final = 0.02

# Of an entry's key: a text, which Python hashes. Neither 1 nor 0 is in a namespace, and what they separate wrongly in a
# damaged key they separate wrongly on both sides.
_KEYS: Final = "group_concat(id || x'01' || namespace || x'01' || key, x'00')"
# The same, of entries of which the namespace is known, or is one of very few.
_KEYS_INSIDE: Final = "group_concat(id || ? || key, x'00')"
_KEYS_OF_VERY_FEW: Final = "group_concat(id || CASE namespace {} ELSE x'01' || namespace || x'01' END || key, x'00')"
# Of an entry's expiry: a number below the prime at the end, by primes below 2**31 and 2**28, so that nothing overflows.
# Whatever is wrong with one of the three, it is another number. (The sum of 2**31 of them fits into 64 bits.)
_EXPIRIES_OF_FEW: Final = """
count(expires_at), NULL, sum((id % 268435399 * 16 + {}) * (expires_at % 2147483629 + 1) % 4294967291)"""
_EXPIRIES_OF_MANY: Final = """
count(expires_at), count(registered.rowid), sum(
  ((id % 2147483647 + 1) * (expires_at % 2147483629 + 1) + (id % 1048573 + 1) * (registered.rowid % 2097143 + 1))
  % 4294967291)"""
# A search in a small table for each entry that has an expiry, and none for the others.
_REGISTERED: Final = """
LEFT JOIN storage_namespaces AS registered
ON registered.name = CASE WHEN expires_at IS NOT NULL THEN namespace END"""

NEXT_NAMESPACE: Final = f"SELECT min(namespace) FROM storage_entries INDEXED BY {_KEY_INDEX} WHERE namespace > ?"

NEXT_ID: Final = "SELECT id FROM storage_entries NOT INDEXED WHERE id >= ? ORDER BY id LIMIT 1 OFFSET ?"
ROWS: Final = "SELECT count(*), {}, {} FROM storage_entries NOT INDEXED {} WHERE id BETWEEN ? AND ?"
EXPIRIES: Final = f"SELECT {{}} FROM storage_entries INDEXED BY {_EXPIRY_INDEX} {{}} WHERE expires_at IS NOT NULL"

END_INSIDE: Final = f"""
SELECT namespace, key FROM storage_entries INDEXED BY {_KEY_INDEX}
WHERE namespace = ? AND key > ? ORDER BY key LIMIT 1 OFFSET ?"""
END_OF_KEYS: Final = f"""
SELECT namespace, key FROM storage_entries INDEXED BY {_KEY_INDEX}
WHERE (namespace, key) > (?, ?) ORDER BY namespace, key LIMIT 1 OFFSET ?"""
# Three ways to say which keys, since the first is the fastest by far. A key that damage made a blob of is left out by
# all of them (blobs come behind all texts), and so is missing in the sum: as a text it would look like the right one.
_FROM_KEYS: Final = f"FROM storage_entries INDEXED BY {_KEY_INDEX} WHERE"
KEYS_INSIDE: Final = f"SELECT {_KEYS_INSIDE} {_FROM_KEYS} namespace = ? AND key > ? AND key <= ?"
KEYS_ACROSS: Final = (
    f"SELECT {_KEYS} {_FROM_KEYS} (namespace, key) > (?, ?) AND (namespace, key) <= (?, ?) AND key < x''"
)
KEYS_TO_THE_END: Final = f"SELECT {_KEYS} {_FROM_KEYS} (namespace, key) > (?, ?) AND key < x'' AND namespace < x''"

# Where namespaces are not registered, by whatever fault, no number stands for them.
_EXPIRIES_ONE_BY_ONE: Final = """
SELECT id, namespace, typeof(namespace), expires_at FROM storage_entries {} WHERE expires_at IS NOT NULL"""


def check_structure(
    connection: apsw.Connection, what: str, teller: Teller, others: Sequence[apsw.Connection] = ()
) -> None:
    """Raise StorageCorruptError where a file is damaged, but for what created indexes have of the documents.

    `others` are more connections to the file, if there are any: as many threads are at it then, besides this one.
    """
    with failing_as(what):
        is_newest = schema.verify(connection, what) == schema.NEWEST
    if not is_newest:  # the indexes of version 1 are searched by its migration, and not kept
        raise_problems(problems_of(connection, STRUCTURE, what, teller), what)
    elif others:
        _look_at_once(connection, what, teller, others)
    else:
        raise_problems(problems_of(connection, STRUCTURE, what, teller), what)
        compare(connection, what, teller)


def compare(connection: apsw.Connection, what: str, teller: Teller) -> None:
    """Raise StorageCorruptError where rows and indexes differ in a key or an expiry."""
    with _telling(connection, what, teller):
        apart = _told_apart(connection)
        rows, index = _walk(connection, what, _go_on, apart, _Left())
    _compare(connection, what, teller, rows, index)


def problems_of(connection: apsw.Connection, statement: str, what: str, teller: Teller) -> list[str]:
    """What SQLite itself finds wrong. Raises StorageCorruptError where it cannot even read on."""
    try:
        pages = connection.pragma("page_count")
        with teller.telling(connection, "checking", pages):
            return [str(line) for (line,) in connection.execute(statement) if line != "ok"]
    except apsw.SQLError as error:  # the statement is right: a created index has met a text that is no JSON
        raise StorageCorruptError(f"{what}: a stored value or its metadata is not JSON") from error
    except DRIVER_ERRORS as error:
        raise to_storage_error(error, what) from error


def raise_problems(problems: list[str], what: str) -> None:
    """Raise StorageCorruptError where there are any."""
    if problems:
        raise StorageCorruptError(f"{what}: {'; '.join(problems)}")


@contextlib.contextmanager
def _telling(connection: apsw.Connection, what: str, teller: Teller) -> Iterator[None]:
    try:
        pages = connection.pragma("page_count")
        with teller.telling(connection, "checking", pages):
            yield
    except DRIVER_ERRORS as error:
        raise to_storage_error(error, what) from error


# ---- both sides


class _Sums(NamedTuple):
    """Of one side: the sum for its keys; and how many expiries, how many of them in known namespaces, and their sum."""

    keys: int
    expiries: tuple[int, int, int]


class _Apart(NamedTuple):
    """How namespaces are told apart: what is selected of keys and expiries, what these are joined with; and what both
    are bound to.
    """

    keys: str
    expiries: str
    joined: str
    texts: tuple[str, ...]
    names: tuple[str, ...]


class _StoppedError(Exception):
    """Who waited for a walk does not any more."""


def _go_on() -> None:
    """Alone, a walk is stopped inside its statements."""


def _told_apart(connection: apsw.Connection) -> _Apart:
    """By the namespaces that are in use, where these are few, or else by those that are registered.

    The former are those of the index of keys. One that only a row or the index of expiries has, by whatever fault, has
    no number: then the sums differ.
    """
    names: list[str] = []
    name: Any = connection.execute(NEXT_NAMESPACE, ("",)).get
    while isinstance(name, str):
        if len(names) == _FEW:
            return _Apart(_KEYS, _EXPIRIES_OF_MANY, _REGISTERED, (), ())
        names.append(name)
        name = connection.execute(NEXT_NAMESPACE, (name,)).get
    cases = " ".join(f"WHEN ? THEN {number}" for number in range(1, len(names) + 1))
    expiries = _EXPIRIES_OF_FEW.format(f"CASE namespace {cases} END" if cases else "NULL")
    if not 0 < len(names) <= _VERY_FEW:
        return _Apart(_KEYS, expiries, "", (), tuple(names))
    keys = _KEYS_OF_VERY_FEW.format(" ".join("WHEN ? THEN ?" for _ in names))
    texts = tuple(text for name in names for text in (name, f"\1{name}\1"))
    return _Apart(keys, expiries, "", texts, tuple(names))


def _sum_of(texts: str | None) -> int:
    return sum(map(hash, texts.split("\0"))) if texts is not None else 0


def _added(expiries: tuple[int, int, int], expiring: int, known: int | None, more: int | None) -> tuple[int, int, int]:
    """With what was found in another piece; where few namespaces are told apart, all of them are known."""
    return expiries[0] + expiring, expiries[1] + (expiring if known is None else known), expiries[2] + (more or 0)


class _Left:
    """What is left to do of both sides: each piece is taken by one of those who walk, and nobody waits for another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._are_expiries_left = True
        self._least: int | None = _LEAST_ID
        self.are_dense: bool = True
        self._last_key: tuple[str, str] | None = ("", "")

    def takes_expiries(self) -> bool:
        """Whether the index of expiries, which is one piece, is for who asks."""
        with self._lock:
            is_first, self._are_expiries_left = self._are_expiries_left, False
        return is_first

    def take_rows(self, connection: apsw.Connection, what: str) -> tuple[int, int] | None:
        """The next piece of the rows, by its ids; None at the end."""
        with self._lock:
            if self._least is None:
                return None
            first = connection.execute(NEXT_ID, (self._least, 0)).get
            if first is None:
                self._least = None
                return None
            # So many ids are no more entries. Where most of them are not in use, the entries are counted first.
            last = first + _AT_ONCE - 1 if self.are_dense else connection.execute(NEXT_ID, (first, _AT_ONCE - 1)).get
            end = _GREATEST_ID if last is None else min(last, _GREATEST_ID)
            if not self._least <= first <= end:
                raise StorageCorruptError(f"{what}: the entries are out of order")
            self._least = end + 1 if end < _GREATEST_ID else None
            return first, end

    def take_keys(self, connection: apsw.Connection, what: str) -> tuple[str, tuple[str, ...]] | None:
        """The next piece of the index of keys, by its statement and what that is bound to; None at the end."""
        with self._lock:
            if self._last_key is None:
                return None
            namespace, key = self._last_key
            # The first takes a third of the time, and finds one in most pieces of a large namespace.
            end: Any = connection.execute(END_INSIDE, (namespace, key, _AT_ONCE - 1)).fetchone()
            if end is None:
                end = connection.execute(END_OF_KEYS, (namespace, key, _AT_ONCE - 1)).fetchone()
            if end is None:
                self._last_key = None
                return KEYS_TO_THE_END, (namespace, key)
            if not (type(end[0]) is type(end[1]) is str and (namespace, key) < end):
                # It would be walked for ever.
                raise StorageCorruptError(f"{what}: the index {_KEY_INDEX} is out of order")
            self._last_key = end
            if end[0] == namespace:
                return KEYS_INSIDE, (f"\1{namespace}\1", namespace, key, end[1])
            return KEYS_ACROSS, (namespace, key, *end)


def _walk(
    connection: apsw.Connection, what: str, go_on: Callable[[], None], apart: _Apart, left: _Left
) -> tuple[_Sums, _Sums]:
    """Take pieces until nothing is left; what the rows gave, and what the indexes gave."""
    index = _of_indexes(connection, what, go_on, apart, left)
    return _of_rows(connection, what, go_on, apart, left), index


def _of_rows(connection: apsw.Connection, what: str, go_on: Callable[[], None], apart: _Apart, left: _Left) -> _Sums:
    statement = ROWS.format(apart.keys, apart.expiries, apart.joined)
    keys, expiries = 0, (0, 0, 0)
    while True:
        go_on()
        ids = left.take_rows(connection, what)
        if ids is None:
            return _Sums(keys, expiries)
        ((many, texts, *found),) = connection.execute(statement, (*apart.texts, *apart.names, *ids))
        keys += _sum_of(texts)
        expiries = _added(expiries, *found)
        left.are_dense = many * 4 > ids[1] - ids[0]


def _of_indexes(connection: apsw.Connection, what: str, go_on: Callable[[], None], apart: _Apart, left: _Left) -> _Sums:
    keys, expiries = 0, (0, 0, 0)
    if left.takes_expiries():
        (found,) = connection.execute(EXPIRIES.format(apart.expiries, apart.joined), apart.names)
        expiries = _added(expiries, *found)
    while True:
        go_on()
        piece = left.take_keys(connection, what)
        if piece is None:
            return _Sums(keys, expiries)
        keys += _sum_of(connection.execute(*piece).get)


def _together(sums: Iterable[_Sums]) -> _Sums:
    keys, expiries = 0, (0, 0, 0)
    for one in sums:
        keys += one.keys
        expiries = _added(expiries, *one.expiries)
    return _Sums(keys, expiries)


def _compare(connection: apsw.Connection, what: str, teller: Teller, rows: _Sums, index: _Sums) -> None:
    differing = [_KEY_INDEX] if rows.keys != index.keys else []
    if rows.expiries != index.expiries or not _is_alike_one_by_one(connection, what, teller, rows):
        differing.append(_EXPIRY_INDEX)
    raise_problems([f"the entries and the index {name} do not say the same" for name in differing], what)


def _is_alike_one_by_one(connection: apsw.Connection, what: str, teller: Teller, rows: _Sums) -> bool:
    """Whether the expiries of namespaces that are not registered are the same too."""
    expiring, known, _ = rows.expiries
    if expiring == known:
        return True
    with _telling(connection, what, teller):
        one, other = (
            sum(map(hash, connection.execute(_EXPIRIES_ONE_BY_ONE.format(source))))
            for source in ("NOT INDEXED", f"INDEXED BY {_EXPIRY_INDEX}")
        )
    return one == other


# ---- at the same time


class Beside(Generic[T]):
    """Some work in a thread of its own.

    Where no thread can be started, at the end of a process say, it is done by who asks for what it gives.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._given: list[T] = []
        self._raised: list[BaseException] = []
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name="mycelia-check", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None

    def _run(self) -> None:
        try:
            self._given.append(self._work())
        except BaseException as error:  # noqa: BLE001  it is raised again by `result`
            self._raised.append(error)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait so long for the thread. Whether there is nothing more to wait for."""
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> T:
        """What the work gives; it raises what the work raises."""
        if self._thread is None:
            self._run()
        self.wait()
        if self._raised:
            raise self._raised[0]
        return self._given[0]


def _look_at_once(connection: apsw.Connection, what: str, teller: Teller, others: Sequence[apsw.Connection]) -> None:
    stopped, caller = threading.Event(), threading.get_ident()
    with failing_as(what):
        pages = connection.pragma("page_count")

    def go_on() -> None:
        if stopped.is_set():
            raise _StoppedError
        if threading.get_ident() == caller:
            teller.tell("checking", 0, pages)

    with failing_as(what):
        apart = _told_apart(connection)
    for other in others:
        other.set_progress_handler(stopped.is_set, STEPS_BETWEEN_LOOKS)
    left = _Left()
    walks = [Beside(partial(_walk, other, what, go_on, apart, left)) for other in others]
    try:
        raise_problems(problems_of(connection, STRUCTURE, what, teller), what)
        with _telling(connection, what, teller):  # and then it helps the others
            own = _walk(connection, what, go_on, apart, left)
        for walk in walks:
            while not walk.wait(_SECONDS_BETWEEN_LOOKS):
                teller.tell("checking", 0, pages)
        rows, index = map(_together, zip(own, *(walk.result() for walk in walks), strict=True))
    except DRIVER_ERRORS as error:
        raise to_storage_error(error, what) from error
    finally:
        stopped.set()
        for walk in walks:
            walk.wait()
    _compare(connection, what, teller, rows, index)
