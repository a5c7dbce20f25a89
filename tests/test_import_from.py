"""Hazards of an import from another library: entries lost or changed without a word, a source that was touched.

The files are made by the libraries themselves. What hostile ones do stands in `test_foreign_hostility.py`.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import sqlite3
import time
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from children import Child, run
from foreign_files import make, shelf, state

from mycelia_storage import (
    BatchError,
    ConfigError,
    ImportReport,
    InvalidNamespaceError,
    InvalidValueError,
    KeyExistsError,
    NotAStorageFileError,
    StorageBusyError,
    StorageCorruptError,
    StorageReadOnlyError,
    UniqueIndexError,
    import_from,
    open_storage,
)
from mycelia_storage.foreign import importing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mycelia_storage import Storage
    from mycelia_storage.foreign.importing import Existing, Kind
    from mycelia_storage.testing import FakeClock


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every kind of file. A test that fails to leave them as they were fails at the end of the module."""
    directory = tmp_path_factory.mktemp("sources")
    make(directory)
    before = state(directory)
    yield directory
    assert state(directory) == before


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory for files that a test makes or spoils."""
    directory = tmp_path / "source"
    directory.mkdir()
    return directory


def take(store: Storage, kind: Kind, path: Path, **how: Any) -> ImportReport:
    """Import what can be."""
    return import_from(store, kind, path, **{"on_error": "skip", **how})


def values(store: Storage, namespace: str = "default") -> dict[str, Any]:
    return {entry.key: entry.value for entry in store.scan(namespace=namespace)}


def reasons(report: ImportReport) -> dict[str, str]:
    assert report.failed == len(report.problems)
    return {problem.key: problem.reason for problem in report.problems}


def adds_up(report: ImportReport) -> bool:
    parts = report.written + report.unchanged + report.skipped + report.expired + report.failed
    return report.read == parts and report.total in (None, parts)


def tinydb(directory: Path, tables: dict[str, Any]) -> Path:
    """A file as TinyDB writes it (compared once with the library's own)."""
    path = directory / "db.json"
    path.write_text(json.dumps(tables))
    return path


# ---- sqlitedict


def test_every_entry_of_sqlitedict_arrives(any_store: Storage, sources: Path) -> None:
    report = take(any_store, "sqlitedict", sources / "plain.sqlite")
    assert (report.total, report.read, report.written, report.failed) == (2502, 2502, 2501, 1)
    assert adds_up(report)
    expected: dict[str, Any] = {f"key {number}": {"n": number, "text": "é" * (number % 9)} for number in range(2500)}
    assert values(any_store) == expected | {"5": "five"}
    assert reasons(report) == {"date": "$.at[0]: datetime.date is not JSON: convert it with .isoformat()"}
    assert report.namespaces == ("default",)


def test_a_table_of_sqlitedict_is_chosen(memory_store: Storage, sources: Path) -> None:
    path = sources / "tables.sqlite"
    with pytest.raises(ConfigError, match="table: name one of the tables .*second"):
        take(memory_store, "sqlitedict", path)
    with pytest.raises(ConfigError, match="no table 'third'"):
        take(memory_store, "sqlitedict", path, table="third")
    assert memory_store.get_status().entries == 0
    report = take(memory_store, "sqlitedict", path, table='the "first"', namespace="one")
    assert values(memory_store, "one") == {"a": 1}
    assert "second" in report.notes[0]
    take(memory_store, "sqlitedict", path, table="second", namespace="two")
    assert values(memory_store, "two") == {"a": 3, "b": 2}


def test_values_of_sqlitedict_in_other_encodings(memory_store: Storage, sources: Path) -> None:
    for name in ("zlib_pickle", "zlib_json"):
        take(memory_store, "sqlitedict", sources / f"{name}.sqlite", namespace=name)
        assert values(memory_store, name) == {"a": {"x": [1] * 10}}
    told = reasons(take(memory_store, "sqlitedict", sources / "json.sqlite", namespace="json"))
    assert values(memory_store, "json") == {"a": {"x": 1}}
    assert told == {
        "nan": "$: NaN and the infinities are not JSON: use None",
        "long": "$: an integer beyond 64 bits: convert it to str",
    }
    told = reasons(take(memory_store, "sqlitedict", sources / "as_it_is.sqlite", namespace="as it is"))
    assert values(memory_store, "as it is") == {"a": 5, "b": 2.5, "c": None, "e": [1]}
    assert list(told) == ["d"]


# ---- diskcache


def test_every_entry_of_diskcache_arrives(any_store: Storage, sources: Path, clock: FakeClock) -> None:
    clock.set(time.time())
    report = take(any_store, "diskcache", sources / "cache")
    assert adds_up(report)
    assert report.expired == 1
    found = values(any_store)
    assert found.pop("large object") == list(range(50000))
    assert found.pop("large text") == "é\r\n" * 30000
    assert found == {
        "object": {"x": [1, 2.5, None]},
        "none": None,
        "true": True,
        "float": 2.5,
        "int": 7,
        "text": "é",
        "5": "five",
        "7": "text",
        "9223372036854775808": "beyond",
        "for an hour": 1,
        "for ever": 1,
        "tagged": 1,
        "tagged by number": 1,
    }
    told = reasons(report)
    assert {key: told[key].partition(":")[0] for key in told} == {
        "1.5": "the key is of type float, and a key is a text or a whole number",
        "b'bytes'": "the key is of type bytes, and a key is a text or a whole number",
        "('a', 1)": "the key is of type tuple, and a key is a text or a whole number",
        "None": "the key is of type NoneType, and a key is a text or a whole number",
        "True": "the key is of type bool, and a key is a text or a whole number",
        "bytes": "bytes are not JSON",
        "large bytes": "bytes are not JSON",
        "nan": "NaN (or nothing) is not JSON",
        "infinite": "$",
        "date": "$",
        "nested": "$.a[0]",
        "7": "the key is a number, and there is an entry whose key is the same number as a text",
        "tagged by bytes": "its tag is bytes, or too long",
    }
    assert told["nested"] == "$.a[0]: bytes is not JSON: convert it to text, by base64 for example"


def test_what_expires_in_diskcache_expires_here_at_the_same_moment(source: Path, clock: FakeClock) -> None:
    run(
        "import diskcache, sys\nwith diskcache.Cache(sys.argv[1]) as cache:\n"
        "    for key, seconds in (('late', 3600), ('soon', 60), ('never', None)): cache.set(key, 1, expire=seconds)",
        source,
    )
    with sqlite3.connect(source / "cache.db") as database:
        moments = dict(database.execute("SELECT key, expire_time FROM Cache"))
    database.close()
    clock.set(moments["soon"] - 0.001)
    with open_storage("memory:", clock=clock) as store:
        assert take(store, "diskcache", source, namespace="before").written == 3
        for key in ("late", "soon"):
            expires_at = store.get_entry(key, namespace="before").expires_at
            assert expires_at is not None
            assert expires_at.timestamp() == math.ceil(moments[key] * 1000) / 1000
        assert store.get_entry("never", namespace="before").expires_at is None
        clock.set(moments["soon"] + 0.001)
        assert store.list_keys(namespace="before") == ["late", "never"]
        report = take(store, "diskcache", source, namespace="after")
        assert (report.written, report.expired, report.failed) == (2, 1, 0)
        assert store.list_keys(namespace="after") == ["late", "never"]
        assert take(store, "diskcache", source, namespace="after").unchanged == 2


def test_tags_of_diskcache_are_metadata(memory_store: Storage, sources: Path) -> None:
    take(memory_store, "diskcache", sources / "cache")
    assert memory_store.get_metadata("tagged") == {"tag": "group"}
    assert memory_store.get_metadata("tagged by number") == {"tag": 5}
    assert memory_store.get_metadata("int") == {}


def test_every_shard_of_diskcache_is_read(memory_store: Storage, sources: Path) -> None:
    report = take(memory_store, "diskcache", sources / "shards")
    assert (report.total, report.written, report.failed) == (100, 100, 0)
    assert values(memory_store) == {f"key {number}": {"n": number} for number in range(100)}
    assert "has caches of its own" in report.notes[0]
    take(memory_store, "diskcache", sources / "shards" / "cache" / "sub", namespace="sub")
    assert values(memory_store, "sub") == {"hidden": 1}


SHARDS = """
import os, sys
import diskcache

os.chdir(sys.argv[1])
with diskcache.FanoutCache("twins", shards=8) as shards:
    for number in range(20):
        shards[number] = "number"
        shards[str(number)] = f"text {number}"
with diskcache.FanoutCache("json", shards=8, disk=diskcache.JSONDisk) as shards:
    for number in range(20):
        shards[number] = "number"
        shards[str(number)] = f"text {number}"
for count in (8, 3):  # the program's settings have changed, and what it had stored lies where it does not look
    with diskcache.FanoutCache("moved", shards=count) as shards:
        for number in range(20):
            shards[f"key {number}"] = f"{count} shards"
            shards[number] = f"{count} shards"
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shards")
    run(SHARDS, directory)
    return directory


@pytest.mark.parametrize("existing", ["refuse", "skip", "overwrite"])
def test_of_a_key_in_two_shards_of_diskcache_one_is_told(shards: Path, existing: Existing) -> None:
    for name in ("twins", "json"):
        with open_storage("memory:") as store:
            for is_dry in (True, False):
                report = take(store, "diskcache", shards / name, existing=existing, dry_run=is_dry)
                assert (report.written, report.replaced, report.skipped) == (20, 0, 0)
                told = reasons(report)
                assert sorted(told) == sorted(map(str, range(20)))
                assert all("the same number as a text" in reason for reason in told.values())
            assert values(store) == {str(number): f"text {number}" for number in range(20)}
    with open_storage("memory:") as store:
        report = take(store, "diskcache", shards / "moved", existing=existing)
        assert adds_up(report)
        assert (report.written, report.replaced, report.skipped) == (40, 0, 0)
        told = reasons(report)
        assert report.read == 40 + len(told)
        assert {key[:3] for key in told} >= {"key"}
        assert any(key.isdigit() for key in told)
        assert all("a shard before this one" in reason for reason in told.values())
        assert len(values(store)) == 40


def test_a_deque_keeps_its_order_and_an_index_its_keys(memory_store: Storage, sources: Path) -> None:
    take(memory_store, "diskcache", sources / "deque", namespace="deque")
    assert list(values(memory_store, "deque").values()) == ["a", "b", "c"]
    take(memory_store, "diskcache", sources / "index" / "cache.db", namespace="index")
    assert values(memory_store, "index") == {"a": 1, "b": [2]}


def test_keys_and_values_of_json_disk(memory_store: Storage, sources: Path) -> None:
    told = reasons(take(memory_store, "diskcache", sources / "json"))
    found = values(memory_store)
    assert len(found.pop("large")) == 80000
    assert found == {"a": {"x": 1}, "4": "four", "3": "text"}
    assert sorted(told) == ["3", "['list']"]
    assert "the same number as a text" in told["3"]


# ---- shelve


@pytest.mark.parametrize("name", ["shelf_dumb", "shelf_dumb.dir", "shelf_gnu", "shelf_ndbm", "shelf_ndbm.db"])
def test_every_entry_of_a_shelf_arrives(memory_store: Storage, sources: Path, name: str) -> None:
    report = import_from(memory_store, "shelve", sources / name)
    assert values(memory_store) == shelf()
    assert adds_up(report)


def test_every_entry_of_a_shelf_in_sqlite_arrives(any_store: Storage, source: Path, sources: Path) -> None:
    # As dbm.sqlite3 of Python 3.13 makes it (compared once with one that it had made).
    with sqlite3.connect(source / "shelf") as database:
        database.execute("CREATE TABLE IF NOT EXISTS Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
        for key, value in run_shelf(sources).items():
            database.execute("REPLACE INTO Dict (key, value) VALUES (CAST(? AS BLOB), CAST(? AS BLOB))", (key, value))
    database.close()
    import_from(any_store, "shelve", source / "shelf")
    assert values(any_store) == shelf()


def database(path: Path) -> None:
    with sqlite3.connect(path) as made:
        made.execute("CREATE TABLE words (word TEXT)")
    made.close()


@pytest.mark.parametrize("shelf_name", ["shelf_dumb", "shelf_gnu", "shelf_ndbm"])
def test_what_lies_beside_a_shelf_is_not_taken_for_it(source: Path, sources: Path, shelf_name: str) -> None:
    for file in sources.glob(f"{shelf_name}*"):
        (source / file.name.replace(shelf_name, "app")).write_bytes(file.read_bytes())
    names = sorted(path.name for path in source.iterdir())
    database(source / "app.pag")
    for name in {"app", "app.db"} - set(names):  # a store that is called as the shelf is
        open_storage(source / name).close()
    if "app.dat" not in names:
        (source / "app.dat").write_bytes(b"somebody else's")
        (source / "app.dir").write_bytes(b"somebody else's")
    for name in ("app", *names):
        with open_storage("memory:") as store:
            assert take(store, "shelve", source / name).failed == 0
            assert values(store) == shelf()


def test_a_shelf_of_sqlite_is_found_without_the_ending_that_the_program_gave(
    memory_store: Storage, source: Path
) -> None:
    with sqlite3.connect(source / "app.db") as made:
        made.execute("CREATE TABLE Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
        made.execute("INSERT INTO Dict VALUES (CAST('a' AS BLOB), ?)", (pickle.dumps(1),))
    made.close()
    for name in ("app.db", "app"):
        take(memory_store, "shelve", source / name)
        assert values(memory_store) == {"a": 1}
        memory_store.clear()
    # But where it is nobody's shelf, the one who asks for it is told so.
    database(source / "other.db")
    for name in ("other.db", "other"):
        with pytest.raises(NotAStorageFileError, match=r"other\.db: there is no table 'Dict'"):
            take(memory_store, "shelve", source / name)


def test_an_index_of_dbm_dumb_that_is_damaged_from_its_beginning_is_told(memory_store: Storage, source: Path) -> None:
    (source / "app.dat").write_bytes(b"I1\n.")
    (source / "app.dir").write_bytes(b"\0a', (0, 4)\n")
    with pytest.raises(StorageCorruptError, match=r"app\.dir"):
        take(memory_store, "shelve", source / "app")


def run_shelf(sources: Path) -> dict[bytes, bytes]:
    """Keys and pickles as they stand in a file of dbm.dumb."""
    import dbm.dumb

    with dbm.dumb.open(str(sources / "shelf_dumb"), "r") as file:
        return {key: file[key] for key in file.keys() if isinstance(key, bytes)}  # noqa: SIM118


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_a_shelf_of_python_2(memory_store: Storage, sources: Path, protocol: int) -> None:
    told = reasons(take(memory_store, "shelve", sources / f"python2_{protocol}"))
    assert values(memory_store) == {
        "value": {
            "list": [1, 2.5, None, True, 2**40, -1],
            "text": 'it\'s "a" \\ \n',
            "unicode": "é€",
            "tuple": [1, [], [1, 2, 3, 4]],
        },
        "a 'quoted' \"key\"": 1,
        "é": 2,
    }
    assert told == {
        "bytes": "$[0]: 8-bit string of Python 2 is not JSON: convert it to None, bool, int, float, str, list or dict",
        "old": "$: __main__.Old is not JSON: convert it to None, bool, int, float, str, list or dict",
        "new": "$.x: __main__.New is not JSON: convert it to None, bool, int, float, str, list or dict",
        "the value at byte 3,072": "the key is no UTF-8",
    }


# ---- TinyDB


def test_every_table_of_tinydb_becomes_a_namespace(any_store: Storage, source: Path) -> None:
    people: dict[str, Any] = {str(number): {"n": number, "text": "é" * number} for number in range(1, 3000)}
    path = tinydb(source, {"_default": {"1": {"a": 1.0}, "10": {"b": 2**64}}, "people": people, "empty": {}})
    report = take(any_store, "tinydb", path, batch_size=7)
    assert values(any_store) == {"1": {"a": 1.0}}
    assert values(any_store, "people") == people
    assert report.namespaces == ("default", "people")
    assert reasons(report) == {"10": "$.b: an integer beyond 64 bits: convert it to str"}
    assert adds_up(report)


def test_one_table_of_tinydb_goes_where_it_is_told(memory_store: Storage, source: Path) -> None:
    path = tinydb(source, {"_default": {"1": {"a": 1}}, "people": {"1": {"n": 1}}})
    with pytest.raises(ConfigError, match="'_default'"):
        take(memory_store, "tinydb", path, namespace="x")
    report = take(memory_store, "tinydb", path, namespace="x", table="people")
    assert values(memory_store, "x") == {"1": {"n": 1}}
    assert report.notes == ("the table '_default' is left out",)
    take(memory_store, "tinydb", path, namespace="y", table="_default")
    assert values(memory_store, "y") == {"1": {"a": 1}}
    assert memory_store.list_namespaces() == ["default", "x", "y"]
    with pytest.raises(ConfigError, match="no table 'animals'"):
        take(memory_store, "tinydb", path, table="animals")


def test_a_file_that_tinydb_has_only_made_yet_has_no_documents(memory_store: Storage, source: Path) -> None:
    path = source / "db.json"
    path.touch()
    report = import_from(memory_store, "tinydb", path)
    assert (report.read, report.written, report.namespaces) == (0, 0, ())
    with pytest.raises(ConfigError, match="no table 'people'"):
        import_from(memory_store, "tinydb", path, table="people")
    path.write_text("\n")  # which TinyDB itself does not read
    with pytest.raises(NotAStorageFileError):
        import_from(memory_store, "tinydb", path)


def test_a_name_of_a_table_that_no_namespace_can_have_is_told(memory_store: Storage, source: Path) -> None:
    path = tinydb(source, {"a*": {"1": {}}, "": {"1": {}}, "list": [1], "good": {"1": {}}})
    report = take(memory_store, "tinydb", path)
    assert report.namespaces == ("good",)
    assert [problem.key for problem in report.problems] == ["1", "1", "the table 'list'"]


@pytest.mark.parametrize("existing", ["refuse", "skip", "overwrite"])
@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_of_two_documents_of_tinydb_for_one_key_one_is_told(
    any_store: Storage, source: Path, existing: Existing, batch_size: int
) -> None:
    tables = {"_default": {"1": {"of": "_default"}, "2": {}}, "default": {"1": {"of": "default"}, "2": {}, "3": {}}}
    path = tinydb(source, tables | {"people": {"1": {"of": "people"}}})
    for is_dry in (True, False):
        report = take(any_store, "tinydb", path, existing=existing, batch_size=batch_size, dry_run=is_dry)
        assert adds_up(report)
        assert (report.written, report.replaced, report.skipped) == (4, 0, 0)
        assert sorted(reasons(report)) == ["1", "2"]
        assert all("'default', which both go to" in reason for reason in reasons(report).values())
    assert values(any_store) == {"1": {"of": "_default"}, "2": {}, "3": {}}
    with pytest.raises(BatchError) as caught:
        import_from(any_store, "tinydb", path, existing=existing)
    assert isinstance(caught.value.errors["1"], KeyExistsError)
    for name in ("_default", "default"):  # what the reason advises
        import_from(any_store, "tinydb", path, table=name, namespace=f"x {name}")
        assert values(any_store, f"x {name}") == tables[name]


@pytest.mark.parametrize("cut", [1, 5, 30, 60])
def test_a_file_of_tinydb_that_was_cut_off_is_told_as_that(memory_store: Storage, source: Path, cut: int) -> None:
    path = tinydb(source, {"_default": {str(number): {"n": number} for number in range(10)}})
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(StorageCorruptError, match="behind [0-9]+ documents: .*cut off"):
        take(memory_store, "tinydb", path)


# ---- dry runs, second runs, what is there already


def test_a_dry_run_tells_the_same_and_writes_nothing(any_store: Storage, sources: Path) -> None:
    any_store.set("key 7", "there")
    any_store.set("key 8", {"n": 8, "text": "é" * 8})
    before = any_store.get_entry("key 7"), any_store.get_entry("key 8"), any_store.list_namespaces()
    for existing in ("refuse", "skip", "overwrite"):
        told = take(any_store, "sqlitedict", sources / "plain.sqlite", dry_run=True, existing=existing)
        assert told.dry_run
        assert (any_store.get_entry("key 7"), any_store.get_entry("key 8"), any_store.list_namespaces()) == before
        assert any_store.count() == 2
        with open_storage("memory:") as other:
            other.set("key 7", "there")
            other.set("key 8", {"n": 8, "text": "é" * 8})
            done = take(other, "sqlitedict", sources / "plain.sqlite", existing=existing)
        assert (told.read, told.written, told.replaced, told.unchanged, told.skipped, told.failed, told.problems) == (
            done.read,
            done.written,
            done.replaced,
            done.unchanged,
            done.skipped,
            done.failed,
            done.problems,
        )


@pytest.mark.parametrize(
    ("kind", "name"), [("sqlitedict", "plain.sqlite"), ("diskcache", "cache"), ("shelve", "shelf_gnu")]
)
def test_a_second_run_changes_nothing(any_store: Storage, sources: Path, kind: Kind, name: str) -> None:
    first = take(any_store, kind, sources / name)
    before = list(any_store.scan())
    for existing in ("refuse", "overwrite", "skip"):
        again = take(any_store, kind, sources / name, existing=existing)
        assert (again.written, again.unchanged, again.failed) == (0, first.written, first.failed)
        assert list(any_store.scan()) == before


def with_others(store: Storage) -> None:
    store.set_many({"key 3": "mine", "key 1500": {"n": 1500.0, "text": ""}}, metadata={"by": "me"})


@pytest.mark.parametrize("existing", ["refuse", "skip"])
def test_what_the_store_has_stays(any_store: Storage, sources: Path, existing: Existing) -> None:
    with_others(any_store)
    before = any_store.get_entries(["key 3", "key 1500"])
    report = take(any_store, "sqlitedict", sources / "plain.sqlite", existing=existing)
    assert any_store.get_entries(["key 3", "key 1500"]) == before
    assert (report.written, report.replaced) == (2499, 0)
    assert (report.skipped, report.failed) == ((0, 3) if existing == "refuse" else (2, 1))
    assert adds_up(report)
    if existing == "refuse":
        assert "the store has another entry with the key 'key 3'" in reasons(report)["key 3"]


def test_what_the_store_has_is_replaced_where_that_is_wanted(any_store: Storage, sources: Path) -> None:
    with_others(any_store)
    report = take(any_store, "sqlitedict", sources / "plain.sqlite", existing="overwrite")
    assert (report.written, report.replaced) == (2501, 2)
    assert any_store.get("key 3") == {"n": 3, "text": "ééé"}
    assert any_store.get_metadata("key 3") == {"by": "me"}


# ---- bad entries


def test_the_first_bad_entry_stops_and_keeps_nothing_of_its_batch(any_store: Storage, source: Path) -> None:
    documents: dict[str, Any] = {str(number): {"n": number} for number in range(25)}
    documents["17"] = {"n": 2**64}
    path = tinydb(source, {"_default": documents})
    told: list[ImportReport] = []
    with pytest.raises(BatchError, match=r"stopped at entry 18; 10 before it are stored") as caught:
        import_from(any_store, "tinydb", path, batch_size=10, progress=told.append)
    assert isinstance(caught.value.errors["17"], InvalidValueError)
    assert caught.value.report is not None
    assert caught.value.report.loaded == 10
    assert any_store.count() == 10
    assert [(report.written, len(report.problems)) for report in told] == [(10, 0), (10, 1)]
    documents["17"] = {"n": 17}
    tinydb(source, {"_default": documents})
    report = import_from(any_store, "tinydb", path, batch_size=10)
    assert (report.written, report.unchanged) == (15, 10)


def test_an_entry_that_is_there_stops_and_keeps_nothing_of_its_batch(any_store: Storage, source: Path) -> None:
    path = tinydb(source, {"_default": {str(number): {"n": number} for number in range(25)}})
    any_store.set("17", "mine")
    with pytest.raises(BatchError, match="stopped at entry 18; 10 before it are stored") as caught:
        import_from(any_store, "tinydb", path, batch_size=10)
    assert isinstance(caught.value.errors["17"], KeyExistsError)
    assert any_store.count() == 11


def test_a_unique_index_refuses_only_what_it_has_to(any_store: Storage, source: Path) -> None:
    any_store.create_index("n", unique=True)
    path = tinydb(source, {"_default": {str(number): {"n": number % 20} for number in range(25)}})
    with pytest.raises(BatchError) as caught:
        import_from(any_store, "tinydb", path, batch_size=10)
    assert [type(error) for error in caught.value.errors.values()] == [UniqueIndexError]
    assert any_store.count() == 20
    report = take(any_store, "tinydb", path, batch_size=10)
    assert (report.unchanged, report.failed) == (20, 5)
    assert any_store.count() == 20


def test_only_the_first_hundred_problems_are_kept_and_all_are_counted(memory_store: Storage, source: Path) -> None:
    path = tinydb(source, {"_default": {str(number): {"n": 2**64} for number in range(1, 351)}})
    told: list[ImportReport] = []
    report = take(memory_store, "tinydb", path, progress=told.append)
    assert (report.failed, len(report.problems), report.problems[0].key) == (350, 100, "1")
    assert [problem.key for part in told for problem in part.problems] == [str(number) for number in range(1, 351)]


def test_the_last_batch_is_written_whatever_its_size(memory_store: Storage, source: Path) -> None:
    path = tinydb(source, {"_default": {str(number): {} for number in range(10)}})
    for size in range(1, 12):
        memory_store.clear()
        assert import_from(memory_store, "tinydb", path, batch_size=size).written == memory_store.count() == 10


def test_the_same_key_twice_in_a_table_is_told(any_store: Storage, source: Path) -> None:
    path = source / "db.json"
    path.write_text('{"_default": {"1": {"a": 1}, "2": {}, "1": {"a": 2}, "2": {}}}')
    for existing in ("refuse", "overwrite", "skip"):
        report = take(any_store, "tinydb", path, existing=existing)
        assert (report.written + report.unchanged, report.replaced, report.failed) == (2, 0, 2)
        assert any_store.get("1") == {"a": 1}


def test_tables_with_other_keys_do_not_share_a_batch(memory_store: Storage, source: Path) -> None:
    import_from(memory_store, "tinydb", tinydb(source, {"a": {"1": {}}, "b": {"2": {}}, "_default": {"3": {}}}))
    assert [list(values(memory_store, name)) for name in ("a", "b", "default")] == [["1"], ["2"], ["3"]]


def test_what_differs_by_type_or_expiry_alone_is_not_the_same(any_store: Storage, source: Path) -> None:
    path = tinydb(source, {"_default": {"1": 1, "2": 1.0, "3": True, "4": 4}})
    any_store.set_many({"1": 1.0, "2": 1, "3": 1})
    any_store.set("4", 4, ttl=60)
    report = take(any_store, "tinydb", path)
    assert (report.unchanged, report.failed) == (0, 4)


def test_large_documents_are_not_gathered(memory_store: Storage, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_MAX_BATCH", 16_000)
    path = tinydb(source, {"_default": {str(number): "x" * 3_000 for number in range(12)}})
    told: list[ImportReport] = []
    import_from(memory_store, "tinydb", path, progress=told.append)
    assert [report.written for report in told] == [6, 12]


def test_keys_that_cannot_be_keys_are_told(memory_store: Storage, source: Path) -> None:
    path = tinydb(source, {"_default": {"": 1, "x" * 1025: 2, "a\0b": 3, "good": 4}})
    assert len(reasons(take(memory_store, "tinydb", path))) == 3
    assert values(memory_store) == {"good": 4}


# ---- the source


def test_a_cache_that_is_in_use_is_read_as_it_is(memory_store: Storage, source: Path) -> None:
    program = """
import diskcache
cache = diskcache.Cache(sys.argv[1])
for number in range(50): cache[str(number)] = number
print("there", flush=True)
sys.stdin.readline()
cache["51"] = 51
print(len(cache), flush=True)
sys.stdin.readline()
"""
    with Child(program, source) as child:
        assert child.line() == "there"
        wal = (source / "cache.db-wal").read_bytes()
        assert take(memory_store, "diskcache", source).written == 50
        assert (source / "cache.db-wal").read_bytes() == wal
        child.tell()
        assert child.line() == "51"
        assert take(memory_store, "diskcache", source).written == 1
    # Killed: what it had committed stands in the -wal alone.
    wal = (source / "cache.db-wal").read_bytes()
    assert len(wal) > 0
    before = (source / "cache.db").read_bytes()
    assert take(memory_store, "diskcache", source, namespace="again").written == 51
    (source / "cache.db-shm").unlink()
    assert take(memory_store, "diskcache", source, namespace="again").unchanged == 51
    assert ((source / "cache.db").read_bytes(), (source / "cache.db-wal").read_bytes()) == (before, wal)


WRITER = """
import os, pickle, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size=5")
database.execute("CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB)")
database.execute("BEGIN")
for number in range(3000):
    database.execute("INSERT INTO unnamed VALUES (?, ?)", (str(number), pickle.dumps(number)))
database.execute("COMMIT")
database.execute("BEGIN IMMEDIATE")
if sys.argv[2] == "killed":
    database.execute("UPDATE unnamed SET value = ?", (pickle.dumps("half"),))
    os.kill(os.getpid(), 9)
database.execute("UPDATE unnamed SET value = ? WHERE key = '1'", (pickle.dumps("half"),))
print("there", flush=True)
sys.stdin.readline()
"""


def test_what_is_not_committed_is_not_read(memory_store: Storage, source: Path) -> None:
    with Child(WRITER, source / "words.sqlite", "alive") as child:
        assert child.line() == "there"
        assert take(memory_store, "sqlitedict", source / "words.sqlite").written == 3000
        assert memory_store.get("1") == 1


def test_a_writer_that_was_killed_half_way_is_told_and_nothing_is_repaired(source: Path) -> None:
    with Child(WRITER, source / "words.sqlite", "killed") as child:
        assert child.line() == ""
    before = state(source)
    with open_storage("memory:", busy_timeout=0.01) as store:
        with pytest.raises(StorageReadOnlyError, match="words.sqlite-journal beside it"):
            take(store, "sqlitedict", source / "words.sqlite")
        assert store.count() == 0
    assert state(source) == before


def test_a_writer_that_has_the_file_for_itself_is_waited_for(source: Path, sources: Path) -> None:
    path = source / "words.sqlite"
    path.write_bytes((sources / "tables.sqlite").read_bytes())
    program = "import sqlite3\nd = sqlite3.connect(sys.argv[1], isolation_level=None)\nd.execute('BEGIN EXCLUSIVE')\n"
    with Child(program + "print('there', flush=True)\nsys.stdin.readline()", path) as child:
        assert child.line() == "there"
        with open_storage("memory:", busy_timeout=0.01) as store, pytest.raises(StorageBusyError):
            take(store, "sqlitedict", path, table="second")


def test_a_file_without_locks_that_changes_meanwhile_is_told(memory_store: Storage, source: Path) -> None:
    path = tinydb(source, {"_default": {str(number): {"n": number} for number in range(30)}})

    def change(report: ImportReport) -> None:
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 1_000_000))

    with pytest.raises(StorageBusyError, match="was changed while it was read"):
        import_from(memory_store, "tinydb", path, batch_size=10, progress=change)


def test_a_source_that_cannot_be_written_is_read(memory_store: Storage, source: Path, sources: Path) -> None:
    for name in ("plain.sqlite", "shelf_gnu"):
        (source / name).write_bytes((sources / name).read_bytes())
        (source / name).chmod(0o400)
    source.chmod(0o500)
    assert take(memory_store, "sqlitedict", source / "plain.sqlite").written == 2501
    assert take(memory_store, "shelve", source / "shelf_gnu", namespace="x").written == 52
    assert sorted(os.listdir(source)) == ["plain.sqlite", "shelf_gnu"]
    source.chmod(0o700)


def test_what_is_none_of_these_is_told_as_that(memory_store: Storage, source: Path, sources: Path) -> None:
    text = source / "text"
    text.write_text("no database of any kind, and longer than what is looked at of a file's beginning")
    for kind in ("sqlitedict", "shelve", "tinydb"):
        with pytest.raises(NotAStorageFileError):
            take(memory_store, kind, text)
        with pytest.raises(ConfigError, match="there is no file"):
            take(memory_store, kind, source / "missing")
    with pytest.raises(NotAStorageFileError, match=r"without cache\.db"):
        take(memory_store, "diskcache", source)
    for path in (source / "missing", text):
        with pytest.raises(ConfigError, match="there is no directory"):
            take(memory_store, "diskcache", path)
    for kind, name in (("sqlitedict", "cache/cache.db"), ("shelve", "plain.sqlite"), ("tinydb", "shelf_gnu")):
        with pytest.raises((NotAStorageFileError, StorageCorruptError, ConfigError)):
            take(memory_store, kind, sources / name)  # type: ignore[arg-type]
    assert memory_store.get_status().entries == 0


def test_arguments_are_checked_before_anything_is_opened(memory_store: Storage, sources: Path) -> None:
    path = sources / "plain.sqlite"
    bad: list[tuple[type[Exception], dict[str, Any]]] = [
        (InvalidValueError, {"existing": "keep"}),
        (InvalidValueError, {"on_error": "raise"}),
        (InvalidValueError, {"batch_size": 0}),
        (InvalidValueError, {"progress": 1}),
        (InvalidNamespaceError, {"namespace": ""}),
    ]
    for error, how in bad:
        with pytest.raises(error):
            take(memory_store, "sqlitedict", path, **how)
    with pytest.raises(InvalidValueError, match="'sqlitedict'"):
        take(memory_store, "redis", path)  # type: ignore[arg-type]
    for kind in ("diskcache", "shelve"):
        with pytest.raises(ConfigError, match="no tables"):
            take(memory_store, kind, path, table="x")


def test_values_are_no_longer_than_the_store_takes(source: Path) -> None:
    words = {"short": "x" * 50, "long": "x" * 5000, "huge": "x" * 50000}
    with sqlite3.connect(source / "words.sqlite") as database:
        database.execute("CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB)")
        for key, value in words.items():
            database.execute("INSERT INTO unnamed VALUES (?, ?)", (key, json.dumps(value)))
            database.execute(
                "INSERT INTO unnamed VALUES (?, ?)", (key + " z", zlib.compress(json.dumps(value).encode()))
            )
    database.close()
    with open_storage("memory:", max_value_bytes=1000) as store:
        told = reasons(take(store, "sqlitedict", source / "words.sqlite"))
        assert sorted(told) == ["huge", "huge z", "long", "long z"]
        assert values(store) == {"short": "x" * 50, "short z": "x" * 50}


def test_nothing_of_what_values_hold_is_told(source: Path) -> None:
    chance = random.Random(1)
    secret = "".join(chance.choices("abcdefghijkmnopqrstuvwxyz", k=20))
    path = tinydb(
        source, {"_default": {"1": {"n": [secret, 2**64]}, "2": {"n": "\ud800" + secret}, "3": secret + "\0"}}
    )
    with open_storage("memory:") as store:
        report = take(store, "tinydb", path)
        assert report.failed == 3
        assert secret not in str(report)
        with pytest.raises(BatchError) as caught:
            import_from(store, "tinydb", path)
        assert secret not in str(caught.value)
