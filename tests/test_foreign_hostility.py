"""Hazard: a file that was made to be imported runs something, leads elsewhere, fills the memory or hangs the import."""

from __future__ import annotations

import contextlib
import dbm.dumb
import gzip
import os
import pickle
import random
import shutil
import sqlite3
import struct
import tracemalloc
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from foreign_files import DATA, make, state

from mycelia_storage import (
    ConfigError,
    NotAStorageFileError,
    StorageCorruptError,
    StorageError,
    StorageIOError,
    import_from,
    open_storage,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mycelia_storage import ImportReport, Storage
    from mycelia_storage.foreign.importing import Kind

CACHE = """
CREATE TABLE Cache (rowid INTEGER PRIMARY KEY, key BLOB, raw INTEGER, store_time REAL, expire_time REAL,
access_time REAL, access_count INTEGER DEFAULT 0, tag BLOB, size INTEGER DEFAULT 0, mode INTEGER DEFAULT 0,
filename TEXT, value BLOB)
"""
WORDS = "CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB)"


@contextlib.contextmanager
def database(path: Path, *statements: str) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for statement in statements:
            connection.execute(statement)
        yield connection
    finally:
        connection.close()


def take(store: Storage, kind: Kind, path: Path, **how: Any) -> ImportReport:
    return import_from(store, kind, path, on_error="skip", **how)


def reasons(report: ImportReport) -> dict[str, str]:
    return {problem.key: problem.reason for problem in report.problems}


# ---- names of files in diskcache


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A directory with an empty cache, beside files that are nobody's business."""
    directory = tmp_path / "cache"
    directory.mkdir()
    with database(directory / "cache.db", CACHE):
        pass
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "cache_of_others").mkdir()
    (tmp_path / "cache_of_others" / "secret").write_text("secret")
    return directory


def put_file(cache: Path, name: str | bytes, *, mode: int = 3) -> None:
    with database(cache / "cache.db") as connection:
        connection.execute(
            "INSERT INTO Cache (key, raw, mode, filename) VALUES (?, 1, ?, ?)", (f"key {name!r}", mode, name)
        )


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "../cache_of_others/secret",
        "a/../../secret",
        "..\\secret",
        "./../secret",
        "/etc/passwd",
        "{}/secret",
    ],
)
@pytest.mark.parametrize("mode", [2, 3, 4])
def test_no_name_leads_out_of_the_cache(memory_store: Storage, cache: Path, name: str, mode: int) -> None:
    (cache / "a").mkdir()
    put_file(cache, name.format(cache.parent), mode=mode)
    report = take(memory_store, "diskcache", cache)
    assert [problem.reason for problem in report.problems] == ["its file lies outside of the cache, and is not read"]
    assert memory_store.count() == 0


def test_no_link_leads_out_of_the_cache(memory_store: Storage, cache: Path) -> None:
    (cache / "link").symlink_to(cache.parent / "secret")
    (cache / "directory").symlink_to(cache.parent / "cache_of_others")
    for name in ("link", "directory/secret", "link/x"):
        put_file(cache, name)
    report = take(memory_store, "diskcache", cache)
    assert (report.failed, report.written) == (3, 0)
    assert {reason.partition(":")[0] for reason in reasons(report).values()} == {"its file cannot be opened"}


def test_what_is_no_file_is_not_waited_for(memory_store: Storage, cache: Path) -> None:
    os.mkfifo(cache / "pipe")
    (cache / "directory").mkdir()
    for name in ("pipe", "directory", "missing", "", "a\0b", b"\xff"):
        put_file(cache, name)
    report = take(memory_store, "diskcache", cache)
    assert (report.failed, report.written) == (6, 0)


def test_a_file_in_the_cache_is_read(memory_store: Storage, cache: Path) -> None:
    (cache / "ab").mkdir()
    (cache / "ab" / "x.val").write_text("text")
    put_file(cache, "ab/x.val")
    put_file(cache, "ab\\x.val")  # as a cache that was made elsewhere has it
    assert take(memory_store, "diskcache", cache).written == 2


