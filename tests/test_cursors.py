"""Hazard: a page skips an entry or gives one twice, because others wrote between two pages; or a cursor that was
damaged, cut, or made by another query gives a wrong page instead of an error.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mycelia_storage import InvalidFilterError, StorageQuery, field, open_storage
from mycelia_storage.page import identity
from mycelia_storage.query import parse_filter, parse_sort
from mycelia_storage.testing import FakeClock
from mycelia_storage.testing.query_strategies import worlds

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mycelia_storage import Storage

N = field("n")
SORTS: tuple[Any, ...] = (None, "n", "-n", ["-n", "m"], "$key", "-$key", "$metadata.m")
STAYING = 120

# What stays never changes; what comes, goes and moves stands between, at the same places of every order.
WRITER = """
import sys
from mycelia_storage import open_storage
with open_storage(sys.argv[1]) as store:
    print("ready", flush=True)
    for turn in range(10_000):
        if turn == 20:
            print("busy", flush=True)
        number = turn * 7 % 120
        store.set(f"key{number:03}+", {"n": turn % 10, "m": number % 3}, metadata={"m": turn % 4})
        store.set(f"key{number:03}-", {"n": None if turn % 2 else "text"})
        store.delete(f"key{(number + 31) % 120:03}+")
        store.delete(f"key{(number + 17) % 120:03}-")
        if turn % 10 == 9:
            store.set_many({f"moving{i}": {"n": (turn + i) % 10, "m": 1} for i in range(5)})
