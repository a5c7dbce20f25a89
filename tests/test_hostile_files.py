"""Hazard: a file that somebody made to do harm runs code, hangs, crashes, or has its lies taken for data.

What changes the schema is refused, and the file stays as it is. What changes rows is refused where it is read, and
found by `check`.
"""

from __future__ import annotations

import itertools
import re
import shutil
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from battery import KEYS, READS, WRITES, fill, run

from mycelia_storage import (
    NotAStorageFileError,
    SchemaVersionError,
    StorageCorruptError,
    StorageError,
    field,
    open_storage,
)
from mycelia_storage.engines.sqlite.schema import APPLICATION_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mycelia_storage import Storage


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "store.db"
    with open_storage(path) as store:
        fill(store)
    return path


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    return shutil.copyfile(template, place / "store.db")


def change(path: Path, *statements: str) -> None:
    """Run statements as somebody would who minds nothing."""
    connection = apsw.Connection(str(path))
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    connection.execute("PRAGMA writable_schema=ON; PRAGMA ignore_check_constraints=ON")
    try:
        for statement in statements:
            connection.execute(statement).fetchall()
    finally:
        connection.close()


def write_cell(path: Path, column: str, literal: str, key: str = "k1") -> None:
    """Put a value into a cell that the type of its column forbids."""
    look = apsw.Connection(str(path))
    sql = str(look.execute("SELECT sql FROM sqlite_schema WHERE name = 'storage_entries'").get)
    look.close()
    change(path, in_table(") STRICT", ")"), in_table("NOT NULL", ""))
    change(path, f"UPDATE storage_entries SET {column} = {literal} WHERE key = '{key}'")
    change(path, f"UPDATE sqlite_schema SET sql = '{sql}' WHERE name = 'storage_entries'")


def state_of(path: Path) -> dict[str, bytes]:
    return {found.name: found.read_bytes() for found in path.parent.iterdir()}


def refusal_of(path: Path) -> StorageError:
    """The error at opening, for reading and for writing, after which everything is as it was, to the byte."""
    before = state_of(path)
    with pytest.raises(StorageError) as caught:
        open_storage(path)
    assert state_of(path) == before
    with pytest.raises(type(caught.value)):
        open_storage(path, read_only=True)
    assert {name: found for name, found in state_of(path).items() if name in before} == before
    assert str(path.parent) in str(caught.value) or "index" in str(caught.value)
    return caught.value


def renamed(kind: str, old: str, new: str, sql: str) -> str:
    return f"UPDATE sqlite_schema SET name = '{new}', sql = '{sql}' WHERE type = '{kind}' AND name = '{old}'"


def in_table(old: str, new: str, name: str = "storage_entries") -> str:
    return f"UPDATE sqlite_schema SET sql = replace(sql, '{old}', '{new}') WHERE name = '{name}'"


_AFTER_INSERT = "AFTER INSERT ON storage_entries BEGIN DELETE FROM storage_namespaces; END"
_MANY = "WITH RECURSIVE c(x) AS (VALUES(2) UNION ALL SELECT x + 1 FROM c WHERE x < 5000)"