def test_a_shard_or_database_that_is_a_link_is_refused(memory_store: Storage, cache: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "000").symlink_to(cache)
    with pytest.raises(StorageIOError):
        take(memory_store, "diskcache", shards)
    other = tmp_path / "other"
    other.mkdir()
    (other / "cache.db").symlink_to(cache / "cache.db")
    with pytest.raises(ConfigError, match="is a link"):
        take(memory_store, "diskcache", other)


def test_rows_of_diskcache_that_cannot_be(memory_store: Storage, cache: Path) -> None:
    columns = ("key", "raw", "expire_time", "tag", "mode", "filename", "value")
    rows: list[tuple[object, ...]] = [
        ("mode", 1, None, None, 9, None, 1),
        ("no mode", 1, None, None, None, None, 1),
        ("time", 1, "soon", None, 1, None, 1),
        ("late", 1, 1e300, None, 1, None, 1),
        ("early", 1, -1e300, None, 1, None, 1),
        ("no file", 1, None, None, 3, None, None),
        ("no pickle", 1, None, None, 4, None, 5),
        ("number", 1, None, None, 2, 5, None),
        (None, 1, None, None, 1, None, 1),
        (b"\x80\x04.", 0, None, None, 1, None, 1),
        ("x" * 100_000, 1, None, None, 1, None, 1),
        (b"x" * 100_000, 1, None, None, 1, None, 1),
        ("tag", 1, None, b"\xff", 1, None, 1),
    ]
    with database(cache / "cache.db") as connection:
        for row in rows:
            connection.execute(f"INSERT INTO Cache ({', '.join(columns)}) VALUES ({', '.join('?' * 7)})", row)
        connection.execute("INSERT INTO Cache (key, raw, mode, value) VALUES (CAST(X'ff' AS TEXT), 1, 1, 1)")
        connection.execute("INSERT INTO Cache (key, raw, mode, value) VALUES ('v', 1, 1, CAST(X'ff' AS TEXT))")
        connection.execute("INSERT INTO Cache (key, raw, mode, value) VALUES ('good', 1, 1, 1)")
    report = take(memory_store, "diskcache", cache)
    assert (report.failed, report.written) == (len(rows) + 2, 1)


# ---- schemas


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TABLE t (key, value)", "CREATE VIEW unnamed AS SELECT key, value FROM t"),
        ("CREATE VIEW unnamed AS SELECT 'a' AS key, randomblob(900000000) AS value",),
        ("CREATE VIRTUAL TABLE unnamed USING fts5(key, value)",),
        ("CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB AS (zeroblob(900000000)))",),
        ("CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB AS (zeroblob(900000000)) STORED)",),
        ("CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB, more TEXT)",),
        ("CREATE TABLE unnamed (key TEXT PRIMARY KEY)",),
        ("CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID", "INSERT INTO unnamed VALUES (1, 2)"),
        ("PRAGMA encoding = 'UTF-16'", WORDS, "INSERT INTO unnamed VALUES ('a', '1')"),
        ("CREATE TABLE other (a)",),
    ],
)
def test_what_only_looks_like_a_table_of_sqlitedict_is_refused(
    memory_store: Storage, tmp_path: Path, statements: tuple[str, ...]
) -> None:
    path = tmp_path / "words.sqlite"
    with database(path, *statements):
        pass
    before = state(tmp_path)
    with pytest.raises((NotAStorageFileError, ConfigError)):
        take(memory_store, "sqlitedict", path, table="unnamed")
    assert state(tmp_path) == before
    assert memory_store.count() == 0