"""


def fill(store: Storage) -> list[str]:
    keys = [f"key{number:03}" for number in range(STAYING)]
    for number, key in enumerate(keys):
        store.set(key, {"n": number % 10, "m": number % 3} if number % 7 else {"m": 1}, metadata={"m": number % 4})
    return keys


def walk(store: Storage, sort: Any, size: int) -> list[str]:
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(10_000):
        page = store.query({"or": [N < 100, ~N.exists()]}, sort=sort, limit=size, cursor=cursor)
        seen += page.keys()
        cursor = page.cursor
        if cursor is None:
            return seen
    raise AssertionError("the pages have no end")


def look_again(store: Storage, keys: list[str], expected: dict[int, list[str]], *, rounds: int) -> None:
    """Every entry that stays comes once, and those come in their order."""
    staying = set(keys)
    for turn in range(rounds):
        for index, sort in enumerate(SORTS):
            seen = [key for key in walk(store, sort, 1 + (turn * 5 + index) % 9) if key in staying]
            assert seen == expected[index], f"sort {sort!r}"


@pytest.mark.parametrize("indexed", [False, True], ids=["without", "indexed"])
@pytest.mark.parametrize("target", ["memory:", "sqlite"])
def test_other_threads_write_meanwhile(tmp_path: Path, target: str, indexed: bool) -> None:
    with open_storage(tmp_path / "store.db" if target == "sqlite" else target) as store:
        keys = fill(store)
        if indexed:
            store.create_index("n")
            store.create_index("-n", "m")
        expected = {index: walk(store, sort, 7) for index, sort in enumerate(SORTS)}
        enough, busy = threading.Event(), threading.Event()
        errors: list[BaseException] = []

        def write(offset: int) -> None:
            turn = offset
            try:
                while not enough.is_set():
                    turn += 1
                    number = turn * 7 % STAYING
                    store.set(f"key{number:03}+{offset}", {"n": turn % 10, "m": number % 3}, metadata={"m": turn % 4})
                    store.set(f"key{number:03}-{offset}", {"n": [None, "text", True, [1]][turn % 4]})
                    store.delete(f"key{(number + 31) % STAYING:03}+{offset}")
                    store.set("moving", {"n": turn % 10})
                    if turn > offset + 5:
                        busy.set()
            except BaseException as error:  # noqa: BLE001 - shown by the test
                errors.append(error)

        threads = [threading.Thread(target=write, args=(offset,)) for offset in (0, 1)]
        for thread in threads:
            thread.start()
        try:
            assert busy.wait(30)
            look_again(store, keys, expected, rounds=2)
        finally:
            enough.set()
            for thread in threads:
                thread.join()
        assert not errors


def test_another_process_writes_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    with open_storage(file) as store:
        keys = fill(store)
        store.create_index("n", namespace=None)
        expected = {index: walk(store, sort, 7) for index, sort in enumerate(SORTS)}
        with subprocess.Popen([sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            try:
                assert writer.stdout.readline() == "ready\n"
                assert writer.stdout.readline() == "busy\n"
                look_again(store, keys, expected, rounds=2)
            finally:
                writer.kill()
        assert store.count(field("$key").startswith("moving")) == 5


CHANGES = st.lists(
    st.tuples(st.sampled_from(["set", "set", "delete"]), st.sampled_from("acegikmoqsuwy"), st.integers(0, 5)),
    max_size=4,
)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data(), size=st.integers(1, 4), every_page=st.lists(CHANGES, min_size=8, max_size=8))
def test_whatever_is_written_between_two_pages(data: st.DataObject, size: int, every_page: list[Any]) -> None:
    """Documents of every kind: those under the keys of `staying` stay, others come, change and go."""
    world = data.draw(worlds())
    documents = data.draw(st.lists(world.documents(), min_size=6, max_size=6))
    sort = data.draw(world.sorts(max_size=2))
    staying = dict(zip("bdhlrx", documents, strict=True))
    with tempfile.TemporaryDirectory(prefix="mycelia-cursors-") as directory:
        for target in ("memory:", f"{directory}/store.db"):
            walk_and_write(target, staying, documents, sort, size, every_page)


def walk_and_write(
    target: str, staying: dict[str, Any], documents: list[Any], sort: Any, size: int, every_page: list[Any]
) -> None:
    with open_storage(target, clock=FakeClock()) as store:
        store.set_many(staying)
        store.set_many(dict.fromkeys("aeimqu", documents[0]))
        order = [entry.key for entry in store.query(sort=sort) if entry.key in staying]
        seen: list[str] = []
        cursor: str | None = None
        for turn in range(1000):
            page = store.query(sort=sort, limit=size, cursor=cursor)
            seen += [entry.key for entry in page if entry.key in staying]
            cursor = page.cursor
            if cursor is None:
                break
            for what, key, which in every_page[turn] if turn < len(every_page) else ():
                if what == "set":
                    store.set(key, documents[which])
                else:
                    store.delete(key)
        assert seen == order


# ---- what is no cursor of this query


@pytest.fixture
def paged(any_store: Storage) -> Storage:
    any_store.set_many({f"key{number}": {"n": number, "m": str(number)} for number in range(10)})
    return any_store


def test_every_damage_is_noticed(paged: Storage) -> None:
    cursor = paged.query(N >= 0, sort="n", limit=3).cursor
    assert cursor is not None
    whole = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    right = paged.query(N >= 0, sort="n", limit=3, cursor=cursor).keys()
    assert right == ["key3", "key4", "key5"]
    damaged = [cursor[:length] for length in range(len(cursor))]
    damaged += [cursor[:place] + cursor[place + 1 :] for place in range(len(cursor))]
    damaged += [
        cursor[:place] + other + cursor[place + 1 :]
        for place in range(len(cursor))
        for other in "Aa0-_+/= \n\0é"
        if other != cursor[place]
    ]
    damaged += [
        base64.urlsafe_b64encode(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]).decode()
        for place in range(len(whole))
        for bit in (1, 128)
    ]
    damaged += [cursor * 2, cursor + cursor[:4], "A" * 1000, "A" * len(cursor), "=", "====", "\ud800", "x" * 1_000_000]
    refused = 0
    for text in damaged:
        try:
            found = paged.query(N >= 0, sort="n", limit=3, cursor=text).keys()
        except InvalidFilterError as error:
            refused += str(error).startswith("cursor: ")
        else:
            # Base64 writes the same bytes in several ways: what was read is what was written.
            assert found == right
            assert base64.urlsafe_b64decode(text.replace("+", "-").replace("/", "_") + "==") == whole
    assert refused > len(damaged) * 0.95


NO_PLACES: tuple[Any, ...] = (
    *(None, 5, "key1", {}, [], ["key1"], [[0, 4, 1], [0, 4, 1], "key1"]),
    *([[0, 4, 1], 5], [[0, 4, 1], None], [[0, 4, 1], ["key1"]], ["text", "key1"], [None, "key1"], [{}, "key1"]),
    *(
        [place, "key1"]
        for place in ([], [0, 4], [0, 4, 1, 1], [0, "4 OR 1", 0], [0, "4", 1], [0, 4.0, 1], [0, True, 0])
    ),
    *(
        [place, "key1"]
        for place in ([0, 0, 0], [0, 7, 0], [0, -1, 0], [2, 4, 1], [None, 4, 1], ["0", 4, 1], [False, 4, 1])
    ),
    *([place, "key1"] for place in ([1, 4, 1], [1, 0, 1], [1, 0, None], [0, 4, "1"], [0, 4, None], [0, 4, True])),
    *([place, "key1"] for place in ([0, 4, 2**63], [0, 4, [1]], [0, 5, 1], [0, 5, None], [0, 5, ["a"]])),
    *([place, "key1"] for place in ([0, 1, 1], [0, 2, None], [0, 3, True], [0, 6, "a"], [0, 6, []])),
)


def forged(payload: Any, filter: Any, sort: Any) -> str:
    """What anybody can make who knows the query and reads how a cursor is sealed."""
    query = identity("default", parse_filter(filter), parse_sort(sort))
    text = payload if isinstance(payload, bytes) else orjson.dumps(payload)
    seal = hashlib.blake2b(text, digest_size=12, key=query.digest).digest()
    return base64.urlsafe_b64encode(seal + text).decode().rstrip("=")


@pytest.mark.parametrize("filter", [None, N >= 0], ids=repr)
@pytest.mark.parametrize("sort", ["n", "-n"])
def test_a_forged_cursor_reaches_no_engine(paged: Storage, filter: Any, sort: str) -> None:
    assert paged.query(filter, sort=sort, cursor=forged([[0, 4, 4], "key4"], filter, sort)).keys()
    for payload in (*NO_PLACES, b"", b"{", b"\xff", b"[" * 5000):
        with pytest.raises(InvalidFilterError, match="^cursor: it holds no "):
            paged.query(filter, sort=sort, cursor=forged(payload, filter, sort))
    for payload in (["key1", "key1"], [], [5], [None], "key1", 5):
        with pytest.raises(InvalidFilterError, match="^cursor: it holds no "):
            paged.query(filter, cursor=forged(payload, filter, None))


@pytest.mark.parametrize(
    ("sort", "good", "bad"),
    [
        ("$key", [[0, 5, "key4"]], [[1, 0, 0], [0, 4, 1], [0, 6, 0], [0, 1, 0]]),
        ("-$version", [[0, 4, 5], [0, 4, 0.5]], [[1, 0, 0], [0, 5, "key1"], [0, 6, 0], [0, 3, 0]]),
        ("$created_at", [[0, 4, 5]], [[1, 0, 0], [0, 5, "2024"], [0, 6, 0]]),
        ("-$expires_at", [[0, 4, 5], [1, 0, 0]], [[0, 5, "2024"], [0, 1, 0]]),
        ("$metadata.m", [[0, rank, 0] for rank in (1, 2, 3, 4, 6)] + [[0, 5, ""], [1, 0, 0]], [[0, 0, 0]]),
    ],
)
def test_a_forged_place_is_of_the_type_that_the_field_has(paged: Storage, sort: str, good: Any, bad: Any) -> None:
    for place in good:
        paged.query(sort=sort, limit=3, cursor=forged([place, "key4"], None, sort))
    for place in bad:
        with pytest.raises(InvalidFilterError, match="^cursor: it holds no place"):
            paged.query(sort=sort, limit=3, cursor=forged([place, "key4"], None, sort))


@pytest.mark.parametrize("bad", [b"abc", 1, 1.5, True, False, [], {}, ..., ("a",)], ids=repr)
def test_what_is_no_text_is_no_cursor(paged: Storage, bad: Any) -> None:
    with pytest.raises(InvalidFilterError, match="^cursor: a str from Page.cursor is needed"):
        paged.query(cursor=bad)


def test_cursors_of_other_queries_are_refused(paged: Storage) -> None:
    paged.set_many({f"key{number}": {"n": number} for number in range(10)}, namespace="other")
    queries: list[Callable[..., Any]] = [
        lambda **more: paged.query(limit=3, **more),
        lambda **more: paged.query(namespace="other", limit=3, **more),
        lambda **more: paged.query(sort="$key", limit=3, **more),
        lambda **more: paged.query(sort="-$key", limit=3, **more),
        lambda **more: paged.query(sort="n", limit=3, **more),
        lambda **more: paged.query(sort="-n", limit=3, **more),
        lambda **more: paged.query(sort="m", limit=3, **more),
        lambda **more: paged.query(sort=["n", "m"], limit=3, **more),
        lambda **more: paged.query(sort=["m", "n"], limit=3, **more),
        lambda **more: paged.query(N > 0, sort="n", limit=3, **more),
        lambda **more: paged.query(N >= 0, sort="n", limit=3, **more),
        lambda **more: paged.query(N > "0", sort="n", limit=3, **more),
        lambda **more: paged.query(~(N > 100), sort="n", limit=3, **more),
        lambda **more: paged.query((N > 0) & (N > 1), sort="n", limit=3, **more),
        lambda **more: paged.query((N > 0) | (N > 1), sort="n", limit=3, **more),
        lambda **more: paged.query(N.is_in(range(10)), sort="n", limit=3, **more),
        lambda **more: paged.query(sort=field('"x y"'), limit=3, **more),
        lambda **more: paged.query(sort=[field("x" * 100 + " a")], limit=3, **more),
        lambda **more: paged.query(sort=[field("x" * 100 + " b")], limit=3, **more),
    ]
    cursors = [(number, ask().cursor) for number, ask in enumerate(queries)]
    made = {cursor for _, cursor in cursors if cursor is not None}
    assert len(made) == len(queries) - 1  # `N > "0"` finds nothing
    for number, ask in enumerate(queries):
        for other, cursor in cursors:
            if cursor is None or other == number:
                continue
            with pytest.raises(InvalidFilterError, match="another filter, sort or namespace"):
                ask(cursor=cursor)


def test_the_same_question_in_another_form_is_the_same_query(paged: Storage) -> None:
    cursor = paged.query((N >= 2) & ~(N == 5), sort="-n", limit=3).cursor
    written = {
        "and": [{"field": "n", "operator": "gte", "value": 2}, {"not": {"field": ["n"], "operator": "eq", "value": 5}}]
    }
    forms: tuple[dict[str, Any], ...] = (
        {"filter": written, "sort": [{"field": "n", "order": "desc"}]},
        {"filter": StorageQuery(written, sort=N.desc())},
        {"filter": StorageQuery(written, limit=2), "sort": ("-n",)},
    )
    for form in forms:
        assert paged.query(cursor=cursor, **form).keys()[:2] == ["key6", "key4"]
    assert paged.namespace("default").query(written, sort="-n", cursor=cursor)[0].key == "key6"
    with paged.transaction() as tx:
        assert tx.query(written, sort="-n", cursor=cursor)[0].key == "key6"


def test_a_cursor_goes_with_no_offset(paged: Storage) -> None:
    cursor = paged.query(limit=3, offset=2).cursor
    assert paged.query(limit=3, cursor=cursor).keys() == ["key5", "key6", "key7"]
    with pytest.raises(InvalidFilterError, match="^offset: "):
        paged.query(limit=3, cursor=cursor, offset=1)
    with pytest.raises(InvalidFilterError, match="^offset: "):
        paged.query(StorageQuery(offset=1), cursor=cursor)


def test_a_cursor_holds_after_reopening(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    values = [None, True, 2**53 + 1, 0.1, -0.0, "\U0001f600", "'", [1], {"a": 1}, 1e308, ""]
    with open_storage(file) as store:
        store.set_many({f"key{number}": {"v": value} for number, value in enumerate(values)} | {"missing": 1})
        whole = store.query(sort="-v").keys()
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(len(values) + 1):
        with open_storage(file) as store:
            page = store.query(sort="-v", limit=1, cursor=cursor)
        seen += page.keys()
        cursor = page.cursor
    assert cursor is None
    assert seen == whole


def test_a_cursor_shows_no_secret_of_the_store_but_is_opaque(paged: Storage) -> None:
    cursor = paged.query(sort="n", limit=3).cursor
    assert cursor is not None
    assert cursor.isascii()
    assert not set(cursor) & set(" \n+/=&?#%'\"")
