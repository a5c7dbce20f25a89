"""Hazard: what tells of the rows is damaged as well, and a salvage gives less than could be read, or what is old.

The key index, the list of free pages, the roots, the floor of versions: each of them may be gone, and rows stand in a
file twice, as they are and as they were. (`test_salvage.py` damages pages at random.)
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import apsw
import pytest
from test_salvage import PAGE, Name, everything, look, lose_free_pages, overwrite

from mycelia_storage import open_storage, salvage
from mycelia_storage.engines.sqlite.raw_pages import PageFile, record
from mycelia_storage.testing import FakeClock

if TYPE_CHECKING:
    from pathlib import Path


def test_records_are_read_as_sqlite_reads_them(tmp_path: Path) -> None:
    powers = [2**bits for bits in (7, 8, 15, 16, 23, 24, 31, 32, 47, 48, 62)]
    whole = [0, 1, -1, 2, *powers, *(n - 1 for n in powers), *(-n for n in powers), *(-n - 1 for n in powers)]
    whole += [2**63 - 1, -(2**63)]
    rows: list[tuple[int, Any]] = [(number, number) for number in sorted(whole)]
    rows += [
        (7000 + place, value) for place, value in enumerate((0.0, -1.5, 1e300, "", "é", b"", b"\xff", None, "x" * 900))
    ]
    rows.sort()
    connection = apsw.Connection(str(tmp_path / "some.db"))
    connection.execute("CREATE TABLE some (id INTEGER PRIMARY KEY, value)")
    connection.executemany("INSERT INTO some VALUES (?, ?)", rows)
    root = connection.execute("SELECT rootpage FROM sqlite_schema").get
    connection.close()
    pages = PageFile(str(tmp_path / "some.db"))
    cells = pages.tree_page(root).cells
    pages.close()
    assert [(cell.number, *record(cell.payload or b"")[1:]) for cell in cells] == rows


def test_values_and_keys_of_any_length_are_read(tmp_path: Path) -> None:
    """Just before and behind those with which a part of them goes to another page."""
    with open_storage(tmp_path / "store.db") as store:
        store.set_many({f"{size}": "x" * size for at in (3900, 8000) for size in range(at, at + 200)})
        store.set_many({f"{size}".ljust(size, "k"): 1 for size in range(950, 1024)})
        entries = everything(store)
    assert salvage(tmp_path / "store.db", tmp_path / "new.db").is_complete
    with open_storage(tmp_path / "new.db") as new:
        assert everything(new) == entries


def test_rows_that_have_the_same_number_are_both_taken(tmp_path: Path) -> None:
    data = b""
    for key in ("a", "b"):
        with open_storage(tmp_path / key) as store:
            store.set(key, 1)
        data += (tmp_path / key).read_bytes()[PAGE:]
    (tmp_path / "damaged.db").write_bytes(bytes(PAGE) + data)
    report = salvage(tmp_path / "damaged.db", tmp_path / "new.db")
    assert (report.entries, report.lost) == (2, 0)


def test_what_has_expired_is_not_in_the_way_of_a_unique_index(tmp_path: Path) -> None:
    path, clock, states = tmp_path / "store.db", FakeClock(), []
    with open_storage(path, clock=clock) as store:
        store.create_index("n", unique=True)
    for key in ("before", "after"):
        with open_storage(path, clock=clock) as store:
            store.set(key, {"n": 1}, ttl=60 if key == "before" else None)
        clock.advance(60)
        states.append(path.read_bytes()[PAGE:])
    (tmp_path / "damaged.db").write_bytes(bytes(PAGE) + b"".join(states))
    report = salvage(tmp_path / "damaged.db", tmp_path / "new.db")
    assert (report.entries, report.indexes, report.lost_indexes) == (1, 1, ())


def test_a_lost_first_page_of_a_file_with_checksums_loses_no_entry(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with open_storage(path, checksums=True) as store:
        store.set_many({f"k{number:03}": {"n": number, "text": "x" * 200} for number in range(500)})
        store.set("long", "y" * 20_000)
        entries = everything(store)
    overwrite(path, 1, bytes(PAGE))
    salvage(path, tmp_path / "new.db")
    with open_storage(tmp_path / "new.db") as new:
        assert everything(new) == entries


@pytest.mark.parametrize("is_floor_lost", [False, True])
def test_no_version_is_given_twice(tmp_path: Path, is_floor_lost: bool) -> None:
    """Though the clock was set back meanwhile. Where nobody knows what was deleted, those count that are there."""
    path, clock = tmp_path / "store.db", FakeClock()
    with open_storage(path, clock=clock) as store:
        store.set("there", 1)
        greatest = store.set("changed", 1)
        if not is_floor_lost:
            greatest = store.set("gone", 1)
            store.delete("gone")
    if is_floor_lost:
        for page in look(path)[1]["storage_version_floor"]:
            overwrite(path, page, bytes(PAGE))
    salvage(path, tmp_path / "new.db")
    clock.advance(-1000)
    with open_storage(tmp_path / "new.db", clock=clock) as store:
        assert store.set("gone", 2) > greatest


@pytest.mark.parametrize("is_behind", [False, True], ids=["in front", "behind"])
def test_an_older_state_does_not_win_wherever_it_stands(tmp_path: Path, is_behind: bool) -> None:
    path, damaged = tmp_path / "store.db", tmp_path / "damaged.db"
    states = []
    for state in ("old", "new"):
        with open_storage(path) as store:
            store.set_many({f"k{number:03}": {state: number} for number in range(200)})
            entries = everything(store)
        states.append(path.read_bytes()[PAGE:])
    damaged.write_bytes(bytes(PAGE) + b"".join(states if not is_behind else reversed(states)))
    salvage(damaged, tmp_path / "new.db")
    with open_storage(tmp_path / "new.db") as new:
        assert everything(new) == entries


KEYS = [f"k{number:04}" for number in range(0, 5000, 2)]


class Plain(NamedTuple):
    """2,500 entries of which only the one key index tells, and where they stand; there are free pages, too."""

    path: Path
    pages_of: dict[Name, frozenset[int]]
    trees: dict[str, list[int]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    path = tmp_path_factory.mktemp("plain") / "store.db"
    with open_storage(path) as store:
        store.set_many({key: {"some": "thing"} for key in KEYS})
        store.set_many({f"deleted{number}": "gone" * 100 for number in range(500)})
        store.delete_many([f"deleted{number}" for number in range(500)])
    return Plain(path, *look(path))


@pytest.mark.parametrize("are_free_known", [True, False])
def test_every_key_is_named_where_no_row_can_be_read(plain: Plain, tmp_path: Path, are_free_known: bool) -> None:
    """Those on the inner pages of the key index, too."""
    path = tmp_path / "store.db"
    shutil.copyfile(plain.path, path)
    for page in plain.trees["storage_entries"]:
        overwrite(path, page, bytes(PAGE))
    if not are_free_known:
        lose_free_pages(path)
    report = salvage(path, tmp_path / "new.db")
    with open_storage(tmp_path / "new.db") as new:
        there = new.list_keys()  # a few that were moved, and stand on a free page still
    assert len(there) == 0 if are_free_known else len(there) < 50
    missing = [key for key in KEYS if key not in there]
    assert (report.entries, report.lost) == (len(there), len(missing))
    assert [lost.key for lost in report.lost_entries] == missing[:1000]


def test_what_its_root_leads_to_needs_no_index_and_no_list_of_free_pages(plain: Plain, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    shutil.copyfile(plain.path, path)
    for page in plain.trees["sqlite_autoindex_storage_entries_1"]:
        overwrite(path, page, bytes(PAGE))
    lose_free_pages(path)
    (damaged,) = plain.pages_of["default", "k0776"]
    overwrite(path, damaged, bytes(PAGE))
    report = salvage(path, tmp_path / "new.db")
    left = {key for (_, key), pages in plain.pages_of.items() if damaged not in pages}
    assert len(left) > 2000
    with open_storage(tmp_path / "new.db") as new:
        assert set(new.list_keys()) == left
    assert report.damaged_pages == 2  # and the root of the index


def test_pages_that_lead_in_a_circle_are_read_once(plain: Plain, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    shutil.copyfile(plain.path, path)
    root = plain.trees["storage_entries"][0]
    overwrite(path, root, root.to_bytes(4, "big"), 8)
    report = salvage(path, tmp_path / "new.db")
    assert any("cannot be its own" in problem for problem in report.problems)
    assert (report.entries, report.lost) == (2500, 0)


def test_a_cell_that_makes_no_sense_is_told_and_takes_no_other(plain: Plain, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    shutil.copyfile(plain.path, path)
    (page,) = plain.pages_of["default", "k0776"]
    overwrite(path, page, b"\xff\xff", 8)  # where its first cell is said to be
    report = salvage(path, tmp_path / "new.db")
    assert (report.entries, report.lost, report.damaged_pages) == (2499, 1, 1)
    assert report.problems == (f"'storage_entries': 1 cells of page {page} are damaged",)


@pytest.mark.parametrize("is_in_order", [False, True])
def test_a_key_that_is_damaged_in_the_index_takes_no_entry(plain: Plain, tmp_path: Path, is_in_order: bool) -> None:
    """One that is out of order, or on a page of which another cell is damaged, is not believed against the row."""
    path = tmp_path / "store.db"
    shutil.copyfile(plain.path, path)
    data = path.read_bytes()
    (place,) = (
        found
        for page in plain.trees["sqlite_autoindex_storage_entries_1"]
        if (found := data.find(b"k0776", (page - 1) * PAGE, page * PAGE)) >= 0
    )
    if is_in_order:
        overwrite(path, 1, b"k0777", place)
        overwrite(path, place // PAGE + 1, b"\xff\xff", 8)
    else:
        overwrite(path, 1, b"z", place)
    report = salvage(path, tmp_path / "new.db")
    assert (report.entries, report.lost) == (2500, 0)