def test_a_view_in_place_of_a_cache_or_a_shelf_is_refused(memory_store: Storage, tmp_path: Path) -> None:
    columns = "1 AS rowid, 'a' AS key, 1 AS raw, NULL AS expire_time, NULL AS tag, 1 AS mode, NULL AS filename"
    with database(tmp_path / "cache.db", f"CREATE VIEW Cache AS SELECT {columns}, 1 AS value"):
        pass
    with database(tmp_path / "shelf", "CREATE VIEW Dict AS SELECT 'a' AS key, X'4b012e' AS value"):
        pass
    with pytest.raises(NotAStorageFileError, match="a view is called 'Cache'"):
        take(memory_store, "diskcache", tmp_path)
    with pytest.raises(NotAStorageFileError, match="a view is called 'Dict'"):
        take(memory_store, "shelve", tmp_path / "shelf")


def test_triggers_indexes_and_checks_of_a_file_are_not_run(memory_store: Storage, tmp_path: Path) -> None:
    path = tmp_path / "words.sqlite"
    with database(
        path,
        "CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB CHECK (length(randomblob(1)) = 1) COLLATE NOCASE)",
        "INSERT INTO unnamed VALUES ('a', '1'), ('B', '2')",
        "CREATE TRIGGER t AFTER INSERT ON unnamed BEGIN DELETE FROM unnamed; END",
        "CREATE INDEX i ON unnamed (abs(value))",
    ):
        pass
    assert take(memory_store, "sqlitedict", path).written == 2


def test_a_table_whose_schema_is_garbage_is_refused(memory_store: Storage, tmp_path: Path) -> None:
    path = tmp_path / "words.sqlite"
    for garbage in ("CREATE TABLE unnamed (", "x", "CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB) garbage"):
        path.unlink(missing_ok=True)
        with database(path, WORDS) as connection:
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'unnamed'", (garbage,))
        with pytest.raises(StorageError) as caught:
            take(memory_store, "sqlitedict", path)
        assert isinstance(caught.value, (NotAStorageFileError, StorageCorruptError))


def test_rows_of_sqlitedict_that_cannot_be(memory_store: Storage, tmp_path: Path) -> None:
    path = tmp_path / "words.sqlite"
    with database(path, "CREATE TABLE unnamed (key, value)") as connection:
        rows = [(None, "1"), (b"a", "1"), (1.5, "1"), ("x" * 2000, "1"), ("e", "\ufeff"), ("d", b"")]
        connection.executemany("INSERT INTO unnamed VALUES (?, ?)", rows)
        connection.execute("INSERT INTO unnamed VALUES (CAST(X'ff' AS TEXT), '1'), ('v', CAST(X'22ff22' AS TEXT))")
        connection.execute("INSERT INTO unnamed VALUES ('good', '1'), ('infinite', 9e999)")
    report = take(memory_store, "sqlitedict", path)
    assert (report.written, report.failed) == (1, len(rows) + 3)
    assert "row 1" in reasons(report)


# ---- sizes