ALTERED: dict[str, tuple[str, ...]] = {
    "a trigger": (f"CREATE TRIGGER t {_AFTER_INSERT}",),
    "a trigger named as Litestream's": (f"CREATE TRIGGER _litestream_t {_AFTER_INSERT}",),
    "a trigger named as SQLite's": (
        f"CREATE TRIGGER t {_AFTER_INSERT}",
        renamed("trigger", "t", "sqlite_t", f"CREATE TRIGGER sqlite_t {_AFTER_INSERT}"),
    ),
    "a view": ("CREATE VIEW v AS SELECT 1",),
    "a view named as Litestream's": ("CREATE VIEW _litestream_v AS SELECT 1",),
    "an index named as Litestream's": (
        "CREATE UNIQUE INDEX _litestream_i ON storage_entries (namespace) WHERE id > 1000",
    ),
    "an index named as SQLite's": (
        "CREATE UNIQUE INDEX i ON storage_entries (namespace) WHERE id > 1000",
        renamed(
            "index",
            "i",
            "sqlite_i",
            "CREATE UNIQUE INDEX sqlite_i ON storage_entries (namespace) WHERE id > 1000",
        ),
    ),
    "an index with a costly expression": ("CREATE INDEX i ON storage_entries (hex(zeroblob(length(value) * 1000)))",),
    "a virtual table": ("CREATE VIRTUAL TABLE f USING fts5(a)",),
    "a virtual table named as Litestream's": ("CREATE VIRTUAL TABLE _litestream_f USING fts5(a)",),
    "a costly CHECK in a table named as Litestream's": (
        "CREATE TABLE _litestream_c (a CHECK (length(hex(zeroblob(400000000))) > 0))",
        "INSERT INTO _litestream_c (a) SELECT 1 WHERE 0",
    ),
    "a costly CHECK": (
        in_table("value TEXT NOT NULL", "value TEXT NOT NULL CHECK (length(hex(zeroblob(400000000))) > 0)"),
    ),
    "a costly default": (in_table("metadata TEXT", "metadata TEXT DEFAULT (hex(zeroblob(400000000)))"),),
    "a generated column": ("ALTER TABLE storage_entries ADD COLUMN g TEXT AS (value || value)",),
    "another collation": (in_table("key TEXT NOT NULL", "key TEXT NOT NULL COLLATE NOCASE"),),
    "a foreign key": (in_table("namespace TEXT NOT NULL", "namespace TEXT NOT NULL REFERENCES storage_namespaces"),),
    "a column whose name has a blank": (in_table("metadata TEXT", '"metadata TEXT"'),),
    "a column whose name ran together": (in_table("metadata TEXT", "metadataTEXT"),),
    "an index on another field of the same letters": (in_table('$."n"', '$."N"', "storage_index_1"),),
    "an index on another field but for a blank": (in_table('$."n"', '$." n"', "storage_index_1"),),
    "an index that is not defined": ("DELETE FROM storage_indexes",),
    "an index that is defined as unique": ("UPDATE storage_indexes SET is_unique = 1",),
    "an index that is defined elsewhere": ("UPDATE storage_indexes SET namespace = 'elsewhere'",),
    "an index with an odd number": ("UPDATE storage_indexes SET id = -1",),
    "an index of fields that are no JSON": ("UPDATE storage_indexes SET fields = 'nonsense'",),
    "an index of no fields": ("UPDATE storage_indexes SET fields = '[]'",),
    "an index of an object": ("UPDATE storage_indexes SET fields = '{\"a\":1}'",),
    "an index of a number": ("UPDATE storage_indexes SET fields = '[1]'",),
    "an index of a field with U+0000": ("UPDATE storage_indexes SET fields = '[\"a.\\u0000\"]'",),
    "an index of 100,000 brackets": ("UPDATE storage_indexes SET fields = replace(hex(zeroblob(50000)), '0', '[')",),
    "an index of another time": ("UPDATE storage_indexes SET created_at = -9223372036854775808",),
    "5,000 definitions of indexes": (
        f"{_MANY} INSERT INTO storage_indexes SELECT x, 'n' || x, NULL, '[\"a\"]', 0, 0, 0 FROM c",
    ),
    "statistics in another table": ("ANALYZE", in_table("tbl,idx,stat", "tbl", "sqlite_stat1")),
    "no version floor": ("DELETE FROM storage_version_floor",),
    "a version floor beyond all versions": ("UPDATE storage_version_floor SET version = 9223372036854775807",),
    "a negative version floor": ("UPDATE storage_version_floor SET version = -1",),
}


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_schema_is_refused_and_stays_byte_identical(path: Path, name: str) -> None:
    change(path, *ALTERED[name])
    assert type(refusal_of(path)) is StorageCorruptError


@pytest.mark.parametrize("name", ["a trigger", "a costly CHECK", "an index of no fields", "no version floor"])
def test_an_altered_file_is_no_backup_to_restore(path: Path, tmp_path: Path, name: str) -> None:
    change(path, *ALTERED[name])
    before = state_of(path)
    with open_storage(tmp_path / "mine.db") as store:
        store.set("mine", 1)
        with pytest.raises(StorageCorruptError):
            store.restore(path)
        assert store.list_keys() == ["mine"]
    assert state_of(path) == before