def peak(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_bomb_of_zlib_is_not_blown_up(tmp_path: Path) -> None:
    path = tmp_path / "words.sqlite"
    bomb = zlib.compress(b" " * 200_000_000, 9)
    with database(path, WORDS) as connection:
        connection.execute("INSERT INTO unnamed VALUES ('bomb', ?), ('good', '1')", (bomb,))
        connection.execute("INSERT INTO unnamed VALUES ('cut off', ?)", (zlib.compress(b"[1]")[:-5],))
    with open_storage("memory:", max_value_bytes=1_000_000) as store:
        assert peak(lambda: take(store, "sqlitedict", path)) < 10_000_000
        assert store.list_keys() == ["good"]


def test_what_is_too_long_is_not_read(cache: Path) -> None:
    with database(cache / "cache.db") as connection:
        for mode in (1, 4):
            connection.execute(
                "INSERT INTO Cache (key, raw, mode, value) VALUES (?, 1, ?, zeroblob(50000000))", (f"row {mode}", mode)
            )
        connection.execute("INSERT INTO Cache (key, raw, mode, value) VALUES (zeroblob(50000000), 0, 1, 1)")
    with open(cache / "large", "wb") as file:
        file.truncate(50_000_000)
    for mode in (2, 3, 4):
        put_file(cache, "large", mode=mode)
    with open_storage("memory:", max_value_bytes=1_000_000) as store:
        assert peak(lambda: take(store, "diskcache", cache)) < 10_000_000
        assert store.count() == 0


def test_a_pickle_that_spells_too_much_is_one_bad_entry(memory_store: Storage, tmp_path: Path) -> None:
    laughs: Any = ["lol"] * 10
    for _ in range(40):
        laughs = [laughs] * 10
    path = tmp_path / "shelf"
    with contextlib.closing(dbm.dumb.open(str(path), "n")) as file:
        file["laughs"], file["good"] = pickle.dumps(laughs), pickle.dumps(1)
    assert "bytes of JSON" in reasons(take(memory_store, "shelve", path))["laughs"]
    assert memory_store.list_keys() == ["good"]


# ---- dbm


def dumb(directory: Path, lines: str, data: bytes = b"") -> Path:
    (directory / "shelf.dir").write_bytes(lines.encode("latin-1"))
    (directory / "shelf.dat").write_bytes(data)
    return directory / "shelf"


@pytest.mark.parametrize(
    "line",
    [
        "'a', (0, 100)\n",
        "'a', (100, 0)\n",
        "'a', (0, 99999999999999999999)\n",
        "'a', (0, -1)\n",
        "'a', (0, 1), 2\n",
        "__import__('os').system('true'), (0, 4)\n",
        "'a' 'b', (0, 4)\n",
        "'\\q', (0, 4)\n",
        "(" * 100_000 + "\n",
        "'" + "a" * 3_000_000,
        "\n",
    ],
)
def test_an_index_of_dbm_dumb_is_read_and_not_evaluated(memory_store: Storage, tmp_path: Path, line: str) -> None:
    path = dumb(tmp_path, line, b"I1\n.")
    with pytest.raises(StorageCorruptError):
        take(memory_store, "shelve", path)
    assert memory_store.count() == 0


def test_values_of_dbm_dumb_that_lie_over_each_other_are_read(memory_store: Storage, tmp_path: Path) -> None:
    path = dumb(tmp_path, "'a', (0, 4)\n'b', (0, 4)\n'c', (1, 3)\n'a', (4, 4)\n", b"I1\n.I2\n.")
    report = take(memory_store, "shelve", path)
    assert (report.read, report.written, report.failed) == (3, 2, 1)
    assert (memory_store.get("a"), memory_store.get("b")) == (2, 1)


def berkeley() -> bytearray:
    return bytearray(gzip.decompress((DATA / "shelf_ndbm.db.gz").read_bytes()))


def test_a_chain_of_pages_that_leads_back_ends(memory_store: Storage, tmp_path: Path) -> None:
    data = berkeley()
    size = struct.unpack_from("<I", data, 20)[0]
    chains = [page for page in range(len(data) // size) if data[page * size + 25] == 7]
    assert chains
    for page in chains:
        struct.pack_into("<I", data, page * size + 16, chains[0])
    (tmp_path / "shelf.db").write_bytes(data)
    with contextlib.suppress(StorageCorruptError):
        take(memory_store, "shelve", tmp_path / "shelf")


@pytest.mark.parametrize(
    ("place", "value"), [(8, 1 << 60), (8, -1), (16, 1 << 30), (16, 7), (24, -1), (28, 1 << 30), (28, -1), (24, 1)]
)
def test_a_header_of_gdbm_that_lies_is_told(memory_store: Storage, tmp_path: Path, place: int, value: int) -> None:
    data = bytearray(gzip.decompress((DATA / "shelf_gnu.gz").read_bytes()))
    struct.pack_into("<q" if place == 8 else "<i", data, place, value)
    (tmp_path / "shelf").write_bytes(data)
    with pytest.raises(StorageCorruptError):
        take(memory_store, "shelve", tmp_path / "shelf")


# ---- files that are none


def test_what_is_no_file_is_refused_before_it_is_opened(memory_store: Storage, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for kind in ("sqlitedict", "tinydb", "shelve", "diskcache"):
        for name in ("pipe", "directory"):
            with pytest.raises((ConfigError, NotAStorageFileError)):
                take(memory_store, kind, tmp_path / name)


@pytest.mark.parametrize("end", ["-wal", "-shm", "-journal"])
def test_a_file_beside_the_source_that_is_a_link_is_refused(memory_store: Storage, tmp_path: Path, end: str) -> None:
    path = tmp_path / "words.sqlite"
    with database(path, WORDS, "INSERT INTO unnamed VALUES ('a', '1')"):
        pass
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / f"words.sqlite{end}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link"):
        take(memory_store, "sqlitedict", path)
    assert (tmp_path / "elsewhere").read_bytes() == b""


# ---- spoiled files


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sources")
    make(directory)
    return directory


SPOILED: list[tuple[Kind, str, list[str]]] = [
    ("sqlitedict", "tables.sqlite", ["tables.sqlite"]),
    ("diskcache", "index", ["index/cache.db"]),
    ("shelve", "shelf_gnu", ["shelf_gnu"]),
    ("shelve", "shelf_ndbm", ["shelf_ndbm.db"]),
    ("shelve", "shelf_dumb", ["shelf_dumb.dir", "shelf_dumb.dat"]),
    ("shelve", "python2_0", ["python2_0.dir", "python2_0.dat"]),
]


def spoil(data: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(data))
        how = chance.randrange(5)
        if how == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            data[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\x01"))
        elif how == 2:
            del data[at : at + chance.randint(1, 64)]
        elif how == 3:
            data[at : at + 16] = bytes(chance.randrange(256) for _ in range(16))
        elif len(data) > 512:  # what counts most stands at the beginning
            data[chance.randrange(128)] = chance.randrange(256)
    return data


@pytest.mark.parametrize(("kind", "name", "files"), SPOILED, ids=[name for _, name, _ in SPOILED])
def test_spoiled_files_are_read_or_refused_and_nothing_else(
    kind: Kind, name: str, files: list[str], sources: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    is_long = pytestconfig.getoption("--hypothesis-profile") == "long"
    chance = random.Random(name)
    outcomes: Counter[str] = Counter()
    (tmp_path / "index").mkdir()
    for _ in range(5000 if is_long else 60):
        for file in files:
            shutil.copy(sources / file, tmp_path / file)
        file = chance.choice(files)
        (tmp_path / file).write_bytes(spoil(bytearray((sources / file).read_bytes()), chance))
        before = state(tmp_path)
        with open_storage("memory:", max_value_bytes=1_000_000, busy_timeout=0.0) as store:
            try:
                take(store, kind, tmp_path / name, **({"table": "second"} if kind == "sqlitedict" else {}))
                outcomes["read"] += 1
            except StorageError as error:
                outcomes["refused" if type(error) is not StorageError else str(error)] += 1
        assert state(tmp_path) == before
    assert set(outcomes) == {"read", "refused"}


def test_random_bytes_with_the_right_beginning(memory_store: Storage, tmp_path: Path) -> None:
    chance = random.Random(3)
    beginnings = (
        b"SQLite format 3\0",
        struct.pack("<I", 0x13579ACF),
        struct.pack(">I", 0x13579ACE),
        b"\0" * 12 + struct.pack("<II", 0x061561, 9) + struct.pack("<I", 4096) + b"\0",
    )
    for beginning in beginnings:
        for _ in range(20):
            (tmp_path / "shelf").write_bytes(beginning + chance.randbytes(chance.randrange(20_000)))
            with contextlib.suppress(StorageError):
                take(memory_store, "shelve", tmp_path / "shelf")
            with contextlib.suppress(StorageError):
                take(memory_store, "sqlitedict", tmp_path / "shelf")
    (tmp_path / "shelf").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(NotAStorageFileError):
        take(memory_store, "shelve", tmp_path / "shelf")