OTHERS: dict[str, tuple[type[StorageError], tuple[str, ...]]] = {
    "no version": (NotAStorageFileError, ("DELETE FROM schema_version",)),
    "the greatest version": (SchemaVersionError, ("INSERT INTO schema_version VALUES (9223372036854775807, 0)",)),
    "our id on tables of others": (
        NotAStorageFileError,
        ("DROP TABLE storage_entries", "DROP TABLE schema_version", "CREATE TABLE t (a)"),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_that_is_not_of_this_version_is_refused(path: Path, name: str) -> None:
    error, statements = OTHERS[name]
    change(path, *statements)
    assert type(refusal_of(path)) is error


def test_a_database_in_utf_16_is_refused_whatever_its_id(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    change(path, "PRAGMA encoding = 'UTF-16le'", "CREATE TABLE t (a)", f"PRAGMA application_id = {APPLICATION_ID}")
    assert type(refusal_of(path)) is NotAStorageFileError


# ---- files that are ours, and odd


HARMLESS: dict[str, tuple[str, ...]] = {
    "statistics beyond all numbers": ("ANALYZE", "UPDATE sqlite_stat1 SET stat = '99999999999999999999 0 -5'"),
    "statistics that are none": ("ANALYZE", "UPDATE sqlite_stat1 SET stat = x'ff00', idx = 'storage_index_1'"),
    "no statistics where some were": ("ANALYZE", "UPDATE sqlite_stat1 SET stat = NULL"),
    "statistics with options": ("ANALYZE", "UPDATE sqlite_stat1 SET stat = '9 9 9 unordered sz=99999999 noskipscan'"),
    "statistics that are a megabyte": (
        "ANALYZE",
        "UPDATE sqlite_stat1 SET stat = replace(hex(zeroblob(500000)), '0', '1')",
    ),
    "statistics of tables that are not there": (
        "ANALYZE",
        "INSERT INTO sqlite_stat1 VALUES ('x', 'sqlite_autoindex_storage_entries_1', 'a b c')",
    ),
    "statistics of indexes": ("UPDATE storage_indexes SET analyzed_entries = 9223372036854775807",),
    "negative statistics of indexes": ("UPDATE storage_indexes SET analyzed_entries = -9223372036854775808",),
    "a sequence": (
        "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT)",
        "INSERT INTO t VALUES (9223372036854775807)",
        "DROP TABLE t",
    ),
    "versions of long ago": (f"{_MANY} INSERT INTO schema_version SELECT -x, 1 FROM c",),
    "an id that is the last one": ("UPDATE storage_entries SET id = 9223372036854775807 WHERE key = 'k1'",),
    "a user_version": ("PRAGMA user_version = 12345",),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_beside_the_documents_changes_no_answer(path: Path, name: str) -> None:
    change(path, *HARMLESS[name])
    with open_storage(path) as store:
        found = run(store, READS)
        assert not [answer for answer in found.values() if isinstance(answer, StorageError)]
        assert [entry.key for entry in found["query by the index"]] == sorted(KEYS[3:])[:4]
        assert found["count"] == len(KEYS) + 1
        written = run(store, WRITES)
        assert not [answer for answer in written.values() if isinstance(answer, StorageError)]
        store.check()


_DEEP = "replace(printf('%{0}s', ''), ' ', '[') || replace(printf('%{0}s', ''), ' ', ']')"
ROWS: dict[str, tuple[str, str]] = {
    "a value that is no UTF-8": ("value", "CAST(x'22ff80fe22' AS TEXT)"),
    "a value with U+0000": ("value", "'\"a' || char(0) || 'b\"'"),
    "a value 250 deep": ("value", _DEEP.format(250)),
    "a value 1,500 deep": ("value", _DEEP.format(1500)),
    "a value 100,000 deep": ("value", _DEEP.format(100_000)),
    "an object 100,000 deep": ("value", "replace(printf('%100000s', ''), ' ', '{\"n\":') || '1'"),
    "a member 990 deep": ("value", "'{\"n\":' || " + _DEEP.format(990) + " || '}'"),
    "a value in JSON5": ("value", "'{n: 0x10, t: ''a'', /* c */}'"),
    "a value in JSONB": ("value", "jsonb('{\"n\":1}')"),
    "a value that is a blob": ("value", "x'5b5d'"),
    "a value with two equal names": ("value", '\'{"n":1,"n":2}\''),
    "a value with equal names further in": ("value", '\'[{"a":{"n":1,"m":0,"n":1}}]\''),
    "a value with NaN": ("value", "'{\"n\":NaN}'"),
    "a value beyond all floats": ("value", "'{\"n\":9e999}'"),
    "an integer of 5,000 digits": ("value", "'{\"n\":' || replace(printf('%5000s', ''), ' ', '9') || '}'"),
    "a lone surrogate": ("value", '\'{"n":"\\ud800"}\''),
    "an escaped U+0000": ("value", '\'{"n":"\\u0000"}\''),
    "an escaped U+0000 in a name": ("value", "'{\"\\u0000\":1}'"),
    "an empty value": ("value", "''"),
    "a value that is no JSON": ("value", "'hello'"),
    "a value after a byte order mark": ("value", "char(65279) || '1'"),
    "metadata that are an array": ("metadata", "'[1]'"),
    "metadata that are no JSON": ("metadata", "'{'"),
    "metadata 1,500 deep": ("metadata", "'{\"a\":' || " + _DEEP.format(1500) + " || '}'"),
    "metadata that are no UTF-8": ("metadata", "CAST(x'7b22ff223a317d' AS TEXT)"),
    "metadata that are a blob": ("metadata", "x'7b7d'"),
    "a key with U+0000": ("key", "'a' || char(0) || 'b'"),
    "a key that is no UTF-8": ("key", "CAST(x'ff80' AS TEXT)"),
    "a key that is a blob": ("key", "x'6b31'"),
    "an empty key": ("key", "''"),
    "a key of a megabyte": ("key", "hex(zeroblob(500000))"),
    "a namespace with U+0000": ("namespace", "'a' || char(0) || 'b'"),
    "a namespace that is no UTF-8": ("namespace", "CAST(x'ff80' AS TEXT)"),
    "a namespace that is a blob": ("namespace", "x'00'"),
    "a version that is a text": ("version", "'abc'"),
    "a version that is a blob": ("version", "x'00'"),
    "a version that is a float": ("version", "1.5"),
    "a negative version": ("version", "-5"),
    "a time that is a text": ("created_at", "'soon'"),
    "a time that is a blob": ("updated_at", "x'00'"),
    "a time that is a large float": ("created_at", "1e300"),
    "the greatest time": ("updated_at", "9223372036854775807"),
    "the least time": ("created_at", "-9223372036854775808"),
    "an expiry that is a text": ("expires_at", "'never'"),
    "an expiry that is a blob": ("expires_at", "x'ff'"),
    "the greatest expiry": ("expires_at", "9223372036854775807"),
    "no value": ("value", "NULL"),
    "no key": ("key", "NULL"),
    "no namespace": ("namespace", "NULL"),
    "no version": ("version", "NULL"),
    "no time": ("created_at", "NULL"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_hostile_row_is_an_answer_or_a_typed_error_and_found_by_check(path: Path, name: str) -> None:
    column, literal = ROWS[name]
    if column == "value":
        change(path, "DROP INDEX storage_index_1", "DELETE FROM storage_indexes")  # which would not take some of them
    write_cell(path, column, literal)
    with open_storage(path) as store:
        found = run(store, READS)
        unexpected = {
            verb: answer
            for verb, answer in found.items()
            if isinstance(answer, StorageError) and not isinstance(answer, StorageCorruptError)
        }
        assert not unexpected
        assert isinstance(found["check"], StorageCorruptError), "check() has to see it"
        for key in KEYS[2:]:
            assert store.get(key) == {"n": int(key[1:]), "t": "x" * 50}, "the others are there"
        run(store, WRITES)
        assert store.get("new") == {"n": 5}
        assert store.get("k9") == {"n": 9, "t": "x" * 50}


@pytest.mark.parametrize("column", ["key", "namespace"])
def test_a_row_that_cannot_be_read_and_has_no_name_is_told_of_by_its_number(path: Path, column: str) -> None:
    """A text that is no UTF-8 while an error is told of, and nothing to name the row by."""
    write_cell(path, "metadata", "CAST(x'7b22ff223a317d' AS TEXT)")
    write_cell(path, column, "NULL")
    with open_storage(path) as store, pytest.raises(StorageCorruptError, match="row"):
        store.check()


def test_a_text_that_is_no_utf_8_beside_one_that_is_no_json(path: Path) -> None:
    """Why a statement failed is looked up in the file, and that may fail too."""
    change(path, "DROP INDEX storage_index_1", "DELETE FROM storage_indexes")
    write_cell(path, "value", "'hello'")
    write_cell(path, "key", "CAST(x'ff80' AS TEXT)")
    with open_storage(path) as store:
        found = run(store, READS)
        assert isinstance(found["query by equality of lists"], StorageError)


REGISTRATIONS = {
    "a name that is a blob": "INSERT INTO storage_namespaces VALUES (x'00ff', '{}', 1)",
    "a name that is missing": "INSERT INTO storage_namespaces VALUES (NULL, '{}', 1)",
    "a name that is no UTF-8": "INSERT INTO storage_namespaces VALUES (CAST(x'ff80' AS TEXT), '{}', 1)",
    "a time that is a text": "UPDATE storage_namespaces SET created_at = 'abc' WHERE name = 'default'",
    "a time that is a blob": "UPDATE storage_namespaces SET created_at = x'00' WHERE name = 'default'",
    "a time beyond all times": "UPDATE storage_namespaces SET created_at = 9e300 WHERE name = 'default'",
    "metadata that are a blob": "UPDATE storage_namespaces SET metadata = x'00' WHERE name = 'default'",
    "metadata that are no JSON": "UPDATE storage_namespaces SET metadata = '[[' WHERE name = 'default'",
    "no registration": "DELETE FROM storage_namespaces",
}


@pytest.mark.parametrize("name", REGISTRATIONS)
def test_a_hostile_registration_is_an_answer_or_a_typed_error(path: Path, name: str) -> None:
    change(path, REGISTRATIONS[name])
    with open_storage(path) as store:
        found = run(store, READS | WRITES)
        for verb, answer in found.items():
            assert not isinstance(answer, StorageError) or isinstance(answer, StorageCorruptError), verb
        assert isinstance(found["list_namespaces"], StorageCorruptError | list)
        if isinstance(found["list_namespaces"], list):
            assert all(isinstance(listed, str) for listed in found["list_namespaces"])
        assert store.get("new") == {"n": 5}


# ---- pages and headers


SHAPES: dict[str, Callable[[apsw.Connection], object]] = {
    **{
        f"pages of {size} bytes": lambda connection, size=size: connection.execute(f"PRAGMA page_size={size}")  # type: ignore[misc]
        for size in (512, 1024, 4096, 65536)
    },
    **{
        f"auto_vacuum {mode}": lambda connection, mode=mode: connection.execute(f"PRAGMA auto_vacuum={mode}")  # type: ignore[misc]
        for mode in (0, 1, 2)
    },
    **{
        f"{count} reserved bytes": lambda connection, count=count: connection.reserve_bytes("main", count)  # type: ignore[misc]
        for count in (0, 1, 7, 200, 255)  # 8 would say that there are checksums
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_store_in_pages_of_another_shape_works(tmp_path: Path, name: str) -> None:
    path = tmp_path / "store.db"
    connection = apsw.Connection(str(path))
    SHAPES[name](connection)
    connection.execute("CREATE TABLE t (a); DROP TABLE t; VACUUM")
    connection.close()
    with open_storage(path) as store:
        fill(store)
        for key in KEYS:
            store.set(key, {"n": int(key[1:]), "t": "y" * 5000})
        found = run(store, READS | WRITES)
        assert not [answer for answer in found.values() if isinstance(answer, StorageError)]
        store.check()


_REFUSED = "refused"
HEADERS: dict[str, tuple[int, bytes, str]] = {
    "a huge number of pages": (28, b"\xff\xff\xff\xfe", _REFUSED),
    "no pages": (28, b"\0\0\0\0", "opened"),
    "a free list at the end of the world": (32, b"\xff\xff\xff\xfe", "found by check"),
    "a huge number of free pages": (36, b"\xff\xff\xff\xfe", "found by check"),
    "pages of 64 KiB": (16, b"\0\x01", _REFUSED),
    "pages of no size": (16, b"\0\0", _REFUSED),
    "pages of 512 bytes": (16, b"\x02\0", _REFUSED),
    "pages of an odd size": (16, b"\x12\x34", _REFUSED),
    "a version to come": (18, b"\x03\x03", _REFUSED),
    "a version to come, for reading": (18, b"\x02\x03", _REFUSED),
    "a version to come, for writing": (18, b"\x03\x02", _REFUSED),
    "no write-ahead log": (18, b"\x01\x01", "opened"),
    "reserved bytes that are not": (20, b"\xff", _REFUSED),
    "a schema format to come": (44, b"\0\0\0\x09", _REFUSED),
    "an old schema format": (44, b"\0\0\0\x01", "opened"),
    "an auto_vacuum that is not": (52, b"\0\0\0\x05", "found by check"),
    "UTF-16": (56, b"\0\0\0\x02", _REFUSED),
    "an encoding that is none": (56, b"\0\0\0\x09", "opened"),
    "no application id": (68, b"\0\0\0\0", _REFUSED),
    "another application id": (68, b"abcd", _REFUSED),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_is_refused_or_harmless(path: Path, name: str) -> None:
    place, data, expected = HEADERS[name]
    content = bytearray(path.read_bytes())
    content[place : place + len(data)] = data
    path.write_bytes(content)
    if expected == _REFUSED:
        with pytest.raises(StorageError) as caught:
            open_storage(path)
        assert type(caught.value) is not StorageError
        assert path.read_bytes() == bytes(content)
        return
    with open_storage(path) as store:
        found = run(store, READS)
        assert isinstance(found["check"], StorageCorruptError) == (expected == "found by check")
        assert found["get_many"] == {key: {"n": int(key[1:]), "t": "x" * 50} for key in KEYS}
        run(store, WRITES)


def test_a_row_that_claims_gigabytes_takes_no_memory(path: Path) -> None:
    with open_storage(path) as store:
        store.set("large", "x" * 2_200_000)
    content = path.read_bytes()
    found = re.search(rb'defaultlarge.{20}"xxx', content, re.DOTALL)
    assert found is not None
    key = found.start()
    # Before it in the cell: the sizes of the payload and of its last column, each in a varint of four bytes.
    sizes = [at for at in range(key - 24, key) if content[at] >= 0x80 and content[at + 1] >= 0x80]
    hostile = bytearray(content)
    for at in (sizes[0], key - 4):
        hostile[at : at + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(hostile)
    apsw.memory_high_water(True)
    with open_storage(path) as store:
        assert isinstance(run(store, READS)["check"], StorageCorruptError)
        with pytest.raises(StorageCorruptError):
            store.get("large")
        assert store.get("k1") == {"n": 1, "t": "x" * 50}
    assert apsw.memory_high_water() < 50_000_000


# ---- endless walks


WALKS: dict[str, Callable[[Storage], Iterator[Any]]] = {
    "scan": lambda store: store.scan(batch_size=7),
    "scan with a filter": lambda store: store.scan(field("n") >= 0, batch_size=7),
    "pages": lambda store: store.pages(page_size=7),
}


@pytest.mark.parametrize("walk", WALKS)
def test_an_index_out_of_order_is_not_walked_for_ever(tmp_path: Path, walk: str) -> None:
    """Where a page of the index has lesser keys than the one before it, who goes on behind them comes back to it."""
    path = tmp_path / "store.db"
    with open_storage(path) as store:
        store.set_many({f"k{number:04}": {"n": number} for number in range(2000)})
    pages = [bytearray(path.read_bytes()[start : start + 4096]) for start in range(0, path.stat().st_size, 4096)]
    leaves = [page for page in pages if page[0] == 0x0A and page.count(b"defaultk") > 50]
    leaves[1][:] = leaves[1].replace(b"defaultk", b"defaulta")
    path.write_bytes(b"".join(pages))
    with open_storage(path) as store:
        walked = itertools.islice(WALKS[walk](store), 10_000)
        with pytest.raises(StorageCorruptError, match="out of order"):
            list(walked)
        assert isinstance(run(store, {"check": READS["check"]})["check"], StorageCorruptError)
